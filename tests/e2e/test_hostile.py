"""Hostile upstreams: whatever they send, nothing but the image is published or charged, and nothing of it stays."""

import asyncio
import itertools
import json
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

import httpx2
import pytest

from bench.processes import resident_bytes
from config.settings import MAX_IMAGE_BYTES
from metering.events import Event
from proxy.api.files import STORAGE_PATH
from proxy.backends import BACKGROUND_CONNECTIONS, Backends
from proxy.outcomes import Outcome
from tests.conftest import LOOPBACK, run
from tests.e2e.test_errors import assert_error
from tests.e2e.test_memory import MAX_PER_IMAGE_BYTES
from tests.kits.hostile import ATTACKS, FAL_KEY, HONEST, LATE, OPENAI_KEY, PNG, WORDS, Attack, Upstream, upstream
from tests.kits.ports import free_port
from tests.kits.processes import executed
from tests.kits.system import FLUX, GPT, System, assert_no_key, prepare, wait_until
from tests.long import LONG

DEADLINE_S = 4
AT_ONCE = 24
ROUNDS = 3 if LONG else 1
"""Rounds of each attack, with as many good orders; one more of each before the gateway's memory is measured."""

MIB = 1024 * 1024
MAX_GROWN_BYTES = 30 * MIB
UNDER_WAY_BYTES = 40 * MIB
"""Bytes that may be in the sockets' buffers when the gateway has read its last byte."""

CREDIT_MICRO_MXN = 1_000_000_000


@dataclass
class Storm:
    """All orders and what came of them. `…_before` is what the gateway held when each attack had been there once."""

    system: System
    upstream: Upstream
    org_id: str = ""
    good_org_id: str = ""
    replies: dict[str, list[httpx2.Response]] = field(default_factory=dict)
    good_replies: list[httpx2.Response] = field(default_factory=list)
    events: dict[UUID, Event] = field(default_factory=dict)
    good_events: dict[UUID, Event] = field(default_factory=dict)
    failures: dict[UUID, list[str]] = field(default_factory=dict)
    descriptors_before: Counter[str] = field(default_factory=Counter)
    resident_bytes_before: int = 0
    peak_bytes: int = 0

    @property
    def pid(self) -> int:
        """The gateway's."""
        return self.system.processes["gateway"].pid


@pytest.fixture(scope="module")
def storm() -> Iterator[Storm]:
    """Run every attack `ROUNDS` times, each with a good order, on one gateway; then judge all."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder, upstream() as attacker:
        system = prepare(
            Path(folder),
            GHUB_FAL_MODE="direct",
            GHUB_FAL_URL=f"http://{attacker.address}/fal",
            GHUB_FAL_KEY=FAL_KEY,
            GHUB_OPENAI_URL=f"http://{attacker.address}/openai/v1",
            GHUB_OPENAI_KEY=OPENAI_KEY,
            GHUB_IMAGE_HOSTS=f"{attacker.address},localhost",
            GHUB_DEADLINE_S=str(DEADLINE_S),
            GHUB_METRICS_PORT=str(free_port()),
        )
        system.begin = executed  # with memory that it shares with nobody
        system.valkey.start()
        system.start("consumer", "consume", GHUB_METRICS_PORT="0")
        system.start_gateway()
        try:
            yield stormed(Storm(system, attacker))
        finally:
            system.stop_all()
        assert_no_key(system.keys, system.folder)


def stormed(storm: Storm) -> Storm:
    """Make all orders, and gather what is known of them."""
    system = storm.system
    limits = {"requests_per_minute": 100_000, "images_per_minute": 100_000}
    storm.org_id, key = system.customer("attacked", "1000.00", **limits)
    storm.good_org_id, good_key = system.customer("beside it", "5000.00", **limits)
    models = itertools.cycle((FLUX, GPT))

    async def rounds(count: int) -> None:
        free = asyncio.Semaphore(AT_ONCE)
        async with system.client(key) as client, system.client(good_key) as good_client:
            for one in (client, good_client):
                one.headers["connection"] = "close"  # so that what the gateway holds in the end is not for us

            async def attacked(attack: Attack) -> None:
                for _ in range(count):
                    async with free:
                        reply = await ordered(client, attack.model, attack.name, attack.n)
                        storm.replies.setdefault(attack.name, []).append(reply)
                        storm.good_replies.append(await ordered(good_client, next(models), HONEST))

            # Attacks that last until the deadline begin first; the others run at the same time.
            await asyncio.gather(*map(attacked, sorted(ATTACKS, key=lambda attack: LATE not in attack.failures)))

    storm.descriptors_before = descriptors(storm.pid)
    run(rounds(1))
    storm.resident_bytes_before = resident_bytes(storm.pid, "VmRSS")
    Path(f"/proc/{storm.pid}/clear_refs").write_text("5")
    run(rounds(ROUNDS))
    storm.peak_bytes = resident_bytes(storm.pid, "VmHWM")
    replies = [reply for replies in storm.replies.values() for reply in replies]
    storm.events = events_of(system, storm.org_id, replies)
    storm.good_events = events_of(system, storm.good_org_id, storm.good_replies)
    for line in map(json.loads, system.log().splitlines()):
        if line.get("event") == "upstream_failure":
            storm.failures.setdefault(UUID(line["request_id"]), []).append(line["failure"])
    return storm


def test_no_two_attacks_have_one_name() -> None:
    """They are told apart by it, and at least 20 are on the image's host and 10 in the reply."""
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
    assert Counter(attack.model for attack in ATTACKS).keys() == {FLUX, GPT}
    assert min(sum(attack.model == model for attack in ATTACKS) for model in (FLUX, GPT)) >= 20


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_an_attack_publishes_and_charges_nothing_but_the_image(storm: Storm, attack: Attack) -> None:
    """A row of the table of errors and a void with its reason, each time; or the genuine pictures, whole."""
    replies = storm.replies[attack.name]
    assert len(replies) == 1 + ROUNDS
    for reply in replies:
        event, failures = storm.events[id_of(reply)], storm.failures.get(id_of(reply), [])
        assert WORDS not in f"{reply.text} {reply.headers}"
        assert all(failure.startswith(attack.failures) for failure in failures), failures
        if attack.delivered:
            assert reply.status_code == 200, reply.text
            assert [published(storm, item["url"]) for item in reply.json()["data"]] == list(attack.delivered)
            assert (event.end, event.quantity) == ("charge", len(attack.delivered))
            continue
        row = Outcome[event.reason.upper()].value
        assert event.end == "void" and event.reason in {failure.split()[0] for failure in failures}
        assert_error(reply, row.error.value.status, row.error.value.code, retry=not row.accepted)
        assert (event.quantity, event.amount_micro_mxn, event.images) == (0, 0, ())


def test_good_orders_beside_it_are_all_delivered(storm: Storm) -> None:
    """None is refused, late, or given another one's picture; each is charged once."""
    assert Counter(reply.status_code for reply in storm.good_replies) == {200: (1 + ROUNDS) * len(ATTACKS)}
    for reply in storm.good_replies:
        (item,) = reply.json()["data"]
        assert published(storm, item["url"]) == PNG
    assert {(event.end, event.quantity) for event in storm.good_events.values()} == {("charge", 1)}


def test_the_balance_is_what_the_delivered_images_cost(storm: Storm) -> None:
    """Nothing is charged for an attack, nothing is held for one any more, and the books agree."""
    charged = sum(event.amount_micro_mxn for event in storm.events.values())
    delivered = sum(len(attack.delivered) for attack in ATTACKS) * (1 + ROUNDS)
    assert sum(event.quantity for event in storm.events.values()) == delivered
    wait_until(lambda: storm.system.cut(storm.org_id).held_micro_mxn == 0, "nothing is held any more")
    assert storm.system.cut(storm.org_id).available_micro_mxn == CREDIT_MICRO_MXN - charged
    assert json.loads(storm.system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}


def test_the_store_holds_the_delivered_images_and_nothing_else(storm: Storm) -> None:
    """Not a file more, unpublished ones included."""
    events = [*storm.events.values(), *storm.good_events.values()]
    assert storm.system.images() == {image.path for event in events for image in event.images}


def test_what_it_said_stands_nowhere(storm: Storm) -> None:
    """Not in a log, the ledger, Redis or the store; nor do the providers' keys."""
    needles = [text.encode() for text in (WORDS, FAL_KEY, OPENAI_KEY)]
    for path in storm.system.folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(needle in content for needle in needles), path


def test_no_image_host_is_sent_a_credential(storm: Storm) -> None:
    """Four headers and no more. The cookies that every answer sets never come back, and a key goes to its own only."""
    names = set()
    for request in storm.upstream.fetches:
        names |= {line.partition(b":")[0].lower() for line in request.split(b"\r\n")[1:] if line}
        assert b"key" not in request.lower()
    assert names <= {b"host", b"accept", b"accept-encoding", b"user-agent", b"connection"}
    assert storm.upstream.calls and all(b"\r\ncookie:" not in request.lower() for request in storm.upstream.calls)
    for request in storm.upstream.calls:
        assert (FAL_KEY.encode() in request) == (b"/fal/" in request.split(b"\r\n")[0])
        assert (OPENAI_KEY.encode() in request) == (b"/openai/" in request.split(b"\r\n")[0])


def test_no_other_address_is_called(storm: Storm) -> None:
    """Neither by a redirect, nor by a URL in a reply, nor with a key."""
    assert storm.upstream.inside == []


def test_no_image_is_read_beyond_the_largest(storm: Storm) -> None:
    """An endless one is left at the cap: what was sent is that and what lay in the sockets."""
    sent = {attack.name: storm.upstream.max_sent_bytes[attack.name] for attack in ATTACKS if attack.reply is None}
    assert max(sent.values()) < MAX_IMAGE_BYTES + UNDER_WAY_BYTES, sent


def test_memory_sockets_and_files_are_where_they_were(storm: Storm) -> None:
    """The same descriptors of each kind, but for connections to Redis that were first needed; the spool is empty."""
    wait_until(lambda: storm.upstream.connections == 0, "no connection is kept")
    more_bytes = resident_bytes(storm.pid, "VmRSS") - storm.resident_bytes_before
    peak_bytes = storm.peak_bytes - storm.resident_bytes_before
    print(
        f"{more_bytes / MIB:.1f} MiB more than {storm.resident_bytes_before / MIB:.0f}, {peak_bytes / MIB:.1f} at most"
    )
    assert more_bytes < MAX_GROWN_BYTES and peak_bytes < AT_ONCE * MAX_PER_IMAGE_BYTES

    def as_before() -> bool:
        more, gone = descriptors(storm.pid), storm.descriptors_before
        more, gone = more - gone, gone - more
        return not gone and set(more) <= {"socket:"} and more.total() <= BACKGROUND_CONNECTIONS

    wait_until(as_before, f"again {storm.descriptors_before}")
    assert list((storm.system.folder / "spool").iterdir()) == []
    gauges = metrics(storm.system)
    assert (gauges["ghub_spool_bytes"], gauges["ghub_generations_in_flight"]) == (0, 0)


async def ordered(client: httpx2.AsyncClient, model: str, prompt: str, n: int = 1) -> httpx2.Response:
    """One order. A machine so busy that Redis is not heard in time makes a 503: asked again, as the SDKs do."""
    for _ in range(5):
        reply = await client.post("/images/generations", json={"model": model, "prompt": prompt, "n": n})
        if reply.status_code != 503:
            break
    return reply


def id_of(reply: httpx2.Response) -> UUID:
    """The request's."""
    return UUID(reply.headers["x-request-id"].removeprefix("req_"))


def events_of(system: System, org_id: str, replies: list[httpx2.Response]) -> dict[UUID, Event]:
    """The event of each of these orders, once the ledger has them all."""
    wanted = {id_of(reply) for reply in replies}
    found: dict[UUID, Event] = {}

    async def read(back: Backends) -> None:
        found.update({UUID(event.event_id): event async for event in back.ledger.events(org_id=org_id)})

    def all_there() -> bool:
        system.back(read)
        return wanted <= found.keys()

    wait_until(all_there, "every order has its event")
    return {order_id: found[order_id] for order_id in wanted}


def published(storm: Storm, url: str) -> bytes:
    """Read the store's object at a URL that a customer was given."""
    path = url.removeprefix(f"http://127.0.0.1:{storm.system.port}{STORAGE_PATH}/")
    return (storm.system.folder / "images" / path).read_bytes()


def descriptors(pid: int) -> Counter[str]:
    """A process's open files, by their path or their kind."""
    found: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found[re.sub(r"\[?[0-9]+\]?$", "", str(link.readlink()))] += 1
        except FileNotFoundError:
            continue  # closed meanwhile
    return found


def metrics(system: System) -> dict[str, float]:
    """The gateway's numbers that have no labels."""
    text = httpx2.get(f"http://127.0.0.1:{system.environment['GHUB_METRICS_PORT']}/metrics", **LOOPBACK).text
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}
