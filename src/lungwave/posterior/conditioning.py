"""What a network is told of the echoes: images aligned with the map, traces aligned at the pleura, and a few numbers.

The pleura is detected and everything is read from there downwards, column by column, because the map begins there. How
certain the detection is goes along as an image of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.acoustics.beamform import PixelGrid, demodulate, transmit_delay
from lungwave.acoustics.probe import Scan
from lungwave.acoustics.receive import echo_rms
from lungwave.config import Config
from lungwave.models.encoder import STRIDE, EncoderConfig
from lungwave.models.precond import Scaling
from lungwave.models.unet import Condition
from lungwave.posterior.echoes import FLOOR, Echoes, below, reader_of
from lungwave.posterior.pleura import PleuraDetector
from lungwave.types import MM, Frames, UsageError

VERSION = 1  # of this transform: weights that were trained on another one say nothing about its output
BEFORE = 1.0e-6  # [s] that a trace begins before the echo of the pleura
SAMPLES = 128  # of an aligned trace
COMPAND = 4.0  # logarithm from a quarter of the usual amplitude on
NUMBERS = ("known", "SNR", "pleura depth", "pleura spread", "pleura slope", "pleura doubt", "dead elements")
USUAL_SNR, SNR_STEP = 25.0, 10.0  # [dB] that scale the SNR
FARTHEST = 8.0  # spreads from the usual, beyond which an image only says "unusual"
FLAT = 1e-6  # spread of a row that never changes


@runtime_checkable
class Estimator(Protocol):
    """Anything that estimates maps from energies of echoes, such as ``RidgeModel``."""

    def maps(
        self, echoes: Echoes, depth: Float[np.ndarray, "frame x"], unseen: Int[np.ndarray, " frame"] | None = None
    ) -> Float[np.ndarray, "frame z x"]:
        """The map of every frame below a pleura [m]; ``unseen`` says which head answers."""
        ...


@dataclass(frozen=True)
class Read:
    """What was read from a batch of frames, before it is scaled."""

    images: Float[np.ndarray, "frame image z x"]
    traces: Float[np.ndarray, "frame tx el aligned"]
    numbers: Float[np.ndarray, "frame number"]
    pleura_depth: Float[np.ndarray, "frame x"]  # [m]
    doubt: Float[np.ndarray, "frame x"]  # [m] of the pleura
    reference: Float[np.ndarray, " frame"]  # energy of the echoes that images and traces were divided by
    center: Float[np.ndarray, "frame node x"] | None = None  # estimated map, channels one below the other


@dataclass(frozen=True)
class Scales:
    """How much is usual: statistics of the training frames, by image and row, and by time of a trace."""

    row_mean: Float[np.ndarray, "image z"]
    row_std: Float[np.ndarray, "image z"]
    time_std: Float[np.ndarray, " aligned"]

    @classmethod
    def of(cls, read: Sequence[Read]) -> Scales:
        """Statistics of some frames."""
        images = np.concatenate([part.images for part in read])
        traces = np.concatenate([part.traces for part in read])
        spread = np.sqrt(np.square(traces, dtype=np.float64).mean((0, 1, 2)))
        return cls(
            images.mean((0, 3), dtype=np.float64),
            images.std((0, 3), dtype=np.float64) + FLAT,
            np.maximum(spread, FLAT * spread.max() + np.finfo(float).tiny),
        )


class Conditioner:
    """Reads frames of one scan for a network; ``speed`` is the sound speed that it believes in, over the scan's."""

    def __init__(
        self,
        config: Config,
        scan: Scan,
        detector: PleuraDetector,
        speed: float = 1.0,
        center: Estimator | None = None,
    ) -> None:
        self.config, self.detector, self.center = config, detector, center
        self.scan = replace(scan, sound_speed=speed * scan.sound_speed)
        self.reader = reader_of(config, self.scan, detector.search)
        middle = np.array([float(self.reader.beamformer.grid.x.mean())])
        self._down = transmit_delay(self.scan, PixelGrid(self.reader.z, middle)).numpy()[:, :, 0]  # (tx, z)

    @property
    def image_names(self) -> tuple[str, ...]:
        """What each image shows."""
        events = [f"{part} of event {k}" for k in range(self.scan.transmits) for part in ("real", "imaginary")]
        return (*events, "log energy", "angular coherence", "aperture coherence", "pleura doubt", "in the record")

    def read(
        self,
        rf: Frames,
        shift: Float[np.ndarray, " frame"] | None = None,
        unseen: Int[np.ndarray, " frame"] | None = None,
        top: Float[np.ndarray, "frame x"] | None = None,
    ) -> Read:
        """Images, traces and numbers; the detected pleura is moved down by ``shift`` [m] first.

        ``unseen`` says which head of the estimate answers, see ``RidgeModel.maps``. ``top`` [m] is the depth at which
        the map begins, where it is known; nothing is detected then.
        """
        reader = self.reader
        images, power = reader.images(rf)
        echoes = reader.energies(rf, images, power)
        depth, doubt = self.detector.path(echoes) if top is None else (np.asarray(top, float), np.zeros(top.shape))
        if shift is not None:
            depth = depth + shift[:, None]
        rows = self._rows
        logs = echoes.logs(lateral=0.2, axial=0.1)
        known = np.broadcast_to((reader.z < self._last_depth(rf.shape[2]))[None, :, None], logs[0].shape).astype(float)
        found = [*self._parts(images, echoes.reference, depth), *(below(log, reader.z, depth, rows) for log in logs)]
        found.append(np.broadcast_to(doubt[:, None] / MM, found[0].shape))
        found.append(below(known, reader.z, depth, rows))
        return Read(
            np.stack(found, 1).astype(np.float32), self._traces(rf, depth, echoes.reference),
            self._numbers(rf, depth, doubt), depth, doubt, echoes.reference,
            None if self.center is None else self.center.maps(echoes, depth, unseen).astype(np.float32),
        )  # fmt: skip

    def __call__(
        self,
        rf: Frames,
        scales: Scales,
        scaling: Scaling,
        shift: Float[np.ndarray, " frame"] | None = None,
        top: Float[np.ndarray, "frame x"] | None = None,
    ) -> tuple[Condition, Read]:
        """The condition of a batch of frames, and what it was made from; ``scaling`` is that of maps."""
        read = self.read(rf, shift, top=top)
        return scaled(read, scales, scaling), read

    def beside(
        self, frames: Frames, read: Read
    ) -> tuple[Float[np.ndarray, "frame image z x"], Float[np.ndarray, "frame tx el aligned"]]:
        """I/Q images and traces of other frames, at the pleura and the amplitude of ``read``."""
        parts = self._parts(self.reader.images(frames)[0], read.reference, read.pleura_depth)
        return np.stack(parts, 1).astype(np.float32), self._traces(frames, read.pleura_depth, read.reference)

    @property
    def _rows(self) -> Float[np.ndarray, " z"]:
        """Depth below the pleura [m] of the map's rows."""
        return (np.arange(self.config.map.rows) + 0.5) * self.config.map.pixel

    def _parts(self, images: Tensor, reference: np.ndarray, depth: np.ndarray) -> list[np.ndarray]:
        """Real and imaginary part of each event: I/Q without the phase of the way, relative to the mean amplitude near
        the pleura, smooth enough to interpolate."""
        base = (
            demodulate(images, self.scan, self.reader.beamformer.grid).numpy() / np.sqrt(reference)[:, None, None, None]
        )
        parts = [part[:, event] for event in range(self.scan.transmits) for part in (base.real, base.imag)]
        return [below(part, self.reader.z, depth, self._rows) for part in parts]

    def encoder_config(self, **changes: Any) -> EncoderConfig:
        """An encoder whose times fit the map's rows."""
        step = STRIDE / self.scan.sampling_frequency * self.scan.sound_speed / 2  # [m] of depth in one time
        size = (self.config.map.rows, self.config.map.columns)
        fitted = {"rows": size[0] * self.config.map.pixel / step, "size": size}
        first = BEFORE * self.scan.sampling_frequency / STRIDE
        return EncoderConfig(**{**fitted, "first": first, "samples": SAMPLES, **changes})

    def places(self) -> Float[torch.Tensor, "tx el 2"]:
        """Where the elements are [half widths of the map], and the sine of the transmits' angles."""
        half = self.config.map.columns * self.config.map.pixel / 2
        across = torch.tensor(self.scan.elements[:, 0] / half)
        sine = torch.tensor(np.sin(self.scan.angles))
        return torch.stack(torch.broadcast_tensors(across[None], sine[:, None]), -1).float()

    def _last_depth(self, samples: int) -> float:
        """Depth [m] whose echo ends the record of the first event."""
        scan = self.scan
        last = float(scan.start_times.min()) + samples / scan.sampling_frequency - scan.pulse_delay
        return last * scan.sound_speed / 2

    def _arrival(self, depth: Float[np.ndarray, " frame"]) -> Float[np.ndarray, "frame tx"]:
        """Time [s] from the start of each event's record until the pleura's echo is back at the middle."""
        scan = self.scan
        there = np.stack([np.interp(depth, self.reader.z, row) for row in self._down], 1)
        return there + depth[:, None] / scan.sound_speed + scan.pulse_delay - scan.start_times

    def _traces(self, rf: Frames, depth: np.ndarray, reference: np.ndarray) -> Float[np.ndarray, "frame tx el aligned"]:
        """Channel data from ``BEFORE`` before the pleura's echo on, moved by a phase in the frequency domain."""
        rate, samples = self.scan.sampling_frequency, rf.shape[2]
        length = samples + SAMPLES  # silence behind, so that nothing comes round
        start = (self._arrival(depth.mean(1)) - BEFORE) * rate
        spectrum = np.fft.rfft(np.asarray(rf, np.float32), length, axis=2)
        turn = np.exp(2j * np.pi * np.fft.rfftfreq(length)[None, None] * start[:, :, None])
        moved = np.fft.irfft(spectrum * turn[..., None], length, axis=2)[:, :, :SAMPLES]
        return (moved / np.sqrt(reference)[:, None, None, None]).transpose(0, 1, 3, 2).astype(np.float32)

    def _numbers(self, rf: Frames, depth: np.ndarray, doubt: np.ndarray) -> Float[np.ndarray, "frame number"]:
        """``NUMBERS``: the condition's vector; the noise is measured while the switch of the receiver is closed."""
        scan, receive = self.scan, self.config.receive
        quiet = scan.start_times[:, None] + np.arange(rf.shape[2]) / scan.sampling_frequency < receive.dead_time
        noise = np.sqrt(np.square(rf, dtype=np.float64)[:, quiet].mean((1, 2))) if quiet.any() else np.zeros(len(rf))
        loud = np.array([echo_rms(one, scan, receive.echo_start) for one in rf])
        snr = 20 * np.log10((loud + FLOOR) / np.maximum(noise, 1e-3 * loud + FLOOR))
        dead = (np.square(rf, dtype=np.float64).sum((1, 2)) == 0).mean(1)
        across = np.linspace(-1, 1, depth.shape[1])
        shallow, deep = self.config.wall.pleura_depth
        slope = ((depth - depth.mean(1, keepdims=True)) * across).mean(1) / np.square(across).mean()
        return np.stack(
            [
                np.ones(len(rf)), (snr - USUAL_SNR) / SNR_STEP, (depth.mean(1) - shallow) / (deep - shallow) * 2 - 1,
                depth.std(1) / (0.1 * MM), slope / (0.1 * MM), doubt.mean(1) / (0.1 * MM), 10 * dead,
            ],
            1,
        ).astype(np.float32)  # fmt: skip


def scaled(read: Read, scales: Scales, scaling: Scaling) -> Condition:
    """The condition that a network takes: every row and every time at usual size, loud echoes compressed."""
    images = (read.images - scales.row_mean[None, :, :, None]) / scales.row_std[None, :, :, None]
    images = images.clip(-FARTHEST, FARTHEST)
    parts = images[:, : 2 * read.traces.shape[1]]  # I/Q: a view
    parts[...] = companded(parts)
    traces = np.arcsinh(read.traces / scales.time_std)
    return Condition(
        image=torch.from_numpy(np.ascontiguousarray(images, np.float32)),
        vector=torch.from_numpy(np.asarray(read.numbers, np.float32)),
        traces=torch.from_numpy(np.ascontiguousarray(traces, np.float32)),
        center=None if read.center is None else scaling.to_network(torch.from_numpy(read.center)[:, None]),
    )


def companded(values: np.ndarray) -> np.ndarray:
    """Loud values compressed, quiet ones as they are."""
    return np.sign(values) * np.log1p(COMPAND * np.abs(values)) / np.log1p(COMPAND)


def facts(config: Config) -> dict[str, Any]:
    """What decides the transform, for the model's config.json; weights refuse another one."""
    return {
        "version": VERSION,
        "map": asdict(config.map),
        "numbers": list(NUMBERS),
        "before": BEFORE,
        "samples": SAMPLES,
        "compand": COMPAND,
    }


def check_facts(held: Any, config: Config, source: str) -> None:
    """Raise UsageError where weights were trained on another transform than this program's."""
    wanted = facts(config)
    for name, value in wanted.items():
        if not isinstance(held, dict) or _plain(held.get(name)) != _plain(value):
            found = held.get(name) if isinstance(held, dict) else held
            raise UsageError(
                f"{source} was trained on echoes read another way ({name}: {found}, here {value}); train it again, or "
                "use the version of lungwave that wrote it"
            )


def _plain(value: Any) -> Any:
    """Tuples and lists alike, as JSON sees them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
