"""The record's transactions, whichever database keeps them.

Each is a generator: it yields the name of a statement with its values, and is sent the rows. So what must hold of money
is written once, though one database is driven by a thread and the other by the event loop; and a transaction that lost
a race is simply begun again.
"""

from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from hashlib import sha256
from typing import Any, ClassVar, Literal, TypeVar
from uuid import UUID

import orjson

from metering.aside import told_of_kept
from metering.clock import DAY_US, Period, month_start_us, next_month, period_at, unix_us_at, utc_at
from metering.events import End, Event, Notice, decode_images
from metering.ledger.queries import Dialect, pending
from metering.ledger.rows import Row, event_of, event_row, fields, key_of, org_of
from metering.limits import Limits, plan_of
from metering.money import MAX_MICRO_MXN, format_mxn, format_rate
from metering.ports import (
    LAST,
    PAGE,
    Act,
    ApiKey,
    Audit,
    Booked,
    Charged,
    CreditType,
    Delivered,
    Ended,
    Incarnation,
    Keyed,
    LedgerError,
    Listed,
    ListPrice,
    NotThere,
    OrderRecord,
    OrderSetAside,
    Org,
    Refund,
    Refunded,
    ResultKey,
    SetAside,
    Snapshot,
    UsageRow,
    Used,
    WrongField,
)
from metering.pricing import FxRate

T = TypeVar("T")
Steps = Generator[tuple[str, Mapping[str, Any]], Any, T]
"""A transaction: yields statement and values, is sent a list of rows, returns its result."""

Mode = Literal["read", "report", "scan", "book", "write"]
"""read: one consistent cut. report: the same for a customer, who may ask for much; it holds up nobody else. scan: for
as long as a whole history takes. book: adds events, beside others that do. write: alone among the writers of
everything else, so that what it has read still holds when it commits."""

FINGERPRINT = 16
"""Hex digits of a change's fingerprint: 64 bits, against chance and not against an enemy."""

EVENTS = 1_000
"""Events fetched at a time: about 1 MB."""


class SqlLedger(ABC):
    """Everything of a ledger but the database itself. Every method may raise LedgerAway."""

    dialect: ClassVar[Dialect]

    @abstractmethod
    async def migrate(self) -> int:
        """Bring the schema up to date, one process at a time; returns its version."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close what is open; nothing may be asked any more."""

    @abstractmethod
    async def _run(self, mode: Mode, steps: Callable[[], Steps[T]]) -> T:
        """Carry a transaction out, wholly or not at all. Raises LedgerAway, LedgerError."""

    @abstractmethod
    def _book(self, rows: list[dict[str, Any]]) -> Steps[set[str]]:
        """Insert events and their consumption where they are not there yet; returns the ids of those that were not."""

    async def _rows(self, query: str, **values: Any) -> list[Row]:
        def steps() -> Steps[list[Row]]:
            rows: list[Row] = yield query, values
            return rows

        return await self._run("read", steps)

    # --- schema ---

    async def check_schema(self) -> None:
        """Raises LedgerError when the schema is not the one that this version needs."""

        def steps() -> Steps[int]:
            ((migrated,),) = yield "is_migrated", {}
            ((current,),) = (yield "schema_version", {}) if migrated else [(0,)]
            return int(current)

        current = await self._run("read", steps)
        if missing := pending(self.dialect, current):
            raise LedgerError(
                f"the ledger's schema is version {current}, this needs {missing[-1][0]}: run `ghub migrate`"
            )

    # --- organisations and keys ---

    async def create_org(self, org: Org, act: Act) -> None:
        """Raises LedgerError when the name is taken."""

        def steps() -> Steps[None]:
            if (yield "org", {"ref": org.name}):
                raise WrongField("name", f"an organisation named {org.name!r} exists already")
            yield "create_org", fields(org)
            yield _change(org.org_id, "org created", org.created_at)
            yield from _note(act, org.created_at)

        await self._run("write", steps)

    async def org(self, ref: str) -> Org:
        """By id or name. Raises LedgerError when there is none."""
        rows = await self._rows("org", ref=ref)
        if not rows:
            raise NotThere(f"there is no organisation {ref!r}")
        return org_of(rows[0])

    async def orgs(self, after: Org | None = None, most: int = PAGE) -> list[Org]:
        """A page of them, oldest first; the next one begins `after` the last of this one."""
        at, org_id = (after.created_at, after.org_id) if after is not None else ("", "")
        return [org_of(row) for row in await self._rows("orgs", after_at=at, after_id=org_id, page=most)]

    async def set_limits(self, org_id: str, changes: Mapping[str, int | None], at: datetime, act: Act) -> Org:
        """Set an organisation's own limits; what is not named stays, and None is the plan's again."""

        def steps() -> Steps[Org]:
            (row,) = yield "org", {"ref": org_id}
            org = org_of(row)
            changed = replace(org, limits=org.limits.changed(changes))
            if changed == org:
                yield from _once(act, at.isoformat())
                return org
            yield "set_limits", {"org_id": org_id, **changed.limits.values()}
            yield _change(org_id, "limits", at.isoformat())
            yield from _note(act, at.isoformat())
            return changed

        return await self._run("write", steps)

    async def suspend(self, org_id: str, suspended: bool, at: datetime, act: Act) -> Org:
        """Refuse an organisation's orders from now on, or take them again; what is so already stays as it is."""

        def since(org: Org) -> Org:
            return (
                org if org.suspended == suspended else replace(org, suspended_at=at.isoformat() if suspended else None)
            )

        return await self._change_org(org_id, since, "suspended" if suspended else "resumed", at, act)

    async def rename(self, org_id: str, name: str, at: datetime, act: Act) -> Org:
        """Raises WrongField when the name is taken."""
        return await self._change_org(org_id, lambda org: replace(org, name=name), "renamed", at, act)

    async def set_plan(self, org_id: str, plan: str, at: datetime, act: Act) -> Org:
        """Its own limits stay above the new plan's."""
        return await self._change_org(org_id, lambda org: replace(org, plan=plan), "plan", at, act)

    async def _change_org(self, org_id: str, change: Callable[[Org], Org], what: str, at: datetime, act: Act) -> Org:
        def steps() -> Steps[Org]:
            (row,) = yield "org", {"ref": org_id}
            org = org_of(row)
            changed = change(org)
            if changed == org:
                yield from _once(act, at.isoformat())
                return org
            if changed.name != org.name and (yield "org", {"ref": changed.name}):
                raise WrongField("name", f"an organisation named {changed.name!r} exists already")
            yield "set_org", fields(changed)
            yield _change(org_id, what, at.isoformat())
            yield from _note(act, at.isoformat())
            return changed

        return await self._run("write", steps)

    async def plans(self) -> dict[str, Limits]:
        """Those of the gateway that started last, by name; none where none has started yet."""
        return {row[0]: Limits(*row[1:]) for row in await self._rows("plans")}

    async def register_plans(self, plans: Mapping[str, Limits], at: datetime) -> bool:
        """The plans that hold from now on; False where they are as they were. Otherwise all wallets are told."""

        def steps() -> Steps[bool]:
            known = {row[0]: Limits(*row[1:]) for row in (yield "plans", {})}
            if known == plans:
                return False
            for name in known.keys() - plans.keys():
                yield "drop_plan", {"name": name}
            for name, limits in plans.items():
                yield "set_plan", {"name": name, **limits.values(), "at": at.isoformat()}
            yield "change_all", {"what": "plans", "at": at.isoformat()}
            return True

        return await self._run("write", steps)

    async def create_key(self, key: ApiKey, act: Act, *, until: datetime | None = None) -> None:
        """Record a key by its hash. The one that it `replaces` ends at `until`, if it does not end before."""

        def steps() -> Steps[None]:
            lists = {"models": " ".join(key.models), "origins": " ".join(key.origins)}
            yield "create_key", fields(key) | key.limits.values() | lists
            if until is not None:
                yield "expire_key", {"key_id": key.replaces, "at": until.isoformat()}
            yield _change(key.org_id, "key created", key.created_at)
            yield from _note(act, key.created_at)

        await self._run("write", steps)

    async def key(self, key_id: str) -> ApiKey:
        """By its short id. Raises LedgerError when there is none."""
        rows = await self._rows("key", key_id=key_id)
        if not rows:
            raise NotThere(f"there is no key {key_id!r}")
        return key_of(rows[0])

    async def given_end(self, key: ApiKey) -> str | None:
        """The end that a key was issued with; a rotation may have brought it forward."""
        rows = await self._rows("issued", org_id=key.org_id, key_id=key.key_id)
        details = orjson.loads(rows[0][0]) if rows else {}
        end: str | None = details.get("expires_at", key.expires_at)
        return end

    async def keys(self, org_id: str, after: ApiKey | None = None, most: int = PAGE) -> list[ApiKey]:
        """A page of an organisation's keys, revoked ones too, oldest first."""
        at, key_id = (after.created_at, after.key_id) if after is not None else ("", "")
        rows = await self._rows("keys", org_id=org_id, after_at=at, after_id=key_id, page=most)
        return [key_of(row) for row in rows]

    async def revoke_key(self, key_id: str, at: datetime, act: Act) -> ApiKey:
        """Revoke for good; a second time changes nothing. Raises LedgerError when there is no such key."""

        def steps() -> Steps[ApiKey]:
            revoked = yield "revoke_key", {"key_id": key_id, "at": at.isoformat()}
            key = yield from _key(key_id)
            if not revoked:
                yield from _once(act, at.isoformat())
                return key
            yield _change(key.org_id, "key revoked", at.isoformat())
            yield from _note(replace(act, org_id=key.org_id), at.isoformat())
            return key

        return await self._run("write", steps)

    async def set_key_limits(self, key_id: str, changes: Mapping[str, int | None], at: datetime, act: Act) -> ApiKey:
        """Set a key's own limits; what is not named stays, and None is no limit."""

        def steps() -> Steps[ApiKey]:
            key = yield from _key(key_id)
            changed = replace(key, limits=key.limits.changed(changes))
            if changed == key:
                yield from _once(act, at.isoformat())
                return key
            yield "set_key_limits", {"key_id": key_id, **changed.limits.values()}
            yield _change(key.org_id, "key limits", at.isoformat())
            yield from _note(replace(act, org_id=key.org_id), at.isoformat())
            return changed

        return await self._run("write", steps)

    async def last_used(self, org_id: str) -> dict[str, int]:
        """Key id → Unix µs of the last order that was charged to it."""
        rows = await self._rows("last_used", org_id=org_id)
        return {key_id: last_us for (key_id, last_us) in rows}

    async def origins(self, at: datetime) -> set[str]:
        """Of all pages from which browsers may use a key that is neither revoked nor past its end."""
        rows = await self._rows("origins", at=at.isoformat())
        return {origin for (origins,) in rows for origin in origins.split()}

    # --- who did what ---

    async def written(self, actor: str, key: str) -> tuple[str, str] | None:
        """What was asked for under this idempotency key, and what it was done to."""
        rows = await self._rows("written", actor=actor, key=key)
        return (rows[0][0], rows[0][1]) if rows else None

    async def audits(
        self, org_id: str | None, before: int, most: int, *, actor: str | None = None, action: str | None = None
    ) -> list[Audit]:
        """A page of the audit log, the latest first, below the row `before`."""
        asked = {"org_id": org_id, "actor": actor, "action": action}
        return [Audit(*row) for row in await self._rows("audits", **asked, before=before, page=most)]

    async def note(self, act: Act, at: datetime) -> None:
        """Write down what was done elsewhere than in this record."""

        def steps() -> Steps[None]:
            yield from _note(act, at.isoformat())

        await self._run("write", steps)

    # --- credits ---

    async def add_credit(
        self, org_id: str, credit_id: str, kind: CreditType, micro_mxn: int, at: datetime, act: Act
    ) -> bool:
        """Add a numbered credit; False when this very credit is there already.

        Raises LedgerError when the id stands for another credit: a payment's id is used once.
        """

        def steps() -> Steps[bool]:
            if before := (yield "credit", {"id": credit_id}):
                if before[0] == (org_id, kind, micro_mxn):
                    yield from _once(act, at.isoformat())
                    return False
                raise WrongField(
                    "id",
                    f"credit {credit_id!r} exists already: {before[0][1]} of {format_mxn(before[0][2])} MXN"
                    f" for organisation {before[0][0]}",
                )
            yield from _add_credit(org_id, credit_id, kind, micro_mxn, at.isoformat())
            yield from _note(act, at.isoformat())
            return True

        return await self._run("write", steps)

    async def refund(
        self,
        order_id: str,
        micro_mxn: int | None,
        reason: str,
        at: datetime,
        act: Act,
        *,
        org_id: str | None = None,
        credit_id: str | None = None,
    ) -> tuple[Refund, bool]:
        """Give back `micro_mxn` of what an order was charged, or all that is left; and whether it was given now.

        All refunds of an order together are at most its charge (rule 33). Without a `credit_id` of the giver's own
        they are numbered; under one, the same refund is given once. Raises NotThere, also where the order is not this
        organisation's; WrongField, LedgerError.
        """

        def steps() -> Steps[tuple[Refund, bool]]:
            charge = _charge_of((yield "order_ends", {"order_id": order_id}), order_id, org_id)
            before = [Refund(*row) for row in (yield "refunds_of_order", {"order_id": order_id})]
            given = next((one for one in before if one.credit_id == credit_id), None)
            if given is not None and given.amount_micro_mxn == micro_mxn:
                yield from _once(replace(act, target=given.credit_id), at.isoformat())
                return given, False
            amount = _refundable(charge, before, micro_mxn)
            name = (yield from _unused_id(order_id, len(before))) if credit_id is None else credit_id
            if credit_id is not None and (yield "credit", {"id": credit_id}):
                raise WrongField("id", f"credit {credit_id!r} exists already, and is another one")
            new = Refund(name, charge.opened.org_id, order_id, amount, reason, at.isoformat())
            yield from _add_credit(new.org_id, name, "refund", amount, new.at, order_id, reason)
            details = {**act.details, "mxn": format_mxn(amount)}
            yield from _note(replace(act, target=name, org_id=new.org_id, details=details), new.at)
            return new, True

        return await self._run("write", steps)

    async def order(self, order_id: str) -> OrderRecord:
        """All that is known of one order; empty where nothing is."""

        def steps() -> Steps[OrderRecord]:
            asked = {"order_id": order_id}
            ends = [Booked(event_of(row[:-1]), row[-1]) for row in (yield "order_ends", asked)]
            refunds = [Refund(*row) for row in (yield "refunds_of_order", asked)]
            set_aside = [OrderSetAside(*row) for row in (yield "set_aside_of_order", asked)]
            ((kept,),) = yield "result_kept", asked
            return OrderRecord(tuple(ends), tuple(refunds), tuple(set_aside), bool(kept))

        return await self._run("read", steps)

    async def refunds(self, month: str, *, org_id: str | None = None) -> AsyncIterator[Refunded]:
        """Those that were given in a month of Mexico City, in their order, a page at a time."""
        span = {
            "first_at": utc_at(month_start_us(month)).isoformat(),
            "end_at": utc_at(month_start_us(next_month(month))).isoformat(),
        }
        after = {"after_at": "", "after_id": ""}
        while True:
            rows = await self._rows("refunds", org_id=org_id, page=EVENTS, **span, **after)
            for row in rows:
                yield Refunded(Refund(*row[:6]), event_of(row[6:]))
            if len(rows) < EVENTS:
                return
            after = {"after_at": rows[-1][5], "after_id": rows[-1][0]}

    # --- rates and prices ---

    async def add_rate(self, rate: FxRate, at: datetime, act: Act | None = None) -> bool:
        """Add a month's rate; False when it is there already. Without `act` it is the seed of an empty table.

        Raises LedgerError when the month has begun with another rate.
        """

        def steps() -> Steps[bool]:
            rows = yield "rates", {}
            before = {month: Decimal(text) for month, text, _ in rows}.get(rate.month)
            if before == rate.mxn_per_usd:
                if act is not None:
                    yield from _once(act, at.isoformat())
                return False
            if before is not None and unix_us_at(at) >= month_start_us(rate.month):
                raise WrongField(
                    "month",
                    f"{rate.month} has begun at {format_rate(before)} MXN for one USD, and a month's rate is fixed",
                )
            values = {"month": rate.month, "mxn_per_usd": format_rate(rate.mxn_per_usd), "source": rate.source}
            yield "add_rate", {**values, "at": at.isoformat()}
            if act is not None:
                yield from _note(act, at.isoformat())
            return True

        return await self._run("write", steps)

    async def rates(self) -> list[FxRate]:
        """The rate in force of each month, oldest month first."""
        rows = await self._rows("rates")
        return [FxRate(month=month, mxn_per_usd=Decimal(rate), source=source) for month, rate, source in rows]

    async def rate_rows(self) -> set[tuple[str, Decimal]]:
        """Every rate that was ever in force, as (month, MXN for one USD)."""
        return {(month, Decimal(rate)) for month, rate in await self._rows("all_rates")}

    async def register_prices(self, version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime) -> None:
        """Write a price book down, once; a version's rows never change."""

        def steps() -> Steps[None]:
            if (yield "price_book", {"version": version}):
                return
            yield "add_price_book", {"version": version, "markup": format_rate(markup), "at": at.isoformat()}
            for price in prices:
                usd = format_rate(price.usd_per_image)
                values = {"version": version, "model": price.model, "variant": price.variant, "usd_per_image": usd}
                yield "add_price", values

        await self._run("write", steps)

    async def price_rows(self) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]:
        """(version, model, variant) → (USD per image, markup)."""
        rows = await self._rows("price_rows")
        return {
            (version, model, variant): (Decimal(usd), Decimal(markup)) for version, model, variant, usd, markup in rows
        }

    # --- projection ---

    async def last_change(self) -> int:
        """The number of the last change that Redis has to know of. None below it can appear later."""
        return int((await self._rows("last_change"))[0][0])

    async def begin_rebuild(self, at: datetime) -> int:
        """Write down that wallets are made anew from what is read after this; returns the change that stands for it.

        A ledger that lacks it was restored from a backup since, and may lack what the wallets were made from.
        """

        def steps() -> Steps[int]:
            yield "change_for_a_rebuild", {"at": at.isoformat()}
            ((change,),) = yield "last_change", {}
            return int(change)

        return await self._run("write", steps)

    async def fingerprints(self, changes: Collection[int]) -> dict[int, str]:
        """What tells these changes from those of another ledger with the same numbers; without those not there.

        A ledger that was restored from a backup and written to again has other rows: their time has microseconds.
        """

        def steps() -> Steps[dict[int, str]]:
            found = {}
            for seq in changes:
                for row in (yield "change_at", {"seq": seq}):
                    found[seq] = sha256("\n".join(row).encode()).hexdigest()[:FINGERPRINT]
            return found

        return await self._run("read", steps)

    async def changed_since(self, change: int) -> list[str]:
        """Ids of the organisations that changed after change number `change`."""
        return [org_id for (org_id,) in await self._rows("changed_since", change=change)]

    async def known_orgs(self, org_ids: Sequence[str]) -> set[str]:
        """Those of these ids that are of organisations here."""
        return {org_id for (org_id,) in await self._rows("known_orgs", ids=_json(org_ids))}

    async def known_keys(self, key_ids: Sequence[str]) -> set[str]:
        """Those of these ids that are of keys here."""
        return {key_id for (key_id,) in await self._rows("known_keys", ids=_json(key_ids))}

    async def known_hashes(self, key_hashes: Sequence[str]) -> set[str]:
        """Those of these hashes that are of keys here."""
        return {key_hash for (key_hash,) in await self._rows("known_hashes", ids=_json(key_hashes))}

    async def snapshots(self, org_ids: Sequence[str], period: Period) -> list[Snapshot]:
        """Everything that a projection of these needs, of one moment; `period` is today, for what was used."""
        days = {"day": period.day, "first": f"{period.month}-01", "last": f"{period.month}-31"}

        ids = {"ids": _json(org_ids)}

        def steps() -> Steps[list[Snapshot]]:
            plans = {row[0]: Limits(*row[1:]) for row in (yield "plans", {})}
            orgs = [org_of(row) for row in (yield "orgs_of", ids)]
            revisions = dict((yield "revisions", ids))
            credits_ = {org_id: (number, total) for org_id, number, total in (yield "credits_of", ids)}
            keys: dict[str, list[ApiKey]] = defaultdict(list)
            used: dict[str, dict[str, Used]] = defaultdict(dict)
            for row in (yield "keys_of", ids):
                keys[row[1]].append(key_of(row))
            for org_id, key_id, *figures in (yield "used", {**ids, **days}):
                used[org_id][key_id] = Used(*figures)
            return [
                Snapshot(
                    org=org,
                    revision=revisions.get(org.org_id, 0),
                    credit_number=credits_.get(org.org_id, (0, 0))[0],
                    credits_micro_mxn=credits_.get(org.org_id, (0, 0))[1],
                    keys=tuple(keys[org.org_id]),
                    limits=org.limits.over(plan_of(plans, org.plan)),
                    used=used[org.org_id],
                    period=period,
                )
                for org in orgs
            ]

        return await self._run("read", steps)

    # --- events ---

    async def book(self, events: Sequence[Event], set_aside: Sequence[SetAside], at: datetime) -> set[str]:
        """Write events and their consumption in one transaction; returns the ids of those that were new."""
        booked_at = at.isoformat()

        def steps() -> Steps[set[str]]:
            new = yield from self._book([event_row(event, booked_at) for event in events])
            if results := [_result_row(event) for event in events if event.result]:
                yield "add_results", {"results": orjson.dumps(results).decode()}
            for entry in set_aside:
                # Whatever came over the stream can be kept: PostgreSQL knows no text with a NUL in it.
                error = entry.error.replace("\0", "\\0")
                yield "set_aside", {**fields(entry), "error": error, "at": booked_at}
            return new

        return await self._run("book", steps)

    async def book_notices(self, notices: Sequence[Notice]) -> list[Notice]:
        """Write down what organisations are to be told; returns those that are new."""

        def steps() -> Steps[list[Notice]]:
            new = []
            for notice in sorted(notices, key=lambda one: (one.org_id, one.key_id, one.what, one.percent, one.period)):
                if (yield "add_notice", fields(notice)):
                    new.append(notice)
            return new

        return await self._run("book", steps) if notices else []

    async def notices(
        self,
        org_id: str | None,
        before: str,
        most: int,
        *,
        what: str | None = None,
        after: tuple[str, int, str, str, str] | None = None,
    ) -> list[Notice]:
        """What an organisation, or any, was told before a moment, the latest first; of one kind where `what` names it.

        `after`, the last one's what, percent, key id, period and organisation, goes on within that moment.
        """
        names = ("what", "percent", "key_id", "period", "last_org_id")
        last = dict(zip(names, after or ("", 0, "", "", ""), strict=True))
        rows = await self._rows("notices", org_id=org_id, kind=what, before=before, page=most, **last)
        return [Notice(*row) for row in rows]

    async def usage(
        self,
        org_id: str,
        first: str,
        last: str,
        by: Collection[str],
        most: int,
        key_ids: Collection[str] | None = None,
    ) -> list[UsageRow]:
        """What was charged from one day to another, both of Mexico City and included, by any of day, model and key.

        At most so many rows, of no certain order. With `key_ids` it is what was charged to those.
        """

        def steps() -> Steps[list[UsageRow]]:
            asked: dict[str, Any] = {f"by_{name}": name in by for name in ("day", "model", "key")}
            asked |= {"org_id": org_id, "first": first, "last": last, "most": most}
            rows = yield "usage", {**asked, "ids": None if key_ids is None else _json([*key_ids])}
            return [UsageRow(*row) for row in rows]

        return await self._run("report", steps)

    async def ended(self, request_ids: Sequence[str]) -> dict[str, Ended]:
        """Those of these orders that the ledger has, by request id: some hundreds at a time. A charge goes first."""
        rows = await self._rows("ended", ids=_json(request_ids))
        rows.sort(key=lambda row: row[1] == "charge")
        return {
            event_id: Ended(end, reason, frozenset(image["path"] for image in orjson.loads(images)))
            for event_id, end, reason, images in rows
        }

    async def ends(self, request_ids: Sequence[str]) -> set[tuple[str, End]]:
        """Every end that the ledger has of these orders, by request id: some hundreds at a time."""
        return {(event_id, end) for event_id, end in await self._rows("ends", ids=_json(request_ids))}

    async def keyed(self, org_ids: Sequence[str], since_us: int) -> list[Keyed]:
        """Charged orders of these organisations that came with an idempotency key, since then."""
        return [Keyed(*row) for row in await self._rows("keyed", ids=_json(org_ids), since_us=since_us)]

    async def charged_since(self, org_ids: Sequence[str], since_us: int) -> list[tuple[str, str, int]]:
        """Charged orders of these organisations that ended since then: organisation, request, amount."""
        rows = await self._rows("charged_since", ids=_json(org_ids), since_us=since_us)
        return [(org_id, request_id, amount) for org_id, request_id, amount in rows]

    async def charged(self, org_ids: Sequence[str]) -> dict[str, Charged]:
        """What the ledger has of those of these organisations of which it has anything."""
        rows = await self._rows("charged", ids=_json(org_ids))
        return {org_id: Charged(*figures) for org_id, *figures in rows}

    async def result(self, org_id: str, request_id: str) -> Delivered | None:
        """What a charged order of this organisation delivered, as long as it is kept."""
        rows = await self._rows("result", org_id=org_id, request_id=request_id)
        return _delivered(rows[0]) if rows else None

    async def results(
        self, org_id: str, after: ResultKey | None = None, most: int = PAGE, key_ids: Collection[str] | None = None
    ) -> list[Listed]:
        """A page of an organisation's, the latest first; the next one begins `after` the last of this.

        With `key_ids` of those that these keys placed.
        """
        until_us, after_id = (after.ended_us, after.request_id) if after is not None else (LAST, "")
        page = {"org_id": org_id, "until_us": until_us, "after_id": after_id, "page": most}

        def steps() -> Steps[list[Row]]:
            if key_ids is None:
                every: list[Row] = yield "results", page
                return every
            found: list[Row] = []
            for key_id in key_ids:
                found += yield "results_of_key", {**page, "key_id": key_id}
            found.sort(key=lambda row: (-row[4], row[0]))
            return found[:most]

        rows = await self._run("read", steps)
        return [Listed(_delivered(row[:4]), ResultKey(row[4], row[0])) for row in rows]

    async def charged_up_to(self, org_id: str, number: int = LAST) -> Charged:
        """What the ledger has of one organisation up to its event `number`, from its running total."""
        rows = await self._rows("charged_up_to", org_id=org_id, number=number)
        return Charged(*rows[0]) if rows else Charged(events=0, last_event=0, charged_micro_mxn=0)

    async def recount(self, org_id: str, number: int = LAST) -> Charged:
        """The same from the events themselves. It reads an organisation's whole history: for `verify`."""

        def steps() -> Steps[Charged]:
            (row,) = yield "recount", {"org_id": org_id, "number": number}
            return Charged(*row)

        return await self._run("scan", steps)

    async def missing_numbers(self, org_id: str, number: int, most: int) -> list[tuple[int, int]]:
        """Numbers up to this one of which the ledger has no event, as the first and the last of each gap."""

        def steps() -> Steps[list[tuple[int, int]]]:
            rows = yield "missing_numbers", {"org_id": org_id, "number": number, "most": most}
            return [(first, last) for first, last in rows]

        return await self._run("scan", steps)

    async def refunded_above(self) -> list[tuple[str, str, int, int]]:
        """Orders whose refunds together are above their charge: organisation, order, refunded, charged (rule 33)."""

        def steps() -> Steps[list[tuple[str, str, int, int]]]:
            rows = yield "refunded_above", {}
            return [(org_id, order_id, refunded, charged) for org_id, order_id, refunded, charged in rows]

        return await self._run("scan", steps)

    # --- what was set aside ---

    async def count_set_aside(self) -> int:
        """Entries that wait for a person."""
        return int((await self._rows("count_set_aside"))[0][0])

    async def set_asides(self, after: SetAside | None = None, most: int = PAGE) -> list[SetAside]:
        """A page of the entries that wait for a person, oldest first; the next one begins `after` the last of this."""
        at, partition, entry_id = (after.at, after.partition, after.entry_id) if after is not None else ("", -1, "")
        rows = await self._rows(
            "set_asides", after_at=at, after_partition=partition, after_entry_id=entry_id, page=most
        )
        return [_set_aside(row) for row in rows]

    async def set_aside(self, partition: int, entry_id: str) -> SetAside:
        """One entry, also if it was fed again since. Raises NotThere."""
        rows = await self._rows("set_aside_row", partition=partition, entry_id=entry_id)
        if not rows:
            raise NotThere(f"no event p{partition}-{entry_id} was set aside")
        return _set_aside(rows[0])

    async def set_aside_of(self, request_ids: Collection[str]) -> set[str]:
        """Those of these orders of which an event waits for a person: some hundreds at a time."""
        rows = await self._rows("set_aside_of", ids=_json(list(request_ids)))
        found = {told_of_kept(kept).request_id if request_id is None else request_id for request_id, kept in rows}
        return found & set(request_ids)

    async def end_set_aside(self, entry: SetAside, at: datetime, act: Act) -> bool:
        """It was put back into its stream; False where that was written down before."""

        def steps() -> Steps[bool]:
            values = {"partition": entry.partition, "entry_id": entry.entry_id, "at": at.isoformat()}
            ended = yield "end_set_aside", values
            yield from _note(act, at.isoformat())
            return bool(ended)

        return await self._run("write", steps)

    # --- gateways' journals ---

    async def open_incarnation(self, incarnation: UUID, at: datetime) -> None:
        """A gateway begins a journal: before it has admitted anything."""
        await self._write_one("open_incarnation", id=str(incarnation), at=at.isoformat())

    async def close_incarnation(
        self, incarnation: UUID, last_number: int, at: datetime, charged: Collection[str] = ()
    ) -> bool:
        """Everything that its journal says is in this ledger, up to its last number. Safe to repeat.

        False, and not closed, where one of the orders that it had as `charged` is not there any more: it was restored.
        """

        def steps() -> Steps[bool]:
            ends = (yield "ended", {"ids": _json([*charged])}) if charged else []
            if {*charged} - {row[0] for row in ends if row[1] == "charge"}:
                return False
            yield "close_incarnation", {"id": str(incarnation), "last_number": last_number, "at": at.isoformat()}
            return True

        return await self._run("write", steps)

    async def open_incarnations(self) -> list[UUID]:
        """Those whose journals may say more than this ledger knows, the oldest first."""
        return [UUID(row[0]) for row in await self._rows("open_incarnations")]

    async def incarnation(self, incarnation: UUID) -> Incarnation:
        """What is known of one, be it nothing."""
        return Incarnation(*(await self._rows("incarnation", id=str(incarnation)))[0])

    async def lose_incarnation(self, incarnation: UUID, reason: str, at: datetime, act: Act) -> bool:
        """Close one whose journal nobody has any more; False where it is closed already. Raises NotThere."""

        def steps() -> Steps[bool]:
            (row,) = yield "incarnation", {"id": str(incarnation)}
            known = Incarnation(*row)
            if known.closed_at is not None:
                return False
            if known.opened_at is None:
                raise NotThere(f"there is no journal {incarnation}: `ghub verify` names those that are open")
            yield "lose_incarnation", {"id": str(incarnation), "at": at.isoformat(), "reason": reason}
            yield from _note(act, at.isoformat())
            return True

        return await self._run("write", steps)

    async def _write_one(self, query: str, **values: Any) -> None:
        def steps() -> Steps[None]:
            yield query, values

        await self._run("write", steps)

    async def events(
        self, *, org_id: str | None = None, month: str | None = None, since_us: int = 0
    ) -> AsyncIterator[Event]:
        """Booked events that ended since then, by month, organisation and number, a page at a time."""
        # An event's month is that of its admission, which may be the one before its end's.
        first = period_at(since_us - DAY_US).month if since_us else ""
        after: dict[str, Any] = {"after_month": first, "after_org_id": "", "after_number": 0, "after_event_id": ""}
        since = {"org_id": org_id, "month": month, "since_us": since_us}
        while True:
            page = [event_of(row) for row in await self._rows("events", page=EVENTS, **since, **after)]
            for event in page:
                yield event
            if len(page) < EVENTS:
                return
            last = page[-1]
            after = {
                "after_month": last.opened.month,
                "after_org_id": last.opened.org_id,
                "after_number": last.number,
                "after_event_id": last.event_id,
            }


def _json(values: Sequence[str]) -> str:
    return orjson.dumps(list(values)).decode()


def _key(key_id: str) -> Steps[ApiKey]:
    rows = yield "key", {"key_id": key_id}
    if not rows:
        raise NotThere(f"there is no key {key_id!r}")
    return key_of(rows[0])


def _add_credit(
    org_id: str,
    credit_id: str,
    kind: CreditType,
    micro_mxn: int,
    at: str,
    order_id: str | None = None,
    reason: str | None = None,
) -> Steps[None]:
    """The organisation's next one, and word of it for Redis."""
    ((number, total),) = yield "last_credit", {"org_id": org_id}
    if abs(total + micro_mxn) > MAX_MICRO_MXN:
        raise WrongField("mxn", f"an organisation's credits stay within ±{format_mxn(MAX_MICRO_MXN)} MXN")
    values = {"id": credit_id, "org_id": org_id, "type": kind, "number": number + 1, "amount_micro_mxn": micro_mxn}
    yield "add_credit", {**values, "at": at, "order_id": order_id, "reason": reason}
    yield _change(org_id, "credit", at)


def _charge_of(rows: list[Row], order_id: str, org_id: str | None) -> Event:
    """The charge among the ends of an order of this organisation. Raises NotThere, LedgerError."""
    ends = [event_of(row[:-1]) for row in rows]
    if not ends or org_id not in (None, ends[0].opened.org_id):
        whose = " of this organisation" if org_id else ""
        raise NotThere(f"the ledger has no order {order_id!r}{whose}; a charge can be refunded once it is booked")
    for one in ends:
        if one.end == "charge":
            return one
    raise LedgerError(f"order {order_id!r} ended as {ends[0].end} ({ends[0].reason}): nothing was charged")


def _refundable(charge: Event, before: list[Refund], micro_mxn: int | None) -> int:
    """What is asked for, or all that is left. Raises WrongField, LedgerError where there is less, or nothing."""
    charged, refunded = charge.amount_micro_mxn, sum(one.amount_micro_mxn for one in before)
    told = f"order {charge.event_id!r} was charged {format_mxn(charged)} MXN"
    if refunded >= charged:
        last = before[-1]
        raise LedgerError(f"{told}, and is refunded whole already: {last.credit_id} of {last.at} was the last")
    left = charged - refunded
    if micro_mxn is not None and micro_mxn > left:
        raise WrongField(
            "mxn", f"{told}; {format_mxn(refunded)} MXN of it are refunded, {format_mxn(left)} MXN are left"
        )
    return left if micro_mxn is None else micro_mxn


def _unused_id(order_id: str, before: int) -> Steps[str]:
    """Of an order's next refund: by its number, unless somebody has given that id to another credit."""
    number = before + 1
    while (yield "credit", {"id": f"refund-{order_id}-{number}"}):
        number += 1
    return f"refund-{order_id}-{number}"


def _note(act: Act, at: str) -> Steps[None]:
    """Who did it, and under which idempotency key."""
    details = orjson.dumps(act.details).decode()
    values = {"actor": act.actor, "target": act.target, "at": at}
    yield "audit", {**values, "action": act.action, "org_id": act.org_id, "details": details}
    yield from _once(act, at)


def _once(act: Act, at: str) -> Steps[None]:
    """Its idempotency key alone, where it changed nothing: the key stands for this request all the same."""
    if act.once is not None:
        values = {"actor": act.actor, "target": act.target, "at": at}
        yield "add_write", {**values, "key": act.once.key, "fingerprint": act.once.fingerprint}


def _change(org_id: str, what: str, at: str) -> tuple[str, dict[str, str]]:
    return "change", {"org_id": org_id, "what": what, "at": at}


def _set_aside(row: Row) -> SetAside:
    """A row of the statements `set_asides` and `set_aside_row`; whose it is was not looked for by every version."""
    partition, entry_id, error, kept, request_id, org_id, at, fed_at = row
    if request_id is None:
        told = told_of_kept(kept)
        request_id, org_id = told.request_id, told.org_id
    return SetAside(partition, entry_id, error, kept, request_id, org_id, at, fed_at)


def _result_row(event: Event) -> dict[str, Any]:
    opened = event.opened
    return {
        "request_id": opened.request_id,
        "org_id": opened.org_id,
        "ended_us": event.ended_us,
        "document": event.result,
    }


def _delivered(row: Row) -> Delivered:
    request_id, images, document, key_id = row
    return Delivered(request_id, decode_images(images), document.encode(), key_id)
