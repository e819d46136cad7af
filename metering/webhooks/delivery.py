"""Delivery of webhooks: what is due is claimed, signed and sent, and then ended, sent again later, or set aside."""

import asyncio
import random
from collections import Counter as Tally
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NoReturn, Protocol

import structlog
from prometheus_client import Counter

from config.settings import (
    WEBHOOK_LEASE_S,
    WEBHOOK_PATIENCE_S,
    WEBHOOK_PAUSES_S,
    WEBHOOK_POLL_S,
    WEBHOOKS_AT_ONCE,
    WEBHOOKS_PER_SERVER,
)
from metering.background import cancel_all, error_fields, until_one_ends
from metering.clock import utc_now
from metering.ports import LedgerAway, WebhookClaim, WebhookEnd, WebhookOutbox, WebhookToSend
from metering.webhooks.sealing import CannotOpen, SecretsKey
from metering.webhooks.signature import signed_headers

log = structlog.get_logger(__name__)

MAX_FAILING = 10_000
"""Servers that are remembered as failing. Beyond, all are tried anew: an order may name any host."""

NO_SECRET = "the organisation has no webhook secret: `ghub webhook rotate ORG` makes one"  # noqa: S105  # a sentence
OTHER_KEY = "its secret cannot be opened with this GHUB_SECRETS_KEY"

SENT = Counter("ghub_webhook_deliveries_total", "Attempts to deliver to a webhook, by how they ended", ["outcome"])
for _outcome in ("delivered", "failed", "set_aside"):
    SENT.labels(_outcome)


class WebhookSender(Protocol):
    """Posts to a receiver within a bound of time."""

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> str | None:
        """Send it; returns why it was not delivered, for a person, or None."""


@dataclass(frozen=True, slots=True)
class WebhookPace:
    """How patient deliveries are, in seconds; the reasons are in `config.settings`."""

    poll_s: float = WEBHOOK_POLL_S
    lease_s: float = WEBHOOK_LEASE_S
    pauses_s: tuple[float, ...] = WEBHOOK_PAUSES_S
    patience_s: float = WEBHOOK_PATIENCE_S


class WebhookDelivering:
    """All deliveries of one process. Each is a task of its own, and those to one server leave room for the others."""

    def __init__(
        self, outbox: WebhookOutbox, sender: WebhookSender, key: SecretsKey, pace: WebhookPace | None = None
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._key = key
        self._pace = pace or WebhookPace()
        self._lanes: Tally[str] = Tally()
        self._failing: set[str] = set()
        self._ends: list[WebhookEnd] = []

    async def run(self) -> NoReturn:
        """Deliver until cancelled. What is under way then is sent again by whoever comes next, under the same ids."""
        under_way: set[asyncio.Task[None]] = set()
        self._lanes.clear()  # of a run before, which a fault has ended
        try:
            while True:
                try:
                    await self._conclude()
                    claimed, lease = await self._claim(WEBHOOKS_AT_ONCE - len(under_way))
                except LedgerAway as error:
                    log.warning("webhooks_wait_for_the_ledger", **error_fields(error))
                    await asyncio.sleep(self._pace.poll_s)
                    continue
                self._lanes.update(one.lane for one in claimed)
                under_way |= {asyncio.create_task(self._deliver(one, lease)) for one in claimed}
                if not claimed:
                    under_way = await until_one_ends(under_way, self._pace.poll_s)
        finally:
            await cancel_all(under_way)

    async def _conclude(self) -> None:
        """Write down what has ended. If the ledger is away for longer than a claim, all is sent again."""
        if ends := self._ends[:]:
            await self._outbox.conclude_webhooks(ends)
            del self._ends[: len(ends)]

    async def _claim(self, most: int) -> tuple[list[WebhookToSend], datetime]:
        """Claim what is due, of no server more than its share."""
        now = utc_now()
        lease = now + timedelta(seconds=self._pace.lease_s)
        if most <= 0:
            return [], lease
        busy = [lane for lane, sent in self._lanes.items() if sent >= self._share(lane)]
        claim = WebhookClaim(now, lease, most, WEBHOOKS_PER_SERVER, busy, self._failing)
        return await self._outbox.claim_webhooks(claim), lease

    def _share(self, lane: str) -> int:
        return 1 if lane in self._failing else WEBHOOKS_PER_SERVER

    async def _deliver(self, one: WebhookToSend, lease: datetime) -> None:
        why = await self._send(one)
        self._lanes[one.lane] -= 1
        if not self._lanes[one.lane]:
            del self._lanes[one.lane]
        if why is None:
            self._failing.discard(one.lane)
        elif len(self._failing) < MAX_FAILING:
            self._failing.add(one.lane)
        else:
            self._failing = {one.lane}
        self._ends.append(self._end(one, lease, why))

    async def _send(self, one: WebhookToSend) -> str | None:
        """Sign it and send it; returns why it was not delivered, or None."""
        if not one.secrets:
            return NO_SECRET
        try:
            keys = [self._key.open(sealed, one.org_id) for sealed in one.secrets]
        except CannotOpen:
            log.error("webhook_secret_unreadable", org_id=one.org_id)
            return OTHER_KEY
        body = one.body.encode()
        headers = signed_headers(one.delivery_id, utc_now(), body, keys)
        return await self._sender.send(one.url, {**headers, "content-type": "application/json"}, body)

    def _end(self, one: WebhookToSend, lease: datetime, why: str | None) -> WebhookEnd:
        """Decide what becomes of a delivery after an attempt."""
        now = utc_now()
        if why is None:
            SENT.labels("delivered").inc()
            return WebhookEnd(one.delivery_id, "delivered", now, lease, now)
        pauses_s = self._pace.pauses_s
        waited = now - datetime.fromisoformat(one.since)
        if one.attempts > len(pauses_s) or waited > timedelta(seconds=self._pace.patience_s):
            SENT.labels("set_aside").inc()
            log.error("webhook_set_aside", delivery=one.delivery_id, org_id=one.org_id, type=one.type, error=why)
            return WebhookEnd(one.delivery_id, "set_aside", now, lease, now, why)
        SENT.labels("failed").inc()
        log.info("webhook_failed", delivery=one.delivery_id, org_id=one.org_id, attempts=one.attempts, error=why)
        pause_s = pauses_s[one.attempts - 1] * random.uniform(0.8, 1.2)  # noqa: S311  # jitter, no secret
        return WebhookEnd(one.delivery_id, "waiting", now, lease, now + timedelta(seconds=pause_s), why)
