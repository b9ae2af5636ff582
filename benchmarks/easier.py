"""Easier problems first, where a recording has several transmit events: what they cost, and what is found.

    python benchmarks/easier.py MODEL [--cases 10] [--samples 2] [--calls 100]

The micro preset with three plane waves, 30 dB, lungs of a seed that no training saw, simulated with everything that the
forward model leaves out. All samples begin with pure noise on the prior and make as many calls of the wave equation;
half of the levels are held against less: low frequencies, these on cells twice as wide, or one event of the three,
another one at each level. Error is the mean absolute difference of the posterior mean of the air field, node by node,
CRPS that of the samples, chi2 the median over lungs. Writes docs/results/easier.{md,json}.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from guided import DOCS, SEED, SNR, interval, opened
from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.receive import echo_rms
from lungwave.data.generate import received, simulate_case
from lungwave.evaluate.scores import crps_fair
from lungwave.phantom.resolved import airspace, resolved
from lungwave.pool import open_pool
from lungwave.posterior.continuation import CoarseGrid, Easier, FewShots, LowBand, coarse_errors
from lungwave.posterior.guided import GUIDED, Heard, lead
from lungwave.posterior.resolved import ResolvedModel
from lungwave.posterior.walls import Wall, wall_errors
from lungwave.progress import Progress
from lungwave.repro import atomic_path, versions, write_json
from lungwave.shipped import RESOLVED, model_folder
from train import machine

ANGLES = [-8.0, 0.0, 8.0]
WAYS = "everything", "low frequencies", "wide cells", "one event of three"


@lru_cache(maxsize=1)
def three_waves(folder: Path) -> tuple[ResolvedModel, dict[str, Easier | None]]:
    """The model, told of another acquisition; what it makes wrong there is learned anew."""
    model = opened(folder)
    model = replace(model, drawn=model.drawn.override({"sequence.angles": ANGLES}))
    model = replace(model, discrepancy=wall_errors(model, quiet=True, known=True))
    ways = None, LowBand(), CoarseGrid(coarse_errors(model, quiet=True)), FewShots(1 / len(ANGLES))
    return model, dict(zip(WAYS, ways, strict=True))


def judged(folder: Path, index: int, samples: int, calls: int) -> list[dict[str, Any]]:
    """Every way on one lung."""
    torch.set_num_threads(1)
    model, ways = three_waves(folder)
    config = model.drawn.override({"seed": SEED, "receive.snr_db": SNR})
    simulator = Simulator(config)
    case = simulate_case(config, index, simulator)
    std = echo_rms(case.rf, simulator.scan, config.receive.echo_start) * 10 ** (-SNR / 20)
    heard = Heard(received(case, config, simulator), Wall.of(case.anatomy, config), std)
    truth, found = airspace(resolved(case.anatomy, config)[0]), []
    for name, first in ways.items():
        clock = time.perf_counter()
        led = lead(model, heard, range(samples), method=GUIDED, name=index, calls=calls, first=first)
        seconds = (time.perf_counter() - clock) / samples
        air = airspace(model.scaling.to_data(led.maps[led.kept]).clamp(0, 1).numpy()[:, 0])
        found.append(
            {
                "case": index, "way": name, "error": float(np.abs(air.mean(0) - truth).mean()),
                "crps": float(np.mean(crps_fair(air[None], truth[None]))), "chi2": float(led.chi2[led.kept].median()),
                "gradients": led.calls["vjp"] / samples, "seconds": seconds,
            }
        )  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", type=int, default=10)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=DOCS / "results")
    options = parser.parse_args()
    folder = model_folder(options.model, RESOLVED).resolve()
    jobs = [(range(c, c + 1), (folder, c, options.samples, options.calls)) for c in range(options.cases)]
    rows: list[dict[str, Any]] = []
    with (
        Progress(len(jobs), "easier") as progress,
        open_pool(options.workers) as pool,
        closing(pool.run(judged, iter(jobs))) as finished,
    ):
        for _, more in finished:
            rows += more
            progress.advance()
    of = {way: sorted((r for r in rows if r["way"] == way), key=lambda r: r["case"]) for way in WAYS}
    scores = {way: {s: np.array([r[s] for r in mine]) for s in mine[0] if s != "way"} for way, mine in of.items()}
    plain, lines, host = scores[WAYS[0]], [], machine()
    for way, figures in scores.items():
        low, high = interval(plain["crps"] - figures["crps"])
        gain = "-" if way == WAYS[0] else f"{(plain['crps'] - figures['crps']).mean():+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(
            f"| {way} | {figures['error'].mean():.3f} | {figures['crps'].mean():.4f} | {gain} | "
            f"{np.median(figures['chi2']):.1f} | {figures['gradients'].mean():.0f} | {figures['seconds'].mean():.1f} | "
            f"{np.median(figures['seconds'] / plain['seconds']):.2f} |"
        )
    text = [
        "# Easier problems first",
        "",
        f"Made by `python benchmarks/easier.py {options.model.name}`: the micro preset with three plane waves,",
        f"{SNR:g} dB, {options.cases} unseen lungs, {options.samples} samples of each from pure noise on the prior.",
        "The noisier half of the levels hears what is named, the other half everything. *Gain*: how much lower",
        f"the CRPS is, 95 % over lungs. {host['cpu']}, one core a lung.",
        "",
        "| first levels hear | error | CRPS | gain | chi2 | gradients | s a sample | ratio |",
        "|---|---|---|---|---|---|---|---|",
        *lines,
    ]
    write_json(options.out / "easier.json", {"rows": rows, "machine": host, "versions": versions()})
    with atomic_path(options.out / "easier.md") as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
    print("\n".join(text), file=sys.stderr)


if __name__ == "__main__":
    main()
