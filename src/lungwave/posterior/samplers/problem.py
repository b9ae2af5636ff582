"""What every guided sampler is given, and the account that it keeps: cases still finite, levels, calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lungwave.models.precond import Denoiser
from lungwave.posterior.likelihood import Counted, Forward, GaussianNoise, quarantined
from lungwave.sample import Randomness
from lungwave.types import LungwaveError

Start = Literal["cold", "amortized"]


@dataclass(frozen=True)
class Problem:
    """Recordings, what they come from, and the prior; repeat a recording for more samples of it."""

    y: Float[Tensor, "n ..."]
    forward: Forward
    denoiser: Denoiser
    noise: GaussianNoise
    shape: tuple[int, int, int]  # (c, z, x) of a map


@dataclass(frozen=True)
class Level:
    """What happened at one noise level, or in one iteration."""

    sigma: float
    chi2: float  # mean over cases of the whitened residual of the current clean map; 1 where model and noise are right
    lost: int  # cases set aside so far


@dataclass(frozen=True)
class Guided:
    """Samples and how they came about."""

    maps: Float[Tensor, "n c z x"]  # network units; cases that were lost are NaN
    kept: Bool[Tensor, " n"]
    chi2: Float[Tensor, " n"]  # of the sample itself
    levels: tuple[Level, ...]
    calls: dict[str, int] = field(default_factory=dict)  # denoiser, its vjps, forward, jvp, vjp, over all cases
    weights: Float[Tensor, " n"] | None = None  # of weighted samples; None = all alike
    chain: Float[Tensor, "iteration n c z x"] | None = None  # of a Markov chain, after its burn-in


class Run:
    """A sampler's account. State tensors hold the cases that are still finite, in their order."""

    def __init__(
        self,
        problem: Problem,
        randomness: Randomness,
        callback: Callable[[Level], Any] | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        self.problem, self.randomness, self.callback = problem, randomness, callback
        self.y = problem.y.to(dtype)
        self.forward = Counted(problem.forward)
        self.active = torch.arange(len(self.y), device=self.y.device)
        self.levels: list[Level] = []
        self._all_y = self.y
        self._like = torch.zeros(len(self.y), *problem.shape, dtype=dtype, device=self.y.device)
        self._denoised = self._pulled = 0

    # Random numbers are drawn for every case, so that a lost one does not move those of the others.

    def normal(self) -> Float[Tensor, "n c z x"]:
        """Standard normal maps."""
        return self.randomness.normal_like(self._like)[self.active]

    def normal_recording(self) -> Float[Tensor, "n ..."]:
        """Standard normal recordings."""
        return self.randomness.normal_like(self._all_y)[self.active]

    def denoise(self, x: Float[Tensor, "n c z x"], sigma: float) -> Float[Tensor, "n c z x"]:
        """D(x, sigma), without its graph."""
        with torch.no_grad():
            self._denoised += len(x)
            return self.problem.denoiser(x, _level(x, sigma), None)

    def denoise_and_pull(
        self, x: Float[Tensor, "n c z x"], sigma: float
    ) -> tuple[Float[Tensor, "n c z x"], Callable[[Tensor], Tensor]]:
        """D(x, sigma), and ``v -> (dD/dx)' v``."""
        at = x.detach().requires_grad_()
        with torch.enable_grad():
            found = self.problem.denoiser(at, _level(x, sigma), None)
        self._denoised += len(x)

        def pull(v: Tensor) -> Tensor:
            self._pulled += len(v)
            return torch.autograd.grad(found, at, v.to(found.dtype), retain_graph=True)[0]

        return found.detach(), pull

    def inside(self, x: Tensor) -> Tensor:
        """Maps within the range in which the forward model may be called."""
        low, high = self.forward.valid_range
        return x if math.isinf(low) and math.isinf(high) else x.clamp(low, high)

    def residual(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """Whitened F(x) - y."""
        return self.problem.noise.whiten(self.forward(self.inside(x)) - self.y)

    def slope(self, x: Float[Tensor, "n c z x"], residual: Float[Tensor, "n ..."]) -> Float[Tensor, "n c z x"]:
        """Gradient of half the squared whitened residual."""
        return self.forward.vjp(self.inside(x), self.problem.noise.whiten(residual))

    def settle(self, sigma: float, residual: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """End of a level: states of the cases that are still finite.

        Raises LungwaveError when all are lost.
        """
        chi2 = residual.flatten(1).square().mean(1)
        good = quarantined(states[0], chi2[:, None], *states[1:])
        self.active, self.y = self.active[good], self.y[good]
        lost = len(self._like) - len(self.active)
        if not len(self.active):
            raise LungwaveError(
                f"all {len(self._like)} cases were lost at sigma {sigma:.3g}: values are not finite; check the forward "
                "model with check_forward, its valid range, and the size of the sampler's steps"
            )
        self.levels.append(Level(sigma, float(chi2[good].mean()), lost))
        if self.callback is not None:
            self.callback(self.levels[-1])
        return tuple(state[good] for state in states)

    def finish(self, x: Tensor, weights: Tensor | None = None, chain: list[Tensor] | None = None) -> Guided:
        """The samples of all cases, those that were lost as NaN."""
        with torch.no_grad():
            chi2 = self.residual(x).flatten(1).square().mean(1)
        calls = {
            "denoiser": self._denoised, "denoiser_vjp": self._pulled, "forward": self.forward.forwards,
            "jvp": self.forward.jvps, "vjp": self.forward.vjps,
        }  # fmt: skip
        kept = torch.zeros(len(self._like), dtype=torch.bool, device=x.device)
        kept[self.active] = True
        return Guided(
            self.spread(x), kept, self.spread(chi2), tuple(self.levels), calls,
            None if weights is None else self.spread(weights).nan_to_num(0.0),
            None if chain is None else torch.stack(chain),
        )  # fmt: skip

    def spread(self, values: Tensor) -> Tensor:
        """Values of the cases that are left, at the places of all cases; NaN elsewhere."""
        whole = torch.full((len(self._like), *values.shape[1:]), math.nan, dtype=values.dtype, device=values.device)
        whole[self.active] = values
        return whole


def _level(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
