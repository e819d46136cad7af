"""An issuer's public keys from its JWKS address: cached, read again when they rotate, with limits on size and time."""

import asyncio
import time

import httpx2
import jwt
import orjson
import structlog
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from config.settings import JWKS_BYTES, JWKS_FRESH_S, JWKS_PAUSE_S, JWKS_STALE_S, JWKS_TIMEOUT_S

log = structlog.get_logger(__name__)

ALGORITHMS = {"RSA": "RS256", "EC": "ES256"}
"""The algorithm by a key's type: what a token says about itself chooses nothing. An EC key is of P-256."""

SHORTEST_RSA_BITS = 2048

PublicKey = RSAPublicKey | EllipticCurvePublicKey


class JwksAway(Exception):
    """No keys are known, or they are too old, and the issuer does not give them."""


class Jwks:
    """The keys of one address. `client` follows no redirects."""

    def __init__(self, client: httpx2.AsyncClient, url: str) -> None:
        self._client = client
        self._url = url
        self._keys: dict[str, tuple[PublicKey, str]] = {}
        self._read_s = self._tried_s = float("-inf")
        self._reading: asyncio.Task[None] | None = None

    async def key(self, key_id: str | None) -> tuple[PublicKey, str] | None:
        """Find a key and its one algorithm; None if the issuer has no such key. Raises JwksAway."""
        if key_id not in self._keys or self._age_s > JWKS_FRESH_S:
            await self._read_again()
        known = self._keys.get(key_id or "")
        if self._age_s > JWKS_STALE_S or (known is None and self._read_s < self._tried_s):
            raise JwksAway
        return known

    @property
    def _age_s(self) -> float:
        return time.monotonic() - self._read_s

    async def _read_again(self) -> None:
        """Read the keys once for all callers that wait, and not soon after the last reading."""
        if self._reading is None or self._reading.done():
            if time.monotonic() - self._tried_s < JWKS_PAUSE_S:
                return
            self._reading = asyncio.create_task(self._read())
        await asyncio.shield(self._reading)  # if one caller is cancelled, it goes on for the others

    async def _read(self) -> None:
        began_s = time.monotonic()
        try:
            self._keys = _keys_of(await self._document())
            self._read_s = self._tried_s = began_s
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError, ValueError) as error:
            self._tried_s = time.monotonic()
            log.warning("jwks_not_read", error=type(error).__name__)

    async def _document(self) -> bytes:
        body = bytearray()
        headers = {"accept-encoding": "identity"}
        async with (
            asyncio.timeout(JWKS_TIMEOUT_S),
            self._client.stream("GET", self._url, headers=headers) as response,
        ):
            if response.status_code != httpx2.codes.OK:
                raise ValueError("status")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > JWKS_BYTES:
                    raise ValueError("too large")
        return bytes(body)


def _keys_of(document: bytes) -> dict[str, tuple[PublicKey, str]]:
    """Read by id the keys that sign and that we can use; ignore the others. Raises ValueError if it is no key set."""
    found = orjson.loads(document)
    if not isinstance(found, dict) or not isinstance(found.get("keys"), list):
        raise ValueError("no key set")
    keys: dict[str, tuple[PublicKey, str]] = {}
    for row in found["keys"]:
        if not isinstance(row, dict) or not isinstance(row.get("kid"), str) or row.get("use", "sig") != "sig":
            continue
        algorithm = ALGORITHMS.get(str(row.get("kty")), "")
        if not algorithm or row.get("alg", algorithm) != algorithm or row.get("crv", "P-256") != "P-256":
            continue
        try:
            key = jwt.PyJWK(row, algorithm).key
        except jwt.PyJWTError:
            continue
        if isinstance(key, EllipticCurvePublicKey) or (
            isinstance(key, RSAPublicKey) and key.key_size >= SHORTEST_RSA_BITS
        ):
            keys[row["kid"]] = key, algorithm
    return keys
