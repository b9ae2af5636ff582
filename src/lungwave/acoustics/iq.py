"""From channel data to complex baseband I/Q: band-pass, demodulation, and the rate that interpolation needs."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from lungwave.acoustics.probe import Scan
from lungwave.types import UsageError

EDGE_ERROR = 0.01  # what linear interpolation may cost at the -6 dB edge of the band, midway between two samples


def carrier(scan: Scan) -> float:
    """Frequency that baseband I/Q refers to [Hz]: the file's demodulation frequency, else the centre frequency."""
    return scan.demodulation_frequency or scan.center_frequency


def upsampling(scan: Scan) -> int:
    """How many baseband samples ``analytic`` makes of one RF sample.

    Linear interpolation of e^{i 2 pi v t} between samples 1/f apart loses at most 1 - cos(pi v / f); the rate f is the
    smallest multiple of the RF rate for which that is 1 % at the -6 dB edge v of the band.
    """
    edge = scan.bandwidth * scan.center_frequency / 2
    needed = math.pi * edge / math.acos(1 - EDGE_ERROR)
    return max(math.ceil(needed / scan.sampling_frequency - 1e-9), 1)


def iq_rate(scan: Scan) -> float:
    """Sampling rate of what ``analytic`` returns [Hz]."""
    return scan.sampling_frequency * upsampling(scan)


def iq_samples(scan: Scan, samples: int) -> int:
    """Number of baseband samples that ``analytic`` makes of ``samples`` RF samples."""
    return (samples - 1) * upsampling(scan) + 1


def apparent_frequency(scan: Scan) -> float:
    """Where the centre frequency lies in the sampled spectrum [Hz], within 0 .. half the sampling frequency.

    Raises:
        UsageError: sampling folds the band another way than ``spectrum_reversed`` says.
    """
    rate, centre = scan.sampling_frequency, scan.center_frequency
    folded = centre % rate
    mirrored = folded > rate / 2
    if mirrored != scan.spectrum_reversed:
        seen = "mirrored" if mirrored else "unmirrored"
        raise UsageError(
            f"{centre:g} Hz sampled at {rate:g} Hz appears {seen}, but spectrum_reversed is {scan.spectrum_reversed}; "
            f"correct the rate or set spectrum_reversed = {mirrored}"
        )
    return rate - folded if mirrored else folded


def analytic(
    rf: Inexact[Tensor, "*batch tx time el"], scan: Scan, *, bandwidth: float | None = None
) -> Complex[Tensor, "*batch tx fine el"]:
    """Complex baseband of channel data at ``iq_rate(scan)``, differentiable.

    With a(t) the analytic signal (one-sided spectrum, Re a = RF) and fc = ``carrier(scan)`` the result is
    a(t) exp(-i 2 pi fc t), t counted from time zero of the event. Band-pass: flat within the -6 dB band, raised cosine
    to zero at twice its width, narrower where 0 or half the sampling rate is nearer. Zero-padded by a quarter against
    wrap-around.

    Args:
        rf: real RF; or complex I/Q where ``scan.demodulation_frequency`` is set, its phase counted from sample 0.
        scan: rates, centre frequency, ``spectrum_reversed`` for a band that was sampled mirrored.
        bandwidth: fractional width of the pass-band (None = ``scan.bandwidth``).

    Raises:
        UsageError: real data with a demodulation frequency or complex data without, or an impossible sampling rate.
    """
    complex_input = rf.is_complex()
    if complex_input != (scan.demodulation_frequency != 0):
        raise UsageError(
            f"{'complex' if complex_input else 'real'} channel data with demodulation_frequency "
            f"{scan.demodulation_frequency:g} Hz; give complex I/Q with its frequency, or real RF with 0"
        )
    rate, factor, samples = scan.sampling_frequency, upsampling(scan), rf.shape[-2]
    # where the band lies in the sampled spectrum, and which frequency goes to zero
    middle = scan.center_frequency - scan.demodulation_frequency if complex_input else apparent_frequency(scan)
    centre = 0.0 if complex_input else middle
    if abs(middle) >= rate / 2:
        raise UsageError(
            f"{scan.center_frequency:g} Hz demodulated at {scan.demodulation_frequency:g} Hz cannot be sampled at "
            f"{rate:g} Hz; correct one of the three"
        )
    length = _even_length(samples + max(samples // 4, 32))
    traces = rf.transpose(-1, -2)  # time last: the transform reads memory in order
    spectrum = torch.fft.fft(traces, n=length) if complex_input else 2 * torch.fft.rfft(traces, n=length)
    frequency = np.fft.fftfreq(length, 1 / rate) if complex_input else np.fft.rfftfreq(length, 1 / rate)
    width = (scan.bandwidth if bandwidth is None else bandwidth) * scan.center_frequency
    below = rate / 2 + middle if complex_input else middle
    gain = _pass_band(frequency - middle, min(width, below), min(width, rate / 2 - middle))
    kept = np.flatnonzero(gain)
    weight = torch.as_tensor(gain[kept], dtype=rf.real.dtype, device=rf.device)
    spectrum = spectrum[..., torch.as_tensor(kept, device=rf.device)] * weight
    # The kept bins go around bin 0 of a finer grid: band-limited interpolation and the shift to baseband in one step.
    # The shift is a whole number of bins; what remains of it is a slow rotation in time.
    shift = round(centre * length / rate)
    bins = (np.rint(frequency[kept] * length / rate).astype(int) - shift) % (length * factor)
    padded = spectrum.new_zeros(*spectrum.shape[:-1], length * factor)
    padded = padded.index_copy(-1, torch.as_tensor(bins, device=rf.device), spectrum)
    baseband = torch.fft.ifft(padded)[..., : iq_samples(scan, samples)] * factor
    seconds = np.arange(iq_samples(scan, samples)) / (rate * factor)
    turn = 2 * np.pi * (shift * rate / length - centre) * seconds
    phase = -2 * np.pi * carrier(scan) * scan.start_times[:, None]
    if scan.spectrum_reversed and not complex_input:
        baseband, turn = baseband.conj().resolve_conj(), -turn
    rotation = np.exp(1j * (turn + phase))[:, None, :]
    return (baseband * torch.as_tensor(rotation, dtype=baseband.dtype, device=rf.device)).transpose(-1, -2)


def _even_length(samples: int) -> int:
    """Smallest even product of 2, 3 and 5 that is not below ``samples``: a length that transforms fast."""
    best = 1 << (samples - 1).bit_length()
    for fives in (1, 5, 25, 125):
        for threes in (1, 3, 9, 27):
            odd = fives * threes
            best = min(best, odd << max(math.ceil(math.log2(samples / odd)), 1))
    return best


def _pass_band(offset: Float[np.ndarray, " bin"], low: float, high: float) -> Float[np.ndarray, " bin"]:
    """1 to half of ``low`` below and ``high`` above the centre, raised cosine to 0 at the full distance [Hz]."""
    reach = np.where(offset < 0, -offset / low, offset / high)
    return np.where(reach < 1, np.cos(np.pi / 2 * np.clip(2 * reach - 1, 0, 1)) ** 2, 0.0)
