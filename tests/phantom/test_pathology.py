"""Laws of the categories: exact balance, bases that meet every category, lesions that only take air away."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from lungwave.config import preset
from lungwave.phantom.pathology import CATEGORIES, category_of, draw_pathology
from lungwave.repro import stream
from lungwave.types import MM, UsageError

TINY = preset("tiny")


def test_categories_are_balanced_exactly() -> None:
    assert Counter(category_of(TINY, i) for i in range(300)) == dict.fromkeys(TINY.lung.categories, 100)
    skewed = TINY.override({"lung.weights": (2.0, 1.0, 0.5)})
    assert Counter(category_of(skewed, i) for i in range(70)) == {
        "healthy": 40,
        "interstitial": 20,
        "consolidation": 10,
    }
    assert [category_of(skewed, i) for i in range(7)] == [category_of(skewed, i) for i in range(7, 14)]


@pytest.mark.parametrize("bases", [3, 4, 5, 30])
def test_every_base_meets_every_category(bases: int) -> None:
    config = TINY.override({"lung.bases": bases})
    met = {base: {category_of(config, base + turn * bases) for turn in range(3)} for base in range(bases)}
    assert all(len(found) == 3 for found in met.values())
    assert set(Counter(category_of(config, i) for i in range(3 * bases)).values()) == {bases}


@pytest.mark.parametrize(
    "changes, names",
    [
        ({"lung.categories": ("healthy", "emphysema"), "lung.weights": (1.0, 1.0)}, "emphysema"),
        ({"lung.weights": (1.0, 1.0)}, "3 names"),
        ({"lung.weights": (0.0, 0.0, 0.0)}, "positive sum"),
    ],
)
def test_wrong_mixtures_are_named(changes: dict, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        category_of(TINY.override(changes), 0)


@pytest.mark.parametrize("category", CATEGORIES)
def test_probability_is_a_probability_and_rises_with_depth(category: str) -> None:
    depth = np.repeat(np.linspace(0.05 * MM, 6 * MM, 40), 30)
    x = np.tile(np.linspace(-3 * MM, 3 * MM, 30), 40)
    top, deep = [], []
    for index in range(30):
        p = draw_pathology(TINY, stream(0, category, index), category, 0.0).probability(depth, x)
        assert p.min() >= 0 and p.max() <= 1
        top.append(p[depth < 0.3 * MM].mean())
        deep.append(p[depth > 5 * MM].mean())
    assert np.mean(deep) > np.mean(top)


def test_effusion_compresses_the_lung_below_it() -> None:
    depth, x = np.linspace(0.01 * MM, 6 * MM, 200), np.zeros(200)
    dry = draw_pathology(TINY, stream(0, "lung"), "healthy", 0.0).probability(depth, x)
    wet = draw_pathology(TINY, stream(0, "lung"), "healthy", 1.0 * MM).probability(depth, x)
    near = depth < 2.5 * MM
    np.testing.assert_allclose(wet[near], 0.5 * dry[near])
    np.testing.assert_allclose(wet[~near], dry[~near])


def test_lesions_reach_the_pleura() -> None:
    for index in range(40):
        edema = draw_pathology(TINY, stream(1, "lung", index), "interstitial", 0.0)
        assert 1 <= len(edema.wedges) <= 5
        for wedge in edema.wedges:
            assert wedge.covers(np.array([1e-6]), np.array([wedge.x])).all()
            assert not wedge.covers(np.array([wedge.depth * 1.01]), np.array([wedge.x])).any()
        solid = draw_pathology(TINY, stream(1, "lung", index), "consolidation", 0.0)
        assert solid.consolidation is not None
        center = np.array([solid.consolidation.x])
        assert solid.probability(np.array([1e-6]), center)[0] <= 0.25
