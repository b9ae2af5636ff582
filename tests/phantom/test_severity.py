"""Severity: a rank among lungs of one chest."""

from __future__ import annotations

import numpy as np
import pytest

from lungwave.config import preset
from lungwave.phantom.aeration import truth, truth_spacing
from lungwave.phantom.anatomy import draw
from lungwave.phantom.pathology import CATEGORIES
from lungwave.phantom.severity import case_of_severity, expected_air, one_chest
from lungwave.types import UsageError


@pytest.mark.parametrize("category", CATEGORIES)
def test_more_severe_is_less_air_expected_in_the_same_chest(category: str) -> None:
    config = one_chest(preset("micro").override({"seed": 4}), category)
    cases = [case_of_severity(config, severity) for severity in (0.0, 0.5, 1.0)]
    air = [expected_air(config, case) for case in cases]
    assert air == sorted(air, reverse=True)
    assert air[0] > air[-1]
    lungs = [draw(config, case) for case in cases]
    assert {lung.category for lung in lungs} == {category}
    assert len({lung.base_id for lung in lungs}) == 1
    assert len({lung.wall.thickness["skin"] for lung in lungs}) == 1


def test_true_air_follows_the_expected_one() -> None:
    """The rank is made without drawing a lung, from chances alone; drawn lungs keep it."""
    config = one_chest(preset("micro").override({"seed": 4}), "interstitial")
    cases = [case_of_severity(config, severity) for severity in np.linspace(0, 1, 6)]
    true = [truth(draw(config, case), config.map, truth_spacing(config)).whole for case in cases]
    assert np.corrcoef(true, [expected_air(config, case) for case in cases])[0, 1] > 0.9


@pytest.mark.parametrize("severity", [-0.1, 1.1, float("nan")])
def test_severity_outside_its_range(severity: float) -> None:
    with pytest.raises(UsageError, match="give 0"):
        case_of_severity(one_chest(preset("micro"), "healthy"), severity)


def test_several_categories_are_refused() -> None:
    with pytest.raises(UsageError, match="give one, see one_chest"):
        case_of_severity(preset("micro"), 0.5)
