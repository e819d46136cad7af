"""Formats by their name in `ghub usage export --format`."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from metering.exports.writing import Format


class ExtraMissing(Exception):
    """A format needs a library that is not installed; the message is a sentence for an operator."""


@dataclass(frozen=True, slots=True)
class Offered:
    """A format: the function that writes it, by module and name, because some bring a large library.

    `variants` are other functions of it, by the word that selects them. `extra` brings its library. Only text can be
    read on a terminal, and a format of `all_ends` has columns for orders that were not charged. What is `sealed` can be
    verified row by row with the manifest of its month.
    """

    function: str
    variants: Mapping[str, str] = field(default_factory=dict)
    extra: str | None = None
    is_text: bool = True
    all_ends: bool = True
    sealed: bool = False

    def load(self, variant: str | None = None) -> Format:
        """Load the function. Raises KeyError if there is no such variant, ExtraMissing if its library is not there."""
        module, name = (self.function if variant is None else self.variants[variant]).split(":")
        try:
            loaded: Format = getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if self.extra is None:
                raise
            install = f"pip install 'geekhub-gateway[{self.extra}]'"
            raise ExtraMissing(f"{error.name} is not installed, which this format needs: {install}") from error
        return loaded


FORMATS: Mapping[str, Offered] = {
    "csv": Offered(
        "metering.exports.csv_lines:write", {"excel": "metering.exports.csv_lines:write_for_excel"}, sealed=True
    ),
    "jsonl": Offered("metering.exports.json_lines:write", sealed=True),
    "parquet": Offered("metering.exports.parquet:write", extra="parquet", is_text=False),
    "xlsx": Offered("metering.exports.xlsx:write", extra="xlsx", is_text=False),
    "focus": Offered(
        "metering.exports.focus:write_1_2",
        {"1.2": "metering.exports.focus:write_1_2", "1.4": "metering.exports.focus:write_1_4"},
        all_ends=False,
    ),
}
"""A new format is a module, and a line here."""
