"""IVA on what is paid for credit: rates with their validity, from a TOML file that is read once at start.

What enters a wallet is the base, without IVA. The tax is due when the money is paid (`docs/money.md`).
"""

from dataclasses import dataclass
from datetime import date
from decimal import ROUND_HALF_UP, Context, Decimal
from pathlib import Path
from typing import Annotated

from pydantic import Field

from config.catalogue import CatalogueError, Row, read_rows

CENT_MICRO_MXN = 10_000
"""Micro-MXN in 0.01 MXN, to which a tax document rounds."""

_ROUND = Context(prec=100, rounding=ROUND_HALF_UP)

Rate = Annotated[Decimal, Field(ge=0, lt=1, decimal_places=6)]
"""A share, such as 0.16."""


@dataclass(frozen=True, slots=True)
class Tax:
    """What was paid for a recharge, in micro-MXN, each a multiple of 0.01 MXN. Of a chargeback, both are negative."""

    base_micro_mxn: int
    rate: Decimal
    iva_micro_mxn: int

    @property
    def total_micro_mxn(self) -> int:
        """Base and IVA together: what the bank moved."""
        return self.base_micro_mxn + self.iva_micro_mxn


def tax_on(amount_micro_mxn: int, rate: Decimal) -> Tax:
    """Compute the tax on what enters a wallet: the base, and the IVA on it, each rounded half up to 0.01 MXN."""
    base = _cents(Decimal(amount_micro_mxn))
    return Tax(base, rate, _cents(_ROUND.multiply(Decimal(base), rate)))


def _cents(micro_mxn: Decimal) -> int:
    return int(_ROUND.quantize(micro_mxn / CENT_MICRO_MXN, Decimal(1))) * CENT_MICRO_MXN


class IvaRate(Row):
    """A rate, and from which day it holds, to the day `to` if it ends; for one organisation or for all others."""

    rate: Rate
    first: Annotated[date, Field(alias="from")]
    last: Annotated[date | None, Field(alias="to")] = None
    org: Annotated[str, Field(min_length=1)] | None = None


class TaxFile(Row):
    iva: Annotated[tuple[IvaRate, ...], Field(min_length=1)]


class IvaRates:
    """The rates of GHUB_TAX."""

    def __init__(self, rows: tuple[IvaRate, ...]) -> None:
        self._rows = rows

    def rate_for(self, org_id: str, name: str, day: str) -> Decimal | None:
        """Find the rate of an organisation on a day of Mexico City. None if none holds.

        A row that names it, by id or name, comes before the general ones; of each the latest that has begun holds.
        """
        on = date.fromisoformat(day)
        holding = [row for row in self._rows if row.first <= on and (row.last is None or on <= row.last)]
        its_own = [row for row in holding if row.org in (org_id, name)]
        rows = its_own or [row for row in holding if row.org is None]
        return max(rows, key=lambda row: row.first).rate if rows else None


def read_iva(path: Path | None) -> IvaRates:
    """Read the rates in `path`, or those that ship. Raises CatalogueError, which names the field."""
    rows = read_rows(TaxFile, "GHUB_TAX", path, "tax.toml").iva
    for row in rows:
        if row.last is not None and row.last < row.first:
            raise CatalogueError(f"GHUB_TAX: {path}: iva: `to` {row.last} is before `from` {row.first}")
    return IvaRates(rows)
