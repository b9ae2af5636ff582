"""Cases that stay on disk: an index in memory, and columns that read rows when they are asked for.

A set of any size costs some 40 bytes a case here. Rows come in the order asked for, so that whoever draws rows from a
seed sees the same as from a set in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from lungwave.data import hdf5, reading, schema, seal
from lungwave.data.dataset import shard_files
from lungwave.data.mapset import MapField, MapSet, Rows
from lungwave.data.schema import CaseTable, Field
from lungwave.progress import Progress
from lungwave.repro import sha256
from lungwave.types import UsageError


@dataclass(frozen=True)
class Column:
    """A field of all cases of a folder, or of some of them; indexing reads and returns an array."""

    files: tuple[Path, ...]
    starts: np.ndarray  # number of the first case of each file, and of all at the end
    field: Field
    rows: np.ndarray  # cases in the folder's order, by their number there
    tail: tuple[int, ...]  # shape of a row
    dtype: np.dtype

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole."""
        return (len(self.rows), *self.tail)

    @property
    def ndim(self) -> int:
        """Axes of the whole."""
        return 1 + len(self.tail)

    @property
    def size(self) -> int:
        """Values of the whole."""
        return int(np.prod(self.shape, dtype=np.int64))

    def take(self, chosen: Any) -> Column:
        """Some of the cases, still on disk."""
        return replace(self, rows=self.rows[chosen])

    def __getitem__(self, chosen: Any) -> np.ndarray:
        one = isinstance(chosen, (int, np.integer))
        wanted = self.rows[[chosen] if one else chosen]
        out = np.empty((len(wanted), *self.tail), self.dtype)
        where = np.searchsorted(self.starts, wanted, side="right") - 1
        for number in np.unique(where):
            mine = np.flatnonzero(where == number)
            inside, order = np.unique(wanted[mine] - self.starts[number], return_inverse=True)  # HDF5 wants them rising
            out[mine] = self._read(self.files[number], inside)[order]
        return out[0] if one else out

    def _read(self, path: Path, rows: np.ndarray) -> np.ndarray:
        with reading.open_hdf5(path) as file:
            found = reading.array(file, hdf5.place(self.field, hdf5.track(file)), rows)
        if found is None or found.shape != (len(rows), *self._stored_tail):
            raise UsageError(f"{path}: '{self.field.name}' has changed since it was first read; start again")
        return found.reshape(len(rows), *self.tail)

    @property
    def _stored_tail(self) -> tuple[int, ...]:
        return (*self.tail, 1) if self.field is schema.RAW else self.tail[1:] if self.tail[:1] == (1,) else self.tail


@dataclass(frozen=True)
class StreamedMaps(MapSet):
    """Maps that stay on disk, for training on more than fits into memory."""

    maps: Column  # type: ignore[assignment]
    seals: tuple[str, ...] = ()  # digests of the files

    def fraction(self, indices: Rows = slice(None)) -> Float32[np.ndarray, "row c z x"]:
        """Maps at ``indices`` as fractions 0-1, read now."""
        found = self.maps[indices if isinstance(indices, slice) else np.asarray(indices)]
        return np.clip(found, 0.0, 1.0).astype(np.float32)

    def subset(self, indices: Rows) -> StreamedMaps:
        """Some of the maps, in the order asked for."""
        rows = np.arange(len(self))[indices if isinstance(indices, slice) else np.asarray(indices)]
        return replace(self, maps=self.maps.take(rows), labels=self.labels[rows], groups=self.groups[rows])

    @property
    def digest(self) -> str:
        """SHA-256 over the files' digests and which of their cases these are, with labels and groups."""
        found = hashlib.sha256(repr((self.maps.shape, self.classes, self.seals)).encode())
        for part in (self.maps.rows, self.labels, self.groups):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()


@dataclass(frozen=True)
class StreamedCases(CaseTable):
    """Truth of which only what is small is in memory: identities, categories, percent aeration."""

    parameters: tuple[str, ...]
    sharp: Column  # type: ignore[assignment]
    smooth: Column  # type: ignore[assignment]
    lung: Column  # type: ignore[assignment]
    valid: Column  # type: ignore[assignment]
    pleura_depth: Column  # type: ignore[assignment]
    profile: Column  # type: ignore[assignment]

    def take(self, rows: Any) -> StreamedCases:
        """Some of the cases."""
        lazy = ("sharp", "smooth", "lung", "valid", "pleura_depth", "profile")
        kept = self.smooth.rows[rows]  # one list for all columns
        eager = ("base_id", "index", "bands", "whole")
        return replace(
            self,
            category=tuple(self.category[i] for i in np.arange(len(self.category))[rows]),
            **{name: replace(getattr(self, name), rows=kept) for name in lazy},
            **{name: getattr(self, name)[rows] for name in eager},
        )


@dataclass(frozen=True)
class Index:
    """What is known of every case of a folder without its arrays."""

    files: tuple[Path, ...]
    starts: np.ndarray
    seals: tuple[str, ...]
    small: dict[str, np.ndarray]  # of each case: base_id, index, bands, whole, category (place in ``categories``)
    categories: tuple[str, ...]
    whole: np.ndarray  # whether every column of a case has a truth
    tails: dict[str, tuple[int, ...]]  # shape of a case of each array
    first: CaseTable  # of one case, for what all share

    def column(self, field: Field, *, channel: bool = False) -> Column:
        """A field of all cases; ``channel`` puts an axis of length 1 before the others."""
        tail = self.tails[field.path]
        tail = tail[:-1] if field is schema.RAW else ((1, *tail) if channel else tail)
        return Column(self.files, self.starts, field, self.rows, tail, np.dtype(DTYPES.get(field, "float32")))

    @cached_property
    def rows(self) -> np.ndarray:
        """Numbers of all cases, one list for all columns."""
        return np.arange(self.starts[-1])

    def __len__(self) -> int:
        return int(self.starts[-1])


LAZY = (schema.RAW, schema.SHARP, schema.SMOOTH, schema.LUNG, schema.VALID, schema.PLEURA, schema.PROFILE)
DTYPES = {schema.LUNG: "bool", schema.VALID: "bool", schema.PLEURA: "float64", schema.PROFILE: "float64"}
SMALL = (schema.BASE_ID, schema.INDEX, schema.BANDS, schema.WHOLE)
KIND, SOUND = "category", "sound"  # of a case: its category's place, whether every column has a truth
KEPT = {
    schema.BASE_ID.name: np.int64, schema.INDEX.name: np.int64, schema.BANDS.name: np.float64,
    schema.WHOLE.name: np.float64, KIND: np.int32, SOUND: np.bool_,
}  # fmt: skip


def index_of(folder: Path, quiet: bool = False) -> Index:
    """Look at every shard of a generated folder once. UsageError for what is damaged, or unlike the first shard."""
    files = tuple(shard_files(folder))
    seals, lengths = [], []
    small = {name: bytearray() for name in KEPT}  # grows in place: a list of arrays would need their room twice
    tails: dict[str, tuple[int, ...]] = {}
    places: dict[str, int] = {}
    with Progress(len(files), "index", quiet=quiet) as progress:
        for path in files:
            with reading.open_hdf5(path) as file:
                prefix = hdf5.track(file)
                category = reading.texts(file, schema.CATEGORY.path)
                if category is None:
                    raise UsageError(f"{path} carries RF without truth; generate it with 'lungwave generate'")
                for field in LAZY:
                    item = reading.find(file, hdf5.place(field, prefix))
                    tail = tuple(getattr(item, "shape", ())[1:])
                    if tails.setdefault(field.path, tail) != tail:
                        raise UsageError(f"{path}: '{field.name}' is {tail} a case, before {tails[field.path]}")
                valid = reading.array(file, schema.VALID.path)
                found: dict[str, Any] = {}
                for field in SMALL:
                    value = reading.array(file, hdf5.place(field, prefix))
                    if value is None or len(value) != len(category) or valid is None:
                        raise UsageError(f"{path}: '{field.name}' is missing or misshapen; generate it again")
                    tail = value.shape[1:]
                    if tails.setdefault(field.path, tail) != tail:
                        raise UsageError(f"{path}: '{field.name}' is {tail} a case, before {tails[field.path]}")
                    found[field.name] = value
                found[SOUND] = np.all(valid != 0, axis=1) & np.isfinite(found[schema.WHOLE.name])
            found[KIND] = [places.setdefault(name, len(places)) for name in category]
            for name, values in found.items():
                small[name] += np.asarray(values, KEPT[name]).tobytes()
            seals.append(seal.check(path) or sha256(path))
            lengths.append(len(category))
            progress.advance()
    first = hdf5.read_cases(files[0], [0])
    assert first is not None
    starts = np.concatenate([[0], np.cumsum(lengths)])
    joined: dict[str, np.ndarray] = {name: np.frombuffer(values, KEPT[name]) for name, values in small.items()}
    joined[schema.BANDS.name] = joined[schema.BANDS.name].reshape(starts[-1], *tails[schema.BANDS.path])
    return Index(files, starts, tuple(seals), joined, tuple(places), joined.pop(SOUND), tails, first)


def stream_maps(
    folder: Path, field: MapField = "smooth", quantifiable_only: bool = False, quiet: bool = False
) -> StreamedMaps:
    """Maps of generated cases, read when they are asked for. Raises UsageError as ``read_maps`` does."""
    if not Path(folder).is_dir():
        raise UsageError(f"{folder}: only folders that 'lungwave generate' wrote are streamed; leave out --stream")
    index = index_of(Path(folder), quiet)
    keep, notes = np.flatnonzero(index.whole), tuple[str, ...]()
    if len(keep) < len(index):
        if not quantifiable_only:
            raise UsageError(
                f"{folder}: {len(index) - len(keep)} of {len(index)} maps have columns without truth; leave these maps "
                "out with --quantifiable-only"
            )
        notes = (f"{len(index) - len(keep)} of {len(index)} maps have columns without truth and are left out",)
    classes = tuple(sorted(index.categories))
    place = np.array([classes.index(name) for name in index.categories], np.int64)
    column = index.column(schema.SHARP if field == "sharp" else schema.SMOOTH, channel=True)
    return StreamedMaps(
        column.take(keep),
        (),
        place[index.small[KIND][keep]],
        classes,
        index.small[schema.BASE_ID.name][keep],
        notes,
        index.seals,
    )


def stream_cases(index: Index, keep: Sequence[int] | np.ndarray) -> StreamedCases:
    """Truth of some cases, of which only what is small is read."""
    rows, names, small = np.asarray(keep), index.categories, index.small
    kept = index.rows[rows]  # one list for all columns

    def column(field: Field) -> Column:
        return replace(index.column(field), rows=kept)

    return StreamedCases(
        base_id=small[schema.BASE_ID.name][rows],
        category=tuple(names[k] for k in small[KIND][rows]),
        index=small[schema.INDEX.name][rows],
        parameters=(),
        sharp=column(schema.SHARP),
        smooth=column(schema.SMOOTH),
        lung=column(schema.LUNG),
        bands=small[schema.BANDS.name][rows],
        whole=small[schema.WHOLE.name][rows],
        band_edges=index.first.band_edges,
        pixel=index.first.pixel,
        x=index.first.x,
        valid=column(schema.VALID),
        pleura_depth=column(schema.PLEURA),
        profile=column(schema.PROFILE),
    )
