"""Small recordings of every kind, cases, and the law that ties samples to geometry."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lungwave.acoustics.probe import Recording, Scan, linear_array
from lungwave.data.schema import CaseTable
from lungwave.phantom.aeration import Truth

C = 1540.0


def scan_of(kind: str) -> Scan:
    """Plane waves, beams of a walking aperture, or single elements; numbers that float32 cannot hold exactly."""
    elements = linear_array(16, 0.3e-3)
    rng = np.random.default_rng(3)
    if kind == "plane":
        angles = np.radians([-7.3, 0.0, 9.1])
        delays = elements[:, 0] * np.sin(angles)[:, None] / C
        return Scan(
            elements, 5.1e6, 20e6 / 3, delays, np.ones((3, 16)), np.array([1e-7, 2e-7, -3e-7]), np.full(3, np.inf),
            angles, np.zeros((3, 3)), C, 0.27e-3, 1.3e-7, 0.7, 0.0, True,
        )  # fmt: skip
    if kind == "walking":
        aperture = np.arange(8) + 2 * np.arange(4)[:, None]
        origins = elements[aperture].mean(1)
        away = np.linalg.norm(elements[aperture] - (origins + np.array([0, 0, 12e-3]))[:, None], axis=2)
        return Scan(
            elements, 5e6, 25e6, (12e-3 - away) / C, np.hanning(10)[1:-1] * np.ones((4, 1)), np.full(4, 2e-6),
            np.full(4, 12e-3), np.zeros(4), origins, rx_elements=aperture,
        )  # fmt: skip
    if kind == "matrix":
        curved = elements + np.stack([0 * elements[:, 0], 0 * elements[:, 0], rng.random(16) * 1e-3], 1)
        return Scan(
            curved, 4e6, 16e6, np.zeros((16, 16)), np.eye(16), np.zeros(16), np.zeros(16), np.zeros(16), curved.copy()
        )
    raise AssertionError(kind)


@pytest.fixture
def make_recording() -> Callable[..., Recording]:
    """Recording of noise; ``kind`` is plane, walking or matrix."""

    def make(kind: str = "plane", frames: int = 2, samples: int = 40) -> Recording:
        scan = scan_of(kind)
        rng = np.random.default_rng(1)
        rf = rng.standard_normal((frames, scan.transmits, samples, scan.delays.shape[1])).astype(np.float32)
        return Recording(rf=rf, scan=scan, probe_name="test array", description="noise")

    return make


@pytest.fixture
def make_cases() -> Callable[..., CaseTable]:
    """Cases with every field filled; invalid columns have NaN profiles."""

    def make(count: int = 2, rows: int = 6, columns: int = 5) -> CaseTable:
        rng = np.random.default_rng(2)
        truths = []
        for _ in range(count):
            valid = rng.random(columns) > 0.3
            truths.append(
                Truth(
                    sharp=rng.random((rows, columns)),
                    smooth=rng.random((rows, columns)),
                    lung=rng.random((rows, columns)) > 0.2,
                    valid=valid,
                    pleura_depth=rng.random(columns) * 0.03,
                    pixel=1e-4,
                    x=(np.arange(columns) - 2) * 1e-4,
                    bands=rng.random(2),
                    band_edges=(0.0, 1e-3, 6e-3),
                    whole=float(rng.random()),
                    profile=np.where(valid, rng.random(columns), np.nan),
                )
            )
        parameters = [json.dumps({"alveoli_um": 150 + i, "name": "Lünge"}) for i in range(count)]
        names = ["healthy", "interstitial"][:count]
        return CaseTable.of(truths, range(10, 10 + count), names, range(count), parameters)

    return make


@pytest.fixture
def rounded() -> Callable[[Scan], Scan]:
    """A scan as float32 files hold it; the clock moves by the first firing, which is kept beside it."""

    def single(value: np.ndarray) -> np.ndarray:
        return np.asarray(value, np.float32).astype(float)

    def make(scan: Scan) -> Scan:
        firing = np.where(scan.apodization != 0, scan.delays, np.inf).min(1)
        fires = scan.apodization != 0
        return replace(
            scan,
            elements=single(scan.elements),
            center_frequency=float(np.float32(scan.center_frequency)),
            sampling_frequency=float(np.float32(scan.sampling_frequency)),
            delays=np.where(fires, single(scan.delays - firing[:, None]) + single(firing)[:, None], 0.0),
            apodization=single(scan.apodization),
            start_times=single(scan.start_times - firing) + single(firing),
            focus_distance=single(scan.focus_distance),
            angles=single(scan.angles),
            origins=single(scan.origins),
            element_width=None if scan.element_width is None else float(np.float32(scan.element_width)),
        )

    return make


def arrival(scan: Scan, event: int, point: np.ndarray) -> float:
    """Time at which the wave of one event reaches a point [s], by Huygens from delays and positions alone."""
    fires = scan.apodization[event] != 0
    times = (scan.delays[event] + np.linalg.norm(scan.event_elements(event) - point, axis=1) / scan.sound_speed)[fires]
    return float(times.min())


@pytest.fixture
def assert_echo_from() -> Callable[[Recording, np.ndarray], None]:
    """Law: the strongest sample of every trace lies where the scan's own clock says that a point echoes."""

    def check(recording: Recording, point: np.ndarray) -> None:
        scan = recording.scan
        for event in range(scan.transmits):
            back = np.linalg.norm(scan.event_elements(event) - point, axis=1) / scan.sound_speed
            expected = (arrival(scan, event, point) + back - scan.start_times[event]) * scan.sampling_frequency
            found = np.abs(recording.rf[0, event]).argmax(0)
            assert np.abs(found - expected).max() < 0.6, f"event {event}: {found - expected}"

    return check
