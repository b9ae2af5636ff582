"""Coverage, ranks, bands and TARP: exact for calibrated ensembles of any size, and wrong ones are found."""

from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest
from scipy.stats import binom, kstest

from lungwave.evaluate.calibration import (
    _cells,
    _scale,
    _stays,
    central_interval,
    coverage,
    interval_coverage,
    least_samples,
    rank_histogram,
    ranks,
    tarp,
    uniformity,
)
from lungwave.evaluate.cases import ensemble, to_json
from lungwave.repro import stream
from lungwave.types import UsageError


def normal(*shape: int, index: int = 0) -> np.ndarray:
    return stream(17, "calibration", index).standard_normal(shape)


def exact(cases: int, members: int, *field: int, index: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Samples and truths of one distribution per case, each with its own centre."""
    every = normal(cases, members + 1, *field, index=index) + 3 * normal(cases, 1, *field, index=10_000 + index)
    return every[:, 1:], every[:, 0]


def stretched(samples: np.ndarray, by: float) -> np.ndarray:
    centre = samples.mean(1, keepdims=True)
    return centre + by * (samples - centre)


# --- coverage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("members", "levels"), [(16, (0.1, 0.5, 0.8, 0.88)), (3, (0.25, 0.5)), (39, (0.9, 0.95))])
def test_coverage_of_uniform_ranks_is_the_level_exactly(members: int, levels: tuple[float, ...]) -> None:
    """One truth in each of the M + 1 slots: no Monte Carlo error, whatever the spacing of the samples."""
    sample = np.sort(np.exp(normal(members)))
    edges = np.concatenate([[sample[0] - 1], (sample[1:] + sample[:-1]) / 2, [sample[-1] + 1]])
    found = coverage(np.tile(sample, (members + 1, 1)), edges, levels)
    assert [c.level for c in found] == list(levels)
    assert [c.inside.value for c in found] == pytest.approx(list(levels), abs=1e-12)


def test_coverage_tells_calibrated_from_over_and_underconfident() -> None:
    samples, truth = exact(2000, 16)
    levels = (0.5, 0.8, 0.88)
    for found in coverage(samples, truth, levels):
        assert found.inside.low < found.level < found.inside.high
        assert found.inside.high - found.inside.low < 0.05
    for found in coverage(stretched(samples, 0.7), truth, levels):
        assert found.inside.high < found.level
    for found in coverage(stretched(samples, 1.4), truth, levels):
        assert found.inside.low > found.level


def test_ties_at_the_bounds_of_a_fraction_do_not_inflate_coverage() -> None:
    """Percent aeration is often exactly 0 or 1; closed intervals would hold far more than the level."""
    samples, truth = (np.clip(v, 0, 1) for v in exact(3000, 16))
    (found,) = coverage(samples, truth, (0.8,))
    assert found.inside.low < 0.8 < found.inside.high
    low, high = central_interval(samples, 0.8)
    assert interval_coverage(low, high, truth, 0.8).inside.low > 0.85


def test_coverage_counts_only_what_counts() -> None:
    samples, truth = exact(30, 19, 4, 2)
    counted = normal(30, 4, 2, index=1) > 0
    wrong = np.where(counted, truth, 1e6)
    (found,) = coverage(samples, wrong, (0.9,), counted=counted)
    assert found == coverage(samples, np.where(counted, truth, np.nan), (0.9,))[0]
    assert found.inside.value > 0.8


def test_coverage_interval_over_cases_covers_and_pixels_of_a_case_are_one() -> None:
    """Truths share their deviation within a case: over cases the interval is honest, over pixels it is not."""
    by_case, by_pixel = [], []
    for k in range(40):
        samples, truth = exact(50, 19, index=k)
        samples, truth = samples[..., None] + np.zeros(9), truth[..., None] + np.zeros(9)
        (found,) = coverage(samples, truth, (0.8,), seed=k)
        (flat,) = coverage(samples.transpose(0, 2, 1).reshape(-1, 19), truth.ravel(), (0.8,), seed=k)
        assert flat.inside.value == pytest.approx(found.inside.value)
        by_case.append(found.inside.low <= 0.8 <= found.inside.high)
        by_pixel.append(flat.inside.low <= 0.8 <= flat.inside.high)
    assert np.mean(by_case) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 40)
    assert np.mean(by_pixel) < 0.7


def test_coverage_without_a_miss_has_the_exact_binomial_bound() -> None:
    inside = interval_coverage(np.zeros(20), np.ones(20), np.full(20, 0.5), 0.9).inside
    assert (inside.low, inside.value, inside.high) == pytest.approx((0.025 ** (1 / 20), 1, 1))
    outside = interval_coverage(np.zeros(20), np.ones(20), np.full(20, 1.5), 0.9).inside
    assert (outside.low, outside.value, outside.high) == pytest.approx((0, 0, 1 - 0.025 ** (1 / 20)))


@pytest.mark.parametrize(("members", "level"), [(16, 0.8), (19, 0.9), (24, 0.9), (64, 0.95)])
def test_central_interval_covers_its_level(members: int, level: float) -> None:
    every = stream(3, "uniform").uniform(size=(5000, members + 1))  # flat: interpolation is exact
    found = interval_coverage(*central_interval(every[:, 1:], level), every[:, 0], level).inside
    assert found.low < level < found.high and found.high - found.low < 0.03


def test_central_interval_is_the_weibull_quantile_and_ordinary_ones_cover_too_little() -> None:
    samples, truth = exact(8000, 20)
    tails = [0.05, 0.95]
    ours = central_interval(samples, 0.9)
    np.testing.assert_allclose(ours, np.quantile(samples, tails, axis=1, method="weibull"), atol=1e-12)
    ordinary = np.quantile(samples, tails, axis=1)
    assert interval_coverage(*ordinary, truth, 0.9).inside.value == pytest.approx(0.815, abs=0.016)


def test_levels_that_few_samples_cannot_tell_are_refused() -> None:
    assert [least_samples(level) for level in (0.5, 0.8, 0.9, 0.95)] == [3, 9, 19, 39]
    samples, truth = exact(5, 18)
    with pytest.raises(UsageError, match=r"level 0\.9 needs 19 samples a case, there are 18"):
        coverage(samples, truth, (0.9,))
    with pytest.raises(UsageError, match="needs 19"):
        central_interval(samples, 0.05)
    with pytest.raises(UsageError, match="between 0 and 1"):
        coverage(samples, truth, (90.0,))


# --- ranks and their band ---------------------------------------------------------------------------------------------


def test_ranks_count_samples_below() -> None:
    samples, truth = exact(50, 7, 3)
    truth[4, 1] = np.nan
    found = ranks(samples, truth)
    expected = (samples < truth[:, None]).sum(1)
    expected[4, 1] = -1
    np.testing.assert_array_equal(found, expected)


def test_ranks_of_equal_values_are_uniform_and_belong_to_the_seed() -> None:
    samples, truth = np.zeros((2000, 9)), np.zeros(2000)
    found = ranks(samples, truth, seed=5)
    assert uniformity(found, 9).inside
    np.testing.assert_array_equal(found, ranks(samples, truth, seed=5))
    assert (found != ranks(samples, truth, seed=6)).any()
    samples[:, :4] = -1  # four samples below the truth, five equal to it
    assert set(ranks(samples, truth)) == set(range(4, 10))


def test_rank_histogram_counts_equal_bins() -> None:
    rank = np.array([[0, 0, 1, -1], [2, 5, 5, 4]])
    np.testing.assert_array_equal(rank_histogram(rank, 5), [2, 1, 1, 0, 1, 2])
    np.testing.assert_array_equal(rank_histogram(rank, 5, 3), [3, 1, 3])
    with pytest.raises(UsageError, match=r"4 bins do not divide the 6 ranks; take one of \[2, 3, 6\]"):
        rank_histogram(rank, 5, 4)
    with pytest.raises(UsageError, match="rank 5 among 4"):
        rank_histogram(rank, 4)


def test_probability_to_stay_inside_is_the_sum_over_all_outcomes() -> None:
    cases, members = 5, 3
    at = np.arange(1, 4) / 4
    low, high = np.array([0, 1, 2]), np.array([2, 4, 5])
    counts = [[sum(r < k for r in outcome) for k in (1, 2, 3)] for outcome in product(range(members + 1), repeat=cases)]
    stays = np.mean(((low <= counts) & (counts <= high)).all(1))
    assert _stays((low, high), cases, at) == pytest.approx(stays, rel=1e-12)


@pytest.mark.parametrize(("cases", "members"), [(60, 16), (200, 63), (40, 999)])
def test_band_has_size_five_percent(cases: int, members: int) -> None:
    """Uniform ranks leave the band in 5 % of repetitions, or a little less where few counts are possible."""
    repetitions = 1500
    rank = stream(1, "uniform ranks", members).integers(0, members + 1, (repetitions, cases))
    found = [uniformity(one, members) for one in rank[:60]]
    band = found[0]
    slot = np.round(band.at * (members + 1)).astype(int)
    ecdf = np.array([np.cumsum(np.bincount(one, minlength=members + 1))[slot - 1] / cases for one in rank])
    inside = ((band.low - 1e-9 <= ecdf) & (ecdf <= band.high + 1e-9)).all(1)
    np.testing.assert_array_equal([f.inside for f in found], inside[:60])
    assert 1 - inside.mean() == pytest.approx(0.048, abs=0.002 + 4 * np.sqrt(0.05 * 0.95 / repetitions))
    for f in found:
        assert f.inside == (f.p > 0.05) == (f.excursion == 0)
    assert kstest([f.p for f in found], "uniform").pvalue > 1e-3


def test_band_of_many_ranks_is_binomial_at_each_point() -> None:
    """Few points, many cases: each keeps more than 95 % and less than Bonferroni's share, equally in both tails."""
    cases, members = 2000, 4
    found = uniformity(np.arange(cases) % (members + 1), members)
    low, high = np.round(found.low * cases), np.round(found.high * cases)
    tails = np.array([binom.cdf(low - 1, cases, found.at), binom.sf(high, cases, found.at)])
    assert (tails < 0.025).all() and (tails > 0.8 * 0.025 / members).all()
    assert np.ptp(tails) < 0.2 * tails.mean()


@pytest.mark.parametrize("wrong", ["shifted", "overconfident", "underconfident"])
def test_band_finds_wrong_ensembles(wrong: str) -> None:
    samples, truth = exact(200, 31)
    assert uniformity(ranks(samples, truth), 31).inside
    changed = {
        "shifted": samples + 0.4,
        "overconfident": stretched(samples, 0.6),
        "underconfident": stretched(samples, 1.8),
    }[wrong]
    found = uniformity(ranks(changed, truth), 31)
    assert not found.inside and found.p < 0.01 and found.excursion > 0
    edge = {"shifted": 1, "overconfident": 1, "underconfident": -1}[wrong]
    assert np.sign(found.ecdf - found.at)[2] == edge  # too many truths in the lower tail, or too few


def test_deviation_and_excursion_measure_the_ecdf() -> None:
    found = uniformity(np.full(50, 4), 9)  # every truth above four of nine samples: steps from 0 to 1 between .4 and .5
    assert found.deviation == pytest.approx(0.5)
    assert found.excursion == pytest.approx((found.ecdf - found.high)[4])
    assert found.cases == 50 and found.p < 1e-9
    assert json.dumps(to_json(found), allow_nan=False)


def test_ranks_that_do_not_count_are_left_out() -> None:
    rank = stream(0, "ranks").integers(0, 10, 40)
    assert to_json(uniformity(np.concatenate([rank, [-1, -1]]), 9)) == to_json(uniformity(rank, 9))
    with pytest.raises(UsageError, match="no rank counts"):
        uniformity(np.array([-1, -1]), 9)


@pytest.mark.parametrize(("cases", "members"), [(1, 2), (2, 2), (3, 500), (3000, 2)])
def test_band_exists_for_extreme_sizes(cases: int, members: int) -> None:
    found = uniformity(stream(2, "ranks").integers(0, members + 1, cases), members)
    expected = cases * found.at
    assert (found.low * cases <= np.ceil(expected)).all() and (found.high * cases >= np.floor(expected)).all()
    assert found.inside and 0 < found.p <= 1


# --- TARP -------------------------------------------------------------------------------------------------------------

NOISE = 0.5  # of the observation of a standard normal parameter


def twin(cases: int, members: int, parameters: int = 3, index: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Posterior samples, truths and observations of a Gaussian twin in closed form."""
    truth = normal(cases, parameters, index=index)
    observed = truth + NOISE * normal(cases, parameters, index=index + 1)
    gain = 1 / (1 + NOISE**2)
    spread = np.sqrt(gain) * NOISE
    samples = gain * observed[:, None] + spread * normal(cases, members, parameters, index=index + 2)
    return samples, truth, observed


@pytest.mark.parametrize("dependent", [False, True])
def test_tarp_passes_the_exact_posterior_and_fails_wrong_ones(dependent: bool) -> None:
    samples, truth, observed = twin(500, 40)
    summary = observed if dependent else None
    right = tarp(samples, truth, summary=summary)
    assert right.curve.inside and right.area.low < 0 < right.area.high
    narrow = tarp(stretched(samples, 0.5), truth, summary=summary)
    wide = tarp(stretched(samples, 2.0), truth, summary=summary)
    assert not narrow.curve.inside and not wide.curve.inside
    assert narrow.area.high < 0 < wide.area.low
    assert not tarp(samples + 0.4, truth, summary=summary).curve.inside


def test_prior_in_place_of_the_posterior_passes_only_independent_references() -> None:
    _, truth, observed = twin(500, 40)
    prior = normal(500, 40, 3, index=50)
    assert tarp(prior, truth).curve.inside
    assert not tarp(prior, truth, summary=observed).curve.inside


def test_tarp_has_size_five_percent() -> None:
    found = [tarp(*twin(80, 15, 2, index=100 + 3 * k)[:2], seed=k) for k in range(60)]
    assert 1 - np.mean([f.curve.inside for f in found]) == pytest.approx(0.05, abs=4 * np.sqrt(0.05 * 0.95 / 60))
    areas = np.array([f.area.value for f in found])
    assert abs(areas.mean()) < 4 * areas.std() / np.sqrt(60)
    held = np.mean([f.area.low <= 0 <= f.area.high for f in found])
    assert held == pytest.approx(0.95, abs=4 * np.sqrt(0.05 * 0.95 / 60))


@pytest.mark.parametrize("members", [4, 9])
def test_area_of_one_truth_in_each_slot_is_zero(members: int) -> None:
    assert _cells(members).mean() == pytest.approx(0, abs=1e-15)
    fine = np.linspace(0.5, 1, 100_001)
    edges = np.arange(members + 2) / (members + 1)
    ecdf = np.clip((fine - edges[-2]) / (edges[-1] - edges[-2]), 0, 1)  # all truths in the last slot
    assert _cells(members)[-1] == pytest.approx(np.trapezoid(ecdf - fine, fine), abs=1e-6)


def test_references_do_not_know_which_one_is_the_truth() -> None:
    """Their scale comes from samples and truths alike; from the truths alone, few cases would not be uniform."""
    samples, truth, _ = twin(5, 3)
    counted = normal(5, 3, index=8) > -0.5
    centre, spread = _scale(ensemble(4 * samples, truth, counted))
    every = np.concatenate([truth[:, None], 4 * samples], 1)
    for k in range(3):
        values = every[counted[:, k], :, k]
        assert (centre[k], spread[k]) == pytest.approx((values.mean(), values.std()), rel=1e-12)


def test_tarp_does_not_depend_on_units_and_knows_its_seed() -> None:
    samples, truth, observed = twin(60, 12)
    scale, shift = np.array([1.0, 1e3, 1e-4]), np.array([0.0, 7e3, 1.0])
    for summary in (None, observed):
        one = tarp(samples, truth, 2, summary)
        other = tarp(
            samples * scale + shift, truth * scale + shift, 2, None if summary is None else observed * scale + shift
        )
        np.testing.assert_array_equal(one.curve.ecdf, other.curve.ecdf)
    assert (tarp(samples, truth, 2).curve.ecdf != tarp(samples, truth, 3).curve.ecdf).any()


def test_tarp_leaves_uncounted_entries_and_cases_out() -> None:
    samples, truth, observed = twin(300, 20, 4)
    counted = normal(300, 4, index=9) > -0.5
    counted[:50] = False
    wrong = np.where(counted, truth, 1e3)
    found = tarp(samples, wrong, summary=np.where(counted, observed, np.nan), counted=counted)
    assert found.curve.cases == counted.any(1).sum() and found.curve.inside


def test_inputs_are_unchanged() -> None:
    samples, truth, observed = twin(10, 39)
    truth[3, 1] = np.nan
    given = samples, truth, observed
    kept = [v.copy() for v in given]
    for array in given:
        array.flags.writeable = False
    coverage(samples, truth), central_interval(samples, 0.5), ranks(samples, truth), tarp(samples, truth, 0, observed)
    for array, before in zip(given, kept, strict=True):
        np.testing.assert_array_equal(array, before)


def test_bad_input_is_refused() -> None:
    samples, truth, observed = twin(6, 20)
    with pytest.raises(UsageError, match="summary has shape"):
        tarp(samples, truth, summary=observed[:, :2])
    with pytest.raises(UsageError, match="summary holds values that are not finite"):
        tarp(samples, truth, summary=np.where(observed > 0, np.nan, observed))
    for judge in (lambda s: coverage(s, truth, (0.5,)), lambda s: ranks(s, truth), lambda s: tarp(s, truth)):
        with pytest.raises(UsageError, match="not finite"):
            judge(np.where(samples > 0, np.nan, samples))
    with pytest.raises(UsageError, match="must be equal"):
        interval_coverage(truth, truth[:, :2], truth, 0.9)
    with pytest.raises(UsageError, match="low <= high"):
        interval_coverage(truth + 1, truth, truth, 0.9)
