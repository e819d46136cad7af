"""Whose token is good: by the shared secret, with the algorithm pinned, and every claim that Supabase's tokens have."""

import base64
import hashlib
import hmac
import json
import time
from datetime import timedelta
from typing import Any, get_args

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from starlette.datastructures import Headers

from metering.clock import utc_now
from metering.ports import Right
from proxy.api.admin.endpoint import AdminEndpoint
from proxy.api.admin.minting import Issuer, mint
from proxy.api.admin.tokens import Actor, Secret, Tokens, check_right, check_role
from proxy.errors import ApiError, Kind
from tests.conftest import run

SECRET = "a secret of the tests, " * 3
ISSUER = Issuer("authenticated", "https://x.supabase.co/auth/v1")
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
PRIVATE = RSA.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()
PUBLIC = (
    RSA.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
)


def claims(**changes: Any) -> dict[str, Any]:
    """Claims that Supabase puts into an administrator's token; a change to None removes a claim."""
    now = int(time.time())
    whole = {
        "iss": ISSUER.name,
        "aud": "authenticated",
        "sub": "6f9619ff-8b86-d011-b42d-00c04fc964ff",
        "iat": now,
        "exp": now + 3600,
        "role": "authenticated",
        "email": "ana@example.com",
        "app_metadata": {"provider": "email", "role": "admin"},
        "user_metadata": {},
        "aal": "aal1",
        "session_id": "6f9619ff-8b86-d011-b42d-00c04fc964fe",
    }
    return {name: value for name, value in (whole | changes).items() if value is not None}


def signed(key: str = SECRET, algorithm: str = "HS256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers=headers)


def by_hand(header: bytes, payload: bytes, key: bytes = SECRET.encode()) -> str:
    """HS256 over whatever bytes: what a library would not write."""
    parts = b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in (header, payload))
    signature = base64.urlsafe_b64encode(hmac.digest(key, parts, hashlib.sha256)).rstrip(b"=")
    return (parts + b"." + signature).decode()


def actor_of(token: str, issuer: Issuer = ISSUER, keys: Secret | None = None) -> Actor:
    headers = Headers({"authorization": f"Bearer {token}"})
    return run(Tokens(keys or Secret(SECRET), issuer).actor(headers))


def refusal(token: str, issuer: Issuer = ISSUER, keys: Secret | None = None) -> ApiError:
    with pytest.raises(ApiError) as caught:
        actor_of(token, issuer, keys)
    assert caught.value.kind is Kind.INVALID_TOKEN
    assert caught.value.headers == {"www-authenticate": "Bearer"}
    return caught.value


def test_a_token_of_supabase_names_its_actor() -> None:
    """By its subject; its role is that of `app_metadata`, which users cannot write, not of the database."""
    assert actor_of(signed()) == Actor("jwt:6f9619ff-8b86-d011-b42d-00c04fc964ff", "admin")
    assert actor_of(signed(aud=["authenticated", "other"])).role == "admin"
    assert actor_of(signed(iss=None), Issuer("authenticated", None)).role == "admin"


def test_a_token_that_we_mint_is_good_for_as_long_as_it_says() -> None:
    """The command's and the demo's."""
    token = mint(SECRET, ISSUER, "ana", "finance", utc_now(), timedelta(hours=1))
    assert actor_of(token) == Actor("jwt:ana", "finance")
    assert "expired" in refusal(mint(SECRET, ISSUER, "ana", "admin", utc_now(), timedelta(seconds=-6))).message


PAST, FUTURE = 1_000_000_000, 4_000_000_000
"""Long ago, and long ahead: what is counted from the moment at which tests are collected is another thing by the end of
a long run."""


@pytest.mark.parametrize(
    "changes",
    [
        {"aud": "anon"},
        {"aud": None},
        {"aud": ["a", "b"]},
        {"aud": 7},
        {"iss": "https://y.supabase.co/auth/v1"},
        {"iss": None},
        {"sub": None},
        {"sub": 7},
        {"sub": ""},
        {"sub": "ana\x00"},
        {"sub": "x" * 129},
        {"exp": None},
        {"exp": PAST},
        {"exp": "never"},
        {"nbf": FUTURE},
        {"iat": FUTURE},
    ],
)
def test_a_claim_that_is_wrong_is_401(changes: dict[str, Any]) -> None:
    """Audience, issuer, subject, end and beginning; the message says nothing of what the token says."""
    message = refusal(by_hand(b'{"alg":"HS256","typ":"JWT"}', json.dumps(claims(**changes)).encode())).message
    assert not any(str(value) in message for value in changes.values() if value)


def test_clocks_may_differ_by_seconds() -> None:
    """Five of them, both ways."""
    assert actor_of(signed(exp=int(time.time()) - 2, iat=int(time.time()) + 2)).role == "admin"


@pytest.mark.parametrize(
    "token",
    [
        signed("", "none"),
        signed("another secret, which is longer than 32 bytes"),
        signed(algorithm="HS512"),
        signed(algorithm="HS384"),
        signed(PRIVATE, "RS256"),
        by_hand(b'{"alg":"HS256"}', json.dumps(claims()).encode(), PUBLIC.encode()),
        by_hand(b'{"alg":"none"}', json.dumps(claims()).encode()),
        by_hand(b'{"alg":"RS256"}', json.dumps(claims()).encode()),
        by_hand(b"{}", json.dumps(claims()).encode()),
        signed().rpartition(".")[0] + ".",
        signed()[:-2],
    ],
)
def test_no_other_algorithm_and_no_other_key(token: str) -> None:
    """`none`, longer hashes of the right secret, RSA, a signature that was cut: all are the same 401."""
    assert refusal(token).message == "This is not a token of this gateway's administrators."


@pytest.mark.parametrize(
    "token",
    [
        "x",
        "a.b.c",
        "ñ",
        ".." * 2_000,
        "ghub_sk_live_" + "0" * 32,
        by_hand(b"[]", b"{}"),
        by_hand(b"\xff", b"{}"),
        by_hand(b'{"alg":"HS256","kid":7}', b"{}"),
        by_hand(b'{"alg":"HS256","b64":false,"crit":["b64"]}', json.dumps(claims()).encode()),
        by_hand(b'{"alg":"HS256","crit":["x"]}', json.dumps(claims()).encode()),
        by_hand(b"[" * 5_000, b"{}"),
        by_hand(b'{"alg":"HS256"}', b"[" * 5_000),
        by_hand(b'{"alg":"HS256"}', b"null"),
        by_hand(b'{"alg":"HS256"}', b'{"sub":"a","aud":"authenticated","exp":Infinity}'),
        by_hand(b'{"alg":"HS256"}', b'{"sub":"a","aud":"authenticated","exp":NaN}'),
        by_hand(b'{"alg":"HS256"}', b'{"sub":"a","aud":"authenticated","exp":1e400}'),
        signed(padding="x" * 9_000),
    ],
)
def test_garbage_is_401(token: str) -> None:
    """Whatever its JSON is; a token of more than 8 KiB is not even read."""
    assert refusal(token).message == "This is not a token of this gateway's administrators."


@pytest.mark.parametrize("value", ["", "Bearer", "Bearer  ", "Basic YTpi"])
def test_a_request_without_a_token_is_told_how_to_send_one(value: str) -> None:
    """It is a 401, and says in which header."""
    with pytest.raises(ApiError, match="Authorization: Bearer") as caught:
        run(Tokens(Secret(SECRET), ISSUER).actor(Headers({"authorization": value})))
    assert caught.value.kind is Kind.INVALID_TOKEN


@pytest.mark.parametrize(
    "metadata",
    [None, {}, {"role": "Admin"}, {"role": ["admin"]}, {"role": "finance"}, {"role": None}, "admin", ["admin"], 1],
)
def test_only_the_role_of_the_app_metadata_counts(metadata: Any) -> None:
    """Not the database's `role`, not what users write about themselves: 403."""
    token = signed(app_metadata=metadata, role="admin", user_metadata={"role": "admin"})
    with pytest.raises(ApiError) as caught:
        check_role(actor_of(token), (AdminEndpoint.ROLE,))
    assert caught.value.kind is Kind.NOT_ALLOWED and "`app_metadata.role` is admin" in caught.value.message


def test_a_secret_that_looks_like_a_public_key_verifies_nothing() -> None:
    """Somebody has configured a PEM as the secret: everybody knows it, so nobody may sign with it."""
    token = by_hand(b'{"alg":"HS256"}', json.dumps(claims()).encode(), PUBLIC.encode())
    refusal(token, keys=Secret(PUBLIC))


@pytest.mark.parametrize(
    ("rights", "found"),
    [
        (["close", "enter"], {"close", "enter"}),
        (["close", 1, None, ["enter"]], {"close"}),
        ("close", set()),
        ({"close": True}, set()),
        (None, set()),
    ],
)
def test_rights_are_a_list_of_names(rights: Any, found: set[str]) -> None:
    """Whatever else the claim holds gives none; rights outside `app_metadata`, which users may write, give none."""
    actor = actor_of(signed(app_metadata={"role": "finance", "rights": rights}, rights=["enter"]))
    assert actor.rights == found
    for right in get_args(Right):
        if right in found:
            check_right(actor, right)
            continue
        with pytest.raises(ApiError, match=f"has {right} in its `app_metadata.rights`") as caught:
            check_right(actor, right)
        assert caught.value.kind is Kind.NOT_ALLOWED
