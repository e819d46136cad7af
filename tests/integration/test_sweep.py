"""Proofs of a sweep, over a real Valkey, a real ledger and a real folder (rule 32)."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from metering.answered import AnsweredOrder
from metering.clock import utc_now
from metering.events import StoredImage
from metering.ports import Ended, Ledger
from metering.wallet.presence import Presence
from metering.wallet.values import Caller, Replay, Verdict
from proxy.ports import ImageStore, StoredObject, StoreFailed, StoreMisconfigured
from proxy.storage.local import LocalStore
from proxy.storage.sweep import Finding, Sweep
from tests.integration.test_replay import answered
from tests.kits.books import NOW_US, SECOND_US, Books, drain, open_books

MANY = 60_000


def swept(books: Books, store: ImageStore, ledger: Ledger | None = None, *, age_s: float = 0) -> Sweep:
    now = utc_now() + timedelta(minutes=1)
    return Sweep(
        store, ledger or books.ledger, books.wallet, Presence(books.redis), now=now, age=timedelta(seconds=age_s)
    )


async def findings(sweep: Sweep, *, delete: bool = True) -> dict[str, tuple[Finding, str]]:
    return {found.object.path: (found.finding, found.why) async for found in sweep.run(delete=delete)}


def place(root: Path, path: str) -> Path:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    return file


def order_of(caller: Caller, path: str) -> AnsweredOrder:
    """The journal's record of the order whose image that is."""
    image = StoredImage(path, "image/png", 1, "0" * 64, 1024, 1024)
    return replace(answered(caller, path.split("/")[1], 1), images=(image,))


async def expire(books: Books, caller: Caller, *requests: str) -> None:
    """Orders' holds run out, and the ledger has that as their ends."""
    books.wallet.at(NOW_US)
    for request in requests:
        assert (await books.admit(caller, request)).verdict is Verdict.ADMITTED
    books.wallet.at(NOW_US + 3600 * SECOND_US)
    assert (await books.admit(caller, "next")).verdict is Verdict.ADMITTED  # writes the ends down
    await books.wallet.void(caller.org_id, "next", "test")
    await drain(books)
    ended = await books.ledger.ended(requests)
    assert [ended[request].end for request in requests] == ["expiry"] * len(requests)


@pytest.mark.rule(32)
async def test_an_image_whose_late_charge_is_in_the_stream_stays(redis_url: str, tmp_path: Path) -> None:
    """Booked as an expiry, then charged by a journal: it is proven to be nobody's only when all is booked."""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="50.00")
        late, void = (f"{caller.org_id}/{uuid4()}/0.png" for _ in range(2))
        files = {path: place(tmp_path / "images", path) for path in (late, void)}
        store = LocalStore(tmp_path / "images")
        await expire(books, caller, *(path.split("/")[1] for path in (late, void)))
        assert await books.wallet.replay(order_of(caller, late)) is Replay.NOW
        behind = (Finding.UNPROVEN, "1 of its events are not booked yet")
        assert await findings(swept(books, store)) == {late: behind, void: behind}
        await drain(books)
        expected = {late: (Finding.CHARGED, ""), void: (Finding.VOID, "")}
        assert await findings(swept(books, store)) == expected
        assert files[late].exists() and not files[void].exists()


@pytest.mark.rule(32)
async def test_a_charge_that_is_booked_during_the_sweep_is_seen(redis_url: str, tmp_path: Path) -> None:
    """Whenever the consumer comes: the proof that all is booked is older than the look at the order."""

    class Consumed:
        """The ledger, into which a consumer books everything right after it was asked how orders ended."""

        def __init__(self, books: Books) -> None:
            self._books = books

        def __getattr__(self, name: str) -> Any:
            return getattr(self._books.ledger, name)

        async def ended(self, order_ids: Sequence[str]) -> dict[str, Ended]:
            found = await self._books.ledger.ended(order_ids)
            await drain(self._books)
            return found

    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        caller = await books.org(mxn="50.00")
        for state in ("expired", "unknown"):
            path = f"{caller.org_id}/{uuid4()}/0.png"
            file, store = place(tmp_path / state, path), LocalStore(tmp_path / state)
            if state == "expired":
                await expire(books, caller, path.split("/")[1])
            assert await books.wallet.replay(order_of(caller, path)) is Replay.NOW
            ledger: Any = Consumed(books)
            (found,) = (await findings(swept(books, store, ledger))).values()
            assert found[0] is Finding.UNPROVEN and file.exists()
            assert await findings(swept(books, store)) == {path: (Finding.CHARGED, "")}


@pytest.mark.rule(16)
async def test_leftovers_of_probes_go_when_they_are_old(redis_url: str, tmp_path: Path) -> None:
    """Listed as such; only paths that the gateway writes (rule 16)."""
    probe, other, uuid = f"_probe/{uuid4()}.png", "_probe/mine.png", f"{uuid4()}.png"
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        store = LocalStore(tmp_path / "images")
        files = {path: place(tmp_path / "images", path) for path in (probe, other, uuid)}
        foreign = {other: (Finding.FOREIGN, ""), uuid: (Finding.FOREIGN, "")}
        young = await findings(swept(books, store, age_s=3600))
        assert young == foreign | {probe: (Finding.YOUNG, "")} and files[probe].exists()
        assert await findings(swept(books, store)) == foreign | {probe: (Finding.PROBE, "")}
        assert not files[probe].exists() and files[other].exists() and files[uuid].exists()


@pytest.mark.parametrize("error", [StoreFailed("away", again=True), StoreMisconfigured("GHUB_STORAGE_KEY: wrong")])
async def test_a_store_that_shows_nothing_is_not_taken_for_an_empty_one(
    redis_url: str, tmp_path: Path, error: Exception
) -> None:
    """Supabase lists a missing bucket, and any to an anonymous key, as empty."""

    class Hiding(LocalStore):
        async def check(self) -> None:
            raise error

    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        with pytest.raises(type(error)):
            await findings(swept(books, Hiding(tmp_path)))


async def test_a_sweep_of_many_orders_is_one_of_seconds(redis_url: str, tmp_path: Path) -> None:
    """60,000 of one organisation: the ledger is asked by the hundred, the wallet once."""

    class Long(LocalStore):
        async def objects(self) -> AsyncGenerator[StoredObject]:
            for _ in range(MANY):
                yield StoredObject(f"{org_id}/{uuid4()}/0.png", 1_000, datetime(2020, 1, 1, tzinfo=UTC))

    org_id = ""
    async with open_books(redis_url, tmp_path / "ledger.db") as books:
        org_id = (await books.org()).org_id
        began_s = time.monotonic()
        found = Counter([found.finding async for found in swept(books, Long(tmp_path)).run(delete=False)])
        assert found == {Finding.NO_ORDER: MANY}
        assert time.monotonic() - began_s < 20
