"""Model folders: model.safetensors (numbers only), config.json (what they mean) and README.md (the card).

Nothing in a folder is ever executed. config.json is written last and holds the SHA-256 of the weights, so that a folder
whose writing or copying was cut off is refused rather than read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256 as digest
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from lungwave.models.gaussian import Gaussian
from lungwave.models.noising import Noising
from lungwave.models.precond import Denoiser, Discrete, Kind, Preconditioned, Scaling
from lungwave.models.unet import Size, UNet, UNetConfig, check_size
from lungwave.models.wiener import Wiener
from lungwave.repro import atomic_path, manifest, sha256, stamped, unstamped, write_json
from lungwave.types import RESEARCH_USE, LungwaveError, UsageError

FORMAT = 1
KIND = "diffusion"
WEIGHTS, ABOUT, CARD = "model.safetensors", "config.json", "README.md"
SPECTRUM = "spectrum"  # tensor beside the weights, of a denoiser that has one
STEM = "input_blocks.0.0.weight"  # of the convolution that map and conditioning images enter by

DEEPEST = 1000  # blocks on the way down: a damaged number must not build for hours
STORAGE = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Model:
    """A denoiser with what is needed to use it on maps."""

    denoiser: Denoiser
    scaling: Scaling
    size: Size  # (z, x) of the maps [pixels]
    config: dict[str, Any]  # all of config.json


def save_model(
    folder: str | Path,
    denoiser: Denoiser,
    scaling: Scaling,
    size: Size,
    *,
    card: str,  # first line: a title; Markdown
    command: str,  # that makes this model again
    trained: Mapping[str, Any] | None = None,  # images seen, loss, time ...
    statistics: Mapping[str, Any] | None = None,  # of the training maps
    classes: Sequence[str] = (),  # names, in the order of the labels
    settings: Mapping[str, Any] | None = None,  # of the run
    seed: int = 0,  # of the run
    parents: Iterable[str | Path] = (),  # files that the model was made from
    dtype: str = "float32",  # of the stored weights, one of STORAGE; ``load_model`` gives float32 back
) -> None:
    """Write a model folder.

    Raises:
        UsageError: weights that are not finite, or that float16 cannot hold; names that do not fit the labels.
        LungwaveError: the folder cannot be written.
    """
    folder, net = Path(folder), plain(denoiser)
    if classes and len(classes) != net.config.classes:
        raise UsageError(f"{len(classes)} class names for {net.config.classes} labels; give one name a label")
    check_size(net.config, size)
    weights = stored(net.state_dict(), dtype, str(folder))
    if isinstance(denoiser, Wiener):
        weights |= stored({SPECTRUM: denoiser.spectrum}, "float32", str(folder))  # its range is that of float32
    about = {
        "format": FORMAT,
        "kind": KIND,
        "network": asdict(net.config),
        "denoiser": denoiser_facts(denoiser),
        "scaling": asdict(scaling),
        "size": list(size),
        "classes": list(classes),
        "storage": dtype,
        "parameters": sum(value.numel() for value in net.parameters()),
        "statistics": dict(statistics or {}),
        "trained": dict(trained or {}),
        "command": command,
        **manifest(json.dumps(dict(settings or {}), sort_keys=True), seed, parents),
    }
    write_folder(folder, save(weights), about, _card(card, about))


def load_model(folder: str | Path, device: str | torch.device = "cpu") -> Model:
    """Read a model folder; weights become float32, the denoiser is in evaluation mode.

    Raises:
        UsageError: no such folder, a file missing or damaged, another kind of model or a newer format, weights that do
            not fit the network or are not finite, a device that is not there.
    """
    folder = Path(folder)
    about = read_about(folder, KIND, FORMAT, "train one with 'lungwave train'")
    try:
        config = network_config(about["network"])
        scaling, size = _scaling(about["scaling"]), _size(about["size"])
        check_size(config, size)
        state = read_weights(folder / WEIGHTS)
        denoiser = rebuild_denoiser(about["denoiser"], empty_network(config), state.pop(SPECTRUM, None), size)
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, UsageError) as error:
        raise UsageError(f"{folder / ABOUT} is not of this format ({_reason(error)}); train or copy it again") from None
    fill(plain(denoiser), state, str(folder / WEIGHTS))
    try:
        denoiser = denoiser.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device '{device}' cannot be used ({_reason(error)}); use 'cpu'") from None
    return Model(denoiser.eval(), scaling, size, about)


def write_folder(folder: Path, weights: bytes, about: Mapping[str, Any], card: str) -> None:
    """Write the three files of a model, each whole or not at all, config.json last."""
    with atomic_path(folder / WEIGHTS) as temporary:
        temporary.write_bytes(weights)
    with atomic_path(folder / CARD) as temporary:
        temporary.write_text(card, encoding="utf-8")
    write_json(folder / ABOUT, stamped({**about, "weights_sha256": digest(weights).hexdigest()}))


def read_about(folder: Path, kind: str, newest: int, cure: str) -> dict[str, Any]:
    """config.json of a folder that holds a ``kind`` model of format ``newest`` or older, beside whole weights."""
    if not folder.is_dir():
        what = "is a file, not a model folder" if folder.exists() else "does not exist"
        raise UsageError(f"{folder} {what}; give a folder with {WEIGHTS} and {ABOUT}, or {cure}")
    missing = [name for name in (WEIGHTS, ABOUT) if not (folder / name).is_file()]
    if missing:
        raise UsageError(f"{folder} is not a complete model folder, {' and '.join(missing)} missing; {cure}")
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{folder / ABOUT} is not JSON ({_reason(error)}); copy the folder again") from None
    if not isinstance(about, dict) or type(about.get("format")) is not int or "kind" not in about:
        raise UsageError(f"{folder / ABOUT} does not describe a lungwave model (no 'format' and 'kind'); {cure}")
    if about["kind"] != kind:
        raise UsageError(f"{folder} holds a '{about['kind']}' model, this reads '{kind}'; {cure}")
    if about["format"] > newest:
        raise UsageError(f"{folder} has format {about['format']}, this reads up to {newest}; update lungwave")
    about = unstamped(folder / ABOUT, about)
    if about.get("weights_sha256") not in (None, sha256(folder / WEIGHTS)):
        raise UsageError(f"{folder / WEIGHTS} is damaged or of another model than {ABOUT}; copy the folder again")
    return about


def network_config(values: Mapping[str, Any]) -> UNetConfig:
    """UNetConfig from what ``dataclasses.asdict`` and JSON make of it. UsageError for other names or types."""
    example = {**asdict(UNetConfig()), "channel_mult": (1.5,), "attention": (0,), "strides": ((2, 2),)}
    unknown = sorted(set(values) - set(example))
    if unknown:
        raise UsageError(f"'{unknown[0]}' is no setting of the network")
    return UNetConfig(**{name: _like(example[name], value, name) for name, value in values.items()})


def _like(example: Any, value: Any, name: str) -> Any:
    """A value of JSON, its lists made tuples. UsageError where it is not of the type of an example."""
    if isinstance(example, tuple) and isinstance(value, (list, tuple)):
        return tuple(_like(example[0], item, name) for item in value)
    if type(example) is type(value) or (type(example), type(value)) == (float, int):
        return value
    raise UsageError(f"'{name}' is {value!r:.60}")


def multiplier(width: int, channels: int) -> float:
    """The ``channel_mult`` that makes ``width`` of ``channels``; whole where it can be."""
    if width % channels == 0:
        return width // channels
    return next(m for m in (width / channels, math.nextafter(width / channels, math.inf)) if int(channels * m) == width)


def empty_network(config: UNetConfig) -> UNet:
    """The network without storage: nothing is drawn, so no random stream moves; ``fill`` gives it weights."""
    depth = len(config.channel_mult) * config.blocks
    if not 0 < depth <= DEEPEST:
        raise UsageError(f"{len(config.channel_mult)} levels of {config.blocks} blocks are no network")
    with torch.device("meta"):
        return UNet(config)


def fill(net: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Give a network the tensors of ``source``. UsageError where names, shapes or numbers do not fit."""
    difference = misfit(net, state)
    if difference:
        raise UsageError(f"{source} does not fit the network: {difference}")
    bad = not_finite(state)
    if bad:
        raise UsageError(f"{source} holds values that are not finite, first in {bad}; use an earlier snapshot")
    net.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)


def start_from(net: UNet, folder: Path) -> str:
    """Give a network that is told more the weights of a stored one; what it is told beside starts at zero effect.

    Both take the same maps by the same layers; the new one may take more conditioning images and another vector.
    Returns the SHA-256 of the stored weights. UsageError where other layers differ.
    """
    model = load_model(folder)
    other = plain(model.denoiser)
    held, own = other.state_dict(), net.state_dict()
    if net.config.patch != other.config.patch:
        raise UsageError(f"{folder} has patches of {other.config.patch}, not {net.config.patch}")
    more = own[STEM].shape[1] - held[STEM].shape[1]
    if more > 0:  # zeros for the images that the stored network does not know, which come last
        held[STEM] = torch.nn.functional.pad(held[STEM], (0, 0, 0, 0, 0, more))
    if "vector_emb.weight" in own:
        held["vector_emb.weight"] = torch.zeros_like(own["vector_emb.weight"])
    else:
        held.pop("vector_emb.weight", None)
    if difference := misfit(net, held):
        raise UsageError(f"the network cannot start from {folder}: {difference}; give it the same layers")
    net.load_state_dict(held)
    return str(model.config["weights_sha256"])


def misfit(net: nn.Module, state: Mapping[str, Tensor]) -> str | None:
    """How the names and shapes of ``state`` differ from those of a network, in words; None where they are the same."""
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in state.items()}
    missing = [name for name in wanted if name not in found]
    extra = [name for name in found if name not in wanted]
    other = [name for name in wanted if name in found and wanted[name] != found[name]]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of {len(wanted)} tensors missing (first {missing[0]})")
    if extra:
        parts.append(f"{len(extra)} too many (first {extra[0]})")
    if other:
        name = other[0]
        parts.append(f"{len(other)} of another shape (first {name}, {found[name]} for {wanted[name]})")
    return ", ".join(parts) or None


def not_finite(state: Mapping[str, Tensor]) -> str | None:
    """Name of the first tensor with NaN or infinity."""
    return next((name for name, value in state.items() if not bool(torch.isfinite(value).all())), None)


def stored(state: Mapping[str, Tensor], dtype: str, source: str) -> dict[str, Tensor]:
    """Contiguous CPU tensors of one floating type, for safetensors. UsageError where a value is not finite."""
    if dtype not in STORAGE:
        raise UsageError(f"weights cannot be stored as {dtype!r}; use one of {', '.join(STORAGE)}")
    kind = getattr(torch, dtype)
    found = {name: value.detach().to("cpu", kind, copy=True).contiguous() for name, value in state.items()}
    bad = not_finite(found)
    if bad:
        cure = "use an earlier snapshot" if not_finite(state) else f"{dtype} cannot hold them, store as float32"
        raise UsageError(f"{source}: weights are not finite, first in {bad}; {cure}")
    return found


def plain(denoiser: nn.Module) -> UNet:
    """The U-Net in a denoiser, taken out of what compiling or data-parallel training put around it."""
    net = denoiser
    for name in ("net", "_orig_mod", "module", "_orig_mod"):
        net = getattr(net, name, net)
    if not isinstance(net, UNet):
        raise LungwaveError(f"a {type(net).__name__} cannot be stored; model folders hold U-Nets")
    return net


def denoiser_facts(denoiser: Denoiser) -> dict[str, Any]:
    """What makes a denoiser of a network, for config.json."""
    if isinstance(denoiser, Preconditioned):
        return {"kind": denoiser.kind, "sigma_data": denoiser.sigma_data}
    if isinstance(denoiser, Wiener):
        return {"kind": "wiener"}
    if isinstance(denoiser, Discrete):
        return {"kind": "discrete", "predicts": denoiser.predicts, "noising": asdict(denoiser.noising)}
    raise LungwaveError(f"a {type(denoiser).__name__} cannot be stored")


def rebuild_denoiser(
    facts: Mapping[str, Any], net: UNet, spectrum: Tensor | None = None, size: Size | None = None
) -> Denoiser:
    """The denoiser that ``denoiser_facts`` described, around a network; "wiener" needs its ``spectrum``."""
    if facts["kind"] == "wiener":
        shape = (net.config.in_channels, *(size or ()))
        if spectrum is None or spectrum.shape != shape or not bool((spectrum > 0).all() & spectrum.isfinite().all()):
            raise UsageError(f"the spectrum is not one positive number for each of {shape} modes")
        return Wiener(net, spectrum)
    if facts["kind"] in get_args(Kind):
        return Preconditioned(net, facts["kind"], _positive(facts["sigma_data"]))
    if facts["kind"] == "discrete" and facts["predicts"] in ("eps", "x0"):
        kind = Gaussian if "variance" in facts["noising"] else Noising
        return Discrete(net, kind(**facts["noising"]), facts["predicts"])
    raise UsageError(f"denoiser kind {facts['kind']!r} is unknown")


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors of a safetensors file, which holds nothing else. UsageError for a damaged one."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UsageError(f"{path} is damaged ({_reason(error)}); copy the folder again") from None


def _scaling(values: Mapping[str, Any]) -> Scaling:
    mean = values["mean"]
    if isinstance(mean, bool) or not isinstance(mean, (int, float)) or not math.isfinite(mean):
        raise UsageError(f"mean {mean!r} is not a number")
    return Scaling(float(mean), _positive(values["std"]))


def _size(values: Sequence[Any]) -> Size:
    z, x = values
    if type(z) is not int or type(x) is not int or min(z, x) < 1:
        raise UsageError(f"size {values!r} is not two numbers of pixels")
    return z, x


def _positive(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
        raise UsageError(f"{value!r} is not a positive number")
    return float(value)


def _reason(error: BaseException) -> str:
    """First line of what an error says."""
    if isinstance(error, KeyError):
        return f"no {error}"
    return (str(error) or type(error).__name__).splitlines()[0][:200]


def _card(text: str, about: Mapping[str, Any]) -> str:
    network, scaling = about["network"], about["scaling"]
    rows = {
        "maps": f"{about['size'][0]} x {about['size'][1]} pixels, {network['in_channels']} channel(s)",
        "network": f"{about['parameters']:,} parameters, {network['channels']} channels x {network['channel_mult']}",
        "denoiser": json.dumps(about["denoiser"]),
        "scaling": f"fraction = {scaling['mean']:.6g} + {scaling['std']:.6g} / 0.5 x network units",
        "classes": ", ".join(about["classes"]),
        **{name: json.dumps(value) for name, value in about["trained"].items()},
    }
    table = "".join(f"| {name} | {value} |\n" for name, value in rows.items() if value)
    parts = [text.strip(), f"| | |\n|---|---|\n{table}".rstrip(), f"Made by\n\n```\n{about['command']}\n```"]
    if RESEARCH_USE not in text:
        parts.append(RESEARCH_USE)
    return "\n\n".join(parts) + "\n"
