"""``image_train`` and ``super_res_train``: the house's loop with the original's loss, log and files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from lungwave.legacy import files, network
from lungwave.legacy.data import Images, read_images
from lungwave.legacy.flags import Flags, numbers
from lungwave.legacy.log import Log, checkpoint_folder, log_folder
from lungwave.legacy.start import build, find_start, restore
from lungwave.models.ema import exponential
from lungwave.models.gaussian import Gaussian
from lungwave.models.timesteps import LossSecondMoment, Uniform
from lungwave.models.unet import Condition
from lungwave.training.loop import Listener, Step, TrainConfig, Training
from lungwave.training.objective import Task
from lungwave.training.ranks import Ranks, joined
from lungwave.training.source import Batch, Draws
from lungwave.training.state import alone
from lungwave.types import UsageError

ENDLESS = 2**40  # steps; the original runs until it is stopped
QUARTERS = 4  # of the timesteps, each with columns of its own in the log


@dataclass(frozen=True)
class Schedule(TrainConfig):
    """The original's constant or linearly falling learning rate."""

    anneal_steps: int = 0  # after which the rate would be 0; 0 = constant
    first: tuple[int, int] = (0, 0)  # steps and images behind the run when it begins

    def rate(self, images: int) -> float:
        """Learning rate of the step that ends at ``images``; the very first has all of it."""
        step = self.first[0] + (images - self.first[1]) / self.batch - 1
        return self.lr * max(0.0, 1 - step / self.anneal_steps) if self.anneal_steps else self.lr


@dataclass(frozen=True)
class Pictures:
    """Training images, with their class and their coarse version where the network wants them."""

    kept: Images
    flags: Flags

    @property
    def digest(self) -> str:
        """Hash of images and labels."""
        return self.kept.maps.digest

    def facts(self) -> dict[str, Any]:
        """How the images are shown."""
        return {"channels": self.kept.channels}

    def __len__(self) -> int:
        return len(self.kept)

    def images(self, rows: Int[np.ndarray, " n"], draws: Draws | None) -> tuple[Tensor, Condition | None]:
        """Images in [-1, 1] and their condition; nothing is augmented, as in the original."""
        clean = self.kept.batch(rows)
        labels = self.kept.labels(rows) if self.flags.class_cond else None
        coarse = network.low_resolution(clean, self.flags) if network.is_fine(self.flags) else None
        return clean, network.condition(labels, coarse, self.kept.size)


class DiscreteLoss(Task):
    """The loss of a discrete process at timesteps that a sampler draws."""

    def __init__(self, process: Gaussian, sampler: Uniform) -> None:
        self.process, self.sampler = process, sampler

    def losses(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """``loss``, ``mse`` and ``vb`` with the sampler's weights; ``t``, and the loss without them."""
        chance = torch.from_numpy(self.sampler.probabilities())
        place = batch.uniform("timestep").double().cpu()
        t = torch.searchsorted(chance.cumsum(0), place, right=True).clamp(max=len(chance) - 1)
        weight = (1 / (len(chance) * chance[t])).float().to(batch.clean.device)
        t = t.to(batch.clean.device)
        values = self.process.training_losses(model, batch.clean, t, batch.normal("noise"), batch.cond)
        return {**{key: value * weight for key, value in values.items()}, "t": t, "plain": values["loss"]}

    def observe(self, values: Mapping[str, Tensor]) -> None:
        """Tell the sampler."""
        self.sampler.update(values["t"].long(), values["plain"])

    def state(self) -> dict[str, Tensor]:
        """Of the sampler."""
        return self.sampler.state_dict()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Of the sampler."""
        if state:
            self.sampler.load_state_dict(dict(state))


class Original(Listener):
    """Writes the original's log rows and checkpoints."""

    def __init__(self, flags: Flags, log: Log, folder: Path, process: Gaussian, ends: tuple[int | None, int]) -> None:
        self.flags, self.log, self.folder, self.process = flags, log, folder, process
        self.first, self.last = ends  # number of the checkpoint that the run goes on from, and of its last step
        self.saved: int | None = None  # steps made at the newest checkpoint
        self._clock, self._images = time.monotonic(), 0

    def begin(self, run: Training) -> None:
        """Start the clock."""
        self._clock, self._images = time.monotonic(), run.images

    def step(self, run: Training, step: Step) -> None:
        """Collect the values; write rows and checkpoints when they are due. Step numbers start at 0 here."""
        label = step.step - 1
        quarter = (QUARTERS * step.values["t"] / self.process.length).long()
        for key in ("loss", "mse", "vb"):
            values = step.values.get(key)
            if values is not None:
                self.log.mean(key, float(values.mean()))
                for part, value in zip(quarter.tolist(), values.tolist(), strict=True):
                    self.log.mean(f"{key}_q{part}", value)
        self.log.mean("grad_norm", step.grad_norm)
        self.log.set("step", label)
        self.log.set("samples", step.images)
        if self.flags.use_fp16:
            self.log.set("lg_loss_scale", 0.0)  # bfloat16 has the range of float32, so nothing is scaled
        if label % self.flags.log_interval == 0:
            self.log.write()
            self.log.say(self._pace(run))
        if label % self.flags.save_interval == 0 and label != self.first:
            self.save(run, label)

    def end(self, run: Training) -> None:
        """Save what is not saved, under the number of steps made."""
        if run.step != self.saved and run.step:
            self.save(run, run.step)
        if self.saved is not None and not run.finished:
            self.log.say(
                f"stopped after {run.step} steps; the same command goes on where OPENAI_LOGDIR is set, else add "
                f"--resume_checkpoint {self.folder / f'model{run.step:06d}.pt'}"
            )

    def _pace(self, run: Training) -> str:
        rate = (run.images - self._images) / max(time.monotonic() - self._clock, 1e-9)
        left = (self.last - run.step) * run.config.batch / rate  # [s]
        until = f"{left:.0f} s left" if left < 120 else f"{left / 60:.0f} min left"
        return f"{rate:.3g} images/s" + (f", {until}" if self.last < ENDLESS else "")

    def save(self, run: Training, label: int) -> None:
        """Write a checkpoint; the network comes last, so that where it is the rest is too."""
        own = {"step": run.step, "images": run.images, "task": run.task.state()}
        model = self.folder / f"model{label:06d}.pt"
        model.unlink(missing_ok=True)  # of a run that is taken up earlier; never beside files of another moment
        files.write_checkpoint(
            self.folder / f"opt{label:06d}.pt", {**plain(run.optimizer.state_dict()), "lungwave": own}
        )
        for rate, weights in run.averages.weights.items():
            files.write_checkpoint(self.folder / f"ema_{rate}_{label:06d}.pt", plain(weights))
        self.log.say(f"saving {model.name}, its averages and optimiser")
        files.write_checkpoint(model, plain(run.model.state_dict()))
        self.saved, run.stored_images = run.step, run.images


def plain(tree: Any) -> Any:
    """Tensors on the CPU in the usual memory layout, whatever they lie in."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().contiguous()
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if isinstance(tree, list) else tree


def train(flags: Flags) -> None:
    """Train until ``--max_steps``, ``--lr_anneal_steps`` or a signal; UsageError before anything is written."""
    rates = {str(rate): exponential(rate) for rate in numbers("ema_rate", flags.ema_rate)}
    if not all(0 <= float(rate) <= 1 for rate in rates):
        raise UsageError(f"--ema_rate {flags.ema_rate}: give rates from 0 to 1")
    with joined(flags.device or "auto") as ranks:
        images = read_images(flags, network.side(flags))
        pictures = Pictures(images, flags)
        if flags.batch_size * ranks.count > len(images):
            raise UsageError(
                f"--batch_size {flags.batch_size} is larger than the set of {len(images)} images (the original "
                f"would wait for a full batch for ever); use {max(1, len(images) // ranks.count)} or less"
            )
        classes = len(images.maps.classes) if flags.class_cond else 0
        rows = network.NUM_CLASSES if flags.openai_classes and classes else classes
        config = network.new_network(flags, images.channels, images.size, rows)
        if network.is_fine(flags):
            pictures.images(np.arange(1), None)  # refuses sizes that have no coarse version
        process = network.new_process(flags)
        about = {
            **network.sidecar(config, images.size, flags),
            "classes": list(images.maps.classes) if classes else [],
            "data": pictures.digest[:16],
            "processes": ranks.count,
        }
        log_to = log_folder()
        folder = checkpoint_folder(log_to)
        start = find_start(flags, folder, about)
        net = build(config, flags, start)
        batch = flags.batch_size * ranks.count
        behind, last = start.behind(batch), last_step(flags, start.behind(batch)[0])
        sampler = LossSecondMoment if flags.schedule_sampler == "loss-second-moment" else Uniform
        task = DiscreteLoss(process, sampler(process.length))
        log = Log(log_to, upto=start.label if start.resume and start.resume.model.parent == folder else None)
        writer = Original(flags, log, folder, process, (start.label, last))
        settings = schedule(flags, ranks, batch, behind, last)
        run = Training(net, pictures, task, settings, averages=rates, listeners=[writer], ranks=ranks)
        log.open()
        for line in (images.said, *network.explain(config, images.size, flags), *ranks_said(flags, ranks)):
            log.say(line)
        if start.resume is not None:
            log.say(f"loading {start.resume.model}" + (f"; note: {start.note}" if start.note else ""))
            restore(run, start, behind, log)
        if run.step >= last:
            log.say(f"nothing to do: {run.step} steps are made; raise --max_steps to go on")
            return
        if last == ENDLESS:
            log.say("training until stopped: Ctrl-C or SIGTERM saves first; --max_steps N would end it")
        with alone(folder) if ranks.first else nullcontext():
            if ranks.first:
                files.write_sidecar(folder, about)
            run.run()


def last_step(flags: Flags, behind: int) -> int:
    """Number of steps after which the run ends."""
    ends = [steps for steps in (flags.max_steps, flags.lr_anneal_steps) if steps]
    if os.environ.get("DIFFUSION_TRAINING_TEST"):  # as in the original: end after the second checkpoint of this run
        ends.append((behind // flags.save_interval + 1) * flags.save_interval + 1)
    return min(ends, default=ENDLESS)


def schedule(flags: Flags, ranks: Ranks, batch: int, behind: tuple[int, int], last: int) -> Schedule:
    """The flags in the words of the house's loop."""
    half = flags.use_fp16 and ranks.device.type == "cuda"
    return Schedule(
        images=behind[1] + max(1, last - behind[0]) * batch,
        batch=batch,
        microbatch=max(flags.microbatch, 0),
        lr=flags.lr,
        betas=(0.9, 0.999),  # AdamW's own, as in the original
        weight_decay=flags.weight_decay,
        warmup_images=0,
        decay="none",
        clip=0.0,
        precision="bfloat16" if half else "float32",
        seed=flags.seed,
        snapshot_images=0,
        anneal_steps=flags.lr_anneal_steps,
        first=behind,
    )


def ranks_said(flags: Flags, ranks: Ranks) -> Iterator[str]:
    """How the run uses the machine."""
    if flags.use_fp16:
        yield (
            "note: --use_fp16 True: bfloat16, which needs no loss scale"
            if ranks.device.type == "cuda"
            else "note: --use_fp16 True has no effect on a CPU, which computes in float32"
        )
    if ranks.count > 1:
        yield f"{ranks.count} processes, {flags.batch_size} images a step each"
