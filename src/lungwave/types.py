"""Shapes, units and the two errors that every layer shares.

Axes are always ``z`` (depth, down) then ``x`` (lateral); RF is ``tx, time, el``. All quantities are SI.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float

MM = 1e-3  # [m]
UM = 1e-6  # [m]
US = 1e-6  # [s]
NS = 1e-9  # [s]
MHZ = 1e6  # [Hz]

Field: TypeAlias = Float[np.ndarray, "z x"]
Mask: TypeAlias = Bool[np.ndarray, "z x"]
Channels: TypeAlias = Float[np.ndarray, "tx time el"]  # RF of one frame
Frames: TypeAlias = Float[np.ndarray, "frame tx time el"]  # RF of several frames

RESEARCH_USE = "Research use only. Not a medical device."


class LungwaveError(Exception):
    """The run failed; the message names the value and the cure. Exit code 1 at the command line."""


class UsageError(LungwaveError):
    """What was asked for cannot be done as asked; nothing was written. Exit code 2 at the command line."""
