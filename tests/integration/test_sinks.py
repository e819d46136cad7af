"""Delivery to sinks over real receivers: nothing lost, repeats the same, refusals set aside (rule 36)."""

import asyncio
import os
import tempfile
import time
from collections import Counter
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from metering.clock import period_at, unix_us_at, utc_now
from metering.ledger import outbox
from metering.ports import NotThere
from metering.sinks.delivery import Pace
from metering.sinks.lag import Lag
from tests.integration.conftest import Receivers
from tests.kits.backups import backup, restore
from tests.kits.books import ACT, UNIT, start_worker
from tests.kits.consumer import peak_mib
from tests.kits.postgres import FAST as FAST_DISK
from tests.kits.postgres import PostgresServer
from tests.kits.sinks import (
    FAST,
    HTTP,
    ORG,
    SHORT_S,
    TOKEN,
    HttpReceiver,
    NatsReceiver,
    failures,
    once,
    outgoing,
    sink,
    sum_of,
    until_another_fails,
)


@pytest.mark.rule(36)
@pytest.mark.parametrize("profile", HTTP)
async def test_a_sink_is_told_of_every_charge_and_refund(
    profile: str, ledger_url: str, receivers: Receivers, tmp_path: Path
) -> None:
    """(rule 36) Its sum is the ledger's charges less refunds; voids and what was booked before it are none of its."""
    receiver = receivers(profile)
    async with outgoing(ledger_url, tmp_path) as out:
        await out.book()
        before = out.ledger_micro_mxn()
        one = sink(tmp_path, profile, receiver.url)
        await out.register(one)
        charges = await out.book(20, images=2)
        refund = await out.refund(charges[3].event_id, 100_000)
        async with out.delivering(one):
            state = await out.until_empty(profile)
        taken = await receiver.taken()
        assert {row["id"] for row in taken} == {charge.event_id for charge in charges} | {refund}
        assert sum_of(taken) == out.ledger_micro_mxn() - before
        assert state.delivered_at is not None and state.error is None and state.set_aside == 0
        assert "ana@" not in str(taken) and "png" not in str(taken)


@pytest.mark.rule(36)
@pytest.mark.parametrize("profile", HTTP)
async def test_what_is_refused_for_good_is_set_aside_alone(
    profile: str, ledger_url: str, receivers: Receivers, tmp_path: Path
) -> None:
    """(rule 36) Its neighbours in a batch are taken; it is alarmed, shown, and sent again when a person says so."""
    receiver = receivers(profile)
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, profile, receiver.url)
        await out.register(one)
        charges = await out.book(20)
        poison = charges[11].event_id
        receiver.mode(f"poison {poison}")
        with capture_logs() as logs:
            async with out.delivering(one):
                state = await out.until_empty(profile)
                assert (state.set_aside, state.pending) == (1, 0) and state.error is not None
                assert {row["id"] for row in await receiver.taken()} == {c.event_id for c in charges} - {poison}
                (refused,) = [log for log in logs if log["log_level"] == "error"]
                assert refused["event"] == "sink_refused" and refused["items"] == [poison]
                (aside,) = await out.ledger.items_set_aside(profile)
                assert (aside.item_id, aside.kind) == (poison, "charge") and "it answers 4" in aside.error
                receiver.mode("ok")
                assert await out.ledger.send_again(profile, utc_now()) == 1
                state = await out.until_empty(profile)
        assert state.set_aside == 0
        assert sum_of(await receiver.taken()) == out.ledger_micro_mxn()


@pytest.mark.rule(36)
@pytest.mark.parametrize("profile", HTTP)
@pytest.mark.parametrize("mode", ["hang", "half", "die", "endless"])
async def test_a_repeat_is_the_same_in_id_and_time(
    profile: str, mode: str, receivers: Receivers, tmp_path: Path
) -> None:
    """(rule 36) The receiver takes an item, and never says so: it is sent again, and is the same to the last field."""
    receiver = receivers(profile)
    url = f"sqlite:///{tmp_path}/l.db"
    async with outgoing(url, tmp_path) as out:
        one = sink(tmp_path, profile, receiver.url)
        await out.register(one)
        charges = await out.book(5)
        await out.refund(charges[0].event_id)
        out.send_s = SHORT_S if mode == "hang" else out.send_s
        receiver.mode(mode)
        async with out.delivering(one):
            if mode == "endless":  # its status counts, and 64 KiB of its answer are read
                await out.until_empty(profile)
            else:
                await until_another_fails(profile)
                receiver.mode("ok")
                if receiver.ended:
                    receiver.start()
                await out.until_empty(profile)
        taken = await receiver.taken()
        counted = Counter(row["id"] for row in taken)
        assert len(counted) == 6 and sum_of(taken) == out.ledger_micro_mxn()
        # Lago and Stripe refuse what they have, which counts as delivered; the others have it twice.
        assert (max(counted.values()) > 1) is (mode != "endless" and profile not in ("lago", "stripe"))
        assert (await out.state(profile)).set_aside == 0
    assert peak_mib(os.getpid()) < 1_000


@pytest.mark.rule(36)
async def test_a_consumer_killed_between_sending_and_marking_repeats_the_same(
    receiver: HttpReceiver, ledger_url: str, tmp_path: Path
) -> None:
    """(rule 36) SIGKILL while the receiver has taken all, and has not said so."""
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        await out.book(4)
        receiver.mode("hang")
        worker = start_worker("deliver", ledger_url, tmp_path, "structured", receiver.url)
        while len(await receiver.taken()) < 4:
            await asyncio.sleep(0.01)
        worker.kill()
        worker.communicate()
        receiver.kill()
        receiver.mode("ok")
        receiver.start()
        assert (await out.state("structured")).pending == 4
        async with out.delivering(one):
            await out.until_empty("structured")
        taken = await receiver.taken()
        assert set(Counter(row["id"] for row in taken).values()) == {2}
        assert sum_of(taken) == out.ledger_micro_mxn()


@pytest.mark.rule(36)
async def test_two_consumers_share_a_sink(receiver: HttpReceiver, ledger_url: str, tmp_path: Path) -> None:
    """(rule 36) A claim keeps the other away, so nothing is sent twice."""
    async with outgoing(ledger_url, tmp_path) as out, outgoing(ledger_url, tmp_path, org=False) as other:
        slow = Pace(FAST.poll_s, 60.0, FAST.first_pause_s, FAST.longest_pause_s)
        out.pace, other.pace, out.send_s, other.send_s = slow, slow, 30.0, 30.0
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        async with out.delivering(one), other.delivering(one):
            for _ in range(10):
                await out.book(30)
            await out.until_empty("structured")
        taken = await receiver.taken()
        assert len(taken) == len(once(taken)) == 300
        assert sum_of(taken) == out.ledger_micro_mxn()


@pytest.mark.rule(36)
async def test_a_frozen_and_a_dead_sink_hold_up_nothing(ledger_url: str, receivers: Receivers, tmp_path: Path) -> None:
    """(rule 36) Bookings go on as fast, and the third sink has everything at once."""
    made = {name: receivers("structured") for name in ("frozen", "dead", "well")}
    async with outgoing(ledger_url, tmp_path) as out:
        sinks = [sink(tmp_path, "structured", one.url, name) for name, one in made.items()]
        await out.register(*sinks)
        out.send_s = SHORT_S
        made["frozen"].freeze()
        made["dead"].kill()
        async with out.delivering(*sinks):
            began_s = time.monotonic()
            for _ in range(20):
                await out.book(50)
            took_s = time.monotonic() - began_s
            await out.until_empty("well")
            assert {name: (await out.state(name)).pending for name in made} == {
                "frozen": 1_000,
                "dead": 1_000,
                "well": 0,
            }
            assert sum_of(await made["well"].taken()) == out.ledger_micro_mxn()
            assert took_s < 10
            # While it is away it is asked ever less often, by one request.
            assert failures("dead") < 100 + out.pace.lease_s
            made["frozen"].thaw()
            made["dead"].start()
            for name in made:
                await out.until_empty(name)
                assert sum_of(await made[name].taken()) == out.ledger_micro_mxn()


async def test_a_wrong_token_sets_nothing_aside_and_stands_in_no_log(
    receiver: HttpReceiver, ledger_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is no fault of an item: all waits for the right one. A receiver that gives the token back is not believed."""
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        await out.book(3)
        out.token = "wrong-token"
        async with out.delivering(one):
            state = await out.until("structured", lambda state: state.error is not None)
        assert (state.pending, state.set_aside) == (3, 0)
        assert state.error == "it answers 401: no such token: Bearer ***"
        out.token = TOKEN
        receiver.mode("refuse")
        async with out.delivering(one):
            await out.until("structured", lambda state: state.set_aside == 3)
        for aside in await out.ledger.items_set_aside("structured"):
            assert aside.error == 'it answers 422: {"error": "no"} Bearer ***'
    told = capsys.readouterr()
    assert TOKEN not in told.out + told.err and "wrong-token" not in told.out + told.err


async def test_a_redirect_is_not_followed(
    receiver: HttpReceiver, ledger_url: str, receivers: Receivers, tmp_path: Path
) -> None:
    """A token is for one address; nothing is lost until that is corrected."""
    elsewhere = receivers("structured")
    receiver.mode(f"redirect {elsewhere.url}/events")
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        await out.book(3)
        async with out.delivering(one):
            await until_another_fails("structured")
            state = await out.until("structured", lambda state: state.error is not None)
            assert (state.pending, state.set_aside, state.error) == (3, 0, "it answers 307")
            assert await elsewhere.taken() == []
            receiver.mode("ok")
            await out.until_empty("structured")


async def test_a_receiver_that_is_busy_is_asked_again(receiver: HttpReceiver, ledger_url: str, tmp_path: Path) -> None:
    receiver.mode("busy")
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        await out.book(30)
        async with out.delivering(one):
            await until_another_fails("structured")
            receiver.mode("ok")
            await out.until_empty("structured")
        assert sum_of(await receiver.taken()) == out.ledger_micro_mxn()


@pytest.mark.rule(36)
@pytest.mark.parametrize("profile", ["structured", "batched"])
async def test_a_refund_waits_for_its_charge_and_nothing_else_does(
    profile: str, ledger_url: str, receivers: Receivers, tmp_path: Path
) -> None:
    """(rule 36) An event that makes the receiver fail is left behind by its batch, and its refund stays with it."""
    receiver = receivers(profile)
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, profile, receiver.url)
        await out.register(one)
        charges = await out.book(15)
        failing = charges[7].event_id
        receiver.mode(f'busy-for "id":"{failing}"')
        refund = await out.refund(failing, credit_id="a-refund")
        other = await out.refund(charges[3].event_id)
        async with out.delivering(one):
            await out.until(profile, lambda state: state.pending == 2)
            assert {row["id"] for row in await receiver.taken()} == {c.event_id for c in charges} - {failing} | {other}
            receiver.mode("ok")
            await out.until_empty(profile)
        taken = await receiver.taken()
        assert [row["id"] for row in taken[-2:]] == [failing, refund]
        assert sum_of(taken) == out.ledger_micro_mxn()


@pytest.mark.rule(36)
async def test_what_commits_late_is_not_skipped(receiver: HttpReceiver, postgres_url: str, tmp_path: Path) -> None:
    """(rule 36) A booking that began first and commits last: a cursor would have passed it."""
    async with outgoing(postgres_url, tmp_path) as out:
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        (first,) = await out.book()
        columns = "event_id, org_id, number"
        with psycopg.connect(postgres_url) as late:
            names = [
                row[0]
                for row in late.execute(
                    "SELECT column_name FROM information_schema.columns WHERE table_name = 'events' ORDER BY 1"
                )
            ]
            rest = ", ".join(f'"{name}"' for name in names if name not in columns.split(", "))
            late.execute(
                f"INSERT INTO events ({columns}, {rest}) SELECT 'late', org_id || '-late', 1000, {rest} FROM events"
                f" WHERE event_id = '{first.event_id}'".encode()
            )
            async with out.delivering(one):
                await out.book(5)
                await out.until_empty("structured")
                assert len(await receiver.taken()) == 6
                late.commit()
                while len(await receiver.taken()) < 7:
                    await asyncio.sleep(0.01)
        assert "late" in once(await receiver.taken())


async def test_days_are_sent_again(
    receiver: HttpReceiver, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was booked before the sink was there, in pages; and what it has is repeated, with the same id and time."""
    monkeypatch.setattr(outbox, "AGAIN", 7)
    async with outgoing(ledger_url, tmp_path) as out:
        charges = await out.book(20)
        for charge in charges[:9]:
            await out.refund(charge.event_id)
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        with pytest.raises(NotThere, match="there is no sink 'other'; there is: structured"):
            await out.ledger.send_again("other", utc_now())
        today = period_at(unix_us_at(utc_now())).day
        async with out.delivering(one):
            pages = [
                page async for page in out.ledger.send_days_again("structured", "2036-11-21", "2036-11-22", utc_now())
            ]
            assert pages == [7, 7, 6]
            await out.until_empty("structured")
            assert len(await receiver.taken()) == 20
            pages = [page async for page in out.ledger.send_days_again("structured", today, "2036-11-30", utc_now())]
            assert pages == [7, 7, 6, 7, 2]
            await out.until_empty("structured")
        taken = await receiver.taken()
        assert len(taken) == 49 and len(once(taken)) == 29
        assert sum_of(taken) == out.ledger_micro_mxn() == 11 * UNIT
        assert [
            page async for page in out.ledger.send_days_again("structured", "2036-12-01", "2037-02-01", utc_now())
        ] == []


@pytest.mark.rule(36)
async def test_a_restored_ledger_repeats_and_loses_nothing(
    receiver: HttpReceiver, ledger_url: str, tmp_path: Path
) -> None:
    """(rule 36) Its old outbox has what is delivered; what it lost is booked again, and goes out again."""
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "structured", receiver.url)
        await out.register(one)
        await out.book(3)
        copy = backup(ledger_url)
        lost = await out.book(3)
        async with out.delivering(one):
            await out.until_empty("structured")
    restore(copy, ledger_url)
    async with outgoing(ledger_url, tmp_path, org=False) as out:
        await out.ledger.book(lost, [], utc_now())
        async with out.delivering(one):
            await out.until_empty("structured")
        taken = await receiver.taken()
        assert len(once(taken)) == 6 and sum_of(taken) == out.ledger_micro_mxn()
        assert set(Counter(row["id"] for row in taken).values()) == {2}


@pytest.mark.rule(36)
async def test_a_ledger_that_dies_meanwhile_loses_nothing(receiver: HttpReceiver, tmp_path: Path) -> None:
    """(rule 36) Killed again and again while items are claimed, sent and noted: what could not be noted is repeated."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        server = PostgresServer(Path(folder), *FAST_DISK)
        server.start()
        try:
            async with outgoing(server.url("postgres"), tmp_path) as out:
                one = sink(tmp_path, "structured", receiver.url)
                await out.register(one)
                await out.book(300)
                async with out.delivering(one):
                    for turn in range(1, 3):
                        while len(await receiver.taken()) < 100 * turn:
                            await asyncio.sleep(0.002)
                        server.kill()
                        server.start()
                    await out.until_empty("structured")
                assert len(once(await receiver.taken())) == 300
                assert sum_of(await receiver.taken()) == out.ledger_micro_mxn()
        finally:
            server.kill()


async def test_the_lag_is_a_metric(receiver: HttpReceiver, ledger_url: str, tmp_path: Path) -> None:
    """Of every registered sink, and a warning of one that this consumer does not deliver to, once."""
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "structured", receiver.url, "lagging")
        await out.register(one)
        lag = Lag(out.ledger, frozenset())
        with capture_logs() as logs:
            await lag.look()
        assert [(log["event"], log["sink"]) for log in logs] == [("sink_not_configured", "lagging")]

        def metric(name: str) -> float | None:
            return REGISTRY.get_sample_value(f"ghub_sink_{name}", {"sink": "lagging"})

        assert (metric("pending"), metric("oldest_seconds"), metric("set_aside")) == (0, 0, 0)
        await out.book(4, at=utc_now() - timedelta(hours=1))
        receiver.mode("refuse")
        with capture_logs() as logs:
            await lag.look()
            await lag.look()
        assert metric("pending") == 4 and 3_600 <= (metric("oldest_seconds") or 0) < 3_700
        assert logs == []  # it has told so
        async with out.delivering(one):
            await out.until_empty("lagging")
        await lag.look()
        assert (metric("pending"), metric("oldest_seconds"), metric("set_aside")) == (0, 0, 4)
        await out.ledger.remove_sink("lagging", utc_now(), ACT)
        await lag.look()
        assert metric("pending") is None


async def test_a_sink_that_is_removed_takes_its_items_with_it(
    receiver: HttpReceiver, ledger_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "AGAIN", 3)
    async with outgoing(ledger_url, tmp_path) as out:
        await out.register(sink(tmp_path, "structured", receiver.url))
        await out.book(8)
        assert await out.ledger.remove_sink("structured", utc_now(), ACT) == 8
        assert await out.ledger.sinks() == []
        await out.book(2)
        with pytest.raises(NotThere, match="there is no sink 'structured'"):
            await out.ledger.remove_sink("structured", utc_now(), ACT)
        with pytest.raises(NotThere, match="there is: none; a consumer registers"):
            await out.ledger.send_again("structured", utc_now())


async def test_a_stripe_sink_without_the_customer_sets_aside(
    ledger_url: str, receivers: Receivers, tmp_path: Path
) -> None:
    """It says which organisation has none."""
    receiver = receivers("stripe")
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "stripe", receiver.url).model_copy(update={"customers": {}})
        await out.register(one)
        await out.book(2)
        async with out.delivering(one):
            await out.until("stripe", lambda state: state.set_aside == 2)
        (aside, _) = await out.ledger.items_set_aside("stripe")
        assert aside.error == f"`customers` in GHUB_SINKS has no customer for organisation {ORG}"


async def test_jetstream_acknowledges_and_knows_a_repeat_within_its_window(
    nats_receiver: NatsReceiver, ledger_url: str, tmp_path: Path
) -> None:
    """Against the real server: nothing is delivered without a stream or with a wrong token, and then each once."""
    async with outgoing(ledger_url, tmp_path) as out:
        one = sink(tmp_path, "nats", nats_receiver.url)
        await out.register(one)
        charges = await out.book(60)
        out.token = "wrong-token"
        async with out.delivering(one):
            state = await out.until("nats", lambda state: state.error is not None)
        assert state.pending == 60 and state.error == "no acknowledgement (nats: 'Authorization Violation')"
        out.token = TOKEN
        async with out.delivering(one):
            state = await out.until("nats", lambda state: "no stream" in (state.error or ""))
            assert (state.pending, state.set_aside) == (60, 0)
            await nats_receiver.make_stream()
            await out.until_empty("nats")
            taken = await nats_receiver.taken()
            assert sorted(row["id"] for row in taken) == sorted(charge.event_id for charge in charges)
            async for _ in out.ledger.send_days_again("nats", "2036-11-22", "2036-11-22", utc_now()):
                pass
            await out.until_empty("nats")
            assert sum_of(await nats_receiver.taken()) == out.ledger_micro_mxn()
