"""Seconds and peak memory of the evaluation's commands at the size of the report.

    python benchmarks/evaluate.py [--samples 1000] [--train 4500] [--held-out 1000] [--size 256] [--threads 2]

Writes maps as OpenAI's scripts do (8-bit NPZ) into a temporary folder and runs every command as a user would, in a
process of its own. The maps are smooth random fields with a fine texture; what they show does not matter here. Writes
docs/results/evaluate_speed.md and .json.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter

from lungwave.repro import atomic_path, stream, versions, write_json

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (
    "evaluate generative samples.npz --reference held_out.npz --train train.npz --out generative",
    "evaluate memorisation samples.npz --train train.npz --held-out held_out.npz --out copies",
    "evaluate memorisation samples.npz --train train.npz --held-out held_out.npz --shifts 0 --out unmoved",
    "evaluate calibration posteriors.npz --out calibration",
)
CASES, MEMBERS, ENTRIES = 1000, 39, 1024  # of the posteriors


def maps(count: int, size: int, index: int) -> np.ndarray:
    """Smooth fields of different mean under a fine texture, 8 bits."""
    generator = stream(0, "evaluation maps", index)
    found = np.empty((count, size, size, 1), np.uint8)
    for k in range(count):
        coarse = gaussian_filter(generator.standard_normal((size // 4, size // 4)), 3)
        broad = np.kron(coarse / coarse.std(), np.ones((4, 4)))
        fine = gaussian_filter(generator.standard_normal((size, size)), 1)
        level = generator.uniform(-1, 1)
        found[k, ..., 0] = 255 * (0.5 + 0.4 * np.tanh(0.6 * broad + 0.3 * fine / fine.std() + level))
    return found


def measured(words: str, folder: Path, threads: int) -> dict[str, Any]:
    """Wall clock and peak resident memory of one command."""
    environment = {**os.environ, **{f"{name}_NUM_THREADS": str(threads) for name in ("OMP", "OPENBLAS", "MKL")}}
    clock = time.perf_counter()
    child = subprocess.Popen(
        [sys.executable, "-m", "lungwave", *shlex.split(words), "--quiet"], cwd=folder, env=environment
    )
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"lungwave {words} failed with status {os.waitstatus_to_exitcode(status)}")
    child.returncode = 0
    return {"command": f"lungwave {words}", "seconds": time.perf_counter() - clock, "peak_gb": usage.ru_maxrss / 2**20}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--train", type=int, default=4500)
    parser.add_argument("--held-out", type=int, default=1000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for index, (label, count) in enumerate(
            (("samples", args.samples), ("train", args.train), ("held_out", args.held_out))
        ):
            np.savez(folder / f"{label}.npz", arr_0=maps(count, args.size, index))
        generator = stream(0, "posteriors")
        truth = generator.standard_normal((CASES, ENTRIES))
        samples = truth[:, None] + generator.standard_normal((CASES, MEMBERS, ENTRIES))
        np.savez(folder / "posteriors.npz", truth=truth, samples=samples)
        for words in COMMANDS:
            rows.append(measured(words, folder, args.threads))
            print(f"{rows[-1]['seconds']:7.1f} s {rows[-1]['peak_gb']:5.1f} GB  {words}", file=sys.stderr)
    command = shlex.join(["python", "benchmarks/evaluate.py", *sys.argv[1:]])
    lines = [
        "# What an evaluation costs",
        "",
        f"Made by `{command}`: {args.samples} samples, {args.train} training and {args.held_out} held-out maps of "
        f"{args.size} x {args.size} pixels; posteriors of {CASES} cases, {MEMBERS} samples, {ENTRIES} entries. Wall "
        f"clock and peak resident memory of each command, everything included. {args.threads} threads, "
        f"{platform.processor() or platform.machine()}.",
        "",
        "| command | seconds | peak memory, GB |",
        "|---|---|---|",
        *(f"| `{row['command']}` | {row['seconds']:.0f} | {row['peak_gb']:.1f} |" for row in rows),
    ]
    base = ROOT / "docs/results/evaluate_speed"
    with atomic_path(base.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(base.with_suffix(".json"), {"command": command, "rows": rows, "versions": versions()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
