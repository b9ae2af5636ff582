"""What lungwave adds around the propagator, and how fast cases are made.

    python benchmarks/generate.py            # stages of one case, then 1000 tiny cases on all cores
    python benchmarks/generate.py --cases 0  # the stages only

Writes docs/results/generate.{md,json}. Run on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from lungwave.acoustics import forward
from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording
from lungwave.config import preset
from lungwave.data.generate import Case, case_table, generate, plan
from lungwave.data.hdf5 import write_recording
from lungwave.phantom.aeration import truth, truth_spacing
from lungwave.phantom.anatomy import draw, rasterise
from lungwave.repro import atomic_path, manifest, write_json

DOCS = Path(__file__).resolve().parents[1] / "docs" / "results"


def timed(call: Callable[[], object]) -> tuple[float, object]:
    """Seconds of one call, and what it gave."""
    start = time.perf_counter()
    value = call()
    return time.perf_counter() - start, value


def stages(name: str, cases: int) -> dict[str, float]:
    """Median seconds a case of every stage on one thread; the propagator's share is timed inside the simulator."""
    config = preset(name)
    inside = [0.0]
    original = forward.propagate

    def clocked(*arguments: object) -> object:
        start = time.perf_counter()
        out = original(*arguments)  # type: ignore[arg-type]
        inside[0] += time.perf_counter() - start
        return out

    forward.propagate = clocked  # type: ignore[assignment]
    try:
        simulator = Simulator(config)
        rows: list[dict[str, float]] = []
        made = []
        for index in range(cases + 1):
            inside[0] = 0.0
            t_draw, anatomy = timed(lambda i=index: draw(config, i))
            t_raster, medium = timed(
                lambda a=anatomy: rasterise(a, config.grid.spacing, config.grid.depth, simulator.medium_width)
            )
            t_truth, known = timed(lambda a=anatomy: truth(a, config.map, truth_spacing(config)))
            with torch.no_grad():
                t_rf, rf = timed(lambda m=medium: simulator.channels(m)[0].numpy())
            made.append(Case(index, anatomy, known, rf))
            rows.append(
                {
                    "draw": t_draw,
                    "rasterise": t_raster,
                    "truth": t_truth,
                    "propagator": inside[0],
                    "pulse, receive chain": t_rf - inside[0],
                }
            )
    finally:
        forward.propagate = original
    with tempfile.TemporaryDirectory() as folder:
        frames = np.stack([case.rf for case in made])
        t_write, _ = timed(
            lambda: write_recording(Path(folder) / "a.h5", Recording(frames, simulator.scan), cases=case_table(made))
        )
    median = {key: float(np.median([row[key] for row in rows[1:]])) for key in rows[0]}  # the first case warms up
    return {**median, "file": t_write / len(made)}


def main() -> None:
    """Run and write the committed files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000, help="tiny cases to generate")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, object] = {}
    lines = [
        "# Generating cases",
        "",
        "Made by `python benchmarks/generate.py`; one thread, median of 20 cases, milliseconds.",
        "",
    ]
    table = {name: stages(name, 20) for name in ("micro", "tiny")}
    keys = list(next(iter(table.values())))
    lines += ["| preset | " + " | ".join(keys) + " | around the propagator |", "|---|" + "---|" * (len(keys) + 1)]
    for name, row in table.items():
        added = sum(v for k, v in row.items() if k != "propagator") / row["propagator"]
        results[name] = {**row, "overhead": added}
        lines.append(f"| {name} | " + " | ".join(f"{1e3 * row[k]:.1f}" for k in keys) + f" | {added:.1%} |")
    if options.cases:
        with tempfile.TemporaryDirectory() as folder:
            planned = plan(preset("tiny"), range(options.cases), Path(folder), workers=options.workers)
            made = generate(preset("tiny"), range(options.cases), Path(folder) / "cases", options.workers, quiet=False)
        results["generate"] = {
            "cases": options.cases,
            "workers": options.workers,
            "seconds": made["seconds"],
            "bytes": made["bytes"],
            "planned_seconds": planned["seconds"],
            "planned_bytes": planned["bytes"],
        }
        lines += [
            "",
            f"{options.cases} tiny cases (3 transmits each) with {options.workers} workers: "
            f"**{made['seconds']:.0f} s**, {made['bytes'] / options.cases / 1e3:.0f} kB a case. "
            f"`--dry-run` said {planned['seconds']:.0f} s and {planned['bytes'] / options.cases / 1e3:.0f} kB a case.",
        ]
    lines += ["", f"Machine: {platform.machine()}, {os.cpu_count()} cores, {platform.system()}."]
    config = preset("tiny")
    write_json(
        DOCS / "generate.json",
        {**results, **manifest(config.to_json(), config.seed, command="python benchmarks/generate.py")},
    )
    with atomic_path(DOCS / "generate.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
