"""Posterior samples of any program judged by the truths: one NPZ in, tables and a picture out."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lungwave.data.arrays import numpy_arrays
from lungwave.evaluate.calibration import LEVELS, Coverage, Tarp, Uniformity, coverage, least_samples, ranks, tarp
from lungwave.evaluate.calibration import uniformity as uniformity_of
from lungwave.evaluate.cases import Measured, mean_over_cases, to_json
from lungwave.evaluate.scores import crps_fair, energy_score_fair, reduced_chi2, spread_skill
from lungwave.evaluate.stein import stein_discrepancy
from lungwave.evaluate.tables import said
from lungwave.figures_evaluation import single_figure
from lungwave.page import save_table
from lungwave.prior.pictures import save_figure
from lungwave.repro import manifest, write_json
from lungwave.types import RESEARCH_USE, UsageError

MEAN = "mean of the field"
MOST = 12  # entries of small fields whose ranks are tested one by one


@dataclass(frozen=True)
class Posteriors:
    """Samples and truths of independent cases, and what else is known of them."""

    samples: Float[np.ndarray, "case sample *field"]
    truth: Float[np.ndarray, " case *field"]
    summary: Float[np.ndarray, " case *field"] | None = None  # an estimate from the recording alone, for TARP
    residual: Float[np.ndarray, " case *data"] | None = None  # of the data, at the posterior's samples or mean
    noise: Float[np.ndarray, " ..."] | None = None  # standard deviation of the noise in the residual
    score: Float[np.ndarray, "case sample *field"] | None = None  # gradient of the log posterior at the samples


def read_posteriors(path: Path) -> Posteriors:
    """The arrays of an NPZ by name; UsageError where some are missing, unknown, or not numbers."""
    names = [item.name for item in fields(Posteriors)]
    if not path.is_file():
        raise UsageError(f"{path}: does not exist")
    held = numpy_arrays(path)
    unknown = sorted(set(held) - set(names))
    if unknown or not {"samples", "truth"} <= set(held):
        raise UsageError(
            f"{path} holds {', '.join(held) or 'nothing'}; give 'samples' [case, sample, ...] and 'truth' [case, ...], "
            f"and, where known, {', '.join(names[2:])}"
        )
    if wrong := [name for name, value in held.items() if value.dtype.kind == "c"]:
        raise UsageError(f"{path}: '{wrong[0]}' has type {held[wrong[0]].dtype}; real numbers were expected")
    found = {name: np.asarray(value, np.float64) for name, value in held.items()}
    samples, truth = found["samples"].shape, found["truth"].shape
    shapes = {"truth": samples[:1] + samples[2:], "summary": truth, "score": samples}
    for name, wanted in shapes.items():
        if name in found and found[name].shape != wanted:
            raise UsageError(f"{path}: samples have shape {samples}, {name} {found[name].shape} instead of {wanted}")
    if len(samples) < 2 or samples[1] < 2:
        raise UsageError(f"{path}: samples have shape {samples}; give [case, sample, ...] with 2 samples or more")
    if ("residual" in found) != ("noise" in found):
        raise UsageError(f"{path}: 'residual' and 'noise', its standard deviation, go together; give both or neither")
    return Posteriors(**found)


@dataclass(frozen=True)
class Calibration:
    """Every figure; intervals are over cases."""

    cases: int
    samples: int
    scores: dict[str, Measured]
    coverage: dict[str, tuple[Coverage, ...]]  # of the entries, and of the field's mean
    uniformity: dict[str, Uniformity]  # of the truth's rank
    tarp: Tarp
    notes: tuple[str, ...]


def calibration(p: Posteriors, seed: int = 0) -> Calibration:
    """Coverage, ranks with simultaneous bands, TARP, and scores; UsageError for arrays that do not fit."""
    field = p.truth.shape[1:]
    entries = int(np.prod(field))
    within = tuple(range(2, p.samples.ndim))
    small = entries <= MOST
    numbers = {} if entries == 1 else {MEAN: (p.samples.mean(within), p.truth.mean(tuple(range(1, p.truth.ndim))))}
    if small:
        flat, truth = p.samples.reshape(*p.samples.shape[:2], -1), p.truth.reshape(len(p.truth), -1)
        numbers |= {f"entry {k}" if entries > 1 else "value": (flat[:, :, k], truth[:, k]) for k in range(entries)}
    scores = {
        "CRPS": mean_over_cases(crps_fair(p.samples, p.truth), seed),
        "energy score": mean_over_cases(energy_score_fair(p.samples, p.truth), seed),
        "error of the mean": mean_over_cases(np.abs(p.samples.mean(1) - p.truth), seed),
        "spread over error": spread_skill(p.samples, p.truth, seed),
    }
    if p.residual is not None and p.noise is not None:
        scores["reduced chi2 of the data"] = reduced_chi2(p.residual, p.noise, seed)
    if p.score is not None:
        scores["kernel Stein discrepancy"] = stein_discrepancy(p.samples, p.score, seed)
    m = p.samples.shape[1]
    levels = [level for level in LEVELS if m >= least_samples(level)]
    notes = tuple(
        f"{level:.0%} intervals need {least_samples(level)} samples" for level in LEVELS if level not in levels
    )
    if not small:
        notes = (*notes, f"ranks of {entries} entries are not independent: only the mean of the field is tested")
    inside = {"entries": coverage(p.samples, p.truth, levels, seed)} if levels else {}
    if levels:
        inside |= {name: coverage(ours, truth, levels, seed) for name, (ours, truth) in numbers.items()}
    tested = {name: uniformity_of(ranks(ours, truth, seed), m) for name, (ours, truth) in numbers.items()}
    return Calibration(len(p.truth), m, scores, inside, tested, tarp(p.samples, p.truth, seed, p.summary), notes)


def judge_calibration(p: Posteriors, source: Path, out: Path, command: str, seed: int = 0) -> dict[str, Any]:
    """Judge and write calibration.md, .html, .json and .png; ``source`` is where the arrays came from."""
    found = calibration(p, seed)
    out.mkdir(parents=True, exist_ok=True)
    save_figure(single_figure(found.coverage, found.uniformity, found.tarp.curve), out / "calibration.png")
    save_table(out / "calibration.md", _text(found, command))
    about = manifest(json.dumps({"command": command}), seed, (source,), command=command)
    write_json(out / "calibration.json", {"results": to_json(found), "notice": RESEARCH_USE, **about})
    return {
        "cases": found.cases,
        "samples": found.samples,
        "inside_90": {n: c.inside.value for n, all_ in found.coverage.items() for c in all_ if c.level == 0.9},
        "ranks_inside": {name: test.inside for name, test in found.uniformity.items()},
        "tarp_inside": found.tarp.curve.inside,
        "page": str(out / "calibration.html"),
    }


def _text(found: Calibration, command: str) -> str:
    def cell(m: Measured) -> str:
        return said(m, ".4g")

    def verdict(test: Uniformity) -> str:
        return f"{'inside' if test.inside else '**outside**'} | {test.p:.2g} | {test.deviation:.3f}"

    levels = [c.level for c in next(iter(found.coverage.values()), ())]
    lines = [
        "# Do the samples mean what they say?",
        "",
        f"Made by `{command}`; {found.cases} cases, {found.samples} samples each. In brackets, 95 % intervals over "
        f"cases. {RESEARCH_USE}",
        "",
        *(f"- {note}." for note in found.notes),
        "",
        "![Calibration](calibration.png)",
        "",
        "| score | value |",
        "|---|---|",
        *(f"| {name} | {cell(value)} |" for name, value in found.scores.items()),
        "",
        "| truths inside the interval | " + " | ".join(f"{level:.0%}" for level in levels) + " |",
        "|---|" + "---|" * len(levels),
        *(f"| {name} | {' | '.join(cell(c.inside) for c in all_)} |" for name, all_ in found.coverage.items()),
        "",
        "| test of uniformity | 95 % band | p | largest deviation |",
        "|---|---|---|---|",
        *(f"| rank of the truth, {name} | {verdict(test)} |" for name, test in found.uniformity.items()),
        f"| TARP, area {cell(found.tarp.area)} | {verdict(found.tarp.curve)} |",
        "",
        "Coverage equals its level, ranks and TARP stay inside their simultaneous bands, spread over error and chi2 "
        "are 1, and the Stein discrepancy is 0 for a posterior that is right.",
    ]
    return "\n".join(lines) + "\n"
