"""Every reader of files that strangers may have made, as a function of one file's bytes.

A reader may return, or raise LungwaveError (UsageError is one); anything else is a crash. ``run.py`` looks for such
bytes, ``tests/faults/test_corpus.py`` reads those again that were found.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

from lungwave import calibrated, comparison
from lungwave.config import Config
from lungwave.data import convert, hdf5, mapset
from lungwave.data.geometry import load_geometry
from lungwave.data.posteriors import read_posteriors
from lungwave.data.seal import MARK
from lungwave.models import checkpoint, openai
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import UNet, UNetConfig
from lungwave.posterior.reconstruct import load_any_model
from lungwave.posterior.resolved import load_resolved
from lungwave.prior.journal import Journal
from lungwave.shipped import model_folder
from lungwave.training import state
from lungwave.types import LungwaveError

Reader = Callable[[Path, bytes], None]  # (an empty folder of one's own, what the file holds)
SHIPPED_KINDS = {"ridge": "ridge-tiny", "posterior": "posterior-tiny", "resolved posterior": "resolved-micro"}


def both(*calls: Callable[[], object]) -> None:
    """Make every call, though those before were refused."""
    for call in calls:
        try:
            call()
        except LungwaveError:
            continue


def unsealed(data: bytes) -> bytes:
    """HDF5 as from another program: a seal would stop every change at the door."""
    return data.replace(MARK, MARK.upper())


def recording(folder: Path, data: bytes) -> None:
    """HDF5 of lungwave and of others, MATLAB: what `data info`, `validate`, `reconstruct` and `fit` read."""
    path = folder / "file.h5"
    path.write_bytes(unsealed(data))
    both(
        lambda: convert.info(path),
        lambda: convert.validate(path),
        lambda: convert.load_any(path),
        lambda: hdf5.read_cases(path),
        lambda: mapset.read_maps(path),
    )


def arrays(folder: Path, data: bytes) -> None:
    """NPZ and NPY: RF, maps, posterior samples, cached predictions."""
    path = folder / "file.npz"
    path.write_bytes(data)
    both(
        lambda: convert.load_any(path),
        lambda: mapset.read_maps(path, quantifiable_only=True).split(0.5, 0),
        lambda: mapset.read_maps(path, labels=True),
        lambda: calibrated.read_posteriors(path),
        lambda: comparison.kept_answer(path, comparison.Sampled),
        lambda: convert.info(path),
    )


def image(folder: Path, data: bytes) -> None:
    """A folder of images, and one image by itself."""
    path = folder / "healthy_1.png"
    path.write_bytes(data)
    both(
        lambda: mapset.read_maps(folder, labels=True),
        lambda: mapset.read_maps(folder, openai_size=8),
        lambda: convert.info(path),
    )


def posterior(folder: Path, data: bytes) -> None:
    """posterior.h5 of a reconstruction."""
    path = folder / "posterior.h5"
    path.write_bytes(unsealed(data))
    read_posteriors(path)


def settings(folder: Path, data: bytes) -> None:
    """TOML or JSON: the configuration of a run, the geometry of a recording."""
    path = folder / ("run.json" if data[:1] == b"{" else "run.toml")
    path.write_bytes(data)
    both(lambda: Config.load(path), lambda: load_geometry(path))


@cache
def small_prior() -> bytes:
    """Weights of a tiny prior, as its folder holds them."""
    with tempfile.TemporaryDirectory() as folder:
        write_small_prior(Path(folder))
        return (Path(folder) / checkpoint.WEIGHTS).read_bytes()


def write_small_prior(folder: Path) -> None:
    """A prior of 8 x 16 maps."""
    torch.manual_seed(0)
    net = UNet(UNetConfig(channels=8, channel_mult=(1,), blocks=1, heads=2))
    checkpoint.save_model(folder, Preconditioned(net), Scaling(0.6, 0.2), (8, 16), card="# Tiny", command="none")


@cache
def shipped(name: str) -> bytes:
    """Weights of a shipped model."""
    return (model_folder(Path(name), (name,)) / checkpoint.WEIGHTS).read_bytes()


@cache
def about_small_prior() -> dict[str, Any]:
    """config.json of the tiny prior."""
    with tempfile.TemporaryDirectory() as folder:
        write_small_prior(Path(folder))
        return json.loads((Path(folder) / checkpoint.ABOUT).read_text())


def model(folder: Path, data: bytes) -> None:
    """A model folder: either its config.json (text that begins with a brace) or its weights.

    Digests are made to fit, or no change would get past them.
    """
    about: Any = about_small_prior()
    weights = small_prior()
    if data[:1] == b"{":
        try:
            about = json.loads(data)
        except (ValueError, RecursionError):
            about = None
    else:
        weights = data
    kind = about.get("kind") if isinstance(about, dict) else None
    if isinstance(kind, str) and kind in SHIPPED_KINDS:
        weights = shipped(SHIPPED_KINDS[kind])
    if kind == "posterior":
        (folder / "center").symlink_to(model_folder(Path("posterior-tiny"), ("posterior",)) / "center")
    text = data
    if isinstance(about, dict):
        about = {**about, "weights_sha256": hashlib.sha256(weights).hexdigest()}
        stamp = getattr(checkpoint, "stamped", dict)
        text = json.dumps(stamp(about)).encode()
    (folder / checkpoint.WEIGHTS).write_bytes(weights)
    (folder / checkpoint.ABOUT).write_bytes(text)
    (folder / checkpoint.CARD).write_text("# Model")
    both(lambda: checkpoint.load_model(folder), lambda: load_any_model(folder), lambda: load_resolved(folder))


def openai_file(folder: Path, data: bytes) -> None:
    """A checkpoint of improved-diffusion or guided-diffusion, or safetensors with its names."""
    for name in ("ema_0.9999_000100.pt", "model.safetensors"):
        path = folder / name
        path.write_bytes(data)
        both(lambda path=path: openai.load_openai(path), lambda path=path: openai.average_note(path))


def training(folder: Path, data: bytes) -> None:
    """State, snapshots and journal of a training."""
    (folder / state.STATE).write_bytes(data)
    (folder / state.SNAPSHOTS).mkdir()
    (folder / state.SNAPSHOTS / "000000000008.safetensors").write_bytes(data)
    (folder / "log.jsonl").write_bytes(data)
    both(
        lambda: state.load_state(folder),
        lambda: state.posthoc(folder, 1000, 10, [0.1]),
        lambda: Journal(folder).resume(1000),
    )


READERS: dict[str, Reader] = {
    "recording": recording,
    "arrays": arrays,
    "image": image,
    "model": model,
    "openai": openai_file,
    "training": training,
    "settings": settings,
    "posterior": posterior,
}


def read(name: str, data: bytes, place: Path | None = None) -> None:
    """Give ``data`` to a reader in a folder that is removed afterwards."""
    with tempfile.TemporaryDirectory(dir=place, prefix="fuzz") as folder:
        READERS[name](Path(folder), data)
