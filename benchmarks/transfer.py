"""No inverse crime: models judged on echoes that were not made the way their training echoes were.

    python benchmarks/transfer.py --model FOLDER [--model ridge-tiny] [--cases 60] [--snr 20] [--samples 39]

The same lungs, of a seed that no training saw, are simulated

* as trained: the solver, grid and chest wall of the training;
* on a grid twice as fine, in space and time;
* under another chest wall: scatterers half as large again and up to twice as strong, thicker and more strands;
* in tissue that carries sound 2 % faster, or slower, than the scanner believes;
* by the independent solver of tests/reference_fdtd.py, which shares no code with lungwave, and without attenuation.

Every frame gets noise of its own, and every model sees the same frames. Truths are those of the anatomy, the same in
each row but under the other wall. Rerun to resume. Writes docs/results/transfer.md and .json.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from lungwave.acoustics.forward import Simulator
from lungwave.acoustics.probe import Recording, sequence
from lungwave.comparison import Comparison, judged
from lungwave.config import Config, preset
from lungwave.data.generate import Case, case_table, shard_path, shards
from lungwave.data.hdf5 import write_recording
from lungwave.evaluate.cases import Measured, to_json
from lungwave.evaluate.reconstruction import CRPS_MAP, CRPS_WHOLE, LEVEL, MAP, PIXEL, Judged
from lungwave.evaluate.scores import paired_difference
from lungwave.phantom.aeration import truth, truth_spacing
from lungwave.phantom.anatomy import draw, rasterise
from lungwave.progress import Progress
from lungwave.repro import atomic_path, provenance, versions, write_json
from lungwave.types import MM, RESEARCH_USE, UM, Channels

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(Path(__file__).resolve().parent))
from crosscheck import independent_event  # noqa: E402

SHARD = 10
WALL = {
    "wall.texture": 75 * UM,
    "wall.scatter": (0.035, 0.07),
    "wall.fat_strands": (0.30, 0.45),
    "wall.muscle_strands": (0.25, 0.40),
    "wall.strand": (0.10 * MM, 0.25 * MM),
}
OFF = 0.02  # of the sound speed
AS_TRAINED = "as trained"


def fine(config: Config) -> Config:
    """Cells half as wide, steps half as long."""
    grid = config.grid
    return config.override(
        {"grid.spacing": grid.spacing / 2, "grid.time_step": grid.time_step / 2, "grid.steps": 2 * grid.steps}
    )


def by_lungwave(config: Config, index: int, simulated: Config, speed: float = 1.0) -> Case:
    """Lung ``index`` of ``config`` on the grid of ``simulated``, all sound speeds times ``speed``."""
    simulator = simulator_of(simulated)
    anatomy = draw(config, index)
    medium = rasterise(anatomy, simulated.grid.spacing, simulated.grid.depth, simulator.medium_width)
    medium = replace(medium, sound_speed=speed * medium.sound_speed)
    with torch.no_grad():
        rf = simulator.channels(medium)[0].numpy()
    return Case(index, anatomy, truth(anatomy, config.map, truth_spacing(config)), rf.astype(np.float32))


def independently(config: Config, index: int) -> Case:
    """The same lung by the independent solver."""
    anatomy = draw(config, index)
    lossless = config.override({"grid.attenuation": False})
    rf: Channels = np.stack([independent_event(lossless, anatomy, k) for k in range(sequence(config).transmits)])
    return Case(index, anatomy, truth(anatomy, config.map, truth_spacing(config)), rf.astype(np.float32))


_SIMULATORS: dict[str, Simulator] = {}


def simulator_of(config: Config) -> Simulator:
    return _SIMULATORS.setdefault(config.digest(), Simulator(config))


def ways(config: Config) -> dict[str, tuple[Config, Callable[[int], Case]]]:
    """Configuration of the lungs, and how a lung becomes echoes."""
    other = config.override(WALL)
    # a wider range of speeds than is drawn, so that the solver takes a step that is stable for tissue faster by OFF
    grid, steps = config.grid, 1250
    step = grid.steps * grid.time_step / steps
    wide = config.override(
        {"wall.jitter": (0.03, *config.wall.jitter[1:]), "grid.steps": steps, "grid.time_step": step}
    )
    return {
        AS_TRAINED: (config, lambda k: by_lungwave(config, k, config)),
        "grid twice as fine": (config, lambda k: by_lungwave(config, k, fine(config))),
        "another chest wall": (other, lambda k: by_lungwave(other, k, other)),
        f"sound {OFF:.0%} faster": (config, lambda k: by_lungwave(config, k, wide, 1 + OFF)),
        f"sound {OFF:.0%} slower": (config, lambda k: by_lungwave(config, k, wide, 1 - OFF)),
        "independent solver": (config, lambda k: independently(config, k)),
    }


def folder_of(work: Path, way: str) -> Path:
    return work / way.replace(" ", "-").replace("%", "pc")


def build(config: Config, simulate: Callable[[int], Case], cases: range, out: Path, progress: Progress) -> None:
    """A folder as ``lungwave generate`` writes it; shards that are there are kept."""
    write_json(out / "config.json", {"config": json.loads(config.to_json()), "noise": False})
    for part in shards(cases, SHARD):
        path = shard_path(out, part)
        if not path.exists():
            found = [simulate(index) for index in part]
            recording = Recording(np.stack([case.rf for case in found]), sequence(config), "transfer", "simulated RF")
            write_recording(
                path, recording, cases=case_table(found), provenance=provenance(config.to_json(), config.seed)
            )
        progress.advance(len(part))


def results(args: argparse.Namespace, config: Config) -> Iterator[tuple[str, Judged, Measured | None]]:
    """(way, method, relative change of its CRPS of the map against "as trained")."""
    usual: dict[str, Judged] = {}
    for name in ways(config):
        folder = folder_of(args.work, name)
        comparison = Comparison(
            folder, tuple(args.model), (args.snr,), args.samples, args.work / "judged" / folder.name, None, 0
        )
        for found in judged(comparison)[0]:
            if name == AS_TRAINED:
                usual[found.method] = found
            before = usual[found.method].case_scores[CRPS_MAP]
            worse = paired_difference(found.case_scores[CRPS_MAP], before, 0)
            yield name, found, None if name == AS_TRAINED else worse


def said(value: Measured | None, form: str = ".3f") -> str:
    return "-" if value is None else f"{value.value:{form}} ({value.low:{form}} to {value.high:{form}})"


def covered(found: Judged, what: str) -> Measured | None:
    return next((c.inside for c in found.coverage.get(what, ()) if c.level == LEVEL), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", required=True)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--seed", type=int, default=3)
    parser.add_argument("--snr", type=float, default=20.0)
    parser.add_argument("--samples", type=int, default=39)
    parser.add_argument("--work", type=Path, default=Path("data/transfer"))
    parser.add_argument("--build-only", action="store_true", help="simulate, judge later")
    args = parser.parse_args()
    torch.set_num_threads(1)
    config = preset("tiny").override({"seed": args.seed})
    made = ways(config)
    with Progress(len(made) * args.cases, "simulate") as progress:
        for name, (lungs, simulate) in made.items():
            folder = folder_of(args.work, name)
            build(lungs, simulate, range(args.cases), folder, progress)
    if args.build_only:
        return
    rows, about = [], []
    for name, found, worse in results(args, config):
        whole = found.outs[-1]
        rows.append(
            f"| {name} | {found.method} | {said(found.scores[whole])} | {said(found.scores[MAP])} | "
            f"{said(found.scores[CRPS_WHOLE])} | {said(covered(found, whole))} | {said(covered(found, PIXEL))} | "
            f"{found.out_of_range.value:.0%} | {'-' if worse is None else said(neg(worse), '+.0%')} |"
        )
        about.append(
            {"echoes": name, "change_of_crps": None if worse is None else to_json(neg(worse)), **found.to_json()}
        )
    text = (
        "# Echoes made another way than the training's\n\n"
        f"{args.cases} lungs of seed {args.seed}, on which no model was trained, at {args.snr:g} dB, {args.samples} "
        "samples a case; in brackets 95 % bootstrap intervals over lungs. Unlike: share of the frames that the model "
        f"itself calls unlike its training, judged all the same. {RESEARCH_USE}\n\n"
        "| echoes | method | percent aeration, error | map, error | CRPS, percent | 90 % interval holds percent | "
        "pixels | unlike | CRPS of the map against as trained |\n|---|---|---|---|---|---|---|---|---|\n"
        + "\n".join(rows)
        + "\n\nMade by `python benchmarks/transfer.py "
        + " ".join(f"--model {name}" for name in args.model)
        + f" --cases {args.cases} --snr {args.snr:g} --samples {args.samples}`.\n"
    )
    print(text)
    out = ROOT / "docs" / "results"
    with atomic_path(out / "transfer.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(out / "transfer.json", {"cases": args.cases, "snr_db": args.snr, "rows": about, "versions": versions()})


def neg(value: Measured) -> Measured:
    """An improvement as a change of the error."""
    return Measured(-value.value, -value.high, -value.low)


if __name__ == "__main__":
    main()
