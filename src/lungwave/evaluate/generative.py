"""How near a set of generated maps is to real ones: KID, sliced Wasserstein, Frechet distance, statistics of lungs.

Every distance stands beside its floor, the same distance between real maps and real maps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lungwave.evaluate.features import EXTRACTORS, check_maps, check_same_size, fitted
from lungwave.evaluate.statistics import histogram_distance, statistics
from lungwave.repro import stream
from lungwave.types import UsageError

DIRECTIONS = 512  # of the sliced Wasserstein distance
FLOORS = 20  # random subsets of the training maps behind each floor
HALF = 2000  # most training maps in the "train half": more only cost time
PERMUTATIONS = 200  # behind the noise band of KID
BLOCK = 512  # rows of a kernel matrix at a time
WITHIN = 0.1  # largest relative difference of a statistic that we accept
BAND = 1.5  # largest KID that we accept, as a multiple of the floor's noise band
GOALS = ("aeration mean", "aeration spread", "lateral 1/e length", "depth 1/e length")  # held to WITHIN


def _check_features(a: np.ndarray, b: np.ndarray, least: int = 2) -> tuple[np.ndarray, np.ndarray]:
    a, b = (np.asarray(v, np.float64) for v in (a, b))
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UsageError(f"features have shapes {a.shape} and {b.shape}; both must be [n, d] with one d")
    if min(len(a), len(b)) < least:
        raise UsageError(f"{min(len(a), len(b))} feature vectors; at least {least} are needed on each side")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UsageError("features hold values that are not finite; remove those maps")
    return a, b


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error."""

    value: float
    error: float


def _kernel(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Polynomial kernel (x.y / d + 1)^3 of every pair."""
    value = a @ b.T
    value /= a.shape[1]
    value += 1
    return value * value * value


def _sums(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums of the kernel over b for each a, and over a for each b."""
    rows, columns = np.empty(len(a)), np.zeros(len(b))
    for k in range(0, len(a), BLOCK):
        part = _kernel(a[k : k + BLOCK], b)
        rows[k : k + BLOCK] = part.sum(1)
        columns += part.sum(0)
    return rows, columns


def _own_sums(a: np.ndarray) -> np.ndarray:
    """Sum of the kernel over the others of the same set."""
    return _sums(a, a)[0] - _diagonal(a)


def _diagonal(a: np.ndarray) -> np.ndarray:
    return np.power(np.square(a).sum(1) / a.shape[1] + 1, 3)


def kid(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"]) -> Estimate:
    """Kernel distance: the unbiased squared MMD with kernel (x.y / d + 1)^3 (Binkowski 2018, arXiv 1801.01401, 4).

    All pairs enter instead of random subsets: the variance is least and the maps' order does not matter. The error is
    a jackknife over single maps of both sides. Where the distributions are equal the statistic is degenerate and the
    jackknife too large by a factor of about 1.4; judge that case by ``kid_null``.
    """
    a, b = _check_features(a, b, 3)
    n, m = len(a), len(b)
    aa, bb, (ab, ba) = _own_sums(a), _own_sums(b), _sums(a, b)
    sum_a, sum_b, between = aa.sum(), bb.sum(), ab.sum()
    mean_a, mean_b = sum_a / (n * (n - 1)), sum_b / (m * (m - 1))
    without_a = (sum_a - 2 * aa) / ((n - 1) * (n - 2)) + mean_b - 2 * (between - ab) / ((n - 1) * m)
    without_b = mean_a + (sum_b - 2 * bb) / ((m - 1) * (m - 2)) - 2 * (between - ba) / (n * (m - 1))
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    return Estimate(float(mean_a + mean_b - 2 * between / (n * m)), float(np.sqrt(variance)))


def kid_difference(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"], real: Float[np.ndarray, "r _"]
) -> Estimate:
    """KID of a to the real maps minus that of b, with the jackknife error of the difference.

    What the real maps share cancels (Bounliphone et al. 2016, arXiv 1511.04581), so two samplers are told apart far
    better than by the errors of their KIDs.
    """
    (a, real), (b, _) = _check_features(a, real, 3), _check_features(b, real, 3)
    n, m, r = len(a), len(b), len(real)
    aa, bb, (ar, ra), (br, rb) = _own_sums(a), _own_sums(b), _sums(a, real), _sums(b, real)
    part_a = aa.sum() / (n * (n - 1)) - 2 * ar.sum() / (n * r)
    part_b = bb.sum() / (m * (m - 1)) - 2 * br.sum() / (m * r)
    without_a = (aa.sum() - 2 * aa) / ((n - 1) * (n - 2)) - 2 * (ar.sum() - ar) / ((n - 1) * r)
    without_b = (bb.sum() - 2 * bb) / ((m - 1) * (m - 2)) - 2 * (br.sum() - br) / ((m - 1) * r)
    without_real = 2 * (ra - ra.mean()) / (n * (r - 1)) - 2 * (rb - rb.mean()) / (m * (r - 1))
    variance = (n - 1) * without_a.var() + (m - 1) * without_b.var() + (r - 1) * without_real.var()
    return Estimate(float(part_a - part_b), float(np.sqrt(variance)))


def kid_null(
    a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"], draws: int = PERMUTATIONS, seed: int = 0
) -> Float[np.ndarray, " draw"]:
    """KID of ``draws`` random re-partitions of both sets: its exact distribution where they do not differ."""
    a, b = _check_features(a, b, 3)
    n, m = len(a), len(b)
    pooled, generator = np.concatenate([a, b]), stream(seed, "permutation")
    chosen = np.stack([generator.permutation(n + m) < n for _ in range(draws)], 1).astype(np.float64)
    both = np.concatenate([chosen, np.ones((n + m, 1))], 1)
    sums = np.concatenate([_kernel(pooled[k : k + BLOCK], pooled) @ both for k in range(0, n + m, BLOCK)])
    to_chosen, to_rest, own = sums[:, :-1], sums[:, -1:] - sums[:, :-1], _diagonal(pooled)[:, None]
    within_a = (chosen * (to_chosen - own)).sum(0) / (n * (n - 1))
    within_b = ((1 - chosen) * (to_rest - own)).sum(0) / (m * (m - 1))
    return within_a + within_b - 2 * (chosen * to_rest).sum(0) / (n * m)


def frechet(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"]) -> float:
    """Frechet distance of the Gaussians fitted to two sets, for any n, m and d.

    With A and B the centred features over sqrt(n - 1), the covariances are A'A and B'B and the trace of the root of
    their product is the nuclear norm of A B' (Uhlmann fidelity), so that no covariance is formed and no matrix root is
    taken. A set of more maps than features enters through its triangular factor, which has the same Gram matrix.
    """
    a, b = _check_features(a, b)
    shift = a.mean(0) - b.mean(0)
    roots = []
    for features in (a, b):
        centred = (features - features.mean(0)) / np.sqrt(len(features) - 1)
        roots.append(np.asarray(np.linalg.qr(centred, mode="r")) if len(centred) > centred.shape[1] else centred)
    nuclear = np.linalg.svdvals(roots[0] @ roots[1].T).sum()
    total = shift @ shift + np.square(roots[0]).sum() + np.square(roots[1]).sum() - 2 * nuclear
    return float(max(total, 0.0))  # rounding may leave -1e-15 for identical sets


def sliced_wasserstein(a: Float[np.ndarray, "n d"], b: Float[np.ndarray, "m _"], directions: int = DIRECTIONS) -> float:
    """Sliced 2-Wasserstein distance (Rabin et al. 2011) times sqrt(d): for a pure shift, its Euclidean length.

    The directions are random orthonormal frames, the same in every call on d features. Sets of different sizes are
    compared at the mid-points of the larger one's quantiles.
    """
    a, b = _check_features(a, b, 1)
    frame = _frame(a.shape[1], directions)
    return _sliced(a @ frame, b @ frame, a.shape[1])


def _frame(d: int, directions: int) -> np.ndarray:
    """At least ``directions`` unit columns: part of one orthonormal basis, or several whole ones where d is smaller."""
    generator = stream(0, "sliced Wasserstein")
    bases = -(-directions // d) if d < directions else 1
    return np.concatenate(
        [np.linalg.qr(generator.standard_normal((d, min(d, directions))))[0] for _ in range(bases)], 1
    )


def _sliced(a: np.ndarray, b: np.ndarray, d: int) -> float:
    """The distance from projections ``[n, direction]``."""
    low, high = np.sort(a, axis=0), np.sort(b, axis=0)
    if len(low) != len(high):
        level = (np.arange(max(len(low), len(high))) + 0.5) / max(len(low), len(high))
        low, high = _quantiles(low, level), _quantiles(high, level)
    return float(np.sqrt(d * np.square(low - high).mean()))


def _quantiles(ordered: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Linear interpolation of each sorted column at mid-point levels."""
    position = np.clip(level * len(ordered) - 0.5, 0, len(ordered) - 1)
    below = np.minimum(position.astype(int), max(len(ordered) - 2, 0))
    above = np.minimum(below + 1, len(ordered) - 1)
    weight = (position - below)[:, None]
    return (1 - weight) * ordered[below] + weight * ordered[above]


def _kid_row(ours: np.ndarray, seen: np.ndarray, real: np.ndarray, seed: int) -> dict[str, Any]:
    """KID of samples and of half the training maps to held-out maps, and what chance alone would give the latter."""
    half = seen[stream(seed, "train half").permutation(len(seen))[: min(len(seen) // 2, HALF)]]
    near, floor = kid(ours, real), kid(half, real)
    band = float(np.quantile(kid_null(half, real, seed=seed), 0.95))
    return {
        "value": near.value,
        "error": near.error,
        "p": float((1 + (kid_null(ours, real, seed=seed) >= near.value).sum()) / (PERMUTATIONS + 1)),
        "floor": floor.value,
        "floor_error": floor.error,
        "floor_maps": len(half),
        "band": band,
        "within": bool(near.value <= BAND * band),
    }


def _with_floor(value: float, null: list[float], maps: int) -> dict[str, float]:
    floor, spread = float(np.mean(null)), float(np.std(null, ddof=1))
    return {"value": value, "floor": floor, "floor_spread": spread, "excess": value - floor, "maps": maps}


class Featured(NamedTuple):
    """Features of the three sets."""

    samples: Float[np.ndarray, "n d"]
    train: Float[np.ndarray, "t d"]
    held_out: Float[np.ndarray, "m d"]


def extracted(
    samples: Float[np.ndarray, "n z x"],
    train: Float[np.ndarray, "t _ _"],
    held_out: Float[np.ndarray, "m _ _"],
    names: tuple[str, ...] = tuple(EXTRACTORS),
) -> dict[str, Featured]:
    """Every kind of features, fitted to the training maps; ``compare`` takes them, so that they are made once.

    UsageError as in ``compare``.
    """
    sets, found = _checked(samples, train, held_out), {}
    for name in names:
        features, seen = fitted(name, sets[1])
        found[name] = Featured(features(sets[0]), seen, features(sets[2]))
    return found


def _checked(samples: np.ndarray, train: np.ndarray, held_out: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    samples, held_out = check_maps(samples, "samples", 3), check_maps(held_out, "held-out maps", 3)
    train = check_maps(train, "training maps", 6)
    check_same_size(("samples", samples), ("training maps", train), ("held-out maps", held_out))
    return samples, train, held_out


def _distances(name: str, features: Featured, seed: int) -> dict[str, Any]:
    """The three distances with features ``name``, each with its floor of training maps against held-out maps."""
    ours, seen, real = features
    size = min(len(ours), len(seen) // 2)  # one number for samples and floor, because these two distances depend on it
    generator = stream(seed, f"floor/{name}")
    subsets = [generator.permutation(len(seen))[:size] for _ in range(FLOORS)]
    frame, d = _frame(ours.shape[1], DIRECTIONS), ours.shape[1]
    projected, seen_projected, real_projected = ours[:size] @ frame, seen @ frame, real @ frame
    return {
        "kid": _kid_row(ours, seen, real, seed),
        "frechet": _with_floor(frechet(ours[:size], real), [frechet(seen[k], real) for k in subsets], size),
        "sliced_wasserstein": _with_floor(
            _sliced(projected, real_projected, d),
            [_sliced(seen_projected[k], real_projected, d) for k in subsets],
            size,
        ),
    }


def compare(
    samples: Float[np.ndarray, "n z x"],
    train: Float[np.ndarray, "t _ _"],
    held_out: Float[np.ndarray, "m _ _"],
    features: tuple[str, ...] | Mapping[str, Featured] = tuple(EXTRACTORS),
    seed: int = 0,
) -> dict[str, Any]:
    """Distances of samples to held-out maps beside the real-real floors, and the statistics of lungs.

    Maps are fractions 0-1 of one size. The features are fitted to the training maps. UsageError for maps that cannot
    be compared or fewer than 6 training maps.
    """
    samples, train, held_out = _checked(samples, train, held_out)
    if not isinstance(features, Mapping):
        features = extracted(samples, train, held_out, features)
    return {
        "maps": {
            "samples": len(samples),
            "train": len(train),
            "held_out": len(held_out),
            "size": list(samples.shape[1:]),
        },
        "features": {name: _distances(name, found, seed) for name, found in features.items()},
        "statistics": statistics(samples, held_out, train, seed),
        "histogram": {
            "value": histogram_distance(samples, held_out),
            "floor": histogram_distance(train, held_out),
        },
    }


def _cell(value: float | None, form: str = ".3f") -> str:
    return "-" if value is None else format(value, form)


def table_lines(found: dict[str, Any]) -> list[str]:
    """The comparison as Markdown."""
    lines = [
        "| features | KID to held-out | p | floor: train half | goal | FD | floor | SWD | floor |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in found["features"].items():
        k, d, s = f["kid"], f["frechet"], f["sliced_wasserstein"]
        cells = [
            name,
            f"{k['value']:.2e} ± {k['error']:.1e}",
            f"{k['p']:.3f}",
            f"{k['floor']:.2e} ± {k['floor_error']:.1e}",
            f"<= {BAND * k['band']:.1e}: {'met' if k['within'] else 'missed'}",
            *(v for x in (d, s) for v in (f"{x['value']:.3g}", f"{x['floor']:.3g} ± {x['floor_spread']:.1g}")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += [
        "",
        "| statistic | samples | held-out | train | difference | 95 % interval | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, s in found["statistics"].items():
        relative, interval, goal = s["relative_difference"], s["interval"], ""
        if name in GOALS:
            goal = "not defined" if relative is None else "met" if abs(relative) <= WITHIN else "missed"
            goal = f"<= {WITHIN:.0%}: {goal}"
        between = "-" if interval is None else f"{interval[0]:+.1%} to {interval[1]:+.1%}"
        lines.append(
            f"| {name} | {_cell(s['samples'])} | {_cell(s['held_out'])} | {_cell(s.get('train'))} | "
            f"{_cell(relative, '+.1%')} | {between} | {goal} |"
        )
    h = found["histogram"]
    lines.append(f"| histogram distance to held-out | {h['value']:.4f} | | {h['floor']:.4f} | | | |")
    return lines
