"""An identity at Google Cloud → access tokens by google-auth, renewed before they expire."""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import httpx2

from proxy.outcomes import Failure, Outcome
from proxy.providers.google_identity import Identity, Metadata, read_identity
from proxy.upstream import UNPACKED, read_document

RENEW_BEFORE_S = 300.0
"""A token is renewed this long before it expires, so that none expires on its way; a short one at half its life."""

TOKEN_TIMEOUT_S = 10.0
"""The longest that a renewal may take with all its requests: an external account may need five."""

TOKEN_BYTES = 16 * 1024

_TOKEN = re.compile(r"[!-~]+")

_NO_LIFE = re.compile(rb'"expires_in"\s*:\s*true')
"""google-auth would read this value as one second."""


class ServiceAccount:
    """An identity's access tokens: one renewal for all callers that wait, before the token expires.

    `source` is an account's file, or `default` for the metadata server's. `project` is the one that the file names, if
    it names one. Raises BadServiceAccount.
    """

    def __init__(self, client: httpx2.AsyncClient, source: Path | Literal["default"]) -> None:
        self._client = client
        self._identity: Identity
        self._identity, self.project = (Metadata(), None) if source == "default" else read_identity(source)
        self._renewal: asyncio.Task[Failure | None] | None = None
        self._token = ""
        self._renew_at_s = self._ends_s = 0.0

    async def headers(self) -> dict[str, str]:
        """Return the token's header. Raises Failure if there is no token; then nothing was bought."""
        if time.monotonic() >= self._renew_at_s:
            if self._renewal is None or self._renewal.done():
                self._renewal = asyncio.create_task(self._renew())
            # If one caller is cancelled while it waits, the request goes on for the others.
            failure = await asyncio.shield(self._renewal)
            if failure is not None and time.monotonic() >= self._ends_s:
                raise Failure(failure.outcome, failure.detail)
        return {"authorization": f"Bearer {self._token}"}

    def refused(self) -> None:
        """Discard a token that was not accepted, even if it has not expired: the next call requests another."""
        self._renew_at_s = self._ends_s = 0.0

    async def _renew(self) -> Failure | None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + TOKEN_TIMEOUT_S
        try:
            async with asyncio.timeout_at(until_s):
                await asyncio.to_thread(self._identity.refresh, _Exchange(self._client, loop, until_s))
        except Failure as failure:
            return failure
        except TimeoutError as error:
            return Failure(Outcome.REFUSED_CONNECTION, f"token: {type(error).__name__}")
        except Exception as error:  # noqa: BLE001  # for a malformed reply google-auth raises any Python error
            return Failure(Outcome.NOT_AUTHORISED, f"token: {type(error).__name__}")
        token, ends = self._identity.token, self._identity.expiry
        life_s = (ends.replace(tzinfo=UTC) - datetime.now(UTC)).total_seconds() if ends else 0.0
        if not isinstance(token, str) or not _TOKEN.fullmatch(token) or life_s <= 0:
            return Failure(Outcome.NOT_AUTHORISED, "token: no token in the reply")
        given_s = time.monotonic()
        self._token, self._ends_s = token, given_s + life_s
        self._renew_at_s = given_s + max(life_s - RENEW_BEFORE_S, life_s / 2)
        return None


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    headers: Mapping[str, str]
    data: bytes


@dataclass(frozen=True, slots=True)
class _Exchange:
    """google-auth's transport: it calls from a thread, and `loop` sends with our client, until `until_s` of its clock.

    Raises Failure for all but a 200: google-auth would retry by itself, and repeat what the reply says.
    """

    client: httpx2.AsyncClient
    loop: asyncio.AbstractEventLoop
    until_s: float

    def __call__(
        self,
        url: str,
        method: str = "GET",
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        **_: Any,
    ) -> _Reply:
        sending = self._send(method, url, body, {**(headers or {}), **UNPACKED})
        return asyncio.run_coroutine_threadsafe(sending, self.loop).result()

    async def _send(self, method: str, url: str, body: bytes | None, headers: Mapping[str, str]) -> _Reply:
        try:
            async with (
                asyncio.timeout_at(self.until_s),
                self.client.stream(method, url, content=body, headers=headers) as response,
            ):
                data = await read_document(response, TOKEN_BYTES)
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            raise Failure(Outcome.REFUSED_CONNECTION, f"token: {type(error).__name__}") from error
        except Failure as failure:
            raise Failure(Outcome.NOT_AUTHORISED, f"token: {failure}") from failure
        if response.status_code != 200:
            raise Failure(Outcome.NOT_AUTHORISED, f"token: status {response.status_code}")
        if _NO_LIFE.search(data):
            raise Failure(Outcome.NOT_AUTHORISED, "token: no token in the reply")
        return _Reply(response.status_code, response.headers, data)
