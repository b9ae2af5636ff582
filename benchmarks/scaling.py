"""A whole study end to end, and how its time grows: with cores, cases, lungs, transmits, samples and the map's size.

    python benchmarks/scaling.py [--cases 1000] [--lungs 64] [--samples 16] [--cores 1 2] [--rounds 3] [--steps 3]

End to end are the two commands, start included: tiny cases generated, and reconstructed with posterior samples. Each
curve is the median of rounds; its exponent p, from least squares in log-log, says that the seconds grow like n^p over
the range that is stated. Writes docs/results/scaling.{md,json}. Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungwave.acoustics.forward import Simulator
from lungwave.config import preset
from lungwave.data.generate import generate, received, simulate_case
from lungwave.models.precond import Preconditioned
from lungwave.models.unet import UNet, UNetConfig, describe, fitting_strides
from lungwave.posterior.amortized import PosteriorModel, load_posterior
from lungwave.repro import atomic_path, versions, write_json
from lungwave.sample import generate as draw_maps
from lungwave.shipped import ECHOES, model_folder
from lungwave.training.loop import TrainConfig, Training
from lungwave.training.objective import Denoising
from reconstruct import timed
from train import machine

ROOT = Path(__file__).resolve().parents[1]
MODEL = "posterior-tiny"
SHARD = 2  # cases a file, so that workers share few cases evenly
ANGLES = (0.0, 8.0, -8.0, 4.0, -4.0, 12.0, -12.0, 2.0)  # [deg], as many as there are transmits
TRANSMITS = (1, 2, 4, 8)
SIZES = ((64, 64), (64, 256), (256, 256))
NET = UNetConfig(channels=32, channel_mult=(1, 2, 2), blocks=1, heads=2, patch=(4, 4), attention=(1, 2))  # the shipped
BATCH, CALLS = 4, 8  # maps of a training step and of a draw; calls of the network for each


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The slope of log seconds over log size, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])


def command(words: str, threads: int = 1) -> float:
    """Seconds of a lungwave command, with its start."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    clock = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lungwave", *words.split(), "--quiet"], check=True, env=environment,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    return time.perf_counter() - clock


def end_to_end(options: argparse.Namespace, top: Path) -> list[dict[str, Any]]:
    """Both commands on each number of cores; the lungs are the first of the cases."""
    rows, lungs = [], top / "lungs"
    for cores in options.cores:
        cases = top / f"cases{cores}"
        words = f"generate --preset tiny --seed 4 --noise --shard-size {SHARD} --cases 0:{options.cases}"
        made = command(f"{words} --workers {cores} --out {cases}")
        if not lungs.exists():
            lungs.mkdir()
            for path in sorted(cases.glob("cases_*.h5"))[: options.lungs // SHARD]:
                shutil.copy(path, lungs)
        words = f"reconstruct {lungs} --model {MODEL} --samples {options.samples} --workers {cores}"
        rows.append({"cores": cores, "generate": made, "reconstruct": command(f"{words} --out {top / f'out{cores}'}")})
        print(rows[-1], file=sys.stderr, flush=True)
    return rows


def halvings(most: int, count: int = 4) -> list[int]:
    """``most`` and its halves, smallest first."""
    return sorted({max(most >> k, 1) for k in range(count)})


def medians(rounds: int, work: dict[Any, Callable[[], Any]]) -> dict[Any, float]:
    """Median seconds of each, taken in turns, after one that warms up."""
    taken: dict[Any, list[float]] = {key: [] for key in work}
    for number in range(rounds + 1):
        for key, call in work.items():
            seconds, _ = timed(call)
            if number:
                taken[key].append(seconds)
    return {key: float(np.median(found)) for key, found in taken.items()}


def generated(options: argparse.Namespace, top: Path) -> dict[int, float]:
    """Seconds of the work, without the start of a command, on one core."""
    generate(preset("tiny"), range(1), top / "warm", 1, SHARD, quiet=True)
    counts = halvings(max(options.cases // 4, 4))
    made = {n: generate(preset("tiny"), range(n), top / f"n{n}", 1, SHARD, quiet=True)["seconds"] for n in counts}
    return {n: float(seconds) for n, seconds in made.items()}


def transmitted(options: argparse.Namespace) -> dict[int, float]:
    """Seconds of one case."""
    work = {}
    for count in TRANSMITS:
        config = preset("tiny").override({"sequence.angles": list(ANGLES[:count])})
        simulator = Simulator(config)
        work[count] = lambda c=config, s=simulator: simulate_case(c, 0, s)
    return medians(options.rounds, work)


def posterior(options: argparse.Namespace) -> tuple[dict[int, float], dict[int, float]]:
    """Seconds of a draw over samples of one lung, and over lungs with the samples asked for."""
    model: PosteriorModel = load_posterior(model_folder(Path(MODEL), ECHOES))
    config = replace(model.config, seed=4)
    simulator = Simulator(config)
    rf = received(simulate_case(config, 0, simulator), config, simulator)[None]
    many = {n: np.repeat(rf, n, 0) for n in halvings(options.lungs)}
    samples = medians(options.rounds, {n: lambda n=n: model.draw(rf, n) for n in halvings(4 * options.samples)})
    lungs = medians(1, {n: lambda f=frames: model.draw(f, options.samples) for n, frames in many.items()})
    return samples, lungs


class Smooth:
    """Maps for a training step; the network does not care what they show."""

    digest = "smooth"

    def __init__(self, size: tuple[int, int]) -> None:
        self.maps = torch.randn(BATCH, 1, *size, generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.maps)

    def facts(self) -> dict[str, Any]:
        return {}

    def images(self, rows: np.ndarray, _draws: Any) -> tuple[torch.Tensor, None]:
        return self.maps[rows], None


def learnt(options: argparse.Namespace) -> tuple[dict[int, float], dict[int, float], dict[int, float]]:
    """Seconds of a training step and of a draw over the map's pixels, on one core; of a step over cores."""
    steps, draws, cores = {}, {}, {}
    for size in SIZES:
        strides = fitting_strides(size, len(NET.channel_mult), NET.patch)
        denoiser = Preconditioned(UNet(replace(NET, strides=strides)))
        training = Training(denoiser, Smooth(size), Denoising(), TrainConfig(images=10**9, batch=BATCH))
        pixels = size[0] * size[1]
        steps[pixels] = training.advance
        draws[pixels] = lambda d=denoiser, s=size: draw_maps(d, (1, *s), BATCH, seed=0, sampler="dpmpp_2m", steps=CALLS)
        if size == SIZES[-1]:
            cores = {n: lambda n=n, t=training: (torch.set_num_threads(n), t.advance()) for n in options.cores}
    found = medians(options.steps, steps), medians(options.steps, draws), medians(options.steps, cores)
    torch.set_num_threads(1)
    return found


def curve(title: str, unit: str, seconds: dict[int, float]) -> dict[str, Any]:
    """One row: seconds over sizes, and the exponent."""
    sizes, taken = list(seconds), list(seconds.values())
    p = exponent(sizes, taken) if len(sizes) > 1 else None
    print(title, seconds, p, file=sys.stderr, flush=True)
    return {"title": title, "unit": unit, "sizes": sizes, "seconds": taken, "exponent": p}


def curves(options: argparse.Namespace, top: Path, whole: list[dict[str, Any]]) -> list[dict[str, Any]]:
    samples, lungs = posterior(options)
    print(f"posterior: {samples} {lungs}", file=sys.stderr, flush=True)
    steps, draws, cores = learnt(options)
    over = {key: {row["cores"]: row[key] for row in whole} for key in ("generate", "reconstruct")}
    maps = f"{SIZES[0][0]} x {SIZES[0][1]} to {SIZES[-1][0]} x {SIZES[-1][1]}"
    return [
        curve(f"{options.cases} cases generated, the command", "cores", over["generate"]),
        curve(f"{options.lungs} lungs reconstructed, the command", "cores", over["reconstruct"]),
        curve(f"training step, {BATCH} maps of {SIZES[-1][0]} x {SIZES[-1][1]}", "cores", cores),
        curve("cases generated, one core", "cases", generated(options, top)),
        curve(f"lungs drawn, {options.samples} samples each, one core", "lungs", lungs),
        curve("one case generated, one core", "transmits", transmitted(options)),
        curve("one lung drawn, one core", "samples", samples),
        curve(f"training step, {BATCH} maps of {maps}, one core", "pixels", steps),
        curve(f"{BATCH} maps drawn, {CALLS} calls each, {maps}, one core", "pixels", draws),
    ]


def markdown(result: dict[str, Any]) -> str:
    host, asked, load = result["machine"], result["options"], ""
    if host["load_at_start"] > 0.5:
        load = (
            f"; load {host['load_at_start']} at the start from other work, so two cores were not free: take the "
            "exponents over cores for what they are"
        )
    lines = [
        "# End to end, and how the time grows",
        "",
        f"Made by `{result['command']}` on {host['cpu']}, {host['cores']} cores, {host['system']}{load}. "
        + ", ".join(f"{name} {version}" for name, version in result["versions"].items())
        + ". Full size is the command without options.",
        "",
        f"`lungwave generate` of {asked['cases']} tiny cases (3 transmits) in files of {SHARD}, and `lungwave "
        f"reconstruct` of {asked['lungs']} of them with {asked['samples']} posterior samples each, start included:",
        "",
        "| cores | generate, s | cases an hour | reconstruct, s | lungs an hour |",
        "|---|---|---|---|---|",
    ]
    for row in result["end_to_end"]:
        rates = (3600 * asked[n] / row[key] for n, key in (("cases", "generate"), ("lungs", "reconstruct")))
        first, second = rates
        cells = (f"**{row['generate']:.1f}**", f"{first:.0f}", f"**{row['reconstruct']:.1f}**", f"{second:.0f}")
        lines.append(f"| {row['cores']} | {' | '.join(cells)} |")
    lines += [
        "",
        "## Growth",
        "",
        f"Medians of {asked['rounds']} rounds ({asked['steps']} of steps and draws of maps; cases and lungs once), in "
        "turns. Exponent p: seconds grow like the number to the power of p over the range, by least squares in "
        "log-log: 1 is in proportion, -1 is what cores can give at most. A network of the shipped prior's size "
        f"({result['parameters']:,} parameters).",
        "",
        "| what | over | range | seconds | exponent |",
        "|---|---|---|---|---|",
    ]
    for row in result["curves"]:
        seconds = ", ".join(f"{value:.3g}" for value in row["seconds"])
        p = "" if row["exponent"] is None else f"**{row['exponent']:.2f}**"
        lines.append(f"| {row['title']} | {row['unit']} | {', '.join(map(str, row['sizes']))} | {seconds} | {p} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--lungs", type=int, default=64, help=f"of the cases; a multiple of {SHARD}")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--cores", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="training steps and draws of maps of each size")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results")
    options = parser.parse_args()
    if options.lungs % SHARD or not 0 < options.lungs <= options.cases:
        parser.error(
            f"{options.lungs} lungs of {options.cases} cases; give a multiple of {SHARD}, no more than the cases"
        )
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "command": f"python benchmarks/scaling.py {shlex.join(sys.argv[1:])}".strip(),
        "machine": machine(),
        "versions": versions(),
        "options": {name: getattr(options, name) for name in ("cases", "lungs", "samples", "rounds", "steps")},
        "parameters": describe(NET, SIZES[0])["parameters"],
    }
    with tempfile.TemporaryDirectory() as scratch:
        result["end_to_end"] = end_to_end(options, Path(scratch))
        result["curves"] = curves(options, Path(scratch), result["end_to_end"])
    write_json(options.out / "scaling.json", result)
    with atomic_path(options.out / "scaling.md") as path:
        path.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
