"""Making a token of an administrator, as Supabase Auth would issue it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

import jwt

from metering.ports import Right

Role = Literal["admin", "finance"]

SUBJECT = re.compile(r"[!-~]{1,128}")
"""A subject as the audit log keeps it; Supabase's are UUIDs."""


@dataclass(frozen=True, slots=True)
class Issuer:
    """What a token must say about its issuer and its audience; `name` is None if any issuer is accepted."""

    audience: str
    name: str | None


def mint(
    secret: str,
    issuer: Issuer,
    subject: str,
    role: Role,
    at: datetime,
    life: timedelta,
    rights: Sequence[Right] = (),
) -> str:
    """Make a token as Supabase Auth would issue it, with the shared secret."""
    claims = {
        "aud": issuer.audience,
        "sub": subject,
        "iat": int(at.timestamp()),
        "exp": int((at + life).timestamp()),
        "role": "authenticated",
        "app_metadata": {"role": role} | ({"rights": list(rights)} if rights else {}),
    }
    if issuer.name is not None:
        claims["iss"] = issuer.name
    return jwt.encode(claims, secret, algorithm="HS256")
