"""RF that MATLAB users keep: Field II sets, MUST/PyMUST structs, arim/BRAIN full-matrix captures; v5, v7 and v7.3."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from jaxtyping import Float

from lungwave.acoustics.probe import Recording, Scan, linear_array
from lungwave.data import reading
from lungwave.data.reading import Tree
from lungwave.types import UsageError

PLANE_TOLERANCE = 1e-8  # [s] misfit below which firing times are those of a plane wave (a 20th of a 5 MHz period)


def load_matlab(path: str | Path) -> Recording:
    """RF of a MATLAB v5 or v7 file (``RF`` + ``param`` of MUST, or ``exp_data`` of arim/BRAIN)."""
    return from_tree(path, matlab_tree(path))


def from_tree(path: str | Path, variables: Tree) -> Recording:
    """Recording of MATLAB variables, whichever of the known layouts they follow."""
    if isinstance(variables.get("exp_data"), dict):
        return full_matrix(path, variables["exp_data"])
    if isinstance(variables.get("param"), dict) and "RF" in variables:
        return must(path, variables["RF"], variables["param"])
    names = ", ".join(sorted(variables)[:8]) or "none"
    raise UsageError(
        f"{path}: no known RF layout among its variables ({names}); 'RF' with 'param' (MUST) or 'exp_data' (arim) were "
        "expected; save RF and geometry as .npz"
    )


def matlab_tree(path: str | Path) -> Tree:
    """Variables of a MATLAB v5/v7 file as nested dicts of arrays; function handles, cells and objects are left out."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, shape, _ in scipy.io.whosmat(path):
                reading.check_size(path, name, tuple(int(n) for n in shape), 8)
            raw = scipy.io.loadmat(path, squeeze_me=False, struct_as_record=False)
    except UsageError:
        raise
    except Exception as error:  # a damaged file makes the parser fail in any way it likes
        raise UsageError(
            f"{path}: not a readable MATLAB file ({type(error).__name__}); is it truncated? copy it again"
        ) from error
    return {
        name: plain for name, value in raw.items() if not name.startswith("__") and (plain := _plain(value)) is not None
    }


def matlab73_tree(file: h5py.File) -> Tree:
    """Variables of a MATLAB v7.3 file; HDF5 lists MATLAB's axes backwards, so every array is transposed back."""

    def turn(node: Any) -> Any:
        return {name: turn(value) for name, value in node.items()} if isinstance(node, dict) else np.asarray(node).T

    return turn(reading.tree(file))


def _plain(value: Any, depth: int = 6) -> Any:
    """A loadmat value without MATLAB's wrappers: struct -> dict, numbers -> array, text -> str, else None."""
    if depth == 0:
        return None
    if isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
        value = value.reshape(-1)[0]
    if hasattr(value, "_fieldnames"):
        fields = {name: _plain(getattr(value, name), depth - 1) for name in value._fieldnames}
        return {name: field for name, field in fields.items() if field is not None}
    value = np.asarray(value)
    if value.dtype.kind == "U":
        return str(value.reshape(-1)[0]) if value.size else ""
    return value if value.dtype.kind in "fiub" else None


def number(path: str | Path, fields: Tree, name: str, default: float | None = None) -> float:
    """One number of a struct, (1, 1) or not; UsageError where it is missing without a default."""
    value = fields.get(name)
    if value is None or (isinstance(value, np.ndarray) and value.size == 0):
        if default is None:
            raise UsageError(
                f"{path}: geometry is incomplete, '{name}' is missing; add it, or save RF and geometry as .npz"
            )
        return default
    if not isinstance(value, np.ndarray) or value.size != 1:
        raise UsageError(f"{path}: '{name}' has shape {np.shape(value)}; one number was expected")
    return float(value.reshape(-1)[0])


def vector(path: str | Path, fields: Tree, name: str) -> Float[np.ndarray, " n"]:
    """All numbers of a struct field in one row; UsageError where missing."""
    value = fields.get(name)
    if not isinstance(value, np.ndarray) or value.size == 0:
        raise UsageError(
            f"{path}: geometry is incomplete, '{name}' is missing; add it, or save RF and geometry as .npz"
        )
    return np.asarray(value, float).reshape(-1)


def fractional_bandwidth(value: float, center_frequency: float) -> float:
    """Bandwidth as a fraction of the centre frequency, whether it was given in hertz, percent or as a fraction."""
    if value > 1e3:
        return value / center_frequency
    return value / 100 if value > 2 else value


def undersampled(center_frequency: float, sampling_frequency: float) -> bool:
    """True where band-pass sampling mirrors the spectrum: the band lies in an even Nyquist zone (2nd, 4th, ...)."""
    return int(2 * center_frequency / sampling_frequency) % 2 == 1


def plane_angles(
    path: str | Path, elements: Float[np.ndarray, "el 3"], delays: Float[np.ndarray, "tx el"], sound_speed: float
) -> Float[np.ndarray, " tx"]:
    """Steering angle [rad] of each event from its firing times; positive steers towards +x."""
    design = np.stack([elements[:, 0], np.ones(len(elements))], 1)
    fit, *_ = np.linalg.lstsq(design, delays.T, rcond=None)
    misfit = float(np.abs(design @ fit - delays.T).max(initial=0))
    sine = fit[0] * sound_speed
    if misfit > PLANE_TOLERANCE or np.abs(sine).max(initial=0) > 1:
        raise UsageError(
            f"{path}: firing times are not those of a plane wave (misfit {misfit:g} s); save RF with "
            "delays, angles and focus_distance as .npz"
        )
    return np.arcsin(sine)


def plane_scan(
    elements: Float[np.ndarray, "el 3"], angles: Float[np.ndarray, " tx"], sound_speed: float
) -> dict[str, Any]:
    """Scan fields of plane waves whose time zero is the passage through the origin: delays x sin(a) / c."""
    delays = (
        elements[None, :, 0] * np.sin(angles)[:, None] + elements[None, :, 2] * np.cos(angles)[:, None]
    ) / sound_speed
    return {
        "delays": delays,
        "apodization": np.ones_like(delays),
        "focus_distance": np.full(len(angles), np.inf),
        "angles": np.asarray(angles, float),
        "origins": np.zeros((len(angles), 3)),
        "sound_speed": sound_speed,
    }


def must(path: str | Path, rf: np.ndarray, param: Tree) -> Recording:
    """MUST / PyMUST: RF (time, el[, frame or event]) and ``param`` (fs, fc, pitch, c, t0, TXdelay, width, bandwidth %).

    The third axis holds events when ``TXdelay`` has as many rows, else frames. The record starts at ``t0``.
    """
    rf = np.asarray(rf)
    if rf.ndim not in (2, 3):
        raise UsageError(f"{path}: RF has shape {rf.shape}; (time, el) or (time, el, frame) was expected")
    channels = rf.shape[1]
    elements = linear_array(channels, number(path, param, "pitch"))
    speed = number(path, param, "c", 1540.0)
    center, sampling = number(path, param, "fc"), number(path, param, "fs", 4 * number(path, param, "fc"))
    delays = np.asarray(param.get("TXdelay", np.zeros((1, channels))), float)
    if delays.size % channels:
        raise UsageError(f"{path}: TXdelay has shape {delays.shape} for {channels} channels; give one row per event")
    if delays.ndim != 2 or delays.shape[1] != channels:
        delays = delays.reshape(-1, channels)
    stack = rf[:, :, None] if rf.ndim == 2 else rf
    events = len(delays)
    if events == 1:
        frames = np.moveaxis(stack, 2, 0)[:, None]
    elif stack.shape[2] == events:
        frames = np.moveaxis(stack, 2, 0)[None]
    else:
        raise UsageError(f"{path}: RF has {stack.shape[2]} events, TXdelay {events}; give one row per event")
    start = vector(path, param, "t0") if "t0" in param else np.zeros(1)
    if start.size not in (1, events):
        raise UsageError(f"{path}: t0 has {start.size} values for {events} events; give one or one each")
    scan = Scan(
        elements=elements,
        center_frequency=center,
        sampling_frequency=sampling,
        delays=np.where(np.isfinite(delays), delays, 0.0),
        apodization=np.isfinite(delays).astype(float),  # MUST writes NaN for a silent element
        start_times=np.broadcast_to(start, (events,)).copy(),
        focus_distance=np.full(events, np.inf),
        angles=plane_angles(path, elements, np.where(np.isfinite(delays), delays, 0.0), speed),
        origins=np.zeros((events, 3)),
        sound_speed=speed,
        element_width=number(path, param, "width", 0.0) or None,
        bandwidth=fractional_bandwidth(number(path, param, "bandwidth", 75.0), center),  # MUST's default is 75 %
        spectrum_reversed=undersampled(center, sampling),
    )
    return Recording(rf=reading.single(frames), scan=scan, probe_name="MUST", description="MATLAB, MUST layout")


def full_matrix(path: str | Path, exp_data: Tree) -> Recording:
    """arim / BRAIN ``exp_data``: traces (time, pair) of 1-based pairs (tx, rx), half matrix completed by reciprocity.

    Every event fires one element, so the scan has as many events as elements.
    """
    traces = exp_data.get("time_data")
    if not isinstance(traces, np.ndarray) or traces.ndim != 2:
        raise UsageError(f"{path}: exp_data.time_data is no array (time, pair)")
    probe = exp_data.get("array")
    if not isinstance(probe, dict):
        raise UsageError(
            f"{path}: geometry is incomplete, 'exp_data.array' is missing; add el_xc, el_zc and centre_freq"
        )
    x = vector(path, probe, "el_xc")
    y, z = (vector(path, probe, n) if n in probe else np.zeros_like(x) for n in ("el_yc", "el_zc"))
    if not len(x) == len(y) == len(z):
        raise UsageError(f"{path}: el_xc, el_yc, el_zc have {len(x)}, {len(y)}, {len(z)} values; give one per element")
    count = len(x)
    tx, rx = _pairs(path, exp_data, traces.shape[1], count)
    time = vector(path, exp_data, "time")
    if len(time) != len(traces) or len(time) < 2 or not time[-1] > time[0]:
        raise UsageError(f"{path}: 'time' has {len(time)} values for {len(traces)} samples; give rising seconds")
    traces = reading.single(traces)
    matrix = np.zeros((count, len(traces), count), np.float32)
    matrix[rx, :, tx] = traces.T  # reciprocity first, so that a measured pair keeps its own trace
    matrix[tx, :, rx] = traces.T
    known = np.zeros((count, count), bool)
    known[tx, rx] = known[rx, tx] = True
    if not known.all():
        raise UsageError(
            f"{path}: {int((~known).sum())} of {count * count} element pairs are missing; give tx <= rx for all"
        )
    width = 2 * abs(float((vector(path, probe, "el_x1") - x)[0])) if "el_x1" in probe else 0.0
    elements = np.stack([x, y, z], 1)
    scan = Scan(
        elements=elements,
        center_frequency=number(path, probe, "centre_freq"),
        sampling_frequency=(len(time) - 1) / float(time[-1] - time[0]),
        delays=np.zeros((count, count)),
        apodization=np.eye(count),
        start_times=np.full(count, time[0]),
        focus_distance=np.zeros(count),
        angles=np.zeros(count),
        origins=elements.copy(),
        sound_speed=number(path, exp_data, "ph_velocity", 1540.0),
        element_width=width or None,
    )
    return Recording(rf=matrix[None], scan=scan, probe_name="arim", description="MATLAB, full-matrix capture")


def _pairs(path: str | Path, exp_data: Tree, traces: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """0-based transmit and receive element of each trace."""
    found = [vector(path, exp_data, name) for name in ("tx", "rx")]
    for name, pairs in zip(("tx", "rx"), found, strict=True):
        if len(pairs) != traces:
            raise UsageError(f"{path}: '{name}' has {len(pairs)} values for {traces} traces; give one per trace")
        if pairs.min() < 1 or pairs.max() > count or (pairs != np.round(pairs)).any():
            raise UsageError(
                f"{path}: '{name}' runs {pairs.min():g}-{pairs.max():g}; element numbers 1-{count} were expected"
            )
    return found[0].astype(int) - 1, found[1].astype(int) - 1


def field_ii(path: str | Path, variables: Tree) -> Recording:
    """Field II channel data of the PyBF set: shots (el, time), plane-wave angles, ``correction_time_shift``.

    Sample 0 lies ``correction_time_shift`` before time zero; that shift already holds half the length of the two-way
    pulse (excitation * impulse response * impulse response), so ``pulse_delay`` is what its envelope peak adds to that.
    """
    signal, probe = variables.get("data"), variables.get("trans_params")
    if not isinstance(signal, dict) or not isinstance(probe, dict):
        raise UsageError(
            f"{path}: geometry is incomplete, 'trans_params' is missing; add it, or save RF and geometry as .npz"
        )
    modes = signal.get("tx_mode")
    if not isinstance(modes, dict) or len(modes) != 1:
        raise UsageError(f"{path}: 'data/tx_mode' must hold the angles of one transmit mode")
    angles = vector(path, modes, next(iter(modes)))
    frames = [_shots(path, shots, len(angles)) for _, shots in _numbered(signal.get("rf_data"), "frame_")]
    if not frames or len({frame.shape for frame in frames}) != 1:
        raise UsageError(
            f"{path}: frames of 'data/rf_data' have shapes {sorted({f.shape for f in frames})}; give equal ones"
        )
    rf = np.stack(frames)
    count = int(number(path, probe, "x_num_of_elements", float(rf.shape[3])))
    if count != rf.shape[3]:
        raise UsageError(f"{path}: shots have {rf.shape[3]} channels, trans_params {count}; transpose the shots")
    center = number(path, probe, "f_central")
    shift = number(path, signal, "correction_time_shift")
    elements = linear_array(count, number(path, probe, "x_pitch"))
    scan = Scan(
        elements=elements,
        center_frequency=center,
        sampling_frequency=number(path, signal, "f_sampling"),
        start_times=np.full(len(angles), -shift),
        element_width=number(path, probe, "x_width", 0.0) or None,
        pulse_delay=_field_ii_pulse_delay(path, variables.get("sim_params"), shift),
        bandwidth=fractional_bandwidth(number(path, probe, "bandwidth", 0.6), center),
        **plane_scan(elements, angles, 1540.0),
    )
    return Recording(rf=rf, scan=scan, probe_name="Field II linear array", description="Field II, plane waves")


def _numbered(group: Any, prefix: str) -> list[tuple[int, Any]]:
    """Items ``prefix1``, ``prefix2``, ... in the order of their numbers (not of their letters: 10 follows 9)."""
    if not isinstance(group, dict):
        return []
    found = [
        (int(n[len(prefix) :]), v) for n, v in group.items() if n.startswith(prefix) and n[len(prefix) :].isdecimal()
    ]
    return sorted(found, key=lambda item: item[0])


def _shots(path: str | Path, shots: Any, events: int) -> Float[np.ndarray, "tx time el"]:
    """One frame (tx, time, el) of shots stored as (el, time)."""
    arrays = [np.asarray(shot) for _, shot in _numbered(shots, "shot_")]
    if len(arrays) != events or len({a.shape for a in arrays}) != 1 or arrays[0].ndim != 2:
        raise UsageError(
            f"{path}: {len(arrays)} shots {[a.shape for a in arrays][:3]} for {events} angles; give (el, time) each"
        )
    return reading.single(np.stack(arrays).transpose(0, 2, 1))


def _field_ii_pulse_delay(path: str | Path, simulation: Any, shift: float) -> float:
    """Envelope peak of the two-way pulse minus what the shift already took off [s]; 0 where the pulse is not given."""
    names = ("excitation", "electroacoustic_impulse_response", "f_sim_hz", "start_time")
    if not isinstance(simulation, dict) or any(name not in simulation for name in names):
        return 0.0
    from scipy.signal import hilbert  # a second of import that no other recording needs

    excitation, response = (vector(path, simulation, name) for name in names[:2])
    pulse = np.convolve(np.convolve(excitation, response), response)
    peak = int(np.abs(hilbert(pulse)).argmax()) / number(path, simulation, "f_sim_hz")
    return peak - (shift + number(path, simulation, "start_time"))
