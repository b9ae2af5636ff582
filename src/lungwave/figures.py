"""Figures of a reconstruction: B-mode, aeration maps on fixed scales, column profile, band chart; no display needed."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import matplotlib as mpl
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from lungwave.phantom.aeration import Truth
from lungwave.posterior.information import INFORMED
from lungwave.posterior.summary import Band, Reconstruction
from lungwave.types import MM, Field

TruthKind = Literal["sharp", "smooth"]
Corners = tuple[float, float, float, float]  # left, right, bottom, top [mm]

# One palette for page and figures. In an inline SVG each colour becomes the CSS variable of its name, so that a figure
# follows the page into the dark. Estimate and truth are near the blue and vermilion of Okabe and Ito, safe for
# colour-blind eyes.
PALETTE = {
    "ink": "#1c242e",
    "muted": "#66707d",
    "rule": "#dfe3e8",
    "estimate": "#0a6aa6",
    "truth": "#cf5a12",
    "void": "#b9c0c8",
}
PLEURA = "#ffb52e"  # drawn on the grey B-mode, the same in light and dark
DIM = "#8d97a3"  # veils a map where it is the prior speaking
POINT = 1 / 72  # [inch]


@dataclass(frozen=True)
class Scale:
    """A fixed colour scale: equal colours mean equal values in every figure that lungwave draws."""

    cmap: str
    low: float
    high: float
    ticks: tuple[float, ...]
    label: str
    extend: Literal["neither", "both"] = "neither"

    def colormap(self) -> Colormap:
        """The colour table; a missing value is drawn grey."""
        return mpl.colormaps[self.cmap].with_extremes(bad=PALETTE["void"])


AERATION = Scale("viridis", 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), "aeration, % air")
WIDTH = Scale("bone_r", 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), "width of the interval, points")
INFORMATION = Scale("Purples", 0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0), "information, % of the prior's variance")
ERROR = Scale("RdBu_r", -0.5, 0.5, (-0.5, -0.25, 0.0, 0.25, 0.5), "estimate minus truth, points", "both")


@contextmanager
def style(size: float = 11.0) -> Iterator[None]:
    """Defaults of matplotlib plus ours, whatever the user's matplotlibrc says; nothing leaks out."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "text.usetex": False,
                "font.family": "DejaVu Sans",  # ships with matplotlib
                "font.size": size,
                "svg.fonttype": "none",
                "svg.hashsalt": "lungwave",
                "axes.linewidth": 0.6,
                "axes.edgecolor": PALETTE["muted"],
                "axes.labelcolor": PALETTE["muted"],
                "axes.labelpad": 4.0,
                "xtick.color": PALETTE["muted"],
                "ytick.color": PALETTE["muted"],
                "xtick.major.size": 3.0,
                "ytick.major.size": 3.0,
                "xtick.major.width": 0.6,
                "ytick.major.width": 0.6,
                "text.color": PALETTE["ink"],
                "hatch.linewidth": 0.7,
            }
        )
        yield


def lateral(r: Reconstruction) -> Float[np.ndarray, " columns"]:
    """Lateral position of the map's columns [m]; centred on 0 where the reconstruction does not say."""
    if r.x is not None:
        return np.asarray(r.x, float)
    columns = 0 if r.aeration is None else r.aeration.shape[1]
    return (np.arange(columns) - (columns - 1) / 2) * r.pixel


def column_profile(r: Reconstruction) -> Float[np.ndarray, " columns"] | None:
    """Mean aeration of each column over the depth of the headline number (fraction 0-1), NaN where not quantifiable."""
    if r.withheld or r.aeration is None:
        return None
    top, bottom = (r.whole.top, r.whole.bottom) if r.whole else (0.0, r.aeration.shape[0] * r.pixel)
    depth = (np.arange(r.aeration.shape[0]) + 0.5) * r.pixel
    rows = np.asarray(r.aeration, float)[(depth >= top) & (depth < bottom)]
    profile = np.full(r.aeration.shape[1], np.nan)
    known = np.isfinite(rows).any(0) if len(rows) else np.zeros(len(profile), bool)
    profile[known] = np.nanmean(rows[:, known], 0)
    if r.valid is not None:
        profile[~r.valid] = np.nan
    return profile


def truth_map(truth: Truth, kind: TruthKind = "smooth") -> Field:
    """The true aeration map at sigma 0.5 mm ("smooth") or 0.15 mm ("sharp"), NaN where there is no lung."""
    return np.where(truth.lung, np.asarray(getattr(truth, kind), float), np.nan)


def _steps(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " edge"]:
    """Edges of equally wide columns around their centres."""
    step = float(values[1] - values[0]) if len(values) > 1 else 0.1 * MM
    return np.append(values - step / 2, values[-1] + step / 2)


def map_corners(r: Reconstruction, rows: int) -> Corners:
    """Extent of a map of ``rows`` rows below the pleura."""
    edges = _steps(lateral(r)) / MM
    return float(edges[0]), float(edges[-1]), rows * r.pixel / MM, 0.0


def bmode_corners(r: Reconstruction) -> Corners:
    """Extent of the B-mode."""
    x, z = _steps(np.asarray(r.bmode.x, float)) / MM, _steps(np.asarray(r.bmode.z, float)) / MM
    return float(x[0]), float(x[-1]), float(z[-1]), float(z[0])


def draw_bmode(ax: Axes, r: Reconstruction, interpolation: Literal["bilinear", "none"] = "bilinear") -> AxesImage:
    """B-mode in decibels over mm axes; the detected pleura is a line, the region of the map is dotted."""
    left, right, bottom, top = extent = bmode_corners(r)
    floor = -r.bmode.dynamic_range
    seen = np.maximum(np.asarray(r.bmode.decibel, float), floor)  # silence is -inf dB
    image = ax.imshow(seen, cmap="gray", vmin=floor, vmax=0.0, extent=extent, interpolation=interpolation)
    if r.pleura_depth is not None and not r.withheld:
        x, pleura = lateral(r) / MM, np.asarray(r.pleura_depth, float) / MM
        trusted = np.ones(len(x), bool) if r.valid is None else r.valid
        ax.plot(x, np.where(trusted, pleura, np.nan), color=PLEURA, lw=1.6, solid_capstyle="round")
        ax.plot(x, np.where(trusted, np.nan, pleura), color=PLEURA, lw=1.0, ls=(0, (1.5, 2.0)))
        if r.aeration is not None:
            foot = pleura + r.aeration.shape[0] * r.pixel / MM
            outline = np.r_[pleura[0], foot, pleura[-1]]
            ax.plot(np.r_[x[0], x, x[-1]], outline, color=PLEURA, lw=0.9, ls=(0, (1.0, 2.4)), alpha=0.8)
    _millimetres(ax, "depth, mm")
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return image


def draw_map(ax: Axes, values: Field, r: Reconstruction, scale: Scale = AERATION, mask: bool = True) -> AxesImage:
    """A pleura-flattened map on a fixed scale over mm axes.

    The dashed line is the information depth. With ``mask`` all below it is dimmed and hatched: there the map is the
    prior speaking. Columns that cannot be quantified are grey.
    """
    rows = values.shape[0]
    left, right, bottom, top = extent = map_corners(r, rows)
    known = np.ma.masked_invalid(values)
    image = ax.imshow(
        known, cmap=scale.colormap(), vmin=scale.low, vmax=scale.high, extent=extent, interpolation="none"
    )
    edges = np.linspace(left, right, values.shape[1] + 1)
    if r.information_depth is not None:
        depth = np.nan_to_num(np.asarray(r.information_depth, float) / MM, nan=bottom).clip(0.0, bottom)
        step = np.append(depth, depth[-1])
        if mask and (depth < bottom).any():
            below = partial(ax.fill_between, edges, step, bottom, step="post", linewidth=0)
            below(facecolor=DIM, alpha=0.55)
            below(facecolor="none", edgecolor="#ffffff", hatch="////")
        line = np.where(step < bottom, step, np.nan)
        ax.step(edges, line, where="post", color="#ffffff", lw=2.2)
        ax.step(edges, line, where="post", color="#16202b", lw=1.1, ls=(0, (3.0, 1.6)))
    if r.valid is not None and not r.valid.all():
        grey = np.append(~r.valid, ~r.valid[-1])
        ax.fill_between(edges, 0.0, bottom, where=grey, step="post", facecolor=PALETTE["void"], linewidth=0, zorder=3)
    _scale_bar(ax, left, bottom, right - left)
    _millimetres(ax, "below the pleura, mm")
    ax.set(xlim=(left, right), ylim=(bottom, top))
    return image


def _millimetres(ax: Axes, depth: str) -> None:
    """Whole-millimetre ticks on both axes, as many as fit; a strip has no room for a long label."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    width, height = ax.get_position().size * figure.get_size_inches()
    for axis, length in ((ax.xaxis, width), (ax.yaxis, height)):
        axis.set_major_locator(MaxNLocator(nbins=int(np.clip(length / 0.3, 2, 7)), steps=[1, 2, 5, 10], integer=True))
    ax.set(xlabel="lateral position, mm", ylabel=depth if height > 1.6 else "mm")


def draw_information(ax: Axes, r: Reconstruction) -> AxesImage:
    """What the echoes tell of each pixel; contour at ``INFORMED``, dashed the depth down to which a column stays above.

    Hatched where it is less.
    """
    assert r.posterior is not None
    known = r.posterior.information
    image = draw_map(ax, known, r, INFORMATION, mask=False)
    x, z = r.posterior.x / MM, r.posterior.z / MM
    if known.min() < INFORMED < known.max():
        ax.contourf(x, z, known, levels=[-1.0, INFORMED], colors="none", hatches=["////"])
        ax.contour(x, z, known, levels=[INFORMED], colors="#16202b", linewidths=0.8)
    return image


def _scale_bar(ax: Axes, left: float, bottom: float, width: float) -> None:
    """One millimetre (five on a wide map), white with a dark rim so that it reads on every colour."""
    length = 1.0 if width < 12.0 else 5.0
    x, y = left + 0.04 * width, bottom - 0.04 * width
    for colour, weight in (("#16202b", 4.6), ("#ffffff", 2.6)):
        ax.plot([x, x + length], [y, y], color=colour, lw=weight, solid_capstyle="butt")
    text = ax.text(x + length + 0.025 * width, y, f"{length:g} mm", color="#ffffff", va="center", fontsize="small")
    text.set_bbox({"facecolor": "#16202b", "alpha": 0.65, "edgecolor": "none", "pad": 1.2})


def draw_profile(ax: Axes, r: Reconstruction) -> None:
    """Aeration of each column, estimate beside truth, on the fixed 0-100 % axis; unquantifiable columns are grey."""
    x = lateral(r)
    profile = column_profile(r)
    edges = _steps(x) / MM
    if r.valid is not None and not r.valid.all():
        grey = np.append(~r.valid, ~r.valid[-1])
        ax.fill_between(edges, 0.0, 1.0, where=grey, step="post", facecolor=PALETTE["void"], alpha=0.45, linewidth=0)
    if r.truth is not None:
        ax.plot(np.asarray(r.truth.x) / MM, r.truth.profile, color=PALETTE["truth"], lw=1.4, ls=(0, (4.0, 1.6)))
    if r.posterior is not None:
        trusted = np.ones(len(x), bool) if r.valid is None else r.valid
        low, high = r.posterior.profile_lower, r.posterior.profile_upper
        ax.fill_between(x / MM, low, high, where=trusted, color=PALETTE["estimate"], alpha=0.25, linewidth=0)
    if profile is not None:
        ax.plot(x / MM, profile, color=PALETTE["estimate"], lw=2.0)
    ax.set(xlim=(edges[0], edges[-1]), ylim=(0.0, 1.0), xlabel="lateral position, mm", ylabel="aeration, %")
    ax.set_yticks([0.0, 0.5, 1.0], ["0", "50", "100"])
    ax.grid(axis="y", color=PALETTE["rule"], lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def draw_bands(ax: Axes, bands: list[Band], informed: list[float | None]) -> None:
    """One row per depth band: interval (bar), estimate (dot), truth (diamond).

    ``informed`` is the share of each band that the echoes reach; a row below one half is hatched.
    """
    for row, (band, share) in enumerate(zip(bands, informed, strict=True)):
        if share is not None and share < 0.5:
            ax.barh(
                row, 1.0, height=0.86, color="none", edgecolor=PALETTE["void"], hatch="////", linewidth=0, alpha=0.6
            )
        low, high = max(band.lower, 0.0), min(band.upper, 1.0)
        ax.barh(row, high - low, left=low, height=0.36, color=PALETTE["estimate"], alpha=0.3, linewidth=0)
        ax.plot(band.estimate, row, "o", color=PALETTE["estimate"], ms=6.5)
        if band.truth is not None and np.isfinite(band.truth):
            ax.plot(band.truth, row, "D", color=PALETTE["truth"], ms=5.5, mec="#ffffff", mew=0.8)
    ax.set(xlim=(0.0, 1.0), ylim=(len(bands) - 0.5, -0.5))
    ax.set_xticks([0.0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"])
    ax.set_yticks(range(len(bands)), [f"{b.top / MM:g}\N{EN DASH}{b.bottom / MM:g} mm" for b in bands])
    ax.grid(axis="x", color=PALETTE["rule"], lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)


def _canvas(width: float, corners: Corners, bar: bool = True) -> tuple[Figure, Axes, Axes | None]:
    """Figure ``width`` points wide whose axes keep the millimetre aspect, and room for a slim colour bar below."""
    tallest = 560.0  # [point] a deep and narrow image gets narrower axes instead
    left, right, top, bottom = 46.0, 10.0, 7.0, 78.0 if bar else 38.0
    aspect = abs((corners[2] - corners[3]) / (corners[1] - corners[0]))
    span = min(width - left - right, tallest / aspect)
    height = span * aspect + top + bottom
    figure = Figure(figsize=(width * POINT, height * POINT), facecolor="none")
    start = left + (width - left - right - span) / 2
    ax = figure.add_axes((start / width, bottom / height, span / width, span * aspect / height), facecolor="none")
    cax = figure.add_axes((start / width, 34.0 / height, span / width, 6.0 / height)) if bar else None
    return figure, ax, cax


def colour_bar(figure: Figure, cax: Axes, image: ScalarMappable, scale: Scale | None) -> None:
    """Slim horizontal bar; decibels where ``scale`` is None."""
    bar = figure.colorbar(image, cax=cax, orientation="horizontal", extend=scale.extend if scale else "neither")
    bar.outline.set_visible(False)
    ticks = np.linspace(image.get_clim()[0] or -60.0, 0.0, 4) if scale is None else np.array(scale.ticks)
    labels = [f"{tick * (100 if scale else 1):.0f}".replace("-", "\N{MINUS SIGN}") for tick in ticks]
    bar.set_ticks(list(ticks), labels=labels)
    cax.tick_params(length=0, pad=3)
    cax.set_xlabel(scale.label if scale else "echo, dB")


def _svg(figure: Figure, key: str, label: str) -> str:
    """Inline SVG: no namespaces or ids that clash, palette colours as CSS variables, text left to the page's font."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", dpi=144, facecolor="none", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.S)  # would apply to the whole page
    head, body = text.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r'\bid="', f'id="{key}-', body)
    body = body.replace('href="#', f'href="#{key}-').replace("url(#", f"url(#{key}-")
    for name, colour in PALETTE.items():
        body = body.replace(colour, f"var(--{name})")
    return f'<svg {box.group()} role="img" aria-label="{label}">{body.strip()}'


def bmode_svg(r: Reconstruction, key: str) -> str:
    """The B-mode as inline SVG."""
    with style(12.0):
        figure, ax, cax = _canvas(380.0, bmode_corners(r))
        assert cax is not None
        # The pixels as they are, which keeps the file small; the browser smooths them.
        colour_bar(figure, cax, draw_bmode(ax, r, "none"), None)
        svg = _svg(figure, key, "B-mode image with the detected pleura")
        return re.sub(r"image-rendering:[a-z-]+;?", "", svg)


def map_svg(r: Reconstruction, values: Field, key: str, label: str, scale: Scale = AERATION, mask: bool = True) -> str:
    """A map as inline SVG; wide maps get a wider canvas."""
    corners = map_corners(r, values.shape[0])
    with style(12.0):
        figure, ax, cax = _canvas(600.0 if is_wide(r) else 330.0, corners)
        assert cax is not None
        colour_bar(figure, cax, draw_map(ax, values, r, scale, mask), scale)
        return _svg(figure, key, label)


def information_svg(r: Reconstruction, key: str) -> str:
    """The information map as inline SVG."""
    assert r.posterior is not None
    with style(12.0):
        figure, ax, cax = _canvas(600.0 if is_wide(r) else 330.0, map_corners(r, len(r.posterior.mean)))
        assert cax is not None
        colour_bar(figure, cax, draw_information(ax, r), INFORMATION)
        return _svg(figure, key, "Information in the echoes")


def draw_sample(ax: Axes, r: Reconstruction, number: int) -> AxesImage:
    """One posterior sample as a thumbnail on the scale of the other maps: millimetres, without words at the axes."""
    assert r.posterior is not None
    image = draw_map(ax, r.posterior.samples[number], replace(r, information_depth=None))  # no line: compare freely
    ax.set(xlabel="", ylabel="")
    ax.tick_params(labelleft=False, labelbottom=False)
    return image


def sample_svg(r: Reconstruction, number: int, key: str) -> str:
    """One posterior sample as inline SVG, small."""
    assert r.posterior is not None
    left, right, bottom, top = map_corners(r, len(r.posterior.mean))
    width = 300.0 if is_wide(r) else 130.0
    height = width * (bottom - top) / (right - left)
    with style(11.0):
        figure = Figure(figsize=((width + 8.0) * POINT, (height + 8.0) * POINT), facecolor="none")
        whole = (6.0 / (width + 8.0), 6.0 / (height + 8.0), width / (width + 8.0), height / (height + 8.0))
        draw_sample(figure.add_axes(whole, facecolor="none"), r, number)
        return _svg(figure, key, f"Posterior sample {number + 1}")


def profile_svg(r: Reconstruction, key: str, width: float = 380.0) -> str:
    """The column profile as inline SVG, ``width`` points wide."""
    with style(12.0):
        figure, ax, _ = _canvas(width, (0.0, width, 110.0, 0.0), bar=False)
        draw_profile(ax, r)
        return _svg(figure, key, "Aeration of each column")


def is_wide(r: Reconstruction) -> bool:
    """Whether the map is more than twice as wide as deep."""
    return r.aeration is not None and r.aeration.shape[1] > 2 * r.aeration.shape[0]
