"""A process is killed, or frozen, right before and right after each step of the money's way: nobody pays wrongly.

Each case is a whole system of its own; they run beside each other. `make test` takes a third of the table. All of it:

    LONG=1 python -m pytest tests/e2e/test_steps.py
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from config.settings import hold_life_s
from metering.consumer import IDLE_MS, SWEEP_S
from metering.events import Event
from metering.wallet import keys
from metering.wallet.connection import WalletAway
from metering.wallet.projection import FENCE_S
from metering.wallet.values import WalletSnapshot
from proxy.backends import Backends
from tests.conftest import LOOPBACK
from tests.kits.processes import Forked
from tests.kits.steps import Stop, arm
from tests.kits.system import FLUX, System, assert_no_key, bearer, prepare, wait_until
from tests.long import LONG

AT_ONCE = 10
SHORT_S = 0.3
CREDIT, UNIT = 50_000_000, 840_000
ORDER = {"model": FLUX, "prompt": "un faro"}
WAIT_S = 60.0
"""For what takes a hold's life, on a machine that is busy with other cases."""


@dataclass(frozen=True)
class Case:
    """`how`: killed, frozen for a moment, or frozen for longer than anybody waits for it."""

    step: str
    when: str
    how: str

    @property
    def deadline_s(self) -> float:
        """Deadline: short if a hold must expire, and long enough for a busy machine to bring an order to its step."""
        return 5.0 if self.step in OF_AN_ORDER and self.how != "frozen" else 30.0

    def __str__(self) -> str:
        return f"{self.how}-{self.when}-{self.step}"


OF_AN_ORDER = ("admit", "submit", "publish", "settle", "sync", "reply")
OF_THE_CONSUMER = ("insert", "commit", "acknowledge")
OF_A_REBUILD = ("rebuild", "replace")
HOWS = ("killed", "frozen", "frozen long")
TABLE = [
    Case(step, when, how)
    for step in (*OF_AN_ORDER, *OF_THE_CONSUMER, "credit", *OF_A_REBUILD)
    for when in ("before", "after")
    for how in HOWS
]
CASES = TABLE if LONG else [case for place, case in enumerate(TABLE) if place % 19 == 3]


class Stage(System):
    """A system whose processes may stop themselves."""

    stop_at: dict[str, Stop]

    def start(self, name: str, *arguments: str, **more: str) -> None:
        stop = self.stop_at.get(name)
        log, before = self.folder / f"{name}.log", partial(arm, stop) if stop else None
        self.processes[name] = Forked(arguments, {**os.environ, **self.environment, **more}, log, log, before)

    # --- what a case does ---

    def arm(self, name: str, case: Case) -> Stop:
        """The next process of this name stops itself."""
        number = signal.SIGKILL if case.how == "killed" else signal.SIGSTOP
        self.stop_at[name] = Stop(case.step, case.when, number, str(self.folder / "here"))
        return self.stop_at[name]

    def reach(self, name: str, case: Case, long_s: float) -> None:
        """Wait until it has stopped itself; a frozen one goes on after a while, a killed one is gone."""
        stop = self.stop_at.pop(name)
        wait_until(Path(stop.file).exists, f"{name} came to {case}", within_s=WAIT_S)
        if case.how == "killed":
            assert self.processes.pop(name).wait() == -signal.SIGKILL
        else:
            time.sleep(SHORT_S if case.how == "frozen" else long_s)
            self.processes[name].send_signal(signal.SIGCONT)

    def post(self, **headers: str) -> httpx2.Response | None:
        """Place an order of one picture; None if its connection was cut."""
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            url = f"{self.url}/images/generations"
            return httpx2.post(url, headers=bearer(self.key) | headers, json=ORDER, timeout=90, **LOOPBACK)
        except httpx2.TransportError:
            return None

    def customer_with_credit(self) -> None:
        self.org_id, self.key = self.customer("steps", "50.00")
        self.names = keys.OrgKeys(self.org_id)

    def booked(self) -> list[Event]:
        async def read(back: Backends) -> list[Event]:
            return [event async for event in back.ledger.events(org_id=self.org_id)]

        return self.back(read)

    def cut_now(self) -> WalletSnapshot | None:
        """Read the wallet; None while it is rebuilt."""
        with suppress(WalletAway):
            return self.cut(self.org_id)
        return None

    def patient_cut(self) -> WalletSnapshot:
        """Read the wallet patiently: a thawed consumer finds its entries gone, and so causes a rebuild."""
        cuts: list[WalletSnapshot] = []

        def there() -> bool:
            cuts.extend(filter(None, [self.cut_now()]))
            return bool(cuts)

        wait_until(there, "the wallet is there")
        return cuts[0]

    def settled(self) -> bool:
        """No order is open, and the ledger has the end of each; nothing is left in the stream."""
        with closing(Redis.from_url(self.valkey.url)) as redis:
            left = redis.zcard(self.names.open) + redis.xlen(self.names.events)
        cut = self.cut_now()
        return left == 0 and cut is not None and cut.number == len(self.booked())

    def ordered(self) -> list[httpx2.Response]:
        """Place the order like a customer, again while the answer is 503; returns all the answers."""
        replies: list[httpx2.Response] = []

        def taken() -> bool:
            reply = self.post()
            assert reply is not None
            replies.append(reply)
            return reply.status_code != 503

        wait_until(taken, "an order is taken", within_s=WAIT_S)
        return replies

    def fetched(self, path: str) -> dict[str, Any]:
        """Fetch an order as its owner."""
        reply = httpx2.get(f"{self.url}/images/generations{path}", headers=bearer(self.key), **LOOPBACK)
        found: dict[str, Any] = reply.json()
        return found

    def judge(self, charges: int, credit: int = CREDIT) -> list[Event]:
        """Every figure, once all is quiet: so many charges, each with its image, and the books are right."""
        wait_until(self.settled, "every order's end is in the ledger, and the stream is empty", within_s=WAIT_S)
        events = self.booked()
        charged = [event for event in events if event.end == "charge"]
        assert len(charged) == charges and {event.amount_micro_mxn for event in charged} <= {UNIT}
        assert len({(event.event_id, event.end) for event in events}) == len(events)
        cut = self.patient_cut()
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (credit - charges * UNIT, 0)
        assert {image.path for event in charged for image in event.images} <= self.images()
        return events

    def verified(self) -> None:
        """Verify until the end: a wallet is a difference while it is rebuilt."""
        wait_until(lambda: self.ghub("verify", "--json").returncode == 0, "the books are right", within_s=WAIT_S)


def an_order(stage: Stage, case: Case, pool: ThreadPoolExecutor) -> None:
    """The client's view is true: 200 is one charge; anything else is none, or one that its key leads to."""
    stage.arm("gateway", case)
    stage.start_all()
    stage.customer_with_credit()
    asked = pool.submit(stage.post, idempotency_key="k")
    stage.reach("gateway", case, long_s=hold_life_s(case.deadline_s) + 1.0)
    if case.how == "killed":
        stage.start_gateway()
    reply = asked.result()
    wait_until(stage.settled, "every order's end is in the ledger, and the stream is empty", within_s=WAIT_S)
    charged = [event for event in stage.booked() if event.end == "charge"]
    if reply is not None and reply.status_code == 200:
        (event,) = charged
        assert reply.json()["id"] == f"req_{event.event_id.replace('-', '')}"
    if case.how != "frozen":
        settled = case in TABLE[TABLE.index(Case("settle", "after", "killed")) :]
        assert len(charged) == settled
    stage.judge(len(charged))
    for event in charged:
        for path in ("?idempotency_key=k", f"/req_{event.event_id.replace('-', '')}"):
            found = stage.fetched(path)
            assert found["status"] == "completed" and found["data"][0]["url"].endswith(event.images[0].path)
    again = stage.post(idempotency_key="k")
    assert again is not None
    assert again.headers.get("idempotent-replayed") == ("true" if charged else None)
    stage.judge(int(again.status_code == 200))
    stage.verified()


def a_booking(stage: Stage, case: Case, pool: ThreadPoolExecutor) -> None:
    """An order that is answered is in the ledger once, whichever of two consumers dies or freezes over it."""
    stage.start_all()
    stage.stop("consumer", signal.SIGKILL)
    stage.customer_with_credit()
    stage.arm("doomed", case)
    reply = stage.post(idempotency_key="k")
    assert reply is not None and reply.status_code == 200
    stage.start("doomed", "consume")
    wait_until(Path(stage.stop_at["doomed"].file).exists, "the consumer came to its step", within_s=WAIT_S)
    stage.start("consumer", "consume")
    stage.reach("doomed", case, long_s=IDLE_MS / 1000 + SWEEP_S + 1)
    (event,) = stage.judge(1)
    assert reply.json()["id"] == f"req_{event.event_id.replace('-', '')}"
    stage.verified()


def a_credit(stage: Stage, case: Case, pool: ThreadPoolExecutor) -> None:
    """A credit is in the wallet when it is in SQL, whatever became of the command; said again, it counts once."""
    stage.start_all()
    stage.customer_with_credit()
    stage.arm("credit", case)
    line = ("credit", "add", stage.org_id, "--mxn", "10", "--type", "recharge", "--id", "p2")
    stage.start("credit", *line)
    stage.reach("credit", case, long_s=7.0)
    if case.how != "killed":
        assert stage.processes.pop("credit").wait() == 0
    committed = case.when == "after" or case.how != "killed"
    wanted = CREDIT + 10_000_000 * committed
    wait_until(lambda: stage.cut(stage.org_id).available_micro_mxn == wanted, "the wallet has what SQL has")
    assert stage.ghub(*line).returncode == 0
    stage.judge(0, credit=CREDIT + 10_000_000)
    stage.verified()


def a_rebuild(stage: Stage, case: Case, pool: ThreadPoolExecutor) -> None:
    """Orders go on around a rebuild that dies or freezes: 503 for a while, and no balance is ever wrong."""
    stage.start_all()
    stage.customer_with_credit()
    replies = stage.ordered()
    stage.behave(FLUX, "slow", seconds=0.5)
    made = len(stage.jobs(FLUX))
    meanwhile = pool.submit(stage.post)
    wait_until(lambda: len(stage.jobs(FLUX)) > made or meanwhile.done(), "an order is being made")
    here = Path(stage.arm("rebuild", case).file)
    stage.start("rebuild", "wallet", "rebuild", stage.org_id)

    def begun() -> bool:
        """Start a rebuild. If a gateway was first, the command is given once more."""
        if not here.exists() and stage.processes["rebuild"].poll() == 0:
            stage.start("rebuild", "wallet", "rebuild", stage.org_id)
        return here.exists()

    wait_until(begun, f"the command came to {case}", within_s=WAIT_S)
    stage.reach("rebuild", case, long_s=FENCE_S + 2.0)
    replies += [*filter(None, [meanwhile.result()]), *stage.ordered()]
    if case.how != "killed":
        assert stage.processes.pop("rebuild").wait() == 0
        replies += stage.ordered()
    assert {reply.status_code for reply in replies} <= {200, 503, 504}
    wait_until(stage.settled, "every order's end is in the ledger, and the stream is empty", within_s=WAIT_S)
    found = [stage.fetched(f"/{reply.headers['x-request-id']}").get("status") for reply in replies]
    assert {status for reply, status in zip(replies, found, strict=True) if reply.status_code == 200} <= {"completed"}
    stage.judge(found.count("completed"))
    stage.verified()


def stage_for(case: Case, pool: ThreadPoolExecutor) -> None:
    """One case from its beginning to its end."""
    play = {**dict.fromkeys(OF_AN_ORDER, an_order), **dict.fromkeys(OF_THE_CONSUMER, a_booking), "credit": a_credit}
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        made = prepare(Path(folder), GHUB_DEADLINE_S=str(case.deadline_s))
        stage = Stage(**{field.name: getattr(made, field.name) for field in fields(made)})
        stage.stop_at = {}
        try:
            play.get(case.step, a_rebuild)(stage, case, pool)
        except BaseException:
            if keep := os.environ.get("KEEP_STEPS"):
                Path(keep).mkdir(exist_ok=True)
                for log in stage.folder.glob("*.log"):
                    (Path(keep) / f"{case}-{log.name}".replace(" ", "-")).write_text(log.read_text())
            raise
        finally:
            stage.stop_all()
        assert_no_key(stage.keys, stage.folder)


@pytest.fixture(scope="module")
def played(request: pytest.FixtureRequest) -> Iterator[dict[Case, Future[None]]]:
    """All cases that are asked for, some of them at a time."""
    names = {item.name for item in request.session.items}
    wanted = [case for case in CASES if f"{test_whatever_dies_or_freezes.__name__}[{case}]" in names]
    with ThreadPoolExecutor(AT_ONCE) as stages, ThreadPoolExecutor(AT_ONCE) as clients:
        yield {case: stages.submit(stage_for, case, clients) for case in wanted}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_whatever_dies_or_freezes(case: Case, played: dict[Case, Future[Any]]) -> None:
    """Every 200 is one charge with its image; every charge is found by its key; the books are right in the end."""
    played[case].result()
