"""The overview picture: one row per case, B-mode, reconstructed map, truth and band chart side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from lungwave import figures
from lungwave.figures import AERATION, DIM, PALETTE, PLEURA, Corners, TruthKind
from lungwave.posterior.summary import Reconstruction

WIDTH = 12.6  # [inch]
PLATE = 2.3  # [inch] side of the square that a panel fits into
LEFT = (0.62, 3.5, 6.38, 9.72)  # [inch] left edge of the axes of each panel
HEAD, ROW, FOOT = 0.36, PLATE + 1.2, 0.98  # [inch]


class _Sheet:
    """A figure whose places are inches from its top left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure(figsize=(WIDTH, height), facecolor="#ffffff")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        return self.figure.add_axes(
            (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height), facecolor="none"
        )

    def panel(self, left: float, top: float, corners: Corners) -> Axes:
        """Axes of the true aspect inside a square plate, top left."""
        wide, tall = abs(corners[1] - corners[0]), abs(corners[2] - corners[3])
        scale = PLATE / max(wide, tall)
        return self.axes(left, top, wide * scale, tall * scale)

    def text(self, left: float, baseline: float, words: str, **style: Any) -> Text:
        return self.figure.text(left / WIDTH, 1 - baseline / self.height, words, **{"va": "baseline", **style})

    def rule(self, top: float) -> None:
        y = 1 - top / self.height
        self.figure.add_artist(Line2D([0.02, 0.98], [y, y], color=PALETTE["rule"], lw=0.8))


def draw(
    cases: Sequence[Reconstruction], shares: Sequence[Sequence[float | None]], truth_kind: TruthKind = "smooth"
) -> Figure:
    """The figure, to be drawn and saved inside ``figures.style``.

    ``shares`` gives for each case and band the share that the echoes reach, see ``figures.draw_bands``.
    """
    sheet = _Sheet(HEAD + ROW * len(cases) + FOOT)
    known = any(r.truth is not None and not r.withheld for r in cases)
    sigma = "0.5" if truth_kind == "smooth" else "0.15"
    true = f"True aeration (\N{GREEK SMALL LETTER SIGMA} = {sigma} mm)" if known else ""
    titles = ("B-mode, detected pleura", "Reconstructed aeration", true, "By depth below the pleura")
    for title, left in zip(titles, LEFT, strict=True):
        sheet.text(left, 0.3, title, color=PALETTE["muted"])
    image = None
    for index, (r, share) in enumerate(zip(cases, shares, strict=True)):
        image = _row(sheet, HEAD + index * ROW, r, list(share), truth_kind) or image
    _legend(sheet, image, cases)
    return sheet.figure


def _row(
    sheet: _Sheet, top: float, r: Reconstruction, share: list[float | None], truth_kind: TruthKind
) -> AxesImage | None:
    """One case; returns the image of its map, None where the aeration is withheld."""
    sheet.rule(top + 0.08)
    _heading(sheet, r, top + 0.39)
    top += 0.56
    figures.draw_bmode(sheet.panel(LEFT[0], top, figures.bmode_corners(r)), r)
    if r.withheld or r.aeration is None:
        sheet.text(LEFT[1], top + 0.2, "Aeration withheld", weight="bold", size=13)
        reason = textwrap.fill(r.withheld or "The method gave no map.", 88)
        sheet.text(LEFT[1], top + 0.36, reason, va="top", linespacing=1.5)
        return None
    corners = figures.map_corners(r, r.aeration.shape[0])
    image = figures.draw_map(sheet.panel(LEFT[1], top, corners), r.aeration, r)
    if r.truth is not None:
        truth = figures.truth_map(r.truth, truth_kind)
        axes = sheet.panel(LEFT[2], top, corners)
        figures.draw_map(axes, truth, r, mask=False)
        axes.set_ylabel("")
    if r.bands:
        figures.draw_bands(sheet.axes(LEFT[3], top, WIDTH - LEFT[3] - 0.45, PLATE), list(r.bands), share)
    return image


def _heading(sheet: _Sheet, r: Reconstruction, baseline: float) -> None:
    """Name over the B-mode, headline number over the map, true number over the true map."""
    sheet.text(LEFT[0], baseline, textwrap.shorten(r.name, 26, placeholder="…"), weight="bold", size=13)
    if r.withheld or r.whole is None:
        return
    whole = r.whole
    sheet.text(LEFT[1], baseline, f"{100 * whole.estimate:.0f} %", weight="bold", size=14, color=PALETTE["estimate"])
    detail = f"{100 * whole.lower:.0f}\N{EN DASH}{100 * whole.upper:.0f} % ({100 * r.level:g} % interval)"
    sheet.text(LEFT[1] + 0.72, baseline, detail, color=PALETTE["muted"])
    if whole.truth is not None and np.isfinite(whole.truth):
        sheet.text(LEFT[2], baseline, f"{100 * whole.truth:.0f} %", weight="bold", size=14, color=PALETTE["truth"])


def _legend(sheet: _Sheet, image: AxesImage | None, cases: Sequence[Reconstruction]) -> None:
    top = sheet.height - FOOT
    sheet.rule(top + 0.08)
    if image is None:
        return
    cax = sheet.axes(LEFT[1], top + 0.34, PLATE, 0.1)
    figures.colour_bar(sheet.figure, cax, image, AERATION)
    marks: list[Any] = [
        Line2D([], [], color=PLEURA, lw=1.8, label="detected pleura"),
        Line2D([], [], color=PALETTE["ink"], lw=1.2, ls=(0, (3.0, 1.6)), label="information depth"),
        Patch(facecolor=DIM, edgecolor="#ffffff", hatch="/////", linewidth=0, label="echoes say nothing: prior only"),
        Line2D([], [], color=PALETTE["estimate"], marker="o", ms=6.5, lw=0, label="estimate"),
        Line2D([], [], color=PALETTE["estimate"], lw=6, alpha=0.3, label="interval"),
    ]
    if any(r.truth is not None for r in cases):
        marks.append(Line2D([], [], color=PALETTE["truth"], marker="D", ms=5.5, lw=0, label="truth"))
    if any(r.valid is not None and not r.valid.all() for r in cases):
        marks.append(Patch(facecolor=PALETTE["void"], label="not quantifiable"))
    anchor = ((LEFT[2] - 0.1) / WIDTH, 1 - (top + 0.24) / sheet.height)
    layout = {"ncols": 3, "frameon": False, "borderaxespad": 0.0, "columnspacing": 1.4}
    sheet.figure.legend(handles=marks, loc="upper left", bbox_to_anchor=anchor, **layout)
    sheet.text(LEFT[0], top + 0.42, "lungwave", weight="bold", size=13)
    sheet.text(LEFT[0], top + 0.62, "Research use only.", color=PALETTE["muted"], size=9.5)
    sheet.text(LEFT[0], top + 0.78, "Not a medical device.", color=PALETTE["muted"], size=9.5)
