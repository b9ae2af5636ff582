"""Workers that die in the middle of a run: of the local pool, of a Dask cluster, of a training on two ranks."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from faults.processes import COMMANDS, TINY, Command

GENERATE = Command("", f"generate --preset micro {TINY} --cases 0:48 --shard-size 2 --workers 1 --out out", "out")
TRAIN = COMMANDS["train"]


def running(folder: Path, words: list[str]) -> subprocess.Popen[str]:
    """A command of its own, with what it says kept in stderr.txt."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "stderr.txt").open("w") as said:
        return subprocess.Popen(words, cwd=folder, stderr=said, stdout=said, text=True, env=environment)


def children_of(parent: int, word: bytes) -> list[int]:
    """Processes below ``parent`` whose command line holds a word."""
    found, left = [], [parent]
    while left:
        one = left.pop()
        try:
            lists = [path.read_text() for path in Path(f"/proc/{one}/task").glob("*/children")]  # of every thread
            below = [int(child) for text in lists for child in text.split()]
        except OSError:
            continue
        left += below
        for child in below:
            try:
                if word in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(child)
            except OSError:
                continue
    return found


def kill_one(parent: subprocess.Popen[str], word: bytes, ready: Path, pattern: str, draw: np.random.Generator) -> bool:
    """SIGKILL for one of the workers once work has been finished; whether there was one."""
    end = time.monotonic() + 180
    while not list(ready.glob(pattern)) and parent.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    workers = children_of(parent.pid, word)
    if parent.poll() is not None or not workers:
        return False
    os.kill(int(draw.choice(workers)), signal.SIGKILL)
    return True


def local(folder: Path, draw: np.random.Generator) -> tuple[list[int], bool]:
    """A worker of the local pool."""
    words = GENERATE.words.replace("--workers 1", "--workers 2 --quiet").split()
    run = running(folder, [sys.executable, "-m", "lungwave", *words])
    hit = kill_one(run, b"spawn_main", folder / "out", "cases_*.h5", draw)
    return [run.wait(600)], hit


def dask(folder: Path, draw: np.random.Generator) -> tuple[list[int], bool]:
    """A worker of a Dask cluster."""
    words = GENERATE.words.replace("--workers 1", "--workers 2 --scheduler local --quiet").split()
    run = running(folder, [sys.executable, "-m", "lungwave", *words])
    hit = kill_one(run, b"spawn_main", folder / "out", "cases_*.h5", draw)
    return [run.wait(600)], hit


def ranks(folder: Path, draw: np.random.Generator) -> tuple[list[int], bool]:
    """One of two ranks of a training.

    torchrun ends with a report of its own, which names the rank and the signal below a traceback of its own code; what
    is judged is what lungwave says before it.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    run = running(folder, [*launch, "-m", "lungwave", *TRAIN.words.split(), "--quiet"])
    hit = kill_one(run, b"lungwave", folder / "out", "state.safetensors", draw)
    code, said = run.wait(600), folder / "stderr.txt"
    ours, _, report = said.read_text().partition("Traceback (most recent call last):")
    if "ChildFailedError" in report and "Traceback" not in report and "(SIGKILL)" in report:
        said.write_text(ours)
    return [code], hit
