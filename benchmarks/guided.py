"""Lungs led by the wave equation: every method on the same unseen lungs, side by side.

    python benchmarks/guided.py MODEL [--cases 50] [--samples 19] [--methods amortized refined:3 hybrid:25 ...]

Lungs of a seed that no training saw are simulated with losses, scatter and a wider absorbing layer than the model's,
and get 30 dB of noise of known size. A method is a name and the calls of each sample: gradients of the wave equation,
propagations for ``refined``. Above the information depth of the learned posterior are scored

error     mean absolute difference of the posterior mean of the air field, node by node
CRPS      of the air field, fair for the number of samples
inside    share of the macroscopic map inside its 90 % intervals (19 samples or more)

and, of all that is shown, percent aeration; chi2 is the median over samples. Every case is written into
docs/results/guided_cases.csv as it is done: rerun to go on. Writes docs/results/guided.{md,json} and
docs/images/guided.png.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.receive import echo_rms
from lungwave.data.generate import received, simulate_case
from lungwave.evaluate.scores import crps_fair
from lungwave.phantom.resolved import airspace, resolved, shown_config
from lungwave.pool import open_pool
from lungwave.posterior.guided import AMORTIZED, GUIDED, HYBRID, REFINED, Heard, Wall, lead, macroscopic
from lungwave.posterior.information import information_map, informed_depth
from lungwave.posterior.resolved import ResolvedModel, load_resolved
from lungwave.progress import Progress
from lungwave.repro import atomic_path, versions, write_json
from lungwave.shipped import RESOLVED, model_folder
from train import machine

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SEED, SNR = 77, 30.0
METHODS = (
    "amortized", "refined:1", "refined:3", "hybrid:25", "hybrid:50", "hybrid:100", "guided:250", "dps:250",
    "diffpir:250", "red_diff:250", "lbfgs_tv:250",
)  # fmt: skip
POINTS = ("red_diff", "lbfgs_tv")  # that give one answer: a few samples say as much as many
SCORES = ("error", "crps", "inside", "aeration", "chi2", "forward", "vjp", "seconds")
BOOTSTRAPS = 4000


@lru_cache(maxsize=1)
def opened(folder: Path) -> ResolvedModel:
    return load_resolved(folder)


def settings(name: str, calls: int) -> dict[str, Any]:
    """What a baseline is told beside its calls."""
    if name in (AMORTIZED, HYBRID, GUIDED, REFINED):
        return {"calls": calls}
    return {"iterations": calls} if name == "lbfgs_tv" else {"levels": calls}


def judged(folder: Path, index: int, methods: Sequence[str], samples: int) -> list[dict[str, Any]]:
    """Scores of some methods on one lung."""
    torch.set_num_threads(1)
    model = opened(folder)
    config = model.drawn.override({"seed": SEED, "receive.snr_db": SNR})
    shown, simulator = shown_config(config), Simulator(config)
    case = simulate_case(config, index, simulator)
    std = echo_rms(case.rf, model.scan, config.receive.echo_start) * 10 ** (-SNR / 20)
    heard = Heard(received(case, config, simulator), Wall.of(case.anatomy, config), std)
    truth = airspace(resolved(case.anatomy, config)[0])
    known = macroscopic(resolved(case.anatomy, config)[:1], shown)
    learned = lead(model, heard, range(max(samples, 19)), method=AMORTIZED)
    depth = float(np.median(informed(model, learned.maps, shown)))
    rows = max(1, round(depth / config.grid.spacing))
    found = []
    for method in methods:
        name, _, calls = method.partition(":")
        count = min(samples, 4) if name in POINTS else samples
        clock = time.perf_counter()
        led = lead(model, heard, range(count), method=name, name=index, **settings(name, int(calls or 0)))
        seconds = time.perf_counter() - clock
        values = model.scaling.to_data(led.maps[led.kept]).clamp(0, 1).numpy()
        air = airspace(values[:, 0])
        maps, bands = macroscopic(values[:, 0], shown)
        low, high = np.quantile(maps, (0.05, 0.95), axis=0, method="weibull")
        inside = (known[0][0] >= low - 1e-9) & (known[0][0] <= high + 1e-9)
        n = len(air)
        found.append(
            {
                "case": index, "category": case.anatomy.category, "method": method, "samples": n,
                "depth_mm": 1e3 * depth,
                "error": float(np.abs(air.mean(0) - truth)[:rows].mean()),
                "crps": float(np.mean(crps_fair(air[None, :, :rows], truth[None, :rows]))) if n > 1 else
                float(np.abs(air[0] - truth)[:rows].mean()),
                "inside": float(inside[: max(1, rows)].mean()) if n >= 19 else float("nan"),
                "aeration": float(abs(bands[:, -1].mean() - known[1][0, -1])),
                "chi2": float(led.chi2[led.kept].median()),
                "forward": led.calls["forward"] / n, "vjp": led.calls["vjp"] / n, "seconds": seconds / n,
                "lost": int((~led.kept).sum()),
            }
        )  # fmt: skip
    return found


def informed(model: ResolvedModel, maps: torch.Tensor, shown: Any) -> np.ndarray:
    """Information depth of every column [m]."""
    values = model.scaling.to_data(maps).clamp(0, 1).numpy()
    smooth, _ = macroscopic(values[:, 0], shown)
    return informed_depth(information_map(smooth.std(0, ddof=1), model.prior_std), shown.map.pixel)


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % of the mean over cases."""
    draw = np.random.default_rng(0).integers(len(values), size=(BOOTSTRAPS, len(values)))
    low, high = np.quantile(values[draw].mean(1), (0.025, 0.975))
    return float(low), float(high)


def table(rows: list[dict[str, str]], methods: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Lines of the table, and the figures."""
    kept = {m: {int(r["case"]): r for r in rows if r["method"] == m} for m in methods}
    lines, found = [], {}
    for method, cases in kept.items():
        if not cases:
            continue
        figures = {s: np.array([float(r[s]) for r in cases.values()]) for s in SCORES}
        base = kept.get(AMORTIZED, {})
        both = [c for c in cases if c in base]
        better = np.array([float(base[c]["crps"]) - float(cases[c]["crps"]) for c in both])
        low, high = interval(better) if len(better) else (np.nan, np.nan)
        means = {s: float(np.nanmean(v)) if np.isfinite(v).any() else None for s, v in figures.items()}
        means["chi2"] = float(np.median(figures["chi2"]))
        found[method] = {**means, "cases": len(cases), "crps_gain": [float(better.mean()), low, high]}
        held = "-" if means["inside"] is None else f"{means['inside']:.2f}"
        gain = "-" if method == AMORTIZED else f"{better.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(
            f"| {method} | {len(cases)} | {means['error']:.3f} | {means['crps']:.4f} | {gain} | {held} | "
            f"{means['aeration']:.3f} | {means['chi2']:.2f} | {means['forward']:.0f} | {means['vjp']:.0f} | "
            f"{means['seconds']:.1f} |"
        )
    return lines, found


def picture(found: dict[str, Any], path: Path) -> None:
    """CRPS and misfit over seconds."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for method, f in found.items():
        for ax, score in zip(panels, ("crps", "chi2"), strict=True):
            ax.plot(max(f["seconds"], 1e-2), f[score], "o", ms=5)
            at = (max(f["seconds"], 1e-2), f[score])
            ax.annotate(method, at, fontsize=7, xytext=(4, 3), textcoords="offset points")
    for ax, label in zip(panels, ("CRPS of the air field (lower is better)", "chi2 (1 = explained)"), strict=True):
        ax.set(xscale="log", xlabel="seconds a sample, one core", ylabel=label)
        ax.spines[["top", "right"]].set_visible(False)
    panels[1].set_yscale("log")
    panels[1].axhline(1, color="0.5", lw=0.8, ls="--")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--samples", type=int, default=19)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=DOCS / "results")
    options = parser.parse_args()
    folder, journal = model_folder(options.model, RESOLVED).resolve(), options.out / "guided_cases.csv"
    done = {(int(r["case"]), r["method"]) for r in read(journal)}
    todo = [(c, [m for m in options.methods if (c, m) not in done]) for c in range(options.cases)]
    jobs = [(range(c, c + 1), (folder, c, methods, options.samples)) for c, methods in todo if methods]
    with (
        Progress(options.cases, "guided", done=options.cases - len(jobs)) as progress,
        open_pool(options.workers) as pool,
        closing(pool.run(judged, iter(jobs))) as finished,
    ):
        for _, rows in finished:
            new = not journal.exists()
            with journal.open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                if new:
                    writer.writeheader()
                writer.writerows(rows)
            progress.advance()
    lines, found = table(read(journal), options.methods)
    host = machine()
    text = [
        "# Lungs led by the wave equation",
        "",
        f"Made by `python benchmarks/guided.py {options.model} --cases {options.cases} --samples {options.samples}`; "
        f"micro preset, {SNR:g} dB, unseen lungs, {options.samples} samples each (4 where a method gives one answer). "
        f"{host['cpu']}, {host['cores']} cores, one a case. *Gain*: how much lower the CRPS is than that of the "
        "learned posterior alone, 95 % over cases. Forward solves, gradients and seconds are for a sample.",
        "",
        "| method:calls | cases | error | CRPS | gain | inside 90 % | aeration | chi2 | forward | gradients | s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *lines,
    ]
    write_json(options.out / "guided.json", {"methods": found, "machine": host, "versions": versions()})
    with atomic_path(options.out / "guided.md") as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
    images = DOCS / "images" if options.out == DOCS / "results" else options.out
    picture(found, images / "guided.png")
    print("\n".join(text), file=sys.stderr)


if __name__ == "__main__":
    main()
