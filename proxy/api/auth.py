"""Bearer key → caller. What can change about a key (revoked, limits) is asked of the wallet at every request."""

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
"""Characters of an origin that are told back."""


class Authenticator:
    """Remembers whose key is whose and what it is for, which never changes; an unknown key is never remembered.

    Web pages from the origins `any_key_from` may use every key, others only one that names them.
    """

    def __init__(self, wallet: Wallet, cache_size: int, any_key_from: Collection[str] = ()) -> None:
        self._wallet = wallet
        self._any_key_from = frozenset(any_key_from)
        self._cache: OrderedDict[str, Caller] = OrderedDict()
        self._cache_size = cache_size

    async def caller(self, headers: Headers) -> Caller:
        """Who sent these headers. Raises ApiError 401 or 403, or WalletAway where Redis cannot say."""
        scheme, _, secret = headers.get("authorization", "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(Kind.MISSING_KEY, NO_KEY)
        key_hash = hash_key(secret)
        caller = self._cache.get(key_hash)
        if caller is None and KEY.fullmatch(secret):
            caller = await self._wallet.key(key_hash)
            if caller is not None and secret.startswith(TEST_PREFIX):
                caller = replace(caller, test=True)
        if caller is None:
            raise ApiError(Kind.INVALID_KEY, UNKNOWN_KEY)
        self._cache[key_hash] = caller
        self._cache.move_to_end(key_hash)
        if len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        self._check_origin(headers.get("origin"), caller)
        return caller

    def _check_origin(self, origin: str | None, caller: Caller) -> None:
        """Only browsers say from which page a request comes, and then it is true."""
        if origin is not None and origin not in self._any_key_from and origin not in caller.origins:
            message = ORIGIN.of(origin=origin[:LONGEST_TOLD])
            raise ApiError(Kind.ORIGIN_NOT_ALLOWED, message)


def check_state(key_state: str) -> None:
    """A key's state by the wallet, for what only reads. Raises ApiError 401 once it is revoked or has expired."""
    if key_state == "expired":
        raise ApiError(Kind.KEY_EXPIRED, EXPIRED)
    if key_state != "active":
        raise ApiError(Kind.KEY_REVOKED, REVOKED)
