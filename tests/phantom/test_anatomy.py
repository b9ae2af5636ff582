"""Laws of an anatomy: a pure function of (config, index), the same chest on every grid, every draw physical."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from lungwave.config import Config, preset
from lungwave.phantom.aeration import truth, truth_spacing
from lungwave.phantom.alveoli import Columns
from lungwave.phantom.anatomy import AIR_REACH, BONE, Anatomy, draw, grid_of, materials, paint_air, rasterise
from lungwave.phantom.medium import Medium, max_sound_speed
from lungwave.types import MM, UM, UsageError

TINY = preset("tiny")
EVERYTHING = TINY.override(
    {
        "lung.categories": ("healthy", "interstitial", "consolidation", "fibrosis"),
        "lung.weights": (1.0, 1.0, 1.0, 1.0),
        "lung.rib_probability": 0.3,
        "lung.effusion_probability": 0.3,
        "lung.pneumothorax_probability": 0.3,
    }
)


def medium_of(config: Config, anatomy: Anatomy) -> Medium:
    return rasterise(anatomy, config.grid.spacing, config.grid.depth, config.grid.width)


def test_same_config_and_index_give_the_same_chest() -> None:
    later = [draw(EVERYTHING, i) for i in (9, 2, 5)]
    for index, again in zip((9, 2, 5), later, strict=True):
        anatomy = draw(EVERYTHING, index)
        assert anatomy.parameters == again.parameters
        one, two = medium_of(EVERYTHING, anatomy), medium_of(EVERYTHING, again)
        for name in ("sound_speed", "density", "attenuation", "air"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    assert not np.array_equal(medium_of(TINY, draw(TINY, 0)).air, medium_of(TINY, draw(TINY, 3)).air)
    assert not np.array_equal(medium_of(TINY, draw(TINY, 0)).air, medium_of(TINY, draw(replace(TINY, seed=1), 0)).air)


def test_cases_of_a_base_share_wall_and_alveoli_but_not_disease() -> None:
    config = TINY.override({"lung.bases": 5})
    one, two, other = draw(config, 1), draw(config, 6), draw(config, 2)
    assert one.base_id == two.base_id == 1 and other.base_id == 2
    assert one.category != two.category
    assert one.texture_seed == two.texture_seed != other.texture_seed
    np.testing.assert_array_equal(one.properties[:, :6], two.properties[:, :6])
    np.testing.assert_array_equal(one.wall.deep.phases, two.wall.deep.phases)
    common = np.isin(one.cells.x, two.cells.x).mean()  # all but those dropped or mirrored at the pleura
    assert common > 0.95 and np.isin(one.cells.x, other.cells.x).mean() < 0.01
    assert [draw(TINY, i).base_id for i in (0, 7)] == [0, 7]


@pytest.mark.parametrize("index", [0, 1, 2, 3])
def test_a_finer_grid_shows_the_same_anatomy(index: int) -> None:
    """Every second node of a grid twice as fine is a node of the coarse one: it reads the same tissue, and tissues that
    meet inside a cell are mixed such that mass and compliance of the wall stay what they are."""
    anatomy = draw(EVERYTHING, index)
    coarse = rasterise(anatomy, 50 * UM, 10 * MM, 181 * 50 * UM)
    fine = rasterise(anatomy, 25 * UM, 10 * MM, 361 * 25 * UM)
    tissue = coarse.air == 0
    assert (fine.sound_speed[::2, ::2] == coarse.sound_speed).mean() > 0.9
    assert not fine.air[::2, ::2][tissue].any()  # air nodes reach less far out of an airspace on a finer grid
    wall = slice(4, round(2.8 * MM / 50e-6))
    finer = slice(8, round(2.8 * MM / 25e-6))
    for name in ("density", "attenuation"):
        assert getattr(fine, name)[finer].mean() == pytest.approx(getattr(coarse, name)[wall].mean(), rel=1e-2)
    compliance = [(1 / (m.density * m.sound_speed**2))[rows].mean() for m, rows in ((fine, finer), (coarse, wall))]
    assert compliance[0] == pytest.approx(compliance[1], rel=4e-3)
    shares = []
    for spacing in (50 * UM, 25 * UM, 12.5 * UM):
        x = np.arange(-4.5 * MM, 4.5 * MM, spacing)
        where = Columns(x, np.zeros(len(x)), anatomy.wall.surface(x), spacing, round(11 * MM / spacing))
        shares.append(paint_air(anatomy, where, 0.0).mean())
    assert shares[0] == pytest.approx(shares[2], abs=4e-3) and shares[1] == pytest.approx(shares[2], abs=2e-3)


def test_windows_of_a_walking_aperture_show_one_chest() -> None:
    paper = preset("paper")
    anatomy = draw(paper, 1)
    step = 64 * paper.grid.spacing
    center, right = (rasterise(anatomy, paper.grid.spacing, 20 * MM, 5 * MM, x) for x in (0.0, step))
    assert right.x[0] == pytest.approx(center.x[64])
    for name in ("sound_speed", "density", "air"):
        assert (getattr(right, name)[:, :-64] == getattr(center, name)[:, 64:]).mean() > 0.999
    edge = (paper.probe.array_elements - paper.probe.elements) * paper.probe.pitch / 2
    rasterise(anatomy, 0.2 * MM, paper.grid.depth, paper.grid.width, edge)


def test_no_air_above_the_lung_surface() -> None:
    for index in range(12):
        anatomy = draw(TINY, index)
        medium = medium_of(TINY, anatomy)
        above = medium.z[:, None] < anatomy.wall.surface(medium.x) - AIR_REACH * medium.spacing
        assert not medium.air[above].any()
        assert medium.air[~above].any()


def test_pneumothorax_is_air_right_under_the_parietal_pleura() -> None:
    config = TINY.override({"lung.pneumothorax_probability": 1.0})
    for index in range(4):
        anatomy = draw(config, index)
        assert anatomy.wall.pneumothorax is not None
        medium = medium_of(config, anatomy)
        faces = anatomy.wall.interfaces(medium.x)
        gap = anatomy.wall.pneumothorax(medium.x)
        open_columns = np.flatnonzero(gap > 4 * medium.spacing)
        for j in open_columns:
            inside = (medium.z > faces[3, j]) & (medium.z < faces[3, j] + gap[j])
            assert medium.air[inside, j].all()
        above = medium.z[:, None] < faces[3] - AIR_REACH * medium.spacing
        assert not medium.air[above].any()


def test_rib_is_bone_in_an_ellipse_above_the_pleura() -> None:
    config = TINY.override({"lung.rib_probability": 1.0})
    for index in range(6):
        anatomy = draw(config, index)
        rib = anatomy.wall.rib
        assert rib is not None
        grid = grid_of(anatomy, config.grid.spacing, config.grid.depth, config.grid.width)
        bone = materials(anatomy, grid) == BONE
        shown = np.pi * rib.half_height * rib.half_width / config.grid.spacing**2
        if abs(rib.x) + rib.half_width < config.grid.width / 2:
            assert bone.sum() == pytest.approx(shown, rel=0.05)
        assert medium_of(config, anatomy).sound_speed[bone] == pytest.approx(3432)


def test_effusion_is_still_fluid_and_its_thickness_is_reported() -> None:
    config = TINY.override({"lung.effusion_probability": 1.0})
    anatomy = draw(config, 0)
    medium = medium_of(config, anatomy)
    faces = anatomy.wall.interfaces(medium.x)
    half = medium.spacing / 2  # cells that the layer shares with a neighbour hold a mixture
    fluid = (medium.z[:, None] > faces[3] + half) & (medium.z[:, None] < faces[4] - half)
    assert np.ptp(medium.density[fluid]) < 1e-3 and not medium.air[fluid].any()
    assert anatomy.parameters["wall.effusion"] == pytest.approx((faces[4] - faces[3]).mean(), rel=0.2)
    assert draw(TINY, 0).parameters["wall.effusion"] == 0.0


def test_every_draw_is_physical() -> None:
    """100 random cases with everything switched on: the bound of the time step and all ranges hold."""
    fastest = max_sound_speed(EVERYTHING)
    soft = max_sound_speed(TINY)
    for index in range(100):
        anatomy = draw(EVERYTHING, index)
        medium = medium_of(EVERYTHING, anatomy)
        limit = fastest if anatomy.wall.rib else soft
        assert medium.sound_speed.min() > 1400 and medium.sound_speed.max() <= limit * (1 + 1e-6)
        assert (
            medium.density[medium.air == 0].min() > 700 and medium.density.min() > 500 and medium.density.max() < 2000
        )
        assert medium.attenuation.min() > 0 and np.isfinite(medium.attenuation).all()
        assert set(np.unique(medium.air)) == {0.0, 1.0}
        surface = anatomy.wall.surface(medium.x)
        if not anatomy.wall.pneumothorax:
            low, high = TINY.wall.pleura_depth
            assert low - 0.1 * MM < surface.min() and surface.max() < high + 0.1 * MM
        found = truth(anatomy, EVERYTHING.map, truth_spacing(EVERYTHING))
        for name in ("sharp", "smooth"):
            a = getattr(found, name)
            assert np.array_equal(np.isnan(a), ~found.lung)
            assert (a[found.lung] >= 0).all() and (a[found.lung] <= 1).all()
        json.dumps(anatomy.parameters, allow_nan=False)
        assert all(isinstance(v, (bool, int, float, str, type(None))) for v in anatomy.parameters.values())


@pytest.mark.parametrize(
    "arguments, names",
    [
        ((50 * UM, 30 * MM, 9 * MM), "depth 29.9 mm"),
        ((50 * UM, 10 * MM, 40 * MM), "20.0 mm"),
        ((50 * UM, 10 * MM, 9 * MM, 5 * MM), "9.5 mm"),
        ((50 * MM, 10 * MM, 9 * MM), "0 x 0 cells"),
    ],
)
def test_grids_beyond_the_anatomy_are_refused(arguments: tuple[float, ...], names: str) -> None:
    with pytest.raises(UsageError, match=names):
        rasterise(draw(TINY, 0), *arguments)


def test_negative_index_is_refused() -> None:
    with pytest.raises(UsageError, match="-1"):
        draw(TINY, -1)
