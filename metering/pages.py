"""A listing of the ledger, page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def pages(look: Callable[[T | None], Awaitable[list[T]]]) -> AsyncIterator[list[T]]:
    """Every page that `look` finds: it is given the last entry of the page before, and at first None."""
    page = await look(None)
    while page:
        yield page
        page = await look(page[-1])
