"""B-mode of three sets that nobody here made: simulated points, a measured disk, a measured aluminium block."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
import scipy.ndimage
import torch

from lungwave.acoustics.beamform import Beamformer, PixelGrid
from lungwave.acoustics.bmode import bmode, compound, compounded
from lungwave.acoustics.probe import Recording
from lungwave.data.convert import load_any

MM = 1e-3
Shared = Callable[[str], Path]


def brightest(recording: Recording, grid: PixelGrid, f_number: float = 1.5) -> tuple[float, float]:
    """(x, z) [m] of the envelope maximum; not on the rim."""
    image = compounded(torch.as_tensor(recording.rf[0]), recording.scan, grid, f_number).abs().numpy()
    row, column = np.unravel_index(image.argmax(), image.shape)
    assert 0 < row < len(grid.z) - 1 and 0 < column < len(grid.x) - 1, "the maximum lies on the rim of the patch"
    return float(grid.x[column]), float(grid.z[row])


@pytest.fixture(scope="module")
def field_ii(shared_data: Shared) -> tuple[Recording, np.ndarray, np.ndarray]:
    """Recording; its isolated points (x, z), no other scatterer within 1 mm of depth; x of a row at 29.568 mm [m]."""
    path = shared_data("rf-fieldii-planewave3") / "rf_dataset.hdf5"
    with h5py.File(path) as file:
        x, _, z = file["sim_params/scatters_data"][()]
    alone = [i for i in range(len(z)) if (np.abs(z - z[i]) < 1 * MM).sum() == 1]
    row = np.sort(x[(np.abs(z - 29.568 * MM) < 0.01 * MM) & (np.abs(x) > 3 * MM) & (np.abs(x) < 14 * MM)])
    return load_any(path), np.stack([x, z], 1)[alone], row


def test_isolated_points_of_field_ii(field_ii: tuple[Recording, np.ndarray, np.ndarray]) -> None:
    recording, points, _ = field_ii
    assert np.allclose(points[:, 1] / MM, [10.35, 22.18, 34.00, 45.83], atol=0.01)
    # The shift stored in the file already holds the pulse; what its pulse adds is nothing (-4 ns).
    assert abs(recording.scan.pulse_delay) < 10e-9
    errors = []
    for x, z in points:
        grid = PixelGrid(z + np.arange(-1, 1, 0.02) * MM, x + np.arange(-0.5, 0.51, 0.02) * MM)
        found = brightest(recording, grid)
        errors.append((found[0] - x, found[1] - z))
    lateral, axial = np.array(errors).T / MM
    assert np.abs(lateral).max() <= 0.04
    assert np.ptp(axial) <= 0.06, "a constant offset, as data.md section 4 found"
    assert np.abs(axial).max() < 0.2, "even before the offset"
    assert np.abs(axial - 0.18).max() < 0.2, "after the known +0.18 mm"


def test_wrong_angle_sign_of_field_ii_is_seen(field_ii: tuple[Recording, np.ndarray, np.ndarray]) -> None:
    """On a row of 18 points off the axis the three images agree in phase; with the sign flipped they part."""
    recording, _, row = field_ii
    grid = PixelGrid(29.568 * MM + np.arange(-0.2, 0.41, 0.02) * MM, row)
    rf = torch.as_tensor(recording.rf[0])
    agreement, level = {}, {}
    for sign in (1, -1):
        scan = replace(recording.scan, angles=sign * recording.scan.angles, delays=sign * recording.scan.delays)
        images = Beamformer(scan, grid)(rf)
        together = compound(images).abs().amax(0)
        agreement[sign] = float((together / images.abs().amax(1).mean(0)).mean())
        level[sign] = float(together.mean())
    assert agreement[1] > 0.97 and agreement[-1] < 0.75, agreement
    assert level[-1] < 0.45 * level[1], level


def test_disk_equals_the_image_of_its_authors(shared_data: Shared) -> None:
    folder = shared_data("rf-verasonics-disk")
    recording = load_any(folder / "PWI_disk.mat")
    theirs = scipy.io.loadmat(folder / "bmode_PWI_disk.mat")["I"].astype(float)
    grid = PixelGrid(np.linspace(10, 35, 251) * MM, np.linspace(-12.5, 12.5, 251) * MM)
    for frame in (0, 15):
        ours = bmode(recording, grid, frame=frame, dynamic_range=40.0).decibel
        assert correlation(ours, theirs[..., frame]) >= 0.86
        blurred = [scipy.ndimage.gaussian_filter(a, 3.0) for a in (ours, theirs[..., frame])]
        assert correlation(*blurred) >= 0.95
    # as plain RF of the folded frequency it must fail, or the fold would not have been undone
    folded = replace(recording.scan, center_frequency=5e6 / 3, spectrum_reversed=False, bandwidth=0.45)
    naive = bmode(replace(recording, scan=folded), grid, dynamic_range=40.0).decibel
    assert correlation(naive, theirs[..., 0]) < 0.6


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation over all pixels."""
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def test_aluminium_notch_and_back_wall(shared_data: Shared) -> None:
    recording = load_any(shared_data("rf-fmc-aluminium") / "contact_notch_aluminium.mat")
    around = PixelGrid(np.arange(12, 28, 0.1) * MM, np.arange(2, 9, 0.1) * MM)
    x, z = brightest(recording, around, f_number=0.5)
    assert abs(x / MM - 6.6) < 0.3 and abs(z / MM - 19.5) < 0.3
    wall = PixelGrid(np.arange(37, 44, 0.05) * MM, np.arange(-5, 5.1, 0.5) * MM)
    image = compounded(torch.as_tensor(recording.rf[0]), recording.scan, wall, 0.5).abs().numpy()
    depth = wall.z[image.argmax(0)] / MM
    assert np.abs(depth - 40.75).max() < 0.3
