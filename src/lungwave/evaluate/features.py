"""Features of lung maps that need no download: pixels, undecimated Haar statistics, spectra; on the scale of real maps.

Every extractor is a deterministic function of maps ``[n, z, x]`` (fraction 0-1) of any size. Networks trained on
photographs are not among them: an extractor must be shown to react to the defects of our maps, and these do.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.fft import dct, dctn

from lungwave.types import UsageError

Maps = Float[np.ndarray, "n z x"]
Vectors = Float[np.ndarray, "n d"]

PIXELS = 4096  # most values of the pixel vector; larger maps are averaged over blocks first
POINT = 0.01  # amplitude that a logarithm treats as small: one point of aeration, well above 8-bit rounding
CHUNK = 2**22  # pixels at a time, for bounded memory
CACHED = 2**18  # the same where many cheap steps follow one another: about what a core's cache holds
BANDS = 12  # of each spectrum
TOLERANCE = 1e-3  # rounding that a fraction may show beyond 0-1


def check_maps(maps: np.ndarray, name: str, least: int = 2) -> Float[np.ndarray, "n z x"]:
    """The maps as float32 ``[n, z, x]``; a channel axis of one is dropped.

    UsageError for another shape, fewer than ``least`` maps, values that are not finite or not fractions.
    """
    maps = np.asarray(maps)
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise UsageError(f"{name}: maps have shape {maps.shape}; give [n, z, x] or [n, 1, z, x]")
    if len(maps) < least:
        raise UsageError(f"{name}: {len(maps)} maps; at least {least} are needed")
    maps = maps.astype(np.float32, copy=False)
    if not np.isfinite(maps).all():
        raise UsageError(f"{name}: {int((~np.isfinite(maps)).sum())} values are not finite; remove those maps")
    low, high = float(maps.min()), float(maps.max())
    if low < -TOLERANCE or high > 1 + TOLERANCE:
        raise UsageError(f"{name}: values run from {low:g} to {high:g}; aeration is a fraction 0-1")
    return maps


def check_same_size(*named: tuple[str, np.ndarray]) -> None:
    """UsageError where two sets of maps differ in size."""
    (first, reference), *others = named
    for name, maps in others:
        if maps.shape[1:] != reference.shape[1:]:
            raise UsageError(
                f"{first} are {reference.shape[1]} x {reference.shape[2]}, {name} are {maps.shape[1]} x "
                f"{maps.shape[2]}; compare maps of one size"
            )


def pixels(maps: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, "n d"]:
    """The map itself, averaged over blocks where it has more than 4096 pixels; sees layout, spread and flips."""
    block = [1, 1]
    while (maps.shape[1] // block[0]) * (maps.shape[2] // block[1]) > PIXELS:
        block[int(maps.shape[2] // block[1] >= maps.shape[1] // block[0])] += 1
    z, x = maps.shape[1] // block[0], maps.shape[2] // block[1]
    cut = maps[:, : z * block[0], : x * block[1]].reshape(len(maps), z, block[0], x, block[1])
    return cut.mean((2, 4), dtype=np.float64).reshape(len(maps), -1)


def wavelet(maps: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, "n d"]:
    """Statistics of the undecimated Haar transform of each map, level by level; sees blur, noise, texture and contrast.

    The Haar pair is applied without decimation (a trous, Holschneider et al. 1989) over positions where it fits, so no
    boundary rule enters. Each level has three details (lateral, depth, diagonal), of which we take the root mean
    square, two quantiles of the magnitude and the root mean square of the upper and the lower half, as logarithms; and
    one approximation, of which we take five quantiles and the means of both halves. A level exists along an axis while
    its support fits twice, so that an 8 x 256 strip goes on along x alone.
    """
    return np.concatenate(_each(lambda part: np.concatenate(list(_levels(part)), 1), maps, CACHED))


def _levels(maps: np.ndarray) -> Iterator[np.ndarray]:
    smooth, step = maps.astype(np.float32), 1
    yield _approximation(smooth)
    while True:
        deep, wide = (smooth.shape[axis] > step and maps.shape[axis] >= 4 * step for axis in (1, 2))
        if not deep and not wide:
            return
        low, high = _haar(smooth, 1, step) if deep else (smooth, None)
        smooth, lateral = _haar(low, 2, step) if wide else (low, None)
        details = [lateral]
        if high is not None:
            details += _haar(high, 2, step) if wide else [high]
        scale = 0.5 ** (deep + wide)
        for band in details:
            if band is not None:
                yield _detail(band, scale)
        smooth *= scale
        yield _approximation(smooth)
        step *= 2


def _haar(maps: np.ndarray, axis: int, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Sum and difference of pixels ``step`` apart; the halving is left to whoever needs it."""
    first, second = (maps[:, :-step], maps[:, step:]) if axis == 1 else (maps[..., :-step], maps[..., step:])
    return first + second, first - second


def _whole_and_halves(rows: np.ndarray) -> list[np.ndarray]:
    """Mean of the map and of its upper and its lower half, given the mean of each row [n, z]."""
    middle = max(1, rows.shape[1] // 2)
    return [part.mean(1, dtype=np.float64) for part in (rows, rows[:, :middle], rows[:, -middle:])]


def _detail(band: np.ndarray, scale: float) -> np.ndarray:
    magnitude = np.abs(_thinned(band))
    power = _whole_and_halves(np.einsum("nzx,nzx->nz", band, band) / band.shape[2])
    return _log_power(scale**2 * np.stack([*power, *np.square(_quantiles(magnitude, (0.5, 0.9)))], 1))


def _thinned(band: np.ndarray) -> np.ndarray:
    """Values [n, value] for quantiles: of many more than ``PIXELS`` a regular grid of about as many."""
    stride = max(1, math.isqrt(band[0].size // PIXELS))
    return band[:, ::stride, ::stride].reshape(len(band), -1)


def _quantiles(values: np.ndarray, levels: tuple[float, ...]) -> np.ndarray:
    """Quantiles [level, n] of each row, linear between values; sorting whole rows is faster than NumPy's selection."""
    ordered, last = np.sort(values, axis=1), values.shape[1] - 1
    found = []
    for level in levels:
        below = int(level * last)
        weight = level * last - below
        found.append((1 - weight) * ordered[:, below] + weight * ordered[:, min(below + 1, last)])
    return np.stack(found)


def _log_power(power: np.ndarray) -> np.ndarray:
    """Logarithm of the amplitude; a point of aeration is added in quadrature, so that less than that is not seen."""
    return np.log(power + POINT**2) / 2


def _approximation(band: np.ndarray) -> np.ndarray:
    values = _quantiles(_thinned(band), (0.05, 0.25, 0.5, 0.75, 0.95))
    return np.stack([*values, *_whole_and_halves(band.mean(2))[1:]], 1)


def spectrum(maps: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, "n d"]:
    """Logarithm of each map's lateral, depth and radial power in octave-like bands; sees texture scale.

    The cosine transform (DCT-II) needs no window: it mirrors the map at its edges, which are not periodic.
    """
    return np.concatenate(_each(_spectra, maps, CHUNK))


def _spectra(maps: np.ndarray) -> np.ndarray:
    z, x = maps.shape[1:]
    parts = []
    if x > 1:
        parts.append(_band_power(np.square(dct(maps, axis=2, norm="ortho")).mean(1), np.arange(x) / x))
    if z > 1:
        parts.append(_band_power(np.square(dct(maps, axis=1, norm="ortho")).mean(2), np.arange(z) / z))
    radius = np.hypot(np.arange(z)[:, None] / z, np.arange(x)[None] / x)
    parts.append(_band_power(np.square(dctn(maps, axes=(1, 2), norm="ortho")).reshape(len(maps), -1), radius.ravel()))
    return np.concatenate(parts, 1)


def _band_power(power: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Logarithm of the mean power of logarithmic bands of ``frequency`` (1 = Nyquist); empty bands are left out."""
    lowest = frequency[frequency > 0].min(initial=1.0)
    edges = np.geomspace(lowest, frequency.max() * (1 + 1e-9), BANDS + 1)
    band = np.clip(np.searchsorted(edges, frequency, side="right") - 1, -1, BANDS - 1)
    means = [power[:, band == k].mean(1) for k in range(BANDS) if (band == k).any()]
    return _log_power(np.stack(means, 1))


def _each(function: Callable[[np.ndarray], np.ndarray], maps: np.ndarray, size: int) -> list[np.ndarray]:
    """A function of every ``size`` pixels, a thread a core: NumPy leaves the interpreter to others where it works."""
    count = max(1, size // maps[0].size)
    with ThreadPoolExecutor(torch.get_num_threads()) as threads:
        return list(threads.map(function, (maps[start : start + count] for start in range(0, len(maps), count))))


Extractor = Callable[[Float[np.ndarray, "n z x"]], Float[np.ndarray, "n d"]]
EXTRACTORS: dict[str, Extractor] = {"pixels": pixels, "wavelet": wavelet, "spectrum": spectrum}


@dataclass(frozen=True)
class Features:
    """An extractor on the scale of a reference set, so that distances mean the same in every run on that data."""

    name: str  # of the extractor
    size: tuple[int, int]  # (z, x) of the maps
    centre: Float[np.ndarray, " d"]  # mean of the reference
    scale: Float[np.ndarray, " d"]  # standard deviation, floored; one number for all pixels
    bounded: bool  # squash z to 3 tanh(z / 3), so that no single map decides

    def __call__(self, maps: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, "n d"]:
        """Features of maps of the reference's size."""
        if maps.shape[1:] != self.size:
            raise UsageError(
                f"the features were fitted to {self.size[0]} x {self.size[1]} maps, not {maps.shape[1]} x "
                f"{maps.shape[2]}; compare maps of one size"
            )
        return self.scaled(EXTRACTORS[self.name](maps))

    def scaled(self, found: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n d"]:
        """What the extractor found, on the reference's scale."""
        z = (found - self.centre) / self.scale
        return 3 * np.tanh(z / 3) if self.bounded else z


def fit_features(name: str, reference: Float[np.ndarray, "n z x"]) -> Features:
    """Extractor ``name`` with the centre and scale of real maps."""
    return fitted(name, reference)[0]


def fitted(name: str, reference: Float[np.ndarray, "n z x"]) -> tuple[Features, Float[np.ndarray, "n d"]]:
    """The same, and the features of these maps.

    Pixels share one scale; the other features are scaled one by one, floored at a tenth of the median scale, because
    a nearly constant feature would otherwise let a few maps decide, and bounded for the same reason.
    """
    if name not in EXTRACTORS:
        raise UsageError(f"no features named '{name}'; choose from {', '.join(EXTRACTORS)}")
    found = EXTRACTORS[name](check_maps(reference, "reference"))
    centre, spread = found.mean(0), found.std(0)
    if name == "pixels":
        scale = np.full_like(spread, max(float(np.sqrt(np.square(spread).mean())), POINT))
    else:
        scale = np.maximum(spread, max(0.1 * float(np.median(spread)), POINT))
    features = Features(name, (reference.shape[1], reference.shape[2]), centre, scale, name != "pixels")
    return features, features.scaled(found)
