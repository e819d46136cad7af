"""What customers may order now. A reload replaces it; an order keeps the model that it was parsed with."""

from collections.abc import Callable, Collection
from datetime import date

import structlog
from prometheus_client import Gauge

from config.catalogue import Catalogue, Model
from config.shelf import Fault, Shelf, Status, status_of
from metering.clock import utc_now
from metering.price_table import PriceTable

log = structlog.get_logger(__name__)

PAST_END = Gauge("ghub_models_past_end", "1 for a model that is offered although its last day has come", ["model"])
LEFT_OUT = Gauge(
    "ghub_successors_left_out", "1 for a successor that is not named: not offered, or ended", ["model", "successor"]
)


def _today() -> date:
    return utc_now().date()


class Offer:
    """The models of the catalogue whose provider's key is set, and whose prices the ledger has.

    `today` is the day in UTC.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        providers: Collection[str],
        prices: PriceTable,
        offered: Callable[[Catalogue], None] = lambda _: None,
        today: Callable[[], date] = _today,
    ) -> None:
        self._providers = providers
        self._prices = prices
        self._offered = offered
        self._today = today
        self.replace(catalogue)

    @property
    def catalogue(self) -> Catalogue:
        """The models on offer now."""
        return self._catalogue

    def replace(self, catalogue: Catalogue) -> None:
        """Offer these models from now on."""
        models = catalogue.models
        keyless = {name for name, model in models.items() if model.provider not in self._providers}
        # A model that has no price in the file stays: its orders are refused with a sentence that says so.
        unlisted = {name for name, model in models.items() if not self._prices.has(name, model.prices())}
        for why, absent in (
            ("the provider's key is not set", keyless),
            ("the ledger has no price of it", unlisted - keyless),
        ):
            if absent:
                log.warning("models_not_offered", models=sorted(absent), why=why)
        offered = {name: model for name, model in models.items() if name not in keyless | unlisted}
        self._catalogue = catalogue.model_copy(update={"models": offered})
        self._shelf = Shelf(models, {name for name, model in offered.items() if model.priced})
        self._judge(self._today())
        self._offered(self._catalogue)

    def look(self) -> None:
        """Judge the models again if another day has begun."""
        if (today := self._today()) != self._judged:
            self._judge(today)

    def status(self, model: Model) -> Status:
        """Tell a model's stage."""
        return status_of(model, self._today())

    def successor(self, name: str, model: Model) -> str | None:
        """Find the model to order instead: one that can be ordered, and has not ended. None if there is none."""
        return self._shelf.successor(name, model, self._today())

    def _judge(self, today: date) -> None:
        """Say which models have ended, and which successors are not named. It stops nothing: the upstream decides."""
        self._judged = today
        PAST_END.clear()
        LEFT_OUT.clear()
        for found in self._shelf.findings(today):
            if found.fault is Fault.ENDED:
                log.error("model_past_its_end", model=found.model, why=found.why)
                PAST_END.labels(found.model).set(1)
            elif found.successor is not None:
                log.error("successor_left_out", model=found.model, successor=found.successor, why=found.why)
                LEFT_OUT.labels(found.model, found.successor).set(1)
