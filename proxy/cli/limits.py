"""Limits on a command line: of organisations and of keys."""

from collections.abc import Mapping
from typing import Annotated

import typer

from metering.money import AmountError, parse_mxn
from proxy.cli.output import misuse

PerMinute = Annotated[str | None, typer.Option(help="A number, or `plan` for the plan's.", metavar="N")]
OrgQuota = Annotated[str | None, typer.Option(help="A number, `plan` for the plan's, or `none`.", metavar="N")]
OrgBudget = Annotated[str | None, typer.Option(help="Such as 500.00, `plan` for the plan's, or `none`.", metavar="MXN")]
KeyLimit = Annotated[str | None, typer.Option(help="A number, or `none`.", metavar="N")]
KeyBudget = Annotated[str | None, typer.Option(help="Such as 500.00, or `none`.", metavar="MXN")]


def limit_changes(given: Mapping[str, str | None], words: Mapping[str, int | None]) -> dict[str, int | None]:
    """What was given, by the names of `Limits`; `words` are those that stand for a value. Misuse ends the command."""
    changes: dict[str, int | None] = {}
    for name, text in given.items():
        option = f"--{name.replace('_', '-')}"
        if text is None:
            continue
        if text in words:
            value = words[text]
        elif name == "mxn_per_month":
            try:
                value = parse_mxn(text)
            except AmountError as error:
                misuse(f"{option}: {error}")
        elif text.isascii() and text.isdigit() and len(text) < 16:
            value = int(text)
        else:
            misuse(f"{option}: {text!r} is neither a whole number nor {' or '.join(words)}")
        if value is not None and value < 1 and text not in words:
            misuse(f"{option}: {text} is no limit; it must be above zero")
        changes["micro_mxn_per_month" if name == "mxn_per_month" else name] = value
    if not changes:
        misuse("name a limit: " + ", ".join("--" + name.replace("_", "-") for name in given))
    return changes
