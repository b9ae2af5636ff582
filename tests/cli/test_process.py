"""What only a process of its own can show: exit codes, signals, pipes, plans and files."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lungwave.types import RESEARCH_USE

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_exit_codes(lungwave: Command, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where a folder should be")
    for code, words in (
        (0, ("--help",)),
        (2, ("generat",)),
        (2, ("phantom", "--preset", "micor")),
        (2, ("phantom", "--out", "taken")),
        (1, ("phantom", "--preset", "micro", "--cases", "1", "--quiet", "--out", "taken/below")),
    ):
        done = lungwave(*words)
        assert done.returncode == code, done.stderr
        assert len(done.stderr.splitlines()) == (code > 0)
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_stop_is_one_line_and_its_code(number: int, code: int, word: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lungwave", "phantom", "--preset", "micro", "--cases", "0:100000", "--out", "lungs"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("lungs/*.png")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert said.splitlines()[-1] == f"lungwave: error: {word}; rerun the same command to go on"
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*.part")) == []


STOPPED_IN_A_CALLBACK = """
import os, signal, sys, time, weakref
import lungwave.cli

class Held: pass

def dying(reference):
    os.kill(os.getpid(), signal.{name})
    for _ in range(1000): pass  # the handler runs here, where Python forgets what it raises

def work(arguments):
    held = Held()
    reference = weakref.ref(held, dying)
    del held
    end = time.monotonic() + 30
    while time.monotonic() < end: pass
    return 0

lungwave.cli._dispatch = work
sys.exit(lungwave.cli.main([]))
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_stop_that_python_forgets_is_not_forgotten(name: str, code: int) -> None:
    """A signal that arrives while a weak reference is called back, as it does once in some thousand stops."""
    clock = time.monotonic()
    program = STOPPED_IN_A_CALLBACK.format(name=name)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == code and time.monotonic() - clock < 25
    assert len(done.stderr.splitlines()) == 1 and "rerun the same command" in done.stderr


@pytest.mark.parametrize("moment", ["starting", "working"])
def test_interrupted_workers_say_nothing(moment: str, tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal; finished files stay, and only one line is said."""
    words = ["generate", "--preset", "micro", "--cases", "0:4000", "--shard-size", "2", "--out", "cases"]
    process = start(words, tmp_path)
    if moment == "starting":
        wait_for(process, lambda: len(workers_of(process)) == 2)
    else:
        wait_for(process, lambda: list(tmp_path.glob("cases/cases_*.h5")))
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == "lungwave: error: interrupted; rerun the same command to go on\n"
    assert list(tmp_path.rglob("*.part")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_workers_end_with_the_command(number: int, tmp_path: Path) -> None:
    """A signal to the command alone ends its workers in the middle of a shard that would take an hour."""
    words = ["generate", "--preset", "micro", "--cases", "99999:300000", "--shard-size", "100000", "--out", "cases"]
    process = start(words, tmp_path)
    # The first shard holds one case; when it is there, both workers are in a long one.
    wait_for(process, lambda: list(tmp_path.glob("cases/cases_*.h5")))
    workers = workers_of(process)
    assert len(workers) == 2
    process.send_signal(number)
    _, said = process.communicate(timeout=60)  # stderr closes when the last worker is gone
    if number == signal.SIGTERM:
        assert process.returncode == 143
        assert said == "lungwave: error: terminated; rerun the same command to go on\n"
    assert not any(command_line(worker) for worker in workers)
    assert [path.name for path in (tmp_path / "cases").glob("*.h5")] == ["cases_099999-099999.h5"]
    assert list(tmp_path.rglob("*.part")) == []


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """``lungwave WORDS`` with two workers, in a process group of its own as a terminal would make one."""
    command = [sys.executable, "-m", "lungwave", *words, "--workers", "2", "--quiet"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True)
    if not Path(f"/proc/{process.pid}/task/{process.pid}/children").exists():
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.skip("the kernel does not list children of a process")
    return process


def wait_for(process: subprocess.Popen[str], happened: Callable[[], object]) -> None:
    """Until it has happened, or the process has ended too early."""
    while not happened():
        assert process.poll() is None
        time.sleep(0.02)


def workers_of(process: subprocess.Popen[str]) -> list[str]:
    """Identities of the workers that a process has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [child for child in children if b"spawn_main" in command_line(child)]


def command_line(identity: str) -> bytes:
    """Of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{identity}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.mark.parametrize(
    "words",
    [
        ("phantom", "--cases", "1", "--out", "lungs"),
        ("simulate", "--out", "rf.h5"),
        ("generate", "--cases", "1", "--workers", "1", "--out", "cases"),
    ],
    ids=lambda words: words[0],
)
def test_full_disk_is_one_line_and_nothing_half_written(words: tuple[str, ...], tmp_path: Path) -> None:
    """A limit of 8 kB a file stands in for a full disk: the write itself fails, at whatever byte."""
    command = [sys.executable, "-m", "lungwave", *words, "--preset", "micro", "--quiet"]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "cannot write (File too large); free space or choose another folder" in done.stderr
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {"config.json"}


def test_dry_run_writes_nothing_and_says_what_would_be(lungwave: Command, tmp_path: Path) -> None:
    for verb in ("phantom", "generate", "simulate"):
        done = lungwave(verb, "--preset", "micro", "--dry-run", "--json")
        assert done.returncode == 0, done.stderr
        plan = json.loads(done.stdout)
        assert plan["bytes"] > 0
        assert plan["out"].startswith("lungwave-")
        assert plan["notice"] == RESEARCH_USE
    assert list(tmp_path.iterdir()) == []


def test_planned_size_is_close_to_the_written_one(lungwave: Command, tmp_path: Path) -> None:
    words = ("generate", "--preset", "micro", "--cases", "0:2", "--workers", "1", "--shard-size", "2", "--out", "cases")
    plan = json.loads(lungwave(*words, "--dry-run", "--json").stdout)
    done = json.loads(lungwave(*words, "--json").stdout)
    assert plan["cases"] == done["cases"] == 2
    assert plan["files"] == done["files"]
    assert 0.85 < done["bytes"] / plan["bytes"] < 1.15


def test_quiet_says_nothing(lungwave: Command, tmp_path: Path) -> None:
    done = lungwave("phantom", "--preset", "micro", "--cases", "0:1", "--quiet", "--out", "lungs")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert {path.name for path in (tmp_path / "lungs").iterdir()} == {
        "case_000000.npz",
        "case_000000.png",
        "manifest.json",
    }


def test_traceback_on_request(lungwave: Command) -> None:
    assert "Traceback" in lungwave("phantom", "--preset", "micor", LUNGWAVE_TRACEBACK="1").stderr


def test_a_reader_that_leaves_is_no_error(lungwave: Command, tmp_path: Path) -> None:
    command = f"'{sys.executable}' -m lungwave phantom --print-config | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")
