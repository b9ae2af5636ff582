"""Whether samples are copies: their distance to the nearest training map against that of real maps never trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.fft import next_fast_len, rfft

from lungwave.evaluate.copying import Suspicion, cells_of, suspicion
from lungwave.evaluate.features import check_maps, check_same_size, pixels
from lungwave.types import UsageError

SHIFT = 4  # largest lateral shift [pixel] that still counts as the same map
CHUNK = 2048  # training maps at a time
ROWS = 128  # queries at a time
CANDIDATES = 4  # nearest in single precision that are measured again in double


@dataclass(frozen=True)
class Nearest:
    """Nearest training map of each query; distances are root mean squares over the pixels compared (fraction 0-1)."""

    distance: Float[np.ndarray, " n"]
    index: Int[np.ndarray, " n"]  # training map
    flip: Bool[np.ndarray, " n"]  # whether that map was mirrored left to right
    shift: Int[np.ndarray, " n"]  # lateral shift of the query against it [pixel]
    second: Float[np.ndarray, " n"]  # distance to the nearest other training map

    @property
    def two(self) -> Float[np.ndarray, "n 2"]:
        """Nearest and second nearest distance."""
        return np.stack([self.distance, self.second], 1)


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

    The products of all pairs in all moves come from four real matrix products a lateral frequency: a shift is a phase,
    and a flip the complex conjugate. Single precision, on maps centred on the mean of each depth (the same for every
    flip and shift), which keeps the cancellation small. The four best candidates of each query are then measured in
    double precision, so that an exact copy has distance zero. Memory: 6 bytes a pair of maps, and blocks.
    """
    queries, train = check_maps(queries, "queries", 1), check_maps(train, "training maps", 2)
    check_same_size(("queries", queries), ("training maps", train))
    moves = list(_moves(train.shape[2], shifts))
    centre = train.mean((0, 2))[:, None]
    length = next_fast_len(train.shape[2] + max(shift for _, shift in moves), real=True)  # no wrapping round
    turns = _turns(moves, train.shape[2], length)
    centred = queries - centre
    ours, our_energy = _along_frequency(centred, length), _energies(centred, moves, query=True)
    best = np.full((len(queries), len(train)), np.inf, np.float32)
    how = np.zeros(best.shape, np.int16)
    for start in range(0, len(train), CHUNK):
        part = train[start : start + CHUNK] - centre
        theirs, their_energy = _along_frequency(part, length), _energies(part, moves, query=False)
        for first in range(0, len(queries), ROWS):
            rows = slice(first, first + ROWS)
            mean_square = _products([half[:, rows] for half in ours], theirs, turns)
            mean_square += our_energy[:, rows, None]
            mean_square += their_energy[:, None]
            best[rows, start : start + len(part)] = mean_square.min(0)
            how[rows, start : start + len(part)] = mean_square.argmin(0)
    return _rank_again(queries, train, best, how, moves)


def _along_frequency(maps: np.ndarray, length: int) -> list[np.ndarray]:
    """Real and imaginary part of each row's spectrum, [frequency, n, z] each."""
    found = rfft(maps, length, axis=2, workers=-1).transpose(2, 0, 1)
    return [np.ascontiguousarray(found.real), np.ascontiguousarray(found.imag)]


def _turns(moves: list[tuple[bool, int]], columns: int, length: int) -> Float[np.ndarray, "move product"]:
    """-2 / columns times the sum of a query times a moved training map, from the products of their spectra's parts.

    Each move's weights of the four kinds of products that ``_products`` makes, frequency by frequency. A query that is
    shifted by s has the phase exp(2 pi i f s / length); a map mirrored within its columns has the conjugate spectrum
    and the phase of its last column.
    """
    frequency = np.arange(length // 2 + 1)
    once = (frequency == 0) | (2 * frequency == length)  # the others stand for their conjugate too
    weight = np.where(once, 1, 2) / length
    rows = []
    for flip, shift in moves:
        angle = 2 * np.pi * frequency * (shift + (columns - 1 if flip else 0)) / length
        real, imaginary = weight * np.cos(angle), weight * np.sin(angle)
        sign = -1 if flip else 1
        row = np.concatenate([real, sign * real, -imaginary, sign * imaginary])
        rows.append(-2 / (columns - abs(shift)) * row)
    return np.array(rows, np.float32)


def _products(ours: list[np.ndarray], theirs: list[np.ndarray], turns: np.ndarray) -> Float[np.ndarray, "move n t"]:
    """For every move and pair, -2 / columns times the sum of the products of their pixels."""
    (real, imaginary), (real_other, imaginary_other) = ours, theirs
    pairs = ((real, real_other), (imaginary, imaginary_other), (imaginary, real_other), (real, imaginary_other))
    sums = np.empty((len(pairs), len(real), real.shape[1], real_other.shape[1]), np.float32)  # [kind, frequency, n, t]
    for (a, b), out in zip(pairs, sums, strict=True):
        np.matmul(a, b.swapaxes(1, 2), out=out)
    return (turns @ sums.reshape(turns.shape[1], -1)).reshape(-1, *sums.shape[2:])


def _energies(maps: np.ndarray, moves: list[tuple[bool, int]], *, query: bool) -> Float[np.ndarray, "move n"]:
    """Sum over depth and mean over the columns compared of each map's squares, move by move."""
    column = np.einsum("nzx,nzx->nx", maps, maps)[:, None]
    found = [
        _views(column[..., ::-1] if flip and not query else column, shift, query=query).mean((1, 2), dtype=np.float64)
        for flip, shift in moves
    ]
    return np.array(found, np.float32)


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
    said: Suspicion

    @property
    def suspects(self) -> Bool[np.ndarray, " n"]:
        """Samples nearer to a training map than the threshold."""
        return self.samples.distance < self.said.threshold

    def summary(self) -> dict[str, float]:
        """The numbers, for a table."""
        return {
            **asdict(self.said),
            "median_distance": float(np.median(self.samples.distance)),
            "median_distance_held_out": float(np.median(self.held_out.distance)),
        }


def memorisation(
    samples: Float[np.ndarray, "n z x"],
    train: Float[np.ndarray, "t _ _"],
    held_out: Float[np.ndarray, "m _ _"],
    shifts: int = SHIFT,
    seed: int = 0,
) -> Memorisation:
    """Samples nearer to the training set than the 1st percentile of held-out maps, and the other tests of ``copying``.

    Held-out maps must come from other subjects than the training maps. The percentile is a held-out distance, so the
    share expected of fresh real maps is exact (``expected``; 1/(m+1) where m < 100).
    """
    samples, held_out = check_maps(samples, "samples", 1), check_maps(held_out, "held-out maps", 1)
    check_same_size(("samples", samples), ("held-out maps", held_out))
    if shifts < 0:
        raise UsageError(f"shifts is {shifts}; give a number of pixels, 0 for none")
    found, null = nearest(samples, train, shifts), nearest(held_out, train, shifts)
    seen, ours, real = (pixels(check_maps(maps, "maps", 1)) for maps in (train, samples, held_out))
    mine, theirs = cells_of(seen, ours, real, seed=seed)
    return Memorisation(found, null, suspicion(found.two, null.two, (mine, theirs)))
