"""Everything that holds RF loads by its content, with the clock and the geometry that its format documents."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.signal
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edited import edited
from lungwave.acoustics.probe import Recording, Scan, linear_array
from lungwave.data import convert, schema
from lungwave.data.convert import info, load_any, sniff, validate
from lungwave.data.hdf5 import read_recording, write_recording
from lungwave.data.schema import CaseTable
from lungwave.types import UsageError

Make = Callable[..., Recording]
MakeCases = Callable[..., CaseTable]
Law = Callable[[Recording, np.ndarray], None]
Shared = Callable[[str], Path]

C, FS, FC, PITCH = 1500.0, 40e6, 5e6, 0.2e-3
POINT = np.array([0.7e-3, 0.0, 9e-3])
ELEMENTS = linear_array(32, PITCH)
BACK = np.linalg.norm(ELEMENTS - POINT, axis=1) / C


def echoes(transmit: np.ndarray, start: np.ndarray, samples: int = 640) -> np.ndarray:
    """RF (tx, time, el) of one point: a pulse at transmit time + way back, on a clock whose sample 0 is ``start``."""
    times = start[:, None, None] + np.arange(samples)[:, None] / FS - transmit[:, None, None] - BACK
    return np.exp(-((times * FC) ** 2)) * np.cos(2 * np.pi * FC * times)


def plane_times(angles: np.ndarray) -> np.ndarray:
    """Passage of plane waves through the point, counted from their passage through the origin."""
    return (POINT[0] * np.sin(angles) + POINT[2] * np.cos(angles)) / C


ANGLES = np.radians([-10.0, 0.0, 6.0])


# --- formats of others, written as their documentation says ---------------------------------------------------------


def write_picmus(path: Path, **changes: Any) -> None:
    start = 2.0e-6
    values: dict[str, Any] = {
        "data/real": echoes(plane_times(ANGLES), np.full(3, start)).transpose(0, 2, 1).astype(np.float32),
        "data/imag": np.zeros((3, 32, 640), np.float32),
        "angles": ANGLES.astype(np.float32),
        "initial_time": np.float32([start]),
        "modulation_frequency": np.float32([0]),
        "PRF": np.float32([0]),
        "probe_geometry": ELEMENTS.T.astype(np.float32),
        "sampling_frequency": np.float32([FS]),
        "sound_speed": np.float32([C]),
        **changes,
    }
    with h5py.File(path, "w") as file:
        for name, value in values.items():
            if value is not None:
                file[f"US/US_DATASET0000/{name}"] = value


def uff_value(group: h5py.Group, name: str, value: Any, **attributes: Any) -> None:
    """USTB stores numbers as single datasets with the attributes class, name, complex, imaginary."""
    data = group.create_dataset(name, data=np.atleast_2d(np.asarray(value, np.float32)))
    for key, content in {"class": "single", "name": name, "complex": 0, "imaginary": 0, **attributes}.items():
        data.attrs[key] = content


def uff_object(parent: h5py.Group, name: str, kind: str, size: int = 1) -> h5py.Group:
    group = parent.create_group(name)
    for key, content in {"class": kind, "name": name, "array": int(size > 1), "size": [1, size]}.items():
        group.attrs[key] = content
    return group


def write_ustb(path: Path, waves: list[dict[str, float]], transmit: np.ndarray) -> None:
    """``transmit`` counts from the passage of each wave through the origin, USTB's time zero."""
    initial = 1.5e-6
    start = np.array([initial + wave["delay"] for wave in waves])
    with h5py.File(path, "w") as file:
        data = uff_object(file, "channel_data", "uff.channel_data")
        uff_value(data, "sampling_frequency", FS)
        uff_value(data, "initial_time", initial)
        uff_value(data, "sound_speed", C)
        uff_value(data, "modulation_frequency", 0)
        uff_value(data, "data", np.zeros((1, 1)))
        del data["data"]
        rf = data.create_dataset("data", data=echoes(transmit, start).transpose(0, 2, 1)[None].astype(np.float32))
        rf.attrs["class"], rf.attrs["complex"] = "single", 0
        pulse = uff_object(data, "pulse", "uff.pulse")
        uff_value(pulse, "center_frequency", FC)
        uff_value(pulse, "fractional_bandwidth", 60)
        probe = uff_object(data, "probe", "uff.linear_array")
        zero = np.zeros(32)
        uff_value(probe, "geometry", np.stack([*ELEMENTS.T, zero, zero, zero + 0.18e-3, zero + 5e-3]))
        sequence = uff_object(data, "sequence", "uff.wave", len(waves))
        for i, wave in enumerate(waves):
            one = sequence if len(waves) == 1 else uff_object(sequence, f"sequence_{i + 1:04d}", "uff.wave")
            uff_value(one, "wavefront", wave["wavefront"])
            uff_value(one, "delay", wave["delay"])
            source = uff_object(one, "source", "uff.point")
            for key in ("distance", "azimuth", "elevation"):
                uff_value(source, key, wave.get(key, 0.0))


def write_uff3(path: Path, angles: np.ndarray, mapping: np.ndarray | None = None) -> None:
    """UFF 0.3: every event has its own clock; wave i passes (1, 0, 2) mm at 3 us, the record starts at 2 us."""
    reference, sent, received = np.array([1e-3, 0.0, 2e-3]), 3e-6, 2e-6
    origin = sent - (reference[0] * np.sin(angles) + reference[2] * np.cos(angles)) / C
    rf = echoes(plane_times(angles) + origin, np.full(len(angles), received)).transpose(0, 2, 1)[None]
    channels = np.arange(32) if mapping is None else mapping
    burst = np.sin(2 * np.pi * FC * np.arange(80) / 100e6)
    with h5py.File(path, "w") as file:
        for i, part in enumerate(("major", "minor", "patch")):
            file[f"version/{part}"] = (0, 3, 0)[i]
        data = file.create_group("uff.channel_data")
        data["data"] = rf[:, :, channels].astype(np.float32)
        data["sound_speed"] = C
        data["probes/00000001/number_elements"] = 32
        data["probes/00000001/pitch"] = PITCH
        data["probes/00000001/element_width"] = 0.18e-3
        data["unique_excitations/00000001/waveform"] = burst
        data["unique_excitations/00000001/sampling_frequency"] = 100e6
        for i, angle in enumerate(angles):
            wave, event, step = (f"{name}/{i + 1:08d}" for name in ("unique_waves", "unique_events", "sequence"))
            data[f"{wave}/type"] = 2
            for axis, value in zip("xyz", (0.0, angle, 0.0), strict=True):
                data[f"{wave}/origin/rotation/{axis}"] = value
            sending = f"{event}/transmit_setup/transmit_waves/00000001"
            data[f"{sending}/wave"] = i + 1
            data[f"{sending}/time_offset"] = sent
            for axis, value in zip("xyz", reference, strict=True):
                data[f"{sending}/time_zero_reference_point/{axis}"] = value
            data[f"{event}/receive_setup/time_offset"] = received
            data[f"{event}/receive_setup/sampling_frequency"] = FS
            data[f"{event}/receive_setup/channel_mapping"] = channels[None] + 1
            data[f"{step}/event"] = i + 1
            data[f"{step}/time_offset"] = i * 1e-4


def must_struct(angles: np.ndarray) -> dict[str, Any]:
    """MUST: firing times from 0, RF (time, el, event) from ``t0`` after the first firing."""
    delays = ELEMENTS[:, 0] * np.sin(angles)[:, None] / C
    first = delays.min(1)
    start = 3e-6
    rf = echoes(plane_times(angles) - first, np.full(len(angles), start))
    param = {"fs": FS, "fc": FC, "pitch": PITCH, "c": C, "t0": start, "width": 0.18e-3, "bandwidth": 70.0}
    return {"RF": rf.transpose(1, 2, 0), "param": {**param, "TXdelay": delays - first[:, None]}}


def write_matlab73(path: Path, variables: dict[str, Any]) -> None:
    """HDF5 behind MATLAB's 512 byte header, axes backwards, scalars (1, 1), the way save -v7.3 writes."""
    with h5py.File(path, "w", userblock_size=512) as file:

        def put(group: h5py.Group, items: dict[str, Any]) -> None:
            for name, value in items.items():
                if isinstance(value, dict):
                    put(group.create_group(name), value)
                    group[name].attrs["MATLAB_class"] = np.bytes_("struct")
                else:
                    group[name] = np.atleast_2d(np.asarray(value)).T
                    group[name].attrs["MATLAB_class"] = np.bytes_("double")

        put(file, variables)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")


def half_matrix() -> dict[str, Any]:
    """arim: traces of pairs tx <= rx, 1-based, firing at time 0."""
    tx, rx = np.triu_indices(32)
    time = np.arange(640) / FS
    late = time[:, None] - BACK[tx] - BACK[rx]
    traces = np.exp(-((late * FC) ** 2)) * np.cos(2 * np.pi * FC * late)
    array = {"el_xc": ELEMENTS[:, 0], "el_yc": 0 * ELEMENTS[:, 0], "el_zc": ELEMENTS[:, 2], "centre_freq": FC}
    pairs = {"time_data": traces, "tx": tx + 1.0, "rx": rx + 1.0, "time": time}
    return {"exp_data": {**pairs, "ph_velocity": C, "array": array}}


# --- laws --------------------------------------------------------------------------------------------------------


def test_picmus_echoes_lie_where_the_scan_says(tmp_path: Path, assert_echo_from: Law) -> None:
    write_picmus(tmp_path / "a.hdf5")
    recording = load_any(tmp_path / "a.hdf5")
    assert recording.rf.shape == (1, 3, 640, 32)
    assert recording.scan.kind == "plane"
    np.testing.assert_allclose(recording.scan.angles, ANGLES, atol=1e-7)
    assert_echo_from(recording, POINT)


def test_picmus_iq_is_refused(tmp_path: Path) -> None:
    write_picmus(tmp_path / "a.hdf5", modulation_frequency=np.float32([5.2e6]))
    with pytest.raises(UsageError, match=r"I/Q.*5\.2e\+06"):
        load_any(tmp_path / "a.hdf5")


@pytest.mark.parametrize("name", ["angles", "probe_geometry", "sampling_frequency", "sound_speed", "initial_time"])
def test_incomplete_picmus_names_what_is_missing(name: str, tmp_path: Path) -> None:
    write_picmus(tmp_path / "a.hdf5", **{name: None})
    with pytest.raises(UsageError, match=name):
        load_any(tmp_path / "a.hdf5")


def test_ustb_plane_waves(tmp_path: Path, assert_echo_from: Law) -> None:
    waves = [{"wavefront": 0, "distance": np.inf, "azimuth": a, "delay": 1e-7 * i} for i, a in enumerate(ANGLES)]
    write_ustb(tmp_path / "a.uff", waves, plane_times(ANGLES))
    recording = load_any(tmp_path / "a.uff")
    assert recording.scan.kind == "plane"
    assert recording.scan.bandwidth == pytest.approx(0.6)
    assert recording.scan.element_width == pytest.approx(0.18e-3)
    assert_echo_from(recording, POINT)


def test_ustb_diverging_waves(tmp_path: Path, assert_echo_from: Law) -> None:
    """Source 6 mm behind the array, left and right; time zero is the passage through the origin."""
    sources = np.array([[-1e-3, 0.0, -6e-3], [1.5e-3, 0.0, -6e-3]])
    distance = np.linalg.norm(sources, axis=1)
    azimuth = np.arctan2(sources[:, 0], sources[:, 2])
    places = zip(distance, azimuth, strict=True)
    waves = [{"wavefront": 1, "distance": d, "azimuth": a, "delay": 2e-7} for d, a in places]
    write_ustb(tmp_path / "a.uff", waves, (np.linalg.norm(sources - POINT, axis=1) - distance) / C)
    recording = load_any(tmp_path / "a.uff")
    assert recording.scan.kind == "focused"
    np.testing.assert_allclose(recording.scan.focus_distance, -distance, rtol=1e-6)
    assert recording.scan.angles[0] > 0 > recording.scan.angles[1]  # a source on the left sends to the right
    assert_echo_from(recording, POINT)


def test_ustb_focused_waves_meet_in_the_focus(tmp_path: Path, assert_echo_from: Law) -> None:
    distance = float(np.linalg.norm(POINT))
    waves = [{"wavefront": 1, "distance": distance, "azimuth": float(np.arctan2(POINT[0], POINT[2])), "delay": 0.0}]
    write_ustb(tmp_path / "a.uff", waves, np.array([distance / C]))
    recording = load_any(tmp_path / "a.uff")
    assert recording.scan.focus_distance[0] == pytest.approx(distance, rel=1e-6)
    arrivals = recording.scan.delays[0] + np.linalg.norm(recording.scan.elements - POINT, axis=1) / C
    assert np.ptp(arrivals) < 1e-11
    assert_echo_from(recording, POINT)


def test_ustb_single_elements_are_a_matrix(tmp_path: Path, assert_echo_from: Law) -> None:
    """Synthetic aperture in USTB: the source lies on an element, time zero is still the passage through the origin."""
    x = ELEMENTS[[3, 20], 0]
    waves = [{"wavefront": 1, "distance": abs(v), "azimuth": np.pi / 2 * np.sign(v), "delay": 0.0} for v in x]
    write_ustb(tmp_path / "a.uff", waves, BACK[[3, 20]] - np.abs(x) / C)
    recording = load_any(tmp_path / "a.uff")
    assert recording.scan.kind == "matrix"
    np.testing.assert_array_equal(recording.scan.apodization.argmax(1), [3, 20])
    assert_echo_from(recording, POINT)


@pytest.mark.parametrize("mapping", [None, np.arange(4, 28)])
def test_uff3_events_have_own_clocks(mapping: np.ndarray | None, tmp_path: Path, assert_echo_from: Law) -> None:
    write_uff3(tmp_path / "a.uff", ANGLES, mapping)
    recording = load_any(tmp_path / "a.uff")
    assert recording.scan.center_frequency == pytest.approx(FC, rel=0.03)
    np.testing.assert_allclose(recording.scan.angles, ANGLES)
    assert recording.rf.shape[3] == (32 if mapping is None else 24)
    assert_echo_from(recording, POINT)


@pytest.mark.parametrize("version", ["5", "7", "7.3"])
def test_must_structs_in_every_matlab_version(version: str, tmp_path: Path, assert_echo_from: Law) -> None:
    path = tmp_path / "a.mat"
    if version == "7.3":
        write_matlab73(path, must_struct(ANGLES))
    else:
        scipy.io.savemat(path, must_struct(ANGLES), do_compression=version == "7")
    assert sniff(path) == ("matlab73" if version == "7.3" else "matlab5")
    recording = load_any(path)
    assert recording.rf.shape == (1, 3, 640, 32)
    np.testing.assert_allclose(recording.scan.angles, ANGLES, atol=1e-9)
    assert recording.scan.bandwidth == pytest.approx(0.7)
    assert_echo_from(recording, POINT)


def test_must_frames_of_one_event(tmp_path: Path) -> None:
    struct = must_struct(np.zeros(1))
    struct["RF"] = np.repeat(struct["RF"], 4, axis=2) * np.arange(1, 5)
    scipy.io.savemat(tmp_path / "a.mat", struct)
    recording = load_any(tmp_path / "a.mat")
    assert recording.rf.shape == (4, 1, 640, 32)
    np.testing.assert_allclose(recording.rf[3], 4 * recording.rf[0], rtol=1e-6, atol=1e-30)


def test_must_delays_that_are_no_plane_wave_are_refused(tmp_path: Path) -> None:
    struct = must_struct(np.zeros(1))
    struct["param"]["TXdelay"] = np.abs(ELEMENTS[:, 0])[None] / C
    scipy.io.savemat(tmp_path / "a.mat", struct)
    with pytest.raises(UsageError, match="not those of a plane wave"):
        load_any(tmp_path / "a.mat")


@pytest.mark.parametrize("version", ["5", "7.3"])
def test_half_a_matrix_becomes_the_full_one_by_reciprocity(version: str, tmp_path: Path, assert_echo_from: Law) -> None:
    path = tmp_path / "a.mat"
    (write_matlab73 if version == "7.3" else scipy.io.savemat)(path, half_matrix())
    recording = load_any(path)
    assert recording.scan.kind == "matrix" and recording.rf.shape == (1, 32, 640, 32)
    np.testing.assert_array_equal(recording.rf[0], recording.rf[0].transpose(2, 1, 0))
    assert_echo_from(recording, POINT)


def test_a_matrix_with_holes_is_refused(tmp_path: Path) -> None:
    data = half_matrix()
    for name in ("tx", "rx"):
        data["exp_data"][name] = data["exp_data"][name][5:]
    data["exp_data"]["time_data"] = data["exp_data"]["time_data"][:, 5:]
    scipy.io.savemat(tmp_path / "a.mat", data)
    with pytest.raises(UsageError, match="pairs are missing"):
        load_any(tmp_path / "a.mat")


@pytest.mark.parametrize(("value", "fraction"), [(0.75, 0.75), (75.0, 0.75), (3.75e6, 0.75), (120.0, 1.2), (1.2, 1.2)])
def test_bandwidth_in_every_unit(value: float, fraction: float) -> None:
    assert convert.matlab.fractional_bandwidth(value, 5e6) == pytest.approx(fraction)


@pytest.mark.parametrize(("fs", "mirrored"), [(20e6, False), (20 / 3 * 1e6, True), (4.9e6, False), (9.9e6, True)])
def test_a_band_in_an_even_nyquist_zone_is_mirrored(fs: float, mirrored: bool) -> None:
    """Sample 4.9 and 5.1 MHz at fs: where the order of the two aliases is reversed, the spectrum is mirrored."""
    alias = [abs(f - fs * round(f / fs)) for f in (5.0e6 - 1e3, 5.0e6 + 1e3)]
    assert (alias[0] > alias[1]) == mirrored
    assert convert.matlab.undersampled(5e6, fs) == mirrored


# --- NumPy, geometry, payloads -----------------------------------------------------------------------------------

GEOMETRY: dict[str, Any] = {
    "center_frequency": FC,
    "sampling_frequency": FS,
    "pitch": PITCH,
    "angles": ANGLES.tolist(),
    "sound_speed": C,
    "start_times": 1e-6,
}


def numpy_rf() -> np.ndarray:
    return echoes(plane_times(ANGLES), np.full(3, 1e-6)).astype(np.float32)


def test_npz_with_named_geometry(tmp_path: Path, assert_echo_from: Law) -> None:
    np.savez(tmp_path / "a.npz", rf=numpy_rf(), **GEOMETRY)
    assert_echo_from(load_any(tmp_path / "a.npz"), POINT)


@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_npy_with_a_geometry_file(suffix: str, tmp_path: Path, assert_echo_from: Law) -> None:
    np.save(tmp_path / "a.npy", numpy_rf())
    text = json.dumps(GEOMETRY) if suffix == "json" else "\n".join(f"{k} = {v}" for k, v in GEOMETRY.items())
    (tmp_path / f"g.{suffix}").write_text(text)
    assert_echo_from(load_any(tmp_path / "a.npy", tmp_path / f"g.{suffix}"), POINT)


@pytest.mark.parametrize("name", ["center_frequency", "sampling_frequency", "pitch", "angles"])
def test_missing_geometry_names_the_keys_and_the_flag(name: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", rf=numpy_rf(), **{k: v for k, v in GEOMETRY.items() if k != name})
    with pytest.raises(UsageError, match=rf"geometry is missing.*{name}.*--geometry"):
        load_any(tmp_path / "a.npz")


def test_npy_without_geometry_says_how_to_give_it(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numpy_rf())
    with pytest.raises(UsageError, match=r"geometry is missing.*--geometry"):
        load_any(tmp_path / "a.npy")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"pitch": 0.2}, "millimetres"),
        ({"center_frequency": 5e3}, "kHz"),
        ({"sampling_frequency": 40.0}, "MHz"),
        ({"sampling_frequency": -40e6}, "positive"),
        ({"angles": [-10.0, 0.0, 6.0]}, "radians"),
        ({"start_times": 2.0}, "seconds"),
        ({"sound_speed": 1.5}, "metres per second"),
        ({"pitch": "wide"}, "no number"),
        ({"angles": [0.0, 0.1]}, "shape"),
        ({"centre_frequency": 5e6}, "did you mean 'center_frequency'"),
    ],
)
def test_absurd_geometry_is_named(change: dict[str, Any], word: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", numpy_rf())
    with pytest.raises(UsageError, match=word) as caught:
        load_any(tmp_path / "a.npy", {**GEOMETRY, **change})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(640,), (2, 1, 3, 640, 32), (0, 3, 640, 32), (3, 32, 640)])
def test_wrong_shapes_are_named(shape: tuple[int, ...], tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones(shape, np.float32))
    with pytest.raises(UsageError, match=r"shape|elements|channels|angles"):
        load_any(tmp_path / "a.npy", {**GEOMETRY, "elements": ELEMENTS.tolist()})


@pytest.mark.parametrize(("value", "word"), [(np.nan, "NaN"), (np.inf, "NaN or infinite"), (0.0, "all zero")])
def test_unusable_samples_are_named(value: float, word: str, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.full((3, 640, 32), value))
    with pytest.raises(UsageError, match=rf"a\.npy.*{word}"):
        load_any(tmp_path / "a.npy", GEOMETRY)


class Payload:
    """Unpickling this would create a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("container", ["npy", "npz"])
def test_object_arrays_are_never_unpickled(container: str, tmp_path: Path) -> None:
    evil = np.array([Payload(tmp_path / "owned")], dtype=object)
    if container == "npy":
        np.save(tmp_path / "a.npy", evil, allow_pickle=True)
    else:
        np.savez(tmp_path / "a.npz", rf=evil, allow_pickle=True)
    with pytest.raises(UsageError, match="never unpickled"):
        load_any(tmp_path / f"a.{container}", GEOMETRY)
    assert not (tmp_path / "owned").exists()
    np.load(tmp_path / f"a.{container}", allow_pickle=True)["rf" if container == "npz" else ...]
    assert (tmp_path / "owned").exists(), "the payload is harmless, so the test proves nothing"


def test_a_npy_that_declares_terabytes_is_refused(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 3, 640, 32)})
    (tmp_path / "a.npy").write_bytes(header.getvalue())
    with pytest.raises(UsageError, match="GiB"):
        load_any(tmp_path / "a.npy", GEOMETRY)


def test_a_zip_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (10**7, 3, 640, 32)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rf.npy", header.getvalue() + bytes(10**6))
    with pytest.raises(UsageError, match="GiB"):
        load_any(tmp_path / "a.npz")


@pytest.mark.parametrize("header", [b"{'descr': '<f4', (", b"((((((((", b"\xff\xfe", b"{1: 2}", b"[[["])
def test_a_damaged_npy_header_is_one_line(header: bytes, tmp_path: Path) -> None:
    """NumPy reads headers with a Python tokenizer, which fails in ways of its own."""
    body = header.ljust(118) + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body + bytes(64))
    with pytest.raises(UsageError, match="not a readable NumPy file"):
        load_any(tmp_path / "a.npy", GEOMETRY)


@pytest.mark.parametrize(
    ("head", "word"),
    [
        (b"\x89PNG\r\n\x1a\n", "picture"),
        (bytes(128) + b"DICM", "never RF"),
        (b"frame,value\n1,2\n", "no known format"),
        (b"\x80\x02c__builtin__\neval\n.", "torch"),
        (b"", "empty"),
    ],
)
def test_what_cannot_hold_rf_says_why(head: bytes, word: str, tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(head)
    with pytest.raises(UsageError, match=word):
        load_any(tmp_path / "a.h5")


def test_a_missing_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_any(tmp_path / "none.h5")
    with pytest.raises(UsageError, match="is a folder"):
        load_any(tmp_path)


def write_npz(path: Path) -> None:
    with path.open("wb") as stream:
        np.savez_compressed(stream, rf=numpy_rf(), **GEOMETRY)


WRITERS: dict[str, Callable[[Path], None]] = {
    "picmus": write_picmus,
    "ustb": lambda p: write_ustb(p, [{"wavefront": 0, "distance": np.inf, "delay": 0.0}], plane_times(np.zeros(1))),
    "uff3": lambda p: write_uff3(p, ANGLES),
    "mat5": lambda p: scipy.io.savemat(p, must_struct(ANGLES)),
    "mat73": lambda p: write_matlab73(p, must_struct(ANGLES)),
    "npz": write_npz,
}


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("keep", [0.05, 0.4, 0.9, 0.999])
def test_truncated_files_of_every_format(form: str, keep: float, tmp_path: Path) -> None:
    """Cut anywhere, a file either says so in one line or (cut in what nobody reads) gives the same RF."""
    WRITERS[form](tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    intact = load_any(tmp_path / "a").rf
    (tmp_path / "a").write_bytes(whole[: int(len(whole) * keep)])
    try:
        found = load_any(tmp_path / "a").rf
    except UsageError as error:
        assert "\n" not in str(error)
        assert validate(tmp_path / "a")[0].message == str(error)
    else:
        np.testing.assert_array_equal(found, intact)


HEADS = (
    b"",
    b"\x89HDF\r\n\x1a\n",
    b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM",
    b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n",
    b"\x93NUMPY\x01\x00",
    b"PK\x03\x04",
    b"\x80\x02",
)
FUZZ = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])


@settings(FUZZ, max_examples=150)
@given(head=st.sampled_from(HEADS), tail=st.binary(max_size=400))
def test_arbitrary_bytes_give_nothing_but_a_usage_error(head: bytes, tail: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head + tail)
    with pytest.raises(UsageError):
        load_any(tmp_path / "a")


@settings(FUZZ, max_examples=120)
@given(form=st.sampled_from(["mat5", "npz", "picmus", "ustb"]), at=st.floats(0, 1), value=st.integers(0, 255))
def test_a_damaged_byte_never_escapes(form: str, at: float, value: int, tmp_path: Path) -> None:
    """One byte changed in a good file: RF that passes the checks, or one line; never another exception."""
    if not (tmp_path / form).exists():
        WRITERS[form](tmp_path / form)
    content = bytearray((tmp_path / form).read_bytes())
    region = min(len(content), 4000) if form != "npz" else len(content)
    content[min(int(at * region), region - 1)] = value
    (tmp_path / "damaged").write_bytes(bytes(content))
    try:
        load_any(tmp_path / "damaged").validate()
    except UsageError as error:
        assert "\n" not in str(error)


# --- third-party sets --------------------------------------------------------------------------------------------


def test_field_ii_set(shared_data: Shared) -> None:
    """README: 192 elements, 2313 samples, -12, 0, 12 degrees, 20 MHz, sample 0 at -3.6625 us."""
    recording = load_any(shared_data("rf-fieldii-planewave3") / "rf_dataset.hdf5")
    scan = recording.scan
    assert recording.rf.shape == (1, 3, 2313, 192)
    assert (recording.rf.min(), recording.rf.max()) == (-2733, 2758)
    np.testing.assert_allclose(np.degrees(scan.angles), [-12, 0, 12], atol=1e-9)
    np.testing.assert_allclose(scan.start_times, -3.6625e-6)
    assert (scan.sampling_frequency, scan.center_frequency) == (20e6, 5.2083e6)
    assert scan.bandwidth == pytest.approx(0.752, abs=1e-3)
    np.testing.assert_allclose(np.diff(scan.elements[:, 0]), 0.23e-3)
    assert scan.element_width == pytest.approx(0.207e-3)
    assert np.all(np.diff(scan.delays[2]) > 0), "+12 degrees must fire towards +x"
    assert abs(scan.pulse_delay) < 0.1 / scan.center_frequency, "the shift of the set already centres the pulse"


def test_field_ii_echo_of_an_isolated_point(shared_data: Shared) -> None:
    """Summed at f/1.5 by the scan's clock, all three angles put the point at z = 22.18 mm to one depth.

    That depth is 0.18 mm too deep, the constant offset that the README measured for this set.
    """
    recording = load_any(shared_data("rf-fieldii-planewave3") / "rf_dataset.hdf5")
    scan = recording.scan
    depth = np.arange(21.6e-3, 23.0e-3, 5e-6)
    far = np.hypot(scan.elements[:, 0], depth[:, None])
    for event, angle in enumerate(scan.angles):
        at = (depth[:, None] * np.cos(angle) + far) / scan.sound_speed - scan.start_times[event]
        analytic = scipy.signal.hilbert(recording.rf[0, event], axis=0)
        clock = np.arange(len(analytic)) / scan.sampling_frequency
        aperture = np.flatnonzero(np.abs(scan.elements[:, 0]) < 22.18e-3 / 2 / 1.5)
        line = sum(np.interp(at[:, el], clock, analytic[:, el]) for el in aperture)
        assert depth[np.abs(line).argmax()] == pytest.approx(22.18e-3 + 0.18e-3, abs=0.06e-3), f"event {event}"


def test_verasonics_set(shared_data: Shared) -> None:
    """README: 334 samples, 128 elements, 32 frames, 6.6667 MHz for 5 MHz, t0 9.95 us, 15 % bandwidth."""
    recording = load_any(shared_data("rf-verasonics-disk") / "PWI_disk.mat")
    scan = recording.scan
    assert recording.rf.shape == (32, 1, 334, 128)
    assert (recording.rf.min(), recording.rf.max()) == (-2667, 2667)
    assert scan.sampling_frequency == pytest.approx(6.6667e6, rel=1e-5)
    assert scan.spectrum_reversed
    assert (scan.center_frequency, scan.sound_speed) == (5e6, 1480)
    assert scan.start_times[0] == pytest.approx(9.95e-6) and scan.bandwidth == pytest.approx(0.15)
    assert scan.element_width == pytest.approx(0.262e-3)
    np.testing.assert_allclose(np.diff(scan.elements[:, 0]), 0.298e-3)
    spectrum = np.abs(np.fft.rfft(recording.rf[0, 0], axis=0)).sum(1)
    peak = np.fft.rfftfreq(334, 1 / scan.sampling_frequency)[spectrum.argmax()]
    assert peak == pytest.approx(1.667e6, rel=0.15)


def test_aluminium_set(shared_data: Shared) -> None:
    """README: 64 elements, 750 samples at 25 MHz from 0, pitch 0.30 mm, 6300 m/s; reciprocity fills the matrix."""
    path = shared_data("rf-fmc-aluminium") / "contact_notch_aluminium.mat"
    recording = load_any(path)
    scan = recording.scan
    assert recording.rf.shape == (1, 64, 750, 64) and scan.kind == "matrix"
    assert (scan.sampling_frequency, scan.sound_speed) == (pytest.approx(25e6), 6300)
    np.testing.assert_allclose(np.diff(scan.elements[:, 0]), 0.30e-3)
    np.testing.assert_array_equal(recording.rf[0], recording.rf[0].transpose(2, 1, 0))
    raw = scipy.io.loadmat(path)["exp_data"][0, 0]
    tx, rx = raw["tx"].ravel(), raw["rx"].ravel()
    trace = 1234
    np.testing.assert_allclose(recording.rf[0, tx[trace] - 1, :, rx[trace] - 1], raw["time_data"][:, trace], rtol=1e-6)


# --- what the command line calls ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["h5", "npz"])
@pytest.mark.parametrize("kind", ["plane", "walking", "matrix"])
def test_converting_keeps_rf_and_scan(suffix: str, kind: str, tmp_path: Path, make_recording: Make) -> None:
    write_recording(tmp_path / "a.h5", make_recording(kind))
    done = convert.convert(tmp_path / "a.h5", tmp_path / f"b.{suffix}")
    before, after = read_recording(tmp_path / "a.h5"), load_any(tmp_path / f"b.{suffix}")
    assert done["kind"] == "rf" and done["rf"]["frames"] == 2
    np.testing.assert_array_equal(after.rf, before.rf)
    for field in fields(Scan):
        np.testing.assert_equal(getattr(after.scan, field.name), getattr(before.scan, field.name), err_msg=field.name)


def test_converting_a_foreign_file_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    write_picmus(tmp_path / "a.hdf5")
    for name in ("b.h5", "c.h5"):
        convert.convert(tmp_path / "a.hdf5", tmp_path / name)
    assert (tmp_path / "b.h5").read_bytes() == (tmp_path / "c.h5").read_bytes()
    assert validate(tmp_path / "b.h5")[0].level == "warning"  # no truth, nothing else
    assert info(tmp_path / "b.h5")["scan"]["kind"] == "plane"


def test_strip_drops_who_was_scanned(tmp_path: Path, make_recording: Make, make_cases: MakeCases) -> None:
    who = {"id": "patient 7", "age": 61, "sex": "f", "weight": 70.5}
    write_recording(tmp_path / "a.h5", make_recording(), cases=make_cases(), subject=who, snr_db=30.0)
    with edited(tmp_path / "a.h5") as file:
        file["metadata/text_report"] = "patient 7 coughs"
    done = convert.convert(tmp_path / "a.h5", tmp_path / "b.h5")
    assert {"subject/id", "subject/age", "text_report", "description"} <= set(done["dropped"])
    assert b"patient 7" not in (tmp_path / "b.h5").read_bytes()
    with h5py.File(tmp_path / "b.h5") as file:
        assert schema.METADATA not in file
        assert file[schema.RAW.path].attrs[schema.ATTR_SNR] == 30.0
        assert schema.BASE_ID.path in file, "the truth of simulated cases is no personal data"
    kept = convert.convert(tmp_path / "a.h5", tmp_path / "c.h5", strip=False)
    assert kept["dropped"] == ["text_report"]
    with h5py.File(tmp_path / "c.h5") as file:
        assert file[f"{schema.SUBJECT}/id"].asstr()[()] == "patient 7" and file.attrs["description"] == "noise"


def test_geometry_overrides_what_a_file_states(tmp_path: Path) -> None:
    write_picmus(tmp_path / "a.hdf5")
    before = load_any(tmp_path / "a.hdf5").scan
    changed = load_any(tmp_path / "a.hdf5", {"center_frequency": 6e6, "start_times": 0.0}).scan
    assert changed.center_frequency == 6e6 and not changed.start_times.any()
    np.testing.assert_array_equal(changed.angles, before.angles)
    with pytest.raises(UsageError, match="unknown geometry field"):
        load_any(tmp_path / "a.hdf5", {"speed": 1540.0})


def test_a_failed_conversion_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(UsageError):
        convert.convert(tmp_path / "a.h5", tmp_path / "out" / "b.h5")
    assert not (tmp_path / "out").exists()


def test_bad_destinations(tmp_path: Path) -> None:
    write_picmus(tmp_path / "a.hdf5")
    with pytest.raises(UsageError, match="change the suffix"):
        convert.convert(tmp_path / "a.hdf5", tmp_path / "b.mat")
    with pytest.raises(UsageError, match="source itself"):
        convert.convert(tmp_path / "a.hdf5", tmp_path / "a.hdf5")


@pytest.mark.parametrize("form", WRITERS)
def test_info_is_json_for_every_format(form: str, tmp_path: Path) -> None:
    WRITERS[form](tmp_path / "a")
    found = json.loads(json.dumps(info(tmp_path / "a"), allow_nan=False))
    assert found["rf"]["channels"] == 32 and found["scan"]["sampling_frequency_mhz"] == 40.0
    assert validate(tmp_path / "a") == []


def test_a_legacy_pickle_is_no_rf(tmp_path: Path) -> None:
    (tmp_path / "a.h5").write_bytes(pickle.dumps(Payload(tmp_path / "owned")))
    with pytest.raises(UsageError):
        load_any(tmp_path / "a.h5")
    assert not (tmp_path / "owned").exists()
