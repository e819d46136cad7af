"""Events that could not be booked (rule 30)."""

from collections.abc import Collection
from datetime import datetime

from metering.aside import facts_of_kept
from metering.ledger.rows import Row
from metering.ledger.transactions import Steps, Transactions, as_json, audit
from metering.ports import PAGE, Act, NotThere, SetAside


class AsideRecords(Transactions):
    """Set-aside events, which do not delay other events."""

    async def count_set_aside(self) -> int:
        """Count entries that wait for a person."""
        return int((await self._rows("count_set_aside"))[0][0])

    async def set_asides(self, after: SetAside | None = None, most: int = PAGE) -> list[SetAside]:
        """Read a page of entries that wait for a person, oldest first; the next page begins `after` this one's last."""
        at, partition, entry_id = (after.at, after.partition, after.entry_id) if after is not None else ("", -1, "")
        rows = await self._rows(
            "set_asides", after_at=at, after_partition=partition, after_entry_id=entry_id, page=most
        )
        return [_set_aside(row) for row in rows]

    async def set_aside(self, partition: int, entry_id: str) -> SetAside:
        """Read one entry, even if it was fed again. Raises NotThere."""
        rows = await self._rows("set_aside_row", partition=partition, entry_id=entry_id)
        if not rows:
            raise NotThere(f"no event p{partition}-{entry_id} was set aside")
        return _set_aside(rows[0])

    async def set_aside_of(self, order_ids: Collection[str]) -> set[str]:
        """Find which of these orders have an event that waits for a person; call it with some hundreds at a time."""
        rows = await self._rows("set_aside_of", ids=as_json(list(order_ids)))
        found = {facts_of_kept(kept).order_id if order_id is None else order_id for order_id, kept in rows}
        return found & set(order_ids)

    async def end_set_aside(self, entry: SetAside, at: datetime, act: Act) -> bool:
        """Record that an entry was put back into its stream; False if that was recorded before."""

        def steps() -> Steps[bool]:
            values = {"partition": entry.partition, "entry_id": entry.entry_id, "at": at.isoformat()}
            ended = yield "end_set_aside", values
            yield from audit(act, at.isoformat())
            return bool(ended)

        return await self._run("write", steps)


def _set_aside(row: Row) -> SetAside:
    """Build an entry from a row of `set_asides` or `set_aside_row`. Old versions did not write whose it is."""
    partition, entry_id, error, kept, order_id, org_id, at, fed_at = row
    if order_id is None:
        facts = facts_of_kept(kept)
        order_id, org_id = facts.order_id, facts.org_id
    return SetAside(partition, entry_id, error, kept, order_id, org_id, at, fed_at)
