"""Unseen resolved lungs beside their samples: what was there, what is believed before and after the wave equation.

    python benchmarks/guided_picture.py MODEL [--cases 0 3 7] [--method hybrid] [--calls 50] [--samples 8]

Writes docs/images/guided_lungs.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch

from guided import DOCS, SEED, SNR, USUAL, saved, simulated, told
from lungwave.phantom.resolved import airspace, resolved
from lungwave.posterior.guided import AMORTIZED, lead
from lungwave.posterior.resolved import load_resolved
from lungwave.shipped import RESOLVED, model_folder

SHOWN = 2  # samples of each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--cases", type=int, nargs="+", default=[0, 3, 7])
    parser.add_argument("--method", default="hybrid")
    parser.add_argument("--calls", type=int, default=50)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--out", type=Path, default=DOCS / "images" / "guided_lungs.png")
    options = parser.parse_args()
    torch.set_num_threads(1)
    folder = model_folder(options.model, RESOLVED)
    model = load_resolved(folder)
    config = model.drawn.override({"seed": SEED, "receive.snr_db": SNR})
    rows = 1 + 2 * (1 + SHOWN)
    figure, panels = plt.subplots(
        rows, len(options.cases), figsize=(3.1 * len(options.cases), 0.95 * rows + 0.8), layout="constrained",
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    extent = (0.0, model.size[1] * config.grid.spacing * 1e3, model.size[0] * config.grid.spacing * 1e3, 0.0)
    for column, index in enumerate(options.cases):
        case = simulated(config, index, USUAL)
        heard = told(case, config, USUAL, folder)
        truth = airspace(resolved(case.anatomy, config)[0])
        shown: list[tuple[str, np.ndarray]] = [("truth", truth)]
        for method, calls in ((AMORTIZED, 0), (options.method, options.calls)):
            led = lead(model, heard, range(options.samples), method=method, name=index, calls=calls)
            air = airspace(model.scaling.to_data(led.maps[led.kept]).clamp(0, 1).numpy()[:, 0])
            name = method if not calls else f"{method}, {calls} calls"
            shown.append((f"{name}: mean, chi2 {float(led.chi2[led.kept].median()):.2f}", air.mean(0)))
            shown += [(f"{name}: sample {k}", one) for k, one in enumerate(air[:SHOWN])]
        for ax, (title, image) in zip(panels[:, column], shown, strict=True):
            drawn = ax.imshow(image, vmin=0, vmax=1, cmap="magma", extent=extent, interpolation="nearest")
            ax.set_title(title if title != "truth" else f"lung {index} ({case.anatomy.category}): truth", fontsize=7)
    for ax in panels[-1]:
        ax.set_xlabel("x [mm]")
    for ax in panels[:, 0]:
        ax.set_ylabel("depth\n[mm]", fontsize=7)
    figure.colorbar(drawn, ax=panels, label="probability of air", shrink=0.5)
    saved(figure, options.out)


if __name__ == "__main__":
    main()
