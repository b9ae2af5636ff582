"""A data card: what a folder of generated cases holds, counted from its files, for whoever gets it next."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lungwave.acoustics.probe import sequence
from lungwave.config import Config
from lungwave.data import reading, schema
from lungwave.types import MM, RESEARCH_USE, UsageError

CARD = "README.md"


def data_card(config: Config, files: list[Path], noise: bool) -> str:
    """Markdown about the cases in ``files``, which ``config`` made: acquisition, categories, aeration, limits."""
    kinds, air, whole = _counted(files)
    probe, receive, scan = config.probe, config.receive, sequence(config)
    sent = f"{scan.transmits} {scan.kind} transmits" + (f" at {scan.degrees} degrees" if scan.transmits <= 8 else "")
    heard = f"with noise, {receive.snr_db:g} dB" if noise else "without noise: readers add it"
    lines = [
        f"# {len(kinds)} simulated lungs and their echoes",
        "",
        f"Preset {config.preset}, seed {config.seed}. RF channel data (float32, {heard}) of {scan.delays.shape[1]} "
        f"elements at {probe.pitch / MM:.3g} mm, {probe.center_frequency / 1e6:.3g} MHz, sampled at "
        f"{receive.sampling_frequency / 1e6:.4g} MHz; {sent}. Beside them the truth: aeration maps of "
        f"{config.map.rows} x {config.map.columns} pixels of {config.map.pixel / MM:.3g} mm below the pleura, percent "
        "aeration by depth, the pleura, the category and every parameter that was drawn.",
        "",
        "| category | lungs | percent aeration, mean (5 to 95 %) | lungs with columns that have no truth |",
        "|---|---|---|---|",
    ]
    for kind in sorted(set(kinds)):
        mine = kinds == kind
        known = 100 * air[mine & np.isfinite(air)]
        low, high = np.quantile(known, (0.05, 0.95)) if len(known) else (np.nan, np.nan)
        mean = known.mean() if len(known) else np.nan
        lines.append(f"| {kind} | {mine.sum()} | {mean:.0f} ({low:.0f} to {high:.0f}) | {(mine & ~whole).sum()} |")
    return "\n".join(
        [
            *lines,
            "",
            "Lungs, chest wall and tissue are drawn from distributions, and sound is a linear 2D wave: no elasticity, "
            "no third dimension, no motion. No person's data went in. Split by `base_id`: cases of one base anatomy "
            "are alike.",
            "",
            "config.json remakes every case, in any number of processes, from preset and seed; manifest.json holds "
            f"versions and the SHA-256 of every file. {RESEARCH_USE}",
            "",
        ]
    )


def _counted(files: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Category, percent aeration, and whether every column has a truth, of all cases; maps and RF are not read.

    UsageError for a file without them.
    """
    kinds, air, whole = [], [], []
    for path in files:
        with reading.open_hdf5(path) as file:
            names = reading.texts(file, schema.CATEGORY.path)
            total, valid = (reading.array(file, field.path) for field in (schema.WHOLE, schema.VALID))
        if names is None or total is None or valid is None:
            raise UsageError(f"{path} holds no truth of its cases; move it elsewhere or delete it to have it made anew")
        kinds += list(names)
        air.append(total)
        whole.append(np.asarray(valid, bool).all(1))
    return np.array(kinds), np.concatenate(air), np.concatenate(whole)
