"""`ghub models`: the catalogue, and what of it has ended."""

from collections import defaultdict
from datetime import timedelta
from typing import Annotated

import typer

from config.catalogue import Catalogue, read_catalogue
from config.shelf import Shelf, status_of
from metering.clock import utc_now
from proxy.cli.output import AsJson, say
from proxy.cli.running import run, settings

app = typer.Typer(no_args_is_help=True)

SOON_DAYS = 30
"""A third of the least notice that providers give for models of images: time to map one on to another, and to tell."""


@app.callback()
def _models() -> None:
    pass


@app.command()
def check(
    days: Annotated[int, typer.Option(min=0, max=3650, help="Days ahead in which no end may come.")] = SOON_DAYS,
    as_json: AsJson = False,
) -> None:
    """Has a model of GHUB_MODELS ended, or its successor, and nothing serves it? Then exit 1."""
    models = run(_read()).models
    shelf = Shelf(models, {name for name, model in models.items() if model.priced})
    today = utc_now().date()
    wrong: dict[str, list[str]] = defaultdict(list)
    for found in shelf.findings(today, timedelta(days=days)):
        wrong[found.model].append(found.why)
    rows = [
        {
            "model": name,
            "status": str(status_of(model, today)),
            "shutdown_date": model.shutdown_date.isoformat() if model.shutdown_date else None,
            "served_by": model.served_by,
            "successor": model.successor,
            "wrong": wrong[name],
        }
        for name, model in models.items()
    ]
    say({"ok": not any(wrong.values()), "models": rows} if as_json else rows, as_json)
    if any(wrong.values()):
        raise typer.Exit(1)


async def _read() -> Catalogue:
    return read_catalogue(settings().models)
