"""Vertex's OAuth: POST /vertex/token exchanges a service account's signed assertion for an access token.
PUT /_sim/vertex sets the account whose signature is valid, GET says how often a token was requested.
"""

import secrets
import time
from typing import Any
from urllib.parse import parse_qs

import jwt
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from simulator.answers import json_answer
from simulator.behaviour import is_number

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:jwt-bearer"
AUDIENCE = "https://oauth2.googleapis.com/token"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
ASSERTION_S_MAX = 3600
LEEWAY_S = 10
LIFETIME_S = 3600.0
TOKENS_MAX = 1_000  # the oldest is forgotten


class GrantError(Exception):
    """No token; `code` is OAuth's code for the reason."""

    def __init__(self, code: str, description: str) -> None:
        super().__init__(description)
        self.code = code


class ServiceAccount:
    """The only known account, and the tokens that it has received."""

    def __init__(self) -> None:
        self._client_email: str | None = None
        self._public_key = ""
        self._lifetime_s = LIFETIME_S
        self._ends: dict[str, float] = {}  # by token, on the monotonic clock
        self._requests = self._granted = 0

    def routes(self) -> list[Route]:
        return [
            Route("/vertex/token", self.token, methods=["POST"]),
            Route("/_sim/vertex", self.show, methods=["GET"]),
            Route("/_sim/vertex", self.register, methods=["PUT"]),
        ]

    def knows(self, token: str) -> bool:
        """True if `token` was issued and has not expired."""
        return time.monotonic() < self._ends.get(token, 0)

    async def token(self, request: Request) -> Response:
        self._requests += 1
        form = parse_qs((await request.body()).decode("ascii", "replace"))
        try:
            if form.get("grant_type") != [GRANT_TYPE]:
                raise GrantError("unsupported_grant_type", f"Invalid grant_type: {form.get('grant_type')}")
            self._check(form.get("assertion", [""])[0], str(request.url))
        except GrantError as error:
            return json_answer({"error": error.code, "error_description": str(error)}, 400)
        self._granted += 1
        token = f"ya29.{secrets.token_urlsafe(32)}"
        self._ends[token] = time.monotonic() + self._lifetime_s
        while len(self._ends) > TOKENS_MAX:
            del self._ends[next(iter(self._ends))]
        return json_answer({"access_token": token, "expires_in": int(self._lifetime_s), "token_type": "Bearer"})

    async def show(self, request: Request) -> Response:
        return json_answer(self._state())

    async def register(self, request: Request) -> Response:
        """Set another account, another lifetime, or both. All tokens become void and the counts start again."""
        try:
            wish = orjson.loads(await request.body())
        except orjson.JSONDecodeError:
            wish = None
        names = {"client_email", "public_key", "lifetime_s"}
        if not isinstance(wish, dict) or not {"client_email", "public_key"} <= set(wish) <= names:
            return json_answer({"error": "Send client_email, public_key and, if you like, lifetime_s as JSON."}, 400)
        if not isinstance(wish["client_email"], str) or not isinstance(wish["public_key"], str):
            return json_answer({"error": "client_email and public_key must be texts."}, 400)
        lifetime_s = wish.get("lifetime_s", LIFETIME_S)
        if not is_number(lifetime_s, 0, LIFETIME_S, float):
            return json_answer({"error": f"lifetime_s must be a number from 0 to {LIFETIME_S:g}."}, 400)
        self._client_email, self._public_key = wish["client_email"], wish["public_key"]
        self._lifetime_s = lifetime_s
        self._ends.clear()
        self._requests = self._granted = 0
        return json_answer(self._state())

    def _state(self) -> dict[str, Any]:
        return {
            "client_email": self._client_email,
            "lifetime_s": self._lifetime_s,
            "token_requests": self._requests,
            "tokens_granted": self._granted,
        }

    def _check(self, assertion: str, own_url: str) -> None:
        """Raise GrantError unless the account has signed `assertion` and its claims are allowed."""
        if self._client_email is None:
            raise GrantError("invalid_grant", "Invalid grant: account not found")
        try:
            claims = jwt.decode(
                assertion,
                self._public_key,
                algorithms=["RS256"],
                audience=[AUDIENCE, own_url],
                issuer=self._client_email,
                leeway=LEEWAY_S,
                options={"require": ["iss", "scope", "aud", "iat", "exp"]},
            )
        except jwt.PyJWTError as error:
            raise GrantError("invalid_grant", f"Invalid JWT: {error}") from None
        if not all(is_number(claims[name], 0, 2**53, float) for name in ("exp", "iat")):
            raise GrantError("invalid_grant", "Invalid JWT: exp and iat must be numbers")
        if not 0 < claims["exp"] - claims["iat"] <= ASSERTION_S_MAX:
            raise GrantError("invalid_grant", "Invalid JWT: exp must be at most an hour after iat")
        if not isinstance(claims["scope"], str) or SCOPE not in claims["scope"].split():
            raise GrantError("invalid_scope", f"Invalid OAuth scope: {SCOPE} is needed")
