"""Spans: where the time of an order goes, from its request to its booking. Pure; `proxy/otel.py` records them.

A request's span is the current one of its task, and of every task that is begun in it. So the generation, which
outlives its client, belongs to the same trace, and nobody hands a span on. Without a current span a step costs a look
at one variable.
"""

import re
from collections.abc import Iterable
from contextvars import ContextVar, Token
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

MAX_STATE_CHARS = 512
"""Maximum characters of a `tracestate` that is kept: what W3C wants everyone to pass on."""

_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")


class Kind(Enum):
    """Which side of a call a span is on."""

    INTERNAL = auto()
    SERVER = auto()
    CLIENT = auto()
    CONSUMER = auto()


@dataclass(frozen=True, slots=True)
class Parent:
    """A span of another process, as W3C's `traceparent` and `tracestate` name it."""

    trace_id: int
    span_id: int
    sampled: bool
    state: str = ""


class Notes(Protocol):
    """What is said about a step: facts, and our own code of its error. No prompt, no key, no text of an upstream.

    `recorded` is false if nobody hears it.
    """

    @property
    def recorded(self) -> bool: ...

    def set(self, name: str, value: str | int | float) -> None: ...

    def fail(self, code: str) -> None: ...


class Span(Notes, Protocol):
    """A span that is recorded."""

    @property
    def trace_id(self) -> str:
        """Id of its trace: 32 hex digits."""
        ...

    @property
    def traceparent(self) -> str:
        """What names it to other processes, as W3C wants it: 55 characters."""
        ...

    def child(self, name: str, kind: Kind = Kind.INTERNAL) -> "Span":
        """Begin a span below it. Whoever begins one ends it."""
        ...

    def rename(self, name: str) -> None: ...

    def end(self) -> None: ...


class Tracer(Protocol):
    """Begins the spans of a process that have no parent in it; None if nobody would see the span."""

    def request(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> Span | None:
        """Begin the span of an HTTP request with these headers, whose names are in lower case."""
        ...

    def follow(self, name: str, parent: Parent, began_ns: int) -> Span | None:
        """Begin a consumer's span in the trace of a message, at this Unix time."""
        ...


class NoTracer:
    """Records nothing."""

    def request(self, name: str, headers: Iterable[tuple[bytes, bytes]]) -> None:
        return None

    def follow(self, name: str, parent: Parent, began_ns: int) -> None:
        return None


OFF: Tracer = NoTracer()

_current: ContextVar[Span | None] = ContextVar("span", default=None)


class Step(Protocol):
    """A block that is a span."""

    def __enter__(self) -> Notes: ...

    def __exit__(self, kind: Any, error: BaseException | None, place: Any) -> None: ...


class _Recorded:
    """A block whose span is the current one; an error that leaves it is noted by its code."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: Span) -> None:
        self._span = span

    def __enter__(self) -> Span:
        self._token: Token[Span | None] = _current.set(self._span)
        return self._span

    def __exit__(self, kind: Any, error: BaseException | None, place: Any) -> None:
        _current.reset(self._token)
        if error is not None:
            self._span.fail(code_of(error))
        self._span.end()


class _Unrecorded:
    """A block that nobody traces: one object for all of them."""

    __slots__ = ()
    recorded = False

    def __enter__(self) -> Notes:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, place: Any) -> None:
        return None

    def set(self, name: str, value: str | int | float) -> None:
        return None

    def fail(self, code: str) -> None:
        return None


_UNRECORDED = _Unrecorded()


def step(name: str, kind: Kind = Kind.INTERNAL) -> Step:
    """Record a block as a step of the current request, if that is traced."""
    span = _current.get()
    return _UNRECORDED if span is None else _Recorded(span.child(name, kind))


def within(span: Span) -> Step:
    """Make a span the current one for a block, and end it there."""
    return _Recorded(span)


def current() -> Span | None:
    """Find the span that this task works on; None if that is not traced."""
    return _current.get()


def propagated() -> dict[str, str]:
    """Build the header that takes the current span to a server that is called. It has ids and nothing else."""
    span = _current.get()
    return {} if span is None else {"traceparent": span.traceparent}


def code_of(error: BaseException) -> str:
    """Name an error: by its `span_code` if it is ours, else by its class. Its text may be an upstream's."""
    code = getattr(error, "span_code", None)
    return code if isinstance(code, str) else type(error).__name__


def parent_of(headers: Iterable[tuple[bytes, bytes]]) -> Parent | None:
    """Read the span that a client says its request belongs to; None if it says none, or not in W3C's form."""
    found: dict[bytes, list[str]] = {b"traceparent": [], b"tracestate": []}
    for name, value in headers:
        if name in found:
            found[name].append(value.decode("latin-1"))
    if len(found[b"traceparent"]) != 1:
        return None
    state = ",".join(found[b"tracestate"])
    return read_traceparent(found[b"traceparent"][0].strip(), state if len(state) <= MAX_STATE_CHARS else "")


def read_traceparent(text: str, state: str = "") -> Parent | None:
    """Read W3C's `traceparent`; None if it is none. Of later versions only the known part is read."""
    if (found := _TRACEPARENT.fullmatch(text)) is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or not int(trace_id, 16) or not int(span_id, 16):
        return None
    return Parent(int(trace_id, 16), int(span_id, 16), bool(int(flags, 16) & 1), state)
