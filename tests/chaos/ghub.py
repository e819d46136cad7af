"""`ghub` with one protection switched off, for the proof that the judge would notice.

Whatever is switched off here is named by a text of the product's own, and a text that is no longer there is an error:
a protection that was rewritten must not look as if it had been switched off.
"""

import asyncio
import signal
from collections.abc import Mapping
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

from redis.asyncio import Redis

from metering.journal.file import Journal, JournalFailed, Keep, _Segment, _Waiting
from metering.journal.open_orders import OpenOrders
from metering.journal.recovery import Recovery
from metering.ledger import postgres, queries
from metering.ports import LedgerAway
from metering.wallet import kept, marks, projection
from metering.wallet import script as scripts
from metering.wallet.connection import WalletAway
from tests.kits.disks import failing

LUA: Mapping[str, tuple[str, str, str]] = {
    # A hold never runs out.
    "expiry": (
        "common",
        "ZRANGEBYSCORE', P .. ':open:' .. org, '-inf', now_us",
        "ZRANGEBYSCORE', P .. ':open:' .. org, 1, 0",
    ),
    # A void that comes after a charge gives the money back all the same.
    "first-close": (
        "void_v4",
        "local before = redis.call('GET', closed_key)\n",
        """local before = redis.call('GET', closed_key)
        if before and string.match(before, '^charge:') then
          local amount = tonumber(string.match(before, ':(%d+)'))
          redis.call('HINCRBY', wallet_key, 'available', amount)
          redis.call('HINCRBY', wallet_key, 'charged', -amount)
          before = 'void:0:' .. reason
          redis.call('SET', closed_key, before)
        end
        """,
    ),
    # An order that is placed again under its key is placed twice.
    "retries": ("admit_v5", "if keyed == 1 then earlier, stands, differs = under_key()", "if keyed == 1 then"),
}

SQL = """    ON CONFLICT (event_id, ("end" = 'charge')) DO NOTHING\n"""
"""Part of the statement `book`. The world drops the indexes that would do the same."""

PROTECTIONS = ("journal", "unique", "expiry", "first-close", "replay", "retries", "segment", "feed", "mark", "end")


def prepare(without: str | None, control: Path | None = None) -> None:
    """In a new process: a gateway's disk fails as `control` says, and at SIGUSR1 it looks many times at once."""
    if control is not None:
        failing(control)()
        _rounds_at_once()
    if without is not None:
        switch_off(without)


def _rounds_at_once() -> None:
    honest = OpenOrders.run

    async def run(self: OpenOrders, every_s: float) -> None:
        under_way: set[asyncio.Task[None]] = set()

        async def looks() -> None:
            for _ in range(200):
                with suppress(WalletAway, LedgerAway, JournalFailed, OSError):
                    await self.round()

        def many() -> None:
            under_way.update(asyncio.create_task(looks()) for _ in range(4))

        asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, many)
        await honest(self, every_s)

    OpenOrders.run = run  # type: ignore[method-assign]


def switch_off(protection: str) -> None:
    """Do without it in this process from now on."""
    if protection in LUA:
        _lua(*LUA[protection])
    elif protection == "journal":
        Journal._commit = _acknowledged_only  # type: ignore[method-assign]
    elif protection == "unique":
        _sql()
    elif protection == "segment":
        Journal._commit = _whatever_the_disk_says  # type: ignore[method-assign]
    elif protection == "feed":
        for module in (kept, projection):
            module.feed_again = _feed_nothing  # type: ignore[attr-defined]
        OpenOrders._look_back = _nothing  # type: ignore[method-assign]
        Recovery.look_back = _nothing  # type: ignore[method-assign]
    elif protection == "mark":
        marks._is_of_another = lambda *_: False
    elif protection == "end":
        Journal.close = _delete_all  # type: ignore[method-assign]
    else:
        assert protection == "replay", protection
        Recovery.run = _never  # type: ignore[method-assign]  # the files of the dead stay as they are
        OpenOrders.round = _nothing  # type: ignore[method-assign]  # and what Redis lost stays lost


def _lua(name: str, text: str, instead: str) -> None:
    folder = Path(scripts.__file__).parent
    assert (folder / f"{name}.lua").read_text().count(text) == 1, f"{name}.lua has changed: {text}"
    if name == "common":
        scripts._COMMON = scripts._COMMON.replace(text, instead)
        return
    honest = scripts.Script.__init__

    def weakened(
        self: scripts.Script, redis: Redis, name: str, script: str, codes: type[IntEnum] | None = None
    ) -> None:
        honest(self, redis, name, script.replace(text, instead), codes)

    scripts.Script.__init__ = weakened  # type: ignore[assignment,method-assign]


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


_commit = Journal._commit
_close = Journal.close


def _whatever_the_disk_says(self: Journal, batch: list[_Waiting]) -> tuple[_Segment, int]:
    """Goes on in the same file, and acknowledges what was not written."""
    segment = self._current
    try:
        return _commit(self, batch)
    except OSError:
        self._current = segment or self._segments[-1]
        return self._current, self._current.at


async def _feed_nothing(redis: Redis, partition: int) -> int:
    return 0


async def _delete_all(self: Journal) -> None:
    """Whether or not the ledger knows that all of it is there."""
    self.registered, self._keep = False, Keep()
    await _close(self)


async def _never(self: Recovery) -> None:
    await asyncio.Event().wait()


async def _nothing(self: object) -> None:
    return
