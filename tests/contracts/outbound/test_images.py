"""How an image is fetched: over redirects, from listed names with public addresses, with no credentials."""

import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from typing import Any

import httpx2
import pytest

from proxy.outbound.clients import MAX_REDIRECTS, USER_AGENT, ImageFetchFailed, Outbound
from proxy.outbound.hosts import HostNotAllowed, ImageHosts, PublicNames
from proxy.outbound.pool import Address, Resolve
from proxy.outbound.transport import Transport
from tests.conftest import TRUST
from tests.kits.outbound import LARGE_BYTES, SHORT_S, Names, Run, open_files, until
from tests.kits.raw_server import Peer, RawServer, raw_server


class Rebound(Names):
    """One name that leads elsewhere each time it is looked up."""

    def __init__(self, *addresses: str) -> None:
        super().__init__()
        self.turns = list(addresses)

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.addresses = {host: [self.turns.pop(0)]}
        return await super().__call__(host, port)


def image(body: bytes, *headers: str) -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", f"content-length: {len(body)}", *headers])
    return head.encode() + b"\r\n\r\n" + body


@contextlib.asynccontextmanager
async def site(pages: dict[str, bytes], seen: list[bytes] | None = None) -> AsyncIterator[RawServer]:
    """A server with one ready-made answer for each path; `{url}` in it is the server's own address."""

    async def answers(peer: Peer) -> None:
        while True:
            request = await peer.read_request()
            if seen is not None:
                seen.append(request)
            await peer.send(pages[request.split()[1].decode()].replace(b"{url}", server.url.encode()))

    async with raw_server(answers) as server:
        yield server


async def fetch(client: Outbound, url: str) -> bytes:
    async with client.fetch_image(url) as fetched:
        return b"".join([chunk async for chunk in fetched.chunks])


@contextlib.asynccontextmanager
async def outbound_to(hosts: str, **options: Any) -> AsyncIterator[Outbound]:
    client = Outbound(ImageHosts(hosts), **{"verify": TRUST} | options)
    try:
        yield client
    finally:
        await client.aclose()


def redirect(location: str, status: int = 302) -> bytes:
    return f"HTTP/1.1 {status} Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n".encode()


def test_an_image_is_fetched_over_redirects_with_no_credentials(run: Run) -> None:
    seen: list[bytes] = []
    pages = {
        "/1": redirect("/2", 301).replace(b"content-length", b"set-cookie: a=1\r\ncontent-length"),
        "/2": redirect("{url}/3?x=%2F", 307),
        "/3?x=%2F": redirect("4"),
        "/4": image(b"pixels", "content-type: image/png"),
    }

    async def main() -> None:
        async with (
            site(pages, seen) as server,
            outbound_to(f"127.0.0.1:{server.port}") as client,
            client.fetch_image(f"{server.url}/1") as fetched,
        ):
            assert fetched.size_bytes == len(b"pixels")
            assert b"".join([chunk async for chunk in fetched.chunks]) == b"pixels"

    run(main())
    assert len(seen) == 1 + MAX_REDIRECTS
    for request in seen:
        assert b"\r\naccept-encoding: identity\r\n" in request.lower()
        assert f"\r\nuser-agent: {USER_AGENT}\r\n".encode() in request.lower()
        assert b"cookie" not in request.lower()
        assert b"authorization" not in request.lower()


def test_one_redirect_too_many_is_no_image(run: Run) -> None:
    async def main() -> None:
        async with site({"/": redirect("/")}) as server, outbound_to(f"127.0.0.1:{server.port}") as client:
            with pytest.raises(ImageFetchFailed) as caught:
                await fetch(client, server.url)
            assert caught.value.status == 302

    run(main())


@pytest.mark.parametrize(
    "location",
    [
        "https://evil.example/",
        "http://169.254.169.254/",
        "//evil.example/x",
        "file:///etc/passwd",
        "http://[",
        "https:x",
    ],
)
def test_a_redirect_off_the_list_is_not_followed(run: Run, location: str) -> None:
    async def main() -> None:
        async with site({"/": redirect(location)}) as server, outbound_to(f"127.0.0.1:{server.port}") as client:
            with pytest.raises(HostNotAllowed):
                await fetch(client, server.url)

    run(main())


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", 404),
        (b"HTTP/1.1 206 Partial Content\r\ncontent-length: 1\r\n\r\nx", 206),
        (b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n", 302),
        (image(b"\x1f\x8b", "content-encoding: gzip"), 200),
    ],
)
def test_anything_but_the_plain_image_is_refused(run: Run, answer: bytes, status: int) -> None:
    async def main() -> None:
        async with site({"/": answer}) as server, outbound_to(f"127.0.0.1:{server.port}") as client:
            with pytest.raises(ImageFetchFailed) as caught:
                await fetch(client, server.url)
            assert caught.value.status == status

    run(main())


def test_a_listed_name_with_a_private_address_is_not_dialled(run: Run) -> None:
    names = Names(cdn_example=["127.0.0.1"], mixed_example=["93.184.216.34", "10.0.0.1"])

    async def main() -> None:
        async with outbound_to("cdn.example, mixed.example", resolve=names) as client:
            for url in ("https://cdn.example/x", "https://CDN.example./x", "https://mixed.example/x"):
                with pytest.raises(HostNotAllowed):
                    await fetch(client, url)
            with pytest.raises(httpx2.ConnectError):  # the guard is for image hosts: no such name is no such name
                await client.client.get("https://nowhere.example/")

    run(main())


def test_a_rebound_name_is_dialled_only_where_it_was_checked(run: Run) -> None:
    """Public at the first look, ours at the second: each look is for one dialling, so the first stands for nothing."""
    nobody = "2d00::1"  # in a part of the public space that is given to nobody

    async def get(server: RawServer, resolve: Resolve) -> bytes:
        transport = Transport(resolve=resolve)
        async with httpx2.AsyncClient(transport=transport, timeout=SHORT_S, trust_env=False) as client:
            return (await client.get(f"http://cdn.example:{server.port}/")).content

    async def main() -> None:
        async with site({"/": image(b"ours")}) as server:
            names = Rebound(nobody, "127.0.0.1")
            guarded = PublicNames(ImageHosts("cdn.example"), names)
            with pytest.raises((httpx2.ConnectError, httpx2.ConnectTimeout)):
                await get(server, guarded)
            assert names.turns == ["127.0.0.1"]
            with pytest.raises(HostNotAllowed):
                await get(server, guarded)
            assert names.turns == [] and server.connections == 0
            assert await get(server, Rebound("127.0.0.1")) == b"ours"  # so it would have gone without the guard

    run(main())


def test_a_name_listed_with_its_port_may_be_private(
    run: Run, server_tls: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    async def answers(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(image(b"pixels"))

    async def main() -> None:
        async with (
            raw_server(answers, tls=server_tls) as server,
            outbound_to(f"cdn.example:{server.port}", verify=trust, resolve=Names(cdn_example=["127.0.0.1"])) as client,
        ):
            assert await fetch(client, f"https://cdn.example:{server.port}/x") == b"pixels"

    run(main())


def test_an_image_that_is_left_unread_leaks_nothing(run: Run) -> None:
    async def main() -> None:
        async with (
            site({"/": image(bytes(LARGE_BYTES))}) as server,
            outbound_to(f"127.0.0.1:{server.port}") as client,
        ):
            before = open_files()
            async with client.fetch_image(server.url) as fetched:
                assert await anext(fetched.chunks)
            await until(lambda: open_files() == before)

    run(main())


def test_the_client_keeps_no_cookies_and_names_itself(run: Run) -> None:
    seen: list[bytes] = []

    async def main() -> None:
        async with site({"/": image(b"x", "set-cookie: a=1")}, seen) as server, outbound_to("") as client:
            for _ in range(2):
                assert (await client.client.get(server.url)).content == b"x"

    run(main())
    assert b"cookie" not in seen[1].lower()
    assert f"user-agent: {USER_AGENT}\r\n".encode() in seen[1].lower()


@pytest.mark.parametrize("target", ["?x=/y", "/a b", "/./c", "/é?q=ü", "/plain?x=/y"])
def test_a_url_as_text_goes_where_httpx2_would_send_it(run: Run, target: str) -> None:
    """A plain one is not parsed each time; any other is parsed as a whole."""
    seen: list[bytes] = []

    async def answers(peer: Peer) -> None:
        seen.append((await peer.read_request()).split()[1])
        await peer.send(image(b"x"))

    async def main() -> None:
        async with raw_server(answers) as server, outbound_to("") as client:
            assert (await client.client.get(f"{server.url}{target}")).content == b"x"
            assert seen == [httpx2.URL(f"{server.url}{target}").raw_path]

    run(main())
