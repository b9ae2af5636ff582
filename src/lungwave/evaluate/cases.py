"""Posterior samples beside truths, case by case, and intervals that resample whole cases.

A case is one lung with one recording. Its pixels share the same mistake, so that they come into a resampled set
together or not at all; an interval over pixels would be far too narrow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import norm, t

from lungwave.repro import stream
from lungwave.types import UsageError

DRAWS = 2000  # bootstrap draws
LEVEL = 0.95  # of every interval and band
BLOCK = 1 << 22  # values at a time, in double precision 32 MB

Functional = Callable[[np.ndarray], np.ndarray]  # mean moments [draw, p] -> statistic [draw]


@dataclass(frozen=True)
class Measured:
    """A number and its 95 % interval over cases; the bounds are NaN where one case alone shows no spread."""

    value: float
    low: float
    high: float


def to_json(result: Any) -> Any:
    """A result as JSON can hold it: dataclasses as dicts, arrays and tuples as lists, NaN and infinity as None."""
    if isinstance(result, Mapping):
        return {str(key): to_json(value) for key, value in result.items()}
    if is_dataclass(result):
        return {f.name: to_json(getattr(result, f.name)) for f in fields(result)}
    if isinstance(result, np.ndarray):
        return to_json(result.tolist())
    if isinstance(result, (list, tuple)):
        return [to_json(v) for v in result]
    return None if isinstance(result, float) and not np.isfinite(result) else result


@dataclass(frozen=True)
class Ensemble:
    """Samples and truths with the field's axes flattened, made by ``ensemble``."""

    samples: Float[np.ndarray, "case sample entry"]
    truth: Float[np.ndarray, "case entry"]  # 0 where not counted
    counted: Bool[np.ndarray, "case entry"]
    field: tuple[int, ...]

    @property
    def size(self) -> int:
        """Samples a case."""
        return self.samples.shape[1]

    def blocks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Cases and their samples [case, sample, entry] in double precision, 0 where not counted; free to overwrite."""
        step = max(1, BLOCK // max(1, self.samples[0].size))
        for k in range(0, len(self.samples), step):
            rows = slice(k, k + step)
            block = self.samples[rows].astype(np.float64)
            block.transpose(0, 2, 1)[~self.counted[rows]] = 0
            yield rows, block


def counted_values(
    values: np.ndarray, counted: np.ndarray | None, name: str
) -> tuple[Float[np.ndarray, "case entry"], Bool[np.ndarray, "case entry"]]:
    """Values [case, entry] in double precision, 0 where not counted, and which count: those that are no NaN.

    ``counted`` [case, *field] rules out more. UsageError for infinite values and where nothing counts.
    """
    values = np.asarray(values)
    if counted is not None and np.shape(counted) != values.shape:
        raise UsageError(f"counted has shape {np.shape(counted)}, {name} has {values.shape}; they must be equal")
    kept = ~np.isnan(values) if counted is None else ~np.isnan(values) & np.asarray(counted, bool)
    if not kept.any():
        raise UsageError(
            f"no case to judge: nothing of the {name} {values.shape} counts; give one value that is no NaN"
        )
    if np.isinf(values[kept]).any():
        raise UsageError(f"{name} hold infinite values; correct them, or set them to NaN to leave them out")
    found = np.where(kept, values, 0).astype(np.float64)
    return found.reshape(len(values), -1), kept.reshape(len(values), -1)


def ensemble(samples: np.ndarray, truth: np.ndarray, counted: np.ndarray | None = None) -> Ensemble:
    """Samples [case, sample, *field] beside truths [case, *field], checked.

    Counted is what is no NaN in the truth and, where ``counted`` [case, *field] is given, True there. UsageError for
    shapes that do not fit, fewer than 2 samples, no case, and samples that are not finite where the truth counts.
    """
    samples, truth = np.asarray(samples), np.asarray(truth)
    if samples.ndim < 2 or samples.shape[:1] + samples.shape[2:] != truth.shape:
        raise UsageError(
            f"samples have shape {samples.shape}, truths {truth.shape}; they must be [case, sample, *field] and "
            "[case, *field] with equal cases and field"
        )
    if samples.shape[1] < 2:
        raise UsageError(f"{samples.shape[1]} sample a case; draw at least 2")
    flat, kept = counted_values(truth, counted, "truths")
    every = samples.reshape(len(samples), samples.shape[1], -1)
    bad = (~np.isfinite(every).all(1) & kept).any(1)
    if bad.any():
        raise UsageError(
            f"samples of {bad.sum()} cases (first: case {bad.argmax()}) are not finite; draw them again, or leave "
            "those entries out through counted"
        )
    return Ensemble(every, flat, kept, truth.shape[1:])


def interval(value: float, draws: Float[np.ndarray, " draw"], cases: int) -> Measured:
    """The expanded percentile interval (Hesterberg 2014, arXiv 1411.5279).

    Plain percentiles are too narrow for few cases, by sqrt((n - 1) / n) and by the normal in place of Student's t; the
    quantiles are taken further out by both. A draw where the statistic is not defined is left out.
    """
    draws = draws[np.isfinite(draws)]
    if cases < 2 or not len(draws):
        return Measured(value, np.nan, np.nan)
    tail = norm.cdf(t.ppf((1 - LEVEL) / 2, cases - 1) * np.sqrt(cases / (cases - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Measured(value, float(low), float(high))


def case_weights(cases: int, seed: int) -> Iterator[Float[np.ndarray, "draw case"]]:
    """How often each case stands in each resampled set, over the number of cases; ``DRAWS`` sets in all, in blocks.

    The same sets come for every statistic of as many cases, so that two methods meet the same luck.
    """
    generator, step = stream(seed, "bootstrap over cases"), max(1, BLOCK // cases)
    for k in range(0, DRAWS, step):
        sets = min(step, DRAWS - k)
        drawn = generator.integers(cases, size=(sets, cases)) + cases * np.arange(sets)[:, None]
        yield np.bincount(drawn.ravel(), minlength=sets * cases).reshape(sets, cases) / cases


def bootstrap(moments: Float[np.ndarray, "case p"], functional: Functional, seed: int) -> Measured:
    """A function of the mean over cases of some moments, with its interval."""
    value = float(functional(moments.mean(0, keepdims=True))[0])
    draws = np.concatenate([weights @ moments for weights in case_weights(len(moments), seed)])
    return interval(value, functional(draws), len(moments))


def ratio(moments: Float[np.ndarray, "draw 2"]) -> Float[np.ndarray, " draw"]:
    """First moment over the second."""
    return moments[:, 0] / moments[:, 1]


def mean_over_cases(
    values: Float[np.ndarray, " case *field"], seed: int = 0, counted: Bool[np.ndarray, "_ ..."] | None = None
) -> Measured:
    """Mean of a score or an error with its interval; NaN is not counted. Every counted entry weighs the same.

    A case with no counted entry is no case. UsageError where nothing counts.
    """
    flat, kept = counted_values(values, counted, "values")
    moments = np.stack([flat.sum(1), kept.sum(1)], 1)
    return bootstrap(moments[kept.any(1)], ratio, seed)
