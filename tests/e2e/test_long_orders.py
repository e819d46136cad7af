"""Long orders while gateways are killed, frozen, restarted and drained: each ends once, and nothing is thrown away.

Each order under load has a webhook: one receiver of ten takes nothing, the others fail half of the time.
`make test` places 30 orders of a few seconds; 200 of 20 to 120 s, twenty times as fast, with every fault several times:

    LONG=1 python -m pytest -s tests/e2e/test_long_orders.py
"""

import asyncio
import base64
import json
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import httpx2
import openai
import pytest
from redis import Redis
from standardwebhooks.webhooks import Webhook as Judge

from config.settings import graceful_stop_s
from metering.events import ADMISSION_UNREAD, Event, handovers
from metering.wallet import keys
from metering.webhooks import delivery
from metering.webhooks.delivery import WebhookPace
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.e2e.test_processes import clean, open_journals
from tests.e2e.test_rollout import Pod
from tests.kits.processes import Forked
from tests.kits.system import FLUX, GPT, System, bearer, wait_until
from tests.long import LONG, long

DALL_E = "openai/dall-e-3"
ASYNC = {"prefer": "respond-async"}
OVER = {"completed", "failed", "cancelled", "expired"}

DIES_S = 30.0
"""By when a dead gateway's orders go on elsewhere: 10 s without a beat, and two looks of 2 s, on a busy machine."""

ORDERS, SPREAD_S, MADE_S = (200, 60.0, (1.0, 6.0)) if LONG else (30, 5.0, (1.0, 4.0))
"""How many orders, over how many seconds they are placed, and how long their providers take."""

STAYS_S = 90.0 if LONG else 3.0
"""What a drain waits for: in the long version, longer than for any answer that is waited for."""

SETTLES_S = 180.0

SECRETS_KEY = base64.b64encode(b"k" * 32).decode()


@dataclass
class Shop:
    """Gateways over one Redis and one ledger, and a customer."""

    system: System
    pods: list[Pod]
    org_id: str
    key: str

    def url(self, pod: Pod) -> str:
        """A gateway's base URL."""
        return f"http://127.0.0.1:{pod.port}/v1"

    def place(
        self, pod: Pod, model: str, *, n: int = 1, key: str | None = None, prompt: str = "un faro", webhook: str = ""
    ) -> str:
        """Place a long order with the official client; returns its id."""
        headers = ASYNC | ({"idempotency-key": key} if key else {})
        more = {"webhook": webhook} if webhook else None
        with (
            httpx2.Client(**LOOPBACK) as http,
            openai.OpenAI(base_url=self.url(pod), api_key=self.key, max_retries=0, http_client=http) as sdk,
        ):
            made = sdk.images.generate(model=model, prompt=prompt, n=n, extra_headers=headers, extra_body=more)
        assert made.data == []
        return str((made.model_extra or {})["id"])

    def get(self, pod: Pod, order: str) -> dict[str, Any]:
        """How an order stands. A busy machine may miss the 100 ms in which a gateway is answered: then retry."""
        for _ in range(20):
            reply = httpx2.get(f"{self.url(pod)}/images/generations/{order}", headers=bearer(self.key), **LOOPBACK)
            if reply.status_code != 503:
                break
        assert reply.status_code == 200, reply.text
        found: dict[str, Any] = reply.json()
        return found

    def until(self, pod: Pod, order: str, *states: str, within_s: float = 60.0) -> dict[str, Any]:
        """Wait until an order stands so."""
        wait_until(lambda: self.get(pod, order)["status"] in states, f"{order} is {states}", within_s)
        return self.get(pod, order)

    def handles(self, count: int) -> None:
        """Wait until so many jobs can be gone on with by others."""

        def noted() -> int:
            with Redis.from_url(self.system.valkey.url) as redis:
                holds = [redis.hvals(name) for name in redis.scan_iter("*:hold:*")]
            return sum(b'"handle":' in value for hold in holds for value in hold)

        wait_until(lambda: noted() >= count, f"{count} handles are noted")

    def unhear(self, *orders: str) -> None:
        """Make it so that whoever admitted these orders died before it heard so."""
        with Redis.from_url(self.system.valkey.url) as redis:
            for order in orders:
                (hold,) = redis.scan_iter(f"*:hold:{uuid_of(order)}")
                redis.hdel(hold, "taken", "begun", "part:0")

    def key_is_free_us(self) -> int:
        """When the only idempotency key can be used again, in Unix µs."""
        with Redis.from_url(self.system.valkey.url) as redis:
            (once,) = redis.scan_iter("*:once:*")
            return int(redis.pexpiretime(once)) * 1000

    def heirs(self, event: Event) -> list[UUID]:
        """The journals under which an order went on, each of which the ledger knows."""
        found = handovers(event.handed) if event.handed else []

        async def known(back: Any) -> bool:
            return all([(await back.ledger.incarnation(one)).opened_at is not None for one, _ in found])

        assert self.system.back(known) and all(number > 0 for _, number in found)
        return [incarnation for incarnation, _ in found]

    def events(self) -> list[Event]:
        """What the ledger has."""

        async def read(back: Any) -> list[Event]:
            return [event async for event in back.ledger.events(org_id=self.org_id)]

        return self.system.back(read)

    def ends(self) -> dict[str, Event]:
        """The ends that the ledger has; no order has two."""
        found = self.events()
        by_order = {f"req_{event.event_id.replace('-', '')}": event for event in found}
        assert len(by_order) == len(found)
        return by_order

    def booked(self, count: int) -> dict[str, Event]:
        """Wait until the ledger has so many ends, and no more."""
        wait_until(lambda: len(self.events()) >= count, f"{count} events", SETTLES_S)
        found = self.ends()
        assert len(found) == count
        return found

    def check(self, events: dict[str, Event], dead: Sequence[Pod] = ()) -> None:
        """The books are whole: what is charged is stored, and nothing else is charged. This stops every gateway."""
        with ThreadPoolExecutor(len(self.pods)) as stops:
            list(stops.map(Pod.stop, [pod for pod in self.pods if pod.name in self.system.processes]))
        for pod in dead:  # it does not come back: without its journal nobody could say that the books are whole
            assert (
                self.system.ghub("journal", "replay", str(self.system.folder / f"journal of {pod.name}")).returncode
                == 0
            )
        assert open_journals(self.system) == 0
        assert clean(self.system), self.system.ghub("verify").stdout
        stored = self.system.images()
        for event in events.values():
            assert (event.end == "charge") == (event.quantity > 0) == (event.amount_micro_mxn > 0)
            assert {image.path for image in event.images} <= stored


def uuid_of(order: str) -> str:
    """The id by which the ledger knows an order."""
    return str(UUID(order.removeprefix("req_")))


def adopted(system: System, order: str, pods: Sequence[Pod]) -> list[str]:
    """The gateways that have taken an order over, by their logs."""
    lines = [(pod.name, line) for pod in pods for line in system.log(pod.name).splitlines()]
    return [name for name, line in lines if '"order_adopted"' in line and uuid_of(order) in line]


@contextmanager
def shop(prepared: Prepared, pods: int, **settings: str) -> Iterator[Shop]:
    """So many gateways, all ready."""
    system = prepared(**settings)
    system.valkey.start()
    system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
    system.start("consumer", "consume")
    made = [Pod(system, f"gateway {number}", 1) for number in range(pods)]
    with ThreadPoolExecutor(pods) as starts:
        list(starts.map(Pod.start, made))
    wait_until(lambda: system._answers(f"{system.simulator}/_sim/jobs"), "the simulator is ready")
    org_id, key = system.customer("acme", "50000.00", requests_per_minute=100_000, images_per_minute=100_000)
    yield Shop(system, made, org_id, key)


@pytest.mark.rule(17, 21, 35)
def test_orders_of_a_killed_gateway_and_of_a_frozen_one_go_on_elsewhere(prepared: Prepared) -> None:
    """fal's jobs are adopted, one job each; what had begun elsewhere is unknown; what had not is made by the adopter.

    Two gateways look for them, and a third starts meanwhile. The frozen one thaws while its order is being delivered:
    that changes nothing.
    """
    with shop(prepared, 4) as there:
        system, (killed, frozen, living, other) = there.system, there.pods
        system.behave(FLUX, "slow", times=3, seconds=4)  # two calls of one order, and another order
        system.behave(FLUX, "slow", seconds=18)
        system.behave(GPT, "slow", seconds=60)
        system.behave(DALL_E, "rate_limited_429", times=None, retry_after=1)
        twice, once = there.place(killed, FLUX, n=8), there.place(killed, FLUX)
        there.handles(3)
        thawing = there.place(frozen, FLUX)
        unknown, waiting = there.place(killed, GPT, key="once"), there.place(killed, DALL_E)
        there.handles(4)
        there.until(living, unknown, "in_progress")
        there.until(living, waiting, "queued")  # the moment of a try is an unknown one
        system.stop(killed.name, signal.SIGKILL)
        freezing = system.processes[frozen.name]
        freezing.send_signal(signal.SIGSTOP)
        died_s = time.monotonic()
        system.behave(DALL_E, "ok", times=None)
        successor = Pod(system, "successor", 1)
        time.sleep(7.0)  # then it is there just before the dead ones are found
        successor.start()
        there.pods.append(successor)
        heirs = (living, other, successor)
        for order, images in ((twice, 8), (once, 1), (waiting, 1)):
            done = there.until(living, order, *OVER, within_s=DIES_S)
            assert (done["status"], len(done["data"])) == ("completed", images)
        lost = there.until(living, unknown, *OVER, within_s=DIES_S)
        assert (lost["status"], lost["error"]["code"]) == ("failed", "outcome_unknown")
        wait_until(lambda: len(adopted(system, thawing, heirs)) == 1, "the frozen one's is adopted", DIES_S)
        assert time.monotonic() - died_s < DIES_S
        assert there.get(living, thawing)["status"] == "in_progress"
        freezing.send_signal(signal.SIGCONT)
        assert len(there.until(living, thawing, *OVER)["data"]) == 1
        events = there.booked(5)
        for order in events:
            assert len(adopted(system, order, heirs)) == 1
            assert len(there.heirs(events[order])) == 1
        (shown,) = json.loads(system.ghub("order", "show", twice, "--json").stdout)["ends"]
        assert [set(one) for one in shown["handed_over"]] == [{"incarnation", "number"}]
        assert Counter(job["state"] for job in system.jobs(FLUX)) == {"done": 4}
        assert len(system.jobs(DALL_E)) == len(system.jobs(GPT)) == 1
        assert (events[unknown].reason, events[unknown].amount_micro_mxn) == ("lost", 0)
        # Its key is taken until its hold would have run out: the deadline of what nobody can go on with, and a margin.
        again = httpx2.post(
            f"{there.url(living)}/images/generations",
            headers=bearer(there.key) | {"idempotency-key": "once"},
            json={"model": GPT, "prompt": "un faro"},
            **LOOPBACK,
        )
        assert (again.status_code, again.json()["error"]["code"]) == (502, "outcome_unknown")
        assert there.key_is_free_us() - events[unknown].admitted_us == pytest.approx(370_000_000, abs=2_000)
        stored = system.images()
        assert len(stored) == 11
        there.check(events, dead=[killed])
        assert there.booked(5) == events and system.images() == stored


@pytest.mark.rule(6, 35)
def test_an_order_whose_gateway_died_before_it_heard_of_it_is_made_if_its_client_was_told_of_it(
    prepared: Prepared,
) -> None:
    """A repeat under its key is told 202 elsewhere, and that holds. One of which nobody was told is void."""
    with shop(prepared, 2) as there:
        system, (killed, living) = there.system, there.pods
        system.behave(DALL_E, "rate_limited_429", times=None, retry_after=1)
        repeated, forgotten = (there.place(killed, DALL_E, key=key) for key in ("repeated", "forgotten"))
        for order in (repeated, forgotten):
            there.until(living, order, "queued")
        system.stop(killed.name, signal.SIGKILL)
        system.behave(DALL_E, "ok", times=None)
        there.unhear(repeated, forgotten)
        assert there.place(living, DALL_E, key="repeated") == repeated
        assert there.until(living, repeated, *OVER, within_s=DIES_S)["status"] == "completed"
        lost = there.until(living, forgotten, *OVER, within_s=DIES_S)
        assert (lost["status"], lost["error"]["code"]) == ("failed", "temporarily_unavailable")
        events = there.booked(2)
        assert [(events[one].end, events[one].reason) for one in (repeated, forgotten)] == [
            ("charge", "delivered"),
            ("void", ADMISSION_UNREAD),
        ]
        assert len(system.jobs(DALL_E)) == 1
        there.check(events, dead=[killed])


@pytest.mark.rule(35)
def test_a_drain_hands_over_what_another_can_go_on_with_and_waits_for_the_rest(prepared: Prepared) -> None:
    """fal's job goes on elsewhere at once, twice, and is made once; OpenAI's picture is waited for and delivered."""
    with shop(prepared, 3) as there:
        system, first = there.system, there.pods[0]
        system.behave(FLUX, "slow", seconds=STAYS_S + 8.0)
        system.behave(GPT, "slow", seconds=STAYS_S)
        handed, stays = there.place(first, FLUX), there.place(first, GPT)
        there.handles(1)
        there.until(first, stays, "in_progress")
        first.stop()  # its code is 0
        (second,) = adopted(system, handed, there.pods)
        began_s = time.monotonic()
        heir, last = sorted(there.pods[1:], key=lambda pod: pod.name != second)
        assert there.get(heir, stays)["status"] == "completed"
        assert there.get(heir, handed)["status"] == "in_progress"
        heir.stop()
        assert time.monotonic() - began_s < 6.0  # and it does not wait for the job
        assert len(there.until(last, handed, *OVER)["data"]) == 1
        events = there.booked(2)
        assert [len(there.heirs(events[order])) for order in (handed, stays)] == [2, 0]
        assert len(system.jobs(FLUX)) == len(system.jobs(GPT)) == 1
        there.check(events)


@pytest.mark.rule(35)
@long
def test_a_drain_waits_for_a_long_order_for_longer_than_for_any_request(prepared: Prepared) -> None:
    """A stop cuts requests after 16 s here; OpenAI's picture takes longer, and is delivered."""
    with shop(prepared, 2, GHUB_DEADLINE_S="1") as there:
        system, (first, other) = there.system, there.pods
        system.behave(GPT, "slow", seconds=graceful_stop_s(1.0) + 5)
        stays = there.place(first, GPT)
        there.until(first, stays, "in_progress")
        first.stop()
        assert there.get(other, stays)["status"] == "completed"
        there.check(there.booked(1))


@pytest.mark.rule(9, 17)
def test_whoever_waits_for_an_order_that_is_cancelled_is_told(prepared: Prepared) -> None:
    """A repetition under its key that waits for it gets the 409, and so does a cancel of an order that is over."""
    with shop(prepared, 1) as there:
        system, (gateway,) = there.system, there.pods
        system.behave(FLUX, "stuck_in_queue")
        order = there.place(gateway, FLUX, key="twice")
        there.handles(1)

        def rate() -> Any:
            with Redis.from_url(system.valkey.url) as redis:
                return redis.hget(keys.OrgKeys(there.org_id).wallet, "tat_requests")

        async def cancel_while_one_waits() -> tuple[httpx2.Response, httpx2.Response]:
            async with httpx2.AsyncClient(
                base_url=there.url(gateway), headers=bearer(there.key), **LOOPBACK, timeout=60
            ) as client:
                body = {"model": FLUX, "prompt": "un faro", "n": 1}
                waiting = asyncio.create_task(
                    client.post("/images/generations", json=body, headers={"idempotency-key": "twice"})
                )
                while rate() == before:  # it has joined
                    await asyncio.sleep(0.01)
                cancelled = await client.post(f"/images/generations/{order}/cancel")
                return await waiting, cancelled

        before = rate()
        told, cancelled = run(cancel_while_one_waits())
        assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
        assert (told.status_code, told.json()["error"]["code"]) == (409, "order_cancelled")
        assert [job["state"] for job in system.jobs(FLUX)] == ["cancelled"]
        there.check(there.booked(1))


@pytest.mark.rule(9, 35)
def test_a_cancel_against_a_completion_ends_each_order_once(prepared: Prepared) -> None:
    """100 races: after a 200 nothing is charged; after a 409 it is."""
    with shop(prepared, 1) as there:
        system, (gateway,) = there.system, there.pods
        steps = [{"scenario": "slow", "seconds": round(random.uniform(0.0, 3.0), 2)} for _ in range(100)]
        httpx2.put(
            f"{system.simulator}/_sim/behaviour", json={"model": FLUX, "sequence": steps, "same": True}, **LOOPBACK
        )
        secrets = [system.customer(f"racer {number}", "100.00")[1] for number in range(4)]  # each cancels 60 a minute

        async def race(number: int) -> tuple[str, int, str]:
            async with httpx2.AsyncClient(
                base_url=there.url(gateway), headers=bearer(secrets[number % 4]), **LOOPBACK, timeout=60
            ) as client:
                order = {"model": FLUX, "prompt": f"order {number}"}
                placed = await client.post("/images/generations", json=order, headers=ASYNC)
                assert placed.status_code == 202, placed.text
                path = f"/images/generations/{placed.json()['id']}"
                await asyncio.sleep(random.uniform(0.0, 1.2))
                cancelled = await client.post(f"{path}/cancel")
                while (found := (await client.get(path)).json())["status"] not in OVER:
                    await asyncio.sleep(0.2)
                if cancelled.status_code == 409:
                    assert cancelled.json()["error"]["code"] == "not_cancellable"
                return placed.json()["id"], cancelled.status_code, found["status"]

        async def races() -> list[tuple[str, int, str]]:
            return await asyncio.gather(*(race(number) for number in range(100)))

        ends = run(races())
        counts = Counter((code, status) for _, code, status in ends)
        print(dict(counts), file=sys.stderr)
        assert counts.keys() == {(200, "cancelled"), (409, "completed")} and min(counts.values()) >= 5

        async def read(back: Any) -> list[Event]:
            return [event async for event in back.ledger.events()]

        wait_until(lambda: len(system.back(read)) == 100, "100 events")
        charged = {event.event_id for event in system.back(read) if event.end == "charge"}
        assert charged == {uuid_of(order) for order, code, _ in ends if code == 409}
        assert len(system.images()) == len(charged)
        there.check({})
        assert len(system.back(read)) == 100


@dataclass
class Receiver:
    """A receiver of webhooks that takes half of what comes, or nothing. No id fails more than three times."""

    dead: bool
    url: str = ""
    taken: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)

    def answer(self, headers: dict[str, str], body: bytes) -> int:
        """Take it or fail."""
        name = headers["webhook-id"]
        self.attempts[name] += 1
        if self.dead or (self.attempts[name] < 4 and random.random() < 0.5):
            return 500
        self.taken.append((headers, body))
        return 204

    def told(self, secret: str) -> dict[str, str]:
        """The type that was told of each order; every message is signed right."""
        messages = [Judge(secret).verify(body, headers) for headers, body in self.taken]
        return {message["data"]["id"]: message["type"] for message in messages}


@contextmanager
def receiving(count: int) -> Iterator[list[Receiver]]:
    """So many receivers, of which the last takes nothing."""
    made = [Receiver(dead=number == count - 1) for number in range(count)]
    with ExitStack() as stack:
        for one in made:
            server = stack.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), handler(one)))
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            one.url = f"http://127.0.0.1:{server.server_port}/in"
        yield made


def handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    """What the library's server needs."""

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self) -> None:  # the library's name
            body = self.rfile.read(int(self.headers["content-length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(receiver.answer(headers, body))
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the library's name
            """Say nothing."""

    return Taking


def impatient() -> None:
    """Have a consumer send again after a fifth of a second, not after 5 s, 30 s, two minutes and so on."""
    vars(delivery)["WebhookPace"] = partial(WebhookPace, poll_s=0.2, pauses_s=(0.2,) * 8)


@contextmanager
def shop_with_webhooks(prepared: Prepared) -> Iterator[tuple[Shop, list[Receiver], str]]:
    """Three gateways, ten receivers, and the secret with which their webhooks are signed."""
    with receiving(10) as receivers:
        hosts = ",".join(one.url.split("/")[2] for one in receivers)
        with shop(prepared, 3, GHUB_SECRETS_KEY=SECRETS_KEY, GHUB_WEBHOOK_HOSTS=hosts) as there:
            system = there.system
            system.stop("consumer")
            system.begin, usual = partial(Forked, before=impatient), system.begin
            system.start("consumer", "consume")
            system.begin = usual
            secret = json.loads(system.ghub("webhook", "rotate", "acme", "--json").stdout)["secret"]
            yield there, receivers, secret


@dataclass
class Placing:
    """What is placed under load, and which faults there were. Times are Unix seconds."""

    there: Shop
    receivers: list[Receiver]
    orders: dict[str, Receiver] = field(default_factory=dict)
    kills_s: list[float] = field(default_factory=list)
    drains: int = 0
    over: threading.Event = field(default_factory=threading.Event)

    def order(self, number: int, at_s: float) -> None:
        """Place an order like an honest client: on another gateway if one does not answer, under the same key."""
        time.sleep(max(0.0, at_s - time.monotonic()))
        model, receiver = GPT if number % 3 == 0 else FLUX, self.receivers[number % 10]
        for _ in range(200):
            with suppress(openai.APIConnectionError, openai.InternalServerError):
                made = self.there.place(
                    random.choice(self.there.pods),
                    model,
                    key=f"order-{number}",
                    prompt=f"order {number}",
                    webhook=receiver.url,
                )
                self.orders[made] = receiver
                return
            time.sleep(0.2)
        raise AssertionError(f"order {number} could not be placed")

    def harm(self, kinds: Sequence[str], pause_s: float) -> None:
        """Kill or drain one gateway after the other, each of which starts again, until it is over."""
        turn = 0
        while not self.over.wait(pause_s) or turn < len(kinds):
            pod, kind = self.there.pods[turn % len(self.there.pods)], kinds[turn % len(kinds)]
            if kind == "kill":
                self.there.system.stop(pod.name, signal.SIGKILL)
                self.kills_s.append(time.time())
            else:
                pod.stop()
                self.drains += 1
            pod.start()
            turn += 1


def load(there: Shop, receivers: list[Receiver], kinds: Sequence[str]) -> tuple[Placing, dict[str, Event]]:
    """Place orders while gateways are killed and drained; returns both, once all have ended and are booked."""
    placing = Placing(there, receivers)
    for model in (FLUX, GPT):
        steps = [{"scenario": "slow", "seconds": round(random.uniform(*MADE_S), 2)} for _ in range(ORDERS)]
        body = {"model": model, "sequence": steps, "same": True}
        httpx2.put(f"{there.system.simulator}/_sim/behaviour", json=body, **LOOPBACK).raise_for_status()
    harming = threading.Thread(target=placing.harm, args=(kinds, 4.0 if LONG else 1.5))
    harming.start()
    try:
        now_s = time.monotonic()
        with ThreadPoolExecutor(16) as clients:
            moments = [now_s + random.uniform(0.0, SPREAD_S) for _ in range(ORDERS)]
            list(clients.map(placing.order, range(ORDERS), sorted(moments)))
    finally:
        placing.over.set()
        harming.join()
    for order in placing.orders:
        there.until(there.pods[0], order, *OVER, within_s=SETTLES_S)
    wait_until(lambda: placing.orders.keys() <= there.ends().keys(), "all are booked", SETTLES_S)
    return placing, there.ends()


def check(placing: Placing, all_events: dict[str, Event], secret: str) -> None:
    """Each order ended once: delivered and charged, or lost by a kill; fal's have one job each, and all are told."""
    there, system = placing.there, placing.there.system
    assert len(placing.orders) == ORDERS
    events = {order: all_events[order] for order in placing.orders}
    # Others are those of whose admission Redis did not tell in time: their clients got a 503, and came again.
    assert {event.reason for order, event in all_events.items() if order not in events} <= {ADMISSION_UNREAD}
    lost = [event for event in events.values() if event.end != "charge"]
    handed = sum(event.handed is not None for event in events.values())
    models = Counter(event.opened.model for event in lost)
    print(
        f"{ORDERS} orders, {len(placing.kills_s)} kills, {placing.drains} drains: {handed} handed over,"
        f" {len(lost)} unknown {dict(models)}",
        file=sys.stderr,
    )
    for event in lost:
        assert (event.end, event.reason) == ("void", "lost")
        at_s = [one for one in placing.kills_s if event.admitted_us < one * 1_000_000 < event.ended_us]
        assert at_s, "nobody was killed while it was made"
    for model in (FLUX, GPT):
        assert len(system.jobs(model)) == sum(event.opened.model == model for event in events.values())
    fal = [event for event in events.values() if event.opened.model == FLUX and event.end == "charge"]
    ids = [name for event in fal for name in json.loads(event.upstream_ids or "[]")]
    assert len(ids) == len(set(ids)) == len(fal)
    assert set(ids) <= {job["request_id"] for job in system.jobs(FLUX)}

    def wanted(receiver: Receiver) -> dict[str, str]:
        mine = [order for order, one in placing.orders.items() if one is receiver and not receiver.dead]
        ends = {order: "completed" if events[order].end == "charge" else "failed" for order in mine}
        return {order: f"image.generation.{end}" for order, end in ends.items()}

    def all_told() -> bool:
        return all(len(one.told(secret)) >= len(wanted(one)) for one in placing.receivers)

    wait_until(all_told, "all are told", SETTLES_S)
    assert [one.told(secret) for one in placing.receivers] == [wanted(one) for one in placing.receivers]
    print(f"{sum(sum(one.attempts.values()) for one in placing.receivers)} calls of webhooks", file=sys.stderr)
    there.check(events)
    assert there.ends() == all_events


@pytest.mark.rule(4, 11, 35)
def test_orders_under_kills_and_drains_end_once_and_are_made_once(prepared: Prepared) -> None:
    """What a killed gateway had begun at a provider without a queue is unknown; everything else is delivered."""
    with shop_with_webhooks(prepared) as (there, receivers, secret):
        placing, events = load(there, receivers, ("drain", "kill"))
        assert placing.kills_s and placing.drains
        check(placing, events, secret)


@long
@pytest.mark.rule(35)
def test_drains_alone_lose_no_order_of_any_provider(prepared: Prepared) -> None:
    """Every one of 200 is delivered."""
    with shop_with_webhooks(prepared) as (there, receivers, secret):
        placing, events = load(there, receivers, ("drain",))
        assert [event for event in (events[order] for order in placing.orders) if event.end != "charge"] == []
        check(placing, events, secret)
