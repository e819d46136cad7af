"""`ghub migrate`: the ledger's schema."""

from proxy.books import open_ledger
from proxy.cli.output import AsJson, say
from proxy.cli.running import run, settings


def migrate(as_json: AsJson = False) -> None:
    """Bring the ledger's schema up to date, under a lock; safe to repeat."""

    async def work() -> int:
        ledger = open_ledger(settings())
        try:
            return await ledger.migrate()
        finally:
            await ledger.aclose()

    say({"schema": run(work())}, as_json)
