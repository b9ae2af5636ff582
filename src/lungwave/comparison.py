"""Models judged on the same generated cases: predictions in a cache, then tables and pictures."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from lungwave.data.arrays import numpy_arrays
from lungwave.data.dataset import folder_config
from lungwave.data.maps import save_npz
from lungwave.evaluate.calibration import least_samples
from lungwave.evaluate.cases import to_json
from lungwave.evaluate.methods import Model, check_fit, check_unseen, model_digest, open_model
from lungwave.evaluate.reconstruction import (
    LEVEL,
    MAP,
    Estimated,
    Judged,
    Method,
    Sampled,
    Truths,
    constant,
    improvements,
    joined,
    judge,
    mean_map,
)
from lungwave.evaluate.tables import NOTES, markdown, rows
from lungwave.figures_evaluation import save_pictures
from lungwave.page import save_table
from lungwave.pool import open_pool
from lungwave.posterior.amortized import DRAWN
from lungwave.posterior.pairs import Pairs, noisy
from lungwave.progress import Progress
from lungwave.repro import atomic_path, manifest, write_json
from lungwave.shipped import ECHOES, MODEL, model_folder
from lungwave.types import RESEARCH_USE, UsageError

BLOCK = 8  # cases of a file of the cache
MEAN = "mean map"
NOISE = "evaluate"  # name of the noise streams
SNR = (-20.0, 120.0)  # [dB]


@dataclass(frozen=True)
class Comparison:
    """What is judged, and where it goes."""

    cases: Path
    models: tuple[str, ...]  # folders, or names of shipped ones
    snr_db: tuple[float, ...]
    samples: int
    out: Path
    chosen: range | None = None  # of the quantifiable cases; None = all
    seed: int = 0  # of noise, samples and resampling

    def __post_init__(self) -> None:
        if not self.models:
            raise UsageError("no model to judge; give --model FOLDER, or --model ridge-tiny, which ships")
        least, most = SNR
        wrong = [snr for snr in self.snr_db if not least <= snr <= most]
        if wrong or not self.snr_db or len(set(self.snr_db)) < len(self.snr_db):
            said = " ".join(f"{snr:g}" for snr in self.snr_db) or "none"
            raise UsageError(f"--snr {said}: give noise levels from {least:g} to {most:g} dB, each once")
        if self.samples < least_samples(LEVEL):
            raise UsageError(
                f"--samples {self.samples} tell no {LEVEL:.0%} interval; give {least_samples(LEVEL)} or more"
            )
        if self.seed < 0:
            raise UsageError(f"--seed {self.seed} is negative; give 0 or more")


@dataclass(frozen=True)
class Entrant:
    """A model, where it lies, and what decides its predictions."""

    model: Model
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        """Its name in tables."""
        return self.model.method.name

    @property
    def key(self) -> tuple[Path, str]:
        """By which any process finds it."""
        return self.folder.resolve(), self.name


@dataclass(frozen=True)
class Task:
    """A block of cases at one noise level for one model, and the file that keeps the answer."""

    entrant: Entrant
    snr_db: float
    rows: np.ndarray
    path: Path

    def kept(self) -> Sampled | Estimated | None:
        """The answer, if it was given before; a damaged file is none."""
        return kept_answer(self.path, Sampled if self.entrant.model.samples else Estimated)


def kept_answer(path: Path, kind: type[Sampled] | type[Estimated]) -> Sampled | Estimated | None:
    """Predictions in a file of the cache; None where there is none that is whole."""
    try:
        held = numpy_arrays(path)
        return kind(**{item.name: held[item.name] for item in fields(kind)})
    except (UsageError, LookupError, ValueError):
        return None


def plan(comparison: Comparison) -> dict[str, Any]:
    """What would be computed and written, timed on one case of every model."""
    pairs, entrants, tasks = _prepare(comparison, quiet=True)
    left = [task for task in tasks if task.kept() is None]
    seconds = 0.0
    for entrant in entrants:
        mine = [task for task in left if task.entrant is entrant]
        if mine:
            clock = time.perf_counter()
            one = pairs.take(mine[0].rows[:1])
            _predict(entrant.model, one, mine[0].snr_db, comparison.samples, comparison.seed)
            seconds += (time.perf_counter() - clock) * sum(len(task.rows) for task in mine)
    size = pairs.config.map.rows * pairs.config.map.columns
    bytes_ = sum(
        len(task.rows) * size * (2 * comparison.samples if task.entrant.model.samples else 24) for task in tasks
    )
    return {
        "cases": len(pairs),
        "methods": [*(entrant.name for entrant in entrants), MEAN],
        "snr_db": list(comparison.snr_db),
        "samples": comparison.samples,
        "predictions": sum(len(task.rows) for task in tasks),
        "in_the_cache": sum(len(task.rows) for task in tasks) - sum(len(task.rows) for task in left),
        "bytes": bytes_,
        "seconds": seconds,
        "out": str(comparison.out),
    }


def compare(
    comparison: Comparison, command: str, quiet: bool = False, workers: int = 1, scheduler: str | None = None
) -> dict[str, Any]:
    """Predict what the cache lacks, judge, and write reconstruction.md, .csv, .json and the pictures.

    Predictions are made by ``workers`` processes, or on a Dask ``scheduler`` whose workers see the models. Raises
    UsageError, before anything is written, for models that the cases are no fair test of.
    """
    pairs, entrants, levels, sources = _judged(comparison, quiet, workers, scheduler)
    pictures = [path.name for path in save_pictures(levels, comparison.out)]
    _write(comparison, command, pairs, entrants, levels, pictures, sources)
    return {
        "cases": len(pairs),
        "methods": [
            {
                "noise": f"{j.snr_db:g} dB",
                "method": j.method,
                "error": j.scores[j.outs[-1]].value,
                "map_error": j.scores[MAP].value,
                "inside_90": next((c.inside.value for c in j.coverage.get(j.outs[-1], ()) if c.level == LEVEL), None),
            }
            for judged in levels
            for j in judged
        ],
        "table": str(comparison.out / "reconstruction.md"),
        "page": str(comparison.out / "reconstruction.html"),
        "pictures": pictures,
    }


def judged(comparison: Comparison, quiet: bool = False) -> list[list[Judged]]:
    """Every method at every noise level, the mean map last; what the cache lacks is predicted first."""
    return _judged(comparison, quiet)[2]


def _judged(
    comparison: Comparison, quiet: bool, workers: int = 1, scheduler: str | None = None
) -> tuple[Pairs, list[Entrant], list[list[Judged]], dict[str, str]]:
    pairs, entrants, tasks = _prepare(comparison, quiet)
    truths = Truths.of(pairs.cases, pairs.config.probe.center_frequency)
    base, source = _mean(entrants, truths, pairs.cases.base_id)
    _fill(comparison, pairs, tasks, quiet, workers, scheduler)
    levels, near = _judge_all(comparison, truths, base, entrants, tasks, quiet)
    return pairs, entrants, levels, {"mean": source, "summary": near}


def _write(
    comparison: Comparison,
    command: str,
    pairs: Pairs,
    entrants: Sequence[Entrant],
    levels: Sequence[Sequence[Judged]],
    pictures: Sequence[str],
    sources: Mapping[str, str],
) -> None:
    """The three tables; ``sources`` says where the mean map and TARP's references are from."""
    improved = [improvements(judged, comparison.seed) for judged in levels]
    bases = len(np.unique(pairs.cases.base_id))
    intro = [
        f"Made by `{command}`. {len(pairs)} cases of {bases} base anatomies (preset {pairs.config.preset}, seed "
        f"{pairs.config.seed}, on which no model was trained), the same frames for every method, "
        f"{comparison.samples} samples a case. {RESEARCH_USE}",
        "\n".join(f"![{Path(name).stem}]({name})" for name in pictures),
    ]
    if bases < len(pairs):
        intro.insert(1, "Cases that share a base anatomy are alike: intervals take them for independent.")
    title, notes = f"Reconstruction of {len(pairs)} test cases", NOTES.format(**sources)
    text = markdown(levels, improved, title, "\n\n".join(intro), notes)
    about = {
        "results": [j.to_json() for judged in levels for j in judged],
        "improvements": [
            {"snr_db": judged[0].snr_db, "method": ours, "over": over, "by": to_json(by)}
            for judged, found in zip(levels, improved, strict=True)
            for ours, over, by in found
        ],
        "models": {
            e.name: {"folder": str(e.folder), "digest": e.digest, "seed": e.model.config.seed} for e in entrants
        },
        "sources": dict(sources),
        "cases": len(pairs),
        "base_anatomies": bases,
        "data_sha256": pairs.digest,
        "notice": RESEARCH_USE,
        **manifest(pairs.config.to_json(), comparison.seed, (comparison.cases / "config.json",), command=command),
    }
    save_table(comparison.out / "reconstruction.md", text)
    with atomic_path(comparison.out / "reconstruction.csv") as temporary:
        temporary.write_text(rows(levels, improved), encoding="utf-8")
    write_json(comparison.out / "reconstruction.json", about)


def _prepare(comparison: Comparison, quiet: bool) -> tuple[Pairs, list[Entrant], list[Task]]:
    """Cases and models, checked against each other; seeds before the echoes are read, which may take long."""
    config = folder_config(comparison.cases)
    entrants = _entrants(comparison.models)
    for entrant in entrants:
        check_unseen(entrant.model, config, comparison.cases)
    pairs = Pairs.read(comparison.cases, quiet)
    if comparison.chosen is not None:
        if comparison.chosen.stop > len(pairs):
            last = comparison.chosen.stop
            raise UsageError(
                f"--cases ends at {last}, {comparison.cases} holds {len(pairs)} quantifiable ones; give less"
            )
        pairs = pairs.take(np.array(comparison.chosen))
    for entrant in entrants:
        check_fit(entrant.model, config, pairs.scan, pairs.rf.shape[2])
    return pairs, entrants, _tasks(comparison, pairs, entrants)


def _entrants(models: Sequence[str]) -> list[Entrant]:
    """Models by folder, that of a training included; a name that comes twice gets a number."""
    found: list[Entrant] = []
    for given in models:
        folder = model_folder(Path(given), ECHOES)
        whole = folder.resolve()
        name = whole.parent.name if whole.name == MODEL else whole.name
        taken = {entrant.name for entrant in found} | {MEAN}
        unique = next(n for n in (name, *(f"{name} {k}" for k in range(2, len(models) + 2))) if n not in taken)
        found.append(Entrant(open_model(folder, unique), folder, model_digest(folder)))
    return found


def _tasks(comparison: Comparison, pairs: Pairs, entrants: Sequence[Entrant]) -> list[Task]:
    """Blocks first, so that all models see a block's frames while they are at hand."""
    found = []
    for first in range(0, len(pairs), BLOCK):
        chosen = np.arange(first, min(first + BLOCK, len(pairs)))
        data = pairs.take(chosen).digest[:16]
        for snr_db in comparison.snr_db:
            for entrant in entrants:
                drawn = f"_{comparison.samples}_{DRAWN}" if entrant.model.samples else ""
                name = f"{entrant.digest}_{data}_{snr_db:g}dB{drawn}_seed{comparison.seed}.npz"
                found.append(Task(entrant, snr_db, chosen, comparison.out / "cache" / name))
    return found


def _fill(
    comparison: Comparison, pairs: Pairs, tasks: Sequence[Task], quiet: bool, workers: int, scheduler: str | None
) -> None:
    """Predict what is not kept yet; the answers come back here and are kept by this process."""
    left = [task for task in tasks if task.kept() is None]
    total = sum(len(task.rows) for task in tasks)
    if not left:
        return
    for entrant in {id(task.entrant): task.entrant for task in left}.values():
        _OPEN[entrant.key] = entrant.model
    jobs = (
        (
            range(int(task.rows[0]), int(task.rows[-1]) + 1),
            (n, task.entrant.key, pairs.take(task.rows), task.snr_db, comparison.samples, comparison.seed),
        )
        for n, task in enumerate(left)
    )
    with (
        Progress(total, "predict", done=total - sum(len(task.rows) for task in left), quiet=quiet) as progress,
        open_pool(min(workers, len(left)), scheduler) as pool,
        closing(pool.run(_answer, jobs)) as answers,
    ):
        for _, (n, found) in answers:
            save_npz(left[n].path, **{item.name: getattr(found, item.name) for item in fields(found)})
            progress.advance(len(left[n].rows))


_OPEN: dict[tuple[Path, str], Model] = {}  # models of this process, by folder and name


def _answer(
    n: int, key: tuple[Path, str], part: Pairs, snr_db: float, samples: int, seed: int
) -> tuple[int, Sampled | Estimated]:
    """Predictions of some cases, with the number of the task."""
    if key not in _OPEN:
        _OPEN[key] = open_model(*key)
    return n, _predict(_OPEN[key], part, snr_db, samples, seed)


def _predict(model: Model, part: Pairs, snr_db: float, samples: int, seed: int) -> Sampled | Estimated:
    frames = noisy(part, np.arange(len(part)), (snr_db, snr_db), seed, f"{NOISE}/{snr_db:g}")
    return model(frames, part.cases.index, part.scan, samples, seed)


def _judge_all(
    comparison: Comparison,
    truths: Truths,
    base: Estimated,
    entrants: Sequence[Entrant],
    tasks: Sequence[Task],
    quiet: bool,
) -> tuple[list[list[Judged]], str]:
    """All methods at every noise level, the mean map last; and what TARP's references were drawn around."""
    levels, near = [], "the mean of the other half of the samples"
    with Progress(len(comparison.snr_db) * len(entrants), "judge", quiet=quiet) as progress:
        for snr_db in comparison.snr_db:
            summary, judged = None, {}
            for entrant in sorted(entrants, key=lambda e: e.model.samples):  # estimates first: a summary for TARP
                found = _gathered([t for t in tasks if t.entrant is entrant and t.snr_db == snr_db])
                if isinstance(found, Estimated) and summary is None and np.ptp(found.map, axis=0).any():
                    summary, near = found.map, f"the estimate of {entrant.name}"
                judged[entrant.name] = judge(entrant.model.method, found, truths, snr_db, summary, comparison.seed)
                progress.advance()
            last = judge(Method(MEAN, intervals=False), base, truths, snr_db, seed=comparison.seed)
            levels.append([*(judged[entrant.name] for entrant in entrants), last])
    return levels, near


def _gathered(tasks: Sequence[Task]) -> Sampled | Estimated:
    parts = [task.kept() for task in tasks]
    if any(part is None for part in parts):
        raise UsageError("predictions vanished from the cache while they were judged; run the same command again")
    return joined([part for part in parts if part is not None])


def _mean(entrants: Sequence[Entrant], truths: Truths, bases: np.ndarray) -> tuple[Estimated, str]:
    """The training mean of the first model that kept one, else that of the other test cases."""
    for entrant in entrants:
        known = entrant.model.mean()
        if known is not None:
            bands, maps = (np.broadcast_to(part, (len(truths), *part.shape)) for part in known)
            return constant(bands, maps), f"that of the cases on which {entrant.name} was trained"
    return mean_map(truths, bases), "of each case, that of the test cases with other base anatomies"
