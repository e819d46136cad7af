"""Webhooks over real receivers: each event at least once, signed right, and no receiver delays another (rule 36)."""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import orjson
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from metering import consumer
from metering.clock import utc_now
from metering.events import LONG, Notice, encode_opened
from metering.ports import LATEST, ApiKey, LedgerError, NotThere, WebhookCall, WebhookClaim, WrongField
from metering.wallet.values import Caller, Close, OrderIdentity, Verdict
from metering.webhooks.calls import notice_call
from metering.webhooks.lag import WebhookLagWatch
from metering.webhooks.lookout import Lookout
from metering.webhooks.registry import MAX_WEBHOOKS, WebhookRegistry
from metering.webhooks.sealing import SecretsKey
from proxy.sinks.webhooks import PrivateAddress, WebhookPosts
from proxy.webhooks.targets import WebhookHosts
from tests.kits.books import ACT, FACTS, Books, drain, open_books, pinned, sql, start_worker
from tests.kits.outbound import Names
from tests.kits.webhooks import DAY, KEY, ORG, Told, receiver, told


def body_of(message: bytes) -> dict[str, object]:
    found: dict[str, object] = orjson.loads(message)
    return found


@pytest.mark.rule(36)
async def test_the_end_of_a_long_order_is_told(ledger_url: str) -> None:
    """(rule 36) Charged, failed, cancelled: once for each webhook that listens, and for the address of the order.

    The judge has accepted each signature. Nobody is told of an order that was waited for, nor of what is booked again.
    """
    async with receiver() as here, told(ledger_url, here) as out:
        await out.add(here, "/all")
        await out.add(here, "/failed", "image.generation.failed")
        (made,) = await out.book(webhook=f"{here.url}/own")
        (failed,) = await out.book(end="void", reason="content_policy")
        (expired,) = await out.book(end="expiry", reason="expired", webhook=f"{here.url}/all")
        (cancelled,) = await out.book(end="void", reason="cancelled")
        await out.book(mode=None, webhook=f"{here.url}/own")
        await out.ledger.book([made, failed], [], utc_now())
        async with out.delivering():
            rows = await out.until_ended()
        assert {row.state for row in rows} == {"delivered"} and {row.attempts for row in rows} == {1}
        to_all = {body_of(one)["data"]["number"]: body_of(one) for one in here.messages("/all").values()}  # type: ignore[index]
        assert [to_all[number]["type"] for number in sorted(to_all)] == [
            "image.generation.completed",
            "image.generation.failed",
            "image.generation.failed",
            "image.generation.cancelled",
        ]
        assert to_all[made.number] == {
            "type": "image.generation.completed",
            "timestamp": to_all[made.number]["timestamp"],
            "data": {
                "id": "req_" + made.event_id.replace("-", ""),
                "object": "image.generation",
                "status": "completed",
                "number": made.number,
                "model": "fal/flux-1.1-pro",
                "images": {"asked": 1, "delivered": 1},
                "cost_mxn": "0.84",
                "key_id": "key_1",
                "metadata": {"page": "7"},
            },
        }
        errors = {number: one["data"].get("error") for number, one in to_all.items()}  # type: ignore[attr-defined]
        assert (
            errors[failed.number]["code"] == "content_policy_violation"
            and "refused" in errors[failed.number]["message"]
        )
        assert to_all[expired.number]["data"]["status"] == "expired"  # type: ignore[index]
        assert errors[expired.number]["code"] and errors[cancelled.number] is None
        assert to_all[cancelled.number]["data"]["cost_mxn"] == "0.00"  # type: ignore[index]
        assert len(here.messages("/failed")) == 2 and len(here.messages("/own")) == 1


@pytest.mark.rule(36)
async def test_receivers_that_fail_delay_no_other(ledger_url: str) -> None:
    """(rule 36) Of four, one fails half of the time, one always, and one never answers: the fourth has all at once.

    What was given up is alarmed, listed, and sent again under the same ids when a person says so.
    """
    well = False

    def answer(path: str, before: int) -> int | None:
        if path == "/half":
            return 500 if before % 2 == 0 else 200
        if path == "/never" and not well:
            return 503 if before % 2 else 307
        return 204

    async with receiver(answer) as here, receiver(lambda *_: None) as silent, receiver() as fine:  # noqa: SIM117
        async with told(ledger_url, here, silent, fine) as out:
            out.send_s = 1.0
            names = ["/half", "/never"]
            ids = {name: await out.add(here, name) for name in names}
            fine.secrets = silent.secrets = here.secrets
            await out.add(fine, "/fine")
            hanging = await out.add(silent, "/silent")
            await out.book(20)
            with capture_logs() as logs:
                async with out.delivering():
                    await out.until(
                        lambda rows: sum(one.url.endswith("/fine") and one.state == "delivered" for one in rows) == 20
                    )
                    waits = [one for one in await out.deliveries() if one.webhook_id == hanging]
                    assert {one.state for one in waits} == {"waiting"}
                    await out.registry.disable(hanging)
                    rows = await out.until_ended()
                    state = {name: {one.state for one in rows if one.webhook_id == ids[name]} for name in names}
                    assert state == {"/half": {"delivered"}, "/never": {"set_aside"}}
                    given_up = [one for one in rows if one.webhook_id == ids["/never"]]
                    assert {one.error for one in given_up} <= {"it answers 503", "it answers 307"}
                    assert {one.attempts for one in given_up} == {len(out.pace.pauses_s) + 1}
                    assert len([log for log in logs if log["event"] == "webhook_set_aside"]) == 20
                    well = True
                    await out.registry.replay(given_up[0].delivery_id)
                    assert await out.registry.replay_all(ids["/never"]) >= 19
                    await out.until(
                        lambda rows: all(one.state == "delivered" or one.webhook_id == hanging for one in rows)
                    )
            assert len(here.messages("/half")) == 20
            assert {*here.messages("/never")} == {one.delivery_id for one in given_up}
            assert here.messages("/elsewhere") == {}
            with pytest.raises(LedgerError, match="is disabled"):
                await out.registry.replay_all(hanging)
            actions = {row.action for row in await out.ledger.audits(ORG, 2**53, 50)}
            assert actions >= {"webhook.add", "webhook.disable", "webhook.replay"}


@pytest.mark.rule(36)
async def test_a_server_that_answers_nobody_is_passed_over(ledger_url: str) -> None:
    """(rule 36) Three thousand of its deliveries are due before another's: of it a few are claimed, then none."""
    async with receiver() as here, told(ledger_url, here) as out:
        now = utc_now()
        for first in range(0, 3_000, 1_000):
            dead = [
                WebhookCall(ORG, "balance.low", f"{first + i}", "{}", "https://dead.example.mx/in")
                for i in range(1_000)
            ]
            await out.ledger.call_webhooks(dead, now)
        await out.ledger.call_webhooks([WebhookCall(ORG, "balance.low", "x", "{}", "https://fine.mx/")], utc_now())
        later = utc_now()
        claim = WebhookClaim(later, later + DAY, 100, 4)
        dead_lane, fine_lane = f"{ORG} dead.example.mx", f"{ORG} fine.mx"
        first_claim = await out.ledger.claim_webhooks(claim)
        assert [one.lane for one in first_claim] == [dead_lane] * 4
        second = await out.ledger.claim_webhooks(replace(claim, busy=[dead_lane]))
        assert [one.lane for one in second] == [fine_lane]
        third = await out.ledger.claim_webhooks(replace(claim, failing=[dead_lane]))
        assert [one.lane for one in third] == [dead_lane]


@pytest.mark.rule(36)
async def test_a_delivery_of_a_consumer_that_dies_is_sent_by_the_next(ledger_url: str) -> None:
    """(rule 36) It was claimed and never concluded: its claim runs out, and it comes again under the same id."""
    async with receiver() as here, told(ledger_url, here) as out:
        await out.add(here)
        await out.book()
        now = utc_now()
        (claimed,) = await out.ledger.claim_webhooks(WebhookClaim(now, now + timedelta(seconds=0.3), 10, 4))
        assert await out.ledger.claim_webhooks(WebhookClaim(utc_now(), now + DAY, 10, 4)) == []
        async with out.delivering():
            (row,) = await out.until_ended()
        assert (row.state, row.attempts, row.delivery_id) == ("delivered", 2, claimed.delivery_id)
        assert [*here.messages("/")] == [claimed.delivery_id]


async def long_order(books: Books, caller: Caller, url: str) -> str:
    """Admit a long order that names an address, and settle it; returns its id."""
    order, price = str(uuid4()), pinned(now_us=books.wallet.now_us())
    facts = {**FACTS, "mode": LONG, "webhook": url}
    opened = encode_opened(order, caller.org_id, caller.key_id, price, facts)
    identity = OrderIdentity(fingerprint=order)
    admitted = await books.wallet.admit(caller, order, price, opened, identity, life_s=60, owner="test")
    assert admitted.verdict is Verdict.ADMITTED
    assert (await books.settle(caller, order)).close is Close.CHARGED
    return order


@pytest.mark.rule(36)
async def test_a_consumer_killed_after_it_has_booked_has_left_the_delivery(
    redis_url: str, ledger_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """(rule 36) From the admission of a long order through Redis and a consumer that dies of SIGKILL at its commit.

    The next consumer finds the event booked, and adds no second delivery.
    """
    async with receiver() as here, open_books(redis_url, ledger_url, now_us=0) as books:
        caller = await books.org("acme")
        order = await long_order(books, caller, f"{here.url}/own")
        worker = start_worker("consume_and_hang", redis_url, ledger_url)
        assert worker.stdout is not None
        assert await asyncio.to_thread(worker.stdout.readline) == b"committed\n"
        worker.kill()
        worker.communicate()
        monkeypatch.setattr(consumer, "IDLE_MS", 0)
        await drain(books)
        (row,) = await books.ledger.webhook_deliveries(caller.org_id, None, (LATEST, ""))
        assert (row.subject, row.type, row.webhook_id) == (order, "image.generation.completed", None)
        _, secret = await books.accounts.webhooks.rotate(caller.org_id, DAY)
        here.secrets = [secret]
        hosts = WebhookHosts(here.url.removeprefix("http://"))
        out = Told(books.ledger, books.accounts.webhooks, hosts)
        async with out.delivering():
            for _ in range(500):
                if (await books.ledger.webhook_delivery(row.delivery_id)).state == "delivered":
                    break
                await asyncio.sleep(0.01)
        assert [*here.messages("/own")] == [row.delivery_id]
        assert sql(ledger_url, "SELECT mode FROM events") == [("long",)]
        assert [one.opened.mode async for one in books.ledger.events()] == [LONG]


async def test_both_secrets_sign_while_one_is_replaced(ledger_url: str) -> None:
    """And after the overlap the new one alone."""
    async with receiver() as here, told(ledger_url, here) as out:
        await out.add(here)
        (old,) = here.secrets
        _, new = await out.registry.rotate(ORG, timedelta(hours=24))
        here.secrets = [old, new]  # each alone must accept it
        await out.book()
        async with out.delivering():
            await out.until_ended()
        _, third = await out.registry.rotate(ORG, timedelta(0))
        here.secrets = [third]
        await out.book()
        async with out.delivering():
            await out.until_ended()
        signatures = [headers["webhook-signature"].split(" ") for _, headers, _ in here.taken]
        assert [len(one) for one in signatures] == [2, 1]
        assert all(secret.startswith("whsec_") and len(secret) == 6 + 44 for secret in (old, new, third))


async def test_a_secret_is_no_secret_of_the_database(tmp_path: Path) -> None:
    """Neither the secret nor its bytes are in the files; another key opens nothing, and the key before still does."""
    place = tmp_path / "l.db"
    async with receiver() as here, told(f"sqlite:///{place}", here) as out:
        await out.add(here)
        (secret,) = here.secrets
        with closing(sqlite3.connect(place)) as db:
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        files = b"".join(path.read_bytes() for path in tmp_path.iterdir())  # noqa: ASYNC240  # a test may wait
        assert ORG.encode() in files
        assert secret.removeprefix("whsec_").encode() not in files and secret.encode() not in files
        new, old = "bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmV3bmU=", "c2VhbHMgdGhlIHNlY3JldHMgb2YgdGhlc2UgdGVzdHM="
        await out.book()
        with capture_logs() as logs:
            async with out.delivering(SecretsKey(new)):
                await out.until(lambda rows: rows[0].error is not None)
        assert "webhook_secret_unreadable" in {log["event"] for log in logs}
        async with out.delivering(SecretsKey(f"{new},{old}")):
            (row,) = await out.until_ended()
        assert row.state == "delivered"
        sealed = KEY.seal(secret, ORG)
        assert KEY.open(sealed, ORG) == secret
        with pytest.raises(Exception, match="sealed with another"):
            KEY.open(sealed, "another organisation")


@pytest.mark.parametrize("text", ["", "x", "c2hvcnQ=", f"{'A' * 43}=,short"])
def test_a_key_has_its_form(text: str) -> None:
    with pytest.raises(ValueError, match="32 bytes in base64"):
        SecretsKey(text)


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["169.254.169.254"], ["10.1.2.3"], ["::1"], ["93.184.216.34", "192.168.0.1"], ["fd00::1"]],
)
async def test_a_name_that_leads_inside_is_not_reached(addresses: Sequence[str]) -> None:
    """It is looked up when it is connected, and one private address among several refuses it."""
    posts = WebhookPosts(WebhookHosts(""), resolve=Names(rebound_example_mx=[*addresses]))
    assert await posts.send("https://rebound.example.mx/", {}, b"{}") == PrivateAddress.__doc__
    why = await posts.send(f"https://{'127.0.0.1'}/", {}, b"{}")
    assert why is not None and "not on the public internet" in why
    await posts.aclose()


async def test_a_receiver_is_not_waited_for(ledger_url: str) -> None:
    """A name that does not exist, a port that nobody serves, one that never answers: a sentence for a person each."""
    async with receiver(lambda *_: None) as silent:
        posts = WebhookPosts(WebhookHosts("127.0.0.1"), send_s=0.3, resolve=Names())
        told_why = [
            await posts.send(url, {"webhook-id": "m", "content-type": "application/json"}, b"{}")
            for url in ("https://nowhere.example.mx/", "http://127.0.0.1:1/", silent.url)
        ]
        assert told_why[0] is not None and "name is not known" in told_why[0]
        assert told_why[1] is not None and "refused" in told_why[1]
        assert told_why[2] == "no answer in 0.3 s"
        await posts.aclose()


async def test_thresholds_are_told(ledger_url: str) -> None:
    """A low balance, a quota and a budget, in the transaction that writes the notice; a repeat is told nobody."""
    async with receiver() as here, told(ledger_url, here) as out:
        await out.add(here)
        at = utc_now().isoformat()
        notices = [
            Notice(ORG, "", "balance", 0, "3", 20_000_000, 19_160_000, at),
            Notice(ORG, "key_1", "images_per_day", 80, "2036-11-22", 10, 8, at),
            Notice(ORG, "", "mxn_per_month", 100, "2036-11", 500_000_000, 500_000_000, at),
        ]
        for _ in range(2):
            await out.ledger.book_notices(notices, {one: notice_call(one) for one in notices})
        async with out.delivering():
            await out.until_ended()
        found = {str(one["type"]): one["data"] for one in map(body_of, here.messages("/").values())}
        assert len(here.taken) == 3
        assert found["balance.low"] == {
            "object": "notice",
            "what": "balance",
            "key_id": None,
            "percent": 0,
            "period": "3",
            "limit": "20.00",
            "used": "19.16",
        }
        assert found["quota.threshold"]["limit"] == 10 and found["quota.threshold"]["key_id"] == "key_1"  # type: ignore[index]
        assert found["budget.threshold"]["used"] == "500.00"  # type: ignore[index]


async def test_ends_of_keys_and_models_are_told_once_each_time(ledger_url: str) -> None:
    """A key seven days and one day before, a model thirty, seven and one; looked for again and again."""
    start = datetime(2036, 11, 1, 12, tzinfo=UTC)
    now = start
    async with receiver() as here, told(ledger_url, here) as out:
        await out.add(here)
        key = ApiKey("key_1", ORG, "web", "h", start.isoformat(), expires_at=(start + 40 * DAY).isoformat())
        await out.ledger.create_key(key, ACT)
        models = {"google/imagen-4": date(2036, 12, 11), "openai/dall-e-3": date(2036, 5, 1)}
        lookout = Lookout(out.ledger, lambda: models, lambda: now)
        told_on: list[tuple[int, str, int]] = []
        known: set[str] = set()
        for hours in range(0, 45 * 24, 6):
            now = start + timedelta(hours=hours)
            for row in await _looked(lookout, out):
                if row[0] not in known:
                    known.add(row[0])
                    told_on.append((hours // 24, row[1], row[2]))
        assert told_on == [
            (9, "model.retiring", 30),
            (32, "model.retiring", 7),
            (33, "key.expiring", 7),
            (38, "model.retiring", 1),
            (39, "key.expiring", 1),
        ]
        await out.ledger.revoke_key("key_1", start, ACT)


async def _looked(lookout: Lookout, out: Told) -> list[tuple[str, str, int]]:
    await lookout.look()
    return [(one.delivery_id, one.type, int(one.subject.rpartition(" ")[2])) for one in await out.deliveries()]


async def test_ended_deliveries_go_and_late_ones_are_given_up(ledger_url: str) -> None:
    """After thirty days, and after thirty hours without a turn; the metrics say what waits and what is set aside."""
    async with receiver() as here, told(ledger_url, here) as out:
        await out.add(here)
        await out.book(2)
        watch = WebhookLagWatch(out.ledger, delivers=False)
        with capture_logs() as logs:
            await watch.look()
        assert [log["event"] for log in logs] == ["webhooks_without_key"]
        assert REGISTRY.get_sample_value("ghub_webhooks_waiting") == 2
        lookout = Lookout(out.ledger, dict, lambda: utc_now() + 2 * DAY)
        await lookout.look()
        assert {(one.state, one.error is not None) for one in await out.deliveries()} == {("set_aside", True)}
        await watch.look()
        assert REGISTRY.get_sample_value("ghub_webhooks_set_aside") == 2
        assert REGISTRY.get_sample_value("ghub_webhooks_oldest_seconds") == 0
        await Lookout(out.ledger, dict, lambda: utc_now() + 40 * DAY).look()
        assert await out.deliveries() == []


async def test_a_wrong_webhook_is_refused_with_the_field(ledger_url: str) -> None:
    """Its URL, its events, one too many, the same again; and nothing without a key for its secret."""
    async with receiver() as here, told(ledger_url, here) as out:
        url = f"{here.url}/"
        for where, events, field in (
            ("http://example.mx/", ["balance.low"], "url"),
            ("https://10.0.0.1/", ["balance.low"], "url"),
            ("https://example.mx/?key=ghub_sk_live_x", ["balance.low"], "url"),
            (url, ["balance.high"], "events"),
            (url, [], "events"),
        ):
            with pytest.raises(WrongField) as refused:
                await out.registry.add(ORG, where, events)
            assert refused.value.field == field
        with pytest.raises(NotThere):
            await out.registry.add("nobody", url, ["balance.low"])
        first = await out.add(here, "/", "balance.low")
        with pytest.raises(WrongField, match="has a webhook of this URL"):
            await out.add(here, "/")
        await out.registry.disable(first)
        await out.registry.disable(first)
        for number in range(MAX_WEBHOOKS):
            await out.add(here, f"/{number}", "balance.low")
        with pytest.raises(LedgerError, match=f"may have {MAX_WEBHOOKS}"):
            await out.add(here, "/more")
        assert len(here.secrets) == 1
        keyless = WebhookRegistry(out.ledger, None, "test", None)
        with pytest.raises(LedgerError, match="GHUB_SECRETS_KEY is not set"):
            await keyless.add(ORG, url, ["balance.low"])


async def test_without_a_secret_nothing_is_sent(ledger_url: str) -> None:
    """An order's own address waits for its organisation's first secret, which `rotate` makes."""
    async with receiver() as here, told(ledger_url, here) as out:
        await out.book(webhook=f"{here.url}/own")
        async with out.delivering():
            await out.until(lambda rows: rows[0].error is not None and "rotate" in rows[0].error)
            assert here.taken == []
            _, secret = await out.registry.rotate(ORG, DAY)
            here.secrets = [secret]
            (row,) = await out.until_ended()
        assert row.state == "delivered"
