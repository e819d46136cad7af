"""Denials: orders that are refused before anything is held, by the reason."""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import Counter

from metering.wallet.connection import WalletAway
from metering.wallet.values import Verdict
from proxy.errors import REDIS_AWAY, ApiError, Kind
from proxy.orders import gate
from proxy.orders.capacity import NOT_READY, Refusal
from proxy.outcomes import Outcome

_NO_DENIALS = {Verdict.ADMITTED, Verdict.DUPLICATE, Verdict.AWAY}

REASONS = (
    *(verdict.name.lower() for verdict in Verdict if verdict not in _NO_DENIALS),
    *(refusal.reason for refusal in Refusal),
    *(NOT_READY, REDIS_AWAY, gate.REASON, Outcome.CIRCUIT_OPEN.reason),
    *(
        kind.value.code
        for kind in (
            Kind.MISSING_KEY,
            Kind.INVALID_KEY,
            Kind.ORIGIN_NOT_ALLOWED,
            Kind.INVALID_REQUEST,
            Kind.TOO_LARGE,
            Kind.ENCODING,
            Kind.MODEL_NOT_FOUND,
            Kind.FX_MISSING,
        )
    ),
)
"""Reasons for which an order is refused before anything is held: verdicts of Redis, conditions here, and codes."""

DENIALS = Counter("ghub_denials_total", "Orders refused before anything was held", ["reason"])
for _reason in REASONS:
    DENIALS.labels(_reason)  # at zero: an increase from nothing would not be seen


@contextmanager
def counted() -> Iterator[None]:
    """Count an order that is refused in this block."""
    try:
        yield
    except WalletAway:
        DENIALS.labels(REDIS_AWAY).inc()
        raise
    except ApiError as error:
        DENIALS.labels(error.reason).inc()
        raise
