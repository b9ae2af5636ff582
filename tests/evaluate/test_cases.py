"""Bootstrap over cases: its width, its coverage for few cases, and what it refuses."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lungwave.evaluate.cases import Measured, bootstrap, ensemble, mean_over_cases, ratio, to_json
from lungwave.evaluate.scores import crps_fair
from lungwave.repro import stream
from lungwave.types import UsageError


def normal(*shape: int, index: int = 0) -> np.ndarray:
    return stream(11, "cases", index).standard_normal(shape)


def width(found: Measured) -> float:
    return found.high - found.low


def test_interval_of_a_mean_covers_for_few_cases() -> None:
    """Student's t covers 95 % for Gaussians; plain percentiles of 6 cases would cover 86 %."""
    held = [found.low <= 0 <= found.high for found in (mean_over_cases(normal(6, index=k), seed=k) for k in range(300))]
    assert np.mean(held) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 300))


def test_interval_over_cases_is_wider_than_over_pixels_that_share_a_mistake() -> None:
    values = normal(60, 1) + 0.3 * normal(60, 25, index=1)
    over_cases, over_pixels = mean_over_cases(values), mean_over_cases(values.ravel())
    assert over_cases.value == pytest.approx(over_pixels.value, abs=1e-12)
    # variance of the mean: (1 + .09 / 25) / 60 against (1 + .09) / 1500
    assert width(over_cases) / width(over_pixels) == pytest.approx(4.8, rel=0.15)


def test_pixels_without_a_shared_mistake_give_the_same_interval_either_way() -> None:
    values = normal(60, 25)
    assert width(mean_over_cases(values)) / width(mean_over_cases(values.ravel())) == pytest.approx(1, rel=0.25)


def test_nan_and_mask_leave_the_same_out() -> None:
    values = normal(9, 4, 3)
    counted = normal(9, 4, 3, index=1) > 0
    counted[2] = False  # a case with nothing is no case
    found = mean_over_cases(values, counted=counted)
    assert found == mean_over_cases(np.where(counted, values, np.nan))
    assert found.value == pytest.approx(values[counted].mean(), rel=1e-12)
    kept = np.arange(9) != 2
    assert found == mean_over_cases(values[kept], counted=counted[kept])


def test_one_case_has_no_interval() -> None:
    found = mean_over_cases(normal(1, 30))
    assert np.isfinite(found.value) and np.isnan(found.low) and np.isnan(found.high)


def test_seed_decides_the_interval() -> None:
    values = normal(20)
    assert mean_over_cases(values, 3) == mean_over_cases(values, 3)
    assert width(mean_over_cases(values, 3)) != width(mean_over_cases(values, 4))


def test_resampled_ratio_knows_that_both_sums_vary_together() -> None:
    """Where numerator and denominator are proportional in every case, their ratio has no spread."""
    size = 1 + normal(30) ** 2
    found = bootstrap(np.stack([0.7 * size, size], 1), ratio, 0)
    assert (found.low, found.value, found.high) == pytest.approx((0.7, 0.7, 0.7), abs=1e-12)


def test_blocks_do_not_change_a_result(monkeypatch: pytest.MonkeyPatch) -> None:
    samples, truth = normal(7, 5, 6), normal(7, 6, index=1)
    whole = crps_fair(samples, truth), mean_over_cases(truth)
    monkeypatch.setattr("lungwave.evaluate.cases.BLOCK", 64)
    np.testing.assert_array_equal(crps_fair(samples, truth), whole[0])
    assert mean_over_cases(truth) == whole[1]


def test_results_become_json() -> None:
    found = to_json((Measured(1.0, np.nan, np.inf), np.array([1.5, np.nan])))
    assert json.loads(json.dumps(found, allow_nan=False)) == [{"value": 1.0, "low": None, "high": None}, [1.5, None]]


@pytest.mark.parametrize(
    ("samples", "truth", "counted", "message"),
    [
        (np.zeros((3, 4, 2)), np.zeros((3, 3)), None, "equal cases and field"),
        (np.zeros((3, 4)), np.zeros(4), None, "equal cases and field"),
        (np.zeros((3, 1)), np.zeros(3), None, "at least 2"),
        (np.zeros((0, 4)), np.zeros(0), None, "no case"),
        (np.zeros((3, 4)), np.full(3, np.nan), None, "no case"),
        (np.zeros((3, 4)), np.zeros(3), np.zeros(3, bool), "no case"),
        (np.zeros((3, 4)), np.array([0, np.inf, 0]), None, "infinite"),
        (np.zeros((3, 4)), np.zeros(3), np.ones((3, 1), bool), "counted has shape"),
        (np.where(np.arange(12).reshape(3, 4) == 9, np.nan, 0.0), np.zeros(3), None, r"first: case 2"),
    ],
)
def test_bad_input_is_refused(samples: np.ndarray, truth: np.ndarray, counted: np.ndarray | None, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ensemble(samples, truth, counted)


def test_samples_may_be_nan_where_the_truth_does_not_count() -> None:
    samples, truth = normal(4, 5, 3), normal(4, 3, index=1)
    samples[1, :, 2] = truth[1, 2] = np.nan
    found = crps_fair(samples, truth)
    assert np.isnan(found[1, 2]) and np.isfinite(np.delete(found.ravel(), 5)).all()
