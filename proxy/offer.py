"""What customers may order now. A reload replaces it; an order keeps the model that it was parsed with."""

from collections.abc import Callable, Collection

import structlog

from config.catalogue import Catalogue
from metering.price_table import PriceTable

log = structlog.get_logger(__name__)


class Offer:
    """The models of the catalogue whose provider's key is set, and whose prices the ledger has."""

    def __init__(
        self,
        catalogue: Catalogue,
        providers: Collection[str],
        prices: PriceTable,
        offered: Callable[[Catalogue], None] = lambda _: None,
    ) -> None:
        self._providers = providers
        self._prices = prices
        self._offered = offered
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
        self._offered(self._catalogue)
