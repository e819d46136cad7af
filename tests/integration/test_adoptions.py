"""What a gateway does with the long orders of another one: real Valkey, journal and store; providers are scripted."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from config.catalogue import Model
from config.settings import hold_life_s, reply_margin_s
from config.tokens import TokenUsage
from metering.clock import period_at, utc_now
from metering.events import ADMISSION_UNREAD, handovers
from metering.journal.file import Journal
from metering.journal.frames import Folder
from metering.journal.open_orders import OpenOrders
from metering.pricing import FxRate
from metering.wallet import keys
from metering.wallet.connection import WalletAway
from metering.wallet.jobs import UpstreamJobs
from metering.wallet.long_orders import LongOrders, Noted, Part
from metering.wallet.presence import Presence
from metering.wallet.values import Caller, Close, LongTerms, OrderIdentity, Verdict
from proxy.orders.adoptions import Adoptions
from proxy.orders.calls import UpstreamCalls
from proxy.orders.circuits import Circuits
from proxy.orders.document import encode
from proxy.orders.generations import Generations, Kept
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.places import Places
from proxy.orders.routes import Routes
from proxy.orders.settlement import Settlement
from proxy.orders.tasks import Tasks
from proxy.ports import Call, LetGo, Picture
from proxy.storage.local import LocalStore
from tests.conftest import ValkeyServer
from tests.kits.books import Books, open_books, pinned
from tests.kits.orders import CATALOGUE, FLUX, files, order, picture, png, room_for, uploader, whole

OLD = "a" * 32


class Queue:
    """A provider whose jobs others can go on with; each part `takes_s`, by the number of its first image."""

    def __init__(self, takes_s: dict[int, float]) -> None:
        self.takes_s = takes_s
        self.begun: list[int] = []
        self.resumed: list[str] = []

    async def generate(self, call: Call) -> AsyncGenerator[Picture]:
        """Take a part, give a handle for it, and make it."""
        self.begun.append(call.first)
        call.report.usd = call.order.model.usd_of(TokenUsage(text_input=1_000, image_output=1_000))
        await call.parts.note(call, f"job-{call.first}")
        async for one in self._made(call):
            yield one

    async def resume(self, call: Call) -> AsyncGenerator[Picture]:
        """Go on with a part."""
        self.resumed.append(call.handle)
        async for one in self._made(call):
            yield one

    async def cancel_job(self, handle: str) -> None: ...

    def job_id(self, handle: str) -> str | None:
        return handle

    async def _made(self, call: Call) -> AsyncGenerator[Picture]:
        for _ in range(int(self.takes_s.get(call.first, 0.0) / 0.05)):
            if call.parts.leaving:
                raise LetGo
            await asyncio.sleep(0.05)
        for number in range(call.first, call.first + call.images):
            call.report.numbers[number] = number
            yield picture(number, whole(png(number)))


@dataclass
class Adopter:
    """A gateway that looks for orders."""

    name: str
    adoptions: Adoptions
    settlement: Settlement
    tasks: Tasks
    full: asyncio.Event
    stopping: asyncio.Event

    async def goes_on(self) -> None:
        """Look twice, and make what was found to its end."""
        for _ in range(2):
            await self.adoptions.look()
        await self.tasks.drain()


@asynccontextmanager
async def adopter(
    books: Books, place: Path, queue: Queue, models: Mapping[str, Model] = CATALOGUE.models
) -> AsyncIterator[Adopter]:
    """A gateway over these books; fal's jobs can be gone on with, no other's."""
    folder, store = Folder(place), LocalStore(place.parent / "images")
    journal, full, stopping = Journal(folder, 64 * 1024), asyncio.Event(), asyncio.Event()
    open_orders = OpenOrders(journal, books.wallet, books.ledger, Presence(books.redis))
    await open_orders.begin(utc_now())
    providers = {"fal": queue, "openai": queue}
    jobs, tasks, routes = UpstreamJobs(books.redis), Tasks(), Routes(Circuits(), providers)
    calls = UpstreamCalls(uploader(store), providers, routes)
    orders = LongOrders(books.redis, jobs.owner)
    settlement = Settlement(books.wallet, open_orders, calls, Lifecycle(), tasks, jobs.owner)
    generations = Generations(books.wallet, calls, settlement, tasks, Kept(jobs, orders, stopping.is_set))
    capacity = room_for(100, broken=lambda: "full" if full.is_set() else None)
    offer: Any = SimpleNamespace(catalogue=SimpleNamespace(models=models))
    adoptions = Adoptions(
        orders,
        books.wallet,
        open_orders,
        Places(journal, capacity),
        generations,
        routes,
        offer,
        {"fal"},
        stopping.is_set,
    )
    await jobs.beat()
    try:
        yield Adopter(jobs.owner, adoptions, settlement, tasks, full, stopping)
    finally:
        await tasks.drain()
        await journal.close()
        folder.close()


async def begin(
    books: Books,
    caller: Caller,
    *parts: Part,
    images: int,
    made_s: float = 20.0,
    owner: str = OLD,
    document: bytes = b"",
    heard: bool = True,
) -> str:
    """A long order whose gateway died after it had heard of it, and begun these parts; returns its id."""
    order_id, deadline_s = str(uuid4()), made_s + reply_margin_s(made_s)
    admission = await books.admit(
        caller,
        order_id,
        pinned(images, now_us=books.wallet.now_us()),
        life_s=hold_life_s(deadline_s),
        owner=owner,
        long=LongTerms(document or encode(order(FLUX, images), OrderIdentity("equal")), made_s),
    )
    assert admission.verdict is Verdict.ADMITTED
    dead = LongOrders(books.redis, owner)
    if heard:
        await dead.take(caller.org_id, order_id)
    for part in parts:
        assert await dead.begin(caller.org_id, order_id, part) is Noted.OURS
    return order_id


@dataclass
class Shop:
    """Books by the server's own time, a customer, and a gateway that looks for orders."""

    books: Books
    caller: Caller
    gateway: Adopter
    queue: Queue

    async def ends(self) -> dict[str, tuple[str, str, int]]:
        """How each order ended that has ended; each went on once."""
        events = await self.books.events(self.caller)
        assert all(event.handed is not None and len(handovers(event.handed)) == 1 for event in events)
        return {event.event_id: (event.end, event.reason, event.quantity) for event in events}

    def give_up(self, order_id: str) -> None:
        """The gateway has not heard that it admitted an order, and has told its client to try again."""
        until_us = self.books.wallet.now_us() + 20_000_000
        self.gateway.settlement.abandon(
            self.caller.org_id, order_id, ADMISSION_UNREAD, until_us=until_us, comes_again=True
        )

    async def hand_over(self, journal: Path) -> None:
        """The gateway takes the only order over and stops at once; another one goes on with it, and charges four."""
        for _ in range(2):
            await self.gateway.adoptions.look()
        self.gateway.stopping.set()
        await self.gateway.tasks.drain()
        await self.gateway.goes_on()
        assert await self.books.events(self.caller) == []
        self.queue.takes_s.clear()
        async with adopter(self.books, journal, self.queue) as another:
            await another.goes_on()
        (event,) = await self.books.events(self.caller)
        assert (event.end, event.quantity, len(handovers(event.handed or ""))) == ("charge", 4, 2)
        assert (self.queue.begun, self.queue.resumed) == ([], ["job-0", "job-0"])

    def hold(self, order_id: str) -> str:
        """The name of an order's hold."""
        return keys.OrgKeys(self.caller.org_id).hold(order_id)

    async def restart(self, server: ValkeyServer) -> None:
        """Let Redis come back under another run, with all that it had."""
        server.stop()
        server.start()
        await self.books.redis.connection_pool.disconnect()


@asynccontextmanager
async def shop(
    redis_url: str, tmp_path: Path, takes_s: dict[int, float], models: Mapping[str, Model] = CATALOGUE.models
) -> AsyncIterator[Shop]:
    """Open all of it. `takes_s` is how long a part takes, by its first image."""
    queue = Queue(takes_s)
    async with open_books(redis_url, tmp_path / "l.db", now_us=0) as books:
        month = period_at(books.wallet.now_us()).month
        await books.ledger.add_rate(FxRate(month, Decimal("20.00"), "test"), datetime.now(UTC))
        async with adopter(books, tmp_path / "journal", queue, models) as gateway:
            yield Shop(books, await books.org("acme", "100.00"), gateway, queue)


@asynccontextmanager
async def restarting(tmp_path: Path, takes_s: dict[int, float]) -> AsyncIterator[tuple[ValkeyServer, Shop]]:
    """Open all of it on a server of its own, which forgets nothing when it is killed."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder, ExitStack() as stack:
        server = ValkeyServer(Path(folder), "--appendonly", "yes", "--appendfsync", "always")
        stack.callback(server.stop)
        server.start()
        async with shop(server.url, tmp_path, takes_s) as there:
            yield server, there


KEPT, OTHER = Part("fal", 0, 4, "job-0"), Part("fal", 4, 4)
CHARGED = ("charge", "delivered")


@pytest.mark.rule(5, 35)
async def test_parts_go_on_begin_or_are_lost_and_what_is_stored_is_charged(redis_url: str, tmp_path: Path) -> None:
    """A handle goes on; what had not begun begins; a part without a handle is lost, alone or beside others."""
    async with shop(redis_url, tmp_path, {}) as there:
        begun: list[tuple[tuple[Part, ...], int]] = [
            ((KEPT,), 8),
            ((KEPT, OTHER), 8),
            ((OTHER,), 8),
            ((replace(KEPT, images=1, handle=""),), 1),
            ((), 1),
        ]
        orders = [await begin(there.books, there.caller, *parts, images=images) for parts, images in begun]
        await there.gateway.goes_on()
        ends = await there.ends()
        assert [ends[order_id] for order_id in orders] == [
            (*CHARGED, 8),
            (*CHARGED, 4),
            (*CHARGED, 4),
            ("void", "lost", 0),
            (*CHARGED, 1),
        ]
        assert (sorted(there.queue.begun), there.queue.resumed) == ([0, 0, 4], ["job-0", "job-0"])
        assert len(files(tmp_path / "images")) == 17


@pytest.mark.rule(5, 35)
async def test_an_adopted_order_that_meets_its_deadline_is_charged_for_what_is_stored(
    redis_url: str, tmp_path: Path
) -> None:
    """Four of eight: the time for its settlement is the same as if nobody had died."""
    async with shop(redis_url, tmp_path, {4: 30.0}) as there:
        order_id = await begin(there.books, there.caller, KEPT, images=8, made_s=2.0)
        await there.gateway.goes_on()
        assert await there.ends() == {order_id: (*CHARGED, 4)}


@pytest.mark.rule(35)
async def test_a_gateway_without_room_takes_an_order_as_soon_as_it_has_room(redis_url: str, tmp_path: Path) -> None:
    """Meanwhile it is as it was, so any other gateway may take it."""
    async with shop(redis_url, tmp_path, {}) as there:
        order_id = await begin(there.books, there.caller, images=1)
        there.gateway.full.set()
        before = await there.books.redis.hgetall(there.hold(order_id))
        await there.gateway.goes_on()
        assert await there.books.redis.hgetall(there.hold(order_id)) == before
        there.gateway.full.clear()
        await there.gateway.goes_on()
        assert await there.ends() == {order_id: (*CHARGED, 1)}


@pytest.mark.rule(35)
@pytest.mark.parametrize(("field", "value"), [("long", b'{"v":2}'), ("opened", b'{"v":2}')])
async def test_an_order_that_cannot_be_read_here_is_left_to_others_and_delays_none(
    redis_url: str, tmp_path: Path, field: str, value: bytes
) -> None:
    """It stays as it was."""
    async with shop(redis_url, tmp_path, {}) as there:
        strange = await begin(there.books, there.caller, images=1)
        await there.books.redis.hset(there.hold(strange), field, value)
        before = await there.books.redis.hgetall(there.hold(strange))
        usual = await begin(there.books, there.caller, images=1)
        await there.gateway.goes_on()
        assert await there.ends() == {usual: (*CHARGED, 1)}
        assert await there.books.redis.hgetall(there.hold(strange)) == before


@pytest.mark.rule(35)
async def test_a_gateway_that_stops_takes_nothing_and_leaves_what_it_can(redis_url: str, tmp_path: Path) -> None:
    """Its adopted job is nobody's again, with the same handle."""
    async with shop(redis_url, tmp_path, {0: 30.0}) as there:
        await begin(there.books, there.caller, KEPT, images=4)
        await there.hand_over(tmp_path / "another journal")


@pytest.mark.rule(6, 35)
async def test_an_order_that_is_about_to_be_ended_is_not_begun_again(redis_url: str, tmp_path: Path) -> None:
    """Its client was told that it is not placed: nothing is bought for it as soon as Redis is back."""
    async with shop(redis_url, tmp_path, {}) as there:
        order_id = await begin(there.books, there.caller, images=1, owner=there.gateway.name, heard=False)
        redis, mark = there.books.redis, keys.OrgKeys(there.caller.org_id).mark
        projected = await redis.get(mark)
        assert projected is not None
        await redis.delete(mark)
        there.give_up(order_id)
        for _ in range(2):
            await there.gateway.adoptions.look()
        await redis.set(mark, projected)
        await there.gateway.goes_on()
        assert there.queue.begun == []
        (event,) = await there.books.events(there.caller)
        assert (event.end, event.reason, event.handed) == ("void", ADMISSION_UNREAD, None)


@pytest.mark.rule(6, 35)
async def test_an_order_that_was_not_heard_of_is_begun_once_its_client_was_told_of_it(
    redis_url: str, tmp_path: Path
) -> None:
    """By any gateway that finds it, also by the one that was about to end it; one that is void is told of by nobody."""
    async with shop(redis_url, tmp_path, {}) as there:
        wallet, org_id = there.books.wallet, there.caller.org_id
        mine = there.gateway.name
        told, void = [await begin(there.books, there.caller, images=1, owner=mine, heard=False) for _ in range(2)]
        repeat = LongOrders(there.books.redis, OLD)
        assert await repeat.tell(org_id, told)
        for order_id in (told, void):
            there.give_up(order_id)
        await there.gateway.tasks.drain()
        assert not await repeat.tell(org_id, void)
        assert await there.books.redis.exists(there.hold(void)) == 0
        await there.gateway.goes_on()
        ends = {event.event_id: (event.end, event.reason) for event in await there.books.events(there.caller)}
        assert ends == {told: CHARGED, void: ("void", ADMISSION_UNREAD)}
        assert there.queue.begun == [0] and (await wallet.read(org_id)).held_micro_mxn == 0


@pytest.mark.rule(6, 35)
async def test_telling_of_an_order_races_its_end_and_one_of_them_counts(redis_url: str, tmp_path: Path) -> None:
    """A hundred times: what was told of is open, and what was not is void."""
    async with shop(redis_url, tmp_path, {}) as there:
        wallet, org_id, repeat = there.books.wallet, there.caller.org_id, LongOrders(there.books.redis, OLD)
        outcomes = set()
        for number in range(100):
            order_id = await begin(there.books, there.caller, images=1, heard=False)

            async def end(order_id: str = order_id) -> Close:
                return (await wallet.void(org_id, order_id, ADMISSION_UNREAD, owner=OLD)).close

            both = (repeat.tell(org_id, order_id), end())
            told, close = await asyncio.gather(*both) if number % 2 else (await asyncio.gather(*both[::-1]))[::-1]
            outcomes.add((told, close))
            await wallet.void(org_id, order_id, "overloaded", owner=OLD)
        assert outcomes == {(True, Close.NOT_OWNER), (False, Close.VOIDED)}


@pytest.mark.rule(21, 35)
async def test_a_redis_that_may_have_forgotten_a_part_lets_nobody_give_it_to_its_provider_again(tmp_path: Path) -> None:
    """After a restart or a failover, what is not noted of a dead gateway's order is lost, as if it had begun.

    What its gateway let go itself is known by it: that begins elsewhere, unless a handle of it was forgotten.
    """
    async with restarting(tmp_path, {}) as (server, there):
        org_id, alive = there.caller.org_id, LongOrders(there.books.redis, OLD)
        begun = [await begin(there.books, there.caller, *parts, images=8) for parts in ((KEPT,), ())]
        let_go = [await begin(there.books, there.caller, *parts, images=8) for parts in ((KEPT,), (), ())]
        await there.restart(server)
        for order_id, known in zip(let_go, ((0,), (), (0,)), strict=True):
            assert await alive.release(org_id, order_id, known)
        await there.gateway.goes_on()
        ends, lost = await there.ends(), ("void", "lost", 0)
        assert [ends[order_id] for order_id in begun] == [(*CHARGED, 4), lost]
        assert [ends[order_id] for order_id in let_go] == [(*CHARGED, 8), (*CHARGED, 8), lost]
        assert (sorted(there.queue.begun), there.queue.resumed) == ([0, 4, 4], ["job-0", "job-0"])


@pytest.mark.rule(21, 35)
async def test_what_redis_may_have_forgotten_stays_lost_however_often_its_order_is_handed_over(tmp_path: Path) -> None:
    """Its heir lets it go with what it knows of, and cannot vouch for what it never knew."""
    async with restarting(tmp_path, {0: 30.0}) as (server, there):
        await begin(there.books, there.caller, KEPT, images=8)
        await there.restart(server)
        await there.hand_over(tmp_path / "another journal")


@pytest.mark.rule(6, 35)
async def test_an_order_that_was_not_heard_of_because_redis_restarted_is_made_once_its_client_was_told_of_it(
    tmp_path: Path,
) -> None:
    """Its own gateway knows that it has begun none of it."""
    async with restarting(tmp_path, {}) as (server, there):
        wallet, org_id = there.books.wallet, there.caller.org_id
        order_id = await begin(there.books, there.caller, images=1, owner=there.gateway.name, heard=False)
        await there.restart(server)
        assert await LongOrders(there.books.redis, OLD).tell(org_id, order_id)
        there.give_up(order_id)
        await there.gateway.tasks.drain()
        await there.gateway.goes_on()
        assert await there.ends() == {order_id: (*CHARGED, 1)}
        assert there.queue.begun == [0] and (await wallet.read(org_id)).held_micro_mxn == 0


@pytest.mark.rule(21, 35)
async def test_a_redis_that_was_replaced_and_came_back_without_a_restart_may_have_forgotten_a_part(
    tmp_path: Path,
) -> None:
    """Its run is the same, and what was noted before it followed another one is gone."""
    async with restarting(tmp_path, {}) as (_, there):
        redis: Any = there.books.redis
        order_id = await begin(there.books, there.caller, KEPT, OTHER, images=8)
        await redis.execute_command("REPLICAOF", "localhost", "1")  # what it would have of the other one is scripted
        await redis.execute_command("REPLICAOF", "NO", "ONE")
        await redis.hdel(there.hold(order_id), "part:4")
        await there.gateway.goes_on()
        assert await there.ends() == {order_id: (*CHARGED, 4)}
        assert (there.queue.begun, there.queue.resumed) == ([], ["job-0"])


@pytest.mark.rule(6)
async def test_a_server_that_does_not_tell_its_run_admits_no_long_order_and_holds_nothing(tmp_path: Path) -> None:
    """It is asked before the first write: a script that fails half-way keeps what it wrote."""
    async with restarting(tmp_path, {}) as (_, there):
        names = keys.OrgKeys(there.caller.org_id)
        redis: Any = there.books.redis
        before = await redis.hgetall(names.wallet)
        await redis.execute_command("ACL", "SETUSER", "default", "-info")
        with pytest.raises(WalletAway):
            await begin(there.books, there.caller, images=1)
        await redis.execute_command("ACL", "SETUSER", "default", "+info")
        assert await redis.hgetall(names.wallet) == before


@pytest.mark.rule(22, 24, 35)
async def test_an_adopted_order_is_measured_by_the_list_of_its_quote(redis_url: str, tmp_path: Path) -> None:
    """Not by the file of the gateway that goes on with it, which may have a new price by then."""
    rates = '{"image_output":"10","text_input":"1"}'
    document = encode(order("openai/gpt-image-2", quality="medium"), OrderIdentity("equal"), rates)
    async with shop(redis_url, tmp_path, {}) as there:
        order_id = await begin(there.books, there.caller, images=1, document=document)
        opened = await there.books.redis.hget(there.hold(order_id), "opened")
        assert isinstance(opened, bytes)
        of_its_model = opened.replace(b'"fal"', b'"openai"').replace(b'"fal-ai/flux-pro/v1.1"', b'"gpt-image-2"')
        await there.books.redis.hset(there.hold(order_id), "opened", of_its_model)
        await there.gateway.goes_on()
        (event,) = await there.books.events(there.caller)
        assert (event.end, event.usd_measured) == ("charge", "0.011")


@pytest.mark.rule(35)
async def test_an_adopted_order_goes_on_by_its_second_route_also_at_the_same_provider(
    redis_url: str, tmp_path: Path
) -> None:
    """It is charged as if nobody had died: by the price of the route that served it, which its event names."""
    first = CATALOGUE.models[FLUX]
    second = first.model_copy(update={"upstream": "fal-ai/another", "usd_per_image": Decimal("0.02")})
    models = {FLUX: first.model_copy(update={"second": second})}
    async with shop(redis_url, tmp_path, {}, models) as there:
        await begin(there.books, there.caller, Part("fal", 0, 1, "job-0", "fal-ai/another"), images=1)
        await there.gateway.goes_on()
        (event,) = await there.books.events(there.caller)
        assert event.route is not None and event.route.upstream == "fal-ai/another"
        assert (event.usd_measured, event.amount_micro_mxn) == ("0.02", 420_000)
