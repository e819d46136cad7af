"""Spans without OpenTelemetry: what clients say, what is off, what is noted of an error."""

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metering.tracing import OFF, Kind, Parent, code_of, current, parent_of, propagated, read_traceparent, step, within
from metering.wallet.connection import WalletAway
from proxy.errors import ApiError
from proxy.errors import Kind as ErrorKind
from proxy.outcomes import Failure, Outcome

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{SPAN}-01"


class Recorded:
    """A span that remembers."""

    trace_id, traceparent = TRACE, GOOD
    recorded = True

    def __init__(self, name: str, below: "Recorded | None" = None) -> None:
        self.name, self.below = name, below
        self.facts: dict[str, Any] = {}
        self.children: list[Recorded] = []
        self.code: str | None = None
        self.ended = False

    def child(self, name: str, kind: Kind = Kind.INTERNAL) -> "Recorded":
        self.children.append(Recorded(name, self))
        return self.children[-1]

    def rename(self, name: str) -> None:
        self.name = name

    def set(self, name: str, value: str | int | float) -> None:
        self.facts[name] = value

    def fail(self, code: str) -> None:
        self.code = code

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (GOOD, Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"00-{TRACE}-{SPAN}-00", Parent(int(TRACE, 16), int(SPAN, 16), False)),
        (f"00-{TRACE}-{SPAN}-03", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-brings", Parent(int(TRACE, 16), int(SPAN, 16), True)),
        (f"{GOOD}-more", None),
        (f"ff-{TRACE}-{SPAN}-01", None),
        (f"00-{'0' * 32}-{SPAN}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (GOOD.upper(), None),
        (f"{GOOD}\n", None),
        (GOOD[:-1], None),
        ("", None),
    ],
)
def test_a_traceparent_is_read_by_w3cs_rules(text: str, found: Parent | None) -> None:
    """Of a later version the known part; all zeros, another case and anything more are none."""
    assert read_traceparent(text) == found


@given(st.text(), st.text())
def test_no_text_is_an_error(text: str, state: str) -> None:
    """Whatever a client sends is a parent or none."""
    assert read_traceparent(text, state) is None or len(text) >= 55


def test_headers_name_one_parent_or_none() -> None:
    """Two that disagree are none; a state that is too long is left out, and several headers of it are one."""
    parent = (b"traceparent", GOOD.encode())
    assert parent_of([(b"host", b"x"), parent]) == read_traceparent(GOOD)
    assert parent_of([parent, (b"tracestate", b"a=1"), (b"tracestate", b"b=2")]) == read_traceparent(GOOD, "a=1,b=2")
    assert parent_of([parent, (b"tracestate", b"a=" + b"1" * 511)]) == read_traceparent(GOOD)
    assert parent_of([parent, parent]) is None
    assert parent_of([(b"traceparent", b"\xff\xfe")]) is None
    assert parent_of([]) is None


def test_off_is_nothing() -> None:
    """Without a current span a step records nothing, and nobody is told of one."""
    assert OFF.request("GET", [(b"traceparent", GOOD.encode())]) is None
    with step("quote") as span:
        span.set("ghub.n", 1)
        span.fail("x")
        assert not span.recorded
        assert (current(), propagated()) == (None, {})


async def test_steps_belong_to_their_request_also_in_tasks_that_outlive_it() -> None:
    """A step is below the step around it; a task that was begun in a request goes on in its trace."""
    root, go_on = Recorded("request"), asyncio.Event()

    async def later() -> None:
        await go_on.wait()
        with step("settle"):
            assert current() is root.children[-1]

    with within(root):
        with step("call") as call, step("upload", Kind.CLIENT):
            call.set("ghub.n", 1)
            assert propagated() == {"traceparent": GOOD}
        outliving = asyncio.create_task(later())
    assert root.ended and current() is None
    go_on.set()
    await outliving
    assert [one.name for one in root.children] == ["call", "settle"]
    assert [one.name for one in root.children[0].children] == ["upload"]
    assert root.children[0].facts == {"ghub.n": 1}
    assert all(one.ended for one in (*root.children, *root.children[0].children))


def test_an_error_is_noted_by_its_code_and_never_by_its_text() -> None:
    """Ours by their code, others by their class; and it goes on."""
    root = Recorded("request")
    with within(root):
        for error in (
            ApiError(ErrorKind.BALANCE, "text"),
            Failure(Outcome.NO_ANSWER, "text"),
            WalletAway("text"),
            ValueError("text"),
        ):
            with pytest.raises(type(error)), step("hold"):
                raise error
    codes = [one.code for one in root.children]
    assert codes == ["insufficient_balance", "no_answer", "wallet_away", "ValueError"]
    assert code_of(KeyError("text")) == "KeyError"
