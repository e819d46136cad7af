"""The gate: who is let in, in which order, and when new orders are refused."""

import asyncio
import time
from unittest.mock import patch

import pytest

from proxy.errors import ApiError
from proxy.orders.gate import FEW, GROWS_S, LATE_S, LOOK_S, MOST, Gate


class Orders:
    """Orders that stay at the gate until they are told to leave; `let_in` has their numbers, in order."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.let_in: list[int] = []
        self._leave: dict[int, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def come(self, *numbers: int, within_s: float = 60.0) -> None:
        for number in numbers:
            self._leave[number] = asyncio.Event()
            self._tasks.append(asyncio.create_task(self._order(number, time.monotonic() + within_s)))
        await asyncio.sleep(0)

    async def leave(self, *numbers: int) -> None:
        for number in numbers:
            self._leave[number].set()
        for _ in range(3):
            await asyncio.sleep(0)

    async def all(self) -> list[type | None]:
        """End all of them; returns the class of each one's error."""
        for event in self._leave.values():
            event.set()
        ended = await asyncio.gather(*self._tasks, return_exceptions=True)
        return [type(one) if one is not None else None for one in ended]

    async def _order(self, number: int, until_s: float) -> None:
        async with self.gate.turn(until_s):
            self.let_in.append(number)
            await self._leave[number].wait()


async def test_so_many_at_once_and_the_others_in_order() -> None:
    """Each that leaves lets in the one that has waited for longest."""
    orders = Orders(Gate())
    await orders.come(*range(MOST + 3))
    assert orders.let_in == [*range(MOST)]
    await orders.leave(5, 7)
    assert orders.let_in == [*range(MOST + 2)]
    await orders.all()
    assert orders.let_in == [*range(MOST + 3)]


async def test_one_that_fails_or_hangs_up_gives_its_turn_back() -> None:
    """Also one that waits: it is passed over."""
    gate = Gate()
    orders = Orders(gate)
    await orders.come(*range(MOST + 3))
    orders._tasks[MOST].cancel()
    orders._tasks[0].cancel()
    await orders.leave()
    assert orders.let_in == [*range(MOST), MOST + 1]
    await orders.all()
    assert gate._under_way == 0


async def test_one_that_waits_in_vain_is_told_so_at_its_deadline() -> None:
    """It is a 503, which may be retried, and its place in the queue is free."""
    orders = Orders(Gate())
    await orders.come(*range(MOST))
    began_s = time.monotonic()
    with pytest.raises(ApiError) as refused:
        async with orders.gate.turn(began_s + 0.1):
            raise AssertionError("there is no turn")
    assert refused.value.kind.value.code == "gateway_busy" and refused.value.retry
    assert 0.09 < time.monotonic() - began_s < 1.0, "a timer of the loop counts whole milliseconds"
    await orders.all()


async def test_while_the_loop_is_late_few_are_let_in() -> None:
    """What is admitted already goes first; as soon as the loop is on time, the gate opens by itself."""
    gate = Gate()
    running = asyncio.create_task(gate.run())
    async with gate.turn(time.monotonic() + 5):  # an idle gate measures nothing
        await asyncio.sleep(0)
    time.sleep(LOOK_S + LATE_S + 0.02)  # noqa: ASYNC251  # this is the lateness
    await asyncio.sleep(0)
    orders = Orders(gate)
    await orders.come(*range(MOST))
    assert len(orders.let_in) == FEW
    async with asyncio.timeout(5):
        while len(orders.let_in) < MOST:
            await asyncio.sleep(0.01)
    running.cancel()
    await orders.all()


async def test_an_idle_gate_does_not_wake_up() -> None:
    """Its task waits for an order; then it looks at intervals, until there is none again."""
    gate = Gate()
    running = asyncio.create_task(gate.run())
    await asyncio.sleep(0)
    with patch.object(gate, "look", wraps=gate.look) as look:
        await asyncio.sleep(3 * LOOK_S)
        assert look.call_count == 0
        async with gate.turn(time.monotonic() + 5), asyncio.timeout(5):
            while look.call_count < 2:
                await asyncio.sleep(0.01)
        await asyncio.sleep(3 * LOOK_S)
        seen = look.call_count
        await asyncio.sleep(3 * LOOK_S)
        assert look.call_count == seen
    running.cancel()


class Day:
    """A gate under a load that is counted, by a clock of its own: each step is a tenth of a second."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.now_s = time.monotonic()
        self.refused = 0
        self._waiting: list[asyncio.Task[None]] = []
        self._done = asyncio.Semaphore(0)

    async def pass_(self, seconds: float, come_per_s: int, served_per_s: int) -> int:
        """Let time pass under this load; returns how many of those that came were refused."""
        refused = 0
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            for _ in range(come_per_s // 10):
                if self.gate.refuses():
                    refused += 1
                else:
                    self._waiting.append(asyncio.create_task(self._order()))
            await asyncio.sleep(0)
            for _ in range(served_per_s // 10):
                self._done.release()
            for _ in range(4):
                await asyncio.sleep(0)
            self.gate.look(self.now_s)
        return refused

    @property
    def queue(self) -> int:
        """How many wait."""
        return len(self.gate._queue)

    async def end(self) -> None:
        """Serve whoever is left."""
        for _ in self._waiting:
            self._done.release()
        await asyncio.gather(*self._waiting)

    async def _order(self) -> None:
        async with self.gate.turn(time.monotonic() + 60):
            await self._done.acquire()


async def test_a_burst_is_served_however_long_it_takes() -> None:
    """2,000 at one moment, 100 a second: those that come meanwhile wait too, because the queue does not grow."""
    day = Day()
    assert await day.pass_(0.1, 20_000, 100) == 0
    assert await day.pass_(15, 50, 100) == 0
    assert day.queue > 500
    await day.end()


async def test_twice_of_what_can_be_served_is_half_refused_and_the_queue_stays_short() -> None:
    """Nobody in the first two seconds; then only as many as are too many, so that there is always work."""
    day = Day()
    assert await day.pass_(GROWS_S - 0.1, 200, 100) == 0
    refused = 0
    for _ in range(20):
        refused += await day.pass_(1, 200, 100)
        assert 0 < day.queue <= 300
    assert 0.4 < refused / (20 * 200) < 0.6
    await day.end()


async def test_five_times_is_refused_to_four_fifths_and_over_at_once() -> None:
    """When the crowd has gone, the queue is empty within two seconds, and nobody is refused any more."""
    day = Day()
    await day.pass_(4, 500, 100)
    refused = await day.pass_(20, 500, 100)
    assert 0.75 < refused / (20 * 500) < 0.85
    await day.pass_(3, 0, 100)
    assert day.queue == 0
    assert await day.pass_(5, 90, 100) == 0
    await day.end()


async def test_who_connected_before_the_first_refusal_is_served() -> None:
    """It belongs to the crowd that came at one moment, though its order is read only now."""
    day = Day()
    here_since_s = day.now_s
    await day.pass_(4, 500, 100)
    assert day.gate.is_refusing and day.gate.refuses()
    assert not day.gate.refuses(here_since_s)
    assert day.gate.refuses(day.now_s + 1)
    await day.end()
