"""Whether posterior samples mean what they say: coverage, ranks with simultaneous bands, and TARP.

If truth and samples of a case come from one posterior, the truth's rank among M samples is uniform on M + 1 slots,
whatever the posterior and however small M. Everything here rests on that. Samples are [case, sample, *field], truths
[case, *field]; a NaN in the truth, or False in ``counted``, is not counted. Inputs are never changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import bdtr, bdtrik, gammaln

from lungwave.evaluate.cases import LEVEL, Ensemble, Measured, bootstrap, counted_values, ensemble, ratio
from lungwave.repro import stream
from lungwave.types import UsageError

LEVELS = (0.5, 0.8, 0.9, 0.95)
POINTS = 100  # most points at which an ECDF is compared with its band
REACH = 2.0  # half width of the box of independent TARP references, in standard deviations of all samples and truths
JITTER = 0.5  # standard deviation of dependent TARP references around the summary, in the same unit


# --- coverage ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """Share of the truths that lie inside central intervals of a nominal level."""

    level: float
    inside: Measured


def least_samples(level: float) -> int:
    """Fewest samples whose largest and smallest make a central interval of this level: 19 for 0.9, 39 for 0.95."""
    if not 0 < level < 1:
        raise UsageError(f"level {level:g} is not between 0 and 1; give a fraction like 0.9")
    return max(2, ceil(2 / (1 - level) - 1 - 1e-9))


def _depth(level: float, m: int) -> float:
    """Fractional number h = (1 - level) / 2 (M + 1) of slots in either tail."""
    least = max(least_samples(level), ceil(1 / level - 1 - 1e-9))
    if m < least:
        raise UsageError(f"level {level:g} needs {least} samples a case, there are {m}; draw more or leave it out")
    return max((1 - level) / 2 * (m + 1), 1.0)  # rounding may leave 1 - 1e-16


def central_interval(
    samples: Float[np.ndarray, "case sample *field"],
    level: float,
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> tuple[Float[np.ndarray, " case *field"], Float[np.ndarray, " case *field"]]:
    """Lower and upper bound of the central interval of a nominal level, to show or to compare with other methods' ones.

    Order statistic k lies at probability k / (M + 1) in the mean, so that the bounds stand at orders h and M + 1 - h,
    h = (1 - level) / 2 (M + 1) (NumPy's "weibull" quantile). Ordinary quantiles stand at 1 + (1 - level) / 2 (M - 1):
    of 20 samples they cover 0.81 for 0.9. Between two orders the bound is interpolated in the value, which is exact
    where the density is flat between them and covers a little too much in tails. NaN where not counted. UsageError as
    in ``ensemble``, and for fewer samples than ``least_samples``.
    """
    samples = np.asarray(samples)
    e = ensemble(samples, np.zeros(samples.shape[:1] + samples.shape[2:]), counted)
    m, h = e.size, _depth(level, e.size)
    k, low, high = int(h), np.empty_like(e.truth), np.empty_like(e.truth)
    for rows, block in e.blocks():
        block.sort(1)
        low[rows] = block[:, k - 1] + (h - k) * (block[:, k] - block[:, k - 1])
        high[rows] = block[:, m - k] - (h - k) * (block[:, m - k] - block[:, m - k - 1])
    for bound in (low, high):
        bound[~e.counted] = np.nan
    return low.reshape(-1, *e.field), high.reshape(-1, *e.field)


def _slots(e: Ensemble) -> tuple[Int[np.ndarray, "case entry"], Int[np.ndarray, "case entry"]]:
    """First and last rank that the truth may take: numbers of samples below it, and not above it."""
    first, last = (np.empty(e.truth.shape, np.int64) for _ in range(2))
    for rows, block in e.blocks():
        first[rows] = (block < e.truth[rows, None]).sum(1)
        last[rows] = (block <= e.truth[rows, None]).sum(1)
    return first, last


def _measured_coverage(level: float, inside: np.ndarray, counted: np.ndarray, seed: int) -> Coverage:
    """Coverage from the share [case, entry] of each truth that is inside."""
    moments = np.stack([np.where(counted, inside, 0.0).sum(1), counted.sum(1)], 1)[counted.any(1)]
    found = bootstrap(moments, ratio, seed)
    bound = ((1 - LEVEL) / 2) ** (1 / len(moments))
    if (moments[:, 0] == moments[:, 1]).all():
        found = Measured(1.0, bound, 1.0)
    elif not moments[:, 0].any():
        found = Measured(0.0, 0.0, 1 - bound)
    return Coverage(level, found)


def coverage(
    samples: Float[np.ndarray, "case sample *field"],
    truth: Float[np.ndarray, "_ ..."],
    levels: Sequence[float] = LEVELS,
    seed: int = 0,
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> tuple[Coverage, ...]:
    """Share of the truths inside the samples' central intervals, which is the level itself for a calibrated posterior.

    The interval from the k-th smallest to the k-th largest of M samples holds the truth if its rank r has
    min(r, M - r) >= k, with probability c_k = (M + 1 - 2 k) / (M + 1). A level between c_k and c_{k+1} is a mixture of
    both intervals: with h = (1 - level) / 2 (M + 1) = k + w, the truth counts by

        (1 - w) [min(r, M - r) >= k] + w [min(r, M - r) >= k + 1] = clip(min(r, M - r) + 1 - h, 0, 1),

    whose mean over uniform ranks is exactly the level, for any distribution and any M >= 2 / (1 - level) - 1. Where
    samples equal the truth, it counts by the mean over the ranks that it may take. Every counted entry weighs the same.
    Where resampling cases shows no spread because all are inside or none, the interval is the exact binomial one of as
    many cases. UsageError as in ``ensemble``, and for levels that M samples cannot tell.
    """
    e = ensemble(samples, truth, counted)
    depths = [_depth(level, e.size) for level in levels]
    first, last = _slots(e)
    rank, found = np.arange(e.size + 1), []
    for level, h in zip(levels, depths, strict=True):
        share = np.clip(np.minimum(rank, e.size - rank) + 1 - h, 0, 1)
        total = np.concatenate([[0], np.cumsum(share)])
        inside = (total[last + 1] - total[first]) / (last + 1 - first)
        found.append(_measured_coverage(level, inside, e.counted, seed))
    return tuple(found)


def interval_coverage(
    low: Float[np.ndarray, " case *field"],
    high: Float[np.ndarray, "_ ..."],
    truth: Float[np.ndarray, "_ ..."],
    level: float,
    seed: int = 0,
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> Coverage:
    """Share of the truths with low <= truth <= high, for intervals of a nominal level that come without samples.

    The bounds may be infinite. Interval over cases as in ``coverage``. UsageError for shapes that differ, bounds that
    are NaN or in the wrong order where the truth counts, and nothing to count.
    """
    if not np.shape(low) == np.shape(high) == np.shape(truth):
        raise UsageError(
            f"bounds have shapes {np.shape(low)} and {np.shape(high)}, truths {np.shape(truth)}; they must be equal"
        )
    flat, kept = counted_values(truth, counted, "truths")
    lower, upper = (np.asarray(bound, np.float64).reshape(flat.shape) for bound in (low, high))
    if not (lower <= upper)[kept].all():
        raise UsageError("a lower bound is NaN or above its upper bound; give low <= high wherever the truth counts")
    return _measured_coverage(level, (lower <= flat) & (flat <= upper), kept, seed)


# --- ranks ------------------------------------------------------------------------------------------------------------


def ranks(
    samples: Float[np.ndarray, "case sample *field"],
    truth: Float[np.ndarray, "_ ..."],
    seed: int = 0,
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> Int[np.ndarray, " case *field"]:
    """Number of samples below the truth, 0 to M, of each entry (Talts et al. 2018, arXiv 1804.06788); -1: not counted.

    Where samples equal the truth, as fractions at exactly 0 or 1 do, the rank is drawn from those that it may take,
    which keeps it uniform. UsageError as in ``ensemble``.
    """
    e = ensemble(samples, truth, counted)
    first, last = _slots(e)
    rank = stream(seed, "rank ties").integers(first, last, endpoint=True)
    return np.where(e.counted, rank, -1).reshape(-1, *e.field)


def _counted_ranks(rank: np.ndarray, m: int) -> np.ndarray:
    kept = rank[rank >= 0]
    if not len(kept):
        raise UsageError("no rank counts; give the ranks of one case or more")
    if kept.max() > m:
        raise UsageError(f"rank {kept.max()} among {m} samples; give the number of samples that the ranks came from")
    return kept


def rank_histogram(rank: Int[np.ndarray, " ..."], members: int, bins: int | None = None) -> Int[np.ndarray, " bin"]:
    """How many counted ranks among ``members`` samples fall into each of ``bins`` equal bins; by default one a rank.

    UsageError where nothing counts and for bins that would not hold equally many ranks.
    """
    slots = members + 1
    kept, bins = _counted_ranks(rank, members), slots if bins is None else bins
    if bins < 1 or slots % bins:
        fits = [k for k in range(2, slots + 1) if slots % k == 0]
        raise UsageError(f"{bins} bins do not divide the {slots} ranks; take one of {fits}")
    return np.bincount(kept // (slots // bins), minlength=bins)


@dataclass(frozen=True)
class Uniformity:
    """The ECDF of ranks against its simultaneous 95 % band under uniformity; arrays are over points of the axis."""

    cases: int
    inside: bool  # at every point
    p: float  # probability that uniform ranks come as far towards leaving the band, or farther; 1e-10 stands for less
    deviation: float  # largest |ECDF - uniform|
    excursion: float  # largest step outside the band; 0 inside
    at: Float[np.ndarray, " point"]  # rank as a fraction, credibility for TARP
    ecdf: Float[np.ndarray, " point"]
    low: Float[np.ndarray, " point"]
    high: Float[np.ndarray, " point"]


def _bounds(pointwise: float, cases: int, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest count n <= at whose two tails P(<= n) and P(>= n) are both at least pointwise / 2."""

    def quantile(z: np.ndarray) -> np.ndarray:
        """Smallest count with P(<= count) >= pointwise / 2; scipy.stats.binom.ppf without its overhead."""
        above = np.ceil(bdtrik(pointwise / 2, cases, z))
        below = np.maximum(above - 1, 0)
        return np.where(bdtr(below, cases, z) >= pointwise / 2, below, above).astype(int)

    return quantile(at), cases - quantile(1 - at)


def _stays(bounds: tuple[np.ndarray, np.ndarray], cases: int, at: np.ndarray) -> float:
    """Probability that the counts of ``cases`` uniform values below each point stay within the bounds.

    Counts between points are multinomial, that is independent Poisson counts given their sum (Moscovich and Nadler
    2017, arXiv 1503.04363): one truncated convolution a point.
    """
    log_factorial = gammaln(np.arange(cases + 1) + 1)

    def poisson(mean: float, count: np.ndarray) -> np.ndarray:
        return np.exp(count * np.log(mean) - mean - log_factorial[count])

    mass, start = np.ones(1), 0
    for low, high, step in zip(*bounds, np.diff(at, prepend=0), strict=True):
        mass = np.convolve(mass, poisson(cases * step, np.arange(high - start + 1)))[low - start : high - start + 1]
        start = low
    rest = cases - np.arange(start, start + len(mass))
    whole = poisson(cases, np.array([cases]))[0]
    return float(mass @ poisson(cases * (1 - at[-1]), rest) / whole)


@lru_cache(maxsize=64)
def _band(cases: int, m: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points as rank, and the bounds of the counts there that uniform ranks keep with probability ``LEVEL``."""
    points = np.unique(np.linspace(1, m, min(m, POINTS)).round().astype(int))
    at = points / (m + 1)
    few, many = np.log((1 - LEVEL) / len(points)), 0.0  # Bonferroni: wide enough; the medians alone: too narrow
    for _ in range(30):
        middle = (few + many) / 2
        if _stays(_bounds(np.exp(middle), cases, at), cases, at) >= LEVEL:
            few = middle
        else:
            many = middle
    low, high = _bounds(np.exp(few), cases, at)
    for array in (points, low, high):  # shared by all callers
        array.flags.writeable = False
    return points, low, high


def uniformity(rank: Int[np.ndarray, " case"], members: int) -> Uniformity:
    """Whether ranks of independent cases among ``members`` samples are uniform, with bands for the whole ECDF at once.

    Saeilynoja, Buerkner and Vehtari 2022 (arXiv 2103.10522): the ECDF of N uniform ranks at z is binomial, and one
    pointwise level for all z is chosen such that the whole ECDF stays inside with 95 %. Their recursion over counts is
    replaced by an equal one of convolutions, exact for any N and M; at most ``POINTS`` z are looked at. Ranks of
    pixels of one case are not independent: give one number a case (percent aeration, a pixel, a projection). A rank of
    -1 is not counted. UsageError where no rank counts.
    """
    kept = _counted_ranks(rank, members)
    n = len(kept)
    points, low, high = _band(n, members)
    at = points / (members + 1)
    count = np.cumsum(np.bincount(kept, minlength=members + 1))[points - 1]
    nearest = 2 * float(np.minimum(bdtr(count, n, at), bdtr(n - count, n, 1 - at)).min())
    # Bounds that these counts only just leave; the factor keeps rounding from putting them back inside. Below the floor
    # 1 - (a probability near 1) says nothing any more, and the bounds would take in nearly all counts.
    inner = max(nearest * (1 + 1e-9), 1e-12)
    return Uniformity(
        cases=n,
        inside=bool(((low <= count) & (count <= high)).all()),
        p=min(max(1 - _stays(_bounds(inner, n, at), n, at), 0.0), 1.0) if inner < 1 else 1.0,  # rounding
        deviation=float(np.abs(count / n - at).max()),
        excursion=float(max(0, (low - count).max(), (count - high).max()) / n),
        at=at,
        ecdf=count / n,
        low=low / n,
        high=high / n,
    )


# --- TARP -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tarp:
    """Expected coverage over random references; the ECDF of ``curve`` is the coverage at each credibility."""

    curve: Uniformity
    area: Measured  # integral of coverage - credibility above 1/2: 0 if calibrated, below 0 overconfident


def _scale(e: Ensemble) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each entry over all samples and truths alike.

    Truth and samples enter alike, so that the distances stay exchangeable and the ranks exactly uniform.
    """
    number = np.maximum(e.counted.sum(0) * (e.size + 1), 1)
    centre = (sum(block.sum((0, 1)) for _, block in e.blocks()) + e.truth.sum(0)) / number
    square = np.square(np.where(e.counted, e.truth - centre, 0)).sum(0)
    for rows, block in e.blocks():
        block -= centre
        square += np.einsum("cme,cme,ce->e", block, block, e.counted[rows])
    spread = np.sqrt(square / number)
    return centre, np.where(spread > 0, spread, 1.0)  # an entry that never varies adds no distance


def _cells(m: int) -> np.ndarray:
    """Mean of the area above 1/2 that each rank adds, over the slot [r, r + 1] / (M + 1) that it stands for."""
    edge = np.arange(m + 2) / (m + 1)
    until = edge / 2 - np.square(np.maximum(edge - 0.5, 0)) / 2  # integral of 1 - max(u, 1/2) from 0
    return np.diff(until) * (m + 1) - 3 / 8


def tarp(
    samples: Float[np.ndarray, "case sample *field"],
    truth: Float[np.ndarray, "_ ..."],
    seed: int = 0,
    summary: Float[np.ndarray, "_ ..."] | None = None,
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> Tarp:
    """Test of accuracy with random points of the joint posterior (Lemos et al. 2023, arXiv 2302.03026, algorithm 2).

    Each case gets one random reference; the share of samples nearer to it than the truth is uniform if samples and
    truth come from one posterior. Distances are Euclidean in standard deviations of each entry over counted entries;
    project maps to a few dozen numbers first, or distances say little. Without ``summary`` the references are uniform
    in a box, independent of the recording, and samples from the prior pass. ``summary`` [case, *field] is an estimate
    of the field from the recording alone (ridge regression, say); references are then drawn around it, and the prior
    fails. The band replaces the paper's bootstrap by the exact one of ``uniformity``. UsageError as in ``ensemble``,
    and for a summary of other shape or that is not finite where the truth counts.
    """
    e = ensemble(samples, truth, counted)
    centre, spread = _scale(e)
    generator = stream(seed, "TARP references")
    if summary is None:
        reference = centre + REACH * spread * generator.uniform(-1, 1, e.truth.shape)
    else:
        if np.shape(summary) != np.shape(truth):
            raise UsageError(f"summary has shape {np.shape(summary)}, truths {np.shape(truth)}; they must be equal")
        base = np.asarray(summary, np.float64).reshape(e.truth.shape)
        if not np.isfinite(base[e.counted]).all():
            raise UsageError("summary holds values that are not finite where the truth counts; give an estimate there")
        reference = base + JITTER * spread * generator.standard_normal(e.truth.shape)
    reference = np.where(e.counted, reference, 0)  # samples and truth are 0 there too
    truth_distance = np.square((e.truth - reference) / spread).sum(1)
    distance = np.empty(e.samples.shape[:2])
    for rows, block in e.blocks():
        block -= reference[rows, None]
        block /= spread
        distance[rows] = np.square(block, out=block).sum(2)
    kept = e.counted.any(1)
    rank = ranks(distance[kept], truth_distance[kept], seed)
    return Tarp(uniformity(rank, e.size), bootstrap(_cells(e.size)[rank][:, None], lambda mean: mean[:, 0], seed))
