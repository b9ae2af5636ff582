"""Laws of the receive chain."""

from __future__ import annotations

import numpy as np
import pytest

from lungwave.acoustics.probe import pulse, sequence
from lungwave.acoustics.receive import add_noise, dead_time_window, drop_elements, echo_rms, receive_matrix
from lungwave.config import preset
from lungwave.types import UsageError

TINY = preset("tiny")


def matrix() -> np.ndarray:
    return receive_matrix(TINY.grid.steps, TINY.grid.time_step, TINY.probe.center_frequency, TINY.receive)


def test_pass_band_is_one_at_the_centre_and_half_at_its_edges() -> None:
    chain, f0 = matrix(), TINY.probe.center_frequency
    times = np.arange(TINY.grid.steps) * TINY.grid.time_step
    inner = slice(60, -60)
    samples = np.arange(len(chain))[inner] / TINY.receive.sampling_frequency
    for frequency, gain in ((f0, 1.0), (f0 * 0.4, 0.5), (f0 * 1.6, 0.5), (f0 * 1.3, 2**-0.25)):
        tone = np.exp(2j * np.pi * frequency * times)
        heard = (chain @ tone)[inner]
        expected = gain * np.exp(2j * np.pi * frequency * samples)
        assert np.abs(heard - expected).max() < 0.02, frequency


def test_resampling_moves_a_pulse_by_nothing() -> None:
    chain, f0 = matrix(), TINY.probe.center_frequency
    times = np.arange(TINY.grid.steps) * TINY.grid.time_step
    samples = np.arange(len(chain)) / TINY.receive.sampling_frequency
    early, late = (
        chain @ pulse(times - 3e-6, f0, 4),
        chain @ pulse(times - 3e-6 - 7 / TINY.receive.sampling_frequency, f0, 4),
    )
    assert np.abs(late[7:] - early[:-7]).max() < 5e-3 * np.abs(early).max()
    middle = (samples * early**2).sum() / (early**2).sum()
    assert abs(middle - (3e-6 + 2 / f0)) < 2e-9


def test_noise_has_the_stated_level_and_its_own_stream() -> None:
    scan = sequence(TINY)
    rf = np.random.default_rng(1).standard_normal((3, 192, 32)).astype(np.float32)
    noisy, sigma = add_noise(rf, scan, TINY.receive, np.random.default_rng(2), 20.0)
    again, _ = add_noise(rf, scan, TINY.receive, np.random.default_rng(2), 20.0)
    assert np.array_equal(noisy, again)
    assert np.isclose(sigma, echo_rms(rf, scan, TINY.receive.echo_start) / 10)
    assert np.isclose((noisy - rf).std(), sigma, rtol=0.02)
    clean, none = add_noise(rf, scan, TINY.receive, np.random.default_rng(2), float("inf"))
    assert none == 0 and clean is rf
    with pytest.raises(UsageError, match="decibels"):
        add_noise(rf, scan, TINY.receive, np.random.default_rng(2), float("nan"))


def test_switch_is_closed_first_and_open_at_the_pleura() -> None:
    scan = sequence(TINY)
    window = dead_time_window(scan, 192, TINY.receive.dead_time)
    assert (window[:, 0] == 0).all() and (window[:, -1] == 1).all()
    assert (np.diff(window, axis=1) >= 0).all()
    pleura = int((2 * TINY.wall.pleura_depth[0] / 1540) * scan.sampling_frequency)
    assert (window[:, pleura] == 1).all()


def test_dropped_elements_are_silent_and_the_others_untouched() -> None:
    rf = np.ones((3, 10, 32), np.float32)
    dropped = drop_elements(rf, 5, np.random.default_rng(0))
    assert (dropped.sum((0, 1)) == 0).sum() == 5 and dropped.sum() == 27 * 30
    with pytest.raises(UsageError, match="cannot drop"):
        drop_elements(rf, 32, np.random.default_rng(0))


def test_too_slow_sampling_is_refused() -> None:
    with pytest.raises(UsageError, match="raise it or narrow the band"):
        receive_matrix(100, 1e-8, 3e6, TINY.override({"receive.sampling_frequency": 6e6}).receive)
