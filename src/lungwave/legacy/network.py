"""From flags to a network and its process, anew for training or out of a checkpoint for the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lungwave.legacy import files
from lungwave.legacy.data import channels_said
from lungwave.legacy.flags import DIFFUSION, MODEL, SIZES, Flags
from lungwave.models import openai, openai_flags
from lungwave.models.checkpoint import empty_network, fill
from lungwave.models.gaussian import Gaussian
from lungwave.models.unet import Condition, Size, UNet, UNetConfig, check_size, describe, fitting_strides
from lungwave.types import UsageError

NUM_CLASSES = 1000  # of the original, whatever the data have
ASKED = (*MODEL, *DIFFUSION, *SIZES)  # flags that decide network and process
FIXED = ("num_heads", "num_heads_upsample", "diffusion_steps", "noise_schedule", "predict_xstart", "rescale_timesteps")


@dataclass(frozen=True)
class Trained:
    """A network out of a checkpoint, with all that is needed to ask it."""

    net: UNet
    process: Gaussian
    size: Size
    classes: tuple[str, ...]  # names; empty = unconditional
    said: tuple[str, ...]

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return self.net.config.in_channels


def is_fine(flags: Flags) -> bool:
    """Whether the command makes images finer."""
    return hasattr(flags, "large_size")


def side(flags: Flags) -> int:
    """The original's ``image_size``, whichever flag says it."""
    return flags.large_size if is_fine(flags) else flags.image_size


def new_network(flags: Flags, channels: int, size: Size, classes: int) -> UNetConfig:
    """The network that the flags describe, for images of any size: strides are chosen so that it fits."""
    square, fine = side(flags), is_fine(flags)
    known = [s for s in openai_flags.MULTIPLIERS if s > 32 or not fine]
    if square not in known:
        flag = "large_size" if fine else "image_size"
        raise UsageError(f"--{flag} {square}: no levels are known for it; use {', '.join(map(str, sorted(known)))}")
    mult = openai_flags.MULTIPLIERS[square]
    factor = 2 ** (len(mult) - 1)
    whole = all(length % factor == 0 for length in size)
    config = UNetConfig(
        in_channels=channels,
        out_channels=channels * (2 if flags.learn_sigma else 1),
        channels=flags.num_channels,
        channel_mult=mult,
        blocks=flags.num_res_blocks,
        attention=openai_flags.attention_levels(flags.attention_resolutions, square, len(mult)),
        strides=() if whole else fitting_strides(size, len(mult)),
        heads=flags.num_heads,
        heads_upsample=max(flags.num_heads_upsample, 0),
        dropout=flags.dropout,
        scale_shift=flags.use_scale_shift_norm,
        classes=classes,
        image_channels=channels if fine else 0,
        gradient_checkpointing=flags.use_checkpoint,
    )
    check_size(config, size)
    return config


def explain(config: UNetConfig, size: Size, flags: Flags) -> list[str]:
    """What the network is, where attention landed, and which flag had no effect."""
    facts = describe(config, size)
    said = [
        f"network: {facts['parameters']:,} parameters, {facts['gmac']:.3g} GMAC per image, levels "
        f"{', '.join(facts['levels'])}; attention at {', '.join(facts['attention'])}"
    ]
    for word in flags.attention_resolutions.split(","):
        if not openai_flags.attention_levels(word, side(flags), len(config.channel_mult)):
            said.append(
                f"note: attention_resolutions {word} means a level {side(flags)} / {word} times coarser, and there "
                "is none; as in the original it has no effect"
            )
    return said


def asked(flags: Flags) -> dict[str, Any]:
    """The flags that decide network and process."""
    return {name: value for name, value in vars(flags).items() if name in ASKED}


def new_process(flags: Flags) -> Gaussian:
    """The process that the flags describe."""
    return openai_flags.process({"sigma_small": False, **asked(flags)})


def low_resolution(images: Float[Tensor, "n c z x"], flags: Flags) -> Float[Tensor, "n c low_z low_x"]:
    """Images coarser by large_size / small_size, by area as the original does."""
    size = tuple(length * flags.small_size / flags.large_size for length in images.shape[2:])
    if any(length != int(length) or length < 1 for length in size):
        rows, columns = images.shape[2:]
        raise UsageError(
            f"images of {rows} x {columns} cannot be made coarser by {flags.large_size} / {flags.small_size}; choose "
            "--small_size so that both sides stay whole"
        )
    return F.interpolate(images, [int(length) for length in size], mode="area")


def condition(
    labels: Int[Tensor, " n"] | None, coarse: Float[Tensor, "n c low_z low_x"] | None, size: Size
) -> Condition | None:
    """Labels and coarse images, these brought to ``size`` as the original does, bilinearly."""
    if labels is None and coarse is None:
        return None
    image = None if coarse is None else F.interpolate(coarse, size, mode="bilinear", align_corners=False)
    return Condition(label=labels, image=image)


def load(flags: Flags, coarse: Size | None = None) -> Trained:
    """The network of ``--model_path``. Flags that contradict the file are refused, missing ones are read from it.

    ``coarse`` is the size of the images that super-resolution starts from.
    """
    path, state = files.model_file("model_path", flags.model_path)
    about = files.read_sidecar(path)
    inferred = openai.infer(state)
    given = {name: value for name, value in asked(flags).items() if name in flags.given}
    stored: dict[str, Any] = about.get("flags", {})
    wrong = openai_flags.contradictions(inferred, given)
    wrong += [
        f"flag {name}={given[name]} but it was trained with {stored[name]}"
        for name in FIXED
        if name in given and name in stored and given[name] != stored[name]
    ]
    if wrong:
        raise UsageError(f"{path}: {'; '.join(wrong)}; give the flags of its training, or leave them out")
    fine = is_fine(flags)
    # As many outputs as inputs: super-resolution has them only with a learned variance.
    learned = {"learn_sigma": fine} if inferred.learn_sigma is None else {}
    merged = {
        **learned,
        **{k: v for k, v in stored.items() if k in ASKED},
        "strides": about.get("strides", ""),
        **given,
    }
    values, assumed = openai_flags.settings(inferred, merged)
    values["learn_sigma"] = values["learn_sigma"] if inferred.learn_sigma is None else inferred.learn_sigma
    config = openai_flags.network(inferred, values)
    if fine != bool(config.image_channels):
        other = "image_sample" if fine else "super_res_sample"
        raise UsageError(f"{path}: has {inferred.in_channels} input channels; use it with {other}")
    ratio = merged.get("large_size", flags.large_size) / merged.get("small_size", flags.small_size) if fine else 1.0
    size = _size(flags, about, values.get("image_size") or side(flags), coarse, ratio)
    check_size(config, size)
    net = empty_network(config)
    fill(net, state, str(path))
    names = tuple(about.get("classes", ()))[: inferred.classes] or tuple(map(str, range(inferred.classes)))
    process = openai_flags.process(values)
    said = [f"model: {path}, {size[0]} x {size[1]}, {channels_said(config.in_channels)}, {process.length} steps"]
    if fine and "size" in about and list(size) != about["size"]:
        rows, columns = about["size"]
        said.append(f"note: it was trained to make {rows} x {columns}")
    if not about and assumed:
        told = ", ".join(f"{name} {value}" for name, value in assumed.items() if name in ASKED and value != "")
        said.append(f"note: no {files.SIDECAR} beside it, so these are the defaults: {told}")
    if note := openai.average_note(path):
        said.append(f"note: {note}")
    return Trained(net.eval().requires_grad_(False), process, size, names, tuple(said))


def _size(flags: Flags, about: Mapping[str, Any], square: int, coarse: Size | None, ratio: float) -> Size:
    if getattr(flags, "size", ""):
        try:
            rows, columns = (int(part) for part in flags.size.replace("x", ",").split(","))
        except ValueError:
            raise UsageError(f"--size {flags.size}: give height,width, as 8,256") from None
        return rows, columns
    if coarse is not None:
        return round(coarse[0] * ratio), round(coarse[1] * ratio)
    if "size" in about:
        return int(about["size"][0]), int(about["size"][1])
    return square, square


def sidecar(config: UNetConfig, size: Size, flags: Flags) -> dict[str, Any]:
    """What a checkpoint does not say, for ``files.write_sidecar``."""
    kept = {name: value for name, value in vars(flags).items() if name not in ("given", "resume_checkpoint")}
    strides = ",".join(f"{z}x{x}" for z, x in config.strides)
    return {"flags": kept, "size": list(size), "channels": config.in_channels, "strides": strides}
