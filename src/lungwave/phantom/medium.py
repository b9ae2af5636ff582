"""Tissue table and the acoustic medium: materials -> sound speed, density, attenuation, air."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lungwave.config import Config
from lungwave.types import MHZ, Field

JITTER_CLIP = 2.0  # property jitter is cut at this many standard deviations, so that a time step can be guaranteed


@dataclass(frozen=True)
class Tissue:
    """Acoustic properties of one tissue and where they come from."""

    sound_speed: float  # [m/s]
    density: float  # [kg/m3]
    attenuation: float  # [dB/cm] at 1 MHz
    exponent: float  # attenuation grows as frequency ** exponent
    source: str

    def linear_attenuation(self, frequency: float) -> float:
        """Coefficient [dB/m/MHz] of the straight line through zero that meets the power law at ``frequency`` [Hz]."""
        return 100.0 * self.attenuation * (frequency / MHZ) ** (self.exponent - 1.0)


# "Fullwave lung" is the public launcher of Ostras, Shponka & Pinton, JASA 154:2410 (2023).
TISSUES: dict[str, Tissue] = {
    "skin": Tissue(
        1600.0, 1090.0, 1.0, 1.0, "between 1498 (Fullwave lung) and 1730 m/s (PMC10346919); density Fullwave 2.5"
    ),
    "fat": Tissue(1478.0, 950.0, 0.48, 1.1, "Fullwave lung; Fullwave 2.5; PMC10346919"),
    "muscle": Tissue(1547.0, 1050.0, 1.09, 1.0, "Fullwave lung; attenuation between 0.96 and 1.40 (PMC10001275)"),
    "connective": Tissue(1613.0, 1120.0, 1.57, 1.0, "Fullwave lung; PMC10001275; fascia, strands and parietal pleura"),
    "visceral pleura": Tissue(1613.0, 1120.0, 0.5, 1.0, "Fullwave lung: connective with the attenuation of its pleura"),
    "lung tissue": Tissue(1540.0, 1000.0, 0.5, 1.0, "Fullwave lung, generic tissue; septa and collapsed alveoli"),
    "consolidated": Tissue(1570.0, 1064.0, 0.5, 1.1, "liver-like, the usual model of hepatised lung (Fullwave 2.5)"),
    "fluid": Tissue(1480.0, 1000.0, 0.005, 2.0, "Fullwave lung, water; pleural fluid and oedema"),
    "bone": Tissue(3432.0, 1900.0, 5.0, 1.0, "PMC10346919 (1-10 dB/cm/MHz); shear waves are not modelled"),
    "air": Tissue(343.0, 1.2, 0.0, 1.0, "listed for reference: the solver treats air as pressure release, R = -0.9995"),
}
SOFT = tuple(name for name in TISSUES if name not in ("bone", "air"))


@dataclass(frozen=True)
class Medium:
    """What the wave equation sees, on a regular grid of square cells.

    Node (i, j) lies at z = origin[0] + i * spacing, x = origin[1] + j * spacing.
    """

    sound_speed: Field  # [m/s] of the tissue; air cells keep the surrounding tissue's value
    density: Field  # [kg/m3] of the tissue, air cells as above
    attenuation: Field  # [dB/m] at 1 MHz, linear in frequency
    air: Field  # air fraction of the node, 0-1; 1 = pressure release
    spacing: float  # [m]
    origin: tuple[float, float]  # [m] (z, x) of node (0, 0)

    @property
    def z(self) -> Float[np.ndarray, " z"]:
        """Depth of the rows [m]."""
        return self.origin[0] + np.arange(self.air.shape[0]) * self.spacing

    @property
    def x(self) -> Float[np.ndarray, " x"]:
        """Lateral position of the columns [m]."""
        return self.origin[1] + np.arange(self.air.shape[1]) * self.spacing


def max_sound_speed(config: Config) -> float:
    """Largest tissue speed [m/s] that any draw of ``config`` can hold; fixes the solver's time step.

    Jitter is clipped at ``JITTER_CLIP`` standard deviations and scatter lives on density alone, so the bound is never
    exceeded. Bone is not jittered and counts only where a rib can be drawn.
    """
    soft = max(TISSUES[name].sound_speed for name in SOFT) * (1.0 + JITTER_CLIP * config.wall.jitter[0])
    return max(soft, TISSUES["bone"].sound_speed) if config.lung.rib_probability > 0 else soft


def min_sound_speed(config: Config) -> float:
    """Smallest tissue speed [m/s] that any draw of ``config`` can hold; decides how fine the grid must be."""
    return min(TISSUES[name].sound_speed for name in SOFT) * (1.0 - JITTER_CLIP * config.wall.jitter[0])


def speckle(
    seed: int, pitch: float, z: Float[np.ndarray, " z"], x: Float[np.ndarray, " x"]
) -> Float[np.ndarray, "z x"]:
    """Random field of zero mean, interpolated between lattice points ``pitch`` [m] apart at z = i, x = j + 1/2 pitches.

    On a lattice point it has unit variance and stays below 3.47: a hash of the point (SplitMix64 finaliser, Steele et
    al. 2014) gives four uniforms, whose sum is taken. A place alone decides the value, so every grid sees one texture,
    and linear interpolation keeps its centre of mass where it is when the grid is refined.
    """
    low_z, high_z, part_z = _between(z / pitch)
    low_x, high_x, part_x = _between(x / pitch - 0.5)
    rows, columns = np.arange(low_z.min(), high_z.max() + 1), np.arange(low_x.min(), high_x.max() + 1)
    bits = _mix(
        _mix(rows.view(np.uint64) + np.uint64(seed))[:, None]
        ^ _mix(columns.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15))[None, :]
    )
    mask = np.uint64(0xFFFF)
    total = (
        (bits & mask) + ((bits >> np.uint64(16)) & mask) + ((bits >> np.uint64(32)) & mask) + (bits >> np.uint64(48))
    )
    lattice = (total.astype(np.float32) / np.float32(65536.0) - np.float32(2.0 - 2.0 / 65536.0)) * np.float32(
        np.sqrt(3.0)
    )
    down = lattice[low_z - rows[0]] * (1 - part_z)[:, None] + lattice[high_z - rows[0]] * part_z[:, None]
    return down[:, low_x - columns[0]] * (1 - part_x) + down[:, high_x - columns[0]] * part_x


def _between(place: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lattice points on both sides and the share of the second; a place on a point reads that point alone."""
    low = np.floor(place + 1e-6).astype(np.int64)
    part = np.clip(place - low, 0, 1)
    part[part < 2e-6] = 0.0
    return low, low + (part > 0), part.astype(np.float32)


def _mix(value: np.ndarray) -> np.ndarray:
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return value ^ (value >> np.uint64(31))
