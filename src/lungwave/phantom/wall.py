"""Chest wall: layers with wavy and rough interfaces, connective strands, rib, and the pleural space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

from lungwave.config import Config, Range
from lungwave.types import MM, UM, Field

LAYERS = ("skin", "fat", "muscle", "fascia", "fluid", "visceral")  # from the probe down; lung lies below
MODES = 48  # cosines of a random field


@dataclass(frozen=True)
class RandomField:
    """Stationary Gaussian-like field of unit variance: a sum of random cosines, defined at every point."""

    kz: Float[np.ndarray, " mode"]  # [rad/m]
    kx: Float[np.ndarray, " mode"]  # [rad/m]
    phase: Float[np.ndarray, " mode"]

    @staticmethod
    def draw(rng: np.random.Generator, length_z: float, length_x: float, angle: float = 0.0) -> RandomField:
        """Correlation exp(-r^2 / (2 length^2)) per axis [m], the axes turned by ``angle`` [rad]."""
        along, across = rng.standard_normal(MODES) / length_x, rng.standard_normal(MODES) / length_z
        c, s = math.cos(angle), math.sin(angle)
        return RandomField(c * across + s * along, c * along - s * across, rng.uniform(0, 2 * np.pi, MODES))

    def at(self, z: Float[np.ndarray, " n"], x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Values at n points [m]."""
        return math.sqrt(2 / MODES) * np.cos(np.outer(z, self.kz) + np.outer(x, self.kx) + self.phase).sum(1)

    def on_grid(self, z: Float[np.ndarray, " z"], x: Float[np.ndarray, " x"]) -> Field:
        """Values on the grid z by x [m]; one matrix product, because cos(a + b) separates.

        Its factors are rounded to multiples of 2^-20: their products then add without rounding in float64, so the
        result does not depend on the order in which a threaded BLAS adds.
        """
        a, b = np.outer(z, self.kz), np.outer(self.kx, x) + self.phase[:, None]
        left = np.rint(2.0**20 * np.hstack([np.cos(a), -np.sin(a)]))
        right = np.rint(2.0**20 * np.vstack([np.cos(b), np.sin(b)]))
        return math.sqrt(2 / MODES) * 2.0**-40 * (left @ right)


@dataclass(frozen=True)
class Strands:
    """Connective strands: places where a random field is near zero, which is a web of sheets."""

    field: RandomField
    fraction: float  # share of the layer's area

    @staticmethod
    def draw(rng: np.random.Generator, fraction: float, thickness: float, stretch: float, angle: float) -> Strands:
        """Sheets of mean ``thickness`` [m], ``stretch`` times longer than their spacing, tilted by ``angle`` [rad].

        Zeros of such a field lie pi * length apart along one axis (Rice), which fixes the length for a given share.
        """
        length = thickness / (math.pi * fraction)
        return Strands(RandomField.draw(rng, length, stretch * length, angle), fraction)

    def on_grid(self, z: Float[np.ndarray, " z"], x: Float[np.ndarray, " x"]) -> Bool[np.ndarray, "z x"]:
        """Which nodes are strand."""
        return np.abs(self.field.on_grid(z, x)) < _half_width(self.fraction)


def _half_width(fraction: float) -> float:
    """t with P(|normal| < t) = fraction."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + fraction / 2))


@dataclass(frozen=True)
class Undulation:
    """Height of an interface around its mean: a few long waves and a rough part [m]."""

    amplitude: float  # [m] largest height of the long waves
    wavenumbers: Float[np.ndarray, " wave"]  # [rad/m]
    phases: Float[np.ndarray, " wave"]
    roughness: float  # [m] standard deviation
    texture: RandomField

    @staticmethod
    def draw(rng: np.random.Generator, amplitude: float, period: Range, roughness: float, length: float) -> Undulation:
        """Three waves of periods in ``period`` and roughness whose correlation falls to 1/e at ``length`` [m]."""
        periods = rng.uniform(*period, 3)
        return Undulation(
            amplitude,
            2 * np.pi / periods,
            rng.uniform(0, 2 * np.pi, 3),
            roughness,
            RandomField.draw(rng, 1.0, length / math.sqrt(2)),
        )

    def __call__(self, x: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
        """Height at lateral positions x [m]; downward positive."""
        waves = self.amplitude / 3 * np.cos(np.outer(x, self.wavenumbers) + self.phases).sum(1)
        return waves + self.roughness * np.clip(self.texture.at(np.zeros_like(x), x), -3.0, 3.0)


@dataclass(frozen=True)
class Rib:
    """Cross-section of a rib, an ellipse."""

    z: float  # [m] centre
    x: float  # [m] centre
    half_height: float  # [m]
    half_width: float  # [m]

    def on_grid(self, z: Float[np.ndarray, " z"], x: Float[np.ndarray, " x"]) -> Bool[np.ndarray, "z x"]:
        """Which nodes are bone."""
        return ((z - self.z) / self.half_height)[:, None] ** 2 + ((x - self.x) / self.half_width)[None, :] ** 2 < 1.0


@dataclass(frozen=True)
class Pneumothorax:
    """Air in the pleural space on one side of the lung point; pushes the lung down."""

    edge: float  # [m] lateral position of the lung point
    side: int  # +1: air at x > edge
    thickness: float  # [m] far from the lung point
    taper: float  # [m] distance over which it opens

    def __call__(self, x: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
        """Thickness of the air at lateral positions x [m]."""
        t = np.clip(self.side * (x - self.edge) / self.taper, 0.0, 1.0)
        return self.thickness * t * t * (3 - 2 * t)


@dataclass(frozen=True)
class Wall:
    """Everything between the probe and the lung, as continuous functions of x."""

    thickness: dict[str, float]  # [m] mean of each of ``LAYERS``
    skin_fat: Undulation
    fat_muscle: Undulation
    deep: Undulation  # fascia and both pleurae follow it together
    pleura: Undulation  # visceral surface
    fat_strands: Strands
    muscle_strands: Strands
    rib: Rib | None = None
    pneumothorax: Pneumothorax | None = None

    @property
    def depth(self) -> float:
        """Mean depth of the lung surface [m], without pneumothorax."""
        return sum(self.thickness.values())

    def interfaces(self, x: Float[np.ndarray, " x"]) -> Float[np.ndarray, "6 x"]:
        """Depth of the lower face of each of ``LAYERS`` [m]; the last is the lung surface. Faces never cross."""
        means = np.cumsum([self.thickness[name] for name in LAYERS])
        deep = self.deep(x)
        gap = self.pneumothorax(x) if self.pneumothorax else np.zeros_like(x)
        skin = means[0] + self.skin_fat(x)
        muscle = np.maximum(means[2] + deep, skin + 0.3 * (means[2] - means[0]))
        fat = np.clip(means[1] + self.fat_muscle(x), skin + 0.1 * (muscle - skin), muscle - 0.1 * (muscle - skin))
        fascia = muscle + self.thickness["fascia"]
        least_fluid, least_pleura = 0.2 * self.thickness["fluid"], 0.4 * self.thickness["visceral"]
        lung = np.maximum(means[5] + deep + self.pleura(x), fascia + least_fluid + least_pleura)
        visceral_top = np.clip(lung - self.thickness["visceral"], fascia + least_fluid, lung - least_pleura)
        return np.stack([skin, fat, muscle, fascia, visceral_top + gap, lung + gap])

    def surface(self, x: Float[np.ndarray, " x"]) -> Float[np.ndarray, " x"]:
        """Depth of the lung surface, the lower face of the visceral pleura [m]."""
        return self.interfaces(x)[-1]

    def quantifiable(self, x: Float[np.ndarray, " x"]) -> Bool[np.ndarray, " x"]:
        """False under a rib and under pneumothorax, each with a margin of 0.5 mm."""
        margin = 0.5 * MM
        valid = np.ones(x.shape, bool)
        if self.rib:
            valid &= np.abs(x - self.rib.x) > self.rib.half_width + margin
        if self.pneumothorax:
            valid &= self.pneumothorax.side * (x - self.pneumothorax.edge) < -margin
        return valid


def draw_wall(
    config: Config,
    rng: np.random.Generator,
    effusion: float | None,
    thickened: float | None,
    irregular: float,
    rib: bool,
    pneumothorax: Pneumothorax | None,
) -> Wall:
    """Draw a wall from ``config.wall``; the numbers taken from ``rng`` do not depend on the other arguments.

    ``effusion`` and ``thickened`` [m] replace the drawn fluid and visceral layers where given; ``irregular`` multiplies
    the roughness of the visceral pleura.
    """
    wall = config.wall
    thickness = {name: float(rng.uniform(*getattr(wall, name))) for name in LAYERS}
    amplitude = float(rng.uniform(*wall.waviness))
    roughness = float(rng.uniform(*wall.rough)) * irregular
    length = float(rng.uniform(*wall.rough_length))
    upper = [
        Undulation.draw(rng, height, period, wall.fascia_rough, wall.fascia_length)
        for height, period in (
            (amplitude, wall.wave_period),
            (float(rng.uniform(*wall.fat_waviness)), (2 * wall.wave_period[0], 2 * wall.wave_period[1])),
        )
    ]
    deep = Undulation.draw(rng, amplitude, wall.wave_period, 0.0, wall.fascia_length)
    pleura = Undulation.draw(rng, 0.0, wall.wave_period, roughness, length)
    tilt = math.radians(15.0)  # fascicles run within 15 degrees of the skin
    fat, muscle = (
        Strands.draw(
            rng, float(rng.uniform(*share)), float(rng.uniform(*wall.strand)), stretch, rng.uniform(-1, 1) * most
        )
        for share, stretch, most in ((wall.fat_strands, 2.0, tilt / 2), (wall.muscle_strands, 3.0, tilt))
    )
    width, height, place, gap = rng.uniform(size=4)
    thickness["fluid"] = thickness["fluid"] if effusion is None else effusion
    thickness["visceral"] = thickness["visceral"] if thickened is None else thickened
    thickness = fit_thickness(config, thickness, amplitude + 3 * roughness)
    bone = None
    if rib:
        top, bottom = thickness["skin"], thickness["skin"] + thickness["fat"] + thickness["muscle"]
        half = min(_between(wall.rib_height, height) / 2, 0.4 * (bottom - top))
        center = (2 * place - 1) * config.map.columns * config.map.pixel / 2
        bone = Rib(
            bottom - amplitude - half - 0.1 * (bottom - top) * gap, center, half, _between(wall.rib_width, width) / 2
        )
    return Wall(thickness, upper[0], upper[1], deep, pleura, fat, muscle, bone, pneumothorax)


def fit_thickness(config: Config, thickness: dict[str, float], swing: float) -> dict[str, float]:
    """Scale fat and muscle so that the lung surface, with its ``swing`` [m], stays inside ``wall.pleura_depth``.

    Where they would fall below half of their least drawn thickness, first the fluid and then the skin gives way.
    """
    low, high = config.wall.pleura_depth
    swing = min(swing, 0.4 * (high - low))
    fitted = dict(thickness)
    target = min(max(sum(fitted.values()), low + swing), high - swing)
    least = 0.5 * (config.wall.fat[0] + config.wall.muscle[0])
    for name, floor in (("fluid", config.wall.fluid[0]), ("skin", 0.5 * config.wall.skin[0]), ("visceral", 10 * UM)):
        rest = sum(v for k, v in fitted.items() if k not in ("fat", "muscle"))
        excess = rest + least - target
        if excess > 0:
            fitted[name] = max(floor, fitted[name] - excess)
    rest = sum(v for k, v in fitted.items() if k not in ("fat", "muscle"))
    scale = (target - rest) / (fitted["fat"] + fitted["muscle"])
    return {k: v * scale if k in ("fat", "muscle") else v for k, v in fitted.items()}


def _between(limits: Range, share: float) -> float:
    return limits[0] + (limits[1] - limits[0]) * share
