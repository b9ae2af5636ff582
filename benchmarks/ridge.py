"""Held-out test of the ridge baseline: error by depth band, noise level and category, and coverage of its intervals.

    lungwave generate --preset tiny --seed 2 --cases 0:600 --out data/test
    python benchmarks/ridge.py data/test

On another grid than the model's (no inverse crime):

    lungwave generate --preset tiny --seed 3 --cases 0:60 --grid.spacing 25e-6 --grid.time_step 6.7e-9 \\
        --grid.steps 2390 --grid.pml_cells 40 --out data/fine
    python benchmarks/ridge.py data/fine --name ridge_fine

Writes docs/results/ridge.md, ridge.json and docs/images/ridge.png. The test folder must come from another seed than the
model's, so that no base anatomy is shared; the noise of every level is drawn anew.
"""

from __future__ import annotations

import argparse
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lungwave.acoustics.receive import add_noise
from lungwave.data.dataset import folder_config, read_shards
from lungwave.data.schema import CaseTable
from lungwave.posterior.linear import LEVELS
from lungwave.posterior.ridge import RidgeModel, load_model, targets
from lungwave.repro import atomic_path, manifest, stream, write_json
from lungwave.shipped import SHIPPED
from lungwave.types import MM, UsageError

DOCS = Path(__file__).resolve().parents[1] / "docs"
TOP = 10  # rows of the map in the top millimetre
OUTLIER = 0.3 * MM  # [m] a pleura further off than this is missed
COLOURS = {"healthy": "#1b7837", "interstitial": "#2166ac", "consolidation": "#b2182b", "fibrosis": "#762a83"}


def evaluate(model: RidgeModel, folder: Path, snr_db: float) -> tuple[dict[str, np.ndarray], CaseTable]:
    """Errors, coverages and pleura errors of every case at one noise level."""
    config = folder_config(folder)
    if config.seed == model.config.seed:
        raise UsageError(f"{folder} has the model's own seed {config.seed}; generate the test with another")
    reader, tables = model.reader(), []
    parts: dict[str, list[np.ndarray]] = {}
    for recording, cases in read_shards(folder):
        rf = np.stack(
            [
                add_noise(
                    f, recording.scan, config.receive, stream(config.seed, f"test/noise/{snr_db:g}", int(i)), snr_db
                )[0]
                for f, i in zip(recording.rf, cases.index, strict=True)
            ]
        )
        start = time.perf_counter()
        found = model.predict(reader(rf))
        elapsed = (time.perf_counter() - start) / len(rf)
        truth = targets(cases)
        inside = np.abs(found.bands - truth) <= found.bands_half
        pixels = np.abs(found.aeration - cases.smooth) <= found.aeration_half
        for name, value in {
            "estimate": found.bands,
            "truth": truth,
            "half": found.bands_half[LEVELS.index(0.9)],
            "error": np.abs(found.bands - truth),
            "inside": inside.transpose(1, 0, 2),
            "pixels": pixels.mean((2, 3)).T,
            "map": np.abs(found.aeration - cases.smooth).mean((1, 2)),
            "map_top": np.abs(found.aeration - cases.smooth)[:, :TOP].mean((1, 2)),
            "pleura": found.pleura_depth - cases.pleura_depth,
            "novelty": found.novelty,
            "seconds": np.full(len(rf), elapsed),
        }.items():
            parts.setdefault(name, []).append(value)
        tables.append(cases)
    return {name: np.concatenate(values) for name, values in parts.items()}, CaseTable.join(tables)


def bootstrap(values: np.ndarray, draws: int = 1000) -> list[float]:
    """Mean over cases and its 95 % bootstrap interval."""
    generator = stream(0, "bootstrap")
    means = values[generator.integers(0, len(values), (draws, len(values)))].mean(1)
    return [float(values.mean()), *map(float, np.quantile(means, [0.025, 0.975]))]


def summarise(model: RidgeModel, found: dict[str, np.ndarray], cases: CaseTable) -> dict[str, Any]:
    """Figures of one noise level."""
    edges = [e / MM for e in cases.band_edges]
    names = [f"{a:g}-{b:g} mm" for a, b in pairwise(edges)] + [f"0-{edges[-1]:g} mm"]
    category = np.array(cases.category)
    mean_error = np.abs(model.bands.bias - found["truth"])
    signed = (found["estimate"] - found["truth"])[:, -1]
    r2 = 1 - np.square(signed).sum() / np.square(found["truth"][:, -1] - found["truth"][:, -1].mean()).sum()
    return {
        "cases": len(category),
        "mae": {n: bootstrap(found["error"][:, k]) for k, n in enumerate(names)},
        "mae_of_the_training_mean": {n: float(mean_error[:, k].mean()) for k, n in enumerate(names)},
        "coverage": {
            f"{level:.0%}": {n: bootstrap(found["inside"][:, i, k].astype(float)) for k, n in enumerate(names)}
            for i, level in enumerate(LEVELS)
        },
        "coverage_90_by_category": {
            c: bootstrap(found["inside"][category == c, LEVELS.index(0.9), -1].astype(float))
            for c in sorted(set(category))
        },
        "width_90": {n: float(2 * found["half"][:, k].mean()) for k, n in enumerate(names)},
        "pixel_coverage": {f"{level:.0%}": bootstrap(found["pixels"][:, i]) for i, level in enumerate(LEVELS)},
        "map_mae": bootstrap(found["map"]),
        "map_mae_top_1_mm": bootstrap(found["map_top"]),
        "r2": float(r2),
        "bias": float(signed.mean()),
        "mae_by_category": {c: bootstrap(found["error"][category == c, -1]) for c in sorted(set(category))},
        "pleura_mae_mm": float(np.abs(found["pleura"]).mean() / MM),
        "pleura_missed": float((np.abs(found["pleura"]) > OUTLIER).mean()),
        "withheld_as_novel": float((found["novelty"] > 1).mean()),
        "milliseconds_per_case": float(np.median(found["seconds"]) * 1e3),
    }


def table(results: dict[str, dict[str, Any]], trained: dict[str, Any], command: str, name: str) -> str:
    """The committed Markdown."""
    first = next(iter(results.values()))
    bands = list(first["mae"])

    def interval(value: list[float], digits: int = 3) -> str:
        return f"{value[0]:.{digits}f} ({value[1]:.{digits}f}-{value[2]:.{digits}f})"

    lines = [
        "# Ridge baseline on held-out bases",
        "",
        f"Made by `{command}`; {first['cases']} tiny cases of a seed the model has not seen, "
        "pleura detected, not given.",
        f"Trained on {trained['fitted'] // trained['rounds']} cases, intervals calibrated on {trained['calibrated']} "
        f"others, noise {trained['snr_db'][0]:g}-{trained['snr_db'][1]:g} dB. "
        "In brackets: 95 % bootstrap intervals over cases.",
        "",
        f"![Estimate against truth, error against depth](../images/{name}.png)",
        "",
        "## Percent aeration: mean absolute error (fraction)",
        "",
        "| noise | " + " | ".join(bands) + " |",
        "|---|" + "---|" * len(bands),
    ]
    for level, r in results.items():
        lines.append(f"| {level} dB | " + " | ".join(interval(r["mae"][b]) for b in bands) + " |")
    lines.append("| training mean | " + " | ".join(f"{first['mae_of_the_training_mean'][b]:.3f}" for b in bands) + " |")
    lines += [
        "",
        "## Coverage of the 90 % interval (split conformal)",
        "",
        "| noise | " + " | ".join(bands) + " | per pixel |",
    ]
    lines.append("|---|" + "---|" * (len(bands) + 1))
    for level, r in results.items():
        cells = [f"{r['coverage']['90%'][b][0]:.3f}" for b in bands]
        lines.append(f"| {level} dB | " + " | ".join(cells) + f" | {r['pixel_coverage']['90%'][0]:.3f} |")
    lines.append("| mean width | " + " | ".join(f"{first['width_90'][b]:.2f}" for b in bands) + " | |")
    lines += [
        "",
        "Other levels, whole depth and per pixel:",
        "",
        "| noise | " + " | ".join(f"{v:.0%}" for v in LEVELS) + " |",
    ]
    lines.append("|---|" + "---|" * len(LEVELS))
    for level, r in results.items():
        cells = [
            f"{r['coverage'][f'{v:.0%}'][bands[-1]][0]:.3f} / {r['pixel_coverage'][f'{v:.0%}'][0]:.3f}" for v in LEVELS
        ]
        lines.append(f"| {level} dB | " + " | ".join(cells) + " |")
    lines += ["", "## Maps, categories, pleura", "", "| | " + " | ".join(f"{k} dB" for k in results) + " |"]
    lines.append("|---|" + "---|" * len(results))
    rows = {
        "map error, 0-6.4 mm": lambda r: interval(r["map_mae"]),
        "map error, top 1 mm": lambda r: interval(r["map_mae_top_1_mm"]),
        "R2, 0-6 mm": lambda r: f"{r['r2']:.3f}",
        "bias, 0-6 mm": lambda r: f"{r['bias']:+.3f}",
        "pleura error [mm]": lambda r: f"{r['pleura_mae_mm']:.3f}",
        "columns with the pleura more than 0.3 mm off": lambda r: f"{r['pleura_missed']:.1%}",
        "withheld as unlike the training": lambda r: f"{r['withheld_as_novel']:.1%}",
        "milliseconds a case": lambda r: f"{r['milliseconds_per_case']:.0f}",
    }
    for name in first["mae_by_category"]:
        rows[f"error, {name}"] = lambda r, n=name: interval(r["mae_by_category"][n])
        rows[f"90 % coverage, {name}"] = lambda r, n=name: interval(r["coverage_90_by_category"][n], 2)
    lines += [f"| {name} | " + " | ".join(cell(r) for r in results.values()) + " |" for name, cell in rows.items()]
    return "\n".join(lines) + "\n"


def picture(found: dict[str, np.ndarray], cases: CaseTable, path: Path) -> None:
    """Estimate against truth with intervals, and error against depth."""
    figure = Figure((10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    category = np.array(cases.category)
    for name in sorted(set(category)):
        rows = category == name
        left.errorbar(
            100 * found["truth"][rows, -1],
            100 * found["estimate"][rows, -1],
            100 * found["half"][rows, -1],
            fmt="o",
            ms=3,
            lw=0.5,
            alpha=0.5,
            color=COLOURS.get(name, "k"),
            label=name,
        )
    left.plot([0, 100], [0, 100], "k-", lw=0.8)
    left.set(
        xlim=(0, 100),
        ylim=(0, 100),
        aspect="equal",
        xlabel="true aeration, 0-6 mm [%]",
        ylabel="estimate, 90 % interval [%]",
    )
    left.legend(frameon=False, fontsize=8)
    edges = np.array(cases.band_edges) / MM
    middle = (edges[1:] + edges[:-1]) / 2
    for name in sorted(set(category)):
        right.plot(
            middle, 100 * found["error"][category == name, :-1].mean(0), "o-", color=COLOURS.get(name, "k"), label=name
        )
    right.plot(middle, 100 * found["error"][:, :-1].mean(0), "ks--", lw=1, ms=4, label="all")
    right.set(xlabel="depth below the pleura [mm]", ylabel="mean absolute error [points of aeration]", ylim=(0, None))
    right.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png", metadata={"Software": None})


def main() -> None:
    """Run and write the committed files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=SHIPPED / "ridge-tiny")
    parser.add_argument("--snr", type=float, nargs="+", default=[30.0, 20.0, 10.0], help="noise levels [dB]")
    parser.add_argument("--docs", type=Path, default=DOCS)
    parser.add_argument("--name", default="ridge", help="of the files written")
    options = parser.parse_args()
    model = load_model(options.model)
    results = {}
    for level in options.snr:
        found, cases = evaluate(model, options.folder, level)
        results[f"{level:g}"] = summarise(model, found, cases)
        if level == options.snr[0]:
            picture(found, cases, options.docs / "images" / f"{options.name}.png")
    config = folder_config(options.folder)
    name = f" --name {options.name}" if options.name != "ridge" else ""
    command = f"python benchmarks/ridge.py {options.folder}{name}"
    other = "" if config.grid == model.config.grid else f"Grid of the test: {config.grid}.\n\n"
    text = table(results, model.trained, command, options.name).replace("## Percent", other + "## Percent", 1)
    write_json(
        options.docs / "results" / f"{options.name}.json",
        {"results": results, **manifest(config.to_json(), config.seed, command=command)},
    )
    with atomic_path(options.docs / "results" / f"{options.name}.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
