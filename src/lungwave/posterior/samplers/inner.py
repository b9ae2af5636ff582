"""The data step: draws of p(x) ~ N(x; mean, C) N(y; F(x), noise) by randomize-then-optimize.

Bardsley et al. 2014 (SIAM J. Sci. Comput. 36, A1895): both terms of the least-squares problem are moved by a draw of
their own noise, and the problem is solved, here with Gauss-Newton and a few steps of conjugate gradients, halved where
they do not help. Exact for linear F.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.models.precond import SIGMA_DATA, Denoiser
from lungwave.models.wiener import Wiener
from lungwave.posterior.samplers.problem import Run
from lungwave.types import UsageError

HALVINGS = 4  # of a Gauss-Newton step that makes the objective worse

Maps = Float[Tensor, "n c z x"]


@runtime_checkable
class Guess(Protocol):
    """How far the clean map may be from the denoiser's guess, at each noise level."""

    def spread(self, v: Maps, sigma: float) -> Maps:
        """``C^(1/2) v``, C the covariance of the clean map around the guess; symmetric."""
        ...


@dataclass(frozen=True)
class SpectralGuess:
    """Covariance of a Gaussian prior with the denoiser's spectrum."""

    denoiser: Wiener

    def spread(self, v: Maps, sigma: float) -> Maps:
        """A filter on the cosine modes."""
        s = self.denoiser.spectrum.to(v)
        return self.denoiser.on_modes(v, (s * sigma**2 / (s + sigma**2)).sqrt())


@dataclass(frozen=True)
class ScalarGuess:
    """Covariance of independent pixels of one variance."""

    sigma_data: float = SIGMA_DATA

    def spread(self, v: Maps, sigma: float) -> Maps:
        """A factor."""
        return v * (sigma * self.sigma_data / math.hypot(sigma, self.sigma_data))


def guess_of(denoiser: Denoiser) -> Guess:
    """The spectral guess of a Wiener denoiser, else the scalar one."""
    return SpectralGuess(denoiser) if isinstance(denoiser, Wiener) else ScalarGuess()


@dataclass(frozen=True)
class Inner:
    """Gauss-Newton steps, and conjugate-gradient steps in each."""

    newton: int = 1
    gradients: int = 8

    def __post_init__(self) -> None:
        if self.newton < 1 or self.gradients < 1:
            raise UsageError(f"{self.newton} Gauss-Newton and {self.gradients} gradient steps; at least 1 each")


def rto(
    run: Run, mean: Maps, spread: Callable[[Maps], Maps], inner: Inner, *, random: bool = True
) -> tuple[Maps, Float[Tensor, "n ..."]]:
    """A draw, and its whitened residual; ``random=False`` gives the mode instead.

    With ``x = mean + C^(1/2) w`` and ``spread`` = C^(1/2) the problem is ``min |residual - shake|^2 + |w - pull|^2``. A
    gain that is not known is one more entry of w, drawn together with the map: one after the other would never move
    both where the data are precise.
    """
    size, sway = mean[0].numel(), None if run.problem.unknown is None else run.problem.unknown.gain
    shake, pull = torch.zeros_like(run.y), torch.zeros(len(mean), size + (sway is not None)).to(mean)
    if random:
        shake, pull[:, :size] = run.normal_recording(), run.normal().flatten(1)
        if sway is not None:
            pull[:, size] = run.normal_recording().flatten(1)[:, 0]

    def at(w: Tensor) -> tuple[Tensor, Tensor]:
        x = mean + spread(w[:, :size].reshape(mean.shape))
        if sway is not None:
            run.gain = 1 + sway * w[:, size]
        return x, run.residual(x) - shake

    def cost(w: Tensor, residual: Tensor) -> Tensor:
        return residual.flatten(1).square().sum(1) + (w - pull).square().sum(1)

    with torch.no_grad():
        w = pull.clone()
        x, residual = at(w)
        now = cost(w, residual)
        for _ in range(inner.newton):
            here = run.inside(x)
            pulled = run.back(here, residual)
            free = run.free(x, pulled)
            echo = None if sway is None else sway * run.whiten(run.forward(here))  # derivative along the gain's entry

            def along(v: Tensor, here: Tensor = here, echo: Tensor | None = echo, free: Tensor | None = free) -> Tensor:
                moved = spread(v[:, :size].reshape(mean.shape))
                found = run.along(here, moved if free is None else free * moved)
                return found if echo is None else found + v[:, size].view(-1, *[1] * (echo.ndim - 1)) * echo

            def toward(slope: Maps, u: Tensor, echo: Tensor | None = echo, free: Tensor | None = free) -> Tensor:
                found = spread(slope if free is None else free * slope).flatten(1)
                return found if echo is None else torch.cat([found, (echo * u).flatten(1).sum(1, keepdim=True)], 1)

            def normal(v: Tensor, here: Tensor = here, along: Any = along, toward: Any = toward) -> Tensor:
                change = along(v)
                return v + toward(run.back(here, change), change)

            step = conjugate_gradients(normal, -(toward(pulled, residual) + w - pull), inner.gradients)
            w, x, residual, now = _searched(w, step, (x, residual, now), at, cost)
        return x, residual + shake


def times(factor: float) -> Callable[[Maps], Maps]:
    """``C^(1/2)`` of independent pixels."""
    return lambda v: factor * v


def _searched(
    w: Tensor,
    step: Tensor,
    before: tuple[Tensor, Tensor, Tensor],
    at: Callable[[Tensor], tuple[Tensor, Tensor]],
    cost: Callable[[Tensor, Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The step, halved for each case until it helps; cases it never helps stay where they are."""
    shape = (len(w), *[1] * (w.ndim - 1))
    size = torch.ones(shape, dtype=w.dtype, device=w.device)
    x, residual, now = before
    for _ in range(HALVINGS + 1):
        tried = w + size * step
        x, residual = at(tried)
        new = cost(tried, residual)
        worse = ~(new <= now) & now.isfinite()
        if not worse.any():
            return tried, x, residual, new
        size = torch.where(worse.view(shape), size / 2, size)
    tried = torch.where(worse.view(shape), w, tried)
    x, residual = at(tried)
    return tried, x, residual, cost(tried, residual)


def conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int) -> Tensor:
    """Solve ``apply(v) = right`` for each case by itself, from zero.

    The operator should be positive; a direction along which it is not ends the case's search where it is.
    """
    across = tuple(range(1, right.ndim))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(across, keepdim=True)

    solution, residual = torch.zeros_like(right), right.clone()
    direction, size = residual.clone(), dot(residual, residual)
    least, going = 1e-24 * size, torch.ones_like(size, dtype=torch.bool)
    for _ in range(steps):
        applied = apply(direction)
        curvature = dot(direction, applied)
        going = going & (curvature > 0) | curvature.isnan()  # NaN goes on, to be noticed and counted
        rate = torch.where(going, size / curvature.clamp(min=1e-300), torch.zeros_like(size))
        solution = solution + rate * direction
        residual = residual - rate * applied
        new = dot(residual, residual)
        if bool(((new <= least) | ~going).all()):
            break
        direction, size = residual + new / size.clamp(min=1e-300) * direction, new
    return solution
