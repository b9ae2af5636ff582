"""Maps of the shipped prior without files: the same as `lungwave sample` draws, and the way between two."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lungwave.models.checkpoint import Model, load_model
from lungwave.prior.draw import draw_maps, morph
from lungwave.shipped import PRIOR, model_folder


@pytest.fixture(scope="module")
def prior() -> Model:
    return load_model(model_folder(Path("prior-tiny"), PRIOR))


def test_a_walk_has_two_drawn_lungs_as_its_ends(prior: Model) -> None:
    drawn = draw_maps(prior, 3, seed=2, steps=6)
    way = morph(prior, 0, 2, 7, seed=2, steps=6)
    assert way.shape == (7, *prior.size)
    assert way[0] == pytest.approx(drawn[0], abs=1e-4)
    assert way[-1] == pytest.approx(drawn[2], abs=1e-4)
    steps = np.abs(np.diff(way, axis=0)).mean((1, 2))
    assert steps.max() < 0.5 * np.abs(drawn[2] - drawn[0]).mean()  # a walk, not a jump


def test_lungs_do_not_depend_on_how_many_are_drawn(prior: Model) -> None:
    assert draw_maps(prior, 1, seed=2, first=2, steps=6)[0] == pytest.approx(
        draw_maps(prior, 3, seed=2, steps=6)[2], abs=1e-5
    )
