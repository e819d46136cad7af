"""Bearer key → caller. What can change about a key (revoked, limits) is read from the wallet for every request."""

from collections import OrderedDict
from collections.abc import Collection
from dataclasses import replace

from starlette.datastructures import Headers

from metering.accounts import KEY, TEST_PREFIX, hash_key
from metering.wallet.values import Caller
from metering.wallet.wallet import Wallet
from proxy.errors import ApiError, Kind
from proxy.messages import EXPIRED, NO_KEY, ORIGIN, REVOKED, UNKNOWN_KEY

LONGEST_TOLD = 200
"""Maximum characters of an origin in a message."""


def bearer_of(headers: Headers) -> str:
    """Read the secret of `Authorization: Bearer …`; empty if there is none."""
    scheme, _, secret = headers.get("authorization", "").partition(" ")
    return secret.strip() if scheme.lower() == "bearer" else ""


class Authenticator:
    """Remembers each key's organisation and fixed properties. An unknown key is never remembered.

    Web pages from the origins `any_key_from` may use every key. Others may only use a key that lists them.
    """

    def __init__(self, wallet: Wallet, cache_size: int, any_key_from: Collection[str] = ()) -> None:
        self._wallet = wallet
        self._any_key_from = frozenset(any_key_from)
        self._cache: OrderedDict[str, Caller] = OrderedDict()
        self._cache_size = cache_size

    def known(self, headers: Headers) -> Caller | None:
        """Find who sent these headers, if the key is remembered. Raises ApiError 401 or 403."""
        secret = bearer_of(headers)
        if not secret:
            raise ApiError(Kind.MISSING_KEY, NO_KEY)
        caller = self._cache.get(key_hash := hash_key(secret))
        if caller is not None:
            self._cache.move_to_end(key_hash)
            self._check_origin(headers.get("origin"), caller)
        return caller

    async def caller(self, headers: Headers) -> Caller:
        """Find who sent these headers. Raises ApiError 401 or 403, or WalletAway if Redis cannot say."""
        if (caller := self.known(headers)) is not None:
            return caller
        secret = bearer_of(headers)
        key_hash = hash_key(secret)
        if KEY.fullmatch(secret):
            caller = await self._wallet.key(key_hash)
        if caller is None:
            raise ApiError(Kind.INVALID_KEY, UNKNOWN_KEY)
        if secret.startswith(TEST_PREFIX):
            caller = replace(caller, test=True)
        self._cache[key_hash] = caller
        self._cache.move_to_end(key_hash)  # another request may have brought it meanwhile
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        self._check_origin(headers.get("origin"), caller)
        return caller

    def _check_origin(self, origin: str | None, caller: Caller) -> None:
        """Check the web page's origin. Only browsers send it, and they send the true one."""
        if origin is not None and origin not in self._any_key_from and origin not in caller.origins:
            message = ORIGIN.of(origin=origin[:LONGEST_TOLD])
            raise ApiError(Kind.ORIGIN_NOT_ALLOWED, message)


def check_state(key_state: str) -> None:
    """Check a key's state for requests that only read. Raises ApiError 401 if it is revoked or has expired."""
    if key_state == "expired":
        raise ApiError(Kind.KEY_EXPIRED, EXPIRED)
    if key_state != "active":
        raise ApiError(Kind.KEY_REVOKED, REVOKED)
