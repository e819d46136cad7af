"""The error that an order has ended with, for the webhook that tells of it: as its customer would have had it."""

from metering.events import Event
from proxy.errors import ApiError, Kind
from proxy.messages import RAN_OUT
from proxy.outcomes import reason_as_error


def explain(event: Event) -> tuple[str, str]:
    """Return code and message, in English, of an order that was not charged."""
    error = ApiError(Kind.END_UNKNOWN, RAN_OUT) if event.end == "expiry" else reason_as_error(event.reason)
    return error.kind.value.code, str(error.message)
