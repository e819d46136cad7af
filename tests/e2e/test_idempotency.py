"""An order that is placed again is not placed twice: by its key on any pod, and by the SDKs' own retries (16–20)."""

import asyncio
import json
import signal
from typing import Any

import httpx2
import openai
import pytest

from metering.wallet.keys import partition_of
from proxy.backends import Backends
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.system import FLUX, GPT, System, bearer, wait_until

ORDER = {"model": FLUX, "prompt": "un faro"}
CLEAN = {"ok": True, "differences": []}


@pytest.fixture
def three(prepared: Prepared) -> tuple[System, list[str]]:
    """Three gateways over one Redis, one ledger and one store; their base URLs."""
    system = prepared()
    system.start_all()
    urls = [system.url]
    for number in (2, 3):
        port = free_port()
        folder = str(system.folder / f"journal{number}")
        system.start(
            f"gateway{number}", "serve", GHUB_PORT=str(port), GHUB_JOURNAL_DIR=folder, GHUB_PUBLIC_URL=public(system)
        )
        urls.append(f"http://127.0.0.1:{port}/v1")
    for url in urls:
        wait_until(lambda url=url: answers(url.removesuffix("/v1")), f"{url} is ready")  # type: ignore[misc]
    return system, urls


def public(system: System) -> str:
    return f"http://127.0.0.1:{system.port}/storage/v1/object/public/generated-images"


def answers(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/readyz", **LOOPBACK).status_code == 200
    except httpx2.TransportError:
        return False


def post(url: str, key: str, body: dict[str, Any] = ORDER, encoding: str = "ascii", **headers: str) -> httpx2.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()} | bearer(key)
    encoded = httpx2.Headers(headers, encoding=encoding)
    return httpx2.post(f"{url}/images/generations", json=body, headers=encoded, timeout=60, **LOOPBACK)


def get(url: str, key: str, path: str) -> httpx2.Response:
    return httpx2.get(f"{url}/images/generations{path}", headers=bearer(key), **LOOPBACK)


def test_fifty_posts_of_one_key_over_three_gateways_are_one_order(three: tuple[System, list[str]]) -> None:
    """One generation upstream, one object, one charge, and fifty equal answers."""
    system, urls = three
    org_id, key = system.customer("fifty", "50.00")
    system.behave(FLUX, "slow", times=50, seconds=1.5)

    async def storm() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(**LOOPBACK, timeout=60) as client:
            headers = bearer(key) | {"idempotency-key": "order 1"}
            return await asyncio.gather(
                *(client.post(f"{urls[at % 3]}/images/generations", json=ORDER, headers=headers) for at in range(50))
            )

    replies = run(storm())
    assert [reply.status_code for reply in replies] == [200] * 50
    assert len({reply.content for reply in replies}) == 1
    assert sum("idempotent-replayed" in reply.headers for reply in replies) == 49
    assert len({reply.headers["x-request-id"] for reply in replies}) == 50
    assert {reply.headers["x-geekhub-cost-mxn"] for reply in replies} == {"0.84", "0.00"}
    (event,) = system.events(org_id, 1)
    assert (event.end, event.amount_micro_mxn, len(system.jobs(FLUX)), len(system.images())) == (
        "charge",
        840_000,
        1,
        1,
    )
    assert system.cut(org_id).available_micro_mxn == 49_160_000
    later = post(urls[1], key, idempotency_key="order 1")
    assert later.content == replies[0].content and later.headers["idempotent-replayed"] == "true"
    assert json.loads(system.ghub("verify", "--json").stdout) == CLEAN


def test_a_key_belongs_to_its_order_and_its_organisation(prepared: Prepared) -> None:
    """Another order under it is 422; another organisation's key of the same name is another key; a long one is 400."""
    system = prepared()
    system.start_all()
    _, key = system.customer("one", "50.00")
    _, other = system.customer("two", "50.00")
    first = post(system.url, key, idempotency_key="k")
    for body in ({**ORDER, "n": 2}, {**ORDER, "prompt": "otro"}, {**ORDER, "response_format": "b64_json"}):
        refused = post(system.url, key, body, idempotency_key="k")
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "idempotency_key_reused")
        assert refused.headers["x-should-retry"] == "false"
    assert post(system.url, key, {**ORDER, "size": "auto", "n": 1}, idempotency_key="k").content == first.content
    assert post(system.url, other, idempotency_key="k").json()["id"] != first.json()["id"]
    assert post(system.url, key, idempotency_key="x" * 255).status_code == 200
    assert post(system.url, key, idempotency_key="x" * 256).status_code == 400
    assert len(system.jobs(FLUX)) == 3
    latin = post(system.url, key, encoding="latin-1", idempotency_key="año")  # as `fetch` sends it
    assert post(system.url, key, encoding="utf-8", idempotency_key="año").content == latin.content
    assert get(system.url, key, "?idempotency_key=a%C3%B1o").json()["id"] == latin.json()["id"]


@pytest.mark.rule(17)
def test_a_failure_frees_the_key_and_an_unknown_outcome_does_not(prepared: Prepared) -> None:
    """An order that was certainly not made may be placed again; if nobody knows, the answer is the same (rule 17)."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("frees", "50.00")
    system.behave(FLUX, "content_policy_422")
    assert post(system.url, key, idempotency_key="a").status_code == 400
    assert post(system.url, key, idempotency_key="a").status_code == 200
    system.behave(GPT, "http_500")
    body = {"model": GPT, "prompt": "x"}
    first = post(system.url, key, body, idempotency_key="b")
    again = post(system.url, key, body, idempotency_key="b")
    assert (first.status_code, again.status_code) == (502, 502)
    assert first.json()["error"]["message"] == again.json()["error"]["message"]
    assert len([job for job in system.jobs(GPT)]) <= 1
    assert sorted(event.end for event in system.events(org_id, 3)) == ["charge", "void", "void"]


def test_images_in_base64_are_replayed_too(prepared: Prepared) -> None:
    """Byte for byte, from the store."""
    system = prepared()
    system.start_all()
    _, key = system.customer("inline", "50.00")
    body = {**ORDER, "response_format": "b64_json", "n": 2}
    first = post(system.url, key, body, idempotency_key="k")
    assert first.status_code == 200 and post(system.url, key, body, idempotency_key="k").content == first.content


def test_a_key_whose_gateway_died_is_free_when_its_hold_has_run_out(prepared: Prepared) -> None:
    """Until then 503 with a hint; then the order runs as new, and one of the two is charged."""
    system = prepared(GHUB_DEADLINE_S="1")
    system.start_all()
    org_id, key = system.customer("died", "50.00")
    system.behave(FLUX, "stuck_in_queue")

    async def kill() -> None:
        async with system.client(key) as client:
            headers = {"idempotency-key": "k"}
            posting = asyncio.create_task(client.post("/images/generations", json=ORDER, headers=headers))
            while not system.jobs(FLUX):
                await asyncio.sleep(0.01)
            system.stop("gateway", signal.SIGKILL)
            with pytest.raises(httpx2.TransportError):
                await posting

    run(kill())
    system.start_gateway()
    statuses = set()

    def done() -> bool:
        statuses.add((reply := post(system.url, key, idempotency_key="k")).status_code)
        return reply.status_code == 200

    wait_until(done, "the key is free again", within_s=30)
    assert statuses <= {200, 503}
    ends = sorted(event.end for event in system.events(org_id, 2))
    assert ends[0] == "charge" and ends[1] in ("expiry", "void")


def test_four_lost_requests_get_four_results_by_their_sdks_retries(prepared: Prepared) -> None:
    """The same order four times without a key; the sockets are lost, the SDKs repeat: four charges, and no fifth."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("lost", "50.00")
    system.behave(FLUX, "slow", times=4, seconds=1.5)

    async def storm() -> list[str]:
        lost = asyncio.Event()

        async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """To the gateway and back; until `lost` is set every connection is cut before an answer comes."""
            upstream, out = await asyncio.open_connection("127.0.0.1", system.port)

            async def pump(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
                try:
                    while data := await source.read(65536):
                        to.write(data)
                        await to.drain()
                except OSError:
                    pass
                finally:
                    to.close()

            if lost.is_set():
                await asyncio.gather(pump(reader, out), pump(upstream, writer))
                return
            sending = asyncio.create_task(pump(reader, out))
            await lost.wait()
            sending.cancel()
            out.transport.abort()
            writer.transport.abort()

        server = await asyncio.start_server(relay, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]

        async def one() -> str:
            async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key) as client:
                reply = await client.images.generate(model=FLUX, prompt="un faro")
                assert reply.data is not None and reply.data[0].url is not None
                return reply.data[0].url

        asked = [asyncio.create_task(one()) for _ in range(4)]
        while len(system.jobs(FLUX)) < 4:
            await asyncio.sleep(0.01)
        lost.set()
        urls = await asyncio.gather(*asked)
        server.close()
        return list(urls)

    urls = run(storm())
    assert len(set(urls)) == 4
    assert {(event.end, event.amount_micro_mxn) for event in system.events(org_id, 4)} == {("charge", 840_000)}
    assert len(system.jobs(FLUX)) == 4
    assert json.loads(system.ghub("verify", "--json").stdout) == CLEAN


@pytest.mark.rule(38)
@pytest.mark.parametrize("running", [True, False])
def test_three_orders_that_were_left_are_given_to_the_next_three_on_other_gateways(
    three: tuple[System, list[str]], running: bool
) -> None:
    """Nobody counts tries. While they are made and afterwards: three clients leave, the next three get a picture each
    for nothing, and a fourth a new one (rule 38)."""
    system, urls = three
    org_id, key = system.customer("left", "50.00")
    system.behave(FLUX, "slow", times=3, seconds=3 if running else 0.8)

    async def leave(client: httpx2.AsyncClient, at: int) -> None:
        with pytest.raises(httpx2.ReadTimeout):
            await client.post(f"{urls[at]}/images/generations", json=ORDER, headers=bearer(key), timeout=0.6)

    async def work() -> list[httpx2.Response]:
        async with httpx2.AsyncClient(**LOOPBACK, timeout=60) as client:
            await asyncio.gather(*(leave(client, at) for at in range(3)))
            await asyncio.to_thread(wait_until, lambda: gone(system, org_id) == 3, "all three are seen to leave")
            if not running:
                await asyncio.to_thread(system.events, org_id, 3)
            return await asyncio.gather(
                *(
                    client.post(f"{urls[(at + 1) % 3]}/images/generations", json=ORDER, headers=bearer(key))
                    for at in range(3)
                )
            )

    replies = run(work())
    assert [reply.status_code for reply in replies] == [200] * 3, replies
    for reply in replies:
        assert (reply.headers["idempotent-replayed"], reply.headers["x-geekhub-cost-mxn"]) == ("true", "0.00")
    assert len({reply.json()["id"] for reply in replies}) == 3
    fourth = post(urls[0], key)
    assert "idempotent-replayed" not in fourth.headers and fourth.headers["x-geekhub-cost-mxn"] == "0.84"
    assert {(event.end, event.amount_micro_mxn) for event in system.events(org_id, 4)} == {("charge", 840_000)}
    assert len(system.jobs(FLUX)) == 4
    assert json.loads(system.ghub("verify", "--json").stdout) == CLEAN


def gone(system: System, org_id: str) -> int:
    """How many of an organisation's orders are known to have been left by their clients."""

    async def count(back: Backends) -> int:
        assert back.redis is not None
        names = [name async for name in back.redis.scan_iter(f"{{p{partition_of(org_id)}}}:gone:*")]
        return sum([await back.redis.zcard(name) for name in names])

    return system.back(count)


def test_a_retry_is_given_only_what_the_ledger_has(prepared: Prepared) -> None:
    """Rules 11 and 19: of an order whose client is gone a Redis that forgets may leave zero; this client is there."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("retries", "50.00")
    system.stop("consumer")
    system.behave(FLUX, "slow", seconds=1)
    for retry in ("0", "1"):
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(
                f"{system.url}/images/generations",
                json=ORDER,
                headers=bearer(key) | {"x-stainless-retry-count": retry},
                timeout=0.5 + int(retry),
                **LOOPBACK,
            )
        wait_until(lambda: system.cut(org_id).charged_micro_mxn == 840_000, "Redis has charged it")
    system.start("consumer", "consume")
    again = post(system.url, key, x_stainless_retry_count="2")
    assert again.headers["idempotent-replayed"] == "true"
    (charge,) = system.events(org_id, 1)
    assert again.json()["id"] == f"req_{charge.event_id.replace('-', '')}"


def test_a_generation_is_fetched_by_its_owner_and_by_nobody_else(three: tuple[System, list[str]]) -> None:
    """While it is made, when it is there, if it failed; by id, by key, in the list; on any pod, after a wipe too."""
    system, urls = three
    org_id, key = system.customer("fetch", "50.00")
    _, other = system.customer("stranger", "50.00")
    system.behave(FLUX, "slow", times=1, seconds=1.5)

    async def slow() -> httpx2.Response:
        async with httpx2.AsyncClient(**LOOPBACK, timeout=60) as client:
            headers = bearer(key) | {"idempotency-key": "k"}
            asked = asyncio.create_task(client.post(f"{urls[0]}/images/generations", json=ORDER, headers=headers))
            while not system.jobs(FLUX):
                await asyncio.sleep(0.01)
            running = get(urls[1], key, "?idempotency_key=k")
            assert (running.status_code, running.json()["status"]) == (200, "in_progress")
            return await asked

    made = run(slow())
    found = get(urls[2], key, f"/{made.json()['id']}")
    assert found.json() == made.json() | {"status": "completed"}
    assert get(urls[1], key, "?idempotency_key=k").json() == found.json()
    system.behave(FLUX, "content_policy_422")
    failed = post(urls[0], key)
    told = get(urls[1], key, f"/{failed.headers['x-request-id']}").json()
    assert (told["status"], told["error"]["code"]) == ("failed", "content_policy_violation")
    again = post(urls[0], key).json()
    system.events(org_id, 3)
    listed = get(urls[1], key, "?limit=2").json()["data"]
    assert [row["id"] for row in listed] == [again["id"], made.json()["id"]]
    for path in (f"/{made.json()['id']}", "/req_0", f"/req_{'0' * 32}", "?idempotency_key=k", "?idempotency_key=none"):
        refused = get(urls[0], other, path)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "generation_not_found")
    assert get(urls[0], other, "").json()["data"] == []
    assert get(urls[0], key, "?limit=0").status_code == 400
    assert system.valkey.process is not None
    system.ghub("key", "revoke", key_id(system, org_id))
    for path in (f"/{made.json()['id']}", "", "?idempotency_key=k"):
        wait_until(lambda path=path: get(urls[1], key, path).status_code == 401, "revoked")  # type: ignore[misc]
    assert post(urls[2], key, idempotency_key="k").status_code == 401


def key_id(system: System, org_id: str) -> str:
    (row,) = json.loads(system.ghub("key", "list", org_id, "--json").stdout)
    return str(row["key_id"])


@pytest.mark.rule(17)
def test_a_key_outlives_a_redis_that_was_wiped(prepared: Prepared) -> None:
    """The ledger's events carry its hash: after the rebuild the same order is replayed, another is 422 (17)."""
    system = prepared()
    system.start_all()
    org_id, key = system.customer("wiped", "50.00")
    first = post(system.url, key, idempotency_key="k")
    system.events(org_id, 1)
    system.valkey.stop()
    for path in system.folder.glob("appendonlydir/*"):
        path.unlink()
    system.valkey.start("--appendonly", "yes")
    wait_until(lambda: post(system.url, key, {**ORDER, "n": 2}, idempotency_key="k").status_code == 422, "rebuilt")
    again = post(system.url, key, idempotency_key="k")
    assert (again.status_code, again.content) == (200, first.content)
    assert len(system.jobs(FLUX)) == 1 and len(system.events(org_id, 1)) == 1
