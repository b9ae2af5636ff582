"""Delay-and-sum on any pixel grid: plane waves, focused beams, single elements, any element positions.

A pixel p of one transmit event is  image(p) = sum_e w_e(p) a_e(t_tx(p) + t_rx,e(p) + pulse_delay) / sum_e w_e(p)
with a_e the analytic signal of channel e: linear in the RF, so its derivative is the transposed sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Complex, Float, Inexact
from torch import Tensor

from lungwave.acoustics.iq import analytic, carrier, iq_rate
from lungwave.acoustics.probe import Scan
from lungwave.types import UsageError

Apodization = Literal["boxcar", "hann"]
FOCAL_ZONE = 1.0  # half length, in wavelengths x (f-number of the focus)^2; benchmarks/bmode_sets.py
PADDING = 3  # silent samples around every trace
# Pixel-element pairs at a time. On the CPU they fit its cache and stay below the 32768 at which torch splits an
# operation over threads: a sum then has the same bits on any number of threads.
PAIRS_PER_CHUNK = {"cpu": (1 << 15) - 1, "cuda": 1 << 23}


@dataclass(frozen=True)
class PixelGrid:
    """Where the image is wanted: the plane y = 0, any spacing, also uneven."""

    z: Float[np.ndarray, " z"]  # [m] depth, down
    x: Float[np.ndarray, " x"]  # [m] lateral

    @property
    def shape(self) -> tuple[int, int]:
        """Rows (depth) and columns (lateral)."""
        return len(self.z), len(self.x)

    def validate(self) -> None:
        """Raise UsageError where the positions cannot be metres."""
        for name, values in (("z", self.z), ("x", self.x)):
            if not len(values) or not np.isfinite(values).all():
                raise UsageError(f"grid.{name} has {len(values)} positions, not all finite; give metres")
            if np.abs(values).max() > 1:
                reach = np.abs(values).max()
                raise UsageError(f"grid.{name} reaches {reach:g} m; give metres (are these millimetres?)")


@dataclass(frozen=True)
class Wavefront:
    """When one transmit event reaches a point: a plane, or a sphere around a (virtual) source."""

    source: tuple[float, float]  # [m] (x, z); for a plane wave any point of the reference plane
    direction: tuple[float, float]  # (sin, cos) of the steering angle
    time: float  # [s] after time zero at which the wave passes ``source``
    sound_speed: float  # [m/s]
    plane: bool = False
    focal_zone: float = 0.0  # [m] > 0: a focus in front of the array, with this half length of its focal zone

    def arrival(self, z: Tensor, x: Tensor) -> Tensor:
        """Arrival time [s] at points (z, x) [m].

        Above a focus the wave converges (its time is that of the focus minus the distance), below it diverges. The
        sign changes at the focus, where the sphere's time would jump by twice the lateral distance over c; within the
        focal zone it is therefore blended (smoothstep of the axial distance) with the plane wave that a focus looks
        like from close by. Rindal, Rodriguez-Molares, Austeng, "A simple, artifact-free, virtual source model", IEEE
        IUS 2018, switch between the two where we blend.
        """
        dx, dz = x - self.source[0], z - self.source[1]
        along = dx * self.direction[0] + dz * self.direction[1]
        if self.plane:
            return self.time + along / self.sound_speed
        distance = torch.sqrt(dx**2 + dz**2)
        if self.focal_zone:
            far = (along.abs() / self.focal_zone).clamp(max=1)
            far = far * far * (3 - 2 * far)
            distance = torch.sign(along) * (far * distance + (1 - far) * along.abs())
        return self.time + distance / self.sound_speed


def wavefronts(scan: Scan) -> list[Wavefront]:
    """The wavefront of each event, its time fitted to the stated firing delays (mean over the active elements).

    Raises:
        UsageError: the firing delays contradict the stated angle or focus by more than half a period.
    """
    return [_wavefront(scan, event) for event in range(scan.transmits)]


def _wavefront(scan: Scan, event: int) -> Wavefront:
    speed, angle, distance = scan.sound_speed, float(scan.angles[event]), float(scan.focus_distance[event])
    direction = np.array([np.sin(angle), np.cos(angle)])
    active = scan.apodization[event] != 0
    fired = scan.delays[event][active]
    places = scan.event_elements(event)[active][:, [0, 2]]
    origin = scan.origins[event][[0, 2]]
    zone = 0.0
    if np.isinf(distance):
        source, lead = np.zeros(2), places @ direction
    else:
        source = origin + distance * direction
        lead = np.hypot(*(places - source).T) * (-1 if distance > 0 else 1)
        aperture = float(np.ptp(places @ [direction[1], -direction[0]]))
        if distance > 0 and aperture > 0:
            zone = min(FOCAL_ZONE * speed / scan.center_frequency * (distance / aperture) ** 2, distance)
    reference = fired - lead / speed
    worst = float(np.abs(reference - reference.mean()).max())
    if worst > 0.5 / scan.center_frequency:
        wave = "a plane wave" if np.isinf(distance) else f"focus distance {distance * 1e3:g} mm"
        raise UsageError(
            f"the firing delays of event {event} differ by up to {worst * 1e9:.0f} ns from those of {wave} at "
            f"{np.rad2deg(angle):g} degrees; correct the delays, or the sign of the angle or of the focus distance"
        )
    time, plane = float(reference.mean()), bool(np.isinf(distance))
    return Wavefront((source[0], source[1]), (direction[0], direction[1]), time, speed, plane, zone)


def focal_waist(scan: Scan, distance: float, width: float) -> float:
    """Half width of a beam at its focus [m]: wavelength x focus distance / aperture width."""
    return scan.sound_speed / scan.center_frequency * abs(distance) / width


def transmit_delay(scan: Scan, grid: PixelGrid) -> Float[Tensor, "tx z x"]:
    """Time from time zero of each event until its wave reaches each pixel [s], float64."""
    z, x = _mesh(grid)
    return torch.stack([front.arrival(z, x) for front in wavefronts(scan)])


def receive_delay(scan: Scan, grid: PixelGrid, event: int = 0) -> Float[Tensor, "el z x"]:
    """Time from each pixel back to each channel of one event [s], float64; straight rays at ``scan.sound_speed``."""
    z, x = _mesh(grid)
    places = torch.tensor(scan.event_elements(event), dtype=torch.float64)
    return _distance(places[:, None, None], z, x) / scan.sound_speed


def aperture_weight(
    places: Float[Tensor, "*shape 3"], z: Tensor, x: Tensor, f_number: float, least: float, apodization: Apodization
) -> Tensor:
    """Weight of an element at ``places`` for a pixel: it looks within depth / (2 f_number), at least ``least`` [m].

    ``f_number`` 0 is the whole aperture. Depth counts from the element, so curved and irregular arrays need no case.
    """
    if f_number == 0:
        return torch.ones_like(places[..., 0] + z)
    half = ((z - places[..., 2]).abs() / (2 * f_number)).clamp(min=least)
    off = ((x - places[..., 0]).abs() / half).clamp(max=2)
    inside = (off <= 1).to(off.dtype)
    return inside if apodization == "boxcar" else inside * torch.cos(np.pi / 2 * off) ** 2


class _Geometry(NamedTuple):
    """What a chunk of pixels shares between events: its listening elements (pixel, k), most at most all."""

    offset: Tensor  # int32: where the element's trace begins
    delay: Tensor  # receive delay in samples
    magnitude: Tensor  # apodization / its sum
    weight: Tensor  # complex: magnitude times the phase of the receive delay


class _Table(NamedTuple):
    """Where pixels read one event: value = rotation * sum_k weight * lerp(samples[first], samples[first + 1])."""

    first: Tensor
    fraction: Tensor
    magnitude: Tensor
    weight: Tensor
    rotation: Tensor


class Beamformer:
    """Delay-and-sum of one scan onto one grid; keeps its delay tables, so every further frame is a gather and a sum.

    Tables beyond ``table_bytes`` are rebuilt at each use; pixels are processed in chunks. Memory therefore stays near
    ``table_bytes`` plus input and output, at any size. On the CPU forward and backward give the same bits in every run
    and on any number of threads; on CUDA the backward pass adds with atomics unless
    ``torch.use_deterministic_algorithms`` is set.
    """

    def __init__(
        self,
        scan: Scan,
        grid: PixelGrid,
        f_number: float = 1.5,
        apodization: Apodization = "boxcar",
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        table_bytes: int = 1 << 29,
    ) -> None:
        scan.validate()
        grid.validate()
        if not 0 <= f_number <= 20:
            raise UsageError(f"f_number is {f_number:g}; give 0 (whole aperture) to 20")
        self.scan, self.grid, self.f_number, self.apodization = scan, grid, f_number, apodization
        self.dtype, self.device = dtype, torch.device(device)
        self.complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
        self._fronts = wavefronts(scan)
        z, x = _mesh(grid, self.device)
        self._z, self._x = z.broadcast_to(grid.shape).reshape(-1), x.broadcast_to(grid.shape).reshape(-1)
        self._least = _least_half_aperture(scan.elements)
        self._room = table_bytes
        self._tables: dict[tuple[int, int, int], _Table] = {}
        self._shared: dict[tuple[int, int, int], _Geometry] = {}
        self._step = max(PAIRS_PER_CHUNK.get(self.device.type, 1 << 23) // scan.delays.shape[1], 1)

    def __call__(self, rf: Inexact[Tensor, "*batch tx time el"]) -> Complex[Tensor, "*batch tx z x"]:
        """Image of every transmit event from channel data: analytic signal at each pixel, mean over the listeners."""
        return self.das(analytic(rf.to(self.device), self.scan))

    def das(
        self, iq: Complex[Tensor, "*batch tx time el"], events: Sequence[int] | None = None
    ) -> Complex[Tensor, "*batch some z x"]:
        """Images of ``events`` (None = all) from ``analytic`` baseband of all events; their coherent sums compound.

        The phase is that of RF at the pixel: it turns by 4 pi per wavelength of depth (``demodulate`` removes that).
        """
        return self._apply(iq.to(self.complex_dtype), events, detect=False)

    def power(
        self, iq: Complex[Tensor, "*batch tx time el"], events: Sequence[int] | None = None
    ) -> Float[Tensor, "*batch some z x"]:
        """Mean square of the delayed channels, the denominator of the coherence factor: abs(das)^2 <= power."""
        return self._apply((iq.real**2 + iq.imag**2).to(self.dtype), events, detect=True)

    def _apply(self, values: Tensor, events: Sequence[int] | None, detect: bool) -> Tensor:
        chosen = tuple(range(self.scan.transmits) if events is None else events)
        batch, shape = values.shape[:-3], values.shape[-3:]
        if shape[0] != self.scan.transmits or shape[2] != self.scan.delays.shape[1]:
            raise UsageError(
                f"channel data has {shape[0]} events x {shape[2]} channels, the scan "
                f"{self.scan.transmits} x {self.scan.delays.shape[1]}; give (frame, tx, time, el)"
            )
        samples = values.reshape(-1, *shape)[:, list(chosen)].transpose(-1, -2)  # (frame, tx, el, time)
        # one zero sample before and two after: what lies outside the record reads as silence without a mask
        samples = torch.nn.functional.pad(samples, (1, PADDING - 1)).contiguous()
        pixels = _Sum.apply(samples, _Operator(self, chosen, detect, shape[1]))
        return pixels.reshape(*batch, len(chosen), *self.grid.shape)

    def _chunks(self) -> range:
        return range(0, len(self._z), self._step)

    def _geometry(self, start: int, event: int, samples: int) -> _Geometry:
        key = (start, 0 if self.scan.rx_elements is None else event, samples)
        if key in self._shared:
            return self._shared[key]
        z, x = self._z[start : start + self._step, None], self._x[start : start + self._step, None]
        places = torch.tensor(self.scan.event_elements(event), dtype=torch.float64, device=self.device)
        weight = aperture_weight(places, z, x, self.f_number, self._least, self.apodization)
        listening = weight > 0
        most = max(int(listening.sum(1).max()), 1)
        element = torch.argsort(listening, dim=1, descending=True, stable=True)[:, :most]
        delay = _distance(places[element], z, x) / self.scan.sound_speed
        weight = weight.gather(1, element)
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1e-12)
        geometry = _Geometry(
            (element * (samples + PADDING)).to(torch.int32),
            (delay * iq_rate(self.scan)).to(self.dtype),
            weight.to(self.dtype),
            torch.polar(weight, 2 * np.pi * carrier(self.scan) * delay).to(self.complex_dtype),
        )
        self._shared = {key: geometry}  # the next event of the same chunk needs it again
        return geometry

    def _table(self, start: int, event: int, samples: int) -> _Table:
        key = (start, event, samples)
        if key in self._tables:
            return self._tables[key]
        scan, geometry = self.scan, self._geometry(start, event, samples)
        arrival = self._fronts[event].arrival(self._z[start : start + self._step], self._x[start : start + self._step])
        arrival = arrival + scan.pulse_delay
        since = (arrival - float(scan.start_times[event])) * iq_rate(scan) + 1  # 1: silence comes first
        position = (geometry.delay + since.to(self.dtype)[:, None]).clamp_(0, samples + 1)
        first = position.floor()
        table = _Table(
            first.to(torch.int32).add_(geometry.offset),
            position.sub_(first),
            geometry.magnitude,
            geometry.weight,
            torch.polar(torch.ones_like(arrival), 2 * np.pi * carrier(scan) * arrival).to(self.complex_dtype),
        )
        shared = 0 if scan.rx_elements is None and event else geometry.weight.nbytes + geometry.magnitude.nbytes
        size = table.first.nbytes + table.fraction.nbytes + table.rotation.nbytes + shared
        if size <= self._room:
            self._room -= size
            self._tables[key] = table
        return table


class _Operator(NamedTuple):
    """One linear map from padded channel samples (frame, tx, el, time + PADDING) to pixels (frame, tx, pixel)."""

    beamformer: Beamformer
    events: tuple[int, ...]
    detect: bool  # weights without phase, for detected (real) samples
    samples: int  # per trace, without padding

    def _tables(self) -> Iterator[tuple[int, slice, _Table]]:
        for start in self.beamformer._chunks():
            for row, event in enumerate(self.events):
                table = self.beamformer._table(start, event, self.samples)
                if self.detect:
                    table = table._replace(weight=table.magnitude, rotation=torch.ones_like(table.fraction[:, 0]))
                else:
                    table = table._replace(fraction=table.fraction.to(table.weight.dtype))
                yield row, slice(start, start + len(table.first)), table

    def sum(self, samples: Tensor) -> Tensor:
        """Channels to pixels."""
        traces = samples.flatten(2)
        pixels = samples.new_empty(len(samples), len(self.events), len(self.beamformer._z))
        for row, part, table in self._tables():
            index, shape = table.first.flatten(), table.first.shape
            after = index + 1
            # one frame at a time: scalar gathers into a cache-sized chunk are faster than rows of frames
            for frame in range(len(samples)):
                here, there = (traces[frame, row].index_select(0, i).view(shape) for i in (index, after))
                value = torch.lerp(here, there, table.fraction) * table.weight
                pixels[frame, row, part] = table.rotation * value.sum(1)
        return pixels

    def spread(self, pixels: Tensor) -> Tensor:
        """The adjoint: pixels back to channels."""
        channels, length = self.beamformer.scan.delays.shape[1], self.samples + PADDING
        samples = pixels.new_zeros(len(pixels), len(self.events), channels * length)
        for row, part, table in self._tables():
            index, weight, rotation = table.first.flatten(), table.weight.conj(), table.rotation.conj()
            after = index + 1
            for frame in range(len(pixels)):
                value = weight * (rotation * pixels[frame, row, part])[:, None]
                later = value * table.fraction
                samples[frame, row].index_add_(0, index, (value - later).flatten())
                samples[frame, row].index_add_(0, after, later.flatten())
        return samples.view(len(pixels), len(self.events), channels, length)


class _Sum(torch.autograd.Function):
    """The sum with its adjoint as derivative: nothing of the size pixels x elements is kept for the backward pass."""

    @staticmethod
    def forward(samples: Tensor, operator: _Operator) -> Tensor:
        return operator.sum(samples)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Operator], output: Tensor) -> None:
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Spread.apply(gradient, ctx.operator), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return _Sum.apply(tangent, ctx.operator)


class _Spread(torch.autograd.Function):
    """The adjoint, itself differentiable."""

    @staticmethod
    def forward(pixels: Tensor, operator: _Operator) -> Tensor:
        return operator.spread(pixels)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, _Operator], output: Tensor) -> None:
        ctx.operator = inputs[1]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.operator), None


def delay_and_sum(
    iq: Complex[Tensor, "*batch tx time el"],
    scan: Scan,
    grid: PixelGrid,
    f_number: float = 1.5,
    apodization: Apodization = "boxcar",
) -> Complex[Tensor, "*batch tx z x"]:
    """Images of every event from ``analytic`` baseband, once; for many frames keep a ``Beamformer``."""
    dtype = torch.float64 if iq.dtype == torch.complex128 else torch.float32
    return Beamformer(scan, grid, f_number, apodization, dtype=dtype, device=iq.device, table_bytes=0).das(iq)


def demodulate(image: Complex[Tensor, "*batch z x"], scan: Scan, grid: PixelGrid) -> Complex[Tensor, "*batch z x"]:
    """Image without the phase of the way down and up, exp(i 4 pi fc z / c): smooth from pixel to pixel."""
    turn = torch.as_tensor(4 * np.pi * carrier(scan) / scan.sound_speed * grid.z, device=image.device)[:, None]
    return image * torch.polar(torch.ones_like(turn), -turn).to(image.dtype)


def _mesh(grid: PixelGrid, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    z = torch.as_tensor(grid.z, dtype=torch.float64, device=device)
    return z[:, None], torch.as_tensor(grid.x, dtype=torch.float64, device=device)[None, :]


def _distance(places: Tensor, z: Tensor, x: Tensor) -> Tensor:
    return torch.sqrt((x - places[..., 0]) ** 2 + places[..., 1] ** 2 + (z - places[..., 2]) ** 2)


def _least_half_aperture(elements: np.ndarray) -> float:
    """Half the widest lateral gap between neighbours: every pixel below the array is seen by some element."""
    gaps = np.diff(np.sort(elements[:, 0]))
    return float(gaps.max(initial=0)) / 2 * (1 + 1e-6)
