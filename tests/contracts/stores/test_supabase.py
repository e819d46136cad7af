"""What only Supabase can do wrong, and the traps of the real server, shown on the test's own."""

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import orjson
import pytest

from config.settings import MAX_IMAGE_BYTES
from proxy.ports import StoreFailed, StoreMisconfigured
from proxy.storage.probe import probe
from proxy.storage.supabase import IMAGE_TYPES, Auth, Key, MintedTokens, Supabase
from tests.kits.raw_server import Peer, raw_server
from tests.kits.stores import (
    MADE,
    PAGE,
    PIECE_BYTES,
    SHORT_S,
    a_client,
    fresh_path,
    open_files,
    pieces,
    put,
    run,
    sent_heads,
    supabase_store,
    whole,
    with_supabase,
)
from tests.stores.running import BUCKET, KEY, PATIENCE_S, SECRET, SupabaseProcess
from tests.stores.supabase import Bucket, Server


def token(role: str = "service_role", secret: str = SECRET, **claims: Any) -> str:
    return jwt.encode({"role": role, "iss": "supabase", **claims}, secret, "HS256")


async def test_a_lost_answer_is_made_good_by_the_second_try(supabase: SupabaseProcess) -> None:
    """The object is there, and the retry of the same request replaces it with the same bytes."""
    path = fresh_path()
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


@pytest.mark.parametrize("told", [True, False])
async def test_an_early_refusal_of_a_large_body_is_seen_at_once(supabase: SupabaseProcess, told: bool) -> None:
    """Not when the write time-out runs out: the server does not read the rest of 13 MB."""
    path, size = fresh_path(), 13_000_000
    supabase.behave()
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
async def test_trouble_says_whether_another_try_may_help(
    supabase: SupabaseProcess, behaviour: dict[str, Any], again: bool, words: str
) -> None:
    """By the code in the body, the status in the body, the status; the message is ours and that word."""
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
async def test_a_refusal_of_supabase_says_whether_another_try_may_help(
    status: int, error: Any, again: bool, words: str
) -> None:
    """By its code, then by the status inside, then by the one of HTTP."""
    body = orjson.dumps(error)

    async def refuses(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    async with raw_server(refuses) as server, a_client() as client:
        with pytest.raises(StoreFailed) as failed:
            await put(Supabase(client, server.url, BUCKET, Key(KEY)), fresh_path(), b"x")
        assert failed.value.again == again
        assert str(failed.value).startswith(f"the store refused: {words}, at POST {server.url}/object/{BUCKET}/")


async def test_no_text_of_the_store_gets_into_a_message() -> None:
    """A code that is none is left out: it could be a log line, or half a key."""
    body = orjson.dumps({"statusCode": "409", "code": "ey.J\n" * 99, "error": "<b>", "message": "secret"})

    async def refuses(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 400 -\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))

    async with raw_server(refuses) as server, a_client() as client:
        with pytest.raises(StoreFailed) as failed:
            await put(Supabase(client, server.url, BUCKET, Key(KEY)), fresh_path(), b"x")
        path = MADE[-1]
        assert str(failed.value) == f"the store refused: status 409, at POST {server.url}/object/{BUCKET}/{path}"


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
    """Then there is a new one, also if the clock was set back. No apikey is sent with it."""
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
async def test_every_kind_of_key_opens_the_store(supabase: SupabaseProcess, auth: Auth) -> None:
    """For writing, reading, deleting and the check."""
    path = fresh_path()
    supabase.behave()
    async with a_client() as client:
        store = supabase_store(client, supabase, auth)
        await store.check()
        await put(store, path, b"x")
        assert await whole(store.read(path)) == b"x"
        await store.delete(path)


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
async def test_a_key_that_would_not_do_is_a_sentence(supabase: SupabaseProcess, auth: Auth, words: str) -> None:
    """Which names the variable; and an upload with it fails for good."""
    supabase.behave()
    async with a_client() as client:
        store = supabase_store(client, supabase, auth)
        with pytest.raises(StoreMisconfigured, match=words):
            await store.check()
        with pytest.raises(StoreFailed, match="AccessDenied") as failed:
            await put(store, fresh_path(), b"x")
        assert not failed.value.again


@pytest.mark.parametrize("page", [b"<html>welcome</html>", b"[]", b"{}", b'{"msg":1}'])
@pytest.mark.parametrize("status", [200, 301, 404])
async def test_a_site_that_is_no_supabase_is_a_sentence(page: bytes, status: int) -> None:
    """A wrong host, or a forgotten /storage/v1."""

    async def site(peer: Peer) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (status, len(page), page))

    async with raw_server(site) as server, a_client() as client:
        with pytest.raises(StoreMisconfigured, match="GHUB_STORAGE_URL: no Supabase Storage answers there"):
            await Supabase(client, server.url, BUCKET, Key(KEY)).check()


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
async def test_a_supabase_that_can_be_seen_and_not_written_fails_the_probe(
    supabase: SupabaseProcess, behaviour: dict[str, Any], words: str | None
) -> None:
    """The check goes well; the probe says what to do, or that another try may help (rule 11)."""
    async with a_client() as client:
        store = supabase_store(client, supabase)
        supabase.behave(**behaviour)
        await store.check()
        with pytest.raises(StoreMisconfigured if words else StoreFailed, match=words or "DatabaseError"):
            await probe(store)
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
async def test_a_flat_list_is_read_whole_or_not_at_all(
    status: int, answers: list[bytes], found: list[str] | None
) -> None:
    """It is read page by page, and folder by folder only if the server does not know it. A sweep trusts the list."""
    left = list(answers)

    async def lists(peer: Peer) -> None:
        while left:
            head = await peer.read_request()
            code, body = (200 if b"/object/list/" in head else status), left.pop(0)
            await peer.send(b"HTTP/1.1 %d -\r\ncontent-length: %d\r\n\r\n%b" % (code, len(body), body))

    async with raw_server(lists) as server, a_client() as client:
        store = Supabase(client, server.url, BUCKET, Key(KEY))
        if found is None:
            with pytest.raises(StoreFailed):
                _ = [item async for item in store.objects()]
        else:
            assert [item.path async for item in store.objects()] == found
    assert left == []


@pytest.mark.parametrize("old", [False, True])
async def test_a_server_of_any_age_lists_everything(supabase: SupabaseProcess, old: bool) -> None:
    """An older one has no flat list, and takes that call for an upload into a bucket that is not there."""
    org = str(uuid.uuid4())
    paths = {f"{org}/{request}/{number}.png" for request in range(4) for number in range(request)}
    async with a_client() as client:
        store = Supabase(client, supabase.url, BUCKET, Key(KEY), page=PAGE)
        for path in paths:
            await put(store, path, b"x")
        supabase.behave(old=old)
        assert {item.path async for item in store.objects() if item.path.startswith(org)} == paths
        for path in paths:
            await store.delete(path)
    supabase.behave()


async def test_sixty_thousand_objects_are_listed_in_seconds(supabase: SupabaseProcess) -> None:
    """A page costs the same wherever it stands: no call for each order, and no offset."""
    async with a_client() as client:
        supabase.behave(listed=60_000)
        began_s = time.monotonic()
        paths = [item.path async for item in supabase_store(client, supabase).objects()]
        assert len(set(paths)) >= 60_000 and paths == sorted(paths)
        assert time.monotonic() - began_s < 6 * PATIENCE_S
    supabase.behave()


async def test_a_store_in_trouble_is_away_and_not_misconfigured(supabase: SupabaseProcess) -> None:
    """A check is made again and again: an outage must not read like a wrong setting."""
    async with a_client(SHORT_S) as client:
        for behaviour in ({"db_down": True}, {"html_times": 1}, {"hang_times": 1}):
            supabase.behave(**behaviour)
            with pytest.raises(StoreFailed) as failed:
                await supabase_store(client, supabase).check()
            assert failed.value.again
    supabase.behave()


async def test_a_killed_store_comes_back_with_its_objects(tmp_path: Path) -> None:
    """An upload that its death interrupted is not there."""
    server = SupabaseProcess(tmp_path)
    path, broken = fresh_path(), fresh_path()

    async def dying() -> AsyncIterator[bytes]:
        for number in range(20):
            if number == 10:
                server.kill()
            yield bytes(PIECE_BYTES)

    server.start()
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
