"""From delayed and summed channels to a picture: compounding, coherence, envelope, decibels, the default grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Complex, Float
from torch import Tensor

from lungwave.acoustics.beamform import Beamformer, PixelGrid, aperture_weight, focal_waist, wavefronts
from lungwave.acoustics.image import BMode
from lungwave.acoustics.iq import analytic
from lungwave.acoustics.probe import Recording, Scan
from lungwave.types import UsageError

PIXELS_AT_MOST = 1 << 18  # of the default grid: enough for a page, computed in a moment
EVENTS_AT_ONCE = 8  # images held at a time while compounding


def display_grid(scan: Scan, samples: int, spacing: float | None = None) -> PixelGrid:
    """What a record of ``samples`` per trace shows: as wide as the array, as deep as the last echo of every event.

    Square pixels of a third of the wavelength (or ``spacing`` [m]), coarser where that would exceed a quarter of a
    million. Rows before the record begins, or within a wavelength of the array, are left out.

    Raises:
        UsageError: the record ends before any echo from below the array.
    """
    wavelength = scan.sound_speed / scan.center_frequency
    left, right = float(scan.elements[:, 0].min()), float(scan.elements[:, 0].max())
    if right - left < 4 * wavelength:
        left, right = (left + right) / 2 - 2 * wavelength, (left + right) / 2 + 2 * wavelength
    low = float(scan.elements[:, 2].max())
    middle = torch.tensor((left + right) / 2, dtype=torch.float64)
    leads = [float(front.arrival(torch.tensor(low, dtype=torch.float64), middle)) for front in wavefronts(scan)]
    # straight down and up under the middle of the array: t = lead + 2 (z - low) / c + pulse_delay
    first = scan.start_times - scan.pulse_delay - leads
    last = first + (samples - 1) / scan.sampling_frequency
    top = low + max(float(first.max()) * scan.sound_speed / 2, wavelength)
    bottom = low + float(last.min()) * scan.sound_speed / 2
    if bottom <= top:
        raise UsageError(
            f"{samples} samples at {scan.sampling_frequency:g} Hz end at depth {bottom * 1e3:.3g} mm, above the first "
            f"pixel at {top * 1e3:.3g} mm; check the record length and start_times"
        )
    if spacing is None:
        spacing = max(wavelength / 3, float(np.sqrt((bottom - top) * (right - left) / PIXELS_AT_MOST)))
    columns = int((right - left) / spacing) + 1
    x = (left + right) / 2 + (np.arange(columns) - (columns - 1) / 2) * spacing
    return PixelGrid(top + np.arange(int((bottom - top) / spacing) + 1) * spacing, x)


def transmit_weight(
    scan: Scan, grid: PixelGrid, f_number: float = 1.5, events: Sequence[int] | None = None
) -> Float[Tensor, "some z x"]:
    """How much each event (None = all) may say about each pixel, 0 to 1: where its wave went.

    Plane waves: everywhere. Single elements: the dynamic aperture of ``f_number``, as on receive. Focused and diverging
    beams: a raised cosine across the cone from the aperture through the focus, at least as wide as the focal waist and
    as the step between beams, so that no pixel between two beams is lost.
    """
    z = torch.as_tensor(grid.z, dtype=torch.float64)[:, None]
    x = torch.as_tensor(grid.x, dtype=torch.float64)[None, :]
    steps = np.diff(np.sort(scan.origins[:, 0]))
    step = float(steps.max(initial=0))
    maps = []
    for event in range(scan.transmits) if events is None else events:
        distance = float(scan.focus_distance[event])
        if np.isinf(distance):
            maps.append(torch.ones(grid.shape, dtype=torch.float64))
            continue
        origin = torch.as_tensor(scan.origins[event], dtype=torch.float64)
        if distance == 0:
            seen = aperture_weight(origin, z, x, f_number, step / 2 * (1 + 1e-6), "boxcar")
            maps.append(seen.broadcast_to(grid.shape))
            continue
        sine, cosine = float(np.sin(scan.angles[event])), float(np.cos(scan.angles[event]))
        active = scan.event_elements(event)[scan.apodization[event] != 0]
        width = max(float(np.ptp(active[:, 0])) * cosine, scan.sound_speed / scan.center_frequency)
        along = (x - origin[0]) * sine + (z - origin[2]) * cosine - distance
        across = ((x - origin[0]) * cosine - (z - origin[2]) * sine).abs()
        least = max(focal_waist(scan, distance, width), step)
        half = (along.abs() * width / (2 * abs(distance))).clamp(min=least)
        maps.append(torch.cos(np.pi / 2 * (across / half).clamp(max=1)) ** 2)
    return torch.stack(maps)


def compound(
    images: Complex[Tensor, "*batch tx z x"], weight: Float[Tensor, "tx z x"] | None = None
) -> Complex[Tensor, "*batch z x"]:
    """Coherent mean over transmit events, weighted by where each went; 0 where no event went."""
    if weight is None:
        return images.mean(-3)
    weight = weight.to(images.real.dtype).to(images.device)
    return (images * weight).sum(-3) / weight.sum(0).clamp(min=1e-6)


def coherence_factor(
    summed: Complex[Tensor, "*batch z x"], power: Float[Tensor, "*batch z x"]
) -> Float[Tensor, "*batch z x"]:
    """Coherent over incoherent energy of the delayed channels: 1 = all agree, 0 where there is no signal.

    ``summed`` and ``power`` are means over the same channels: ``Beamformer.das`` and ``Beamformer.power``, or the means
    of both over events. Mallart and Fink, JASA 96:3721 (1994); with N channels of pure noise its mean is 1/N.
    """
    silent = power <= torch.finfo(power.dtype).tiny
    return torch.where(silent, 0.0, (summed.real**2 + summed.imag**2) / torch.where(silent, 1.0, power)).clamp(max=1)


def envelope(image: Complex[Tensor, "*batch z x"]) -> Float[Tensor, "*batch z x"]:
    """Magnitude of the analytic image."""
    return image.abs()


def log_compress(magnitude: Float[Tensor, "*batch z x"], dynamic_range: float = 60.0) -> Float[Tensor, "*batch z x"]:
    """Decibels below each image's maximum, cut at ``-dynamic_range``; an image of zeros is all ``-dynamic_range``."""
    if not dynamic_range > 0:
        raise UsageError(f"dynamic_range is {dynamic_range:g} dB; give a positive number, e.g. 60")
    top = magnitude.amax((-2, -1), keepdim=True)
    floor = 10 ** (-dynamic_range / 20)
    ratio = magnitude / torch.where(top > 0, top, 1.0)
    return 20 * torch.log10(ratio.clamp(min=floor, max=1))


def bmode(
    recording: Recording,
    grid: PixelGrid | None = None,
    *,
    f_number: float = 1.5,
    frame: int = 0,
    dynamic_range: float = 60.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> BMode:
    """B-mode of one frame: delay-and-sum of every event, coherent compound, envelope, decibels.

    Raises:
        UsageError: channel data and scan disagree, a geometry that cannot be right, or no such frame.
    """
    if not 0 <= frame < len(recording.rf):
        raise UsageError(f"frame {frame} of a recording of {len(recording.rf)}; give 0..{len(recording.rf) - 1}")
    one = recording.frame(frame)
    one.validate()
    grid = grid or display_grid(one.scan, one.rf.shape[2])
    magnitude = envelope(compounded(torch.as_tensor(np.asarray(one.rf[0])), one.scan, grid, f_number, dtype, device))
    decibel = log_compress(magnitude, dynamic_range)
    return BMode(decibel.cpu().double().numpy(), grid.x, grid.z, dynamic_range)


def compounded(
    rf: Tensor,
    scan: Scan,
    grid: PixelGrid,
    f_number: float = 1.5,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Complex[Tensor, "z x"]:
    """Coherent compound of one frame (tx, time, el) with ``transmit_weight``; holds a few events' images at a time."""
    beamformer = Beamformer(scan, grid, f_number, dtype=dtype, device=device, table_bytes=0)
    iq = analytic(rf.to(device=device, dtype=beamformer.complex_dtype if rf.is_complex() else dtype), scan)
    total = torch.zeros(grid.shape, dtype=iq.dtype, device=device)
    share = torch.zeros(grid.shape, dtype=torch.float64, device=device)
    for start in range(0, scan.transmits, EVENTS_AT_ONCE):
        events = list(range(start, min(start + EVENTS_AT_ONCE, scan.transmits)))
        weight = transmit_weight(scan, grid, f_number, events).to(device)
        total = total + (beamformer.das(iq, events) * weight.to(dtype)).sum(0)
        share = share + weight.sum(0)
    return total / share.clamp(min=1e-6).to(dtype)
