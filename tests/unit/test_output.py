"""Output of commands for people: readable at 80 columns and in a pipe, and no value is cut."""

from typing import Any

import pytest

from proxy.cli.output import block, say

LONG = "https://images.geekhub.mx/" + "a" * 90
ROW = {
    "id": "req_1",
    "why": "a sentence that is longer than what is left of a line of eighty columns beside its name, and goes on",
    "url": LONG,
    "none": None,
    "ok": True,
    "names": ["a", "b"],
    "empty": [],
    "price": {"unit_mxn": "0.84", "variant": None},
    "ends": [{"end": "expiry", "amount_mxn": "0.00"}, {"end": "charge", "amount_mxn": "0.84"}],
}


def test_a_mapping_is_a_block_that_cuts_nothing() -> None:
    """Sentences are folded between their words; what is to be copied stays in one piece."""
    assert list(block(ROW, 80)) == [
        "id     req_1",
        "why    a sentence that is longer than what is left of a line of eighty columns",
        "       beside its name, and goes on",
        f"url    {LONG}",
        "none   –",
        "ok     yes",
        "names  a, b",
        "empty  none",
        "price",
        "  unit_mxn  0.84",
        "  variant   –",
        "ends",
        "  - end         expiry",
        "    amount_mxn  0.00",
        "  - end         charge",
        "    amount_mxn  0.84",
    ]


def test_a_pipe_gets_each_value_in_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """It has no width: what is read by a program is not folded."""
    monkeypatch.delenv("COLUMNS", raising=False)
    say(ROW, as_json=False)
    assert f"why    {ROW['why']}\n" in capsys.readouterr().out


def test_nothing_is_printed_that_a_terminal_would_obey(capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences, line ends and markup in a value are told, and not done."""
    say({"why": "\x1b[2J[bold]a\nb ñ"}, as_json=False)
    assert capsys.readouterr().out == "why  \\x1b[2J[bold]a\\nb ñ\n"


@pytest.mark.parametrize(("columns", "lines"), [("80", 5), ("120", 3)])
def test_a_list_is_a_table_where_there_is_room(
    capsys: pytest.CaptureFixture[str], monkeypatch: Any, columns: str, lines: int
) -> None:
    """It is a block for each row if a terminal is narrower: no cell is cut or broken."""
    monkeypatch.setenv("COLUMNS", columns)
    say([{"name": "a", "url": LONG[:80]}, {"name": "b", "url": LONG[:80]}], as_json=False)
    said = capsys.readouterr().out
    assert said.count(LONG[:80]) == 2 and len(said.splitlines()) == lines
    say([], as_json=False)
    assert capsys.readouterr().out == "none\n"
