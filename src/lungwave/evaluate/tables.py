"""What was judged as tables: Markdown to read, rows to compute with."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

import numpy as np

from lungwave.evaluate.calibration import LEVELS, Uniformity
from lungwave.evaluate.cases import Measured
from lungwave.evaluate.reconstruction import (
    CRPS_MAP,
    CRPS_WHOLE,
    MAP,
    MEDIAN_MAP,
    MEDIAN_WHOLE,
    PIXEL,
    SSIM,
    TOP,
    Judged,
    Known,
    measured,
)
from lungwave.types import MM

Improvements = Sequence[tuple[str, str, dict[str, Measured]]]

SHOWN = (0.25, 0.75, 1.5, 3.0, 5.0)  # [mm] depths of the information table

NOTES = """\
- All numbers are fractions 0-1; in brackets 95 % intervals from resampling whole cases.
- The estimate of a method that draws samples is their mean; the median has the least absolute error.
- SSIM: 7 x 7 uniform windows, data range 1, unbiased variances, mean over the windows inside the map.
- CRPS: fair estimator; of a single value it is the absolute error.
- Coverage: share of the truths inside central intervals; of samples by ranks, which is exact for any number of them.
- Ranks: whether the truth's rank among the samples is uniform; p of coming as near to leaving the simultaneous 95 %
  band, or farther.
- TARP: the same for distances to a random reference near {summary}, on means of 4 x 4 blocks of the map; its area is 0
  if calibrated, below 0 where the samples are overconfident, above 0 where they say less than the reference knows.
- Spread over error: 1 if calibrated, below 1 overconfident.
- Mean map: {mean}; it has no intervals."""


def markdown(
    levels: Sequence[Sequence[Judged]], improved: Sequence[Improvements], title: str, intro: str, notes: str
) -> str:
    """Everything, each table with noise levels and methods as rows."""
    return (
        "\n\n".join([f"# {title}", intro, *_sections(levels, improved), *_remarks(levels), f"## Notes\n\n{notes}"])
        + "\n"
    )


def rows(levels: Sequence[Sequence[Judged]], improved: Sequence[Improvements]) -> str:
    """The same as CSV: method, SNR, figure, over which method, value and interval, p and outside of rank tests."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["method", "snr_db", "figure", "over", "value", "low", "high"])

    def write(method: str, snr_db: float, figure: str, over: str, found: Measured) -> None:
        bounds = ["" if np.isnan(v) else f"{v:.6g}" for v in (found.value, found.low, found.high)]
        writer.writerow([method, f"{snr_db:g}", figure, over, *bounds])

    for judged, pairs in zip(levels, improved, strict=True):
        snr_db = judged[0].snr_db
        for j in judged:
            for figure, found in measured(j).items():
                write(j.method, snr_db, figure, "", found)
            for name, test in _tests(j):
                write(j.method, snr_db, f"p of uniform ranks, {name}", "", Measured(test.p, np.nan, np.nan))
        for ours, over, by in pairs:
            for figure, found in by.items():
                write(ours, snr_db, f"improvement, {figure}", over, found)
    return buffer.getvalue()


def _sections(levels: Sequence[Sequence[Judged]], improved: Sequence[Improvements]) -> Iterator[str]:
    every = [j for judged in levels for j in judged]
    outs = every[0].outs
    yield "## Percent aeration: mean absolute error\n\n" + _table(
        [*outs, f"{outs[-1]}, median"], [(j, [said(j.scores.get(k)) for k in (*outs, MEDIAN_WHOLE)]) for j in every]
    )
    shown = (MAP, TOP, MEDIAN_MAP, SSIM, CRPS_MAP, CRPS_WHOLE)
    yield "## Maps: mean absolute error, similarity, proper scores\n\n" + _table(
        [*shown, "unlike the training"],
        [(j, [*(said(j.scores.get(k)) for k in shown), _share(j)]) for j in every],
    )
    covered = [
        (j, [name, *(said({c.level: c.inside for c in j.coverage[name]}.get(level)) for level in LEVELS)])
        for j in every
        for name in (PIXEL, *outs)
        if j.coverage
    ]
    if covered:
        yield "## Coverage of central intervals\n\n" + _table(["of", *(f"{level:.0%}" for level in LEVELS)], covered)
    drawn = [j for j in every if j.samples]
    if drawn:
        yield "## Ranks of the truth among the samples\n\n" + _table(
            [*outs, "TARP"], [(j, [_verdict(j.uniformity.get(k)) for k in outs] + [_tarp(j)]) for j in drawn]
        )
        yield "## Spread over error\n\n" + _table(
            list(drawn[0].spread_skill), [(j, [said(v) for v in j.spread_skill.values()]) for j in drawn]
        )
    sorted_out = [j for j in drawn if j.auc]
    if sorted_out:
        names = list(dict.fromkeys(name for j in sorted_out for name in j.auc if name != "mean"))
        yield "## Category: area under the ROC curve, one against the rest\n\n" + _table(
            [*names, "mean"], [(j, [said(j.auc.get(k)) for k in (*names, "mean")]) for j in sorted_out]
        )
    known = [
        (j, [f"{k.aeration:g}", str(k.cases), f"{k.reach / MM:.2f} mm", *(_at(k, depth) for depth in SHOWN)])
        for j in drawn
        for k in j.information
    ]
    if known:
        head = ["true aeration", "lungs", "physics", *(f"{depth:g} mm" for depth in SHOWN)]
        yield (
            "## Information: standard deviation of the posterior over the prior's, by depth\n\n"
            "Physics: the depth down to which a change of a uniform lung changes its RF by -20 dB.\n\n"
            + _table(head, known)
        )
    lines = [
        (j, over, by) for pairs, judged in zip(improved, levels, strict=True) for j, over, by in _named(pairs, judged)
    ]
    if lines:
        head = list(lines[0][2])
        yield (
            "## Improvement over the other methods, paired\n\n1 - error / the other's error on the same cases.\n\n"
            + _table(["over", *head], [(j, [over, *(said(by[k], "+.0%") for k in head)]) for j, over, by in lines])
        )


def _named(pairs: Improvements, judged: Sequence[Judged]) -> Iterator[tuple[Judged, str, dict[str, Measured]]]:
    """One of (a over b) and (b over a), in the order of the methods; the CSV holds both."""
    names = [j.method for j in judged]
    for ours, over, by in pairs:
        if names.index(ours) < names.index(over):
            yield judged[names.index(ours)], over, by


def _table(head: Sequence[str], lines: Sequence[tuple[Judged, Sequence[str]]]) -> str:
    """Markdown table whose first columns say noise and method."""
    text = [f"| noise | method | {' | '.join(head)} |", "|---|---|" + "---|" * len(head)]
    text += [f"| {j.snr_db:g} dB | {j.method} | {' | '.join(cells)} |" for j, cells in lines]
    return "\n".join(text)


def said(found: Measured | None, form: str = ".3f") -> str:
    """A number and its interval in words; a dash for none."""
    if found is None or np.isnan(found.value):
        return "-"
    if np.isnan(found.low):
        return format(found.value, form)
    return f"{found.value:{form}} ({found.low:{form}} to {found.high:{form}})"


def _share(judged: Judged) -> str:
    """Cases that the method calls unlike its training; one without intervals doubts nothing."""
    return "-" if judged.low is None else f"{judged.out_of_range.value:.1%}"


def _verdict(found: Uniformity | None) -> str:
    if found is None:
        return "-"
    return f"{'inside' if found.inside else '**outside**'}, p {found.p:.2g}"


def _tarp(judged: Judged) -> str:
    found = judged.tarp
    return "-" if found is None else f"{_verdict(found.curve)}, area {said(found.area, '+.3f')}"


def _tests(judged: Judged) -> Iterator[tuple[str, Uniformity]]:
    yield from judged.uniformity.items()
    if judged.tarp is not None:
        yield "TARP", judged.tarp.curve


def _at(known: Known, depth: float) -> str:
    """The spread in the row at a depth [mm]; a dash below the map."""
    row = int(depth * MM / (2 * known.depth[0]))  # rows begin at the pleura
    return f"{known.spread[row]:.2f}" if row < len(known.spread) else "-"


def _remarks(levels: Sequence[Sequence[Judged]]) -> list[str]:
    found = dict.fromkeys(
        f"- {j.method}, {j.snr_db:g} dB: {note}." for judged in levels for j in judged for note in j.notes
    )
    return ["## Left out\n\n" + "\n".join(found)] if found else []
