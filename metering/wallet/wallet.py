"""An organisation's hot state in Redis: holds, limits, settlement. One script a step; money is integer micro-MXN."""

import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio import Redis

from metering.answered import AnsweredOrder
from metering.clock import period_at
from metering.events import (
    CAUSED,
    UNKNOWN,
    UNPAID,
    UNTOLD,
    StoredImage,
    Upstream,
    decode_images,
    encode_images,
    encode_route,
)
from metering.pauses import Pauses
from metering.ports import Delivered
from metering.pricing import Quote
from metering.wallet import keys
from metering.wallet.alarms import below_zero
from metering.wallet.connection import NotProjected, WalletAway, server_of, servers
from metering.wallet.inspection import Inspection
from metering.wallet.script import Script, load_rehearsal, load_script
from metering.wallet.server import Call, Server
from metering.wallet.values import (
    Admission,
    Caller,
    Close,
    Closing,
    LongTerms,
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
"""If Redis has not begun an admission by then, it must not begin it (rule 6): far beyond the wait for a verdict."""


_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
"""Pauses between the tries of an abandonment: short for a hiccup, long while Redis is down and thousands wait."""


RECENT_S = 180.0
"""How long after the admission an SDK's retry finds its order: a deadline, a lost connection, and the SDK's own pauses.

For the same time after an order's clients have all left without their answer, the next equal order receives its result.
"""

_RECENT_US = int(RECENT_S * 1_000_000)


class Wallet:
    """The wallets of all organisations on one Redis. Every method raises WalletAway if Redis gave no verdict.

    `now_us` scripts the time in tests; production sends 0, which means Redis `TIME`.
    """

    def __init__(self, redis: Redis, limits: WalletLimits, now_us: int = 0) -> None:
        self._redis = redis
        self._limits = limits
        self._scripted_us = now_us
        self._servers: WeakKeyDictionary[Redis, Server] = WeakKeyDictionary()
        self._admit = load_script(redis, "admit_v5", Verdict)
        self._rehearse = load_rehearsal(redis, "admit_v5", "rehearse", Verdict)
        self._sandbox = load_script(redis, "sandbox_v1", Verdict)
        self._settle = load_script(redis, "settle_v4", Close)
        self._void = load_script(redis, "void_v4", Close)
        self._replay = load_script(redis, "replay_v7", Replay)
        self._read = load_script(redis, "read_v2")
        self._find = load_script(redis, "find_v3")
        self._gone = load_script(redis, "gone_v2")

    @property
    def inspection(self) -> Inspection:
        """The reader of what was projected to the same Redis."""
        return Inspection(self._redis)

    @property
    def remember_s(self) -> int:
        """How long the end of an order is remembered, in seconds."""
        return self._limits.remember_s

    @property
    def max_unpaid_micro_mxn(self) -> int:
        """The bound of what an organisation's orders without a known end, or cancelled, may have cost in an hour."""
        return self._limits.max_unpaid_micro_mxn

    def now_us(self, org_id: str | None = None) -> int:
        """Return Redis `TIME` as this process estimates it: every verdict corrects it; the error is a round trip
        at most.

        Each master of a cluster has its own clock; an organisation uses its own master's.
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
        """Find the owner of a key; None is certain: the key does not exist."""
        partition, name = keys.key_record(key_hash)
        record, projected = await self._ask_at(partition, lambda: self._redis.mget([name, keys.mark(partition)]))
        if record is not None:
            org_id, key_id = record.decode().split()
            return await self._caller(org_id, key_id)
        if projected is None:
            raise NotProjected
        return None

    async def _caller(self, org_id: str, key_id: str) -> Caller:
        names = keys.OrgKeys(org_id)
        fields = ["state", "models", "reads", "response_format", "origins"]
        state, *may = await self._ask(names, lambda: self._redis.hmget(names.access(key_id), fields))
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
        order_id: str,
        quote: Quote,
        opened: bytes,
        identity: OrderIdentity,
        *,
        life_s: float,
        owner: str,
        trace: str = "",
        long: LongTerms | None = None,
        slow: bool = False,
    ) -> Admission:
        """Open a hold of `quote`'s worst case for `life_s` seconds, or say why not; a denial takes nothing.

        EARLIER: the order is a duplicate, and counts as a request only. `trace`, the `traceparent` of its request,
        comes back with the order's event, however it ends. `long`: nobody waits for it. `slow`: it takes longer than
        its client may wait, so if it is no duplicate the verdict is SLOW.

        Raises NotProjected if nothing can have been written. If it raises any other WalletAway, the hold may exist: the
        caller must `abandon` it.
        """
        return await self._decide(
            self._admit, caller, order_id, quote, opened, identity, life_s, owner, trace, long, slow=slow
        )

    async def would_admit(self, caller: Caller, order_id: str, quote: Quote, identity: OrderIdentity) -> Admission:
        """Say what `admit` would say at this moment, with the rates as they are before it. Nothing is changed.

        Raises WalletAway.
        """
        return await self._decide(self._rehearse, caller, order_id, quote, b"{}", identity, 1.0, "", "")

    async def _decide(
        self,
        script: Script,
        caller: Caller,
        order_id: str,
        quote: Quote,
        opened: bytes,
        identity: OrderIdentity,
        life_s: float,
        owner: str,
        trace: str,
        long: LongTerms | None = None,
        *,
        slow: bool = False,
    ) -> Admission:
        assert not caller.test, "an order of the sandbox holds nothing"
        names = keys.OrgKeys(caller.org_id)
        reply = await self._ask(
            names,
            lambda: script(
                keys={
                    "mark": names.mark,
                    "wallet": names.wallet,
                    "access": names.access(caller.key_id),
                    "open": names.open,
                    "hold": names.hold(order_id),
                    "events": names.events,
                    "busy": names.busy,
                    "closed": names.closed(order_id),
                    "once": names.once(identity.key_hash or "-"),
                    "recent": names.recent(caller.key_id, identity.fingerprint),
                    "retried": names.retried(caller.key_id, identity.fingerprint),
                },
                now_us=self._scripted_us,
                latest_us=self.now_us(caller.org_id) + int(_LATEST_S * 1_000_000),
                from_us=quote.from_us,
                quoted_until_us=quote.until_us,
                org=caller.org_id,
                key_id=caller.key_id,
                request=order_id,
                images=quote.images,
                amount=quote.total_micro_mxn,
                life_us=int(life_s * 1_000_000),
                max_holds=self._limits.max_open_holds,
                backlog=self._limits.stream_backlog,
                remember_s=self._limits.remember_s,
                opened=opened,
                fingerprint=identity.fingerprint,
                keyed=int(identity.key_hash is not None),
                once_s=self._limits.remember_s + (int(life_s) if long is not None else 0),
                tries=_tries(identity),
                recent_us=_RECENT_US,
                owner=owner,
                trace=trace,
                model=quote.price.model,
                day=quote.period.day,
                month=quote.period.month,
                long=b"" if long is None else long.document,
                deadline_us=0 if long is None else int(long.deadline_s * 1_000_000),
                slow=int(slow),
                max_unpaid=self._limits.max_unpaid_micro_mxn,
            ),
        )
        admission = self._admission(names.partition, reply, whose=reply["whose"])
        if admission.verdict is not Verdict.DUPLICATE:
            return admission
        return replace(admission, earlier=_status(reply["earlier"], reply["ending"], reply["owner"]))

    async def admit_test(
        self, caller: Caller, model: str, images: int, identity: OrderIdentity, order_id: str
    ) -> Rehearsal:
        """Let an order of the sandbox pass, or say why not. It moves no money, and does not count as a live order.

        EARLIER: an order was placed before under the same idempotency key; this one counts as a request only.
        """
        names = keys.OrgKeys(caller.org_id)
        reply = await self._ask(
            names,
            lambda: self._sandbox(
                keys={
                    "mark": names.mark,
                    "wallet": names.wallet,
                    "access": names.access(caller.key_id),
                    "once": names.sandbox_once(identity.key_hash or "-"),
                },
                now_us=self._scripted_us,
                org=caller.org_id,
                request=order_id,
                images=images,
                model=model,
                fingerprint=identity.fingerprint,
                keyed=int(identity.key_hash is not None),
                once_s=self._limits.remember_s,
            ),
        )
        return Rehearsal(self._admission(names.partition, reply, whose="key"), reply["order"], reply["admitted_s"])

    async def status_of(self, org_id: str, order_id: str) -> OrderStatus | None:
        """Read the status of an order of this organisation; None if it is not known here."""
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            names,
            lambda: self._find(keys={"mark": names.mark}, now_us=self._scripted_us, org=org_id, request=order_id),
        )
        if not reply["known"]:
            raise NotProjected
        if not reply["ending"]:
            return None
        return replace(
            _status(order_id, reply["ending"], reply["owner"], reply["key_id"]),
            long=bool(reply["long"]),
            begun=bool(reply["begun"]),
            held_micro_mxn=reply["held"],
            admitted_us=reply["admitted_us"],
            model=reply["model"],
        )

    async def is_alive(self, org_id: str, owner: str) -> bool:
        """Check whether this gateway's heartbeat is recent."""
        return bool(await self._ask(keys.OrgKeys(org_id), lambda: self._redis.exists(keys.alive(owner))))

    async def order_of_key(self, org_id: str, key_hash: str) -> str | None:
        """Find the order that was placed under an idempotency key."""
        names = keys.OrgKeys(org_id)
        record = await self._ask(names, lambda: self._redis.get(names.once(key_hash)))
        return None if record is None else record.decode().split()[0]

    async def result(self, org_id: str, order_id: str) -> Delivered | None:
        """Read the result of a charged order of this organisation; it is kept for a day."""
        names = keys.OrgKeys(org_id)
        fields = ["org", "images", "result", "key"]
        owner, images, document, key_id = await self._ask(
            names, lambda: self._redis.hmget(names.result(order_id), fields)
        )
        if owner is None or owner.decode() != org_id:
            return None
        return Delivered(order_id, decode_images(images), document, (key_id or b"").decode())

    async def client_gone(
        self, caller: Caller, order_id: str, identity: OrderIdentity, *, asked_by: str | None = None
    ) -> None:
        """Record that a client left this order without its answer: who placed it, or `asked_by`, which joined.

        If all have left, the next client that places the same order receives it, once, within `RECENT_S` (rule 38). An
        order with an idempotency key is found by that key alone.
        """
        if identity.key_hash is not None:
            return
        names = keys.OrgKeys(caller.org_id)
        await self._ask(
            names,
            lambda: self._gone(
                keys={
                    "mark": names.mark,
                    "claims": names.claims(order_id),
                    "asking": names.asking(order_id),
                    "gone": names.gone(caller.key_id, identity.fingerprint),
                },
                now_us=self._scripted_us,
                recent_us=_RECENT_US,
                org=caller.org_id,
                order=order_id,
                who=asked_by or order_id,
                tries=_tries(identity),
            ),
        )

    async def settle(
        self,
        org_id: str,
        order_id: str,
        amount_micro_mxn: int,
        images: tuple[StoredImage, ...],
        *,
        latest_us: int,
        owner: str = "",
        usd_measured: str | None = None,
        result: bytes = b"",
        upstream: Upstream = UNTOLD,
    ) -> Closing:
        """Charge `amount_micro_mxn` for the stored images and give back the rest of the hold.

        Without `usd_measured`, the provider's own figure, the amount is quantity × unit price; with it, at most that.

        If repeated, it gives the same answer. A long order that another gateway has taken over is NOT_OWNER.
        After `latest_us` by Redis `TIME` it writes nothing and returns LATE.
        """
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            names,
            lambda: self._settle(
                keys=_ending_keys(names, order_id),
                now_us=self._scripted_us,
                latest_us=latest_us,
                org=org_id,
                request=order_id,
                quantity=len(images),
                amount=amount_micro_mxn,
                remember_s=self._limits.remember_s,
                images=encode_images(images),
                usd_measured=usd_measured or "",
                result=result,
                owner=owner,
                **_told_by(upstream),
            ),
        )
        closing = self._closing(names.partition, reply)
        below_zero(org_id, reply["below"], cause="settlement", order_id=order_id)
        return closing

    async def void(
        self,
        org_id: str,
        order_id: str,
        reason: str,
        *,
        owner: str = "",
        comes_again: bool = False,
        upstream: Upstream = UNTOLD,
    ) -> Closing:
        """End an order without a charge. CHARGED means that a charge came first, and stands.

        Its idempotency key may be used again, unless nobody knows what happened to the order upstream. `comes_again`:
        the reply tells the client to try again. That retry of an SDK, or the one of a client that left and has not come
        back yet, is no duplicate of any equal order. `owner` is who makes the order: if another has taken it over, the
        answer is NOT_OWNER; and so it is for one whose admission was not heard, if a client was told of it since.
        """
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            names,
            lambda: self._void(
                keys=_ending_keys(names, order_id),
                now_us=self._scripted_us,
                org=org_id,
                request=order_id,
                reason=reason,
                remember_s=self._limits.remember_s,
                frees=int(reason not in UNKNOWN),
                recent_us=_RECENT_US,
                comes_again=int(comes_again),
                owner=owner,
                unpaid=(reason in UNPAID) + (reason in CAUSED),
                **_told_by(upstream),
            ),
        )
        return self._closing(names.partition, reply)

    async def replay(self, answered: AnsweredOrder, *, lost_up_to: int = -1) -> Replay:
        """Charge an order that was answered 200 according to a journal, whatever happened to its hold, at most once.

        Redis may have forgotten a charge older than a day, so the caller asks the ledger first. `lost_up_to`: the
        ledger has every event of the organisation up to this number, but not the order's; so what Redis remembers of
        its charge is ignored, once, unless the charge is lost again.
        """
        names, period = keys.OrgKeys(answered.org_id), period_at(answered.admitted_us)
        reply = await self._ask(
            names,
            lambda: self._replay(
                keys=_ending_keys(names, answered.order_id)
                | {
                    "once": names.once(answered.key_hash or "-"),
                    "retried": names.retried(answered.key_id, answered.fingerprint),
                },
                now_us=self._scripted_us,
                org=answered.org_id,
                request=answered.order_id,
                quantity=len(answered.images),
                amount=answered.amount_micro_mxn,
                remember_s=self._limits.remember_s,
                images=encode_images(answered.images),
                usd_measured=answered.usd_measured or "",
                opened=answered.opened,
                admitted_us=answered.admitted_us,
                ended_us=answered.ended_us,
                result=answered.result,
                placed=1 if answered.key_hash is not None else 2 * answered.client_gone,
                key_id=answered.key_id,
                day=period.day,
                month=period.month,
                lost_up_to=lost_up_to,
                fingerprint=answered.fingerprint,
                recent_us=_RECENT_US,
                trace=answered.trace,
                **_told_by(answered.upstream),
            ),
        )
        replayed = Replay(reply["code"])
        if replayed is Replay.AWAY:
            raise NotProjected
        self._learn(names.partition, reply["now_us"])
        below_zero(answered.org_id, reply["below"], cause="replay", order_id=answered.order_id)
        return replayed

    async def doubt(self, org_ids: Collection[str]) -> None:
        """Have the partitions of organisations whose charges the ledger has lost rebuilt from it; until then nothing is
        admitted there. What the streams hold, or can be fed with again, is booked before that (rule 34)."""
        for partition in {keys.partition_of(org_id) for org_id in org_ids}:
            await self._ask_at(partition, partial(self._redis.delete, keys.mark(partition)))

    async def abandon(
        self,
        org_id: str,
        order_id: str,
        reason: str,
        *,
        until_us: int,
        owner: str = "",
        comes_again: bool = False,
        upstream: Upstream = UNTOLD,
    ) -> Close:
        """Void an order that may not exist yet, again and again, until Redis gives a verdict.

        If a hold is still unknown after the latest moment of its admission, it can no longer appear (rule 6). Gives up
        and returns UNKNOWN at `until_us`: by then the hold has expired by itself.
        """
        latest_us = self.now_us(org_id) + int(_LATEST_S * 1_000_000)
        async for _ in Pauses(_FIRST_PAUSE_S, _LONGEST_PAUSE_S):
            try:
                closing = await self.void(
                    org_id, order_id, reason, owner=owner, comes_again=comes_again, upstream=upstream
                )
                if closing.close is not Close.UNKNOWN or closing.now_us > latest_us:
                    return closing.close
            except WalletAway:
                if self.now_us(org_id) > until_us:
                    break
        return Close.UNKNOWN

    async def read(self, org_id: str, key_id: str = "") -> WalletSnapshot:
        """Read one organisation at one moment, and the state of one of its keys. Raises NotProjected if unknown."""
        names = keys.OrgKeys(org_id)
        reply = await self._ask(
            names,
            lambda: self._read(
                keys={"mark": names.mark, "wallet": names.wallet, "access": names.access(key_id)},
                now_us=self._scripted_us,
                org=org_id,
                key_id=key_id,
            ),
        )
        if not reply["known"]:
            raise NotProjected
        self._learn(names.partition, reply["now_us"])
        return WalletSnapshot(
            now_us=reply["now_us"],
            available_micro_mxn=reply["available"],
            held_micro_mxn=reply["held"],
            charged_micro_mxn=reply["charged"],
            credits_micro_mxn=reply["credits"],
            credit_number=reply["credit_number"],
            number=reply["number"],
            lost_events=reply["lost"],
            unpaid_micro_mxn=reply["unpaid"],
            key_state=reply["key_state"],
        )

    async def last_used(self, org_id: str, key_ids: Sequence[str]) -> dict[str, int]:
        """Return key id → Unix µs of the last order that it placed; without keys that Redis does not know."""
        names = keys.OrgKeys(org_id)

        async def look() -> list[Any]:
            async with self._redis.pipeline(transaction=False) as pipe:
                for key_id in key_ids:
                    pipe.hget(names.access(key_id), "used_us")
                return list(await pipe.execute())

        found = zip(key_ids, await self._ask(names, look), strict=True)
        return {key_id: int(at_us) for key_id, at_us in found if at_us is not None}

    async def _ask(self, names: keys.OrgKeys, call: Call) -> Any:
        return await self._ask_at(names.partition, call, names.org_id)

    async def _ask_at(self, partition: int, call: Call, org_id: str = "") -> Any:
        return await self._server(partition).ask(org_id, call)

    def _admission(self, partition: int, reply: dict[str, Any], whose: str) -> Admission:
        self._learn(partition, reply["now_us"])
        if reply["code"] == Verdict.AWAY:
            raise NotProjected
        return Admission(
            verdict=Verdict(reply["code"]),
            now_us=reply["now_us"],
            available_micro_mxn=reply["available"],
            requests=RateState(reply["requests_limit"], reply["requests_left"], reply["requests_reset_us"]),
            images=RateState(reply["images_limit"], reply["images_left"], reply["images_reset_us"]),
            retry_us=reply["retry_us"],
            whose=whose,
            limit=reply.get("limit", 0),
            used=reply.get("used", 0),
        )

    def _closing(self, partition: int, reply: dict[str, Any]) -> Closing:
        self._learn(partition, reply["now_us"])
        if reply["code"] == Close.AWAY:
            raise NotProjected
        return Closing(Close(reply["code"]), now_us=reply["now_us"], available_micro_mxn=reply["available"])

    def _learn(self, partition: int, now_us: int) -> None:
        self._server(partition).offset_us = now_us - time.time_ns() // 1000

    def _server(self, partition: int) -> Server:
        redis = server_of(self._redis, partition)
        if (known := self._servers.get(redis)) is None:
            known = self._servers[redis] = Server(redis, self._limits.decision_s)
        return known


def _tries(identity: OrderIdentity) -> int:
    """Return the number of tries as scripts take it: -1 if no SDK counts them."""
    return -1 if identity.tries is None else identity.tries


def _told_by(upstream: Upstream) -> dict[str, str]:
    """Return what a provider told as scripts take it."""
    return {
        "upstream_ids": upstream.ids or "",
        "upstream_usd": upstream.usd or "",
        "route": encode_route(upstream.route),
    }


def _ending_keys(names: keys.OrgKeys, order_id: str) -> dict[str, str]:
    """Return the keys that every script that ends an order takes."""
    return {
        "mark": names.mark,
        "wallet": names.wallet,
        "open": names.open,
        "hold": names.hold(order_id),
        "events": names.events,
        "closed": names.closed(order_id),
    }


def _status(order_id: str, standing: str, owner: str, key_id: str = "") -> OrderStatus:
    """Parse a status from `open`, or `ending:amount:reason`."""
    end, amount, reason = (standing.split(":") + ["0", ""])[:3]
    return OrderStatus(order_id, end, reason, int(amount), owner, key_id)
