"""Committed events: removed from the streams, kept for a while, and fed again to a restored ledger that lacks them
(rule 30)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

import structlog
from prometheus_client import Counter
from redis.asyncio import Redis

from config.settings import KEPT_BYTES, KEPT_MARK
from metering.events import End
from metering.ports import Ledger
from metering.wallet import keys
from metering.wallet.alarms import ledger_restored
from metering.wallet.connection import servers
from metering.wallet.script import Call, load_script

log = structlog.get_logger(__name__)

PROOFS = 8
"""Number of last committed events that are remembered for each partition.

One is not enough: of two consumers, the one that committed first may report last, and a backup may have been taken
between them.
"""

FED_AT_ONCE = 100
"""Events that one call feeds again: some milliseconds of Redis, even with the largest."""

FED = Counter("ghub_events_fed_again_total", "Kept events that a restored ledger was fed with again")

NO_EVENT, KNOWN, NEW = 0, 1, 2
"""Kinds of stream entries for the ledger: not an event, one that it had, or one that is new to it."""


@dataclass(frozen=True, slots=True)
class Done:
    """A stream entry that is done, as `what`. `proof` names its event, or is empty."""

    partition: int
    entry_id: bytes
    what: int
    proof: str = ""


class Commit:
    """Entries that leave their streams together. It may be sent to Redis again, as the same commit."""

    def __init__(self, done: Sequence[Done]) -> None:
        self.name = uuid4().hex
        self.by_partition: dict[int, list[Done]] = {}
        for one in done:
            self.by_partition.setdefault(one.partition, []).append(one)


def proof_of(event_id: str, end: End) -> str:
    """Name of an end, for asking whether the ledger has it."""
    return f"{'charge' if end == 'charge' else 'other'}:{event_id}"


class Commits:
    """Removes committed entries from the streams.

    `keep_s`: how long events can be fed again, in seconds. With 0 none is kept, not even until the next look.
    """

    def __init__(self, redis: Redis, group: str, consumer: str, keep_s: float) -> None:
        self._redis = redis
        self._group = group
        self._consumer = consumer
        self._keep_ms = round(keep_s * 1000)
        self._max_bytes = self._allowed
        self._commit = load_script(redis, "commit_v1")

    async def tell(self, commit: Commit) -> None:
        """Tell Redis what is committed. If there is no answer, the caller must do it again. Raises RedisError."""
        calls = [self._call(partition, commit.name, done) for partition, done in commit.by_partition.items()]
        for partition, lost in zip(commit.by_partition, await self._commit.each(calls), strict=True):
            if lost:
                log.warning("stream_lost", partition=partition)

    async def trim(self, partitions: Collection[int]) -> None:
        """Delete what is too old, or everything if Redis has little memory left. Raises RedisError."""
        self._max_bytes = 0 if await self._short_of_memory(partitions) else self._allowed
        await self._commit.each([self._call(partition, "", []) for partition in partitions])

    @property
    def _allowed(self) -> int:
        return KEPT_BYTES if self._keep_ms else 0

    def _call(self, partition: int, name: str, done: Sequence[Done]) -> Call:
        proofs = [one.proof for one in done if one.proof]
        return self._commit.call(
            _names(partition) | {"last_commit": keys.last_commit(partition, self._consumer)},
            [part for one in done for part in (one.entry_id, one.what)],
            group=self._group,
            name=name,
            keep_ms=self._keep_ms,
            max_bytes=self._max_bytes,
            proof=proofs[-1] if proofs else "",
            proofs=PROOFS,
        )

    async def _short_of_memory(self, partitions: Collection[int]) -> bool:
        nodes = [server for server, here in await servers(self._redis) if not set(here).isdisjoint(partitions)]
        infos = [await server.info("memory") for server in nodes]
        return any(0 < info["maxmemory"] * KEPT_MARK < info["used_memory"] for info in infos)


async def feed_again(redis: Redis, partition: int) -> int:
    """Put all kept events of a partition back into its stream; returns how many. Raises RedisError.

    The next consumer books each of them once. Until the stream is empty again the partition is not projected.
    """
    feed = load_script(redis, "feed_v1")
    latest = await redis.xrevrange(keys.kept(partition), count=1)
    until = latest[0][0] if latest else b"-"
    fed = 0
    while True:
        moved: int = await feed(_names(partition), until_id=until, most=FED_AT_ONCE)
        fed += moved
        if moved < FED_AT_ONCE:
            FED.inc(fed)
            return fed


async def heal(redis: Redis, ledger: Ledger, partitions: Collection[int]) -> int:
    """Feed partitions again if the ledger lacks what it has committed of them; returns how many events.

    Raises RedisError, LedgerAway.
    """
    proofs = await _proofs(redis, partitions)
    if not proofs:
        return 0
    wanted = {proof.partition(":")[2] for ends in proofs.values() for proof in ends}
    there = {proof_of(*end) for end in await ledger.ends(sorted(wanted))}
    fed = 0
    for partition, ends in proofs.items():
        if not there.issuperset(ends):
            events = await feed_again(redis, partition)
            ledger_restored(partition=partition, fed_again=events)
            fed += events
    return fed


async def _proofs(redis: Redis, partitions: Collection[int]) -> Mapping[int, list[str]]:
    async with redis.pipeline(transaction=False) as pipe:
        for partition in partitions:
            pipe.lrange(keys.committed(partition), 0, -1)
        found = zip(partitions, await pipe.execute(), strict=True)
    return {partition: [proof.decode() for proof in ends] for partition, ends in found if ends}


def _names(partition: int) -> dict[str, str]:
    return {
        "mark": keys.mark(partition),
        "fence": keys.fence(partition),
        "events": keys.events(partition),
        "kept": keys.kept(partition),
        "committed": keys.committed(partition),
    }
