"""A provider's books against the ledger, by model and day.

Both count by the time of the call. A call that crosses midnight may be on either day, so what a day should have is a
range: what may have moved to the next day is handed on from day to day, and never counts twice.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from itertools import pairwise
from typing import TypeVar

from metering.reconciliation.books import LEAST_USD, ZERO, Bill, Cell, Flow, Ours, Theirs
from metering.reconciliation.calendars import DAY, Span
from metering.reconciliation.findings import Finding, Kind

T = TypeVar("T", int, Decimal)


@dataclass(frozen=True, slots=True)
class _Day:
    """One day of one model, on both sides. `free`: nothing is missing on it, because it is not of this month."""

    day: date | None
    ours: Ours
    theirs: Theirs
    free: bool = False


@dataclass(slots=True)
class _Off:
    """How far a day is off: above zero if the provider bills more. `in_vain`: images of it that had an order."""

    day: date | None
    images: int
    usd: Decimal
    rounding: Decimal
    unit_usd: Decimal | None
    in_vain: int
    empty: bool
    """The ledger has no order on it."""


def compare(provider: str, span: Span, ours: Mapping[Cell, Ours], bill: Bill) -> Iterator[Finding]:
    """Yield what is off between a ledger and the books of a provider."""
    for model in sorted({model for model, _ in ours} | {model for model, _ in bill.cells}):
        before, days = _days_of(model, span, ours, bill)
        offs = _offs(before, days, bill)
        yield from _misdated(provider, model, offs, bill)
        for off in offs:
            yield from _findings(provider, model, off, bill)
    yield from of_total(provider, bill)


def of_total(provider: str, bill: Bill) -> Iterator[Finding]:
    """Yield an invoice's own total, if its lines do not add up to it."""
    if bill.total_usd is None:
        return
    stated = bill.usd + bill.credits_usd + bill.taxes_usd + bill.others_usd
    if abs(bill.total_usd - stated) > max(bill.total_rounding, LEAST_USD):
        says = f"it says {bill.total_usd:f}, and its lines add up to {stated:f}"
        yield Finding(Kind.TOTAL, provider, "", None, 0, bill.total_usd - stated, says)


def known_without_books(provider: str, ours: Mapping[Cell, Ours], *, billed: bool) -> Iterator[Finding]:
    """Yield what the ledger itself knows: what a provider said that an order costs, with its answer.

    `billed`: its books were compared, so they have said what they bill without a charge.
    """
    whole: dict[str, Ours] = {}
    for (model, day), one in sorted(ours.items(), key=lambda item: (item[0][0], str(item[0][1]))):
        whole.setdefault(model, Ours()).add(one)
        if one.uncharged.usd and not billed:
            told = "the provider gave its cost with its answer"
            yield Finding(Kind.NOT_CHARGED, provider, model, day, one.uncharged.images, one.uncharged.usd, told)
    for model, one in whole.items():
        if abs(one.told_usd - one.listed_usd) > LEAST_USD:
            told = f"{one.told_usd:f} by the provider's answers, {one.listed_usd:f} by our list prices"
            yield Finding(Kind.PRICE, provider, model, None, one.told_images, one.told_usd - one.listed_usd, told)


def _days_of(model: str, span: Span, ours: Mapping[Cell, Ours], bill: Bill) -> tuple[Flow, list[_Day]]:
    """Return what may have come over the first midnight, and the days to compare, in order."""
    before = ours.get((model, span.first - DAY), Ours()).crossing
    theirs = {day: one for (name, day), one in bill.cells.items() if name == model}
    in_span = span.days()
    if not bill.by_day:
        whole, billed = Ours(), Theirs()
        for day in in_span:
            whole.add(ours.get((model, day), Ours()))
        whole.crossing = ours.get((model, in_span[-1]), Ours()).crossing
        for one in theirs.values():
            billed.add(one.images, one.usd, one.rounding)
        return before, [_Day(None, whole, billed)]
    days = [_Day(day, ours.get((model, day), Ours()), theirs.get(day, Theirs())) for day in in_span]
    outside = sorted(day for day in theirs if day is not None and not span.first <= day < span.end)
    others = [_Day(day, Ours(), theirs[day], free=True) for day in outside]
    early = [one for one in others if one.day is not None and one.day < span.first]
    return before, [*early, *days, *(one for one in others if one not in early)]


def _offs(before: Flow, days: list[_Day], bill: Bill) -> list[_Off]:
    """Compute how far each day is off, beyond what may have crossed a midnight."""
    images = _drift(
        before.images, [(d.ours.expected.images, d.theirs.images, d.ours.crossing.images, d.free) for d in days]
    )
    usd = _drift(before.usd, [(d.ours.expected.usd, d.theirs.usd, d.ours.crossing.usd, d.free) for d in days])
    offs, from_day_before = [], before.in_vain
    for one, images_off, usd_off in zip(days, images, usd, strict=True):
        expected = one.ours.expected
        offs.append(
            _Off(
                one.day,
                images_off if bill.counts else 0,
                usd_off if bill.sums and abs(usd_off) > one.theirs.rounding else ZERO,
                one.theirs.rounding,
                _unit(one, bill),
                expected.in_vain + from_day_before,
                not expected.images and not expected.usd,
            )
        )
        from_day_before = one.ours.crossing.in_vain
    return offs


def _unit(one: _Day, bill: Bill) -> Decimal | None:
    """Find the price of an image of a day: ours, or else theirs."""
    if (unit := one.ours.unit_usd) is not None:
        return unit
    if one.ours.expected.images and not bill.sums:
        return one.ours.expected.usd / one.ours.expected.images
    return None


def _drift(before: T, days: list[tuple[T, T, T, bool]]) -> list[T]:
    """Return theirs less ours for each day (ours, theirs, crossing the midnight at its end, free).

    `low` and `high` are the least and the most that may have come over the midnight before a day.
    """
    zero = before - before
    low, high, drifts = zero, before, []
    for ours, theirs, crossing, free in days:
        if free:  # it may only have what crosses the midnight between it and the month
            taken = min(theirs, high)
            drifts.append(theirs - taken)
            high -= taken
            low = min(low, high)
            continue
        least, most = ours + low - theirs, ours + high - theirs  # what may go over the midnight at its end
        if most < zero:
            drifts.append(-most)
            low = high = zero
        elif least > crossing:
            drifts.append(crossing - least)
            low = high = crossing
        else:
            drifts.append(zero)
            low, high = max(zero, least), min(crossing, most)
    return drifts


def _misdated(provider: str, model: str, offs: list[_Off], bill: Bill) -> Iterator[Finding]:
    """Yield what is too little on one day and too much on the next, or the other way; what is left stays in `offs`.

    Only neighbours: further apart, one that is missing and one that is too many look the same.
    """
    for one, other in pairwise(offs):
        if (moved := _moved(one, other, bill)) is None:
            continue
        images, usd = moved
        ours, theirs = (one, other) if (one.images or one.usd) < 0 else (other, one)
        ours.images, theirs.images = ours.images + images, theirs.images - images
        if bill.sums:
            ours.usd, theirs.usd = _settled(ours.usd + usd, ours.rounding), _settled(theirs.usd - usd, theirs.rounding)
        yield Finding(Kind.MISDATED, provider, model, theirs.day, images, usd, f"the call was on {ours.day}")


def _moved(one: _Off, other: _Off, bill: Bill) -> tuple[int, Decimal] | None:
    """Find images and USD that one day lacks and the other has too many of."""
    if not bill.counts:
        opposite = one.usd * other.usd < 0 and abs(one.usd + other.usd) <= max(one.rounding, other.rounding)
        return (0, abs(one.usd)) if opposite else None
    if one.images * other.images >= 0:
        return None
    images = min(abs(one.images), abs(other.images))
    unit = one.unit_usd or other.unit_usd
    return images, min(abs(one.usd), abs(other.usd)) if unit is None else unit * images


def _settled(usd: Decimal, rounding: Decimal) -> Decimal:
    return usd if abs(usd) > rounding else ZERO


def _findings(provider: str, model: str, off: _Off, bill: Bill) -> Iterator[Finding]:
    def found(kind: Kind, images: int, usd: Decimal, detail: str = "") -> Finding:
        return Finding(kind, provider, model, off.day, images, usd, detail)

    if not bill.counts:
        if off.usd:
            yield found(_kind_of_amount(off, bill), 0, off.usd)
        return
    if not off.images:
        if off.usd:
            yield found(Kind.PRICE, 0, off.usd, _prices(off))
        return
    if 0 < off.images <= off.in_vain and bill.sums and not off.usd:
        return  # images that nobody pays for
    unit = off.unit_usd
    if unit is None and bill.sums:
        unit = off.usd / off.images
    at_unit = ZERO if unit is None else unit * off.images
    if off.images < 0:
        yield found(Kind.NOT_BILLED, -off.images, at_unit)
    else:
        in_vain = min(off.images, off.in_vain)
        each = at_unit / off.images
        if in_vain:
            yield found(Kind.NOT_CHARGED, in_vain, each * in_vain)
        if off.images > in_vain:
            yield found(Kind.NO_ORDER, off.images - in_vain, each * (off.images - in_vain))
    if bill.sums and (rest := _settled(off.usd - at_unit, off.rounding)):
        yield found(Kind.PRICE, 0, rest, _prices(off))


def _kind_of_amount(off: _Off, bill: Bill) -> Kind:
    """Find what an amount can mean without a number of images."""
    if off.usd > 0 and off.in_vain and (off.unit_usd is None or off.usd <= off.unit_usd * off.in_vain + off.rounding):
        return Kind.NOT_CHARGED
    if off.usd > 0 and off.empty:
        return Kind.NO_ORDER
    return Kind.AMOUNT


def _prices(off: _Off) -> str:
    return "" if off.unit_usd is None else f"ours is {off.unit_usd:f} an image"
