"""Rows of the ledger as finance reads them, and the cursors of their pages."""

from metering.manifest import SUMS
from metering.money import format_mxn
from metering.ports import LAST, Adjustment, ClosedMonth, MonthSums, Reconciliation
from proxy.api.admin.rows import Fields
from proxy.api.balances import corrected
from proxy.api.pages import BadCursor, cursor_of, text_of


def month_fields(month: str, closed: ClosedMonth | None) -> Fields:
    """Return a month: whether it is closed and sealed, and what was signed of its sums."""
    sealed = closed is not None and closed.sealed
    return {
        "month": month,
        "state": "open" if closed is None else "closed",
        "closed_at": None if closed is None else closed.closed_at,
        "closed_by": None if closed is None else closed.closed_by,
        "sealed": sealed,
        "charges_mxn": format_mxn(closed.charges_micro_mxn) if closed is not None and sealed else None,
        "closing_mxn": format_mxn(closed.closing_micro_mxn) if closed is not None and sealed else None,
    }


def sums_fields(sums: MonthSums, name: str) -> Fields:
    """Return what was posted to a month for an organisation."""
    return {
        "org": sums.org_id,
        "name": name,
        "orders": sums.orders,
        "images": sums.images,
        **{f"{one}_mxn": format_mxn(getattr(sums, f"{one}_micro_mxn")) for one in SUMS},
    }


def adjustment_fields(adjustment: Adjustment) -> Fields:
    """Return an adjustment that was proposed, and who approved it."""
    return {
        "id": adjustment.proposal_id,
        "org": adjustment.org_id,
        "mxn": format_mxn(adjustment.amount_micro_mxn),
        "reason": adjustment.reason,
        "corrects": corrected(adjustment.corrects),
        "proposed_by": adjustment.proposed_by,
        "proposed_at": adjustment.at,
        "credit": adjustment.credit_id,
        "approved_by": adjustment.approved_by,
        "approved_at": adjustment.approved_at,
    }


def reconciliation_fields(found: Reconciliation) -> Fields:
    """Return a comparison with providers' books, without what was found."""
    return {
        "id": found.id,
        "month": found.month,
        "provider": found.provider,
        "ok": found.ok,
        "ledger_usd": found.ledger_usd,
        "billed_usd": found.billed_usd,
        "off_usd": found.off_usd,
        "findings": found.findings,
        "by": found.actor,
        "at": found.at,
    }


# --- cursors ---


def month_cursor(closed: ClosedMonth) -> str:
    """Return the cursor after this month."""
    return cursor_of(closed.month)


def after_month(cursor: str | None) -> str:
    """Return the month after which a page begins, or what sorts before all. Raises BadCursor."""
    return "" if cursor is None else _text(cursor)


def sums_cursor(sums: MonthSums) -> str:
    """Return the cursor after this organisation."""
    return cursor_of(sums.org_id)


def after_sums(cursor: str | None) -> MonthSums | None:
    """Parse a cursor; the sums have only the organisation. Raises BadCursor."""
    return None if cursor is None else MonthSums(_text(cursor), *[0] * 9)


def adjustment_cursor(adjustment: Adjustment) -> str:
    """Return the cursor after this proposal."""
    return cursor_of(str(adjustment.proposal_id))


def reconciliation_cursor(found: Reconciliation) -> str:
    """Return the cursor after this comparison."""
    return cursor_of(str(found.id))


def before_number(cursor: str | None) -> int:
    """Return the number below which a page begins. Raises BadCursor."""
    if cursor is None:
        return LAST
    text = _text(cursor)
    if not (text.isascii() and text.isdigit() and len(text) < 17):
        raise BadCursor
    return int(text)


def _text(cursor: str) -> str:
    text = text_of(cursor)
    if not text.isprintable():
        raise BadCursor
    return text
