"""One case of the paper preset, from the lung to its B-mode and to the 8 x 256 view of the original report.

    python benchmarks/paper_case.py [--seed 42] [--case 1] [--rf data/paper.h5]

Simulates the case into --rf, unless it is there (16 focused events, 10,890 steps each: half an hour on one core), and
draws it: chest and alveoli, channel data of the middle event, B-mode, true map of the first 6.4 mm, its 8 x 256 view.
The shipped posterior does not read this probe, and says so; ``paper_view.py`` reconstructs the view. Writes
docs/images/paper_case.png and docs/results/paper_case.{md,json}.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
from matplotlib.figure import Figure

from first_screen import FLESH
from lungwave import figures
from lungwave.config import preset
from lungwave.data.drawn import draw_map
from lungwave.data.hdf5 import read_cases, read_recording
from lungwave.figures import AERATION, PALETTE
from lungwave.phantom.anatomy import draw, rasterise
from lungwave.posterior.reconstruct import reconstruct
from lungwave.repro import atomic_path, sha256, versions, write_json
from lungwave.types import MM, RESEARCH_USE

DOCS = Path(__file__).resolve().parents[1] / "docs"
CROP = (13.0, 27.0)  # [mm] of depth that the chest is drawn between


def simulated(path: Path, seed: int, case: int) -> float | None:
    """Seconds that ``lungwave simulate`` took; None where the file was there."""
    if path.exists():
        return None
    words = ["--preset", "paper", "--seed", str(seed), "--case", str(case), "--out", str(path)]
    clock = time.perf_counter()
    subprocess.run([sys.executable, "-m", "lungwave", "simulate", *words], check=True)
    return time.perf_counter() - clock


def main() -> None:
    """Simulate, draw, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--case", type=int, default=1)
    parser.add_argument("--rf", type=Path, default=Path("data/paper.h5"))
    args = parser.parse_args()
    seconds = simulated(args.rf, args.seed, args.case)
    config = preset("paper").override({"seed": args.seed})
    recording, table = read_recording(args.rf), read_cases(args.rf)
    assert table is not None
    if table.index.tolist() != [args.case]:
        sys.exit(f"{args.rf} holds case {table.index.tolist()}, not {args.case}; choose another --rf")
    lung = draw(config, args.case)
    (result,) = reconstruct(recording)
    medium = rasterise(lung, config.grid.spacing, config.grid.depth, config.grid.width)
    smooth = table.smooth[0]
    with figures.style(9.0):
        figure = Figure(figsize=(12.6, 7.6), layout="constrained", facecolor="#ffffff")
        panels = figure.subplot_mosaic(
            [["chest", "echoes", "bmode"], ["map", "map", "bar"], ["view", "view", "view"]],
            height_ratios=(4.4, 1.7, 0.45), width_ratios=(1.55, 1, 1.05),
        )  # fmt: skip
        x, z = medium.x / MM, medium.z / MM
        colours = matplotlib.colors.LinearSegmentedColormap.from_list("tissue", FLESH).with_extremes(bad="#0b0f14")
        speed = np.where(medium.air > 0.5, np.nan, medium.sound_speed)
        ax = panels["chest"]
        ax.imshow(speed, extent=(x[0], x[-1], z[-1], z[0]), cmap=colours, vmin=1440, vmax=1620, interpolation="none")
        ax.set(ylim=(CROP[1], CROP[0]), xlabel="lateral position, mm", ylabel="depth, mm")
        ax.set_title(f"A lung ({table.category[0]}) around the pleura; air is black", loc="left")
        rf, scan = recording.rf[0], recording.scan
        event = rf[len(rf) // 2]
        times = 1e6 * np.arange(len(event)) / scan.sampling_frequency
        ax = panels["echoes"]
        loud = event / np.percentile(np.abs(event), 99)
        ax.imshow(loud, cmap="RdBu", vmin=-1, vmax=1, aspect="auto", extent=(0.5, event.shape[1] + 0.5, times[-1], 0))
        ax.set(xlabel="element", ylabel="time, \N{MICRO SIGN}s")
        ax.set_title(f"Channel data, event {len(rf) // 2 + 1} of {len(rf)}", loc="left")
        figures.draw_bmode(panels["bmode"], result)
        panels["bmode"].set_title("B-mode, 60 dB", loc="left")
        half, deep = smooth.shape[1] * table.pixel / MM / 2, smooth.shape[0] * table.pixel / MM
        view = draw_map(config, args.case, "seed").values
        for name, values, bottom in (("map", smooth, deep), ("view", view, 0.8)):
            ax = panels[name]
            image = ax.imshow(
                values, cmap=AERATION.colormap(), vmin=AERATION.low, vmax=AERATION.high, interpolation="none",
                extent=(-half, half, bottom, 0), aspect="auto" if name == "view" else "equal",
            )  # fmt: skip
            ax.set_ylabel("below the\npleura, mm")
        panels["map"].set_title(f"True aeration, {smooth.shape[0]} x {smooth.shape[1]} pixels", loc="left")
        panels["view"].set_title("The same, not smoothed: the 8 x 256 view of the report", loc="left")
        panels["bar"].axis("off")
        figures.colour_bar(figure, panels["bar"].inset_axes((0.02, 0.5, 0.8, 0.1)), image, AERATION)
        panels["bar"].text(0.02, 0.1, f"Simulated. {RESEARCH_USE}", color=PALETTE["muted"], fontsize=8.5)
        with atomic_path(DOCS / "images" / "paper_case.png") as temporary:
            figure.savefig(temporary, format="png", dpi=120)
    took = "found on disk" if seconds is None else f"simulated in {seconds / 60:.0f} minutes"
    rows = {
        "lung": f"{table.category[0]}, {100 * table.whole[0]:.1f} % air in the first 6 mm, pleura at "
        f"{table.pleura_depth[0].mean() / MM:.1f} mm",
        "grid": f"{medium.air.shape[0]} x {medium.air.shape[1]} cells of {1e6 * config.grid.spacing:.1f} \u00b5m, "
        f"{config.grid.steps} steps of {1e9 * config.grid.time_step:.2f} ns",
        "channel data": f"{' x '.join(map(str, rf.shape))} (event, time, element), "
        f"{args.rf.stat().st_size / 1e6:.1f} MB",
        "this run": took,
        "what the shipped posterior says": result.withheld or "an estimate",
    }
    text = [
        "# A case of the paper preset", "",
        f"Made by `python benchmarks/paper_case.py --seed {args.seed} --case {args.case}`. {RESEARCH_USE}", "",
        "![Lung, channel data, B-mode, true map and its 8 x 256 view](../images/paper_case.png)", "",
        "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items()), "",
        "The 8 x 256 view is that of the truth; [reconstructed](paper_view.md) from these echoes.", "",
    ]  # fmt: skip
    with atomic_path(DOCS / "results" / "paper_case.md") as temporary:
        temporary.write_text("\n".join(text), encoding="utf-8")
    write_json(DOCS / "results" / "paper_case.json", {**rows, "sha256": sha256(args.rf), "versions": versions()})
    print("\n".join(text))


if __name__ == "__main__":
    main()
