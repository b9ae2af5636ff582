"""A viewer in a process of its own, with a temporary folder of its own to look into."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lungwave.viewer.private import PREFIX

UPLOAD = 20  # [MB] that the shared viewer takes
QUICK = {"samples": 4, "steps": 4}
LONG = {"samples": 64, "steps": 64, "category": "healthy"}  # a quarter of a minute at least


@dataclass
class Viewer:
    """``lungwave view`` and a client that knows its token."""

    process: subprocess.Popen[str]
    temporary: Path
    url: str
    token: str = ""
    port: int = 0
    said: list[str] = field(default_factory=list)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, token: bool = True
    ) -> tuple[int, dict[str, str], bytes]:
        """One request: status, headers, body."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        known = {"X-Lungwave-Token": self.token} if token else {}
        try:
            connection.request(method, path, body, {**known, **(headers or {})})
            answer = connection.getresponse()
            return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def json(self, path: str) -> Any:
        """What GET says."""
        status, _, body = self.ask("GET", path)
        assert status == 200, body
        return json.loads(body)

    def order(self, kind: str, **settings: Any) -> str:
        """Identity of a new job."""
        status, _, body = self.ask("POST", "/api/jobs", json.dumps({"kind": kind, "settings": settings}))
        assert status == 201, body
        return json.loads(body)["id"]

    def upload(self, name: str, content: bytes, **settings: Any) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        headers = {"X-File-Name": name, "X-Settings": json.dumps(settings)}
        status, _, body = self.ask("POST", "/api/files", content, headers)
        return status, json.loads(body)

    def job(self, identity: str) -> dict[str, Any]:
        """Where a job stands."""
        return next(job for job in self.json("/api/jobs")["jobs"] if job["id"] == identity)

    def wait(self, identity: str, *states: str, seconds: float = 120) -> dict[str, Any]:
        """The job once it is in one of ``states``."""
        return until(lambda: found if (found := self.job(identity))["state"] in states else None, seconds)

    def refused_file(self, name: str, content: bytes) -> str:
        """Message of the job that an unreadable file becomes; nothing of it is left on disk."""
        status, answer = self.upload(name, content, **QUICK)
        assert status == 201, answer
        job = self.wait(answer["id"], "failed", "done")
        assert job["state"] == "failed", job
        assert self.on_disk() == []
        self.drop(answer["id"])
        return job["message"]

    def drop(self, identity: str) -> None:
        """Cancel or erase a job."""
        assert self.ask("DELETE", f"/api/jobs/{identity}")[0] == 200

    def clear(self) -> None:
        """Cancel and erase all jobs."""
        while jobs := self.json("/api/jobs")["jobs"]:
            for job in jobs:
                self.ask("DELETE", f"/api/jobs/{job['id']}")  # one may end meanwhile

    def result(self, identity: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Facts and arrays."""
        facts = self.json(f"/api/jobs/{identity}/result")
        content = self.ask("GET", f"/api/jobs/{identity}/arrays")[2]
        arrays = {}
        for name, about in facts["arrays"].items():
            size = int(np.prod(about["shape"]))
            arrays[name] = np.frombuffer(content, about["type"], size, about["offset"]).reshape(about["shape"])
        return facts, arrays

    def on_disk(self) -> list[str]:
        """What the viewer has on disk, its lock aside."""
        return sorted(
            name
            for top in self.temporary.glob(f"{PREFIX}*")
            for _, folders, files in os.walk(top)  # which passes over a folder that goes meanwhile
            for name in (*folders, *files)
            if name != "in-use"
        )

    def worker(self) -> int:
        """Process of the worker, once there is one."""
        mine = self.process.pid
        return until(lambda: next((c for c in children(mine) if b"viewer.worker" in command_line(c)), 0))

    def at_work(self, identity: str) -> int:
        """Process of a job, once it runs."""
        until(lambda: self.job(identity)["state"] == "running", 120)
        return until(lambda: next(iter(children(self.worker())), 0))


def children(process: int) -> list[int]:
    """Processes that a process has started."""
    if not Path("/proc/thread-self/children").exists():
        pytest.skip("the kernel does not list children of a process")
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except OSError:  # it has ended
        return []


def gone(process: int) -> bool:
    """Whether a process has ended; one that nobody has asked after yet has too."""
    try:
        state = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


def command_line(process: int) -> bytes:
    """Of a process; empty where it has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


def until(happened: Callable[[], Any], seconds: float = 120) -> Any:
    """What ``happened`` returns once it is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        found = happened()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"did not happen in {seconds:g} s")


@contextlib.contextmanager
def viewing(temporary: Path, *words: object, code: str = "") -> Iterator[Viewer]:
    """A running viewer; ``code`` is Python to run instead of the command."""
    command = [sys.executable, *(["-c", code] if code else ["-m", "lungwave", "view", "--no-browser"])]
    environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    log = temporary.parent / f"{temporary.name}.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, *map(str, words)], cwd=temporary, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
    viewer = Viewer(process, temporary, "")
    try:
        assert process.stdout is not None
        viewer.url = process.stdout.readline().strip()
        found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\?token=([\w-]{43})", viewer.url)
        assert found, f"{viewer.url!r} {log.read_text()}"
        viewer.port, viewer.token = int(found[1]), found[2]
        yield viewer
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        viewer.said.append(process.communicate(timeout=60)[0])
        viewer.said.append(log.read_text())


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
