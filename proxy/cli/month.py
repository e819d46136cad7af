"""`ghub month`: closing months, and checking what was sealed."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from config.settings import Settings
from metering.clock import is_month
from metering.exports.rows import SEALED
from metering.exports.sealed import NoExport, SealedFile
from metering.manifest import SUMS, Manifest, ManifestError, check_rows, read_key, read_manifest
from metering.money import format_mxn
from metering.months import Close, Tell, check_month, close_month
from metering.ports import Act, ClosedMonth
from proxy.cli.manifests import manifest_of, write_manifest
from proxy.cli.output import AsJson, fail, misuse, must_be_month, say
from proxy.cli.running import As, back, books, run

app = typer.Typer(no_args_is_help=True)

Month = Annotated[str, typer.Argument(metavar="YYYY-MM")]

NO_KEY = "GHUB_MONTH_SIGNING_KEY is not set; it is an Ed25519 key, 32 bytes in base64: openssl rand -base64 32"
ALONE = (
    "ghub: a command proves no second person: whoever may run it may also enter and approve; the audit log has it.\n"
)

LONGEST_START = 64 * 1024
"""How much of a file tells what it is: the longest row of an export is a third of it."""

LARGEST_MANIFEST_BYTES = 64 * 1024 * 1024
"""Largest manifest that is read: ten million rows of ten thousand organisations take 5 MB."""


@app.command()
def close(month: Month, who: As = None, as_json: AsJson = False) -> None:
    """Close a month for good, and seal it: what is late is posted to the first month that is open."""
    must_be_month("YYYY-MM", month)

    async def work() -> Close:
        async with back(who) as opened:
            key = _signing_key(opened.settings)
            act = Act(opened.actor, "month.close", month)
            with _progress("rows sealed") as tell:
                return await close_month(opened.ledger, opened.redis, month, act, key, tell)

    closed = run(work(), "month")
    say(_summary(closed.manifest) | {"new": closed.new}, as_json)
    if closed.new:
        sys.stderr.write(ALONE)


@app.command()
def show(
    month: Month,
    out: Annotated[
        Path | None, typer.Option("--manifest", dir_okay=False, help="Write its signed manifest to this file.")
    ] = None,
    orgs: Annotated[bool, typer.Option("--orgs", help="Also the sums of each organisation.")] = False,
    as_json: AsJson = False,
) -> None:
    """A closed month: its sums, who closed it and when, and its manifest."""
    must_be_month("YYYY-MM", month)

    async def work() -> str | None:
        async with books() as opened:
            return await opened.ledger.manifest(month)

    text = run(work())
    if text is None:
        fail(f"{month} is not closed, or not sealed yet: ghub month close {month}")
    manifest = read_manifest(text.encode())
    if out is not None:
        write_manifest(out, text)
    found = _summary(manifest)
    if orgs:
        found["orgs"] = [org.model_dump(exclude={"checkpoints"}) for org in manifest.orgs]
    say(found | ({} if out is None else {"manifest": str(out)}), as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """All months that are closed, oldest first."""

    async def work() -> list[ClosedMonth]:
        async with books() as opened:
            return await opened.ledger.closed_months()

    say([_line(one) for one in run(work())], as_json)


@app.command()
def verify(
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="An export as CSV or JSON lines, a manifest, or YYYY-MM.")
    ],
    manifest: Annotated[
        Path | None, typer.Option(dir_okay=False, help="The month's manifest; FILE.manifest.json without.")
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option("--org", metavar="ORG", help="The one organisation that FILE is of, by UUID or name."),
    ] = None,
    public_key: Annotated[
        str | None, typer.Option(help="Whose signature it must be, in base64, as `month show` prints it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Is an export as it was sealed? No ledger is needed. With a month it is the ledger that is compared."""
    looked = _in_ledger(file) if is_month(file) and not Path(file).exists() else _in_file(Path(file), manifest, ref)
    signed, wrong = looked.signed, looked.wrong
    if public_key is not None and signed.public_key != public_key:
        wrong.insert(0, f"it is signed by {signed.public_key}, which is another key")
    found = {"ok": not wrong, "month": signed.month, **looked.of, "closed_by": signed.closed_by}
    found |= {"closed_at": signed.closed_at, "public_key": signed.public_key}
    say(found | ({"wrong": wrong} if as_json or wrong else {}), as_json)
    if wrong:
        raise typer.Exit(1)
    if public_key is None:
        sys.stderr.write("ghub: the public key is the file's own: compare it with the one that finance has published\n")


def _in_ledger(month: str) -> "_Looked":
    async def work() -> tuple[Manifest, list[str]]:
        async with books() as opened:
            with _progress("rows checked") as tell:
                return await check_month(opened.ledger, month, tell)

    try:
        signed, wrong = run(work())
    except ManifestError as error:
        fail(f"the manifest of {month} in the ledger: {error}")
    return _Looked(signed, wrong, {"rows": signed.rows})


@dataclass(frozen=True, slots=True)
class _Looked:
    """What was looked at: the manifest, what is wrong, and how much of the month it was."""

    signed: Manifest
    wrong: list[str]
    of: dict[str, Any]


def _in_file(path: Path, beside: Path | None, ref: str | None) -> _Looked:
    """Check an export against its manifest, or a manifest alone."""
    if not path.is_file():
        misuse(f"FILE: there is no file {str(path)!r}")
    if path.suffix in (".xlsx", ".parquet"):
        misuse("FILE: a workbook or Parquet is not read back; verify the CSV or the JSON lines of the same month")
    named = manifest_of(path) if beside is None else beside
    if not named.is_file():
        if beside is None and _is_manifest(path):
            return _Looked(_manifest(path), [], {})
        misuse(f"--manifest: there is no file {str(named)!r}; `ghub month show YYYY-MM --manifest PATH` writes it")
    signed = _manifest(named)
    if tuple(signed.columns) != SEALED:
        fail("the month was sealed by another release, whose exports have other columns: verify it with that one")
    org = None if ref is None else next((one for one in signed.orgs if ref in (one.org, one.name)), None)
    if ref is not None and org is None:
        misuse(f"--org: {ref!r} is no organisation of {signed.month}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            sealed = SealedFile(file)
            check = check_rows(signed, sealed.rows(), None if org is None else org.org)
    except UnicodeDecodeError:
        fail(f"{path}: is no UTF-8: was it saved by another program?")
    except NoExport as error:
        fail(f"{path}: cannot be read as an export: {error}")
    wrong = check.wrong + ([f"and {check.unnamed} more"] if check.unnamed else [])
    whose = f"all {len(signed.orgs)}" if org is None else f"{org.name} alone, of {len(signed.orgs)}"
    return _Looked(signed, wrong, {"rows": check.rows, "organisations": whose, "not_sealed": sealed.not_sealed})


def _is_manifest(path: Path) -> bool:
    """True for a JSON object that is no row of an export."""
    with path.open("rb") as file:
        start = file.read(LONGEST_START)
    return start.startswith(b"{") and b'"event_id"' not in start.splitlines()[0]


def _manifest(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            return read_manifest(file.read(LARGEST_MANIFEST_BYTES))
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    except ManifestError as error:
        fail(f"{path}: {error}")


def _signing_key(settings: Settings) -> Ed25519PrivateKey:
    if settings.month_signing_key is None:
        fail(NO_KEY)
    try:
        return read_key(settings.month_signing_key.get_secret_value())
    except ValueError as error:
        fail(f"GHUB_MONTH_SIGNING_KEY: {error}")


def _summary(manifest: Manifest) -> dict[str, Any]:
    return {
        "month": manifest.month,
        "closed_at": manifest.closed_at,
        "closed_by": manifest.closed_by,
        "organisations": len(manifest.orgs),
        "orders": manifest.orders,
        "images": manifest.images,
        **{f"{name}_mxn": getattr(manifest, f"{name}_mxn") for name in SUMS},
        "rows": manifest.rows,
        "public_key": manifest.public_key,
    }


def _line(closed: ClosedMonth) -> dict[str, Any]:
    return {
        "month": closed.month,
        "closed_at": closed.closed_at,
        "closed_by": closed.closed_by,
        "sealed": closed.sealed,
        "charges_mxn": format_mxn(closed.charges_micro_mxn) if closed.sealed else None,
        "closing_mxn": format_mxn(closed.closing_micro_mxn) if closed.sealed else None,
    }


@contextmanager
def _progress(what: str) -> Iterator[Tell]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(what, total=None)

        def tell(done: int, of: int) -> None:
            progress.update(task, completed=done, total=max(of, done))

        yield tell
