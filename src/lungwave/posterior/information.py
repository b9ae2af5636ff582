"""How deep the echoes know the lung: the first information mask, from a simulated depth table.

Between pressure-release walls a tissue channel narrower than half a wavelength is evanescent, so the depth from which
RF still carries information falls with aeration. The table was measured on Voronoi lungs (220 um alveoli, plane wave at
5.2 MHz): the lung below a depth was redrawn, and the depth noted at which that changes the lung's RF energy by -20 dB.
Depths scale with the wavelength when alveoli scale with it, which is how the presets are built.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

TABLE_FREQUENCY = 5.2e6  # [Hz]
TABLE_AERATION = np.array([0.10, 0.21, 0.35, 0.48, 0.60, 0.69, 0.80])
TABLE_DEPTH = np.array([4.5, 2.6, 1.8, 1.1, 0.65, 0.22, 0.08]) * 1e-3  # [m] at -20 dB; first and last are bounds


def depth_of_information(aeration: Float[np.ndarray, "*n"], center_frequency: float) -> Float[np.ndarray, "*n"]:
    """Depth below the pleura [m] that RF still knows, for a lung of uniform ``aeration`` (fraction 0-1).

    Log-linear interpolation of the table, constant outside it, scaled by wavelength from 5.2 MHz.
    """
    logs = np.interp(aeration, TABLE_AERATION, np.log(TABLE_DEPTH))
    return np.exp(logs) * (TABLE_FREQUENCY / center_frequency)


def information_depth(
    aeration: Float[np.ndarray, "rows columns"], pixel: float, center_frequency: float
) -> Float[np.ndarray, " columns"]:
    """Largest depth d [m] with d <= depth_of_information(mean air above d), per column of a pleura-flattened map."""
    rows = np.arange(1, aeration.shape[0] + 1)[:, None]
    mean_above = np.cumsum(aeration, 0) / rows
    known = rows * pixel <= depth_of_information(mean_above, center_frequency)
    blind = ~known
    first_blind = np.where(blind.any(0), blind.argmax(0), aeration.shape[0])
    return first_blind * pixel
