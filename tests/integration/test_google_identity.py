"""Vertex without a key of ours: federation by an external account's file, and the metadata server."""

import asyncio
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from config.settings import Settings, SettingsError, read_settings
from proxy.outbound.clients import Outbound
from proxy.outbound.hosts import ImageHosts
from proxy.outcomes import Failure, Outcome
from proxy.providers import google, google_token
from proxy.providers.google import Google
from proxy.providers.google_identity import METADATA_PATH, SCOPE, BadServiceAccount
from proxy.providers.google_token import ServiceAccount
from tests.conftest import TRUST, run
from tests.kits.providers import DOCUMENT_BYTES, IMAGEN, end_of, order, simulated
from tests.kits.raw_server import Peer, RawServer, raw_server

AUDIENCE = "//iam.googleapis.com/projects/123/locations/global/workloadIdentityPools/pool/providers/cluster"
JWT = "urn:ietf:params:oauth:token-type:jwt"
AWS = "urn:ietf:params:aws:token-type:aws4_request"
SUBJECT = "subject.of.ours"
GIVEN = {"access_token": "ya29.given", "expires_in": 3600, "token_type": "Bearer"}


def replied(body: Any, status: int = 200, more: str = "") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\n{more}content-length: {len(content)}\r\n\r\n".encode() + content


@dataclass
class Cloud:
    """Google's cloud and whoever vouches for us: a reply for each path after `delay_s`, and what was asked."""

    replies: dict[str, bytes]
    delay_s: float = 0.0
    asked: list[bytes] = field(default_factory=list)

    async def answer(self, peer: Peer) -> None:
        while True:
            request = await peer.read_request()
            self.asked.append(request)
            await asyncio.sleep(self.delay_s)
            await peer.send(self.replies[request.split(b" ")[1].decode().partition("?")[0]])

    @property
    def paths(self) -> list[str]:
        return [request.split(b" ")[1].decode().partition("?")[0] for request in self.asked]

    def form(self, number: int) -> dict[str, list[str]]:
        return parse_qs(self.asked[number].partition(b"\r\n\r\n")[2].decode())


@asynccontextmanager
async def in_cloud(cloud: Cloud) -> AsyncIterator[tuple[Outbound, RawServer]]:
    outbound = Outbound(ImageHosts(""), verify=TRUST)
    async with raw_server(cloud.answer) as server:
        try:
            yield outbound, server
        finally:
            await outbound.aclose()


def external(folder: Path, url: str, source: dict[str, Any] | None = None, **changes: Any) -> Path:
    """The file as `gcloud iam workload-identity-pools create-cred-config` writes it; None takes a field away."""
    subject = folder / "subject"
    if not subject.exists():
        subject.write_text(SUBJECT)
    account = {
        "type": "external_account",
        "audience": AUDIENCE,
        "subject_token_type": JWT,
        "token_url": f"{url}/v1/token",
        "credential_source": source or {"file": str(subject)},
    }
    path = folder / "external.json"
    path.write_text(json.dumps({name: value for name, value in (account | changes).items() if value is not None}))
    return path


# --- what they are for ------------------------------------------------------------------------------------------------


async def test_a_file_from_the_cluster_is_changed_for_a_token(tmp_path: Path) -> None:
    """It is read anew for each token, since whoever vouches for us renews it; the account's file names no project."""
    cloud = Cloud({"/v1/token": replied(GIVEN)})
    async with in_cloud(cloud) as (outbound, server):
        account = ServiceAccount(outbound.client, external(tmp_path, server.url))
        assert account.project is None
        tokens = [await account.headers() for _ in range(3)]
        (tmp_path / "subject").write_text("renewed")
        account.refused()
        tokens.append(await account.headers())
    assert tokens == [{"authorization": "Bearer ya29.given"}] * 4
    assert cloud.paths == ["/v1/token"] * 2
    assert [cloud.form(number)["subject_token"] for number in (0, 1)] == [[SUBJECT], ["renewed"]]
    form = cloud.form(0)
    assert (form["audience"], form["scope"], form["subject_token_type"]) == ([AUDIENCE], [SCOPE], [JWT])


async def test_a_subject_from_an_address_may_become_a_service_account(tmp_path: Path) -> None:
    """Three requests for one token: whoever vouches for us, the exchange, and the account that we may be."""
    ends = (datetime.now(UTC) + timedelta(minutes=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
    became = "/v1/projects/-/serviceAccounts/images@geekhub.iam.gserviceaccount.com:generateAccessToken"
    cloud = Cloud(
        {
            "/subject": replied({"value": SUBJECT}),
            "/v1/token": replied(GIVEN),
            became: replied({"accessToken": "ya29.became", "expireTime": ends}),
        }
    )
    async with in_cloud(cloud) as (outbound, server):
        form = {"type": "json", "subject_token_field_name": "value"}
        source = {"url": f"{server.url}/subject", "headers": {"x-who": "us"}, "format": form}
        path = external(tmp_path, server.url, source, service_account_impersonation_url=server.url + became)
        account = ServiceAccount(outbound.client, path)
        assert await account.headers() == await account.headers() == {"authorization": "Bearer ya29.became"}
    assert cloud.paths == ["/subject", "/v1/token", became]
    assert b"\r\nx-who: us\r\n" in cloud.asked[0].lower()
    assert cloud.form(1)["subject_token"] == [SUBJECT]
    assert b"\r\nauthorization: bearer ya29.given\r\n" in cloud.asked[2].lower()


async def test_a_role_of_aws_is_changed_for_a_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it shows is a request that AWS would take, signed and not sent; its secret stays here."""
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAOURS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "kept-here")
    cloud = Cloud({"/v1/token": replied(GIVEN)})
    async with in_cloud(cloud) as (outbound, server):
        verify = "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15"
        source = {"environment_id": "aws1", "regional_cred_verification_url": verify}
        path = external(tmp_path, server.url, source, subject_token_type=AWS)
        assert await ServiceAccount(outbound.client, path).headers() == {"authorization": "Bearer ya29.given"}
    assert cloud.paths == ["/v1/token"]
    assert "sts.eu-west-1.amazonaws.com" in cloud.form(0)["subject_token"][0] and b"kept-here" not in cloud.asked[0]


@pytest.mark.parametrize("variable", ["GCE_METADATA_HOST", "GCE_METADATA_ROOT"])
async def test_vertex_makes_pictures_for_whom_the_metadata_server_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """With its token and no file at all; one request for many orders."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()).decode()
    public = key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    async with simulated(tmp_path / "store") as bench:
        email = "pod@geekhub.iam.gserviceaccount.com"
        await bench.tell("PUT", "vertex", {"client_email": email, "public_key": public})
        file = tmp_path / "account.json"
        token_uri = f"{bench.url}/vertex/token"
        known = {"client_email": email, "private_key": private, "token_uri": token_uri, "project_id": "p"}
        file.write_text(json.dumps(known))
        good = (await ServiceAccount(bench.outbound.client, file).headers())["authorization"].removeprefix("Bearer ")
        cloud = Cloud({METADATA_PATH: replied({**GIVEN, "access_token": good})})
        async with raw_server(cloud.answer) as server:
            monkeypatch.setenv(variable, f"127.0.0.1:{server.port}")
            account = ServiceAccount(bench.outbound.client, "default")
            models = f"{bench.url}/vertex/v1/projects/geekhub/locations/us-central1/publishers/google/models"
            bench.providers["google"] = Google(bench.outbound.client, models, account, DOCUMENT_BYTES)
            made = [await bench.make(order(IMAGEN, 3)) for _ in range(2)]
    assert [end_of(one) for one in made] == ["delivered"] * 2
    assert cloud.paths == [METADATA_PATH] and b"\r\nmetadata-flavor: google\r\n" in cloud.asked[0].lower()


# --- who does not mean well -------------------------------------------------------------------------------------------


@asynccontextmanager
async def each_kind(
    folder: Path, reply: bytes, delay_s: float = 0.0
) -> AsyncIterator[tuple[Cloud, list[ServiceAccount]]]:
    """A federated and a metadata identity, whose token comes with `reply`."""
    cloud = Cloud({"/v1/token": reply, METADATA_PATH: reply, "/elsewhere": replied(GIVEN)}, delay_s)
    async with in_cloud(cloud) as (outbound, server):
        with patch.dict("os.environ", GCE_METADATA_HOST=f"127.0.0.1:{server.port}"):
            federated = ServiceAccount(outbound.client, external(folder, server.url))
            yield cloud, [federated, ServiceAccount(outbound.client, "default")]


@pytest.mark.parametrize(
    "reply",
    [
        replied(b"no token for you", 403),
        replied({"error": SUBJECT}, 503),
        replied(GIVEN, 201),
        replied(b"", 302, "location: /elsewhere\r\n"),
        replied(b""),
        replied(b"null"),
        replied(b"[" * 16_000),
        replied(b"\xff"),
        replied({}),
        replied({"access_token": "t"}),
        replied({"expires_in": 3600}),
        replied({**GIVEN, "access_token": ["t"]}),
        replied({**GIVEN, "access_token": "t\r\nx: y"}),
        replied({**GIVEN, "expires_in": "soon"}),
        replied({**GIVEN, "expires_in": True}),
        replied({**GIVEN, "expires_in": 0}),
        replied({**GIVEN, "expires_in": 10**30}),
        replied({**GIVEN, "more": "x" * 20_000}),
    ],
)
async def test_whoever_has_no_token_is_asked_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reply: bytes
) -> None:
    """google-auth does not try again by itself, follows no redirect, and neither error nor log has what was said."""
    caplog.set_level(logging.DEBUG)
    async with each_kind(tmp_path, reply) as (cloud, accounts):
        for account in accounts:
            cloud.asked.clear()
            with pytest.raises(Failure) as told:
                await account.headers()
            assert told.value.outcome is Outcome.NOT_AUTHORISED and len(cloud.asked) == 1
            assert SUBJECT not in str(told.value) + caplog.text and "for you" not in str(told.value) + caplog.text


async def test_whoever_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    """Fifty who wait do so once and together; nothing was bought."""
    async with each_kind(tmp_path, replied(GIVEN), delay_s=60) as (cloud, accounts):
        for account in accounts:
            cloud.asked.clear()
            with patch.object(google_token, "TOKEN_TIMEOUT_S", 0.3):
                began_s = time.monotonic()
                ends = await asyncio.gather(*(account.headers() for _ in range(50)), return_exceptions=True)
                assert 0.29 < time.monotonic() - began_s < 10
            assert {end.outcome for end in ends if isinstance(end, Failure)} == {Outcome.REFUSED_CONNECTION}
            assert len(cloud.asked) == 1 and all(isinstance(end, Failure) for end in ends)


def test_a_stop_does_not_wait_for_a_token(tmp_path: Path) -> None:
    """google-auth's thread ends with the loop, which would otherwise wait for it as long as a renewal may take."""

    async def leave() -> float:
        async with each_kind(tmp_path, replied(GIVEN), delay_s=60) as (cloud, accounts):
            waiting = [asyncio.create_task(account.headers()) for account in accounts]
            while len(cloud.asked) < len(accounts):
                await asyncio.sleep(0.01)
            assert not any(task.done() for task in waiting)
            return time.monotonic()

    with patch.object(google_token, "TOKEN_TIMEOUT_S", 60):
        left_s = run(leave())
    assert time.monotonic() - left_s < 10


async def test_all_requests_for_a_token_have_one_time_together(tmp_path: Path) -> None:
    """Two that take 0.3 s each, of which 0.4 s are too few; and one second is enough."""
    cloud = Cloud({"/subject": replied(b"s"), "/v1/token": replied(GIVEN)}, delay_s=0.3)
    async with in_cloud(cloud) as (outbound, server):
        path = external(tmp_path, server.url, {"url": f"{server.url}/subject"})
        account = ServiceAccount(outbound.client, path)
        with patch.object(google_token, "TOKEN_TIMEOUT_S", 0.4), pytest.raises(Failure, match="refused_connection"):
            await account.headers()
        assert cloud.paths == ["/subject", "/v1/token"]
        assert await account.headers() == {"authorization": "Bearer ya29.given"}


async def test_a_subject_that_is_gone_is_a_failure(tmp_path: Path) -> None:
    """Its file was there at the start; once it is back there are tokens again."""
    cloud = Cloud({"/v1/token": replied(GIVEN)})
    async with in_cloud(cloud) as (outbound, server):
        account = ServiceAccount(outbound.client, external(tmp_path, server.url))
        (tmp_path / "subject").unlink()
        with pytest.raises(Failure, match="not_authorised"):
            await account.headers()
        assert cloud.asked == []
        (tmp_path / "subject").write_text(SUBJECT)
        assert await account.headers() == {"authorization": "Bearer ya29.given"}


async def test_an_exchange_whose_certificate_nobody_trusts_sees_no_subject(tmp_path: Path) -> None:
    """And the same one gives a token where its authority is trusted."""
    authority, tls, trust = (
        trustme.CA(),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH),
        ssl.create_default_context(),
    )
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.configure_trust(trust)
    cloud = Cloud({"/v1/token": replied(GIVEN)})
    async with raw_server(cloud.answer, tls) as server:
        wary, trusting = Outbound(ImageHosts(""), verify=TRUST), Outbound(ImageHosts(""), verify=trust)
        path = external(tmp_path, server.url)
        with pytest.raises(Failure, match="refused_connection token: ConnectError"):
            await ServiceAccount(wary.client, path).headers()
        assert cloud.asked == []
        assert await ServiceAccount(trusting.client, path).headers() == {"authorization": "Bearer ya29.given"}
        await wary.aclose()
        await trusting.aclose()


# --- what is set ------------------------------------------------------------------------------------------------------

BAD_FILES: list[tuple[dict[str, Any], str]] = [
    ({"audience": None}, "`audience`"),
    ({"token_url": 7}, "`token_url`"),
    ({"subject_token_type": ""}, "`subject_token_type`"),
    ({"credential_source": None}, "`credential_source`"),
    ({"credential_source": "file"}, "`credential_source`"),
    ({"credential_source": {"executable": {"command": "/bin/true"}}}, "`credential_source`"),
    ({"credential_source": {"certificate": {"use_default_certificate_config": True}}}, "`credential_source`"),
    ({"credential_source": {"file": "/nowhere/subject"}}, "/nowhere/subject"),
    ({"credential_source": {"file": "/", "url": "http://x"}}, "mutually exclusive"),
    ({"credential_source": {"url": "http://x", "format": {"type": "json"}}}, "subject_token_field_name"),
    ({"credential_source": {"environment_id": "azure1"}}, "valid"),
    ({"type": "authorized_user"}, "`type`"),
]


@pytest.mark.parametrize(("changes", "words"), BAD_FILES)
async def test_an_external_file_that_cannot_be_used_says_why(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    """In one sentence with its path, before anything is asked of anybody."""
    outbound = Outbound(ImageHosts(""), verify=TRUST)
    with pytest.raises(BadServiceAccount) as told:
        ServiceAccount(outbound.client, external(tmp_path, "http://127.0.0.1:9", **changes))
    await outbound.aclose()
    assert str(told.value).startswith(f"{tmp_path / 'external.json'} is no ")
    assert words in str(told.value) and "\n" not in str(told.value)


def set_to(monkeypatch: pytest.MonkeyPatch, **values: str) -> Settings:
    for name, value in values.items():
        monkeypatch.setenv(f"GHUB_GOOGLE_{name.upper()}", value)
    return read_settings()


async def test_the_project_is_set_if_no_file_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sentence names the variable; what is set goes before what a file says."""
    cloud = Cloud({METADATA_PATH: replied(GIVEN), "/v1/token": replied(GIVEN)})
    async with in_cloud(cloud) as (outbound, server):
        for source in ("default", str(external(tmp_path, server.url))):
            with pytest.raises(SettingsError, match=r"^GHUB_GOOGLE_PROJECT: set it"):
                google.from_settings(set_to(monkeypatch, service_account=source), outbound)
            made = google.from_settings(
                set_to(monkeypatch, service_account=source, project="example.com:a-1"), outbound
            )
            assert isinstance(made, Google) and "/projects/example.com:a-1/locations/" in made._models_url
            monkeypatch.delenv("GHUB_GOOGLE_PROJECT")
    assert cloud.asked == []


def test_default_is_a_word_and_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of that name can be named by its folder."""
    assert set_to(monkeypatch, service_account="default").google_service_account == "default"
    assert set_to(monkeypatch, service_account="./default").google_service_account == Path("default")
    with pytest.raises(SettingsError, match="GHUB_GOOGLE_PROJECT"):
        set_to(monkeypatch, project="a/../b")
