"""The flags of the original commands, with their spelling and defaults, and the few that lungwave adds.

Nichol & Dhariwal, improved-diffusion (arXiv:2102.09672): argparse, underscores, booleans written ``True`` or ``False``.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from lungwave.types import RESEARCH_USE, UsageError

Table = Mapping[str, tuple[Any, str]]  # flag -> default, what it means

MODEL: Table = {
    "image_size": (64, "side of a square image; chooses the network's levels (32, 64 or 256)"),
    "num_channels": (128, "channels of the finest level before its multiplier"),
    "num_res_blocks": (2, "residual blocks a level"),
    "num_heads": (4, "attention heads"),
    "num_heads_upsample": (-1, "attention heads on the way up; -1: as num_heads"),
    "attention_resolutions": ("16,8", "levels with attention, by the width that image_size has there"),
    "dropout": (0.0, "share of activations dropped in training"),
    "learn_sigma": (False, "learn the variance too: twice the output channels"),
    "class_cond": (False, "condition on the class: the file name up to its first underscore"),
    "use_checkpoint": (False, "recompute activations: less memory, a third more time"),
    "use_scale_shift_norm": (True, "time scales and shifts activations; False: it is added"),
}
DIFFUSION: Table = {
    "sigma_small": (False, "the smaller of the two fixed variances"),
    "diffusion_steps": (1000, "steps of the process"),
    "noise_schedule": ("linear", "linear or cosine"),
    "timestep_respacing": ("", "steps kept, as 250, 10,15,20 or ddim25; empty: all"),
    "use_kl": (False, "train the variational bound"),
    "predict_xstart": (False, "the network predicts the clean image, not the noise"),
    "rescale_timesteps": (True, "the network sees time on a scale of 0-1000"),
    "rescale_learned_sigmas": (True, "weigh the bound of a learned variance by steps / 1000"),
}
TRAIN: Table = {
    "data_dir": ("", "folder of images, searched with its subfolders"),
    "schedule_sampler": ("uniform", "how timesteps are drawn: uniform or loss-second-moment"),
    "lr": (1e-4, "learning rate"),
    "weight_decay": (0.0, "of AdamW"),
    "lr_anneal_steps": (0, "let the learning rate fall to 0 in so many steps, then stop; 0: keep it, never stop"),
    "batch_size": (1, "images a step, on each process"),
    "microbatch": (-1, "images a forward pass; -1: batch_size"),
    "ema_rate": ("0.9999", "rates of the averaged weights, with commas"),
    "log_interval": (10, "steps between rows of the log"),
    "save_interval": (10000, "steps between checkpoints"),
    "resume_checkpoint": ("", "model*.pt to go on from; opt*.pt and ema_*.pt beside it are read too"),
    "use_fp16": (False, "half precision on a GPU; a CPU stays with float32"),
    "fp16_scale_growth": (1e-3, "growth of log2 of the loss scale per step"),
}
SAMPLE: Table = {
    "clip_denoised": (True, "clip the predicted clean image to its range"),
    "num_samples": (10000, "images to draw"),
    "batch_size": (16, "images at a time; does not change what is drawn"),
    "use_ddim": (False, "deterministic DDIM steps"),
    "model_path": ("", "model*.pt or ema_*.pt"),
}
NLL: Table = {
    "data_dir": ("", "folder of images, searched with its subfolders"),
    "clip_denoised": (True, "clip the predicted clean image to its range"),
    "num_samples": (1000, "images to evaluate"),
    "batch_size": (1, "images at a time"),
    "model_path": ("", "model*.pt or ema_*.pt"),
}
SIZES: Table = {
    "large_size": (256, "side of the fine image; chooses the network's levels (64 or 256)"),
    "small_size": (64, "side of the coarse image; large_size / small_size is the ratio for any shape"),
}
DEVICE: Table = {
    "seed": (0, "root of all random numbers"),
    "device": ("", "where to compute, as cpu or cuda; empty: a GPU where there is one"),
}
STOP: Table = {
    "max_steps": (0, "stop after so many steps in total; 0: as the original, until stopped"),
}
VIEW: Table = {
    "openai_crop": (False, "as the original: the short side becomes image_size, the centre square is cut out"),
    "openai_rgb": (False, "as the original: three channels, whatever the images have"),
}
CLASSES: Table = {
    "openai_classes": (False, "as the original: 1000 classes, whatever the images have"),
}
SHAPE: Table = {
    "size": ("", "height,width of the images; empty: what the model was trained on, else image_size"),
}
SR_MODEL: Table = {**{k: v for k, v in MODEL.items() if k != "image_size"}, **SIZES}
SR_DIFFUSION: Table = {k: v for k, v in DIFFUSION.items() if k != "sigma_small"}

# Command -> what it does, the original's flags, lungwave's own.
COMMANDS: dict[str, tuple[str, Table, Table]] = {
    "image_train": (
        "train a diffusion model on images",
        {**TRAIN, **MODEL, **DIFFUSION},
        {**STOP, **VIEW, **CLASSES, **DEVICE},
    ),
    "image_sample": ("draw images", {**SAMPLE, **MODEL, **DIFFUSION}, {**SHAPE, **CLASSES, **DEVICE}),
    "image_nll": ("bits per dimension of images", {**NLL, **MODEL, **DIFFUSION}, {**VIEW, **DEVICE}),
    "super_res_train": (
        "train a diffusion model that makes images finer",
        {**TRAIN, **SR_MODEL, **SR_DIFFUSION},
        {**STOP, **VIEW, **CLASSES, **DEVICE},
    ),
    "super_res_sample": (
        "make drawn images finer",
        {**SAMPLE, "base_samples": ("", "samples_*.npz of image_sample"), **SR_MODEL, **SR_DIFFUSION},
        {**SHAPE, **DEVICE},
    ),
    "process_data_to_1chanelPNG": (
        "lung map tensors (*.pt) -> 8 x 256 gray PNG: the first 32 rows, 4 x 4 means",
        {},
        {
            "src": (".", "tensor file, or folder of them"),
            "dst": ("datasets/lung_8_256", "folder of the PNG files, named by the number in each tensor's name"),
            "scale": ("auto", "what 100 % air is in the tensors: fraction (1), percent (100), byte (255) or auto"),
        },
    ),
}
CHOICES = {
    "noise_schedule": ("linear", "cosine"),
    "schedule_sampler": ("uniform", "loss-second-moment"),
    "scale": ("auto", "fraction", "percent", "byte"),
}
LEAST = {  # smallest number that makes sense
    **dict.fromkeys(("image_size", "large_size", "small_size", "num_channels", "num_res_blocks", "num_heads"), 1),
    **dict.fromkeys(("diffusion_steps", "batch_size", "log_interval", "save_interval", "num_samples"), 1),
    **dict.fromkeys(("lr", "weight_decay", "lr_anneal_steps", "max_steps", "dropout", "fp16_scale_growth", "seed"), 0),
}
MOST = {"diffusion_steps": 100_000, "num_channels": 8192, "num_res_blocks": 64}  # more is a slip of the finger
TRUTH = {
    **dict.fromkeys(("yes", "true", "t", "y", "1"), True),
    **dict.fromkeys(("no", "false", "f", "n", "0"), False),
}


class Flags(argparse.Namespace):
    """The value of every flag of a command, and which of them were given."""

    given: frozenset[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.prog.split()[-1]}: {message}; --help lists the flags")


def truth(text: str) -> bool:
    """Boolean as the original spells it."""
    try:
        return TRUTH[text.lower()]
    except KeyError:
        raise argparse.ArgumentTypeError(f"'{text}' is neither True nor False") from None


def parser(command: str) -> argparse.ArgumentParser:
    """Parser of a command; a flag that is not given leaves no trace."""
    what, original, own = COMMANDS[command]
    made = _Parser(
        prog=f"lungwave legacy {command}",
        usage="%(prog)s [--FLAG VALUE ...]",
        description=f"{command}: {what}.",
        epilog=RESEARCH_USE,
    )
    for title, table in (("flags of improved-diffusion", original), ("flags of lungwave", own)):
        group = made.add_argument_group(title) if table else made
        for flag, (default, text) in table.items():
            shown = repr(default) if default == "" else default
            group.add_argument(
                f"--{flag}",
                type=truth if isinstance(default, bool) else type(default),
                default=argparse.SUPPRESS,
                metavar="VALUE",
                help=f"{text.replace('%', '%%')} (default {shown})",
            )
    return made


def defaults(command: str) -> dict[str, Any]:
    """Default of every flag of a command."""
    _, original, own = COMMANDS[command]
    return {flag: default for flag, (default, _) in {**original, **own}.items()}


def parse(command: str, words: Sequence[str]) -> Flags:
    """Flags of a command line; UsageError names a flag that is unknown or makes no sense."""
    found, rest = parser(command).parse_known_args(list(words))
    known = defaults(command)
    if rest:
        near = difflib.get_close_matches(rest[0].split("=")[0].lstrip("-").replace("-", "_"), known, n=1)
        hint = f"did you mean --{near[0]}?" if near else "--help lists the flags"
        raise UsageError(f"{command}: unknown word '{rest[0]}'; {hint}")
    given = vars(found)
    flags = Flags(**{**known, **given}, given=frozenset(given))
    for name, value in vars(flags).items():
        if name in CHOICES and value not in CHOICES[name]:
            raise UsageError(f"{command}: --{name} {value}: give {' or '.join(CHOICES[name])}")
        if name in LEAST and not value >= LEAST[name]:
            raise UsageError(f"{command}: --{name} {value}: give at least {LEAST[name]}")
        if name in MOST and value > MOST[name]:
            raise UsageError(f"{command}: --{name} {value}: give at most {MOST[name]}")
    if "dropout" in known and flags.dropout >= 1:
        raise UsageError(f"{command}: --dropout {flags.dropout}: give a share below 1")
    return flags


def numbers(flag: str, text: str, kind: type = float) -> list[Any]:
    """A list with commas, such as ``0.99,0.9999``; UsageError names the flag."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"--{flag} {text!r}: give numbers with commas between them") from None
