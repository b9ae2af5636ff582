"""Aeration maps of drawn lungs without their echoes: what a prior is trained on, a hundred times faster to make."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Float

from lungwave import repro
from lungwave.config import Config
from lungwave.data import maps as files
from lungwave.data.arrays import numpy_arrays
from lungwave.phantom.aeration import SEED_VIEW, Strip, flatten, seed_view, truth, truth_spacing
from lungwave.phantom.anatomy import Anatomy, draw
from lungwave.phantom.resolved import CHANNELS, resolved, resolved_size
from lungwave.pool import open_pool
from lungwave.progress import Progress
from lungwave.types import MM, Field, UsageError

Arrays: TypeAlias = dict[str, np.ndarray]
View = Literal["smooth", "sharp", "seed", "resolved", "raw", "nodes"]
FINE = 0.025 * MM  # [m] pixel of the report's maps, of which 4 x 4 make one of the 8 x 256 view
RAW = (files.ROWS, files.COLUMNS + 1)  # rows and columns of the report's tensors
FILES = (".npy", ".png", ".jpg", ".gif", ".pt", ".h5", ".hdf5", ".json", ".zip")  # no names of folders
PART = 10  # cases that a worker draws at a time, and that an interrupted run loses at most


@dataclass(frozen=True)
class DrawnMap:
    """One map and what it is of."""

    values: Float[np.ndarray, "*c z x"]  # fraction 0-1; NaN in columns that are not quantifiable
    category: str
    base_id: int
    index: int
    whole: float  # air fraction from the first to the last band edge; NaN where no column is quantifiable

    @property
    def name(self) -> str:
        """``category_000012``."""
        return f"{self.category}_{self.index:06d}"


def draw_map(config: Config, index: int, view: View) -> DrawnMap:
    """Lung ``index`` of ``config`` as ``view`` shows it, pleura-flattened.

    smooth, sharp: the truth at sigma 0.5 and 0.15 mm on the configuration's map. seed: the report's 8 x 256 strip,
    means of 4 x 4 pixels of 25 um. raw: these pixels, 32 x 1025 of 0 and 1. resolved: airspaces without any average, 0
    or 1 on a raster of the map's pixel. nodes: what the solver's grid holds, ``phantom.resolved``. Raises UsageError
    where the map is too small or odd for the view.
    """
    check_view(config, view)
    anatomy = draw(config, index)
    known = truth(anatomy, config.map, truth_spacing(config))
    match view:
        case "smooth" | "sharp":
            values = known.smooth if view == "smooth" else known.sharp
        case "nodes":
            values = resolved(anatomy, config)
        case _:
            values = _raster(config, anatomy, view)
    return DrawnMap(values.astype(np.float32), anatomy.category, anatomy.base_id, index, known.whole)


def _raster(config: Config, anatomy: Anatomy, view: View) -> Field:
    """Airspaces on a raster, or the means of blocks of it."""
    pixel = config.map.pixel if view == "resolved" else FINE
    strip = flatten(anatomy, config.map, pixel)
    air = np.where(strip.lung, strip.air.astype(float), np.nan)
    if view == "seed":
        return seed_view(air, FINE)
    rows, columns = (config.map.rows, config.map.columns) if view == "resolved" else RAW
    left = _left(strip, config.map.columns if view == "resolved" else files.COLUMNS)
    return air[:rows, left : left + columns]


def _left(strip: Strip, columns: int) -> int:
    """First of the central columns; of raw maps the last column lies beyond the centre, and pooling leaves it out."""
    return (len(strip.x) - columns) // 2


def check_view(config: Config, view: View) -> None:
    """Raise UsageError where the map of ``config`` cannot be shown so."""
    if view == "resolved" and config.map.columns % 2:
        raise UsageError(f"the resolved view needs an even number of columns, map.columns is {config.map.columns}")
    width = config.map.columns * config.map.pixel + 6 * max(config.map.sigma_sharp, config.map.sigma_smooth)
    if view in ("seed", "raw") and width < RAW[1] * FINE:
        raise UsageError(
            f"the {view} view shows {SEED_VIEW[1] * 0.1:g} mm of lung, the map of preset {config.preset} is "
            f"{config.map.columns * config.map.pixel / MM:g} mm wide; use --preset paper or --map.columns 256"
        )


def map_size(config: Config, view: View) -> tuple[int, int]:
    """Rows and columns of a map."""
    if view == "nodes":
        return resolved_size(config)
    return {"seed": SEED_VIEW, "raw": RAW}.get(view, (config.map.rows, config.map.columns))


def plan(
    config: Config, cases: range, out: Path, view: View, workers: int = 1, quantifiable_only: bool = False
) -> dict[str, Any]:
    """What ``write_maps`` would do: maps, bytes before compression, and time from drawing one lung."""
    check_out(config, cases, out, view, quantifiable_only)
    start = time.perf_counter()
    draw_map(config, cases[0], view)
    seconds = (time.perf_counter() - start) * len(cases) / max(workers, 1)
    rows, columns = map_size(config, view)
    depth = 4 if _is_npz(out) or view == "raw" else 1
    depth *= CHANNELS if view == "nodes" else 1
    return {
        "maps": len(cases),
        "size": [rows, columns],
        "bytes": depth * rows * columns * len(cases),
        "seconds": seconds,
        "out": str(out),
    }


def write_maps(
    config: Config,
    cases: range,
    out: Path,
    view: View = "smooth",
    *,
    workers: int = 1,
    quantifiable_only: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Draw ``cases`` and write their maps: one NPZ, or a folder of 8 bit PNGs (255 = 100 % air; ``raw``: tensors).

    The NPZ holds ``maps`` (float32), ``names``, ``labels`` with ``classes``, ``groups`` (base anatomies), ``index`` and
    ``whole``; a manifest lies beside it, or in the folder. Finished parts are kept until the end, so that rerunning an
    interrupted command goes on; any number of workers gives the same bytes. ``quantifiable_only`` leaves out lungs with
    a rib or air above them instead of marking their columns NaN, which only NPZ can hold. Raises UsageError for a view
    that the map is too small for, and for a folder that holds something else.
    """
    check_out(config, cases, out, view, quantifiable_only)
    parts = out.parent / f".{out.name}.parts"
    key = f"{config.digest()}_{view}"
    todo = [range(a, min(a + PART, cases.stop)) for a in range(cases.start, cases.stop, PART)]
    paths = {part: parts / f"{key}_{part.start:06d}-{part.stop - 1:06d}.npz" for part in todo}
    left = [part for part in todo if not paths[part].exists()]
    with Progress(len(cases), "maps", done=len(cases) - sum(map(len, left)), quiet=quiet) as progress:
        for part, arrays in _drawn(config, view, left, min(workers, max(len(left), 1))):
            files.save_npz(paths[part], **arrays)
            progress.advance(len(part))
    arrays = _join([paths[part] for part in todo])
    holed = np.isnan(arrays["maps"].reshape(len(arrays["maps"]), -1)).any(1)
    if quantifiable_only:
        if holed.all():
            shutil.rmtree(parts)
            raise UsageError(f"none of the {len(cases)} lungs is quantifiable everywhere; draw more, or without ribs")
        arrays = {name: values[~holed] for name, values in arrays.items()}
    left_out = int(holed.sum()) if quantifiable_only else 0
    result = _write(config, cases, out, view, arrays, left_out, parts / "staged")
    shutil.rmtree(parts)
    return result


def check_out(config: Config, cases: range, out: Path, view: View, quantifiable_only: bool) -> None:
    """Raise UsageError for what ``write_maps`` cannot do, before anything is drawn."""
    check_view(config, view)
    if _is_npz(out):
        if out.is_dir():
            raise UsageError(f"{out} is a folder; give a file name")
        return
    if view == "nodes":
        raise UsageError(f"maps of the nodes have {CHANNELS} channels, which no image holds; give --out NAME.npz")
    if out.suffix.lower() in FILES or (out.exists() and not out.is_dir()):
        raise UsageError(f"{out} is neither an .npz file nor a folder; give NAME.npz or a folder's name")
    if max(config.lung.rib_probability, config.lung.pneumothorax_probability) > 0 and not quantifiable_only:
        raise UsageError(
            "images cannot say which columns are hidden by a rib or air; write an .npz, or leave such lungs out with "
            "--quantifiable-only"
        )
    if out.is_dir() and any(out.iterdir()) and _stated(out) != _request(config, cases, view):
        raise UsageError(f"{out} holds other files; choose another --out, so that the maps of two sets never mix")


def _request(config: Config, cases: range, view: View) -> dict[str, Any]:
    return {"config": json.loads(config.to_json()), "view": view, "asked": [cases.start, cases.stop]}


def _stated(folder: Path) -> dict[str, Any] | None:
    """What the folder's manifest says was asked for."""
    try:
        held = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        return {name: held[name] for name in ("config", "view", "asked")}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_npz(out: Path) -> bool:
    return out.suffix.lower() == ".npz"


def _draw_part(config: Config, view: View, part: range) -> Arrays:
    """Arrays of a few cases, as the NPZ holds them."""
    drawn = [draw_map(config, index, view) for index in part]
    classes = sorted(set(config.lung.categories))
    return {
        "maps": np.stack([one.values for one in drawn]),
        "names": np.array([one.name for one in drawn]),
        "labels": np.array([classes.index(one.category) for one in drawn], np.int64),
        "groups": np.array([one.base_id for one in drawn], np.int64),
        "index": np.array([one.index for one in drawn], np.int64),
        "whole": np.array([one.whole for one in drawn], np.float64),
    }


def _join(paths: Sequence[Path]) -> Arrays:
    parts = []
    for path in paths:
        parts.append(numpy_arrays(path, "keep"))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write(
    config: Config, cases: range, out: Path, view: View, arrays: Arrays, left_out: int, staged: Path
) -> dict[str, Any]:
    """The NPZ, or the folder, which is filled as ``staged`` and appears whole; and the manifest."""
    classes = sorted(set(config.lung.categories))
    names = [str(name) for name in arrays["names"]]
    whole = [None if np.isnan(value) else float(value) for value in arrays["whole"]]
    about: dict[str, Any] = {"view": view, "asked": [cases.start, cases.stop], "left_out": left_out}
    about["cases"] = [
        {"name": name, "base_id": int(group), "index": int(index), "percent_aeration": air}
        for name, group, index, air in zip(names, arrays["groups"], arrays["index"], whole, strict=True)
    ]
    if _is_npz(out):
        files.save_npz(out, **arrays, classes=np.array(classes))
        about["files"] = {out.name: repro.sha256(out)}
        beside = out.with_suffix(".manifest.json")
    else:
        shutil.rmtree(staged, ignore_errors=True)
        written = [_write_one(staged, name, values, view) for name, values in zip(names, arrays["maps"], strict=True)]
        about["files"] = {path.name: repro.sha256(path) for path in written}
        beside = staged / "manifest.json"
    repro.write_json(beside, repro.manifest(config.to_json(), config.seed, **about))
    if not _is_npz(out):
        _publish(staged, out)
    counts = {name: int((arrays["labels"] == i).sum()) for i, name in enumerate(classes)}
    shape = [int(n) for n in arrays["maps"].shape[1:]]
    return {"out": str(out), "maps": len(names), "size": shape, "view": view, "left_out": left_out, "classes": counts}


def _publish(staged: Path, out: Path) -> None:
    """Make ``staged`` the folder ``out``, in one step where that does not hold the same maps already."""
    if out.is_dir() and not any(out.iterdir()):
        with contextlib.suppress(OSError):  # a mount point stays
            out.rmdir()
    if not out.exists():
        staged.rename(out)
        return
    for path in sorted(staged.iterdir(), key=lambda path: path.name != "manifest.json"):  # it says whose folder it is
        os.replace(path, out / path.name)


def _write_one(folder: Path, name: str, values: Float[np.ndarray, "z x"], view: View) -> Path:
    if view != "raw":
        path = folder / f"{name}.png"
        files.save_png(path, values)
        return path
    import torch  # here, because only this view needs it

    path = folder / f"{name}.pt"
    with repro.atomic_path(path) as temporary:
        torch.save(torch.from_numpy(np.ascontiguousarray(values)), temporary)
    return path


def _drawn(config: Config, view: View, parts: Sequence[range], workers: int) -> Iterator[tuple[range, Arrays]]:
    """Every part with its arrays, as they are finished; one worker stays in this process."""
    with (
        open_pool(workers) as pool,
        contextlib.closing(pool.run(_draw_part, ((part, (config, view, part)) for part in parts))) as finished,
    ):
        yield from finished
