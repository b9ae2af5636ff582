"""A folder of RF files reconstructed in bulk: a task a file, on any engine, and one table of all.

Reports, pictures and samples are for one recording at a time; here every file leaves its numbers and maps.
"""

from __future__ import annotations

from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lungwave.data.maps import save_npz
from lungwave.evaluate.methods import model_digest
from lungwave.pool import open_pool
from lungwave.posterior.reconstruct import DEFAULT, SAMPLES, AnyModel, load_any_model
from lungwave.progress import Progress
from lungwave.report import write_tables
from lungwave.repro import atomic_path, manifest, read_json, sha256, stamped, unstamped, write_json
from lungwave.runs import reconstruct_one
from lungwave.shipped import ECHOES, model_folder
from lungwave.types import LungwaveError, UsageError

SUFFIXES = (".h5", ".hdf5", ".uff", ".mat", ".npz", ".npy")
FIELDS = ("aeration", "lower", "upper", "pleura_depth", "information_depth")
DONE = "done.json"  # written last into the folder of a file: what it was made of


def rf_files(folder: Path) -> list[Path]:
    """RF files of a folder by name; UsageError where there is none."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UsageError(f"{folder} holds no RF file ({', '.join(SUFFIXES)}); give a file, or another folder")
    stems = [path.stem for path in files]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise UsageError(f"{folder} holds two files named {twice}; give them different names")
    return files


def reconstruct_folder(
    folder: Path,
    out: Path,
    model: Path | None = None,
    *,
    samples: int = SAMPLES,
    seed: int = 0,
    geometry: Path | None = None,
    quiet: bool = False,
    workers: int = 1,
    scheduler: str | None = None,
) -> dict[str, Any]:
    """Reconstruct every frame of every file: out/FILE/aeration.csv, .json and maps.npz, and out/aeration.csv of all.

    Files that were finished before, from the same bytes with the same model and options, are kept; so rerunning an
    interrupted command goes on. Workers of a ``scheduler`` must see the folders under the same paths. Raises UsageError
    for a file that cannot be used; the others are finished first.
    """
    files, used = rf_files(folder), model_folder(Path(DEFAULT) if model is None else model, ECHOES).resolve()
    asked = {"model": model_digest(used), "samples": samples, "seed": seed}
    if geometry is not None:
        asked["geometry"] = sha256(geometry)
    wanted = {path: {**asked, "rf": sha256(path)} for path in files}
    left = [path for path in files if _done(out / path.stem) != wanted[path]]
    jobs = (
        (range(n, n + 1), (path.resolve(), out.resolve() / path.stem, used, geometry, samples, seed, wanted[path]))
        for n, path in enumerate(left)
    )
    with (
        Progress(len(files), "reconstruct", done=len(files) - len(left), quiet=quiet) as progress,
        open_pool(min(workers, max(len(left), 1)), scheduler) as pool,
        closing(pool.run(_reconstruct, jobs)) as finished,
    ):
        for _ in finished:
            progress.advance()
    rows = _join([out / path.stem / "aeration.csv" for path in files], out / "aeration.csv")
    config = load_any_model(used).config
    about = manifest(
        config.to_json(), config.seed, input={path.name: wanted[path]["rf"] for path in files}, asked=asked
    )
    write_json(out / "manifest.json", about)
    return {"files": len(files), "new": len(left), "rows": rows, "table": str(out / "aeration.csv")}


@lru_cache(maxsize=1)
def _model(folder: Path) -> AnyModel:
    return load_any_model(folder)


def _reconstruct(
    path: Path, place: Path, model: Path, geometry: Path | None, samples: int, seed: int, wanted: dict[str, Any]
) -> None:
    try:
        results = reconstruct_one(path, _model(model), None, geometry, samples, seed, most=None)
    except LungwaveError as error:
        raise type(error)(str(error) if path.name in str(error) else f"{path}: {error}") from error
    write_tables(results, place)
    kept = [(i, r) for i, r in enumerate(results) if r.aeration is not None]
    stacks = {name: np.stack([getattr(r, name) for _, r in kept]) for name in FIELDS} if kept else {}
    save_npz(place / "maps.npz", frame=np.array([i for i, _ in kept], np.int64), **stacks)
    write_json(place / DONE, stamped({**wanted, "files": {n: sha256(place / n) for n in ("aeration.csv", "maps.npz")}}))


def _done(place: Path) -> dict[str, Any] | None:
    """What the finished results of a file were made of; None where they are not whole."""
    try:
        held = unstamped(place / DONE, read_json(place / DONE))
        written = held.pop("files")
        return held if all(sha256(place / name) == told for name, told in written.items()) else None
    except (UsageError, OSError, LookupError, AttributeError, TypeError):
        return None


def _join(tables: list[Path], out: Path) -> int:
    """One table of all, with a first column that names the file; how many rows."""
    rows = 0
    with atomic_path(out) as temporary, temporary.open("w", encoding="utf-8") as file:
        for n, table in enumerate(tables):
            head, *lines = table.read_text(encoding="utf-8").splitlines()
            if n == 0:
                file.write(f"file,{head}\n")
            file.writelines(f"{table.parent.name},{line}\n" for line in lines)
            rows += len(lines)
    return rows
