"""A Fourier neural operator from channel data to the map: the literature's learned reconstruction of lungs from RF.

Li et al. 2021 (arXiv:2010.08895), eq. 4 and 5: a layer multiplies the lowest modes of a Fourier transform by learned
complex matrices, which is a convolution over the whole axis, beside a pointwise path. The order of layers is that of
Luna (arXiv:2501.01157) as its public description and its authors' scripts show it: coordinates appended to the traces,
layers along time, layers over the (transmit x element) plane at every time, an integral kernel to the scalars.

Different from Li et al.: group normalisation between layers, as in Luna. Different from Luna: traces are aligned at the
pleura first, heads also see the numbers of the condition (noise level, pleura), coordinates are where the elements are
and the transmit's angle; its map head, a U-Net in the scripts, is a pointwise one, read off at the map's pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lungwave.models.fused import pointwise
from lungwave.models.regressor import Prediction, Regressor
from lungwave.models.unet import Condition, Size, group_norm, zeroed
from lungwave.types import UsageError

COORDINATES = 3  # of every sample of every trace: time, place of the element, angle of the transmit


@dataclass(frozen=True)
class FNOConfig:
    """Everything that decides the operator; layers and modes are Luna's."""

    size: Size = (64, 64)  # of the map [pixel]
    samples: int = 128  # of an aligned trace
    first: float = 12.0  # [sample] of the pleura's echo in a trace
    rows: float = 104.0  # [sample] that the map's depth spans
    numbers: int = 7  # of the condition's vector
    width: int = 16  # channels
    time_layers: int = 2
    time_modes: int = 20  # lowest frequencies kept of each trace
    plane_layers: int = 2
    plane_modes: int = 12  # lowest spatial frequencies kept along transmits and along elements

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", tuple(self.size))
        for name in ("samples", "width", "time_modes", "plane_modes"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)} of the operator must be at least 1")


class Spectral(nn.Module):
    """Circular convolution over whole axes (n, c, *lengths, rest) whose kernel holds the ``modes`` lowest frequencies.

    An axis shorter than that keeps all that it has. Weights are pairs of real and imaginary parts. So few modes are
    transformed by a matrix; on one core that takes half the time of a fast transform that makes them all.
    """

    analysis: Tensor
    synthesis: Tensor

    def __init__(self, width: int, lengths: Sequence[int], modes: int) -> None:
        super().__init__()
        for name, basis in zip(("analysis", "synthesis"), _fourier(lengths, modes), strict=True):
            self.register_buffer(name, torch.from_numpy(basis).float(), persistent=False)
        kept = self.analysis.shape[0] // 2
        # the power of what passes stays
        self.weight = nn.Parameter(torch.randn(2, width, width, kept) / math.sqrt(2 * width))

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        """In float32, whatever the rest is computed in: there are no complex numbers of bfloat16."""
        with torch.autocast(x.device.type, enabled=False):
            spectrum = (self.analysis @ x.float().flatten(2, -2)).unflatten(2, (2, -1))
            factor = torch.complex(*self.weight.float())
            mixed = torch.einsum("ncmr,com->nomr", torch.complex(*spectrum.unbind(2)), factor)
            return (self.synthesis @ torch.cat([mixed.real, mixed.imag], 2)).view_as(x)


def _fourier(
    lengths: Sequence[int], modes: int
) -> tuple[Float[np.ndarray, "part place"], Float[np.ndarray, "place part"]]:
    """The ``modes`` lowest frequencies of a real signal over all axes, real parts then imaginary ones; and back.

    As in a real transform, the last axis has no negative frequencies: they are conjugates, and count twice on the way
    back.
    """
    signed = [np.fft.fftfreq(length, 1 / length).round() for length in lengths[:-1]]
    frequency = _product([*signed, np.arange(lengths[-1] // 2 + 1.0)])
    frequency = frequency[(np.abs(frequency) < modes).all(1)]
    place = _product([np.arange(length) / length for length in lengths])
    phase = 2 * np.pi * frequency @ place.T
    single = (frequency[:, -1] == 0) | (2 * frequency[:, -1] == lengths[-1])
    waves = np.concatenate([np.cos(phase), -np.sin(phase)])
    return waves, waves.T * np.tile(np.where(single, 1, 2), 2) / len(place)


def _product(axes: Sequence[np.ndarray]) -> Float[np.ndarray, "point axis"]:
    """All combinations of coordinates, the last axis fastest."""
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


class SpectralLayer(nn.Module):
    """``gelu(norm(spectral(x) + pointwise(x)))`` of activations (n, c, *lengths, rest)."""

    def __init__(self, width: int, lengths: Sequence[int], modes: int) -> None:
        super().__init__()
        self.spectral = Spectral(width, lengths, modes)
        self.pointwise = nn.Conv2d(width, width, 1)
        self.norm = group_norm(width)

    def forward(self, x: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
        alone = pointwise(self.pointwise, x.flatten(2, -2)).view_as(x)
        return F.gelu(self.norm(self.spectral(x) + alone))


class FNORegressor(Regressor):
    """Traces (n, tx, el, time), aligned at the pleura, and numbers (n, v) -> map and bands.

    ``places`` (tx, el, 2) holds the lateral position of each element [half widths of the map] and the sine of the
    transmit's angle. The map is read off a field over (element, time): linearly between elements, and at the times at
    which sound comes back from each row, straight there and back.
    """

    places: Tensor
    grid: Tensor
    at_rows: Tensor
    at_columns: Tensor

    def __init__(
        self,
        weight: Float[Tensor, "z out"],
        bias: Float[Tensor, " out"],
        config: FNOConfig,
        places: Float[Tensor, "tx el 2"],
    ) -> None:
        super().__init__(weight, bias)
        self.config = config
        width, told = config.width, config.width + config.numbers
        plane, outputs = tuple(places.shape[:2]), len(bias)
        self.register_buffer("places", places.float())
        self._make_grids(places.double().cpu().numpy())
        self.lift = nn.Conv2d(1 + COORDINATES, width, 1)
        self.along_time = nn.Sequential(
            *(SpectralLayer(width, (config.samples,), config.time_modes) for _ in range(config.time_layers))
        )
        self.over_plane = nn.Sequential(
            *(SpectralLayer(width, plane, config.plane_modes) for _ in range(config.plane_layers))
        )
        self.kernel = nn.Sequential(nn.Conv2d(COORDINATES, width, 1), nn.GELU(), nn.Conv2d(width, width, 1))
        self.bands = nn.Sequential(nn.Linear(told, width), nn.GELU(), zeroed(nn.Linear(width, outputs)))
        self.here, self.whole = nn.Conv2d(width, width, 1), nn.Linear(told, width)
        self.map = nn.Sequential(nn.GELU(), zeroed(nn.Conv2d(width, 1, 1)))

    def _make_grids(self, places: Float[np.ndarray, "tx el 2"]) -> None:
        """Coordinates of every sample, within -1 to 1, and the interpolation from (time, element) to pixels."""
        config, (events, elements, _) = self.config, places.shape
        size = (config.samples, events, elements)
        place, angle = (places[..., k] / max(np.abs(places[..., k]).max(), 1e-9) for k in (0, 1))
        parts = (np.linspace(-1, 1, config.samples)[:, None, None], place, angle)
        grid = np.stack([np.broadcast_to(part, size).reshape(config.samples, -1) for part in parts])
        row, column = (np.arange(count) + 0.5 for count in config.size)
        at_rows = _linear(config.first + row * config.rows / config.size[0], np.arange(config.samples))
        at_columns = _linear(column * 2 / config.size[1] - 1, places[..., 0].mean(0))
        for name, value in (("grid", grid[None]), ("at_rows", at_rows), ("at_columns", at_columns)):
            self.register_buffer(name, torch.from_numpy(value).float(), persistent=False)

    def forward(self, cond: Condition) -> Prediction:
        """Map and bands, each by its own head."""
        assert cond.traces is not None and cond.vector is not None
        traces = cond.traces.permute(0, 3, 1, 2)[:, None]  # (n, 1, time, tx, el)
        plane = traces.shape[3:]
        given = torch.cat([traces.flatten(3), self.grid.expand(len(traces), -1, -1, -1)], 1)
        h = self.along_time(pointwise(self.lift, given))  # (n, c, time, channel)
        h = self.over_plane(h.transpose(2, 3).unflatten(2, plane))  # (n, c, tx, el, time)
        # The integral of the features against a kernel that is learned as a function of the coordinates.
        kernel = self.kernel(self.grid).transpose(2, 3).unflatten(2, plane)
        told = torch.cat([(kernel * h).mean((2, 3, 4)), cond.vector], 1)
        field = self.map(pointwise(self.here, h.mean(2)) + self.whole(told)[:, :, None, None])
        maps = self.at_rows @ field.transpose(2, 3) @ self.at_columns.T
        return Prediction(maps.float(), self.bands(told).float())


def _linear(at: Float[np.ndarray, " target"], known: np.ndarray) -> Float[np.ndarray, "target source"]:
    """Linear interpolation from increasing places ``known`` to places ``at`` as a matrix; beyond the ends, the ends."""
    return np.stack([np.interp(at, known, one) for one in np.eye(len(known))], 1)
