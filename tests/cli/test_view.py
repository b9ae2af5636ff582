"""``lungwave view``: what it refuses before it opens a door. How it runs is tested in tests/viewer."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing.h5",), "missing.h5: does not exist; give an RF file"),
        ((".",), ".: is a folder; give an RF file"),
        (("--port", "70000"), "--port 70000 must lie between 0 and 65535"),
        (("--max-upload", "0"), "--max-upload 0 must lie between 0 and 100000 MB"),
        (("--host", "0.0.0.0"), "--host 0.0.0.0 would let other machines in; add --expose"),
        (("--host", "999.1.1.1", "--expose"), "--host 999.1.1.1 --port 0: "),
        (("--model", "nothing"), "nothing: no such folder"),
        (("--model", "."), "config.json"),
    ],
)
def test_refusals(
    refused: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert said in refused("view", *words, "--no-browser")
    assert list(tmp_path.iterdir()) == []


def test_port_that_is_taken(refused: Callable[..., str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        said = refused("view", "--port", port, "--no-browser")
    taken = os.strerror(errno.EADDRINUSE)
    assert said == f"--host 127.0.0.1 --port {port}: {taken}; choose another port, or 0 for any free one"
