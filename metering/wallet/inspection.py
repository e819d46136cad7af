"""What Redis has of organisations and their keys, as it was projected: `verify` compares it with the record."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from redis.asyncio import Redis

from metering.clock import unix_us_at
from metering.limits import LIMIT_NAMES, Limits
from metering.ports import ApiKey, Ledger, Snapshot
from metering.wallet import keys
from metering.wallet.connection import servers
from metering.wallet.marks import keys_like

_LIMITS = ["mxn_per_month" if name == "micro_mxn_per_month" else name for name in LIMIT_NAMES]
_MAY = ["state", "expires_us", "models", "reads", "response_format", "origins"]
_GONE = ["gone_charged", "gone_credits"]


@dataclass(frozen=True, slots=True)
class Access:
    """What one key may do, as Redis is told it; what is usual is empty.

    `ends_us` is the moment of its end in Unix µs; `models` are those that it may use, `reads` the keys whose orders it
    may read and `origins` the pages that it may be used from, between spaces; `record` is whose key its hash is.
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
    """One organisation in Redis. What its wallet had when it was made anew, and the ledger had not, is in micro-MXN."""

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
    """Reads it. Every method may raise RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    async def answers(self) -> None:
        """Does every server of it answer? Raises RedisError, OSError or TimeoutError where one does not."""
        await asyncio.gather(*(server.ping() for server, _ in await servers(self._redis)))

    async def projected(self, snapshots: Sequence[Snapshot]) -> list[Projected | None]:
        """Of each of these organisations what was projected; None for one that has no wallet there."""
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
        """What the ledger does not know, and what would work all the same. May raise LedgerAway.

        The names are read first: what is new by then is in the ledger already, which is written before Redis.
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
        """Charges and credits in micro-MXN that its wallet had and the ledger has not; all, where it is not `known`."""
        fields = _GONE if known else ["charged", "credits"]
        charged, credits_ = await self._redis.hmget(keys.OrgKeys(org_id).wallet, fields)
        return int(charged or 0), int(credits_ or 0)

    async def accept(self, org_id: str, *, known: bool) -> None:
        """Name that no longer: where the ledger knows no such organisation, its wallet is forgotten."""
        names = keys.OrgKeys(org_id)
        if known:
            await self._redis.hdel(names.wallet, *_GONE)
        else:
            await self._redis.delete(names.wallet, names.open)


def expected(snapshot: Snapshot) -> Projected:
    """How Redis should have this organisation."""
    replaced = {key.key_id: key.replaces for key in snapshot.keys}
    accesses: dict[str, Access | None] = {key.key_id: access_of(key, replaced) for key in snapshot.keys}
    return Projected(snapshot.revision, snapshot.limits, accesses, snapshot.org.suspended)


def access_of(key: ApiKey, replaced: Mapping[str, str | None]) -> Access:
    """How Redis should have this key; `replaced` is which key each of its organisation's was rotated from."""
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
    """A key and those that it was rotated from, the first one last."""
    while key_id is not None:
        yield key_id
        key_id = replaced[key_id]


def _projected(snapshot: Snapshot, replies: Iterator[Any]) -> Projected | None:
    revision, suspended, gone_charged, gone_credits, *limits = next(replies)
    accesses: dict[str, Access | None] = {}
    for key in snapshot.keys:
        told, record = next(replies), next(replies)
        accesses[key.key_id] = None if told[0] is None else _access(told, record)
    if revision is None:
        return None
    gone = int(gone_charged or 0), int(gone_credits or 0)
    return Projected(int(revision), _limits(limits), accesses, suspended is not None, *gone)


def _access(told: list[bytes | None], record: bytes | None) -> Access:
    state, ends_us, models, reads, response_format, origins, *limits = told
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
