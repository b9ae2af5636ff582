"""Decoupled annealing with a randomize-then-optimize data step, ``daps_rto``: the default.

At each noise level the denoiser says what map a noisy one came from, the data correct that guess, and noise of the next
level is added again (Zhang et al. 2025, DAPS, arXiv:2407.01521, algorithm 1):

    x0 ~ p(x0 | x_t, y) ~ N(x0; D(x_t), C) N(y; F(x0), noise),      x_next = x0 + sigma_next * noise

What differs from DAPS: the draw of x0 is ``inner.rto`` instead of Langevin steps, hence no step size; and the
covariance C of the guess is not sigma^2 but that of the prior's spectrum, ``S sigma^2 / (S + sigma^2)`` on each cosine
mode (``models/wiener.py``). For a Gaussian prior and a linear F every level is then an exact draw, whatever the number
of levels; sigma^2 would be far too wide wherever maps are smoother than the noise. A denoiser without a spectrum gets
the scalar form.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.posterior.samplers.inner import Guess, Inner, guess_of, rto
from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, karras


def daps_rto(
    problem: Problem,
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
    """One posterior sample for each recording.

    ``start`` are maps (of an amortized posterior, say) that are noised to ``sigma_max`` instead of pure noise; choose
    ``sigma_max`` near one standard deviation of the prior then. Cases whose maps or recordings stop being finite are
    set aside and counted, never set to zero. Raises LungwaveError when all are lost.
    """
    run = Run(problem, randomness, callback, dtype, infers=True)
    inner, guess = inner or Inner(), guess or guess_of(problem.denoiser)
    sigmas = karras(levels, sigma_min, sigma_max).tolist()
    x = sigmas[0] * run.normal()
    x = x if start is None else x + start.to(dtype)
    for sigma, after in pairwise(sigmas):
        clean, residual = rto(run, run.denoise(x, sigma), partial(guess.spread, sigma=sigma), inner)
        run.infer(residual)
        more = run.normal()
        (x,) = run.settle(sigma, residual, clean + after * more)
    return run.finish(x)
