"""The metering event: one per order, immutable, with its price proof.

An event comes in two halves. The half that is known at admission is kept in Redis with the hold. So if the gateway
dies, the order can still end as an expiry that says what it was. Whoever closes the hold adds the end.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, Literal, TypeVar, get_args, get_type_hints
from uuid import UUID

import orjson

from metering.clock import period_at, utc_at
from metering.limits import LIMITS
from metering.money import MAX_MICRO_MXN, format_rate
from metering.pricing import FxRate, Price, Quote, charge_micro_mxn

VERSION = 1
_SMALLEST = Decimal("1e-12")
"""Smallest price, markup or rate that makes sense. The largest is 2^53."""

End = Literal["charge", "void", "expiry"]
_ENDS = frozenset(get_args(End))
UNKNOWN = frozenset({"overloaded", "no_answer", "deadline", "fault", "lost"})
"""Reasons of voids whose upstream outcome is unknown: such an order keeps its idempotency key (rule 17)."""

CANCELLED = "cancelled"
"""Reason of a void that the customer asked for."""

CAUSED = frozenset({"deadline", CANCELLED})
"""Reasons of voids that a customer can bring about, and for which the provider may bill us. Only these are bounded for
an organisation: an outage of a provider, or a fault of ours, is nobody's abuse.
"""

UNPAID = UNKNOWN | {CANCELLED}
"""Reasons of voids for which the provider may bill us: what they may have cost is counted for each organisation."""

ADMISSION_UNREAD = "admission_unread"
"""Reason of a void after an admission whose answer did not arrive: its customer was told that it was not placed."""

NOT_SETTLED = "not_settled"
"""Reason of a void after a settlement without a yes: its customer was told that it was not made in time."""

LONG = "long"
"""Mode of an order that is answered at once, and takes minutes. Any other order has no mode."""

NOTICES = (*(kind.name for kind in LIMITS.values() if kind.noticed), "balance")
"""What an organisation is told of."""


class EventError(ValueError):
    """A stream entry that is not one of our events; the message names the field."""


@dataclass(frozen=True, slots=True)
class Proof:
    """Factors of the unit price; decimals are canonical strings."""

    variant: str
    usd_per_image: str
    price_book: str
    markup: str
    mxn_per_usd: str
    fx_month: str
    fx_source: str
    unit_micro_mxn: int

    def decimals(self) -> tuple[Decimal, Decimal, Decimal]:
        """Parse USD list price, markup, FX."""
        return Decimal(self.usd_per_image), Decimal(self.markup), Decimal(self.mxn_per_usd)


@dataclass(frozen=True, slots=True)
class Opened:
    """Facts of an order that are known at its admission. `day` and `month` are Mexico City's.

    `once` is the hash of its idempotency key, with the order's fingerprint. `end_user` and `safety_id` are pseudonyms,
    `tags` a JSON list of texts, `metadata` a JSON object of texts. `mode` is `LONG` for an order whose client did
    not wait, `webhook` the address that is called at its end. What an order does not have is left out of its JSON, for
    an older consumer would set the event aside.
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
    end_user: str | None = None
    safety_id: str | None = None
    tags: str | None = None
    metadata: str | None = None
    mode: str | None = None
    webhook: str | None = None


@dataclass(frozen=True, slots=True)
class StoredImage:
    """One delivered image. `path` is its name in the store, `sha256` is of exactly the stored bytes."""

    path: str
    content_type: str
    size_bytes: int
    sha256: str
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True)
class Route:
    """The second route of a model, by which an order went: its provider, its name there, and its list price per image.

    `usd_per_image` is a canonical decimal; it is never above the one of the order's proof, which covers both routes.
    """

    provider: str
    upstream: str
    usd_per_image: str


@dataclass(frozen=True, slots=True)
class Upstream:
    """What a provider calls its requests for an order, a JSON list, and its own figure in USD for those that gave one.

    This is known of every order that it was asked for, charged or not, as far as it has answered. `route` is None for
    an order that went by its model's first route, as nearly all do.
    """

    ids: str | None = None
    usd: str | None = None
    route: Route | None = None


UNTOLD = Upstream()


@dataclass(frozen=True, slots=True)
class Event:
    """One order, ended. `number` counts an organisation's events from 1 without a gap.

    `usd_measured` is what the whole order cost in USD, if the price depends on it: by the provider's own figure, or by
    the list price of the route that served it, if the quote is that of a dearer one. `result` is what the order's owner
    may fetch again together with the images. `upstream_ids`, a JSON list, are the provider's own ids of the requests,
    and `upstream_usd` is its figure for all of them, also if the order is not charged. `route` is the second route, if
    it went by that. `handed` says who went on with a long order after its first gateway, in turn: `incarnation:number`
    of their journals, with spaces between them.
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
    upstream_ids: str | None = None
    upstream_usd: str | None = None
    handed: str | None = None
    route: Route | None = None

    @property
    def event_id(self) -> str:
        """The request's id: an order ends once, so it has one event."""
        return self.opened.request_id


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an organisation, or the owner of one of its keys, should know.

    `what` is a quota (`images_per_day`) of which `percent` is reached, or `balance`: credits less charges fell under
    `limit`. Money is in micro-MXN. `period` is the day, the month, or the number of the last credit: in one period
    nothing is told twice.
    """

    org_id: str
    key_id: str
    what: str
    percent: int
    period: str
    limit: int
    used: int
    at: str


RowT = TypeVar("RowT", Proof, Opened, StoredImage, Route)
_TYPES: Mapping[type, Mapping[str, frozenset[type]]] = {
    kind: {name: frozenset(get_args(hint) or (hint,)) for name, hint in get_type_hints(kind).items()}
    for kind in (Proof, Opened, StoredImage, Route)
}
"""The types that each field may have. A bool is no int here."""

_PROOFS = 256
"""Proofs that are remembered, about 200 kB: an event's proof is nearly always that of many others."""


def encode_opened(order_id: str, org_id: str, key_id: str, quote: Quote, facts: Mapping[str, str | None]) -> bytes:
    """Encode the half known at admission as JSON. `facts`: model, provider, upstream, size, quality, region, once.

    And of end_user, safety_id, tags, metadata, mode and webhook those that there are.
    """
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
            "request_id": order_id,
            "org_id": org_id,
            "key_id": key_id,
            "images": quote.images,
            "day": quote.period.day,
            "month": quote.period.month,
            "proof": proof,
            **facts,
        }
    )


def quote_of(opened: Opened, admitted_us: int, measured_by: str | None = None) -> Quote:
    """Build the quote of an order again, as it was admitted at this Unix time in µs.

    `measured_by` of its price does not stand in its event.
    """
    proof = opened.proof
    usd, markup, mxn_per_usd = proof.decimals()
    return Quote(
        price=Price(opened.model, usd, markup, proof.price_book, proof.variant, measured_by=measured_by),
        rate=FxRate(proof.fx_month, mxn_per_usd, proof.fx_source),
        period=period_at(admitted_us),
        images=opened.images,
        unit_micro_mxn=proof.unit_micro_mxn,
    )


def encode_images(images: tuple[StoredImage, ...]) -> bytes:
    """Encode the delivered images as JSON."""
    return orjson.dumps(images)


def encode_route(route: Route | None) -> str:
    """Encode a second route as JSON; empty if there is none."""
    return orjson.dumps(route).decode() if route is not None else ""


def decode_images(data: bytes) -> tuple[StoredImage, ...]:
    """Decode JSON that `encode_images` wrote."""
    return tuple(StoredImage(**image) for image in orjson.loads(data))


def recompute(event: Event) -> int:
    """Compute the amount in micro-MXN again from the event's own proof, starting at the list price."""
    usd, markup, mxn_per_usd = event.opened.proof.decimals()
    measured = None if event.usd_measured is None else Decimal(event.usd_measured)
    return charge_micro_mxn(usd, markup, mxn_per_usd, event.quantity, measured)


def decode(fields: Mapping[bytes, bytes]) -> Event:
    """Decode a stream entry. Raises EventError: a foreign or damaged entry must never reach the ledger."""
    try:
        opened = _opened(fields[b"opened"])
        end = fields[b"end"].decode()
        if end not in _ENDS:
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
            upstream_ids=fields.get(b"upstream_ids", b"").decode() or None,
            upstream_usd=fields.get(b"upstream_usd", b"").decode() or None,
            handed=fields.get(b"handed", b"").decode() or None,
            route=_row(Route, orjson.loads(fields[b"route"])) if b"route" in fields else None,
        )
        _check(event)
    except KeyError as error:
        raise EventError(f"{error.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise EventError(str(error)) from None
    return event


def handovers(handed: str) -> list[tuple[UUID, int]]:
    """Read who went on with an order: incarnation, and number in its journal. Raises EventError."""
    try:
        pairs = [one.split(":") for one in handed.split(" ")]
        return [(UUID(incarnation), int(number)) for incarnation, number in pairs]
    except ValueError:
        raise EventError("handed: is no list of incarnations with numbers") from None


def decode_opened(data: bytes) -> Opened:
    """Decode the half known at admission, which `encode_opened` wrote. Raises EventError."""
    try:
        return _opened(data)
    except KeyError as error:
        raise EventError(f"{error.args[0]!r} is missing") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise EventError(str(error)) from None


def decode_notice(fields: Mapping[bytes, bytes]) -> Notice:
    """Decode a stream entry that carries a `notice`. Raises EventError."""
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
    opened["proof"] = _proof(opened["proof"])
    return _row(Opened, opened)


def _row(kind: type[RowT], values: Any) -> RowT:
    """Build a row from JSON, checking the type of each field."""
    types = _TYPES[kind]
    for name, value in values.items():
        if name not in types:
            raise EventError(f"{kind.__name__.lower()}: holds {name!r}, which version {VERSION} does not know")
        if type(value) not in types[name]:
            raise EventError(f"{name}: has another type")
        if type(value) is str and "\0" in value:
            raise EventError(f"{name}: holds a NUL, which no database keeps")
    return kind(**values)


def _proof(values: Any) -> Proof:
    try:
        return _known_proof(**values)
    except TypeError:  # a value that cannot be looked up has a wrong type, or it is no object at all
        return _row(Proof, values)


@lru_cache(maxsize=_PROOFS, typed=True)
def _known_proof(**values: Any) -> Proof:
    """Build a proof once. Typed: 1, 1.0 and true are equal, and only one of them is valid."""
    return _row(Proof, values)


@lru_cache(maxsize=_PROOFS)
def _are_prices(proof: Proof) -> bool:
    """True if its numbers are in their range. Raises ArithmeticError if one is no number."""
    return all(number.is_finite() and _SMALLEST <= number <= MAX_MICRO_MXN for number in proof.decimals())


def _check(event: Event) -> None:
    """Refuse what the record would refuse, and what cannot be recomputed. Raises EventError."""
    texts = (event.reason, event.result, event.usd_measured, event.upstream_ids, event.upstream_usd, event.handed)
    if any("\0" in text for text in texts if text is not None):
        raise EventError("a text holds a NUL, which no database keeps")
    _check_labels(event)
    proof = event.opened.proof
    quoted = event.quantity * proof.unit_micro_mxn
    if event.usd_measured is None and event.amount_micro_mxn != quoted:
        raise EventError("amount: is not quantity × unit price")
    if event.usd_measured is not None and not 0 < event.amount_micro_mxn <= quoted:
        raise EventError("amount: is not from 1 up to quantity × unit price")
    if event.usd_measured is not None and not (0 <= Decimal(event.usd_measured) < MAX_MICRO_MXN):
        raise EventError("usd_measured: is no figure in USD")
    if not event.opened.day.startswith(f"{event.opened.month}-"):
        raise EventError("day: is not of the order's month")
    if event.quantity != len(event.images):
        raise EventError("quantity: is not the number of stored images")
    if not 0 <= event.quantity <= event.opened.images or (event.end == "charge") != (event.quantity > 0):
        raise EventError("quantity: does not fit the order and its end")
    if not _are_prices(proof):
        raise EventError("proof: holds a number that is no price")
    counted = (event.number, proof.unit_micro_mxn, event.opened.images, event.admitted_us, event.ended_us)
    if not all(0 < number <= MAX_MICRO_MXN for number in counted):
        raise EventError("a number is out of its range")


def _check_labels(event: Event) -> None:
    """Refuse what the ledger could not group by, or could not read back. Raises EventError."""
    for name, text in (("tags", event.opened.tags), ("upstream_ids", event.upstream_ids)):
        if text is not None and not _are_texts(orjson.loads(text), list):
            raise EventError(f"{name}: is no list of texts")
    if event.opened.metadata is not None and not _are_texts(orjson.loads(event.opened.metadata), dict):
        raise EventError("metadata: is no object of texts")
    if event.upstream_usd is not None and not 0 <= Decimal(event.upstream_usd) < MAX_MICRO_MXN:
        raise EventError("upstream_usd: is no figure in USD")
    if event.handed is not None:
        handovers(event.handed)
    if event.route is not None and not 0 < Decimal(event.route.usd_per_image) < MAX_MICRO_MXN:
        raise EventError("route: its price is no figure in USD")


def _are_texts(value: Any, kind: type[list[str] | dict[str, str]]) -> bool:
    if type(value) is not kind:
        return False
    texts = value.values() if isinstance(value, dict) else value
    return all(type(text) is str and "\0" not in text for text in texts)


def _check_notice(notice: Notice) -> None:
    """What the record would refuse, or what nobody is told of."""
    if notice.what not in NOTICES:
        raise EventError("notice: unknown")
    if "\0" in notice.org_id + notice.key_id + notice.period:
        raise EventError("a text holds a NUL, which no database keeps")
    if not all(abs(number) <= MAX_MICRO_MXN for number in (notice.percent, notice.limit, notice.used)):
        raise EventError("a number is out of its range")
