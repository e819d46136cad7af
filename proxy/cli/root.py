"""The command `ghub`."""

import typer

from proxy.cli import credit, demo, event, fx, journal, key, ledger, order, org, serve, storage, token, usage, wallet

app = typer.Typer(
    name="ghub",
    help="GeekHub's image gateway. Every command reads its settings from GHUB_… variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("consume")(serve.consume)
app.command("simulate")(serve.simulate)
app.command("migrate")(ledger.migrate)
app.command("verify")(ledger.verify)
app.command("balance")(credit.balance)
app.add_typer(org.app, name="org")
app.add_typer(key.app, name="key")
app.add_typer(credit.app, name="credit")
app.add_typer(order.app, name="order")
app.add_typer(event.app, name="event")
app.add_typer(fx.app, name="fx")
app.add_typer(usage.app, name="usage")
app.add_typer(storage.app, name="storage")
app.add_typer(journal.app, name="journal")
app.add_typer(token.app, name="token")
app.add_typer(wallet.app, name="wallet")


def main() -> None:
    """Entry point."""
    app()
