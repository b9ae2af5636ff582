"""Generated cases back from their shards, in order, one shard at a time; splits by base anatomy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from lungwave.acoustics.probe import Recording
from lungwave.config import Config
from lungwave.data.hdf5 import read_cases, read_recording
from lungwave.data.schema import CaseTable
from lungwave.repro import read_json, stream, unstamped
from lungwave.types import UsageError


def shard_files(folder: Path) -> list[Path]:
    """Shards of a generated folder, by first case; none is a UsageError."""
    files = sorted(Path(folder).glob("cases_*.h5"))
    if not files:
        raise UsageError(f"{folder} holds no cases_*.h5; make some with 'lungwave generate --out {folder}'")
    return files


def folder_config(folder: Path) -> Config:
    """The configuration that a folder's cases were generated with."""
    path = Path(folder) / "config.json"
    try:
        held = unstamped(path, read_json(path))
    except UsageError as error:
        raise UsageError(f"{error}; give a folder that 'lungwave generate' wrote") from None
    if not isinstance(held, dict) or not isinstance(held.get("config"), dict):
        raise UsageError(f"{path} is missing or unreadable; give a folder that 'lungwave generate' wrote")
    return Config().override(held["config"])


def read_shards(folder: Path) -> Iterator[tuple[Recording, CaseTable]]:
    """Recording and truth of every shard."""
    for path in shard_files(folder):
        table = read_cases(path)
        if table is None:
            raise UsageError(f"{path} carries RF without truth; generate it with 'lungwave generate'")
        yield read_recording(path), table


def split(base_ids: np.ndarray, fractions: tuple[float, ...], seed: int) -> list[np.ndarray]:
    """Boolean masks over cases, one per fraction, such that all cases of a base anatomy fall on the same side.

    Raises:
        UsageError: fractions that do not add up to 1, or fewer bases than parts.
    """
    bases = np.unique(base_ids)
    if not math.isclose(sum(fractions), 1.0, abs_tol=1e-9) or min(fractions) <= 0:
        raise UsageError(f"split fractions {fractions} must be positive and add up to 1")
    if len(bases) < len(fractions):
        raise UsageError(f"{len(bases)} base anatomies cannot be split into {len(fractions)} parts; generate more")
    order = stream(seed, "split").permutation(bases)
    edges = np.round(np.cumsum(fractions) * len(bases)).astype(int)
    return [np.isin(base_ids, part) for part in np.split(order, edges[:-1])]
