"""The wallet against a plain model of it: whatever is done in whatever order, every figure and event agrees."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from metering.consumer import Consumer
from metering.wallet import keys
from metering.wallet.connection import load_script
from metering.wallet.wallet import Caller, Close, Verdict
from tests.integration.money_kit import LIMITS, NOW_US, SECOND_US, UNIT, Books, drain, open_books, pictures, pinned

HISTORIES = settings(
    max_examples=200,
    stateful_step_count=30,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
REQUESTS = [f"r{i}" for i in range(12)]


@dataclass
class Model:
    """What a wallet is: money by place, and each order's end."""

    now_us: int = NOW_US
    busy_until_us: int = 0
    credits: int = 0
    charged: int = 0
    open: dict[str, tuple[int, int]] = field(default_factory=dict)
    ends: dict[str, tuple[str, int]] = field(default_factory=dict)
    unwritten: set[str] = field(default_factory=set)

    @property
    def held(self) -> int:
        return sum(images for images, _ in self.open.values()) * UNIT

    @property
    def available(self) -> int:
        return self.credits - self.charged - self.held

    def pass_time(self, now_us: int) -> None:
        """What runs out counts nowhere from that moment on, though its end may be written later."""
        self.now_us = now_us
        for request, (_, expires_us) in list(self.open.items()):
            if expires_us <= now_us:
                del self.open[request]
                self.unwritten.add(request)

    def write_expiries(self) -> None:
        for request in self.unwritten:
            self.ends[request] = ("expiry", 0)
        self.unwritten.clear()


class WalletMachine(RuleBasedStateMachine):
    """One organisation under admissions, ends, credits, passing time and lost marks."""

    runner: asyncio.Runner
    open_new: Callable[[], Coroutine[Any, Any, Books]]
    books: Books
    consumer: Consumer
    examples = 0

    def do(self, work: Any) -> Any:
        return self.runner.run(work)

    @initialize(credit=st.integers(1, 20))
    def begin(self, credit: int) -> None:
        kind = type(self)
        if kind.examples % 10 == 0:
            kind.books = self.do(self.open_new())
            self.do(self.books.redis.flushall())
            self.do(self.books.projector.round())
            kind.consumer = self.books.consumer()
        kind.examples += 1
        self.model = Model()
        self.credit_number = 0
        self.books.wallet.at(NOW_US)
        name = f"org-{kind.examples}"
        self.caller: Caller = self.do(self.books.org(name, "0.00"))
        self.prefix = f"{name}-"
        self.credit(credit)

    @rule(images=st.integers(-3, 10))
    def credit(self, images: int) -> None:
        self.credit_number += 1
        amount = images * UNIT or 1
        kind = "adjustment" if amount < 0 else "recharge"
        self.do(self.books.accounts.add_credit(self.caller.org_id, f"{self.prefix}{self.credit_number}", kind, amount))
        self.model.credits += amount

    @rule(request=st.sampled_from(REQUESTS), images=st.integers(1, 8), life_s=st.integers(1, 60))
    def admit(self, request: str, images: int, life_s: int) -> None:
        model = self.model
        if request in model.open or request in model.ends or request in model.unwritten:
            return
        answer = self.do(self.books.admit(self.caller, self.prefix + request, pinned(images), life_s=life_s))
        if images * UNIT > model.available:
            assert answer.verdict is Verdict.BALANCE
        else:
            assert answer.verdict is Verdict.ADMITTED
            model.write_expiries()
            expires_us = model.now_us + life_s * SECOND_US
            model.open[request] = (images, expires_us)
            model.busy_until_us = max(model.busy_until_us, expires_us)
        assert answer.available_micro_mxn == model.available

    @rule(request=st.sampled_from(REQUESTS), images=st.integers(1, 8), in_time=st.sampled_from([True, True, False]))
    def settle(self, request: str, images: int, in_time: bool) -> None:
        model = self.model
        images = min(images, model.open.get(request, (8, 0))[0])
        latest_us = model.now_us if in_time else model.now_us - 1
        closing = self.do(
            self.books.wallet.settle(
                self.caller.org_id,
                self.prefix + request,
                images * UNIT,
                pictures(images),
                latest_us=latest_us,
            )
        )
        if request in model.ends:
            wanted = Close.CHARGED if model.ends[request][0] == "charge" else Close.REFUSED
        elif not in_time:
            wanted = Close.LATE
        elif request in model.open:
            wanted = Close.CHARGED
            del model.open[request]
            model.ends[request] = ("charge", images * UNIT)
            model.charged += images * UNIT
        else:
            wanted = Close.REFUSED
        assert (closing.close, closing.available_micro_mxn) == (wanted, model.available)

    @rule(request=st.sampled_from(REQUESTS))
    def void(self, request: str) -> None:
        model = self.model
        closing = self.do(self.books.wallet.void(self.caller.org_id, self.prefix + request, "model"))
        if request in model.ends:
            wanted = Close.CHARGED if model.ends[request][0] == "charge" else Close.VOIDED
        elif request in model.open or request in model.unwritten:
            wanted = Close.VOIDED
            model.open.pop(request, None)
            model.unwritten.discard(request)
            model.ends[request] = ("void", 0)
        else:
            wanted = Close.UNKNOWN
        assert (closing.close, closing.available_micro_mxn) == (wanted, model.available)

    @rule(seconds=st.integers(1, 30))
    def pass_time(self, seconds: int) -> None:
        self.model.pass_time(self.model.now_us + seconds * SECOND_US)
        self.books.wallet.at(self.model.now_us)

    @rule()
    def sweep(self) -> None:
        names = keys.OrgKeys(self.caller.org_id)
        script = load_script(self.books.redis, "expire_v1")
        self.do(script(keys=[names.mark, names.busy], args=[self.model.now_us, 1000, LIMITS.remember_s]))
        if self.model.busy_until_us <= self.model.now_us:
            self.model.write_expiries()

    @rule()
    def rebuild(self) -> None:
        self.do(self.books.redis.delete(keys.OrgKeys(self.caller.org_id).mark))
        self.do(drain(self.books, self.consumer))
        self.do(self.books.projector.round())

    @invariant()
    def every_figure_agrees(self) -> None:
        if not hasattr(self, "caller"):
            return
        cut, model = self.do(self.books.cut(self.caller)), self.model
        assert (cut.available_micro_mxn, cut.held_micro_mxn) == (model.available, model.held)
        assert (cut.charged_micro_mxn, cut.credits_micro_mxn) == (model.charged, model.credits)
        assert (cut.credit_number, cut.number) == (self.credit_number, len(model.ends))

    def teardown(self) -> None:
        if hasattr(self, "caller"):
            self.do(drain(self.books, self.consumer))
            assert self.do(self.ended()) == self.model.ends

    async def ended(self) -> dict[str, tuple[str, int]]:
        events = [event async for event in self.books.ledger.events(org_id=self.caller.org_id)]
        assert sorted(event.number for event in events) == list(range(1, len(events) + 1))
        return {event.event_id.removeprefix(self.prefix): (event.end, event.amount_micro_mxn) for event in events}


def test_the_wallet_is_its_model(redis_url: str, tmp_path: Path) -> None:
    """200 histories of up to 30 steps: verdicts, balances, ends and the ledger agree at every step (rules 4, 7, 9)."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()

        async def open_new() -> Books:
            """A rebuild looks at every organisation, so each few histories begin with empty books."""
            await stack.aclose()
            path = tmp_path / f"{WalletMachine.examples}.db"
            return await stack.enter_async_context(open_books(redis_url, path))

        WalletMachine.runner, WalletMachine.open_new, WalletMachine.examples = runner, staticmethod(open_new), 0
        try:
            run_state_machine_as_test(WalletMachine, settings=HISTORIES)
        finally:
            runner.run(stack.aclose())
        assert WalletMachine.examples >= 200
