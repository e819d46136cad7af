"""Shared parts of the tests of limits: an organisation with two keys, scripted hours, and the wallet's counters."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from metering.answered import AnsweredOrder
from metering.clock import unix_us_at
from metering.events import encode_opened
from metering.money import format_mxn
from metering.wallet import keys
from metering.wallet.values import Admission, Caller, OrderIdentity, Verdict
from proxy.orders.refusals import exceeded
from tests.kits.books import FACTS, UNIT, Books, pictures, pinned

OPEN = ("flying", "day_open", "month_open", "spent_open")
DONE = ("day_done", "month_done", "spent_done")


@dataclass
class Shop:
    """One organisation with the keys `a` and `b`; an order's name begins with its key's."""

    books: Books
    callers: dict[str, Caller]
    orders: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def org_id(self) -> str:
        return self.callers["a"].org_id

    def at(self, moment: str) -> None:
        """Set the time to `YYYY-MM-DD HH:MM:SS` in UTC."""
        self.books.wallet.at(unix_us_at(datetime.fromisoformat(moment).replace(tzinfo=UTC)))

    async def do(self, action: str) -> str:
        """Do `a1 5` (order five images), `settle a1 3`, `void a1`, `replay a1 3`, `org LIMIT 5` or `key a LIMIT -`."""
        match action.split():
            case ["settle", name, images]:
                return (await self.books.settle(self.callers[name[0]], self.id(name), int(images))).close.name
            case ["void", name]:
                return (await self.books.wallet.void(self.org_id, self.id(name), "test")).close.name
            case ["replay", name, images]:
                return (await self.books.wallet.replay(self.answered(name, int(images)))).name
            case ["org", limit, value]:
                await self.books.accounts.set_limits(self.org_id, {limit: _number(value)})
                return ""
            case ["key", key, limit, value]:
                await self.books.accounts.set_key_limits(self.callers[key].key_id, {limit: _number(value)})
                return ""
            case [name, images]:
                return said(await self.order(name, int(images)), int(images), self.books.wallet.now_us())
        raise AssertionError(action)

    async def order(self, name: str, images: int) -> Admission:
        """Admit an order of this many images now."""
        now_us = self.books.wallet.now_us()
        admission = await self.books.admit(
            self.callers[name[0]], self.id(name), pinned(images, now_us=now_us), OrderIdentity(name)
        )
        if admission.verdict is Verdict.ADMITTED:
            self.orders[name] = (images, now_us)
        return admission

    def id(self, name: str) -> str:
        return f"{self.org_id}-{name}"

    def answered(self, name: str, images: int) -> AnsweredOrder:
        """Make the entry of a gateway's journal."""
        asked, admitted_us = self.orders[name]
        caller, price = self.callers[name[0]], pinned(asked, now_us=admitted_us)
        return AnsweredOrder(
            org_id=caller.org_id,
            key_id=caller.key_id,
            fingerprint=name,
            key_hash=None,
            client_gone=False,
            order_id=self.id(name),
            amount_micro_mxn=images * UNIT,
            images=pictures(images, self.id(name)),
            usd_measured=None,
            opened=encode_opened(self.id(name), caller.org_id, caller.key_id, price, FACTS),
            result=b"{}",
            admitted_us=admitted_us,
            ended_us=admitted_us + 1,
        )


async def open_shop(books: Books, mxn: str = "100000.00", name: str = "acme") -> Shop:
    """Open an organisation with credit and two keys, all without their own limits."""
    first = await books.org(name, mxn)
    second = await books.accounts.create_key(first.org_id, "second")
    return Shop(books, {"a": first, "b": Caller(first.org_id, second.key_id)})


def said(admission: Admission, images: int, now_us: int) -> str:
    """Format `DAY org 8/10 12:00:00`: the verdict, whose limit, its use, and the wait in the customer's form."""
    if admission.verdict not in (Verdict.BUDGET, Verdict.DAY, Verdict.MONTH, Verdict.IN_FLIGHT):
        return admission.verdict.name
    error = exceeded(admission, pinned(images, now_us=now_us), {})
    wait = "never" if error.retry_after_s is None else str(timedelta(seconds=error.retry_after_s))
    used, limit = str(admission.used), str(admission.limit)
    if admission.verdict is Verdict.BUDGET:
        used, limit = format_mxn(admission.used), format_mxn(admission.limit)
    assert used in error.message
    assert limit in error.message
    return f"{admission.verdict.name} {admission.whose} {used}/{limit} {wait}"


async def counters(books: Books, caller: Caller) -> Mapping[str, dict[str, int]]:
    """Read the wallet's counters: the organisation's and the caller's key's."""
    names, found = keys.OrgKeys(caller.org_id), {}
    for whose, name in (("org", names.wallet), ("key", names.access(caller.key_id))):
        values = await books.redis.hmget(name, *OPEN, *DONE)
        found[whose] = {what: int(value or 0) for what, value in zip((*OPEN, *DONE), values, strict=True)}
    return found


def nothing_open(counted: Mapping[str, dict[str, int]]) -> bool:
    """True if all orders have given back what they had taken."""
    return all(one[what] == 0 for one in counted.values() for what in OPEN)


def _number(text: str) -> int | None:
    return None if text == "-" else int(text)
