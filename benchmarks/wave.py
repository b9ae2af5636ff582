"""Speed of the wave solver beside its bare propagator, two other libraries, and what this machine can do at most.

    python benchmarks/wave.py [--presets micro tiny paper] [--threads 1 2] [--repeats 5] [--paper-event]
                              [--peer-python PYTHON kwave] [--peer-python PYTHON jwave] [--cases 40] [--quick]

Writes docs/results/wave_speed.md and .json. Times are medians of repeats after a warm-up. Run it on an idle machine: a
load above 0.5 at the start is written into the table.

A cell update is one cell (absorbing layer included) advanced by one step of one shot. The *bare* call is deepwave with
exactly the arguments that lungwave hands it, recorded on their way. The ceiling is the smaller of two measured rates:
memory (triad over arrays of the same total size / 48 B, twelve array touches per update) and compute (matrix product /
51 flop, order 8).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepwave
import torch

from lungwave.acoustics.forward import BACKING_ROWS, Simulator
from lungwave.acoustics.probe import Recording
from lungwave.config import Config, preset
from lungwave.data.generate import generate, received, simulate_case
from lungwave.phantom.aeration import truth, truth_spacing
from lungwave.phantom.anatomy import draw, rasterise
from lungwave.repro import atomic_path, versions, write_json

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).parent / "peers"
TOUCHES, FLOP = 12, 51  # per lossless cell update at order 8: p, v, stiffness, buoyancies and layer; stencil arithmetic
ARRAYS = 8  # single-precision fields of the grid that one step walks through
SHORT_STEPS = {"micro": 595, "tiny": 1195, "paper": 240}
CASES = {"micro": 8, "tiny": 2, "paper": 1}  # of one batch: 8, 6 and 1 shots
PEER_STEPS = {"micro": 595, "tiny": 240, "paper": 6}


def seconds(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Median and range of the time of ``call`` [s], after one unmeasured call."""
    call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return {"median": statistics.median(times), "least": min(times), "most": max(times)}


def recorded_calls(run: Callable[[], Any]) -> list[tuple[Callable, tuple, dict]]:
    """The propagator calls that ``run`` makes, with their arguments."""
    calls: list[tuple[Callable, tuple, dict]] = []
    originals = {name: getattr(deepwave, name) for name in ("acoustic", "viscoacoustic")}

    def spy(original: Callable) -> Callable:
        def wrapped(*args: Any, **options: Any) -> Any:
            calls.append((original, args, options))
            return original(*args, **options)

        return wrapped

    for name, original in originals.items():
        setattr(deepwave, name, spy(original))
    try:
        run()
    finally:
        for name, original in originals.items():
            setattr(deepwave, name, original)
    return calls


def bare_forward(calls: list) -> None:
    with torch.no_grad():
        for propagator, args, options in calls:
            propagator(*args, **options)


def bare_gradient(calls: list) -> None:
    for propagator, args, options in calls:
        leaves = [
            a.detach().clone().requires_grad_() if torch.is_tensor(a) and a.is_floating_point() else a for a in args
        ]
        propagator(*leaves, **options).receiver_amplitudes_p.square().sum().backward()


def shape_of(config: Config, simulator: Simulator) -> tuple[int, int]:
    backing = BACKING_ROWS if config.probe.face_reflection else 0
    return simulator.rows + backing, simulator.columns


def solver_rows(config: Config, threads: int, repeats: int, cases: int) -> list[dict[str, Any]]:
    """Forward and forward + gradient, lungwave and bare, batched and one by one."""
    torch.set_num_threads(threads)
    rows = []
    events = [0] if config.preset == "paper" else None
    for attenuation in (False, True):
        chosen = config.override({"grid.attenuation": attenuation})
        for batched in (True, False) if config.preset != "paper" else (True,):
            simulator = Simulator(chosen, shots_per_call=48 if batched else 1)
            grid = chosen.grid
            media = [rasterise(draw(chosen, i), grid.spacing, grid.depth, simulator.medium_width) for i in range(cases)]
            fields = simulator.stack(media)

            def forward(simulator: Simulator = simulator, fields: Any = fields) -> torch.Tensor:
                with torch.no_grad():
                    return simulator.channels(fields, events)

            def gradient(simulator: Simulator = simulator, fields: Any = fields) -> None:
                leaves = fields.map(lambda f: f.detach().clone().requires_grad_())
                simulator.channels(leaves, events).square().sum().backward()

            before = simulator.cost.cell_updates
            calls = recorded_calls(forward)
            updates = simulator.cost.cell_updates - before
            measured = {
                ("lungwave", "forward"): forward,
                ("bare deepwave", "forward"): lambda calls=calls: bare_forward(calls),
                ("lungwave", "forward + gradient"): gradient,
                ("bare deepwave", "forward + gradient"): lambda calls=calls: bare_gradient(calls),
            }
            shots = simulator.cost.forward // max(1, round(simulator.cost.cell_updates / updates))
            for (who, what), call in measured.items():
                spent = seconds(call, repeats)
                rows.append(
                    {
                        "preset": chosen.preset,
                        "threads": threads,
                        "attenuation": attenuation,
                        "shots": shots,
                        "batched": batched,
                        "solver": who,
                        "what": what,
                        "steps": chosen.grid.steps,
                        "seconds": spent,
                        "updates_per_second": updates / spent["median"],
                    }
                )
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def ceiling(config: Config, threads: int) -> dict[str, float]:
    """Triad bandwidth [B/s] over the grid's footprint, matrix-product rate [flop/s], and the update rate they allow."""
    torch.set_num_threads(threads)
    rows, columns = shape_of(config, Simulator(config))
    cells = (rows + 2 * config.grid.pml_cells) * (columns + 2 * config.grid.pml_cells)
    count = max(cells * ARRAYS // 3, 4096)
    a, b, c = (torch.rand(count) for _ in range(3))
    loops = max(1, 20_000_000 // count)

    def triad() -> None:
        for _ in range(loops):
            torch.add(b, c, alpha=1.5, out=a)

    bandwidth = 12 * count * loops / seconds(triad, 7)["least"]
    size = 1536
    one, other = torch.rand(size, size), torch.rand(size, size)
    flops = 2 * size**3 / seconds(lambda: torch.mm(one, other), 5)["least"]
    return {
        "footprint_bytes": float(12 * count),
        "bandwidth": bandwidth,
        "flops": flops,
        "updates_per_second": min(bandwidth / (4 * TOUCHES), flops / FLOP),
        "bound": "memory" if bandwidth / (4 * TOUCHES) < flops / FLOP else "compute",
    }


def stages(config: Config, repeats: int) -> dict[str, Any]:
    """Where the time of one case goes on one thread: lung, truth, propagator, the rest of the forward model, noise."""
    torch.set_num_threads(1)
    simulator = Simulator(config)
    anatomy = draw(config, 0)
    grid = config.grid
    medium = rasterise(anatomy, grid.spacing, grid.depth, simulator.medium_width)

    def forward() -> torch.Tensor:
        with torch.no_grad():
            return simulator.channels(medium)

    calls = recorded_calls(forward)
    case = simulate_case(config, 0, simulator)
    measured = {
        "draw the lung": lambda: draw(config, 0),
        "rasterise": lambda: rasterise(anatomy, grid.spacing, grid.depth, simulator.medium_width),
        "true aeration maps": lambda: truth(anatomy, config.map, truth_spacing(config)),
        "propagator (bare)": lambda: bare_forward(calls),
        "forward model (propagator included)": forward,
        "noise": lambda: received(case, config, simulator),
        "check the recording": lambda: Recording(case.rf[None], simulator.scan).validate(),
    }
    spent = {name: seconds(call, repeats)["median"] for name, call in measured.items()}
    around = sum(spent.values()) - 2 * spent["propagator (bare)"]
    return {"preset": config.preset, "seconds": spent, "around_share": around / spent["propagator (bare)"]}


def bulk(config: Config, cases: int, workers: int) -> dict[str, Any]:
    """``generate``: cases per second with files, and what 1000 cases would take."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        generate(
            config, range(cases), Path(folder), workers=workers, shard_size=max(1, cases // (2 * workers)), quiet=True
        )
        spent = time.perf_counter() - start
    return {
        "preset": config.preset,
        "cases": cases,
        "workers": workers,
        "seconds": spent,
        "per_case": spent / cases,
        "thousand_minutes": spent / cases * 1000 / 60,
    }


def peer_row(name: str, python: str, config: Config, threads: int, repeats: int, quick: bool) -> dict[str, Any]:
    """Time a peer in its own interpreter, pinned to ``threads`` cores; a failure is a row that says why."""
    rows, columns = shape_of(config, Simulator(config))
    steps = max(4, PEER_STEPS[config.preset] // (10 if quick else 1))
    problem = {
        "shape": [rows, columns],
        "steps": steps,
        "pml_cells": config.grid.pml_cells,
        "spacing": config.grid.spacing,
        "time_step": config.grid.time_step,
        "repeats": repeats,
        "gradient": config.preset != "paper",
    }
    environment = {
        **{k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        **{k: str(threads) for k in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")},
    }
    pin = f"import os,runpy,sys; hasattr(os,'sched_setaffinity') and os.sched_setaffinity(0,range({threads})); "
    pin += "runpy.run_path(sys.argv[1], run_name='__main__')"
    row: dict[str, Any] = {"preset": config.preset, "threads": threads, "solver": name, "steps": steps}
    try:
        run = subprocess.run(
            [python, "-c", pin, str(PEERS / f"{name}_speed.py")],
            input=json.dumps(problem),
            capture_output=True,
            text=True,
            timeout=900,
            env=environment,
            cwd=tempfile.gettempdir(),
        )
        answer = json.loads(run.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, IndexError, json.JSONDecodeError) as error:
        return {**row, "failed": f"{type(error).__name__}: {error}".replace(python, "PYTHON")}
    cells = (rows + 2 * config.grid.pml_cells) * (columns + 2 * config.grid.pml_cells)
    row |= {"version": answer["version"], "what": answer["what"], "finite": answer["finite"]}
    for kind in ("forward", "gradient"):
        if kind in answer:
            row[kind] = cells * steps / statistics.median(answer[kind])
    return row


def machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags"))
        model += ", AVX-512" if "avx512f" in flags else ", AVX2" if "avx2" in flags else ""
    except (OSError, StopIteration):
        pass
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return {"cpu": model, "cores": os.cpu_count(), "system": platform.system(), "load_at_start": round(load, 2)}


# --- writing --------------------------------------------------------------------------------------------------------


def mega(rate: float) -> str:
    return f"{rate / 1e6:,.0f}"


def markdown(result: dict[str, Any]) -> str:
    host = result["machine"]
    lines = [
        "# Speed of the wave solver",
        "",
        f"`{result['command']}`",
        "",
        f"{host['cpu']}, {host['cores']} cores, {host['system']}; load at the start {host['load_at_start']}. "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + ". Medians of "
        + f"{result['repeats']} runs, in million cell updates per second (absorbing layer included), order 8, float32. "
        "Paper: one event, 240 steps. *Overhead* is what lungwave adds to the bare propagator.",
        "",
        "| preset | threads | loss | shots | | bare forward | lungwave forward | overhead | bare + gradient "
        "| lungwave + gradient | overhead | share of the ceiling, forward |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    found = {
        (r["preset"], r["threads"], r["attenuation"], r["batched"], r["solver"], r["what"]): r for r in result["solver"]
    }
    for key in dict.fromkeys(k[:4] for k in found):
        cells = {(who, what): found[(*key, who, what)] for who, what in {k[4:] for k in found if k[:4] == key}}
        rate = {k: mega(v["updates_per_second"]) for k, v in cells.items()}
        time_of = {k: v["seconds"]["median"] for k, v in cells.items()}
        add = {w: time_of["lungwave", w] / time_of["bare deepwave", w] - 1 for w in ("forward", "forward + gradient")}
        top = result["ceiling"][f"{key[0]}, {key[1]}"]
        share = cells["lungwave", "forward"]["updates_per_second"] / top["updates_per_second"]
        bare, ours = (
            [rate[who, what] for what in ("forward", "forward + gradient")] for who in ("bare deepwave", "lungwave")
        )
        lines.append(
            f"| {key[0]} | {key[1]} | {'yes' if key[2] else 'no'} | {cells['lungwave', 'forward']['shots']} "
            f"| {'batched' if key[3] else 'one by one'} | {bare[0]} | {ours[0]} "
            f"| {add['forward']:+.0%} | {bare[1]} | {ours[1]} "
            f"| {add['forward + gradient']:+.0%} | {'' if key[2] else f'{share:.0%}'} |"
        )
    lines += [
        "",
        "Gradient rates count forward updates only; forward + gradient does about three times the work. The ceiling "
        "models the lossless kernel; the relaxation of attenuation walks more arrays, so no share is given there.",
        "",
        "## Ceiling",
        "",
        "| preset, threads | footprint | triad | matrix product | allowed, million updates/s | bound by |",
        "|---|---|---|---|---|---|",
    ]
    for name, top in result["ceiling"].items():
        lines.append(
            f"| {name} | {top['footprint_bytes'] / 1e6:.1f} MB | {top['bandwidth'] / 1e9:.0f} GB/s "
            f"| {top['flops'] / 1e9:.0f} Gflop/s | {mega(top['updates_per_second'])} | {top['bound']} |"
        )
    if result["peers"]:
        lines += ["", "## Other libraries, same grid, absorbing layer and step; tissue without air", ""]
        lines += ["| preset | threads | library | steps | forward | + gradient | |", "|---|---|---|---|---|---|---|"]
        for row in result["peers"]:
            if "failed" in row:
                lines.append(
                    f"| {row['preset']} | {row['threads']} | {row['solver']} | | | | failed: {row['failed'][:120]} |"
                )
                continue
            gradient = mega(row["gradient"]) if "gradient" in row else "-"
            note = f"{row['version']}, {row['what']}" + ("" if row["finite"] else ", **not finite**")
            lines.append(
                f"| {row['preset']} | {row['threads']} | {row['solver']} | {row['steps']} | {row['forward'] / 1e6:.1f} "
                f"| {gradient} | {note} |"
            )
        lines += [
            "",
            "Both are k-space methods: slower per cell, and able to use fewer cells where nothing reflects sharply.",
        ]
    lines += [
        "",
        "## One case, one thread",
        "",
        "| preset | " + " | ".join(result["stages"][0]["seconds"]) + " | around the propagator |",
    ]
    lines.append("|" + "---|" * (len(result["stages"][0]["seconds"]) + 2))
    for row in result["stages"]:
        times = " | ".join(f"{1e3 * s:.1f} ms" for s in row["seconds"].values())
        lines.append(f"| {row['preset']} | {times} | {row['around_share']:+.0%} |")
    lines += ["", "Goal: at most +20 % around the propagator."]
    if result["bulk"]:
        lines += [
            "",
            "## Cases in bulk, files included",
            "",
            "| preset | workers | cases | per case | 1000 cases |",
            "|---|---|---|---|---|",
        ]
        for row in result["bulk"]:
            lines.append(
                f"| {row['preset']} | {row['workers']} | {row['cases']} | {row['per_case']:.3f} s "
                f"| {row['thousand_minutes']:.1f} min |"
            )
        lines += [
            "",
            "Goal: 1000 tiny cases within 5 minutes on 2 cores. The last column is scaled from the cases run.",
        ]
    if result["paper_event"]:
        row = result["paper_event"]
        lines += ["", "## One whole paper event", ""]
        lines.append(
            f"{row['steps']} steps, {row['threads']} threads: {row['seconds']:.0f} s, "
            f"{mega(row['updates_per_second'])} million updates/s."
        )
    return "\n".join(lines) + "\n"


def paper_event(threads: int) -> dict[str, Any]:
    """One event of the paper preset from the first to the last step, as shipped."""
    torch.set_num_threads(threads)
    config = preset("paper")
    simulator = Simulator(config)
    medium = rasterise(draw(config, 0), config.grid.spacing, config.grid.depth, simulator.medium_width)
    start = time.perf_counter()
    with torch.no_grad():
        rf = simulator.channels(medium, events=[config.sequence.events // 2])
    spent = time.perf_counter() - start
    if not torch.isfinite(rf).all() or not rf.abs().max() > 0:
        raise SystemExit("the paper event is not finite or silent")
    rate = simulator.cost.cell_updates / spent
    return {"threads": threads, "steps": config.grid.steps, "seconds": spent, "updates_per_second": rate}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--presets", nargs="+", default=["micro", "tiny", "paper"], choices=list(SHORT_STEPS))
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--paper-event", action="store_true", help="also run one whole paper event")
    parser.add_argument("--peer-python", nargs=2, action="append", default=[], metavar=("PYTHON", "NAME"))
    parser.add_argument("--cases", type=int, default=40, help="tiny cases that `generate` writes; 0 = none")
    parser.add_argument("--quick", action="store_true", help="few steps: tries the script, measures nothing")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results")
    options = parser.parse_args()
    for _, name in options.peer_python:
        if not (PEERS / f"{name}_speed.py").exists():
            parser.error(f"unknown peer '{name}'; known: {', '.join(p.stem[:-6] for p in PEERS.glob('*_speed.py'))}")
    words = " ".join(a if a not in {p for p, _ in options.peer_python} else "PYTHON" for a in sys.argv[1:])
    result: dict[str, Any] = {
        "command": f"python benchmarks/wave.py {words}".strip(),
        "machine": machine(),
        "versions": versions(),
        "repeats": options.repeats,
        "solver": [],
        "ceiling": {},
        "peers": [],
        "stages": [],
        "bulk": [],
        "paper_event": None,
    }
    for name in options.presets:
        config = preset(name)
        steps = SHORT_STEPS[name] // (10 if options.quick else 1)
        steps -= steps % config.grid.gradient_stride
        short = config.override({"grid.steps": steps, "receive.echo_start": 0.0})
        for threads in options.threads:
            result["ceiling"][f"{name}, {threads}"] = ceiling(short, threads)
            result["solver"] += solver_rows(short, threads, options.repeats, CASES[name])
            for python, peer in options.peer_python:
                result["peers"].append(peer_row(peer, python, config, threads, min(options.repeats, 3), options.quick))
                print(json.dumps(result["peers"][-1]), file=sys.stderr, flush=True)
        if name != "paper":
            result["stages"].append(stages(config, options.repeats))
    if options.cases:
        for workers in options.threads:
            result["bulk"].append(bulk(preset("tiny"), options.cases, workers))
    if options.paper_event:
        result["paper_event"] = paper_event(max(options.threads))
    write_json(options.out / "wave_speed.json", result)
    with atomic_path(options.out / "wave_speed.md") as path:
        path.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
