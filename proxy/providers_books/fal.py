"""fal's prices, as it would bill them today: they are compared before a change of them costs money."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal

from config.catalogue import Model
from metering.reconciliation.findings import Finding, Kind
from proxy.providers_books.reading import Books

IDS_AT_ONCE = 50
"""Endpoints in one request; fal takes no more."""

IMAGES, MEGAPIXELS = frozenset({"image", "images"}), frozenset({"megapixel", "megapixels"})


@dataclass(frozen=True, slots=True)
class Price:
    """What fal asks for one `unit` of an endpoint."""

    usd: Decimal
    unit: str


async def prices(books: Books, url: str, endpoints: Sequence[str]) -> dict[str, Price]:
    """Read the prices of endpoints. Raises BooksFailed, also if one of them is missing."""
    found: dict[str, Price] = {}
    wanted = sorted(set(endpoints))
    for start in range(0, len(wanted), IDS_AT_ONCE):
        some = wanted[start : start + IDS_AT_ONCE]
        document = await books.get(f"{url}/models/pricing", [("endpoint_id", ",".join(some))])
        rows = document.get("prices")
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or document.get("has_more"):
            books.strange()
        for row in rows:
            name, unit = row.get("endpoint_id"), row.get("unit")
            if name not in some or name in found or not isinstance(unit, str) or row.get("currency") != "USD":
                books.strange()
            found[name] = Price(books.usd(row.get("unit_price")), unit.lower())
    if missing := [name for name in wanted if name not in found]:
        books.fail(f"the answer has no price of {missing[0]}")
    return found


def drift(
    found: Mapping[str, Price], models: Mapping[str, Model], images: Mapping[str, int]
) -> Iterator[Finding | str]:
    """Yield where a price is not the catalogue's; a sentence where the two cannot be compared.

    `images` are those of the month by endpoint: a difference counts for them. A price per megapixel is compared with a
    flat one as of an image of one megapixel.
    """
    for model in models.values():
        price = found.get(model.upstream)
        if model.provider != "fal" or price is None or not model.priced:
            continue
        ours = model.usd_per_image if model.usd_per_megapixel is None else model.usd_per_megapixel
        comparable = price.unit in MEGAPIXELS or (price.unit in IMAGES and model.usd_per_megapixel is None)
        if ours is None or not comparable:
            yield f"fal: {model.upstream} has a price per {price.unit}, which cannot be compared with the catalogue's"
        elif price.usd != ours:
            more = (price.usd - ours) * images.get(model.upstream, 0)
            detail = f"fal asks {price.usd:f} per {price.unit}, the catalogue has {ours:f}"
            yield Finding(Kind.PRICE, "fal", model.upstream, None, images.get(model.upstream, 0), more, detail)
