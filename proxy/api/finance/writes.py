"""What finance does: rates, adjustments, and the close of a month. Each right is checked before, in `desk.py`."""

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis

from metering.accounts import Accounts
from metering.money import AmountError, parse_mxn, parse_rate
from metering.months import close_month
from metering.ports import Act, Ledger, WrongField
from metering.pricing import FxRate
from proxy.api.admin.call import Call
from proxy.api.admin.desk import Written
from proxy.api.finance.reads import FinanceReads, month_in, number_in
from proxy.errors import ApiError, Kind

NO_KEY = "This gateway has no GHUB_MONTH_SIGNING_KEY, so it seals no month. Nothing was done."


@dataclass(frozen=True, slots=True)
class Deeds:
    """What one actor may do. Without a signing key no month is closed."""

    actor: str
    accounts: Accounts
    ledger: Ledger
    redis: Redis | None
    key: Ed25519PrivateKey | None


async def enter_rate(call: Call, deeds: Deeds) -> Written:
    body = call.body
    try:
        rate = FxRate(body.month, parse_rate(body.mxn_per_usd), body.source)
    except AmountError as error:
        raise WrongField("mxn_per_usd", str(error)) from None
    return Written(body.month, {"added": await deeds.accounts.add_rate(rate, force=body.force)})


async def approve_rate(call: Call, deeds: Deeds) -> Written:
    found = await FinanceReads(deeds.ledger).rate(call)
    await deeds.accounts.approve_rate(found.rate.month, found.rate.mxn_per_usd, found.rate_id)
    return Written(str(found.rate_id))


async def propose_adjustment(call: Call, deeds: Deeds) -> Written:
    body = call.body
    try:
        micro_mxn = parse_mxn(body.mxn)
    except AmountError as error:
        raise WrongField("mxn", str(error)) from None
    proposed = await deeds.accounts.propose_adjustment(body.org, micro_mxn, body.reason, body.corrects)
    return Written(str(proposed.proposal_id))


async def approve_adjustment(call: Call, deeds: Deeds) -> Written:
    return Written(str((await deeds.accounts.approve_adjustment(number_in(call))).proposal_id))


async def close(call: Call, deeds: Deeds) -> Written:
    """Close a month and seal it. Whoever repeats it seals what was closed when something stopped."""
    month = month_in(call)
    if deeds.key is None:
        raise ApiError(Kind.UNAVAILABLE, NO_KEY, retry=False)
    act = Act(deeds.actor, "month.close", month, apart=True)
    closed = await close_month(deeds.ledger, deeds.redis, month, act, deeds.key)
    return Written(month, {"new": closed.new})
