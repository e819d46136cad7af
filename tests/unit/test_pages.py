"""Pages of a list and their cursors, which clients hold across releases."""

import pytest

from metering.ports import ResultKey
from proxy.api import deliveries
from proxy.api.admin.rows import after_key, after_notice, after_org, before_audit, org_cursor
from proxy.api.pages import BadCursor, cursor_of, page_of, text_of

REQUEST_ID = "0199f3c2-0000-7000-8000-000000000001"


@pytest.mark.parametrize("text", ["", "a", "ab", "abc", "ñandú 1 \x7f", "1790000000000000 x" * 9])
def test_a_cursor_holds_its_text(text: str) -> None:
    """Whatever it is; and it goes into an address as it is."""
    cursor = cursor_of(text)
    assert text_of(cursor) == text
    assert set(cursor) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize("cursor", ["a", "ñ", "_____w", "gA"])
def test_what_no_page_has_given_out_is_none(cursor: str) -> None:
    """Not base64, or no text in it."""
    with pytest.raises(BadCursor):
        text_of(cursor)


@pytest.mark.parametrize(("count", "page", "cursor"), [(0, [], None), (2, [0, 1], None), (3, [0, 1], "after 1")])
def test_a_page_has_a_cursor_if_there_is_a_row_after_it(count: int, page: list[int], cursor: str | None) -> None:
    """And the cursor names the page's own last row."""
    assert page_of(list(range(count)), 2, lambda row: f"after {row}") == (page, cursor)


def test_cursors_that_earlier_releases_gave_out_are_taken() -> None:
    """Of every list; these were written down before lists shared their cursors."""
    assert deliveries._key("MTc5MDAwMDAwMDAwMDAwMCAwMTk5ZjNjMi0wMDAwLTcwMDAtODAwMC0wMDAwMDAwMDAwMDE") == ResultKey(
        1_790_000_000_000_000, REQUEST_ID
    )
    org = after_org("WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwIiwibyJd")
    assert org is not None and (org.created_at, org.org_id) == ("2026-01-01T00:00:00+00:00", "o")
    assert org_cursor(org) == "WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwIiwibyJd"
    key = after_key("WyIyMDI2LTAxLTAxVDAwOjAwOjAwKzAwOjAwIiwibyJd")
    assert key is not None and (key.created_at, key.key_id) == ("2026-01-01T00:00:00+00:00", "o")
    assert before_audit("WyI3Il0") == 7
    assert after_notice("WyIyMDI2IiwiYmFsYW5jZSIsIjgwIiwiIiwiMjAyNi0wMSIsIm8iXQ") == (
        "2026",
        ("balance", 80, "", "2026-01", "o"),
    )
