"""Laws of the chest wall: ordered layers, respected pleura depth, random fields of the stated statistics."""

from __future__ import annotations

import numpy as np
import pytest

from lungwave.config import preset
from lungwave.phantom.wall import LAYERS, Pneumothorax, RandomField, Strands, Undulation, draw_wall, fit_thickness
from lungwave.repro import stream
from lungwave.types import MM, UM

X = np.linspace(-12 * MM, 12 * MM, 801)


@pytest.mark.parametrize("name", ["micro", "tiny", "paper"])
@pytest.mark.parametrize("effused", [False, True], ids=["dry", "effusion"])
def test_faces_never_cross_and_the_lung_stays_at_its_depth(name: str, effused: bool) -> None:
    config = preset(name)
    low, high = config.wall.pleura_depth
    for index in range(40):
        rng = stream(5, "severity", index)
        wall = draw_wall(
            config,
            stream(5, "wall", index),
            effusion=float(rng.uniform(*config.wall.effusion)) if effused else None,
            thickened=float(rng.uniform(*config.wall.thickened)) if index % 2 else None,
            irregular=1.5,
            rib=True,
            pneumothorax=None,
        )
        faces = wall.interfaces(X)
        assert (np.diff(faces, axis=0) > 0).all() and (faces[0] > 0).all()
        assert low <= wall.depth <= high
        assert faces[-1].min() > low - 0.1 * MM and faces[-1].max() < high + 0.1 * MM
        assert wall.rib is not None
        under = np.abs(X - wall.rib.x) < wall.rib.half_width
        if under.any():
            assert wall.rib.z + wall.rib.half_height < faces[3, under].min()  # the rib lies outside the pleura


def test_fat_and_muscle_give_way_before_effusion_and_skin() -> None:
    config = preset("tiny")
    drawn = dict(zip(LAYERS, (1.3 * MM, 0.8 * MM, 1.3 * MM, 0.15 * MM, 0.5 * MM, 0.1 * MM), strict=True))
    fitted = fit_thickness(config, drawn | {"fat": 2 * MM}, 0.1 * MM)
    assert fitted["skin"] == drawn["skin"] and fitted["fluid"] == drawn["fluid"]
    assert fitted["fat"] / fitted["muscle"] == pytest.approx(2 / 1.3)
    assert sum(fitted.values()) == pytest.approx(config.wall.pleura_depth[1] - 0.1 * MM)
    flooded = fit_thickness(config, drawn | {"fluid": 30 * MM}, 0.1 * MM)
    assert sum(flooded.values()) == pytest.approx(config.wall.pleura_depth[1] - 0.1 * MM)
    assert min(flooded.values()) > 0


def test_random_field_has_unit_variance_and_the_stated_correlation() -> None:
    length, lag = 0.5 * MM, 0.6 * MM
    products = []
    for index in range(60):
        field = RandomField.draw(stream(0, "field", index), length, 2 * length)
        z, x = stream(1, "places", index).uniform(-20 * MM, 20 * MM, (2, 400))
        here = field.at(z, x)
        products.append([np.mean(here**2), np.mean(here * field.at(z + lag, x)), np.mean(here * field.at(z, x + lag))])
    variance, down, across = np.mean(products, axis=0)
    assert variance == pytest.approx(1.0, abs=0.05)
    assert down == pytest.approx(np.exp(-(lag**2) / (2 * length**2)), abs=0.05)
    assert across == pytest.approx(np.exp(-(lag**2) / (8 * length**2)), abs=0.05)


def test_field_is_the_same_on_a_grid_and_at_points() -> None:
    field = RandomField.draw(stream(0, "field"), 0.3 * MM, 0.9 * MM, 0.2)
    z, x = np.linspace(0, 4 * MM, 9), np.linspace(-3 * MM, 3 * MM, 7)
    grid = field.on_grid(z, x)
    points = field.at(np.repeat(z, 7), np.tile(x, 9)).reshape(9, 7)
    np.testing.assert_allclose(grid, points, atol=1e-4)


def test_field_has_the_same_bits_in_any_window() -> None:
    """Sums are exact, so neither a BLAS kernel nor its threads can move a strand."""
    field = RandomField.draw(stream(0, "field"), 0.3 * MM, 0.9 * MM, 0.2)
    z, x = np.linspace(0, 4 * MM, 301), np.linspace(-3 * MM, 3 * MM, 257)
    whole = field.on_grid(z, x)
    np.testing.assert_array_equal(whole[7:8], field.on_grid(z[7:8], x))
    np.testing.assert_array_equal(whole[:, 11:14], field.on_grid(z, x[11:14]))


@pytest.mark.parametrize("fraction", [0.1, 0.25])
def test_strands_fill_their_share_at_their_thickness(fraction: float) -> None:
    z, x = np.arange(0, 30 * MM, 20 * UM), np.arange(-20 * MM, 20 * MM, 0.2 * MM)
    share, thickness = [], []
    for index in range(12):
        strand = Strands.draw(stream(4, "strands", index), fraction, 0.2 * MM, 4.0, 0.0).on_grid(z, x)
        share.append(strand.mean())
        entries = (np.diff(strand.astype(int), axis=0) == 1).sum()
        thickness.append(strand.sum() * 20 * UM / entries)
    assert np.mean(share) == pytest.approx(fraction, rel=0.1)
    assert np.mean(thickness) == pytest.approx(0.2 * MM, rel=0.2)


def test_roughness_has_the_stated_height_and_length() -> None:
    height, length = 50 * UM, 1.0 * MM
    x = np.arange(-100 * MM, 100 * MM, 0.05 * MM)
    heights, falls = [], []
    for index in range(10):
        z = Undulation.draw(stream(6, "rough", index), 0.0, (5 * MM, 20 * MM), height, length)(x)
        heights.append(z.var())
        falls.append(np.mean(z[:-20] * z[20:]) / z.var())
    assert np.sqrt(np.mean(heights)) == pytest.approx(height, rel=0.1)
    assert np.mean(falls) == pytest.approx(np.exp(-1), abs=0.08)


def test_pneumothorax_opens_on_one_side_of_the_lung_point() -> None:
    air = Pneumothorax(edge=1 * MM, side=-1, thickness=2 * MM, taper=1 * MM)
    assert air(np.array([1.0, 2.0, 9.0]) * MM).tolist() == [0.0, 0.0, 0.0]
    assert air(np.array([0.0, -5.0]) * MM) == pytest.approx(2 * MM)
