"""One suite, every store, and which of them GHUB_STORAGE_URL names. A real Supabase takes part where it is named:

SUPABASE_STORAGE_URL=https://host/storage/v1?bucket=b SUPABASE_STORAGE_KEY=… pytest tests/contracts/stores
"""

import asyncio
import contextlib
import hashlib
import io
import random
import re
import ssl
import time
import tracemalloc
import uuid
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from PIL import Image

from config.settings import MAX_IMAGE_BYTES, MAX_IMAGE_SIDE_PX, Settings, SettingsError
from proxy.media.artefact import Artefact
from proxy.ports import Chunks, ImageStore, StoredObject, StoreFailed
from proxy.storage import probe as probing
from proxy.storage.local import LocalStore
from proxy.storage.opening import Opened, open_store
from proxy.storage.probe import SIDE_PX, is_probe, picture, probe
from proxy.storage.s3 import S3
from proxy.storage.streams import CACHE_CONTROL
from proxy.storage.supabase import Key, Supabase
from tests.conftest import LOOPBACK
from tests.kits.ports import free_port
from tests.kits.raw_server import OK, Peer, raw_server
from tests.kits.stores import (
    PIECE_BYTES,
    SHORT_S,
    Kit,
    a_client,
    fresh_path,
    open_files,
    pieces,
    put,
    run,
    supabase_store,
    whole,
    with_supabase,
)
from tests.stores.running import BUCKET, KEY, PATIENCE_S, SECRET, frozen
from tests.stores.supabase import Server

LARGE_BYTES = 40 * 1024 * 1024


@pytest.mark.parametrize("length", ["told", "not told"])
@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 1_500_000])
@pytest.mark.parametrize("piece", [997, PIECE_BYTES])
async def test_bytes_in_are_bytes_out(kit: Kit, size: int, piece: int, length: str) -> None:
    """At every size, in any pieces, with a length, and without one if the store does not need it."""
    data, path = random.Random(size).randbytes(size), fresh_path()
    async with kit.opened() as store:
        assert not await store.exists(path)
        told = size if store.needs_length or length == "told" else None
        await store.put(path, pieces(data, piece), "image/png", size_bytes=told)
        assert await store.exists(path)
        assert await whole(store.read(path)) == data
        await store.delete(path)


def test_a_large_picture_is_never_whole_in_memory(kit: Kit) -> None:
    """40 MB in and out, within 4 MB."""
    piece, path = random.Random(1).randbytes(PIECE_BYTES), fresh_path()

    async def endless() -> AsyncIterator[bytes]:
        for number in range(LARGE_BYTES // PIECE_BYTES):
            yield number.to_bytes(4, "big") + piece[4:]

    async def digest(chunks: Chunks) -> str:
        found = hashlib.sha256()
        async for chunk in chunks:
            found.update(chunk)
        return found.hexdigest()

    async def work() -> None:
        async with kit.opened() as store:
            await store.put(path, endless(), "image/png", size_bytes=LARGE_BYTES)
            assert await digest(store.read(path)) == await digest(endless())
            await store.delete(path)

    tracemalloc.start()
    run(work())
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


@pytest.mark.parametrize("content_type", ["image/png", "image/jpeg", "image/webp"])
async def test_the_public_sees_the_type_and_may_keep_the_image(remote: Kit, content_type: str) -> None:
    """For a year, without asking again: a path is written once."""
    path = fresh_path()
    async with remote.opened() as store, httpx2.AsyncClient(**LOOPBACK) as browser:
        await store.put(path, pieces(b"pixels"), content_type, size_bytes=6)
        seen = await browser.get(f"{remote.public_url}/{path}")
        assert (seen.status_code, seen.content) == (200, b"pixels")
        assert seen.headers["content-type"] == content_type
        assert seen.headers["cache-control"] == CACHE_CONTROL
        assert seen.headers["etag"]


async def test_a_path_is_written_once_and_replaced_only_by_its_own_request(kit: Kit) -> None:
    """The second put fails for good and changes nothing. With `again` it replaces, even if nothing is there."""
    path = fresh_path()
    async with kit.opened() as store:
        await put(store, path, b"first")
        with pytest.raises(StoreFailed) as failed:
            await put(store, path, b"second")
        assert not failed.value.again
        assert await whole(store.read(path)) == b"first"
        await put(store, path, b"third", again=True)
        assert await whole(store.read(path)) == b"third"
        await store.delete(path)
        await put(store, path, b"fourth", again=True)
        assert await whole(store.read(path)) == b"fourth"


ERRORS = [
    ValueError("theirs"),
    httpx2.ReadError("theirs"),
    ConnectionResetError("theirs"),
    StoreFailed("theirs", again=False),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [0, 1, 10, 20])
async def test_a_source_that_fails_publishes_nothing(kit: Kit, at: int, error: BaseException) -> None:
    """At its first piece, in the middle and after its last; what it raised comes out, the very same."""
    path = fresh_path()

    async def failing() -> AsyncIterator[bytes]:
        for number in range(20):
            if number == at:
                raise error
            yield bytes(PIECE_BYTES)
        raise error

    async with kit.opened() as store:
        with pytest.raises(type(error)) as raised:
            await store.put(path, failing(), "image/png", size_bytes=20 * PIECE_BYTES)
        assert raised.value is error
        await asyncio.sleep(0.02)  # a server would have finished by now
        assert not await store.exists(path)


async def test_what_a_failed_try_would_have_replaced_survives(remote: Kit) -> None:
    """A connection that breaks off leaves the object of before."""
    path = fresh_path()

    async def failing() -> AsyncIterator[bytes]:
        yield bytes(PIECE_BYTES)
        yield bytes(PIECE_BYTES)
        raise ValueError

    async with remote.opened() as store:
        await put(store, path, b"before")
        with pytest.raises(ValueError):
            await store.put(path, failing(), "image/png", size_bytes=4 * PIECE_BYTES, again=True)
        assert await whole(store.read(path)) == b"before"


@pytest.mark.parametrize("after", [0, 1, 5, 19])
async def test_a_cancelled_upload_leaves_nothing(kit: Kit, after: int) -> None:
    """The source is at rest when the cancellation comes out, and is read in the caller's own task."""
    path = fresh_path()
    stalled, tasks = asyncio.Event(), set()

    async def stalling() -> AsyncIterator[bytes]:
        for number in range(20):
            tasks.add(asyncio.current_task())
            if number == after:
                stalled.set()
                await asyncio.sleep(3600)
            yield bytes(PIECE_BYTES)

    async with kit.opened() as store:
        source = stalling()
        upload = asyncio.create_task(store.put(path, source, "image/png", size_bytes=20 * PIECE_BYTES))
        await stalled.wait()
        upload.cancel()
        with pytest.raises(asyncio.CancelledError):
            await upload
        await source.aclose()  # type: ignore[attr-defined]  # raises where it is still running
        assert tasks == {upload}
        await asyncio.sleep(0.02)
        assert not await store.exists(path)


async def test_fifty_uploads_at_a_time_do_not_mix(kit: Kit) -> None:
    """Each path has its own bytes."""
    pictures = {fresh_path(f"{number}.png"): bytes([number]) * (2_000 * number + 1) for number in range(50)}
    async with kit.opened() as store:
        await asyncio.gather(*(put(store, path, data) for path, data in pictures.items()))
        for path, data in pictures.items():
            assert await whole(store.read(path)) == data
        await asyncio.gather(*(store.delete(path) for path in pictures))


async def test_what_is_deleted_is_gone_and_may_be_deleted_again(kit: Kit) -> None:
    """And its neighbours stay."""
    path = fresh_path()
    beside = path.replace("0.png", "1.png")
    async with kit.opened() as store:
        await put(store, path, b"x")
        await put(store, beside, b"y")
        for _ in range(2):
            await store.delete(path)
            assert not await store.exists(path)
        with pytest.raises(StoreFailed) as failed:
            await whole(store.read(path))
        assert not failed.value.again
        assert await whole(store.read(beside)) == b"y"
        await store.delete(beside)


def test_everything_in_the_store_is_listed(kit: Kit) -> None:
    """Over many pages, in deep and shallow folders, from any source, also while objects are deleted."""
    org, began = str(uuid.uuid4()), datetime.now(UTC) - timedelta(minutes=5)
    paths = {f"{org}/{request}/{number}.png" for request in range(8) for number in range(request)}
    paths |= {f"{org}/by hand.txt", f"{org}/a/deep/place/x.bin", f"top-{org}.png"}

    async def work() -> dict[str, StoredObject]:
        found: dict[str, StoredObject] = {}
        async with kit.opened() as store:
            for size, path in enumerate(sorted(paths), 1):
                await put(store, path, bytes(size))
            async for item in store.objects():
                if org in item.path:
                    assert item.path not in found
                    found[item.path] = item
                    await store.delete(item.path)
            assert not [item.path async for item in store.objects() if org in item.path]
        return found

    found = run(work())
    assert set(found) == paths
    assert [found[path].size_bytes for path in sorted(paths)] == list(range(1, len(paths) + 1))
    assert all(began < item.modified_at < began + timedelta(minutes=10) for item in found.values())


@pytest.mark.parametrize("told", [1, 2 * PIECE_BYTES - 1, 2 * PIECE_BYTES + 1, 3 * PIECE_BYTES])
async def test_a_length_that_is_wrong_publishes_nothing(kit: Kit, told: int) -> None:
    """Too short or too long: it fails for good."""
    path = fresh_path()
    async with kit.opened() as store:
        with pytest.raises(StoreFailed, match="announced") as failed:
            await store.put(path, pieces(bytes(2 * PIECE_BYTES)), "image/png", size_bytes=told)
        assert not failed.value.again
        assert not await store.exists(path)


@pytest.mark.parametrize("nothing", [[], [b"", b""]])
async def test_nothing_is_not_published_as_an_image(kit: Kit, nothing: list[bytes]) -> None:
    """The real Supabase would make an object of no bytes."""
    path = fresh_path()

    async def empty() -> AsyncIterator[bytes]:
        for piece in nothing:
            yield piece

    async with kit.opened() as store:
        with pytest.raises(StoreFailed, match="empty"):
            await store.put(path, empty(), "image/png", size_bytes=0)
        assert not await store.exists(path)


async def test_a_store_that_would_take_images_passes_its_check(kit: Kit) -> None:
    """And the check leaves nothing behind."""
    async with kit.opened() as store:
        before = {item.path async for item in store.objects()}
        await store.check()
        assert {item.path async for item in store.objects()} == before


def test_a_probe_is_a_large_picture_that_nothing_makes_smaller() -> None:
    """It has a real image's size and type: a limit on bodies refuses it, and no cache already has it."""
    data = picture()

    async def work() -> Artefact:
        artefact = Artefact(pieces(data), MAX_IMAGE_BYTES, MAX_IMAGE_SIDE_PX)
        assert (await artefact.begin()).content_type == "image/png"
        assert await whole(aiter(artefact)) == data
        return artefact

    artefact = run(work())
    assert len(data) == artefact.size_bytes > 4 * 2**20 and len(zlib.compress(data)) > 4 * 2**20
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        assert image.size == (artefact.width_px, artefact.height_px) == (SIDE_PX, SIDE_PX)
    assert picture() != data


@pytest.mark.rule(11)
async def test_a_store_that_takes_images_passes_the_probe(kit: Kit) -> None:
    """Written, read, and nothing of it is left (rule 11)."""
    async with kit.opened() as store:
        before = {item.path async for item in store.objects()}
        await probe(store)
        assert {item.path async for item in store.objects()} == before


@pytest.mark.rule(16)
def test_only_a_path_of_a_probe_is_one() -> None:
    """The sweep deletes by it (rule 16): nobody's `_probe` folder but ours, and no organisation's."""
    name = uuid.uuid4()
    assert is_probe(f"_probe/{name}.png")
    for other in (f"_probe/{name}.jpg", f"_probe/{name}", "_probe/x.png", f"{name}.png", f"_probe/a/{name}.png"):
        assert not is_probe(other)
    assert not is_probe(f"_probe/{str(name).upper()}.png") and not is_probe(f"_probe/{name.hex}.png")
    assert not is_probe(f"{name}/{name}/0.png") and not is_probe("")


async def test_a_store_that_gives_back_something_else_has_failed_the_probe(tmp_path: Path) -> None:
    """And what it has of the probe is removed."""

    class Garbling(LocalStore):
        async def read(self, path: str) -> AsyncGenerator[bytes]:
            async for chunk in super().read(path):
                yield bytes(len(chunk))

    with pytest.raises(StoreFailed, match="gave back something else than the probe _probe/") as failed:
        await probe(Garbling(tmp_path))
    assert failed.value.again
    assert [item async for item in LocalStore(tmp_path).objects()] == []


def test_a_probe_takes_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that takes it byte by byte takes no images either; a look must end."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        server.behaviour.read_bytes_per_s = 100_000
        began_s = time.monotonic()
        with pytest.raises(StoreFailed, match=r"was not done within 0\.4 s") as failed:
            await probe(supabase_store(client, server))
        assert failed.value.again and time.monotonic() - began_s < PATIENCE_S / 4

    monkeypatch.setattr(probing, "STORE_PROBE_S", SHORT_S)
    with_supabase(tmp_path, work)


# --- stores at the other end of a wire ---


async def everything(store: ImageStore) -> list[StoreFailed]:
    """Every method of a store that fails."""
    calls = [
        put(store, fresh_path(), b"x"),
        whole(store.read(fresh_path())),
        store.delete(fresh_path()),
        store.exists(fresh_path()),
        anext(aiter(store.objects())),
        store.check(),
    ]
    failures = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(failure, StoreFailed) for failure in failures), failures
    return [failure for failure in failures if isinstance(failure, StoreFailed)]


@pytest.mark.parametrize("size", [1, 30 * 1024 * 1024])
def test_a_frozen_store_fails_within_its_time_outs(remote: Kit, size: int) -> None:
    """Be it that it does not answer or that it does not read; every call may be made again."""
    data = bytes(size)

    async def work() -> None:
        async with remote.opened(SHORT_S) as store:
            with frozen(remote.process()):
                began_s = time.monotonic()
                with pytest.raises(StoreFailed, match="WriteTimeout" if size > 1 else "ReadTimeout") as failed:
                    await put(store, fresh_path(), data)
                assert failed.value.again
                assert time.monotonic() - began_s < PATIENCE_S / 2
                assert all(failure.again for failure in await everything(store))
        async with remote.opened() as store:
            await store.exists(fresh_path())

    if remote.process() is not None:  # a real one cannot be frozen from here
        run(work())


@pytest.mark.parametrize("cancelled", [False, True])
@pytest.mark.parametrize("size", [100_000, 500_000, 30 * 1024 * 1024])
def test_a_frozen_store_keeps_no_connection(remote: Kit, size: int, cancelled: bool) -> None:
    """Not even to flush what it has not read: an outage must not pile up descriptors and buffers."""

    async def work() -> None:
        async with remote.opened(SHORT_S) as store:
            with contextlib.suppress(StoreFailed):  # the time-outs are short for a busy machine
                await store.exists(fresh_path())
            before = open_files()
            with frozen(remote.process()):
                puts = [asyncio.create_task(put(store, fresh_path(), bytes(size))) for _ in range(3)]
                if cancelled:
                    await asyncio.sleep(SHORT_S / 2)
                    _ = [upload.cancel() for upload in puts]
                ends = await asyncio.gather(*puts, return_exceptions=True)
                assert all(isinstance(end, asyncio.CancelledError if cancelled else StoreFailed) for end in ends)
                await asyncio.sleep(0.05)
                assert open_files() <= before

    if remote.process() is not None:  # a real one cannot be frozen from here
        run(work())


def dead_stores(client: httpx2.AsyncClient, port: int) -> list[ImageStore]:
    return [
        Supabase(client, f"http://127.0.0.1:{port}/storage/v1", BUCKET, Key(KEY)),
        S3(client, BUCKET, region="us-east-1", endpoint=f"http://127.0.0.1:{port}"),
    ]


async def test_a_store_that_refuses_connections_may_be_asked_again() -> None:
    """It is being restarted, perhaps."""
    async with a_client() as client:
        for store in dead_stores(client, free_port()):
            failures = await everything(store)
            assert all(failure.again and "ConnectError" in str(failure) for failure in failures)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.9\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\ncut",
        b"HTTP/1.1 502 Bad Gateway\r\ncontent-type: text/html\r\ncontent-length: 13\r\n\r\n<html></html>",
        b"HTTP/1.1 503 -\r\ncontent-length: 1000000\r\n\r\n" + bytes(1_000_000),
    ],
    ids=["nothing", "another protocol", "cut short", "a page", "a long page"],
)
async def test_nonsense_from_the_other_end_is_a_store_that_is_away(answer: bytes) -> None:
    """Whatever it is that answers there at the moment."""

    async def nonsense(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(answer)

    async with raw_server(nonsense) as server, a_client() as client:
        for store in dead_stores(client, server.port):
            with pytest.raises(StoreFailed) as failed:
                await put(store, fresh_path(), b"x")
            if isinstance(store, Supabase) or b"200" not in answer:  # of a PUT the status is all that S3 says
                assert failed.value.again


@pytest.mark.parametrize(
    ("host", "cause"),
    [
        ("http://nowhere.invalid", r"its host's name is not known \(ConnectError\)"),
        ("http://127.0.0.1:{refused}", r"connection refused \(ConnectError\)"),
        ("https://127.0.0.1:{plain}", r"TLS failed \(ConnectError\)"),
        ("https://127.0.0.1:{untrusted}", r"its TLS certificate is not trusted \(ConnectError\)"),
        ("http://127.0.0.1:{silent}", r"no answer in time \(ReadTimeout\)"),
        ("http://127.0.0.1:{cut}", r"the answer was cut short, or is no HTTP \(RemoteProtocolError\)"),
    ],
)
async def test_an_error_names_host_cause_request_and_path(host: str, cause: str) -> None:
    """The error says where to look, and contains no secret from any part of the URL."""

    async def silent(peer: Peer) -> None:
        await peer.read_request()
        await peer.gone()

    async def cuts(peer: Peer) -> None:
        await peer.read_request()

    async def plain(peer: Peer) -> None:
        await peer.send(OK)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with (
        raw_server(silent) as still,
        raw_server(cuts) as cut,
        raw_server(plain) as no_tls,
        raw_server(silent, context) as untrusted,
        a_client(SHORT_S) as client,
    ):
        ports = {"refused": free_port(), "plain": no_tls.port, "untrusted": untrusted.port}
        url = host.format(**ports, silent=still.port, cut=cut.port)
        secret = url.replace("://", "://user:pass@")
        path = fresh_path()
        for store in (
            Supabase(client, f"{secret}/storage/v1", BUCKET, Key(KEY)),
            S3(client, BUCKET, region="us-east-1", endpoint=secret),
        ):
            with pytest.raises(StoreFailed) as failed:
                await put(store, path, b"x")
            place = f"POST {url}/storage/v1/object" if isinstance(store, Supabase) else f"PUT {url}"
            said = str(failed.value)
            assert re.fullmatch(f"the store is away: {cause}, at {place}/{BUCKET}/{path}", said), said


async def test_a_store_that_does_not_read_stops_the_source() -> None:
    """Less than 1 MiB is taken from it beyond what the connection's own buffers hold."""

    async def lead_bytes(number: int, client: httpx2.AsyncClient) -> int:
        """Bytes taken from the source that never reached the store, which reads only what was sent before the end."""
        given = received = 0
        stopped, ended = asyncio.Event(), asyncio.Event()

        async def reads_late(peer: Peer) -> None:
            nonlocal received
            await peer.read_head()
            await stopped.wait()
            with contextlib.suppress(ConnectionError):
                while piece := await peer.reader.read(PIECE_BYTES):
                    received += len(piece)
            ended.set()

        async def endless() -> AsyncIterator[bytes]:
            nonlocal given
            while True:
                given += PIECE_BYTES
                yield bytes(PIECE_BYTES)

        async with raw_server(reads_late) as server:
            store = dead_stores(client, server.port)[number]
            upload = asyncio.create_task(store.put(fresh_path(), endless(), "image/png", size_bytes=10**12))
            before = -1
            while not given or given != before:
                before = given
                await asyncio.sleep(0.2)
                assert not upload.done()
            upload.cancel()
            await asyncio.gather(upload, return_exceptions=True)
            stopped.set()
            await ended.wait()
        return given - received

    async with a_client() as client:
        for number in range(2):
            assert 0 < await lead_bytes(number, client) < 1024 * 1024


async def test_an_answer_before_the_end_of_the_picture_is_no_success() -> None:
    """Something in front that says 200 to everything has not stored anything."""

    async def says_yes(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await peer.gone()

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x"
            await asyncio.sleep(0.02)

    async with raw_server(says_yes) as server, a_client() as client:
        for store in dead_stores(client, server.port):
            with pytest.raises(StoreFailed, match="before it had") as failed:
                await store.put(fresh_path(), slowly(), "image/png", size_bytes=10)
            assert failed.value.again


@pytest.mark.parametrize("body", [b"", b"<a", b"<a><Contents><Key>x</Key></Contents></a>", b"\xff" * 100])
async def test_a_listing_that_cannot_be_read_is_a_failed_store(body: bytes) -> None:
    """Never an empty one: a sweep would take it for the truth."""

    async def nonsense(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 -\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with raw_server(nonsense) as server, a_client() as client:
        for store in dead_stores(client, server.port):
            with pytest.raises(StoreFailed, match="cannot be read"):
                _ = [item async for item in store.objects()]


# --- GHUB_STORAGE_URL ---


def opened(**values: Any) -> Opened:
    async def work() -> Opened:
        async with open_store(Settings(**values)) as found:
            return found

    return run(work())


def test_the_storage_url_decides_the_store(tmp_path: Path) -> None:
    """It also decides the public URL of images, unless that is set."""
    local = opened(storage_url=f"file://{tmp_path}")
    assert isinstance(local.store, LocalStore) and (local.public_url, local.folder) == (None, tmp_path)
    supabase_url = "supabase+https://p.supabase.co/storage/v1/?bucket=images"
    remote = opened(storage_url=supabase_url, storage_key=KEY)
    assert isinstance(remote.store, Supabase)
    assert remote.public_url == "https://p.supabase.co/storage/v1/object/public/images"
    elsewhere = opened(storage_url=supabase_url, storage_jwt_secret=SECRET, public_url="https://img.example")
    assert elsewhere.public_url == "https://img.example"
    s3 = opened(storage_url="s3://b?endpoint=https://m.example&region=auto", public_url="https://img.example")
    assert isinstance(s3.store, S3) and (s3.public_url, s3.folder) == ("https://img.example", None)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, "GHUB_STORAGE_URL is not set"),
        ({"storage_url": "supabase+https://h/storage/v1", "storage_key": KEY}, "GHUB_STORAGE_URL: must be supabase"),
        ({"storage_url": "supabase+https:///storage/v1?bucket=b", "storage_key": KEY}, "GHUB_STORAGE_URL: must be"),
        ({"storage_url": "supabase+https://h?bucket=b"}, "GHUB_STORAGE_KEY: set it or GHUB_STORAGE_JWT_SECRET"),
        (
            {"storage_url": "supabase+https://h?bucket=b", "storage_key": KEY, "storage_jwt_secret": SECRET},
            "GHUB_STORAGE_KEY: set it or GHUB_STORAGE_JWT_SECRET .* one of the two",
        ),
        ({"storage_url": "supabase+https://h?buckt=b", "storage_key": KEY}, "'buckt' is none of .* bucket"),
        ({"storage_url": "s3://b"}, "GHUB_PUBLIC_URL is not set"),
        ({"storage_url": "s3://"}, "GHUB_STORAGE_URL: must be s3://bucket"),
        ({"storage_url": "s3://b/folder"}, "GHUB_STORAGE_URL: must be s3://bucket"),
        ({"storage_url": "s3://b?endpoint=minio:9000"}, "GHUB_STORAGE_URL: must be s3://bucket"),
        ({"storage_url": "s3://b?endpont=https://m"}, "'endpont' is none of s3's endpoint, region"),
    ],
)
def test_a_storage_url_that_is_wrong_names_the_variable(values: dict[str, Any], words: str) -> None:
    """In one sentence."""
    with pytest.raises(SettingsError, match=words):
        opened(**values)


def test_the_region_is_the_usual_one_unless_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's own variables, as with every other tool."""

    def region(url: str = "s3://b") -> str:
        store = opened(storage_url=url, public_url="https://img.example").store
        assert isinstance(store, S3)
        return store.region

    assert region() == "us-east-1"
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    assert region() == "eu-west-1"
    monkeypatch.setenv("AWS_REGION", "eu-west-2")
    assert region() == "eu-west-2"
    assert region("s3://b?region=auto") == "auto"
