"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion, read without renaming: what a file says by itself.

Such a ``.pt`` file is a state dict without settings (Nichol & Dhariwal 2021, arXiv:2102.09672; Dhariwal & Nichol 2021,
arXiv:2105.05233). The names and shapes of its tensors give the network; flags of the original command line, or
defaults, give the rest.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from lungwave.models.checkpoint import empty_network, fill, multiplier, not_finite
from lungwave.models.openai_flags import Inferred, contradictions, network, parse_flags, process, settings
from lungwave.models.precond import Discrete, Scaling
from lungwave.models.unet import UNet, UNetConfig
from lungwave.types import UsageError

PREFIXES = ("model.", "module.", "_orig_mod.", "ema.")  # that descendants and wrappers put before every name
NEEDED = ("time_embed.0.weight", "input_blocks.0.0.weight", "out.2.weight", "middle_block.0.in_layers.2.weight")
SCALING = Scaling(0.5, 0.25)  # maps 0-1 become [-1, 1], the range of these networks
EARLY = 0.01  # share of the random start from which an average is not worth sampling


def load_openai(path: str | Path, flags: Mapping[str, Any] | None = None) -> tuple[UNet, UNetConfig, dict[str, Any]]:
    """Network of a ``model*.pt`` or ``ema_*.pt`` file, its settings, and what was assumed because nothing says it.

    The network is in evaluation mode. ``flags`` are those of the original command line, as text or Python objects.
    ``assumed`` given back as flags reads the same network; its ``image_size`` is None where the levels are not those
    of a known size.

    Raises:
        UsageError: the file (see ``read_state``, ``infer``), an unknown flag, flags that the file contradicts, or a
            file that leaves open whether it is super-resolution and flags that do not say.
    """
    net, _, assumed = _load_with(Path(path), flags)
    return net, net.config, assumed


def openai_denoiser(path: str | Path, flags: Mapping[str, Any] | None = None) -> tuple[Discrete, dict[str, Any]]:
    """``load_openai`` as a denoiser D(x, sigma) of maps in [-1, 1] (``SCALING``), and what was assumed."""
    net, values, assumed = _load_with(Path(path), flags)
    noising = process(values)
    return Discrete(net, noising, noising.predicts), assumed


def _load_with(path: Path, flags: Mapping[str, Any] | None) -> tuple[UNet, dict[str, Any], dict[str, Any]]:
    state, given = read_state(path), parse_flags(flags or {})
    try:
        inferred = infer(state)
        wrong = contradictions(inferred, given)
        if wrong:
            raise UsageError("; ".join(wrong))
        values, assumed = settings(inferred, given)
        net = empty_network(network(inferred, values))
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None
    fill(net, state, str(path))
    return net.eval(), values, assumed


def read_state(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a network file by OpenAI's names, float32, without the prefixes of descendants.

    Raises:
        UsageError: no such file, damaged, an optimiser's state, objects besides tensors, other naming, not finite.
    """
    path = Path(path)
    found = _load(path)
    if not isinstance(found, Mapping):
        raise UsageError(f"{path} holds an object of type {type(found).__name__}; save model.state_dict()")
    if {"state", "param_groups"} <= set(found):
        raise UsageError(f"{path} is the state of an optimiser, not a network; {_network_file(path)}")
    if isinstance(found.get("state_dict"), Mapping):
        found = found["state_dict"]
    if not found:
        raise UsageError(f"{path} holds no tensors; give a model*.pt or ema_*.pt file")
    foreign = next((name for name, v in found.items() if not isinstance(v, Tensor) or not isinstance(name, str)), None)
    if foreign is not None:
        names = ", ".join(str(name) for name in list(found)[:4])
        raise UsageError(
            f"{path} holds {names} ..., and {str(foreign)!r} is of type {type(found[foreign]).__name__}; "
            "save the network's state dict alone"
        )
    state = {name: value.detach().float() for name, value in _strip(dict(found), path).items()}
    _check_names(state, path)
    bad = not_finite(state)
    if bad:
        raise UsageError(f"{path} holds values that are not finite, first in {bad}; use an earlier snapshot")
    return state


def infer(state: Mapping[str, Tensor]) -> Inferred:
    """Network settings from names and shapes (``read_state``). UsageError where they follow no known plan."""
    shape = {name: tuple(value.shape) for name, value in state.items()}
    try:
        channels = shape["time_embed.0.weight"][1]
        inputs = {int(name.split(".")[1]) for name in shape if name.startswith("input_blocks.")}
        ups = {m[1] for name in shape if (m := re.match(r"output_blocks\.(\d+)\.[12]\.in_layers\.", name))}
        strided = sum(name.startswith("input_blocks.") and name.endswith(".0.op.weight") for name in shape)
        pooled = max(inputs) + 1 - len(inputs)  # downsampling without parameters leaves a gap in the numbers
        levels = 1 + (strided or len(ups) or pooled)
        blocks, rest = divmod(max(inputs) + 1 - levels, levels)
        if rest or blocks < 1:
            raise UsageError(f"{max(inputs) + 1} input blocks do not make {levels} levels of equal depth")
        first = [1 + level * (blocks + 1) for level in range(levels)]  # input block that a level starts with
        widths = [shape[f"input_blocks.{i + blocks - 1}.0.out_layers.3.weight"][0] for i in first]
        block = "input_blocks.1.0."
        found = Inferred(
            channels=channels,
            channel_mult=tuple(multiplier(width, channels) for width in widths),
            blocks=blocks,
            attention=tuple(n for n, i in enumerate(first) if f"input_blocks.{i}.1.qkv.weight" in shape),
            scale_shift=shape[block + "emb_layers.1.weight"][0] == 2 * shape[block + "in_layers.2.weight"][0],
            classes=shape.get("label_emb.weight", (0,))[0],
            in_channels=shape["input_blocks.0.0.weight"][1],
            out_channels=shape["out.2.weight"][0],
            resblock_updown=not strided and bool(ups),
            conv_resample=bool(strided or ups or not pooled),
        )
    except (KeyError, IndexError, ValueError, ArithmeticError) as error:
        raise UsageError(f"no improved-diffusion or guided-diffusion U-Net: {error} is missing or misshaped") from None
    if found.out_channels not in (found.in_channels, 2 * found.in_channels, found.in_channels / 2):
        raise UsageError(
            f"{found.in_channels} input and {found.out_channels} output channels: an image model has as many, twice "
            "(learned variance) or half (super-resolution)"
        )
    return found


def average_note(path: str | Path) -> str | None:
    """A warning for an ``ema_*`` file saved so early that its average still holds the random start; else None.

    The original starts its averages at the random initialisation: after n steps it weighs rate^n.
    """
    name = Path(path).name
    match = re.fullmatch(r"ema_(0?\.\d+|0|1)_(\d+)\.pt", name)
    if not match:
        return None
    rate, step = float(match[1]), int(match[2])
    share = rate**step
    if share < EARLY:
        return None
    return (
        f"{name}: {100 * share:.1f} % of this average is still the random start ({match[1]}^{step}); "
        f"model{step:06d}.pt is likely better"
    )


def _load(path: Path) -> Any:
    if path.is_dir():
        inside = sorted(item.name for item in path.glob("*.pt") if not item.name.startswith("opt"))[:3]
        raise UsageError(f"{path} is a folder; give a file{', as ' + ', '.join(inside) if inside else ''}")
    try:
        with open(path, "rb") as file:
            head = file.read(32)
        if not head:
            raise UsageError(f"{path} is empty; copy it again")
        if head.startswith(b"version https://git-lfs"):
            raise UsageError(f"{path} is a Git LFS pointer, not the weights; fetch them with 'git lfs pull'")
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if re.search(r"unsupported (global|class)|GLOBAL|not an allowed global|blocklist", str(error), re.IGNORECASE):
            raise UsageError(
                f"{path} holds Python objects besides tensors, which could run code and are not loaded; "
                "save the network's state dict alone with the program that made it"
            ) from None
        raise _damaged(path, error) from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, IndexError, TypeError) as error:
        raise _damaged(path, error) from None
    except (SafetensorError, zipfile.BadZipFile, AssertionError, ImportError, MemoryError) as error:
        raise _damaged(path, error) from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}; give a readable model*.pt or ema_*.pt file") from None


def _damaged(path: Path, error: BaseException) -> UsageError:
    reason = (str(error) or type(error).__name__).splitlines()[0][:120]
    return UsageError(f"{path} is damaged or no checkpoint ({reason}); copy it again")


def _network_file(path: Path) -> str:
    """Which file to give instead of an optimiser's."""
    step = path.stem.removeprefix("opt")
    names = [f"model{step}.pt", *sorted(item.name for item in path.parent.glob(f"ema_*_{step}.pt"))]
    return f"give {' or '.join(names)}"


def _strip(found: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Names without the prefixes that all of them carry."""
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in found)), None):
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    copies = [p for p in PREFIXES if any(name.startswith(p) for name in found)]
    if len(copies) > 1:
        raise UsageError(f"{path} holds several networks ({', '.join(copies)}); save one of them alone")
    return found


def _check_names(state: Mapping[str, Tensor], path: Path) -> None:
    names = list(state)
    if any(name.startswith(("enc.", "dec.", "map_layer0.")) for name in names):
        raise UsageError(f"{path} follows EDM's DhariwalUNet naming (first {names[0]}), which lungwave does not read")
    if "time_embed.0.weight" in state and not any(name.startswith("output_blocks.") for name in names):
        raise UsageError(f"{path} is a guided-diffusion classifier, not a denoiser; give the diffusion model's file")
    missing = [name for name in NEEDED if name not in state]
    if missing:
        raise UsageError(
            f"{path} is no improved-diffusion or guided-diffusion network: no {missing[0]} among its {len(names)} "
            f"tensors (first {names[0]}); give a model*.pt or ema_*.pt file"
        )
