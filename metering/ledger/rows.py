"""Conversion between events and rows of the record."""

from typing import Any

import orjson

from metering.events import Event, Opened, Proof, Route, StoredImage
from metering.limits import Limits
from metering.ports import ApiKey, Org

Row = tuple[Any, ...]


def fields(row: Any) -> dict[str, Any]:
    """Read a dataclass with slots as values by name."""
    return {name: getattr(row, name) for name in row.__slots__}


def org_of(row: Row) -> Org:
    """Build an organisation from a row of the statements `org` and `orgs`."""
    org_id, name, plan, created_at, suspended_at, *limits = row
    return Org(org_id, name, plan, created_at, Limits(*limits), suspended_at)


def key_of(row: Row) -> ApiKey:
    """Build a key from a row of the statements `key` and `keys`."""
    key_id, org_id, name, key_hash, created_at, revoked_at, expires_at, *may = row
    models, read, response_format, origins, replaces, *limits = may
    return ApiKey(
        key_id=key_id,
        org_id=org_id,
        name=name,
        key_hash=key_hash,
        created_at=created_at,
        revoked_at=revoked_at,
        expires_at=expires_at,
        models=tuple(models.split()),
        read=read,
        response_format=response_format,
        origins=tuple(origins.split()),
        replaces=replaces,
        limits=Limits(*limits),
    )


def event_row(event: Event, booked_at: str, posted: str | None = None) -> dict[str, Any]:
    """Build a row by the names of the table's columns, in the order of the statements that insert it.

    `posted` is the month to which it is posted, if that is not its own.
    """
    opened, proof, route = event.opened, event.opened.proof, event.route
    return {
        "event_id": opened.request_id,
        "org_id": opened.org_id,
        "number": event.number,
        "key_id": opened.key_id,
        "model": opened.model,
        "provider": opened.provider,
        "upstream": opened.upstream,
        "size": opened.size,
        "quality": opened.quality,
        "region": opened.region,
        "day": opened.day,
        "month": opened.month,
        "images_asked": opened.images,
        "end": event.end,
        "reason": event.reason,
        "quantity": event.quantity,
        "variant": proof.variant,
        "usd_per_image": proof.usd_per_image,
        "price_book": proof.price_book,
        "markup": proof.markup,
        "mxn_per_usd": proof.mxn_per_usd,
        "fx_month": proof.fx_month,
        "fx_source": proof.fx_source,
        "unit_micro_mxn": proof.unit_micro_mxn,
        "usd_measured": event.usd_measured,
        "amount_micro_mxn": event.amount_micro_mxn,
        "admitted_us": event.admitted_us,
        "ended_us": event.ended_us,
        "images": orjson.dumps(event.images).decode(),
        "booked_at": booked_at,
        "once": opened.once,
        "posted": posted,
        "end_user": opened.end_user,
        "safety_id": opened.safety_id,
        "tags": opened.tags,
        "metadata": opened.metadata,
        "upstream_ids": event.upstream_ids,
        "upstream_usd": event.upstream_usd,
        "mode": opened.mode,
        "handed": event.handed,
        "route_provider": route.provider if route else None,
        "route_upstream": route.upstream if route else None,
        "route_usd_per_image": route.usd_per_image if route else None,
    }


def event_of(row: Row) -> Event:
    """Build an event from a row of the statement `events`."""
    number, event_id, org_id, key_id, model, provider, upstream, size, quality, images_asked, day, month, region = row[
        :13
    ]
    end, reason, quantity, usd_measured, amount, admitted_us, ended_us, images, once, *labels = row[21:]
    end_user, safety_id, tags, metadata, upstream_ids, upstream_usd, mode, handed, *route = labels
    return Event(
        number=number,
        opened=Opened(
            request_id=event_id,
            org_id=org_id,
            key_id=key_id,
            model=model,
            provider=provider,
            upstream=upstream,
            size=size,
            quality=quality,
            images=images_asked,
            day=day,
            month=month,
            region=region,
            once=once,
            proof=Proof(*row[13:21]),
            end_user=end_user,
            safety_id=safety_id,
            tags=tags,
            metadata=metadata,
            mode=mode,
        ),
        end=end,
        reason=reason,
        quantity=quantity,
        amount_micro_mxn=amount,
        admitted_us=admitted_us,
        ended_us=ended_us,
        images=tuple(StoredImage(**image) for image in orjson.loads(images)),
        usd_measured=usd_measured,
        upstream_ids=upstream_ids,
        upstream_usd=upstream_usd,
        handed=handed,
        route=Route(*route) if route[0] is not None else None,
    )
