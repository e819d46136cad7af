"""GET /v1/credits: an organisation's balance."""

from collections.abc import Sequence
from dataclasses import replace

import orjson
from starlette.requests import Request
from starlette.responses import Response

from metering.wallet.connection import WalletAway
from metering.wallet.values import Caller, WalletSnapshot
from metering.wallet.wallet import Wallet
from proxy.api.auth import Authenticator, check_state
from proxy.api.balances import balance_fields
from proxy.api.middleware import context_of
from proxy.api.operation import BALANCE, Operation, Tag
from proxy.api.reads import Read, ReadRates
from proxy.api.schemas import Credits
from proxy.errors import Kind, wallet_away


async def checked(
    request: Request, authenticator: Authenticator, wallet: Wallet, rates: ReadRates, read: Read
) -> tuple[Caller, WalletSnapshot]:
    """Check the caller's key now, and count the read; returns the caller and its wallet.

    Raises ApiError 401, 403, 429 or 503.
    """
    try:
        caller = await authenticator.caller(request.headers)
        context_of(request.scope).facts |= {"org": caller.org_id, "key": caller.key_id}
        cut = await wallet.read(caller.org_id, caller.key_id)
    except WalletAway:
        raise wallet_away() from None
    check_state(cut.key_state)
    rates.take(caller.org_id, read)
    return caller, cut


class CreditsEndpoint:
    """The prepaid balance, in MXN as decimal strings. The sandbox has none, so a test key gets zero."""

    def __init__(self, authenticator: Authenticator, wallet: Wallet, rates: ReadRates) -> None:
        self._authenticator = authenticator
        self._wallet = wallet
        self._rates = rates

    def operations(self) -> Sequence[Operation]:
        return [
            Operation(
                id="get_credits",
                tag=Tag.ACCOUNT,
                method="GET",
                path="/v1/credits",
                handler=self.read,
                summary="The prepaid balance",
                reply=Credits,
                reply_headers=BALANCE,
                errors=(Kind.RATE_LIMIT,),
            )
        ]

    async def read(self, request: Request) -> Response:
        """Answer GET /v1/credits."""
        caller, cut = await checked(request, self._authenticator, self._wallet, self._rates, Read.CREDITS)
        if caller.test:
            cut = replace(cut, available_micro_mxn=0, held_micro_mxn=0)
        document = {"object": "credits", "currency": "MXN"} | balance_fields(cut)
        available = document["available_mxn"]
        return Response(
            orjson.dumps(document), media_type="application/json", headers={"x-geekhub-balance-mxn": available}
        )
