"""What sinks have not taken yet, as metrics of the consumer."""

from datetime import datetime

import structlog
from prometheus_client import Gauge

from metering.clock import utc_now
from metering.ports import Outbox, SinkState

log = structlog.get_logger(__name__)

PENDING = Gauge("ghub_sink_pending", "Items that a sink has not taken yet, without those that are set aside", ["sink"])
OLDEST = Gauge("ghub_sink_oldest_seconds", "Age of the oldest pending item of a sink since it was booked", ["sink"])
SET_ASIDE = Gauge("ghub_sink_set_aside", "Items that a sink has refused for good, until they are sent again", ["sink"])


class Lag:
    """Reads the lag of every registered sink. `delivered` names those that this process delivers to."""

    def __init__(self, outbox: Outbox, delivered: frozenset[str]) -> None:
        self._outbox = outbox
        self._delivered = delivered
        self._known: set[str] = set()
        self._warned: set[str] = set()

    async def look(self) -> None:
        """Read it once. Raises LedgerAway."""
        states = await self._outbox.sinks()
        for name in self._known - {state.name for state in states}:
            for gauge in (PENDING, OLDEST, SET_ASIDE):
                gauge.remove(name)
        self._known = {state.name for state in states}
        for state in states:
            PENDING.labels(state.name).set(state.pending)
            OLDEST.labels(state.name).set(age_s(state) or 0.0)
            SET_ASIDE.labels(state.name).set(state.set_aside)
            if state.name not in self._delivered and state.name not in self._warned:
                self._warned.add(state.name)
                log.warning("sink_not_configured", sink=state.name, pending=state.pending)


def age_s(state: SinkState) -> float | None:
    """Compute the age of a sink's oldest pending item, in seconds; None if there is none."""
    if state.oldest_at is None:
        return None
    return max(0.0, (utc_now() - datetime.fromisoformat(state.oldest_at)).total_seconds())
