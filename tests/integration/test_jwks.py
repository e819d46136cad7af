"""Tokens by an issuer's public keys, over real HTTP: rotation, an issuer that is away, slow, or lies."""

import asyncio
import json
import time
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, HMACAlgorithm, RSAAlgorithm
from jwt.warnings import InsecureKeyLengthWarning
from starlette.datastructures import Headers

from config.settings import JWKS_FRESH_S, JWKS_PAUSE_S, JWKS_STALE_S, JWKS_TIMEOUT_S
from metering.clock import utc_now
from proxy.api.admin import jwks
from proxy.api.admin.jwks import Jwks
from proxy.api.admin.minting import Issuer, mint
from proxy.api.admin.tokens import Tokens
from proxy.errors import ApiError, Kind
from proxy.outbound.clients import Outbound
from proxy.outbound.hosts import ImageHosts
from tests.kits.raw_server import Peer, RawServer, raw_server

PrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey

OLD = ec.generate_private_key(ec.SECP256R1())
NEW = ec.generate_private_key(ec.SECP256R1())
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK = rsa.generate_private_key(public_exponent=65537, key_size=1024)


def public(key: PrivateKey, key_id: str, **more: Any) -> dict[str, Any]:
    """A key as a set lists it."""
    if isinstance(key, rsa.RSAPrivateKey):
        row = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    else:
        row = ECAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return {**row, "kid": key_id, **more}


def public_pem(key: PrivateKey) -> bytes:
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, form)


def signed(key: Any, key_id: str | None, algorithm: str = "ES256") -> str:
    now = int(time.time())
    claims = {
        "aud": "authenticated",
        "sub": "ana",
        "iat": now,
        "exp": now + 3600,
        "app_metadata": {"role": "admin"},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureKeyLengthWarning)  # that a key is weak is the point of one test
        return jwt.encode(claims, key, algorithm=algorithm, headers={"kid": key_id} if key_id is not None else None)


def reply(body: bytes, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


@dataclass
class Stage:
    """An issuer, what it says at this moment, and the gateway's reader of tokens with a clock that can be moved."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    raw: Callable[[Peer], Any] | None = None
    asked: int = 0
    later_s: float = 0.0
    tokens: Tokens = field(init=False)
    server: RawServer = field(init=False)

    async def script(self, peer: Peer) -> None:
        await peer.read_request()
        self.asked += 1
        if self.raw is not None:
            await self.raw(peer)
            return
        await peer.send(reply(json.dumps({"keys": self.keys}).encode(), more="connection: close\r\n"))

    def says(self, answer: bytes) -> None:
        """From now on, word for word."""

        async def send(peer: Peer) -> None:
            await peer.send(answer)

        self.raw = send

    async def verdict(self, token: str) -> Kind | str:
        """The actor's name, or the kind of refusal."""
        try:
            return (await self.tokens.actor(Headers({"authorization": f"Bearer {token}"}))).name
        except ApiError as error:
            return Kind.INTERNAL if "127.0.0.1" in error.message else error.kind


@asynccontextmanager
async def staged(*keys: dict[str, Any]) -> AsyncIterator[Stage]:
    stage = Stage(list(keys))
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + stage.later_s)
    outbound = Outbound(ImageHosts(""))
    try:
        with patch.object(jwks, "time", clock):
            async with raw_server(stage.script) as stage.server:
                address = f"{stage.server.url}/auth/v1/.well-known/jwks.json"
                stage.tokens = Tokens(Jwks(outbound.client, address), Issuer("authenticated", None))
                yield stage
    finally:
        await outbound.aclose()


async def test_the_keys_are_read_once_for_many_tokens() -> None:
    """Also for a hundred at the same moment; EC and RSA keys together, each with its one algorithm."""
    async with staged(public(OLD, "old", use="sig", alg="ES256"), public(RSA, "rsa")) as stage:
        mixed = [signed(OLD, "old"), signed(RSA, "rsa", "RS256")] * 50
        assert set(await asyncio.gather(*map(stage.verdict, mixed))) == {"jwt:ana"}
        assert stage.asked == 1


async def test_a_rotation_is_noticed_with_its_first_token() -> None:
    """New keys are read when a token names one; the old one is good until it is withdrawn, and minutes later not."""
    async with staged(public(OLD, "old")) as stage:
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        stage.keys.append(public(NEW, "new"))
        assert await stage.verdict(signed(NEW, "new")) is Kind.INVALID_TOKEN  # they were read just now
        stage.later_s += JWKS_PAUSE_S
        assert await stage.verdict(signed(NEW, "new")) == "jwt:ana"
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        stage.keys.pop(0)
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        stage.later_s += JWKS_FRESH_S + 1
        assert await stage.verdict(signed(OLD, "old")) is Kind.INVALID_TOKEN
        assert await stage.verdict(signed(NEW, "new")) == "jwt:ana"
        assert stage.asked == 3


async def test_made_up_key_ids_ask_the_issuer_no_more_often() -> None:
    """A hundred tokens with keys that nobody has: one reading in five seconds."""
    async with staged(public(OLD, "old")) as stage:
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        stage.later_s += JWKS_PAUSE_S
        made_up = [signed(NEW, f"k{number}") for number in range(100)]
        assert set(await asyncio.gather(*map(stage.verdict, made_up))) == {Kind.INVALID_TOKEN}
        assert [await stage.verdict(token) for token in made_up[:10]] == [Kind.INVALID_TOKEN] * 10
        assert stage.asked == 2


@pytest.mark.parametrize(
    "token",
    [
        signed(NEW, "old"),
        signed(OLD, None),
        signed(OLD, ""),
        signed(RSA, "old", "RS256"),
        signed(RSA, "rsa", "RS512"),
        signed(RSA, "rsa", "PS256"),
        signed(WEAK, "weak", "RS256"),
        signed(RSA, "for encryption", "RS256"),
        signed("x" * 64, "shared", "HS256"),
        jwt.encode({"sub": "ana"}, "", algorithm="none", headers={"kid": "old"}),
        mint("x" * 64, Issuer("authenticated", None), "ana", "admin", utc_now(), timedelta(hours=1)),
    ],
)
async def test_what_the_set_does_not_vouch_for_is_401(token: str) -> None:
    """Another key under a known id, no id, another algorithm, a weak key, one for encryption, a shared one."""
    keys = [
        public(OLD, "old"),
        public(RSA, "rsa", alg="RS256"),
        public(WEAK, "weak"),
        public(RSA, "for encryption", use="enc"),
        {"kty": "oct", "k": "eHh4" * 21 + "eA", "kid": "shared"},
    ]
    async with staged(*keys) as stage:
        assert await stage.verdict(token) is Kind.INVALID_TOKEN


@pytest.mark.parametrize("key", [OLD, RSA])
async def test_a_public_key_is_no_shared_secret(key: PrivateKey) -> None:
    """HS256 with the public key's PEM as the secret: the oldest trick against readers that trust the header."""
    secret = public_pem(key).decode()
    with patch.object(HMACAlgorithm, "prepare_key", lambda _, text: text.encode()):
        token = signed(secret, "k", "HS256")
    async with staged(public(key, "k")) as stage:
        assert await stage.verdict(token) is Kind.INVALID_TOKEN


async def _slow(peer: Peer) -> None:
    await asyncio.sleep(60)


async def _resets(peer: Peer) -> None:
    peer.reset()


LIES = {
    "500": reply(b"{}", "500 Internal Server Error"),
    "a redirect": reply(b"", "302 Found", "location: http://127.0.0.1:1/\r\n"),
    "no JSON": reply(b"<html>"),
    "no set": reply(b"[]"),
    "no list": reply(b'{"keys": {}}'),
    "2 MB": reply(b'{"keys": [], "x": "' + b"x" * 2_000_000 + b'"}'),
    "broken off": reply(b'{"keys": []}')[:-3],
    "no HTTP": b"hello\r\n\r\n",
}


@pytest.mark.parametrize("lie", LIES)
async def test_an_issuer_that_cannot_be_understood_is_503(lie: str) -> None:
    """Nobody is let in and nobody is called a stranger; with keys from before, their owners go on for an hour."""
    async with staged(public(OLD, "old")) as stage:
        stage.says(LIES[lie])
        assert await stage.verdict(signed(OLD, "old")) is Kind.UNAVAILABLE
        stage.raw, stage.later_s = None, stage.later_s + JWKS_PAUSE_S
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        stage.says(LIES[lie])
        stage.later_s += JWKS_FRESH_S + 1
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        assert await stage.verdict(signed(NEW, "new")) is Kind.UNAVAILABLE
        asked = stage.asked
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana" and stage.asked == asked
        stage.later_s += JWKS_STALE_S - JWKS_FRESH_S
        assert await stage.verdict(signed(OLD, "old")) is Kind.UNAVAILABLE
        stage.raw, stage.later_s = None, stage.later_s + JWKS_PAUSE_S
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"


@pytest.mark.parametrize("script", [_slow, _resets])
async def test_an_issuer_that_does_not_answer_costs_one_wait(script: Callable[[Peer], Any]) -> None:
    """It takes three seconds at most, for all together; then the old keys are used at once."""
    async with staged(public(OLD, "old")) as stage:
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        stage.raw = script
        stage.later_s += JWKS_FRESH_S + 1
        began = time.monotonic()
        together = [stage.verdict(signed(OLD, "old")) for _ in range(20)]
        assert set(await asyncio.gather(*together)) == {"jwt:ana"}
        assert time.monotonic() - began < 2 * JWKS_TIMEOUT_S
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        assert stage.asked == 2


async def test_rows_that_nobody_can_read_are_passed_over() -> None:
    """A set may list kinds of key that are made later, and rows that are wrong; the others are good."""
    odd: list[Any] = [
        None,
        7,
        {},
        {"kid": 7, "kty": "EC"},
        {"kid": "a", "kty": ["EC"]},
        {"kid": "b", "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA"},
        {"kid": "c", "kty": "EC", "crv": "P-256", "x": 7, "y": None},
        {"kid": "d", "kty": "RSA", "n": "!", "e": []},
        {"kid": "e", "kty": "RSA"},
        {"kid": "f", "kty": "OKP", "crv": "Ed25519", "x": "AA"},
        {"kid": "g", "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kid": "h", "kty": "RSA", "n": "AQAB", "e": "AQAB", "oth": 1, "d": 2},
    ]
    async with staged(*odd, public(OLD, "old")) as stage:
        assert await stage.verdict(signed(OLD, "old")) == "jwt:ana"
        assert await stage.verdict(signed(OLD, "d")) is Kind.INVALID_TOKEN
