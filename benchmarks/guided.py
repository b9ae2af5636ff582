"""Lungs led by the wave equation: every method on the same unseen lungs, side by side.

    python benchmarks/guided.py MODEL [--cases 50] [--samples 19] [--methods amortized hybrid:25 ...]
    python benchmarks/guided.py MODEL --cases 200 --methods amortized                     # more ranks
    python benchmarks/guided.py MODEL --cases 20 --methods amortized --settings all       # what if it is not so?
    python benchmarks/guided.py MODEL --samples 4 --methods hybrid:50                     # 40 min on two cores
    python benchmarks/guided.py MODEL --samples 2 --methods dps:100 diffpir:25            # 40 min
    python benchmarks/guided.py MODEL --samples 1 --methods red_diff:100 lbfgs_tv:50      # 20 min

Lungs of a seed that no training saw are simulated with losses, scatter and a wider absorbing layer than the model's,
and get 30 dB of noise of known size. A method is a name and the calls of each sample, gradients of the wave equation;
``hybrid@1`` begins with noise of one standard deviation of the prior, half the levels of ``guided@low`` hear low
frequencies only, those of ``guided@coarse`` on cells twice as wide. Scored above the information depth of the learned
posterior are

error     mean absolute difference of the posterior mean of the air field, node by node
CRPS      of the air field, fair for the number of samples
inside    share of the macroscopic map inside its 90 % intervals, Student's where there are less than 19 samples

and, of all that is shown, percent aeration; chi2 is the median over samples. Ranks are those of the percent aeration of
every band, of the whole, and of one pixel above the information depth. In a ``--settings`` other than the usual one the
method is told what is not so: half or twice the noise, a lung surface 0.1 mm too high, a wall of one average tissue; or
the echoes come from a grid twice as fine, or from the independent solver of tests/reference_fdtd.py. With "wall
estimated" it is told nothing of the wall: an average one above the detected pleura is believed, and what that makes
wrong is part of the noise, by its covariance over other lungs.

Every case is written into docs/results/guided_cases.csv as it is done: rerun to go on. Tables and pictures are made of
all that is there: docs/results/guided.{md,json}, docs/images/guided.png, guided_ranks.png, guided_wrong.png.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.stats import t as student

from lungwave.acoustics.receive import echo_rms
from lungwave.config import Config
from lungwave.data.generate import Case, received
from lungwave.evaluate.calibration import ranks, uniformity
from lungwave.evaluate.scores import crps_fair
from lungwave.led import MISFIT
from lungwave.phantom.resolved import airspace, resolved, shown_config
from lungwave.pool import open_pool
from lungwave.posterior.continuation import CoarseGrid, LowBand, coarse_errors
from lungwave.posterior.discrepancy import Discrepancy
from lungwave.posterior.guided import AMORTIZED, GUIDED, HYBRID, REFINED, Heard, lead, macroscopic
from lungwave.posterior.information import information_map, informed_depth
from lungwave.posterior.lung import LungForward
from lungwave.posterior.resolved import ResolvedModel, load_resolved
from lungwave.posterior.walls import Wall, wall_errors
from lungwave.progress import Progress
from lungwave.repro import atomic_path, stream, versions, write_json
from lungwave.shipped import RESOLVED, model_folder
from lungwave.types import MM
from train import machine
from transfer import by_lungwave, fine, independently, simulator_of

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
SEED, SNR = 77, 30.0
METHODS = (
    "amortized", "hybrid:25", "hybrid:50", "hybrid:100", "guided:250", "guided@low:250", "guided@coarse:250",
    "dps:100", "diffpir:25",
    "red_diff:100", "lbfgs_tv:50",
)  # fmt: skip
POINTS = ("red_diff", "lbfgs_tv")  # that give one answer: a few samples say as much as many
USUAL = "as believed"
ESTIMATED = "wall estimated"
WRONG = ("half the noise", "twice the noise", "surface too high", "average wall", "grid twice as fine",
         "independent solver", ESTIMATED)  # fmt: skip
TOO_HIGH = 0.1 * MM
SCORES = ("error", "crps", "inside", "aeration", "chi2", "forward", "vjp", "seconds")
ENOUGH = 19  # samples whose ranks make 90 % intervals
FEWEST = 50  # ranks that say anything
BOOTSTRAPS = 4000


@lru_cache(maxsize=1)
def opened(folder: Path) -> ResolvedModel:
    return load_resolved(folder)


@lru_cache(maxsize=1)
def coarse_grid(folder: Path) -> CoarseGrid:
    return CoarseGrid(coarse_errors(opened(folder), quiet=True))


def settings(name: str, calls: int, part: str, folder: Path) -> dict[str, Any]:
    """What a method is told: its calls, and what stands behind its @."""
    if name == GUIDED and part:
        return {"calls": calls, "first": {"low": LowBand, "coarse": partial(coarse_grid, folder)}[part]()}
    if name in (AMORTIZED, HYBRID, GUIDED, REFINED):
        return {"calls": calls} | ({"warm": float(part)} if part else {})
    return {"iterations": calls} if name == "lbfgs_tv" else {"levels": calls}


@lru_cache(maxsize=1)
def estimated_walls(folder: Path) -> Discrepancy:
    return wall_errors(opened(folder), quiet=True)


def told(case: Case, config: Config, setting: str, folder: Path) -> Heard:
    """The recording of a lung, and what the methods believe of it."""
    simulator = simulator_of(config)
    louder = {"half the noise": 0.5, "twice the noise": 2.0}.get(setting, 1.0)
    snr = SNR - 20 * np.log10(louder)
    wall = Wall.of(case.anatomy, config)
    if setting == "surface too high":
        wall = replace(wall, surface=wall.surface - TOO_HIGH)
    if setting == "average wall":
        above = np.arange(len(wall.medium.sound_speed))[:, None] * config.grid.spacing < wall.surface
        same = {
            name: np.where(above, getattr(wall.medium, name)[above].mean(), getattr(wall.medium, name))
            for name in ("sound_speed", "density")
        }
        wall = replace(wall, medium=replace(wall.medium, **same))
    std = echo_rms(case.rf, simulator.scan, config.receive.echo_start) * 10 ** (-SNR / 20)
    rf = received(case, config, simulator, snr)
    if setting == ESTIMATED:
        return Heard(rf, Wall.estimated(rf, opened(folder)), std, estimated_walls(folder))
    return Heard(rf, wall, std)


def simulated(config: Config, index: int, setting: str) -> Case:
    """Lung ``index`` with its echoes."""
    if setting == "independent solver":
        return independently(config, index)
    return by_lungwave(config, index, fine(config) if setting == "grid twice as fine" else config)


def judged(folder: Path, index: int, setting: str, methods: Sequence[str], samples: int) -> list[dict[str, Any]]:
    """Scores of some methods on one lung."""
    torch.set_num_threads(1)
    model = opened(folder)
    config = model.drawn.override({"seed": SEED, "receive.snr_db": SNR})
    shown, case = shown_config(config), simulated(config, index, setting)
    heard = told(case, config, setting, folder)
    nodes = resolved(case.anatomy, config)
    truth, known, explained = airspace(nodes[0]), macroscopic(nodes[:1], shown), misfit(model, heard, nodes)
    learned = lead(model, heard, range(max(samples, ENOUGH)), method=AMORTIZED)
    depth = float(np.median(informed(model, learned.maps, shown)))
    rows = max(1, round(depth / config.grid.spacing))
    chance = stream(SEED, "pixel", index)
    pixel = int(chance.integers(rows)), int(chance.integers(known[0].shape[2]))
    found = []
    for method in methods:
        whole, _, calls = method.partition(":")
        name, _, part = whole.partition("@")
        count = min(samples, 4) if name in POINTS else samples
        how = settings(name, int(calls or 0), part, folder)
        clock = time.perf_counter()
        led = lead(model, heard, range(count), method=name, name=index, **how)
        seconds = time.perf_counter() - clock
        values = model.scaling.to_data(led.maps[led.kept]).clamp(0, 1).numpy()
        air = airspace(values[:, 0])
        maps, bands = macroscopic(values[:, 0], shown)
        low, high = believed(maps)
        inside = (known[0][0] >= low - 1e-9) & (known[0][0] <= high + 1e-9)
        n = len(air)
        numbers = np.concatenate([bands, maps[:, *pixel, None]], 1)
        right = np.concatenate([known[1][0], known[0][0][[pixel[0]], pixel[1]]])
        rank = ranks(numbers[None], right[None], seed=index)[0] if n > 1 else np.full(len(right), -1)
        found.append(
            {
                "case": index, "setting": setting, "category": case.anatomy.category, "method": method, "samples": n,
                "depth_mm": 1e3 * depth,
                "error": float(np.abs(air.mean(0) - truth)[:rows].mean()),
                "crps": float(np.mean(crps_fair(air[None, :, :rows], truth[None, :rows]))) if n > 1 else
                float(np.abs(air[0] - truth)[:rows].mean()),
                "inside": float(inside[:rows].mean()),
                "aeration": float(abs(bands[:, -1].mean() - known[1][0, -1])),
                "chi2": float(led.chi2[led.kept].median()), "chi2_truth": explained,
                "forward": led.calls["forward"] / n, "vjp": led.calls["vjp"] / n, "seconds": seconds / n,
                "lost": int((~led.kept).sum()), "ranks": " ".join(map(str, rank.tolist())),
            }
        )  # fmt: skip
    return found


def misfit(model: ResolvedModel, heard: Heard, truth: np.ndarray) -> float:
    """chi2 of what was really there."""
    forward = LungForward(model.config, heard.wall.medium, heard.wall.surface, model.scaling)
    echoes = forward(model.scaling.to_network(torch.from_numpy(truth)[None]).double())
    return float(heard.noise(model).chi2(echoes - torch.from_numpy(heard.rf[None, :, : forward.samples]).double()))


def believed(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """90 % intervals for one more sample: of the ranks, or of a normal distribution where samples are too few."""
    if len(maps) >= ENOUGH:
        low, high = np.quantile(maps, (0.05, 0.95), axis=0, method="weibull")
        return low, high
    if len(maps) == 1:
        return maps[0], maps[0]
    half = student.ppf(0.95, len(maps) - 1) * np.sqrt(1 + 1 / len(maps)) * maps.std(0, ddof=1)
    return maps.mean(0) - half, maps.mean(0) + half


def informed(model: ResolvedModel, maps: torch.Tensor, shown: Config) -> np.ndarray:
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


def reached(rows: list[dict[str, str]]) -> str:
    """How well the truth explains its echoes: median and 5-95 % over lungs."""
    cases = {r["case"]: float(r["chi2_truth"]) for r in rows}
    low, middle, high = np.quantile(list(cases.values()), (0.05, 0.5, 0.95))
    return f"median {middle:.2f}, 5-95 % {low:.2f} to {high:.2f}"


def ordered(rows: list[dict[str, str]]) -> list[str]:
    """Methods that there are, the known ones first."""
    there = {r["method"] for r in rows}
    return [m for m in METHODS if m in there] + sorted(there - set(METHODS))


def table(rows: list[dict[str, str]]) -> tuple[list[str], dict[str, Any]]:
    """Lines of the table, and the figures."""
    kept = {m: {int(r["case"]): r for r in rows if r["method"] == m} for m in ordered(rows)}
    lines, found = [], {}
    for method, cases in kept.items():
        figures = {s: np.array([float(r[s]) for r in cases.values()]) for s in SCORES}
        base = kept.get(AMORTIZED, {})
        both = [c for c in cases if c in base]
        better = np.array([float(base[c]["crps"]) - float(cases[c]["crps"]) for c in both])
        low, high = interval(better) if len(better) else (np.nan, np.nan)
        means = {s: float(np.nanmean(v)) if np.isfinite(v).any() else None for s, v in figures.items()}
        means |= {s: float(np.median(figures[s])) for s in ("chi2", "seconds")}  # others work on the machine at times
        gained = [float(v) for v in (better.mean(), low, high)] if both else None
        samples = max(int(r["samples"]) for r in cases.values())
        found[method] = {**means, "cases": len(cases), "samples": samples, "crps_gain": gained}
        held = "-" if means["inside"] is None else f"{means['inside']:.2f}"
        gain = "-" if method == AMORTIZED or not both else f"{better.mean():+.4f} ({low:+.4f} to {high:+.4f})"
        lines.append(
            f"| {method} | {len(cases)} | {samples} | {means['error']:.3f} | {means['crps']:.4f} | {gain} | {held} | "
            f"{means['aeration']:.3f} | {means['chi2']:.2f} | {means['forward']:.0f} | {means['vjp']:.0f} | "
            f"{means['seconds']:.1f} |"
        )
    return lines, found


def ranked(rows: list[dict[str, str]], names: Sequence[str]) -> tuple[list[str], dict[str, Any]]:
    """Whether ranks are uniform, of methods with enough cases, and the curves."""
    lines, found = [], {}
    for method in ordered(rows):
        mine = [r for r in rows if r["method"] == method and int(r["samples"]) > 1]
        members = max((int(r["samples"]) for r in mine), default=0)
        numbers = np.array([[int(v) for v in r["ranks"].split()] for r in mine if int(r["samples"]) == members])
        if len(numbers) < FEWEST:
            continue
        judged = {name: uniformity(numbers[:, k], members) for k, name in enumerate(names)}
        found[method] = judged
        cells = [f"{'inside' if u.inside else 'outside'} (p {u.p:.2g})" for u in judged.values()]
        lines.append(f"| {method} | {len(numbers)} | {' | '.join(cells)} |")
    return lines, found


def wrong(rows: list[dict[str, str]]) -> tuple[list[str], dict[str, Any]]:
    """What is left of each method, on the same lungs, where what it believes is not so."""
    lines, found = [], {}
    for method in ordered([r for r in rows if r["setting"] != USUAL]):
        shared = {int(r["case"]) for r in rows if r["method"] == method and r["setting"] != USUAL}
        for setting in (USUAL, *WRONG):
            mine = [r for r in rows if (r["method"], r["setting"]) == (method, setting) and int(r["case"]) in shared]
            if not mine:
                continue
            figures = {s: np.array([float(r[s]) for r in mine]) for s in ("crps", "inside", "aeration", "chi2")}
            means = {s: float(np.nanmean(v)) if np.isfinite(v).any() else None for s, v in figures.items()}
            means["chi2"], means["alarm"] = float(np.median(figures["chi2"])), float((figures["chi2"] > MISFIT).mean())
            truths = np.array([float(r["chi2_truth"]) for r in mine])
            means["truth"], means["truth_alarm"] = float(np.median(truths)), float((truths > MISFIT).mean())
            found.setdefault(method, {})[setting] = {**means, "cases": len(mine)}
            held = "-" if means["inside"] is None else f"{means['inside']:.2f}"
            lines.append(
                f"| {method} | {setting} | {len(mine)} | {means['crps']:.4f} | {held} | {means['aeration']:.3f} | "
                f"{means['chi2']:.2f} | {means['alarm']:.0%} | {means['truth']:.2f} | {means['truth_alarm']:.0%} |"
            )
    return lines, found


def picture(found: dict[str, Any], path: Path) -> None:
    """CRPS and misfit over seconds."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for k, (method, f) in enumerate(found.items()):
        for ax, score in zip(panels, ("crps", "chi2"), strict=True):
            ax.plot(max(f["seconds"], 1e-2), f[score], "os^Dv<>"[k % 7], ms=6, label=method)
    for ax, label in zip(panels, ("CRPS of the air field (lower is better)", "chi2 (1 = explained)"), strict=True):
        ax.set(xscale="log", xlabel="seconds a sample, one core", ylabel=label)
        ax.margins(x=0.15)
    panels[0].set_ylim(bottom=0)
    panels[1].set_yscale("log")
    panels[1].axhline(1, color="0.5", lw=0.8, ls="--")
    explained(figure, panels[0], 5)
    saved(figure, path)


def rank_picture(found: dict[str, Any], path: Path) -> None:
    """ECDF of the ranks, less that of uniform ones, in the band that 95 % of uniform ones keep to."""
    names = list(next(iter(found.values())))
    figure, panels = plt.subplots(1, len(names), figsize=(2.5 * len(names), 3.1), layout="constrained", sharey=True)
    for ax, name in zip(panels, names, strict=True):
        for k, (method, judged) in enumerate(found.items()):
            one = judged[name]
            ax.fill_between(one.at, one.low - one.at, one.high - one.at, color="0.5", alpha=0.2 / (1 + k), lw=0)
            ax.plot(one.at, one.ecdf - one.at, lw=1.4, label=f"{method}, {one.cases} lungs")
        ax.axhline(0, color="0.5", lw=0.8)
        ax.set(title=name, xlabel="rank of the truth, as a fraction")
    panels[0].set_ylabel("ECDF less uniform")
    explained(figure, panels[0], 5)
    saved(figure, path)


def wrong_picture(found: dict[str, Any], path: Path) -> None:
    """Misfit and CRPS where what is believed is not so."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True)
    names = [name for name in (USUAL, *WRONG) if any(name in rows for rows in found.values())]
    for k, (method, rows) in enumerate(found.items()):
        place = [names.index(name) + 0.15 * k for name in rows]
        panels[0].plot([row["chi2"] for row in rows.values()], place, "o", color=f"C{k}", label=f"{method}, samples")
        panels[1].plot([row["crps"] for row in rows.values()], place, "o", color=f"C{k}")
        truths = [row["truth"] for row in rows.values()]
        panels[0].plot(truths, place, "x", color="0.3", label="the true map" if k == 0 else None)
    panels[0].set_yticks(np.arange(len(names)), names)
    panels[0].axvline(MISFIT, color="0.5", lw=0.8, ls="--")
    panels[0].set(xscale="log", xlabel=f"chi2; the alarm is raised above {MISFIT:g} (dashed)")
    most = max(row["crps"] for rows in found.values() for row in rows.values())
    panels[1].set(xlabel="CRPS of the air field", xlim=(0, 1.2 * most))
    explained(figure, panels[0], 4)
    panels[0].xaxis.set_major_formatter("{x:g}")
    panels[0].xaxis.set_minor_formatter("")
    panels[0].invert_yaxis()
    saved(figure, path)


def explained(figure: Any, ax: Any, columns: int) -> None:
    """One legend above all panels."""
    figure.legend(*ax.get_legend_handles_labels(), frameon=False, fontsize=8, loc="outside upper center", ncols=columns)


def saved(figure: Any, path: Path) -> None:
    for ax in figure.axes:
        ax.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    plt.close(figure)


def work(options: argparse.Namespace, folder: Path, journal: Path) -> None:
    """Every case that is not in the journal yet."""
    done = {(int(r["case"]), r["setting"], r["method"]) for r in read(journal)}
    asked = (USUAL, *WRONG) if options.settings == ["all"] else options.settings
    todo = [
        (case, setting, [m for m in options.methods if (case, setting, m) not in done])
        for setting in asked
        for case in range(options.cases)
    ]
    jobs = [
        (range(c, c + 1), (folder, c, setting, methods, options.samples)) for c, setting, methods in todo if methods
    ]
    with (
        Progress(len(todo), "guided", done=len(todo) - len(jobs)) as progress,
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", type=int, default=50)
    parser.add_argument("--samples", type=int, default=19)
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--settings", nargs="+", default=[USUAL], metavar="SETTING", help=", ".join(("all", *WRONG)))
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--out", type=Path, default=DOCS / "results")
    options = parser.parse_args()
    folder, journal = model_folder(options.model, RESOLVED).resolve(), options.out / "guided_cases.csv"
    work(options, folder, journal)
    rows = read(journal)
    usual = [r for r in rows if r["setting"] == USUAL]
    edges = [f"{1e3 * edge:g}" for edge in shown_config(opened(folder).drawn).map.bands]
    names = [f"{a}-{b} mm" for a, b in pairwise(edges)] + ["whole", "one pixel"]
    host = machine()
    lines, found = table(usual)
    rank_lines, judgements = ranked(usual, names)
    wrong_lines, changes = wrong(rows)
    text = [
        "# Lungs led by the wave equation",
        "",
        f"Made by `python benchmarks/guided.py {options.model.name}` and its options for more ranks and for beliefs",
        f"that are not so (see its help); micro preset, {SNR:g} dB, unseen lungs. {host['cpu']}, {host['cores']}",
        "cores, one a case.",
        "",
        "*Samples* of each lung; below 19 the intervals are Student's. *Gain*: how much lower the CRPS is than that of",
        "the learned posterior alone on the same lungs, 95 % over cases. Error and CRPS of the air field and",
        "the share inside 90 % intervals are those above the information depth. Forward solves, gradients and seconds",
        "(the median over lungs, beside other work) are for a sample.",
        "",
        "| method:calls | cases | samples | error | CRPS | gain | inside 90 % | aeration | chi2 | forward | gradients "
        "| s |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
        *lines,
        "",
        f"chi2 of the true maps: {reached(usual)}.",
        "",
        "## Ranks",
        "",
        "Whether the rank of the truth among the samples is uniform: inside the simultaneous 95 % band or not, and p.",
        "",
        f"| method:calls | cases | {' | '.join(names)} |",
        "|---" * (len(names) + 2) + "|",
        *rank_lines,
        "",
        "## What if it is not so",
        "",
        f"The same lungs; *alarm* is the share with chi2 above {MISFIT:g}, of the samples, and of the true map.",
        "",
        "| method:calls | what is so | cases | CRPS | inside 90 % | aeration | chi2 | alarm | chi2 of truth | alarm |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *wrong_lines,
    ]
    p_values = {m: {n: {"inside": u.inside, "p": u.p} for n, u in one.items()} for m, one in judgements.items()}
    write_json(
        options.out / "guided.json",
        {"methods": found, "ranks": p_values, "wrong": changes, "machine": host, "versions": versions()},
    )
    with atomic_path(options.out / "guided.md") as temporary:
        temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
    images = DOCS / "images" if options.out == DOCS / "results" else options.out
    picture(found, images / "guided.png")
    if judgements:
        rank_picture(judgements, images / "guided_ranks.png")
    if changes:
        wrong_picture(changes, images / "guided_wrong.png")
    print("\n".join(text), file=sys.stderr)


if __name__ == "__main__":
    main()
