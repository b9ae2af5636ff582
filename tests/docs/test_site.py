"""What the documentation is made of, without building it: words of the program, links, scripts, nothing fetched."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from lungwave.cli import VERBS
from lungwave.config import Config
from lungwave.types import RESEARCH_USE

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(p for p in DOCS.rglob("*.md") if not {"_build", "tutorials"} & set(p.relative_to(DOCS).parts))
TUTORIALS = sorted((ROOT / "examples").glob("*.py"))


def extension(name: str) -> ModuleType:
    """A module of docs/_ext."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / "_ext" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "fetching",
    [
        '<script src="https://cdn.example/x.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="http://example.org/a.png">',
        '<img src="a.png" srcset="a.png, https://example.org/b.png 2x">',
        "<style>@import 'https://example.org/x.css';</style>",
        '<p style="background: url(https://example.org/a.png)">',
    ],
)
def test_a_page_that_fetches_is_caught(fetching: str, tmp_path: Path) -> None:
    offline = extension("offline")
    assert len(offline.remote_sources(fetching)) == 1
    (tmp_path / "page.html").write_text(fetching, encoding="utf-8")
    (tmp_path / "style.css").write_text("a { src: url('https://example.org/f.woff') }", encoding="utf-8")
    assert len(offline.remote_sources_of_folder(tmp_path)) == 2


def test_a_link_to_click_fetches_nothing() -> None:
    quiet = '<a href="https://example.org">x</a><img src="a.png"><script src="_static/a.js"></script>'
    assert extension("offline").remote_sources(quiet + '<link rel="canonical" href="https://example.org">') == []


def test_every_setting_is_explained() -> None:
    """The reference takes meaning and unit from the comment behind each field."""
    sources = extension("sources")
    tables = {table.name: table for table in sources.settings()}
    keys = {s.key for table in tables.values() for s in table.settings}
    assert set(tables) == {"", *(f.name for f in dataclasses.fields(Config) if f.name not in ("preset", "seed"))}
    assert {"probe.pitch", "grid.time_step", "map.bands", "seed"} <= keys
    assert all(len(s.values) == 3 for table in tables.values() for s in table.settings)
    pitch = next(s for s in tables["probe"].settings if s.key == "probe.pitch")
    assert pitch.values == ("0.0005", "0.00025", "0.0001953") and "[m]" in pitch.meaning
    silent = [s.key for table in tables.values() for s in table.settings if not s.meaning]
    assert not silent, f"no comment behind {silent}"


def test_help_of_every_command_is_in_the_reference() -> None:
    sources = extension("sources")
    found = {name: text for name, _, text in sources.commands()}
    assert set(found) == set(VERBS)
    for name, text in found.items():
        assert f"lungwave {name}" in text and RESEARCH_USE.split(".")[0] in text, name
        assert max(map(len, text.splitlines())) <= 160 and "\x1b" not in text, name


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.relative_to(DOCS).as_posix())
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    """On a code host as in the built pages; a tutorial's page exists once its script does."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\((?!https?:)([^)#\s]+)[^)]*\)", text):
        path = (page.parent / target).resolve()
        if path.is_relative_to(DOCS / "tutorials"):
            script = ROOT / "examples" / f"{path.name}.py"
            assert path.name == "index" or script in TUTORIALS, target
        else:
            assert path.exists() or path.with_suffix(".md").exists(), target


def test_tutorials_are_numbered_and_say_what_they_are_for() -> None:
    assert [path.name[:3] for path in TUTORIALS] == [f"{k:02d}_" for k in range(1, len(TUTORIALS) + 1)]
    for path in TUTORIALS:
        text = path.read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(text)) or ""
        title, line = said.splitlines()[:2]
        assert set(line) == {"="} and len(line) >= len(title) and RESEARCH_USE in said, path.name
        for first, second in re.findall(r"(?:\$ lungwave |lungwave\(f?\")([a-z]+)(?: ([a-z_]+))?", text):
            assert first in VERBS or f"{first} {second}" in VERBS, (path.name, first, second)


def test_tutorials_name_pages_that_exist() -> None:
    for path in TUTORIALS:
        for target in re.findall(r":doc:`(?:[^<`]*<)?([^>`]+)>?`", path.read_text(encoding="utf-8")):
            page = DOCS / target.lstrip("/") if target.startswith("/") else ROOT / "examples" / target
            assert page.with_suffix(".md").exists() or page.with_suffix(".py").exists(), f"{path.name}: {target}"
