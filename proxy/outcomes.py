"""What can become of an upstream call, and what follows: one table. The reason code goes into the event."""

from dataclasses import dataclass
from enum import Enum

from proxy.errors import ApiError, Kind


@dataclass(frozen=True, slots=True)
class Rule:
    """`error` is what the customer sees where no image was delivered at all.

    `accepted`: may the upstream have begun to work (and to bill us)? If so nobody is told to try again.
    `again`: the gateway itself makes the call once more, within the deadline; only where it was surely not accepted.
    """

    error: Kind
    accepted: bool
    message: str
    again: bool = False


class Outcome(Enum):
    """Ends of an upstream call other than a stored image, which is the one thing that is charged. These are voids.

    Of some nobody can say whether the upstream did it: `metering.events.UNKNOWN`.
    """

    CONTENT_POLICY = Rule(Kind.CONTENT_POLICY, True, "The provider refused the prompt or its images: content policy.")
    REFUSED_CONNECTION = Rule(Kind.PROVIDER, False, "The model's provider cannot be reached.", again=True)
    RATE_LIMITED = Rule(Kind.PROVIDER, False, "The model's provider takes no more work right now.", again=True)
    BUSY = Rule(Kind.PROVIDER, False, "The model's provider is too busy to take the work on.", again=True)
    OVERLOADED = Rule(Kind.PROVIDER, True, "The model's provider is unavailable.")
    NO_ANSWER = Rule(Kind.PROVIDER, True, "The model's provider broke off without a result.")
    REJECTED = Rule(Kind.PROVIDER, True, "The model's provider rejected the request.")
    NOT_AUTHORISED = Rule(Kind.PROVIDER, False, "The gateway's access to the model's provider is not in order.")
    RETIRED = Rule(Kind.MODEL_NOT_FOUND, False, "The model's provider does not offer this model any more.")
    BAD_REPLY = Rule(Kind.PROVIDER, True, "The model's provider sent something that is no result.")
    NO_IMAGE = Rule(Kind.PROVIDER, True, "The model's provider delivered no image.")
    BAD_IMAGE = Rule(Kind.PROVIDER, True, "The model's provider delivered something that is not an image.")
    FETCH_FAILED = Rule(Kind.PROVIDER, True, "The finished image could not be fetched from the model's provider.")
    STORE_FAILED = Rule(Kind.PROVIDER, True, "The finished image could not be stored.")
    DEADLINE = Rule(Kind.DEADLINE, True, "No image was ready in time; nothing was charged.")
    FAULT = Rule(Kind.INTERNAL, True, "The gateway failed at making the image; nothing was charged.")

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
