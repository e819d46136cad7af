"""An organisation's hot state in Redis: holds, limits, settlement. One script a step; money is integer micro-MXN."""

import asyncio
import time
from collections.abc import Awaitable, Collection, Coroutine, Sequence
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import Redis

from metering.answered import AnsweredOrder
from metering.clock import period_at
from metering.events import UNKNOWN, StoredImage, decode_images, encode_images
from metering.ports import Delivered
from metering.pricing import Quote
from metering.shares import Bound
from metering.turns import Turns
from metering.wallet import keys
from metering.wallet.alarms import below_zero
from metering.wallet.connection import NotProjected, Pulse, WalletAway, load_script, server_of, servers, verdict
from metering.wallet.inspection import Inspection
from metering.wallet.values import (
    Admission,
    Caller,
    Close,
    Closing,
    OrderIdentity,
    OrderStatus,
    RateState,
    Rehearsal,
    Replay,
    Verdict,
    WalletLimits,
    WalletSnapshot,
)

_LATEST_S = 1.0
"""An admission that Redis has not begun by then must not begin at all (rule 6): far beyond the wait for a verdict."""


_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
"""Between the tries of an abandonment: quick for a hiccup, sparing while Redis is down and thousands wait."""


RECENT_S = 180.0
"""An SDK's retry finds its order for so long after the admission: a deadline, a lost connection, and its own pauses.

And for so long after its clients have left without their answer an order is given to the next that is the same.
"""


_SETTLED = {1: Close.CHARGED, 2: Close.REFUSED, 4: Close.LATE}
_VOIDED = {1: Close.VOIDED, 2: Close.CHARGED, 3: Close.UNKNOWN}


class _Server:
    """What one server has told this process: that it lives, and by how much its clock is ahead of the process' own.

    Its connections are taken in turns, so that a burst of one organisation's calls is no queue for another's.
    """

    def __init__(self, connections: int) -> None:
        self.pulse = Pulse()
        self.turns = Turns(Bound(connections))
        self.offset_us = 0


class Wallet:
    """The wallets of all organisations on one Redis. Every method raises WalletAway where Redis gave no verdict.

    `now_us` scripts the time in tests; production sends 0, which means Redis `TIME`.
    """

    def __init__(self, redis: Redis, limits: WalletLimits, now_us: int = 0) -> None:
        self._redis = redis
        self._limits = limits
        self._scripted_us = now_us
        self._servers: WeakKeyDictionary[Redis, _Server] = WeakKeyDictionary()
        self._admit = load_script(redis, "admit_v3")
        self._sandbox = load_script(redis, "sandbox_v1")
        self._settle = load_script(redis, "settle_v2")
        self._void = load_script(redis, "void_v2")
        self._replay = load_script(redis, "replay_v4")
        self._read = load_script(redis, "read_v2")
        self._find = load_script(redis, "find_v2")
        self._gone = load_script(redis, "gone_v2")

    @property
    def inspection(self) -> Inspection:
        """What was projected to the same Redis."""
        return Inspection(self._redis)

    def now_us(self, org_id: str | None = None) -> int:
        """Redis `TIME` as far as this process knows: set right by every verdict, wrong by a round trip at most.

        The masters of a cluster have a clock each: an organisation's is its own master's.
        """
        partition = keys.partition_of(org_id) if org_id else 0
        return self._scripted_us or time.time_ns() // 1000 + self._server(partition).offset_us

    def at(self, now_us: int) -> None:
        """Script the time, for tests."""
        self._scripted_us = now_us

    async def set_clock(self) -> None:
        """Ask every server for its time, before the first admission needs it. Raises RedisError."""
        for server, partitions in await servers(self._redis):
            seconds, microseconds = await server.time()
            self._learn(partitions[0], seconds * 1_000_000 + microseconds)

    async def key(self, key_hash: str) -> Caller | None:
        """The owner of a key; None is certain: the key does not exist."""
        partition, name = keys.key_record(key_hash)
        record, projected = await self._ask_at(partition, self._redis.mget([name, keys.mark(partition)]))
        if record is not None:
            org_id, key_id = record.decode().split()
            return await self._caller(org_id, key_id)
        if projected is None:
            raise NotProjected
        return None

    async def _caller(self, org_id: str, key_id: str) -> Caller:
        names = keys.OrgKeys(org_id)
        asked = self._redis.hmget(names.access(key_id), ["state", "models", "reads", "response_format", "origins"])
        state, *may = await self._ask(names, asked)
        if state is None:
            raise NotProjected
        models, line, response_format, origins = ((one or b"").decode() for one in may)
        return Caller(
            org_id=org_id,
            key_id=key_id,
            models=tuple(models.split()),
            line=tuple(line.split()),
            response_format=response_format or "url",
            origins=tuple(origins.split()),
        )

    async def admit(
        self,
        caller: Caller,
        request_id: str,
        quote: Quote,
        opened: bytes,
        identity: OrderIdentity,
        *,
        life_s: float,
        owner: str,
    ) -> Admission:
        """Open a hold of `quote`'s worst case for `life_s` seconds, or say why not; a denial takes nothing.

        EARLIER: it is an order that was placed before, and counts as a request only.

        Raises NotProjected where nothing can have been written. Where it raises any other WalletAway, the hold may be
        there: the caller must `abandon` it.
        """
        assert not caller.test, "an order of the sandbox holds nothing"
        names = keys.OrgKeys(caller.org_id)
        reply = await self._ask(
            names,
            self._admit(
                keys=[
                    names.mark,
                    names.wallet,
                    names.access(caller.key_id),
                    names.open,
                    names.hold(request_id),
                    names.events,
                ]
                + [names.busy, names.closed(request_id), names.once(identity.key_hash or "-")]
                + [
                    names.recent(caller.key_id, identity.fingerprint),
                    names.retried(caller.key_id, identity.fingerprint),
                ],
                args=[
                    self._scripted_us,
                    self.now_us(caller.org_id) + int(_LATEST_S * 1_000_000),
                    quote.period.start_us,
                    quote.period.end_us,
                    caller.org_id,
                    caller.key_id,
                    request_id,
                    quote.images,
                    quote.total_micro_mxn,
                    int(life_s * 1_000_000),
                    self._limits.max_open_holds,
                    self._limits.stream_backlog,
                    self._limits.remember_s,
                    opened,
                    identity.fingerprint,
                    int(identity.key_hash is not None),
                    self._limits.remember_s,
                    -1 if identity.tries is None else identity.tries,
                    int(RECENT_S * 1_000_000),
                    owner,
                    quote.price.model,
                    quote.period.day,
                    quote.period.month,
                ],
            ),
        )
        self._learn(names.partition, reply[1])
        if reply[0] == Verdict.AWAY:
            raise NotProjected
        return Admission(
            verdict=Verdict(reply[0]),
            now_us=reply[1],
            available_micro_mxn=reply[2],
            requests=RateState(*reply[3:6]),
            images=RateState(*reply[6:9]),
            retry_us=reply[9],
            earlier=_status(reply[10], reply[11], reply[12]) if reply[0] == Verdict.DUPLICATE else None,
            whose=reply[13].decode(),
            limit=reply[14],
            used=reply[15],
        )

    async def admit_test(
        self, caller: Caller, model: str, images: int, identity: OrderIdentity, request_id: str
    ) -> Rehearsal:
        """Let an order of the sandbox pass, or say why not. It moves no money, and counts for no live order.

        EARLIER: it is the order that was placed before under the same idempotency key, and counts as a request only.
        """
        names = keys.OrgKeys(caller.org_id)
        reply = await self._ask(
            names,
            self._sandbox(
                keys=[names.mark, names.wallet, names.access(caller.key_id)]
                + [names.sandbox_once(identity.key_hash or "-")],
                args=[
                    self._scripted_us,
                    caller.org_id,
                    request_id,
                    images,
                    model,
                    identity.fingerprint,
                    int(identity.key_hash is not None),
                    self._limits.remember_s,
                ],
            ),
        )
        self._learn(names.partition, reply[1])
        if reply[0] == Verdict.AWAY:
            raise NotProjected
        admission = Admission(
            verdict=Verdict(reply[0]),
            now_us=reply[1],
            available_micro_mxn=reply[2],
            requests=RateState(*reply[3:6]),
            images=RateState(*reply[6:9]),
            retry_us=reply[9],
            whose="key",
        )
        return Rehearsal(admission, reply[10].decode(), reply[11])

    async def status_of(self, org_id: str, request_id: str) -> OrderStatus | None:
        """How an order of this organisation stands; None for one that is not known here."""
        names = keys.OrgKeys(org_id)
        found = self._find(keys=[names.mark], args=[self._scripted_us, org_id, request_id])
        reply = await self._ask(names, found)
        if reply[0] == 0:
            raise NotProjected
        return _status(request_id.encode(), *reply[1:]) if reply[1] else None

    async def is_alive(self, org_id: str, owner: str) -> bool:
        """Has this gateway said lately that it is alive?"""
        return bool(await self._ask(keys.OrgKeys(org_id), self._redis.exists(keys.alive(owner))))

    async def order_of_key(self, org_id: str, key_hash: str) -> str | None:
        """The order that an idempotency key stands for."""
        names = keys.OrgKeys(org_id)
        record = await self._ask(names, self._redis.get(names.once(key_hash)))
        return None if record is None else record.decode().split()[0]

    async def result(self, org_id: str, request_id: str) -> Delivered | None:
        """Of a charged order of this organisation, for a day."""
        names = keys.OrgKeys(org_id)
        found = self._redis.hmget(names.result(request_id), ["org", "images", "result", "key"])
        owner, images, document, key_id = await self._ask(names, found)
        if owner is None or owner.decode() != org_id:
            return None
        return Delivered(request_id, decode_images(images), document, (key_id or b"").decode())

    async def client_gone(
        self, caller: Caller, request_id: str, identity: OrderIdentity, *, asked_by: str | None = None
    ) -> None:
        """A client left this order without its answer: who placed it, or the request `asked_by` that joined it.

        Where all have left, the next that places the same is given it, once, within `RECENT_S` (rule 38). One with an
        idempotency key is found by that alone.
        """
        if identity.key_hash is not None:
            return
        names = keys.OrgKeys(caller.org_id)
        written = self._gone(
            keys=[names.mark, names.claims(request_id), names.asking(request_id)]
            + [names.gone(caller.key_id, identity.fingerprint)],
            args=[
                self._scripted_us,
                int(RECENT_S * 1_000_000),
                caller.org_id,
                request_id,
                asked_by or request_id,
                -1 if identity.tries is None else identity.tries,
            ],
        )
        await self._ask(names, written)

    async def settle(
        self,
        org_id: str,
        request_id: str,
        amount_micro_mxn: int,
        images: tuple[StoredImage, ...],
        *,
        latest_us: int,
        usd_measured: str | None = None,
        result: bytes = b"",
    ) -> Closing:
        """Charge `amount_micro_mxn` for the stored images and give back the rest of the hold.

        Without `usd_measured`, the provider's own figure, the amount is quantity × unit price; with it, at most that.

        Asked again, it gives the same answer. After `latest_us` by Redis `TIME` it writes nothing and says LATE.
        """
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            names,
            self._settle(
                keys=[names.mark, names.wallet, names.open, names.hold(request_id), names.events]
                + [names.closed(request_id)],
                args=[
                    self._scripted_us,
                    latest_us,
                    org_id,
                    request_id,
                    len(images),
                    amount_micro_mxn,
                    self._limits.remember_s,
                    encode_images(images),
                    usd_measured or "",
                    result,
                ],
            ),
        )
        closing = self._closing(names.partition, _SETTLED, reply)
        below_zero(org_id, reply[4], cause="settlement", request_id=request_id)
        return closing

    async def void(self, org_id: str, request_id: str, reason: str, *, comes_again: bool = False) -> Closing:
        """End an order without a charge. CHARGED means that a charge came first, and stands.

        Its idempotency key may be used again, unless nobody knows what became of it upstream. `comes_again`: who
        waits for it is told to try again. That try of an SDK, or the one of a client that is gone and was not back yet,
        repeats none of the orders that are the same.
        """
        names, frees = keys.OrgKeys(org_id), int(reason not in UNKNOWN)
        reply = await self._ask(
            names,
            self._void(
                keys=[names.mark, names.wallet, names.open, names.hold(request_id), names.events]
                + [names.closed(request_id)],
                args=[self._scripted_us, org_id, request_id, reason, self._limits.remember_s, frees]
                + [int(RECENT_S * 1_000_000), int(comes_again)],
            ),
        )
        return self._closing(names.partition, _VOIDED, reply)

    async def replay(self, answered: AnsweredOrder, *, lost_up_to: int = -1) -> Replay:
        """Charge an order that a journal says is answered 200, whatever became of its hold, at most once.

        What was charged longer than a day ago may be forgotten here: the ledger is to be asked first. `lost_up_to`: it
        has every event of the organisation up to this one's number and not the order's, so that what is remembered of
        its charge counts for nothing; once, unless that is lost again.
        """
        names, period = keys.OrgKeys(answered.org_id), period_at(answered.admitted_us)
        reply = await self._ask(
            names,
            self._replay(
                keys=[names.mark, names.wallet, names.open, names.hold(answered.request_id), names.events]
                + [names.closed(answered.request_id), names.once(answered.key_hash or "-")]
                + [names.retried(answered.key_id, answered.fingerprint)],
                args=[
                    self._scripted_us,
                    answered.org_id,
                    answered.request_id,
                    len(answered.images),
                    answered.amount_micro_mxn,
                    self._limits.remember_s,
                    encode_images(answered.images),
                    answered.usd_measured or "",
                    answered.opened,
                    answered.admitted_us,
                    answered.ended_us,
                    answered.result,
                    1 if answered.key_hash is not None else 2 * answered.client_gone,
                    answered.key_id,
                    period.day,
                    period.month,
                    lost_up_to,
                    answered.fingerprint,
                    int(RECENT_S * 1_000_000),
                ],
            ),
        )
        if reply[0] not in (Replay.CHARGED, Replay.SERVED):
            raise NotProjected
        self._learn(names.partition, reply[1])
        below_zero(answered.org_id, reply[4], cause="replay", request_id=answered.request_id)
        return Replay.NOW if reply[3] else Replay(reply[0])

    async def doubt(self, org_ids: Collection[str]) -> None:
        """The ledger has lost charges of these organisations: their partitions are made anew from it, and until then
        nothing is admitted there. What the streams hold, or can be fed with again, comes before that (rule 34)."""
        for partition in {keys.partition_of(org_id) for org_id in org_ids}:
            await self._ask_at(partition, self._redis.delete(keys.mark(partition)))

    async def abandon(self, org_id: str, request_id: str, reason: str, *, until_us: int) -> Close:
        """Void an order that may not exist yet, again and again, until Redis gives a verdict.

        A hold that is still unknown after the latest moment of its admission can no longer come (rule 6). Gives up,
        with UNKNOWN, at `until_us`: by then the hold has run out by itself.
        """
        latest_us = self.now_us(org_id) + int(_LATEST_S * 1_000_000)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                closing = await self.void(org_id, request_id, reason)
                if closing.close is not Close.UNKNOWN or closing.now_us > latest_us:
                    return closing.close
            except WalletAway:
                if self.now_us(org_id) > until_us:
                    return Close.UNKNOWN
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def read(self, org_id: str, key_id: str = "") -> WalletSnapshot:
        """One organisation at one moment, and the state of one of its keys. Raises NotProjected for an unknown one."""
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            names,
            self._read(
                keys=[names.mark, names.wallet, names.access(key_id)],
                args=[self._scripted_us, org_id, key_id],
            ),
        )
        if reply[0] == 0:
            raise NotProjected
        self._learn(names.partition, reply[1])
        now_us, available, held, charged, total, credit_number, number, state, lost = reply[1:]
        return WalletSnapshot(
            now_us, available, held, charged, total, credit_number, number, lost, key_state=state.decode()
        )

    async def last_used(self, org_id: str, key_ids: Sequence[str]) -> dict[str, int]:
        """Key id → Unix µs of the last order that it placed; without those of which Redis knows nothing."""
        names = keys.OrgKeys(org_id)

        async def look() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key_id in key_ids:
                    pipe.hget(names.access(key_id), "used_us")
                return list(await pipe.execute())

        found = zip(key_ids, await self._ask(names, look()), strict=True)
        return {key_id: int(at_us) for key_id, at_us in found if at_us is not None}

    async def _ask(self, names: keys.OrgKeys, call: Awaitable[Any]) -> Any:
        return await self._ask_at(names.partition, call, names.org_id)

    async def _ask_at(self, partition: int, call: Awaitable[Any], org_id: str = "") -> Any:
        server = self._server(partition)

        async def answer() -> Any:
            try:
                async with server.turns.hold(org_id):
                    return await call
            finally:
                if isinstance(call, Coroutine):
                    call.close()  # where its turn did not come

        return await verdict(answer(), self._limits.decision_s, server.pulse)

    def _closing(self, partition: int, meaning: dict[int, Close], reply: list[int]) -> Closing:
        self._learn(partition, reply[1])
        if reply[0] not in meaning:
            raise NotProjected
        return Closing(close=meaning[reply[0]], now_us=reply[1], available_micro_mxn=reply[2])

    def _learn(self, partition: int, now_us: int) -> None:
        self._server(partition).offset_us = now_us - time.time_ns() // 1000

    def _server(self, partition: int) -> _Server:
        redis = server_of(self._redis, partition)
        if (known := self._servers.get(redis)) is None:
            known = self._servers[redis] = _Server(redis.connection_pool.max_connections)
        return known


def _status(request_id: bytes, standing: bytes, owner: bytes | None, key_id: bytes = b"") -> OrderStatus:
    """From `open`, or `ending:amount:reason`."""
    end, amount, reason = (standing.decode().split(":") + ["0", ""])[:3]
    return OrderStatus(request_id.decode(), end, reason, int(amount), (owner or b"").decode(), key_id.decode())
