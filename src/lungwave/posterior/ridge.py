"""The prior-free baseline: ridge regression of aeration on echo features at the detected pleura, conformal intervals.

Every later model must beat it. One head gives percent aeration of each depth band, one the map, column by column.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Integer
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lungwave.acoustics.probe import Scan, sequence
from lungwave.acoustics.receive import add_noise
from lungwave.config import Config
from lungwave.data.dataset import folder_config, read_shards, shard_files, split
from lungwave.data.schema import CaseTable
from lungwave.models.checkpoint import ABOUT, WEIGHTS, write_folder
from lungwave.posterior.echoes import (
    Echoes,
    EchoReader,
    channel_features,
    column_features,
    global_features,
    reader_of,
    search_range,
)  # fmt: skip
from lungwave.posterior.linear import (
    LEVELS,
    Linear,
    additive,
    conformal_quantiles,
    fit_spread,
    folds_of,
    ridge_by_groups,
    spread,
)
from lungwave.posterior.pleura import PleuraDetector, fit_detector
from lungwave.progress import Progress
from lungwave.repro import atomic_path, manifest, sha256, stream, unstamped
from lungwave.types import Frames, UsageError

FORMAT = 1
FOLDS_FILE = "folds.safetensors"  # beside the model: what a training around its maps needs, and nothing else
HEAD = ("weight", "bias", "mean", "scale")  # arrays of a linear head
ARRAYS = ("bands_quantile", "map_quantile", "center", "scale", "whiten")  # of the model, beside detector and heads
LEAST_CASES = 100
COLUMN_STEP = 4  # columns skipped in training the map head
NOVELTY_QUANTILE = 0.999  # of the calibration cases: echoes further out are not like those trained on
NOVELTY_MARGIN = 1.25
NOVELTY_FLOOR = 0.01  # of the variance of a standardised feature: near-constant directions must not raise the alarm


@dataclass(frozen=True)
class Estimate:
    """What the model says about a batch of frames; intervals are half widths at ``LEVELS``."""

    bands: Float[np.ndarray, "frame out"]  # fraction 0-1: every band, then the whole depth
    bands_half: Float[np.ndarray, "level frame out"]
    aeration: Float[np.ndarray, "frame z x"]
    aeration_half: Float[np.ndarray, "level frame z x"]
    pleura_depth: Float[np.ndarray, "frame x"]  # [m]
    novelty: Float[np.ndarray, " frame"]  # > 1: echoes unlike any in training


@dataclass(frozen=True)
class Folds:
    """Heads of the map that have each not seen a part of the lungs behind the whole model."""

    heads: tuple[Linear, ...]
    base_id: Integer[np.ndarray, " base"]  # that the whole model was fitted on, ascending

    def unseen(self, base_id: Integer[np.ndarray, " case"]) -> Integer[np.ndarray, " case"]:
        """Number of the head that has not seen each base anatomy; -1: neither has the whole model."""
        order = folds_of(self.base_id)
        place = np.searchsorted(self.base_id, base_id).clip(max=len(self.base_id) - 1)
        return np.where(self.base_id[place] == base_id, order[place], -1)


@dataclass(frozen=True)
class RidgeModel:
    """Detector, two linear heads with their spreads and conformal quantiles, and what was seen in training."""

    detector: PleuraDetector
    bands: Linear
    bands_spread: Linear
    bands_quantile: Float[np.ndarray, "level out"]
    map: Linear
    map_spread: Linear
    map_quantile: Float[np.ndarray, "level z"]
    center: Float[np.ndarray, " local"]  # of column features, then global features, over the training rows
    scale: Float[np.ndarray, " local"]
    whiten: Float[np.ndarray, "feature feature"]  # standardised global features to unit covariance
    usual_limit: float
    config: Config
    trained: dict[str, Any]
    command: str = ""  # that made it, of a stored model
    folds: Folds | None = None

    @property
    def scan(self) -> Scan:
        """The acquisition that the model was trained for."""
        return sequence(self.config)

    def reader(self, scan: Scan | None = None) -> EchoReader:
        """Echo reader of a scan (the trained one by default) on the map's columns."""
        return reader_of(self.config, scan or self.scan)

    def maps(
        self,
        echoes: Echoes,
        depth: Float[np.ndarray, "frame x"],
        unseen: Integer[np.ndarray, " frame"] | None = None,
    ) -> Float[np.ndarray, "frame z x"]:
        """The map of every frame alone, clipped to 0-1, read below a pleura [m] that somebody else found.

        ``unseen`` numbers the head for each frame as ``Folds.unseen`` does; by default the whole model answers.
        """
        columns, features = features_below(echoes, depth)
        rows = self._rows(columns, features)
        found = _as_maps(self.map(rows), columns)
        if unseen is not None and self.folds is not None:
            for k, head in enumerate(self.folds.heads):
                mine = np.flatnonzero(unseen == k)
                if len(mine):
                    found[mine] = _as_maps(head(rows), columns)[mine]
        return found.clip(0, 1)

    def _rows(
        self, columns: Float[np.ndarray, "frame feature x"], features: Float[np.ndarray, "frame all"]
    ) -> Float[np.ndarray, "row three"]:
        """What the heads of the map read of every column."""
        return additive((local_rows(columns, features, slice(None)) - self.center) / self.scale)

    def predict(self, echoes: Echoes) -> Estimate:
        """Aeration of every frame, clipped to 0-1."""
        depth, columns, features = read_features(echoes, self.detector)
        rows, count = self._rows(columns, features), columns.shape[1]
        standard = (features - self.center[count:]) / self.scale[count:]
        bent = additive(standard)
        bands, wide = self.bands(bent), spread(self.bands_spread, bent)
        aeration = _as_maps(self.map(rows), columns)
        doubt = _as_maps(spread(self.map_spread, rows), columns)
        distance = np.linalg.norm(standard @ self.whiten, axis=1)
        return Estimate(
            bands.clip(0, 1),
            self.bands_quantile[:, None, :] * wide,
            aeration.clip(0, 1),
            self.map_quantile[:, None, :, None] * doubt,
            depth,
            distance / self.usual_limit,
        )


def read_features(
    echoes: Echoes, detector: PleuraDetector
) -> tuple[Float[np.ndarray, "frame x"], Float[np.ndarray, "frame feature x"], Float[np.ndarray, "frame all"]]:
    """Detected pleura [m], column features and global features."""
    depth = detector.detect(echoes)
    return depth, *features_below(echoes, depth)


def features_below(
    echoes: Echoes, depth: Float[np.ndarray, "frame x"]
) -> tuple[Float[np.ndarray, "frame feature x"], Float[np.ndarray, "frame all"]]:
    """Column features and global features below a pleura [m]."""
    columns = column_features(echoes, depth)
    return columns, global_features(columns, channel_features(echoes, depth))


def _as_maps(rows: Float[np.ndarray, "row z"], columns: np.ndarray) -> Float[np.ndarray, "frame z x"]:
    """One row per frame and column as maps of the frames."""
    return rows.reshape(len(columns), columns.shape[2], -1).transpose(0, 2, 1)


def local_rows(
    columns: Float[np.ndarray, "frame feature x"], features: Float[np.ndarray, "frame all"], which: slice
) -> Float[np.ndarray, "row both"]:
    """One row per frame and column: what the column shows beside what the frame shows."""
    part = columns[:, :, which].transpose(0, 2, 1)
    beside = np.broadcast_to(features[:, None, :], (*part.shape[:2], features.shape[1]))
    return np.concatenate([part, beside], 2).reshape(-1, part.shape[2] + features.shape[1])


def targets(cases: CaseTable) -> Float[np.ndarray, "frame out"]:
    """Percent aeration of every band and of the whole, fraction 0-1."""
    return np.concatenate([cases.bands, cases.whole[:, None]], 1)


def noisy_frames(rf: Frames, cases: CaseTable, config: Config, snr_db: tuple[float, float], round_: int) -> Frames:
    """Frames with noise at an SNR drawn per case from ``snr_db`` [dB]; streams are keyed by case and round."""
    scan, out = sequence(config), np.empty_like(rf)
    for i, index in enumerate(cases.index):
        generator = stream(config.seed, f"fit/noise/{round_}", int(index))
        out[i] = add_noise(rf[i], scan, config.receive, generator, float(generator.uniform(*snr_db)))[0]
    return out


def fit(
    data: Path,
    snr_db: tuple[float, float] = (10.0, 40.0),
    rounds: int = 2,
    calibration: float = 0.2,
    quiet: bool = False,
) -> RidgeModel:
    """Train on a generated folder: ``rounds`` noise draws a case, a ``calibration`` share of the bases for intervals.

    Raises:
        UsageError: too few cases, or options out of range.
    """
    config = folder_config(data)
    if not (-20 <= snr_db[0] <= snr_db[1] <= 120) or rounds < 1 or not 0 < calibration < 1:
        raise UsageError(
            f"snr_db {snr_db}, rounds {rounds}, calibration {calibration}: give lo <= hi dB, rounds >= 1, a share of 1"
        )
    total = len(shard_files(data))
    with Progress(total, "pleura", quiet=quiet) as progress:
        tables, seen = [], []
        for echoes, cases in _echoes(data, config, snr_db, 0):
            tables.append(cases)
            seen.append((echoes, cases.pleura_depth))
            progress.advance()
    everything = CaseTable.join(tables)
    if len(everything) < LEAST_CASES:
        raise UsageError(f"{data} holds {len(everything)} cases; a ridge model needs at least {LEAST_CASES}")
    fitting, _ = split(everything.base_id, (1 - calibration, calibration), config.seed)
    chosen = set(everything.index[fitting].tolist())
    detector = fit_detector(seen, search_range(config))  # on every base, those of the calibration included
    del seen
    columns, features, cases = _collect(data, config, snr_db, rounds, detector, total, quiet)
    inside = np.isin(cases.index, list(chosen))
    return _fit_heads(columns, features, cases, inside, detector, config, {"snr_db": list(snr_db), "rounds": rounds})


def _echoes(data: Path, config: Config, snr_db: tuple[float, float], round_: int) -> Iterator[tuple[Echoes, CaseTable]]:
    reader = reader_of(config, sequence(config))
    for recording, cases in read_shards(data):
        yield reader(noisy_frames(recording.rf, cases, config, snr_db, round_)), cases


def _collect(
    data: Path,
    config: Config,
    snr_db: tuple[float, float],
    rounds: int,
    detector: PleuraDetector,
    shards: int,
    quiet: bool,
) -> tuple[np.ndarray, np.ndarray, CaseTable]:
    columns, features, tables = [], [], []
    with Progress(shards * rounds, "features", quiet=quiet) as progress:
        for round_ in range(rounds):
            for echoes, cases in _echoes(data, config, snr_db, round_):
                _, local, whole = read_features(echoes, detector)
                columns.append(local.astype(np.float32))
                features.append(whole)
                tables.append(cases)
                progress.advance()
    return np.concatenate(columns), np.concatenate(features), CaseTable.join(tables)


def _fit_heads(
    columns: np.ndarray,
    features: np.ndarray,
    cases: CaseTable,
    inside: np.ndarray,
    detector: PleuraDetector,
    config: Config,
    trained: dict[str, Any],
) -> RidgeModel:
    truth = targets(cases)
    good = np.isfinite(truth).all(1) & cases.valid.all(1)
    # One noise draw of every calibration case: two draws of one case are not exchangeable with a new case.
    first = np.arange(len(inside)) < len(inside) // trained["rounds"]
    inside, outside = inside & good, ~inside & good & first
    every, count = slice(0, None, COLUMN_STEP), columns.shape[1]
    raw = local_rows(columns[inside].astype(float), features[inside], every)
    center, scale = raw.mean(0), raw.std(0) + 1e-9
    rows = additive((raw - center) / scale)
    standard = (features - center[count:]) / scale[count:]
    bent = additive(standard)
    bands = ridge_by_groups(bent[inside], truth[inside], cases.base_id[inside])
    bands_spread = fit_spread(bent[inside], bands.left_out - truth[inside])
    maps = cases.smooth[inside][:, :, every].transpose(0, 2, 1).reshape(len(rows), -1).astype(float)
    groups = np.repeat(cases.base_id[inside], len(rows) // int(inside.sum()))
    head = ridge_by_groups(rows, maps, groups)
    head_spread = fit_spread(rows, head.left_out - maps)
    values, vectors = np.linalg.eigh(np.cov(standard[inside].T))
    whiten = vectors / np.sqrt(values + NOVELTY_FLOOR)
    # Intervals: cases that neither head has seen (the pleura detector has, see ``fit``).
    held = bent[outside]
    scores = np.abs(bands.whole(held).clip(0, 1) - truth[outside]) / spread(bands_spread, held)
    held_rows = additive((local_rows(columns[outside].astype(float), features[outside], every) - center) / scale)
    held_maps = cases.smooth[outside][:, :, every].transpose(0, 2, 1).reshape(len(held_rows), -1)
    map_scores = np.abs(head.whole(held_rows).clip(0, 1) - held_maps) / spread(head_spread, held_rows)
    distance = np.linalg.norm(standard[outside] @ whiten, axis=1)
    return RidgeModel(
        detector,
        bands.whole,
        bands_spread,
        conformal_quantiles(scores),
        head.whole,
        head_spread,
        conformal_quantiles(map_scores),
        center,
        scale,
        whiten,
        float(np.quantile(distance, NOVELTY_QUANTILE) * NOVELTY_MARGIN),
        config,
        {
            **trained,
            "cases": len(np.unique(cases.index)),
            "fitted": int(inside.sum()),
            "calibrated": int(outside.sum()),
            "penalty": bands.penalty,
            "map_penalty": head.penalty,
        },
        folds=Folds(head.folds, np.unique(cases.base_id[inside])),
    )


def _arrays(model: RidgeModel) -> dict[str, np.ndarray]:
    found = {f"detector.{name}": getattr(model.detector, name) for name in ("weight", "mean", "scale")}
    for name in ("bands", "bands_spread", "map", "map_spread"):
        found |= _head_arrays(name, getattr(model, name))
    found |= {name: getattr(model, name) for name in ARRAYS}
    return {name: np.ascontiguousarray(value, np.float64) for name, value in found.items()}


def _head_arrays(name: str, head: Linear) -> dict[str, np.ndarray]:
    return {f"{name}.{part}": getattr(head, part) for part in HEAD}


def _head(name: str, arrays: Mapping[str, np.ndarray]) -> Linear:
    """The inverse of ``_head_arrays``."""
    return Linear(*(np.asarray(arrays[f"{name}.{part}"], np.float64) for part in HEAD))


def _fold_arrays(folds: Folds) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for k, head in enumerate(folds.heads):
        found |= _head_arrays(f"map.{k}", head)
    arrays = {name: np.ascontiguousarray(value, np.float32) for name, value in found.items()}
    return {**arrays, "base_id": np.ascontiguousarray(folds.base_id, np.int64)}


def _read_folds(path: Path) -> Folds | None:
    if not path.is_file():
        return None
    arrays = load_file(path)
    count = sum(name.endswith(f".{HEAD[0]}") for name in arrays)
    return Folds(tuple(_head(f"map.{k}", arrays) for k in range(count)), arrays["base_id"])


def save_model(model: RidgeModel, folder: Path, card: str, command: str, parents: list[Path]) -> None:
    """Write model.safetensors, config.json and README.md (the card) into ``folder``, and the folds if there are any."""
    folds = None if model.folds is None else save(_fold_arrays(model.folds))
    if folds is not None:
        with atomic_path(folder / FOLDS_FILE) as temporary:
            temporary.write_bytes(folds)
    about = {
        "format": FORMAT,
        "kind": "ridge",
        "search": list(model.detector.search),
        "usual_limit": model.usual_limit,
        "levels": list(LEVELS),
        "trained": model.trained,
        "command": command,
        "folds_sha256": None if folds is None else hashlib.sha256(folds).hexdigest(),
        **manifest(model.config.to_json(), model.config.seed, parents),
    }
    write_folder(folder, save(_arrays(model)), about, card)


def load_model(folder: Path) -> RidgeModel:
    """Read a model folder; safetensors hold numbers only, nothing is executed. UsageError where it is not one."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        about = unstamped(folder / ABOUT, about)
        for name, key in ((WEIGHTS, "weights_sha256"), (FOLDS_FILE, "folds_sha256")):
            if about.get(key) and (folder / name).exists() and about[key] != sha256(folder / name):
                raise UsageError(f"{folder / name} is damaged or of another model than {ABOUT}; copy the folder again")
        arrays = {**load_file(folder / "model.safetensors")}
        if about.get("kind") != "ridge" or about["format"] > FORMAT:
            raise UsageError(
                f"{folder} holds a '{about.get('kind')}' model of format {about['format']}; "
                f"this reads ridge up to {FORMAT}"
            )

        shallowest, deepest = about["search"]
        weight, mean, scale = (arrays[f"detector.{part}"] for part in ("weight", "mean", "scale"))
        detector = PleuraDetector(weight, mean, scale, (shallowest, deepest))
        return RidgeModel(
            detector,
            _head("bands", arrays),
            _head("bands_spread", arrays),
            arrays["bands_quantile"],
            _head("map", arrays),
            _head("map_spread", arrays),
            arrays["map_quantile"],
            arrays["center"],
            arrays["scale"],
            arrays["whiten"],
            float(about["usual_limit"]),
            Config().override(about["config"]),
            about["trained"],
            str(about["command"]),
            _read_folds(folder / FOLDS_FILE),
        )
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise UsageError(f"{folder} is not a complete model folder ({error}); fit one with 'lungwave fit'") from None
