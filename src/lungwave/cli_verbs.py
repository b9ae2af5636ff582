"""The verbs of ``lungwave``: the options of each, and which functions do its work.

Every module of the science is imported where a verb runs, so that parsing stays instant.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lungwave.cli_options import Configured, Options, Planned, Positional, check_seed, parse_cases, show
from lungwave.types import RESEARCH_USE, LungwaveError, UsageError


def cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def output_file(path: Path, *suffixes: str) -> Path:
    """The path, if it can be a file of that kind."""
    if path.suffix.lower() not in suffixes:
        raise UsageError(f"--out {path}: give a file name that ends in {' or '.join(suffixes)}")
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; give a file name")
    return path


def output_folder(path: Path) -> Path:
    """The path, if it can be a folder."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--out {path} is a file; give a folder")
    return path


def check_workers(workers: int | None) -> int:
    """How many processes: as said, or one a core."""
    if workers is not None and workers < 1:
        raise UsageError(f"--workers {workers} must be at least 1")
    return workers or cores()


@dataclass(frozen=True, kw_only=True)
class Demo(Planned):
    """One lung per category: echoes with the tiny preset, B-mode, aeration map and interval beside truth, a report."""

    out: Path = Path("lungwave-demo")
    """Folder of the report."""
    seed: int | None = None
    """Which lungs are drawn; default some that the model has not seen."""

    def plan(self) -> dict[str, Any]:
        """Cases, bytes and time."""
        out, seed = output_folder(self.out), self._seed
        from lungwave.config import preset
        from lungwave.data import generate

        config = preset("tiny").override({"seed": seed})
        planned = generate.plan(config, range(len(config.lung.categories)), out, noise=True)
        return {key: planned[key] for key in ("cases", "bytes", "seconds", "out")}

    def work(self) -> dict[str, Any]:
        """Draw, simulate, reconstruct, report."""
        out, seed = output_folder(self.out), self._seed
        from lungwave import runs

        return runs.demo(out, seed, self.quiet)

    @property
    def _seed(self) -> int:
        if self.seed is not None:
            check_seed(self.seed)
        from lungwave import runs

        return runs.DEMO_SEED if self.seed is None else self.seed


@dataclass(frozen=True, kw_only=True)
class Phantom(Configured):
    """Draw lungs: per case a picture (PNG) and the arrays (NPZ) of medium, aeration maps and percent aeration."""

    out: Path = Path("lungwave-phantom")
    """Folder of the lungs."""
    cases: str = "0:3"
    """Which cases, a:b."""

    def plan(self) -> dict[str, Any]:
        """Cases, bytes and files."""
        config, cases, out = self.settings, parse_cases(self.cases), output_folder(self.out)
        from lungwave import lungs

        return lungs.plan(config, cases, out)

    def work(self) -> dict[str, Any]:
        """Draw and write."""
        config, cases, out = self.settings, parse_cases(self.cases), output_folder(self.out)
        from lungwave import lungs

        return lungs.write_lungs(config, cases, out, quiet=self.quiet)


@dataclass(frozen=True, kw_only=True)
class Maps(Configured):
    """Draw aeration maps without echoes, as training data of a prior. Run the same command again to resume."""

    out: Path = Path("lungwave-maps.npz")
    """NPZ of all maps, or a folder of PNGs (255 = 100 % air)."""
    cases: str = "0:100"
    """Which cases, a:b."""
    view: Literal["smooth", "sharp", "seed", "resolved", "raw", "nodes"] = "smooth"
    """Average over 0.5 or 0.15 mm; the report's 8 x 256 strip; airspaces of 0 and 1; the strip before pooling (.pt);
    air and sound speed of the solver's nodes."""
    workers: int | None = None
    """Processes; default one a core. The result does not depend on it."""
    quantifiable_only: bool = False
    """Leave out lungs with a rib or air above them, whose hidden columns are NaN otherwise."""

    def plan(self) -> dict[str, Any]:
        """Maps, bytes, time."""
        config, cases, workers = self._checked
        from lungwave.data import drawn

        return drawn.plan(config, cases, self.out, self.view, workers, self.quantifiable_only)

    def work(self) -> dict[str, Any]:
        """Draw and write."""
        config, cases, workers = self._checked
        from lungwave.data import drawn

        skip = self.quantifiable_only
        return drawn.write_maps(
            config, cases, self.out, self.view, workers=workers, quantifiable_only=skip, quiet=self.quiet
        )

    @property
    def _checked(self) -> tuple[Any, range, int]:
        return self.settings, parse_cases(self.cases), check_workers(self.workers)


@dataclass(frozen=True, kw_only=True)
class Simulate(Configured):
    """Draw one lung and record its echoes, with the noise of receive.snr_db: one RF file with its truth."""

    out: Path = Path("lungwave-rf.h5")
    """RF file to write."""
    case: int = 0
    """Which case."""

    def plan(self) -> dict[str, Any]:
        """Size of the file and time."""
        config, cases, out = self.settings, self._cases, output_file(self.out, ".h5", ".hdf5")
        from lungwave.data import generate

        planned = generate.plan(config, cases, out.parent, 1, noise=True)
        return {"case": self.case, "bytes": planned["bytes"], "seconds": planned["seconds"], "out": str(out)}

    def work(self) -> dict[str, Any]:
        """Draw, simulate, write."""
        config, cases, out = self.settings, self._cases, output_file(self.out, ".h5", ".hdf5")
        from lungwave.data import generate, hdf5

        generate.write_shard(config, cases, out, noise=True)
        written = hdf5.read_cases(out)
        assert written is not None, "write_shard writes the truth of its cases"
        known = {"case": self.case, "category": written.category[0], "snr_db": config.receive.snr_db}
        return {"out": str(out), **known, "bytes": out.stat().st_size}

    @property
    def _cases(self) -> range:
        if self.case < 0:
            raise UsageError(f"--case {self.case} is negative; give 0 or more")
        return range(self.case, self.case + 1)


@dataclass(frozen=True, kw_only=True)
class Generate(Configured):
    """Simulate many cases into a folder of RF files. Run the same command again to resume."""

    out: Path = Path("lungwave-cases")
    """Folder of the files."""
    cases: str = "0:100"
    """Which cases, a:b; cut a large job into ranges for any scheduler."""
    workers: int | None = None
    """Processes; default one a core. The result does not depend on it."""
    shard_size: int = 50
    """Cases a file."""
    noise: bool = False
    """Store the RF with the noise of receive.snr_db instead of leaving it to the reader."""
    scheduler: str | None = None
    """Address of a Dask scheduler whose workers simulate, or local for --workers of Dask here (extra `cluster`)."""

    def plan(self) -> dict[str, Any]:
        """Cases, bytes, time, files."""
        config, cases, out, workers = self._checked
        from lungwave.data import generate

        return generate.plan(config, cases, out, self.shard_size, workers, self.noise)

    def work(self) -> dict[str, Any]:
        """Fill the folder."""
        config, cases, out, workers = self._checked
        from lungwave.data import generate

        return generate.generate(config, cases, out, workers, self.shard_size, self.quiet, self.noise, self.scheduler)

    @property
    def _checked(self) -> tuple[Any, range, Path, int]:
        workers = check_workers(self.workers)
        if self.shard_size < 1:
            raise UsageError(f"--shard-size {self.shard_size} must be at least 1")
        return self.settings, parse_cases(self.cases), output_folder(self.out), workers


@dataclass(frozen=True, kw_only=True)
class Fit(Planned):
    """Train the ridge reconstructor on a folder that `lungwave generate` filled; noise is added while training."""

    data: Positional[Path]
    """Folder of cases."""
    out: Path = Path("lungwave-model")
    """Folder of the model."""
    snr: tuple[float, float] = (10.0, 40.0)
    """Least and most SNR [dB] of the training noise."""
    rounds: int = 2
    """Noise draws of every case."""
    calibration: float = 0.2
    """Share of the base anatomies that only set the width of the intervals."""

    def plan(self) -> dict[str, Any]:
        """What would be read and written."""
        self._check()
        from lungwave.data import dataset

        files = dataset.shard_files(self.data)
        size = sum(path.stat().st_size for path in files)
        return {
            "data": str(self.data),
            "shards": len(files),
            "bytes": size,
            "rounds": self.rounds,
            "out": str(self.out),
        }

    def work(self) -> dict[str, Any]:
        """Train, write."""
        self._check()
        from lungwave.data import dataset
        from lungwave.posterior import ridge

        model = ridge.fit(self.data, self.snr, self.rounds, self.calibration, self.quiet)
        command = (
            f"lungwave fit {self.data} --snr {self.snr[0]:g} {self.snr[1]:g} --rounds {self.rounds} "
            f"--calibration {self.calibration:g}"
        )
        ridge.save_model(model, self.out, self._card(command, model.trained), command, dataset.shard_files(self.data))
        return {"out": str(self.out), **model.trained}

    def _check(self) -> None:
        output_folder(self.out)
        if self.rounds < 1:
            raise UsageError(f"--rounds {self.rounds} must be at least 1")
        if not self.snr[0] <= self.snr[1]:
            raise UsageError(f"--snr {self.snr[0]:g} {self.snr[1]:g}: give the smaller value first")
        if not 0 < self.calibration < 1:
            raise UsageError(f"--calibration {self.calibration:g} must lie between 0 and 1")

    @staticmethod
    def _card(command: str, trained: dict[str, Any]) -> str:
        facts = "\n".join(f"- {key.replace('_', ' ')}: {value}" for key, value in trained.items())
        return (
            "# Ridge reconstructor\n\nPercent aeration and aeration map from RF, trained on simulated lungs only.\n"
            f"{RESEARCH_USE}\n\nMade by `{command}`.\n\n{facts}\n\nSettings and versions: config.json.\n"
        )


MOST_SAMPLES = 4096  # of one frame


@dataclass(frozen=True, kw_only=True)
class Reading(Planned):
    """What verbs take that reconstruct."""

    model: Path | None = None
    """Folder that `lungwave fit` or `lungwave train --echoes` wrote, or the name of a shipped one; default the best of
    those."""
    samples: int = 32
    """Posterior samples of each frame, of a model that draws them; 90 % intervals need 19."""
    seed: int = 0
    """Root of the samples' random streams."""
    frames: str | None = None
    """Which frames of each file, a:b; default the first 16."""
    geometry: Path | None = None
    """JSON or TOML file with the geometry that the files lack."""

    def planned(self, files: tuple[Path, ...], out: Path) -> dict[str, Any]:
        """What would be read and where the results would go."""
        self._checked(out)
        from lungwave.data import convert

        about = [(file, convert.info(file, self.geometry)) for file in files]
        found = [
            {"file": str(file), "format": a["format"], "bytes": a["bytes"], **a.get("rf", {})} for file, a in about
        ]
        return {"files": found, "frames": self.frames or "first 16", "out": str(out)}

    def reconstructed(self, files: tuple[Path, ...], out: Path) -> dict[str, Any]:
        """The results of every file."""
        frames = self._checked(out)
        from lungwave import runs

        return runs.reconstruct_files(
            files, out, self.model, frames, self.quiet, self.geometry, self.samples, self.seed
        )

    def _checked(self, out: Path) -> range | None:
        output_folder(out)
        if not 2 <= self.samples <= MOST_SAMPLES:
            raise UsageError(f"--samples {self.samples} must lie between 2 and {MOST_SAMPLES}")
        return None if self.frames is None else parse_cases(self.frames, "--frames")


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Reading):
    """RF file -> B-mode, aeration map and percent aeration with its interval, as report, tables and arrays.

    Of a folder every frame of every file, as tables and maps without report; run the same command again to resume. The
    file is HDF5 (lungwave, zea, PICMUS, UFF), MATLAB or NPZ. Where its geometry or its echoes lie outside the range
    that the model was trained for, the B-mode is drawn and the aeration is withheld, with the reason.
    """

    file: Positional[Path]
    """RF file, or a folder of them."""
    out: Path = Path("lungwave-reconstruction")
    """Folder of the results."""
    method: Literal["amortized", "guided", "hybrid"] = "amortized"
    """amortized: the learned posterior alone. guided: the wave equation leads a prior of resolved lungs. hybrid: it
    chooses among samples of the learned posterior and leads on. The last two take one file of --model's acquisition."""
    budget: int | None = None
    """With guided or hybrid: calls of the wave equation for each sample; default 200 gradients, and 50."""
    noise_db: float | None = None
    """With guided or hybrid: signal-to-noise ratio of the recording [dB]; default measured before the first echo."""
    wall: Literal["file", "estimated"] = "file"
    """With resolved lungs: the chest wall that the file says, estimated where it says none; or estimated in any case,
    which first learns what that makes wrong, half a minute."""
    workers: int = 1
    """Processes: of a folder a file each, with guided or hybrid some samples each."""
    scheduler: str | None = None
    """Of a folder: address of a Dask scheduler, or local."""

    def plan(self) -> dict[str, Any]:
        """What would be read."""
        self._check_method()
        if not self.file.is_dir():
            return self.planned((self.file,), self.out)
        from lungwave import batch

        files = batch.rf_files(self.file)
        return {"files": len(files), "bytes": sum(f.stat().st_size for f in files), "out": str(self.out)}

    def work(self) -> dict[str, Any]:
        """Reconstruct every frame."""
        check_workers(self.workers)
        self._check_method()
        if self._led:
            from lungwave import led

            return led.reconstruct_led(
                self.file, self.out, self.model, method=self.method, calls=self.budget, noise_db=self.noise_db,
                estimated=self.wall == "estimated", frames=self._checked(self.out), samples=self.samples,
                seed=self.seed, workers=self.workers, quiet=self.quiet,
            )  # fmt: skip
        if not self.file.is_dir():
            if self.scheduler is not None or self.workers > 1:
                raise UsageError(f"{self.file} is one file; --workers and --scheduler are for a folder of them")
            return self.reconstructed((self.file,), self.out)
        if self._checked(self.out) is not None:
            raise UsageError("--frames is for one file; of a folder all frames are reconstructed")
        from lungwave import batch

        return batch.reconstruct_folder(
            self.file, self.out, self.model, samples=self.samples, seed=self.seed, geometry=self.geometry,
            quiet=self.quiet, workers=self.workers, scheduler=self.scheduler,
        )  # fmt: skip

    @property
    def _led(self) -> bool:
        """Whether the wave equation is asked, or a model of resolved lungs."""
        if self.method != "amortized":
            return True
        if self.model is None:
            return False
        from lungwave.posterior.folder import kind_of
        from lungwave.posterior.resolved import KIND
        from lungwave.shipped import ECHOES, RESOLVED, model_folder

        return kind_of(model_folder(self.model, ECHOES + RESOLVED)) == KIND

    def _check_method(self) -> None:
        for name in ("budget", "noise_db"):
            if getattr(self, name) is not None and self.method == "amortized":
                raise UsageError(f"--{name.replace('_', '-')} is for --method guided or hybrid")
        if self.noise_db is not None and not 0 <= self.noise_db <= 200:
            raise UsageError(f"--noise-db {self.noise_db:g} must lie between 0 and 200")
        if not self._led:
            if self.wall == "estimated":
                raise UsageError("--wall is for resolved lungs: --method guided or hybrid, or --model resolved-micro")
            return
        if self.file.is_dir() or self.scheduler is not None or self.geometry is not None:
            raise UsageError("--method guided and hybrid take one file, without --scheduler and --geometry")
        if self.budget is not None:
            from lungwave.posterior.guided import levels_of

            levels_of(self.budget)


@dataclass(frozen=True, kw_only=True)
class Report(Reading):
    """Reconstruct several RF files into one report, side by side."""

    files: Positional[tuple[Path, ...]]
    """RF files."""
    out: Path = Path("lungwave-report")
    """Folder of the report."""

    def plan(self) -> dict[str, Any]:
        """What would be read."""
        return self.planned(self.files, self.out)

    def work(self) -> dict[str, Any]:
        """Reconstruct every frame of every file."""
        return self.reconstructed(self.files, self.out)


@dataclass(frozen=True, kw_only=True)
class Doctor(Options):
    """Look at this installation and machine: packages, threads, GPU, disk, shipped models, the wave equation, speed."""

    out: Path = Path()
    """Where results would go."""
    size: tuple[int, int] | None = None
    """Rows and columns of maps to train on: do they divide, and where does attention land?"""

    def work(self) -> dict[str, Any]:
        """The findings."""
        from lungwave import doctor

        return doctor.examine(self.out, self._size).to_json()

    @property
    def _size(self) -> tuple[int, int] | None:
        if self.size is not None and min(self.size) < 1:
            raise UsageError(f"--size {self.size[0]} {self.size[1]}: give rows and columns, each at least 1")
        return self.size

    def run(self) -> None:
        """Print the findings; LungwaveError where something is wrong."""
        from lungwave import doctor

        health = doctor.examine(self.out, self._size)
        if self.json:
            show(health.to_json(), as_json=True, quiet=self.quiet)
        elif not self.quiet:
            print("\n".join([*health.lines(), RESEARCH_USE]))
        if not health.well:
            raise LungwaveError("something is wrong with this installation; the cures stand above")
