"""CORS: which web pages browsers may call from, the answer to a preflight, and the headers that a page may read.
`proxy/api/auth.py` checks whether a page may use a certain key. A preflight carries no key, so it is answered for every
page that may use any key.
"""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metering.background import every
from metering.clock import utc_now
from metering.ports import Ledger, LedgerAway

CUSTOMERS = "/v1/"
"""Paths that web pages may call; they may not call the admin API."""

PREFLIGHT_S = 600
"""A browser asks again after ten minutes. For that long, a page that lost its right still passes the preflight."""

ANY_PAGE = {"access-control-allow-origin": "*"}
"""Header of public replies: they need no key, and are the same for everybody."""

_PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-allow-headers": "authorization, *",  # the star means every header except that one
    "access-control-max-age": str(PREFLIGHT_S),
    "vary": "origin",
}


class Origins:
    """Origins that may use every key (`GHUB_CORS_ORIGINS`), and those that may use some key, from the last reading."""

    def __init__(self, ledger: Ledger, of_every_key: Collection[str]) -> None:
        self._ledger = ledger
        self._of_every_key = frozenset(of_every_key)
        self._of_some_key: frozenset[str] = frozenset()

    async def refresh(self) -> None:
        """Read the origins of all keys. Raises LedgerAway."""
        self._of_some_key = frozenset(await self._ledger.origins(utc_now()))

    async def run(self, every_s: float) -> None:
        """Refresh until cancelled. While the ledger is away the last reading holds."""
        await every(every_s, self.refresh, away=(LedgerAway, OSError, TimeoutError), name="origins_not_read")

    def known(self, origin: str) -> bool:
        """True if pages from there may use any key at all."""
        return origin in self._of_every_key or origin in self._of_some_key


class CorsMiddleware:
    """Middleware inside the one that gives requests an id. `readable` are the headers that a page may read."""

    def __init__(self, app: ASGIApp, origins: Origins, readable: Collection[str]) -> None:
        self._app = app
        self._origins = origins
        self._readable = ", ".join(readable)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" else Headers()
        origin = headers.get("origin")
        if origin is None or not scope["path"].startswith(CUSTOMERS) or not self._origins.known(origin):
            await self._app(scope, receive, send)
            return
        if scope["method"] == "OPTIONS" and "access-control-request-method" in headers:
            answer = Response(status_code=204, headers={"access-control-allow-origin": origin, **_PREFLIGHT})
            await answer(scope, receive, send)
            return

        async def send_readable(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["access-control-allow-origin"] = origin
                headers["access-control-expose-headers"] = self._readable
                headers.add_vary_header("origin")
            await send(message)

        await self._app(scope, receive, send_readable)
