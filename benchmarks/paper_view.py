"""The 8 x 256 view of the original report, reconstructed from the echoes of the paper preset.

    python benchmarks/paper_case.py            # simulates data/paper.h5, a case of the preset as it is
    python benchmarks/paper_view.py [--lungs 32] [--fine 40] [--workers 2] [--data data] [--samples 20]

The shipped ``ridge-paper`` reads every event of the walking aperture. What it says, in blocks of 0.4 mm, then guides
the shipped prior of 8 x 256 views, a diffusion model, to samples of the view. How far the blocks stray from the truth,
and together how far, is measured on --lungs lungs that no model saw, simulated with all their events as
paper_event.toml says, on a coarser grid. Each of them is judged by what the others say of that, the case of
paper_case.py by all of them. The ridge alone is judged on --fine more lungs, one event each on the preset's own grid.
Rerunning goes on where it was stopped: an hour on two cores. Writes docs/images/paper_view.png and
docs/results/paper_view.{md,json}.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from jaxtyping import Bool, Float
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from scipy.linalg import toeplitz
from torch import Tensor

from lungwave import figures
from lungwave.acoustics.probe import Recording
from lungwave.config import Config
from lungwave.data.dataset import folder_config, read_shards
from lungwave.data.drawn import draw_map
from lungwave.data.hdf5 import read_cases, read_origin, read_recording
from lungwave.data.schema import CaseTable
from lungwave.evaluate.scores import crps_fair
from lungwave.figures import AERATION, PALETTE
from lungwave.models.checkpoint import Model as Prior
from lungwave.models.checkpoint import load_model
from lungwave.phantom.aeration import SEED_VIEW, seed_view
from lungwave.posterior.likelihood import Differentiable, GaussianNoise
from lungwave.posterior.linear import LEVELS as RIDGE_LEVELS
from lungwave.posterior.reconstruct import answer_of
from lungwave.posterior.ridge import RidgeModel, noisy_frames
from lungwave.posterior.ridge import load_model as load_ridge
from lungwave.posterior.samplers import SAMPLERS, Problem
from lungwave.repro import atomic_path, sha256, versions, write_json
from lungwave.sample import Seeds, generate
from lungwave.shipped import ECHOES, PRIOR, model_folder
from lungwave.types import MM, NS, RESEARCH_USE, UM

DOCS = Path(__file__).resolve().parents[1] / "docs"
EVENT = Path(__file__).resolve().parent / "paper_event.toml"
WALKING = {"seed": 8, "probe.array_elements": 192, "sequence.events": 16, "map.columns": 256}  # whole lungs
FINE = {  # one event on the preset's own grid
    "seed": 9, "lung.oversampling": 2, "grid.spacing": 24.64 * UM, "grid.width": 13.94624 * MM,
    "grid.depth": 31.95808 * MM, "grid.time_step": 6.65 * NS, "grid.steps": 6324,
}  # fmt: skip
SNR = 30.0  # [dB] of the channel data that are judged
BLOCK = 4  # columns of the view that are one number of the data
LEVELS = 50  # of the sampler
INTERVAL = (0.05, 0.95)
NINETY = RIDGE_LEVELS.index(0.9)
UNSEEN, CASE, FINER = "unseen lungs", "the case", "event each on the preset's own grid"


@dataclass(frozen=True)
class Lungs:
    """Lungs with all their events: what the ridge says of their views, and what is true."""

    said: Float[np.ndarray, "lung 8 256"]
    half: Float[np.ndarray, "lung 8 256"]  # of its own 90 % intervals
    smooth: Float[np.ndarray, "lung 8 256"]  # truth at 0.5 mm, which the ridge was taught
    true: Float[np.ndarray, "lung 8 256"]  # the view of the report, as the prior knows it

    def part(self, which: Bool[np.ndarray, " lung"]) -> Lungs:
        """Some of them."""
        return Lungs(*(getattr(self, field.name)[which] for field in fields(self)))


@dataclass(frozen=True)
class Straying:
    """Blocks that the ridge says, given the view: ``said = offset + slope * true + error``, errors correlated."""

    offset: float
    slope: float
    covariance: Float[np.ndarray, "block block"]

    @classmethod
    def of(cls, lungs: Lungs) -> Straying:
        """Least squares, and the covariance of what is left, by distance: one number for each lag of blocks.

        A covariance by distance that is not positive is repaired by its eigenvalues.
        """
        said, true = blocks(lungs.said), blocks(lungs.true)
        slope, offset = np.polyfit(true.ravel(), said.ravel(), 1)
        error = said - offset - slope * true
        count = error.shape[1]
        lags = [float((error[:, lag:] * error[:, : count - lag]).mean()) for lag in range(count)]
        values, vectors = np.linalg.eigh(toeplitz(lags))
        values = np.maximum(values, 0.02 * lags[0])
        return cls(float(offset), float(slope), (vectors * values) @ vectors.T)

    def posterior(
        self, said: Float[np.ndarray, " block"], prior: Prior, samples: int, number: int
    ) -> Float[np.ndarray, "sample 8 256"]:
        """Views that the prior draws under the blocks, whitened so that their errors have unit covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        whiten = torch.from_numpy((vectors / np.sqrt(values)) @ vectors.T)
        scaling = prior.scaling

        def seen(maps: Float[Tensor, "n 1 8 256"]) -> Float[Tensor, "n block"]:
            means = torch.nn.functional.avg_pool2d(scaling.to_data(maps), (SEED_VIEW[0], BLOCK))
            return (self.offset + self.slope * means.flatten(1)) @ whiten.to(maps)

        y = (torch.from_numpy(said) @ whiten).repeat(samples, 1)
        problem = Problem(y, Differentiable(seen), prior.denoiser, GaussianNoise(1.0), (1, *SEED_VIEW))
        drawn = SAMPLERS["daps_rto"](problem, Seeds(0, range(samples), f"paper view {number}"), levels=LEVELS)
        return scaling.to_data(drawn.maps).clamp(0, 1).numpy()[:, 0]


def blocks(views: Float[np.ndarray, "*n 8 256"]) -> Float[np.ndarray, "*n block"]:
    """Mean aeration of the 0.8 mm, over ``BLOCK`` columns."""
    means = views.mean(-2)
    return means.reshape(*means.shape[:-1], -1, BLOCK).mean(-1)


def generated(changes: dict[str, Any], cases: int, folder: Path, workers: int, shard: int) -> Path:
    """A folder of lungs beside paper_event.toml; what is there already is kept."""
    settings = [word for name, value in changes.items() for word in (f"--{name}", f"{value:.12g}")]
    words = ["--cases", f"0:{cases}", "--out", folder, "--shard-size", shard, "--workers", workers]
    lungwave("generate", "--config", EVENT, *settings, *words)
    return folder


def lungwave(*words: Any) -> None:
    """A command of lungwave; the script ends where it fails."""
    subprocess.run([sys.executable, "-m", "lungwave", *map(str, words)], check=True)


def read_views(recording: Recording, cases: CaseTable, config: Config, ridge: RidgeModel) -> Lungs:
    """Views that the ridge reads event by event, and their truth: lungs are drawn anew, finer than a file holds."""
    answer = answer_of(recording, ridge, SEED_VIEW[1])
    if isinstance(answer, str):
        sys.exit(answer)

    def view(maps: np.ndarray) -> Float[np.ndarray, "lung 8 256"]:
        return np.stack([seed_view(one.astype(float), ridge.config.map.pixel) for one in maps])

    found = answer.estimate
    true = np.stack([draw_map(config, int(index), "seed").values for index in cases.index])
    return Lungs(view(found.aeration), view(found.aeration_half[NINETY]), view(cases.smooth), true)


def heard(folder: Path) -> Iterator[tuple[Recording, CaseTable, Config]]:
    """Recordings of a folder with noise, the truth, and what they were generated with."""
    config = folder_config(folder)
    for recording, cases in read_shards(folder):
        yield replace(recording, rf=noisy_frames(recording.rf, cases, config, (SNR, SNR), 0)), cases, config


def read_events(folder: Path, ridge: RidgeModel) -> dict[str, float]:
    """Scores of the ridge in the first 0.8 mm below single events."""
    parts = []
    for recording, cases, _ in heard(folder):
        found = ridge.predict(ridge.reader()(recording.rf))
        parts.append([v[:, : SEED_VIEW[0]] for v in (found.aeration, cases.smooth, found.aeration_half[NINETY])])
    return ridge_scores(*(np.concatenate(part) for part in zip(*parts, strict=True)))


def ridge_scores(said: np.ndarray, smooth: np.ndarray, half: np.ndarray) -> dict[str, float]:
    """How far the ridge is off, and how often its 90 % intervals hold."""
    error = said - smooth
    inside = np.abs(error) <= half
    return {"error": float(np.abs(error).mean()), "bias": float(error.mean()), "inside": float(inside.mean())}


def scores(samples: Float[np.ndarray, "lung sample *field"], truth: Float[np.ndarray, "_ ..."]) -> dict[str, float]:
    """Error of the mean, CRPS, and how often the truth lies within the 90 % interval."""
    low, high = np.quantile(samples, INTERVAL, axis=1, method="weibull")
    return {
        "error": float(np.abs(samples.mean(1) - truth).mean()),
        "crps": float(crps_fair(samples, truth).mean()),
        "inside": float(((truth >= low) & (truth <= high)).mean()),
    }


def judged(samples: Float[np.ndarray, "lung sample 8 256"], lungs: Lungs) -> dict[str, dict[str, Any]]:
    """Scores of the view, pixel by pixel, of its blocks, and of its mean."""
    return {
        "pixels": scores(samples, lungs.true),
        "blocks": scores(blocks(samples), blocks(lungs.true)),
        "whole view": scores(samples.mean((2, 3)), lungs.true.mean((1, 2))),
    }


def prior_views(prior: Prior, count: int) -> Float[np.ndarray, "n 8 256"]:
    """Views that the prior draws without any echoes."""
    with torch.no_grad():
        maps = generate(prior.denoiser, (1, *SEED_VIEW), count, seed=1)
    return prior.scaling.to_data(maps).clamp(0, 1).numpy()[:, 0]


def alone(name: str, row: dict[str, float]) -> str:
    """A line of the table for the ridge."""
    said = f"{row['error']:.3f} (bias {row['bias']:+.3f})"
    return f"| {name} | map at 0.5 mm | ridge alone | {said} | | {100 * row['inside']:.0f} % |"


def table(result: dict[str, Any], about: dict[str, Any], lungs: int) -> str:
    """The page of the results."""
    lines = [
        "# The 8 x 256 view, reconstructed from the echoes of the paper preset", "",
        f"Made by `{about['command']}`. {RESEARCH_USE}", "",
        "![The case: truth, ridge, posterior; its blocks; the mean of every view](../images/paper_view.png)", "",
        "| lungs | what | | error | CRPS | 90 % interval holds |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    names = {UNSEEN: f"{lungs} unseen lungs", CASE: "the case of the [paper preset](paper_case.md)"}
    for lung, name in names.items():
        for what in ("whole view", "blocks", "pixels"):
            for when in ("before the echoes", "after"):
                row = result[lung][when][what]
                numbers = f"{row['error']:.3f} | {row['crps']:.3f} | {100 * row['inside']:.0f} %"
                lines.append(f"| {name} | {what} | {when} | {numbers} |")
        lines.append(alone(name, result[lung]["ridge"]))
    lines.append(alone(f"{about['fine']} unseen lungs, one {FINER}", result[FINER]["ridge"]))
    error, ridge = result["error of the blocks"], about["ridge"]
    lines += [
        "",
        "Errors and CRPS in fractions of air. The view is that of the report, of the first 0.8 mm; a block is the "
        f"mean of {BLOCK} columns of it, 0.4 mm. The ridge was fitted to {ridge['cases']} lungs with one event each. "
        f"Of a block it says {error['offset']:.2f} + {error['slope']:.2f} times the truth, give or take "
        f"{error['deviation']:.2f}. Alveoli are smaller than what sound of 0.3 mm wavelength resolves: their places in "
        "a sample are the prior's, their density along the probe is the echoes'.",
        "",
        "Where the intervals hold less often than in 90 % of the blocks they are too narrow, or the prior's views are "
        "not as patchy as lungs: that shows before the echoes. The case is one lung, of the deepest pleura that the "
        "preset has.",
        "",
    ]
    return "\n".join(lines)


def draw(case: Lungs, samples: np.ndarray, tests: Lungs, tested: np.ndarray, unguided: np.ndarray) -> Figure:
    """The case, from its truth to samples; its blocks along the probe; the mean of every view."""
    truth, drawn = case.true[0], samples[0]
    half = SEED_VIEW[1] * 0.1 / 2
    strips = [
        ("truth", truth),
        ("truth, smoothed to 0.5 mm", case.smooth[0]),
        ("what the ridge says of it", case.said[0]),
        ("mean of the posterior", drawn.mean(0)),
        *((f"sample {k + 1}", one) for k, one in enumerate(drawn[:3])),
    ]
    with figures.style(9.0):
        room = ConstrainedLayoutEngine(rect=(0, 0.022, 1, 0.978))
        figure = Figure(figsize=(9.6, 9.0), layout=room, facecolor="#ffffff")
        top, bottom = np.asarray(figure.subfigures(2, 1, height_ratios=(1.45, 1)))
        panels = top.subplots(len(strips) + 1, 1, height_ratios=[1] * len(strips) + [0.22])
        for ax, (title, view) in zip(panels, strips, strict=False):
            image = ax.imshow(
                view, cmap=AERATION.colormap(), vmin=AERATION.low, vmax=AERATION.high, interpolation="none",
                extent=(-half, half, 0.8, 0), aspect="auto",
            )  # fmt: skip
            ax.set_title(title, loc="left", fontsize=9, pad=2)
            ax.set(yticks=(0, 0.8), xticks=[])
        panels[len(strips) - 1].set_xticks(np.arange(-12, 13, 4))
        panels[3].set_ylabel("depth below the pleura, mm")
        figures.colour_bar(figure, panels[-1], image, AERATION)
        along, means = bottom.subplots(1, 2, width_ratios=(1.9, 1))
        x = (np.arange(SEED_VIEW[1] // BLOCK) + 0.5) * 0.1 * BLOCK - half
        for values, colour, name in ((unguided, PALETTE["void"], "before"), (drawn, PALETTE["estimate"], "after")):
            low, high = np.quantile(100 * blocks(values), INTERVAL, axis=0, method="weibull")
            along.fill_between(x, low, high, color=colour, alpha=0.4, linewidth=0, label=f"90 % {name} the echoes")
        along.plot(x, 100 * blocks(truth), color=PALETTE["truth"], linewidth=1.4, label="truth")
        along.set(xlabel="lateral position, mm", ylabel="air in the first 0.8 mm, %", xlim=(-half, half), ylim=(0, 100))
        along.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.13))
        for views, draws, colour, marker in (
            (tests, tested, PALETTE["estimate"], "o"), (case, samples, PALETTE["truth"], "D"),
        ):  # fmt: skip
            true, mean = 100 * views.true.mean((1, 2)), 100 * draws.mean((2, 3))
            low, middle, high = np.quantile(mean, (INTERVAL[0], 0.5, INTERVAL[1]), axis=1, method="weibull")
            means.errorbar(true, middle, (middle - low, high - middle), fmt=marker, color=colour, elinewidth=1, ms=4)
        means.plot((0, 100), (0, 100), color=PALETTE["muted"], linewidth=0.6)
        means.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="true air of the view, %", ylabel="posterior, %")
        means.set_title(f"{len(tests.said)} lungs, and the case", loc="left")
        figure.text(0.01, 0.003, f"Simulated. {RESEARCH_USE}", color=PALETTE["muted"], fontsize=8)
    return figure


def main() -> None:
    """Simulate, fit, reconstruct, judge, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lungs", type=int, default=32, help="with all their events")
    parser.add_argument("--fine", type=int, default=40, help="with one event, on the preset's own grid")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--samples", type=int, default=20, help="of a view")
    options = parser.parse_args()
    file = options.data / "paper.h5"
    if not file.exists():
        sys.exit(f"{file} is missing; make it with python benchmarks/paper_case.py --rf {file}")
    whole = generated(WALKING, options.lungs, options.data / "paper_lungs", options.workers, 2)
    fine = generated(FINE, options.fine, options.data / "paper_fine", options.workers, 4)
    ridge, prior = (
        load_ridge(model_folder(Path("ridge-paper"), ECHOES)),
        load_model(model_folder(Path("prior-strip"), PRIOR)),
    )
    found = [read_views(*one, ridge) for one in heard(whole)]
    lungs = Lungs(*(np.concatenate([getattr(one, field.name) for one in found]) for field in fields(Lungs)))
    straying = Straying.of(lungs)
    recording, cases, config = read_recording(file), read_cases(file), read_origin(file)
    assert cases is not None and config is not None
    case = read_views(recording, cases, config, ridge)
    unguided = prior_views(prior, len(lungs.said) * options.samples)
    result: dict[str, Any] = {
        "error of the blocks": {
            "offset": straying.offset,
            "slope": straying.slope,
            "deviation": float(np.sqrt(straying.covariance[0, 0])),
        }
    }
    result[FINER] = {"ridge": read_events(fine, ridge)}
    drawn, count = {}, len(lungs.said)
    for name, which in ((UNSEEN, lungs), (CASE, case)):
        others = [
            straying if which is case else Straying.of(lungs.part(np.arange(count) != k))
            for k in range(len(which.said))
        ]
        drawn[name] = np.stack(
            [
                one.posterior(said, prior, options.samples, k)
                for k, (one, said) in enumerate(zip(others, blocks(which.said), strict=True))
            ]
        )
        before = unguided[: len(which.said) * options.samples].reshape(len(which.said), options.samples, *SEED_VIEW)
        result[name] = {
            "before the echoes": judged(before, which),
            "after": judged(drawn[name], which),
            "ridge": ridge_scores(which.said, which.smooth, which.half),
        }
    with atomic_path(DOCS / "images" / "paper_view.png") as temporary:
        draw(case, drawn[CASE], lungs, drawn[UNSEEN], unguided).savefig(temporary, format="png", dpi=120)
    about = {
        "command": f"python benchmarks/paper_view.py --lungs {count} --fine {options.fine} --samples {options.samples}",
        "ridge": ridge.trained,
        "fine": options.fine,
        "versions": versions(),
        "case sha256": sha256(file),
    }
    text = table(result, about, count)
    with atomic_path(DOCS / "results" / "paper_view.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(DOCS / "results" / "paper_view.json", {**about, **result})
    print(text)


if __name__ == "__main__":
    main()
