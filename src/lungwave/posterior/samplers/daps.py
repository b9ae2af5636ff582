"""Decoupled annealing posterior sampling with Langevin steps, ``daps``: a literature baseline.

Zhang et al. 2025 (arXiv:2407.01521, algorithm 1, eq. 7): a few steps of the probability-flow ODE guess the clean map,
Langevin steps at a small rate move it towards the data,

    x0 <- x0 - rate (|x0 - guess|^2 / 2 sigma^2 + |F(x0) - y|^2 / 2 tau^2)' + sqrt(2 rate) eps,

and noise of the next level is added. Their ``tau`` is a setting beside the noise; here it is the noise, unless the
noise's ``temperature`` says otherwise. The budget is the product of levels and Langevin steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, ddim, karras
from lungwave.types import UsageError


def daps(
    problem: Problem,
    randomness: Randomness,
    *,
    levels: int = 200,
    langevin: int = 100,
    ode: int = 5,
    rate: float = 1e-4,
    rate_end: float = 0.01,
    sigma_max: float = 20.0,
    sigma_min: float = 0.1,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One sample for each recording; the rate falls to its ``rate_end``-th. LungwaveError when all cases are lost."""
    if not (rate > 0 and 0 < rate_end <= 1 and langevin >= 1 and ode >= 1):
        raise UsageError(f"rate {rate:g}, rate_end {rate_end:g}, {langevin} Langevin and {ode} ODE steps; all above 0")
    run = Run(problem, randomness, callback, dtype)
    sigmas = karras(levels, sigma_min, sigma_max).tolist()
    x = sigmas[0] * run.normal()
    for k, (sigma, after) in enumerate(pairwise(sigmas)):
        guess = ddim(lambda v, s, _: run.denoise(v, float(s[0])), x / sigma, karras(ode, min(0.01, sigma / 2), sigma))
        step = rate * (1 + k / levels * (rate_end - 1))
        clean, residual = guess, run.residual(guess)
        for _ in range(langevin):
            slope = run.slope(clean, residual) + (clean - guess) / sigma**2
            clean = clean - step * slope + math.sqrt(2 * step) * run.normal()
            residual = run.residual(clean)
        (x,) = run.settle(sigma, residual, clean + after * run.normal())
    return run.finish(x)
