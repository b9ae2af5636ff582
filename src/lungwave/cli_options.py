"""Options that verbs share, and how their words become a configuration."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import math
import re
import sys
import tomllib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from tyro.conf import Positional as Positional

from lungwave.config import Config, preset
from lungwave.types import RESEARCH_USE, UsageError

SETTING = re.compile(r"--([A-Za-z_][\w-]*(?:\.[A-Za-z_][\w-]*)+)(?:=(.*))?", re.DOTALL)
Repeated = Annotated[tuple[str, ...], tyro.conf.UseAppendAction]  # the option may be given several times
RULE = re.compile(r"[─━\-]{8,}")  # the line that tyro draws below its message


@dataclass(frozen=True, kw_only=True)
class Options(ABC):
    """What every verb takes."""

    json: bool = False
    """Print the result as JSON on stdout."""
    quiet: bool = False
    """Print nothing but errors."""

    @abstractmethod
    def work(self) -> dict[str, Any]:
        """Do it, and say what came out."""

    def run(self) -> None:
        """Work and print the result."""
        show(self.work(), as_json=self.json, quiet=self.quiet)


@dataclass(frozen=True, kw_only=True)
class Planned(Options):
    """What verbs take that compute for long."""

    dry_run: bool = False
    """Say what would be computed and written; write nothing."""

    @abstractmethod
    def plan(self) -> dict[str, Any]:
        """What ``work`` would do."""

    def run(self) -> None:
        """Plan or work, and print the result."""
        if self.dry_run:
            show(self.plan(), as_json=self.json, quiet=False)
        else:
            super().run()


@dataclass(frozen=True, kw_only=True)
class Configured(Planned):
    """What verbs take that simulate. ``--grid.spacing 5e-5`` does the same as ``--set grid.spacing=5e-5``."""

    preset: str | None = None
    """Named settings that the rest overrides: micro, tiny (default) or paper."""
    config: Path | None = None
    """TOML file of settings; may name its own preset."""
    set: Repeated = ()
    """One setting, as key=value; may be repeated."""
    seed: int | None = None
    """Root of all random streams."""
    print_config: bool = False
    """Print the settings as JSON, a file that --config accepts, and stop."""

    @property
    def settings(self) -> Config:
        """Preset, then file, then single settings."""
        if self.preset is not None and self.config is not None:
            raise UsageError(
                f"--preset {self.preset} and --config {self.config} both given; name the preset in the file"
            )
        base = Config.load(self.config) if self.config is not None else preset(self.preset or "tiny")
        changes: dict[str, Any] = {}
        for word in self.set:
            key, equals, value = word.partition("=")
            if not equals:
                raise UsageError(f"--set {word} has no value; write --set {word}=VALUE")
            changes[key.strip()] = parse_value(value)
        if self.seed is not None:
            changes["seed"] = self.seed
        if "preset" in changes:
            raise UsageError(f"--set preset={changes['preset']} would only rename; use --preset {changes['preset']}")
        return base.override(changes)

    def run(self) -> None:
        """Print the settings, or do what every verb does."""
        if self.print_config:
            print(self.settings.to_json())
        else:
            super().run()


def parse_value(text: str) -> Any:
    """A setting's value as TOML says it; plain words are strings and ``1,2`` is a list."""
    for candidate in (text, f"[{text}]"):
        with contextlib.suppress(tomllib.TOMLDecodeError):
            return tomllib.loads(f"value = {candidate}")["value"]
    return text.split(",") if "," in text else text


def parse_cases(text: str, flag: str = "--cases") -> range:
    """``a:b`` or ``n`` (that is ``0:n``) as a range with at least one case."""
    match = re.fullmatch(r"(?:(\d+):)?(\d+)", text.strip())
    if match is None:
        raise UsageError(f"{flag} {text} is no range; give a:b with 0 <= a < b, e.g. {flag} 0:8")
    cases = range(int(match[1] or 0), int(match[2]))
    if not cases:
        raise UsageError(f"{flag} {text} holds none; give a:b with a < b, e.g. {flag} 0:8")
    return cases


def dotted_settings(arguments: Sequence[str]) -> list[str]:
    """Rewrite ``--grid.spacing 5e-5`` and ``--grid.spacing=5e-5`` as ``--set grid.spacing=5e-5``."""
    words: list[str] = []
    rest = iter(arguments)
    for word in rest:
        match = SETTING.fullmatch(word)
        if match is None:
            words.append(word)
            continue
        value = match[2] if match[2] is not None else next(rest, None)
        if value is None or value.startswith("--"):
            raise UsageError(f"{word} has no value; write {word}=VALUE")
        words += ["--set", f"{match[1].replace('-', '_')}={value}"]
    return words


def run(prog: str, verb: type[Options], arguments: Sequence[str]) -> None:
    """Parse the words after the verb and run it."""
    if issubclass(verb, Configured):
        arguments = dotted_settings(arguments)
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            options: Options = tyro.cli(
                verb,
                prog=prog,
                description=f"{verb.__doc__}\n\n{RESEARCH_USE}",
                args=list(arguments),
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return
        raise UsageError(f"{one_line(message.getvalue())}; see {prog} --help") from None
    options.run()


def one_line(box: str) -> str:
    """The message and the suggestion of an error box, without its frame."""
    lines = [line.strip(" │╭╮╰╯|+") for line in box.splitlines()[1:]]  # the first line frames the title
    said = " ".join(itertools.takewhile(lambda line: not RULE.search(line), lines))
    suggestions = [lines[i + 1] for i, line in enumerate(lines[:-1]) if line.startswith("Perhaps you meant")]
    said = said.strip() or box.strip()
    return said[:1].lower() + said[1:] + (f"; did you mean '{suggestions[0].split()[0]}'?" if suggestions else "")


def check_seed(seed: int) -> None:
    """UsageError for a negative one."""
    if seed < 0:
        raise UsageError(f"--seed {seed} is negative; give 0 or more")


def show(result: Mapping[str, Any], *, as_json: bool, quiet: bool) -> None:
    """Print a result for a machine (``as_json``) or a person, always with the notice."""
    if as_json:
        print(json.dumps(finite({**result, "notice": RESEARCH_USE}), indent=2, allow_nan=False))
    elif not quiet:
        print("\n".join([*readable(result), RESEARCH_USE]))
    sys.stdout.flush()


def finite(value: Any) -> Any:
    """The value with NaN as null and infinity as text, which JSON lacks."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def readable(result: Mapping[str, Any], indent: str = "") -> list[str]:
    """Lines of ``key  value``; nested settings are indented, a list of equal records is a table."""
    width = max((len(key) for key in result), default=0) + 2
    lines: list[str] = []
    for key, value in result.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            lines += [f"{indent}{name}", *readable(value, f"{indent}  ")]
        elif isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            lines += [f"{indent}{name}", *_table(value, f"{indent}  ")]
        else:
            lines.append(f"{indent}{name:<{width}}{_say(key, value)}")
    return lines


def _table(records: list[Mapping[str, Any]], indent: str) -> list[str]:
    """Records as columns under their keys."""
    keys = list(dict.fromkeys(key for record in records for key in record))
    rows = [[key.replace("_", " ") for key in keys]]
    rows += [[_say(key, record.get(key)) for key in keys] for record in records]
    widths = [max(len(row[column]) for row in rows) for column in range(len(keys))]
    return [
        indent + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]


FRACTIONS = ("percent_aeration", "interval", "truth")  # kept as fractions 0-1, shown as percent


def _say(key: str, value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(_say(key, item) for item in value) or "none"
    if value is None or isinstance(value, (str, bool)):
        return "-" if value is None else str(value)
    if key in FRACTIONS:
        return f"{value:.0%}"
    if key == "bytes":
        power = min(int(math.log10(max(value, 1)) // 3), 4)
        return f"{value / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
    if key == "seconds":
        return f"{value:.1f} s" if value < 120 else f"{value / 60:.0f} min" if value < 7200 else f"{value / 3600:.1f} h"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
