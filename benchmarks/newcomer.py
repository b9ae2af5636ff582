"""The newcomer's path, timed: a fresh clone, the first report, a file of one's own, the viewer.

    python benchmarks/newcomer.py [--source .] [--keep FOLDER] [--chromium chromium]

Clones the repository (``--source``, a folder or an address), runs ``make demo`` in the clone with nothing installed,
brings a bare array with its geometry through ``data validate``, ``data convert`` and ``reconstruct``, and opens it with
``lungwave view`` in a headless Chromium (``make browser``); Playwright drives it, of the environment that this script
runs in (``pip install '.[dev]'``). What pip has cached on the machine is used, as it would be. Writes
docs/results/newcomer.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from lungwave.repro import atomic_path, versions, write_json
from viewer_pictures import CHROMIUM, WAIT, chromium, settle, viewing

ROOT = Path(__file__).resolve().parents[1]
GEOMETRY = """\
center_frequency = 3.0e6
sampling_frequency = 12.0e6
pitch = 0.25e-3
angles = [-0.13963, 0, 0.13963]
start_times = [-0.35019e-6, 0, -0.35019e-6]
pulse_delay = 0.3333e-6
bandwidth = 1.2
"""
# What stands in for the newcomer's scanner: one noisy frame as a bare array; making it is not timed.
SCANNER = """\
import numpy as np
from lungwave import Simulator, preset
from lungwave.data.generate import received, simulate_case
config = preset("tiny").override({"seed": 11})
simulator = Simulator(config)
np.save("rf.npy", received(simulate_case(config, 0, simulator), config, simulator)[None])
"""


@dataclass(frozen=True)
class Step:
    """One thing that the newcomer does."""

    what: str
    command: str
    seconds: float


def timed(what: str, command: str, folder: Path, environment: dict[str, str]) -> tuple[Step, str]:
    """Run a command line and time it; its output, too."""
    clock = time.perf_counter()
    words = ["bash", "-c", command]
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{command} ended with {done.returncode}\n{done.stdout}{done.stderr}")
    step = Step(what, command, time.perf_counter() - clock)
    print(f"{step.seconds:7.1f} s  {command}", flush=True)
    return step, done.stdout


def look(clone: Path, executable: str) -> list[Step]:
    """Open the newcomer's file in the viewer: until the page answers, and until its result and report are there."""
    with chromium(executable) as browser:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        clock = time.perf_counter()
        with viewing([str(clone / ".venv/bin/lungwave")], clone / "rf.h5") as url:
            page.goto(url)
            page.wait_for_selector(".case")
            opened = time.perf_counter() - clock
            settle(page, "rf.h5")
            painted = time.perf_counter() - clock - opened
    found = [
        Step("the viewer: from the command to its page", "lungwave view rf.h5", opened),
        Step("and to one's own file in it, four panels and a report to download", "", painted),
    ]
    for step in found:
        print(f"{step.seconds:7.1f} s  {step.what}", flush=True)
    return found


def walk(source: str, folder: Path, executable: str) -> tuple[list[Step], dict[str, float]]:
    """Every step, in order; and the seconds that ``make demo`` itself prints."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("VIRTUAL_ENV", "LUNGWAVE", "PYTHONPATH"))}
    steps = []
    step, _ = timed("get it", f"git clone --quiet {shlex.quote(source)} lungwave", folder, environment)
    steps.append(Step(step.what, "git clone ... lungwave", step.seconds))
    clone = folder / "lungwave"
    step, said = timed("first report, from nothing installed", "make demo", clone, environment)
    steps.append(step)
    parts = dict(line.rsplit(": ", 1) for line in said.splitlines() if line.endswith(" s") and ": " in line)
    if not (clone / "lungwave-demo" / "report.html").is_file():
        sys.exit("make demo left no report")
    (clone / "probe.toml").write_text(GEOMETRY, encoding="utf-8")
    subprocess.run([clone / ".venv/bin/python", "-c", SCANNER], cwd=clone, env=environment, check=True)
    for what, command in (
        ("is the file usable?", "lungwave data validate rf.npy --geometry probe.toml"),
        ("make it a file that knows its geometry", "lungwave data convert rf.npy rf.h5 --geometry probe.toml"),
        ("second report, of one's own file", "lungwave reconstruct rf.h5 --out mine"),
    ):
        step, _ = timed(what, f"source .venv/bin/activate && {command}", clone, environment)
        steps.append(Step(what, command, step.seconds))
    if not (clone / "mine" / "report.html").is_file():
        sys.exit("reconstruct left no report")
    steps += look(clone, executable)
    return steps, {name: float(value.removesuffix(" s")) for name, value in parts.items()}


def table(steps: list[Step], parts: dict[str, float], load: tuple[float, float]) -> str:
    """The page."""
    first = sum(step.seconds for step in steps[:2])
    about = ", ".join(f"{name} {number}" for name, number in versions().items())
    rows = [f"| {step.what} | {step.command and f'`{step.command}`'} | {step.seconds:.0f} s |" for step in steps]
    inside = ", ".join(f"{name} {value:.0f} s" for name, value in parts.items())
    return "\n".join([
        "# The newcomer's path",
        "",
        f"Made by `python benchmarks/newcomer.py`; {os.cpu_count()} cores, load {load[0]:.1f} at the start and "
        f"{load[1]:.1f} at the end, {about}.",
        "",
        f"From nothing to the first report: **{first:.0f} s**. From there to a report of one's own file: "
        f"**{sum(step.seconds for step in steps[2:-2]):.0f} s**; to the same file in the viewer: "
        f"**{sum(step.seconds for step in steps[-2:]):.0f} s** more.",
        "",
        "| step | command | time |",
        "|---|---|---|",
        *rows,
        "",
        f"Of `make demo`: {inside}. Installation takes what the connection and pip's cache allow; nothing after it "
        "needs the network.",
        "",
    ])  # fmt: skip


def main() -> None:
    """Walk the path and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default=str(ROOT), help="what to clone")
    parser.add_argument("--chromium", **CHROMIUM)
    parser.add_argument("--keep", type=Path, help="work in this folder, and leave it")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        steps, parts = walk(args.source, folder, args.chromium)
    load = (before, os.getloadavg()[0])
    results = ROOT / "docs" / "results"
    with atomic_path(results / "newcomer.md") as page:
        page.write_text(table(steps, parts, load), encoding="utf-8")
    found = {"steps": [asdict(step) for step in steps], "make demo": parts, "load": load, "versions": versions()}
    write_json(results / "newcomer.json", found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
