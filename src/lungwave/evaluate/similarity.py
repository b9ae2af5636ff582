"""Structural similarity of maps."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.ndimage import uniform_filter

from lungwave.types import UsageError

WINDOW = 7  # pixels on a side
RANGE = 1.0  # of an air fraction
K1, K2 = 0.01, 0.03  # of the paper


def ssim(estimate: Float[np.ndarray, "case z x"], truth: Float[np.ndarray, "case z x"]) -> Float[np.ndarray, " case"]:
    """SSIM index of each case (Wang et al. 2004, doi 10.1109/TIP.2003.819861, equation 13), 1 for equal maps.

    Uniform windows of 7 x 7 pixels in place of the paper's Gaussian ones, unbiased variances, data range 1, mean over
    the windows that lie inside the map: scikit-image's default for data_range=1. UsageError for maps smaller than a
    window.
    """
    if min(truth.shape[1:]) < WINDOW:
        raise UsageError(f"maps of {truth.shape[1]} x {truth.shape[2]} pixels are smaller than SSIM's window, {WINDOW}")
    x, y = np.asarray(estimate, np.float64), np.asarray(truth, np.float64)
    edge = WINDOW // 2

    def mean(values: np.ndarray) -> np.ndarray:
        return uniform_filter(values, WINDOW, axes=(1, 2))[:, edge:-edge, edge:-edge]

    count = WINDOW**2
    unbiased = count / (count - 1)
    mean_x, mean_y = mean(x), mean(y)
    var_x, var_y = unbiased * (mean(x * x) - mean_x**2), unbiased * (mean(y * y) - mean_y**2)
    both = unbiased * (mean(x * y) - mean_x * mean_y)
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    index = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    return index.mean((1, 2))
