"""Geometry that a bare array lacks: named fields from an .npz, a JSON or a TOML file -> Scan."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from lungwave.acoustics.probe import Scan, linear_array
from lungwave.types import UsageError

NUMBERS = (
    "center_frequency",
    "sampling_frequency",
    "sound_speed",
    "element_width",
    "pulse_delay",
    "bandwidth",
    "demodulation_frequency",
)
ARRAYS = ("elements", "delays", "apodization", "start_times", "focus_distance", "angles", "origins")
KNOWN = (*(f.name for f in fields(Scan)), "pitch")
NEEDED = "center_frequency [Hz], sampling_frequency [Hz], pitch or elements (el, 3) [m], angles [rad] or delays [s]"


def load_geometry(path: str | Path) -> dict[str, Any]:
    """Fields of a JSON or TOML geometry file; names are those of ``Scan``, plus ``pitch``."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        values = tomllib.loads(text) if path.suffix.lower() == ".toml" else json.loads(text)
    except OSError as error:
        raise UsageError(f"{path}: cannot read the geometry ({error.strerror})") from error
    except (ValueError, RecursionError) as error:  # both parsers and the decoder raise ValueError
        reason = " ".join(str(error).split())[:80]
        raise UsageError(f"{path}: not a geometry file ({reason}); give JSON or TOML") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: a geometry file is a table of {NEEDED}")
    return check_names(path, values)


def check_names(path: str | Path, values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` unchanged; UsageError for a name that no scan has."""
    for name in values:
        if name not in KNOWN:
            near = difflib.get_close_matches(name, KNOWN, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(KNOWN)}"
            raise UsageError(f"{path}: unknown geometry field '{name}'; {hint}")
    return dict(values)


def scan_from(path: str | Path, values: Mapping[str, Any], events: int, channels: int) -> Scan:
    """Scan of ``events`` x ``channels`` from named fields; UsageError that lists what is missing.

    ``angles`` alone means plane waves whose time zero is the passage through the origin. ``delays`` alone means plane
    waves if all elements fire, else single elements; anything else needs ``focus_distance`` too.
    """
    values = check_names(path, values)
    one_of = ({"center_frequency"}, {"sampling_frequency"}, {"pitch", "elements"}, {"angles", "delays"})
    if not all(names & values.keys() for names in one_of):
        found = ", ".join(sorted(values)) or "nothing"
        raise UsageError(f"{path}: geometry is missing; needs {NEEDED}; found {found}; give --geometry FILE.toml")
    numbers = {name: _number(path, values, name) for name in NUMBERS if values.get(name) is not None}
    speed = numbers.get("sound_speed", 1540.0)
    if "elements" in values:
        elements = _array(path, values, "elements", (None, 3))
    else:
        elements = linear_array(channels, _number(path, values, "pitch"))
    receive = values.get("rx_elements")
    rx_elements = None if receive is None else _indices(path, receive, (events, channels), len(elements))
    if rx_elements is None and len(elements) != channels:
        raise UsageError(f"{path}: {len(elements)} elements for {channels} channels; give one each or rx_elements")
    at = np.broadcast_to(elements, (events, channels, 3)) if rx_elements is None else elements[rx_elements]
    angles = _array(path, values, "angles", (events,)) if "angles" in values else np.zeros(events)
    if "delays" in values:
        delays = _array(path, values, "delays", (events, channels))
    elif np.abs(angles).max(initial=0) > np.pi / 2:
        raise UsageError(f"{path}: steering angle {np.abs(angles).max():g} exceeds 90 degrees; give radians")
    else:
        delays = (at[..., 0] * np.sin(angles)[:, None] + at[..., 2] * np.cos(angles)[:, None]) / speed
    weights = (
        _array(path, values, "apodization", (events, channels))
        if "apodization" in values
        else np.ones((events, channels))
    )
    single = (weights != 0).sum(1) == 1
    focus = np.where(single, 0.0, np.inf)
    if "focus_distance" in values:
        focus = _array(path, values, "focus_distance", (events,))
    origins = np.where(single[:, None], at[np.arange(events), np.abs(weights).argmax(1)], 0.0)
    return Scan(
        elements=elements,
        delays=delays,
        apodization=weights,
        start_times=_array(path, values, "start_times", (events,)) if "start_times" in values else np.zeros(events),
        focus_distance=focus,
        angles=angles,
        origins=_array(path, values, "origins", (events, 3)) if "origins" in values else origins,
        spectrum_reversed=bool(values.get("spectrum_reversed", False)),
        rx_elements=rx_elements,
        **numbers,
    )


def override(path: str | Path, scan: Scan, values: Mapping[str, Any]) -> Scan:
    """``scan`` with some fields replaced, the shapes kept; UsageError for a wrong name, shape or type."""
    values = check_names(path, values)
    new: dict[str, Any] = {name: _number(path, values, name) for name in NUMBERS if name in values}
    for name in ARRAYS:
        if name in values:
            new[name] = _array(path, values, name, getattr(scan, name).shape)
    if "pitch" in values:
        new["elements"] = linear_array(len(scan.elements), _number(path, values, "pitch"))
    if "spectrum_reversed" in values:
        new["spectrum_reversed"] = bool(values["spectrum_reversed"])
    if "rx_elements" in values:
        new["rx_elements"] = _indices(path, values["rx_elements"], scan.delays.shape, len(scan.elements))
    return replace(scan, **new)


def _number(path: str | Path, values: Mapping[str, Any], name: str) -> float:
    try:
        return float(np.asarray(values[name], float).reshape(()))
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: '{name}' is no number; give one") from error


def _array(path: str | Path, values: Mapping[str, Any], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Array of a given shape (None = any length); one number stands for a whole vector."""
    try:
        value = np.asarray(values[name], float)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: '{name}' holds something else than numbers") from error
    if len(shape) == 1 and shape[0] is not None and value.size == 1:
        value = np.full(shape[0], value.reshape(()))
    if value.ndim != len(shape) or any(want not in (None, got) for want, got in zip(shape, value.shape, strict=True)):
        raise UsageError(f"{path}: '{name}' has shape {value.shape}; {shape} was expected (None = any)")
    return value


def _indices(path: str | Path, value: Any, shape: tuple[int, ...], count: int) -> np.ndarray:
    index = _array(path, {"rx_elements": value}, "rx_elements", shape)
    if not np.isfinite(index).all() or index.min() < 0 or index.max() >= count or (index != np.round(index)).any():
        raise UsageError(f"{path}: 'rx_elements' must be element numbers 0-{count - 1}")
    return index.astype(int)
