"""The identity of an administrator: a JWT as Supabase Auth issues it → subject and role."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import jwt
from starlette.datastructures import Headers

from config.settings import JWT_LEEWAY_S, JWT_MAX_BYTES
from metering.ports import Right
from proxy.api.admin.jwks import Jwks, JwksAway
from proxy.api.admin.minting import SUBJECT, Issuer, Role
from proxy.api.auth import bearer_of
from proxy.errors import ApiError, Kind

JWKS_RETRY_S = 5.0
"""A hint: the next reading of the issuer's keys."""

_MISTAKES = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)
"""What PyJWT raises for an invalid token: its own errors, and those of odd numbers and deeply nested JSON."""


@dataclass(frozen=True, slots=True)
class Actor:
    """The person or service that acts, as the audit log names it; role and rights are what the token says."""

    name: str
    role: str
    rights: frozenset[str] = frozenset()


class Secret:
    """A shared secret, for HS256 only."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def key(self, key_id: str | None) -> tuple[str, str]:
        """Return the secret, whatever key id the token has."""
        return self._secret, "HS256"


class Tokens:
    """Reads tokens. The kind of key in the settings decides the algorithm, never the token's header."""

    def __init__(self, keys: Secret | Jwks, issuer: Issuer) -> None:
        self._keys = keys
        self._issuer = issuer

    async def actor(self, headers: Headers) -> Actor:
        """Identify who sent these headers. Raises ApiError 401, or 503 if the issuer's keys cannot be read."""
        token = bearer_of(headers)
        if not token:
            raise _refusal("Send an administrator's token as `Authorization: Bearer …`.")
        claims = await self._claims(token)
        subject, metadata = claims["sub"], claims.get("app_metadata")
        if not SUBJECT.fullmatch(subject):
            raise _refusal("This token's `sub` is not 1 to 128 visible ASCII characters.")
        role, rights = (metadata.get("role"), metadata.get("rights")) if isinstance(metadata, dict) else (None, None)
        named = [one for one in rights if isinstance(one, str)] if isinstance(rights, list) else []
        return Actor(f"jwt:{subject}", role if isinstance(role, str) else "", frozenset(named))

    async def _claims(self, token: str) -> dict[str, Any]:
        wrong = _refusal("This is not a token of this gateway's administrators.")
        if len(token) > JWT_MAX_BYTES:
            raise wrong
        try:
            found = await self._keys.key(jwt.get_unverified_header(token).get("kid"))
            if found is None:
                raise wrong
            key, algorithm = found
            return jwt.decode(
                token,
                key,
                algorithms=[algorithm],
                audience=self._issuer.audience,
                issuer=self._issuer.name,
                leeway=JWT_LEEWAY_S,
                options={"require": ["exp", "aud", "sub"]},
            )
        except JwksAway:
            message = "The gateway cannot read the keys of its administrators' issuer right now; nothing was done."
            raise ApiError(Kind.UNAVAILABLE, message, retry_after_s=JWKS_RETRY_S) from None
        except jwt.ExpiredSignatureError:
            raise _refusal("This token has expired; sign in again.") from None
        except _MISTAKES:
            raise wrong from None


def check_role(actor: Actor, allowed: Collection[Role]) -> None:
    """Check that the actor has an allowed role. Raises ApiError 403."""
    if actor.role not in allowed:
        message = f"This takes a token whose `app_metadata.role` is {' or '.join(sorted(allowed))}."
        raise ApiError(Kind.NOT_ALLOWED, message)


def check_right(actor: Actor, right: Right) -> None:
    """Check that the actor has a right. Raises ApiError 403."""
    if right not in actor.rights:
        raise ApiError(Kind.NOT_ALLOWED, f"This takes a token that has {right} in its `app_metadata.rights`.")


def _refusal(message: str) -> ApiError:
    return ApiError(Kind.INVALID_TOKEN, message, headers={"www-authenticate": "Bearer"})
