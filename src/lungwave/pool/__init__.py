"""Where many tasks are computed: one contract, and three engines behind it that give the same results.

A task is a pure function of its arguments, named by the range of cases that it is about. ``Serial`` computes in this
process, ``pool.local`` in processes of this machine, ``pool.cluster`` on a Dask cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")
Job = tuple[range, tuple[Any, ...]]


class Pool(Protocol):
    """An engine."""

    def run(self, work: Callable[..., Result], jobs: Iterable[Job]) -> Generator[tuple[range, Result], None, None]:
        """``work(*arguments)`` of every job, with its range, as they are finished.

        Jobs are drawn from their iterator a few at a time, so that they need not fit into memory together. Where one
        fails, those in progress are finished, and LungwaveError names the range and has the task's own traceback behind
        it. Closing the generator ends what is in progress.
        """
        ...


class Serial:
    """One after the other, in this process; an error is the task's own."""

    def run(self, work: Callable[..., Result], jobs: Iterable[Job]) -> Generator[tuple[range, Result], None, None]:
        """See ``Pool``."""
        for part, arguments in jobs:
            yield part, work(*arguments)


@contextmanager
def open_pool(workers: int = 1, scheduler: str | None = None) -> Iterator[Pool]:
    """The engine for so many processes of this machine, or for a Dask ``scheduler``: an address, or ``local``.

    Raises UsageError where Dask is not installed or its scheduler does not answer.
    """
    if scheduler is not None:
        from lungwave.pool.cluster import connected

        with connected(scheduler, workers) as cluster:
            yield cluster
    elif workers == 1:
        yield Serial()
    else:
        from lungwave.pool.local import Local  # here, because it brings torch along

        yield Local(workers)
