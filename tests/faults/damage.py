"""One file of every kind that lungwave writes and reads again, and what becomes of it when its bytes change.

An outcome is "recovered" (the same content, or the work is done anew), "refused" (one line that says so) or "lost":
other content was taken for true.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungwave import batch, comparison
from lungwave.config import preset
from lungwave.data import hdf5
from lungwave.data.dataset import folder_config
from lungwave.data.generate import generate
from lungwave.data.maps import save_npz, save_png
from lungwave.data.mapset import MapSet, read_maps
from lungwave.models import checkpoint
from lungwave.models.precond import Preconditioned, Scaling
from lungwave.models.unet import UNet, UNetConfig
from lungwave.prior.journal import Journal, _line
from lungwave.repro import sha256, stamped, write_json
from lungwave.training import state
from lungwave.types import LungwaveError

SMALL = preset("micro").override(
    {"grid.steps": 300, "seed": 3, "map.rows": 8, "map.columns": 8, "map.bands": [0, 0.0008]}
)


def mark(*values: Any) -> str:
    """Hash of arrays, tensors, texts and numbers."""
    found = hashlib.sha256()
    for value in values:
        array = value.numpy() if isinstance(value, torch.Tensor) else value
        found.update(np.ascontiguousarray(array).tobytes() if isinstance(array, np.ndarray) else repr(array).encode())
    return found.hexdigest()


@dataclass(frozen=True)
class Kind:
    """A file, and how its content is read."""

    name: str
    path: Path
    content: Callable[[], str | None]  # None = not there, to be made again
    good: frozenset[str | None]  # contents that are right


def kind(name: str, path: Path, content: Callable[[], str | None], *also: str | None) -> Kind:
    """A file whose content now is right."""
    return Kind(name, path, content, frozenset((content(), *also)))


def _shard(path: Path) -> str:
    recording, cases = hdf5.read_recording(path), hdf5.read_cases(path)
    assert cases is not None
    scan = recording.scan
    return mark(
        recording.rf, scan.elements, scan.delays, scan.apodization, scan.start_times, scan.sampling_frequency,
        *(getattr(cases, name) for name in cases.__dataclass_fields__),
    )  # fmt: skip


def _maps(source: Path) -> str:
    maps: MapSet = read_maps(source)
    return mark(maps.maps, maps.labels, maps.groups, maps.classes, maps.names)


def _model(folder: Path) -> str:
    model = checkpoint.load_model(folder)
    return mark(*model.denoiser.state_dict().values(), model.scaling, model.size, model.config["network"])


def _state(folder: Path) -> str | None:
    found = state.load_state(folder)
    if found is None:
        return None
    return mark(*(found[0][name] for name in sorted(found[0])), sorted(found[1].items(), key=str))


def _journal(folder: Path, good: list[dict[str, Any]]) -> str:
    journal = Journal(folder)
    journal.resume(1000)
    return "whole" if all(record in good for record in journal.records) else "other"


def gallery(folder: Path) -> list[Kind]:
    """Write one of each."""
    draw = np.random.default_rng(0)
    cases, maps, images, model = (folder / name for name in ("cases", "maps", "images", "model"))
    run, other, out = (folder / name for name in ("run", "snaps", "out"))
    generate(SMALL, range(3), cases, quiet=True)
    shard = next(cases.glob("*.h5"))
    maps.mkdir()
    values = draw.random((6, 4, 8), np.float32)
    save_npz(maps / "maps.npz", maps=values, names=np.array([f"a_{i}" for i in range(6)]), groups=np.arange(6))
    save_png(images / "a_1.png", values[0])
    torch.manual_seed(0)
    net = UNet(UNetConfig(channels=8, channel_mult=(1,), blocks=1, heads=2))
    checkpoint.save_model(model, Preconditioned(net), Scaling(0.6, 0.2), (8, 16), card="# Tiny", command="none")
    run.mkdir()
    tensors = {"model/a": torch.arange(600.0), "power-0.05/a": torch.ones(200)}
    state.save_state(run, tensors, {"step": 3, "images": 24, "seconds": 1.0, "facts": {"lr": 1e-3}})
    before = _state(run)
    state.save_state(run, tensors, {"step": 4, "images": 32, "seconds": 1.5, "facts": {"lr": 1e-3}})
    snapshot = state.save_snapshot(other, 8, tensors, {"step": 3})
    records = [{"kind": "step", "images": 8 * n, "loss": float(x)} for n, x in enumerate(draw.random(20))]
    (other / "log.jsonl").write_text("".join(map(_line, records)))
    answer = out / "answer.npz"
    names = list(comparison.Estimated.__dataclass_fields__)
    shapes = {name: (2, 4, 5) for name in ("map", "map_low", "map_high")} | {"novelty": (2,)}
    save_npz(answer, **{name: draw.random(shapes.get(name, (2, 3))) for name in names})

    def answered() -> str | None:
        found = comparison.kept_answer(answer, comparison.Estimated)
        return None if found is None else mark(*(getattr(found, name) for name in names))

    place = out / "file"
    place.mkdir(parents=True)
    (place / "aeration.csv").write_text("case,value\n1,0.25\n2,0.5\n" * 20)
    save_npz(place / "maps.npz", aeration=values)
    digests = {name: sha256(place / name) for name in ("aeration.csv", "maps.npz")}
    write_json(place / batch.DONE, stamped({"model": "x", "seed": 0, "files": digests}))

    def done() -> str | None:
        held = batch._done(place)  # anything but what is asked for is made again
        return mark((place / "aeration.csv").read_text()) if held == {"model": "x", "seed": 0} else None

    return [
        kind("cases: HDF5 shard", shard, lambda: _shard(shard)),
        kind("cases: config.json", cases / "config.json", lambda: folder_config(cases).to_json()),
        kind("maps: NPZ", maps / "maps.npz", lambda: _maps(maps / "maps.npz")),
        kind("maps: PNG", images / "a_1.png", lambda: _maps(images)),
        kind("model: safetensors", model / checkpoint.WEIGHTS, lambda: _model(model)),
        kind("model: config.json", model / checkpoint.ABOUT, lambda: _model(model)),
        kind("training: state", run / state.STATE, lambda: _state(run), before),
        kind("training: snapshot", snapshot, lambda: mark(*state.read(snapshot)[0].values())),
        kind("training: journal", other / "log.jsonl", lambda: _journal(other, records)),
        kind("evaluation: cached NPZ", answer, answered, None),
        kind("bulk results: CSV", place / "aeration.csv", done, None),
        kind("bulk results: done.json", place / batch.DONE, done, None),
    ]


def flip(data: bytes, draw: np.random.Generator) -> bytes:
    """One bit, anywhere."""
    changed = bytearray(data)
    changed[int(draw.integers(len(data)))] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def cut(data: bytes, draw: np.random.Generator) -> bytes:
    """The first part of a file, from nothing to all but a byte."""
    return data[: int(draw.integers(len(data)))]


DAMAGES = {"bit flip": flip, "truncation": cut}


def outcome(one: Kind) -> str:
    """What reading a damaged file comes to."""
    try:
        found = one.content()
    except LungwaveError:
        return "refused"
    return "recovered" if found in one.good else "lost"


def injected(one: Kind, damage: str, times: int, draw: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Damage a file again and again; the outcome and the bytes each time. The file is whole afterwards."""
    whole = one.path.read_bytes()
    try:
        for _ in range(times):
            data = DAMAGES[damage](whole, draw)
            one.path.write_bytes(data)
            yield outcome(one), data
            one.path.unlink(missing_ok=True)
    finally:
        one.path.write_bytes(whole)
