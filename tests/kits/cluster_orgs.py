"""Shared parts of the tests on a cluster: organisations everywhere, and a load that remembers its answers."""

import asyncio
import time
from dataclasses import dataclass, field
from uuid import UUID

from metering.answered import AnsweredOrder
from metering.background import cancel_all
from metering.events import encode_opened
from metering.money import parse_mxn
from metering.ports import ApiKey, NewCredit, Org
from metering.verify import Difference, verify
from metering.wallet import keys
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.values import Caller, Close, Verdict
from metering.wallet.wallet import Wallet
from tests.kits.books import ACT, FACTS, NOON, SECOND_US, UNIT, Books, admit, hash_of, pictures, pinned

LIFE_S = 70.0
PAUSE_S = 0.05


async def differences(books: Books) -> list[Difference]:
    """Run `verify` as if every picture were in the store."""

    async def stored(path: str) -> bool:
        return True

    return await verify(books.ledger, books.wallet, Presence(books.redis), stored)


async def everywhere(books: Books, mxn: str = "1000.00") -> list[Caller]:
    """Make one organisation with a key and a credit in each partition, in their order."""
    callers = []
    for partition in range(keys.PARTITIONS):
        caller = Caller(str(UUID(int=(1 << 100) + partition)), f"key_{partition}")
        org = Org(caller.org_id, f"org-{partition}", "default", NOON.isoformat())
        await books.ledger.create_org(org, ACT)
        key = ApiKey(caller.key_id, caller.org_id, "main", hash_of(caller.key_id), NOON.isoformat(), None)
        await books.ledger.create_key(key, ACT)
        await books.ledger.add_credit(
            NewCredit(f"credit-{partition}", caller.org_id, "recharge", parse_mxn(mxn)), NOON, ACT
        )
        callers.append(caller)
    await books.projector.round()
    return callers


@dataclass(frozen=True, slots=True)
class Decision:
    """One admission: its start, its duration, and its result."""

    partition: int
    at_s: float
    took_s: float
    admitted: bool


@dataclass(slots=True)
class Load:
    """Customers of all organisations, who order one image after the other like a gateway."""

    wallet: Wallet
    callers: list[Caller]
    decisions: list[Decision] = field(default_factory=list)
    late_s: list[tuple[float, float]] = field(default_factory=list)
    """When a customer's pause ended, and how much too late: what this process's own lag added to a decision then."""
    answered: list[AnsweredOrder] = field(default_factory=list)
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _loose: set[asyncio.Task[None]] = field(default_factory=set)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self._customer(caller)) for caller in self.callers]
        return self

    async def __aexit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._stop.set()
        if failure is not None:
            await cancel_all([*self._tasks, *self._loose])
            return
        await asyncio.gather(*self._tasks)
        await asyncio.gather(*self._loose)

    async def admitted_since(self, partitions: set[int], from_s: float) -> float:
        """Wait until each of the partitions has admitted an order after `from_s`; returns the start of the last one."""
        while True:
            first = {
                partition: min(
                    (d.at_s for d in self.decisions if d.partition == partition and d.admitted and d.at_s > from_s),
                    default=None,
                )
                for partition in partitions
            }
            moments = [moment for moment in first.values() if moment is not None]
            if len(moments) == len(partitions):
                return max(moments)
            assert not any(task.done() for task in self._tasks), "a customer went home"
            assert time.monotonic() < from_s + 30, "some partitions do not come back"
            await asyncio.sleep(0.05)

    async def _customer(self, caller: Caller) -> None:
        number = 0
        while not self._stop.is_set():
            number += 1
            await self.order(caller, f"{caller.org_id[-4:]}-{number}")
            slept_s = time.monotonic()
            await asyncio.sleep(PAUSE_S)
            ended_s = time.monotonic()
            self.late_s.append((ended_s, ended_s - slept_s - PAUSE_S))

    async def order(self, caller: Caller, order_id: str) -> None:
        """Do one order, from its admission to its answer."""
        partition, began_s = keys.partition_of(caller.org_id), time.monotonic()
        price = pinned(now_us=self.wallet.now_us(caller.org_id))
        admitted_us = 0
        try:
            admission = await admit(self.wallet, caller, order_id, price)
            if admission.verdict is Verdict.ADMITTED:
                admitted_us = admission.now_us
        except WalletAway:
            self._give_up(caller, order_id)
        self.decisions.append(Decision(partition, began_s, time.monotonic() - began_s, bool(admitted_us)))
        if not admitted_us:
            return
        order = AnsweredOrder(
            org_id=caller.org_id,
            key_id=caller.key_id,
            fingerprint=order_id,
            key_hash=None,
            client_gone=False,
            order_id=order_id,
            amount_micro_mxn=UNIT,
            images=pictures(1, order_id),
            usd_measured=None,
            opened=encode_opened(order_id, caller.org_id, caller.key_id, price, FACTS),
            result=b"{}",
            admitted_us=admitted_us,
            ended_us=self.wallet.now_us(caller.org_id),
        )
        if await self._settle(order):
            self.answered.append(order)
        else:
            self._give_up(caller, order_id)

    async def _settle(self, order: AnsweredOrder) -> bool:
        """Settle an order; returns whether Redis acknowledged it."""
        latest_us = order.ended_us + 60 * SECOND_US
        for _ in range(3):
            try:
                closing = await self.wallet.settle(
                    order.org_id, order.order_id, order.amount_micro_mxn, order.images, latest_us=latest_us
                )
                return closing.close is Close.CHARGED
            except WalletAway:
                await asyncio.sleep(PAUSE_S)
        return False

    def _give_up(self, caller: Caller, order_id: str) -> None:
        until_us = self.wallet.now_us(caller.org_id) + int(LIFE_S) * SECOND_US

        async def abandon() -> None:
            await self.wallet.abandon(caller.org_id, order_id, "unread", until_us=until_us)

        self._loose.add(asyncio.create_task(abandon()))
