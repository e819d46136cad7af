"""The command `ghub`: a table of all commands. A command is loaded only when it is called, so that all start fast."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from proxy.cli.loading import loading


@dataclass(frozen=True, slots=True)
class Entry:
    """The place of a command: a function of a module of this folder, or the module's `app`, which has subcommands."""

    module: str
    name: str
    help: str

    def load(self) -> Any:
        """Load the command in the form that the parser takes."""
        with loading():
            found = getattr(import_module(f"proxy.cli.{self.module}"), self.name)
        if isinstance(found, typer.Typer):
            group = get_group(found)
            group.help = self.help
            return group
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        alone.command()(found)
        return get_command(alone)


ENTRIES = {
    "demo": Entry("demo", "demo", "The whole system on this machine, until Ctrl-C."),
    "serve": Entry("gateway", "serve", "The gateway, until SIGTERM."),
    "consume": Entry("consume", "consume", "The billing consumer, until SIGTERM."),
    "simulate": Entry(
        "simulate", "simulate", "The upstreams' wire formats, with real pictures, for the demo and tests."
    ),
    "smoke": Entry("smoke", "smoke", "One order by a test key, as a customer places it: does it all work?"),
    "migrate": Entry("migrate", "migrate", "Bring the ledger's schema up to date; safe to repeat."),
    "verify": Entry(
        "verify", "verify", "Are the books right? Redis, ledger, prices, rates and stored images compared."
    ),
    "balance": Entry("credit", "balance", "What an organisation can spend."),
    "org": Entry("org", "app", "Organisations, their plans, limits and states."),
    "key": Entry("key", "app", "API keys. A key is shown once, when it is created."),
    "credit": Entry("credit", "app", "Prepaid credit."),
    "enduser": Entry("enduser", "app", "End users of organisations: whose images they were."),
    "order": Entry("order", "app", "Orders: what became of one, and its refunds."),
    "event": Entry("event", "app", "Events that were set aside, because nobody could book them."),
    "models": Entry("models", "app", "The catalogue: which models live, and which have ended."),
    "fx": Entry("fx", "app", "MXN for one USD, fixed per calendar month."),
    "usage": Entry("usage", "app", "Charged orders of a month."),
    "month": Entry("month", "app", "Months: closed for good, and sealed."),
    "sink": Entry("sink", "app", "Receivers of metering events: what they have not taken, and sending it again."),
    "webhook": Entry("webhook", "app", "Webhooks: whom an organisation's events are sent to, and sending them again."),
    "reconcile": Entry("reconcile", "reconcile", "A month compared with the providers' books, and with the store."),
    "statement": Entry("statement", "statement", "An organisation's month, for itself: HTML that prints well, or PDF."),
    "audit": Entry("listings", "audit", "Who did what, and when: the latest first."),
    "notices": Entry("listings", "notices", "What organisations were told: quotas nearly used, low balances."),
    "storage": Entry("storage", "app", "The store for images."),
    "journal": Entry("journal", "app", "Journals of gateways."),
    "token": Entry("token", "app", "Tokens for /admin/v1 and /finance/v1, by GHUB_JWT_SECRET."),
    "wallet": Entry("wallet", "app", "Wallets in Redis."),
}


class _Later(TyperGroup):
    """Knows only the help text of its commands, and loads the one that is run."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, _, rest = super().resolve_command(ctx, args)
        return name, None if name is None else ENTRIES[name].load(), rest


app = typer.Typer(
    name="ghub",
    cls=_Later,
    help="GeekHub's image gateway. Every command reads its settings from GHUB_… variables.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _loaded_later() -> None:
    raise AssertionError("its module's own function is run")


for _name, _entry in ENTRIES.items():
    app.command(_name, help=_entry.help)(_loaded_later)


def _say_version(wanted: bool) -> None:
    if wanted:
        packages = import_module("importlib.metadata")  # it loads all of `email`, which no command needs
        sys.stdout.write(f"ghub {packages.version('geekhub-gateway')}\n")
        raise typer.Exit


@app.callback()
def _root(
    said: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_say_version, help="Say which version this is.")
    ] = False,
) -> None:
    pass


def commands() -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield every command with the words that call it: (`org`, `create`). Loads them all."""
    for name, entry in ENTRIES.items():
        loaded = entry.load()
        if isinstance(loaded, TyperGroup):
            yield from (((name, word), command) for word, command in loaded.commands.items())
        else:
            yield (name,), loaded


def main() -> None:
    """Run `ghub`; the entry point."""
    app()
