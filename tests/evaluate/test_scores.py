"""Proper scores, spread-skill, chi2, paired improvement and AUC against closed forms and brute force."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm

from lungwave.evaluate.cases import case_weights
from lungwave.evaluate.scores import (
    _weighted_auc,
    auc,
    crps_fair,
    energy_score_fair,
    paired_difference,
    reduced_chi2,
    spread_skill,
)
from lungwave.repro import stream
from lungwave.types import UsageError


def normal(*shape: int, index: int = 0) -> np.ndarray:
    return stream(13, "scores", index).standard_normal(shape)


def near(values: np.ndarray, truth: float, errors: float = 4) -> bool:
    """Whether the mean of independent values is the truth within its standard error."""
    return bool(abs(values.mean() - truth) < errors * values.std(ddof=1) / np.sqrt(values.size))


# --- CRPS and energy score --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 4, 64])
def test_crps_of_gaussian_samples_has_the_closed_form_in_the_mean(members: int) -> None:
    """sigma (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) for any number of samples (Gneiting and Raftery 2007, 21)."""
    mean, sigma, truth = 0.4, 0.7, 1.1
    z = (truth - mean) / sigma
    closed = sigma * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))
    found = crps_fair(mean + sigma * normal(3000, members), np.full(3000, truth))
    assert found.std() / np.sqrt(3000) < 0.02 * closed
    assert near(found, closed)


def test_crps_is_the_double_sum() -> None:
    samples, truth = normal(3, 5, 2), normal(3, 2, index=1)
    pairs = np.abs(samples[:, :, None] - samples[:, None]).sum((1, 2)) / (2 * 5 * 4)
    expected = np.abs(samples - truth[:, None]).mean(1) - pairs
    np.testing.assert_allclose(crps_fair(samples, truth), expected, rtol=1e-12)


def test_crps_has_the_truths_unit_and_knows_no_zero() -> None:
    samples, truth = normal(4, 6), normal(4, index=1)
    np.testing.assert_allclose(crps_fair(1e3 * samples + 1e5, 1e3 * truth + 1e5), 1e3 * crps_fair(samples, truth))


def test_energy_score_of_one_number_is_the_crps() -> None:
    samples, truth = normal(6, 7), normal(6, index=1)
    np.testing.assert_allclose(energy_score_fair(samples, truth), crps_fair(samples, truth), rtol=1e-12)


def test_energy_score_is_the_double_sum_over_the_counted_entries() -> None:
    samples, truth, counted = normal(3, 5, 2, 4), normal(3, 2, 4, index=1), normal(3, 2, 4, index=2) > -0.5
    counted[2] = False
    found = energy_score_fair(samples, truth, counted)
    for case in (0, 1):
        x, y = samples[case][:, counted[case]], truth[case][counted[case]]
        pairs = np.linalg.norm(x[:, None] - x[None], axis=2).sum() / (2 * 5 * 4)
        assert found[case] == pytest.approx(np.linalg.norm(x - y, axis=1).mean() - pairs, rel=1e-12)
    assert np.isnan(found[2])


def test_energy_score_is_least_for_the_truths_own_distribution_and_sees_correlation() -> None:
    def field(count: int, correlation: float, index: int) -> np.ndarray:
        z = normal(1000, count, 2, index=index)
        z[..., 1] = correlation * z[..., 0] + np.sqrt(1 - correlation**2) * z[..., 1]
        return z

    truth = field(1, 0.8, 0)[:, 0]
    exact = energy_score_fair(field(8, 0.8, 1), truth)
    for wrong in (0.6 * field(8, 0.8, 2), 1.6 * field(8, 0.8, 2), field(8, 0.8, 2) + 0.5, field(8, -0.8, 2)):
        worse = energy_score_fair(wrong, truth) - exact
        assert worse.mean() > 3 * worse.std() / np.sqrt(1000)


# --- spread and skill -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 16])
def test_spread_skill_is_one_for_truths_drawn_like_the_samples(members: int) -> None:
    every = normal(3000, members + 1, 2) * np.exp(normal(3000, 1, 1, index=1) / 4) + normal(3000, 1, 1, index=2)
    found = spread_skill(every[:, 1:], every[:, 0])
    assert found.high - found.low < 0.08
    assert found.low < 1 < found.high
    centre = every[:, 1:].mean(1, keepdims=True)
    narrow = spread_skill(centre + 0.5 * (every[:, 1:] - centre), every[:, 0])
    assert narrow.value == pytest.approx(found.value / 2, rel=1e-9)


def test_spread_skill_interval_covers_one() -> None:
    held = []
    for k in range(100):
        every = normal(40, 9, 5, index=k) * (1 + 0.5 * np.abs(normal(40, 1, 1, index=1000 + k)))
        found = spread_skill(every[:, 1:], every[:, 0], seed=k)
        held.append(found.low <= 1 <= found.high)
    assert np.mean(held) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 100)


def test_spread_skill_leaves_uncounted_entries_out() -> None:
    samples, truth, counted = normal(8, 5, 6), normal(8, 6, index=1), normal(8, 6, index=2) > 0
    found = spread_skill(samples, truth, counted=counted)
    square = np.square(samples.mean(1) - truth)[counted].mean()
    spread = samples.var(1, ddof=1)[counted].mean()
    assert found.value == pytest.approx(np.sqrt(1.2 * spread / square), rel=1e-12)


# --- chi2 and paired improvement --------------------------------------------------------------------------------------


def test_chi2_is_one_for_noise_and_the_square_of_a_wrong_level() -> None:
    std = 0.1 + np.abs(normal(50, index=1))
    found = reduced_chi2(std * normal(200, 50), std)
    assert found.low < 1 < found.high and found.high - found.low < 0.08
    assert reduced_chi2(std * normal(200, 50), 2 * std).value == pytest.approx(found.value / 4, rel=1e-12)
    assert reduced_chi2(np.array([[3.0, np.nan], [1.0, 2.0]]), 2.0).value == pytest.approx(14 / 4 / 3)


def test_improvement_is_relative_and_paired() -> None:
    """What makes a case hard is shared by both methods: the interval holds 0.2 tightly, unpaired it would hold 0."""
    hard = np.exp(1.5 * normal(40))
    a, b = 0.8 * hard * (1 + 0.05 * normal(40, index=1)), hard
    found = paired_difference(a, b)
    assert found.value == pytest.approx(1 - a.mean() / b.mean(), rel=1e-12)
    assert found.low < 0.2 < found.high and found.high - found.low < 0.1
    unpaired = paired_difference(a[::-1].copy(), b)
    assert unpaired.low < 0 < unpaired.high
    assert paired_difference(b, a).value < 0


def test_improvement_counts_what_both_methods_have() -> None:
    a, b = np.array([1.0, np.nan, 2.0, 9.0]), np.array([2.0, 5.0, 4.0, np.nan])
    assert paired_difference(a, b).value == pytest.approx(0.5)


# --- AUC --------------------------------------------------------------------------------------------------------------


def brute_force(scores: np.ndarray, positive: np.ndarray) -> float:
    pairs = [(p, q) for p in scores[positive] for q in scores[~positive]]
    return float(np.mean([1.0 if p > q else 0.5 if p == q else 0.0 for p, q in pairs]))


def test_auc_is_the_share_of_pairs_in_order() -> None:
    labels = stream(1, "labels").integers(0, 3, 40)
    scores = normal(40, 3) + 1.5 * (labels[:, None] == np.arange(3))
    for given in (scores, scores.round()):  # the latter with many ties
        found = auc(given, labels)
        expected = [brute_force(given[:, k], labels == k) for k in range(3)]
        assert [c.value for c in found.classes] == pytest.approx(expected, abs=1e-12)
        assert found.macro.value == pytest.approx(np.mean(expected), abs=1e-12)
        assert all(c.low < c.value < c.high for c in (*found.classes, found.macro))
        assert np.ptp([c.low for c in found.classes]) > 0


def test_auc_bootstrap_is_the_auc_of_resampled_cases() -> None:
    """Five draws by hand: repeated cases count as often as they were drawn."""
    scores, positive = normal(15).round(1), np.arange(15) < 6
    weights = next(case_weights(15, 0))[:5]
    found = _weighted_auc(scores, positive, weights)
    for share, value in zip(weights, found, strict=True):
        drawn = np.repeat(np.arange(15), (share * 15).round().astype(int))
        assert value == pytest.approx(brute_force(scores[drawn], positive[drawn]), abs=1e-12)


def test_auc_interval_covers_the_truth() -> None:
    """Two Gaussians one standard deviation apart have AUC Phi(1 / sqrt 2)."""
    truth, held = norm.cdf(1 / np.sqrt(2)), []
    for k in range(60):
        labels = (np.arange(60) < 20).astype(int)
        score = normal(60, index=k) + labels
        found = auc(np.stack([-score, score], 1), labels, seed=k)
        assert found.classes[0].value == pytest.approx(found.classes[1].value)
        held.append(found.macro.low <= truth <= found.macro.high)
    assert np.mean(held) == pytest.approx(0.95, abs=4 * np.sqrt(0.95 * 0.05 / 60))


def test_auc_does_not_depend_on_a_monotone_change_and_is_a_half_without_information() -> None:
    labels, scores = np.arange(50) % 2, normal(50, 2)
    assert auc(np.exp(3 * scores), labels) == auc(scores, labels)
    assert auc(np.zeros((50, 2)), labels).macro.value == 0.5


# --- bad input --------------------------------------------------------------------------------------------------------


def test_inputs_are_unchanged() -> None:
    samples, truth, labels = normal(6, 5, 3), normal(6, 3, index=1), np.arange(6) % 3
    truth[0, 0] = np.nan
    kept = samples.copy(), truth.copy()
    for array in (samples, truth):
        array.flags.writeable = False
    for score in (crps_fair, energy_score_fair, spread_skill):
        score(samples, truth)
    reduced_chi2(truth, 1.0), paired_difference(truth, np.abs(truth) + 1), auc(samples[:, 0], labels)
    np.testing.assert_array_equal(samples, kept[0])
    np.testing.assert_array_equal(truth, kept[1])


def test_bad_input_is_refused() -> None:
    values, labels = normal(6, 2), np.arange(6) % 2
    with pytest.raises(UsageError, match="equals its truth"):
        spread_skill(np.repeat(values[:, None], 3, 1), values)
    with pytest.raises(UsageError, match="smallest std is 0"):
        reduced_chi2(values, np.array([1.0, 0.0]))
    with pytest.raises(UsageError, match="does not broadcast"):
        reduced_chi2(values, np.ones(3))
    with pytest.raises(UsageError, match="same cases of both"):
        paired_difference(values, values[:3])
    with pytest.raises(UsageError, match="above 0"):
        paired_difference(np.abs(values), -np.abs(values))
    with pytest.raises(UsageError, match="class 1 has none"):
        auc(values, np.zeros(6, int))
    with pytest.raises(UsageError, match="label 2 is none"):
        auc(values, labels + 1)
    with pytest.raises(UsageError, match="not finite"):
        auc(np.where(values > 0, np.nan, values), labels)
    with pytest.raises(UsageError, match="2 classes"):
        auc(values[:, :1], labels)
