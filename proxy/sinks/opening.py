"""GHUB_SINKS → senders, with the tokens of the environment."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from config.catalogue import CatalogueError
from metering.sinks.file import tokens_of
from metering.sinks.sink import Sender, Sink
from proxy.sinks.http import HttpSender
from proxy.sinks.nats import NatsMissing, NatsSender


@asynccontextmanager
async def open_senders(
    sinks: Sequence[Sink], environment: Mapping[str, str]
) -> AsyncIterator[list[tuple[Sink, Sender]]]:
    """Open a sender for each sink, and close them at the end. Raises CatalogueError."""
    tokens = tokens_of(tuple(sinks), environment)
    async with AsyncExitStack() as stack:
        opened: list[tuple[Sink, Sender]] = []
        for sink in sinks:
            sender = _sender(sink, tokens[sink.name])
            stack.push_async_callback(sender.aclose)
            opened.append((sink, sender))
        yield opened


def _sender(sink: Sink, token: str | None) -> Sender:
    if sink.profile != "nats":
        return HttpSender(token)
    try:
        return NatsSender(sink.url, token)
    except NatsMissing as error:
        raise CatalogueError(f"GHUB_SINKS: {sink.name}: {error}") from None
