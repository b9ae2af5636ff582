"""The wave equation as a forward model: it hears what the simulator hears, and its derivatives are each other's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.wave import Fields, coarsened
from lungwave.config import Config, preset
from lungwave.data.drawn import write_maps
from lungwave.data.mapset import read_maps
from lungwave.models.precond import Scaling
from lungwave.models.wiener import Wiener
from lungwave.phantom.aeration import truth, truth_spacing
from lungwave.phantom.anatomy import AIR_DENSITY, AIR_DEPTH, draw, rasterise
from lungwave.phantom.resolved import (
    AIR,
    LEVELS,
    air_value,
    airspace,
    first_depth,
    first_rows,
    flatten,
    resolved,
    resolved_size,
    shown_config,
)
from lungwave.posterior.continuation import LowPass
from lungwave.posterior.likelihood import GaussianNoise, check_forward
from lungwave.posterior.lung import LungForward
from lungwave.posterior.samplers.problem import Problem, Run
from lungwave.posterior.walls import Wall
from lungwave.sample import Seeds
from lungwave.types import UsageError

CONFIG = preset("micro").override({"seed": 5})
ROWS = resolved_size(CONFIG)[0]


def lung(index: int, config: Config = CONFIG) -> tuple[LungForward, torch.Tensor, torch.Tensor]:
    """Forward model of a case, its resolved map in network units, and the simulator's echoes."""
    simulator, grid = Simulator(config), config.grid
    anatomy = draw(config, index)
    medium = rasterise(anatomy, grid.spacing, grid.depth, simulator.medium_width)
    surface = anatomy.wall.surface(medium.x)
    forward = LungForward(config, medium, surface, Scaling(0.5, 0.3))
    fractions = resolved(anatomy, config)
    with torch.no_grad():
        echoes = simulator.channels(medium)[:, :, : forward.samples]
        return forward, forward.scaling.to_network(torch.from_numpy(fractions)[None]), echoes


def wider(index: int, config: Config = CONFIG, coarse: int = 2, events: list[int] | None = None) -> LungForward:
    """The cheaper model of a case."""
    wall = Wall.of(draw(config, index), config)
    return LungForward(config, wall.medium, wall.surface, Scaling(0.5, 0.3), coarse=coarse, events=events)


@pytest.mark.parametrize(("index", "most"), [(0, 0.07), (1, 0.1), (2, 0.22)])
def test_a_resolved_map_sounds_like_the_lung_it_was_taken_from(index: int, most: float) -> None:
    """All that a map leaves out is worth a few percent of the echoes, most in a consolidation with its dense tissue."""
    forward, x, echoes = lung(index)
    assert float((forward(x) - echoes).norm() / echoes.norm()) < most
    silent = forward.scaling.to_network(torch.zeros_like(x))
    assert float((forward(silent) - echoes).norm() / echoes.norm()) > 0.4  # what the lung itself is worth


def test_maps_go_on_the_grid_and_back_exactly() -> None:
    """Above the lung the wall stays; the adjoint of placing is what the derivative uses."""
    forward, x, _ = lung(1)
    low, high = forward.valid_range
    assert float(x.min()) >= low - 1e-6 and float(x.max()) <= high + 1e-6
    fractions = forward.scaling.to_data(x)
    surface = draw(CONFIG, 1).wall.surface((np.arange(96) - 47.5) * CONFIG.grid.spacing)
    first = first_rows(surface, CONFIG.grid.spacing)
    placed = forward.place(fractions)[0, 0].numpy()
    deep = min(len(placed) - int(first.max()), 2 * ROWS)
    both = np.concatenate([fractions[0, 0], fractions[0, 0].flip(0)])  # below the map its mirror image
    np.testing.assert_array_equal(flatten(placed, first, 2 * ROWS)[:deep], both[:deep])


@pytest.mark.parametrize(("coarse", "most"), [(1, 1e-3), (2, 1e-2)])
def test_derivatives_agree(coarse: int, most: float) -> None:
    """Away from the kinks between levels; the same for each map of a batch."""
    _, x, _ = lung(1)
    forward = wider(1, coarse=coarse)
    low, high = forward.valid_range
    x = x.expand(2, -1, -1, -1)
    air, tissue = low + (high - low) * torch.tensor((AIR + 0.5 * (1 - AIR) / (LEVELS - 1), 0.02))
    found = check_forward(forward, torch.where(x > (low + high) / 2, air, tissue))
    assert found["adjoint"] < most <= forward.derivative_error and found["slope"] < 0.02


def test_wider_cells_carry_low_frequencies() -> None:
    """The echoes of cells twice as wide are those of the narrow ones up to half the centre frequency, for less work."""
    low = LowPass(0.5 * CONFIG.probe.center_frequency, CONFIG.receive.sampling_frequency)
    off, worth = [], []
    for index in range(8):
        fine, x, _ = lung(index)
        coarse, right = wider(index), low(fine(x))
        off.append(float((low(coarse(x)) - right).norm() / right.norm()))
        tissue = fine.scaling.to_network(torch.zeros_like(x))
        worth.append(float((low(fine(tissue)) - right).norm() / right.norm()))
        work = [f.simulator.cost.cell_updates / f.simulator.cost.forward for f in (coarse, fine)]
        assert work[0] < 0.25 * work[1]
    assert np.median(off) < 0.3 and np.median(worth) > 0.8, "of the lung, three quarters at least"


@pytest.mark.parametrize("depth", [4.0, 4.02, 4.06, 4.1, 4.14, 4.18])  # [mm]
def test_wider_cells_put_a_flat_surface_where_it_is(depth: float) -> None:
    """Of air: the low frequencies of its echo come with the same phase, to a sixth of a wide cell."""
    config = CONFIG.override({"grid.attenuation": False, "probe.face_reflection": 0.0, "receive.dead_time": 0.0})
    grid = config.grid
    z = np.arange(112) * grid.spacing
    level = sum((z[:, None] - depth * 1e-3 >= d * grid.spacing).astype(int) for d in AIR_DEPTH).repeat(96, 1)
    density = 1060 * np.array((1.0, *AIR_DENSITY))[level]
    narrow = Fields(*(torch.tensor(v, dtype=torch.float32)[None] for v in (1540 + 0 * density, density, level > 0)))
    wide = replace(grid, spacing=2 * grid.spacing, time_step=2 * grid.time_step, steps=300)
    first = Simulator(config).channels(narrow)
    second = Simulator(replace(config, grid=wide), frequency=7.5e5).channels(coarsened(narrow, 2))
    low = LowPass(0.4 * config.probe.center_frequency, config.receive.sampling_frequency)
    samples = min(first.shape[2], second.shape[2])
    spectra = [torch.fft.rfft(low(rf[:, :, 20:samples].double()).mean(3)[0, 0]) for rf in (first, second)]
    band = slice(1, int(4e5 / config.receive.sampling_frequency * (samples - 20)))
    turn = torch.angle((spectra[0][band].conj() * spectra[1][band]).sum())
    assert abs(float(turn)) < 2 * np.pi * 3e5 * 2 * wide.spacing / 6 / 1540


def test_some_events_alone_are_those_of_all() -> None:
    """Echoes, derivatives and their account."""
    config = CONFIG.override({"sequence.angles": [-8.0, 0.0, 8.0]})
    whole, x, _ = lung(1, config)
    some = wider(1, config, coarse=1, events=[2, 0])
    assert torch.equal(some(x), whole(x)[:, [2, 0]])
    assert some.simulator.cost.forward == 2
    assert torch.allclose(some.jvp(x, x), whole.jvp(x, x)[:, [2, 0]], atol=1e-6)
    u = torch.randn(whole(x).shape, generator=torch.Generator().manual_seed(0))
    alone, together = some.vjp(x, u[:, [2, 0]]), whole.vjp(x, u * torch.tensor([1.0, 0, 1.0])[:, None, None])
    assert float((alone - together).norm() / together.norm()) < 1e-4
    with pytest.raises(UsageError, match=r"events \[3\] are not within 0..2"):
        wider(1, config, coarse=1, events=[3])


def test_the_larger_preset_is_heard_the_same_way() -> None:
    """Twice the frequency, three waves: one of them alone, and on wider cells."""
    config = preset("tiny").override({"seed": 5})
    anatomy, simulator = draw(config, 0), Simulator(config)
    wall = Wall.of(anatomy, config)
    middle = LungForward(config, wall.medium, wall.surface, Scaling(0.5, 0.3), events=[1])
    x = middle.scaling.to_network(torch.from_numpy(resolved(anatomy, config))[None])
    assert tuple(x.shape[1:]) == middle.shape == (2, 48, 192)
    with torch.no_grad():
        echoes = simulator.channels(wall.medium, [1])[:, :, : middle.samples]
    assert float((middle(x) - echoes).norm() / echoes.norm()) < 0.15
    coarse = wider(0, config, events=[1])
    low = LowPass(0.5 * config.probe.center_frequency, config.receive.sampling_frequency)
    assert float((low(coarse(x)) - low(middle(x))).norm() / low(middle(x)).norm()) < 0.4
    found = check_forward(coarse, torch.where(x > 0, 0.8, -0.8).expand(2, -1, -1, -1))
    assert found["adjoint"] < coarse.derivative_error


def test_a_lost_case_does_not_touch_the_others() -> None:
    forward, x, _ = lung(0)
    both = torch.cat([x, torch.full_like(x, float("nan"))])
    echoes = forward(both)
    assert torch.equal(echoes[:1], forward(x)) and bool(echoes[1].isnan().all())
    along, back = forward.jvp(both, torch.ones_like(both)), forward.vjp(both, torch.ones_like(echoes))
    for found in (along, back):
        assert bool(found[0].isfinite().all()) and bool(found[1].isnan().all())


def test_a_direction_that_leaves_the_range_changes_nothing() -> None:
    """The step of a sampler does not count on it: beyond the range the model stands still."""
    forward, x, echoes = lung(1)
    shape = (x.shape[1], x.shape[2], x.shape[3])
    problem = Problem(echoes.double(), forward, Wiener(torch.nn.Identity(), torch.ones(shape)), GaussianNoise(1), shape)
    run = Run(problem, Seeds(0, [0]))
    low, high = forward.valid_range
    beyond = torch.where(x > 0, high + 0.5, low - 0.5).double()
    free = run.free(beyond, torch.where(x > 0, -1.0, 1.0).double())
    assert free is not None and float(free.sum()) == 0
    back = run.free(beyond, torch.where(x > 0, 1.0, -1.0).double())
    assert back is not None and float(back.mean()) == 1
    assert torch.allclose(forward(beyond), forward(run.inside(beyond)), rtol=0, atol=1e-5 * float(echoes.abs().max()))


def test_values_say_tissue_and_levels_of_air() -> None:
    values = air_value(np.arange(LEVELS + 1))
    np.testing.assert_allclose(values, [0, 0.7, 0.76, 0.82, 0.88, 0.94, 1.0])
    np.testing.assert_array_equal(airspace(values), [0, 0, 0, 0, 1, 1, 1])


def test_the_map_begins_at_the_first_node_that_can_be_air() -> None:
    """Percent aeration of the resolved map is that of the lung, which is measured on a finer raster."""
    for index in range(6):
        anatomy = draw(CONFIG, index)
        top = first_depth(anatomy, CONFIG)
        x = (np.arange(96) - 47.5) * CONFIG.grid.spacing
        assert np.all(np.abs(top - anatomy.wall.surface(x)) <= 1.5 * CONFIG.grid.spacing)
        air = airspace(resolved(anatomy, CONFIG)[0])[:20, 16:80].mean()
        shown = shown_config(CONFIG)
        assert abs(air - truth(anatomy, shown.map, truth_spacing(shown)).whole) < 0.04


def test_a_surface_that_is_not_in_the_grid_is_refused() -> None:
    anatomy = draw(CONFIG, 0)
    medium = rasterise(anatomy, CONFIG.grid.spacing, CONFIG.grid.depth, CONFIG.grid.width)
    for surface, said in ((np.full(96, 4.0), "give its depth in metres"), (np.full(5, 4e-3), "5 columns")):
        with pytest.raises(UsageError, match=said):
            LungForward(CONFIG, medium, surface, Scaling(0.5, 0.3))


def test_resolved_maps_are_training_data(tmp_path: Path) -> None:
    """Two channels of fractions, the size that the forward model takes; images cannot hold them."""
    write_maps(CONFIG, range(3), tmp_path / "nodes.npz", "nodes", quiet=True)
    maps = read_maps(tmp_path / "nodes.npz")
    assert (maps.channels, *maps.size) == (2, *resolved_size(CONFIG)) == (2, 24, 96)
    np.testing.assert_array_equal(maps.fraction()[1], resolved(draw(CONFIG, 1), CONFIG).astype(np.float32))
    with pytest.raises(UsageError, match="2 channels, which no image holds"):
        write_maps(CONFIG, range(3), tmp_path / "nodes", "nodes", quiet=True)
