"""The overview picture: one row per case, B-mode, reconstructed map, truth and band chart side by side.

Where there are posteriors, their uncertainty stands beside the map and some samples below.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from lungwave import figures
from lungwave.figures import AERATION, DIM, PALETTE, PLEURA, Corners, TruthKind
from lungwave.posterior.summary import Reconstruction

PLATE = 2.3  # [inch] side of the square that a panel fits into
HEAD, ROW, FOOT = 0.36, PLATE + 1.2, 0.98  # [inch]
SAMPLES, THUMB = 8, 1.5  # posterior samples below a row, their side [inch]


@dataclass(frozen=True)
class _Layout:
    """Places from the left [inch]; ``spread`` is where the uncertainty stands, None where no case has a posterior."""

    width: float
    bmode: float
    map: float
    spread: float | None
    truth: float
    bands: float


PLAIN = _Layout(12.6, 0.62, 3.5, None, 6.38, 9.72)
SAMPLED = _Layout(15.48, 0.62, 3.5, 6.38, 9.26, 12.6)


class _Sheet:
    """A figure whose places are inches from its top left corner."""

    def __init__(self, layout: _Layout, height: float) -> None:
        self.at, self.width, self.height = layout, layout.width, height
        self.figure = Figure(figsize=(self.width, height), facecolor="#ffffff")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(box, facecolor="none")

    def panel(self, left: float, top: float, corners: Corners, plate: float = PLATE) -> Axes:
        """Axes of the true aspect inside a square plate, top left."""
        wide, tall = abs(corners[1] - corners[0]), abs(corners[2] - corners[3])
        scale = plate / max(wide, tall)
        return self.axes(left, top, wide * scale, tall * scale)

    def text(self, left: float, baseline: float, words: str, **style: Any) -> Text:
        return self.figure.text(left / self.width, 1 - baseline / self.height, words, **{"va": "baseline", **style})

    def rule(self, top: float) -> None:
        y = 1 - top / self.height
        self.figure.add_artist(Line2D([0.02, 0.98], [y, y], color=PALETTE["rule"], lw=0.8))


def draw(
    cases: Sequence[Reconstruction], shares: Sequence[Sequence[float | None]], truth_kind: TruthKind = "smooth"
) -> Figure:
    """The figure, to be drawn and saved inside ``figures.style``.

    ``shares`` gives for each case and band the share that the echoes reach, see ``figures.draw_bands``.
    """
    sampled = any(r.posterior is not None and not r.withheld for r in cases)
    heights = [ROW + (_strip_height(r) if sampled else 0.0) for r in cases]
    sheet = _Sheet(SAMPLED if sampled else PLAIN, HEAD + sum(heights) + FOOT)
    known = any(r.truth is not None and not r.withheld for r in cases)
    sigma = "0.5" if truth_kind == "smooth" else "0.15"
    sheet.text(sheet.at.bmode, 0.3, "B-mode, detected pleura", color=PALETTE["muted"])
    sheet.text(sheet.at.map, 0.3, "Reconstructed aeration", color=PALETTE["muted"])
    if sheet.at.spread is not None:
        sheet.text(sheet.at.spread, 0.3, "Uncertainty", color=PALETTE["muted"])
    if known:
        true = f"True aeration (\N{GREEK SMALL LETTER SIGMA} = {sigma} mm)"
        sheet.text(sheet.at.truth, 0.3, true, color=PALETTE["muted"])
    sheet.text(sheet.at.bands, 0.3, "By depth below the pleura", color=PALETTE["muted"])
    image, top = None, HEAD
    for r, share, height in zip(cases, shares, heights, strict=True):
        image = _row(sheet, top, r, list(share), truth_kind) or image
        top += height
    _legend(sheet, image, cases)
    return sheet.figure


def _row(
    sheet: _Sheet, top: float, r: Reconstruction, share: list[float | None], truth_kind: TruthKind
) -> AxesImage | None:
    """One case; returns the image of its map, None where the aeration is withheld."""
    sheet.rule(top + 0.08)
    _heading(sheet, r, top + 0.39)
    top += 0.56
    figures.draw_bmode(sheet.panel(sheet.at.bmode, top, figures.bmode_corners(r)), r)
    if r.withheld or r.aeration is None:
        sheet.text(sheet.at.map, top + 0.2, "Aeration withheld", weight="bold", size=13)
        reason = textwrap.fill(r.withheld or "The method gave no map.", 88)
        sheet.text(sheet.at.map, top + 0.36, reason, va="top", linespacing=1.5)
        return None
    corners = figures.map_corners(r, r.aeration.shape[0])
    image = figures.draw_map(sheet.panel(sheet.at.map, top, corners), r.aeration, r)
    if r.truth is not None:
        truth = figures.truth_map(r.truth, truth_kind)
        axes = sheet.panel(sheet.at.truth, top, corners)
        figures.draw_map(axes, truth, r, mask=False)
        axes.set_ylabel("")
    if sheet.at.spread is not None and r.lower is not None and r.upper is not None:
        axes = sheet.panel(sheet.at.spread, top, corners)
        figures.draw_map(axes, r.upper - r.lower, r, figures.WIDTH, mask=False)
        axes.set_ylabel("")
    if r.posterior is not None:
        _strip(sheet, top + PLATE + 0.7, r)
    if r.bands:
        axes = sheet.axes(sheet.at.bands, top, sheet.width - sheet.at.bands - 0.45, PLATE)
        figures.draw_bands(axes, list(r.bands), share)
    return image


def _strip_height(r: Reconstruction) -> float:
    """Room for the samples of a case [inch]."""
    if r.posterior is None or r.withheld:
        return 0.0
    left, right, bottom, top = figures.map_corners(r, len(r.posterior.mean))
    return 0.42 + THUMB * min(1.0, (bottom - top) / (right - left))


def _strip(sheet: _Sheet, top: float, r: Reconstruction) -> None:
    """Samples of a case, from the left."""
    assert r.posterior is not None
    count = min(SAMPLES, len(r.posterior.samples))
    corners = figures.map_corners(r, len(r.posterior.mean))
    step = (sheet.width - 0.45 - sheet.at.bmode) / SAMPLES
    for k in range(count):
        figures.draw_sample(sheet.panel(sheet.at.bmode + k * step, top + 0.1, corners, THUMB), r, k)
    words = f"{count} of {len(r.posterior.samples)} posterior samples"
    sheet.text(sheet.at.bmode, top, words, color=PALETTE["muted"])


def _heading(sheet: _Sheet, r: Reconstruction, baseline: float) -> None:
    """Name over the B-mode, headline number over the map, true number over the true map."""
    sheet.text(sheet.at.bmode, baseline, textwrap.shorten(r.name, 26, placeholder="…"), weight="bold", size=13)
    if r.withheld or r.whole is None:
        return
    whole = r.whole
    big = {"weight": "bold", "size": 14}
    sheet.text(sheet.at.map, baseline, f"{100 * whole.estimate:.0f} %", color=PALETTE["estimate"], **big)
    detail = f"{100 * whole.lower:.0f}\N{EN DASH}{100 * whole.upper:.0f} % ({100 * r.level:g} % interval)"
    sheet.text(sheet.at.map + 0.72, baseline, detail, color=PALETTE["muted"])
    if whole.truth is not None and np.isfinite(whole.truth):
        sheet.text(sheet.at.truth, baseline, f"{100 * whole.truth:.0f} %", color=PALETTE["truth"], **big)


def _legend(sheet: _Sheet, image: AxesImage | None, cases: Sequence[Reconstruction]) -> None:
    top = sheet.height - FOOT
    sheet.rule(top + 0.08)
    if image is None:
        return
    cax = sheet.axes(sheet.at.map, top + 0.34, PLATE, 0.1)
    figures.colour_bar(sheet.figure, cax, image, AERATION)
    if sheet.at.spread is not None:
        scale = figures.WIDTH
        key = ScalarMappable(Normalize(scale.low, scale.high), scale.colormap())
        figures.colour_bar(sheet.figure, sheet.axes(sheet.at.spread, top + 0.34, PLATE, 0.1), key, scale)
    marks: list[Any] = [
        Line2D([], [], color=PLEURA, lw=1.8, label="detected pleura"),
        Line2D([], [], color=PALETTE["ink"], lw=1.2, ls=(0, (3.0, 1.6)), label="information depth"),
        Patch(facecolor=DIM, edgecolor="#ffffff", hatch="/////", linewidth=0, label="echoes say nothing: prior only"),
        Line2D([], [], color=PALETTE["estimate"], marker="o", ms=6.5, lw=0, label="estimate"),
        Line2D([], [], color=PALETTE["estimate"], lw=6, alpha=0.3, label="interval"),
    ]
    known = any(r.truth is not None for r in cases)
    if known:
        marks.append(Line2D([], [], color=PALETTE["truth"], marker="D", ms=5.5, lw=0, label="truth"))
    if any(r.valid is not None and not r.valid.all() for r in cases):
        marks.append(Patch(facecolor=PALETTE["void"], label="not quantifiable"))
    columns = 3 if known or len(marks) < 6 else 2  # what has long words shares a column
    anchor = ((sheet.at.truth - 0.1) / sheet.width, 1 - (top + 0.24) / sheet.height)
    layout = {"ncols": columns, "frameon": False, "borderaxespad": 0.0, "columnspacing": 1.4}
    sheet.figure.legend(handles=marks, loc="upper left", bbox_to_anchor=anchor, **layout)
    sheet.text(sheet.at.bmode, top + 0.42, "lungwave", weight="bold", size=13)
    sheet.text(sheet.at.bmode, top + 0.62, "Research use only.", color=PALETTE["muted"], size=9.5)
    sheet.text(sheet.at.bmode, top + 0.78, "Not a medical device.", color=PALETTE["muted"], size=9.5)
