"""The audit log, and writes under an idempotency key."""

from datetime import datetime

from metering.ledger.transactions import Steps, Transactions, audit
from metering.ports import Act, Audit


class AuditRecords(Transactions):
    """Audit rows that are not written together with a change."""

    async def written(self, actor: str, key: str) -> tuple[str, str] | None:
        """Find the request under this idempotency key, and its target."""
        rows = await self._rows("written", actor=actor, key=key)
        return (rows[0][0], rows[0][1]) if rows else None

    async def audits(
        self, org_id: str | None, before: int, most: int, *, actor: str | None = None, action: str | None = None
    ) -> list[Audit]:
        """Read a page of the audit log, the latest first, below the row `before`."""
        parameters = {"org_id": org_id, "actor": actor, "action": action}
        return [Audit(*row) for row in await self._rows("audits", **parameters, before=before, page=most)]

    async def note(self, act: Act, at: datetime) -> None:
        """Write down what was done outside this record."""

        def steps() -> Steps[None]:
            yield from audit(act, at.isoformat())

        await self._run("write", steps)
