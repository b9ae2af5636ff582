"""Twins of the inverse problem that are small enough to be known: exact or long-run posteriors for samplers to meet.

linear     smooth Gaussian lines, blurred looks at one half: the posterior in closed form
nonlinear  the same lines through an exponential: a long Hamiltonian Monte Carlo run
mixture    two kinds of lines, one four times as likely: the posterior is a mixture in closed form
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from lungwave.models.precond import Denoiser
from lungwave.models.wiener import Wiener, cosines
from lungwave.posterior.likelihood import Differentiable, Forward, GaussianNoise, Linear
from lungwave.posterior.samplers import Guided, Problem
from lungwave.posterior.samplers.weigh import weigh
from sample.ideal import Gaussian, Mixture

PIXELS = 32
LENGTH = 0.1  # of the correlation, in lengths of the line
DIRECTIONS = 64  # of the sliced distance
CHAINS, STEPS, WARM = 256, 300, 200  # of the long run: states that are kept come from as many chains
STRAYED = 80.0  # energy above the median chain's that no chain of a posterior in 32 dimensions has

Sampler = Callable[..., Guided]


class Silent(nn.Module):
    """A network that says nothing: its Wiener denoiser is exact for Gaussian maps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, time: Tensor, cond: object) -> Tensor:
        return torch.zeros_like(x)


class Ideal(Denoiser):
    """A closed-form denoiser behind the contract."""

    def __init__(self, exact: Mixture) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor, sigma: Tensor, cond: object = None) -> Tensor:
        return self.exact(x, sigma)


def prior() -> tuple[Wiener, Tensor]:
    """Lines of unit variance with squared-exponential correlation, as a denoiser and as a covariance."""
    place = (torch.arange(PIXELS, dtype=torch.float64) + 0.5) / PIXELS
    covariance = torch.exp(-0.5 * ((place[:, None] - place) / LENGTH) ** 2)
    basis = cosines(PIXELS)
    modes = (basis @ covariance @ basis.T).diagonal().clamp(min=1e-6)  # made exactly diagonal in cosines
    spectrum = modes.float()[None, None]
    return Wiener(Silent(), spectrum), basis.T @ torch.diag(spectrum[0, 0].double()) @ basis


def blur(pixels: int = PIXELS, looks: int = 8) -> Tensor:
    """Blurred looks at the first half."""
    place = torch.arange(pixels, dtype=torch.float64)
    rows = torch.exp(-0.5 * ((place - torch.linspace(1, pixels / 2 - 1, looks)[:, None]) / 1.5) ** 2)
    return rows / rows.sum(1, keepdim=True)


@dataclass(frozen=True)
class Twin:
    """Truths, recordings, and the exact posterior or samples of it."""

    forward: Forward
    denoiser: Denoiser
    noise: float
    truth: Tensor  # (case, pixel)
    y: Tensor  # (case, m)
    reference: Tensor  # (case, draw, pixel) of the exact posterior, or of a long run

    def run(self, sampler: Sampler, draws: int, randomness: object, **how: object) -> Guided:
        """``draws`` samples of each case."""
        many = self.y.repeat_interleave(draws, 0)
        shape = (1, 1, self.truth.shape[1])
        return sampler(Problem(many, self.forward, self.denoiser, GaussianNoise(self.noise), shape), randomness, **how)

    def samples(self, found: Guided) -> Tensor:
        """(case, draw, pixel); weighted samples are drawn again."""
        maps = found.maps.reshape(len(self.y), -1, self.truth.shape[1])
        if found.weights is None:
            return maps
        generator = torch.Generator().manual_seed(0)
        weights = found.weights.reshape(len(self.y), -1)
        chosen = torch.multinomial(weights, maps.shape[1], replacement=True, generator=generator)
        return torch.stack([one[rows] for one, rows in zip(maps, chosen, strict=True)])

    def scores(self, samples: Tensor) -> dict[str, float]:
        """Against the reference: mean error in its standard deviations, variance ratio, coverage, chi2, distance."""
        mean, std = self.reference.mean(1), self.reference.std(1)
        low, high = torch.quantile(samples, 0.05, dim=1), torch.quantile(samples, 0.95, dim=1)
        flat = samples.reshape(-1, 1, 1, samples.shape[-1])
        residual = (self.forward(flat).reshape(*samples.shape[:2], -1) - self.y[:, None]) / self.noise
        return {
            "mean_error": float(((samples.mean(1) - mean) / std).abs().mean()),
            "variance": float((samples.var(1) / std**2).mean()),
            "inside_90": float(((self.truth > low) & (self.truth < high)).double().mean()),
            "chi2": float(residual.square().mean()),
            "distance": sliced(samples, self.reference),
        }


def sliced(one: Tensor, other: Tensor) -> float:
    """Sliced Wasserstein-1 distance of two sets of samples (case, draw, pixel), mean over cases."""
    generator = torch.Generator().manual_seed(1)
    ways = torch.randn(one.shape[-1], DIRECTIONS, generator=generator, dtype=torch.float64)
    ways = ways / ways.norm(dim=0)
    level = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    quantiles = [torch.quantile(part @ ways, level, dim=1) for part in (one, other)]
    return float((quantiles[0] - quantiles[1]).abs().mean())


def linear(cases: int, draws: int, seed: int = 0) -> Twin:
    """The posterior is Gaussian."""
    denoiser, covariance = prior()
    a, noise, generator = blur(), 0.1, torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(covariance)
    truth = torch.randn(cases, PIXELS, generator=generator, dtype=torch.float64) @ root.T
    y = truth @ a.T + noise * torch.randn(cases, len(a), generator=generator, dtype=torch.float64)
    return Twin(Linear(a), denoiser, noise, truth, y, _posterior(a, covariance, noise, y, draws, generator))


def half_heard(twin: Twin, looks: list[int], draws: int) -> Tensor:
    """(case, draw, pixel) of the linear twin's posterior given only some of its looks."""
    assert isinstance(twin.forward, Linear)
    heard, generator = twin.y[:, looks], torch.Generator().manual_seed(5)
    return _posterior(twin.forward.matrix[looks], prior()[1], twin.noise, heard, draws, generator)


def weighed(twin: Twin, candidates: Tensor, count: int) -> Tensor:
    """(case, draw, pixel): one of every ``count`` candidates (case, candidate, pixel), by weight."""
    cases, many, pixels = candidates.shape
    left = twin.forward(candidates.reshape(-1, 1, 1, pixels)).reshape(cases, many, -1) - twin.y[:, None]
    weights = weigh((left / twin.noise).square().sum(-1).reshape(-1, count), twin.y.shape[1])
    taken = torch.multinomial(weights, 1, generator=torch.Generator().manual_seed(0))[:, 0]
    return candidates.reshape(-1, count, pixels)[torch.arange(len(taken)), taken].reshape(cases, -1, pixels)


def _posterior(
    a: Tensor, covariance: Tensor, noise: float, y: Tensor, draws: int, generator: torch.Generator
) -> Tensor:
    """(case, draw, pixel), in closed form."""
    gain = covariance @ a.T @ torch.linalg.inv(a @ covariance @ a.T + noise**2 * torch.eye(len(a)))
    left = covariance - gain @ a @ covariance
    spread = torch.linalg.cholesky((left + left.T) / 2 + 1e-9 * torch.eye(PIXELS))
    drawn = torch.randn(len(y), draws, PIXELS, generator=generator, dtype=torch.float64)
    return (y @ gain.T)[:, None] + drawn @ spread.T


def nonlinear(cases: int, draws: int, seed: int = 0) -> Twin:
    """``y = A exp(x) + noise``; the reference is a long run."""
    denoiser, covariance = prior()
    a, noise, generator = blur(), 0.1, torch.Generator().manual_seed(seed)
    root = torch.linalg.cholesky(covariance)
    truth = torch.randn(cases, PIXELS, generator=generator, dtype=torch.float64) @ root.T
    y = truth.exp() @ a.T + noise * torch.randn(cases, len(a), generator=generator, dtype=torch.float64)
    forward = Differentiable(lambda x: x.flatten(1).exp() @ a.to(x.dtype).T)
    return Twin(forward, denoiser, noise, truth, y, _long_run(a, root, y, noise, draws, generator))


def _long_run(a: Tensor, root: Tensor, y: Tensor, noise: float, draws: int, generator: torch.Generator) -> Tensor:
    """Hamiltonian Monte Carlo in whitened coordinates, many short-started chains a case; step sizes by case."""
    chains = max(CHAINS, draws)
    w = torch.randn(len(y), chains, PIXELS, generator=generator, dtype=torch.float64)
    w = _climbed(a, root, y, noise, w)

    def energy(w: Tensor) -> tuple[Tensor, Tensor]:
        x = (w @ root.T).clamp(max=20)
        misfit = (x.exp() @ a.T - y[:, None]) / noise
        slope = ((misfit @ a) * x.exp() / noise) @ root
        return 0.5 * (w.square().sum(-1) + misfit.square().sum(-1)), w + slope

    step = torch.full((len(y), 1, 1), 0.05, dtype=torch.float64)
    value, slope = energy(w)
    for k in range(WARM + STEPS):
        momentum = torch.randn(w.shape, generator=generator, dtype=torch.float64)
        before = value + 0.5 * momentum.square().sum(-1)
        new, push = w, momentum - 0.5 * step * slope
        for leap in range(10):
            new = new + step * push
            new_value, new_slope = energy(new)
            push = push - (0.5 if leap == 9 else 1.0) * step * new_slope
        after = new_value + 0.5 * push.square().sum(-1)
        accept = torch.rand(before.shape, generator=generator, dtype=torch.float64).log() < before - after
        w = torch.where(accept[..., None], new, w)
        value = torch.where(accept, new_value, value)
        slope = torch.where(accept[..., None], new_slope, slope)
        if k == WARM // 2:  # what started where the exponential runs away never comes back: start it again elsewhere
            lost = ~(value < value.median(1, keepdim=True).values + STRAYED)
            for case in lost.any(1).nonzero()[:, 0].tolist():
                good = (~lost[case]).nonzero()[:, 0]
                w[case, lost[case]] = w[case, good[: int(lost[case].sum())]]
            value, slope = energy(w)
        if k < WARM:
            step = step * torch.exp(0.1 * (accept.double().mean(1) - 0.8))[:, None, None]
    return (w @ root.T)[:, :draws]


def _climbed(a: Tensor, root: Tensor, y: Tensor, noise: float, w: Tensor) -> Tensor:
    """A few damped Gauss-Newton steps from prior draws towards the data, so that chains start in the bulk."""
    eye = torch.eye(PIXELS, dtype=torch.float64)
    start = w.clone()
    for _ in range(12):
        x = (w @ root.T).clamp(-8, 4)
        misfit = (x.exp() @ a.T - y[:, None]) / noise
        jacobian = (a * x.exp()[..., None, :]) @ root / noise  # (case, chain, m, pixel)
        slope = torch.einsum("ncmp,ncm->ncp", jacobian, misfit) + w - start
        w = w - 0.5 * torch.linalg.solve(jacobian.transpose(-1, -2) @ jacobian + eye, slope[..., None])[..., 0]
    return w


def mixture(cases: int, draws: int, seed: int = 0) -> tuple[Twin, Tensor]:
    """Two kinds of lines of 16 pixels, weights 0.8 and 0.2, seen by 14 noisy looks; and the posterior weights."""
    pixels, looks, noise = 16, 14, 0.5
    rng = np.random.default_rng(seed)
    means = [torch.from_numpy(s * np.full(pixels, 0.35)) for s in (1.0, -1.0)]
    cov = torch.eye(pixels, dtype=torch.float64) * 0.3**2
    weights = (0.8, 0.2)
    exact = Mixture(weights, tuple(Gaussian(mean, cov) for mean in means))
    a = torch.from_numpy(rng.normal(size=(looks, pixels)) / math.sqrt(pixels)) * 0.6
    kind = torch.from_numpy(rng.choice(2, cases, p=weights))
    truth = torch.stack(means)[kind] + 0.3 * torch.from_numpy(rng.normal(size=(cases, pixels)))
    y = truth @ a.T + noise * torch.from_numpy(rng.normal(size=(cases, looks)))
    seen = a @ cov @ a.T + noise**2 * torch.eye(looks, dtype=torch.float64)
    gain = cov @ a.T @ torch.linalg.inv(seen)
    left = torch.linalg.cholesky(cov - gain @ a @ cov)
    logs, parts = [], []
    for weight, mean in zip(weights, means, strict=True):
        off = y - mean @ a.T
        logs.append(math.log(weight) - 0.5 * (off @ torch.linalg.inv(seen) * off).sum(1))
        parts.append(mean + off @ gain.T)
    share = torch.stack(logs, 1).softmax(1)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.multinomial(share, draws, replacement=True, generator=generator)
    noise_of = torch.randn(cases, draws, pixels, generator=generator, dtype=torch.float64) @ left.T
    centres = torch.stack(parts, 1)  # (case, kind, pixel)
    drawn = torch.gather(centres, 1, chosen[..., None].expand(-1, -1, pixels)) + noise_of
    return Twin(Linear(a), Ideal(exact), noise, truth, y, drawn), share


def first_share(samples: Tensor) -> Tensor:
    """Share of each case's samples that are nearer to the first kind."""
    return (samples.mean(-1) > 0).double().mean(1)
