"""Engines beside each other: one process, the local pool and Dask with two workers; training on one and two ranks.

    python benchmarks/scale.py

Rounds are taken in turns, and ratios are of one round, because other work may run on the machine. Writes
docs/results/scale.{md,json}.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from lungwave.repro import atomic_path, versions, write_json
from train import machine

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results"
ENGINES = {
    "serial": "--workers 1",
    "pool, 2 workers": "--workers 2",
    "Dask, 2 workers": "--workers 2 --scheduler local",
}


def bytes_of(folder: Path) -> str:
    """Hash of all shards."""
    found = hashlib.sha256()
    for path in sorted(folder.glob("cases_*.h5")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def generated(words: str, preset: str, cases: int, out: Path) -> dict[str, object]:
    """Time of a whole command, of its work alone, and the bytes."""
    command = f"generate --preset {preset} --seed 4 --cases 0:{cases} --shard-size 4 --json --quiet {words} --out {out}"
    clock = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "lungwave", *command.split()], capture_output=True, text=True, check=True
    )
    return {
        "command_s": time.perf_counter() - clock,
        "work_s": json.loads(done.stdout)["seconds"],
        "bytes": bytes_of(out),
    }


def trained(ranks: int, top: Path, images: int) -> float:
    """Images a second of a training after its first steps."""
    out = top / f"ranks{ranks}-{time.monotonic_ns()}"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        str(ranks),
        "--master-port",
        str(port),
        "-m",
        "lungwave",
    ]
    words = f"train {top / 'maps.npz'} --out {out} --images {images} --batch 32 --channels 32 --mult 1 2 2 --blocks 1 "
    words += f"--heads 2 --samples 0 --log-images 64 --check-images {10 * images} --snapshot-images 0 --quiet"
    subprocess.run([sys.executable, *launch, *words.split()], check=True, capture_output=True)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return float(np.median([line["images_per_second"] for line in lines if line["kind"] == "step"][1:]))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--cases", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=640)
    options = parser.parse_args()
    os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")
    host = machine()
    rounds: list[dict[str, dict[str, object]]] = []
    rates: list[dict[int, float]] = []
    with tempfile.TemporaryDirectory() as name:
        top = Path(name)
        for n in range(options.rounds):
            rounds.append(
                {
                    e: generated(w, options.preset, options.cases, top / re.sub(r"\W", "", e) / str(n))
                    for e, w in ENGINES.items()
                }
            )
            print(json.dumps(rounds[-1]), flush=True)
        maps = "maps --preset tiny --seed 4 --cases 0:120 --workers 1 --quiet --out"
        subprocess.run([sys.executable, "-m", "lungwave", *maps.split(), str(top / "maps.npz")], check=True)
        for _ in range(options.rounds):
            rates.append({ranks: trained(ranks, top, options.images) for ranks in (1, 2)})
            print(json.dumps(rates[-1]), flush=True)
    same = len({str(r[e]["bytes"]) for r in rounds for e in ENGINES}) == 1
    lines = [
        "# Engines beside each other",
        "",
        f"Made by `python benchmarks/scale.py --preset {options.preset} --cases {options.cases} --rounds "
        f"{options.rounds} --images "
        f"{options.images}`: {options.cases} cases in shards of 4; medians of rounds taken in turns, one thread a "
        f"worker. {host['cpu']}, {host['cores']} cores, {host['system']}; load {host['load_at_start']} at the start.",
        "",
        "| engine | work, s | command with start, s | cases an hour | against serial |",
        "|---|---|---|---|---|",
    ]
    rows = {}
    for engine in ENGINES:
        work, whole = (float(np.median([float(str(r[engine][k])) for r in rounds])) for k in ("work_s", "command_s"))
        ratio = float(np.median([float(str(r["serial"]["work_s"])) / float(str(r[engine]["work_s"])) for r in rounds]))
        rows[engine] = {"work_s": work, "command_s": whole, "ratio": ratio}
        lines.append(f"| {engine} | {work:.1f} | {whole:.1f} | {3600 * options.cases / work:.0f} | {ratio:.2f} |")
    ratio = float(np.median([r[2] / r[1] for r in rates]))
    one, two = (float(np.median([r[k] for r in rates])) for k in (1, 2))
    lines += [
        "",
        f"Bytes of all shards: **{'the same' if same else 'DIFFERENT'}** on every engine and in every round.",
        "",
        f"Training of a 64 x 64 prior under `torchrun`, one thread a rank: {one:.1f} images/s on one rank, {two:.1f} "
        f"on two, ratio **{ratio:.2f}**.",
    ]
    about = {"rounds": rounds, "training": rates, "rows": rows, "same_bytes": same, "ddp_ratio": ratio, "machine": host}
    write_json(DOCS / "scale.json", {**about, "versions": versions()})
    with atomic_path(DOCS / "scale.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
