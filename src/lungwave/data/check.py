"""What a lungwave file holds, and what is wrong with it, without reading more than one frame of RF at a time."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from lungwave.acoustics.probe import Scan
from lungwave.data import reading, schema
from lungwave.data.hdf5 import cases_of, place, recording_of, scan_of, track
from lungwave.types import UsageError


@dataclass(frozen=True)
class Finding:
    """One thing that ``data validate`` has to say about a file; an error makes the file unusable."""

    level: Literal["error", "warning"]
    message: str


def describe(path: str | Path) -> dict[str, Any]:
    """Summary of a lungwave or zea file for ``data info``: sizes, geometry, maps, cases, provenance (all JSON)."""
    with reading.open_hdf5(path) as file:
        prefix = track(file)
        raw = reading.find(file, place(schema.RAW, prefix))
        if not isinstance(raw, h5py.Dataset) or raw.ndim != 5:
            raise UsageError(f"{path}: '{schema.RAW.path}' is missing; is this a lungwave or zea 0.1 file?")
        version = reading.attribute(file, schema.ATTR_FORMAT)
        summary: dict[str, Any] = {
            "format": "lungwave" if version is not None else "zea",
            "lungwave_format": version,
            "zea_version": reading.attribute(file, schema.ATTR_ZEA),
            "bytes": Path(path).stat().st_size,
            "rf": dict(zip(("frames", "transmits", "samples", "channels"), map(int, raw.shape[:4]), strict=True)),
            "rf_type": str(raw.dtype),
            "snr_db": reading.attribute(raw, schema.ATTR_SNR),
            "probe": reading.text(file, schema.PROBE_NAME.path) or "unknown",
            "scan": summarise(scan_of(file, prefix), raw.shape[2]),
            "maps": {name: list(shape) for name, shape in map_shapes(file, prefix).items()},
            "subject": sorted(subject_of(file)),
        }
        cases = cases_of(file)
        if cases is not None:
            summary["cases"] = {
                "count": len(cases),
                "base_ids": len(set(cases.base_id.tolist())),
                "categories": dict(sorted(Counter(cases.category).items())),
                "aeration": [float(cases.whole.min()), float(np.median(cases.whole)), float(cases.whole.max())],
                "bands_mm": [round(1e3 * edge, 3) for edge in cases.band_edges],
            }
        text = reading.attribute(file, schema.ATTR_PROVENANCE)
        origin = _json(text) if isinstance(text, str) else None
        if isinstance(origin, dict) and origin:
            summary["provenance"] = {key: origin.get(key) for key in ("config_sha256", "seed", "versions", "parents")}
        return summary


def summarise(scan: Scan, samples: int) -> dict[str, Any]:
    """Scan in the numbers people ask for: MHz, mm, degrees and the depth that the record reaches."""
    end = float(scan.start_times.min() + samples / scan.sampling_frequency)
    return {
        "kind": scan.kind,
        "elements": len(scan.elements),
        "aperture_mm": round(1e3 * float(np.ptp(scan.elements[:, 0])), 3),
        "center_frequency_mhz": round(scan.center_frequency / 1e6, 4),
        "sampling_frequency_mhz": round(scan.sampling_frequency / 1e6, 4),
        "angles_deg": [round(float(np.degrees(a)), 3) for a in scan.angles[:16]],
        "sound_speed": scan.sound_speed,
        "depth_mm": round(1e3 * end * scan.sound_speed / 2, 2),
        "spectrum_reversed": scan.spectrum_reversed,
    }


def map_shapes(file: h5py.File, prefix: str) -> dict[str, tuple[int, ...]]:
    """Shape (frame, z, x) of every map of the file."""
    group = reading.find(file, place(schema.RAW, prefix).rsplit("/", 1)[0])
    found = {}
    for name in group if isinstance(group, h5py.Group) else ():
        values = reading.find(group, f"{name}/values") if name != schema.RAW.name else None
        if isinstance(values, h5py.Dataset):
            found[name] = tuple(int(n) for n in values.shape)
    return found


def subject_of(file: h5py.File) -> dict[str, str | float]:
    """What the file says of who was scanned."""
    known: dict[str, str | float] = {}
    for name, dtype in schema.SUBJECT_FIELDS.items():
        path = f"{schema.SUBJECT}/{name}"
        value = reading.text(file, path) if dtype == "text" else reading.scalar(file, path)
        if value is not None:
            known[name] = value
    return known


def validate(path: str | Path) -> list[Finding]:
    """Everything that is wrong with a lungwave or zea file; an empty list means that lungwave can use all of it."""
    findings: list[Finding] = []

    def check(what: Callable[[], Any]) -> Any:
        try:
            return what()
        except UsageError as error:
            findings.append(Finding("error", str(error)))
            return None

    try:
        with reading.open_hdf5(path) as file:
            version = reading.attribute(file, schema.ATTR_FORMAT)
            if version is not None and version != schema.FORMAT:
                findings.append(
                    Finding("warning", f"{path}: format {version}, known is {schema.FORMAT}; update lungwave")
                )
            prefix = check(lambda: track(file))
            if prefix is None:
                return findings
            for field in schema.FIELDS:
                if field.required and reading.find(file, place(field, prefix)) is None:
                    findings.append(Finding("error", f"{path}: '{field.path}' is missing; write it again"))
            raw = reading.find(file, place(schema.RAW, prefix))
            frames = raw.shape[0] if isinstance(raw, h5py.Dataset) and raw.ndim else 0
            if not findings:
                for frame in range(frames):
                    if check(partial(recording_of, file, [frame])) is None:
                        findings[-1] = Finding("error", f"frame {frame}: {findings[-1].message}")
                        break
            cases = check(lambda: cases_of(file))
            if cases is not None:
                findings += _check_cases(cases, frames)
            if version is not None and cases is None and not any(f.level == "error" for f in findings):
                findings.append(Finding("warning", f"{path}: holds no truth; fine for a measurement"))
            text = reading.attribute(file, schema.ATTR_PROVENANCE)
            if version is not None and not _json(text):
                findings.append(Finding("warning", f"{path}: has no provenance; nobody can make it again"))
            if reading.find(file, schema.METADATA) is not None:
                findings.append(Finding("warning", f"{path}: holds '{schema.METADATA}'; data convert drops it"))
    except UsageError as error:
        findings.append(Finding("error", str(error)))
    return findings


def _json(text: Any) -> Any:
    try:
        return json.loads(text) if isinstance(text, str) else None
    except (ValueError, RecursionError):
        return None


def _check_cases(cases: schema.CaseTable, frames: int) -> list[Finding]:
    """Truth of the cases: one per frame, fractions within 0-1, parameters that parse."""
    found = []
    if len(cases) != frames:
        found.append(Finding("error", f"{len(cases)} cases for {frames} frames of RF; write the file again"))
    for name in ("sharp", "smooth", "bands", "whole", "profile"):
        value = np.asarray(getattr(cases, name), float)
        if name in ("sharp", "smooth") and not np.isfinite(value).all():
            found.append(Finding("error", f"'{name}' holds NaN or infinity; write the file again"))
        if (np.nan_to_num(value, nan=0.0) < -1e-6).any() or (np.nan_to_num(value, nan=0.0) > 1 + 1e-6).any():
            found.append(Finding("error", f"'{name}' leaves 0-1; aeration is a fraction (is this percent?)"))
    if len(cases.category) != len(cases) or any(_json(text) is None for text in cases.parameters):
        found.append(Finding("error", "categories or parameters are incomplete; write the file again"))
    return found
