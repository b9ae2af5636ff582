"""Laws of arrays and transmit sequences."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lungwave.acoustics.probe import Recording, linear_array, pulse, sequence
from lungwave.config import preset
from lungwave.types import UsageError


def test_plane_wave_front_is_straight_and_tilted_as_stated() -> None:
    scan = sequence(preset("tiny"))
    for event, angle in enumerate(np.deg2rad([-8.0, 0.0, 8.0])):
        front = scan.delays[event] - scan.elements[:, 0] * np.sin(angle) / scan.sound_speed
        assert np.ptp(front) < 1e-12
        assert scan.delays[event].min() == 0
    # Steering towards +x: the element furthest to the left fires first.
    assert scan.delays[2, 0] < scan.delays[2, -1]


def test_focused_events_reach_the_focus_together() -> None:
    config = preset("paper")
    scan = sequence(config)
    assert scan.kind == "focused" and scan.transmits == config.sequence.events
    for event in range(scan.transmits):
        places = scan.event_elements(event)
        focus = scan.origins[event] + [0, 0, config.sequence.focus]
        arrival = scan.delays[event] + np.linalg.norm(places - focus, axis=1) / scan.sound_speed
        assert np.ptp(arrival) < 1e-12
        assert np.allclose(places[:, 0].mean(), scan.origins[event, 0])
    assert np.isclose(scan.origins[:, 0].mean(), 0)


def test_matrix_events_fire_one_element_each() -> None:
    scan = sequence(preset("micro").override({"sequence.kind": "matrix", "sequence.events": 5}))
    assert scan.kind == "matrix"
    assert np.array_equal(scan.apodization, np.eye(5, 16))


def test_pulse_lasts_its_cycles_and_peaks_in_the_middle() -> None:
    times = np.linspace(-1e-6, 2e-6, 6001)
    burst = pulse(times, 3e6, 2)
    support = times[burst != 0]
    assert support.min() >= 0 and support.max() <= 2 / 3e6
    assert abs(np.abs(burst).max() - 1) < 0.2  # a sine under a Hann window does not quite touch it
    assert abs(burst.sum()) < 1e-9 * len(times)  # no static push


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"probe.elements": 0}, "give elements, 1 to"),
        ({"probe.width": 1e-3}, "width <= pitch"),
        ({"probe.pitch": 0.25, "probe.width": 1e-6}, "millimetre"),
        ({"probe.center_frequency": 3000.0}, "kHz or MHz"),
        ({"sequence.angles": [80.0]}, "within 60 degrees"),
        ({"sequence.angles": []}, "at least one"),
        ({"sequence.kind": "focused", "sequence.events": 90}, "the array has"),
        ({"sequence.kind": "matrix", "sequence.events": 0}, "give events, 1 to"),
    ],
)
def test_bad_probe_is_named_with_its_cure(change: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        sequence(preset("tiny").override(change))


def test_recording_refuses_what_cannot_be_rf() -> None:
    scan = sequence(preset("micro"))
    rf = np.random.default_rng(0).standard_normal((2, 1, 96, 16))
    Recording(rf, scan).validate()
    broken = rf.copy()
    broken[0, 0, 3, 4] = np.nan
    silent = rf.copy()
    silent[1] = 0
    for samples, says in (
        (broken, "1 NaN"),
        (silent, "frame 1 is all zero"),
        (rf[..., :8], "transpose"),
        (rf[:0], "at least 1"),
    ):
        with pytest.raises(UsageError, match=says):
            Recording(samples, scan).validate()
    for change, says in (
        ({"elements": linear_array(16, 0.5)}, "millimetres"),
        ({"sampling_frequency": 6.0}, "hertz"),
        ({"sound_speed": 1.54}, "metres per second"),
        ({"angles": np.array([8.0])}, "radians"),
        ({"delays": scan.delays + 1.0}, "microseconds"),
        ({"apodization": scan.apodization * 0}, "fires no element"),
    ):
        with pytest.raises(UsageError, match=says):
            replace(scan, **change).validate()
