"""A prior beside real maps: distances with their floors, statistics of lungs, loss gap, memorisation, picture.

    lungwave maps --preset tiny --seed 1 --cases 0:4000 --out data/maps_train.npz
    lungwave maps --preset tiny --seed 2 --cases 0:1000 --out data/maps_test.npz
    python benchmarks/prior.py MODEL data/maps_train.npz data/maps_test.npz

Writes docs/results/prior_NAME.{md,json} and docs/images/prior_NAME.png. TRAIN is what the model was trained on,
HELD_OUT comes from another seed. Samples are clipped to 0-1 and kept in --cache: run the command again to go on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from lungwave.data.mapset import MapSet, read_maps
from lungwave.evaluate.generative import WITHIN, compare, table_lines
from lungwave.evaluate.memorisation import SHIFT, memorisation
from lungwave.figures import AERATION, PALETTE, colour_bar, style
from lungwave.models.checkpoint import WEIGHTS, Model, load_model
from lungwave.models.noising import Noising
from lungwave.progress import Progress
from lungwave.repro import atomic_path, manifest, sha256, stream, write_json
from lungwave.sample import SAMPLERS, Counted, generate, respaced
from lungwave.training.objective import squared_error
from lungwave.types import LungwaveError, UsageError

DOCS = Path(__file__).resolve().parents[1] / "docs"
CACHE = Path("build/samples")
SIGMAS = tuple(float(s) for s in np.geomspace(0.02, 20, 10))  # of the loss gap; maps have standard deviation 0.5
COPIES = 0.02  # largest share of suspects that we accept
WIDTH = 8.4  # [inch] of the picture


# --- samples, drawn once and kept -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """How samples are drawn; all of it names their place in the cache."""

    sampler: str = "heun"
    steps: int = 18
    schedule: str = "karras"  # or "linear-4000", the noise levels of the original report
    clip: bool = False  # clamp each guess of the clean map to what a map can be, as OpenAI's sampler does
    options: dict[str, Any] = field(default_factory=dict)  # of the sampler
    sigma_min: float = 0.002  # last and first noise level of "karras"; maps have a standard deviation of 0.5
    sigma_max: float = 80.0

    def levels(self) -> Any:
        """What ``generate`` takes as schedule."""
        if self.schedule != "linear-4000":
            return self.schedule
        return respaced(Noising(4000).sigmas, self.steps)


@dataclass(frozen=True)
class Drawn:
    """Samples and what they cost."""

    maps: np.ndarray  # [n, z, x] fraction 0-1
    calls: int  # of the network, for one sample
    seconds: float  # for one sample, the median over batches


class Clipped(torch.nn.Module):
    """A denoiser whose guess is clamped to the values that a map can have."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.denoiser = model.denoiser
        self.low, self.high = (float(model.scaling.to_network(torch.tensor(v))) for v in (0.0, 1.0))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor, cond: Any = None) -> torch.Tensor:
        """The clamped guess."""
        return self.denoiser(x, sigma, cond).clamp(self.low, self.high)


@dataclass(frozen=True)
class Source:
    """A model to draw from, and where its samples are kept."""

    model: Model
    weights: str  # SHA-256
    seed: int
    batch: int
    device: str
    cache: Path

    def draw(self, recipe: Recipe, count: int) -> Drawn:
        """Samples 0 to ``count``, batch by batch through the cache."""
        about = {"weights": self.weights, "seed": self.seed, "batch": self.batch, "device": self.device}
        key = json.dumps({**about, "threads": torch.get_num_threads(), **asdict(recipe)}, sort_keys=True)
        folder = self.cache / hashlib.sha256(key.encode()).hexdigest()[:16]
        parts = []
        with Progress(count, f"{recipe.sampler}, {recipe.steps} steps") as progress:
            for first in range(0, count, self.batch):
                size = min(self.batch, count - first)
                path = folder / f"{first:06d}_{size}.npz"
                if not path.is_file():
                    self._batch(recipe, first, size, path)
                with np.load(path, allow_pickle=False) as part:
                    parts.append((part["maps"], int(part["calls"]), float(part["seconds"])))
                progress.advance(size)
        whole = [seconds for maps, _, seconds in parts if len(maps) == self.batch] or [parts[0][2]]
        return Drawn(np.concatenate([maps for maps, _, _ in parts]), parts[0][1], float(np.median(whole)))

    def _batch(self, recipe: Recipe, first: int, size: int, path: Path) -> None:
        denoiser = Counted(Clipped(self.model) if recipe.clip else self.model.denoiser)
        start = time.perf_counter()
        drawn = generate(
            denoiser,
            (1, *self.model.size),
            size,
            seed=self.seed,
            first=first,
            sampler=partial(SAMPLERS[recipe.sampler], **recipe.options),
            steps=recipe.steps,
            schedule=recipe.levels(),
            sigma_min=recipe.sigma_min,
            sigma_max=recipe.sigma_max,
            batch=size,
            device=self.device,
        )
        seconds = (time.perf_counter() - start) / size
        maps = self.model.scaling.to_data(drawn)[:, 0].clamp(0, 1).numpy()
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, maps=maps, calls=denoiser.calls, seconds=seconds)


def source(options: argparse.Namespace) -> Source:
    """The model named on the command line."""
    model = load_model(options.model, options.device)
    if model.config["network"]["in_channels"] != 1:
        raise UsageError(f"{options.model}: maps of several channels are not aeration; give a model of one channel")
    weights = sha256(options.model / WEIGHTS)
    return Source(model, weights, options.seed, options.batch, options.device, options.cache)


def real_maps(path: Path, model: Model) -> MapSet:
    """Maps of the model's size."""
    found = read_maps(path)
    if found.channels != 1 or found.size != model.size:
        raise UsageError(
            f"{path}: maps are {found.channels} x {found.size[0]} x {found.size[1]}, the model makes "
            f"1 x {model.size[0]} x {model.size[1]}; give the maps that it was trained for"
        )
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """What both benchmarks of a prior ask for."""
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--batch", type=int, default=50, help="samples at a time, also the unit of the cache")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--sigma-min", type=float, default=Recipe.sigma_min, help="last noise level")
    parser.add_argument("--sigma-max", type=float, default=Recipe.sigma_max, help="first noise level")
    parser.add_argument("--cache", type=Path, default=CACHE, help="folder where samples are kept")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--name", default=None, help="of the files written; default the model folder's name")


# --- the figures ------------------------------------------------------------------------------------------------------


def loss_gap(model: Model, train: np.ndarray, held_out: np.ndarray, device: str, seed: int) -> list[dict[str, float]]:
    """Denoising error of held-out over training maps at each noise level, both under the same noise.

    The ratio does not depend on the loss's weight. Its error is that of two independent means over maps.
    """
    rows = []
    for level, sigma in enumerate(SIGMAS):
        errors = []
        for maps in (train, held_out):
            clean = model.scaling.to_network(torch.from_numpy(maps[:, None])).to(device)
            noise = stream(seed, "loss gap", level).standard_normal(clean.shape, dtype=np.float32)
            with torch.no_grad():
                parts = [
                    squared_error(model.denoiser, c, n.to(device), torch.full((len(c),), sigma, device=device)).cpu()
                    for c, n in zip(clean.split(64), torch.from_numpy(noise).split(64), strict=True)
                ]
            errors.append(torch.cat(parts).double().numpy())
        seen, unseen = (max(float(e.mean()), 1e-30) for e in errors)  # a perfect copier makes no error at all
        relative = [e.std(ddof=1) / np.sqrt(len(e)) / mean for e, mean in zip(errors, (seen, unseen), strict=True)]
        scale = float(model.denoiser.error_scale(torch.tensor([sigma], device=device))) ** -2
        rows.append(
            {
                "sigma": sigma,
                "train": scale * seen,
                "held_out": scale * unseen,
                "gap": unseen / seen - 1,
                "gap_error": float(unseen / seen * np.hypot(*relative)),
            }
        )
    return rows


def summary(found: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """What, reached, goal, whether it is met."""
    rows = []
    for name, f in found["features"].items():
        kid, goal = f["kid"], 1.5 * f["kid"]["band"]
        rows.append((f"KID, {name}", f"{kid['value']:.2e} ± {kid['error']:.1e}", f"<= {goal:.1e}", kid["within"]))
    copies = found["memorisation"]["share"]
    rows.append(
        (
            "samples nearer to train than the 1st percentile of held-out",
            f"{copies:.1%}",
            f"<= {COPIES:.0%}",
            copies <= COPIES,
        )
    )
    worst = max(found["loss_gap"], key=lambda r: r["gap"])
    rows.append(
        (
            "largest loss gap, held-out over train",
            f"{worst['gap']:+.1%} ± {worst['gap_error']:.1%} at sigma {worst['sigma']:.2g}",
            f"<= {WITHIN:.0%}",
            worst["gap"] <= WITHIN,
        )
    )
    for name in ("aeration mean", "aeration spread", "lateral 1/e length", "depth 1/e length"):
        relative = found["statistics"][name]["relative_difference"]
        reached = "not defined" if relative is None else f"{relative:+.1%}"
        rows.append(
            (
                f"{name} against held-out",
                reached,
                f"within {WITHIN:.0%}",
                relative is not None and abs(relative) <= WITHIN,
            )
        )
    return rows


def table(found: dict[str, Any], command: str, name: str) -> str:
    """The committed Markdown."""
    maps, cost, copies = found["maps"], found["sampling"], found["memorisation"]
    floor = next(iter(found["features"].values()))["frechet"]["maps"]
    lines = [
        f"# Prior {name}",
        "",
        f"Made by `{command}`; {maps['samples']} samples of {maps['size'][0]} x {maps['size'][1]} pixels "
        f"({cost['calls']} calls of the network each), {maps['train']} training and {maps['held_out']} held-out maps.",
        "",
        f"![Samples beside held-out maps](../images/prior_{name}.png)",
        "",
        "| what | reached | goal | |",
        "|---|---|---|---|",
        *(f"| {a} | {b} | {c} | {'met' if met else '**missed**'} |" for a, b, c, met in summary(found)),
        "",
        "## Distances and statistics",
        "",
        "Each distance stands beside its floor, the same distance of training maps to held-out maps. KID is unbiased; "
        "its goal is 1.5 times the 95 % quantile that chance gives half the training maps against the held-out maps, "
        "p is a permutation test of equality. FD (Frechet) and SWD (sliced Wasserstein) depend on the number of maps; "
        f"their floor is that of 20 random subsets of {floor} training maps. "
        "Lengths and chords are in pixels, intervals are 95 % bootstrap intervals over maps.",
        "",
        *table_lines(found),
        "",
        "## Loss gap",
        "",
        "Denoising loss of the network (unit weight) under the same noise; maps have a standard deviation of 0.5.",
        "",
        "| sigma | train | held-out | gap |",
        "|---|---|---|---|",
        *(
            f"| {r['sigma']:.3g} | {r['train']:.4f} | {r['held_out']:.4f} | {r['gap']:+.1%} ± {r['gap_error']:.1%} |"
            for r in found["loss_gap"]
        ),
        "",
        "## Memorisation",
        "",
        f"Distance to the nearest training map over flips and lateral shifts of up to {SHIFT} pixels "
        "(root mean square over pixels, fraction).",
        "",
        "| | samples | held-out |",
        "|---|---|---|",
        f"| median distance | {copies['median_distance']:.4f} | {copies['median_distance_held_out']:.4f} |",
        f"| share below {copies['threshold']:.4f}, the 1st percentile of held-out | "
        f"{copies['share']:.1%} (p = {copies['p']:.2g}) | {copies['expected']:.1%} |",
        f"| nearest below a third of the second nearest | {copies['ratio']:.1%} | {copies['held_out_ratio']:.1%} |",
    ]
    return "\n".join(lines) + "\n"


# --- the picture ------------------------------------------------------------------------------------------------------


def mosaic(maps: np.ndarray, across: int, gap: int) -> np.ndarray:
    """Maps side by side, NaN between them."""
    n, z, x = maps.shape
    down = -(-n // across)
    canvas = np.full((down * (z + gap) - gap, across * (x + gap) - gap), np.nan)
    for k, one in enumerate(maps):
        row, column = divmod(k, across)
        canvas[row * (z + gap) : row * (z + gap) + z, column * (x + gap) : column * (x + gap) + x] = one
    return canvas


def show(ax: Axes, canvas: np.ndarray, title: str) -> AxesImage:
    """One mosaic on the fixed scale of every figure; the gaps are the page."""
    colours = AERATION.colormap().with_extremes(bad="white")
    image = ax.imshow(canvas, cmap=colours, vmin=AERATION.low, vmax=AERATION.high, interpolation="none")
    ax.set_axis_off()
    ax.set_title(title, color=PALETTE["muted"], fontsize="medium", loc="left", pad=5)
    return image


def picture(samples: np.ndarray, held_out: np.ndarray, path: Path) -> None:
    """The first samples beside as many held-out maps, nothing chosen."""
    z, x = samples.shape[1:]
    across, down = (1, 24) if x >= 8 * z else (5, 6)
    shown = min(across * down, len(samples), len(held_out))
    gap = max(1, round(0.05 * min(z, x) + 0.5))
    panels = [mosaic(maps[:shown], across, gap) for maps in (samples, held_out)]
    panel = (WIDTH - 0.6) / 2  # [inch]
    tall = panel * panels[0].shape[0] / panels[0].shape[1]
    height = tall + 0.35 + 0.62
    with style(9.0):
        figure = Figure((WIDTH, height), facecolor="white")
        for k, (canvas, title) in enumerate(zip(panels, ("Samples of the prior", "Held-out lungs"), strict=True)):
            left = 0.2 + k * (panel + 0.2)
            ax = figure.add_axes((left / WIDTH, 0.62 / height, panel / WIDTH, tall / height))
            image = show(ax, canvas, title)
        bar = figure.add_axes((0.2 / WIDTH, 0.42 / height, 1 - 0.4 / WIDTH, 0.09 / height))
        colour_bar(figure, bar, image, AERATION)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=150, format="png", metadata={"Software": None})


def main() -> None:
    """Draw, compare, and write the committed files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("train", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--count", type=int, default=1000, help="samples")
    parser.add_argument("--steps", type=int, default=18, help="of the Heun sampler")
    parser.add_argument("--loss-maps", type=int, default=500, help="maps of each side behind the loss gap")
    add_options(parser)
    options = parser.parse_args()
    prior = source(options)
    sets = [real_maps(path, prior.model) for path in (options.train, options.held_out)]
    # The files list maps by category or case; a fixed shuffle makes every "first n" a random subset.
    train, held_out = (s.fraction()[stream(0, "shuffle", k).permutation(len(s)), 0] for k, s in enumerate(sets))
    recipe = Recipe(steps=options.steps, sigma_min=options.sigma_min, sigma_max=options.sigma_max)
    drawn = prior.draw(recipe, options.count)
    count = min(options.loss_maps, len(train), len(held_out))
    found = {
        **compare(drawn.maps, train, held_out),
        "loss_gap": loss_gap(prior.model, train[:count], held_out[:count], options.device, options.seed),
        "memorisation": memorisation(drawn.maps, train, held_out).summary(),
        "sampling": {**asdict(recipe), "calls": drawn.calls, "seconds": drawn.seconds},
    }
    name = options.name or options.model.resolve().name
    command = f"python benchmarks/prior.py {shlex.join(sys.argv[1:])}"
    write_json(
        options.docs / "results" / f"prior_{name}.json",
        {
            "results": found,
            **manifest(
                json.dumps({"model": prior.model.config}),
                options.seed,
                [options.model / WEIGHTS],
                command=command,
                maps={"train": sets[0].digest, "held_out": sets[1].digest},
            ),
        },
    )
    text = table(found, command, name)
    with atomic_path(options.docs / "results" / f"prior_{name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    picture(drawn.maps, held_out, options.docs / "images" / f"prior_{name}.png")
    print(text)


if __name__ == "__main__":
    try:
        main()
    except LungwaveError as error:
        sys.exit(str(error))
