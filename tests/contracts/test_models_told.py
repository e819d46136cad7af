"""What each upstream calls its requests and says they cost, whether or not they brought pictures."""

from pathlib import Path

import httpx2
import orjson
import pytest

from proxy.orders.settlement import MAX_UPSTREAM_IDS, upstream_of
from proxy.ports import Report
from proxy.upstream import MAX_IDS, WORD_CHARS, note_id, note_ids
from tests.kits.providers import FLUX, GPT, GROK, IMAGEN, KEY, end_of, order, simulated


def ids_of(text: str | None) -> list[str]:
    found: list[str] = orjson.loads(text) if text is not None else []
    return found


@pytest.mark.parametrize("queue", [True, False])
@pytest.mark.parametrize("scenario", ["ok", "http_500", "truncated_body", "secret_in_headers"])
@pytest.mark.parametrize("model", [GPT, GROK, FLUX])
async def test_the_upstreams_own_ids_are_known_however_it_ends(
    tmp_path: Path, model: str, scenario: str, queue: bool
) -> None:
    """They are those of the upstream's own bill; our key is in none, even if it repeats it."""
    async with simulated(tmp_path, queue=queue) as bench:
        await bench.behave(model, scenario)
        progress = await bench.make(order(model, 2))
        told = upstream_of(progress)
        billed = {job["request_id"] for job in await bench.jobs(model)}
        assert (end_of(progress) == "delivered") == (scenario in ("ok", "secret_in_headers"))
        ids = ids_of(told.ids)
        assert billed and billed <= {one.removeprefix("req_") for one in ids} | set(ids), (billed, ids)
        assert KEY not in str(ids)


async def test_each_try_has_an_id_of_its_own(tmp_path: Path) -> None:
    """Two that the upstream did not take, and one that it did."""
    async with simulated(tmp_path) as bench:
        await bench.in_turn(GROK, "http_503", "rate_limited_429")
        told = upstream_of(await bench.make(order(GROK)))
        assert len(ids_of(told.ids)) == 3
        assert told.usd == "0.07", "of the one that it took"


async def test_the_upstreams_own_figure_is_known_if_it_gives_one(tmp_path: Path) -> None:
    """Also of a picture that is none, and so is not charged; Google and fal give none."""
    async with simulated(tmp_path) as bench:
        assert upstream_of(await bench.make(order(GROK, 2))).usd == "0.14"
        await bench.behave(GROK, "empty_image")
        empty = await bench.make(order(GROK))
        assert not empty.stored and upstream_of(empty).usd == "0.07"
        await bench.behave(GROK, "ok")
        for model in (IMAGEN, FLUX):
            assert upstream_of(await bench.make(order(model))).usd is None


def test_ids_are_bounded_and_printable() -> None:
    """In their length, their number, and their characters; each is kept once."""
    report = Report()
    for odd in (None, 5, "", "a b", "é", "a\n", '"', "\\", "x" * (WORD_CHARS + 1)):
        note_id(report, odd)
    assert report.ids == []
    for number in (1, 1, 2, 3, 4, 5):
        note_id(report, f"{number}" * WORD_CHARS)
    assert len(report.ids) == MAX_IDS
    told = Report()
    note_ids(told, httpx2.Response(500, headers={"x-request-id": "req_1", "x-goog-request-id": "g-1"}))
    assert told.ids == ["req_1", "g-1"]
    assert MAX_UPSTREAM_IDS * (WORD_CHARS + 5) < 4 * 1024, "an entry of the journal has room for them"
