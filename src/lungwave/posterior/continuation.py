"""Easier problems first: what the early, noisy levels of a sampler are held against costs less, or misleads less.

LowBand     echoes and forward model behind a low-pass: waves that are long against the lung's parts have fewer false
            minima (Bunks et al. 1995, doi 10.1190/1.1443880)
CoarseGrid  these echoes, and a forward model on cells twice as wide; what it makes wrong is part of the noise, by its
            covariance over simulated lungs, as everything else that a forward model leaves out (``discrepancy``)
FewShots    some of the transmit events, others at each level (van Leeuwen and Herrmann 2013, Geophysical Prospecting
            61, 10-19)

The last levels always hear everything, so the samples are those of the same posterior. Nothing of a recording is
counted twice: a level that hears less is less sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.acoustics.receive import echo_rms
from lungwave.phantom.anatomy import draw
from lungwave.phantom.resolved import resolved
from lungwave.posterior.discrepancy import CorrelatedNoise, Discrepancy
from lungwave.posterior.likelihood import Forward
from lungwave.posterior.lung import LungForward
from lungwave.posterior.resolved import ResolvedModel
from lungwave.posterior.samplers.problem import Problem
from lungwave.posterior.walls import Wall
from lungwave.progress import Progress
from lungwave.repro import stream
from lungwave.types import UsageError

ROLL_OFF = 0.25  # of the edge: width of the fall from all to nothing
LOW = 0.8  # of the centre frequency: what ``LowBand`` hears
COARSE = 2  # times wider cells of ``CoarseGrid``, which hears so many times lower frequencies
LUNGS = 100  # that tell what wider cells make wrong


@runtime_checkable
class Easier(Protocol):
    """What the first levels of a ladder are held against."""

    share: float  # (0-1) of the levels

    def parts(
        self, model: ResolvedModel, wall: Wall, problem: Problem, levels: int, chance: np.random.Generator
    ) -> Iterator[tuple[Problem, int]]:
        """Easier problems in place of ``problem``, and for how many of the ``levels`` each stands."""
        ...


@dataclass(frozen=True)
class LowBand:
    """Low frequencies only."""

    share: float = 0.5

    def parts(
        self, model: ResolvedModel, wall: Wall, problem: Problem, levels: int, chance: np.random.Generator
    ) -> Iterator[tuple[Problem, int]]:
        """One problem. Residuals are whitened as those of the whole band: what is cut off counts as no misfit."""
        low = low_pass(model, LOW)
        yield replace(problem, y=low(problem.y), forward=Filtered(problem.forward, low)), levels


@dataclass(frozen=True)
class CoarseGrid:
    """Wider cells, and the frequencies that they carry."""

    errors: Discrepancy  # of ``coarse_errors``
    share: float = 0.5

    def parts(
        self, model: ResolvedModel, wall: Wall, problem: Problem, levels: int, chance: np.random.Generator
    ) -> Iterator[tuple[Problem, int]]:
        """One problem."""
        low, noise = low_pass(model, 1 / COARSE), problem.noise
        assert isinstance(noise, CorrelatedNoise)
        loud = echo_rms(problem.y[0].numpy(), model.scan, model.config.receive.echo_start)
        more = torch.from_numpy(self.errors.covariance) * loud**2
        coarse = LungForward(model.config, wall.medium, wall.surface, model.scaling, coarse=COARSE)
        wider = CorrelatedNoise.of(noise.covariance + more.to(noise.values), noise.shape, noise.temperature)
        yield replace(problem, y=low(problem.y), forward=Filtered(coarse, low), noise=wider), levels


@dataclass(frozen=True)
class FewShots:
    """Some transmit events, drawn anew for every level."""

    some: float = 0.25  # of the events, at least one
    share: float = 0.5

    def parts(
        self, model: ResolvedModel, wall: Wall, problem: Problem, levels: int, chance: np.random.Generator
    ) -> Iterator[tuple[Problem, int]]:
        """A problem a level. UsageError for a scan of one event."""
        noise, transmits = problem.noise, problem.y.shape[1]
        assert isinstance(noise, CorrelatedNoise)
        if transmits < 2:
            raise UsageError("the scan has one transmit event; FewShots needs more")
        if not 0 < self.some < 1:
            raise UsageError(f"{self.some:g} of the events; give a share between 0 and 1")
        count = min(max(1, round(self.some * transmits)), transmits - 1)
        for _ in range(levels):
            events = np.sort(chance.choice(transmits, count, replace=False)).tolist()
            forward = LungForward(model.config, wall.medium, wall.surface, model.scaling, events=events)
            yield replace(problem, y=problem.y[:, events], forward=forward, noise=noise.marginal(events)), 1


def low_pass(model: ResolvedModel, edge: float) -> LowPass:
    """Up to ``edge`` times the centre frequency."""
    config = model.config
    return LowPass(edge * config.probe.center_frequency, config.receive.sampling_frequency)


def coarse_errors(model: ResolvedModel, lungs: int = LUNGS, quiet: bool = False) -> Discrepancy:
    """What ``CoarseGrid`` makes wrong of the model's own echoes at low frequencies, over the RMS of these echoes.

    From ``lungs`` that nobody else has drawn, under their own walls: ten seconds.
    """
    config, low = model.drawn, low_pass(model, 1 / COARSE)
    config = replace(config, seed=int(stream(config.seed, "coarse", 0).integers(2**31)))
    found, loud = [], []
    with Progress(lungs, "coarse grid", quiet=quiet) as progress:
        for index in range(lungs):
            anatomy = draw(config, index)
            wall = Wall.of(anatomy, config)
            nodes = model.scaling.to_network(torch.from_numpy(resolved(anatomy, config))[None]).double()
            fine, coarse = (
                LungForward(model.config, wall.medium, wall.surface, model.scaling, coarse=factor)(nodes)
                for factor in (1, COARSE)
            )
            found.append(low(fine - coarse)[0].numpy())
            loud.append(echo_rms(fine[0].numpy(), model.scan, config.receive.echo_start))
            progress.advance()
    return Discrepancy.fit(np.stack(found), np.array(loud))


@dataclass(frozen=True)
class LowPass:
    """Recordings (n, tx, time, el) without what is above ``edge``."""

    edge: float  # [Hz]
    sampling_frequency: float  # [Hz]

    def __post_init__(self) -> None:
        if not 0 < self.edge < self.sampling_frequency / 2:
            raise UsageError(f"an edge of {self.edge:g} Hz; give one from 0 to half of {self.sampling_frequency:g} Hz")

    def __call__(self, recording: Float[Tensor, "n tx time el"]) -> Float[Tensor, "n tx time el"]:
        """The low frequencies of every channel, taken as periodic."""
        samples = recording.shape[2]
        frequency = torch.fft.rfftfreq(samples, 1 / self.sampling_frequency, device=recording.device)
        fall = ((frequency - self.edge) / (ROLL_OFF * self.edge)).clamp(0, 1)
        keep = (0.5 * (1 + torch.cos(math.pi * fall)))[:, None].to(recording.dtype)
        return torch.fft.irfft(keep * torch.fft.rfft(recording, dim=2), n=samples, dim=2)


@dataclass(frozen=True)
class Filtered:
    """A forward model whose recordings go through a linear filter that is its own adjoint."""

    inner: Forward
    through: Callable[[Tensor], Tensor]

    @property
    def valid_range(self) -> tuple[float, float]:
        """That of the model."""
        return self.inner.valid_range

    @property
    def derivative_error(self) -> float:
        """That of the model, where it states one."""
        return float(getattr(self.inner, "derivative_error", 0.0))

    def __call__(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """The filtered recordings."""
        return self.through(self.inner(x))

    def jvp(self, x: Float[Tensor, "n c z x"], v: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """Their change along ``v``."""
        return self.through(self.inner.jvp(x, v))

    def vjp(self, x: Float[Tensor, "n c z x"], u: Float[Tensor, "n ..."]) -> Float[Tensor, "n c z x"]:
        """The adjoint of ``jvp``."""
        return self.inner.vjp(x, self.through(u))
