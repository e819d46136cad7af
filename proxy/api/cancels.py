"""POST /v1/images/generations/{id}/cancel: a long order is stopped, if that is still possible."""

from collections.abc import Sequence

import orjson
from starlette.requests import Request
from starlette.responses import Response

from metering.ports import LedgerAway
from metering.wallet.connection import WalletAway
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator
from proxy.api.credits import checked
from proxy.api.operation import ORDER_EXAMPLE, Operation, Tag
from proxy.api.reads import Read, ReadRates
from proxy.api.schemas import Cancelled
from proxy.api.standing import Standing, order_id_of
from proxy.errors import Kind, wallet_away
from proxy.orders.cancels import Cancellations


class CancelsEndpoint:
    """Cancels orders of the caller's key, or of its organisation, as that key may read them."""

    def __init__(
        self,
        authenticator: Authenticator,
        wallet: Wallet,
        standing: Standing,
        cancels: Cancellations,
        rates: ReadRates,
    ) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._standing = standing
        self._cancels = cancels
        self._rates = rates

    def operations(self) -> Sequence[Operation]:
        """Return the one operation."""
        return [
            Operation(
                id="cancel_generation",
                tag=Tag.IMAGES,
                method="POST",
                path="/v1/images/generations/{id}/cancel",
                handler=self.cancel,
                summary="Cancel a long order",
                description="An order that no provider has begun is cancelled at once; one that has begun, only if its"
                " provider confirms that it stops. Then nothing is charged. After a 409 the order runs to its end; an"
                " order that is cancelled again is answered as the first time.",
                reply=Cancelled,
                examples={"id": ORDER_EXAMPLE},
                errors=(Kind.NO_GENERATION, Kind.NOT_CANCELLED, Kind.RATE_LIMIT),
            )
        ]

    async def cancel(self, request: Request) -> Response:
        """Cancel the order of this id."""
        order_id = order_id_of(request.path_params["id"])
        try:
            caller, _ = await checked(request, self._authenticator, self._wallet, self._rates, Read.CANCELS)
            await self._standing.of(caller, order_id)  # raises 404 for an order that the key may not read
            await self._cancels.cancel(caller.org_id, order_id)
            document, _ = await self._standing.of(caller, order_id)
        except (WalletAway, LedgerAway):
            raise wallet_away() from None
        return Response(orjson.dumps(document), media_type="application/json")
