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


def test_interrupt_is_one_line_and_130(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "lungwave", "phantom", "--preset", "micro", "--cases", "0:100000", "--out", "lungs"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("lungs/*.png")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1] == "lungwave: error: interrupted; rerun the same command to go on"
    assert "Traceback" not in said
    assert list(tmp_path.rglob("*.part")) == []


def test_interrupted_workers_say_nothing(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal; finished files stay, and only one line is said."""
    words = [
        "generate",
        "--preset",
        "micro",
        "--cases",
        "0:4000",
        "--workers",
        "2",
        "--shard-size",
        "2",
        "--out",
        "cases",
    ]
    process = subprocess.Popen(
        [sys.executable, "-m", "lungwave", *words, "--quiet"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not list(tmp_path.glob("cases/cases_*.h5")):
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert said == "lungwave: error: interrupted; rerun the same command to go on\n"
    assert list(tmp_path.rglob("*.part")) == []


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
    assert 0.3 < done["bytes"] / plan["bytes"] < 3


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
