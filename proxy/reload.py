"""The files of models and plans, followed while the gateway runs: what is new is checked as a whole, then it holds."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable

import structlog
from prometheus_client import REGISTRY, Counter, Gauge, Metric
from prometheus_client.registry import Collector
from redis.exceptions import RedisError

from config.catalogue import Catalogue, CatalogueError, DataFile, models_file, version_of
from config.settings import Settings
from metering.clock import utc_now
from metering.limits import Limits
from metering.plans import parse_plans, plans_file
from metering.ports import LedgerAway, LedgerError
from metering.price_table import PriceTable, book_of
from metering.schedules import PriceRefused
from metering.wallet.price_lists import PriceLists
from proxy.backends import Backends
from proxy.offer import Offer

log = structlog.get_logger(__name__)

VERSION = Gauge("ghub_config_info", "1 for the version of a file that is in force", ["file", "version"])
REFUSED = Gauge("ghub_config_refused", "1 while what is on disk is refused", ["file"])
REFUSALS = Counter("ghub_config_refused_total", "Contents of a file that were refused", ["file"], registry=None)


class _Refusals(Collector):
    """The counter without a description: by its own one, the registry would take it and the gauge for the same."""

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterable[Metric]:
        return REFUSALS.collect()


REGISTRY.register(_Refusals())

AWAY = "the ledger or Redis is away; it is asked again"


class FollowedFile:
    """One file: the content in force, and what was found on disk.

    `take` puts a content in force. The one before stays if it raises CatalogueError, PriceRefused, LedgerError,
    LedgerAway or RedisError.
    """

    def __init__(self, name: str, file: DataFile, take: Callable[[bytes], Awaitable[None]]) -> None:
        self.name = name
        self.file = file
        self.version = ""
        self._take = take
        self._seen = ""  # what the last look found: the version of a content, or why there is none
        self._judged = ""  # what was put in force, or refused, last
        self._waits = False

    def begin(self, content: bytes) -> None:
        """Begin with a content that is in force."""
        self._seen = self._judged = version_of(content)
        REFUSED.labels(self.name).set(0)
        REFUSALS.labels(self.name)
        self._in_force(self._seen)

    def refuse(self, error: CatalogueError | PriceRefused | LedgerError) -> None:
        """Say once that what is on disk is refused, and why."""
        sentence = error if isinstance(error, CatalogueError) else self.file.wrong(str(error))
        REFUSED.labels(self.name).set(1)
        REFUSALS.labels(self.name).inc()
        log.error("config_refused", file=self.name, why=str(sentence))

    def judge_again(self) -> None:
        """Let the next look judge what is on disk, even if that was done before."""
        self._judged = ""

    async def look(self) -> None:
        """Judge what is on disk if it is new, and if the look before found the same: it may have been half written."""
        content: bytes | CatalogueError
        try:
            content = await asyncio.to_thread(self.file.read)
            found = version_of(content)
        except CatalogueError as error:
            content, found = error, str(error)
        before, self._seen = self._seen, found
        if found == before and found != self._judged:
            await self._judge(content, found)

    async def _judge(self, content: bytes | CatalogueError, found: str) -> None:
        try:
            if isinstance(content, CatalogueError):
                raise content
            await self._take(content)
        except (LedgerAway, RedisError, OSError, TimeoutError):
            if not self._waits:
                self.refuse(self.file.wrong(AWAY))
            self._waits = True
            return
        except (CatalogueError, PriceRefused, LedgerError) as error:
            self.refuse(error)
        else:
            self._in_force(found)
            log.info("config_taken", file=self.name, version=found)
        self._judged, self._waits = found, False

    def _in_force(self, version: str) -> None:
        if self.version:
            VERSION.remove(self.name, self.version)
        self.version = version
        VERSION.labels(self.name, version).set(1)
        REFUSED.labels(self.name).set(0)


class ConfigFiles:
    """Models and plans of a gateway, as it starts and as their files change. Raises CatalogueError for a wrong one."""

    def __init__(self, settings: Settings, back: Backends, prices: PriceTable, lists: PriceLists) -> None:
        self._back = back
        self._prices = prices
        self._lists = lists
        self._losses = 0
        self._models = FollowedFile("models", models_file(settings.models), self._take_models)
        self._plans = FollowedFile("plans", plans_file(settings.plans), self._take_plans)
        self._first = {one: one.file.read() for one in (self._models, self._plans)}
        back.catalogue = self._catalogue(self._first[self._models])
        back.plans = self._limits(self._first[self._plans])
        self.longest_deadline_s = max(settings.deadline_s, _longest_s(back.catalogue))
        self._offer: Offer | None = None

    async def begin(self, providers: Collection[str], offered: Callable[[Catalogue], None] = lambda _: None) -> Offer:
        """Register what was read, and offer the models of these providers; `offered` learns them at each change.

        Raises LedgerAway, LedgerError.

        If a price cannot be changed like this, the ledger's price holds.
        """
        for one, content in self._first.items():
            one.begin(content)
        self._first = {}
        try:
            await self._list(self._back.catalogue)
        except PriceRefused as error:
            self._models.refuse(error)
        except (RedisError, OSError, TimeoutError):  # nobody knows Redis' time, by which a change is judged
            self._models.judge_again()
        await self._prices.refresh(0)
        await self._back.ledger.register_plans(self._back.plans, utc_now())
        self._offer = Offer(self._back.catalogue, providers, self._prices, offered)
        return self._offer

    def versions(self) -> dict[str, str]:
        """List the versions of the files in force, by their names, and the number of the list of prices."""
        files = {one.name: one.version for one in (self._models, self._plans)}
        return {**files, "prices": str(self._prices.number)}

    async def run(self, every_s: float) -> None:
        """Look at the files every `every_s` seconds until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Look at both files once."""
        if self._losses != self._prices.losses:  # a ledger that was restored may lack what it was told
            self._losses = self._prices.losses
            self._models.judge_again()
            self._plans.judge_again()
        await self._models.look()
        await self._plans.look()
        if self._offer is not None:
            self._offer.look()

    def _catalogue(self, content: bytes) -> Catalogue:
        return self._models.file.parse(Catalogue, content)

    def _limits(self, content: bytes) -> dict[str, Limits]:
        return parse_plans(self._plans.file, content)

    async def _take_models(self, content: bytes) -> None:
        catalogue = self._catalogue(content)
        if (longest_s := _longest_s(catalogue)) > self.longest_deadline_s:
            known = f"{self.longest_deadline_s:g}"
            raise self._models.file.wrong(
                f"models: deadline_s: {longest_s:g} is longer than {known}, for which this process waits when it stops:"
                " that needs a restart"
            )
        self._check_measured(catalogue)
        await self._list(catalogue)
        await self._prices.refresh(0)
        assert self._offer is not None, "what has begun is followed"
        self._offer.replace(catalogue)
        self._back.catalogue = catalogue

    def _check_measured(self, catalogue: Catalogue) -> None:
        """Refuse what no list has, so that no two gateways charge by it differently. Raises CatalogueError."""
        for name, model in catalogue.models.items():
            known = self._back.catalogue.models.get(name, model)
            # By another model, it has prices of its own.
            if known.served_by != model.served_by or known.measured_by == model.measured_by:
                continue
            # Prices by other sizes and qualities are new ones, and would hold at once.
            if not self._prices.says_how(name) or known.prices().keys().isdisjoint(model.prices()):
                raise self._models.file.wrong(
                    f"models.{name}: its price is measured in another way, and no list has how it was: that cannot"
                    " change while gateways run; give the model another name, or restart all gateways at once"
                )

    async def _take_plans(self, content: bytes) -> None:
        plans = self._limits(content)
        await self._back.ledger.register_plans(plans, utc_now())
        self._back.plans = plans

    async def _list(self, catalogue: Catalogue) -> None:
        """Tell the ledger the prices of a file. Raises PriceRefused, LedgerAway, RedisError."""
        book = book_of(catalogue)
        await self._back.ledger.last_price_list()  # if it is away, what was told stays true
        await self._lists.forget()  # should this gateway die before it tells, nobody takes an older list for the last
        if await self._back.ledger.list_prices(book, await self._lists.now_us(), utc_now(), self._prices.lost):
            log.info("prices_listed", price_book=book.version, effective_from=catalogue.effective_from)


def _longest_s(catalogue: Catalogue) -> float:
    return max((model.deadline_s or 0.0 for model in catalogue.models.values()), default=0.0)
