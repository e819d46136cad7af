"""GET /v1/models: the models on offer, and this month's price of an image in MXN."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from config.catalogue import Model
from metering.clock import period_at
from metering.fx import FxRateMissing, FxTable
from metering.money import format_mxn, format_rate, unit_price_micro_mxn
from metering.price_table import PriceTable
from metering.pricing import FxRate, Price
from metering.wallet.values import Caller
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.credits import checked
from proxy.api.operation import Operation, Tag
from proxy.api.reads import Read, ReadRates
from proxy.api.schemas import Model as ModelReply
from proxy.api.schemas import Models
from proxy.errors import Kind
from proxy.offer import Offer
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.order import DEFAULT_SIZE, no_model


class ModelsEndpoint:
    """The catalogue for a caller, without models that have no price or that its key may not use."""

    def __init__(
        self,
        authenticator: Authenticator,
        wallet: Wallet,
        offer: Offer,
        lifecycle: Lifecycle,
        rates: FxTable,
        prices: PriceTable,
        reads: ReadRates,
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._offer = offer
        self._lifecycle = lifecycle
        self._rates = rates
        self._prices = prices
        self._reads = reads

    def operations(self) -> Sequence[Operation]:
        return [
            Operation(
                id="list_models",
                tag=Tag.MODELS,
                method="GET",
                path="/v1/models",
                handler=self.list,
                summary="What can be ordered, with this month's price",
                reply=Models,
                errors=(Kind.RATE_LIMIT,),
            ),
            Operation(
                id="get_model",
                tag=Tag.MODELS,
                method="GET",
                path="/v1/models/{model_id:path}",
                handler=self.one,
                summary="One model",
                description="The slash in its id may be written as %2F.",
                reply=ModelReply,
                examples={"model_id": "fal/flux-1.1-pro"},
                errors=(Kind.MODEL_NOT_FOUND, Kind.RATE_LIMIT),
            ),
        ]

    async def list(self, request: Request) -> Response:
        """List all models."""
        caller, _ = await checked(request, self._authenticator, self._wallet, self._reads, Read.MODELS)
        now_us, offered = self._wallet.now_us(caller.org_id), self._offer.catalogue.models.items()
        rows = [self._row(name, model, now_us) for name, model in offered if _listed(name, model, caller)]
        return _json({"object": "list", "data": rows})

    async def one(self, request: Request) -> Response:
        """Show one model by its id; the slash in it may be written as %2F."""
        name = request.path_params["model_id"]
        if not name.strip("/"):
            raise HTTPException(404)  # one slash too many after the list's path
        caller, _ = await checked(request, self._authenticator, self._wallet, self._reads, Read.MODELS)
        model = self._offer.catalogue.models.get(name)
        if model is None or not _listed(name, model, caller):
            raise no_model(name, self._offer.catalogue)
        return _json(self._row(name, model, self._wallet.now_us(caller.org_id)))

    def _row(self, name: str, model: Model, now_us: int) -> dict[str, Any]:
        listed = model.quoted(DEFAULT_SIZE if DEFAULT_SIZE in model.sizes else next(iter(model.sizes)), None)
        assert listed is not None, "a model for sale has a price for every size"
        return {
            "id": name,
            "object": "model",
            "created": int(datetime.combine(model.created, datetime.min.time(), UTC).timestamp()),
            "owned_by": model.provider,
            "name": model.name,
            "price": self._price(name, listed.variant, now_us) | {"at_most": listed.measured},
            "prices": {
                shown: self._price(name, variant, now_us)
                for variant in sorted(model.prices())
                if (shown := model.shown(variant))
            },
            "sizes": list(model.sizes),
            "qualities": list(model.qualities),
            "takes_s": _takes_s(model),
            "long_deadline_s": model.long_deadline_s,
            "status": self._offer.status(model),
            "shutdown_date": model.shutdown_date.isoformat() if model.shutdown_date else None,
            "successor": self._lifecycle.successor(name, model),
            "served_by": model.served_by,
        }

    def _price(self, name: str, variant: str, now_us: int) -> dict[str, Any]:
        """Show the price of this moment, and the one that is announced."""
        price = self._prices.price(name, variant, now_us)
        shown = _fields(price, self._rate(now_us)) | {"upcoming": None}
        if (later := self._prices.upcoming(name, variant, now_us)) is not None:
            rate = self._rate(later.from_us)
            # The month's own rate may not be known yet, and last month's is none for it.
            known = rate if rate and rate.month == period_at(later.from_us).month else None
            shown["upcoming"] = _fields(later, known) | {"effective_from": later.from_us // 1_000_000}
        return shown

    def _rate(self, at_us: int) -> FxRate | None:
        try:
            return self._rates.rate_for(period_at(at_us).month, at_us)
        except FxRateMissing:
            return None


def _fields(price: Price, rate: FxRate | None) -> dict[str, Any]:
    mxn = None
    if rate:
        mxn = format_mxn(unit_price_micro_mxn(price.usd_per_image, price.markup, rate.mxn_per_usd))
    return {
        "usd_per_image": format_rate(price.usd_per_image),
        "markup": format_rate(price.markup),
        "mxn_per_usd": format_rate(rate.mxn_per_usd) if rate else None,
        "fx_month": rate.month if rate else None,
        "mxn_per_image": mxn,
    }


def _takes_s(model: Model) -> dict[str, int]:
    """Show the seconds to allow, by the `quality/size` that a customer may order; only those that are set."""
    takes = {
        f"{quality}/{size}": model.takes_s_of(size, sent)
        for quality, sent in (*model.qualities.items(), *(() if model.qualities else (("*", None),)))
        for size in model.sizes
    }
    return {variant: seconds for variant, seconds in takes.items() if seconds is not None}


def _listed(name: str, model: Model, caller: Caller) -> bool:
    return model.priced and (not caller.models or name in caller.models)


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
