"""`ghub` with one protection switched off, for the proof that the judge would notice.

Whatever is switched off here is named by a text of the product's own, and a text that is no longer there is an error:
a protection that was rewritten must not look as if it had been switched off.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path

from redis.asyncio import Redis

from metering.answers import Answers
from metering.journal import Journal, _Segment, _Waiting
from metering.ledger import postgres, queries
from metering.recovery import Recovery
from metering.wallet import connection

LUA: Mapping[str, tuple[str, str, str]] = {
    # A hold never runs out.
    "expiry": (
        "common",
        "ZRANGEBYSCORE', P .. ':open:' .. org, '-inf', now_us",
        "ZRANGEBYSCORE', P .. ':open:' .. org, 1, 0",
    ),
    # A void that comes after a charge gives the money back all the same.
    "first-close": (
        "void_v2",
        "local before = redis.call('GET', KEYS[6])\n",
        """local before = redis.call('GET', KEYS[6])
        if before and string.match(before, '^charge:') then
          local amount = tonumber(string.match(before, ':(%d+)'))
          redis.call('HINCRBY', KEYS[2], 'available', amount)
          redis.call('HINCRBY', KEYS[2], 'charged', -amount)
          before = 'void:0:' .. reason
          redis.call('SET', KEYS[6], before)
        end
        """,
    ),
    # An order that is placed again under its key is placed twice.
    "retries": ("admit_v3", "if keyed == 1 then earlier, stands, differs = under_key()", "if keyed == 1 then"),
}

SQL = """    ON CONFLICT (event_id, ("end" = 'charge')) DO NOTHING\n"""
"""Of the statement `book`. The indexes behind it are dropped by the world."""

PROTECTIONS = ("journal", "unique", "expiry", "first-close", "replay", "retries")


def switch_off(protection: str) -> None:
    """Do without it in this process from now on."""
    if protection in LUA:
        _lua(*LUA[protection])
    elif protection == "journal":
        Journal._commit = _acknowledged_only  # type: ignore[method-assign]
    elif protection == "unique":
        _sql()
    else:
        assert protection == "replay", protection
        Recovery.run = _never  # type: ignore[method-assign]  # the files of the dead stay as they are
        Answers.round = _nothing  # type: ignore[method-assign]  # and what Redis lost stays lost


def _lua(name: str, text: str, instead: str) -> None:
    folder = Path(connection.__file__).parent
    assert (folder / f"{name}.lua").read_text().count(text) == 1, f"{name}.lua has changed: {text}"
    honest = connection.Script.__init__

    def weakened(self: connection.Script, redis: Redis, script: str) -> None:
        honest(self, redis, script.replace(text, instead))

    connection.Script.__init__ = weakened  # type: ignore[assignment,method-assign]


def _sql() -> None:
    honest = queries.named_queries

    def weakened(dialect: queries.Dialect) -> dict[str, str]:
        found = honest(dialect)
        assert SQL in found["book"], "the ledger's statement `book` has changed"
        return found | {"book": found["book"].replace(SQL, "")}

    postgres.named_queries = weakened  # type: ignore[attr-defined]  # where it was imported to


def _acknowledged_only(self: Journal, batch: list[_Waiting]) -> tuple[_Segment, int]:
    """And not written."""
    return self._segments[-1], 0


async def _never(self: Recovery) -> None:
    await asyncio.Event().wait()


async def _nothing(self: Answers) -> None:
    return
