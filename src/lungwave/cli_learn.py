"""The verbs of learning: train a diffusion prior on maps, and draw from it."""

from __future__ import annotations

import dataclasses
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lungwave.cli_options import Options, Planned, Positional, show
from lungwave.cli_verbs import output_folder
from lungwave.types import UsageError

# Options that do not decide the weights.
UNSAID = ("data", "out", "json", "quiet", "dry_run", "tensorboard", "minutes", "save_minutes", "device", "log_images",
          "check_images", "check_maps", "samples", "stream", "readers")  # fmt: skip
MOST_SAMPLES = 1024  # of a grid that anybody can look at


def command_of(verb: Options, name: str, words: tuple[str, ...], unsaid: tuple[str, ...] = UNSAID) -> str:
    """The command line that decides a result: the positional words, and every option that is not its default."""
    said = ["lungwave", name, *words]
    for item in dataclasses.fields(verb):
        value = getattr(verb, item.name)
        if item.name in unsaid or value == item.default:
            continue
        flag = item.name.replace("_", "-")
        if isinstance(value, bool):
            said.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            said += [f"--{flag}", *(_said(v) for v in values)]
    return shlex.join(said)


def _said(value: Any) -> str:
    """A value as one would type it, without loss."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)


@dataclass(frozen=True, kw_only=True)
class Train(Planned):
    """Train a diffusion prior on aeration maps. Run the same command again to resume; more --images goes on.

    Maps are a folder of images, an NPZ or NPY file, or cases that `lungwave generate` wrote, of any one size. Several
    processes: torchrun --nproc-per-node N -m lungwave train ...
    """

    data: Positional[Path]
    """Maps."""
    out: Path = Path("lungwave-prior")
    """Folder of state, journal and pictures; the model is in its folder model."""
    images: int = 200_000
    """Training images to see in all."""
    minutes: float | None = None
    """Training time in all [min], if that is used up first."""
    field: Literal["smooth", "sharp", "resolved"] = "smooth"
    """Which map of generated cases; resolved: with --echoes, air and sound speed on the solver's grid."""
    quantifiable_only: bool = False
    """Leave out maps with columns that have no truth."""
    echoes: bool = False
    """Learn maps given their echoes, the posterior: data is a folder that `lungwave generate` wrote."""
    paths: tuple[Literal["images", "traces"], ...] = ("images", "traces")
    """With --echoes: tell the network of delay-and-sum images, of channel data, or of both."""
    center: Path | None = None
    """With --echoes: work around the map of this ridge model, or of a shipped one; no condition is withheld then."""
    refine: Path | None = None
    """With --field resolved: go on from this model, told of its guesses and of what the wave equation says of them."""
    method: Literal["diffusion", "unet", "fno", "mean"] = "diffusion"
    """With --echoes: the posterior, or a baseline of the same data, size and budget that gives one answer."""
    classes: bool = False
    """Train by class; classes come from the data or from names like CLASS_NUMBER.png."""
    held_out: float = 0.1
    """Share of the base anatomies that are never trained on."""
    channels: int = 32
    """Channels of the finest level."""
    mult: tuple[float, ...] = (1, 2, 2, 2)
    """Multiple of them at each level, finest first."""
    blocks: int = 2
    """Residual blocks a level."""
    patch: tuple[int, int] = (1, 1)
    """Pixels (z, x) that enter together as channels: 2 2 costs a quarter."""
    attention: tuple[int, ...] | None = None
    """Levels (0 = finest) with self-attention; default those of 256 pixels or less."""
    init: Path | None = None
    """Start from the weights of a model, or of a shipped one; what the network is told beside starts without effect."""
    heads: int = 4
    """Heads of the attention."""
    dropout: float = 0.1
    """Share of activations dropped while training."""
    kind: Literal["wiener", "edm", "eps", "x0", "v", "flow"] = "wiener"
    """What the network predicts; wiener: what is left of the map after the best linear filter of its spectrum."""
    p_mean: float = -1.2
    """Mean of ln sigma of the training noise."""
    p_std: float = 1.2
    """Standard deviation of ln sigma."""
    weight: Literal["edm", "soft-min-snr"] = "edm"
    """Weight of the loss over sigma."""
    levels: int = 1
    """With --echoes: noise levels at which each pair is seen in a step, as its echoes are read once for all."""
    augment: float = 0.15
    """Chance of a lateral shift, and of a change of aeration, of each map; the network is told. 0 = none."""
    flip: bool = True
    """Mirror maps left to right at random."""
    batch: int = 32
    """Images a step, over all processes."""
    microbatch: int = 0
    """Images a pass, to save memory; 0 = all of the batch."""
    lr: float = 2e-4
    """Peak learning rate."""
    warmup: int = 10_000
    """Images over which the learning rate rises."""
    decay: Literal["inverse-sqrt", "linear", "none"] = "inverse-sqrt"
    """How the learning rate falls."""
    decay_images: int = 100_000
    """Images after which the inverse square root falls."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip: float = 1.0
    """Greatest norm of the gradient; 0 = any."""
    sigma_rel: float | None = None
    """Relative length of the exported weight average; default the best on held-out maps."""
    storage: Literal["float32", "float16", "bfloat16"] = "float32"
    """Type of the exported weights."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation; auto is bfloat16 on a GPU that has it."""
    compile: bool = False
    """Compile the network with torch.compile."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""
    seed: int = 0
    """Root of all random streams."""
    log_images: int = 1000
    """Images between lines of log.jsonl."""
    check_images: int = 20_000
    """Images between loss curves and grids of samples."""
    check_maps: int = 64
    """Maps of each side in a loss curve."""
    snapshot_images: int = 10_000
    """Images between snapshots of the averaged weights."""
    save_minutes: float = 5.0
    """Time between states [min]; a killed training loses no more."""
    samples: int = 16
    """Samples in a grid; 0 = no grids."""
    stream: bool = False
    """Leave generated cases on disk and read them as they are needed: sets larger than memory. Same weights."""
    readers: int = 0
    """Processes that read and prepare images ahead of the network, with --stream; the weights do not depend on it."""
    tensorboard: bool = False
    """Log for TensorBoard as well (extra `track`)."""

    def plan(self) -> dict[str, Any]:
        """Network, cost and time, from a few steps."""
        if self.echoes:
            pairs, posterior = self._pairs, self._posterior
            from lungwave.prior import baselines, conditional

            if self.method == "diffusion":
                return conditional.plan_posterior(pairs, posterior, self.out, self.device, self._make)
            return baselines.plan_regressor(pairs, posterior, self.method, self.out, self.device)
        prior, maps = self._prior, self._maps
        from lungwave.prior import build

        return build.plan_training(maps, prior, self.out, self.device)

    def work(self) -> dict[str, Any]:
        """Train, or go on."""
        from lungwave.prior import baselines, build, conditional

        watch = build.Watch(
            log_images=self.log_images,
            check_images=self.check_images,
            check_maps=self.check_maps,
            samples=self.samples,
            tensorboard=self.tensorboard,
            quiet=self.quiet,
        )
        if self.echoes:
            pairs, posterior, made_from = self._pairs, self._posterior, (self.data / "config.json",)
            if self.method == "diffusion":
                return conditional.train_posterior(
                    pairs, posterior, self.out, self._command, watch, self.device, made_from, self._make
                )
            return baselines.train_regressor(
                pairs, posterior, self.method, self.out, self._command,
                watch=watch, device=self.device, parents=made_from,
            )  # fmt: skip
        maps, prior = self._maps, self._prior
        parents = (self.data,) if self.data.is_file() else ()
        return build.train_prior(maps, prior, self.out, self._command, watch, self.device, parents)

    def _command(self, images: int) -> str:
        return command_of(dataclasses.replace(self, images=images), "train", (str(self.data),))

    def run(self) -> None:
        """Plan or train; only the first of several processes says what came out."""
        if self.dry_run:
            super().run()
        elif result := self.work():
            show(result, as_json=self.json, quiet=self.quiet)

    @property
    def _maps(self) -> Any:
        output_folder(self.out)
        from lungwave.data.mapset import read_maps

        if self.field == "resolved":
            raise UsageError(
                "--field resolved is for --echoes; for maps alone, make them with lungwave maps --view nodes"
            )
        if self.stream:
            from lungwave.data.streamed import stream_maps

            return stream_maps(self.data, self.field, self.quantifiable_only, self.quiet)
        return read_maps(self.data, field=self.field, labels=self.classes, quantifiable_only=self.quantifiable_only)

    @property
    def _pairs(self) -> Any:
        output_folder(self.out)
        if self.classes:
            raise UsageError("--classes and --echoes exclude each other: categories are read off the posterior's maps")
        from lungwave.posterior.pairs import Pairs
        from lungwave.posterior.resolved_pairs import ResolvedPairs

        if self.field != "resolved":
            return Pairs.stream(self.data, self.quiet) if self.stream else Pairs.read(self.data, self.quiet)
        if self.stream or self.center is not None or self.method != "diffusion":
            raise UsageError("--field resolved takes neither --stream nor --center, and --method diffusion only")
        return ResolvedPairs.draw(
            Pairs.read(self.data, self.quiet), self.quiet, None if self.dry_run else self.out / "drawn.npz"
        )

    @property
    def _make(self) -> Any:
        """What puts the ingredients of a posterior together."""
        from lungwave.prior import conditional, resolved

        return resolved.ingredients if self.field == "resolved" else conditional.ingredients

    @property
    def _posterior(self) -> Any:
        from lungwave.posterior.pairs import Disturbance
        from lungwave.prior.conditional import Posterior
        from lungwave.shipped import ECHOES, RESOLVED, model_folder

        if self.field == "resolved":  # under a known wall; the same network is the prior that guidance works on
            known = Disturbance((20.0, 40.0), jitter=0.0, far=0.0, speeds=(1.0,), drop=0.3)
            refine = None if self.refine is None else model_folder(self.refine, RESOLVED)
            return Posterior(
                self._prior,
                known,
                paths=self.paths,
                refine=refine,
                guesses=self.out / "guesses.npz" if refine else None,
            )
        if self.refine is not None:
            raise UsageError("--refine is for --echoes --field resolved")
        if self.center is None:
            return Posterior(self._prior, paths=self.paths)
        center = model_folder(self.center, ECHOES)
        return Posterior(self._prior, Disturbance(drop=0.0), paths=self.paths, center=center)

    @property
    def _prior(self) -> Any:
        for name in ("log_images", "check_images", "check_maps"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        if not 0 <= self.samples <= MOST_SAMPLES:
            raise UsageError(f"--samples {self.samples} must lie between 0 and {MOST_SAMPLES}")
        if self.method != "diffusion" and not self.echoes:
            raise UsageError(f"--method {self.method} learns from echoes; add --echoes and give generated cases")
        if self.levels > 1 and not self.echoes:
            raise UsageError(f"--levels {self.levels} saves reading echoes again; without --echoes leave it at 1")
        from lungwave.data.augment import Augment
        from lungwave.models.unet import UNetConfig
        from lungwave.prior.build import Prior
        from lungwave.shipped import PRIOR, model_folder
        from lungwave.training.loop import TrainConfig
        from lungwave.training.objective import Denoising

        same = ("images", "minutes", "batch", "microbatch", "lr", "weight_decay", "decay", "decay_images", "clip",
                "precision", "compile", "seed", "save_minutes", "snapshot_images", "readers")  # fmt: skip
        train = TrainConfig(**{name: getattr(self, name) for name in same}, warmup_images=self.warmup)
        network = UNetConfig(
            channels=self.channels,
            channel_mult=self.mult,
            blocks=self.blocks,
            heads=self.heads,
            dropout=self.dropout,
            patch=self.patch,
        )
        augment = Augment(self.augment, self.flip) if self.augment > 0 or self.flip else None
        return Prior(
            train=train,
            network=network,
            attention=self.attention,
            kind=self.kind,
            task=Denoising(self.p_mean, self.p_std, self.weight, self.levels),
            augment=augment,
            held_out=self.held_out,
            classes=self.classes,
            sigma_rel=self.sigma_rel,
            storage=self.storage,
            init=None if self.init is None else model_folder(self.init, PRIOR),
        )


@dataclass(frozen=True, kw_only=True)
class Sample(Planned):
    """Draw new maps from a prior: samples.npz, a PNG each on the fixed 0-100 % scale, and a grid."""

    model: Positional[Path]
    """Folder of a model, or of the training that made it, or the name of a shipped prior."""
    out: Path = Path("lungwave-samples")
    """Folder of the samples."""
    count: int = 64
    """How many."""
    sampler: str = "heun"
    """heun, dpmpp_2m, dpmpp_3m, dpmpp_2m_sde, dpmpp_3m_sde, unipc, ddim, ancestral, edm ..."""
    steps: int = 18
    """Noise levels; heun calls the network twice at each."""
    sigma_min: float = 0.002
    """Lowest noise level."""
    sigma_max: float = 80.0
    """Highest noise level."""
    label: str | None = None
    """Class to draw, of a model that knows classes."""
    first: int = 0
    """Number of the first sample; sample k of a seed is the same in any run."""
    batch: int = 64
    """Samples at once."""
    seed: int = 0
    """Root of all random streams."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute."""

    def plan(self) -> dict[str, Any]:
        """What would be drawn."""
        self._check()
        from lungwave.prior import draw

        return draw.plan_samples(self.model, self.out, self.count, self.steps)

    def work(self) -> dict[str, Any]:
        """Draw and write."""
        self._check()
        from lungwave.prior import draw

        same = ("seed", "first", "label", "batch", "device", "quiet", "sampler", "steps", "sigma_min", "sigma_max")
        return draw.sample_prior(self.model, self.out, self.count, **{name: getattr(self, name) for name in same})

    def _check(self) -> None:
        output_folder(self.out)
        for name, least in (("count", 1), ("steps", 1), ("batch", 1), ("first", 0), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name} {getattr(self, name)} must be at least {least}")
