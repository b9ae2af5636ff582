"""Picture of one tiny phantom per category: the medium, and its aeration at two scales.

    python benchmarks/phantom_picture.py

Writes docs/images/phantoms.png.
"""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from lungwave.config import preset
from lungwave.figures import AERATION
from lungwave.phantom.aeration import Truth, truth, truth_spacing
from lungwave.phantom.anatomy import draw, rasterise
from lungwave.phantom.medium import Medium
from lungwave.phantom.pathology import CATEGORIES
from lungwave.repro import atomic_path
from lungwave.types import MM

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "phantoms.png"
CASES = (0, 37, 42, 15)  # one index a category, in the order of CATEGORIES
SPEEDS = Normalize(1380, 1650)  # [m/s]


def scale_bar(axes: Axes, x: float, z: float, color: str) -> None:
    """One millimetre, drawn to scale."""
    axes.plot([x, x + 1], [z, z], color=color, linewidth=3, solid_capstyle="butt")
    axes.text(x + 0.5, z - 0.18, "1 mm", color=color, ha="center", va="bottom", fontsize=8)


def show_medium(axes: Axes, medium: Medium, found: Truth) -> matplotlib.image.AxesImage:
    """Sound speed, air in black, the mapped strip of lung outlined."""
    colors = matplotlib.colormaps["cividis"].with_extremes(bad="black")
    x, z, half = medium.x / MM, medium.z / MM, medium.spacing / MM / 2
    speed = np.where(medium.air > 0, np.nan, medium.sound_speed)
    drawn = axes.imshow(
        speed,
        extent=(x[0] - half, x[-1] + half, z[-1] + half, z[0] - half),
        cmap=colors,
        norm=SPEEDS,
        interpolation="none",
    )
    top, across = found.pleura_depth / MM, found.x / MM
    bottom = top + found.sharp.shape[0] * found.pixel / MM
    outline = np.concatenate([across, across[::-1], across[:1]]), np.concatenate([top, bottom[::-1], top[:1]])
    axes.plot(*outline, color="white", linewidth=1.0, linestyle=(0, (4, 2)))
    return drawn


def show_map(axes: Axes, aeration: np.ndarray, found: Truth) -> matplotlib.image.AxesImage:
    """Aeration on the fixed scale of every figure, depth counted from the pleura."""
    half = found.sharp.shape[1] * found.pixel / MM / 2
    return axes.imshow(
        aeration,
        extent=(-half, half, found.sharp.shape[0] * found.pixel / MM, 0),
        cmap=AERATION.colormap(),
        vmin=AERATION.low,
        vmax=AERATION.high,
        interpolation="none",
    )


def main() -> None:
    """Draw, measure, and write the picture."""
    config = preset("tiny").override({"lung.categories": CATEGORIES, "lung.weights": (1.0,) * len(CATEGORIES)})
    figure, axes = plt.subplots(3, 4, figsize=(12.2, 9.3), height_ratios=(1.17, 1, 1), layout="constrained")
    for column, index in enumerate(CASES):
        anatomy = draw(config, index)
        medium = rasterise(anatomy, config.grid.spacing, config.grid.depth, config.grid.width)
        found = truth(anatomy, config.map, truth_spacing(config))
        speeds = show_medium(axes[0, column], medium, found)
        axes[0, column].set_title(f"{anatomy.category}\n{100 * found.whole:.0f} % air, 0-6 mm", fontsize=11)
        for row, aeration in ((1, found.sharp), (2, found.smooth)):
            shares = show_map(axes[row, column], aeration, found)
        scale_bar(axes[0, column], 3.4, 0.85, "black")
        for row in (1, 2):
            scale_bar(axes[row, column], 2.0, 6.1, "white")
        axes[2, column].set_xlabel("lateral [mm]")
    axes[0, 0].set_ylabel("depth below the probe [mm]")
    axes[1, 0].set_ylabel("sigma 0.15 mm\ndepth below the pleura [mm]")
    axes[2, 0].set_ylabel("sigma 0.5 mm\ndepth below the pleura [mm]")
    figure.colorbar(speeds, ax=axes[0], label="sound speed [m/s]; air is black")
    bar = figure.colorbar(shares, ax=axes[1:], label="aeration [% air]", shrink=0.6)
    bar.set_ticks(np.linspace(0, 1, 6), labels=[f"{v}" for v in range(0, 101, 20)])
    figure.suptitle("Tiny phantoms: 50 um cells, binary alveoli, and the aeration maps they stand for", fontsize=12)
    with atomic_path(TARGET) as path:
        figure.savefig(path, dpi=110, format="png")


if __name__ == "__main__":
    main()
