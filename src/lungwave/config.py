"""Frozen dataclasses that fix a run, and the one table of presets.

TOML in (``Config.load``), JSON out (``Config.to_json``). Unknown keys are answered with the nearest known one.
Lengths are metres, times seconds, frequencies hertz and angles degrees, in the file as in the code.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
import types
import typing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from lungwave.types import MHZ, MM, NS, UM, US, UsageError

T = TypeVar("T")
Range = tuple[float, float]


class _Canonical:
    """Floats are kept to 12 digits, so that ``50 * UM`` and ``5e-5`` are one setting with one digest."""

    def __post_init__(self) -> None:
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            object.__setattr__(self, item.name, _canonical(getattr(self, item.name)))


def _canonical(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_canonical(v) for v in value)
    return float(f"{value:.12g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class ProbeConfig(_Canonical):
    """A linear array at z = 0, centred on x = 0."""

    elements: int = 32  # receive elements that one event records
    pitch: float = 0.25 * MM  # [m] centre to centre
    width: float = 0.25 * MM  # [m] radiating width of an element, <= pitch
    center_frequency: float = 3.0 * MHZ  # [Hz]
    cycles: float = 2.0  # length of the transmit pulse in periods (lung-ultrasound practice, JASA 154:2410)
    array_elements: int = 0  # elements of the whole array when the aperture walks; 0 = ``elements``
    face_reflection: float = 0.2  # pressure reflection of the probe face, makes A-lines; 0 = absorbing


@dataclass(frozen=True)
class SequenceConfig(_Canonical):
    """Transmit events."""

    kind: Literal["plane", "focused", "matrix"] = "plane"  # "matrix": one element fires, all listen
    angles: tuple[float, ...] = (-8.0, 0.0, 8.0)  # [deg] plane waves; positive steers towards +x
    focus: float = 20.0 * MM  # [m] depth of the focus, "focused" only
    events: int = 16  # number of events, "focused" (walking aperture) and "matrix" (first elements) only
    event_step: int = 1  # elements that the aperture walks between two events, "focused" only


@dataclass(frozen=True)
class GridConfig(_Canonical):
    """The solver's grid; the absorbing layer lies outside it."""

    spacing: float = 50 * UM  # [m] cell size, both axes
    depth: float = 11.2 * MM  # [m]
    width: float = 9.6 * MM  # [m] of the window of one event
    time_step: float = 13.4 * NS  # [s]
    steps: int = 1195  # of the solver; steps * time_step is the length of the record
    order: Literal[2, 4, 6, 8] = 8  # spatial order; time dispersion is always corrected
    pml_cells: int = 20  # width of the absorbing layer
    attenuation: bool = True  # one relaxation mechanism, exact at the centre frequency
    gradient_stride: int = 5  # steps between stored fields of the adjoint; divides ``steps``


@dataclass(frozen=True)
class ReceiveConfig(_Canonical):
    """Receive chain: dead time, band-pass, sampling, noise."""

    sampling_frequency: float = 12.0 * MHZ  # [Hz]
    bandwidth: float = 1.2  # full width of the pass-band over the centre frequency (-6 dB)
    dead_time: float = 0.8 * US  # [s] after the last firing, transmit/receive switch; tapered
    echo_start: float = 3.2 * US  # [s] the SNR refers to the RMS of the echoes after this time
    snr_db: float = 30.0  # [dB] of the noise that a demo, a simulation or a reader adds; inf = none
    gain_db: float = 0.0  # [dB] of the receiver, the same for every channel
    dropped_elements: int = 0  # random receive channels that are silent


@dataclass(frozen=True)
class WallConfig(_Canonical):
    """Chest wall: ranges that each case is drawn from (lung-ultrasound literature, docs/physics)."""

    skin: Range = (1.0 * MM, 1.6 * MM)  # [m]
    fat: Range = (0.5 * MM, 1.2 * MM)  # [m]
    muscle: Range = (0.8 * MM, 1.8 * MM)  # [m]
    fascia: Range = (0.15 * MM, 0.15 * MM)  # [m] with the parietal pleura
    fluid: Range = (0.02 * MM, 0.1 * MM)  # [m] pleural fluid without effusion
    effusion: Range = (0.5 * MM, 2.0 * MM)  # [m]
    visceral: Range = (0.1 * MM, 0.15 * MM)  # [m] visceral pleura
    thickened: Range = (0.3 * MM, 0.6 * MM)  # [m] visceral pleura in disease
    pleura_depth: Range = (3.0 * MM, 4.5 * MM)  # [m] allowed depth of the lung surface
    waviness: Range = (0.03 * MM, 0.15 * MM)  # [m] amplitude of the long waves of skin, fascia and pleurae
    fat_waviness: Range = (0.05 * MM, 0.2 * MM)  # [m] between fat and muscle, over twice the periods
    wave_period: Range = (5.0 * MM, 20.0 * MM)  # [m]
    rough: Range = (20 * UM, 60 * UM)  # [m] standard deviation of the visceral surface
    rough_length: Range = (0.5 * MM, 2.0 * MM)  # [m]
    fascia_rough: float = 20 * UM  # [m] standard deviation of the skin-fat and fat-muscle faces around their waves
    fascia_length: float = 0.5 * MM  # [m] correlation length of that roughness
    fat_strands: Range = (0.15, 0.30)  # area share of connective strands in fat
    muscle_strands: Range = (0.14, 0.25)  # area share of fascicle strands in muscle
    strand: Range = (0.06 * MM, 0.15 * MM)  # [m] mean thickness of a strand
    rib_width: Range = (2.0 * MM, 3.0 * MM)  # [m] axes of the ellipse
    rib_height: Range = (0.8 * MM, 1.2 * MM)  # [m]
    pneumothorax: Range = (0.3 * MM, 1.5 * MM)  # [m] thickness of the air
    texture: float = 50 * UM  # [m] size of a scatterer
    scatter: Range = (0.02, 0.035)  # standard deviation of the relative density of a scatterer
    jitter: tuple[float, float, float] = (0.015, 0.02, 0.2)  # std of sound speed, density, attenuation of a layer


@dataclass(frozen=True)
class LungConfig(_Canonical):
    """Alveolar field and categories."""

    spacing: Range = (0.30 * MM, 0.45 * MM)  # [m] mean distance of alveolar seeds
    septum: float = 50 * UM  # [m] septal thickness
    disorder: float = 0.3  # std of a seed around its hexagonal place, in units of the spacing
    duct_fraction: Range = (0.0, 0.2)  # share of cells merged into ducts of 2-6
    categories: tuple[str, ...] = ("healthy", "interstitial", "consolidation")  # also "fibrosis"
    weights: tuple[float, ...] = (1.0, 1.0, 1.0)  # how often each category is drawn, one to another
    rib_probability: float = 0.0  # of a rib across the window
    effusion_probability: float = 0.0  # of fluid between the pleurae
    pneumothorax_probability: float = 0.0  # of air between the pleurae
    bases: int = 0  # base anatomies that cases share; 0 = every case has its own
    oversampling: int = 2  # truth is rasterised this much finer than the solver's grid


@dataclass(frozen=True)
class MapConfig(_Canonical):
    """Aeration maps, pleura-flattened: row 0 touches the visceral pleura."""

    pixel: float = 0.1 * MM  # [m]
    rows: int = 64  # pixels down from the pleura
    columns: int = 64  # pixels across
    sigma_sharp: float = 0.15 * MM  # [m] about one alveolus
    sigma_smooth: float = 0.5 * MM  # [m] a 1-2 mm window
    bands: tuple[float, ...] = (0.0, 0.5 * MM, 1.0 * MM, 2.0 * MM, 4.0 * MM, 6.0 * MM)  # [m] edges


@dataclass(frozen=True)
class Config:
    """Everything that decides a case, so that (config, index) -> case is a pure function."""

    preset: str = "tiny"
    seed: int = 0
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    sequence: SequenceConfig = field(default_factory=SequenceConfig)
    grid: GridConfig = field(default_factory=GridConfig)
    receive: ReceiveConfig = field(default_factory=ReceiveConfig)
    wall: WallConfig = field(default_factory=WallConfig)
    lung: LungConfig = field(default_factory=LungConfig)
    map: MapConfig = field(default_factory=MapConfig)

    def to_json(self) -> str:
        """Canonical JSON; infinities are written as strings so that any reader accepts the file."""
        return json.dumps(_jsonable(dataclasses.asdict(self)), indent=2, sort_keys=True, allow_nan=False)

    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of the canonical JSON."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]

    def override(self, changes: dict[str, Any]) -> Config:
        """Apply nested or dotted keys, as ``{"grid.spacing": 5e-5}``; unknown keys, wrong types raise UsageError."""
        nested: dict[str, Any] = {}
        for key, value in changes.items():
            node = nested
            *parents, leaf = key.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
                if not isinstance(node, dict):
                    raise UsageError(f"'{parent}' is a table of settings, got {node!r}")
            node[leaf] = value
        changed = _apply(self, nested, "")
        _check_bounds(changed, "")
        return changed

    @staticmethod
    def load(path: str | Path) -> Config:
        """Read TOML (or the JSON this class writes). The optional key ``preset`` names what the rest overrides."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            values = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror or error}; give a readable TOML file") from None
        except (tomllib.TOMLDecodeError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not valid {path.suffix[1:].upper() or 'TOML'} ({error})") from None
        if not isinstance(values, dict):
            raise UsageError(f"{path}: holds {values!r:.40}; give a table of settings")
        name = values.pop("preset", "tiny")
        if not isinstance(name, str):
            raise UsageError(f"{path}: preset is {name!r}; give one of {', '.join(PRESETS)}")
        return preset(name).override(values)


def _jsonable(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _apply(node: T, changes: dict[str, Any], path: str) -> T:
    hints = typing.get_type_hints(type(node))
    updates = {}
    for key, value in changes.items():
        where = f"{path}{key}"
        if key not in hints:
            near = difflib.get_close_matches(key, hints, n=1, cutoff=0.5)
            raise UsageError(
                f"unknown setting '{where}'"
                + (f"; did you mean '{path}{near[0]}'?" if near else f"; known: {', '.join(hints)}")
            )
        current = getattr(node, key)
        if dataclasses.is_dataclass(current):
            if not isinstance(value, dict):
                raise UsageError(f"'{where}' is a table of settings, got {value!r}")
            updates[key] = _apply(current, value, f"{where}.")
        else:
            updates[key] = _coerce(value, hints[key], where)
    return replace(node, **updates)  # type: ignore[type-var]


def _coerce(value: Any, hint: Any, where: str) -> Any:
    """Return ``value`` as ``hint`` (bool, int, float, str, Literal, tuple of those) or raise UsageError."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        for allowed in typing.get_args(hint):
            if value == allowed:
                return allowed
        raise UsageError(f"'{where}' must be one of {', '.join(map(str, typing.get_args(hint)))}, got {value!r}")
    if origin in (typing.Union, types.UnionType):
        raise AssertionError(f"config field {where} uses a union, which TOML cannot say")
    if origin is tuple:
        args = typing.get_args(hint)
        if not isinstance(value, (list, tuple)):
            raise UsageError(f"'{where}' must be a list, got {value!r}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else list(args)
        if len(kinds) != len(value):
            raise UsageError(f"'{where}' needs {len(kinds)} values, got {len(value)}")
        return tuple(_coerce(v, k, f"{where}[{i}]") for i, (v, k) in enumerate(zip(value, kinds, strict=True)))
    try:
        if hint is float and not isinstance(value, bool):
            return float(value)
        if hint is int and not isinstance(value, bool) and (isinstance(value, int) or float(value).is_integer()):
            return int(value)
        if hint is bool and isinstance(value, bool):
            return value
        if hint is str and isinstance(value, str):
            return value
    except (TypeError, ValueError, OverflowError):
        pass
    raise UsageError(f"'{where}' must be {hint.__name__}, got {value!r}")


# Least and most of each number, to catch a wrong sign or unit before anything is computed; finer limits stand where the
# value is used. A table's own name covers all of its settings that are not listed.
BOUNDS: dict[str, tuple[float, float, str]] = {
    "seed": (0, 2**63 - 1, "a whole number"),
    "probe.elements": (1, 4096, "elements"),
    "probe.pitch": (1 * UM, 10 * MM, "metres (is this millimetres?)"),
    "probe.width": (1 * UM, 10 * MM, "metres (is this millimetres?)"),
    "probe.center_frequency": (0.1 * MHZ, 100 * MHZ, "hertz (is this kHz or MHz?)"),
    "probe.cycles": (0.5, 100, "periods"),
    "probe.array_elements": (0, 4096, "elements"),
    "probe.face_reflection": (0, 1, "a fraction"),
    "sequence.angles": (-90, 90, "degrees"),
    "sequence.focus": (0.1 * MM, 0.5, "metres (is this millimetres?)"),
    "sequence.events": (1, 4096, "events"),
    "sequence.event_step": (0, 4096, "elements"),
    "grid.spacing": (1 * UM, 1 * MM, "metres (is this micrometres?)"),
    "grid.depth": (0.1 * MM, 0.5, "metres (is this millimetres?)"),
    "grid.width": (0.1 * MM, 0.5, "metres (is this millimetres?)"),
    "grid.time_step": (0.01 * NS, 1 * US, "seconds (is this nanoseconds?)"),
    "grid.steps": (1, 1_000_000, "steps"),
    "grid.order": (2, 8, "an order"),
    "grid.pml_cells": (1, 1000, "cells"),
    "grid.gradient_stride": (1, 10_000, "steps"),
    "receive.sampling_frequency": (0.1 * MHZ, 1000 * MHZ, "hertz (is this kHz or MHz?)"),
    "receive.bandwidth": (0.01, 4, "a fraction of the centre frequency"),
    "receive.dead_time": (0, 1000 * US, "seconds (is this microseconds?)"),
    "receive.echo_start": (0, 1000 * US, "seconds (is this microseconds?)"),
    "receive.snr_db": (-60, math.inf, "decibels"),
    "receive.gain_db": (-200, 200, "decibels"),
    "receive.dropped_elements": (0, 4096, "elements"),
    "wall": (0, 0.2, "metres (is this millimetres?)"),
    "wall.scatter": (0, 0.25, "a fraction"),
    "wall.fat_strands": (0.01, 0.9, "a fraction"),
    "wall.muscle_strands": (0.01, 0.9, "a fraction"),
    "wall.strand": (1 * UM, 10 * MM, "metres (is this millimetres?)"),
    "wall.texture": (1 * UM, 10 * MM, "metres (is this millimetres?)"),
    "wall.wave_period": (0.1 * MM, 1.0, "metres (is this millimetres?)"),
    "wall.rough_length": (0.01 * MM, 1.0, "metres (is this millimetres?)"),
    "wall.fascia_length": (0.01 * MM, 1.0, "metres (is this millimetres?)"),
    "wall.jitter": (0, 1, "a fraction"),
    "lung.spacing": (1 * UM, 10 * MM, "metres (is this millimetres?)"),
    "lung.septum": (0, 10 * MM, "metres (is this millimetres?)"),
    "lung.weights": (0, 1e6, "relative weights"),
    "lung.bases": (0, 2**31, "base anatomies"),
    "lung.oversampling": (1, 16, "fine cells a grid cell"),
    "lung": (0, 1, "a fraction"),
    "map.rows": (1, 8192, "pixels"),
    "map.columns": (1, 8192, "pixels"),
    "map": (0, 0.5, "metres (is this millimetres?)"),
}


def _check_bounds(node: Any, path: str) -> None:
    """Raise UsageError where a number lies outside ``BOUNDS`` or a range runs backwards."""
    hints = typing.get_type_hints(type(node))
    for item in dataclasses.fields(node):
        value, where = getattr(node, item.name), f"{path}{item.name}"
        if dataclasses.is_dataclass(value):
            _check_bounds(value, f"{where}.")
            continue
        numbers = [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, (int, float))]
        numbers = [v for v in numbers if not isinstance(v, bool)]
        for number in numbers:
            least, most, unit = BOUNDS.get(where) or BOUNDS[path.rstrip(".")]
            if not least <= number <= most:
                raise UsageError(f"'{where}' is {number:g}; give {unit}, {least:g} to {most:g}")
        if hints[item.name] == Range and numbers[0] > numbers[1]:
            raise UsageError(f"'{where}' runs from {numbers[0]:g} to {numbers[1]:g}; give the smaller value first")


TINY = Config()

MICRO = Config(
    preset="micro",
    probe=ProbeConfig(elements=16, pitch=0.5 * MM, width=0.5 * MM, center_frequency=1.5 * MHZ),
    sequence=SequenceConfig(angles=(0.0,)),
    grid=GridConfig(spacing=100 * UM, time_step=27 * NS, steps=595),
    receive=ReceiveConfig(sampling_frequency=6.0 * MHZ, dead_time=1.2 * US),
    wall=WallConfig(texture=100 * UM),
    lung=LungConfig(spacing=(0.6 * MM, 0.9 * MM), septum=100 * UM),
)

PAPER = Config(
    preset="paper",
    probe=ProbeConfig(
        elements=64, pitch=0.1953 * MM, width=0.1953 * MM, center_frequency=5.208 * MHZ, array_elements=192
    ),
    sequence=SequenceConfig(kind="focused", focus=20 * MM, events=16, event_step=8),
    grid=GridConfig(
        spacing=24.64 * UM, depth=35 * MM, width=25 * MM, time_step=6.65 * NS, steps=10890, gradient_stride=6
    ),
    receive=ReceiveConfig(sampling_frequency=20.833 * MHZ, echo_start=18 * US, dead_time=0.8 * US),
    wall=WallConfig(
        skin=(1.0 * MM, 2.5 * MM),
        fat=(3.0 * MM, 12.0 * MM),
        muscle=(5.0 * MM, 15.0 * MM),
        fascia=(0.2 * MM, 0.5 * MM),
        fluid=(0.02 * MM, 0.2 * MM),
        effusion=(2.0 * MM, 10.0 * MM),
        visceral=(0.1 * MM, 0.2 * MM),
        thickened=(0.3 * MM, 1.0 * MM),
        pleura_depth=(15.0 * MM, 25.0 * MM),
        waviness=(0.1 * MM, 0.5 * MM),
        fat_waviness=(1.0 * MM, 3.5 * MM),
        rough=(20 * UM, 100 * UM),
        fascia_rough=230 * UM,
        fascia_length=0.6 * MM,
        strand=(0.2 * MM, 0.5 * MM),
        rib_width=(10.0 * MM, 14.0 * MM),
        rib_height=(6.0 * MM, 9.0 * MM),
        pneumothorax=(1.0 * MM, 5.0 * MM),
        texture=25 * UM,
    ),
    lung=LungConfig(
        spacing=(0.20 * MM, 0.26 * MM),
        septum=25 * UM,
        disorder=0.35,
        duct_fraction=(0.1, 0.5),
        oversampling=2,
    ),
    map=MapConfig(columns=256),
)

PRESETS: dict[str, Config] = {"micro": MICRO, "tiny": TINY, "paper": PAPER}


def preset(name: str) -> Config:
    """Return a preset by name; an unknown name raises UsageError with the nearest one."""
    if name not in PRESETS:
        near = difflib.get_close_matches(str(name), PRESETS, n=1)
        raise UsageError(
            f"unknown preset '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(PRESETS)}")
        )
    return PRESETS[name]
