"""Progress with ETA on stderr: a bar on a terminal, a line now and then in a log, nothing when quiet."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from tqdm import tqdm

LOG_INTERVAL = 15.0  # [s] between lines where stderr is not a terminal


class Progress:
    """Count finished items of a long run. Use as a context manager and call ``advance``."""

    def __init__(self, total: int, what: str, *, done: int = 0, quiet: bool = False) -> None:
        self.total, self.what, self.done, self.first, self.quiet = total, what, done, done, quiet
        terminal = sys.stderr.isatty()
        self._bar = (
            None if quiet or not terminal else tqdm(total=total, initial=done, desc=what, unit="case", file=sys.stderr)
        )
        self._log = not quiet and not terminal
        self._start = self._spoke = time.monotonic()

    def advance(self, count: int = 1) -> None:
        """Say that ``count`` more items are done."""
        self.done += count
        if self._bar is not None:
            self._bar.update(count)
        now = time.monotonic()
        if self._log and (now - self._spoke >= LOG_INTERVAL or self.done == self.total):
            self._spoke = now
            rate = (self.done - self.first) / max(now - self._start, 1e-9)
            eta = (self.total - self.done) / rate if rate else float("inf")
            print(f"{self.what}: {self.done}/{self.total}, {rate:.2f}/s, {eta:.0f} s left", file=sys.stderr, flush=True)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
