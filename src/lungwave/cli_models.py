"""The verbs of model files: what they hold, other programs' checkpoints as model folders, and back."""

from __future__ import annotations

import json
import math
import shlex
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lungwave.cli_learn import command_of
from lungwave.cli_options import Options, Positional
from lungwave.cli_verbs import output_folder
from lungwave.types import UsageError

if TYPE_CHECKING:
    from lungwave.data.mapset import MapSet
    from lungwave.models.precond import Denoiser

Size = tuple[int, int]
SIGMAS = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)  # noise levels of a check
JUDGED = (0.05, 5.0)  # where a check warns; outside, errors of a sound network grow: little noise, or nothing but noise
FAR = 1.25  # times the bound, or the loss with another setting, that no sound network reaches there
CHECKED = 32  # maps of a check
HEADS = (1, 2, 4, 8)  # that a check tries


class Read(NamedTuple):
    """A network of another program."""

    denoiser: Denoiser
    size: Size | None  # None where nothing says it
    classes: tuple[str, ...]
    assumed: dict[str, Any]  # that nothing says
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class ModelInfo(Options):
    """What a model holds: network, size, cost, and what its file does not say.

    A model folder, the folder of a training, a shipped prior by name, a model*.pt or ema_*.pt of improved-diffusion or
    guided-diffusion, or the folder of a diffusers UNet2DModel.
    """

    path: Positional[Path]
    """The model."""
    size: Size | None = None
    """Rows and columns of the maps, where the file does not say them."""
    flags: str = ""
    """Flags of the original command line of a .pt file, in quotes."""

    def work(self) -> dict[str, Any]:
        """Read it all; write nothing."""
        from lungwave.models.checkpoint import denoiser_facts, load_model, plain
        from lungwave.models.precond import Preconditioned
        from lungwave.models.unet import describe
        from lungwave.shipped import PRIOR, model_folder

        if _is_foreign(self.path):
            found = _read_diffusers(self.path) if self.path.is_dir() else _read_openai(self.path, self.flags)
            denoiser, size, about = found.denoiser, self.size or found.size, {}
            rest = {"classes": list(found.classes), "assumed": found.assumed, "notes": found.notes}
        else:
            if self.flags or self.size:
                raise UsageError(f"{self.path} says its own size and settings; leave out --flags and --size")
            model = load_model(model_folder(self.path, PRIOR))
            denoiser, size, about = model.denoiser, model.size, model.config
            rest = {name: about[name] for name in ("scaling", "classes", "trained", "storage", "command", "created")
                    if about.get(name)}  # fmt: skip
        net = plain(denoiser)
        kind = "lungwave" if about else "diffusers" if self.path.is_dir() else "OpenAI"
        if size is None:
            count = sum(p.numel() for p in net.parameters())
            cost: dict[str, Any] = {"parameters": count, "size": "not said; give --size", "network": asdict(net.config)}
        else:
            cost = describe(net.config, size)
            cost["gmac_per_call"], cost["network"] = cost.pop("gmac"), cost.pop("config")
        facts = denoiser_facts(denoiser)
        if isinstance(denoiser, Preconditioned):
            facts = {"predicts": facts.pop("kind"), **facts}
        return {"kind": kind, **cost, "denoiser": facts, **rest}


@dataclass(frozen=True, kw_only=True)
class ModelImport(Options):
    """Another program's network -> a model folder that every sampler of `lungwave sample` can run.

    A model*.pt or ema_*.pt of improved-diffusion, guided-diffusion or `lungwave legacy`, or the folder of a diffusers
    UNet2DModel. Its maps, 0-1, were shown to it as [-1, 1].
    """

    source: Positional[Path]
    """The .pt file, or the folder."""
    out: Path
    """Folder of the model; new or empty."""
    flags: str = ""
    """Flags of the original command line of a .pt file, in quotes: "--num_heads 4 --diffusion_steps 4000"."""
    size: Size | None = None
    """Rows and columns of the maps; default what the file or lungwave.json beside it says."""
    predicts: Literal["eps", "x0"] | None = None
    """What a diffusers network predicts; default eps."""
    steps: int | None = None
    """Training steps of a diffusers network; default 1000."""
    schedule: Literal["linear", "cosine"] | None = None
    """Noise schedule of a diffusers network; default linear, from 1e-4 to 0.02 in 1000 steps."""
    check: Path | None = None
    """Maps that it should know: prints its denoising loss beside that of a linear denoiser, and warns."""

    def work(self) -> dict[str, Any]:
        """Read, check, write."""
        _fresh(self.out)
        given: dict[str, Any] = {"predicts": self.predicts, "steps": self.steps, "schedule": self.schedule}
        given = {name: value for name, value in given.items() if value is not None}
        if self.source.is_file() or not self.source.exists():
            if given:
                raise UsageError(f"--{next(iter(given))} is for diffusers folders; say it with --flags")
            found = _read_openai(self.source, self.flags)
        elif self.flags:
            raise UsageError(f"--flags is for .pt files, and {self.source} is a folder; use --predicts, --steps ...")
        else:
            found = _read_diffusers(self.source, **given)
        size = self.size or found.size
        if size is None:
            raise UsageError(f"{self.source} does not say the size of its maps; give --size ROWS COLUMNS")
        from lungwave.models.checkpoint import plain, save_model
        from lungwave.models.openai import SCALING
        from lungwave.models.unet import check_size

        config = plain(found.denoiser).config
        check_size(config, size)
        if config.image_channels:
            raise UsageError(f"{self.source} makes images finer; use it with 'lungwave legacy super_res_sample'")
        checked = _checked(found, size, self.check) if self.check is not None else {}
        weights = [self.source] if self.source.is_file() else [item for item in self.source.iterdir() if item.is_file()]
        save_model(
            self.out, found.denoiser, SCALING, size,
            card=f"# {self.source.name}, imported\n\nA network of another program. Not said by it, so assumed: "
            f"{json.dumps(found.assumed)}.",
            command=command_of(self, "model import", (str(self.source),), ("source", "out", "json", "quiet", "check")),
            trained={"source": self.source.name}, classes=found.classes, parents=weights,
        )  # fmt: skip
        return {
            "size": list(size), "assumed": found.assumed, **checked, "notes": found.notes,
            "out": str(self.out), "next": f"lungwave sample {shlex.quote(str(self.out))}",
        }  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelExport(Options):
    """A model folder -> a diffusers UNet2DModel folder, or a plain .pt with OpenAI's names and its flags beside it."""

    model: Positional[Path]
    """Folder of a model, or of the training that made it, or a shipped prior by name."""
    out: Path
    """Folder to write; new or empty."""
    format: Literal["diffusers", "openai"] = "diffusers"
    """For which program."""

    def work(self) -> dict[str, Any]:
        """Read and write."""
        _fresh(self.out)
        from lungwave.models.checkpoint import denoiser_facts, load_model, plain
        from lungwave.shipped import PRIOR, model_folder

        model = load_model(model_folder(self.model, PRIOR))
        net, facts = plain(model.denoiser), denoiser_facts(model.denoiser)
        if self.format == "openai":
            from lungwave.legacy import files

            about = _openai_about(model.denoiser, net.config, model.size)
            files.write_checkpoint(self.out / "model000000.pt", net.state_dict())
            files.write_sidecar(self.out, {**about, "classes": list(model.config["classes"])})
        else:
            from lungwave.models.diffusers_bridge import export_diffusers

            export_diffusers(self.out, net, model.size)
        scaling = asdict(model.scaling)
        return {"format": self.format, "size": list(model.size), "denoiser": facts, "scaling": scaling,
                "out": str(self.out)}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ModelCard(Options):
    """What evaluations found, into the card of a model: README.md of its folder, for whoever gets the model next."""

    model: Positional[Path]
    """Folder of a model, or of the training that made it."""
    results: list[Path]
    """JSON files of `lungwave evaluate`; they replace what the card said before."""

    def work(self) -> dict[str, Any]:
        """Read and write."""
        from lungwave.model_card import write_findings
        from lungwave.shipped import ECHOES, PRIOR, model_folder

        return {"card": str(write_findings(model_folder(self.model, (*PRIOR, *ECHOES)), self.results))}


def _fresh(out: Path) -> None:
    if output_folder(out).is_dir() and any(out.iterdir()):
        raise UsageError(f"--out {out} is not empty; give a new folder")


def _is_foreign(path: Path) -> bool:
    """Whether another program wrote it: a file, or a folder that names a class of diffusers."""
    about = path / "config.json"
    if path.is_file() or path.suffix in (".pt", ".pth"):
        return True
    if (path / "diffusion_pytorch_model.safetensors").is_file():
        return True
    try:
        return about.is_file() and "_class_name" in json.loads(about.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, RecursionError):
        return False  # then the reader of model folders says what is wrong


def _flags(text: str) -> dict[str, Any]:
    """``--name value`` and ``--name=value`` of an original command line."""
    try:
        words = iter(shlex.split(text))
    except ValueError as error:
        raise UsageError(f"--flags {text!r}: {error}; close every quote") from None
    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise UsageError(f"--flags: {word!r} is no flag; write --flags '--num_heads 4 --diffusion_steps 4000'")
        said = value if equals else next(words, None)
        if said is None or said.startswith("--"):
            raise UsageError(f"--flags: {name} has no value; write {name} VALUE")
        found[name.removeprefix("--")] = said
    return found


def _read_openai(path: Path, text: str) -> Read:
    """A .pt file with the flags that are given, and those of the sidecar that `lungwave legacy` wrote beside it."""
    from lungwave.legacy import files
    from lungwave.legacy.network import FIXED
    from lungwave.models import openai
    from lungwave.models.openai_flags import TYPES, parse_flags
    from lungwave.models.unet import UNet

    given = parse_flags(_flags(text))
    sidecar = files.read_sidecar(path) if path.is_file() else {}
    stored: dict[str, Any] = {name: value for name, value in sidecar.get("flags", {}).items() if name in TYPES}
    for name in FIXED:
        if name in given and name in stored and given[name] != stored[name]:
            raise UsageError(
                f"{path}: flag {name}={given[name]} but it was trained with {stored[name]}; leave the flag out"
            )
    denoiser, assumed = openai.openai_denoiser(path, {**stored, "strides": sidecar.get("strides"), **given})
    assert isinstance(denoiser.net, UNet)
    square = given.get("image_size", stored.get("image_size", assumed.get("image_size")))
    size: Size | None = None if square is None else (square, square)
    if "size" in sidecar:
        size = int(sidecar["size"][0]), int(sidecar["size"][1])
    count = denoiser.net.config.classes
    names = tuple(sidecar.get("classes", ()))
    note = openai.average_note(path)
    return Read(
        denoiser,
        size,
        names if len(names) == count else tuple(map(str, range(count))),
        {name: value for name, value in assumed.items() if value not in ("", None, -1)},
        [note] if note else [],
    )


def _read_diffusers(folder: Path, predicts: Literal["eps", "x0"] = "eps", **noising: Any) -> Read:
    from lungwave.models.diffusers_bridge import import_diffusers
    from lungwave.models.gaussian import Gaussian
    from lungwave.models.precond import Discrete

    net, size = import_diffusers(folder)
    learned = net.config.out_channels == 2 * net.config.in_channels
    process = Gaussian(
        **{"steps": 1000, "schedule": "linear", **noising},
        rescale_timesteps=False,
        predicts=predicts,
        variance="learned_range" if learned else "fixed_small",
    )
    assumed = {"predicts": predicts, "steps": process.steps, "schedule": process.schedule}
    return Read(Discrete(net, process, predicts), size, (), assumed, [])


def _checked(found: Read, size: Size, source: Path) -> dict[str, Any]:
    """Denoising loss on one batch of maps over the noise level, beside that of a linear denoiser."""
    import torch

    from lungwave.data.mapset import read_maps
    from lungwave.models.checkpoint import plain
    from lungwave.models.openai import SCALING
    from lungwave.repro import stream
    from lungwave.training.objective import squared_error

    maps = read_maps(source, labels=bool(found.classes))
    channels = plain(found.denoiser).config.in_channels
    if maps.size != size or maps.channels != channels:
        raise UsageError(
            f"--check {source}: maps of {maps.size[0]} x {maps.size[1]} with {maps.channels} channel(s), and the "
            f"model's are {size[0]} x {size[1]} with {channels}; give maps of its kind"
        )
    maps.statistics()  # refuses maps that are all the same
    rng = stream(0, "model-check")
    rows = sorted(rng.permutation(len(maps))[:CHECKED].tolist())
    clean = SCALING.to_network(torch.from_numpy(maps.fraction(rows)))
    noise = torch.from_numpy(rng.standard_normal(clean.shape)).float()
    cond = _labels(found, maps.subset(rows), source)
    variance = float(clean.var())

    def curve(denoiser: Denoiser, sigmas: tuple[float, ...]) -> list[float]:
        with torch.no_grad():
            levels = [torch.full((len(rows),), sigma) for sigma in sigmas]
            return [float(squared_error(denoiser, clean, noise, level, cond).mean()) for level in levels]

    # The best c x + d for values of this variance errs by v s^2 / (v + s^2) (Wiener).
    bounds = [variance * sigma**2 / (variance + sigma**2) for sigma in SIGMAS]
    table = [
        {"sigma": sigma, "loss": loss, "linear": bound, "ratio": loss / bound}
        for sigma, loss, bound in zip(SIGMAS, curve(found.denoiser, SIGMAS), bounds, strict=True)
    ]
    judged = {row["sigma"]: row["ratio"] for row in table if JUDGED[0] <= row["sigma"] <= JUDGED[1]}
    worst = max(judged, key=lambda sigma: judged[sigma])
    wrong = []
    if judged[worst] > FAR:
        wrong.append(f"at sigma {worst:g} the loss is {judged[worst]:.3g} times that of a linear denoiser")
    own = curve(found.denoiser, tuple(judged))
    for name, other in _others(found.denoiser):
        pairs = zip(own, curve(other, tuple(judged)), strict=True)
        lower = math.exp(statistics.fmean(math.log(a / b) for a, b in pairs))
        if lower > FAR:
            wrong.append(f"with {name} it is {lower:.3g} times lower")
    if not wrong:
        return {"check": table, "verdict": f"passed: at most {judged[worst]:.2g} times a linear denoiser's loss"}
    cure = "heads, steps, schedule, rescale_timesteps or prediction may be wrong, or it does not know such maps"
    return {"check": table, "verdict": f"WARNING: {'; '.join(wrong)}; {cure}"}


def _others(denoiser: Denoiser) -> Iterator[tuple[str, Denoiser]]:
    """The same weights with what no file says changed: one flag each."""
    from lungwave.models.checkpoint import empty_network, fill, plain
    from lungwave.models.precond import Discrete

    assert isinstance(denoiser, Discrete)
    net, noising = plain(denoiser), denoiser.noising
    other = not noising.rescale_timesteps
    if noising.steps != 1000:  # else it changes nothing
        yield f"rescale_timesteps={other}", Discrete(net, replace(noising, rescale_timesteps=other), denoiser.predicts)
    if net.config.head_channels or net.config.heads_upsample:
        return
    for heads in HEADS:
        if heads != net.config.heads and net.config.channels % heads == 0:
            again = empty_network(replace(net.config, heads=heads))
            fill(again, net.state_dict(), "the model")
            yield f"num_heads={heads}", Discrete(again.eval(), noising, denoiser.predicts)


def _labels(found: Read, maps: MapSet, source: Path) -> Any:
    if not found.classes:
        return None
    import torch

    from lungwave.models.unet import Condition

    names = [maps.classes[number] if number >= 0 else "" for number in maps.labels.tolist()]
    strange = next((name for name in names if name not in found.classes), None)
    if strange is not None:
        known = ", ".join(found.classes[:8])
        raise UsageError(f"--check {source}: the class of a map is {strange!r}, and the model knows {known}")
    return Condition(label=torch.tensor([found.classes.index(name) for name in names]))


def _openai_about(denoiser: Denoiser, config: Any, size: Size) -> dict[str, Any]:
    """What a plain .pt file leaves out, as `lungwave legacy` reads it. UsageError where no flag can say it."""
    from lungwave.models.openai_flags import GUIDED_ONLY, MULTIPLIERS, openai_flags
    from lungwave.models.precond import Discrete

    if not isinstance(denoiser, Discrete):
        raise UsageError("OpenAI's programs know discrete steps only; this model has continuous noise levels")
    square = next((s for s, mult in MULTIPLIERS.items() if mult == config.channel_mult), 2 ** len(config.channel_mult))
    flags, process = openai_flags(config, square), denoiser.noising
    beyond = next((name for name in GUIDED_ONLY if name in flags), None)
    if beyond is not None:
        raise UsageError(f"improved-diffusion does not know {beyond}, which this network needs")
    strides = flags.pop("strides", "")
    flags |= {
        "diffusion_steps": process.steps,
        "noise_schedule": process.schedule,
        "timestep_respacing": process.respacing,
        "rescale_timesteps": process.rescale_timesteps,
        "predict_xstart": denoiser.predicts == "x0",
        "sigma_small": getattr(process, "variance", "") == "fixed_small",
    }
    return {"flags": flags, "size": list(size), "channels": config.in_channels, "strides": strides}
