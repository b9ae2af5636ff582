"""NPZ and NPY that a stranger wrote: heads are read first, checksums always, and no object is ever built."""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lungwave.data import reading
from lungwave.types import UsageError

Text = Literal["refuse", "skip", "keep"]
END, MANY = 22, 0xFFFF  # [byte] of a ZIP's last record; number of members that is stated elsewhere
LAST_CHARACTER, SURROGATES = 0x10FFFF, (0xD800, 0xDFFF)  # of Unicode; numpy stores any 32 bits


def numpy_arrays(path: str | Path, text: Text = "refuse") -> dict[str, np.ndarray]:
    """Arrays of a ``.npz``, or of a ``.npy`` under the name ``rf``; object arrays are refused before anything is built.

    ``text`` says what becomes of arrays of text. Raises UsageError for whatever is not whole.
    """
    path = Path(path)
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                value = _npy(path, "rf", stream, text)
                return {} if value is None else {"rf": value}
        found: dict[str, np.ndarray] = {}
        with zipfile.ZipFile(path) as archive:
            if _listed(path, archive) not in (len(archive.infolist()), MANY):
                raise UsageError(f"{path}: its list of arrays is damaged; copy it again")
            for entry in archive.infolist():
                with archive.open(entry) as stream:  # where the two places of its name must agree
                    if entry.filename.endswith(".npy"):
                        name = entry.filename.removesuffix(".npy")
                        value = _npy(path, name, stream, text)
                        if stream.read(1):  # at its end the archive compares checksums
                            raise UsageError(f"{path}: '{name}' is longer than it says; copy it again")
                        if value is not None:
                            found[name] = value
        return found
    except UsageError:
        raise
    except MemoryError as error:
        raise UsageError(f"{path}: needs more memory than this machine has; split the file") from error
    except Exception as error:  # a damaged header makes the parser fail in any way it likes
        reason = " ".join(str(error).split())[:100]
        raise UsageError(f"{path}: not a readable NumPy file ({reason}); is it truncated? copy it again") from error


def _listed(path: Path, archive: zipfile.ZipFile) -> int:
    """How many members the archive's last record says there are; zipfile does not compare."""
    with path.open("rb") as stream:
        stream.seek(-END - len(archive.comment), os.SEEK_END)
        return int(struct.unpack("<10xH10x", stream.read(END))[0])


def _npy(path: Path, name: str, stream: Any, text: Text) -> np.ndarray | None:
    """One array; its header is read first, so that neither objects nor absurd sizes are ever built."""
    version = np.lib.format.read_magic(stream)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(stream)
    if dtype.hasobject:
        raise UsageError(f"{path}: '{name}' is an object array; it is never unpickled, save plain numbers instead")
    if dtype.kind not in "fiubc" and (dtype.kind != "U" or text == "refuse"):
        raise UsageError(f"{path}: '{name}' has type {dtype}; numbers were expected")
    reading.check_size(path, name, shape, dtype.itemsize)
    count = int(np.prod(shape, dtype=np.int64))
    data = stream.read(count * dtype.itemsize)
    if len(data) != count * dtype.itemsize:
        raise UsageError(f"{path}: '{name}' ends after {len(data)} of {count * dtype.itemsize} bytes; copy it again")
    if dtype.kind == "U":
        if text == "skip":
            return None
        codes = np.frombuffer(data, np.dtype("u4").newbyteorder(dtype.byteorder))
        low, high = SURROGATES
        if codes.size and (codes.max() > LAST_CHARACTER or ((codes >= low) & (codes <= high)).any()):
            raise UsageError(f"{path}: '{name}' holds what is no text; copy it again")
    return np.frombuffer(data, dtype=dtype).reshape(shape, order="F" if fortran else "C")
