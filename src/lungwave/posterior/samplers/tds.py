"""Twisted diffusion sampling, ``tds``: sequential Monte Carlo whose weights correct the guidance's error.

Wu et al. 2023 (arXiv:2306.17775, algorithm 1): particles follow a guided proposal q instead of the prior's kernel p,
and carry the weight

    w = twist(x') p(x' | x) / (twist(x) q(x' | x)),      twist(x) ~ p(y | x) at this noise level, at the end p(y | x0)

so that they stand for the posterior exactly as their number grows, whatever the twist, for any F. The twist is that of
``mmps``: ``N(y; F(D), noise + J V J')`` with ``V = sigma^2 dD/dx``, held as a matrix, hence for recordings of few
numbers only. Resampling (systematic) where the effective number falls below a half.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.posterior.samplers.problem import Guided, Level, Problem, Run
from lungwave.sample import Randomness, karras
from lungwave.types import UsageError

MOST = 256  # numbers of a recording: as many vector-Jacobian products of the denoiser at each level
LEAST_VALUE = 1e-6  # of an eigenvalue of J V J' in whitened recordings: an imperfect denoiser's V is not positive


@dataclass(frozen=True)
class _Twist:
    """The denoiser's guess, the guess given the data as well, and the log density of the data."""

    mean: Tensor
    clean: Tensor
    log: Float[Tensor, " n"]
    residual: Tensor


def tds(
    problem: Problem,
    randomness: Randomness,
    *,
    particles: int = 16,
    levels: int = 50,
    sigma_max: float = 20.0,
    sigma_min: float = 0.01,
    callback: Callable[[Level], Any] | None = None,
    dtype: torch.dtype = torch.float64,
) -> Guided:
    """Weighted samples: every ``particles`` rows of the problem are one recording, repeated. See ``Guided.weights``.

    Raises UsageError for other numbers of rows or long recordings, LungwaveError when all cases are lost.
    """
    _check(problem, particles)
    run = Run(problem, randomness, callback, dtype)
    sigmas = karras(levels, sigma_min, sigma_max)[:-1].tolist()
    x = sigmas[0] * run.normal()
    twist = _twist(run, x, sigmas[0])
    log = twist.log
    for sigma, after in pairwise(sigmas):
        keep, variance = (after / sigma) ** 2, (sigma**2 - after**2) * (after / sigma) ** 2
        shift = (1 - keep) * (twist.clean - twist.mean)  # of the proposal's mean against the prior's
        step = math.sqrt(variance) * run.normal()
        moved = twist.clean + keep * (x - twist.clean) + step
        towards = (2 * step * shift + shift.square()).flatten(1).sum(1) / (2 * variance)  # ln q - ln p
        new = _twist(run, moved, after)
        log = log + new.log - twist.log - towards
        x, log, mean, clean, density = run.settle(after, new.residual, moved, log, new.mean, new.clean, new.log)
        chosen, log = _resampled(run, log, particles)
        x = x[chosen]
        twist = _Twist(mean[chosen], clean[chosen], density[chosen], new.residual)
    final = run.residual(twist.mean)
    log = log - twist.log - 0.5 * final.flatten(1).square().sum(1)
    x, log = run.settle(0.0, final, twist.mean, log)
    return run.finish(x, weights=_weights(run, log, particles))


def _check(problem: Problem, particles: int) -> None:
    rows, size = len(problem.y), problem.y[0].numel()
    if particles < 2 or rows % particles:
        raise UsageError(f"{rows} rows are not recordings of {particles} particles each; repeat each so often")
    grouped = problem.y.view(-1, particles, size)
    if not bool(((grouped == grouped[:, :1]) | grouped.isnan()).all()):
        raise UsageError(f"rows of {particles} particles hold different recordings; use y.repeat_interleave")
    if size > MOST:
        raise UsageError(f"recordings of {size} numbers; tds takes at most {MOST}, use mmps or daps_rto")


def _twist(run: Run, x: Tensor, sigma: float) -> _Twist:
    """Dense in the space of recordings."""
    mean, pull = run.denoise_and_pull(x, sigma)
    residual = run.residual(mean)
    here, flat = run.inside(mean), residual.flatten(1)
    rows = []
    for k in range(flat.shape[1]):
        unit = torch.zeros_like(flat)
        unit[:, k] = 1
        rows.append(run.back(here, unit.view_as(residual)))
    moved = torch.stack([sigma**2 * pull(row) for row in rows], 1).flatten(2)  # (n, m, pixel): V J'
    inner = torch.stack(rows, 1).flatten(2) @ moved.transpose(1, 2)
    values, vectors = torch.linalg.eigh((inner + inner.transpose(1, 2)) / 2)
    values = 1 + values.clamp(min=LEAST_VALUE)
    along = torch.einsum("nij,ni->nj", vectors, flat)
    solved = torch.einsum("nij,nj->ni", vectors, along / values)
    log = -0.5 * (along.square() / values).sum(1) - 0.5 * values.log().sum(1)
    clean = mean - torch.einsum("nmp,nm->np", moved, solved).view_as(mean)
    return _Twist(mean, clean, log, residual)


def _weights(run: Run, log: Tensor, particles: int) -> Tensor:
    """Of every particle within its recording, adding up to the number of particles."""
    found = torch.zeros_like(log)
    for _, mine in _groups(run, particles):
        found[mine] = log[mine].softmax(0) * particles
    return found


def _groups(run: Run, particles: int) -> list[tuple[int, Tensor]]:
    group = run.active // particles
    return [(int(g), (group == g).nonzero()[:, 0]) for g in group.unique()]


def _resampled(run: Run, log: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    """Which particle goes on in the place of each, and the log weights after that."""
    chosen, log = torch.arange(len(log)), log.clone()
    uniform = torch.special.ndtr(run.randomness.normal_like(run.problem.y.new_zeros(len(run.problem.y), 1))[:, 0])
    for group, mine in _groups(run, particles):
        weight = log[mine].softmax(0)
        if 1 / float(weight.square().sum()) < len(mine) / 2:
            place = (torch.arange(len(mine)) + uniform[group * particles]) / len(mine)
            drawn = torch.searchsorted(weight.cumsum(0), place.to(weight)).clamp(max=len(mine) - 1)
            chosen[mine] = mine[drawn]
            log[mine] = log[mine].logsumexp(0) - math.log(len(mine))
    return chosen, log
