"""The wallet against a plain model of it: whatever is done in whatever order, every figure and event agrees.

`make test` takes some 1,000 steps, the same ones each time. Ten thousand new ones take about a minute and a half:

    MODEL_STEPS=10000 python -m pytest tests/integration/test_wallet_model.py
"""

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvloop
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from metering.answered import AnsweredOrder
from metering.clock import period_at
from metering.consumer import Consumer
from metering.events import encode_opened
from metering.journal.open_orders import booked_of
from metering.ports import CreditType, Delivered, NewCredit, Snapshot
from metering.wallet import keys, projection
from metering.wallet.values import Caller, Close, OrderIdentity, Replay, Verdict
from metering.wallet.wallet import RECENT_S
from tests.kits.books import (
    ACT,
    FACTS,
    LIMITS,
    NOON,
    NOW_US,
    PLANS,
    SECOND_US,
    UNIT,
    Books,
    drain,
    expire,
    open_books,
    pictures,
    pinned,
    snapshot,
)

STEPS = int(os.environ.get("MODEL_STEPS", "1000"))
STEPS_PER_HISTORY = 40
HISTORIES = settings(
    max_examples=STEPS // 30 + 1,  # now and then one is shorter
    stateful_step_count=STEPS_PER_HISTORY,
    derandomize="MODEL_STEPS" not in os.environ,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
LATEST = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 5, 8])
"""Which order, counted from the latest."""

IMAGES = st.integers(1, 8)
API_KEYS, KEYS, FINGERPRINTS = (st.sampled_from(values) for values in ([0, 0, 1], ["k", "l"], ["f", "f", "g"]))
DOCUMENT = b'{"made":"by the model"}'
SCOPES, QUOTAS = (
    st.sampled_from(values)
    for values in (["org", 0, 1], ["micro_mxn_per_month", "images_per_month", "images_per_day", "in_flight"])
)
"""Whose limit: the organisation's, or that of its first or second key. History is too short for a day to end."""

REFUSING = {
    "micro_mxn_per_month": Verdict.BUDGET,
    "images_per_month": Verdict.MONTH,
    "images_per_day": Verdict.DAY,
    "in_flight": Verdict.IN_FLIGHT,
}
"""In the order in which they are looked at."""

Scope = str | int


@dataclass(frozen=True)
class Placing:
    """How an order was placed, as its journal would have it. `key` is an idempotency key's hash."""

    images: int
    api_key: int
    fingerprint: str
    key: str | None
    admitted_us: int


@dataclass
class Order:
    """One order as the wallet knows it: `open`, `run out` (and nobody wrote it down yet), or its end.

    `served`: a replay found another charged for it. `remembered`: the wallet has its result, and not the ledger alone.
    `lost`: Redis forgot its admission, so an SDK's retry does not find it. `tries`: an SDK's own count, without a key.
    `asking`: who has not been seen to leave of those that placed it or were given it; nobody since `gone_us`.
    `left_tries`: the count of the last. `taken`: it was given to a new order, and is no SDK's any more.
    """

    placing: Placing
    expires_us: int
    status: str = "open"
    delivered: int = 0
    asking: set[str] = field(default_factory=set)
    gone_us: int | None = None
    left_tries: int | None = None
    taken: bool = False
    claims: set[int] = field(default_factory=set)
    served: bool = False
    remembered: bool = True
    lost: bool = False
    tries: int | None = None


@dataclass
class Model:
    """What the rules of money say that a wallet is. `events` are what it has told; the ledger has `booked` of them."""

    now_us: int = NOW_US
    look_us: int | None = None
    credits: int = 0
    credit_number: int = 0
    of_record: list[int] = field(default_factory=list)
    orders: dict[str, Order] = field(default_factory=dict)
    events: list[tuple[str, str, int]] = field(default_factory=list)
    booked: int = 0
    order_of_key: dict[str, str] = field(default_factory=dict)
    ran_as_new: dict[tuple[int, str], str] = field(default_factory=dict)
    awaited: Counter[tuple[int, str, int]] = field(default_factory=Counter)
    awaited_us: dict[tuple[int, str, int], int] = field(default_factory=dict)
    requests: int = 0
    images: int = 0
    placings: dict[str, Placing] = field(default_factory=dict)
    limits: dict[Scope, dict[str, int]] = field(default_factory=lambda: {"org": {}, 0: {}, 1: {}})
    told: set[tuple[Scope, str, int]] = field(default_factory=set)
    told_for_good: set[tuple[Scope, str, int]] = field(default_factory=set)

    def delivered(self, scope: Scope) -> int:
        """Images charged to the organisation, or to one of its keys."""
        return sum(
            amount // UNIT for request, _, amount in self.events if scope in ("org", self.placings[request].api_key)
        )

    def used(self, scope: Scope, what: str) -> int:
        """Of a quota, a budget, or of images in flight, with what is open."""
        open_ = sum(
            order.placing.images
            for order in self.orders.values()
            if order.status == "open" and scope in ("org", order.placing.api_key)
        )
        images = open_ + (0 if what == "in_flight" else self.delivered(scope))
        return images * UNIT if what == "micro_mxn_per_month" else images

    def refusal(self, images: int, api_key: int) -> tuple[Verdict, str, int, int] | None:
        """The first limit that has no room; of both scopes', one that the order alone is above."""
        for what, verdict in REFUSING.items():
            cost, found = images * UNIT if what == "micro_mxn_per_month" else images, []
            scopes: tuple[tuple[str, Scope], ...] = (("org", "org"), ("key", api_key))
            for whose, scope in scopes:
                limit, used = self.limits[scope].get(what), self.used(scope, what)
                if limit is not None and used + cost > limit:
                    found.append((cost <= limit, (verdict, whose, limit, used)))
            if found:
                return min(found, key=lambda one: one[0])[1]
        return None

    def tell(self) -> None:
        """What is reached of quotas and budgets by what was charged; each is told once."""
        for scope, limits in self.limits.items():
            for what, limit in limits.items():
                done = self.delivered(scope) * (UNIT if what == "micro_mxn_per_month" else 1)
                if what != "in_flight":
                    self.told |= {(scope, what, percent) for percent in (80, 100) if done * 100 >= limit * percent}

    @property
    def held(self) -> int:
        """An order that ran out holds nothing, whether or not somebody wrote that down (rule 7)."""
        return sum(order.placing.images for order in self.orders.values() if order.status == "open") * UNIT

    @property
    def charged(self) -> int:
        return sum(amount for _, _, amount in self.events)

    @property
    def available(self) -> int:
        return self.credits - self.charged - self.held

    def known(self, request: str | None) -> str | None:
        """How an order stands for whoever asks; one that has run out, or was lost, is not there."""
        order = self.orders.get(request or "")
        return None if order is None or order.status == "run out" else order.status

    def pass_time(self, seconds: int) -> None:
        self.now_us += seconds * SECOND_US
        self.requests = self.images = 0
        for order in self.orders.values():
            if order.status == "open" and order.expires_us <= self.now_us:
                order.status = "run out"

    def end(self, request: str, end: str, images: int = 0) -> None:
        """An order ends, and that is told."""
        self.orders[request].status, self.orders[request].delivered = end, images
        self.events.append((request, end, images * UNIT))
        self.tell()

    def write_expiries(self) -> None:
        for request, order in self.orders.items():
            if order.status == "run out":
                self.end(request, "expiry")

    def placed_before(self, key: str) -> str | None:
        """The order under an idempotency key; one that ran out left it free (rule 17)."""
        request = self.order_of_key.get(key)
        return request if self.known(request) not in (None, "expiry") else None

    def claimable(self, api_key: int, fingerprint: str, tries: int) -> set[str]:
        """What an SDK's retry may be given: its own kind, of late, unclaimed; the gone ones alone if there are (18).

        And only those where a retry is awaited of what was refused or failed. Any other order is given none but the
        gone ones (38).
        """
        found = {
            request: order
            for request, order in self.orders.items()
            if (order.placing.api_key, order.placing.fingerprint) == (api_key, fingerprint)
            and order.placing.key is None
            and order.status in ("open", "charge")
            and tries not in order.claims
            and not order.lost
        }
        late_us = self.now_us - RECENT_S * SECOND_US
        gone = {request for request, order in found.items() if order.gone_us is not None and order.gone_us >= late_us}
        if gone or tries == 0 or self.still_awaited((api_key, fingerprint, tries)):
            return gone
        return {request for request, order in found.items() if order.placing.admitted_us >= late_us and not order.taken}

    def give(self, earlier: str, request: str, tries: int) -> None:
        """It asks for that order from now on. A retry by the SDK of who left it comes, and repeats nothing (38)."""
        order = self.orders[earlier]
        order.asking.add(request)
        if tries:
            order.claims.add(tries)
        else:
            order.taken = True
            if order.left_tries is not None:
                self.await_try(order.placing.api_key, order.placing.fingerprint, order.left_tries)
        order.gone_us = None

    def leave(self, request: str, who: str, tries: int | None) -> None:
        """One of those who asked for it is seen to leave. What failed is of no use to another."""
        order = self.orders[request]
        order.asking.discard(who)
        if not order.asking and order.placing.key is None and order.status in ("open", "charge"):
            order.gone_us, order.left_tries = self.now_us, tries

    def still_awaited(self, tried: tuple[int, str, int]) -> int:
        """Tries of this count of an order of this API key that follow one which was refused or failed of late."""
        late = self.now_us - self.awaited_us.get(tried, -1) <= RECENT_S * SECOND_US
        return self.awaited[tried] if late else 0

    def await_try(self, api_key: int, fingerprint: str, tries: int) -> None:
        """Its SDK was told to ask again."""
        tried = api_key, fingerprint, tries + 1
        self.awaited[tried], self.awaited_us[tried] = self.still_awaited(tried) + 1, self.now_us

    def replay(self, request: str, placing: Placing, images: int) -> Replay:
        """A journal says that it was answered 200: charged once, or never where another was for it (8, 13, 19)."""
        order = self.orders.get(request)
        if order is not None and order.status == "charge":
            return Replay.CHARGED
        kind = (placing.api_key, placing.fingerprint)
        other = self.order_of_key.get(placing.key) if placing.key else self.ran_as_new.get(kind)
        served = other not in (None, request) and self.known(other) == "charge"
        forgotten = order is None
        if order is None:
            order = self.orders[request] = Order(placing, 0, "run out", lost=True)
        if not served and not order.served:
            self.end(request, "charge", images)
            if placing.key:
                self.take_the_key_back(placing.key, request)
            return Replay.NOW
        if not order.served and placing.key is None:
            del self.ran_as_new[kind]
        order.served = True
        if forgotten:
            order.status = "void"  # what had become of it is the ledger's to know
        elif order.status in ("open", "run out"):
            self.end(request, "void")
        return Replay.SERVED

    def take_the_key_back(self, key: str, request: str) -> None:
        """What is being made under it once more, as Redis had forgotten this one, is not charged."""
        other, self.order_of_key[key] = self.order_of_key.get(key), request
        if other is not None and other != request and self.known(other) == "open":
            self.end(other, "void")
            self.orders[other].served = True

    def lose_everything(self) -> None:
        """Redis forgets. What the ledger has stays true, and nothing else is known."""
        del self.events[self.booked :]
        self.orders, self.order_of_key, self.ran_as_new, self.awaited = {}, {}, {}, Counter()
        self.look_us = None
        self.requests = self.images = 0
        self.told = set(self.told_for_good)
        self.tell()

    def charged_under(self, key: str, placings: Mapping[str, Placing]) -> dict[str, int]:
        """What the ledger has: charged orders with this idempotency key, and how many images each brought."""
        booked = [(request, amount) for request, end, amount in self.events[: self.booked] if end == "charge"]
        return {request: amount // UNIT for request, amount in booked if placings[request].key == key}

    def project(self) -> None:
        self.credits, self.credit_number = sum(self.of_record), len(self.of_record)


class WalletMachine(RuleBasedStateMachine):
    """One organisation with two keys: admissions, ends, replays, credits, time, lost marks and a Redis that forgets."""

    runner: asyncio.Runner
    open_new: Callable[[], Coroutine[Any, Any, Books]]
    books: Books
    consumer: Consumer
    examples = 0
    steps = 0

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    def id(self, name: str) -> str:
        """The whole organisation's names carry its own: all histories share one Redis."""
        return f"{self.name}-{name}"

    @initialize(credit=st.integers(1, 40))
    def begin(self, credit: int) -> None:
        kind = type(self)
        if kind.examples % 10 == 0:
            kind.books = self.do(self.open_new())
            self.do(self.books.redis.flushall())
            self.do(self.books.projector.round())
            kind.consumer = self.books.consumer()
        kind.examples += 1
        self.name = f"org-{kind.examples}"
        self.model = Model()
        self.placings = self.model.placings
        self.snapshots: list[Snapshot] = []
        self.given: list[tuple[str, str, OrderIdentity]] = []
        self.books.wallet.at(NOW_US)
        first: Caller = self.do(self.books.org(self.name, "0.00"))
        second = self.do(self.books.accounts.create_key(first.org_id, "second"))
        self.callers = [first, Caller(first.org_id, second.key_id)]
        self.org_id = first.org_id
        self.credit(credit, at_once=True)

    def request(self, latest: int) -> str:
        """One that was admitted; or, while there is none, one that nobody knows."""
        names = list(self.placings) or ["unknown"]
        return names[-1 - latest % len(names)]

    # --- credits ---

    @rule(images=st.integers(-3, 10), at_once=st.booleans())
    def credit(self, images: int, at_once: bool) -> None:
        """Numbered in SQL; whoever wrote it may die before it is projected."""
        self.snapshots.append(self.do(snapshot(self.books.ledger, self.org_id)))
        amount, number = images * UNIT or 1, len(self.model.of_record) + 1
        kind: CreditType = "adjustment" if amount < 0 else "recharge"
        if at_once:
            self.do(self.books.accounts.add_credit(self.org_id, self.id(f"c{number}"), kind, amount))
        else:
            self.do(
                self.books.ledger.add_credit(NewCredit(self.id(f"c{number}"), self.org_id, kind, amount), NOON, ACT)
            )
        self.model.of_record.append(amount)
        if at_once:
            self.model.project()

    @rule()
    def project(self) -> None:
        self.do(self.books.projector.round())
        self.model.project()

    @rule(which=st.integers(0, 50))
    def project_late(self, which: int) -> None:
        """A projection that was frozen on its way comes after those that were made later: it changes nothing."""
        late = self.snapshots[which % len(self.snapshots)]
        if late.credit_number <= self.model.credit_number:
            self.do(self.books.projector._apply([late], "follow", {}))

    @rule(scope=SCOPES, what=QUOTAS, images=st.integers(1, 30), lifted=st.booleans())
    def limit(self, scope: Scope, what: str, images: int, lifted: bool) -> None:
        """Of the organisation or of one of its keys, up or down or lifted; every change takes the credits along."""
        value = None if lifted else images * UNIT if what == "micro_mxn_per_month" else images
        if isinstance(scope, int):
            self.do(self.books.accounts.set_key_limits(self.callers[scope].key_id, {what: value}))
        else:
            self.do(self.books.accounts.set_limits(self.org_id, {what: value}))
        if value is None:
            self.model.limits[scope].pop(what, None)
        else:
            self.model.limits[scope][what] = value
        self.model.project()
        self.model.tell()

    # --- an order ---

    @rule(images=IMAGES, life_s=st.integers(1, 60), api_key=API_KEYS, fingerprint=FINGERPRINTS)
    def admit(self, images: int, life_s: int, api_key: int, fingerprint: str) -> None:
        self.place(images, life_s, api_key, OrderIdentity(fingerprint))

    @rule(images=IMAGES, life_s=st.integers(1, 60), key=KEYS, fingerprint=FINGERPRINTS)
    def admit_under_a_key(self, images: int, life_s: int, key: str, fingerprint: str) -> None:
        self.place(images, life_s, 0, OrderIdentity(fingerprint, key_hash=key))

    @rule(images=IMAGES, tries=st.integers(0, 2), api_key=API_KEYS, fingerprint=FINGERPRINTS)
    def admit_again(self, images: int, tries: int, api_key: int, fingerprint: str) -> None:
        self.place(images, 30, api_key, OrderIdentity(fingerprint, tries=tries))

    def opened(self, request: str, placing: Placing) -> bytes:
        once = f"{placing.key} {placing.fingerprint}" if placing.key else None
        key_id = self.callers[placing.api_key].key_id
        return encode_opened(self.id(request), self.org_id, key_id, pinned(placing.images), FACTS | {"once": once})

    def place(self, images: int, life_s: int, api_key: int, identity: OrderIdentity) -> None:
        model, request = self.model, f"r{len(self.placings)}"
        if identity.key_hash:
            before = model.placed_before(identity.key_hash)
            earlier = {before} if before else set()
        else:
            earlier = model.claimable(api_key, identity.fingerprint, identity.tries or 0)
        came_again = 0
        if identity.tries and not earlier:
            came_again = model.still_awaited((api_key, identity.fingerprint, identity.tries))
            model.awaited[api_key, identity.fingerprint, identity.tries] -= bool(came_again)
        caller, price, hold = self.callers[api_key], pinned(images), self.id(request)
        opened = self.opened(request, Placing(images, api_key, identity.fingerprint, identity.key_hash, model.now_us))
        answer = self.do(self.books.wallet.admit(caller, hold, price, opened, identity, life_s=life_s, owner="test"))
        if identity.key_hash and before and model.orders[before].placing.fingerprint != identity.fingerprint:
            assert answer.verdict is Verdict.REUSED
        elif earlier:
            assert answer.verdict is Verdict.DUPLICATE
            given = answer.earlier.order_id.removeprefix(f"{self.name}-")
            assert given in earlier and answer.earlier.end == model.known(given)
            assert answer.earlier.amount_micro_mxn == model.orders[given].delivered * UNIT
            model.requests += 1
            if not identity.key_hash:
                model.give(given, request, identity.tries or 0)
                self.given.append((given, request, identity))
        elif images * UNIT > model.available:
            assert answer.verdict is Verdict.BALANCE
        elif (refusal := model.refusal(images, api_key)) is not None:
            assert (answer.verdict, answer.whose, answer.limit, answer.used) == refusal
            if identity.tries is not None and answer.verdict is Verdict.IN_FLIGHT and images <= answer.limit:
                model.await_try(api_key, identity.fingerprint, identity.tries)
        else:
            assert answer.verdict is Verdict.ADMITTED
            model.write_expiries()
            expires_us = model.now_us + life_s * SECOND_US
            placing = Placing(images, api_key, identity.fingerprint, identity.key_hash, model.now_us)
            order = Order(placing, expires_us, tries=None if identity.key_hash else identity.tries, asking={request})
            self.placings[request], model.orders[request] = placing, order
            model.look_us = min(model.look_us or expires_us, expires_us)
            model.requests, model.images = model.requests + 1, model.images + images
            if identity.key_hash:
                model.order_of_key[identity.key_hash] = request
            elif identity.tries:
                if not came_again:
                    model.ran_as_new[api_key, identity.fingerprint] = request
                # A retry of the same count belongs to another order that was lost.
                model.orders[request].claims.update(range(1, identity.tries + 1))
        assert answer.available_micro_mxn == model.available
        limits = PLANS["default"]
        assert limits.requests_per_minute - answer.requests.remaining == model.requests
        assert answer.verdict is Verdict.DUPLICATE or limits.images_per_minute - answer.images.remaining == model.images

    @rule(latest=LATEST)
    def client_gone(self, latest: int) -> None:
        """Who placed it is seen to leave."""
        request = self.request(latest)
        if (order := self.model.orders.get(request)) is not None and not order.lost:
            identity = OrderIdentity(order.placing.fingerprint, order.placing.key, order.tries)
            self.leave(request, request, order.placing.api_key, identity)

    @rule(latest=LATEST)
    def joiner_gone(self, latest: int) -> None:
        """One that it was given to is seen to leave."""
        if self.given:
            request, who, identity = self.given[-1 - latest % len(self.given)]
            order = self.model.orders.get(request)
            if order is not None and not order.lost and who in order.asking:
                self.leave(request, who, order.placing.api_key, identity)

    def leave(self, request: str, who: str, api_key: int, identity: OrderIdentity) -> None:
        caller = self.callers[api_key]
        gone = self.books.wallet.client_gone(caller, self.id(request), identity, asked_by=self.id(who))
        self.do(gone)
        self.model.leave(request, who, identity.tries)

    @rule(images=IMAGES, joins=st.integers(0, 2), again=st.sampled_from([None, 0, 1]), fingerprint=FINGERPRINTS)
    def left_and_placed_anew(self, images: int, joins: int, again: int | None, fingerprint: str) -> None:
        """A client without an SDK's count hangs up and tries again, now and then several times."""
        self.place(images, 60, 0, OrderIdentity(fingerprint))
        self.client_gone(0)
        for _ in range(joins):
            self.place(images, 60, 0, OrderIdentity(fingerprint))
            self.joiner_gone(0)
        self.place(images, 60, 0, OrderIdentity(fingerprint, tries=again))

    @rule(latest=LATEST, images=IMAGES, in_time=st.sampled_from([True, True, False]))
    def settle(self, latest: int, images: int, in_time: bool) -> None:
        request = self.request(latest)
        model = self.model
        status = model.orders[request].status if request in model.orders else None
        images = min(images, self.placings[request].images) if status == "open" else images
        latest_us = model.now_us if in_time else model.now_us - 1
        closing = self.do(
            self.books.wallet.settle(
                self.org_id,
                self.id(request),
                images * UNIT,
                pictures(images),
                latest_us=latest_us,
                result=DOCUMENT,
            )
        )
        if status in ("charge", "void", "expiry"):
            wanted = Close.CHARGED if status == "charge" else Close.REFUSED
        elif not in_time:
            wanted = Close.LATE
        elif status == "open":
            wanted = Close.CHARGED
            model.end(request, "charge", images)
        else:
            wanted = Close.REFUSED
        assert (closing.close, closing.available_micro_mxn) == (wanted, model.available)

    @rule(latest=LATEST, frees=st.booleans(), again=st.booleans())
    def void(self, latest: int, frees: bool, again: bool) -> None:
        request = self.request(latest)
        model = self.model
        status = model.orders[request].status if request in model.orders else None
        reason = "model" if frees else "fault"
        closing = self.do(self.books.wallet.void(self.org_id, self.id(request), reason, comes_again=again))
        if status in ("charge", "void", "expiry"):
            wanted = Close.CHARGED if status == "charge" else Close.VOIDED
        elif status is None:
            wanted = Close.UNKNOWN
        else:
            wanted = Close.VOIDED
            model.end(request, "void")
            order = model.orders[request]
            key, last = order.placing.key, max(order.claims | {order.tries or 0})
            if order.tries is not None and (again or order.gone_us is not None):
                model.await_try(order.placing.api_key, order.placing.fingerprint, last)
            if frees and key and model.order_of_key.get(key) == request:
                del model.order_of_key[key]
        assert (closing.close, closing.available_micro_mxn) == (wanted, model.available)

    @rule(latest=LATEST, images=IMAGES, twice=st.booleans())
    def replay(self, latest: int, images: int, twice: bool) -> None:
        """As a journal's keeper does it: what the ledger has as charged is let go, all else goes to the wallet."""
        request = self.request(latest)
        if (placing := self.placings.get(request)) is None:
            return
        images = min(images, placing.images)
        answered = AnsweredOrder(
            org_id=self.org_id,
            key_id=self.callers[placing.api_key].key_id,
            fingerprint=placing.fingerprint,
            key_hash=placing.key,
            client_gone=True,
            order_id=self.id(request),
            amount_micro_mxn=images * UNIT,
            images=pictures(images),
            usd_measured=None,
            opened=self.opened(request, placing),
            result=DOCUMENT,
            admitted_us=placing.admitted_us,
            ended_us=self.model.now_us,
        )
        booked = any(event[:2] == (request, "charge") for event in self.model.events[: self.model.booked])
        assert bool(self.do(booked_of([answered.order_id], self.books.ledger))) == booked
        for _ in range(0 if booked else 1 + twice):
            wanted = self.model.replay(request, placing, images)
            assert self.do(self.books.wallet.replay(answered)) is wanted

    @rule(images=IMAGES, key=st.sampled_from([None, "k"]), fingerprint=FINGERPRINTS)
    def run_out_and_repeated(self, images: int, key: str | None, fingerprint: str) -> None:
        """A gateway dies with an answer in its journal; its client gets another; then the journal is found."""
        self.place(images, 30, 0, OrderIdentity(fingerprint, key))
        self.pass_time(40)
        self.place(images, 30, 0, OrderIdentity(fingerprint, key, tries=None if key else 1))
        self.settle(0, images, in_time=True)
        self.replay(1, images, twice=True)

    @rule(images=IMAGES, gone=st.booleans(), again=st.booleans(), fingerprint=FINGERPRINTS)
    def joined_and_failed(self, images: int, gone: bool, again: bool, fingerprint: str) -> None:
        """A try waits for an order that fails, beside one of the same that does not; and comes again."""
        self.place(images, 60, 0, OrderIdentity(fingerprint, tries=0))
        if gone:
            self.client_gone(0)
        self.place(images, 60, 0, OrderIdentity(fingerprint, tries=1))
        self.place(images, 60, 0, OrderIdentity(fingerprint, tries=0))
        self.void(1, frees=True, again=again)
        self.place(images, 60, 0, OrderIdentity(fingerprint, tries=2))

    @rule(images=IMAGES, gone=st.integers(0, 1), fingerprint=FINGERPRINTS)
    def two_are_lost(self, images: int, gone: int, fingerprint: str) -> None:
        """The same order twice; the gateway has seen one of the clients leave; both are repeated."""
        for _ in range(2):
            self.place(images, 60, 0, OrderIdentity(fingerprint))
        self.client_gone(gone)
        for _ in range(2):
            self.place(images, 60, 0, OrderIdentity(fingerprint, tries=1))

    @rule(scope=st.sampled_from(["org", 0]), images=st.integers(1, 2), gone=st.booleans(), fingerprint=FINGERPRINTS)
    def refused_and_repeated(self, scope: Scope, images: int, gone: bool, fingerprint: str) -> None:
        """The same order twice, of which the second has no room yet; now and then the first is lost."""
        self.limit(scope, "in_flight", images, lifted=False)
        self.place(images, 30, 0, OrderIdentity(fingerprint, tries=0))
        if gone:
            self.client_gone(0)
        self.place(images, 60, 0, OrderIdentity(fingerprint, tries=0))
        self.limit(scope, "in_flight", 0, lifted=True)
        self.repeat(images, fingerprint)

    @rule(images=IMAGES, fails=st.integers(0, 1), gone=st.booleans(), again=st.booleans(), fingerprint=FINGERPRINTS)
    def failed_and_repeated(self, images: int, fails: int, gone: bool, again: bool, fingerprint: str) -> None:
        """The same order twice, of which one fails; now and then its client is gone."""
        for _ in range(2):
            self.place(images, 60, 0, OrderIdentity(fingerprint, tries=0))
        if gone:
            self.client_gone(fails)
        self.void(fails, frees=True, again=again)
        self.repeat(images, fingerprint)

    def repeat(self, images: int, fingerprint: str) -> None:
        """Both are asked for again."""
        for _ in range(2):
            self.place(images, 60, 0, OrderIdentity(fingerprint, tries=1))

    @rule(latest=LATEST)
    def ask(self, latest: int) -> None:
        """How it stands, and what it delivered."""
        request = self.request(latest)
        model, wallet = self.model, self.books.wallet
        status = self.do(wallet.status_of(self.org_id, self.id(request)))
        assert (status and status.end) == model.known(request)
        delivered: Delivered | None = self.do(wallet.result(self.org_id, self.id(request)))
        order = model.orders.get(request)
        if order is None or order.status != "charge" or not order.remembered:
            assert delivered is None
        else:
            assert delivered is not None and delivered.document == DOCUMENT
            assert delivered.images == pictures(order.delivered)
            assert self.do(wallet.result("0" * 32, self.id(request))) is None

    # --- time, and what goes wrong ---

    @rule(seconds=st.integers(1, 90))
    def pass_time(self, seconds: int) -> None:
        self.model.pass_time(seconds)
        self.books.wallet.at(self.model.now_us)

    @rule()
    def sweep(self) -> None:
        self.do(expire(self.books.redis, self.org_id, self.model.now_us, most=1000, remember_s=LIMITS.remember_s))
        if (look_us := self.model.look_us) is not None and look_us <= self.model.now_us:
            self.model.write_expiries()
            still = [one.expires_us for one in self.model.orders.values() if one.status == "open"]
            self.model.look_us = min(still, default=None)

    @rule()
    def consume(self) -> None:
        self.do(drain(self.books, self.consumer))
        self.model.booked = len(self.model.events)
        self.model.told_for_good = set(self.model.told)

    @rule()
    def rebuild(self) -> None:
        """The mark is lost; the fence waits until the ledger has every event."""
        self.do(self.books.redis.delete(keys.OrgKeys(self.org_id).mark))
        self.do(self.books.projector.round())
        self.consume()
        self.project()
        self.keys_are_restored()

    @rule()
    def wipe(self) -> None:
        """Redis forgets everything, and what the consumer has not booked with it."""
        self.do(self.books.redis.flushall())
        self.model.lose_everything()
        self.consume()
        self.project()
        self.keys_are_restored()

    def keys_are_restored(self) -> None:
        """What the ledger has as charged is known as such again, by a rebuild whose clock is years behind it; and
        a key that stands for nothing is given back an order that was charged under it."""
        model = self.model
        for request, end, amount in model.events[: model.booked]:
            if end == "charge":
                again = Order(self.placings[request], 0, "charge", amount // UNIT, remembered=False, lost=True)
                model.orders.setdefault(request, again)
        for key in {"k", "l"} - model.order_of_key.keys():
            charged = model.charged_under(key, self.placings)
            found = self.do(self.books.wallet.order_of_key(self.org_id, key))
            assert (found is None) == (not charged)
            if found is not None:
                model.order_of_key[key] = found.removeprefix(f"{self.name}-")
                assert model.order_of_key[key] in charged

    @invariant()
    def every_figure_agrees(self) -> None:
        if not hasattr(self, "callers"):
            return
        type(self).steps += 1
        cut, model = self.do(self.books.cut(self.callers[0])), self.model
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (model.available, model.held)
        assert (cut.charged_micro_mxn, cut.credits_micro_mxn) == (model.charged, model.credits)
        assert (cut.credit_number, cut.number) == (model.credit_number, len(model.events))

    @invariant()
    def every_key_agrees(self) -> None:
        if hasattr(self, "callers"):
            for key in ("k", "l"):
                request = self.model.order_of_key.get(key)
                found = self.do(self.books.wallet.order_of_key(self.org_id, key))
                assert found == (None if request is None else self.id(request))

    def teardown(self) -> None:
        if hasattr(self, "callers"):
            self.consume()
            assert self.do(self.told()) == sorted(self.model.events)
            assert self.do(self.notices()) == self.model.told

    async def notices(self) -> set[tuple[Scope, str, int]]:
        scopes: dict[str, Scope] = {"": "org", self.callers[0].key_id: 0, self.callers[1].key_id: 1}
        found = await self.books.ledger.notices(self.org_id, "9999", 100)
        names = {"mxn_per_month": "micro_mxn_per_month"}
        told = {(scopes[one.key_id], names.get(one.what, one.what), one.percent) for one in found if one.percent}
        assert len(told) == sum(one.percent > 0 for one in found)
        return told

    async def told(self) -> list[tuple[str, str, int]]:
        events = [event async for event in self.books.ledger.events(org_id=self.org_id)]
        assert [event.number for event in events] == list(range(1, len(events) + 1))
        names = [event.event_id.removeprefix(f"{self.name}-") for event in events]
        return sorted((name, event.end, event.amount_micro_mxn) for name, event in zip(names, events, strict=True))


@pytest.mark.rule(4, 7, 8, 9, 13, 17, 18, 19, 26, 27)
def test_the_wallet_is_its_model(redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Verdicts, limits, notices, balances, claims, replays, ends and ledger agree (rules 4, 7–9, 13, 17–19, 26, 27)."""
    monkeypatch.setattr(projection, "_today", lambda: period_at(NOW_US))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()

        async def open_new() -> Books:
            """A rebuild looks at every organisation, so each few histories begin with empty books."""
            await stack.aclose()
            path = tmp_path / f"{WalletMachine.examples}.db"
            return await stack.enter_async_context(open_books(redis_url, path))

        WalletMachine.runner, WalletMachine.open_new = runner, staticmethod(open_new)
        WalletMachine.examples = WalletMachine.steps = 0
        try:
            run_state_machine_as_test(WalletMachine, settings=HISTORIES)
        finally:
            runner.run(stack.aclose())
        print(f"{WalletMachine.steps} steps in {WalletMachine.examples} histories")
        assert WalletMachine.steps >= STEPS
