"""Signatures of webhooks (standardwebhooks.com): HMAC-SHA256 with each secret of the organisation."""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from datetime import datetime

PREFIX = "whsec_"

SECRET_BYTES = 32
"""Of the 24 to 64 that the standard takes: as long as the hash."""


def new_secret() -> str:
    """Make a secret, as its owner is shown it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signed_headers(delivery_id: str, at: datetime, body: bytes, keys: Sequence[str]) -> dict[str, str]:
    """Build the headers of an attempt at this moment: a signature for each of the secrets `keys`, the first first.

    Its time-stamp is that of the attempt: receivers refuse one that is older than minutes, and the event's own stands
    in the body.
    """
    timestamp = str(int(at.timestamp()))
    content = b".".join((delivery_id.encode(), timestamp.encode(), body))
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(f"v1,{_signature(key, content)}" for key in keys),
    }


def _signature(key: str, content: bytes) -> str:
    digest = hmac.digest(base64.b64decode(key.removeprefix(PREFIX)), content, hashlib.sha256)
    return base64.b64encode(digest).decode()
