"""Copies among samples in a space of features, where a map that was shifted, scaled or blurred stays where it was.

``memorisation`` measures distances between pixels; here the same questions are asked of any features, with the
data-copying test besides, which sees a generator that keeps too near to its training set everywhere.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.vq import kmeans2
from scipy.stats import betabinom, norm, rankdata

from lungwave.evaluate.manifold import BLOCK, squared_distances
from lungwave.repro import stream
from lungwave.types import UsageError

SHARE = 0.01  # a sample nearer to the training than this share of held-out maps is suspect
RATIO = 1 / 3  # nearest over second nearest distance below which a sample is a copy (Yoon et al. 2023)
CELLS = 5  # of the training set, at most; each holds its own comparison of distances
LEAST = 20  # training maps a cell has in the mean, at least


@dataclass(frozen=True)
class Suspicion:
    """How the distances of samples to their nearest training map differ from those of held-out maps."""

    threshold: float  # distance below which a sample is suspect
    share: float  # of suspects
    expected: float  # share of fresh real maps below the threshold
    p: float  # chance of at least as many suspects among fresh real maps
    ratio: float  # share of samples with a nearest distance below ``RATIO`` of the second nearest
    held_out_ratio: float
    copying: float  # statistic of the data-copying test: 0 for fresh maps, below -3 for copies
    copying_p: float  # chance of one at most as large among fresh real maps


def _threshold(held_out: Float[np.ndarray, " m"]) -> tuple[float, int]:
    """The 1st percentile of held-out distances as an order statistic, and its order (1 for fewer than 100 maps)."""
    order = max(1, int(SHARE * (len(held_out) + 1)))
    return float(np.sort(held_out)[order - 1]), order


def _chance(suspects: int, samples: int, order: int, held_out: int) -> float:
    """Chance of at least as many suspects among fresh maps: beta-binomial, because one held-out set judges them all."""
    return float(betabinom.sf(suspects - 1, samples, order, held_out + 1 - order))


def suspicion(
    samples: Float[np.ndarray, "n 2"],
    held_out: Float[np.ndarray, "m 2"],
    cells: tuple[Int[np.ndarray, " n"], Int[np.ndarray, " m"]],
) -> Suspicion:
    """All questions of the nearest and second nearest distances of both sets, and the cell that each map is in."""
    limit, order = _threshold(held_out[:, 0])
    suspects = int((samples[:, 0] < limit).sum())
    statistic, p = data_copying(samples[:, 0], held_out[:, 0], *cells)
    return Suspicion(
        threshold=limit,
        share=suspects / len(samples),
        expected=order / (len(held_out) + 1),
        p=_chance(suspects, len(samples), order, len(held_out)),
        ratio=_ratio(samples),
        held_out_ratio=_ratio(held_out),
        copying=statistic,
        copying_p=p,
    )


def _ratio(distances: Float[np.ndarray, "n 2"]) -> float:
    """Share of maps whose nearest distance is below ``RATIO`` of the second nearest."""
    return float((distances[:, 0] < RATIO * distances[:, 1]).mean())


def data_copying(
    samples: Float[np.ndarray, " n"],
    held_out: Float[np.ndarray, " m"],
    samples_cell: Int[np.ndarray, " _"],
    held_out_cell: Int[np.ndarray, " _"],
) -> tuple[float, float]:
    """Are samples nearer to the training than held-out maps are? Meehan et al. 2020 (arXiv:2004.05675, section 4).

    A Mann-Whitney test in every cell of the training set, because distances differ between dense and sparse parts.
    The cells are joined as van Elteren (1960) does, by 1 / (number of maps + 1), which gives a standard normal
    statistic; the paper's mean of the cells' own statistics has no fixed spread. Returns it and its lower tail.
    NaN where no cell holds maps of both sets.
    """
    total = spread = 0.0
    for cell in np.unique(held_out_cell):
        ours, real = samples[samples_cell == cell], held_out[held_out_cell == cell]
        n, m = len(ours), len(real)
        if min(n, m) == 0 or n + m < 3:
            continue
        pooled = rankdata(np.concatenate([ours, real]))
        larger = pooled[:n].sum() - n * (n + 1) / 2  # pairs in which the sample is farther than the held-out map
        ties = np.unique(pooled, return_counts=True)[1].astype(float)
        shared = (ties**3 - ties).sum() / ((n + m) * (n + m - 1))
        weight = 1 / (n + m + 1)
        total += weight * (larger - n * m / 2)
        spread += weight**2 * n * m / 12 * (n + m + 1 - shared)
    if spread <= 0:
        return np.nan, np.nan
    statistic = total / np.sqrt(spread)
    return float(statistic), float(norm.cdf(statistic))


def nearest_two(features: Float[np.ndarray, "n d"], train: Float[np.ndarray, "t d"]) -> Float[np.ndarray, "n 2"]:
    """Distances to the nearest and second nearest training vector, over the root of the number of features."""
    if len(train) < 2:
        raise UsageError(f"{len(train)} training maps have no second nearest; give two or more")
    found = np.empty((len(features), 2))
    for k in range(0, len(features), BLOCK):
        near = squared_distances(features[k : k + BLOCK], train)
        few = np.argpartition(near, 1, axis=1)[:, :2]
        for row, pair in enumerate(few):  # measured again: the product cancels where a copy is exact
            gap = np.square(features[k + row] - train[pair]).sum(1)
            found[k + row] = np.sort(np.sqrt(gap / features.shape[1]))
    return found


def cells_of(
    train: Float[np.ndarray, "t d"], *others: Float[np.ndarray, "_ d"], seed: int = 0
) -> tuple[Int[np.ndarray, " _"], ...]:
    """Cell of each vector of the other sets: the nearest of a few means of the training vectors (k-means)."""
    count = max(1, min(CELLS, len(train) // LEAST))
    if count == 1:
        return tuple(np.zeros(len(other), int) for other in others)
    ordered = train[np.lexsort(train.T)]  # so that the order of the maps decides nothing
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a cell that ends up empty, which does no harm
        means, _ = kmeans2(ordered, count, minit="++", seed=stream(seed, "cells"))
    return tuple(squared_distances(other, means).argmin(1) for other in others)


def suspected(
    samples: Float[np.ndarray, "n d"],
    train: Float[np.ndarray, "t d"],
    held_out: Float[np.ndarray, "m d"],
    seed: int = 0,
) -> Suspicion:
    """``suspicion`` of features: held-out maps must come from other lungs than the training's."""
    ours, seen, real = (np.asarray(part, np.float64) for part in (samples, train, held_out))
    mine, theirs = cells_of(seen, ours, real, seed=seed)
    return suspicion(nearest_two(ours, seen), nearest_two(real, seen), (mine, theirs))
