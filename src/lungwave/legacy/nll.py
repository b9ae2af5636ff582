"""``image_nll``: bits per dimension of images under a checkpoint, by the whole variational bound."""

from __future__ import annotations

import numpy as np
import torch

from lungwave.legacy import network
from lungwave.legacy.data import Images, channels_said, read_images
from lungwave.legacy.flags import Flags
from lungwave.legacy.log import Log, log_folder
from lungwave.legacy.network import Trained
from lungwave.repro import atomic_path, stream
from lungwave.training.ranks import joined
from lungwave.types import UsageError

TERMS = ("vb", "mse", "xstart_mse")  # one file each: the mean over images, step by step


def nll(flags: Flags) -> None:
    """Print bits per dimension while it converges, and write its terms; every image counts once."""
    model = network.load(flags)
    images = read_images(flags, flags.image_size if "image_size" in flags.given else model.size[0])
    check(images, model, flags)
    count = min(flags.num_samples, len(images))
    labels = class_numbers(images, model, flags)
    with joined(flags.device or "auto") as ranks:
        log = Log(log_folder(), rows=False)
        log.open()
        for line in (*model.said, images.said, "evaluating..."):
            log.say(line)
        if count < flags.num_samples:
            log.say(f"note: --num_samples {flags.num_samples}: there are {count} images, each is evaluated once")
        model.net.to(ranks.device)
        mine = ranks.share(np.arange(count))
        width = model.process.length
        rows = [torch.zeros(0, 1 + len(TERMS) * width)]
        for first in range(0, len(mine), flags.batch_size):
            numbers = mine[first : first + flags.batch_size]
            cond = network.condition(None if labels is None else torch.from_numpy(labels[numbers]), None, model.size)
            found = model.process.bits_per_dim(
                model.net,
                images.batch(numbers).to(ranks.device),
                [
                    torch.Generator().manual_seed(int(stream(flags.seed, "nll", int(k)).integers(2**63)))
                    for k in numbers
                ],
                None if cond is None else cond.to(ranks.device),
                flags.clip_denoised,
            )
            rows.append(torch.cat([found["total_bpd"][:, None], *(found[name] for name in TERMS)], 1).cpu())
            log.say(f"done {sum(map(len, rows))} samples: bpd={float(torch.cat(rows)[:, 0].mean()):.6g}")
        whole = ranks.gather(torch.cat(rows).to(ranks.device), count).cpu()
        if ranks.first:
            for name, terms in zip(TERMS, whole[:, 1:].mean(0).split(width), strict=True):
                path = log.folder / f"{name}_terms.npz"
                log.say(f"saving {name} terms to {path}")
                with atomic_path(path) as temporary, open(temporary, "wb") as file:
                    np.savez(file, terms.numpy())
        ranks.wait()
        log.say(f"evaluation complete: {float(whole[:, 0].mean()):.6g} bits per dimension of {count} images")


def check(images: Images, model: Trained, flags: Flags) -> None:
    """UsageError where the images are not of the model's kind."""
    shapes = [
        f"{channels_said(c)} of {z} x {x}"
        for c, (z, x) in ((images.channels, images.size), (model.channels, model.size))
    ]
    if shapes[0] != shapes[1]:
        raise UsageError(
            f"{flags.data_dir}: images have {shapes[0]}, the model {shapes[1]}; give images of its kind, or see "
            "--openai_crop and --openai_rgb"
        )


def class_numbers(images: Images, model: Trained, flags: Flags) -> np.ndarray | None:
    """The model's number of each image's class; None where it knows none."""
    if not model.net.config.classes:
        return None
    if not flags.class_cond:
        raise UsageError(f"{flags.model_path}: knows classes; add --class_cond True and name the images CLASS_NUMBER")
    names = images.maps.classes
    if all(name in model.classes for name in names):
        place = np.array([model.classes.index(name) for name in names])
    elif len(names) <= len(model.classes) and all(name.isdigit() for name in model.classes):
        place = np.arange(len(names))  # the original's file: classes in the order of their names
    else:
        unknown = next(name for name in names if name not in model.classes)
        raise UsageError(f"{flags.data_dir}: class {unknown} is unknown to the model ({', '.join(model.classes)})")
    return place[images.maps.labels]
