"""The outbox: what each sink has not taken yet, written by the database with what is booked (rule 36)."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any

from metering.clock import day_end_us, day_start_us, next_month, utc_at
from metering.ledger.transactions import Steps, Transactions, as_json, audit
from metering.ports import (
    PAGE,
    Act,
    Conclusion,
    ItemKind,
    ItemSetAside,
    NotThere,
    SinkState,
    Sold,
    ToSend,
)

KINDS: tuple[ItemKind, ...] = ("charge", "refund")

AGAIN = 2_000
"""Items that one transaction puts into the outbox: some milliseconds, between which bookings have their turn."""

NOTED = timedelta(seconds=5)
"""How exactly a sink's last delivery is known: its row is not written for each."""

_READ: Mapping[ItemKind, str] = {"charge": "charges_to_send", "refund": "refunds_to_send"}
_PUT: Mapping[ItemKind, str] = {"charge": "put_into_outbox", "refund": "put_refunds_into_outbox"}


class OutboxRecords(Transactions):
    """Sinks and their items. Nothing here takes the ledger's turn: a sink that hammers delays no booking."""

    async def register_sinks(self, sinks: Mapping[str, str], at: datetime) -> None:
        """Register sinks with their profiles, by name. What is booked from then on is for them."""

        def steps() -> Steps[None]:
            for name, profile in sorted(sinks.items()):
                yield "register_sink", {"name": name, "profile": profile, "at": at.isoformat()}

        await self._run("book", steps)

    async def sinks(self) -> list[SinkState]:
        """Read all registered sinks, by name, and count what they have not taken: half a second for a million items."""

        def steps() -> Steps[list[SinkState]]:
            found = []
            for name, profile, since, delivered_at, error in (yield "sinks", {}):
                ((pending, oldest_at),) = yield "undelivered", {"sink": name}
                ((set_aside,),) = yield "count_outbox_set_aside", {"sink": name}
                found.append(SinkState(name, profile, since, delivered_at, error, pending, oldest_at, set_aside))
            return found

        return await self._run("report", steps)

    async def remove_sink(self, name: str, at: datetime, act: Act) -> int:
        """Forget a sink with its items; returns how many those were. Raises NotThere."""

        def remove() -> Steps[bool]:
            removed = yield "remove_sink", {"name": name}
            if removed:
                yield from audit(act, at.isoformat())
            return bool(removed)

        def items() -> Steps[int]:
            return len((yield "remove_from_outbox", {"sink": name, "page": AGAIN}))

        removed = await self._run("write", remove)
        items_removed = 0
        while page := await self._run("book", items):
            items_removed += page
        if not removed and not items_removed:
            raise NotThere(f"there is no sink {name!r}")
        return items_removed

    async def claim_items(self, sink: str, now: datetime, lease: datetime, most: int) -> list[ToSend]:
        """Claim items whose turn has come, at most `most`: nobody else is given them until `lease`."""

        def steps() -> Steps[list[ToSend]]:
            claim = {"sink": sink, "now": now.isoformat(), "lease": lease.isoformat(), "page": most}
            claimed = yield "claim_outbox", claim
            found = []
            for kind in KINDS:
                attempts = {item_id: count for item_id, item_kind, count in claimed if item_kind == kind}
                if attempts:
                    sold = [Sold(*row) for row in (yield _READ[kind], {"ids": as_json([*attempts])})]
                    found += [ToSend(kind, one.event_id, attempts[one.event_id], one) for one in sold]
            return found

        return await self._run("book", steps)

    async def conclude_items(self, sink: str, conclusions: Sequence[Conclusion], lease: datetime) -> None:
        """Write down what became of items that were claimed with this `lease`."""

        def steps() -> Steps[None]:
            for one in conclusions:
                by_kind = sorted(one.items, key=lambda item: (item.kind, item.item_id))
                for kind, items in groupby(by_kind, key=lambda item: item.kind):
                    which = {"sink": sink, "kind": kind, "ids": as_json([item.item_id for item in items])}
                    if one.what == "delivered":
                        yield "delivered", which
                    elif one.what == "later":
                        next_at = one.next_at or one.at
                        yield (
                            "send_later",
                            {**which, "next_at": next_at.isoformat(), "error": one.error, "lease": lease.isoformat()},
                        )
                    else:
                        yield (
                            "set_item_aside",
                            {**which, "at": one.at.isoformat(), "error": one.error, "lease": lease.isoformat()},
                        )
            errors = [one.error for one in conclusions if one.what != "delivered" and one.error]
            delivered = [one.at for one in conclusions if one.what == "delivered"]
            if errors:
                yield "sink_failed", {"sink": sink, "error": errors[0]}
            if delivered and not errors:
                at = max(delivered)
                yield "sink_took", {"sink": sink, "at": at.isoformat(), "before": (at - NOTED).isoformat()}

        await self._run("book", steps)

    async def items_set_aside(
        self, sink: str, after: ItemSetAside | None = None, most: int = PAGE
    ) -> list[ItemSetAside]:
        """Read a page of what a sink has refused for good, oldest first. Raises NotThere."""
        await self._check_registered(sink)
        last = {"after_at": "", "after_id": "", "after_kind": ""}
        if after is not None:
            last = {"after_at": after.set_aside_at, "after_id": after.item_id, "after_kind": after.kind}
        return [ItemSetAside(*row) for row in await self._rows("outbox_set_aside", sink=sink, page=most, **last)]

    async def send_again(self, sink: str, at: datetime) -> int:
        """Send what is set aside again; returns how many items. Raises NotThere."""

        def steps() -> Steps[int]:
            return len((yield "send_again", {"sink": sink, "at": at.isoformat(), "page": AGAIN}))

        await self._check_registered(sink)
        again = 0
        while page := await self._run("book", steps):
            again += page
        return again

    async def send_days_again(self, sink: str, first: str, last: str, at: datetime) -> AsyncIterator[int]:
        """Put all charges of some days of Mexico City into the outbox, and the refunds given on them.

        Yields how many items after each page. What is there already is sent once. Raises NotThere.
        """
        await self._check_registered(sink)
        month = first[:7]
        while month <= last[:7]:
            after: dict[str, Any] = {"after_org_id": "", "after_number": 0, "after_event_id": ""}
            span = {"month": month, "first": first, "last": last, "page": AGAIN}
            while rows := await self._rows("charges_of_days", **span, **after):
                yield await self._put("charge", sink, [row[0] for row in rows], at)
                after = dict(zip(after, (rows[-1][1], rows[-1][2], rows[-1][0]), strict=True))
            month = next_month(month)
        given = {
            "first_at": utc_at(day_start_us(first)).isoformat(),
            "end_at": utc_at(day_end_us(last)).isoformat(),
            "page": AGAIN,
        }
        after = {"after_at": "", "after_org_id": "", "after_number": 0}
        while rows := await self._rows("refunds_of_days", **given, **after):
            yield await self._put("refund", sink, [row[0] for row in rows], at)
            after = dict(zip(after, (rows[-1][3], rows[-1][1], rows[-1][2]), strict=True))

    async def _put(self, kind: ItemKind, sink: str, ids: Sequence[str], at: datetime) -> int:
        def steps() -> Steps[int]:
            yield _PUT[kind], {"sink": sink, "ids": as_json(ids), "at": at.isoformat()}
            return len(ids)

        return await self._run("book", steps)

    async def _check_registered(self, sink: str) -> None:
        known = [row[0] for row in await self._rows("sinks")]
        if sink not in known:
            told = ", ".join(known) or "none; a consumer registers those of GHUB_SINKS when it starts"
            raise NotThere(f"there is no sink {sink!r}; there is: {told}")
