"""Peak memory of training on cases that stay on disk, from 1,000 to 200,000 of them.

    python benchmarks/memory.py

The cases are tiny (maps of 8 x 8, one transmit) and the shards of 50 are links to one, so that 200,000 fit on any disk;
to the reader every link is a file of its own. Each row is a process of its own that indexes the folder, measures the
maps' scale, and trains a small network on 1,280 images in seeded order (maps), or reads 640 recordings with their truth
(echoes). Writes docs/results/memory.{md,json}.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

from lungwave.config import preset
from lungwave.data.generate import generate
from lungwave.repro import atomic_path, manifest, write_json

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results"
SMALL = preset("micro").override(
    {"grid.steps": 300, "seed": 3, "map.rows": 8, "map.columns": 8, "map.bands": [0, 0.0008]}
)
SHARD = 50
# Not getrusage: it would give the largest that the parent ever was.
PEAK = """
import re, sys, time
from pathlib import Path

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""
MAPS = """
from pathlib import Path
import torch
from lungwave.data.streamed import stream_maps
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import UNet, UNetConfig
from lungwave.training.loop import TrainConfig, Training
from lungwave.training.objective import Denoising
from lungwave.training.source import MapSource
torch.set_num_threads(1)
clock = time.monotonic()
maps = stream_maps(Path(sys.argv[1]), quiet=True)
indexed = time.monotonic() - clock
source = MapSource(maps, Scaling(*maps.statistics()))
net = UNet(UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2))
clock = time.monotonic()
Training(Preconditioned(net), source, Denoising(), TrainConfig(images=1280, batch=32), None).run()
print(len(maps), peak(), indexed, 1280 / (time.monotonic() - clock))
"""
ECHOES = """
from pathlib import Path
import numpy as np
from lungwave.posterior.pairs import Pairs
from lungwave.training.source import rows_of
clock = time.monotonic()
pairs = Pairs.stream(Path(sys.argv[1]), quiet=True)
indexed = time.monotonic() - clock
clock = time.monotonic()
for first in range(0, 640, 32):
    rows = rows_of(np.arange(first, first + 32), len(pairs), 0)
    pairs.rf[rows], pairs.cases.smooth[rows]
print(len(pairs), peak(), indexed, 640 / (time.monotonic() - clock))
"""


def folder_of(count: int, one: Path, place: Path) -> Path:
    """A folder of ``count`` cases whose shards are all the same file."""
    place.mkdir()
    shard = next(one.glob("cases_*.h5"))
    os.link(one / "config.json", place / "config.json")
    for first in range(0, count, SHARD):
        target = place / f"cases_{first:06d}-{first + SHARD - 1:06d}.h5"
        os.link(shard, target)
    return place


def main() -> None:
    """Measure and write the committed files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1000, 20_000, 200_000])
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as top:
        one = Path(top) / "one"
        generate(SMALL, range(SHARD), one, shard_size=SHARD, quiet=True)
        for count in options.counts:
            place = folder_of(count, one, Path(top) / str(count))
            for what, text in (("maps, training", MAPS), ("echoes, reading", ECHOES)):
                words = [sys.executable, "-c", PEAK + text, str(place)]
                done = subprocess.run(words, capture_output=True, text=True, check=True)
                held, peak, indexed, rate = map(float, done.stdout.split())
                assert held == count
                rows.append(
                    {"what": what, "cases": count, "peak_mib": peak / 1024, "index_s": indexed, "rows_per_s": rate}
                )
                print(json.dumps(rows[-1]), flush=True)
    lines = [
        "# Memory of training on cases that stay on disk",
        "",
        "Made by `python benchmarks/memory.py`: peak resident memory of a process that streams; shards of 50 tiny "
        "cases, links to one file. Rates were taken beside other work on the machine.",
        "",
        "| what | cases | peak memory, MiB | against the fewest | index, s | cases read a second |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda r: (r["what"], r["cases"])):
        base = min((r for r in rows if r["what"] == row["what"]), key=lambda r: r["cases"])
        growth = row["peak_mib"] / base["peak_mib"] - 1
        row["growth"] = growth
        lines.append(
            f"| {row['what']} | {row['cases']:,} | {row['peak_mib']:.0f} | {growth:+.1%} | {row['index_s']:.1f} "
            f"| {row['rows_per_s']:.0f} |"
        )
    lines += ["", f"Machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}."]
    write_json(
        DOCS / "memory.json",
        {"rows": rows, **manifest(SMALL.to_json(), SMALL.seed, command="python benchmarks/memory.py")},
    )
    with atomic_path(DOCS / "memory.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
