"""Limits of organisations and keys on a command line."""

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any

import typer

from metering.limits import LIMITS, LimitKind
from metering.money import AmountError, parse_mxn
from proxy.cli.output import misuse

Words = Mapping[str, int | None]
Changes = Mapping[str, int | None]
"""Changed limits by the columns of `Limits`."""


def takes_limits(words: Words) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorate a command with a parameter `changes`: typer sees an option for each kind of limit instead, and the given
    options become `changes`. `words` are the words that stand for a value; misuse ends the command.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def given(**values: Any) -> None:
            limits = {kind: values.pop(kind.name) for kind in LIMITS.values()}
            command(**values, changes=_changes(limits, words))

        parameters: list[inspect.Parameter] = []
        for parameter in inspect.signature(command).parameters.values():
            parameters += _options(words) if parameter.name == "changes" else [parameter]
        given.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it here
        return given

    return decorate


def _options(words: Words) -> list[inspect.Parameter]:
    options = []
    for kind in LIMITS.values():
        option = typer.Option(help=_help(kind, words), metavar="MXN" if kind.money else "N")
        parameter = inspect.Parameter(kind.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
        options.append(parameter.replace(annotation=Annotated[str | None, option]))
    return options


def _help(kind: LimitKind, words: Words) -> str:
    shown = "Such as 500.00" if kind.money else "A number"
    if "plan" not in words:
        return f"{shown}, or `none`."
    return f"{shown}, or `plan` for the plan's." if kind.required else f"{shown}, `plan` for the plan's, or `none`."


def _changes(given: Mapping[LimitKind, str | None], words: Words) -> dict[str, int | None]:
    changes: dict[str, int | None] = {}
    for kind, text in given.items():
        if text is None:
            continue
        option = _option(kind)
        if text in words:
            value = words[text]
        elif kind.money:
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
        changes[kind.column] = value
    if not changes:
        misuse("name a limit: " + ", ".join(_option(kind) for kind in given))
    return changes


def _option(kind: LimitKind) -> str:
    return f"--{kind.name.replace('_', '-')}"
