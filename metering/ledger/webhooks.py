"""Webhooks, their secrets, and the outbox of what they are sent (rule 36)."""

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import uuid4

import orjson

from config.settings import WEBHOOK_KEPT_D
from metering.ledger.rows import Row
from metering.ledger.transactions import Steps, Transactions, as_json, audit, once
from metering.ports import (
    PAGE,
    Act,
    ExpiringKey,
    LedgerError,
    NotThere,
    Webhook,
    WebhookCall,
    WebhookClaim,
    WebhookDelivery,
    WebhookEnd,
    WebhookLag,
    WebhookState,
    WebhookToSend,
    WrongField,
)

HEAD = 1_000
"""Deliveries that a claim looks at, in their turn: a millisecond or two."""

PAGED = 1_000
"""Deliveries that one transaction replays, sets aside or deletes: some milliseconds, and bookings have their turns."""

LATE = "its turn did not come within a day: the server answers too slowly"
DISABLED = "its webhook was disabled"


class WebhookRecords(Transactions):
    """Webhooks and their deliveries. No delivery takes the ledger's turn: a receiver that fails delays no booking."""

    async def add_webhook(self, webhook: Webhook, secret: str, most: int, act: Act) -> bool:
        """Add a webhook; `secret`, encrypted, becomes its organisation's if there is none. Returns whether it did.

        Raises LedgerError if the organisation has `most` already, or this URL.
        """

        def steps() -> Steps[bool]:
            org_id, at = webhook.org_id, webhook.created_at
            ((count,),) = yield "count_webhooks", {"org_id": org_id}
            if count >= most:
                raise LedgerError(f"the organisation has {count} webhooks, and may have {most}: disable one first")
            present = yield "webhooks_of", {"ids": as_json([org_id])}
            if any(one.url == webhook.url for one in map(_webhook, present)):
                raise WrongField("url", "the organisation has a webhook of this URL: disable it first")
            yield (
                "add_webhook",
                {
                    "webhook_id": webhook.webhook_id,
                    "org_id": org_id,
                    "url": webhook.url,
                    "events": as_json(webhook.events),
                    "created_at": at,
                },
            )
            is_first = not (yield "webhook_secrets", {"ids": as_json([org_id]), "now": at})
            if is_first:
                yield "add_webhook_secret", {"org_id": org_id, "at": at, "secret": secret}
            yield from audit(act, at)
            return is_first

        return await self._run("write", steps)

    async def rotate_webhook_secret(self, org_id: str, secret: str, at: datetime, until: datetime, act: Act) -> None:
        """Give an organisation another secret; those before it expire at `until`."""

        def steps() -> Steps[None]:
            yield "expire_webhook_secrets", {"org_id": org_id, "until": until.isoformat()}
            yield "add_webhook_secret", {"org_id": org_id, "at": at.isoformat(), "secret": secret}
            yield from audit(act, at.isoformat())

        await self._run("write", steps)

    async def webhook(self, webhook_id: str) -> Webhook:
        """Read one webhook. Raises NotThere."""
        return _one_webhook(await self._rows("webhook", webhook_id=webhook_id), webhook_id)

    async def webhooks(self, org_id: str) -> list[Webhook]:
        """Read an organisation's webhooks, oldest first, disabled ones too."""
        return [_webhook(row) for row in await self._rows("webhooks", org_id=org_id)]

    async def orgs_with_webhooks(self, after_id: str = "", most: int = PAGE) -> list[str]:
        """Read a page of the organisations that have a webhook, by their ids."""
        return [org_id for (org_id,) in await self._rows("orgs_with_webhooks", after_id=after_id, page=most)]

    async def disable_webhook(self, webhook_id: str, at: datetime, act: Act) -> Webhook:
        """Send nothing to a webhook any more: what waits for it is set aside. A second time changes nothing."""

        def steps() -> Steps[Webhook]:
            webhook = _one_webhook((yield "webhook", {"webhook_id": webhook_id}), webhook_id)
            if not (yield "disable_webhook", {"webhook_id": webhook_id, "at": at.isoformat()}):
                yield from once(act, at.isoformat())
                return webhook
            yield "give_up_webhook", {"webhook_id": webhook_id, "error": DISABLED, "at": at.isoformat()}
            yield from audit(replace(act, org_id=webhook.org_id), at.isoformat())
            return replace(webhook, disabled_at=at.isoformat())

        return await self._run("write", steps)

    async def call_webhooks(self, calls: Sequence[WebhookCall], at: datetime) -> None:
        """Put calls into the outbox, for each webhook that listens. What was put there before is not repeated."""
        if calls:
            await self._run("book", lambda: put_calls(calls, at.isoformat()))

    async def claim_webhooks(self, claim: WebhookClaim) -> list[WebhookToSend]:
        """Claim deliveries whose turn has come: nobody else is given them until the claim's lease ends."""
        now = claim.now.isoformat()
        if not await self._rows("webhooks_due", now=now):
            return []

        def steps() -> Steps[list[WebhookToSend]]:
            claimed = yield (
                "claim_webhooks",
                {
                    "now": now,
                    "lease": claim.lease.isoformat(),
                    "page": claim.most,
                    "head": HEAD,
                    "per_server": claim.per_server,
                    "busy": as_json([*claim.busy]),
                    "failing": as_json([*claim.failing]),
                },
            )
            if not claimed:
                return []
            kept = yield "webhook_secrets", {"ids": as_json(sorted({row[1] for row in claimed})), "now": now}
            secrets: dict[str, list[str]] = {}
            for org_id, secret in kept:
                secrets.setdefault(org_id, []).append(secret)
            return [WebhookToSend(*(*row, tuple(secrets.get(row[1], ())))) for row in claimed]

        return await self._run("book", steps)

    async def conclude_webhooks(self, ends: Sequence[WebhookEnd]) -> None:
        """Write down what became of deliveries that were claimed."""

        def steps() -> Steps[None]:
            for one in ends:
                yield (
                    "conclude_webhook",
                    {
                        "delivery_id": one.delivery_id,
                        "state": one.state,
                        "next_at": one.next_at.isoformat(),
                        "error": one.error,
                        "ended_at": None if one.state == "waiting" else one.at.isoformat(),
                        "lease": one.lease.isoformat(),
                    },
                )

        await self._run("book", steps)

    async def webhook_deliveries(
        self, org_id: str, state: WebhookState | None, before: tuple[str, str], most: int = PAGE
    ) -> list[WebhookDelivery]:
        """Read a page of an organisation's deliveries before a moment and id, the latest first."""
        before_at, before_id = before
        page = {"org_id": org_id, "state": state, "before_at": before_at, "before_id": before_id, "page": most}
        return [WebhookDelivery(*row) for row in await self._rows("webhook_deliveries", **page)]

    async def webhook_delivery(self, delivery_id: str) -> WebhookDelivery:
        """Read one delivery. Raises NotThere."""
        return _one_delivery(await self._rows("webhook_delivery", delivery_id=delivery_id), delivery_id)

    async def replay_delivery(self, delivery_id: str, at: datetime, act: Act) -> WebhookDelivery:
        """Send a delivery again, as if it were new, whatever became of it. Raises NotThere, LedgerError."""

        def steps() -> Steps[WebhookDelivery]:
            found = _one_delivery((yield "webhook_delivery", {"delivery_id": delivery_id}), delivery_id)
            if found.webhook_id is not None:
                _check_enabled(_one_webhook((yield "webhook", {"webhook_id": found.webhook_id}), found.webhook_id))
            yield "replay_delivery", {"delivery_id": delivery_id, "at": at.isoformat()}
            yield from audit(replace(act, org_id=found.org_id), at.isoformat())
            return _one_delivery((yield "webhook_delivery", {"delivery_id": delivery_id}), delivery_id)

        return await self._run("write", steps)

    async def replay_webhook(self, webhook_id: str, at: datetime, act: Act) -> int:
        """Send again what is set aside for a webhook; returns how many. Raises NotThere, LedgerError."""

        def begin() -> Steps[None]:
            webhook = _one_webhook((yield "webhook", {"webhook_id": webhook_id}), webhook_id)
            _check_enabled(webhook)
            yield from audit(replace(act, org_id=webhook.org_id), at.isoformat())

        await self._run("write", begin)
        return await self._paged("replay_webhook", webhook_id=webhook_id, at=at.isoformat())

    async def tidy_webhooks(self, at: datetime, late: datetime, old: datetime) -> int:
        """Set aside what waits since before `late`, and delete what ended before `old`; returns how many are late."""
        await self._paged("forget_webhooks", before=old.isoformat())
        return await self._paged("late_webhooks", at=at.isoformat(), before=late.isoformat(), error=LATE)

    async def webhook_lag(self, now: datetime, since: datetime) -> WebhookLag:
        """Count what waits, and what was set aside `since` a moment."""
        ((waiting, due_at, set_aside),) = await self._rows("webhook_lag", now=now.isoformat(), since=since.isoformat())
        return WebhookLag(waiting, due_at, set_aside)

    async def expiring_keys(
        self, now: datetime, until: datetime, after_id: str = "", most: int = PAGE
    ) -> list[ExpiringKey]:
        """Read a page of the keys of organisations with webhooks that end before `until`, by their ids."""
        span = {"now": now.isoformat(), "until": until.isoformat(), "after_id": after_id, "page": most}
        return [ExpiringKey(*row) for row in await self._rows("expiring_keys", **span)]

    async def _paged(self, query: str, **values: Any) -> int:
        """Run a statement page by page until it finds nothing; returns how many rows it changed."""

        def steps() -> Steps[int]:
            return len((yield query, {**values, "page": PAGED}))

        changed = 0
        while page := await self._run("book", steps):
            changed += page
        return changed


def put_calls(calls: Collection[WebhookCall], at: str) -> Steps[None]:
    """Put calls into the outbox: a row for each webhook that listens, and for the address that an order named."""
    if not calls:
        return
    org_ids = sorted({call.org_id for call in calls})
    webhooks = [_webhook(row) for row in (yield "webhooks_of", {"ids": as_json(org_ids)})]
    rows = []
    for call in calls:
        told = {one.url: one.webhook_id for one in webhooks if one.org_id == call.org_id and call.type in one.events}
        own = {} if call.url is None else {call.url: None}
        rows += [_delivery(call, url, webhook_id, at) for url, webhook_id in (own | told).items()]
    if rows:
        yield "add_webhook_deliveries", rows


def _delivery(call: WebhookCall, url: str, webhook_id: str | None, at: str) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid4().hex}",
        "org_id": call.org_id,
        "webhook_id": webhook_id,
        "url": url,
        "server": url.partition("://")[2].partition("/")[0].partition("?")[0].lower(),
        "type": call.type,
        "subject": call.subject,
        "body": call.body,
        "at": at,
        "state": "waiting",
        "since": at,
        "next_at": at,
    }


def _webhook(row: Row) -> Webhook:
    webhook_id, org_id, url, events, created_at, disabled_at = row
    return Webhook(webhook_id, org_id, url, tuple(orjson.loads(events)), created_at, disabled_at)


def _one_webhook(rows: Sequence[Row], webhook_id: str) -> Webhook:
    if not rows:
        raise NotThere(f"there is no webhook {webhook_id!r}")
    return _webhook(rows[0])


def _one_delivery(rows: Sequence[Row], delivery_id: str) -> WebhookDelivery:
    if not rows:
        raise NotThere(f"there is no delivery {delivery_id!r}; what ended is kept for {WEBHOOK_KEPT_D} days")
    return WebhookDelivery(*rows[0])


def _check_enabled(webhook: Webhook) -> None:
    if webhook.disabled_at is not None:
        raise LedgerError(f"webhook {webhook.webhook_id!r} is disabled: add its URL again for events from now on")
