"""A limit with a queue: of the waiting organisations, the one that has the least goes first."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from metering.shares import Bound, Shares


class Turns:
    """A semaphore that is fair between organisations. An organisation alone may have all of it.

    `each` is the maximum for one organisation, even if it is alone.
    """

    def __init__(self, bound: Bound, each: int | None = None) -> None:
        self.shares = Shares(bound)
        self._each = each
        self._queues: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    def waiting(self, org_id: str) -> int:
        """Count an organisation's waiting callers."""
        return len(self._queues.get(org_id, ()))

    def take_now(self, org_id: str, amount: int = 1) -> bool:
        """Take an amount if nobody waits and there is room; False if not."""
        if self._queues or not self._may(org_id, amount):
            return False
        self.shares.take(org_id, amount)
        return True

    async def take(self, org_id: str, amount: int = 1) -> None:
        """Take an amount; waits for this organisation's turn. A cancelled caller has taken nothing."""
        if self.take_now(org_id, amount):
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queues.setdefault(org_id, deque()).append((amount, turn))
        self._serve()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.give_back(org_id, amount)
            elif (amount, turn) in self._queues.get(org_id, ()):
                self._leave(org_id, (amount, turn))
                self._serve()
            raise

    def give_back(self, org_id: str, amount: int = 1) -> None:
        """Give back what was taken."""
        self.shares.give_back(org_id, amount)
        self._serve()

    @asynccontextmanager
    async def hold(self, org_id: str, amount: int = 1) -> AsyncIterator[None]:
        """Take an amount for the length of a block."""
        await self.take(org_id, amount)
        try:
            yield
        finally:
            self.give_back(org_id, amount)

    def _serve(self) -> None:
        """Serve the organisation that has the least, while there is room.

        Among equals, the first to wait goes first.
        """
        while self._queues:
            org_id = min(self._queues, key=self._rank)
            amount, turn = self._queues[org_id][0]
            if not turn.cancelled():
                if not self._may(org_id, amount):
                    return
                self.shares.take(org_id, amount)
                turn.set_result(None)
            self._leave(org_id, (amount, turn))

    def _leave(self, org_id: str, one: tuple[int, asyncio.Future[None]]) -> None:
        self._queues[org_id].remove(one)
        if not self._queues[org_id]:
            del self._queues[org_id]

    def _rank(self, org_id: str) -> tuple[bool, int]:
        return self._has_enough(org_id, self._queues[org_id][0][0]), self.shares.has(org_id)

    def _may(self, org_id: str, amount: int) -> bool:
        if self._has_enough(org_id, amount):
            return False
        return self.shares.fits(amount) or self.shares.allow(org_id, amount, self._queues)

    def _has_enough(self, org_id: str, more: int) -> bool:
        return self._each is not None and self.shares.has(org_id) + more > self._each
