"""Readers of HDF5 that a stranger wrote: what is looked at before memory is taken."""

from __future__ import annotations

import resource
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from lungwave.data import reading
from lungwave.types import UsageError


@pytest.mark.parametrize(("read", "name"), [(reading.texts, "names"), (reading.text, "one")])
def test_a_text_of_gigabytes_is_refused_before_it_is_read(
    tmp_path: Path, read: Callable[[h5py.Group, str], object], name: str
) -> None:
    """The length that a reference states is memory that libhdf5 takes at once; found by the fuzzer."""
    path = tmp_path / "texts.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("names", data=np.array(["lung", "another"], object), dtype=h5py.string_dtype())
        file.create_dataset("one", data="lung", dtype=h5py.string_dtype())
        places = {name: file[name].id.get_offset() for name in ("names", "one")}
    with reading.open_hdf5(path) as file:
        assert reading.texts(file, "names") == ["lung", "another"]
        assert reading.text(file, "one") == "lung"
    data = bytearray(path.read_bytes())
    for start in places.values():
        data[start : start + 4] = (2**32 - 1).to_bytes(4, "little")
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError, match="says it has 4294967295 bytes"), reading.open_hdf5(path) as file:
        read(file, name)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18  # [KiB]
