"""Pairs of echoes and resolved maps under known walls, and earlier guesses that a network may start from.

A guess is a map that could have made the recording, together with the echoes that the wave equation says it makes. What
it leaves of the recording tells where it is wrong. A guess depends on the recording and on chance alone, so what is
learned with it is still p(map | recording): the wave equation only makes it easier to see (Orozco et al. 2025, ASPIRE,
arXiv:2405.05398).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.config import Config
from lungwave.data.arrays import numpy_arrays
from lungwave.data.maps import save_npz
from lungwave.models.precond import Scaling
from lungwave.models.unet import Condition
from lungwave.phantom.anatomy import draw
from lungwave.phantom.resolved import CHANNELS, first_depth, resolved, resolved_config
from lungwave.posterior.conditioning import FARTHEST, Conditioner, Scales, companded, scaled
from lungwave.posterior.outline import Outline
from lungwave.posterior.pairs import Disturbance, Pairs, PairSource, noisy
from lungwave.posterior.pleura import PleuraDetector
from lungwave.progress import Progress
from lungwave.training.source import Draws
from lungwave.types import Frames

TOLD = CHANNELS + 1  # images that show a guess: its map, and that there is one
MARK = 2.0  # added to the sine of a transmit's angle for what a guess leaves of it, which no angle reaches
GUESSED = 0.5  # chance that a training image comes with a guess, where there are any


@dataclass(frozen=True)
class Guess:
    """Maps and what the wave equation says of them."""

    maps: Float[Tensor, "n 2 row x"]  # network units
    echoes: Float[np.ndarray, "n tx heard el"]

    def take(self, rows: np.ndarray) -> Guess:
        """Some of them."""
        return Guess(self.maps[torch.from_numpy(rows)], self.echoes[rows])


class ResolvedConditioner(Conditioner):
    """Also told of the outline, and of a guess: its map, I/Q images and traces of what it leaves, zero for none."""

    @property
    def more(self) -> int:
        """Images beside those of a recording."""
        return CHANNELS + 2 * self.scan.transmits + TOLD

    def tell(
        self, rf: Frames, top: Float[np.ndarray, "frame x"], scales: Scales, scaling: Scaling,
        guess: Guess | None = None, guessed: Float[np.ndarray, " frame"] | None = None,
    ) -> Condition:  # fmt: skip
        """The condition of frames whose maps begin at ``top`` [m]; where ``guessed`` is 0, the guess is ignored."""
        read = self.read(rf, top=top)
        cond = scaled(replace(read, center=None), scales, scaling)
        assert cond.image is not None and cond.traces is not None and read.center is not None
        outline = scaling.to_network(torch.from_numpy(read.center)).unflatten(1, (CHANNELS, -1))
        n, parts = len(rf), 2 * self.scan.transmits
        images = torch.zeros(n, parts + TOLD, *cond.image.shape[2:])
        traces = torch.zeros_like(cond.traces)
        if guess is not None:
            left = np.asarray(rf, np.float32).copy()
            heard = guess.echoes.shape[2]
            left[:, :, heard:] = 0
            left[:, :, :heard] -= guess.echoes
            found, aligned = self.beside(left, read)
            size = scales.row_std[None, :parts, :, None]
            images[:, :parts] = torch.from_numpy(companded((found / size).clip(-FARTHEST, FARTHEST))).float()
            images[:, parts:-1] = guess.maps.float()
            images[:, -1] = 1.0
            traces = torch.from_numpy(np.arcsinh(aligned / scales.time_std)).float()
            if guessed is not None:
                keep = torch.from_numpy(np.asarray(guessed, np.float32)).view(-1, 1, 1, 1)
                images, traces = images * keep, traces * keep
        return replace(
            cond, image=torch.cat([cond.image, outline, images], 1), traces=torch.cat([cond.traces, traces], 1)
        )

    def places(self) -> Float[torch.Tensor, "tx el 2"]:
        """Those of the recording, then of what a guess leaves of it."""
        own = super().places()
        return torch.cat([own, own + torch.tensor([0.0, MARK])])


@dataclass(frozen=True)
class ResolvedPairs(Pairs):
    """Echoes and resolved maps (``phantom.resolved``); the wall above is known. ``config.map`` is the solver's grid."""

    drawn: Config  # that they were generated with
    nodes: Float[np.ndarray, "case 2 row x"]  # half precision, fractions 0-1
    top: Float[np.ndarray, "case x"]  # [m] upper edge of the maps' first row

    @classmethod
    def draw(cls, pairs: Pairs, quiet: bool = False, kept: Path | None = None) -> ResolvedPairs:
        """The resolved maps of generated cases, which are drawn again, or read from the file ``kept`` of an earlier
        time; that is written otherwise."""
        if kept is None:
            return cls._drawn(pairs, quiet)
        seal = np.frombuffer(bytes.fromhex(pairs.digest), np.uint8)
        if kept.exists():
            held = numpy_arrays(kept)
            if "cases" in held and np.array_equal(held["cases"], seal):
                config = resolved_config(pairs.config)
                return cls(pairs.rf, pairs.cases, config, pairs.config, held["nodes"], held["top"])
        found = cls._drawn(pairs, quiet)
        save_npz(kept, nodes=found.nodes, top=found.top, cases=seal)
        return found

    @classmethod
    def _drawn(cls, pairs: Pairs, quiet: bool) -> ResolvedPairs:
        nodes, tops = [], []
        with Progress(len(pairs), "draw", quiet=quiet) as progress:
            for index in pairs.cases.index:
                anatomy = draw(pairs.config, int(index))
                nodes.append(resolved(anatomy, pairs.config).astype(np.float16))
                tops.append(first_depth(anatomy, pairs.config))
                progress.advance()
        config = resolved_config(pairs.config)
        return cls(pairs.rf, pairs.cases, config, pairs.config, np.stack(nodes), np.stack(tops))

    def take(self, chosen: np.ndarray) -> ResolvedPairs:
        """Some of the cases."""
        kept = super().take(chosen)
        return replace(self, rf=kept.rf, cases=kept.cases, nodes=self.nodes[chosen], top=self.top[chosen])

    def maps(self, rows: np.ndarray) -> Float[np.ndarray, "row c z x"]:
        """Resolved maps."""
        return self.nodes[rows].astype(np.float32)

    def tops(self, rows: np.ndarray) -> Float[np.ndarray, "row x"] | None:
        """Where they begin."""
        return self.top[rows]


@dataclass(frozen=True)
class Guesses:
    """A few noisy recordings of each case, and a guess at each."""

    frames: Float[np.ndarray, "case k tx time el"]
    maps: Float[np.ndarray, "case k 2 row x"]  # half precision, fractions 0-1
    echoes: Float[np.ndarray, "case k tx heard el"]

    @property
    def digest(self) -> str:
        """SHA-256."""
        found = hashlib.sha256()
        for part in (self.frames, self.maps, self.echoes):
            found.update(np.ascontiguousarray(part).data)
        return found.hexdigest()

    def take(self, rows: np.ndarray) -> Guesses:
        """Of some cases."""
        return Guesses(self.frames[rows], self.maps[rows], self.echoes[rows])


class ResolvedSource(PairSource):
    """Resolved maps as a training sees them, half of the time with a guess where there are any."""

    def __init__(
        self, pairs: ResolvedPairs, scaling: Scaling, scales: Scales, detector: PleuraDetector,
        disturbance: Disturbance, outline: Outline, seed: int = 0, guesses: Guesses | None = None,
    ) -> None:  # fmt: skip
        super().__init__(pairs, scaling, scales, detector, disturbance, seed)
        self.guesses = guesses
        self.conditioner = ResolvedConditioner(pairs.config, pairs.scan, detector, center=outline)

    @property
    def digest(self) -> str:
        """Hash of echoes, maps and guesses."""
        return super().digest + ("" if self.guesses is None else self.guesses.digest)

    def images(self, rows: Int[np.ndarray, " n"], draws: Draws | None) -> tuple[Tensor, Condition | None]:
        """Maps ``rows`` and their conditions. Without ``draws``: noise alone, always the same for a case."""
        if draws is None:
            return super().images(rows, None)
        maps, top = self.pairs.maps(rows), self._tops(rows)
        frames, known = self.pairs.rf[rows].copy(), np.ones(len(rows), np.float32)
        guessed, which = np.zeros(len(rows), np.float32), np.zeros(len(rows), int)
        turned = np.zeros(len(rows), bool)
        for k, generator in enumerate(draws.generators("echoes")):
            frames[k], turned[k], _, _, known[k] = self._disturbed(frames[k], generator)
            if self.guesses is not None and generator.uniform() < GUESSED:
                guessed[k], which[k] = 1.0, int(generator.integers(self.guesses.frames.shape[1]))
                frames[k] = self.guesses.frames[rows[k], which[k]]
                if turned[k]:
                    frames[k] = frames[k, ::-1, :, ::-1].copy()
        guess = None if self.guesses is None else self._guess(rows, which)
        for k in np.flatnonzero(turned).tolist():
            maps[k], top[k] = maps[k, :, :, ::-1].copy(), top[k, ::-1].copy()
            if guess is not None:
                guess.maps[k] = guess.maps[k].flip(2)
                guess.echoes[k] = guess.echoes[k, ::-1, :, ::-1].copy()
        condition = self._told(frames, top, guess, guessed)
        assert condition.image is not None and condition.vector is not None
        keep = torch.from_numpy(known)
        return self._clean(maps), replace(
            condition, image=condition.image * keep[:, None, None, None], vector=condition.vector * keep[:, None]
        )

    def _with_noise(self, rows: Int[np.ndarray, " n"]) -> Condition:
        """Conditions with noise alone, with a guess where there are any."""
        if self.guesses is None:
            frames = noisy(self.pairs, rows, self.disturbance.snr_db, self.seed, "held out")
            return self._told(frames, self._tops(rows), None, np.ones(len(rows)))
        guess = self._guess(rows, np.zeros(len(rows), int))
        return self._told(self.guesses.frames[rows, 0], self._tops(rows), guess, np.ones(len(rows)))

    def _tops(self, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "row x"]:
        top = self.pairs.tops(rows)
        assert top is not None
        return top

    def _guess(self, rows: np.ndarray, which: np.ndarray) -> Guess:
        assert self.guesses is not None
        maps = torch.from_numpy(self.guesses.maps[rows, which].astype(np.float32))
        return Guess(self.scaling.to_network(maps), self.guesses.echoes[rows, which].copy())

    def _told(self, frames: Frames, top: np.ndarray, guess: Guess | None, guessed: np.ndarray) -> Condition:
        return self.conditioner.tell(frames, top, self.scales, self.scaling, guess, guessed)
