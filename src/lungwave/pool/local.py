"""A local pool of processes that ends with this one, whatever ends it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any

import torch

from lungwave.pool import Job, Result
from lungwave.types import LungwaveError

AHEAD = 3  # jobs a worker that are handed over before they are begun
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # of the libraries behind NumPy and torch


class Local:
    """Processes of this machine."""

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def run(self, work: Callable[..., Result], jobs: Iterable[Job]) -> Generator[tuple[range, Result], None, None]:
        """See ``Pool``. On an interrupt, or when the iterator is closed, workers end at once."""
        context = multiprocessing.get_context("spawn")
        theirs, ours = context.Pipe(duplex=False)  # workers end when our end closes, as if this process is killed
        pool = ProcessPoolExecutor(self.workers, context, _start_worker, (theirs,))
        # Not concurrent.futures.wait: an interrupt while it locks futures one by one leaves shutdown waiting for ever.
        finished: SimpleQueue[Future[Result]] = SimpleQueue()
        parts: dict[Future[Result], range] = {}
        waiting = iter(jobs)

        def submit(count: int) -> None:
            for part, arguments in itertools.islice(waiting, count):
                future = pool.submit(work, *arguments)
                parts[future] = part
                future.add_done_callback(finished.put)

        try:
            # A worker that is told so only when it runs could still say a traceback before.
            with _one_thread_each(), _deaf_to_interrupts():
                submit(AHEAD * self.workers)
            while parts:
                future = finished.get()
                part = parts.pop(future)
                _raise_of(future, part)
                submit(1)
                yield part, future.result()
        except (KeyboardInterrupt, GeneratorExit):
            ours.close()
            pool.shutdown(wait=True)
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
            ours.close()
            theirs.close()


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started inside compute with one thread: as many threads as cores in each would wait for each other."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))  # read by the libraries when they are loaded, so it cannot wait
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes started inside never hear Ctrl-C, which reaches all of a terminal; this one hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise_of(future: Future[Any], part: range) -> None:
    error = future.exception()
    if isinstance(error, BrokenProcessPool):
        raise LungwaveError(
            f"a worker died at cases {part.start}:{part.stop} (killed, or out of memory); "
            "rerun the same command to go on, with fewer --workers if memory was short"
        ) from error
    if error is not None:
        raise failure(error, part) from error


def failure(error: BaseException, part: range) -> LungwaveError:
    """What is raised where a task failed: the task's own error where that says the cure, else its kind and place."""
    if isinstance(error, LungwaveError):
        return error
    where = traceback.extract_tb(error.__traceback__)[-1:] or ""
    return LungwaveError(f"cases {part.start}:{part.stop} failed: {type(error).__name__}: {error} {where}".rstrip())


def _start_worker(parent: Connection) -> None:
    torch.set_num_threads(1)  # one case per core; threads inside a case would only wait for each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where they cannot be started deaf

    def end() -> None:
        wait([parent])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
