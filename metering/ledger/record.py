"""The record: everything that a ledger keeps, in either database."""

from metering.ledger.adjustments import AdjustmentRecords
from metering.ledger.audits import AuditRecords
from metering.ledger.booked import EventRecords
from metering.ledger.credits import CreditRecords
from metering.ledger.end_users import EndUserRecords
from metering.ledger.incarnations import IncarnationRecords
from metering.ledger.kept_aside import AsideRecords
from metering.ledger.months import MonthRecords
from metering.ledger.orgs import OrgRecords
from metering.ledger.outbox import OutboxRecords
from metering.ledger.prices import PriceRecords
from metering.ledger.projected import ProjectedRecords
from metering.ledger.queries import pending
from metering.ledger.reconciled import ReconciliationRecords
from metering.ledger.statements import StatementRecords
from metering.ledger.transactions import Steps
from metering.ledger.webhooks import WebhookRecords
from metering.ports import LedgerError


class SqlLedger(
    OrgRecords,
    AuditRecords,
    CreditRecords,
    AdjustmentRecords,
    PriceRecords,
    ProjectedRecords,
    EventRecords,
    AsideRecords,
    EndUserRecords,
    IncarnationRecords,
    MonthRecords,
    OutboxRecords,
    ReconciliationRecords,
    StatementRecords,
    WebhookRecords,
):
    """Everything of a ledger except the database itself. Every method may raise LedgerAway."""

    async def check_schema(self) -> None:
        """Raise LedgerError if the schema is not the one that this version needs."""

        def steps() -> Steps[int]:
            ((migrated,),) = yield "is_migrated", {}
            ((current,),) = (yield "schema_version", {}) if migrated else [(0,)]
            return int(current)

        current = await self._run("read", steps)
        if missing := pending(self.dialect, current):
            raise LedgerError(
                f"the ledger's schema is version {current}, this needs {missing[-1][0]}: run `ghub migrate`"
            )
