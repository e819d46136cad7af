"""What must be true of long orders and of their webhooks when all is quiet: (j) and (k)."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import httpx2

from metering.events import CANCELLED, LONG, Event
from tests.chaos.clients import ENDED, Watch
from tests.chaos.log import Log, made, named, uuid_of
from tests.chaos.world import World
from tests.conftest import LOOPBACK

BOOKED_S = 30.0
"""The longest time from an end until the ledger has it: it is away for 20 s at most."""


async def ends(world: World, log: Log, figures: Counter[str]) -> list[str]:
    """(j) Every long order has ended once, and its customer was told so, while it was watched and now.

    But for those that a wiped Redis has forgotten: they have no end. One that has ended without a charge is known by
    Redis alone.
    """
    owners = {attempt.accepted: call.customer for call, attempt in log.attempts() if attempt.accepted}
    sent_us = {attempt.accepted: attempt.sent_us for _, attempt in reversed([*log.attempts()])}
    watched = {watch.order: watch for call in log.calls for watch in call.watched}
    turns, found = asyncio.Semaphore(8), list[str]()
    figures["long orders"] = len(owners)
    figures["long orders that another gateway has taken over"] = world.told("order_adopted")
    figures["long orders whose replaced gateway noticed it"] = world.told("order_gone")
    cancels = [cancel for watch in watched.values() for cancel in watch.cancels]
    figures["cancels"] = len(cancels)
    figures["cancels that were done"] = sum(status == 200 for status, _ in cancels)

    async def look(order: str, client: httpx2.AsyncClient) -> None:
        async with turns:
            told = await world.get(client, f"{world.url}/images/generations/{order}", owners[order])
        now = told.json()["status"] if told.status_code == 200 else str(told.status_code)
        ends = [_state(event) for event in log.ends[uuid_of(order)]]
        if not ends:
            figures["long orders that were forgotten with a wiped Redis"] += 1
            if now != "404" or not _wiped(world, sent_us[order], sent_us[order]):
                found.append(f"(j) the long order {order} has no end in the ledger, and is told to be {now}")
            return
        figures[f"long orders {ends[0]}"] += 1
        if len(ends) > 1:
            found.append(f"(j) the long order {order} has ended {len(ends)} times: {ends}")
        wiped_since = any(at_us > sent_us[order] for at_us in world.wiped_us)
        if now != ends[0] and (now != "404" or ends[0] == "completed" or not wiped_since):
            found.append(f"(j) the long order {order} has ended as {ends}, and its customer is told that it is {now}")
        watch = watched.get(order, Watch(order))
        before = {state for _, state in watch.states} & set(ENDED) - {"expired"}
        if before - set(ends):
            found.append(f"(j) the long order {order} has ended as {ends}, and was told to be {watch.states}")
        if any(status == 200 for status, _ in watch.cancels) and ends != ["cancelled"]:
            found.append(f"(j) the long order {order} was cancelled ({watch.cancels}), and has ended as {ends}")

    async with httpx2.AsyncClient(**LOOPBACK, timeout=30) as client:
        await asyncio.gather(*(look(order, client) for order in owners))
    return found


def _wiped(world: World, since_us: int, until_us: int) -> bool:
    """True if Redis was wiped while orders that were placed then were open, or their ends not booked yet."""
    return any(since_us < at_us < until_us + (world.long_hold_life_s + BOOKED_S) * 1e6 for at_us in world.wiped_us)


def _state(event: Event) -> str:
    """How a customer is told of it."""
    if event.end == "void":
        return "cancelled" if event.reason == CANCELLED else "failed"
    return "completed" if event.end == "charge" else "expired"


def made_once(world: World, log: Log, jobs: list[dict[str, Any]]) -> Iterator[str]:
    """(j) A long order is made once, whoever makes it: what a provider has accepted is not given to it again."""
    counts = made(jobs)
    for call in log.calls:
        if call.kind != "long" or _wiped(world, call.attempts[0].sent_us, call.attempts[-1].sent_us):
            continue  # an order that was forgotten may be placed again
        orders, lost = named(call), sum(attempt.status is None for attempt in call.attempts)
        if call.key:
            heard = {uuid_of(text) for a in call.attempts for text in (a.result, a.accepted) if text}
            orders, lost = heard | {event.event_id for event in log.ends_of_key(call)}, 0
        if counts[call.prompt] > len(orders) + lost:
            yield f"(j) {call.prompt} was made {counts[call.prompt]} times upstream, for the orders {sorted(orders)}"


def webhooks(world: World, log: Log, figures: Counter[str]) -> Iterator[str]:
    """(k) Each end of a long order has arrived at its organisation's webhook, and at the one that the order named."""
    places = {customer.org_id: customer.place for customer in world.customers}
    own = {uuid_of(attempt.accepted): call.webhook for call, attempt in log.attempts() if attempt.accepted}
    receivers = world.receivers
    figures["webhooks that arrived"], figures["webhooks that their receiver failed"] = receivers.count, receivers.failed
    for event in log.events:
        opened = event.opened
        if opened.mode != LONG:
            continue
        state = _state(event)
        of_org = receivers.url(places[opened.org_id], opened.org_id, "org")
        for url in {of_org, own.get(event.event_id) or of_org}:
            figures["webhooks that had to arrive"] += 1
            told = receivers.arrived.get((url, f"req_{UUID(event.event_id).hex}"), set())
            if state not in told:
                yield f"(k) {event.event_id} has ended as {state}, and {url} was told: {sorted(told)}"
