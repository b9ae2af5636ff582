"""The network as a diffusers ``UNet2DModel`` folder and back, by names alone: diffusers itself is never imported.

Only the network is exchanged. What it predicts, its time and its scaling are those of the denoiser around it: a reader
of an exported folder feeds ``c_in x`` and the network's time, as ``lungwave.models.precond`` says for each kind.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from lungwave.models.checkpoint import empty_network, fill, multiplier, stored
from lungwave.models.unet import Size, UNet, UNetConfig, check_size
from lungwave.repro import atomic_path, write_json
from lungwave.types import UsageError

ABOUT, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"
# What a UNet2DModel is where its config.json is silent.
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
# Settings of a UNet2DModel that our network has in one way only.
FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0,),
    "flip_sin_to_cos": (True,),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (1,),
    "act_fn": ("silu", "swish"),
    "norm_eps": (1e-5,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "add_attention": (True,),
    "class_embed_type": (None,),
}
DOWN = {  # kind of block -> has attention, changes resolution by a residual block (None: downsample_type says)
    "DownBlock2D": (False, False),
    "ResnetDownsampleBlock2D": (False, True),
    "AttnDownBlock2D": (True, None),
}
UP = {"UpBlock2D": (False, False), "ResnetUpsampleBlock2D": (False, True), "AttnUpBlock2D": (True, None)}
RESBLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.17


def export_diffusers(folder: str | Path, net: UNet, size: Size, dtype: str = "float32") -> None:
    """Write a network for maps of ``size`` as a folder that ``UNet2DModel.from_pretrained`` reads.

    Raises:
        UsageError: the network has what a UNet2DModel has not, named with the reason.
    """
    folder, config = Path(folder), net.config
    check_size(config, size)
    about = _to_diffusers(config, size)
    state = net.state_dict()
    found: dict[str, Tensor] = {}
    for ours, theirs in _layers(config, state):
        if theirs.endswith("to_qkv"):
            heads = _heads(config, len(state[f"{ours}.weight"]) // 3, ours.startswith("output"))
            for part in ("weight", "bias"):
                rows = _split(state[f"{ours}.{part}"], heads, config.new_attention_order)
                for letter, value in zip("qkv", rows, strict=True):
                    found[f"{theirs.removesuffix('qkv')}{letter}.{part}"] = value
        else:
            for part in ("weight", "bias"):
                if f"{ours}.{part}" in state:
                    value = state[f"{ours}.{part}"]
                    found[f"{theirs}.{part}"] = (
                        value[..., 0] if theirs.endswith("to_out.0") and part == "weight" else value
                    )
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(save(stored(found, dtype, str(folder)), {"format": "pt"}))
    write_json(folder / ABOUT, about)


def import_diffusers(folder: str | Path) -> tuple[UNet, Size | None]:
    """Network of a UNet2DModel folder in evaluation mode, and the size of its maps where the folder says one.

    Raises:
        UsageError: no such folder, damaged or missing files, another class, a setting that our network has not.
    """
    folder = Path(folder)
    values = _read_config(folder)
    try:
        config = _from_diffusers(values)
        net = empty_network(config)
        size = _sample_size(values["sample_size"])
    except UsageError as error:
        raise UsageError(f"{folder / ABOUT}: {error}") from None
    except (TypeError, ValueError, KeyError, IndexError, ArithmeticError, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UsageError(f"{folder / ABOUT} does not describe a UNet2DModel ({reason}); copy it again") from None
    try:
        theirs = {_modern(name): value for name, value in load_file(folder / WEIGHTS).items()}
    except (SafetensorError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0][:120]
        raise UsageError(f"{folder / WEIGHTS} is damaged ({reason}); copy the folder again") from None
    fill(net, _to_openai(config, net.state_dict(), theirs), str(folder / WEIGHTS))
    return net.eval(), size


def _read_config(folder: Path) -> dict[str, Any]:
    missing = [name for name in (ABOUT, WEIGHTS) if not (folder / name).is_file()]
    if missing:
        raise UsageError(
            f"{folder} is not a diffusers model, {' and '.join(missing)} missing; give the folder of its unet, saved "
            "with safe_serialization"
        )
    try:
        values = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder / ABOUT} is not JSON ({str(error)[:120]}); copy the folder again") from None
    kind = values.get("_class_name") if isinstance(values, dict) else None
    if kind != "UNet2DModel":
        raise UsageError(
            f"{folder / ABOUT} describes a {kind or 'thing without _class_name'}; only UNet2DModel is read"
        )
    return {**DEFAULTS, **values}


def _widths(config: UNetConfig) -> list[int]:
    return [int(config.channels * mult) for mult in config.channel_mult]


def _heads(config: UNetConfig, width: int, up: bool = False) -> int:
    if config.head_channels:
        return width // config.head_channels
    return (config.heads_upsample if up else 0) or config.heads


def _norm_widths(config: UNetConfig) -> Iterator[int]:
    """Channels of every normalisation; on the way up, activations and skips lie side by side."""
    widths = _widths(config)
    for level, width in enumerate(widths):
        below, above = widths[min(level + 1, len(widths) - 1)], widths[max(level - 1, 0)]
        yield from (width, below + width, width + above)
        if config.blocks > 1:
            yield 2 * width


def _to_diffusers(config: UNetConfig, size: Size) -> dict[str, Any]:
    """config.json of a UNet2DModel. UsageError where it cannot say what the network is."""
    widths = _widths(config)
    attended = sorted({widths[level] for level in config.attention} | {widths[-1]})
    head_dims = {width // _heads(config, width, up) for width in attended for up in (False, True)}
    groups = {math.gcd(32, width) for width in _norm_widths(config)}
    strides = sorted(set(config.strides) - {(2, 2)})
    reasons = {
        f"strides {strides[:1]}, and a UNet2DModel halves both axes at every level": strides,
        f"patches of {config.patch}": config.patch != (1, 1),
        f"{config.image_channels} channels of conditioning images": config.image_channels,
        f"a conditioning vector of {config.vector}": config.vector,
        f"conditioning tokens of {config.tokens}": config.tokens,
        "pooling instead of strided convolutions": not config.conv_resample,
        f"a first level of {widths[0]} channels beside a time embedding of {config.channels}": config.channel_mult[0]
        != 1,
        f"heads of {' and '.join(map(str, sorted(head_dims)))} channels (widths {', '.join(map(str, attended))}), and "
        "attention_head_dim is one number; use head_channels": len(head_dims) > 1,
        f"normalisation in {' and '.join(map(str, sorted(groups)))} groups, and norm_num_groups is one number; use "
        "channels divisible by 32": len(groups) > 1,
    }
    for reason, present in reasons.items():
        if present:
            raise UsageError(f"diffusers' UNet2DModel cannot express this network: it has {reason}")
    attention = [level in config.attention for level in range(len(widths))]
    plain, kind = ("Resnet{}sampleBlock2D", "resnet") if config.resblock_updown else ("{}Block2D", "conv")
    return {
        "_class_name": "UNet2DModel",
        **DEFAULTS,
        "sample_size": list(size),
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "down_block_types": ["AttnDownBlock2D" if here else plain.format("Down") for here in attention],
        "up_block_types": ["AttnUpBlock2D" if here else plain.format("Up") for here in reversed(attention)],
        "block_out_channels": widths,
        "layers_per_block": config.blocks,
        "downsample_type": kind,
        "upsample_type": kind,
        "dropout": config.dropout,
        "attention_head_dim": head_dims.pop(),
        "norm_num_groups": min(groups),
        "attn_norm_num_groups": min(groups),  # without it, the middle attention of a scale-shift net has no norm
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "num_class_embeds": config.classes or None,
    }


def _from_diffusers(values: Mapping[str, Any]) -> UNetConfig:
    """The network that config.json describes. UsageError names the setting that ours has not."""
    for name, allowed in FIXED.items():
        if values[name] not in allowed:
            raise UsageError(f"{name} is {values[name]!r}, and lungwave's network has {allowed[0]!r} only")
    widths, levels = [int(width) for width in values["block_out_channels"]], len(values["block_out_channels"])
    if values["time_embedding_dim"] not in (None, 4 * widths[0]):
        raise UsageError(f"time_embedding_dim is {values['time_embedding_dim']}, and lungwave's is {4 * widths[0]}")
    down = _kinds(values["down_block_types"], DOWN, values["downsample_type"], levels)
    up = _kinds(values["up_block_types"][::-1], UP, values["upsample_type"], levels)
    attention = tuple(level for level, (here, _) in enumerate(down) if here)
    if [here for here, _ in down] != [here for here, _ in up]:
        raise UsageError("attention on the way down and up lies at different levels, in lungwave's network it does not")
    resampling = {kind for side in (down, up) for _, kind in side[: levels - 1]}
    if len(resampling) > 1:
        raise UsageError("some levels change resolution by residual blocks and some do not, in lungwave's all or none")
    head_dim = values["attention_head_dim"]
    config = UNetConfig(
        in_channels=values["in_channels"],
        out_channels=values["out_channels"],
        channels=widths[0],
        channel_mult=tuple(multiplier(width, widths[0]) for width in widths),
        blocks=values["layers_per_block"],
        attention=attention,
        heads=1 if head_dim is None else 4,
        head_channels=head_dim or 0,
        dropout=float(values["dropout"]),
        scale_shift=values["resnet_time_scale_shift"] == "scale_shift",
        classes=values["num_class_embeds"] or 0,
        resblock_updown=resampling == {True},
    )
    for width in {widths[level] for level in attention} | {widths[-1]}:
        if head_dim and width % head_dim:
            raise UsageError(f"attention_head_dim {head_dim} does not divide {width} channels")
    _check_groups(config, values)
    return config


def _check_groups(config: UNetConfig, values: Mapping[str, Any]) -> None:
    """Our groups are 32 or what divides the channels; theirs are what the file says."""
    groups, middle = values["norm_num_groups"], values["attn_norm_num_groups"]
    other = next((width for width in _norm_widths(config) if math.gcd(32, width) != groups), None)
    if other is not None:
        raise UsageError(
            f"norm_num_groups is {groups}, and lungwave's network has {math.gcd(32, other)} at {other} channels"
        )
    if middle != groups and not (middle is None and not config.scale_shift):
        raise UsageError(f"attn_norm_num_groups is {middle}, and lungwave's network normalises in {groups} groups")


def _kinds(names: list[str], known: Mapping[str, tuple[bool, bool | None]], resampling: str, levels: int) -> list[Any]:
    unknown = next((name for name in names if name not in known), None)
    if unknown or len(names) != levels or resampling not in ("conv", "resnet"):
        raise UsageError(
            f"blocks {', '.join(names)} ({resampling}) are not those of lungwave's network: one of {', '.join(known)} "
            "a level"
        )
    return [(here, resampling == "resnet" if kind is None else kind) for here, kind in (known[name] for name in names)]


def _sample_size(value: Any) -> Size | None:
    if value is None:
        return None
    z, x = (value, value) if isinstance(value, int) else value
    return int(z), int(x)


def _layers(config: UNetConfig, state: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Names of corresponding layers, OpenAI's and diffusers'; ``to_qkv`` stands for three of the latter."""
    yield from (("time_embed.0", "time_embedding.linear_1"), ("time_embed.2", "time_embedding.linear_2"))
    yield from (("input_blocks.0.0", "conv_in"), ("out.0", "conv_norm_out"), ("out.2", "conv_out"))
    if config.classes:
        yield "label_emb", "class_embedding"
    levels, depth = len(config.channel_mult), config.blocks + 1
    modules = {"middle_block.0": "mid_block.resnets.0", "middle_block.1": "mid_block.attentions.0"}
    modules["middle_block.2"] = "mid_block.resnets.1"
    for level in range(levels):
        down, up = f"down_blocks.{level}", f"up_blocks.{level}"  # level of ``up`` counts from the coarsest
        for block in range(config.blocks):
            modules[f"input_blocks.{1 + level * depth + block}.0"] = f"{down}.resnets.{block}"
            modules[f"input_blocks.{1 + level * depth + block}.1"] = f"{down}.attentions.{block}"
        modules[f"input_blocks.{(level + 1) * depth}.0"] = f"{down}.downsamplers.0"
        attended = levels - 1 - level in config.attention
        for block in range(depth):
            modules[f"output_blocks.{level * depth + block}.0"] = f"{up}.resnets.{block}"
            if attended:
                modules[f"output_blocks.{level * depth + block}.1"] = f"{up}.attentions.{block}"
        modules[f"output_blocks.{level * depth + config.blocks}.{1 + attended}"] = f"{up}.upsamplers.0"
    for ours, theirs in modules.items():
        pairs = {
            **RESBLOCK,
            "norm": "group_norm",
            "qkv": "to_qkv",
            "proj_out": "to_out.0",
            "op": "conv",
            "conv": "conv",
        }
        for part, name in pairs.items():
            if f"{ours}.{part}.weight" in state:
                yield f"{ours}.{part}", f"{theirs}.{name}"


def _to_openai(config: UNetConfig, wanted: Mapping[str, Tensor], theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by OpenAI's names; those without a counterpart keep diffusers' and are reported by ``fill``."""
    found: dict[str, Tensor] = {}
    for ours, name in _layers(config, wanted):
        for part in ("weight", "bias"):
            key = f"{ours}.{part}"
            if name.endswith("to_qkv"):
                rows = [theirs.pop(f"{name.removesuffix('qkv')}{letter}.{part}", None) for letter in "qkv"]
                width = len(wanted[key]) // 3
                whole = [row for row in rows if row is not None and len(row) == width]
                if len(whole) == 3:
                    found[key] = _join(whole, _heads(config, width))
            elif f"{name}.{part}" in theirs:
                found[key] = theirs.pop(f"{name}.{part}")
            if key in found and found[key].ndim == wanted[key].ndim - 1:
                found[key] = found[key][..., None]  # linear layer -> convolution of width 1
    return {**found, **theirs}


def _split(rows: Tensor, heads: int, new_order: bool) -> tuple[Tensor, ...]:
    """Rows of qkv -> queries, keys, values, each with its heads one after the other."""
    rows = rows.flatten(1) if rows.ndim > 1 else rows
    if new_order:
        return rows.chunk(3)
    parts = rows.reshape(heads, 3, -1, *rows.shape[1:])
    return tuple(part.flatten(0, 1) for part in parts.unbind(1))


def _join(parts: list[Tensor], heads: int) -> Tensor:
    """The inverse of ``_split`` in OpenAI's first order, [head][q, k, v]."""
    return torch.stack([part.reshape(heads, -1, *part.shape[1:]) for part in parts], 1).flatten(0, 2)


def _modern(name: str) -> str:
    """Name of an attention's tensor since diffusers 0.17."""
    head, _, part = name.rpartition(".")
    before, _, layer = head.rpartition(".")
    return f"{before}.{OLD_ATTENTION[layer]}.{part}" if ".attentions." in name and layer in OLD_ATTENTION else name
