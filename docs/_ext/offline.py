"""Fails a build whose pages would fetch something from another machine: scripts, styles, fonts, pictures, frames."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

# What a browser loads by itself. A link that a reader may click fetches nothing.
LOADED = {
    "script": ("src",),
    "link": ("href",),
    "img": ("src", "srcset"),
    "source": ("src", "srcset"),
    "iframe": ("src",),
    "object": ("data",),
    "video": ("src", "poster"),
    "audio": ("src",),
    "embed": ("src",),
}
IDLE = {"canonical", "license", "author", "help", "next", "prev", "search", "index"}  # relations that load nothing
REMOTE = re.compile(r"(?:https?:)?//[^\s\"')]+")
IN_STYLE = re.compile(r"(?:url\(\s*|@import\s+)[\"']?((?:https?:)?//[^\s\"')]+)")


class _Page(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.in_style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.in_style = tag == "style"
        if tag == "link" and set(given.get("rel", "").split()) & IDLE:
            return
        for name in LOADED.get(tag, ()):
            self.found += REMOTE.findall(given.get(name, ""))
        self.found += IN_STYLE.findall(given.get("style", ""))

    def handle_data(self, data: str) -> None:
        if self.in_style:
            self.found += IN_STYLE.findall(data)


def remote_sources(text: str) -> list[str]:
    """Addresses on other machines that a browser would load to show an HTML page."""
    page = _Page()
    page.feed(text)
    return page.found


def remote_sources_of_folder(folder: Path) -> list[str]:
    """The same of all pages and style sheets below a folder, as ``file: address``."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".html":
            found += [f"{path.relative_to(folder)}: {address}" for address in remote_sources(path.read_text("utf-8"))]
        elif path.suffix == ".css":
            found += [f"{path.relative_to(folder)}: {address}" for address in IN_STYLE.findall(path.read_text("utf-8"))]
    return found


def _check(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html" and (found := remote_sources_of_folder(Path(app.outdir))):
        from sphinx.errors import ExtensionError

        raise ExtensionError("pages load from other machines: " + "; ".join(found[:10]))


def setup(app: Sphinx) -> dict[str, Any]:
    """What Sphinx calls."""
    app.connect("build-finished", _check)
    return {"parallel_read_safe": True}
