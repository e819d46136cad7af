"""Settings → ledger and Redis for commands and the consumer, without the parts that serve customers."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import date
from functools import cached_property

from redis.asyncio import Redis

from config.catalogue import Catalogue, read_catalogue
from config.settings import (
    CLOSED_S,
    MAX_OPEN_HOLDS,
    MAX_UNPAID_MICRO_MXN,
    REDIS_BACKGROUND_S,
    REDIS_DECISION_S,
    STREAM_BACKLOG,
    Settings,
    SettingsError,
    operator,
)
from metering.accounts import Accounts
from metering.limits import Limits
from metering.plans import read_plans
from metering.ports import IdempotentWrite, Ledger
from metering.tax import IvaRates, read_iva
from metering.wallet.connection import open_redis
from metering.wallet.login import Login
from metering.wallet.presence import Presence
from metering.wallet.projection import Projector
from metering.wallet.values import WalletLimits
from metering.wallet.wallet import Wallet
from proxy.books import open_ledger
from proxy.webhooks.settings import read_webhook_rules

BACKGROUND_CONNECTIONS = 40
"""Maximum connections to each server. On a cluster the consumer waits on each of 32 partitions; others need a few."""

LOGIN_REFUSED = "Redis refuses the user name or password"
"""Text in `/readyz` of gateway and consumer."""

NO_REDIS = (
    "GHUB_REDIS_URL is not set; it is redis://host:port, rediss://…, unix:///path, redis+cluster://host:port,…"
    " or redis+sentinel://host:port,…/SERVICE"
)


def wallet_limits() -> WalletLimits:
    """Collect the limits of a wallet from `config.settings`."""
    return WalletLimits(
        decision_s=REDIS_DECISION_S,
        max_open_holds=MAX_OPEN_HOLDS,
        stream_backlog=STREAM_BACKLOG,
        remember_s=CLOSED_S,
        max_unpaid_micro_mxn=MAX_UNPAID_MICRO_MXN,
    )


def open_background_redis(settings: Settings) -> Redis:
    """Open Redis for background work, which no customer waits for. Raises SettingsError."""
    return open_redis_of(settings, BACKGROUND_CONNECTIONS)


def open_redis_of(settings: Settings, connections: int, *, watched: bool = False) -> Redis:
    """The Redis that GHUB_REDIS_URL names, with at most so many connections. Raises SettingsError.

    `watched`: only wallets use it, so an answer has no timeout here.
    """
    if settings.redis_url is None:
        raise SettingsError(NO_REDIS)
    try:
        return open_redis(
            settings.redis_url.get_secret_value(),
            connections=connections,
            call_timeout_s=REDIS_BACKGROUND_S,
            watched=watched,
        )
    except ValueError as error:
        raise SettingsError(f"GHUB_REDIS_URL: {error}") from None


class Backends:
    """Ledger and Redis, for commands and the consumer. The files of plans and models are read when they are needed.

    `actor` is the user of this process, for the audit log. Raises SettingsError for a wrong setting of webhooks.
    """

    def __init__(self, settings: Settings, ledger: Ledger, redis: Redis | None, actor: str) -> None:
        self.settings = settings
        self.ledger = ledger
        self.redis = redis
        self.actor = actor
        self.webhook_rules = read_webhook_rules(settings)

    @cached_property
    def plans(self) -> Mapping[str, Limits]:
        """The plans of GHUB_PLANS. Raises CatalogueError."""
        return read_plans(self.settings.plans)

    @cached_property
    def iva(self) -> IvaRates:
        """The rates of GHUB_TAX. Raises CatalogueError."""
        return read_iva(self.settings.tax)

    @cached_property
    def catalogue(self) -> Catalogue:
        """The models of GHUB_MODELS. Raises CatalogueError."""
        return read_catalogue(self.settings.models)

    def shutdowns(self) -> Mapping[str, date]:
        """Days on which models end, of those that have one. Raises CatalogueError."""
        models = self.catalogue.models.items()
        return {name: model.shutdown_date for name, model in models if model.shutdown_date is not None}

    @property
    def projector(self) -> Projector | None:
        """Brings a change to Redis at once, where this process can reach it."""
        return self.projection() if self.redis is not None else None

    @property
    def accounts(self) -> Accounts:
        """Changes to organisations in the name of this process' user."""
        return self.accounts_of(self.actor)

    def accounts_of(self, actor: str, once: IdempotentWrite | None = None, *, apart: bool = False) -> Accounts:
        """Open the changes to organisations for an actor. `once` is the one write that may be repeated.

        `apart`: of one month, the actor uses one right only. Raises CatalogueError.
        """
        models = self.catalogue.models
        return Accounts(
            self.ledger,
            self.projector,
            self.plans,
            models,
            self.iva,
            actor,
            once,
            apart=apart,
            webhook_rules=self.webhook_rules,
        )

    def with_redis(self) -> Redis:
        """Redis, for what cannot be done without it. Raises SettingsError if none is set."""
        if self.redis is None:
            raise SettingsError(NO_REDIS)
        return self.redis

    def projection(self) -> Projector:
        """The projector, for what cannot be done without it. Raises SettingsError if no Redis is set."""
        return Projector(self.with_redis(), self.ledger)

    def presence(self) -> Presence:
        """Open the signs of life of gateways. Raises SettingsError if no Redis is set."""
        return Presence(self.with_redis())

    def wallet(self) -> Wallet:
        """The wallets. Raises SettingsError if no Redis is set."""
        return Wallet(self.with_redis(), wallet_limits())

    def login(self) -> Login:
        """Open the check that Redis lets this process in. Raises SettingsError if no Redis is set."""
        return Login(self.with_redis())


@asynccontextmanager
async def open_back(settings: Settings, who: str | None = None) -> AsyncIterator[Backends]:
    """Open the ledger, and Redis if configured; both are closed at the end.

    `who` acts; by default, `operator`'s answer.
    """
    ledger = open_ledger(settings)
    redis = open_background_redis(settings) if settings.redis_url is not None else None
    try:
        yield Backends(settings, ledger, redis, f"cli:{who or operator(settings)}")
    finally:
        await ledger.aclose()
        if redis is not None:
            await redis.aclose()
