"""Models that go from echoes to aeration, behind one contract: frames in, ``Sampled`` or ``Estimated`` out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Float, Integer

from lungwave import __version__
from lungwave.acoustics.probe import Scan, sequence
from lungwave.acoustics.receive import record_samples
from lungwave.config import Config
from lungwave.evaluate.reconstruction import LEVEL, Estimated, Method, Sampled
from lungwave.models.regressor import MeanMap
from lungwave.models.unet import Condition
from lungwave.posterior.amortized import KIND as POSTERIOR
from lungwave.posterior.amortized import PosteriorModel, load_posterior
from lungwave.posterior.baselines import KIND as REGRESSOR
from lungwave.posterior.baselines import RegressorModel, answers, load_regressor
from lungwave.posterior.folder import kind_of
from lungwave.posterior.linear import LEVELS
from lungwave.posterior.reconstruct import out_of_range
from lungwave.posterior.ridge import RidgeModel, load_model
from lungwave.repro import sha256
from lungwave.types import Frames, UsageError

FILES = ("config.json", "model.safetensors")  # of a model folder, that decide what it says


@dataclass(frozen=True)
class Model(ABC):
    """A model that is judged."""

    name: str  # in tables
    samples: ClassVar[bool]  # whether it draws samples

    @property
    @abstractmethod
    def config(self) -> Config:
        """Acquisition and map that it was trained on, with the seed of its training cases."""

    @property
    def method(self) -> Method:
        """What is known beside its predictions."""
        return Method(self.name)

    @abstractmethod
    def __call__(
        self, rf: Frames, index: Integer[np.ndarray, " frame"], scan: Scan, count: int, seed: int
    ) -> Sampled | Estimated:
        """Predictions of frames; frame ``index[i]`` draws the same ``count`` samples in every batch."""

    def mean(self) -> tuple[Float[np.ndarray, " out"], Float[np.ndarray, "z x"]] | None:
        """Mean numbers and mean map of its training cases, where it kept them."""
        return None


@dataclass(frozen=True)
class Ridge(Model):
    """The ridge baseline."""

    model: RidgeModel
    samples = False

    @property
    def config(self) -> Config:
        """What it was trained on."""
        return self.model.config

    def __call__(
        self, rf: Frames, index: Integer[np.ndarray, " frame"], scan: Scan, count: int, seed: int
    ) -> Estimated:
        """Estimates with conformal intervals; nothing is drawn."""
        found = self.model.predict(self.model.reader(scan)(rf))
        level = LEVELS.index(LEVEL)
        band, pixel = found.bands_half[level], found.aeration_half[level]
        return Estimated(
            found.bands, (found.bands - band).clip(0, 1), (found.bands + band).clip(0, 1),
            found.aeration, (found.aeration - pixel).clip(0, 1), (found.aeration + pixel).clip(0, 1), found.novelty,
        )  # fmt: skip

    def mean(self) -> tuple[Float[np.ndarray, " out"], Float[np.ndarray, "z x"]]:
        """The biases of its heads, which were centred on the training cases; lateral positions are alike."""
        rows, columns = self.config.map.rows, self.config.map.columns
        return self.model.bands.bias, np.broadcast_to(self.model.map.bias[:, None], (rows, columns))


@dataclass(frozen=True)
class Regression(Model):
    """A network that gives one answer."""

    model: RegressorModel
    samples = False

    @property
    def config(self) -> Config:
        """What it was trained on."""
        return self.model.config

    def __call__(
        self, rf: Frames, index: Integer[np.ndarray, " frame"], scan: Scan, count: int, seed: int
    ) -> Estimated:
        """Estimates with conformal intervals; nothing is drawn."""
        found = self.model.predict(rf, LEVEL, scan)
        return Estimated(**{item.name: getattr(found, item.name) for item in fields(Estimated)})

    def mean(self) -> tuple[Float[np.ndarray, " out"], Float[np.ndarray, "z x"]] | None:
        """What the mean map of the training says, whatever the echoes; no other network kept it."""
        if not isinstance(self.model.net, MeanMap):
            return None
        bands, maps = answers(self.model.net, self.model.scaling, Condition(vector=torch.zeros(1, 1)))
        return bands[0], maps[0]


@dataclass(frozen=True)
class Posterior(Model):
    """A diffusion posterior."""

    model: PosteriorModel
    samples = True

    @property
    def config(self) -> Config:
        """What it was trained on."""
        return self.model.config

    @property
    def method(self) -> Method:
        """With its categories and its prior."""
        return Method(self.name, self.model.categories.names, self.model.prior_std)

    def __call__(self, rf: Frames, index: Integer[np.ndarray, " frame"], scan: Scan, count: int, seed: int) -> Sampled:
        """Drawn by the default sampler; maps as float16, like the files of posteriors."""
        drawn = self.model.draw(rf, count, seed=seed, names=index.tolist(), scan=scan)
        return Sampled(drawn.maps.astype(np.float16), drawn.bands, drawn.categories.mean(1), drawn.novelty)


# Kind in a model folder's config.json -> how it is opened. A new kind of model is judged by adding a line.
KINDS: dict[str, Callable[[str, Path], Model]] = {
    "ridge": lambda name, folder: Ridge(name, load_model(folder)),
    REGRESSOR: lambda name, folder: Regression(name, load_regressor(folder)),
    POSTERIOR: lambda name, folder: Posterior(name, load_posterior(folder)),
}


def open_model(folder: Path, name: str) -> Model:
    """The model of a folder, by its kind. UsageError for what is no such folder."""
    kind = kind_of(folder)
    if kind is None:
        raise UsageError(f"{folder} is no model folder; give one that 'lungwave fit' or 'train --echoes' wrote")
    if kind not in KINDS:
        raise UsageError(f"{folder} holds a '{kind}' model, which reads no echoes; give one of {', '.join(KINDS)}")
    return KINDS[kind](name, folder)


def model_digest(folder: Path) -> str:
    """SHA-256 of the model's files together with the version of this program: what decides its predictions."""
    return "-".join([*(sha256(folder / name)[:16] for name in FILES), __version__])


def check_unseen(model: Model, config: Config, folder: Path) -> None:
    """UsageError where the cases of ``folder`` have the seed, and so the anatomies, of the model's training."""
    if config.seed == model.config.seed:
        raise UsageError(
            f"{folder} has seed {config.seed}, on which {model.method.name} was trained; generate the test with "
            "another --seed"
        )


def check_fit(model: Model, config: Config, scan: Scan, samples: int) -> None:
    """UsageError where the model was made for other cases than those of ``config``: another map or acquisition."""
    name, trained = model.method.name, model.config
    if config.map != trained.map:
        raise UsageError(f"{name} was trained on another map ({trained.map}); generate the test with its settings")
    reason = out_of_range(scan, samples, sequence(trained), record_samples(trained))
    if reason is not None:
        raise UsageError(f"{name} does not fit these cases: {reason}; judge models of this acquisition")
