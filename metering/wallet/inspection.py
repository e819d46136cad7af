"""Organisations and keys in Redis as they were projected: `verify` compares them with the record."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from metering.clock import unix_us_at
from metering.limits import LIMITS, Limits
from metering.ports import ApiKey, Ledger, Snapshot
from metering.wallet import keys
from metering.wallet.connection import servers
from metering.wallet.marks import keys_like

_LIMITS = [kind.name for kind in LIMITS.values()]
_MAY = ["state", "expires_us", "models", "reads", "response_format", "origins"]
_GONE = ["gone_charged", "gone_credits"]


@dataclass(frozen=True, slots=True)
class Access:
    """Rights of one key in Redis; default values are empty.

    `ends_us` is the moment of its end in Unix µs. `models` are the models that it may use, `reads` the keys whose
    orders it may read, and `origins` the origins of web pages that may use it, each separated by spaces. `record` is
    the organisation and key that its hash belongs to.
    """

    state: str
    ends_us: int | None
    models: str
    reads: str
    response_format: str
    origins: str
    limits: Limits
    record: str


@dataclass(frozen=True, slots=True)
class Projected:
    """One organisation in Redis.

    The `gone_` fields are what its rebuilt wallet had and the ledger had not, in micro-MXN.
    """

    revision: int
    limits: Limits
    accesses: Mapping[str, Access | None]
    suspended: bool = False
    gone_charged_micro_mxn: int = 0
    gone_credits_micro_mxn: int = 0


@dataclass(frozen=True, slots=True)
class Stranger:
    """Something in Redis that the ledger does not know: a `wallet`, an `access`, or the record of a `key`."""

    kind: str
    id: str
    found: str


class Inspection:
    """Reads what was projected. Every method may raise RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def answers(self) -> None:
        """Check that every server answers. Raises RedisError, OSError or TimeoutError if one does not."""
        await asyncio.gather(*(server.ping() for server, _ in await servers(self._redis)))

    async def projected(self, snapshots: Sequence[Snapshot]) -> list[Projected | None]:
        """Read what was projected of each of these organisations; None for one without a wallet."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for one in snapshots:
                names = keys.OrgKeys(one.org.org_id)
                pipe.hmget(names.wallet, ["revision", "suspended", *_GONE, *_LIMITS])
                for key in one.keys:
                    pipe.hmget(names.access(key.key_id), [*_MAY, *_LIMITS])
                    pipe.get(keys.key_record(key.key_hash)[1])
            replies = iter(await pipe.execute() if snapshots else [])
        return [_projected(one, replies) for one in snapshots]

    async def strangers(self, ledger: Ledger) -> AsyncIterator[Stranger]:
        """Find what the ledger does not know and what would work anyway. May raise LedgerAway.

        The names are read first: whatever is new by then is already in the ledger, which is written before Redis.
        """
        everywhere = range(keys.PARTITIONS)
        async for page in keys_like(self._redis, "wallet", everywhere):
            known_orgs = await ledger.known_orgs([_id(name) for name in page])
            for name in page:
                if _id(name) not in known_orgs:
                    credit, charged = await self._redis.hmget(name, "credits", "charged")
                    yield Stranger("wallet", _id(name), f"{int(credit or 0)} {int(charged or 0)}")
        async for page in keys_like(self._redis, "access", everywhere):
            known_keys = await ledger.known_keys([_id(name) for name in page])
            for name in page:
                if _id(name) not in known_keys and (state := _text(await self._redis.hget(name, "state"))) == "active":
                    yield Stranger("access", _id(name), state)
        async for page in keys_like(self._redis, "key", everywhere):
            known_hashes = await ledger.known_hashes([_id(name) for name in page])
            for name in page:
                if _id(name) not in known_hashes:
                    yield Stranger("key", _id(name), _text(await self._redis.get(name)))

    async def lost(self, org_id: str, *, known: bool) -> tuple[int, int]:
        """Read charges and credits in micro-MXN that its wallet had and the ledger lacks; all, if it is not `known`."""
        fields = _GONE if known else ["charged", "credits"]
        charged, credits_ = await self._redis.hmget(keys.OrgKeys(org_id).wallet, fields)
        return int(charged or 0), int(credits_ or 0)

    async def accept(self, org_id: str, *, known: bool) -> None:
        """Stop reporting the loss. If the ledger does not know the organisation, delete its wallet."""
        names = keys.OrgKeys(org_id)
        if known:
            await self._redis.hdel(names.wallet, *_GONE)
        else:
            await self._redis.delete(names.wallet, names.open)


def expected(snapshot: Snapshot) -> Projected:
    """Build the state that Redis should have for this organisation."""
    replaced = {key.key_id: key.replaces for key in snapshot.keys}
    accesses: dict[str, Access | None] = {key.key_id: access_of(key, replaced) for key in snapshot.keys}
    return Projected(snapshot.revision, snapshot.limits, accesses, snapshot.org.suspended)


def access_of(key: ApiKey, replaced: Mapping[str, str | None]) -> Access:
    """Build the state that Redis should have for this key.

    `replaced` maps each key to the one that it was rotated from.
    """
    return Access(
        state="active" if key.revoked_at is None else "revoked",
        ends_us=None if key.expires_at is None else unix_us_at(datetime.fromisoformat(key.expires_at)),
        models=" ".join(key.models),
        reads=" ".join(_line(key.key_id, replaced)) if key.read == "own" else "",
        response_format="" if key.response_format == "url" else key.response_format,
        origins=" ".join(key.origins),
        limits=key.limits,
        record=f"{key.org_id} {key.key_id}",
    )


def _line(key_id: str | None, replaced: Mapping[str, str | None]) -> Iterator[str]:
    """Yield a key and those that it was rotated from, the first one last."""
    while key_id is not None:
        yield key_id
        key_id = replaced[key_id]


def _projected(snapshot: Snapshot, replies: Iterator[Any]) -> Projected | None:
    revision, suspended, gone_charged, gone_credits, *limits = next(replies)
    accesses: dict[str, Access | None] = {}
    for key in snapshot.keys:
        values, record = next(replies), next(replies)
        accesses[key.key_id] = None if values[0] is None else _access(values, record)
    if revision is None:
        return None
    gone = int(gone_charged or 0), int(gone_credits or 0)
    return Projected(int(revision), _limits(limits), accesses, suspended is not None, *gone)


def _access(values: list[bytes | None], record: bytes | None) -> Access:
    state, ends_us, models, reads, response_format, origins, *limits = values
    return Access(
        state=_text(state),
        ends_us=None if ends_us is None else int(ends_us),
        models=_text(models),
        reads=_text(reads),
        response_format=_text(response_format),
        origins=_text(origins),
        limits=_limits(limits),
        record=_text(record),
    )


def _limits(values: list[Any]) -> Limits:
    return Limits(*(None if value is None else int(value) for value in values))


def _text(value: Any) -> str:
    return "" if value is None else str(value, "utf-8")


def _id(name: str) -> str:
    return name.rpartition(":")[2]
