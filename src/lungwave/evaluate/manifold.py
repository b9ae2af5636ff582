"""Fidelity and diversity of a set of samples: precision, recall, density, coverage, Vendi score, structural similarity.

Two sets are compared in features (``features.py``); real maps beside real maps are the floor, as with every distance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.ndimage import zoom

from lungwave.evaluate.similarity import WINDOW, ssim
from lungwave.repro import stream
from lungwave.types import UsageError

NEIGHBOURS = 5  # of a set's own maps within whose distance another counts as near (both papers take 3 to 5)
BLOCK = 1024  # rows of distances at a time
CHUNK = 32  # pairs at a time
PAIRS = 500  # of maps whose similarity is measured
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # weights of MS-SSIM, finest first (Wang et al. 2003)


@dataclass(frozen=True)
class Manifold:
    """How two sets overlap; shares 0-1 but for density, which is about 1 for equal sets."""

    precision: float  # share of samples near some real map
    recall: float  # share of real maps near some sample
    density: float  # samples around a real map over those expected
    coverage: float  # share of real maps with a sample nearer than their neighbours


def squared_distances(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"]) -> Float[np.ndarray, "n m"]:
    """Euclidean, squared; rounding never leaves less than zero."""
    found = -2 * (a @ b.T)
    found += np.einsum("ij,ij->i", a, a)[:, None]
    found += np.einsum("ij,ij->i", b, b)
    return np.maximum(found, 0, out=found)


def radii(features: Float[np.ndarray, "n d"], neighbours: int = NEIGHBOURS) -> Float[np.ndarray, " n"]:
    """Squared distance of each vector to its ``neighbours``-th nearest other one."""
    if len(features) <= neighbours:
        raise UsageError(f"{len(features)} maps have no {neighbours}-th neighbour; give at least {neighbours + 1}")
    found = np.empty(len(features))
    for k in range(0, len(features), BLOCK):
        near = squared_distances(features[k : k + BLOCK], features)
        found[k : k + BLOCK] = np.partition(near, neighbours, axis=1)[:, neighbours]  # the nearest is the vector itself
    return found


def overlap(
    samples: Float[np.ndarray, "n d"], real: Float[np.ndarray, "m _"], neighbours: int = NEIGHBOURS
) -> Manifold:
    """Precision and recall (Kynkaanniemi et al. 2019, arXiv:1904.06991, eq. 1 and 2), density and coverage (Naeem et
    al. 2020, arXiv:2002.09797, eq. 3 and 4).

    UsageError for sets with too few maps, or features of different length.
    """
    if samples.ndim != 2 or real.ndim != 2 or samples.shape[1] != real.shape[1]:
        raise UsageError(f"features have shapes {samples.shape} and {real.shape}; both must be [n, d] with one d")
    samples, real = np.asarray(samples, np.float64), np.asarray(real, np.float64)
    reach_real, reach_samples = radii(real, neighbours), radii(samples, neighbours)
    precise, inside = 0, 0
    recalled, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for k in range(0, len(samples), BLOCK):
        distance = squared_distances(samples[k : k + BLOCK], real)
        near = distance <= reach_real
        precise += int(near.any(1).sum())
        inside += int(near.sum())
        covered |= near.any(0)
        recalled |= (distance <= reach_samples[k : k + BLOCK, None]).any(0)
    return Manifold(
        precise / len(samples), float(recalled.mean()), inside / (neighbours * len(samples)), float(covered.mean())
    )


def vendi(features: Float[np.ndarray, "n d"]) -> float:
    """Effective number of different maps: exp of the entropy of the similarity matrix's eigenvalues.

    Friedman & Dieng 2023 (arXiv:2210.02410), with the cosine similarity of features: 1 for copies of one map, n for n
    orthogonal ones. It falls short of n by as much as features are alike, so compare it with that of as many real maps.
    """
    features = np.asarray(features, np.float64)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    if not (norm > 0).all():
        raise UsageError("features hold a zero vector, which has no direction; take other features")
    unit = features / norm
    values = np.square(np.linalg.svd(unit, compute_uv=False)) / len(unit)
    values = values[values > 1e-15]
    return float(np.exp(-(values * np.log(values)).sum()))


def ms_ssim(one: Float[np.ndarray, "n z x"], other: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, " n"]:
    """Multi-scale structural similarity of pairs (Wang et al. 2003, doi 10.1109/ACSSC.2003.1292216).

    As many of its five scales as the map has room for, their weights made to add up to 1; the product is over SSIM at
    every scale, negative values counted as 0. UsageError for maps smaller than a window.
    """
    levels = 1
    while levels < len(SCALES) and min(one.shape[1:]) >= WINDOW * 2**levels:
        levels += 1
    weights = np.array(SCALES[:levels]) / sum(SCALES[:levels])
    product = np.ones(len(one))
    for level, weight in enumerate(weights):
        product *= np.maximum(ssim(one, other), 0) ** weight
        if level < levels - 1:
            one, other = (_halved(v) for v in (one, other))
    return product


def _halved(maps: np.ndarray) -> np.ndarray:
    """Means of 2 x 2 pixels; an odd last row or column is left out."""
    z, x = maps.shape[1] // 2 * 2, maps.shape[2] // 2 * 2
    return maps[:, :z, :x].reshape(len(maps), z // 2, 2, x // 2, 2).mean((2, 4))


def diversity(maps: Float[np.ndarray, "n z x"], seed: int = 0, pairs: int = PAIRS) -> float:
    """Mean MS-SSIM of random pairs: nearer to 1, the more alike the maps are. UsageError for fewer than two maps."""
    if len(maps) < 2:
        raise UsageError(f"{len(maps)} map has no other to be compared with; give at least two")
    generator = stream(seed, "pairs")
    first = generator.integers(len(maps), size=pairs)
    second = (first + 1 + generator.integers(len(maps) - 1, size=pairs)) % len(maps)
    low = min(maps.shape[1:])
    if low < WINDOW:  # a strip of fewer rows than a window is taken twice as high until it fits
        factor = -(-WINDOW // low)
        maps = zoom(maps, (1, factor, 1) if maps.shape[1] == low else (1, 1, factor), order=0)
    chunks = [slice(start, start + CHUNK) for start in range(0, pairs, CHUNK)]
    return float(np.concatenate([ms_ssim(maps[first[part]], maps[second[part]]) for part in chunks]).mean())
