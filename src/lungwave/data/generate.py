"""Cases in bulk: (config, index) -> case is pure; a local process pool fills shards; rerunning the command resumes."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording
from lungwave.acoustics.receive import add_noise, drop_elements
from lungwave.config import Config
from lungwave.data import seal
from lungwave.data.card import CARD, data_card
from lungwave.data.hdf5 import write_recording
from lungwave.data.schema import CaseTable
from lungwave.phantom.aeration import Truth, truth, truth_spacing
from lungwave.phantom.anatomy import Anatomy, draw, rasterise
from lungwave.pool import open_pool
from lungwave.progress import Progress
from lungwave.repro import (
    atomic_path,
    manifest,
    provenance,
    read_json,
    sha256,
    stamped,
    stream,
    sweep,
    unstamped,
    write_json,
)
from lungwave.types import Channels, UsageError

PROBED_UPDATES = 6e7  # [cell] of the longer record that ``plan`` times
NAME = re.compile(r"cases_(\d{6,})-(\d{6,})\.h5")


@dataclass(frozen=True)
class Case:
    """One simulated lung."""

    index: int
    anatomy: Anatomy
    truth: Truth
    rf: Channels  # noise-free [Pa per Pa transmitted]


def simulate_case(config: Config, index: int, simulator: Simulator) -> Case:
    """Draw lung ``index``, propagate every transmit event, and state what is true."""
    anatomy = draw(config, index)
    medium = rasterise(anatomy, config.grid.spacing, config.grid.depth, simulator.medium_width)
    with torch.no_grad():
        rf = simulator.channels(medium)[0].cpu().numpy()
    return Case(index, anatomy, truth(anatomy, config.map, truth_spacing(config)), rf.astype(np.float32))


def received(case: Case, config: Config, simulator: Simulator, snr_db: float | None = None) -> Channels:
    """RF of a case as a scanner delivers it: noise (the configuration's SNR or ``snr_db`` [dB]), gain, dead elements.

    Noise and dead elements come from the streams of the case.
    """
    receive, index = config.receive, case.index
    rf, _ = add_noise(case.rf, simulator.scan, receive, stream(config.seed, "noise", index), snr_db)
    rf = (rf * 10 ** (receive.gain_db / 20)).astype(np.float32)
    return drop_elements(rf, receive.dropped_elements, stream(config.seed, "dropped", index))


def write_shard(config: Config, indices: range, path: Path, *, noise: bool, simulator: Simulator | None = None) -> None:
    """Simulate ``indices`` and write them as one file, whole or not at all; the bytes depend on nothing else."""
    simulator = simulator or Simulator(config)
    cases, rf = [], []
    for index in indices:
        try:
            case = simulate_case(config, index, simulator)
        except Exception as error:
            error.add_note(f"while simulating case {index} of preset {config.preset}, seed {config.seed}")
            raise
        cases.append(case)
        rf.append(received(case, config, simulator) if noise else case.rf)
    recording = Recording(
        np.stack(rf), simulator.scan, f"lungwave {config.preset}", "simulated lung RF, research use only"
    )
    write_recording(
        path,
        recording,
        cases=case_table(cases),
        provenance=provenance(config.to_json(), config.seed),
        snr_db=config.receive.snr_db if noise else None,
    )


def case_table(cases: Sequence[Case]) -> CaseTable:
    """Truth and parameters of simulated cases as the table that files carry."""
    return CaseTable.of(
        [case.truth for case in cases],
        base_id=[case.anatomy.base_id for case in cases],
        category=[case.anatomy.category for case in cases],
        index=[case.index for case in cases],
        parameters=[json.dumps(case.anatomy.parameters, sort_keys=True) for case in cases],
    )


def shards(cases: range, shard_size: int) -> list[range]:
    """Cut ``cases`` at multiples of ``shard_size``, so that any two overlapping requests agree on the files."""
    if len(cases) == 0 or cases.step != 1 or cases.start < 0:
        raise UsageError(f"cases {cases.start}:{cases.stop} are empty or negative; give a:b with 0 <= a < b")
    if shard_size < 1:
        raise UsageError(f"shard size {shard_size} must be at least 1")
    edges = [cases.start, *range((cases.start // shard_size + 1) * shard_size, cases.stop, shard_size), cases.stop]
    return [range(a, b) for a, b in pairwise(edges)]


def shard_path(out: Path, indices: range) -> Path:
    """File of a shard."""
    return out / f"cases_{indices.start:06d}-{indices.stop - 1:06d}.h5"


def plan(
    config: Config, cases: range, out: Path, shard_size: int = 50, workers: int = 1, noise: bool = False
) -> dict[str, Any]:
    """What ``generate`` would do: files, bytes, and time from a propagation of a few steps on this machine."""
    parts = shards(cases, shard_size)
    return {
        "cases": len(cases),
        "shards": len(parts),
        "to_do": sum(not _whole(shard_path(out, part)) for part in parts),
        "bytes": planned_bytes(config, len(cases), len(parts), noise),
        "seconds": seconds_per_case(config) * len(cases) / max(workers, 1),
        "files": [
            shard_path(out, part).name for part in (parts if len(parts) <= 3 else [parts[0], parts[1], parts[-1]])
        ],
        "out": str(out),
    }


def planned_bytes(config: Config, cases: int, files: int, noise: bool) -> int:
    """Size of ``cases`` in ``files``, within 15 %: constants of compressed files of all presets, not of a theory."""
    simulator = Simulator(config)
    rf = simulator.scan.transmits * simulator.samples * simulator.scan.delays.shape[1] * 4
    pixels = config.map.rows * config.map.columns
    per_file = 72_000 + 17 * pixels  # groups and attributes; coordinates of three maps
    per_case = 7_000 + 6 * pixels + (0.9 if noise else 0.77) * rf  # parameters; two maps of air; compressed RF
    return round(files * per_file + cases * per_case)


def seconds_per_case(config: Config) -> float:
    """Estimated time of one case on one core [s]: drawing case 0, and the slope between a short and a longer record."""
    stride, cells = config.grid.gradient_stride, config.grid.depth * config.grid.width / config.grid.spacing**2
    longer = max(8, min(config.grid.steps, round(PROBED_UPDATES / cells)) // stride) * stride
    shorter = longer // 4 // stride * stride
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = {}
        for steps in (shorter, shorter, longer):  # the first run warms up
            simulator = Simulator(config.override({"grid.steps": steps, "receive.echo_start": 0.0}))
            start = time.perf_counter()
            anatomy = draw(config, 0)
            medium = rasterise(anatomy, config.grid.spacing, config.grid.depth, simulator.medium_width)
            truth(anatomy, config.map, truth_spacing(config))
            drawn = time.perf_counter() - start
            with torch.no_grad():
                simulator.channels(medium, events=[0])
            times[steps] = time.perf_counter() - start - drawn
    finally:
        torch.set_num_threads(threads)
    per_step = max(times[longer] - times[shorter], 0.0) / (longer - shorter)
    return drawn + per_step * config.grid.steps * simulator.scan.transmits


def generate(
    config: Config,
    cases: range,
    out: Path,
    workers: int = 1,
    shard_size: int = 50,
    quiet: bool = False,
    noise: bool = False,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Write ``cases`` into ``out``; whole shards already there are kept, damaged ones are made again.

    ``scheduler`` is a Dask scheduler's address or ``local`` instead of ``workers`` processes here; its workers must see
    ``out`` under the same path. Any number of workers on any engine gives the same bytes. RF is stored free of noise
    unless ``noise``: readers add it at the SNR they want.

    Raises:
        UsageError: nothing to do, or the folder holds cases of another configuration.
        LungwaveError: a worker failed or was killed; its own traceback is attached. Finished shards stay.
    """
    if workers < 1:
        raise UsageError(f"workers is {workers}; give at least 1")
    parts = shards(cases, shard_size)
    simulator = Simulator(config)  # refuses what cannot be simulated before anything is written
    _refuse_overlap(parts, out)
    claim(config, out, noise)
    todo = [part for part in parts if not _whole(shard_path(out, part))]
    start = time.perf_counter()
    done = len(cases) - sum(map(len, todo))
    with Progress(len(cases), "generate", done=done, quiet=quiet) as progress:
        for finished in _run(simulator, todo, out, min(workers, max(len(todo), 1)), noise, scheduler):
            progress.advance(len(finished))
    elapsed = time.perf_counter() - start
    files = [shard_path(out, part) for part in parts]
    new = sum(map(len, todo))
    result: dict[str, Any] = {"out": str(out), "cases": len(cases), "new": new, "seconds": round(elapsed, 3)}
    describe(config, out, noise, result)
    return {**result, "files": [path.name for path in files], "bytes": sum(path.stat().st_size for path in files)}


def describe(config: Config, out: Path, noise: bool, about: dict[str, Any]) -> None:
    """Write the data card and the manifest of whatever shards a folder holds."""
    held = sorted(out.glob("cases_*.h5"))
    hashes = {path.name: sha256(path) for path in held}
    with atomic_path(out / CARD) as temporary:
        temporary.write_text(data_card(config, held, noise), encoding="utf-8")
    write_json(out / "manifest.json", manifest(config.to_json(), config.seed, **about, noise=noise, files=hashes))


def _whole(path: Path) -> bool:
    """Whether a shard is there, every byte of it as it was written."""
    try:
        seal.check(path)
    except (OSError, ValueError, UsageError):  # none, empty, damaged
        return False
    return True


def _refuse_overlap(parts: list[range], out: Path) -> None:
    """A case must not stand in two files, or readers would count it twice."""
    for path in sorted(out.glob("cases_*.h5")):
        match = NAME.fullmatch(path.name)
        held = range(int(match[1]), int(match[2]) + 1) if match else range(0)
        for part in parts:
            if part != held and max(part.start, held.start) < min(part.stop, held.stop):
                raise UsageError(
                    f"cases {part.start}:{part.stop} overlap {path.name}; keep --shard-size, end --cases at its "
                    "multiples, or choose another --out"
                )


def claim(config: Config, out: Path, noise: bool) -> None:
    """Write the configuration once; refuse a folder that holds another one. Of several processes one is the first."""
    path = out / "config.json"
    text = {"config": json.loads(config.to_json()), "noise": noise}
    if not path.exists():
        if out.exists() and any(NAME.fullmatch(p.name) for p in out.iterdir()):
            raise UsageError(f"{out} holds cases without their config.json; choose another --out")
        write_json(path, stamped(text), new=True)
    if unstamped(path, read_json(path)) != text:
        raise UsageError(f"{out} holds cases of another configuration or noise setting; choose another --out")


def _run(
    simulator: Simulator, todo: list[range], out: Path, workers: int, noise: bool, scheduler: str | None
) -> Iterator[range]:
    config, place = simulator.config, out.resolve()
    for part in todo:
        sweep(shard_path(out, part))
    _SIMULATORS[config.digest()] = simulator
    jobs = ((part, (config, part, shard_path(place, part), noise)) for part in todo)
    try:
        with open_pool(workers, scheduler) as pool, closing(pool.run(_work, jobs)) as finished:
            for part, _ in finished:
                yield part
    except (KeyboardInterrupt, GeneratorExit):
        for part in todo:
            sweep(shard_path(out, part))
        raise


_SIMULATORS: dict[str, Simulator] = {}  # of this process, by configuration


def _work(config: Config, part: range, path: Path, noise: bool) -> None:
    if _whole(path):  # another process was faster
        return
    key = config.digest()
    if key not in _SIMULATORS:
        _SIMULATORS[key] = Simulator(config)
    write_shard(config, part, path, noise=noise, simulator=_SIMULATORS[key])
