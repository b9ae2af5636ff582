"""Moment-matched posterior sampling, ``mmps``, and its cheap form ``sda``.

Rozet et al. 2024 (arXiv:2405.13712), eq. 9-12: the clean map given the noisy one is taken as Gaussian with the
denoiser's mean and, by Tweedie's second formula, the covariance ``V = sigma^2 dD/dx``. Its mean given the data too is

    D_y = D + V J' (noise + J V J')^-1 (y - F(D))

with J the derivative of F at D, solved by a few conjugate gradients in the space of recordings. ``sda`` (Rozet & Louppe
2023, arXiv:2306.10574, eq. 14) takes ``noise + gamma sigma^2`` for the bracket: one gradient, one free number. D_y then
replaces D in ancestral sampling (Ho et al. 2020). What differs: F is linearised where it is not linear, and ``V v`` is
the transposed derivative, a vector-Jacobian product, equal to the derivative for an exact denoiser.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lungwave.posterior.samplers.inner import conjugate_gradients
from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, karras
from lungwave.types import UsageError


def mmps(
    problem: Problem,
    randomness: Randomness,
    *,
    levels: int = 100,
    sigma_max: float = 20.0,
    sigma_min: float = 0.01,
    gradients: int = 4,
    gamma: float | None = None,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One sample for each recording; ``gamma`` [variance of a recording per variance of a map] makes it ``sda``.

    Raises LungwaveError when all cases are lost.
    """
    if gamma is not None and not gamma >= 0:
        raise UsageError(f"gamma {gamma:g} must be 0 or greater")
    run = Run(problem, randomness, callback, dtype)
    sigmas = karras(levels, sigma_min, sigma_max).tolist()
    x = sigmas[0] * run.normal()
    for sigma, after in pairwise(sigmas):
        mean, pull = run.denoise_and_pull(x, sigma)
        residual = run.residual(mean)
        clean = mean - _correction(run, mean, residual, pull, sigma, gradients, gamma)
        (x,) = run.settle(sigma, residual, run.ancestral(x, clean, sigma, after))
    return run.finish(x)


def sda(problem: Problem, randomness: Randomness, *, levels: int = 200, gamma: float = 0.1, **how: Any) -> Guided:
    """``mmps`` with ``noise + gamma sigma^2`` in place of the matched covariance."""
    return mmps(problem, randomness, levels=levels, gamma=gamma, **how)


def _correction(
    run: Run, mean: Tensor, residual: Tensor, pull: Callable[[Tensor], Tensor], sigma: float, gradients: int,
    gamma: float | None,
) -> Tensor:  # fmt: skip
    """``V J' (noise + J V J')^-1 (F(D) - y)``, in whitened recordings."""
    here = run.inside(mean)

    def back(u: Tensor) -> Tensor:
        return sigma**2 * pull(run.back(here, u))

    if gamma is not None:
        return back(residual / (1 + gamma * sigma**2 * run.whiten(torch.ones_like(residual)).square()))
    solved = conjugate_gradients(lambda u: u + run.along(here, back(u)), residual, gradients)
    return back(solved)
