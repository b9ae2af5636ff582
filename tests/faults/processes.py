"""Commands that are killed, starved of disk, run twice at once or in a wrong time, and what is left of their work.

A fault has gone well where the same command, run again, ends with the content of a run without faults ("recovered"), or
where it was refused in one line with nothing half-written ("refused"); else it is "lost".
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from faults.damage import mark
from lungwave.data import seal
from lungwave.data.arrays import numpy_arrays

# Children fork from a server that has everything loaded and no threads, so each costs little.
SERVER = multiprocessing.get_context("forkserver")
MODULES = "torch lungwave.cli_learn lungwave.prior.build lungwave.comparison lungwave.batch lungwave.posterior.ridge"
SERVER.set_forkserver_preload(MODULES.split())
TINY = "--set grid.steps=300 --set map.rows=8 --set map.columns=8 --set map.bands=[0,0.0008]"


def content(folder: Path) -> str:
    """Hash of what a command computed, without times and machines."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".h5" or name.endswith(("reconstruction.csv", "aeration.csv")):
            found[name] = path.read_bytes()
        elif path.suffix == ".npz" and "cache" not in path.parts:
            found[name] = {key: mark(value) for key, value in sorted(numpy_arrays(path, "keep").items())}
        elif path.name == "model.safetensors":
            found[name] = path.read_bytes()
    return mark(sorted(found.items()))


def half_written(folder: Path) -> list[str]:
    """Files under their final names that are not whole; a journal's last line is its reader's business."""
    wrong = []
    for path in folder.rglob("*"):
        if (
            path.name.startswith(".")
            or not path.is_file()
            or any(p.startswith(".") for p in path.relative_to(folder).parts)
        ):
            continue
        try:
            if path.suffix == ".h5":
                seal.check(path)
            elif path.suffix == ".json":
                json.loads(path.read_text())
            elif path.suffix == ".npz":
                assert zipfile.ZipFile(path).testzip() is None
            elif path.suffix == ".safetensors":
                from safetensors import safe_open

                safe_open(path, framework="np").keys()
            assert path.stat().st_size > 0
        except Exception as error:
            wrong.append(f"{path.name}: {error}")
    return wrong


@dataclass(frozen=True)
class Command:
    """What is run, in a folder where ``prepare`` has put what it reads."""

    name: str
    words: str
    out: str  # folder of its results

    def run(self, folder: Path, hook: Callable[[], None] | None = None) -> int:
        """In a child process to its end; the exit code."""
        child = start(folder, self.words, hook)
        child.join(600)
        return int(child.exitcode)


def body(folder: Path, words: str, hook: Callable[[], None] | None) -> None:
    """Of a child process."""
    import torch

    torch.set_num_threads(1)
    from lungwave.cli import main

    os.chdir(folder)
    with (folder / "stderr.txt").open("w") as said, contextlib.redirect_stderr(said):
        if hook is not None:
            hook()
        code = main([*words.split(), "--quiet"])
    sys.exit(code)


def start(folder: Path, words: str, hook: Callable[[], None] | None = None) -> multiprocessing.process.BaseProcess:
    """A child process that runs ``lungwave WORDS``."""
    child = SERVER.Process(target=body, args=(folder, words, hook))
    child.start()
    return child


COMMANDS = {
    command.name: command
    for command in (
        Command("generate", f"generate --preset micro {TINY} --cases 0:16 --shard-size 2 --workers 1 --out out", "out"),
        Command("maps", f"maps --preset micro {TINY} --cases 0:60 --workers 1 --out out/maps.npz", "out"),
        Command("fit", "fit cases --out out", "out"),
        Command(
            "train",
            "train maps.npz --out out --channels 8 --mult 1 2 --blocks 1 --heads 2 --batch 8 --images 64 "
            "--save-minutes 0 --snapshot-images 32 --check-images 64 --samples 0 --seed 1",
            "out/model",
        ),
        Command("sample", "sample prior --count 12 --batch 4 --steps 6 --out out", "out"),
        Command("evaluate", "evaluate reconstruction test --model ridge --samples 39 --snr 20 --out out", "out"),
        Command("reconstruct", "reconstruct test --model ridge --out out", "out"),
    )
}


def prepare(folder: Path, only: str = "") -> None:
    """Cases, maps and models that the commands read, or those of one verb."""
    for words in (
        f"generate --preset micro {TINY} --seed 5 --cases 0:120 --shard-size 30 --workers 1 --out cases",
        f"generate --preset micro {TINY} --seed 6 --cases 0:24 --shard-size 4 --workers 1 --out test",
        f"maps --preset micro {TINY} --seed 5 --cases 0:40 --workers 1 --out maps.npz",
        "fit cases --out ridge",
        COMMANDS["train"].words.replace("--out out", "--out prior"),
    ):
        if words.startswith(only):
            assert Command("", words, "").run(folder) == 0, (folder / "stderr.txt").read_text()


def fresh(source: Path, place: Path) -> Path:
    """A folder with links to what was prepared."""
    place.mkdir(parents=True)
    for path in source.iterdir():
        (place / path.name).symlink_to(path)
    (place / "stderr.txt").unlink(missing_ok=True)
    return place


def verdict(folder: Path, command: Command, expected: str, codes: list[int]) -> tuple[str, str]:
    """What is left after a fault, and after the command was run again without one."""
    wrong = half_written(folder / "out") if (folder / "out").exists() else []
    if wrong:
        return "lost", f"half-written {wrong}"
    said = (folder / "stderr.txt").read_text() if (folder / "stderr.txt").exists() else ""
    if "Traceback" in said or "defect of lungwave" in said:
        return "lost", f"no clear refusal: {said[-300:]}"
    if command.run(folder) != 0:
        return "lost", f"rerun: {(folder / 'stderr.txt').read_text()[-300:]}"
    if content(folder / command.out) != expected:
        return "lost", "other content"
    return ("refused" if any(code > 0 and code != 143 for code in codes) else "recovered"), ""


def stopped(folder: Path, command: Command, number: int, delay: float) -> list[int]:
    """Send a signal after ``delay`` seconds."""
    child = start(folder, command.words)
    child.join(delay)
    if child.is_alive():
        os.kill(child.pid, number)
    child.join(600)
    return [int(child.exitcode)]


class NoSpace:
    """No file may grow beyond so many bytes: the write fails in the middle, as on a full disk."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.RLIM_INFINITY))


class ReadOnly:
    """Every file below a folder can be read and none written, as root too: opening for writing fails with EROFS."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __call__(self) -> None:
        import errno

        plain, where = os.open, self.folder

        def refuse(path: object, flags: int, *rest: object, **named: object) -> int:
            name = str(Path(os.fspath(path)).absolute()) if isinstance(path, (str, os.PathLike)) else ""
            if name.startswith(where) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), name)
            return plain(path, flags, *rest, **named)  # type: ignore[arg-type]

        os.open = refuse  # type: ignore[assignment]


class Jumping:
    """A wall clock that jumps by years, back and forth, at every look."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self) -> None:
        draw, plain = np.random.default_rng(self.seed), time.time
        time.time = lambda: plain() + float(draw.uniform(-3e8, 3e8))  # type: ignore[assignment]


def other_times(folder: Path, draw: np.random.Generator) -> None:
    """Give every file a time of its own, past or future, as a clock that was set meanwhile does."""
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            then = time.time() + float(draw.uniform(-3e8, 3e8))
            os.utime(path, (then, then))


def twice(folder: Path, command: Command) -> list[int]:
    """Two processes at once on one folder."""
    children = [start(folder, command.words) for _ in range(2)]
    for child in children:
        child.join(600)
    return [int(child.exitcode) for child in children]
