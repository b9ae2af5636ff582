"""Training speed and memory beside OpenAI's improved-diffusion, in one run that takes turns.

    python benchmarks/train.py --improved-diffusion DIR [--peer-python PYTHON] [--rounds 5] [--steps 2]
                               [--threads 2] [--cases readme-256 ...] [--quick]

DIR is a checkout of github.com/openai/improved-diffusion; PYTHON has torch, blobfile, tqdm, pillow and mpi4py. Writes
docs/results/train_speed.md and .json. Every contestant is a process of its own that waits while the others run; a round
is ``--steps`` training steps of each. The peer runs its own loop on PNG files, lungwave its own on the same maps in
memory. Run it on an idle machine: a load above 0.5 at the start is written into the table.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from lungwave.repro import atomic_path, versions, write_json

ROOT = Path(__file__).resolve().parents[1]
PEER = Path(__file__).parent / "peers" / "improved_diffusion_step.py"
OURS = Path(__file__).parent / "peers" / "lungwave_step.py"
README_NET = {"channels": 64, "blocks": 1, "channel_mult": [1, 1, 2, 2, 4, 4]}  # of the original report's usage section
README_FLAGS = {"image_size": 256, "num_channels": 64, "num_res_blocks": 1, "attention_resolutions": "1"}
STRIP_STRIDES = [[1, 2], [1, 2], [2, 2]]
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Case:
    """One data set and what each side trains on it."""

    title: str
    maps: tuple[int, int]  # size of the maps on disk
    batch: int
    flags: dict[str, Any]  # of the peer
    nets: dict[str, dict[str, Any]]  # ours: UNetConfig by name
    same: bool  # the same network with the same number of weights, on the same pixels


CASES = {
    "readme-256": Case(
        "256 x 256, the report's network (64 channels, 1 block, no attention but the middle), 3 channels",
        (256, 256), 2, README_FLAGS, {"the same": {**README_NET, "in_channels": 3, "out_channels": 3}}, True,
    ),
    "small-64": Case(
        "64 x 64, 64 channels, 2 blocks, attention at 16 x 16, 3 channels",
        (64, 64), 16,
        {"image_size": 64, "num_channels": 64, "num_res_blocks": 2, "attention_resolutions": "16"},
        {"the same": {"channels": 64, "blocks": 2, "channel_mult": [1, 2, 3, 4], "attention": [2],
                      "in_channels": 3, "out_channels": 3}}, True,
    ),
    "strip-8x256": Case(
        "8 x 256 maps: the peer enlarges each 32 times and keeps the central 256 x 256 pixels, we train on the maps",
        (8, 256), 8, README_FLAGS,
        {
            "same blocks and widths, 1 channel": {**README_NET, "strides": "fitting"},
            "our default for strips, 1 channel":
                {"channels": 64, "blocks": 2, "channel_mult": [1, 2, 2, 2], "strides": STRIP_STRIDES},
        }, False,
    ),
}  # fmt: skip


class Contestant:
    """A process that makes training steps when it is asked."""

    def __init__(self, name: str, command: list[str], problem: dict[str, Any], peer: bool) -> None:
        threads = str(problem["threads"])
        environment = {**os.environ, **{k: threads for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}}
        environment["PYTHONPATH"] = "" if peer else str(ROOT / "src")
        self.name, self.seconds, self.peak = name, [], 0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=problem["folder"]
        )
        self.about = self.ask(json.dumps(problem))

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        for reply in self.process.stdout:
            if reply.startswith("{"):
                return json.loads(reply)
        raise SystemExit(f"{self.name} ended without an answer; its message stands above")

    def steps(self, count: int, count_it: bool = True) -> None:
        found = self.ask(str(count))
        self.peak = found["peak"]
        if count_it:
            self.seconds.append(sum(found["seconds"]) / count)

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()


def draw_maps(size: tuple[int, int], folder: Path, count: int = 64) -> None:
    """Smooth grey maps as PNG files: neither loader nor network cares what they show."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (max(2, size[0] // 4), size[1] // 4), dtype=np.uint8))
        coarse.resize((size[1], size[0]), Image.Resampling.BICUBIC).save(folder / f"lung_{index:03d}.png")


def measure(name: str, threads: int, options: argparse.Namespace) -> dict[str, Any]:
    """One case: all contestants in turns; times of a step are medians over the rounds."""
    case = CASES[name]
    batch = options.batch or case.batch
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        draw_maps(case.maps, folder / "maps")
        common = {"threads": threads, "batch": batch, "images": str(folder / "maps"), "folder": scratch}
        peer_command = [options.peer_python, str(PEER), str(options.improved_diffusion.resolve())]
        contestants = [Contestant("improved-diffusion", peer_command, {**common, "flags": case.flags}, peer=True)]
        for net, config in case.nets.items():
            for precision in PRECISIONS:
                problem = {**common, "net": config, "size": case.maps, "precision": precision}
                command = [sys.executable, str(OURS)]
                contestants.append(Contestant(f"lungwave, {net}, {precision}", command, problem, peer=False))
        try:
            for contestant in contestants:
                contestant.steps(1, count_it=False)  # the first step allocates, compiles kernels and saves a checkpoint
            for turn in range(options.rounds):
                for contestant in contestants:
                    contestant.steps(options.steps)
                    print(f"{name} round {turn + 1} {contestant.name}: {contestant.seconds[-1] / batch:.4f} s an image",
                          file=sys.stderr, flush=True)  # fmt: skip
        finally:
            for contestant in contestants:
                contestant.end()
    rows = [
        {
            "name": c.name,
            **c.about,
            "seconds_per_image": [s / batch for s in c.seconds],
            "images_per_second": batch / statistics.median(c.seconds),
            "peak": c.peak,
        }
        for c in contestants
    ]
    peer = rows[0]
    if case.same and any(row["parameters"] != peer["parameters"] for row in rows):
        raise SystemExit(f"{name}: the networks differ: {[row['parameters'] for row in rows]} weights")
    for row in rows[1:]:
        pairs = zip(peer["seconds_per_image"], row["seconds_per_image"], strict=True)
        row["ratios"] = [theirs / ours for theirs, ours in pairs]
        row["ratio"] = statistics.median(row["ratios"])
        row["memory_ratio"] = peer["peak"] / row["peak"]
    return {"case": name, "title": case.title, "batch": batch, "threads": threads, "same": case.same, "rows": rows}


def machine() -> dict[str, Any]:
    model, flags = platform.processor() or platform.machine(), ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        flags = next(line for line in lines if line.startswith("flags"))
    except (OSError, StopIteration):
        pass
    known = [title for flag, title in (("avx512f", "AVX-512"), ("avx512_bf16", "AVX-512 BF16"), ("amx_bf16", "AMX"))
             if flag in flags.split()]  # fmt: skip
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    cpu = ", ".join([model, *known])
    return {"cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "load_at_start": round(load, 2)}


def markdown(result: dict[str, Any]) -> str:
    host = result["machine"]
    lines = [
        "# Training speed beside OpenAI's improved-diffusion",
        "",
        f"`{result['command']}`",
        "",
        f"{host['cpu']}, {host['cores']} cores, {host['system']}; load at the start {host['load_at_start']}. "
        + ", ".join(f"{k} {v}" for k, v in result["versions"].items())
        + f". Medians of {result['rounds']} rounds of {result['steps']} steps, contestants in turns; the ratio is the "
        "median over the rounds of their time / our time, with its range. A step is everything: batch, forward, "
        "backward, optimiser, weight averages (one there, two here). Memory is the high-water mark of the process "
        "(the peer's image loader is another one, not counted).",
    ]
    for case in result["cases"]:
        lines += ["", f"## {case['title']}", "", f"Batch {case['batch']}, {case['threads']} thread(s).", ""]
        lines += ["| | weights | images/s | s/image | ratio | range | peak memory | ratio |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        for row in case["rows"]:
            ratios = (
                f"{row['ratio']:.2f} | {min(row['ratios']):.2f}-{max(row['ratios']):.2f}" if "ratio" in row else " | "
            )
            memory = f"{row['memory_ratio']:.2f}" if "ratio" in row else ""
            lines.append(
                f"| {row['name']} | {row['parameters']:,} | {row['images_per_second']:.2f} "
                f"| {1 / row['images_per_second']:.3f} | {ratios} | {row['peak'] / 1e9:.2f} GB | {memory} |"
            )
        shims = case["rows"][0]["shims"]
        lines += ["", f"Peer: unmodified; around it: {'; '.join(shims) if shims else 'nothing'}."]
        if not case["same"]:
            lines += [
                "",
                "The ratio is of the time an image takes, so of the time an epoch takes. It does not count that an "
                "image of the peer shows 8 of the 256 columns of its map, an image of ours all 256.",
            ]
    lines += [
        "",
        "Goals: at least 2 on the same network; at least 20 for an epoch of 8 x 256 maps. The peer has no bfloat16, "
        "and its float16 is made for GPUs. Rows in float32 compare code, rows in bfloat16 what a user gets.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--improved-diffusion", type=Path, required=True, metavar="DIR")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--threads", nargs="+", type=int, default=[os.cpu_count() or 1])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2, help="training steps of a contestant in a round")
    parser.add_argument("--batch", type=int, default=0, help="images a step; 0 = what the case says")
    parser.add_argument("--quick", action="store_true", help="one round of one step: tries the script")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results")
    options = parser.parse_args()
    if not (options.improved_diffusion / "improved_diffusion" / "train_util.py").is_file():
        parser.error(f"{options.improved_diffusion} is no checkout of github.com/openai/improved-diffusion")
    if options.quick:
        options.rounds = options.steps = 1
    words = (
        " ".join(sys.argv[1:]).replace(str(options.improved_diffusion), "DIR").replace(options.peer_python, "PYTHON")
    )
    result: dict[str, Any] = {
        "command": f"python benchmarks/train.py {words}",
        "machine": machine(),
        "versions": versions(),
        "rounds": options.rounds,
        "steps": options.steps,
        "cases": [],
    }
    for threads in options.threads:
        for name in options.cases:
            result["cases"].append(measure(name, threads, options))
    write_json(options.out / "train_speed.json", result)
    with atomic_path(options.out / "train_speed.md") as path:
        path.write_text(markdown(result), encoding="utf-8")
    print(markdown(result))


if __name__ == "__main__":
    main()
