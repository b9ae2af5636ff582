"""One place names the fields; the documentation prints exactly that place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from lungwave.acoustics.probe import Recording
from lungwave.data import schema
from lungwave.data.hdf5 import write_recording
from lungwave.data.schema import CaseTable
from lungwave.types import UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_holds_the_table_of_fields() -> None:
    page = (ROOT / "docs" / "reference" / "file-format.md").read_text(encoding="utf-8")
    for listed in (schema.FIELDS, schema.POSTERIOR_FIELDS):
        assert schema.table(listed) in page, "docs/reference/file-format.md is out of date; paste schema.table(...)"


def test_no_other_module_names_a_field_of_the_layout() -> None:
    """Names that only zea's layout uses; words of everyday language are left out."""
    names = {f.name for f in schema.FIELDS if "_" in f.name} & {
        "raw_data", "initial_times", "t0_delays", "tx_apodizations", "focus_distances", "transmit_origins",
        "polar_angles", "rx_aperture_indices", "time_origin", "seed_index",
    }  # fmt: skip
    assert len(names) >= 8
    for path in (ROOT / "src").rglob("*.py"):
        if path.name != "schema.py":
            text = path.read_text(encoding="utf-8")
            assert not [n for n in names if f'"{n}"' in text or f"/{n}" in text], path


def test_a_written_file_is_the_table(
    tmp_path: Path, make_recording: Callable[..., Recording], make_cases: Callable[..., CaseTable]
) -> None:
    """Every dataset in a file stands in the table with its type and number of axes, and the other way round."""
    write_recording(tmp_path / "a.h5", make_recording("walking"), cases=make_cases())
    write_recording(tmp_path / "b.h5", replace(make_recording("plane")))
    found: dict[str, h5py.Dataset] = {}
    with h5py.File(tmp_path / "a.h5") as one, h5py.File(tmp_path / "b.h5") as two:
        for file in (two, one):
            file.visititems(lambda name, item: found.update({name: item}) if isinstance(item, h5py.Dataset) else None)
        beside = ("coordinates", "unit", "description")
        companions = {schema.companion(f, n) for f in (schema.SHARP, schema.SMOOTH, schema.LUNG) for n in beside}
        known = {f.path: f for f in schema.FIELDS}
        assert set(found) - companions == set(known)
        for path, field in known.items():
            assert found[path].ndim == len(field.shape), path
            if field.dtype == "text":
                assert h5py.check_string_dtype(found[path].dtype) is not None, path
            else:
                assert found[path].dtype == np.dtype(field.dtype), path


def test_cases_that_differ_in_grid_do_not_share_a_table(make_cases: Callable[..., CaseTable]) -> None:
    one = make_cases(1).truth(0)
    with pytest.raises(UsageError, match="differ"):
        CaseTable.of([one, replace(one, pixel=2e-4)], [0, 1], ["a", "b"], [0, 1], ["{}", "{}"])
    with pytest.raises(UsageError, match="one each"):
        CaseTable.of([one], [0, 1], ["a"], [0], ["{}"])


def test_joining_is_writing_one_after_the_other(make_cases: Callable[..., CaseTable]) -> None:
    cases = make_cases(2)
    joined = CaseTable.join([cases.take([1]), cases.take([0])])
    assert joined.category == cases.category[::-1]
    np.testing.assert_array_equal(joined.sharp, cases.sharp[::-1])
    assert len(joined) == 2


@pytest.mark.parametrize("name", ["../x", "a/b", "", "1st"])
def test_a_map_name_is_a_plain_word(name: str) -> None:
    with pytest.raises(UsageError, match="plain word"):
        schema.map_field(name)
