"""Reading HDF5 that a stranger wrote: sizes checked first, no link followed out of the file, no object ever built."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from lungwave.data import seal
from lungwave.types import LungwaveError, UsageError

MAX_BYTES = 8 * 2**30  # [byte] one array as declared in the file; a laptop's memory
MAX_DEFLATE = 1032  # best ratio that deflate can reach (RFC 1951: 258 bytes in 2 bits)
MAX_TEXT = 2**20  # [byte] one text

Tree: TypeAlias = dict[str, Any]  # name -> array, str or Tree


def check_size(path: str | Path, name: str, shape: tuple[int, ...], itemsize: int, limit: int = MAX_BYTES) -> None:
    """Raise UsageError when an array of this shape needs more memory than ``limit``; nothing is read before."""
    size = math.prod(shape) * itemsize
    if size > limit:
        raise UsageError(
            f"{path}: '{name}' declares {size / 2**30:.4g} GiB {shape}, more than {limit / 2**30:.4g} GiB; "
            "read fewer frames or split the file"
        )


@contextmanager
def open_hdf5(path: str | Path) -> Iterator[h5py.File]:
    """Open for reading; whatever h5py cannot make sense of becomes a UsageError that names the file."""
    path = Path(path)
    check_file(path)
    try:
        seal.check(path)
        with h5py.File(path, "r") as file:
            yield file
    except LungwaveError:
        raise
    except MemoryError as error:
        raise UsageError(
            f"{path}: needs more memory than this machine has; read fewer frames or split the file"
        ) from error
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, UnicodeError, OverflowError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UsageError(f"{path}: not a readable HDF5 file ({reason}); is it truncated? copy it again") from error


def check_file(path: Path) -> None:
    """Raise UsageError where ``path`` is not a file with something in it."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UsageError(f"{path}: {what}; give a file")
    if path.stat().st_size == 0:
        raise UsageError(f"{path}: is empty; copy it again")


def find(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """Item at ``name`` (a path with '/'), None where absent; links that leave the file are refused."""
    item: Any = group
    for part in name.strip("/").split("/"):
        if not isinstance(item, h5py.Group):
            return None
        link = item.get(part, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise UsageError(
                f"{group.file.filename}: '{name}' is a link; links are not followed, store the array itself"
            )
        item = item[part]
    return item


def array(group: h5py.Group, name: str, rows: slice | np.ndarray | None = None) -> np.ndarray | None:
    """Numeric array at ``name`` (``rows`` of its first axis), None where absent; UsageError where no numbers."""
    item = find(group, name)
    if item is None:
        return None
    path = group.file.filename
    if not isinstance(item, h5py.Dataset):
        raise UsageError(f"{path}: '{name}' is a group, an array was expected; is this another layout?")
    if item.external or item.is_virtual:
        raise UsageError(f"{path}: '{name}' keeps its samples in another file; store them in this one")
    if item.dtype.kind not in "fiub":
        raise UsageError(f"{path}: '{name}' has type {item.dtype}; real numbers were expected, objects are never read")
    if item.shape is None:
        raise UsageError(f"{path}: '{name}' is empty")
    shape = item.shape
    if rows is not None and shape:
        count = len(range(*rows.indices(shape[0]))) if isinstance(rows, slice) else len(rows)
        shape = (count, *shape[1:])
    check_size(path, name, shape, item.dtype.itemsize)
    declared, stored = item.size * item.dtype.itemsize, item.id.get_storage_size()
    if declared > MAX_TEXT + MAX_DEFLATE * stored:
        raise UsageError(f"{path}: '{name}' declares {declared} bytes and stores {stored}; never written in full")
    return np.asarray(item[()] if rows is None or not item.shape else item[rows])


def single(rf: np.ndarray) -> np.ndarray:
    """RF as float32; a sample too large for it becomes infinite, which ``Recording.validate`` names."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(rf, np.float32)


def scalar(group: h5py.Group, name: str) -> float | None:
    """Number at ``name``, however many axes of length 1 it wears; None where absent."""
    value = array(group, name)
    if value is None:
        return None
    if value.size != 1:
        raise UsageError(f"{group.file.filename}: '{name}' has shape {value.shape}; one number was expected")
    return float(value.reshape(()))


def text(group: h5py.Group, name: str) -> str | None:
    """Text at ``name`` (scalar string, or characters stored as numbers, the MATLAB way); None where absent."""
    item = find(group, name)
    if not isinstance(item, h5py.Dataset) or item.shape is None or item.external or item.is_virtual:
        return None
    if item.size * item.dtype.itemsize > MAX_TEXT:
        raise UsageError(f"{group.file.filename}: text '{name}' is {item.size} long; shorten it")
    if h5py.check_string_dtype(item.dtype) is not None:
        _check_lengths(item, name)
        value = np.asarray(item[()]).reshape(-1)
        return decode(value[0]) if value.size == 1 else None
    if item.dtype.kind in "iu":
        return "".join(chr(int(v)) for v in item[()].reshape(-1) if 0 < int(v) < 0x110000)
    return None


def _check_lengths(item: h5py.Dataset, name: str) -> None:
    """UsageError where a text says that it is too long: libhdf5 takes the memory, gigabytes, before it looks.

    Each text of its own length is a reference in the file: length, address, number. In chunks, they stay unchecked.
    """
    kind, start = h5py.check_string_dtype(item.dtype), item.id.get_offset()
    if kind is None or kind.length is not None or start is None:
        return
    size = 8 + item.file.id.get_create_plist().get_sizes()[0]  # [byte] of a reference
    with open(item.file.filename, "rb") as file:
        file.seek(start + item.file.userblock_size)
        stored = np.frombuffer(file.read(size * item.size), np.uint8)
    lengths = stored[: stored.size // size * size].reshape(-1, size)[:, :4].copy().view("<u4")
    if lengths.max(initial=0) > MAX_TEXT:
        raise UsageError(f"{item.file.filename}: a text of '{name}' says it has {lengths.max()} bytes; copy it again")


def texts(group: h5py.Group, name: str) -> list[str] | None:
    """List of texts at ``name``; None where absent."""
    item = find(group, name)
    if item is None:
        return None
    if not isinstance(item, h5py.Dataset) or item.ndim != 1 or h5py.check_string_dtype(item.dtype) is None:
        raise UsageError(f"{group.file.filename}: '{name}' is no list of texts")
    if item.external or item.is_virtual:
        raise UsageError(f"{group.file.filename}: '{name}' keeps its texts in another file; store them in this one")
    check_size(group.file.filename, name, item.shape, max(item.dtype.itemsize, 16))
    _check_lengths(item, name)
    return [decode(v) for v in item[()]]


def decode(value: Any) -> str:
    """Text of a string attribute or item, bytes or str."""
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Attribute as str, number or array; None where absent."""
    if name not in item.attrs:
        return None
    value = item.attrs[name]
    if isinstance(value, bytes | str):
        return decode(value)
    value = np.asarray(value)
    if value.size == 1:
        one = value.reshape(-1)[0]
        return decode(one) if isinstance(one, bytes | str) else one.item() if isinstance(one, np.generic) else one
    return value


def members(group: h5py.Group) -> Iterator[tuple[str, h5py.Group | h5py.Dataset]]:
    """Name and item of everything that lies in the file itself; links are left out."""
    for name in group:
        if isinstance(group.get(name, getlink=True), h5py.HardLink):
            yield name, group[name]


def tree(group: h5py.Group, depth: int = 6) -> Tree:
    """Everything numeric or textual below ``group``; arrays in the order of the file, links and references left out."""
    found: Tree = {}
    if depth == 0:
        return found
    for name, item in members(group):
        if isinstance(item, h5py.Group):
            found[name] = tree(item, depth - 1)
        elif isinstance(item, h5py.Dataset) and item.dtype.kind in "fiub" and item.shape is not None:
            found[name] = array(group, name)
    return found
