"""Inversion without a learned prior, ``lbfgs_tv``: L-BFGS with total variation, the field's plain baseline.

``min |F(x) - y|^2 / 2 noise^2 + weight sum sqrt(|grad x|^2 + smooth^2)`` within the valid range (Rudin, Osher &
Fatemi 1992, doi 10.1016/0167-2789(92)90242-F; L-BFGS-B of Zhu et al. 1997, doi 10.1145/279232.279236, as SciPy has it),
from the mean of the prior. A point estimate: every start gives much the same map.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize

from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness
from lungwave.types import UsageError


def lbfgs_tv(
    problem: Problem,
    randomness: Randomness,
    *,
    weight: float = 1.0,
    smooth: float = 0.01,
    iterations: int = 100,
    start: torch.Tensor | None = None,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One map for each recording; ``weight`` [1 / network unit]. Raises LungwaveError when all cases are lost."""
    if not (weight >= 0 and smooth > 0 and iterations >= 1):
        raise UsageError(f"weight {weight:g}, smooth {smooth:g}, {iterations} iterations; give positive ones")
    run = Run(problem, randomness, callback, dtype)
    low, high = run.forward.valid_range
    bounds = None if math.isinf(low) and math.isinf(high) else [(low, high)] * math.prod(problem.shape)
    found = []
    for i, y in enumerate(problem.y.to(dtype)):

        def cost(flat: np.ndarray, y: torch.Tensor = y) -> tuple[float, np.ndarray]:
            x = torch.from_numpy(flat).to(dtype).view(1, *problem.shape)
            residual = problem.noise.whiten(run.forward(run.inside(x)) - y)
            value = 0.5 * residual.square().sum()
            at = x.clone().requires_grad_()
            with torch.enable_grad():
                rough = weight * total_variation(at, smooth)
                (slope,) = torch.autograd.grad(rough, at)
            slope = slope + run.forward.vjp(run.inside(x), problem.noise.whiten(residual))
            return float(value + rough.detach()), slope.flatten().double().numpy()

        first = np.zeros(math.prod(problem.shape)) if start is None else start[i].flatten().double().numpy()
        if not bool(y.isfinite().all()):
            found.append(torch.full(problem.shape, math.nan, dtype=dtype))
            continue
        best = minimize(cost, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
        found.append(torch.from_numpy(best.x).to(dtype).view(problem.shape))
    maps = torch.stack(found)
    (maps,) = run.settle(0.0, run.residual(maps), maps)
    return run.finish(maps)


def total_variation(x: torch.Tensor, smooth: float) -> torch.Tensor:
    """Sum over pixels of the gradient's length, rounded off below ``smooth``; differences to the next pixel."""
    down = torch.nn.functional.pad(x[:, :, 1:] - x[:, :, :-1], (0, 0, 0, 1))
    across = torch.nn.functional.pad(x[:, :, :, 1:] - x[:, :, :, :-1], (0, 1))
    return (down.square() + across.square() + smooth**2).sqrt().sum()
