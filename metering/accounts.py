"""Organisations, keys, limits and credits: written to SQL first, then projected to Redis."""

import hashlib
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args
from uuid import uuid4

import structlog
from redis.exceptions import RedisError

from config.catalogue import Plan
from metering.clock import utc_now
from metering.money import format_mxn
from metering.ports import ApiKey, CreditType, Ledger, LedgerAway, LedgerError, Org
from metering.wallet.projection import Projector

log = structlog.get_logger(__name__)

MOST_PER_MINUTE = 1_000_000
"""As for a plan: above it a minute is not divided finely enough."""

KEY_PREFIX = "ghub_sk_live_"
KEY = re.compile(r"ghub_sk_live_[A-Za-z0-9]{32}")
_ALPHABET = string.ascii_letters + string.digits
_NAME = re.compile(r"[\w][\w .@-]{0,63}")
_CREDIT_ID = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. `secret` is shown to its owner once and kept nowhere."""

    key_id: str
    secret: str


def hash_key(secret: str) -> str:
    """SHA-256 in hex: a key has 190 random bits, so a slow hash would protect nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Accounts:
    """What the commands (and later the admin API) do to organisations. Raises LedgerError with a sentence.

    Without a projector (no Redis at hand) a change reaches Redis by the running gateways and consumers, within seconds.
    """

    def __init__(self, ledger: Ledger, projector: Projector | None, plans: Mapping[str, Plan]) -> None:
        self._ledger = ledger
        self._projector = projector
        self._plans = plans

    async def create_org(self, name: str, plan: str) -> Org:
        """Open an organisation at 0.00 MXN."""
        _check_name("NAME", name)
        if plan not in self._plans:
            raise LedgerError(f"there is no plan {plan!r}; there are: {', '.join(sorted(self._plans))}")
        org = Org(
            org_id=str(uuid4()),
            name=name,
            plan=plan,
            requests_per_minute=None,
            images_per_minute=None,
            created_at=utc_now().isoformat(),
        )
        await self._ledger.create_org(org)
        await self._tell(org.org_id)
        return org

    async def set_limits(self, ref: str, changes: Mapping[str, int]) -> Org:
        """Set an organisation's own limits (`requests_per_minute`, `images_per_minute`)."""
        for name, limit in changes.items():
            if name not in Plan.model_fields or not 1 <= limit <= MOST_PER_MINUTE:
                raise LedgerError(f"{name}: {limit} is no limit: a whole number from 1 to {MOST_PER_MINUTE}")
        org = await self._ledger.org(ref)
        await self._ledger.set_limits(org.org_id, changes, utc_now())
        await self._tell(org.org_id)
        return await self._ledger.org(org.org_id)

    async def create_key(self, ref: str, name: str) -> IssuedKey:
        """Issue a key to an organisation."""
        _check_name("--name", name)
        org = await self._ledger.org(ref)
        secret = KEY_PREFIX + "".join(secrets.choice(_ALPHABET) for _ in range(32))
        key = ApiKey(
            key_id=f"key_{secrets.token_hex(6)}",
            org_id=org.org_id,
            name=name,
            key_hash=hash_key(secret),
            created_at=utc_now().isoformat(),
            revoked_at=None,
        )
        await self._ledger.create_key(key)
        await self._tell(org.org_id)
        return IssuedKey(key_id=key.key_id, secret=secret)

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Revoke a key for good, from the next request on."""
        key = await self._ledger.revoke_key(key_id, utc_now())
        await self._tell(key.org_id)
        return key

    async def add_credit(self, ref: str, credit_id: str, kind: str, micro_mxn: int) -> bool:
        """Add a credit, idempotent by its id; False when it was there already."""
        if kind not in get_args(CreditType):
            raise LedgerError(f"--type: {kind!r} is none of {', '.join(get_args(CreditType))}")
        if not _CREDIT_ID.fullmatch(credit_id):
            raise LedgerError("--id: 1 to 128 visible ASCII characters")
        if micro_mxn == 0 or (micro_mxn < 0 and kind != "adjustment"):
            raise LedgerError(f"--mxn: {format_mxn(micro_mxn)} cannot be a {kind}; only an adjustment may be negative")
        org = await self._ledger.org(ref)
        added = await self._ledger.add_credit(org.org_id, credit_id, kind, micro_mxn, utc_now())  # type: ignore[arg-type]  # checked above
        await self._tell(org.org_id)
        return added

    async def _tell(self, org_id: str) -> None:
        if self._projector is None:
            return
        try:
            await self._projector.org(org_id)
        except (RedisError, LedgerAway, OSError, TimeoutError):
            log.warning("redis_away_will_be_told_later", org=org_id)


def _check_name(field: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise LedgerError(f"{field}: {name!r} is no name: up to 64 letters, digits, spaces, or . _ @ -")
