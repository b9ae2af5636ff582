"""Priors from maps: put a training together, run it, and export the model."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from lungwave.data.augment import LABELS, Augment
from lungwave.data.mapset import MapSet
from lungwave.models.checkpoint import save_model, start_from
from lungwave.models.ema import gamma_of
from lungwave.models.precond import Denoiser, Kind, Preconditioned, Scaling
from lungwave.models.unet import Size, UNet, UNetConfig, describe, fitting_strides, level_sizes
from lungwave.models.wiener import ROWS, Wiener, mode_variance
from lungwave.prior.journal import Journal, ProgressLine, SampleGrid, SigmaCurves, TensorBoard
from lungwave.repro import stream
from lungwave.shipped import MODEL
from lungwave.training import state
from lungwave.training.loop import Listener, TrainConfig, Training
from lungwave.training.objective import Denoising, squared_error
from lungwave.training.ranks import Ranks, joined
from lungwave.training.source import Batch, Draws, MapSource, Source
from lungwave.types import UsageError

CANDIDATES = (0.03, 0.05, 0.07, 0.10, 0.15, 0.20)  # lengths of the weight average that are compared at the end
JUDGED = 256  # held-out images that choose among them
GOLDEN = (1 + math.sqrt(5)) / 2
MOST_ATTENTION = 256  # [pixel] self-attention lands where a level has no more
GROUPS = 32  # of the group normalisation, at most
WIDEST, DEEPEST = 8192, 64  # channels, blocks a level; more is a slip of the finger
PROBE_STEPS = 3  # that --dry-run times


@dataclass(frozen=True)
class Prior:
    """What decides a prior beside its maps."""

    train: TrainConfig = field(default_factory=TrainConfig)
    network: UNetConfig = field(default_factory=UNetConfig)  # channels, strides, classes and vector come from the maps
    attention: tuple[int, ...] | None = None  # levels; None = where a level has few pixels
    kind: Kind | Literal["wiener"] = "wiener"
    task: Denoising = field(default_factory=Denoising)
    augment: Augment | None = field(default_factory=Augment)
    held_out: float = 0.1  # share of the groups that are never trained on
    classes: bool = False
    sigma_rel: float | None = None  # length of the exported average; None = the best on held-out maps
    storage: str = "float32"  # type of the exported weights
    init: Path | None = None  # folder of a model whose weights the network starts from; None = random

    def __post_init__(self) -> None:
        if self.sigma_rel is not None:
            gamma_of(self.sigma_rel)  # refuses lengths that cannot be, before hours of training


@dataclass(frozen=True)
class Watch:
    """What is looked at during a training; it has no effect on the weights."""

    log_images: int = 1000  # between lines of the journal
    check_images: int = 20_000  # between loss curves and grids
    check_maps: int = 64  # of each side in a loss curve
    samples: int = 16  # in a grid; 0 = none
    tensorboard: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Materials:
    """Maps and network of a prior, ready to train."""

    source: MapSource
    held_out: MapSource | None
    scaling: Scaling
    network: UNetConfig
    size: Size
    classes: tuple[str, ...]
    spectrum: Tensor | None  # variance of the modes of the training maps, for the kind "wiener"


def materials(maps: MapSet, prior: Prior) -> Materials:
    """Split the maps, measure their scale on the training side, fit the network to their size."""
    if prior.classes and not maps.classes:
        raise UsageError("--classes was asked for, but the maps state no classes; name images like CLASS_NUMBER.png")
    if maps.size == (1, 1):
        raise UsageError("maps of 1 x 1 pixel have no shape to learn; give maps of two pixels or more")
    kept, held = maps.split(prior.held_out, prior.train.seed)
    mean, std = kept.statistics()
    scaling = Scaling(mean, std)
    network = network_of(maps, prior)
    classes = maps.classes if prior.classes else ()
    source = MapSource(kept, scaling, prior.augment, prior.classes)
    other = MapSource(held, scaling, None, prior.classes) if len(held) else None
    parts = (kept.fraction(slice(i, i + ROWS)) for i in range(0, len(kept), ROWS))
    spectrum = mode_variance(scaling.to_network(torch.from_numpy(p)) for p in parts) if prior.kind == "wiener" else None
    return Materials(source, other, scaling, network, maps.size, classes, spectrum)


def network_of(maps: MapSet, prior: Prior) -> UNetConfig:
    """The network for maps of this size: strides that halve the long axis first, attention at the coarse levels."""
    network = replace(
        prior.network,
        in_channels=maps.channels,
        out_channels=maps.channels,
        classes=len(maps.classes) if prior.classes else 0,
        vector=LABELS if prior.augment is not None else 0,
        image_channels=maps.channels if prior.kind == "wiener" else 0,
    )
    return fitted(network, maps.size, prior.attention)


def fitted(network: UNetConfig, size: Size, attention: tuple[int, ...] | None) -> UNetConfig:
    """The network with strides and attention for maps of ``size``; UsageError for numbers that make none."""
    _check_network(network)
    strides = network.strides or fitting_strides(size, len(network.channel_mult), network.patch)
    network = replace(network, strides=strides)
    _check_coarsest(size, network)
    if attention is not None:
        return replace(network, attention=attention)
    places = [level for level, (z, x) in enumerate(level_sizes(network, size)) if z * x <= MOST_ATTENTION]
    return replace(network, attention=tuple(places))


def _check_network(network: UNetConfig) -> None:
    """UsageError for numbers that make no network, or one that no machine holds."""
    if not 1 <= network.channels <= WIDEST:
        raise UsageError(f"--channels {network.channels} must lie between 1 and {WIDEST}")
    for factor in network.channel_mult:
        if not 1 <= network.channels * factor <= WIDEST:
            raise UsageError(
                f"--mult {factor:g} of {network.channels} channels must make 1 to {WIDEST} channels; choose another"
            )
    if not 1 <= network.blocks <= DEEPEST:
        raise UsageError(f"--blocks {network.blocks} must lie between 1 and {DEEPEST}")
    if not 0 <= network.dropout < 1:
        raise UsageError(f"--dropout {network.dropout:g} must be at least 0 and below 1")
    if network.heads < 1:
        raise UsageError(f"--heads {network.heads} must be at least 1")
    if min(network.patch) < 1:
        raise UsageError(f"--patch {network.patch[0]} {network.patch[1]} must be at least 1 1")


def _check_coarsest(size: Size, network: UNetConfig) -> None:
    """UsageError where the coarsest level has one pixel and groups of one channel: normalising makes it zero."""
    down = network.reduction()
    if size[0] // down[0] * (size[1] // down[1]) == 1 and network.channels * network.channel_mult[-1] <= GROUPS:
        raise UsageError(
            f"the coarsest of {len(network.channel_mult)} levels of {size[0]} x {size[1]} maps is a single pixel of "
            f"{network.channels * network.channel_mult[-1]:g} channels; give fewer levels (--mult) or a smaller --patch"
        )


def training(
    made: Materials, prior: Prior, folder: Path | None, ranks: Ranks, listeners: tuple[Listener, ...] = ()
) -> Training:
    """The training of a prior; the same seed gives the same initial weights."""
    describe(made.network, made.size)  # refuses sizes that do not fit
    torch.manual_seed(int(stream(prior.train.seed, "weights").integers(2**63)))
    net, started = initial(made.network, prior.init)
    model = denoiser_of(net, prior.kind, made.spectrum)
    facts = {
        **started,
        "network": json.loads(json.dumps(asdict(made.network))),
        "kind": prior.kind,
        "held_out": prior.held_out,
        "size": list(made.size),
    }
    return Training(model, made.source, prior.task, prior.train, folder, listeners=listeners, ranks=ranks, facts=facts)


def initial(network: UNetConfig, init: Path | None) -> tuple[UNet, dict[str, Any]]:
    """The network with its first weights, and what a resumed training must find unchanged about them."""
    net = UNet(network)
    return net, {} if init is None else {"init": start_from(net, init)}


def denoiser_of(net: UNet, kind: Kind | Literal["wiener"], spectrum: Tensor | None) -> Denoiser:
    """The denoiser that trains ``net``."""
    if kind != "wiener":
        return Preconditioned(net, kind)
    assert spectrum is not None
    return Wiener(net, spectrum)


def timed(run: Training) -> float:
    """Images a second, from a few steps."""
    run.advance()  # the first step is slower: libraries choose their kernels
    clock = time.perf_counter()
    for _ in range(PROBE_STEPS):
        run.advance()
    return PROBE_STEPS * run.config.batch / (time.perf_counter() - clock)


def plan_training(maps: MapSet, prior: Prior, out: Path, device: str = "auto") -> dict[str, Any]:
    """What a training would be, with the time of a few steps."""
    made = materials(maps, prior)
    about = describe(made.network, made.size)
    with joined(device) as ranks:
        rate = timed(training(made, replace(prior, train=replace(prior.train, images=10**9)), None, ranks))
    return {
        "maps": len(made.source),
        "held_out": 0 if made.held_out is None else len(made.held_out),
        **{key: about[key] for key in ("size", "levels", "attention", "parameters", "gmac")},
        **budget(prior, len(made.source), rate),
        "notes": list(maps.notes),
        "out": str(out),
    }


def budget(prior: Prior, count: int, rate: float) -> dict[str, Any]:
    """Images and seconds of a training on ``count`` images at ``rate`` images a second."""
    seconds, limit = prior.train.images / rate, prior.train.minutes
    return {
        "images": prior.train.images,
        "epochs": prior.train.images / count,
        "batch": prior.train.batch,
        "images_per_second": rate,
        "seconds": seconds if limit is None else min(seconds, 60 * limit),
    }


def train_prior(
    maps: MapSet,
    prior: Prior,
    out: Path,
    command: Callable[[int], str],
    watch: Watch | None = None,
    device: str = "auto",
    parents: Sequence[Path] = (),
) -> dict[str, Any]:
    """Train, or go on training, in ``out``; the model is in ``out/model`` when it is finished.

    ``command`` gives the command line that sees so many images; ``parents`` are files that the maps were read from.
    Returns what came out, on the first rank; nothing on the others.

    Raises:
        UsageError: the maps do not suit the network, or ``out`` holds a training with other settings.
        LungwaveError: the loss is not finite, or a file cannot be written; the last state is kept.
    """
    watch = watch or Watch()
    made = materials(maps, prior)
    with joined(device) as ranks:
        journal = Journal(out, watch.log_images)
        shape = (maps.channels, *made.size)
        listeners: list[Listener] = [] if watch.quiet else [ProgressLine()]
        listeners += [journal, SigmaCurves(journal, made.source, made.held_out, watch.check_images, watch.check_maps)]
        if watch.samples:
            listeners.append(SampleGrid(out, made.scaling, shape, len(made.classes), watch.check_images, watch.samples))
        if watch.tensorboard:
            listeners.append(TensorBoard(out))
        run = training(made, prior, out, ranks, tuple(listeners))
        return completed(run, prior, lambda: export(run, made, prior, command(run.images), parents))


def completed(run: Training, prior: Prior, export: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Train to the end, alone in the folder, then ``export``; what came out, on the first rank.

    A model that an earlier run finished is not made again, unless another length of the average is asked for.
    """
    assert run.folder is not None
    with state.alone(run.folder) if run.ranks.first else nullcontext():
        if not run.run() or not run.ranks.first:
            return {}
        about = {"model": str(run.folder / MODEL), "images": run.images, "minutes": run.seconds / 60}
        if run.began == run.images and prior.sigma_rel is None and (run.folder / MODEL / "config.json").exists():
            return {"already_finished": True, **about}
        return {**about, **export()}


def export(run: Training, made: Materials, prior: Prior, command: str, parents: Sequence[Path] = ()) -> dict[str, Any]:
    """Write the model folder: weights averaged afterwards, over the length that is best on held-out maps."""
    out = run.folder
    assert out is not None
    with best_average(run, made.held_out, prior) as (best, losses):
        save_model(
            out / MODEL,
            run.model,
            made.scaling,
            made.size,
            card=_card(made),
            command=command,
            trained=account(run, made.held_out, best, losses),
            statistics={"mean": made.scaling.mean, "std": made.scaling.std},
            classes=made.classes,
            settings=run.facts,
            seed=prior.train.seed,
            parents=parents,
            dtype=prior.storage,
        )
    return {"average_sigma_rel": best, "held_out_loss": losses.get(best)}


@contextmanager
def best_average(run: Training, held_out: Source | None, prior: Prior) -> Iterator[tuple[float, dict[float, float]]]:
    """The model with averaged weights, of the length with the least loss on held-out maps; and all these losses."""
    assert run.folder is not None
    run.snapshot()
    lengths = CANDIDATES if prior.sigma_rel is None and held_out is not None else (prior.sigma_rel or 0.1,)
    averages = state.posthoc(run.folder, run.images, run.step, lengths)
    own = {key: value.detach().clone() for key, value in run.model.state_dict().items()}
    losses = {}
    for length, weights in averages.items():
        run.model.load_state_dict({**own, **weights})
        if held_out is not None:
            losses[length] = held_out_loss(run, held_out, JUDGED)
    best = min(losses, key=losses.__getitem__) if losses else lengths[0]
    run.model.load_state_dict({**own, **averages[best]})
    try:
        yield best, losses
    finally:
        run.model.load_state_dict(own)


def account(run: Training, held_out: Source | None, best: float, losses: Mapping[float, float]) -> dict[str, Any]:
    """What a finished training was, for the card."""
    return {
        "images": run.images,
        "epochs": round(run.images / len(run.source), 2),
        "steps": run.step,
        "minutes": round(run.seconds / 60, 1),
        "maps": len(run.source),
        "held_out_maps": 0 if held_out is None else len(held_out),
        "data_sha256": run.source.digest,
        "average_sigma_rel": best,
        "held_out_loss": {f"{length:g}": round(loss, 6) for length, loss in losses.items()},
    }


def _card(made: Materials) -> str:
    by = f"by class ({', '.join(made.classes)})" if made.classes else "without conditions"
    return (
        f"# Prior of {made.size[0]} x {made.size[1]} aeration maps\n\n"
        f"A diffusion model of lung aeration maps (fraction of air, 0-1), {by}. Draw with `lungwave sample`."
    )


def held_out_loss(run: Training, source: Source, count: int) -> float:
    """Training loss on ``count`` held-out images; each has the same random numbers in every check."""
    task = run.task
    if not isinstance(task, Denoising):  # where an image would only come again, without other noise
        count = min(count, len(source))
    row = np.arange(count)
    device, total = run.ranks.device, 0.0
    run.model.eval()
    with torch.no_grad():
        for part in np.array_split(row, -(-count // 64)):
            clean, cond = source.images(part % len(source), None)
            batch = Batch(clean.to(device), None if cond is None else cond.to(device), Draws(0, part))
            if isinstance(task, Denoising):
                total += float(_at_even_levels(run, task, batch).sum())
            else:
                total += float(task.losses(run.model, batch)["loss"].sum())
    return total / count


def _at_even_levels(run: Training, task: Denoising, batch: Batch) -> Tensor:
    """The task's losses with noise levels that are spread evenly over those of the training: fewer images tell as
    much."""
    quantile = (batch.draws.positions / GOLDEN) % 1 * 0.998 + 0.001  # any stretch of it is spread evenly
    sigma = torch.from_numpy(task.p_mean + task.p_std * ndtri(quantile)).exp().float().to(batch.clean.device)
    noise = batch.normal("held out")
    return task.weights(run.model, sigma) * squared_error(run.model, batch.clean, noise, sigma, batch.cond)
