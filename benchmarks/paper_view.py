"""The 8 x 256 view of the original report, reconstructed from the echoes of the paper preset.

    python benchmarks/paper_case.py                 # simulates data/paper.h5, a case of the preset as it is
    python benchmarks/paper_view.py [--events 600] [--lungs 32] [--workers 2] [--data data] [--samples 32]

A case of the paper preset is 16 focused events of a walking aperture, and each says something about the lung below it.
So a ridge that reads one event is enough: it is fitted to --events lungs of the preset with a single event. What it
says of a lung, in blocks of 0.4 mm, then guides the shipped prior of 8 x 256 views, a diffusion model, to samples of
the view. How far the blocks stray from the truth, and together how far, is measured on half of --lungs other lungs with
all their events; the other half and the case of paper_case.py are judged. Lungs are simulated on a grid 38 % coarser
than the preset's and only as long as the deepest pleura needs; the case is the preset's own. Rerunning goes on where it
was stopped. Writes docs/images/paper_view.png, docs/results/paper_view.{md,json}.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from jaxtyping import Float
from matplotlib.figure import Figure
from scipy.linalg import toeplitz
from torch import Tensor

from lungwave import figures
from lungwave.acoustics.probe import Scan
from lungwave.acoustics.receive import output_samples
from lungwave.config import Config, preset
from lungwave.data.dataset import read_shards
from lungwave.data.hdf5 import read_cases, read_recording
from lungwave.data.schema import CaseTable
from lungwave.evaluate.scores import crps_fair
from lungwave.figures import AERATION, PALETTE
from lungwave.models.checkpoint import Model as Prior
from lungwave.models.checkpoint import load_model
from lungwave.phantom.aeration import SEED_VIEW, seed_view
from lungwave.posterior.likelihood import Differentiable, GaussianNoise
from lungwave.posterior.linear import LEVELS as RIDGE_LEVELS
from lungwave.posterior.ridge import RidgeModel, noisy_frames
from lungwave.posterior.ridge import load_model as load_ridge
from lungwave.posterior.samplers import SAMPLERS, Problem
from lungwave.repro import atomic_path, sha256, versions, write_json
from lungwave.sample import Seeds, generate
from lungwave.shipped import PRIOR, model_folder
from lungwave.types import MM, NS, RESEARCH_USE, UM, Frames

DOCS = Path(__file__).resolve().parents[1] / "docs"
COARSE = {
    "grid.spacing": 34 * UM, "grid.depth": 31.96 * MM, "grid.width": 13.94 * MM, "grid.time_step": 9.1 * NS,
    "grid.steps": 4620,
}  # fmt: skip
ONE_EVENT = {**COARSE, "seed": 7, "probe.array_elements": 64, "sequence.events": 1, "map.columns": 24}
WHOLE = {**COARSE, "seed": 8}
SNR = 30.0  # [dB] of the channel data that are judged
BLOCK = 4  # columns of the view that are one number of the data
LEVELS = 50  # of the sampler
INTERVAL = (5, 95)  # [percentile]


@dataclass(frozen=True)
class Lungs:
    """Lungs with all their events: what the ridge says of their views, and what is true."""

    said: Float[np.ndarray, "lung 8 256"]
    half: Float[np.ndarray, "lung 8 256"]  # of its own 90 % intervals
    smooth: Float[np.ndarray, "lung 8 256"]  # truth at 0.5 mm, which the ridge was taught
    sharp: Float[np.ndarray, "lung 8 256"]  # truth at 0.15 mm: the view of the report
    novelty: Float[np.ndarray, "lung event"]  # > 1: echoes unlike any in training

    def part(self, which: slice) -> Lungs:
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
        said, true = blocks(lungs.said), blocks(lungs.sharp)
        slope, offset = np.polyfit(true.ravel(), said.ravel(), 1)
        error = said - offset - slope * true
        count = error.shape[1]
        lags = [float((error[:, lag:] * error[:, : count - lag]).mean()) for lag in range(count)]
        values, vectors = np.linalg.eigh(toeplitz(lags))
        values = np.maximum(values, 0.02 * lags[0])
        return cls(float(offset), float(slope), (vectors * values) @ vectors.T)

    def posterior(
        self, said: Float[np.ndarray, "lung block"], prior: Prior, samples: int, seed: int
    ) -> Float[np.ndarray, "lung sample 8 256"]:
        """Views that the prior draws under the blocks, whitened so that their errors have unit covariance."""
        values, vectors = np.linalg.eigh(self.covariance)
        whiten = torch.from_numpy((vectors / np.sqrt(values)) @ vectors.T)
        scaling, found = prior.scaling, []

        def seen(maps: Float[Tensor, "n 1 8 256"]) -> Float[Tensor, "n block"]:
            means = torch.nn.functional.avg_pool2d(scaling.to_data(maps), (SEED_VIEW[0], BLOCK))
            return (self.offset + self.slope * means.flatten(1)) @ whiten.to(maps)

        for lung, one in enumerate(said):
            y = (torch.from_numpy(one) @ whiten).repeat(samples, 1)
            problem = Problem(y, Differentiable(seen), prior.denoiser, GaussianNoise(1.0), (1, *SEED_VIEW))
            drawn = SAMPLERS["daps_rto"](problem, Seeds(seed, range(samples), f"paper view {lung}"), levels=LEVELS)
            found.append(scaling.to_data(drawn.maps).clamp(0, 1).numpy()[:, 0])
        return np.stack(found)


def blocks(views: Float[np.ndarray, "*n 8 256"]) -> Float[np.ndarray, "*n block"]:
    """Mean aeration of the 0.8 mm, over ``BLOCK`` columns."""
    means = views.mean(-2)
    return means.reshape(*means.shape[:-1], -1, BLOCK).mean(-1)


def generated(config: Config, cases: int, folder: Path, workers: int) -> Path:
    """Folder of ``lungwave generate``; what is there already is kept."""
    settings = folder.with_suffix(".json")
    settings.parent.mkdir(parents=True, exist_ok=True)
    settings.write_text(config.to_json(), encoding="utf-8")
    words = ["--config", settings, "--cases", f"0:{cases}", "--out", folder, "--shard-size", 10, "--workers", workers]
    lungwave("generate", *words)
    return folder


def lungwave(*words: Any) -> None:
    """A command of lungwave; the script ends where it fails."""
    subprocess.run([sys.executable, "-m", "lungwave", *map(str, words)], check=True)


def read_views(rf: Frames, cases: CaseTable, scan: Scan, ridge: RidgeModel) -> Lungs:
    """The view below a walking aperture: every event read as a recording of its own, its columns put in their place."""
    config = ridge.config
    alone, samples = ridge.scan, output_samples(config.grid.steps * config.grid.time_step, scan.sampling_frequency)
    for event in range(scan.transmits):
        local = scan.event_elements(event) - scan.origins[event]
        if not (np.allclose(local, alone.elements, atol=1e-7) and np.allclose(scan.delays[event], alone.delays[0])):
            raise SystemExit(f"event {event} is not the one that the ridge reads")
    events = rf[:, :, :samples].reshape(-1, 1, samples, rf.shape[3])
    found = ridge.predict(ridge.reader()(events))
    width, rows = config.map.columns, SEED_VIEW[0]
    x = (np.arange(SEED_VIEW[1]) - (SEED_VIEW[1] - 1) / 2) * config.map.pixel
    nearest = np.abs(x[:, None] - scan.origins[:, 0]).argmin(1)
    column = np.rint((x - scan.origins[nearest, 0]) / config.map.pixel + (width - 1) / 2).astype(int).clip(0, width - 1)

    def stitched(values: np.ndarray) -> Float[np.ndarray, "lung 8 256"]:
        each = values[:, :rows].reshape(len(rf), scan.transmits, rows, width)
        return each[:, nearest, :, column].transpose(1, 2, 0)

    level = RIDGE_LEVELS.index(0.9)
    smooth, sharp = (
        np.stack([seed_view(one.astype(float), config.map.pixel) for one in maps])
        for maps in (cases.smooth, cases.sharp)
    )
    novelty = found.novelty.reshape(len(rf), -1)
    return Lungs(stitched(found.aeration), stitched(found.aeration_half[level]), smooth, sharp, novelty)


def scores(samples: Float[np.ndarray, "lung sample *field"], truth: Float[np.ndarray, "_ ..."]) -> dict[str, Any]:
    """Error of the mean, CRPS, and how often the truth lies within the 90 % interval, with the spread over lungs."""
    low, high = np.percentile(samples, INTERVAL, axis=1)
    rest = tuple(range(1, truth.ndim))
    each = {
        "error": np.abs(samples.mean(1) - truth).mean(rest),
        "crps": crps_fair(samples, truth).mean(rest),
        "inside": ((truth >= low) & (truth <= high)).mean(rest),
    }
    return {name: float(values.mean()) for name, values in each.items()}


def judged(samples: Float[np.ndarray, "lung sample 8 256"], lungs: Lungs) -> dict[str, dict[str, Any]]:
    """Scores of the view, pixel by pixel, of its blocks, and of its mean."""
    return {
        "pixels": scores(samples, lungs.sharp),
        "blocks": scores(blocks(samples), blocks(lungs.sharp)),
        "whole view": scores(samples.mean((2, 3)), lungs.sharp.mean((1, 2))),
    }


def prior_views(prior: Prior, count: int) -> Float[np.ndarray, "n 8 256"]:
    """Views that the prior draws without any echoes."""
    with torch.no_grad():
        maps = generate(prior.denoiser, (1, *SEED_VIEW), count, seed=1)
    return prior.scaling.to_data(maps).clamp(0, 1).numpy()[:, 0]


def table(result: dict[str, Any], about: dict[str, Any], lungs: int) -> str:
    """The page of the results."""
    lines = [
        "# The 8 x 256 view, reconstructed from the echoes of the paper preset", "",
        f"Made by `{about['command']}`. {RESEARCH_USE}", "",
        "![The case: truth, ridge, posterior; its blocks; the mean of every view](../images/paper_view.png)", "",
        "| lungs | what | | error | CRPS | 90 % interval holds |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    names = {"unseen lungs": f"{lungs} unseen lungs", "the case": "the case of the [paper preset](paper_case.md)"}
    for lung, name in names.items():
        for what in ("whole view", "blocks", "pixels"):
            for when in ("before the echoes", "after"):
                row = result[lung][when][what]
                numbers = f"{row['error']:.3f} | {row['crps']:.3f} | {100 * row['inside']:.0f} %"
                lines.append(f"| {name} | {what} | {when} | {numbers} |")
        row = result[lung]["ridge"]
        lines.append(f"| {name} | map at 0.5 mm | ridge alone | {row['error']:.3f} | | {100 * row['inside']:.0f} % |")
    error, ridge = result["error of the blocks"], about["ridge"]
    lines += [
        "",
        "Errors and CRPS in fractions of air. The view is the aeration of the first 0.8 mm at 0.15 mm; a block is the "
        f"mean of {BLOCK} columns of it, 0.4 mm. The ridge was fitted to {ridge['cases']} lungs with one event each. "
        f"Of a block it says {error['offset']:.2f} + {error['slope']:.2f} times the truth, give or take "
        f"{error['deviation']:.2f}. Alveoli are smaller than what sound of 0.3 mm wavelength resolves: their places in "
        "a sample are the prior's, their density along the probe is the echoes'.",
        "",
    ]
    return "\n".join(lines)


def draw(case: Lungs, samples: np.ndarray, tests: Lungs, tested: np.ndarray, unguided: np.ndarray) -> Figure:
    """The case, from its truth to samples; its blocks along the probe; the mean of every view."""
    truth, drawn = case.sharp[0], samples[0]
    half = SEED_VIEW[1] * 0.1 / 2
    strips = [
        ("truth", truth),
        ("truth, smoothed to 0.5 mm", case.smooth[0]),
        ("what the ridge says of it", case.said[0]),
        ("mean of the posterior", drawn.mean(0)),
        *((f"sample {k + 1}", one) for k, one in enumerate(drawn[:3])),
    ]
    with figures.style(9.0):
        figure = Figure(figsize=(9.6, 9.0), layout="constrained", facecolor="#ffffff")
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
            low, high = np.percentile(100 * blocks(values), INTERVAL, axis=0)
            along.fill_between(x, low, high, color=colour, alpha=0.4, linewidth=0, label=f"90 % {name} the echoes")
        along.plot(x, 100 * blocks(truth), color=PALETTE["truth"], linewidth=1.4, label="truth")
        along.set(xlabel="lateral position, mm", ylabel="air in the first 0.8 mm, %", xlim=(-half, half), ylim=(0, 100))
        along.legend(frameon=False, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.13))
        for views, draws, colour, marker in (
            (tests, tested, PALETTE["estimate"], "o"), (case, samples, PALETTE["truth"], "D"),
        ):  # fmt: skip
            true, mean = 100 * views.sharp.mean((1, 2)), 100 * draws.mean((2, 3))
            low, middle, high = np.percentile(mean, (INTERVAL[0], 50, INTERVAL[1]), axis=1)
            means.errorbar(true, middle, (middle - low, high - middle), fmt=marker, color=colour, elinewidth=1, ms=4)
        means.plot((0, 100), (0, 100), color=PALETTE["muted"], linewidth=0.6)
        means.set(xlim=(0, 100), ylim=(0, 100), aspect="equal", xlabel="true air of the view, %", ylabel="posterior, %")
        means.set_title(f"{len(tests.said)} lungs, and the case", loc="left")
        figure.text(0.01, 0.003, f"Simulated. {RESEARCH_USE}", color=PALETTE["muted"], fontsize=8)
    return figure


def main() -> None:
    """Simulate, fit, reconstruct, judge, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=600, help="lungs with one event that the ridge is fitted to")
    parser.add_argument("--lungs", type=int, default=32, help="with all events, half to measure, half to judge")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--samples", type=int, default=32, help="of a view")
    options = parser.parse_args()
    paper = preset("paper")
    events = generated(paper.override(ONE_EVENT), options.events, options.data / "paper_events", options.workers)
    walked = generated(paper.override(WHOLE), options.lungs, options.data / "paper_lungs", options.workers)
    folder = options.data / f"ridge-paper-{options.events}"
    if not (folder / "config.json").exists():
        lungwave("fit", events, "--out", folder)
    ridge, prior = load_ridge(folder), load_model(model_folder(Path("prior-strip"), PRIOR))
    held = list(read_shards(walked))
    config = paper.override(WHOLE)
    found = [
        read_views(noisy_frames(recording.rf, cases, config, (SNR, SNR), 0), cases, recording.scan, ridge)
        for recording, cases in held
    ]
    lungs = Lungs(*(np.concatenate([getattr(one, f.name) for one in found]) for f in fields(Lungs)))
    half = options.lungs // 2
    straying, tests = Straying.of(lungs.part(slice(half))), lungs.part(slice(half, None))
    recording, cases = read_recording(options.data / "paper.h5"), read_cases(options.data / "paper.h5")
    assert cases is not None
    case = read_views(recording.rf, cases, recording.scan, ridge)
    unguided = prior_views(prior, len(tests.said) * options.samples)
    result: dict[str, Any] = {
        "error of the blocks": {
            "offset": straying.offset,
            "slope": straying.slope,
            "deviation": float(np.sqrt(straying.covariance[0, 0])),
        }
    }
    drawn = {}
    for name, which in (("unseen lungs", tests), ("the case", case)):
        drawn[name] = straying.posterior(blocks(which.said), prior, options.samples, seed=0)
        before = unguided[: len(which.said) * options.samples].reshape(len(which.said), options.samples, *SEED_VIEW)
        result[name] = {
            "before the echoes": judged(before, which),
            "after": judged(drawn[name], which),
            "ridge": {
                "error": float(np.abs(which.said - which.smooth).mean()),
                "inside": float((np.abs(which.said - which.smooth) <= which.half).mean()),
                "novelty": which.novelty.tolist(),
            },
        }
    with atomic_path(DOCS / "images" / "paper_view.png") as temporary:
        draw(case, drawn["the case"], tests, drawn["unseen lungs"], unguided).savefig(temporary, format="png", dpi=120)
    about = {
        "command": f"python benchmarks/paper_view.py --events {options.events} --lungs {options.lungs} "
        f"--samples {options.samples}",
        "ridge": ridge.trained,
        "versions": versions(),
        "case sha256": sha256(options.data / "paper.h5"),
    }
    text = table(result, about, len(tests.said))
    with atomic_path(DOCS / "results" / "paper_view.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(DOCS / "results" / "paper_view.json", {**about, **result})
    print(text)


if __name__ == "__main__":
    main()
