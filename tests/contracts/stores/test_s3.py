"""What only S3 can do wrong."""

import os
import sys
from typing import Any

import orjson
import pytest

from proxy.ports import StoreFailed, StoreMisconfigured
from proxy.storage.probe import is_probe, probe
from proxy.storage.s3 import S3, bucket_url
from proxy.storage.streams import CACHE_CONTROL
from tests.kits.raw_server import Peer, Script, raw_server
from tests.kits.stores import a_client, fresh_path, put, run, sent_heads
from tests.stores.running import BUCKET, MotoProcess


def s3_head(**how: Any) -> bytes:
    make = lambda client, server: S3(client, BUCKET, region="eu-west-1", endpoint=server.url)  # noqa: E731
    return run(sent_heads(make, size_bytes=1, **how))


def test_an_s3_upload_is_one_signed_put() -> None:
    """It has its length, no hash of the body, and the condition that nothing is there yet."""
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
    """A session token is sent along; if there are no credentials at all, the error is a sentence."""
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


async def test_a_missing_botocore_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an extra."""
    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    async with a_client() as client:
        with pytest.raises(StoreMisconfigured, match=r"pip install 'geekhub-gateway\[s3\]'"):
            S3(client, BUCKET, region="us-east-1")


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
async def test_an_s3_that_would_not_do_is_a_sentence(script: Script, words: str) -> None:
    """Which names the variable and says what to do."""
    async with raw_server(script) as server, a_client() as client:
        with pytest.raises(StoreMisconfigured, match=f"GHUB_STORAGE_URL: .*{words}"):
            await S3(client, BUCKET, region="us-east-1", endpoint=server.url).check()


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
async def test_a_refusal_of_s3_says_whether_another_try_may_help(status: int, code: str, again: bool) -> None:
    """By its code, then by its status."""
    async with raw_server(refusing(status, code)) as server, a_client() as client:
        store = S3(client, BUCKET, region="us-east-1", endpoint=server.url)
        path = fresh_path()
        for call in (put(store, path, b"x"), store.delete(path)):
            with pytest.raises(StoreFailed) as failed:
                await call
            assert failed.value.again == again
            assert str(failed.value).startswith(f"the store refused: {code}, at ")
            assert str(failed.value).endswith(f" {server.url}/{BUCKET}/{path}")


@pytest.mark.rule(11)
@pytest.mark.parametrize("denied", ["s3:PutObject", "s3:GetObject", "s3:DeleteObject"])
async def test_an_s3_that_can_be_seen_and_not_used_fails_the_probe(moto: MotoProcess, denied: str) -> None:
    """By a policy of the bucket: the check goes well, and the probe says which rights it takes (rule 11)."""
    statement = {"Effect": "Deny", "Principal": "*", "Action": denied, "Resource": f"arn:aws:s3:::{BUCKET}/_probe/*"}
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


async def test_an_s3_behind_a_limit_on_bodies_fails_the_probe() -> None:
    """A proxy like nginx with its default limit is in front of it."""

    async def limited(peer: Peer) -> None:
        await peer.read_head()
        await peer.send(b"HTTP/1.1 413 -\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")

    async with raw_server(limited) as server, a_client() as client:
        with pytest.raises(StoreMisconfigured, match=r"GHUB_STORAGE_URL: .*client_max_body_size 64m"):
            await probe(S3(client, BUCKET, region="us-east-1", endpoint=server.url))
