"""Baselines from the same pairs as a posterior: train a regressor, or take the mean map; calibrate; export.

Everything that is not the question is shared with the posterior of the same plan (``conditional``): split, pleura
detector, images, traces and their scales, disturbances, loop, budget, weight average, number of parameters. Of the
held-out lungs one half chooses the weight average and teaches the expected error, the other calibrates the intervals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from lungwave.data.dataset import split
from lungwave.models.encoder import STRIDE, TraceEncoder
from lungwave.models.fno import FNOConfig, FNORegressor
from lungwave.models.regressor import MeanMap, Regressor, UNetRegressor, fit_width, parameters_of
from lungwave.models.unet import UNet
from lungwave.posterior.amortized import PosteriorModel
from lungwave.posterior.baselines import RegressorModel, calibrate, network_facts, readout_of, save_regressor
from lungwave.posterior.conditioning import NUMBERS, Conditioner
from lungwave.posterior.pairs import Pairs, PairSource
from lungwave.prior.build import Watch, account, best_average, budget, completed, held_out_loss, timed
from lungwave.prior.conditional import Ingredients, Posterior, fit_novelty, ingredients
from lungwave.prior.journal import Journal, ProgressLine, TensorBoard
from lungwave.repro import stream
from lungwave.shipped import MODEL
from lungwave.training import state
from lungwave.training.loop import Listener, Step, Training
from lungwave.training.ranks import Ranks, joined
from lungwave.training.regression import Regression
from lungwave.types import RESEARCH_USE

Kind = Literal["mean", "unet", "fno"]
TITLES: dict[Kind, str] = {"mean": "Mean map", "unet": "U-Net regressor", "fno": "Fourier neural operator regressor"}


class LossCheck(Listener):
    """Loss of the averaged weights on training and held-out pairs, noted in the journal now and then."""

    def __init__(self, journal: Journal, train: PairSource, held_out: PairSource, interval: int, count: int) -> None:
        self.journal, self.interval, self.count = journal, interval, count
        self.sources = {"train": train, "held_out": held_out}

    def step(self, run: Training, step: Step) -> None:
        """Check where an interval is full."""
        if run.crossed(step, self.interval) or run.images >= run.config.images:
            name = next(iter(run.averages.keeps), None)
            with run.averages.applied(name):
                found = {key: held_out_loss(run, source, self.count) for key, source in self.sources.items()}
            self.journal.add("check", run.images, average=name, **found)


def train_regressor(
    pairs: Pairs,
    plan: Posterior,
    kind: Kind,
    out: Path,
    command: Callable[[int], str],
    *,
    watch: Watch | None = None,
    device: str = "auto",
    parents: Sequence[Path] = (),
    parameters: int | None = None,
) -> dict[str, Any]:
    """Train, or go on training, in ``out``; the model is in ``out/model`` when it is finished.

    ``plan`` is that of the posterior to compare with; its loss does not apply, and no condition is withheld. The width
    is chosen so that there are as many ``parameters``, by default as the posterior has. The mean map is not trained.
    Returns what came out, on the first rank; nothing on the others.

    Raises:
        UsageError: too few cases, no width with so many parameters, or ``out`` holds a training with other settings.
        LungwaveError: the loss is not finite, or a file cannot be written; the last state is kept.
    """
    watch, plan = watch or Watch(), replace(plan, disturbance=replace(plan.disturbance, drop=0.0))
    made = ingredients(pairs, plan)
    seen, held = halves(made.held_out, plan.prior.train.seed)
    net = regressor(made, plan, kind, parameters)

    def export(trained: dict[str, Any], images: int) -> None:
        model = calibrated(made, net, (seen, held), {**trained, "calibrated_on": len(held)})
        save_regressor(
            out / MODEL, model, card=_card(model, kind, command(images)), command=command(images), settings=facts,
            seed=plan.prior.train.seed, parents=parents, dtype=plan.prior.storage,
        )  # fmt: skip

    facts = {"regressor": network_facts(net), "held_out": plan.prior.held_out}
    with joined(device) as ranks:
        if kind == "mean":
            with state.alone(out) if ranks.first else nullcontext():
                if ranks.first:
                    export({"images": 0, "maps": len(made.source), "data_sha256": made.source.digest}, 0)
            return {"model": str(out / MODEL), "images": 0, "parameters": 0} if ranks.first else {}
        run = _training(made, net, plan, out, ranks, _listeners(made, seen, out, watch), facts)

        def finish() -> dict[str, Any]:
            with best_average(run, seen, plan.prior) as (best, losses):
                export(account(run, seen, best, losses), run.images)
            about = {"parameters": parameters_of(net), "average_sigma_rel": best}
            return {**about, "held_out_loss": losses.get(best)}

        return completed(run, plan.prior, finish)


def plan_regressor(pairs: Pairs, plan: Posterior, kind: Kind, out: Path, device: str = "auto") -> dict[str, Any]:
    """What a training would be, with the time of a few steps."""
    made, prior = ingredients(pairs, plan), plan.prior
    net = regressor(made, plan, kind)
    about = {"cases": len(made.source), "held_out": len(made.held_out), "parameters": parameters_of(net)}
    if kind == "mean":
        return {**about, "images": 0, "seconds": 0.0, "out": str(out)}
    endless = replace(plan, prior=replace(prior, train=replace(prior.train, images=10**9)))
    with joined(device) as ranks:
        rate = timed(_training(made, net, endless, None, ranks, (), {}))
    return {**about, **budget(prior, len(made.source), rate), "out": str(out)}


def _training(
    made: Ingredients, net: Regressor, plan: Posterior, out: Path | None, ranks: Ranks, listeners: Sequence[Listener],
    facts: dict[str, Any],
) -> Training:  # fmt: skip
    return Training(
        net, made.source, Regression(), plan.prior.train, out, listeners=listeners, ranks=ranks, facts=facts
    )


def _listeners(made: Ingredients, seen: PairSource, out: Path, watch: Watch) -> list[Listener]:
    journal = Journal(out, watch.log_images)
    listeners: list[Listener] = [] if watch.quiet else [ProgressLine()]
    listeners += [journal, LossCheck(journal, made.source, seen, watch.check_images, watch.check_maps)]
    if watch.tensorboard:
        listeners.append(TensorBoard(out))
    return listeners


def halves(held: PairSource, seed: int) -> tuple[PairSource, PairSource]:
    """Two sets of lungs, split by base anatomy."""
    parts = split(held.pairs.cases.base_id, (0.5, 0.5), seed)
    first, second = (
        PairSource(
            held.pairs.take(part), held.scaling, held.scales, held.conditioners[0].detector, held.disturbance, held.seed
        )
        for part in parts
    )
    return first, second


def regressor(made: Ingredients, plan: Posterior, kind: Kind, parameters: int | None = None) -> Regressor:
    """The network of a baseline with as many parameters as the posterior; the same seed gives the same weights."""
    wanted = parameters or parameters_of(made.model)
    assert isinstance(made.exported, PosteriorModel)  # resolved maps have no baseline
    readout = readout_of(made.exported.bands, made.exported.scaling)
    conditioner = Conditioner(made.exported.config, made.exported.scan, made.exported.detector)
    if kind == "mean":
        maps = torch.from_numpy(made.source.pairs.cases.smooth.astype(float).mean(0))
        return MeanMap(*readout, made.exported.scaling.to_network(maps))
    described, places, heads = conditioner.encoder_config(), conditioner.places(), made.network.heads
    size = (conditioner.config.map.rows, conditioner.config.map.columns)

    def operator(width: int) -> Regressor:
        config = FNOConfig(
            size, described.samples, STRIDE * described.first, STRIDE * described.rows, len(NUMBERS), width
        )
        return FNORegressor(*readout, config, places)

    def network(width: int) -> Regressor:
        config = replace(
            made.network, in_channels=0, image_channels=made.network.image_channels - 1, channels=width
        )  # no noisy map, and no linear guess of the clean one
        encoder = made.model.encoder
        encoder = None if encoder is None else TraceEncoder(encoder.config, encoder.places)
        return UNetRegressor(*readout, UNet(config), encoder, made.model.images)

    width = fit_width(operator, wanted) if kind == "fno" else fit_width(network, wanted, heads)
    torch.manual_seed(int(stream(plan.prior.train.seed, "weights").integers(2**63)))
    return operator(width) if kind == "fno" else network(width)


def calibrated(
    made: Ingredients, net: Regressor, held: tuple[PairSource, PairSource], trained: dict[str, Any]
) -> RegressorModel:
    """The model around a network with the weights that it holds now."""
    parts = made.exported
    bands, rows = calibrate(net, parts.scaling, *held)
    novelty, about = fit_novelty(made.source), {"trained": trained}
    return RegressorModel(net, parts.scaling, parts.scales, parts.detector, novelty, bands, rows, parts.config, about)


def _card(model: RegressorModel, kind: Kind, command: str) -> str:
    z, x = model.config.map.rows, model.config.map.columns
    return (
        f"# {TITLES[kind]} of {z} x {x} aeration maps from echoes\n\n"
        f"A baseline: one map and percent aeration (fractions of air, 0-1) with split-conformal intervals, from "
        f"{model.scan.transmits} transmits of the acquisition in config.json. Simulated lungs only.\n\n"
        f"Made by\n\n```\n{command}\n```\n\n{RESEARCH_USE}\n"
    )
