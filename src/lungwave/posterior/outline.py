"""The best linear guess at a resolved map: ridge regression of its nodes, column by column, on features of the echoes.

A network that is shown it starts from how much air there is, which is in the energy and the coherence of late echoes,
and has only to learn where it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Integer

from lungwave.phantom.resolved import CHANNELS
from lungwave.posterior.echoes import Echoes, reader_of
from lungwave.posterior.linear import Linear, additive, ridge_by_groups
from lungwave.posterior.pairs import BATCH, Pairs, noisy
from lungwave.posterior.ridge import features_below, local_rows

CASES = 12000  # that it is fitted on, at most
STEP = 16  # columns skipped there
STILL = 1e-6  # spread of a feature that says nothing


@dataclass(frozen=True)
class Outline:
    """Column features and global features -> the nodes of a column."""

    head: Linear
    center: Float[np.ndarray, " feature"]
    scale: Float[np.ndarray, " feature"]

    def maps(
        self, echoes: Echoes, depth: Float[np.ndarray, "frame x"], unseen: Integer[np.ndarray, " frame"] | None = None
    ) -> Float[np.ndarray, "frame node x"]:
        """Nodes of every column (air, then sound speed; fractions, not clipped) where maps begin at ``depth`` [m]."""
        del unseen
        found = self.head(self._read(*features_below(echoes, depth), slice(None)))
        return found.reshape(len(depth), depth.shape[1], -1).transpose(0, 2, 1)

    def _read(self, columns: np.ndarray, features: np.ndarray, which: slice) -> Float[np.ndarray, "row three"]:
        return additive((local_rows(columns, features, which) - self.center) / self.scale)

    @classmethod
    def fit(cls, pairs: Pairs, search: tuple[float, float], snr_db: tuple[float, float], seed: int) -> Outline:
        """From noisy frames of pairs of resolved maps."""
        reader = reader_of(pairs.config, pairs.scan, search)
        rows = np.unique(np.linspace(0, len(pairs) - 1, min(len(pairs), CASES)).round().astype(int))
        local, whole = [], []
        for part in np.array_split(rows, -(-len(rows) // BATCH)):
            top = pairs.tops(part)
            assert top is not None
            columns, features = features_below(reader(noisy(pairs, part, snr_db, seed, "outline")), top)
            local.append(columns[:, :, STEP // 2 :: STEP])
            whole.append(features)
        columns, features = np.concatenate(local), np.concatenate(whole)
        raw = local_rows(columns, features, slice(None))
        center, spread = raw.mean(0), raw.std(0)
        scale = np.where(spread > STILL, spread, 1 / STILL)  # else rounding alone would count
        nodes = pairs.maps(rows)[..., STEP // 2 :: STEP]
        y = nodes.reshape(len(rows), CHANNELS * nodes.shape[2], -1).transpose(0, 2, 1).reshape(len(raw), -1)
        groups = np.repeat(pairs.cases.base_id[rows], columns.shape[2])
        head = ridge_by_groups(additive((raw - center) / scale), y.astype(float), groups).whole
        return cls(head, center, scale)
