"""Known overlaps: equal sets, a shifted one, a narrow one, copies; and numbers that have a closed form."""

from __future__ import annotations

import numpy as np
import pytest

from lungwave.evaluate.manifold import diversity, ms_ssim, overlap, radii, squared_distances, vendi
from lungwave.evaluate.similarity import ssim
from lungwave.types import UsageError

RNG = np.random.default_rng(0)
REAL, SAME = RNG.normal(size=(600, 4)), RNG.normal(size=(600, 4))


def test_distances_and_radii_are_those_of_brute_force() -> None:
    a, b = RNG.normal(size=(9, 3)), RNG.normal(size=(7, 3))
    np.testing.assert_allclose(squared_distances(a, b), np.square(a[:, None] - b[None]).sum(2), atol=1e-12)
    brute = np.sort(np.square(a[:, None] - a[None]).sum(2), axis=1)[:, 2]
    np.testing.assert_allclose(radii(a, 2), brute, atol=1e-12)


def test_equal_sets_overlap_a_shifted_one_does_not_and_a_narrow_one_recalls_little() -> None:
    same = overlap(SAME, REAL)
    assert same.precision > 0.9 and same.recall > 0.9 and same.coverage > 0.9
    assert same.density == pytest.approx(1, abs=0.1)
    far = overlap(SAME + 20, REAL)
    assert (far.precision, far.recall, far.density, far.coverage) == (0, 0, 0, 0)
    narrow = overlap(0.3 * SAME, REAL)
    assert narrow.precision > 0.97 and narrow.recall < 0.3 and narrow.density > 1.1
    half = overlap(np.where(np.arange(600)[:, None] < 300, SAME, SAME + 20), REAL)
    assert half.precision == pytest.approx(0.5 * same.precision, abs=0.03)


def test_precision_does_not_notice_an_outlier_that_density_does() -> None:
    """Naeem et al., figure 3: one real map far out has a wide reach, and every sample near it counts as real."""
    outlier = np.concatenate([REAL, [[12.0, 0, 0, 0]]])
    between = 0.1 * SAME + np.array([6.0, 0, 0, 0])
    found = overlap(between, outlier)
    assert found.precision > 0.9 and found.density < 0.4


def test_vendi_counts_different_maps() -> None:
    assert vendi(np.ones((50, 8))) == pytest.approx(1)
    assert vendi(np.eye(20)) == pytest.approx(20)
    assert vendi(np.repeat(np.eye(5), 10, axis=0)) == pytest.approx(5)
    with pytest.raises(UsageError, match="zero vector"):
        vendi(np.zeros((3, 2)))


def test_similarity_over_scales() -> None:
    maps = RNG.uniform(size=(40, 32, 32))
    np.testing.assert_allclose(ms_ssim(maps, maps), 1)
    small = RNG.uniform(size=(5, 8, 8))  # room for one scale
    np.testing.assert_allclose(ms_ssim(small, small[::-1]), np.maximum(ssim(small, small[::-1]), 0))
    assert diversity(np.repeat(maps[:1], 10, 0)) == pytest.approx(1)
    assert diversity(maps) < 0.3
    assert 0 <= diversity(RNG.uniform(size=(6, 3, 20))) < 1
    with pytest.raises(UsageError, match="1 map has no other"):
        diversity(maps[:1])


def test_too_few_maps_are_refused() -> None:
    with pytest.raises(UsageError, match="4 maps have no 5-th neighbour"):
        overlap(REAL[:4], REAL)
    with pytest.raises(UsageError, match="both must be"):
        overlap(REAL[:, :2], REAL)
