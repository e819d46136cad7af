"""Which partitions are projected, and from which ledger; whether a mark counts (rule 34).
Stored with the mark, "projected up to change N", is the proof that it was made from this very ledger: the fingerprint
of that change, and a committed end of an order. A ledger that was restored from a backup lacks one of them.
"""

from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass

from redis.asyncio import Redis

from metering.ports import PAGE, Ended, Ledger
from metering.wallet import keys
from metering.wallet.connection import lanes, servers
from metering.wallet.script import Call, load_script

NO_CHANGE = "-"
"""Replaces the fingerprint of a change that does not exist."""

SCANNED = 1_000
"""Keys in one step of a scan: under a millisecond, so that it delays no admission."""


@dataclass(frozen=True, slots=True)
class Seen:
    """State of one partition in Redis; text that Redis lacks is empty. `run` is its server's.

    `booked`: the last ends of orders that consumers have seen committed, as `charge:` or `other:` and the id. All of
    them count: of two consumers, the one that committed first may report last.
    """

    run: str
    mark: str
    home: str
    ledger: str
    booked: tuple[str, ...]

    @property
    def change(self) -> int:
        """Number of the change whose fingerprint is stored with the mark."""
        return int(self.ledger.split()[0])

    @property
    def proven(self) -> str:
        """The order's end that is stored with the mark."""
        return " ".join(self.ledger.split(" ")[2:])

    @property
    def ends(self) -> list[str]:
        """Ends that this ledger must have."""
        return [end for end in (self.proven, *self.booked) if end]

    def proof(self, change: int, fingerprint: str) -> str:
        """Build the proof to store with a mark at this change."""
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
        """Last change projected to each partition whose mark counts."""
        ours = {p: one for p, one in self.seen.items() if p not in self.foreign and one.home == one.run}
        return {partition: int(one.mark) for partition, one in ours.items() if one.mark}

    @property
    def missing(self) -> set[int]:
        """Partitions to be rebuilt."""
        return self.seen.keys() - self.known.keys()


_STATE = (keys.mark, keys.home, keys.ledger)
"""The keys of a partition that hold one text each."""

_LISTS = """
local lists = {}
for place, key in ipairs(KEYS) do lists[place] = redis.call('LRANGE', key, 0, -1) end
return lists
"""
"""Reads many lists with one command."""


class Marks:
    """Reads and moves marks. Every method may raise RedisError and LedgerAway."""

    def __init__(self, redis: Redis, ledger: Ledger) -> None:
        self._redis = redis
        self._ledger = ledger
        self._move = load_script(redis, "mark_v1")

    async def look(self, runs: Mapping[int, str]) -> Look:
        """Read every partition's state in Redis, and only then compare it with the ledger.

        In the other order, another process might move a mark to a change that was not there yet. `runs`: partition →
        the run of its server.
        """
        seen = await self._seen(runs)
        last = await self._ledger.last_change()
        changes = {last, *(one.change for one in seen.values() if one.ledger)}
        fingerprints = await self._ledger.fingerprints(changes)
        ends = {end.partition(":")[2] for one in seen.values() for end in one.ends}
        ended = await self._ledger.ended(sorted(ends)) if ends else {}
        foreign = {partition for partition, one in seen.items() if _is_of_another(one, last, fingerprints, ended)}
        return Look(seen, last, fingerprints.get(last, NO_CHANGE), frozenset(foreign))

    async def _seen(self, runs: Mapping[int, str]) -> dict[int, Seen]:
        """Read every partition's state, with two commands for all that one command may name together.

        Every gateway does it once a second, also while nobody orders.
        """
        asked = [[partition for partition in lane if partition in runs] for lane in lanes(self._redis)]
        asked = [lane for lane in asked if lane]
        async with self._redis.pipeline(transaction=False) as pipe:
            for lane in asked:
                pipe.mget(*(kind(partition) for partition in lane for kind in _STATE))
                pipe.eval(_LISTS, len(lane), *map(keys.committed, lane))
            replies = await pipe.execute()
        seen: dict[int, Seen] = {}
        for lane, values, booked in zip(asked, replies[0::2], replies[1::2], strict=True):
            for place, partition in enumerate(lane):
                state = values[place * len(_STATE) : (place + 1) * len(_STATE)]
                seen[partition] = _seen(runs[partition], state, booked[place])
        return seen

    async def fingerprint(self, change: int) -> str:
        """Read the fingerprint of one change of the ledger."""
        return (await self._ledger.fingerprints([change])).get(change, NO_CHANGE)

    async def move(self, look: Look) -> None:
        """Record that all known partitions are projected up to the last change."""
        calls: list[Call] = []
        for partition, change in look.known.items():
            before, proof = look.seen[partition], look.seen[partition].proof(look.last, look.fingerprint)
            if (change, before.ledger) != (look.last, proof):
                names = {"mark": keys.mark(partition), "ledger": keys.ledger(partition)}
                calls.append(self._move.call(names, change=look.last, proof=proof))
        await self._move.each(calls)


async def keys_like(redis: Redis, kind: str, partitions: Collection[int]) -> AsyncIterator[list[str]]:
    """Yield pages of the names of all keys `{pN}:KIND:…` in these partitions. Raises RedisError."""
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
    """True if this partition was projected from a ledger other than this one.

    An older version stores no proof. Then the only sign is a mark that this ledger has not reached.
    """
    if seen.mark and int(seen.mark) > last:
        return True
    if seen.ledger and seen.change and fingerprints.get(seen.change) != seen.ledger.split()[1]:
        return True
    return any(_is_lost(end, ended) for end in seen.ends)


def _is_lost(booked: str, ended: Mapping[str, Ended]) -> bool:
    """True if a committed end is missing. An order may have two ends; if one is a charge, that one is remembered."""
    end, _, order_id = booked.partition(":")
    order = ended.get(order_id)
    return order is None or (end == "charge" and not order.charged)
