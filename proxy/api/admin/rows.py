"""Rows of the record as operators read them, by command and over HTTP; and the cursors of their pages."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from metering.events import Notice
from metering.limits import Limits, in_force, plan_of, told
from metering.money import format_mxn
from metering.ports import Audit, Org

Fields = dict[str, Any]

END = "\x7f"
"""After every moment."""

_PRINTED = frozenset({"mxn_per_month", "balance"})


def org_fields(org: Org, plans: Mapping[str, Limits]) -> Fields:
    """An organisation with its own limits, null where its plan's hold; and `effective`, what holds of either."""
    return {
        "org": org.org_id,
        "name": org.name,
        "plan": org.plan,
        "state": "suspended" if org.suspended else "active",
        **told(org.limits.values()),
        "effective": in_force(org.limits, plan_of(plans, org.plan)),
        "suspended_at": org.suspended_at,
        "created_at": org.created_at,
    }


def audit_fields(row: Audit) -> Fields:
    """Who did what to which target."""
    return {
        "id": row.id,
        "at": row.at,
        "actor": row.actor,
        "action": row.action,
        "org": row.org_id,
        "target": row.target,
        "details": orjson.loads(row.details),
    }


def notice_fields(notice: Notice) -> Fields:
    """What an organisation was told; money as a decimal string."""
    money = notice.what in _PRINTED
    return {
        "what": notice.what,
        "key_id": notice.key_id or None,
        "percent": notice.percent,
        "period": notice.period,
        "limit": format_mxn(notice.limit) if money else notice.limit,
        "used": format_mxn(notice.used) if money else notice.used,
        "at": notice.at,
    }


class BadCursor(Exception):
    """It is none that a page has given out."""


def cursor_of(parts: Sequence[str]) -> str:
    """What asks for the page after the row that these parts name."""
    return base64.urlsafe_b64encode(orjson.dumps(list(parts))).decode().rstrip("=")


def parts_of(cursor: str, count: int) -> list[str]:
    """What a cursor holds. Raises BadCursor."""
    try:
        parts = orjson.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except ValueError:
        parts = None
    if not isinstance(parts, list) or len(parts) != count:
        raise BadCursor
    if not all(isinstance(part, str) and part.isprintable() for part in parts):
        raise BadCursor
    return parts


def number_of(part: str) -> int:
    """A whole number in a cursor. Raises BadCursor."""
    if not (part.isascii() and part.isdigit() and len(part) < 17):
        raise BadCursor
    return int(part)


def audit_cursor(row: Audit) -> list[str]:
    """Where a page of the audit log goes on."""
    return [str(row.id)]


def notice_cursor(one: Notice) -> list[str]:
    """Where a page of notices goes on."""
    return [one.at, one.what, str(one.percent), one.key_id, one.period, one.org_id]


def after_notice(cursor: str | None) -> tuple[str, tuple[str, int, str, str, str] | None]:
    """The moment before which a page of notices begins, and within it after which of them. Raises BadCursor."""
    if cursor is None:
        return END, None
    at, what, percent, key_id, period, org_id = parts_of(cursor, 6)
    return at, (what, number_of(percent), key_id, period, org_id)


def before_audit(cursor: str | None, last: int) -> int:
    """The row below which a page of the audit log begins; `last` without a cursor. Raises BadCursor."""
    return last if cursor is None else number_of(parts_of(cursor, 1)[0])
