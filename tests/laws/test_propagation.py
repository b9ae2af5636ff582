"""Laws of free propagation: closed-form waves, order of accuracy, reciprocity, energy, attenuation, and refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from laws.closed_form import point_source, relative_error, tone_burst
from laws.shots import DENSITY, FREQUENCY, SPEED, discretise, fields, shoot
from lungwave.acoustics.wave import SPEED_MARGIN, propagate
from lungwave.types import UsageError
from reference_fdtd import from_leapfrog_time, to_leapfrog_time

NEAR, FAR = 5e-3, 15e-3  # [m]


def greens_errors(order: int, spacing: float, *, correct_time: bool = True) -> tuple[float, float]:
    """Relative L2 error of a point source's pressure at NEAR and FAR, absolute amplitude, nothing fitted."""
    grid = discretise(spacing, 11.2e-6, order=order, fastest=1.08 * SPEED)
    shape = round(17e-3 / spacing), round(12e-3 / spacing)  # wide enough that no edge is heard within the record
    row, column = round(1e-3 / spacing), shape[1] // 2
    paths = [round(r / spacing) for r in (NEAR, FAR)]
    medium = fields(SPEED, shape=shape, dtype=torch.float64)
    found = shoot(medium, grid, [(row, column)], [(row + n, column) for n in paths], correct_time=correct_time)
    rate = tone_burst(grid.steps, grid.time_step, FREQUENCY)
    near, far = (
        relative_error(trace, point_source(rate, grid.time_step, n * spacing, SPEED, DENSITY))
        for trace, n in zip(found, paths, strict=True)
    )
    return near, far


# Budgets are 1.25 times what was measured; points per wavelength at 2.5 MHz and 1540 m/s.
@pytest.mark.parametrize(
    ("order", "spacing", "near", "far"),
    [
        pytest.param(2, 25e-6, 0.33, 0.91, id="order 2, 24.6 ppw"),
        pytest.param(4, 50e-6, 0.085, 0.24, id="order 4, 12.3 ppw"),
        pytest.param(4, 25e-6, 0.0070, 0.020, id="order 4, 24.6 ppw"),
        pytest.param(6, 50e-6, 0.0130, 0.030, id="order 6, 12.3 ppw"),
        pytest.param(8, 80e-6, 0.043, 0.10, id="order 8, 7.7 ppw"),
        pytest.param(8, 62.5e-6, 0.0145, 0.028, id="order 8, 9.9 ppw"),
        pytest.param(8, 50e-6, 0.0065, 0.0095, id="order 8, 12.3 ppw"),
    ],
)
def test_a_point_source_radiates_the_2d_greens_function(order: int, spacing: float, near: float, far: float) -> None:
    found = greens_errors(order, spacing)
    assert found[0] < near
    assert found[1] < far


def test_without_time_dispersion_correction_the_greens_function_is_missed() -> None:
    assert greens_errors(8, 50e-6, correct_time=False)[1] > 0.3


@pytest.mark.parametrize(("order", "coarse"), [(2, 50e-6), (4, 50e-6), (6, 62.5e-6), (8, 100e-6)])
def test_halving_the_cells_shrinks_the_error_by_two_to_the_order(order: int, coarse: float) -> None:
    errors = []
    for spacing in (coarse, coarse / 2):
        grid = discretise(spacing, 6e-6, order=order)
        nodes = round(8e-3 / spacing)
        source = round(1.5e-3 / spacing), nodes // 2
        receiver = source[0] + round(NEAR / spacing), nodes // 2
        rate = np.roll(tone_burst(grid.steps, grid.time_step, FREQUENCY), round(0.6e-6 / grid.time_step))
        # The reference's own exact remapping of time, so that only the error in space is left.
        band = 0.2 / grid.time_step
        driven = to_leapfrog_time(rate[None], grid.time_step, band)[0]
        medium = fields(SPEED, shape=(nodes, nodes), dtype=torch.float64)
        found = shoot(medium, grid, [source], [receiver], rate=driven, correct_time=False)
        found = from_leapfrog_time(found.astype(float), grid.time_step, band)[0]
        truth = point_source(rate, grid.time_step, NEAR, SPEED, DENSITY)
        tone = np.exp(-2j * np.pi * FREQUENCY * grid.time_step * np.arange(grid.steps))
        errors.append(abs(found @ tone / (truth @ tone) - 1))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.6)


def bubbly(shape: tuple[int, int], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sound speed, density and air of tissue with speckle, layers and bubbles."""
    rng = np.random.default_rng(seed)
    z, x = np.mgrid[: shape[0], : shape[1]]
    speed = np.where(z < shape[0] // 3, 1480.0, 1600.0)
    density = 1000 * (1 + 0.03 * rng.standard_normal(shape))
    air = np.zeros(shape, bool)
    for _ in range(25):
        centre = rng.uniform(0.4 * shape[0], shape[0]), rng.uniform(0, shape[1])
        air |= np.hypot(z - centre[0], x - centre[1]) <= rng.uniform(2, 5)
    air[: shape[0] // 3] = False
    return speed, density, air


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_source_and_receiver_may_change_places(dtype: torch.dtype) -> None:
    grid = discretise(50e-6, 10e-6, fastest=1750.0)
    medium = fields(*bubbly((80, 100)), dtype=dtype)
    one, other = (3, 20), (10, 77)
    there = shoot(medium, grid, [one], [other])[0]
    back = shoot(medium, grid, [other], [one])[0]
    assert np.abs(there).max() > 0
    assert relative_error(there, back) < (1e-4 if dtype == torch.float32 else 1e-10)


@pytest.mark.parametrize("hardness", ["soft tissue", "bubbles", "light lung-like layer"])
def test_energy_only_leaves(hardness: str) -> None:
    """The mean square pressure over a lattice of receivers falls from window to window, long after the pulse."""
    shape = 60, 70
    speed, density, air = bubbly(shape, seed=2)
    if hardness == "light lung-like layer":
        speed, density = np.where(speed > 1500, 900.0, 1540.0), np.where(speed > 1500, 500.0, 1000.0)
    air = air if hardness == "bubbles" else np.zeros(shape)
    grid = discretise(100e-6, 200e-6, fastest=1900.0, frequency=1.5e6)
    lattice = [(z, x) for z in range(2, 60, 4) for x in range(2, 70, 4)]
    traces = shoot(fields(speed, density, air), grid, [(5, 35)], lattice, correct_time=False)
    edges = np.searchsorted(grid.time_step * np.arange(grid.steps), np.array([5, 40, 75, 110, 145, 180]) * 1e-6)
    energy = [float((traces[:, a:b].astype(float) ** 2).sum()) for a, b in pairwise(edges)]
    floor = 1e-12 * energy[0]  # rounding
    assert np.isfinite(traces).all()
    assert all(late < early or late < floor for early, late in pairwise(energy))
    assert energy[1] < 0.2 * energy[0]


@pytest.mark.parametrize("db_per_cm_mhz", [0.5, 1.57])
def test_attenuation_is_right_at_the_centre_frequency(db_per_cm_mhz: float) -> None:
    """Spectral ratio with and without loss at two distances: dB/cm at the centre frequency within 3 %."""
    grid = discretise(50e-6, 9.5e-6, fastest=1.08 * SPEED)
    shape, source, receivers = (270, 160), (20, 80), [(60, 80), (240, 80)]
    lossless = shoot(fields(SPEED, shape=shape), grid, [source], receivers)
    lossy = shoot(fields(SPEED, attenuation=100 * db_per_cm_mhz, shape=shape), grid, [source], receivers)
    tone = np.exp(-2j * np.pi * FREQUENCY * grid.time_step * np.arange(grid.steps))
    ratio = (lossy @ tone) / (lossless @ tone)
    centimetres = 180 * grid.spacing * 100
    assert -20 * np.log10(abs(ratio[1] / ratio[0])) / centimetres == pytest.approx(db_per_cm_mhz * 2.5, rel=0.03)
    # ... and the given sound speed is the phase speed there.
    late = -np.angle(ratio[1] / ratio[0]) / (2 * np.pi * FREQUENCY)
    assert abs(late) * SPEED / (180 * grid.spacing) < 2e-4


def test_an_unstable_step_is_refused_with_the_step_to_use() -> None:
    grid = discretise(50e-6, 1e-6, fastest=SPEED_MARGIN * SPEED, fill=0.99)
    grid.check(SPEED, SPEED)
    with pytest.raises(UsageError, match=r"time_step .* unstable for 2100 m/s .* use at most [\d.]+ ns"):
        grid.check(SPEED, 2100.0)


def test_the_step_that_the_refusal_names_is_accepted() -> None:
    grid = discretise(50e-6, 1e-6)
    with pytest.raises(UsageError) as refusal:
        grid.check(SPEED, 2100.0)
    advised = float(str(refusal.value).split("use at most ")[1].split(" ns")[0]) * 1e-9
    replace(grid, time_step=advised).check(SPEED, 2100.0)


def test_too_few_points_per_wavelength_are_refused_with_the_spacing_to_use() -> None:
    grid = discretise(100e-6, 1e-6, fastest=2 * SPEED)
    with pytest.raises(UsageError, match=r"spacing 100 um gives 5\.9 points per wavelength .* use at most 74 um"):
        grid.check(1480.0, 1480.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"order": 5}, "use 2, 4, 6 or 8"),
        ({"gradient_stride": 7, "steps": 100}, "must divide"),
        ({"time_step": -1e-9}, "must be positive"),
        ({"steps": 0}, "must be positive"),
    ],
)
def test_a_discretisation_that_cannot_be_is_refused(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(discretise(50e-6, 1e-6, fastest=2000.0), **change).check(SPEED, SPEED)


def test_a_source_outside_the_grid_is_refused() -> None:
    grid = discretise(50e-6, 1e-6)
    node, outside = torch.tensor([[[2, 2]]]), torch.tensor([[[2, 40]]])
    with pytest.raises(UsageError, match="outside the 30 x 40 grid"):
        propagate(fields(SPEED, shape=(30, 40)), torch.zeros(1, 1, grid.steps), outside, node, grid)
