"""Tasks on a Dask cluster: the only file that knows Dask.

Dask's messages are pickles: whoever reaches the scheduler's port can run code on its workers. Use it in a network that
you trust, or with Dask's own TLS settings.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lungwave.pool import Job, Result
from lungwave.pool.local import AHEAD, THREADS, failure
from lungwave.types import LungwaveError, UsageError

LOCAL = "local"
ANSWER = 15.0  # [s] that a scheduler has to answer
LOSSES = 3  # workers that may die at one task before it is given up


class Cluster:
    """Workers of a Dask scheduler."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def run(self, work: Callable[..., Result], jobs: Iterable[Job]) -> Generator[tuple[range, Result], None, None]:
        """See ``Pool``. A task whose worker dies is given to another one, up to ``LOSSES`` times."""
        from distributed import as_completed

        parts: dict[Any, range] = {}
        waiting = iter(jobs)
        ready = as_completed()

        def submit(count: int) -> None:
            for part, arguments in itertools.islice(waiting, count):
                future = self.client.submit(_alone, work, *arguments, pure=False)
                parts[future] = part
                ready.add(future)

        try:
            submit(AHEAD * max(self._threads(), 1))
            for future in ready:
                part = parts.pop(future)
                result = self._result(future, part)
                submit(max(1, AHEAD * self._threads() - len(parts)))  # workers may have joined
                yield part, result
                future.release()
        finally:
            self.client.cancel(list(parts), force=True)

    def _threads(self) -> int:
        return sum(self.client.nthreads().values())

    def _result(self, future: Any, part: range) -> Any:
        from distributed import KilledWorker

        error = future.exception()
        if isinstance(error, KilledWorker):
            raise LungwaveError(
                f"{LOSSES + 1} workers died at cases {part.start}:{part.stop} (killed, or out of memory); "
                "rerun the same command to go on, with more memory a worker"
            ) from error
        if error is not None:
            raise failure(error.with_traceback(future.traceback()), part) from error
        if future.status != "finished":
            raise LungwaveError(f"the scheduler lost cases {part.start}:{part.stop}; rerun the same command to go on")
        return future.result()


def _alone(work: Callable[..., Result], *arguments: Any) -> Result:
    """The task with one thread: as many threads as cores in each worker would wait for each other."""
    import torch

    torch.set_num_threads(1)
    return work(*arguments)


@contextmanager
def connected(scheduler: str, workers: int) -> Iterator[Cluster]:
    """A cluster at an address, or ``local``: one of ``workers`` processes that ends with the block.

    Raises UsageError where Dask is missing or nobody answers.
    """
    try:
        import dask
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError("--scheduler needs Dask, which is not installed; pip install 'lungwave[cluster]'") from error
    # What fails reaches us as the exception of a task. Dask would narrate every lost worker and closed socket as well,
    # here and in its workers, which set up their logging before they hear of any other setting.
    logging.getLogger("distributed").setLevel(logging.CRITICAL)
    settings = {
        "distributed.scheduler.allowed-failures": LOSSES,
        "distributed.comm.timeouts.connect": ANSWER,
        "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED": "critical",
    }
    for name in THREADS:
        os.environ.setdefault(name, "1")  # read by the libraries when a local worker loads them
    with dask.config.set(settings):
        if scheduler == LOCAL:
            options = {
                "n_workers": workers,
                "threads_per_worker": 1,
                "dashboard_address": "127.0.0.1:0",
                "host": "127.0.0.1",
            }
            with LocalCluster(**options) as cluster, Client(cluster) as client:
                yield Cluster(client)
            return
        try:
            client = Client(scheduler, timeout=ANSWER, set_as_default=False)
        except (OSError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
            raise UsageError(
                f"--scheduler {scheduler}: no Dask scheduler answers ({reason}); start one with 'dask scheduler', and "
                "workers with 'dask worker', or give --scheduler local"
            ) from error
        with client:
            yield Cluster(client)
