"""What finance takes away."""

import csv
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import pytest

from metering.events import Event
from metering.export import COLUMNS, Written, row, write_file
from metering.money import parse_mxn
from metering.ports import Refund, Refunded
from tests.conftest import run
from tests.kits.books import UNIT, event

T = TypeVar("T")
ORG = "11111111-1111-4111-8111-111111111111"


async def stream(*items: T) -> AsyncIterator[T]:
    for one in items:
        yield one


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_only_charges_are_exported_with_their_sum(tmp_path: Path) -> None:
    """Voids and expiries cost nothing and stay out."""
    events = [event(ORG, 1, images=3), event(ORG, 2, end="void"), event(ORG, 3, end="expiry"), event(ORG, 4)]
    assert run(write_file(stream(*events), stream(), tmp_path / "out.csv")) == Written(2, 4 * UNIT)
    rows = read(tmp_path / "out.csv")
    assert [one["number"] for one in rows] == ["1", "4"]
    assert tuple(rows[0]) == COLUMNS


def test_a_row_says_everything_in_its_canonical_form(tmp_path: Path) -> None:
    """Money as decimal text, moments in UTC, the day of Mexico City, the whole proof."""
    run(write_file(stream(event(ORG, 1, images=2)), stream(), tmp_path / "out.csv"))
    assert read(tmp_path / "out.csv") == [
        {
            "event_id": f"{ORG}-1",
            "org_id": ORG,
            "number": "1",
            "key_id": "key_1",
            "day": "2036-11-22",
            "month": "2036-11",
            "admitted_at": "2036-11-22T18:00:00+00:00",
            "charged_at": "2036-11-22T18:00:01+00:00",
            "model": "fal/flux-1.1-pro",
            "provider": "fal",
            "upstream": "fal-ai/flux-pro/v1.1",
            "size": "1024x1024",
            "quality": "",
            "region": "local",
            "images_asked": "2",
            "quantity": "2",
            "variant": "",
            "usd_per_image": "0.04",
            "price_book": "2026-11-22+test",
            "markup": "1.05",
            "mxn_per_usd": "20.00",
            "fx_month": "2036-11",
            "fx_source": "test",
            "unit_mxn": "0.84",
            "usd_measured": "",
            "amount_mxn": "1.68",
            "images": f"2026/11/{ORG}-1_0.png 2026/11/{ORG}-1_1.png",
            "kind": "charge",
            "order_id": f"{ORG}-1",
            "reason": "",
        }
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_free_text_is_no_formula(tmp_path: Path, start: str) -> None:
    """What a person typed never runs in a spreadsheet."""
    one = event(ORG, 1)
    proof = replace(one.opened.proof, fx_source=f'{start}HYPERLINK("http://x")')
    run(write_file(stream(replace(one, opened=replace(one.opened, proof=proof))), stream(), tmp_path / "out.csv"))
    assert read(tmp_path / "out.csv")[0]["fx_source"] == f'\'{start}HYPERLINK("http://x")'
    assert row(one)[COLUMNS.index("fx_source")] == "test"


def refunded(credit_id: str, micro: int, at: str, reason: str = "blurred") -> Refunded:
    """Of an order of two images."""
    return Refunded(Refund(credit_id, ORG, f"{ORG}-1", micro, reason, at), event(ORG, 1, images=2))


@pytest.mark.rule(33)
def test_a_refund_is_a_row_of_its_own(tmp_path: Path) -> None:
    """(rule 33) Behind the charges, with a negative amount, in the period in which it was given; it counts no images.

    The column sums up to charges less refunds, and quantities to what was delivered.
    """
    given = refunded(f"refund-{ORG}-1-1", UNIT // 2, "2036-12-01T05:59:59.000001+00:00")
    written = run(write_file(stream(event(ORG, 1, images=2)), stream(given), tmp_path / "out.csv"))
    assert written == Written(2, 2 * UNIT, UNIT // 2) and written.amount_micro_mxn == 3 * UNIT // 2
    rows = read(tmp_path / "out.csv")
    assert {name: value for name, value in rows[1].items() if value} == {
        "event_id": f"refund-{ORG}-1-1",
        "org_id": ORG,
        "key_id": "key_1",
        "day": "2036-11-30",
        "month": "2036-11",
        "admitted_at": "2036-11-22T18:00:00+00:00",
        "charged_at": "2036-12-01T05:59:59.000001+00:00",
        "model": "fal/flux-1.1-pro",
        "provider": "fal",
        "upstream": "fal-ai/flux-pro/v1.1",
        "size": "1024x1024",
        "region": "local",
        "images_asked": "0",
        "quantity": "0",
        "amount_mxn": "-0.42",
        "kind": "refund",
        "order_id": f"{ORG}-1",
        "reason": "blurred",
    }
    assert sum(parse_mxn(one["amount_mxn"]) for one in rows) == written.amount_micro_mxn
    assert sum(int(one["quantity"]) for one in rows) == 2


@pytest.mark.rule(33)
@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_what_a_person_typed_of_a_refund_is_no_formula(tmp_path: Path, start: str) -> None:
    """(rule 33) Its reason, and an id of the person's own."""
    given = refunded(f"{start}1", UNIT, "2036-11-22T18:00:00+00:00", f"{start}SUM(A1)")
    run(write_file(stream(), stream(given), tmp_path / "out.csv"))
    (one,) = read(tmp_path / "out.csv")
    assert (one["event_id"], one["reason"]) == (f"'{start}1", f"'{start}SUM(A1)")


def test_separators_and_line_ends_stay_inside_their_cell(tmp_path: Path) -> None:
    """Quoted as CSV has it."""
    one = event(ORG, 1)
    proof = replace(one.opened.proof, fx_source='Banxico, "FIX"\nx')
    run(write_file(stream(replace(one, opened=replace(one.opened, proof=proof))), stream(), tmp_path / "out.csv"))
    assert [line["fx_source"] for line in read(tmp_path / "out.csv")] == ['Banxico, "FIX"\nx']


def test_an_export_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    """Whole or not at all, and nothing half-written beside it."""

    async def broken() -> AsyncIterator[Event]:
        yield event(ORG, 1)
        raise OSError("gone")

    path = tmp_path / "out.csv"
    path.write_text("former", encoding="utf-8")
    with pytest.raises(OSError, match="gone"):
        run(write_file(broken(), stream(), path))
    assert path.read_text(encoding="utf-8") == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_month_is_a_head_without_rows(tmp_path: Path) -> None:
    """Nothing charged is 0 rows and 0.00 MXN."""
    assert run(write_file(stream(), stream(), tmp_path / "out.csv")) == Written()
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").split() == [",".join(COLUMNS)]
