"""Organisations, keys, limits and credits: written to SQL first, then projected to Redis."""

import hashlib
import re
import secrets
import string
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, get_args
from uuid import UUID, uuid4

import structlog
from redis.exceptions import RedisError

from config.origins import checked_origins
from metering.clock import period_at, unix_us_at, utc_now
from metering.limits import LIMITS, NONE, as_text
from metering.money import format_mxn, format_rate
from metering.names import check_name
from metering.orders import order_id_of
from metering.ports import (
    TEST_KEY_ID,
    Act,
    Adjustment,
    ApiKey,
    AtRate,
    CreditType,
    FxOrigin,
    FxRecord,
    IdempotentWrite,
    Ledger,
    LedgerAway,
    LedgerError,
    NewCredit,
    NotThere,
    Org,
    Reading,
    Refund,
    ResponseFormat,
    WrongField,
)
from metering.pricing import MAX_FX_JUMP, FxRate
from metering.pseudonyms import Pseudonyms
from metering.tax import IvaRates, Tax, tax_on
from metering.wallet.projection import Projector
from metering.webhooks.registry import WebhookRegistry, WebhookRules

log = structlog.get_logger(__name__)

MAX_ORIGINS = 20
"""Maximum origins of a key. They are stored with the key wherever Redis or a process remembers it."""

LONGEST_OVERLAP = timedelta(days=90)
"""Maximum overlap of a rotation, about as long as one rotation cycle. Two keys for longer than that are two keys."""

LATEST_END = datetime(2200, 1, 1, tzinfo=UTC)
"""Latest end of a key, exclusive: its µs stay below 2^53, where Redis' scripts count exactly."""

SOURCE = r"^[^\x00-\x20\x7f]([^\x00-\x1f\x7f]{0,198}[^\x00-\x20\x7f])?$"
"""Form of a rate's source. It is written into every event of its month."""

REASON = SOURCE
"""Form of a credit's reason.

It is written into the credit and into the export, so it has the limits of a rate's source.
"""

CREDIT_FACTS: Mapping[str, tuple[str, str]] = {
    "rfc": (r"^[A-ZÑ&]{3,4}[0-9]{6}[A-Z0-9]{3}$", "an RFC of 12 or 13 characters, such as XAXX010101000"),
    "name": (SOURCE, "the name on the tax document, in up to 200 printable characters"),
    "regimen": (r"^[0-9]{3}$", "a key of c_RegimenFiscal, such as 601"),
    "cp": (r"^[0-9]{5}$", "a postal code of five digits"),
    "uso_cfdi": (r"^[A-Z]{1,2}[0-9]{2}$", "a key of c_UsoCFDI, such as G03"),
    "forma_pago": (r"^[0-9]{2}$", "a key of c_FormaPago, such as 03"),
    "cfdi": (r"^[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}$", "the CFDI's UUID"),
}
"""Facts for a credit's tax document: the form of each, and how it is told to people. CFDI 4.0 names them."""

KEY_PREFIX, TEST_PREFIX = "ghub_sk_live_", "ghub_sk_test_"
KEY = re.compile(r"ghub_sk_(live|test)_[A-Za-z0-9]{32}")
_ALPHABET = string.ascii_letters + string.digits
_CREDIT_ID = re.compile(r"[!-~]{1,128}")
_SOURCE, _REASON = re.compile(SOURCE), re.compile(REASON)

_NAMES_ITS_ORDER = (
    "a refund names the order that it gives back, and is at most what that was charged:"
    " `ghub order refund ID --reason TEXT`, or POST /admin/v1/orders/{id}/refund"
)


@dataclass(frozen=True, slots=True)
class IssuedKey:
    """A new key. `secret` is shown to its owner once and kept nowhere."""

    key_id: str
    secret: str


def hash_key(secret: str) -> str:
    """Compute the SHA-256 in hex. A key has 190 random bits, so a slow hash would protect nothing."""
    return hashlib.sha256(secret.encode()).hexdigest()


class Accounts:
    """Changes that commands and the admin API make to organisations. Raises LedgerError with a sentence.

    Every change is written to the audit log with its `actor`. Without a projector (no Redis at hand) the running
    gateways and consumers bring the change to Redis within seconds. With `once`, the next write is idempotent. `apart`:
    of one month, the actor uses one right only (`metering/ledger/rights.py`).
    """

    def __init__(
        self,
        ledger: Ledger,
        projector: Projector | None,
        plans: Collection[str],
        models: Collection[str],
        iva: IvaRates,
        actor: str,
        once: IdempotentWrite | None = None,
        *,
        apart: bool = False,
        webhook_rules: WebhookRules | None = None,
    ) -> None:
        self.webhooks = WebhookRegistry(ledger, webhook_rules, actor, once)
        self._ledger = ledger
        self._projector = projector
        self._plans = plans
        self._models = models
        self._iva = iva
        self._actor = actor
        self._once = once
        self._apart = apart

    async def create_org(self, name: str, plan: str) -> Org:
        """Open an organisation at 0.00 MXN."""
        check_name(name)
        self._check_plan(plan)
        org = Org(org_id=str(uuid4()), name=name, plan=plan, created_at=utc_now().isoformat())
        await self._ledger.create_org(org, self._act("org.create", org.org_id, org.org_id, name=name, plan=plan))
        await self._tell(org.org_id)
        return org

    async def suspend_org(self, ref: str, reason: str = "") -> Org:
        """Refuse new orders of all its keys, within seconds. Orders under way are delivered, and reads still work."""
        if reason:
            _check_reason(reason)
        org = await self._ledger.org(ref)
        act = self._act("org.suspend", org.org_id, org.org_id, reason=reason or None)
        return await self._notified(await self._ledger.suspend(org.org_id, True, utc_now(), act))

    async def resume_org(self, ref: str) -> Org:
        """Accept its orders again."""
        org = await self._ledger.org(ref)
        act = self._act("org.resume", org.org_id, org.org_id)
        return await self._notified(await self._ledger.suspend(org.org_id, False, utc_now(), act))

    async def rename_org(self, ref: str, name: str) -> Org:
        """Change its name. Its id, its keys and its images' URLs stay the same."""
        check_name(name)
        org = await self._ledger.org(ref)
        act = self._act("org.rename", org.org_id, org.org_id, name=name, before=org.name)
        return await self._notified(await self._ledger.rename(org.org_id, name, utc_now(), act))

    async def set_plan(self, ref: str, plan: str) -> Org:
        """Change its plan. Its own limits still take precedence over the plan's."""
        self._check_plan(plan)
        org = await self._ledger.org(ref)
        act = self._act("org.plan", org.org_id, org.org_id, plan=plan, before=org.plan)
        return await self._notified(await self._ledger.set_plan(org.org_id, plan, utc_now(), act))

    def _check_plan(self, plan: str) -> None:
        if plan not in self._plans:
            raise WrongField("plan", f"there is no plan {plan!r}; there are: {', '.join(sorted(self._plans))}")

    async def _notified(self, org: Org) -> Org:
        await self._tell(org.org_id)
        return org

    async def set_limits(self, ref: str, changes: Mapping[str, int | None]) -> Org:
        """Set an organisation's own limits, by the names of `Limits`: None is the plan's again, NONE lifts a quota."""
        for column, limit in changes.items():
            _check_limit(column, limit, may_lift=True)
        org = await self._ledger.org(ref)
        act = self._act("org.limits", org.org_id, org.org_id, **as_text(changes))
        changed = await self._ledger.set_limits(org.org_id, changes, utc_now(), act)
        await self._tell(org.org_id)
        return changed

    async def create_key(
        self,
        ref: str,
        name: str,
        *,
        expires: datetime | None = None,
        models: Sequence[str] = (),
        test: bool = False,
        read: Reading | None = None,
        response_format: ResponseFormat = "url",
        origins: Sequence[str] = (),
    ) -> IssuedKey:
        """Issue a key to an organisation. Without `models` it may use all; with `test` it is for the sandbox.

        If `read` is not given, a key with `models` reads its own orders, and any other key reads all its
        organisation's. `origins` are the origins of the web pages from which browsers may use the key.
        """
        check_name(name)
        if expires is not None and expires <= utc_now():
            raise WrongField("expires", f"{expires.isoformat()} is past")
        if expires is not None and expires >= LATEST_END:
            raise WrongField("expires", f"{expires.isoformat()} is too far; leave it out for a key without an end")
        if bad := [model for model in models if model not in self._models]:
            raise WrongField("models", f"there is no model {bad[0]!r}; there are: {', '.join(sorted(self._models))}")
        pages = _checked_origins(origins)
        org = await self._ledger.org(ref)
        secret = _secret(TEST_PREFIX if test else KEY_PREFIX)
        key = ApiKey(
            key_id=_key_id(test),
            org_id=org.org_id,
            name=name,
            key_hash=hash_key(secret),
            created_at=utc_now().isoformat(),
            expires_at=None if expires is None else expires.astimezone(UTC).isoformat(),
            models=tuple(models),
            read=read or ("own" if models else "org"),
            response_format=response_format,
            origins=pages,
        )
        may = {"models": key.models, "read": key.read, "response_format": response_format, "origins": pages}
        act = self._act("key.create", key.key_id, org.org_id, name=name, expires_at=key.expires_at, **may)
        await self._ledger.create_key(key, act)
        await self._tell(org.org_id)
        return IssuedKey(key_id=key.key_id, secret=secret)

    async def rotate_key(self, key_id: str, overlap: timedelta) -> IssuedKey:
        """Issue a key with the same rights, and end the old one after `overlap`. Until then both work."""
        if not timedelta(0) <= overlap <= LONGEST_OVERLAP:
            raise WrongField("overlap", f"it must be from 0 to {LONGEST_OVERLAP.days} days")
        old, now = await self._ledger.key(key_id), utc_now()
        if (state := old.state(now)) != "active":
            raise LedgerError(f"key {key_id!r} is {state}: only an active key can be rotated")
        secret = _secret(TEST_PREFIX if old.test else KEY_PREFIX)
        new = replace(
            old,
            key_id=_key_id(old.test),
            key_hash=hash_key(secret),
            created_at=now.isoformat(),
            replaces=key_id,
            expires_at=_as_long(old, await self._ledger.given_end(old), now),
        )
        until = now + overlap
        details = {"replaces": key_id, "until": until.isoformat(), "expires_at": new.expires_at}
        act = self._act("key.rotate", new.key_id, old.org_id, **details)
        await self._ledger.create_key(new, act, until=until)
        await self._tell(old.org_id)
        return IssuedKey(key_id=new.key_id, secret=secret)

    async def set_key_limits(self, key_id: str, changes: Mapping[str, int | None]) -> ApiKey:
        """Set a key's own limits, beside its organisation's; None is no limit."""
        for column, limit in changes.items():
            _check_limit(column, limit, may_lift=False)
        act = self._act("key.limits", key_id, None, **as_text(changes))
        key = await self._ledger.set_key_limits(key_id, changes, utc_now(), act)
        await self._tell(key.org_id)
        return key

    async def revoke_key(self, key_id: str) -> ApiKey:
        """Revoke a key permanently, from the next request on."""
        key = await self._ledger.revoke_key(key_id, utc_now(), self._act("key.revoke", key_id, None))
        await self._tell(key.org_id)
        return key

    async def add_credit(
        self,
        ref: str,
        credit_id: str,
        kind: str,
        micro_mxn: int,
        *,
        order: str | None = None,
        reason: str | None = None,
        recharge: str | None = None,
        corrects: str | None = None,
    ) -> bool:
        """Add a credit, idempotent by its id. False if it existed already. A refund has an order and a reason.

        A recharge is what enters the wallet, without IVA; the IVA on it is kept beside it. A chargeback takes it back,
        or a part of it, and may leave the balance below zero: its amount may be given with a sign or without. What an
        adjustment `corrects` is an order's or a credit's id.
        """
        if kind not in get_args(CreditType):
            raise WrongField("type", f"{kind!r} is none of {', '.join(get_args(CreditType))}")
        if not _CREDIT_ID.fullmatch(credit_id):
            raise WrongField("id", "1 to 128 visible ASCII characters")
        if micro_mxn == 0:
            raise WrongField("mxn", "0.00 changes nothing; name an amount")
        if kind == "chargeback":
            micro_mxn = -abs(micro_mxn)
        elif micro_mxn < 0 and kind != "adjustment":
            raise WrongField("mxn", f"{format_mxn(micro_mxn)} is negative, and only an adjustment may be")
        its_own = (("order", order, "a refund"), ("recharge", recharge, "a chargeback"))
        for name, text, only in (*its_own, ("corrects", corrects, "an adjustment")):
            if text is not None and not only.endswith(f" {kind}"):
                raise WrongField(name, f"only {only} has one, and this is of type {kind}")
        if kind == "refund" and order is None:
            raise WrongField("order", _NAMES_ITS_ORDER)
        if kind == "chargeback" and recharge is None:
            raise WrongField("recharge", "a chargeback names the recharge that it takes back")
        if recharge is not None and not _CREDIT_ID.fullmatch(recharge):
            raise WrongField("recharge", "1 to 128 visible ASCII characters")
        if kind == "refund" and reason is None:
            raise WrongField("reason", "a refund says why it is given")
        if reason is not None:
            _check_reason(reason)
        org = await self._ledger.org(ref)
        if order is not None and reason is not None:
            try:
                _, added = await self._refund(order, micro_mxn, reason, org_id=org.org_id, credit_id=credit_id)
            except NotThere as error:
                raise WrongField("order", str(error)) from None
            return added
        tax = await self._tax(org, kind, micro_mxn, recharge)
        linked = None if corrects is None else await self._corrected(corrects)
        new = NewCredit(
            credit_id,
            org.org_id,
            kind,  # type: ignore[arg-type]  # checked above
            micro_mxn,
            reason=reason,
            recharge_id=recharge,
            tax=tax,
            corrects=linked,
        )
        details = {"type": kind, "mxn": format_mxn(micro_mxn)}
        more = (("reason", reason), ("recharge", recharge), ("corrects", linked))
        details |= {name: text for name, text in more if text is not None}
        added = await self._ledger.add_credit(new, utc_now(), self._act("credit.add", credit_id, org.org_id, **details))
        await self._tell(org.org_id)
        return added

    async def _tax(self, org: Org, kind: str, micro_mxn: int, recharge: str | None) -> Tax | None:
        """Compute what was paid for a recharge; a chargeback has the rate of what it takes back.

        Raises LedgerError if GHUB_TAX has no rate for today.
        """
        if kind not in ("recharge", "chargeback"):
            return None
        if recharge is not None:
            try:
                taken = (await self._ledger.credit(recharge)).new.tax
            except NotThere as error:
                raise WrongField("recharge", str(error)) from None
            return None if taken is None else tax_on(micro_mxn, taken.rate)
        day = period_at(unix_us_at(utc_now())).day
        rate = self._iva.rate_for(org.org_id, org.name, day)
        if rate is None:
            raise LedgerError(f"GHUB_TAX: no rate of IVA holds on {day} for {org.name}; add one")
        return tax_on(micro_mxn, rate)

    async def complete_credit(self, credit_id: str, facts: Mapping[str, str]) -> bool:
        """Add what a credit's tax document says, or correct it; False if nothing changed. Older rows stay."""
        if not facts:
            raise WrongField("credit", f"name at least one of {', '.join(CREDIT_FACTS)}")
        for name, value in facts.items():
            if name not in CREDIT_FACTS:
                raise WrongField(name, f"there is no such fact; there are: {', '.join(CREDIT_FACTS)}")
            form, must = CREDIT_FACTS[name]
            if not re.fullmatch(form, value):
                raise WrongField(name, f"must be {must}")
        if not _CREDIT_ID.fullmatch(credit_id):
            raise NotThere("there is no credit of this id: it has 1 to 128 visible ASCII characters")
        org_id = (await self._ledger.credit(credit_id)).new.org_id
        return await self._ledger.complete_credit(
            credit_id, facts, utc_now(), self._act("credit.complete", credit_id, org_id, **facts)
        )

    async def accept_loss(self, ref: str, reason: str) -> tuple[int, int]:
        """Accept the loss of what a restored ledger lacks of an organisation.

        Returns charges and credits in micro-MXN. `ghub verify` no longer reports them. If the ledger lacks
        the organisation itself, its wallet is deleted from Redis.
        """
        if not _SOURCE.fullmatch(reason):
            raise WrongField("reason", "must be 1 to 200 printable characters, with no space around them")
        if self._projector is None:
            raise LedgerError("GHUB_REDIS_URL is not set: what was lost is known there alone")
        inspection = self._projector.inspection
        try:
            org_id, known = (await self._ledger.org(ref)).org_id, True
        except NotThere:
            org_id, known = str(_uuid(ref)), False
        charged, credits_ = await inspection.lost(org_id, known=known)
        if not charged and not credits_:
            raise LedgerError(f"nothing of {ref!r} is lost")
        told_ = {"charged_mxn": format_mxn(charged), "credits_mxn": format_mxn(credits_), "reason": reason}
        await self._ledger.note(self._act("wallet.accept", org_id, org_id, **told_), utc_now())
        await inspection.accept(org_id, known=known)
        return charged, credits_

    async def refund(self, order: str, reason: str, micro_mxn: int | None = None) -> Refund:
        """Refund an order's charge, or `micro_mxn` of it. All refunds of an order are at most its charge (rule 33)."""
        if micro_mxn is not None and micro_mxn <= 0:
            raise WrongField("mxn", f"{format_mxn(micro_mxn)} gives nothing back; name an amount above zero")
        refund, _ = await self._refund(order, micro_mxn, reason)
        return refund

    async def _refund(
        self, order: str, micro_mxn: int | None, reason: str, *, org_id: str | None = None, credit_id: str | None = None
    ) -> tuple[Refund, bool]:
        _check_reason(reason)
        order_id = order_id_of(order)
        act = self._act("order.refund", credit_id or order_id, org_id, order=order_id, reason=reason)
        refund, added = await self._ledger.refund(
            order_id, micro_mxn, reason, utc_now(), act, org_id=org_id, credit_id=credit_id
        )
        await self._tell(refund.org_id)
        return refund, added

    async def erase_end_user(self, ref: str, user: str, *, by_pseudonym: bool = False) -> tuple[str, bool]:
        """Erase the clear name of an organisation's end user; returns the pseudonym, and whether the name was there.

        The audit log has the pseudonym only. A later order of the same end user tells the name again.
        """
        org = await self._ledger.org(ref)
        names = Pseudonyms(await self._ledger.pseudonym_secret())
        pseudonym = names.named(org.org_id, user, by_pseudonym=by_pseudonym)
        act = self._act("enduser.erase", pseudonym, org.org_id)
        return pseudonym, await self._ledger.erase_end_user(org.org_id, pseudonym, utc_now(), act)

    async def add_rate(
        self, rate: FxRate, *, origin: FxOrigin | None = None, force: bool = False, approved: bool = False
    ) -> bool:
        """Enter a month's exchange rate; False if it is entered already. It is in force once it is approved.

        Raises WrongField if it is further than MAX_FX_JUMP from the rate before, without `force`: a digit too many
        costs a month.
        """
        if not _SOURCE.fullmatch(rate.source):
            raise WrongField("source", "must be 1 to 200 printable characters, with no space around them")
        before = await self.rate_before(rate.month)
        if before is not None and not force and abs(rate.mxn_per_usd / before.mxn_per_usd - 1) > MAX_FX_JUMP:
            percent = (rate.mxn_per_usd / before.mxn_per_usd - 1) * 100
            raise WrongField(
                "mxn_per_usd",
                f"{format_rate(before.mxn_per_usd)} of {before.month} → {format_rate(rate.mxn_per_usd)} is"
                f" {percent:+.1f} %, and more than {MAX_FX_JUMP * 100:.0f} % is refused; if it is right, force it",
            )
        act = self._act("fx.set", rate.month, None, mxn_per_usd=format_rate(rate.mxn_per_usd), source=rate.source)
        return await self._ledger.add_rate(rate, utc_now(), act, origin=origin, approved=approved)

    async def rate_before(self, month: str) -> FxRate | None:
        """Find the rate that a new one is compared with: the month's own that is approved, or the last one before."""
        known = [
            one.rate
            for one in await self._ledger.rate_records()
            if one.rate.month <= month and one.approved_by is not None
        ]
        return known[-1] if known else None

    async def approve_rate(self, month: str, mxn_per_usd: Decimal, rate_id: int | None = None) -> FxRecord:
        """Approve the last rate that was entered for a month, if it is this one: what was looked at is approved.

        Raises NotThere, WrongField, LedgerError.
        """
        act = self._act("fx.approve", month, None, mxn_per_usd=format_rate(mxn_per_usd))
        return await self._ledger.approve_rate(month, mxn_per_usd, utc_now(), act, rate_id=rate_id)

    async def correct_rate(self, found: AtRate, month: str, mxn_per_usd: Decimal, reason: str) -> bool:
        """Give an organisation what a wrong rate of a month owes it; False if it must be found again.

        Raises WrongField.
        """
        _check_reason(reason)
        act = self._act("fx.correct", month, None, month=month, mxn_per_usd=format_rate(mxn_per_usd), reason=reason)
        given = await self._ledger.correct_rate(found, month, reason, utc_now(), act)
        await self._tell(found.org_id)
        return given

    async def propose_adjustment(self, ref: str, micro_mxn: int, reason: str, corrects: str | None) -> Adjustment:
        """Propose an adjustment, which another person approves. Raises NotThere, WrongField, SamePerson."""
        _check_reason(reason)
        if micro_mxn == 0:
            raise WrongField("mxn", "0.00 changes nothing; name an amount")
        linked = None if corrects is None else await self._corrected(corrects)
        org_id = (await self._ledger.org(ref)).org_id
        details = {"mxn": format_mxn(micro_mxn), "reason": reason} | ({} if linked is None else {"corrects": linked})
        act = self._act("adjustment.propose", "", org_id, **details)
        return await self._ledger.propose_adjustment(org_id, micro_mxn, reason, linked, utc_now(), act)

    async def approve_adjustment(self, proposal_id: int) -> Adjustment:
        """Approve an adjustment that another person proposed: its credit is written.

        Raises NotThere, WrongField, SamePerson.
        """
        act = self._act("adjustment.approve", str(proposal_id), None)
        approved = await self._ledger.approve_adjustment(proposal_id, utc_now(), act)
        await self._tell(approved.org_id)
        return approved

    async def _corrected(self, named: str) -> str:
        """Write what an adjustment corrects as the record has it: a charged order, or a credit. Raises WrongField."""
        with suppress(NotThere):
            order_id = order_id_of(named)
            if (await self._ledger.order(order_id)).charge is not None:
                return f"order:{order_id}"
        if not _CREDIT_ID.fullmatch(named):
            raise WrongField("corrects", "must be the id of an order or of a credit")
        return f"credit:{named}"

    def _act(self, action: str, target: str, org_id: str | None, **details: Any) -> Act:
        if KEY.search(f"{target} {details}"):
            raise LedgerError("an API key stands where a name or an id belongs; keys are written down nowhere")
        return Act(self._actor, action, target, org_id, details, self._once, self._apart)

    async def _tell(self, org_id: str) -> None:
        if self._projector is None:
            return
        try:
            await self._projector.org(org_id)
        except (RedisError, LedgerAway, OSError, TimeoutError):
            log.warning("redis_away_will_be_told_later", org=org_id)


def _check_reason(reason: str) -> None:
    """Raises WrongField."""
    if not _REASON.fullmatch(reason):
        raise WrongField("reason", "must be 1 to 200 printable characters, with no space around them")


def _uuid(ref: str) -> UUID:
    """Parse the id of an organisation whose name is no longer known. Raises NotThere."""
    try:
        return UUID(ref)
    except ValueError:
        raise NotThere(f"there is no organisation {ref!r}") from None


def _secret(prefix: str) -> str:
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(32))


def _as_long(key: ApiKey, end: str | None, now: datetime) -> str | None:
    """End of a key that is issued now and lives as long as `key` was meant to. `end` is the one it was issued with."""
    if end is None:
        return None
    return (now + (datetime.fromisoformat(end) - datetime.fromisoformat(key.created_at))).isoformat()


def _key_id(test: bool) -> str:
    return f"{TEST_KEY_ID if test else 'key_'}{secrets.token_hex(6)}"


def _check_limit(column: str, limit: int | None, *, may_lift: bool) -> None:
    """Raises WrongField. Only an organisation `may_lift` a quota, which is its plan's."""
    kind = LIMITS.get(column)
    if kind is None:
        raise WrongField(column, f"is no limit; there are: {', '.join(LIMITS)}")
    if limit is None or 1 <= limit <= kind.max or (limit == NONE and may_lift and not kind.required):
        return
    if kind.money:
        sentence = f"{format_mxn(limit)} MXN is no limit: from 0.000001 to {format_mxn(kind.max)}"
        raise WrongField(kind.name, sentence)
    raise WrongField(kind.name, f"{limit} is no limit: a whole number from 1 to {kind.max}")


def _checked_origins(origins: Sequence[str]) -> tuple[str, ...]:
    try:
        found = checked_origins(origins)
    except ValueError as error:
        raise WrongField("origins", str(error)) from None
    if len(found) > MAX_ORIGINS:
        raise WrongField("origins", f"{len(found)} are too many; a key has at most {MAX_ORIGINS}")
    return found
