"""GET /v1/models: the models on offer, and this month's price of an image in MXN."""

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from config.catalogue import Catalogue, Model
from metering.clock import period_at, unix_us_at, utc_now
from metering.fx import FxRateMissing, FxTable
from metering.money import format_mxn, format_rate, unit_price_micro_mxn
from metering.pricing import FxRate
from metering.wallet.values import Caller
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.credits import checked
from proxy.api.operation import Operation, Tag
from proxy.api.reads import Read, ReadRates
from proxy.api.schemas import Model as ModelReply
from proxy.api.schemas import Models
from proxy.errors import Kind
from proxy.orders.order import DEFAULT_SIZE, no_model


class ModelsEndpoint:
    """The catalogue for a caller, without models that have no price or that its key may not use."""

    def __init__(
        self, authenticator: Authenticator, wallet: Wallet, catalogue: Catalogue, rates: FxTable, reads: ReadRates
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._catalogue = catalogue
        self._rates = rates
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
        rate, offered = self._rate(), self._catalogue.models.items()
        rows = [self._row(name, model, rate) for name, model in offered if _listed(name, model, caller)]
        return _json({"object": "list", "data": rows})

    async def one(self, request: Request) -> Response:
        """Show one model by its id; the slash in it may be written as %2F."""
        name = request.path_params["model_id"]
        if not name.strip("/"):
            raise HTTPException(404)  # one slash too many after the list's path
        caller, _ = await checked(request, self._authenticator, self._wallet, self._reads, Read.MODELS)
        model = self._catalogue.models.get(name)
        if model is None or not _listed(name, model, caller):
            raise no_model(name, self._catalogue)
        return _json(self._row(name, model, self._rate()))

    def _rate(self) -> FxRate | None:
        now_us = unix_us_at(utc_now())
        try:
            return self._rates.rate_for(period_at(now_us).month, now_us)
        except FxRateMissing:
            return None

    def _row(self, name: str, model: Model, rate: FxRate | None) -> dict[str, Any]:
        listed = model.listed(DEFAULT_SIZE if DEFAULT_SIZE in model.sizes else next(iter(model.sizes)), None)
        assert listed is not None, "a model for sale has a price for every size"
        return {
            "id": name,
            "object": "model",
            "created": int(datetime.combine(model.created, datetime.min.time(), UTC).timestamp()),
            "owned_by": model.provider,
            "name": model.name,
            "price": self._price(listed.usd_per_image, rate) | {"at_most": listed.measured},
            "prices": {variant: self._price(usd, rate) for variant, usd in sorted(model.prices().items()) if variant},
            "sizes": list(model.sizes),
            "qualities": list(model.qualities),
            "shutdown_date": model.shutdown_date.isoformat() if model.shutdown_date else None,
            "successor": model.successor,
        }

    def _price(self, usd: Decimal, rate: FxRate | None) -> dict[str, Any]:
        mxn = None
        if rate:
            mxn = format_mxn(unit_price_micro_mxn(usd, self._catalogue.markup, rate.mxn_per_usd))
        return {
            "usd_per_image": format_rate(usd),
            "markup": format_rate(self._catalogue.markup),
            "mxn_per_usd": format_rate(rate.mxn_per_usd) if rate else None,
            "fx_month": rate.month if rate else None,
            "mxn_per_image": mxn,
        }


def _listed(name: str, model: Model, caller: Caller) -> bool:
    return model.priced and (not caller.models or name in caller.models)


def _json(document: dict[str, Any]) -> Response:
    return Response(orjson.dumps(document), media_type="application/json")
