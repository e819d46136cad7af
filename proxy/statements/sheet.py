"""A statement as a sheet: titles, tables and notes in one language, whatever draws them. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from typing import Literal

from metering.clock import next_month
from metering.money import format_rate
from metering.ports import Credit
from metering.statement import Line, Lines, Statement, total
from proxy.messages import Language, Text, translated
from proxy.orders.result import public_id
from proxy.statements import words
from proxy.statements.chart import chart
from proxy.statements.numbers import column, day_of, long_day, month_name, mxn, plain, short_day

UNNAMED = "–"
"""What a key is called that has no name."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A text, and an id in small letters below it."""

    text: str
    small: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """`strong` rows are totals."""

    cells: tuple[Cell, ...]
    strong: bool = False


Kind = Literal["words", "date", "number"]
"""What a column has. Dates and numbers are never broken; numbers end at the right."""


Heads = tuple[tuple[Text, Kind], ...]
"""Titles of columns, and what they have."""


@dataclass(frozen=True, slots=True)
class Table:
    """A title, and below it rows, or notes alone. The first column names a row."""

    title: str
    columns: tuple[str, ...]
    kinds: tuple[Kind, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sheet:
    """Everything that a statement says, in the order in which it is said. `chart` is SVG, and empty without charges."""

    language: Language
    title: str
    month: str
    org: str
    account: str
    period: str
    provisional: bool
    status: str
    status_more: str
    used: str
    summary: Table
    chart_title: str
    chart: str
    chart_text: str
    chart_notes: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]


def sheet_of(statement: Statement, language: Language) -> Sheet:
    """Write a statement in a language."""
    return _Writer(statement, language).sheet()


class _Writer:
    """One statement in one language."""

    def __init__(self, statement: Statement, language: Language) -> None:
        self._it = statement
        self._language = language
        self._late = total(statement.late)

    def sheet(self) -> Sheet:
        it, say = self._it, self._say
        last = date.fromordinal(date.fromisoformat(f"{next_month(it.month)}-01").toordinal() - 1)
        closed = None if it.closed_at is None else long_day(day_of(it.closed_at), self._language)
        drawn, drawn_text = self._chart()
        return Sheet(
            language=self._language,
            title=say(words.TITLE),
            month=month_name(it.month, self._language),
            org=plain(it.org),
            account=say(words.ACCOUNT, org_id=it.org_id),
            period=say(words.PERIOD, last=long_day(last, self._language)),
            provisional=it.provisional,
            status=say(words.PROVISIONAL) if closed is None else say(words.CLOSED, day=closed),
            status_more=say(words.MAY_CHANGE) if closed is None else "",
            used=self._used(),
            summary=self._summary(),
            chart_title=say(words.CHART_TITLE),
            chart=drawn,
            chart_text=drawn_text,
            chart_notes=(say(words.CHART_LATE),) if drawn and it.late else (),
            tables=tuple(self._tables()),
            notes=(say(words.EQUATION), say(words.EXACT)),
        )

    def _say(self, text: Text, **values: object) -> str:
        return translated(text.of(**values), self._language)[0]

    def _used(self) -> str:
        sums = self._it.sums
        if not sums.orders:
            return self._say(words.USED_NOTHING)
        return self._say(words.USED, orders=f"{sums.orders:,}", images=f"{sums.images:,}")

    def _summary(self) -> Table:
        sums = self._it.sums
        of = {
            "recharge": sums.recharges_micro_mxn,
            "bonus": sums.bonuses_micro_mxn,
            "refund": sums.refunds_micro_mxn,
            "adjustment": sums.adjustments_micro_mxn,
            "chargeback": sums.chargebacks_micro_mxn,
        }
        given = {one.type for one in self._it.paid}
        lines = [(words.OPENING, sums.opening_micro_mxn, True)]
        lines += [(name, of[kind], False) for kind, name in words.KINDS.items() if kind in given or kind == "recharge"]
        lines += [(words.CHARGES, -sums.charges_micro_mxn, False)]
        lines += [(words.SO_FAR if self._it.provisional else words.CLOSING, sums.closing_micro_mxn, True)]
        amounts = column([amount for _, amount, _ in lines])
        rows = [
            Row((Cell(self._say(name)), Cell(amount)), strong)
            for (name, _, strong), amount in zip(lines, amounts, strict=True)
        ]
        return self._table(words.SUMMARY, ((words.CONCEPT, "words"), (words.AMOUNT, "number")), rows)

    def _chart(self) -> tuple[str, str]:
        """Draw the days, and tell in words what is drawn."""
        if not self._it.own.amount_micro_mxn:
            return "", ""
        highest = max(self._it.days, key=lambda line: line.amount_micro_mxn)
        text = self._say(
            words.CHART,
            month=month_name(self._it.month, self._language),
            day=long_day(date.fromisoformat(highest.name), self._language),
            amount=mxn(highest.amount_micro_mxn),
        )
        costs = {int(line.name[8:]): line.amount_micro_mxn for line in self._it.days}
        return chart(self._it.month, costs, self._say(words.CHART_TITLE), text), text

    def _tables(self) -> Iterable[Table]:
        it = self._it
        yield self._movements()
        yield self._iva()
        yield self._rates()
        if it.sums.orders:
            yield self._uses(words.BY_MODEL, words.MODEL, it.models)
            yield self._uses(words.BY_KEY, words.KEY, it.keys)
            if it.tags.shown:
                yield self._tags()
            days = [replace(line, name=short_day(date.fromisoformat(line.name), self._language)) for line in it.days]
            yield self._uses(words.BY_DAY, words.DAY, Lines(tuple(days)))
        if it.late:
            yield self._lates()

    def _uses(self, title: Text, name: Text, lines: Lines) -> Table:
        """Make a table whose lines add up to the charges of the month, those of earlier months included."""
        shown = [*lines.shown]
        if lines.rest is not None:
            shown.append(replace(lines.rest, name=self._say(words.OTHERS, count=f"{lines.others:,}")))
        if self._it.late:
            shown.append(replace(self._late, name=self._say(words.LATE)))
        return self._counted(title, name, shown, total(shown))

    def _tags(self) -> Table:
        shown = [*self._it.tags.shown]
        if self._it.untagged.orders:
            shown.append(replace(self._it.untagged, name=self._say(words.UNTAGGED)))
        notes = [self._say(words.TAGS_OVERLAP)]
        if self._it.late:
            notes.append(self._say(words.TAGS_LATE))
        if self._it.tags.others:
            notes.append(self._say(words.OTHER_TAGS, count=f"{self._it.tags.others:,}"))
        return self._counted(words.BY_TAG, words.TAG, shown, None, notes)

    def _lates(self) -> Table:
        named = [replace(line, name=month_name(line.name, self._language)) for line in self._it.late]
        return self._counted(words.LATE, words.MONTH, named, self._late, [self._say(words.LATE_WHY)])

    def _counted(
        self, title: Text, name: Text, lines: Sequence[Line], sums: Line | None, notes: Sequence[str] = ()
    ) -> Table:
        """Make a table of names, orders, images and amounts, with a total if there are `sums`."""
        every = [*lines, *([] if sums is None else [replace(sums, name=self._say(words.TOTAL))])]
        amounts = column([line.amount_micro_mxn for line in every])
        rows = [
            Row(
                (
                    Cell(plain(line.name) or UNNAMED, line.id),
                    Cell(f"{line.orders:,}"),
                    Cell(f"{line.images:,}"),
                    Cell(amount),
                ),
                strong=place == len(lines),
            )
            for place, (line, amount) in enumerate(zip(every, amounts, strict=True))
        ]
        heads: Heads = ((name, "words"), (words.ORDERS, "number"), (words.IMAGES, "number"), (words.AMOUNT, "number"))
        return self._table(title, heads, rows, notes)

    def _movements(self) -> Table:
        shown = self._it.credits
        amounts = column([one.new.amount_micro_mxn for one in shown])
        taxed = [one.new.tax for one in shown]
        paid = [
            column([0 if tax is None else tax.base_micro_mxn for tax in taxed]),
            column([0 if tax is None else tax.iva_micro_mxn for tax in taxed]),
            column([0 if tax is None else tax.total_micro_mxn for tax in taxed]),
        ]
        rows = []
        for place, one in enumerate(shown):
            taxes = [Cell("" if one.new.tax is None else texts[place]) for texts in paid]
            day = Cell(short_day(day_of(one.at), self._language))
            rows.append(Row((day, self._concept(one), *taxes, Cell(amounts[place]))))
        notes = [] if rows else [self._say(words.NO_MOVEMENTS)]
        if earlier := self._it.credits_in_all - len(shown):
            notes.append(self._say(words.EARLIER_MOVEMENTS, count=f"{earlier:,}"))
        heads: Heads = ((words.DATE, "date"), (words.CONCEPT, "words"), *_PAID, (words.INTO_BALANCE, "number"))
        return self._table(words.MOVEMENTS, heads, rows, notes)

    def _concept(self, credit: Credit) -> Cell:
        """Say what a credit is; below it what it is of, and its reason; without either, its own id."""
        new, of = credit.new, []
        if new.order_id is not None:
            of.append(self._say(words.REFUND_OF, order=public_id(new.order_id)))
        if new.recharge_id is not None:
            of.append(self._say(words.CHARGEBACK_OF, recharge=plain(new.recharge_id)))
        if new.reason:
            of.append(plain(new.reason))
        return Cell(self._say(words.KIND[new.type]), " · ".join(of) or plain(new.credit_id))

    def _iva(self) -> Table:
        """Sum what was paid, by rate; chargebacks take their part back."""
        by_rate: dict[str, list[int]] = {}
        for one in self._it.paid:
            if one.iva_rate is not None:
                sums = by_rate.setdefault(one.iva_rate, [0, 0, 0])
                for place, amount in enumerate(
                    (one.base_micro_mxn, one.iva_micro_mxn, one.base_micro_mxn + one.iva_micro_mxn)
                ):
                    sums[place] += amount
        if not by_rate:
            return Table(self._say(words.IVA), (), (), (), (self._say(words.NO_IVA), self._say(words.IVA_WHY)))
        lines = [(_percent(rate), sums) for rate, sums in sorted(by_rate.items())]
        if len(lines) > 1:
            lines.append((self._say(words.TOTAL), [sum(amounts) for amounts in zip(*by_rate.values(), strict=True)]))
        texts = [column(amounts) for amounts in zip(*(sums for _, sums in lines), strict=True)]
        rows = [
            Row((Cell(name), *(Cell(text[place]) for text in texts)), strong=place >= len(by_rate))
            for place, (name, _) in enumerate(lines)
        ]
        return self._table(words.IVA, ((words.IVA_RATE, "words"), *_PAID), rows, [self._say(words.IVA_WHY)])

    def _rates(self) -> Table:
        rows = [
            Row(
                (
                    Cell(month_name(one.month, self._language)),
                    Cell(format_rate(Decimal(one.mxn_per_usd))),
                    Cell(plain(one.source), one.series or ""),
                    Cell(one.printed or UNNAMED),
                )
            )
            for one in self._it.rates
        ]
        notes = [self._say(words.RATE_WHY if rows else words.NO_RATE)]
        heads: Heads = (
            (words.MONTH, "words"),
            (words.PER_USD, "number"),
            (words.SOURCE, "words"),
            (words.PRINTED, "number"),
        )
        return self._table(words.RATE, heads, rows, notes)

    def _table(self, title: Text, heads: Heads, rows: Sequence[Row], notes: Sequence[str] = ()) -> Table:
        """Make a table; without rows it has no columns."""
        of = heads if rows else ()
        return Table(
            self._say(title),
            tuple(self._say(head) for head, _ in of),
            tuple(kind for _, kind in of),
            tuple(rows),
            tuple(notes),
        )


_PAID: Heads = ((words.BASE, "number"), (words.IVA_AMOUNT, "number"), (words.PAID, "number"))
"""Columns of what was paid."""


def _percent(rate: str) -> str:
    """Write `"0.16"` as `"16 %"`."""
    return f"{(Decimal(rate) * 100).normalize():f} %"
