"""Statistics of sets of lung maps: how much air, how it varies, and over which lengths; with bootstrap intervals.

A statistic is a function of a mean of per-map moments, so that a thousand resampled sets cost one matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from lungwave.repro import stream

DRAWS = 1000  # bootstrap draws
TISSUE, AIR = 0.02, 0.98  # a pixel beyond these counts as pure
CHUNK = 64  # maps at a time
CHORD = 0.5  # a pixel above this is air where chords are counted

Functional = Callable[[np.ndarray, int], np.ndarray]  # mean moments [draw, p], number of maps -> statistic [draw]


@dataclass(frozen=True)
class Statistic:
    """A number of a set of maps that depends on them through a mean of per-map moments, so that resampling is cheap."""

    moments_of_some: Callable[[Float[np.ndarray, "n z x"]], Float[np.ndarray, "n p"]]
    functional: Functional

    def moments(self, maps: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, "n p"]:
        """Moments of each map; a few maps at a time, so that memory is bounded."""
        parts = [self.moments_of_some(maps[start : start + CHUNK]) for start in range(0, len(maps), CHUNK)]
        return np.concatenate(parts)

    def of(self, maps: Float[np.ndarray, "n z x"]) -> float:
        """The statistic; NaN where it is not defined."""
        return self.value(self.moments(maps))

    def value(self, moments: Float[np.ndarray, "n p"]) -> float:
        """The statistic of maps with these moments; NaN where it is not defined."""
        return float(self.functional(moments.mean(0, keepdims=True), len(moments))[0])

    def bootstrap(
        self, moments: Float[np.ndarray, "n p"], generator: np.random.Generator
    ) -> Float[np.ndarray, " draw"]:
        """The statistic of resampled sets."""
        n = len(moments)
        weights = generator.multinomial(n, np.full(n, 1 / n), size=DRAWS) / n
        return self.functional(weights @ moments, n)


def _mean(maps: np.ndarray) -> np.ndarray:
    return maps.mean((1, 2), dtype=np.float64)[:, None]


def _two(maps: np.ndarray) -> np.ndarray:
    return np.concatenate([_mean(maps), _mean(maps) ** 2], 1)


def _pixel_two(maps: np.ndarray) -> np.ndarray:
    return np.concatenate([_mean(maps), _mean(np.square(maps))], 1)


def _first(moments: np.ndarray, n: int) -> np.ndarray:
    return moments[:, 0]


def _spread(moments: np.ndarray, n: int) -> np.ndarray:
    return np.sqrt(np.maximum(moments[:, 1] - moments[:, 0] ** 2, 0) * n / max(n - 1, 1))


def _pixel_spread(moments: np.ndarray, n: int) -> np.ndarray:
    return np.sqrt(np.maximum(moments[:, 1] - moments[:, 0] ** 2, 0))


def autocovariance(maps: Float[np.ndarray, "n z x"], axis: int) -> Float[np.ndarray, "n lag"]:
    """Autocovariance along an axis of each line's deviation from its own mean, averaged over the lines of each map.

    The line's own mean, not the map's or the set's: layers run across the whole map, and healthy and diseased maps
    differ so much in mean, that the deviation from those never decorrelates. Every pair within a line counts once;
    nothing wraps around. Lengths that are not small beside the map come out short, equally for every set of that size.
    """
    deviation = maps.astype(np.float64) - maps.mean(axis, dtype=np.float64, keepdims=True)
    size = maps.shape[axis]
    power = np.square(np.abs(np.fft.rfft(deviation, 2 * size, axis=axis))).mean(3 - axis)
    return np.fft.irfft(power, 2 * size, axis=1)[:, :size] / (size - np.arange(size))


def _length(moments: np.ndarray, n: int) -> np.ndarray:
    """Lag [pixel] at which the mean autocorrelation first falls to 1/e; NaN for lines that are constant."""
    with np.errstate(divide="ignore", invalid="ignore"):
        curve = moments / moments[:, :1]
    below = curve < np.exp(-1)
    found = below.any(1)
    k = np.where(found, below.argmax(1), 1)
    row = np.arange(len(curve))
    before, after = curve[row, k - 1], curve[row, k]
    with np.errstate(divide="ignore", invalid="ignore"):
        lag = k - 1 + (before - np.exp(-1)) / (before - after)
    return np.where(found, lag, np.nan)


def _chord(air: bool) -> Callable[[np.ndarray], np.ndarray]:
    def moments(maps: np.ndarray) -> np.ndarray:
        inside = (maps > CHORD) == air
        starts = inside[:, :, :1].sum((1, 2)) + (inside[:, :, 1:] & ~inside[:, :, :-1]).sum((1, 2))
        return np.stack([inside.sum((1, 2)), starts], 1).astype(np.float64)

    return moments


def _ratio(moments: np.ndarray, n: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(moments[:, 1] > 0, moments[:, 0] / moments[:, 1], np.nan)


STATISTICS: dict[str, Statistic] = {
    "aeration mean": Statistic(_mean, _first),
    "aeration spread": Statistic(_two, _spread),  # standard deviation over maps of the map's mean
    "pixel spread": Statistic(_pixel_two, _pixel_spread),  # standard deviation over all pixels
    "share of pure tissue": Statistic(lambda m: _mean(m < TISSUE), _first),
    "share of pure air": Statistic(lambda m: _mean(m > AIR), _first),
    "mean, upper half": Statistic(lambda m: _mean(m[:, : max(1, m.shape[1] // 2)]), _first),
    "mean, lower half": Statistic(lambda m: _mean(m[:, -max(1, m.shape[1] // 2) :]), _first),
    "lateral 1/e length": Statistic(lambda m: autocovariance(m, 2), _length),  # [pixel]
    "depth 1/e length": Statistic(lambda m: autocovariance(m, 1), _length),  # [pixel]
    "air chord": Statistic(_chord(True), _ratio),  # mean lateral run of air [pixel], cut at the map's edges
    "tissue chord": Statistic(_chord(False), _ratio),
}


def histogram_distance(a: Float[np.ndarray, "n z x"], b: Float[np.ndarray, "m z x"]) -> float:
    """1-Wasserstein distance between the values of all pixels (fraction): the area between their distributions."""
    edges = np.linspace(0, 1, 1025)
    below = []
    for maps in (a, b):
        parts = (np.histogram(np.clip(maps[k : k + CHUNK], 0, 1), edges)[0] for k in range(0, len(maps), CHUNK))
        below.append(np.cumsum(sum(parts)) / maps.size)
    return float(np.abs(below[0] - below[1]).sum() / 1024)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def statistics(
    samples: Float[np.ndarray, "n z x"],
    held_out: Float[np.ndarray, "m z x"],
    train: Float[np.ndarray, "t z x"] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Every statistic of both sets and their relative difference with its 95 % bootstrap interval over maps.

    A length that the map is too small to show is None, and so is its difference.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, statistic in STATISTICS.items():
        generator = stream(seed, f"bootstrap/{name}")
        moments = statistic.moments(samples), statistic.moments(held_out)
        ours, real = (statistic.value(part) for part in moments)
        draws = [statistic.bootstrap(part, generator) for part in moments]
        with np.errstate(divide="ignore", invalid="ignore"):
            relative = draws[0] / draws[1] - 1
        relative = relative[np.isfinite(relative)]
        interval = list(map(float, np.quantile(relative, [0.025, 0.975]))) if len(relative) else None
        found[name] = {
            "samples": _number(ours),
            "held_out": _number(real),
            "relative_difference": _number(ours / real - 1) if real else None,
            "interval": interval,
        }
        if train is not None:
            found[name]["train"] = _number(statistic.of(train))
    return found
