"""Lungs of one chest and one category, from the most to the least air."""

from __future__ import annotations

import numpy as np

from lungwave.config import Config
from lungwave.phantom.pathology import draw_pathology
from lungwave.repro import stream
from lungwave.types import UsageError

DRAWN = 65  # lungs among which one is chosen
GRID = 48  # points each way, at which the chance of air is averaged
FILLED = 0.3  # share of its air that a partly filled alveolus loses, on average


def one_chest(config: Config, category: str) -> Config:
    """The configuration whose cases all share wall and alveoli and have this category."""
    return config.override({"lung.categories": [category], "lung.weights": [1.0], "lung.bases": 1})


def case_of_severity(config: Config, severity: float) -> int:
    """Index of the case that holds more air than the share ``severity`` of the lungs of ``one_chest`` (0 most air).

    The lungs are ranked by the expected air of their map, which needs no drawing: the chance of an open alveolus,
    averaged over depth and width. UsageError for a severity outside 0-1 or a configuration with several categories.
    """
    if not 0 <= severity <= 1:
        raise UsageError(f"severity is {severity:g}; give 0 (most air of the category) to 1 (least)")
    if len(config.lung.categories) != 1:
        raise UsageError(f"categories are {', '.join(config.lung.categories)}; give one, see one_chest")
    expected = [expected_air(config, index) for index in range(DRAWN)]
    return int(np.argsort(expected, kind="stable")[::-1][round(severity * (DRAWN - 1))])


def expected_air(config: Config, index: int) -> float:
    """Mean chance that a point of the map lies in air (fraction 0-1, septa left out)."""
    category = config.lung.categories[0]
    lung = draw_pathology(config, stream(config.seed, f"phantom/lung/{category}", index), category, 0.0)
    rows, columns = np.meshgrid(
        (np.arange(GRID) + 0.5) / GRID * config.map.bands[-1],
        ((np.arange(GRID) + 0.5) / GRID - 0.5) * config.map.columns * config.map.pixel,
    )
    depth, x = rows.ravel(), columns.ravel()
    return float((lung.probability(depth, x) * (1 - FILLED * lung.narrowed(depth, x))).mean())
