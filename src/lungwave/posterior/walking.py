"""A walking aperture, read event by event: a model of one event sees the strip under it, and the strips make the map.

Scanners send most of their lines so: the same focused event from an aperture that walks along the array. A model of
such a scan needs training on single events only, which are simulated as many times faster as there are events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Integer

from lungwave.acoustics.probe import Recording, Scan
from lungwave.config import MapConfig
from lungwave.posterior.ridge import Estimate
from lungwave.types import UM, UsageError

SAME_PLACE = 10 * UM  # [m] that elements of two events may differ in, seen from their apertures
SAME_TIME = 1e-8  # [s] that their delays may differ in


def walks(scan: Scan) -> bool:
    """Whether one aperture walks along the array."""
    return scan.rx_elements is not None and scan.transmits > 1


def one_by_one(recording: Recording, length: int | None = None) -> Recording:
    """Every event of every frame as a frame of its own, the aperture centred on x = 0; its first ``length`` samples.

    UsageError where the events differ in more than their place.
    """
    scan = recording.scan
    places = np.stack([scan.event_elements(k) - scan.origins[k] for k in range(scan.transmits)])
    alike = {
        "elements": np.ptp(places, axis=0).max() <= SAME_PLACE,
        "delays": np.ptp(scan.delays, axis=0).max() <= SAME_TIME,
        "start times": np.ptp(scan.start_times) <= SAME_TIME,
        "apodization": bool(np.isclose(scan.apodization, scan.apodization[0]).all()),
        "focus": bool(np.isclose(scan.focus_distance, scan.focus_distance[0]).all()),
        "angles": np.ptp(scan.angles) <= 1e-3,
    }
    if not all(alike.values()):
        other = ", ".join(name for name, same in alike.items() if not same)
        raise UsageError(f"the events of the walking aperture differ in {other}; only their place may differ")
    first = slice(0, 1)
    alone = replace(
        scan, elements=places[0], delays=scan.delays[first], apodization=scan.apodization[first],
        start_times=scan.start_times[first], focus_distance=scan.focus_distance[first], angles=scan.angles[first],
        origins=np.zeros((1, 3)), rx_elements=None,
    )  # fmt: skip
    rf = recording.rf[:, :, :length]
    return replace(recording, rf=rf.reshape(-1, 1, *rf.shape[2:]), scan=alone)


@dataclass(frozen=True)
class Strips:
    """Where every column of a map along the probe comes from: the nearest event, and the next where strips overlap."""

    x: Float[np.ndarray, " x"]  # [m] columns of the map
    event: Integer[np.ndarray, "two x"]
    column: Integer[np.ndarray, "two x"]  # of the event's strip
    weight: Float[np.ndarray, "two x"]  # half each between two beams, 0 at a strip's edge or under the other

    @classmethod
    def under(cls, scan: Scan, shape: MapConfig, columns: int | None = None) -> Strips:
        """``shape`` is the map of one event; without ``columns`` the map is as wide as the strips reach.

        UsageError where the strips leave gaps, or do not reach as far as ``columns``.
        """
        beams, half = scan.origins[:, 0], shape.columns * shape.pixel / 2
        widest = 2 * int(np.floor((np.ptp(beams) / 2 + half) / shape.pixel + 1e-6))
        gap = float(np.diff(np.sort(beams)).max())
        count = widest if columns is None else columns
        if gap > 2 * half + 1e-9 or count > widest:
            raise UsageError(
                f"strips of {2e3 * half:.3g} mm, {1e3 * gap:.3g} mm apart, make no map of {count} columns without gaps"
            )
        x = beams.mean() + (np.arange(count) - (count - 1) / 2) * shape.pixel
        event = np.abs(x[:, None] - beams).argsort(1, kind="stable")[:, :2].T
        near, far = np.abs(x - beams[event])
        apart = np.abs(beams[event[0]] - beams[event[1]])
        fade = np.maximum(np.minimum(2 * half - apart, apart), 1e-12)  # [m] about the middle between two beams
        weight = 0.5 + 0.5 * np.clip((far - near) / fade, 0, 1)
        column = np.rint((x - beams[event]) / shape.pixel + (shape.columns - 1) / 2).astype(int)
        return cls(x, event, column.clip(0, shape.columns - 1), np.stack([weight, 1 - weight]))

    def map(self, values: Float[np.ndarray, "*n event x"]) -> Float[np.ndarray, "*n along"]:
        """Columns of the events' strips, put in their place and faded into each other."""
        return (self.weight * values[..., self.event, self.column]).sum(-2)

    def join(self, found: Estimate, frames: int) -> tuple[Estimate, Bool[np.ndarray, "frame along"]]:
        """One estimate for each frame of those of its events, and which of its columns lie under a usual event.

        A percent aeration is the mean over events, and so is the half width of its interval, as if all events erred
        together: how far they do is unknown to a model of one. So it is where strips overlap. ``novelty`` is the median
        over events.
        """

        def events(values: np.ndarray, axis: int = 0) -> np.ndarray:
            return values.reshape(*values.shape[:axis], frames, -1, *values.shape[axis + 1 :])

        def along(values: np.ndarray, axis: int = 0) -> np.ndarray:
            return self.map(np.moveaxis(events(values, axis), axis + 1, -2))

        novelty = events(found.novelty)
        joined = Estimate(
            events(found.bands).mean(1),
            events(found.bands_half, 1).mean(2),
            along(found.aeration),
            along(found.aeration_half, 1),
            along(found.pleura_depth),
            np.median(novelty, axis=1),
        )
        return joined, ((novelty <= 1)[:, self.event] | (self.weight == 0)).all(1)
