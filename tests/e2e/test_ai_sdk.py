"""Vercel's AI SDK with its own retries: it does not count them, and looks only at the status, not at `x-should-retry`.

It tries up to three times at 408, 409, 429 and 5xx, and if the connection is lost.
"""

import asyncio
import base64
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from docs.errors import AI_SDK_TRIES, ai_sdk_tries
from proxy.errors import ApiError, Kind
from tests.conftest import run
from tests.kits.node import install, tell
from tests.kits.raw_server import Peer, raw_server
from tests.kits.system import FLUX, GPT, System, wait_until

PROVIDERS = ["openai", "compatible"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the SDK, as its lock file says."""
    return install(tmp_path_factory.mktemp("node") / "client")


def order(node: Path, url: str, key: str, *orders: tuple[str, str]) -> list[dict[str, Any]]:
    """One image of each (provider, model), all at once."""
    wanted = [{"provider": provider, "model": model} for provider, model in orders]
    return tell(node, "ai.mjs", {"url": url, "key": key, "orders": wanted})


def statuses(system: System, org_id: str, count: int) -> list[int]:
    """Statuses of an organisation's requests, from the gateway's log, which is written after the reply."""

    def found() -> list[int]:
        lines = [line for line in system.log().splitlines() if '"event":"request"' in line and org_id in line]
        return [int(line.split('"status":')[1].split(",")[0]) for line in lines]

    wait_until(lambda: len(found()) >= count, "every request is in the log")
    return found()


@pytest.mark.rule(38)
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("cuts", [1, 2])
def test_an_order_whose_connection_is_lost_is_made_and_charged_once(
    system: System, node: Path, provider: str, cuts: int
) -> None:
    """Its own retry gets the order that was left, also if an earlier retry waited for it and was cut off, too (38)."""
    org_id, key = system.customer(f"cut {provider} {cuts}", "50.00")
    system.behave(FLUX, "slow", seconds=8)  # longer than both of its pauses
    before = len(system.jobs(FLUX))

    async def work() -> list[dict[str, Any]]:
        open_ = 0

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """To the gateway and back; the first connections are cut once their order is being made."""
            nonlocal open_
            open_ += 1
            cut = open_ <= cuts
            upstream, out = await asyncio.open_connection("127.0.0.1", system.port)

            async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
                while data := await source.read(65536):
                    to.write(data)
                    await to.drain()

            both = [asyncio.create_task(pump(reader, out)), asyncio.create_task(pump(upstream, writer))]
            if cut:
                while len(await asyncio.to_thread(system.jobs, FLUX)) == before:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)  # the request of a later try has arrived
            else:
                await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for one in both:
                one.cancel()
            for side in (out, writer):
                side.transport.abort()

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        ends = await asyncio.to_thread(order, node, url, key, (provider, FLUX))
        server.close()
        return ends

    (end,) = run(work())
    assert (end["errors"], len(end["images"])) == ([], 1)
    assert base64.b64decode(end["images"][0])[:2] == b"\xff\xd8"
    (event,) = system.events(org_id, 1)
    assert (event.end, event.amount_micro_mxn) == ("charge", 840_000)
    assert len(system.jobs(FLUX)) - before == 1


def test_it_tries_again_by_the_status_of_each_error_as_the_table_says(node: Path) -> None:
    """Every kind of error with its own headers, `x-should-retry: false` among them: as often as docs/errors.md says."""
    tries: Counter[str] = Counter()

    async def answer(peer: Peer) -> None:
        while request := await peer.read_request():
            name = next(kind.name for kind in Kind if f'"{kind.name}"'.encode() in request)
            tries[name] += 1
            error = ApiError(Kind[name], "no", retry_after_s=0.2 if Kind[name].value.retry else None)
            head = {"content-type": "application/json"} | error.reply_headers()
            body = error.body("req_0")
            lines = "".join(f"{field}: {value}\r\n" for field, value in head.items())
            status = error.kind.value.status
            await peer.send(f"HTTP/1.1 {status} x\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body)

    async def work() -> list[dict[str, Any]]:
        async with raw_server(answer) as server:
            orders = [("compatible", kind.name) for kind in Kind]
            return await asyncio.to_thread(order, node, server.url, "key", *orders)

    ends = run(work())
    for kind, end in zip(Kind, ends, strict=True):
        assert (tries[kind.name], len(end["errors"])) == (ai_sdk_tries(kind),) * 2, kind
        assert {error["status"] for error in end["errors"]} == {kind.value.status}
    assert set(tries.values()) == {1, AI_SDK_TRIES}


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_failed_upstream_is_ordered_anew_and_charged_once(system: System, node: Path, provider: str) -> None:
    """502 `x-should-retry: false`: it orders again all the same, and pays for what was delivered alone."""
    org_id, key = system.customer(f"failed {provider}", "50.00")
    before = len(system.jobs(GPT))
    system.behave(GPT, "http_500")
    (end,) = order(node, system.url, key, (provider, GPT))
    assert (end["errors"], len(end["images"])) == ([], 1)
    assert statuses(system, org_id, 2) == [502, 200]
    assert sorted((event.end, event.quantity) for event in system.events(org_id, 2)) == [("charge", 1), ("void", 0)]
    assert len(system.jobs(GPT)) - before == 2


def test_a_quota_that_is_used_up_is_asked_in_vain_and_costs_nothing(system: System, node: Path) -> None:
    """429 `quota_exceeded`: as many requests as it has tries, and no order."""
    org_id, key = system.customer("quota", "50.00", images_per_day=1)
    (first,) = order(node, system.url, key, ("compatible", FLUX))
    (end,) = order(node, system.url, key, ("compatible", FLUX))
    assert (len(first["images"]), [error["status"] for error in end["errors"]]) == (1, [429] * AI_SDK_TRIES)
    assert statuses(system, org_id, 4) == [200, 429, 429, 429]
    assert len(system.events(org_id, 1)) == 1
