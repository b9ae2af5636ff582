"""The worker: warm and waiting; a fork of it does each job under limits of its own, and is killed to cancel it.

The viewer writes orders to stdin and hears from stdout, one JSON object a line; results go into the job's folder, so
that lines stay short. The end of stdin is the end of the viewer, and of everything here. Nothing is computed before a
fork, so that no library has threads yet which a fork would lose. Where forks are not to be trusted with that (they are
on Linux), jobs run in the worker itself, and to cancel one is to kill the worker.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from lungwave.types import LungwaveError
from lungwave.viewer import confine
from lungwave.viewer.limits import Limits
from lungwave.viewer.orders import FileOrder, MorphOrder, PhantomOrder, PriorOrder

Order = dict[str, Any]
Tell = Callable[..., None]
FORKS = sys.platform == "linux"


def main(arguments: list[str]) -> None:
    """``worker PARENT LIMITS MODEL [plain]``: process of the viewer, limits as JSON, folder of the model to warm up."""
    confine.end_with(int(arguments[0]))
    limits, model = Limits(**json.loads(arguments[1])), Path(arguments[2])
    channel = _keep_stdout()

    def tell(**words: Any) -> None:
        os.write(channel, json.dumps(words).encode() + b"\n")  # one write below PIPE_BUF, so lines never mix

    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    from lungwave.viewer import studio

    studio.warm(model)
    if FORKS and "plain" not in arguments[3:]:
        tell(state="ready")
        Nursery(limits, tell, threads).run()
    else:
        torch.set_num_threads(threads)
        confine.harden(limits.memory, limits.written)
        tell(state="ready")
        _plain(limits, tell)


@dataclass
class Nursery:
    """Forks a child for each order and says when it has ended; at most one at a time."""

    limits: Limits
    tell: Tell
    threads: int
    child: int = 0  # process, 0 = none
    job: str = ""

    def run(self) -> None:
        """Until stdin ends."""
        selector = selectors.DefaultSelector()
        selector.register(0, selectors.EVENT_READ)
        rest = b""
        while True:
            for key, _ in selector.select():
                if key.fd != 0:
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    self._ended()
                    continue
                chunk = os.read(0, 65536)
                if not chunk:
                    self._stop()
                    os._exit(0)
                *lines, rest = (rest + chunk).split(b"\n")
                for order in map(json.loads, lines):
                    if "stop" in order:
                        self._stop()
                    else:
                        selector.register(self._fork(order), selectors.EVENT_READ)

    def _fork(self, order: Order) -> int:
        """Start a child; the end of a pipe that closes when it ends."""
        ours, theirs = os.pipe()
        parent = os.getpid()
        child = os.fork()
        if child == 0:
            os.close(ours)
            _child(order, parent, self)
        os.close(theirs)
        self.child, self.job = child, order["job"]
        return ours

    def _ended(self) -> None:
        _, status = os.waitpid(self.child, 0)
        self.child = 0
        self.tell(job=self.job, state="ended", code=os.waitstatus_to_exitcode(status))

    def _stop(self) -> None:
        """Kill the child and what it started."""
        if self.child:
            for kill in (os.killpg, os.kill):  # the group is there once the child has made it
                try:
                    kill(self.child, signal.SIGKILL)
                    return
                except ProcessLookupError:
                    continue


def _child(order: Order, parent: int, nursery: Nursery) -> None:
    """What a fork does; it never returns."""
    try:
        os.setpgid(0, 0)
        confine.end_with(parent)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        import torch

        torch.set_num_threads(nursery.threads)
        confine.harden(nursery.limits.memory, nursery.limits.written)
        answer(order, nursery.limits, nursery.tell)
    finally:
        os._exit(0)


def _plain(limits: Limits, tell: Tell) -> None:
    """One order after the other in this process."""
    orders: SimpleQueue[Order] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            orders.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        order = orders.get()
        if "stop" in order:
            os._exit(0)
        answer(order, limits, tell)
        tell(job=order["job"], state="ended", code=0)


def answer(order: Order, limits: Limits, tell: Tell) -> None:
    """Do a job; whatever goes wrong is said in one line."""

    def about(**words: Any) -> None:
        tell(job=order["job"], **words)

    try:
        _do(order, limits, about)
    except LungwaveError as error:
        about(state="failed", message=" ".join(str(error).split())[:1000])
    except MemoryError:
        about(state="failed", message="this needs more memory than one job may take; give fewer frames or samples")
    except Exception as error:  # a defect is said, not hidden
        about(state="failed", message=f"{type(error).__name__} (a defect of lungwave): {error}"[:400])


def _do(order: Order, limits: Limits, tell: Tell) -> None:
    from lungwave.viewer import studio

    folder, settings, kind = Path(order["folder"]), order["settings"], order["kind"]

    def say(phase: str, share: float) -> None:
        tell(state="running", phase=phase, share=share)

    def was_read() -> None:
        confine.allow_processor(limits.job)
        tell(state="read", phase="beamforming", share=studio.READ)

    confine.allow_processor(limits.reading if kind == "file" else limits.job)  # what a hostile file may burn
    outcome: studio.Outcome
    if kind == "file":
        upload = studio.Upload(Path(order["path"]), order["name"], order["erase"])
        model = Path(order["model"])
        outcome = studio.from_file(FileOrder(**settings), model, upload, limits.frames, say, was_read)
    elif kind == "phantom":
        outcome = studio.from_phantom(PhantomOrder(**settings), Path(order["model"]), say)
    elif kind == "prior":
        outcome = studio.from_prior(PriorOrder(**settings), say)
    else:
        outcome = studio.from_morph(MorphOrder(**settings), say)
    studio.write(outcome, folder)
    tell(state="shown", phase="writing the report", share=studio.SAMPLED)
    if outcome.report is not None:
        outcome.report(folder / "report.html")
    tell(state="done", phase="", share=1.0)


def _keep_stdout() -> int:
    """The channel to the viewer; whatever else writes to stdout, in C as well, goes to stderr."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel


if __name__ == "__main__":
    main(sys.argv[1:])
