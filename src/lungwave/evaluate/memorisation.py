"""Whether samples are copies: their distance to the nearest training map against that of real maps never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import betabinom

from lungwave.evaluate.features import check_maps, check_same_size
from lungwave.types import UsageError

SHIFT = 4  # largest lateral shift [pixel] that still counts as the same map
SHARE = 0.01  # a sample nearer to train than this share of held-out maps is suspect
RATIO = 1 / 3  # nearest over second nearest distance below which a sample is a copy (Yoon et al. 2023)
CHUNK = 2048  # training maps at a time
CANDIDATES = 4  # nearest in single precision that are measured again in double


@dataclass(frozen=True)
class Nearest:
    """Nearest training map of each query; distances are root mean squares over the pixels compared (fraction 0-1)."""

    distance: Float[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]  # training map
    flip: Bool[np.ndarray, " n"]  # whether that map was mirrored left to right
    shift: Int[np.ndarray, " n"]  # lateral shift of the query against it [pixel]
    second: Float[np.ndarray, " n"]  # distance to the nearest other training map


def _views(maps: np.ndarray, shift: int, *, query: bool) -> np.ndarray:
    """The columns that overlap when the query moves ``shift`` pixels to the right of the training map."""
    columns = maps.shape[2] - abs(shift)
    start = max(shift, 0) if query else max(-shift, 0)
    return maps[:, :, start : start + columns]


def _moves(columns: int, shifts: int) -> Iterator[tuple[bool, int]]:
    """Every flip and shift; a shift leaves at least three quarters of the columns to compare."""
    most = min(shifts, columns // 4)
    for flip in (False, True):
        for shift in range(-most, most + 1):
            yield flip, shift


def nearest(queries: Float[np.ndarray, "n z x"], train: Float[np.ndarray, "t _ _"], shifts: int = SHIFT) -> Nearest:
    """Nearest training map of each query over left-right flips and lateral shifts of up to ``shifts`` pixels.

    One single-precision matrix product a flip, shift and chunk, on maps centred on the mean of each depth (the same
    for every flip and shift), which keeps the cancellation small. The four best candidates of each query are then
    measured in double precision, so that an exact copy has distance zero. Memory: 6 bytes a pair of maps and a chunk.
    """
    queries, train = check_maps(queries, "queries", 1), check_maps(train, "training maps", 2)
    check_same_size(("queries", queries), ("training maps", train))
    moves = list(_moves(train.shape[2], shifts))
    centre = train.mean((0, 2))[:, None]
    ours = queries - centre
    best = np.full((len(queries), len(train)), np.inf, np.float32)
    how = np.zeros(best.shape, np.int16)
    for start in range(0, len(train), CHUNK):
        part = train[start : start + CHUNK] - centre
        block = slice(start, start + len(part))
        for number, (flip, shift) in enumerate(moves):
            a = _views(ours, shift, query=True).reshape(len(ours), -1)
            b = _views(part[:, :, ::-1] if flip else part, shift, query=False).reshape(len(part), -1)
            square = a @ b.T
            square *= -2
            square += np.einsum("ij,ij->i", a, a)[:, None]
            square += np.einsum("ij,ij->i", b, b)
            square /= a.shape[1]
            closer = square < best[:, block]
            best[:, block][closer] = square[closer]
            how[:, block][closer] = number
    return _rank_again(queries, train, best, how, moves)


def _rank_again(
    queries: np.ndarray, train: np.ndarray, best: np.ndarray, how: np.ndarray, moves: list[tuple[bool, int]]
) -> Nearest:
    """Exact distances of the nearest few training maps."""
    count = min(CANDIDATES, len(train))
    few = np.argpartition(best, count - 1, axis=1)[:, :count]
    exact = np.empty(few.shape)
    for row, candidates in enumerate(few):
        for column, index in enumerate(candidates.tolist()):
            flip, shift = moves[how[row, index]]
            other = train[index : index + 1, :, ::-1] if flip else train[index : index + 1]
            gap = _views(queries[row : row + 1], shift, query=True).astype(np.float64) - _views(
                other, shift, query=False
            )
            exact[row, column] = np.sqrt(np.square(gap).mean())
    order = np.argsort(exact, axis=1, kind="stable")
    every = np.arange(len(queries))
    winner = few[every, order[:, 0]]
    chosen = [moves[k] for k in how[every, winner]]
    return Nearest(
        distance=exact[every, order[:, 0]],
        index=winner,
        flip=np.array([flip for flip, _ in chosen], bool),
        shift=np.array([shift for _, shift in chosen], int),
        second=exact[every, order[:, 1]],
    )


@dataclass(frozen=True)
class Memorisation:
    """Copies among samples, judged by held-out maps."""

    samples: Nearest
    held_out: Nearest
    threshold: float  # distance below which a sample is suspect
    expected: float  # share of fresh real maps below it
    suspects: Bool[np.ndarray, " n"]
    share: float  # of suspects
    p: float  # chance of at least as many suspects among fresh real maps
    copies: float  # share of samples whose nearest distance is below a third of the second nearest
    held_out_copies: float

    def summary(self) -> dict[str, float]:
        """The numbers, for a table."""
        return {
            "share_below_first_percentile": self.share,
            "expected_share": self.expected,
            "p": self.p,
            "threshold": self.threshold,
            "median_distance": float(np.median(self.samples.distance)),
            "median_distance_held_out": float(np.median(self.held_out.distance)),
            "ratio_below_third": self.copies,
            "ratio_below_third_held_out": self.held_out_copies,
        }


def memorisation(
    samples: Float[np.ndarray, "n z x"],
    train: Float[np.ndarray, "t _ _"],
    held_out: Float[np.ndarray, "m _ _"],
    shifts: int = SHIFT,
) -> Memorisation:
    """Share of samples nearer to the training set than the 1st percentile of held-out maps.

    Held-out maps must come from other subjects than the training maps. The percentile is a held-out distance, so the
    share expected of fresh real maps is exact (``expected``; 1/(m+1) where m < 100), and the number of suspects among
    them is beta-binomial, because all are judged by the same m held-out maps.
    """
    samples, held_out = check_maps(samples, "samples", 1), check_maps(held_out, "held-out maps", 1)
    check_same_size(("samples", samples), ("held-out maps", held_out))
    if shifts < 0:
        raise UsageError(f"shifts is {shifts}; give a number of pixels, 0 for none")
    found, null = nearest(samples, train, shifts), nearest(held_out, train, shifts)
    m = len(held_out)
    k = max(1, int(SHARE * (m + 1)))
    threshold = float(np.sort(null.distance)[k - 1])
    suspects = found.distance < threshold
    return Memorisation(
        samples=found,
        held_out=null,
        threshold=threshold,
        expected=k / (m + 1),
        suspects=suspects,
        share=float(suspects.mean()),
        p=float(betabinom.sf(suspects.sum() - 1, len(samples), k, m + 1 - k)),
        copies=float((found.distance < RATIO * found.second).mean()),
        held_out_copies=float((null.distance < RATIO * null.second).mean()),
    )
