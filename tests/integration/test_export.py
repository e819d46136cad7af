"""The export for finance."""

import csv
import io
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import cast

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from metering.exports.csv_lines import csv_lines
from metering.exports.formats import FORMATS
from metering.exports.reading import Scope
from metering.exports.rows import COLUMNS, SEALED, Written, cells_of_json
from metering.exports.writing import Source, write_file
from metering.money import parse_mxn
from metering.ports import Charge, Ledger, Names, Refund, Refunded
from metering.seals import Chains
from tests.conftest import run
from tests.kits.books import UNIT, charge_of, event
from tests.kits.exports import CLOSED, Rows, exported, source
from tests.long import examples

ORG = "11111111-1111-4111-8111-111111111111"


CSV, JSON_LINES = FORMATS["csv"].load(), FORMATS["jsonl"].load()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def charge(images: int = 1, number: int = 1) -> Charge:
    return charge_of(event(ORG, number, images=images))


def test_every_page_is_exported_with_its_sum(tmp_path: Path) -> None:
    """A line for each charge, in their order."""
    pages = [[charge(3)], [charge(number=4)]]
    assert run(write_file(source(pages), tmp_path / "out.csv", CSV)) == Written(2, 4 * UNIT)
    rows = read(tmp_path / "out.csv")
    assert [one["number"] for one in rows] == ["1", "4"]
    assert tuple(rows[0]) == COLUMNS


def test_a_row_says_everything_in_its_canonical_form(tmp_path: Path) -> None:
    """Money as decimal text, moments in UTC, the day of Mexico City, the whole proof."""
    run(write_file(source([[charge(2)]]), tmp_path / "out.csv", CSV))
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
            "org_name": "acme",
            "key_name": "web",
            "posted_month": "2036-11",
            "end_user": "",
            "safety_identifier": "",
            "tags": "",
            "metadata": "",
            "seal": "",
        }
    ]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_free_text_is_no_formula(tmp_path: Path, start: str) -> None:
    """Text from a person never runs in a spreadsheet."""
    one = charge()._replace(fx_source=f'{start}HYPERLINK("http://x")')
    run(write_file(source([[one]]), tmp_path / "out.csv", CSV))
    assert read(tmp_path / "out.csv")[0]["fx_source"] == f'\'{start}HYPERLINK("http://x")'


def refunded(credit_id: str, micro: int, at: str, reason: str = "blurred") -> Refunded:
    """Refund an order of two images."""
    return Refunded(Refund(credit_id, ORG, f"{ORG}-1", micro, reason, at), charge(2))


@pytest.mark.rule(33)
def test_a_refund_is_a_row_of_its_own(tmp_path: Path) -> None:
    """(rule 33) Behind the charges, with a negative amount, in the period in which it was given; it counts no images.

    The column sums up to charges less refunds, and quantities to what was delivered.
    """
    given = refunded(f"refund-{ORG}-1-1", UNIT // 2, "2036-12-01T05:59:59.000001+00:00")
    written = run(write_file(source([[charge(2)]], [given]), tmp_path / "out.csv", CSV))
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
        "org_name": "acme",
        "key_name": "web",
        "posted_month": "2036-11",
    }
    assert sum(parse_mxn(one["amount_mxn"]) for one in rows) == written.amount_micro_mxn
    assert sum(int(one["quantity"]) for one in rows) == 2


@pytest.mark.rule(33)
@pytest.mark.parametrize("start", ["=", "+", "-", "@"])
def test_what_a_person_typed_of_a_refund_is_no_formula(tmp_path: Path, start: str) -> None:
    """(rule 33) Its reason, and an id of the person's own."""
    given = refunded(f"{start}1", UNIT, "2036-11-22T18:00:00+00:00", f"{start}SUM(A1)")
    run(write_file(source(given=[given]), tmp_path / "out.csv", CSV))
    (one,) = read(tmp_path / "out.csv")
    assert (one["event_id"], one["reason"]) == (f"'{start}1", f"'{start}SUM(A1)")


def test_separators_and_line_ends_stay_inside_their_cell(tmp_path: Path) -> None:
    """Quoted as CSV has it."""
    one = charge()._replace(fx_source='Banxico, "FIX"\nx')
    run(write_file(source([[one]]), tmp_path / "out.csv", CSV))
    assert [line["fx_source"] for line in read(tmp_path / "out.csv")] == ['Banxico, "FIX"\nx']


CELLS = st.lists(st.text(st.sampled_from("a,\"\r\n ñ';\t=")), min_size=len(COLUMNS), max_size=len(COLUMNS))


@given(st.lists(CELLS, min_size=1, max_size=4))
@example([["a"] * len(COLUMNS)])
@example([["a"] * (len(COLUMNS) - 1) + ["\n"], ["\r"] + ["a"] * (len(COLUMNS) - 1)])
@settings(max_examples=examples(300), derandomize=True)
def test_lines_are_those_of_the_standard_librarys_writer(rows: Sequence[Sequence[str]]) -> None:
    """Byte by byte, whatever the cells contain, and whichever of the two ways was taken."""
    wanted = io.StringIO(newline="")
    writer = csv.writer(wanted)
    for one in rows:
        writer.writerow(one)
    assert csv_lines(rows) == wanted.getvalue()


def test_an_export_that_fails_leaves_the_former_file(tmp_path: Path) -> None:
    """It is written completely or not at all, and no partial file stays."""

    class Broken(Rows):
        async def charges(self, month: str, **_: object) -> AsyncIterator[Sequence[Charge]]:
            yield [charge()]
            raise OSError("gone")

    path = tmp_path / "out.csv"
    path.write_text("former", encoding="utf-8")
    with pytest.raises(OSError, match="gone"):
        run(write_file(Source(cast(Ledger, Broken()), Scope(("2036-11",))), path, CSV))
    assert path.read_text(encoding="utf-8") == "former"
    assert list(tmp_path.iterdir()) == [path]


def test_an_empty_month_is_a_head_without_rows(tmp_path: Path) -> None:
    """Nothing charged is 0 rows and 0.00 MXN."""
    assert run(write_file(source(), tmp_path / "out.csv", CSV)) == Written()
    assert (tmp_path / "out.csv").read_text(encoding="utf-8").split() == [",".join(COLUMNS)]


def test_json_lines_have_what_the_csv_has(tmp_path: Path) -> None:
    """The same columns and sums; whole numbers as numbers, money as text, null for what is not there."""
    refund = Refunded(Refund("=r1", ORG, "x", 400_000, "=blurred", "2036-11-23T18:00:00+00:00"), charge(2))
    written = run(write_file(source([[charge(2)]], [refund]), tmp_path / "out.jsonl", JSON_LINES))
    assert run(write_file(source([[charge(2)]], [refund]), tmp_path / "out.csv", CSV)) == written
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    for line, cells in zip(lines, read(tmp_path / "out.csv"), strict=True):
        assert tuple(line) == COLUMNS
        as_text = {
            name: " ".join(value) if isinstance(value, list) else str(value or "") for name, value in line.items()
        }
        as_text |= {name: str(line[name]) for name in ("images_asked", "quantity")}
        assert as_text == {name: cell.removeprefix("'") for name, cell in cells.items()}
    first, second = lines
    assert (first["quantity"], first["quality"], first["amount_mxn"], len(first["images"])) == (2, None, "1.68", 2)
    assert (second["event_id"], second["reason"], second["number"], second["images"]) == ("=r1", "=blurred", None, [])


def test_a_mark_comes_before_everything(tmp_path: Path) -> None:
    """Excel takes a CSV without it for another alphabet."""
    run(write_file(source([[charge()]]), tmp_path / "out.csv", FORMATS["csv"].load("excel")))
    assert (tmp_path / "out.csv").read_bytes().startswith(b"\xef\xbb\xbfevent_id,")


@pytest.mark.rule(37)
def test_seals_are_recomputed_from_either_file() -> None:
    """(rule 37) Of a closed month each row has one, over its cells as a CSV has them; a line of JSON has the same."""
    named = charge(2)._replace(tags='["a", "b c"]', metadata='{"k": "=v"}', end_user="u", fx_source="-x", number=2)
    refund = Refunded(Refund("=r1", ORG, "x", 400_000, "=blurred", "2036-11-23T18:00:00+00:00"), named)
    closed = source([[charge(2), named]], [refund], **CLOSED)
    as_csv, as_json = run(exported(closed))[0], run(exported(closed, "jsonl"))[0]
    cells = [tuple(cells) for cells in csv.reader(io.StringIO(as_csv.decode(), newline=""))][1:]
    lines = [json.loads(line) for line in as_json.splitlines()]
    assert [one[: len(SEALED)] for one in cells] == [cells_of_json(line) for line in lines]
    chains = Chains("2036-11")
    seals = [chains.add(ORG, one[: len(SEALED)]) for one in cells]
    assert [one[-1] for one in cells] == [line["seal"] for line in lines] == seals and len(set(seals)) == 3
    assert lines[1]["tags"] == ["a", "b c"] and lines[1]["metadata"] == {"k": "=v"}
    assert run(exported(source([[named]])))[0].endswith(b",\r\n"), "an open month has none"


def test_no_cell_is_a_formula() -> None:
    """Whatever an organisation, a key, a tag or a size is called; an amount below zero is one."""
    evil = '=HYPERLINK("http://x";"y")'
    named = charge()._replace(size="+1", upstream="@x", end_user="\tx", safety_id="＝1", region="-1")
    refund = Refunded(Refund("r", ORG, "x", 400_000, "\nx", "2036-11-23T18:00:00+00:00"), named)
    written, _ = run(exported(source([[named]], [refund], called=Names(evil, {"key_1": "-1"}))))
    rows = list(csv.DictReader(io.StringIO(written.decode(), newline="")))
    begun = [(name, cell) for row in rows for name, cell in row.items() if cell[:1] in "=+-@\t\r\n＝＋－＠" and cell]
    assert begun == [("amount_mxn", "-0.40")]
    assert {row["org_name"] for row in rows} == {f"'{evil}"} and {row["key_name"] for row in rows} == {"'-1"}
