"""Ridge regression with group cross-validation, and split-conformal intervals that widen where errors are large."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

PENALTIES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0, 3000.0)
LEVELS = (0.5, 0.8, 0.9, 0.95)
FOLDS = 5
OUTER = 4.0  # standardised features are cut there before they are bent
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


def additive(x: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, "row three"]:
    """Each standardised feature beside its absolute value and its square: bends, and still linear in the weights."""
    x = x.clip(-OUTER, OUTER)
    return np.concatenate([x, np.abs(x), np.square(x)], 1)


def ridge(x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, "row out"], penalty: float) -> Linear:
    """Least squares with ``penalty`` times the squared weights of standardised features."""
    return next(_path(x, y, (penalty,)))


def _path(x: np.ndarray, y: np.ndarray, penalties: tuple[float, ...]) -> Iterator[Linear]:
    """One ridge model per penalty; the normal equations are formed once."""
    mean, scale, bias = x.mean(0), x.std(0) + 1e-9, y.mean(0)
    standard = (x - mean) / scale
    normal, moment = standard.T @ standard, standard.T @ (y - bias)
    for penalty in penalties:
        yield Linear(np.linalg.solve(normal + penalty * np.eye(len(normal)), moment), bias, mean, scale)


@dataclass(frozen=True)
class Validated:
    """A ridge model, and what its cross-validation left."""

    whole: Linear
    penalty: float
    left_out: Float[np.ndarray, "row out"]  # predictions of every row by the model of its fold
    folds: tuple[Linear, ...]  # each fitted without the groups of its fold, see ``folds_of``


def folds_of(groups: Integer[np.ndarray, " row"]) -> Integer[np.ndarray, " row"]:
    """Fold of every row: the groups in order take turns."""
    return np.unique(groups, return_inverse=True)[1] % FOLDS


def ridge_by_groups(
    x: Float[np.ndarray, "row feature"], y: Float[np.ndarray, "row out"], groups: Integer[np.ndarray, " row"]
) -> Validated:
    """Ridge whose penalty has the least absolute error on left-out groups.

    Rows of one group (a base anatomy) never stand on both sides.
    """
    fold = folds_of(groups)
    left_out, models = np.empty((len(PENALTIES), *y.shape)), []
    for k in range(FOLDS):
        inside, outside = fold != k, fold == k
        models.append(tuple(_path(x[inside], y[inside], PENALTIES)))
        for i, model in enumerate(models[k]):
            left_out[i, outside] = model(x[outside])
    best = int(np.argmin(np.abs(left_out.clip(0, 1) - y).mean((1, 2))))
    whole = ridge(x, y, PENALTIES[best])
    return Validated(whole, PENALTIES[best], left_out[best], tuple(path[best] for path in models))


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

    Split conformal prediction: the ceil((n + 1) level)-th smallest of n scores, infinite where n is too small (Vovk et
    al.; Lei et al., JASA 113:1094, 2018, whose scores |error| / spread are used here).
    """
    ordered = np.sort(scores, axis=0)
    count = len(ordered)
    ranks = [int(np.ceil((count + 1) * level)) for level in levels]
    return np.stack([ordered[rank - 1] if rank <= count else np.full(ordered.shape[1], np.inf) for rank in ranks])
