"""What a reconstruction says: maps, percent aeration with intervals, how deep data inform, why it was withheld."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lungwave.acoustics.bmode import BMode
from lungwave.phantom.aeration import Truth
from lungwave.types import Field


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
