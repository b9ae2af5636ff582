"""Pictures of maps side by side on the fixed 0-100 % scale, and of how a training goes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from lungwave.figures import AERATION, PALETTE, style
from lungwave.repro import atomic_path

WIDTH = 7.2  # [inch] of a picture
GAP = 0.05  # [inch] between maps
DPI = 150


def save_figure(figure: Figure, path: Path) -> None:
    """Write a PNG that appears whole."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})


def grid_shape(count: int, rows: int, columns: int) -> tuple[int, int]:
    """Rows and columns of a grid of ``count`` maps of ``rows`` x ``columns``: about square, with few empty places."""

    def cost(across: int) -> float:
        down = math.ceil(count / across)
        return abs(math.log(down * rows / (across * columns))) + 2 * (down * across - count) / across

    across = min(range(1, count + 1), key=cost)
    return math.ceil(count / across), across


def save_grid(maps: Float[np.ndarray, "n z x"], path: Path, title: str = "") -> None:
    """Maps (fraction 0-1; what lies outside is drawn as the nearest end) side by side, with one colour bar."""
    count, high, wide = maps.shape
    rows, across = grid_shape(count, high, wide)
    cell = (WIDTH - 0.3 - GAP * (across - 1)) / across
    tall = cell * high / wide
    height = rows * tall + GAP * (rows - 1) + 0.35 + 0.62
    with style(9.0):
        figure = Figure(figsize=(WIDTH, height))
        figure.text(0.15 / WIDTH, 1 - 0.2 / height, title, va="center")
        for i, values in enumerate(maps):
            row, column = divmod(i, across)
            left, top = 0.15 + column * (cell + GAP), 0.35 + row * (tall + GAP)
            ax = figure.add_axes((left / WIDTH, 1 - (top + tall) / height, cell / WIDTH, tall / height))
            image = ax.imshow(
                values, cmap=AERATION.colormap(), vmin=AERATION.low, vmax=AERATION.high, interpolation="none",
                aspect="auto",
            )  # fmt: skip
            ax.set_axis_off()
        cax = figure.add_axes((0.2 / WIDTH, 0.42 / height, 1 - 0.4 / WIDTH, 0.1 / height))
        bar = figure.colorbar(image, cax=cax, orientation="horizontal", ticks=list(AERATION.ticks))
        bar.outline.set_visible(False)
        bar.set_ticks(list(AERATION.ticks), labels=[f"{tick * 100:.0f}" for tick in AERATION.ticks])
        cax.set_xlabel(AERATION.label)
        save_figure(figure, path)


def save_loss(steps: Sequence[Mapping[str, Any]], checks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss over images seen: of the steps, and of the averaged weights on training and held-out maps."""
    with style(10.0):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        ax = figure.add_subplot()
        ax.plot(
            [s["images"] for s in steps],
            [s["loss"] for s in steps],
            color=PALETTE["void"],
            lw=1.0,
            label="batches, while training",
        )
        for name, colour in (("train", PALETTE["estimate"]), ("held_out", PALETTE["truth"])):
            known = [c for c in checks if c.get(name)]
            if known:
                mean = [float(np.mean(c[name])) for c in known]
                ax.plot(
                    [c["images"] for c in known], mean, "o-", ms=3.5, color=colour,
                    label=f"{name.replace('_', '-')}, mean over noise levels",
                )  # fmt: skip
        ax.set(xlabel="training images seen", ylabel="denoising loss")
        _finish(ax)
        save_figure(figure, path)


def save_sigma(checks: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Loss at each noise level, training beside held-out maps; earlier checks are faint."""
    with style(10.0):
        figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
        ax = figure.add_subplot()
        for age, check in enumerate(reversed(checks[-6:])):
            for name, colour in (("train", PALETTE["estimate"]), ("held_out", PALETTE["truth"])):
                if check.get(name):
                    label = f"{name.replace('_', '-')} maps, {check['images']:,} images seen" if age == 0 else None
                    ax.plot(
                        check["sigma"], check[name], "o-", ms=3.0, color=colour, alpha=0.8**age / (1 + age), label=label
                    )
        ax.set(xlabel="noise level sigma (maps have standard deviation 0.5)", ylabel="denoising loss", xscale="log")
        _finish(ax)
        save_figure(figure, path)


def _finish(ax: Axes) -> None:
    """Losses on a logarithmic axis where they span a factor of three, with plain numbers at the ticks."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in ax.lines])
    if values.size and values.max() > 3 * values.min() > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_minor_locator(NullLocator())
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.grid(color=PALETTE["rule"], lw=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, fontsize="small")
