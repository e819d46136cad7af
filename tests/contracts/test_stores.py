"""One suite, every store; then what only some of them can do wrong. A real Supabase takes part where it is named:

SUPABASE_STORAGE_URL=https://host/storage/v1?bucket=b SUPABASE_STORAGE_KEY=… pytest tests/contracts/test_stores.py
"""

import asyncio
import contextlib
import dataclasses
import gc
import hashlib
import io
import os
import random
import re
import ssl
import subprocess
import sys
import time
import tracemalloc
import uuid
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import jwt
import orjson
import pytest
import trustme
from PIL import Image

from config.settings import MAX_IMAGE_BYTES, MAX_IMAGE_SIDE_PX, Settings, SettingsError
from proxy.media.artefact import Artefact
from proxy.outbound.clients import store_client
from proxy.ports import Chunks, ImageStore, StoredObject, StoreFailed, StoreMisconfigured
from proxy.storage import probe as probing
from proxy.storage.local import LocalStore
from proxy.storage.opening import Opened, open_store
from proxy.storage.probe import SIDE_PX, is_probe, picture, probe
from proxy.storage.s3 import S3, bucket_url
from proxy.storage.streams import CACHE_CONTROL
from proxy.storage.supabase import IMAGE_TYPES, Auth, Key, MintedTokens, Supabase
from tests.conftest import LOOPBACK, TRUST
from tests.conftest import run as on_uvloop
from tests.kits.ports import free_port
from tests.kits.raw_server import OK, Peer, RawServer, Script, raw_server
from tests.stores.running import BUCKET, KEY, PATIENCE_S, SECRET, MotoProcess, SupabaseProcess, frozen
from tests.stores.supabase import Bucket, Server

PIECE_BYTES = 64 * 1024
SHORT_S = 0.4  # a time-out that is meant to run out
LARGE_BYTES = 40 * 1024 * 1024
PAGE = 3

T = TypeVar("T")

REAL_URL = os.environ.get("SUPABASE_STORAGE_URL")
REMOTE = ["supabase", "s3", *(["real"] if REAL_URL else [])]


def a_client(timeout_s: float = PATIENCE_S) -> httpx2.AsyncClient:
    return store_client(
        connect_timeout_s=timeout_s, write_timeout_s=timeout_s, answer_timeout_s=timeout_s, verify=TRUST
    )


@dataclasses.dataclass(frozen=True)
class Kit:
    """A store for tests: how to make it, where the public finds its images, and the process to freeze, if any."""

    make: Callable[[httpx2.AsyncClient], ImageStore]
    public_url: str | None = None
    process: Callable[[], subprocess.Popen[bytes] | None] = lambda: None

    @contextlib.asynccontextmanager
    async def opened(self, timeout_s: float = PATIENCE_S) -> AsyncIterator[ImageStore]:
        async with a_client(timeout_s) as client:
            yield self.make(client)


@pytest.fixture(scope="module")
def supabase(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SupabaseProcess]:
    server = SupabaseProcess(tmp_path_factory.mktemp("supabase"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def moto() -> Iterator[MotoProcess]:
    server = MotoProcess()
    server.wait()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "only-for-tests")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.fixture(scope="module")
def frozen_heap() -> Iterator[None]:
    """What was there before the tests is not collected after each one of them: that would take most of their time."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def nothing_is_left_open(frozen_heap: None, caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An unclosed socket warns here, inside the test that left it; a task whose exception nobody saw is in the log."""
    yield
    gc.collect()
    # aiohttp itself leaves a bare future behind where a peer resets a connection that is being closed.
    assert not [record for record in caplog.records if record.getMessage().startswith("Task")]


def kit_of(name: str, request: pytest.FixtureRequest) -> Kit:
    match name:
        case "local":
            folder = request.getfixturevalue("tmp_path")
            return Kit(lambda client: LocalStore(folder))
        case "supabase":
            server = request.getfixturevalue("supabase")
            server.behave()
            return Kit(
                lambda client: Supabase(client, server.url, BUCKET, Key(KEY), page=PAGE),
                server.public_url,
                lambda: server.process,
            )
        case "s3":
            moto = request.getfixturevalue("moto")
            return Kit(
                lambda client: S3(client, BUCKET, region="us-east-1", endpoint=moto.url, page=PAGE),
                moto.public_url,
                lambda: moto.process,
            )
    assert REAL_URL is not None
    url, _, bucket = REAL_URL.partition("?bucket=")
    bucket, auth = bucket or BUCKET, Key(os.environ["SUPABASE_STORAGE_KEY"])
    return Kit(lambda client: Supabase(client, url, bucket, auth, page=PAGE), f"{url}/object/public/{bucket}")


@pytest.fixture(params=["local", *REMOTE])
def kit(request: pytest.FixtureRequest) -> Iterator[Kit]:
    yield from cleaned(kit_of(request.param, request))


@pytest.fixture(params=REMOTE)
def remote(request: pytest.FixtureRequest) -> Iterator[Kit]:
    yield from cleaned(kit_of(request.param, request))


def cleaned(kit: Kit) -> Iterator[Kit]:
    """A real bucket is as empty after the tests as it was before."""

    async def remove() -> None:
        async with kit.opened() as store:
            await asyncio.gather(*(store.delete(path) for path in MADE))

    MADE.clear()
    yield kit
    run(remove())


MADE: list[str] = []


def fresh_path(name: str = "0.png") -> str:
    MADE.append(f"{uuid.uuid4()}/{uuid.uuid4()}/{name}")
    return MADE[-1]


def run(work: Coroutine[Any, Any, T]) -> T:
    """On a fresh uvloop, and not for ever."""

    async def bounded() -> T:
        async with asyncio.timeout(3 * PATIENCE_S):
            return await work

    return on_uvloop(bounded())


async def pieces(data: bytes, size: int = PIECE_BYTES) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def whole(chunks: Chunks) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def put(store: ImageStore, path: str, data: bytes, **more: Any) -> None:
    await store.put(path, pieces(data), "image/png", size_bytes=len(data), **more)


# --- one suite, every store ---


@pytest.mark.parametrize("length", ["told", "not told"])
@pytest.mark.parametrize("size", [1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 1_500_000])
@pytest.mark.parametrize("piece", [997, PIECE_BYTES])
def test_bytes_in_are_bytes_out(kit: Kit, size: int, piece: int, length: str) -> None:
    """At every size, however they come, with a length and without where the store does without."""
    data, path = random.Random(size).randbytes(size), fresh_path()

    async def work() -> None:
        async with kit.opened() as store:
            assert not await store.exists(path)
            told = size if store.needs_length or length == "told" else None
            await store.put(path, pieces(data, piece), "image/png", size_bytes=told)
            assert await store.exists(path)
            assert await whole(store.read(path)) == data
            await store.delete(path)

    run(work())


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
def test_the_public_sees_the_type_and_may_keep_the_image(remote: Kit, content_type: str) -> None:
    """For a year, without asking again: a path is written once."""
    path = fresh_path()

    async def work() -> None:
        async with remote.opened() as store, httpx2.AsyncClient(**LOOPBACK) as browser:
            await store.put(path, pieces(b"pixels"), content_type, size_bytes=6)
            seen = await browser.get(f"{remote.public_url}/{path}")
            assert (seen.status_code, seen.content) == (200, b"pixels")
            assert seen.headers["content-type"] == content_type
            assert seen.headers["cache-control"] == CACHE_CONTROL
            assert seen.headers["etag"]

    run(work())


def test_a_path_is_written_once_and_replaced_only_by_its_own_request(kit: Kit) -> None:
    """The second put fails for good and changes nothing; with `again` it replaces, also where nothing is."""
    path = fresh_path()

    async def work() -> None:
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

    run(work())


ERRORS = [
    ValueError("theirs"),
    httpx2.ReadError("theirs"),
    ConnectionResetError("theirs"),
    StoreFailed("theirs", again=False),
    asyncio.CancelledError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [0, 1, 10, 20])
def test_a_source_that_fails_publishes_nothing(kit: Kit, at: int, error: BaseException) -> None:
    """At its first piece, in the middle and after its last; what it raised comes out, the very same."""
    path = fresh_path()

    async def failing() -> AsyncIterator[bytes]:
        for number in range(20):
            if number == at:
                raise error
            yield bytes(PIECE_BYTES)
        raise error

    async def work() -> None:
        async with kit.opened() as store:
            with pytest.raises(type(error)) as raised:
                await store.put(path, failing(), "image/png", size_bytes=20 * PIECE_BYTES)
            assert raised.value is error
            await asyncio.sleep(0.02)  # a server would have finished by now
            assert not await store.exists(path)

    run(work())


def test_what_a_failed_try_would_have_replaced_survives(remote: Kit) -> None:
    """A connection that breaks off leaves the object of before."""
    path = fresh_path()

    async def failing() -> AsyncIterator[bytes]:
        yield bytes(PIECE_BYTES)
        yield bytes(PIECE_BYTES)
        raise ValueError

    async def work() -> None:
        async with remote.opened() as store:
            await put(store, path, b"before")
            with pytest.raises(ValueError):
                await store.put(path, failing(), "image/png", size_bytes=4 * PIECE_BYTES, again=True)
            assert await whole(store.read(path)) == b"before"

    run(work())


@pytest.mark.parametrize("after", [0, 1, 5, 19])
def test_a_cancelled_upload_leaves_nothing(kit: Kit, after: int) -> None:
    """The source is at rest when the cancellation comes out, and is read in the caller's own task."""
    path = fresh_path()

    async def work() -> None:
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

    run(work())


def test_fifty_uploads_at_a_time_do_not_mix(kit: Kit) -> None:
    """Each path has its own bytes."""
    pictures = {fresh_path(f"{number}.png"): bytes([number]) * (2_000 * number + 1) for number in range(50)}

    async def work() -> None:
        async with kit.opened() as store:
            await asyncio.gather(*(put(store, path, data) for path, data in pictures.items()))
            for path, data in pictures.items():
                assert await whole(store.read(path)) == data
            await asyncio.gather(*(store.delete(path) for path in pictures))

    run(work())


def test_what_is_deleted_is_gone_and_may_be_deleted_again(kit: Kit) -> None:
    """And its neighbours stay."""
    path = fresh_path()
    beside = path.replace("0.png", "1.png")

    async def work() -> None:
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

    run(work())


def test_everything_in_the_store_is_listed(kit: Kit) -> None:
    """Over many pages, in deep and shallow folders, whoever put it there, while it is deleted."""
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
def test_a_length_that_is_wrong_publishes_nothing(kit: Kit, told: int) -> None:
    """Too short or too long: it fails for good."""
    path = fresh_path()

    async def work() -> None:
        async with kit.opened() as store:
            with pytest.raises(StoreFailed, match="announced") as failed:
                await store.put(path, pieces(bytes(2 * PIECE_BYTES)), "image/png", size_bytes=told)
            assert not failed.value.again
            assert not await store.exists(path)

    run(work())


@pytest.mark.parametrize("nothing", [[], [b"", b""]])
def test_nothing_is_not_published_as_an_image(kit: Kit, nothing: list[bytes]) -> None:
    """The real Supabase would make an object of no bytes."""
    path = fresh_path()

    async def empty() -> AsyncIterator[bytes]:
        for piece in nothing:
            yield piece

    async def work() -> None:
        async with kit.opened() as store:
            with pytest.raises(StoreFailed, match="empty"):
                await store.put(path, empty(), "image/png", size_bytes=0)
            assert not await store.exists(path)

    run(work())


def test_a_store_that_would_take_images_passes_its_check(kit: Kit) -> None:
    """And the check leaves nothing behind."""

    async def work() -> None:
        async with kit.opened() as store:
            before = {item.path async for item in store.objects()}
            await store.check()
            assert {item.path async for item in store.objects()} == before

    run(work())


def test_a_probe_is_a_large_picture_that_nothing_makes_smaller() -> None:
    """Of the size and the type that matter: a limit on bodies is met by it, and no cache has it from before."""
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
def test_a_store_that_takes_images_passes_the_probe(kit: Kit) -> None:
    """Written, read, and nothing of it is left (rule 11)."""

    async def work() -> None:
        async with kit.opened() as store:
            before = {item.path async for item in store.objects()}
            await probe(store)
            assert {item.path async for item in store.objects()} == before

    run(work())


@pytest.mark.rule(16)
def test_only_a_path_of_a_probe_is_one() -> None:
    """The sweep deletes by it (rule 16): nobody's `_probe` folder but ours, and no organisation's."""
    name = uuid.uuid4()
    assert is_probe(f"_probe/{name}.png")
    for other in (f"_probe/{name}.jpg", f"_probe/{name}", "_probe/x.png", f"{name}.png", f"_probe/a/{name}.png"):
        assert not is_probe(other)
    assert not is_probe(f"_probe/{str(name).upper()}.png") and not is_probe(f"_probe/{name.hex}.png")
    assert not is_probe(f"{name}/{name}/0.png") and not is_probe("")


def test_a_store_that_gives_back_something_else_has_failed_the_probe(tmp_path: Path) -> None:
    """And what it has of the probe is removed."""

    class Garbling(LocalStore):
        async def read(self, path: str) -> AsyncGenerator[bytes]:
            async for chunk in super().read(path):
                yield bytes(len(chunk))

    async def work() -> None:
        with pytest.raises(StoreFailed, match="gave back something else than the probe _probe/") as failed:
            await probe(Garbling(tmp_path))
        assert failed.value.again
        assert [item async for item in LocalStore(tmp_path).objects()] == []

    run(work())


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


def open_files() -> int:
    return len(os.listdir("/dev/fd"))  # noqa: PTH208 - /dev/fd holds descriptors, not files


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


def test_a_store_that_refuses_connections_may_be_asked_again() -> None:
    """It is being restarted, perhaps."""

    async def work() -> None:
        async with a_client() as client:
            for store in dead_stores(client, free_port()):
                failures = await everything(store)
                assert all(failure.again and "ConnectError" in str(failure) for failure in failures)

    run(work())


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
def test_nonsense_from_the_other_end_is_a_store_that_is_away(answer: bytes) -> None:
    """Whatever it is that answers there at the moment."""

    async def nonsense(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(answer)

    async def work() -> None:
        async with raw_server(nonsense) as server, a_client() as client:
            for store in dead_stores(client, server.port):
                with pytest.raises(StoreFailed) as failed:
                    await put(store, fresh_path(), b"x")
                if isinstance(store, Supabase) or b"200" not in answer:  # of a PUT the status is all that S3 says
                    assert failed.value.again

    run(work())


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
def test_an_error_names_host_cause_request_and_path(host: str, cause: str) -> None:
    """All that it takes to know where to look; and nothing that is secret, wherever in the URL it stands."""

    async def silent(peer: Peer) -> None:
        await peer.read_request()
        await peer.gone()

    async def cuts(peer: Peer) -> None:
        await peer.read_request()

    async def plain(peer: Peer) -> None:
        await peer.send(OK)

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)

    async def work() -> None:
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

    run(work())


def test_a_store_that_does_not_read_stops_the_source() -> None:
    """Less than 1 MiB is taken from it beyond what the connection's own buffers hold."""

    async def lead_bytes(number: int, client: httpx2.AsyncClient) -> int:
        """What was taken from the source and never came to the store, which reads only what was sent before the end."""
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

    async def work() -> None:
        async with a_client() as client:
            for number in range(2):
                assert 0 < await lead_bytes(number, client) < 1024 * 1024

    run(work())


def test_an_answer_before_the_end_of_the_picture_is_no_success() -> None:
    """Something in front that says 200 to everything has not stored anything."""

    async def says_yes(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        await peer.gone()

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x"
            await asyncio.sleep(0.02)

    async def work() -> None:
        async with raw_server(says_yes) as server, a_client() as client:
            for store in dead_stores(client, server.port):
                with pytest.raises(StoreFailed, match="before it had") as failed:
                    await store.put(fresh_path(), slowly(), "image/png", size_bytes=10)
                assert failed.value.again

    run(work())


# --- Supabase ---


def supabase_store(client: httpx2.AsyncClient, server: SupabaseProcess | Server, auth: Auth | None = None) -> Supabase:
    return Supabase(client, server.url, BUCKET, auth or Key(KEY))


def with_supabase(
    folder: Path, work: Callable[[Server, httpx2.AsyncClient], Any], bucket: Bucket | None = None
) -> None:
    """Run `work` beside a server of its own."""

    async def main() -> None:
        async with Server(folder, SECRET, KEY, bucket).serving() as server, a_client() as client:
            await work(server, client)

    run(main())


def token(role: str = "service_role", secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode({"role": role, "iss": "supabase", **claims}, secret, "HS256")


def test_a_lost_answer_is_made_good_by_the_second_try(supabase: SupabaseProcess) -> None:
    """The object is there, and the retry of the same request replaces it with the same bytes."""
    path = fresh_path()

    async def work() -> None:
        async with a_client() as client:
            store = supabase_store(client, supabase)
            supabase.behave(lose_times=1)
            with pytest.raises(StoreFailed) as failed:
                await put(store, path, b"pixels")
            assert failed.value.again
            assert await store.exists(path)
            with pytest.raises(StoreFailed, match="KeyAlreadyExists"):
                await put(store, path, b"pixels")
            await put(store, path, b"pixels", again=True)
            assert await whole(store.read(path)) == b"pixels"

    run(work())


@pytest.mark.parametrize("told", [True, False])
def test_an_early_refusal_of_a_large_body_is_seen_at_once(supabase: SupabaseProcess, told: bool) -> None:
    """Not when the write time-out runs out: the server does not read the rest of 13 MB."""
    path, size = fresh_path(), 13_000_000

    async def work() -> None:
        async with a_client() as client:
            store = supabase_store(client, supabase)
            before = open_files()
            await put(store, path, b"first")
            began_s = time.monotonic()
            with pytest.raises(StoreFailed, match="KeyAlreadyExists") as failed:
                await store.put(path, pieces(bytes(size)), "image/png", size_bytes=size if told else None)
            assert time.monotonic() - began_s < 5 and not failed.value.again
            await asyncio.sleep(0.05)
            assert open_files() <= before + 1  # the kept connection at most: this one's body was not read
            assert await whole(store.read(path)) == b"first"

    supabase.behave()
    run(work())


@pytest.mark.parametrize(
    ("behaviour", "again", "words"),
    [
        ({"fail_times": 1, "fail_status": 500}, True, "InternalError"),
        ({"fail_times": 1, "fail_status": 429}, True, "SlowDown"),
        ({"fail_times": 1, "fail_status": 503}, True, "DatabaseConnectionLimit"),
        ({"fail_times": 1, "fail_status": 544}, True, "DatabaseTimeout"),
        ({"html_times": 1, "html_status": 502}, True, "status 502"),
        ({"html_times": 1, "html_status": 429}, True, "status 429"),
        ({"html_times": 1, "html_status": 403}, False, "status 403"),
        ({"html_times": 1, "html_status": 404}, False, "status 404"),
        ({"db_down": True}, True, "InternalError"),
    ],
)
def test_trouble_says_whether_another_try_may_help(
    supabase: SupabaseProcess, behaviour: dict[str, Any], again: bool, words: str
) -> None:
    """By the code in the body, the status in the body, the status; the message is ours and that word."""

    async def work() -> None:
        async with a_client() as client:
            store = supabase_store(client, supabase)
            for call in (
                lambda: put(store, fresh_path(), b"x"),
                lambda: store.delete(fresh_path()),
                lambda: store.exists(fresh_path()),
                lambda: whole(store.read(fresh_path())),
            ):
                supabase.behave(**behaviour)
                with pytest.raises(StoreFailed) as failed:
                    await call()
                assert failed.value.again == again
                assert str(failed.value).startswith(f"the store refused: {words}, at ")

    run(work())
    supabase.behave()


@pytest.mark.parametrize(
    ("status", "error", "again", "words"),
    [
        (400, {"statusCode": "400", "code": "SlowDown"}, True, "SlowDown"),
        (400, {"statusCode": "400", "error": "too_many_connections"}, True, "too_many_connections"),
        (400, {"statusCode": "423", "error": "Locked", "code": "ResourceLocked"}, True, "ResourceLocked"),
        (400, {"statusCode": "503", "message": "an older server"}, True, "status 503"),
        (400, {"statusCode": "409", "error": "Duplicate"}, False, "Duplicate"),
        (400, {"statusCode": "413", "code": "EntityTooLarge"}, False, "EntityTooLarge"),
        (400, {"statusCode": "415", "code": "InvalidMimeType"}, False, "InvalidMimeType"),
        (400, {"statusCode": "403", "code": "AccessDenied"}, False, "AccessDenied"),
        (400, {"statusCode": "404", "code": "NoSuchBucket"}, False, "NoSuchBucket"),
        (400, {"statusCode": 9000, "code": ["x"]}, False, "status 400"),
        (502, ["not", "an", "object"], True, "status 502"),
        (301, {}, False, "status 301"),
    ],
)
def test_a_refusal_of_supabase_says_whether_another_try_may_help(
    status: int, error: Any, again: bool, words: str
) -> None:
    """By its code, then by the status inside, then by the one of HTTP."""
    body = orjson.dumps(error)

    async def refuses(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    async def work() -> None:
        async with raw_server(refuses) as server, a_client() as client:
            with pytest.raises(StoreFailed) as failed:
                await put(Supabase(client, server.url, BUCKET, Key(KEY)), fresh_path(), b"x")
            assert failed.value.again == again
            assert str(failed.value).startswith(f"the store refused: {words}, at POST {server.url}/object/{BUCKET}/")

    run(work())


def test_no_text_of_the_store_gets_into_a_message() -> None:
    """A code that is none is left out: it could be a log line, or half a key."""
    body = orjson.dumps({"statusCode": "409", "code": "ey.J\n" * 99, "error": "<b>", "message": "secret"})

    async def refuses(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 400 -\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def work() -> None:
        async with raw_server(refuses) as server, a_client() as client:
            with pytest.raises(StoreFailed) as failed:
                await put(Supabase(client, server.url, BUCKET, Key(KEY)), fresh_path(), b"x")
            path = MADE[-1]
            assert str(failed.value) == f"the store refused: status 409, at POST {server.url}/object/{BUCKET}/{path}"

    run(work())


async def sent_heads(make: Callable[[httpx2.AsyncClient, RawServer], ImageStore], **how: Any) -> bytes:
    """The head of the request that an upload of one byte makes."""
    seen: list[bytes] = []

    async def keeps(peer: Peer) -> None:
        seen.append(await peer.read_head())
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")

    async with raw_server(keeps) as server, a_client() as client:
        with contextlib.suppress(StoreFailed):
            await make(client, server).put("org/request/0.png", pieces(b"x"), "image/png", **how)
    return seen[0].lower()


@pytest.mark.parametrize("key", [KEY, token()], ids=["sb_secret", "jwt"])
def test_a_key_is_sent_in_both_headers(key: str) -> None:
    """The project's gateway takes it from one of them, the server itself from the other."""
    head = run(sent_heads(lambda client, server: Supabase(client, server.url, BUCKET, Key(key)), size_bytes=1))
    assert f"apikey: {key}\r\nauthorization: bearer {key}\r\n".lower().encode() in head
    assert head.startswith(b"post /object/generated-images/org/request/0.png http/1.1\r\n")
    assert b"content-length: 1\r\n" in head and b"x-upsert" not in head and b"transfer-encoding" not in head
    assert b"user-agent: geekhub-gateway/" in head


def test_a_length_that_is_not_known_is_not_sent() -> None:
    """Chunked then; and only a second try may replace."""
    head = run(sent_heads(lambda client, server: Supabase(client, server.url, BUCKET, Key(KEY)), again=True))
    assert b"transfer-encoding: chunked\r\n" in head and b"content-length" not in head
    assert b"x-upsert: true\r\n" in head


def test_a_minted_token_is_used_for_half_its_life() -> None:
    """Then there is a new one; also when the clock was set back. No apikey beside it."""
    now = [1_000_000.0]
    tokens = MintedTokens(SECRET, life_s=600, now_s=lambda: now[0])
    first = tokens.headers()
    claims = jwt.decode(
        first["authorization"].removeprefix("Bearer "), SECRET, ["HS256"], options={"verify_exp": False}
    )
    assert claims == {"role": "service_role", "iss": "supabase", "iat": 1_000_000, "exp": 1_000_600}
    assert list(first) == ["authorization"]
    now[0] += 299
    assert tokens.headers() == first
    now[0] += 1
    second = tokens.headers()
    assert second != first
    now[0] -= 1000
    assert tokens.headers() not in (first, second)


@pytest.mark.parametrize(
    "auth", [Key(KEY), Key(token()), MintedTokens(SECRET)], ids=["sb_secret", "legacy jwt", "minted"]
)
def test_every_kind_of_key_opens_the_store(supabase: SupabaseProcess, auth: Auth) -> None:
    """For writing, reading, deleting and the check."""
    path = fresh_path()

    async def work() -> None:
        async with a_client() as client:
            store = supabase_store(client, supabase, auth)
            await store.check()
            await put(store, path, b"x")
            assert await whole(store.read(path)) == b"x"
            await store.delete(path)

    supabase.behave()
    run(work())


@pytest.mark.parametrize(
    ("bucket", "words"),
    [
        (Bucket("another"), "GHUB_STORAGE_URL: there is no bucket 'generated-images'"),
        (Bucket(public=False), "is private, so nobody sees its images; make it public"),
        (Bucket(file_size_limit=MAX_IMAGE_BYTES - 1), f"set it to at least {MAX_IMAGE_BYTES}"),
        (Bucket(allowed_mime_types=["image/png"]), r"does not take every kind of image; .* or image/\*"),
        (Bucket(allowed_mime_types=[]), "does not take every kind of image"),
        (Bucket(file_size_limit=MAX_IMAGE_BYTES, allowed_mime_types=sorted(IMAGE_TYPES)), None),
        (Bucket(allowed_mime_types=["image/*"]), None),
    ],
)
def test_a_bucket_that_would_not_do_is_a_sentence(tmp_path: Path, bucket: Bucket, words: str | None) -> None:
    """Which says what to do."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        refused = pytest.raises(StoreMisconfigured, match=words) if words else contextlib.nullcontext()
        with refused:
            await supabase_store(client, server).check()

    with_supabase(tmp_path, work, bucket)


@pytest.mark.parametrize(
    ("auth", "words"),
    [
        (Key("sb_secret_of_another_project"), "GHUB_STORAGE_KEY: the store does not accept it"),
        (Key(token(secret="x" * 40)), "GHUB_STORAGE_KEY: the store does not accept it"),
        (Key(token(exp=1)), "GHUB_STORAGE_KEY: the store does not accept it"),
        (Key(token("anon")), "GHUB_STORAGE_KEY is not one of a service role"),
        (MintedTokens("x" * 40), "GHUB_STORAGE_JWT_SECRET: the store does not accept it"),
    ],
    ids=["another key", "another secret", "expired", "anon", "another minted"],
)
def test_a_key_that_would_not_do_is_a_sentence(supabase: SupabaseProcess, auth: Auth, words: str) -> None:
    """Which names the variable; and an upload with it fails for good."""

    async def work() -> None:
        async with a_client() as client:
            store = supabase_store(client, supabase, auth)
            with pytest.raises(StoreMisconfigured, match=words):
                await store.check()
            with pytest.raises(StoreFailed, match="AccessDenied") as failed:
                await put(store, fresh_path(), b"x")
            assert not failed.value.again

    supabase.behave()
    run(work())


@pytest.mark.parametrize("page", [b"<html>welcome</html>", b"[]", b"{}", b'{"msg":1}'])
@pytest.mark.parametrize("status", [200, 301, 404])
def test_a_site_that_is_no_supabase_is_a_sentence(page: bytes, status: int) -> None:
    """A wrong host, or a forgotten /storage/v1."""

    async def site(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (status, len(page), page))

    async def work() -> None:
        async with raw_server(site) as server, a_client() as client:
            with pytest.raises(StoreMisconfigured, match="GHUB_STORAGE_URL: no Supabase Storage answers there"):
                await Supabase(client, server.url, BUCKET, Key(KEY)).check()

    run(work())


@pytest.mark.rule(11)
@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (
            {"no_writing": True},
            "GHUB_STORAGE_KEY: it may see the bucket .*, but not write.*AccessDenied",
        ),
        (
            {"body_limit_bytes": 2**20},
            f"GHUB_STORAGE_URL: .*limit to at least {MAX_IMAGE_BYTES} .*status 413, at",
        ),
        ({"read_only": True}, None),
    ],
)
def test_a_supabase_that_can_be_seen_and_not_written_fails_the_probe(
    supabase: SupabaseProcess, behaviour: dict[str, Any], words: str | None
) -> None:
    """The check goes well; the probe says what to do, or that another try may help (rule 11)."""

    async def work() -> None:
        async with a_client() as client:
            store = supabase_store(client, supabase)
            supabase.behave(**behaviour)
            await store.check()
            with pytest.raises(StoreMisconfigured if words else StoreFailed, match=words or "DatabaseError"):
                await probe(store)

    run(work())
    supabase.behave()


def listing(*objects: dict[str, Any], **more: Any) -> bytes:
    return orjson.dumps({"hasNext": False, "folders": [], "objects": list(objects), **more})


A_LINE = {"name": "a/b.png", "id": "1", "updated_at": "2026-11-26T10:00:00.5Z", "metadata": {"size": 7}}


@pytest.mark.parametrize(
    ("status", "answers", "found"),
    [
        (200, [listing(A_LINE)], ["a/b.png"]),
        (200, [listing(A_LINE | {"name": "b.png", "key": "a/b.png"})], ["a/b.png"]),
        (200, [listing(A_LINE | {"metadata": None})], ["a/b.png"]),
        (200, [listing(A_LINE, hasNext=True, nextCursor="x"), listing(A_LINE | {"name": "c"})], ["a/b.png", "c"]),
        (200, [listing()], []),
        (200, [listing(A_LINE, hasNext=True)], None),
        (200, [listing(A_LINE, hasNext=True, nextCursor="x"), listing(A_LINE, hasNext=True, nextCursor="x")], None),
        (200, [listing({"name": "a"})], None),
        (200, [b'{"hasNext":false}'], None),
        (404, [b'{"message":"Route POST not found","error":"Not Found","statusCode":404}', b"[]"], []),
        (400, [b'{"message":"This feature is not available for your tenant"}', b"[]"], []),
        (400, [b'{"statusCode":"403","code":"AccessDenied"}'], None),
        (502, [b"<html>"], None),
    ],
)
def test_a_flat_list_is_read_whole_or_not_at_all(status: int, answers: list[bytes], found: list[str] | None) -> None:
    """Page by page; folder by folder only where the server does not know it. A sweep takes the list for the truth."""
    left = list(answers)

    async def lists(peer: Peer) -> None:
        while left:
            head = await peer.read_request()
            code, body = (200 if b"/object/list/" in head else status), left.pop(0)
            await peer.send(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (code, len(body), body))

    async def work() -> None:
        async with raw_server(lists) as server, a_client() as client:
            store = Supabase(client, server.url, BUCKET, Key(KEY))
            if found is None:
                with pytest.raises(StoreFailed):
                    _ = [item async for item in store.objects()]
            else:
                assert [item.path async for item in store.objects()] == found

    run(work())
    assert left == []


@pytest.mark.parametrize("old", [False, True])
def test_a_server_of_any_age_lists_everything(supabase: SupabaseProcess, old: bool) -> None:
    """An older one has no flat list, and takes that call for an upload into a bucket that is not there."""
    org = str(uuid.uuid4())
    paths = {f"{org}/{request}/{number}.png" for request in range(4) for number in range(request)}

    async def work() -> None:
        async with a_client() as client:
            store = Supabase(client, supabase.url, BUCKET, Key(KEY), page=PAGE)
            for path in paths:
                await put(store, path, b"x")
            supabase.behave(old=old)
            assert {item.path async for item in store.objects() if item.path.startswith(org)} == paths
            for path in paths:
                await store.delete(path)

    run(work())
    supabase.behave()


def test_sixty_thousand_objects_are_listed_in_seconds(supabase: SupabaseProcess) -> None:
    """A page costs the same wherever it stands: no call for each order, and no offset."""

    async def work() -> None:
        async with a_client() as client:
            supabase.behave(listed=60_000)
            began_s = time.monotonic()
            paths = [item.path async for item in supabase_store(client, supabase).objects()]
            assert len(set(paths)) >= 60_000 and paths == sorted(paths)
            assert time.monotonic() - began_s < 6 * PATIENCE_S

    run(work())
    supabase.behave()


def test_a_store_in_trouble_is_away_and_not_misconfigured(supabase: SupabaseProcess) -> None:
    """A check is made again and again: an outage must not read like a wrong setting."""

    async def work() -> None:
        async with a_client(SHORT_S) as client:
            for behaviour in ({"db_down": True}, {"html_times": 1}, {"hang_times": 1}):
                supabase.behave(**behaviour)
                with pytest.raises(StoreFailed) as failed:
                    await supabase_store(client, supabase).check()
                assert failed.value.again

    run(work())
    supabase.behave()


def test_a_killed_store_comes_back_with_its_objects(tmp_path: Path) -> None:
    """What was broken off by its death is not there."""
    server = SupabaseProcess(tmp_path)
    path, broken = fresh_path(), fresh_path()

    async def dying() -> AsyncIterator[bytes]:
        for number in range(20):
            if number == 10:
                server.kill()
            yield bytes(PIECE_BYTES)

    async def work() -> None:
        async with a_client() as client:
            store = supabase_store(client, server)
            await put(store, path, b"pixels")
            with pytest.raises(StoreFailed) as failed:
                await store.put(broken, dying(), "image/png")
            assert failed.value.again
            server.start()
            assert await whole(store.read(path)) == b"pixels"
            assert not await store.exists(broken)
            await put(store, broken, b"second try", again=True)

    server.start()
    run(work())
    server.kill()


# --- the traps of the real server, shown on the test's own ---

AUTH = {"authorization": f"Bearer {token()}", "content-type": "image/png"}


def test_trap_a_limit_holds_only_for_a_length_that_is_told(tmp_path: Path) -> None:
    """Chunked bodies pass it: that is why the gateway counts."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        url = f"{server.url}/object/{BUCKET}"
        told = await client.post(f"{url}/a.png", headers=AUTH, content=bytes(101))
        assert (told.status_code, told.json()["statusCode"], told.json()["code"]) == (400, "413", "EntityTooLarge")
        chunked = await client.post(f"{url}/b.png", headers=AUTH, content=pieces(bytes(101)))
        assert chunked.status_code == 200
        assert len((await client.get(f"{url}/b.png", headers=AUTH)).content) == 101

    with_supabase(tmp_path, work, Bucket(file_size_limit=100))


def test_trap_no_bytes_are_an_object(tmp_path: Path) -> None:
    """A body that ends properly is one, whatever is in it."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        url = f"{server.url}/object/{BUCKET}/empty.png"
        assert (await client.post(url, headers=AUTH, content=pieces(b""))).status_code == 200
        assert (await client.get(url, headers=AUTH)).content == b""

    with_supabase(tmp_path, work)


def test_trap_errors_are_400_with_the_truth_inside(tmp_path: Path) -> None:
    """Only 500 and overload are what they are."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        async def said(method: str, path: str, headers: dict[str, str] = AUTH) -> tuple[int, str, str]:
            answer = await client.request(method, f"{server.url}{path}", headers=headers)
            return answer.status_code, answer.json()["statusCode"], answer.json()["code"]

        assert await said("GET", f"/object/{BUCKET}/none.png") == (400, "404", "NoSuchKey")
        assert await said("DELETE", f"/object/{BUCKET}/none.png") == (400, "404", "NoSuchKey")
        assert await said("GET", "/bucket/none") == (400, "404", "NoSuchBucket")
        assert await said("GET", f"/bucket/{BUCKET}", {"apikey": KEY}) == (400, "400", "InvalidRequest")
        lone = {"authorization": f"Bearer {KEY}"}
        assert await said("GET", f"/bucket/{BUCKET}", lone) == (400, "403", "AccessDenied")
        assert await said("POST", f"/object/{BUCKET}/%C3%A9.png") == (400, "400", "InvalidKey")
        text = {**AUTH, "content-type": "text/plain"}
        assert await said("POST", f"/object/{BUCKET}/a.png", text) == (400, "415", "InvalidMimeType")
        server.behaviour.db_down = True
        assert await said("GET", f"/object/public/{BUCKET}/none.png") == (500, "500", "InternalError")
        assert (await client.get(f"{server.url}/status")).status_code == 200

    with_supabase(tmp_path, work, Bucket(allowed_mime_types=["image/png"]))


def test_trap_who_may_see_nothing_is_shown_an_empty_list(tmp_path: Path) -> None:
    """A list of a bucket that is not there, or by a role that may not see it, is no error: it is empty."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        async def listed(name: str, bucket: str, headers: dict[str, str]) -> Any:
            answer = await client.post(f"{server.url}/object/{name}/{bucket}", headers=headers, json={"prefix": ""})
            assert answer.status_code == 200
            return answer.json()

        service, anon = ({"authorization": f"Bearer {token(role)}"} for role in ("service_role", "anon"))
        await client.post(f"{server.url}/object/{BUCKET}/a.png", headers=AUTH, content=b"a")
        nothing = {"hasNext": False, "folders": [], "objects": []}
        for bucket, headers in (("none", service), (BUCKET, anon)):
            assert await listed("list", bucket, headers) == []
            assert await listed("list-v2", bucket, headers) == nothing
        assert [entry["name"] for entry in await listed("list", BUCKET, service)] == ["a.png"]
        assert [entry["name"] for entry in (await listed("list-v2", BUCKET, service))["objects"]] == ["a.png"]

    with_supabase(tmp_path, work)


def test_trap_anyone_reads_from_a_public_bucket(tmp_path: Path) -> None:
    """By the authenticated door too; removing is refused. A public bucket that is not there is a missing object."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        url, anon = f"{server.url}/object", {"authorization": f"Bearer {token('anon')}"}
        await client.post(f"{url}/{BUCKET}/a.png", headers=AUTH, content=b"abc")
        assert (await client.get(f"{url}/{BUCKET}/a.png", headers=anon)).content == b"abc"
        assert (await client.get(f"{url}/info/{BUCKET}/a.png", headers=anon)).status_code == 200
        refused = await client.delete(f"{url}/{BUCKET}/a.png", headers=anon)
        assert (refused.status_code, refused.json()["statusCode"], refused.json()["code"]) == (
            400,
            "403",
            "AccessDenied",
        )
        missing = await client.get(f"{url}/public/none/a.png")
        assert (missing.status_code, missing.json()["code"]) == (400, "NoSuchKey")

    with_supabase(tmp_path, work)


def test_trap_a_part_may_be_asked_for(tmp_path: Path) -> None:
    """206 with the part, 416 beyond the end."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        await client.post(f"{server.url}/object/{BUCKET}/a.png", headers=AUTH, content=b"0123456789")

        async def asked(part: str) -> tuple[int, bytes, str]:
            seen = await client.get(f"{server.url}/object/public/{BUCKET}/a.png", headers={"range": f"bytes={part}"})
            return seen.status_code, seen.content, seen.headers["content-range"]

        assert await asked("2-4") == (206, b"234", "bytes 2-4/10")
        assert await asked("8-") == (206, b"89", "bytes 8-9/10")
        assert await asked("8-99") == (206, b"89", "bytes 8-9/10")
        assert (await asked("10-12"))[::2] == (416, "bytes */10")

    with_supabase(tmp_path, work)


def test_trap_create_only_is_not_atomic(tmp_path: Path) -> None:
    """Uploads that began before the first one ended all succeed, and the last one stays."""

    async def slowly(byte: bytes, ends: asyncio.Event) -> AsyncIterator[bytes]:
        yield byte
        await ends.wait()

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        url, ends = f"{server.url}/object/{BUCKET}/same.png", asyncio.Event()
        calls = [
            asyncio.create_task(client.post(url, headers=AUTH, content=slowly(byte, ends)))
            for byte in (b"a", b"b", b"c")
        ]
        await asyncio.sleep(0.2)
        ends.set()
        assert [call.status_code for call in await asyncio.gather(*calls)] == [200, 200, 200]
        late = await client.post(url, headers=AUTH, content=b"d")
        assert (late.status_code, late.json()["code"]) == (400, "KeyAlreadyExists")
        assert (await client.put(url, headers=AUTH, content=b"e")).status_code == 200

    with_supabase(tmp_path, work)


def test_trap_a_refused_body_is_not_read(tmp_path: Path) -> None:
    """The answer is there at once; who writes on until the end of 13 MB waits for ever. A small one is swallowed."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        url = f"/storage/v1/object/{BUCKET}/a.png"
        assert (await client.post(f"{server.url}/object/{BUCKET}/a.png", headers=AUTH, content=b"a")).status_code == 200
        for size, read in ((1_300_000, True), (13_000_000, False)):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            head = f"POST {url} HTTP/1.1\r\ncontent-length: {size}\r\nauthorization: {AUTH['authorization']}\r\n\r\n"
            writer.write(head.encode() + bytes(size))
            assert b"400" in await reader.readline()
            drained = asyncio.wait_for(writer.drain(), SHORT_S)
            with contextlib.nullcontext() if read else pytest.raises(TimeoutError):
                await drained
            writer.transport.abort()

    with_supabase(tmp_path, work)


def test_trap_what_is_not_said_is_not_cached(tmp_path: Path) -> None:
    """The default is no-cache, and a private bucket has no public door."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        url = f"{server.url}/object/{BUCKET}/a.png"
        await client.post(url, headers={"authorization": AUTH["authorization"]}, content=b"a")
        seen = await client.get(f"{server.url}/object/public/{BUCKET}/a.png")
        assert seen.headers["cache-control"] == "no-cache"
        assert seen.headers["content-type"] == "application/octet-stream"
        same = await client.get(
            f"{server.url}/object/public/{BUCKET}/a.png", headers={"if-none-match": seen.headers["etag"]}
        )
        assert same.status_code == 304

    with_supabase(tmp_path, work)


def test_trap_a_slow_store_reads_at_its_own_pace(tmp_path: Path) -> None:
    """The control that the gateway's tests of back-pressure use."""

    async def work(server: Server, client: httpx2.AsyncClient) -> None:
        server.behaviour.read_bytes_per_s = 1_000_000
        began_s = time.monotonic()
        await put(supabase_store(client, server), fresh_path(), bytes(500_000))
        assert 0.4 < time.monotonic() - began_s < 10

    with_supabase(tmp_path, work)


# --- S3 ---


def s3_head(**how: Any) -> bytes:
    make = lambda client, server: S3(client, BUCKET, region="eu-west-1", endpoint=server.url)  # noqa: E731
    return run(sent_heads(make, size_bytes=1, **how))


def test_an_s3_upload_is_one_signed_put() -> None:
    """With its length, a hash of nothing, and only where nothing is yet."""
    head = s3_head()
    assert head.startswith(b"put /generated-images/org/request/0.png http/1.1\r\n")
    for line in (
        b"content-length: 1",
        b"content-type: image/png",
        b"if-none-match: *",
        b"x-amz-content-sha256: unsigned-payload",
        f"cache-control: {CACHE_CONTROL}".encode(),
    ):
        assert line + b"\r\n" in head
    assert b"/eu-west-1/s3/aws4_request" in head and b"only-for-tests" not in head
    assert b"if-none-match" not in s3_head(again=True)


def test_credentials_are_looked_for_when_they_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A session token is sent along; where there are none at all, it is a sentence."""
    monkeypatch.setenv("AWS_SESSION_TOKEN", "temporary")
    assert b"x-amz-security-token: temporary\r\n" in s3_head()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)

    async def work() -> None:
        async with a_client() as client:
            store = S3(client, BUCKET, region="us-east-1", endpoint="http://127.0.0.1:9")
            with pytest.raises(StoreMisconfigured, match="no AWS credentials for it; set AWS_ACCESS_KEY_ID"):
                await store.check()
            with pytest.raises(StoreFailed, match="no AWS credentials") as failed:
                await put(store, fresh_path(), b"x")
            assert not failed.value.again

    run(work())


def test_a_missing_botocore_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "botocore.auth", None)

    async def work() -> None:
        async with a_client() as client:
            with pytest.raises(StoreMisconfigured, match=r"pip install 'geekhub-gateway\[s3\]'"):
                S3(client, BUCKET, region="us-east-1")

    run(work())


@pytest.mark.parametrize(
    ("bucket", "endpoint", "url"),
    [
        ("b", None, "https://b.s3.eu-west-1.amazonaws.com"),
        ("b.c", None, "https://s3.eu-west-1.amazonaws.com/b.c"),
        ("b", "https://minio.example:9000/", "https://minio.example:9000/b"),
        ("b", "https://p.supabase.co/storage/v1/s3", "https://p.supabase.co/storage/v1/s3/b"),
    ],
)
def test_where_a_bucket_lies(bucket: str, endpoint: str | None, url: str) -> None:
    """A host of its own at AWS, unless its name has dots; a path elsewhere."""
    assert bucket_url(bucket, "eu-west-1", endpoint) == url


def refusing(status: int, code: str = "", *headers: str) -> Script:
    """An S3 that answers so to everything."""

    async def refuses(peer: Peer) -> None:
        head = await peer.read_request()
        body = b"" if head.startswith(b"HEAD") else f"<Error><Code>{code}</Code></Error>".encode()
        lines = "".join(f"{line}\r\n" for line in headers)
        await peer.send(f"HTTP/1.1 {status} -\r\n{lines}content-length: {len(body)}\r\n\r\n".encode() + body)

    return refuses


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (refusing(404), "there is no bucket 'generated-images'; make it"),
        (refusing(403), "may not use the bucket 'generated-images'; check them and this machine's clock"),
        (refusing(301, "", "x-amz-bucket-region: eu-central-1"), "is elsewhere; set region=eu-central-1"),
        (refusing(301), "is not in region 'us-east-1'; set its own"),
        (refusing(400), "no S3 answers there; check its endpoint and region"),
        (refusing(418), "no S3 answers there; check its endpoint and region"),
    ],
)
def test_an_s3_that_would_not_do_is_a_sentence(script: Script, words: str) -> None:
    """Which names the variable and says what to do."""

    async def work() -> None:
        async with raw_server(script) as server, a_client() as client:
            with pytest.raises(StoreMisconfigured, match=f"GHUB_STORAGE_URL: .*{words}"):
                await S3(client, BUCKET, region="us-east-1", endpoint=server.url).check()

    run(work())


@pytest.mark.parametrize(
    ("status", "code", "again"),
    [
        (412, "PreconditionFailed", False),
        (409, "ConditionalRequestConflict", True),
        (400, "RequestTimeout", True),
        (503, "SlowDown", True),
        (500, "InternalError", True),
        (403, "AccessDenied", False),
        (404, "NoSuchBucket", False),
        (411, "MissingContentLength", False),
    ],
)
def test_a_refusal_of_s3_says_whether_another_try_may_help(status: int, code: str, again: bool) -> None:
    """By its code, then by its status."""

    async def work() -> None:
        async with raw_server(refusing(status, code)) as server, a_client() as client:
            store = S3(client, BUCKET, region="us-east-1", endpoint=server.url)
            path = fresh_path()
            for call in (put(store, path, b"x"), store.delete(path)):
                with pytest.raises(StoreFailed) as failed:
                    await call
                assert failed.value.again == again
                assert str(failed.value).startswith(f"the store refused: {code}, at ")
                assert str(failed.value).endswith(f" {server.url}/{BUCKET}/{path}")

    run(work())


@pytest.mark.rule(11)
@pytest.mark.parametrize("denied", ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"])
def test_an_s3_that_can_be_seen_and_not_used_fails_the_probe(moto: MotoProcess, denied: str) -> None:
    """By a policy of the bucket: the check goes well, and the probe says which rights it takes (rule 11)."""
    statement = {"Effect": "Deny", "Principal": "*", "Action": denied, "Resource": f"arn:aws:s3:::{BUCKET}/_probe/*"}

    async def work() -> None:
        async with a_client() as client:
            policy = f"{moto.public_url}?policy"
            body = orjson.dumps({"Version": "2012-10-17", "Statement": [statement]})
            store = S3(client, BUCKET, region="us-east-1", endpoint=moto.url)
            assert (await client.put(policy, content=body)).status_code < 300
            try:
                await store.check()
                with pytest.raises(StoreMisconfigured, match=f"GHUB_STORAGE_URL: the AWS credentials .*{denied}"):
                    await probe(store)
            finally:
                await client.delete(policy)
            await probe(store)
            async for item in store.objects():
                if is_probe(item.path):
                    await store.delete(item.path)

    run(work())


def test_an_s3_behind_a_limit_on_bodies_fails_the_probe() -> None:
    """As behind nginx with its usual limit."""

    async def limited(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async def work() -> None:
        async with raw_server(limited) as server, a_client() as client:
            with pytest.raises(StoreMisconfigured, match=r"GHUB_STORAGE_URL: .*client_max_body_size 64m"):
                await probe(S3(client, BUCKET, region="us-east-1", endpoint=server.url))

    run(work())


@pytest.mark.parametrize("body", [b"", b"<a", b"<a><Contents><Key>x</Key></Contents></a>", b"\xff" * 100])
def test_a_listing_that_cannot_be_read_is_a_failed_store(body: bytes) -> None:
    """Never an empty one: a sweep would take it for the truth."""

    async def nonsense(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 -\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async def work() -> None:
        async with raw_server(nonsense) as server, a_client() as client:
            for store in dead_stores(client, server.port):
                with pytest.raises(StoreFailed, match="cannot be read"):
                    _ = [item async for item in store.objects()]

    run(work())


# --- GHUB_STORAGE_URL ---


def opened(**values: Any) -> Opened:
    async def work() -> Opened:
        async with open_store(Settings(**values)) as found:
            return found

    return run(work())


def test_the_storage_url_decides_the_store(tmp_path: Path) -> None:
    """And where the public finds the images, unless that is set."""
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
