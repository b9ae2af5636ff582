"""Categories of disease: how likely an alveolus is open at a place, and what fills the closed ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from lungwave.config import Config
from lungwave.phantom.alveoli import Disc
from lungwave.phantom.wall import RandomField
from lungwave.types import MM, UM, UsageError

CATEGORIES = ("healthy", "interstitial", "consolidation", "fibrosis")
SMALL_MAP = 12 * MM  # maps narrower than this get lesions of the few millimetres that they can show
GRADIENT = 0.016 / MM  # [1/m] aeration rises with depth (histology behind JASA 154:2410)


@dataclass(frozen=True)
class Wedge:
    """Fluid column or wedge open to the pleura, the anatomy of B-lines."""

    x: float  # [m]
    width: float  # [m] at the pleura
    depth: float  # [m]
    taper: float  # share of the width that is left at the deep end
    factor: float  # multiplies the aeration probability

    def covers(self, depth: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> np.ndarray:
        """Which points (depth below the pleura, x) [m] lie inside."""
        half = self.width / 2 * (1 - (1 - self.taper) * np.clip(depth / self.depth, 0, 1))
        return (depth < self.depth) & (np.abs(x - self.x) < half)


@dataclass(frozen=True)
class Consolidation:
    """Airless half-ellipse at the pleura with a ragged border (shred sign)."""

    x: float  # [m]
    half_width: float  # [m]
    depth: float  # [m]
    air: float  # aeration probability inside
    ragged: float  # std of the border, share of the radius
    border: RandomField

    def covers(self, depth: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> np.ndarray:
        """Which points (depth below the pleura, x) [m] lie inside."""
        u, v = (x - self.x) / self.half_width, np.maximum(depth, 0) / self.depth
        return np.hypot(u, v) < 1 + self.ragged * self.border.at(depth, x)


@dataclass(frozen=True)
class Pathology:
    """Aeration of the lung of one case."""

    category: str
    open_share: float  # p0, probability that an alveolus is open
    spread: float  # s, std of its smooth variation
    variation: RandomField  # g
    shallow: float  # [m] subpleural depth that is 5 points less aerated
    septum: float  # [m]
    filling: str  # tissue of closed alveoli
    matrix: str  # tissue of septa
    wedges: tuple[Wedge, ...] = ()
    consolidation: Consolidation | None = None
    cysts: tuple[tuple[float, float, float], ...] = ()  # (depth below pleura, x, radius) [m]
    compressed: float = 0.0  # [m] depth in which an effusion halves the aeration
    narrow: float = 0.0  # share of open alveoli that are partly filled

    def probability(self, depth: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Probability that an alveolus at (depth below the pleura, x) [m] is open."""
        p = self.open_share + self.spread * self.variation.at(depth, x) + GRADIENT * depth
        p = np.clip(p - 0.05 * (depth < self.shallow), 0.0, 1.0)
        if self.consolidation is not None:
            p = np.where(self.consolidation.covers(depth, x), self.consolidation.air, p)
        for wedge in self.wedges:
            p = np.where(wedge.covers(depth, x), wedge.factor * p, p)
        return np.where(depth < self.compressed, 0.5 * p, p)

    def narrowed(self, depth: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Share of open alveoli at (depth below pleura, x) [m] that are partly filled; 3 of 10 in a consolidation."""
        if self.consolidation is None:
            return np.full(depth.shape, self.narrow)
        return np.where(self.consolidation.covers(depth, x), 0.3, self.narrow)

    def discs(self, surface: np.ndarray) -> tuple[Disc, ...]:
        """The cysts in the coordinates of the grid; ``surface`` is the lung surface above each [m]."""
        return tuple(
            Disc(float(top) + depth, x, radius, self.septum)
            for top, (depth, x, radius) in zip(surface, self.cysts, strict=True)
        )


def category_of(config: Config, index: int) -> str:
    """Category of a case: the weights are met exactly over a cycle of indices.

    Where cases share bases the cycle moves on by one each time the bases begin anew: a base meets all categories.
    """
    cycle = _cycle(config.lung.categories, config.lung.weights)
    turn, base = divmod(index, config.lung.bases) if config.lung.bases else (0, index)
    return cycle[(base + turn) % len(cycle)]


@lru_cache
def _cycle(categories: tuple[str, ...], weights: tuple[float, ...]) -> tuple[str, ...]:
    """Shortest sequence in which each category appears in proportion to its weight, evenly interleaved."""
    unknown = [c for c in categories if c not in CATEGORIES]
    if unknown:
        raise UsageError(f"unknown category '{unknown[0]}' in lung.categories; known: {', '.join(CATEGORIES)}")
    if not categories or len(categories) != len(weights):
        raise UsageError(
            f"lung.categories has {len(categories)} names and lung.weights {len(weights)}; give one weight a name"
        )
    if not all(math.isfinite(w) and w >= 0 for w in weights) or sum(weights) == 0:
        raise UsageError(f"lung.weights is {weights}; give weights >= 0 with a positive sum")
    shares = [Fraction(w).limit_denominator(100) for w in weights]
    counts = [int(s * math.lcm(*(t.denominator for t in shares))) for s in shares]
    counts = [c // math.gcd(*counts) for c in counts]
    cycle, credit = [], [0] * len(counts)
    for _ in range(sum(counts)):
        credit = [a + b for a, b in zip(credit, counts, strict=True)]
        best = max(range(len(counts)), key=credit.__getitem__)
        credit[best] -= sum(counts)
        cycle.append(categories[best])
    return tuple(cycle)


def draw_pathology(config: Config, rng: np.random.Generator, category: str, effusion: float) -> Pathology:
    """Draw severity and lesions of a category; an ``effusion`` [m] compresses the lung below it.

    Ranges are those planned for the phantom from the lung-ultrasound literature (docs/explanation/phantom.md), moved
    where the category means asked for it.
    """
    length = float(rng.uniform(0.5 * MM, 3.0 * MM))
    common: dict[str, Any] = {
        "category": category,
        "variation": RandomField.draw(rng, length, length),
        "shallow": float(rng.uniform(0.3 * MM, 0.6 * MM)),
        "compressed": min(5.0 * MM, 2.5 * effusion),
    }
    return Pathology(**common, **_DRAWS[category](config, rng))


def _draw_healthy(config: Config, rng: np.random.Generator) -> dict[str, Any]:
    return {
        "open_share": float(rng.uniform(0.85, 1.0)),
        "spread": 0.05,
        "septum": config.lung.septum,
        "filling": "lung tissue",
        "matrix": "lung tissue",
    }


def _draw_interstitial(config: Config, rng: np.random.Generator) -> dict[str, Any]:
    """Thick septa, partly filled alveoli, and fluid wedges open to the pleura."""
    half = _half_map(config)
    # 0.15 more open than planned: the planned mean of 0.43 knew neither the thick septa nor the fillings drawn here.
    share, spread = float(rng.uniform(0.5, 1.0)), float(rng.uniform(0.05, 0.25))
    thick = max(config.lung.septum, 30 * UM + 70 * UM * float(rng.uniform()) ** 2)
    wedges = tuple(
        Wedge(
            x=float(rng.uniform(-half, half)),
            width=float(rng.uniform(0.3 * MM, 1.6 * MM)),
            depth=float(rng.uniform(0.5 * MM, 5.0 * MM)),
            taper=float(rng.uniform(0.2, 1.0)),
            factor=float(rng.uniform(0.0, 0.4)),
        )
        for _ in range(round(int(rng.integers(1, 6)) * _widening(config)))
    )
    return {
        "open_share": share,
        "spread": spread,
        "septum": thick,
        "filling": "fluid",
        "matrix": "lung tissue",
        "wedges": wedges,
        "narrow": float(rng.uniform(0.0, 0.4)),
    }


def _draw_consolidation(config: Config, rng: np.random.Generator) -> dict[str, Any]:
    wide = _half_map(config) > SMALL_MAP / 2
    share = float(rng.uniform(0.6, 1.0))
    lesion = Consolidation(
        x=float(rng.uniform(-0.8, 0.8)) * _half_map(config),
        half_width=float(rng.uniform(*((2.0 * MM, 15.0 * MM) if wide else (1.5 * MM, 6.0 * MM)))),
        depth=float(rng.uniform(*((3.0 * MM, 13.0 * MM) if wide else (1.0 * MM, 6.0 * MM)))),
        air=float(rng.uniform(0.0, 0.25)),
        ragged=float(rng.uniform(0.1, 0.25)),
        border=RandomField.draw(rng, 0.6 * MM, 0.6 * MM),
    )
    return {
        "open_share": share,
        "spread": 0.1,
        "septum": config.lung.septum,
        "filling": "consolidated",
        "matrix": "lung tissue",
        "consolidation": lesion,
    }


def _draw_fibrosis(config: Config, rng: np.random.Generator) -> dict[str, Any]:
    """Thick connective septa and subpleural cysts (honeycombing)."""
    half = _half_map(config)
    share = float(rng.uniform(0.5, 0.9))
    thick = config.lung.septum * float(rng.uniform(1.2, 2.4))
    cysts: list[tuple[float, float, float]] = []
    for _ in range(round(int(rng.integers(2, 6)) * _widening(config))):
        radius = float(rng.uniform(1.0 * MM, 4.0 * MM if half > SMALL_MAP / 2 else 2.0 * MM)) / 2
        depth, x = float(rng.uniform(radius + 0.2 * MM, radius + 2.0 * MM)), float(rng.uniform(-half, half))
        if all(math.hypot(depth - d, x - c) > radius + r + thick for d, c, r in cysts):
            cysts.append((depth, x, radius))
    return {
        "open_share": share,
        "spread": 0.1,
        "septum": thick,
        "filling": "connective",
        "matrix": "connective",
        "cysts": tuple(cysts),
    }


_DRAWS = {
    "healthy": _draw_healthy,
    "interstitial": _draw_interstitial,
    "consolidation": _draw_consolidation,
    "fibrosis": _draw_fibrosis,
}


def _half_map(config: Config) -> float:
    return config.map.columns * config.map.pixel / 2


def _widening(config: Config) -> float:
    """Number of lesions grows with the map's width."""
    return max(1.0, _half_map(config) / (3.2 * MM))
