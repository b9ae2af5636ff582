"""Do the echoes depend on the solver and its grid? lungwave beside an independent solver and beside finer cells.

    python benchmarks/crosscheck.py [--presets micro tiny] [--phantoms 2] [--seed 71]

For lungs of every category, each rasterised anew from its continuous anatomy on every grid (attenuation off):

* same grid: the plain NumPy solver of tests/reference_fdtd.py, which shares no code with lungwave or deepwave and sets
  p = 0 on air, on the same cells; differences are those of two programs;
* half: the same independent solver on cells half as wide; differences are those of program and grid;
* self: lungwave on cells half as wide; differences are those of the grid alone;
* order, cell size, surface of air: lungwave against lungwave on cells a quarter as wide.

The constants that put the surface of air on the grid were chosen on lungs of seed 0; these are lungs of another seed.

Correlation and relative L2 distance of RF channel data, all elements of the middle event, no gain or shift fitted, in
windows of time after the pleural echo begins. Writes docs/results/crosscheck.md and .json, docs/images/crosscheck.png.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from lungwave.acoustics.forward import BACKING_ROWS, Simulator
from lungwave.acoustics.receive import dead_time_window, receive_matrix
from lungwave.config import Config, preset
from lungwave.phantom import anatomy as phantom
from lungwave.phantom.pathology import category_of
from lungwave.repro import atomic_path, versions, write_json
from lungwave.types import UM, US

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))
from reference_fdtd import simulate  # noqa: E402

WINDOWS = {
    "0-1.5 us": (0.0, 1.5),
    "1.5-3 us": (1.5, 3.0),
    "3-6 us": (3.0, 6.0),
    "whole": (0.0, 1e3),
}  # [us] after the pleura
BINS = np.arange(0, 8.01, 0.5)  # [us] of the curves against time
CATEGORIES = ("healthy", "interstitial", "consolidation")
SIZES = (1.0, 0.8, 2 / 3, 0.5, 1 / 3)  # of the preset's cell
FINEST = 0.25


def placed(reach: float, shift: float, slope: float = 1.0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Nodes up to ``reach`` cells outside an airspace are air; density 1 + 2 (slope s + shift) s cells outside."""
    depth = np.arange(-reach, 0.25, 0.1)
    return tuple(depth), tuple(np.maximum(1 + 2 * (shift - slope * (depth + 0.05)), 0.6))


# How the surface of air is put on the grid: depth thresholds [cells] and densities of air nodes, None = as shipped.
SURFACES: dict[str, tuple[tuple[float, ...], tuple[float, ...]] | None] = {
    "as shipped": None,
    "mask, not dilated": ((0.0,), (1.0,)),
    "mask, dilated by 0.25 cell": ((-0.25,), (1.0,)),
    "mask, dilated by 0.5 cell": ((-0.5,), (1.0,)),
    "placed by density, 0.3 cell, shift 0": placed(0.3, 0.0),
    "placed by density, 0.4 cell, shift 0.1": placed(0.4, 0.1),
    "placed by density, 0.5 cell, shift 0.1": placed(0.5, 0.1),
    # The line that puts a plane wall where it is at order 8 (tests/laws/test_interfaces.py measures the position).
    "placed by density, 0.4 cell, fitted": placed(0.4, 0.12, 1.15),
}
GOAL = 0.99


@dataclass(frozen=True)
class Lung:
    """One anatomy and when its pleura answers."""

    index: int
    category: str
    anatomy: phantom.Anatomy
    pleura: float  # [s] start of the pleural echo at the middle event


def on_cells(config: Config, scale: float, order: int = 8) -> Config:
    """The preset on cells ``scale`` as wide, over the same time, lossless."""
    grid = config.grid
    steps = int(np.ceil(grid.steps / scale - 1e-9))
    return config.override(
        {
            "grid.spacing": grid.spacing * scale,
            "grid.steps": steps,
            "grid.time_step": grid.steps * grid.time_step / steps,
            "grid.order": order,
            "grid.attenuation": False,
            "grid.gradient_stride": 1,
        }
    )


def middle_event(config: Config) -> int:
    return len(Simulator(config).scan.delays) // 2


def lungs(config: Config, count: int) -> list[Lung]:
    """The first ``count`` cases of each category."""
    found: list[Lung] = []
    scan = Simulator(config).scan
    shift = float(scan.delays[middle_event(config)].mean())
    for category in CATEGORIES:
        indices = (i for i in range(1000) if category_of(config, i) == category)
        for index, _ in zip(indices, range(count), strict=False):
            anatomy = phantom.draw(config, index)
            across = np.linspace(-0.4, 0.4, 81) * config.grid.width
            depth = float(np.median(anatomy.wall.surface(across)))
            found.append(Lung(index, category, anatomy, 2 * depth / scan.sound_speed + shift))
    return found


@contextmanager
def surface(name: str) -> Iterator[None]:
    """Rasterise air as ``SURFACES[name]`` says."""
    names = [n for n in ("AIR_DEPTH", "AIR_DENSITY", "AIR_REACH") if hasattr(phantom, n)]
    default = {n: getattr(phantom, n) for n in names}
    chosen = SURFACES[name]
    if chosen is not None:
        phantom.AIR_DEPTH, phantom.AIR_DENSITY = chosen
        if "AIR_REACH" in names:
            phantom.AIR_REACH = -chosen[0][0]
    try:
        yield
    finally:
        for n, value in default.items():
            setattr(phantom, n, value)


def lungwave_rf(config: Config, lung: Lung, scale: float = 1.0, order: int = 8, air: str = "as shipped") -> np.ndarray:
    """RF (time, el) of the middle event."""
    config = on_cells(config, scale, order)
    simulator = Simulator(config)
    with surface(air):
        medium = phantom.rasterise(lung.anatomy, config.grid.spacing, config.grid.depth, simulator.medium_width)
    with torch.no_grad():
        return simulator.channels(medium, events=[middle_event(config)])[0, 0].numpy()


def independent_rf(config: Config, lung: Lung, scale: float, order: int) -> np.ndarray:
    """RF (time, el) of the middle event from the reference solver."""
    return independent_event(on_cells(config, scale), lung.anatomy, middle_event(config), order)


def independent_event(config: Config, anatomy: phantom.Anatomy, event: int, order: int = 8) -> np.ndarray:
    """RF (time, el) of one event from the reference solver: geometry and pulse written out here once more."""
    grid, probe, spacing = config.grid, config.probe, config.grid.spacing
    medium = phantom.rasterise(anatomy, spacing, grid.depth, grid.width)
    ratio = (1 + probe.face_reflection) / (1 - probe.face_reflection)  # of the impedance behind the elements
    top = BACKING_ROWS if probe.face_reflection else 0
    density = np.vstack([np.tile(ratio * medium.density[:1], (top, 1)), medium.density])
    speed = np.vstack([np.tile(medium.sound_speed[:1], (top, 1)), medium.sound_speed])
    if top:  # the elements' row lies on the face: half of its volume is probe
        mixed, softened = (1 + ratio) / 2, 2 * ratio / (1 + ratio)  # of density and stiffness
        density[top] *= mixed
        speed[top] *= np.sqrt(softened / mixed)
    air = np.vstack([np.zeros((top, medium.air.shape[1]), bool), medium.air > 0.5])

    columns = medium.air.shape[1]
    centre = (np.arange(probe.elements) - (probe.elements - 1) / 2) * probe.pitch
    edges = (np.arange(columns + 1) - columns / 2) * spacing
    overlap = np.minimum(centre[:, None] + probe.width / 2, edges[1:]) - np.maximum(
        centre[:, None] - probe.width / 2, edges[:-1]
    )
    share = np.clip(overlap, 0, None) / spacing  # (el, column)
    heard = np.flatnonzero(share.sum(0))
    cells = np.stack([np.full_like(heard, top), heard], 1)
    angle = np.deg2rad(config.sequence.angles[event])
    delay = np.sin(angle) * centre / 1540.0
    when = (np.arange(grid.steps) + 0.5) * grid.time_step - (delay - delay.min())[:, None]
    length = probe.cycles / probe.center_frequency
    burst = np.sin(2 * np.pi * probe.center_frequency * when) * np.sin(np.pi * when / length) ** 2
    burst = np.where((when > 0) & (when < length), burst, 0)
    # A row of cells that emits a volume rate q per unit volume sends p = rho c dx q / 2 either way.
    rate = share[:, heard].T @ burst * (2 / (1540.0 * 1000.0 * spacing)) * spacing**2
    weights = share[:, heard] / share.sum(1, keepdims=True)
    traces = simulate(
        speed, density, air, spacing, grid.time_step, cells, rate, cells, weights,
        order=order, max_frequency=6 * probe.center_frequency,
    )  # fmt: skip
    received = receive_matrix(grid.steps, grid.time_step, probe.center_frequency, config.receive) @ traces
    scan = Simulator(config).scan
    return received * dead_time_window(scan, len(received), config.receive.dead_time)[event]


def agreement(one: np.ndarray, other: np.ndarray, time: np.ndarray, start: float, stop: float) -> tuple[float, float]:
    """Correlation and relative L2 distance over samples within [start, stop) [us]."""
    inside = (time >= start * US) & (time < stop * US)
    a, b = one[inside], other[inside]
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum())), float(
        np.sqrt(((a - b) ** 2).sum() / (b**2).sum())
    )


def compare(one: np.ndarray, other: np.ndarray, time: np.ndarray) -> dict[str, Any]:
    table = {name: agreement(one, other, time, *window) for name, window in WINDOWS.items()}
    last = time[-1] / US
    curve = [agreement(one, other, time, a, b) for a, b in pairwise(BINS) if b <= last]
    return {
        "correlation": {k: v[0] for k, v in table.items()},
        "distance": {k: v[1] for k, v in table.items()},
        "curve": curve,
    }


def study(config: Config, lung: Lung) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Every comparison for one lung; also the traces that the picture shows."""
    base = lungwave_rf(config, lung)
    half = lungwave_rf(config, lung, 0.5)
    finest = lungwave_rf(config, lung, FINEST)
    time_axis = np.arange(len(base)) / config.receive.sampling_frequency - lung.pleura
    traces = {
        "lungwave": base,
        "independent, same grid": independent_rf(config, lung, 1.0, 8),
        "independent, half": independent_rf(config, lung, 0.5, 8),
        "lungwave, half": half,
    }
    pairs = {
        "same grid": (base, traces["independent, same grid"]),
        "half": (base, traces["independent, half"]),
        "self": (base, half),
        "half, both programs": (half, traces["independent, half"]),
        "half to quarter": (half, finest),
    }
    pairs |= {
        f"order {order}": (lungwave_rf(config, lung, order=order) if order != 8 else base, finest)
        for order in (4, 6, 8)
    }
    pairs |= {f"cell {scale:.3f}": (lungwave_rf(config, lung, scale), finest) for scale in SIZES}
    pairs |= {name: (lungwave_rf(config, lung, air=name), finest) for name in SURFACES}
    result = {name: compare(one, other, time_axis) for name, (one, other) in pairs.items()}
    return {"index": lung.index, "category": lung.category, "pairs": result}, {"time": time_axis, **traces}


# --- writing --------------------------------------------------------------------------------------------------------


def mean_over(
    studies: list[dict], pair: str, window: str, category: str | None = None, quantity: str = "correlation"
) -> float:
    values = [s["pairs"][pair][quantity][window] for s in studies if category in (None, s["category"])]
    return float(np.mean(values))


def worst(studies: list[dict], pair: str, window: str) -> float:
    return min(s["pairs"][pair]["correlation"][window] for s in studies)


def curves(studies: list[dict], pair: str) -> np.ndarray:
    """Mean correlation and relative distance per bin, (bin, 2)."""
    length = min(len(s["pairs"][pair]["curve"]) for s in studies)
    return np.mean([s["pairs"][pair]["curve"][:length] for s in studies], 0)


def conclusions(name: str, config: Config, studies: list[dict]) -> dict[str, Any]:
    """Order, cell and late-time rule that follow from the tables, by stated rules."""
    first = "0-1.5 us"
    orders = {order: mean_over(studies, f"order {order}", first) for order in (4, 6, 8)}
    cells = {scale: worst(studies, f"cell {scale:.3f}", first) for scale in SIZES}
    good = [scale for scale, value in cells.items() if value >= GOAL]
    curve = curves(studies, "self")
    centre = (BINS[: len(curve)] + BINS[1 : len(curve) + 1]) / 2
    slope, offset = np.polyfit(centre, curve[:, 1], 1)
    surfaces = {name: np.mean([mean_over(studies, name, w) for w in list(WINDOWS)[:2]]) for name in SURFACES}
    return {
        "order": max(orders, key=lambda o: orders[o]),
        "orders": orders,
        "cell_for_goal_um": max(good) * config.grid.spacing / UM if good else None,
        "worst_first_by_cell_um": {f"{scale * config.grid.spacing / UM:.1f}": v for scale, v in cells.items()},
        "surface": max(surfaces, key=lambda name: surfaces[name]),
        "discrepancy_offset": float(offset),
        "discrepancy_per_us": float(slope),
    }


def table(studies: list[dict], pairs: dict[str, str], rows: list[tuple[str, list[dict]]]) -> list[str]:
    lines = ["| | " + " | ".join(f"{label}: " + ", ".join(WINDOWS) for label in pairs.values()) + " |"]
    lines.append("|---|" + "---|" * len(pairs))
    for label, chosen in rows:
        cells = [" / ".join(f"{mean_over(chosen, pair, window):.3f}" for window in WINDOWS) for pair in pairs]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def markdown(result: dict[str, Any]) -> str:
    lines = [
        "# Independent check of the echoes",
        "",
        f"`{result['command']}`",
        "",
        *__doc__.split(" Writes docs")[0].splitlines()[4:],
        "",
    ]
    lines += [", ".join(f"{k} {v}" for k, v in result["versions"].items()) + f"; {result['seconds']:.0f} s.", ""]
    lines += ["![Traces and correlation against time](../images/crosscheck.png)", ""]
    for name, part in result["presets"].items():
        studies, found = part["lungs"], part["conclusions"]
        rows = [(c, [s for s in studies if s["category"] == c]) for c in CATEGORIES] + [("all", studies)]
        cell = part["spacing"] / UM
        lines += [f"## {name}: {cell:g} um, order 8, {len(studies)} lungs", ""]
        lines += ["Mean correlation.", ""]
        lines += table(
            studies,
            {"same grid": "independent, same grid", "half": "independent, half the cell", "self": "lungwave, half"},
            rows,
        )
        lines += ["", "Relative L2 distance, mean over all lungs: "]
        for pair, label in (
            ("same grid", "independent, same grid"),
            ("half", "independent, half"),
            ("self", "lungwave, half"),
        ):
            values = ", ".join(f"{w} {mean_over(studies, pair, w, quantity='distance'):.3f}" for w in WINDOWS)
            lines.append(f"{label}: {values}. ")
        lines += ["", "The two programs on the same fine cells (half): "]
        lines.append(" / ".join(f"{mean_over(studies, 'half, both programs', w):.4f}" for w in WINDOWS) + ".")
        lines += ["", "Against lungwave on a quarter of the cell:", ""]
        lines += ["| | " + " | ".join(WINDOWS) + " | worst lung, 0-1.5 us |", "|---|" + "---|" * (len(WINDOWS) + 1)]
        named = {f"order {o}": f"order {o}, {cell:g} um" for o in (4, 6, 8)}
        named |= {f"cell {s:.3f}": f"order 8, {s * cell:.1f} um" for s in SIZES}
        named |= {name: f"air: {name}" for name in SURFACES}
        for pair, label in named.items():
            values = " | ".join(f"{mean_over(studies, pair, w):.3f}" for w in WINDOWS)
            lines.append(f"| {label} | {values} | {worst(studies, pair, '0-1.5 us'):.3f} |")
        self_first = worst(studies, "self", "0-1.5 us")
        reached = "reached" if self_first >= GOAL else "not reached"
        lines += [
            "",
            f"**What follows.** Goal {GOAL} in the first 1.5 us against half the cell: {reached} "
            f"(worst lung {self_first:.3f}, ",
        ]
        lines.append(f"mean {mean_over(studies, 'self', '0-1.5 us'):.3f}). ")
        cell_goal = found["cell_for_goal_um"]
        lines.append(
            f"Best order {found['order']}; best surface of air: {found['surface']}. "
            + (
                f"Every lung reaches it against a quarter from {cell_goal:.1f} um on. "
                if cell_goal
                else "No cell of the series reaches it for every lung. "
            )
            + f"The grid's error grows with time after the pleura as {found['discrepancy_offset']:.2f} + "
            f"{found['discrepancy_per_us']:.3f} per us of the local echo (RMS): a likelihood on another grid than the "
            "data's "
            "adds this to its noise, which weights a sample at time t by 1 / (1 + (r(t) s(t) / sigma)^2), s the local "
            "echo's RMS. "
            "On one grid for data and reconstruction no weight is needed."
        )
        lines.append("")
    return "\n".join(lines) + "\n"


def picture(shown: dict[str, dict[str, dict[str, np.ndarray]]], result: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(len(shown), 4, figsize=(15, 3.2 * len(shown)), squeeze=False, layout="constrained")
    style = {
        "independent, half": {"color": "0.7", "lw": 3.0},
        "lungwave, half": {"color": "tab:blue", "lw": 1.2},
        "lungwave": {"color": "tab:red", "lw": 1.2},
        "independent, same grid": {"color": "k", "lw": 0.8, "ls": ":"},
    }
    for row, (name, lungs_shown) in zip(axes, shown.items(), strict=True):
        for axis, (category, traces) in zip(row[:3], lungs_shown.items(), strict=True):
            element = traces["lungwave"].shape[1] // 2
            time_us = traces["time"] / US
            inside = (time_us > -0.5) & (time_us < 6)
            for label, look in style.items():
                axis.plot(time_us[inside], 1e3 * traces[label][inside, element], label=label, **look)
            axis.set(
                title=f"{name}, {category}", xlabel="time after the pleura [us]", ylabel="received [mPa per Pa sent]"
            )
        row[0].legend(fontsize=7)
        studies = result["presets"][name]["lungs"]
        for category, color in zip(CATEGORIES, ("tab:green", "tab:orange", "tab:purple"), strict=True):
            chosen = [s for s in studies if s["category"] == category]
            for pair, line in (("same grid", ":"), ("half", "-")):
                curve = curves(chosen, pair)
                centre = (BINS[: len(curve)] + BINS[1 : len(curve) + 1]) / 2
                label = category if pair == "half" else None
                row[3].plot(centre, curve[:, 0], line, color=color, label=label)
        row[3].axhline(GOAL, color="0.8", lw=0.8)
        row[3].set(
            title="correlation with independent solver\n(dotted: same grid, solid: half)",
            xlabel="time after the pleura [us]", ylim=(min(0.0, row[3].get_ylim()[0]), 1.02),
        )  # fmt: skip
        row[3].legend(fontsize=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["micro", "tiny"], choices=["micro", "tiny"])
    parser.add_argument("--phantoms", type=int, default=2, help="lungs per category")
    parser.add_argument("--seed", type=int, default=71, help="of the lungs; the surface of air was tuned on seed 0")
    parser.add_argument("--out", type=Path, default=ROOT / "docs")
    options = parser.parse_args()
    start = time.perf_counter()
    result: dict[str, Any] = {"versions": versions(), "presets": {}}
    shown: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for name in options.presets:
        config = preset(name).override({"seed": options.seed})
        studies, shown[name] = [], {}
        for lung in lungs(config, options.phantoms):
            found, traces = study(config, lung)
            studies.append(found)
            shown[name].setdefault(lung.category, traces)
            first = {pair: round(v["correlation"]["0-1.5 us"], 3) for pair, v in found["pairs"].items()}
            print(name, lung.index, lung.category, first, file=sys.stderr, flush=True)
        result["presets"][name] = {
            "spacing": config.grid.spacing,
            "lungs": studies,
            "conclusions": conclusions(name, config, studies),
        }
    result["seconds"] = time.perf_counter() - start
    result["command"] = (
        f"python benchmarks/crosscheck.py --presets {' '.join(options.presets)} "
        f"--phantoms {options.phantoms} --seed {options.seed}"
    )
    write_json(options.out / "results/crosscheck.json", result)
    with atomic_path(options.out / "results/crosscheck.md") as path:
        path.write_text(markdown(result), encoding="utf-8")
    picture(shown, result, options.out / "images/crosscheck.png")
    print(markdown(result))


if __name__ == "__main__":
    main()
