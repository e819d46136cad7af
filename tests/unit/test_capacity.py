"""May an order be taken now? The answer as a table: what is under way, who was refused, who asks."""

import pytest

from metering.shares import Bound, Shares
from proxy.errors import Kind
from proxy.orders.capacity import WANTED_S, Capacity, Refusal

MARK, END = 800, 900


def room(pictures: dict[str, int], spool: dict[str, int], broken: str | None = None) -> Capacity:
    """Capacity for 100 pictures, 20 spare, and a spool of 1,000 bytes."""
    spooled = Shares(Bound(1000))
    capacity = Capacity(lambda: broken, Bound(100, 20), spooled, spool_mark=MARK, spool_end=END)
    for org_id, images in pictures.items():
        capacity.pictures.take(org_id, images)
    for org_id, size_bytes in spool.items():
        spooled.take(org_id, size_bytes)
    return capacity


def answer_of(capacity: Capacity, org: str, images: int, now_s: float) -> str | None:
    """The customer's answer."""
    error = capacity.refusal(org, images, now_s)
    return error.message if error else None


@pytest.mark.parametrize(
    ("pictures", "refused", "org", "images", "answer"),
    [
        ({}, "", "a", 8, None),
        ({"a": 92}, "", "a", 8, None),  # alone: all of it
        ({"a": 93}, "", "a", 8, Refusal.FULL),
        ({"a": 93}, "a", "a", 7, None),  # its own refusal binds it to nothing
        ({"a": 60, "b": 32}, "", "a", 8, None),
        ({"a": 60, "b": 8}, "b", "a", 8, Refusal.SHARE),
        ({"a": 60, "b": 8}, "b", "b", 8, None),
        ({"a": 40, "b": 8}, "b", "a", 8, None),
        ({"a": 50, "b": 50}, "ab", "a", 1, Refusal.FULL),
        ({"a": 50, "b": 50}, "ab", "c", 8, None),  # two have everything: the third's order is taken at once
        ({"a": 50, "b": 50, "c": 8}, "ab", "c", 8, Refusal.FULL),
        ({"a": 50, "b": 50, "c": 8}, "ab", "d", 4, None),
        ({"a": 30, "b": 50, "c": 8}, "abc", "a", 4, Refusal.SHARE),
        ({"a": 30, "b": 50, "c": 8}, "abc", "c", 8, None),
    ],
)
def test_pictures(pictures: dict[str, int], refused: str, org: str, images: int, answer: Refusal | None) -> None:
    """`pictures` are under way, and the organisations in `refused` were told to come back."""
    one = room(pictures, {})
    for org_id in refused:
        one.want(org_id, 10.0)
    assert answer_of(one, org, images, 10.0) == (answer and answer.value)


@pytest.mark.parametrize(
    ("spool", "org", "answer"),
    [
        ({"a": 800}, "a", None),
        ({"a": 801}, "a", Refusal.FULL),
        ({"a": 801}, "b", None),
        ({"a": 700, "b": 150}, "a", Refusal.SHARE),
        ({"a": 700, "b": 150}, "b", None),
        ({"a": 425, "b": 425}, "c", None),
        ({"a": 901}, "b", Refusal.FULL),
    ],
)
def test_the_spool(spool: dict[str, int], org: str, answer: Refusal | None) -> None:
    """Above the mark those are refused whose pictures fill it, above its end all are."""
    assert answer_of(room({}, spool), org, 1, 0.0) == (answer and answer.value)


def test_a_share_binds_as_long_as_another_is_expected_back() -> None:
    """And no longer: a refused organisation that does not come back keeps nothing from anyone."""
    one = room({"a": 60, "b": 8}, {})
    one.want("b", 10.0)
    assert one.wanting(10.0 + WANTED_S - 0.1) == ["b"]
    assert answer_of(one, "a", 8, 10.0 + WANTED_S - 0.1) == Refusal.SHARE.value
    assert answer_of(one, "a", 8, 10.0 + WANTED_S) is None


def test_what_is_broken_goes_first() -> None:
    """No order is accepted, from anyone, however much room there is."""
    error = room({}, {}, "the store is away").refusal("a", 1, 0.0)
    assert error is not None and (error.kind, error.message) == (Kind.UNAVAILABLE, "the store is away")


def test_what_is_said_is_so() -> None:
    """Busy is not disk: another code, and both to be asked again after a stated wait."""
    for refusal in Refusal:
        error = refusal.as_error()
        assert error.kind is (Kind.UNAVAILABLE if refusal is Refusal.DISK else Kind.BUSY)
        assert ("disk" in error.message) is (refusal is Refusal.DISK)
        waits = {"x-should-retry": "true", "retry-after-ms": "5000", "retry-after": "5"}
        assert waits.items() <= error.reply_headers().items()
