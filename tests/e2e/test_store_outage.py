"""The store goes away while images are under way, and comes back: what was paid for upstream reaches its customer."""

import asyncio
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from config.settings import STORE_ANSWER_S, STORE_WATCH_S
from proxy.storage.watch import MAX_FAILURES
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.e2e.test_errors import assert_error
from tests.e2e.test_hostile import descriptors
from tests.kits.system import FLUX, GPT, System, bearer, wait_until
from tests.long import LONG, long
from tests.stores.running import BUCKET, KEY, SupabaseProcess, frozen

UPSTREAM_S = 3
IMAGE_BYTES = 600_000
"""More than an upload's way to the store holds, and than the spool keeps in memory."""

NOTICED_S = MAX_FAILURES * STORE_WATCH_S + 5

Away = Callable[[SupabaseProcess], AbstractContextManager[None]]


@contextmanager
def dead(store: SupabaseProcess) -> Iterator[None]:
    """Its process is gone, and comes back with the objects that it had."""
    store.kill()
    yield
    store.start()


@contextmanager
def hung(store: SupabaseProcess) -> Iterator[None]:
    """Its process takes connections, and neither reads nor answers."""
    with frozen(store.process):
        yield


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SupabaseProcess]:
    """A running Supabase Storage."""
    one = SupabaseProcess(tmp_path)
    one.start()
    yield one
    one.kill()


OUTAGES = [(dead, 10.0), (hung, STORE_ANSWER_S + UPSTREAM_S + 4.0), (hung, 10.0)]


@pytest.mark.parametrize(("away", "away_s"), OUTAGES if LONG else OUTAGES[:1])
def test_images_under_way_outlive_a_store_that_is_away(
    prepared: Prepared, store: SupabaseProcess, tmp_path: Path, away: Away, away_s: float
) -> None:
    """10 at URLs and 10 inline: all are delivered and charged once, and none is made twice upstream."""
    system = prepared(**storing_in(store))
    system.start_all()
    org_id, key = system.customer("outlives", "100.00")
    for model in (FLUX, GPT):
        system.behave(model, "slow", times=10, seconds=UPSTREAM_S, bytes=IMAGE_BYTES)

    def outage() -> None:
        wait_until(lambda: len(system.jobs()) == 20, "all are being made")
        with away(store):
            time.sleep(away_s)

    async def order(client: httpx2.AsyncClient, model: str) -> httpx2.Response:
        return await client.post("/images/generations", json={"model": model, "prompt": "x"})

    async def storm() -> list[httpx2.Response]:
        async with system.client(key) as client:
            orders = [asyncio.create_task(order(client, model)) for model in (FLUX, GPT) * 10]
            await asyncio.to_thread(outage)
            return await asyncio.gather(*orders)

    replies = run(storm())
    assert Counter(reply.status_code for reply in replies) == {200: 20}, [reply.text for reply in replies]
    assert min(reply.elapsed.total_seconds() for reply in replies) > away_s
    assert Counter(job["model"] for job in system.jobs()) == {FLUX: 10, GPT: 10}

    events = system.events(org_id, 20)
    assert {(event.end, event.quantity) for event in events} == {("charge", 1)}
    images = {f"{store.public_url}/{image.path}": image for event in events for image in event.images}
    assert images.keys() == {item["url"] for reply in replies for item in reply.json()["data"]}
    for url, image in images.items():
        data = httpx2.get(url, **LOOPBACK).content
        assert (len(data), hashlib.sha256(data).hexdigest()) == (image.size_bytes, image.sha256)
        assert image.size_bytes >= IMAGE_BYTES
    assert objects(tmp_path) == {image.path for image in images.values()}
    if away is dead or away_s > STORE_ANSWER_S:  # else an upload may just have waited
        assert "store_failed_once" in system.log()
    assert not [path for path in descriptors(system.processes["gateway"].pid) if "spool" in path]
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


@long
def test_a_store_that_stays_away_ends_the_taking_of_orders(
    prepared: Prepared, store: SupabaseProcess, tmp_path: Path
) -> None:
    """503 to be tried again, before anything is bought upstream; taken again when the store is back."""
    system = prepared(**storing_in(store))
    system.start_all()
    org_id, key = system.customer("refused", "100.00")
    with dead(store):
        wait_until(lambda: system.log().count("store_away") >= MAX_FAILURES, "it is noticed", within_s=NOTICED_S)
        for model in (FLUX, GPT):
            reply = post(system, key, model)
            assert_error(reply, 503, "temporarily_unavailable", retry=True)
            assert "store" in reply.json()["error"]["message"] and reply.elapsed.total_seconds() < 1
        assert system.jobs() == [] and system.cut(org_id).available_micro_mxn == 100_000_000
    wait_until(lambda: post(system, key, FLUX).status_code == 200, "orders are taken", within_s=STORE_WATCH_S + 10)
    assert len(system.jobs()) == len(objects(tmp_path)) == 1
    system.events(org_id, 1)
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


UNWRITABLE: dict[str, tuple[dict[str, Any], str]] = {
    "database read-only": ({"read_only": True}, ""),
    "no right to write": ({"no_writing": True}, "GHUB_STORAGE_KEY: it may see the bucket .*, but not write"),
    "body limit of nginx": (
        {"body_limit_bytes": 2**20},
        "GHUB_STORAGE_URL: the store, or a proxy in front of it, .*64m",
    ),
}


@pytest.mark.rule(11)
@pytest.mark.parametrize("fault", UNWRITABLE if LONG else [*UNWRITABLE][:1])
def test_a_store_that_can_be_read_but_not_written_ends_the_taking_of_orders(
    prepared: Prepared, store: SupabaseProcess, tmp_path: Path, fault: str
) -> None:
    """At most two orders are bought for nothing; then 503, until a probe was written and read (rule 11)."""
    system = prepared(**storing_in(store), GHUB_DEADLINE_S="12")
    system.start_all()
    org_id, key = system.customer("unwritable", "100.00")
    system.behave(FLUX, "slow", times=None, seconds=0, bytes=2 * 2**20)
    assert post(system, key, FLUX).status_code == 200
    store.behave(**UNWRITABLE[fault][0])
    lost = 0
    while (reply := post(system, key, FLUX)).status_code != 503:
        assert reply.status_code in (502, 504), reply.text  # a store that may recover is tried until the deadline
        lost += 1
        assert lost <= MAX_FAILURES
    assert_error(reply, 503, "temporarily_unavailable", retry=True)
    bought = len(system.jobs())
    assert bought == 1 + lost
    until_s = time.monotonic() + STORE_WATCH_S + 5  # a look at the bucket goes well meanwhile, and opens nothing
    while time.monotonic() < until_s:
        assert post(system, key, FLUX).status_code == 503
        time.sleep(0.5)
    assert len(system.jobs()) == bought
    store.behave()
    wait_until(lambda: post(system, key, FLUX).status_code == 200, "orders are taken", within_s=STORE_WATCH_S + 10)
    assert len(system.jobs()) == bought + 1
    assert len(objects(tmp_path)) == 2 and not [path for path in objects(tmp_path) if path.startswith("_probe")]
    lines = [json.loads(line) for line in system.log().splitlines()]
    errors = [line for line in lines if line["event"] == "store_failed"]
    assert len(errors) == lost or fault == "database read-only"
    for line in errors:
        assert line["path"] == f"{org_id}/{line['request_id']}/0"
        assert f"POST {store.url}/object/{BUCKET}/{line['path']}." in line["error"]
    system.events(org_id, 2 + lost)
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


@pytest.mark.parametrize("fault", UNWRITABLE if LONG else [*UNWRITABLE][1:2])
def test_a_gateway_that_starts_before_a_store_that_cannot_be_written(
    prepared: Prepared, store: SupabaseProcess, fault: str
) -> None:
    """A wrong setting ends the start with a sentence; if the store is away, orders are 503 until it is back."""
    system = prepared(**storing_in(store))
    behaviour, sentence = UNWRITABLE[fault]
    store.behave(**behaviour)
    if sentence:
        refused = system.ghub("serve")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert re.fullmatch(f"ghub: {sentence}.*\n", refused.stderr), refused.stderr
        return
    system.start_all_but_ready()
    _, key = system.customer("starts", "100.00")
    assert_error(post(system, key, FLUX), 503, "temporarily_unavailable", retry=True)
    assert system.jobs() == []
    store.behave()
    wait_until(lambda: post(system, key, FLUX).status_code == 200, "orders are taken", within_s=STORE_WATCH_S + 10)


def storing_in(store: SupabaseProcess) -> dict[str, str]:
    """The settings of a gateway that has its images there."""
    return {
        "GHUB_STORAGE_URL": f"supabase+{store.url}?bucket={BUCKET}",
        "GHUB_STORAGE_KEY": KEY,
    }


def objects(folder: Path) -> set[str]:
    """Paths of everything that the store has, the unfinished too."""
    kept = {str(path.relative_to(folder / "objects")) for path in (folder / "objects").rglob("*") if path.is_file()}
    return kept | {path.name for path in (folder / "parts").rglob("*") if path.is_file()}


def post(system: System, key: str, model: str) -> httpx2.Response:
    """One order for one picture."""
    url = f"{system.url}/images/generations"
    return httpx2.post(url, headers=bearer(key), json={"model": model, "prompt": "x"}, **LOOPBACK, timeout=30)
