"""One generation's end, over a real local store: what is charged, what is kept, what the client is told."""

import asyncio
import gc
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY
from starlette.requests import Request
from starlette.types import Message

from metering.accounts import KEY_PREFIX
from metering.answered import max_bytes
from metering.clock import period_at, utc_now
from metering.end_users import EndUsers
from metering.fx import FxTable
from metering.ledger.sqlite import open_sqlite
from metering.price_table import PriceTable, book_of
from metering.pricing import FxRate, Quote
from metering.pseudonyms import Pseudonyms
from metering.wallet.connection import WalletAway
from metering.wallet.values import Admission, Caller, LongTerms, OrderIdentity, RateState, Verdict
from proxy.api.auth import Authenticator
from proxy.api.dry_run import DryRuns
from proxy.api.images import ImagesEndpoint
from proxy.api.reads import ReadRates
from proxy.api.replies import Replies
from proxy.api.requests import RequestLimits
from proxy.api.standing import Standing
from proxy.errors import ApiError, Kind
from proxy.messages import TOP_UP
from proxy.offer import Offer
from proxy.orders.admission import Admissions
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.calls import UPSTREAM_S, split
from proxy.orders.circuits import Circuits
from proxy.orders.context import RequestContext
from proxy.orders.deadlines import Deadlines
from proxy.orders.gate import Gate
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.places import Places
from proxy.orders.quotes import Quotes
from proxy.orders.replay import Replay
from proxy.orders.result import Delivery
from proxy.orders.routes import Routes
from proxy.orders.sandbox import Sandbox
from proxy.outcomes import Failure, Outcome
from proxy.ports import Call, Picture, Provider, Source
from proxy.storage.local import LocalStore
from proxy.webhooks.targets import WebhookHosts
from tests.conftest import run
from tests.kits.orders import (
    CALLER,
    CATALOGUE,
    FLUX,
    GPT,
    Running,
    ScriptedProvider,
    ScriptedWallet,
    files,
    generations,
    hanging,
    job,
    order,
    picture,
    png,
    room_for,
    uploader,
    whole,
)

UNIT = 840_000

STORED_S = 3.0
"""Until a deadline by which what comes at once is stored, also on a machine that is busy with something else."""
"""flux-1.1-pro at FX 20, micro-MXN."""

MAX_IMAGE_BYTES = 100_000


@dataclass
class Ended:
    """Outcome of one generation, after its last task."""

    delivery: Delivery | None
    error: ApiError | None
    took_s: float


async def generate(wallet: ScriptedWallet, root: Path, provider: Provider, asked: AdmittedOrder) -> Ended:
    delivery, error = None, None
    async with generations(wallet, LocalStore(root), {"fal": provider}, MAX_IMAGE_BYTES) as running:
        began_s = time.monotonic()
        try:
            delivery = await running.start(asked)
        except ApiError as caught:
            error = asked.ending.as_answered(caught, "req_1")
        took_s = time.monotonic() - began_s
    return Ended(delivery, error, took_s)


def upstream_calls() -> Counter[str]:
    """How many upstream calls of all models have ended, by outcome."""
    ended: Counter[str] = Counter()
    for metric in UPSTREAM_S.collect():
        for sample in metric.samples:
            if sample.name.endswith("_count"):
                ended[sample.labels["outcome"]] += int(sample.value)
    return ended


def paths(asked: AdmittedOrder, *indexes: int) -> set[str]:
    return {f"{CALLER.org_id}/{asked.order_id}/{index}.png" for index in indexes}


async def test_what_was_ordered_is_stored_charged_and_delivered(tmp_path: Path) -> None:
    """In the order of its numbers, whatever came first; bytes, size and hash are those of the upstream."""
    wallet, asked = ScriptedWallet(), job(order(n=3))
    provider = ScriptedProvider(*(picture(index, whole(png(index))) for index in (2, 0, 1)))
    ended = await generate(wallet, tmp_path, provider, asked)
    assert ended.delivery is not None
    assert [image.path for image in ended.delivery.result.images] == sorted(paths(asked, 0, 1, 2))
    assert [(tmp_path / image.path).read_bytes() for image in ended.delivery.result.images] == [
        png(i) for i in range(3)
    ]
    assert (ended.delivery.result.cost_micro_mxn, ended.delivery.available_micro_mxn) == (3 * UNIT, 7)
    assert wallet.charges == [(3 * UNIT, ended.delivery.result.images)] and not wallet.voids


@pytest.mark.rule(5)
@pytest.mark.parametrize("inline", [True, False])
async def test_at_the_deadline_what_is_stored_is_delivered_and_charged(tmp_path: Path, inline: bool) -> None:
    """Two of three (rule 5): the third, cut off while it arrived, leaves nothing behind."""
    wallet, asked = ScriptedWallet(), job(order(n=3), generate_s=STORED_S, reply_s=60)
    streams = [whole(png(0)), whole(png(1)), hanging(png(2)[:40])]
    pictures = [picture(index, chunks, inline=inline) for index, chunks in enumerate(streams)]
    before = upstream_calls()
    ended = await generate(wallet, tmp_path, ScriptedProvider(*pictures), asked)
    assert ended.delivery is not None and ended.took_s < 60
    assert set(upstream_calls() - before) == {"deadline" if inline else "ok"}  # one at a URL is read after the reply
    assert {image.path for image in ended.delivery.result.images} == files(tmp_path) == paths(asked, 0, 1)
    assert [amount for amount, _ in wallet.charges] == [2 * UNIT] and not wallet.voids


async def test_at_the_deadline_without_an_image_the_order_is_void(tmp_path: Path) -> None:
    """504, nothing charged, nothing left."""
    wallet, asked = ScriptedWallet(), job(order(n=8), generate_s=0.1, reply_s=5)
    provider = ScriptedProvider(*(picture(index, hanging(b"")) for index in range(8)))
    ended = await generate(wallet, tmp_path, provider, asked)
    assert ended.error is not None and ended.error.kind is Kind.DEADLINE and not ended.error.retry
    assert (wallet.voids, wallet.settlements, files(tmp_path)) == (["deadline"], 0, set())


@pytest.mark.parametrize("late_s", [0.0, -5.0])
async def test_an_order_whose_time_is_over_before_it_begins_is_void(tmp_path: Path, late_s: float) -> None:
    """Nothing is asked of the upstream."""
    asked_upstream = []

    class Counting(ScriptedProvider):
        async def generate(self, call: Call) -> AsyncGenerator[Picture]:
            asked_upstream.append(call)
            await asyncio.sleep(0.01)
            yield picture(0, whole(png()))

    wallet = ScriptedWallet()
    ended = await generate(wallet, tmp_path, Counting(), job(order(), generate_s=late_s, reply_s=late_s))
    assert ended.error is not None and ended.error.kind is Kind.DEADLINE
    assert (wallet.voids, wallet.settlements, files(tmp_path)) == (["deadline"], 0, set())
    assert asked_upstream == []


async def test_no_settlement_starts_when_the_reply_could_not_be_sent_any_more(tmp_path: Path) -> None:
    """An upstream that lets go of its call too late: error, void, and the stored image is removed."""

    class Clinging(ScriptedProvider):
        async def generate(self, call: Call) -> AsyncGenerator[Picture]:
            yield picture(0, whole(png()), inline=True)
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0.3)

    wallet = ScriptedWallet()
    ended = await generate(wallet, tmp_path, Clinging(), job(order(n=2), generate_s=1.0, reply_s=1.1))
    assert ended.error is not None and ended.error.kind is Kind.DEADLINE
    assert (wallet.settlements, wallet.voids, files(tmp_path)) == (0, ["not_settled"], set())


# --- settlement -------------------------------------------------------------------------------------------------------


def one_image() -> ScriptedProvider:
    return ScriptedProvider(picture(0, whole(png())))


@pytest.mark.rule(9)
@pytest.mark.parametrize("step", ["yes", "away", "refused", "unheard"])
async def test_a_cancel_during_settlement_neither_loses_nor_doubles_it(tmp_path: Path, step: str) -> None:
    """The close that has begun goes on to its own end (rule 9): charged with its image, or void without."""
    wallet, asked = ScriptedWallet(step), job(order(), reply_s=31)
    wallet.gate.clear()
    async with generations(wallet, LocalStore(tmp_path), {"fal": one_image()}) as making:
        task = making.start(asked)
        await wallet.settling.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        wallet.gate.set()
        await making.drain()
        if step == "refused":
            assert (wallet.charges, wallet.voids, files(tmp_path)) == ([], ["not_settled"], set())
        else:
            assert (len(wallet.charges), wallet.voids, files(tmp_path)) == (1, [], paths(asked, 0))


async def test_a_cancel_before_settlement_is_a_void(tmp_path: Path) -> None:
    """The upstream's call is left, nothing is charged, and drain waits for the void."""
    wallet = ScriptedWallet()
    reading = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield png()[:40]
        reading.set()
        await asyncio.Event().wait()

    async with generations(wallet, LocalStore(tmp_path), {"fal": ScriptedProvider(picture(0, chunks))}) as making:
        task = making.start(job(order()))
        await reading.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await making.drain()
        assert (wallet.charges, wallet.voids, files(tmp_path)) == ([], ["fault"], set())


async def test_a_settlement_is_repeated_until_redis_answers(tmp_path: Path) -> None:
    """Two tries without a verdict, then a yes: one charge, and a 200."""
    wallet, asked = ScriptedWallet("away", "unheard"), job(order())
    ended = await generate(wallet, tmp_path, one_image(), asked)
    assert ended.delivery is not None and wallet.settlements == 3
    assert (len(wallet.charges), wallet.voids, files(tmp_path)) == (1, [], paths(asked, 0))


async def test_a_refused_settlement_is_an_error_without_images(tmp_path: Path) -> None:
    """The hold had died: the order is void and its images are removed."""
    wallet = ScriptedWallet("refused")
    ended = await generate(wallet, tmp_path, one_image(), job(order()))
    assert ended.error is not None and ended.error.kind is Kind.DEADLINE and not ended.error.retry
    assert (wallet.settlements, wallet.voids, files(tmp_path)) == (1, ["not_settled"], set())


@pytest.mark.rule(8)
async def test_without_a_verdict_and_with_a_living_hold_the_journal_answers(tmp_path: Path) -> None:
    """Redis away (rule 8): a 200 that says nothing of the balance, charged once as soon as Redis is back."""
    wallet, asked = ScriptedWallet(*["away"] * 100), job(order(), reply_s=4)
    async with generations(wallet, LocalStore(tmp_path), {"fal": one_image()}) as running:
        delivery = await running.start(asked)
        assert delivery.available_micro_mxn is None and delivery.result.cost_micro_mxn == UNIT
        assert wallet.charges == [] and wallet.settlements > 1
        await running.open_orders.round()
        await running.open_orders.round()
    assert wallet.charges == [(UNIT, delivery.result.images)]
    assert (wallet.voids, files(tmp_path)) == ([], paths(asked, 0))


@pytest.mark.parametrize("hold_s", [0.0, 0.45])
async def test_a_settlement_without_a_verdict_for_a_dead_hold_is_an_error_and_a_void(
    tmp_path: Path, hold_s: float
) -> None:
    """Dead by this machine's own clock, before the settlement or while it was tried: nobody pays."""
    wallet = ScriptedWallet(*["away"] * 100)
    ended = await generate(wallet, tmp_path, one_image(), job(order(), reply_s=1.0, hold_s=hold_s))
    assert ended.error is not None and ended.error.kind is Kind.DEADLINE and ended.took_s < 20
    assert (wallet.charges, wallet.voids, files(tmp_path)) == ([], ["not_settled"], set())


@pytest.mark.rule(8)
async def test_a_hold_that_dies_while_the_journal_is_synced_is_withdrawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error, no charge at any replay, and the images go: the withdrawal is on the disk before that (rule 8)."""
    sync = os.fdatasync

    def slow(descriptor: int) -> None:
        time.sleep(0.3)
        sync(descriptor)

    monkeypatch.setattr(os, "fdatasync", slow)
    wallet = ScriptedWallet(*["away"] * 100)
    async with generations(wallet, LocalStore(tmp_path), {"fal": one_image()}) as running:
        with pytest.raises(ApiError) as caught:
            await running.start(job(order(), reply_s=1.5, hold_s=0.9))
        assert caught.value.kind is Kind.DEADLINE
        await running.drain()
        await running.open_orders.round()
        assert running.open_orders.waiting == 0
    assert (wallet.charges, wallet.voids, files(tmp_path)) == ([], ["not_settled"], set())


async def test_a_journal_that_fails_answers_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis away and the disk broken: an error, and the images stay, as nobody knows what the disk has."""

    def broken(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    wallet, asked = ScriptedWallet(*["away"] * 100), job(order(), reply_s=1.0)
    async with generations(wallet, LocalStore(tmp_path), {"fal": one_image()}) as running:
        monkeypatch.setattr(os, "fdatasync", broken)
        with pytest.raises(ApiError) as caught:
            await running.start(asked)
        told = asked.ending.as_answered(caught.value, "req_1")
        assert told.kind is Kind.END_UNKNOWN and not told.retry and "nothing" not in told.message
    assert (wallet.charges, files(tmp_path)) == ([], paths(asked, 0))


@pytest.mark.rule(11)
async def test_a_charge_that_came_through_after_an_error_keeps_its_images_and_is_counted(tmp_path: Path) -> None:
    """Every charge has its images (rule 11), and somebody is told."""
    wallet, asked = ScriptedWallet("unheard", *["away"] * 100), job(order(), reply_s=0.4, hold_s=0.1)
    before = counted("ghub_charged_after_error_total")
    ended = await generate(wallet, tmp_path, one_image(), asked)
    assert ended.error is not None
    assert (len(wallet.charges), wallet.voids, files(tmp_path)) == (1, [], paths(asked, 0))
    assert counted("ghub_charged_after_error_total") == before + 1


async def test_images_stay_where_nobody_ever_said_whether_they_were_charged(tmp_path: Path) -> None:
    """The settlement was charged unheard and Redis stays away until the hold's end: the charge keeps its images."""
    wallet = ScriptedWallet("unheard", *["away"] * 100)
    wallet.voids_away = True
    asked = job(order(), generate_s=2.0, reply_s=2.1, hold_s=0.1)
    ended = await generate(wallet, tmp_path, one_image(), asked)
    assert ended.error is not None
    assert (len(wallet.charges), files(tmp_path)) == (1, paths(asked, 0))


def counted(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


# --- failures of parts ------------------------------------------------------------------------------------------------


async def test_the_store_fails_for_one_of_three_and_two_are_charged(tmp_path: Path) -> None:
    """An image that could not be stored is neither delivered nor charged, and leaves nothing."""
    wallet, asked = ScriptedWallet(), job(order(n=3))
    blocked = tmp_path / CALLER.org_id / asked.order_id / "1.png"
    blocked.mkdir(parents=True)  # a file cannot be renamed over a folder
    ended = await generate(wallet, tmp_path, ScriptedProvider(*three()), asked)
    assert ended.delivery is not None
    assert {image.path for image in ended.delivery.result.images} == files(tmp_path) == paths(asked, 0, 2)
    assert [amount for amount, _ in wallet.charges] == [2 * UNIT]


async def test_the_store_fails_for_all_and_nothing_is_charged(tmp_path: Path) -> None:
    """502, void, and no retry: the images were made."""
    (tmp_path / CALLER.org_id).write_text("a file where the organisation's folder should be")
    wallet = ScriptedWallet()
    ended = await generate(wallet, tmp_path, ScriptedProvider(*three()), job(order(n=3)))
    assert ended.error is not None and ended.error.kind is Kind.PROVIDER and not ended.error.retry
    assert (wallet.voids, wallet.settlements) == (["store_failed"], 0)


def three() -> list[Picture]:
    return [picture(index, whole(png(index))) for index in range(3)]


@pytest.mark.parametrize(
    ("failure", "reason", "kind"),
    [
        (Failure(Outcome.CONTENT_POLICY), "content_policy", Kind.CONTENT_POLICY),
        (Failure(Outcome.RATE_LIMITED, retry_after_s=2), "rate_limited", Kind.PROVIDER),
        (RuntimeError("a fault in the adapter"), "fault", Kind.INTERNAL),
        (KeyError("model"), "fault", Kind.INTERNAL),
        (TimeoutError(), "fault", Kind.INTERNAL),
        (OSError("disk"), "fault", Kind.INTERNAL),
        (StopAsyncIteration(), "fault", Kind.INTERNAL),
        (None, "no_image", Kind.PROVIDER),
    ],
)
async def test_whatever_an_adapter_raises_ends_the_order_as_a_void(
    tmp_path: Path, failure: Exception | None, reason: str, kind: Kind
) -> None:
    """With its reason; what nobody foresaw is a fault of ours."""
    wallet, before = ScriptedWallet(), upstream_calls()
    ended = await generate(wallet, tmp_path, ScriptedProvider(then=failure), job(order()))
    assert set(upstream_calls() - before) == {reason}
    assert ended.error is not None and ended.error.kind is kind
    assert (wallet.voids, wallet.settlements, files(tmp_path)) == ([reason], 0, set())
    assert wallet.awaited == [ended.error.retry] == [reason == "rate_limited"]


@pytest.mark.parametrize("failure", [Failure(Outcome.CONTENT_POLICY), RuntimeError("a fault"), None])
async def test_what_came_before_a_failure_is_delivered_and_charged(tmp_path: Path, failure: Exception | None) -> None:
    """Three of four."""
    wallet, asked, before = ScriptedWallet(), job(order(n=4)), upstream_calls()
    ended = await generate(wallet, tmp_path, ScriptedProvider(*three(), then=failure), asked)
    assert sum((upstream_calls() - before).values()) == 1 and "ok" not in upstream_calls() - before
    assert ended.delivery is not None and files(tmp_path) == paths(asked, 0, 1, 2)
    assert [amount for amount, _ in wallet.charges] == [3 * UNIT]


async def test_a_fault_while_an_adapter_is_closed_still_ends_the_order(tmp_path: Path) -> None:
    """At the deadline, with one image stored: it is charged, and the order does not hang in the air."""

    class Faulty(ScriptedProvider):
        async def generate(self, call: Call) -> AsyncGenerator[Picture]:
            try:
                yield picture(0, whole(png()), inline=True)
                yield picture(1, hanging(png()[:40]), inline=True)
            finally:
                raise RuntimeError("a fault at the end")

    wallet, asked = ScriptedWallet(), job(order(n=2), generate_s=STORED_S, reply_s=60)
    ended = await generate(wallet, tmp_path, Faulty(), asked)
    assert ended.delivery is not None and files(tmp_path) == paths(asked, 0)
    assert [amount for amount, _ in wallet.charges] == [UNIT]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "bad_image"),
        (b"<html>", "bad_image"),
        (b"\x89PN", "bad_image"),
        (b"\x89PNG\r\n\x1a\n" + b"x" * MAX_IMAGE_BYTES, "bad_image"),
    ],
)
async def test_what_is_no_image_or_too_large_is_not_stored(tmp_path: Path, data: bytes, reason: str) -> None:
    """Nothing of it is published."""
    wallet = ScriptedWallet()
    ended = await generate(wallet, tmp_path, ScriptedProvider(picture(0, whole(data))), job(order()))
    assert ended.error is not None and ended.error.kind is Kind.PROVIDER
    assert (wallet.voids, files(tmp_path)) == ([reason], set())


async def test_a_picture_that_is_whole_counts_although_its_source_fails_at_the_end(tmp_path: Path) -> None:
    """It is stored and complete: delivered and charged, not left behind."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[Source]:
        yield Source(whole(png())())
        raise Failure(Outcome.FETCH_FAILED, "while closing")

    wallet, asked = ScriptedWallet(), job(order())
    ended = await generate(wallet, tmp_path, ScriptedProvider(Picture(0, open_, inline=False)), asked)
    assert ended.delivery is not None and files(tmp_path) == paths(asked, 0)


async def test_a_fault_while_one_picture_arrives_leaves_the_others_alone(tmp_path: Path) -> None:
    """Its own end, not theirs."""

    async def broken() -> AsyncIterator[bytes]:
        yield png(1)[:40]
        raise ZeroDivisionError

    wallet, asked = ScriptedWallet(), job(order(n=3))
    provider = ScriptedProvider(three()[0], picture(1, broken), three()[2])
    ended = await generate(wallet, tmp_path, provider, asked)
    assert ended.delivery is not None and files(tmp_path) == paths(asked, 0, 2)


async def test_a_void_that_redis_does_not_answer_is_repeated_behind_the_reply(tmp_path: Path) -> None:
    """The client has its error at once; drain waits until the void is through."""
    wallet = ScriptedWallet()
    wallet.voids_away = True
    async with generations(wallet, LocalStore(tmp_path), {"fal": ScriptedProvider()}) as making:
        with pytest.raises(ApiError):
            await making.start(job(order()))
        draining = asyncio.create_task(making.drain())
        await asyncio.sleep(0.3)
        assert not draining.done() and wallet.voids == []
        wallet.voids_away = False
        await draining
        assert wallet.voids == ["no_image"]


@pytest.mark.parametrize(
    ("model", "n", "calls"),
    [
        (FLUX, 1, [(0, 1)]),
        (FLUX, 4, [(0, 4)]),
        (FLUX, 5, [(0, 4), (4, 1)]),
        (FLUX, 8, [(0, 4), (4, 4)]),
        (GPT, 1, [(0, 1)]),
        (GPT, 8, [(0, 8)]),
    ],
)
def test_an_order_is_split_into_what_the_model_makes_at_once(model: str, n: int, calls: list[tuple[int, int]]) -> None:
    """Numbered through, and as many as were ordered."""
    assert [(call.first, call.images) for call in split(order(model, n))] == calls


# --- the client's side ------------------------------------------------------------------------------------------------


class Door(ScriptedWallet):
    """A scripted wallet that knows the caller, and admits after `opening`."""

    def __init__(self, *script: str) -> None:
        super().__init__(*script)
        self.opening = asyncio.Event()
        self.asked = asyncio.Event()
        self.away = False

    async def key(self, key_hash: str) -> Caller | None:
        return CALLER

    async def admit(
        self,
        caller: Caller,
        order_id: str,
        quote: Quote,
        opened: bytes,
        identity: OrderIdentity,
        *,
        life_s: float,
        owner: str,
        trace: str = "",
        long: LongTerms | None = None,
        slow: bool = False,
    ) -> Admission:
        self.asked.set()
        await self.opening.wait()
        if self.away:
            raise WalletAway
        state = RateState(600, 599, 1)
        return Admission(Verdict.ADMITTED, self.now_us(), 0, state, state, 0)


@asynccontextmanager
async def endpoint(wallet: Door, root: Path, provider: Provider) -> AsyncIterator[tuple[ImagesEndpoint, Running]]:
    """The hot path over this wallet and this provider; its generations are over at the end."""
    ledger = open_sqlite(f"sqlite:///{root / 'ledger.db'}")
    await ledger.migrate()
    await ledger.add_rate(FxRate(period_at(wallet.now_us()).month, Decimal(20), "test"), utc_now())
    await ledger.list_prices(book_of(CATALOGUE), wallet.now_us(), utc_now())
    rates, prices = FxTable(ledger, grace_h=0), PriceTable(ledger)
    await rates.refresh()
    await prices.refresh(wallet.now_us())
    store = LocalStore(root / "images")
    replies = Replies(store, "https://images.test")
    async with generations(wallet, store, {"fal": provider}) as running:
        places = Places(running.journal, room_for(100))
        quotes = Quotes(rates, prices)
        end_users = EndUsers(ledger, Pseudonyms("test"))
        admissions = Admissions(
            wallet,
            places,
            quotes,
            running.settlement,
            Gate(),
            end_users,
            Routes(Circuits(), {"fal"}),
            owner="",
            region="test",
            deadlines=Deadlines(5, 900),
            top_up=TOP_UP,
        )
        authenticator, offer, lifecycle = Authenticator(wallet, 10), Offer(CATALOGUE, {"fal"}, prices), Lifecycle()
        limits = RequestLimits(body_bytes=10_000, body_s=5, deadline_s=5)
        yield (
            ImagesEndpoint(
                authenticator,
                offer,
                lifecycle,
                admissions,
                Replay(wallet, ledger),
                running.generations,
                Sandbox(wallet, places, uploader(store), 5),
                replies,
                DryRuns(authenticator, wallet, offer, lifecycle, admissions, ReadRates(), limits, WebhookHosts("")),
                limits,
                Standing(wallet, ledger, replies),
                WebhookHosts(""),
            ),
            running,
        )
    await ledger.aclose()


def request() -> Request:
    """An order for one image."""

    async def receive() -> Message:
        if asked:
            return asked.pop()
        return await asyncio.Future()

    asked = [{"type": "http.request", "body": b'{"model":"fal/flux-1.1-pro","prompt":"x"}', "more_body": False}]

    headers = [(b"authorization", f"Bearer {KEY_PREFIX}{'0' * 32}".encode())]
    return Request({"type": "http", "headers": headers, "ghub": RequestContext()}, receive)


@pytest.mark.parametrize("fails", [True, False])
def test_a_client_that_is_gone_stops_nothing_and_leaves_no_noise(tmp_path: Path, fails: bool) -> None:
    """The generation ends as it would have; no exception is reported as never retrieved."""
    noise: list[dict[str, Any]] = []

    class Waiting(ScriptedProvider):
        async def generate(self, call: Call) -> AsyncGenerator[Picture]:
            started.set()
            await go_on.wait()
            if fails:
                raise Failure(Outcome.OVERLOADED)
            yield picture(0, whole(png()))

    async def work() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
        wallet = Door()
        wallet.opening.set()
        async with endpoint(wallet, tmp_path, Waiting()) as (images, running):
            asking = asyncio.create_task(images.create(request()))
            await started.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            go_on.set()
            await running.drain()
            del asking
            gc.collect()
            await asyncio.sleep(0)
            assert (len(wallet.charges), wallet.voids) == ((0, ["overloaded"]) if fails else (1, []))
            assert len(files(tmp_path / "images")) == (0 if fails else 1)

    started, go_on = asyncio.Event(), asyncio.Event()
    run(work())
    assert noise == []


@pytest.mark.rule(6)
@pytest.mark.parametrize("away", [True, False])
async def test_an_admission_whose_reply_was_not_read_is_voided(tmp_path: Path, away: bool) -> None:
    """Redis gave no answer in time, or the request was cancelled while it was asked (rule 6)."""
    wallet = Door()
    wallet.away = away
    async with endpoint(wallet, tmp_path, ScriptedProvider()) as (images, running):
        asking = asyncio.create_task(images.create(request()))
        await wallet.asked.wait()
        if away:
            wallet.opening.set()
            with pytest.raises(ApiError) as caught:
                await asking
            assert caught.value.kind is Kind.UNAVAILABLE
        else:
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
        await running.drain()
        assert (wallet.voids, wallet.awaited) == (["admission_unread"], [True])  # its client was told to try again


async def test_a_reply_says_what_was_made_and_what_is_left(tmp_path: Path) -> None:
    """The URL, the cost, the balance and the rates."""
    wallet = Door()
    wallet.opening.set()
    async with endpoint(wallet, tmp_path, one_image()) as (images, _):
        reply = await images.create(request())
    assert reply.status_code == 200
    (url,) = [row["url"] for row in orjson.loads(bytes(reply.body))["data"]]
    assert files(tmp_path / "images") == {url.removeprefix("https://images.test/")}
    assert reply.headers["x-geekhub-cost-mxn"] == "0.84"
    assert reply.headers["x-geekhub-balance-mxn"] == "0.000007"
    assert reply.headers["x-ratelimit-remaining-requests"] == "599"


@pytest.mark.rule(5, 11)
async def test_a_refused_picture_is_not_charged_where_the_deadline_cuts_everything_off(tmp_path: Path) -> None:
    """The upstream sent two, then refused the first of them; the store is slow at the second (rules 5, 11)."""

    class Refuses(ScriptedProvider):
        async def generate(self, call: Call) -> AsyncGenerator[Picture]:
            async for one in super().generate(call):
                yield one
            call.report.refused.add(0)

    wallet, asked = ScriptedWallet(), job(order(n=2), generate_s=STORED_S, reply_s=60)
    slow = Refuses(picture(0, whole(png(0))), picture(1, hanging(png(1)[:-1])))
    ended = await generate(wallet, tmp_path, slow, asked)
    assert ended.error is not None and wallet.charges == []
    assert (wallet.voids, files(tmp_path)) == (["deadline"], set())


@pytest.mark.rule(8)
async def test_figures_that_cannot_be_reckoned_with_end_the_order_before_its_settlement(tmp_path: Path) -> None:
    """Steps that can fail on data come before the settlement: the order is a void, and nothing is charged (rule 8)."""

    class Nonsense(ScriptedProvider):
        async def generate(self, call: Call) -> AsyncGenerator[Picture]:
            async for one in super().generate(call):
                yield one
            call.report.usage = {"tokens": object()}

    wallet, asked = ScriptedWallet(), job(order())
    ended = await generate(wallet, tmp_path, Nonsense(picture(0, whole(png(0)))), asked)
    assert ended.error is not None and ended.error.kind is Kind.INTERNAL
    assert (wallet.settlements, wallet.charges, wallet.voids) == (0, [], ["fault"])


@pytest.mark.rule(8, 14)
async def test_more_than_was_set_aside_for_an_order_ends_it_before_its_settlement(tmp_path: Path) -> None:
    """Texts of an upstream that nobody has bounded: the order is a void, and nothing is charged (rules 8, 14)."""

    class Endless(ScriptedProvider):
        async def generate(self, call: Call) -> AsyncGenerator[Picture]:
            async for one in super().generate(call):
                yield one
            call.report.revised_prompts[0] = "x" * max_bytes(1)

    wallet, asked = ScriptedWallet(), job(order())
    ended = await generate(wallet, tmp_path, Endless(picture(0, whole(png(0)))), asked)
    assert ended.error is not None and ended.error.kind is Kind.INTERNAL
    assert (wallet.settlements, wallet.charges, wallet.voids) == (0, [], ["fault"])
