"""A sealed month proves itself: each row that was changed is named, and a manifest that was changed is refused."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import replace

import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from metering import manifest as module
from metering import seals
from metering.manifest import (
    Manifest,
    ManifestError,
    Month,
    SealedRow,
    check_rows,
    make_manifest,
    public_key_of,
    read_key,
    read_manifest,
)
from metering.money import format_mxn, parse_mxn
from metering.ports import MonthSums
from metering.seals import Chains

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
ORGS = ("org-a", "org-b", "org-c")
EACH = 7
MONTH = Month("2026-11", "2026-12-01T06:00:01+00:00", "cli:ana", None, ("event_id", "org_id", "amount_mxn"))


def sums(org_id: str, rows: int) -> MonthSums:
    """100.00 MXN at first, and 0.84 MXN for each row."""
    return MonthSums(org_id, parse_mxn("100.00"), 0, 0, 0, 0, 0, rows * parse_mxn("0.84"), rows, rows)


def month(each: int = EACH) -> tuple[str, list[SealedRow]]:
    """The manifest and the rows of a month of three organisations, of which the third has none."""
    chains = Chains("2026-11")
    rows: list[SealedRow] = []
    for org_id in ORGS[:2]:
        for number in range(each):
            cells = (f"{org_id}-{number}", org_id, "0.84")
            seal = chains.add(org_id, cells)
            rows.append(SealedRow(len(rows) + 2, org_id, cells[0], cells, seal, "0.84"))
    names = {org_id: org_id.upper() for org_id in ORGS}
    of = [sums(org_id, each if org_id != "org-c" else 0) for org_id in ORGS]
    return make_manifest(MONTH, of, names, chains.heads(), KEY), rows


def read(text: str) -> Manifest:
    return read_manifest(text.encode())


def test_what_was_sealed_is_as_it_was() -> None:
    text, rows = month()
    manifest = read(text)
    assert (manifest.rows, manifest.orders, manifest.charges_mxn) == (14, 14, "11.76")
    assert (manifest.opening_mxn, manifest.closing_mxn) == ("300.00", "288.24")
    assert manifest.public_key == public_key_of(KEY)
    check = check_rows(manifest, rows)
    assert (check.rows, check.orgs, check.wrong) == (14, 2, [])
    alone = check_rows(manifest, rows[EACH:], "org-b")
    assert (alone.rows, alone.orgs, alone.wrong) == (7, 1, []), "the export of one organisation"
    assert check_rows(manifest, [], "org-c").wrong == [], "one without rows"
    assert text == month()[0], "the same month gives the same bytes"


def changed(rows: Sequence[SealedRow], at: int, amount: str = "0.85") -> list[SealedRow]:
    cells = (*rows[at].cells[:2], amount)
    return [*rows[:at], replace(rows[at], cells=cells, amount=amount), *rows[at + 1 :]]


@pytest.mark.parametrize(
    ("how", "named"),
    [
        (lambda rows: changed(rows, 3), [5]),
        (lambda rows: changed(changed(rows, 3), 10), [5, 12]),
        (lambda rows: changed(rows, 13), [15]),
        (lambda rows: rows[:3] + rows[4:], [6]),
        (lambda rows: [rows[1], rows[0], *rows[2:]], [2, 3, 4]),
        (lambda rows: [*rows[:4], rows[3], *rows[4:]], [5]),
        (lambda rows: [replace(rows[0], seal=""), *rows[1:]], [2]),
        (lambda rows: [replace(rows[0], seal="not hex"), *rows[1:]], [2]),
    ],
    ids=["changed", "two", "the last", "missing", "moved", "twice", "no seal", "another seal"],
)
def test_each_row_that_is_wrong_is_named(how: Callable[[list[SealedRow]], list[SealedRow]], named: list[int]) -> None:
    """By its line of the file; and nothing else is."""
    text, rows = month()
    check = check_rows(read(text), how(rows))
    places = [int(one.split(",")[0].removeprefix("row ")) for one in check.wrong if one.startswith("row ")]
    assert sorted(places) == named


def test_rows_that_were_sealed_anew_are_found() -> None:
    """Whoever changes a row may make all seals after it anew, but not the one that was signed."""
    text, rows = month()
    chains = Chains("2026-11")
    forged = [replace(row, seal=chains.add(row.org_id, row.cells)) for row in changed(rows, 3, "0.84001")]
    assert check_rows(read(text), forged).wrong == [
        "organisation ORG-A (org-a): rows from 2 on were changed and sealed anew, for the manifest has another seal at"
        " their end",
        "organisation ORG-A (org-a): its rows sum up to 5.88001 MXN, and 5.88 MXN were sealed",
    ]


def test_rows_that_were_sealed_anew_are_found_to_the_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    for one in (module, seals):
        monkeypatch.setattr(one, "CHECKED", 10)
    text, rows = month(35)
    chains = Chains("2026-11")
    forged = [replace(row, seal=chains.add(row.org_id, row.cells)) for row in changed(rows, 17, "0.8400")]
    (wrong,) = check_rows(read(text), forged).wrong
    assert wrong.startswith("rows 12 to 21 of organisation org-a: they were changed and sealed anew")


def test_what_is_missing_or_strange_is_told() -> None:
    text, rows = month()
    manifest = read(text)
    assert check_rows(manifest, []).wrong == [
        f"organisation {org.name} ({org.org}): its 7 rows are missing" for org in manifest.orgs[:2]
    ]
    (end, total) = check_rows(manifest, rows[:6] + rows[7:]).wrong
    assert end == "organisation ORG-A (org-a): 6 rows, and 7 were sealed"
    assert total.endswith(f"its rows sum up to {format_mxn(parse_mxn('5.04'))} MXN, and 5.88 MXN were sealed")
    (strange,) = check_rows(manifest, [*rows, replace(rows[0], place=16, org_id="org-x")]).wrong
    assert strange == "row 16, order org-a-0: nothing of organisation 'org-x' was sealed there"
    (cut,) = check_rows(manifest, rows[EACH:]).wrong
    assert cut == "organisation ORG-A (org-a): its 7 rows are missing", "a file of all that was cut down to one"
    assert len(check_rows(manifest, rows, "org-b").wrong) == 7
    many = check_rows(read(month(200)[0]), [replace(row, seal="") for row in month(200)[1]])
    assert len(many.wrong) == 100 and many.unnamed > 200


@pytest.mark.parametrize(
    "how",
    [
        lambda document: document | {"closed_by": "cli:eva"},
        lambda document: document | {"closing_mxn": "288.25"},
        lambda document: document | {"public_key": base64.b64encode(b"x" * 32).decode()},
        lambda document: document | {"public_key": "x"},
        lambda document: document | {"signature": base64.b64encode(bytes(64)).decode()},
        lambda document: document | {"surprise": 1},
        lambda document: document | {"rows": "14"},
        lambda document: {name: value for name, value in document.items() if name != "previous"},
        lambda document: [],
    ],
)
def test_a_manifest_that_was_changed_is_refused(how: Callable[[dict[str, object]], object]) -> None:
    document = orjson.loads(month()[0])
    with pytest.raises(ManifestError):
        read_manifest(orjson.dumps(how(document), option=orjson.OPT_SORT_KEYS))


def test_a_manifest_is_the_text_that_was_signed() -> None:
    """A name that stands in it twice is read one way by us and another way by somebody else."""
    text = month()[0]
    for changed_ in ('{"charges_mxn":"0.00",' + text[1:], text.replace(":", ": ", 1)):
        with pytest.raises(ManifestError, match="it is the text that was signed"):
            read_manifest(changed_.encode())
    assert read_manifest(f"{text}\n".encode()).month == "2026-11"


@pytest.mark.parametrize(
    ("name", "value"), [("closing_mxn", "288.25"), ("charges_mxn", "11.77"), ("refunds_mxn", "1.00")]
)
def test_a_manifest_adds_up(name: str, value: str) -> None:
    """Also one that is signed with the right key."""
    document = orjson.loads(month()[0]) | {name: value}
    del document["signature"]
    signature = KEY.sign(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))
    document["signature"] = base64.b64encode(signature).decode()
    with pytest.raises(ManifestError, match=r"closing balance|is not the sum"):
        read_manifest(orjson.dumps(document, option=orjson.OPT_SORT_KEYS))


def test_keys_are_taken_in_two_forms() -> None:
    pem = KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
    for text in (base64.b64encode(b"k" * 32).decode(), pem):
        assert public_key_of(read_key(text)) == public_key_of(KEY)
    for wrong in ("", "k" * 32, base64.b64encode(b"k" * 31).decode(), pem[:60], "ñ"):
        with pytest.raises(ValueError, match=r"^must be an Ed25519 key: .* base64") as refused:
            read_key(wrong)
        assert refused.value.__cause__ is None
