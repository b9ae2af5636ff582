"""RF that other open tools wrote: PICMUS HDF5, UFF (USTB's and version 0.3), NumPy arrays with a geometry."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Float

from lungwave.acoustics.probe import Recording, Scan
from lungwave.data import reading
from lungwave.data.arrays import numpy_arrays
from lungwave.data.geometry import scan_from
from lungwave.data.matlab import fractional_bandwidth, plane_scan, undersampled
from lungwave.types import UsageError

PICMUS_GROUP = "US/US_DATASET0000"
PICMUS_FREQUENCY = 5.208e6  # [Hz] L11-4v of the challenge; its RF files state 0 (PICMUS, IEEE IUS 2016, description)
PICMUS_BANDWIDTH = 0.67  # L11-4v, same source


def _need(file: h5py.File, name: str) -> np.ndarray:
    value = reading.array(file, name)
    if value is None or value.size == 0:
        raise UsageError(f"{file.filename}: '{name}' is missing; the file is incomplete")
    return value


def _one(file: h5py.File, name: str, default: float | None = None) -> float:
    value = reading.scalar(file, name)
    if value is None:
        if default is None:
            raise UsageError(f"{file.filename}: '{name}' is missing; the file is incomplete")
        return default
    return value


# --- PICMUS ------------------------------------------------------------------------------------------------------


def picmus(file: h5py.File) -> Recording:
    """Plane waves of the PICMUS challenge: data/real (tx, el, time), angles, probe_geometry (3, el), initial_time.

    Time zero is the passage through the origin, angles steer towards +x. I/Q files are refused.
    """
    path = file.filename
    rf = _need(file, f"{PICMUS_GROUP}/data/real")
    rf = rf[None] if rf.ndim == 2 else rf
    if rf.ndim != 3:
        raise UsageError(f"{path}: 'data/real' has shape {rf.shape}; (tx, el, time) was expected")
    imaginary = reading.array(file, f"{PICMUS_GROUP}/data/imag")
    modulation = _one(file, f"{PICMUS_GROUP}/modulation_frequency", 0.0)
    if modulation > 0 or (imaginary is not None and np.any(imaginary)):
        raise UsageError(f"{path}: holds I/Q data demodulated at {modulation:g} Hz; give the RF file of the challenge")
    angles = _need(file, f"{PICMUS_GROUP}/angles").astype(float).reshape(-1)
    elements = _positions(path, _need(file, f"{PICMUS_GROUP}/probe_geometry"), rf.shape[1])
    if len(angles) != len(rf):
        raise UsageError(f"{path}: {len(angles)} angles for {len(rf)} events; give one each")
    start = np.resize(_need(file, f"{PICMUS_GROUP}/initial_time").astype(float).reshape(-1), len(angles))
    scan = Scan(
        elements=elements,
        center_frequency=PICMUS_FREQUENCY,
        sampling_frequency=_one(file, f"{PICMUS_GROUP}/sampling_frequency"),
        start_times=start,
        bandwidth=PICMUS_BANDWIDTH,
        **plane_scan(elements, angles, _one(file, f"{PICMUS_GROUP}/sound_speed")),
    )
    data = reading.single(rf.transpose(0, 2, 1)[None])
    return Recording(rf=data, scan=scan, probe_name="L11-4v", description="PICMUS, plane waves")


def _positions(path: str, geometry: np.ndarray, channels: int) -> Float[np.ndarray, "el 3"]:
    """Element centres from rows of x, y, z (further rows such as angles ignored), whichever axis counts elements."""
    if geometry.ndim == 2 and geometry.shape[1] == channels and geometry.shape[0] >= 3:
        geometry = geometry.T
    if geometry.ndim != 2 or geometry.shape[0] != channels or geometry.shape[1] < 3:
        raise UsageError(f"{path}: probe geometry has shape {geometry.shape}; (3, {channels}) was expected")
    return geometry[:, :3].astype(float)


# --- UFF ---------------------------------------------------------------------------------------------------------


def uff(file: h5py.File) -> Recording:
    """Channel data of a UFF file: USTB's flat layout, or version 0.3 of the format."""
    for name in ("channel_data", "uff.channel_data", *file):
        group = reading.find(file, name)
        if isinstance(group, h5py.Group) and ("unique_events" in group or "sequence" in group):
            return uff3(file, name) if "unique_events" in group else ustb(file, name)
    raise UsageError(f"{file.filename}: no channel data in this UFF file; lungwave reads RF before beamforming")


def ustb(file: h5py.File, name: str) -> Recording:
    """USTB: data (frame, wave, channel, time), probe/geometry (7, el), sequence of waves with ``source`` and ``delay``.

    Time zero is the moment the wave passes the origin; a record starts at ``initial_time`` + ``delay`` of its wave.
    """
    path = file.filename
    if isinstance(reading.find(file, f"{name}/data"), h5py.Group):  # USTB splits complex arrays into real and imag
        raise UsageError(f"{path}: holds I/Q data; lungwave reads RF, convert the recording before demodulation")
    rf = _need(file, f"{name}/data")
    if not 2 <= rf.ndim <= 4:
        raise UsageError(f"{path}: 'data' has shape {rf.shape}; (frame, wave, channel, time) was expected")
    rf = rf.reshape((1,) * (4 - rf.ndim) + rf.shape)  # MATLAB drops trailing axes of length 1
    elements, width = _ustb_probe(file, f"{name}/probe", rf.shape[2])
    speed = _one(file, f"{name}/sound_speed", 1540.0)
    waves = [_ustb_wave(file, where, elements, speed) for where in _items(file, f"{name}/sequence")]
    if len(waves) != rf.shape[1]:
        raise UsageError(f"{path}: {len(waves)} waves for {rf.shape[1]} events of data; the sequence is incomplete")
    center = reading.scalar(file, f"{name}/pulse/center_frequency")
    if center is None:
        raise UsageError(f"{path}: geometry is incomplete, 'pulse/center_frequency' is missing; add it to the file")
    sampling = _one(file, f"{name}/sampling_frequency")
    scan_fields = _assemble(elements, waves, center, sampling, speed, _one(file, f"{name}/initial_time"))
    bandwidth = reading.scalar(file, f"{name}/pulse/fractional_bandwidth") or 60.0  # USTB states percent
    scan = Scan(**{**scan_fields, "element_width": width, "bandwidth": fractional_bandwidth(bandwidth, center)})
    data = reading.single(rf.transpose(0, 1, 3, 2))
    return Recording(rf=data, scan=scan, probe_name="UFF", description="UFF, USTB channel data")


def _assemble(
    elements: Float[np.ndarray, "el 3"],
    waves: list[dict[str, Any]],
    center: float,
    sampling: float,
    speed: float,
    initial_time: float,
) -> dict[str, Any]:
    """Scan fields of a list of waves (see ``_wave``)."""
    return {
        "elements": elements,
        "center_frequency": center,
        "sampling_frequency": sampling,
        "sound_speed": speed,
        "spectrum_reversed": undersampled(center, sampling),
        "start_times": np.array([initial_time + w["start"] for w in waves]),
        **{key: np.stack([w[key] for w in waves]) for key in ("delays", "apodization", "origins")},
        **{key: np.array([w[key] for w in waves], float) for key in ("focus_distance", "angles")},
    }


def _items(file: h5py.File, name: str) -> list[str]:
    """Paths of the members of an array of objects (numbered subgroups), or the single object itself."""
    group = reading.find(file, name)
    if not isinstance(group, h5py.Group):
        raise UsageError(f"{file.filename}: '{name}' is missing; the file is incomplete")
    numbered = [key for key in group if key[-4:].isdecimal() and isinstance(reading.find(group, key), h5py.Group)]
    return [f"{name}/{key}" for key in sorted(numbered)] or [name]


def _ustb_probe(file: h5py.File, name: str, channels: int) -> tuple[Float[np.ndarray, "el 3"], float | None]:
    geometry = reading.array(file, f"{name}/geometry")
    if geometry is None:  # uff.linear_array states only count and pitch
        pitch = reading.scalar(file, f"{name}/pitch")
        if pitch is None:
            raise UsageError(f"{file.filename}: '{name}/geometry' is missing; add the element positions")
        x = (np.arange(channels) - (channels - 1) / 2) * pitch
        return np.stack([x, 0 * x, 0 * x], 1), reading.scalar(file, f"{name}/element_width")
    elements = _positions(file.filename, geometry, channels)
    rows = geometry.T if geometry.shape[0] == channels and geometry.shape[1] >= 6 else geometry
    return elements, float(rows[5, 0]) or None if len(rows) > 5 else None


def _ustb_wave(file: h5py.File, name: str, elements: Float[np.ndarray, "el 3"], speed: float) -> dict[str, Any]:
    """One ``uff.wave``: wavefront 0 = plane, 1 = spherical; the source in distance, azimuth, elevation."""
    kind = int(_one(file, f"{name}/wavefront", 1.0))
    distance, azimuth, elevation = (_one(file, f"{name}/source/{k}", 0.0) for k in ("distance", "azimuth", "elevation"))
    if kind not in (0, 1) or elevation != 0:
        raise UsageError(f"{file.filename}: '{name}' is no plane or spherical wave in the imaging plane; not supported")
    if kind == 0 or not np.isfinite(distance):
        wave = plane_wave(elements, azimuth, speed)
    else:
        wave = spherical_wave(elements, distance * np.array([np.sin(azimuth), 0.0, np.cos(azimuth)]), speed)
    wave["start"] += _one(file, f"{name}/delay", 0.0)
    return wave


def plane_wave(elements: Float[np.ndarray, "el 3"], angle: float, speed: float) -> dict[str, Any]:
    """One plane wave; time zero is its passage through the origin."""
    scan_fields = plane_scan(elements, np.array([angle]), speed)
    return {**{k: v[0] for k, v in scan_fields.items() if k != "sound_speed"}, "start": 0.0}


def spherical_wave(
    elements: Float[np.ndarray, "el 3"], source: Float[np.ndarray, " 3"], speed: float
) -> dict[str, Any]:
    """One focused (source in front), diverging (behind) or single-element (on an element) wave.

    Time zero is its passage through the origin, except for a single element: there it is the firing, and ``start`` says
    by how much the record's clock has to move.
    """
    away = np.linalg.norm(elements - source, axis=1)
    radius = float(np.linalg.norm(source))
    pitch = float(np.min(np.linalg.norm(np.diff(elements, axis=0), axis=1))) if len(elements) > 1 else 1e-3
    nearest = int(away.argmin())
    if away[nearest] < 0.1 * pitch:
        return {
            "delays": np.zeros(len(elements)),
            "apodization": np.eye(len(elements))[nearest],
            "origins": elements[nearest].copy(),
            "focus_distance": 0.0,
            "angles": 0.0,
            "start": radius / speed,
        }
    front = 1.0 if source[2] > 0 else -1.0
    return {
        "delays": front * (radius - away) / speed,
        "apodization": np.ones(len(elements)),
        "origins": np.zeros(3),
        "focus_distance": front * radius,
        "angles": float(np.arctan2(front * source[0], front * source[2])),
        "start": 0.0,
    }


def uff3(file: h5py.File, name: str) -> Recording:
    """UFF 0.3: data [frames x events x channels x samples], events that point to waves, 1-based, with their own clocks.

    Per event: the wave passes ``time_zero_reference_point`` at ``time_offset`` of the transmit wave, the record starts
    at ``time_offset`` of the receive setup. The centre frequency is the spectral peak of the excitation.
    """
    path = file.filename
    if reading.find(file, f"{name}/data_imag") is not None:
        raise UsageError(f"{path}: holds I/Q data; lungwave reads RF, convert the recording before demodulation")
    rf = _need(file, f"{name}/data" if reading.find(file, f"{name}/data") is not None else f"{name}/data_real")
    if not 2 <= rf.ndim <= 4:
        raise UsageError(f"{path}: 'data' has shape {rf.shape}; (frame, event, channel, time) was expected")
    rf = rf.reshape((1,) * (4 - rf.ndim) + rf.shape)
    elements, width = _uff3_probe(file, _items(file, f"{name}/probes")[0])
    speed = _one(file, f"{name}/sound_speed")
    waves, sampling, mapping = [], set(), []
    events = _items(file, f"{name}/unique_events")
    for step in _items(file, f"{name}/sequence"):
        event = events[_index(file, f"{step}/event", len(events))]
        wave, channels = _uff3_event(file, name, event, elements, speed)
        waves.append(wave)
        mapping.append(channels)
        sampling.add(_one(file, f"{event}/receive_setup/sampling_frequency"))
    if len(waves) != rf.shape[1] or len(sampling) != 1 or {len(m) for m in mapping} != {rf.shape[2]}:
        raise UsageError(
            f"{path}: data {rf.shape} does not fit {len(waves)} events of {len(mapping[0])} channels at "
            f"{sorted(sampling)} Hz; data is (frame, event, channel, time)"
        )
    center = _uff3_frequency(file, name)
    fields = _assemble(elements, waves, center, sampling.pop(), speed, 0.0)
    aperture = np.stack(mapping)
    if len(elements) != rf.shape[2] or (aperture != np.arange(len(elements))).any():
        for key in ("delays", "apodization"):
            fields[key] = np.take_along_axis(fields[key], aperture, 1)
        fields["rx_elements"] = aperture
    scan = Scan(**{**fields, "element_width": width})
    data = reading.single(rf.transpose(0, 1, 3, 2))
    return Recording(rf=data, scan=scan, probe_name="UFF", description="UFF 0.3 channel data")


def _index(file: h5py.File, name: str, count: int) -> int:
    """0-based index from UFF's 1-based one."""
    value = _one(file, name)
    if value != int(value) or not 1 <= value <= count:
        raise UsageError(f"{file.filename}: '{name}' is {value:g}; 1-{count} was expected")
    return int(value) - 1


def _uff3_probe(file: h5py.File, name: str) -> tuple[Float[np.ndarray, "el 3"], float | None]:
    width = reading.scalar(file, f"{name}/element_width")
    if reading.find(file, f"{name}/element") is not None:
        places = [f"{item}/transform/translation" for item in _items(file, f"{name}/element")]
        elements = np.array([[_one(file, f"{place}/{axis}", 0.0) for axis in "xyz"] for place in places])
    else:
        count, pitch = int(_one(file, f"{name}/number_elements")), _one(file, f"{name}/pitch")
        if not 1 <= count <= 100_000:
            raise UsageError(f"{file.filename}: 'number_elements' is {count}; the probe is incomplete")
        x = (np.arange(count) - (count - 1) / 2) * pitch
        elements = np.stack([x, 0 * x, 0 * x], 1)
    shift = np.array([_one(file, f"{name}/transform/translation/{axis}", 0.0) for axis in "xyz"])
    return elements + shift, width or None


def _uff3_event(
    file: h5py.File, name: str, event: str, elements: Float[np.ndarray, "el 3"], speed: float
) -> tuple[dict[str, Any], np.ndarray]:
    """Wave (with ``start`` on the clock of the wave) and 0-based element of each channel of one event."""
    transmits = _items(file, f"{event}/transmit_setup/transmit_waves")
    if len(transmits) != 1:
        raise UsageError(f"{file.filename}: '{event}' sends {len(transmits)} waves at once; not supported")
    waves = _items(file, f"{name}/unique_waves")
    where = waves[_index(file, f"{transmits[0]}/wave", len(waves))]
    kind = int(_one(file, f"{where}/type", 0.0))
    point = np.array([_one(file, f"{transmits[0]}/time_zero_reference_point/{axis}", 0.0) for axis in "xyz"])
    if kind == 2:
        angle = _one(file, f"{where}/origin/rotation/y", 0.0)
        wave = plane_wave(elements, angle, speed)
        passage = float(point @ np.array([np.sin(angle), 0.0, np.cos(angle)])) / speed
    elif kind in (0, 1):
        source = np.array([_one(file, f"{where}/origin/position/{axis}", 0.0) for axis in "xyz"])
        wave = spherical_wave(elements, source, speed)
        front = 1.0 if source[2] > 0 else -1.0
        passage = front * float(np.linalg.norm(source) - np.linalg.norm(point - source)) / speed
    else:
        raise UsageError(
            f"{file.filename}: '{where}' has type {kind}; 0 (converging), 1 (diverging) or 2 (plane) expected"
        )
    sent = _one(file, f"{transmits[0]}/time_offset", 0.0)
    wave["start"] += _one(file, f"{event}/receive_setup/time_offset") - (sent - passage)
    mapping = reading.array(file, f"{event}/receive_setup/channel_mapping")
    channels = np.arange(1, len(elements) + 1) if mapping is None else np.asarray(mapping, int).reshape(-1)
    if channels.min() < 1 or channels.max() > len(elements):
        raise UsageError(f"{file.filename}: channel_mapping of '{event}' must be element numbers 1-{len(elements)}")
    return wave, channels - 1


def _uff3_frequency(file: h5py.File, name: str) -> float:
    where = _items(file, f"{name}/unique_excitations")[0]
    waveform = _need(file, f"{where}/waveform").astype(float).reshape(-1)
    if len(waveform) < 4 or np.ptp(waveform) == 0:
        raise UsageError(f"{file.filename}: '{where}/waveform' is flat and states no frequency; store the excitation")
    size = max(4096, len(waveform))
    spectrum = np.abs(np.fft.rfft(waveform - waveform.mean(), size))
    return float(np.fft.rfftfreq(size)[spectrum.argmax()] * _one(file, f"{where}/sampling_frequency"))


# --- NumPy -------------------------------------------------------------------------------------------------------


def load_numpy(path: str | Path, geometry: Mapping[str, Any] | None = None) -> Recording:
    """RF from ``.npz`` (key ``rf`` and geometry fields) or ``.npy`` (geometry from elsewhere); nothing is unpickled.

    RF is (frame, tx, time, el), leading axes of length 1 may be left out.
    """
    arrays = numpy_arrays(path)
    if "rf" not in arrays:
        raise UsageError(f"{path}: no array 'rf' among {', '.join(sorted(arrays)) or 'none'}; name the RF 'rf'")
    rf = arrays.pop("rf")
    if rf.ndim < 2 or rf.ndim > 4 or 0 in rf.shape:
        raise UsageError(f"{path}: RF has shape {rf.shape}; (frame, tx, time, el) was expected")
    if rf.dtype.kind not in "fiu":
        raise UsageError(f"{path}: RF has type {rf.dtype}; real numbers were expected (I/Q is not read)")
    rf = rf.reshape((1,) * (4 - rf.ndim) + rf.shape)
    scan = scan_from(path, {**arrays, **(geometry or {})}, rf.shape[1], rf.shape[3])
    return Recording(rf=reading.single(rf), scan=scan, probe_name="NumPy", description="NumPy arrays")
