"""Files that cannot be used: every verb that reads answers with one line, the right code, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

READERS = {
    "data info": (["data", "info", "{}"], 2),
    "data validate": (["data", "validate", "{}"], 1),
    "data convert": (["data", "convert", "{}", "converted.h5", "--kind", "rf"], 2),
    "reconstruct": (["reconstruct", "{}", "--out", "reconstructed"], 2),
    "report": (["report", "{}", "--out", "reported"], 2),
}


def recording() -> Any:
    """Noise on the micro probe: geometry and samples are fine."""
    from lungwave.acoustics.probe import Recording, sequence
    from lungwave.config import preset

    scan = sequence(preset("micro"))
    rf = np.random.default_rng(0).standard_normal((1, scan.transmits, 160, len(scan.elements))).astype(np.float32)
    return Recording(rf, scan)


def save(path: Path, **changes: Any) -> None:
    """The recording as NPZ, with some arrays replaced and those that are None left out."""
    good = recording()
    arrays = {f.name: getattr(good.scan, f.name) for f in fields(good.scan)} | {"rf": good.rf} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})


def hdf5_bytes(folder: Path) -> bytes:
    """A good lungwave file."""
    from lungwave.data.hdf5 import write_recording

    write_recording(folder / "good.h5", recording())
    content = (folder / "good.h5").read_bytes()
    (folder / "good.h5").unlink()
    return content


def broken(rf: np.ndarray, value: float) -> np.ndarray:
    """One bad sample."""
    changed = rf.copy()
    changed[0, 0, 40, 3] = value
    return changed


RF = np.ones((1, 1, 160, 16), np.float32)
BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing.h5": (lambda path: None, "missing.h5"),
    "folder.h5": (lambda path: path.mkdir(), "folder.h5"),
    "empty.h5": (lambda path: path.touch(), "empty"),
    "text.h5": (lambda path: path.write_text("frequency;12\n" * 50), "text.h5"),
    "truncated.h5": (lambda path: path.write_bytes(hdf5_bytes(path.parent)[:-2000]), "truncated.h5"),
    "beheaded.h5": (lambda path: path.write_bytes(hdf5_bytes(path.parent)[600:]), "beheaded.h5"),
    "picture.png": (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64)), "picture.png"),
    "scan.dcm": (lambda path: path.write_bytes(bytes(128) + b"DICM" + bytes(64)), "DICOM"),
    "objects.npy": (lambda path: np.save(path, np.array([{"rf": 1}], object), allow_pickle=True), "objects.npy"),
    "objects.npz": (lambda path: save(path, rf=np.array([[1, "a"]], object)), "objects.npz"),
    "bare.npy": (lambda path: np.save(path, RF), "geometry"),
    "no_elements.npz": (lambda path: save(path, elements=None), "elements"),
    "nan.npz": (lambda path: save(path, rf=broken(RF, np.nan)), "1 NaN or infinite"),
    "inf.npz": (lambda path: save(path, rf=broken(RF, np.inf)), "1 NaN or infinite"),
    "zero.npz": (lambda path: save(path, rf=0 * RF), "all zero"),
    "shape.npz": (lambda path: save(path, rf=RF[..., :9]), "9 channels"),
    "transposed.npz": (lambda path: save(path, rf=RF.transpose(0, 1, 3, 2)), "160 channels"),
    "millimetres.npz": (lambda path: save(path, elements=recording().scan.elements * 1e3), "millimetres"),
    "kilohertz.npz": (lambda path: save(path, sampling_frequency=6e3), "hertz"),
    "negative.npz": (lambda path: save(path, sampling_frequency=-6e6), "positive frequency"),
    "microseconds.npz": (lambda path: save(path, start_times=np.array([3.0])), "microseconds"),
    "degrees.npz": (lambda path: save(path, angles=np.array([8.0])), "radians"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", BAD)
def test_unusable_file_is_answered_in_one_line(
    name: str, reader: str, refused: Callable[..., str], tmp_path: Path
) -> None:
    make, said = BAD[name]
    make(tmp_path / name)
    words, code = READERS[reader]
    answer = refused(*(word.format(name) for word in words), code=code)
    assert said in answer
    assert name in answer, "the line names the file"


def test_the_good_file_is_good(tmp_path: Path) -> None:
    """The law above means something: without the damage every check passes."""
    from lungwave.data.convert import load_any

    save(tmp_path / "good.npz")
    (tmp_path / "good.h5").write_bytes(hdf5_bytes(tmp_path))
    assert load_any(tmp_path / "good.npz").rf.shape == RF.shape
    assert replace(load_any(tmp_path / "good.h5")).rf.shape == RF.shape
