"""Directives that put the program's own words into the reference, and shapes of arrays that can be read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sources
from docutils import nodes
from docutils.parsers.rst import Directive

if TYPE_CHECKING:
    from sphinx.application import Sphinx

MODULES = re.compile(r"\b(?:jaxtyping|numpy|torch|np|pathlib|collections\.abc|typing)\.(?=[A-Za-z_])")
QUALIFIED = re.compile(r"\blungwave(?:\.[a-z_]+)+\.(?=[A-Z])")
ARRAY = re.compile(r"\b(Float|Int|Bool|Complex|Shaped|Num|UInt8)\[(?:ndarray|Tensor|Array), *(['\"]) *(.*?) *\2\]")


class _Section(Directive):
    """Helper of the two below."""

    def section(self, title: nodes.Node, name: str, *content: nodes.Node) -> nodes.section:
        made = nodes.section("", nodes.title("", "", title), *content)
        made["names"].append(nodes.fully_normalize_name(name))
        self.state.document.note_implicit_target(made, made)
        return made


class Commands(_Section):
    """A section a command: what it is for, and its --help."""

    def run(self) -> list[nodes.Node]:
        made: list[nodes.Node] = []
        for name, purpose, text in sources.commands():
            block = nodes.literal_block(text, text, language="text")
            title = nodes.literal("", f"lungwave {name}")
            purpose = purpose[:1].upper() + purpose[1:] + "."
            paragraph = nodes.paragraph("", purpose.replace("..", ".").replace("....", "..."))
            made.append(self.section(title, f"lungwave {name}", paragraph, block))
        return made


class Settings(_Section):
    """A section and a table for every table of the configuration."""

    def run(self) -> list[nodes.Node]:
        made: list[nodes.Node] = []
        for table in sources.settings():
            title = nodes.literal("", f"[{table.name}]") if table.name else nodes.Text(table.purpose)
            content: list[nodes.Node] = [nodes.paragraph("", table.purpose)] if table.name else []
            rows = [["setting", *sources.PRESETS, "meaning"]]
            rows += [[s.key, *s.values, s.meaning] for s in table.settings]
            made.append(self.section(title, f"settings {table.name or 'top'}", *content, _table(rows)))
        return made


def _table(rows: list[list[str]]) -> nodes.table:
    """Rows as a table whose first row is its head; all but the last column are code."""
    group = nodes.tgroup("", cols=len(rows[0]))
    group += [nodes.colspec("", colwidth=1) for _ in rows[0]]
    head, body = nodes.thead(), nodes.tbody()
    for number, row in enumerate(rows):
        line = nodes.row()
        for column, cell in enumerate(row):
            code = number > 0 and column < len(row) - 1
            inner = nodes.literal("", cell) if code else nodes.Text(cell.replace("``", ""))
            line += nodes.entry("", nodes.paragraph("", "", inner))
        (body if number else head).append(line)
    group += [head, body]
    return nodes.table("", group)


def readable(text: str) -> str:
    """An annotation as a person writes it: ``jaxtyping.Float[numpy.ndarray, " z"]`` as ``Float["z"]``."""
    text = QUALIFIED.sub("", MODULES.sub("", text.replace("~", "").replace("<factory>", "...")))
    return ARRAY.sub(lambda m: f'{m[1]}["{m[3] or "scalar"}"]', text)


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: str | None
) -> tuple[str | None, str | None]:
    return signature and readable(signature), returns and readable(returns)


def escaped(line: str) -> str:
    """A docstring's line without markup: formulas hold * and |, which are no emphasis; literals stay as they are."""
    parts = re.split(r"(``.*?``)", line)
    return "".join(part if k % 2 else re.sub(r"(?<!\\)([*|])", r"\\\1", part) for k, part in enumerate(parts))


def _docstring(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = [escaped(line) for line in lines]
    if what == "class" and dataclasses.is_dataclass(obj) and isinstance(obj, type):
        said = [f"- ``{field}``: {escaped(words)}" for field, words in sources.comments(obj).items() if words]
        lines += ["", *said, ""] if said else []


def within(text: str, page: Path, root: Path) -> str:
    """A page without links to Markdown outside the documentation, such as SECURITY.md: only a code host shows those."""

    def plain(link: re.Match[str]) -> str:
        target = (page.parent / link[2]).resolve()
        return link[0] if target.is_relative_to(root) or not target.is_file() else link[1]

    return re.sub(r"\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+\.md)\)", plain, text)


def _source(app: Sphinx, docname: str, content: list[str]) -> None:
    page = Path(app.env.doc2path(docname))
    if page.suffix == ".md":
        content[0] = within(content[0], page, Path(app.srcdir))


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.add_directive("commands", Commands)
    app.add_directive("settings", Settings)
    app.connect("source-read", _source)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-docstring", _docstring, priority=400)  # before the sections are parsed
    return {"parallel_read_safe": True}
