"""Reconstructions of the same test cases, judged alike: errors, proper scores, calibration, information by depth.

A method says of every case either posterior samples (``Sampled``) or estimates with 90 % intervals (``Estimated``).
Everything is a fraction 0-1; ``out`` is every depth band, then the whole depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from lungwave.data.schema import CaseTable
from lungwave.evaluate.calibration import (
    LEVELS,
    Coverage,
    Tarp,
    Uniformity,
    central_interval,
    coverage,
    interval_coverage,
    least_samples,
    ranks,
    tarp,
    uniformity,
)
from lungwave.evaluate.cases import BLOCK, Measured, mean_over_cases, to_json
from lungwave.evaluate.scores import auc, crps_fair, paired_difference, spread_skill
from lungwave.evaluate.similarity import ssim
from lungwave.posterior.information import depth_of_information
from lungwave.types import MM, UsageError

LEVEL = 0.9  # of an estimate's interval
SURFACE = 1 * MM  # [m] the top of the map that is judged by itself
AERATIONS = (0.2, 0.35, 0.5, 0.7)  # of the lungs whose information is shown
NEAR = 0.075  # farthest of such a lung's aeration
TARP_BLOCKS = 4  # of rows, and of columns, whose means TARP looks at

MAP, TOP, SSIM, PIXEL = "map", "map, top 1 mm", "SSIM", "per pixel"
CRPS_MAP, CRPS_WHOLE = "CRPS, map", "CRPS, whole"
MEDIAN_MAP, MEDIAN_WHOLE = "map, median", "whole, median"  # errors of the median, which has the least of them

T = TypeVar("T", bound="Sampled | Estimated")


@dataclass(frozen=True)
class Sampled:
    """Posterior samples of each case."""

    maps: Float[np.ndarray, "case sample z x"]
    bands: Float[np.ndarray, "case sample out"]
    categories: Float[np.ndarray, "case category"]  # probabilities, mean over samples; no columns where not known
    novelty: Float[np.ndarray, " case"]  # > 1: unlike any recording of the training


@dataclass(frozen=True)
class Estimated:
    """Estimates of each case with the bounds of intervals of the level ``LEVEL``."""

    bands: Float[np.ndarray, "case out"]
    bands_low: Float[np.ndarray, "case out"]
    bands_high: Float[np.ndarray, "case out"]
    map: Float[np.ndarray, "case z x"]
    map_low: Float[np.ndarray, "case z x"]
    map_high: Float[np.ndarray, "case z x"]
    novelty: Float[np.ndarray, " case"]


def joined(parts: Sequence[T]) -> T:
    """Cases of several parts, one after the other."""
    kind = type(parts[0])
    return kind(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(kind)))


@dataclass(frozen=True)
class Truths:
    """What the cases really are."""

    maps: Float[np.ndarray, "case z x"]
    bands: Float[np.ndarray, "case out"]
    categories: tuple[str, ...]
    band_edges: tuple[float, ...]  # [m]
    pixel: float  # [m]
    center_frequency: float  # [Hz]

    @classmethod
    def of(cls, cases: CaseTable, center_frequency: float) -> Truths:
        """Of generated cases. UsageError where a map or a number is not known everywhere."""
        bands = np.concatenate([cases.bands, cases.whole[:, None]], 1)
        if not (np.isfinite(bands).all() and np.isfinite(cases.smooth).all()):
            raise UsageError("cases hold columns or bands that cannot be quantified; leave those cases out")
        return cls(cases.smooth, bands, cases.category, cases.band_edges, cases.pixel, center_frequency)

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def outs(self) -> tuple[str, ...]:
        """Names of the bands and, last, of the whole depth."""
        edges = [f"{edge / MM:g}" for edge in self.band_edges]
        return (*(f"{a}-{b} mm" for a, b in pairwise(edges)), f"{edges[0]}-{edges[-1]} mm")

    @property
    def rows(self) -> Float[np.ndarray, " z"]:
        """Depth of the rows' centres below the pleura [m]."""
        return (np.arange(self.maps.shape[1]) + 0.5) * self.pixel


@dataclass(frozen=True)
class Method:
    """What is known of a method beside its predictions."""

    name: str
    category_names: tuple[str, ...] = ()
    prior_std: Float[np.ndarray, "z x"] | None = None  # of the maps it learnt from
    intervals: bool = True  # False: the bounds of ``Estimated`` say nothing


@dataclass(frozen=True)
class Known:
    """How much of the prior's spread is left at each depth, in lungs of about one aeration."""

    aeration: float
    cases: int
    depth: Float[np.ndarray, " z"]  # [m] of the rows' centres below the pleura
    reach: float  # [m] depth that RF of a uniform lung still knows at -20 dB, see ``depth_of_information``
    spread: Float[np.ndarray, " z"]  # standard deviation of the posterior over that of the prior


@dataclass(frozen=True)
class Judged:
    """One method at one noise level. Keys are names of bands (``Truths.outs``) or the constants of this module."""

    method: str
    snr_db: float
    samples: int  # a case; 0: estimates
    outs: tuple[str, ...]  # names of the bands and, last, of the whole depth
    categories: tuple[str, ...]  # of the cases
    truth: Float[np.ndarray, "case out"]
    scores: dict[str, Measured]  # absolute errors of bands and maps, CRPS, SSIM
    coverage: dict[str, tuple[Coverage, ...]]
    uniformity: dict[str, Uniformity]  # of the truth's rank
    tarp: Tarp | None
    spread_skill: dict[str, Measured]
    auc: dict[str, Measured]  # of each category against the rest, and "mean"
    information: tuple[Known, ...]
    out_of_range: Measured  # share of the cases called unlike the training
    notes: tuple[str, ...]
    case_scores: dict[str, Float[np.ndarray, " case"]]
    estimate: Float[np.ndarray, "case out"]
    low: Float[np.ndarray, "case out"] | None
    high: Float[np.ndarray, "case out"] | None

    def to_json(self) -> dict[str, Any]:
        """Everything but what is said of single cases."""
        left_out = ("categories", "truth", "case_scores", "estimate", "low", "high")
        return {item.name: to_json(getattr(self, item.name)) for item in fields(self) if item.name not in left_out}


def judge(
    method: Method,
    found: Sampled | Estimated,
    truths: Truths,
    snr_db: float,
    summary: Float[np.ndarray, "case z x"] | None = None,
    seed: int = 0,
) -> Judged:
    """Every figure of one method at one noise level; intervals are over cases.

    ``summary`` is an estimate of the maps by another method, around which TARP's references are drawn; without one
    that is the mean of one half of the samples, and the other half is tested. What cannot be said, for too few samples
    or a category without cases, is left out and stands in ``notes``. UsageError for predictions that do not fit.
    """
    wanted = (len(truths), len(truths.outs))
    shape = (found.bands.shape[0], found.bands.shape[-1])
    maps = found.maps[:, 0] if isinstance(found, Sampled) else found.map
    if shape != wanted or maps.shape != truths.maps.shape:
        raise UsageError(
            f"{method.name}: predictions of {shape[0]} cases, {shape[1]} numbers and maps {maps.shape[1:]}; the truth "
            f"has {wanted[0]}, {wanted[1]} and {truths.maps.shape[1:]}"
        )
    out_of_range = mean_over_cases((found.novelty > 1).astype(float), seed)
    if isinstance(found, Estimated):
        return _judge_estimates(method, found, truths, snr_db, seed, out_of_range)
    m, notes = found.maps.shape[1], []
    levels = [level for level in LEVELS if m >= least_samples(level)]
    for level in LEVELS:
        if level not in levels:
            notes.append(f"{level:.0%} coverage needs {least_samples(level)} samples, there are {m}")
    low, high = central_interval(found.bands, LEVEL) if LEVEL in levels else (None, None)
    mean, estimate = _by_block(found.maps, lambda block: block.mean(1)), found.bands.mean(1, dtype=np.float64)
    each = _errors(estimate, mean, truths) | {
        CRPS_MAP: crps_fair(found.maps, truths.maps).mean((1, 2)),
        CRPS_WHOLE: crps_fair(found.bands, truths.bands)[:, -1],
        MEDIAN_MAP: np.abs(_by_block(found.maps, lambda b: np.median(b, 1)) - truths.maps).mean((1, 2)),
        MEDIAN_WHOLE: np.abs(np.median(found.bands[..., -1].astype(float), 1) - truths.bands[:, -1]),
    }
    rank = ranks(found.bands, truths.bands, seed)
    area, more = _auc(method, found, truths, seed)
    return Judged(
        method.name,
        snr_db,
        m,
        truths.outs,
        truths.categories,
        truths.bands,
        {name: mean_over_cases(values, seed) for name, values in each.items()},
        {PIXEL: coverage(found.maps, truths.maps, levels, seed)}
        | {
            name: coverage(found.bands[:, :, k], truths.bands[:, k], levels, seed) for k, name in enumerate(truths.outs)
        },
        {name: uniformity(rank[:, k], m) for k, name in enumerate(truths.outs)},
        _tarp(found, truths, summary, seed),
        {
            MAP: spread_skill(found.maps, truths.maps, seed),
            truths.outs[-1]: spread_skill(found.bands[:, :, -1], truths.bands[:, -1], seed),
        },
        area,
        _information(method, found, truths),
        out_of_range,
        (*notes, *more),
        each,
        estimate,
        low,
        high,
    )


def improvements(judged: Sequence[Judged], seed: int = 0) -> list[tuple[str, str, dict[str, Measured]]]:
    """(method, over method, relative improvement of each score that is an error) for every pair, at one noise level."""
    names = [name for name in judged[0].case_scores if name != SSIM and all(name in j.case_scores for j in judged)]
    return [
        (a.method, b.method, {k: paired_difference(a.case_scores[k], b.case_scores[k], seed) for k in names})
        for a in judged
        for b in judged
        if a.method != b.method
    ]


def mean_map(truths: Truths, bases: np.ndarray) -> Estimated:
    """The least method: of each case, the mean of all the others that have another base anatomy; no intervals."""
    others = np.array(bases[:, None] != bases, float)
    if not others.any(1).all():
        raise UsageError(f"{len(truths)} cases of one base anatomy have no mean to compare with; give more cases")
    others /= others.sum(1, keepdims=True)
    return constant(others @ truths.bands, np.tensordot(others, truths.maps, 1))


def constant(bands: Float[np.ndarray, "case out"], maps: Float[np.ndarray, "case z x"]) -> Estimated:
    """Estimates without intervals: their bounds are the estimate itself."""
    return Estimated(bands, bands, bands, maps, maps, maps, np.zeros(len(maps)))


# --- parts ------------------------------------------------------------------------------------------------------------


def _by_block(maps: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """A function of maps [case, sample, z, x], a few cases at a time in double precision."""
    step = max(1, BLOCK // maps[0].size)
    return np.concatenate([function(maps[k : k + step].astype(np.float64)) for k in range(0, len(maps), step)])


def _errors(bands: np.ndarray, maps: np.ndarray, truths: Truths) -> dict[str, np.ndarray]:
    """Absolute errors of each case, and SSIM."""
    wrong, top = np.abs(maps - truths.maps), max(1, round(SURFACE / truths.pixel))
    return dict(zip(truths.outs, np.abs(bands - truths.bands).T, strict=True)) | {
        MAP: wrong.mean((1, 2)),
        TOP: wrong[:, :top].mean((1, 2)),
        SSIM: ssim(maps, truths.maps),
    }


def _judge_estimates(
    method: Method, found: Estimated, truths: Truths, snr_db: float, seed: int, out_of_range: Measured
) -> Judged:
    """The CRPS of a single value is its absolute error."""
    each = _errors(found.bands, np.asarray(found.map, np.float64), truths)
    each |= {CRPS_MAP: each[MAP], CRPS_WHOLE: each[truths.outs[-1]]}
    covered: dict[str, tuple[Coverage, ...]] = {}
    if method.intervals:
        covered[PIXEL] = (interval_coverage(found.map_low, found.map_high, truths.maps, LEVEL, seed),)
        for k, name in enumerate(truths.outs):
            bounds = found.bands_low[:, k], found.bands_high[:, k]
            covered[name] = (interval_coverage(*bounds, truths.bands[:, k], LEVEL, seed),)
    scores = {name: mean_over_cases(values, seed) for name, values in each.items()}
    low, high = (found.bands_low, found.bands_high) if method.intervals else (None, None)
    return Judged(
        method.name, snr_db, 0, truths.outs, truths.categories, truths.bands, scores, covered, {}, None, {}, {}, (),
        out_of_range, (), each, found.bands, low, high,
    )  # fmt: skip


def _auc(method: Method, found: Sampled, truths: Truths, seed: int) -> tuple[dict[str, Measured], tuple[str, ...]]:
    """Of the categories that the method names, and why not where there is none."""
    names = method.category_names
    if len(names) < 2:
        return {}, ()
    strange = sorted(set(truths.categories) - set(names))
    if strange:
        return {}, (f"no AUC: the method knows no {', '.join(strange)}",)
    labels = np.array([names.index(name) for name in truths.categories])
    try:
        area = auc(found.categories, labels, seed)
    except UsageError as error:
        return {}, (f"no AUC: {error}",)
    return {**dict(zip(names, area.classes, strict=True)), "mean": area.macro}, ()


def _tarp(found: Sampled, truths: Truths, summary: np.ndarray | None, seed: int) -> Tarp | None:
    """On means of blocks of the map. Half of the samples are free of a mean that was taken over the other half."""
    samples, truth = _blocks(found.maps), _blocks(truths.maps)
    if summary is not None:
        return tarp(samples, truth, seed, _blocks(summary))
    half = samples.shape[1] // 2
    return tarp(samples[:, half:], truth, seed, samples[:, :half].mean(1)) if half >= 2 else None


def _blocks(maps: Float[np.ndarray, "... z x"]) -> Float[np.ndarray, "... block"]:
    rows = np.array_split(maps, TARP_BLOCKS, axis=-2)
    return np.stack(
        [part.mean((-2, -1), dtype=np.float64) for row in rows for part in np.array_split(row, TARP_BLOCKS, axis=-1)],
        -1,
    )


def _information(method: Method, found: Sampled, truths: Truths) -> tuple[Known, ...]:
    if method.prior_std is None:
        return ()
    prior = np.square(method.prior_std).mean(1)
    variance = _by_block(found.maps, lambda block: block.var(1, ddof=1)).mean(2)  # case, z
    result = []
    for level in AERATIONS:
        rows = np.abs(truths.bands[:, -1] - level) <= NEAR
        if rows.any():
            reach = float(depth_of_information(np.array([level]), truths.center_frequency)[0])
            result.append(Known(level, int(rows.sum()), truths.rows, reach, np.sqrt(variance[rows].mean(0) / prior)))
    return tuple(result)


def measured(judged: Judged) -> Mapping[str, Measured]:
    """Every number with an interval, under one name each: the rows of the long table."""
    rows = dict(judged.scores)
    rows |= {f"{c.level:.0%} coverage, {name}": c.inside for name, levels in judged.coverage.items() for c in levels}
    rows |= {f"spread-skill, {name}": value for name, value in judged.spread_skill.items()}
    rows |= {f"AUC, {name}": value for name, value in judged.auc.items()}
    if judged.tarp is not None:
        rows["TARP area"] = judged.tarp.area
    return rows | {"out of range": judged.out_of_range}
