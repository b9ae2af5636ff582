"""What evaluations found, written into the card of a model: README.md of its folder, from their JSON files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lungwave.evaluate.reconstruction import LEVEL
from lungwave.models.checkpoint import CARD, WEIGHTS
from lungwave.repro import atomic_path, sha256
from lungwave.types import RESEARCH_USE, UsageError

HEADING = "## What evaluations found"
Row = tuple[str, str]  # what, figure


def write_findings(folder: Path, results: Sequence[Path]) -> Path:
    """Replace the findings in a model's card by those of ``results``; the rest of the card stays as it is.

    ``results``: JSON files of ``lungwave evaluate`` or of ``benchmarks/prior.py``. UsageError for a folder without a
    model, a file that is none of these, and one that names other weights.
    """
    card, weights = folder / CARD, folder / WEIGHTS
    if not weights.is_file():
        raise UsageError(f"{folder} holds no {WEIGHTS}; give the folder of a model")
    digest = sha256(weights)
    tables = [_table(path, digest) for path in results]
    kept = card.read_text(encoding="utf-8").partition(f"\n{HEADING}\n")[0].rstrip() if card.is_file() else "# Model"
    if kept.endswith(RESEARCH_USE):
        kept = kept.removesuffix(RESEARCH_USE).rstrip()
    parts = [kept, *([HEADING, *tables] if tables else []), *([] if RESEARCH_USE in kept else [RESEARCH_USE])]
    with atomic_path(card) as temporary:
        temporary.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return card


def _table(path: Path, digest: str) -> str:
    """One file's figures and the command that made them."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = list(_rows(found, path, digest))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path}: not a result that a card can take ({type(error).__name__}: {error}); give reconstruction.json, "
            "generative.json or memorisation.json of 'lungwave evaluate'"
        ) from None
    made = f"Made by `{found['command']}`, {found['created'][:10]}, lungwave {found['versions']['lungwave']}."
    return "\n".join([made, "", "| | |", "|---|---|", *(f"| {what} | {figure} |" for what, figure in rows)])


def _rows(found: Mapping[str, Any], path: Path, digest: str) -> Iterator[Row]:
    """The figures of a result of any kind."""
    results = found["results"]
    if isinstance(results, list):
        names = [name for name, about in found["models"].items() if digest[:16] in about["digest"]]
        if not names:
            raise UsageError(f"{path} judged {', '.join(found['models'])}, none with the weights of this model")
        yield "unseen lungs", f"{found['cases']}, SHA-256 {found['data_sha256'][:16]}"
        for row in results:
            if row["method"] == names[0]:
                yield from _reconstruction(row)
        return
    named = found["parents"].get(WEIGHTS, digest)
    if named != digest:
        raise UsageError(f"{path} is about the weights {named[:16]}, and this model has {digest[:16]}")
    yield from ((name.replace("_", " "), f"SHA-256 {value[:16]}") for name, value in found["maps"].items())
    if "features" in results:
        yield from _generative(results)
    copies = results.get("memorisation", results if "copying" in results else None)
    if copies is not None:
        yield (
            "nearer to the training maps than the 1st percentile of unseen ones",
            f"{copies['share']:.1%} of the samples; by chance {copies['expected']:.1%} (p = {copies['p']:.2g})",
        )
        yield "data-copying statistic (below -3: copies)", f"{copies['copying']:+.1f}"


def _reconstruction(row: Mapping[str, Any]) -> Iterator[Row]:
    """Errors and coverage at one noise level."""
    for score, what in (("0-6 mm", "percent aeration, mean absolute error"), ("CRPS, whole", "percent aeration, CRPS"),
                        ("map", "map, mean absolute error")):  # fmt: skip
        if score in row["scores"]:
            yield f"{what}, {row['snr_db']:g} dB", _interval(row["scores"][score])
    for what, levels in row["coverage"].items():
        if what in ("0-6 mm", "per pixel"):
            for level in levels:
                if level["level"] == LEVEL:
                    yield (
                        f"{100 * LEVEL:.0f} % intervals hold the truth, {what}, {row['snr_db']:g} dB",
                        _interval(level["inside"]),
                    )


def _interval(number: Mapping[str, float]) -> str:
    return f"{number['value']:.3f} ({number['low']:.3f} to {number['high']:.3f})"


def _generative(results: Mapping[str, Any]) -> Iterator[Row]:
    """Distances beside their floors, and the statistics of lungs."""
    for name, distances in results["features"].items():
        kid = distances["kid"]
        yield (
            f"KID, {name}",
            f"{kid['value']:.4f}; training maps {kid['floor']:.4f}; within chance: {'yes' if kid['within'] else 'no'}",
        )
    for name, part in results["statistics"].items():
        if part["relative_difference"] is not None:
            yield name, f"{part['samples']:.4g}; real {part['held_out']:.4g} ({part['relative_difference']:+.1%})"
