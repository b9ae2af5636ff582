"""Whole or not: a seal over every byte of a file, checked before anything in it is believed.

A lungwave HDF5 file carries, as an attribute of its root, the SHA-256 of all its bytes (those of the digest itself read
as zeros). One flipped bit anywhere, compressed samples and HDF5's own tables included, no longer matches. Files of
others carry no seal; of them only what would hang the HDF5 library is looked for.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import h5py

from lungwave.types import UsageError

ATTRIBUTE = "lungwave_sha256"
MARK = b"lungwave-sha256:"  # how the value of the attribute begins, so that it is found without HDF5
EMPTY = b"0" * 64
HEAP = b"GCOL\x01\x00\x00\x00"  # signature and version of a global heap (HDF5 file format, III.E)
HEAD = 16  # [byte] of a heap, and of each object in it


def sealed(image: bytes) -> bytes:
    """The image of a file with its digest in the place that ``MARK + EMPTY`` keeps for it."""
    at = image.index(MARK + EMPTY) + len(MARK)
    return image[:at] + hashlib.sha256(image).hexdigest().encode() + image[at + 64 :]


def check(path: Path) -> str | None:
    """Digest of a file that is as it was written, None for one without a seal.

    Raises UsageError for one that was damaged or edited, and for what makes the HDF5 library run for ever. A file that
    has not changed since it was last looked at is not read again.
    """
    about = path.stat()
    return _checked(str(path), about.st_ino, about.st_size, about.st_mtime_ns)


@lru_cache(maxsize=65536)
def _checked(path: str, inode: int, size: int, modified: int) -> str | None:
    with _bytes(path) as data:
        at = data.find(MARK)
        if at < 0:
            _check_heaps(path, data)
            return None
        at += len(MARK)
        said = bytes(data[at : at + 64])
        view = memoryview(data)
        try:
            found = hashlib.sha256(view[:at])
            found.update(EMPTY[: len(said)])
            found.update(view[at + 64 :])
        finally:
            view.release()
        digest = found.hexdigest().encode()
        if digest != said:
            _check_heaps(path, data)
    if digest != said:
        if _unsealed(path):  # its bytes may outlive an attribute that was deleted
            return None
        raise UsageError(
            f"{path}: is not as lungwave wrote it (damaged, cut off or edited); copy it again, or, if it was edited on "
            f"purpose, delete its attribute '{ATTRIBUTE}'"
        )
    return said.decode()


def _unsealed(path: str) -> bool:
    """Whether the file as HDF5 reads it has no such attribute."""
    try:
        with h5py.File(path, "r") as file:
            return ATTRIBUTE not in file.attrs
    except (OSError, RuntimeError, KeyError, ValueError):
        return False


@contextmanager
def _bytes(path: str) -> Iterator[mmap.mmap]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield data


def _check_heaps(path: str, data: mmap.mmap) -> None:
    """Every object of every heap of texts must lead on to the next: libhdf5 2.0 waits for ever at one of no size."""
    at = data.find(HEAP)
    while at >= 0:
        (size,) = struct.unpack("<Q", data[at + 8 : at + 16].ljust(8, b"\0"))
        end, place = min(at + size, len(data)), at + HEAD
        while place + HEAD <= end:
            index, _, length = struct.unpack("<HHxxxxQ", data[place : place + HEAD])
            step = length if index == 0 else HEAD + -(-length // 8) * 8  # object 0 is the free space, head included
            if step < HEAD:
                raise UsageError(f"{path}: its table of texts is damaged (byte {place}); copy it again")
            place += step
        at = data.find(HEAP, at + 1)
