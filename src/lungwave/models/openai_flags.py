"""The flags of OpenAI's scripts: parsed, held against what a file says, and made from a network's settings.

Flags and defaults are those of improved-diffusion and, where they differ, guided-diffusion. Two are ours: ``strides``
("1x2,2x2", rows x columns of each step to a coarser level) and ``/8`` in ``attention_resolutions`` (a factor).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lungwave.models.gaussian import Gaussian
from lungwave.models.unet import Size, UNetConfig
from lungwave.types import UsageError

# Levels that the original builds for a square image of this size, unless channel_mult says otherwise.
MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
TYPES: dict[str, type] = {
    **dict.fromkeys(("image_size", "large_size", "small_size", "num_channels", "num_res_blocks", "num_heads"), int),
    **dict.fromkeys(("num_heads_upsample", "num_head_channels", "diffusion_steps"), int),
    **dict.fromkeys(("attention_resolutions", "channel_mult", "noise_schedule", "timestep_respacing", "strides"), str),
    **dict.fromkeys(("class_cond", "learn_sigma", "use_scale_shift_norm", "use_checkpoint", "use_fp16"), bool),
    **dict.fromkeys(("resblock_updown", "use_new_attention_order", "sigma_small", "predict_xstart"), bool),
    **dict.fromkeys(("rescale_timesteps", "rescale_learned_sigmas", "use_kl"), bool),
    "dropout": float,
}
# Of the scripts, not of the network: accepted and left alone, so that a whole old command line can be given.
ELSEWHERE = {
    *("data_dir", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "batch_size", "microbatch", "ema_rate"),
    *("log_interval", "save_interval", "resume_checkpoint", "fp16_scale_growth", "clip_denoised", "num_samples"),
    *("use_ddim", "model_path", "base_samples", "classifier_path", "classifier_scale"),
}
GUIDED_ONLY = ("num_head_channels", "resblock_updown", "use_new_attention_order")
# What no file says, and what is taken where no flag says it. ``rescale_timesteps`` and ``image_size`` depend on more.
ASSUMED: dict[str, Any] = {
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "use_new_attention_order": False,
    "dropout": 0.0,
    "diffusion_steps": 1000,
    "noise_schedule": "linear",
    "timestep_respacing": "",
    "predict_xstart": False,
    "sigma_small": False,
    "strides": "",
}
WORDS = {**dict.fromkeys(("true", "yes", "t", "y", "1"), True), **dict.fromkeys(("false", "no", "f", "n", "0"), False)}


@dataclass(frozen=True)
class Inferred:
    """What names and shapes say about the network."""

    channels: int
    channel_mult: tuple[float, ...]
    blocks: int
    attention: tuple[int, ...]  # levels, 0 = finest
    scale_shift: bool
    classes: int  # 0 = unconditional
    in_channels: int  # of the first convolution
    out_channels: int  # of the last one
    resblock_updown: bool
    conv_resample: bool

    @property
    def learn_sigma(self) -> bool | None:
        """Whether the variance is learned; None where the file does not say."""
        return None if self.ambiguous else self.out_channels == 2 * self.in_channels

    @property
    def super_resolution(self) -> bool | None:
        """Whether half of the input is an upsampled map; None where the file does not say."""
        return None if self.ambiguous else self.in_channels == 2 * self.out_channels

    @property
    def ambiguous(self) -> bool:
        """As many outputs as inputs, an even number: a plain net, or super-resolution with learned variance."""
        return self.in_channels == self.out_channels and self.in_channels % 2 == 0


def parse_flags(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags with values of their types; text as on a command line is understood. UsageError for unknown ones."""
    found: dict[str, Any] = {}
    for key, value in flags.items():
        name = key.lstrip("-").replace("-", "_")
        if name in ELSEWHERE or value is None:
            continue
        if name not in TYPES:
            near = difflib.get_close_matches(name, TYPES, 1)
            raise UsageError(f"flag {name} is unknown{f'; did you mean {near[0]}?' if near else ''}")
        found[name] = _value(name, value)
    return found


def _value(name: str, value: Any) -> Any:
    kind = TYPES[name]
    try:
        if kind is bool:
            return value if isinstance(value, bool) else WORDS[str(value).strip().lower()]
        if kind is str:
            return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return kind(float(value))
    except (KeyError, ValueError, TypeError, OverflowError):
        wanted = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"flag {name}={value!r}: give {wanted}") from None


def is_guided(inferred: Inferred, flags: Mapping[str, Any]) -> bool:
    """Whether defaults are guided-diffusion's: the file or a flag has what improved-diffusion does not know."""
    return inferred.resblock_updown or inferred.channel_mult[0] != 1 or any(name in flags for name in GUIDED_ONLY)


def settings(inferred: Inferred, flags: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All that a file does not say (parsed ``flags`` where given), and the part of it that was assumed."""
    defaults = {**ASSUMED, "rescale_timesteps": not is_guided(inferred, flags)}
    known = {mult: size for size, mult in MULTIPLIERS.items()}
    defaults["image_size"] = flags.get("large_size", known.get(inferred.channel_mult))
    assumed = {name: value for name, value in defaults.items() if name not in flags}
    learned = inferred.learn_sigma
    if learned is None:
        # With large_size it is a super-resolution model, whose output is then twice its map's channels.
        learned = flags.get("learn_sigma", True if "large_size" in flags else None)
    if learned is None:
        count = inferred.in_channels
        raise UsageError(
            f"{count} input and {count} output channels: a {count}-channel network, or super-resolution of "
            f"{count // 2} with learned variance; give learn_sigma=False or learn_sigma=True"
        )
    if learned:
        assumed.pop("sigma_small", None)  # a learned variance is neither the small nor the large one
    loss = {"use_kl": False, "rescale_learned_sigmas": not is_guided(inferred, flags)}  # of training alone
    return {**loss, **defaults, **flags, "learn_sigma": learned}, assumed


def contradictions(inferred: Inferred, flags: Mapping[str, Any]) -> list[str]:
    """One sentence for each of the parsed flags that the file contradicts."""
    says: dict[str, Any] = {
        "num_channels": inferred.channels,
        "num_res_blocks": inferred.blocks,
        "use_scale_shift_norm": inferred.scale_shift,
        "resblock_updown": inferred.resblock_updown,
        "learn_sigma": inferred.learn_sigma,
    }
    found = [
        f"flag {name}={flags[name]} but the file has {value}"
        for name, value in says.items()
        if name in flags and value is not None and flags[name] != value
    ]
    if "class_cond" in flags and flags["class_cond"] != bool(inferred.classes):
        found.append(f"flag class_cond={flags['class_cond']} but the file has {inferred.classes or 'no'} classes")
    size = flags.get("image_size", flags.get("large_size"))
    if flags.get("channel_mult"):
        wanted: tuple[float, ...] | None = multipliers(flags["channel_mult"])
        flag = f"channel_mult={flags['channel_mult']}"
    else:
        wanted, flag = (
            MULTIPLIERS.get(size or 0),
            f"image_size={size} (channel_mult {_list(MULTIPLIERS.get(size, ()))})",
        )
    if wanted is not None and wanted != inferred.channel_mult:
        found.append(f"flag {flag} but the file has channel_mult {_list(inferred.channel_mult)}")
    elif "attention_resolutions" in flags and (size or "/" in flags["attention_resolutions"]):
        levels = attention_levels(flags["attention_resolutions"], size or 0, len(inferred.channel_mult))
        if levels != inferred.attention:
            at = (
                f"at factors {_list(2**level for level in inferred.attention)}" if inferred.attention else "in no level"
            )
            found.append(f"flag attention_resolutions={flags['attention_resolutions']} but the file has attention {at}")
    return found


def attention_levels(resolutions: str, image_size: int, levels: int) -> tuple[int, ...]:
    """Levels whose factor 2^level is image_size // resolution for one of the comma-separated resolutions, or "/factor".

    As in the original, a resolution that matches no level gives none: "1" of a 256-pixel image means factor 256.
    """
    factors = set()
    for part in filter(None, (part.strip() for part in resolutions.split(","))):
        try:
            factors.add(int(part[1:]) if part.startswith("/") else image_size // int(part))
        except (ValueError, ZeroDivisionError):
            raise UsageError(f"flag attention_resolutions={resolutions}: give sizes as 16,8 or factors as /4") from None
    return tuple(level for level in range(levels) if 2**level in factors)


def multipliers(text: str) -> tuple[float, ...]:
    """``channel_mult`` from "1,2,2"."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError(f"flag channel_mult={text}: give one number a level, as 1,2,2,2") from None
    return tuple(int(value) if value.is_integer() else value for value in values)


def strides(text: str) -> tuple[Size, ...]:
    """``strides`` from "1x2,2x2"; "" = all 2 x 2."""
    found = []
    for part in filter(None, text.split(",")):
        sides = part.strip().split("x")
        if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
            raise UsageError(f"flag strides={text}: give rows x columns of each step, as 1x2,2x2")
        found.append((int(sides[0]), int(sides[1])))
    return tuple(found)


def network(inferred: Inferred, values: Mapping[str, Any]) -> UNetConfig:
    """The network that a file and ``settings`` describe."""
    channels = inferred.out_channels // 2 if values["learn_sigma"] else inferred.out_channels
    config = UNetConfig(
        in_channels=channels,
        out_channels=inferred.out_channels,
        channels=inferred.channels,
        channel_mult=inferred.channel_mult,
        blocks=inferred.blocks,
        attention=inferred.attention,
        strides=strides(values["strides"]),
        heads=values["num_heads"],
        head_channels=max(values["num_head_channels"], 0),
        heads_upsample=max(values["num_heads_upsample"], 0),
        dropout=values["dropout"],
        scale_shift=inferred.scale_shift,
        classes=inferred.classes,
        resblock_updown=inferred.resblock_updown,
        new_attention_order=values["use_new_attention_order"],
        conv_resample=inferred.conv_resample,
        image_channels=inferred.in_channels - channels,
        gradient_checkpointing=values.get("use_checkpoint", False),
    )
    levels = sorted({*config.attention, len(config.channel_mult) - 1})  # the middle block is as wide as the last level
    for width in (int(config.channels * config.channel_mult[level]) for level in levels):
        for name in ("num_head_channels",) if config.head_channels else ("num_heads", "num_heads_upsample"):
            if values[name] == 0 or values[name] < -1 or width % values[name]:
                raise UsageError(f"flag {name}={values[name]} does not divide the {width} channels of an attention")
    return config


def process(values: Mapping[str, Any]) -> Gaussian:
    """The diffusion that ``settings`` describe."""
    variance = "fixed_small" if values.get("sigma_small") else "fixed_large"
    loss = "rescaled_mse" if values["rescale_learned_sigmas"] else "mse"
    return Gaussian(
        steps=values["diffusion_steps"],
        schedule=values["noise_schedule"],
        respacing=values["timestep_respacing"],
        rescale_timesteps=values["rescale_timesteps"],
        predicts="x0" if values["predict_xstart"] else "eps",
        variance="learned_range" if values["learn_sigma"] else variance,  # type: ignore[arg-type]
        loss="rescaled_kl" if values["use_kl"] else loss,  # type: ignore[arg-type]
    )


def openai_flags(config: UNetConfig, image_size: int) -> dict[str, Any]:
    """The flags of the original's scripts that build ``config`` for images of ``image_size``.

    Flags of guided-diffusion, and our ``strides``, appear only where the network needs them.

    Raises:
        UsageError: the network has what no flag can say.
    """
    super_resolution = config.image_channels == config.in_channels
    beyond = {
        "conditioning images": config.image_channels and not super_resolution,
        "a conditioning vector": config.vector,
        "conditioning tokens": config.tokens,
        "pooling instead of strided convolutions": not config.conv_resample,
        "patches": config.patch != (1, 1),
    }
    for what, present in beyond.items():
        if present:
            raise UsageError(f"no OpenAI flag describes {what}; keep this model as a lungwave folder")
    levels = len(config.channel_mult)
    at = [str(image_size // 2**level) for level in config.attention]
    if "0" in at or attention_levels(",".join(at), image_size, levels) != tuple(sorted(config.attention)):
        raise UsageError(
            f"no attention_resolutions puts attention at levels {_list(config.attention)} of a {image_size}-pixel "
            f"image; use a size divisible by {2 ** max(config.attention)}"
        )
    flags: dict[str, Any] = {
        "large_size" if super_resolution else "image_size": image_size,
        "num_channels": config.channels,
        "num_res_blocks": config.blocks,
        "num_heads": config.heads,
        "num_heads_upsample": config.heads_upsample or -1,
        "attention_resolutions": ",".join(at) or f"{2 * image_size}",  # an image half its size: no level
        "dropout": config.dropout,
        "class_cond": config.classes > 0,
        "learn_sigma": config.out_channels == 2 * config.in_channels,
        "use_checkpoint": config.gradient_checkpointing,
        "use_scale_shift_norm": config.scale_shift,
    }
    if MULTIPLIERS.get(image_size) != config.channel_mult:
        flags["channel_mult"] = _list(config.channel_mult)
    if config.head_channels:
        flags["num_head_channels"] = config.head_channels
    if config.resblock_updown:
        flags["resblock_updown"] = True
    if config.new_attention_order:
        flags["use_new_attention_order"] = True
    if any(stride != (2, 2) for stride in config.strides):
        flags["strides"] = ",".join(f"{z}x{x}" for z, x in config.strides)
    return flags


def _list(values: Any) -> str:
    return ",".join(map(str, values))
