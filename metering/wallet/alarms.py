"""Alarms of the wallets and their ledger, which a person must look at (rule 10)."""

import structlog
from prometheus_client import Counter

from metering.money import format_mxn

log = structlog.get_logger(__name__)

BELOW_ZERO = Counter(
    "ghub_balance_below_zero_total", "Charges, adjustments and rebuilds that left a balance lower, and below zero"
)
RESTORED = Counter(
    "ghub_ledger_restored_total", "Times that this process saw that the ledger lacks what it had committed"
)


def ledger_restored(**facts: object) -> None:
    """Count and log that the ledger lacks what it had committed: whoever sees it first, and by what."""
    RESTORED.inc()
    log.error("ledger_restored", **facts)


def below_zero(org_id: str, micro_mxn: int, **cause: str) -> None:
    """Count and log a step that left a balance `micro_mxn` below zero; 0 means that it did not."""
    if micro_mxn:
        BELOW_ZERO.inc()
        log.error("balance_below_zero", org=org_id, balance_mxn=format_mxn(-micro_mxn), **cause)
