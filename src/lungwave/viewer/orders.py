"""What a browser may ask for: few words and numbers, each checked before any work is done; never a path."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from lungwave.types import UsageError

# Deterministic samplers, so that a seed names a lung; names of sample.SAMPLERS, which is not imported for its torch.
SAMPLERS = {
    "dpmpp_2m": "DPM-Solver++ 2M",
    "unipc": "UniPC",
    "heun": "Heun (two calls a step)",
    "dpmpp_3m": "DPM-Solver++ 3M",
}
CATEGORIES = ("healthy", "interstitial", "consolidation", "fibrosis")
TRAINED = 3  # of the categories, the first ones, were in the training of the shipped models
SNRS = (40.0, 30.0, 20.0, 10.0)  # [dB]
LARGEST_SEED = 2**31 - 1

# Least and most of each number.
BOUNDS: dict[str, tuple[float, float]] = {
    "samples": (2, 64),
    "steps": (4, 64),
    "seed": (0, LARGEST_SEED),
    "severity": (0.0, 1.0),
    "count": (1, 32),
    "first": (0, 10_000),
    "start": (0, 10_000),
    "end": (0, 10_000),
    "frames": (2, 48),
}
WORDS: dict[str, tuple[Any, ...]] = {"sampler": tuple(SAMPLERS), "category": CATEGORIES, "snr_db": SNRS}


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """How a model draws."""

    sampler: str = "dpmpp_2m"
    steps: int = 8  # as posterior.amortized.STEPS
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FileOrder(Drawing):
    """Reconstruct a file that was uploaded."""

    model: str = ""  # name of one that the server offers, "" = its first
    samples: int = 32  # of a posterior


@dataclass(frozen=True, kw_only=True)
class PhantomOrder(FileOrder):
    """Draw a lung, send sound through it, reconstruct it; ``seed`` is also that of the chest."""

    category: str = "healthy"
    severity: float = 0.5  # share of lungs of the category that hold more air
    snr_db: float = 30.0  # [dB]


@dataclass(frozen=True, kw_only=True)
class PriorOrder(Drawing):
    """Draw lungs from the prior alone."""

    steps: int = 15
    count: int = 24
    first: int = 0  # number of the first lung


@dataclass(frozen=True, kw_only=True)
class MorphOrder(Drawing):
    """From lung ``start`` of the prior to lung ``end``."""

    steps: int = 15
    start: int = 0
    end: int = 1
    frames: int = 25


Order: TypeAlias = FileOrder | PhantomOrder | PriorOrder | MorphOrder
ORDERS: dict[str, type[FileOrder | PriorOrder | MorphOrder]] = {
    "file": FileOrder,
    "phantom": PhantomOrder,
    "prior": PriorOrder,
    "morph": MorphOrder,
}
T = TypeVar("T", bound=Drawing)


def read_order(kind: Any, given: Any, models: tuple[str, ...]) -> Order:
    """The order that a browser sent. UsageError for any word or number that is not among those offered."""
    if kind not in ORDERS or kind == "file":  # a file comes with its bytes, through another door
        raise UsageError(f"unknown kind of job {kind!r:.40}; known: {', '.join(k for k in ORDERS if k != 'file')}")
    return checked(ORDERS[kind], given, models)


def checked(kind: type[T], given: Any, models: tuple[str, ...]) -> T:
    """Build an order of ``kind`` from what JSON held; whatever is left out has its default."""
    if not isinstance(given, Mapping):
        raise UsageError(f"settings are {given!r:.40}; send an object of settings")
    hints = typing.get_type_hints(kind)
    known = {field.name for field in dataclasses.fields(kind)}
    unknown = sorted(set(map(str, given)) - known)
    if unknown:
        raise UsageError(f"unknown setting '{unknown[0]:.40}'; known: {', '.join(sorted(known))}")
    words = {**WORDS, "model": ("", *models)}
    return kind(**{name: _value(name, value, hints[name], words) for name, value in given.items()})


def _value(name: str, value: Any, hint: type, words: Mapping[str, tuple[Any, ...]]) -> Any:
    if name in words:
        if isinstance(value, bool) or value not in words[name]:
            raise UsageError(f"'{name}' is {value!r:.40}; choose one of {', '.join(map(str, words[name]))}")
        return value
    least, most = BOUNDS[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most or (hint is int and value != int(value)):
        what = "a whole number" if hint is int else "a number"
        raise UsageError(f"'{name}' is {value!r:.40}; give {what} from {least:g} to {most:g}")
    return hint(value)
