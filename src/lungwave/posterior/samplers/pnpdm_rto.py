"""Split Gibbs sampling with a randomize-then-optimize data step, ``pnpdm_rto``: chains whose convergence can be tested.

Wu et al. 2024 (PnP-DM, arXiv:2405.18782, algorithm 1) alternate, for a falling coupling rho,

    z ~ exp(-|F(z) - y|^2 / 2 noise^2 - |z - x|^2 / 2 rho^2)     the data step, here ``inner.rto``
    x ~ p(x) exp(-|x - z|^2 / 2 rho^2)                           the prior step: the diffusion from sigma = rho to 0

The pair's stationary density tends to the posterior as rho goes to 0; its floor inflates the residual. What differs: no
Langevin steps in the data step, and ancestral sampling as the prior step's SDE. ``split_rhat`` and ``effective_size``
of ``chains.py`` say whether the chains agree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lungwave.models.unet import Condition
from lungwave.posterior.samplers.inner import Inner, rto, times
from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, ancestral, karras
from lungwave.types import UsageError


class _Active:
    """Noise of a run's cases that are left."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def normal_like(self, x: torch.Tensor) -> torch.Tensor:
        return self.run.normal()


def pnpdm_rto(
    problem: Problem,
    randomness: Randomness,
    *,
    iterations: int = 100,
    burn_in: int = 60,
    every: int = 1,
    rho_max: float = 5.0,
    rho_min: float = 0.1,
    decay: float = 0.9,
    steps: int = 20,
    inner: Inner | None = None,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """One chain for each recording; the last state, and every ``every``-th after the burn-in in ``chain``.

    Repeat a recording for several chains of it. Raises LungwaveError when all cases are lost.
    """
    if not 0 <= burn_in < iterations or every < 1:
        raise UsageError(f"{iterations} iterations, {burn_in} of burn-in, every {every}; keep at least one")
    if not rho_max * decay**burn_in <= rho_min * (1 + 1e-9):
        raise UsageError(
            f"rho falls from {rho_max:g} by {decay:g} an iteration and has not reached its floor {rho_min:g} after "
            f"{burn_in}; give a longer burn-in, or a faster decay"
        )
    run, inner = Run(problem, randomness, callback, dtype), inner or Inner()
    x, chain = rho_max * run.normal(), []
    for k in range(iterations):
        rho = max(rho_max * decay**k, rho_min)
        z, residual = rto(run, x, times(rho), inner)
        sigmas = karras(steps, min(0.02, rho / 4), rho)

        def denoise(x: torch.Tensor, sigma: torch.Tensor, _: Condition | None) -> torch.Tensor:
            return run.denoise(x, float(sigma[0]))

        x = ancestral(denoise, z / rho, sigmas, randomness=_Active(run))
        (x,) = run.settle(rho, residual, x)
        if k >= burn_in and (k - burn_in) % every == 0:
            chain.append(run.spread(x))
    return run.finish(x, chain=chain)
