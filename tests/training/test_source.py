"""What a training sees is a function of the seed and the image's number, and of nothing else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lungwave.data.mapset import NO_LABEL, MapSet
from lungwave.models.precond import Scaling
from lungwave.training.source import Draws, MapSource, rows_of
from training.tiny import maps, source, tiny


@given(count=st.integers(1, 40), first=st.integers(0, 200), seed=st.integers(0, 5))
def test_every_epoch_shows_every_map_once(count: int, first: int, seed: int) -> None:
    epochs = rows_of(np.arange(3 * count), count, seed).reshape(3, count)
    assert all(sorted(epoch) == list(range(count)) for epoch in epochs.tolist())
    window = np.arange(first, first + 7)  # across the border of an epoch where it lies there
    assert rows_of(window, count, seed).tolist() == [int(rows_of(window[i : i + 1], count, seed)[0]) for i in range(7)]


def test_epochs_and_seeds_differ() -> None:
    first, second = rows_of(np.arange(80), 40, 0).reshape(2, 40).tolist()
    assert first != second
    assert rows_of(np.arange(40), 40, 1).tolist() != first


def test_an_image_is_the_same_in_any_batch() -> None:
    run = tiny()
    whole = run.batch(np.arange(5, 17))
    parts = [run.batch(np.arange(5, 9)), run.batch(np.arange(9, 17))]
    assert torch.equal(whole.clean, torch.cat([part.clean for part in parts]))
    assert torch.equal(whole.cond.vector, torch.cat([part.cond.vector for part in parts]))
    assert torch.equal(whole.normal("noise"), torch.cat([part.normal("noise") for part in parts]))
    assert torch.equal(whole.uniform("sigma"), torch.cat([part.uniform("sigma") for part in parts]))


def test_draws_are_standard_and_independent() -> None:
    draws = Draws(3, np.arange(4000))
    noise, sigma = draws.normal("noise", (2, 3)).double(), draws.uniform("sigma").double()
    assert abs(noise.mean()) < 4 / np.sqrt(noise.numel())
    assert abs(noise.var() - 1) < 4 * np.sqrt(2 / noise.numel())
    assert sigma.min() > 0
    assert sigma.max() < 1
    assert abs(sigma.mean() - 0.5) < 4 / np.sqrt(12 * 4000)
    together = torch.cat([noise.flatten(1), sigma[:, None], draws.uniform("other").double()[:, None]], 1)
    correlation = torch.corrcoef(together.T) - torch.eye(8)
    assert correlation.abs().max() < 5 / np.sqrt(4000)


def test_maps_are_scaled_to_deviation_one_half() -> None:
    plain = replace(source(), augment=None)
    clean, cond = plain.images(np.arange(len(plain)), None)
    assert cond is None
    assert float(clean.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(clean.std(unbiased=False)) == pytest.approx(0.5, rel=1e-5)
    torch.testing.assert_close(plain.scaling.to_data(clean), torch.from_numpy(plain.maps.fraction()))


def test_some_labels_are_withheld_and_none_when_checked() -> None:
    values = maps(50).maps
    classed = MapSet.of(values, labels=["healthy", "fibrosis"] * 25)
    kept = MapSource(classed, Scaling(), classes=True, drop=0.3)
    rows = np.arange(50)
    assert kept.images(rows, None)[1].label.tolist() == classed.labels.tolist()
    labels = np.concatenate([kept.images(rows, Draws(0, rows + 50 * i))[1].label.numpy() for i in range(20)])
    share = (labels == NO_LABEL).mean()
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 1000)
    assert (labels[labels != NO_LABEL] == np.tile(classed.labels, 20)[labels != NO_LABEL]).all()
