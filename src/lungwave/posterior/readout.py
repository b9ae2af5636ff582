"""From a map to what is said about it: percent aeration of depth bands, and the category of lung.

A map is the lung blurred by 0.5 mm; percent aeration counts air exactly. What the blur hides is small, the same for
every recording, and measured here: it is drawn for each posterior sample, so that intervals hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax

from lungwave.types import UsageError

BLOCKS = 8  # of rows that the category looks at
SHARES = (0.1, 0.3, 0.5, 0.7)  # share of the map below each of these, fraction of air
PENALTY = 1e-3  # on squared weights, per case
LEAST = 50  # cases: smooth maps have a dozen free row means
RIDGE = 1e-4  # on squared weights of the bands, per case: rows are nearly collinear


@dataclass(frozen=True)
class BandReadout:
    """Percent aeration of every band and of the whole as a linear function of the map's row means, and its error."""

    weight: Float[np.ndarray, "z out"]
    bias: Float[np.ndarray, " out"]
    error: Float[np.ndarray, "out out"]  # lower triangle; its product with its transpose is the error's covariance

    @classmethod
    def fit(cls, maps: Float[np.ndarray, "case z x"], truth: Float[np.ndarray, "case out"]) -> BandReadout:
        """Least squares on true maps and their percent aeration, fractions 0-1."""
        rows = np.asarray(maps, np.float64).mean(2)
        if len(rows) < LEAST:
            raise UsageError(f"{len(rows)} cases are too few to read bands off maps; give at least {LEAST}")
        mean, middle = rows.mean(0), truth.mean(0)
        normal = (rows - mean).T @ (rows - mean) + RIDGE * len(rows) * np.eye(rows.shape[1])
        weight = np.linalg.solve(normal, (rows - mean).T @ (truth - middle))
        bias = middle - mean @ weight
        left = truth - rows @ weight - bias
        spent = 1 + np.trace(np.linalg.solve(normal, (rows - mean).T @ (rows - mean)))  # degrees of freedom
        covariance = left.T @ left / (len(rows) - spent) + 1e-12 * np.eye(truth.shape[1])
        return cls(weight, bias, np.linalg.cholesky(covariance))

    def __call__(
        self, maps: Float[np.ndarray, "sample z x"], generator: np.random.Generator
    ) -> Float[np.ndarray, "sample out"]:
        """Percent aeration of each sample, fraction 0-1, with the error of reading it off a map."""
        exact = self.expected(maps)
        return (exact + generator.standard_normal(exact.shape) @ self.error.T).clip(0, 1)

    def expected(self, maps: Float[np.ndarray, "sample z x"]) -> Float[np.ndarray, "sample out"]:
        """Percent aeration of each sample without that error; not clipped."""
        return np.asarray(maps, np.float64).mean(2) @ self.weight + self.bias


@dataclass(frozen=True)
class CategoryReadout:
    """Probability of each category of lung given its map (multinomial logistic regression)."""

    names: tuple[str, ...]
    mean: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]
    weight: Float[np.ndarray, "feature category"]
    bias: Float[np.ndarray, " category"]

    @classmethod
    def fit(cls, maps: Float[np.ndarray, "case z x"], category: Sequence[str]) -> CategoryReadout:
        """Penalised maximum likelihood on true maps."""
        names = tuple(sorted(set(category)))
        label = np.array([names.index(name) for name in category])
        features = _features(np.asarray(maps, np.float64))
        mean, scale = features.mean(0), features.std(0) + 1e-6
        return cls(names, mean, scale, *_logistic((features - mean) / scale, label, len(names)))

    def __call__(self, maps: Float[np.ndarray, "sample z x"]) -> Float[np.ndarray, "sample category"]:
        """Probabilities for each map; their mean over posterior samples is the probability given the echoes."""
        features = (_features(np.asarray(maps, np.float64)) - self.mean) / self.scale
        return softmax(features @ self.weight + self.bias, axis=1)


def _features(maps: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, "n feature"]:
    """Mean and lateral spread by depth, and how much of the map holds little air; with their squares."""
    blocks = np.array_split(maps, BLOCKS, axis=1)
    parts = [b.mean((1, 2)) for b in blocks] + [b.mean(1).std(1) for b in blocks]
    parts += [(maps < share).mean((1, 2)) for share in SHARES]
    found = np.stack(parts, 1)
    return np.concatenate([found, np.square(found)], 1)


def _logistic(
    x: Float[np.ndarray, "n feature"], label: Int[np.ndarray, " n"], classes: int
) -> tuple[Float[np.ndarray, "feature category"], Float[np.ndarray, " category"]]:
    """Weights and biases of the most likely multinomial regression."""
    width, target = x.shape[1], np.eye(classes)[label]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = flat[: width * classes].reshape(width, classes), flat[width * classes :]
        logs = log_softmax(x @ weight + bias, axis=1)
        value = -(target * logs).sum(1).mean() + PENALTY * np.square(weight).sum()
        wrong = (np.exp(logs) - target) / len(x)
        slope = np.concatenate([(x.T @ wrong + 2 * PENALTY * weight).ravel(), wrong.sum(0)])
        return float(value), slope

    found = minimize(loss, np.zeros((width + 1) * classes), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    return found[: width * classes].reshape(width, classes), found[width * classes :]
