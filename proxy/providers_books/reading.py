"""Answers of a provider's API for its books: JSON, within limits of time and size, and without any float."""

import asyncio
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, NoReturn

import httpx2

READ_S = 30.0
"""Timeout for each read: sums over a month may take a provider some seconds."""

ANSWER_S = 120.0
"""Timeout for one whole answer, however slowly it drips."""

MAX_ANSWER_BYTES = 8 * 1024 * 1024
"""Maximum size of an answer: a page of 31 days with 100 models each has 1 MB."""

MAX_PAGES = 200
"""Maximum pages: a month has at most 31, and a provider that never ends would be read for ever."""

MAX_USD = Decimal(10) ** 9
"""Maximum figure that is one."""


class BooksFailed(Exception):
    """A provider's books cannot be read; the message is a sentence for an operator, and has no key in it."""


@dataclass(slots=True)
class Books:
    """One API: reads its pages, and keeps the hash of all that was read. `setting` names where the key is set."""

    client: httpx2.AsyncClient
    name: str
    setting: str
    headers: dict[str, str]
    pages: int = 0
    _hash: Any = field(default_factory=hashlib.sha256)

    @property
    def sha256(self) -> str:
        """The hash of all answers, in their order."""
        digest: str = self._hash.hexdigest()
        return digest

    async def get(self, url: str, parameters: Sequence[tuple[str, str]]) -> dict[str, Any]:
        """Read one answer, a JSON object; numbers with a point are Decimal. Raises BooksFailed."""
        raw = b""
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                self.client.stream("GET", url, params=tuple(parameters), headers=self.headers, timeout=READ_S) as reply,
            ):
                status = reply.status_code
                async for piece in reply.aiter_bytes():
                    raw += piece
                    if len(raw) > MAX_ANSWER_BYTES:
                        self.fail("the answer is too large to be one")
        except TimeoutError:
            self.fail("the answer does not end; try again")
        except httpx2.HTTPError as error:
            self.fail(f"no answer ({type(error).__name__}); try again")
        if status in (401, 403):
            self.fail(f"{self.setting}: the key is refused")
        if status != 200:
            self.fail(f"the answer is {status}; try again")
        self.pages += 1
        if self.pages > MAX_PAGES:
            self.fail(f"over {MAX_PAGES} pages are none of a month")
        self._hash.update(raw)
        try:
            document = json.loads(raw, parse_float=Decimal)
        except (ValueError, RecursionError):
            document = None
        if not isinstance(document, dict):
            self.strange()
        return document

    def strange(self) -> NoReturn:
        """Raise BooksFailed for an answer in another form."""
        self.fail("the answer is not what its documentation says")

    def fail(self, why: str) -> NoReturn:
        """Raise BooksFailed."""
        raise BooksFailed(f"{self.name}: {why}") from None

    def usd(self, value: Any) -> Decimal:
        """Take a figure as exact; it may come as a number or as text. Raises BooksFailed."""
        try:
            figure = Decimal(value) if type(value) in (int, str, Decimal) else Decimal("NaN")
        except InvalidOperation:
            figure = Decimal("NaN")
        if not figure.is_finite() or abs(figure) > MAX_USD:
            self.strange()
        return figure
