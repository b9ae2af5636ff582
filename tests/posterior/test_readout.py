"""What is read off a map: bands with the error of reading them, and the category."""

import numpy as np
import pytest

from lungwave.posterior.readout import BandReadout, CategoryReadout
from lungwave.types import UsageError


def maps(count: int, seed: int = 0) -> np.ndarray:
    """Maps whose rows vary smoothly."""
    rng = np.random.default_rng(seed)
    z = np.arange(16) / 16
    rows = 0.5 + 0.05 * rng.standard_normal((count, 3)) @ np.stack([z**0, np.cos(3 * z), np.sin(5 * z)])
    return np.repeat(rows[:, :, None], 8, 2) + 0.01 * rng.standard_normal((count, 16, 8))


def test_bands_that_are_means_of_rows_are_read_exactly_and_their_error_is_measured() -> None:
    """Two bands: one exact, one with an error of 0.03 that no map can know."""
    known = maps(800)
    rng = np.random.default_rng(1)
    exact = known[:, :8].mean((1, 2))
    blurred = known[:, 8:].mean((1, 2)) + 0.03 * rng.standard_normal(len(known))
    readout = BandReadout.fit(known, np.stack([exact, blurred, known.mean((1, 2))], 1))
    drawn = readout(np.repeat(known[:1], 4000, 0), np.random.default_rng(2))
    assert drawn.mean(0) == pytest.approx([exact[0], blurred[0], known[0].mean()], abs=0.1)
    assert drawn[:, 0].std() < 2e-3 and drawn[:, 1].std() == pytest.approx(0.03, rel=0.1)
    fresh = maps(500, 3)
    assert np.abs(readout(fresh, np.random.default_rng(4))[:, 0] - fresh[:, :8].mean((1, 2))).max() < 0.01


def test_few_cases_are_refused() -> None:
    """A dozen maps say nothing about the error."""
    with pytest.raises(UsageError, match="12 cases are too few"):
        BandReadout.fit(maps(12), np.zeros((12, 1)))


def test_categories_are_probabilities_and_right_where_maps_differ() -> None:
    """Airy and wet lungs are told apart; a map between the two is not claimed for either."""
    airy, wet = maps(200) + 0.2, maps(200, 1) - 0.2
    readout = CategoryReadout.fit(np.concatenate([airy, wet]), ("airy",) * 200 + ("wet",) * 200)
    assert readout.names == ("airy", "wet")
    said = readout(np.concatenate([maps(50, 5) + 0.2, maps(50, 6) - 0.2]))
    assert said.sum(1) == pytest.approx(np.ones(100))
    assert (said[:50, 0] > 0.5).mean() > 0.95 and (said[50:, 1] > 0.5).mean() > 0.95
    between = readout(np.full((1, 16, 8), 0.5))
    assert 0.02 < between[0, 0] < 0.98
