"""What no event tells: keys and models that end soon. Each is told once, some days before; old deliveries go."""

from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta

import structlog

from config.settings import WEBHOOK_KEPT_D, WEBHOOK_PATIENCE_S
from metering.clock import utc_now
from metering.ports import PAGE, WebhookCall, WebhookOutbox
from metering.webhooks.calls import key_call, model_call
from metering.webhooks.delivery import SENT

log = structlog.get_logger(__name__)

KEY_DAYS = (1, 7)
MODEL_DAYS = (1, 7, 30)
"""How many days before its end it is told, the last first."""

CALLS = 500
"""Calls that one transaction writes: some milliseconds."""


class Lookout:
    """`shutdowns` gives the day on which each model ends that has one. `clock` is for tests."""

    def __init__(
        self,
        outbox: WebhookOutbox,
        shutdowns: Callable[[], Mapping[str, date]],
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        self._outbox = outbox
        self._shutdowns = shutdowns
        self._clock = clock

    async def look(self) -> None:
        """Look once. Raises LedgerAway, CatalogueError."""
        now = self._clock()
        await self._tidy(now)
        await self._keys(now)
        await self._models(now)

    async def _tidy(self, now: datetime) -> None:
        late, old = now - timedelta(seconds=WEBHOOK_PATIENCE_S), now - timedelta(days=WEBHOOK_KEPT_D)
        if count := await self._outbox.tidy_webhooks(now, late, old):
            SENT.labels("set_aside").inc(count)
            log.error("webhooks_late", deliveries=count)

    async def _keys(self, now: datetime) -> None:
        after_id = ""
        while keys := await self._outbox.expiring_keys(now, now + timedelta(days=max(KEY_DAYS)), after_id):
            calls = []
            for key in keys:
                days = _days(datetime.fromisoformat(key.expires_at), now, KEY_DAYS)
                if days is not None:
                    calls.append(key_call(key, days, now))
            await self._call(calls, now)
            after_id = keys[-1].key_id

    async def _models(self, now: datetime) -> None:
        soon = []
        for model, ends in self._shutdowns().items():
            days = _days(datetime.combine(ends, time(), UTC), now, MODEL_DAYS)
            if days is not None:
                soon.append((model, ends, days))
        after_id = ""
        while soon and (org_ids := await self._outbox.orgs_with_webhooks(after_id, PAGE)):
            calls = [model_call(org_id, *one, now) for org_id in org_ids for one in soon]
            await self._call(calls, now)
            after_id = org_ids[-1]

    async def _call(self, calls: list[WebhookCall], now: datetime) -> None:
        for first in range(0, len(calls), CALLS):
            await self._outbox.call_webhooks(calls[first : first + CALLS], now)


def _days(ends: datetime, now: datetime, told: tuple[int, ...]) -> int | None:
    """Choose the nearest of the days before an end; None if it is past or too far."""
    return next((days for days in told if timedelta(0) < ends - now <= timedelta(days=days)), None)
