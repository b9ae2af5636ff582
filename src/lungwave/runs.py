"""Runs that end in a report: the demo, and RF files of any origin."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording
from lungwave.config import Config
from lungwave.data.convert import load_any
from lungwave.data.generate import case_table, received, simulate_case
from lungwave.data.hdf5 import read_cases, write_recording
from lungwave.data.schema import CaseTable
from lungwave.posterior.reconstruct import SAMPLES, AnyModel, bundled_model, load_any_model, reconstruct
from lungwave.posterior.summary import Reconstruction
from lungwave.progress import Progress
from lungwave.report import write_overview, write_posterior, write_report, write_tables
from lungwave.repro import atomic_path, manifest, provenance, sha256, write_json
from lungwave.types import LungwaveError, UsageError

DEMO_SEED = 2026  # the bundled model was fitted on another seed, so these lungs are new to it
MOST_FRAMES = 16  # of a file that are reconstructed unless more are asked for


def demo(out: Path, seed: int = DEMO_SEED, quiet: bool = False) -> dict[str, Any]:
    """One lung per category: draw, listen, reconstruct, report; offline, under a minute.

    The RF carries noise at the preset's SNR and comes from a seed that the model has not seen. Writes rf.h5,
    report.html, overview.png, aeration.csv, aeration.json, maps.npz and manifest.json into ``out``.
    """
    model = bundled_model()
    if seed == model.config.seed:
        raise UsageError(f"seed {seed} is the one the bundled model was fitted on; take another")
    config = model.config.override({"seed": seed, "receive.snr_db": Config().receive.snr_db})
    timing: dict[str, float] = {}
    clock = time.perf_counter()
    simulator = Simulator(config)
    cases = []
    with Progress(len(config.lung.categories), "demo", quiet=quiet) as progress:
        for index in range(len(config.lung.categories)):
            cases.append(simulate_case(config, index, simulator))
            progress.advance()
    frames = np.stack([received(case, config, simulator) for case in cases])
    timing["draw lungs and propagate"] = time.perf_counter() - clock
    recording = Recording(frames, simulator.scan, f"lungwave {config.preset}", "simulated lung RF, research use only")
    table = case_table(cases)
    write_recording(
        out / "rf.h5",
        recording,
        cases=table,
        provenance=provenance(config.to_json(), seed),
        snr_db=config.receive.snr_db,
    )
    clock = time.perf_counter()
    results = reconstruct(
        recording,
        model,
        names=[case.anatomy.category for case in cases],
        truths=[case.truth for case in cases],
        categories=table.category,
    )
    timing["beamform and reconstruct"] = time.perf_counter() - clock
    about = manifest(config.to_json(), seed, command=f"lungwave demo --seed {seed}", model=model.trained)
    clock = time.perf_counter()
    written = write_results(results, out, "Three lungs, from echoes to aeration", about, timing)
    write_overview(results, out / "overview.png")
    return {**written, "rf": str(out / "rf.h5"), "seconds": {**timing, "draw the report": time.perf_counter() - clock}}


def reconstruct_files(
    paths: Sequence[Path],
    out: Path,
    model: Path | None = None,
    frames: range | None = None,
    quiet: bool = False,
    geometry: Path | None = None,
    samples: int = SAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Reconstruct frames of RF files into ``out``: report.html, aeration.csv, aeration.json, maps.npz, manifest.json.

    A posterior model draws ``samples`` of each frame and leaves posterior.h5, posterior.npz and maps as PNG as well.
    ``geometry`` is a JSON or TOML file with what the files do not state. Raises:
        UsageError: a file or the frames cannot be used; nothing is written.
    """
    if not paths:
        raise UsageError("no RF file given; name at least one")
    used = load_any_model(model) if model is not None else bundled_model()
    results: list[Reconstruction] = []
    with Progress(len(paths), "reconstruct", quiet=quiet) as progress:
        for path in paths:
            results += reconstruct_one(Path(path), used, frames, geometry, samples, seed)
            progress.advance()
    about = manifest(
        used.config.to_json(),
        used.config.seed,
        command=f"lungwave reconstruct {' '.join(Path(p).name for p in paths)}",
        input={Path(p).name: sha256(p) for p in paths},
        model=used.trained,
    )
    title = f"Reconstruction of {Path(paths[0]).name}" if len(paths) == 1 else f"Reconstruction of {len(paths)} files"
    return write_results(results, out, title, about)


def reconstruct_one(
    path: Path,
    model: AnyModel,
    frames: range | None,
    geometry: Path | None,
    samples: int,
    seed: int,
    most: int | None = MOST_FRAMES,
) -> list[Reconstruction]:
    """Some frames of one file, by default the first ``most`` (None = all). UsageError where they cannot be used."""
    return reconstruct_frames(*read_frames(path, frames, geometry, most), model, samples, seed)


def read_frames(
    path: Path, frames: range | None = None, geometry: Path | None = None, most: int | None = MOST_FRAMES
) -> tuple[Recording, CaseTable | None, list[str]]:
    """Some frames of an RF file (the first ``most``; None = all), their truth where the file has it, and their names.

    UsageError for a file that is no RF, and for frames that it lacks.
    """
    recording = load_any(path, geometry)
    total = len(recording.rf)
    chosen = list(frames if frames is not None else range(total)[:most])
    if not chosen or min(chosen) < 0 or max(chosen) >= total:
        raise UsageError(
            f"{path} has frames 0:{total}, asked for {f'{chosen[0]}:{chosen[-1] + 1}' if chosen else 'none'}"
        )
    try:
        cases = read_cases(path, chosen)
    except LungwaveError:
        cases = None  # a foreign file holds no truth
    some = Recording(recording.rf[chosen], recording.scan, recording.probe_name, recording.description)
    return some, cases, [f"{path.name}, frame {i} of {total}" for i in chosen]


def reconstruct_frames(
    recording: Recording,
    cases: CaseTable | None,
    names: list[str],
    model: AnyModel,
    samples: int,
    seed: int,
    **how: Any,
) -> list[Reconstruction]:
    """Results of what ``read_frames`` gave; ``how`` as in ``reconstruct``."""
    return reconstruct(
        recording,
        model,
        names=names,
        truths=None if cases is None else [cases.truth(i) for i in range(len(names))],
        categories=None if cases is None else cases.category,
        samples=samples,
        seed=seed,
        **how,
    )


def write_results(
    results: list[Reconstruction], out: Path, title: str, about: dict[str, Any], timing: dict[str, float] | None = None
) -> dict[str, Any]:
    """Report, tables, maps and manifest of results in ``out``; where they are, and what they say of each frame."""
    report = write_report(results, out / "report.html", title=title, manifest=about, timing=timing)
    write_tables(results, out, manifest=about)
    write_posterior(results, out, manifest=about)
    write_json(out / "manifest.json", about)
    kept = [(i, r) for i, r in enumerate(results) if r.aeration is not None]
    if kept:
        names = ("aeration", "lower", "upper", "pleura_depth", "information_depth")
        stacks = {name: np.stack([getattr(r, name) for _, r in kept]) for name in names}
        with atomic_path(out / "maps.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, frame=np.array([i for i, _ in kept]), **stacks)
    return {
        "report": str(report),
        "frames": len(results),
        "withheld": sum(r.withheld is not None for r in results),
        "cases": [
            {
                "name": r.name,
                "withheld": r.withheld,
                "percent_aeration": None if r.whole is None else r.whole.estimate,
                "interval": None if r.whole is None else [r.whole.lower, r.whole.upper],
                "truth": None if r.whole is None else r.whole.truth,
            }
            for r in results
        ],
    }
