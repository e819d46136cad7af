"""What Redis must know: numbered changes, and the current state of organisations."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime
from hashlib import sha256

from metering.clock import Period
from metering.ledger.rows import key_of, org_of
from metering.ledger.transactions import Steps, Transactions, as_json
from metering.limits import Limits, plan_of
from metering.ports import ApiKey, Snapshot, Used

FINGERPRINT = 16
"""Hex digits of a change's fingerprint: 64 bits, enough against chance but not against an attacker."""


class ProjectedRecords(Transactions):
    """Read by the projections (rules 1, 34)."""

    async def last_change(self) -> int:
        """Find the number of the last change that Redis must know. No smaller number can appear later."""
        return int((await self._rows("last_change"))[0][0])

    async def begin_rebuild(self, at: datetime) -> int:
        """Record that wallets are rebuilt from what is read after this; returns the number of that change.

        A ledger without that change was restored from a backup since, and may lack what the wallets were made from.
        """

        def steps() -> Steps[int]:
            yield "change_for_a_rebuild", {"at": at.isoformat()}
            ((change,),) = yield "last_change", {}
            return int(change)

        return await self._run("write", steps)

    async def fingerprints(self, changes: Collection[int]) -> dict[int, str]:
        """Compute fingerprints that tell these changes from another ledger's with the same numbers, if they exist.

        A ledger that was restored from a backup and written again has other rows: their times have microseconds.
        """

        def steps() -> Steps[dict[int, str]]:
            found = {}
            for seq in changes:
                for row in (yield "change_at", {"seq": seq}):
                    found[seq] = sha256("\n".join(row).encode()).hexdigest()[:FINGERPRINT]
            return found

        return await self._run("read", steps)

    async def changed_since(self, change: int) -> list[str]:
        """List ids of the organisations that changed after change number `change`."""
        return [org_id for (org_id,) in await self._rows("changed_since", change=change)]

    async def known_orgs(self, org_ids: Sequence[str]) -> set[str]:
        """Find which of these ids belong to organisations here."""
        return {org_id for (org_id,) in await self._rows("known_orgs", ids=as_json(org_ids))}

    async def known_keys(self, key_ids: Sequence[str]) -> set[str]:
        """Find which of these ids belong to keys here."""
        return {key_id for (key_id,) in await self._rows("known_keys", ids=as_json(key_ids))}

    async def known_hashes(self, key_hashes: Sequence[str]) -> set[str]:
        """Find which of these hashes belong to keys here."""
        return {key_hash for (key_hash,) in await self._rows("known_hashes", ids=as_json(key_hashes))}

    async def snapshots(self, org_ids: Sequence[str], period: Period) -> list[Snapshot]:
        """Read everything that a projection of these needs, at one moment; `period` is today, for the usage."""
        days = {"day": period.day, "first": f"{period.month}-01", "last": f"{period.month}-31"}

        ids = {"ids": as_json(org_ids)}

        def steps() -> Steps[list[Snapshot]]:
            plans = {row[0]: Limits(*row[1:]) for row in (yield "plans", {})}
            orgs = [org_of(row) for row in (yield "orgs_of", ids)]
            revisions = dict((yield "revisions", ids))
            credits_ = {org_id: (number, total) for org_id, number, total in (yield "credits_of", ids)}
            keys: dict[str, list[ApiKey]] = defaultdict(list)
            used: dict[str, dict[str, Used]] = defaultdict(dict)
            for row in (yield "keys_of", ids):
                keys[row[1]].append(key_of(row))
            for org_id, key_id, *figures in (yield "used", {**ids, **days}):
                used[org_id][key_id] = Used(*figures)
            return [
                Snapshot(
                    org=org,
                    revision=revisions.get(org.org_id, 0),
                    credit_number=credits_.get(org.org_id, (0, 0))[0],
                    credits_micro_mxn=credits_.get(org.org_id, (0, 0))[1],
                    keys=tuple(keys[org.org_id]),
                    limits=org.limits.over(plan_of(plans, org.plan)),
                    used=used[org.org_id],
                    period=period,
                )
                for org in orgs
            ]

        return await self._run("read", steps)
