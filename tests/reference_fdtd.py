"""An independent acoustic solver in plain NumPy, for checks only: it shares no code with lungwave or deepwave.

It solves, on a staggered grid and by leapfrog,

    rho dv/dt = -grad p,      (1 / (rho c^2)) dp/dt = -div v + q

with pressure p at the nodes, velocity between them, density averaged arithmetically onto the velocity points, and air
as the Fullwave family treats it: **p is set to 0 on air nodes after every step**. The absorbing layer is Berenger's
split field (J. Comput. Phys. 114:185, 1994). The medium is lossless.

Time: p is known at n dt and recorded before the update, q acts at (n + 1/2) dt. Leapfrog at step dt turns the frequency
w of the exact solution into (2 / dt) asin(w dt / 2) and changes nothing else, so with ``correct_time`` the source is
moved to those frequencies beforehand and the record moved back afterwards, by plain Fourier sums (the idea of Koene et
al., Geophys. J. Int. 213:1130, 2018). Without it, keep c dt / dx below about 0.1.
"""

from __future__ import annotations

import numpy as np

Array = np.ndarray


def stencil(order: int) -> Array:
    """Weights a_1..a_h of f'(0) ~ sum_k a_k (f((k - 1/2) dx) - f((1/2 - k) dx)) / dx, exact to ``order`` = 2 h."""
    arms = 2 * np.arange(1, order // 2 + 1) - 1  # distances in half cells
    powers = np.array([arms.astype(float) ** m for m in range(1, order, 2)])
    return np.linalg.solve(powers, np.eye(order // 2)[0])  # odd Taylor terms: 1, 0, 0, ...


def stable_step(spacing: float, max_sound_speed: float, order: int) -> float:
    """Largest stable leapfrog step of the 2D staggered stencil [s]."""
    return spacing / (max_sound_speed * np.sqrt(2) * np.abs(stencil(order)).sum())


def simulate(
    sound_speed: Array,  # (z, x) [m/s]
    density: Array,  # (z, x) [kg/m3]
    air: Array,  # (z, x) bool, True = pressure release
    spacing: float,  # [m]
    time_step: float,  # [s]
    source_cells: Array,  # (s, 2) int (z, x)
    source_rate: Array,  # (s, time) [m2/s] volume per metre of height and second that each cell emits, at (n + 1/2) dt
    receiver_cells: Array,  # (c, 2) int
    receiver_weights: Array,  # (r, c) each receiver is a weighted sum of cells
    *,
    order: int = 4,
    pml_cells: int = 30,
    correct_time: bool = True,
    max_frequency: float | None = None,  # [Hz] band that ``correct_time`` keeps; None = 0.2 / time_step
    dtype: type = np.float32,
) -> Array:
    """Pressure at the receivers, (time, r) [Pa], sample n at n dt."""
    limit = stable_step(spacing, float(sound_speed.max()), order)
    if time_step > limit:
        raise ValueError(f"time step {time_step:g} s exceeds the stable {limit:g} s")
    steps = source_rate.shape[1]
    band = 0.2 / time_step if max_frequency is None else max_frequency
    if correct_time:
        source_rate = to_leapfrog_time(source_rate, time_step, band)

    pad, half, weights = pml_cells, order // 2, stencil(order) / spacing
    c, rho = (np.pad(np.asarray(f, float), pad, mode="edge") for f in (sound_speed, density))
    tissue = ~np.pad(np.asarray(air, bool), pad, mode="edge")
    nz, nx = c.shape
    stiffness = rho * c**2
    rho_z = (rho + np.vstack([rho[1:], rho[-1:]])) / 2  # at (i + 1/2, j)
    rho_x = (rho + np.hstack([rho[:, 1:], rho[:, -1:]])) / 2  # at (i, j + 1/2)

    keep_z, gain_z = _damping(nz, pad, 0.0, spacing, time_step, float(c.max()))
    keep_x, gain_x = _damping(nx, pad, 0.0, spacing, time_step, float(c.max()))
    keep_vz, gain_vz = _damping(nz, pad, 0.5, spacing, time_step, float(c.max()))
    keep_vx, gain_vx = _damping(nx, pad, 0.5, spacing, time_step, float(c.max()))
    as_column, cast = (slice(None), None), lambda f: np.ascontiguousarray(f, dtype)
    step_pz, step_px = cast(stiffness * gain_z[as_column]), cast(stiffness * gain_x)
    step_vz, step_vx = cast(gain_vz[as_column] / rho_z), cast(gain_vx / rho_x)
    keep_z, keep_vz = cast(keep_z[as_column]), cast(keep_vz[as_column])
    keep_x, keep_vx, tissue = cast(keep_x), cast(keep_vx), cast(tissue)

    # Fields carry ``half`` rows and columns of zeros around the domain, so that every stencil is a shifted slice.
    p, vz, vx = (np.zeros((nz + 2 * half, nx + 2 * half), dtype) for _ in range(3))
    inner = (slice(half, half + nz), slice(half, half + nx))
    pz, px, change, term = (np.zeros((nz, nx), dtype) for _ in range(4))

    def derivative(f: Array, axis: int, ahead: int) -> Array:
        """First derivative of ``f`` half a cell ahead (1) or behind (0), into ``change``."""
        for k, a in enumerate(weights, 1):
            high, low = half + k - 1 + ahead, half - k + ahead
            plus, minus = (
                f[(slice(o, o + nz), inner[1])] if axis == 0 else f[(inner[0], slice(o, o + nx))] for o in (high, low)
            )
            out = change if k == 1 else term
            np.subtract(plus, minus, out=out)
            np.multiply(out, dtype(a), out=out)
            if k > 1:
                np.add(change, term, out=change)
        return change

    def advance(f: Array, keep: Array, gain: Array, slope: Array) -> None:
        """f <- keep f - gain slope."""
        np.multiply(slope, gain, out=slope)
        np.multiply(f, keep, out=f)
        np.subtract(f, slope, out=f)

    src = (source_cells[:, 0] + pad, source_cells[:, 1] + pad)
    injection = (time_step * stiffness[src][:, None] * source_rate / spacing**2).astype(dtype)
    rec = (receiver_cells[:, 0] + pad + half, receiver_cells[:, 1] + pad + half)
    record = np.empty((steps, len(receiver_cells)), dtype)
    for n in range(steps):
        record[n] = p[rec]
        advance(vz[inner], keep_vz, step_vz, derivative(p, 0, 1))
        advance(vx[inner], keep_vx, step_vx, derivative(p, 1, 1))
        advance(pz, keep_z, step_pz, derivative(vz, 0, 0))
        advance(px, keep_x, step_px, derivative(vx, 1, 0))
        np.add.at(pz, src, injection[:, n])
        np.multiply(pz, tissue, out=pz)  # air: pressure release
        np.multiply(px, tissue, out=px)
        np.add(pz, px, out=p[inner])
    traces = record.astype(float) @ np.asarray(receiver_weights, float).T
    return from_leapfrog_time(traces.T, time_step, band).T if correct_time else traces


def _damping(cells: int, pad: int, shift: float, spacing: float, time_step: float, speed: float) -> tuple[Array, Array]:
    """Factors of f <- keep f - gain slope for df/dt + sigma f = -slope, sigma cubic in the layer, R = 1e-6 [K]."""
    position = np.arange(cells) + shift
    depth = np.clip(np.maximum(pad - position, position - (cells - 1 - pad)), 0, None) / max(pad, 1)
    sigma = 4 * speed * np.log(1e6) / (2 * max(pad, 1) * spacing) * depth**3
    return (1 - sigma * time_step / 2) / (1 + sigma * time_step / 2), time_step / (1 + sigma * time_step / 2)


def to_leapfrog_time(signal: Array, time_step: float, band: float) -> Array:
    """Put what should happen at a frequency where leapfrog makes it happen; (s, time), samples at (n + 1/2) dt."""
    steps = signal.shape[1]
    time = (np.arange(steps) + 0.5) * time_step
    numeric = _frequencies(steps, time_step, band)  # [rad/s] of the simulation
    exact = 2 / time_step * np.sin(numeric * time_step / 2)
    return _resynthesise(signal, time, exact, numeric)


def from_leapfrog_time(signal: Array, time_step: float, band: float) -> Array:
    """(r, time): the inverse for a record sampled at n dt."""
    steps = signal.shape[1]
    time = np.arange(steps) * time_step
    exact = _frequencies(steps, time_step, band)
    numeric = 2 / time_step * np.arcsin(exact * time_step / 2)
    return _resynthesise(signal, time, numeric, exact)


def _frequencies(steps: int, time_step: float, band: float) -> Array:
    spacing = 2 * np.pi / (2 * steps * time_step)  # a period of twice the record: no wrap-around
    return spacing * np.arange(int(2 * np.pi * band / spacing) + 1)


def _resynthesise(signal: Array, time: Array, read: Array, write: Array) -> Array:
    """Spectrum at ``read`` [rad/s], written at the evenly spaced ``write``; both as plain sums."""
    dt, dw = time[1] - time[0], write[1] - write[0]
    spectrum = signal @ np.exp(-1j * time[:, None] * read) * dt
    spectrum[:, 0] /= 2  # w = 0 is its own mirror image
    return (spectrum @ np.exp(1j * write[:, None] * time)).real * dw / np.pi
