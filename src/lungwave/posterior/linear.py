"""Ridge regression with group cross-validation, and split-conformal intervals that widen where errors are large."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
LEVELS = (0.5, 0.8, 0.9, 0.95)
FOLDS = 5
ERROR_FLOOR = 0.01  # fraction of aeration: errors below it are as good as zero when spreads are learned


@dataclass(frozen=True)
class Linear:
    """y = (x - mean) / scale @ weight + bias."""

    weight: Float[np.ndarray, "feature out"]
    bias: Float[np.ndarray, " out"]
    mean: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]

    def __call__(self, x: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row out"]:
        """Prediction for every row."""
        return ((x - self.mean) / self.scale) @ self.weight + self.bias


def ridge(x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, "row out"], penalty: float) -> Linear:
    """Least squares with ``penalty`` times the squared weights of standardised features."""
    mean, scale = x.mean(0), x.std(0) + 1e-9
    standard, bias = (x - mean) / scale, y.mean(0)
    normal = standard.T @ standard + penalty * np.eye(x.shape[1])
    return Linear(np.linalg.solve(normal, standard.T @ (y - bias)), bias, mean, scale)


def ridge_by_groups(
    x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, "row out"], groups: Integer[np.ndarray, " row"]
) -> tuple[Linear, float, Float[np.ndarray, "row out"]]:
    """Ridge whose penalty has the least absolute error on left-out groups; that penalty; and the left-out predictions.

    Rows of one group (a base anatomy) never stand on both sides.
    """
    fold = np.unique(groups, return_inverse=True)[1] % FOLDS
    best: tuple[float, float, np.ndarray] | None = None
    for penalty in PENALTIES:
        left_out = np.empty_like(y)
        for k in range(FOLDS):
            left_out[fold == k] = ridge(x[fold != k], y[fold != k], penalty)(x[fold == k])
        error = float(np.abs(left_out.clip(0, 1) - y).mean())
        if best is None or error < best[0]:
            best = error, penalty, left_out
    assert best is not None
    return ridge(x, y, best[1]), best[1], best[2]


def fit_spread(
    x: Float[np.ndarray, "row feature"], error: Float[np.ndarray, "row out"], penalty: float = 1000.0
) -> Linear:
    """Log of the expected absolute error as a linear function of the features."""
    return ridge(x, np.log(np.abs(error) + ERROR_FLOOR), penalty)


def spread(model: Linear, x: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row out"]:
    """Expected absolute error of each row, within bounds that keep an odd feature from making it absurd."""
    return np.exp(np.clip(model(x), np.log(ERROR_FLOOR), np.log(0.5)))


def conformal_quantiles(
    scores: Float[np.ndarray, "row out"], levels: tuple[float, ...] = LEVELS
) -> Float[np.ndarray, "level out"]:
    """Quantiles of held-out scores that cover a new case with at least each level.

    Split conformal prediction: the ceil((n + 1) level)-th smallest of n scores, infinite where n is too small (Vovk et al.;
    Lei et al., JASA 113:1094, 2018, whose scores |error| / spread are used here).
    """
    ordered = np.sort(scores, axis=0)
    count = len(ordered)
    ranks = [int(np.ceil((count + 1) * level)) for level in levels]
    return np.stack([ordered[rank - 1] if rank <= count else np.full(ordered.shape[1], np.inf) for rank in ranks])
