"""Maps drawn from a prior, into files."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungwave.data.maps import save_npz, save_png
from lungwave.models.checkpoint import load_model, plain
from lungwave.models.unet import Condition, describe
from lungwave.prior.pictures import save_grid
from lungwave.progress import Progress
from lungwave.repro import manifest, write_json
from lungwave.sample import generate
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
