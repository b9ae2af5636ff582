"""A denoiser whose linear part is exact: the Wiener filter of the maps' spectrum, and a network for the rest.

EDM (Karras et al. 2022, arXiv:2206.00364, table 1) preconditions as if every pixel were independent with one variance.
Lung maps are smooth: most of their variance lies in a few modes of the cosine transform, and the mean of a whole map
stands out of noise that buries every pixel. With the variance S of each mode measured on the training maps, the best
linear denoiser is known in closed form (Wiener), and a network that says nothing already draws maps with the mean,
spread and correlation lengths of the data. It has only to learn what is not Gaussian about lungs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lungwave.models.precond import SIGMA_DATA, TIME_SCALE, Denoiser
from lungwave.models.unet import Condition
from lungwave.types import UsageError

LEAST = 1e-12  # of a mode's variance relative to the largest, so that no division is by zero
ROWS = 1024  # maps that are transformed at a time


def cosines(length: int) -> Float[Tensor, "mode pixel"]:
    """Orthonormal cosine transform (DCT-II): rows are modes, from the mean to the finest."""
    mode, pixel = torch.arange(length, dtype=torch.float64)[:, None], torch.arange(length, dtype=torch.float64)
    basis = torch.cos(math.pi * mode * (pixel + 0.5) / length) * math.sqrt(2 / length)
    basis[0] /= math.sqrt(2)
    return basis


def mode_variance(maps: Float[Tensor, "n c z x"] | Iterable[Tensor]) -> Float[Tensor, "c z x"]:
    """Mean square of each cosine mode over the maps, which may come in parts of ``ROWS`` maps."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for part in maps.split(ROWS) if isinstance(maps, Tensor) else maps:
        down, across = cosines(part.shape[2]), cosines(part.shape[3])
        total = total + (down @ part.double() @ across.T).square().sum(0)
        count += len(part)
    found = total / count
    return found.clamp(min=LEAST * float(found.max())).float()


class Wiener(Denoiser):
    """``D = W x + c_out F(c_in x, W x / rms, time)``, W the Wiener filter of a spectrum at each noise level.

    ``W = S / (S + sigma^2)`` on each cosine mode; ``c_out^2`` is the error that W leaves, ``S sigma^2 / (S + sigma^2)``
    averaged over modes, so that the network's target has unit variance at every noise level. The network sees the
    filtered map, at unit variance, as its first conditioning image.
    """

    sigma_data = SIGMA_DATA
    spectrum: Tensor
    down: Tensor
    across: Tensor

    def __init__(self, net: nn.Module, spectrum: Float[Tensor, "c z x"]) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("spectrum", spectrum.float())
        self.register_buffer("down", cosines(spectrum.shape[1]).float(), persistent=False)
        self.register_buffer("across", cosines(spectrum.shape[2]).float(), persistent=False)

    def scales(self, sigma: Float[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor]:
        """``c_in``, ``c_out`` and the root mean square of the filtered map, at each noise level."""
        s = self.spectrum.to(sigma.dtype).flatten()
        noise = sigma.square()[:, None]
        keep = s / (s + noise)
        return (s.mean() + noise[:, 0]).rsqrt(), (noise * keep).mean(1).sqrt(), (s * keep).mean(1).sqrt()

    def error_scale(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``c_out``: the error of the map where the network errs by one."""
        return self.scales(sigma)[1]

    def filtered(self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"]) -> Float[Tensor, "n c z x"]:
        """``W x``: the best linear guess of the clean map."""
        s = self.spectrum.to(x.dtype)
        return self.on_modes(x, s / (s + sigma.to(x.dtype)[:, None, None, None].square()))

    def start(
        self, noise: Float[Tensor, "n c z x"], sigma: float, cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """Maps of the spectrum, with noise: the mean of a whole map stands out of noise even where sigma is 80."""
        return self.on_modes(noise, (self.spectrum.to(noise) + sigma**2).sqrt())

    def on_modes(self, x: Float[Tensor, "n c z x"], gain: Float[Tensor, "*n c z x"]) -> Float[Tensor, "n c z x"]:
        """A filter with a gain for each cosine mode."""
        down, across = self.down.to(x), self.across.to(x)
        return down.T @ (gain * (down @ x @ across.T)) @ across

    def forward(
        self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """The clean map; the network runs in the precision of its weights, the rest in that of ``x``."""
        sigma = sigma.to(x.dtype)
        c_in, c_out, rms = (v[:, None, None, None] for v in self.scales(sigma))
        linear = self.filtered(x, sigma)
        weights = next(self.net.parameters()).dtype
        cond = cond or Condition()
        images = linear / rms if cond.image is None else torch.cat([linear / rms, cond.image.to(x.dtype)], 1)
        time = TIME_SCALE * sigma.log()
        predicted = self.net((c_in * x).to(weights), time.to(weights), replace(cond, image=images.to(weights)))
        return linear + c_out * predicted.to(x.dtype)


class Centred(Wiener):
    """A Wiener denoiser around an estimate m of the clean map: ``D = L + c_out F(c_in x, L, m, time)``.

    ``L = m + W (x - m)``, W the Wiener filter of the spectrum of what the estimate leaves. A network that says nothing
    already draws maps around the estimate with the error that it has, mode by mode; what it learns is what the estimate
    does not know. The network sees L, the condition's images and m, all on the scale of maps.
    """

    def forward(
        self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """The clean map, given the condition; UsageError without an estimate in it."""
        sigma, center = sigma.to(x.dtype), _estimate(cond).to(x.dtype)
        assert cond is not None
        c_out = self.scales(sigma)[1][:, None, None, None]
        c_in = (SIGMA_DATA**2 + sigma.square()).rsqrt()[:, None, None, None]
        linear = center + self.filtered(x - center, sigma)
        weights = next(self.net.parameters()).dtype
        told = [] if cond.image is None else [cond.image.to(x.dtype)]
        images = torch.cat([linear / SIGMA_DATA, *told, center / SIGMA_DATA], 1)
        time = TIME_SCALE * sigma.log()
        inner = replace(cond, image=images.to(weights), center=None)
        return linear + c_out * self.net((c_in * x).to(weights), time.to(weights), inner).to(x.dtype)

    def start(
        self, noise: Float[Tensor, "n c z x"], sigma: float, cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """The estimate, with what it leaves and noise. From noise alone every sample would lean to the mean map."""
        return _estimate(cond).to(noise) + super().start(noise, sigma)


def _estimate(cond: Condition | None) -> Float[Tensor, "n c z x"]:
    if cond is None or cond.center is None:
        raise UsageError("this denoiser works around an estimate; give it a condition with one")
    return cond.center
