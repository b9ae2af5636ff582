"""Closed-form acoustics in 2D, by Fourier sums over e^{+i w t}: what the solver laws compare with."""

from __future__ import annotations

import numpy as np
from scipy.special import hankel2, jv


def filtered(signal: np.ndarray, time_step: float, response) -> np.ndarray:
    """``signal`` (time,) through ``response(w)`` of angular frequency [rad/s], without wrap-around."""
    padded = 8 * len(signal)
    w = 2 * np.pi * np.fft.rfftfreq(padded, time_step)
    spectrum = np.fft.rfft(signal, padded)
    spectrum[1:] *= response(w[1:])
    spectrum[0] = 0.0  # a tone burst carries no mean
    return np.fft.irfft(spectrum, padded)[: len(signal)]


def half_step_late(w: np.ndarray, time_step: float) -> np.ndarray:
    """Source samples act at (n + 1/2) dt, records are taken at n dt."""
    return np.exp(-0.5j * w * time_step)


def point_source(rate: np.ndarray, time_step: float, distance: float, sound_speed: float, density: float) -> np.ndarray:
    """Pressure of a line source of volume rate [m2/s]: p = i w rho Q (-i/4) H0(2)(k r)."""

    def response(w: np.ndarray) -> np.ndarray:
        green = -0.25j * hankel2(0, w * distance / sound_speed)
        return 1j * w * density * green * half_step_late(w, time_step)

    return filtered(rate, time_step, response)


def soft_cylinder(
    rate: np.ndarray,
    time_step: float,
    radius: float,
    source_distance: float,
    receiver_distance: float,
    angle: float,
    sound_speed: float,
    density: float,
) -> np.ndarray:
    """Wave scattered by a pressure-release cylinder, source and receiver ``angle`` [rad] apart as seen from its axis.

    Addition theorem: (i/4) sum_n J_n(ka) / H_n(ka) H_n(k r_s) H_n(k r) e^{i n phi}, H of the second kind.
    """

    def response(w: np.ndarray) -> np.ndarray:
        k = w / sound_speed
        total = np.zeros(len(w), complex)
        heard = k * radius < 40  # the pulse carries nothing above; H_n J_n would overflow far below n
        k = k[heard]
        for n in range(0, 60):
            with np.errstate(all="ignore"):
                term = jv(n, k * radius) / hankel2(n, k * radius) * hankel2(n, k * source_distance)
                term = term * hankel2(n, k * receiver_distance) * (np.cos(n * angle) * (1 if n == 0 else 2))
            total[heard] += np.where(np.isfinite(term), term, 0)
        return 0.25j * total * 1j * w * density * half_step_late(w, time_step)

    return filtered(rate, time_step, response)


def slab_reflection(w: np.ndarray, thickness: float, sound_speed: float, z1: float, z2: float) -> np.ndarray:
    """Normal reflection of a layer (impedance ``z2``, ``sound_speed``) between half-spaces of impedance ``z1``."""
    r = (z2 - z1) / (z2 + z1)
    turn = np.exp(-2j * w * thickness / sound_speed)
    return r * (1 - turn) / (1 - r**2 * turn)


def tone_burst(steps: int, time_step: float, frequency: float, cycles: float = 2.0) -> np.ndarray:
    """Hann-windowed burst at (n + 1/2) dt."""
    time = (np.arange(steps) + 0.5) * time_step
    length = cycles / frequency
    return np.where(time < length, np.sin(2 * np.pi * frequency * time) * np.sin(np.pi * time / length) ** 2, 0.0)


def relative_error(found: np.ndarray, truth: np.ndarray) -> float:
    """Relative L2 distance."""
    return float(np.linalg.norm(found - truth) / np.linalg.norm(truth))
