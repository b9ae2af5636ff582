"""Receive chain: dead time, band-pass and sampling as one matrix; noise at a stated SNR; dropped elements."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

from lungwave.acoustics.probe import Scan
from lungwave.config import Config, ReceiveConfig
from lungwave.types import Channels, UsageError


def output_samples(duration: float, sampling_frequency: float) -> int:
    """Samples that fit into a record of ``duration`` [s]."""
    return max(math.floor(duration * sampling_frequency * (1 + 1e-12)), 1)


def record_samples(config: Config) -> int:
    """Samples of a record of a configuration."""
    return output_samples(config.grid.steps * config.grid.time_step, config.receive.sampling_frequency)


def receive_matrix(
    steps: int, time_step: float, center_frequency: float, receive: ReceiveConfig
) -> Float[np.ndarray, "out time"]:
    """Band-pass and resampling of a trace as one matrix, from solver steps to RF samples.

    Zero-phase Gaussian pass-band, -6 dB at ``center_frequency (1 +- bandwidth / 2)``; band-limited interpolation, so
    the RF rate need not divide the solver's. The kernel is h(t) = 2 df sum_k H(f_k) cos(2 pi f_k t).

    Raises:
        UsageError: the RF rate cannot carry the pass-band.
    """
    upper = center_frequency * (1 + receive.bandwidth)  # Gaussian at -24 dB
    if receive.sampling_frequency < 2 * center_frequency * (1 + receive.bandwidth / 2):
        raise UsageError(
            f"receive.sampling_frequency {receive.sampling_frequency:g} Hz is below the "
            f"{2 * center_frequency * (1 + receive.bandwidth / 2):g} Hz that {center_frequency:g} Hz with bandwidth "
            f"{receive.bandwidth:g} needs; raise it or narrow the band"
        )
    out = output_samples(steps * time_step, receive.sampling_frequency)
    step = 1 / (4 * steps * time_step)  # [Hz] fine enough that the kernel's periodic copy lies outside the record
    frequency = np.arange(0.5, min(2 * upper, 0.5 / time_step) / step) * step
    gain = np.exp(-math.log(2) * ((frequency - center_frequency) / (receive.bandwidth * center_frequency / 2)) ** 2)
    keep = gain > 1e-6
    frequency, gain = frequency[keep], gain[keep]
    samples = np.arange(out) / receive.sampling_frequency
    times = np.arange(steps) * time_step
    # cos(a - b) = cos a cos b + sin a sin b: two thin factors instead of a cube of cosines
    phase_out, phase_in = 2 * np.pi * np.outer(samples, frequency), 2 * np.pi * np.outer(frequency, times)
    matrix = (np.cos(phase_out) * gain) @ np.cos(phase_in) + (np.sin(phase_out) * gain) @ np.sin(phase_in)
    return matrix * (2 * step * time_step)


def dead_time_window(scan: Scan, samples: int, dead_time: float) -> Float[np.ndarray, "tx time el"]:
    """Weight 0 while a channel's switch is closed (to ``dead_time`` [s] after the last firing), then a 0.3 us taper."""
    times = scan.start_times[:, None] + np.arange(samples) / scan.sampling_frequency
    opening = scan.delays.max(1)[:, None] + 2 * scan.pulse_delay + dead_time
    ramp = np.clip((times - opening) / 0.3e-6, 0, 1)
    return np.broadcast_to(np.sin(np.pi / 2 * ramp)[:, :, None] ** 2, (*times.shape, scan.delays.shape[1]))


def echo_rms(rf: np.ndarray, scan: Scan, echo_start: float) -> float:
    """RMS of the echoes: all samples later than ``echo_start`` [s] after the last firing of their event."""
    times = scan.start_times[:, None] + np.arange(rf.shape[-2]) / scan.sampling_frequency
    late = times >= scan.delays.max(1)[:, None] + echo_start
    if not late.any():
        raise UsageError(f"receive.echo_start {echo_start:g} s lies after the end of the record; lower it")
    return float(np.sqrt(np.mean(np.square(rf, dtype=np.float64)[late])))


def add_noise(
    rf: Channels, scan: Scan, receive: ReceiveConfig, generator: np.random.Generator, snr_db: float | None = None
) -> tuple[Channels, float]:
    """RF plus white Gaussian noise, and the noise's standard deviation in RF units.

    SNR = 20 log10(echo RMS / sigma); the RMS is taken after ``receive.echo_start``. ``snr_db`` overrides the config;
    infinity adds nothing.
    """
    level = receive.snr_db if snr_db is None else snr_db
    if math.isinf(level) and level > 0:
        return rf, 0.0
    if not math.isfinite(level):
        raise UsageError(f"receive.snr_db is {level}; give decibels, or inf for none")
    sigma = echo_rms(rf, scan, receive.echo_start) * 10 ** (-level / 20)
    return rf + generator.normal(0.0, sigma, rf.shape).astype(rf.dtype), sigma


def drop_elements(rf: Channels, count: int, generator: np.random.Generator) -> Channels:
    """Silence ``count`` random receive channels, as dead elements do."""
    if not 0 <= count < rf.shape[-1]:
        raise UsageError(f"cannot drop {count} of {rf.shape[-1]} elements; leave at least one")
    dropped = rf.copy()
    dropped[..., generator.choice(rf.shape[-1], count, replace=False)] = 0
    return dropped
