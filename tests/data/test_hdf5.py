"""lungwave files: what goes in comes out, the same content gives the same bytes, and nothing appears half written."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from edited import edited
from lungwave.acoustics.probe import Recording, Scan
from lungwave.data import check, schema
from lungwave.data.hdf5 import read_cases, read_recording, write_recording
from lungwave.data.schema import CaseTable, MapStack
from lungwave.types import LungwaveError, UsageError

Make = Callable[..., Recording]
MakeCases = Callable[..., CaseTable]
KINDS = ("plane", "walking", "matrix")


def assert_same(left: Any, right: Any) -> None:
    """Every field of two dataclasses is equal, NaN included."""
    for field in fields(left):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            assert a == b, field.name


@pytest.mark.parametrize("kind", KINDS)
def test_a_recording_comes_back_in_single_precision(
    kind: str, tmp_path: Path, make_recording: Make, rounded: Callable[[Scan], Scan]
) -> None:
    recording = make_recording(kind)
    write_recording(tmp_path / "a.h5", recording)
    back = read_recording(tmp_path / "a.h5")
    np.testing.assert_array_equal(back.rf, recording.rf)
    assert back.rf.dtype == np.float32
    assert (back.probe_name, back.description) == (recording.probe_name, recording.description)
    assert_same(back.scan, rounded(recording.scan))


@pytest.mark.parametrize("kind", KINDS)
def test_reading_and_writing_again_changes_nothing(kind: str, tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording(kind))
    write_recording(tmp_path / "b.h5", read_recording(tmp_path / "a.h5"))
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_cases_come_back(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    cases = make_cases()
    write_recording(tmp_path / "a.h5", make_recording(), cases=cases)
    back = read_cases(tmp_path / "a.h5")
    assert back is not None
    assert_same(back, cases)
    assert_same(back.truth(1), cases.truth(1))


def test_a_measurement_has_no_cases(tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording())
    assert read_cases(tmp_path / "a.h5") is None


@pytest.mark.parametrize("frames", [[1], [2, 0], slice(1, None), [1, 1]])
def test_some_frames_are_the_same_frames(
    frames: Any, tmp_path: Path, make_recording: Make, make_cases: MakeCases
) -> None:
    recording, cases = make_recording(frames=2), make_cases(2)
    recording = replace(recording, rf=np.concatenate([recording.rf, recording.rf[:1] * 2]))
    cases = CaseTable.join([cases, cases.take([0])])
    write_recording(tmp_path / "a.h5", recording, cases=cases)
    rows = np.arange(3)[frames]
    np.testing.assert_array_equal(read_recording(tmp_path / "a.h5", frames).rf, recording.rf[rows])
    some = read_cases(tmp_path / "a.h5", frames)
    assert some is not None
    assert_same(some, cases.take(rows))


@pytest.mark.parametrize("frames", [[5], [-1], [], slice(7, None)])
def test_frames_that_do_not_exist_are_named(frames: Any, tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording())
    with pytest.raises(UsageError, match="frame"):
        read_recording(tmp_path / "a.h5", frames)


def test_the_same_content_gives_the_same_bytes(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    where = np.zeros((4, 3, 3))
    extra = {
        "zone": MapStack(np.ones((2, 4, 3), np.float32), where),
        "area": MapStack(np.zeros((2, 4, 3), np.uint8), where),
    }
    origin = {"seed": 1, "a": [2]}

    def write(name: str, maps: dict[str, MapStack]) -> bytes:
        path, cases = tmp_path / name, make_cases()
        write_recording(path, make_recording(), maps=maps, cases=cases, provenance=origin, snr_db=20.0)
        return (tmp_path / name).read_bytes()

    first = write("a.h5", extra)
    time.sleep(1.1)  # HDF5 counts seconds: a time stamp would show
    assert write("other.h5", dict(reversed(extra.items()))) == first


def test_large_arrays_are_compressed_and_shuffled(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    write_recording(tmp_path / "a.h5", make_recording(), cases=make_cases())
    with h5py.File(tmp_path / "a.h5") as file:
        for path in (schema.RAW.path, schema.SHARP.path):
            assert (file[path].compression, file[path].compression_opts, file[path].shuffle) == ("gzip", 4, True)


def test_the_file_opens_with_the_oldest_superblock(tmp_path: Path, make_recording: Make) -> None:
    """Files written at HDF5's newest level are refused by 1.14 readers, MATLAB among them."""
    write_recording(tmp_path / "a.h5", make_recording())
    assert (tmp_path / "a.h5").read_bytes()[8] == 0


def test_an_angle_is_not_lost_with_the_first_firing(tmp_path: Path, make_recording: Make) -> None:
    """zea wants the first firing at 0; the arrival at any depth must not move by that."""
    recording = make_recording("plane")
    write_recording(tmp_path / "a.h5", recording)
    with h5py.File(tmp_path / "a.h5") as file:
        stored = file[schema.DELAYS.path][()]
        assert stored.min() == 0.0 and (stored.min(1) == 0.0).all()
    back = read_recording(tmp_path / "a.h5").scan
    middle = recording.scan.delays.shape[1] // 2
    before = recording.scan.start_times - recording.scan.delays[:, middle]
    np.testing.assert_allclose(back.start_times - back.delays[:, middle], before, atol=1e-12)


@pytest.mark.parametrize("name", [f.path for f in schema.FIELDS if f.required])
def test_a_missing_field_is_named(name: str, tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording())
    with edited(tmp_path / "a.h5") as file:
        del file[name]
    with pytest.raises(UsageError, match=name.rsplit("/", 1)[-1]):
        read_recording(tmp_path / "a.h5")
    assert any(name.rsplit("/", 1)[-1] in f.message for f in check.validate(tmp_path / "a.h5") if f.level == "error")


@pytest.mark.parametrize("keep", [0, 4, 100, 0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error_in_one_line(keep: float, tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording())
    whole = (tmp_path / "a.h5").read_bytes()
    size = int(len(whole) * keep) if isinstance(keep, float) else keep
    (tmp_path / "a.h5").write_bytes(whole[:size])
    with pytest.raises(UsageError) as caught:
        read_recording(tmp_path / "a.h5")
    assert "\n" not in str(caught.value) and "a.h5" in str(caught.value)
    assert check.validate(tmp_path / "a.h5")[0].level == "error"


def test_a_file_that_is_not_hdf5_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_text("frame,value\n1,2\n")
    with pytest.raises(UsageError, match="not a readable HDF5"):
        read_recording(tmp_path / "a.h5")


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "NaN or infinite"), (0.0, "all zero")])
def test_unusable_samples_are_refused_both_ways(value: float, word: str, tmp_path: Path, make_recording: Make) -> None:
    recording = make_recording()
    write_recording(tmp_path / "a.h5", recording)
    rf = recording.rf.copy()
    rf[1] = value
    with pytest.raises(UsageError, match=word):
        write_recording(tmp_path / "b.h5", replace(recording, rf=rf))
    assert not (tmp_path / "b.h5").exists()
    with edited(tmp_path / "a.h5") as file:
        file[schema.RAW.path][1] = value
    with pytest.raises(UsageError, match=f"a.h5.*{word}"):
        read_recording(tmp_path / "a.h5")
    assert "frame 1" in check.validate(tmp_path / "a.h5")[0].message


@pytest.mark.parametrize(
    ("field", "factor", "unit"),
    [
        (schema.GEOMETRY, 1e3, "millimetres"),
        (schema.CENTER, 1e-3, "kHz"),
        (schema.SAMPLING, -1.0, "positive"),
        (schema.ANGLES, 57.3, "radians"),
        (schema.INITIAL_TIMES, 1e6, "microseconds"),
    ],
)
def test_wrong_units_are_recognised(
    field: schema.Field, factor: float, unit: str, tmp_path: Path, make_recording: Make
) -> None:
    write_recording(tmp_path / "a.h5", make_recording("plane"))
    with edited(tmp_path / "a.h5") as file:
        file[field.path][...] = (file[field.path][()] + (0.1 if field is schema.ANGLES else 0)) * factor
    with pytest.raises(UsageError, match=unit):
        read_recording(tmp_path / "a.h5")


def test_links_out_of_the_file_are_not_followed(tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "secret.h5", make_recording())
    write_recording(tmp_path / "a.h5", make_recording())
    with edited(tmp_path / "a.h5") as file:
        del file[schema.RAW.path]
        file[schema.RAW.path] = h5py.ExternalLink("secret.h5", schema.RAW.path)
    with pytest.raises(UsageError, match="link"):
        read_recording(tmp_path / "a.h5")


def test_samples_kept_in_another_file_are_refused(tmp_path: Path, make_recording: Make) -> None:
    recording = make_recording()
    write_recording(tmp_path / "a.h5", recording)
    shape = (*recording.rf.shape, 1)
    (tmp_path / "raw.bin").write_bytes(b"\1" * (4 * int(np.prod(shape))))
    with edited(tmp_path / "a.h5") as file:
        del file[schema.RAW.path]
        external = [(str(tmp_path / "raw.bin"), 0, 4 * int(np.prod(shape)))]
        file.create_dataset(schema.RAW.path, shape, "f4", external=external)
    with pytest.raises(UsageError, match="another file"):
        read_recording(tmp_path / "a.h5")


def test_object_types_are_never_read(tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording())
    with edited(tmp_path / "a.h5") as file:
        del file[schema.RAW.path]
        file.create_dataset(schema.RAW.path, data=["x"], dtype=h5py.string_dtype())
    with pytest.raises(UsageError, match="never read"):
        read_recording(tmp_path / "a.h5")


def test_a_huge_declared_size_is_refused_before_reading(tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording())
    with edited(tmp_path / "a.h5") as file:
        del file[schema.RAW.path]
        file.create_dataset(schema.RAW.path, (10**6, 3, 10**4, 16, 1), "f4", chunks=(1, 1, 100, 16, 1))
    assert (tmp_path / "a.h5").stat().st_size < 10**6
    with pytest.raises(UsageError, match="GiB"):
        read_recording(tmp_path / "a.h5")


def test_a_size_that_was_never_written_is_refused(tmp_path: Path, make_recording: Make) -> None:
    """4 GB of fill value in a file of some kB: below the limit, but nobody ever stored them."""
    write_recording(tmp_path / "a.h5", make_recording())
    with edited(tmp_path / "a.h5") as file:
        del file[schema.RAW.path]
        file.create_dataset(schema.RAW.path, (2000, 3, 10**4, 16, 1), "f4", chunks=(1, 1, 100, 16, 1))
    with pytest.raises(UsageError, match="never written in full"):
        read_recording(tmp_path / "a.h5")


def test_a_zea_file_without_our_group_is_read_with_its_own_clock(tmp_path: Path, make_recording: Make) -> None:
    """zea also marks a plane wave by focus 0, where several elements fire, and may state a frequency per event."""
    write_recording(tmp_path / "a.h5", make_recording("plane"))
    with edited(tmp_path / "a.h5") as file:
        del file[schema.OURS], file.attrs[schema.ATTR_FORMAT], file[schema.CENTER.path]
        file[schema.FOCUS.path][...] = 0.0
        file[schema.CENTER.path] = np.full(3, 5.1e6, np.float32)
        first, delays = file[schema.INITIAL_TIMES.path][()], file[schema.DELAYS.path][()]
    scan = read_recording(tmp_path / "a.h5").scan
    assert scan.kind == "plane" and scan.center_frequency == pytest.approx(5.1e6)
    np.testing.assert_array_equal(scan.start_times, first)
    np.testing.assert_array_equal(scan.delays, delays)
    assert check.describe(tmp_path / "a.h5")["format"] == "zea"


def test_iq_data_is_refused_with_the_reason(tmp_path: Path, make_recording: Make) -> None:
    recording = make_recording()
    write_recording(tmp_path / "a.h5", recording)
    with edited(tmp_path / "a.h5") as file:
        del file[schema.RAW.path]
        file[schema.RAW.path] = np.ones((*recording.rf.shape, 2), np.float32)
    with pytest.raises(UsageError, match="I/Q"):
        read_recording(tmp_path / "a.h5")


def test_cases_must_fit_the_frames(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    with pytest.raises(UsageError, match="one case per frame"):
        write_recording(tmp_path / "a.h5", make_recording(frames=1), cases=make_cases(2))
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_leaves_nothing(
    tmp_path: Path, make_recording: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_recording(tmp_path / "a.h5", make_recording())
    before = (tmp_path / "a.h5").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(LungwaveError, match=r"No space left.*free space"):
        write_recording(tmp_path / "a.h5", make_recording("matrix"))
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    assert (tmp_path / "a.h5").read_bytes() == before


LIMITED = """
import resource, signal, sys
import numpy as np
from lungwave.acoustics.probe import Recording, Scan, linear_array
from lungwave.data.hdf5 import write_recording
from lungwave.types import LungwaveError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
one = np.ones((1, 8))
far, zero = np.full(1, np.inf), np.zeros(1)
scan = Scan(linear_array(8, 3e-4), 5e6, 2e7, 0 * one, one, zero, far, zero, np.zeros((1, 3)))
rf = np.random.default_rng(0).standard_normal((4, 1, 20000, 8)).astype(np.float32)
try:
    write_recording(sys.argv[1], Recording(rf, scan))
except LungwaveError as error:
    print("caught", error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="file size limits are POSIX")
def test_the_system_refusing_a_write_leaves_nothing(tmp_path: Path) -> None:
    """The kernel itself stops the file at 200 kB, as a full disk would."""
    target = tmp_path / "out" / "a.h5"
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(target)], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.startswith("caught") and "cannot write" in run.stdout, run.stderr
    assert run.stderr == ""
    assert list(target.parent.iterdir()) == []


def test_a_good_file_has_no_findings(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    write_recording(tmp_path / "a.h5", make_recording(), cases=make_cases(), provenance={"seed": 1})
    assert check.validate(tmp_path / "a.h5") == []


def test_percent_for_a_fraction_is_found(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    cases = make_cases()
    cases = replace(cases, sharp=cases.sharp * 100)
    write_recording(tmp_path / "a.h5", make_recording(), cases=cases, provenance={"seed": 1})
    assert ["percent" in f.message for f in check.validate(tmp_path / "a.h5")] == [True]


def test_description_names_what_people_ask_for(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    origin = {"config_sha256": "abc", "seed": 7, "versions": {}, "parents": {}}
    write_recording(tmp_path / "a.h5", make_recording(), cases=make_cases(), provenance=origin, snr_db=25.0)
    found = check.describe(tmp_path / "a.h5")
    assert found["rf"] == {"frames": 2, "transmits": 3, "samples": 40, "channels": 16}
    assert found["scan"]["angles_deg"] == [-7.3, 0.0, 9.1]
    assert found["cases"]["categories"] == {"healthy": 1, "interstitial": 1}
    assert found["cases"]["base_ids"] == 2
    assert found["provenance"]["seed"] == 7 and found["snr_db"] == 25.0
    assert found["maps"] == {"aeration": [2, 6, 5], "aeration_smooth": [2, 6, 5], "lung": [2, 6, 5]}


def test_map_pixels_lie_below_the_pleura(make_cases: MakeCases) -> None:
    """Pixel centres: half a pixel below the lung surface in row 0, x of the columns, y = 0."""
    where = make_cases().map_coordinates()
    np.testing.assert_allclose(where[0, :, 2], 0.5e-4)
    np.testing.assert_allclose(where[:, 1, 0], -1e-4)
    assert not where[..., 1].any()
    np.testing.assert_allclose(np.diff(where[:, 0, 2]), 1e-4)


def test_zea_accepts_our_file(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    """zea's own validator, in a process of its own: it sets a backend and prints on import."""
    python = os.environ.get("LUNGWAVE_ZEA_PYTHON", sys.executable)
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    found = subprocess.run([python, "-c", "import zea"], capture_output=True, env=environment, timeout=300, check=False)
    if found.returncode:
        pytest.skip(
            "zea is not installed: pip install lungwave[interop], or set LUNGWAVE_ZEA_PYTHON to a Python with it"
        )
    write_recording(tmp_path / "plane.h5", make_recording(), cases=make_cases(), provenance={"seed": 1})
    write_recording(tmp_path / "walking.h5", make_recording("walking"), subject={"type": "phantom"})
    write_recording(tmp_path / "matrix.h5", make_recording("matrix"))
    ask = (
        "import sys; from zea.data.file import File, validate_file\n"
        "for path in sys.argv[1:]:\n"
        "    assert validate_file(path) == {'status': 'success'}\n"
        "    with File(path) as file: file.validate_spec()\n"
        "print('accepted', len(sys.argv) - 1)"
    )
    paths = [str(p) for p in sorted(tmp_path.glob("*.h5"))]
    command = [python, "-c", ask, *paths]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert "accepted 3" in run.stdout, run.stderr[-2000:]
