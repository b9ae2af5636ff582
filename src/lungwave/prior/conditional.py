"""A posterior from pairs of echoes and maps: put a training together, run it, and export the model.

The network, its loop and its weight average are those of a prior (``build``); what is new is what it is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungwave.data.dataset import split
from lungwave.models.checkpoint import WEIGHTS
from lungwave.models.encoder import Conditional, TraceEncoder
from lungwave.models.precond import Scaling
from lungwave.models.regressor import parameters_of
from lungwave.models.unet import UNetConfig, describe
from lungwave.models.wiener import Centred, Wiener, mode_variance
from lungwave.posterior.amortized import Novelty, PosteriorModel, save_posterior
from lungwave.posterior.conditioning import NUMBERS, Conditioner
from lungwave.posterior.pairs import Disturbance, Pairs, PairSource, fit_pleura, fit_scales
from lungwave.posterior.readout import BandReadout, CategoryReadout
from lungwave.posterior.resolved import ResolvedModel, save_resolved
from lungwave.posterior.ridge import RidgeModel
from lungwave.posterior.ridge import load_model as load_ridge
from lungwave.prior.build import (
    Prior,
    Watch,
    account,
    best_average,
    budget,
    completed,
    fitted,
    initial,
    timed,
)
from lungwave.prior.journal import Journal, ProgressLine, SigmaCurves, TensorBoard
from lungwave.repro import sha256, stream
from lungwave.shipped import MODEL
from lungwave.training.loop import Listener, Training
from lungwave.training.ranks import Ranks, joined
from lungwave.types import RESEARCH_USE, UsageError

LEAST_CASES = 60
NOVELTY_CASES = 1000  # that the novelty is fitted on, at most
RESIDUALS = 1500  # cases behind the spectrum of what an estimate leaves, at most
PATHS = ("images", "traces")  # what the network may be told: delay-and-sum images, and channel data by themselves


@dataclass(frozen=True)
class Posterior:
    """What decides a posterior beside its cases."""

    prior: Prior  # network, loss, loop; augmentation of maps alone does not apply
    disturbance: Disturbance = field(default_factory=Disturbance)
    paths: tuple[str, ...] = PATHS
    trace_channels: int = 32  # of the encoder
    trace_images: int = 4  # that come out of it
    center: Path | None = None  # folder of a ridge model whose map the denoiser works around; None = the maps' mean
    refine: Path | None = None  # folder of a model of resolved lungs to go on from, told of its guesses
    guesses: Path | None = None  # file that they are kept in

    def __post_init__(self) -> None:
        unknown = [path for path in self.paths if path not in PATHS]
        if unknown or not self.paths:
            raise UsageError(f"paths {' '.join(self.paths) or 'none'}: give one or both of {' '.join(PATHS)}")
        if self.prior.kind != "wiener":
            raise UsageError(f"--kind {self.prior.kind} cannot be told of echoes; leave it at wiener")


@dataclass(frozen=True)
class Ingredients:
    """All that a posterior is made of, ready to train."""

    model: Conditional
    network: UNetConfig
    source: PairSource
    held_out: PairSource
    exported: PosteriorModel | ResolvedModel  # around ``model``; its novelty is fitted when it is written
    started: dict[str, Any]  # the weights that the network began with


def ingredients(pairs: Pairs, plan: Posterior) -> Ingredients:
    """Split by base anatomy, fit detector, scales and readouts on the training side, make the network."""
    seed = plan.prior.train.seed
    inside, outside = sides(pairs, plan.prior)
    kept, held = pairs.take(inside), pairs.take(outside)
    center = None if plan.center is None else _center(plan.center, pairs)
    detector = fit_pleura(kept, plan.disturbance.snr_db, seed) if center is None else center.detector
    conditioner = Conditioner(kept.config, kept.scan, detector, center=center)
    scales = fit_scales(kept, conditioner, plan.disturbance.snr_db, seed)
    some = kept.sample
    maps = np.asarray(kept.maps(some), np.float64)
    scaling = Scaling(float(maps.mean()), float(maps.std()))
    source, other = (
        PairSource(part, scaling, scales, detector, plan.disturbance, seed, center) for part in (kept, held)
    )
    if center is None:
        spectrum = mode_variance(scaling.to_network(torch.from_numpy(maps)))
    else:
        spectrum = mode_variance(_left(source))
    network, model, started = networks(plan, conditioner, len(conditioner.image_names), spectrum)
    maps = maps[:, 0]
    exported = PosteriorModel(
        model,
        scaling,
        scales,
        detector,
        BandReadout.fit(maps, kept.aeration[some]),
        CategoryReadout.fit(maps, [kept.cases.category[i] for i in some]),
        Novelty(np.zeros(1), np.ones(1), np.eye(1), 1.0),
        maps.std(0),
        None if center is None else replace(center, folds=None),
        kept.config,
        {},
    )
    return Ingredients(model, network, source, other, exported, started)


def sides(pairs: Pairs, prior: Prior) -> list[np.ndarray]:
    """Cases to train on and cases held out, by base anatomy. UsageError for too few, or a share that holds none out."""
    if len(pairs) < LEAST_CASES:
        raise UsageError(f"{len(pairs)} quantifiable cases; a posterior needs at least {LEAST_CASES}, generate more")
    if not 0 < prior.held_out < 1:
        raise UsageError(f"--held-out {prior.held_out:g} must be a share between 0 and 1: a posterior is tested on it")
    return split(pairs.cases.base_id, (1 - prior.held_out, prior.held_out), prior.train.seed)


def _center(folder: Path, pairs: Pairs) -> RidgeModel:
    """The estimate to work around. UsageError for one of another acquisition or map."""
    center = load_ridge(folder)
    if center.config.map != pairs.config.map or not center.scan.equals(pairs.scan):
        raise UsageError(f"{folder} was fitted on another acquisition or map than these cases; fit one on them")
    return center


def _left(source: PairSource) -> torch.Tensor:
    """What the estimate leaves of some maps, in network units."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(RESIDUALS, len(source))).round().astype(int))
    found = []
    for part in np.array_split(rows, -(-len(rows) // 50)):
        clean, cond = source.images(part, None)
        assert cond is not None and cond.center is not None
        found.append(clean - cond.center)
    return torch.cat(found)


def networks(
    plan: Posterior, conditioner: Conditioner, shown: int, spectrum: torch.Tensor
) -> tuple[UNetConfig, Conditional, dict[str, Any]]:
    """The network for ``shown`` images, with the encoder of the traces; the same seed gives the same weights."""
    prior, size = plan.prior, (conditioner.config.map.rows, conditioner.config.map.columns)
    images = shown if "images" in plan.paths else 0
    traces = plan.trace_images if "traces" in plan.paths else 0
    maps = len(spectrum)  # channels
    linear = maps if plan.center is None else 2 * maps  # the linear guess, and the estimate that it starts from
    told = replace(
        prior.network, in_channels=maps, out_channels=maps, image_channels=linear + images + traces, vector=len(NUMBERS)
    )
    network = fitted(told, size, prior.attention)
    describe(network, size)  # refuses sizes that do not fit
    torch.manual_seed(int(stream(prior.train.seed, "weights").integers(2**63)))
    (net, started), encoder = initial(network, prior.init), None
    if traces:
        config = conditioner.encoder_config(
            patch=network.patch, channels=plan.trace_channels, images=traces, dropout=network.dropout
        )
        encoder = TraceEncoder(config, conditioner.places())
    kind = Wiener if plan.center is None else Centred
    return network, Conditional(kind(net, spectrum), encoder, "images" in plan.paths), started


def training(
    made: Ingredients, plan: Posterior, folder: Path | None, ranks: Ranks, listeners: Sequence[Listener] = ()
) -> Training:
    """The training of a posterior."""
    encoder = made.model.encoder
    facts = {
        "network": json.loads(json.dumps(asdict(made.network))),
        "encoder": None if encoder is None else json.loads(json.dumps(asdict(encoder.config))),
        "paths": list(plan.paths),
        "held_out": plan.prior.held_out,
        "center": None if plan.center is None else sha256(plan.center / WEIGHTS),
        "refine": None if plan.refine is None else sha256(plan.refine / WEIGHTS),
        **made.started,
    }
    return Training(
        made.model, made.source, plan.prior.task, plan.prior.train, folder,
        listeners=listeners, ranks=ranks, facts=facts,
    )  # fmt: skip


Make = Callable[[Any, Posterior], Ingredients]


def plan_posterior(
    pairs: Pairs, plan: Posterior, out: Path, device: str = "auto", make: Make = ingredients
) -> dict[str, Any]:
    """What a training would be, with the time of a few steps."""
    made, prior = make(pairs, plan), plan.prior
    about = describe(made.network, made.exported.size)
    with joined(device) as ranks:
        endless = replace(plan, prior=replace(prior, train=replace(prior.train, images=10**9)))
        rate = timed(training(made, endless, None, ranks))
    return {
        "cases": len(made.source),
        "held_out": len(made.held_out),
        **{key: about[key] for key in ("size", "levels", "attention", "gmac")},
        "parameters": parameters_of(made.model),
        **budget(prior, len(made.source), rate),
        "out": str(out),
    }


def train_posterior(
    pairs: Pairs,
    plan: Posterior,
    out: Path,
    command: Callable[[int], str],
    watch: Watch | None = None,
    device: str = "auto",
    parents: Sequence[Path] = (),
    make: Make = ingredients,
) -> dict[str, Any]:
    """Train, or go on training, in ``out``; the model is in ``out/model`` when it is finished.

    ``make`` puts the ingredients together (``resolved.ingredients`` for resolved maps). Returns what came out, on the
    first rank; nothing on the others. Raises UsageError where ``out`` holds a training with other settings,
    LungwaveError where the loss is not finite or a file cannot be written.
    """
    watch = watch or Watch()
    made = make(pairs, plan)
    with joined(device) as ranks:
        journal = Journal(out, watch.log_images)
        listeners: list[Listener] = [] if watch.quiet else [ProgressLine()]
        listeners += [journal, SigmaCurves(journal, made.source, made.held_out, watch.check_images, watch.check_maps)]
        if watch.tensorboard:
            listeners.append(TensorBoard(out))
        run = training(made, plan, out, ranks, tuple(listeners))

        def finish() -> dict[str, Any]:
            with best_average(run, made.held_out, plan.prior) as (best, losses):
                trained = account(run, made.held_out, best, losses)
                export(made, plan, out / MODEL, command(run.images), trained, run.facts, parents)
            return {"average_sigma_rel": best, "held_out_loss": losses.get(best)}

        return completed(run, plan.prior, finish)


def export(
    made: Ingredients, plan: Posterior, folder: Path, command: str, trained: dict[str, Any],
    settings: dict[str, Any], parents: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Write the model folder with the weights that ``made.model`` holds now."""
    about, (z, x) = {"trained": {**trained, "snr_db": list(plan.disturbance.snr_db)}}, made.exported.size
    if plan.refine is not None:
        about["trained"]["refines"] = True
    resolved = isinstance(made.exported, ResolvedModel)
    what = "resolved maps (air and sound speed on the solver's grid)" if resolved else "aeration maps"
    card = (
        f"# Posterior of {z} x {x} {what} given echoes\n\n"
        f"A diffusion model of lung maps (fractions, 0-1), told of {' and '.join(plan.paths)} of "
        f"{made.exported.scan.transmits} transmits of the acquisition in config.json. Simulated lungs only. "
        f"Use it with `lungwave reconstruct`.\n\nMade by\n\n```\n{command}\n```\n\n{RESEARCH_USE}\n"
    )
    same: dict[str, Any] = {
        "card": card, "command": command, "settings": settings, "seed": plan.prior.train.seed, "parents": parents,
        "dtype": plan.prior.storage,
    }  # fmt: skip
    if isinstance(made.exported, ResolvedModel):
        save_resolved(folder, replace(made.exported, about=about), **same)
    else:
        save_posterior(folder, replace(made.exported, novelty=fit_novelty(made.source), about=about), **same)


def fit_novelty(source: PairSource) -> Novelty:
    """How far apart the training recordings are."""
    rows = np.unique(np.linspace(0, len(source) - 1, min(NOVELTY_CASES, len(source))).round().astype(int))
    conditions = [source.images(part, None)[1] for part in np.array_split(rows, -(-len(rows) // 50))]
    return Novelty.fit([cond for cond in conditions if cond is not None])
