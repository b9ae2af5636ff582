"""The README's picture: a lung, the echoes that a probe hears from it, and what they tell.

    python benchmarks/first_screen.py [--seed 42] [--case 1]

Writes docs/images/first_screen.png: a lung of the tiny preset with its alveoli, its channel data with noise at 20 dB,
and the shipped posterior's mean, uncertainty and samples, hatched where the echoes no longer know, beside the truth.
The lung is that of the README's example; it was not chosen for its result.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from lungwave import figures
from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording
from lungwave.config import preset
from lungwave.data.generate import received, simulate_case
from lungwave.figures import AERATION, PALETTE, WIDTH
from lungwave.phantom.anatomy import rasterise
from lungwave.phantom.medium import Medium
from lungwave.posterior.reconstruct import reconstruct
from lungwave.posterior.summary import Reconstruction
from lungwave.repro import atomic_path
from lungwave.types import MM, Channels

TARGET = Path(__file__).resolve().parents[1] / "docs" / "images" / "first_screen.png"
WIDE, TALL = 12.6, 5.1  # [inch]
SNR = 20.0  # [dB]
SAMPLES = 5  # drawn below the maps
FLESH = ("#f4ddc4", "#e3a98f", "#b8655a")  # slow to fast tissue


class Sheet:
    """A figure whose places are inches from its top left corner."""

    def __init__(self) -> None:
        self.figure = Figure(figsize=(WIDE, TALL), facecolor="#ffffff")

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        return self.figure.add_axes((left / WIDE, 1 - (top + height) / TALL, width / WIDE, height / TALL))

    def text(self, left: float, top: float, words: str, **style: object) -> None:
        self.figure.text(left / WIDE, 1 - top / TALL, words, va="baseline", **style)

    def head(self, left: float, number: str, title: str, said: str) -> None:
        """What a part shows, in a line of its own and one below it."""
        self.text(left, 0.34, f"{number}  {title}", weight="bold", size=12.5, color=PALETTE["ink"])
        self.text(left, 0.58, said, size=9, color=PALETTE["muted"])

    def arrow(self, left: float, right: float, top: float) -> None:
        places = [(x / WIDE, 1 - top / TALL) for x in (left, right)]
        look = {"arrowstyle": "-|>", "mutation_scale": 16, "color": PALETTE["muted"], "lw": 1.6}
        self.figure.add_artist(FancyArrowPatch(*places, transform=self.figure.transFigure, **look))


def draw_chest(ax: Axes, medium: Medium, r: Reconstruction) -> None:
    """Tissue by its sound speed, air black, and the box that the map shows."""
    colors = LinearSegmentedColormap.from_list("tissue", FLESH).with_extremes(bad="#0b0f14")
    x, z, half = medium.x / MM, medium.z / MM, medium.spacing / MM / 2
    extent = (x[0] - half, x[-1] + half, z[-1] + half, z[0] - half)
    speed = np.where(medium.air > 0.5, np.nan, medium.sound_speed)
    ax.imshow(speed, extent=extent, cmap=colors, vmin=1440, vmax=1620, interpolation="none")
    assert r.truth is not None
    top, across = r.truth.pleura_depth / MM, r.truth.x / MM
    bottom = top + r.truth.smooth.shape[0] * r.truth.pixel / MM
    outline = np.r_[across, across[::-1], across[0]], np.r_[top, bottom[::-1], top[0]]
    ax.plot(*outline, color="#ffffff", lw=1.4, ls=(0, (4, 2)))
    layers = {0.55: "skin, fat, muscle", float(top.mean()) - 0.28: "pleura", 8.1: "air in alveoli: black"}
    for depth, name in layers.items():
        text = ax.text(0.0, depth, name, color="#ffffff", ha="center", va="center", fontsize=8)
        text.set_bbox({"facecolor": "#16202b", "alpha": 0.6, "edgecolor": "none", "pad": 1.6})
    # the elements of the probe
    ax.plot([-4, 4], [0.08, 0.08], color=PALETTE["estimate"], lw=4, solid_capstyle="butt", clip_on=False)
    figures._scale_bar(ax, extent[0], extent[2], extent[1] - extent[0])
    ax.set(xlim=extent[:2], ylim=(extent[2], 0), xticks=[], yticks=[])


def draw_echoes(ax: Axes, rf: Channels, rate: float) -> None:
    """Channel data of the middle transmit, as loud as they are, late samples raised so that they show."""
    event = rf[len(rf) // 2]
    time = 1e6 * np.arange(len(event)) / rate
    gain = 10 ** (0.09 * np.minimum(time, 12.0))[:, None]
    loud = event * gain / np.percentile(np.abs(event * gain), 97)
    ax.imshow(loud, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", extent=(0.5, event.shape[1] + 0.5, time[-1], 0))
    ax.set(xlabel="element", ylabel="time, µs", xticks=[1, 16, 32])
    ax.tick_params(length=2)


def draw_maps(sheet: Sheet, left: float, top: float, side: float, r: Reconstruction) -> None:
    """Mean, uncertainty and truth side by side, samples below."""
    assert r.posterior is not None and r.aeration is not None and r.truth is not None
    assert r.lower is not None and r.upper is not None and r.whole is not None
    step = side + 0.36
    whole = r.whole
    said = (
        ("estimate", f"{100 * whole.estimate:.0f} % air ({100 * whole.lower:.0f}\N{EN DASH}{100 * whole.upper:.0f} %)"),
        ("uncertainty", "width of the 90 % intervals"),
        ("truth", f"{100 * r.truth.whole:.0f} % air"),
    )
    images = []
    maps = ((r.aeration, AERATION, True), (r.upper - r.lower, WIDTH, False),
            (figures.truth_map(r.truth), AERATION, False))  # fmt: skip
    for k, (values, scale, mask) in enumerate(maps):
        ax = sheet.axes(left + k * step, top, side, side)
        images.append(figures.draw_map(ax, values, r, scale, mask))
        ax.set(xlabel="", ylabel="", xticks=[], yticks=[])
        colour = PALETTE["truth"] if k == 2 else PALETTE["estimate"] if k == 0 else PALETTE["ink"]
        sheet.text(left + k * step, top - 0.27, said[k][0], size=10, weight="bold", color=colour)
        sheet.text(left + k * step, top - 0.08, said[k][1], size=8.5, color=colour)
    small = (3 * side + 2 * 0.36 - (SAMPLES - 1) * 0.14) / SAMPLES
    below = top + side + 0.36
    sheet.text(left, below - 0.09, f"{SAMPLES} of {len(r.posterior.samples)} samples", size=9.5, weight="bold")
    for k in range(SAMPLES):
        ax = sheet.axes(left + k * (small + 0.14), below, small, small)
        figures.draw_sample(ax, r, k)
        for mark in [*ax.texts, *ax.lines]:
            mark.remove()
        ax.set(xticks=[], yticks=[])
    bar = sheet.axes(left, below + small + 0.14, 1.4, 0.09)
    figures.colour_bar(sheet.figure, bar, images[0], AERATION)
    bar = sheet.axes(left + 1.75, below + small + 0.14, 1.4, 0.09)
    figures.colour_bar(sheet.figure, bar, images[1], WIDTH)
    said_of_hatching = ("Hatched: the echoes no longer know;", "what such lungs look like is drawn.")
    for k, line in enumerate(said_of_hatching):
        sheet.text(left + 3.36, below + small + 0.23 + 0.17 * k, line, size=7.9, color=PALETTE["muted"])


def main() -> None:
    """Simulate, reconstruct, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--case", type=int, default=1)
    args = parser.parse_args()
    config = preset("tiny").override({"seed": args.seed, "receive.snr_db": SNR})
    simulator = Simulator(config)
    case = simulate_case(config, args.case, simulator)
    rf = received(case, config, simulator)
    (result,) = reconstruct(Recording(rf[None], simulator.scan), truths=[case.truth])
    print(case.anatomy.category, result.withheld, result.whole)
    medium = rasterise(case.anatomy, config.grid.spacing / 2, config.grid.depth, config.grid.width)
    with figures.style(9.0):
        sheet = Sheet()
        sheet.head(0.2, "1", "A lung", "below the chest wall, drawn and known")
        sheet.head(3.95, "2", "Its raw echoes", f"plane wave, {SNR:g} dB of noise; all that is given")
        sheet.head(7.05, "3", "What they tell", f"drawn from p(map | echoes); first {6.4:g} mm below the pleura")
        draw_chest(sheet.axes(0.2, 0.76, 3.3, 3.85), medium, result)
        draw_echoes(sheet.axes(4.42, 0.76, 2.1, 3.85), rf, simulator.scan.sampling_frequency)
        sheet.arrow(3.55, 3.93, 2.6)
        sheet.arrow(6.6, 6.98, 2.6)
        draw_maps(sheet, 7.05, 1.14, 1.55, result)
        sheet.text(0.2, 4.92, "Simulated. Research use only. Not a medical device.", size=8.5, color=PALETTE["muted"])
        with atomic_path(TARGET) as temporary:
            sheet.figure.savefig(temporary, format="png", dpi=150)
    print(f"{TARGET}: {TARGET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
