"""Before and after: what the original report's tools make of an 8 x 256 lung map, and what lungwave does.

    lungwave maps --preset paper --seed 1 --cases 0:6000 --view seed --out data/maps_strip.npz
    lungwave data convert data/maps_strip.npz datasets/lung_8_256
    OPENAI_LOGDIR=runs/strip_openai lungwave legacy image_train --data_dir datasets/lung_8_256 \
        --openai_crop True --openai_rgb True --image_size 64 --num_channels 32 --num_res_blocks 1 \
        --attention_resolutions 1 --diffusion_steps 1000 --noise_schedule linear --rescale_learned_sigmas False \
        --rescale_timesteps False --lr 5e-4 --batch_size 8 --ema_rate 0.99 --max_steps 854
    python benchmarks/strip_picture.py MODEL data/maps_strip.npz \
        --legacy-model runs/strip_openai/ema_0.99_000854.pt

Writes docs/images/strip_before_after.png and docs/results/strip_before_after.json. The report's network has 256 x 256
pixels; 64 x 64 is what a small machine can train. The stock loader then enlarges 8 times, not 32, and cuts out the same
8 of 256 columns. MODEL is a folder that ``lungwave train`` made of the same maps. Samples are the first of their seed,
none is chosen; they are kept in --cache, so that the command is cheap to repeat.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import ConnectionPatch, Rectangle
from PIL import Image

from lungwave import legacy
from lungwave.data.mapset import openai_view
from lungwave.evaluate.statistics import STATISTICS
from lungwave.figures import AERATION, PALETTE, colour_bar, style
from lungwave.legacy.files import read_sidecar
from lungwave.models.checkpoint import WEIGHTS, load_model
from lungwave.repro import atomic_path, manifest, sha256, stream, write_json
from lungwave.types import LungwaveError, UsageError
from prior import CACHE, DOCS, Recipe, Source, real_maps

NAME = "strip_before_after"
PIXEL = 0.1  # [mm] of the strip
VIEW = 256  # image_size of the report
CALLS = 250  # of the old network for a sample; the report took all of its 4000 to 7000
SQUARES, BEFORE, AFTER = 4, 10, 12  # samples shown
DPI = 200
WIDTH, COLUMN, LEFT, RIGHT = 8.4, 3.84, 0.26, 4.30  # [inch]; a column has 3 dots a map pixel, the large strip 6
COMPARED = ("aeration mean", "pixel spread", "lateral 1/e length")
GAP = 3  # map pixels between strips


@dataclass(frozen=True)
class Old:
    """What the network behind the stock loader draws."""

    squares: np.ndarray  # [n, z, x, 3] bytes, of the size it was trained at
    strips: np.ndarray  # [n, 8, 256, 3] bytes
    images: int  # seen in training
    flags: dict[str, Any]  # of its training


def old_samples(file: Path, size: tuple[int, int], cache: Path) -> Old:
    """Samples by ``lungwave legacy image_sample``, square and as wide as a map, drawn once."""
    about = read_sidecar(file)
    flags = about.get("flags", {})
    if not (flags.get("openai_crop") and flags.get("openai_rgb")):
        raise UsageError(f"{file}: was not trained behind the stock loader; add --openai_crop True --openai_rgb True")
    folder = cache / f"legacy_{sha256(file)[:16]}_{CALLS}"
    os.environ["OPENAI_LOGDIR"] = str(folder)
    drawn = []
    for count, (z, x) in ((SQUARES, about["size"]), (BEFORE, size)):
        path = folder / f"samples_{count}x{z}x{x}x3.npz"
        if not path.is_file():
            words = f"image_sample --num_samples {count} --size {z},{x} --timestep_respacing {CALLS} --model_path"
            legacy.main([*words.split(), str(file)])
        with np.load(path, allow_pickle=False) as kept:
            drawn.append(kept["arr_0"])
    steps = int(file.stem.rsplit("_", 1)[-1].removeprefix("model"))
    for place in ("data_dir", "device", "max_steps"):  # say nothing about the network at this step
        flags.pop(place, None)
    images = steps * flags["batch_size"] * about.get("processes", 1)
    return Old(drawn[0], drawn[1], images, {**flags, "steps": steps})


def tower(strips: np.ndarray, empty: float) -> np.ndarray:
    """Strips (n, z, x, ...) one below the other, ``empty`` between them."""
    rows = [strip for one in strips for strip in (one, np.full((GAP, *one.shape[1:]), empty))]
    return np.concatenate(rows[:-1])


class Page:
    """A figure measured in inches from its upper left corner."""

    def __init__(self, height: float) -> None:
        self.height = height
        self.figure = Figure((WIDTH, height), facecolor="white", dpi=DPI)

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes of that place, bare."""
        box = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        return self.figure.add_axes(box)

    def text(self, left: float, top: float, words: str, **how: Any) -> None:
        """Words whose upper left corner is there."""
        self.figure.text(left / WIDTH, 1 - top / self.height, words, va="top", **how)

    def head(self, top: float, words: str, colour: str) -> None:
        """A heading at the left."""
        self.text(LEFT, top, words, color=colour, fontweight="bold", fontsize=11)

    def show(self, left: float, top: float, width: float, values: np.ndarray) -> AxesImage:
        """Maps on the fixed scale, or colours as they are, with square pixels; NaN is the page."""
        ax = self.axes(left, top, width, width * values.shape[0] / values.shape[1])
        ax.set_axis_off()
        colours = AERATION.colormap().with_extremes(bad="white")
        return ax.imshow(
            values, cmap=colours, vmin=AERATION.low, vmax=AERATION.high, interpolation="none", aspect="auto"
        )


def show_map(page: Page, top: float, values: np.ndarray) -> tuple[Axes, Rectangle]:
    """One map across the page over mm axes, with a frame around the columns that the stock loader keeps."""
    z, x = values.shape
    width = 2 * COLUMN
    image = page.show(LEFT + 0.20, top, width, values)
    ax = image.axes
    assert isinstance(ax, Axes)
    image.set_extent((0, x * PIXEL, z * PIXEL, 0))
    ax.set_axis_on()
    ax.spines[:].set_visible(False)
    ax.xaxis.tick_top()
    ax.set_xticks(range(0, 26, 5), labels=[f"{v} mm" if v == 0 else str(v) for v in range(0, 26, 5)])
    ax.set_yticks([0, z * PIXEL], labels=["0", f"{z * PIXEL:g}"])
    ax.tick_params(labelsize=8, pad=2)
    frame = Rectangle(
        ((x - z) / 2 * PIXEL, 0), z * PIXEL, z * PIXEL,
        fill=False, edgecolor=PALETTE["truth"], linewidth=2.0, clip_on=False, zorder=5,
    )  # fmt: skip
    ax.add_patch(frame)
    return ax, frame


def point_out(page: Page, source: Axes, frame: Rectangle, target: Axes) -> None:
    """Frame what the framed columns become, and draw lines to it."""
    target.set_axis_on()
    target.set(xticks=[], yticks=[])
    target.spines[:].set(edgecolor=PALETTE["truth"], linewidth=2.0)
    left, right = frame.get_x(), frame.get_x() + frame.get_width()
    for x, corner in ((left, 0.0), (right, 1.0)):
        line = ConnectionPatch(
            (x, frame.get_height()), (corner, 1.0), coordsA="data", coordsB="axes fraction", axesA=source, axesB=target,
            color=PALETTE["truth"], linewidth=0.9,
        )  # fmt: skip
        page.figure.add_artist(line)


def picture(one: np.ndarray, old: Old, lungs: np.ndarray, new: np.ndarray, said: dict[str, str], path: Path) -> None:
    """The page."""
    with style(9.0):
        small = {"color": PALETTE["muted"], "fontsize": 8.5, "linespacing": 1.3}
        page = Page(6.42)
        page.head(0.12, "Before: the report's tools", PALETTE["truth"])
        page.text(RIGHT + COLUMN, 0.15, said["map"], ha="right", **small)
        source, frame = show_map(page, 0.60, one)
        side, gap, top = 1.60, 0.08, 1.22
        gray = openai_view(Image.fromarray(np.round(one * 255).astype(np.uint8)), VIEW).transpose(1, 2, 0)
        seen = page.show(LEFT, top, side, gray).axes
        assert isinstance(seen, Axes)
        point_out(page, source, frame, seen)
        middle, each = LEFT + COLUMN - side, (side - gap) / 2
        for k, square in enumerate(old.squares):
            page.show(middle + k % 2 * (each + gap), top + k // 2 * (each + gap), each, square)
        page.show(RIGHT, top, COLUMN, tower(old.strips / 255, 1.0))
        for left, words in ((LEFT, said["seen"]), (middle, said["squares"]), (RIGHT, said["old"])):
            page.text(left, top + side + 0.07, words, **small)

        page.head(3.42, "After: lungwave", PALETTE["estimate"])
        top = 3.90
        image = page.show(LEFT, top, COLUMN, tower(lungs, np.nan))
        page.show(RIGHT, top, COLUMN, tower(new, np.nan))
        page.text(LEFT, top - 0.20, said["lungs"], **small)
        page.text(RIGHT, top - 0.20, said["new"], **small)
        bar = page.axes(LEFT, page.height - 0.47, RIGHT + COLUMN - LEFT, 0.08)
        colour_bar(page.figure, bar, image, AERATION)
        with atomic_path(path) as temporary:
            page.figure.savefig(temporary, dpi=DPI, format="png", metadata={"Software": None})


def captions(old: Old, size: tuple[int, int], images: int, calls: int) -> dict[str, str]:
    """What stands over each part."""
    z, x = size
    side = old.squares.shape[1]
    return {
        "map": f"One lung map, {z} x {x} pixels: the first {z * PIXEL:g} mm below the pleura",
        "seen": f"All that the network sees:\n{z} of {x} columns, {VIEW // z}x larger",
        "squares": f"Trained on such squares,\nit draws these ({side} x {side})",
        "old": f"... and these strips. Our own training, {side} x {side} ({side // z}x larger):\n"
        f"{old.images:,} images seen, {CALLS} network calls each",
        "lungs": f"Lungs of the simulator, {z} x {x}",
        "new": f"Drawn by its network: {images:,} images seen, {calls} calls each",
    }


def figures(maps: np.ndarray) -> dict[str, float]:
    """Of maps (n, z, x), how much air they hold, how it varies, and how wide it hangs together [pixel]."""
    return {"number": len(maps), **{name: float(STATISTICS[name].of(maps)) for name in COMPARED}}


def main() -> None:
    """Draw, and write the committed files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("maps", type=Path)
    parser.add_argument("--legacy-model", type=Path, required=True, help="model*.pt or ema_*.pt of legacy image_train")
    parser.add_argument("--case", type=int, default=13, help="map at the top; one with tissue in its middle")
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder where samples are kept")
    parser.add_argument("--docs", type=Path, default=DOCS)
    options = parser.parse_args()
    model = load_model(options.model, options.device)
    real = real_maps(options.maps, model)
    if not 0 <= options.case < len(real):
        raise UsageError(f"--case {options.case}: {options.maps} holds cases 0 to {len(real) - 1}")
    old = old_samples(options.legacy_model, model.size, options.cache)
    prior = Source(model, sha256(options.model / WEIGHTS), options.seed, AFTER, options.device, options.cache)
    new = prior.draw(Recipe(), AFTER)
    lungs = real.fraction(stream(0, "shuffle", 1).permutation(len(real))[:AFTER])[:, 0]
    one = real.fraction([options.case])[0, 0]
    images = int(model.config["trained"]["images"])
    said = captions(old, model.size, images, new.calls)
    picture(one, old, lungs, new.maps, said, options.docs / "images" / f"{NAME}.png")
    z, x = model.size
    colours = old.strips.astype(np.float32) / 255
    write_json(
        options.docs / "results" / f"{NAME}.json",
        {
            "map": {"name": real.names[options.case], "size": [z, x], "columns_seen": z, "share_seen": z / x},
            "before": {
                "images_seen": old.images,
                "calls": CALLS,
                "flags": old.flags,
                "channels_differ_by": float(np.ptp(colours, axis=-1).mean()),  # of a gray image 0
                "strips": figures(colours.mean(-1)),
            },
            "after": {"images_seen": images, "calls": new.calls, "strips": figures(new.maps)},
            "maps": figures(real.fraction()[:, 0]),
            **manifest(
                json.dumps({"model": model.config}, sort_keys=True),
                options.seed,
                [options.model / WEIGHTS, options.legacy_model],
                command=f"python benchmarks/strip_picture.py {options.model.name} {options.maps.name} "
                f"--legacy-model {options.legacy_model.name} --case {options.case}",
                maps_sha256=real.digest,
            ),
        },
    )


if __name__ == "__main__":
    try:
        main()
    except LungwaveError as error:
        sys.exit(str(error))
