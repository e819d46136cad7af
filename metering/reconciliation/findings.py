"""What a comparison finds: each kind counted and summed, the first ones named."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum

MAX_NAMED = 500
"""Findings that are kept one by one: about 100 kB in the record. All are counted and summed."""


class Kind(Enum):
    """Kinds of findings. The values are text for a person."""

    NOT_BILLED = "not billed"
    NO_ORDER = "billed, no order"
    NOT_CHARGED = "billed, not charged"
    TWICE = "billed twice"
    PRICE = "price"
    AMOUNT = "amount"
    MISDATED = "misdated"
    TOTAL = "total"
    ORPHAN = "orphan"
    NO_OBJECT = "no object"


MEANINGS = {
    Kind.NOT_BILLED: "charged to a customer, and the provider does not bill it",
    Kind.NO_ORDER: "the provider bills it, and no order of ours asked for it",
    Kind.NOT_CHARGED: "the provider bills an order that was not delivered, so nobody was charged",
    Kind.TWICE: "one request of ours stands more than once in the invoice",
    Kind.PRICE: "the price is not ours: of images as many as ours, or of today",
    Kind.AMOUNT: "another amount than ours; the books do not say how many images",
    Kind.MISDATED: "the provider has it on another day than that of the call",
    Kind.TOTAL: "an invoice's total is not the sum of its lines",
    Kind.ORPHAN: "an object in the store that nobody was charged for",
    Kind.NO_OBJECT: "charged, and its image is not in the store",
}

FREE = (Kind.MISDATED, Kind.ORPHAN)
"""Kinds by which nobody bills more or less than expected: their sums are not off."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is off. `usd` is billed less expected: above zero if the provider bills more than we expect.

    `day` is the provider's, and None if its books do not say days. `id` is the provider's, or the path of an object.
    """

    kind: Kind
    provider: str
    model: str
    day: date | None
    images: int
    usd: Decimal
    detail: str = ""
    id: str = ""

    @property
    def off_usd(self) -> Decimal:
        """What of it counts towards a threshold."""
        return Decimal(0) if self.kind in FREE else abs(self.usd)


@dataclass(slots=True)
class Total:
    """The findings of one kind."""

    count: int = 0
    images: int = 0
    usd: Decimal = Decimal(0)


@dataclass(slots=True)
class Findings:
    """Counts findings, and passes each of them on to `tell`."""

    tell: Callable[[Finding], None] = lambda _: None
    totals: dict[Kind, Total] = field(default_factory=dict)
    named: list[Finding] = field(default_factory=list)
    off_usd: Decimal = Decimal(0)

    @property
    def count(self) -> int:
        """Count all of them."""
        return sum(total.count for total in self.totals.values())

    def add(self, finding: Finding) -> None:
        """Take one in."""
        total = self.totals.setdefault(finding.kind, Total())
        total.count += 1
        total.images += finding.images
        total.usd += finding.usd
        self.off_usd += finding.off_usd
        if len(self.named) < MAX_NAMED:
            self.named.append(finding)
        self.tell(finding)

    def within(self, threshold_usd: Decimal) -> bool:
        """True if what is off is within a threshold. Within zero is only what has no finding at all."""
        return not self.count if threshold_usd == 0 else self.off_usd <= threshold_usd
