"""The original's checkpoint files: their names, how they are found again, and what lungwave writes beside them.

``model%06d.pt``, ``ema_RATE_%06d.pt`` and ``opt%06d.pt`` are plain state dicts. ``lungwave.json`` holds what they leave
out (flags, size, strides), ``classes.json`` the number of each class.
"""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lungwave.models.openai import read_state
from lungwave.repro import atomic_path, versions, write_json
from lungwave.types import UsageError

SIDECAR, CLASSES = "lungwave.json", "classes.json"


@dataclass(frozen=True)
class Resume:
    """A run to go on with."""

    label: int  # number in the file's name
    model: Path
    counted: bool  # whether the name has a number; without one the steps start at 0


def write_checkpoint(path: Path, state: Mapping[str, Any]) -> None:
    """A plain torch file, whole or not at all."""
    with atomic_path(path) as temporary:
        try:
            torch.save(dict(state), temporary)
        except RuntimeError as error:  # what its zip writer makes of a full disk
            said = str(error).splitlines()[0]
            raise OSError("the disk took only part of it" if "unexpected pos" in said else said) from error


def resume_from(named: str) -> Resume:
    """The run that ``--resume_checkpoint`` names; UsageError for a file that is not its network."""
    path = Path(named)
    beside = re.fullmatch(r"(?:ema_[0-9.e-]+_|opt)(\d+)\.pt", path.name)
    if beside:
        what = "the state of an optimiser" if path.name.startswith("opt") else "an average of the weights (EMA)"
        raise UsageError(
            f"{path}: is {what}, not a run to go on with; give {path.with_name(f'model{beside[1]}.pt')}, "
            "the rest is read from beside it"
        )
    found = re.search(r"model(\d+)\.[^.]*$", path.name)
    return Resume(int(found[1]) if found else 0, path, found is not None)


def newest(folder: Path) -> Resume | None:
    """The checkpoint with the highest number in a folder."""
    found = [
        (int(match[1]), path)
        for path in folder.glob("model*.pt")
        if (match := re.fullmatch(r"model(\d{6,})\.pt", path.name))
    ]
    return Resume(*max(found), counted=True) if found else None


def read_optimiser(path: Path) -> dict[str, Any] | None:
    """State of an optimiser; None where there is no file."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:80]
        raise UsageError(f"{path}: not a readable optimiser state ({reason}); use an earlier checkpoint") from None
    if not isinstance(state, dict) or not {"state", "param_groups"} <= set(state):
        raise UsageError(f"{path}: is no optimiser state; use an earlier checkpoint")
    return state


def write_sidecar(folder: Path, about: Mapping[str, Any]) -> None:
    """What the checkpoints of a run do not say, and their ``classes`` once more by themselves."""
    if about["classes"]:
        write_json(folder / CLASSES, {name: number for number, name in enumerate(about["classes"])})
    write_json(folder / SIDECAR, {**about, "versions": versions()})


def read_sidecar(model: Path) -> dict[str, Any]:
    """What stands beside a checkpoint; empty where nothing does. UsageError where it is damaged."""
    path = model.with_name(SIDECAR)
    about: dict[str, Any] = _json(path)
    classes = _json(model.with_name(CLASSES))
    if classes:
        numbers = sorted(classes.values(), key=str)
        if sorted(map(str, range(len(numbers)))) != sorted(map(str, numbers)):
            raise UsageError(f"{model.with_name(CLASSES)}: numbers must run from 0 to {len(numbers) - 1}")
        about["classes"] = sorted(classes, key=lambda name: int(classes[name]))
    return about


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("no object")
    except ValueError as error:
        raise UsageError(f"{path}: is damaged ({error}); remove it, and give the flags of the training") from None
    return found


def model_file(flag: str, named: str) -> tuple[Path, dict[str, torch.Tensor]]:
    """Path and tensors of the network that a flag names."""
    if not named:
        raise UsageError(f"--{flag} is missing; give a model*.pt or ema_*.pt file")
    return Path(named), read_state(named)
