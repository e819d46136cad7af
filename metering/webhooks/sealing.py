"""Secrets at rest: sealed by AES-256-GCM with GHUB_SECRETS_KEY, each bound to its organisation."""

import base64
import binascii
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEY_BYTES = 32
_NONCE_BYTES = 12
_FORM = "must be 32 bytes in base64 (`openssl rand -base64 32`), or several with commas: the first seals, all open"


class CannotOpen(Exception):
    """A secret was sealed with another GHUB_SECRETS_KEY, or was changed."""


class SecretsKey:
    """The keys of GHUB_SECRETS_KEY. The first seals; what another has sealed is still opened. Raises ValueError."""

    def __init__(self, text: str) -> None:
        self._keys = [AESGCM(_key(one)) for one in text.split(",")]

    def seal(self, secret: str, org_id: str) -> str:
        """Encrypt an organisation's secret."""
        nonce = os.urandom(_NONCE_BYTES)
        return base64.b64encode(nonce + self._keys[0].encrypt(nonce, secret.encode(), org_id.encode())).decode()

    def open(self, sealed: str, org_id: str) -> str:
        """Decrypt what was sealed for this organisation. Raises CannotOpen."""
        data = base64.b64decode(sealed)
        for key in self._keys:
            try:
                return key.decrypt(data[:_NONCE_BYTES], data[_NONCE_BYTES:], org_id.encode()).decode()
            except InvalidTag:
                continue
        raise CannotOpen(CannotOpen.__doc__)


def _key(text: str) -> bytes:
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except binascii.Error:
        raise ValueError(_FORM) from None
    if len(key) != KEY_BYTES:
        raise ValueError(_FORM)
    return key
