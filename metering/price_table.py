"""What every model costs at a moment, as the ledger says, so that all gateways sell at one price."""

from collections.abc import Iterable
from functools import partial

import structlog
from prometheus_client import Gauge
from redis.exceptions import RedisError

from config.catalogue import Catalogue
from metering.background import every
from metering.clock import unix_us_at
from metering.ports import Ledger, LedgerAway, ListPrice, PriceBook
from metering.pricing import Price
from metering.schedules import Schedule
from metering.wallet.price_lists import PriceLists

log = structlog.get_logger(__name__)

LIST = Gauge("ghub_price_list", "Number of the ledger's list of prices that this process sells by")


def book_of(catalogue: Catalogue) -> PriceBook:
    """Collect the prices of a file, as they are told to the ledger."""
    prices = [ListPrice(name, usd, variant) for name, variant, usd in catalogue.prices()]
    effective_us = unix_us_at(catalogue.effective_from) if catalogue.effective_from is not None else None
    return PriceBook(catalogue.price_book_version, catalogue.markup, prices, effective_us)


class PriceTable:
    """The ledger's prices as one process last read them.

    `losses` counts how often the ledger lost lists that it had: then it was restored from a backup. While this process
    is `behind`, it cannot reach the ledger, and another one has told of a list that this one has not read.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._number = 0
        self.losses = 0
        self.behind = False
        self._schedules: dict[tuple[str, str], Schedule] = {}

    @property
    def number(self) -> int:
        """Number of the ledger's list that it was read from; 0 before the first."""
        return self._number

    def price(self, model: str, variant: str, now_us: int) -> Price:
        """Find the price that holds at a Unix time in µs, and how long it holds. Raises KeyError if there is none."""
        schedule = self._schedules[model, variant]
        listed, (from_us, until_us) = schedule.at(now_us), schedule.holds(now_us)
        return Price(model, listed.usd_per_image, listed.markup, listed.version, variant, from_us, until_us)

    def upcoming(self, model: str, variant: str, now_us: int) -> Price | None:
        """Find the price that follows the one of this moment; None if no change is announced."""
        until_us = self.price(model, variant, now_us).until_us
        return self.price(model, variant, until_us) if self._schedules[model, variant].from_us == until_us else None

    def has(self, model: str, variants: Iterable[str]) -> bool:
        """True if each of these variants of a model has a price."""
        return all((model, variant) in self._schedules for variant in variants)

    async def refresh(self) -> None:
        """Read the ledger's prices again if there is a new list. Raises LedgerAway; then the last reading holds."""
        number = await self._ledger.last_price_list()
        if number == self._number:
            return
        histories = await self._ledger.price_schedules()
        # What a restored ledger has lost still holds here, until a file lists it again.
        self._schedules |= {name: rows[-1].schedule for name, rows in histories.items()}
        if number < self._number:
            self.losses += 1
        self._number = number
        LIST.set(number)
        log.info("prices_read", list=number)

    async def run(self, lists: PriceLists, every_s: float) -> None:
        """Follow the ledger every `every_s` seconds until cancelled."""
        away = (LedgerAway, RedisError, OSError, TimeoutError)
        await every(every_s, partial(self.follow, lists), away=away, name="prices_not_read")

    async def follow(self, lists: PriceLists) -> None:
        """Refresh the table, and tell the others; or ask what they were told. Raises LedgerAway, RedisError."""
        try:
            await self.refresh()
        except LedgerAway:
            self.behind = await lists.told() > self._number
            raise
        self.behind = False
        await lists.tell(self._number)
