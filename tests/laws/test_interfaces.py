"""Laws at interfaces: layers, total reflection at air, a bubble, and an independent solver on a small lung."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from laws.closed_form import filtered, relative_error, slab_reflection, soft_cylinder, tone_burst
from laws.shots import DENSITY, FREQUENCY, SPEED, discretise, fields, shoot
from lungwave.acoustics.wave import Discretisation
from lungwave.phantom.anatomy import AIR_DENSITY, AIR_DEPTH
from reference_fdtd import simulate

SOURCE, RECEIVER, WALL = 0.2e-3, 1.0e-3, 2.5e-3  # [m] depths in the plane-wave experiments


def plane_wave(grid: Discretisation, properties: tuple, rows: tuple[int, ...]) -> np.ndarray:
    """Traces on the axis of a wide line of sources over a medium that varies with depth only."""
    depth, width = round(5e-3 / grid.spacing), round(14e-3 / grid.spacing)
    columns = (np.broadcast_to(np.asarray(p, float), depth)[:, None] for p in properties)
    medium = fields(*columns, shape=(depth, width))
    line = [(round(SOURCE / grid.spacing), column) for column in range(width)]
    return shoot(medium, grid, line, [(row, width // 2) for row in rows])


def reflection(order: int, spacing: float, behind: tuple[float, float, float], thickness: float | None = None):
    """Echo of a layer (speed, density, air), and the wave that a receiver mirrored in its face hears without it."""
    grid = discretise(spacing, 5e-6, order=order, fastest=1.08 * SPEED)
    depth, wall = round(5e-3 / spacing), round(WALL / spacing)
    inside = np.zeros(depth, bool)
    inside[wall : depth if thickness is None else wall + round(thickness / spacing)] = True
    row = round(RECEIVER / spacing)
    # Tissue changes half-way between two nodes; a pressure-release wall stands on its first node.
    mirrored = 2 * wall - row if behind[2] else 2 * wall - 1 - row
    direct, free = plane_wave(grid, (SPEED, DENSITY, 0.0), (row, mirrored))
    layered = [np.where(inside, b, t) for b, t in zip(behind, (SPEED, DENSITY, 0.0), strict=True)]
    return grid, plane_wave(grid, layered, (row,))[0] - direct, free


@pytest.mark.parametrize(
    ("order", "spacing", "speed", "density", "budget"),
    [
        pytest.param(8, 50e-6, 900.0, 500.0, 0.02, id="speed and density, lung-like"),
        pytest.param(8, 50e-6, 1580.0, 1400.0, 0.03, id="speed and density, hard"),
        pytest.param(8, 25e-6, 1540.0, 700.0, 0.01, id="density alone"),
        pytest.param(4, 50e-6, 900.0, 500.0, 0.03, id="order 4"),
        pytest.param(2, 25e-6, 900.0, 500.0, 0.02, id="order 2"),
    ],
)
def test_a_half_space_reflects_by_its_impedance(
    order: int, spacing: float, speed: float, density: float, budget: float
) -> None:
    _, echo, free = reflection(order, spacing, (speed, density, 0.0))
    here, there = SPEED * DENSITY, speed * density
    assert relative_error(echo, (there - here) / (there + here) * free) < budget


@pytest.mark.parametrize(
    ("spacing", "thickness", "speed", "density", "budget"),
    [
        pytest.param(50e-6, 0.4e-3, 1613.0, 1120.0, 0.01, id="pleura"),
        pytest.param(50e-6, 1.0e-3, 1450.0, 950.0, 0.03, id="fat, 50 um"),
        pytest.param(25e-6, 1.0e-3, 1450.0, 950.0, 0.01, id="fat, 25 um"),
    ],
)
def test_a_plane_layer_reflects_at_both_faces(
    spacing: float, thickness: float, speed: float, density: float, budget: float
) -> None:
    grid, echo, free = reflection(8, spacing, (speed, density, 0.0), thickness)

    def response(w: np.ndarray) -> np.ndarray:
        return slab_reflection(w, round(thickness / spacing) * spacing, speed, SPEED * DENSITY, speed * density)

    assert relative_error(echo, filtered(free, grid.time_step, response)) < budget


@pytest.mark.parametrize(("order", "early"), [(2, 0.01), (4, 0.085), (6, 0.11), (8, 0.12)])
def test_air_reflects_everything_with_its_sign_turned(order: int, early: float) -> None:
    """|R| = 1 +- 0.003, R < 0; the wall stands at most ``early`` cells before the first air node."""
    grid, echo, free = reflection(order, 50e-6, (SPEED, DENSITY, 1.0))
    tone = np.exp(-2j * np.pi * FREQUENCY * grid.time_step * np.arange(grid.steps))
    ratio = (echo @ tone) / (free @ tone)
    energy = np.linalg.norm(echo) / np.linalg.norm(free)
    assert abs(ratio) == pytest.approx(1, abs=0.003)
    assert energy == pytest.approx(1, abs=0.003)
    assert ratio.real < -0.97
    advance = np.angle(-ratio) / (2 * np.pi * FREQUENCY) * SPEED / (2 * grid.spacing)
    assert -0.01 < advance < early


def wall_position(density: float, order: int = 8, spacing: float = 50e-6) -> tuple[float, float]:
    """Where a wall of air reflects [cells beyond its first node], and |R|, if that node has ``density`` x tissue."""
    grid = discretise(spacing, 5e-6, order=order, fastest=1.25 * SPEED)
    depth, wall, row = (round(d / spacing) for d in (5e-3, WALL, RECEIVER))
    air = (np.arange(depth) >= wall).astype(float)
    first = np.where(np.arange(depth) == wall, density * DENSITY, DENSITY)
    direct, free = plane_wave(grid, (SPEED, DENSITY, 0.0), (row, 2 * wall - row))
    echo = plane_wave(grid, (SPEED, first, air), (row,))[0] - direct
    tone = np.exp(-2j * np.pi * FREQUENCY * grid.time_step * np.arange(grid.steps))
    ratio = (echo @ tone) / (free @ tone)
    return float(-np.angle(-ratio) / (2 * np.pi * FREQUENCY) * SPEED / (2 * spacing)), float(abs(ratio))


@pytest.mark.parametrize(("depth", "density"), list(zip(AIR_DEPTH, AIR_DENSITY, strict=True)))
def test_the_density_of_air_nodes_places_the_surface_between_nodes(depth: float, density: float) -> None:
    """A node ``depth`` .. ``depth`` + 0.1 cells inside air: the wall reflects wholly, and where the surface is."""
    position, strength = wall_position(density)
    assert strength == pytest.approx(1, abs=0.003)
    assert position == pytest.approx(-(depth + 0.05), abs=0.17)  # 0.4 without


def test_heavier_air_nodes_move_the_wall_away_in_proportion() -> None:
    """The velocity point at the wall feels half the node's density: half a cell a unit, less a stencil's share."""
    near, far = wall_position(0.8)[0], wall_position(1.6)[0]
    assert (far - near) / 0.8 == pytest.approx(0.43, abs=0.06)


@cache
def bubble_error(dilation: float) -> float:
    """Mean relative error of a 0.6 mm bubble's scattered wave on 25 um cells, two off-grid places, three angles."""
    spacing, radius, rows, columns = 25e-6, 0.3e-3, 280, 300
    grid = discretise(spacing, 6.2e-6, fastest=1.08 * SPEED)
    rate = tone_burst(grid.steps, grid.time_step, FREQUENCY)
    source, receivers = (40, 150), [(40, 190), (240, 130), (140, 250)]
    free = shoot(fields(SPEED, shape=(rows, columns)), grid, [source], receivers)
    z, x = np.mgrid[:rows, :columns]
    errors = []
    for centre in ((140.31, 149.83), (139.8, 150.4)):
        air = np.hypot(z - centre[0], x - centre[1]) <= radius / spacing + dilation
        scattered = shoot(fields(SPEED, air=air), grid, [source], receivers) - free

        def polar(node: tuple[int, int], centre: tuple[float, float] = centre) -> tuple[float, float]:
            dz, dx = node[0] - centre[0], node[1] - centre[1]
            return spacing * float(np.hypot(dz, dx)), float(np.arctan2(dx, dz))

        (far, turn) = polar(source)
        for trace, node in zip(scattered, receivers, strict=True):
            distance, angle = polar(node)
            truth = soft_cylinder(rate, grid.time_step, radius, far, distance, angle - turn, SPEED, DENSITY)
            errors.append(relative_error(trace, truth))
    return float(np.mean(errors))


def test_a_bubble_scatters_like_a_sound_soft_cylinder() -> None:
    assert bubble_error(0.25) < 0.06


def test_a_bubble_that_is_not_dilated_acts_too_small() -> None:
    assert bubble_error(0.0) > 1.5 * bubble_error(0.25)


def small_lung(spacing: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two wall layers over discs of air, 4 x 6 mm; nodes of finer grids nest in those of coarser ones."""
    rows, half = round(4e-3 / spacing), round(3e-3 / spacing)
    z, x = np.arange(rows)[:, None] * spacing, np.arange(-half, half + 1)[None] * spacing
    speed = np.where(z < 0.8e-3, 1600.0, 1478.0) + 0 * x
    density = np.where(z < 0.8e-3, 1090.0, 950.0) + 0 * x
    rng = np.random.default_rng(5)
    air = np.zeros(speed.shape, bool)
    for row in range(5):
        for column in range(-7, 8):
            centre = 2.0e-3 + 0.4e-3 * row, 0.4e-3 * (column + 0.5 * (row % 2))
            centre = centre[0] + rng.uniform(-4e-5, 4e-5), centre[1] + rng.uniform(-4e-5, 4e-5)
            radius = rng.uniform(0.12e-3, 0.17e-3)
            air |= np.hypot(z - centre[0], x - centre[1]) <= radius + 0.25 * spacing
    return speed, density, air


def windowed_correlation(one: np.ndarray, other: np.ndarray, time: np.ndarray, start: float, stop: float) -> float:
    window = (time >= start) & (time < stop)
    return float(np.corrcoef(one[:, window].ravel(), other[:, window].ravel())[0, 1])


def test_an_independent_solver_hears_the_same_lung() -> None:
    """Plain NumPy leapfrog with p set to 0 on air, same grid: equal but for rounding, edges and remapping of time."""
    spacing = 50e-6
    grid = discretise(spacing, 8e-6, fastest=1750.0)
    speed, density, air = small_lung(spacing)
    receivers = [(2, column) for column in range(20, 101, 16)]
    rate = tone_burst(grid.steps, grid.time_step, FREQUENCY)
    ours = shoot(fields(speed, density, air), grid, [(2, 60)], receivers)
    theirs = simulate(
        speed, density, air, spacing, grid.time_step, np.array([(2, 60)]), rate[None], np.array(receivers),
        np.eye(len(receivers)), order=8,
    ).T  # fmt: skip
    time = grid.time_step * np.arange(grid.steps)
    echo = 2 * 2.0e-3 / 1540  # [s] of the first bubbles
    assert relative_error(ours[:, time < echo + 1.5e-6], theirs[:, time < echo + 1.5e-6]) < 0.01
    assert windowed_correlation(ours, theirs, time, echo, 8e-6) > 0.9999


def test_the_echo_converges_to_the_independent_solver_on_finer_cells() -> None:
    """Against cells of 12.5 um in the first 1.5 us after the lung's surface: close, and closer on finer cells."""
    columns = np.array([20, 50, 60, 85])  # on 50 um cells
    truth_time = truth = None
    agreement = {}
    for spacing in (12.5e-6, 25e-6, 50e-6):
        grid = discretise(spacing, 5e-6, fastest=1750.0)
        scale, time = round(50e-6 / spacing), grid.time_step * np.arange(grid.steps)
        receivers = [(2 * scale, scale * int(c)) for c in columns]
        source = (2 * scale, 60 * scale)
        if truth is None:
            rate = tone_burst(grid.steps, grid.time_step, FREQUENCY)[None]
            cells = np.array([source]), rate, np.array(receivers), np.eye(len(receivers))
            truth_time, truth = time, simulate(*small_lung(spacing), spacing, grid.time_step, *cells, order=4).T
        else:
            found = shoot(fields(*small_lung(spacing)), grid, [source], receivers)
            there = np.stack([np.interp(time, truth_time, trace) for trace in truth])
            agreement[scale] = windowed_correlation(found, there, time, 2.6e-6, 4.1e-6)
    assert agreement[1] > 0.97
    assert agreement[2] > max(0.99, agreement[1])


def test_a_uniform_medium_has_no_echo() -> None:
    grid = discretise(50e-6, 6e-6, fastest=1.08 * SPEED)
    open_water = fields(SPEED, shape=(80, 120), dtype=torch.float64)
    wide = fields(SPEED, shape=(200, 240), dtype=torch.float64)
    echo = shoot(open_water, grid, [(40, 60)], [(40, 70)]) - shoot(wide, grid, [(100, 120)], [(100, 130)])
    late = grid.time_step * np.arange(grid.steps) > 1.6e-6
    assert np.abs(echo[:, late]).max() < 2e-3 * np.abs(shoot(wide, grid, [(100, 120)], [(100, 130)])).max()
