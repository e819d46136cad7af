"""Proof that the money adds up: Redis against the ledger, the ledger against its proofs, charges against images."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal
from uuid import UUID

from redis.exceptions import RedisError

from config.settings import VERIFY_LOOKS
from metering.clock import period_at, unix_us_at, utc_now
from metering.events import Event, recompute
from metering.limits import as_text
from metering.money import format_mxn
from metering.pages import pages
from metering.ports import Charged, Ledger, Org, Snapshot
from metering.schedules import ListedSchedule, price_of_moment
from metering.wallet.connection import WalletAway
from metering.wallet.inspection import Access, Inspection, Projected, Stranger, expected
from metering.wallet.presence import Presence
from metering.wallet.values import WalletSnapshot
from metering.wallet.wallet import Wallet

CATCH_UP_S = 15.0
"""Time for a page of organisations until Redis knows every change, and again until the ledger has reached their
wallets' snapshots. It is for all of them together.
"""

GONE_S = 3.0
"""A gateway that has been silent for this long is gone: it sends a beat once a second."""

AT_ONCE = 32
"""Maximum wallets read at a time, below the number of background connections."""

TRIES = 3
"""Failed tries after which an image is not provable."""

PAUSE_S = 0.5
"""Pause between two tries."""

GIVE_UP = 2 * VERIFY_LOOKS
"""Number of images in a row without an answer after which the store counts as away. Further images are only counted."""

MAX_NAMED = 1_000
"""Maximum images that are named one by one, missing and not provable ones separately. All are counted."""

MAX_GAPS = 20
"""Maximum gaps in an organisation's event numbers that are named."""

_POLL_S = 0.1

Kind = Literal["difference", "not provable", "lost"]
ImageExists = Callable[[str], Awaitable[bool]]


class NotProvable(Exception):
    """There is no answer about an image; the message says why."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be. `expected` and `found` are text for a person.

    `kind`: it is wrong, or cannot be determined now, or was lost by a restore and nobody has accepted the loss.
    """

    org: str
    what: str
    expected: str
    found: str
    kind: Kind = "difference"
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """What to check: one organisation or all, orders that ended since then or all, their stored images or not."""

    org: Org | None = None
    since_us: int = 0
    images: bool = True


Tell = Callable[[str, int], None]
"""Receives what was checked, and how many since the last call. "expected" counts orders that will be checked."""


def _tell_nobody(what: str, count: int) -> None:
    pass


async def verify(
    ledger: Ledger,
    wallet: Wallet,
    presence: Presence,
    image_exists: ImageExists,
    scope: Scope | None = None,
    tell: Tell = _tell_nobody,
) -> list[Difference]:
    """Find every difference; an empty list means that the books are right. Raises LedgerAway.

    It is exact under live traffic: each wallet is read at one moment, and compared once the ledger has its last event.
    Changes that are just being projected are read again. What cannot be determined is a difference of its own kind,
    with the reason.
    """
    scope = scope or Scope()
    differences = await journals(ledger, presence)
    differences += await _redis(ledger, wallet, scope, tell)
    for org_id, order_id, refunded, charged in await ledger.refunded_above():
        if scope.org is None or scope.org.org_id == org_id:
            most, given = format_mxn(charged), format_mxn(refunded)
            differences.append(Difference(org_id, f"order {order_id}: refunds", f"at most {most}", given))
    differences += await _Proofs(image_exists, scope, tell).of(ledger)
    if waiting := await ledger.count_set_aside():
        differences.append(Difference("", "events set aside", "0", str(waiting)))
    return differences


# --- journals ---


async def journals(ledger: Ledger, presence: Presence) -> list[Difference]:
    """Find journals that are not closed, with answered orders that no wallet may know (rule 15)."""
    open_ = await ledger.open_incarnations()
    states = await asyncio.gather(*(_journal(incarnation, presence) for incarnation in open_))
    closed = set(open_) - set(await ledger.open_incarnations())
    return [
        _not_provable("", f"journal {incarnation}", "replayed, or of a gateway that lives", state)
        for incarnation, state in zip(open_, states, strict=True)
        if state and incarnation not in closed
    ]


async def _journal(incarnation: UUID, presence: Presence) -> str:
    """Describe what its journal may know and no wallet does. Empty if its gateway lives and has charged all its orders.

    A living gateway sends a beat once a second. A beat from before this call does not count: it may have died since.
    """
    known, waited_s, silent_s, uncharged, away = 0, 0.0, 0.0, 0, False
    while waited_s < CATCH_UP_S and silent_s < GONE_S:
        try:
            beat, uncharged = await presence.last(incarnation) or (known, uncharged)
            away = False
        except (RedisError, OSError, TimeoutError):
            beat, away = known, True
        if known and beat != known and not uncharged:
            return ""
        silent_s = silent_s + _POLL_S if beat == known else 0.0
        known = beat
        await asyncio.sleep(_POLL_S)
        waited_s += _POLL_S
    if away:
        return "Redis does not answer, so nobody knows whether its gateway lives"
    return f"{uncharged} of its orders are not charged yet" if silent_s < GONE_S else "its gateway is gone"


# --- Redis against the ledger ---


@dataclass(slots=True)
class _Compared:
    """One organisation during its comparison."""

    org: Org
    snapshot: Snapshot | None = None
    before: int = 0
    cut: WalletSnapshot | None = None
    redis: Projected | None = None
    projection: list[Difference] = field(default_factory=list)
    booked: Charged = field(default_factory=lambda: Charged(0, 0, 0))

    @property
    def projected(self) -> bool:
        """True if Redis has everything in the ledger."""
        assert self.snapshot is not None
        return self.cut is not None and self.cut.credit_number == self.snapshot.credit_number and not self.projection

    @property
    def caught_up(self) -> bool:
        """True if the ledger has all of the wallet's events. They are counted: one of two consumers may be ahead."""
        return self.cut is None or self.booked.events >= self.cut.events


async def _redis(ledger: Ledger, wallet: Wallet, scope: Scope, tell: Tell) -> list[Difference]:
    found: list[Difference] = []
    async for orgs in _pages(ledger, scope):
        page = [_Compared(org) for org in orgs]
        await _patiently(page, lambda one: one.projected, lambda behind: _look(behind, ledger, wallet))
        if not any(one.cut for one in page) and not await _answers(wallet.inspection):
            return [*found, _not_provable("", "wallets", "as the ledger has them", "Redis does not answer")]
        await _patiently(page, lambda one: one.caught_up, lambda behind: _catch_up(behind, ledger))
        for one in page:
            found += await _differences(one, ledger)
        tell("organisations", len(page))
        tell("expected", 0 if scope.since_us else sum(one.booked.events for one in page))
    if scope.org is None:
        try:
            found += [_stranger(one) async for one in wallet.inspection.strangers(ledger)]
        except (RedisError, OSError, TimeoutError):
            found.append(_not_provable("", "keys in Redis", "known to the ledger", "Redis does not answer"))
    return found


async def _pages(ledger: Ledger, scope: Scope) -> AsyncIterator[list[Org]]:
    if scope.org is not None:
        yield [scope.org]
        return
    async for page in pages(ledger.orgs):
        yield page


async def _patiently(
    page: Sequence[_Compared],
    done: Callable[[_Compared], bool],
    look: Callable[[Sequence[_Compared]], Awaitable[None]],
) -> None:
    """Look at all, and again at those that are not done, until all are done or the time is over."""
    clock_s = asyncio.get_running_loop().time
    until_s = clock_s() + CATCH_UP_S
    behind = list(page)
    while behind:
        last = clock_s() >= until_s
        await look(behind)
        behind = [] if last else [one for one in behind if not done(one)]
        if behind:
            await asyncio.sleep(_POLL_S)


async def _look(behind: Sequence[_Compared], ledger: Ledger, wallet: Wallet) -> None:
    """Read the ledger, then Redis, then each wallet at one moment. Later changes are read in the next round."""
    ids = [one.org.org_id for one in behind]
    today = period_at(unix_us_at(utc_now()))
    snapshots = {one.org.org_id: one for one in await ledger.snapshots(ids, today)}
    before = await ledger.charged(ids)
    try:
        projected = dict(zip(snapshots, await wallet.inspection.projected(list(snapshots.values())), strict=True))
    except (RedisError, OSError, TimeoutError):
        projected = {}
    room = asyncio.Semaphore(AT_ONCE)

    async def cut_of(org_id: str) -> WalletSnapshot | None:
        async with room:
            try:
                return await wallet.read(org_id)
            except WalletAway:
                return None

    cuts = await asyncio.gather(*(cut_of(org_id) for org_id in ids))
    for one, cut in zip(behind, cuts, strict=True):
        one.snapshot, one.cut, one.redis = snapshots[one.org.org_id], cut, projected.get(one.org.org_id)
        one.before = before[one.org.org_id].last_event if one.org.org_id in before else 0
        one.projection = [] if one.redis is None else list(_projection(one.snapshot, one.redis))


async def _catch_up(behind: Sequence[_Compared], ledger: Ledger) -> None:
    for one in behind:
        if one.cut is not None:
            one.booked = await ledger.charged_up_to(one.org.org_id, one.cut.number)


def _projection(snapshot: Snapshot, redis: Projected) -> list[Difference]:
    """Compare what the ledger and Redis say of revision, limits and keys."""
    found: list[Difference] = []
    right = expected(snapshot)

    def compare(what: str, should: object, has: object) -> None:
        if should != has:
            found.append(Difference(snapshot.org.name, f"{what}: ledger, Redis", str(should), str(has)))

    compare("last change", right.revision, redis.revision)
    compare("suspended", right.suspended, redis.suspended)
    compare("limits", as_text(right.limits.values()), as_text(redis.limits.values()))
    for key_id, access in right.accesses.items():
        has = redis.accesses[key_id]
        assert access is not None
        if has is None:
            compare(f"key {key_id}", access.state, "not there")
            continue
        for name in Access.__slots__:
            compare(f"key {key_id}: {name}", getattr(access, name), getattr(has, name))
    return found


async def _differences(one: _Compared, ledger: Ledger) -> list[Difference]:
    """List differences of one organisation, after the time to catch up."""
    cut, snapshot, booked = one.cut, one.snapshot, one.booked
    assert snapshot is not None
    name = one.org.name
    if cut is None:
        return [_not_provable(name, "wallet", "in Redis", "away, or not projected")]
    found = list(one.projection)
    gaps = ""
    if one.redis is None:
        found.append(_not_provable(name, "keys and limits", "in Redis", "away"))
    elif one.redis.gone_charged_micro_mxn or booked.events != cut.events:
        gaps = await _gaps(one, cut, ledger)

    def compare(what: str, expected: int, actual: int, text: Callable[[int], str] = format_mxn, why: str = "") -> None:
        if expected != actual:
            found.append(Difference(name, what, text(expected), text(actual), detail=why))

    if one.before > cut.number:
        compare("last event: ledger, wallet", one.before, cut.number, str)
    total = cut.available_micro_mxn + cut.held_micro_mxn + cut.charged_micro_mxn
    compare("credits = available + held + charged", cut.credits_micro_mxn, total)
    compare("events in the ledger", cut.events, booked.events, str, gaps)
    recount = await ledger.recount(one.org.org_id, cut.number)
    compare("running total in the ledger", recount.charged_micro_mxn, booked.charged_micro_mxn)
    compare("charged: wallet, ledger", cut.charged_micro_mxn, booked.charged_micro_mxn)
    if snapshot.credit_number == cut.credit_number:
        compare("credits: ledger, wallet", snapshot.credits_micro_mxn, cut.credits_micro_mxn)
    else:
        compare("last credit: ledger, wallet", snapshot.credit_number, cut.credit_number, str)
    if one.redis is not None:
        found += _gone(name, one.redis, gaps)
    return found


async def _gaps(one: _Compared, cut: WalletSnapshot, ledger: Ledger) -> str:
    """Name the numbers of its events that the ledger lacks."""
    gaps = await ledger.missing_numbers(one.org.org_id, cut.number, MAX_GAPS)
    texts = [str(first) if first == last else f"{first} to {last}" for first, last in gaps]
    return f"the ledger has no events {', '.join(texts)}" if texts else ""


def _gone(name: str, redis: Projected, gaps: str) -> list[Difference]:
    """List what a restored backup lacked, if nobody has accepted the loss."""
    lost = [("charges", redis.gone_charged_micro_mxn, gaps), ("credits", redis.gone_credits_micro_mxn, "")]
    return [
        Difference(name, f"{what} that the ledger lost", "0.00", format_mxn(micro_mxn), "lost", detail)
        for what, micro_mxn, detail in lost
        if micro_mxn
    ]


def _stranger(one: Stranger) -> Difference:
    if one.kind == "wallet":
        credits_, charged = (format_mxn(int(micro_mxn)) for micro_mxn in one.found.split())
        found = f"a wallet with credits of {credits_}, charged {charged}"
        return Difference(one.id, "organisation that the ledger lost", "none", found, "lost")
    what = f"key {one.id}" if one.kind == "access" else f"key with the hash {one.id}"
    return Difference("", f"{what}: ledger, Redis", "unknown", one.found)


async def _answers(inspection: Inspection) -> bool:
    try:
        await inspection.answers()
    except (RedisError, OSError, TimeoutError):
        return False
    return True


# --- the ledger against its proofs, and the store ---


class _Proofs:
    """Recomputes every charge, and looks for its images, many at a time."""

    def __init__(self, image_exists: ImageExists, scope: Scope, tell: Tell) -> None:
        self._exists = image_exists
        self._scope = scope
        self._tell = tell
        self._found: list[Difference] = []
        self._room = asyncio.Semaphore(VERIFY_LOOKS)
        self._named: dict[Kind, int] = {"difference": 0, "not provable": 0}
        self._failed_in_a_row = 0

    async def of(self, ledger: Ledger) -> list[Difference]:
        """List what is not as it should be. Raises LedgerAway."""
        rates, prices = await ledger.rate_rows(), await ledger.price_rows()
        schedules = await ledger.price_schedules()
        org_id = self._scope.org.org_id if self._scope.org is not None else None
        looks: set[asyncio.Task[None]] = set()
        try:
            async for event in ledger.events(org_id=org_id, since_us=self._scope.since_us):
                if event.end == "charge":
                    self._prove(event, rates, prices)
                    self._prove_moment(event, schedules)
                    for image in event.images if self._scope.images else ():
                        await self._room.acquire()
                        look = asyncio.create_task(self._look(event, image.path))
                        looks.add(look)
                        look.add_done_callback(looks.discard)
                self._tell("orders", 1)
            await asyncio.gather(*looks)
        finally:
            for look in looks:
                look.cancel()
        for kind, count in self._named.items():
            if count > MAX_NAMED:
                self._found.append(Difference("", "images", "in the store", f"{count - MAX_NAMED} more", kind))
        return self._found

    def _prove(
        self, event: Event, rates: set[tuple[str, Decimal]], prices: dict[tuple[str, str, str], tuple[Decimal, Decimal]]
    ) -> None:
        opened, proof = event.opened, event.opened.proof
        usd, markup, fx = proof.decimals()
        org, where = opened.org_id, f"event {event.event_id}"
        if prices.get((proof.price_book, opened.model, proof.variant)) != (usd, markup):
            self._found.append(Difference(org, f"{where}: price row", f"{usd} × {markup}", "none such"))
        if (proof.fx_month, fx) not in rates:
            self._found.append(Difference(org, f"{where}: rate row", f"{proof.fx_month} {fx}", "none such"))
        if recompute(event) != event.amount_micro_mxn:
            right, actual = format_mxn(recompute(event)), format_mxn(event.amount_micro_mxn)
            self._found.append(Difference(org, f"{where}: amount", right, actual))

    def _prove_moment(self, event: Event, schedules: Mapping[tuple[str, str], Sequence[ListedSchedule]]) -> None:
        """Check that an order has the price of the moment when it was admitted, whichever gateway sold it."""
        opened = event.opened
        usd, markup, _ = opened.proof.decimals()
        listed = price_of_moment(schedules.get((opened.model, opened.proof.variant), ()), event.admitted_us)
        if listed is not None and (listed.usd_per_image, listed.markup) != (usd, markup):
            right, actual = f"{listed.usd_per_image} × {listed.markup}", f"{usd} × {markup}"
            self._found.append(Difference(opened.org_id, f"event {event.event_id}: price of its moment", right, actual))

    async def _look(self, event: Event, path: str) -> None:
        try:
            if not await self._is_there(path):
                self._name(Difference(event.opened.org_id, f"event {event.event_id}: image", path, "not in the store"))
        except NotProvable as error:
            where = f"event {event.event_id}: image"
            self._name(_not_provable(event.opened.org_id, where, path, str(error)))
        finally:
            self._room.release()
            self._tell("images", 1)

    async def _is_there(self, path: str) -> bool:
        """Look for an image. Raises NotProvable, without a try if the store has not answered for long."""
        for left in reversed(range(TRIES)):
            if self._failed_in_a_row >= GIVE_UP:
                raise NotProvable("the store does not answer; not looked at")
            try:
                there = await self._exists(path)
            except NotProvable:
                self._failed_in_a_row += 1
                if not left:
                    raise
                await asyncio.sleep(PAUSE_S)
            else:
                self._failed_in_a_row = 0
                return there
        raise AssertionError("no try is left without an answer")

    def _name(self, difference: Difference) -> None:
        self._named[difference.kind] += 1
        if self._named[difference.kind] <= MAX_NAMED:
            self._found.append(difference)


def _not_provable(org: str, what: str, expected: str, why: str) -> Difference:
    return Difference(org, what, expected, f"not provable: {why}", "not provable")
