"""B-mode of the three third-party RF sets: pictures and measured figures; closed-form checks.

    python benchmarks/bmode_sets.py [--shared FOLDER]

Writes docs/images/bmode_*.png and docs/results/bmode_sets.{md,json}. FOLDER holds ``data/rf-...`` (default: the folder
``shared`` beside the checkout, or LUNGWAVE_SHARED).
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import scipy.io
import scipy.ndimage
import scipy.signal
import torch

from lungwave.acoustics.beamform import Beamformer, PixelGrid, receive_delay, transmit_delay, wavefronts
from lungwave.acoustics.bmode import bmode, compound, compounded
from lungwave.acoustics.image import BMode
from lungwave.acoustics.iq import upsampling
from lungwave.acoustics.probe import Recording, pulse, sequence
from lungwave.config import preset
from lungwave.data.convert import load_any
from lungwave.repro import atomic_path, versions, write_json

ROOT = Path(__file__).resolve().parents[1]
MM = 1e-3
TRUTH = "#ffb000"  # marker colour that neither grey nor print loses


def show(axis: plt.Axes, image: BMode, title: str) -> Any:
    """One B-mode in grey, millimetres, equal aspect; returns what a colour bar needs."""
    half_x, half_z = (float(v[1] - v[0]) / 2 for v in (image.x, image.z))
    extent = np.array([image.x[0] - half_x, image.x[-1] + half_x, image.z[-1] + half_z, image.z[0] - half_z]) / MM
    drawn = axis.imshow(
        image.decibel, cmap="gray", vmin=-image.dynamic_range, vmax=0, extent=tuple(extent), aspect="equal"
    )
    axis.set(title=title, xlabel="lateral x [mm]", ylabel="depth z [mm]")
    return drawn


def save(figure: plt.Figure, name: str) -> None:
    with atomic_path(ROOT / "docs" / "images" / name) as path:
        figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def brightest(recording: Recording, grid: PixelGrid, f_number: float) -> tuple[float, float]:
    image = compounded(torch.as_tensor(recording.rf[0]), recording.scan, grid, f_number).abs().numpy()
    row, column = np.unravel_index(image.argmax(), image.shape)
    return float(grid.x[column]), float(grid.z[row])


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def field_ii(folder: Path) -> dict[str, Any]:
    """Isolated points against truth; the sign of the angle."""
    path = folder / "rf_dataset.hdf5"
    recording = load_any(path)
    with h5py.File(path) as file:
        x, _, z = file["sim_params/scatters_data"][()]
    alone = [i for i in range(len(z)) if (np.abs(z - z[i]) < MM).sum() == 1]
    points = []
    for i in alone:
        patch = PixelGrid(z[i] + np.arange(-1, 1, 0.01) * MM, x[i] + np.arange(-0.5, 0.505, 0.01) * MM)
        found = brightest(recording, patch, 1.5)
        points.append({"truth_mm": [x[i] / MM, z[i] / MM], "found_mm": [found[0] / MM, found[1] / MM]})

    flipped = replace(recording.scan, angles=-recording.scan.angles, delays=-recording.scan.delays)
    agreement, level = [], []
    row = np.sort(x[(np.abs(z - 29.568 * MM) < 0.01 * MM) & (np.abs(x) > 3 * MM) & (np.abs(x) < 14 * MM)])
    for scan in (recording.scan, flipped):
        images = Beamformer(scan, PixelGrid(29.568 * MM + np.arange(-0.2, 0.41, 0.02) * MM, row))(
            torch.as_tensor(recording.rf[0])
        )
        together = compound(images).abs().amax(0)
        agreement.append(float((together / images.abs().amax(1).mean(0)).mean()))
        level.append(float(together.mean()))

    wide = PixelGrid(np.arange(3, 50, 0.08) * MM, np.arange(-21, 21.01, 0.08) * MM)
    zoom = PixelGrid(np.arange(23.5, 36.5, 0.04) * MM, np.arange(-6, 6.01, 0.04) * MM)
    figure, axes = plt.subplots(1, 3, figsize=(14, 6.2), layout="constrained", width_ratios=(1.2, 1, 1))
    drawn = show(axes[0], bmode(recording, wide), "Field II, 3 plane waves (-12, 0, 12 deg)")
    axes[0].scatter(
        x[alone] / MM, z[alone] / MM, 90, facecolors="none", edgecolors=TRUTH, label="isolated point, truth"
    )
    axes[0].legend(loc="lower right", fontsize=8)
    show(axes[1], bmode(recording, zoom), "rows of points, stated angles")
    inside = (z > zoom.z[0]) & (z < zoom.z[-1]) & (x > zoom.x[0]) & (x < zoom.x[-1])
    axes[1].scatter(
        x[inside] / MM, z[inside] / MM, 5, color=TRUTH, marker="+", linewidths=0.5, label="scatterer, truth"
    )
    axes[1].legend(loc="lower right", fontsize=8)
    show(axes[2], bmode(replace(recording, scan=flipped), zoom), "same, sign of the angles flipped")
    figure.colorbar(drawn, ax=axes, label="envelope [dB]", shrink=0.7)
    save(figure, "bmode_fieldii.png")
    axial = [p["found_mm"][1] - p["truth_mm"][1] for p in points]
    return {
        "points": points,
        "axial_error_mm": axial,
        "lateral_error_mm": [p["found_mm"][0] - p["truth_mm"][0] for p in points],
        "after_known_offset_mm": [a - 0.18 for a in axial],
        "pulse_delay_ns": recording.scan.pulse_delay * 1e9,
        "phase_agreement_of_three_angles": {"stated_sign": agreement[0], "flipped_sign": agreement[1]},
        "level_with_flipped_sign": level[1] / level[0],
    }


def disk(folder: Path) -> dict[str, Any]:
    """Against the image of the authors, as it is and as a beamformer that ignores band-pass sampling would draw it."""
    recording = load_any(folder / "PWI_disk.mat")
    theirs = scipy.io.loadmat(folder / "bmode_PWI_disk.mat")["I"]
    grid = PixelGrid(np.linspace(10, 35, 251) * MM, np.linspace(-12.5, 12.5, 251) * MM)
    raw, blurred = [], []
    for frame in range(theirs.shape[2]):
        pair = bmode(recording, grid, frame=frame, dynamic_range=40.0).decibel, theirs[..., frame].astype(float)
        raw.append(correlation(*pair))
        blurred.append(correlation(*(scipy.ndimage.gaussian_filter(a, 3.0) for a in pair)))
    folded = replace(recording.scan, center_frequency=5e6 / 3, spectrum_reversed=False, bandwidth=0.45)
    naive = bmode(replace(recording, scan=folded), grid, dynamic_range=40.0)
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.9), layout="constrained", sharey=True)
    authors = BMode(theirs[..., 0] / 255.0 * 40 - 40, grid.x, grid.z, 40.0)
    drawn = show(axes[0], authors, "authors' image (MUST), frame 0")
    show(axes[1], bmode(recording, grid, dynamic_range=40.0), f"lungwave, correlation {raw[0]:.3f}")
    show(axes[2], naive, f"spectrum taken as unmirrored, {correlation(naive.decibel, theirs[..., 0]):.2f}")
    figure.colorbar(drawn, ax=axes, label="envelope [dB]", shrink=0.8)
    save(figure, "bmode_disk.png")
    return {
        "correlation_raw": {"frame_0": raw[0], "frame_15": raw[15], "min": min(raw), "mean": float(np.mean(raw))},
        "correlation_blurred_3px": {
            "frame_0": blurred[0],
            "frame_15": blurred[15],
            "min": min(blurred),
            "mean": float(np.mean(blurred)),
        },
        "correlation_spectrum_not_reversed": correlation(naive.decibel, theirs[..., 0]),
        "baseband_samples_per_rf_sample": upsampling(recording.scan),
    }


def aluminium(folder: Path) -> dict[str, Any]:
    """Notch and back wall of the block, total focusing."""
    recording = load_any(folder / "contact_notch_aluminium.mat")
    patch = PixelGrid(np.arange(12, 28, 0.05) * MM, np.arange(2, 9, 0.05) * MM)
    notch = brightest(recording, patch, 0.5)
    wall = PixelGrid(np.arange(37, 44, 0.02) * MM, np.arange(-5, 5.1, 0.5) * MM)
    level = compounded(torch.as_tensor(recording.rf[0]), recording.scan, wall, 0.5).abs().numpy()
    depth = wall.z[level.argmax(0)]
    image = bmode(recording, PixelGrid(np.arange(8, 46, 0.1) * MM, np.arange(-11, 11.01, 0.1) * MM), f_number=0.5)
    figure, axis = plt.subplots(figsize=(6.0, 7.6), layout="constrained")
    drawn = show(axis, image, "aluminium block, 64 x 64 full matrix")
    axis.scatter(
        [6.6], [19.5], 160, facecolors="none", edgecolors=TRUTH, linewidths=1.5, label="notch, reference 6.6 / 19.5 mm"
    )
    for edge, label in ((-10.6, "back wall, reference 40.75 mm"), (10.6, None)):
        axis.plot([edge - 0.4, edge + 0.4], [40.75, 40.75], color=TRUTH, linewidth=2, label=label)
    axis.legend(loc="upper right", fontsize=8)
    figure.colorbar(drawn, ax=axis, label="envelope [dB]", shrink=0.7)
    save(figure, "bmode_aluminium.png")
    return {
        "notch_mm": [notch[0] / MM, notch[1] / MM],
        "notch_error_mm": [notch[0] / MM - 6.6, notch[1] / MM - 19.5],
        "back_wall_mm": {
            "median": float(np.median(depth) / MM),
            "min": float(depth.min() / MM),
            "max": float(depth.max() / MM),
        },
        "back_wall_error_mm": float(np.median(depth) / MM - 40.75),
    }


def focus_model() -> dict[str, float]:
    """Arrival time of a focused beam near its focus: virtual-source models against the superposed field of the array.

    One event of the paper preset, 17-23 mm around the 20 mm focus, from the axis to 0.9 of the waist. RMS in periods by
    half length of the focal zone in wavelengths x (focal f-number)^2; 0.01 is the bare sphere.
    """
    scan = sequence(preset("paper"))
    event, speed, centre = 8, scan.sound_speed, scan.center_frequency
    places, origin, front = scan.event_elements(event), scan.origins[event], wavefronts(scan)[event]
    f_number = 20 * MM / np.ptp(places[:, 0])
    unit, clock = speed / centre * f_number**2, np.arange(0, 30e-6, 5e-9)
    errors: dict[str, list[float]] = {}
    for z in np.arange(17, 23.01, 0.25) * MM:
        for share in (0.0, 0.5, 0.9):
            x = origin[0] + share * speed / centre * f_number
            away = np.hypot(x - places[:, 0], z)
            field = pulse(clock[:, None] - scan.delays[event] - away / speed, centre, 2.0) / np.sqrt(away)
            arrived = clock[np.abs(scipy.signal.hilbert(field.sum(1))).argmax()] - scan.pulse_delay
            at = [torch.tensor(v, dtype=torch.float64) for v in (z, x)]
            for length in (0.01, 0.5, 1.0, 2.0, 3.5):
                model = replace(front, focal_zone=length * unit)
                errors.setdefault(f"{length:g}", []).append((float(model.arrival(*at)) - arrived) * centre)
    return {length: float(np.sqrt(np.mean(np.square(values)))) for length, values in errors.items()}


def accuracy() -> dict[str, float]:
    """Relative L2 error of the image of one point against the sum of exact pulses, tiny preset, by width of the pulse.

    It holds the linear interpolation and what the pass-band takes off the pulse.
    """
    scan, found = sequence(preset("tiny")), {}
    point = (0.6 * MM, 6.3 * MM)
    grid = PixelGrid(point[1] + np.linspace(-0.5, 0.5, 21) * MM, point[0] + np.linspace(-1, 1, 17) * MM)
    clock = scan.start_times[:, None, None] + np.arange(191)[:, None] / scan.sampling_frequency

    def arrival(z: np.ndarray, x: np.ndarray) -> np.ndarray:
        patch = PixelGrid(z, x)
        return (transmit_delay(scan, patch)[:, None] + receive_delay(scan, patch)).numpy()  # (tx, el, z, x)

    true = arrival(np.array([point[1]]), np.array([point[0]]))
    for width in (0.3, 0.6, 0.9):
        rate = np.pi * width * scan.center_frequency / (2 * np.sqrt(np.log(2)))

        def echo(late: np.ndarray, rate: float = rate) -> np.ndarray:
            return np.exp(-((rate * late) ** 2)) * np.exp(2j * np.pi * scan.center_frequency * late)

        rf = echo(clock - scan.pulse_delay - true[:, :, 0, 0][:, None, :]).real
        image = Beamformer(scan, grid, 0.0, dtype=torch.float64)(torch.as_tensor(rf)).numpy()
        exact = echo(arrival(grid.z, grid.x) - true).mean(1)
        found[f"{width:g}"] = float(np.linalg.norm(image - exact) / np.linalg.norm(exact))
    return found


def markdown(results: dict[str, Any]) -> str:
    points, circle, block = results["field_ii"], results["disk"], results["aluminium"]

    def row(values: list[float]) -> str:
        return " / ".join(f"{v:+.2f}" for v in values)

    raw, blurred = circle["correlation_raw"], circle["correlation_blurred_3px"]
    agree = points["phase_agreement_of_three_angles"]
    lines = [
        "# B-mode of third-party RF",
        "",
        "Made by `python benchmarks/bmode_sets.py`. Goals: checks of the same sets with another beamformer.",
        "",
        "| set | figure | reached | goal |",
        "|---|---|---|---|",
        f"| Field II, 4 isolated points | depth minus truth [mm] | {row(points['axial_error_mm'])} | |",
        f"| | after the known +0.18 mm [mm] | {row(points['after_known_offset_mm'])} | within 0.2 |",
        f"| | lateral minus truth [mm] | {row(points['lateral_error_mm'])} | within 0.2 |",
        f"| | pulse delay that the file itself gives [ns] | {points['pulse_delay_ns']:.1f} | |",
        f"| | 18 points off the axis: amplitude of the compound over the mean of the 3 images, stated / flipped sign | "
        f"{agree['stated_sign']:.3f} / {agree['flipped_sign']:.3f} | tell apart |",
        f"| | their level, flipped over stated sign | {points['level_with_flipped_sign']:.2f} | tell apart |",
        f"| Verasonics disk, 32 frames | correlation with the authors' image: frame 0, 15, mean, min | "
        f"{raw['frame_0']:.3f}, {raw['frame_15']:.3f}, {raw['mean']:.3f}, {raw['min']:.3f} | >= 0.86 |",
        f"| | both blurred by 3 pixels | {blurred['frame_0']:.3f}, {blurred['frame_15']:.3f}, {blurred['mean']:.3f}, "
        f"{blurred['min']:.3f} | 0.96 (reference beamformer) |",
        f"| | spectrum taken as unmirrored | {circle['correlation_spectrum_not_reversed']:.3f} | fails |",
        f"| Aluminium, full matrix | notch x, z [mm] | {block['notch_mm'][0]:.2f}, {block['notch_mm'][1]:.2f} "
        "| 6.6, 19.5 within 0.3 |",
        f"| | back wall, median over x = -5..5 mm [mm] | {block['back_wall_mm']['median']:.2f} "
        f"({block['back_wall_mm']['min']:.2f}-{block['back_wall_mm']['max']:.2f}) | 40.75 within 0.3 |",
        "",
        "Closed form (no data needed):",
        "",
        "| check | figure |",
        "|---|---|",
        "| image of a point against the exact delayed sum, tiny preset, relative L2, pulse of fractional -6 dB width "
        + ", ".join(results["accuracy"])
        + " | "
        + ", ".join(f"{100 * v:.2f} %" for v in results["accuracy"].values())
        + " |",
        "| arrival time within 3 mm of a focus against the superposed field, RMS in periods, focal zone "
        + ", ".join(results["focus_model"])
        + " wavelengths x f-number^2 | "
        + ", ".join(f"{v:.3f}" for v in results["focus_model"].values())
        + " |",
        "",
        "![Field II points](../images/bmode_fieldii.png)",
        "![disk](../images/bmode_disk.png)",
        "![aluminium block](../images/bmode_aluminium.png)",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("LUNGWAVE_SHARED", ROOT.parent / "shared")))
    data = parser.parse_args().shared / "data"
    results: dict[str, Any] = {}
    for name, folder, measure in (
        ("field_ii", "rf-fieldii-planewave3", field_ii),
        ("disk", "rf-verasonics-disk", disk),
        ("aluminium", "rf-fmc-aluminium", aluminium),
    ):
        start = time.perf_counter()
        results[name] = measure(data / folder)
        print(f"{name}: {time.perf_counter() - start:.1f} s")
    results["focus_model"], results["accuracy"] = focus_model(), accuracy()
    results["versions"] = versions()
    write_json(ROOT / "docs" / "results" / "bmode_sets.json", results)
    with atomic_path(ROOT / "docs" / "results" / "bmode_sets.md") as path:
        path.write_text(markdown(results), encoding="utf-8")
    print(markdown(results))


if __name__ == "__main__":
    main()
