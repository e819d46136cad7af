"""Imagen on Vertex by a service account: its assertion, its tokens, and what happens where none is to be had."""

import asyncio
import itertools
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from urllib.parse import parse_qs

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from proxy.outcomes import Failure, Outcome, worst
from proxy.providers import google_token
from proxy.providers.google import Google
from proxy.providers.google_identity import BadServiceAccount
from proxy.providers.google_token import ServiceAccount
from tests.conftest import run
from tests.kits.providers import DOCUMENT_BYTES, IMAGEN, Bench, end_of, order, simulated, upstream
from tests.kits.raw_server import Peer, raw_server

EMAIL = "gateway@geekhub.iam.gserviceaccount.com"
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def private_pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(encoding, form, serialization.NoEncryption()).decode()


def public_pem(key: rsa.RSAPrivateKey) -> str:
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(encoding, form).decode()


def account_file(folder: Path, url: str, **changes: Any) -> Path:
    """The JSON that Google gives out; a change to None takes the field away."""
    account = {
        "type": "service_account",
        "project_id": "geekhub",
        "private_key": private_pem(KEY),
        "client_email": EMAIL,
        "token_uri": f"{url}/vertex/token",
    }
    path = folder / "account.json"
    fields = {name: value for name, value in (account | changes).items() if value is not None}
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def use_vertex(bench: Bench, folder: Path, **changes: Any) -> ServiceAccount:
    """From now on the bench asks Vertex, by a service account."""
    account = ServiceAccount(bench.outbound.client, account_file(folder, bench.url, **changes))
    models = f"{bench.url}/vertex/v1/projects/{account.project}/locations/us-central1/publishers/google/models"
    bench.providers["google"] = Google(bench.outbound.client, models, account, DOCUMENT_BYTES)
    return account


async def register(bench: Bench, key: rsa.RSAPrivateKey = KEY, **more: Any) -> None:
    """Vertex knows the account by this key."""
    wish = {"client_email": EMAIL, "public_key": public_pem(key), **more}
    assert (await bench.control.put(f"{bench.url}/_sim/vertex", json=wish)).status_code == 200


async def tokens(bench: Bench) -> tuple[int, int]:
    """Asked for, granted."""
    state = (await bench.control.get(f"{bench.url}/_sim/vertex")).json()
    return state["token_requests"], state["tokens_granted"]


class Clock:
    """The adapter's clock: the real one, and what the test adds."""

    def __init__(self) -> None:
        self.later_s = 0.0

    def patched(self) -> Any:
        return patch.object(google_token, "time", SimpleNamespace(time=time.time, monotonic=self.monotonic))

    def monotonic(self) -> float:
        return time.monotonic() + self.later_s


# --- a token endpoint that means well ---------------------------------------------------------------------------------


async def test_vertex_makes_the_pictures_and_is_shown_a_signed_assertion(tmp_path: Path) -> None:
    """RS256, our address as issuer, the token's address as audience, one hour; Vertex is shown the token alone."""
    async with simulated(tmp_path / "store") as bench:
        use_vertex(bench, tmp_path)
        await register(bench)
        made = await bench.make(order(IMAGEN, 6))
        assert (end_of(made), sorted(made.stored)) == ("delivered", list(range(6)))
        grant, *calls = bench.sent
        form = parse_qs(grant.body.decode())
        assertion = form.pop("assertion")[0]
        assert form == {"grant_type": ["urn:ietf:params:oauth:grant-type:jwt-bearer"]}
        assert jwt.get_unverified_header(assertion)["alg"] == "RS256"
        claims = jwt.decode(assertion, public_pem(KEY), ["RS256"], audience=f"{bench.url}/vertex/token")
        assert claims["iss"] == EMAIL and claims["exp"] - claims["iat"] == 3600
        assert claims["scope"] == "https://www.googleapis.com/auth/cloud-platform"
        assert len({one.headers["authorization"] for one in calls}) == 1 and len(calls) == 2
        assert all(one.headers["authorization"].startswith("Bearer ya29.") for one in calls)
        assert all("x-goog-api-key" not in one.headers for one in bench.sent)
        assert [one.url.partition("/vertex/v1/")[2] for one in calls] == 2 * [
            "projects/geekhub/locations/us-central1/publishers/google/models/imagen-4.0-generate-001:predict"
        ]


async def test_fifty_calls_at_once_ask_for_one_token(tmp_path: Path) -> None:
    """And fifty more for none."""
    async with simulated(tmp_path / "store") as bench:
        account = use_vertex(bench, tmp_path)
        await register(bench)
        for _ in range(2):
            headers = await asyncio.gather(*(account.headers() for _ in range(50)))
            assert len({tuple(one.items()) for one in headers}) == 1
            assert await tokens(bench) == (1, 1)


@pytest.mark.parametrize(
    ("lifetime_s", "renewed_after_s"), [(3600, 3300), (1200, 900), (600, 300), (400, 200), (60, 30)]
)
async def test_a_token_is_renewed_before_it_ends(tmp_path: Path, lifetime_s: int, renewed_after_s: int) -> None:
    """Five minutes before, and one that lives for less than ten at half its life; not earlier."""
    clock = Clock()
    async with simulated(tmp_path / "store") as bench:
        account = use_vertex(bench, tmp_path)
        await register(bench, lifetime_s=lifetime_s)
        with clock.patched():
            first = await account.headers()
            clock.later_s = renewed_after_s - 10
            assert await account.headers() == first
            clock.later_s = renewed_after_s
            second = await account.headers()
            assert second != first and await account.headers() == second
        assert await tokens(bench) == (2, 2)


async def test_no_call_goes_out_with_a_token_that_has_ended(tmp_path: Path) -> None:
    """Tokens of one second each, over more than three of them: every call is taken."""
    async with simulated(tmp_path / "store") as bench:
        use_vertex(bench, tmp_path)
        await register(bench, lifetime_s=1)
        await bench.behave(IMAGEN, "ok", same=True)
        ends, until_s = [], time.monotonic() + 3.2
        while time.monotonic() < until_s:
            ends.append(end_of(await bench.make(order(IMAGEN))))
        asked, granted = await tokens(bench)
        assert set(ends) == {"delivered"} and 4 <= asked == granted <= 8


async def test_a_caller_that_is_cancelled_while_it_waits_takes_no_token_from_the_others(tmp_path: Path) -> None:
    """The first of three gives up; the request that it began goes on for the two."""
    answer = asyncio.Event()
    asked: list[bytes] = []

    async def slow(peer: Peer) -> None:
        asked.append(await peer.read_request())
        await answer.wait()
        await peer.send(token_reply({"access_token": "t", "expires_in": 3600}))

    async with raw_server(slow) as server, upstream(server.url, tmp_path / "store") as bench:
        account = use_vertex(bench, tmp_path)
        callers = [asyncio.create_task(account.headers()) for _ in range(3)]
        while not asked:
            await asyncio.sleep(0.01)
        callers[0].cancel()
        await asyncio.wait(callers[:1])
        answer.set()
        assert await asyncio.gather(*callers[1:]) == [{"authorization": "Bearer t"}] * 2
    assert len(asked) == 1


# --- a token endpoint that does not -----------------------------------------------------------------------------------


def token_reply(body: Any, status: int = 200) -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


def saying(answer: bytes, asked: list[bytes]) -> Callable[[Peer], Awaitable[None]]:
    async def script(peer: Peer) -> None:
        while True:
            asked.append(await peer.read_request())
            await peer.send(answer)

    return script


GARBAGE: list[bytes] = [
    b"",
    b"<html>",
    b"\xff",
    b"null",
    b"[]",
    b"7",
    b'"token"',
    b"{}",
    b'{"access_token":"t"}',
    b'{"expires_in":3600}',
    b'{"access_token":null,"expires_in":3600}',
    b'{"access_token":"","expires_in":3600}',
    b'{"access_token":["t"],"expires_in":3600}',
    b'{"access_token":"t\\r\\nx: y","expires_in":3600}',
    '{"access_token":"é","expires_in":3600}'.encode(),
    b'{"access_token":"t","expires_in":null}',
    b'{"access_token":"t","expires_in":"soon"}',
    b'{"access_token":"t","expires_in":"nan"}',
    b'{"access_token":"t","expires_in":true}',
    b'{"access_token":"t","expires_in":0}',
    b'{"access_token":"t","expires_in":-1}',
    b" " * 20_000,
]


async def test_a_reply_that_holds_no_token_is_a_failure_in_which_nothing_was_bought(tmp_path: Path) -> None:
    """Whatever it holds instead, and be it a 503: Imagen itself is not asked, and the customer may ask again."""

    asked: list[bytes] = []
    answer = [b""]

    async def script(peer: Peer) -> None:
        while True:
            asked.append(await peer.read_request())
            await peer.send(answer[0])

    async with raw_server(script) as server, upstream(server.url, tmp_path / "store") as bench:
        use_vertex(bench, tmp_path)
        for status, body in itertools.product((200, 503), GARBAGE):
            asked.clear()
            answer[0] = token_reply(body, status)
            failure = worst((await bench.make(order(IMAGEN))).failures)
            assert failure.outcome is Outcome.NOT_AUTHORISED and failure.as_error().retry, (status, body)
            assert len(asked) == 1 and b"/vertex/token " in asked[0], (status, body)


async def test_an_account_that_google_does_not_know_buys_nothing(tmp_path: Path) -> None:
    """Signed with another key than the one that is registered."""
    async with simulated(tmp_path / "store") as bench:
        use_vertex(bench, tmp_path)
        await register(bench, OTHER_KEY)
        made = await bench.make(order(IMAGEN, 8))
        assert (end_of(made), made.stored) == ("not_authorised", {})
        assert await bench.jobs(IMAGEN) == [] and (await tokens(bench))[1] == 0


async def test_a_token_endpoint_that_is_down_is_tried_again_and_buys_nothing(tmp_path: Path) -> None:
    """As every connection that never came about: three tries within the deadline."""
    async with raw_server(saying(b"", [])) as server:
        gone = server.url
    async with simulated(tmp_path / "store") as bench:
        use_vertex(bench, tmp_path, token_uri=f"{gone}/token")
        made = await bench.make(order(IMAGEN))
        assert end_of(made) == "refused_connection" and worst(made.failures).as_error().retry
        assert [one.url for one in bench.sent] == [f"{gone}/token"] * 3


async def test_a_token_endpoint_that_never_answers_is_given_up_in_time(tmp_path: Path) -> None:
    """Fifty callers wait once and together, not one after the other, and nothing was bought."""
    asked: list[bytes] = []

    async def silent(peer: Peer) -> None:
        asked.append(await peer.read_request())
        await peer.gone()

    async with raw_server(silent) as server, upstream(server.url, tmp_path / "store") as bench:
        account = use_vertex(bench, tmp_path)
        with patch.object(google_token, "TOKEN_TIMEOUT_S", 0.3):
            began_s = time.monotonic()
            ends = await asyncio.gather(*(account.headers() for _ in range(50)), return_exceptions=True)
            assert 0.29 < time.monotonic() - began_s < 10, "one after the other it would be fifteen seconds"
        assert {end.outcome for end in ends if isinstance(end, Failure)} == {Outcome.REFUSED_CONNECTION}
        assert len(asked) == 1 and all(isinstance(end, Failure) for end in ends)


async def test_a_renewal_that_fails_does_not_matter_while_the_token_lives(tmp_path: Path) -> None:
    """The old one is used to its end, and after its end there is none; then a new one is asked for, and comes."""
    clock = Clock()
    async with simulated(tmp_path / "store") as bench:
        account = use_vertex(bench, tmp_path)
        await register(bench)
        with clock.patched():
            first = await account.headers()
            await register(bench, OTHER_KEY)
            for later_s in (3300, 3500, 3590):
                clock.later_s = later_s
                assert await account.headers() == first
            clock.later_s = 3601
            with pytest.raises(Failure, match="not_authorised"):
                await account.headers()
            await register(bench)
            assert await account.headers() != first


# --- the file ---------------------------------------------------------------------------------------------------------

BAD_FILES: list[tuple[dict[str, Any], str]] = [
    ({"private_key": None}, "private_key"),
    ({"client_email": None}, "client_email"),
    ({"token_uri": None}, "token_uri"),
    ({"project_id": None}, "project_id"),
    ({"private_key": "no key"}, "private_key"),
    ({"private_key": ""}, "private_key"),
    ({"private_key": 7}, "private_key"),
    ({"private_key": public_pem(KEY)}, "private_key"),
    ({"private_key": private_pem(ec.generate_private_key(ec.SECP256R1()))}, "private_key"),
    ({"client_email": 7}, "client_email"),
    ({"client_email": ""}, "client_email"),
    ({"token_uri": ["x"]}, "token_uri"),
    ({"project_id": {}}, "project_id"),
]


@pytest.mark.parametrize(("changes", "field"), BAD_FILES)
def test_a_file_that_is_no_account_names_its_field(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    """In one sentence, with the file's path, and without a character of the key."""

    async def work() -> str:
        async with upstream("http://127.0.0.1:9", tmp_path / "store") as bench:
            with pytest.raises(BadServiceAccount) as told:
                ServiceAccount(bench.outbound.client, account_file(tmp_path, bench.url, **changes))
            return str(told.value)

    message = run(work())
    assert message.startswith(f"{tmp_path / 'account.json'} is no service account's JSON: ")
    assert f"`{field}`" in message and "\n" not in message and "BEGIN" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "cannot be read"),
        (b"", "is no service account's JSON"),
        (b"{", "is no service account's JSON"),
        (b"[]", "is no service account's JSON"),
        (b"null", "is no service account's JSON"),
        (b"\xff\xfe", "is no service account's JSON"),
    ],
)
def test_a_file_that_is_no_json_object_is_a_sentence(tmp_path: Path, content: bytes | None, words: str) -> None:
    """Missing, empty, cut off, or something else."""
    path = tmp_path / "account.json"
    if content is not None:
        path.write_bytes(content)

    async def work() -> str:
        async with upstream("http://127.0.0.1:9", tmp_path / "store") as bench:
            with pytest.raises(BadServiceAccount) as told:
                ServiceAccount(bench.outbound.client, path)
            return str(told.value)

    message = run(work())
    assert message.startswith(str(path)) and words in message
