"""Where the lung begins: a linear detector of the pleural line and the smoothest path through its scores."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter1d
from scipy.special import softmax

from lungwave.posterior.echoes import Echoes

OFFSETS = np.arange(-12, 13, 2)  # rows above and below a candidate that the detector reads
TARGET_WIDTH = 0.2  # [wavelength] of the bump that marks the true pleura in training
STEP_PENALTY = 0.3  # score that one row of jump between neighbouring columns costs
PATH_SMOOTHING = 0.6  # [wavelength]
SHARPNESS = 20.0  # of the softmax over scores; the bump they are fitted to is one high
TRAIN_EVERY = 4  # columns skipped in training; neighbours say the same


@dataclass(frozen=True)
class PleuraDetector:
    """Weights of the score over ``OFFSETS`` of three log images and the depth itself."""

    weight: Float[np.ndarray, " feature"]
    mean: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]
    search: tuple[float, float]  # [m] depths that can be the pleura

    def detect(self, echoes: Echoes) -> Float[np.ndarray, "frame x"]:
        """Depth of the pleura in every column [m]."""
        return self.path(echoes)[0]

    def path(self, echoes: Echoes) -> tuple[Float[np.ndarray, "frame x"], Float[np.ndarray, "frame x"]]:
        """Depth of the pleura in every column [m], and how far from it the score would put it as well [m].

        The second is the root mean square distance of the candidates from the path under a softmax of their scores: no
        standard error, but it grows with it.
        """
        candidates = _features(echoes, self.search)
        score = ((candidates - self.mean) / self.scale) @ self.weight
        depths = _candidates(echoes, self.search)
        depth = depths[_smoothest_path(score)]
        pixel = echoes.x[1] - echoes.x[0]
        smooth = gaussian_filter1d(depth, PATH_SMOOTHING * echoes.wavelength / pixel, axis=1, mode="nearest")
        weight = softmax(SHARPNESS * score, axis=1)
        doubt = np.sqrt((weight * (depths[None, :, None] - smooth[:, None]) ** 2).sum(1))
        return smooth, doubt


def fit_detector(
    batches: list[tuple[Echoes, Float[np.ndarray, "_ x"]]], search: tuple[float, float], penalty: float = 10.0
) -> PleuraDetector:
    """Ridge regression of a bump at the true pleura on what surrounds each candidate depth."""
    count, total, square, moment, target = 0, 0.0, 0.0, 0.0, 0.0
    for echoes, truth in batches:
        depth = _candidates(echoes, search)
        width = TARGET_WIDTH * echoes.wavelength
        bump = np.exp(-0.5 * ((depth[None, :, None] - truth[:, None, ::TRAIN_EVERY]) / width) ** 2).ravel()
        rows = _features(echoes, search)[:, :, ::TRAIN_EVERY].reshape(len(bump), -1)
        count, target, total = count + len(bump), target + bump.sum(), total + rows.sum(0)
        square, moment = square + rows.T @ rows, moment + rows.T @ bump
    mean = np.asarray(total) / count
    covariance = np.asarray(square) - count * np.outer(mean, mean)
    scale = np.sqrt(np.maximum(np.diag(covariance), 0) / count) + 1e-9  # of a constant, rounding may leave -1e-12
    normal = covariance / np.outer(scale, scale) + penalty * np.eye(len(mean))
    weight = np.linalg.solve(normal, (np.asarray(moment) - mean * target) / scale)
    return PleuraDetector(weight, mean, scale, search)


def _candidates(echoes: Echoes, search: tuple[float, float]) -> Float[np.ndarray, " candidate"]:
    return echoes.z[(echoes.z >= search[0]) & (echoes.z <= search[1])]


def _features(echoes: Echoes, search: tuple[float, float]) -> Float[np.ndarray, "frame candidate x feature"]:
    inside = np.flatnonzero((echoes.z >= search[0]) & (echoes.z <= search[1]))
    rows = np.clip(inside[:, None] + OFFSETS, 0, len(echoes.z) - 1)
    images = echoes.logs(0.4)
    images[0] = images[0] - images[0][:, inside].mean((1, 2), keepdims=True)
    read = [np.moveaxis(image[:, rows], 3, 2) for image in images]  # (frame, candidate, x, offset)
    depth = np.broadcast_to((echoes.z[inside] / echoes.wavelength)[None, :, None, None], (*read[0].shape[:3], 1))
    return np.concatenate([*read, depth, depth**2], 3)


def _smoothest_path(score: Float[np.ndarray, "frame z x"]) -> np.ndarray:
    """Row per column that maximises the summed score, at most one row of jump a column (dynamic programming)."""
    frames, rows, columns = score.shape
    best = score[:, :, 0].copy()
    came = np.zeros((frames, rows, columns), np.int8)
    for column in range(1, columns):
        options = np.full((3, frames, rows), -np.inf)
        options[1] = best
        options[0, :, :-1] = best[:, 1:] - STEP_PENALTY
        options[2, :, 1:] = best[:, :-1] - STEP_PENALTY
        choice = options.argmax(0)
        came[:, :, column] = 1 - choice
        best = options.max(0) + score[:, :, column]
    path = np.empty((frames, columns), int)
    path[:, -1] = best.argmax(1)
    every = np.arange(frames)
    for column in range(columns - 1, 0, -1):
        path[:, column - 1] = path[:, column] + came[every, path[:, column], column]
    return path
