"""A judge of FOCUS exports: the specification's machine-readable model, each of its rules on every row.

It reads the model as its text says. That is stricter than the official validator in three things: a cell without a
value is not `Correction`, so a condition that asks for that chooses it; an alternative must hold for the row, not for
some row of the file; a product is exact. It is milder in one: the validator wants ASCII, the specification Unicode.
"""

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

Row = Mapping[str, str]
"""A line of CSV by column; a null is empty."""

Expression = Mapping[str, Any]

NUMERIC = re.compile(r"-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?")
DATETIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
CURRENCY = re.compile(r"[A-Z]{3}")
UNIT = re.compile(r"[A-Z][A-Za-z]*s")
"""A count, capitalised and in the plural; we have no units of time or data."""

NATIONAL = frozenset({"MXN", "USD"})
"""Currencies that we bill and price in."""

DYNAMIC = "Type is Dynamic: the model has no check, one file cannot show it"
PERMISSION = "Keyword is MAY: nothing can break it"
NOT_OURS = "ApplicabilityCriteria are not ours"
ABSENT = "Reference is a column that the export may leave out, and does"


@dataclass(frozen=True, slots=True)
class Found:
    """Rows, by their numbers: to which an expression applies, and which of them break it."""

    chosen: frozenset[int]
    broken: frozenset[int]


@dataclass(slots=True)
class Judge:
    """What a model says of rows: `broken` has each rule that was checked, `skipped` why another was not.

    Raises KeyError if a rule asks for a check that is not known.
    """

    rules: Mapping[str, Expression]
    rows: Sequence[Row]
    criteria: frozenset[str]
    broken: dict[str, frozenset[int]] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin at the rules that are part of no other."""
        parts = {part for rule in self.rules.values() for part in _parts(rule.get("Requirement", {}))}
        every = frozenset(range(len(self.rows)))
        for rule_id in self.rules:
            if rule_id not in parts:
                self._rule(rule_id, every)

    def _rule(self, rule_id: str, rows: frozenset[int]) -> Found | None:
        """Judge the rows that the conditions of the rule's parents and its own choose; None if it is skipped."""
        rule = self.rules[rule_id]
        why = self._why_not(rule)
        if why is not None:
            self._skip(rule_id, why)
            return None
        condition = rule.get("Condition")
        chosen = frozenset(at for at in rows if condition is None or holds(condition, self.rows[at]))
        found = self._requirement(rule["Requirement"], chosen)
        self.broken[rule_id] = self.broken.get(rule_id, frozenset()) | found.broken
        return found

    def _why_not(self, rule: Expression) -> str | None:
        if rule["Type"] == "Dynamic":
            return DYNAMIC
        if rule["Keyword"] == "MAY":
            return PERMISSION
        criteria = rule.get("ApplicabilityCriteria", ())
        if criteria and not self.criteria & frozenset(criteria):
            return NOT_OURS
        if rule["EntityType"] == "Column" and rule["Reference"] not in self.rows[0]:
            return ABSENT
        return None

    def _skip(self, rule_id: str, why: str) -> None:
        """A rule that is skipped takes its parts with it."""
        self.skipped[rule_id] = why
        for part in _parts(self.rules[rule_id].get("Requirement", {})):
            self._skip(part, self._why_not(self.rules[part]) or why)

    def _requirement(self, asked: Expression, rows: frozenset[int]) -> Found:
        name = asked["CheckFunction"]
        if name == "CheckModelRule":
            return self._rule(asked["ModelRuleId"], rows) or Found(frozenset(), frozenset())
        if name == "CheckDistinctCount":
            return Found(rows, self._distinct(rows, asked))
        if not _parts(asked):
            return Found(rows, frozenset(at for at in rows if not holds(asked, self.rows[at])))
        found = [self._requirement(item, rows) for item in asked["Items"]]
        chosen = frozenset[int]().union(*(one.chosen for one in found))
        broken = frozenset[int]().union(*(one.broken for one in found))
        if name == "OR":
            broken = frozenset(at for at in broken if all(at in one.broken for one in found if at in one.chosen))
            for part in _parts(asked):
                if part in self.broken:
                    self.broken[part] &= broken
        return Found(chosen, broken)

    def _distinct(self, rows: frozenset[int], asked: Expression) -> frozenset[int]:
        values: dict[str, set[str]] = defaultdict(set)
        for at in rows:
            values[_cell(self.rows[at], asked, "ColumnAName")].add(_cell(self.rows[at], asked, "ColumnBName"))
        wrong = {value for value, others in values.items() if len(others - {""}) != asked["ExpectedCount"]}
        return frozenset(at for at in rows if _cell(self.rows[at], asked, "ColumnAName") in wrong)


def rules_of(path: Path, renamed: Mapping[str, str] | None = None) -> dict[str, Expression]:
    """Read a model's rules; columns get the names that a later version gave them."""
    names = renamed or {}
    rules: dict[str, Expression] = _renamed(json.loads(path.read_text(encoding="utf-8"))["ModelRules"], names)
    return rules


def _renamed(value: Any, names: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _renamed(one, names) for key, one in value.items()}
    if isinstance(value, list):
        return [_renamed(one, names) for one in value]
    return names.get(value, value) if isinstance(value, str) else value


def _parts(asked: Expression) -> list[str]:
    """Name the rules that a requirement consists of."""
    if asked.get("CheckFunction") == "CheckModelRule":
        return [asked["ModelRuleId"]]
    return [part for item in asked.get("Items", ()) for part in _parts(item)]


def holds(asked: Expression, row: Row) -> bool:
    """Evaluate an expression without rules for one row. A column that is absent has no value."""
    name = asked["CheckFunction"]
    if name in COMBINED:
        return COMBINED[name](holds(item, row) for item in asked["Items"])
    return CHECKS[name](row, asked)


def _cell(row: Row, asked: Expression, key: str = "ColumnName") -> str:
    return row.get(asked[key], "")


def _is(row: Row, asked: Expression) -> bool:
    cell, value = _cell(row, asked), asked["Value"]
    if value is None:
        return cell == ""
    if isinstance(value, str):
        return cell == value
    return NUMERIC.fullmatch(cell) is not None and Decimal(cell) == Decimal(str(value))


def _if_any(check: Callable[[str], bool]) -> Callable[[Row, Expression], bool]:
    """A null has no type and no format."""
    return lambda row, asked: _cell(row, asked) == "" or check(_cell(row, asked))


def _number(cell: str) -> Decimal | None:
    try:
        return Decimal(cell)
    except InvalidOperation:
        return None


def _decimal(cell: str) -> bool:
    number = _number(cell)
    return number is not None and number.is_finite()


def _moment(cell: str) -> bool:
    try:
        return DATETIME.fullmatch(cell) is not None and bool(datetime.fromisoformat(cell))
    except ValueError:
        return False


def _text(cell: str) -> bool:
    """True for valid Unicode that is not all spaces; in CSV every cell is text."""
    return cell.strip() != "" and not any("\ud800" <= one <= "\udfff" for one in cell)


def _key_values(cell: str) -> bool:
    """True for an object of texts, numbers, booleans and nulls, without objects or lists inside."""
    try:
        found = json.loads(cell)
    except ValueError:
        return False
    return isinstance(found, dict) and not any(isinstance(value, dict | list) for value in found.values())


def _same(row: Row, asked: Expression) -> bool:
    return _cell(row, asked, "ColumnAName") == _cell(row, asked, "ColumnBName")


def _product(row: Row, asked: Expression) -> bool:
    cells = [_cell(row, asked, key) for key in ("ColumnAName", "ColumnBName", "ResultColumnName")]
    one, other, result = map(_number, cells)
    if one is None or other is None or result is None:
        return "" in cells
    return one * other == result


def _at_least(row: Row, asked: Expression) -> bool:
    number = _number(_cell(row, asked))
    return _cell(row, asked) == "" or (number is not None and number >= asked["Value"])


COMBINED: Mapping[str, Callable[..., bool]] = {"AND": all, "OR": any}

CHECKS: Mapping[str, Callable[[Row, Expression], bool]] = {
    "CheckDecimalValue": _if_any(_decimal),
    "CheckGreaterOrEqualThanValue": _at_least,
    "CheckNationalCurrency": _if_any(NATIONAL.__contains__),
    "CheckNotSameValue": lambda row, asked: not _same(row, asked),
    "CheckNotValue": lambda row, asked: not _is(row, asked),
    "CheckSameValue": _same,
    "CheckValue": _is,
    "ColumnByColumnEqualsColumnValue": _product,
    "ColumnPresent": lambda row, asked: asked["ColumnName"] in row,
    "FormatCurrency": _if_any(lambda cell: CURRENCY.fullmatch(cell) is not None),
    "FormatDateTime": _if_any(_moment),
    "FormatKeyValue": _if_any(_key_values),
    "FormatNumeric": _if_any(lambda cell: NUMERIC.fullmatch(cell) is not None),
    "FormatString": _if_any(_text),
    "FormatUnit": _if_any(lambda cell: UNIT.fullmatch(cell) is not None),
    "TypeDateTime": _if_any(_moment),
    "TypeDecimal": _if_any(_decimal),
    "TypeString": _if_any(_text),
}
