"""Background work: no part ends silently, and a part that fails again and again stops orders (rule 2)."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from metering import background
from metering.background import Background, BeyondHelp, Part, cancel_all, every
from metering.ports import LedgerAway, LedgerMisconfigured
from tests.conftest import run

SOON_S = 5.0


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of milliseconds."""
    monkeypatch.setattr(background, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(background, "LONGEST_PAUSE_S", 0.004)


class Scripted:
    """A part whose runs do, one after the other, what they are told; the last one goes on for ever."""

    def __init__(self, *runs: Callable[[], Awaitable[None]]) -> None:
        self._runs = list(runs)
        self.begun = 0
        self.steady = asyncio.Event()

    async def run(self) -> None:
        self.begun += 1
        if self._runs:
            await self._runs.pop(0)()
            return
        self.steady.set()
        await asyncio.sleep(60)


async def fails() -> None:
    raise ValueError("nobody listed this")


async def ends() -> None:
    return


async def is_cancelled_within() -> None:
    raise asyncio.CancelledError


def faults(part: str) -> float:
    return REGISTRY.get_sample_value("ghub_background_faults_total", {"part": part}) or 0.0


def nobody_gives_up() -> None:
    raise AssertionError("it gave up")


@pytest.mark.parametrize("fault", [fails, ends, is_cancelled_within])
async def test_a_part_that_ends_unforeseen_is_logged_counted_and_begun_anew(
    fault: Callable[[], Awaitable[None]],
) -> None:
    """Whether it raises, returns, or loses itself in a cancellation that nobody asked for."""
    before, part = faults("one"), Scripted(fault)
    kept = Background([Part("one", part.run)], nobody_gives_up)
    with capture_logs() as lines:
        kept.begin()
        async with asyncio.timeout(SOON_S):
            await part.steady.wait()
    assert part.begun == 2 and faults("one") == before + 1
    (line,) = lines
    assert (line["event"], line["log_level"], line["part"]) == ("background_fault", "error", "one")
    assert line["exc_info"] is not None
    assert not kept.fails("one"), "one fault, and it runs again"
    await kept.end()
    kept.check()


def test_a_part_that_does_not_run_is_said_to_fail() -> None:
    """Before it has begun, in the pause after a fault, and after several faults until it has gone on for a while."""

    async def work() -> None:
        part = Scripted(fails, fails)
        kept = Background([Part("one", part.run)], nobody_gives_up)
        assert kept.needed == ["one"] and kept.fails("one")
        kept.begin()
        async with asyncio.timeout(SOON_S):
            await part.steady.wait()
        assert kept.fails("one"), "it runs, but has failed twice in a row"
        background.STEADY_S = 0.0
        assert not kept.fails("one"), "it has gone on for long enough"
        await kept.end()

    steady_s = background.STEADY_S
    try:
        run(work())
    finally:
        background.STEADY_S = steady_s


async def test_what_nobody_can_begin_anew_ends_the_process() -> None:
    """After a stated number of faults in a row it is given up, once, and the reason names the part."""
    stop, part = asyncio.Event(), Scripted(*[fails] * background.MAX_FAULTS)
    kept = Background([Part("projection", part.run)], stop.set)
    with capture_logs() as lines:
        kept.begin()
        async with asyncio.timeout(SOON_S):
            await stop.wait()
    assert part.begun == len(lines) == background.MAX_FAULTS and kept.fails("projection")
    await kept.end()
    with pytest.raises(BeyondHelp, match=r"^projection failed 8 times in a row"):
        kept.check()


async def test_what_no_order_needs_is_begun_anew_for_ever() -> None:
    """It neither stops orders nor ends the process, however often it fails."""
    part = Scripted(*[fails] * (2 * background.MAX_FAULTS))
    kept = Background([Part("orphans", part.run, needed=False)], nobody_gives_up)
    with capture_logs():
        kept.begin()
        async with asyncio.timeout(SOON_S):
            await part.steady.wait()
    assert kept.needed == []
    await kept.end()
    kept.check()


async def test_a_part_may_be_done() -> None:
    """A part that ends by itself: its waiters return, and it does not count as a failure."""
    part = Scripted(fails, ends)
    kept = Background([Part("recovery", part.run, ends=True)], nobody_gives_up)
    with capture_logs() as lines:
        kept.begin()
        async with asyncio.timeout(SOON_S):
            await kept.until_done("recovery")
    assert part.begun == 2 and len(lines) == 1 and not kept.fails("recovery")
    await kept.end()


async def test_parts_do_not_end_each_other() -> None:
    """One that fails leaves the others as they are."""
    bad, good = Scripted(fails, fails), Scripted()
    kept = Background([Part("bad", bad.run), Part("good", good.run)], nobody_gives_up)
    with capture_logs():
        kept.begin()
        async with asyncio.timeout(SOON_S):
            await asyncio.gather(bad.steady.wait(), good.steady.wait())
    assert (bad.begun, good.begun) == (3, 1) and not kept.fails("good")
    await kept.end()


async def test_the_end_ends_a_part_that_loses_its_first_cancellation() -> None:
    """And nothing is restarted by it."""
    begun = 0

    async def stubborn() -> None:
        nonlocal begun
        begun += 1
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    kept = Background([Part("one", stubborn)], nobody_gives_up)
    kept.begin()
    await asyncio.sleep(0.01)
    async with asyncio.timeout(SOON_S):
        await kept.end()
    assert begun == 1


async def test_every_looks_again_while_something_is_away() -> None:
    """It logs this under its name, with our own sentence if there is one; any other error is the caller's."""
    looks: list[Exception | None] = [LedgerAway("host x"), LedgerMisconfigured("grant it"), None, ValueError("bug")]
    seen = 0

    async def look() -> None:
        nonlocal seen
        seen += 1
        if (error := looks.pop(0)) is not None:
            raise error

    with capture_logs() as lines, pytest.raises(ValueError, match="bug"):
        await every(0.0, look, away=(LedgerAway,), name="one_waits")
    assert seen == 4
    assert lines == [
        {"event": "one_waits", "log_level": "warning", "error": "LedgerAway"},
        {
            "event": "one_waits",
            "log_level": "warning",
            "error": "LedgerMisconfigured",
            "why": "GHUB_LEDGER_URL: grant it",
        },
    ]


async def test_a_task_that_loses_a_cancellation_is_ended_all_the_same() -> None:
    """A library may lose one: the second is not lost."""
    lost = asyncio.Event()

    async def loses() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        lost.set()
        await asyncio.sleep(60)

    task = asyncio.create_task(loses())
    await asyncio.sleep(0)
    async with asyncio.timeout(SOON_S):
        await cancel_all([task])
    assert lost.is_set() and task.cancelled()
