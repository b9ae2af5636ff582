"""Distances between sets of maps: closed forms, unbiasedness, floors; statistics of fields with known values."""

from __future__ import annotations

import warnings
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from lungwave.evaluate.features import fit_features
from lungwave.evaluate.generative import (
    compare,
    frechet,
    kid,
    kid_difference,
    kid_null,
    sliced_wasserstein,
    table_lines,
)
from lungwave.evaluate.statistics import STATISTICS, histogram_distance, statistics
from lungwave.repro import stream
from lungwave.types import UsageError


def normal(count: int, d: int, index: int = 0) -> np.ndarray:
    return stream(7, "features", index).standard_normal((count, d))


# --- KID --------------------------------------------------------------------------------------------------------------


def test_kid_is_the_mean_over_pairs() -> None:
    a, b = normal(9, 4), normal(6, 4, 1) + 0.3

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return float((u @ v / 4 + 1) ** 3)

    aa = np.mean([kernel(u, v) for i, u in enumerate(a) for j, v in enumerate(a) if i != j])
    bb = np.mean([kernel(u, v) for i, u in enumerate(b) for j, v in enumerate(b) if i != j])
    ab = np.mean([kernel(u, v) for u in a for v in b])
    assert kid(a, b).value == pytest.approx(aa + bb - 2 * ab, rel=1e-12)


def test_kid_of_equal_distributions_is_unbiased_and_its_error_is_not_too_small() -> None:
    found = [kid(normal(40, 12, 2 * k), normal(50, 12, 2 * k + 1)) for k in range(200)]
    values = np.array([f.value for f in found])
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    ratio = np.mean([f.error for f in found]) / values.std()
    assert 1.0 < ratio < 1.8  # degenerate: the jackknife is too large by about sqrt(2)


def test_kid_error_covers_where_the_distributions_differ() -> None:
    """The truth is taken from far larger sets; 95 % intervals cover it in 90-100 % of 200 repetitions."""
    truth = kid(normal(4000, 5, 1000), 0.8 * normal(4000, 5, 1001) + 0.4).value
    found = [kid(normal(60, 5, 2 * k), 0.8 * normal(80, 5, 2 * k + 1) + 0.4) for k in range(200)]
    covered = [abs(f.value - truth) < 1.96 * f.error for f in found]
    assert 0.90 <= np.mean(covered) <= 1.0


def test_kid_of_a_permuted_null_is_its_null() -> None:
    a, b = normal(30, 6), normal(45, 6, 1)
    null = kid_null(a, b, 300)
    assert abs(null.mean()) < 3 * null.std() / np.sqrt(300)
    fresh = np.array([kid(normal(30, 6, 2 * k), normal(45, 6, 2 * k + 1)).value for k in range(2, 150)])
    assert np.quantile(null, 0.95) == pytest.approx(np.quantile(fresh, 0.95), rel=0.4)
    assert kid(a + 0.5, b).value > null.max()


def test_kid_difference_is_the_difference_and_knows_what_is_shared() -> None:
    a, b, real = normal(50, 6) + 0.3, normal(40, 6, 1) + 0.3, normal(60, 6, 2)
    found = kid_difference(a, b, real)
    assert found.value == pytest.approx(kid(a, real).value - kid(b, real).value, abs=1e-12)
    assert found.error < np.hypot(kid(a, real).error, kid(b, real).error)
    assert kid_difference(a, a, real).value == pytest.approx(0, abs=1e-12)
    many = [
        kid_difference(normal(50, 6, 3 * k) + 0.3, normal(40, 6, 3 * k + 1) + 0.3, normal(60, 6, 3 * k + 2))
        for k in range(1, 150)
    ]
    assert np.mean([f.error for f in many]) == pytest.approx(np.std([f.value for f in many]), rel=0.25)


def test_order_does_not_matter() -> None:
    a, b = normal(20, 5), normal(30, 5, 1) + 0.2
    order = stream(0, "order").permutation(20)
    for distance in (frechet, sliced_wasserstein):
        assert distance(a[order], b) == pytest.approx(distance(a, b), rel=1e-9)
    assert kid(a[order], b).value == pytest.approx(kid(a, b).value, rel=1e-9)
    assert kid(a[order], b).error == pytest.approx(kid(a, b).error, rel=1e-9)


# --- Frechet ----------------------------------------------------------------------------------------------------------


def with_moments(count: int, mean: np.ndarray, covariance: np.ndarray, index: int) -> np.ndarray:
    """Vectors whose sample mean and covariance are exactly the given ones."""
    raw = normal(count, len(mean), index)
    raw -= raw.mean(0)
    white = raw @ np.linalg.inv(np.linalg.cholesky(raw.T @ raw / (count - 1))).T
    return mean + white @ np.linalg.cholesky(covariance).T


@pytest.mark.parametrize("counts", [(50, 60), (9, 400)])
def test_frechet_of_gaussians_has_its_closed_form(counts: tuple[int, int]) -> None:
    """Commuting covariances: |difference of means|^2 + sum of squared differences of standard deviations."""
    rotation = np.linalg.qr(normal(8, 8, 5))[0]
    first, second = np.linspace(0.2, 2, 8), np.linspace(1.5, 0.1, 8)
    means = normal(2, 8, 6)
    a = with_moments(counts[0], means[0], rotation @ np.diag(first**2) @ rotation.T, 0)
    b = with_moments(counts[1], means[1], rotation @ np.diag(second**2) @ rotation.T, 1)
    assert frechet(a, b) == pytest.approx(np.square(means[0] - means[1]).sum() + np.square(first - second).sum(), 1e-9)


def test_frechet_equals_the_square_root_form_at_full_rank() -> None:
    a, b = normal(300, 20) * np.linspace(0.1, 3, 20), normal(200, 20, 1) @ normal(20, 20, 2) + 1
    first, second = np.cov(a.T), np.cov(b.T)
    root = np.trace(sqrtm(first @ second)).real
    usual = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet(a, b) == pytest.approx(usual, rel=1e-6)


def test_frechet_agrees_with_a_library_where_that_is_valid() -> None:
    """torchmetrics takes eigenvalues of the covariances' product, which is sound at full rank."""
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed")

    class Flat(torch.nn.Module):
        num_features = 24

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    a, b = normal(600, 24), normal(500, 24, 1) @ normal(24, 24, 2) / 5 + 0.3
    metric = fid.FrechetInceptionDistance(feature=Flat(), input_img_size=(1, 1, 24), normalize=True)
    metric.set_dtype(torch.float64)
    for features, real in ((a, False), (b, True)):
        metric.update(torch.as_tensor(features)[:, None, None], real=real)
    assert frechet(a, b) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_of_rank_deficient_sets_is_exact() -> None:
    """Vectors that live in 5 of 600 dimensions have the distance of their 5 coordinates; n < d; many dead features."""
    basis = np.linalg.qr(normal(600, 5, 3))[0]
    a, b = normal(40, 5) * np.arange(1, 6), normal(90, 5, 1) + 0.5
    assert frechet(a @ basis.T, b @ basis.T) == pytest.approx(frechet(a, b), rel=1e-8)


def test_the_reports_failed_case_is_repaired() -> None:
    """1000 maps against 4500, 2048 features of rank 64: the value of their 64 coordinates, to 1e-8.

    The covariances' product has 1984 eigenvalues that are rounding alone, of which the usual matrix square root makes
    complex numbers, in some releases of SciPy of any size (benchmarks/frechet.py runs it on these very arrays).
    """
    spread = np.arange(1, 65) ** -0.5
    a, b = normal(1000, 64) * spread, normal(4500, 64, 1) * spread * 1.1 + 0.05
    basis = np.linalg.qr(normal(2048, 64, 3))[0]
    first, second = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(first)
    half = vectors * np.sqrt(values) @ vectors.T
    root = np.sqrt(np.linalg.eigvalsh(half @ second @ half)).sum()
    exact = np.square(a.mean(0) - b.mean(0)).sum() + np.trace(first) + np.trace(second) - 2 * root
    assert frechet(a @ basis.T, b @ basis.T) == pytest.approx(exact, rel=1e-8)


@pytest.mark.parametrize(("n", "m", "d"), [(2, 2, 1), (2, 500, 30), (20, 3, 700), (50, 60, 64), (1, 5, 4)])
def test_frechet_is_finite_for_any_sizes(n: int, m: int, d: int) -> None:
    a, b = normal(n, d), normal(m, d, 1)
    if n == 1:
        with pytest.raises(UsageError, match="at least 2"):
            frechet(a, b)
        return
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert 0 <= frechet(a, b) < np.inf
    assert frechet(a, a) == pytest.approx(0, abs=1e-9 * d)
    assert frechet(3 * a, 3 * b) == pytest.approx(9 * frechet(a, b), rel=1e-9)
    assert frechet(b, a) == pytest.approx(frechet(a, b), rel=1e-9)


# --- sliced Wasserstein -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("d", [3, 40, 512])
def test_sliced_wasserstein_of_a_shift_is_its_length(d: int) -> None:
    """Whole orthonormal bases make it exact up to d = 512 directions."""
    a, shift = normal(30, d), normal(1, d, 9)[0]
    assert sliced_wasserstein(a, a + shift) == pytest.approx(np.linalg.norm(shift), rel=1e-9)
    assert sliced_wasserstein(a, a) == 0


def test_sliced_wasserstein_in_more_dimensions_than_directions() -> None:
    a = normal(20, 2000)
    assert sliced_wasserstein(a, a + 0.1) == pytest.approx(0.1 * np.sqrt(2000), rel=0.15)


def test_sliced_wasserstein_compares_sets_of_different_sizes() -> None:
    a = normal(4000, 2)
    assert sliced_wasserstein(a, np.concatenate([a, a])) < 0.03
    assert sliced_wasserstein(a, 2 * normal(3000, 2, 1)) == pytest.approx(np.sqrt(2), rel=0.05)  # N(0, 1) to N(0, 4)


def test_features_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(UsageError, match=r"\(4, 3\) and \(4, 2\)"):
        kid(normal(4, 3), normal(4, 2))
    with pytest.raises(UsageError, match="not finite"):
        frechet(normal(4, 3) * np.inf, normal(4, 3))


# --- statistics of lungs ----------------------------------------------------------------------------------------------


def correlated(count: int, size: tuple[int, int], length: float, axis: int, index: int = 0) -> np.ndarray:
    """Exponentially correlated along ``axis``, independent along the other, around one half."""
    noise = stream(3, "correlated", index).standard_normal((count, *size))
    field, keep = np.moveaxis(noise, axis, 0), np.exp(-1 / length)
    for k, _ in pairwise(range(len(field))):
        field[k + 1] = keep * field[k] + np.sqrt(1 - keep**2) * field[k + 1]
    return np.clip(0.5 + 0.1 * np.moveaxis(field, 0, axis), 0, 1).astype(np.float32)


@pytest.mark.parametrize("axis", [1, 2])
def test_correlation_length_of_an_exponential_field(axis: int) -> None:
    size = (600, 12) if axis == 1 else (12, 600)
    maps = correlated(30, size, 5.0, axis)
    along, across = ("depth", "lateral") if axis == 1 else ("lateral", "depth")
    assert STATISTICS[f"{along} 1/e length"].of(maps) == pytest.approx(5.0, rel=0.05)
    assert STATISTICS[f"{across} 1/e length"].of(maps) < 1  # neighbours are independent
    lifted = maps * 0.5 + np.linspace(0, 0.5, 30, dtype=np.float32)[:, None, None]
    assert STATISTICS[f"{along} 1/e length"].of(lifted) == pytest.approx(
        STATISTICS[f"{along} 1/e length"].of(maps), 1e-4
    )


def test_simple_statistics_have_their_values() -> None:
    maps = np.zeros((4, 2, 6), np.float32)
    maps[:, :, 2:5] = 1.0
    maps[:2] *= 0.5  # at the threshold, so no air
    assert STATISTICS["aeration mean"].of(maps) == pytest.approx(0.375)
    assert STATISTICS["aeration spread"].of(maps) == pytest.approx(np.std([0.25, 0.25, 0.5, 0.5], ddof=1))
    assert STATISTICS["pixel spread"].of(maps) == pytest.approx(maps.std(), rel=1e-6)
    assert STATISTICS["share of pure tissue"].of(maps) == 0.5
    assert STATISTICS["share of pure air"].of(maps) == 0.25
    assert STATISTICS["air chord"].of(maps) == 3
    assert STATISTICS["tissue chord"].of(maps) == pytest.approx((4 * 6 + 4 * 3) / (4 + 4 * 2))


def test_statistics_of_constant_maps_are_none_rather_than_wrong() -> None:
    flat = np.full((5, 8, 8), 0.25, np.float32)
    found = statistics(flat, flat)
    assert found["lateral 1/e length"] == {
        "samples": None,
        "held_out": None,
        "relative_difference": None,
        "interval": None,
    }
    assert found["aeration mean"]["relative_difference"] == pytest.approx(0)
    assert found["air chord"]["samples"] is None


def test_histogram_distance_of_a_shift_is_the_shift() -> None:
    maps = stream(0, "uniform").uniform(0.1, 0.6, (20, 16, 16)).astype(np.float32)
    assert histogram_distance(maps, maps + np.float32(0.25)) == pytest.approx(0.25, abs=1e-3)
    assert histogram_distance(maps, maps) == 0


def test_bootstrap_interval_covers_the_truth() -> None:
    """95 % intervals of the relative difference of two equal sets hold 0 in 88-100 % of 100 repetitions."""
    inside = 0
    for k in range(100):
        a, b = (correlated(25, (4, 40), 3.0, 2, 10 + 2 * k + i) for i in range(2))
        low, high = statistics(a, b)["lateral 1/e length"]["interval"]
        inside += low <= 0 <= high
    assert 88 <= inside <= 100


# --- one comparison ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    maps = correlated(300, (12, 24), 4.0, 2, 99)
    return np.clip(maps + 0.1 * stream(0, "level").standard_normal((300, 1, 1)), 0, 1).astype(np.float32)


def test_fresh_maps_pass_and_defective_maps_do_not(real: np.ndarray) -> None:
    train, held_out, fresh = real[:150], real[150:220], real[220:]
    good = compare(fresh, train, held_out)
    assert all(f["kid"]["within"] for f in good["features"].values())
    assert all(f["kid"]["p"] > 0.01 for f in good["features"].values())
    assert all(abs(f["frechet"]["excess"]) < 5 * f["frechet"]["floor_spread"] for f in good["features"].values())
    blurred = (fresh + np.roll(fresh, 1, 2)) / 2
    assert not compare(blurred, train, held_out)["features"]["wavelet"]["kid"]["within"]
    shifted = compare(fresh * 0.8, train, held_out)
    for f in shifted["features"].values():
        assert not f["kid"]["within"] and f["kid"]["p"] < 0.01
        assert f["frechet"]["excess"] > 5 * f["frechet"]["floor_spread"]
        assert f["sliced_wasserstein"]["excess"] > 5 * f["sliced_wasserstein"]["floor_spread"]
    assert shifted["statistics"]["aeration mean"]["interval"][1] < -0.1


def test_comparison_is_a_table_of_finite_json(real: np.ndarray) -> None:
    import json

    found = compare(real[:40], real[40:140], real[140:200])
    again = compare(real[:40], real[40:140], real[140:200])
    assert json.dumps(found, allow_nan=False) == json.dumps(again, allow_nan=False)
    lines = table_lines(found)
    tables = "\n".join(lines).split("\n\n")
    assert len(tables) == 2
    for table in tables:
        assert len({row.count("|") for row in table.splitlines()}) == 1  # every row has every column


def test_sets_of_different_sizes_of_map_are_refused(real: np.ndarray) -> None:
    with pytest.raises(UsageError, match="12 x 20"):
        compare(real[:20, :, :20], real[20:60], real[60:])


def test_kid_of_maps_sees_what_the_features_see(real: np.ndarray) -> None:
    features = fit_features("pixels", real[:150])
    a, b = features(real[150:220]), features(real[220:])
    assert abs(kid(a, b).value) < 3 * kid(a, b).error
    moved = features(np.clip(real[220:] + 0.15, 0, 1))
    assert kid(a, moved).value > 3 * kid(a, moved).error
