"""Training images made ahead of time by other processes, in the order in which the training will ask for them.

What an image is depends on seed and position alone (``training.source``), so that readers in any number change nothing
but the speed.
"""

from __future__ import annotations

import signal
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lungwave.models.unet import Condition
from lungwave.training.source import Draws, Source, rows_of
from lungwave.types import LungwaveError

AHEAD = 2  # batches that each reader is ahead
Made = tuple[np.ndarray, Tensor, Condition | None]


class _Images(Dataset[Any]):
    """Images by their positions; an error is handed over rather than raised, to arrive as it is."""

    def __init__(self, source: Source, seed: int) -> None:
        self.source, self.seed = source, seed

    def __getitem__(self, positions: np.ndarray) -> Made | LungwaveError:
        try:
            return (positions, *made(self.source, positions, self.seed))
        except LungwaveError as error:
            return error


def made(source: Source, positions: np.ndarray, seed: int) -> tuple[Tensor, Condition | None]:
    """The training images at ``positions``."""
    return source.images(rows_of(positions, len(source), seed), Draws(seed, positions))


def read_ahead(source: Source, parts: Iterable[np.ndarray], seed: int, readers: int) -> Iterator[Made]:
    """Images at each of ``parts``, made by ``readers`` processes. LungwaveError where one fails or is lost."""
    loader: DataLoader[Any] = DataLoader(
        _Images(source, seed),
        batch_size=None,
        sampler=parts,
        num_workers=readers,
        prefetch_factor=AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        multiprocessing_context="spawn",
    )
    try:
        for found in loader:
            if isinstance(found, LungwaveError):
                raise found
            yield found
    except RuntimeError as error:  # torch's word for a reader that was killed
        raise LungwaveError(
            f"a reading process was lost ({str(error).splitlines()[0][:80]}); rerun the same command to go on, with "
            "fewer --readers if memory was short"
        ) from error


def _as_it_is(found: Any) -> Any:
    return found


def _begin(number: int) -> None:
    """One thread each; Ctrl-C reaches all of a terminal, and only the training answers it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
