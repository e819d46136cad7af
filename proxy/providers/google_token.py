"""Who pays Google: an API key, or a service account's file → access tokens, renewed before they end."""

import asyncio
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2
import jwt
import orjson

from proxy.outcomes import Failure, Outcome
from proxy.upstream import UNPACKED, read_document

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"

ASSERTION_S = 3600
"""The longest life that Google accepts for an assertion."""

RENEW_BEFORE_S = 300.0
"""A token is renewed this long before it ends, so that none ends on its way; shorter-lived ones at half their life."""

TOKEN_TIMEOUT_S = 10.0
TOKEN_BYTES = 16 * 1024

_TOKEN = re.compile(r"[!-~]+")


class Credentials(Protocol):
    """Who pays: the headers that say so."""

    async def headers(self) -> dict[str, str]: ...

    def refused(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key of the Gemini API."""

    key: str

    async def headers(self) -> dict[str, str]:
        """The key's header."""
        return {"x-goog-api-key": self.key}

    def refused(self) -> None:
        """A key is not renewed by itself."""


class BadServiceAccount(Exception):
    """The service account's file cannot be read, or is none; the message is a sentence."""


class ServiceAccount:
    """A service account's JSON file → access tokens, one request for all who wait, renewed before they end."""

    def __init__(self, client: httpx2.AsyncClient, path: Path) -> None:
        self._client = client
        account = _read_account(path)
        self._email, self._token_url = account["client_email"], account["token_uri"]
        self._key, self.project = account["private_key"], account["project_id"]
        self._renewal: asyncio.Task[Failure | None] | None = None
        self._token = ""
        self._renew_at_s = self._ends_s = 0.0

    async def headers(self) -> dict[str, str]:
        """The token's header. Raises Failure where none is to be had; nothing was bought then."""
        if time.monotonic() >= self._renew_at_s:
            if self._renewal is None or self._renewal.done():
                self._renewal = asyncio.create_task(self._renew())
            # Whoever is cancelled while waiting leaves the request to the others.
            failure = await asyncio.shield(self._renewal)
            if failure is not None and time.monotonic() >= self._ends_s:
                raise Failure(failure.outcome, failure.detail)
        return {"authorization": f"Bearer {self._token}"}

    def refused(self) -> None:
        """The token was not accepted, whatever life it was given: the next call asks for another."""
        self._renew_at_s = self._ends_s = 0.0

    async def _renew(self) -> Failure | None:
        now_s = int(time.time())
        claims = {"iss": self._email, "scope": SCOPE, "aud": self._token_url, "iat": now_s, "exp": now_s + ASSERTION_S}
        assertion = jwt.encode(claims, self._key, algorithm="RS256")
        form = {"grant_type": GRANT, "assertion": assertion}
        try:
            async with (
                asyncio.timeout(TOKEN_TIMEOUT_S),
                self._client.stream("POST", self._token_url, data=form, headers=UNPACKED) as response,
            ):
                body = await read_document(response, TOKEN_BYTES)
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            return Failure(Outcome.REFUSED_CONNECTION, f"token: {type(error).__name__}")
        except Failure as failure:
            return Failure(Outcome.NOT_AUTHORISED, f"token: {failure}")
        if response.status_code != 200:
            return Failure(Outcome.NOT_AUTHORISED, f"token: status {response.status_code}")
        try:
            reply = orjson.loads(body)
            token, life_s = reply["access_token"], reply["expires_in"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            token = life_s = None
        if not isinstance(token, str) or not _TOKEN.fullmatch(token) or type(life_s) is not int or life_s <= 0:
            return Failure(Outcome.NOT_AUTHORISED, "token: no token in the reply")
        given_s = time.monotonic()
        self._token, self._ends_s = token, given_s + life_s
        self._renew_at_s = given_s + max(life_s - RENEW_BEFORE_S, life_s / 2)
        return None


def _read_account(path: Path) -> dict[str, str]:
    """The fields of a service account's file that are needed. Raises BadServiceAccount."""
    try:
        account = orjson.loads(path.read_bytes())
    except OSError as error:
        raise BadServiceAccount(f"{path} cannot be read: {error.strerror}") from None
    except orjson.JSONDecodeError:
        account = None
    wrong = f"{path} is no service account's JSON:"
    if not isinstance(account, dict):
        raise BadServiceAccount(f"{wrong} it holds no JSON object")
    for name in ("client_email", "token_uri", "private_key", "project_id"):
        if not isinstance(account.get(name), str) or not account[name]:
            raise BadServiceAccount(f"{wrong} `{name}` is missing, or no text")
    try:
        jwt.encode({}, account["private_key"], algorithm="RS256")
    except (ValueError, TypeError, AttributeError, jwt.PyJWTError):
        raise BadServiceAccount(f"{wrong} `private_key` is no RSA key in PEM") from None
    return account
