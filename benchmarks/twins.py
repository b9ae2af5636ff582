"""Is my posterior right? Every sampler on three twins whose posterior is known.

    python benchmarks/twins.py [--rows daps_rto mmps] [--scale 1.0]     # 23 min; some rows, and the others as they were

linear     smooth Gaussian lines of 32 pixels, eight blurred looks at one half: closed form
nonlinear  the same lines through an exponential: against a long Hamiltonian Monte Carlo run
mixture    two kinds of lines of 16 pixels, weights 0.8 and 0.2: closed form

The denoiser is exact, so that what is wrong is the sampler's. The twins are those of the tests (tests/twins.py), here
with more truths and draws. A call is one vector-Jacobian product of the forward model. Settings of the baselines that
their papers leave open (rates, scales) stand in the first column. A second table weighs candidates that heard a part of
the linear twin's recording (samplers/weigh.py). Writes docs/results/twins.md and .json, docs/images/twins.png.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch

from lungwave.posterior.samplers import SAMPLERS, Inner
from lungwave.repro import atomic_path, versions, write_json
from lungwave.sample import Seeds

ROOT = Path(__file__).resolve().parents[1]
sys.path[0] = str(ROOT / "tests")  # in place of this folder, whose sample.py would hide the tests' folder sample
import twins  # noqa: E402

DRAWS, MIXTURE_DRAWS = 128, 64
LIMIT = 3.0  # of the ratios in the picture
HEARD = {"all of it": range(8), "6 of 8 looks": range(6), "every other look": range(0, 8, 2), "4 of 8 looks": range(4)}
CANDIDATES = (1, 8, 25, 100)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    name: str
    sampler: str
    how: dict[str, Any] = field(default_factory=dict)
    mixture: dict[str, Any] | None = None  # other settings there
    draws: int = DRAWS
    start: bool = False  # from samples that are too narrow and off, as an imperfect amortized model gives them


ROWS = (
    Row("daps_rto, 12 levels", "daps_rto", {"levels": 12}),
    Row("daps_rto, 50 levels", "daps_rto", {"levels": 50}),
    Row("daps_rto, 50 levels, 2 Newton", "daps_rto", {"levels": 50, "inner": Inner(2, 8)}),
    Row("hybrid, 5 levels from sigma 1", "daps_rto", {"levels": 5, "sigma_max": 1.0}, start=True),
    Row("hybrid, 10 levels from sigma 1", "daps_rto", {"levels": 10, "sigma_max": 1.0}, start=True),
    Row("mmps, 50 levels", "mmps", {"levels": 50}),
    Row("mmps, 200 levels", "mmps", {"levels": 200}),
    Row("pnpdm_rto, rho 0.3", "pnpdm_rto", {"rho_min": 0.3, "iterations": 100, "burn_in": 40}),
    Row("tds, as many particles as draws", "tds", {"levels": 50, "particles": DRAWS},
        {"levels": 50, "particles": MIXTURE_DRAWS}),
    Row("sda, gamma 0.1, 200 levels", "sda", {"levels": 200, "gamma": 0.1}),
    Row("dps, zeta 0.3", "dps", {"levels": 1000, "zeta": 0.3}),
    Row("dps, zeta 1", "dps", {"levels": 1000, "zeta": 1.0}),
    Row("diffpir, zeta 1", "diffpir", {"levels": 200, "zeta": 1.0}),
    Row("diffpir, zeta 0.1", "diffpir", {"levels": 200, "zeta": 0.1}),
    Row("red_diff", "red_diff", {"levels": 1000}),
    Row("daps, Langevin, rate 3e-4", "daps", {"levels": 50, "langevin": 50, "rate": 3e-4}),
    Row("lbfgs_tv", "lbfgs_tv", {}, draws=2),
)  # fmt: skip


def measured(row: Row, linear: twins.Twin, nonlinear: twins.Twin, mixed: tuple[twins.Twin, Any]) -> dict[str, Any]:
    """Scores on the three twins."""
    sampler, found = SAMPLERS[row.sampler], {}
    for name, twin in (("linear", linear), ("nonlinear", nonlinear)):
        clock = time.perf_counter()
        how = {**row.how, "start": narrow(twin).reshape(-1, 1, 1, twins.PIXELS)} if row.start else row.how
        got = twin.run(sampler, row.draws, Seeds(0, range(row.draws * len(twin.y))), **how)
        samples = twin.samples(got)
        kept = got.kept.reshape(len(twin.y), -1).all(1)
        scores = part_of(twin, kept).scores(samples[kept])
        calls = got.calls["vjp"] / len(got.maps)
        found[name] = {**scores, "calls": calls, "lost": int((~got.kept).sum()), "seconds": time.perf_counter() - clock}
    if row.start:
        return found
    twin, share = mixed
    draws = min(row.draws, MIXTURE_DRAWS)
    got = twin.run(sampler, draws, Seeds(0, range(draws * len(twin.y))), **(row.mixture or row.how))
    samples = twin.samples(got)
    off = (twins.first_share(samples) - share[:, 0]).abs().mean()
    found["mixture"] = {"weight_error": float(off), "distance": twins.sliced(samples, twin.reference)}
    return found


def narrow(twin: twins.Twin) -> torch.Tensor:
    """Samples of 0.6 times the posterior's spread, 0.3 of its standard deviations off to one side or the other."""
    mean, std = twin.reference.mean(1, keepdim=True), twin.reference.std(1, keepdim=True)
    side = torch.where(torch.arange(len(twin.y)) % 2 == 0, 0.3, -0.3).view(-1, 1, 1)
    return mean + 0.6 * (twin.reference - mean) + side * std


def part_of(twin: twins.Twin, kept: torch.Tensor) -> twins.Twin:
    """The cases that were not lost."""
    return twins.Twin(twin.forward, twin.denoiser, twin.noise, twin.truth[kept], twin.y[kept], twin.reference[kept])


def exact(linear: twins.Twin, nonlinear: twins.Twin, mixed: tuple[twins.Twin, Any], others: Any) -> dict[str, Any]:
    """What the reference says of itself: another set of its draws against it."""
    found = {
        name: {**twin.scores(other.reference), "calls": 0.0, "lost": 0, "seconds": 0.0}
        for (name, twin), other in zip((("linear", linear), ("nonlinear", nonlinear)), others, strict=False)
    }
    twin, share = mixed
    off = (twins.first_share(others[2].reference) - share[:, 0]).abs().mean()
    apart = twins.sliced(others[2].reference, twin.reference)
    found["mixture"] = {"weight_error": float(off), "distance": apart}
    return found


def started(linear: twins.Twin, nonlinear: twins.Twin) -> dict[str, Any]:
    """What the hybrid starts from."""
    none = {"calls": 0.0, "lost": 0, "seconds": 0.0}
    return {
        name: {**twin.scores(narrow(twin)), **none} for name, twin in (("linear", linear), ("nonlinear", nonlinear))
    }


def weighed(twin: twins.Twin) -> dict[str, dict[str, float]]:
    """Candidates of posteriors that heard some of the linear twin's looks, one taken for every sample."""
    return {
        f"{name}, {count}": twin.scores(twins.weighed(twin, twins.half_heard(twin, list(looks), DRAWS * count), count))
        for name, looks in HEARD.items()
        for count in CANDIDATES
    }


def weighed_table(found: dict[str, dict[str, float]]) -> str:
    lines = [
        "",
        "## Candidates weighed",
        "",
        "The linear twin once more: candidates are exact draws of the posterior given a part of the recording, and one",
        "of so many is taken for each of the samples, by what it leaves of all of it. This is how the hybrid begins.",
        "",
        "| candidates heard | of so many | mean error | variance | inside 90 % | chi2 | distance |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, scores in found.items():
        heard, count = name.rsplit(", ", 1)
        cells = [f"{scores[k]:.2f}" for k in ("mean_error", "variance", "inside_90", "chi2")]
        lines.append(f"| {heard} | {count} | {' | '.join(cells)} | {scores['distance']:.3f} |")
    return "\n".join(lines) + "\n"


def table(results: dict[str, dict[str, Any]], sizes: str) -> str:
    lines = [
        "# Samplers on twins whose posterior is known",
        "",
        f"Made by `python benchmarks/twins.py`; {sizes}. Mean error in standard deviations "
        "of the posterior, variance over the posterior's, share of the truths inside central 90 % intervals, chi2 of "
        "the samples' residual, sliced Wasserstein-1 distance to the reference. The first row holds another set of "
        "exact draws (of the long run, where it is nonlinear): no sampler can do better but by chance. The second "
        "holds what an overconfident amortized model might give, 0.6 of the spread and 0.3 standard deviations off; "
        "the hybrid rows start from it.",
        "",
        "| sampler | calls | linear: mean error | variance | inside 90 % | chi2 | distance | nonlinear: mean error | "
        "variance | inside 90 % | chi2 | distance | mixture: weight error | distance |",
        "|---|---|" + "---|" * 12,
    ]
    for name, found in results.items():
        cells = [f"{found['linear']['calls']:.0f}"]
        for twin in ("linear", "nonlinear"):
            scores = found[twin]
            cells += [f"{scores[k]:.2f}" for k in ("mean_error", "variance", "inside_90", "chi2")]
            lost = f" ({scores['lost']} lost)" if scores["lost"] else ""
            cells.append(f"{scores['distance']:.3f}{lost}")
        mixture = found.get("mixture")
        cells += ["-", "-"] if mixture is None else [f"{mixture['weight_error']:.3f}", f"{mixture['distance']:.3f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def draw(results: dict[str, dict[str, Any]], out: Path) -> None:
    """Variance ratio and coverage of every row, two twins."""
    names = list(results)
    place = list(range(len(names)))[::-1]
    figure, axes = plt.subplots(1, 3, figsize=(11, 0.32 * len(names) + 1.2), sharey=True, layout="constrained")
    shown = (("variance", "variance over the posterior's", 1.0), ("inside_90", "truths inside 90 % intervals", 0.9),
             ("distance", "distance to the posterior", None))  # fmt: skip
    for axis, (key, title, ideal) in zip(axes, shown, strict=True):
        for twin, colour, marker in (("linear", "#1f5fa8", "o"), ("nonlinear", "#b8442b", "s")):
            values = [min(results[name][twin][key], LIMIT) for name in names]
            axis.plot(values, place, marker, color=colour, label=twin, markersize=5)
        if ideal is not None:
            axis.axvline(ideal, color="0.4", linewidth=0.8)
        axis.set_title(title, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(place, names, fontsize=8)
    axes[0].legend(fontsize=8, frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[""], help="words; only rows whose name holds one")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of truths")
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept, counts = ROOT / "docs" / "results" / "twins.json", [max(2, round(args.scale * n)) for n in (30, 12, 200)]
    first = (twins.linear(counts[0], 2 * DRAWS), twins.nonlinear(counts[1], 2 * DRAWS))
    mixed = twins.mixture(counts[2], 2 * MIXTURE_DRAWS)

    def half(twin: twins.Twin, part: slice) -> twins.Twin:
        return twins.Twin(twin.forward, twin.denoiser, twin.noise, twin.truth, twin.y, twin.reference[:, part])

    ours = (slice(None, DRAWS), slice(None, DRAWS), slice(None, MIXTURE_DRAWS))
    theirs = (slice(DRAWS, None), slice(DRAWS, None), slice(MIXTURE_DRAWS, None))
    linear, nonlinear, mixture = (half(t, s) for t, s in zip((*first, mixed[0]), ours, strict=True))
    others = [half(t, s) for t, s in zip((*first, mixed[0]), theirs, strict=True)]
    results = {"exact": exact(linear, nonlinear, (mixture, mixed[1]), others)}
    results["too narrow and off"] = started(linear, nonlinear)
    before = json.loads(kept.read_text(encoding="utf-8")) if kept.exists() else {"counts": None}
    for row in ROWS:
        if any(word in row.name for word in args.rows):
            results[row.name] = measured(row, linear, nonlinear, (mixture, mixed[1]))
            print(row.name, results[row.name], flush=True)
        elif before["counts"] == counts and row.name in before["results"]:
            results[row.name] = before["results"][row.name]
    chosen = weighed(linear)
    sizes = (
        f"{counts[0]} linear and {counts[1]} nonlinear truths with {DRAWS} draws each, {counts[2]} of the mixture with "
        f"{MIXTURE_DRAWS}"
    )
    text = table(results, sizes) + weighed_table(chosen)
    with atomic_path(ROOT / "docs" / "results" / "twins.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_json(kept, {"results": results, "weighed": chosen, "counts": counts, "versions": versions()})
    draw(results, ROOT / "docs" / "images" / "twins.png")
    print(text)


if __name__ == "__main__":
    main()
