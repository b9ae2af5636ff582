"""Laws of augmentation: what is told, what stays, what is never done."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from lungwave.config import preset
from lungwave.data.augment import GAIN, LABELS, SHIFT, Augment
from lungwave.data.drawn import draw_map
from lungwave.types import UsageError

NOTHING = Augment(probability=0.0, flip=False)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def maps() -> torch.Tensor:
    """Random fractions with pure tissue and pure air among them."""
    found = torch.rand(64, 1, 6, 40, generator=generator(9))
    found[:, :, :2] = found[:, :, :2].round()
    return found


def columns(maps: torch.Tensor) -> list[set[bytes]]:
    """The columns of each map, as a set."""
    return [{one[..., i].numpy().tobytes() for i in range(one.shape[-1])} for one in maps]


def test_label_zero_is_an_untouched_map(maps: torch.Tensor) -> None:
    out, labels = Augment(probability=0.5, flip=False)(maps, generator())
    still = (labels == 0).all(1)
    assert 5 < int(still.sum()) < 60, "both kinds must occur"
    assert torch.equal(out[still], maps[still])
    assert all(not torch.equal(a, b) for a, b in zip(out[~still], maps[~still], strict=True)), "a touched map is told"
    out, labels = NOTHING(maps, generator())
    assert torch.equal(out, maps)
    assert labels.shape == (64, LABELS)
    assert not labels.any()


def test_the_input_is_left_alone_and_a_generator_decides_everything(maps: torch.Tensor) -> None:
    before = maps.clone()
    first, second = (Augment(probability=0.7)(maps, generator(4)) for _ in range(2))
    assert torch.equal(maps, before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], Augment(probability=0.7)(maps, generator(5))[0])


def test_a_batch_cut_in_two_gives_the_same_maps(maps: torch.Tensor) -> None:
    augment, source = Augment(probability=0.6), generator(4)
    parts = [augment(part, source) for part in (maps[:24], maps[24:25], maps[25:])]
    whole, labels = augment(maps, generator(4))
    assert torch.equal(torch.cat([part[0] for part in parts]), whole)
    assert torch.equal(torch.cat([part[1] for part in parts]), labels)


def test_a_flip_is_lateral_happens_to_half_and_twice_is_identity(maps: torch.Tensor) -> None:
    augment = Augment(probability=0.0)
    out, labels = augment(maps, generator())
    flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(out, maps, strict=True)])
    same = torch.tensor([torch.equal(a, b) for a, b in zip(out, maps, strict=True)])
    assert bool((flipped ^ same).all()), "flipped in x or untouched, nothing else"
    assert abs(int(flipped.sum()) - 32) < 3 * 4, "binomial, 3 standard deviations"
    assert not labels.any()
    assert torch.equal(augment(out, generator())[0], maps)


def test_depth_is_never_reversed_or_moved() -> None:
    """A map that only depends on depth stays what it is under every flip and shift."""
    depth = torch.linspace(0, 1, 7)[None, None, :, None].expand(200, 1, 7, 16).contiguous()
    out, labels = Augment(probability=1.0, gain=0.0)(depth, generator())
    assert labels[:, SHIFT].any()
    assert torch.equal(out, depth)


def test_a_shift_moves_whole_columns_by_what_its_label_says(maps: torch.Tensor) -> None:
    out, labels = Augment(probability=1.0, flip=False, gain=0.0)(maps, generator())
    steps = (labels[:, SHIFT] * 5).round().long()  # an eighth of 40
    assert set(steps.tolist()) == set(range(-5, 6)), "every whole step up to an eighth, both ways"
    assert not labels[:, GAIN].any()
    for moved, original, step in zip(out, maps, steps.tolist(), strict=True):
        kept = slice(step, None) if step >= 0 else slice(None, step)
        from_where = slice(None, 40 - step) if step >= 0 else slice(-step, None)
        assert torch.equal(moved[..., kept], original[..., from_where])
        if step > 0:  # mirrored about the outermost column, without repeating it
            assert torch.equal(moved[..., :step], original[..., 1 : step + 1].flip(-1))


def test_a_shift_invents_no_column_and_opens_no_seam(maps: torch.Tensor) -> None:
    smooth = torch.cumsum(maps, -1) / 40  # neighbours differ by 1/40 at most
    out, _ = Augment(probability=1.0, gain=0.0, shift=0.5)(smooth, generator())
    assert all(new <= old for new, old in zip(columns(out), columns(smooth), strict=True))
    assert float(out.diff(dim=-1).abs().max()) <= 1 / 40 + 1e-6, "wrapping around would jump by about 1/2"


def test_gain_keeps_tissue_air_order_and_range(maps: torch.Tensor) -> None:
    out, labels = Augment(probability=1.0, flip=False, shift=0.0)(maps, generator())
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(out[maps == 0], maps[maps == 0])
    assert torch.equal(out[maps == 1], maps[maps == 1])
    mean = (out - maps).mean((1, 2, 3))
    assert torch.equal(mean < 0, labels[:, GAIN] > 0), "a positive label empties the lung, a negative one fills it"
    half = torch.full((200, 1, 1, 4), 0.5)
    out, labels = Augment(probability=1.0, gain=0.5)(half, generator())
    told = 0.5 ** torch.exp2(0.5 * labels[:, GAIN].double())
    assert torch.allclose(out[:, 0, 0, 0].double(), told, atol=1e-6), "the label says the exponent"
    assert labels[:, GAIN].abs().max() <= 1


@pytest.fixture(scope="module")
def lungs() -> torch.Tensor:
    """Drawn lungs of every category."""
    config = preset("micro").override({"seed": 5, "map.rows": 32})
    return torch.from_numpy(np.stack([draw_map(config, i, "resolved").values for i in range(60)])[:, None])


def test_flip_and_shift_keep_the_distribution_of_aeration(lungs: torch.Tensor) -> None:
    """The same mean aeration, map by map for a flip, in distribution for a shift."""
    means = lungs.mean((1, 2, 3))
    flipped = Augment(probability=0.0)(lungs, generator())[0].mean((1, 2, 3))
    assert torch.allclose(flipped, means, atol=1e-6)
    shifted = Augment(probability=1.0, gain=0.0)(lungs, generator())[0].mean((1, 2, 3))
    error = float((shifted - means).std()) / math.sqrt(len(lungs))
    assert abs(float((shifted - means).mean())) < 3 * error
    assert abs(float(shifted.std() / means.std()) - 1) < 0.05


def test_a_lung_and_its_mirror_image_are_equally_likely(lungs: torch.Tensor) -> None:
    """What lets the flip go without a label: no statistic of the phantom knows left from right."""
    left, right = lungs[..., :32], lungs[..., 32:]
    leaning = (lungs[:, :, 1:, 1:] * lungs[:, :, :-1, :-1] - lungs[:, :, 1:, :-1] * lungs[:, :, :-1, 1:]).mean(
        (1, 2, 3)
    )
    for statistic in (
        left.mean((1, 2, 3)) - right.mean((1, 2, 3)),
        left.diff(dim=-1).abs().mean((1, 2, 3)) - right.diff(dim=-1).abs().mean((1, 2, 3)),
        leaning,  # do septa lean to one side?
    ):
        assert abs(float(statistic.mean())) < 3 * float(statistic.std()) / math.sqrt(len(lungs))


def test_narrow_and_empty_batches() -> None:
    for shape in ((3, 1, 4, 1), (3, 2, 1, 2), (0, 1, 4, 4)):
        out, labels = Augment(probability=1.0)(torch.rand(shape, generator=generator()), generator())
        assert out.shape == shape
        assert labels.shape == (shape[0], LABELS)


@pytest.mark.parametrize("options", [{"probability": 1.2}, {"shift": -0.1}, {"shift": 0.6}, {"gain": float("nan")}])
def test_settings_out_of_range_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"augmentation {next(iter(options))} .* must lie between"):
        Augment(**options)


@pytest.mark.parametrize("value", [-0.5, 1.01, float("nan")])
def test_network_units_are_refused(value: float) -> None:
    maps = torch.full((2, 1, 4, 4), 0.5)
    maps[1, 0, 2, 2] = value
    with pytest.raises(UsageError, match="before scaling"):
        Augment()(maps, generator())
