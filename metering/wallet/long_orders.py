"""Long orders in Redis: who makes them, what their providers have, and how another gateway takes them over (rule 35).

Each has one owner at a time. Every call that changes one names the owner, and changes nothing for anybody else.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any
from uuid import UUID

import orjson
import structlog
from redis.asyncio import Redis

from metering.wallet import keys
from metering.wallet.script import load_script

log = structlog.get_logger(__name__)

NOBODY = "-"
"""Owner of an order that its gateway has let go."""


class Noted(IntEnum):
    """Answer when a part is noted: it is noted, its order is cancelled, or the order is not this owner's any more."""

    OURS = 1
    CANCELLED = 2
    GONE = 3


class Cancel(IntEnum):
    """Answer to a cancel: it is cancelled, has ended otherwise, is no long order, runs at a provider that confirms no
    cancel, or may still be cancelled by its providers.
    """

    CANCELLED = 1
    ENDED = 2
    AWAITED = 3
    RUNS = 4
    ASKED = 5
    AWAY = 6


@dataclass(frozen=True, slots=True)
class Part:
    """What a provider has of an order: `images` from number `first` on. Without a `handle` its fate is unknown.

    `handle` is the provider's own data for going on with the job, or for cancelling it. `upstream` is its name of the
    model: with it, it is the route by which the part goes.
    """

    provider: str
    first: int
    images: int
    handle: str = ""
    upstream: str = ""

    def encode(self) -> bytes:
        """Encode it as JSON. `cancel_v1.lua` looks for the handle in it."""
        told = {"provider": self.provider, "first": self.first, "images": self.images, "upstream": self.upstream}
        return orjson.dumps(told | ({"handle": self.handle} if self.handle else {}))


@dataclass(frozen=True, slots=True)
class Left:
    """An order without a living owner."""

    order_id: str
    org_id: str
    owner: str


@dataclass(frozen=True, slots=True)
class Kept:
    """What the hold of a long order says of it: the order itself, and the half of its event that is known."""

    document: bytes
    opened: bytes


@dataclass(frozen=True, slots=True)
class Adopted:
    """An order that is now this gateway's, as its hold says. Times are Unix µs by Redis.

    It is made until `until_us`; its hold ends at `ends_us`. Unless it is `taken`, no gateway has answered for it:
    whoever admitted it may not have heard so, and its customer may have been told that it was not placed. Unless it is
    `whole`, Redis has restarted or failed over since, and may have forgotten other `parts`. `times` is how often it was
    handed over, this time included.
    """

    order_id: str
    org_id: str
    key_id: str
    taken: bool
    opened: bytes
    parts: tuple[Part, ...]
    whole: bool
    admitted_us: int
    until_us: int
    ends_us: int
    trace: str
    times: int


class LongOrders:
    """The long orders of all gateways. `redis` is the background connection; every method may raise RedisError.

    `owner` is this gateway, as holds name it.
    """

    def __init__(self, redis: Redis, owner: str) -> None:
        self._redis = redis
        self.owner = owner
        self._part = load_script(redis, "part_v1")
        self._take = load_script(redis, "take_v1")
        self._cancel = load_script(redis, "cancel_v1", Cancel)
        self._adopt = load_script(redis, "adopt_v1")
        self._release = load_script(redis, "release_v1")
        self._missed: set[str] = set()
        self._idle: set[str] = set()

    async def take(self, org_id: str, order_id: str) -> None:
        """Note that this gateway has heard that the order was admitted: from now on another one may go on with it."""
        await self._note_taken(org_id, order_id, self.owner)

    async def tell(self, org_id: str, order_id: str) -> bool:
        """Note that a client is told of an order that it placed before, whoever makes it: it is gone on with.

        Whoever admitted it may not have heard so. False if it has ended, or is no long order.
        """
        return await self._note_taken(org_id, order_id, "")

    async def _note_taken(self, org_id: str, order_id: str, owner: str) -> bool:
        names = keys.OrgKeys(org_id)
        noted = await self._take(keys={"mark": names.mark, "hold": names.hold(order_id)}, request=order_id, owner=owner)
        return bool(noted)

    async def begin(self, org_id: str, order_id: str, part: Part) -> Noted:
        """Note that a part is about to be given to its provider. Unless it is OURS, it must not be."""
        return await self._note(org_id, order_id, part.first, part.encode(), begins=True)

    async def note(self, org_id: str, order_id: str, part: Part) -> Noted:
        """Note the handle of a part that its provider has taken."""
        return await self._note(org_id, order_id, part.first, part.encode(), begins=False)

    async def untaken(self, org_id: str, order_id: str, first: int) -> Noted:
        """Note that the provider has certainly not taken a part, so it may begin again, or be cancelled."""
        return await self._note(org_id, order_id, first, b"", begins=False)

    async def _note(self, org_id: str, order_id: str, first: int, state: bytes, *, begins: bool) -> Noted:
        names = keys.OrgKeys(org_id)
        return Noted(
            await self._part(
                keys={"mark": names.mark, "hold": names.hold(order_id)},
                request=order_id,
                owner=self.owner,
                part=first,
                state=state,
                begins=int(begins),
            )
        )

    async def release(self, org_id: str, order_id: str, known: Collection[int]) -> bool:
        """Let an order go, for another gateway to take over. False if it is not this gateway's any more.

        `known` are the parts that a provider has or may have, by their first images: certainly no other has begun.
        """
        names = keys.OrgKeys(org_id)
        return bool(
            await self._release(
                keys={"mark": names.mark, "hold": names.hold(order_id), "long": names.long},
                org=org_id,
                request=order_id,
                owner=self.owner,
                known=" ".join(str(first) for first in sorted(known)),
            )
        )

    async def cancel(
        self, org_id: str, order_id: str, remember_s: int, max_unpaid_micro_mxn: int
    ) -> tuple[Cancel, tuple[Part, ...]]:
        """Cancel an order, or say why not; with ASKED or RUNS, what its providers have.

        Above `max_unpaid_micro_mxn`, which the organisation's orders may have cost us in vain, what has begun RUNS.
        """
        names = keys.OrgKeys(org_id)
        reply = await self._cancel(
            keys={
                "mark": names.mark,
                "wallet": names.wallet,
                "open": names.open,
                "hold": names.hold(order_id),
                "events": names.events,
                "closed": names.closed(order_id),
            },
            now_us=0,
            org=org_id,
            request=order_id,
            remember_s=remember_s,
            max_unpaid=max_unpaid_micro_mxn,
        )
        return Cancel(reply["code"]), tuple(_part(line.encode()) for line in reply["parts"].splitlines())

    async def left(self, made: Collection[str]) -> list[Left]:
        """Find orders that were let go, or whose owner is dead: without a sign of life now and at the last check.

        A Redis that was away for long has lost every sign. So the first check after that declares nobody dead. Those of
        this gateway that are not `made`, now and at the last check, are found, too: it did not hear that it has them.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in range(keys.PARTITIONS):
                pipe.hgetall(keys.long(partition))
            pages = await pipe.execute(raise_on_error=False)
        found = [_left(order_id, line) for page in pages if isinstance(page, dict) for order_id, line in page.items()]
        orders = [one for one in found if one is not None]
        owners = sorted({one.owner for one in orders} - {NOBODY, self.owner})
        async with self._redis.pipeline(transaction=False) as pipe:
            for owner in owners:
                pipe.exists(keys.alive(owner))
            alive = await pipe.execute(raise_on_error=False)
        missed = {owner for owner, is_alive in zip(owners, alive, strict=True) if is_alive == 0}
        dead, self._missed = missed & self._missed, missed
        idle = {one.order_id for one in orders if one.owner == self.owner and one.order_id not in made}
        unheard, self._idle = idle & self._idle, idle
        return [one for one in orders if one.owner == NOBODY or one.owner in dead or one.order_id in unheard]

    async def read(self, left: Left) -> Kept | None:
        """Read an order; None if it has ended, and then nobody finds it again. Raises ValueError for a damaged one."""
        names = keys.OrgKeys(left.org_id)
        hold: Any = await self._redis.hgetall(names.hold(left.order_id))
        if b"long" not in hold or b"opened" not in hold:
            await self._redis.hdel(names.long, left.order_id)
            return None
        _parts(hold)
        return Kept(hold[b"long"], hold[b"opened"])

    async def adopt(self, left: Left, incarnation: UUID, number: int) -> Adopted | None:
        """Take an order over, under a number of this gateway's journal; None if it has ended, or another was first."""
        names = keys.OrgKeys(left.org_id)
        reply = await self._adopt(
            keys={
                "mark": names.mark,
                "hold": names.hold(left.order_id),
                "open": names.open,
                "long": names.long,
            },
            now_us=0,
            org=left.org_id,
            request=left.order_id,
            dead=left.owner,
            heir=self.owner,
            handed=f"{incarnation}:{number}",
        )
        if not reply:
            return None
        ends_us, whole, *flat = reply
        return _adopted(left, int(float(ends_us)), bool(whole), dict(zip(flat[::2], flat[1::2], strict=True)))


def _adopted(left: Left, ends_us: int, whole: bool, hold: Mapping[bytes, bytes]) -> Adopted:
    return Adopted(
        order_id=left.order_id,
        org_id=left.org_id,
        key_id=hold[b"key"].decode(),
        taken=b"taken" in hold,
        opened=hold[b"opened"],
        parts=_parts(hold),
        whole=whole,
        admitted_us=int(hold[b"admitted_us"]),
        until_us=int(hold[b"until_us"]),
        ends_us=ends_us,
        trace=hold.get(b"trace", b"").decode(),
        times=len(hold[b"handed"].split()),
    )


def _parts(hold: Mapping[bytes, bytes]) -> tuple[Part, ...]:
    """Read the parts of a hold. Raises ValueError for a damaged one."""
    try:
        return tuple(_part(state) for name, state in hold.items() if name.startswith(b"part:"))
    except (KeyError, TypeError) as error:
        raise ValueError(f"a part: {type(error).__name__} {error}") from None


def _part(state: bytes) -> Part:
    told: dict[str, Any] = orjson.loads(state)
    return Part(told["provider"], told["first"], told["images"], told.get("handle", ""), told.get("upstream", ""))


def _left(order_id: bytes, line: bytes) -> Left | None:
    """Read an entry. A damaged one is logged and gives None."""
    try:
        org_id, owner = line.decode().split()
        UUID(org_id)
        return Left(order_id.decode(), org_id, owner)
    except ValueError:
        log.error("long_order_unreadable", entry_bytes=len(line))
        return None
