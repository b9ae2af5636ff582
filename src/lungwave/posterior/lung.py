"""The wave equation as a forward model: a resolved lung under a known chest wall -> echoes.

A resolved map says of every node of the solver's grid how deep it lies in air (channel 0: 0 = tissue, then sixths of
the levels by which ``phantom.anatomy`` places the surface of air between nodes) and how fast the tissue there carries
sound (channel 1). It is kept pleura-flattened, row 0 at the first node that can be air, so that a prior sees no wall:
``flatten`` takes it off the grid, ``LungForward.place`` puts it back, both exactly. What a map leaves out is the
tissue's density, attenuation and scatter. The derivative along a direction is a difference quotient: one propagation
more, where the exact one of a medium with losses takes forty.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.wave import Fields
from lungwave.config import Config
from lungwave.models.precond import Scaling
from lungwave.phantom.anatomy import AIR_DENSITY, AIR_REACH
from lungwave.phantom.medium import TISSUES, Medium, max_sound_speed, min_sound_speed
from lungwave.types import UsageError

LUNG = TISSUES["lung tissue"]
LEVELS = len(AIR_DENSITY)  # of a node's depth in air
CHANNELS = 2  # depth in air, sound speed
STEP = 1e-3  # network units of the largest change in a difference quotient


def first_rows(surface: Float[np.ndarray, " x"], spacing: float) -> Int[np.ndarray, " x"]:
    """Row of the first node that can be air in every column: as far above the lung surface [m] as air is painted."""
    return np.ceil(surface / spacing - AIR_REACH - 1e-9).astype(np.int64)


def flatten(field: Float[np.ndarray, "z x"], first: Int[np.ndarray, " x"], rows: int) -> Float[np.ndarray, "row x"]:
    """Columns of a field of the grid from their first lung node on; the deepest node is repeated below the grid."""
    at = np.minimum(first[None] + np.arange(rows)[:, None], len(field) - 1)
    return np.take_along_axis(field, at, 0)


class LungForward:
    """Network-unit maps (n, 2, row, x) -> noise-free RF (n, tx, time, el) under one chest wall.

    ``medium`` is the tissue on the solver's grid; what it holds below the surface is ignored. Every map of a batch lies
    under the same wall, so sample one recording at a time.
    """

    derivative_error = 2e-2  # of ``jvp``, relative, where maps have no kinks within ``STEP``

    def __init__(
        self, config: Config, medium: Medium, surface: Float[np.ndarray, " x"], scaling: Scaling, rows: int
    ) -> None:
        """``surface`` [m] is the depth of the lung in every column of the medium.

        Raises UsageError where it lies outside the grid or has another length.
        """
        self.simulator = Simulator(config)
        depth, width = medium.air.shape
        if len(surface) != width:
            raise UsageError(f"the lung surface has {len(surface)} columns, the medium {width}; give one a column")
        first = first_rows(np.asarray(surface, float), medium.spacing)
        if first.min() < 1 or first.max() >= depth:
            raise UsageError(
                f"the lung begins at row {first.min()} to {first.max()} of a grid of {depth}; give its depth in metres"
            )
        self.scaling, self.shape = scaling, (CHANNELS, rows, width)
        self.speeds = min_sound_speed(config), max_sound_speed(config)
        row = np.arange(depth)[:, None] - first[None]  # of the map, at every node
        self._index = torch.from_numpy(np.clip(row, 0, rows - 1))
        self._lung = torch.from_numpy(row >= 0)
        loss = np.where(row >= 0, LUNG.linear_attenuation(config.probe.center_frequency), medium.attenuation)
        self._speed, self._density, self._loss = (
            torch.from_numpy(np.ascontiguousarray(v, np.float32)) for v in (medium.sound_speed, medium.density, loss)
        )
        self._base: tuple[Tensor, Tensor] | None = None  # the last maps that a derivative was asked at, their echoes
        self._factors = torch.tensor((1.0, *AIR_DENSITY))

    @property
    def valid_range(self) -> tuple[float, float]:
        """Network units of 0 and 1: tissue to deep in air, slowest to fastest tissue."""
        low, high = (float(self.scaling.to_network(torch.tensor(v))) for v in (0.0, 1.0))
        return low, high

    def place(self, maps: Float[Tensor, "n c row x"]) -> Float[Tensor, "n c z x"]:
        """Maps on the grid; the last row continues below the map, what lies above the lung holds its first row."""
        return maps.gather(2, self._index.expand(*maps.shape[:2], -1, -1))

    def fields(self, x: Float[Tensor, "n 2 row x"]) -> tuple[Tensor, Tensor, Tensor]:
        """Sound speed [m/s], density [kg/m3] and air (fraction) on the grid, differentiable."""
        inside, slow, fast = self.scaling.to_data(x).clamp(0, 1), *self.speeds
        level, speed = self.place(inside).float().unbind(1)
        level = LEVELS * level
        below = level.detach().floor().clamp(max=LEVELS - 1).long()
        low, high = self._factors[below], self._factors[below + 1]
        factor = low + (high - low) * (level - below)
        return (
            torch.where(self._lung, slow + (fast - slow) * speed, self._speed),
            torch.where(self._lung, LUNG.density * factor, self._density),
            torch.where(self._lung, level.clamp(max=1), torch.zeros_like(level)),
        )

    def __call__(self, x: Float[Tensor, "n 2 row x"]) -> Float[Tensor, "n tx time el"]:
        """The echoes."""
        with torch.no_grad():
            return self.simulator.channels(self._medium(*self.fields(x))).to(x.dtype)

    def jvp(self, x: Float[Tensor, "n 2 row x"], v: Float[Tensor, "n 2 row x"]) -> Float[Tensor, "n tx time el"]:
        """Change of the echoes along ``v``: the difference over a step whose largest entry is ``STEP``."""
        size = STEP / v.flatten(1).abs().amax(1).clamp(min=1e-30).view(-1, 1, 1, 1)
        if self._base is None or not torch.equal(self._base[0], x):
            self._base = (x.clone(), self(x))
        fields, along = torch.autograd.functional.jvp(self.fields, x.detach(), v.to(x.dtype))
        with torch.no_grad():
            moved = self._medium(*(f + size[:, :, 0].float() * a for f, a in zip(fields, along, strict=True)))
            return (self.simulator.channels(moved).to(x.dtype) - self._base[1]) / size

    def vjp(self, x: Float[Tensor, "n 2 row x"], u: Float[Tensor, "n tx time el"]) -> Float[Tensor, "n 2 row x"]:
        """The adjoint of ``jvp``."""
        at = x.detach().requires_grad_()
        with torch.enable_grad():
            fields = self.fields(at)
        gradient = self.simulator.vjp(self._medium(*(field.detach() for field in fields)), u.float())[1]
        return torch.autograd.grad(fields, at, (gradient.sound_speed, gradient.density, gradient.air))[0]

    def _medium(self, speed: Tensor, density: Tensor, air: Tensor) -> Fields:
        return Fields(speed, density, air.clamp(0, 1), self._loss.expand_as(speed))


def resolved(
    config: Config, medium: Medium, surface: Float[np.ndarray, " x"], air_level: Int[np.ndarray, "z x"], rows: int
) -> Float[np.ndarray, "2 row x"]:
    """The map of a drawn lung, fractions 0-1: what ``LungForward`` puts back on the grid."""
    first, (slow, fast) = first_rows(surface, medium.spacing), (min_sound_speed(config), max_sound_speed(config))
    speed = np.clip((medium.sound_speed - slow) / (fast - slow), 0, 1)
    return np.stack([flatten(air_level / LEVELS, first, rows), flatten(speed, first, rows)])
