"""What the reference says of the program, from the program: help of every command, every setting with its unit."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lungwave.cli import VERBS, main
from lungwave.config import PRESETS, Config

COLUMNS = 100  # of the help in the pages
SAID = re.compile(r"^\s{4}(\w+)\s*:[^#]*(?:#\s*(.*))?$")
CONTINUED = re.compile(r"^\s{4}\)\s*#\s*(.*)$")


def help_of(*words: str) -> str:
    """What ``lungwave WORDS --help`` prints, without colours and frames that a page draws itself."""
    said = io.StringIO()
    before = {name: os.environ.get(name) for name in ("COLUMNS", "NO_COLOR", "TERM")}
    os.environ.update({"COLUMNS": str(COLUMNS), "NO_COLOR": "1", "TERM": "dumb"})
    try:
        with contextlib.redirect_stdout(said):
            code = main([*words, "--help"])
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if code != 0:
        raise RuntimeError(f"lungwave {' '.join(words)} --help ended with {code}")
    return "\n".join(line.rstrip() for line in said.getvalue().strip("\n").splitlines())


def commands() -> Iterator[tuple[str, str, str]]:
    """Name, purpose and help of every command."""
    for name, (_, purpose) in VERBS.items():
        yield name, purpose, help_of(*name.split())


@dataclass(frozen=True)
class Setting:
    """One line of the configuration."""

    key: str
    values: tuple[str, ...]  # of each preset
    meaning: str  # with its unit


@dataclass(frozen=True)
class Table:
    """The settings of one table of a configuration file."""

    name: str  # "" = top level
    purpose: str
    settings: tuple[Setting, ...]


def settings() -> Iterator[Table]:
    """Every table of the configuration, from the dataclasses that define it; units stand in their comments."""
    configs = tuple(PRESETS.values())
    top = [item for item in dataclasses.fields(Config) if not dataclasses.is_dataclass(getattr(configs[0], item.name))]
    said = {"preset": "which of the presets the rest overrides", "seed": "root of all random streams"}
    rows = tuple(
        Setting(item.name, tuple(shown(getattr(c, item.name)) for c in configs), said[item.name]) for item in top
    )
    yield Table("", "Top level", rows)
    for item in dataclasses.fields(Config):
        first = getattr(configs[0], item.name)
        if dataclasses.is_dataclass(first):
            meanings = comments(type(first))
            yield Table(item.name, inspect.getdoc(type(first)) or "", tuple(
                Setting(
                    f"{item.name}.{inner.name}",
                    tuple(shown(getattr(getattr(c, item.name), inner.name)) for c in configs),
                    meanings.get(inner.name, ""),
                )
                for inner in dataclasses.fields(first)
            ))  # fmt: skip


def comments(kind: type) -> dict[str, str]:
    """The comment behind each field of a dataclass."""
    found: dict[str, str] = {}
    last = ""
    for line in inspect.getsource(kind).splitlines():
        if match := SAID.match(line):
            last = match[1]
            found[last] = (match[2] or "").strip()
        elif (match := CONTINUED.match(line)) and last:
            found[last] = match[1].strip()
    return found


def shown(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, (tuple, list)):
        return f"[{', '.join(shown(v) for v in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value:.6g}" if isinstance(value, float) else str(value)
