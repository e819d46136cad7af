"""Models, prices and plans that change under load, with real gateways: each has its own copy of the files."""

import asyncio
import signal
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from typing import Any

import httpx2
import pytest
from redis import Redis

import metering.price_table
import metering.schedules
import proxy.wiring
from config.catalogue import Catalogue, models_file, version_of
from metering.clock import utc_at, utc_now
from metering.events import Event
from metering.price_table import book_of
from metering.pricing import Quote
from metering.wallet.values import Admission, Caller, Verdict
from metering.wallet.wallet import Wallet
from proxy.backends import Backends
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.processes import Forked
from tests.kits.system import FLUX, System, bearer, wait_until

NOTICE_S, LEASE_S = 6.0, 4.0
"""Instead of two minutes, so that the test need not wait for them."""

HELD_BACK_US = 2_000_000
CLOSE_US = 3_000_000
"""How close to the change orders must be on both sides, on a machine that others use."""

SHIPPED = models_file(None).read().decode()
WITHOUT_FLUX = "\n[models.".join(part for part in SHIPPED.split("\n[models.") if not part.startswith(f'"{FLUX}"'))
PLANS = "[plans.default]\nrequests_per_minute = {0}\nimages_per_minute = {0}\n"
QUOTE_OVER = "the quote is over"
"""In the log of a gateway, for each order that was quoted before a change and asked for after it."""

NEW_USD, OLD_USD = "0.07", "0.04"


def sooner() -> None:
    """Let changes begin sooner, look at files and prices more often, and hold back orders until a change has begun.

    Every other order that was quoted in the last seconds before a change is sent to Redis just after it.
    """
    metering.schedules.NOTICE_S, metering.price_table.LEASE_S = NOTICE_S, LEASE_S
    for name, poll_s in (("CONFIG_POLL_S", 0.2), ("PRICES_POLL_S", 0.5)):
        setattr(proxy.wiring, name, poll_s)
    admit, turns = Wallet.admit, count()

    async def later(
        wallet: Wallet, caller: Caller, order_id: str, quote: Quote, *given: Any, **named: Any
    ) -> Admission:
        left_us = quote.price.until_us - wallet.now_us(caller.org_id)
        if left_us < HELD_BACK_US and next(turns) % 2:
            await asyncio.sleep(left_us / 1_000_000 + 0.002)
        admission = await admit(wallet, caller, order_id, quote, *given, **named)
        if admission.verdict is Verdict.QUOTE_OVER:
            print(QUOTE_OVER, order_id, flush=True)
        return admission

    Wallet.admit = later  # type: ignore[method-assign, assignment]


def redis_us(system: System) -> int:
    """Read Redis' `TIME`."""
    with Redis.from_url(system.valkey.url) as redis:
        seconds, micro = redis.time()
    return int(seconds) * 1_000_000 + int(micro)


def dearer(effective_us: int) -> str:
    """The shipped file with another price of one model from a moment on."""
    table = f'[models."{FLUX}"]'
    head, _, own = SHIPPED.partition(table)
    assert f'usd_per_image = "{OLD_USD}"' in own
    changed = own.replace(f'usd_per_image = "{OLD_USD}"', f'usd_per_image = "{NEW_USD}"', 1)
    return f"effective_from = {utc_at(effective_us).isoformat()}\n{head}{table}{changed}"


class Gateways:
    """Two gateways of one system, each with its own files; their regions are their names."""

    def __init__(self, system: System) -> None:
        self.system = system
        system.begin = partial(Forked, before=sooner)
        self.ports = {"one": system.port, "two": free_port()}
        self.models = {name: system.folder / f"models-{name}.toml" for name in self.ports}
        for path in self.models.values():
            path.write_text(SHIPPED)
        self.plans = system.folder / "plans.toml"
        self.plans.write_text(PLANS.format(1_000))
        system.valkey.start()
        system.start("simulator", "simulate", "--port", str(system.simulator_port), "--latency-scale", "0")
        system.start("consumer", "consume")
        for name in self.ports:
            self.start(name)

    def start(self, name: str) -> None:
        """Start one of them, and wait until it is ready."""
        folder = self.system.folder
        self.system.start(
            name,
            "serve",
            GHUB_PORT=str(self.ports[name]),
            GHUB_JOURNAL_DIR=str(folder / f"journal-{name}"),
            GHUB_SPOOL_DIR=str(folder / f"spool-{name}"),
            GHUB_MODELS=str(self.models[name]),
            GHUB_PLANS=str(self.plans),
            GHUB_REGION=name,
        )
        wait_until(lambda: self.ready(name).startswith("ready"), f"{name} is ready")
        wait_until(self.system.projected, "Redis is projected")

    def ready(self, name: str) -> str:
        """Read what a gateway says of itself."""
        with suppress(httpx2.TransportError):
            return httpx2.get(f"http://127.0.0.1:{self.ports[name]}/readyz", **LOOPBACK).text
        return ""

    def has(self, name: str, text: str) -> bool:
        """True if a gateway has this content of its file in force."""
        return f"models {version_of(text.encode())}\n" in self.ready(name)


async def buy(port: int, key: str, until: asyncio.Event, number: int) -> list[int]:
    """Order one picture after the other; returns the status of each."""
    statuses: list[int] = []
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}/v1", headers=bearer(key), **LOOPBACK) as client:
        while not until.is_set():
            body = {"model": FLUX, "prompt": f"{port} {number} {len(statuses)}"}
            statuses.append((await client.post("/images/generations", json=body, timeout=30)).status_code)
    return statuses


async def under_load(gateways: Gateways, key: str, meanwhile: Coroutine[Any, Any, None]) -> list[int]:
    """Buy of both gateways at once while something else is done; returns the status of every order."""
    until = asyncio.Event()
    buyers = [
        asyncio.create_task(buy(port, key, until, number)) for port in gateways.ports.values() for number in range(8)
    ]
    await meanwhile
    until.set()
    return [status for statuses in await asyncio.gather(*buyers) for status in statuses]


def charges(system: System, org_id: str) -> list[Event]:
    """Read the charges of an organisation that the ledger has."""

    async def read(back: Backends) -> list[Event]:
        return [event async for event in back.ledger.events(org_id=org_id) if event.end == "charge"]

    return system.back(read)


@pytest.mark.rule(24, 25, 31)
def test_no_order_is_charged_at_another_price_than_the_moments(prepared: Prepared) -> None:
    """Two gateways under load; one follows its file in time, the other sees it after the price has begun."""
    system = prepared()
    gateways = Gateways(system)
    org_id, key = system.customer("acme", "100000.00", requests_per_minute=1_000_000, images_per_minute=1_000_000)
    then_us = redis_us(system) + int((NOTICE_S + 4) * 1_000_000)
    changed = dearer(then_us)

    async def change() -> None:
        gateways.models["one"].write_text(changed)
        while (left_us := then_us - await asyncio.to_thread(redis_us, system)) > 0:
            await asyncio.sleep(left_us / 1_000_000)
        assert gateways.has("one", changed) and gateways.has("two", SHIPPED)
        await asyncio.sleep(1.0)
        gateways.models["two"].write_text(changed)
        await asyncio.sleep(1.0)

    statuses = run(under_load(gateways, key, change()))
    # On a machine that others use, Redis may not answer in time; then nothing is charged.
    assert set(statuses) <= {200, 503} and statuses.count(200) > 0.9 * len(statuses)
    wait_until(lambda: len(charges(system, org_id)) == statuses.count(200), "every charge is in the ledger")
    events = charges(system, org_id)
    for event in events:
        right = NEW_USD if event.admitted_us >= then_us else OLD_USD
        assert event.opened.proof.usd_per_image == right, f"{event.admitted_us - then_us} µs after the change"
    for name in gateways.ports:
        mine = [event.admitted_us - then_us for event in events if event.opened.region == name]
        before_us, after_us = max(us for us in mine if us < 0), min(us for us in mine if us >= 0)
        assert before_us > -CLOSE_US and after_us < CLOSE_US, f"{name}: nothing was sold close to the moment"
        quoted_again = [line for line in system.log(name).splitlines() if line.startswith(QUOTE_OVER)]
        assert quoted_again and len(set(quoted_again)) == len(quoted_again), "no order is quoted a third time"
    wait_until(lambda: gateways.has("two", changed), "the second gateway has the file")
    verified = system.ghub("verify")
    assert verified.returncode == 0, verified.stdout + verified.stderr


def order(gateways: Gateways, name: str, key: str, prompt: str) -> httpx2.Response:
    """Order one picture of a gateway."""
    url = f"http://127.0.0.1:{gateways.ports[name]}/v1/images/generations"
    return httpx2.post(url, headers=bearer(key), json={"model": FLUX, "prompt": prompt}, **LOOPBACK, timeout=30)


def listed(gateways: Gateways, name: str, key: str) -> dict[str, Any]:
    """Read the models of a gateway by their ids."""
    reply = httpx2.get(f"http://127.0.0.1:{gateways.ports[name]}/v1/models", headers=bearer(key), **LOOPBACK)
    return {row["id"]: row for row in reply.json()["data"]}


def test_a_model_and_a_plan_change_while_orders_are_made(prepared: Prepared) -> None:
    """An order that was taken is finished and charged; the next one is 404. Limits of a plan hold for its customers."""
    system = prepared()
    gateways = Gateways(system)
    org_id, key = system.customer("acme", "10.00")
    with ThreadPoolExecutor(1) as elsewhere:
        system.behave(FLUX, "slow", seconds=3)
        open_order = elsewhere.submit(order, gateways, "one", key, "slow")
        wait_until(lambda: system.cut(org_id).held_micro_mxn > 0, "the order is open")
        gateways.models["one"].write_text(WITHOUT_FLUX)
        wait_until(lambda: gateways.has("one", WITHOUT_FLUX), "the model is gone")
        assert order(gateways, "one", key, "late").status_code == 404 and not open_order.done()
        assert FLUX not in listed(gateways, "one", key) and FLUX in listed(gateways, "two", key)
        assert open_order.result().status_code == 200 and open_order.result().headers["x-geekhub-cost-mxn"] == "0.84"

    then_us = redis_us(system) + int((NOTICE_S + 60) * 1_000_000)
    gateways.models["one"].write_text(dearer(then_us))
    wait_until(lambda: gateways.has("one", dearer(then_us)), "the model is back, with another price to come")
    for name in gateways.ports:  # the other one has an old file, and tells the same
        wait_until(lambda name=name: listed(gateways, name, key)[FLUX]["price"]["upcoming"] is not None, "it is shown")  # type: ignore[misc]
        price = listed(gateways, name, key)[FLUX]["price"]
        assert (price["usd_per_image"], price["upcoming"]["usd_per_image"]) == (OLD_USD, NEW_USD)
        assert price["upcoming"]["effective_from"] == then_us // 1_000_000

    gateways.plans.write_text(PLANS.format(7))
    wait_until(
        lambda: order(gateways, "two", key, "x").headers["x-ratelimit-limit-requests"] == "7", "the plan has followed"
    )


@pytest.mark.parametrize("alive_s", [0.0, 0.3, 0.6])
def test_a_gateway_that_is_killed_while_it_takes_a_file_comes_back_with_it(prepared: Prepared, alive_s: float) -> None:
    """Before, while or after it told the ledger: the file is listed once, and both gateways know the price to come."""
    system = prepared()
    gateways = Gateways(system)
    _, key = system.customer("acme", "10.00")
    then_us = redis_us(system) + int((NOTICE_S + 60) * 1_000_000)
    gateways.models["one"].write_text(dearer(then_us))
    time.sleep(alive_s)  # its end is drawn, not waited for
    system.stop("one", signal.SIGKILL)
    gateways.start("one")
    for name in gateways.ports:
        wait_until(lambda name=name: listed(gateways, name, key)[FLUX]["price"]["upcoming"] is not None, "it is shown")  # type: ignore[misc]
    assert system.back(lambda back: back.ledger.last_price_list()).number == 2
    assert "config_refused" not in system.log("one")


@pytest.mark.rule(25)
def test_a_gateway_that_is_frozen_across_a_change_sells_at_no_old_price(prepared: Prepared) -> None:
    """Its orders wait in the kernel, and come before it has read anything: Redis refuses what it quotes."""
    system = prepared()
    system.begin = partial(Forked, before=sooner)
    system.start_all()
    org_id, key = system.customer("acme", "100.00", requests_per_minute=1_000_000, images_per_minute=1_000_000)

    def buy(place: int) -> int:
        body = {"model": FLUX, "prompt": f"{place}"}
        reply = httpx2.post(f"{system.url}/images/generations", json=body, headers=bearer(key), timeout=60, **LOOPBACK)
        return reply.status_code

    with ThreadPoolExecutor(8) as pool, pytest.MonkeyPatch.context() as patch:
        assert set(pool.map(buy, range(8))) == {200}
        gateway = system.processes["gateway"]
        gateway.send_signal(signal.SIGSTOP)
        patch.setattr(metering.schedules, "NOTICE_S", NOTICE_S)
        then_us = redis_us(system) + int((NOTICE_S + 0.5) * 1_000_000)
        book = book_of(models_file(None).parse(Catalogue, dearer(then_us).encode()))
        assert system.back(lambda back: back.ledger.list_prices(book, redis_us(system), utc_now()))
        wait_until(lambda: redis_us(system) > then_us, "the change has begun")
        late = [pool.submit(buy, place) for place in range(8, 16)]
        gateway.send_signal(signal.SIGCONT)
        assert {one.result() for one in late} <= {200, 503}
        wait_until(lambda: buy(99) == 200, "it has read the new list")
    wait_until(lambda: any(one.admitted_us >= then_us for one in charges(system, org_id)), "booked")
    sold = {str(one.opened.proof.usd_per_image) for one in charges(system, org_id) if one.admitted_us >= then_us}
    assert sold == {NEW_USD}
    wait_until(lambda: system.ghub("verify").returncode == 0, "the books are right")
