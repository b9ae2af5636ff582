"""The work behind the page: an order in; facts, arrays and a report out. Runs in the worker process."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording
from lungwave.config import preset
from lungwave.data.generate import received, simulate_case
from lungwave.models.checkpoint import load_model
from lungwave.phantom.anatomy import rasterise
from lungwave.phantom.severity import case_of_severity, one_chest
from lungwave.posterior.amortized import PosteriorModel
from lungwave.posterior.reconstruct import AnyModel, load_any_model, reconstruct
from lungwave.posterior.summary import Reconstruction
from lungwave.prior.draw import draw_maps, morph
from lungwave.report import write_report
from lungwave.repro import manifest, sha256
from lungwave.runs import read_frames, reconstruct_frames
from lungwave.sample import Step
from lungwave.shipped import PRIOR, model_folder
from lungwave.types import MM, Field, UsageError
from lungwave.viewer import payload
from lungwave.viewer.orders import FileOrder, MorphOrder, PhantomOrder, PriorOrder
from lungwave.viewer.payload import Arrays

Say: TypeAlias = Callable[[str, float], None]  # phase, share of the job that is done
PRIOR_MODEL = "prior-tiny"
# Where each phase of a reconstruction ends, of a tiny case on one core: reading, sampling; the report is the rest.
READ, DRAWN, SAMPLED = 0.1, 0.35, 0.8


@dataclass(frozen=True)
class Outcome:
    """What a job made."""

    facts: dict[str, Any]
    arrays: Arrays
    report: Callable[[Path], object] | None = None  # writes it, a second or so


@dataclass(frozen=True)
class Upload:
    """A file that a browser sent, or that the command line named."""

    path: Path
    name: str  # as its owner calls it, for eyes only
    erase: bool  # as soon as it is read


@cache
def model_of(folder: Path) -> AnyModel:
    """A reconstructor, read once."""
    return load_any_model(folder)


def from_file(
    order: FileOrder, model: Path, upload: Upload, most: int, say: Say, was_read: Callable[[], None]
) -> Outcome:
    """Reconstruct the first frames of a file; ``was_read`` is called once nothing of it is needed any more."""
    say("reading the file", 0.0)
    digest = sha256(upload.path)
    try:
        recording, cases, names = read_frames(upload.path, most=most)
    except UsageError as error:
        raise UsageError(_renamed(str(error), upload)) from None
    finally:
        if upload.erase:
            upload.path.unlink(missing_ok=True)
    was_read()
    names = [_renamed(name, upload) for name in names]
    results = reconstruct_frames(
        recording, cases, names, model_of(model), order.samples, order.seed, **_how(order, say, READ, len(names))
    )
    about = {"input": {upload.name: digest}}
    facts = {"title": upload.name, "frames": [], "note": _more(names)}
    return _outcome(facts, results, recording, order, model, about)


def from_phantom(order: PhantomOrder, model: Path, say: Say) -> Outcome:
    """Draw a lung, send sound through it, reconstruct what came back."""
    say("drawing a lung and sending sound through it", 0.0)
    config = one_chest(preset("tiny").override({"seed": order.seed, "receive.snr_db": order.snr_db}), order.category)
    index = case_of_severity(config, order.severity)
    simulator = _simulator()
    case = simulate_case(config, index, simulator)
    recording = Recording(received(case, config, simulator)[None], simulator.scan, f"lungwave {config.preset}")
    results = reconstruct(
        recording, model_of(model), names=[f"{order.category}, simulated"], truths=[case.truth],
        categories=[order.category], samples=order.samples, seed=order.seed, **_how(order, say, DRAWN, 1),
    )  # fmt: skip
    facts: dict[str, Any] = {"title": f"{order.category.capitalize()} lung, simulated", "frames": [], "note": ""}
    medium = rasterise(case.anatomy, config.grid.spacing, config.grid.depth, simulator.medium_width)
    place, arrays = payload.of_medium(medium)
    facts["medium"] = place
    about = {"phantom": {"category": order.category, "severity": order.severity, "case": index}}
    done = _outcome(facts, results, recording, order, model, about)
    done.arrays.update(arrays)
    return done


def from_prior(order: PriorOrder, say: Say) -> Outcome:
    """Lungs that the prior draws without any echo."""
    say("drawing lungs", 0.0)
    model = _prior()
    maps = draw_maps(
        model, order.count, seed=order.seed, first=order.first, sampler=order.sampler, steps=order.steps,
        callback=_steps(say, order.steps, 1, 0.0, 1.0, "drawing lungs"),
    )  # fmt: skip
    return _maps_outcome(maps, {"first": order.first, "seed": order.seed})


def from_morph(order: MorphOrder, say: Say) -> Outcome:
    """The way from one lung of the prior to another."""
    say("morphing", 0.0)
    maps = morph(
        _prior(), order.start, order.end, order.frames, seed=order.seed, sampler=order.sampler, steps=order.steps,
        callback=_steps(say, order.steps, 1, 0.0, 1.0, "morphing"),
    )  # fmt: skip
    return _maps_outcome(maps, {"start": order.start, "end": order.end, "seed": order.seed})


def _outcome(
    facts: dict[str, Any], results: list[Reconstruction], recording: Recording, order: FileOrder, model: Path,
    about: Mapping[str, Any],
) -> Outcome:  # fmt: skip
    """Facts and arrays of every frame, names of whose arrays begin with its number."""
    arrays: Arrays = {}
    for number, result in enumerate(results):
        said, held = payload.of_result(result)
        wave, traces = payload.of_rf(recording, number)
        facts["frames"].append({**said, "rf": wave})
        arrays |= {f"{number}/{name}": array for name, array in {**held, **traces}.items()}
    used = model_of(model)
    calls = results[0].manifest.get("calls")
    facts |= {"model": model.name, "samples": order.samples if isinstance(used, PosteriorModel) else 0, "calls": calls}
    facts |= {"sampler": order.sampler, "seed": order.seed, **payload.scales()}

    def report(path: Path) -> None:
        settings = {"model": model.name, "samples": order.samples, "sampler": order.sampler, "steps": order.steps}
        traced = manifest(
            used.config.to_json(), order.seed, command="lungwave view", **about, settings=settings, model=used.trained
        )
        write_report(results, path, title=f"Reconstruction of {facts['title']}", manifest=traced)

    return Outcome(facts, arrays, report)


def _maps_outcome(maps: Field | np.ndarray, facts: dict[str, Any]) -> Outcome:
    pixel = preset("tiny").map.pixel
    rows, columns = maps.shape[1:]
    about = {
        "map": {"z0": pixel / 2 / MM, "dz": pixel / MM, "nz": rows,
                "x0": -(columns - 1) / 2 * pixel / MM, "dx": pixel / MM, "nx": columns},
        "aeration": [round(float(a), 6) for a in maps.mean((1, 2))],
        "model": PRIOR_MODEL,
    }  # fmt: skip
    return Outcome({**facts, **about, **payload.scales()}, {"maps": maps})


def _how(order: FileOrder, say: Say, begin: float, frames: int) -> dict[str, Any]:
    """How a posterior model draws, and how its steps are told."""
    tell = _steps(say, order.steps, frames, begin, SAMPLED, "drawing samples")
    return {"sampler": order.sampler, "steps": order.steps, "callback": tell}


def _steps(say: Say, steps: int, frames: int, begin: float, end: float, phase: str) -> Callable[[Step], None]:
    """Turns the steps of a sampler, frame after frame, into shares of the job between ``begin`` and ``end``."""
    seen = 0

    def tell(step: Step) -> None:
        nonlocal seen
        seen += 1
        say(phase, begin + (end - begin) * min(1.0, seen / (steps * frames)))

    return tell


@cache
def _simulator() -> Simulator:
    """Of the tiny preset, with its tables; seed and noise do not matter to it."""
    return Simulator(preset("tiny"))


@cache
def _prior() -> Any:
    return load_model(model_folder(Path(PRIOR_MODEL), PRIOR))


def _more(names: list[str]) -> str:
    """What is said where a file holds more frames than are shown."""
    total = int(names[0].rsplit(" ", 1)[-1])
    shown = len(names)
    return "" if shown == total else f"The first {shown} of {total} frames; 'lungwave reconstruct --frames' does all."


def _renamed(message: str, upload: Upload) -> str:
    """A message that names the file as its owner does, and no folder of this machine."""
    return re.sub(f"{re.escape(str(upload.path))}|{re.escape(upload.path.name)}", lambda _: upload.name, message)


def warm(model: Path) -> None:
    """Do once what every first job would wait for."""
    model_of(model)
    _simulator()


def write(outcome: Outcome, folder: Path) -> None:
    """Leave ``result.json`` and ``arrays.bin`` in the job's folder."""
    index, content = payload.pack(outcome.arrays)
    (folder / "arrays.bin").write_bytes(content)
    text = json.dumps({**outcome.facts, "arrays": index}, allow_nan=False)
    (folder / "result.json").write_text(text, encoding="utf-8")
