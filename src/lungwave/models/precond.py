"""One contract for every network: a denoiser ``D(x, sigma, cond) -> x0``, whatever the network was trained to predict.

``x = x0 + sigma * noise``, with maps scaled so that their standard deviation is 0.5 (``Scaling``). Karras et al. 2022
(EDM, arXiv:2206.00364), section 5 and table 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lungwave.models.noising import Noising
from lungwave.models.unet import Condition

SIGMA_DATA = 0.5  # standard deviation of the scaled maps (EDM, table 1)
TIME_SCALE = 10.0  # network time = 10 ln sigma: the fastest sine of the embedding turns ten radians per e-fold of sigma

Kind = Literal["edm", "eps", "x0", "v", "flow"]


@dataclass(frozen=True)
class Scaling:
    """Maps as fractions 0-1 <-> what the network sees: mean 0, standard deviation 0.5."""

    mean: float = 0.0  # of the training maps
    std: float = SIGMA_DATA  # of the training maps

    def to_network(self, fraction: Tensor) -> Tensor:
        """Fraction 0-1 -> network units."""
        return (fraction - self.mean) * (SIGMA_DATA / self.std)

    def to_data(self, scaled: Tensor) -> Tensor:
        """Network units -> fraction 0-1; nothing is clipped."""
        return scaled * (self.std / SIGMA_DATA) + self.mean


class Denoiser(nn.Module):
    """``D(x, sigma, cond) -> x0``, with a noise level for each sample; differentiable in x."""

    def forward(
        self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """Best guess (posterior mean) of the clean map."""
        raise NotImplementedError

    def start(
        self, noise: Float[Tensor, "n c z x"], sigma: float, cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """Noisy maps at a high noise level, to sample from, out of unit noise; a better guess than noise alone where
        the denoiser has one."""
        return sigma * noise

    def error_scale(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Error of the map where the network errs by one, ``|c_out|``; 1 where the parametrisation does not say."""
        return torch.ones_like(sigma)


class Preconditioned(Denoiser):
    """A network under one of the usual parametrisations, in continuous noise level.

    ``D = c_skip x + c_out F(c_in x, time)``. In every kind the network's own squared error is ``(D - x0)^2 / c_out^2``,
    which is the loss that ``lungwave.training`` minimises.
    """

    def __init__(self, net: nn.Module, kind: Kind = "edm", sigma_data: float = SIGMA_DATA) -> None:
        super().__init__()
        self.net, self.kind, self.sigma_data = net, kind, sigma_data

    def coefficients(self, sigma: Float[Tensor, " n"]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """``c_skip, c_out, c_in`` and the network's time at each noise level."""
        s2, d2 = sigma**2, torch.full_like(sigma, self.sigma_data**2)
        unit = (s2 + d2).rsqrt()
        time = TIME_SCALE * sigma.log()
        match self.kind:
            case "edm":  # EDM, table 1: unit variance in and out, errors of the network least amplified
                return d2 * unit**2, sigma * self.sigma_data * unit, unit, time
            case "eps":  # the noise itself (DDPM, arXiv:2006.11239, eq. 12)
                return torch.ones_like(sigma), -sigma, unit, time
            case "x0":  # the clean map, in units of sigma_data
                return torch.zeros_like(sigma), d2.sqrt(), unit, time
            case "v":  # the angular velocity (Salimans & Ho, arXiv:2202.00512, app. D), data scaled to variance 1
                return d2 * unit**2, -sigma * self.sigma_data * unit, unit, time
            case "flow":  # noise minus data along the straight path (Lipman et al., arXiv:2210.02747); t = s / (1 + s)
                keep = 1 / (1 + sigma)
                return keep, -sigma * keep, keep, time
        raise ValueError(f"unknown parametrisation {self.kind!r}")

    def error_scale(self, sigma: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """``|c_out|``: the error of the map where the network errs by one."""
        return self.coefficients(sigma)[1].abs()

    def forward(
        self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """The clean map; the network runs in the precision of its weights, the rest in that of ``x``."""
        c_skip, c_out, c_in, time = (v[:, None, None, None] for v in self.coefficients(sigma.to(x.dtype)))
        weights = next(self.net.parameters()).dtype
        predicted = self.net((c_in * x).to(weights), time.flatten().to(weights), cond)
        return c_skip * x + c_out * predicted.to(x.dtype)


class Discrete(Denoiser):
    """A network trained at discrete steps of a variance-preserving process, as OpenAI's files hold them.

    ``x_vp = x / sqrt(1 + sigma^2)``; the network is told the fractional step whose noise level is sigma, interpolated
    in log sigma and clamped to the trained range. The first half of its channels is the prediction; the second, where
    there is one, the learned variance, which a denoiser does not need. Maps lie in [-1, 1]: ``Scaling(0.5, 0.25)``.
    """

    def __init__(self, net: nn.Module, noising: Noising, predicts: Literal["eps", "x0"] = "eps") -> None:
        super().__init__()
        self.net, self.noising, self.predicts = net, noising, predicts

    def forward(
        self, x: Float[Tensor, "n c z x"], sigma: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n c z x"]:
        """The clean map; ``x - sigma eps`` where the network predicts the noise."""
        weights = next(self.net.parameters()).dtype
        time = self.noising.model_time(self.noising.time(sigma.double()))
        spread = sigma.to(x.dtype)[:, None, None, None]
        output = self.net((x / (1 + spread**2).sqrt()).to(weights), time.to(weights), cond)
        predicted = output[:, : x.shape[1]].to(x.dtype)
        return predicted if self.predicts == "x0" else x - spread * predicted
