"""Organisations, their plans and limits, and their keys."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime

import orjson

from metering.ledger.rows import fields, key_of, org_of
from metering.ledger.transactions import Steps, Transactions, audit, change_of, once
from metering.limits import Limits
from metering.ports import PAGE, Act, ApiKey, NotThere, Org, WrongField


class OrgRecords(Transactions):
    """Every change has its line in the audit log, and its word for Redis."""

    async def create_org(self, org: Org, act: Act) -> None:
        """Raises LedgerError when the name is taken."""

        def steps() -> Steps[None]:
            if (yield "org", {"ref": org.name}):
                raise WrongField("name", f"an organisation named {org.name!r} exists already")
            yield "create_org", fields(org)
            yield change_of(org.org_id, "org created", org.created_at)
            yield from audit(act, org.created_at)

        await self._run("write", steps)

    async def org(self, ref: str) -> Org:
        """By id or name. Raises LedgerError when there is none."""
        rows = await self._rows("org", ref=ref)
        if not rows:
            raise NotThere(f"there is no organisation {ref!r}")
        return org_of(rows[0])

    async def orgs(self, after: Org | None = None, most: int = PAGE) -> list[Org]:
        """A page of them, oldest first; the next one begins `after` the last of this one."""
        at, org_id = (after.created_at, after.org_id) if after is not None else ("", "")
        return [org_of(row) for row in await self._rows("orgs", after_at=at, after_id=org_id, page=most)]

    async def set_limits(self, org_id: str, changes: Mapping[str, int | None], at: datetime, act: Act) -> Org:
        """Set an organisation's own limits; what is not named stays, and None is the plan's again."""

        def steps() -> Steps[Org]:
            (row,) = yield "org", {"ref": org_id}
            org = org_of(row)
            changed = replace(org, limits=org.limits.changed(changes))
            if changed == org:
                yield from once(act, at.isoformat())
                return org
            yield "set_limits", {"org_id": org_id, **changed.limits.values()}
            yield change_of(org_id, "limits", at.isoformat())
            yield from audit(act, at.isoformat())
            return changed

        return await self._run("write", steps)

    async def suspend(self, org_id: str, suspended: bool, at: datetime, act: Act) -> Org:
        """Refuse an organisation's orders from now on, or take them again; what is so already stays as it is."""

        def since(org: Org) -> Org:
            return (
                org if org.suspended == suspended else replace(org, suspended_at=at.isoformat() if suspended else None)
            )

        return await self._change_org(org_id, since, "suspended" if suspended else "resumed", at, act)

    async def rename(self, org_id: str, name: str, at: datetime, act: Act) -> Org:
        """Raises WrongField when the name is taken."""
        return await self._change_org(org_id, lambda org: replace(org, name=name), "renamed", at, act)

    async def set_plan(self, org_id: str, plan: str, at: datetime, act: Act) -> Org:
        """Its own limits stay above the new plan's."""
        return await self._change_org(org_id, lambda org: replace(org, plan=plan), "plan", at, act)

    async def _change_org(self, org_id: str, change: Callable[[Org], Org], what: str, at: datetime, act: Act) -> Org:
        def steps() -> Steps[Org]:
            (row,) = yield "org", {"ref": org_id}
            org = org_of(row)
            changed = change(org)
            if changed == org:
                yield from once(act, at.isoformat())
                return org
            if changed.name != org.name and (yield "org", {"ref": changed.name}):
                raise WrongField("name", f"an organisation named {changed.name!r} exists already")
            yield "set_org", fields(changed)
            yield change_of(org_id, what, at.isoformat())
            yield from audit(act, at.isoformat())
            return changed

        return await self._run("write", steps)

    async def plans(self) -> dict[str, Limits]:
        """Those of the gateway that started last, by name; none where none has started yet."""
        return {row[0]: Limits(*row[1:]) for row in await self._rows("plans")}

    async def register_plans(self, plans: Mapping[str, Limits], at: datetime) -> bool:
        """The plans that hold from now on; False where they are as they were. Otherwise all wallets are told."""

        def steps() -> Steps[bool]:
            known = {row[0]: Limits(*row[1:]) for row in (yield "plans", {})}
            if known == plans:
                return False
            for name in known.keys() - plans.keys():
                yield "drop_plan", {"name": name}
            for name, limits in plans.items():
                yield "set_plan", {"name": name, **limits.values(), "at": at.isoformat()}
            yield "change_all", {"what": "plans", "at": at.isoformat()}
            return True

        return await self._run("write", steps)

    async def create_key(self, key: ApiKey, act: Act, *, until: datetime | None = None) -> None:
        """Record a key by its hash. The one that it `replaces` ends at `until`, if it does not end before."""

        def steps() -> Steps[None]:
            lists = {"models": " ".join(key.models), "origins": " ".join(key.origins)}
            yield "create_key", fields(key) | key.limits.values() | lists
            if until is not None:
                yield "expire_key", {"key_id": key.replaces, "at": until.isoformat()}
            yield change_of(key.org_id, "key created", key.created_at)
            yield from audit(act, key.created_at)

        await self._run("write", steps)

    async def key(self, key_id: str) -> ApiKey:
        """By its short id. Raises LedgerError when there is none."""
        rows = await self._rows("key", key_id=key_id)
        if not rows:
            raise NotThere(f"there is no key {key_id!r}")
        return key_of(rows[0])

    async def given_end(self, key: ApiKey) -> str | None:
        """The end that a key was issued with; a rotation may have brought it forward."""
        rows = await self._rows("issued", org_id=key.org_id, key_id=key.key_id)
        details = orjson.loads(rows[0][0]) if rows else {}
        end: str | None = details.get("expires_at", key.expires_at)
        return end

    async def keys(self, org_id: str, after: ApiKey | None = None, most: int = PAGE) -> list[ApiKey]:
        """A page of an organisation's keys, revoked ones too, oldest first."""
        at, key_id = (after.created_at, after.key_id) if after is not None else ("", "")
        rows = await self._rows("keys", org_id=org_id, after_at=at, after_id=key_id, page=most)
        return [key_of(row) for row in rows]

    async def revoke_key(self, key_id: str, at: datetime, act: Act) -> ApiKey:
        """Revoke for good; a second time changes nothing. Raises LedgerError when there is no such key."""

        def steps() -> Steps[ApiKey]:
            revoked = yield "revoke_key", {"key_id": key_id, "at": at.isoformat()}
            key = yield from key_row(key_id)
            if not revoked:
                yield from once(act, at.isoformat())
                return key
            yield change_of(key.org_id, "key revoked", at.isoformat())
            yield from audit(replace(act, org_id=key.org_id), at.isoformat())
            return key

        return await self._run("write", steps)

    async def set_key_limits(self, key_id: str, changes: Mapping[str, int | None], at: datetime, act: Act) -> ApiKey:
        """Set a key's own limits; what is not named stays, and None is no limit."""

        def steps() -> Steps[ApiKey]:
            key = yield from key_row(key_id)
            changed = replace(key, limits=key.limits.changed(changes))
            if changed == key:
                yield from once(act, at.isoformat())
                return key
            yield "set_key_limits", {"key_id": key_id, **changed.limits.values()}
            yield change_of(key.org_id, "key limits", at.isoformat())
            yield from audit(replace(act, org_id=key.org_id), at.isoformat())
            return changed

        return await self._run("write", steps)

    async def last_used(self, org_id: str) -> dict[str, int]:
        """Key id → Unix µs of the last order that was charged to it."""
        rows = await self._rows("last_used", org_id=org_id)
        return {key_id: last_us for (key_id, last_us) in rows}

    async def origins(self, at: datetime) -> set[str]:
        """Of all pages from which browsers may use a key that is neither revoked nor past its end."""
        rows = await self._rows("origins", at=at.isoformat())
        return {origin for (origins,) in rows for origin in origins.split()}


def key_row(key_id: str) -> Steps[ApiKey]:
    rows = yield "key", {"key_id": key_id}
    if not rows:
        raise NotThere(f"there is no key {key_id!r}")
    return key_of(rows[0])
