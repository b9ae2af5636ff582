"""Peer of benchmarks/wave.py: j-Wave (JAX, pseudospectral) on the same grid. A problem as JSON in, JSON out."""

import json
import sys
import time
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from jwave import FourierSeries
from jwave.acoustics.time_varying import TimeWavePropagationSettings, simulate_wave_propagation
from jwave.geometry import Domain, Medium, Sensors, Sources, TimeAxis


def main() -> None:
    problem = json.load(sys.stdin)
    pad, steps = problem["pml_cells"], problem["steps"]
    shape = tuple(n + 2 * pad for n in problem["shape"])  # the absorbing layer counts as part of the domain here
    domain = Domain(shape, (problem["spacing"],) * 2)
    time_axis = TimeAxis(dt=problem["time_step"], t_end=(steps - 0.5) * problem["time_step"])
    speckle = 1 + 0.02 * np.random.default_rng(0).standard_normal(shape)
    density = FourierSeries(jnp.asarray(1000 * speckle, jnp.float32)[..., None], domain)
    columns = np.arange(shape[1] // 4, shape[1] - shape[1] // 4)
    rows = np.full_like(columns, pad)
    pulse = np.zeros(steps, np.float32)
    pulse[:40] = np.hanning(40)[:steps]
    sources = Sources((rows, columns), jnp.tile(pulse, (len(columns), 1)), problem["time_step"], domain)
    sensors = Sensors((tuple(rows), tuple(columns)))
    settings = TimeWavePropagationSettings(checkpoint=True)

    def forward(speed):
        field = FourierSeries(speed[..., None], domain)
        medium = Medium(domain, sound_speed=field, density=density, pml_size=pad)
        return simulate_wave_propagation(medium, time_axis, settings=settings, sources=sources, sensors=sensors)

    def timed(function, argument):
        jax.block_until_ready(function(argument))  # compile
        seconds = []
        for _ in range(problem["repeats"]):
            start = time.perf_counter()
            out = jax.block_until_ready(function(argument))
            seconds.append(time.perf_counter() - start)
        return seconds, bool(jnp.isfinite(out).all() and jnp.abs(out).max() > 0)

    speed = jnp.full(shape, 1540.0, jnp.float32)
    seconds, finite = timed(jax.jit(forward), speed)
    answer = {
        "version": metadata.version("jwave"),
        "what": f"k-space, jax {jax.__version__}, float32",
        "forward": seconds,
    }
    if problem["gradient"]:
        gradient, fine = timed(jax.jit(jax.grad(lambda s: (forward(s) ** 2).sum())), speed)
        answer["gradient"], finite = gradient, finite and fine
    print(json.dumps({**answer, "finite": finite}))


main()
