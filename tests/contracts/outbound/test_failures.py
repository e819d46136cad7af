"""How a call may end, proved over real sockets for our transport, on both event loops, and for httpx2's own."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator

import httpx2
import pytest

from tests.kits.outbound import (
    LARGE_BYTES,
    PATIENCE_S,
    SHORT_S,
    MakeClient,
    Run,
    full_backlog,
    says_nothing,
    stalls_in_the_body,
)
from tests.kits.raw_server import Peer, Script, raw_server


async def closes_after_reading(peer: Peer) -> None:
    await peer.read_request()


async def resets_after_reading(peer: Peer) -> None:
    await peer.read_request()
    peer.reset()


async def truncates_by_length(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this")


async def truncates_between_chunks(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")


async def truncates_inside_a_chunk(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel")


async def truncates_the_head(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\ncontent-le")


async def sends_a_chunk_size_that_is_none(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nnonsense\r\n")
    await peer.gone()


async def speaks_another_protocol(peer: Peer) -> None:
    await peer.read_request()
    await peer.send(b"SSH-2.0-OpenSSH_9.9\r\n\r\n")
    await peer.gone()


FAILURES: list[tuple[Script, type[httpx2.TransportError]]] = [
    (closes_after_reading, httpx2.RemoteProtocolError),
    (resets_after_reading, httpx2.ReadError),
    (says_nothing, httpx2.ReadTimeout),
    (stalls_in_the_body, httpx2.ReadTimeout),
    (truncates_by_length, httpx2.RemoteProtocolError),
    (truncates_between_chunks, httpx2.RemoteProtocolError),
    (truncates_inside_a_chunk, httpx2.RemoteProtocolError),
    (truncates_the_head, httpx2.RemoteProtocolError),
    (sends_a_chunk_size_that_is_none, httpx2.RemoteProtocolError),
    (speaks_another_protocol, httpx2.RemoteProtocolError),
]


@pytest.mark.parametrize(("script", "error"), FAILURES, ids=[script.__name__ for script, _ in FAILURES])
def test_a_failed_call_is_named_exactly_and_is_sent_once(
    subject: tuple[Run, MakeClient], script: Script, error: type[httpx2.TransportError]
) -> None:
    """Whatever its method; a client goes on after each."""
    run, make_client = subject

    async def main() -> None:
        timeout_s = SHORT_S if error is httpx2.ReadTimeout else PATIENCE_S
        async with make_client(read=timeout_s) as client:
            for method in ("POST", "GET", "PUT"):
                async with raw_server(script) as server:
                    with pytest.raises(error) as caught:
                        await client.request(method, server.url, content=None if method == "GET" else b"{}")
                    assert type(caught.value) is error
                    assert server.connections == 1

    run(main())


@pytest.mark.parametrize("framing", ["content-length: 100", "transfer-encoding: chunked", "x-ends: by close"])
def test_a_reset_inside_the_body_is_a_read_error(subject: tuple[Run, MakeClient], framing: str) -> None:
    run, make_client = subject
    arrived = asyncio.Event()

    async def resets_in_the_body(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(f"HTTP/1.1 200 OK\r\n{framing}\r\n\r\n5\r\nhello\r\n".encode())
        await arrived.wait()
        peer.reset()

    async def main() -> None:
        async with (
            raw_server(resets_in_the_body) as server,
            make_client() as client,
            client.stream("POST", server.url, content=b"{}") as response,
        ):
            chunks = response.aiter_raw()
            await anext(chunks)
            arrived.set()
            with pytest.raises(httpx2.ReadError):
                _ = [chunk async for chunk in chunks]

    run(main())


@pytest.mark.parametrize("waiting", [True, False], ids=["while it is waited for", "while nobody reads"])
def test_a_body_that_is_no_http_any_more_is_a_protocol_error(subject: tuple[Run, MakeClient], waiting: bool) -> None:
    """At once: neither a time-out nor an error of another kind."""
    run, make_client = subject
    read, gone = asyncio.Event(), asyncio.Event()

    async def goes_wrong_in_the_body(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        await read.wait()
        await peer.send(b"zz\r\n")
        if not waiting:
            gone.set()
        await peer.gone()

    async def main() -> None:
        async with (
            raw_server(goes_wrong_in_the_body) as server,
            make_client() as client,
            client.stream("POST", server.url, content=b"{}") as response,
        ):
            chunks = response.aiter_raw()
            assert await anext(chunks) == b"hello"
            read.set()
            if not waiting:
                await gone.wait()
                await asyncio.sleep(SHORT_S)  # the loop reads what has come
            async with asyncio.timeout(PATIENCE_S / 2):
                with pytest.raises(httpx2.RemoteProtocolError):
                    await anext(chunks)

    run(main())


def test_a_body_may_end_by_an_orderly_close(subject: tuple[Run, MakeClient]) -> None:
    run, make_client = subject

    async def ends_by_close(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nall of it")

    async def main() -> None:
        async with raw_server(ends_by_close) as server, make_client() as client:
            assert (await client.get(server.url)).content == b"all of it"

    run(main())


def test_refused_is_a_connect_error(subject: tuple[Run, MakeClient]) -> None:
    run, make_client = subject

    async def main() -> None:
        with socket.socket() as bound:  # and not listening
            bound.bind(("127.0.0.1", 0))
            async with make_client() as client:
                with pytest.raises(httpx2.ConnectError):
                    await client.post(f"http://127.0.0.1:{bound.getsockname()[1]}", content=b"{}")

    run(main())


def test_no_answer_to_tcp_is_a_connect_timeout(subject: tuple[Run, MakeClient]) -> None:
    run, make_client = subject

    async def main() -> None:
        with full_backlog() as url:
            async with make_client(connect=SHORT_S) as client:
                with pytest.raises(httpx2.ConnectTimeout):
                    await client.post(url, content=b"{}")

    run(main())


def test_no_answer_to_tls_is_a_connect_timeout(subject: tuple[Run, MakeClient]) -> None:
    run, make_client = subject

    async def main() -> None:
        async with raw_server(Peer.gone) as server, make_client(connect=SHORT_S) as client:
            with pytest.raises(httpx2.ConnectTimeout):
                await client.post(server.url.replace("http:", "https:"), content=b"{}")

    run(main())


def test_an_untrusted_certificate_is_a_connect_error(
    subject: tuple[Run, MakeClient], server_tls: ssl.SSLContext
) -> None:
    run, make_client = subject

    async def main() -> None:
        async with raw_server(Peer.gone, tls=server_tls) as server, make_client(verify=None) as client:
            with pytest.raises(httpx2.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.post(server.url, content=b"{}")

    run(main())


def test_a_peer_that_never_reads_is_a_write_timeout(subject: tuple[Run, MakeClient]) -> None:
    run, make_client = subject

    async def never_reads(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]  # streams hide the read side
        await asyncio.Event().wait()

    async def main() -> None:
        async with raw_server(never_reads) as server, make_client(write=SHORT_S) as client:
            with pytest.raises(httpx2.WriteTimeout):
                await client.post(server.url, content=bytes(LARGE_BYTES))

    run(main())


def test_what_the_callers_body_raises_reaches_the_caller(subject: tuple[Run, MakeClient]) -> None:
    run, make_client = subject

    async def breaks() -> AsyncIterator[bytes]:
        yield b"abc"
        raise OSError("the spool is full")

    async def main() -> None:
        async with raw_server(Peer.gone) as server, make_client() as client:
            with pytest.raises(OSError, match="the spool is full"):
                await client.put(server.url, content=breaks())

    run(main())


def test_tls_headers_and_bodies_pass_unchanged(
    subject: tuple[Run, MakeClient], server_tls: ssl.SSLContext, trust: ssl.SSLContext
) -> None:
    run, make_client = subject
    seen: list[bytes] = []

    async def answers(peer: Peer) -> None:
        for _ in range(3):
            seen.append(await peer.read_request())
            await peer.send(
                b"HTTP/1.1 201 Made\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\n"
                b"Content-Encoding: x-own\r\nContent-Length: 4\r\n\r\n\x1f\x8bzz"
            )

    async def pieces() -> AsyncIterator[bytes]:
        yield b"one"
        yield b""
        yield b"two"

    async def main() -> None:
        async with raw_server(answers, tls=server_tls) as server, make_client(verify=trust) as client:
            url = f"{server.url}/a%2Fb/~c?sig=%7E%2f&x=1%202"
            response = await client.post(url, content=b"{}", headers={"x-own": "1"})
            await client.put(url, content=pieces())
            await client.put(url, content=pieces(), headers={"content-length": "6"})
            assert server.connections == 1
        assert (response.status_code, response.reason_phrase, response.content) == (201, "Made", b"\x1f\x8bzz")
        assert response.headers.get_list("set-cookie") == ["a=1", "b=2"]
        assert response.http_version == "HTTP/1.1"

    run(main())
    with_bytes, chunked, with_length = (request.lower() for request in seen)
    assert seen[0].startswith(b"POST /a%2Fb/~c?sig=%7E%2f&x=1%202 HTTP/1.1\r\n")
    assert with_bytes.endswith(b"\r\n\r\n{}")
    assert b"content-length: 2\r\n" in with_bytes
    assert b"x-own: 1\r\n" in with_bytes
    assert b"content-type" not in with_bytes
    assert chunked.endswith(b"\r\n\r\n3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n")
    assert b"content-length" not in chunked
    assert with_length.endswith(b"\r\n\r\nonetwo")
    assert b"transfer-encoding" not in with_length
    for request in (with_bytes, chunked, with_length):
        names = [line.partition(b":")[0] for line in request.partition(b"\r\n\r\n")[0].split(b"\r\n")[1:]]
        assert len(names) == len(set(names))
