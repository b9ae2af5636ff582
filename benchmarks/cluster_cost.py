"""What a set of the paper preset costs, from the speeds that were measured here.

    python benchmarks/cluster_cost.py
    python benchmarks/cluster_cost.py --cases 100000 --gpu-bandwidth 3.35e12 --gpu-flops 990e12

Nothing is run: cells, steps and events come from the preset, the solver's speed from docs/results/wave_speed.json, what
lies around it from generate.json, the network's from train_speed.json. No GPU was at hand: its figures are a roofline
(the propagator moves memory, so its speed is bandwidth over bytes an update, times the share of that ceiling which the
CPU reached) and are to be read as such. Writes docs/results/cluster_cost.{md,json}.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from lungwave.config import preset
from lungwave.data.generate import planned_bytes
from lungwave.models.unet import UNetConfig, describe
from lungwave.prior.build import fitted
from lungwave.repro import atomic_path, write_json

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results"
SHARE = 0.3  # of a GPU's peak that training reaches; an assumption, usual for U-Nets in bfloat16
PASSES = 6  # operations of a training image per multiply-accumulate of the forward pass: 2 forward, 4 backward


def main() -> None:
    """Compute and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=12_000)
    parser.add_argument("--images", type=int, default=2_000_000, help="training images")
    parser.add_argument("--cores", type=int, default=64, help="of a node")
    parser.add_argument("--gpu-bandwidth", type=float, default=2.0e12, help="[byte/s] data sheet of an 80 GB A100")
    parser.add_argument("--gpu-flops", type=float, default=312e12, help="[1/s] bfloat16, the same data sheet")
    options = parser.parse_args()
    wave, made, learnt = (
        json.loads((DOCS / f"{name}.json").read_text()) for name in ("wave_speed", "generate", "train_speed")
    )
    config = preset("paper")
    event, events = wave["paper_event"], config.sequence.events
    updates = event["updates_per_second"] * event["seconds"]  # of one event
    ceiling = wave["ceiling"][f"paper, {event['threads']}"]
    reached = event["updates_per_second"] / ceiling["updates_per_second"]
    around = 1 + made["tiny"]["overhead"]
    core_seconds = event["seconds"] * event["threads"] * events * around
    size = planned_bytes(config, options.cases, -(-options.cases // 50), noise=False)
    per_update = ceiling["bandwidth"] / ceiling["updates_per_second"]
    gpu_seconds = updates * events / (options.gpu_bandwidth / per_update * reached)
    maps = (config.map.rows, config.map.columns)
    network = describe(fitted(UNetConfig(channels=64, channel_mult=(1, 2, 2), blocks=1, heads=4), maps, None), maps)
    cpu = next(case for case in learnt["cases"] if case["case"] == "readme-256")["rows"][1]
    rate = cpu["images_per_second"] * cpu["gmac"] / network["gmac"]
    gpu_rate = SHARE * options.gpu_flops / (PASSES * network["gmac"] * 1e9)
    rows = {
        "cell updates a case": f"{updates * events:.3g}",
        "core-hours a case, measured speed": f"{core_seconds / 3600:.2f}",
        "cases an hour, one core": f"{3600 / core_seconds:.1f}",
        f"cases an hour, a node of {options.cores} cores": f"{3600 / core_seconds * options.cores:.0f}",
        f"core-hours, {options.cases:,} cases": f"{options.cases * core_seconds / 3600:,.0f}",
        "bytes a case": f"{size / options.cases / 1e6:.1f} MB",
        f"bytes, {options.cases:,} cases": f"{size / 1e9:.0f} GB",
        "GPU-seconds a case, roofline": f"{gpu_seconds:.0f}",
        "cases an hour, one GPU, roofline": f"{3600 / gpu_seconds:.0f}",
        f"GPU-hours, {options.cases:,} cases, roofline": f"{options.cases * gpu_seconds / 3600:,.0f}",
        f"training, {options.images:,} images, 2 CPU threads, scaled from the measured network": (
            f"{options.images / rate / 3600:,.0f} h"
        ),
        f"training, {options.images:,} images, one GPU, assumed": f"{options.images / gpu_rate / 3600:.1f} GPU-hours",
    }
    assumptions = [
        f"{events} events a case, each {event['seconds']:.1f} s on {event['threads']} threads as measured "
        f"({100 * reached:.0f} % of that machine's memory ceiling); twice the threads are taken for twice the cost",
        f"drawing, receive chain and files add {100 * made['tiny']['overhead']:.0f} %, as measured for the tiny preset",
        "bytes from the formula that `--dry-run` prints; shards of 50, RF without noise",
        f"GPU: {options.gpu_bandwidth:.3g} byte/s, {per_update:.0f} byte an update, the CPU's share of the ceiling; "
        "not measured",
        f"training: a U-Net of {network['parameters']:,} parameters on {maps[0]} x {maps[1]} maps, "
        f"{network['gmac']:.2f} GMAC an image, {100 * SHARE:.0f} % of {options.gpu_flops:.3g} operations a second; "
        "reading and beamforming of echoes not counted",
        "a core of a full node is slower than one alone where memory is shared: measure with `--dry-run` on the node",
    ]
    lines = [
        "# What the paper preset costs",
        "",
        "Made by `python benchmarks/cluster_cost.py`; nothing was run for it, see the assumptions.",
        "",
        "| what | figure |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
        "",
        "Assumptions:",
        "",
        *(f"- {text}." for text in assumptions),
    ]
    write_json(DOCS / "cluster_cost.json", {"rows": rows, "assumptions": assumptions})
    with atomic_path(DOCS / "cluster_cost.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
