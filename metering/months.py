"""The close of a month: only when it is whole, and sealed so that its export proves itself (rule 37)."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis.asyncio import Redis
from redis.exceptions import RedisError

from metering.clock import month_start_us, next_month, previous_month, utc_at, utc_now
from metering.exports.rows import SEALED, sealed_rows
from metering.manifest import Manifest, Month, digest, make_manifest, read_manifest
from metering.pages import pages
from metering.ports import Act, ClosedMonth, Ledger, LedgerError, MonthSums, NotThere
from metering.seals import Chains
from metering.unbooked import doubts
from metering.wallet.connection import NotProjected
from metering.wallet.traces import EVERYWHERE, now_us, open_months

Tell = Callable[[int, int], None]
"""Receives how many orders were sealed, and how many there are in all."""


class NotWhole(LedgerError):
    """The month cannot be closed yet; `why` has a sentence for each reason."""

    def __init__(self, month: str, why: list[str]) -> None:
        super().__init__(f"{month} cannot be closed yet: {'; '.join(why)}")
        self.why = why


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
    if month not in await _closed(ledger) and (why := await why_not_whole(ledger, redis, month)):
        raise NotWhole(month, why)
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
            return [f"it is not over by Redis' clock, which dates orders; it ends at {_moment(ends_us)}"]
        running = sum([1 async for one in open_months(redis) if one in (month, "")])
    except NotProjected:
        return ["Redis is not projected yet, and nobody can say whether orders of it still run"]
    except (RedisError, OSError, TimeoutError):
        return ["Redis does not answer, and nobody can say whether orders of it still run"]
    why = [f"{running} orders of it still run, or their holds have not run out"] if running else []
    return why + await doubts(ledger, redis, month, None, late_s=0.0)


async def check_month(ledger: Ledger, month: str, tell: Tell = lambda _done, _of: None) -> tuple[Manifest, list[str]]:
    """Compare a closed month's manifest with the ledger's rows; returns what is wrong.

    Raises NotThere, ManifestError.
    """
    text, previous = await ledger.manifest(month), await ledger.manifest(previous_month(month))
    if text is None:
        raise NotThere(f"{month} is not closed: ghub month close {month}")
    manifest = read_manifest(text.encode())
    chains = await _chains(ledger, month, manifest.orders, tell)
    heads = chains.heads()
    wrong = [
        f"organisation {org.name} ({org.org}): the ledger has other rows than were sealed"
        for org in manifest.orgs
        if (org.rows, org.seal) != ((heads[org.org].rows, heads[org.org].seal) if org.org in heads else (0, org.seal))
    ]
    wrong += [
        f"organisation {org_id}: the ledger has {head.rows} rows, and none were sealed"
        for org_id, head in heads.items()
        if org_id not in {org.org for org in manifest.orgs}
    ]
    if manifest.previous != (None if previous is None else digest(previous)):
        wrong.append("the manifest of the month before is another one than when this month was sealed")
    return manifest, wrong


async def _seal(ledger: Ledger, closed: ClosedMonth, key: Ed25519PrivateKey, tell: Tell) -> None:
    """Sum up and seal a closed month. Raises LedgerError if it opens with other balances than the last one closed."""
    month, before = closed.month, previous_month(closed.month)
    sums = [one async for page in pages(partial(ledger.month_sums, month)) for one in page]
    previous = await ledger.manifest(before)
    if previous is not None:
        _check_openings(sums, {org.org: org.micro_mxn("closing") for org in read_manifest(previous.encode()).orgs})
    elif before in await _closed(ledger):
        raise LedgerError(f"{before} is closed, and not sealed yet: ghub month close {before}")
    chains = await _chains(ledger, month, sum(one.orders for one in sums), tell)
    names = {one.org_id: (await ledger.names(month, one.org_id)).org for one in sums}
    of = Month(month, closed.closed_at, closed.closed_by, None if previous is None else digest(previous), SEALED)
    await ledger.seal_month(month, make_manifest(of, sums, names, chains.heads(), key), sums, utc_now())


async def _chains(ledger: Ledger, month: str, orders: int, tell: Tell) -> Chains:
    chains, done = Chains(month), 0
    async for org_id, cells, _ in sealed_rows(ledger, month):
        chains.add(org_id, cells)
        done += 1
        tell(done, orders)
    return chains


def _check_openings(sums: list[MonthSums], closings: Mapping[str, int]) -> None:
    for one in sums:
        if one.opening_micro_mxn != closings.get(one.org_id, 0):
            raise LedgerError(
                f"organisation {one.org_id} opens with another balance than it had at the close of the month before:"
                " a closed month was changed; `ghub verify` and a backup tell where"
            )


async def _closed(ledger: Ledger) -> dict[str, ClosedMonth]:
    return {one.month: one for one in await ledger.closed_months()}


def _moment(unix_us: int) -> str:
    return utc_at(unix_us).isoformat()
