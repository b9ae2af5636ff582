"""Drawn lungs as files: a picture and the arrays of each case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from lungwave.config import Config
from lungwave.figures import AERATION, PALETTE
from lungwave.phantom.aeration import Truth, truth, truth_spacing
from lungwave.phantom.anatomy import draw, rasterise
from lungwave.phantom.medium import Medium
from lungwave.progress import Progress
from lungwave.repro import atomic_path, manifest, sha256, write_json
from lungwave.types import MM

AIR = ListedColormap(["#10151b00", "#10151b"])  # transparent tissue, dark air


def write_picture(medium: Medium, truth: Truth, title: str, path: str | Path) -> None:
    """Tissue and air on the solver's grid beside both aeration maps, on mm axes and the fixed 0-100 % scale."""
    with mpl.rc_context():
        mpl.rcdefaults()  # whatever the user's matplotlibrc says
        figure = _draw(medium, truth, title)
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def _draw(medium: Medium, truth: Truth, title: str) -> Figure:
    figure = Figure(figsize=(11.0, 4.6), facecolor="white", layout="constrained")
    tissue, sharp, smooth = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
    half = medium.spacing / 2
    edges = np.array([medium.x[0] - half, medium.x[-1] + half, medium.z[-1] + half, medium.z[0] - half]) / MM
    extent = (float(edges[0]), float(edges[1]), float(edges[2]), float(edges[3]))
    speed = tissue.imshow(
        medium.sound_speed, extent=extent, cmap="YlGnBu", vmin=1400, vmax=1700, interpolation="nearest"
    )
    tissue.imshow(medium.air > 0.5, extent=extent, cmap=AIR, vmin=0, vmax=1, interpolation="nearest")
    tissue.plot(truth.x / MM, truth.pleura_depth / MM, color=PALETTE["truth"], lw=1.2)
    tissue.set(title="air (dark), tissue and pleura", xlabel="x, mm", ylabel="depth, mm", xlim=extent[:2])
    figure.colorbar(speed, ax=tissue, location="bottom", shrink=0.8, extend="both").set_label("sound speed, m/s")
    columns, rows = len(truth.x) * truth.pixel / MM, len(truth.sharp) * truth.pixel / MM
    corners = (
        float(truth.x[0]) / MM - truth.pixel / 2 / MM,
        float(truth.x[0]) / MM - truth.pixel / 2 / MM + columns,
        rows,
        0.0,
    )
    for axes, values, name in ((sharp, truth.sharp, "0.15 mm"), (smooth, truth.smooth, "0.5 mm")):
        image = axes.imshow(
            np.where(truth.lung, values, np.nan),
            extent=corners,
            cmap=AERATION.colormap(),
            vmin=AERATION.low,
            vmax=AERATION.high,
            interpolation="nearest",
        )
        axes.set(title=f"aeration at {name}", xlabel="x, mm", ylabel="depth below the pleura, mm")
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.8)
        bar.set_ticks(list(AERATION.ticks), labels=[f"{100 * tick:.0f}" for tick in AERATION.ticks])
        bar.set_label(AERATION.label)
    figure.suptitle(title)
    return figure


def medium_width(config: Config) -> float:
    """Width [m] that all transmit events together look at."""
    walk = max(0, config.probe.array_elements - config.probe.elements) * config.probe.pitch
    return config.grid.width + walk


def plan(config: Config, cases: range, out: Path) -> dict[str, Any]:
    """What ``write_lungs`` would write; bytes before compression."""
    nodes = round(config.grid.depth / config.grid.spacing) * round(medium_width(config) / config.grid.spacing)
    per_case = 16 * nodes + (2 * 8 + 1) * config.map.rows * config.map.columns
    return {
        "cases": len(cases),
        "bytes": per_case * len(cases),
        "out": str(out),
        "files": [*(f"case_{cases[0]:06d}{suffix}" for suffix in (".png", ".npz")), "...", "manifest.json"],
    }


def write_lungs(config: Config, cases: range, out: Path, *, quiet: bool = False) -> dict[str, Any]:
    """Draw ``cases`` and write a PNG and an NPZ of each, and one manifest; say what each lung is."""
    drawn: list[dict[str, Any]] = []
    hashes: dict[str, str] = {}
    with Progress(len(cases), "phantom", quiet=quiet) as progress:
        for index in cases:
            anatomy = draw(config, index)
            medium = rasterise(anatomy, config.grid.spacing, config.grid.depth, medium_width(config))
            known = truth(anatomy, config.map, truth_spacing(config))
            stem = out / f"case_{index:06d}"
            whole = None if np.isnan(known.whole) else known.whole
            said = "not quantifiable" if whole is None else f"{whole:.0%} air to {known.band_edges[-1] / MM:g} mm"
            write_arrays(medium, known, anatomy.parameters, stem.with_suffix(".npz"))
            write_picture(medium, known, f"case {index}: {anatomy.category}, {said}", stem.with_suffix(".png"))
            hashes |= {path.name: sha256(path) for path in (stem.with_suffix(".npz"), stem.with_suffix(".png"))}
            drawn.append(
                {"case": index, "category": anatomy.category, "base_id": anatomy.base_id, "percent_aeration": whole}
            )
            progress.advance()
    write_json(out / "manifest.json", manifest(config.to_json(), config.seed, cases=drawn, files=hashes))
    return {"out": str(out), "lungs": drawn}


def write_arrays(medium: Medium, truth: Truth, parameters: dict[str, Any], path: Path) -> None:
    """Medium and truth as compressed NPZ that loads without pickle; ``parameters`` is JSON text."""
    arrays = {
        "sound_speed": medium.sound_speed,
        "density": medium.density,
        "attenuation": medium.attenuation,
        "air": medium.air,
        "spacing": np.array(medium.spacing),
        "origin": np.array(medium.origin),
        "aeration_sharp": truth.sharp,
        "aeration_smooth": truth.smooth,
        "lung": truth.lung,
        "valid": truth.valid,
        "pleura_depth": truth.pleura_depth,
        "pixel": np.array(truth.pixel),
        "x": truth.x,
        "bands": truth.bands,
        "band_edges": np.array(truth.band_edges),
        "whole": np.array(truth.whole),
        "parameters": np.array(json.dumps(parameters, sort_keys=True)),
    }
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
