"""What must be true when all is repaired and quiet: the clients' own log against ledger, store, wallets and upstreams.

Every finding is a sentence. The numbers of the rules are those of the issue: (a) to (h).
"""

import asyncio
import hashlib
import json
import signal
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import httpx2

from metering.clock import utc_now
from metering.events import Event
from metering.money import format_mxn, parse_mxn
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.values import WalletSnapshot
from proxy.backends import Backends
from proxy.errors import Kind
from proxy.storage.opening import open_store
from proxy.storage.sweep import Finding, Sweep
from tests.chaos import long_orders
from tests.chaos.clients import Call
from tests.chaos.log import Log, made, uuid_of
from tests.chaos.world import CONSUMERS, CREDIT_MXN, GATEWAYS, Customer, World
from tests.conftest import LOOPBACK

SETTLES_S = 45.0
"""A dead consumer's events are taken over after 10 s, and a lost charge is brought back after 10 s."""

CLOCKS_US = 100_000
"""By how much two looks at one machine's clock may differ here."""

MAX_CHARACTERS = 2_000
"""Of a line of a log that is told."""

MAX_LISTED = 12
"""Findings of one sort that are told one by one."""

CHARGED = Kind.CHARGED.value.code
"""Code of the error for a charged order."""

NOT_BOUGHT = (401, 402, 404, 422, 429, 503)
"""Answers to requests that went no further than the admission."""


@dataclass
class Report:
    """Findings of the judge, and figures that are not findings."""

    findings: list[str] = field(default_factory=list)
    figures: Counter[str] = field(default_factory=Counter)

    def find(self, findings: Iterable[str]) -> None:
        """Take them down, the first ones by name."""
        found = list(findings)
        self.findings += found[:MAX_LISTED]
        if len(found) > MAX_LISTED:
            self.findings.append(f"… and {len(found) - MAX_LISTED} more of this sort")


async def judge(world: World, calls: list[Call], settles_s: float = SETTLES_S) -> Report:
    """All of it. The world must be healed, and no client may be at work."""
    report = Report()
    await _quiet(world, report, settles_s)
    log = Log(calls, await world.back(_events))
    cuts = await world.back(lambda back: _cuts(back, world.customers))
    report.figures.update(
        {
            "requests": sum(1 for _ in log.attempts()),
            "answered 200": sum(attempt.status == 200 for _, attempt in log.attempts()),
            "of them replayed": sum(attempt.replayed for _, attempt in log.attempts()),
            "without an answer": sum(attempt.status is None for _, attempt in log.attempts()),
            "charges": len(log.charges),
            "voids": sum(event.end == "void" for event in log.events),
            "expiries": sum(event.end == "expiry" for event in log.events),
        }
    )
    report.find(_faults(world))
    report.find(_revoked(log))
    report.find(_answered(log, world.lost_orders, await _lost(world), report.figures))
    report.find(await _stored(world, log, report.figures))
    report.find(_charged_for_a_reason(log, report.figures))
    report.find(_keys(log, report.figures))
    report.find(_sdks(log, world.wiped_us, report.figures))
    report.find(await long_orders.ends(world, log, report.figures))
    report.find(long_orders.made_once(world, log, await world.jobs()))
    report.find(world.receivers.wrong)
    report.find(long_orders.webhooks(world, log, report.figures))
    report.find(await _bought(world, log, report.figures))
    report.find(_balances(log, world.customers, cuts))
    report.find(await _shown(world, cuts))
    await _books(world, log, report)
    return report


async def _quiet(world: World, report: Report, settles_s: float) -> None:
    """(g) Holds end, (h) events are booked and journals replayed; each within its time."""

    async def no_holds() -> bool:
        cuts = await world.back(lambda back: _cuts(back, world.customers))
        return not any(cut.held_micro_mxn for cut in cuts.values())

    async def no_orders() -> bool:
        return await world.open_orders() == 0

    async def no_events() -> bool:
        return await asyncio.to_thread(world.streams) == 0

    async def no_webhooks() -> bool:
        lag = await world.back(lambda back: back.ledger.webhook_lag(utc_now(), utc_now()))
        return bool(lag.waiting == 0)

    async def no_journals() -> bool:
        return len(await world.back(lambda back: back.ledger.open_incarnations())) <= len(GATEWAYS)

    for what, true, within_s in (
        ("every hold has ended", no_holds, world.long_hold_life_s + 8),
        ("every order that was answered is charged", no_orders, settles_s),
        ("every event is booked", no_events, settles_s),
        ("every webhook is sent", no_webhooks, settles_s),
        ("every dead gateway's journal is closed", no_journals, settles_s),
    ):
        try:
            await world.until(true, what, within_s)
        except TimeoutError:
            report.find([f"(g) after {within_s:g} s of peace it is not so that {what}"])


async def _events(back: Backends) -> list[Event]:
    return [event async for event in back.ledger.events()]


async def _cuts(back: Backends, customers: list[Customer]) -> dict[str, WalletSnapshot]:
    wallet = back.wallet()

    async def read(org_id: str) -> WalletSnapshot:
        for _ in range(100):
            with suppress(WalletAway):
                return await wallet.read(org_id)
            await asyncio.sleep(0.1)
        return await wallet.read(org_id)

    return {customer.org_id: await read(customer.org_id) for customer in customers}


def _faults(world: World) -> Iterator[str]:
    """(l) No process has met an error that nobody expected. Without the store, an answer with images is broken off."""
    for name in (*GATEWAYS, *CONSUMERS):
        for line in world.log(name).splitlines():
            fault = '"event":"fault' in line and '"exc_type":"StoreFailed"' not in line
            if fault or line.endswith("Traceback (most recent call last):"):
                yield f"(l) {name}: {line[:MAX_CHARACTERS]}"


def _revoked(log: Log) -> Iterator[str]:
    """(i) No order is taken by a key that was revoked."""
    for call, attempt in log.attempts():
        if call.customer.revoked and attempt.status == 200:
            yield f"(i) {attempt.result} was made for a key that was revoked"


async def _lost(world: World) -> Counter[str]:
    """Micro-MXN of charges that `verify` names as lost by a restore, by organisation."""
    done = await world.ghub("verify", "--json", "--no-images")
    names = {org.name: org.org_id for org in await world.back(lambda back: back.ledger.orgs())}
    lost: Counter[str] = Counter()
    for row in json.loads(done.stdout or '{"differences": []}')["differences"]:
        if row.get("kind") == "lost" and row["what"].startswith("charges"):
            lost[names.get(row["org"], row["org"])] += parse_mxn(row["found"])
    return lost


def _answered(log: Log, lost_orders: set[str], lost: Counter[str], figures: Counter[str]) -> Iterator[str]:
    """(a) Every 200 has exactly one charge, of the cost that it named.

    But for what went with a volume (`lost_orders`: they were in a journal there), and for what `verify` names as lost
    by a restore: exactly as much of each organisation.

    A Redis that was wiped has forgotten the keys of orders that only journals have. So a key may have been answered
    twice; it pays for one of its orders, and the other is at zero (rule 19).
    """
    for call, attempt in log.attempts():
        if attempt.status != 200:
            continue
        charges = log.by_id[uuid_of(attempt.result)]
        if not charges and len(log.order_of_key(call)) == 1:
            figures["200s to a key that pays for another order of its own"] += 1
            continue
        if not charges and uuid_of(attempt.result) in lost_orders:
            figures["200s whose charge went with a volume"] += 1
            continue
        cost_micro_mxn = parse_mxn(attempt.cost_mxn) if attempt.cost_mxn else 0
        if not charges and 0 < cost_micro_mxn <= lost[call.customer.org_id]:
            lost[call.customer.org_id] -= cost_micro_mxn
            figures["200s whose charge was lost by a restore, as verify says"] += 1
            continue
        if len(charges) != 1:
            yield f"(a) the 200 {attempt.result} to a {call.kind} client has {len(charges)} charges"
            continue
        (charge,) = charges
        cost = "0.00" if attempt.replayed else format_mxn(charge.amount_micro_mxn)
        if attempt.cost_mxn != cost or charge.opened.org_id != call.customer.org_id:
            yield f"(a) the 200 {attempt.result} said {attempt.cost_mxn} MXN, and its charge says {cost}"
        paths = [image.path for image in charge.images]
        if attempt.urls and [url.split("/", 8)[-1] for url in attempt.urls] != paths:
            yield f"(a) the 200 {attempt.result} showed {attempt.urls}, and charged are {paths}"


async def _stored(world: World, log: Log, figures: Counter[str]) -> list[str]:
    """(b) Every charge has its objects, byte for byte, and its owner gets them by its id; nobody else does."""
    customers = world.customers
    owners = {customer.org_id: customer for customer in customers}
    found: list[str] = []
    turns = asyncio.Semaphore(8)

    async def look(charge: Event, client: httpx2.AsyncClient) -> None:
        request = f"req_{UUID(charge.event_id).hex}"
        owner = owners[charge.opened.org_id]
        other = next(customer for customer in customers if customer is not owner and not customer.revoked)
        for image in charge.images:
            file = world.object(image.path)
            if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != image.sha256:
                found.append(f"(b) {image.path} is charged, and the store does not have it as it was")
        if owner.revoked:
            return
        async with turns:
            url = f"{world.url}/images/generations/{request}"
            told = await world.get(client, url, owner)
            refused = await world.get(client, url, other)
        paths = [row.get("url", "").split("/", 8)[-1] for row in told.json().get("data", [])]
        if told.status_code != 200 or paths != [image.path for image in charge.images]:
            found.append(f"(b) {request} is charged, and its owner asks for it and gets {told.status_code} {paths}")
        if refused.json().get("data"):
            found.append(f"(b) {request} is given to another organisation")
        figures["orders of which another organisation is told that they exist"] += refused.status_code != 404

    async with httpx2.AsyncClient(**LOOPBACK, timeout=30) as client:
        await asyncio.gather(*(look(charges[0], client) for charges in log.by_id.values() if charges))
    return found


def _charged_for_a_reason(log: Log, figures: Counter[str]) -> Iterator[str]:
    """(c) What no client knows of is charged only for requests that were never answered, each at most once."""
    known = {event_id for call in log.calls for event_id in log.charged_to(call)}
    answered = {uuid_of(attempt.result) for _, attempt in log.attempts() if attempt.result}
    figures["charged after an error, and retrievable"] = len(known - answered)
    unanswered: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for call in log.calls:
        lost = [attempt.sent_us for attempt in call.attempts if attempt.status is None and not attempt.request]
        if call.key:
            continue  # its charges are known by their key
        unanswered[call.customer.org_id, call.model, call.size, call.n] += lost
    charged: dict[tuple[object, ...], list[Event]] = defaultdict(list)
    for charge in log.charges:
        if charge.event_id not in known:
            opened = charge.opened
            charged[opened.org_id, opened.model, opened.size, opened.images].append(charge)
    figures["charged for a request without an answer"] = sum(map(len, charged.values()))
    for sort, charges in charged.items():
        sent = sorted(unanswered[sort])
        for place, charge in enumerate(sorted(charges, key=lambda charge: charge.admitted_us)):
            before = sum(at <= charge.admitted_us + CLOCKS_US for at in sent)
            if before <= place:
                yield (
                    f"(c) {charge.event_id} is charged to {sort}, and only {before} requests like it had been sent"
                    f" and not answered, where {place + 1} are charged"
                )


def _keys(log: Log, figures: Counter[str]) -> Iterator[str]:
    """(d) One charge and one answer for an idempotency key, unless a wiped Redis has forgotten the first."""
    for call in log.calls:
        if not call.key:
            continue
        if len(charged := log.charged_to(call)) > 1:
            yield f"(d) {call.key!r} is charged {len(charged)} times: {sorted(charged)}"
        results = {(attempt.result, attempt.urls) for attempt in call.attempts if attempt.status == 200}
        unpaid = {result for result, _ in results if not log.by_id[uuid_of(result)]}
        figures["keys that were answered with an order at zero beside the one that they pay for"] += bool(unpaid)
        if len(results) > 1 + len(unpaid):
            yield f"(d) {call.key!r} was answered with {len(results)} results: {sorted(results)}"


def _sdks(log: Log, wiped_us: list[int], figures: Counter[str]) -> Iterator[str]:
    """(e) The same order k times gives k results, and k calls pay for more than k only if answers were lost.

    An SDK's retry looks the same whether its first try was lost or refused. So if one was refused, two calls may share
    a result that one of them pays: that is counted. Two retries of the same count must never share one. A call that was
    told that it is charged gets an order by its retry, its own or an identical one's, unless Redis was wiped before.
    """
    twins: dict[tuple[str, str], list[Call]] = defaultdict(list)
    for call in log.calls:
        if call.kind == "sdk":
            twins[call.customer.org_id, call.prompt].append(call)
    for (_, prompt), calls in twins.items():
        told = any(attempt.code == CHARGED for call in calls for attempt in call.attempts)
        for group in [calls] if told else [[call] for call in calls]:
            charged = set().union(*(log.charged_to(call) for call in group))
            lost = sum(attempt.status is None for call in group for attempt in call.attempts)
            forgotten = sum(_forgotten(call, wiped_us) for call in group)
            figures["times that a charged order was forgotten with a wiped Redis"] += forgotten
            figures["retries of SDKs that were given an earlier order"] += sum(
                any(attempt.replayed for attempt in call.attempts) for call in group
            )
            if len(charged) > len(group) + lost + forgotten:
                yield f"(e) {len(group)} calls of an SDK pay for {sorted(charged)}, and lost {lost} answers"
        results = [attempt.result for call in calls for attempt in call.attempts if attempt.result]
        if len(set(results)) == len(results):
            continue
        claims = Counter((a.result, at) for call in calls for at, a in enumerate(call.attempts) if a.replayed)
        figures["calls of SDKs that share a result after one was refused or lost"] += len(results) - len(set(results))
        if all(len(call.attempts) == 1 for call in calls) or max(claims.values(), default=2) > 1:
            yield f"(e) {len(results)} calls for {prompt} were given {len(set(results))} results: {dict(claims)}"


def _forgotten(call: Call, wiped_us: list[int]) -> int:
    """How often it was told that it is charged, and Redis was wiped before its last try."""
    last_us = call.attempts[-1].sent_us
    told = [attempt.sent_us for attempt in call.attempts if attempt.code == CHARGED]
    return sum(any(sent_us < at_us < last_us for at_us in wiped_us) for sent_us in told)


async def _bought(world: World, log: Log, figures: Counter[str]) -> list[str]:
    """(f) The upstreams made whatever is charged, and nothing that no request asked for."""
    jobs = await world.jobs()
    billed = sum(job["images_billed"] for job in jobs)
    charged = sum(charges[0].quantity for charges in log.by_id.values() if charges)
    figures["generations upstream"], figures["images billed upstream"] = len(jobs), billed
    figures["images charged"] = charged
    found = [f"(f) {charged} images are charged, and the upstreams made {billed}"] if charged > billed else []
    allowed: Counter[str] = Counter()
    for call, attempt in log.attempts():
        bought = attempt.status not in NOT_BOUGHT or attempt.code == CHARGED
        allowed[call.prompt] += not attempt.replayed and bought
    for prompt, times in made(jobs).items():
        if times > allowed[prompt]:
            found.append(
                f"(f) {prompt} was made {times} times, for {allowed[prompt]} requests that may have been orders"
            )
    return found


def _balances(log: Log, customers: list[Customer], cuts: dict[str, WalletSnapshot]) -> Iterator[str]:
    """(g) credits − charges = available, and nothing is held."""
    for customer in customers:
        cut = cuts[customer.org_id]
        charged = sum(event.amount_micro_mxn for event in log.charges if event.opened.org_id == customer.org_id)
        if cut.held_micro_mxn:
            yield f"(g) {customer.org_id}: {format_mxn(cut.held_micro_mxn)} MXN are still held"
        if cut.available_micro_mxn != parse_mxn(CREDIT_MXN) - charged:
            expected, found = format_mxn(parse_mxn(CREDIT_MXN) - charged), format_mxn(cut.available_micro_mxn)
            yield f"(g) {customer.org_id}: {expected} MXN are left by the ledger, and the wallet says {found}"


async def _shown(world: World, cuts: dict[str, WalletSnapshot]) -> list[str]:
    """(g) What a gateway tells each customer is what the wallet says to us."""
    found: list[str] = []
    async with httpx2.AsyncClient(**LOOPBACK, timeout=30) as client:
        for customer in world.customers:
            if customer.revoked:
                continue
            told = (await world.get(client, f"{world.url}/credits", customer)).json()
            expected = {"available_mxn": format_mxn(cuts[customer.org_id].available_micro_mxn), "held_mxn": "0.00"}
            if not expected.items() <= told.items():
                found.append(f"(g) {customer.org_id} should be told {expected}, and is told {told}")
    return found


async def _books(world: World, log: Log, report: Report) -> None:
    """(h) `verify` is clean, before and after a sweep that touches no charged object; and no journal stays open."""
    charged = {image.path for event in log.charges for image in event.images}
    report.find(await _verified(world, "with the gateways alive"))
    dry = await world.ghub("storage", "sweep", "--older-than", "1", "--json")
    if dry.returncode:
        report.find([f"(h) `ghub storage sweep` ends with {dry.returncode}: {dry.stderr.strip()[-300:]}"])
    else:
        named = {row["path"] for row in json.loads(dry.stdout)["paths"]}
        report.find(f"(h) the sweep would delete {path}, which is charged" for path in named & charged)

    async def really(back: Backends) -> Counter[Finding]:
        async with open_store(back.settings) as opened:
            assert back.redis is not None
            sweep = Sweep(
                opened.store,
                back.ledger,
                back.wallet(),
                Presence(back.redis),
                now=utc_now() + timedelta(minutes=1),
                age=timedelta(0),
            )
            return Counter([one.finding async for one in sweep.run(delete=True)])

    # At an age that the command does not take: what is proven must be so at any.
    swept: Counter[Finding] = await world.back(really)
    report.figures["objects swept"] = sum(count for finding, count in swept.items() if finding.orphan)
    report.figures["objects whose order may still come"] = swept[Finding.UNPROVEN]
    report.find(
        f"(h) the sweep deleted {path}, which is charged" for path in charged if not world.object(path).is_file()
    )
    for name in GATEWAYS:
        await world.end(name, signal.SIGTERM)
    still_open = await world.back(lambda back: back.ledger.open_incarnations())
    report.find(f"(h) the journal {incarnation} is not closed" for incarnation in still_open)
    report.find(await _verified(world, "with the gateways ended"))


async def _verified(world: World, when: str) -> list[str]:
    done = await world.ghub("verify", "--json")
    if done.returncode == 0:
        return []
    try:
        rows = json.loads(done.stdout)["differences"]
    except json.JSONDecodeError:
        return [f"(h) verify {when} ends with {done.returncode}: {done.stderr.strip()[-300:]}"]
    differ = [row for row in rows if row.get("kind") != "lost"]
    return [f"(h) verify {when}: {row['org']} {row['what']}: {row['expected']}, found {row['found']}" for row in differ]
