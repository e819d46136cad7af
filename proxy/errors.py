"""Every public error: one table, one envelope. `docs/errors.md` is printed from it."""

from dataclasses import dataclass
from enum import Enum

import orjson

from proxy.messages import WALLET_AWAY, Language, translated


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table. `retry` is the default of `x-should-retry`, if the raiser does not set it."""

    status: int
    type: str
    code: str
    retry: bool
    when: str


class Kind(Enum):
    """The table of errors, which is our contract with customers."""

    INVALID_REQUEST = Row(400, "invalid_request_error", "invalid_request_error", False, "the body is wrong")
    CONTENT_POLICY = Row(
        400,
        "invalid_request_error",
        "content_policy_violation",
        False,
        "the prompt or every image was refused upstream",
    )
    MISSING_KEY = Row(401, "authentication_error", "missing_api_key", False, "no API key was sent")
    INVALID_KEY = Row(401, "authentication_error", "invalid_api_key", False, "the API key is not known")
    KEY_REVOKED = Row(401, "authentication_error", "key_revoked", False, "the API key was revoked")
    KEY_EXPIRED = Row(401, "authentication_error", "key_expired", False, "the API key has expired")
    INVALID_TOKEN = Row(
        401,
        "authentication_error",
        "invalid_token",
        False,
        "the administrator's token is missing, wrong or has expired",
    )
    BALANCE = Row(402, "insufficient_balance", "insufficient_balance", False, "the balance does not cover the order")
    BUDGET = Row(402, "budget_exceeded", "budget_exceeded", False, "the month's budget does not cover the order")
    MODEL_NOT_ALLOWED = Row(403, "permission_error", "model_not_allowed", False, "the API key may not use this model")
    ORIGIN_NOT_ALLOWED = Row(
        403, "permission_error", "origin_not_allowed", False, "the API key may not be used by pages from this origin"
    )
    SUSPENDED = Row(403, "permission_error", "organization_suspended", False, "the organisation is suspended")
    NOT_ALLOWED = Row(
        403,
        "permission_error",
        "not_allowed",
        False,
        "the token's role or rights, or the API key, do not allow this",
    )
    SECOND_PERSON = Row(
        403,
        "permission_error",
        "second_person_required",
        False,
        "the token's person has done the other half of this, or has used another right of this month",
    )
    MODEL_NOT_FOUND = Row(404, "invalid_request_error", "model_not_found", False, "there is no such model")
    NO_GENERATION = Row(
        404, "invalid_request_error", "generation_not_found", False, "the organisation has no such generation"
    )
    NOT_FOUND = Row(404, "invalid_request_error", "not_found", False, "there is nothing at this address")
    METHOD = Row(405, "invalid_request_error", "method_not_allowed", False, "the address does not take this method")
    CANCELLED = Row(409, "conflict", "order_cancelled", False, "the order was cancelled; nothing was charged")
    NOT_CANCELLED = Row(409, "conflict", "not_cancellable", False, "the order has ended, or cannot be stopped any more")
    NOT_ACCEPTABLE = Row(
        406,
        "invalid_request_error",
        "not_acceptable",
        False,
        "the gateway cannot answer in the requested form",
    )
    TOO_LARGE = Row(413, "invalid_request_error", "request_too_large", False, "the body is too large")
    ENCODING = Row(
        415, "invalid_request_error", "unsupported_encoding", False, "the body is compressed in a way that is not taken"
    )
    KEY_REUSED = Row(
        422, "invalid_request_error", "idempotency_key_reused", False, "the same idempotency key with another order"
    )
    RATE_LIMIT = Row(
        429,
        "rate_limit_exceeded",
        "rate_limit_exceeded",
        True,
        "too many requests or images per minute, or images at once",
    )
    QUOTA = Row(429, "rate_limit_exceeded", "quota_exceeded", False, "the day's or the month's images are used up")
    INTERNAL = Row(500, "internal_error", "internal_error", True, "a fault of the gateway")
    PROVIDER = Row(
        502, "provider_unavailable", "provider_unavailable", True, "the model's provider or the store failed"
    )
    OUTCOME_UNKNOWN = Row(
        502,
        "provider_unavailable",
        "outcome_unknown",
        False,
        "the gateway died that made the order, so what its provider did is not known; nothing was charged",
    )
    UNAVAILABLE = Row(503, "temporarily_unavailable", "temporarily_unavailable", True, "the gateway cannot decide now")
    BUSY = Row(
        503,
        "temporarily_unavailable",
        "gateway_busy",
        True,
        "the gateway makes as many images as it can, or the organisation has its share of them while others wait",
    )
    CHARGED = Row(
        503,
        "temporarily_unavailable",
        "charged_fetch_by_id",
        True,
        "the order is charged and its answer was lost; its images are to be fetched by its id",
    )
    FX_MISSING = Row(503, "temporarily_unavailable", "fx_rate_missing", False, "this month has no exchange rate yet")
    DEADLINE = Row(504, "deadline_exceeded", "deadline_exceeded", False, "no image was ready in time")
    END_UNKNOWN = Row(
        504, "deadline_exceeded", "end_unknown", False, "whether the order is charged is not known yet; its id tells it"
    )


REDIS_AWAY = "redis_away"
"""Reason of a refusal for which Redis gave no verdict."""

LONGEST_RETRY_S = 60.0
"""Maximum `retry-after`. The official SDKs ignore a longer one; some then retry at once."""


class ApiError(Exception):
    """An error reply for the customer.

    `message` is a text of `proxy/messages.py`, or a sentence of the admin or finance API, which is in English only. It
    contains no secret, URL or traceback. `reason` is for our metrics and our log: one of our own names, finer than the
    code if the code has several causes, and else the code.
    """

    def __init__(
        self,
        kind: Kind,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
        retry: bool | None = None,
        headers: dict[str, str] | None = None,
        reason: str | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.reason = reason or kind.value.code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s
        self.headers = headers or {}
        self.retry = kind.value.retry if retry is None else retry
        if retry_after_s is not None and retry_after_s > LONGEST_RETRY_S:
            self.retry = False

    @property
    def span_code(self) -> str:
        """What a trace calls it."""
        return self.kind.value.code

    def body(self, request_id: str, wanted: Language = "en") -> bytes:
        """Encode OpenAI's error envelope with our request id, in the `wanted` language if the message has it."""
        row = self.kind.value
        message, _ = translated(self.message, wanted)
        return orjson.dumps(
            {
                "error": {
                    "message": message,
                    "type": row.type,
                    "code": row.code,
                    "param": self.param,
                    "request_id": request_id,
                }
            }
        )

    def reply_headers(self, wanted: Language = "en") -> dict[str, str]:
        """Build the headers that the official SDKs obey, and the language of the body."""
        _, language = translated(self.message, wanted)
        headers = {"content-language": language, "vary": "accept-language"}
        headers |= {"x-should-retry": "true" if self.retry else "false", **self.headers}
        if self.retry_after_s is not None:
            milliseconds = max(1, -int(-self.retry_after_s * 1000 // 1))
            headers["retry-after-ms"] = str(milliseconds)
            headers["retry-after"] = str(-(-milliseconds // 1000))
        return headers


def wallet_away() -> ApiError:
    """Build the 503 for a Redis without a verdict: nothing was decided, so a retry is safe."""
    return ApiError(Kind.UNAVAILABLE, WALLET_AWAY, retry_after_s=1.0, reason=REDIS_AWAY)
