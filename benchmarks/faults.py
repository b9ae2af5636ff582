"""Faults injected again and again: what was recovered, what was refused, what was lost.

    python benchmarks/faults.py --minutes 30

Files of every kind get one flipped bit or lose their end at a random place and are read again; commands are killed at
random instants, starved of disk, shut out of their folder, given a clock that jumps, and started twice at once; workers
of every engine are killed in the middle of a run. "Lost" means: wrong content taken for true, finished work gone, a
half-written file under a final name, or an end without a clear sentence. Writes docs/results/faults.{md,json}.
"""

from __future__ import annotations

import argparse
import itertools
import json
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from faults import damage, losses, processes  # noqa: E402
from lungwave.repro import atomic_path, versions, write_json  # noqa: E402

DOCS = ROOT / "docs" / "results"
Outcome = tuple[str, str, str]  # fault, outcome, what was seen


def damages(top: Path, times: int, draw: np.random.Generator) -> Iterator[Outcome]:
    """Bit flips and truncation of every kind of file."""
    for one in damage.gallery(top):
        for what in damage.DAMAGES:
            for found, _ in damage.injected(one, what, times, draw):
                yield f"{what}: {one.name}", found, ""


class Bench:
    """Commands, what they read, and what they give without faults."""

    def __init__(self, top: Path, draw: np.random.Generator, names: list[str]) -> None:
        self.top, self.draw, self.count = top, draw, itertools.count()
        self.source = top / "prepared"
        self.source.mkdir()
        self.commands = [processes.COMMANDS[name] for name in names]
        self.engines = set(names) == set(processes.COMMANDS)
        if set(names) - {"generate", "maps"}:  # these read nothing
            processes.prepare(self.source)
        self.expected: dict[str, str] = {}
        self.seconds: dict[str, float] = {}
        for command in (*self.commands, *((losses.GENERATE,) if self.engines else ())):
            folder, clock = self.folder(), time.monotonic()
            assert command.run(folder) == 0, (folder / "stderr.txt").read_text()
            self.seconds[command.words] = time.monotonic() - clock
            self.expected[command.words] = processes.content(folder / command.out)
            print(f"{command.name or 'generate, more'}: {self.seconds[command.words]:.1f} s", flush=True)

    def folder(self) -> Path:
        """A new place with everything that commands read."""
        return processes.fresh(self.source, self.top / f"run{next(self.count)}")

    def judged(self, folder: Path, command: processes.Command, codes: list[int]) -> tuple[str, str]:
        """What came of it."""
        return processes.verdict(folder, command, self.expected[command.words], codes)

    def signalled(self, command: processes.Command, number: int, name: str) -> Outcome:
        """Stopped at a random instant."""
        folder = self.folder()
        delay = float(self.draw.uniform(0.05, 1.0)) * self.seconds[command.words]
        codes = processes.stopped(folder, command, number, delay)
        return f"{name}: {command.name}", *self.judged(folder, command, codes)

    def hooked(self, command: processes.Command, name: str, hook: Callable[[Path], Callable[[], None]]) -> Outcome:
        """With a change in the world of its process."""
        folder = self.folder()
        codes = [command.run(folder, hook(folder))]
        return f"{name}: {command.name}", *self.judged(folder, command, codes)

    def clock(self, command: processes.Command) -> Outcome:
        """Killed, every file's time changed, run again with a wall clock that jumps."""
        folder = self.folder()
        processes.stopped(folder, command, signal.SIGKILL, 0.5 * self.seconds[command.words])
        processes.other_times(folder, self.draw)
        codes = [command.run(folder, processes.Jumping(int(self.draw.integers(2**31))))]
        return f"clock jumps: {command.name}", *self.judged(folder, command, codes)

    def doubled(self, command: processes.Command) -> Outcome:
        """Two at once."""
        folder = self.folder()
        return f"two processes, one folder: {command.name}", *self.judged(
            folder, command, processes.twice(folder, command)
        )

    def lost_worker(self, engine: str, command: processes.Command) -> Outcome:
        """A worker killed in the middle."""
        folder = self.folder()
        codes, hit = getattr(losses, engine)(folder, self.draw)
        found, note = self.judged(folder, command, codes)
        name = {"local": "local pool", "dask": "Dask", "ranks": "torchrun, two ranks"}[engine]
        return f"a worker killed: {name}", found if hit else "missed", note

    def turns(self) -> Iterator[Callable[[], Outcome]]:
        """One fault after the other, for ever."""
        draw = self.draw
        for turn in itertools.count():
            for command in self.commands:
                yield lambda c=command: self.signalled(c, signal.SIGKILL, "kill -9")
            if turn % 3 == 0 and self.engines:
                yield lambda: self.lost_worker("local", losses.GENERATE)
                yield lambda: self.lost_worker("dask", losses.GENERATE)
                yield lambda: self.lost_worker("ranks", losses.TRAIN)
            for command in self.commands:
                yield lambda c=command: self.signalled(c, signal.SIGTERM, "SIGTERM")
                yield lambda c=command: self.hooked(
                    c, "full disk", lambda f: processes.NoSpace(int(10 ** draw.uniform(1, 5)))
                )
                if turn % 3 == 0:
                    yield lambda c=command: self.hooked(c, "read-only folder", lambda f: processes.ReadOnly(f / "out"))
                    yield lambda c=command: self.doubled(c)
                    yield lambda c=command: self.clock(c)


def main() -> None:
    """Inject until the time is up, and write the committed files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--times", type=int, default=1000, help="damages of each kind of file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", default=list(processes.COMMANDS), help="that are disturbed")
    parser.add_argument("--add", action="store_true", help="to the figures of the committed table")
    options = parser.parse_args()
    draw, end = np.random.default_rng(options.seed), time.monotonic() + 60 * options.minutes
    counts: dict[str, Counter[str]] = {}
    notes: list[str] = []
    if options.add:
        for row in json.loads((DOCS / "faults.json").read_text())["rows"]:
            counts[row["fault"]] = Counter({k: row[k] for k in ("recovered", "refused", "lost")})

    def note(outcome: Outcome) -> None:
        fault, found, seen = outcome
        counts.setdefault(fault, Counter())[found] += 1
        if found in ("lost", "missed"):
            notes.append(f"{fault}: {found} {seen}")
            print(notes[-1], flush=True)

    with tempfile.TemporaryDirectory() as top:
        for outcome in damages(Path(top) / "gallery", options.times, draw):
            note(outcome)
        bench = Bench(Path(top), draw, options.commands)
        for turn in bench.turns():
            if time.monotonic() > end:
                break
            note(turn())
            write(counts, notes, options)
    write(counts, notes, options)


def write(counts: dict[str, Counter[str]], notes: list[str], options: argparse.Namespace) -> None:
    """The table so far."""
    rows = [{"fault": f, "times": sum(c.values()) - c["missed"], **{k: c[k] for k in ("recovered", "refused", "lost")}}
            for f, c in sorted(counts.items()) if sum(c.values()) > c["missed"]]  # fmt: skip
    total = {k: sum(int(row[k]) for row in rows) for k in ("times", "recovered", "refused", "lost")}
    lines = [
        "# Faults",
        "",
        f"Made by `python benchmarks/faults.py --minutes {options.minutes:g} --times {options.times}`. Recovered: read "
        "or rerun, the content is that of a run without faults. Refused: one line and an exit code, nothing "
        "half-written, and the command run again without the fault gives that content. Lost: anything else.",
        "",
        "| fault | times | recovered | refused | lost |",
        "|---|---|---|---|---|",
        *(f"| {r['fault']} | {r['times']} | {r['recovered']} | {r['refused']} | {r['lost']} |" for r in rows),
        f"| **all** | {total['times']} | {total['recovered']} | {total['refused']} | **{total['lost']}** |",
        "",
        "A full disk is a limit on the size of files, which makes a write fail in its middle; a read-only folder is "
        "an `open` that refuses to write, because the tests may run as root; the clock is the wall clock of Python and "
        "the times of files.",
        "",
        f"Machine: {platform.machine()}, {platform.system()}, beside other work.",
    ]
    write_json(DOCS / "faults.json", {"rows": rows, "total": total, "notes": notes, "versions": versions()})
    with atomic_path(DOCS / "faults.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
