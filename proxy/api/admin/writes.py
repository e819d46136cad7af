"""The calls of `Accounts` that each write of the admin API makes."""

from datetime import timedelta

from metering.accounts import Accounts
from metering.limits import LIMITS, NONE
from metering.money import AmountError, parse_mxn, parse_rate
from metering.ports import WrongField
from metering.pricing import FxRate
from proxy.api.admin.call import Call
from proxy.api.admin.desk import Written
from proxy.api.admin.schemas import KeyLimits, OrgLimits
from proxy.errors import ApiError, Kind


async def create_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.create_org(call.body.name, call.body.plan)).org_id)


async def suspend_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.suspend_org(call.ref, call.body.reason)).org_id)


async def resume_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.resume_org(call.ref)).org_id)


async def rename_org(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.rename_org(call.ref, call.body.name)).org_id)


async def org_plan(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.set_plan(call.ref, call.body.plan)).org_id)


async def org_limits(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.set_limits(call.ref, _changes(call.body))).org_id)


async def create_key(call: Call, accounts: Accounts) -> Written:
    body = call.body
    issued = await accounts.create_key(
        call.ref,
        body.name,
        expires=body.expires,
        models=body.models,
        test=body.test,
        read=body.read,
        response_format=body.response_format,
        origins=body.origins,
    )
    return Written(issued.key_id, {"key": issued.secret})


async def key_limits(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.set_key_limits(call.ref, _changes(call.body))).key_id)


async def rotate_key(call: Call, accounts: Accounts) -> Written:
    issued = await accounts.rotate_key(call.ref, timedelta(hours=call.body.overlap_h))
    return Written(issued.key_id, {"key": issued.secret})


async def revoke_key(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.revoke_key(call.ref)).key_id)


async def add_webhook(call: Call, accounts: Accounts) -> Written:
    added = await accounts.webhooks.add(call.ref, call.body.url, call.body.events)
    return Written(added.webhook.webhook_id, {"secret": added.secret})


async def rotate_secret(call: Call, accounts: Accounts) -> Written:
    org_id, secret = await accounts.webhooks.rotate(call.ref, timedelta(hours=call.body.overlap_h))
    return Written(org_id, {"secret": secret})


async def disable_webhook(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.webhooks.disable(call.ref)).webhook_id)


async def replay_webhook(call: Call, accounts: Accounts) -> Written:
    return Written(call.ref, {"deliveries": await accounts.webhooks.replay_all(call.ref)})


async def replay_delivery(call: Call, accounts: Accounts) -> Written:
    return Written((await accounts.webhooks.replay(call.ref)).delivery_id)


async def add_credit(call: Call, accounts: Accounts) -> Written:
    body = call.body
    micro_mxn = _amount("mxn", body.mxn)
    added = await accounts.add_credit(
        call.ref,
        body.id,
        body.type,
        micro_mxn,
        order=body.order,
        reason=body.reason,
        recharge=body.recharge,
        corrects=body.corrects,
    )
    return Written(body.id, {"added": added})


async def complete_credit(call: Call, accounts: Accounts) -> Written:
    facts = {name: value for name, value in call.body.model_dump(exclude_unset=True).items() if value is not None}
    await accounts.complete_credit(call.credit_id, facts)
    return Written(call.credit_id)


async def refund(call: Call, accounts: Accounts) -> Written:
    micro_mxn = None if call.body.mxn is None else _amount("mxn", call.body.mxn)
    return Written((await accounts.refund(call.ref, call.body.reason, micro_mxn)).credit_id)


async def add_rate(call: Call, accounts: Accounts) -> Written:
    body = call.body
    try:
        rate = FxRate(body.month, parse_rate(body.mxn_per_usd), body.source)
    except AmountError as error:
        raise WrongField("mxn_per_usd", str(error)) from None
    return Written(body.month, {"added": await accounts.add_rate(rate, force=body.force)})


def _changes(body: OrgLimits | KeyLimits) -> dict[str, int | None]:
    """Return changes by the names of `Limits`. Raises WrongField. Only "none" means no limit; zero does not."""
    changes: dict[str, int | None] = {}
    for column, kind in LIMITS.items():
        if kind.name not in body.model_fields_set:
            continue
        value = getattr(body, kind.name)
        if value == "none":
            value = NONE
        elif kind.money and value is not None:
            value = _amount(kind.name, value)
            if value == 0:
                raise WrongField(kind.name, "0.00 MXN is no limit; it must be above zero")
        changes[column] = value
    if not changes:
        names = ", ".join(type(body).model_fields)
        raise ApiError(Kind.INVALID_REQUEST, f"Name at least one limit to set: {names}.")
    return changes


def _amount(name: str, text: str) -> int:
    try:
        return parse_mxn(text)
    except AmountError as error:
        raise WrongField(name, str(error)) from None
