"""Small simulations that several laws share: one shot over a given medium, corrected for time dispersion."""

from __future__ import annotations

import numpy as np
import torch

from laws.closed_form import tone_burst
from lungwave.acoustics.wave import COURANT, Discretisation, Fields, correct_traces, correct_wavelets, propagate

SPEED, DENSITY = 1540.0, 1000.0  # [m/s], [kg/m3] of the tissue around
FREQUENCY = 2.5e6  # [Hz]


def discretise(
    spacing: float,
    duration: float,
    *,
    order: int = 8,
    fastest: float = SPEED,
    fill: float = 0.9,
    frequency: float = FREQUENCY,
) -> Discretisation:
    """A grid whose step is ``fill`` of the stability limit for ``fastest`` [m/s], long enough for ``duration`` [s]."""
    step = fill * COURANT[order] * spacing / (fastest * 2**0.5)
    return Discretisation(spacing, step, int(np.ceil(duration / step)), frequency, order)


def fields(
    sound_speed: np.ndarray | float,
    density: np.ndarray | float = DENSITY,
    air: np.ndarray | float = 0.0,
    attenuation: np.ndarray | float | None = None,
    *,
    shape: tuple[int, int] | None = None,
    dtype: torch.dtype = torch.float32,
) -> Fields:
    """One shot's medium from arrays or numbers."""
    given = [sound_speed, density, air, attenuation]
    size = shape or np.broadcast_shapes(*(np.shape(g) for g in given if g is not None))
    ready = [
        None if g is None else torch.as_tensor(np.array(np.broadcast_to(g, size)), dtype=dtype)[None] for g in given
    ]
    return Fields(*ready)


def shoot(
    medium: Fields,
    grid: Discretisation,
    sources: list[tuple[int, int]],
    receivers: list[tuple[int, int]],
    *,
    rate: np.ndarray | None = None,
    correct_time: bool = True,
) -> np.ndarray:
    """Pressure (receiver, time) of cells that all emit ``rate`` [m2/s] (default: a two-cycle burst)."""
    dtype = medium.air.dtype
    rate = tone_burst(grid.steps, grid.time_step, grid.center_frequency) if rate is None else rate
    wavelets = torch.as_tensor(rate / grid.spacing**2, dtype=dtype).expand(1, len(sources), grid.steps).contiguous()
    if correct_time:
        wavelets = correct_wavelets(wavelets, grid.time_step)
    with torch.no_grad():
        traces = propagate(medium, wavelets, torch.tensor(sources)[None], torch.tensor(receivers)[None], grid)
        if correct_time:
            traces = correct_traces(traces, grid.time_step)
    return traces[0].numpy()
