"""End of models. The catalogue announces it; the upstream decides it, and its answer is remembered for a while."""

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
"""How long no hold is opened for such a model. Then the upstream is asked again, in case its answer was a mistake."""


Successors = Callable[[str, Model], str | None]
"""Finds the model to order instead of one, by its id and row; None if there is none."""


class Lifecycle:
    """Models that their upstreams have called gone. `clock_s` is `time.monotonic`, or a test's."""

    def __init__(
        self, clock_s: Callable[[], float] = time.monotonic, successors: Successors = lambda _id, _model: None
    ) -> None:
        self._clock_s = clock_s
        self._successors = successors
        self._gone_until_s: dict[str, float] = {}

    def check(self, model_id: str, model: Model) -> None:
        """Raise ApiError 404 if the upstream said within `REMEMBERED_S` that the model is gone."""
        if self._is_gone(model_id):
            raise self._gone(model_id, model)

    def retire(self, model_id: str, model: Model) -> ApiError:
        """Remember that the upstream has called the model gone; returns the customer's error."""
        log.warning("model_retired_upstream", model=model_id, upstream=model.upstream, successor=model.successor)
        self._gone_until_s[model_id] = self._clock_s() + REMEMBERED_S
        return self._gone(model_id, model)

    def headers(self, model_id: str, model: Model) -> dict[str, str]:
        """Build `Deprecation` (RFC 9745), `Sunset` (RFC 8594) and the successor's link for a model with a last day."""
        if model.shutdown_date is None:
            return {}
        ends = datetime(model.shutdown_date.year, model.shutdown_date.month, model.shutdown_date.day, tzinfo=UTC)
        log.warning("model_at_its_end", model=model_id, shutdown_date=str(model.shutdown_date))
        headers = {"deprecation": f"@{int(ends.timestamp())}", "sunset": format_datetime(ends, usegmt=True)}
        if (instead := self.successor(model_id, model)) is not None:
            headers["link"] = f'</v1/models/{instead}>; rel="successor-version"'
        return headers

    def successor(self, model_id: str, model: Model) -> str | None:
        """Find the model to order instead; None also while its own upstream is known to have called it gone."""
        instead = self._successors(model_id, model)
        return None if instead is None or self._is_gone(instead) else instead

    def _is_gone(self, model_id: str) -> bool:
        return self._clock_s() < self._gone_until_s.get(model_id, 0.0)

    def _gone(self, model_id: str, model: Model) -> ApiError:
        instead = self.successor(model_id, model)
        told = INSTEAD.of(model=instead) if instead is not None else SEE_MODELS
        return ApiError(Kind.MODEL_NOT_FOUND, GONE.of(model=model_id).then(told), param="model")
