"""How a training goes: progress on stderr, a journal of JSON lines, loss curves, grids of samples, TensorBoard."""

from __future__ import annotations

import json
import sys
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn
from tqdm import tqdm

from lungwave.models.precond import Denoiser, Scaling
from lungwave.models.unet import Condition
from lungwave.prior.pictures import save_grid, save_loss, save_sigma
from lungwave.progress import LOG_INTERVAL
from lungwave.repro import atomic_path
from lungwave.sample import generate
from lungwave.training.loop import Listener, Step, Training
from lungwave.training.objective import squared_error
from lungwave.training.source import Draws, Source
from lungwave.types import LungwaveError, UsageError

SIGMAS = tuple(float(f"{s:.4g}") for s in np.geomspace(0.01, 20.0, 12))  # noise levels of a check
JOURNAL = "log.jsonl"
CHECK = "crc32"  # key of the checksum of a line


class ProgressLine(Listener):
    """Images seen, rate, loss and time left on stderr: a bar on a terminal, a line now and then in a log."""

    def begin(self, run: Training) -> None:
        """Say where the training stands."""
        self.start, self.first, self.spoke, self.loss = time.monotonic(), run.images, time.monotonic(), float("nan")
        self.spent = run.seconds
        if run.images:
            print(f"train: goes on after {run.images:,} images, {run.seconds / 60:.1f} min", file=sys.stderr)
        terminal = sys.stderr.isatty()
        self.bar = tqdm(total=run.config.images, initial=run.images, desc="train", unit="image") if terminal else None

    def step(self, run: Training, step: Step) -> None:
        """Say what was done, now and then."""
        mean = float(step.values["loss"].mean())
        self.loss = mean if self.loss != self.loss else 0.98 * self.loss + 0.02 * mean
        if self.bar is not None:
            self.bar.update(len(step.values["loss"]))
            self.bar.set_postfix(loss=f"{self.loss:.4f}", refresh=False)
        elif time.monotonic() - self.spoke >= LOG_INTERVAL:
            self.spoke = time.monotonic()
            rate = (run.images - self.first) / (self.spoke - self.start)
            left = (run.config.images - run.images) / rate
            if run.config.minutes is not None:
                left = min(left, 60 * run.config.minutes - run.seconds)
            print(
                f"train: {run.images:,}/{run.config.images:,} images, {rate:.1f}/s, loss {self.loss:.4f}, "
                f"{left / 60:.0f} min left",
                file=sys.stderr,
                flush=True,
            )

    def end(self, run: Training) -> None:
        """Leave the terminal tidy."""
        if self.bar is not None:
            self.bar.close()


class Journal(Listener):
    """``log.jsonl``: a line every ``interval`` images, and what other listeners add; begins where the state is."""

    def __init__(self, folder: Path, interval: int = 1000) -> None:
        self.path, self.interval = folder / JOURNAL, interval
        self.records: list[dict[str, Any]] = []
        self.steps: list[Step] = []

    def begin(self, run: Training) -> None:
        """Forget lines about images that the state has not seen: they will be seen again."""
        self.resume(run.images)

    def resume(self, images: int) -> None:
        """Go on after so many images."""
        text = self.path.read_text(encoding="utf-8", errors="replace") if self.path.exists() else ""
        lines = [found for found in map(_parsed, text.splitlines()) if found]
        checked = any(whole for _, whole in lines)  # else of an older lungwave, which wrote no checksums
        self.records = [r for r, whole in lines if whole or not checked if r["images"] <= images]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.records:
            self.path.unlink(missing_ok=True)
            return
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(map(_line, self.records)), encoding="utf-8")

    def step(self, run: Training, step: Step) -> None:
        """Add the mean over the steps of an interval."""
        self.steps.append(step)
        seen = sum(len(s.values["loss"]) for s in self.steps)
        if seen >= self.interval or run.images >= run.config.images:
            self.add(
                "step",
                step.images,
                step=step.step,
                loss=_mean([float(s.values["loss"].mean()) for s in self.steps]),
                grad_norm=_mean([s.grad_norm for s in self.steps]),
                lr=step.lr,
                images_per_second=seen / sum(s.seconds for s in self.steps),
                minutes=run.seconds / 60,
            )
            self.steps = []

    def add(self, kind: str, images: int, **values: Any) -> None:
        """Append a line."""
        record = {"kind": kind, "images": images, **values}
        self.records.append(record)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        except OSError as error:
            raise LungwaveError(f"{self.path}: cannot write ({error.strerror}); free space, then rerun") from error

    def of(self, kind: str) -> list[dict[str, Any]]:
        """Lines of one kind."""
        return [record for record in self.records if record["kind"] == kind]


def sigma_losses(
    model: nn.Module,
    source: Source,
    count: int = 64,
    *,
    seed: int = 0,
    sigmas: Sequence[float] = SIGMAS,
    batch: int = 64,
    device: torch.device | str = "cpu",
) -> Float[np.ndarray, " level"]:
    """Denoising loss, weighted by ``1 / c_out^2``, at each noise level over evenly spread images of a source.

    Image and level fix the noise, so that checks of the same source compare weights and nothing else.
    """
    rows = np.unique(np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(np.int64))
    total = torch.zeros(len(sigmas), dtype=torch.float64)
    with torch.no_grad():
        for first in range(0, len(rows), batch):
            part = rows[first : first + batch]
            clean, cond = source.images(part, None)
            clean, cond = clean.to(device), None if cond is None else cond.to(device)
            for level, sigma in enumerate(sigmas):
                noise = Draws(seed, part).normal(f"check {level}", clean.shape[1:]).to(device)
                at = torch.full((len(part),), sigma, device=device)
                error = squared_error(model, clean, noise, at, cond)
                weight = model.error_scale(at) ** -2 if isinstance(model, Denoiser) else torch.ones_like(at)
                total[level] += (weight * error).sum().double().cpu()
    return (total / len(rows)).numpy()


class SigmaCurves(Listener):
    """Loss of the averaged weights at fixed noise levels, on training and held-out images, now and then."""

    def __init__(
        self, journal: Journal, train: Source, held_out: Source | None, interval: int = 20_000, count: int = 64
    ) -> None:
        self.journal, self.interval, self.count = journal, interval, count
        self.sources = {"train": train} if held_out is None else {"train": train, "held_out": held_out}

    def step(self, run: Training, step: Step) -> None:
        """Check where an interval is full."""
        if run.crossed(step, self.interval) or run.images >= run.config.images:
            self.check(run)

    def check(self, run: Training) -> dict[str, Any]:
        """Measure, note, draw."""
        name = next(iter(run.averages.keeps), None)
        with run.averages.applied(name) as model:
            found = {
                key: [float(f"{v:.6g}") for v in sigma_losses(model, source, self.count, device=run.ranks.device)]
                for key, source in self.sources.items()
            }
        self.journal.add("check", run.images, average=name, sigma=list(SIGMAS), **found)
        checks = self.journal.of("check")
        save_sigma(checks, self.journal.path.with_name("sigma.png"))
        save_loss(self.journal.of("step"), checks, self.journal.path.with_name("loss.png"))
        return found


class SampleGrid(Listener):
    """A grid of samples of the averaged weights now and then, always from the same noise; classes take turns."""

    def __init__(
        self,
        folder: Path,
        scaling: Scaling,
        shape: tuple[int, int, int],
        classes: int = 0,
        interval: int = 20_000,
        count: int = 16,
        steps: int = 12,
    ) -> None:
        self.folder, self.scaling, self.shape, self.classes = folder, scaling, shape, classes
        self.interval, self.count, self.steps = interval, count, steps

    def step(self, run: Training, step: Step) -> None:
        """Draw where an interval is full."""
        if not (run.crossed(step, self.interval) or run.images >= run.config.images):
            return
        name = next(iter(run.averages.keeps), None)
        cond = Condition(label=torch.arange(self.count) % self.classes) if self.classes else None
        with run.averages.applied(name) as model:
            drawn = generate(
                model,
                self.shape,
                self.count,
                seed=run.config.seed,
                steps=self.steps,
                cond=cond,
                device=run.ranks.device,
            )
        maps = self.scaling.to_data(drawn)[:, 0].numpy()
        path = self.folder / "samples" / f"{run.images:012d}.png"
        save_grid(maps, path, f"samples after {run.images:,} training images (Heun, {self.steps} steps)")


class TensorBoard(Listener):
    """The same figures for TensorBoard, an extra."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise UsageError("TensorBoard is not installed; pip install 'lungwave[track]'") from error
        self.folder, self.kind = folder / "tensorboard", SummaryWriter

    def begin(self, run: Training) -> None:
        """Open the log; what is to be seen again is overwritten."""
        self.writer = self.kind(str(self.folder), purge_step=run.images)

    def step(self, run: Training, step: Step) -> None:
        """Add the loss, the norm of the gradient and the learning rate."""
        values = {name: float(value.mean()) for name, value in step.values.items()}
        for name, value in {**values, "grad_norm": step.grad_norm, "lr": step.lr}.items():
            self.writer.add_scalar(name, value, step.images)

    def end(self, run: Training) -> None:
        """Close the log."""
        self.writer.close()


def _line(record: dict[str, Any]) -> str:
    """A line of the journal, with a checksum of itself at its end."""
    text = json.dumps(record)
    return f'{text[:-1]}, "{CHECK}": {zlib.crc32(text.encode())}}}\n'


def _parsed(line: str) -> tuple[dict[str, Any], bool] | None:
    """A line of the journal, and whether a checksum vouches for it; None for a half written or damaged one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("images"), (int, float)):
        return None
    check = found.pop(CHECK, None)
    return (found, check is not None) if check in (None, zlib.crc32(json.dumps(found).encode())) else None


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
