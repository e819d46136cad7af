"""The close of a month: only when it is whole, and sealed so that its export proves itself (rule 37)."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis
from redis.exceptions import RedisError

from metering.clock import month_start_us, next_month, previous_month, utc_at, utc_now
from metering.exports.reading import Scope
from metering.exports.rows import SEALED
from metering.exports.rows import pages as exported
from metering.manifest import Manifest, Month, digest, is_sum_of, make_manifest, read_manifest
from metering.money import format_mxn, parse_mxn
from metering.pages import pages
from metering.ports import Act, ClosedMonth, Ledger, LedgerError, MonthSums, NotThere
from metering.seals import Chains
from metering.unbooked import doubts
from metering.wallet.connection import NotProjected
from metering.wallet.traces import EVERYWHERE, now_us, open_months

Tell = Callable[[int, int], None]
"""Receives how many orders were sealed, and how many there are in all."""


ORG, AMOUNT = SEALED.index("org_id"), SEALED.index("amount_mxn")


class NotWhole(LedgerError):
    """The month cannot be closed yet; the message has every reason."""

    def __init__(self, month: str, why: list[str]) -> None:
        super().__init__(f"{month} cannot be closed yet: {'; '.join(why)}")


@dataclass(frozen=True, slots=True)
class Close:
    """A closed month, and whether this call closed it."""

    manifest: Manifest
    text: str
    new: bool


async def close_month(
    ledger: Ledger,
    redis: Redis | None,
    month: str,
    act: Act,
    key: Ed25519PrivateKey,
    tell: Tell = lambda _done, _of: None,
) -> Close:
    """Close a month, and seal it. What was closed and not sealed, because something stopped, is sealed by a repeat.

    Raises NotWhole, WrongField if another month comes first or it is not over, LedgerAway.
    """
    if month not in await _closed(ledger):
        if why := await why_not_whole(ledger, redis, month):
            raise NotWhole(month, why)
        await _check_openings(ledger, month, await _sums(ledger, month))
    new = await ledger.close_month(month, utc_now(), act)
    text = await ledger.manifest(month)
    if text is None:
        await _seal(ledger, (await _closed(ledger))[month], key, tell)
        text = await ledger.manifest(month)
    assert text is not None, "it was written just now"
    return Close(read_manifest(text.encode()), text, new)


async def why_not_whole(ledger: Ledger, redis: Redis | None, month: str) -> list[str]:
    """List why a month cannot be closed yet: it is not over, an order of it runs, something of it is not booked.

    It looks in the order in which orders move, as `doubts` does: what moves meanwhile is seen twice, and never missed.
    """
    if redis is None:
        return ["GHUB_REDIS_URL is not set, and nobody can say whether orders of it still run"]
    ends_us = month_start_us(next_month(month))
    try:
        if any([await now_us(redis, partition) < ends_us for partition in EVERYWHERE]):
            return [f"it is not over by Redis' clock, which dates orders; it ends at {utc_at(ends_us).isoformat()}"]
        running = sum([1 async for one in open_months(redis) if one <= month])
    except NotProjected:
        return ["Redis is not projected yet, and nobody can say whether orders of it still run"]
    except (RedisError, OSError, TimeoutError):
        return ["Redis does not answer, and nobody can say whether orders of it still run"]
    why = [f"{running} orders of it still run, or their holds have not run out"] if running else []
    return why + await doubts(ledger, redis, month, None, to_close=True)


async def check_month(ledger: Ledger, month: str, tell: Tell = lambda _done, _of: None) -> tuple[Manifest, list[str]]:
    """Compare a closed month's manifest with the ledger's rows, credits and balances; returns what is wrong.

    Raises NotThere, ManifestError.
    """
    text, previous = await ledger.manifest(month), await ledger.manifest(previous_month(month))
    if text is None:
        raise NotThere(f"{month} is not closed: ghub month close {month}")
    manifest = read_manifest(text.encode())
    rows = await _rows(ledger, month, manifest.orders, tell)
    heads, signed = rows.chains.heads(), {org.org: org for org in manifest.orgs}
    wrong = [
        f"organisation {org.name} ({org.org}): the ledger has other rows than were sealed"
        for org in manifest.orgs
        if (org.rows, org.seal) != ((heads[org.org].rows, heads[org.org].seal) if org.org in heads else (0, org.seal))
    ]
    wrong += [
        f"organisation {org_id}: the ledger has {head.rows} rows, and none were sealed"
        for org_id, head in heads.items()
        if org_id not in signed
    ]
    for what, sums in (
        ("credits and charges", await _sums(ledger, month, anew=True)),
        ("balances of the close", await _sums(ledger, month)),
    ):
        wrong += [
            f"organisation {one.org_id}: its {what} are not those that were sealed"
            for one in sums
            if one.org_id not in signed or not is_sum_of(one, signed[one.org_id])
        ]
    if manifest.previous != (None if previous is None else digest(previous)):
        wrong.append("the manifest of the month before is another one than when this month was sealed")
    return manifest, wrong


async def _seal(ledger: Ledger, closed: ClosedMonth, key: Ed25519PrivateKey, tell: Tell) -> None:
    """Sum up and seal a closed month. Raises LedgerError if its rows, its sums and the month before do not agree."""
    month = closed.month
    sums = await _sums(ledger, month)
    previous = await _check_openings(ledger, month, sums)
    rows = await _rows(ledger, month, sum(one.orders for one in sums), tell)
    _check_rows(sums, rows.amounts)
    names = {one.org_id: (await ledger.names(month, one.org_id)).org for one in sums}
    of = Month(month, closed.closed_at, closed.closed_by, None if previous is None else digest(previous), SEALED)
    await ledger.seal_month(month, make_manifest(of, sums, names, rows.chains.heads(), key), sums, utc_now())


@dataclass(slots=True)
class _Rows:
    """The rows of a month: their chains, and what they sum up to by organisation, in micro-MXN."""

    chains: Chains
    amounts: dict[str, int]


async def _rows(ledger: Ledger, month: str, orders: int, tell: Tell) -> _Rows:
    rows, done = _Rows(Chains(month), defaultdict(int)), 0
    async for page in exported(ledger, Scope((month,)), rows.chains):
        for row in page.rows:
            rows.amounts[row[ORG]] += parse_mxn(row[AMOUNT])
        done += len(page.rows)
        tell(done, orders)
    return rows


async def _sums(ledger: Ledger, month: str, *, anew: bool = False) -> list[MonthSums]:
    return [one async for page in pages(partial(ledger.month_sums, month, anew=anew)) for one in page]


def _check_rows(sums: Sequence[MonthSums], amounts: Mapping[str, int]) -> None:
    """Raises LedgerError if the rows of an organisation do not give its running totals, which nobody exports."""
    expected = {one.org_id: one.charges_micro_mxn - one.refunds_micro_mxn for one in sums}
    for org_id in {*expected, *amounts}:
        if (found := amounts.get(org_id, 0)) != expected.get(org_id, 0):
            raise LedgerError(
                f"organisation {org_id}: its orders and refunds give {format_mxn(found)} MXN, and its running totals"
                f" {format_mxn(expected.get(org_id, 0))} MXN: the totals are made anew as their migration says (usage),"
                " then close again"
            )


async def _check_openings(ledger: Ledger, month: str, sums: Sequence[MonthSums]) -> str | None:
    """Compare with the balances at the last close; returns its manifest. Raises LedgerError if one is another."""
    before = previous_month(month)
    previous = await ledger.manifest(before)
    if previous is None:
        if before in await _closed(ledger):
            raise LedgerError(f"{before} is closed, and not sealed yet: ghub month close {before}")
        return None
    closings = {org.org: org.micro_mxn("closing") for org in read_manifest(previous.encode()).orgs}
    openings = {one.org_id: one.opening_micro_mxn for one in sums}
    for org_id in {*closings, *openings}:
        if openings.get(org_id, 0) != closings.get(org_id, 0):
            raise LedgerError(
                f"organisation {org_id} opens with {format_mxn(openings.get(org_id, 0))} MXN, and closed {before} with"
                f" {format_mxn(closings.get(org_id, 0))} MXN: a closed month was changed; `ghub month verify {before}`"
                " and a backup tell where"
            )
    return previous


async def _closed(ledger: Ledger) -> dict[str, ClosedMonth]:
    return {one.month: one for one in await ledger.closed_months()}
