"""What a reconstruction says: maps, percent aeration with intervals, how deep data inform, why it was withheld."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lungwave.acoustics.image import BMode
from lungwave.config import MapConfig
from lungwave.phantom.aeration import Truth, map_columns
from lungwave.posterior.information import information_map, informed_depth
from lungwave.types import MM, Field, UsageError

SURFACE = 1.0 * MM  # [m] depth of the "surface" that the pleural share and the map error refer to
POOR = 0.5  # aeration below which a CT voxel counts as poorly aerated
ROUNDING = 1e-4  # by which float16 and float32 samples may leave 0-1

# Quantitative CT sorts voxels at -100, -500 and -900 HU; with tissue at 0 and air at -1000 HU that is 10, 50 and 90 %
# air. A voxel on a limit belongs to the class with less air (-100 HU is non-aerated, -101 HU is poorly aerated).
CT_LIMITS = (0.1, 0.5, 0.9)
CT_CLASSES = ("non-aerated", "poorly aerated", "normally aerated", "hyperinflated")


@dataclass(frozen=True)
class Band:
    """Percent aeration over a depth band below the pleura, as a fraction 0-1."""

    top: float  # [m]
    bottom: float  # [m]
    estimate: float
    lower: float
    upper: float
    truth: float | None = None


@dataclass(frozen=True)
class Interval:
    """A fraction 0-1 and its credible interval; NaN where there is nothing to take it from."""

    estimate: float  # posterior mean
    lower: float
    upper: float


@dataclass(frozen=True)
class Posterior:
    """Samples of one frame's aeration map and what follows from them; made by ``summarise``.

    Aeration and shares are fractions 0-1; row 0 touches the visceral pleura. ``out`` is every depth band, then the
    whole depth. The order of the samples is without meaning.
    """

    samples: Float[np.ndarray, "sample z x"]
    band_samples: Float[np.ndarray, "sample out"]
    category_samples: Float[np.ndarray, "sample category"]  # probabilities
    category_names: tuple[str, ...]
    level: float  # of every interval
    pixel: float  # [m]
    x: Float[np.ndarray, " x"]  # [m] lateral position of the columns
    mean: Field
    std: Field
    lower: Field
    upper: Field
    information: Field  # 0 = the echoes say nothing of this pixel, 1 = they say it all
    information_depth: Float[np.ndarray, " x"]  # [m]
    whole: Band
    bands: tuple[Band, ...]
    profile: Float[np.ndarray, " x"]  # percent aeration of each column over the whole depth
    profile_lower: Float[np.ndarray, " x"]
    profile_upper: Float[np.ndarray, " x"]
    categories: Float[np.ndarray, " category"]  # probabilities of the frame, mean over the samples

    @property
    def z(self) -> Float[np.ndarray, " z"]:
        """Depth of the rows' centres below the pleura [m]."""
        return row_depths(self.mean.shape[0], self.pixel)

    def share_below(self, threshold: float = POOR, columns: Bool[np.ndarray, " x"] | None = None) -> Interval:
        """Share of the pleural line, that is of ``columns`` (all), whose top millimetre holds less air than this.

        Counted in each sample, so it comes with an interval: the share that the mean map shows is another number,
        because a mean is never as patchy as the lungs it is the mean of.
        """
        chosen = self.samples[:, : surface_rows(self.pixel), _chosen(columns)].mean(1, dtype=np.float64)
        return _share(chosen < threshold, self.level)

    def class_shares(self, columns: Bool[np.ndarray, " x"] | None = None) -> tuple[Interval, ...]:
        """Share of the map (``columns`` of it) in each of ``CT_CLASSES``, counted in each sample.

        Like CT, not CT: a map is one slice, a few millimetres deep, of 0.1 mm pixels averaged over sigma 0.5 mm, and a
        CT voxel is 0.5-0.8 mm wide and 1-10 mm thick with some hundred alveoli in it. Classes depend on that size
        (the finer, the more pixels are all tissue or all air), CT shares are often weighed by tissue, and 0 HU stands
        for tissue without contrast. Compare such shares between lungwave maps, not with a patient's CT.
        """
        chosen = self.samples[:, :, _chosen(columns)]
        of_class = np.searchsorted(np.array(CT_LIMITS, np.float32), chosen)  # float32 as the samples
        return tuple(_share(of_class == k, self.level) for k in range(len(CT_CLASSES)))


@dataclass(frozen=True)
class Reconstruction:
    """One frame's result. Where ``withheld`` is set only the B-mode is drawn and every aeration field is None."""

    name: str
    method: str
    bmode: BMode
    withheld: str | None = None  # the reason, one sentence with the cure
    flags: tuple[str, ...] = ()  # remarks that do not withhold the result
    level: float = 0.9  # of every interval
    aeration: Field | None = None  # estimate, fraction 0-1, (rows, columns)
    lower: Field | None = None
    upper: Field | None = None
    pixel: float = 1e-4  # [m]
    x: Float[np.ndarray, " columns"] | None = None  # [m] lateral position of the map's columns
    pleura_depth: Float[np.ndarray, " columns"] | None = None  # [m] detected
    valid: Bool[np.ndarray, " columns"] | None = None
    information_depth: Float[np.ndarray, " columns"] | None = None  # [m] below it the map is the prior speaking
    whole: Band | None = None
    bands: tuple[Band, ...] = ()
    truth: Truth | None = None
    manifest: dict[str, Any] = field(default_factory=dict)
    posterior: Posterior | None = None  # samples behind the fields above, where the method draws any

    @classmethod
    def of(
        cls,
        name: str,
        method: str,
        bmode: BMode,
        posterior: Posterior,
        *,
        pleura_depth: Float[np.ndarray, " columns"] | None = None,
        valid: Bool[np.ndarray, " columns"] | None = None,
        truth: Truth | None = None,
        flags: tuple[str, ...] = (),
        manifest: dict[str, Any] | None = None,
    ) -> Reconstruction:
        """The result that a posterior is: posterior mean as the estimate, its intervals, the truth beside the bands.

        A flag says where there are too few samples for the level. UsageError where the truth has other depth bands.
        """
        bands, whole = posterior.bands, posterior.whole
        if truth is not None:
            edges = (*(b.top for b in bands), bands[-1].bottom)
            if len(edges) != len(truth.band_edges) or not np.allclose(edges, truth.band_edges, rtol=0, atol=1e-9):
                raise UsageError(f"the truth has depth bands {truth.band_edges}, the posterior {edges}; give the same")
            bands = tuple(replace(b, truth=float(t)) for b, t in zip(bands, truth.bands, strict=True))
            whole = replace(whole, truth=float(truth.whole))
            valid = np.asarray(truth.valid, bool) if valid is None else valid
        m = len(posterior.samples)
        best = (m - 1) / (m + 1)
        if best < posterior.level - 1e-9:
            asked = f"less than the {100 * posterior.level:g} % that was asked for"
            flags = (*flags, f"{m} samples: an interval is their whole range and holds {100 * best:.0f} %, {asked}.")
        return cls(
            name=name,
            method=method,
            bmode=bmode,
            flags=flags,
            level=posterior.level,
            aeration=posterior.mean,
            lower=posterior.lower,
            upper=posterior.upper,
            pixel=posterior.pixel,
            x=posterior.x,
            pleura_depth=pleura_depth,
            valid=np.ones(len(posterior.x), bool) if valid is None else valid,
            information_depth=posterior.information_depth,
            whole=whole,
            bands=bands,
            truth=truth,
            manifest=dict(manifest or {}),
            posterior=posterior,
        )


def summarise(
    samples: Float[np.ndarray, "sample z x"],
    band_samples: Float[np.ndarray, "_ out"],
    category_samples: Float[np.ndarray, "_ category"],
    prior_std: Float[np.ndarray, "_ _"],
    map_config: MapConfig,
    level: float = 0.9,
    *,
    category_names: Sequence[str] = (),
) -> Posterior:
    """Means, central credible intervals and information of one frame's posterior samples.

    Args:
        samples: aeration maps [sample, z, x], fraction 0-1, on the grid of ``map_config``.
        band_samples: percent aeration [sample, band + 1] as a fraction: every band of ``map_config``, then the whole.
        category_samples: probabilities [sample, category] that sum to 1 in each sample; no columns where not known.
        prior_std: standard deviation [z, x] of the maps that the prior was trained on.
        level: of every interval; two samples or more, ``2 / (1 - level) - 1`` (19 for 0.9) for the full level.
        category_names: of the columns of ``category_samples``.

    Bounds are NumPy's "weibull" quantiles, which put order statistic k of M samples at probability k / (M + 1), its
    mean under any continuous posterior; ordinary quantiles are too narrow (0.81 instead of 0.9 for M = 20). They are
    the bounds of ``evaluate.calibration.central_interval``, whose coverage is measured; below the least M for a level
    that one refuses and this one gives the range of the samples, which holds (M - 1) / (M + 1).

    Raises:
        UsageError: shapes do not fit, fewer than 2 samples, values that are NaN or outside 0-1, no spread in the prior.
    """
    _check(samples, band_samples, category_samples, prior_std, map_config, level, category_names)
    kept = np.clip(samples, 0.0, 1.0).astype(np.float32)
    maps, numbers = kept.astype(np.float64), np.clip(np.asarray(band_samples, np.float64), 0.0, 1.0)
    edges = map_config.bands
    depth = row_depths(map_config.rows, map_config.pixel)
    columns = maps[:, (depth >= edges[0]) & (depth < edges[-1])].mean(1)
    lower, upper = _bounds(maps, level)
    profile_lower, profile_upper = _bounds(columns, level)
    low, high = _bounds(numbers, level)
    spans = (*pairwise(edges), (edges[0], edges[-1]))
    bands = [
        Band(top, bottom, float(numbers[:, k].mean()), float(low[k]), float(high[k]))
        for k, (top, bottom) in enumerate(spans)
    ]
    std = maps.std(0, ddof=1)
    known = information_map(std, prior_std)
    names = tuple(category_names) or tuple(f"category {k + 1}" for k in range(category_samples.shape[1]))
    return Posterior(
        samples=kept,
        band_samples=numbers,
        category_samples=np.asarray(category_samples, np.float64),
        category_names=names,
        level=level,
        pixel=map_config.pixel,
        x=map_columns(map_config),
        mean=maps.mean(0),
        std=std,
        lower=lower,
        upper=upper,
        information=known,
        information_depth=informed_depth(known, map_config.pixel),
        whole=bands[-1],
        bands=tuple(bands[:-1]),
        profile=columns.mean(0),
        profile_lower=profile_lower,
        profile_upper=profile_upper,
        categories=np.asarray(category_samples, np.float64).mean(0),
    )


def row_depths(rows: int, pixel: float) -> Float[np.ndarray, " z"]:
    """Depth of the rows' centres below the pleura [m]."""
    return (np.arange(rows) + 0.5) * pixel


def surface_rows(pixel: float) -> int:
    """Rows of the top millimetre, one at least."""
    return max(1, round(SURFACE / pixel))


def _bounds(values: Float[np.ndarray, "sample ..."], level: float) -> Float[np.ndarray, "2 ..."]:
    """Lower and upper bound over the samples, see ``summarise``."""
    tail = (1.0 - level) / 2
    return np.quantile(values, (tail, 1.0 - tail), axis=0, method="weibull")


def _share(inside: Bool[np.ndarray, "sample ..."], level: float) -> Interval:
    """Share of the entries of each sample that are inside, over the samples."""
    if not inside[0].size:
        return Interval(np.nan, np.nan, np.nan)
    share = inside.reshape(len(inside), -1).mean(1)
    low, high = _bounds(share, level)
    return Interval(float(share.mean()), float(low), float(high))


def _chosen(columns: Bool[np.ndarray, " x"] | None) -> Any:
    return slice(None) if columns is None else np.asarray(columns, bool)


def _check(
    samples: np.ndarray,
    band_samples: np.ndarray,
    category_samples: np.ndarray,
    prior_std: np.ndarray,
    config: MapConfig,
    level: float,
    names: Sequence[str],
) -> None:
    """UsageError, naming what and how to put it right, for anything that is not a posterior of ``config``'s map."""
    grid, outs = (config.rows, config.columns), len(config.bands)
    if not 0 < level < 1:
        raise UsageError(f"level {level:g} is not between 0 and 1; give a fraction like 0.9")
    if samples.ndim != 3 or samples.shape[1:] != grid:
        raise UsageError(f"samples have shape {samples.shape}; (sample, {grid[0]}, {grid[1]}) was expected")
    m = len(samples)
    if m < 2:
        raise UsageError(f"a posterior needs 2 samples or more to have a spread, there are {m}; draw 16 to 64")
    if band_samples.shape != (m, outs):
        raise UsageError(f"band samples have shape {band_samples.shape}; ({m}, {outs - 1} bands + 1) was expected")
    if category_samples.ndim != 2 or len(category_samples) != m:
        raise UsageError(f"category samples have shape {category_samples.shape}; ({m}, category) was expected")
    if names and len(names) != category_samples.shape[1]:
        raise UsageError(f"{len(names)} category names for {category_samples.shape[1]} columns; give one each")
    if prior_std.shape != grid:
        raise UsageError(f"prior_std has shape {prior_std.shape}; {grid} was expected")
    for what, values in (("samples", samples), ("band samples", band_samples), ("category samples", category_samples)):
        if not np.isfinite(values).all():
            raise UsageError(f"{what} hold {int((~np.isfinite(values)).sum())} NaN or infinite values; draw them again")
        if values.size and not -ROUNDING <= values.min() <= values.max() <= 1 + ROUNDING:
            raise UsageError(f"{what} lie in {values.min():.3g} to {values.max():.3g}; give fractions clipped to 0-1")
    totals = np.asarray(category_samples, np.float64).sum(1)
    if category_samples.shape[1] and np.abs(totals - 1).max() > 0.01:
        raise UsageError(f"category samples sum to {totals.min():.3g} to {totals.max():.3g}; give probabilities")
    if not (np.isfinite(prior_std).all() and prior_std.min() > 0):
        raise UsageError("prior_std holds values that are not above 0; take it over the maps that the prior learnt")
    depth = row_depths(config.rows, config.pixel)
    if not ((depth >= config.bands[0]) & (depth < config.bands[-1])).any():
        raise UsageError(f"the map has no row between {config.bands[0]:g} and {config.bands[-1]:g} m; deepen map.rows")
