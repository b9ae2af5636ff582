"""A training of seconds, and processes to kill it in."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lungwave.data.augment import LABELS, Augment
from lungwave.data.mapset import MapSet
from lungwave.models.ema import Keep
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import UNet, UNetConfig
from lungwave.training.loop import Listener, Step, TrainConfig, Training
from lungwave.training.objective import Denoising, Task
from lungwave.training.ranks import Ranks, joined
from lungwave.training.source import MapSource

# Children fork from a server that has torch loaded and no threads, so each costs little.
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torch", "lungwave.cli_learn", "lungwave.prior.build"])


def maps(count: int = 24, size: tuple[int, int] = (4, 8), seed: int = 0) -> MapSet:
    """Maps of smooth noise."""
    values = np.random.default_rng(seed).random((count, 1, *size)).astype(np.float32)
    return MapSet.of((values + np.roll(values, 1, 3)) / 2)


def source(count: int = 24) -> MapSource:
    """The maps, augmented and scaled."""
    found = maps(count)
    return MapSource(found, Scaling(*found.statistics()), Augment(probability=0.5))


def tiny(
    folder: Path | None = None,
    *,
    task: Task | None = None,
    listeners: tuple[Listener, ...] = (),
    averages: Mapping[str, Keep] | None = None,
    ranks: Ranks | None = None,
    dropout: float = 0.1,
    count: int = 24,
    **settings: Any,
) -> Training:
    """A training of a small network; ``settings`` are those of TrainConfig."""
    chosen = {"images": 96, "batch": 8, "warmup_images": 16, "lr": 1e-3, "save_minutes": 0.0, "snapshot_images": 32}
    torch.manual_seed(0)
    net = UNet(UNetConfig(channels=8, channel_mult=(1, 2), blocks=1, heads=2, dropout=dropout, vector=LABELS))
    config = TrainConfig(**{**chosen, **settings})
    return Training(
        Preconditioned(net), source(count), task or Denoising(), config, folder,
        averages=averages, listeners=listeners, ranks=ranks,
    )  # fmt: skip


class Curve(Listener):
    """Remembers the mean loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.steps: list[Step] = []

    def step(self, run: Training, step: Step) -> None:
        self.losses.append(float(step.values["loss"].double().mean()))
        self.steps.append(step)


def same(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    """Whether two sets of tensors are equal bit for bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def train_in(folder: Path, settings: Mapping[str, Any]) -> None:
    """Body of a child process."""
    torch.set_num_threads(1)
    tiny(folder, **settings).run()


def train_as_rank(rank: int, count: int, port: int, out: Path, settings: Mapping[str, Any]) -> None:
    """Body of one of several child processes that train together; the first writes its loss curve."""
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(count), LOCAL_RANK=str(rank), MASTER_PORT=str(port))
    curve = Curve()
    with joined("cpu") as ranks:
        run = tiny(None, ranks=ranks, listeners=(curve,), **settings)
        assert run.run()
        weights = {name: value.clone() for name, value in run.model.state_dict().items()}
        ranks.copy_first(run.model.state_dict().values())
        assert same(weights, run.model.state_dict()), "ranks hold different weights"
    if rank == 0:
        out.write_text(json.dumps(curve.losses))


def command_in(folder: Path, words: list[str]) -> None:
    """Body of a child process that runs ``lungwave WORDS`` in a folder; stderr goes to a file there."""
    torch.set_num_threads(1)
    from lungwave.cli import main

    os.chdir(folder)
    with (folder / "stderr.txt").open("w") as said, contextlib.redirect_stderr(said):
        code = main(words)
    sys.exit(code)


def start(body: Any, *arguments: Any) -> Any:
    """A child process that runs ``body``."""
    child = SERVER.Process(target=body, args=arguments)
    child.start()
    return child


def wait_for_change(path: Path, child: Any, timeout: float = 300.0) -> None:
    """Return when the file was replaced while the child lives."""
    before = path.stat().st_mtime_ns if path.exists() else 0
    end = time.monotonic() + timeout
    while (path.stat().st_mtime_ns if path.exists() else 0) == before:
        assert child.is_alive(), f"the child ended with {child.exitcode} before it was to be stopped"
        assert time.monotonic() < end, "the child writes no state"
        time.sleep(0.002)
