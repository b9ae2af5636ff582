"""The wave equation as a forward model: a resolved lung (``phantom.resolved``) under a known chest wall -> echoes.

What a resolved map leaves out is the tissue's density, attenuation and scatter. Attenuation is one gain over time,
``10^(-a / 20)``, a the loss [dB] at the centre frequency on the way straight down and back: sound that arrives at one
time went equally far in tissue, however often it was scattered. A propagation without losses takes half the time of
one with them, and what the gain misses is less than what the map leaves out (tests/posterior/test_lung.py). The
derivative along a direction is a difference quotient: one propagation more.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.receive import record_samples
from lungwave.acoustics.wave import Fields, coarsened
from lungwave.config import Config
from lungwave.models.precond import Scaling
from lungwave.phantom.anatomy import AIR_DENSITY
from lungwave.phantom.medium import TISSUES, Medium, max_sound_speed, min_sound_speed
from lungwave.phantom.resolved import AIR, CHANNELS, LEVELS, REACH, first_rows, resolved_size
from lungwave.types import MHZ, UsageError

LUNG = TISSUES["lung tissue"]
STEP = 1e-3  # network units of the largest change in a difference quotient
LEAST = 1e-3  # air in tissue, so that a step of a difference quotient stays above none
LATE = 1.0e-6  # [s] after the straight echo of the map's deepest row that a recording is listened to
EDGE = 1.0e-6  # [s] more that is propagated, so that the receiver's filter has all it needs
ABSORBING = 12  # cells of the absorbing layer; eight less than the simulator's cost a fifth less


class LungForward:
    """Network-unit maps (n, 2, row, x) -> noise-free RF (n, tx, time, el) under one chest wall.

    Cases that are not finite come back as NaN, to be counted by the sampler; they do not touch the others.

    ``medium`` is the tissue on the solver's grid; what it holds below the surface is ignored. Every map of a batch lies
    under the same wall, so sample one recording at a time.

    Two ways to a cheaper model: ``events`` are those of the scan that are propagated, in this order; and waves may go
    through cells ``coarse`` times as wide, of the same medium averaged (``wave.coarsened``), with as much longer steps.
    That is right for frequencies ``coarse`` times lower: compare it with recordings behind a low-pass.
    """

    derivative_error = 2e-2  # of ``jvp``, relative, where maps have no kinks within ``STEP``

    def __init__(
        self, config: Config, medium: Medium, surface: Float[np.ndarray, " x"], scaling: Scaling, *,
        events: Sequence[int] | None = None, coarse: int = 1,
    ) -> None:  # fmt: skip
        """``surface`` [m] is the depth of the lung in every column of the medium.

        Raises UsageError where it lies outside the grid or has another length, or for events that the scan lacks.
        """
        lossless, frequency = _lossless(config), config.probe.center_frequency
        self.simulator = Simulator(_widened(lossless, coarse), frequency=frequency / coarse)
        self.samples, self.coarse = heard_samples(config), coarse
        self.events = self.simulator.chosen(events)
        depth, width = round(lossless.grid.depth / lossless.grid.spacing), medium.air.shape[1]
        if medium.air.shape[0] < depth:
            raise UsageError(f"the medium has {medium.air.shape[0]} rows; give {depth}")
        if len(surface) != width:
            raise UsageError(f"the lung surface has {len(surface)} columns, the medium {width}; give one a column")
        first = first_rows(np.asarray(surface, float), medium.spacing)
        if first.min() < 1 or first.max() >= depth:
            raise UsageError(
                f"the lung begins at row {first.min()} to {first.max()} of a grid of {depth}; give its depth in metres"
            )
        rows = resolved_size(config)[0]
        self.scaling, self.shape = scaling, (CHANNELS, rows, width)
        self.speeds = min_sound_speed(config), max_sound_speed(config)
        row = np.arange(depth)[:, None] - first[None]  # of the map, at every node
        turned = np.abs(np.maximum(row, 0) % (2 * rows) - rows + 0.5)  # below the map its mirror image
        self._index = torch.from_numpy(np.rint(rows - 0.5 - turned).astype(np.int64))
        self._lung = torch.from_numpy(row >= 0)
        loss = np.where(row >= 0, LUNG.linear_attenuation(frequency), medium.attenuation[:depth]).mean(1)
        decibel = loss * medium.spacing * frequency / MHZ
        self._gain = torch.from_numpy(_gain(decibel, medium.spacing, self.simulator)[self.events]).float()
        self._speed, self._density = (
            torch.from_numpy(np.ascontiguousarray(v[:depth], np.float32)) for v in (medium.sound_speed, medium.density)
        )
        self._heard: tuple[Tensor, Tensor] | None = None  # the last maps, and their echoes
        self._kept: tuple[Tensor, tuple[Tensor, ...], Callable[[Tensor], Fields]] | None = None  # of the last adjoint
        self._factors = torch.tensor((1.0, *AIR_DENSITY))

    @property
    def valid_range(self) -> tuple[float, float]:
        """Network units of 0 and 1: tissue to deep in air, slowest to fastest tissue."""
        low, high = (float(self.scaling.to_network(torch.tensor(v))) for v in (0.0, 1.0))
        return low, high

    def place(self, maps: Float[Tensor, "n c row x"]) -> Float[Tensor, "n c z x"]:
        """Maps on the grid; their mirror image goes on below them, what lies above the lung holds their first row."""
        return maps.gather(2, self._index.expand(*maps.shape[:2], -1, -1))

    def fields(self, x: Float[Tensor, "n 2 row x"]) -> tuple[Tensor, Tensor, Tensor]:
        """Sound speed [m/s], density [kg/m3] and air (fraction) on the grid of the waves, differentiable."""
        inside, slow, fast = self.scaling.to_data(x).clamp(0, 1), *self.speeds
        value, speed = self.place(inside).float().unbind(1)
        air = ((value + LEAST) / (AIR + LEAST)).clamp(max=1)
        depth = (value - AIR).clamp(min=0) * ((LEVELS - 1) / (1 - AIR))  # in air, from the first of its levels
        below = depth.detach().floor().clamp(max=LEVELS - 2).long()
        first, after = self._factors[1 + below], self._factors[2 + below]
        factor = torch.where(value < AIR, 1 + (first - 1) * air, first + (after - first) * (depth - below))
        placed = (
            torch.where(self._lung, slow + (fast - slow) * speed, self._speed),
            torch.where(self._lung, LUNG.density * factor, self._density),
            torch.where(self._lung, air, torch.zeros_like(air)),
        )
        if self.coarse == 1:
            return placed
        wide = coarsened(Fields(*placed), self.coarse)
        return wide.sound_speed, wide.density, wide.air

    def __call__(self, x: Float[Tensor, "n 2 row x"]) -> Float[Tensor, "n tx time el"]:
        """The echoes."""
        (whole,), lost = _finite(x)
        return lost(self._echoes(whole))

    def jvp(self, x: Float[Tensor, "n 2 row x"], v: Float[Tensor, "n 2 row x"]) -> Float[Tensor, "n tx time el"]:
        """Change of the echoes along ``v``: the difference over a step whose largest entry is ``STEP``."""
        (at, along), lost = _finite(x, v)
        size = STEP / along.flatten(1).abs().amax(1).clamp(min=1e-30).view(-1, 1, 1, 1)
        base = self._echoes(at)
        fields, slopes = torch.autograd.functional.jvp(self.fields, at.detach(), along.to(x.dtype))
        with torch.no_grad():
            moved = self._hear(*(f + size[:, :, 0].float() * a for f, a in zip(fields, slopes, strict=True)))
            return lost((moved.to(x.dtype) - base) / size)

    def vjp(self, x: Float[Tensor, "n 2 row x"], u: Float[Tensor, "n tx time el"]) -> Float[Tensor, "n 2 row x"]:
        """The adjoint of ``jvp``; the propagation at the last ``x`` is kept for the next ``u``."""
        (at, seen), lost = _finite(x, u)
        if self._kept is None or not torch.equal(self._kept[0], at):
            self._kept = None  # gives its memory back first
            start = at.detach().clone().requires_grad_()
            with torch.enable_grad():
                placed = self.fields(start)
            medium = _medium(*(field.detach() for field in placed))
            self._kept = start, placed, self.simulator.pullback(medium, self.events)[1]
        free, fields, pull = self._kept
        late = self.simulator.samples - self.samples
        found = pull(self._gain * torch.nn.functional.pad(seen.float(), (0, 0, 0, late)))
        slopes = (found.sound_speed, found.density, found.air)
        return lost(torch.autograd.grad(fields, free, slopes, retain_graph=True)[0])

    def _echoes(self, x: Float[Tensor, "n 2 row x"]) -> Float[Tensor, "n tx time el"]:
        """Of maps that are finite; asked again about the last ones, it remembers."""
        if self._heard is None or not torch.equal(self._heard[0], x):
            with torch.no_grad():
                self._heard = x.clone(), self._hear(*self.fields(x)).to(x.dtype)
        return self._heard[1]

    def _hear(self, speed: Tensor, density: Tensor, air: Tensor) -> Float[Tensor, "n tx time el"]:
        return (self._gain * self.simulator.channels(_medium(speed, density, air), self.events))[:, :, : self.samples]


def heard_samples(config: Config) -> int:
    """Samples of a recording that are held against the forward model; later ones tell of lung below the map."""
    return min(_last(config, LATE), record_samples(config))


def _last(config: Config, late: float) -> int:
    """Samples until ``late`` [s] after the straight echo of the deepest row under the deepest pleura."""
    deepest = config.wall.pleura_depth[1] + REACH
    end = 2 * deepest / min_sound_speed(config) + config.probe.cycles / config.probe.center_frequency / 2 + late
    return math.ceil(end * config.receive.sampling_frequency)


def _lossless(config: Config) -> Config:
    """Without attenuation, no longer than is listened to, no deeper than sound comes back from by then."""
    grid = config.grid
    seconds = _last(config, LATE + EDGE) / config.receive.sampling_frequency
    steps = min(math.ceil(seconds / grid.time_step / grid.gradient_stride) * grid.gradient_stride, grid.steps)
    depth = min(math.ceil((config.wall.pleura_depth[1] + 1.5 * REACH) / grid.spacing) * grid.spacing, grid.depth)
    return replace(config, grid=replace(grid, attenuation=False, pml_cells=ABSORBING, steps=steps, depth=depth))


def _widened(config: Config, factor: int) -> Config:
    """On cells and time steps ``factor`` times as large, as deep and as long at least."""
    grid = config.grid
    spacing, rows = factor * grid.spacing, math.ceil(round(grid.depth / grid.spacing) / factor)
    steps = math.ceil(grid.steps / factor / grid.gradient_stride) * grid.gradient_stride
    wider = replace(grid, spacing=spacing, depth=rows * spacing, time_step=factor * grid.time_step, steps=steps)
    return replace(config, grid=wider)


def _finite(*parts: Tensor) -> tuple[tuple[Tensor, ...], Callable[[Tensor], Tensor]]:
    """The parts with zeros in cases that are not finite in all of them, and what makes such cases NaN in a result."""
    good = torch.stack([part.flatten(1).isfinite().all(1) for part in parts]).all(0)

    def kept(part: Tensor, otherwise: float) -> Tensor:
        return torch.where(good.view(-1, *[1] * (part.ndim - 1)), part, torch.full_like(part, otherwise))

    return tuple(kept(part, 0.0) for part in parts), lambda result: kept(result, math.nan)


def _medium(speed: Tensor, density: Tensor, air: Tensor) -> Fields:
    return Fields(speed, density, air.clamp(0, 1))


def _gain(loss: Float[np.ndarray, " z"], spacing: float, simulator: Simulator) -> Float[np.ndarray, "tx time 1"]:
    """What attenuation leaves of sound that arrives at each time; ``loss`` [dB] is that of each row of cells."""
    scan = simulator.scan
    times = scan.start_times[:, None] + np.arange(simulator.samples) / scan.sampling_frequency - scan.pulse_delay
    down = np.clip(times, 0, None) * scan.sound_speed / 2 / spacing  # [cell]
    total = np.concatenate([[0.0], np.cumsum(loss)])
    below = np.clip(down - len(loss), 0, None) * loss[-1]
    return 10 ** (-2 * (np.interp(down, np.arange(len(total)), total) + below) / 20)[..., None]
