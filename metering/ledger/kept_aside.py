"""Events that nobody could book (rule 30)."""

from collections.abc import Collection
from datetime import datetime

from metering.aside import told_of_kept
from metering.ledger.rows import Row
from metering.ledger.transactions import Steps, Transactions, as_json, audit
from metering.ports import PAGE, Act, NotThere, SetAside


class AsideRecords(Transactions):
    """They hold up no other."""

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
        rows = await self._rows("set_aside_of", ids=as_json(list(request_ids)))
        found = {told_of_kept(kept).request_id if request_id is None else request_id for request_id, kept in rows}
        return found & set(request_ids)

    async def end_set_aside(self, entry: SetAside, at: datetime, act: Act) -> bool:
        """It was put back into its stream; False where that was written down before."""

        def steps() -> Steps[bool]:
            values = {"partition": entry.partition, "entry_id": entry.entry_id, "at": at.isoformat()}
            ended = yield "end_set_aside", values
            yield from audit(act, at.isoformat())
            return bool(ended)

        return await self._run("write", steps)


def _set_aside(row: Row) -> SetAside:
    """A row of the statements `set_asides` and `set_aside_row`; whose it is was not looked for by every version."""
    partition, entry_id, error, kept, request_id, org_id, at, fed_at = row
    if request_id is None:
        told = told_of_kept(kept)
        request_id, org_id = told.request_id, told.org_id
    return SetAside(partition, entry_id, error, kept, request_id, org_id, at, fed_at)
