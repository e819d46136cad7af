"""Exchange rates and list prices: rows that never change."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from decimal import Decimal

from metering.clock import month_start_us, unix_us_at
from metering.ledger.rights import use_right
from metering.ledger.rows import Row, fields
from metering.ledger.transactions import Steps, Transactions, audit, closed_through, once
from metering.money import format_rate
from metering.ports import Act, FxOrigin, FxRecord, ListPrice, NotThere, PriceBook, PriceListId, SamePerson, WrongField
from metering.pricing import FxRate
from metering.schedules import BookPrice, ListedSchedule, PriceRefused, Schedule, changed, first_change_us

SEED = "seed"
"""Who entered and approved the rates that an empty table begins with."""


class PriceRecords(Transactions):
    """Rates and prices, against which the proofs of events are checked (rule 25)."""

    async def add_rate(
        self,
        rate: FxRate,
        at: datetime,
        act: Act | None = None,
        *,
        origin: FxOrigin | None = None,
        approved: bool = False,
    ) -> bool:
        """Add a month's rate; False if just this is its last one already. It is in force once it is approved.

        Without `act` it is the seed of an empty table, which counts as approved. Raises LedgerError if the month has
        begun with another rate, SamePerson if the actor has used another right of the month.
        """
        found, actor = origin or FxOrigin(), SEED if act is None else act.actor

        def steps() -> Steps[bool]:
            of_month = [one for one in records_of((yield "rate_records", {})) if one.rate.month == rate.month]
            _check_begun(of_month, rate, at)
            last = of_month[-1] if of_month else None
            if last is not None and last.rate.mxn_per_usd == rate.mxn_per_usd:
                if approved and last.approved_by is None:
                    yield from _approve(last.rate_id, actor, at)
                if act is not None:
                    yield from once(act, at.isoformat())
                return False
            if act is not None:
                yield from use_right(act, rate.month, "enter", at)
            ((rate_id,),) = yield (
                "add_rate",
                {
                    "month": rate.month,
                    "mxn_per_usd": format_rate(rate.mxn_per_usd),
                    "source": rate.source,
                    **fields(found),
                    "entered_by": actor,
                    "at": at.isoformat(),
                },
            )
            if approved or act is None:
                yield from _approve(rate_id, actor, at)
            if act is not None:
                yield from audit(act, at.isoformat())
            return True

        return await self._run("write", steps)

    async def approve_rate(
        self, month: str, mxn_per_usd: Decimal, at: datetime, act: Act, *, rate_id: int | None = None
    ) -> FxRecord:
        """Approve the last rate that was entered for a month, if it is this one; no effect if it is approved.

        Raises NotThere, WrongField if another was entered last, or the month has begun with another; SamePerson if it
        is the one who entered it that approves, or has used another right of the month.
        """

        def steps() -> Steps[FxRecord]:
            of_month = [one for one in records_of((yield "rate_records", {})) if one.rate.month == month]
            if not of_month:
                raise NotThere(f"no rate was entered for {month}")
            last = of_month[-1]
            if last.rate.mxn_per_usd != mxn_per_usd or rate_id not in (None, last.rate_id):
                entered = f"{format_rate(last.rate.mxn_per_usd)} by {last.entered_by}"
                raise WrongField("rate", f"the last that was entered for {month} is {entered}: look at it first")
            if last.approved_by is not None:
                yield from once(act, at.isoformat())
                return last
            _check_begun(of_month, last.rate, at)
            if act.apart and last.entered_by == act.actor:
                raise SamePerson(f"this rate of {month} was entered by {act.actor}: another person approves it")
            yield from use_right(act, month, "approve_fx", at)
            yield from _approve(last.rate_id, act.actor, at)
            yield from audit(act, at.isoformat())
            return replace(last, approved_by=act.actor, approved_at=at.isoformat())

        return await self._run("write", steps)

    async def rate_records(self) -> list[FxRecord]:
        """Read every rate that was ever entered, oldest month first, and how it came about."""
        return records_of(await self._rows("rate_records"))

    async def rates(self) -> list[FxRate]:
        """Read the rate of each month that has an approved one, oldest month first."""
        rows = await self._rows("rates")
        return [FxRate(month=month, mxn_per_usd=Decimal(rate), source=source) for month, rate, source in rows]

    async def rate_rows(self) -> set[tuple[str, Decimal]]:
        """Read every rate that was ever in force, as (month, MXN for one USD)."""
        return {(month, Decimal(rate)) for month, rate in await self._rows("all_rates")}

    async def register_prices(self, version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime) -> None:
        """Write a price book, once. A version's rows never change."""

        await self._run("write", lambda: _add_book(version, markup, prices, at))

    async def list_prices(
        self, book: PriceBook, now_us: int, at: datetime, lost: Mapping[tuple[str, str], ListedSchedule] | None = None
    ) -> bool:
        """Write a price book, and from when on its prices hold; False if all of that is known.

        A price that is changed must be announced (`metering/schedules.py`); one that was never sold before holds at
        once. `now_us` is Redis `TIME`. `lost` are schedules by which gateways sell, and which a restored ledger has
        lost: those of this book are written again as they were. Raises PriceRefused; then nothing is written.
        """
        again = {name: one for name, one in (lost or {}).items() if one.schedule.price.version == book.version}

        def steps() -> Steps[bool]:
            wanted = {"version": book.version, "effective_us": book.effective_us or 0}
            is_known = bool((yield "price_list", wanted))
            known = {name: rows[-1].schedule for name, rows in _histories((yield "price_schedules", {})).items()}
            restored = {name: one for name, one in again.items() if known.get(name) != one.schedule}
            if restored:
                yield from _add_book(book.version, book.markup, book.prices, at)
                for at_us in sorted({one.at_us for one in restored.values()}):  # as it was, for `verify` too
                    of_then = {name: one.schedule for name, one in restored.items() if one.at_us == at_us}
                    yield from _add_list(wanted, at_us, at, of_then)
                known |= {name: one.schedule for name, one in restored.items()}
                is_known = False
            planned = {
                (listed.model, listed.variant): schedule
                for listed in book.prices
                if (schedule := _planned(book, listed, known, is_known, now_us)) is not None
            }
            if (is_known or restored) and not planned:
                return bool(restored)
            yield from _add_book(book.version, book.markup, book.prices, at)
            yield from _add_list(wanted, now_us, at, planned)
            return True

        return await self._run("write", steps)

    async def last_price_list(self) -> PriceListId:
        """Read which list of prices is the last one."""
        rows = await self._rows("last_price_list")
        return PriceListId(*rows[0]) if rows else PriceListId()

    async def price_schedules(self) -> dict[tuple[str, str], list[ListedSchedule]]:
        """Read the schedules of every price: (model, variant) → all that were ever listed, by number."""
        return _histories(await self._rows("price_schedules"))

    async def price_rows(self) -> dict[tuple[str, str, str], tuple[Decimal, Decimal]]:
        """Read list prices: (version, model, variant) → (USD per image, markup)."""
        rows = await self._rows("price_rows")
        return {
            (version, model, variant): (Decimal(usd), Decimal(markup)) for version, model, variant, usd, markup in rows
        }


def _add_list(
    wanted: Mapping[str, object], at_us: int, at: datetime, schedules: Mapping[tuple[str, str], Schedule]
) -> Steps[None]:
    """Write a list, and from when on each of its prices holds."""
    ((number,),) = yield "add_price_list", {**wanted, "at_us": at_us, "at": at.isoformat()}
    for (model, variant), schedule in schedules.items():
        yield (
            "add_price_schedule",
            {
                "number": number,
                "model": model,
                "variant": variant,
                "version": schedule.price.version,
                "from_us": schedule.from_us,
                "version_before": schedule.before.version if schedule.before is not None else None,
            },
        )


def _add_book(version: str, markup: Decimal, prices: Sequence[ListPrice], at: datetime) -> Steps[None]:
    """Write a price book if it is not written yet."""
    if (yield "price_book", {"version": version}):
        return
    yield "add_price_book", {"version": version, "markup": format_rate(markup), "at": at.isoformat()}
    for price in prices:
        usd = format_rate(price.usd_per_image)
        values = {"version": version, "model": price.model, "variant": price.variant, "usd_per_image": usd}
        yield "add_price", {**values, "measured_by": price.measured_by}


def _planned(
    book: PriceBook, listed: ListPrice, known: Mapping[tuple[str, str], Schedule], is_known: bool, now_us: int
) -> Schedule | None:
    """Judge one price of a book: None if it changes nothing. Raises PriceRefused."""
    price = BookPrice(book.version, listed.usd_per_image, book.markup, listed.measured_by)
    if (schedule := known.get((listed.model, listed.variant))) is None:
        return Schedule(price)
    if price.measured_by and schedule.price.measured_by is None and schedule.price.same_as(price):
        return Schedule(price)  # it was listed before lists said how a report is priced
    field = f"models.{listed.model}" + (f" {listed.variant}" if listed.variant else "")
    if is_known and first_change_us(schedule, price, book.effective_us, now_us) is not None:
        # A file that some process found late must not undo what came after it.
        raise PriceRefused(
            f"price_book: {book.version} was replaced by a later file, which has another price for {field};"
            " to return to it, give the price book another name"
        )
    return changed(field, schedule, price, book.effective_us, now_us)


def _histories(rows: Sequence[Row]) -> dict[tuple[str, str], list[ListedSchedule]]:
    """Build schedules from rows of the statement `price_schedules`."""
    found: dict[tuple[str, str], list[ListedSchedule]] = defaultdict(list)
    for model, variant, number, at_us, from_us, *columns in rows:
        price, before = _book_price(*columns[:4]), _book_price(*columns[4:]) if columns[4] is not None else None
        found[model, variant].append(ListedSchedule(number, at_us, Schedule(price, from_us, before)))
    return dict(found)


def _book_price(version: str, usd_per_image: str, markup: str, measured_by: str | None) -> BookPrice:
    return BookPrice(version, Decimal(usd_per_image), Decimal(markup), measured_by)


def records_of(rows: Sequence[Row]) -> list[FxRecord]:
    """Build rates of record from rows of the statement `rate_records`."""
    return [FxRecord(row[0], FxRate(row[1], Decimal(row[2]), row[3]), FxOrigin(*row[4:9]), *row[9:]) for row in rows]


def _approve(rate_id: int, actor: str, at: datetime) -> Steps[None]:
    """Write an approval down: after the close of the last month, because a closed month's statements never change."""
    approved_at = (yield from closed_through()).after(at.isoformat())
    yield "approve_rate", {"rate_id": rate_id, "approved_by": actor, "at": approved_at}


def _check_begun(of_month: Sequence[FxRecord], rate: FxRate, at: datetime) -> None:
    """Raises WrongField if the month has begun with another rate: it is in proofs already."""
    in_force = [one.rate.mxn_per_usd for one in of_month if one.approved_by is not None]
    if in_force and in_force[-1] != rate.mxn_per_usd and unix_us_at(at) >= month_start_us(rate.month):
        raise WrongField(
            "month",
            f"{rate.month} has begun at {format_rate(in_force[-1])} MXN for one USD, and a month's rate is fixed",
        )
