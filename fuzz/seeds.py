"""Small good files that the fuzzer starts from, one of every kind that a reader knows.

python fuzz/seeds.py FOLDER
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
import torch
from PIL import Image

from lungwave.acoustics.probe import Recording, sequence
from lungwave.config import preset
from lungwave.data import posteriors, schema
from lungwave.data.generate import generate
from lungwave.data.hdf5 import write_recording
from lungwave.models.unet import UNet, UNetConfig
from lungwave.shipped import SHIPPED
from lungwave.training import state
from readers import about_small_prior, small_prior

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the tests write the formats of others
from data import test_convert as formats  # noqa: E402

formats.echoes = partial(formats.echoes, samples=24)


def recording() -> dict[str, bytes]:
    """HDF5 of every layout."""
    found = {}
    small = preset("micro").override({"grid.steps": 300, "map.rows": 8, "map.columns": 8, "map.bands": [0, 0.0008]})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate(small, range(2), folder / "cases", quiet=True)
        found["cases"] = next((folder / "cases").glob("*.h5")).read_bytes()
        scan = sequence(preset("micro"))
        rf = np.random.default_rng(0).standard_normal((1, scan.transmits, 40, len(scan.elements))).astype(np.float32)
        write_recording(folder / "bare.h5", Recording(rf, scan), subject={"id": "a", "age": 1.0})
        found["bare"] = (folder / "bare.h5").read_bytes()
        formats.write_picmus(folder / "picmus.h5", **{"data/imag": None})
        formats.WRITERS["ustb"](folder / "ustb.h5")
        formats.write_uff3(folder / "uff3.h5", formats.ANGLES[:1])
        formats.write_matlab73(folder / "mat73.h5", formats.must_struct(formats.ANGLES[:1]))
        for kind in ("picmus", "ustb", "uff3", "mat73"):
            found[kind] = (folder / f"{kind}.h5").read_bytes()
    return {**found, **matlab()}


def matlab() -> dict[str, bytes]:
    """MATLAB 5 of two tools, plain and compressed."""
    found = {}
    matrix = formats.half_matrix()["exp_data"]
    few = [n for n, (t, r) in enumerate(zip(matrix["tx"], matrix["rx"], strict=True)) if t <= 4 and r <= 4]
    array = {k: v[:4] if np.ndim(v) else v for k, v in matrix["array"].items()}
    small = {
        **matrix, "time_data": matrix["time_data"][:40, few], "tx": matrix["tx"][few], "rx": matrix["rx"][few],
        "time": matrix["time"][:40], "array": array,
    }  # fmt: skip
    for name, value in (("must", formats.must_struct(formats.ANGLES[:1])), ("matrix", {"exp_data": small})):
        for packed in (False, True):
            out = io.BytesIO()
            scipy.io.savemat(out, value, do_compression=packed)
            found[f"{name}{'_packed' if packed else ''}"] = out.getvalue()
    return found


def npz(**values: Any) -> bytes:
    """Bytes of an NPZ."""
    out = io.BytesIO()
    np.savez(out, **values)
    return out.getvalue()


def arrays() -> dict[str, bytes]:
    """NPZ of RF, maps and posterior samples, and a bare array."""
    draw = np.random.default_rng(1)
    rf = formats.numpy_rf()[..., :24, :]
    maps, bare = draw.random((6, 4, 8), np.float32), io.BytesIO()
    np.save(bare, maps)
    samples = draw.random((3, 20, 2))
    cached = {name: draw.random((2, 3, 4)) for name in ("samples", "map", "bands", "whole")}
    return {
        "rf": npz(rf=rf, **formats.GEOMETRY),
        "maps": npz(
            maps=maps, names=np.array([f"a_{i}" for i in range(6)]), labels=np.arange(6) % 2, groups=np.arange(6)
        ),
        "openai": npz(arr_0=(255 * draw.random((3, 4, 8, 3))).astype(np.uint8), arr_1=np.arange(3)),
        "posteriors": npz(samples=samples, truth=samples[:, 0], residual=samples[:, :5, 0], noise=np.ones(5)),
        "cached": npz(**cached),
        "bare": bare.getvalue(),
    }


def image() -> dict[str, bytes]:
    """PNG of every depth and colour, GIF, JPEG."""
    draw = np.random.default_rng(2)
    gray = (255 * draw.random((8, 16))).astype(np.uint8)
    made = {
        "gray": Image.fromarray(gray),
        "deep": Image.fromarray(gray.astype(np.uint16) * 257),
        "rgb": Image.fromarray(np.stack([gray, gray // 2, gray], 2)),
        "alpha": Image.fromarray(np.stack([gray, gray, gray, np.full_like(gray, 255)], 2)),
        "palette": Image.fromarray(gray).convert("P"),
        "bits": Image.fromarray(gray > 99),
    }
    found = {}
    for name, picture in made.items():
        out = io.BytesIO()
        picture.save(out, "PNG")
        found[name] = out.getvalue()
    for kind in ("GIF", "JPEG"):
        out = io.BytesIO()
        made["gray"].save(out, kind)
        found[kind.lower()] = out.getvalue()
    return found


def model() -> dict[str, bytes]:
    """config.json of every kind of model, and the weights of one."""
    found = {f"config_{path.name}": (path / "config.json").read_bytes() for path in sorted(SHIPPED.iterdir())}
    found = {name: text for name, text in found.items() if not name.startswith("config_prior")}
    return {**found, "config": json.dumps(about_small_prior()).encode(), "weights": small_prior()}


def openai() -> dict[str, bytes]:
    """Networks by OpenAI's names, as torch and as safetensors."""
    from safetensors.torch import save

    found = {}
    for name, change in (
        ("plain", {}),
        ("classes", {"classes": 3, "scale_shift": False}),
        ("two", {"out_channels": 2}),
    ):
        torch.manual_seed(0)
        net = UNet(UNetConfig(**{"channels": 8, "channel_mult": (1,), "blocks": 1, "heads": 2, **change}))
        out = io.BytesIO()
        torch.save(net.state_dict(), out)
        found[name] = out.getvalue()
        found[f"{name}_safe"] = save(net.state_dict())
    return found


def training() -> dict[str, bytes]:
    """A state, a snapshot and a journal."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = {"model/a": torch.arange(6.0).reshape(2, 3), "power-0.05/a": torch.ones(2), "b": torch.zeros(())}
        state.save_state(folder, tensors, {"step": 3, "images": 24, "seconds": 1.0, "facts": {"lr": 1e-3}})
        kept = state.save_snapshot(folder, 8, tensors, {"step": 3})
        lines = [{"kind": "step", "images": 8, "loss": 0.5}, {"kind": "check", "images": 16, "sigma": [1, 2]}]
        text = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
        return {"state": (folder / state.STATE).read_bytes(), "snapshot": kept.read_bytes(), "journal": text}


def settings() -> dict[str, bytes]:
    """Configurations and geometries."""
    toml = b'preset = "tiny"\nseed = 7\n[receive]\nsnr_db = 20.0\n'
    toml += b'[lung]\ncategories = ["healthy", "fibrosis"]\nweights = [2, 1]\n'
    geometry = b"center_frequency = 5e6\nsampling_frequency = 2e7\nsound_speed = 1540.0\nangles = [0.0]\n"
    return {
        "run": toml,
        "geometry": geometry + b"elements = [[0.0, 0.0, 0.0], [1e-3, 0.0, 0.0]]\n",
        "preset": preset("micro").to_json().encode(),
        "json": b'{"elements": [[0, 0, 0]], "angles": [0.1], "delays": [[0]]}',
    }


def posterior() -> dict[str, bytes]:
    """posterior.h5 with two frames."""
    sizes: dict[str, int] = {}
    draw = np.random.default_rng(3)
    fields: dict[str, Any] = {}
    for field in schema.POSTERIOR_FIELDS:
        shape = tuple(
            sizes.setdefault(axis, 2 + len(sizes) % 3) if not axis.isdigit() else int(axis) for axis in field.shape
        )
        if field.dtype == "text":
            fields[field.name] = ["a"] * shape[0] if shape else "a"
        else:
            fields[field.name] = draw.random(shape)
    fields["frame"] = np.arange(len(fields["frame"]))
    with tempfile.TemporaryDirectory() as name:
        posteriors.write_posteriors(name, fields, {"seed": 0})
        return {"posterior": (Path(name) / "posterior.h5").read_bytes()}


SEEDS = {f.__name__: f for f in (recording, arrays, image, model, openai, training, settings, posterior)}

if __name__ == "__main__":
    for reader, make in SEEDS.items():
        folder = Path(sys.argv[1]) / reader
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in make().items():
            (folder / name).write_bytes(data)
            print(f"{reader}/{name}: {len(data)} bytes")
