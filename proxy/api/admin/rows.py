"""Rows of the ledger as operators read them, by command and over HTTP; and the cursors of their pages."""

from collections.abc import Mapping
from typing import Any

import orjson

from metering.clock import utc_at, utc_now
from metering.events import Notice
from metering.limits import LIMITS, Limits, as_text, in_force, plan_of
from metering.money import format_mxn, format_rate
from metering.ports import (
    LAST,
    LATEST,
    ApiKey,
    AtRate,
    Audit,
    BalanceAt,
    Credit,
    CreditKey,
    FxRecord,
    Org,
    Webhook,
    WebhookDelivery,
)
from proxy.api.balances import corrected, tax_fields
from proxy.api.pages import BadCursor, cursor_of, text_of
from proxy.orders.result import public_id

Fields = dict[str, Any]

_PRINTED = frozenset({"balance", *(kind.name for kind in LIMITS.values() if kind.money)})


def org_fields(org: Org, plans: Mapping[str, Limits]) -> Fields:
    """Return an organisation with its own limits, null if the plan's holds; and `effective`, the limits in force."""
    return {
        "org": org.org_id,
        "name": org.name,
        "plan": org.plan,
        "state": "suspended" if org.suspended else "active",
        **as_text(org.limits.values()),
        "effective": in_force(org.limits, plan_of(plans, org.plan)),
        "suspended_at": org.suspended_at,
        "created_at": org.created_at,
    }


def key_fields(key: ApiKey, used_us: int | None) -> Fields:
    """Return a key with its own limits; `used_us` is the moment of its last order, in Unix µs."""
    return {
        "key_id": key.key_id,
        "org": key.org_id,
        "name": key.name,
        "test": key.test,
        "state": key.state(utc_now()),
        "created_at": key.created_at,
        "expires_at": key.expires_at,
        "revoked_at": key.revoked_at,
        "last_used_at": None if used_us is None else utc_at(used_us).isoformat(timespec="seconds"),
        "models": list(key.models),
        "read": key.read,
        "response_format": key.response_format,
        "origins": list(key.origins),
        **as_text(key.limits.values()),
    }


def webhook_fields(webhook: Webhook) -> Fields:
    """Return a webhook; its organisation's secret is no field of it."""
    return {
        "id": webhook.webhook_id,
        "org": webhook.org_id,
        "url": webhook.url,
        "events": list(webhook.events),
        "state": "active" if webhook.disabled_at is None else "disabled",
        "created_at": webhook.created_at,
        "disabled_at": webhook.disabled_at,
    }


def delivery_fields(delivery: WebhookDelivery) -> Fields:
    """Return a delivery to a webhook; `webhook` is null for the address that an order named."""
    return {
        "id": delivery.delivery_id,
        "org": delivery.org_id,
        "webhook": delivery.webhook_id,
        "url": delivery.url,
        "type": delivery.type,
        "subject": delivery.subject,
        "state": delivery.state,
        "at": delivery.at,
        "attempts": delivery.attempts,
        "next_at": delivery.next_at if delivery.state == "waiting" else None,
        "ended_at": delivery.ended_at,
        "error": delivery.error,
    }


def rate_fields(record: FxRecord) -> Fields:
    """Return a month's rate, where it comes from, and who entered and approved it."""
    rate, origin = record.rate, record.origin
    return {
        "id": record.rate_id,
        "month": rate.month,
        "mxn_per_usd": format_rate(rate.mxn_per_usd),
        "source": rate.source,
        "series": origin.series,
        "method": origin.method,
        "printed": origin.printed,
        "fetched_at": origin.fetched_at,
        "raw_sha256": origin.raw_sha256,
        "entered_by": record.entered_by,
        "entered_at": record.at,
        "approved_by": record.approved_by,
        "approved_at": record.approved_at,
    }


def credit_fields(credit: Credit) -> Fields:
    """Return money in or out: what enters the wallet, what was paid for it with IVA, and the balance after it."""
    new = credit.new
    return {
        "id": new.credit_id,
        "org": new.org_id,
        "number": credit.number,
        "type": new.type,
        "mxn": format_mxn(new.amount_micro_mxn),
        "at": credit.at,
        "by": credit.actor,
        "order": None if new.order_id is None else public_id(new.order_id),
        "recharge": new.recharge_id,
        "corrects": corrected(new.corrects),
        "reason": new.reason,
        **tax_fields(new.tax),
        "balance_mxn": None if credit.balance_micro_mxn is None else format_mxn(credit.balance_micro_mxn),
        "facts": dict(credit.facts),
    }


def correction_fields(name: str, at_rate: AtRate) -> Fields:
    """Return what an organisation was charged at a wrong rate, what it should have been, and what is given for it."""
    return {
        "organization": name,
        "charged_mxn": format_mxn(at_rate.charged_micro_mxn),
        "should_be_mxn": format_mxn(at_rate.right_micro_mxn),
        "before_mxn": format_mxn(at_rate.adjusted_micro_mxn),
        "adjustment_mxn": format_mxn(at_rate.adjustment_micro_mxn),
    }


def liability_fields(balance: BalanceAt) -> Fields:
    """Return what was owed to an organisation at a day's end."""
    return {
        "org": balance.org_id,
        "name": balance.name,
        "credits_mxn": format_mxn(balance.credits_micro_mxn),
        "charged_mxn": format_mxn(balance.charged_micro_mxn),
        "balance_mxn": format_mxn(balance.balance_micro_mxn),
    }


def audit_fields(row: Audit) -> Fields:
    """Return who did what to which target."""
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
    """Return a notice to an organisation; money is a decimal string."""
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


# --- cursors: the row after which a page begins ---


def org_cursor(org: Org) -> str:
    """Return the cursor after this organisation."""
    return _cursor(org.created_at, org.org_id)


def after_org(cursor: str | None) -> Org | None:
    """Parse a cursor; the organisation has only the fields that give its place in the list. Raises BadCursor."""
    if cursor is None:
        return None
    created_at, org_id = _parts(cursor, 2)
    return Org(org_id, "", "", created_at)


def key_cursor(key: ApiKey) -> str:
    """Return the cursor after this key."""
    return _cursor(key.created_at, key.key_id)


def after_key(cursor: str | None) -> ApiKey | None:
    """Parse a cursor; the key has only the fields that give its place in the list. Raises BadCursor."""
    if cursor is None:
        return None
    created_at, key_id = _parts(cursor, 2)
    return ApiKey(key_id, "", "", "", created_at)


def delivery_cursor(delivery: WebhookDelivery) -> str:
    """Return the cursor after this delivery."""
    return _cursor(delivery.at, delivery.delivery_id)


def before_delivery(cursor: str | None) -> tuple[str, str]:
    """Return moment and id before which a page begins, latest first. Raises BadCursor."""
    if cursor is None:
        return LATEST, ""
    at, delivery_id = _parts(cursor, 2)
    return at, delivery_id


def rate_cursor(record: FxRecord) -> str:
    """Return the cursor after this rate."""
    return _cursor(record.rate.month, str(record.rate_id))


def after_rate(cursor: str | None) -> tuple[str, int]:
    """Parse a cursor into month and id; without one, return what is before all rates. Raises BadCursor."""
    if cursor is None:
        return "", 0
    month, rate_id = _parts(cursor, 2)
    return month, _number(rate_id)


def credit_cursor(credit: Credit) -> str:
    """Return the cursor after this credit."""
    return _cursor(credit.at, credit.new.org_id, str(credit.number))


def before_credit(cursor: str | None) -> CreditKey | None:
    """Return the credit after which a page begins, latest first. Raises BadCursor."""
    if cursor is None:
        return None
    at, org_id, number = _parts(cursor, 3)
    return CreditKey(at, org_id, _number(number))


def audit_cursor(row: Audit) -> str:
    """Return the cursor after this row of the audit log."""
    return _cursor(str(row.id))


def before_audit(cursor: str | None) -> int:
    """Return the number of the row below which a page of the audit log begins. Raises BadCursor."""
    return LAST if cursor is None else _number(_parts(cursor, 1)[0])


def notice_cursor(one: Notice) -> str:
    """Return the cursor after this notice."""
    return _cursor(one.at, one.what, str(one.percent), one.key_id, one.period, one.org_id)


def after_notice(cursor: str | None) -> tuple[str, tuple[str, int, str, str, str] | None]:
    """Return a page's latest moment, and the notice of that moment after which the page begins. Raises BadCursor."""
    if cursor is None:
        return LATEST, None
    at, what, percent, key_id, period, org_id = _parts(cursor, 6)
    return at, (what, _number(percent), key_id, period, org_id)


def _cursor(*parts: str) -> str:
    return cursor_of(orjson.dumps(parts).decode())


def _parts(cursor: str, count: int) -> list[str]:
    text = text_of(cursor)
    try:
        parts = orjson.loads(text)
    except ValueError:
        raise BadCursor from None
    if not isinstance(parts, list) or len(parts) != count:
        raise BadCursor
    if not all(isinstance(part, str) and part.isprintable() for part in parts):
        raise BadCursor
    return parts


def _number(part: str) -> int:
    if not (part.isascii() and part.isdigit() and len(part) < 17):
        raise BadCursor
    return int(part)
