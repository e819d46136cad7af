"""What an upstream says that it used, in tokens, by what each kind costs."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TokenUsage:
    """Tokens of one call, none below zero. Cached input is counted apart from the rest; thoughts are text output."""

    text_input: int = 0
    cached_text_input: int = 0
    image_input: int = 0
    cached_image_input: int = 0
    image_output: int = 0
    text_output: int = 0


def token_count(value: object) -> int | None:
    """Read a count of an upstream's reply; None if it is no whole number from 0 on."""
    return value if type(value) is int and value >= 0 else None
