"""Pages of a list: so many rows of it, and the cursor that asks for those after them. Clients hold cursors."""

import base64
from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")

USUAL, MOST = 20, 100
"""Rows of a page: by default, and at most."""


class BadCursor(Exception):
    """The text is no cursor that a page has given out."""


def cursor_of(text: str) -> str:
    """Encode a text for an address or a command line. Only this project reads it."""
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def text_of(cursor: str) -> str:
    """Decode the text of a cursor. Raises BadCursor."""
    try:
        return base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode()
    except ValueError:
        raise BadCursor from None


def page_of(rows: Sequence[T], most: int, cursor: Callable[[T], str]) -> tuple[Sequence[T], str | None]:
    """Cut a page, and make the cursor of the next one. `rows` has one row more than the page if there is a next one."""
    page = rows[:most]
    return page, cursor(page[-1]) if len(rows) > most else None
