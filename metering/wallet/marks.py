"""Which partitions are projected, and from which ledger: what a mark is worth (rule 34).

Beside the mark, "projected up to change N", stands what proves that it was made from this very ledger: the fingerprint
of that change, and an order's end that was committed. A ledger that was restored from a backup lacks one or the other.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from metering.ports import PAGE, Ended, Ledger
from metering.wallet import keys
from metering.wallet.connection import servers
from metering.wallet.script import Call, load_script

NO_CHANGE = "-"
"""Stands for the fingerprint of a change that is not there."""

SCANNED = 1_000
"""Keys that one step of a scan looks at: under a millisecond, so that it holds up no admission."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What Redis says of one partition; an empty text is what it does not know. `run` is its server's.

    `booked`: orders' ends that consumers have seen committed, the last ones: `charge:` or `other:`, and the id. All of
    them count: of two consumers the one that committed first may have said so last.
    """

    run: str
    mark: str
    home: str
    ledger: str
    booked: tuple[str, ...]

    @property
    def change(self) -> int:
        """The one whose fingerprint stands beside the mark."""
        return int(self.ledger.split()[0])

    @property
    def proven(self) -> str:
        """The order's end that stands there."""
        return " ".join(self.ledger.split(" ")[2:])

    @property
    def ends(self) -> list[str]:
        """Those that this ledger must have."""
        return [end for end in (self.proven, *self.booked) if end]

    def proof(self, change: int, fingerprint: str) -> str:
        """What stands beside a mark at this change."""
        return f"{change} {fingerprint} {self.booked[0] if self.booked else self.proven}".rstrip()


@dataclass(frozen=True, slots=True)
class Look:
    """All partitions whose servers answer, and the ledger's last change with its fingerprint.

    `foreign`: those that were projected from another ledger, or from this one before it lost something.
    """

    seen: Mapping[int, Seen]
    last: int
    fingerprint: str
    foreign: frozenset[int]

    @property
    def known(self) -> dict[int, int]:
        """Partition → the last change projected to it, where its mark counts."""
        ours = {p: one for p, one in self.seen.items() if p not in self.foreign and one.home == one.run}
        return {partition: int(one.mark) for partition, one in ours.items() if one.mark}

    @property
    def missing(self) -> set[int]:
        """Partitions to be rebuilt."""
        return self.seen.keys() - self.known.keys()


class Marks:
    """Reads and moves them. Every method may raise RedisError and LedgerAway."""

    def __init__(self, redis: Redis, ledger: Ledger) -> None:
        self._redis = redis
        self._ledger = ledger
        self._move = load_script(redis, "mark_v1")

    async def look(self, runs: Mapping[int, str]) -> Look:
        """What Redis says of every partition, and only then what the ledger says of that: another process may move a
        mark to a change that was not there yet. `runs`: partition → the run of its server."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in runs:
                pipe.mget(keys.mark(partition), keys.home(partition), keys.ledger(partition))
                pipe.lrange(keys.committed(partition), 0, -1)
            replies = await pipe.execute()
        told = zip(runs.items(), replies[0::2], replies[1::2], strict=True)
        seen = {partition: _seen(run, values, booked) for (partition, run), values, booked in told}
        last = await self._ledger.last_change()
        changes = {last, *(one.change for one in seen.values() if one.ledger)}
        fingerprints = await self._ledger.fingerprints(changes)
        ends = {end.partition(":")[2] for one in seen.values() for end in one.ends}
        ended = await self._ledger.ended(sorted(ends)) if ends else {}
        foreign = {partition for partition, one in seen.items() if _is_of_another(one, last, fingerprints, ended)}
        return Look(seen, last, fingerprints.get(last, NO_CHANGE), frozenset(foreign))

    async def fingerprint(self, change: int) -> str:
        """Of one change of the ledger."""
        return (await self._ledger.fingerprints([change])).get(change, NO_CHANGE)

    async def move(self, look: Look) -> None:
        """All that is known is projected up to the last change now."""
        calls: list[Call] = []
        for partition, change in look.known.items():
            before, proof = look.seen[partition], look.seen[partition].proof(look.last, look.fingerprint)
            if (change, before.ledger) != (look.last, proof):
                names = {"mark": keys.mark(partition), "ledger": keys.ledger(partition)}
                calls.append(self._move.call(names, change=look.last, proof=proof))
        await self._move.each(calls)


async def keys_like(redis: Redis, kind: str, partitions: Collection[int]) -> AsyncIterator[list[str]]:
    """Pages of the names of all keys `{pN}:KIND:…` of these partitions. Raises RedisError."""
    page: list[str] = []
    for server, here in await servers(redis):
        if set(here).isdisjoint(partitions):
            continue
        async for name in server.scan_iter(match=f"{{p*}}:{kind}:*", count=SCANNED):
            if keys.partition_in([name.decode()]) in partitions:
                page.append(name.decode())
            if len(page) == PAGE:
                yield page
                page = []
    if page:
        yield page


def _seen(run: str, values: Iterable[bytes | None], booked: Iterable[bytes]) -> Seen:
    mark, home, ledger = ((value or b"").decode() for value in values)
    return Seen(run, mark, home, ledger, tuple(end.decode() for end in booked))


def _is_of_another(seen: Seen, last: int, fingerprints: Mapping[int, str], ended: Mapping[str, Ended]) -> bool:
    """Was this partition projected from another ledger than the one that says this?

    An older version leaves the proof out. Then only a mark that the ledger has not reached says so.
    """
    if seen.mark and int(seen.mark) > last:
        return True
    if seen.ledger and seen.change and fingerprints.get(seen.change) != seen.ledger.split()[1]:
        return True
    return any(_is_lost(end, ended) for end in seen.ends)


def _is_lost(booked: str, ended: Mapping[str, Ended]) -> bool:
    """Is an end that was committed not there? An order may have two, of which a charge is the one that is told."""
    end, _, request_id = booked.partition(":")
    order = ended.get(request_id)
    return order is None or (end == "charge" and not order.charged)
