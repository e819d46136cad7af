"""Tries, and the pauses between them, which grow: the first try is at once, and time may be over before the next."""

import asyncio
import math
import random
import time
from typing import Self


class Pauses:
    """`async for pause_s in Pauses(…)` goes through its body again and again, and pauses in between.

    From `first_s` on a pause is `growth` times as long as the one before, and at most `longest_s`; without it all are
    alike. `pause_s` is the one that comes next: whoever cannot wait for it leaves. Chance makes it shorter, down to
    its part `least`, so that a crowd does not come back in step.

    No try begins at `until_s` of `time.monotonic` or after it, not even the first; then the loop is over.
    """

    def __init__(
        self,
        first_s: float,
        longest_s: float | None = None,
        *,
        until_s: float = math.inf,
        growth: float = 2.0,
        least: float = 1.0,
    ) -> None:
        self._next_s = first_s
        self._longest_s = first_s if longest_s is None else longest_s
        self._until_s = until_s
        self._growth = growth
        self._least = least
        self._begun = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> float:
        if self._begun:
            await asyncio.sleep(self._next_s * random.uniform(self._least, 1.0))  # noqa: S311  # jitter, no secret
            self._next_s = min(self._growth * self._next_s, self._longest_s)
        self._begun = True
        if time.monotonic() >= self._until_s:
            raise StopAsyncIteration
        return self._next_s
