"""A table with its pictures as one HTML file that needs nothing else: no request leaves it, no script runs."""

from __future__ import annotations

import base64
import re
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

from markdown_it import MarkdownIt

from lungwave.repro import atomic_path

PICTURE = re.compile(r'(<img src=")([^":]+\.png)(")')


def save_table(markdown: Path, text: str) -> None:
    """Write ``NAME.md``, and the page beside it; the pictures that it shows must be there."""
    with atomic_path(markdown) as temporary:
        temporary.write_text(text, encoding="utf-8")
    write_page(markdown)


def write_page(markdown: Path) -> Path:
    """``NAME.html`` beside ``NAME.md``, with the PNGs that it shows inside; HTML in the text is shown, not obeyed."""
    text = markdown.read_text(encoding="utf-8")
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = PICTURE.sub(lambda found: found[1] + _inline(markdown.parent / found[2]) + found[3], body)
    body = body.replace("<table>", '<div class="scroll"><table>').replace("</table>", "</table></div>")
    title = next((line.lstrip("# ") for line in text.splitlines() if line.startswith("#")), markdown.stem)
    source = resources.files("lungwave").joinpath("assets/page.html").read_text(encoding="utf-8")
    page = markdown.with_suffix(".html")
    with atomic_path(page) as temporary:
        temporary.write_text(Template(source).substitute(title=escape(title), body=body), encoding="utf-8")
    return page


def _inline(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
