"""What the admin API shows: single rows, and pages of them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from metering.orders import Orders, order_id_of
from metering.ports import ApiKey, Ledger
from metering.uses import last_used
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Wallet
from proxy.api.admin.call import Call, checked_ref
from proxy.api.admin.orders import order_fields, refund_fields
from proxy.api.admin.rows import (
    Fields,
    after_key,
    after_notice,
    after_org,
    after_rate,
    audit_cursor,
    audit_fields,
    before_audit,
    before_credit,
    before_delivery,
    credit_cursor,
    credit_fields,
    delivery_cursor,
    delivery_fields,
    key_cursor,
    key_fields,
    notice_cursor,
    notice_fields,
    org_cursor,
    org_fields,
    rate_cursor,
    rate_fields,
    webhook_fields,
)
from proxy.api.balances import organisation_fields
from proxy.api.pages import page_of

T = TypeVar("T")


class Reads:
    """Reads what a call requests, as the reply's fields. `public_url` is the public prefix of an image's path."""

    def __init__(self, ledger: Ledger, wallet: Wallet, orders: Orders, public_url: str) -> None:
        self._ledger = ledger
        self._wallet = wallet
        self._orders = orders
        self._public_url = public_url

    # --- what was written, by its target ---

    async def show_org(self, call: Call, target: str) -> Fields:
        return org_fields(await self._ledger.org(target), await self._ledger.plans())

    async def show_key(self, call: Call, target: str) -> Fields:
        key = await self._ledger.key(target)
        used = await self._last_used(key.org_id, [key])
        return key_fields(key, used.get(key.key_id))

    async def show_credit(self, call: Call, target: str) -> Fields:
        return credit_fields(await self._ledger.credit(target))

    async def show_refund(self, call: Call, target: str) -> Fields:
        record = await self._ledger.order(order_id_of(call.ref))
        return next(refund_fields(refund, record) for refund in record.refunds if refund.credit_id == target)

    async def show_rate(self, call: Call, target: str) -> Fields:
        return [rate_fields(one) for one in await self._ledger.rate_records() if one.rate.month == target][-1]

    async def show_webhook(self, call: Call, target: str) -> Fields:
        return webhook_fields(await self._ledger.webhook(target))

    async def show_secret(self, call: Call, target: str) -> Fields:
        return {"org": target}

    async def show_delivery(self, call: Call, target: str) -> Fields:
        return delivery_fields(await self._ledger.webhook_delivery(target))

    # --- what is read ---

    async def orgs(self, call: Call) -> Fields:
        rows = await self._ledger.orgs(after=after_org(call.query.cursor), most=call.query.limit + 1)
        plans = await self._ledger.plans()
        return paged(call, rows, lambda org: org_fields(org, plans), org_cursor)

    async def org(self, call: Call) -> Fields:
        return await self.show_org(call, call.ref)

    async def keys(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        rows = await self._ledger.keys(org.org_id, after=after_key(call.query.cursor), most=call.query.limit + 1)
        used = await self._last_used(org.org_id, rows)
        return paged(call, rows, lambda key: key_fields(key, used.get(key.key_id)), key_cursor)

    async def _last_used(self, org_id: str, keys: Sequence[ApiKey]) -> dict[str, int]:
        """Read when each key was last used. If Redis is away, the ledger's last order counts."""
        try:
            return await last_used(self._ledger, self._wallet, org_id, keys)
        except WalletAway:
            return await last_used(self._ledger, None, org_id, keys)

    async def order(self, call: Call) -> Fields:
        return await order_fields(self._orders, self._ledger, self._public_url, call.ref)

    async def balance(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        return {"org": org.org_id, **organisation_fields(await self._wallet.read(org.org_id))}

    async def credits(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        query = call.query
        rows = await self._ledger.credits(org.org_id, before_credit(query.cursor), query.limit + 1, kind=query.type)
        return paged(call, rows, credit_fields, credit_cursor)

    async def notices(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        before, after = after_notice(call.query.cursor)
        rows = await self._ledger.notices(org.org_id, before, call.query.limit + 1, after=after)
        return paged(call, rows, notice_fields, notice_cursor)

    async def webhooks(self, call: Call) -> Fields:
        org = await self._ledger.org(call.ref)
        return {"data": [webhook_fields(one) for one in await self._ledger.webhooks(org.org_id)], "next_cursor": None}

    async def deliveries(self, call: Call) -> Fields:
        org, query = await self._ledger.org(call.ref), call.query
        before = before_delivery(query.cursor)
        rows = await self._ledger.webhook_deliveries(org.org_id, query.state, before, query.limit + 1)
        return paged(call, rows, delivery_fields, delivery_cursor)

    async def rates(self, call: Call) -> Fields:
        after = after_rate(call.query.cursor)
        rows = [one for one in await self._ledger.rate_records() if (one.rate.month, one.rate_id) > after]
        return paged(call, rows, rate_fields, rate_cursor)

    async def audit(self, call: Call) -> Fields:
        ref, query = call.query.org, call.query
        org_id = None if ref is None else (await self._ledger.org(checked_ref(ref))).org_id
        before = before_audit(query.cursor)
        rows = await self._ledger.audits(org_id, before, query.limit + 1, actor=query.actor, action=query.action)
        return paged(call, rows, audit_fields, audit_cursor)


def paged(call: Call, rows: Sequence[T], show: Callable[[T], Fields], cursor: Callable[[T], str]) -> Fields:
    """Return a page of rows, which has one more than the query's `limit` if there is a next one."""
    page, more = page_of(rows, call.query.limit, cursor)
    return {"data": [show(row) for row in page], "next_cursor": more}
