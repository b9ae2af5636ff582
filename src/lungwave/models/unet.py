"""The network: the U-Net of Nichol & Dhariwal for any channels and any H x W, under the parameter names of its files.

Nichol & Dhariwal 2021 (arXiv:2102.09672), with the options of Dhariwal & Nichol 2021 (arXiv:2105.05233). State dicts of
both load by name. What is new: a (z, x) stride for each level, conditioning images, a conditioning vector and tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lungwave.models.fused import attend, norm_silu, pointwise
from lungwave.types import UsageError

Size = tuple[int, int]


@dataclass(frozen=True)
class UNetConfig:
    """Everything that decides the network."""

    in_channels: int = 1  # of the noisy map
    out_channels: int = 1  # twice the map's channels where the variance is learned
    channels: int = 64  # of the finest level before its multiplier
    channel_mult: tuple[float, ...] = (1, 2, 2, 2)  # one per level, finest first
    blocks: int = 2  # residual blocks a level
    attention: tuple[int, ...] = ()  # levels (0 = finest) with self-attention; the middle always has it
    strides: tuple[Size, ...] = ()  # (z, x) of the step from each level to the next; () = (2, 2) everywhere
    heads: int = 4
    head_channels: int = 0  # channels of a head instead of their number; 0 = ``heads`` decides
    heads_upsample: int = 0  # heads on the way up; 0 = ``heads``
    dropout: float = 0.0
    scale_shift: bool = True  # time scales and shifts the normalised activations (FiLM); False = it is added
    classes: int = 0  # 0 = no class labels
    resblock_updown: bool = False  # residual blocks change the resolution (guided-diffusion)
    new_attention_order: bool = False  # rows of qkv are [q, k, v][head] instead of [head][q, k, v] (guided-diffusion)
    patch: Size = (1, 1)  # (z, x) pixels that enter together as channels: a patch of (2, 2) costs a quarter
    conv_resample: bool = True  # convolutions change the resolution; False = mean and nearest neighbour
    image_channels: int = 0  # conditioning images, aligned with the map and stacked under it
    vector: int = 0  # width of a conditioning vector: augmentation labels, noise level, gain
    tokens: int = 0  # width of conditioning tokens, extra keys of every attention (GLIDE, arXiv:2112.10741)
    gradient_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, a third more time

    def __post_init__(self) -> None:
        for name in ("channel_mult", "attention"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "strides", tuple((int(z), int(x)) for z, x in self.strides))
        object.__setattr__(self, "patch", tuple(self.patch))
        levels = len(self.channel_mult)
        if self.strides and len(self.strides) != levels - 1:
            raise UsageError(f"{len(self.strides)} strides for {levels} levels; give {levels - 1}, one a step")
        off = [level for level in self.attention if not 0 <= level < levels]
        if off:
            raise UsageError(f"attention at level {off[0]}, but levels are 0 to {levels - 1}")

    def step(self, level: int) -> Size:
        """Stride (z, x) from ``level`` to the next coarser one."""
        return self.strides[level] if self.strides else (2, 2)

    def reduction(self) -> Size:
        """How much smaller (z, x) than the map the coarsest level is."""
        steps = [self.patch, *(self.step(level) for level in range(len(self.channel_mult) - 1))]
        return math.prod(z for z, _ in steps), math.prod(x for _, x in steps)


@dataclass(frozen=True)
class Condition:
    """What a sample is conditioned on; the first axis of each part is the sample, None = absent.

    Fewer images than the network takes are filled up with zeros.
    """

    label: Int[Tensor, " n"] | None = None  # class; -1 = none
    image: Float[Tensor, "n k z x"] | None = None
    vector: Float[Tensor, "n v"] | None = None
    tokens: Float[Tensor, "n token width"] | None = None
    traces: Float[Tensor, "n tx el time"] | None = None  # what an encoder turns into further images
    center: Float[Tensor, "n c z x"] | None = None  # an estimate of the clean map, for denoisers that work around one

    def take(self, index: Any) -> Condition:
        """The condition of some samples."""
        return Condition(**{item.name: None if (v := getattr(self, item.name)) is None else v[index]
                            for item in fields(self)})  # fmt: skip

    def to(self, device: torch.device | str) -> Condition:
        """The condition on a device."""
        return Condition(**{item.name: None if (v := getattr(self, item.name)) is None else v.to(device)
                            for item in fields(self)})  # fmt: skip


def fitting_strides(size: Size, levels: int, patch: Size = (1, 1)) -> tuple[Size, ...]:
    """Strides that halve the long axis first, so that 8 x 256 keeps at least 4 rows: (1, 2), (1, 2), (2, 2), (1, 2) ...

    An axis is halved where it is even, stays at least 4 long, and the other is no more than 8 times longer.
    """
    z, x = size[0] // patch[0], size[1] // patch[1]
    steps = []
    for _ in range(levels - 1):
        down = (
            2 if z % 2 == 0 and z >= 8 and x <= 8 * z else 1,
            2 if x % 2 == 0 and x >= 8 and z <= 8 * x else 1,
        )
        steps.append(down)
        z, x = z // down[0], x // down[1]
    return tuple(steps)


def check_size(config: UNetConfig, size: Size) -> None:
    """Raise UsageError where maps of ``size`` cannot go down and up through the levels."""
    for axis, length, factor in zip(("height", "width"), size, config.reduction(), strict=True):
        if length < 1 or length % factor:
            levels = len(config.channel_mult)
            cure = ", ".join(f"({z},{x})" for z, x in fitting_strides(size, levels, config.patch))
            raise UsageError(
                f"{size[0]} x {size[1]} needs {axis} divisible by {factor} with {levels} levels; "
                f"use strides {cure} or pad the maps"
            )


def group_norm(channels: int) -> nn.GroupNorm:
    """32 groups, or as many as divide the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels, eps=1e-5)


def zeroed(layer: nn.Module) -> nn.Module:
    """The layer with all parameters zero: its block starts as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def time_embedding(time: Float[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    """Sines and cosines of ``time`` at ``width // 2`` frequencies from 1 to 1e-4, cosines first."""
    half = width // 2
    frequency = torch.exp(-math.log(1e4) * torch.arange(half, device=time.device, dtype=torch.float32) / half)
    phase = time.float()[:, None] * frequency
    waves = torch.cat([phase.cos(), phase.sin()], 1)
    return F.pad(waves, (0, width % 2))


def to_patches(x: Float[Tensor, "n c z x"], patch: Size) -> Float[Tensor, "n patches pz px"]:
    """Pixels of each patch side by side as channels; nothing is lost."""
    n, c, z, w = x.shape
    x = x.reshape(n, c, z // patch[0], patch[0], w // patch[1], patch[1])
    return x.permute(0, 1, 3, 5, 2, 4).reshape(n, -1, z // patch[0], w // patch[1])


def from_patches(x: Float[Tensor, "n patches pz px"], patch: Size) -> Float[Tensor, "n c z x"]:
    """The inverse of ``to_patches``."""
    n, _, z, w = x.shape
    x = x.reshape(n, -1, *patch, z, w).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(n, -1, z * patch[0], w * patch[1])


class Downsample(nn.Module):
    """Coarser by ``stride``: a strided convolution, or the mean."""

    def __init__(self, channels: int, stride: Size, conv: bool) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride, 1) if conv else nn.AvgPool2d(stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Finer by ``stride``: nearest neighbour, then a convolution."""

    def __init__(self, channels: int, stride: Size, conv: bool) -> None:
        super().__init__()
        self.stride = (float(stride[0]), float(stride[1]))
        self.conv = nn.Conv2d(channels, channels, 3, 1, 1) if conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=self.stride, mode="nearest"))


class ResBlock(nn.Module):
    """Two convolutions around the time embedding, and a skip; ``resample`` changes the resolution of both."""

    def __init__(self, config: UNetConfig, inner: int, outer: int, resample: nn.Module | None = None) -> None:
        super().__init__()
        self.scale_shift, self.resample = config.scale_shift, resample
        width = 4 * config.channels
        self.in_layers = nn.Sequential(group_norm(inner), nn.SiLU(), nn.Conv2d(inner, outer, 3, 1, 1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * outer if config.scale_shift else outer))
        self.out_layers = nn.Sequential(
            group_norm(outer), nn.SiLU(), nn.Dropout(config.dropout), zeroed(nn.Conv2d(outer, outer, 3, 1, 1))
        )
        self.skip_connection = nn.Identity() if inner == outer else nn.Conv2d(inner, outer, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = norm_silu(self.in_layers[0], x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h = self.in_layers[2](h)
        film = self.emb_layers(emb)
        if not self.scale_shift:
            h, film = h + film[:, :, None, None], None
        h = self.out_layers[2:](norm_silu(self.out_layers[0], h, film))
        return h + (x if isinstance(self.skip_connection, nn.Identity) else pointwise(self.skip_connection, x))


class AttentionBlock(nn.Module):
    """Every pixel looks at every pixel, and at the conditioning tokens if there are any."""

    def __init__(self, config: UNetConfig, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = channels // config.head_channels if config.head_channels else heads
        if channels % self.heads:
            raise UsageError(f"{channels} channels cannot be split into {self.heads} attention heads")
        self.new_order = config.new_attention_order
        self.norm = group_norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = zeroed(nn.Conv1d(channels, channels, 1))
        if config.tokens:
            self.encoder_kv = nn.Conv1d(config.tokens, 2 * channels, 1)

    def split(self, rows: Tensor, parts: int) -> tuple[Tensor, ...]:
        """Rows of queries, keys, values -> ``parts`` tensors (n, head, position, d)."""
        n, _, positions = rows.shape
        if self.new_order:
            return rows.view(n, parts, self.heads, -1, positions).transpose(-1, -2).unbind(1)
        return rows.view(n, self.heads, parts, -1, positions).transpose(-1, -2).unbind(2)

    def forward(self, x: Tensor, tokens: Tensor | None) -> Tensor:
        n, c, *size = x.shape
        query, key, value = self.split(pointwise(self.qkv, norm_silu(self.norm, x, silu=False)).flatten(2), 3)
        if tokens is not None:
            more = self.split(self.encoder_kv(tokens.transpose(1, 2)), 2)
            key, value = torch.cat([more[0], key], 2), torch.cat([more[1], value], 2)
        seen = attend(query, key, value).transpose(1, 2).reshape(n, *size, c).permute(0, 3, 1, 2)
        return x + pointwise(self.proj_out, seen)


class Stage(nn.Sequential):
    """Layers in a row; each gets what it needs beside the activations."""

    def forward(self, x: Tensor, emb: Tensor, tokens: Tensor | None) -> Tensor:  # type: ignore[override]
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, AttentionBlock):
                x = layer(x, tokens)
            else:
                x = layer(x)
        return x


class UNet(nn.Module):
    """Noisy maps (n, c, z, x), a time and a condition -> prediction (n, out_channels, z, x)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        mc, width = config.channels, 4 * config.channels
        self.time_embed = nn.Sequential(nn.Linear(mc, width), nn.SiLU(), nn.Linear(width, width))
        if config.classes:
            self.label_emb = nn.Embedding(config.classes, width)
        if config.vector:
            self.vector_emb = zeroed(nn.Linear(config.vector, width, bias=False))
        first = int(mc * config.channel_mult[0])
        levels = [int(mc * mult) for mult in config.channel_mult]
        area = config.patch[0] * config.patch[1]
        stem = nn.Conv2d(area * (config.in_channels + config.image_channels), first, 3, 1, 1)
        self.input_blocks = nn.ModuleList([Stage(stem)])
        channels, skips = first, [first]
        for level, outer in enumerate(levels):
            for _ in range(config.blocks):
                layers: list[nn.Module] = [ResBlock(config, channels, outer)]
                channels = outer
                if level in config.attention:
                    layers.append(AttentionBlock(config, channels, config.heads))
                self.input_blocks.append(Stage(*layers))
                skips.append(channels)
            if level < len(levels) - 1:
                self.input_blocks.append(Stage(self._resample(Downsample, channels, level)))
                skips.append(channels)
        self.middle_block = Stage(
            ResBlock(config, channels, channels),
            AttentionBlock(config, channels, config.heads),
            ResBlock(config, channels, channels),
        )
        self.output_blocks = nn.ModuleList()
        for level, outer in reversed(list(enumerate(levels))):
            for block in range(config.blocks + 1):
                layers = [ResBlock(config, channels + skips.pop(), outer)]
                channels = outer
                if level in config.attention:
                    layers.append(AttentionBlock(config, channels, config.heads_upsample or config.heads))
                if level and block == config.blocks:
                    layers.append(self._resample(Upsample, channels, level - 1))
                self.output_blocks.append(Stage(*layers))
        head = nn.Conv2d(channels, area * config.out_channels, 3, 1, 1)
        self.out = nn.Sequential(group_norm(channels), nn.SiLU(), zeroed(head))

    def _resample(self, kind: type[Downsample] | type[Upsample], channels: int, level: int) -> nn.Module:
        stride = self.config.step(level)
        if self.config.resblock_updown:
            return ResBlock(self.config, channels, channels, kind(channels, stride, conv=False))
        return kind(channels, stride, self.config.conv_resample)

    def forward(
        self, x: Float[Tensor, "n c z x"], time: Float[Tensor, " n"], cond: Condition | None = None
    ) -> Float[Tensor, "n out z x"]:
        """``time`` [any] is what the sines and cosines see; an absent condition equals zeros."""
        config, cond = self.config, cond or Condition()
        emb = self.time_embed(time_embedding(time, config.channels).to(x.dtype))
        if config.classes and cond.label is not None:
            known = (cond.label >= 0).to(emb.dtype)[:, None]
            emb = emb + known * self.label_emb(cond.label.clamp(min=0))
        if config.vector and cond.vector is not None:
            emb = emb + self.vector_emb(cond.vector.to(emb.dtype))
        if config.image_channels:
            given = x[:, :0] if cond.image is None else cond.image.to(x.dtype)
            missing = x.new_zeros(len(x), config.image_channels - given.shape[1], *x.shape[2:])
            x = torch.cat([x, given, missing], 1)
        tokens = cond.tokens.to(x.dtype) if config.tokens and cond.tokens is not None else None
        whole = config.patch == (1, 1)
        x = x if whole else to_patches(x, config.patch)
        skips: list[Tensor] = []
        for stage in self.input_blocks:
            x = self._run(stage, x, emb, tokens)
            skips.append(x)
        x = self._run(self.middle_block, x, emb, tokens)
        for stage in self.output_blocks:
            x = self._run(stage, torch.cat([x, skips.pop()], 1), emb, tokens)
        x = self.out[2](norm_silu(self.out[0], x))
        return x if whole else from_patches(x, config.patch)

    def _run(self, stage: nn.Module, x: Tensor, emb: Tensor, tokens: Tensor | None) -> Tensor:
        if self.config.gradient_checkpointing and self.training:
            return checkpoint(stage, x, emb, tokens, use_reentrant=False)
        return stage(x, emb, tokens)


def describe(config: UNetConfig, size: Size) -> dict[str, Any]:
    """Where attention landed, parameters, tensors, and multiply-adds of one call on one map of ``size``."""
    check_size(config, size)
    with torch.device("meta"):
        network = UNet(replace(config, gradient_checkpointing=False))
        x = torch.empty(1, config.in_channels, *size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, torch.zeros(1))
    return {
        "size": list(size),
        "levels": [f"{z} x {x}" for z, x in level_sizes(config, size)],
        "attention": [f"{z} x {x}" for level, (z, x) in enumerate(level_sizes(config, size))
                      if level in config.attention] + ["middle block"],
        "parameters": sum(p.numel() for p in network.parameters()),
        "tensors": len(network.state_dict()),
        "gmac": counter.get_total_flops() / 2e9,
        "config": asdict(config),
    }  # fmt: skip


def level_sizes(config: UNetConfig, size: Size) -> Iterator[Size]:
    """Size (z, x) of each level for maps of ``size``, finest first."""
    z, x = size[0] // config.patch[0], size[1] // config.patch[1]
    for level in range(len(config.channel_mult)):
        yield z, x
        if level < len(config.channel_mult) - 1:
            z, x = z // config.step(level)[0], x // config.step(level)[1]
