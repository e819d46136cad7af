"""Whether the order is charged. This is the only place that decides what an error says about money (rule 8)."""

from enum import Enum

import structlog
from prometheus_client import Counter

from proxy.errors import ApiError, Kind
from proxy.messages import CHARGED, END_UNKNOWN

log = structlog.get_logger(__name__)

CHARGED_AFTER_ERROR = Counter(
    "ghub_charged_after_error_total", "Orders charged although their customer was told an error"
)

FETCH_RETRY_S = 1.0
"""Time until the consumer has booked the charge; an SDK's retry is answered from the booked charge."""


class Charge(Enum):
    """What is known of an order's charge."""

    NONE = 0
    UNKNOWN = 1
    CHARGED = 2


class Ending:
    """One order's end, as its client is told. `client_gone`: nobody waits for the answer."""

    def __init__(self) -> None:
        self.client_gone = False
        self._charge = Charge.NONE
        self._order = ""
        self._told_error = False
        self._counted = False

    def known(self, charge: Charge) -> None:
        """Set what is known from now on. It may come long after the client was told something."""
        self._charge = charge
        self._count()

    def as_answered(self, error: ApiError, order_id: str) -> ApiError:
        """Choose the client's error: `error` itself only if nothing was charged. `order_id`: `req_…`."""
        self._order = order_id
        self._told_error = not self.client_gone
        self._count()
        where = f"GET /v1/images/generations/{order_id}"
        match self._charge:
            case Charge.NONE:
                return error
            case Charge.CHARGED:
                message = CHARGED.of(where=where)
                return ApiError(
                    Kind.CHARGED, message, retry_after_s=FETCH_RETRY_S, headers=error.headers, reason=error.reason
                )
            case Charge.UNKNOWN:
                return ApiError(
                    Kind.END_UNKNOWN, END_UNKNOWN.of(where=where), headers=error.headers, reason=error.reason
                )

    def _count(self) -> None:
        if self._told_error and self._charge is Charge.CHARGED and not self._counted:
            self._counted = True
            CHARGED_AFTER_ERROR.inc()
            log.error("charged_after_error", request_id=self._order)
