"""What a training step sees: which maps, in which order, with which random numbers.

Everything is a pure function of the seed and the running number of the training image, so that it depends neither on
the batch size, nor on the number of ranks, nor on where a training was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lungwave.data.augment import Augment
from lungwave.data.mapset import NO_LABEL, MapSet
from lungwave.models.precond import Scaling
from lungwave.models.unet import Condition
from lungwave.repro import stream


@dataclass(frozen=True)
class Draws:
    """Random numbers of the training images ``positions`` (0 = the first that the training saw)."""

    seed: int
    positions: Int[np.ndarray, " n"]

    def generators(self, name: str) -> list[np.random.Generator]:
        """A stream of its own for each image: counter-based, keyed by seed, name and position."""
        key = int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:8], "little")
        keys = [np.array([key, position], np.uint64) for position in self.positions]
        return [np.random.Generator(np.random.Philox(key=pair)) for pair in keys]

    def normal(self, name: str, shape: Sequence[int]) -> Float[Tensor, "n ..."]:
        """Standard normal values of ``shape`` for each image."""
        drawn = np.empty((len(self.positions), *shape), np.float32)
        for row, generator in zip(drawn, self.generators(name), strict=True):
            generator.standard_normal(dtype=np.float32, out=row)
        return torch.from_numpy(drawn)

    def uniform(self, name: str) -> Float[Tensor, " n"]:
        """One value in 0-1 (without the ends) for each image."""
        drawn = [(generator.integers(2**23) + 0.5) / 2**23 for generator in self.generators(name)]
        return torch.tensor(drawn, dtype=torch.float32)


@dataclass(frozen=True)
class Batch:
    """Some training images; a task draws all its randomness from ``draws``."""

    clean: Float[Tensor, "n c z x"]  # in network units
    cond: Condition | None
    draws: Draws

    def __len__(self) -> int:
        return len(self.clean)

    def normal(self, name: str) -> Float[Tensor, "n c z x"]:
        """Standard normal values, one for each pixel."""
        return self.draws.normal(name, self.clean.shape[1:]).to(self.clean.device)

    def uniform(self, name: str) -> Float[Tensor, " n"]:
        """One value in 0-1 for each image."""
        return self.draws.uniform(name).to(self.clean.device)


@runtime_checkable
class Source(Protocol):
    """Images to learn from."""

    @property
    def digest(self) -> str:
        """Hash of the images; a resumed training must find it unchanged."""
        ...

    def facts(self) -> dict[str, Any]:
        """What is done to the images, as JSON knows it; a resumed training must find it unchanged."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def images(self, rows: Int[np.ndarray, " n"], draws: Draws | None) -> tuple[Tensor, Condition | None]:
        """Images ``rows`` in network units and their condition, augmented by ``draws`` (None = as they are)."""
        ...


def rows_of(positions: Int[np.ndarray, " n"], count: int, seed: int) -> Int[np.ndarray, " n"]:
    """Which of ``count`` images the training sees at each position: every epoch is a permutation of its own."""
    epochs, places = np.divmod(positions, count)
    rows = np.empty(len(positions), np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        rows[chosen] = stream(seed, "epoch", int(epoch)).permutation(count)[places[chosen]]
    return rows


@dataclass(frozen=True)
class MapSource:
    """Aeration maps, augmented and scaled for the network, with their class where the network knows classes."""

    maps: MapSet
    scaling: Scaling
    augment: Augment | None = None
    classes: bool = False  # whether labels go to the network
    drop: float = 0.1  # share of the labels that are withheld, for guidance without a second network

    @property
    def digest(self) -> str:
        """Hash of maps and labels."""
        return self.maps.digest

    def facts(self) -> dict[str, Any]:
        """Scaling, augmentation, and whether labels are known."""
        return {
            "scaling": asdict(self.scaling),
            "augment": None if self.augment is None else asdict(self.augment),
            "labels": {"drop": self.drop} if self.classes else None,
        }

    def __len__(self) -> int:
        return len(self.maps)

    def images(self, rows: Int[np.ndarray, " n"], draws: Draws | None) -> tuple[Tensor, Condition | None]:
        """Maps ``rows`` in network units; the condition's vector says how each was augmented."""
        fraction = torch.from_numpy(self.maps.fraction(rows))
        vector, label = None, torch.from_numpy(self.maps.labels[rows]) if self.classes else None
        if self.augment is not None and draws is not None:
            fraction, vector = self._augmented(fraction, draws)
        if label is not None and draws is not None:
            label = torch.where(draws.uniform("label") < self.drop, NO_LABEL, label)
        cond = None if label is None and vector is None else Condition(label=label, vector=vector)
        return self.scaling.to_network(fraction), cond

    def _augmented(self, fraction: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """Each map by the stream of its position, so that a map is augmented alike in any batch."""
        assert self.augment is not None
        seeds = [int(generator.integers(2**63)) for generator in draws.generators("augment")]
        pairs = [
            self.augment(one[None], torch.Generator().manual_seed(seed))
            for one, seed in zip(fraction, seeds, strict=True)
        ]
        return torch.cat([maps for maps, _ in pairs]), torch.cat([labels for _, labels in pairs])
