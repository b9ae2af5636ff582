"""Array, transmit sequence and pulse: who fires when, and where the listeners sit."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np
from jaxtyping import Float

from lungwave.config import Config
from lungwave.types import MHZ, MM, Frames, UsageError

Kind = Literal["plane", "focused", "matrix"]


@dataclass(frozen=True)
class Scan:
    """Geometry and timing of one acquisition: all that delay-and-sum and a file need.

    Positions are (x, y, z) in metres, z down, y = 0. ``focus_distance`` is infinite for a plane wave, 0 for a single
    element, positive for a focus in front of the array and negative for a virtual source behind it. Time zero of an
    event is the zero of its ``delays``; sample 0 of its traces is taken at ``start_times``.
    """

    elements: Float[np.ndarray, "element 3"]  # [m] element centres of the whole array
    center_frequency: float  # [Hz]
    sampling_frequency: float  # [Hz]
    delays: Float[np.ndarray, "tx el"]  # [s] firing time of each element
    apodization: Float[np.ndarray, "tx el"]  # transmit weight of each element, 0 = silent
    start_times: Float[np.ndarray, " tx"]  # [s] time of the first sample
    focus_distance: Float[np.ndarray, " tx"]  # [m] along the steering direction from ``origins``
    angles: Float[np.ndarray, " tx"]  # [rad] steering, positive towards +x
    origins: Float[np.ndarray, "tx 3"]  # [m] where each beam starts
    sound_speed: float = 1540.0  # [m/s] assumed by the beamformer
    element_width: float | None = None  # [m]
    pulse_delay: float = 0.0  # [s] from time zero to the envelope peak of the two-way pulse
    bandwidth: float = 0.6  # fractional, -6 dB
    demodulation_frequency: float = 0.0  # [Hz]; 0 = real RF
    spectrum_reversed: bool = False  # band-pass sampled so that the band appears mirrored
    rx_elements: np.ndarray | None = (
        None  # int (tx, el): element of the whole array that each channel is, walking aperture
    )

    @property
    def pitch(self) -> float:
        """Distance of neighbouring elements along the array [m], the median of all; 0 for a single element."""
        return float(np.median(np.diff(self.elements[:, 0]))) if len(self.elements) > 1 else 0.0

    @property
    def degrees(self) -> str:
        """The first eight steering angles [degree], for a sentence."""
        return ", ".join(f"{angle:.3g}" for angle in np.rad2deg(self.angles[:8]))

    @property
    def transmits(self) -> int:
        """Number of transmit events."""
        return self.delays.shape[0]

    @property
    def kind(self) -> Kind:
        """Plane waves, focused beams, or single elements (full or half matrix)."""
        if np.isinf(self.focus_distance).all():
            return "plane"
        return "matrix" if (self.focus_distance == 0).all() else "focused"

    def equals(self, other: Scan) -> bool:
        """Whether all of it is the same, to the bit."""
        return all(np.array_equal(getattr(self, item.name), getattr(other, item.name)) for item in fields(self))

    def event_elements(self, event: int) -> Float[np.ndarray, "el 3"]:
        """Positions of the channels of one event [m]; they differ between events when the aperture walks."""
        return self.elements if self.rx_elements is None else self.elements[self.rx_elements[event]]

    def validate(self) -> None:
        """Raise UsageError, naming value and cure, where the geometry or the units cannot be right."""
        positions = np.asarray(self.elements, float)
        if positions.ndim != 2 or positions.shape[1] != 3 or len(positions) < 1:
            raise UsageError(f"element positions have shape {positions.shape}; give (el, 3) in metres")
        if not np.isfinite(positions).all():
            raise UsageError("element positions hold NaN or infinity; give metres")
        span = float(np.ptp(positions[:, 0]))
        if span > 0.5:
            raise UsageError(f"elements span {span:g} m; positions must be metres (are these millimetres?)")
        if len(positions) > 1 and span < 0.1 * MM:
            raise UsageError(f"elements span {span:g} m; positions must be metres (are they all equal?)")
        for name in ("center_frequency", "sampling_frequency"):
            value = getattr(self, name)
            if not np.isfinite(value) or value <= 0:
                raise UsageError(f"{name} is {value:g}; give a positive frequency in hertz")
            if not 0.1 * MHZ <= value <= 500 * MHZ:
                raise UsageError(f"{name} is {value:g} Hz, outside 0.1-500 MHz; give hertz (is this kHz or MHz?)")
        if not 300 <= self.sound_speed <= 10_000:
            raise UsageError(f"sound_speed is {self.sound_speed:g}; give metres per second, 300-10000")
        for name in ("delays", "apodization", "start_times", "angles", "origins"):
            if not np.isfinite(getattr(self, name)).all():
                raise UsageError(f"{name} holds NaN or infinity")
        if np.isnan(self.focus_distance).any():
            raise UsageError("focus_distance holds NaN; use inf for a plane wave, 0 for a single element")
        if np.abs(self.delays).max(initial=0) > 1e-2 or np.abs(self.start_times).max(initial=0) > 1e-2:
            raise UsageError("a firing or start time exceeds 10 ms; give seconds (are these microseconds?)")
        if np.abs(self.angles).max(initial=0) > np.pi / 2:
            raise UsageError(f"steering angle {np.abs(self.angles).max():g} exceeds 90 degrees; give radians")
        if not (np.abs(self.apodization).sum(1) > 0).all():
            raise UsageError("a transmit event fires no element; check the apodization")


@dataclass(frozen=True)
class Recording:
    """RF channel data of one or several frames, with the scan that made it."""

    rf: Frames
    scan: Scan
    probe_name: str = "unknown"
    description: str = ""

    def validate(self) -> None:
        """Raise UsageError where samples and scan disagree or the samples are unusable."""
        self.scan.validate()
        rf = self.rf
        if rf.ndim != 4 or 0 in rf.shape:
            raise UsageError(f"RF has shape {rf.shape}; give (frame, tx, time, el), each at least 1")
        channels = self.scan.delays.shape[1]
        if rf.shape[1] != self.scan.transmits or rf.shape[3] != channels:
            raise UsageError(
                f"RF has {rf.shape[1]} events x {rf.shape[3]} channels, the scan {self.scan.transmits} x {channels}; "
                "transpose the array or complete the geometry"
            )
        bad = int(np.size(rf) - np.isfinite(rf).sum())
        if bad:
            raise UsageError(f"RF holds {bad} NaN or infinite samples of {rf.size}; repair or drop those frames")
        silent = [i for i in range(len(rf)) if not np.any(rf[i])]
        if silent:
            raise UsageError(f"RF of frame {silent[0]} is all zero; check the channel map of the recording")

    def frame(self, index: int) -> Recording:
        """One frame as a recording of its own."""
        return replace(self, rf=self.rf[index : index + 1])


def linear_array(elements: int, pitch: float) -> Float[np.ndarray, "el 3"]:
    """Element centres of a linear array at z = 0, centred on x = 0 [m]."""
    positions = np.zeros((elements, 3))
    positions[:, 0] = (np.arange(elements) - (elements - 1) / 2) * pitch
    return positions


def pulse(times: np.ndarray, center_frequency: float, cycles: float) -> np.ndarray:
    """Hann-windowed tone burst of unit amplitude, zero outside 0 .. cycles / center_frequency [s]."""
    duration = cycles / center_frequency
    inside = (times > 0) & (times < duration)
    burst = np.sin(2 * np.pi * center_frequency * times) * np.sin(np.pi * times / duration) ** 2
    return np.where(inside, burst, 0.0)


def sequence(config: Config) -> Scan:
    """The scan of a configuration: linear array at z = 0, every element firing the same pulse at its own delay.

    Focused events walk an aperture of ``probe.elements`` along ``probe.array_elements``; the events are centred.

    Raises:
        UsageError: the aperture does not fit the array, or a number cannot be right.
    """
    probe, plan = config.probe, config.sequence
    speed = 1540.0
    total = probe.array_elements or probe.elements
    if probe.elements < 1 or probe.pitch <= 0 or not 0 < probe.width <= probe.pitch * (1 + 1e-9):
        raise UsageError(
            f"probe of {probe.elements} elements, pitch {probe.pitch:g} m, width {probe.width:g} m: "
            "need at least 1 element and 0 < width <= pitch"
        )
    if total < probe.elements:
        raise UsageError(f"probe.array_elements {total} is smaller than the aperture of {probe.elements}")
    elements = linear_array(total, probe.pitch)
    if plan.kind == "plane":
        angles = np.deg2rad(np.asarray(plan.angles, float))
        if not len(angles) or np.abs(angles).max() > np.pi / 3:
            raise UsageError(f"sequence.angles {list(plan.angles)}: give at least one, each within 60 degrees")
        apertures = np.tile(np.arange(probe.elements), (len(angles), 1))
        elements, delays = (
            elements[: probe.elements],
            np.outer(np.sin(angles), linear_array(probe.elements, probe.pitch)[:, 0]),
        )
        apodization, focus = np.ones_like(delays), np.full(len(angles), np.inf)
        origins = np.zeros((len(angles), 3))
    elif plan.kind == "focused":
        span = (plan.events - 1) * plan.event_step + probe.elements
        if plan.events < 1 or plan.event_step < 1 or span > total or plan.focus <= 0:
            raise UsageError(
                f"{plan.events} events of {probe.elements} elements, {plan.event_step} apart, need {span} elements "
                f"and a positive focus; the array has {total}, sequence.focus is {plan.focus:g} m"
            )
        first = (total - span) // 2 + np.arange(plan.events) * plan.event_step
        apertures = first[:, None] + np.arange(probe.elements)
        origins = elements[apertures].mean(1)
        delays = -np.hypot(elements[apertures, 0] - origins[:, :1], plan.focus)
        apodization, angles, focus = np.ones_like(delays), np.zeros(plan.events), np.full(plan.events, plan.focus)
    else:
        if not 1 <= plan.events <= probe.elements:
            raise UsageError(f"sequence.events {plan.events} must be 1..{probe.elements} for single-element events")
        apertures = np.tile(np.arange(probe.elements), (plan.events, 1))
        elements = elements[: probe.elements]
        delays, apodization = np.zeros(apertures.shape), np.eye(plan.events, probe.elements)
        origins, angles, focus = elements[: plan.events].copy(), np.zeros(plan.events), np.zeros(plan.events)
    delays = delays / speed
    scan = Scan(
        elements=elements - [elements[:, 0].mean(), 0, 0],
        center_frequency=probe.center_frequency,
        sampling_frequency=config.receive.sampling_frequency,
        delays=delays - delays.min(1, keepdims=True),
        apodization=apodization,
        start_times=np.zeros(len(delays)),
        focus_distance=focus,
        angles=angles,
        origins=origins - [elements[:, 0].mean(), 0, 0],
        sound_speed=speed,
        element_width=probe.width,
        pulse_delay=probe.cycles / probe.center_frequency / 2,
        bandwidth=config.receive.bandwidth,
        rx_elements=apertures if total > probe.elements and plan.kind == "focused" else None,
    )
    scan.validate()
    return scan
