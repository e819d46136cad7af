"""GHUB_SINKS: a TOML file of sinks, read once at start and checked to the last field."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from config.catalogue import CatalogueError, Row, read_rows
from metering.sinks.cloudevents import CloudEventsSink, OpenMeterSink
from metering.sinks.jetstream import NatsSink
from metering.sinks.lago import LagoSink
from metering.sinks.sink import Sink
from metering.sinks.stripe import StripeSink

PROFILES: Mapping[str, type[Sink]] = {
    "cloudevents": CloudEventsSink,
    "openmeter": OpenMeterSink,
    "lago": LagoSink,
    "stripe": StripeSink,
    "nats": NatsSink,
}
"""By their name. A new profile is its class, and its place here and in the next line."""

Configured = Annotated[
    CloudEventsSink | OpenMeterSink | LagoSink | StripeSink | NatsSink, Field(discriminator="profile")
]


class SinksFile(Row):
    sinks: tuple[Configured, ...] = ()

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        names = [sink.name for sink in self.sinks]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"two sinks have the name {min(twice)!r}")
        return self


def read_sinks(path: Path | None) -> tuple[Sink, ...]:
    """Read the sinks of a file; there are none without. Raises CatalogueError, which names the field."""
    return read_rows(SinksFile, "GHUB_SINKS", path, "").sinks if path is not None else ()


def tokens_of(sinks: tuple[Sink, ...], environment: Mapping[str, str]) -> dict[str, str | None]:
    """Find each sink's token in the environment, by the sink's name. Raises CatalogueError, without a token in it."""
    found: dict[str, str | None] = {}
    for sink in sinks:
        if sink.token_env is None and sink.NEEDS_TOKEN:
            raise CatalogueError(f"GHUB_SINKS: {sink.name}: token_env: is needed; it names the variable with the token")
        found[sink.name] = token = environment.get(sink.token_env, "").strip() if sink.token_env else None
        if token is not None and not (token and token.isascii() and token.isprintable()):
            raise CatalogueError(f"GHUB_SINKS: {sink.name}: token_env: {sink.token_env} is not set, or is no token")
    return found
