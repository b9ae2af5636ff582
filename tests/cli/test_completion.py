"""Completion scripts as the shells themselves read them, and against what each command says of itself."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lungwave.cli import VERBS, main
from lungwave.cli_completion import SHELLS, commands, script
from lungwave.types import UsageError

Command = Callable[..., subprocess.CompletedProcess[str]]

# What is typed before Tab, what must be offered, and what must not.
TYPED = [
    (("",), {"demo", "evaluate", "legacy", "data", "completion", "--help"}, {"calibration"}),
    (("rec",), {"reconstruct"}, {"report"}),
    (("evaluate", ""), {"reconstruction", "generative", "memorisation", "calibration"}, {"info"}),
    (("evaluate", "calibration", "--"), {"--out", "--seed", "--dry-run"}, {"--grid.spacing", "--train"}),
    (("train", "maps.npz", "--kind", ""), {"wiener", "edm", "flow"}, {"auto"}),
    (("train", "maps.npz", "--no-"), {"--no-flip"}, {"--no-echoes"}),
    (("generate", "--grid.s"), {"--grid.spacing", "--grid.steps"}, {"--grid.depth"}),
    (("generate", "--preset", ""), {"micro", "tiny", "paper"}, {"healthy"}),
    (("reconstruct", "rf.h5", "--model", ""), {"posterior-tiny", "ridge-tiny", "resolved-micro"}, {"prior-tiny"}),
    (("sample", "pri"), {"prior-tiny", "prior-strip"}, {"posterior-tiny"}),
    (("legacy", "image_train", "--num_c"), {"--num_channels"}, {"--num_heads"}),
]


@pytest.mark.parametrize(
    ("words", "offered", "refused"), TYPED, ids=lambda words: " ".join(words) if isinstance(words, tuple) else ""
)
def test_bash_offers_what_fits(words: tuple[str, ...], offered: set[str], refused: set[str], tmp_path: Path) -> None:
    if not (bash := shutil.which("bash")):
        pytest.skip("bash is not installed")
    (tmp_path / "c.bash").write_text(script("bash"), encoding="utf-8")
    line = 'source c.bash; COMP_WORDS=(lungwave "$@"); COMP_CWORD=$#; _lungwave; printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(
        [bash, "--norc", "-c", line, "x", *words], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True
    )
    said = set(done.stdout.split())
    assert done.stderr == "" and offered <= said and not refused & said, said


def test_zsh_completes_as_it_is_typed(tmp_path: Path) -> None:
    """A terminal of its own: type, press Tab, read the line."""
    if not (zsh := shutil.which("zsh")):
        pytest.skip("zsh is not installed")
    (tmp_path / "c.zsh").write_text(script("zsh"), encoding="utf-8")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execve(zsh, [zsh, "-f", "-i"], {**os.environ, "TERM": "dumb", "HOME": str(tmp_path), "PS1": "> "})

    def typed(keys: str, wanted: str) -> str:
        os.write(terminal, keys.encode())
        said, end = "", time.monotonic() + 30
        while wanted not in said and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                said = re.sub(".\x08", "", said + os.read(terminal, 4096).decode(errors="replace"))
        return said

    try:
        ready = "autoload -Uz compinit; compinit -u -D; source ./c.zsh; echo rea''dy\n"
        assert "ready" in typed(ready, "ready")
        assert "lungwave evaluate cal" in typed("lungwave eval\tcal", "lungwave evaluate cal")
        assert "ibration" in typed("\t", "ibration")
        assert "dry-run" in typed("--dr\t", "dry-run")
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)


def test_tcsh_reads_the_rules(tmp_path: Path) -> None:
    if not (tcsh := shutil.which("tcsh")):
        pytest.skip("tcsh is not installed")
    (tmp_path / "c.tcsh").write_text(script("tcsh"), encoding="utf-8")
    done = subprocess.run(
        [tcsh, "-f", "-c", "source c.tcsh; complete lungwave"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "p/1/(demo phantom" in done.stdout and "n/--kind/(wiener edm" in done.stdout and done.stderr == ""


def test_every_option_of_every_command_is_known(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    known = {command.name: {flag.name for flag in command.flags} for command in commands()}
    for name in VERBS:
        if name == "legacy":
            continue
        assert main([*name.split(), "--help"]) == 0
        listed = set(re.findall(r"^\W*(?:-h, )?(--[a-z][\w-]*)", capsys.readouterr().out, re.MULTILINE))
        assert listed and listed == {flag for flag in known[name] if "." not in flag}, name


def test_an_unknown_shell_is_answered(lungwave: Command) -> None:
    assert {s for s in SHELLS if script(s)} == set(SHELLS)
    with pytest.raises(UsageError, match="'fish'; give bash, zsh or tcsh"):
        script("fish")
    done = lungwave("completion", "bahs")
    assert done.returncode == 2 and "did you mean 'bash'?" in done.stderr and done.stdout == ""
