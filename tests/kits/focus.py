"""A judge of FOCUS exports: the specification's rules as data, each checked on every row."""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path

Row = Mapping[str, str]

NUMERIC = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
DATETIME = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9]Z")
CURRENCY = re.compile(r"[A-Z]{3}")
UNIT = re.compile(r"[A-Z][A-Za-z]*s")
"""A count, capitalised and in the plural; we have no units of time or data."""

CALL = re.compile(r"(\w+)\((.*)\)")


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule as its table has it."""

    name: str
    requirement: str
    condition: str

    def broken(self, rows: Sequence[Row]) -> list[Row]:
        """Find the rows that break it. Raises KeyError if the rule asks for a check that is not known."""
        chosen = [row for row in rows if not self.condition or holds(self.condition, row)]
        name, arguments = _call(self.requirement)
        if name == "CheckDistinctCount":
            return list(_distinct(chosen, *arguments))
        return [row for row in chosen if not holds(self.requirement, row)]


def rules(path: Path) -> list[Rule]:
    """Read a table of rules."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    return [Rule(*(cell.strip() for cell in line.split("|"))) for line in lines]


def holds(expression: str, row: Row) -> bool:
    """Evaluate an expression for one row."""
    for word, combined in (("AND", all), ("OR", any)):
        if expression.startswith(f"{word} of ["):
            return combined(holds(part, row) for part in _parts(expression[len(word) + 5 : -1]))
    name, arguments = _call(expression)
    return CHECKS[name](row, *arguments)


def _call(expression: str) -> tuple[str, list[str]]:
    found = CALL.fullmatch(expression)
    if found is None:
        return expression.split(" ")[0], []
    return found[1], found[2].split(", ")


def _parts(text: str) -> Iterator[str]:
    """Split at the commas that are in no bracket."""
    depth, part = 0, ""
    for one in text:
        depth += (one in "([") - (one in ")]")
        if one == "," and not depth:
            yield part.strip()
            part = ""
        else:
            part += one
    yield part.strip()


def _distinct(rows: Sequence[Row], column: str, other: str, count: str) -> Iterator[Row]:
    values: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        values[row[column]].add(row[other])
        if len(values[row[column]]) > int(count):
            yield row


def _is(row: Row, column: str, value: str) -> bool:
    if value == "null":
        return row[column] == ""
    if NUMERIC.fullmatch(value) and NUMERIC.fullmatch(row[column]):
        return Decimal(row[column]) == Decimal(value)
    return row[column] == value


def _decimal(row: Row, column: str) -> bool:
    try:
        return not row[column] or Decimal(row[column]).is_finite()
    except InvalidOperation:
        return False


def _matches(pattern: re.Pattern[str]) -> Callable[[Row, str], bool]:
    return lambda row, column: not row[column] or pattern.fullmatch(row[column]) is not None


def _key_values(row: Row, column: str) -> bool:
    """True for an object of texts, numbers, booleans and nulls, without objects or lists inside."""
    found = json.loads(row[column] or "{}")
    return isinstance(found, dict) and not any(isinstance(value, dict | list) for value in found.values())


def _product(row: Row, one: str, other: str, result: str) -> bool:
    return Decimal(row[one]) * Decimal(row[other]) == Decimal(row[result])


CHECKS: Mapping[str, Callable[..., bool]] = {
    "ColumnPresent": lambda row, column: column in row,
    "ColumnAbsent": lambda row, column: column not in row,
    "CheckValue": _is,
    "CheckNotValue": lambda row, column, value: not _is(row, column, value),
    "CheckNotSameValue": lambda row, one, other: row[one] != row[other],
    "CheckGreaterOrEqualThanValue": lambda row, column, value: Decimal(row[column]) >= Decimal(value),
    "CheckNationalCurrency": lambda row, column: row[column] in {"MXN", "USD"},
    "ColumnByColumnEqualsColumnValue": _product,
    "FormatCurrency": _matches(CURRENCY),
    "FormatDateTime": _matches(DATETIME),
    "FormatKeyValue": _key_values,
    "FormatNumeric": _matches(NUMERIC),
    "FormatString": lambda row, column: row[column] == row[column].strip(),
    "FormatUnit": _matches(UNIT),
    "TypeDateTime": _matches(DATETIME),
    "TypeDecimal": _decimal,
    "TypeString": lambda row, column: isinstance(row[column], str),
}
