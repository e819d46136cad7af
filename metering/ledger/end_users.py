"""Whom a pseudonym stands for. Unlike the rest this is no record: it may be erased, and the events stay as they are."""

from collections.abc import Sequence
from datetime import datetime

from metering.ledger.rows import fields
from metering.ledger.transactions import Steps, Transactions, audit
from metering.ports import Act, EndUser, EndUserUse, LabelUse


class EndUserRecords(Transactions):
    """End users of organisations, and what was charged for them."""

    async def pseudonym_secret(self) -> str:
        """Read what all pseudonyms of this ledger are keyed by."""
        ((secret,),) = await self._rows("pseudonym_secret")
        return str(secret)

    async def tell_end_users(self, told: Sequence[EndUser]) -> None:
        """Write down whom these pseudonyms stand for, unless they were erased after they were used."""

        def steps() -> Steps[None]:
            # Sorted, so that two gateways with the same end users never deadlock.
            yield "tell_end_users", [fields(one) for one in sorted(told, key=lambda one: (one.org_id, one.pseudonym))]

        # As the only writer: an erasure is then either before this or after it.
        await self._run("write", steps)

    async def end_user(self, org_id: str, pseudonym: str) -> EndUserUse:
        """Read whom a pseudonym stands for, if that is there, and what was charged for this end user."""

        def steps() -> Steps[EndUserUse]:
            values = {"org_id": org_id, "pseudonym": pseudonym}
            told = yield "end_user", values
            used = yield "used_by", values
            value, told_at = told[0] if told else (None, None)
            return EndUserUse(pseudonym, value, told_at, tuple(LabelUse(*row) for row in used))

        return await self._run("report", steps)

    async def erase_end_user(self, org_id: str, pseudonym: str, at: datetime, act: Act) -> bool:
        """Erase whom a pseudonym stands for; returns whether it was there. The act is written down in any case.

        What a gateway tells later of an order before this moment is not written any more.
        """

        def steps() -> Steps[bool]:
            erased = yield "erase_end_user", {"org_id": org_id, "pseudonym": pseudonym}
            yield from audit(act, at.isoformat())
            return bool(erased)

        return await self._run("write", steps)
