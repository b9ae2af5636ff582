"""Log-likelihood and bits per dimension of a diffusion model, by its probability-flow ODE.

Song et al. 2021 (arXiv:2011.13456, section 4.3 and appendix D.2): the density of what the deterministic sampler draws,
where it starts from normal noise of standard deviation sigma_max and ends at sigma_min. That is the density of the data
up to about ``|mean| / sigma_max`` and ``(sigma_min / spread)^2`` of each pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.models.precond import SIGMA_DATA, Scaling
from lungwave.models.unet import Condition
from lungwave.sample import Denoise, Seeds, resting, state_type
from lungwave.types import LungwaveError, UsageError

EIGHT_BIT = 1 / 255  # step between the values of maps that were stored as 8-bit pictures


@dataclass(frozen=True)
class Likelihood:
    """Density of each map, and the noise that the deterministic sampler would turn into it."""

    log_density: Float[Tensor, " n"]  # [nat], per unit volume of network units
    noise: Float[Tensor, "n ..."]  # unit noise at sigma_max


@dataclass(frozen=True)
class Flow:
    """How the ODE is solved."""

    steps: int = 48  # of the classical Runge-Kutta rule, evenly spaced in ln sigma; four calls and gradients each
    sigma_min: float = 0.002  # network units; the density is that of maps with this much noise
    sigma_max: float = 80.0  # network units
    sigma_data: float = SIGMA_DATA  # a scale of the data; decides only how large the numerical error is
    probes: int = 1  # random vectors for the trace (Hutchinson); 0 = exact, one gradient for each pixel


def log_likelihood(
    denoiser: Denoise,
    x: Float[Tensor, "n ..."],
    cond: Condition | None = None,
    *,
    flow: Flow = Flow(),
    randomness: Seeds | None = None,
) -> Likelihood:
    """Log-density of maps in network units; float64 if ``x`` is.

    The variable is ``y = x / sqrt(sigma^2 + sigma_data^2)`` over ``s = ln sigma``, in which the flow of Gaussian data
    of standard deviation sigma_data stands still: ``dy/ds = (c_skip x - D) / sqrt(sigma^2 + sigma_data^2)`` with
    ``c_skip`` of EDM. ``randomness`` draws the probes, which stay the same along the path (FFJORD, arXiv:1810.01367).
    """
    if flow.steps < 1 or not 0 < flow.sigma_min < flow.sigma_max < math.inf:
        raise UsageError(f"{flow}: at least one step and sigma_max > sigma_min > 0 are needed")
    if flow.probes and randomness is None:
        raise UsageError(f"{flow.probes} random probes need randomness=Seeds(seed, indices); or set probes=0")
    probes = [randomness.signs_like(x) for _ in range(flow.probes)] if randomness is not None else []
    size = x[0].numel()
    ends = [math.hypot(sigma, flow.sigma_data) for sigma in (flow.sigma_min, flow.sigma_max)]
    start, h = math.log(flow.sigma_min), math.log(flow.sigma_max / flow.sigma_min) / flow.steps
    y, volume = x / ends[0], x.new_zeros(len(x))
    for i in range(flow.steps):
        rates: list[tuple[Tensor, Tensor]] = []
        for share in (0.0, 0.5, 0.5, 1.0):
            stage = y + share * h * rates[-1][0] if rates else y
            with resting(denoiser):
                rates.append(_rate(denoiser, stage, math.exp(start + (i + share) * h), cond, flow, probes))
        y, volume = (
            value + h / 6 * (a + 2 * b + 2 * c + d)
            for value, (a, b, c, d) in zip((y, volume), zip(*rates, strict=True), strict=True)
        )
    noise = y * (ends[1] / flow.sigma_max)
    normal = -0.5 * noise.flatten(1).square().sum(1) - size * (0.5 * math.log(2 * math.pi) + math.log(flow.sigma_max))
    found = normal + volume + size * math.log(ends[1] / ends[0])
    if not found.isfinite().all():
        raise LungwaveError(f"the likelihood of map {int((~found.isfinite()).nonzero()[0])} is not finite; raise steps")
    return Likelihood(found, noise)


def _rate(
    denoiser: Denoise, y: Tensor, sigma: float, cond: Condition | None, flow: Flow, probes: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """dy/ds and its divergence."""
    scale = math.hypot(sigma, flow.sigma_data)
    keep = (flow.sigma_data / scale) ** 2
    with torch.enable_grad():
        x = (scale * y).detach().requires_grad_()
        denoised = denoiser(x, torch.full((len(x),), sigma, dtype=x.dtype, device=x.device), cond).to(x.dtype)
        trace = _trace(denoised, x, probes)
    return (keep * x.detach() - denoised.detach()) / scale, keep * x[0].numel() - trace


def _trace(y: Tensor, x: Tensor, probes: list[Tensor]) -> Tensor:
    """Trace of dy/dx for each sample: the mean of v . J v over the probes, exact over unit vectors without probes."""
    if not probes:
        size = x[0].numel()
        units = torch.eye(size, dtype=x.dtype, device=x.device).view(size, 1, *x.shape[1:])
        return sum((_quadratic(y, x, unit.expand_as(x)) for unit in units), start=x.new_zeros(len(x)))
    return sum((_quadratic(y, x, v) for v in probes), start=x.new_zeros(len(x))) / len(probes)


def _quadratic(y: Tensor, x: Tensor, v: Tensor) -> Tensor:
    (pulled,) = torch.autograd.grad(y, x, v, retain_graph=True)
    return (pulled * v).flatten(1).sum(1)


def bits_per_dim(
    denoiser: Denoise,
    maps: Float[Tensor, "n c z x"],
    scaling: Scaling,
    cond: Condition | None = None,
    *,
    grid: float | None = EIGHT_BIT,
    seed: int = 0,
    first: int = 0,
    batch: int = 16,
    device: torch.device | str = "cpu",
    flow: Flow = Flow(),
) -> Float[Tensor, " n"]:
    """Bits per pixel and channel of maps as fractions 0-1.

    With ``grid``, the maps' values are its multiples (8-bit maps: 1/255); uniform noise of one grid step is added
    (Theis et al. 2016, arXiv:1511.01844), and the result is an upper bound on the bits that code the map without loss.
    Without, it is minus the binary logarithm of the density of fractions. The noise and the probes of map k are those
    of index ``first + k`` under ``seed``, in any batch.

    Raises UsageError for values off the grid.
    """
    if grid is not None and ((maps / grid).round() * grid - maps).abs().max() > 1e-3 * grid:
        raise UsageError(f"the maps' values are not multiples of {grid:g}; give their step as grid, or grid=None")
    found = []
    for start in range(0, len(maps), batch):
        given = maps[start : start + batch].to(device, state_type(device))
        indices = range(first + start, first + start + len(given))
        if grid is not None:
            given = given + grid * Seeds(seed, indices, "dequantise").uniform_like(given)
        taken = None if cond is None else cond.take(slice(start, start + batch)).to(device)
        probes = Seeds(seed, indices, "probe")
        x = scaling.to_network(given)
        found.append(log_likelihood(denoiser, x, taken, flow=flow, randomness=probes).log_density.cpu())
    stretch = math.log(SIGMA_DATA / scaling.std)  # network units per fraction
    step = math.log(grid) if grid is not None else 0.0
    return -(torch.cat(found) / maps[0].numel() + stretch + step) / math.log(2)
