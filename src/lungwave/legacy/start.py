"""Where a training begins: at random weights, at a named checkpoint, or where the same command was stopped."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lungwave.legacy import files, network
from lungwave.legacy.flags import Flags
from lungwave.legacy.log import Log
from lungwave.models.checkpoint import fill
from lungwave.models.openai import infer, read_state
from lungwave.models.openai_flags import contradictions
from lungwave.models.unet import UNet, UNetConfig
from lungwave.repro import stream
from lungwave.training.loop import Training, differences
from lungwave.types import UsageError

# Flags that may differ when a run goes on by itself; the others decide its weights (data_dir through its content).
FREE = ("max_steps", "log_interval", "save_interval", "microbatch", "device", "use_checkpoint", "data_dir")


@dataclass(frozen=True)
class Start:
    """Where a run begins."""

    resume: files.Resume | None = None  # None: at random weights
    optimiser: Mapping[str, Any] | None = None  # content of its file
    note: str = ""

    @property
    def label(self) -> int | None:
        """Number of the checkpoint; None where there is none, or it has no number."""
        return self.resume.label if self.resume is not None and self.resume.counted else None

    def behind(self, batch: int) -> tuple[int, int]:
        """Steps and images behind the run; the original's files count their label again, as it did."""
        own = (self.optimiser or {}).get("lungwave")
        label = self.label or 0
        return (own["step"], own["images"]) if own else (label, label * batch)


def find_start(flags: Flags, folder: Path, about: Mapping[str, Any]) -> Start:
    """The checkpoint that ``--resume_checkpoint`` names, else the newest of the same run in ``folder``."""
    resume = files.resume_from(flags.resume_checkpoint) if flags.resume_checkpoint else files.newest(folder)
    if resume is None:
        return Start()
    beside = files.read_sidecar(resume.model)
    changed = differences(run_facts(beside), run_facts(about)) if beside else [f"it has no {files.SIDECAR}"]
    notes = []
    if flags.resume_checkpoint:
        if beside and beside.get("classes", []) != about["classes"]:
            raise UsageError(
                f"{resume.model}: was trained on classes {', '.join(beside['classes']) or 'none'}, the images have "
                f"{', '.join(about['classes']) or 'none'}; give images of the same classes"
            )
        notes += [f"it was trained otherwise ({'; '.join(changed)})"] if beside and changed else []
    elif changed:
        raise UsageError(
            f"{folder} holds another run ({'; '.join(changed[:4])}); set OPENAI_LOGDIR to an empty folder, or go on "
            f"from its weights with --resume_checkpoint {resume.model}"
        )
    else:
        notes.append("set OPENAI_LOGDIR to an empty folder to start anew")
    if not resume.counted:
        notes.append("its name has no step number, so steps count from 0")
    held = files.read_optimiser(resume.model.with_name(f"opt{resume.label:06d}.pt")) if resume.counted else None
    notes += [] if held else ["no optimiser state beside it, so it starts anew"]
    return Start(resume, held, "; ".join(notes))


def run_facts(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a run must keep to go on by itself."""
    flags = {name: value for name, value in about.get("flags", {}).items() if name not in FREE}
    return {**flags, "data": about.get("data", "unknown"), "processes": about.get("processes", 1)}


def build(config: UNetConfig, flags: Flags, start: Start) -> UNet:
    """The network with random weights, or with those of the start. UsageError where they do not fit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(stream(flags.seed, "weights").integers(2**63)))
        net = UNet(config)
    if start.resume is not None:
        state = read_state(start.resume.model)
        wrong = contradictions(infer(state), network.asked(flags))
        if wrong:
            raise UsageError(f"{start.resume.model}: {'; '.join(wrong)}; go on with the flags of its training")
        fill(net, state, str(start.resume.model))
    return net


def restore(run: Training, start: Start, behind: tuple[int, int], log: Log) -> None:
    """Averages, optimiser and step sampler as they were, where their files are; the network is already there."""
    assert start.resume is not None
    run.step, run.images = behind
    run.stored_images = run.images
    if not start.resume.counted:
        return
    for rate, weights in run.averages.weights.items():
        path = start.resume.model.with_name(f"ema_{rate}_{start.resume.label:06d}.pt")
        if not path.is_file():
            log.say(f"note: no {path.name} beside it; that average starts at these weights")
            continue
        state = read_state(path)
        for name, value in weights.items():
            if name not in state or state[name].shape != value.shape:
                raise UsageError(f"{path}: does not fit the network ({name}); move it away to start the average anew")
            value.copy_(state[name])
    if start.optimiser is None:
        return
    parameters = list(run.model.parameters())
    kept = start.optimiser["state"]
    if len(kept) != len(parameters) or any(
        index not in kept or kept[index]["exp_avg"].shape != parameter.shape
        for index, parameter in enumerate(parameters)
    ):
        path = start.resume.model.with_name(f"opt{start.resume.label:06d}.pt")
        raise UsageError(
            f"{path}: does not fit the network (the original's fp16 runs store it in another form); move it away to "
            "start the optimiser anew"
        )
    run.restore_optimizer(kept)
    run.task.restore(start.optimiser.get("lungwave", {}).get("task", {}))
