"""Posterior sampling by decoupled annealing with a randomize-then-optimize inner step, ``daps_rto``.

At each noise level the denoiser says what map a noisy one came from, the data correct that guess, and noise of the next
level is added again (Zhang et al. 2025, DAPS, arXiv:2407.01521). The inner posterior

    p(x0 | x_t, y)  ~  N(x0; D(x_t), C) N(y; F(x0), noise)

is sampled by solving a randomly perturbed least-squares problem (randomize-then-optimize; Bardsley et al. 2014, SIAM J.
Sci. Comput. 36, A1895) with Gauss-Newton and a few steps of conjugate gradients, exact for linear F.

What differs from DAPS: no Langevin steps, hence no step size, and the covariance C of the guess is not sigma^2 but that
of the prior's spectrum, ``S sigma^2 / (S + sigma^2)`` on each cosine mode (``models/wiener.py``). For a Gaussian prior
and a linear F every level is then an exact draw, whatever the number of levels; sigma^2 would be far too wide wherever
maps are smoother than the noise. A denoiser without a spectrum gets its scalar form.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.models.precond import SIGMA_DATA, Denoiser
from lungwave.models.wiener import Wiener
from lungwave.posterior.likelihood import Counted, Forward, GaussianNoise, quarantined
from lungwave.sample import Randomness, karras
from lungwave.types import LungwaveError, UsageError

HALVINGS = 4  # of a Gauss-Newton step that makes the objective worse


@runtime_checkable
class Guess(Protocol):
    """How far the clean map may be from the denoiser's guess, at each noise level."""

    def spread(self, v: Float[Tensor, "n c z x"], sigma: float) -> Float[Tensor, "n c z x"]:
        """``C^(1/2) v``, C the covariance of the clean map around the guess; symmetric."""
        ...


@dataclass(frozen=True)
class SpectralGuess:
    """Covariance of a Gaussian prior with the denoiser's spectrum."""

    denoiser: Wiener

    def spread(self, v: Float[Tensor, "n c z x"], sigma: float) -> Float[Tensor, "n c z x"]:
        """A filter on the cosine modes."""
        s = self.denoiser.spectrum.to(v)
        down, across = self.denoiser.down.to(v), self.denoiser.across.to(v)
        gain = (s * sigma**2 / (s + sigma**2)).sqrt()
        return down.T @ (gain * (down @ v @ across.T)) @ across


@dataclass(frozen=True)
class ScalarGuess:
    """Covariance of independent pixels of one variance."""

    sigma_data: float = SIGMA_DATA

    def spread(self, v: Float[Tensor, "n c z x"], sigma: float) -> Float[Tensor, "n c z x"]:
        """A factor."""
        return v * (sigma * self.sigma_data / math.hypot(sigma, self.sigma_data))


def guess_of(denoiser: Denoiser) -> Guess:
    """The spectral guess of a Wiener denoiser, else the scalar one."""
    return SpectralGuess(denoiser) if isinstance(denoiser, Wiener) else ScalarGuess()


@dataclass(frozen=True)
class Level:
    """What happened at one noise level."""

    sigma: float
    chi2: float  # mean over cases of the whitened residual of the inner draw; 1 where model and noise are right
    lost: int  # cases set aside so far


@dataclass(frozen=True)
class Guided:
    """Samples and how they came about."""

    maps: Float[Tensor, "n c z x"]  # network units; cases that were lost are NaN
    kept: Tensor  # bool (n)
    chi2: Float[Tensor, " n"]  # of the sample itself
    levels: tuple[Level, ...]
    calls: dict[str, int] = field(default_factory=dict)  # denoiser, forward, jvp, vjp, over all cases


@dataclass(frozen=True)
class Inner:
    """The data step: Gauss-Newton steps, and conjugate-gradient steps in each."""

    newton: int = 1
    gradients: int = 8

    def __post_init__(self) -> None:
        if self.newton < 1 or self.gradients < 1:
            raise UsageError(f"{self.newton} Gauss-Newton and {self.gradients} gradient steps; at least 1 each")


def daps_rto(
    y: Float[Tensor, "n ..."],
    forward: Forward,
    denoiser: Denoiser,
    noise: GaussianNoise,
    shape: tuple[int, int, int],
    randomness: Randomness,
    *,
    levels: int = 50,
    sigma_max: float = 20.0,
    sigma_min: float = 0.05,
    inner: Inner | None = None,
    start: Float[Tensor, "n c z x"] | None = None,
    guess: Guess | None = None,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One posterior sample for each recording ``y``; repeat a recording for more.

    ``start`` are maps (of an amortized posterior, say) that are noised to ``sigma_max`` instead of pure noise; choose
    ``sigma_max`` near one standard deviation of the prior then. Cases whose maps or recordings stop being finite are
    set aside and counted, never set to zero. Raises LungwaveError when all are lost.
    """
    counted, inner, guess = Counted(forward), inner or Inner(), guess or guess_of(denoiser)
    sigmas = [float(s) for s in karras(levels, sigma_min, sigma_max)[:-1]] + [0.0]
    like = torch.zeros(len(y), *shape, dtype=dtype, device=y.device)
    x = sigmas[0] * randomness.normal_like(like) + (like if start is None else start.to(dtype))
    kept = torch.ones(len(y), dtype=torch.bool, device=y.device)
    told, calls = [], 0
    for sigma, after in pairwise(sigmas):
        # Random numbers are drawn for every case, so that a lost one does not move those of the others.
        pull, more, shake = (randomness.normal_like(v) for v in (like, like, y.to(dtype)))
        with torch.no_grad():
            level = torch.full((int(kept.sum()),), sigma, dtype=dtype, device=y.device)
            mean = denoiser(x[kept], level, None)
        calls += len(level)
        clean, chi2 = _inner(mean, y[kept].to(dtype), counted, noise, guess, sigma, pull[kept], shake[kept], inner)
        good = quarantined(clean, chi2[:, None])
        x[kept] = clean + after * more[kept]
        kept[kept.nonzero()[~good, 0]] = False
        if not kept.any():
            raise LungwaveError(
                f"all {len(y)} cases were lost at sigma {sigma:.3g}: the forward model gives values that are not "
                "finite; check it with check_forward, and its valid range"
            )
        told.append(Level(sigma, float(chi2[good].mean()), int((~kept).sum())))
        if callback is not None:
            callback(told[-1])
    x[~kept] = math.nan
    final = torch.full((len(y),), math.nan, dtype=dtype, device=y.device)
    with torch.no_grad():
        final[kept] = noise.chi2(counted(_inside(x[kept], forward)) - y[kept].to(dtype))
    asked = {"denoiser": calls, "forward": counted.forwards, "jvp": counted.jvps, "vjp": counted.vjps}
    return Guided(x, kept, final, tuple(told), asked)


def _inside(x: Tensor, forward: Forward) -> Tensor:
    """Maps within the range in which the model may be called."""
    low, high = forward.valid_range
    return x if math.isinf(low) and math.isinf(high) else x.clamp(low, high)


def _inner(
    mean: Tensor, y: Tensor, forward: Forward, noise: GaussianNoise, guess: Guess, sigma: float, pull: Tensor,
    shake: Tensor, inner: Inner,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A draw of the inner posterior and its chi2.

    With ``x = mean + C^(1/2) w`` the problem is ``min |noise^-1 (F(x) - y) - shake|^2 + |w - pull|^2``.
    """
    w = pull.clone()

    def at(w: Tensor) -> tuple[Tensor, Tensor]:
        x = mean + guess.spread(w, sigma)
        return x, noise.whiten(forward(_inside(x, forward)) - y) - shake

    def cost(w: Tensor, residual: Tensor) -> Tensor:
        return residual.flatten(1).square().sum(1) + (w - pull).flatten(1).square().sum(1)

    with torch.no_grad():
        x, residual = at(w)
        now = cost(w, residual)
        for _ in range(inner.newton):
            inside = _inside(x, forward)

            def along(v: Tensor, here: Tensor = inside) -> Tensor:
                return noise.whiten(forward.jvp(here, guess.spread(v, sigma)))

            def back(u: Tensor, here: Tensor = inside) -> Tensor:
                return guess.spread(forward.vjp(here, noise.whiten(u)), sigma)

            step = _conjugate_gradients(lambda v: v + back(along(v)), -(back(residual) + w - pull), inner.gradients)
            w, x, residual, now = _searched(w, step, now, at, cost)
        return x, noise.chi2(forward(_inside(x, forward)) - y)


def _searched(
    w: Tensor, step: Tensor, now: Tensor, at: Callable[[Tensor], tuple[Tensor, Tensor]],
    cost: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """The step, halved for each case until it helps; cases it never helps stay where they are."""
    size = torch.ones(len(w), *[1] * (w.ndim - 1), dtype=w.dtype, device=w.device)
    for _ in range(HALVINGS + 1):
        tried = w + size * step
        x, residual = at(tried)
        new = cost(tried, residual)
        worse = ~(new <= now) & now.isfinite()
        if not worse.any():
            return tried, x, residual, new
        size = torch.where(worse.view(-1, *[1] * (w.ndim - 1)), size / 2, size)
    tried = torch.where(worse.view(-1, *[1] * (w.ndim - 1)), w, tried)
    x, residual = at(tried)
    return tried, x, residual, cost(tried, residual)


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """Solve ``apply(v) = right`` for each case by itself, from zero; the operator is at least the identity."""
    across = tuple(range(1, right.ndim))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(across, keepdim=True)

    solution, residual = torch.zeros_like(right), right.clone()
    direction, size = residual.clone(), dot(residual, residual)
    least = 1e-24 * size
    for _ in range(steps):
        applied = apply(direction)
        rate = size / dot(direction, applied).clamp(min=1e-300)
        solution = solution + rate * direction
        residual = residual - rate * applied
        new = dot(residual, residual)
        if bool((new <= least).all()):
            break
        direction, size = residual + new / size.clamp(min=1e-300) * direction, new
    return solution
