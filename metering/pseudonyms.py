"""Pseudonyms of end users: what an organisation calls its users stands in no event, only what this makes of it."""

import hmac
import re

from metering.ports import WrongField

DIGITS = 32
"""Hex digits of a pseudonym: 128 bits, so that no two end users of an organisation ever share one."""

_PSEUDONYM = re.compile(rf"[0-9a-f]{{{DIGITS}}}")
_NAME = re.compile(r"[^\0\ud800-\udfff]+")
"""What an order may name; a terminal can send bytes that are no text."""


class Pseudonyms:
    """Pseudonyms under one secret, the same for every gateway of a ledger.

    `user` and `safety_identifier` name the same kind of end user, so one value has one pseudonym in both: whoever is
    erased is erased as either. Another organisation's user of the same name has another one.
    """

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()

    def of(self, org_id: str, value: str) -> str:
        """Compute the pseudonym of an organisation's end user, whom it calls `value`."""
        return hmac.digest(self._secret, f"{org_id}\0{value}".encode(), "sha256").hex()[:DIGITS]

    def named(self, org_id: str, user: str, *, by_pseudonym: bool = False) -> str:
        """Return the pseudonym of an end user whom a person names, in clear or by the pseudonym. Raises WrongField."""
        if by_pseudonym:
            if not _PSEUDONYM.fullmatch(user):
                raise WrongField("user", f"a pseudonym has {DIGITS} hex digits")
            return user
        if not _NAME.fullmatch(user):
            raise WrongField("user", "must be as orders name the end user: a text, and not empty")
        return self.of(org_id, user)
