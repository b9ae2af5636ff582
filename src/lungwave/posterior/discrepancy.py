"""What a forward model leaves out, as part of the noise: its covariance, learned from simulated pairs.

Bayesian approximation error (Kaipio and Somersalo 2007, doi 10.1016/j.cam.2005.09.027): the recording is
``y = F(x) + e + n`` with ``e`` the difference between all of the physics and the model, taken as Gaussian and
independent of the map. Learned on pairs of (all of the physics, model) of lungs that are not used otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from lungwave.posterior.likelihood import Noise
from lungwave.types import UsageError

SHRINKAGES = (
    1e-4,
    1e-3,
    5e-3,
    0.02,
    0.05,
    0.1,
    0.2,
    0.35,
    0.5,
    0.75,
    1.0,
)  # of the sample covariance towards its diagonal
LEAST = 20  # pairs: fewer tell neither correlations nor how far to trust them
FLOOR = 1e-6  # of the mean variance, so that entries that are silent in all pairs can be whitened


@dataclass(frozen=True)
class Discrepancy:
    """Covariance of ``e``, in squares of the unit that recordings are given in."""

    covariance: Float[np.ndarray, "m m"]
    shape: tuple[int, ...]  # of a recording, m entries
    shrinkage: float
    differences: Float[np.ndarray, "pair ..."]  # that it was learned from

    @classmethod
    def of(cls, differences: Float[np.ndarray, "pair ..."], shrinkage: float) -> Discrepancy:
        """From differences, with a shrinkage that was found before."""
        flat = np.asarray(differences, np.float64).reshape(len(differences), -1)
        return cls(_shrunk(flat, shrinkage), tuple(np.shape(differences)[1:]), shrinkage, differences)

    @classmethod
    def fit(
        cls, differences: Float[np.ndarray, "pair ..."], scales: Float[np.ndarray, " pair"] | None = None
    ) -> Discrepancy:
        """From differences of full physics and model; the shrinkage that foretells left-out pairs best is taken.

        ``scales`` divide each pair, where recordings are told in units of their own loudness. The mean is part of the
        covariance: a model is not corrected, only doubted. Raises UsageError for too few pairs or values that are not
        finite.
        """
        flat = np.asarray(differences, np.float64).reshape(len(differences), -1)
        if len(flat) < LEAST:
            raise UsageError(f"{len(flat)} pairs are too few to learn what the model leaves out; give {LEAST} or more")
        if scales is not None:
            flat = flat / scales[:, None]
        if not np.isfinite(flat).all():
            raise UsageError("the pairs hold values that are not finite; leave those lungs out")
        inside, outside = flat[::2], flat[1::2]
        scored = [_log_density(outside, _shrunk(inside, amount)) for amount in SHRINKAGES]
        best = SHRINKAGES[int(np.argmax(scored))]
        return cls.of(flat.reshape(np.shape(differences)), best)

    @cached_property
    def _modes(self) -> tuple[Tensor, Tensor]:
        """Variances and modes: the costly part, once for all recordings."""
        values, vectors = torch.linalg.eigh(torch.from_numpy(self.covariance).double())
        return values.clamp(min=0), vectors

    def noise(self, std: float, scale: float = 1.0) -> CorrelatedNoise:
        """Together with independent noise of standard deviation ``std`` in each entry.

        ``scale`` is the recording's loudness, where the pairs were told in units of their own.
        """
        values, vectors = self._modes
        return CorrelatedNoise(values * scale**2 + std**2, vectors, self.shape)


@dataclass(frozen=True)
class CorrelatedNoise(Noise):
    """Gaussian noise of a full covariance; its symmetric root whitens, so that whitening is its own adjoint.

    Stands wherever ``likelihood.GaussianNoise`` does, for recordings of a few thousand entries.
    """

    values: Float[Tensor, " m"]  # variances
    vectors: Float[Tensor, "m m"]  # of the modes (columns) that have them
    shape: tuple[int, ...]
    temperature: float = 1.0

    def __post_init__(self) -> None:
        size = math.prod(self.shape)
        if self.vectors.shape != (size, size) or self.values.shape != (size,):
            raise UsageError(f"a covariance of {tuple(self.vectors.shape)} for recordings of {self.shape}")
        if not self.temperature > 0:
            raise UsageError(f"temperature {self.temperature:g} must be greater than 0")
        if not float(self.values.min()) > 0:
            raise UsageError(
                f"the noise's covariance has an eigenvalue of {float(self.values.min()):.1e}; it must be positive"
            )

    @classmethod
    def of(cls, covariance: Float[Tensor, "m m"], shape: tuple[int, ...], temperature: float = 1.0) -> CorrelatedNoise:
        """From a covariance. UsageError where it is of another size, or not positive."""
        values, vectors = torch.linalg.eigh(covariance.double())
        return cls(values, vectors, shape, temperature)

    @property
    def covariance(self) -> Float[Tensor, "m m"]:
        """Of the noise at temperature 1."""
        return (self.vectors * self.values) @ self.vectors.T

    def marginal(self, events: Sequence[int]) -> CorrelatedNoise:
        """That of some events, the first axis of recordings, alone: what they share with the others is not known."""
        some = self.vectors.unflatten(0, (self.shape[0], -1))[list(events)].flatten(0, 1)
        return CorrelatedNoise.of((some * self.values) @ some.T, (len(events), *self.shape[1:]), self.temperature)

    @cached_property
    def _roots(self) -> tuple[Tensor, Tensor]:
        """``C^(-1/2)`` and ``C^(1/2)``."""
        values, vectors = self.values * self.temperature, self.vectors
        return (vectors * values.rsqrt()) @ vectors.T, (vectors * values.sqrt()) @ vectors.T

    def whiten(self, residual: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Residuals in standard deviations of the noise. UsageError where the noise has another shape."""
        if residual.shape[1:] != self.shape:
            raise UsageError(f"noise of shape {self.shape} for recordings of {tuple(residual.shape[1:])}")
        return (residual.flatten(1) @ self._roots[0].to(residual)).reshape(residual.shape)

    def draw(self, normal: Float[Tensor, "n ..."]) -> Float[Tensor, "n ..."]:
        """Noise, from standard normal recordings."""
        return (normal.flatten(1) @ self._roots[1].to(normal)).reshape(normal.shape)


def _shrunk(flat: Float[np.ndarray, "pair m"], amount: float) -> Float[np.ndarray, "m m"]:
    """Second moments, ``amount`` of the way to their diagonal."""
    found = flat.T @ flat / len(flat)
    diagonal = np.diagonal(found) + FLOOR * np.diagonal(found).mean()
    found = (1 - amount) * found
    np.fill_diagonal(found, diagonal)
    return found


def _log_density(flat: Float[np.ndarray, "pair m"], covariance: Float[np.ndarray, "m m"]) -> float:
    """Mean over pairs, without the constant."""
    root = np.linalg.cholesky(covariance)
    return float(-0.5 * np.square(np.linalg.solve(root, flat.T)).sum() / len(flat) - np.log(np.diagonal(root)).sum())
