"""The data-copying test has its size and its power, and features tell copies that pixels do not."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest, mannwhitneyu

from lungwave.evaluate.copying import cells_of, data_copying, nearest_two, suspected
from lungwave.repro import stream
from lungwave.types import UsageError


def vectors(count: int, index: int, d: int = 6) -> np.ndarray:
    """Two groups of different spread, so that distances differ between cells."""
    generator = stream(8, "vectors", index)
    far = generator.random(count) < 0.3
    return generator.standard_normal((count, d)) * np.where(far, 2.0, 0.5)[:, None] + 6 * far[:, None]


TRAIN = vectors(300, 0)


def test_one_cell_is_the_mann_whitney_test() -> None:
    ours, real = vectors(40, 1)[:, 0], vectors(55, 2)[:, 0]
    statistic, p = data_copying(ours, real, np.zeros(40, int), np.zeros(55, int))
    known = mannwhitneyu(ours, real, alternative="less", method="asymptotic", use_continuity=False)
    assert p == pytest.approx(known.pvalue, rel=1e-9)
    assert np.sign(statistic) == np.sign(known.statistic - 40 * 55 / 2)
    tied = [np.round(part) for part in (ours, real)]
    known = mannwhitneyu(*tied, alternative="less", method="asymptotic", use_continuity=False)
    assert data_copying(*tied, np.zeros(40, int), np.zeros(55, int))[1] == pytest.approx(known.pvalue, rel=1e-9)


def test_fresh_vectors_give_uniform_p() -> None:
    """Size over 200 repetitions, each with other held-out vectors."""
    p = [suspected(vectors(120, 10 + k), TRAIN, vectors(150, 500 + k)).copying_p for k in range(200)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert np.mean(np.array(p) < 0.05) <= 0.09


def test_blends_of_training_vectors_are_no_near_copies_and_yet_seen() -> None:
    """Means of two near training vectors: hardly one is nearer than the threshold, but all keep too near."""
    generator = stream(8, "blends")
    first = TRAIN[generator.permutation(300)[:120]]
    order = np.argsort(np.square(first[:, None] - TRAIN).sum(2), axis=1)
    found = suspected((first + TRAIN[order[:, 8]]) / 2, TRAIN, vectors(400, 3))
    assert found.copying < -5 and found.copying_p < 1e-6


@pytest.mark.parametrize(("share", "power"), [(0.05, 0.85), (0.2, 1.0)])
def test_planted_copies_are_found_among_features(share: float, power: float) -> None:
    found = []
    for k in range(20):
        samples = vectors(300, 2000 + k)
        count = round(share * 300)
        samples[:count] = TRAIN[k : k + count] + 1e-3
        said = suspected(samples, TRAIN, vectors(400, 3))
        found.append(said.p < 0.05)
        assert said.ratio >= share
    assert np.mean(found) >= power


def test_distances_are_those_of_brute_force_and_zero_for_copies() -> None:
    queries = np.concatenate([vectors(30, 4), TRAIN[:5]])
    found = nearest_two(queries, TRAIN)
    brute = np.sort(np.sqrt(np.square(queries[:, None] - TRAIN).mean(2)), axis=1)[:, :2]
    np.testing.assert_allclose(found, brute, rtol=1e-9, atol=1e-12)
    assert (found[30:, 0] == 0).all()
    with pytest.raises(UsageError, match="second nearest"):
        nearest_two(queries, TRAIN[:1])


def test_cells_separate_what_is_apart_and_do_not_depend_on_the_order() -> None:
    others = vectors(50, 5)
    (cell,) = cells_of(TRAIN, others)
    far = others.mean(1) > 3
    assert not set(cell[far]) & set(cell[~far])
    (again,) = cells_of(TRAIN[::-1].copy(), others)
    np.testing.assert_array_equal(cell, again)
    assert (cells_of(TRAIN[:30], others)[0] == 0).all()


def test_sets_without_a_common_cell_say_nothing() -> None:
    statistic, p = data_copying(np.zeros(3), np.ones(3), np.zeros(3, int), np.ones(3, int))
    assert np.isnan(statistic) and np.isnan(p)
