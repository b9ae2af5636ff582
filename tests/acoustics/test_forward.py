"""Laws of the forward model as a whole: batching, windows, the probe's face, bad input."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.signal import hilbert

from lungwave.acoustics.forward import Simulator
from lungwave.config import Config, preset
from lungwave.phantom.anatomy import AIR_DENSITY, AIR_DEPTH, AIR_REACH, draw, rasterise
from lungwave.phantom.medium import Medium
from lungwave.types import MM, UsageError

SMALL = preset("micro").override({"grid.steps": 300, "grid.gradient_stride": 5})


def lung(config: Config, index: int = 0, width: float | None = None) -> Medium:
    return rasterise(draw(config, index), config.grid.spacing, config.grid.depth, width or config.grid.width)


def uniform(config: Config, width: float | None = None, reflector: float | None = None) -> Medium:
    shape = (round(config.grid.depth / config.grid.spacing), round((width or config.grid.width) / config.grid.spacing))
    air = np.zeros(shape)
    if reflector is not None:
        air[round(reflector / config.grid.spacing) :] = 1
    x = -(shape[1] - 1) / 2 * config.grid.spacing
    return Medium(np.full(shape, 1540.0), np.full(shape, 1000.0), np.zeros(shape), air, config.grid.spacing, (0.0, x))


def test_batch_equals_one_by_one_to_the_bit() -> None:
    simulator = Simulator(SMALL)
    media = [lung(SMALL, i) for i in range(3)]
    together = simulator.channels(media)
    alone = torch.cat([simulator.channels(m) for m in media])
    assert torch.equal(together, alone)
    assert torch.equal(together, Simulator(SMALL, shots_per_call=2).channels(media))


def test_events_can_be_propagated_apart() -> None:
    config = SMALL.override({"sequence.angles": [-8.0, 0.0, 8.0]})
    simulator, medium = Simulator(config), lung(config)
    assert torch.equal(simulator.channels(medium)[:, [2]], simulator.channels(medium, events=[2]))


def test_air_plane_echoes_with_flipped_sign_at_the_right_time() -> None:
    config = SMALL.override({"probe.face_reflection": 0.0, "grid.attenuation": False, "grid.width": 19.2 * MM})
    simulator = Simulator(config)
    depth = 4 * MM
    rf = simulator.channels(uniform(config, reflector=depth))[0, 0, :, 7:9].mean(1).numpy()
    scan = simulator.scan
    times = np.arange(len(rf)) / scan.sampling_frequency
    peak = times[np.argmax(np.abs(rf))]
    # The pulse is antisymmetric about its middle, so its envelope peaks between two extremes a quarter period away.
    expected = 2 * depth / 1540 + scan.pulse_delay
    assert abs(peak - expected) < 0.3 / scan.center_frequency
    # 1 Pa goes down, -1 comes back less what the band-pass and diffraction take.
    middle = np.sin(2 * np.pi * scan.center_frequency * (times - expected + scan.pulse_delay))
    near = np.abs(times - expected) < 0.5 / scan.center_frequency
    assert np.sum(middle[near] * rf[near]) < 0
    assert 0.7 < np.abs(hilbert(rf)).max() < 1.1


def test_air_between_two_nodes_echoes_from_where_it_is() -> None:
    """The density of air nodes places the lung surface: the echo's delay follows it within a cell, where a staircase
    waits and then jumps by a whole cell."""
    config = SMALL.override(
        {"probe.face_reflection": 0.0, "grid.attenuation": False, "receive.sampling_frequency": 24e6}
    )
    simulator = Simulator(config)
    spacing, frequency = config.grid.spacing, config.probe.center_frequency
    plain = uniform(config)
    places = 4 * MM + np.arange(0, 1.0, 0.1) * spacing

    def moved(first: float, densities: tuple[float, ...]) -> np.ndarray:
        """Deviation of the echo from the surface [cell]."""
        delays = []
        for place in places:
            inside = (plain.z - place) / spacing  # [cell] how deep a node lies in the air
            level = np.searchsorted((first, *AIR_DEPTH[1:]), inside, side="right")
            factor = np.array((1.0, *densities))[level][:, None]
            air = np.broadcast_to(level[:, None] > 0, plain.air.shape) * 1.0
            trace = simulator.channels(replace(plain, density=plain.density * factor, air=air))[0, 0, :, 7:9].mean(1)
            turn = np.exp(-2j * np.pi * frequency * np.arange(len(trace)) / 24e6)
            delays.append(-np.angle((trace.numpy() * turn).sum()) / (2 * np.pi * frequency))
        found = np.unwrap(np.array(delays), period=1 / frequency) * 1540 / 2 / spacing
        error = found - (places - places[0]) / spacing
        return error - error.mean()

    placed, staircase = moved(-AIR_REACH, AIR_DENSITY), moved(-AIR_REACH, (1.0,) * len(AIR_DENSITY))
    assert np.std(staircase) > 0.25  # uniform over a cell: 0.29
    assert np.std(placed) < 0.5 * np.std(staircase)
    assert np.abs(placed).max() < 0.3


def test_probe_face_makes_an_a_line_of_its_reflection() -> None:
    """Mirror law: the second echo of air at depth d is r times the first echo of air at 2 d, diffraction included.

    Envelopes: the face lies half a cell behind the elements, which turns the carrier but not the envelope.
    """
    config = SMALL.override({"grid.attenuation": False, "grid.width": 16 * MM, "grid.depth": 8 * MM})
    config = config.override({"grid.spacing": 50e-6, "grid.time_step": 13.5e-9, "grid.steps": 800})
    reflection, depth = 0.3, 3 * MM

    def envelope(face: float, at: float) -> np.ndarray:
        simulator = Simulator(config.override({"probe.face_reflection": face}))
        rf = simulator.channels(uniform(config, reflector=at))[0, 0, :, 7:9].mean(1).numpy()
        times = np.arange(len(rf)) / simulator.scan.sampling_frequency
        return np.abs(hilbert(rf))[np.abs(times - 4 * depth / 1540 - simulator.scan.pulse_delay) < 1e-6]

    second, mirrored = envelope(reflection, depth), envelope(reflection, 2 * depth)
    assert abs(second.max() / mirrored.max() - reflection) < 0.1 * reflection
    assert envelope(0.0, depth).max() < 0.1 * second.max()


def test_walking_aperture_sees_what_lies_below_it() -> None:
    """A medium shifted by one step gives event k what event k + 1 saw."""
    config = SMALL.override(
        {"sequence.kind": "focused", "sequence.events": 3, "sequence.focus": 5 * MM, "probe.array_elements": 24}
        | {"sequence.event_step": 4, "receive.echo_start": 2e-6}
    )
    simulator = Simulator(config)
    anatomy_width = simulator.medium_width
    wide = lung(config, 4, anatomy_width)
    rf = simulator.channels(wide)[0]
    cells = round(4 * config.probe.pitch / config.grid.spacing)
    roll = Medium(
        *(np.roll(getattr(wide, n), -cells, 1) for n in ("sound_speed", "density", "attenuation", "air")),
        wide.spacing,
        wide.origin,
    )
    moved = simulator.channels(roll)[0]
    assert torch.equal(moved[0], rf[1])
    assert torch.equal(moved[1], rf[2])


def test_cost_counts_shots_and_cells() -> None:
    simulator = Simulator(SMALL)
    simulator.channels([lung(SMALL), lung(SMALL, 1)])
    cells = (112 + 4 + 40) * (96 + 40)
    assert simulator.cost.forward == 2 and simulator.cost.cell_updates == 2 * cells * 300


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"grid.time_step": 60e-9}, "unstable .* use at most 27"),
        ({"grid.spacing": 200e-6, "grid.time_step": 40e-9}, "points per wavelength .* use at most 11"),
        ({"grid.width": 5 * MM}, "set grid.width to at least 8"),
        ({"grid.gradient_stride": 7}, "must divide"),
        ({"probe.face_reflection": 1.0}, "0 <= r < 0.9"),
        ({"grid.steps": 0}, "give steps, 1 to"),
        ({"lung.rib_probability": 0.5}, "unstable for 3432 m/s"),
    ],
)
def test_bad_grid_is_named_with_its_cure(change: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Simulator(SMALL.override(change))


def test_medium_outside_the_valid_range_is_refused() -> None:
    simulator = Simulator(SMALL)
    medium = uniform(SMALL)
    for name, value, says in (("sound_speed", 3000.0, "valid is"), ("air", 1.5, "clip it"), ("density", np.nan, "NaN")):
        wrong = {n: getattr(medium, n).copy() for n in ("sound_speed", "density", "attenuation", "air")}
        wrong[name][3, 3] = value
        with pytest.raises(UsageError, match=says):
            simulator.channels(Medium(**wrong, spacing=medium.spacing, origin=medium.origin))
    with pytest.raises(UsageError, match="rasterise the anatomy"):
        simulator.channels(Medium(**wrong, spacing=5e-5, origin=medium.origin))
    with pytest.raises(UsageError, match="at least one case"):
        simulator.channels([])
    with pytest.raises(UsageError, match="not within"):
        simulator.channels(medium, events=[1])
