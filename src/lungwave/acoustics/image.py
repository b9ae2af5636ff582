"""What beamforming makes and reports show; needs no PyTorch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lungwave.types import Field


@dataclass(frozen=True)
class BMode:
    """Log-compressed envelope image."""

    decibel: Field  # [dB] <= 0, relative to the image maximum
    x: Float[np.ndarray, " x"]  # [m]
    z: Float[np.ndarray, " z"]  # [m]
    dynamic_range: float = 60.0  # [dB]
