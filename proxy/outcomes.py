"""What can become of an upstream call, and what follows: one table. The reason code goes into the event."""

from dataclasses import dataclass
from enum import Enum

from proxy.errors import ApiError, Kind
from proxy.messages import (
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
    PROVIDER_UNREACHABLE,
    Text,
)


@dataclass(frozen=True, slots=True)
class Rule:
    """`error` is what the customer sees where no image was delivered at all.

    `accepted`: may the upstream have begun to work (and to bill us)? If so nobody is told to try again.
    `again`: the gateway itself makes the call once more, within the deadline; only where it was surely not accepted.
    """

    error: Kind
    accepted: bool
    message: Text
    again: bool = False


class Outcome(Enum):
    """Ends of an upstream call other than a stored image, which is the one thing that is charged. These are voids.

    Of some nobody can say whether the upstream did it: `metering.events.UNKNOWN`.
    """

    CONTENT_POLICY = Rule(Kind.CONTENT_POLICY, True, PROVIDER_REFUSED)
    REFUSED_CONNECTION = Rule(Kind.PROVIDER, False, PROVIDER_UNREACHABLE, again=True)
    RATE_LIMITED = Rule(Kind.PROVIDER, False, PROVIDER_FULL, again=True)
    BUSY = Rule(Kind.PROVIDER, False, PROVIDER_BUSY, again=True)
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

    @property
    def reason(self) -> str:
        """The code in the event."""
        return self.name.lower()


class Failure(Exception):
    """A call, or the rest of it, came to nothing. `retry_after_s` is the upstream's own wish."""

    def __init__(self, outcome: Outcome, detail: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(f"{outcome.reason} {detail}".strip())
        self.outcome = outcome
        self.detail = detail
        self.retry_after_s = retry_after_s

    def as_error(self) -> ApiError:
        """What the customer is told."""
        rule = self.outcome.value
        param = "model" if rule.error is Kind.MODEL_NOT_FOUND else None
        return ApiError(
            rule.error,
            rule.message,
            param=param,
            retry=rule.error.value.retry and not rule.accepted,
            retry_after_s=None if rule.accepted else self.retry_after_s,
        )


def reason_as_error(reason: str) -> ApiError:
    """What a customer is told of an order that ended as a void earlier, by the reason in its event."""
    known = {outcome.reason: outcome for outcome in Outcome}
    return Failure(known.get(reason, Outcome.FAULT)).as_error()


def worst(failures: list[Failure]) -> Failure:
    """The one to tell of several: a job that may have begun forbids a retry, so it goes before one that did not."""
    return max(
        failures, key=lambda failure: (failure.outcome.value.accepted, failure.outcome is Outcome.CONTENT_POLICY)
    )
