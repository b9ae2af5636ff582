"""Posteriors without a model: smooth Gaussian fields, conditioned on a truth that fades with depth."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from scipy.ndimage import gaussian_filter

from lungwave.config import MapConfig
from lungwave.posterior.summary import Posterior, summarise

PRIOR_STD = 0.15
SIGMA = 4.0  # [pixel]
KINDS = ("healthy", "interstitial", "consolidation")


def smooth_field(rng: np.random.Generator, shape: tuple[int, int], std: float = PRIOR_STD) -> np.ndarray:
    """Stationary Gaussian field, correlated over half a millimetre."""
    margin = 16  # [pixel] 4 sigma, where the filter stops
    impulse = np.zeros((2 * margin + 1, 2 * margin + 1))
    impulse[margin, margin] = 1.0
    gain = np.sqrt(np.square(gaussian_filter(impulse, SIGMA)).sum())
    white = rng.standard_normal((shape[0] + 2 * margin, shape[1] + 2 * margin))
    return std / gain * gaussian_filter(white, SIGMA)[margin:-margin, margin:-margin]


def known_share(rows: int, columns: int, reach: float = 1.5e-3, pixel: float = 1e-4) -> np.ndarray:
    """Share of the prior's variance that echoes of this ``reach`` [m] take away at each depth."""
    depth = (np.arange(rows) + 0.5) * pixel
    return np.broadcast_to(np.exp(-depth / reach)[:, None], (rows, columns))


def band_numbers(samples: np.ndarray, config: MapConfig) -> np.ndarray:
    """Percent aeration of each sample: every band, then the whole."""
    depth = (np.arange(config.rows) + 0.5) * config.pixel
    spans = [*pairwise(config.bands), (config.bands[0], config.bands[-1])]
    return np.stack([samples[:, (depth >= a) & (depth < b)].mean((1, 2)) for a, b in spans], 1)


def map_samples(truth: np.ndarray, mean: float, members: int, seed: int = 0) -> np.ndarray:
    """Exact samples of the field given what ``known_share`` leaves of the truth."""
    rng = np.random.default_rng(seed)
    share = known_share(*truth.shape)
    centre = mean + np.sqrt(share) * (truth - mean)
    drawn = [centre + np.sqrt(1 - share) * smooth_field(rng, truth.shape) for _ in range(members)]
    return np.clip(drawn, 0.0, 1.0)


def posterior(truth: np.ndarray, mean: float = 0.5, members: int = 24, seed: int = 0) -> Posterior:
    """Summary of such samples on the default map, with made-up category probabilities."""
    config = MapConfig(rows=truth.shape[0], columns=truth.shape[1])
    samples = map_samples(truth, mean, members, seed)
    kinds = np.random.default_rng(seed).dirichlet([2.0, 5.0, 1.0], members)
    prior = np.full(truth.shape, PRIOR_STD)
    return summarise(samples, band_numbers(samples, config), kinds, prior, config, category_names=KINDS)
