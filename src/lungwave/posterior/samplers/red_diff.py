"""Regularisation by denoising diffusion, ``red_diff``: a literature baseline, a point estimate.

Mardani et al. 2024 (arXiv:2305.04391, algorithm 1): Adam on one map mu against

    |F(mu) - y|^2 / 2 noise^2  +  weight sigma <eps_hat(mu + sigma eps) - eps, mu>,

levels falling, the bracket held fixed; ``weight sigma`` is their inverse root of the signal-to-noise ratio. F is only
called on mu, never on noisy maps. Its variational family has no spread, so neither have its samples.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, exponential
from lungwave.types import UsageError

BETAS, EPSILON = (0.9, 0.99), 1e-8  # of Adam, as in the authors' code


def red_diff(
    problem: Problem,
    randomness: Randomness,
    *,
    levels: int = 1000,
    sigma_max: float = 20.0,
    sigma_min: float = 0.02,
    weight: float = 0.25,
    rate: float = 0.1,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One map for each recording, from a random start. Raises LungwaveError when all cases are lost."""
    if not (weight > 0 and rate > 0):
        raise UsageError(f"weight {weight:g} and rate {rate:g} must be greater than 0")
    run = Run(problem, randomness, callback, dtype)
    mu = 0.1 * run.normal()
    first, second = torch.zeros_like(mu), torch.zeros_like(mu)
    for k, sigma in enumerate(exponential(levels, sigma_min, sigma_max)[:-1].tolist(), 1):
        noise = run.normal()
        noisy = mu + sigma * noise
        implied = (noisy - run.denoise(noisy, sigma)) / sigma
        residual = run.residual(mu)
        gradient = run.slope(mu, residual) + weight * sigma * (implied - noise)
        first = BETAS[0] * first + (1 - BETAS[0]) * gradient
        second = BETAS[1] * second + (1 - BETAS[1]) * gradient.square()
        size = (second / (1 - BETAS[1] ** k)).sqrt() + EPSILON
        mu = mu - rate * first / (1 - BETAS[0] ** k) / size
        mu, first, second = run.settle(sigma, residual, mu, first, second)
    return run.finish(mu)
