"""Calls and seconds per sample of every sampler beside 4000-step ancestral sampling, at equal or better KID.

    python benchmarks/sample.py MODEL data/maps_test.npz                 # 1000 samples a row, 200 of the 4000-step one
    python benchmarks/sample.py MODEL data/maps_test.npz --rows heun     # only the rows whose name holds a word

Writes docs/results/sample_NAME.{md,json}. All rows use one network and start from the same noise. The 4000-step rows
follow the original report: the noise levels of a linear schedule of 4000 steps, the larger variance, clamped guesses.
Samples are kept in --cache batch by batch: run the same command again to go on. Seconds are for one sample in a batch,
median over batches; measure them on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungwave.evaluate.features import Features, fit_features
from lungwave.evaluate.generative import kid, kid_difference, kid_null
from lungwave.models.checkpoint import WEIGHTS
from lungwave.repro import atomic_path, manifest, stream, write_json
from lungwave.types import LungwaveError, UsageError
from prior import Drawn, Recipe, add_options, real_maps, source

REPORT = "ancestral DDPM, 4000 steps"
STEPS = 4000
FEWER = 100  # times fewer calls than REPORT, the goal
ROWS: dict[str, Recipe] = {
    REPORT: Recipe("ancestral", STEPS, "linear-4000", True, {"large": True}),
    "DDIM, 250 steps": Recipe("ddim", 250, "linear-4000", True),
    "DDIM, 100 steps": Recipe("ddim", 100, "linear-4000", True),
    "DDIM, 50 steps": Recipe("ddim", 50, "linear-4000", True),
    "stochastic EDM, 64 steps": Recipe("edm", 64, options={"churn": 10.0}),  # 40 / 256 a step, as in EDM table 5
    "stochastic EDM, 18 steps": Recipe("edm", 18, options={"churn": 2.8}),
    "Heun, 18 steps": Recipe("heun", 18),
    "Heun, 12 steps": Recipe("heun", 12),
    "Heun, 9 steps": Recipe("heun", 9),
    "DPM-Solver++(2M), 20 steps": Recipe("dpmpp_2m", 20),
    "DPM-Solver++(2M), 15 steps": Recipe("dpmpp_2m", 15),
    "DPM-Solver++(2M), 10 steps": Recipe("dpmpp_2m", 10),
    "DPM-Solver++(3M), 20 steps": Recipe("dpmpp_3m", 20),
    "DPM-Solver++(3M), 15 steps": Recipe("dpmpp_3m", 15),
    "DPM-Solver++(3M), 10 steps": Recipe("dpmpp_3m", 10),
    "UniPC, 15 steps": Recipe("unipc", 15),
    "UniPC, 10 steps": Recipe("unipc", 10),
    "UniPC, 8 steps": Recipe("unipc", 8),
}


def measure(drawn: Drawn, report: Drawn | None, held_out: np.ndarray, features: dict[str, Features]) -> dict[str, Any]:
    """Cost and KID of one row, and its KID minus that of the 4000 steps."""
    found: dict[str, Any] = {"samples": len(drawn.maps), "calls": drawn.calls, "seconds": drawn.seconds, "kid": {}}
    for name, extract in features.items():
        ours, real = extract(drawn.maps), extract(held_out)
        near = kid(ours, real)
        found["kid"][name] = {"value": near.value, "error": near.error}
        if report is not None:
            gap = kid_difference(ours, extract(report.maps), real)
            found["kid"][name]["difference"] = {"value": gap.value, "error": gap.error, "verdict": verdict(gap)}
    return found


def verdict(gap: Any) -> str:
    """Whether a KID is better than, equal to or worse than another: two standard errors of their difference."""
    if abs(gap.value) <= 1.96 * gap.error:
        return "equal"
    return "better" if gap.value < 0 else "worse"


def table(results: dict[str, dict[str, Any]], floor: dict[str, float], about: dict[str, Any]) -> str:
    """The committed Markdown."""
    names = list(floor)
    lines = [
        f"# Samplers of the prior {about['name']}",
        "",
        f"Made by `{about['command']}` on {about['processor']}, {about['threads']} thread(s), batches of "
        f"{about['batch']}; KID to {about['held_out']} held-out maps. One network and the same starting noise in "
        f"every row; noise levels run from {about['sigma_max']:g} to {about['sigma_min']:g} (maps have a standard "
        f"deviation of 0.5) but for the rows clamped like the report's, DDPM and DDIM, which take its linear schedule. "
        f"The goal is at least {FEWER} times fewer calls than the {STEPS} steps of the original report at "
        "equal or better KID; equal means that the difference to that row is below two of its standard errors.",
        "",
        "Chance alone gives two sets of maps of one kind a KID below (95 %): "
        + ", ".join(f"{name} {value:.1e}" for name, value in floor.items())
        + ".",
        "",
        "| sampler | samples | calls | fewer | seconds a sample | "
        + " | ".join(f"KID, {n} | against {STEPS} steps" for n in names)
        + " | goal |",
        "|---|---|---|---|---|" + "---|---|" * len(names) + "---|",
    ]
    for row, found in results.items():
        cells = [row, str(found["samples"]), str(found["calls"])]
        cells += [f"{STEPS / found['calls']:.0f} x", f"{found['seconds']:.3g}"]
        verdicts = []
        for name in names:
            near = found["kid"][name]
            gap = near.get("difference")
            verdicts.append(gap["verdict"] if gap else None)
            cells.append(f"{near['value']:.2e} ± {near['error']:.1e}")
            cells.append(f"{gap['value']:+.1e} ± {gap['error']:.1e}, {gap['verdict']}" if gap else "")
        fewer = found["calls"] * FEWER <= STEPS
        good = None not in verdicts and "worse" not in verdicts
        cells.append("" if row == REPORT or None in verdicts else "met" if fewer and good else "no")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Draw, compare, and write the committed files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="samples a row")
    parser.add_argument(
        "--report-count", type=int, default=200, help=f"samples of the {STEPS}-step row; 0 leaves it out"
    )
    parser.add_argument("--rows", nargs="+", default=[""], help="words; only rows whose name holds one of them")
    add_options(parser)
    options = parser.parse_args()
    if 0 < options.report_count < 64:
        raise UsageError(f"--report-count {options.report_count} says nothing about KID; give at least 64, or 0")
    prior = source(options)
    real = real_maps(options.held_out, prior.model)
    held_out = real.fraction()[stream(0, "shuffle", 1).permutation(len(real)), 0]
    features = {name: fit_features(name, held_out) for name in ("pixels", "wavelet")}
    report = prior.draw(ROWS[REPORT], options.report_count) if options.report_count else None
    results: dict[str, dict[str, Any]] = {}
    for row, recipe in ROWS.items():
        if row == REPORT:
            if report is not None:
                results[row] = measure(report, None, held_out, features)
        elif any(word.lower() in row.lower() for word in options.rows):
            if recipe.schedule == "karras":
                recipe = replace(recipe, sigma_min=options.sigma_min, sigma_max=options.sigma_max)
            results[row] = measure(prior.draw(recipe, options.count), report, held_out, features)
    half = len(held_out) // 2
    floor = {
        name: float(np.quantile(kid_null(f(held_out[:half]), f(held_out[half:])), 0.95)) for name, f in features.items()
    }
    name = options.name or options.model.resolve().name
    about = {
        "name": name,
        "command": f"python benchmarks/sample.py {shlex.join(sys.argv[1:])}",
        "processor": torch.cuda.get_device_name(options.device) if "cuda" in options.device else platform.machine(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "batch": options.batch,
        "sigma_min": options.sigma_min,
        "sigma_max": options.sigma_max,
        "held_out": len(held_out),
    }
    write_json(
        options.docs / "results" / f"sample_{name}.json",
        {
            "results": results,
            "chance": floor,
            **manifest(
                json.dumps({"model": prior.model.config}), options.seed, [options.model / WEIGHTS],
                maps={"held_out": real.digest}, **about,
            ),
        },
    )  # fmt: skip
    text = table(results, floor, about)
    with atomic_path(options.docs / "results" / f"sample_{name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except LungwaveError as error:
        sys.exit(str(error))
