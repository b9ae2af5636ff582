"""Phantom statistics beside data nobody here made: aeration, alveoli, chest wall, CT.

    python benchmarks/phantom_statistics.py [--shared ../shared] [--tiny 240] [--paper 24]

Writes docs/results/phantom_statistics.md and .json. Third-party sets that are not there are left out by name.
"""

from __future__ import annotations

import argparse
import gzip
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from PIL import Image
from scipy import ndimage
from scipy.io import loadmat

from lungwave.config import Config, preset
from lungwave.phantom.aeration import flatten, truth, truth_spacing
from lungwave.phantom.anatomy import Anatomy, draw, grid_of, materials
from lungwave.phantom.pathology import CATEGORIES
from lungwave.phantom.wall import LAYERS
from lungwave.repro import atomic_path, versions, write_json
from lungwave.types import MM, UM

ROOT = Path(__file__).resolve().parents[1]
ALL = {"lung.categories": CATEGORIES, "lung.weights": (1.0,) * len(CATEGORIES)}
PLANNED = {  # aeration 0-6 mm that the phantom was planned for, tiny preset (mean and std, or the range)
    "healthy": "0.71 ± 0.04 (0.65-0.80)",
    "interstitial": "0.43 ± 0.11 (0.25-0.65)",
    "consolidation": "0.42 ± 0.13 (0.15-0.60); top 0.5 mm 0.21",
    "fibrosis": "0.4-0.7",
}
# RL2, the binary histology behind JASA 154:2410 (24.8 um pixels); two readings of the same file where they differ.
RL2: dict[str, Any] = {
    "air fraction": "0.212-0.216",
    "air chord mean": "158-168",
    "air chord median": 124,
    "air chord 90 %": 323,
    "tissue chord mean": 596,
    "diameter median": 97,
    "diameter 90 %": 276,
    "diameter, area-weighted": "412-462",
    "diameter largest": 1654,
    "1/e length": 124,
}
PIXEL = 24.64 * UM  # the histology's pixel, within 1 %
MOUSE_SCALE = 5.0  # human alveoli are about 200 um, murine ones about 40 um across


# --- aeration -------------------------------------------------------------------------------------------------------


def aeration(config: Config, count: int) -> dict[str, Any]:
    """Mean and std over cases of the aeration of each depth band, by category."""
    found: dict[str, list[list[float]]] = {}
    for index in range(count):
        anatomy = draw(config, index)
        measured = truth(anatomy, config.map, truth_spacing(config))
        row = [measured.whole, *measured.bands, float(np.std(measured.smooth)), float(np.std(measured.sharp))]
        row.append(decay_length(measured.smooth, measured.pixel / MM))
        found.setdefault(anatomy.category, []).append(row)
    names = [
        "whole",
        *(f"{a / MM:g}-{b / MM:g} mm" for a, b in zip(config.map.bands, config.map.bands[1:], strict=False)),
    ]
    names += ["pixel std, sigma 0.5 mm", "pixel std, sigma 0.15 mm", "pixel 1/e length [mm], sigma 0.5 mm"]
    table = {}
    for category, rows in found.items():
        values = np.array(rows)
        table[category] = {
            "cases": len(rows),
            "mean": dict(zip(names, values.mean(0).tolist(), strict=True)),
            "std": dict(zip(names, values.std(0).tolist(), strict=True)),
            "least": float(values[:, 0].min()),
            "largest": float(values[:, 0].max()),
        }
    return table


# --- alveoli --------------------------------------------------------------------------------------------------------


def runs(mask: np.ndarray, axis: int) -> np.ndarray:
    """Lengths in pixels of the runs of True along an axis that do not touch its ends."""
    rows = mask if axis == 1 else mask.T
    change = np.diff(np.pad(rows.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    start, end = np.nonzero(change == 1), np.nonzero(change == -1)
    inner = (start[1] > 0) & (end[1] < rows.shape[1])
    return (end[1] - start[1])[inner]


def decay_length(signal: np.ndarray, pixel: float) -> float:
    """Lag at which the autocovariance along the last axis falls to 1/e, interpolated, in the unit of ``pixel``."""
    centered = signal - signal.mean()
    power = (np.abs(np.fft.rfft(centered, 2 * centered.shape[-1], axis=-1)) ** 2).reshape(-1, centered.shape[-1] + 1)
    covariance = np.fft.irfft(power.mean(0))[: centered.shape[-1]]
    pairs = np.arange(centered.shape[-1], 0, -1) / centered.shape[-1]
    covariance = covariance / pairs / covariance[0]
    after = int(np.argmax(covariance < np.exp(-1)))
    before, below = covariance[after - 1], covariance[after]
    return float((after - 1 + (before - np.exp(-1)) / (before - below)) * pixel)


def morphometry(air: np.ndarray, pixel: float) -> dict[str, float]:
    """Chords, equivalent diameters and correlation of an airspace mask, in the unit of ``pixel``."""
    chords = np.concatenate([runs(air, 0), runs(air, 1)]) * pixel
    walls = np.concatenate([runs(~air, 0), runs(~air, 1)]) * pixel
    regions, _ = ndimage.label(air)
    area = np.bincount(regions.ravel())[1:]
    diameter = 2 * np.sqrt(area / np.pi) * pixel
    return {
        "air fraction": float(air.mean()),
        "air chord mean": float(chords.mean()),
        "air chord median": float(np.median(chords)),
        "air chord 90 %": float(np.percentile(chords, 90)),
        "tissue chord mean": float(walls.mean()),
        "diameter median": float(np.median(diameter)),
        "diameter 90 %": float(np.percentile(diameter, 90)),
        "diameter, area-weighted": float((diameter * area).sum() / area.sum()),
        "diameter largest": float(diameter.max()),
        "1/e length": decay_length(air.astype(float), pixel),
    }


def matched(anatomy: Anatomy, config: Config, share: float, rng: np.random.Generator) -> Anatomy:
    """The same alveoli opened at random, 3 of 10 partly filled, until ``share`` of the lung is air."""
    chance = rng.uniform(size=(3, int(anatomy.cells.group.max()) + 1))[:, anatomy.cells.group]
    narrowing = np.where(chance[1] < 0.3, 0.3 * anatomy.parameters["lung.spacing"] * chance[2], 0.0)
    everything = replace(anatomy, open=np.ones_like(anatomy.open), narrowing=narrowing)
    ceiling = flatten(everything, config.map, PIXEL).air.mean()
    return replace(everything, open=chance[0] < share / ceiling)


def alveoli(count: int) -> dict[str, dict[str, float]]:
    """Morphometry of paper phantoms by category, and of healthy alveoli opened to the aeration of RL2."""
    config = preset("paper").override(ALL)
    found: dict[str, list[dict[str, float]]] = {}
    for index in range(count):
        anatomy = draw(config, index)
        found.setdefault(anatomy.category, []).append(morphometry(flatten(anatomy, config.map, PIXEL).air, PIXEL / UM))
        if anatomy.category == "healthy":
            like = matched(anatomy, config, 0.216, np.random.default_rng(index))
            found.setdefault("at 21.6 % air", []).append(morphometry(flatten(like, config.map, PIXEL).air, PIXEL / UM))
    return {name: {k: float(np.mean([r[k] for r in rows])) for k in rows[0]} for name, rows in found.items()}


def mouse(folder: Path) -> dict[str, dict[str, float]]:
    """Morphometry of the murine H&E section for two thresholds in green, lengths times 5.

    Otsu's threshold loses the thinnest septa; the one halfway to the brightness of empty glass closes them.
    """
    green = np.asarray(Image.open(folder / "mouse_lung_he_20x_half_top.png"))[..., 1].astype(float)
    counts, edges = np.histogram(green, 256, (0, 256))
    center, weight = (edges[:-1] + edges[1:]) / 2, np.cumsum(counts)
    below = np.cumsum(counts * center)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = (below[-1] * weight / weight[-1] - below) ** 2 / (weight * (weight[-1] - weight))
    otsu, glass = float(center[np.nanargmax(spread)]), float(center[counts.argmax()])
    thresholds = {"thin septa lost": otsu, "septa closed": (otsu + glass) / 2}
    smooth = ndimage.gaussian_filter(green, 1.0)
    masks = {name: ndimage.binary_opening(smooth > level, iterations=2) for name, level in thresholds.items()}
    return {name: morphometry(mask, 0.436 * MOUSE_SCALE) for name, mask in masks.items()}


# --- chest wall -----------------------------------------------------------------------------------------------------


def undulation(depth: np.ndarray, step: float) -> dict[str, float]:
    """Roughness below 5 mm, its 1/e length, and the long waves that are left in windows of 25 mm; lengths in mm."""
    long_waves = ndimage.gaussian_filter1d(depth, 5 / step / 2.355, mode="nearest")
    rough = (depth - long_waves)[int(3 / step) : -int(3 / step)]
    width = min(round(25 / step), len(depth))
    windows = [depth[i : i + width] for i in range(0, len(depth) - width + 1, max(1, width // 2))]
    place = np.arange(width)
    left = [w - np.polyval(np.polyfit(place, w, 1), place) for w in windows]
    return {
        "roughness (robust std)": float(1.4826 * np.median(np.abs(rough - np.median(rough)))),
        "roughness 1/e length": decay_length(np.clip(rough, *np.percentile(rough, [2, 98]))[None], step),
        "waves in 25 mm (std)": float(np.median([w.std() for w in left])),
    }


def web(connective: np.ndarray, region: np.ndarray, dz: float, dx: float) -> dict[str, float]:
    """Share and size of connective strands in a layer; lengths in mm."""
    return {
        "strand share": float(connective[region].mean()),
        "strand thickness, vertical": float(runs(connective & region, 0).mean() * dz),
        "strand run, lateral": float(runs(connective & region, 1).mean() * dx),
    }


def body_wall(folder: Path) -> dict[str, dict[str, float]]:
    """The Visible Human wall, axially compressed by 0.655 and cropped by 8 mm of fat as its authors use it."""
    labels = loadmat(folder / "i2365f_etfw1.mat")["cut"]
    dx, dz, crop = 0.0825, 0.0825 * 0.655, 8.0
    connective, fat = np.isin(labels, (1, 4, 5)), labels == 3
    muscle = ndimage.binary_opening(labels == 2, np.ones((9, 9)))  # bundles, not single fibres
    row = np.arange(len(labels))[:, None]
    skin = fat.argmax(0) - (labels > 0).argmax(0)
    faces = {
        "skin to fat": fat.argmax(0),
        "fat to muscle": muscle.argmax(0),
        "last muscle": len(labels) - 1 - muscle[::-1].argmax(0),
        "inner face": len(labels) - 1 - (labels > 0)[::-1].argmax(0),
    }
    return {
        "thickness": {
            "skin": float(skin.mean() * dz),
            "fat": float((faces["fat to muscle"] - faces["skin to fat"]).mean() * dz - crop),
            "muscle and below": float((faces["inner face"] - faces["fat to muscle"]).mean() * dz),
            "skin to inner face": float((faces["inner face"] - (labels > 0).argmax(0)).mean() * dz - crop),
        },
        "fat": web(connective, (row > faces["skin to fat"]) & (row < faces["fat to muscle"]), dz, dx),
        "muscle": web(connective, (row > faces["fat to muscle"]) & (row < faces["last muscle"]), dz, dx),
        "fat to muscle": undulation(faces["fat to muscle"] * dz, dx),
        "inner face": undulation(faces["inner face"] * dz, dx),
    }


def phantom_wall(count: int) -> dict[str, dict[str, float]]:
    """The same measurements on healthy paper phantoms."""
    config = preset("paper").override({"lung.categories": ("healthy",), "lung.weights": (1.0,)})
    step = 0.0825 * MM
    rows = []
    for index in range(count):
        anatomy = draw(config, index)
        grid = grid_of(anatomy, step / 1.5, 27 * MM, 50 * MM)
        label = materials(anatomy, grid)
        strand, z, faces = label == MATERIAL["strand"], grid.z[:, None], grid.faces
        wide = anatomy.wall.interfaces(np.arange(-25 * MM, 25 * MM, step)) / MM
        mean = {name: float(v) for name, v in zip(LAYERS, np.diff(wide, axis=0, prepend=0).mean(1), strict=True)}
        dz = grid.where.spacing / MM
        rows.append(
            {
                "thickness": {
                    "skin": mean["skin"],
                    "fat": mean["fat"],
                    "muscle and below": float((wide[-1] - wide[1]).mean()),
                    "skin to inner face": float(wide[-1].mean()),
                },
                "fat": web(strand, (z > faces[0]) & (z < faces[1]), dz, dz),
                "muscle": web(strand, (z > faces[1]) & (z < faces[2]), dz, dz),
                "fat to muscle": undulation(wide[1], step / MM),
                "inner face": undulation(wide[-1], step / MM),
            }
        )
    return {part: {k: float(np.nanmean([r[part][k] for r in rows])) for k in rows[0][part]} for part in rows[0]}


MATERIAL = {name: i for i, name in enumerate((*LAYERS, "septa", "filling", "strand", "bone"))}


# --- CT -------------------------------------------------------------------------------------------------------------


def chest_ct(folder: Path) -> dict[str, float]:
    """Aeration clip(-HU / 1000) of the lungs of a chest CT; the outer 2 mm are partial volume and left out."""
    head, _, body = (folder / "lung1_image.nrrd").read_bytes().partition(b"\n\n")
    fields = dict(line.split(": ", 1) for line in head.decode().splitlines() if ": " in line)
    body = gzip.decompress(body) if fields["encoding"] in ("gzip", "gz") else body
    size = [int(n) for n in fields["sizes"].split()]
    hounsfield = np.frombuffer(body, "<i2").reshape(size[::-1])
    pixel = 0.5703
    means, rims, spreads, lengths = [], [], [], []
    for image in hounsfield:
        regions, _ = ndimage.label(image < -400)
        area = np.bincount(regions.ravel())
        border = np.unique(np.concatenate([regions[[0, -1]].ravel(), regions[:, [0, -1]].ravel()]))
        wanted = np.flatnonzero((area * pixel**2 > 1500) & ~np.isin(np.arange(len(area)), [0, *border]))
        lung = ndimage.binary_fill_holes(np.isin(regions, wanted))
        if not lung.any():
            continue
        depth = ndimage.distance_transform_edt(lung) * pixel
        value = np.clip(-image / 1000, 0, 1)
        band = (depth > 2) & (depth < 12)
        means.append(value[lung].mean())
        rims.append(value[band].mean())
        spreads.append(value[band].std())
        lengths += [decay_length(value[r, c][None], pixel) for r, c in _stretches(band & (depth > 2), 40)]
    return {
        "slices": len(means),
        "lung mean": float(np.mean(means)),
        "2-12 mm below pleura": float(np.mean(rims)),
        "pixel std": float(np.mean(spreads)),
        "1/e length [mm]": float(np.median(lengths)),
    }


def _stretches(mask: np.ndarray, least: int) -> list[tuple[int, slice]]:
    found = []
    for r, row in enumerate(mask):
        change = np.diff(np.pad(row.astype(np.int8), 1))
        for a, b in zip(np.flatnonzero(change == 1), np.flatnonzero(change == -1), strict=True):
            if b - a >= least:
                found.append((r, slice(int(a), int(b))))
    return found


def ct_patches(folder: Path) -> dict[str, float]:
    """Windowed values of the lung patches: no HU, so only their contrast can be read."""
    with h5py.File(folder / "val_patches.h5") as file:
        images = np.asarray(file["images"])[:, 0]
    dark = images < np.median(images)
    return {
        "patches": len(images),
        "mean": float(images.mean()),
        "mean of the darker half (lung)": float(images[dark].mean()),
        "std of the darker half": float(images[dark].std()),
    }


# --- report ---------------------------------------------------------------------------------------------------------


def rows_of(columns: dict[str, dict[str, Any]], digits: int = 0) -> list[str]:
    """Markdown table with one column per entry; all share their keys."""
    keys = list(dict.fromkeys(k for column in columns.values() for k in column))

    def cell(value: Any) -> str:
        if value is None:
            return "-"
        if isinstance(value, float):
            return f"{value:.{digits if abs(value) >= 1 else max(digits, 3)}f}"
        return str(value)

    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    return lines + ["| " + " | ".join([k, *(cell(c.get(k)) for c in columns.values())]) + " |" for k in keys]


def aeration_rows(table: dict[str, Any], planned: bool) -> list[str]:
    names = [n for n in next(iter(table.values()))["mean"] if not n.startswith("pixel")]
    lines = [
        "| category | cases | " + " | ".join(names) + " | least-largest |" + (" planned, 0-6 mm |" if planned else "")
    ]
    lines += ["|---|---|" + "---|" * (len(names) + 1 + planned)]
    for category, entry in table.items():
        cells = [f"{entry['mean'][n]:.2f} ± {entry['std'][n]:.2f}" for n in names]
        extra = f" {PLANNED[category]} |" if planned else ""
        limits = f"{entry['least']:.2f}-{entry['largest']:.2f}"
        lines.append(f"| {category} | {entry['cases']} | " + " | ".join(cells) + f" | {limits} |" + extra)
    return lines


def markdown(result: dict[str, Any]) -> str:
    """The committed page."""
    alveolar = {f"phantom, {k}": v for k, v in result["alveoli"].items()}
    alveolar = {"RL2 histology": RL2, **dict(sorted(alveolar.items(), key=lambda item: "21.6" not in item[0]))}
    alveolar |= {f"mouse H&E x 5, {name}": values for name, values in (result["mouse"] or {}).items()}
    lines = [
        "# Phantom statistics",
        "",
        f"Made by `{result['command']}`. Numbers and versions also in `phantom_statistics.json`.",
        "",
        "## Aeration by depth below the pleura",
        "Mean ± standard deviation over cases; *whole* is 0-6 mm, with least and largest case at the right.",
        "",
    ]
    for name, table in result["aeration"].items():
        lines += [f"**{name} preset**", "", *aeration_rows(table, name == "tiny"), ""]
    lines += [
        "## Alveoli",
        "Paper preset, undilated airspaces in pixels of 24.64 um; lengths in um. *At 21.6 % air* opens the alveoli of",
        "the healthy phantoms at random down to the aeration of RL2, 3 of 10 partly filled: the fair neighbour of RL2.",
        "",
        *rows_of(alveolar),
        "",
        NOTES["alveoli"].strip(),
        "",
        "## Chest wall",
        "Paper preset, healthy, beside the Visible Human wall; lengths in mm.",
        "",
    ]
    for part, values in result["wall"]["phantom"].items():
        columns = {"phantom": values}
        if result["wall"]["body wall"]:
            columns["body wall"] = result["wall"]["body wall"][part]
        lines += [f"**{part}**", "", *rows_of(columns, 2), ""]
    lines += [NOTES["wall"].strip(), "", "## CT", ""]
    for name, values in result["ct"].items():
        lines += [f"**{name}**", "", *rows_of({"value": values}, 2), ""] if values else [f"{name}: not there", ""]
    healthy = result["aeration"]["paper"]["healthy"]["mean"]
    lines += [
        f"Phantom, healthy, paper preset: 0-6 mm {healthy['whole']:.2f},"
        f" pixel std {healthy['pixel std, sigma 0.5 mm']:.2f} at sigma 0.5 mm"
        f" (1/e length {healthy['pixel 1/e length [mm], sigma 0.5 mm']:.2f} mm) and"
        f" {healthy['pixel std, sigma 0.15 mm']:.2f} at 0.15 mm.",
        "",
        NOTES["ct"].strip(),
    ]
    return "\n".join(lines) + "\n"


NOTES = {
    "alveoli": """
Tuned to RL2: mean distance of alveoli, disorder, and up to half of them joined to ducts (paper preset). Close: air and
tissue chords, 1/e length. **Missed**: RL2 has many scraps of air (median diameter half of ours) and a few spaces of
1-1.6 mm (area-weighted diameter and 90 % chord larger than ours); a Voronoi foam with ducts of 2-6 alveoli makes
neither. The mouse section is scaled by a round 5, is sampled 11 times finer, and its diameters depend on whether the
threshold closes every septum; only its chords are comparable.
""",
    "wall": """
From this table: `fat_strands`, `muscle_strands`, `strand` (share and thickness), `fascia_rough`, `fascia_length` and
`fat_waviness` of the paper preset; `rough` and `rough_length` were left as the literature gives them, because the inner
face agrees. Thickness ranges are those of the literature and wider than one person. **Missed**: real skin is flat and
thinner here, muscle strands are shorter than ours, fat lobes also lie between muscles, and the fat-muscle
face of ours has a longer correlation. micro and tiny shrink the wall to 3-4.5 mm: they keep the shares and scale the
lengths, and represent no person.
""",
    "ct": """
A full breath holds more air than these phantoms can: septa of one or two cells in 2D set a ceiling of about 0.75 to
0.8, and CT reads 0.84 below the pleura. Healthy here therefore means *near the ceiling*, and aeration of a phantom is
not to be read as a patient's CT aeration. CT pixels of 0.57 mm (5 mm thick) vary more and over longer distances than
healthy phantoms smoothed to a like width, because vessels, airways and lobules are not drawn. The patches are windowed
to 0-1, not HU: they say nothing about absolute aeration and are listed for completeness.
""",
}


def main(arguments: list[str]) -> None:
    """Measure everything and write the two result files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared", help="folder that holds data/")
    parser.add_argument("--tiny", type=int, default=240, help="cases of the micro and tiny presets each")
    parser.add_argument("--paper", type=int, default=24, help="cases of the paper preset")
    chosen = parser.parse_args(arguments)

    def third_party(name: str, measure: Callable[[Path], dict[str, Any]]) -> dict[str, Any] | None:
        folder = chosen.shared / "data" / name
        return measure(folder) if folder.is_dir() else None

    counts = {"tiny": chosen.tiny, "micro": chosen.tiny, "paper": chosen.paper}
    result = {
        "command": f"python benchmarks/phantom_statistics.py --tiny {chosen.tiny} --paper {chosen.paper}",
        "versions": versions(),
        "aeration": {name: aeration(preset(name).override(ALL), count) for name, count in counts.items()},
        "alveoli": alveoli(chosen.paper),
        "rl2": RL2,
        "mouse": third_party("histology-mouse-he", mouse),
        "wall": {"phantom": phantom_wall(chosen.paper), "body wall": third_party("bodywall-map", body_wall)},
        "ct": {
            "ct-chest-lung1": third_party("ct-chest-lung1", chest_ct),
            "ct-lung-patches": third_party("ct-lung-patches", ct_patches),
        },
    }
    folder = ROOT / "docs" / "results"
    write_json(folder / "phantom_statistics.json", result)
    with atomic_path(folder / "phantom_statistics.md") as path:
        path.write_text(markdown(result), encoding="utf-8")
    print(f"wrote {folder.relative_to(ROOT) / 'phantom_statistics.md'}")


if __name__ == "__main__":
    main(sys.argv[1:])
