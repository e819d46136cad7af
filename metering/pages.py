"""A listing of the ledger, page by page."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def pages(look: Callable[[T | None], Awaitable[list[T]]]) -> AsyncIterator[list[T]]:
    """Yield every page. `look` gets the last entry of the page before, at first None."""
    page = await look(None)
    while page:
        yield page
        page = await look(page[-1])
