"""Outcomes of an upstream call, and their consequences: one table. The reason code goes into the event."""

from dataclasses import dataclass
from enum import Enum

from metering.events import ADMISSION_UNREAD, NOT_SETTLED
from proxy.errors import ApiError, Kind, wallet_away
from proxy.messages import (
    MAKER_DIED,
    MAKING_FAILED,
    MODEL_RETIRED,
    NO_ACCESS,
    NO_IMAGE,
    NO_RESULT,
    NOT_AN_IMAGE,
    NOT_FETCHED,
    NOT_IN_TIME,
    NOT_STORED,
    PROVIDER_AWAY,
    PROVIDER_BROKE_OFF,
    PROVIDER_BUSY,
    PROVIDER_FULL,
    PROVIDER_REFUSED,
    PROVIDER_REJECTED,
    PROVIDER_RESTS,
    PROVIDER_UNREACHABLE,
    WAS_CANCELLED,
    Text,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Consequences of an outcome. `error` is what the customer sees if no image at all was delivered.

    `accepted`: the upstream may have begun to work, and to bill us; then nobody is told to retry. `again`: the gateway
    itself repeats the call within the deadline. This needs certainty that the call was not accepted.
    """

    error: Kind
    accepted: bool
    message: Text
    again: bool = False


class Outcome(Enum):
    """Ends of an upstream call without a stored image. Only stored images are charged, so these are voids.

    For some of them it is unknown whether the upstream worked: `metering.events.UNKNOWN`.
    """

    CONTENT_POLICY = Rule(Kind.CONTENT_POLICY, True, PROVIDER_REFUSED)
    REFUSED_CONNECTION = Rule(Kind.PROVIDER, False, PROVIDER_UNREACHABLE, again=True)
    RATE_LIMITED = Rule(Kind.PROVIDER, False, PROVIDER_FULL, again=True)
    BUSY = Rule(Kind.PROVIDER, False, PROVIDER_BUSY, again=True)
    CIRCUIT_OPEN = Rule(Kind.PROVIDER, False, PROVIDER_RESTS)
    OVERLOADED = Rule(Kind.PROVIDER, True, PROVIDER_AWAY)
    NO_ANSWER = Rule(Kind.PROVIDER, True, PROVIDER_BROKE_OFF)
    REJECTED = Rule(Kind.PROVIDER, True, PROVIDER_REJECTED)
    NOT_AUTHORISED = Rule(Kind.PROVIDER, False, NO_ACCESS)
    RETIRED = Rule(Kind.MODEL_NOT_FOUND, False, MODEL_RETIRED)
    BAD_REPLY = Rule(Kind.PROVIDER, True, NO_RESULT)
    NO_IMAGE = Rule(Kind.PROVIDER, True, NO_IMAGE)
    BAD_IMAGE = Rule(Kind.PROVIDER, True, NOT_AN_IMAGE)
    FETCH_FAILED = Rule(Kind.PROVIDER, True, NOT_FETCHED)
    STORE_FAILED = Rule(Kind.PROVIDER, True, NOT_STORED)
    DEADLINE = Rule(Kind.DEADLINE, True, NOT_IN_TIME)
    FAULT = Rule(Kind.INTERNAL, True, MAKING_FAILED)
    LOST = Rule(Kind.OUTCOME_UNKNOWN, True, MAKER_DIED)
    CANCELLED = Rule(Kind.CANCELLED, True, WAS_CANCELLED)

    @property
    def reason(self) -> str:
        """Reason code in the event."""
        return self.name.lower()


class Failure(Exception):
    """A call, or the rest of it, brought nothing. `retry_after_s` comes from the upstream."""

    def __init__(self, outcome: Outcome, detail: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{outcome.reason} {detail}".strip())
        self.outcome = outcome
        self.detail = detail
        self.retry_after_s = retry_after_s

    @property
    def span_code(self) -> str:
        """What a trace calls it."""
        return self.outcome.reason

    def as_error(self) -> ApiError:
        """Build the customer's error."""
        rule = self.outcome.value
        param = "model" if rule.error is Kind.MODEL_NOT_FOUND else None
        return ApiError(
            rule.error,
            rule.message,
            param=param,
            retry=rule.error.value.retry and not rule.accepted,
            retry_after_s=None if rule.accepted else self.retry_after_s,
            reason=self.outcome.reason,
        )


def reason_as_error(reason: str) -> ApiError:
    """Build the customer's error for an order that was voided before, from the reason in its event."""
    if reason == ADMISSION_UNREAD:
        return wallet_away()
    known = {outcome.reason: outcome for outcome in Outcome} | {NOT_SETTLED: Outcome.DEADLINE}
    return Failure(known.get(reason, Outcome.FAULT)).as_error()


def worst(failures: list[Failure]) -> Failure:
    """Choose the failure to report. A job that may have begun forbids a retry, so it wins over one that did not."""
    return max(
        failures, key=lambda failure: (failure.outcome.value.accepted, failure.outcome is Outcome.CONTENT_POLICY)
    )
