"""`ghub migrate` and `ghub verify`: the ledger's schema, and whether the books are right."""

from dataclasses import asdict

import typer

from config.settings import read_settings
from metering.verify import Difference
from metering.verify import verify as verify_books
from metering.wallet.presence import Presence
from proxy.cli.output import AsJson, back, run, say
from proxy.storage.opening import open_store
from proxy.wiring import open_ledger


def migrate(as_json: AsJson = False) -> None:
    """Bring the ledger's schema up to date, under a lock; safe to repeat."""

    async def work() -> int:
        ledger = open_ledger(read_settings())
        try:
            return await ledger.migrate()
        finally:
            await ledger.aclose()

    say({"schema": run(work())}, as_json)


def verify(as_json: AsJson = False) -> None:
    """Compare wallets, ledger, prices, rates and stored images; exit 1 with the differences where there are any."""

    async def work() -> list[Difference]:
        async with back() as opened, open_store(opened.settings) as opened_store:
            wallet = opened.wallet()
            assert opened.redis is not None, "a wallet has one"
            return await verify_books(opened.ledger, wallet, Presence(opened.redis), opened_store.store.exists)

    differences = [asdict(difference) for difference in run(work())]
    if as_json or not differences:
        say({"ok": not differences, "differences": differences}, as_json)
    else:
        say(differences, as_json)
    if differences:
        raise typer.Exit(1)
