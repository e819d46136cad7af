"""Redis dies, freezes or forgets while orders are under way: who was answered 200 is charged once, and nobody else."""

import asyncio
import json
import signal
from collections.abc import Awaitable, Callable

import httpx2
import pytest

from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.system import FLUX, GPT, System, wait_until

UNIT = 840_000
CREDIT = 50_000_000


def start(prepared: Prepared, **settings: str) -> tuple[System, str, str]:
    """A running system and a customer with 50 MXN."""
    system = prepared(**settings)
    system.start_all()
    return system, *system.customer("answered", "50.00")


def orders(system: System, key: str, count: int, meanwhile: Callable[[], Awaitable[None]]) -> list[httpx2.Response]:
    """`count` orders at once; `meanwhile` runs as soon as all are being made upstream."""

    async def storm() -> list[httpx2.Response]:
        async with system.client(key) as client:
            body = {"model": FLUX, "prompt": "x"}
            before = len(system.jobs(FLUX))
            asked = [asyncio.create_task(client.post("/images/generations", json=body)) for _ in range(count)]
            while len(system.jobs(FLUX)) - before < count:
                await asyncio.sleep(0.01)
            await meanwhile()
            return await asyncio.gather(*asked)

    return run(storm())


def valkey_signal(system: System, number: int) -> None:
    assert system.valkey.process is not None
    system.valkey.process.send_signal(number)


def books(system: System) -> dict[str, object]:
    """Output of `ghub verify`."""
    found: dict[str, object] = json.loads(system.ghub("verify", "--json").stdout)
    return found


CLEAN = {"ok": True, "differences": []}


def test_what_is_in_flight_while_redis_is_frozen_is_answered_and_charged_later(prepared: Prepared) -> None:
    """200 without a word of the balance, the images there at once; a new order is 503; and then all of it is booked."""
    system, org_id, key = start(prepared)
    system.behave(FLUX, "slow", times=5, seconds=1)

    async def freeze() -> None:
        valkey_signal(system, signal.SIGSTOP)

    try:
        replies = orders(system, key, 5, freeze)
        assert [reply.status_code for reply in replies] == [200] * 5
        assert not any("x-geekhub-balance-mxn" in reply.headers for reply in replies)
        assert {reply.headers["x-geekhub-cost-mxn"] for reply in replies} == {"0.84"}
        for reply in replies:
            assert httpx2.get(reply.json()["data"][0]["url"], **LOOPBACK).status_code == 200
        body = {"model": FLUX, "prompt": "x"}
        headers = {"authorization": f"Bearer {key}"}
        refused = httpx2.post(f"{system.url}/images/generations", json=body, headers=headers, **LOOPBACK)
        assert (refused.status_code, refused.headers["x-should-retry"]) == (503, "true")
    finally:
        valkey_signal(system, signal.SIGCONT)
    assert {(event.end, event.amount_micro_mxn) for event in system.events(org_id, 5)} == {("charge", UNIT)}
    assert system.cut(org_id).available_micro_mxn == CREDIT - 5 * UNIT
    assert books(system) == CLEAN
    assert len(system.jobs(FLUX)) == 5


def test_a_gateway_killed_with_redis_away_is_replayed_from_its_journal(prepared: Prepared) -> None:
    """Answered while Redis was frozen, then kill −9, and the holds have run out when the next gateway starts."""
    system, org_id, key = start(prepared, GHUB_DEADLINE_S="4")
    system.behave(FLUX, "slow", times=3, seconds=1)

    async def freeze() -> None:
        valkey_signal(system, signal.SIGSTOP)

    try:
        assert [reply.status_code for reply in orders(system, key, 3, freeze)] == [200] * 3
        system.stop("gateway", signal.SIGKILL)
    finally:
        valkey_signal(system, signal.SIGCONT)
    expiries = system.events(org_id, 3)
    assert {event.end for event in expiries} == {"expiry"}
    assert system.cut(org_id).available_micro_mxn == CREDIT
    system.start_gateway()
    ends = [(event.end, event.amount_micro_mxn) for event in system.events(org_id, 6)]
    assert sorted(ends) == [("charge", UNIT)] * 3 + [("expiry", 0)] * 3
    assert system.cut(org_id).available_micro_mxn == CREDIT - 3 * UNIT
    assert books(system) == CLEAN
    assert len(system.images()) == 3


def test_a_redis_that_forgot_what_it_had_acknowledged_gets_it_back(prepared: Prepared) -> None:
    """Charged and answered with no consumer alive, then wiped: the journal charges each once, and not twice."""
    system, org_id, key = start(prepared)
    system.stop("consumer", signal.SIGKILL)

    async def nothing() -> None:
        return

    replies = orders(system, key, 4, nothing)
    assert [reply.status_code for reply in replies] == [200] * 4
    system.valkey.stop()
    for path in system.folder.glob("appendonlydir/*"):
        path.unlink()
    system.valkey.start("--appendonly", "yes")
    system.start("consumer", "consume")
    assert {(event.end, event.amount_micro_mxn) for event in system.events(org_id, 4)} == {("charge", UNIT)}
    wait_until(lambda: system.cut(org_id).available_micro_mxn == CREDIT - 4 * UNIT, "the balance is right again")
    system.stop("gateway")
    system.start_gateway()
    assert books(system) == CLEAN
    assert len(system.events(org_id, 4)) == 4


def test_a_gateway_that_ends_in_peace_leaves_no_journal(prepared: Prepared) -> None:
    """Its answers are booked and nothing is to be kept: its files go, and the next start has nothing to bring."""
    system, org_id, key = start(prepared, GHUB_KEEP_H="0")

    async def nothing() -> None:
        return

    orders(system, key, 3, nothing)
    system.events(org_id, 3)
    assert len(list((system.folder / "journal").glob("*.journal"))) == 2
    assert system.stop("gateway") == 0
    assert list((system.folder / "journal").glob("*.journal")) == []
    system.start_gateway()
    assert "journal_replayed" not in system.log()


def test_a_second_gateway_on_the_same_journal_is_refused(prepared: Prepared) -> None:
    """One sentence that names the folder, and exit code 1."""
    system, _, _ = start(prepared)
    system.start("second", "serve", GHUB_PORT="0")
    assert system.processes.pop("second").wait(timeout=20) == 1
    assert "each gateway needs its own" in system.log("second").splitlines()[-1]


def test_inline_images_are_answered_from_the_journal_too(prepared: Prepared) -> None:
    """By base64 upstream; Redis comes back within the try: no difference is seen, and one charge."""
    system, org_id, key = start(prepared)
    system.behave(GPT, "slow", seconds=1)

    async def storm() -> httpx2.Response:
        async with system.client(key) as client:
            asked = asyncio.create_task(client.post("/images/generations", json={"model": GPT, "prompt": "x"}))
            while not system.jobs(GPT):
                await asyncio.sleep(0.01)
            valkey_signal(system, signal.SIGSTOP)
            await asyncio.sleep(1.5)
            valkey_signal(system, signal.SIGCONT)
            return await asked

    assert run(storm()).status_code == 200
    (event,) = system.events(org_id, 1)
    assert event.end == "charge"
    assert books(system) == CLEAN


def test_the_journal_of_a_gateway_that_does_not_come_back_is_replayed_by_hand(prepared: Prepared) -> None:
    """`ghub journal replay DIR` on the dead gateway's folder: refused while it lives, and safe to repeat."""
    system, org_id, key = start(prepared)
    system.behave(FLUX, "slow", times=3, seconds=1)
    folder = str(system.folder / "journal")

    async def freeze() -> None:
        valkey_signal(system, signal.SIGSTOP)

    try:
        assert [reply.status_code for reply in orders(system, key, 3, freeze)] == [200] * 3
        refused = system.ghub("journal", "replay", folder)
        assert refused.returncode == 1 and "another process uses the journal" in refused.stderr
        system.stop("gateway", signal.SIGKILL)
    finally:
        valkey_signal(system, signal.SIGCONT)
    first = json.loads(system.ghub("journal", "replay", folder, "--json").stdout)
    assert first == {"incarnations": 1, "orders": 3, "charged_now": 3}
    again = json.loads(system.ghub("journal", "replay", folder, "--json").stdout)
    assert again == {"incarnations": 0, "orders": 0, "charged_now": 0}
    assert {(event.end, event.amount_micro_mxn) for event in system.events(org_id, 3)} == {("charge", UNIT)}
    assert system.cut(org_id).available_micro_mxn == CREDIT - 3 * UNIT
    assert books(system) == CLEAN


def test_a_wallet_is_rebuilt_under_traffic(prepared: Prepared) -> None:
    """`ghub wallet rebuild ORG` with orders under way: nothing is lost, and 503 is all that a client may see of it."""
    system, org_id, key = start(prepared)

    async def storm() -> list[int]:
        async with system.client(key) as client:
            body = {"model": FLUX, "prompt": "x"}

            async def one(place: int) -> int:
                await asyncio.sleep(place * 0.05)
                return (await client.post("/images/generations", json=body)).status_code

            asked = [asyncio.create_task(one(place)) for place in range(40)]
            rebuilt = await asyncio.to_thread(system.ghub, "wallet", "rebuild", org_id, "--json")
            assert rebuilt.returncode == 0, rebuilt.stderr
            return await asyncio.gather(*asked)

    statuses = run(storm())
    charged = statuses.count(200)
    assert set(statuses) <= {200, 503} and charged > 10
    assert {(event.end, event.amount_micro_mxn) for event in system.events(org_id, charged)} == {("charge", UNIT)}
    wait_until(lambda: system.cut(org_id).available_micro_mxn == CREDIT - charged * UNIT, "the balance is right")
    assert books(system) == CLEAN


@pytest.mark.rule(15)
def test_a_journal_that_nobody_replayed_is_not_provable(prepared: Prepared) -> None:
    """`verify` exits 1 and names it, even if wallets and ledger agree (rule 15)."""
    system, _, key = start(prepared)

    async def freeze() -> None:
        valkey_signal(system, signal.SIGSTOP)

    try:
        system.behave(FLUX, "slow", times=2, seconds=1)
        assert [reply.status_code for reply in orders(system, key, 2, freeze)] == [200] * 2
        system.stop("gateway", signal.SIGKILL)
    finally:
        valkey_signal(system, signal.SIGCONT)
    found = system.ghub("verify", "--json")
    (row,) = json.loads(found.stdout)["differences"]
    assert found.returncode == 1 and row["what"].startswith("journal ") and "not provable" in row["found"]
    system.start_gateway()
    wait_until(lambda: "journal_replayed" in system.log(), "the journal is replayed")
    assert books(system) == CLEAN
