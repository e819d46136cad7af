"""Settings → ledger and Redis, as commands and the consumer need them: nothing of what serves customers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis

from config.catalogue import Catalogue, read_catalogue, read_plans
from config.settings import (
    CLOSED_S,
    MAX_OPEN_HOLDS,
    REDIS_BACKGROUND_S,
    REDIS_DECISION_S,
    STREAM_BACKLOG,
    Settings,
    SettingsError,
    operator,
)
from metering.accounts import Accounts
from metering.consumer import Consumer
from metering.feeding import Feeding
from metering.ledger.sqlite import open_sqlite
from metering.limits import Limits
from metering.money import MICRO
from metering.pages import pages
from metering.ports import IdempotentWrite, Ledger
from metering.wallet.connection import open_redis
from metering.wallet.login import Login
from metering.wallet.projection import Projector
from metering.wallet.values import WalletLimits
from metering.wallet.wallet import Wallet

BACKGROUND_CONNECTIONS = 40
"""At most, of each server: on a cluster the consumer waits on each of 32 partitions; the others need a few."""

LOGIN_REFUSED = "Redis refuses the user name or password"
"""As `/readyz` says it, of gateway and consumer."""


def wallet_limits() -> WalletLimits:
    """The numbers of `config.settings` that bound a wallet."""
    return WalletLimits(
        decision_s=REDIS_DECISION_S,
        max_open_holds=MAX_OPEN_HOLDS,
        stream_backlog=STREAM_BACKLOG,
        remember_s=CLOSED_S,
    )


def open_ledger(settings: Settings) -> Ledger:
    """The ledger that GHUB_LEDGER_URL names. Raises SettingsError."""
    url = settings.ledger_url.get_secret_value()
    try:
        return open_sqlite(url) if url.startswith("sqlite:") else _open_postgres(url)
    except ValueError as error:
        raise SettingsError(f"GHUB_LEDGER_URL: {error}") from None


def _open_postgres(url: str) -> Ledger:
    from metering.ledger.postgres import open_postgres  # noqa: PLC0415  # the loader of a driver that SQLite does not need

    return open_postgres(url)


def open_background_redis(settings: Settings) -> Redis:
    """Redis for work that no customer waits for. Raises SettingsError."""
    return open_redis_of(settings, BACKGROUND_CONNECTIONS)


def open_redis_of(settings: Settings, connections: int) -> Redis:
    """The Redis that GHUB_REDIS_URL names, with at most so many connections. Raises SettingsError."""
    try:
        return open_redis(_redis_url(settings), connections=connections, call_timeout_s=REDIS_BACKGROUND_S)
    except ValueError as error:
        raise SettingsError(f"GHUB_REDIS_URL: {error}") from None


def _redis_url(settings: Settings) -> str:
    if settings.redis_url is None:
        raise SettingsError(
            "GHUB_REDIS_URL is not set; it is redis://host:port, rediss://…, unix:///path, redis+cluster://host:port,…"
            " or redis+sentinel://host:port,…/SERVICE"
        )
    return settings.redis_url.get_secret_value()


@dataclass(frozen=True, slots=True)
class Backends:
    """Ledger and Redis, as commands and the consumer need them."""

    settings: Settings
    ledger: Ledger
    redis: Redis | None
    plans: Mapping[str, Limits]
    catalogue: Catalogue
    actor: str
    """Whoever runs this process, as the audit log names it."""

    @property
    def projector(self) -> Projector | None:
        """Brings a change to Redis at once, where this process can reach it."""
        return Projector(self.redis, self.ledger) if self.redis is not None else None

    @property
    def accounts(self) -> Accounts:
        """What whoever runs this process may do to organisations."""
        return self.accounts_of(self.actor)

    def accounts_of(self, actor: str, once: IdempotentWrite | None = None) -> Accounts:
        """What an actor may do to organisations, and with `once` the one write that may be repeated."""
        return Accounts(self.ledger, self.projector, self.plans, self.catalogue.models, actor, once)

    async def last_used(self, org_id: str) -> dict[str, int]:
        """Key id → Unix µs of its last order, as far as ledger and Redis know."""
        used = await self.ledger.last_used(org_id)
        if self.redis is not None:
            async for page in pages(partial(self.ledger.keys, org_id)):
                late = await self.wallet().last_used(org_id, [key.key_id for key in page])
                used |= {key_id: max(used.get(key_id, 0), at_us) for key_id, at_us in late.items()}
        return used

    def wallet(self) -> Wallet:
        """The wallets. Raises SettingsError where no Redis is set."""
        if self.redis is None:
            _redis_url(self.settings)
        assert self.redis is not None
        return Wallet(self.redis, wallet_limits())

    def login(self) -> Login:
        """Whether Redis lets this process in. Raises SettingsError where no Redis is set."""
        if self.redis is None:
            _redis_url(self.settings)
        assert self.redis is not None
        return Login(self.redis)

    def feeding(self) -> Feeding:
        """What puts events back that were set aside. Raises SettingsError where no Redis is set."""
        wallet, projector = self.wallet(), self.projector
        assert self.redis is not None
        assert projector is not None, "a wallet has a Redis"
        return Feeding(self.redis, self.ledger, wallet, projector)

    def consumer(self, name: str) -> Consumer:
        """A billing consumer of this name. Raises SettingsError where no Redis is set."""
        if self.redis is None:
            _redis_url(self.settings)
        assert self.redis is not None
        return Consumer(self.redis, self.ledger, name, CLOSED_S, self.settings.keep_h * 3600)


@asynccontextmanager
async def open_back(settings: Settings, who: str | None = None) -> AsyncIterator[Backends]:
    """Ledger, and Redis where its address is set; closed at the end. `who` acts, and without it `operator` says."""
    ledger = open_ledger(settings)
    redis = open_background_redis(settings) if settings.redis_url is not None else None
    try:
        yield Backends(
            settings,
            ledger,
            redis,
            _plans(settings),
            read_catalogue(settings.models),
            f"cli:{who or operator(settings)}",
        )
    finally:
        await ledger.aclose()
        if redis is not None:
            await redis.aclose()


def _plans(settings: Settings) -> dict[str, Limits]:
    return {
        name: Limits(
            requests_per_minute=plan.requests_per_minute,
            images_per_minute=plan.images_per_minute,
            in_flight=plan.in_flight,
            images_per_day=plan.images_per_day,
            images_per_month=plan.images_per_month,
            micro_mxn_per_month=None if plan.mxn_per_month is None else int(plan.mxn_per_month * MICRO),
        )
        for name, plan in read_plans(settings.plans).items()
    }
