"""The verb ``lungwave view``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lungwave.cli_options import Options, Positional
from lungwave.types import RESEARCH_USE, UsageError


@dataclass(frozen=True, kw_only=True)
class View(Options):
    """Look at recordings, phantoms and priors in a browser, on this machine alone. Ctrl-C ends it and erases all of it.

    Nothing leaves the machine: the page asks nobody but this program, which answers nobody without the token in the
    address that it prints. Files dropped on the page are read in a process of their own, with limits, and erased.
    """

    file: Positional[Path | None] = None
    """RF file to begin with."""
    model: Path | None = None
    """Folder of a model of yours, or the name of a shipped one, to reconstruct with by default."""
    port: int = 0
    """Port; 0 takes any that is free."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own also needs --expose."""
    expose: bool = False
    """Let other machines in, without encryption."""
    no_browser: bool = False
    """Only print the address."""
    max_upload: float = 512.0
    """Largest file that the page may send [MB]."""

    def work(self) -> dict[str, Any]:
        """Serve until interrupted."""
        if not 0 <= self.port <= 65535:
            raise UsageError(f"--port {self.port} must lie between 0 and 65535")
        if not 0 < self.max_upload <= 1e5:
            raise UsageError(f"--max-upload {self.max_upload:g} must lie between 0 and 100000 MB")
        from lungwave.viewer import serve
        from lungwave.viewer.limits import MB, Limits

        serve.serve(
            self.file, host=self.host, port=self.port, exposed=self.expose, browser=not self.no_browser,
            model=self.model, limits=Limits(upload=round(self.max_upload * MB)), say=self._say,
        )  # fmt: skip
        return {}

    def run(self) -> None:
        """Serve; the address is the result, and comes first. Ctrl-C is how it ends, not how it fails."""
        try:
            self.work()
        except KeyboardInterrupt as ended:
            if type(ended) is not KeyboardInterrupt:  # SIGTERM
                raise

    def _say(self, address: str) -> None:
        if self.json:
            print(json.dumps({"url": address, "notice": RESEARCH_USE}), flush=True)
        else:
            more = "" if self.quiet else f"\nCtrl-C ends it and erases everything. {RESEARCH_USE}"
            print(f"{address}{more}", flush=True)
