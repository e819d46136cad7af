"""An organisation's hot state in Redis: holds, limits, settlement. One script a step; money is integer micro-MXN."""

import asyncio
import time
from collections.abc import Awaitable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from redis.asyncio import Redis

from metering.answered import Answered
from metering.events import StoredImage, encode_images
from metering.pricing import Quote
from metering.wallet import keys
from metering.wallet.connection import NotProjected, Pulse, WalletAway, load_script, verdict

_LATEST_S = 1.0
"""An admission that Redis has not begun by then must not begin at all (rule 6): far beyond the wait for a verdict."""


_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
"""Between the tries of an abandonment: quick for a hiccup, sparing while Redis is down and thousands wait."""


class Verdict(IntEnum):
    """What the admit script says."""

    ADMITTED = 1
    AWAY = 2
    LATE = 3
    OTHER_PERIOD = 4
    REVOKED = 5
    BALANCE = 6
    BACKLOG = 7
    HOLDS = 8
    REQUESTS = 9
    IMAGES = 10


class Close(IntEnum):
    """What the settle and void scripts say; UNKNOWN and LATE wrote nothing."""

    CHARGED = 1
    REFUSED = 2
    VOIDED = 3
    UNKNOWN = 4
    LATE = 5


_SETTLED = {1: Close.CHARGED, 2: Close.REFUSED, 4: Close.LATE}
_VOIDED = {1: Close.VOIDED, 2: Close.CHARGED, 3: Close.UNKNOWN}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: an organisation by one of its keys."""

    org_id: str
    key_id: str


@dataclass(frozen=True, slots=True)
class RateState:
    """One rate limit after this request: per minute, what is left, and when all of it is back."""

    limit: int
    remaining: int
    reset_us: int


@dataclass(frozen=True, slots=True)
class Admission:
    """The admit script's verdict. `retry_us` is 0 where waiting does not help."""

    verdict: Verdict
    now_us: int
    available_micro_mxn: int
    requests: RateState
    images: RateState
    retry_us: int


@dataclass(frozen=True, slots=True)
class Closing:
    """How an order ended, as far as the wallet knows."""

    close: Close
    now_us: int
    available_micro_mxn: int


@dataclass(frozen=True, slots=True)
class Cut:
    """One organisation's wallet at one moment: credits = available + held + charged; expired holds are available."""

    now_us: int
    available_micro_mxn: int
    held_micro_mxn: int
    charged_micro_mxn: int
    credits_micro_mxn: int
    credit_number: int
    number: int
    key_state: str


@dataclass(frozen=True, slots=True)
class WalletLimits:
    """What bounds one wallet's work and memory; the numbers and their reasons are in settings."""

    decision_s: float
    most_open_holds: int
    stream_backlog: int
    remember_s: int


class Wallet:
    """The wallets of all organisations on one Redis. Every method raises WalletAway where Redis gave no verdict.

    `now_us` scripts the time in tests; production sends 0, which means Redis `TIME`.
    """

    def __init__(self, redis: Redis, limits: WalletLimits, now_us: int = 0) -> None:
        self._redis = redis
        self._limits = limits
        self._scripted_us = now_us
        self._offset_us = 0
        self._pulse = Pulse()
        self._admit = load_script(redis, "admit_v1")
        self._settle = load_script(redis, "settle_v1")
        self._void = load_script(redis, "void_v1")
        self._replay = load_script(redis, "replay_v1")
        self._read = load_script(redis, "read_v1")

    def now_us(self) -> int:
        """Redis `TIME` as far as this process knows: set right by every verdict, wrong by a round trip at most."""
        return self._scripted_us or time.time_ns() // 1000 + self._offset_us

    def at(self, now_us: int) -> None:
        """Script the time, for tests."""
        self._scripted_us = now_us

    async def set_clock(self) -> None:
        """Ask Redis for its time, before the first admission needs it. Raises RedisError."""
        seconds, microseconds = await self._redis.time()
        self._learn(seconds * 1_000_000 + microseconds)

    async def key(self, key_hash: str) -> Caller | None:
        """The owner of a key; None is certain: the key does not exist."""
        partition, name = keys.key_record(key_hash)
        record, projected = await self._ask(self._redis.mget([name, keys.mark(partition)]))
        if record is not None:
            org_id, key_id = record.decode().split()
            return Caller(org_id=org_id, key_id=key_id)
        if projected is None:
            raise NotProjected
        return None

    async def admit(self, caller: Caller, request_id: str, quote: Quote, opened: bytes, *, life_s: float) -> Admission:
        """Open a hold of `quote`'s worst case for `life_s` seconds, or say why not; a denial writes nothing.

        Raises NotProjected where nothing can have been written. Where it raises any other WalletAway, the hold may be
        there: the caller must `abandon` it.
        """
        names = keys.OrgKeys(caller.org_id)
        reply = await self._ask(
            self._admit(
                keys=[
                    names.mark,
                    names.wallet,
                    names.key_states,
                    names.open,
                    names.hold(request_id),
                    names.events,
                ]
                + [names.busy, names.closed(request_id)],
                args=[
                    self._scripted_us,
                    self.now_us() + int(_LATEST_S * 1_000_000),
                    quote.period.start_us,
                    quote.period.end_us,
                    caller.org_id,
                    caller.key_id,
                    request_id,
                    quote.images,
                    quote.total_micro_mxn,
                    int(life_s * 1_000_000),
                    self._limits.most_open_holds,
                    self._limits.stream_backlog,
                    self._limits.remember_s,
                    opened,
                ],
            )
        )
        self._learn(reply[1])
        if reply[0] == Verdict.AWAY:
            raise NotProjected
        return Admission(
            verdict=Verdict(reply[0]),
            now_us=reply[1],
            available_micro_mxn=reply[2],
            requests=RateState(*reply[3:6]),
            images=RateState(*reply[6:9]),
            retry_us=reply[9],
        )

    async def settle(
        self,
        org_id: str,
        request_id: str,
        amount_micro_mxn: int,
        images: tuple[StoredImage, ...],
        *,
        latest_us: int,
        usd_measured: str | None = None,
    ) -> Closing:
        """Charge `amount_micro_mxn` for the stored images and give back the rest of the hold.

        Without `usd_measured`, the provider's own figure, the amount is quantity × unit price; with it, at most that.

        Asked again, it gives the same answer. After `latest_us` by Redis `TIME` it writes nothing and says LATE.
        """
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
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
                ],
            )
        )
        return self._closing(_SETTLED, reply)

    async def void(self, org_id: str, request_id: str, reason: str) -> Closing:
        """End an order without a charge. CHARGED means that a charge came first, and stands."""
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            self._void(
                keys=[names.mark, names.wallet, names.open, names.hold(request_id), names.events]
                + [names.closed(request_id)],
                args=[self._scripted_us, org_id, request_id, reason, self._limits.remember_s],
            )
        )
        return self._closing(_VOIDED, reply)

    async def replay(self, answered: Answered) -> bool:
        """Charge an order that a journal says is answered 200, whatever became of its hold; False where it was already.

        What was charged longer than a day ago may be forgotten here: the ledger is to be asked first.
        """
        names = keys.OrgKeys(answered.org_id)
        reply = await self._ask(
            self._replay(
                keys=[names.mark, names.wallet, names.open, names.hold(answered.request_id), names.events]
                + [names.closed(answered.request_id)],
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
                ],
            )
        )
        self._closing(_SETTLED, reply)
        return bool(reply[3])

    async def abandon(self, org_id: str, request_id: str, reason: str, *, until_us: int) -> Close:
        """Void an order that may not exist yet, again and again, until Redis gives a verdict.

        A hold that is still unknown after the latest moment of its admission can no longer come (rule 6). Gives up,
        with UNKNOWN, at `until_us`: by then the hold has run out by itself.
        """
        latest_us = self.now_us() + int(_LATEST_S * 1_000_000)
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                closing = await self.void(org_id, request_id, reason)
                if closing.close is not Close.UNKNOWN or closing.now_us > latest_us:
                    return closing.close
            except WalletAway:
                if self.now_us() > until_us:
                    return Close.UNKNOWN
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def read(self, org_id: str, key_id: str = "") -> Cut:
        """One organisation at one moment, and the state of one of its keys."""
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            self._read(
                keys=[names.mark, names.wallet, names.key_states],
                args=[self._scripted_us, org_id, key_id],
            )
        )
        if reply[0] == 0:
            raise NotProjected
        self._learn(reply[1])
        now_us, available, held, charged, total, credit_number, number, state = reply[1:]
        return Cut(now_us, available, held, charged, total, credit_number, number, key_state=state.decode())

    async def _ask(self, call: Awaitable[Any]) -> Any:
        async def answer() -> Any:
            return await call

        return await verdict(answer(), self._limits.decision_s, self._pulse)

    def _closing(self, meaning: dict[int, Close], reply: list[int]) -> Closing:
        self._learn(reply[1])
        if reply[0] not in meaning:
            raise NotProjected
        return Closing(close=meaning[reply[0]], now_us=reply[1], available_micro_mxn=reply[2])

    def _learn(self, now_us: int) -> None:
        self._offset_us = now_us - time.time_ns() // 1000
