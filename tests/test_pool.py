"""Laws of the engines: the same results from each, errors that name their task, a lost worker costs time only."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from lungwave.config import preset
from lungwave.pool import Pool, open_pool
from lungwave.types import LungwaveError, UsageError

pytest.importorskip("distributed")
FAST = preset("micro").override({"grid.steps": 300, "seed": 7})


def square(number: int) -> int:
    """A task."""
    if number == 13:
        raise ZeroDivisionError("thirteen")
    return number**2


def die_once(mark: str) -> int:
    """A task that kills its worker the first time, as a full memory does."""
    if not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return 7


def die() -> None:
    """A task that kills every worker."""
    os.kill(os.getpid(), signal.SIGKILL)


def lose_the_scheduler() -> str:
    """A task during which its worker's heartbeat finds the connection closed, as while a cluster ends."""
    from distributed import get_worker
    from distributed.comm import CommClosedError

    async def closed(**named: object) -> None:
        raise CommClosedError("closed")

    worker = get_worker()
    scheduler, worker.scheduler = worker.scheduler, SimpleNamespace(heartbeat_worker=closed)
    asyncio.run_coroutine_threadsafe(worker.heartbeat(), worker.loop.asyncio_loop).result(10)
    worker.scheduler = scheduler
    return "done"


@pytest.fixture(scope="module")
def dask() -> Iterator[Pool]:
    """Two workers on this machine."""
    with open_pool(2, "local") as pool:
        yield pool


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # 2026-11-26: sockets that Dask closes in its own time
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # 2026-11-26: the same
class TestDask:
    """One cluster for all: it takes seconds to start."""

    def test_results_are_those_of_the_other_engines(self, dask: Pool) -> None:
        jobs = [(range(n, n + 1), (n,)) for n in range(10)]
        with open_pool(1) as serial:
            expected = dict(serial.run(square, jobs))
        assert dict(dask.run(square, iter(jobs))) == expected == {range(n, n + 1): n**2 for n in range(10)}

    def test_a_failed_task_is_named_with_its_own_traceback(self, dask: Pool) -> None:
        with pytest.raises(LungwaveError, match=r"cases 13:14 failed: ZeroDivisionError: thirteen") as caught:
            list(dask.run(square, [(range(13, 14), (13,))]))
        trace, names = caught.value.__cause__.__traceback__, []
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        assert "square" in names

    def test_a_lost_worker_costs_time_only(self, dask: Pool, tmp_path: Path) -> None:
        assert list(dask.run(die_once, [(range(1), (str(tmp_path / "mark"),))])) == [(range(1), 7)]

    def test_a_task_that_kills_every_worker_ends_with_the_cure(self, dask: Pool) -> None:
        with pytest.raises(LungwaveError, match=r"4 workers died at cases 5:6.*rerun the same command"):
            list(dask.run(die, [(range(5, 6), ())]))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # 2026-11-27: as above
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # 2026-11-27: the same
def test_workers_keep_their_closed_sockets_to_themselves(capfd: pytest.CaptureFixture[str]) -> None:
    """A user reads lungwave's errors, not the tracebacks of a cluster that is being closed."""
    with open_pool(1, "local") as pool:
        assert list(pool.run(lose_the_scheduler, [(range(1), ())])) == [(range(1), "done")]
    assert capfd.readouterr() == ("", "")


def test_shards_have_the_same_bytes_on_dask(tmp_path: Path) -> None:
    """Each engine in a process of its own, as a user runs it."""
    words = "generate --preset micro --set grid.steps=300 --seed 7 --cases 0:6 --shard-size 2 --quiet"
    for out, how in (("dask", "--scheduler local --workers 2"), ("serial", "--workers 1")):
        command = [sys.executable, "-m", "lungwave", *words.split(), *how.split(), "--out", out]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    names = sorted(path.name for path in (tmp_path / "serial").glob("*.h5"))
    assert len(names) == 3
    for name in names:
        assert (tmp_path / "serial" / name).read_bytes() == (tmp_path / "dask" / name).read_bytes()


def test_a_scheduler_that_does_not_answer_and_dask_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lungwave.pool.cluster.ANSWER", 0.5)
    with pytest.raises(UsageError, match="no Dask scheduler answers"), open_pool(1, "tcp://127.0.0.1:9"):
        pass
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'lungwave\[cluster\]'"), open_pool(1, "local"):
        pass
