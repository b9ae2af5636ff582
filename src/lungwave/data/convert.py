"""Whatever holds RF -> Recording -> a lungwave file: the content decides the format, never the suffix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from lungwave import repro
from lungwave.acoustics.probe import Recording, Scan
from lungwave.data import check, foreign, hdf5, maps, matlab, reading, schema
from lungwave.data.arrays import numpy_arrays
from lungwave.data.check import Finding
from lungwave.data.geometry import load_geometry, override
from lungwave.types import UsageError

Kind = Literal["auto", "rf", "maps"]
Geometry = str | Path | Mapping[str, Any] | None

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
HDF5_OFFSETS = (0, 512, 1024, 2048)  # a user block (MATLAB v7.3 has one of 512 bytes) comes first
REFUSED = {
    "png": "is a picture; RF channel data was expected (maps: data convert --kind maps)",
    "torch": "is a torch file; RF channel data was expected (maps: data convert --kind maps)",
    "dicom": "is DICOM, which holds images and never RF channel data; ask for the RF of the scanner",
    "unknown": "is of no known format; give HDF5 (lungwave, zea, PICMUS, UFF), MATLAB .mat, .npz or .npy",
}


def sniff(path: str | Path) -> str:
    """Format of a file by its first bytes: hdf5, matlab73, matlab5, npz, npy, torch, png, dicom or unknown."""
    path = Path(path)
    reading.check_file(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(2048 + len(HDF5_SIGNATURE))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if any(head[at : at + 8] == HDF5_SIGNATURE for at in HDF5_OFFSETS):
        return "matlab73" if head.startswith(b"MATLAB 7.3") else "hdf5"
    if head.startswith(b"MATLAB 5.0"):
        return "matlab5"
    if head.startswith(b"\x93NUMPY"):
        return "npy"
    if head[128:132] == b"DICM":
        return "dicom"
    kind = maps.kind_of(path)
    return {"png": "png", "numpy": "npz", "torch": "torch", "other": "unknown"}[kind]


def load_any(path: str | Path, geometry: Geometry = None) -> Recording:
    """RF of any known file: lungwave, zea, PICMUS, UFF, Field II set, MUST and arim ``.mat`` (v5-v7.3), NumPy.

    ``geometry`` (a JSON or TOML file, or fields of ``Scan``) supplies what a bare array lacks and overrides what a file
    states. Raises UsageError, one line naming file, value and cure, for everything that is not usable RF.
    """
    path = Path(path)
    form = sniff(path)
    if form in REFUSED:
        raise UsageError(f"{path}: {REFUSED[form]}")
    values = load_geometry(geometry) if isinstance(geometry, str | Path) else dict(geometry or {})
    if form in ("npz", "npy"):
        recording = foreign.load_numpy(path, values)
    else:
        recording = matlab.load_matlab(path) if form == "matlab5" else _load_hdf5(path)
        if values:
            recording = replace(recording, scan=override(path, recording.scan, values))
    try:
        recording.validate()
    except UsageError as error:
        raise UsageError(str(error) if str(path) in str(error) else f"{path}: {error}") from error
    return recording


def layout(path: str | Path) -> str:
    """Layout of an HDF5 file by the groups it holds: lungwave, picmus, uff, field2, matlab or unknown."""
    with reading.open_hdf5(path) as file:
        if reading.find(file, foreign.PICMUS_GROUP) is not None:
            return "picmus"
        if reading.find(file, schema.TRACK.split("/")[0]) is not None or schema.ATTR_ZEA in file.attrs:
            return "lungwave"
        if reading.find(file, "data/rf_data") is not None:
            return "field2"
        if reading.find(file, hdf5.place(schema.RAW, "")) is not None:
            return "lungwave"
        if any(name in file for name in ("param", "exp_data")):
            return "matlab"
        for name, item in reading.members(file):
            if str(reading.attribute(item, "class") or name).startswith(("uff", "channel_data")):
                return "uff"
        return "unknown"


def _load_hdf5(path: Path) -> Recording:
    form = layout(path)
    with reading.open_hdf5(path) as file:
        if form == "lungwave":
            return hdf5.recording_of(file)
        if form == "picmus":
            return foreign.picmus(file)
        if form == "uff":
            return foreign.uff(file)
        if form == "field2":
            return matlab.field_ii(path, reading.tree(file))
        if form == "matlab":
            return matlab.from_tree(path, matlab.matlab73_tree(file))
        names = ", ".join(sorted(file)[:6]) or "nothing"
    raise UsageError(f"{path}: HDF5 of no known layout (holds {names}); save RF and geometry as .npz")


# --- what the command line calls ---------------------------------------------------------------------------------


def info(path: str | Path, geometry: Geometry = None) -> dict[str, Any]:
    """Summary of any RF or map file, ready for JSON."""
    path = Path(path)
    form = sniff(path)
    if form in ("torch", "png"):
        found = maps.load_maps(path)
        low, high = min(float(m.min()) for m in found), max(float(m.max()) for m in found)
        shapes = sorted({tuple(m.shape) for m in found})
        size = path.stat().st_size
        return {"format": form, "bytes": size, "maps": len(found), "shapes": shapes, "range": [low, high]}
    if form == "hdf5" and layout(path) == "lungwave":
        return check.describe(path)
    recording = load_any(path, geometry)
    rf = recording.rf
    return {
        "format": layout(path) if form in ("hdf5", "matlab73") else form,
        "bytes": path.stat().st_size,
        "rf": dict(zip(("frames", "transmits", "samples", "channels"), rf.shape, strict=True)),
        "range": [float(rf.min()), float(rf.max())],
        "probe": recording.probe_name,
        "scan": check.summarise(recording.scan, rf.shape[2]),
    }


def validate(path: str | Path, geometry: Geometry = None) -> list[Finding]:
    """What is wrong with any RF or map file; an empty list means that lungwave can use it."""
    try:
        form = sniff(path)
        if form == "hdf5" and layout(path) == "lungwave":
            return check.validate(path)
        if form in ("torch", "png"):
            maps.load_maps(path)
        else:
            load_any(path, geometry)
    except UsageError as error:
        return [Finding("error", str(error))]
    return []


def convert(
    source: str | Path,
    destination: str | Path,
    kind: Kind = "auto",
    geometry: Geometry = None,
    strip: bool = True,
    scale: maps.Scale = "auto",
) -> dict[str, Any]:
    """Convert RF to a lungwave file (or ``.npz``), or maps between tensors, PNG and NPZ (see ``maps.convert_maps``).

    ``strip`` drops everything about the subject and all free text; ``strip=False`` keeps the subject fields and the
    description. Voice, reports and annotations are never copied. Returns what was done, ready for JSON.
    """
    source, destination = Path(source), Path(destination)
    if source.exists() and destination.exists() and source.resolve() == destination.resolve():
        raise UsageError(f"{destination}: is the source itself; choose another name")
    if kind == "maps" or (kind == "auto" and _holds_maps(source)):
        return {"kind": "maps", "source": str(source), **maps.convert_maps(source, destination, scale=scale)}
    return {"kind": "rf", **_convert_rf(source, destination, geometry, strip)}


def _holds_maps(source: Path) -> bool:
    if source.is_dir():
        return True
    form = sniff(source)
    if form == "npz":
        names = numpy_arrays(source, "skip")
        return "rf" not in names and ("maps" in names or "arr_0" in names)
    return form in ("torch", "png")


def _convert_rf(source: Path, destination: Path, geometry: Geometry, strip: bool) -> dict[str, Any]:
    recording = load_any(source, geometry)
    kept: dict[str, Any] = {}
    dropped: list[str] = []
    subject: dict[str, str | float] = {}
    if sniff(source) == "hdf5" and layout(source) == "lungwave":
        with reading.open_hdf5(source) as file:
            subject = check.subject_of(file)
            raw = reading.find(file, hdf5.place(schema.RAW, hdf5.track(file)))
            kept = {"cases": hdf5.cases_of(file), "snr_db": reading.attribute(raw, schema.ATTR_SNR)}
            metadata = reading.find(file, schema.METADATA)
            dropped = sorted(set(metadata if metadata is not None else ()) - {schema.SUBJECT.split("/")[-1]})
    if strip:
        dropped += [f"subject/{name}" for name in sorted(subject)] + (["description"] if recording.description else [])
        recording, subject = replace(recording, description=""), {}
    suffix = destination.suffix.lower()
    if suffix in (".h5", ".hdf5"):
        origin = {"converted_from": {"sha256": repro.sha256(source)}, "versions": repro.versions()}
        hdf5.write_recording(destination, recording, provenance=origin, subject=subject, **kept)
    elif suffix == ".npz":
        save_npz(destination, recording)
    else:
        raise UsageError(f"{destination}: RF is written as .h5, .hdf5 or .npz; change the suffix")
    shape = dict(zip(("frames", "transmits", "samples", "channels"), recording.rf.shape, strict=True))
    return {"source": str(source), "destination": str(destination), "rf": shape, "dropped": dropped}


def save_npz(path: str | Path, recording: Recording) -> None:
    """RF and all scan fields as ``.npz``, the form that ``load_any`` reads back."""
    scan = {f.name: getattr(recording.scan, f.name) for f in fields(Scan)}
    arrays = {name: np.asarray(value) for name, value in scan.items() if value is not None}
    maps.save_npz(path, rf=recording.rf, **arrays)
