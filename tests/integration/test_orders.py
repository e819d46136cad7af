"""One order with all that is known of it, in every state that it may be in."""

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import orjson
import pytest
from redis.asyncio import Redis

from metering.clock import utc_at
from metering.events import encode_opened
from metering.orders import CannotKnow, Orders
from metering.ports import NotThere
from metering.wallet import keys
from metering.wallet.presence import Presence
from metering.wallet.values import Caller, OrderIdentity, Verdict
from proxy.api.admin.orders import order_fields
from proxy.orders.result import public_id
from tests.integration.test_replay import answered
from tests.kits.books import FACTS, NOON, NOW_US, SECOND_US, Books, drain, event, open_books, pinned, sql
from tests.kits.cluster import Cluster

OWNER = uuid4().hex


async def hold(books: Books, caller: Caller, order: str, life_s: float = 70.0) -> None:
    """Open a hold of a gateway that has a name."""
    opened = encode_opened(order, caller.org_id, caller.key_id, pinned(2), FACTS)
    admitted = await books.wallet.admit(
        caller, order, pinned(2), opened, OrderIdentity("f"), life_s=life_s, owner=OWNER
    )
    assert admitted.verdict is Verdict.ADMITTED


async def fields(books: Books, order: str, redis: Redis | None = None) -> dict[str, Any]:
    """The whole, as a command tells it."""
    orders = Orders(books.ledger, redis or books.redis)
    told = await order_fields(orders, books.ledger, "https://images", public_id(order))
    return orjson.loads(orjson.dumps(told))  # type: ignore[no-any-return]  # and it is JSON


@pytest.mark.rule(33)
async def test_an_order_through_its_life(redis_url: str, ledger_url: str) -> None:
    """Open with its hold and owner; charged and not booked; booked; refunded (rule 33)."""
    async with open_books(redis_url, ledger_url) as books:
        caller, order = await books.org(), str(uuid4())
        await hold(books, caller, order)
        await books.redis.set(keys.alive(OWNER), "1")
        told = await fields(books, order)
        assert (told["status"], told["booked"], told["ends"]) == ("open", False, [])
        assert (told["org"], told["org_name"]) == (caller.org_id, "acme")
        assert (told["key_id"], told["key_name"]) == (caller.key_id, "main")
        assert (told["model"], told["images_asked"], told["month"]) == ("fal/flux-1.1-pro", 2, "2036-11")
        assert told["admitted_at"] == NOON.isoformat()
        assert told["price"]["unit_mxn"] == "0.84" and told["price"]["fx_source"] == "test"
        assert told["redis"]["hold"] == {
            "held_mxn": "1.68",
            "images": 2,
            "expires_at": utc_at(NOW_US + 70 * SECOND_US).isoformat(),
            "owner": OWNER,
            "owner_lives": True,
        }
        await books.settle(caller, order, 2)
        told = await fields(books, order)
        assert (told["status"], told["booked"], told["refundable_mxn"]) == ("charged", False, "0.00")
        assert told["redis"]["waiting"]["partition"] == keys.partition_of(caller.org_id)
        assert (told["ends"][0]["end"], told["ends"][0]["booked_at"]) == ("charge", None)
        await drain(books)
        told = await fields(books, order)
        assert (told["status"], told["booked"], told["refundable_mxn"]) == ("charged", True, "1.68")
        assert told["redis"]["waiting"] is None and told["ends"][0]["booked_at"] is not None
        assert told["images"][1] == {
            "path": f"2026/11/{order}_1.png",
            "url": f"https://images/2026/11/{order}_1.png",
            "content_type": "image/png",
            "bytes": 1001,
            "sha256": "0" * 64,
            "width_px": 1024,
            "height_px": 1024,
        }
        await books.accounts.refund(order, "blurred")
        told = await fields(books, order)
        assert (told["refunded_mxn"], told["refundable_mxn"]) == ("1.68", "0.00")
        assert told["refunds"][0]["reason"] == "blurred"


@pytest.mark.rule(13)
async def test_a_hold_that_ran_out_and_the_late_charge(redis_url: str, ledger_url: str) -> None:
    """(rule 13) An expiry first, then the charge that a journal brings: both ends are told, and the charge counts."""
    async with open_books(redis_url, ledger_url) as books:
        caller, order = await books.org(), str(uuid4())
        await hold(books, caller, order)
        await books.redis.zadd(keys.OrgKeys(caller.org_id).open, {order: NOW_US // 10})  # long past by Redis' clock
        told = await fields(books, order)
        assert (told["status"], told["booked"], told["redis"]["hold"]["owner_lives"]) == ("ran_out", False, False)
        await books.ledger.book([event(caller.org_id, 1, end="expiry", name=order)], [], NOON)
        await books.wallet.replay(replace(answered(caller, order), order_id=order))
        told = await fields(books, order)
        assert (told["status"], told["booked"]) == ("charged", False)
        assert [one["end"] for one in told["ends"]] == ["expiry", "charge"]
        await drain(books)
        told = await fields(books, order)
        assert (told["status"], told["booked"], told["refundable_mxn"]) == ("charged", True, "1.68")
        assert sorted(one["end"] for one in told["ends"]) == ["charge", "expiry"]


@pytest.mark.rule(30)
async def test_an_end_that_was_set_aside_is_told(redis_url: str, ledger_url: str) -> None:
    """(rule 30) With its error, and when somebody fed it again."""
    async with open_books(redis_url, ledger_url) as books:
        caller, order = await books.org(), str(uuid4())
        bytes_ = "'{}'" if ledger_url.startswith("postgres") else "x'7b7d'"
        sql(
            ledger_url,
            "INSERT INTO events_set_aside (partition, entry_id, error, fields, at, request_id, org_id)"
            f" VALUES (3, '1-0', 'amount: wrong', {bytes_}, '2036', '{order}', '{caller.org_id}')",
        )
        told = await fields(books, order)
        assert (told["status"], told["org_name"], told["booked"]) == ("set_aside", "acme", False)
        row = {"partition": 3, "entry": "1-0", "error": "amount: wrong", "at": "2036"}
        assert told["set_aside"] == [row | {"fed_again_at": None}]
        sql(ledger_url, "INSERT INTO set_aside_ends VALUES (3, '1-0', '2037')")
        told = await fields(books, order)
        assert (told["status"], told["set_aside"][0]["fed_again_at"]) == ("unknown", "2037")


@pytest.mark.rule(2, 15)
async def test_an_unknown_order_is_unknown_only_where_everybody_was_asked(redis_url: str, tmp_path: Path) -> None:
    """(rule 2) The sentence says what was searched; journals that are not closed may still bring it (rule 15)."""
    async with open_books(redis_url, tmp_path / "l.db") as books:
        order = str(uuid4())
        with pytest.raises(NotThere, match=f"neither the ledger nor Redis knows order {order}$"):
            await fields(books, order)
        gone, living = uuid4(), uuid4()
        for one in (gone, living):
            await books.ledger.open_incarnation(one, NOON)
        await Presence(books.redis).beat(living, 0)
        with pytest.raises(NotThere, match=r"; 1 journals are not closed, and may still bring it$"):
            await fields(books, order)
        with pytest.raises(CannotKnow, match="nobody can ask Redis for it: GHUB_REDIS_URL is not set; 2 journals"):
            await order_fields(Orders(books.ledger, None), books.ledger, None, order)
        caller = await books.org()
        other = (keys.partition_of(caller.org_id) + 1) % keys.PARTITIONS
        await books.redis.delete(keys.mark(other))
        with pytest.raises(CannotKnow, match="Redis is not projected yet"):
            await fields(books, order)
        await books.charge(caller, order)
        await drain(books)
        told = await fields(books, order)
        assert told["org"] == caller.org_id
        journals = {UUID(one["incarnation"]): one["uncharged"] for one in told["journals_not_closed"]}
        assert journals == {gone: None, living: 0}


async def test_an_order_is_found_on_a_cluster(cluster: Cluster, tmp_path: Path) -> None:
    """Its partition's master is asked; without an organisation, all of them."""
    async with open_books(cluster.url, tmp_path / "l.db") as books:
        caller, order = await books.org(), str(uuid4())
        await books.charge(caller, order)
        told = await fields(books, order)
        assert (told["status"], told["booked"], told["amount_mxn"]) == ("charged", False, "0.84")
        with pytest.raises(NotThere, match="neither the ledger nor Redis"):
            await fields(books, str(uuid4()))
