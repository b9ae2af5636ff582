"""Baselines that give one answer: regressors and the mean of the training maps, with split-conformal intervals.

They read the echoes as the diffusion posterior does (``conditioning``), learn from the same pairs, and say how wrong
they may be by how wrong they were on lungs held out. Ridge regression stands in ``ridge``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save
from torch import Tensor

from lungwave.acoustics.probe import Scan, sequence
from lungwave.config import Config
from lungwave.models.checkpoint import WEIGHTS, empty_network, fill, network_config, stored, write_folder
from lungwave.models.fno import FNOConfig, FNORegressor
from lungwave.models.precond import SIGMA_DATA, Scaling
from lungwave.models.regressor import MeanMap, Regressor, UNetRegressor, parameters_of
from lungwave.models.unet import Condition
from lungwave.posterior.amortized import Novelty
from lungwave.posterior.conditioning import Conditioner, Scales, scaled
from lungwave.posterior.folder import empty_encoder, opened, pack, read_reader, reader_facts, under, unpack
from lungwave.posterior.linear import ERROR_FLOOR, LEVELS, Linear, conformal_quantiles, fit_spread, spread
from lungwave.posterior.pairs import PairSource
from lungwave.posterior.pleura import PleuraDetector
from lungwave.posterior.readout import BandReadout
from lungwave.repro import manifest
from lungwave.types import Frames, LungwaveError, UsageError

FORMAT = 1
KIND = "regressor"
CURE = "train one with lungwave.prior.baselines.train_regressor"
LEVEL = 0.9  # of intervals, where nothing else is asked for
BATCH = 32  # frames at a time
BLOCKS = 8  # of the rows of a column, on whose aeration its expected error depends
COLUMN_STEP = 4  # from one calibrated column to the next; neighbours err alike


@dataclass(frozen=True)
class BaselineEstimate:
    """The answer to a batch of frames, fractions 0-1, and intervals of one level for every number by itself."""

    bands: Float[np.ndarray, "frame out"]  # every depth band, then the whole depth
    bands_low: Float[np.ndarray, "frame out"]
    bands_high: Float[np.ndarray, "frame out"]
    map: Float[np.ndarray, "frame z x"]
    map_low: Float[np.ndarray, "frame z x"]
    map_high: Float[np.ndarray, "frame z x"]
    pleura_depth: Float[np.ndarray, "frame x"]  # [m]
    novelty: Float[np.ndarray, " frame"]  # > 1: unlike any recording of the training


@dataclass(frozen=True)
class Errors:
    """What some answers were wrong by, beside what their size may depend on."""

    features: Float[np.ndarray, "row feature"]
    error: Float[np.ndarray, "row out"]


@dataclass(frozen=True)
class Conformal:
    """Split-conformal intervals: an expected error for every answer, times quantiles of how far cases exceeded it."""

    spread: Linear
    quantile: Float[np.ndarray, "level out"]

    @classmethod
    def fit(cls, seen: Errors, held: Errors) -> Conformal:
        """The expected error is learned from ``seen``, the quantiles from ``held``; both unknown to the network."""
        expected = fit_spread(seen.features, seen.error)
        quantile = conformal_quantiles(np.abs(held.error) / spread(expected, held.features))
        return cls(expected, np.minimum(quantile, 1 / ERROR_FLOOR))  # too few cases for a level: all of 0-1

    def half(self, features: Float[np.ndarray, "row feature"], level: float) -> Float[np.ndarray, "row out"]:
        """Half widths of the intervals of ``level``, one of ``LEVELS``."""
        if level not in LEVELS:
            raise UsageError(f"no intervals of level {level:g} were calibrated; give one of {LEVELS}")
        return self.quantile[LEVELS.index(level)] * spread(self.spread, features)


def readout_of(readout: BandReadout, scaling: Scaling) -> tuple[Float[Tensor, "z out"], Float[Tensor, " out"]]:
    """``Regressor.read``'s weight and bias: a readout of fractions as one of network units."""
    shift = scaling.mean * readout.weight.sum(0) + readout.bias - scaling.mean
    return torch.from_numpy(readout.weight), torch.from_numpy(shift * (SIGMA_DATA / scaling.std))


def answers(
    net: Regressor, scaling: Scaling, cond: Condition
) -> tuple[Float[np.ndarray, "frame out"], Float[np.ndarray, "frame z x"]]:
    """Bands and maps of a network in evaluation mode, fractions within 0-1."""
    device, (rows, out), found = net.weight.device, net.weight.shape, []
    assert cond.vector is not None
    with torch.no_grad():
        for part in torch.arange(len(cond.vector)).split(BATCH):
            found.append(net(cond.take(part).to(device)))
    bands, maps = torch.cat([part.bands for part in found]), torch.cat([part.map[:, 0] for part in found])
    assert maps.shape[1] == rows and bands.shape[1] == out
    fractions = (scaling.to_data(values).clamp(0, 1).cpu().numpy().astype(np.float64) for values in (bands, maps))
    return next(fractions), next(fractions)


def calibrate(net: Regressor, scaling: Scaling, seen: PairSource, held: PairSource) -> tuple[Conformal, Conformal]:
    """Intervals of bands and of map rows from two sets of lungs that the network did not learn from.

    Bands are counted exactly, so that what a map cannot show is part of their error. Columns of one lung are not
    independent: the intervals of the map hold on average over columns.
    """
    (bands, columns), (held_bands, held_columns) = (_errors(net.eval(), scaling, part) for part in (seen, held))
    return Conformal.fit(bands, held_bands), Conformal.fit(columns, held_columns)


def _errors(net: Regressor, scaling: Scaling, source: PairSource) -> tuple[Errors, Errors]:
    """Errors of bands, by frame, and of maps, by frame and column; the noise of a case is always the same."""
    parts: list[tuple[np.ndarray, ...]] = []
    for rows in np.array_split(np.arange(len(source)), -(-len(source) // BATCH)):
        cond = source.images(rows, None)[1]
        assert cond is not None
        bands, maps = answers(net, scaling, cond)
        wrong = maps - source.pairs.cases.smooth[rows]
        parts.append((
            _band_features(bands, cond), bands - source.pairs.aeration[rows],
            _column_features(maps, cond)[:, ::COLUMN_STEP], wrong.transpose(0, 2, 1)[:, ::COLUMN_STEP],
        ))  # fmt: skip
    of_bands, bands, of_columns, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Errors(of_bands, bands), Errors(_flat(of_columns), _flat(columns))


def _flat(values: Float[np.ndarray, "frame x any"]) -> Float[np.ndarray, "row any"]:
    return values.reshape(-1, values.shape[2])


def _band_features(bands: Float[np.ndarray, "frame out"], cond: Condition) -> Float[np.ndarray, "frame feature"]:
    """What was said, its variance if it were a chance, and the numbers of the condition but the first, always 1."""
    assert cond.vector is not None
    return np.concatenate([bands, bands * (1 - bands), cond.vector[:, 1:].double().cpu().numpy()], 1)


def _column_features(maps: Float[np.ndarray, "frame z x"], cond: Condition) -> Float[np.ndarray, "frame x feature"]:
    """The same of each column, its rows in blocks."""
    assert cond.vector is not None
    blocks = np.stack([part.mean(1) for part in np.array_split(maps, BLOCKS, axis=1)], 2)
    numbers = cond.vector[:, 1:].double().cpu().numpy()
    beside = np.broadcast_to(numbers[:, None], (*blocks.shape[:2], numbers.shape[1]))
    return np.concatenate([blocks, blocks * (1 - blocks), beside], 2)


@dataclass(frozen=True)
class RegressorModel:
    """Everything between a recording and the one answer to it."""

    net: Regressor
    scaling: Scaling
    scales: Scales
    detector: PleuraDetector
    novelty: Novelty
    bands: Conformal
    map: Conformal
    config: Config  # of the acquisition and the map
    about: Mapping[str, Any]  # how it was trained

    @property
    def scan(self) -> Scan:
        """The acquisition that the model was trained for."""
        return sequence(self.config)

    def predict(self, rf: Frames, level: float = LEVEL, scan: Scan | None = None) -> BaselineEstimate:
        """Map and bands of every frame with intervals of ``level``.

        Raises UsageError for frames that hold values that are not finite, and levels that were not calibrated.
        """
        if not np.isfinite(rf).all():
            raise UsageError("the RF holds values that are not finite; repair the recording, or leave the frame out")
        read = Conditioner(self.config, scan or self.scan, self.detector).read(rf)
        cond = scaled(read, self.scales, self.scaling)
        bands, maps = answers(self.net, self.scaling, cond)
        of_band = self.bands.half(_band_features(bands, cond), level)
        columns = self.map.half(_flat(_column_features(maps, cond)), level)
        of_pixel = columns.reshape(len(maps), maps.shape[2], -1).transpose(0, 2, 1)
        return BaselineEstimate(
            bands, (bands - of_band).clip(0, 1), (bands + of_band).clip(0, 1),
            maps, (maps - of_pixel).clip(0, 1), (maps + of_pixel).clip(0, 1),
            read.pleura_depth, self.novelty(cond),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------- the folder


def network_facts(net: Regressor) -> dict[str, Any]:
    """What makes a regressor's network, as JSON knows it."""
    found: dict[str, Any]
    match net:
        case MeanMap():
            found = {"name": "mean"}
        case FNORegressor():
            found = {"name": "fno", "operator": asdict(net.config)}
        case UNetRegressor():
            encoder = None if net.encoder is None else asdict(net.encoder.config)
            found = {"name": "unet", "network": asdict(net.net.config), "encoder": encoder, "images": net.images}
        case _:
            raise LungwaveError(f"a {type(net).__name__} cannot be stored")
    return json.loads(json.dumps(found))


def _rebuilt(held: Mapping[str, Any], state: Mapping[str, Tensor]) -> Regressor:
    """The network that ``network_facts`` described, with the tensors that ``state`` holds of it left to fill in."""
    readout = state["weight"], state["bias"]
    match held["name"]:
        case "mean":
            return MeanMap(*readout, state["mean"])
        case "fno":
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in held["operator"].items()}
            return FNORegressor(*readout, FNOConfig(**values), state["places"])
        case "unet":
            encoder = empty_encoder(held["encoder"], state.get("encoder.places"))
            return UNetRegressor(
                *readout, empty_network(network_config(held["network"])), encoder, bool(held["images"])
            )
    raise UsageError(f"regressor '{held['name']}' is unknown; update lungwave")


def save_regressor(
    folder: Path, model: RegressorModel, *, card: str, command: str, settings: Mapping[str, Any], seed: int,
    parents: Sequence[Path] = (), dtype: str = "float32",
) -> None:  # fmt: skip
    """Write a model folder: model.safetensors, config.json, README.md."""
    learned = {f"net.{name}" for name, _ in model.net.named_parameters()}
    tensors = {f"net.{name}": value for name, value in model.net.state_dict().items()}
    weights = stored({k: v for k, v in tensors.items() if k in learned}, dtype, str(folder))
    weights |= stored({k: v for k, v in tensors.items() if k not in learned}, "float32", str(folder))
    weights |= pack({name: getattr(model, name) for name in ("scales", "detector", "novelty")})
    for name, intervals in (("bands", model.bands), ("map", model.map)):
        weights |= pack({f"{name}.spread": intervals.spread, f"{name}.quantile": intervals.quantile})
    about = {
        "format": FORMAT,
        "kind": KIND,
        "regressor": network_facts(model.net),
        **reader_facts(model.config, model.scaling, model.detector),
        "levels": list(LEVELS),
        "novelty_limit": model.novelty.limit,
        "storage": dtype,
        "parameters": parameters_of(model.net),
        "command": command,
        **dict(model.about),
        **manifest(json.dumps(dict(settings), sort_keys=True), seed, parents),
    }
    write_folder(folder, save(weights), about, card)


def load_regressor(folder: Path) -> RegressorModel:
    """Read a model folder; nothing in it is executed.

    Raises UsageError for a folder that is missing, damaged, of another kind or newer format, or trained on echoes that
    were read in another way.
    """
    with opened(folder, KIND, FORMAT, CURE) as (about, state):
        config, scaling, scales, detector = read_reader(about, state, str(folder))
        if about["levels"] != list(LEVELS):
            raise UsageError(f"{folder} holds intervals of levels {about['levels']}, not {LEVELS}; {CURE}")
        held = under("net.", state)
        net = _rebuilt(about["regressor"], held)
        fill(net, held, str(folder / WEIGHTS))
        bands, rows = (
            Conformal(Linear(**unpack(state, f"{name}.spread")), state[f"{name}.quantile"].double().numpy())
            for name in ("bands", "map")
        )
        return RegressorModel(
            net.eval(),
            scaling,
            scales,
            detector,
            Novelty(**unpack(state, "novelty"), limit=float(about["novelty_limit"])),
            bands,
            rows,
            config,
            {key: about[key] for key in ("trained", "weights_sha256") if key in about},
        )
