"""How deep the echoes know the lung: from a simulated depth table, and from the spread of posterior samples.

Between pressure-release walls a tissue channel narrower than half a wavelength is evanescent, so the depth from which
RF still carries information falls with aeration. The table was measured on Voronoi lungs (220 um alveoli, plane wave at
5.2 MHz): the lung below a depth was redrawn, and the depth noted at which that changes the lung's RF energy by -20 dB.
Depths scale with the wavelength when alveoli scale with it, which is how the presets are built.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

TABLE_FREQUENCY = 5.2e6  # [Hz]
TABLE_AERATION = np.array([0.10, 0.21, 0.35, 0.48, 0.60, 0.69, 0.80])
TABLE_DEPTH = np.array([4.5, 2.6, 1.8, 1.1, 0.65, 0.22, 0.08]) * 1e-3  # [m] at -20 dB; first and last are bounds
INFORMED = 0.25  # least information of a known pixel: the echoes took the standard deviation to 87 % of the prior's


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
    return _known_from_the_top(rows * pixel <= depth_of_information(mean_above, center_frequency)) * pixel


def information_map(
    std: Float[np.ndarray, "rows columns"], prior_std: Float[np.ndarray, "rows columns"]
) -> Float[np.ndarray, "rows columns"]:
    """Share of the prior's variance that the echoes took away: 1 - posterior / prior variance, clipped to 0-1.

    0 is where the samples lie as far apart as lungs do anyway, 1 where all samples agree. Its own standard error is
    (1 - information) sqrt(2 / (M - 1)) for M samples of a Gaussian: 0.36 at M = 16, 0.18 at 64 where nothing is known,
    and the clipping makes little look like something. It is the model's word: an overconfident model claims too much.
    """
    return np.clip(1.0 - np.square(std / prior_std), 0.0, 1.0)


def informed_depth(information: Float[np.ndarray, "rows columns"], pixel: float) -> Float[np.ndarray, " columns"]:
    """Depth [m] of each column down to which, from the pleura on, the information stays above ``INFORMED``.

    The table above asks physics instead: down to where a change of the lung changes the RF by -20 dB (2.6 mm at 21 %
    air, 0.2 mm at 69 %, at 5.2 MHz), whatever the noise and whoever reads it. This depth is what a model made of the
    echoes. It can be less, for noise and an imperfect network, and more, because lungs repeat themselves: what the top
    tells of the kind of lung narrows the deep as well.
    """
    return _known_from_the_top(information > INFORMED) * pixel


def _known_from_the_top(known: Bool[np.ndarray, "rows columns"]) -> Int[np.ndarray, " columns"]:
    """Number of rows before the first one that is not known."""
    blind = ~known
    return np.where(blind.any(0), blind.argmax(0), len(blind))
