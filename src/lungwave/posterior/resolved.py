"""The posterior of resolved lungs learned from simulated pairs, and the prior that waves guide: one network.

Where it is told of the echoes it draws from p(resolved map | RF, wall); where it is told nothing, from p(resolved map).
Guidance works on the second alone: on the first it would count the echoes twice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from lungwave.acoustics.probe import Scan, sequence
from lungwave.config import Config
from lungwave.models.checkpoint import SPECTRUM, WEIGHTS, plain, write_folder
from lungwave.models.encoder import Conditional
from lungwave.models.precond import Denoiser, Scaling
from lungwave.models.unet import Condition
from lungwave.models.wiener import Wiener
from lungwave.phantom.resolved import CHANNELS, resolved_config, resolved_size
from lungwave.posterior.conditioning import Scales
from lungwave.posterior.discrepancy import Discrepancy
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
from lungwave.posterior.linear import Linear
from lungwave.posterior.outline import Outline
from lungwave.posterior.pleura import PleuraDetector
from lungwave.posterior.resolved_pairs import Guess, ResolvedConditioner
from lungwave.repro import manifest, stream
from lungwave.sample import SCHEDULES, Callback, Levels, generate
from lungwave.types import Frames, LungwaveError, UsageError

FORMAT = 1
KIND = "resolved posterior"
CURE = "train one with 'lungwave train CASES --echoes --field resolved'"
STEPS, SAMPLER = 12, "dpmpp_2m"  # of the default draw: as many calls of the network
SCHEDULE, SIGMA_MIN, SIGMA_MAX = "exponential", 0.03, 30.0  # network units


class Untold(Denoiser):
    """A conditional denoiser that is never told of any echoes: the prior."""

    def __init__(self, denoiser: Wiener, images: int, numbers: int) -> None:
        """``images`` and ``numbers`` that it is told of where it is told."""
        super().__init__()
        self.denoiser, self.images, self.numbers = denoiser, images, numbers

    def forward(
        self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """The clean map."""
        del cond
        silent = Condition(
            image=x.new_zeros(len(x), self.images, *x.shape[2:]), vector=x.new_zeros(len(x), self.numbers)
        )
        return self.denoiser(x, sigma, silent)

    def start(
        self, noise: Float[Tensor, "n c z x"], sigma: float, cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """That of the denoiser."""
        del cond
        return self.denoiser.start(noise, sigma, None)

    def error_scale(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """That of the denoiser."""
        return self.denoiser.error_scale(sigma)


@dataclass(frozen=True)
class ResolvedModel:
    """Everything between a recording under a known wall and samples of the resolved map."""

    denoiser: Conditional
    scaling: Scaling
    scales: Scales
    detector: PleuraDetector
    outline: Outline
    discrepancy: Discrepancy  # what the forward model leaves out, in units of the echoes' RMS
    prior_std: Float[np.ndarray, "z x"]  # of the macroscopic maps it was trained on
    drawn: Config  # of the acquisition, the lungs and their macroscopic maps
    about: Mapping[str, Any]  # how it was trained

    @property
    def config(self) -> Config:
        """The same, with maps on the solver's grid."""
        return resolved_config(self.drawn)

    @property
    def scan(self) -> Scan:
        """The acquisition that the model was trained for."""
        return sequence(self.config)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the map."""
        return resolved_size(self.drawn)

    @property
    def refines(self) -> bool:
        """Whether it learned what to make of a guess."""
        return bool(self.about.get("trained", {}).get("refines", False))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns."""
        return (CHANNELS, *self.size)

    @property
    def inner(self) -> Wiener:
        """The denoiser around the network."""
        assert isinstance(self.denoiser.denoiser, Wiener)
        return self.denoiser.denoiser

    @property
    def prior(self) -> Untold:
        """The network that is not told of any echoes."""
        config = plain(self.inner).config
        return Untold(self.inner, config.image_channels - CHANNELS, config.vector)

    def condition(self, rf: Frames, top: Float[np.ndarray, "frame x"], guess: Guess | None = None) -> Condition:
        """What the network is told of frames whose maps begin at ``top`` [m], and of a guess at each."""
        return self._conditioner.tell(rf, top, self.scales, self.scaling, guess)

    @cached_property
    def _conditioner(self) -> ResolvedConditioner:
        return ResolvedConditioner(self.config, self.scan, self.detector, center=self.outline)

    def draw(
        self, rf: Frames, top: Float[np.ndarray, "frame x"], count: int, *, seed: int = 0,
        names: Sequence[int] | None = None, sampler: str = SAMPLER, steps: int = STEPS, levels: Levels | None = None,
        first: int = 0, callback: Callback | None = None,
    ) -> Float[Tensor, "frame sample c z x"]:  # fmt: skip
        """Resolved maps number ``first`` to ``first + count`` of each frame, in network units.

        Sample k of frame ``names[i]`` is the same in every batch of frames and for every count. Raises UsageError for
        frames that hold values that are not finite.
        """
        if count < 1:
            raise UsageError(f"{count} posterior samples; draw at least one")
        if not np.isfinite(rf).all():
            raise UsageError("the RF holds values that are not finite; repair the recording, or leave the frame out")
        given = SCHEDULES[SCHEDULE](steps, SIGMA_MIN, SIGMA_MAX) if levels is None else levels
        with torch.no_grad():
            known = self.denoiser.encode(self.condition(rf, top))
            assert known is not None
            drawn = []
            for i in range(len(rf)):
                key = int(stream(seed, "resolved", i if names is None else int(names[i])).integers(2**31))
                one = known.take(torch.full((count,), i))
                drawn.append(
                    generate(
                        self.inner, self.shape, count, seed=key, first=first, sampler=sampler, schedule=given,
                        batch=count, cond=one, callback=callback,
                    )
                )  # fmt: skip
        return torch.stack(drawn)

    def draw_each(
        self, rf: Frames, top: Float[np.ndarray, "frame x"], guess: Guess | None = None, *, seed: int, first: int = 0
    ) -> Float[Tensor, "frame c z x"]:
        """One map of each frame, told of a guess at it and of what that leaves of the echoes, where one is given."""
        with torch.no_grad():
            return generate(
                self.inner, self.shape, len(rf), seed=seed, first=first, sampler=SAMPLER, batch=len(rf),
                cond=self.denoiser.encode(self.condition(rf, top, guess)),
                schedule=SCHEDULES[SCHEDULE](STEPS, SIGMA_MIN, SIGMA_MAX),
            )  # fmt: skip


def save_resolved(
    folder: Path, model: ResolvedModel, *, card: str, command: str, settings: Mapping[str, Any], seed: int,
    parents: Sequence[Path] = (), dtype: str = "float32",
) -> None:  # fmt: skip
    """Write a model folder: model.safetensors, config.json, README.md."""
    weights = conditional_weights(model.denoiser, dtype, str(folder))
    weights |= pack({"scales": model.scales, "detector": model.detector, "prior_std": model.prior_std})
    weights |= pack({"outline": model.outline, "outline.head": model.outline.head})
    # the covariance would take as much room as the network, its pairs a tenth of it
    weights["pairs"] = torch.from_numpy(np.asarray(model.discrepancy.differences, np.float16))
    about = {
        "format": FORMAT,
        "kind": KIND,
        **conditional_facts(model.denoiser),
        **reader_facts(model.config, model.scaling, model.detector),
        "map": asdict(model.drawn.map),
        "shrinkage": model.discrepancy.shrinkage,
        "storage": dtype,
        "parameters": sum(p.numel() for p in model.denoiser.parameters()),
        "command": command,
        **dict(model.about),
        **manifest(json.dumps(dict(settings), sort_keys=True), seed, parents),
    }
    write_folder(folder, save(weights), about, card)


def load_resolved(folder: Path) -> ResolvedModel:
    """Read a model folder; nothing in it is executed.

    Raises UsageError for a folder that is missing, damaged, of another kind or newer format, or trained on echoes that
    were read in another way.
    """
    with opened(folder, KIND, FORMAT, CURE) as (about, state):
        config, scaling, scales, detector = read_reader(about, state, str(folder))
        conditional = read_conditional(about, state, str(folder / WEIGHTS))
        held: dict[str, Any] = {key: about[key] for key in ("trained", "weights_sha256") if key in about}
        channels = len(state[SPECTRUM])
        if channels != CHANNELS:
            raise LungwaveError(f"its maps have {channels} channels, resolved ones have {CHANNELS}")
        parts = unpack(state, "outline")
        head = Linear(**{name.removeprefix("head."): parts.pop(name) for name in list(parts) if "." in name})
        outline = Outline(head, **parts)
        shrinkage, pairs = float(about["shrinkage"]), state["pairs"].double().numpy()
        return ResolvedModel(
            conditional, scaling, scales, detector, outline, Discrepancy.of(pairs, shrinkage),
            state["prior_std"].double().numpy(), config.override({"map": about["map"]}), held,
        )  # fmt: skip
