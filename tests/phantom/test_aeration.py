"""Laws of the truth: brute force agrees, edges are unbiased, invalid columns never become numbers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lungwave.config import preset
from lungwave.phantom.aeration import Strip, _weighted, flatten, map_columns, measure, seed_view, truth, truth_spacing
from lungwave.phantom.anatomy import draw
from lungwave.types import MM, UM, UsageError

TINY = preset("tiny")
SPACING = truth_spacing(TINY)


def test_truth_equals_brute_force() -> None:
    anatomy = draw(TINY, 1)
    found = truth(anatomy, TINY.map, SPACING)
    strip = flatten(anatomy, TINY.map, SPACING)
    rng = np.random.default_rng(0)
    for row, column in zip(rng.integers(0, 64, 40), rng.integers(0, 64, 40), strict=True):
        for name, sigma in (("sharp", TINY.map.sigma_sharp), ("smooth", TINY.map.sigma_smooth)):
            dz, dx = strip.depth - (row + 0.5) * 0.1 * MM, strip.x - (column - 31.5) * 0.1 * MM
            weight = np.exp(-(dz[:, None] ** 2 + dx[None, :] ** 2) / (2 * sigma**2))
            weight[(np.abs(dz) > 3 * sigma)[:, None] | (np.abs(dx) > 3 * sigma)[None, :]] = 0
            assert getattr(found, name)[row, column] == pytest.approx(
                (weight * strip.air).sum() / weight.sum(), abs=2e-5
            )
    core = np.abs(strip.x) < 3.2 * MM
    for k, (top, bottom) in enumerate(zip(TINY.map.bands, TINY.map.bands[1:], strict=False)):
        rows = (strip.depth >= top) & (strip.depth < bottom)
        assert found.bands[k] == pytest.approx(strip.air[rows][:, core].mean(), abs=1e-12)
    six = strip.depth < 6 * MM
    assert found.whole == pytest.approx(strip.air[six][:, core].mean(), abs=1e-12)
    third = (strip.x >= -3.0 * MM) & (strip.x < -2.9 * MM)
    assert found.profile[2] == pytest.approx(strip.air[six][:, third].mean(), abs=1e-12)


def test_map_has_the_same_bits_in_any_order_of_summation() -> None:
    strip = flatten(draw(TINY, 1), TINY.map, SPACING)
    found = measure(strip, TINY.map, np.zeros(64))
    turned = Strip(strip.air[::-1, ::-1], strip.lung[::-1, ::-1], strip.depth[::-1], strip.x[::-1], strip.valid[::-1])
    narrow = replace(TINY.map, rows=1)
    depth = np.array([0.05 * MM, 1 * MM])
    one, two = (_weighted(part, depth, found.x, 0.5 * MM) for part in (strip, turned))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(measure(strip, narrow, np.zeros(64)).smooth, found.smooth[:1])


def test_truth_follows_the_geometry_and_no_grid() -> None:
    for index in range(3):
        anatomy = draw(TINY, index)
        coarse, fine = (truth(anatomy, TINY.map, spacing) for spacing in (SPACING, SPACING / 4))
        assert np.abs(coarse.smooth - fine.smooth).max() < 0.02
        assert np.abs(coarse.sharp - fine.sharp).mean() < 0.01
        assert coarse.whole == pytest.approx(fine.whole, abs=2e-3)
        np.testing.assert_array_equal(coarse.pleura_depth, anatomy.wall.surface(map_columns(TINY.map)))
        coarser_solver = TINY.override({"grid.spacing": 100 * UM})
        np.testing.assert_array_equal(truth(draw(coarser_solver, index), TINY.map, SPACING).sharp, coarse.sharp)


def _strip(air: np.ndarray | float, valid: np.ndarray | None = None) -> Strip:
    empty = flatten(draw(TINY, 0), TINY.map, SPACING)
    valid = np.ones(len(empty.x), bool) if valid is None else valid
    air = np.broadcast_to(np.asarray(air, bool), empty.air.shape)
    return Strip(air, np.broadcast_to(valid, empty.air.shape), empty.depth, empty.x, valid)


@pytest.mark.parametrize("air", [False, True])
def test_uniform_lung_gives_a_constant_map_up_to_every_edge(air: bool) -> None:
    strip = _strip(air)
    hidden = np.abs(strip.x - 1 * MM) > 0.6 * MM
    for valid in (None, hidden):
        found = measure(_strip(air, valid), TINY.map, np.zeros(64))
        for aeration in (found.sharp, found.smooth):
            np.testing.assert_allclose(aeration[found.lung], float(air), atol=1e-6)
        assert found.whole == float(air) and set(found.bands) == {float(air)}


def test_regular_foam_has_its_own_share_at_every_edge() -> None:
    """Air in every second column: half aeration everywhere, with no dark or bright rim."""
    strip = _strip(False)
    found = measure(_strip(np.arange(strip.air.shape[1]) % 2 == 0), TINY.map, np.zeros(64))
    np.testing.assert_allclose(found.smooth, 0.5, atol=2e-3)
    np.testing.assert_allclose(found.sharp, 0.5, atol=2e-2)


def test_bands_profile_and_whole_agree() -> None:
    for name in ("micro", "tiny"):
        config = preset(name)
        for index in range(3):
            found = truth(draw(config, index), config.map, truth_spacing(config))
            thickness = np.diff(found.band_edges)
            assert found.whole == pytest.approx(float((found.bands * thickness).sum() / thickness.sum()), abs=1e-9)
            assert found.whole == pytest.approx(float(found.profile.mean()), abs=1e-9)


def test_rib_shadow_is_invalid_with_its_margin_and_leaves_the_rest_alone() -> None:
    config = TINY.override({"lung.rib_probability": 1.0})
    seen = 0
    for index in range(8):
        anatomy = draw(config, index)
        rib = anatomy.wall.rib
        assert rib is not None
        found = truth(anatomy, config.map, SPACING)
        clear = truth(replace(anatomy, wall=replace(anatomy.wall, rib=None)), config.map, SPACING)
        shadow = np.abs(found.x - rib.x) - rib.half_width
        assert not found.valid[shadow < 0.5 * MM].any()
        assert found.valid[shadow > 0.61 * MM].all()
        assert np.isnan(found.sharp[:, ~found.valid]).all() and np.isnan(found.profile[~found.valid]).all()
        assert not found.lung[:, ~found.valid].any()
        np.testing.assert_array_equal(found.profile[found.valid], clear.profile[found.valid])
        assert found.whole == pytest.approx(float(np.mean(clear.profile[found.valid])), abs=1e-9)
        seen += int((~found.valid).sum())
    assert seen > 50


def test_pneumothorax_is_never_a_number() -> None:
    config = TINY.override({"lung.pneumothorax_probability": 1.0})
    for index in range(4):
        anatomy = draw(config, index)
        assert anatomy.wall.pneumothorax is not None
        found = truth(anatomy, config.map, SPACING)
        covered = anatomy.wall.pneumothorax(found.x) > 0
        assert covered.any() and not found.valid[covered].any()
        assert np.isnan(found.smooth[:, covered]).all()
        nowhere = replace(anatomy.wall, pneumothorax=replace(anatomy.wall.pneumothorax, edge=-9 * MM, side=1))
        lost = truth(replace(anatomy, wall=nowhere), config.map, SPACING)
        assert not lost.valid.any() and np.isnan(lost.whole) and np.isnan(lost.bands).all()


def test_categories_have_the_published_aeration() -> None:
    """Ranges of the phantom's plan, 0-6 mm: healthy 0.65-0.80, interstitial 0.25-0.65, consolidation 0.15-0.60."""
    config = TINY.override(
        {
            "lung.categories": ("healthy", "interstitial", "consolidation", "fibrosis"),
            "lung.weights": (1.0, 1.0, 1.0, 1.0),
        }
    )
    whole: dict[str, list[float]] = {}
    top: dict[str, list[float]] = {}
    for index in range(100):
        anatomy = draw(config, index)
        found = truth(anatomy, config.map, 50 * UM)
        whole.setdefault(anatomy.category, []).append(found.whole)
        top.setdefault(anatomy.category, []).append(float(found.bands[0]))
    mean = {category: np.mean(values) for category, values in whole.items()}
    assert 0.67 < mean["healthy"] < 0.75
    assert 0.37 < mean["interstitial"] < 0.49
    assert 0.34 < mean["consolidation"] < 0.49
    assert 0.40 < mean["fibrosis"] < 0.70
    assert np.mean(top["healthy"]) > np.mean(top["interstitial"]) > np.mean(top["consolidation"])
    assert np.std(whole["healthy"]) < 0.07 < np.std(whole["consolidation"])


def test_seed_view_is_the_top_of_a_wide_map() -> None:
    wide = np.random.default_rng(0).uniform(size=(64, 260))
    view = seed_view(wide)
    np.testing.assert_allclose(view, wide[:8, 2:258])
    fine = np.repeat(np.repeat(wide, 4, 0), 4, 1)
    np.testing.assert_allclose(seed_view(fine, 25 * UM), view)


@pytest.mark.parametrize(
    "shape, pixel, names",
    [((64, 64), 0.1 * MM, "25.6 mm"), ((7, 256), 0.1 * MM, "0.7 x"), ((64, 999), 0.03 * MM, "0.03")],
)
def test_seed_view_refuses_what_it_cannot_show(shape: tuple[int, int], pixel: float, names: str) -> None:
    with pytest.raises(UsageError, match=names):
        seed_view(np.zeros(shape), pixel)


def test_paper_truth_fills_the_seed_view() -> None:
    paper = preset("paper")
    found = truth(draw(paper, 0), paper.map, 2 * truth_spacing(paper))
    view = seed_view(found.sharp, found.pixel)
    assert view.shape == (8, 256) and np.isfinite(view).all()
