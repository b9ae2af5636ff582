"""Results as a browser takes them: facts as JSON, arrays as one run of bytes, scales and colours of the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
import numpy as np

from lungwave import figures
from lungwave.acoustics.probe import Recording
from lungwave.phantom.medium import Medium
from lungwave.posterior.information import INFORMED
from lungwave.posterior.summary import Reconstruction
from lungwave.report import case_table
from lungwave.types import MM, US

TRACES, SAMPLES = 256, 1024  # of the RF picture, at most
ALIGN = 4  # [byte] so that a browser may look at the bytes as float32
TISSUE = (1400.0, 1700.0)  # [m/s] of the lung picture

Arrays = dict[str, np.ndarray]


def scales() -> dict[str, Any]:
    """Every colour scale with its table of 256 colours, and the colours that mark things on them."""
    found = {
        name: {"low": scale.low, "high": scale.high, "ticks": list(scale.ticks), "label": scale.label,
               "table": table(scale.cmap)}
        for name, scale in (
            ("aeration", figures.AERATION), ("width", figures.WIDTH),
            ("information", figures.INFORMATION), ("error", figures.ERROR),
        )
    }  # fmt: skip
    found["bmode"] = {"low": -60.0, "high": 0.0, "ticks": [-60.0, -40.0, -20.0, 0.0], "label": "echo, dB",
                      "table": table("gray")}  # fmt: skip
    found["rf"] = {"low": -1.0, "high": 1.0, "ticks": [], "label": "pressure", "table": table("RdBu_r")}
    found["speed"] = {"low": TISSUE[0], "high": TISSUE[1], "ticks": [1400.0, 1500.0, 1600.0, 1700.0],
                      "label": "sound speed, m/s", "table": table("YlGnBu")}  # fmt: skip
    return {"scales": found, "void": figures.PALETTE["void"], "dim": figures.DIM, "pleura": figures.PLEURA,
            "informed": INFORMED}  # fmt: skip


def table(name: str) -> list[str]:
    """The 256 colours of one of matplotlib's tables as #rrggbb."""
    rgb = mpl.colormaps[name](np.arange(256), bytes=True)[:, :3]
    return ["#" + bytes(row).hex() for row in rgb]


def of_result(r: Reconstruction) -> tuple[dict[str, Any], Arrays]:
    """What the page shows of one frame; the numbers are those of the report's JSON table."""
    picture = r.bmode
    facts: dict[str, Any] = {
        "table": case_table(r),
        "bmode": {**_axis("z", picture.z), **_axis("x", picture.x), "range_db": picture.dynamic_range},
        "map": None,
    }
    arrays: Arrays = {"bmode": np.maximum(picture.decibel, -picture.dynamic_range)}
    if r.withheld or r.aeration is None:
        return facts, arrays
    rows = np.arange(len(r.aeration)) + 0.5
    facts["map"] = {**_axis("z", rows * r.pixel), **_axis("x", figures.lateral(r))}
    arrays["mean"] = r.aeration
    for name in ("lower", "upper", "pleura_depth", "information_depth", "valid"):
        value = getattr(r, name)
        if value is not None:
            arrays[name] = value
    if r.lower is not None and r.upper is not None:
        arrays["width"] = r.upper - r.lower
    profile = figures.column_profile(r)
    if profile is not None:
        arrays["profile"] = profile
    if r.truth is not None:
        arrays["truth"] = figures.truth_map(r.truth)
        arrays["truth_profile"] = np.asarray(r.truth.profile)
        if arrays["truth"].shape == r.aeration.shape:
            arrays["error"] = r.aeration - arrays["truth"]
    if r.posterior is not None:
        p = r.posterior
        arrays |= {"std": p.std, "information": p.information, "samples": p.samples}
        arrays |= {"profile_lower": p.profile_lower, "profile_upper": p.profile_upper}
        arrays["sample_aeration"] = p.band_samples[:, -1]
    return facts, arrays


def of_rf(recording: Recording, frame: int) -> tuple[dict[str, Any], Arrays]:
    """Channel data of the middle transmit, thinned to a picture, on a scale of its own largest sample."""
    event = recording.scan.transmits // 2
    traces = np.real(np.asarray(recording.rf[frame, event]))  # (time, el)
    steps = [max(1, -(-size // most)) for size, most in zip(traces.shape, (SAMPLES, TRACES), strict=True)]
    seen = traces[:: steps[0], :: steps[1]]
    largest = float(np.abs(seen).max()) or 1.0
    scan = recording.scan
    begin = float(scan.start_times[event]) / US
    facts = {
        "event": event, "events": scan.transmits, "angle_deg": float(np.rad2deg(scan.angles[event])),
        "t0_us": begin, "dt_us": steps[0] / scan.sampling_frequency / US, "element_step": steps[1],
        "elements": traces.shape[1], "samples": traces.shape[0], "largest": largest,
        "center_frequency_mhz": scan.center_frequency / 1e6,
    }  # fmt: skip
    return facts, {"rf": seen / largest}


def of_medium(medium: Medium) -> tuple[dict[str, Any], Arrays]:
    """The lung that was drawn: sound speed of its tissues, and where there is air."""
    arrays: Arrays = {"sound_speed": medium.sound_speed, "air": np.asarray(medium.air > 0.5)}
    return {**_axis("z", np.asarray(medium.z)), **_axis("x", np.asarray(medium.x))}, arrays


def pack(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, Any], bytes]:
    """Where each array lies, and all of them: float32, masks as bytes."""
    index: dict[str, Any] = {}
    parts: list[bytes] = []
    offset = 0
    for name, array in arrays.items():
        mask = array.dtype == bool
        content = np.ascontiguousarray(array, np.uint8 if mask else np.float32)
        padding = -content.nbytes % ALIGN
        index[name] = {"type": "uint8" if mask else "float32", "shape": list(content.shape), "offset": offset}
        parts += [content.tobytes(), bytes(padding)]
        offset += content.nbytes + padding
    return index, b"".join(parts)


def _axis(name: str, values: np.ndarray) -> dict[str, Any]:
    """An evenly spaced axis [mm]: first centre, step, count."""
    step = float(values[1] - values[0]) if len(values) > 1 else 0.1 * MM
    return {f"{name}0": float(values[0]) / MM, f"d{name}": step / MM, f"n{name}": len(values)}
