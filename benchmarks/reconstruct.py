"""Seconds from a recording to its posterior, and how few calls of the network are enough.

    python benchmarks/reconstruct.py MODEL data/test [--samples 16] [--cases 60] [--threads 1 2] [--quick]

First table: one frame of a generated folder, at 20 dB, to samples and summary; medians of interleaved repetitions,
stage by stage, on as many threads, and the network's share of what a large matrix product reaches in the same run.
Second table: samplers with fewer calls on the same frames and the same starting noise, judged by the CRPS of map and
percent aeration (fair, so that the number of samples does not matter) against the most accurate of them; --quick leaves
it out. Writes docs/results/reconstruct_speed.md and .json.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lungwave.evaluate.cases import Measured, to_json
from lungwave.evaluate.scores import crps_fair, paired_difference
from lungwave.models.checkpoint import plain
from lungwave.models.unet import describe
from lungwave.posterior.amortized import (
    SAMPLER,
    SCHEDULE,
    SIGMA_MAX,
    SIGMA_MIN,
    STEPS,
    PosteriorModel,
    load_posterior,
)
from lungwave.posterior.pairs import Pairs, noisy
from lungwave.posterior.summary import summarise
from lungwave.repro import atomic_path, versions, write_json
from lungwave.sample import SCHEDULES, karras
from lungwave.types import LungwaveError

ROOT = Path(__file__).resolve().parents[1]
SNR = 20.0  # [dB]
REPEAT = 7
PRODUCT = 1536  # rows and columns of the matrix product that stands for the peak
EVEN, CROWDED = "exponential", "Karras, 40 to 0.01"  # noise levels: the default's, and the usual ones
BEST = ("unipc", 32, CROWDED)
FEWER = (
    *(("unipc", steps, CROWDED) for steps in (16, 10)),
    *(("dpmpp_2m", steps, CROWDED) for steps in (16, 12, 8)),
    *(("dpmpp_2m", steps, EVEN) for steps in (12, 8, 7, 6, 5)),
    *(("unipc", steps, EVEN) for steps in (12, 8)),
    ("heun", 5, EVEN),
)
WITHIN = 0.02  # of the CRPS of the most accurate


def peak(threads: int, dtype: torch.dtype = torch.float32) -> float:
    """GMAC/s of a large matrix product."""
    torch.set_num_threads(threads)
    one, other = torch.randn(2, PRODUCT, PRODUCT).to(dtype)
    one @ other
    taken = []
    for _ in range(REPEAT):
        clock = time.perf_counter()
        one @ other
        taken.append(time.perf_counter() - clock)
    return PRODUCT**3 / float(np.median(taken)) / 1e9


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    clock = time.perf_counter()
    found = work()
    return time.perf_counter() - clock, found


def stages(model: PosteriorModel, rf: np.ndarray, samples: int, steps: int) -> dict[str, float]:
    """Seconds of each stage of one frame."""
    read, (cond, _) = timed(lambda: model.condition(rf))
    with torch.no_grad():
        encode, _ = timed(lambda: model.denoiser.encode(cond))
    whole, drawn = timed(lambda: model.draw(rf, samples, steps=steps))
    summary, _ = timed(
        lambda: summarise(
            drawn.maps[0], drawn.bands[0], drawn.categories[0], model.prior_std, model.config.map, 0.9,
            category_names=model.categories.names,
        )
    )  # fmt: skip
    return {
        "reading": read, "encoder": encode, "sampling": whole - read - encode, "summary": summary,
        "whole": whole + summary,
    }  # fmt: skip


def speed(model: PosteriorModel, rf: np.ndarray, samples: int, threads: list[int]) -> list[dict[str, Any]]:
    """Medians over repetitions that take turns."""
    taken: dict[tuple[int, int], list[dict[str, float]]] = {}
    for _ in range(REPEAT + 1):
        for count in threads:
            for steps in (STEPS, 2 * STEPS):
                torch.set_num_threads(count)
                taken.setdefault((count, steps), []).append(stages(model, rf, samples, steps))
    gmac = describe(plain(model.denoiser.denoiser).config, model.size)["gmac"]
    rows = []
    for (count, steps), found in taken.items():
        median = {name: float(np.median([one[name] for one in found[1:]])) for name in found[0]}
        ceiling = peak(count)
        share = gmac * samples * steps / median["sampling"] / ceiling
        rows.append(
            {"threads": count, "calls": steps, **median, "peak_gmac_s": ceiling, "share": share, "gmac_a_call": gmac}
        )
    return rows


def quality(model: PosteriorModel, pairs: Pairs, samples: int) -> list[dict[str, Any]]:
    """CRPS of each sampler, and how much worse than the most accurate."""
    frames = noisy(pairs, np.arange(len(pairs)), (SNR, SNR), 0, "calls")
    names = pairs.cases.index.tolist()
    torch.set_num_threads(1)
    best, exact, rows = None, None, []
    for sampler, steps, named in (BEST, *FEWER):
        levels = karras(steps, 0.01, 40.0) if named == CROWDED else SCHEDULES[SCHEDULE](steps, SIGMA_MIN, SIGMA_MAX)
        taken, parts = 0.0, []
        for chosen in np.array_split(np.arange(len(pairs)), -(-len(pairs) // 10)):
            some = [names[i] for i in chosen]
            seconds, drawn = timed(
                lambda rf=frames[chosen], some=some, sampler=sampler, levels=levels: model.draw(
                    rf, samples, names=some, sampler=sampler, levels=levels
                )
            )
            taken += seconds
            parts.append(drawn)
        drawn = np.concatenate([d.maps for d in parts])
        maps = crps_fair(drawn, pairs.cases.smooth).mean((1, 2))
        whole = crps_fair(np.concatenate([d.bands for d in parts]), pairs.aeration)[:, -1]
        best, exact = best or (maps, whole), drawn if exact is None else exact
        spread = np.concatenate([d.bands for d in parts])[:, :, -1].std(1, ddof=1).mean()
        worse = [paired_difference(mine, theirs) for mine, theirs in zip((maps, whole), best, strict=True)]
        rows.append(
            {
                "sampler": sampler, "levels": named, "calls": parts[0].calls, "crps_map": maps.mean(),
                "crps_whole": whole.mean(), "worse_map": worse[0], "worse_whole": worse[1], "spread": spread,
                "moved": float(np.sqrt(np.square(drawn - exact).mean())), "seconds": taken / len(pairs),
            }
        )  # fmt: skip
        print(f"{sampler} {parts[0].calls}: {maps.mean():.4f} {whole.mean():.4f}", flush=True)
    return rows


def worse(found: Measured) -> str:
    return f"{-found.value:+.1%} ({-found.high:+.1%} to {-found.low:+.1%})"


def text(args: argparse.Namespace, fast: list[dict[str, Any]], few: list[dict[str, Any]]) -> str:
    lines = [
        "# From a recording to its posterior",
        "",
        f"Made by `python benchmarks/reconstruct.py {shlex.join(sys.argv[1:])}` on {platform.machine()}; "
        f"{args.samples} samples of one frame, medians of {REPEAT} repetitions that take turns. The network's share: "
        f"multiplications and additions of its calls over those that a matrix product of {PRODUCT} x {PRODUCT} makes "
        "in as many seconds.",
        "",
        "| threads | calls a sample | reading | encoder | sampling | summary | whole | network's share of the peak |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in fast:
        cells = [f"{1e3 * row[name]:.0f} ms" for name in ("reading", "encoder", "sampling", "summary")]
        lines.append(
            f"| {row['threads']} | {row['calls']} | {' | '.join(cells)} | **{row['whole']:.2f} s** | "
            f"{row['share']:.0%} of {row['peak_gmac_s']:.0f} GMAC/s |"
        )
    if few:
        lines += [
            "",
            f"## Fewer calls\n\n{args.cases} lungs at {SNR:g} dB, {args.samples} samples each, one thread; against the "
            f"first row, 95 % intervals over lungs. Kept: neither CRPS more than {WITHIN:.0%} worse. Off by: root mean "
            "square difference to the first row's sample from the same noise, in points of aeration. Spread: standard "
            f"deviation of percent aeration over the samples, against the first row's. {EVEN.capitalize()}: "
            f"{SIGMA_MAX:g} to {SIGMA_MIN:g} in equal ratios.",
            "",
            "| sampler | noise levels | calls | a sample is off by | spread of percent | CRPS, map | CRPS, percent | "
            "map against the first | percent against the first | seconds a lung | kept |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
        ]
        for row in few:
            wider = row["spread"] / few[0]["spread"] - 1
            kept = all(-row[name].value <= WITHIN for name in ("worse_map", "worse_whole"))
            lines.append(
                f"| {row['sampler']} | {row['levels']} | {row['calls']} | {100 * row['moved']:.2f} points | "
                f"{wider:+.1%} | {row['crps_map']:.4f} | {row['crps_whole']:.4f} | {worse(row['worse_map'])} | "
                f"{worse(row['worse_whole'])} | {row['seconds']:.2f} | "
                f"{'yes' if kept else 'no'} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="leave out the second table")
    args = parser.parse_args()
    model = load_posterior(args.model)
    pairs = Pairs.read(args.data)
    pairs = pairs.take(np.arange(min(args.cases, len(pairs))))
    fast = speed(model, noisy(pairs, np.arange(1), (SNR, SNR), 0, "speed"), args.samples, args.threads)
    few = [] if args.quick else quality(model, pairs, args.samples)
    said = text(args, fast, few)
    out = ROOT / "docs" / "results"
    with atomic_path(out / "reconstruct_speed.md") as temporary:
        temporary.write_text(said, encoding="utf-8")
    about = {
        "speed": fast,
        "calls": to_json(few),
        "default": [SAMPLER, STEPS, SCHEDULE, SIGMA_MAX, SIGMA_MIN],
        "versions": versions(),
    }
    write_json(out / "reconstruct_speed.json", about)
    print(said)


if __name__ == "__main__":
    try:
        main()
    except LungwaveError as error:
        sys.exit(str(error))
