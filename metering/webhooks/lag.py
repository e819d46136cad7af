"""Deliveries that wait or are set aside, as metrics of the consumer."""

from datetime import datetime, timedelta

import structlog
from prometheus_client import Gauge

from metering.clock import utc_now
from metering.ports import WebhookOutbox

log = structlog.get_logger(__name__)

RECENT = timedelta(days=1)
"""How long one that was given up is told."""

WAITING = Gauge("ghub_webhooks_waiting", "Deliveries to webhooks that wait for their turn or their next attempt")
OLDEST = Gauge("ghub_webhooks_oldest_seconds", "How long the oldest delivery waits since its turn has come")
ASIDE = Gauge("ghub_webhooks_set_aside", "Deliveries that were given up within a day, and not replayed since")


class WebhookLagWatch:
    """Reads the lag. Without `delivers`, this process has no GHUB_SECRETS_KEY, and delivers nothing."""

    def __init__(self, outbox: WebhookOutbox, *, delivers: bool) -> None:
        self._outbox = outbox
        self._delivers = delivers

    async def look(self) -> None:
        """Read it once. Raises LedgerAway."""
        now = utc_now()
        lag = await self._outbox.webhook_lag(now, now - RECENT)
        WAITING.set(lag.waiting)
        ASIDE.set(lag.set_aside)
        OLDEST.set(0.0 if lag.due_at is None else (now - datetime.fromisoformat(lag.due_at)).total_seconds())
        if lag.waiting and not self._delivers:
            log.error("webhooks_without_key", waiting=lag.waiting)
