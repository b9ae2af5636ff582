"""Perfect denoisers: posterior means, densities and flows of Gaussians and of their mixtures, in closed form."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lungwave.models.unet import Condition


@dataclass(frozen=True)
class Gaussian:
    """Data x0 ~ N(mean, cov) of d numbers; x of any shape with d numbers a sample."""

    mean: Tensor  # (d,)
    cov: Tensor  # (d, d)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        """Posterior mean of x0: mean + C (C + sigma^2)^-1 (x - mean)."""
        values, vectors = torch.linalg.eigh(self.cov)
        shrink = values / (values + sigma[:, None] ** 2)
        along = (x.flatten(1) - self.mean) @ vectors
        return (self.mean + (shrink * along) @ vectors.T).view_as(x)

    def flow(self, x: Tensor, start: float, end: float) -> Tensor:
        """Where the probability-flow ODE carries x from level ``start`` to ``end``."""
        values, vectors = torch.linalg.eigh(self.cov)
        stretch = ((values + end**2) / (values + start**2)).sqrt()
        return (self.mean + ((x.flatten(1) - self.mean) @ vectors * stretch) @ vectors.T).view_as(x)

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Log-density [nat] of data with noise of level ``sigma``."""
        values, vectors = torch.linalg.eigh(self.cov)
        values = values + sigma**2
        along = (x.flatten(1) - self.mean) @ vectors
        return -0.5 * (along.square() / values + values.log() + math.log(2 * math.pi)).sum(1)


@dataclass(frozen=True)
class Mixture:
    """A mixture of Gaussians; a condition's label picks one part."""

    weights: tuple[float, ...]
    parts: tuple[Gaussian, ...]

    def _log_shares(self, x: Tensor, sigma: Tensor) -> Tensor:
        logs = [
            math.log(w) + torch.stack([p.log_density(x[i : i + 1], float(s))[0] for i, s in enumerate(sigma)])
            if len(set(sigma.tolist())) > 1
            else math.log(w) + p.log_density(x, float(sigma[0]))
            for w, p in zip(self.weights, self.parts, strict=True)
        ]
        return torch.stack(logs)

    def __call__(self, x: Tensor, sigma: Tensor, cond: Condition | None = None) -> Tensor:
        """Posterior mean of x0: the parts' own, weighted with their posterior probability."""
        means = torch.stack([part(x, sigma) for part in self.parts])
        if cond is not None and cond.label is not None:
            return means[cond.label, torch.arange(len(x))]
        shares = self._log_shares(x, sigma).softmax(0)
        return (shares.view(*shares.shape, *[1] * (x.ndim - 1)) * means).sum(0)

    def log_density(self, x: Tensor, sigma: float = 0.0) -> Tensor:
        """Log-density [nat] of data with noise of level ``sigma``."""
        return self._log_shares(x, torch.full((len(x),), sigma, dtype=x.dtype)).logsumexp(0)


def gaussian(dim: int, seed: int = 0, scale: float = 0.5) -> Gaussian:
    """A Gaussian with correlations, standard deviations from 0.3 to 1 times ``scale``."""
    rng = np.random.default_rng(seed)
    vectors = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    cov = vectors @ np.diag((scale * np.linspace(0.3, 1, dim)) ** 2) @ vectors.T
    return Gaussian(torch.from_numpy(scale * rng.normal(size=dim)), torch.from_numpy((cov + cov.T) / 2))


def mixture(dim: int) -> Mixture:
    """Three Gaussians that overlap a little."""
    return Mixture((0.5, 0.3, 0.2), tuple(gaussian(dim, seed) for seed in (1, 2, 3)))
