"""Figures of methods judged side by side: calibration, estimates beside truths, errors by depth, information."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lungwave.evaluate.calibration import Coverage, Uniformity
from lungwave.evaluate.reconstruction import PIXEL, Judged
from lungwave.figures import PALETTE, style
from lungwave.repro import atomic_path
from lungwave.types import MM

DPI = 150
# Okabe and Ito, safe for colour-blind eyes; the first two are the blue and vermilion of all other figures. Markers and
# dashes repeat what the colour says.
COLOURS = (PALETTE["estimate"], PALETTE["truth"], "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.2, 1.2)), (0, (6, 1.6, 1.2, 1.6)), (0, (3, 1.2)), (0, (8, 2)))
LOOSE = "#8d97a3"  # of what was not learnt from echoes
LEVELS = "viridis"  # of aeration, as in every map


def save_pictures(levels: Sequence[Sequence[Judged]], folder: Path) -> list[Path]:
    """Every picture that the methods have numbers for; PNG."""
    found: list[Path] = []

    def save(figure: Figure, name: str) -> None:
        found.append(folder / name)
        with atomic_path(found[-1]) as temporary:
            figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})

    with style(9.0):
        save(error_figure(levels), "error_by_band.png")
        for judged in levels:
            snr = f"{judged[0].snr_db:g}dB"
            if any(j.low is not None for j in judged):
                save(estimate_figure([j for j in judged if j.low is not None]), f"estimates_{snr}.png")
            if any(j.coverage for j in judged):
                save(calibration_figure(judged), f"calibration_{snr}.png")
            if any(j.information for j in judged):
                save(information_figure([j for j in judged if j.information]), f"information_{snr}.png")
    return found


def error_figure(levels: Sequence[Sequence[Judged]]) -> Figure:
    """Mean absolute error of percent aeration by depth band, one panel for each noise level; 95 % over cases."""
    outs = levels[0][0].outs
    figure = Figure(figsize=(max(4.6, 3.4 * len(levels)), 3.5), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(levels), sharey=True))
    places = np.arange(len(outs)) + np.r_[np.zeros(len(outs) - 1), 0.4]  # the whole depth stands apart
    for ax, judged in zip(panels, levels, strict=True):
        for k, j in enumerate(judged):
            look = _look(k, j)
            scores = [j.scores[name] for name in outs]
            values = 100 * np.array([[s.value, s.low, s.high] for s in scores])
            at = places + 0.13 * (k - (len(judged) - 1) / 2)
            bars = np.abs(np.nan_to_num(values[:, 1:] - values[:, :1])).T
            line = {"color": look["color"], "ls": look["ls"], "lw": 1.1}
            ax.errorbar(at, values[:, 0], bars, fmt=look["marker"], ms=4, elinewidth=1.1, color=look["color"])
            ax.plot(at[:-1], values[:-1, 0], **line)
            ax.plot([], [], **line, marker=look["marker"], ms=4, label=j.method)
        ax.axvline(places[-1] - 0.7, color=PALETTE["rule"], lw=0.8)
        ax.set_xticks(places, [_shown(name).removesuffix(" mm") for name in outs])
        ax.set(title=f"{judged[0].snr_db:g} dB", xlabel="depth below the pleura, mm", ylim=(0, None))
        _finish(ax, "y")
    panels[0].set_ylabel("mean absolute error, points of aeration")
    figure.legend(*panels[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=4)
    return figure


def estimate_figure(judged: Sequence[Judged]) -> Figure:
    """Percent aeration of the whole depth, estimate with 90 % interval beside truth, one panel for each method."""
    across = len(judged) if len(judged) <= 3 else math.ceil(math.sqrt(len(judged)))
    down = -(-len(judged) // across)
    figure = Figure(figsize=(3.3 * across + 0.3, 3.3 * down + 0.45), layout="constrained")
    panels = np.ravel(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False))
    for ax, j in zip(panels, judged, strict=False):
        assert j.low is not None and j.high is not None
        truth, value = 100 * j.truth[:, -1], 100 * j.estimate[:, -1]
        bars = np.maximum([value - 100 * j.low[:, -1], 100 * j.high[:, -1] - value], 0)
        kinds = np.array(j.categories)
        crowd = float(np.clip(30 / np.sqrt(len(truth)), 1.6, 4.0))  # [point] of a marker
        for k, kind in enumerate(sorted(set(j.categories))):
            rows = kinds == kind
            ax.errorbar(
                truth[rows], value[rows], bars[:, rows], fmt=MARKERS[k % len(MARKERS)], ms=crowd, elinewidth=0.6,
                alpha=0.65, color=COLOURS[k % len(COLOURS)], mew=0, label=kind,
            )  # fmt: skip
        ax.plot([0, 100], [0, 100], color=PALETTE["ink"], lw=0.8)
        error = 100 * j.scores[j.outs[-1]].value
        ax.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
        ax.set_title(f"{j.method}, mean error {error:.1f} points", fontsize=9)
        _finish(ax, "both")
    for ax in panels[len(judged) :]:
        ax.set_axis_off()
    for ax in panels[::across]:
        ax.set_ylabel("estimate and 90 % interval, %")
    for ax in panels[: len(judged)][-across:]:
        ax.set_xlabel(f"true aeration, {_shown(judged[0].outs[-1])}, %")
        ax.tick_params(labelbottom=True)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, frameon=False, loc="outside lower center", ncols=4,
        title=f"{judged[0].snr_db:g} dB", title_fontsize=9,
    )  # fmt: skip
    return figure


def calibration_figure(judged: Sequence[Judged]) -> Figure:
    """Coverage against its nominal level, and ECDFs of ranks and of TARP minus the diagonal with their 95 % bands."""
    figure = Figure(figsize=(9.2, 6.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.25, 1))
    outs = judged[0].outs
    drawn = [(k, j) for k, j in enumerate(judged) if j.samples]
    upper, lower = figure.add_subfigure(grid[0]), figure.add_subfigure(grid[1])
    panels = upper.subplots(1, 3)
    for ax, name in zip(panels, (outs[-1], PIXEL), strict=False):
        draw_coverage(
            ax, [(_look(k, j), j.method, j.coverage[name]) for k, j in enumerate(judged) if name in j.coverage]
        )
        ax.set_title(f"coverage, {_shown(name)}")
    panels[0].set_ylabel("truths inside the interval, %")
    draw_ecdf(panels[2], [(_look(k, j), j.tarp.curve) for k, j in drawn if j.tarp is not None])
    panels[2].set(title="TARP", xlabel="credibility", ylabel="ECDF minus uniform")
    if not drawn:
        panels[2].set_axis_off()
    if drawn:
        small = lower.subplots(1, len(outs), sharey=True)
        for ax, name in zip(small, outs, strict=True):
            draw_ecdf(ax, [(_look(k, j), j.uniformity[name]) for k, j in drawn if name in j.uniformity])
            ax.set_title(f"ranks, {_shown(name)}", fontsize=9)
        small[0].set_ylabel("ECDF minus uniform")
        lower.supxlabel("rank of the truth among the samples, as a fraction", fontsize=9, color=PALETTE["muted"])
    handles, labels = panels[0].get_legend_handles_labels()
    handles.append(mpl.patches.Patch(color=PALETTE["rule"]))
    labels.append(f"95 % of calibrated methods; {judged[0].snr_db:g} dB")
    figure.legend(handles, labels, frameon=False, loc="outside lower center", ncols=4)
    return figure


def information_figure(judged: Sequence[Judged]) -> Figure:
    """Standard deviation of the posterior over the prior's by depth and true aeration, beside what physics says."""
    figure = Figure(figsize=(max(4.6, 3.6 * len(judged)), 5.0), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, len(judged), sharex=True, sharey=True))
    depth = judged[0].information[0].depth
    bottom = depth[-1] + depth[0]  # rows begin at the pleura
    wide = float(np.clip(1.05 * max(known.spread.max() for j in judged for known in j.information), 1.2, 2.0))
    for ax, j in zip(panels, judged, strict=True):
        for known, dash, marker in zip(j.information, cycle(DASHES), cycle(MARKERS), strict=False):
            colour = mpl.colormaps[LEVELS](0.92 * known.aeration)
            lungs = f"{known.cases} lung{'s' if known.cases > 1 else ''}"
            label = f"{100 * known.aeration:.0f} % air, {lungs}; physics {known.reach / MM:.1f} mm"
            ax.plot(
                known.spread, known.depth / MM, color=colour, ls=dash, lw=1.8, marker=marker, ms=4,
                markevery=max(1, len(known.depth) // 8), label=label,
            )  # fmt: skip
            if known.reach < bottom:
                ax.axhline(known.reach / MM, color=colour, ls=dash, lw=0.9)
                ax.plot(0.985 * wide, known.reach / MM, "<", color=colour, ms=6)
        ax.axvline(1.0, color=PALETTE["muted"], lw=0.8)
        ax.set(xlim=(0, wide), ylim=(bottom / MM, 0))
        ax.set_title(j.method, fontsize=9)
        ax.set_xlabel("posterior / prior standard deviation")
        ax.legend(frameon=False, fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.16))
        _finish(ax, "both")
    panels[0].set_ylabel("depth below the pleura, mm")
    figure.supxlabel(
        f"{judged[0].snr_db:g} dB. Thin lines: depth down to which\na change of a uniform lung changes its RF by "
        "\N{MINUS SIGN}20 dB.",
        fontsize=7.5, color=PALETTE["muted"],
    )  # fmt: skip
    return figure


# --- parts ------------------------------------------------------------------------------------------------------------


def _shown(name: str) -> str:
    """A name of a band as it is printed."""
    return name.replace("-", "\N{EN DASH}")


def _look(number: int, judged: Judged | None = None) -> dict[str, Any]:
    """Colour, marker and dash of a method, the same in every figure."""
    if judged is not None and judged.low is None:
        return {"color": LOOSE, "marker": "x", "ls": (0, (1, 1.5))}
    k = number % len(COLOURS)
    return {"color": COLOURS[k], "marker": MARKERS[k], "ls": DASHES[k]}


def draw_coverage(ax: Axes, shown: Sequence[tuple[dict[str, Any], str, tuple[Coverage, ...]]]) -> None:
    """Measured against nominal coverage, in percent, of (look, label, levels); intervals over cases."""
    ax.plot([40, 100], [40, 100], color=PALETTE["ink"], lw=0.8)
    for place, (look, label, found) in enumerate(shown):
        values = 100 * np.array([[c.inside.value, c.inside.low, c.inside.high] for c in found])
        at = 100 * np.array([c.level for c in found]) + 0.4 * (place - (len(shown) - 1) / 2)
        bars = np.abs(np.nan_to_num(values[:, 1:] - values[:, :1])).T
        ax.errorbar(at, values[:, 0], bars, fmt=look["marker"], ms=4, elinewidth=1.1, color=look["color"])
        ax.plot(at, values[:, 0], color=look["color"], ls=look["ls"], lw=1.1, label=label)
    low = min([40.0, *(100 * c.inside.low for *_, found in shown for c in found if np.isfinite(c.inside.low))])
    ax.set(xlim=(45, 100), ylim=(max(low - 3, 0), 102), xlabel="nominal, %")
    ax.set_xticks([50, 80, 90, 95], ["50", "80", "90", "95"])
    _finish(ax, "both")


def draw_ecdf(ax: Axes, tests: Sequence[tuple[dict[str, Any], Uniformity]]) -> None:
    """ECDF minus the diagonal of (look, test), with the band that all calibrated methods keep with 95 %."""
    for place, (look, test) in enumerate(tests):
        if place == 0:
            ax.fill_between(
                np.r_[0, test.at, 1], np.r_[0, test.low - test.at, 0], np.r_[0, test.high - test.at, 0],
                color=PALETTE["rule"], linewidth=0,
            )  # fmt: skip
        ax.plot(np.r_[0, test.at, 1], np.r_[0, test.ecdf - test.at, 0], color=look["color"], ls=look["ls"], lw=1.4)
    ax.axhline(0, color=PALETTE["muted"], lw=0.8)
    ax.set(xlim=(0, 1))
    ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    _finish(ax, "y")


def single_figure(
    covered: Mapping[str, tuple[Coverage, ...]], tests: Mapping[str, Uniformity], tarp: Uniformity
) -> Figure:
    """Coverage, ranks and TARP of one method by name of the quantity."""
    with style(9.0):
        figure = Figure(figsize=(9.2, 3.4), layout="constrained")
        first, second, third = figure.subplots(1, 3)
        draw_coverage(first, [(_look(k), name, found) for k, (name, found) in enumerate(covered.items())])
        first.set(title="coverage", ylabel="truths inside the interval, %")
        draw_ecdf(second, [(_look(k + 1), test) for k, test in enumerate(tests.values())])
        second.set(title="ranks", xlabel="rank of the truth, as a fraction", ylabel="ECDF minus uniform")
        draw_ecdf(third, [(_look(0), tarp)])
        third.set(title="TARP", xlabel="credibility")
        if covered:
            first.legend(frameon=False, fontsize=7.5)
        figure.supxlabel("Grey: 95 % of calibrated posteriors", fontsize=7.5, color=PALETTE["muted"])
    return figure


def _finish(ax: Axes, grid: Any) -> None:
    ax.grid(axis=grid, color=PALETTE["rule"], lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
