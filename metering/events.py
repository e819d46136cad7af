"""The metering event: one per order, immutable, with its price proof.

An event comes in two halves. What is known at admission lies in Redis with the hold, so that an order whose gateway
died can still end as an expiry that says what it was. The end is added by whoever closes the hold.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any, Literal, TypeVar, get_args, get_type_hints

import orjson

from metering.clock import utc_at
from metering.money import MAX_MICRO_MXN, format_rate, measured_micro_mxn, unit_price_micro_mxn
from metering.pricing import Quote

VERSION = 1
_SMALLEST = Decimal("1e-12")
"""Of a price, a markup or a rate: below this none is meant, and above 2^53 neither."""

End = Literal["charge", "void", "expiry"]
UNKNOWN = frozenset({"overloaded", "no_answer", "deadline", "fault"})
"""Reasons of voids of which nobody knows what became of them upstream: they keep their idempotency key (rule 17)."""


class EventError(ValueError):
    """A stream entry that is no event of ours; the message names the field."""


@dataclass(frozen=True, slots=True)
class Proof:
    """How the unit price came about; decimals are canonical strings."""

    variant: str
    usd_per_image: str
    price_book: str
    markup: str
    mxn_per_usd: str
    fx_month: str
    fx_source: str
    unit_micro_mxn: int

    def decimals(self) -> tuple[Decimal, Decimal, Decimal]:
        """USD list price, markup, FX."""
        return Decimal(self.usd_per_image), Decimal(self.markup), Decimal(self.mxn_per_usd)


@dataclass(frozen=True, slots=True)
class Opened:
    """What is known of an order when it is admitted. `day` and `month` are Mexico City's.

    `once` is the hash of the idempotency key that it came with, and the order's fingerprint.
    """

    request_id: str
    org_id: str
    key_id: str
    model: str
    provider: str
    upstream: str
    size: str
    quality: str | None
    images: int
    day: str
    month: str
    region: str
    proof: Proof
    once: str | None = None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One delivered image. `path` is its name in the store, `sha256` of exactly the bytes stored."""

    path: str
    content_type: str
    size_bytes: int
    sha256: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Event:
    """One order, ended. `number` counts an organisation's events from 1 without a gap.

    `usd_measured` is the provider's own figure for the whole order, where the price depends on it; `result` is what the
    order's owner may fetch again, beside the images.
    """

    number: int
    opened: Opened
    end: End
    reason: str
    quantity: int
    amount_micro_mxn: int
    admitted_us: int
    ended_us: int
    images: tuple[StoredImage, ...]
    usd_measured: str | None = None
    result: str = ""

    @property
    def event_id(self) -> str:
        """The request's id: an order ends once, so it has one event."""
        return self.opened.request_id


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an organisation, or who has one of its keys, should be told.

    `what` is a quota (`images_per_day`, `images_per_month`, `mxn_per_month`) of which `percent` is reached, or
    `balance`: credits less charges fell under `limit`. Money is in micro-MXN. `period` is the day, the month, or the
    number of the last credit: in one period nothing is told twice.
    """

    org_id: str
    key_id: str
    what: str
    percent: int
    period: str
    limit: int
    used: int
    at: str


RowT = TypeVar("RowT", Proof, Opened, StoredImage)
_TYPES: Mapping[type, Mapping[str, Any]] = {kind: get_type_hints(kind) for kind in (Proof, Opened, StoredImage)}


def encode_opened(request_id: str, org_id: str, key_id: str, quote: Quote, facts: Mapping[str, str | None]) -> bytes:
    """The admission's half as JSON. `facts`: model, provider, upstream, size, quality, region, once."""
    proof = Proof(
        variant=quote.price.variant,
        usd_per_image=format_rate(quote.price.usd_per_image),
        price_book=quote.price.price_book,
        markup=format_rate(quote.price.markup),
        mxn_per_usd=format_rate(quote.rate.mxn_per_usd),
        fx_month=quote.rate.month,
        fx_source=quote.rate.source,
        unit_micro_mxn=quote.unit_micro_mxn,
    )
    return orjson.dumps(
        {
            "v": VERSION,
            "request_id": request_id,
            "org_id": org_id,
            "key_id": key_id,
            "images": quote.images,
            "day": quote.period.day,
            "month": quote.period.month,
            "proof": proof,
            **facts,
        }
    )


def encode_images(images: tuple[StoredImage, ...]) -> bytes:
    """The delivered images as JSON."""
    return orjson.dumps([asdict(image) for image in images])


def decode_images(data: bytes) -> tuple[StoredImage, ...]:
    """From JSON that `encode_images` wrote."""
    return tuple(StoredImage(**image) for image in orjson.loads(data))


def recompute(event: Event) -> int:
    """The amount in micro-MXN by the event's own proof, from the list price on."""
    usd, markup, mxn_per_usd = event.opened.proof.decimals()
    quoted = unit_price_micro_mxn(usd, markup, mxn_per_usd) * event.quantity
    if event.usd_measured is None:
        return quoted
    return measured_micro_mxn(Decimal(event.usd_measured), markup, mxn_per_usd, quoted)


def decode(fields: Mapping[bytes, bytes]) -> Event:
    """A stream entry → event. Raises EventError; a foreign or damaged entry must never reach the ledger."""
    try:
        opened = _opened(fields[b"opened"])
        end = fields[b"end"].decode()
        if end not in get_args(End):
            raise EventError("end: unknown")
        event = Event(
            number=int(fields[b"number"]),
            opened=opened,
            end=end,  # type: ignore[arg-type]  # checked two lines above
            reason=fields[b"reason"].decode(),
            quantity=int(fields[b"quantity"]),
            amount_micro_mxn=int(fields[b"amount"]),
            admitted_us=int(fields[b"admitted_us"]),
            ended_us=int(fields[b"ended_us"]),
            images=tuple(_row(StoredImage, image) for image in orjson.loads(fields[b"images"])),
            usd_measured=fields[b"usd_measured"].decode() or None,
            result=fields[b"result"].decode(),
        )
        _check(event)
    except KeyError as error:
        raise EventError(f"{error.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise EventError(str(error)) from None
    return event


def decode_opened(data: bytes) -> Opened:
    """The admission's half, as `encode_opened` wrote it. Raises EventError."""
    try:
        return _opened(data)
    except KeyError as error:
        raise EventError(f"{error.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise EventError(str(error)) from None


def decode_notice(fields: Mapping[bytes, bytes]) -> Notice:
    """A stream entry that carries a `notice`. Raises EventError."""
    try:
        notice = Notice(
            org_id=fields[b"org"].decode(),
            key_id=fields[b"key"].decode(),
            what=fields[b"notice"].decode(),
            percent=int(fields[b"percent"]),
            period=fields[b"period"].decode(),
            limit=int(fields[b"limit"]),
            used=int(fields[b"used"]),
            at=utc_at(int(fields[b"at_us"])).isoformat(),
        )
        _check_notice(notice)
    except KeyError as error:
        raise EventError(f"{error.args[0]!r} is missing") from None
    except (ValueError, OverflowError) as error:
        raise EventError(str(error)) from None
    return notice


def _opened(data: bytes) -> Opened:
    opened = orjson.loads(data)
    if (version := opened.pop("v")) != VERSION:
        raise EventError(
            f"opened.v: is {version}, and this program reads version {VERSION}: run the newer consumer, then"
            " `ghub event retry`"
        )
    return _row(Opened, opened | {"proof": _row(Proof, opened.pop("proof"))})


def _row(kind: type[RowT], values: Any) -> RowT:
    """JSON → row, each field of its declared type."""
    if unknown := values.keys() - _TYPES[kind].keys():
        raise EventError(f"{kind.__name__.lower()}: holds {min(unknown)!r}, which version {VERSION} does not know")
    row = kind(**values)
    for name, wanted in _TYPES[kind].items():
        value = getattr(row, name)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise EventError(f"{name}: has another type")
        if isinstance(value, str) and "\0" in value:
            raise EventError(f"{name}: holds a NUL, which no database keeps")
    return row


def _check(event: Event) -> None:
    """What the record would refuse, or what nobody could recompute."""
    if "\0" in event.reason + event.result + (event.usd_measured or ""):
        raise EventError("a text holds a NUL, which no database keeps")
    proof = event.opened.proof
    quoted = event.quantity * proof.unit_micro_mxn
    if event.usd_measured is None and event.amount_micro_mxn != quoted:
        raise EventError("amount: is not quantity × unit price")
    if event.usd_measured is not None and not 0 < event.amount_micro_mxn <= quoted:
        raise EventError("amount: is not from 1 up to quantity × unit price")
    if event.usd_measured is not None and not (0 <= Decimal(event.usd_measured) < MAX_MICRO_MXN):
        raise EventError("usd_measured: is no figure in USD")
    if event.quantity != len(event.images):
        raise EventError("quantity: is not the number of stored images")
    if not 0 <= event.quantity <= event.opened.images or (event.end == "charge") != (event.quantity > 0):
        raise EventError("quantity: does not fit the order and its end")
    if not all(number.is_finite() and _SMALLEST <= number <= MAX_MICRO_MXN for number in proof.decimals()):
        raise EventError("proof: holds a number that is no price")
    counted = (event.number, proof.unit_micro_mxn, event.opened.images, event.admitted_us, event.ended_us)
    if not all(0 < number <= MAX_MICRO_MXN for number in counted):
        raise EventError("a number is out of its range")


def _check_notice(notice: Notice) -> None:
    """What the record would refuse, or what nobody is told of."""
    if notice.what not in ("images_per_day", "images_per_month", "mxn_per_month", "balance"):
        raise EventError("notice: unknown")
    if "\0" in notice.org_id + notice.key_id + notice.period:
        raise EventError("a text holds a NUL, which no database keeps")
    if not all(abs(number) <= MAX_MICRO_MXN for number in (notice.percent, notice.limit, notice.used)):
        raise EventError("a number is out of its range")
