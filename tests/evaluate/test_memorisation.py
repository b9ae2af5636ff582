"""Copies are found, whatever was done to them; maps that are merely new are not accused."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter1d

from lungwave.evaluate.memorisation import memorisation, nearest
from lungwave.repro import stream
from lungwave.types import UsageError


def lungs(count: int, index: int, size: tuple[int, int] = (8, 32)) -> np.ndarray:
    """Smooth maps of different mean."""
    generator = stream(5, "lungs", index)
    noise = gaussian_filter1d(generator.standard_normal((count, *size)), 2.0, axis=2)
    level = generator.uniform(-0.8, 0.8, (count, 1, 1))
    return (0.5 + 0.4 * np.tanh(2 * noise + level)).astype(np.float32)


TRAIN, HELD_OUT = lungs(300, 0), lungs(400, 1)


def test_nearest_is_the_brute_force_minimum() -> None:
    queries, train = lungs(7, 2), TRAIN[:20]
    found = nearest(queries, train, shifts=2)
    for k, query in enumerate(queries):
        options = {}
        for index, other in enumerate(train):
            for flip in (False, True):
                mirrored = other[:, ::-1] if flip else other
                for shift in range(-2, 3):
                    width = 32 - abs(shift)
                    a = query[:, max(shift, 0) : max(shift, 0) + width].astype(float)
                    b = mirrored[:, max(-shift, 0) : max(-shift, 0) + width]
                    options[index, flip, shift] = np.sqrt(np.square(a - b).mean())
        best = min(options, key=options.__getitem__)
        assert (found.index[k], found.flip[k], found.shift[k]) == best
        assert found.distance[k] == pytest.approx(options[best], rel=1e-9)
        second = min(value for (index, _, _), value in options.items() if index != best[0])
        assert found.second[k] == pytest.approx(second, rel=1e-9)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 3, -4])
def test_a_moved_copy_has_distance_zero_and_is_named(flip: bool, shift: int) -> None:
    wide = lungs(30, 3, (8, 48))
    train = wide[:, :, 8:40]
    moved = wide[:, :, 8 - shift : 40 - shift][:10]
    queries = moved if not flip else moved[:, :, ::-1]
    found = nearest(queries, train)
    np.testing.assert_allclose(found.distance, 0, atol=1e-12)
    np.testing.assert_array_equal(found.index, np.arange(10))
    assert (found.flip == flip).all()
    assert (np.abs(found.shift) == abs(shift)).all()


@pytest.mark.parametrize(
    "copies",
    [
        TRAIN[:100],
        TRAIN[:100, :, ::-1],
        np.clip(TRAIN[:100] + 0.01 * stream(0, "noise").standard_normal(TRAIN[:100].shape), 0, 1),
        gaussian_filter1d(TRAIN[:100], 0.7, axis=2),
    ],
    ids=["exact", "flipped", "noisy", "blurred"],
)
def test_a_generator_of_copies_is_flagged_wholly(copies: np.ndarray) -> None:
    found = memorisation(copies, TRAIN, HELD_OUT)
    assert found.said.share == 1.0
    assert found.said.p < 1e-9


def test_fresh_maps_are_flagged_as_often_as_expected() -> None:
    """Over 120 fresh sets, the mean share is the expected one and the test at 5 % rejects about 5 %."""
    found = [memorisation(lungs(100, 10 + k), TRAIN, lungs(199, 500 + k), shifts=0) for k in range(120)]
    assert found[0].said.expected == pytest.approx(0.01)
    assert np.mean([f.said.share for f in found]) == pytest.approx(0.01, abs=0.004)
    assert np.mean([f.said.p < 0.05 for f in found]) <= 0.09  # 5 % and two standard errors, but for the counts' steps


@pytest.mark.parametrize(("share", "power"), [(0.01, 0.05), (0.05, 0.85), (0.2, 1.0)])
def test_planted_copies_are_detected_with_known_power(share: float, power: float) -> None:
    """Copies among 300 samples, over 20 sets, test at 5 %: one in a hundred is hardly seen, one in twenty is."""
    found = []
    for k in range(20):
        samples = lungs(300, 2000 + k)
        count = round(share * 300)
        samples[:count] = TRAIN[k : k + count] + np.float32(0.002)
        found.append(memorisation(samples, TRAIN, HELD_OUT, shifts=0).said.p < 0.05)
    assert np.mean(found) >= power


def test_a_few_planted_copies_are_found_and_pointed_at() -> None:
    samples = lungs(300, 4)
    samples[:15] = TRAIN[20:35]
    found = memorisation(samples, TRAIN, HELD_OUT)
    assert found.suspects[:15].all()
    assert found.said.p < 0.01
    assert found.said.ratio >= 0.05 > found.said.held_out_ratio
    np.testing.assert_array_equal(found.samples.index[:15], np.arange(20, 35))


def test_order_does_not_matter() -> None:
    samples = lungs(60, 6)
    samples[:5] = TRAIN[:5]
    a = memorisation(samples, TRAIN, HELD_OUT).summary()
    b = memorisation(samples[::-1].copy(), TRAIN[::-1].copy(), HELD_OUT[::-1].copy()).summary()
    assert a == pytest.approx(b, rel=1e-9)


def test_small_held_out_sets_state_what_they_can_say() -> None:
    found = memorisation(TRAIN[:10], TRAIN, HELD_OUT[:9])
    assert found.said.expected == pytest.approx(1 / 10)
    assert found.said.share == 1.0


def test_unusable_input_is_refused() -> None:
    with pytest.raises(UsageError, match="8 x 20"):
        memorisation(TRAIN[:4, :, :20], TRAIN, HELD_OUT)
    with pytest.raises(UsageError, match="shifts"):
        memorisation(TRAIN[:4], TRAIN, HELD_OUT, shifts=-1)
    with pytest.raises(UsageError, match="at least 2"):
        nearest(TRAIN[:4], TRAIN[:1])
