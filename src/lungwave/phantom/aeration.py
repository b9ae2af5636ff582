"""Aeration: local air fraction below the pleura, percent aeration over depth bands, the 8 x 256 seed view."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lungwave.config import Config, MapConfig
from lungwave.phantom.alveoli import Columns
from lungwave.phantom.anatomy import Anatomy, paint_air
from lungwave.types import MM, Field, Mask, UsageError

SEED_VIEW = (8, 256)  # rows, columns of 0.1 mm: the strip of the report that lungwave started from


@dataclass(frozen=True)
class Truth:
    """What a phantom really is, in pleura-flattened coordinates (row 0 touches the visceral pleura's lower face)."""

    sharp: Field  # aeration at sigma 0.15 mm, fraction 0-1, (rows, columns); NaN where not ``lung``
    smooth: Field  # aeration at sigma 0.5 mm, fraction 0-1, (rows, columns); NaN where not ``lung``
    lung: Mask  # pixel is quantifiable lung (air or lung tissue): below the pleura, in a valid column
    valid: Bool[np.ndarray, " columns"]  # column is quantifiable (no rib shadow, no pneumothorax)
    pleura_depth: Float[np.ndarray, " columns"]  # [m] depth of the lung surface
    pixel: float  # [m]
    x: Float[np.ndarray, " columns"]  # [m] lateral position of the columns
    bands: Float[np.ndarray, " band"]  # percent aeration (fraction 0-1) of each depth band, valid columns; NaN if none
    band_edges: tuple[float, ...]  # [m]
    whole: float  # fraction 0-1 from the first to the last band edge; NaN if no column is valid
    profile: Float[np.ndarray, " columns"]  # column aeration over the same depth, fraction 0-1, NaN where invalid


@dataclass(frozen=True)
class Strip:
    """The undilated airspaces on a fine, pleura-flattened raster that reaches beyond the map on three sides."""

    air: Mask
    lung: Mask
    depth: Float[np.ndarray, " z"]  # [m] below the lung surface
    x: Float[np.ndarray, " x"]  # [m]
    valid: Bool[np.ndarray, " x"]


def truth_spacing(config: Config) -> float:
    """Spacing [m] of the raster that the truth is computed on."""
    return config.grid.spacing / config.lung.oversampling


def truth(anatomy: Anatomy, config: MapConfig, spacing: float) -> Truth:
    """Aeration of ``anatomy`` on the map of ``config``, from a raster of ``spacing`` [m]; needs no solver grid.

    A = G(air * lung) / G(lung) with Gaussian weights centred on each pixel, in pleura-flattened coordinates. The filter
    reads lung beside and below the map; at the pleura and beside invalid columns the denominator renormalises it.
    """
    strip = flatten(anatomy, config, spacing)
    return measure(strip, config, anatomy.wall.surface(map_columns(config)))


def map_columns(config: MapConfig) -> Float[np.ndarray, " columns"]:
    """Lateral position of the map's columns [m], centred on x = 0."""
    return (np.arange(config.columns) - (config.columns - 1) / 2) * config.pixel


def flatten(anatomy: Anatomy, config: MapConfig, spacing: float) -> Strip:
    """Airspaces without dilation on the flattened raster, with a margin of 3 sigma around the map."""
    margin = 3 * max(config.sigma_sharp, config.sigma_smooth)
    half = config.columns * config.pixel / 2 + margin
    bottom = max(config.rows * config.pixel + margin, config.bands[-1])
    columns, rows = 2 * int(np.ceil(half / spacing)), int(np.ceil(bottom / spacing))
    x = (np.arange(columns) - (columns - 1) / 2) * spacing
    depth = (np.arange(rows) + 0.5) * spacing
    surface = anatomy.wall.surface(x)
    where = Columns(x, surface + depth[0], surface, spacing, rows)
    valid = anatomy.wall.quantifiable(x)
    return Strip(paint_air(anatomy, where, 0.0), np.broadcast_to(valid, (rows, columns)), depth, x, valid)


def measure(strip: Strip, config: MapConfig, pleura_depth: Float[np.ndarray, " columns"]) -> Truth:
    """Maps, bands and profile of a flattened strip."""
    x = map_columns(config)
    depth = (np.arange(config.rows) + 0.5) * config.pixel
    column = np.floor(strip.x / config.pixel + config.columns / 2).astype(np.int64)
    inside = (column >= 0) & (column < config.columns)
    # A map column counts only where the whole pixel is quantifiable.
    spoiled = np.bincount(column[inside], weights=~strip.valid[inside], minlength=config.columns)
    valid = spoiled == 0
    lung = np.broadcast_to(valid, (config.rows, config.columns)).copy()
    sharp, smooth = (
        np.where(lung, _weighted(strip, depth, x, sigma), np.nan) for sigma in (config.sigma_sharp, config.sigma_smooth)
    )
    counted = inside & strip.valid & valid[column.clip(0, config.columns - 1)]
    air, total = (
        np.cumsum(np.vstack([np.zeros(len(strip.x)), part & counted]), axis=0) for part in (strip.air, strip.lung)
    )
    edge = np.searchsorted(strip.depth, config.bands)
    bands = _share(np.diff(air[edge], axis=0).sum(1), np.diff(total[edge], axis=0).sum(1))
    ends = edge[[0, -1]]
    per_column = [np.bincount(column[inside], weights=np.diff(v[ends], axis=0)[0, inside], minlength=config.columns)
                  for v in (air, total)]  # fmt: skip
    whole = _share(per_column[0].sum(keepdims=True), per_column[1].sum(keepdims=True))
    return Truth(
        sharp,
        smooth,
        lung,
        valid,
        pleura_depth,
        config.pixel,
        x,
        bands,
        config.bands,
        float(whole[0]),
        _share(*per_column),
    )


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _weighted(strip: Strip, depth: np.ndarray, x: np.ndarray, sigma: float) -> Field:
    """G(air * lung) / G(lung) at the pixel centres; the Gaussian separates into two small matrices."""
    down, across = _gauss(depth, strip.depth, sigma), _gauss(strip.x, x, sigma)
    air = down @ (strip.air & strip.lung).astype(np.float64) @ across
    lung = np.outer(down.sum(1), strip.valid.astype(np.float64) @ across)
    return np.divide(air, lung, out=np.zeros(air.shape), where=lung > 0)


def _gauss(a: np.ndarray, b: np.ndarray, sigma: float) -> Float[np.ndarray, "a b"]:
    """Weights cut at 3 sigma, the width of the margin, as whole numbers up to 2^15.

    Whole numbers add exactly in float64, so a map has the same bits for any number of BLAS threads.
    """
    distance = (a[:, None] - b[None, :]) / sigma
    return np.where(np.abs(distance) <= 3.0, np.rint(2.0**15 * np.exp(-0.5 * distance**2)), 0.0)


def seed_view(aeration: Field, pixel: float = 0.1 * MM) -> Float[np.ndarray, "8 256"]:
    """The 8 x 256 view: aeration of the top 0.8 mm over the central 25.6 mm at 0.1 mm a pixel, fraction 0-1.

    ``aeration`` is a map (``Truth.sharp``) or a finer raster whose ``pixel`` [m] divides 0.1 mm; finer pixels are
    averaged in blocks, nothing is interpolated. Raises UsageError where the map is too small.
    """
    block = round(0.1 * MM / pixel)
    if block < 1 or abs(block * pixel - 0.1 * MM) > 1e-3 * pixel:
        raise UsageError(f"seed view needs pixels that divide 0.1 mm, got {pixel / MM:g} mm")
    rows, columns = SEED_VIEW[0] * block, SEED_VIEW[1] * block
    if aeration.shape[0] < rows or aeration.shape[1] < columns:
        have = f"{aeration.shape[0] * pixel / MM:.1f} x {aeration.shape[1] * pixel / MM:.1f} mm"
        raise UsageError(
            f"seed view needs a map of 0.8 x 25.6 mm, got {have}; use the paper preset or map.columns = 256"
        )
    left = (aeration.shape[1] - columns) // 2
    top = aeration[:rows, left : left + columns]
    return top.reshape(SEED_VIEW[0], block, SEED_VIEW[1], block).mean((1, 3))
