"""Does the money add up? Redis against the ledger, the ledger against its own proofs, charges against stored images."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from uuid import UUID

from redis.exceptions import RedisError

from metering.clock import period_at, unix_us_at, utc_now
from metering.events import Event, recompute
from metering.money import format_mxn
from metering.ports import Ledger, Org
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.wallet import Wallet

CATCH_UP_S = 15.0
"""How long the consumer is given to bring the ledger up to a wallet's cut."""

GONE_S = 3.0
"""A gateway that has not been heard of for so long is gone: it says so once a second."""

_POLL_S = 0.1

ImageExists = Callable[[str], Awaitable[bool]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that does not hold. `expected` and `found` are text for a person."""

    org: str
    what: str
    expected: str
    found: str


async def verify(ledger: Ledger, wallet: Wallet, presence: Presence, image_exists: ImageExists) -> list[Difference]:
    """Every difference there is; an empty list means that the books are right.

    Exact under live traffic: each wallet is read at one moment, and compared once the ledger has its last event.
    """
    differences = await journals(ledger, presence)
    page = await ledger.orgs()
    while page:
        for org in page:
            differences += await _wallet_against_ledger(org, ledger, wallet)
        page = await ledger.orgs(after=page[-1])
    rates, prices = await ledger.rate_rows(), await ledger.price_rows()
    async for event in ledger.events():
        differences += await _proof(event, rates, prices, image_exists)
    if waiting := await ledger.count_set_aside():
        differences.append(Difference("", "events set aside", "0", str(waiting)))
    return differences


async def journals(ledger: Ledger, presence: Presence) -> list[Difference]:
    """Answered orders that no wallet may know of, in journals that are not closed (rule 15)."""
    open_ = await ledger.open_incarnations()
    states = await asyncio.gather(*(_journal(incarnation, presence) for incarnation in open_))
    closed = set(open_) - set(await ledger.open_incarnations())
    return [
        Difference("", f"journal {incarnation}", "replayed, or of a gateway that lives", f"not provable: {state}")
        for incarnation, state in zip(open_, states, strict=True)
        if state and incarnation not in closed
    ]


async def _journal(incarnation: UUID, presence: Presence) -> str:
    """What its journal may know that no wallet does; empty for a gateway that lives, and has charged all its orders.

    It says so once a second. What it said before this began does not count: it may have died since.
    """
    known, waited_s, silent_s, uncharged = 0, 0.0, 0.0, 0
    while waited_s < CATCH_UP_S and silent_s < GONE_S:
        try:
            beat, uncharged = await presence.last(incarnation) or (known, uncharged)
        except (RedisError, OSError, TimeoutError):
            beat = known
        if known and beat != known and not uncharged:
            return ""
        silent_s = silent_s + _POLL_S if beat == known else 0.0
        known = beat
        await asyncio.sleep(_POLL_S)
        waited_s += _POLL_S
    return f"{uncharged} of its orders are not charged yet" if silent_s < GONE_S else "its gateway is gone"


async def _wallet_against_ledger(org: Org, ledger: Ledger, wallet: Wallet) -> list[Difference]:
    waited_s = 0.0
    while True:  # until the wallet knows of every credit
        (snapshot,) = await ledger.snapshots([org.org_id], period_at(unix_us_at(utc_now())))
        before = await ledger.charged_up_to(org.org_id)
        try:
            cut = await wallet.read(org.org_id)
        except WalletAway:
            return [Difference(org.name, "wallet", "in Redis", "away or not projected")]
        if cut.credit_number == snapshot.credit_number or waited_s >= CATCH_UP_S:
            break
        await asyncio.sleep(_POLL_S)
        waited_s += _POLL_S
    booked = await ledger.charged_up_to(org.org_id, cut.number)
    # Counted, not looked at by the last number: one of two consumers may be ahead of the other.
    while booked.events < cut.events and waited_s < CATCH_UP_S:
        await asyncio.sleep(_POLL_S)
        waited_s += _POLL_S
        booked = await ledger.charged_up_to(org.org_id, cut.number)
    found: list[Difference] = []

    def compare(what: str, expected: int, actual: int, text: Callable[[int], str] = format_mxn) -> None:
        if expected != actual:
            found.append(Difference(org.name, what, text(expected), text(actual)))

    if before.last_event > cut.number:
        compare("last event: ledger, wallet", before.last_event, cut.number, str)
    total = cut.available_micro_mxn + cut.held_micro_mxn + cut.charged_micro_mxn
    compare("credits = available + held + charged", cut.credits_micro_mxn, total)
    compare("events in the ledger", cut.events, booked.events, str)
    recount = await ledger.recount(org.org_id, cut.number)
    compare("running total in the ledger", recount.charged_micro_mxn, booked.charged_micro_mxn)
    compare("charged: wallet, ledger", cut.charged_micro_mxn, booked.charged_micro_mxn)
    if snapshot.credit_number == cut.credit_number:
        compare("credits: ledger, wallet", snapshot.credits_micro_mxn, cut.credits_micro_mxn)
    else:
        compare("last credit: ledger, wallet", snapshot.credit_number, cut.credit_number, str)
    return found


async def _proof(
    event: Event,
    rates: set[tuple[str, Decimal]],
    prices: dict[tuple[str, str, str], tuple[Decimal, Decimal]],
    image_exists: ImageExists,
) -> list[Difference]:
    if event.end != "charge":
        return []
    found: list[Difference] = []
    opened, proof = event.opened, event.opened.proof
    usd, markup, fx = proof.decimals()
    where = f"event {event.event_id}"
    if prices.get((proof.price_book, opened.model, proof.variant)) != (usd, markup):
        found.append(Difference(opened.org_id, f"{where}: price row", f"{usd} × {markup}", "none such"))
    if (proof.fx_month, fx) not in rates:
        found.append(Difference(opened.org_id, f"{where}: rate row", f"{proof.fx_month} {fx}", "none such"))
    if recompute(event) != event.amount_micro_mxn:
        expected, actual = format_mxn(recompute(event)), format_mxn(event.amount_micro_mxn)
        found.append(Difference(opened.org_id, f"{where}: amount", expected, actual))
    for image in event.images:
        if not await image_exists(image.path):
            found.append(Difference(opened.org_id, f"{where}: image", image.path, "not in the store"))
    return found
