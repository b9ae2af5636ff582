"""Sets of aeration maps for training and comparison: images, NPZ, NPY or generated cases, never resized."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float32, Int64, Integer, Shaped, UInt8

from lungwave.data import images, reading
from lungwave.data.arrays import numpy_arrays
from lungwave.data.dataset import split
from lungwave.data.images import openai_view as openai_view
from lungwave.data.maps import SLACK
from lungwave.types import UsageError

NO_LABEL = -1
MOST_CLASSES = 100_000  # a damaged number must not name billions
CHUNK = 256  # maps that are turned to float64 at once

MapField = Literal["smooth", "sharp"]
Rows = Integer[np.ndarray, " row"] | Bool[np.ndarray, " n"] | Sequence[int] | slice


@dataclass(frozen=True)
class MapSet:
    """Maps of one size, stored as they came: bytes stay bytes (255 = 1), all else is a fraction 0-1."""

    maps: UInt8[np.ndarray, "n c z x"] | Float32[np.ndarray, "n c z x"]
    names: tuple[str, ...]
    labels: Int64[np.ndarray, " n"]  # place in ``classes``; -1 = none
    classes: tuple[str, ...]
    groups: Int64[np.ndarray, " n"]  # maps of one group (base anatomy, patient, exact copies) are never parted
    notes: tuple[str, ...] = ()  # what reading changed or found, one sentence each

    def __len__(self) -> int:
        return len(self.maps)

    @property
    def channels(self) -> int:
        """Channels of a map."""
        return self.maps.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of a map."""
        return self.maps.shape[2], self.maps.shape[3]

    def fraction(self, indices: Rows = slice(None)) -> Float32[np.ndarray, "row c z x"]:
        """Maps at ``indices`` (all by default) as fractions 0-1, a copy."""
        found = self.maps[indices if isinstance(indices, slice) else np.asarray(indices)]
        return found.astype(np.float32) / np.float32(255) if found.dtype == np.uint8 else found.astype(np.float32)

    def subset(self, indices: Rows) -> MapSet:
        """Some of the maps, in the order asked for; class numbers keep their meaning."""
        rows = np.arange(len(self))[indices if isinstance(indices, slice) else np.asarray(indices)]
        names = tuple(self.names[i] for i in rows)
        return MapSet(self.maps[rows], names, self.labels[rows], self.classes, self.groups[rows], self.notes)

    def split(self, held_out: float, seed: int) -> tuple[MapSet, MapSet]:
        """(training, held-out) maps, a share ``held_out`` of the groups, drawn by ``seed``; a group is never parted.

        0 holds out nothing. Raises UsageError for a share outside 0-1, or one that leaves either side empty.
        """
        if not 0 <= held_out < 1:
            raise UsageError(f"held-out share {held_out:g} must be at least 0 and below 1")
        if held_out == 0:
            return self, self.subset(np.arange(0))
        if len(np.unique(self.groups)) < 2:
            raise UsageError(
                f"{len(self)} map(s) of one group (the same anatomy, or copies) cannot be split; give more maps, or "
                "hold none out with --held-out 0"
            )
        kept, held = split(self.groups, (1 - held_out, held_out), seed)
        if not kept.any() or not held.any():
            count = len(np.unique(self.groups))
            side = "training" if not kept.any() else "held out"
            raise UsageError(f"a held-out share of {held_out:g} of {count} groups leaves no map {side}; choose another")
        return self.subset(kept), self.subset(held)

    def statistics(self) -> tuple[float, float]:
        """Mean and standard deviation over every value, as ``Scaling`` wants them; UsageError for a constant set."""
        if len(self) == 0:
            raise UsageError("an empty set of maps has no mean; give at least one map")
        if self.maps.dtype == np.uint8:  # from the counts of 256 values, exact
            values, counts = np.arange(256) / 255, np.zeros(256, np.int64)
            for i in range(0, len(self), CHUNK):
                counts += np.bincount(self.maps[i : i + CHUNK].ravel(), minlength=256)
            weight = counts / self.maps.size
            mean = float(values @ weight)
            variance = float((values - mean) ** 2 @ weight)
        else:
            parts = [self.maps[i : i + CHUNK] for i in range(0, len(self), CHUNK)]
            mean = float(sum(p.sum(dtype=np.float64) for p in parts) / self.maps.size)
            variance = float(sum(np.square(p - np.float64(mean)).sum() for p in parts) / self.maps.size)
        if variance < 1e-12:
            raise UsageError(f"every value of the {len(self)} maps is {mean:.3g}; there is nothing to learn from them")
        return mean, float(np.sqrt(variance))

    @cached_property
    def digest(self) -> str:
        """SHA-256 over maps, labels, classes and groups in their order: what a resumed training must find unchanged."""
        found = hashlib.sha256(repr((self.maps.dtype.str, self.maps.shape, self.classes)).encode())
        for part in (self.maps, self.labels, self.groups):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()

    @staticmethod
    def of(
        maps: Shaped[np.ndarray, "n c z x"],
        names: Sequence[str] = (),
        labels: Sequence[str] | None = None,
        groups: Integer[np.ndarray, " n"] | None = None,
        classes: Sequence[str] = (),
        notes: Sequence[str] = (),
        source: str | Path = "maps",
    ) -> MapSet:
        """Set of maps as they are: bytes, 16 bit (65535 = 1), booleans, or fractions 0-1.

        ``labels`` are names of ``classes``, by default of all that occur, sorted. Without ``groups`` each map is a
        group, exact copies together. Raises UsageError, naming ``source`` and the first offender, for NaN and for
        values outside 0-1.
        """
        stored = _stored(maps, source)
        notes = list(notes)
        if groups is None:
            groups, copies = _groups_of_copies(stored)
            if copies:
                notes.append(f"{copies} maps are exact copies of others; they stay on one side of a split")
        known = tuple(classes) or tuple(sorted(set(labels or ())))
        place = {name: i for i, name in enumerate(known)}
        if strange := sorted(set(labels or ()) - set(known)):
            raise UsageError(f"{source}: label '{strange[0]}' is none of the classes {', '.join(known)}")
        numbers = np.full(len(maps), NO_LABEL) if labels is None else np.array([place[name] for name in labels])
        named = tuple(names) or tuple(str(i) for i in range(len(maps)))
        for what, count in (("names", len(named)), ("labels", len(numbers)), ("groups", len(groups))):
            if count != len(maps):
                raise UsageError(f"{source}: {len(maps)} maps have {count} {what}; give one each")
        return MapSet(stored, named, numbers.astype(np.int64), known, groups.astype(np.int64), tuple(notes))


def read_maps(
    source: str | Path,
    *,
    field: MapField = "smooth",
    labels: bool = False,
    quantifiable_only: bool = False,
    openai_size: int | None = None,
) -> MapSet:
    """Maps of a folder of images, an NPZ or NPY file, or generated cases (a folder of shards, or one .h5 file).

    ``field`` says which map of generated cases. ``labels`` takes classes from names, up to the first ``_``; classes
    that the source states itself are always kept. ``quantifiable_only`` leaves out maps with columns that have no truth
    (behind ribs, below air in the pleural space) instead of refusing them. ``openai_size`` shows images as
    improved-diffusion's loader distorts them, see ``openai_view``. Raises UsageError for anything else; nothing is ever
    resized or cut.
    """
    source = Path(source)
    if not source.exists():
        raise UsageError(f"{source}: does not exist; give a folder of images, an .npz or .npy file, or generated cases")
    shards = sorted(source.glob("cases_*.h5")) if source.is_dir() else []
    if openai_size is not None and (shards or source.is_file()):
        raise UsageError(f"{source}: OpenAI's {openai_size} x {openai_size} view is made of a folder of images only")
    if shards or source.suffix.lower() in (".h5", ".hdf5"):
        found = _from_cases(source, shards or [source], field, quantifiable_only)
    elif source.is_dir():
        found = _from_images(source, labels, openai_size)
    else:
        found = _from_numpy(source, labels, quantifiable_only)
    return found


def _from_images(folder: Path, labels: bool, openai_size: int | None) -> MapSet:
    files = images.list_images(folder)
    if not files:
        raise UsageError(
            f"{folder}: holds no image (.png, .jpg, .gif) and no cases_*.h5; give a folder of maps, or convert "
            "tensors with 'lungwave data convert'"
        )
    classes = [images.class_name(path) for path in files] if labels else None
    if openai_size is None:
        pixels, notes = images.read_images(files)
    else:
        pixels = images.read_openai_views(files, openai_size)
        notes = [f"images are scaled and cut to {openai_size} x {openai_size} RGB, as improved-diffusion does"]
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in files]
    return MapSet.of(pixels, names, classes, _stated_groups(folder, names), notes=notes, source=folder)


def _stated_groups(folder: Path, names: Sequence[str]) -> Int64[np.ndarray, " n"] | None:
    """Base anatomies that ``lungwave maps`` states beside its images; None where it did not make all of them."""
    try:
        cases = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["cases"]
        known = {str(case["name"]): int(case["base_id"]) for case in cases}
    except (OSError, ValueError, KeyError, TypeError):  # none, or some other program's
        return None
    return np.array([known[name] for name in names], np.int64) if set(names) <= set(known) else None


def _from_numpy(path: Path, labels: bool, quantifiable_only: bool) -> MapSet:
    reading.check_file(path)
    if path.suffix.lower() not in (".npz", ".npy"):
        raise UsageError(f"{path}: is no set of maps; give a folder of images, .npz, .npy or .h5")
    arrays = numpy_arrays(path, "keep")
    texts = {name: arrays.pop(name) for name in list(arrays) if arrays[name].dtype.kind == "U"}
    key = next((name for name in ("maps", "arr_0", "rf") if name in arrays), None)  # ours; OpenAI's; a bare .npy
    if key is None:
        raise UsageError(f"{path}: no array 'maps' among {', '.join(sorted(arrays)) or 'none'}; name the maps 'maps'")
    maps = _channels_first(path, arrays[key], key == "arr_0")
    names = _texts(texts, "names") or tuple(str(i) for i in range(len(maps)))
    given, classes = _stated_labels(path, arrays, texts, len(maps))
    if given is None and labels:
        if len(names) != len(maps) or not all("_" in name for name in names):
            raise UsageError(
                f"{path}: states no labels, nor names like CLASS_NUMBER; add 'labels', or ask for no classes"
            )
        given = [images.class_name(name) for name in names]
    groups = next((arrays[name] for name in ("groups", "base_id") if name in arrays), None)
    if groups is not None and (groups.ndim != 1 or groups.dtype.kind not in "iu" or len(groups) != len(maps)):
        raise UsageError(f"{path}: 'groups' has shape {groups.shape}; {len(maps)} whole numbers were expected")
    if len(names) != len(maps):
        raise UsageError(f"{path}: {len(maps)} maps have {len(names)} names; give one each")
    keep, notes = _complete(path, maps, quantifiable_only)
    return MapSet.of(
        maps[keep],
        [names[i] for i in keep],
        None if given is None else [given[i] for i in keep],
        None if groups is None else groups[keep],
        classes,
        notes,
        path,
    )


def _channels_first(path: Path, values: np.ndarray, channels_last: bool) -> np.ndarray:
    """(n, c, z, x) of (z, x), (n, z, x), (n, c, z, x) or, in OpenAI's sample files, (n, z, x, c)."""
    shape = values.shape
    if values.ndim == 2:
        values = values[None, None]
    elif values.ndim == 3:
        values = values[:, None]
    elif values.ndim == 4 and channels_last:
        values = values.transpose(0, 3, 1, 2)
        if (values == values[:, :1]).all():  # gray, as its sampler writes it
            values = values[:, :1]
    if values.ndim != 4 or 0 in values.shape:
        raise UsageError(f"{path}: maps have shape {shape}; (n, z, x) or (n, c, z, x) was expected")
    if values.shape[1] > 4 and values.shape[3] <= 4:
        raise UsageError(f"{path}: maps have shape {shape}, channels last; store them as (n, c, z, x)")
    return values


def _stated_labels(
    path: Path, arrays: dict[str, np.ndarray], texts: dict[str, np.ndarray], count: int
) -> tuple[list[str] | None, tuple[str, ...]]:
    """Class name of every map (None where not stated) and the classes there are, from texts or from numbers."""
    classes = _texts(texts, "classes") or ()
    given = _texts(texts, "labels")
    if given is not None:
        return list(given), classes or tuple(sorted(set(given)))
    numbers = arrays.get("labels", arrays.get("arr_1"))
    if numbers is None:
        return None, ()
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu" or len(numbers) != count:
        raise UsageError(f"{path}: 'labels' has shape {numbers.shape}; {count} whole numbers or texts were expected")
    if (numbers < 0).all():
        return None, ()
    if numbers.max() >= MOST_CLASSES:
        raise UsageError(f"{path}: a label is {numbers.max()}; number the classes from 0, {MOST_CLASSES} are the most")
    classes = classes or tuple(str(i) for i in range(int(numbers.max()) + 1))
    if numbers.min() < 0 or numbers.max() >= len(classes):
        raise UsageError(f"{path}: labels run from {numbers.min()} to {numbers.max()}, classes are {len(classes)}")
    return [classes[i] for i in numbers], classes


def _texts(texts: dict[str, np.ndarray], name: str) -> tuple[str, ...] | None:
    """Texts of an NPZ file; None where absent."""
    found = texts.get(name)
    return None if found is None or found.ndim != 1 else tuple(str(text) for text in found)


def _from_cases(source: Path, shards: Sequence[Path], field: MapField, quantifiable_only: bool) -> MapSet:
    """Maps, categories and base anatomies of generated cases; their RF, a hundred times larger, is not touched."""
    from lungwave.data import hdf5, schema

    parts: dict[str, list[np.ndarray]] = {"maps": [], "groups": [], "index": []}
    categories: list[str] = []
    for path in shards:
        with reading.open_hdf5(path) as file:
            prefix = hdf5.track(file)
            wanted = schema.SHARP if field == "sharp" else schema.SMOOTH
            arrays = [reading.array(file, hdf5.place(f, prefix)) for f in (wanted, schema.BASE_ID, schema.INDEX)]
            category = reading.texts(file, schema.CATEGORY.path)
        if category is None or any(a is None or len(a) != len(category) for a in arrays):
            raise UsageError(f"{path}: holds no {field} aeration maps; give cases that 'lungwave generate' wrote")
        for name, array in zip(parts, arrays, strict=True):
            parts[name].append(np.asarray(array))
        categories += category
        if parts["maps"][-1].shape[1:] != parts["maps"][0].shape[1:]:
            raise UsageError(f"{path}: maps are {parts['maps'][-1].shape[1:]}, before {parts['maps'][0].shape[1:]}")
    maps, groups, index = (np.concatenate(part) for part in parts.values())
    keep, notes = _complete(source, maps[:, None], quantifiable_only)
    names = [f"{categories[i]}_{index[i]:06d}" for i in keep]
    return MapSet.of(
        maps[keep][:, None], names, [categories[i] for i in keep], groups[keep], notes=notes, source=source
    )


def _complete(
    source: str | Path, maps: Shaped[np.ndarray, "n c z x"], quantifiable_only: bool
) -> tuple[Integer[np.ndarray, " kept"], list[str]]:
    """Rows of the maps without NaN; a UsageError tells how to leave the others out where that was not asked for."""
    if maps.dtype.kind != "f":
        return np.arange(len(maps)), []
    holed = np.isnan(maps).any((1, 2, 3))
    keep = np.flatnonzero(~holed)
    if len(keep) == len(maps):
        return keep, []
    if not quantifiable_only:
        raise UsageError(
            f"{source}: {holed.sum()} of {len(maps)} maps hold NaN (first: number {int(holed.argmax())}), columns "
            "without truth behind a rib or air; leave these maps out with --quantifiable-only, or draw without ribs"
        )
    if len(keep) == 0:
        raise UsageError(f"{source}: every one of {len(maps)} maps holds NaN; draw lungs without ribs and pneumothorax")
    return keep, [f"{holed.sum()} of {len(maps)} maps have columns without truth and are left out"]


def _stored(maps: Shaped[np.ndarray, "n c z x"], source: str | Path) -> np.ndarray:
    """Maps as bytes or float32 fractions; UsageError for NaN and for values outside 0-1."""
    if len(maps) == 0:
        raise UsageError(f"{source}: holds no map; give at least one")
    if maps.dtype == np.uint8:
        return np.ascontiguousarray(maps)
    if maps.dtype == bool:
        return maps.astype(np.uint8) * np.uint8(255)
    if maps.dtype == np.uint16:
        return maps.astype(np.float32) / np.float32(65535)
    if maps.dtype.kind != "f":
        raise UsageError(f"{source}: maps have type {maps.dtype}; give fractions 0-1, or 8 or 16 bit without sign")
    keep, _ = _complete(source, maps, quantifiable_only=False)
    low, high = maps.min((1, 2, 3)), maps.max((1, 2, 3))
    outside = (low < -SLACK) | (high > 1 + SLACK)
    if outside.any():
        first = int(outside.argmax())
        value = float(high[first] if high[first] > 1 + SLACK else low[first])
        raise UsageError(
            f"{source}: map {first} holds {value:g}, outside 0-1; scale the maps with 'lungwave data convert', "
            "--scale percent or byte"
        )
    assert len(keep) == len(maps)
    return np.clip(maps, 0.0, 1.0).astype(np.float32)


def _groups_of_copies(maps: Shaped[np.ndarray, "n c z x"]) -> tuple[Int64[np.ndarray, " n"], int]:
    """Each map's first equal map, so that copies share a group, and how many maps are copies."""
    first: dict[bytes, int] = {}
    groups = [first.setdefault(hashlib.sha256(np.ascontiguousarray(m).data).digest(), i) for i, m in enumerate(maps)]
    return np.array(groups, np.int64), len(groups) - len(first)
