"""Lung maps between formats: the report's tensors -> 8 x 256 PNG, PNG <-> NPZ, always on one 0-100 % scale."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from lungwave import repro
from lungwave.data import reading
from lungwave.data.arrays import numpy_arrays
from lungwave.types import UsageError

ROWS, COLUMNS, POOL = 32, 1024, 4  # report: first 32 rows, 4 x 4 mean, 8 x 256
MAX_MAP_BYTES = 2**30  # [byte] of one map file
LIMITS = {"fraction": 1.0, "percent": 100.0, "byte": 255.0}  # value that is 100 % air
SLACK = 1e-4  # of the limit; float32 averages overshoot a little

Scale = Literal["auto", "fraction", "percent", "byte"]


def seed_view(values: Float[np.ndarray, "z x"]) -> Float[np.ndarray, "8 256"]:
    """8 x 256 view of a map, as the report's conversion made it: first 32 rows, 4 x 4 means with stride 4.

    Columns after the 1024th are left out (the public maps have 1025, whose last one a stride of 4 never reaches).
    """
    if values.shape[0] < ROWS or values.shape[1] < COLUMNS:
        raise UsageError(f"map is {values.shape[0]} x {values.shape[1]}; {ROWS} rows x {COLUMNS} columns are the least")
    top = np.asarray(values[:ROWS, :COLUMNS], float)
    return top.reshape(ROWS // POOL, POOL, COLUMNS // POOL, POOL).mean((1, 3))


def to_bytes(fraction: Float[np.ndarray, "z x"]) -> UInt8[np.ndarray, "z x"]:
    """Fraction 0-1 -> 0-255, rounded to nearest; 0 is 0 % air and 255 is 100 %, in every file."""
    return np.rint(np.clip(fraction, 0.0, 1.0) * 255).astype(np.uint8)


def convert_maps(
    source: str | Path, destination: str | Path, *, scale: Scale = "auto", pool: bool | None = None
) -> dict[str, Any]:
    """Convert one map file or a folder of them.

    Tensors (``.pt``), PNG and NPZ/NPY files go to a folder of ``<n>.png``, or to one NPZ where ``destination`` ends in
    ``.npz`` (``maps``: fraction 0-1, float32; ``names``). Tensors are reduced to their 8 x 256 seed view, others keep
    their size, unless ``pool`` says otherwise. ``scale`` names the value of 100 % air; ``auto`` takes the smallest of
    1, 100 and 255 that holds the maximum of all maps. Raises UsageError for anything that is not a map.
    """
    source, destination = Path(source), Path(destination)
    files = map_files(source)
    loaded = [(file, values) for file in files for values in load_maps(file)]
    reduce = any(kind_of(file) == "torch" for file in files) if pool is None else pool
    used = detect_scale(loaded, scale)
    maps = []
    for file, values in loaded:
        try:
            fraction = np.clip(np.asarray(values, float) / LIMITS[used], 0.0, 1.0)
            maps.append(seed_view(fraction) if reduce else fraction)
        except UsageError as error:
            raise UsageError(f"{file}: {error}") from error
    names = map_names([file for file, _ in loaded])
    if destination.suffix.lower() == ".npz":
        if len({m.shape for m in maps}) != 1:
            raise UsageError(
                f"maps have {len({m.shape for m in maps})} different sizes; write them to a folder of PNGs"
            )
        save_npz(destination, maps=np.stack(maps).astype(np.float32), names=np.array(names))
    else:
        for name, fraction in zip(names, maps, strict=True):
            save_png(destination / f"{name}.png", fraction)
    left_out = {values.shape[1] - COLUMNS for _, values in loaded} if reduce else {0}
    return {
        "maps": len(maps),
        "shape": list(maps[0].shape),
        "scale": used,
        "range": [float(min(m.min() for m in maps)), float(max(m.max() for m in maps))],
        "columns_left_out": max(left_out),
        "destination": str(destination),
    }


def map_files(source: Path) -> list[Path]:
    """Map files of a folder in the order of their numbers, or the one file."""
    if not source.exists():
        raise UsageError(f"{source}: does not exist; give a map file or a folder of them")
    if source.is_file():
        return [source]
    files = [f for f in source.iterdir() if f.is_file() and f.suffix.lower() in (".pt", ".pth", ".png", ".npz", ".npy")]
    if not files:
        raise UsageError(f"{source}: holds no .pt, .png, .npz or .npy map")
    return sorted(files, key=lambda f: (_number(f.stem) is None, _number(f.stem) or 0, f.name))


def _number(stem: str) -> int | None:
    """Last number in a file name."""
    found = re.findall(r"\d+", stem)
    return int(found[-1]) if found else None


def map_names(files: list[Path]) -> list[str]:
    """Names ``<n>``: the number in each file's name where these differ, else the running number from 0."""
    numbers = [_number(f.stem) for f in files]
    if None not in numbers and len(set(numbers)) == len(numbers):
        return [str(n) for n in numbers]
    return [str(i) for i in range(len(files))]


def kind_of(path: Path) -> Literal["png", "numpy", "torch", "other"]:
    """Format of a map file by its content."""
    with path.open("rb") as stream:
        head = stream.read(8)
    if head.startswith(b"\x89PNG"):
        return "png"
    if head.startswith(b"\x93NUMPY"):
        return "numpy"
    if head.startswith(b"PK") and zipfile.is_zipfile(path):
        try:
            with zipfile.ZipFile(path) as archive:
                return "torch" if any(n.endswith("data.pkl") for n in archive.namelist()) else "numpy"
        except (
            zipfile.BadZipFile,
            NotImplementedError,
            ValueError,
            EOFError,
            OSError,
        ):  # whatever its directory makes it say
            return "other"
    return "torch" if head.startswith(b"\x80") else "other"  # torch before 1.6 wrote bare pickles


def load_maps(path: str | Path) -> list[np.ndarray]:
    """Maps (z, x) of one file, finite and in the units of the file."""
    path = Path(path)
    reading.check_file(path)
    if path.stat().st_size > MAX_MAP_BYTES:
        raise UsageError(f"{path}: is {path.stat().st_size / 2**30:.3g} GiB; a map file holds at most 1 GiB")
    kind = kind_of(path)
    if kind == "other":
        raise UsageError(f"{path}: is no map file; give .pt, .png, .npz or .npy")
    values = {"png": _load_png, "numpy": _load_numpy, "torch": _load_torch}[kind](path)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or 0 in values.shape:
        raise UsageError(f"{path}: has shape {values.shape}; one map (z, x) or several (n, z, x) were expected")
    bad = int(values.size - np.isfinite(values).sum())
    if bad:
        raise UsageError(f"{path}: holds {bad} NaN or infinite values of {values.size}; repair the map")
    return list(values)


def _load_png(path: Path) -> np.ndarray:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            reading.check_size(path, "image", (image.height, image.width), 4, MAX_MAP_BYTES)
            if image.mode not in ("L", "RGB", "RGBA", "LA"):
                raise UsageError(f"{path}: is a {image.mode} image; 8 bit grayscale was expected")
            pixels = np.asarray(image)
    except UsageError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path}: not a readable PNG ({' '.join(str(error).split())[:80]}); copy it again") from error
    return _gray(path, pixels)


def _gray(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Last axis of colours -> one channel; UsageError where the colours differ (it is no aeration map then)."""
    if pixels.ndim in (3, 4) and pixels.shape[-1] in (1, 2, 3, 4) and pixels.dtype == np.uint8:
        colours = pixels[..., :1] if pixels.shape[-1] == 2 else pixels[..., :3]
        if (colours != colours[..., :1]).any():
            raise UsageError(f"{path}: has colours; an aeration map is gray, 0-100 %")
        return colours[..., 0]
    return pixels


def _load_numpy(path: Path) -> np.ndarray:
    with_names = {k: v for k, v in numpy_arrays(path, "skip").items() if v.ndim >= 2}
    for name in ("maps", "arr_0", "rf"):  # ours; OpenAI's sample files; a bare .npy
        if name in with_names:
            return _gray(path, with_names[name])
    raise UsageError(f"{path}: no array 'maps' among {', '.join(sorted(with_names)) or 'none'}; name the maps 'maps'")


def _load_torch(path: Path) -> np.ndarray:
    """Tensor of a ``.pt`` file; only tensors are built (``weights_only``), whatever else the pickle asks for."""
    import torch  # here, so that PNG and NPZ work without waiting for torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            reading.check_size(path, "tensors", (size,), 1, MAX_MAP_BYTES)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UsageError(f"{path}: holds more than tensors, which is never unpickled; save the bare tensor") from error
    except UsageError:
        raise
    except Exception as error:  # a damaged file makes the parser fail in any way it likes
        raise UsageError(f"{path}: not a readable torch file ({type(error).__name__}); copy it again") from error
    if isinstance(found, dict) and len(found) == 1:
        found = next(iter(found.values()))
    if not isinstance(found, torch.Tensor) or found.is_complex() or found.layout != torch.strided:
        raise UsageError(f"{path}: holds a {type(found).__name__}, one tensor of real numbers was expected")
    reading.check_size(path, "tensor", tuple(found.shape), 8, MAX_MAP_BYTES)
    return found.detach().to(torch.float64).numpy()


def detect_scale(loaded: list[tuple[Path, np.ndarray]], scale: Scale) -> str:
    """Scale of all maps together; UsageError, naming the map, where a value lies outside it."""
    images = {values.dtype == np.uint8 for _, values in loaded}
    if len(images) == 2:
        raise UsageError(
            "8 bit images and tensors lie in one folder; they have different scales, convert each kind by itself"
        )
    if images == {True} and scale == "auto":
        scale = "byte"
    highest = max(loaded, key=lambda item: float(item[1].max()))
    lowest = min(loaded, key=lambda item: float(item[1].min()))
    top, bottom = float(highest[1].max()), float(lowest[1].min())
    known = [name for name, limit in LIMITS.items() if top <= limit * (1 + SLACK)]
    used = scale if scale != "auto" else (known[0] if known else "byte")
    limit = LIMITS[used]
    if top > limit * (1 + SLACK) or bottom < -limit * SLACK:
        where, value = (highest[0], top) if top > limit * (1 + SLACK) else (lowest[0], bottom)
        raise UsageError(f"{where}: holds {value:g}, outside 0-{limit:g} ({used}); aeration is 0-1, 0-100 % or 0-255")
    return used


def save_png(path: str | Path, fraction: Float[np.ndarray, "z x"]) -> None:
    """8 bit grayscale PNG of a map, fraction 0-1; 255 is 100 %."""
    buffer = io.BytesIO()
    Image.fromarray(to_bytes(fraction)).save(buffer, format="PNG")
    with repro.atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getvalue())


def save_npz(path: str | Path, **arrays: np.ndarray) -> None:
    """Compressed NPZ; the same arrays give the same bytes."""
    named: dict[str, Any] = arrays
    with repro.atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez_compressed(stream, **named)
