"""A bound that is waited for: of the organisations that wait, the one that has least of it goes first."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from metering.shares import Bound, Shares


class Turns:
    """Like a semaphore, but fair between organisations; one that is alone may have all of it.

    `each` is the most that one organisation may have even then.
    """

    def __init__(self, bound: Bound, each: int | None = None) -> None:
        self.shares = Shares(bound)
        self._each = each
        self._queues: dict[str, deque[tuple[int, asyncio.Future[None]]]] = {}

    def waiting(self, org_id: str) -> int:
        """How many of an organisation wait."""
        return len(self._queues.get(org_id, ()))

    async def take(self, org_id: str, amount: int = 1) -> None:
        """So much of it; waits until it is this organisation's turn. A caller that is cancelled has taken nothing."""
        if not self._queues and self._may(org_id, amount):
            self.shares.take(org_id, amount)
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
        """Of what was taken."""
        self.shares.give_back(org_id, amount)
        self._serve()

    @asynccontextmanager
    async def hold(self, org_id: str, amount: int = 1) -> AsyncIterator[None]:
        """Take it, for the length of a block."""
        await self.take(org_id, amount)
        try:
            yield
        finally:
            self.give_back(org_id, amount)

    def _serve(self) -> None:
        """Whoever has least, as long as there is room; of several that have the same, whoever began to wait first."""
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
