"""The worker process: takes one order at a time from stdin, says on stdout how far it is, ends when the viewer does.

One JSON object a line, both ways. Results go into the job's folder, so that lines stay short.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from lungwave.types import LungwaveError
from lungwave.viewer import confine
from lungwave.viewer.limits import Limits
from lungwave.viewer.orders import FileOrder, MorphOrder, PhantomOrder, PriorOrder

Tell = Callable[..., None]


def main(arguments: list[str]) -> None:
    """``worker PARENT LIMITS MODEL``: identity of the viewer, its limits as JSON, folder of the model to warm up."""
    confine.end_with(int(arguments[0]))
    limits, model = Limits(**json.loads(arguments[1])), Path(arguments[2])
    spoken = _keep_stdout()
    orders: SimpleQueue[dict[str, Any]] = SimpleQueue()
    threading.Thread(target=_listen, args=(orders,), daemon=True).start()

    def tell(**words: Any) -> None:
        spoken.write(json.dumps(words) + "\n")
        spoken.flush()

    from lungwave.viewer import studio  # a few seconds: torch

    studio.warm(model)
    confine.harden(limits.memory, limits.written)
    tell(state="ready")
    while True:
        order = orders.get()
        job = order["job"]
        try:
            _do(order, limits, lambda job=job, **words: tell(job=job, **words))
        except LungwaveError as error:
            tell(job=job, state="failed", message=" ".join(str(error).split()))
        except MemoryError:
            tell(job=job, state="failed", message="this needs more memory than one job may take; give fewer frames")
        except Exception as error:  # the worker goes on; a defect is said, not hidden
            tell(job=job, state="failed", message=f"{type(error).__name__} (a defect of lungwave): {error}"[:400])


def _do(order: dict[str, Any], limits: Limits, tell: Tell) -> None:
    from lungwave.viewer import studio

    folder, settings, kind = Path(order["folder"]), order["settings"], order["kind"]

    def say(phase: str, share: float) -> None:
        tell(state="running", phase=phase, share=share)

    confine.allow_processor(limits.reading if kind == "file" else limits.job)  # what a hostile file may burn
    outcome: studio.Outcome
    if kind == "file":
        upload = studio.Upload(Path(order["path"]), order["name"], order["erase"])
        outcome = studio.from_file(
            FileOrder(**settings), Path(order["model"]), upload, limits.frames, say,
            lambda: _was_read(limits, tell),
        )  # fmt: skip
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


def _was_read(limits: Limits, tell: Tell) -> None:
    confine.allow_processor(limits.job)
    tell(state="read", phase="beamforming", share=0.1)


def _keep_stdout() -> IO[str]:
    """The channel to the viewer; whatever else writes to stdout, in C as well, goes to stderr."""
    spoken = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return spoken


def _listen(orders: SimpleQueue[dict[str, Any]]) -> None:
    """Orders line by line; the end of stdin is the end of the viewer, and of this process."""
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
