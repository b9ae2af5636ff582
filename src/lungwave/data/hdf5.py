"""Write, read and check lungwave files: HDF5 in the zea 0.1 layout, the same bytes for the same content."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import h5py
import numpy as np

from lungwave import repro
from lungwave.acoustics.probe import Recording, Scan
from lungwave.config import Config
from lungwave.data import reading, schema, seal
from lungwave.data.schema import CaseTable, Field, MapStack
from lungwave.types import UsageError

COMPRESSION: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
MAX_ATTRIBUTE = 60_000  # [byte] HDF5's 64 KiB for all attributes of a group, less the others
TEXT = h5py.string_dtype("utf-8")

Rows: TypeAlias = slice | Sequence[int] | None  # frames to read, None = all


# --- write -------------------------------------------------------------------------------------------------------


def write_recording(
    path: str | Path,
    recording: Recording,
    *,
    maps: Mapping[str, MapStack] | None = None,
    cases: CaseTable | None = None,
    provenance: Mapping[str, Any] | None = None,
    snr_db: float | None = None,
    subject: Mapping[str, str | float | int] | None = None,
) -> None:
    """Write RF, scan, maps and the truth of simulated cases; the file appears whole or not at all.

    ``snr_db`` is the noise that was added [dB], ``provenance`` anything JSON (see ``repro.provenance``), ``subject``
    what is known of who was scanned (left out unless asked for). Raises UsageError where recording, maps and cases
    disagree, LungwaveError where the disk refuses.
    """
    recording.validate()
    scan, frames = recording.scan, len(recording.rf)
    if scan.rx_elements is None and len(scan.elements) != scan.delays.shape[1]:
        raise UsageError(f"{scan.delays.shape[1]} channels for {len(scan.elements)} elements; give scan.rx_elements")
    if cases is not None and len(cases) != frames:
        raise UsageError(f"{len(cases)} cases for {frames} frames of RF; give one case per frame")
    stacks = dict(maps or {})
    for name, stack in stacks.items():
        if len(stack.values) != frames or stack.coordinates.shape != (*stack.values.shape[1:], 3):
            raise UsageError(
                f"map '{name}' has shapes {stack.values.shape}, {stack.coordinates.shape} for {frames} frames"
            )
    text = json_attribute(provenance or {}, "provenance")
    with new_file(path) as file:
        file.attrs[schema.ATTR_ZEA] = schema.ZEA_VERSION
        file.attrs[schema.ATTR_DESCRIPTION] = recording.description
        file.attrs[schema.ATTR_FORMAT] = schema.FORMAT
        file.attrs[schema.ATTR_PROVENANCE] = text
        put(file, schema.RAW, recording.rf[..., None])
        if snr_db is not None:
            file[schema.RAW.path].attrs[schema.ATTR_SNR] = float(snr_db)
        _put_scan(file, scan, recording.probe_name)
        for name in sorted(subject or {}):
            _put_subject(file, name, dict(subject or {})[name])
        if cases is not None:
            _put_cases(file, cases)
        for name in sorted(stacks):
            _put_map(file, schema.map_field(name), stacks[name])


def json_attribute(value: Mapping[str, Any], what: str) -> str:
    """JSON text that fits into an attribute; UsageError where it does not."""
    text = json.dumps(dict(value), sort_keys=True, allow_nan=False)
    if len(text.encode()) > MAX_ATTRIBUTE:
        raise UsageError(
            f"{what} is {len(text.encode())} bytes, HDF5 attributes hold {MAX_ATTRIBUTE}; list fewer parents"
        )
    return text


@contextmanager
def new_file(path: str | Path) -> Iterator[h5py.File]:
    """An HDF5 file to fill, which appears under ``path`` at the end, whole or not at all."""
    # Built in memory: on a full disk HDF5's own writer leaves half-closed files behind, a plain write does not.
    options = {"driver": "core", "backing_store": False, "libver": ("earliest", "v114"), "track_order": False}
    with h5py.File(uuid.uuid4().hex, "w", **options) as file:  # HDF5 wants a name of its own per open file, keeps none
        yield file
        file.attrs[seal.ATTRIBUTE] = np.bytes_(seal.MARK + seal.EMPTY)
        file.flush()
        image = seal.sealed(file.id.get_file_image())
    with repro.atomic_path(path) as temporary:
        temporary.write_bytes(image)


def put(file: h5py.File, field: Field, value: Any) -> None:
    """One dataset as the schema wants it; large ones in chunks of one frame and event, compressed.

    Written out at once: left to HDF5, chunks find their place when a handle is closed, which with other threads about
    (a Dask worker's) is now and then later, and the same arrays lie in another order.
    """
    if field.dtype == "text":
        many = [str(v) for v in value] if field.shape else str(value)
        file.create_dataset(field.path, data=many, dtype=TEXT, track_times=False).flush()
        return
    data = np.asarray(value, dtype=field.dtype)
    if data.ndim != len(field.shape):
        raise UsageError(f"'{field.path}' has shape {data.shape}; ({', '.join(field.shape)}) was expected")
    options: dict[str, Any] = {}
    if data.ndim >= 2 and data.size > 1:
        lead = 2 if data.ndim == 5 else 1
        options = {**COMPRESSION, "chunks": (*(1,) * lead, *data.shape[lead:])}
    file.create_dataset(field.path, data=data, track_times=False, **options).flush()


def _put_subject(file: h5py.File, name: str, value: str | float | int) -> None:
    dtype = schema.SUBJECT_FIELDS.get(name)
    if dtype is None:
        raise UsageError(f"subject field '{name}' is unknown; known: {', '.join(schema.SUBJECT_FIELDS)}")
    put(file, Field(f"{schema.SUBJECT}/{name}", (), "-", dtype, ""), value)


def _put_map(file: h5py.File, field: Field, stack: MapStack) -> None:
    dtype = "uint8" if stack.values.dtype.kind in "bu" else field.dtype
    put(file, Field(field.path, field.shape, field.unit, dtype, field.description), stack.values)
    beside = Field(schema.companion(field, "coordinates"), ("z", "x", "3"), "m", "float32", "")
    put(file, beside, stack.coordinates)
    for name, text in (("unit", stack.unit), ("description", stack.description)):
        if text:
            put(file, Field(schema.companion(field, name), (), "-", "text", ""), text)


def _put_scan(file: h5py.File, scan: Scan, probe_name: str) -> None:
    """Scan and probe; zea wants the first firing at 0, so both clocks move by ``time_origin``, which is kept."""
    firing = np.where(scan.apodization != 0, scan.delays, np.inf).min(1)
    delays = np.where(scan.apodization != 0, scan.delays - firing[:, None], 0.0) + 0.0  # + 0.0: no -0.0
    apodization = np.asarray(scan.apodization)
    if scan.rx_elements is not None:
        delays, apodization = (_spread(a, scan.rx_elements, len(scan.elements)) for a in (delays, apodization))
        put(file, schema.APERTURE, scan.rx_elements)
    kind = "linear" if np.ptp(np.asarray(scan.elements)[:, 1:], axis=0).max() == 0 else "other"
    for field, value in (
        (schema.SAMPLING, scan.sampling_frequency),
        (schema.CENTER, scan.center_frequency),
        (schema.DEMODULATION, scan.demodulation_frequency),
        (schema.INITIAL_TIMES, scan.start_times - firing),
        (schema.DELAYS, delays),
        (schema.APODIZATION, apodization),
        (schema.FOCUS, scan.focus_distance),
        (schema.ORIGINS, scan.origins),
        (schema.ANGLES, scan.angles),
        (schema.SOUND_SPEED, scan.sound_speed),
        (schema.PROBE_NAME, probe_name),
        (schema.PROBE_TYPE, kind),
        (schema.GEOMETRY, scan.elements),
        (schema.ELEMENT_WIDTH, scan.element_width),
        (schema.PULSE_DELAY, scan.pulse_delay),
        (schema.BANDWIDTH, scan.bandwidth),
        (schema.REVERSED, scan.spectrum_reversed),
        (schema.TIME_ORIGIN, firing),
    ):
        if value is not None:
            put(file, field, value)


def _spread(values: np.ndarray, elements: np.ndarray, count: int) -> np.ndarray:
    """Channels of each event -> all elements of the array, 0 elsewhere."""
    full = np.zeros((len(values), count))
    np.put_along_axis(full, np.asarray(elements, int), values, axis=1)
    return full


def _put_cases(file: h5py.File, cases: CaseTable) -> None:
    for field in schema.CASE_FIELDS:
        put(file, field, getattr(cases, field.name))
    where = cases.map_coordinates()
    for field, values in ((schema.SHARP, cases.sharp), (schema.SMOOTH, cases.smooth), (schema.LUNG, cases.lung)):
        about = f"{field.description}; z is the depth below the pleura"
        _put_map(file, field, MapStack(values, where, field.unit, about))


# --- read --------------------------------------------------------------------------------------------------------


def read_recording(path: str | Path, frames: Rows = None) -> Recording:
    """RF and scan of a lungwave or zea 0.1 file, all frames or some; the result is validated.

    Raises UsageError, naming file and field, for anything that is not such a file.
    """
    with reading.open_hdf5(path) as file:
        return recording_of(file, frames)


def recording_of(file: h5py.File, frames: Rows = None) -> Recording:
    """``read_recording`` on an open file."""
    prefix = track(file)
    rf = _rows(file, place(schema.RAW, prefix), frames)
    if rf.ndim != 5 or rf.shape[-1] not in (1, 2):
        raise UsageError(
            f"{file.filename}: '{schema.RAW.name}' has shape {rf.shape}; (frame, tx, time, el, 1) was expected"
        )
    if rf.shape[-1] == 2:
        raise UsageError(
            f"{file.filename}: holds I/Q data; lungwave reads RF, convert the recording before demodulation"
        )
    name = reading.text(file, schema.PROBE_NAME.path) or "unknown"
    description = reading.attribute(file, schema.ATTR_DESCRIPTION) or ""
    recording = Recording(
        rf=reading.single(rf[..., 0]),
        scan=scan_of(file, prefix),
        probe_name=name,
        description=str(description),
    )
    try:
        recording.validate()
    except UsageError as error:
        raise UsageError(f"{file.filename}: {error}") from error
    return recording


def track(file: h5py.File) -> str:
    """Where data and scan lie: the one track, or the root of an older zea file ('')."""
    tracks = reading.find(file, schema.TRACK.split("/")[0])
    if isinstance(tracks, h5py.Group) and len(tracks):
        if len(tracks) > 1:
            raise UsageError(f"{file.filename}: holds {len(tracks)} tracks; write each to a file of its own")
        return f"{schema.TRACK.split('/')[0]}/{next(iter(tracks))}"
    return ""


def place(field: Field, prefix: str) -> str:
    """Path of ``field`` in a file whose track is ``prefix``."""
    return field.path.replace(schema.TRACK, prefix, 1).lstrip("/")


def _rows(file: h5py.File, path: str, frames: Rows) -> np.ndarray:
    """Array at ``path``, some rows of its first axis; UsageError where it or a row is missing."""
    if frames is None or isinstance(frames, slice):
        value = reading.array(file, path, frames)
        order: np.ndarray | None = None
    else:
        item = reading.find(file, path)
        count = item.shape[0] if isinstance(item, h5py.Dataset) and item.shape else 0
        wanted = np.asarray(frames, int)
        if wanted.size == 0 or wanted.min() < 0 or wanted.max() >= count:
            raise UsageError(f"{file.filename}: frames {list(frames)[:4]} were asked for, the file holds 0-{count - 1}")
        unique, order = np.unique(wanted, return_inverse=True)  # HDF5 reads rising rows only
        value = reading.array(file, path, unique)
    if value is None:
        raise UsageError(f"{file.filename}: '{path}' is missing; is this a lungwave or zea 0.1 file with raw data?")
    if value.ndim and not len(value):
        raise UsageError(f"{file.filename}: '{path}' holds no frame that was asked for")
    return value if order is None else value[order]


def scan_of(file: h5py.File, prefix: str) -> Scan:
    """Scan of an open file; what zea leaves optional takes the defaults of ``Scan``."""
    geometry = reading.array(file, schema.GEOMETRY.path)
    if geometry is None and prefix == "":
        older = place(schema.DELAYS, "").replace(schema.DELAYS.name, schema.GEOMETRY.name)  # zea before 0.1
        geometry = reading.array(file, older)
    delays = reading.array(file, place(schema.DELAYS, prefix))
    missing = [f.path for f, v in ((schema.GEOMETRY, geometry), (schema.DELAYS, delays)) if v is None]
    if geometry is None or delays is None:
        raise UsageError(
            f"{file.filename}: geometry is incomplete, {missing} missing; add it, or save RF and geometry as .npz"
        )
    if geometry.ndim != 2 or geometry.shape[1] != 3 or delays.ndim != 2 or delays.shape[1] != len(geometry):
        raise UsageError(
            f"{file.filename}: element positions {geometry.shape} and firing times {delays.shape} disagree"
        )
    events = len(delays)

    def per_event(field: Field, *tail: int) -> np.ndarray:
        value = reading.array(file, place(field, prefix))
        if value is None or value.shape != (events, *tail):
            what = "is missing" if value is None else f"has shape {value.shape}"
            raise UsageError(f"{file.filename}: '{field.name}' {what}; {(events, *tail)} was expected")
        return value.astype(float)

    apodization = per_event(schema.APODIZATION, len(geometry))
    focus = per_event(schema.FOCUS)
    several = (apodization != 0).sum(1) > 1
    focus = np.where((focus == 0) & several, np.inf, focus)  # zea also reads 0 as a plane wave
    origin = reading.array(file, schema.TIME_ORIGIN.path)
    clock = np.zeros(events) if origin is None else np.asarray(origin, float).reshape(-1)
    if clock.shape != (events,):
        raise UsageError(
            f"{file.filename}: '{schema.TIME_ORIGIN.name}' has shape {clock.shape}; ({events},) was expected"
        )
    aperture = reading.array(file, place(schema.APERTURE, prefix))
    firing = np.where(apodization != 0, delays.astype(float) + clock[:, None], 0.0)
    if aperture is not None:
        if aperture.ndim != 2 or len(aperture) != events or aperture.min() < 0 or aperture.max() >= len(geometry):
            raise UsageError(
                f"{file.filename}: '{schema.APERTURE.name}' must be (tx, el) element numbers below {len(geometry)}"
            )
        firing, apodization = (np.take_along_axis(a, aperture.astype(int), 1) for a in (firing, apodization))
    reverse = reading.scalar(file, schema.REVERSED.path)
    bandwidth = reading.scalar(file, schema.BANDWIDTH.path)
    return Scan(
        elements=geometry.astype(float),
        center_frequency=_common(file, place(schema.CENTER, prefix)),
        sampling_frequency=_common(file, place(schema.SAMPLING, prefix)),
        delays=firing,
        apodization=apodization,
        start_times=per_event(schema.INITIAL_TIMES) + clock,
        focus_distance=focus,
        angles=per_event(schema.ANGLES),
        origins=per_event(schema.ORIGINS, 3),
        sound_speed=reading.scalar(file, place(schema.SOUND_SPEED, prefix)) or 1540.0,
        element_width=reading.scalar(file, schema.ELEMENT_WIDTH.path) or None,
        pulse_delay=reading.scalar(file, schema.PULSE_DELAY.path) or 0.0,
        bandwidth=0.6 if bandwidth is None else bandwidth,
        demodulation_frequency=0.0,  # the samples are real, whatever zea plans to demodulate them with
        spectrum_reversed=bool(reverse),
        rx_elements=None if aperture is None else aperture.astype(int),
    )


def _common(file: h5py.File, path: str) -> float:
    """A number that zea may store once or per event; it must be the same for all."""
    value = reading.array(file, path)
    if value is None or value.size == 0:
        raise UsageError(f"{file.filename}: '{path}' is missing; add it, or save RF and geometry as .npz")
    if np.ptp(np.asarray(value, float)) > 0:
        raise UsageError(f"{file.filename}: '{path}' differs between events; write each to a file of its own")
    return float(np.asarray(value, float).reshape(-1)[0])


def read_origin(path: str | Path) -> Config | None:
    """The configuration that a file's cases were simulated with; None where it does not say."""
    with reading.open_hdf5(path) as file:
        text = reading.attribute(file, schema.ATTR_PROVENANCE)
    try:
        held = json.loads(text)["config"]
    except (TypeError, ValueError, LookupError):
        return None
    return Config().override(held) if isinstance(held, dict) else None


def read_cases(path: str | Path, frames: Rows = None) -> CaseTable | None:
    """Truth of the simulated cases of a file; None where it holds none (a measurement)."""
    with reading.open_hdf5(path) as file:
        return cases_of(file, frames)


def cases_of(file: h5py.File, frames: Rows = None) -> CaseTable | None:
    """``read_cases`` on an open file."""
    if reading.find(file, schema.BASE_ID.path) is None:
        return None

    def texts(field: Field) -> tuple[str, ...]:
        found = reading.texts(file, field.path)
        if found is None:
            raise UsageError(f"{file.filename}: '{field.path}' is missing")
        return (
            tuple(found[frames])
            if isinstance(frames, slice)
            else tuple(found if frames is None else [found[i] for i in frames])
        )

    def one(field: Field) -> np.ndarray:
        value = reading.array(file, field.path)
        if value is None:
            raise UsageError(f"{file.filename}: '{field.path}' is missing")
        return value

    prefix = track(file)
    maps = {f: _rows(file, place(f, prefix), frames) for f in (schema.SHARP, schema.SMOOTH, schema.LUNG)}
    rows = {
        f: _rows(file, f.path, frames) for f in schema.CASE_FIELDS if f.dtype != "text" and f.shape[:1] == ("frame",)
    }
    for field, value in (*maps.items(), *rows.items()):
        if value.ndim != len(field.shape) or len(value) != len(rows[schema.BASE_ID]):
            raise UsageError(
                f"{file.filename}: '{field.path}' has shape {value.shape}; ({', '.join(field.shape)}) was expected"
            )
    return CaseTable(
        base_id=rows[schema.BASE_ID].astype(np.int64),
        category=texts(schema.CATEGORY),
        index=rows[schema.INDEX].astype(np.int64),
        parameters=texts(schema.PARAMETERS),
        sharp=maps[schema.SHARP].astype(np.float32),
        smooth=maps[schema.SMOOTH].astype(np.float32),
        lung=maps[schema.LUNG] != 0,
        valid=rows[schema.VALID] != 0,
        pleura_depth=rows[schema.PLEURA].astype(float),
        bands=rows[schema.BANDS].astype(float),
        whole=rows[schema.WHOLE].astype(float),
        profile=rows[schema.PROFILE].astype(float),
        band_edges=tuple(float(e) for e in one(schema.BAND_EDGES)),
        pixel=float(one(schema.PIXEL).reshape(-1)[0]),
        x=one(schema.X).astype(float),
    )
