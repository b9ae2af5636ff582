"""Recordings reconstructed node by node, with the wave equation: samples on several workers, and the report.

The chest wall is that of the file, where it says so, or estimated, and what that makes wrong is learned first. Samples
are made a few at a time; each part is kept until the end, so that an interrupted command goes on.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from matplotlib.figure import Figure

from lungwave.acoustics.bmode import bmode, display_grid
from lungwave.acoustics.probe import Recording
from lungwave.acoustics.receive import echo_rms, record_samples
from lungwave.data.arrays import numpy_arrays
from lungwave.data.hdf5 import read_origin
from lungwave.data.maps import save_npz
from lungwave.models.checkpoint import WEIGHTS
from lungwave.phantom.aeration import Truth, truth, truth_spacing
from lungwave.phantom.anatomy import Anatomy, draw
from lungwave.phantom.resolved import shown_config
from lungwave.pool import open_pool
from lungwave.posterior.adapt import adapt
from lungwave.posterior.discrepancy import Discrepancy
from lungwave.posterior.guided import Heard, lead, macroscopic, noise_std
from lungwave.posterior.reconstruct import LEVEL, PIXELS_PER_WAVELENGTH, out_of_range
from lungwave.posterior.resolved import ResolvedModel, load_resolved
from lungwave.posterior.summary import Reconstruction, summarise
from lungwave.posterior.walls import Wall, wall_errors
from lungwave.progress import Progress
from lungwave.repro import atomic_path, manifest, sha256, write_json
from lungwave.runs import read_frames, write_results
from lungwave.shipped import RESOLVED, model_folder
from lungwave.types import LungwaveError, UsageError

DEFAULT = "resolved-micro"  # the shipped model
PARTS = "parts"  # folder of what is not finished
PART = 2  # samples a task
MISFIT = 1.3  # chi2 beyond which a posterior does not explain its recording


@dataclass(frozen=True)
class Asked:
    """What is to be reconstructed, frame by frame."""

    recording: Recording  # as it was recorded
    rf: Float[np.ndarray, "frame tx time el"]  # as the model knows it
    walls: list[Wall]
    truths: Sequence[Truth | None]
    names: list[str]
    flags: tuple[str, ...] = ()
    estimated: bool = False  # the walls are


@dataclass(frozen=True)
class Led:
    """Samples of one recording and how they came about."""

    values: Float[np.ndarray, "sample 2 row x"]  # fraction 0-1; NaN where a sample was lost
    chi2: Float[np.ndarray, " sample"]
    kept: Bool[np.ndarray, " sample"]
    levels: Float[np.ndarray, "part level 3"]  # noise level, chi2, samples lost
    calls: dict[str, int]  # of all samples together

    def told(self) -> dict[str, Any]:
        """In numbers, for manifests."""
        good = self.chi2[self.kept]
        return {
            "chi2": round(float(np.median(good)), 3),
            "chi2_range": [round(float(good.min()), 3), round(float(good.max()), 3)],
            "lost": int((~self.kept).sum()),
            "calls": self.calls,
        }


def reconstruct_led(
    path: Path,
    out: Path,
    model: Path | None = None,
    *,
    method: str,
    calls: int | None = None,
    noise_db: float | None = None,
    estimated: bool = False,
    frames: range | None = None,
    samples: int = 16,
    seed: int = 0,
    workers: int = 1,
    quiet: bool = False,
) -> dict[str, Any]:
    """Reconstruct frames of an RF file into ``out``: the report, resolved.npz, guidance.png and .json.

    ``noise_db`` is the SNR of the recordings, measured in each where it is not given. ``estimated`` estimates the chest
    wall although the file says it. Raises UsageError for a file that was recorded in another way than the model's.
    """
    folder = model_folder(Path(DEFAULT) if model is None else model, RESOLVED).resolve()
    used = load_resolved(folder)
    asked = _frames(path, frames, used, estimated)
    walls, names = asked.walls, asked.names
    key: dict[str, Any] = {
        "model": sha256(folder / WEIGHTS),
        "method": method,
        "calls": calls,
        "noise_db": noise_db,
        "seed": seed,
        "wall": "estimated" if asked.estimated else "known",
    }
    held, parts = {**key, "rf": sha256(path)}, [range(k, min(k + PART, samples)) for k in range(0, samples, PART)]
    wrong, tasks = None, []
    if asked.estimated:
        wrong = _walls(out / PARTS / f"walls_{key['model'][:16]}.npz", used, quiet)
    for rf, wall, name in zip(asked.rf, walls, names, strict=True):
        heard = Heard(rf, wall, _noise(rf, used, noise_db), wrong)
        digest = hashlib.sha256(json.dumps({**held, "frame": name}, sort_keys=True).encode()).hexdigest()[:16]
        for some in parts:
            part = out / PARTS / f"{digest}_{some.start:04d}-{some.stop - 1:04d}.npz"
            tasks.append((part, (folder, heard, some, method, calls, seed)))
    _work(tasks, samples * len(walls), workers, method, quiet)
    done = [part for part, _ in tasks]
    led = [_joined(done[k * len(parts) : (k + 1) * len(parts)]) for k in range(len(walls))]
    results = [_result(used, asked, i, one, method) for i, one in enumerate(led)]
    about = manifest(
        used.drawn.to_json(), used.drawn.seed, command=f"lungwave reconstruct --method {method}",
        input={path.name: held["rf"]}, model=dict(used.about.get("trained", {})), asked=key,
    )  # fmt: skip
    written = write_results(results, out, f"Reconstruction of {path.name}", about)
    save_npz(
        out / "resolved.npz", values=np.stack([one.values for one in led]).astype(np.float16),
        chi2=np.stack([one.chi2 for one in led]),
    )  # fmt: skip
    write_json(out / "guidance.json", {r.name: one.told() for r, one in zip(results, led, strict=True)})
    _draw_levels(led, [r.name for r in results], out / "guidance.png")
    shutil.rmtree(out / PARTS)
    return {**written, "guidance": [one.told() for one in led]}


def _frames(path: Path, frames: range | None, model: ResolvedModel, estimated: bool) -> Asked:
    """Some frames of a file, and what lies above their lungs: as the file says, or estimated."""
    recording, cases, names = read_frames(path, frames)
    origin = None if cases is None else read_origin(path)
    known = None if estimated else origin  # what the walls are drawn from
    flags: tuple[str, ...] = ()
    if known is None:
        fitted = adapt(recording, model.scan, record_samples(model.drawn))
        rf, reason, flags = fitted.rf, fitted.reason, (*fitted.flags, "The chest wall was estimated.")
    else:
        rf, samples = np.asarray(recording.rf, np.float32), recording.rf.shape[2]
        reason = out_of_range(recording.scan, samples, model.scan, samples)
        if reason is None and (known.grid != model.drawn.grid or samples != record_samples(known)):
            reason = "the lungs were simulated on another grid; --wall estimated does not mind"
    if reason is not None:
        raise UsageError(
            f"{path}: {reason}; give --model one of this acquisition, from lungwave train --echoes --field resolved"
        )
    lungs: list[Anatomy] = []
    truths: Sequence[Truth | None] = [None] * len(names)
    if cases is not None and origin is not None:
        shown = shown_config(origin)
        lungs = [draw(origin, int(index)) for index in cases.index]
        truths = [truth(lung, shown.map, truth_spacing(shown)) for lung in lungs]
    if known is None:
        walls = [Wall.estimated(frame, model) for frame in rf]
    else:
        walls = [Wall.of(lung, known) for lung in lungs]
    return Asked(recording, rf, walls, truths, names, flags, known is None)


def _walls(kept: Path, model: ResolvedModel, quiet: bool) -> Discrepancy:
    """What estimated walls make wrong: learned, or kept since an interrupt."""
    if kept.exists():
        held = numpy_arrays(kept)
        return Discrepancy.of(held["differences"], float(held["shrinkage"]))
    found = wall_errors(model, quiet=quiet)
    save_npz(kept, differences=found.differences, shrinkage=np.array(found.shrinkage))
    return found


def _noise(rf: Float[np.ndarray, "tx time el"], model: ResolvedModel, noise_db: float | None) -> float:
    if noise_db is None:
        return noise_std(rf, model)
    return echo_rms(rf, model.scan, model.drawn.receive.echo_start) * 10 ** (-noise_db / 20)


@lru_cache(maxsize=1)
def _model(folder: Path) -> ResolvedModel:
    return load_resolved(folder)


def _lead(folder: Path, heard: Heard, some: range, method: str, calls: int | None, seed: int) -> dict[str, np.ndarray]:
    """Some samples, as arrays."""
    model = _model(folder)
    found = lead(model, heard, some, method=method, calls=calls, seed=seed)
    return {
        "values": model.scaling.to_data(found.maps).clamp(0, 1).numpy().astype(np.float32),
        "chi2": found.chi2.numpy(),
        "kept": found.kept.numpy(),
        "levels": np.array([[level.sigma, level.chi2, level.lost] for level in found.levels]).reshape(-1, 3),
        "calls": np.array(list(found.calls.values())),
        "named": np.array(list(found.calls)),
    }


def _work(tasks: list[tuple[Path, tuple[Any, ...]]], total: int, workers: int, method: str, quiet: bool) -> None:
    """Make the parts that are not there yet."""
    left = [(part, arguments) for part, arguments in tasks if not part.exists()]
    done = total - sum(len(arguments[2]) for _, arguments in left)
    jobs = ((range(n, n + 1), arguments) for n, (_, arguments) in enumerate(left))
    with (
        Progress(total, method, done=done, quiet=quiet) as progress,
        open_pool(min(workers, max(len(left), 1))) as pool,
        closing(pool.run(_lead, jobs)) as finished,
    ):
        for number, arrays in finished:
            part, arguments = left[number.start]
            save_npz(part, **arrays)
            progress.advance(len(arguments[2]))


def _joined(parts: list[Path]) -> Led:
    """The samples of one recording."""
    held = [numpy_arrays(part, "keep") for part in parts]

    def all_of(name: str) -> np.ndarray:
        return np.concatenate([one[name] for one in held])

    counted = np.sum([one["calls"] for one in held], axis=0).tolist()
    calls = dict(zip((str(name) for name in held[0]["named"]), counted, strict=True))
    return Led(all_of("values"), all_of("chi2"), all_of("kept"), np.stack([one["levels"] for one in held]), calls)


def _result(model: ResolvedModel, asked: Asked, i: int, led: Led, method: str) -> Reconstruction:
    """What the samples say of the aeration map."""
    config, name, wall, known, recording = (
        shown_config(model.drawn), asked.names[i], asked.walls[i], asked.truths[i], asked.recording
    )  # fmt: skip
    if led.kept.sum() < 2:
        raise LungwaveError(f"{name}: {led.told()['lost']} of {len(led.kept)} samples were lost; two are needed")
    maps, bands = macroscopic(led.values[led.kept, 0], config)
    posterior = summarise(maps, bands, np.zeros((len(maps), 0)), model.prior_std, config.map, LEVEL)
    told, flags = led.told(), list(asked.flags)
    if told["lost"]:
        flags.append(f"{told['lost']} of {len(led.kept)} samples were lost: their waves were not finite.")
    if told["chi2"] > MISFIT:
        flags.append(
            f"Chi2 is {told['chi2']:.3g}, not 1: these samples do not explain the echoes; do not trust their intervals."
        )
    grid = config.grid
    columns = (np.arange(len(wall.surface)) - (len(wall.surface) - 1) / 2) * grid.spacing
    fine = recording.scan.sound_speed / recording.scan.center_frequency / PIXELS_PER_WAVELENGTH
    picture = bmode(recording, display_grid(recording.scan, recording.rf.shape[2], fine), frame=i)
    return Reconstruction.of(
        name, method, picture, posterior, pleura_depth=np.interp(posterior.x, columns, wall.surface),
        valid=None if known is None else np.asarray(known.valid, bool), truth=known, flags=tuple(flags), manifest=told,
    )  # fmt: skip


def _draw_levels(led: Sequence[Led], names: Sequence[str], path: Path) -> None:
    """Misfit over noise levels."""
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    ax = figure.add_subplot()
    for n, (one, name) in enumerate(zip(led, names, strict=True)):
        if one.levels.shape[1]:
            for k, part in enumerate(one.levels):
                ax.plot(part[:, 0], part[:, 1], color=f"C{n % 10}", lw=1, label=name if k == 0 else None)
        ax.plot(np.full(len(one.chi2), 0.045), one.chi2, "o", color=f"C{n % 10}", ms=3)
    ax.axhline(1, color="0.4", lw=1, ls="--")
    ax.set(xscale="log", yscale="log", xlabel="noise level (standard deviations of the prior)", ylabel="chi2")
    ax.invert_xaxis()
    ax.set_title("Misfit on the way down, and of the samples (dots); 1 = explained", fontsize=10)
    if any(one.levels.shape[1] for one in led):
        ax.legend(fontsize=8, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
