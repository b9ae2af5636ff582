"""A recording as the acquisition that a model was trained for: other clock, fewer transmits, dead channels.

What can be made the same without inventing anything is, and says so; what cannot is refused with the reason.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from lungwave.acoustics.beamform import PixelGrid, transmit_delay
from lungwave.acoustics.probe import Recording, Scan
from lungwave.types import MM, Frames

SAME_ANGLE = np.deg2rad(0.5)  # [rad]
TAPS = 16  # samples of the slower clock on each side of an interpolated one
CLIPPED, MOST_CLIPPED = 1e-3, 0.02  # share of samples at the largest value: worth a remark, too many
MOST_DEAD = 0.25  # share of the channels
PROBE_DEPTH = 10 * MM  # [m] where the clocks of two scans are compared


@dataclass(frozen=True)
class Adapted:
    """Frames on the trained acquisition, what was done to them, or why they cannot be used."""

    rf: Frames
    flags: tuple[str, ...] = ()
    reason: str | None = None


def adapt(recording: Recording, trained: Scan, samples: int) -> Adapted:
    """Frames of ``recording`` with the events, clock and length of ``trained``; no other geometry is forgiven."""
    scan = recording.scan
    reason = _geometry(scan, trained)
    if reason is None and scan.sampling_frequency < _least_rate(trained):
        reason = (
            f"the sampling frequency {scan.sampling_frequency / 1e6:.4g} MHz cannot carry the band of the trained "
            f"acquisition; at least {_least_rate(trained) / 1e6:.4g} MHz are needed"
        )
    if reason is not None:
        return Adapted(recording.rf[:, :0], (), reason)
    pairs = [(k, _same_event(scan, angle)) for k, angle in enumerate(trained.angles)]
    known = [(k, event) for k, event in pairs if event is not None]
    if not known:
        return Adapted(recording.rf[:, :0], (), f"no transmit is at one of {trained.degrees} degrees")
    flags = []
    rf = np.zeros((len(recording.rf), trained.transmits, samples, recording.rf.shape[3]), np.float32)
    for k, event in known:
        moved = _moved(recording, event, trained, k, samples)
        if moved is None:
            return Adapted(recording.rf[:, :0], (), _too_short(recording, trained, samples))
        rf[:, k] = moved
    if len(known) < trained.transmits:
        flags.append(
            f"{trained.transmits - len(known)} of {trained.transmits} transmits are missing; expect more spread."
        )
    if len(known) < scan.transmits:
        flags.append(
            f"{scan.transmits - len(known)} transmits were not used: the model knows {trained.degrees} degrees."
        )
    if not np.isclose(scan.sampling_frequency, trained.sampling_frequency, rtol=1e-6):
        was, now = (s.sampling_frequency / 1e6 for s in (scan, trained))
        flags.append(f"Resampled from {was:.4g} to {now:.4g} MHz.")
    return _judged(recording, rf, known, flags)


def _geometry(scan: Scan, trained: Scan) -> str | None:
    """Why the probe is another one; None where it is the same."""
    if scan.kind != trained.kind:
        return f"transmits are of kind '{scan.kind}', the model was trained on '{trained.kind}'"
    if scan.demodulation_frequency:
        return "the recording is I/Q, the model was trained on RF"
    count, expected = (len(s.elements) for s in (scan, trained))
    if count != expected or abs(scan.pitch - trained.pitch) > 0.02 * abs(trained.pitch):
        return (
            f"the probe has {count} elements at {scan.pitch / MM:.3g} mm, the model was trained on {expected} at "
            f"{trained.pitch / MM:.3g} mm"
        )
    channels, wanted = scan.delays.shape[1], trained.delays.shape[1]
    if channels != wanted:
        return f"the recording has {channels} channels, the model was trained on {wanted}"
    if abs(scan.center_frequency - trained.center_frequency) > 0.05 * trained.center_frequency:
        was, now = scan.center_frequency / 1e6, trained.center_frequency / 1e6
        return f"the centre frequency is {was:.3g} MHz, the model was trained at {now:.3g} MHz"
    return None


def _least_rate(trained: Scan) -> float:
    """Sampling frequency [Hz] that carries the trained band (full width ``bandwidth`` at -6 dB)."""
    return 2 * trained.center_frequency * (1 + trained.bandwidth / 2)


def _same_event(scan: Scan, angle: float) -> int | None:
    off = np.abs(scan.angles - angle)
    return int(off.argmin()) if off.min(initial=np.inf) <= SAME_ANGLE else None


def _clock(scan: Scan, event: int) -> float:
    """Time [s] from the first sample until an echo of a fixed depth, apart from the way back."""
    down = transmit_delay(scan, PixelGrid(np.array([PROBE_DEPTH]), np.zeros(1)))[event, 0, 0]
    return float(down) + scan.pulse_delay - float(scan.start_times[event])


def _moved(
    recording: Recording, event: int, trained: Scan, target: int, samples: int
) -> Float[np.ndarray, "frame sample el"] | None:
    """One event on the trained clock; None where the record does not reach that far."""
    scan = recording.scan
    speed = replace(scan, sound_speed=trained.sound_speed)  # straight down in both
    late = _clock(speed, event) - _clock(trained, target)
    rate, count = scan.sampling_frequency, recording.rf.shape[2]
    at = (np.arange(samples) / trained.sampling_frequency + late) * rate  # [sample] of the recording
    if at[0] > 0.02 * count + 1 or at[-1] > count - 1 + 0.02 * samples * rate / trained.sampling_frequency:
        return None
    return np.einsum("st,fte->fse", _interpolation(at, count, rate, trained.sampling_frequency), recording.rf[:, event])


def _interpolation(
    at: Float[np.ndarray, " sample"], count: int, rate: float, wanted: float
) -> Float[np.ndarray, "sample time"]:
    """Band-limited interpolation at places ``at`` [sample]: a sinc of the narrower band under a Kaiser window."""
    band = min(1.0, wanted / rate)  # of the recording's
    off = at[:, None] - np.arange(count)
    width = TAPS / band
    window = np.i0(8.0 * np.sqrt(np.clip(1 - (off / width) ** 2, 0, None))) / np.i0(8.0) * (np.abs(off) <= width)
    return band * np.sinc(band * off) * window


def _too_short(recording: Recording, trained: Scan, samples: int) -> str:
    lasts = recording.rf.shape[2] / recording.scan.sampling_frequency * 1e6
    begins = recording.scan.start_times.min() * 1e6
    return (
        f"the record lasts {lasts:.3g} us and begins at {begins:.3g} us; the model needs "
        f"{samples / trained.sampling_frequency * 1e6:.3g} us from {trained.start_times.min() * 1e6:.3g} us on"
    )


def _judged(recording: Recording, rf: Frames, known: list[tuple[int, int]], flags: list[str]) -> Adapted:
    """Clipped samples and dead channels: remarks, or reasons."""
    used = recording.rf[:, [event for _, event in known]]
    clipped = max(_clipped(frame) for frame in used)
    dead = max(float((np.abs(frame).max((0, 1)) == 0).mean()) for frame in used)
    reason = None
    if clipped > MOST_CLIPPED:
        reason = f"{clipped:.1%} of the samples are clipped; record again with less gain"
    elif dead > MOST_DEAD:
        reason = f"{dead:.0%} of the channels are silent; check cable and channel map"
    if clipped > CLIPPED:
        flags.append(f"{clipped:.1%} of the samples are clipped.")
    if dead > 0:
        flags.append(f"{dead:.0%} of the channels are silent.")
    return Adapted(rf, tuple(flags), reason)


def _clipped(frame: Float[np.ndarray, "tx time el"]) -> float:
    """Share of samples at the extreme values, of which an unclipped frame has one each."""
    share = max(float((frame == extreme).mean()) for extreme in (frame.max(), frame.min()))
    return share if share * frame.size > 2 else 0.0
