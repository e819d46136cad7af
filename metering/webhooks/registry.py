"""Changes that commands and the admin API make to webhooks. Each is written to the audit log."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

from metering.clock import utc_now
from metering.ports import Act, IdempotentWrite, Ledger, LedgerError, Webhook, WebhookDelivery, WrongField
from metering.webhooks.calls import TYPES
from metering.webhooks.sealing import SecretsKey
from metering.webhooks.signature import new_secret

MAX_WEBHOOKS = 20
"""Of an organisation. Each costs a row and a request for each event."""

LONGEST_OVERLAP = timedelta(days=30)
"""Maximum overlap of a rotation. A secret that is longer valid was not replaced."""

NO_KEY = (
    "GHUB_SECRETS_KEY is not set: it encrypts the secrets of webhooks at rest, and there is none without it. Set it to"
    " 32 bytes in base64 (`openssl rand -base64 32`), the same for every gateway, consumer and command"
)


@dataclass(frozen=True, slots=True)
class WebhookRules:
    """What webhooks need of the settings: the key of their secrets, and why one may not have a URL."""

    key: SecretsKey
    why_not: Callable[[str], str | None]


@dataclass(frozen=True, slots=True)
class AddedWebhook:
    """A webhook, and the organisation's secret if it was made with it: it is shown once."""

    webhook: Webhook
    secret: str | None


class WebhookRegistry:
    """Webhooks in an actor's name. With `once`, the next write is idempotent. Raises LedgerError with a sentence.

    Without `rules`, GHUB_SECRETS_KEY is not set: then nothing is added or rotated.
    """

    def __init__(self, ledger: Ledger, rules: WebhookRules | None, actor: str, once: IdempotentWrite | None) -> None:
        self._ledger = ledger
        self._rules = rules
        self._actor = actor
        self._once = once

    async def add(self, ref: str, url: str, events: Sequence[str]) -> AddedWebhook:
        """Send events of these types to a URL. The first webhook of an organisation makes its secret."""
        rules = self._ready()
        if "ghub_sk_" in url:
            raise WrongField("url", "an API key stands in it; keys are written down nowhere")
        if (why := rules.why_not(url)) is not None:
            raise WrongField("url", why)
        if unknown := [one for one in events if one not in TYPES]:
            raise WrongField("events", f"there is no event {unknown[0]!r}; there are: {', '.join(TYPES)}")
        if not events:
            raise WrongField("events", f"name at least one of: {', '.join(TYPES)}")
        org = await self._ledger.org(ref)
        chosen = tuple(dict.fromkeys(events))
        webhook = Webhook(f"wh_{uuid4().hex}", org.org_id, url, chosen, utc_now().isoformat())
        secret = new_secret()
        act = self._act("webhook.add", webhook.webhook_id, org.org_id, url=url, events=list(chosen))
        sealed = rules.key.seal(secret, org.org_id)
        is_new = await self._ledger.add_webhook(webhook, sealed, MAX_WEBHOOKS, act)
        return AddedWebhook(webhook, secret if is_new else None)

    async def rotate(self, ref: str, overlap: timedelta) -> tuple[str, str]:
        """Give an organisation another secret, or its first; the one before signs too, until the overlap is over.

        Returns the organisation's id and the secret.
        """
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            raise WrongField("overlap", f"it must be from 0 to {LONGEST_OVERLAP.days} days")
        key = self._ready().key
        org, at, secret = await self._ledger.org(ref), utc_now(), new_secret()
        act = self._act("webhook.rotate", org.org_id, org.org_id, until=(at + overlap).isoformat())
        await self._ledger.rotate_webhook_secret(org.org_id, key.seal(secret, org.org_id), at, at + overlap, act)
        return org.org_id, secret

    async def disable(self, webhook_id: str) -> Webhook:
        """Send nothing to a webhook any more, for good."""
        act = self._act("webhook.disable", webhook_id, None)
        return await self._ledger.disable_webhook(webhook_id, utc_now(), act)

    async def replay(self, delivery_id: str) -> WebhookDelivery:
        """Send one delivery again, under the same id."""
        act = self._act("webhook.replay", delivery_id, None)
        return await self._ledger.replay_delivery(delivery_id, utc_now(), act)

    async def replay_all(self, webhook_id: str) -> int:
        """Send again what is set aside for a webhook; returns how many deliveries."""
        act = self._act("webhook.replay", webhook_id, None)
        return await self._ledger.replay_webhook(webhook_id, utc_now(), act)

    def _ready(self) -> WebhookRules:
        if self._rules is None:
            raise LedgerError(NO_KEY)
        return self._rules

    def _act(self, action: str, target: str, org_id: str | None, **details: object) -> Act:
        return Act(self._actor, action, target, org_id, details=details, once=self._once)
