"""A local pool of processes that ends with this one, whatever ends it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from queue import SimpleQueue
from typing import Any, TypeVar

import torch

from lungwave.types import LungwaveError

Result = TypeVar("Result")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # of the libraries behind NumPy and torch


def in_parallel(
    work: Callable[..., Result], jobs: Mapping[range, tuple[Any, ...]], workers: int
) -> Generator[tuple[range, Result], None, None]:
    """``work(*job)`` for every range of cases, with its result, as they are finished.

    A failed job lets the others finish theirs. On an interrupt, or when the iterator is closed, workers end at once and
    what they were doing is lost. Raises LungwaveError, with the worker's own traceback, where one failed or was killed.
    """
    context = multiprocessing.get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)  # workers end when our end closes, as it does if this process is killed
    pool = ProcessPoolExecutor(workers, context, _start_worker, (theirs,))
    # Not concurrent.futures.wait: an interrupt while it locks futures one by one leaves shutdown waiting for ever.
    finished: SimpleQueue[Future[Result]] = SimpleQueue()
    try:
        parts: dict[Future[Result], range] = {}
        with (
            _one_thread_each(),
            _deaf_to_interrupts(),
        ):  # a worker that is told so only when it runs could still say a traceback before
            for part, job in jobs.items():
                future = pool.submit(work, *job)
                parts[future] = part
                future.add_done_callback(finished.put)
        for _ in jobs:
            future = finished.get()
            _raise_of(future, parts[future])
            yield parts[future], future.result()
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
    if isinstance(error, LungwaveError):
        raise error
    if error is not None:
        where = traceback.extract_tb(error.__traceback__)[-1:] or ""
        raise LungwaveError(
            f"cases {part.start}:{part.stop} failed: {type(error).__name__}: {error} {where}".rstrip()
        ) from error


def _start_worker(parent: Connection) -> None:
    torch.set_num_threads(1)  # one case per core; threads inside a case would only wait for each other
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # where they cannot be started deaf

    def end() -> None:
        wait([parent])
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
