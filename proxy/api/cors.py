"""From which web pages browsers may call: what a preflight is answered, and which headers a page may read.

Whether a page may use a certain key is asked with the key (`proxy/api/auth.py`): a preflight carries none, so it is
answered for every page that may use any.
"""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from metering.background import every
from metering.clock import utc_now
from metering.ports import Ledger, LedgerAway

CUSTOMERS = "/v1/"
"""What pages may call; the admin API is no page's."""

PREFLIGHT_S = 600
"""A browser asks again after ten minutes: how long a page that may not any more is not told so before its request."""

ANY_PAGE = {"access-control-allow-origin": "*"}
"""Of what is public: it takes no key, and says the same to everybody."""

_PREFLIGHT = {
    "access-control-allow-methods": "GET, HEAD, POST",
    "access-control-allow-headers": "authorization, *",  # the star is all but that one
    "access-control-max-age": str(PREFLIGHT_S),
    "vary": "origin",
}


class Origins:
    """Of pages that may use every key (`GHUB_CORS_ORIGINS`), and of those that may use one, as last read."""

    def __init__(self, ledger: Ledger, of_every_key: Collection[str]) -> None:
        self._ledger = ledger
        self._of_every_key = frozenset(of_every_key)
        self._of_some_key: frozenset[str] = frozenset()

    async def refresh(self) -> None:
        """Read those of all keys. Raises LedgerAway."""
        self._of_some_key = frozenset(await self._ledger.origins(utc_now()))

    async def run(self, every_s: float) -> None:
        """Until cancelled; while the ledger is away the last ones go on."""
        await every(every_s, self.refresh, away=(LedgerAway, OSError, TimeoutError), name="origins_not_read")

    def known(self, origin: str) -> bool:
        """May pages from there use any key at all?"""
        return origin in self._of_every_key or origin in self._of_some_key


class CorsMiddleware:
    """Around the application, inside of what gives requests an id. `readable` are the headers that a page may read."""

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
                told = MutableHeaders(scope=message)
                told["access-control-allow-origin"] = origin
                told["access-control-expose-headers"] = self._readable
                told.add_vary_header("origin")
            await send(message)

        await self._app(scope, receive, send_readable)
