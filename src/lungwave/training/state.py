"""Everything a training needs to go on, in one file that is whole at any moment.

The state is a safetensors file: tensors, and one JSON text for the rest. A new state replaces the old one in a single
step, the one before stays beside it, and a digest over all tensors tells a damaged file. Snapshots of averaged weights
are small files of the same kind in half precision.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lungwave.models.ema import posthoc_coefficients
from lungwave.repro import atomic_path, json_digest
from lungwave.types import LungwaveError, UsageError

FORMAT, FIRST = "lungwave-training-2", "lungwave-training-1"  # the first had no digest of its facts
STATE, PREVIOUS, SNAPSHOTS = "state.safetensors", "state.previous.safetensors", "snapshots"
LEFT = r"\..+\.(safetensors|jsonl?|png|md|pt)\.[a-z0-9_]{8}\.part"  # names that ``repro.atomic_path`` makes
LARGEST_HALF = 65504.0

Facts = dict[str, Any]


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold ``folder`` for this process: two trainings in one folder would overwrite each other's files.

    The system lets go of it however the process ends, and no file is left. UsageError where another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise LungwaveError(f"{folder}: cannot write ({error.strerror}); choose another folder") from error
    try:
        with suppress(ImportError):  # a system without such locks
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"{folder} is in use by another training; stop that one first, or choose another folder"
                ) from None
            except OSError:  # a network file system without locks
                pass
        for part in (folder, folder / SNAPSHOTS, folder / "samples", folder / "model"):
            for path in part.glob(".*.part"):  # what a killed process was writing
                if re.fullmatch(LEFT, path.name):
                    path.unlink(missing_ok=True)
        yield
    finally:
        os.close(handle)


def save_state(folder: Path, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    """Replace the state in ``folder``; the former one becomes the previous one.

    Whatever fails, and whenever the process dies, the state in the folder is a whole one. Raises LungwaveError where
    the disk is full.
    """
    state, previous = folder / STATE, folder / PREVIOUS
    with atomic_path(state) as temporary:
        _write(temporary, tensors, facts)
        if state.exists():
            _keep(state, previous)
    _flush(folder)


def load_state(folder: Path) -> tuple[dict[str, Tensor], Facts] | None:
    """The newest whole state in ``folder``, None where there is none; LungwaveError where none is whole."""
    found = [path for path in (folder / STATE, folder / PREVIOUS) if path.exists()]
    damage = []
    for path in found:
        try:
            return read(path)
        except UsageError:
            raise
        except LungwaveError as error:
            damage.append(str(error))
    if found:
        raise LungwaveError(f"{'; '.join(damage)}; remove {' and '.join(map(str, found))} to start anew")
    return None


def save_snapshot(folder: Path, images: int, tensors: Mapping[str, Tensor], facts: Facts) -> Path:
    """Store averaged weights after ``images`` training images in half precision (EDM2, arXiv:2312.02696, section 3)."""
    path = folder / SNAPSHOTS / f"{images:012d}.safetensors"
    with atomic_path(path) as temporary:
        _write(temporary, {name: _half(value) for name, value in tensors.items()}, {**facts, "images": images})
    return path


def snapshots(folder: Path, images: int | None = None) -> list[Path]:
    """Snapshots of a training, oldest first; those after ``images`` training images are left out."""
    found = sorted((folder / SNAPSHOTS).glob("[0-9]*.safetensors"))
    return [path for path in found if images is None or int(path.name.split(".")[0]) <= images]


def forget_snapshots(folder: Path) -> None:
    """Remove the snapshots of a training that starts anew."""
    for path in snapshots(folder):
        path.unlink()


def posthoc(folder: Path, images: int, step: int, sigma_rels: Sequence[float]) -> dict[float, dict[str, Tensor]]:
    """Averaged weights of any lengths ``sigma_rels`` after optimiser step ``step``, from the snapshots until then.

    EDM2 (arXiv:2312.02696), section 3.2; see ``models.ema.posthoc_coefficients``. Raises UsageError where there is no
    snapshot of a power-function average.
    """
    kept = [read(path) for path in snapshots(folder, images)]
    stored = [
        (facts.get("step", math.nan), name, tensors)
        for tensors, facts in kept
        for name in sorted({key.split("/")[0] for key in tensors})
        if name.startswith("power-")
    ]
    if not stored:
        raise UsageError(f"{folder}: holds no snapshot of averaged weights up to {images} images; train longer")
    try:
        ends = np.array([float(end) for end, _, _ in stored])
        lengths = np.array([float(name.removeprefix("power-")) for _, name, _ in stored])
    except (TypeError, ValueError) as error:
        raise LungwaveError(f"{folder}: its snapshots do not say what they average ({error}); train anew") from None
    if not ((ends >= 1) & (ends < 2**53)).all():
        raise LungwaveError(f"{folder}: its snapshots are of steps {ends.tolist()[:5]}, which cannot be; train anew")
    found: dict[float, dict[str, Tensor]] = {}
    for sigma_rel in sigma_rels:
        total: dict[str, Tensor] = {}
        for factor, (_, name, tensors) in zip(
            posthoc_coefficients(ends, lengths, float(step), sigma_rel), stored, strict=True
        ):
            for key, value in tensors.items():
                if key.startswith(f"{name}/"):
                    part = key.removeprefix(f"{name}/")
                    total[part] = total.get(part, torch.zeros(())) + float(factor) * value.double()
        found[sigma_rel] = {key: value.float() for key, value in total.items()}
    return found


def read(path: Path) -> tuple[dict[str, Tensor], Facts]:
    """Tensors and facts of a state or snapshot; LungwaveError where it is damaged or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            facts = json.loads((file.metadata() or {}).get("lungwave", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise LungwaveError(f"{path}: is damaged ({str(error)[:80]})") from error
    if facts.get("format") not in (FORMAT, FIRST):
        raise UsageError(f"{path}: is no training state of this version ({FORMAT}); choose another folder")
    told, stamp = facts.pop("sha256", None), facts.pop("facts_sha256", None)
    if told != _digest(tensors) or (facts["format"] == FORMAT and stamp != json_digest(facts)):
        raise LungwaveError(f"{path}: is damaged (its content does not match its digest)")
    return tensors, facts


def _write(path: Path, tensors: Mapping[str, Tensor], facts: Facts) -> None:
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    about = json.loads(json.dumps({**facts, "format": FORMAT}, allow_nan=False))  # as it is read back
    text = json.dumps({**about, "sha256": _digest(plain), "facts_sha256": json_digest(about)})
    try:
        save_file(plain, path, {"lungwave": text})
    except SafetensorError as error:  # its writer wraps what the system said
        raise OSError(f"{error}") from error


def _keep(state: Path, previous: Path) -> None:
    """Make the state the previous one while it stays where it is."""
    link = previous.with_suffix(".part")
    link.unlink(missing_ok=True)
    try:
        os.link(state, link)
    except OSError:  # a file system without hard links: for an instant only the previous one is there
        os.replace(state, previous)
    else:
        os.replace(link, previous)


def _flush(folder: Path) -> None:
    """Have the renaming on disk, where the system can say so."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _half(value: Tensor) -> Tensor:
    whole = value.detach().float()
    return whole.half() if whole.abs().max() <= LARGEST_HALF else whole


def _digest(tensors: Mapping[str, Tensor]) -> str:
    found = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return found.hexdigest()
