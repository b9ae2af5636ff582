"""``image_sample`` and ``super_res_sample``: images out of a checkpoint, as the original's NPZ and as pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, Int64, UInt8
from PIL import Image
from torch import Tensor

from lungwave.data.mapset import read_maps
from lungwave.legacy import network
from lungwave.legacy.flags import Flags
from lungwave.legacy.log import Log, log_folder
from lungwave.legacy.network import Trained
from lungwave.progress import Progress
from lungwave.repro import atomic_path, stream
from lungwave.training.ranks import Ranks, joined
from lungwave.types import UsageError

GRID_IMAGES, GRID_ASPECT, GAP = 64, 1.6, 2  # most images on a grid, its width over its height, pixels between them


def sample(flags: Flags) -> None:
    """Draw ``--num_samples`` images, from noise or from the coarse images of ``--base_samples``."""
    coarse = read_coarse(flags) if network.is_fine(flags) else None
    model = network.load(flags, None if coarse is None else (coarse[0].shape[2], coarse[0].shape[3]))
    labels = choose_labels(flags, model, None if coarse is None else coarse[1])
    images = None if coarse is None else fitted(coarse[0], model.channels, flags.base_samples)
    with joined(flags.device or "auto") as ranks:
        log = Log(log_folder(), rows=False)
        log.open()
        for line in model.said:
            log.say(line)
        log.say("sampling...")
        drawn = draw_all(flags, model, labels, images, ranks, log)
        if ranks.first:
            write(log, drawn, labels, model.classes)
        ranks.wait()
        log.say("sampling complete")


def read_coarse(flags: Flags) -> tuple[Float[Tensor, "n c low_z low_x"], Int64[np.ndarray, " n"] | None]:
    """Images of ``--base_samples`` in [-1, 1], and their class numbers where it has them."""
    if not flags.base_samples:
        raise UsageError("--base_samples is missing; give a samples_*.npz of image_sample, or a folder of images")
    maps = read_maps(flags.base_samples)
    return torch.from_numpy(maps.fraction()) * 2 - 1, maps.labels if maps.classes else None


def fitted(images: Float[Tensor, "n c z x"], channels: int, source: str) -> Float[Tensor, "n k z x"]:
    """Images with as many channels as the model has; gray is the same in all three."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 1:
        return images.expand(-1, channels, -1, -1)
    raise UsageError(f"{source}: has {images.shape[1]} channels, the model {channels}; give images of its kind")


def choose_labels(
    flags: Flags, model: Trained, given: Int64[np.ndarray, " n"] | None
) -> Int64[np.ndarray, " n"] | None:
    """The class of each image to draw; None where the model knows none."""
    count: int = flags.num_samples
    known = model.net.config.classes
    if not known:
        return None
    if given is not None:
        if given.min() < 0 or given.max() >= known:
            raise UsageError(f"{flags.base_samples}: labels run to {given.max()}, the model knows 0 to {known - 1}")
        return given[np.arange(count) % len(given)]
    if network.is_fine(flags):
        raise UsageError(f"{flags.base_samples}: has no labels arr_1, but the model knows {known} classes")
    choices = known if flags.openai_classes else len(model.classes)
    return np.array([stream(flags.seed, "label", k).integers(choices) for k in range(count)], np.int64)


def draw_all(
    flags: Flags, model: Trained, labels: Int64[np.ndarray, " n"] | None, coarse: Tensor | None, ranks: Ranks, log: Log
) -> UInt8[np.ndarray, "n z x c"]:
    """Every image; the first ranks draw the first ones."""
    model.net.to(ranks.device)
    mine = ranks.share(np.arange(flags.num_samples))
    batches = [mine[first : first + flags.batch_size] for first in range(0, len(mine), flags.batch_size)]
    parts = [np.zeros((0, *model.size, model.channels), np.uint8)]
    done = 0
    with Progress(len(batches) * model.process.length, "sampling steps", quiet=not ranks.first) as progress:
        for numbers in batches:
            parts.append(draw(flags, model, numbers, labels, coarse, ranks, progress))
            done += len(numbers)
            log.say(f"created {done} of {len(mine)} samples")
    whole = ranks.gather(torch.from_numpy(np.concatenate(parts)).to(ranks.device), flags.num_samples)
    return whole.cpu().numpy()


def draw(
    flags: Flags,
    model: Trained,
    numbers: Int[np.ndarray, " n"],
    labels: Int64[np.ndarray, " all"] | None,
    coarse: Tensor | None,
    ranks: Ranks,
    progress: Progress,
) -> UInt8[np.ndarray, "n z x c"]:
    """The images ``numbers``, each from its own random stream."""
    sources = [
        torch.Generator().manual_seed(int(stream(flags.seed, "sample", int(k)).integers(2**63))) for k in numbers
    ]
    shape = (model.channels, *model.size)
    noise = torch.stack([torch.randn(shape, generator=source) for source in sources]).to(ranks.device)
    cond = network.condition(
        None if labels is None else torch.from_numpy(labels[numbers]),
        None if coarse is None else coarse[torch.from_numpy(numbers % len(coarse))],
        model.size,
    )
    cond = None if cond is None else cond.to(ranks.device)
    if flags.use_ddim:
        steps = model.process.ddim_progressive(model.net, noise, cond=cond, clip_denoised=flags.clip_denoised)
    else:
        steps = model.process.p_sample_progressive(
            model.net, noise, sources, cond=cond, clip_denoised=flags.clip_denoised
        )
    x = noise
    for step in steps:
        x = step.x
        progress.advance()
    if not bool(x.isfinite().all()):
        raise UsageError(f"{flags.model_path}: samples are not finite; are these the flags of its training?")
    return to_bytes(x)


def to_bytes(x: Float[Tensor, "n c z x"]) -> UInt8[np.ndarray, "n z x c"]:
    """[-1, 1] -> 0-255, cut off as the original does, not rounded; channels last."""
    return ((x + 1) * 127.5).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous().cpu().numpy()


def write(
    log: Log, drawn: UInt8[np.ndarray, "n z x c"], labels: Int64[np.ndarray, " n"] | None, classes: Sequence[str]
) -> Path:
    """``samples_NxHxWxC.npz`` with ``arr_0`` and ``arr_1``; a folder of PNG files and a grid of the same name."""
    name = f"samples_{'x'.join(map(str, drawn.shape))}"
    path = log.folder / f"{name}.npz"
    log.say(f"saving to {path}, and pictures to {name}/ and {name}_grid.png")
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, *([drawn] if labels is None else [drawn, labels]))
    digits = max(6, len(str(len(drawn) - 1)))
    for number, image in enumerate(drawn):
        label = "" if labels is None else f"{class_name(int(labels[number]), classes)}_"
        save_image(log.folder / name / f"{label}{number:0{digits}d}.png", image)
    save_image(log.folder / f"{name}_grid.png", grid(drawn[:GRID_IMAGES]))
    return path


def class_name(label: int, classes: Sequence[str]) -> str:
    """Name of a class, its number where it has none."""
    return classes[label] if label < len(classes) else str(label)


def grid(images: UInt8[np.ndarray, "n z x c"]) -> UInt8[np.ndarray, "rows columns c"]:
    """Images side by side with thin white lines between them, in a landscape format."""
    count, z, x, channels = images.shape
    across = min(count, max(1, round(math.sqrt(count * GRID_ASPECT * (z + GAP) / (x + GAP)))))
    down = -(-count // across)
    sheet = np.full((down * (z + GAP) - GAP, across * (x + GAP) - GAP, channels), 255, np.uint8)
    for k, image in enumerate(images):
        row, column = divmod(k, across)
        sheet[row * (z + GAP) : row * (z + GAP) + z, column * (x + GAP) : column * (x + GAP) + x] = image
    return sheet


def save_image(path: Path, image: UInt8[np.ndarray, "z x c"]) -> None:
    """PNG of one or three channels; of another number, the first alone."""
    pixels = image if image.shape[2] == 3 else image[..., 0]
    with atomic_path(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")
