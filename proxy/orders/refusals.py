"""Limits as customers see them: headers on every reply, and numbers and times in a refusal."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from metering.clock import MEXICO, Period, month_start_us, next_month, utc_at
from metering.money import format_mxn
from metering.pricing import Quote
from metering.wallet.values import Admission, RateState, Verdict
from proxy.errors import ApiError, Kind
from proxy.messages import (
    AT_ONCE,
    BUDGET,
    COUNTS_AS,
    DAY,
    EXPIRED,
    KEY_REUSED,
    MODEL_NOT_ALLOWED,
    MONTH,
    NEXT_PERIOD,
    QUOTA,
    RATE,
    REVOKED,
    SUSPENDED,
    THE_KEYS,
    THE_ORGANISATIONS,
    TRY_AGAIN,
    Text,
)

HOLDS_RETRY_S = 2.0
"""A hint: an image takes several seconds, so some holds are closed by then."""


def balance_header(available_micro_mxn: int) -> dict[str, str]:
    """Build the header with what the organisation can spend now."""
    return {"x-geekhub-balance-mxn": format_mxn(available_micro_mxn)}


def rate_headers(admission: Admission) -> dict[str, str]:
    """Build OpenAI's rate-limit headers."""
    return _rate("requests", admission.requests) | _rate("images", admission.images)


def _rate(name: str, state: RateState) -> dict[str, str]:
    return {
        f"x-ratelimit-limit-{name}": str(state.limit),
        f"x-ratelimit-remaining-{name}": str(max(0, state.remaining)),
        f"x-ratelimit-reset-{name}": _duration(state.reset_us),
    }


@contextmanager
def with_headers(headers: Mapping[str, str]) -> Iterator[None]:
    """Add rate-limit headers to an error raised after admission: a failed order has still used its rate."""
    try:
        yield
    except ApiError as error:
        error.headers |= headers
        raise


def _duration(microseconds: int) -> str:
    """Format a duration like OpenAI: `20ms`, `1s`, `6m0s`, rounded up."""
    milliseconds = -(-microseconds // 1000)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, seconds = divmod(-(-milliseconds // 1000), 60)
    return f"{minutes}m{seconds}s" if minutes else f"{seconds}s"


def rate_limited(what: Text, admission: Admission, state: RateState, cost: int, headers: dict[str, str]) -> ApiError:
    """Build the 429 for too many requests or images per minute."""
    message = RATE.of(whose=_whose(admission), limit=state.limit, what=what)
    if cost > state.limit:
        message = COUNTS_AS.of(cost=cost, what=what).then(message)
        return ApiError(Kind.RATE_LIMIT, message, retry=False, headers=headers)
    if admission.retry_us == 0:
        return ApiError(Kind.RATE_LIMIT, message, retry=False, headers=headers)
    wait_s = admission.retry_us / 1_000_000
    message = message.then(TRY_AGAIN.of(seconds=-(-admission.retry_us // 1000) / 1000))
    return ApiError(Kind.RATE_LIMIT, message, retry_after_s=wait_s, headers=headers)


def reads_limited(what: Text, state: RateState, wait_s: float) -> ApiError:
    """Build the 429 for too many reads of a kind per minute; `what` is the kind in words."""
    message = RATE.of(whose=THE_ORGANISATIONS, limit=state.limit, what=what)
    message = message.then(TRY_AGAIN.of(seconds=-(-wait_s * 1000 // 1) / 1000))
    return ApiError(Kind.RATE_LIMIT, message, retry_after_s=wait_s, headers=_rate("requests", state))


def key_refused(verdict: Verdict, model_id: str) -> ApiError | None:
    """Build the 401, 403 or 422 for a verdict about the key itself, which no price changes; None for other verdicts."""
    match verdict:
        case Verdict.REVOKED:
            return ApiError(Kind.KEY_REVOKED, REVOKED)
        case Verdict.EXPIRED:
            return ApiError(Kind.KEY_EXPIRED, EXPIRED)
        case Verdict.MODEL:
            return ApiError(Kind.MODEL_NOT_ALLOWED, MODEL_NOT_ALLOWED.of(model=model_id), param="model")
        case Verdict.SUSPENDED:
            return ApiError(Kind.SUSPENDED, SUSPENDED)
        case Verdict.REUSED:
            return ApiError(Kind.KEY_REUSED, KEY_REUSED)
        case _:
            return None


def exceeded(admission: Admission, order: Quote, headers: dict[str, str]) -> ApiError:
    """Build the 402 for a month's budget, or the 429 for a quota of images or for images in flight."""
    whose, limit, used, images = _whose(admission), admission.limit, admission.used, order.images
    period, ends_us = _period(admission.verdict, order.period)
    match admission.verdict:
        case Verdict.IN_FLIGHT:
            message = AT_ONCE.of(whose=whose, limit=limit, used=used, images=images)
            if images > limit:
                return ApiError(Kind.RATE_LIMIT, message, retry=False, headers=headers)
            return ApiError(Kind.RATE_LIMIT, message, retry_after_s=HOLDS_RETRY_S, headers=headers)
        case Verdict.BUDGET:
            kind, cost = Kind.BUDGET, format_mxn(order.total_micro_mxn)
            message = BUDGET.of(whose=whose, limit=format_mxn(limit), used=format_mxn(used), cost=cost)
        case Verdict.DAY | Verdict.MONTH:
            kind = Kind.QUOTA
            message = QUOTA.of(whose=whose, limit=limit, period=period, used=used, images=images)
        case other:
            raise AssertionError(f"{other.name} has no message")
    if admission.retry_us == 0:
        return ApiError(kind, message, headers=headers)
    begins = utc_at(ends_us)
    local, utc = f"{begins.astimezone(MEXICO):%Y-%m-%d %H:%M}", f"{begins:%Y-%m-%dT%H:%M:%SZ}"
    message = message.then(NEXT_PERIOD.of(period=period, local=local, utc=utc))
    wait_us = max(ends_us - admission.now_us, admission.retry_us)
    return ApiError(kind, message, retry_after_s=wait_us / 1_000_000, headers=headers)


def _period(verdict: Verdict, period: Period) -> tuple[Text, int]:
    """Find the limit's period, and when the next one begins, in Unix µs."""
    return (DAY, period.end_us) if verdict is Verdict.DAY else (MONTH, month_start_us(next_month(period.month)))


def _whose(admission: Admission) -> Text:
    return THE_KEYS if admission.whose == "key" else THE_ORGANISATIONS
