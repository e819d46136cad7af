"""`ghub verify`: whether the books are right."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from metering.clock import MEXICO, unix_us_at
from metering.verify import Difference, NotProvable, Scope, Tell
from metering.verify import verify as verify_books
from proxy.cli.output import AsJson, misuse, say
from proxy.cli.running import back, run
from proxy.ports import ImageStore, StoreFailed
from proxy.storage.opening import open_store

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")

LOOKED_AT = ("organisations", "orders", "images")


def verify(
    org: Annotated[str | None, typer.Option("--org", help="One organisation alone, by its UUID or name.")] = None,
    since: Annotated[
        str | None, typer.Option(help="Orders that ended since then: a day of Mexico City, or ISO 8601 with its zone.")
    ] = None,
    no_images: Annotated[bool, typer.Option("--no-images", help="Do not look for stored images.")] = False,
    as_json: AsJson = False,
) -> None:
    """Compare Redis, ledger, prices, rates and stored images; exit 1 with what differs or cannot be proved."""
    since_us = 0 if since is None else unix_us_at(_moment(since))

    looked_at: Counter[str] = Counter(dict.fromkeys(LOOKED_AT, 0))

    async def work() -> list[Difference]:
        async with back() as opened, open_store(opened.settings) as opened_store:
            wallet = opened.wallet()
            only = None if org is None else await opened.ledger.org(org)
            scope = Scope(only, since_us, not no_images)
            presence, exists = opened.presence(), _Exists(opened_store.store)
            with _progress(looked_at) as tell:
                return await verify_books(opened.ledger, wallet, presence, exists, scope, tell)

    differences = [asdict(difference) for difference in run(work())]
    if as_json:
        say({"ok": not differences, "differences": differences}, as_json)
    elif not differences:
        say({"ok": True, **looked_at}, as_json)
    else:
        say(differences, as_json)
    if differences:
        raise typer.Exit(1)


class _Exists:
    """Asks the store whether an image exists; a store that fails proves nothing."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store

    async def __call__(self, path: str) -> bool:
        try:
            return await self._store.exists(path)
        except StoreFailed as error:
            raise NotProvable(f"the store: {error}") from error


@contextmanager
def _progress(looked_at: Counter[str]) -> Iterator[Tell]:
    """Count what was checked, and show the count to a person who waits."""
    columns = (SpinnerColumn(), TextColumn("{task.completed} {task.description}"), BarColumn(), TimeElapsedColumn())
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        tasks = {what: progress.add_task(what, total=None) for what in LOOKED_AT}
        expected = 0

        def tell(what: str, count: int) -> None:
            nonlocal expected
            if what == "expected":
                expected += count
                progress.update(tasks["orders"], total=expected or None)
            else:
                looked_at[what] += count
                progress.advance(tasks[what], count)

        yield tell


def _moment(text: str) -> datetime:
    try:
        if _DAY.fullmatch(text):
            day = date.fromisoformat(text)
            return datetime(day.year, day.month, day.day, tzinfo=MEXICO)
        moment = datetime.fromisoformat(text)
    except ValueError:
        misuse(f"--since: {text!r} is neither a day, such as 2026-11-22, nor ISO 8601, such as 2026-11-22T08:00:00Z")
    if moment.tzinfo is None:
        misuse(f"--since: {text!r} has no zone; add Z or -06:00")
    return moment
