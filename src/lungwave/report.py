"""The report: one self-contained HTML file, one overview picture, the same numbers as tables, samples as arrays."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined

from lungwave import figures, overview
from lungwave.data.posteriors import write_posteriors
from lungwave.figures import TruthKind
from lungwave.posterior.summary import (
    CT_CLASSES,
    CT_LIMITS,
    POOR,
    Band,
    Interval,
    Posterior,
    Reconstruction,
    surface_rows,
)
from lungwave.repro import atomic_path, write_json
from lungwave.types import MM, UsageError

RESEARCH_ONLY = "Research use only. Not a medical device."
TABLE_FORMAT = 1  # version of the JSON table
SHOWN = 8  # posterior samples that a case shows, the first ones
COLUMNS = (
    *("case", "category", "method", "top_mm", "bottom_mm"),
    *("estimate", "lower", "upper", "level", "truth", "inside", "echo_share", "withheld"),
    "samples",
)
STACKED = ("samples", "mean", "std", "lower", "upper", "information", "information_depth")
POSTERIOR_COLUMNS = ("case", "quantity", "estimate", "lower", "upper", "level", "truth")


def case_table(r: Reconstruction, truth_kind: TruthKind = "smooth") -> dict[str, Any]:
    """Every scalar that the report shows of one case; aeration as a fraction 0-1, lengths in mm, None where unknown.

    ``echo_share`` of a band is the share of its area above the information depth. A withheld case has no aeration.
    ``posterior`` is None where the method draws no samples.
    """
    category = r.manifest.get("category")
    table: dict[str, Any] = {
        "case": r.name,
        "category": None if category is None else str(category),
        "method": r.method,
        "withheld": r.withheld,
        "flags": list(r.flags),
        "level": r.level,
        "whole": None,
        "bands": [],
        "information_depth_mm": None,
        "pleura_depth_mm": None,
        "valid_columns": None,
        "poor_surface": None,
        "map_error_top_1mm": None,
        "posterior": None,
    }
    if r.withheld:
        return table
    columns = np.ones(len(figures.lateral(r)), bool) if r.valid is None else np.asarray(r.valid)
    table["whole"] = _band(r, r.whole, columns) if r.whole else None
    table["bands"] = [_band(r, band, columns) for band in r.bands]
    table["valid_columns"] = _number(columns.mean()) if columns.size else None
    for name, per_column in (("information_depth_mm", r.information_depth), ("pleura_depth_mm", r.pleura_depth)):
        if per_column is not None:
            known = np.asarray(per_column, float)[columns & np.isfinite(per_column)]
            table[name] = _number(np.median(known) / MM) if known.size else None
    if r.aeration is not None:
        surface = np.asarray(r.aeration, float)[: surface_rows(r.pixel), columns]
        table["poor_surface"] = _number((surface.mean(0) < POOR).mean()) if surface.size else None
        if r.truth is not None:
            truth = figures.truth_map(r.truth, truth_kind)[: len(surface), columns]
            error = np.abs(surface - truth)
            known = error[np.isfinite(error)]
            table["map_error_top_1mm"] = _number(known.mean()) if known.size else None
    if r.posterior is not None:
        table["posterior"] = _posterior(r, r.posterior, columns, truth_kind)
        table["poor_surface"] = table["posterior"]["poor_surface"]["estimate"]
    return table


def _posterior(r: Reconstruction, p: Posterior, columns: np.ndarray, truth_kind: TruthKind) -> dict[str, Any]:
    """What only samples tell: counts in each of them with their interval, category probabilities, information."""
    true_poor: float | None = None
    true_classes: list[float | None] = [None] * len(CT_CLASSES)
    if r.truth is not None and columns.any():
        truth = figures.truth_map(r.truth, truth_kind)[:, columns]
        if np.isfinite(truth).all():
            true_poor = float((truth[: surface_rows(r.pixel)].mean(0) < POOR).mean())
            true_classes = list(np.bincount(np.searchsorted(CT_LIMITS, truth.ravel()), minlength=4) / truth.size)
    shares = zip(CT_CLASSES, p.class_shares(columns), true_classes, strict=True)
    category = r.manifest.get("category")
    return {
        "samples": len(p.samples),
        "poor_surface": _interval(p.share_below(POOR, columns), true_poor),
        "classes": [{"name": name, **_interval(share, truth)} for name, share, truth in shares],
        "categories": [
            {"name": name, "probability": _number(value), "true": name == category}
            for name, value in zip(p.category_names, p.categories, strict=True)
        ],
        "information": _number(p.information[:, columns].mean()) if columns.any() else None,
    }


def _interval(interval: Interval, truth: float | None) -> dict[str, Any]:
    numbers = {name: _number(getattr(interval, name)) for name in ("estimate", "lower", "upper")}
    return {**numbers, "truth": _number(truth)}


def _band(r: Reconstruction, band: Band, columns: np.ndarray) -> dict[str, Any]:
    truth = _number(band.truth)
    share = None
    if r.information_depth is not None and columns.any() and band.bottom > band.top:
        depth = np.nan_to_num(np.asarray(r.information_depth, float)[columns])
        share = _number(((depth - band.top) / (band.bottom - band.top)).clip(0.0, 1.0).mean())
    return {
        "top_mm": _number(band.top / MM),
        "bottom_mm": _number(band.bottom / MM),
        "estimate": _number(band.estimate),
        "lower": _number(band.lower),
        "upper": _number(band.upper),
        "truth": truth,
        "inside": None if truth is None else bool(band.lower <= band.truth <= band.upper),  # type: ignore[operator]
        "echo_share": share,
    }


def _number(value: Any) -> float | None:
    """Six decimals, None for what is missing, NaN or infinite (JSON has no word for those)."""
    return None if value is None or not math.isfinite(value) else round(float(value), 6)


def summarise(cases: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Over all cases with a known truth: how many, how many inside their interval, mean absolute error (fraction)."""
    given = [c["whole"] for c in cases if c["whole"]]
    known = [w for w in given if w["truth"] is not None and w["estimate"] is not None]
    error = [abs(w["estimate"] - w["truth"]) for w in known]
    return {
        "cases": len(cases),
        "withheld": sum(bool(c["withheld"]) for c in cases),
        "with_truth": len(known),
        "inside": sum(bool(w["inside"]) for w in known),
        "mean_absolute_error": _number(np.mean(error)) if error else None,
    }


def write_tables(
    reconstructions: Sequence[Reconstruction],
    folder: str | Path,
    stem: str = "aeration",
    manifest: Mapping[str, Any] | None = None,
    truth_kind: TruthKind = "smooth",
) -> tuple[Path, Path]:
    """Write ``stem.csv`` (a row per case and depth band, the whole depth first) and ``stem.json``; return the paths.

    Where there are posteriors, ``stem_posterior.csv`` has a row per case and further quantity (shares, probabilities).
    """
    cases = [case_table(r, truth_kind) for r in _require(reconstructions)]
    csv_path, json_path = Path(folder) / f"{stem}.csv", Path(folder) / f"{stem}.json"
    with atomic_path(csv_path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        for case in cases:
            head = {key: case[key] for key in ("case", "category", "method", "level")}
            bands = ([case["whole"]] if case["whole"] else []) + case["bands"]
            if case["withheld"] or not bands:
                writer.writerow({**head, "level": "", "withheld": case["withheld"]})
            head["samples"] = case["posterior"]["samples"] if case["posterior"] else ""
            writer.writerows({**head, **band, "withheld": ""} for band in bands)
    if any(case["posterior"] for case in cases):
        with (
            atomic_path(Path(folder) / f"{stem}_posterior.csv") as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, POSTERIOR_COLUMNS, restval="", extrasaction="ignore", lineterminator="\n")
            writer.writeheader()
            for case in cases:
                writer.writerows({"case": case["case"], **row} for row in _quantities(case))
    value = {"format": TABLE_FORMAT, "note": RESEARCH_ONLY, "summary": summarise(cases), "cases": cases}
    write_json(json_path, {**value, "manifest": _plain(manifest or {})})
    return csv_path, json_path


def _quantities(case: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of the table of what a posterior says beside the bands."""
    found = case["posterior"]
    if not found:
        return []
    shares = [{**found["poor_surface"], "quantity": f"pleural line below {100 * POOR:g} % air"}]
    shares += [{**c, "quantity": f"map {c['name']}"} for c in found["classes"]]
    rows: list[dict[str, Any]] = [{**share, "level": case["level"]} for share in shares]
    for c in found["categories"]:
        true = float(c["true"]) if case["category"] is not None else None
        rows.append({"quantity": f"probability of {c['name']}", "estimate": c["probability"], "truth": true})
    rows.append({"quantity": "mean information", "estimate": found["information"]})
    return rows


def write_posterior(
    reconstructions: Sequence[Reconstruction], folder: str | Path, manifest: Mapping[str, Any] | None = None
) -> tuple[Path, ...]:
    """Write posterior.h5 and posterior.npz (fields in ``data.schema``) and PNG maps; return the paths.

    Frames that were withheld or have no samples are left out; nothing is written where none is left. Raises UsageError
    for frames that differ in map, depth bands, categories, level or number of samples.
    """
    kept = [(i, r, r.posterior) for i, r in enumerate(reconstructions) if r.posterior is not None and not r.withheld]
    if not kept:
        return ()
    posteriors = [p for _, _, p in kept]
    first = posteriors[0]
    edges = [np.array([*(b.top for b in p.bands), p.whole.bottom]) for p in posteriors]
    for p, e in zip(posteriors, edges, strict=True):
        same = p.samples.shape == first.samples.shape and np.array_equal(p.x, first.x) and np.array_equal(e, edges[0])
        if not same or (p.pixel, p.level, p.category_names) != (first.pixel, first.level, first.category_names):
            raise UsageError(
                "frames differ in map, bands, categories, level or samples; write them to separate folders"
            )
    unknown = np.full(len(first.x), np.nan)
    fields = {
        **{name: np.stack([getattr(p, name) for p in posteriors]) for name in STACKED},
        "bands": np.stack([p.band_samples for p in posteriors]),
        "categories": np.stack([p.category_samples for p in posteriors]),
        "category_names": list(first.category_names),
        "valid": np.stack([np.ones(len(p.x), bool) if r.valid is None else r.valid for _, r, p in kept]),
        "pleura_depth": np.stack([unknown if r.pleura_depth is None else r.pleura_depth for _, r, _ in kept]),
        "x": first.x,
        "z": first.z,
        "band_edges": edges[0],
        "level": first.level,
        "frame": [i for i, _, _ in kept],
        "name": [r.name for _, r, _ in kept],
    }
    return write_posteriors(folder, fields, _plain(manifest or {}))


def write_report(
    reconstructions: Sequence[Reconstruction],
    path: str | Path,
    title: str = "Lung aeration from raw ultrasound echoes",
    manifest: Mapping[str, Any] | None = None,
    timing: Mapping[str, float] | None = None,
    truth_kind: TruthKind = "smooth",
) -> Path:
    """Write one HTML file with everything inside it: no script, no request, the same bytes for the same input.

    ``manifest`` is shown folded; ``timing`` names what took how many seconds. Raises UsageError for an empty list and
    LungwaveError where the file cannot be written; then nothing is left under ``path``.
    """
    html = render(reconstructions, title, manifest, timing, truth_kind)
    path = Path(path)
    with atomic_path(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    return path


def render(
    reconstructions: Sequence[Reconstruction],
    title: str,
    manifest: Mapping[str, Any] | None = None,
    timing: Mapping[str, float] | None = None,
    truth_kind: TruthKind = "smooth",
) -> str:
    """The report as HTML text."""
    cases = []
    for index, r in enumerate(_require(reconstructions)):
        key = f"case-{index + 1}"
        cases.append({**case_table(r, truth_kind), "key": key, "r": r, "figures": _figures(r, key, truth_kind)})
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=_percent, at=_position, mm="{:g}".format, zip=zip)
    source = (resources.files("lungwave") / "assets" / "report.html").read_text(encoding="utf-8")
    facts = _plain(manifest or {})
    return environment.from_string(source).render(
        title=title,
        cases=cases,
        summary=summarise(cases),
        manifest=facts,
        manifest_json=json.dumps(facts, indent=2, sort_keys=True, ensure_ascii=False),
        timing=[(name, f"{seconds:.1f} s") for name, seconds in (timing or {}).items()],
        truth_sigma="0.5" if truth_kind == "smooth" else "0.15",
        palette=figures.PALETTE,
        research_only=RESEARCH_ONLY,
    )


def _figures(r: Reconstruction, key: str, truth_kind: TruthKind) -> dict[str, Any]:
    """Inline SVG of every panel that this case has; a withheld case has its B-mode only."""
    drawn: dict[str, Any] = {"bmode": figures.bmode_svg(r, f"{key}-bmode"), "wide": figures.is_wide(r)}
    if not r.withheld and r.aeration is not None:
        drawn["estimate"] = figures.map_svg(r, r.aeration, f"{key}-map", "Reconstructed aeration map")
        beside = r.truth is not None or r.posterior is not None  # what the profile shares its row with
        drawn["profile"] = figures.profile_svg(r, f"{key}-profile", 380.0 if beside else 600.0)
        if r.truth is not None:
            truth = figures.truth_map(r.truth, truth_kind)
            drawn["truth"] = figures.map_svg(r, truth, f"{key}-truth", "True aeration map", mask=False)
            if truth.shape == r.aeration.shape:
                error = r.aeration - truth
                drawn["error"] = figures.map_svg(r, error, f"{key}-error", "Error of the map", figures.ERROR, False)
        if r.lower is not None and r.upper is not None:
            width = r.upper - r.lower
            drawn["width"] = figures.map_svg(r, width, f"{key}-width", "Width of the interval", figures.WIDTH, False)
        if r.posterior is not None:
            drawn["information"] = figures.information_svg(r, f"{key}-information")
            shown = range(min(SHOWN, len(r.posterior.samples)))
            drawn["samples"] = [figures.sample_svg(r, k, f"{key}-sample-{k + 1}") for k in shown]
    return drawn


def _percent(value: float) -> str:
    """A fraction as whole percent; a minus sign, not a hyphen."""
    return f"{100 * value + 0.0:.0f}".replace("-0", "0").replace("-", "\N{MINUS SIGN}")


def _position(fraction: float) -> str:
    """Where a fraction lies on a bar, as CSS."""
    return f"{100 * min(max(fraction, 0.0), 1.0):.2f}%"


def _plain(value: Any) -> Any:
    """What JSON can hold: paths and arrays become text and lists, NaN becomes None."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _require(reconstructions: Sequence[Reconstruction]) -> Sequence[Reconstruction]:
    if not reconstructions:
        raise UsageError("0 reconstructions given; a report needs at least one (did every case fail?)")
    return reconstructions


def write_overview(
    reconstructions: Sequence[Reconstruction], path: str | Path, truth_kind: TruthKind = "smooth", dpi: int = 160
) -> Path:
    """Write one PNG, a row per case: B-mode, reconstructed map, truth, band chart. Readable from 1200 pixels width on.

    The same input gives the same bytes. Raises UsageError for an empty list.
    """
    shares = [[band["echo_share"] for band in case_table(r, truth_kind)["bands"]] for r in _require(reconstructions)]
    path = Path(path)
    with atomic_path(path) as temporary, figures.style():
        figure = overview.draw(list(reconstructions), shares, truth_kind)
        figure.savefig(temporary, format="png", dpi=dpi, metadata={"Software": None})
    return path
