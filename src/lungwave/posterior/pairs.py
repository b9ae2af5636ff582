"""Pairs of echoes and maps to learn from: every time a pair is seen it has other noise, dead elements and errors.

What is done to a frame is a pure function of the seed and the number of the training image, as for maps alone
(``training.source``). The echoes are kept without noise; 10 to 40 dB of it are added each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.acoustics.probe import Scan, sequence
from lungwave.acoustics.receive import add_noise, drop_elements
from lungwave.config import Config
from lungwave.data import schema
from lungwave.data.dataset import folder_config, read_shards, shard_files
from lungwave.data.schema import CaseTable
from lungwave.data.streamed import Column, StreamedCases, index_of, stream_cases
from lungwave.models.precond import Scaling
from lungwave.models.unet import Condition
from lungwave.posterior.conditioning import Conditioner, Read, Scales, scaled
from lungwave.posterior.echoes import reader_of
from lungwave.posterior.pleura import PleuraDetector, fit_detector
from lungwave.posterior.ridge import RidgeModel
from lungwave.progress import Progress
from lungwave.repro import stream
from lungwave.training.source import Draws
from lungwave.types import MM, Frames, UsageError

FIT = 1000  # frames that detector and scales are fitted on, at most
BATCH = 50  # frames at a time there
SAMPLE = 4000  # cases of a streamed set that scaling and readouts are fitted on, at most
KEPT = 512  # undisturbed conditions in memory, about 300 kB each


@dataclass(frozen=True)
class Disturbance:
    """What may be wrong with a recording; each is drawn anew for every training image."""

    snr_db: tuple[float, float] = (10.0, 40.0)
    flip: bool = True  # mirror the lung, the array and the transmits, where the scan is its own mirror image
    dead: float = 0.3  # chance that one to ``most_dead`` elements are silent
    most_dead: int = 3
    missing: float = 0.05  # chance that one transmit is silent
    jitter: float = 0.1 * MM  # [m] standard deviation of an error of the whole pleura
    far: float = 0.1  # chance that the error is drawn evenly from +- ``reach`` instead
    reach: float = 0.5 * MM  # [m]
    speeds: tuple[float, ...] = (0.98, 0.99, 1.0, 1.01, 1.02)  # believed over stated sound speed
    drop: float = 0.1  # chance that the condition is withheld: the same network is the prior

    def __post_init__(self) -> None:
        for name in ("dead", "missing", "far", "drop"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"disturbance {name} {getattr(self, name):g} is a chance; give 0 to 1")
        if not self.speeds or 1.0 not in self.speeds:
            raise UsageError(f"speeds {self.speeds} must hold 1.0, the stated sound speed")


@dataclass(frozen=True)
class Pairs:
    """Echoes without noise and what they came from; quantifiable lungs only."""

    rf: Float[np.ndarray, "case tx time el"]
    cases: CaseTable
    config: Config

    @classmethod
    def read(cls, folder: Path, quiet: bool = False) -> Pairs:
        """All cases of a generated folder. UsageError where none is quantifiable everywhere."""
        config, frames, tables = folder_config(folder), [], []
        with Progress(len(shard_files(folder)), "read", quiet=quiet) as progress:
            for recording, cases in read_shards(folder):
                frames.append(np.asarray(recording.rf, np.float32))
                tables.append(cases)
                progress.advance()
        pairs = cls(np.concatenate(frames), CaseTable.join(tables), config)
        good = pairs.cases.valid.all(1) & np.isfinite(pairs.cases.whole)
        if not good.any():
            raise UsageError(f"{folder} holds no case that is quantifiable everywhere; generate lungs without ribs")
        return pairs if good.all() else pairs.take(good)

    @classmethod
    def stream(cls, folder: Path, quiet: bool = False) -> Pairs:
        """The same cases, which stay on disk: rows are read when they are asked for."""
        index = index_of(folder, quiet)
        good = np.flatnonzero(index.whole)
        if not len(good):
            raise UsageError(f"{folder} holds no case that is quantifiable everywhere; generate lungs without ribs")
        cases = stream_cases(index, good)
        rf = replace(index.column(schema.RAW), rows=cases.smooth.rows)
        return StreamedPairs(rf, cases, folder_config(folder), index.seals)

    @property
    def sample(self) -> np.ndarray:
        """Cases that are looked at together, to fit what needs no more: all that are in memory."""
        return np.arange(len(self))

    def __len__(self) -> int:
        return len(self.rf)

    def take(self, chosen: np.ndarray) -> Pairs:
        """Some of the cases: a mask or numbers."""
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        return Pairs(self.rf[rows], self.cases.take(rows), self.config)

    def maps(self, rows: np.ndarray) -> Float[np.ndarray, "row c z x"]:
        """What is learned of some cases, fractions 0-1."""
        return np.asarray(self.cases.smooth[rows], np.float32)[:, None]

    def tops(self, rows: np.ndarray) -> Float[np.ndarray, "row x"] | None:
        """Depth [m] at which their maps begin; None where it has to be found in the echoes."""
        del rows
        return None

    @property
    def scan(self) -> Scan:
        """The acquisition."""
        return sequence(self.config)

    @property
    def aeration(self) -> Float[np.ndarray, "case out"]:
        """Percent aeration of every band, then of the whole, fraction 0-1."""
        return np.concatenate([self.cases.bands, self.cases.whole[:, None]], 1)

    @property
    def digest(self) -> str:
        """SHA-256 of echoes and maps."""
        found = hashlib.sha256(self.config.digest().encode())
        for part in (self.rf, self.cases.smooth, self.cases.index):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()


@dataclass(frozen=True)
class StreamedPairs(Pairs):
    """Pairs that stay on disk, for training on more than fits into memory."""

    rf: Column  # type: ignore[assignment]
    seals: tuple[str, ...] = ()  # digests of the files

    def take(self, chosen: np.ndarray) -> StreamedPairs:
        """Some of the cases, still on disk."""
        rows = np.flatnonzero(chosen) if chosen.dtype == bool else chosen
        cases = self.cases.take(rows)
        assert isinstance(cases, StreamedCases)
        return replace(self, rf=replace(self.rf, rows=cases.smooth.rows), cases=cases)

    @property
    def sample(self) -> np.ndarray:
        """Evenly spread cases, as many as fit into memory."""
        return np.unique(np.linspace(0, len(self) - 1, min(len(self), SAMPLE)).round().astype(int))

    @property
    def digest(self) -> str:
        """SHA-256 over the files' digests and which of their cases these are."""
        found = hashlib.sha256(repr((self.config.digest(), self.seals)).encode())
        found.update(np.ascontiguousarray(self.rf.rows).data)
        return found.hexdigest()


def fit_pleura(pairs: Pairs, snr_db: tuple[float, float], seed: int) -> PleuraDetector:
    """The pleura detector, on noisy frames of these cases."""
    reader = reader_of(pairs.config, pairs.scan)
    seen = []
    for rows in _some(len(pairs)):
        top = pairs.tops(rows)
        depth = pairs.cases.pleura_depth[rows] if top is None else top
        seen.append((reader(noisy(pairs, rows, snr_db, seed, "pleura")), depth))
    return fit_detector(seen, reader.search)


def fit_scales(pairs: Pairs, conditioner: Conditioner, snr_db: tuple[float, float], seed: int) -> Scales:
    """How large images and traces usually are."""
    return Scales.of(
        [
            conditioner.read(noisy(pairs, rows, snr_db, seed, "scales"), top=pairs.tops(rows))
            for rows in _some(len(pairs))
        ]
    )


def _some(count: int) -> list[np.ndarray]:
    rows = np.unique(np.linspace(0, count - 1, min(count, FIT)).round().astype(int))
    return np.array_split(rows, -(-len(rows) // BATCH))


def noisy(pairs: Pairs, rows: np.ndarray, snr_db: tuple[float, float], seed: int, name: str) -> Frames:
    """Frames with noise at an SNR of their own, keyed by case."""
    out = np.empty((len(rows), *pairs.rf.shape[1:]), np.float32)
    for k, row in enumerate(rows):
        generator = stream(seed, f"noise/{name}", int(pairs.cases.index[row]))
        level = float(generator.uniform(*snr_db))
        out[k] = add_noise(pairs.rf[row], pairs.scan, pairs.config.receive, generator, level)[0]
    return out


def mirrored(scan: Scan, tolerance: float = 1e-9) -> bool:
    """Whether the scan is its own mirror image when elements and transmits are taken in reverse."""
    x = scan.elements[:, 0]
    return bool(
        scan.kind == "plane"
        and scan.rx_elements is None
        and np.allclose(x, -x[::-1], atol=1e-6)
        and np.allclose(scan.angles, -scan.angles[::-1], atol=1e-6)
        and np.allclose(scan.delays, scan.delays[::-1, ::-1], atol=tolerance)
        and np.allclose(scan.start_times, scan.start_times[::-1], atol=tolerance)
    )


class PairSource:
    """Pairs as a training sees them: maps in network units, and the condition of disturbed echoes."""

    def __init__(
        self,
        pairs: Pairs,
        scaling: Scaling,
        scales: Scales,
        detector: PleuraDetector,
        disturbance: Disturbance | None = None,
        seed: int = 0,
        center: RidgeModel | None = None,
    ) -> None:
        """``center`` estimates the map of every frame; UsageError where conditions are to be withheld as well."""
        self.center = center
        self.pairs, self.scaling, self.scales, self.seed = pairs, scaling, scales, seed
        self.disturbance = disturbance or Disturbance()
        if center is not None and self.disturbance.drop > 0:
            raise UsageError("around an estimate there is no prior to fall back on; set the disturbance's drop to 0")
        self.conditioners = [
            Conditioner(pairs.config, pairs.scan, detector, s, center) for s in self.disturbance.speeds
        ]
        self.usual = self.disturbance.speeds.index(1.0)
        # Around an estimate that has seen these very lungs, the denoiser would trust it too much.
        folds = None if center is None else center.folds
        self.unseen = None if folds is None else folds.unseen(pairs.cases.base_id)
        self.symmetric = self.disturbance.flip and mirrored(pairs.scan)
        self._digest: str | None = None
        self._kept: dict[int, Condition] = {}

    @property
    def digest(self) -> str:
        """Hash of echoes and maps."""
        if self._digest is None:
            self._digest = self.pairs.digest
        return self._digest

    def facts(self) -> dict[str, Any]:
        """Scaling and disturbances."""
        held = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self.disturbance).items()}
        return {"scaling": asdict(self.scaling), "disturbance": held}

    def __len__(self) -> int:
        return len(self.pairs)

    def images(self, rows: Int[np.ndarray, " n"], draws: Draws | None) -> tuple[Tensor, Condition | None]:
        """Maps ``rows`` and their conditions. Without ``draws``: noise alone, always the same for a case."""
        maps = self.pairs.maps(rows)
        if draws is None:
            return self._clean(maps), self._undisturbed(rows)
        frames = self.pairs.rf[rows].copy()
        shift, speed, known = np.zeros(len(rows)), np.zeros(len(rows), int), np.ones(len(rows), np.float32)
        for k, generator in enumerate(draws.generators("echoes")):
            frames[k], mirror, shift[k], speed[k], known[k] = self._disturbed(frames[k], generator)
            if mirror:
                maps[k] = maps[k, :, :, ::-1].copy()
        condition = self._read(frames, shift, speed, self._unseen(rows))
        assert condition.image is not None and condition.vector is not None and condition.traces is not None
        keep = torch.from_numpy(known)
        return self._clean(maps), replace(
            condition, image=condition.image * keep[:, None, None, None], vector=condition.vector * keep[:, None]
        )

    def _undisturbed(self, rows: Int[np.ndarray, " n"]) -> Condition:
        """Conditions with noise alone; the first ``KEPT`` are kept, because every check of the loss asks for them."""
        new = np.array([row for row in np.unique(rows) if int(row) not in self._kept], int)
        found = dict(self._kept)
        if len(new):
            cond = self._with_noise(new)
            found |= {int(row): cond.take(slice(k, k + 1)) for k, row in enumerate(new)}
            self._kept = dict(list(found.items())[:KEPT])
        parts = [found[int(row)] for row in rows]
        names = ("image", "vector", "traces", *(() if self.center is None else ("center",)))
        return Condition(**{name: torch.cat([getattr(part, name) for part in parts]) for name in names})

    def _with_noise(self, rows: Int[np.ndarray, " n"]) -> Condition:
        """Conditions with noise alone."""
        frames = noisy(self.pairs, rows, self.disturbance.snr_db, self.seed, "held out")
        return scaled(self.conditioners[self.usual].read(frames, unseen=self._unseen(rows)), self.scales, self.scaling)

    def _clean(self, maps: np.ndarray) -> Tensor:
        return self.scaling.to_network(torch.from_numpy(np.ascontiguousarray(maps)))

    def _disturbed(self, rf: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, bool, float, int, float]:
        """A frame with what may be wrong, whether it is mirrored, error of the pleura [m], number of the speed, 0 =
        withheld."""
        how = self.disturbance
        chance = generator.uniform(size=6)
        mirror = self.symmetric and bool(chance[0] < 0.5)
        if mirror:
            rf = rf[::-1, :, ::-1]
        rf = add_noise(
            np.ascontiguousarray(rf), self.pairs.scan, self.pairs.config.receive, generator,
            float(generator.uniform(*how.snr_db)),
        )[0]  # fmt: skip
        if chance[1] < how.dead:
            rf = drop_elements(rf, int(generator.integers(1, how.most_dead + 1)), generator)
        if chance[2] < how.missing and len(rf) > 1:
            rf = rf.copy()
            rf[generator.integers(len(rf))] = 0
        far = chance[3] < how.far
        shift = float(generator.uniform(-how.reach, how.reach) if far else generator.normal(0, how.jitter))
        speed = int(generator.integers(len(how.speeds)))
        return rf, mirror, shift, speed, float(chance[4] >= how.drop)

    def _unseen(self, rows: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"] | None:
        return None if self.unseen is None else self.unseen[rows]

    def _read(self, frames: Frames, shift: np.ndarray, speed: np.ndarray, unseen: np.ndarray | None) -> Condition:
        """The condition of every frame, each by the conditioner of its speed."""
        parts: list[tuple[np.ndarray, Read]] = []
        for number in np.unique(speed):
            mine = np.flatnonzero(speed == number)
            heads = None if unseen is None else unseen[mine]
            parts.append((mine, self.conditioners[number].read(frames[mine], shift[mine], heads)))
        return scaled(_together(parts), self.scales, self.scaling)


def _together(parts: Sequence[tuple[np.ndarray, Read]]) -> Read:
    """Reads of parts of a batch in the order of the batch."""
    order = np.argsort(np.concatenate([mine for mine, _ in parts]))
    names = [item.name for item in fields(Read) if getattr(parts[0][1], item.name) is not None]
    return Read(**{name: np.concatenate([getattr(read, name) for _, read in parts])[order] for name in names})
