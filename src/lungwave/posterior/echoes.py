"""Energies and coherences of the echoes on the map's columns: what the pleura detector and the ridge model read.

Every feature is a logarithm of a ratio, so the recording's gain drops out. Depths and times are multiples of the
wavelength and period, so one definition serves every preset.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Complex, Float
from scipy.ndimage import gaussian_filter1d
from torch import Tensor

from lungwave.acoustics.beamform import Beamformer, PixelGrid, transmit_delay
from lungwave.acoustics.iq import analytic
from lungwave.acoustics.probe import Scan
from lungwave.config import Config
from lungwave.phantom.aeration import map_columns
from lungwave.types import MM, Frames

ROWS_PER_WAVELENGTH = 5
FLOOR = 1e-12  # relative to the reference energy: below it there is no echo
RATIO_FLOOR = 1e-3
LATERAL_SMOOTHING = 0.6  # [wavelength] standard deviation
# Depths below the pleura at which columns are read [wavelength]; denser near the pleura, where the echoes know most.
DEPTHS = np.array([-1.2, -0.6, 0.0, 0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 2.5, 3.1, 3.9, 4.9, 5.8, 6.8, 7.8, 9.7, 11.7])
# Windows of the channel data after the pleura's echo [period]
WINDOWS = np.array([-1.2, 0.0, 0.9, 1.8, 3.0, 4.5, 6.0, 8.1, 10.5, 13.5, 18.0, 24.0])
LAGS = (1, 2, 4, 8)  # elements apart, spatial coherence (van Cittert-Zernike; falls with multiple scattering)


@dataclass(frozen=True)
class Echoes:
    """Energies of beamformed and channel data of several frames, relative to the mean energy of the search depths."""

    single: Float[np.ndarray, "frame z x"]  # mean over events of the beamformed energy
    compound: Float[np.ndarray, "frame z x"]  # energy of the coherent compound
    channel: Float[np.ndarray, "frame z x"]  # mean energy of the delayed channels
    z: Float[np.ndarray, " z"]  # [m]
    x: Float[np.ndarray, " x"]  # [m]
    rf: Frames
    scan: Scan
    reference: Float[np.ndarray, " frame"]  # energy that the images were divided by

    @property
    def wavelength(self) -> float:
        """Wavelength at the centre frequency [m]."""
        return self.scan.sound_speed / self.scan.center_frequency

    def logs(self, lateral: float, axial: float = 0.0) -> list[Float[np.ndarray, "frame z x"]]:
        """Log energy of the compound, its angular coherence and its aperture coherence, smoothed by ``lateral`` and
        ``axial`` wavelengths before the logarithm."""
        across = lateral * self.wavelength / (self.x[1] - self.x[0])

        def smooth(image: np.ndarray) -> np.ndarray:
            image = gaussian_filter1d(image, across, axis=2, mode="nearest")
            return gaussian_filter1d(image, axial * ROWS_PER_WAVELENGTH, axis=1, mode="nearest") if axial else image

        single, compound, channel = smooth(self.single), smooth(self.compound), smooth(self.channel)
        return [
            np.log(compound + FLOOR),
            np.log(compound / (single + FLOOR) + RATIO_FLOOR),
            np.log(single / (channel + FLOOR) + RATIO_FLOOR),
        ]


class EchoReader:
    """Beamforms frames of one scan onto the map's columns; keeps the delay tables."""

    def __init__(self, scan: Scan, x: Float[np.ndarray, " x"], bottom: float, search: tuple[float, float]) -> None:
        wavelength = scan.sound_speed / scan.center_frequency
        step = wavelength / ROWS_PER_WAVELENGTH
        self.z = np.arange(2 * wavelength, bottom, step)
        self.search = search
        self.beamformer = Beamformer(scan, PixelGrid(self.z, x))

    def __call__(self, rf: Frames) -> Echoes:
        """Energies of a batch of frames."""
        return self.energies(rf, *self.images(rf))

    def images(self, rf: Frames) -> tuple[Complex[Tensor, "frame tx z x"], Float[Tensor, "frame tx z x"]]:
        """Beamformed image and mean square of the delayed channels, of every event."""
        with torch.no_grad():
            iq = analytic(torch.as_tensor(np.ascontiguousarray(rf, np.float32)), self.beamformer.scan)
            return self.beamformer.das(iq), self.beamformer.power(iq)

    def energies(
        self, rf: Frames, images: Complex[Tensor, "frame tx z x"], power: Float[Tensor, "frame tx z x"]
    ) -> Echoes:
        """What ``__call__`` gives, from images that are there already."""
        single = images.abs().square().mean(1).double().numpy()
        compound = images.mean(1).abs().square().double().numpy()
        channel = power.mean(1).double().numpy()
        within = (self.z >= self.search[0]) & (self.z <= self.search[1])
        reference = np.maximum(single[:, within].mean((1, 2)), np.finfo(np.float32).tiny)
        scale = reference[:, None, None]
        grid = self.beamformer.grid
        return Echoes(
            single / scale, compound / scale, channel / scale, grid.z, grid.x, rf, self.beamformer.scan, reference
        )


def search_range(config: Config) -> tuple[float, float]:
    """Depths [m] that can be the pleura."""
    low, high = config.wall.pleura_depth
    return (low - 0.4 * MM, high + 0.7 * MM)


def reader_of(config: Config, scan: Scan, search: tuple[float, float] | None = None) -> EchoReader:
    """Echo reader on the columns of a configuration's map."""
    reach = 12 * scan.sound_speed / scan.center_frequency
    bottom = config.wall.pleura_depth[1] + reach
    return EchoReader(scan, map_columns(config.map), bottom, search or search_range(config))


def column_features(echoes: Echoes, pleura_depth: Float[np.ndarray, "frame x"]) -> Float[np.ndarray, "frame feature x"]:
    """Log energy and coherences of each column at ``DEPTHS`` below the detected pleura."""
    depths = DEPTHS * echoes.wavelength
    return np.concatenate(
        [below(image, echoes.z, pleura_depth, depths) for image in echoes.logs(LATERAL_SMOOTHING, axial=0.3)], 1
    )


def channel_features(echoes: Echoes, pleura_depth: Float[np.ndarray, "frame x"]) -> Float[np.ndarray, "frame feature"]:
    """Log energy and spatial coherence of the channels in ``WINDOWS`` after the pleura's echo, mean over events.

    Late windows hold the sound that went back and forth between alveoli, which delay-and-sum throws away.
    """
    scan, rf = echoes.scan, np.asarray(echoes.rf, np.float64)
    middle = float(echoes.x.mean())
    arrival = transmit_delay(scan, PixelGrid(echoes.z, np.array([middle]))).numpy()[:, :, 0]  # (tx, z)
    depth = pleura_depth.mean(1)
    samples = rf.shape[2]
    products = [np.square(rf).sum(3)]
    for lag in LAGS:
        lag = min(lag, rf.shape[3] - 1)
        near, far = rf[..., lag:], rf[..., : rf.shape[3] - lag]
        products += [(near * far).sum(3), np.sqrt(np.square(near).sum(3) * np.square(far).sum(3))]
    running = [np.concatenate([np.zeros((*p.shape[:2], 1)), np.cumsum(p, 2)], 2) for p in products]
    sums = []
    for event in range(scan.transmits):
        start = np.interp(depth, echoes.z, arrival[event]) + depth / scan.sound_speed + scan.pulse_delay
        edges = start[:, None] + WINDOWS / scan.center_frequency - scan.start_times[event]
        at = np.clip(np.rint(edges * scan.sampling_frequency), 0, samples).astype(int)
        sums.append([np.diff(np.take_along_axis(r[:, event], at, 1)) for r in running])
    totals = np.array(sums).sum(0)  # (product, frame, window), over events
    energy = np.log(totals[0] / echoes.reference[:, None] / rf.shape[3] + FLOOR)
    coherence = [totals[1 + 2 * k] / (totals[2 + 2 * k] + np.finfo(float).tiny) for k in range(len(LAGS))]
    return np.concatenate([energy, *coherence], 1)


def global_features(
    columns: Float[np.ndarray, "frame feature x"], channels: Float[np.ndarray, "frame other"]
) -> Float[np.ndarray, "frame all"]:
    """Mean and spread over columns, and the channel features."""
    return np.concatenate([columns.mean(2), columns.std(2), channels], 1)


def below(
    image: Float[np.ndarray, "frame z x"],
    z: Float[np.ndarray, " z"],
    pleura_depth: Float[np.ndarray, "frame x"],
    depths: Float[np.ndarray, " depth"],
) -> Float[np.ndarray, "frame depth x"]:
    """Linear interpolation at ``depths`` below the pleura of each column; the record's end is held."""
    place = (pleura_depth[:, None, :] + depths[None, :, None] - z[0]) / (z[1] - z[0])
    place = np.clip(place, 0, len(z) - 1 - 1e-9)
    row = place.astype(int)
    part = place - row
    return np.take_along_axis(image, row, 1) * (1 - part) + np.take_along_axis(image, row + 1, 1) * part
