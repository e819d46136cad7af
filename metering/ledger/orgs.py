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
    """Every change is written with its row in the audit log and its change for Redis."""

    async def create_org(self, org: Org, act: Act) -> None:
        """Create an organisation. Raises LedgerError if the name is taken."""

        def steps() -> Steps[None]:
            if (yield "org", {"ref": org.name}):
                raise WrongField("name", f"an organisation named {org.name!r} exists already")
            yield "create_org", fields(org)
            yield change_of(org.org_id, "org created", org.created_at)
            yield from audit(act, org.created_at)

        await self._run("write", steps)

    async def org(self, ref: str) -> Org:
        """Find an organisation by id or name. Raises LedgerError if there is none."""
        rows = await self._rows("org", ref=ref)
        if not rows:
            raise NotThere(f"there is no organisation {ref!r}")
        return org_of(rows[0])

    async def orgs(self, after: Org | None = None, most: int = PAGE) -> list[Org]:
        """Read a page of organisations, oldest first; the next page begins `after` the last of this one."""
        at, org_id = (after.created_at, after.org_id) if after is not None else ("", "")
        return [org_of(row) for row in await self._rows("orgs", after_at=at, after_id=org_id, page=most)]

    async def set_limits(self, org_id: str, changes: Mapping[str, int | None], at: datetime, act: Act) -> Org:
        """Set an organisation's own limits. Limits that are not named stay; None returns to the plan's."""

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
        """Refuse an organisation's orders from now on, or accept them again. No effect if that is already so."""

        def since(org: Org) -> Org:
            return (
                org if org.suspended == suspended else replace(org, suspended_at=at.isoformat() if suspended else None)
            )

        return await self._change_org(org_id, since, "suspended" if suspended else "resumed", at, act)

    async def rename(self, org_id: str, name: str, at: datetime, act: Act) -> Org:
        """Change an organisation's name. Raises WrongField if the name is taken."""
        return await self._change_org(org_id, lambda org: replace(org, name=name), "renamed", at, act)

    async def set_plan(self, org_id: str, plan: str, at: datetime, act: Act) -> Org:
        """Change its plan. Its own limits still take precedence."""
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
        """Read the plans of the gateway that started last, by name. Empty if none has started yet."""
        return {row[0]: Limits(*row[1:]) for row in await self._rows("plans")}

    async def register_plans(self, plans: Mapping[str, Limits], at: datetime) -> bool:
        """Set the plans that hold from now on; False if they are unchanged. A change is sent to all wallets."""

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
        """Record a key by its hash. The key that it `replaces` ends at `until`, if it does not end before."""

        def steps() -> Steps[None]:
            lists = {"models": " ".join(key.models), "origins": " ".join(key.origins)}
            yield "create_key", fields(key) | key.limits.values() | lists
            if until is not None:
                yield "expire_key", {"key_id": key.replaces, "at": until.isoformat()}
            yield change_of(key.org_id, "key created", key.created_at)
            yield from audit(act, key.created_at)

        await self._run("write", steps)

    async def key(self, key_id: str) -> ApiKey:
        """Find a key by its short id. Raises LedgerError if there is none."""
        rows = await self._rows("key", key_id=key_id)
        if not rows:
            raise NotThere(f"there is no key {key_id!r}")
        return key_of(rows[0])

    async def given_end(self, key: ApiKey) -> str | None:
        """Find the end that a key was issued with. A rotation may have moved it forward."""
        rows = await self._rows("issued", org_id=key.org_id, key_id=key.key_id)
        details = orjson.loads(rows[0][0]) if rows else {}
        end: str | None = details.get("expires_at", key.expires_at)
        return end

    async def keys(self, org_id: str, after: ApiKey | None = None, most: int = PAGE) -> list[ApiKey]:
        """Read a page of an organisation's keys, revoked ones too, oldest first."""
        at, key_id = (after.created_at, after.key_id) if after is not None else ("", "")
        rows = await self._rows("keys", org_id=org_id, after_at=at, after_id=key_id, page=most)
        return [key_of(row) for row in rows]

    async def revoke_key(self, key_id: str, at: datetime, act: Act) -> ApiKey:
        """Revoke a key permanently; a second time changes nothing. Raises LedgerError if there is no such key."""

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
        """Set a key's own limits. Limits that are not named stay; None is no limit."""

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
        """Find the Unix µs of the last charged order of each key, by key id."""
        rows = await self._rows("last_used", org_id=org_id)
        return {key_id: last_us for (key_id, last_us) in rows}

    async def origins(self, at: datetime) -> set[str]:
        """List origins of all pages from which browsers may use an active key (not revoked, not past its end)."""
        rows = await self._rows("origins", at=at.isoformat())
        return {origin for (origins,) in rows for origin in origins.split()}


def key_row(key_id: str) -> Steps[ApiKey]:
    rows = yield "key", {"key_id": key_id}
    if not rows:
        raise NotThere(f"there is no key {key_id!r}")
    return key_of(rows[0])
