"""Three libraries beside lungwave, each in its own interpreter, in turns: diffusers, deepinv, torch-fidelity.

    python benchmarks/beside.py [--peers diffusers deepinv torch-fidelity] [--peer-python PYTHON] [--rounds 5]
                                [--batch 16] [--truths 30] [--calls 100 1000] [--threads 1]

diffusers       one U-Net, the same weights: calls and training steps a second
deepinv         samplers on a Gaussian problem whose posterior is known, with its exact denoiser and as many calls
torch-fidelity  Frechet distance and KID of the same features

PYTHON is an interpreter with the peers. torchvision, of which nothing here is called, may be left out:

    python3 -m venv peers && peers/bin/pip install torch diffusers safetensors scipy
    peers/bin/pip install einops natsort tqdm requests matplotlib h5py torchmetrics pillow
    peers/bin/pip install --no-deps deepinv torch-fidelity

Each peer's table is replaced by a run that names it, and says what that run was. Writes
docs/results/beside.{md,json}. Run it on an idle machine: the load at the start stands in the tables.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from frechet import exact, kinds
from lungwave.evaluate.generative import frechet, kid
from lungwave.models.diffusers_bridge import export_diffusers
from lungwave.models.unet import UNet, UNetConfig, describe
from lungwave.posterior.samplers import SAMPLERS
from lungwave.repro import atomic_path, read_json, versions, write_json
from lungwave.sample import Seeds
from reconstruct import peak, timed
from train import Contestant, machine

ROOT = Path(__file__).resolve().parents[1]
PEERS = Path(__file__).parent / "peers"
sys.path[0] = str(ROOT / "tests")  # in place of this folder, whose sample.py would hide the tests' folder sample
import twins  # noqa: E402

SIZE = (64, 64)
NET = UNetConfig(channels=64, channel_mult=(1, 2, 2, 2), blocks=2, attention=(2,), head_channels=32)
PASSES = {"forward": 1, "train": 3}  # a gradient costs two more passes
TITLES = {"forward": "call", "train": "training step"}
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
SIDES = {  # name -> library, channels_last
    "lungwave": ("lungwave", True),  # as it trains
    "diffusers": ("diffusers", False),
    "diffusers, channels last": ("diffusers", True),
}
DRAWS = 128  # of each truth
WARM = 3  # calls of a first turn that is not counted
THEIRS = (  # name, sampler, settings that are not the library's own
    ("DPS", "DPS", {}),
    ("DPS, weight 100", "DPS", {"weight": 100.0}),  # "in the hundreds", says its documentation; 30 and 300 are worse
    ("DPS, annealed", "DPS", {"guidance": "annealed"}),
    ("DiffPIR", "DiffPIR", {}),
    ("DiffPIR, zeta 1", "DiffPIR", {"zeta": 1.0}),
    ("DDRM", "DDRM", {}),
)
OURS = (  # the same, and the rows that it is set beside
    ("dps", "dps", {}, ("DPS", "DPS, weight 100", "DPS, annealed")),
    ("diffpir, zeta 0.1", "diffpir", {"zeta": 0.1}, ("DiffPIR",)),
    ("diffpir", "diffpir", {}, ("DiffPIR, zeta 1",)),
    ("daps_rto", "daps_rto", {}, tuple(name for name, _, _ in THEIRS)),
)
SETS = ("slow spectrum", "rectified, 706 dead", "rank 64", "full rank")
SUBSETS, SUBSET = 100, 1000  # of torch-fidelity's KID, its defaults
FULL = (3000, 64)  # vectors and features of the case of full rank


@contextmanager
def peer(name: str, script: str, python: str, problem: dict[str, Any]) -> Iterator[Contestant]:
    """A contestant that ends with the block."""
    found = Contestant(name, [python, str(PEERS / script)], problem, peer=True)
    try:
        yield found
    finally:
        found.end()


def median(values: list[float]) -> float:
    return float(np.median(values))


# ------------------------------------------------------------------------------------------------------------ diffusers


def diffusers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Calls and training steps of one network, read by both from one folder."""
    torch.manual_seed(0)
    net = UNet(NET)
    with torch.no_grad():
        for weight in net.parameters():
            if not weight.any():  # layers that begin at zero would hide the rest
                weight.normal_(std=0.02)
    export_diffusers(folder / "weights", net, SIZE)
    about = describe(NET, SIZE)
    sides, rounds, peaks = {}, [], {name: [] for name in PRECISIONS}
    common = {"threads": options.threads, "folder": str(folder), "batch": options.batch, "size": SIZE}
    tasks = [(work, precision) for precision in PRECISIONS for work in PASSES]
    try:
        for name, (library, last) in SIDES.items():
            problem = {**common, "side": library, "channels_last": last, "weights": str(folder / "weights"),
                       "answer": str(folder / f"{len(sides)}.npy")}  # fmt: skip
            python = sys.executable if library == "lungwave" else options.peer_python
            command = [python, str(PEERS / "diffusers_unet.py")]
            sides[name] = Contestant(name, command, problem, peer=library != "lungwave")
        for number in range(options.rounds + 1):  # the first one warms up
            taken = {}
            for work, precision in tasks:
                for name, side in sides.items():
                    taken[name, work, precision] = side.ask(json.dumps({"work": work, "precision": precision}))[
                        "seconds"
                    ]
            for precision, kind in PRECISIONS.items():
                peaks[precision].append(peak(options.threads, kind))
            if number:
                rounds.append(taken)
            print(f"diffusers round {number}: {taken}", file=sys.stderr, flush=True)
    finally:
        for side in sides.values():
            side.end()
    answers = [np.load(folder / f"{i}.npy") for i in range(len(sides))]
    off = max(float(np.abs(other - answers[0]).max()) for other in answers[1:])
    rows = []
    for work, precision in tasks:
        ours = [taken["lungwave", work, precision] for taken in rounds]
        rate = median(peaks[precision])
        for name in [side for side in SIDES if side != "lungwave"]:
            theirs = [taken[name, work, precision] for taken in rounds]
            ratios = [t / o for t, o in zip(theirs, ours, strict=True)]
            floor = rate / about["gmac"] / PASSES[work]
            rows.append({
                "work": work, "precision": precision, "peer": name, "ours": options.batch / median(ours),
                "theirs": options.batch / median(theirs), "ratio": median(ratios), "range": [min(ratios), max(ratios)],
                "floor": floor, "share": options.batch / median(ours) / floor, "peak_gmac_s": rate,
            })  # fmt: skip
    return {
        "rows": rows, "gmac": about["gmac"], "parameters": about["parameters"], "off": off,
        "spread": float(answers[0].std()), "batch": options.batch, "threads": options.threads, "rounds": options.rounds,
        "peer": next(side.about for name, side in sides.items() if name != "lungwave"),
    }  # fmt: skip


def diffusers_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        "## diffusers: one U-Net, the same weights",
        "",
        f"A network of {found['parameters']:,} parameters and {found['gmac']:.2f} billion multiply-adds for a map of "
        f"{SIZE[0]} x {SIZE[1]}, written by `export_diffusers` and read by both; their outputs differ by at most "
        f"{found['off']:.1e} (standard deviation {found['spread']:.2g}). Batch {found['batch']}, {found['threads']} "
        f"thread(s), medians of {found['rounds']} rounds in turns; a training step is forward, backward and AdamW. "
        "lungwave in the memory layout in which it trains (channels last), diffusers as it loads and in that layout. "
        "The floor is the network's multiply-adds, three times as many for a step, at the speed of a large matrix "
        "product of the same precision in the same run.",
        "",
        "| what | precision | peer | lungwave, images/s | peer, images/s | ratio | range | floor, images/s | of it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        low, high = row["range"]
        lines.append(
            f"| {TITLES[row['work']]} | {row['precision']} | {row['peer']} | {row['ours']:.2f} | {row['theirs']:.2f} | "
            f"**{row['ratio']:.2f}** | {low:.2f}-{high:.2f} | {row['floor']:.1f} | {row['share']:.0%} |"
        )
    return lines


# -------------------------------------------------------------------------------------------------------------- deepinv


def deepinv(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Samplers of both on the linear twin, judged against its posterior in closed form."""
    torch.set_num_threads(options.threads)
    whole = twins.linear(options.truths, 2 * DRAWS)
    parts = whole.reference[:, :DRAWS], whole.reference[:, DRAWS:]
    twin = twins.Twin(whole.forward, whole.denoiser, whole.noise, whole.truth, whole.y, parts[0])
    covariance = twins.prior()[1]
    np.savez(folder / "twin.npz", a=twins.blur(), covariance=covariance, y=twin.y, noise=twin.noise)
    x = torch.randn(options.truths * DRAWS, 1, 1, twins.PIXELS, dtype=torch.float64)
    sigma = torch.ones(len(x), dtype=x.dtype)
    rows = [{"name": "exact draws", **twin.scores(parts[1])}]
    chance = rows[0]["distance"]
    problem = {"threads": options.threads, "folder": str(folder), "twin": str(folder / "twin.npz")}
    with torch.no_grad():
        one = median([timed(lambda: twin.denoiser(x, sigma))[0] for _ in range(20)])
    with peer("deepinv", "deepinv_twin.py", options.peer_python, problem) as other:
        for calls in (WARM, *options.calls):
            theirs = {}
            for name, sampler, how in THEIRS:
                asked = {
                    "sampler": sampler,
                    "how": how,
                    "calls": calls,
                    "draws": DRAWS,
                    "out": str(folder / "drawn.npy"),
                }
                said = other.ask(json.dumps(asked))
                drawn = torch.from_numpy(np.load(asked["out"])).reshape(len(twin.y), DRAWS, -1)
                theirs[name] = {"name": f"deepinv {name}", **said, **twin.scores(drawn), "floor": calls * one}
            mine = []
            for name, sampler, how, beside in OURS:
                randomness = Seeds(0, range(DRAWS * len(twin.y)))
                clock = time.perf_counter()
                got = twin.run(SAMPLERS[sampler], DRAWS, randomness, levels=calls, **how)
                taken = time.perf_counter() - clock
                scores = twin.scores(twin.samples(got))
                best = min(beside, key=lambda key: theirs[key]["distance"])
                mine.append({
                    "name": name, "seconds": taken, "calls": got.calls["denoiser"] / len(got.maps), **scores,
                    "lost": int((~got.kept).sum()), "floor": calls * one, "beside": best,
                    "nearer": theirs[best]["distance"] / scores["distance"],
                    "faster": theirs[best]["seconds"] / taken,
                })  # fmt: skip
            if calls != WARM:
                rows += [*theirs.values(), *mine]
            print([*theirs.values(), *mine], file=sys.stderr, flush=True)
    about = {"truths": options.truths, "draws": DRAWS, "threads": options.threads, "peer": other.about}
    return {"rows": [{**row, "over_chance": row["distance"] / chance} for row in rows], **about}


def deepinv_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        "## deepinv: samplers on a posterior that is known",
        "",
        f"The linear twin of [twins.md](twins.md): {found['truths']} truths with {found['draws']} draws each, both "
        "sides with the exact denoiser of the Gaussian prior; settings that the name does not say are those that each "
        "library has by itself (the weight of 100 was chosen for the least distance, ours are not "
        "tuned). deepinv's samplers expect images between 0 and 1 and clip to that range, so the lines were "
        "scaled to it, four standard deviations on either side; it was given the operator by its singular values, ours "
        "only products with the operator and its adjoint, and ours run in double precision. Variance over the "
        "posterior's, share of the truths inside central 90 % intervals, chi2 of the samples' "
        "residual (1 is right), sliced Wasserstein-1 distance to the posterior; the first row is another set of exact "
        "draws, the floor of that distance. Ratios are deepinv's over ours, of the row named: the "
        "nearest of its kind, for daps_rto the nearest of all. Floor of the time: the denoiser's calls alone, here "
        f"a formula; a network costs more. {found['threads']} thread(s), one run each.",
        "",
        "| sampler | calls | mean error | variance | inside 90 % | chi2 | distance | over chance | ratio of distances "
        "| seconds | ratio of seconds | floor, s | of it |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        cells = [row["name"], f"{row['calls']:.0f}" if "calls" in row else "0"]
        cells += [f"{row[key]:.2f}" for key in ("mean_error", "variance", "inside_90", "chi2")]
        cells += [f"{row['distance']:.3f}", f"{row['over_chance']:.2f}"]
        cells.append(f"**{row['nearer']:.2f}** ({row['beside']})" if "nearer" in row else "")
        cells.append(f"{row['seconds']:.2f}" if "seconds" in row else "")
        cells.append(f"{row['faster']:.2f}" if "faster" in row else "")
        cells += [f"{row['floor']:.2f}", f"{row['floor'] / row['seconds']:.0%}"] if "seconds" in row else ["", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


# ------------------------------------------------------------------------------------------------------- torch-fidelity


def fidelity(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Distances of the same features."""
    rng = np.random.default_rng(1)
    full = rng.standard_normal(FULL), 1.1 * rng.standard_normal(FULL) + 0.1
    sets = {**kinds(), "full rank": full}
    problem, rows = {"threads": options.threads, "folder": str(folder)}, []
    torch.set_num_threads(options.threads)
    rate = peak(options.threads, torch.float64)
    with peer("torch-fidelity", "torch_fidelity_distance.py", options.peer_python, problem) as other:
        for kind in options.sets:
            a, b = sets[kind]
            np.savez(folder / "arrays.npz", a=a, b=b)
            (n, d), m = a.shape, len(b)
            work = {
                "frechet": min(n * m * d, (n + m) * d * d / 2),
                "kid": d * (n * (n + 1) / 2 + m * (m + 1) / 2 + n * m),
            }
            subsets, subset = (1, n) if n == m else (SUBSETS, min(SUBSET, n))  # one subset of all: the same estimator
            for metric, ours in (("frechet", frechet), ("kid", lambda x, y: kid(x, y).value)):
                asked = {
                    "arrays": str(folder / "arrays.npz"),
                    "metric": metric,
                    "subsets": subsets,
                    "subset_size": subset,
                }
                pairs = [
                    (timed(lambda f=ours, x=a, y=b: f(x, y)), other.ask(json.dumps(asked)))
                    for _ in range(options.rounds)
                ]
                (_, value), theirs = pairs[-1]
                rows.append({
                    "metric": metric, "kind": kind, "sizes": [n, m, d], "subsets": subsets, "ours": value,
                    "theirs": theirs["value"], "error": theirs.get("error"),
                    "difference": theirs["value"] / value - 1, "floor": work[metric] / rate / 1e9,
                    "exact": exact(a, b) if metric == "frechet" else None,
                    "ours_s": median([one for (one, _), _ in pairs]),
                    "theirs_s": median([two["seconds"] for _, two in pairs]),
                    "ratio": median([two["seconds"] / one for (one, _), two in pairs]),
                })  # fmt: skip
                print(rows[-1], file=sys.stderr, flush=True)
    about = {"rounds": options.rounds, "threads": options.threads, "peer": other.about, "peak_gmac_s": rate}
    return {"rows": rows, **about}


def fidelity_lines(found: dict[str, Any]) -> list[str]:
    lines = [
        "## torch-fidelity: distances of the same features",
        "",
        "Sets of [frechet.md](frechet.md), whose covariances' product never has full rank, and one of full rank. "
        f"Medians of {found['rounds']} round(s) in turns, {found['threads']} thread(s), double precision. "
        "For the Frechet distance the error of each is given against extended precision. torch-fidelity's KID is the "
        f"mean over {SUBSETS} random subsets of {SUBSET}, ours takes all pairs; where both sets are of one size, "
        "torch-fidelity was given all vectors as one subset, which is the same formula. Floors: the multiply-adds "
        "of the products that the distance needs (of both sets with each other, or of the covariances where that is "
        "less; every pair once for KID) at the speed of a large matrix product in double precision.",
        "",
        "| distance | features | lungwave | torch-fidelity | relative difference | error of ours | error of theirs | "
        "lungwave, s | torch-fidelity, s | ratio | floor, s | share of it |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        n, m, d = row["sizes"]
        right, spread = row["exact"], row["error"]
        errors = [f"{row[who] / right - 1:+.0e}" for who in ("ours", "theirs")] if right else ["", ""]
        theirs = f"{row['theirs']:.7g}" + (f" ± {spread:.1g}" if spread else "")
        off = f"{row['difference']:+.0e}"
        if spread:  # of a number that is zero but for chance, nothing relative can be said
            off = f"{(row['theirs'] - row['ours']) / spread:+.1f} of its errors"
        lines.append(
            f"| {'Frechet' if right else 'KID'} | {row['kind']}, {n} and {m} of {d} | {row['ours']:.7g} | {theirs} | "
            f"{off} | {errors[0]} | {errors[1]} | {row['ours_s']:.2f} | {row['theirs_s']:.2f} | "
            f"**{row['ratio']:.1f}** | {row['floor']:.2g} | {row['floor'] / row['ours_s']:.0%} |"
        )
    return lines


MEASURED: dict[str, tuple[Callable[..., dict[str, Any]], Callable[..., list[str]]]] = {
    "diffusers": (diffusers, diffusers_lines),
    "deepinv": (deepinv, deepinv_lines),
    "torch-fidelity": (fidelity, fidelity_lines),
}


def made(section: dict[str, Any]) -> str:
    """What a table was made with."""
    host, theirs = section["machine"], section["peer"]
    load = f"; load {host['load_at_start']} at the start from other work" if host["load_at_start"] > 0.5 else ""
    others = [theirs["version"], *(f"{name} {theirs[name]}" for name in ("torch", "numpy") if name in theirs)]
    shims = "; ".join(theirs.get("shims") or [])
    return (
        f"Made by `{section['command']}` on {host['cpu']}, {host['cores']} cores, {host['system']}{load}. "
        f"lungwave with {', '.join(f'{name} {version}' for name, version in section['versions'].items())}; "
        f"{', '.join(others)}, unmodified{f' but for its imports: {shims}' if shims else ''}."
    )


def markdown(sections: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# Beside diffusers, deepinv and torch-fidelity",
        "",
        "Each library in its own interpreter, waiting while the other runs. A ratio above 1 is in lungwave's favour; "
        "the floor is the arithmetic alone at the speed that the machine reached in that run, or chance alone. "
        "Full size is the command without its options for size; what was run stands under each table.",
    ]
    for name, (_, table) in MEASURED.items():
        if name in sections:
            lines += ["", *table(sections[name]), "", made(sections[name])]
        else:
            lines += ["", f"## {name}", "", f"Not run yet: `python benchmarks/beside.py --peers {name}`."]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", nargs="+", default=list(MEASURED), choices=list(MEASURED))
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON", help="an interpreter with the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=16, help="maps of a call or step, beside diffusers")
    parser.add_argument("--truths", type=int, default=30, help="beside deepinv")
    parser.add_argument("--calls", type=int, nargs="+", default=[100, 1000], help="of the denoiser, beside deepinv")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=SETS, help="features, beside torch-fidelity")
    parser.add_argument("--out", type=Path, default=ROOT / "docs/results")
    options = parser.parse_args()
    told = shlex.join(sys.argv[1:]).replace(options.peer_python, "PYTHON")
    place = options.out / "beside.json"
    sections = read_json(place)["sections"] if place.exists() else {}
    for name in options.peers:
        host = machine()
        with tempfile.TemporaryDirectory() as scratch:
            clock = time.perf_counter()
            found = MEASURED[name][0](options, Path(scratch))
        about = {"command": f"python benchmarks/beside.py {told}".strip(), "machine": host, "versions": versions()}
        sections[name] = {**found, **about, "took_s": time.perf_counter() - clock}
        write_json(place, {"sections": sections})
        with atomic_path(options.out / "beside.md") as path:
            path.write_text(markdown(sections), encoding="utf-8")
    print(markdown(sections))


if __name__ == "__main__":
    main()
