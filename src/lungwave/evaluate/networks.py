"""Features of networks that were trained on photographs, from a weights file that the user has: Inception and DINOv2.

Nothing is downloaded, and a file is read as numbers only. Distances in these features are those that other papers
print; whether they see the defects of lung maps is another question (Woodland et al. 2024, arXiv:2311.13717), which is
why those of ``features`` stand beside them. Parameter names are those of the files: the port of the 2015 Inception that
pytorch-fid and torch-fidelity share, and the official DINOv2 checkpoints.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lungwave.repro import sha256
from lungwave.types import UsageError

BATCH = 16  # maps at a time
NAMED = re.compile(r"-([0-9a-f]{8,64})\.\w+$")  # a file name that ends in the beginning of its own SHA-256

# --- Inception, Szegedy et al. 2016 (arXiv:1512.00567), as the Frechet inception distance uses it ---------------------

Layer = tuple[str, int, tuple[int, int], int]  # name, channels, kernel, stride (1: same size, 2: no padding)
ONE, THREE, FIVE, WIDE, TALL = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


class Conv(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, channels: int, out: int, kernel: tuple[int, int], stride: int = 1, pad: bool = True) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if pad and stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n _ _ _"]:
        """The layer."""
        return F.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """Chains of layers side by side, and a pooled path; a chain may end in two layers side by side."""

    def __init__(self, channels: int, chains: Sequence[Sequence[Layer]], pooled: int, peak: bool = False) -> None:
        """``pooled``: channels of the pooled path's layer, 0 for none, which halves the size; ``peak``: of maxima."""
        super().__init__()
        self.chains: list[list[str]] = []
        self.peak, self.out = peak or not pooled, pooled or channels
        for chain in chains:
            width, names = channels, []
            for name, out, kernel, stride in chain:
                setattr(self, name, Conv(width, out, kernel, stride))
                names.append(name)
                width = width if name.endswith("a") else out  # an a is followed by its b, of the same input
            self.out += chain[-1][1] * (2 if names[-1].endswith("b") else 1)
            self.chains.append(names)
        if pooled:
            self.branch_pool = Conv(channels, pooled, ONE)

    def forward(self, x: Float[Tensor, "n c z x"]) -> Float[Tensor, "n _ _ _"]:
        """All paths, one behind the other in channels."""
        found = []
        for names in self.chains:
            part, aside = x, []
            for name in names:
                layer = getattr(self, name)
                if name.endswith("a"):
                    aside.append(layer(part))
                else:
                    part = layer(part)
            found += [*aside, part]
        if not hasattr(self, "branch_pool"):
            return torch.cat([*found, F.max_pool2d(x, 3, 2)], 1)
        # Padding does not count in the means, as in the original graph.
        pool = F.max_pool2d(x, 3, 1, 1) if self.peak else F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return torch.cat([*found, self.branch_pool(pool)], 1)


def _a(channels: int, pooled: int) -> Mixed:
    return Mixed(
        channels,
        (
            [("branch1x1", 64, ONE, 1)],
            [("branch5x5_1", 48, ONE, 1), ("branch5x5_2", 64, FIVE, 1)],
            [("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 1)],
        ),
        pooled,
    )


def _c(width: int) -> Mixed:
    double = [ONE, TALL, WIDE, TALL, WIDE]
    return Mixed(
        768,
        (
            [("branch1x1", 192, ONE, 1)],
            [("branch7x7_1", width, ONE, 1), ("branch7x7_2", width, WIDE, 1), ("branch7x7_3", 192, TALL, 1)],
            [(f"branch7x7dbl_{k + 1}", 192 if k == 4 else width, kernel, 1) for k, kernel in enumerate(double)],
        ),
        192,
    )


def _e(channels: int, peak: bool) -> Mixed:
    across, down = (1, 3), (3, 1)
    return Mixed(
        channels,
        (
            [("branch1x1", 320, ONE, 1)],
            [("branch3x3_1", 384, ONE, 1), ("branch3x3_2a", 384, across, 1), ("branch3x3_2b", 384, down, 1)],
            [
                ("branch3x3dbl_1", 448, ONE, 1), ("branch3x3dbl_2", 384, THREE, 1),
                ("branch3x3dbl_3a", 384, across, 1), ("branch3x3dbl_3b", 384, down, 1),
            ],
        ),
        192, peak,
    )  # fmt: skip


class Inception(nn.Module):
    """The 2048 pooled features before the classifier."""

    least, usual, step = 75, 299, 1  # [pixel] shortest side, side of a square map, side's divisor

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, THREE, 2)
        self.Conv2d_2a_3x3 = Conv(32, 32, THREE, pad=False)
        self.Conv2d_2b_3x3 = Conv(32, 64, THREE)
        self.Conv2d_3b_1x1 = Conv(64, 80, ONE)
        self.Conv2d_4a_3x3 = Conv(80, 192, THREE, pad=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = Mixed(
            288,
            (
                [("branch3x3", 384, THREE, 2)],
                [("branch3x3dbl_1", 64, ONE, 1), ("branch3x3dbl_2", 96, THREE, 1), ("branch3x3dbl_3", 96, THREE, 2)],
            ),
            0,
        )
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = (_c(width) for width in (128, 160, 160, 192))
        self.Mixed_7a = Mixed(
            768,
            (
                [("branch3x3_1", 192, ONE, 1), ("branch3x3_2", 320, THREE, 2)],
                [
                    ("branch7x7x3_1", 192, ONE, 1), ("branch7x7x3_2", 192, WIDE, 1), ("branch7x7x3_3", 192, TALL, 1),
                    ("branch7x7x3_4", 192, THREE, 2),
                ],
            ),
            0,
        )  # fmt: skip
        self.Mixed_7b, self.Mixed_7c = _e(1280, False), _e(2048, True)

    @classmethod
    def read(cls, state: Mapping[str, Tensor]) -> Inception:
        """The network of a state dict; the classifier's weights are left out."""
        net = cls()
        net.load_state_dict({k: v for k, v in state.items() if not k.startswith(("fc.", "AuxLogits."))})
        return net

    def forward(self, x: Float[Tensor, "n 1 z x"]) -> Float[Tensor, "n 2048"]:
        """Features of maps of fractions 0-1."""
        x = ((255 * x - 128) / 128).expand(-1, 3, -1, -1)  # as the original graph takes 8-bit images
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
            x = getattr(self, f"Mixed_{name}")(x)
        return x.mean((2, 3))


# --- DINOv2, Oquab et al. 2023 (arXiv:2304.07193) ---------------------------------------------------------------------


class Block(nn.Module):
    """Attention and a two-layer network, each scaled and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Float[Tensor, "n token d"]) -> Float[Tensor, "n token d"]:
        """The block."""
        n, tokens, width = x.shape
        qkv = self.attn["qkv"](self.norm1(x)).reshape(n, tokens, 3, self.heads, 64).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.ls1["gamma"] * self.attn["proj"](mixed)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class DinoV2(nn.Module):
    """The class token of a vision transformer; small, base and large, with registers or without."""

    least, usual, step = 14, 224, 14
    mean: Tensor
    std: Tensor

    def __init__(self, width: int, depth: int, places: int, registers: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + places, width))
        if registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, registers, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, self.step, self.step)})
        self.blocks = nn.ModuleList([Block(width) for _ in range(depth)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    @classmethod
    def read(cls, state: Mapping[str, Tensor]) -> DinoV2:
        """The network of a state dict, whose shapes say how large it is."""
        width, depth = state["cls_token"].shape[2], len([k for k in state if k.endswith("norm1.weight")])
        registers = state["register_tokens"].shape[1] if "register_tokens" in state else 0
        net = cls(width, depth, state["pos_embed"].shape[1] - 1, registers)
        net.load_state_dict({k: v for k, v in state.items() if k != "mask_token"})
        return net

    def forward(self, x: Float[Tensor, "n 1 z x"]) -> Float[Tensor, "n d"]:
        """Features of maps of fractions 0-1."""
        patches = self.patch_embed["proj"]((x - self.mean) / self.std)
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        if patches.shape[2:] != grid.shape[2:]:
            grid = F.interpolate(grid, patches.shape[2:], mode="bicubic", align_corners=False)
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        more = [self.register_tokens.expand(len(x), -1, -1)] if hasattr(self, "register_tokens") else []
        tokens = torch.cat([first, *more, (patches + grid).flatten(2).transpose(1, 2)], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.norm(tokens)[:, 0]


# --- from a file to features ------------------------------------------------------------------------------------------

NETWORKS: dict[str, type[Inception] | type[DinoV2]] = {"inception": Inception, "dinov2": DinoV2}


@dataclass(frozen=True)
class NetworkFeatures:
    """A network as an extractor of features: raw, as distances in print use them."""

    name: str
    net: Inception | DinoV2
    sha256: str  # of the weights file

    def __call__(self, maps: Float[np.ndarray, "n z x"]) -> Float[np.ndarray, "n d"]:
        """Features of maps (fraction 0-1) of any one size, scaled without distortion to what the network is used to."""
        size, found = self.size((maps.shape[1], maps.shape[2])), []
        with torch.inference_mode():
            for start in range(0, len(maps), BATCH):
                part = torch.as_tensor(np.asarray(maps[start : start + BATCH], np.float32))[:, None]
                scaled = F.interpolate(part, size, mode="bilinear", align_corners=False, antialias=True)
                found.append(self.net(scaled.clamp(0, 1)).double().numpy())
        return np.concatenate(found)

    def size(self, maps: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns that maps are scaled to: both by one factor, up to the network's divisor."""
        net = self.net
        factor = max(net.usual / max(maps), net.least / min(maps))
        z, x = (max(net.least, net.step * round(factor * side / net.step)) for side in maps)
        return z, x


def network_features(name: str, weights: Path, digest: str | None = None) -> NetworkFeatures:
    """The extractor ``name`` with the weights of a file; nothing in the file is executed.

    Raises UsageError for an unknown name, a file that is missing, of another network, or whose SHA-256 does not begin
    with ``digest`` or with what its own name ends in.
    """
    if name not in NETWORKS:
        raise UsageError(f"no network named '{name}'; choose from {', '.join(NETWORKS)}")
    if not weights.is_file():
        raise UsageError(f"{weights}: does not exist; give the file of the weights, which lungwave never downloads")
    found = sha256(weights)
    named = NAMED.search(weights.name)
    for wanted, source in ((digest, "--sha256"), (named and named[1], "its name")):
        if wanted and not found.startswith(wanted.lower()):
            raise UsageError(f"{weights} has SHA-256 {found}, {source} says {wanted}: it is damaged, or another file")
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        net = NETWORKS[name].read(state)
    except Exception as error:  # a pickle of anything else, other tensors, no archive at all
        said = " ".join(str(error).split())[:160]
        raise UsageError(f"{weights} holds no weights of {name} ({type(error).__name__}: {said})") from None
    return NetworkFeatures(name, net.eval(), found)
