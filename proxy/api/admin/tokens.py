"""Who an administrator is: a JWT as Supabase Auth issues them → subject and role."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

import jwt
from starlette.datastructures import Headers

from config.settings import JWT_LEEWAY_S, JWT_MAX_BYTES
from proxy.api.admin.jwks import Jwks, JwksAway
from proxy.errors import ApiError, Kind

Role = Literal["admin", "finance"]

JWKS_RETRY_S = 5.0
"""A hint: the next reading of the issuer's keys."""

SUBJECT = re.compile(r"[!-~]{1,128}")
"""As the audit log keeps it; Supabase's are UUIDs."""

_MISTAKES = (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError)
"""What PyJWT raises for a token that is none: its own errors, and those of odd numbers and deeply nested JSON."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who acts, as the audit log and the log name them; `role` is whatever the token says."""

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class Issuer:
    """What a token must say of where it comes from, and for whom it is; `name` is None where any issuer will do."""

    audience: str
    name: str | None


class Secret:
    """A shared secret: HS256 and nothing else."""

    def __init__(self, secret: str) -> None:
        self._secret = secret

    async def key(self, key_id: str | None) -> tuple[str, str]:
        """The secret, whatever the token calls it."""
        return self._secret, "HS256"


class Tokens:
    """Reads tokens. Which algorithm is right is a matter of the settings' kind of key, never of the token's header."""

    def __init__(self, keys: Secret | Jwks, issuer: Issuer) -> None:
        self._keys = keys
        self._issuer = issuer

    async def actor(self, headers: Headers) -> Actor:
        """Who sent these headers. Raises ApiError 401, or 503 where nobody can say."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        token = token.strip()
        if scheme.lower() != "bearer" or not token:
            raise _refusal("Send an administrator's token as `Authorization: Bearer …`.")
        claims = await self._claims(token)
        subject, metadata = claims["sub"], claims.get("app_metadata")
        if not SUBJECT.fullmatch(subject):
            raise _refusal("This token's `sub` is not 1 to 128 visible ASCII characters.")
        role = metadata.get("role") if isinstance(metadata, dict) else None
        return Actor(f"jwt:{subject}", role if isinstance(role, str) else "")

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
    """Raises ApiError 403."""
    if actor.role not in allowed:
        message = f"This takes a token whose `app_metadata.role` is {' or '.join(sorted(allowed))}."
        raise ApiError(Kind.NOT_ALLOWED, message)


def mint(secret: str, issuer: Issuer, subject: str, role: Role, at: datetime, life: timedelta) -> str:
    """A token as Supabase Auth would issue it, by the shared secret."""
    claims = {
        "aud": issuer.audience,
        "sub": subject,
        "iat": int(at.timestamp()),
        "exp": int((at + life).timestamp()),
        "role": "authenticated",
        "app_metadata": {"role": role},
    }
    if issuer.name is not None:
        claims["iss"] = issuer.name
    return jwt.encode(claims, secret, algorithm="HS256")


def _refusal(message: str) -> ApiError:
    return ApiError(Kind.INVALID_TOKEN, message, headers={"www-authenticate": "Bearer"})
