"""The clients' calls and the ledger's events, looked up from both sides."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from metering.events import Event
from tests.chaos.clients import Attempt, Call


@dataclass
class Log:
    """The clients' calls and the ledger's events, looked up from both sides."""

    calls: list[Call]
    events: list[Event]

    def __post_init__(self) -> None:
        self.charges = [event for event in self.events if event.end == "charge"]
        self.by_id: dict[str, list[Event]] = defaultdict(list)
        self.by_key: dict[tuple[str, str], list[Event]] = defaultdict(list)
        self.ends: dict[str, list[Event]] = defaultdict(list)
        for event in self.charges:
            self.by_id[event.event_id].append(event)
        for event in self.events:
            self.ends[event.event_id].append(event)
            if event.opened.once is not None:
                self.by_key[event.opened.org_id, event.opened.once.split()[0]].append(event)

    def attempts(self) -> Iterator[tuple[Call, Attempt]]:
        """Every request with the call that it was made for."""
        for call in self.calls:
            for attempt in call.attempts:
                yield call, attempt

    def ends_of_key(self, call: Call) -> list[Event]:
        """Find the orders of its idempotency key, by the hash of the key in the events themselves."""
        return self.by_key[call.customer.org_id, hashlib.sha256(call.key.encode()).hexdigest()] if call.key else []

    def order_of_key(self, call: Call) -> list[Event]:
        """Find the charge of its idempotency key."""
        return [event for event in self.ends_of_key(call) if event.end == "charge"]

    def charged_to(self, call: Call) -> set[str]:
        """Charged orders that are this call's: by its key, or else by a result's id, or by an error's request id."""
        if call.key:
            return {charge.event_id for charge in self.order_of_key(call)}
        return named(call) & self.by_id.keys()


def named(call: Call) -> set[str]:
    """Orders that its client has heard of, one way or another."""
    return {uuid_of(text) for a in call.attempts for text in (a.result, a.accepted, a.request) if text}


def uuid_of(public_id: str) -> str:
    digits = public_id.removeprefix("req_")
    return str(UUID(digits)) if len(digits) == 32 else public_id


def made(jobs: list[dict[str, Any]]) -> Counter[str]:
    """How often a provider has accepted each prompt."""
    return Counter(job["prompt"] for job in jobs)
