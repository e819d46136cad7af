"""The adapters over real HTTP: the simulator as an upstream that means well, raw sockets as one that does not."""

import asyncio
import gzip
import io
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from PIL import Image

from proxy.orders.calls import split
from proxy.outbound.clients import Outbound
from proxy.outbound.hosts import ImageHosts
from proxy.outcomes import Failure, Outcome
from proxy.ports import Order, Provider, Unkept
from proxy.providers.fal import MAX_POLL_FAILURES, Fal
from proxy.providers.openai import OpenAI
from proxy.storage.local import LocalStore
from simulator.server import serve
from tests.conftest import TRUST, run
from tests.kits.orders import (
    CATALOGUE,
    FLUX,
    GPT,
    ScriptedWallet,
    failures_of,
    files,
    generations,
    job,
    order,
    png,
)
from tests.kits.raw_server import Peer, raw_server

KEY = "provider-secret"
DOCUMENT_BYTES = 256 * 1024
WAYS = ["openai", "fal queue", "fal direct"]


@asynccontextmanager
async def simulator(latency_scale: float = 0) -> AsyncIterator[str]:
    """All upstreams, in this loop; its base URL."""
    shutdown, ports = asyncio.Event(), asyncio.Queue[int]()
    serving = asyncio.create_task(
        serve(
            host="127.0.0.1",
            port=0,
            latency_scale=latency_scale,
            shutdown=shutdown,
            started=lambda port, _: ports.put_nowait(port),
        )
    )
    yield f"http://127.0.0.1:{await ports.get()}"
    shutdown.set()
    await serving


@asynccontextmanager
async def outbound_to(*urls: str) -> AsyncIterator[Outbound]:
    """Our client, allowed to fetch images from these."""
    outbound = Outbound(ImageHosts(",".join(url.partition("://")[2] for url in urls)), verify=TRUST)
    yield outbound
    await outbound.aclose()


def provider(way: str, outbound: Outbound, url: str) -> Provider:
    if way == "openai":
        return OpenAI(outbound.client, f"{url}/openai/v1", KEY, DOCUMENT_BYTES)
    queue_url = f"{url}/fal/queue" if way == "fal queue" else None
    return Fal(outbound, url=f"{url}/fal/run", queue_url=queue_url, key=KEY, document_bytes=DOCUMENT_BYTES)


def model_of(way: str) -> str:
    return GPT if way == "openai" else FLUX


async def behave(outbound: Outbound, url: str, model: str, scenario: str, **more: Any) -> None:
    reply = await outbound.client.put(
        f"{url}/_sim/behaviour", json={"model": model, "scenario": scenario, "times": None, **more}
    )
    assert reply.status_code == 200


async def jobs(outbound: Outbound, url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await outbound.client.get(f"{url}/_sim/jobs")).json()
    return found


async def draw(upstream: Provider, asked: Order) -> dict[int, bytes]:
    """All pictures of an order, read whole."""
    found = {}
    for call in split(asked):
        async with aclosing(upstream.generate(call)) as pictures:
            async for picture in pictures:
                async with picture.open() as source:
                    found[picture.index] = b"".join([chunk async for chunk in source.chunks])
    return found


# --- an upstream that means well --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_an_order_of_any_count_is_made_in_as_few_calls_as_the_model_allows(way: str) -> None:
    """From 1 to 8: as many pictures, numbered through, and not one more on the upstream's bill."""
    async with simulator() as url, outbound_to(url) as outbound:
        await behave(outbound, url, model_of(way), "ok", same=True)
        await draw(provider(way, outbound, url), order(model_of(way)))  # drawn once, and kept
        assert (await outbound.client.delete(f"{url}/_sim/jobs")).is_success
        orders = [order(model_of(way), n) for n in range(1, 9)]
        drawn = await asyncio.gather(*(draw(provider(way, outbound, url), one) for one in orders))
        assert [sorted(pictures) for pictures in drawn] == [list(range(n)) for n in range(1, 9)]
        calls = [call.images for one in orders for call in split(one)]
        assert sorted(job["n"] for job in await jobs(outbound, url)) == sorted(calls)


@pytest.mark.parametrize("way", WAYS)
async def test_every_size_of_the_catalogue_is_drawn_in_its_pixels(way: str) -> None:
    """The upstream's word for a size means the size that the customer asked for; and the pictures of a call differ."""
    async with simulator() as url, outbound_to(url) as outbound:
        upstream, sizes = provider(way, outbound, url), list(CATALOGUE.models[model_of(way)].sizes)
        drawn = await asyncio.gather(*(draw(upstream, order(model_of(way), 2, size=size)) for size in sizes))
    for size, pictures in zip(sizes, drawn, strict=True):
        for data in pictures.values():
            with Image.open(io.BytesIO(data)) as image:
                image.load()
                assert f"{image.width}x{image.height}" == size
        assert pictures[0] != pictures[1]


async def test_quality_is_sent_in_the_upstreams_word() -> None:
    """The user's name is sent with it."""
    requests: list[bytes] = []
    script = answering(lambda request: http(500), requests)
    async with raw_server(script) as server, outbound_to(server.url) as outbound:
        asked = order(GPT, 2, size="1536x1024", quality="high")
        await failures_of(provider("openai", outbound, server.url).generate(split(asked)[0]))
    body = orjson.loads(requests[0].partition(b"\r\n\r\n")[2])
    assert body == {"model": "gpt-image-1", "prompt": "un faro", "n": 2, "size": "1536x1024", "quality": "high"}


@pytest.mark.parametrize("way", ["fal queue", "fal direct"])
async def test_at_the_deadline_the_upstreams_job_is_called_off(tmp_path: Path, way: str) -> None:
    """The upstream really hears of it: it never runs, and nobody is billed."""
    async with simulator() as url, outbound_to(url) as outbound:
        await behave(outbound, url, FLUX, "stuck_in_queue")
        wallet = ScriptedWallet()
        async with generations(wallet, LocalStore(tmp_path), {"fal": provider(way, outbound, url)}) as making:
            began_s = time.monotonic()
            with pytest.raises(Exception, match="in time"):
                await making.start(job(order(n=5), generate_s=0.8, reply_s=3))
            assert 0.79 < time.monotonic() - began_s < 20
            await making.drain()
            while {one["state"] for one in await jobs(outbound, url)} != {"cancelled"}:
                assert time.monotonic() - began_s < 20
                await asyncio.sleep(0.01)
            assert [one["billed"] for one in await jobs(outbound, url)] == [False, False]
            assert wallet.voids == ["deadline"]


# --- an upstream that does not ----------------------------------------------------------------------------------------


def http(status: int, body: Any = None, *headers: str) -> bytes:
    """One whole reply; a body that is not bytes is JSON."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(content)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + content


def answering(reply: Callable[[bytes], bytes], requests: list[bytes]) -> Callable[[Peer], Any]:
    """A script that answers each request of a connection, and keeps what it was asked."""

    async def script(peer: Peer) -> None:
        while True:
            requests.append(await peer.read_request())
            await peer.send(reply(requests[-1]))

    return script


ELSEWHERE = [
    "{evil}/status",
    "{evil_user}/status",
    "//{evil_host}/status",
    "https://{host}/status",
    "ftp://{host}/status",
    "http://{host}.evil.example/status",
    "http://user:pass@{host}/status",
    "http://{host}\\@{evil_host}/",
    "http://127.0.0.1/status",
    "http://[",
    "http://[::1",
    "http://{host}:x/",
    "http://\x00/",
    "http:///status",
    "/status",
    "",
    "status",
    None,
    7,
    ["http://{host}/status"],
]


@pytest.mark.parametrize("field", ["status_url", "response_url", "cancel_url"])
async def test_a_queue_that_points_elsewhere_is_not_followed(field: str) -> None:
    """Whatever the URL: no second request is made with our key, to nobody."""
    asked, leaked = list[bytes](), list[bytes]()
    answers = [b""]
    async with (
        raw_server(answering(lambda _: http(200, {}), leaked)) as evil,
        raw_server(answering(lambda _: answers[0], asked)) as server,
        outbound_to(server.url) as outbound,
    ):
        host, evil_host = (one.url.removeprefix("http://") for one in (server, evil))
        for spelling in ELSEWHERE:
            url = spelling
            if isinstance(spelling, str):
                names = {"evil": evil.url, "evil_host": evil_host, "host": host}
                url = spelling.format(**names, evil_user=f"http://{host}@{evil_host}")
            good = f"{server.url}/fal/queue/x/y/requests/1"
            ticket = {"status_url": good, "response_url": good, "cancel_url": good, field: url}
            answers[0] = http(200, ticket)
            asked.clear()
            failure = await failures_of(provider("fal queue", outbound, server.url).generate(split(order())[0]))
            assert failure is not None and failure.outcome is Outcome.BAD_REPLY, url
            assert len(asked) == 1, url
    assert leaked == []


@pytest.mark.parametrize("way", WAYS)
async def test_a_redirect_is_not_followed(way: str) -> None:
    """It would take our key with it."""
    asked, leaked = list[bytes](), list[bytes]()
    async with raw_server(answering(lambda _: http(200, {}), leaked)) as evil:
        script = answering(lambda _: http(307, {}, f"location: {evil.url}/"), asked)
        async with raw_server(script) as server, outbound_to(server.url) as outbound:
            call = split(order(model_of(way)))[0]
            failure = await failures_of(provider(way, outbound, server.url).generate(call))
    assert failure is not None and failure.outcome is Outcome.REJECTED
    assert (len(asked), leaked) == (1, [])


async def test_our_key_goes_to_the_provider_and_never_to_the_image_host() -> None:
    """Nor does any other credential."""
    asked, fetched = list[bytes](), list[bytes]()
    async with raw_server(answering(lambda _: http(200, png()), fetched)) as images:
        script = answering(lambda _: http(200, {"images": [{"url": f"{images.url}/0.png"}]}), asked)
        async with raw_server(script) as server, outbound_to(images.url) as outbound:
            assert await draw(provider("fal direct", outbound, server.url), order()) == {0: png()}
    assert b"authorization: key provider-secret" in asked[0].lower()
    assert KEY.encode() not in b"".join(fetched) and b"authorization" not in b"".join(fetched).lower()


@pytest.mark.parametrize("way", WAYS)
async def test_no_compressed_reply_is_asked_for(way: str) -> None:
    """A reply is read as it comes; one that is compressed all the same is no result."""
    asked: list[bytes] = []
    packed = gzip.compress(b'{"data":[],"images":[]}')
    script = answering(lambda _: http(200, packed, "content-encoding: gzip"), asked)
    async with raw_server(script) as server, outbound_to(server.url) as outbound:
        failure = await failures_of(provider(way, outbound, server.url).generate(split(order(model_of(way)))[0]))
    assert failure is not None and failure.outcome is Outcome.BAD_REPLY
    assert b"accept-encoding: identity\r\n" in asked[0].lower()


def drip(head: bytes, more: bytes) -> Callable[[Peer], Any]:
    """Answers with `head`, and then with `more` again and again, slowly, for ever."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(head)
        while True:
            await asyncio.sleep(0.02)
            if more:
                await peer.send(more)

    return script


CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("head", "more"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (CHUNKED, b""),
        (CHUNKED, b"1\r\n \r\n"),
        (CHUNKED + b'16\r\n{"data":[{"b64_json":"\r\n', b"4\r\nQUJD\r\n"),
    ],
    ids=["silence", "headers without end", "no body", "white space", "a picture without end"],
)
async def test_an_upstream_that_takes_for_ever_is_bounded_by_the_deadline(
    tmp_path: Path, way: str, head: bytes, more: bytes
) -> None:
    """However often a byte comes: void at the deadline, and nothing left behind."""
    async with raw_server(drip(head, more)) as server, outbound_to(server.url) as outbound:
        wallet, upstream = ScriptedWallet(), provider(way, outbound, server.url)
        providers = {"fal": upstream, "openai": upstream}
        async with generations(wallet, LocalStore(tmp_path), providers) as making:
            began_s = time.monotonic()
            with pytest.raises(Exception, match=r"in time|not an image"):
                await making.start(job(order(model_of(way)), generate_s=0.4, reply_s=3))
            assert time.monotonic() - began_s < 20
            await making.drain()
            assert wallet.voids in (["deadline"], ["bad_image"]) and files(tmp_path) == set()


ODD: list[Any] = [
    *(None, True, 0, "x", [], {}, [[]], b"", b"{", b"\xff", b"null null", b"[" * 2000),
    {"images": None},
    {"images": "x"},
    {"images": {}},
    {"images": [None]},
    {"images": [{}]},
    {"images": [{"url": None}]},
    {"images": [{"url": ["x"]}]},
    {"images": [], "has_nsfw_concepts": 1},
    {"images": [], "has_nsfw_concepts": [True, True]},
    {"data": None},
    {"data": [None, [], "x", {"b64_json": None}]},
    {"error": None},
    {"error": "x"},
    {"error": {"code": ["moderation_blocked"]}},
    {"error": {"code": {}}},
    {"detail": "x"},
    {"detail": [None, "x", {"type": None}]},
    {"detail": [{"type": ["content_policy_violation"]}]},
    {"detail": [{"type": {}}]},
    {"x": "y" * 300_000},
]


@pytest.mark.parametrize("way", WAYS)
async def test_an_odd_reply_is_a_failure_of_the_upstream_and_no_fault_of_ours(way: str) -> None:
    """At every status: an outcome of the table, never an exception that nobody foresaw."""
    answers = [b""]
    script = answering(lambda _: answers[0], [])
    async with raw_server(script) as server, outbound_to(server.url) as outbound:
        upstream = provider(way, outbound, server.url)
        for body in ODD:
            for status in (200, 202, 400, 401, 403, 404, 418, 422, 429, 500, 503):
                answers[0] = http(status, body, f"retry-after: {'9' * 400}")
                call = split(order(model_of(way)))[0]
                failure = await failures_of(upstream.generate(call))
                if failure is None:
                    assert way != "fal queue" and status in (200, 202)
                    continue
                assert failure.outcome is not Outcome.FAULT
                assert failure.as_error().reply_headers()["x-should-retry"] in ("true", "false")


@pytest.mark.parametrize("wish", ["1", "30", "soon", "-1", "1.5", "", "²", "9" * 400])
def test_the_upstreams_wish_for_a_pause_is_passed_on_where_it_is_one(wish: str) -> None:
    """Whole seconds are; a date or nonsense is passed over."""

    async def work() -> Failure | None:
        script = answering(lambda _: http(429, {}, f"retry-after: {wish}"), [])
        async with raw_server(script) as server, outbound_to(server.url) as outbound:
            return await failures_of(provider("openai", outbound, server.url).generate(split(order(GPT))[0]))

    failure = run(work())
    assert failure is not None and failure.outcome is Outcome.RATE_LIMITED
    assert failure.retry_after_s == (float(wish) if wish in ("1", "30") else None)


def test_a_job_whose_state_cannot_be_known_is_called_off() -> None:
    """Nobody waits for it, so nobody should make it: it is given up after a few failures, and cancelled."""
    asked: list[bytes] = []

    def reply(request: bytes) -> bytes:
        host = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"host: "))[6:].decode()
        base = f"http://{host}/fal/queue/x/y/requests/1"
        ticket = {"status_url": f"{base}/status", "response_url": base, "cancel_url": f"{base}/cancel"}
        return http(200, ticket) if request.startswith(b"POST") else http(500)

    async def work() -> Failure | None:
        async with raw_server(answering(reply, asked)) as server, outbound_to(server.url) as outbound:
            return await failures_of(provider("fal queue", outbound, server.url).generate(split(order())[0]))

    failure = run(work())
    assert failure is not None and failure.outcome is Outcome.NO_ANSWER
    assert [request.split()[0] for request in asked] == [b"POST", *[b"GET"] * MAX_POLL_FAILURES, b"PUT"]


def test_the_job_of_a_long_order_outlives_an_outage_of_its_queue() -> None:
    """It is polled on until its deadline; only what is said of the job itself is a reason to give it up."""

    class Long(Unkept):
        patient = True

    async def asked_in(outage: bytes) -> list[bytes]:
        asked: list[bytes] = []

        def reply(request: bytes) -> bytes:
            host = next(line for line in request.split(b"\r\n") if line.lower().startswith(b"host: "))[6:].decode()
            base = f"http://{host}/fal/queue/x/y/requests/1"
            if request.startswith(b"POST"):
                return http(200, {"status_url": f"{base}/status", "response_url": base, "cancel_url": f"{base}/cancel"})
            if b"/status" in request and len(asked) <= 2 * MAX_POLL_FAILURES:
                return outage
            return http(200, {"status": "COMPLETED", "images": []})

        async with raw_server(answering(reply, asked)) as server, outbound_to(server.url) as outbound:
            (call,) = split(order(), Long())
            await failures_of(provider("fal queue", outbound, server.url).generate(call))
        return [request.split()[0] for request in asked]

    polls = [b"GET"] * (2 * MAX_POLL_FAILURES)
    for outage in (http(500), http(429)):
        assert run(asked_in(outage)) == [b"POST", *polls, b"GET"], outage
    assert run(asked_in(http(404)))[-1] == b"PUT"


async def test_pictures_that_were_whole_count_although_the_reply_breaks_off() -> None:
    """The second of two is lost with the connection; the first is not."""

    async def script(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(CHUNKED + b'1f\r\n{"data":[{"b64_json":"QUJDREVG"\r\n10\r\n},{"b64_json":"Q\r\n')

    found: dict[int, bytes] = {}
    async with raw_server(script) as server, outbound_to(server.url) as outbound:
        upstream = provider("openai", outbound, server.url)
        broken = 0
        async with aclosing(upstream.generate(split(order(GPT, 2))[0])) as pictures:
            try:
                async for picture in pictures:
                    async with picture.open() as source:
                        found[picture.index] = b"".join([chunk async for chunk in source.chunks])
            except Failure as failure:
                broken += failure.outcome is Outcome.NO_ANSWER
    assert (found, broken) == ({0: b"ABCDEF"}, 1)


def test_a_provider_that_nobody_answers_for_may_be_asked_again() -> None:
    """Connection refused: nothing was bought."""

    async def work() -> Failure | None:
        async with raw_server(drip(b"", b"")) as server:
            url = server.url
        async with outbound_to(url) as outbound:
            return await failures_of(provider("openai", outbound, url).generate(split(order(GPT))[0]))

    failure = run(work())
    assert failure is not None and failure.outcome is Outcome.REFUSED_CONNECTION and failure.as_error().retry
    assert not isinstance(failure, httpx2.HTTPError)
