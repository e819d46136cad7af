"""Limits on reads: rates as a table of times, and the turns of reports."""

import asyncio

import pytest

from config.settings import HISTORY_PER_MINUTE, REPORTS_MADE, REPORTS_WAITING, USAGE_PER_MINUTE
from proxy.api.reads import Read, ReadRates, Reports
from proxy.errors import ApiError, Kind


class Clock:
    """Seconds, as the test says."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s


def test_above_the_rate_it_is_429_until_the_stated_wait_is_over() -> None:
    """A burst of a minute's allowance, then one for each of its parts; a refusal takes nothing."""
    clock = Clock()
    rates = ReadRates(clock)
    for _ in range(USAGE_PER_MINUTE):
        rates.take("a", Read.USAGE)
    for _ in range(3):
        with pytest.raises(ApiError) as refused:
            rates.take("a", Read.USAGE)
    error = refused.value
    assert error.kind is Kind.RATE_LIMIT and error.retry and error.retry_after_s == pytest.approx(1.0)
    assert error.message == "Your organisation's limit is 60 reports of usage per minute. Try again in 1 seconds."
    assert error.reply_headers() == {
        "content-language": "en",
        "vary": "accept-language",
        "x-should-retry": "true",
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
        "retry-after-ms": "1000",
        "retry-after": "1",
    }
    clock.now_s += 1.0
    rates.take("a", Read.USAGE)
    with pytest.raises(ApiError):
        rates.take("a", Read.USAGE)


def test_another_organisation_and_another_kind_are_not_concerned() -> None:
    """Each has its own."""
    rates = ReadRates(Clock())
    for _ in range(USAGE_PER_MINUTE):
        rates.take("a", Read.USAGE)
    rates.take("b", Read.USAGE)
    for _ in range(HISTORY_PER_MINUTE):
        rates.take("a", Read.HISTORY)
    with pytest.raises(ApiError, match="reads of generations"):
        rates.take("a", Read.HISTORY)


def test_organisations_that_have_long_been_idle_are_forgotten() -> None:
    """A process that runs for months remembers those of the last minute."""
    clock = Clock()
    rates = ReadRates(clock)
    for number in range(10_000):
        rates.take(f"org-{number}", Read.CREDITS)
        clock.now_s += 0.1
    assert len(rates._ahead) < 3_000


async def test_one_report_at_a_time_a_few_wait_and_the_next_is_refused() -> None:
    """For each organisation, from its query until it is sent; another organisation's does not wait for it."""
    reports = Reports()
    await reports.begin("a")
    waiting = [asyncio.create_task(reports.begin("a")) for _ in range(REPORTS_WAITING)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    with pytest.raises(ApiError, match="one at a time") as refused:
        await reports.begin("a")
    assert (refused.value.kind, refused.value.retry, refused.value.retry_after_s) == (Kind.RATE_LIMIT, True, 2.0)
    await reports.begin("b")
    for task in waiting:
        reports.end("a")
        await task


async def test_a_report_whose_turn_does_not_come_is_refused() -> None:
    """In bounded time, and it has left the queue."""
    reports = Reports(wait_s=0.05)
    await reports.begin("a")
    with pytest.raises(ApiError, match="one at a time"):
        await reports.begin("a")
    reports.end("a")
    await reports.begin("a")


async def test_so_many_are_in_memory_at_a_time_and_no_more() -> None:
    """From any number of organisations."""
    reports, made, most = Reports(), 0, 0

    async def report(org_id: str) -> None:
        nonlocal made, most
        await reports.begin(org_id)
        async with reports.making(org_id):
            made += 1
            most = max(most, made)
            await asyncio.sleep(0)
            made -= 1
        reports.end(org_id)

    await asyncio.gather(*(report(f"org-{number}") for number in range(50)))
    assert most == REPORTS_MADE
