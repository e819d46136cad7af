"""What every model costs at a moment, as the ledger says, so that all gateways sell at one price."""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import NoReturn

import structlog
from prometheus_client import Gauge
from redis.exceptions import RedisError

from config.catalogue import Catalogue
from metering.background import error_fields
from metering.clock import unix_us_at
from metering.ports import Ledger, LedgerAway, ListPrice, PriceBook, PriceListId
from metering.pricing import Price
from metering.schedules import ListedSchedule
from metering.wallet.price_lists import PriceLists

log = structlog.get_logger(__name__)

LIST = Gauge("ghub_price_list", "Number of the ledger's list of prices that this process sells by")


def book_of(catalogue: Catalogue) -> PriceBook:
    """Collect the prices of a file, as they are told to the ledger."""
    measured = {name: model.measured_by for name, model in catalogue.models.items()}
    prices = [ListPrice(name, usd, variant, measured[name]) for name, variant, usd in catalogue.prices()]
    effective_us = unix_us_at(catalogue.effective_from) if catalogue.effective_from is not None else None
    return PriceBook(catalogue.price_book_version, catalogue.markup, prices, effective_us)


LEASE_S = 90.0
"""How long a reading of the ledger's prices is sold by, unless it is confirmed: less than any change is announced ahead
(NOTICE_S), by as much as a reading may be old that is told to others. So a gateway that was frozen, or cut off from the
ledger, finds its quotes refused by Redis before a change that it does not know of begins.
"""

PAUSE_S = 0.25
"""The least pause between two readings."""

RENEW_S = 1.0
"""How long an order waits for a reading, if Redis finds the last one's lease to be over: after a machine was frozen, or
Redis was long away.
"""


class PriceTable:
    """The ledger's prices as one process last read them.

    `losses` counts how often the ledger lost lists that it had: then it was restored from a backup. While this process
    is `behind`, it cannot reach the ledger, and the list which it has read is not the last, or nobody knows.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._list = PriceListId()
        self._confirmed_us = 0
        self._over, self._read = asyncio.Event(), asyncio.Event()
        self.losses = 0
        self.behind = False
        self._last: dict[tuple[str, str], ListedSchedule] = {}
        self._lost: dict[tuple[str, str], ListedSchedule] = {}

    @property
    def number(self) -> int:
        """Number of the ledger's list that it was read from; 0 before the first."""
        return self._list.number

    @property
    def lost(self) -> Mapping[tuple[str, str], ListedSchedule]:
        """Schedules by which it sells, and which a restored ledger does not have any more."""
        return self._lost

    @property
    def _lease_us(self) -> int:
        return self._confirmed_us + int(LEASE_S * 1_000_000)

    def price(self, model: str, variant: str, now_us: int) -> Price:
        """Find the price that holds at a Unix time in µs, and how long it surely holds. Raises KeyError if none."""
        schedule = self._last[model, variant].schedule
        listed, (from_us, until_us) = schedule.at(now_us), schedule.holds(now_us)
        until_us = min(until_us, self._lease_us)
        return Price(
            model,
            listed.usd_per_image,
            listed.markup,
            listed.version,
            variant,
            from_us,
            until_us,
            listed.measured_by,
        )

    def upcoming(self, model: str, variant: str, now_us: int) -> Price | None:
        """Find the price that follows the one of this moment; None if no change is announced."""
        schedule = self._last[model, variant].schedule
        _, until_us = schedule.holds(now_us)
        return self.price(model, variant, until_us) if schedule.from_us == until_us else None

    def says_how(self, model: str) -> bool:
        """True if the prices of a model say how the provider's report is priced; older ones do not."""
        return all(one.schedule.price.measured_by is not None for (name, _), one in self._last.items() if name == model)

    def has(self, model: str, variants: Iterable[str]) -> bool:
        """True if each of these variants of a model has a price."""
        return all((model, variant) in self._last for variant in variants)

    async def refresh(self, now_us: int) -> None:
        """Read the ledger's prices again if there is a new list; `now_us` is Redis `TIME` before that.

        Raises LedgerAway; then the last reading holds.
        """
        last = await self._ledger.last_price_list()
        if last != self._list:
            self._take(await self._ledger.price_schedules())
            self._list = last
            LIST.set(last.number)
            log.info("prices_read", list=last.number)
        self._confirmed_us = max(self._confirmed_us, now_us)

    def _take(self, histories: Mapping[tuple[str, str], Sequence[ListedSchedule]]) -> None:
        """Sell by the last schedules, and by those that a restored ledger has lost, until a file lists them again."""
        there = {name: {(one.at_us, one.schedule) for one in rows} for name, rows in histories.items()}
        lost = {
            name: one for name, one in self._last.items() if (one.at_us, one.schedule) not in there.get(name, set())
        }
        if set(lost) - set(self._lost):
            self.losses += 1
        self._lost = lost
        self._last |= {name: rows[-1] for name, rows in histories.items() if name not in lost}

    async def renew(self, now_us: int) -> None:
        """If its lease is over at this moment, have the ledger read at once, and wait for that at most `RENEW_S`."""
        if now_us < self._lease_us:
            return
        self._read.clear()
        self._over.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(RENEW_S):
                await self._read.wait()

    async def run(self, lists: PriceLists, every_s: float) -> NoReturn:
        """Follow the ledger every `every_s` seconds, and sooner if a lease is found to be over; until cancelled."""
        while True:
            try:
                await self.follow(lists)
            except (LedgerAway, RedisError, OSError, TimeoutError) as error:
                log.warning("prices_not_read", **error_fields(error))
            await asyncio.sleep(min(PAUSE_S, every_s))
            with suppress(TimeoutError):
                async with asyncio.timeout(every_s - min(PAUSE_S, every_s)):
                    await self._over.wait()
            self._over.clear()

    async def follow(self, lists: PriceLists) -> None:
        """Refresh the table, and tell the others; or ask what they were told. Raises LedgerAway, RedisError."""
        now_us = await lists.now_us()
        try:
            await self.refresh(now_us)
        except LedgerAway:
            told = await lists.told()
            if told == self._list.name:
                self._confirmed_us = now_us
                self._read.set()
            self.behind = told != self._list.name and (told is not None or now_us >= self._lease_us)
            raise
        self.behind = False
        self._read.set()
        await lists.tell(self._list.name, now_us)
