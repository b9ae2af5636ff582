"""What all folders of models that read echoes hold: the acquisition, the transform of the echoes, tables of numbers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lungwave.config import Config
from lungwave.models.checkpoint import (
    ABOUT,
    SPECTRUM,
    WEIGHTS,
    empty_network,
    fill,
    network_config,
    not_finite,
    plain,
    read_about,
    read_weights,
    stored,
)
from lungwave.models.encoder import Conditional, EncoderConfig, TraceEncoder
from lungwave.models.precond import Scaling
from lungwave.models.wiener import Wiener
from lungwave.posterior.conditioning import Scales, check_facts, facts
from lungwave.posterior.pleura import PleuraDetector
from lungwave.types import LungwaveError, UsageError


def kind_of(folder: Path) -> str | None:
    """Kind of the model in a folder, as its config.json says; None where it does not say."""
    try:
        kind = json.loads((folder / ABOUT).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError):
        return None
    return kind if isinstance(kind, str) else None


def pack(parts: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arrays by their names, those of a dataclass as ``name.field``, in double precision.

    Raises LungwaveError for values that are not finite.
    """
    arrays: dict[str, Any] = {}
    for name, part in parts.items():
        arrays |= {name: part} if isinstance(part, np.ndarray) else {f"{name}.{k}": v for k, v in vars(part).items()}
    found = {
        name: torch.from_numpy(np.array(value, np.float64, order="C"))
        for name, value in arrays.items()
        if isinstance(value, np.ndarray)
    }
    bad = not_finite(found)
    if bad:
        raise LungwaveError(f"{bad} of the model is not finite; train it again")
    return found


def unpack(state: Mapping[str, Tensor], name: str) -> dict[str, Any]:
    """The arrays that ``pack`` made of a dataclass, by field."""
    return {key: value.double().numpy() for key, value in under(f"{name}.", state).items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose name begins with ``prefix``, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def reader_facts(config: Config, scaling: Scaling, detector: PleuraDetector) -> dict[str, Any]:
    """What decides how echoes are read and maps are scaled, beside tables, for config.json."""
    return {
        "transform": facts(config),
        "scaling": asdict(scaling),
        "search": list(detector.search),
        "acquisition": json.loads(config.to_json()),
    }


def read_reader(
    about: Mapping[str, Any], state: Mapping[str, Tensor], source: str
) -> tuple[Config, Scaling, Scales, PleuraDetector]:
    """The inverse of ``reader_facts``. UsageError for weights that were trained on another transform."""
    config = Config().override(about["acquisition"])
    check_facts(about["transform"], config, source)
    scaling = Scaling(float(about["scaling"]["mean"]), float(about["scaling"]["std"]))
    shallow, deep = about["search"]
    detector = PleuraDetector(**unpack(state, "detector"), search=(float(shallow), float(deep)))
    return config, scaling, Scales(**unpack(state, "scales")), detector


def empty_encoder(held: Mapping[str, Any] | None, places: Tensor | None) -> TraceEncoder | None:
    """The encoder of a configuration in config.json, before it gets its weights; None for none."""
    if held is None or places is None:
        return None
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in held.items()}
    return TraceEncoder(EncoderConfig(**values), places)


def conditional_weights(model: Conditional, dtype: str, source: str) -> dict[str, Tensor]:
    """Tensors of a conditional denoiser around a Wiener filter: network, spectrum, encoder."""
    inner = model.denoiser
    if not isinstance(inner, Wiener):
        raise LungwaveError(f"a posterior around a {type(inner).__name__} cannot be stored")
    weights = stored({f"net.{k}": v for k, v in plain(inner).state_dict().items()}, dtype, source)
    weights |= stored({SPECTRUM: inner.spectrum}, "float32", source)
    if model.encoder is not None:
        weights |= stored({f"encoder.{k}": v for k, v in model.encoder.state_dict().items()}, dtype, source)
    return weights


def conditional_facts(model: Conditional) -> dict[str, Any]:
    """What makes it again before it gets its weights, for config.json."""
    encoder = model.encoder
    return {
        "network": asdict(plain(model.denoiser).config),
        "encoder": None if encoder is None else asdict(encoder.config),
        "images": model.images,
    }


def read_conditional(
    about: Mapping[str, Any], state: Mapping[str, Tensor], source: str, kind: type[Wiener] = Wiener
) -> Conditional:
    """The inverse of ``conditional_facts`` and ``conditional_weights``; ``kind`` is the filter around the network."""
    net = empty_network(network_config(about["network"]))
    fill(net, under("net.", state), source)
    encoder = empty_encoder(about["encoder"], state.get("encoder.places"))
    if encoder is not None:
        fill(encoder, under("encoder.", state), source)
    return Conditional(kind(net, state[SPECTRUM]), encoder, bool(about["images"])).eval()


@contextmanager
def opened(folder: Path, kind: str, newest: int, cure: str) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
    """config.json and finite tensors of a folder; nothing in it is executed.

    Whatever goes wrong in the block because the folder holds something unexpected becomes a UsageError.
    """
    about = read_about(folder, kind, newest, cure)
    state = read_weights(folder / WEIGHTS)
    bad = not_finite(state)
    if bad:
        raise UsageError(f"{folder / WEIGHTS} holds values that are not finite, first in {bad}; {cure}")
    try:
        yield about, state
    except UsageError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise UsageError(f"{folder / ABOUT} is not of this format ({error!r:.120}); {cure}") from None
