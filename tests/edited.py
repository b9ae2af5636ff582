"""HDF5 files changed on purpose."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py

from lungwave.data.seal import ATTRIBUTE


@contextmanager
def edited(path: Path) -> Iterator[h5py.File]:
    """Open for changing; the seal is taken off, as it must be."""
    with h5py.File(path, "a") as file:
        if ATTRIBUTE in file.attrs:
            del file.attrs[ATTRIBUTE]
        yield file
