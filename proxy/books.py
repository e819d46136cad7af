"""Settings → the ledger, for commands that need no Redis."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from config.settings import Settings, SettingsError
from metering.ledger.sqlite import open_sqlite
from metering.ports import Ledger


@dataclass(frozen=True, slots=True)
class Books:
    """The ledger alone: it is opened much faster than Redis with it, as no library of Redis is loaded."""

    settings: Settings
    ledger: Ledger


def open_ledger(settings: Settings) -> Ledger:
    """Open the ledger of GHUB_LEDGER_URL. Raises SettingsError."""
    url = settings.ledger_url.get_secret_value()
    try:
        return open_sqlite(url) if url.startswith("sqlite:") else _open_postgres(url)
    except ValueError as error:
        raise SettingsError(f"GHUB_LEDGER_URL: {error}") from None


def _open_postgres(url: str) -> Ledger:
    from metering.ledger.postgres import open_postgres  # noqa: PLC0415  # the loader of a driver that SQLite does not need

    return open_postgres(url)


@asynccontextmanager
async def open_books(settings: Settings) -> AsyncIterator[Books]:
    """Open the ledger, and close it at the end."""
    ledger = open_ledger(settings)
    try:
        yield Books(settings, ledger)
    finally:
        await ledger.aclose()
