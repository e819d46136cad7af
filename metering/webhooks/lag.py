"""Deliveries that wait or are set aside, as metrics of the consumer."""

from datetime import datetime

import structlog
from prometheus_client import Gauge

from metering.clock import utc_now
from metering.ports import WebhookOutbox

log = structlog.get_logger(__name__)

WAITING = Gauge("ghub_webhooks_waiting", "Deliveries to webhooks that wait for their turn or their next attempt")
OLDEST = Gauge("ghub_webhooks_oldest_seconds", "Age of the oldest waiting delivery since its first attempt was due")
ASIDE = Gauge("ghub_webhooks_set_aside", "Deliveries that were given up, until they are replayed or forgotten")


class WebhookLagWatch:
    """Reads the lag. Without `delivers`, this process has no GHUB_SECRETS_KEY, and delivers nothing."""

    def __init__(self, outbox: WebhookOutbox, *, delivers: bool) -> None:
        self._outbox = outbox
        self._delivers = delivers

    async def look(self) -> None:
        """Read it once. Raises LedgerAway."""
        lag = await self._outbox.webhook_lag()
        WAITING.set(lag.waiting)
        ASIDE.set(lag.set_aside)
        oldest = None if lag.oldest_at is None else utc_now() - datetime.fromisoformat(lag.oldest_at)
        OLDEST.set(0.0 if oldest is None else max(0.0, oldest.total_seconds()))
        if lag.waiting and not self._delivers:
            log.error("webhooks_without_key", waiting=lag.waiting)
