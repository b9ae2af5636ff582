"""Peer of benchmarks/wave.py: k-wave-python's NumPy backend on the same grid. Reads a problem as JSON, answers in JSON.

``import kwave`` wants to download compiled solvers. The NumPy backend needs none of them, so the download is answered
with the time-out that the package handles itself, and nothing leaves the machine.
"""

import json
import logging
import sys
import time
import urllib.request


def _offline(*_args, **_kwargs):
    raise TimeoutError("the NumPy backend needs no download")


urllib.request.urlretrieve = _offline
logging.disable(logging.WARNING)  # the package reports each refused download twice

import kwave  # noqa: E402
import numpy as np  # noqa: E402
from kwave.kgrid import kWaveGrid  # noqa: E402
from kwave.kmedium import kWaveMedium  # noqa: E402
from kwave.ksensor import kSensor  # noqa: E402
from kwave.ksource import kSource  # noqa: E402
from kwave.kspaceFirstOrder import kspaceFirstOrder  # noqa: E402


def main() -> None:
    problem = json.load(sys.stdin)
    (nz, nx), steps = problem["shape"], problem["steps"]
    speckle = 1 + 0.02 * np.random.default_rng(0).standard_normal((nz, nx))
    grid = kWaveGrid([nz, nx], [problem["spacing"]] * 2)
    grid.setTime(steps, problem["time_step"])
    medium = kWaveMedium(sound_speed=1540.0 * np.ones((nz, nx)), density=1000.0 * speckle)
    row = np.zeros((nz, nx))
    row[0, nx // 4 : -nx // 4] = 1
    pulse = np.zeros(steps)
    pulse[:40] = np.hanning(40)[:steps]
    source = kSource()
    source.p_mask = row
    source.p = np.tile(pulse, (int(row.sum()), 1))
    sensor = kSensor(mask=row.astype(bool), record=["p"])
    seconds, finite = [], True
    for _ in range(problem["repeats"]):
        start = time.perf_counter()
        out = kspaceFirstOrder(
            grid, medium, source, sensor, pml_size=problem["pml_cells"], smooth_p0=False, quiet=True, dtype=np.float32
        )
        seconds.append(time.perf_counter() - start)
        finite &= bool(np.isfinite(out["p"]).all() and np.abs(out["p"]).max() > 0)
    answer = {
        "version": kwave.__version__,
        "what": "k-space, NumPy backend, float32",
        "forward": seconds,
        "finite": finite,
    }
    print(json.dumps(answer))


main()
