"""The routes: a page, its four kinds of assets from memory, and a small JSON interface to the queue."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from lungwave import __version__
from lungwave.types import RESEARCH_USE, LungwaveError, UsageError
from lungwave.viewer import intake, orders
from lungwave.viewer.gate import Gate, Keys
from lungwave.viewer.jobs import Job, Jobs
from lungwave.viewer.limits import Limits
from lungwave.viewer.private import erase

ASSETS = {
    name: (resources.files("lungwave") / "assets" / "viewer" / name, kind)
    for name, kind in (
        ("index.html", "text/html"),
        ("viewer.css", "text/css"),
        *((f"{module}.js", "text/javascript") for module in ("viewer", "api", "panels", "charts", "result", "explore")),
    )
}
FILES = {
    "result": ("result.json", "application/json", ""),
    "arrays": ("arrays.bin", "application/octet-stream", ""),
    "report": ("report.html", "text/html", "lungwave-report.html"),
}
Handler = Callable[[Request], Awaitable[Response]]


class NotThere(LungwaveError):
    """What was asked for has gone, or never was."""


@dataclass(frozen=True)
class Setup:
    """What one run of the viewer serves."""

    folder: Path  # private
    models: dict[str, Path]  # by the name that is offered; the first is the default
    limits: Limits
    port: int
    host: str
    exposed: bool = False
    file: Path | None = None  # that the command line named


def build(setup: Setup, keys: Keys) -> Gate:
    """The application, behind its gate."""
    jobs = Jobs(setup.folder, setup.limits, setup.models)
    desk = _Desk(setup, jobs)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        jobs.start()
        if setup.file is not None:
            jobs.add("file", setup.file.name, orders.FileOrder(), upload=setup.file, erase=False)
        try:
            yield
        finally:
            await jobs.stop()

    app = Starlette(
        routes=[
            Route("/", desk.page),
            Route("/assets/{name}", desk.asset),
            Route("/api/about", _told(desk.about)),
            Route("/api/jobs", _told(desk.jobs_list)),
            Route("/api/jobs", _told(desk.order), methods=["POST"]),
            Route("/api/files", _told(desk.upload), methods=["POST"]),
            Route("/api/jobs/{id}", _told(desk.drop), methods=["DELETE"]),
            Route("/api/jobs/{id}/{part}", _told(desk.part)),
        ],
        lifespan=lifespan,
    )
    return Gate(app, keys, setup.port, setup.host, setup.exposed)


def _told(handler: Handler) -> Handler:
    """The handler, whose errors become one readable line."""

    async def run(request: Request) -> Response:
        try:
            return await handler(request)
        except NotThere as error:
            return JSONResponse({"error": str(error)}, 404)
        except intake.TooLarge as error:
            return JSONResponse({"error": str(error)}, 413, headers={"connection": "close"})
        except UsageError as error:
            return JSONResponse({"error": str(error)}, 400)
        except OSError as error:
            return JSONResponse({"error": f"the disk refused: {error.strerror}; free some space"}, 507)

    return run


class _Desk:
    """The handlers."""

    def __init__(self, setup: Setup, jobs: Jobs) -> None:
        self.setup, self.jobs = setup, jobs
        self._assets = {name: (path.read_bytes(), kind) for name, (path, kind) in ASSETS.items()}

    async def page(self, request: Request) -> Response:
        return self._asset("index.html")

    async def asset(self, request: Request) -> Response:
        return self._asset(request.path_params["name"])

    def _asset(self, name: str) -> Response:
        if name not in self._assets:
            return Response("Not found.", 404, media_type="text/plain")
        content, kind = self._assets[name]
        return Response(content, media_type=kind)

    async def about(self, request: Request) -> Response:
        limits = self.setup.limits
        offered = {
            "version": __version__, "notice": RESEARCH_USE, "models": list(self.setup.models),
            "samplers": orders.SAMPLERS, "categories": list(orders.CATEGORIES), "trained": orders.TRAINED,
            "snrs": list(orders.SNRS), "bounds": orders.BOUNDS, "suffixes": list(intake.SUFFIXES),
            "upload": limits.upload, "frames": limits.frames,
        }  # fmt: skip
        return JSONResponse(offered)

    async def jobs_list(self, request: Request) -> Response:
        ready = self.jobs.worker is not None
        return JSONResponse({"ready": ready, "jobs": self.jobs.listed()})

    async def order(self, request: Request) -> Response:
        held = await self._json(request)
        order = orders.read_order(held.get("kind"), held.get("settings", {}), tuple(self.setup.models))
        job = self.jobs.add(str(held["kind"]), _title(order), order)
        return JSONResponse({"id": job.id}, 201)

    async def upload(self, request: Request) -> Response:
        """The body is the file itself: no form to parse, and not a byte in memory that the disk can hold."""
        name = intake.shown_name(request.headers.get("x-file-name", ""))
        settings = _parsed(request.headers.get("x-settings", "{}"))
        order = orders.checked(orders.FileOrder, settings, tuple(self.setup.models))
        self.jobs.room()
        intake.check_announced(request.headers.get("content-length"), self.setup.folder, self.setup.limits)
        folder = self.jobs.new_folder()
        try:
            path = await intake.receive(request.stream(), folder, Path(name).suffix.lower(), self.setup.limits)
            job = self.jobs.add("file", name, order, folder, upload=path)
        except ClientDisconnect:
            erase(folder)
            return Response(status_code=400)  # nobody is there to read it
        except BaseException:
            erase(folder)
            raise
        return JSONResponse({"id": job.id}, 201)

    async def drop(self, request: Request) -> Response:
        self.jobs.drop(self._job(request))
        return JSONResponse({})

    async def part(self, request: Request) -> Response:
        job, part = self._job(request), request.path_params["part"]
        name, kind, download = FILES.get(part, ("", "", ""))
        if name not in job.files:
            raise NotThere("this job has no such result, or not yet")
        headers = {"content-disposition": f'attachment; filename="{download}"'} if download else None
        return Response(job.files[name], media_type=kind, headers=headers)

    def _job(self, request: Request) -> Job:
        job = self.jobs.all.get(request.path_params["id"])
        if job is None:
            raise NotThere("this job is gone; its results were erased")
        return job

    async def _json(self, request: Request) -> dict[str, Any]:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > self.setup.limits.request:
                raise intake.TooLarge(f"a request of more than {self.setup.limits.request} bytes")
        return _parsed(body)


def _parsed(text: bytes | bytearray | str) -> dict[str, Any]:
    try:
        held = json.loads(text)
    except (ValueError, RecursionError):
        raise UsageError("the request is not JSON") from None
    if not isinstance(held, dict):
        raise UsageError("the request is not a JSON object")
    return held


def _title(order: orders.Order) -> str:
    """What the queue calls a job."""
    if isinstance(order, orders.PhantomOrder):
        return f"{order.category.capitalize()} lung"
    if isinstance(order, orders.PriorOrder):
        return f"{order.count} lungs of the prior"
    if isinstance(order, orders.MorphOrder):
        return f"Lung {order.start} to lung {order.end}"
    return "RF file"
