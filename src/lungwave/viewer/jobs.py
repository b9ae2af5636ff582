"""The queue: one job at a time in one worker process, with progress, time left, cancel by a kill, and no trace."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lungwave.types import LungwaveError, UsageError
from lungwave.viewer.limits import Limits
from lungwave.viewer.orders import Order
from lungwave.viewer.private import erase

WARM = 300.0  # [s] for a worker to be ready: seconds, minutes where the machine is busy
PATIENCE = 5.0  # [s] for a job's process to end
LINE = 2**16  # [byte] at most of what a worker says at once
OVER = ("done", "failed", "cancelled")
SAID = {  # of a worker that ended, by the signal that ended it
    "SIGXCPU": "it took more processor time than a file may take to read; is it damaged?",
    "SIGKILL": "the system ended it, most likely because memory was short; give fewer samples or frames",
    "SIGXFSZ": "its result was larger than a job may write",
}


@dataclass
class Job:
    """One order and what became of it."""

    id: str
    kind: str
    title: str
    order: Order
    folder: Path
    model: Path | None = None
    upload: Path | None = None
    erase: bool = True  # the upload, once it is read
    state: str = "waiting"  # running, shown (result there, report not yet), done, failed, cancelled
    phase: str = ""
    share: float = 0.0
    message: str = ""
    begun: float | None = None
    ended: float | None = None
    files: dict[str, bytes] = field(default_factory=dict)  # result.json, arrays.bin, report.html

    @property
    def over(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in OVER

    @property
    def bytes(self) -> int:
        """Memory that its results take."""
        return sum(map(len, self.files.values()))

    def to_json(self, ahead: int) -> dict[str, Any]:
        """As the page sees it; times in seconds."""
        now = time.monotonic()
        spent = 0.0 if self.begun is None else (self.ended or now) - self.begun
        known = self.state in ("running", "shown") and self.share > 0.02 and spent > 0.2
        return {
            "id": self.id, "kind": self.kind, "title": self.title, "state": self.state, "phase": self.phase,
            "share": round(self.share, 4), "message": self.message, "seconds": round(spent, 2), "ahead": ahead,
            "left": round(spent * (1 - self.share) / self.share, 1) if known else None,
            "result": "result.json" in self.files, "report": "report.html" in self.files,
            "settings": dataclasses.asdict(self.order),
        }  # fmt: skip


class Worker:
    """A process in a group of its own that does one job after the other, each in a child that can be killed."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, limits: Limits, model: Path) -> Worker:
        """Start one and wait until it is warm. LungwaveError where it does not get there."""
        told = json.dumps(dataclasses.asdict(limits))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "lungwave.viewer.worker", str(os.getpid()), told, str(model),
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, limit=LINE, start_new_session=True,
            # What a library prints about a file is nobody's business, unless a defect is being looked for.
            stderr=None if os.environ.get("LUNGWAVE_TRACEBACK") == "1" else asyncio.subprocess.DEVNULL,
            # HDF5 would load code for filters that it does not know from wherever this variable says.
            env={**os.environ, "HDF5_PLUGIN_PRELOAD": "::"},
        )  # fmt: skip
        worker = cls(process)
        try:
            await asyncio.wait_for(worker.hear(), WARM)
        except BaseException as error:
            await worker.kill()
            if isinstance(error, (TimeoutError, LungwaveError)):
                raise LungwaveError("the worker process did not start; 'lungwave doctor' says what is wrong") from None
            raise
        return worker

    async def hear(self) -> dict[str, Any]:
        """The next thing it says. LungwaveError where it has ended."""
        assert self.process.stdout is not None
        line = await self.process.stdout.readline()
        if not line:
            code = await self.process.wait()
            raise LungwaveError(why_ended(code))
        said: dict[str, Any] = json.loads(line)
        return said

    async def tell(self, words: Mapping[str, Any]) -> None:
        """Give it an order."""
        assert self.process.stdin is not None
        with contextlib.suppress(ConnectionError):  # it has ended, which ``hear`` says
            self.process.stdin.write(json.dumps(words).encode() + b"\n")
            await self.process.stdin.drain()

    async def stop(self) -> None:
        """Have it kill the job that it does."""
        await self.tell({"stop": True})

    async def kill(self) -> None:
        """End it and whatever it started, now."""
        with contextlib.suppress(ProcessLookupError):
            if self.process.returncode is None and hasattr(os, "killpg"):
                os.killpg(self.process.pid, signal.SIGKILL)
            elif self.process.returncode is None:  # Windows
                self.process.kill()
        assert self.process.stdin is not None
        self.process.stdin.close()
        await self.process.wait()


def why_ended(code: int) -> str:
    """What is said of a process that ended before its job was done."""
    name = signal.Signals(-code).name if code < 0 else ""
    return f"the job stopped: {SAID.get(name, f'its process ended ({name or code})')}"


class Jobs:
    """All jobs of this viewer."""

    def __init__(self, folder: Path, limits: Limits, models: Mapping[str, Path]) -> None:
        self.folder, self.limits, self.models = folder, limits, dict(models)
        self.all: dict[str, Job] = {}
        self.worker: Worker | None = None
        self._doing: Job | None = None
        self._more, self._stopped = asyncio.Event(), asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; the first worker warms up at once."""
        self._task = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """End the worker and forget everything."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self.worker is not None:
            await self.worker.kill()
        for job in self.all.values():
            erase(job.folder)

    # ------------------------------------------------------------------------------------------- what a request does

    def room(self) -> None:
        """UsageError where the queue is full."""
        waiting = sum(job.state == "waiting" for job in self.all.values())
        if waiting >= self.limits.waiting:
            raise UsageError(f"{waiting} jobs are waiting already; wait for one, or cancel one")

    def new_folder(self) -> Path:
        """Where a job, or a file that is still coming in, may write."""
        folder = self.folder / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
        return folder

    def add(self, kind: str, title: str, order: Order, folder: Path | None = None, **what: Any) -> Job:
        """Put a job at the end of the queue."""
        self.room()
        model = getattr(order, "model", None)
        path = None if model is None else self.models[model] if model else next(iter(self.models.values()))
        job = Job(secrets.token_hex(8), kind, title, order, folder or self.new_folder(), model=path, **what)
        self.all[job.id] = job
        self._more.set()
        return job

    def listed(self) -> list[dict[str, Any]]:
        """Every job, the oldest first."""
        found, ahead = [], int(self._doing is not None)
        for job in self.all.values():
            found.append(job.to_json(ahead if job.state == "waiting" else 0))
            ahead += job.state == "waiting"
        return found

    def drop(self, job: Job) -> None:
        """Cancel a job that waits or runs; forget one that is over."""
        if job.over:
            self.all.pop(job.id, None)
            return
        self._end(job, "cancelled", "cancelled")
        if job is self._doing:
            self._stopped.set()

    # ------------------------------------------------------------------------------------------------------ the work

    async def _work(self) -> None:
        while True:
            try:
                if self.worker is None:
                    self.worker = await Worker.start(self.limits, next(iter(self.models.values())))
                job = await self._next()
                self._doing = job
                try:
                    await self._do(job, self.worker)
                finally:
                    self._doing = None
            except LungwaveError as error:
                waiting = next((job for job in self.all.values() if not job.over), None)
                if waiting is not None:
                    self._end(waiting, "failed", str(error))
                else:
                    await asyncio.sleep(5)  # a worker that cannot start is not tried in a tight loop
            if self.worker is not None and self.worker.process.returncode is not None:
                self.worker = None

    async def _next(self) -> Job:
        while True:
            for job in self.all.values():
                if job.state == "waiting":
                    return job
            self._more.clear()
            await self._more.wait()

    async def _do(self, job: Job, worker: Worker) -> None:
        job.state, job.begun = "running", time.monotonic()
        self._stopped.clear()
        words = {
            "job": job.id, "kind": job.kind, "settings": dataclasses.asdict(job.order), "folder": str(job.folder),
            "model": str(job.model), "path": str(job.upload), "name": job.title, "erase": job.erase,
        }  # fmt: skip
        await worker.tell(words)
        limit, why = self.limits.job, "it took longer than a job may take"
        if job.kind == "file":
            limit, why = self.limits.reading, "the file took too long to read; is it damaged?"
        hearing: asyncio.Task[dict[str, Any]] | None = None
        stopping = asyncio.create_task(self._stopped.wait())
        try:
            while True:
                hearing = hearing or asyncio.create_task(worker.hear())
                left = max(job.begun + limit - time.monotonic(), 0.0)
                await asyncio.wait({hearing, stopping}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if not hearing.done():  # cancelled, or too late
                    if not job.over:
                        self._end(job, "failed", f"stopped after {limit:g} s: {why}")
                    break
                said, hearing = hearing.result(), None
                if said["state"] == "ended":
                    if not job.over:
                        self._end(job, "failed", why_ended(said["code"]))
                    return
                if said["state"] == "read":
                    limit, why = self.limits.job, "it took longer than a job may take"
                if not job.over:
                    self._heard(job, said)
            await self._put_down(worker, hearing)
        except (LungwaveError, ValueError) as error:  # the worker itself has ended, or talks nonsense
            if not job.over:
                self._end(job, "failed", str(error))
            await worker.kill()
        finally:
            for task in filter(None, (stopping, hearing)):
                task.cancel()
            erase(job.folder)  # once more, now that nobody writes there

    @staticmethod
    async def _put_down(worker: Worker, hearing: asyncio.Task[dict[str, Any]]) -> None:
        """Have the job's process killed and wait for its end; where that takes long, the worker goes with it."""
        await worker.stop()
        try:
            async with asyncio.timeout(PATIENCE):
                said = await hearing
                while said["state"] != "ended":
                    said = await worker.hear()
        except TimeoutError:
            await worker.kill()

    def _heard(self, job: Job, said: Mapping[str, Any]) -> None:
        state = said["state"]
        if state == "failed":
            self._end(job, "failed", str(said["message"]))
            return
        job.phase, job.share = str(said["phase"]), float(said["share"])
        if state == "shown":
            job.state = "shown"
            self._take(job, "result.json", "arrays.bin")
        if state == "done":
            self._take(job, "report.html")
            self._end(job, "done", "")

    def _take(self, job: Job, *names: str) -> None:
        """Move results from the disk into memory."""
        for name in names:
            path = job.folder / name
            if path.exists():
                job.files[name] = path.read_bytes()
                path.unlink()

    def _end(self, job: Job, state: str, message: str) -> None:
        job.state, job.message, job.ended = state, message, time.monotonic()
        if state != "done":
            job.files.clear()
        erase(job.folder)
        over = [other for other in self.all.values() if other.over]
        while over[1:] and (sum(o.bytes for o in over) > self.limits.kept or len(over) > self.limits.listed):
            self.all.pop(over.pop(0).id, None)
