"""Laws of what samples are summarised to: closed-form intervals, information, shares counted in each sample."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from scipy import stats

from lungwave.acoustics.image import BMode
from lungwave.config import MapConfig
from lungwave.evaluate.calibration import central_interval
from lungwave.phantom.aeration import Truth
from lungwave.posterior.information import INFORMED, informed_depth
from lungwave.posterior.summary import CT_CLASSES, Interval, Posterior, Reconstruction, summarise
from lungwave.types import MM, UsageError
from random_fields import KINDS, PRIOR_STD, band_numbers, known_share, map_samples, posterior, smooth_field

CONFIG = MapConfig(rows=64, columns=12)
GRID = (CONFIG.rows, CONFIG.columns)


def of(samples: np.ndarray, prior: np.ndarray | float = PRIOR_STD, level: float = 0.9) -> Posterior:
    """Summary of maps alone: the bands follow from them, no categories."""
    wide = np.broadcast_to(prior, samples.shape[1:]).astype(float)
    none = np.zeros((len(samples), 0))
    return summarise(samples, band_numbers(samples, CONFIG), none, wide, CONFIG, level)


def flat(values: np.ndarray) -> np.ndarray:
    """Samples that are constant over the map."""
    return np.broadcast_to(np.asarray(values, float)[:, None, None], (len(values), *GRID)).copy()


@pytest.mark.parametrize("law", [stats.norm(0.5, 0.1), stats.beta(2.0, 5.0), stats.uniform(0.1, 0.6)])
@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_samples_at_their_own_quantiles_give_the_closed_form_interval(law: stats.rv_continuous, level: float) -> None:
    """Order statistic k at probability k / (M + 1): the bounds are the quantiles of the law, exactly."""
    m = 199
    found = of(flat(law.ppf(np.arange(1, m + 1) / (m + 1))), level=level)
    low, high = law.ppf([(1 - level) / 2, (1 + level) / 2])
    np.testing.assert_allclose(found.lower, low, atol=1e-6)
    np.testing.assert_allclose(found.upper, high, atol=1e-6)
    np.testing.assert_allclose(found.mean, law.mean(), atol=2e-3)
    np.testing.assert_allclose(found.std, law.std(), rtol=0.03)
    assert (found.whole.lower, found.whole.upper) == pytest.approx((low, high), abs=1e-6)
    np.testing.assert_allclose(found.profile_lower, low, atol=1e-6)
    np.testing.assert_allclose(found.profile_upper, high, atol=1e-6)


@pytest.mark.parametrize("m", [19, 24, 64])
def test_bounds_are_those_whose_coverage_is_measured(m: int) -> None:
    samples = map_samples(np.full(GRID, 0.5), 0.5, m).astype(np.float32)
    low, high = central_interval(samples[None].astype(float), 0.9)
    found = of(samples)
    np.testing.assert_allclose(found.lower, low[0], atol=1e-9)
    np.testing.assert_allclose(found.upper, high[0], atol=1e-9)


def test_too_few_samples_for_the_level_give_their_range() -> None:
    samples = map_samples(np.full(GRID, 0.5), 0.5, 16)
    found = of(samples)
    np.testing.assert_allclose(found.lower, samples.min(0), atol=1e-7)
    np.testing.assert_allclose(found.upper, samples.max(0), atol=1e-7)


def test_information_is_0_at_the_prior_and_1_where_samples_agree() -> None:
    rng = np.random.default_rng(0)
    samples = np.clip(0.5 + rng.normal(0, 0.1, (32, *GRID)), 0, 1)
    samples[:, :20] = 0.4  # all samples agree
    prior = samples.astype(np.float32).astype(float).std(0, ddof=1)
    prior[:20] = 0.1
    prior[40:] /= 1.5  # wider than the prior: clipped, not below 0
    found = of(samples, prior)
    np.testing.assert_array_equal(found.information[:20], 1.0)
    np.testing.assert_allclose(found.information[20:], 0.0, atol=1e-9)
    np.testing.assert_allclose(found.information_depth, 2.0 * MM)


def test_information_of_a_gaussian_is_the_share_of_variance_taken_away() -> None:
    rng = np.random.default_rng(1)
    share = known_share(*GRID)
    drawn = np.stack([0.5 + np.sqrt(1 - share) * smooth_field(rng, GRID, 0.05) for _ in range(3000)])
    found = of(drawn, 0.05)
    np.testing.assert_allclose(found.information, share, atol=0.13)  # 5 sqrt(2 / 3000)
    reach = -1.5 * np.log(INFORMED)  # [mm] depth at which exp(-z / 1.5 mm) falls to the threshold
    assert np.median(found.information_depth) / MM == pytest.approx(reach, abs=0.35)


def test_depth_counts_from_the_pleura_and_stops_at_the_first_gap() -> None:
    known = np.full((10, 4), 0.9)
    known[3:5, 0] = INFORMED  # not above
    known[0, 1] = 0.0
    known[9, 2] = 0.1
    np.testing.assert_allclose(informed_depth(known, 1e-4), [3e-4, 0.0, 9e-4, 10e-4])


def test_share_below_counts_columns_in_each_sample() -> None:
    samples = np.full((20, *GRID), 0.8)
    for k in range(20):
        samples[k, :10, : k % 4] = 0.3  # 0, 1, 2 or 3 of 12 columns are poor in their top millimetre
        samples[k, 10:, :] = 0.0  # and what lies deeper is none of its business
    found = of(samples)
    poor = found.share_below()
    assert (poor.estimate, poor.lower, poor.upper) == pytest.approx((1.5 / 12, 0.0, 3 / 12))
    assert found.share_below(0.3).estimate == pytest.approx(0.0)  # below, not at
    assert found.share_below(0.9).lower == 1.0
    first = np.arange(12) < 2
    assert found.share_below(columns=first).estimate == pytest.approx(np.mean([0, 0.5, 1, 1]))
    assert np.isnan(found.share_below(columns=np.zeros(12, bool)).estimate)


def test_a_mean_map_hides_what_every_sample_shows() -> None:
    """Half the line is poor in every sample, each time elsewhere: the mean map shows none, the count says a half."""
    samples = np.full((20, *GRID), 0.9)
    for k in range(20):
        samples[k, :, k % 2 :: 2] = 0.2
    found = of(samples)
    assert (found.mean[:10].mean(0) > 0.5).all()
    assert found.share_below() == Interval(0.5, 0.5, 0.5)


def test_class_shares_add_up_and_a_limit_belongs_to_less_air() -> None:
    samples = np.full((2, *GRID), 0.95)
    for row, value in enumerate((0.0, 0.1, 0.11, 0.5, 0.51, 0.9, 0.91, 1.0)):
        samples[:, row * 8 : row * 8 + 8] = value
    shares = of(samples).class_shares()
    assert len(shares) == len(CT_CLASSES)
    assert [s.estimate for s in shares] == pytest.approx([0.25, 0.25, 0.25, 0.25])
    drawn = posterior(np.full((64, 12), 0.5)).class_shares(np.arange(12) > 3)
    assert sum(s.estimate for s in drawn) == pytest.approx(1.0)
    assert all(0 <= s.lower <= s.estimate <= s.upper <= 1 for s in drawn)


def test_the_order_of_samples_is_without_meaning() -> None:
    rng = np.random.default_rng(5)
    samples = map_samples(0.5 + smooth_field(rng, GRID), 0.5, 20)
    bands, kinds = band_numbers(samples, CONFIG), rng.dirichlet([1.0, 2.0], 20)
    prior = np.full(GRID, PRIOR_STD)
    shuffled = rng.permutation(20)
    one = summarise(samples, bands, kinds, prior, CONFIG)
    two = summarise(samples[shuffled], bands[shuffled], kinds[shuffled], prior, CONFIG)
    for name in (f.name for f in fields(Posterior)):
        if name not in ("samples", "band_samples", "category_samples", "bands", "whole", "category_names"):
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), atol=1e-12, err_msg=name)
    for a, b in zip((*one.bands, one.whole), (*two.bands, two.whole), strict=True):
        assert (a.estimate, a.lower, a.upper) == pytest.approx((b.estimate, b.lower, b.upper), abs=1e-12)
    for a_share, b_share in zip(one.class_shares(), two.class_shares(), strict=True):
        assert a_share.estimate == pytest.approx(b_share.estimate)


def test_a_mirrored_lung_has_a_mirrored_summary() -> None:
    samples = map_samples(0.5 + smooth_field(np.random.default_rng(2), GRID), 0.5, 20)
    one, two = of(samples), of(samples[:, :, ::-1])
    for name in ("mean", "std", "lower", "upper", "information", "information_depth", "profile", "profile_upper"):
        np.testing.assert_allclose(getattr(one, name), getattr(two, name)[..., ::-1], atol=1e-12, err_msg=name)
    assert one.share_below() == two.share_below()


def test_bands_and_profile_follow_what_was_given() -> None:
    found = posterior(np.full((64, 12), 0.5))
    edges = np.array(MapConfig().bands)
    assert [b.top for b in found.bands] == pytest.approx(edges[:-1])
    assert (found.whole.top, found.whole.bottom) == pytest.approx((0.0, 6 * MM))
    assert found.profile.mean() == pytest.approx(found.whole.estimate, abs=1e-6)  # 60 rows of equal weight
    assert (found.profile_lower <= found.profile).all() and (found.profile <= found.profile_upper).all()
    assert found.categories.sum() == pytest.approx(1.0)
    assert found.category_names == KINDS
    np.testing.assert_allclose(found.z[[0, -1]], [0.05 * MM, 6.35 * MM])
    assert found.x[0] == -found.x[-1]


GOOD = flat(np.linspace(0.3, 0.7, 20))
BANDS, KIND = band_numbers(GOOD, CONFIG), np.full((20, 2), 0.5)
PRIOR = np.full(GRID, PRIOR_STD)


def spoiled(array: np.ndarray, value: float) -> np.ndarray:
    """A copy with one entry replaced."""
    other = array.copy()
    other.flat[3] = value
    return other


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"samples": spoiled(GOOD, np.nan)}, "samples hold 1 NaN"),
        ({"samples": 2 * GOOD - 1}, "clipped to 0-1"),
        ({"samples": GOOD[:, :60]}, r"\(sample, 64, 12\) was expected"),
        ({"samples": GOOD[:1], "band_samples": BANDS[:1], "category_samples": KIND[:1]}, "2 samples or more"),
        ({"band_samples": BANDS[:, :-1]}, r"\(20, 5 bands \+ 1\) was expected"),
        ({"band_samples": BANDS[:-1]}, "band samples have shape"),
        ({"band_samples": spoiled(BANDS, np.inf)}, "band samples hold 1"),
        ({"band_samples": 100 * BANDS}, "band samples lie in"),
        ({"category_samples": KIND[:-1]}, "category samples have shape"),
        ({"category_samples": KIND / 2}, "give probabilities"),
        ({"prior_std": PRIOR.T.copy()}, "prior_std has shape"),
        ({"prior_std": spoiled(PRIOR, 0.0)}, "not above 0"),
        ({"prior_std": spoiled(PRIOR, np.nan)}, "not above 0"),
        ({"level": 90.0}, "level 90 is not between"),
        ({"category_names": ("healthy",)}, "1 category names for 2"),
        ({"map_config": replace(CONFIG, bands=(7 * MM, 8 * MM)), "band_samples": BANDS[:, :2]}, "no row between"),
    ],
)
def test_what_is_no_posterior_is_told_in_one_line(change: dict, said: str) -> None:
    given = {"samples": GOOD, "band_samples": BANDS, "category_samples": KIND, "prior_std": PRIOR, "map_config": CONFIG}
    with pytest.raises(UsageError, match=said) as told:
        summarise(**{**given, **change})
    assert "\n" not in str(told.value)


def test_rounding_of_half_precision_is_not_an_error() -> None:
    found = of(np.clip(GOOD * 1.5, 0, 1).astype(np.float16).astype(np.float32) + np.float32(5e-5))
    assert found.samples.max() == 1.0


def truth_of(values: np.ndarray, edges: tuple[float, ...] = CONFIG.bands) -> Truth:
    """A truth on the test's map; only what ``Reconstruction.of`` reads has meaning."""
    count = len(edges) - 1
    return Truth(
        values, values, np.ones(GRID, bool), np.arange(12) > 1, np.zeros(12), 1e-4, np.zeros(12),
        np.linspace(0.3, 0.7, count), edges, 0.5, values.mean(0),
    )  # fmt: skip


def test_a_reconstruction_is_its_posterior_beside_the_truth() -> None:
    found, picture = of(GOOD), BMode(np.zeros((4, 4)), np.arange(4.0), np.arange(4.0))
    r = Reconstruction.of("a", "amortized", picture, found, truth=truth_of(np.full(GRID, 0.5)))
    assert r.aeration is found.mean and r.lower is found.lower and r.information_depth is found.information_depth
    assert [b.truth for b in r.bands] == pytest.approx(np.linspace(0.3, 0.7, 5))
    assert r.whole is not None and r.whole.truth == 0.5 and r.whole.estimate == found.whole.estimate
    assert r.valid is not None and r.valid.sum() == 10
    assert r.flags == () and r.withheld is None
    few = Reconstruction.of("a", "amortized", picture, of(GOOD[::2]), flags=("one",))
    assert few.flags[0] == "one" and "10 samples" in few.flags[1] and "82 %" in few.flags[1]
    assert few.valid is not None and few.valid.all() and few.bands[0].truth is None
    other = truth_of(np.full(GRID, 0.5), (0.0, 1 * MM, 6 * MM))
    with pytest.raises(UsageError, match="give the same"):
        Reconstruction.of("a", "amortized", picture, found, truth=other)
