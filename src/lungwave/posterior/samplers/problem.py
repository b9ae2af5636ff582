"""What every guided sampler is given, and the account that it keeps: cases still finite, levels, calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lungwave.models.precond import Denoiser
from lungwave.posterior.likelihood import Counted, Forward, Noise, quarantined
from lungwave.sample import Randomness
from lungwave.types import LungwaveError, UsageError


@dataclass(frozen=True)
class Unknown:
    """What else of a recording is inferred at every level, case by case.

    The size of the noise is drawn from its conjugate posterior given the map, the gain together with the map.
    """

    noise: bool = True  # size of the noise over that of the noise model; prior 1 / size (Jeffreys)
    gain: float | None = None  # standard deviation of the recording's gain around 1, a normal prior; None = it is 1

    def __post_init__(self) -> None:
        if self.gain is not None and not 0 < self.gain < math.inf:
            raise UsageError(f"gain {self.gain:g} must be a standard deviation above 0; None where it is known")


@dataclass(frozen=True)
class Problem:
    """Recordings, what they come from, and the prior; repeat a recording for more samples of it."""

    y: Float[Tensor, "n ..."]
    forward: Forward
    denoiser: Denoiser
    noise: Noise
    shape: tuple[int, int, int]  # (c, z, x) of a map
    unknown: Unknown | None = None  # None = noise and gain are what they are said to be


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
    noise_scale: Float[Tensor, " n"] | None = None  # drawn size of the noise over that of the noise model
    gain: Float[Tensor, " n"] | None = None  # drawn gain of the recording


class Run:
    """A sampler's account. State tensors hold the cases that are still finite, in their order."""

    def __init__(
        self,
        problem: Problem,
        randomness: Randomness,
        callback: Callable[[Level], Any] | None = None,
        dtype: torch.dtype = torch.float64,
        infers: bool = False,
    ) -> None:
        """``infers``: the sampler calls ``infer``. UsageError where it does not, and something is unknown."""
        if problem.unknown is not None and not infers:
            raise UsageError("this sampler takes noise and gain as known; use daps_rto")
        self.problem, self.randomness, self.callback = problem, randomness, callback
        self.y = problem.y.to(dtype)
        self.forward = Counted(problem.forward)
        self.active = torch.arange(len(self.y), device=self.y.device)
        self.levels: list[Level] = []
        self._all_y = self.y
        self._like = torch.zeros(len(self.y), *problem.shape, dtype=dtype, device=self.y.device)
        self._denoised = self._pulled = 0
        self.scale = torch.ones(len(self.y), dtype=dtype, device=self.y.device)
        self.gain = torch.ones_like(self.scale)

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

    def ancestral(self, x: Tensor, clean: Tensor, sigma: float, after: float) -> Float[Tensor, "n c z x"]:
        """A draw of the next level given the clean map (Ho et al. 2020, arXiv:2006.11239, eq. 6 and 7)."""
        fresh = math.sqrt(sigma**2 - after**2) * after / sigma
        return clean + (after / sigma) ** 2 * (x - clean) + fresh * self.normal()

    def inside(self, x: Tensor) -> Tensor:
        """Maps within the range in which the forward model may be called."""
        low, high = self.forward.valid_range
        return x if math.isinf(low) and math.isinf(high) else x.clamp(low, high)

    def free(self, x: Float[Tensor, "n c z x"], slope: Float[Tensor, "n c z x"]) -> Float[Tensor, "n c z x"] | None:
        """1 where going down the slope of the misfit changes the forward model, 0 where it leaves the valid range.

        Beyond the range the model stands still: a step that counts on its derivative there goes nowhere. None = all.
        """
        low, high = self.forward.valid_range
        if math.isinf(low) and math.isinf(high):
            return None
        return 1 - (((x >= high) & (slope < 0)) | ((x <= low) & (slope > 0))).to(x.dtype)

    def whiten(self, recording: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """In standard deviations of the noise."""
        return self.problem.noise.whiten(recording) / _like(self.scale, recording)

    def residual(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """Whitened gain F(x) - y."""
        return self.whiten(_like(self.gain, self.y) * self.forward(self.inside(x)) - self.y)

    def along(self, x: Float[Tensor, "n c z x"], v: Float[Tensor, "n c z x"]) -> Float[Tensor, "n ..."]:
        """Change of the residual along ``v``; ``x`` is inside the valid range."""
        return self.whiten(_like(self.gain, self.y) * self.forward.jvp(x, v))

    def back(self, x: Float[Tensor, "n c z x"], u: Float[Tensor, "n ..."]) -> Float[Tensor, "n c z x"]:
        """The adjoint of ``along``."""
        return self.forward.vjp(x, _like(self.gain, u) * self.whiten(u))

    def slope(self, x: Float[Tensor, "n c z x"], residual: Float[Tensor, "n ..."]) -> Float[Tensor, "n c z x"]:
        """Gradient of half the squared whitened residual."""
        return self.back(self.inside(x), residual)

    def infer(self, residual: Float[Tensor, "n ..."]) -> None:
        """Draw the size of the noise, where it is unknown, given the whitened residual of clean maps."""
        if self.problem.unknown is None or not self.problem.unknown.noise:
            return
        misfit = (_like(self.scale, residual) * residual).flatten(1)  # in the noise model's own deviations
        chi2 = self.normal_recording().flatten(1).square().sum(1)  # as many squares as the residual has numbers
        self.scale = (misfit.square().sum(1) / chi2).sqrt()

    def settle(self, sigma: float, residual: Tensor, *states: Tensor) -> tuple[Tensor, ...]:
        """End of a level: states of the cases that are still finite.

        Raises LungwaveError when all are lost.
        """
        chi2 = residual.flatten(1).square().mean(1)
        good = quarantined(states[0], chi2[:, None], *states[1:])
        self.active, self.y = self.active[good], self.y[good]
        self.scale, self.gain = self.scale[good], self.gain[good]
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
            self.spread(self.scale) if self.problem.unknown else None,
            self.spread(self.gain) if self.problem.unknown else None,
        )  # fmt: skip

    def spread(self, values: Tensor) -> Tensor:
        """Values of the cases that are left, at the places of all cases; NaN elsewhere."""
        whole = torch.full((len(self._like), *values.shape[1:]), math.nan, dtype=values.dtype, device=values.device)
        whole[self.active] = values
        return whole


def _like(value: Float[Tensor, " n"], other: Tensor) -> Tensor:
    """One value a case, to be multiplied with ``other``."""
    return value.view(-1, *[1] * (other.ndim - 1))


def _level(x: Tensor, sigma: float) -> Tensor:
    return torch.full((len(x),), sigma, dtype=x.dtype, device=x.device)
