"""Do Markov chains agree? Split R-hat and effective sample size of one number per state."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from scipy.special import ndtri
from scipy.stats import rankdata

from lungwave.types import UsageError


def split_rhat(values: Float[np.ndarray, "chain state"]) -> float:
    """Rank-normalised split R-hat (Vehtari et al. 2021, arXiv:1903.08008, eq. 4 and 14); 1 where chains agree.

    NaN where nothing varies. UsageError for fewer than four states.
    """
    halves = _halves(values)
    ranked = ndtri((rankdata(halves).reshape(halves.shape) - 0.375) / (halves.size + 0.25))
    within = ranked.var(1, ddof=1).mean()
    between = ranked.shape[1] * ranked.mean(1).var(ddof=1)
    count = ranked.shape[1]
    return float(np.sqrt((count - 1) / count + between / (count * within))) if within > 0 else float("nan")


def effective_size(values: Float[np.ndarray, "chain state"]) -> float:
    """Effective sample size of the mean, over all chains: Geyer's initial monotone sequence (ibid., section 3.2).

    NaN where nothing varies.
    """
    halves = _halves(values)
    chains, count = halves.shape
    centred = halves - halves.mean(1, keepdims=True)
    size = 2 ** int(np.ceil(np.log2(2 * count)))
    spectrum = np.abs(np.fft.rfft(centred, size, axis=1)) ** 2
    covariance = np.fft.irfft(spectrum, axis=1)[:, :count].mean(0) / count
    within = halves.var(1, ddof=1).mean()
    if not within > 0:
        return float("nan")
    whole = (count - 1) / count * within + halves.mean(1).var(ddof=1)
    correlation = 1 - (within - covariance) / whole
    pairs = correlation[: count // 2 * 2].reshape(-1, 2).sum(1)
    positive = pairs[: int(np.argmax(pairs < 0))] if (pairs < 0).any() else pairs
    monotone = np.minimum.accumulate(positive)
    time = max(-1 + 2 * monotone.sum(), 1 / np.log10(max(chains * count, 10)))
    return float(chains * count / time)


def _halves(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, float)
    if values.ndim != 2 or values.shape[1] < 4:
        raise UsageError(f"chains of shape {values.shape}; give (chain, state) with at least 4 states")
    count = values.shape[1] // 2
    return np.concatenate([values[:, :count], values[:, -count:]])
