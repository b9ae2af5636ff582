"""The command line as a user meets it: a process of its own, in an empty folder."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def lungwave(tmp_path: Path) -> Command:
    """Run ``lungwave WORDS`` in ``tmp_path`` and return code, stdout and stderr."""

    def run(*words: object, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "lungwave", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "COLUMNS": "80", **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., dict]:
    """Run words in ``tmp_path``, in this process; return what they say as JSON, or the line of their error."""
    from lungwave.cli import main  # after pytest has set its annotation checks up

    monkeypatch.chdir(tmp_path)

    def run(words: str, code: int = 0) -> dict:
        returned = main([*shlex.split(words), "--json", "--quiet"])
        out, err = capfd.readouterr()
        assert returned == code, err
        return json.loads(out) if code == 0 else {"error": err.splitlines()[-1]}

    return run


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run words that must be refused; return the one line that says why.

    The law of bad input: the exit code, one line on stderr, nothing on stdout, no traceback, nothing new on disk. Runs
    in this process, because most of a process's time would go into imports; ``test_process.py`` checks the exit itself.
    """
    from lungwave.cli import main  # after pytest has set its annotation checks up

    monkeypatch.chdir(tmp_path)

    def run(*words: object, code: int = 2) -> str:
        before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        returned = main([*map(str, words)])
        out, err = capfd.readouterr()
        lines = err.splitlines()
        assert (returned, len(lines)) == (code, 1), err
        assert lines[0].startswith("lungwave: error: ")
        assert "Traceback" not in err
        assert "defect of lungwave" not in err
        assert out == ""
        assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
        return lines[0].removeprefix("lungwave: error: ")

    return run
