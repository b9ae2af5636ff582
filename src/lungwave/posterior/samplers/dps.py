"""Diffusion posterior sampling, ``dps``: a literature baseline, and no posterior.

Chung et al. 2023 (arXiv:2209.14687, algorithm 1): after each ancestral step the state moves against the gradient of the
misfit of the denoiser's guess, ``x' - zeta grad |y - F(D(x))|``. The norm is not squared, as in the authors' code, and
``zeta`` replaces the noise's size, so that nothing says how far samples should spread: it acts as a mode search (Xu et
al. 2025, arXiv:2501.18913). Written for their variance-preserving x: with ``x_vp = a x`` and ``a = (1 + sigma^2)^-1/2``
the step along x is ``zeta / (a a')``. Levels are those of their linear betas.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, vp_linear
from lungwave.types import UsageError


def dps(
    problem: Problem,
    randomness: Randomness,
    *,
    levels: int = 1000,
    zeta: float = 1.0,
    sigma_max: float = 100.0,
    sigma_min: float = 0.01,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One sample for each recording. Raises LungwaveError when all cases are lost."""
    if not zeta > 0:
        raise UsageError(f"zeta {zeta:g} must be greater than 0")
    run = Run(problem, randomness, callback, dtype)
    sigmas = vp_linear(levels, sigma_min, sigma_max).tolist()
    x = sigmas[0] * run.normal()
    for sigma, after in pairwise(sigmas):
        mean, pull = run.denoise_and_pull(x, sigma)
        misfit = run.forward(run.inside(mean)) - run.y
        size = misfit.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, *[1] * (misfit.ndim - 1))
        gradient = pull(run.forward.vjp(run.inside(mean), misfit / size))
        x = run.ancestral(x, mean, sigma, after)
        x = x - zeta * math.sqrt((1 + sigma**2) * (1 + after**2)) * gradient
        (x,) = run.settle(sigma, run.whiten(misfit), x)
    return run.finish(x)
