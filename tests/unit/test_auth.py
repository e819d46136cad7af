"""Whose key it is: asked of the wallet once, and of an unknown key every time."""

import random

import pytest
from starlette.datastructures import Headers

from metering.accounts import KEY_PREFIX, TEST_PREFIX, hash_key
from metering.wallet.connection import WalletAway, open_redis
from metering.wallet.values import Caller, WalletLimits
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator, check_state
from proxy.errors import ApiError, Kind
from tests.conftest import run

CACHE_SIZE = 3


def secret(number: int) -> str:
    """A key of the right form."""
    return KEY_PREFIX + f"{number:032d}"


class Owners(Wallet):
    """A wallet that knows some keys, and which questions it was asked."""

    def __init__(self, *known: str) -> None:
        super().__init__(
            open_redis("redis://nowhere", connections=1, call_timeout_s=1.0), WalletLimits(0.1, 1, 1, 1, 1)
        )
        self.known = {hash_key(key): Caller(f"org of {key}", "key") for key in known}
        self.asked: list[str] = []
        self.away = False

    async def key(self, key_hash: str) -> Caller | None:
        self.asked.append(key_hash)
        if self.away:
            raise WalletAway
        return self.known.get(key_hash)


def ask(authenticator: Authenticator, authorization: str | None) -> Caller:
    headers = Headers({} if authorization is None else {"authorization": authorization})
    return run(authenticator.caller(headers))


def refused(authenticator: Authenticator, authorization: str | None) -> Kind:
    with pytest.raises(ApiError) as caught:
        ask(authenticator, authorization)
    assert caught.value.kind.value.status == 401
    return caught.value.kind


def test_a_known_key_is_asked_for_once() -> None:
    """Its owner never changes."""
    wallet = Owners(secret(1))
    authenticator = Authenticator(wallet, CACHE_SIZE)
    for header in (f"Bearer {secret(1)}", f"bearer {secret(1)}", f"BEARER   {secret(1)} "):
        assert ask(authenticator, header) == Caller(f"org of {secret(1)}", "key")
    assert wallet.asked == [hash_key(secret(1))]


def test_a_test_key_is_the_sandboxs_by_its_prefix() -> None:
    """Asked for or remembered; a live key never is."""
    test_key = TEST_PREFIX + "0" * 32
    authenticator = Authenticator(Owners(secret(1), test_key), CACHE_SIZE)
    for _ in range(2):
        assert ask(authenticator, f"Bearer {test_key}") == Caller(f"org of {test_key}", "key", test=True)
        assert not ask(authenticator, f"Bearer {secret(1)}").test


def test_an_unknown_key_is_asked_for_every_time() -> None:
    """So one that has just been issued works from its next request on."""
    wallet = Owners()
    authenticator = Authenticator(wallet, CACHE_SIZE)
    for _ in range(3):
        assert refused(authenticator, f"Bearer {secret(1)}") is Kind.INVALID_KEY
    assert len(wallet.asked) == 3
    wallet.known[hash_key(secret(1))] = Caller("new", "key")
    assert ask(authenticator, f"Bearer {secret(1)}").org_id == "new"


@pytest.mark.parametrize(
    "key",
    [
        "sk-proj-something",
        KEY_PREFIX,
        KEY_PREFIX + "0" * 31,
        KEY_PREFIX + "0" * 33,
        KEY_PREFIX + "0" * 31 + "_",
        KEY_PREFIX + "0" * 31 + "é",
        KEY_PREFIX.upper() + "0" * 32,
        "ghub_sk_test_" + "0" * 31,
        "ghub_sk_prod_" + "0" * 32,
        f"{secret(1)} {secret(1)}",
        f"{secret(1)},",
        "x" * 60_000,
    ],
)
def test_a_malformed_key_makes_no_trip_to_redis(key: str) -> None:
    """It cannot be one of ours."""
    wallet = Owners(secret(1))
    assert refused(Authenticator(wallet, CACHE_SIZE), f"Bearer {key}") is Kind.INVALID_KEY
    assert wallet.asked == []


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic eDp5", secret(1), f"Token {secret(1)}"])
def test_no_bearer_key_is_a_missing_key(header: str | None) -> None:
    """EventFacts apart from a wrong one, and no trip either."""
    wallet = Owners(secret(1))
    assert refused(Authenticator(wallet, CACHE_SIZE), header) is Kind.MISSING_KEY
    assert wallet.asked == []


def test_the_cache_is_bounded_and_drops_the_longest_unused() -> None:
    """The same as a plain list of the last used ones, over a random run."""
    keys = [secret(number) for number in range(6)]
    wallet = Owners(*keys)
    authenticator = Authenticator(wallet, CACHE_SIZE)
    chance = random.Random(1)
    recent: list[str] = []
    expected: list[str] = []
    for _ in range(200):
        key = chance.choice(keys)
        if key not in recent:
            expected.append(hash_key(key))
        recent = [other for other in recent if other != key][-CACHE_SIZE + 1 :] + [key]
        assert ask(authenticator, f"Bearer {key}").org_id == f"org of {key}"
    assert wallet.asked == expected


def test_a_redis_that_is_away_is_never_an_unknown_key() -> None:
    """The failure goes through, and is not remembered; a remembered key needs no Redis."""
    wallet = Owners(secret(1), secret(2))
    authenticator = Authenticator(wallet, CACHE_SIZE)
    ask(authenticator, f"Bearer {secret(1)}")
    wallet.away = True
    with pytest.raises(WalletAway):
        ask(authenticator, f"Bearer {secret(2)}")
    assert ask(authenticator, f"Bearer {secret(1)}").org_id == f"org of {secret(1)}"
    wallet.away = False
    assert ask(authenticator, f"Bearer {secret(2)}").org_id == f"org of {secret(2)}"


def test_the_cache_holds_no_key() -> None:
    """Only its hash."""
    authenticator = Authenticator(Owners(secret(1)), CACHE_SIZE)
    ask(authenticator, f"Bearer {secret(1)}")
    assert list(authenticator._cache) == [hash_key(secret(1))]


@pytest.mark.parametrize("state", ["revoked", "unknown", "", "Active"])
def test_every_state_but_active_is_refused(state: str) -> None:
    """Only the one word opens."""
    check_state("active")
    with pytest.raises(ApiError) as caught:
        check_state(state)
    assert caught.value.kind is Kind.KEY_REVOKED
