"""The verbs that judge models on cases they have not seen."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lungwave.cli_learn import command_of
from lungwave.cli_options import Planned, Positional, Repeated, parse_cases
from lungwave.cli_verbs import output_folder

if TYPE_CHECKING:
    from lungwave.comparison import Comparison

UNSAID = ("data", "model", "out", "json", "quiet", "dry_run")  # options that stand elsewhere or decide nothing


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
        return comparison.compare(asked, command, self.quiet)

    @property
    def _asked(self) -> Comparison:
        chosen = None if self.cases is None else parse_cases(self.cases)
        output_folder(self.out)
        from lungwave.comparison import Comparison

        return Comparison(self.data, self.model, self.snr, self.samples, self.out, chosen, self.seed)
