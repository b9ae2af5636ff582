"""Plug-and-play restoration with a diffusion denoiser, ``diffpir``: a literature baseline.

Zhu et al. 2023 (arXiv:2305.08995, algorithm 1): at each level the guess D goes through a proximal step,

    x0 = argmin |F(x) - y|^2 / 2 noise^2 + lambda |x - D|^2 / 2 sigma^2,

and noise is mixed from what x0 implies and fresh noise: ``x' = x0 + sigma' (sqrt(1 - zeta) eps_hat + sqrt(zeta) eps)``.
The spread comes from zeta alone. What differs: the proximal step is solved by Gauss-Newton instead of one gradient.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch

from lungwave.posterior.samplers.inner import Inner, rto, times
from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, karras
from lungwave.types import UsageError


def diffpir(
    problem: Problem,
    randomness: Randomness,
    *,
    levels: int = 100,
    sigma_max: float = 20.0,
    sigma_min: float = 0.01,
    weight: float = 1.0,
    zeta: float = 1.0,
    inner: Inner | None = None,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One sample for each recording; ``weight`` is lambda. Raises LungwaveError when all cases are lost."""
    if not (weight > 0 and 0 <= zeta <= 1):
        raise UsageError(f"weight {weight:g} must be above 0 and zeta {zeta:g} between 0 and 1")
    run, inner = Run(problem, randomness, callback, dtype), inner or Inner()
    sigmas = karras(levels, sigma_min, sigma_max).tolist()
    x = sigmas[0] * run.normal()
    for sigma, after in pairwise(sigmas):
        mean = run.denoise(x, sigma)
        clean, residual = rto(run, mean, times(sigma / math.sqrt(weight)), inner, random=False)
        implied = (x - clean) / sigma
        x = clean + after * (math.sqrt(1 - zeta) * implied + math.sqrt(zeta) * run.normal())
        (x,) = run.settle(sigma, residual, x)
    return run.finish(x)
