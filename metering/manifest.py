"""The manifest of a closed month: its sums, the end of each chain, a signature. Pure: a file is checked without books.

It is JSON. The signature is Ed25519 over its canonical form, the public key in it included: UTF-8, names sorted, no
space, without `signature`. Whoever knows the public key from elsewhere knows who signed it.
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Annotated, Any, Literal

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from metering.money import AmountError, format_mxn, parse_mxn
from metering.ports import MonthSums
from metering.seals import CHECKED, Head, first_seal, next_seal

VERSION = 1

MAX_NAMED = 100
"""Maximum rows that a check names one by one. All are counted."""

_SEAL = re.compile(r"[0-9a-f]{32}")

Mxn = Annotated[str, Field(pattern=r"^-?[0-9]+\.[0-9]{2,6}$")]
Seal = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]

SUMS = ("opening", "recharges", "bonuses", "refunds", "adjustments", "chargebacks", "charges", "closing")
"""The sums of an organisation and of the month, each in MXN: opening + credits − charges = closing."""


class ManifestError(ValueError):
    """It is no manifest, or its signature is not that of its key; the message is a sentence."""


class _Sums(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    orders: int
    images: int
    opening_mxn: Mxn
    recharges_mxn: Mxn
    bonuses_mxn: Mxn
    refunds_mxn: Mxn
    adjustments_mxn: Mxn
    chargebacks_mxn: Mxn
    charges_mxn: Mxn
    closing_mxn: Mxn

    def micro_mxn(self, name: str) -> int:
        """Return one of `SUMS` in micro-MXN."""
        return int(Decimal(getattr(self, f"{name}_mxn")).scaleb(6))  # a month of all may be above what an amount may be


class OrgSums(_Sums):
    """One organisation: its sums, and its chain's rows, end and checkpoints."""

    org: str
    name: str
    rows: int
    seal: Seal
    checkpoints: tuple[Seal, ...]


class Manifest(_Sums):
    """A closed month. `previous` is the SHA-256 of the canonical form of the month before, with its signature."""

    version: Literal[1]
    month: Annotated[str, Field(pattern=r"^2[0-9]{3}-[0-9]{2}$")]
    currency: Literal["MXN"]
    timezone: Literal["America/Mexico_City"]
    closed_at: str
    closed_by: str
    previous: str | None
    rows: int
    columns: tuple[str, ...]
    orgs: tuple[OrgSums, ...]
    public_key: str
    signature: str


@dataclass(frozen=True, slots=True)
class Month:
    """What is signed of a month, beside its sums."""

    month: str
    closed_at: str
    closed_by: str
    previous: str | None
    columns: Sequence[str]


def read_key(text: str) -> Ed25519PrivateKey:
    """Read a signing key: 32 bytes in base64, or PEM. Raises ValueError, without any of it."""
    try:
        if text.lstrip().startswith("-----BEGIN"):
            key = load_pem_private_key(text.encode(), None)
            if not isinstance(key, Ed25519PrivateKey):
                raise ValueError
            return key
        return Ed25519PrivateKey.from_private_bytes(base64.b64decode(text, validate=True))
    except (ValueError, TypeError, binascii.Error):
        raise ValueError(
            "must be an Ed25519 key: 32 bytes in base64 (openssl rand -base64 32), or a PEM without a password"
        ) from None


def public_key_of(key: Ed25519PrivateKey) -> str:
    """Return the public key in base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode()


def make_manifest(
    month: Month,
    sums: Sequence[MonthSums],
    names: Mapping[str, str],
    heads: Mapping[str, Head],
    key: Ed25519PrivateKey,
) -> str:
    """Make and sign a month's manifest, of its organisations' sums, names and chains."""
    total: dict[str, Any] = {"orders": sum(one.orders for one in sums), "images": sum(one.images for one in sums)}
    total |= {f"{name}_mxn": format_mxn(sum(_sum(one, name) for one in sums)) for name in SUMS}
    document = {
        "version": VERSION,
        "month": month.month,
        "currency": "MXN",
        "timezone": "America/Mexico_City",
        "closed_at": month.closed_at,
        "closed_by": month.closed_by,
        "previous": month.previous,
        "rows": sum(head.rows for head in heads.values()),
        "columns": list(month.columns),
        **total,
        "orgs": [_org(one, names[one.org_id], heads, month.month) for one in sums],
        "public_key": public_key_of(key),
    }
    signature = base64.b64encode(key.sign(_canonical(document))).decode()
    return _canonical({**document, "signature": signature}).decode()


def _org(sums: MonthSums, name: str, heads: Mapping[str, Head], month: str) -> dict[str, Any]:
    head = heads.get(sums.org_id) or Head(0, first_seal(month, sums.org_id).hex(), ())
    return {
        "org": sums.org_id,
        "name": name,
        "orders": sums.orders,
        "images": sums.images,
        **{f"{one}_mxn": format_mxn(_sum(sums, one)) for one in SUMS},
        "rows": head.rows,
        "seal": head.seal,
        "checkpoints": list(head.checkpoints),
    }


def _sum(sums: MonthSums, name: str) -> int:
    amount: int = getattr(sums, f"{name}_micro_mxn")
    return amount


def read_manifest(text: bytes) -> Manifest:
    """Read a manifest, and check its signature and that its sums add up. Raises ManifestError."""
    try:
        document = orjson.loads(text)
        manifest = Manifest.model_validate_json(text)
    except (orjson.JSONDecodeError, ValidationError):
        raise ManifestError("it is no manifest of a closed month") from None
    if text.rstrip() != _canonical(document):
        raise ManifestError("it was written anew, or a name stands in it twice: it is the text that was signed")
    signature = document.pop("signature")
    try:
        public = Ed25519PublicKey.from_public_bytes(base64.b64decode(manifest.public_key, validate=True))
        public.verify(base64.b64decode(signature, validate=True), _canonical(document))
    except (InvalidSignature, ValueError):
        raise ManifestError("its signature is not that of its key: something in it was changed") from None
    if wrong := _wrong_sums(manifest):
        raise ManifestError(wrong)
    return manifest


def _wrong_sums(manifest: Manifest) -> str | None:
    for one in (manifest, *manifest.orgs):
        expected = sum(one.micro_mxn(name) for name in SUMS[:-2]) - one.micro_mxn("charges")
        if expected != one.micro_mxn("closing"):
            return "its opening balances, credits and charges do not give its closing balances"
    for name in SUMS:
        if sum(org.micro_mxn(name) for org in manifest.orgs) != manifest.micro_mxn(name):
            return f"its {name}_mxn is not the sum of its organisations'"
    return None


def is_sum_of(sums: MonthSums, signed: OrgSums) -> bool:
    """True if an organisation's sums are those that were signed."""
    counted = (sums.orders, sums.images) == (signed.orders, signed.images)
    return counted and all(_sum(sums, name) == signed.micro_mxn(name) for name in SUMS)


def digest(manifest: str) -> str:
    """Compute what the next month's manifest names as `previous`."""
    return hashlib.sha256(manifest.encode()).hexdigest()


def _canonical(document: Mapping[str, Any]) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


# --- a file against its manifest ---


@dataclass(frozen=True, slots=True)
class SealedRow:
    """A row of an export: where it stands in the file, from 1, its cells without the seal, and its seal."""

    place: int
    org_id: str
    event_id: str
    cells: Sequence[str]
    seal: str
    amount: str


@dataclass(slots=True)
class _Seen:
    last: bytes
    rows: int = 0
    micro_mxn: int = 0
    broken: bool = False
    first_place: int = 0


@dataclass(slots=True)
class Check:
    """The outcome of a check: how many rows and organisations, and what is wrong, in sentences."""

    rows: int = 0
    orgs: int = 0
    wrong: list[str] = field(default_factory=list)
    unnamed: int = 0

    def say(self, sentence: str) -> None:
        """Add what is wrong; above a hundred it is only counted."""
        if len(self.wrong) < MAX_NAMED:
            self.wrong.append(sentence)
        else:
            self.unnamed += 1


def check_rows(manifest: Manifest, rows: Iterable[SealedRow], org_id: str | None = None) -> Check:
    """Check an export of the month row by row, of all organisations or of one; it names the rows that are wrong.

    A row that was changed breaks the chain at its place; where one is missing, added or moved, it breaks at the next.
    """
    check = Check()
    orgs = {org.org: org for org in manifest.orgs if org_id in (None, org.org)}
    seen: dict[str, _Seen] = {}
    for row in rows:
        check.rows += 1
        if row.org_id not in orgs:
            check.say(f"row {row.place}, order {row.event_id}: nothing of organisation {row.org_id!r} was sealed there")
            continue
        org = seen.get(row.org_id)
        if org is None:
            org = seen[row.org_id] = _Seen(first_seal(manifest.month, row.org_id), first_place=row.place)
        _check_row(check, org, row, orgs[row.org_id])
    check.orgs = len(seen)
    for sentence in _ends([*orgs.values()], seen):
        check.say(sentence)
    return check


def _check_row(check: Check, org: _Seen, row: SealedRow, signed: OrgSums) -> None:
    org.rows += 1
    expected = next_seal(org.last, row.cells).hex()
    if expected != row.seal:
        org.broken = True
        check.say(
            f"row {row.place}, order {row.event_id}: it is not as it was sealed, or a row of its organisation before it"
            " is missing, added or moved"
        )
    if org.rows % CHECKED == 0 and org.rows // CHECKED <= len(signed.checkpoints) and not org.broken:
        if row.seal != signed.checkpoints[org.rows // CHECKED - 1]:
            org.broken = True
            check.say(
                f"rows {org.first_place} to {row.place} of organisation {row.org_id}: they were changed and sealed"
                " anew, for the manifest has another seal there"
            )
        org.first_place = row.place + 1
    # On from the file's own seal, if it is one: so each further row that is wrong is found by itself.
    org.last = bytes.fromhex(row.seal if _SEAL.fullmatch(row.seal) else expected)
    with suppress(AmountError):
        org.micro_mxn += parse_mxn(row.amount)


def _ends(orgs: Sequence[OrgSums], seen: Mapping[str, _Seen]) -> Iterator[str]:
    """Yield what is wrong with the ends of the chains."""
    for org in orgs:
        found = seen.get(org.org)
        if found is None:
            if org.rows:
                yield f"organisation {org.name} ({org.org}): its {org.rows} rows are missing"
            continue
        if found.rows != org.rows:
            yield f"organisation {org.name} ({org.org}): {found.rows} rows, and {org.rows} were sealed"
        elif found.last.hex() != org.seal and not found.broken:
            yield (
                f"organisation {org.name} ({org.org}): rows from {found.first_place} on were changed and sealed anew,"
                " for the manifest has another seal at their end"
            )
        charged = org.micro_mxn("charges") - org.micro_mxn("refunds")
        if found.micro_mxn != charged:
            yield (
                f"organisation {org.name} ({org.org}): its rows sum up to {format_mxn(found.micro_mxn)} MXN, and"
                f" {format_mxn(charged)} MXN were sealed"
            )
