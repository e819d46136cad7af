"""Models end. The catalogue informs; whether a model is gone, its upstream says, and that is remembered for a while."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import format_datetime

import structlog

from config.catalogue import Model
from proxy.errors import ApiError, Kind
from proxy.messages import GONE, INSTEAD, SEE_MODELS

log = structlog.get_logger(__name__)

REMEMBERED_S = 600.0
"""So long no hold is opened in vain; then the upstream is asked again, as it may have been a slip."""


class Lifecycle:
    """Which models their upstreams have called gone. `clock_s` is `time.monotonic`, or a test's."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._gone_until_s: dict[str, float] = {}

    def check(self, model_id: str, model: Model) -> None:
        """Raises ApiError 404 for a model that was gone a moment ago."""
        if self._clock_s() < self._gone_until_s.get(model_id, 0.0):
            raise gone(model_id, model)

    def retire(self, model_id: str, model: Model) -> ApiError:
        """The upstream says that the model is gone: remember it; returns what the customer is told."""
        log.warning("model_retired_upstream", model=model_id, upstream=model.upstream, successor=model.successor)
        self._gone_until_s[model_id] = self._clock_s() + REMEMBERED_S
        return gone(model_id, model)


def gone(model_id: str, model: Model) -> ApiError:
    """404 that names the successor."""
    instead = INSTEAD.of(model=model.successor) if model.successor else SEE_MODELS
    return ApiError(Kind.MODEL_NOT_FOUND, GONE.of(model=model_id).then(instead), param="model")


def lifecycle_headers(model_id: str, model: Model) -> dict[str, str]:
    """`Deprecation` (RFC 9745) and `Sunset` (RFC 8594) for a model that has a day to end, with its successor."""
    if model.shutdown_date is None:
        return {}
    ends = datetime(model.shutdown_date.year, model.shutdown_date.month, model.shutdown_date.day, tzinfo=UTC)
    log.warning("model_at_its_end", model=model_id, shutdown_date=str(model.shutdown_date))
    headers = {"deprecation": f"@{int(ends.timestamp())}", "sunset": format_datetime(ends, usegmt=True)}
    if model.successor:
        headers["link"] = f'</v1/models/{model.successor}>; rel="successor-version"'
    return headers
