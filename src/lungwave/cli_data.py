"""``lungwave data``: what files hold, whether they can be used, other formats, folders made on several machines.

Every module of the science is imported where a verb runs, so that parsing stays instant.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lungwave.cli_options import Options, Positional, parse_cases, show
from lungwave.cli_verbs import output_folder
from lungwave.types import LungwaveError


@dataclass(frozen=True, kw_only=True)
class DataInfo(Options):
    """Say what an RF or map file holds."""

    file: Positional[Path]
    """File of any known format."""
    geometry: Path | None = None
    """JSON or TOML file with the geometry that the file lacks."""

    def work(self) -> dict[str, Any]:
        """Read the headings."""
        from lungwave.data import convert

        return {"file": str(self.file), **convert.info(self.file, self.geometry)}


@dataclass(frozen=True, kw_only=True)
class DataValidate(Options):
    """Check an RF or map file. Exit code 1 if lungwave cannot use it."""

    file: Positional[Path]
    """File of any known format."""
    geometry: Path | None = None
    """JSON or TOML file with the geometry that the file lacks."""

    def work(self) -> dict[str, Any]:
        """Read everything."""
        from lungwave.data import convert

        findings = convert.validate(self.file, self.geometry)
        listed = [{"level": finding.level, "message": finding.message} for finding in findings]
        return {"file": str(self.file), "valid": all(f["level"] != "error" for f in listed), "findings": listed}

    def run(self) -> None:
        """Print what was found; fail where the file is unusable."""
        result = self.work()
        if result["valid"] or self.json:
            show(result, as_json=self.json, quiet=self.quiet)
        errors = [finding["message"] for finding in result["findings"] if finding["level"] == "error"]
        if errors:
            more = f" (and {len(errors) - 1} more; --json lists them)" if len(errors) > 1 else ""
            raise LungwaveError(errors[0] + more)


@dataclass(frozen=True, kw_only=True)
class DataConvert(Options):
    """Convert RF to HDF5 or NPZ, or maps (.pt, PNG, NPZ) to 8 x 256 grayscale PNG, PNG of any size, or NPZ."""

    source: Positional[Path]
    """File to read; for maps also a folder."""
    destination: Positional[Path]
    """File to write; the suffix decides the format. For maps also a folder."""
    kind: Literal["auto", "rf", "maps"] = "auto"
    """What the source holds."""
    geometry: Path | None = None
    """JSON or TOML file with the geometry that the source lacks."""
    keep_subject: bool = False
    """Keep the fields about the subject and the free text, which are dropped otherwise."""
    scale: Literal["auto", "fraction", "percent", "byte"] = "auto"
    """What 1 means in the maps."""

    def work(self) -> dict[str, Any]:
        """Convert."""
        from lungwave.data import convert

        return convert.convert(
            self.source, self.destination, self.kind, self.geometry, not self.keep_subject, self.scale
        )


@dataclass(frozen=True, kw_only=True)
class DataMerge(Options):
    """Put folders of cases together that were generated in ranges, on several machines; refuse what does not fit."""

    folders: Positional[tuple[Path, ...]]
    """Folders that `lungwave generate` filled."""
    out: Path
    """Folder of all cases; may be one of them, which is then only checked and described."""
    cases: str | None = None
    """Which cases must be there, a:b; default all from the first to the last."""

    def work(self) -> dict[str, Any]:
        """Check, link, describe."""
        cases = None if self.cases is None else parse_cases(self.cases)
        out = output_folder(self.out)
        from lungwave.data import merge

        return merge.merge(self.folders, out, cases)
