"""The posterior learned from simulated pairs: a diffusion model of lung maps that is told of the echoes.

p(map | RF) with chest wall and alveoli marginalised by the simulator that drew them (simulation-based inference;
Cranmer et al. 2020, arXiv:1911.01429). One folder holds all that is needed to go from a recording to samples: the
network, the transform of the echoes, the pleura detector, and what is read off a map.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save

from lungwave.acoustics.probe import Scan, sequence
from lungwave.config import Config
from lungwave.models.checkpoint import WEIGHTS, write_folder
from lungwave.models.encoder import Conditional
from lungwave.models.precond import Scaling
from lungwave.models.unet import Condition
from lungwave.models.wiener import Centred, Wiener
from lungwave.posterior.conditioning import Conditioner, Read, Scales
from lungwave.posterior.folder import (
    conditional_facts,
    conditional_weights,
    opened,
    pack,
    read_conditional,
    read_reader,
    reader_facts,
    unpack,
)
from lungwave.posterior.pleura import PleuraDetector
from lungwave.posterior.readout import BandReadout, CategoryReadout
from lungwave.posterior.ridge import RidgeModel
from lungwave.posterior.ridge import load_model as load_ridge
from lungwave.posterior.ridge import save_model as save_ridge
from lungwave.repro import manifest, stream
from lungwave.sample import SCHEDULES, Callback, Counted, Levels, generate
from lungwave.types import Frames, UsageError

FORMAT = 1
KIND = "posterior"
CENTER = "center"  # folder in the model's own that holds the estimate which the denoiser works around
CURE = "train one with 'lungwave train CASES --echoes'"
STEPS, SAMPLER = 8, "dpmpp_2m"  # of the default draw: as many calls of the network
# Noise levels of the draw. A map is decided between the spread of its mean (above) and that of its finest structure
# (below); in between, steps of one ratio follow the path better than Karras's, which crowd towards zero.
SCHEDULE, SIGMA_MIN, SIGMA_MAX = "exponential", 0.05, 30.0  # network units
DRAWN = f"{SAMPLER}_{STEPS}_{SCHEDULE}_{SIGMA_MAX:g}_{SIGMA_MIN:g}"  # all of it, for names of files
NOVELTY_QUANTILE, NOVELTY_MARGIN = 0.999, 1.25  # of the training cases
NOVELTY_FLOOR = 0.01  # of the variance of a standardised number: near-constant directions must not raise the alarm


@dataclass(frozen=True)
class Novelty:
    """How unlike the training recordings a recording is: Mahalanobis distance of summaries, over the usual limit."""

    mean: Float[np.ndarray, " number"]
    scale: Float[np.ndarray, " number"]
    whiten: Float[np.ndarray, "number number"]
    limit: float

    @classmethod
    def fit(cls, conditions: Sequence[Condition]) -> Novelty:
        """From undisturbed training frames."""
        numbers = np.concatenate([_numbers(cond) for cond in conditions])
        mean, scale = numbers.mean(0), numbers.std(0) + 1e-6
        standard = (numbers - mean) / scale
        values, vectors = np.linalg.eigh(np.cov(standard.T))
        whiten = vectors / np.sqrt(values.clip(0) + NOVELTY_FLOOR)
        far = np.linalg.norm(standard @ whiten, axis=1)
        return cls(mean, scale, whiten, float(np.quantile(far, NOVELTY_QUANTILE) * NOVELTY_MARGIN))

    def __call__(self, cond: Condition) -> Float[np.ndarray, " frame"]:
        """Above 1: unlike any recording of the training."""
        return np.linalg.norm((_numbers(cond) - self.mean) / self.scale @ self.whiten, axis=1) / self.limit


def _numbers(cond: Condition) -> Float[np.ndarray, "frame number"]:
    """Means of images over depth blocks, spread of traces over time blocks, and the condition's vector."""
    assert cond.image is not None and cond.traces is not None and cond.vector is not None
    blocks = [part.mean((2, 3)) for part in cond.image[:, :, :].tensor_split(4, 2)]
    times = [part.square().mean((1, 2, 3))[:, None] for part in cond.traces.tensor_split(8, 3)]
    return torch.cat([*blocks, *times, cond.vector[:, 1:]], 1).double().numpy()


@dataclass(frozen=True)
class Drawn:
    """Posterior samples of a batch of frames."""

    maps: Float[np.ndarray, "frame sample z x"]  # fraction 0-1
    bands: Float[np.ndarray, "frame sample out"]  # percent aeration of every band, then of the whole; fraction 0-1
    categories: Float[np.ndarray, "frame sample category"]
    pleura_depth: Float[np.ndarray, "frame x"]  # [m]
    doubt: Float[np.ndarray, "frame x"]  # [m]
    novelty: Float[np.ndarray, " frame"]  # > 1: unlike any recording of the training
    calls: int  # of the network, for each sample


@dataclass(frozen=True)
class PosteriorModel:
    """Everything between a recording and samples of the map."""

    denoiser: Conditional
    scaling: Scaling
    scales: Scales
    detector: PleuraDetector
    bands: BandReadout
    categories: CategoryReadout
    novelty: Novelty
    prior_std: Float[np.ndarray, "z x"]  # of the training maps, fraction
    center: RidgeModel | None  # whose map the denoiser works around
    config: Config  # of the acquisition and the map
    about: Mapping[str, Any]  # how it was trained

    @property
    def scan(self) -> Scan:
        """The acquisition that the model was trained for."""
        return sequence(self.config)

    @property
    def trained(self) -> dict[str, Any]:
        """How it was trained, for manifests."""
        return dict(self.about.get("trained", {}))

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return self.config.map.rows, self.config.map.columns

    def condition(self, rf: Frames, scan: Scan | None = None) -> tuple[Condition, Read]:
        """What the network is told of frames that are like the trained acquisition."""
        if scan is None or scan.equals(self.scan):
            return self._conditioner(rf, self.scales, self.scaling)
        return Conditioner(self.config, scan, self.detector, center=self.center)(rf, self.scales, self.scaling)

    @cached_property
    def _conditioner(self) -> Conditioner:
        """That of the trained acquisition, with its delay tables."""
        return Conditioner(self.config, self.scan, self.detector, center=self.center)

    def draw(
        self, rf: Frames, count: int, *, seed: int = 0, names: Sequence[int] | None = None, scan: Scan | None = None,
        sampler: str = SAMPLER, steps: int = STEPS, levels: Levels | None = None, callback: Callback | None = None,
    ) -> Drawn:  # fmt: skip
        """``count`` posterior samples of each frame; ``levels``: other noise levels; ``callback`` is told of steps.

        Sample k of frame ``names[i]`` is the same in every batch of frames and for every count. Raises UsageError for
        frames that hold values that are not finite.
        """
        if count < 1:
            raise UsageError(f"{count} posterior samples; draw at least one")
        if not np.isfinite(rf).all():
            raise UsageError("the RF holds values that are not finite; repair the recording, or leave the frame out")
        given = SCHEDULES[SCHEDULE](steps, SIGMA_MIN, SIGMA_MAX) if levels is None else levels
        cond, read = self.condition(rf, scan)
        with torch.no_grad():
            known = self.denoiser.encode(cond)
        assert known is not None
        maps, bands, kinds, calls = [], [], [], 0
        for i in range(len(rf)):
            name = i if names is None else int(names[i])
            one = known.take(torch.full((count,), i))
            drawn, calls = self._one(one, count, seed, name, sampler, given, callback)
            maps.append(drawn)
            bands.append(self.bands(drawn, stream(seed, "posterior/bands", name)))
            kinds.append(self.categories(drawn))
        return Drawn(
            np.stack(maps), np.stack(bands), np.stack(kinds), read.pleura_depth, read.doubt, self.novelty(cond), calls
        )

    def _one(
        self, cond: Condition, count: int, seed: int, name: int, sampler: str, levels: Levels, callback: Callback | None
    ) -> tuple[Float[np.ndarray, "sample z x"], int]:
        counted = Counted(self.denoiser.denoiser)
        key = int(stream(seed, "posterior", name).integers(2**31))
        drawn = generate(
            counted, (1, *self.size), count, seed=key, sampler=sampler, schedule=levels, batch=count, cond=cond,
            callback=callback,
        )  # fmt: skip
        return self.scaling.to_data(drawn)[:, 0].clamp(0, 1).numpy().astype(np.float64), counted.calls


# ---------------------------------------------------------------------------------------------------------- the folder


def save_posterior(
    folder: Path, model: PosteriorModel, *, card: str, command: str, settings: Mapping[str, Any], seed: int,
    parents: Sequence[Path] = (), dtype: str = "float32",
) -> None:  # fmt: skip
    """Write a model folder: model.safetensors, config.json, README.md."""
    weights = conditional_weights(model.denoiser, dtype, str(folder))
    tables = ("scales", "detector", "bands", "categories", "novelty", "prior_std")
    weights |= pack({name: getattr(model, name) for name in tables})
    about = {
        "format": FORMAT,
        "kind": KIND,
        **conditional_facts(model.denoiser),
        "center": None if model.center is None else CENTER,
        **reader_facts(model.config, model.scaling, model.detector),
        "categories": list(model.categories.names),
        "novelty_limit": model.novelty.limit,
        "storage": dtype,
        "parameters": sum(p.numel() for p in model.denoiser.parameters()),
        "command": command,
        **dict(model.about),
        **manifest(json.dumps(dict(settings), sort_keys=True), seed, parents),
    }
    if model.center is not None:
        text = (
            f"# The estimate that the posterior works around\n\nA copy of the model made by `{model.center.command}`.\n"
        )
        save_ridge(model.center, folder / CENTER, text, model.center.command, list(parents))
    write_folder(folder, save(weights), about, card)


def load_posterior(folder: Path) -> PosteriorModel:
    """Read a model folder; nothing in it is executed.

    Raises UsageError for a folder that is missing, damaged, of another kind or newer format, or trained on echoes that
    were read in another way.
    """
    with opened(folder, KIND, FORMAT, CURE) as (about, state):
        config, scaling, scales, detector = read_reader(about, state, str(folder))
        center = None if about.get("center") is None else load_ridge(folder / CENTER)
        return PosteriorModel(
            read_conditional(about, state, str(folder / WEIGHTS), Wiener if center is None else Centred),
            scaling,
            scales,
            detector,
            BandReadout(**unpack(state, "bands")),
            CategoryReadout(tuple(about["categories"]), **unpack(state, "categories")),
            Novelty(**unpack(state, "novelty"), limit=float(about["novelty_limit"])),
            state["prior_std"].double().numpy(),
            center,
            config,
            {key: about[key] for key in ("trained", "weights_sha256") if key in about},
        )
