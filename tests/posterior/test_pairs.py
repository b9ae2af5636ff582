"""Pairs as a training sees them: the same in any batch, mirrored as a whole, never twice alike."""

import numpy as np
import pytest
import torch

from lungwave.models.precond import Scaling
from lungwave.posterior.conditioning import Conditioner
from lungwave.posterior.pairs import Disturbance, Pairs, PairSource, fit_pleura, fit_scales, mirrored
from lungwave.training.source import Draws
from lungwave.types import UsageError

CLEAN = Disturbance((60.0, 60.0), flip=False, dead=0, missing=0, jitter=0, far=0, speeds=(1.0,), drop=0)


@pytest.fixture(scope="module")
def parts(micro_cases):
    """Pairs with a detector and scales."""
    pairs = Pairs.read(micro_cases, quiet=True)
    detector = fit_pleura(pairs, (20.0, 40.0), 0)
    return pairs, detector, fit_scales(pairs, Conditioner(pairs.config, pairs.scan, detector), (20.0, 40.0), 0)


def source(parts, disturbance: Disturbance) -> PairSource:
    pairs, detector, scales = parts
    return PairSource(pairs, Scaling(0.5, 0.25), scales, detector, disturbance, seed=3)


def test_a_pair_is_the_same_in_any_batch_and_another_the_next_time(parts) -> None:
    """All that happens to a pair follows from the number of the training image."""
    made = source(parts, Disturbance())
    rows, positions = np.array([4, 9, 4, 30]), np.array([10, 11, 12, 13])
    clean, cond = made.images(rows, Draws(1, positions))
    for k in range(4):
        one, alone = made.images(rows[k : k + 1], Draws(1, positions[k : k + 1]))
        torch.testing.assert_close(one[0], clean[k])
        for name in ("image", "vector", "traces"):
            torch.testing.assert_close(getattr(alone, name)[0], getattr(cond, name)[k], rtol=1e-4, atol=1e-4)
    assert not torch.equal(cond.traces[0], cond.traces[2])


def test_without_draws_a_case_is_always_the_same(parts) -> None:
    """What a check of the loss sees must not change between checks."""
    made = source(parts, Disturbance())
    first, second = made.images(np.array([3, 5]), None), made.images(np.array([5]), None)
    torch.testing.assert_close(first[1].image[1:], second[1].image)
    assert float(first[1].vector[:, 0].min()) == 1


def test_the_mirror_image_of_a_frame_belongs_to_the_mirror_image_of_its_map(parts) -> None:
    """Array and transmits of the preset are their own mirror image, so a flipped pair is a pair."""
    pairs = parts[0]
    assert mirrored(pairs.scan)
    always = source(parts, CLEAN)
    rows = np.array([7, 8])
    flipped = PairSource(
        Pairs(pairs.rf[:, ::-1, :, ::-1].copy(), pairs.cases, pairs.config),
        always.scaling,
        always.scales,
        parts[1],
        CLEAN,
    )
    _, straight = always.images(rows, Draws(1, np.array([0, 1])))
    _, other = flipped.images(rows, Draws(1, np.array([0, 1])))
    seven = always.conditioners[0].image_names.index("log energy")
    a, b = straight.image[:, seven].flatten(), other.image[:, seven].flip(2).flatten()
    assert float(torch.corrcoef(torch.stack([a, b]))[0, 1]) > 0.97
    turned = source(parts, Disturbance((60.0, 60.0), True, 0, 0, 0, 0, 0, 0, (1.0,), 0))
    clean, _ = turned.images(np.full(40, 7), Draws(1, np.arange(40)))
    plain = clean[0, 0] if bool((clean[0] == always.images(rows[:1], None)[0][0]).all()) else clean[0, 0].flip(1)
    same = [bool(torch.equal(one[0], plain)) for one in clean]
    mirror = [bool(torch.equal(one[0].flip(1), plain)) for one in clean]
    assert all(a or b for a, b in zip(same, mirror, strict=True)) and 8 < sum(same) < 32


def test_a_tenth_of_the_conditions_is_withheld_whole(parts) -> None:
    """Images and numbers are zero there; the first number says so."""
    _, cond = source(parts, Disturbance(drop=0.5)).images(np.arange(40), Draws(2, np.arange(40)))
    known = cond.vector[:, 0] == 1
    assert 10 < int(known.sum()) < 30
    assert (
        not cond.image[~known].any()
        and not cond.vector[~known].any()
        and cond.image[known].abs().amax((1, 2, 3)).min() > 0
    )


def test_splits_and_hashes_follow_the_cases(parts) -> None:
    """Another order is another set."""
    pairs = parts[0]
    half = pairs.take(np.arange(len(pairs)) % 2 == 0)
    assert len(half) == len(pairs) // 2 and half.digest != pairs.digest
    np.testing.assert_array_equal(half.cases.index, pairs.cases.index[::2])
    assert pairs.aeration.shape == (len(pairs), len(pairs.cases.band_edges))


def test_disturbances_that_cannot_be_are_refused() -> None:
    """Chances lie between 0 and 1, and the stated speed is one of those believed."""
    with pytest.raises(UsageError, match=r"dead 1\.5 is a chance"):
        Disturbance(dead=1.5)
    with pytest.raises(UsageError, match=r"must hold 1\.0"):
        Disturbance(speeds=(0.98, 1.02))
