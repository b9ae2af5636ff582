"""``lungwave view``: a socket, the address for the browser, and an end that leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

import uvicorn

from lungwave.shipped import ECHOES, model_folder
from lungwave.types import UsageError
from lungwave.viewer.app import Setup, build
from lungwave.viewer.gate import LOOPBACK, Keys
from lungwave.viewer.limits import Limits
from lungwave.viewer.private import private_folder

MODELS = ("posterior-tiny", "ridge-tiny")  # that are always offered
EVERYWHERE = ("0.0.0.0", "::", "")
PATIENCE = 2  # [s] that open requests have when the viewer ends


def serve(
    file: Path | None = None, *, host: str = LOOPBACK[0], port: int = 0, exposed: bool = False, browser: bool = True,
    model: Path | None = None, limits: Limits | None = None, say: Callable[[str], None] = print,
) -> None:  # fmt: skip
    """Serve until interrupted; ``say`` is given the address, with its token, once it answers.

    UsageError for a file, a model, a port or a host that cannot be served; nothing is left on disk at the end.
    """
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: {'is a folder' if file.is_dir() else 'does not exist'}; give an RF file")
    if host not in LOOPBACK and not exposed:
        raise UsageError(
            f"--host {host} would let other machines in; add --expose if the network is yours alone (nothing is "
            "encrypted), or leave --host out and use an SSH tunnel"
        )
    models = _models(model)
    with _listening(host, port) as listener, private_folder() as folder:
        keys = Keys()
        bound = listener.getsockname()[1]
        setup = Setup(folder, models, limits or Limits(), bound, host, exposed, file and file.resolve())
        config = uvicorn.Config(
            build(setup, keys), log_config=None, access_log=False, server_header=False, ws="none", http="h11",
            loop="asyncio", lifespan="on", limit_concurrency=64, timeout_graceful_shutdown=PATIENCE,
        )  # fmt: skip
        server = uvicorn.Server(config)
        if exposed and host not in LOOPBACK:
            print(
                f"lungwave: warning: other machines can reach this viewer ({host}), and nothing is encrypted; whoever "
                "learns the token sees what you see",
                file=sys.stderr, flush=True,
            )  # fmt: skip
        named = f"http://{_address(host)}:{bound}/?token="

        async def run() -> None:
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            while not server.started and not serving.done():
                await asyncio.sleep(0.01)
            if server.started:
                say(named + keys.token)
                if browser and _has_screen():
                    await asyncio.to_thread(webbrowser.open, named + keys.ticket())
            await serving

        asyncio.run(run())


def _models(extra: Path | None) -> dict[str, Path]:
    """Name -> folder of the models on offer, the default first. UsageError for one that cannot be read."""
    found = {name: model_folder(Path(name), ECHOES) for name in MODELS}
    if extra is None:
        return found
    folder = model_folder(extra, ECHOES).resolve()
    if str(extra) not in found:
        from lungwave.posterior.reconstruct import load_any_model  # seconds, which shipped models need not cost

        load_any_model(folder)
    name = extra.name if extra.name not in found or folder == found[extra.name].resolve() else f"{extra.name} (yours)"
    return {name: folder, **{other: path for other, path in found.items() if other != name}}


def _has_screen() -> bool:
    """Whether a browser would have a window; on Linux without one it would take over the terminal."""
    return sys.platform != "linux" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens. UsageError where that cannot be."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--host {host} --port {port}: {reason}; choose another port, or 0 for any free one") from None
    return listener


def _address(host: str) -> str:
    """What a browser on this machine calls the host."""
    if host in EVERYWHERE:
        return LOOPBACK[0]
    return f"[{host}]" if ":" in host else host
