"""The only training loop: a model, images, a task; counted in images seen, resumed by running it again.

    run = Training(model, source, Denoising(), TrainConfig(images=200_000), folder, listeners=[...])
    finished = run.run()

Whatever happens at random is a pure function of the seed and the number of the image (``training.source``), so that a
training that was killed and started again has the same weights, bit for bit, as one that was not.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lungwave.models.ema import Averages, Keep, power_averages
from lungwave.models.unet import Condition
from lungwave.repro import stream, versions
from lungwave.training import state
from lungwave.training.loader import Made, made, read_ahead
from lungwave.training.objective import Task
from lungwave.training.ranks import Ranks
from lungwave.training.source import Batch, Draws, Source
from lungwave.types import LungwaveError, UsageError

Decay = Literal["inverse-sqrt", "linear", "none"]
Precision = Literal["auto", "float32", "bfloat16"]
# Settings that may change on resume.
FREE = {"images", "minutes", "microbatch", "compile", "save_minutes", "snapshot_images", "readers"}


@dataclass(frozen=True)
class TrainConfig:
    """How to train; the model, the images and the loss come beside it."""

    images: int = 1_000_000  # to see in all; the same command with more goes on from there
    minutes: float | None = None  # of training in all, over all runs; whichever ends first. None = no limit
    batch: int = 32  # images a step, over all ranks
    microbatch: int = 0  # images a pass on one rank, to save memory; 0 = all of them
    lr: float = 2e-4  # peak learning rate
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    weight_decay: float = 0.0
    warmup_images: int = 10_000  # over which the learning rate rises from 0
    decay: Decay = "inverse-sqrt"
    decay_images: int = 100_000  # from which on an inverse square root falls; "linear" reaches 0 at ``images``
    clip: float = 1.0  # greatest norm of the gradient; 0 = any
    precision: Precision = "auto"  # bfloat16 where the device computes in it; weights are always float32
    channels_last: bool = True  # memory layout; no effect on the result beyond rounding
    compile: bool = False  # torch.compile
    seed: int = 0
    save_minutes: float = 5.0  # between states; a killed training loses this much
    snapshot_images: int = 20_000  # between snapshots of the averaged weights; 0 = none
    readers: int = 0  # processes a rank that make images ahead of time; no effect on the result

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UsageError(f"{name} {value} is no finite number; give one, or leave the option out")
        positive = {"images": self.images, "batch": self.batch, "lr": self.lr, "decay_images": self.decay_images}
        for name, value in positive.items():
            if not value > 0:
                raise UsageError(f"{name} {value} must be greater than 0")
        some = (
            "microbatch",
            "weight_decay",
            "warmup_images",
            "clip",
            "seed",
            "save_minutes",
            "snapshot_images",
            "readers",
        )
        for name in some:
            if getattr(self, name) < 0:
                raise UsageError(f"{name} {getattr(self, name)} must be at least 0")
        if self.minutes is not None and not self.minutes > 0:
            raise UsageError(f"minutes {self.minutes:g} must be greater than 0")

    def rate(self, images: int) -> float:
        """Learning rate after ``images`` images."""
        warm = min(1.0, images / self.warmup_images) if self.warmup_images else 1.0
        match self.decay:
            case "inverse-sqrt":  # EDM2 (arXiv:2312.02696), eq. 67
                return self.lr * warm / math.sqrt(max(images / self.decay_images, 1.0))
            case "linear":
                return self.lr * warm * max(0.0, 1 - images / self.images)
        return self.lr * warm

    def facts(self) -> dict[str, Any]:
        """Settings that a resumed training must find unchanged."""
        free = FREE - {"images"} if self.decay == "linear" else FREE
        kept = {key: value for key, value in asdict(self).items() if key not in free}
        return {**kept, "betas": list(self.betas)}


@dataclass(frozen=True)
class Step:
    """What one optimiser step did; values are of each image of the batch, over all ranks, on the CPU."""

    step: int  # 1 = the first
    images: int  # seen, with this step
    values: Mapping[str, Tensor]  # "loss" and what else the task gives
    grad_norm: float  # before clipping
    lr: float
    seconds: float  # of this step


class Listener:
    """Somebody who is told how the training goes, on the first rank only."""

    def begin(self, run: Training) -> None:
        """The training starts, or goes on after ``run.images`` images."""

    def step(self, run: Training, step: Step) -> None:
        """A step was made."""

    def end(self, run: Training) -> None:
        """The training is finished or stopped; not called after an error."""


class Training:
    """A training in progress: everything that changes from step to step."""

    def __init__(
        self,
        model: nn.Module,
        source: Source,
        task: Task,
        config: TrainConfig,
        folder: Path | None = None,
        *,
        averages: Mapping[str, Keep] | None = None,
        listeners: Sequence[Listener] = (),
        ranks: Ranks | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """``folder`` takes state and snapshots (None = neither); ``facts`` are further settings that must not change.

        ``averages`` name running averages of the weights, by default two power functions.
        """
        self.ranks = ranks or Ranks()
        self.source, self.task, self.config, self.folder = source, task, config, folder
        self.listeners = tuple(listeners) if self.ranks.first else ()
        layout = torch.channels_last if config.channels_last else torch.contiguous_format
        self.model = model.to(self.ranks.device, memory_format=layout)  # type: ignore[call-overload]
        self.ranks.copy_first(self.model.state_dict().values())
        self._forward: nn.Module = torch.compile(self.model) if config.compile else self.model  # type: ignore[assignment]
        self.averages = Averages(self.model, power_averages() if averages is None else averages)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.lr, config.betas, weight_decay=config.weight_decay, foreach=True
        )
        self.facts: dict[str, Any] = {
            "train": config.facts(), "task": task.facts(), "data": source.digest, "source": source.facts(),
            "averages": list(self.averages.keeps), **(facts or {}),
        }  # fmt: skip
        self.step, self.images, self.seconds, self._late = 0, 0, 0.0, False
        self._ahead: Iterator[Made] | None = None  # what the readers make
        self.stored_images: int | None = None  # in the newest state on disk
        self.began = 0  # images that an earlier run had seen
        if config.batch > len(source):
            raise UsageError(f"batch {config.batch} is larger than the set of {len(source)} images; take a smaller one")

    # ---- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> bool:
        """Train to the end, from where the state in the folder is; True where the end was reached.

        The step in progress is finished and saved before SIGTERM or Ctrl-C takes effect. Raises LungwaveError where
        the loss is not finite, or the state cannot be written or belongs to another training.
        """
        self.resume()
        if self._over():
            return True
        for listener in self.listeners:
            listener.begin(self)
        with postponed_signals() as pending:
            before, start, saved = self.seconds, time.monotonic(), time.monotonic()
            while not self._over() and not self.ranks.any(pending() is not None):
                step = self.advance()
                self.seconds = before + time.monotonic() - start
                if self.crossed(step, self.config.snapshot_images):
                    self.snapshot()
                for listener in self.listeners:
                    listener.step(self, step)
                if time.monotonic() - saved >= 60 * self.config.save_minutes:
                    self.save()
                    saved = time.monotonic()
            if self.images != self.stored_images:
                self.save()
            for listener in self.listeners:
                listener.end(self)
        self._ahead = None
        return self.finished

    @property
    def finished(self) -> bool:
        """Whether the images or the minutes are used up."""
        return self.images >= self.config.images or self._late

    def _over(self) -> bool:
        """``finished``, as all ranks decide it together: their clocks differ."""
        self._late = self.ranks.any(self.config.minutes is not None and self.seconds >= 60 * self.config.minutes)
        return self.finished

    def advance(self) -> Step:
        """One optimiser step."""
        clock = time.perf_counter()
        config = self.config
        positions = np.arange(self.images, min(self.images + config.batch, config.images))
        lr = config.rate(self.images + len(positions))
        self.model.train()
        self.optimizer.zero_grad()
        parts = [self._backward(mine, first, len(positions)) for first, mine in self._passes(positions)]
        values = self._gathered(parts, len(positions))
        self._check_finite("loss", bool(values["loss"].isfinite().all()))
        norm = self._gradient_norm()
        self._check_finite("gradient", math.isfinite(norm))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        self.images += len(positions)
        self.averages.update(self.step)
        self.task.observe(values)
        return Step(self.step, self.images, values, norm, lr, time.perf_counter() - clock)

    def _passes(self, positions: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """This rank's share of a step, cut into passes: where each begins in the share, and its positions."""
        mine = self.ranks.share(positions)
        size = self.config.microbatch or max(len(mine), 1)
        return [(first, mine[first : first + size]) for first in range(0, len(mine), size)]

    def batch(self, positions: np.ndarray) -> Batch:
        """The training images at ``positions``, as every run of this training sees them."""
        return self._batch(positions, *made(self.source, positions, self.config.seed))

    def _batch(self, positions: np.ndarray, clean: Tensor, cond: Condition | None) -> Batch:
        device = self.ranks.device
        return Batch(clean.to(device), None if cond is None else cond.to(device), Draws(self.config.seed, positions))

    def _next(self, positions: np.ndarray) -> Batch:
        """The same, from the readers where there are any."""
        if not self.config.readers:
            return self.batch(positions)
        if self._ahead is None:
            self._ahead = read_ahead(self.source, _Ahead(self), self.config.seed, self.config.readers)
        found = next(self._ahead)
        assert np.array_equal(found[0], positions), "readers follow the training's order"
        return self._batch(*found)

    def _backward(self, positions: np.ndarray, first: int, total: int) -> dict[str, Tensor]:
        """Add the gradient of some images to the sum; their values."""
        batch = self._next(positions)
        key = f"dropout {self.step} {self.ranks.rank} {first}"  # dropout draws from torch's own generator
        torch.manual_seed(int(stream(self.config.seed, key).integers(2**63)))
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self._half):
            values = self.task.losses(self._forward, batch)
        (values["loss"].sum() / total).backward()
        return {name: value.detach().float() for name, value in values.items()}

    @property
    def _half(self) -> bool:
        if self.config.precision == "auto":
            return self.ranks.device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return self.config.precision == "bfloat16"

    def _gathered(self, parts: list[dict[str, Tensor]], total: int) -> dict[str, Tensor]:
        names = sorted(parts[0]) if parts else None
        if names is None:  # fewer images than ranks in the last step
            with torch.no_grad():
                probe = self.task.losses(self._forward, self.batch(np.arange(self.images, self.images + 1)))
            names, rows = sorted(probe), torch.zeros(0, len(probe), device=self.ranks.device)
        else:
            rows = torch.cat([torch.stack([part[name] for name in names], 1) for part in parts])
        whole = self.ranks.gather(rows, total).cpu()
        return {name: whole[:, column] for column, name in enumerate(names)}

    def _gradient_norm(self) -> float:
        """Norm of the gradient over all ranks; the gradient is summed over them and clipped."""
        if self.ranks.count > 1:
            for parameter in self.model.parameters():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            self.ranks.sum([p.grad for p in self.model.parameters() if p.grad is not None])
        return float(nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip or math.inf))

    def _check_finite(self, what: str, finite: bool) -> None:
        if finite:
            return
        kept = "no state was saved yet" if self.stored_images is None else f"the state at {self.stored_images} is kept"
        raise LungwaveError(
            f"{what} is not finite in step {self.step + 1}, after {self.images} images; the step was not made and "
            f"{kept}; train anew with a smaller lr (now {self.config.lr:g}) or precision float32"
        )

    def crossed(self, step: Step, interval: int) -> bool:
        """Whether this step passed a multiple of ``interval`` images."""
        return interval > 0 and step.images // interval > (step.images - len(step.values["loss"])) // interval

    # ---- files ----------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the state, on the first rank."""
        if self.folder is None or not self.ranks.first:
            return
        names = [name for name, _ in self.model.named_parameters()]
        states = self.optimizer.state_dict()["state"]
        tensors = {f"model/{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"optimizer/{names[i]}/{key}": value for i, kept in states.items() for key, value in kept.items()}
        tensors |= {f"average/{name}": value for name, value in self.averages.state().items()}
        tensors |= {f"task/{name}": value for name, value in self.task.state().items()}
        counts = {"step": self.step, "images": self.images, "seconds": self.seconds}
        state.save_state(self.folder, tensors, {**counts, "facts": self.facts, "versions": versions()})
        self.stored_images = self.images

    def resume(self) -> bool:
        """Take the state in the folder, if there is one; UsageError where it is of another training."""
        if self.folder is None:
            return False
        found = state.load_state(self.folder)
        if found is None:
            if self.ranks.first:
                state.forget_snapshots(self.folder)  # of a training that was killed before its first state
            return False
        tensors, about = found
        changed = differences(about["facts"], self.facts)
        if changed:
            raise UsageError(
                f"{self.folder} holds a training with other settings ({'; '.join(changed)}); "
                "give the former ones, or another --out"
            )
        self.model.load_state_dict(_under("model/", tensors))
        self.averages.restore(_under("average/", tensors))
        self.task.restore(_under("task/", tensors))
        names = [name for name, _ in self.model.named_parameters()]
        states = {index: _under(f"optimizer/{name}/", tensors) for index, name in enumerate(names)}
        self.restore_optimizer({index: kept for index, kept in states.items() if kept})
        self.step, self.images, self.seconds = about["step"], about["images"], about["seconds"]
        self.stored_images = self.began = self.images
        return True

    def restore_optimizer(self, states: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take back AdamW's state of some parameters, by their number."""
        parameters = list(self.model.parameters())
        whole = self.optimizer.state_dict()
        for index, kept in states.items():  # in the memory layout of the parameter, as AdamW makes them
            like = parameters[index]
            whole["state"][index] = {k: torch.empty_like(like).copy_(v) if v.ndim else v for k, v in kept.items()}
        self.optimizer.load_state_dict(whole)

    def snapshot(self) -> None:
        """Store the averaged weights for ``posthoc``, on the first rank."""
        if self.folder is not None and self.ranks.first and self.averages.keeps:
            state.save_snapshot(self.folder, self.images, self.averages.state(), {"step": self.step})


class _Ahead:
    """Positions of all passes to come, in their order."""

    def __init__(self, run: Training) -> None:
        self.run, self.begun = run, run.images

    def __iter__(self) -> Iterator[np.ndarray]:
        config = self.run.config
        for first in range(self.begun, config.images, config.batch):
            for _, mine in self.run._passes(np.arange(first, min(first + config.batch, config.images))):
                yield mine


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Settings that differ between two trees of JSON values, each as ``key: before -> now``.

    A key that ``before`` lacks is no difference: settings that came with a later version have their defaults.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = sorted(before)
        return [found for key in keys for found in differences(before.get(key), now.get(key), f"{path}.{key}")]
    if isinstance(before, (list, tuple)) and isinstance(now, (list, tuple)):
        same = len(before) == len(now) and not any(differences(a, b) for a, b in zip(before, now, strict=True))
    else:
        same = before == now
    return [] if same else [f"{path.removeprefix('.').removeprefix('train.')}: {_short(before)} -> {_short(now)}"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


@contextmanager
def postponed_signals() -> Iterator[Callable[[], int | None]]:
    """Hold SIGTERM and Ctrl-C back; the block asks which one came, and it takes effect after the block.

    A second one takes effect at once. Only the main thread may listen to signals; elsewhere nothing is held back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            restore()
            signal.raise_signal(number)

    former = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}

    def restore() -> None:
        for number, handler in former.items():
            signal.signal(number, handler)

    try:
        yield lambda: came[0] if came else None
    finally:
        restore()
    if came:
        signal.raise_signal(came[0])
