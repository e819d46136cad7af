"""Settings → parts. The only file that names concrete classes, for the application and the commands."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from getpass import getuser

import httpx2
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.types import ASGIApp

from config.catalogue import Catalogue, read_catalogue, read_plans, read_seed_rates
from config.settings import (
    BODY_TIMEOUT_S,
    CLOSED_S,
    FX_POLL_S,
    HEARTBEAT_S,
    JOURNAL_KEPT_BYTES,
    JOURNAL_POLL_S,
    JOURNAL_STOP_S,
    KEY_CACHE_SIZE,
    MAX_BODY_BYTES,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_SIDE_PX,
    MAX_OPEN_HOLDS,
    MAX_PICTURES,
    MEMORY_MARK,
    PROJECTION_POLL_S,
    REDIS_BACKGROUND_S,
    REDIS_CONNECTIONS,
    REDIS_DECISION_S,
    RESULT_DOCUMENT_BYTES,
    SPOOL_MARK,
    STORE_WATCH_S,
    STREAM_BACKLOG,
    STREAMS,
    Settings,
    SettingsError,
)
from metering.accounts import Accounts
from metering.answers import Answers, Unproven
from metering.background import Background, Part, told
from metering.clock import utc_now
from metering.consumer import Consumer
from metering.feeding import Feeding
from metering.frames import Folder, JournalError, Past
from metering.fx import Rates, seed
from metering.journal import Journal, JournalFailed, Keep
from metering.ledger.postgres import open_postgres
from metering.ledger.sqlite import open_sqlite
from metering.limits import Limits
from metering.money import MICRO
from metering.orders import Orders
from metering.pages import pages
from metering.ports import Ledger, LedgerAway, ListPrice, Once
from metering.pricing import Rate
from metering.recovery import Recovery
from metering.salvage import check_versions
from metering.wallet.connection import WalletAway, open_redis, warm_up
from metering.wallet.jobs import Jobs
from metering.wallet.presence import Presence
from metering.wallet.pressure import Pressure
from metering.wallet.projection import Projector
from metering.wallet.wallet import Wallet, WalletLimits
from proxy.account import CreditsEndpoint
from proxy.admin import AdminEndpoint
from proxy.app import STORAGE_PATH, build_app, build_full_app
from proxy.auth import Authenticator
from proxy.capacity import BUSY, Capacity
from proxy.generations import Generations
from proxy.health import Condition, Conditions, NotReady, running, when
from proxy.history import HistoryEndpoint
from proxy.images import ImagesEndpoint
from proxy.jwks import Jwks
from proxy.keeping import ImageLimits, Keeper
from proxy.lifecycle import Lifecycle
from proxy.models import ModelsEndpoint
from proxy.orphans import Orphans
from proxy.outbound import ImageHosts, Outbound
from proxy.ports import Provider
from proxy.providers.fal import Fal
from proxy.providers.google import ApiKey, BadServiceAccount, Google, ServiceAccount
from proxy.providers.openai import OpenAI
from proxy.providers.xai import XAI
from proxy.replies import Replies
from proxy.requests import RequestLimits
from proxy.sandbox import Sandbox
from proxy.spool import Spool
from proxy.storage.opening import open_store
from proxy.storage.watch import StoreWatch
from proxy.tokens import Issuer, Secret, Tokens
from proxy.usage import UsageEndpoint

log = structlog.get_logger(__name__)

DISK_FAILS = "The gateway's disk fails; nothing was charged."

GEMINI_URL = "https://generativelanguage.googleapis.com/v1beta"


BACKGROUND_CONNECTIONS = 40
"""At most, of each server: on a cluster the consumer waits on each of 32 partitions; the others need a few."""


def wallet_limits() -> WalletLimits:
    """The numbers of `config.settings` that bound a wallet."""
    return WalletLimits(
        decision_s=REDIS_DECISION_S,
        most_open_holds=MAX_OPEN_HOLDS,
        stream_backlog=STREAM_BACKLOG,
        remember_s=CLOSED_S,
    )


def open_ledger(settings: Settings) -> Ledger:
    """The ledger that GHUB_LEDGER_URL names. Raises SettingsError."""
    url = settings.ledger_url.get_secret_value()
    try:
        return open_sqlite(url) if url.startswith("sqlite:") else open_postgres(url)
    except ValueError as error:
        raise SettingsError(f"GHUB_LEDGER_URL: {error}") from None


def open_background_redis(settings: Settings) -> Redis:
    """Redis for work that no customer waits for. Raises SettingsError."""
    return _redis(settings, BACKGROUND_CONNECTIONS)


@asynccontextmanager
async def _open_journal(settings: Settings, ledger: Ledger) -> AsyncIterator[tuple[Journal, list[Past]]]:
    """A new journal, and what is left of earlier ones in its folder. Raises JournalError."""
    folder = Folder(settings.journal_dir)
    try:
        past = await asyncio.to_thread(folder.past)
        check_versions([one for one in past if (await ledger.incarnation(one.incarnation)).closed_at is None])
        try:
            journal = await asyncio.to_thread(partial(Journal, folder, keep=_kept(settings)))
        except OSError as error:
            raise JournalError(f"GHUB_JOURNAL_DIR: no room in {settings.journal_dir}: {error.strerror}") from None
        try:
            yield journal, past
        finally:
            await journal.close()
    finally:
        folder.close()


async def _book(answers: Answers) -> None:
    """Wait a moment for the consumer: a gateway whose every answer is booked leaves no journal behind."""
    with suppress(TimeoutError, WalletAway, LedgerAway, Unproven):
        async with asyncio.timeout(JOURNAL_STOP_S):
            while answers.waiting:
                await answers.round()
                await asyncio.sleep(JOURNAL_POLL_S / 10)


def _kept(settings: Settings) -> Keep:
    return Keep(settings.keep_h * 3600, JOURNAL_KEPT_BYTES)


async def _end_incarnation(answers: Answers) -> None:
    """Tell the ledger that it has all that our journal says. Where that is not so, or not heard, the next one does."""
    try:
        await answers.end(utc_now())
    except (WalletAway, LedgerAway, JournalFailed, OSError) as error:
        log.warning("journal_not_closed", **told(error))


def _spool(settings: Settings) -> Spool:
    spool = Spool(settings.spool_dir, settings.spool_mb * 1024 * 1024)
    try:
        spool.clean()
    except OSError as error:
        raise SettingsError(f"GHUB_SPOOL_DIR: {settings.spool_dir} cannot be used: {error.strerror}") from None
    return spool


def _image_hosts(settings: Settings) -> ImageHosts:
    try:
        return ImageHosts(settings.image_hosts)
    except ValueError as error:
        raise SettingsError(f"GHUB_IMAGE_HOSTS: {error}") from None


def _redis(settings: Settings, connections: int) -> Redis:
    try:
        return open_redis(_redis_url(settings), connections=connections, call_timeout_s=REDIS_BACKGROUND_S)
    except ValueError as error:
        raise SettingsError(f"GHUB_REDIS_URL: {error}") from None


def _redis_url(settings: Settings) -> str:
    if settings.redis_url is None:
        raise SettingsError(
            "GHUB_REDIS_URL is not set; it is redis://host:port, rediss://…, unix:///path or redis+cluster://host:port,…"
        )
    return settings.redis_url.get_secret_value()


@dataclass(frozen=True, slots=True)
class Back:
    """Ledger and Redis, as commands and the consumer need them."""

    settings: Settings
    ledger: Ledger
    redis: Redis | None
    plans: Mapping[str, Limits]
    catalogue: Catalogue

    @property
    def projector(self) -> Projector | None:
        """Brings a change to Redis at once, where this process can reach it."""
        return Projector(self.redis, self.ledger) if self.redis is not None else None

    @property
    def accounts(self) -> Accounts:
        """What whoever runs this process may do to organisations."""
        return self.accounts_of(self.actor)

    @property
    def actor(self) -> str:
        """Whoever runs this process, as the audit log names it."""
        return f"cli:{getuser()}"

    def accounts_of(self, actor: str, once: Once | None = None) -> Accounts:
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
async def open_back(settings: Settings) -> AsyncIterator[Back]:
    """Ledger, and Redis where its address is set; closed at the end."""
    ledger = open_ledger(settings)
    redis = open_background_redis(settings) if settings.redis_url is not None else None
    try:
        yield Back(settings, ledger, redis, _plans(settings), read_catalogue(settings.models))
    finally:
        await ledger.aclose()
        if redis is not None:
            await redis.aclose()


@dataclass(frozen=True, slots=True)
class Gateway:
    """The application, how long it needs to stop, what keeps it from being ready, and its background work.

    `full` answers in its place where there are more connections than there may be.
    """

    app: ASGIApp
    full: ASGIApp
    longest_deadline_s: float
    not_ready: NotReady
    background: Background


@asynccontextmanager
async def open_gateway(settings: Settings, stopping: asyncio.Event, port: int) -> AsyncIterator[Gateway]:
    """Build the gateway; its background work begins and ends with the application's lifespan.

    `port` is the one that is really bound. Raises SettingsError, CatalogueError, LedgerError or WrongPolicy: then it
    must not start.
    """
    async with AsyncExitStack() as stack:
        opened_store = await stack.enter_async_context(open_store(settings))
        store, watch = opened_store.store, StoreWatch(opened_store.store)
        await watch.look()
        if opened_store.folder is not None:
            log.warning(
                "local_storage", folder=str(opened_store.folder), why="one disk, no replicas: not for production"
            )
        spool = _spool(settings)
        back = await stack.enter_async_context(open_back(settings))
        catalogue = back.catalogue
        hot = _redis(settings, REDIS_CONNECTIONS)
        stack.push_async_callback(hot.aclose)
        assert back.redis is not None
        await back.ledger.check_schema()
        await _register(back.ledger, catalogue, settings)
        await back.ledger.register_plans(back.plans, utc_now())
        rates = Rates(back.ledger, settings.fx_grace_h)
        await rates.refresh()
        pressure = Pressure(back.redis, MEMORY_MARK)
        with suppress(RedisError, OSError, TimeoutError):  # away is no reason not to start: requests get their 503
            await pressure.look()
        outbound = Outbound(_image_hosts(settings))
        stack.push_async_callback(outbound.aclose)
        wallet = Wallet(hot, wallet_limits())
        with suppress(RedisError, OSError, TimeoutError):  # as above
            await warm_up(hot, REDIS_CONNECTIONS)
            await wallet.set_clock()
        providers = _providers(settings, outbound)
        offered = _offered(catalogue, providers)
        journal, past = await stack.enter_async_context(_open_journal(settings, back.ledger))
        answers = Answers(journal, wallet, back.ledger, Presence(back.redis))
        recovery = Recovery(past, wallet, back.ledger, _kept(settings))
        await answers.begin(utc_now())
        stack.push_async_callback(_end_incarnation, answers)  # also where the start fails below
        keeper = Keeper(store, spool, ImageLimits(MAX_IMAGE_BYTES, MAX_IMAGE_SIDE_PX, STREAMS), watch)
        public_url = opened_store.public_url or f"http://{settings.host}:{port}{STORAGE_PATH}"
        replies = Replies(store, public_url)
        lifecycle = Lifecycle()
        jobs = Jobs(back.redis)
        generations = Generations(wallet, keeper, answers, providers, lifecycle, jobs)
        orphans = Orphans(jobs, wallet, {name: one for name, one in providers.items() if isinstance(one, Fal)})
        authenticator = Authenticator(wallet, KEY_CACHE_SIZE)
        projector = Projector(back.redis, back.ledger)

        background = Background(
            [
                Part("projection", lambda: projector.run(PROJECTION_POLL_S)),
                Part("rates", lambda: rates.run(FX_POLL_S)),
                Part("pressure", lambda: pressure.run(PROJECTION_POLL_S)),
                Part("store watch", lambda: watch.run(STORE_WATCH_S)),
                Part("answers", lambda: answers.run(JOURNAL_POLL_S)),
                Part("orphans", lambda: orphans.run(HEARTBEAT_S), needed=False),
                Part("recovery", recovery.run, needed=False),
            ],
            give_up=stopping.set,
        )
        conditions = Conditions(
            [
                Condition("stopping", when(stopping.is_set, "The gateway is restarting; nothing was charged.")),
                *running(background),
                Condition(
                    "journal failed", when(lambda: journal.failed, "The gateway's disk fails; nothing was charged.")
                ),
                Condition("busy", when(lambda: spool.share > SPOOL_MARK, BUSY), for_ready=False),
                Condition("Redis full", lambda: pressure.reason, for_ready=False),
                Condition("store", lambda: watch.reason),
            ]
        )
        capacity = Capacity(journal, MAX_PICTURES, conditions.refusal)

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            background.begin()
            yield
            await generations.drain()
            await _book(answers)
            await background.end()

        app = build_app(
            ImagesEndpoint(
                authenticator,
                offered,
                rates,
                wallet,
                back.ledger,
                capacity,
                generations,
                lifecycle,
                replies,
                Sandbox(wallet, keeper, replies, settings.deadline_s),
                RequestLimits(MAX_BODY_BYTES, BODY_TIMEOUT_S, settings.deadline_s),
                price_book=catalogue.price_book_version,
                region=settings.region,
                topup_url=settings.topup_url,
            ),
            ModelsEndpoint(authenticator, wallet, offered, rates),
            CreditsEndpoint(authenticator, wallet),
            HistoryEndpoint(authenticator, wallet, back.ledger, replies),
            UsageEndpoint(authenticator, wallet, back.ledger),
            _admin(settings, back, outbound, public_url),
            conditions.not_ready,
            lifespan,
            opened_store.folder,
        )
        deadlines = [model.deadline_s or 0.0 for model in catalogue.models.values()]
        longest_s = max(settings.deadline_s, *deadlines)
        yield Gateway(app, build_full_app(conditions.not_ready), longest_s, conditions.not_ready, background)


def _admin(settings: Settings, back: Back, outbound: Outbound, public_url: str) -> AdminEndpoint | None:
    """Nobody may be an administrator where nothing says how to tell one."""
    if settings.jwt_secret is not None:
        keys: Secret | Jwks = Secret(settings.jwt_secret.get_secret_value())
    elif settings.jwks_url is not None:
        keys = Jwks(outbound.client, settings.jwks_url)
    else:
        return None
    tokens = Tokens(keys, Issuer(settings.jwt_audience, settings.jwt_issuer))
    limits = RequestLimits(MAX_BODY_BYTES, BODY_TIMEOUT_S, settings.deadline_s)
    orders = Orders(back.ledger, back.redis)
    return AdminEndpoint(tokens, back.ledger, back.wallet(), orders, back.accounts_of, limits, public_url)


def _providers(settings: Settings, outbound: Outbound) -> dict[str, Provider]:
    """The upstreams whose keys are set. Raises SettingsError."""
    client, most = outbound.client, RESULT_DOCUMENT_BYTES
    providers: dict[str, Provider] = {}
    if settings.openai_key is not None:
        providers["openai"] = OpenAI(client, settings.openai_url, settings.openai_key.get_secret_value(), most)
    if settings.xai_key is not None:
        providers["xai"] = XAI(client, settings.xai_url, settings.xai_key.get_secret_value(), most)
    if settings.google_service_account is not None:
        account = _service_account(settings, client)
        base = settings.google_url or f"https://{settings.google_location}-aiplatform.googleapis.com/v1"
        models = f"{base}/projects/{account.project}/locations/{settings.google_location}/publishers/google/models"
        providers["google"] = Google(client, models, account, most)
    elif settings.google_key is not None:
        base = settings.google_url or GEMINI_URL
        providers["google"] = Google(client, f"{base}/models", ApiKey(settings.google_key.get_secret_value()), most)
    if settings.fal_key is not None:
        providers["fal"] = Fal(
            outbound,
            url=settings.fal_url,
            queue_url=settings.fal_queue_url if settings.fal_mode == "queue" else None,
            key=settings.fal_key.get_secret_value(),
            document_bytes=most,
        )
    return providers


def _service_account(settings: Settings, client: httpx2.AsyncClient) -> ServiceAccount:
    assert settings.google_service_account is not None
    try:
        return ServiceAccount(client, settings.google_service_account)
    except BadServiceAccount as error:
        raise SettingsError(f"GHUB_GOOGLE_SERVICE_ACCOUNT: {error}") from None


def _offered(catalogue: Catalogue, providers: Mapping[str, Provider]) -> Catalogue:
    """The models that can be made: their provider's key is set."""
    models = {name: model for name, model in catalogue.models.items() if model.provider in providers}
    if absent := sorted(set(catalogue.models) - set(models)):
        log.warning("models_not_offered", models=absent, why="the provider's key is not set")
    return catalogue.model_copy(update={"models": models})


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


async def _register(ledger: Ledger, catalogue: Catalogue, settings: Settings) -> None:
    """Write the price book down, and fill an empty rate table."""
    prices = [
        ListPrice(name, usd, variant)
        for name, model in catalogue.models.items()
        for variant, usd in model.prices().items()
    ]
    await ledger.register_prices(catalogue.price_book_version, catalogue.markup, prices, utc_now())
    rates = [Rate(row.month, row.mxn_per_usd, row.source) for row in read_seed_rates(settings.fx)]
    await seed(ledger, rates)
