"""Who may come in: this machine's own browser, with the token, under a name that is ours; and what pages may do.

A page of another site can make a browser send requests to any port of this machine. It cannot read the token, but it
may have a name of its own point at 127.0.0.1 (DNS rebinding: the Host header betrays it), and for a cookie every port
of one host is the same site (Origin and Sec-Fetch-Site tell them apart).
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import parse_qs, urlsplit

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

HEADERS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), usb=(), serial=()",
    "cache-control": "no-store",  # results are somebody's lungs
}
LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass
class Keys:
    """The token of this run, and tickets that buy it once: what a browser is started with is seen by others (ps)."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    _tickets: set[str] = field(default_factory=set)

    def ticket(self) -> str:
        """A new ticket."""
        made = secrets.token_urlsafe(32)
        self._tickets.add(made)
        return made

    def fits(self, given: str) -> bool:
        """Whether this is the token; takes as long for any guess."""
        return hmac.compare_digest(given.encode(), self.token.encode())

    def admits(self, given: str) -> bool:
        """Whether this is the token or a ticket, which is then used up."""
        if given in self._tickets:
            self._tickets.discard(given)
            return True
        return self.fits(given)


class Gate:
    """Turns away every request that has no business here, before anything of it is read."""

    def __init__(self, app: App, keys: Keys, port: int, host: str, exposed: bool = False) -> None:
        self.app, self.keys, self.port, self.exposed = app, keys, port, exposed
        self.hosts = {*LOOPBACK, host}
        self.cookie = f"lungwave-{port}"  # cookies know no ports, so that two viewers need two names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # a web socket; there is none
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        cookies: list[tuple[bytes, bytes]] = []

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *added, *cookies]}
            await send(message)

        refusal = self._refusal(scope, headers, cookies)
        if refusal is None:
            await self.app(scope, receive, guarded)
            return
        status, said = refusal
        kind = [(b"content-type", b"text/plain; charset=utf-8")]
        await guarded({"type": "http.response.start", "status": status, "headers": kind})
        await guarded({"type": "http.response.body", "body": said.encode()})

    def _refusal(
        self, scope: Scope, headers: dict[str, str], cookies: list[tuple[bytes, bytes]]
    ) -> tuple[int, str] | None:
        """Status and reason; None for a welcome request, whose answer also sets ``cookies``."""
        if not self._ours(headers.get("host", "")):
            return 400, "This viewer does not answer to that name. Open the address that 'lungwave view' printed."
        start = scope["path"] == "/" and scope["method"] == "GET"
        foreign = headers.get("sec-fetch-site", "none") not in ("same-origin", "none")
        origin = headers.get("origin")
        if (foreign and not start) or (origin is not None and not self._own_origin(origin, headers["host"])):
            return 403, "Requests of other pages are not answered."
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0] if start else ""
        if given and self.keys.admits(given):
            kept = f"{self.cookie}={self.keys.token}; HttpOnly; SameSite=Strict; Path=/"
            cookies.append((b"set-cookie", kept.encode()))
            return None
        if self.keys.fits(headers.get("x-lungwave-token", "") or self._cookie(headers.get("cookie", ""))):
            return None
        return 403, "The token is missing or wrong. Open the address that 'lungwave view' printed, token included."

    def _ours(self, host: str) -> bool:
        """Whether a Host header names this server and its port."""
        try:
            parts = urlsplit(f"//{host}")
            name, port = (parts.hostname or "").lower(), parts.port
        except ValueError:
            return False
        if parts.path or parts.query or parts.fragment or parts.username or (port or 80) != self.port:
            return False
        return name in self.hosts or (self.exposed and _is_address(name))

    def _own_origin(self, origin: str, host: str) -> bool:
        return origin.lower() == f"http://{host.lower()}"

    def _cookie(self, header: str) -> str:
        try:
            found = SimpleCookie(header).get(self.cookie)
        except CookieError:
            return ""
        return found.value if found is not None else ""


def _is_address(name: str) -> bool:
    """Whether a host is given by number; rebinding needs a name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
