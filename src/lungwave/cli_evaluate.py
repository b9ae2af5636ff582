"""The verbs that judge models on cases they have not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lungwave.cli_learn import command_of
from lungwave.cli_options import Planned, Positional, Repeated, check_seed, parse_cases
from lungwave.cli_verbs import check_workers, output_folder
from lungwave.types import UsageError

if TYPE_CHECKING:
    from lungwave.calibrated import Posteriors
    from lungwave.comparison import Comparison
    from lungwave.evaluate.networks import NetworkFeatures
    from lungwave.generated import Sets

UNSAID = (
    "data",
    "model",
    "out",
    "json",
    "quiet",
    "dry_run",
    "workers",
    "scheduler",
)  # options that stand elsewhere or decide nothing


@dataclass(frozen=True, kw_only=True)
class Reconstruction(Planned):
    """Judge models on the same generated cases: errors, coverage, calibration, information by depth. Rerun to resume.

    The cases must come from another seed than any model's training. Writes reconstruction.md, .csv, .json and pictures.
    """

    data: Positional[Path]
    """Folder that `lungwave generate` wrote, without noise."""
    model: Repeated = ()
    """Folder of a model or of the training that made it, or the name of a shipped one; may be repeated."""
    snr: tuple[float, ...] = (30.0, 20.0, 10.0)
    """Noise levels [dB]."""
    samples: int = 39
    """Posterior samples a case; 39 are the fewest that tell 95 % intervals, 19 for 90 %."""
    cases: str | None = None
    """Which of the quantifiable cases, a:b; default all."""
    out: Path = Path("lungwave-evaluation")
    """Folder of tables, pictures and the cache of predictions."""
    seed: int = 0
    """Root of the streams of noise, samples and resampling."""
    workers: int = 1
    """Processes that predict."""
    scheduler: str | None = None
    """Address of a Dask scheduler that predicts, or local."""

    def plan(self) -> dict[str, Any]:
        """What is to be computed, and how long that takes."""
        asked = self._asked
        from lungwave import comparison

        return comparison.plan(asked)

    def work(self) -> dict[str, Any]:
        """Predict, judge, write."""
        asked = self._asked
        from lungwave import comparison

        words = ("reconstruction", str(self.data), *(word for name in self.model for word in ("--model", name)))
        command = command_of(replace(self, model=()), "evaluate", words, UNSAID)
        return comparison.compare(asked, command, self.quiet, self.workers, self.scheduler)

    @property
    def _asked(self) -> Comparison:
        chosen = None if self.cases is None else parse_cases(self.cases)
        output_folder(self.out)
        check_workers(self.workers)
        from lungwave.comparison import Comparison

        return Comparison(self.data, self.model, self.snr, self.samples, self.out, chosen, self.seed)


@dataclass(frozen=True, kw_only=True)
class Generated(Planned):
    """What both verbs take that judge generated maps."""

    samples: Positional[Path]
    """Generated maps: a folder of images, an NPZ or NPY file, of any one size."""
    train: Path | None = None
    """Maps that the generator was trained on."""
    out: Path = Path("lungwave-generated")
    """Folder of tables and pictures."""
    seed: int = 0
    """Root of the streams of subsets and resampling."""

    def _read(self, held_out: Path) -> Sets:
        output_folder(self.out)
        check_seed(self.seed)
        from lungwave.generated import read_sets

        return read_sets(self.samples, held_out, self.train)

    def _command(self, name: str) -> str:
        return command_of(self, "evaluate", (name, str(self.samples)), ("samples", *UNSAID))

    def _planned(self, sets: Sets) -> dict[str, Any]:
        counts = {"samples": len(sets.samples), "train": len(sets.train), "held_out": len(sets.held_out)}
        return {**counts, "size": list(sets.samples.size), "notes": list(sets.notes), "out": str(self.out)}


@dataclass(frozen=True, kw_only=True)
class Generative(Generated):
    """Judge generated maps against real ones: distances with their floors, overlap, diversity, statistics of lungs."""

    reference: Path
    """Real maps; best of other lungs than the training's."""
    network: Literal["inception", "dinov2"] | None = None
    """Features of this network as well, whose weights you have."""
    weights: Path | None = None
    """Its state dict: pytorch-fid's pt_inception-2015-12-05-6726825d.pth, or a DINOv2 checkpoint."""
    sha256: str | None = None
    """What the SHA-256 of that file begins with; checked."""

    def plan(self) -> dict[str, Any]:
        """What would be compared."""
        planned = self._planned(self._read(self.reference))
        extractor = self._extractor
        return {**planned, **({} if extractor is None else {"network": extractor.name, "sha256": extractor.sha256})}

    def work(self) -> dict[str, Any]:
        """Compare and write."""
        sets, extractor = self._read(self.reference), self._extractor
        from lungwave.generated import judge_generated

        return judge_generated(sets, self.out, self._command("generative"), self.seed, extractor)

    @property
    def _extractor(self) -> NetworkFeatures | None:
        if (self.network is None) != (self.weights is None) or (self.sha256 and self.weights is None):
            raise UsageError("--network and --weights go together: the kind of network, and the file of its weights")
        if self.network is None or self.weights is None:
            return None
        from lungwave.evaluate.networks import network_features

        return network_features(self.network, self.weights, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Memorisation(Generated):
    """Are samples copies? Their distance to the nearest training map against that of real maps never trained on."""

    held_out: Path
    """Real maps of other lungs than the training's: what distances mean is known from them."""
    shifts: int = 4
    """Largest lateral shift [pixel] that still counts as the same map."""

    def plan(self) -> dict[str, Any]:
        """What would be compared."""
        return self._planned(self._checked)

    def work(self) -> dict[str, Any]:
        """Compare and write."""
        sets = self._checked
        from lungwave.generated import judge_memorisation

        return judge_memorisation(sets, self.out, self._command("memorisation"), self.shifts, self.seed)

    @property
    def _checked(self) -> Sets:
        if self.train is None:
            raise UsageError("copies are looked for among the training maps; give them with --train")
        return self._read(self.held_out)


@dataclass(frozen=True, kw_only=True)
class Calibration(Planned):
    """Do posterior samples of any program mean what they say? Coverage, ranks, TARP, scores; from one NPZ.

    It holds `samples` [case, sample, ...] and `truth` [case, ...], one truth a case, cases independent; where known,
    `summary` [case, ...] (an estimate from the recording, for a sharper TARP), `residual` [case, ...] with `noise` (its
    standard deviation, for chi2), `score` [case, sample, ...] (gradient of the log posterior, for the Stein
    discrepancy).
    """

    source: Positional[Path]
    """NPZ file."""
    out: Path = Path("lungwave-calibration")
    """Folder of table and picture."""
    seed: int = 0
    """Root of the streams of ties, references and resampling."""

    def plan(self) -> dict[str, Any]:
        """What would be judged."""
        found = self._read
        return {"cases": len(found.truth), "samples": found.samples.shape[1], "out": str(self.out)}

    def work(self) -> dict[str, Any]:
        """Judge and write."""
        found = self._read
        from lungwave.calibrated import judge_calibration

        command = command_of(self, "evaluate", ("calibration", str(self.source)), ("source", *UNSAID))
        return judge_calibration(found, self.source, self.out, command, self.seed)

    @property
    def _read(self) -> Posteriors:
        output_folder(self.out)
        check_seed(self.seed)
        from lungwave.calibrated import read_posteriors

        return read_posteriors(self.source)
