"""Low frequencies first: the misfit of echoes of a long wavelength has fewer false minima (Bunks et al. 1995, doi
10.1190/1.1443880). A part of the noise levels hears the echoes, and the forward model, through a low-pass.

The filter has no phase and is its own adjoint. Residuals are whitened as those of the whole band, so that what is cut
off counts as no misfit: a level that hears less is less sure, never more.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.posterior.likelihood import Forward
from lungwave.types import UsageError

ROLL_OFF = 0.25  # of the edge: width of the fall from all to nothing


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
