"""Scores of posterior samples, estimates and class scores against truths; intervals resample cases.

Samples are [case, sample, *field], truths [case, *field]; a NaN in the truth, or False in ``counted``, is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.spatial.distance import pdist

from lungwave.evaluate.cases import (
    Measured,
    bootstrap,
    case_weights,
    counted_values,
    ensemble,
    interval,
    ratio,
)
from lungwave.types import UsageError


def crps_fair(
    samples: Float[np.ndarray, "case sample *field"],
    truth: Float[np.ndarray, "_ ..."],
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> Float[np.ndarray, " case *field"]:
    """Continuous ranked probability score of each entry, in the truth's unit; NaN where not counted.

    mean |x_i - y| - sum_ij |x_i - x_j| / (2 M (M - 1)): the fair estimator (Ferro 2014, doi 10.1002/qj.2270), whose
    mean does not depend on the number M of samples, so that samplers with different M compare. One entry's score may
    be below zero. The double sum over sorted samples is 2 sum_i (2 i - M - 1) x_(i). UsageError as in ``ensemble``.
    """
    e = ensemble(samples, truth, counted)
    m, found = e.size, np.empty_like(e.truth)
    weight = (2 * np.arange(1, m + 1) - m - 1) / (m * (m - 1))
    for rows, error in e.blocks():
        error -= e.truth[rows, None]  # differences first: less cancellation, and the second sum does not see the shift
        error.sort(1)
        found[rows] = np.abs(error).mean(1) - np.einsum("m,cme->ce", weight, error)
    return np.where(e.counted, found, np.nan).reshape(-1, *e.field)


def energy_score_fair(
    samples: Float[np.ndarray, "case sample *field"],
    truth: Float[np.ndarray, "_ ..."],
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> Float[np.ndarray, " case"]:
    """Energy score of each case's whole field: the CRPS with Euclidean distances over the counted entries.

    Gneiting and Raftery 2007 (doi 10.1198/016214506000001437), section 4.3, with the fair denominator M (M - 1). It
    grows with the root of the number of entries. NaN for a case with none. Takes M^2 / 2 distances a case; UsageError
    as in ``ensemble``.
    """
    e = ensemble(samples, truth, counted)
    found = np.full(len(e.truth), np.nan)
    for rows, block in e.blocks():
        for case, draws in enumerate(block, rows.start):
            if e.counted[case].any():  # entries that do not count are 0 in samples and truth and add no distance
                found[case] = np.linalg.norm(draws - e.truth[case], axis=1).mean() - pdist(draws).mean() / 2
    return found


def _root_ratio(moments: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):  # a resampled set may hold only cases without error
        return np.sqrt(moments[:, 0] / moments[:, 1])


def spread_skill(
    samples: Float[np.ndarray, "case sample *field"],
    truth: Float[np.ndarray, "_ ..."],
    seed: int = 0,
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> Measured:
    """sqrt((M + 1) / M) times rms spread over the rms error of the ensemble mean: 1 if calibrated, < 1 overconfident.

    Fortin et al. 2014 (doi 10.1175/JHM-D-14-0008.1): the mean of M samples has itself an error of variance / M.
    UsageError as in ``ensemble``, and where no ensemble mean differs from its truth.
    """
    e = ensemble(samples, truth, counted)
    moments = np.empty((len(e.truth), 2))
    for rows, error in e.blocks():  # uncounted entries are 0 in all samples and the truth: no spread, no error
        error -= e.truth[rows, None]
        moments[rows, 0] = error.var(1, ddof=1).sum(1) * (e.size + 1) / e.size
        moments[rows, 1] = np.square(error.mean(1)).sum(1)
    if not moments[:, 1].any():
        raise UsageError("every ensemble mean equals its truth; give samples that were drawn without knowing the truth")
    return bootstrap(moments[e.counted.any(1)], _root_ratio, seed)


def reduced_chi2(
    residual: Float[np.ndarray, " case *field"],
    std: Float[np.ndarray, " ..."] | float,
    seed: int = 0,
    counted: Bool[np.ndarray, "_ ..."] | None = None,
) -> Measured:
    """Mean of (residual / std)^2: 1 where the noise explains the residual, below 1 where it was fitted too.

    ``std`` is the standard deviation of the noise in the residual's unit and broadcasts to it; a NaN residual is not
    counted. UsageError for a std that is not positive and where nothing counts.
    """
    flat, kept = counted_values(residual, counted, "residuals")
    try:
        spread = np.broadcast_to(np.asarray(std, np.float64), np.shape(residual)).reshape(flat.shape)
    except ValueError as error:
        raise UsageError(
            f"std of shape {np.shape(std)} does not broadcast to residuals {np.shape(residual)}; give one that does"
        ) from error
    used = spread[kept]
    if not (np.isfinite(used).all() and (used > 0).all()):
        raise UsageError(f"the smallest std is {used.min():g}; give the positive, finite std of the noise")
    square = np.square(np.divide(flat, spread, out=np.zeros_like(flat), where=kept)).sum(1)
    return bootstrap(np.stack([square, kept.sum(1)], 1)[kept.any(1)], ratio, seed)


def paired_difference(
    errors_a: Float[np.ndarray, " case *field"], errors_b: Float[np.ndarray, "_ ..."], seed: int = 0
) -> Measured:
    """Relative improvement 1 - mean(a) / mean(b) of method a over b on the same cases: 0.2 means 20 % less error.

    Every resampled set holds the same cases of both, so that what makes a case hard cancels. NaN in either is not
    counted. UsageError for shapes that differ, nothing to count, and a mean error of b that is not positive.
    """
    if np.shape(errors_a) != np.shape(errors_b):
        raise UsageError(
            f"errors have shapes {np.shape(errors_a)} and {np.shape(errors_b)}; give the same cases of both"
        )
    both = ~(np.isnan(errors_a) | np.isnan(errors_b))
    (a, kept), (b, _) = (counted_values(errors, both, "errors") for errors in (errors_a, errors_b))
    moments = np.stack([a.sum(1), b.sum(1)], 1)[kept.any(1)]
    if moments[:, 1].sum() <= 0:
        raise UsageError(f"the second method's mean error is {b[kept].mean():g}; an improvement needs one above 0")

    def improvement(mean: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):  # a resampled set may hold only cases without error
            return 1 - ratio(mean)

    return bootstrap(moments, improvement, seed)


@dataclass(frozen=True)
class Auc:
    """One-vs-rest area under the ROC curve of each class, and their mean."""

    classes: tuple[Measured, ...]
    macro: Measured


def _weighted_auc(
    scores: Float[np.ndarray, " case"], positive: Bool[np.ndarray, " case"], weights: Float[np.ndarray, "draw case"]
) -> Float[np.ndarray, " draw"]:
    """Share of (positive, negative) pairs in order, a tie for one half; NaN for a draw without either kind."""
    order = np.argsort(scores, kind="stable")
    start = np.flatnonzero(np.diff(scores[order], prepend=np.nan) != 0)  # first case of each distinct score
    ours = np.add.reduceat((weights * positive)[:, order], start, axis=1)
    rest = np.add.reduceat((weights * ~positive)[:, order], start, axis=1)
    below = np.cumsum(rest, 1) - rest / 2
    with np.errstate(invalid="ignore"):
        return (ours * below).sum(1) / (ours.sum(1) * rest.sum(1))


def auc(scores: Float[np.ndarray, "case class"], labels: Int[np.ndarray, " _"], seed: int = 0) -> Auc:
    """ROC AUC of each class against the rest (Mann-Whitney statistic) and their unweighted mean, with intervals.

    ``scores`` rise with the belief in a class; ``labels`` [case] are columns of ``scores``. A resampled set without a
    case of some class says nothing of that class or the mean and is left out. UsageError for shapes that do not fit,
    scores that are not finite, and a class that has no case or every case.
    """
    scores, labels = np.asarray(scores, np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.shape[1] < 2 or labels.shape != scores.shape[:1]:
        raise UsageError(
            f"scores have shape {scores.shape}, labels {labels.shape}; they must be [case, class] and [case], with 2 "
            "classes or more"
        )
    if not np.isfinite(scores).all():
        raise UsageError("class scores hold values that are not finite; leave those cases out")
    columns = np.arange(scores.shape[1])
    if not np.isin(labels, columns).all():
        wrong = labels[~np.isin(labels, columns)][0]
        raise UsageError(f"label {wrong} is none of the {len(columns)} columns of scores; number classes from 0")
    of_class = (labels[:, None] == columns).T
    if (empty := ~of_class.any(1)).any():
        raise UsageError(
            f"class {empty.argmax()} has none of the {len(labels)} cases; add such cases, or drop its column"
        )
    n, pairs = len(labels), list(zip(scores.T, of_class, strict=True))
    values = [float(_weighted_auc(s, p, np.ones((1, n)))[0]) for s, p in pairs]
    draws = np.concatenate([[_weighted_auc(s, p, w) for s, p in pairs] for w in case_weights(n, seed)], axis=1)
    return Auc(
        tuple(interval(v, d, n) for v, d in zip(values, draws, strict=True)),
        interval(float(np.mean(values)), draws.mean(0), n),
    )
