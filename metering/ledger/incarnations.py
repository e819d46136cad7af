"""Gateways' journals: opened, closed, or lost for good (rules 12, 15)."""

from collections.abc import Collection
from datetime import datetime
from uuid import UUID

from metering.ledger.transactions import Steps, Transactions, as_json, audit
from metering.ports import Act, Incarnation, NotThere


class IncarnationRecords(Transactions):
    """One row for each start of a gateway."""

    async def open_incarnation(self, incarnation: UUID, at: datetime, host: str = "") -> None:
        """Register the journal of a gateway on this host, before it has admitted anything."""
        await self._write_one("open_incarnation", id=str(incarnation), at=at.isoformat(), host=host)

    async def close_incarnation(
        self, incarnation: UUID, last_number: int, at: datetime, charged: Collection[str] = ()
    ) -> bool:
        """Close a journal: everything in it, up to its last number, is in this ledger. Safe to repeat.

        Returns False, and does not close it, if one of its `charged` orders is no longer there: the ledger was
        restored.
        """

        def steps() -> Steps[bool]:
            ends = (yield "ended", {"ids": as_json([*charged])}) if charged else []
            if {*charged} - {row[0] for row in ends if row[1] == "charge"}:
                return False
            yield "close_incarnation", {"id": str(incarnation), "last_number": last_number, "at": at.isoformat()}
            return True

        return await self._run("write", steps)

    async def open_incarnations(self) -> list[UUID]:
        """List journals that may contain more than this ledger, the oldest first."""
        return [UUID(row[0]) for row in await self._rows("open_incarnations")]

    async def incarnation(self, incarnation: UUID) -> Incarnation:
        """Read what is known of one journal, which may be nothing."""
        return Incarnation(*(await self._rows("incarnation", id=str(incarnation)))[0])

    async def lose_incarnation(self, incarnation: UUID, reason: str, at: datetime, act: Act) -> bool:
        """Close a journal that is lost; False if it is closed already. Raises NotThere."""

        def steps() -> Steps[bool]:
            (row,) = yield "incarnation", {"id": str(incarnation)}
            known = Incarnation(*row)
            if known.closed_at is not None:
                return False
            if known.opened_at is None:
                raise NotThere(f"there is no journal {incarnation}: `ghub verify` names those that are open")
            yield "lose_incarnation", {"id": str(incarnation), "at": at.isoformat(), "reason": reason}
            yield from audit(act, at.isoformat())
            return True

        return await self._run("write", steps)
