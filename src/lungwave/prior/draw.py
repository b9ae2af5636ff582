"""Maps drawn from a prior, into files."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32

from lungwave.data.maps import save_npz, save_png
from lungwave.models.checkpoint import Model, load_model, plain
from lungwave.models.unet import Condition, describe
from lungwave.prior.pictures import save_grid
from lungwave.progress import Progress
from lungwave.repro import manifest, write_json
from lungwave.sample import SAMPLERS, Callback, Seeds, generate, karras, resting, start, state_type
from lungwave.shipped import PRIOR, model_folder
from lungwave.training.ranks import joined
from lungwave.types import UsageError

MOST_BYTES = 2**33  # of samples in float64


def plan_samples(folder: Path, out: Path, count: int, steps: int) -> dict[str, Any]:
    """What drawing would cost."""
    model = load_model(model_folder(folder, PRIOR))
    cost = describe(plain(model.denoiser).config, model.size)
    calls = 2 * steps - 1
    return {
        "samples": count,
        "size": list(model.size),
        "parameters": cost["parameters"],
        "calls_at_most": calls,
        "gmac": cost["gmac"] * calls * count,
        "out": str(out),
    }


def draw_maps(
    model: Model, count: int, *, seed: int = 0, first: int = 0, sampler: str = "dpmpp_2m", steps: int = 15,
    callback: Callback | None = None,
) -> Float32[np.ndarray, "map z x"]:  # fmt: skip
    """Maps ``first`` to ``first + count`` of the run ``seed`` as `lungwave sample` draws them, fraction 0-1."""
    shape = (1, *model.size)
    drawn = generate(
        model.denoiser, shape, count, seed=seed, first=first, sampler=sampler, steps=steps, callback=callback
    )
    return model.scaling.to_data(drawn)[:, 0].clamp(0, 1).numpy()


def morph(
    model: Model, begin: int, end: int, frames: int, *, seed: int = 0, sampler: str = "dpmpp_2m", steps: int = 15,
    callback: Callback | None = None,
) -> Float32[np.ndarray, "frame z x"]:  # fmt: skip
    """Maps on the way from map ``begin`` of the run ``seed`` to map ``end``, both included; fraction 0-1.

    ``cos(t) a + sin(t) b`` of two independent normal draws is normal for every t, so every map on the way is a sample
    of the prior as good as the two ends. The sampler must not add noise of its own.
    """
    levels = karras(steps)
    highest = levels[0].item()
    one, other = Seeds(seed, [begin, end]).normal((1, *model.size))
    turn = torch.linspace(0, math.pi / 2, frames, dtype=torch.float64)[:, None, None, None]
    noise = (turn.cos() * one + turn.sin() * other).to(state_type("cpu"))
    with resting(model.denoiser), torch.no_grad():
        begun = start(model.denoiser, noise, highest, None) / highest
        drawn = SAMPLERS[sampler](model.denoiser, begun, levels, None, callback=callback).float()
    return model.scaling.to_data(drawn)[:, 0].clamp(0, 1).numpy()


def sample_prior(
    folder: Path, out: Path, count: int, *, seed: int = 0, first: int = 0, label: str | None = None,
    batch: int = 64, device: str = "auto", quiet: bool = False, **how: Any,
) -> dict[str, Any]:  # fmt: skip
    """Draw maps from a model folder: ``samples.npz`` (fractions 0-1), a PNG each, and ``grid.png``.

    ``how`` goes to ``sample.generate``: sampler, steps, sigma_min, sigma_max.
    """
    with joined(device) as ranks:
        place = ranks.device
    model = load_model(model_folder(folder, PRIOR), place)
    names = model.config.get("classes") or []
    if label is not None and label not in names:
        raise UsageError(f"class {label} is unknown to {folder}; it knows {', '.join(names) or 'no classes'}")
    shape = (int(model.config["network"]["in_channels"]), *model.size)
    if 8 * count * math.prod(shape) > MOST_BYTES:
        raise UsageError(
            f"--count {count} of {shape[1]} x {shape[2]} maps takes more than {MOST_BYTES // 2**30} GiB; draw fewer, "
            "and the others with --first"
        )
    cond = None if label is None else Condition(label=torch.full((count,), names.index(label)))
    clock = time.perf_counter()
    with Progress(count, "sample", quiet=quiet) as progress:
        drawn = generate(
            model.denoiser, shape, count, seed=seed, first=first, batch=batch, cond=cond, device=place,
            progress=progress.advance, **how,
        )  # fmt: skip
    seconds = time.perf_counter() - clock
    raw = model.scaling.to_data(drawn).numpy()
    maps = np.clip(raw, 0.0, 1.0).astype(np.float32)
    numbers = np.arange(first, first + count)
    save_npz(out / "samples.npz", maps=maps, names=np.array([str(n) for n in numbers]), seed=np.array(seed))
    for number, values in zip(numbers, maps, strict=True):
        if values.shape[0] == 1:
            save_png(out / f"{number:06d}.png", values[0])
    about = {"sampler": how.get("sampler"), **how, "count": count, "first": first, "label": label}
    weights = (model.config["weights_sha256"], model.config.get("command"))
    write_json(out / "manifest.json", manifest(json.dumps(about), seed, model_sha256=weights[0], model=weights[1]))
    save_grid(maps[:64, 0], out / "grid.png", f"{min(count, 64)} samples, seed {seed}")
    return {
        "samples": count,
        "size": list(maps.shape[1:]),
        "percent_aeration": float(maps.mean()),
        "outside_0_1": float(np.mean((raw < -1e-3) | (raw > 1 + 1e-3))),
        "seconds": seconds,
        "out": str(out),
    }
