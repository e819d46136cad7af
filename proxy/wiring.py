"""Settings → parts. The only file that names concrete classes, for the application and the commands."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing, suppress
from dataclasses import dataclass
from functools import partial

import structlog
from redis.exceptions import RedisError
from starlette.applications import Starlette
from starlette.types import ASGIApp

from config.catalogue import Catalogue, read_seed_rates
from config.settings import (
    BODY_TIMEOUT_S,
    CONFIG_POLL_S,
    END_USERS_S,
    FX_POLL_S,
    HEARTBEAT_S,
    JOURNAL_KEPT_BYTES,
    JOURNAL_POLL_S,
    JOURNAL_STOP_S,
    KEY_CACHE_SIZE,
    LEAST_SPOOL_MB,
    MAX_BODY_BYTES,
    MAX_IMAGE_BYTES,
    MAX_IMAGE_SIDE_PX,
    MAX_PICTURES,
    MEMORY_MARK,
    ORIGINS_POLL_S,
    PRICES_POLL_S,
    PROJECTION_POLL_S,
    REDIS_BACKGROUND_S,
    REDIS_CONNECTIONS,
    SPARE_PICTURES,
    SPARE_STREAMS,
    SPOOL_END,
    SPOOL_MARK,
    STORE_WATCH_S,
    STREAMS,
    Settings,
    SettingsError,
)
from metering.background import Background, Part, error_fields
from metering.clock import utc_now
from metering.end_users import EndUsers
from metering.fx import FxTable, seed
from metering.journal.file import Journal, JournalFailed, Keep
from metering.journal.folders import folder_of, left_behind
from metering.journal.frames import Folder, JournalError, OldJournal
from metering.journal.open_orders import OpenOrders, Unproven
from metering.journal.recovery import Recovery
from metering.journal.salvage import check_versions
from metering.manifest import read_key
from metering.orders import Orders
from metering.ports import IdempotentWrite, Ledger, LedgerAway
from metering.price_table import PriceTable
from metering.pricing import FxRate
from metering.pseudonyms import Pseudonyms
from metering.shares import Bound
from metering.tracing import OFF, Tracer
from metering.wallet.connection import WalletAway, warm_up
from metering.wallet.jobs import UpstreamJobs
from metering.wallet.login import Login
from metering.wallet.long_orders import LongOrders
from metering.wallet.pressure import Pressure
from metering.wallet.price_lists import PriceLists
from metering.wallet.wallet import Wallet
from proxy.announced import AnnouncedEnds
from proxy.api.admin.endpoint import AdminEndpoint
from proxy.api.admin.jwks import Jwks
from proxy.api.admin.minting import Issuer
from proxy.api.admin.tokens import Secret, Tokens
from proxy.api.auth import Authenticator
from proxy.api.cancels import CancelsEndpoint
from proxy.api.catalogue import ModelsEndpoint
from proxy.api.cors import Origins
from proxy.api.credits import CreditsEndpoint
from proxy.api.crowd import Crowd
from proxy.api.deliveries import HistoryEndpoint
from proxy.api.dry_run import DryRuns
from proxy.api.files import STORAGE_PATH, FilesEndpoint
from proxy.api.finance.endpoint import FinanceEndpoint
from proxy.api.finance.writes import Deeds
from proxy.api.health import Condition, Conditions, NotReady, Versions, running, when
from proxy.api.images import ImagesEndpoint
from proxy.api.operation import Endpoint
from proxy.api.reads import ReadRates, Reports
from proxy.api.replies import Replies
from proxy.api.requests import RequestLimits
from proxy.api.standing import Standing
from proxy.api.statements import StatementsEndpoint
from proxy.api.transactions import TransactionsEndpoint
from proxy.api.usage import UsageEndpoint
from proxy.app import build_app, build_full_app
from proxy.backends import LOGIN_REFUSED, Backends, open_back, open_redis_of, wallet_limits
from proxy.errors import wallet_away
from proxy.messages import (
    BACKLOG,
    DISK_FAILS,
    MEMORY_FULL,
    STOPPING,
    TOP_UP,
    TOP_UP_AT,
    TOP_UP_WITH,
    Text,
)
from proxy.offer import Offer
from proxy.orders.admission import Admissions
from proxy.orders.adoptions import LOOK_S, Adoptions
from proxy.orders.calls import UpstreamCalls
from proxy.orders.cancels import Cancellations
from proxy.orders.capacity import Capacity
from proxy.orders.circuits import Circuits
from proxy.orders.deadlines import Deadlines
from proxy.orders.gate import Gate
from proxy.orders.generations import Generations, Kept
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.orphans import Orphans
from proxy.orders.places import Places
from proxy.orders.quotes import Quotes
from proxy.orders.replay import Replay
from proxy.orders.routes import Routes
from proxy.orders.sandbox import Sandbox
from proxy.orders.settlement import Settlement, count_from_zero
from proxy.orders.tasks import Tasks
from proxy.orders.upload import ImageLimits, Uploader
from proxy.outbound.clients import Outbound
from proxy.outbound.hosts import ImageHosts
from proxy.ports import Provider
from proxy.providers import fal, google, openai, xai
from proxy.providers.fal import Fal
from proxy.reload import ConfigFiles
from proxy.server.connections import Early
from proxy.server.worker import Worker
from proxy.storage.opening import open_store
from proxy.storage.spool import Spool
from proxy.storage.watch import StoreWatch
from proxy.webhooks.settings import read_webhook_hosts

log = structlog.get_logger(__name__)

PROVIDERS = (openai, google, xai, fal)
"""The modules of all providers. A new provider needs its file, and its place here."""


@asynccontextmanager
async def _open_journal(
    settings: Settings, worker: Worker, ledger: Ledger
) -> AsyncIterator[tuple[Journal, list[OldJournal]]]:
    """Open a new journal, and those of earlier gateways that it is for this process to replay. Raises JournalError."""
    own = folder_of(settings.journal_dir, worker.number)
    with ExitStack() as claims:
        folders = [
            claims.enter_context(closing(Folder(path)))
            for path in (own, *left_behind(settings.journal_dir, worker.number, worker.count))
        ]
        past = [one for folder in folders for one in await asyncio.to_thread(folder.past)]
        check_versions([one for one in past if (await ledger.incarnation(one.incarnation)).closed_at is None])
        try:
            journal = await asyncio.to_thread(partial(Journal, folders[0], keep=_kept(settings, worker)))
        except OSError as error:
            raise JournalError(f"GHUB_JOURNAL_DIR: no room in {own}: {error.strerror}") from None
        try:
            yield journal, past
        finally:
            await journal.close()


async def _book(open_orders: OpenOrders) -> None:
    """Wait a moment for the consumer: if all its answers are booked, a gateway leaves no journal behind."""
    with suppress(TimeoutError, WalletAway, LedgerAway, Unproven):
        async with asyncio.timeout(JOURNAL_STOP_S):
            while open_orders.waiting:
                await open_orders.round()
                await asyncio.sleep(JOURNAL_POLL_S / 10)


def _kept(settings: Settings, worker: Worker) -> Keep:
    return Keep(settings.keep_h * 3600, JOURNAL_KEPT_BYTES // worker.count)


async def _end_incarnation(open_orders: OpenOrders) -> None:
    """Record in the ledger that it has all of our journal. If it does not, or is away, the next gateway does this."""
    try:
        await open_orders.end(utc_now())
    except (WalletAway, LedgerAway, JournalFailed, OSError) as error:
        log.warning("journal_not_closed", **error_fields(error))


def _spool(settings: Settings, worker: Worker) -> Spool:
    if settings.spool_mb < LEAST_SPOOL_MB * worker.count:
        raise SettingsError(
            f"GHUB_SPOOL_MB: {settings.spool_mb} MB are shared by {worker.count} processes, and each needs"
            f" {LEAST_SPOOL_MB}: give it {LEAST_SPOOL_MB * worker.count} or more"
        )
    spool = Spool(settings.spool_dir, settings.spool_mb * 1024 * 1024 // worker.count)
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


@dataclass(frozen=True, slots=True)
class Gateway:
    """The application, how long the longest order may take for which a stop waits, what keeps it from being ready, its
    files, and its background work.

    `full` answers instead of the application if there are too many connections, and `early` if there are too many
    orders.
    """

    app: ASGIApp
    full: ASGIApp
    early: Early
    longest_stay_s: float
    not_ready: NotReady
    versions: Versions
    background: Background


@asynccontextmanager
async def open_gateway(
    settings: Settings, stopping: asyncio.Event, port: int, worker: Worker, tracer: Tracer = OFF
) -> AsyncIterator[Gateway]:
    """Build the gateway; its background work begins and ends with the application's lifespan.

    `port` is the one that is really bound. Raises SettingsError, CatalogueError, LedgerError or WrongPolicy: then the
    gateway must not start.
    """
    async with AsyncExitStack() as stack:
        opened_store = await stack.enter_async_context(open_store(settings))
        store, watch = opened_store.store, StoreWatch(opened_store.store)
        await watch.look()
        if opened_store.folder is not None:
            log.warning(
                "local_storage", folder=str(opened_store.folder), why="one disk, no replicas: not for production"
            )
        spool = _spool(settings, worker)
        back = await stack.enter_async_context(open_back(settings))
        hot = open_redis_of(settings, REDIS_CONNECTIONS, watched=True)
        stack.push_async_callback(hot.aclose)
        wallet = Wallet(hot, wallet_limits())
        prices, price_lists = PriceTable(back.ledger), PriceLists(back.with_redis())
        files = ConfigFiles(settings, back, prices, price_lists)
        await back.ledger.check_schema()
        await _seed_rates(back.ledger, settings)
        rates = FxTable(back.ledger, settings.fx_grace_h)
        await rates.refresh()
        origins = Origins(back.ledger, settings.any_key_from)
        await origins.refresh()
        end_users = EndUsers(back.ledger, Pseudonyms(await back.ledger.pseudonym_secret()))
        login, pressure = back.login(), Pressure(back.with_redis(), MEMORY_MARK)
        with suppress(RedisError, OSError, TimeoutError):  # start even if Redis is away: requests get their 503
            await login.look()
            await pressure.look()
        outbound = Outbound(_image_hosts(settings))
        stack.push_async_callback(outbound.aclose)
        with suppress(RedisError, OSError, TimeoutError):  # as above
            async with asyncio.timeout(REDIS_BACKGROUND_S):
                await warm_up(hot, REDIS_CONNECTIONS)
                await wallet.set_clock()
        providers = _providers(settings, outbound)
        offer = await files.begin(providers, _count_offered)
        with suppress(RedisError, OSError, TimeoutError):  # as above
            await prices.follow(price_lists)
        journal, past = await stack.enter_async_context(_open_journal(settings, worker, back.ledger))
        open_orders = OpenOrders(journal, wallet, back.ledger, back.presence())
        recovery = Recovery(past, wallet, back.ledger, _kept(settings, worker))
        await open_orders.begin(utc_now())
        stack.push_async_callback(_end_incarnation, open_orders)  # also if the start fails below
        uploader = Uploader(
            store, spool, ImageLimits(MAX_IMAGE_BYTES, MAX_IMAGE_SIDE_PX, Bound(STREAMS, SPARE_STREAMS)), watch
        )
        public_url = opened_store.public_url or f"http://{settings.host}:{port}{STORAGE_PATH}"
        replies = Replies(store, public_url)
        lifecycle = Lifecycle(successors=offer.successor)
        jobs = UpstreamJobs(back.with_redis())
        routes = Routes(Circuits(), providers)
        tasks, calls = Tasks(), UpstreamCalls(uploader, providers, routes)
        long_orders = LongOrders(back.with_redis(), jobs.owner)
        resuming = {name: one for name, one in providers.items() if isinstance(one, Fal) and one.keeps_jobs}
        settlement = Settlement(wallet, open_orders, calls, lifecycle, tasks, jobs.owner)
        generations = Generations(wallet, calls, settlement, tasks, Kept(jobs, long_orders, stopping.is_set))
        orphans = Orphans(jobs, wallet, resuming)
        gate = Gate()
        authenticator = Authenticator(wallet, KEY_CACHE_SIZE, settings.any_key_from)
        reads = ReadRates()
        standing = Standing(wallet, back.ledger, replies)
        projector = back.projection()

        background = Background(
            [
                Part("gate", gate.run),
                Part("projection", lambda: projector.run(PROJECTION_POLL_S)),
                Part("rates", lambda: rates.run(FX_POLL_S)),
                Part("prices", lambda: prices.run(price_lists, PRICES_POLL_S)),
                Part("files", lambda: files.run(CONFIG_POLL_S), needed=False),
                Part("pressure", lambda: pressure.run(PROJECTION_POLL_S)),
                Part("login", lambda: login.run(PROJECTION_POLL_S), needed=False),
                Part("store watch", lambda: watch.run(STORE_WATCH_S)),
                Part("answers", lambda: open_orders.run(JOURNAL_POLL_S)),
                Part("origins", lambda: origins.run(ORIGINS_POLL_S), needed=False),
                Part("orphans", lambda: orphans.run(HEARTBEAT_S), needed=False),
                Part("adoptions", lambda: adoptions.run(LOOK_S), needed=False),
                Part("recovery", recovery.run, needed=False),
                Part("end users", lambda: end_users.run(END_USERS_S), needed=False),
                *_announced(settings, outbound, offer),
            ],
            give_up=stopping.set,
        )
        conditions = _conditions(stopping, background, journal, login, pressure, watch, prices)
        capacity = Capacity(
            conditions.refusal,
            Bound(MAX_PICTURES, SPARE_PICTURES),
            spool.shares,
            spool_mark=spool.part(SPOOL_MARK),
            spool_end=spool.part(SPOOL_END),
        )

        kept_by = resuming.keys() if settings.fal_mode == "queue" else ()
        deadlines = Deadlines(settings.deadline_s, settings.long_deadline_s, kept_by)
        places = Places(journal, capacity)
        adoptions = Adoptions(
            long_orders, wallet, open_orders, places, generations, routes, offer, resuming.keys(), stopping.is_set
        )
        admissions = Admissions(
            wallet,
            places,
            Quotes(rates, prices),
            settlement,
            gate,
            end_users,
            routes,
            owner=jobs.owner,
            region=settings.region,
            deadlines=deadlines,
            top_up=_top_up(settings),
        )

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            background.begin()
            yield
            await tasks.drain()
            await _book(open_orders)
            await background.end()
            await end_users.drain()

        reports = Reports()
        limits = RequestLimits(MAX_BODY_BYTES, BODY_TIMEOUT_S, settings.deadline_s)
        webhook_hosts = None if settings.secrets_key is None else read_webhook_hosts(settings)
        endpoints: list[Endpoint] = [
            ImagesEndpoint(
                authenticator,
                offer,
                lifecycle,
                admissions,
                Replay(wallet, back.ledger),
                generations,
                Sandbox(wallet, places, uploader, settings.deadline_s),
                replies,
                DryRuns(authenticator, wallet, offer, lifecycle, admissions, reads, limits, webhook_hosts),
                limits,
                standing,
                webhook_hosts,
            ),
            CancelsEndpoint(authenticator, wallet, standing, Cancellations(long_orders, wallet, resuming), reads),
            ModelsEndpoint(authenticator, wallet, offer, lifecycle, rates, prices, reads),
            CreditsEndpoint(authenticator, wallet, reads),
            TransactionsEndpoint(authenticator, wallet, back.ledger, reads),
            HistoryEndpoint(authenticator, wallet, back.ledger, standing, reads),
            UsageEndpoint(authenticator, wallet, back.ledger, reads, reports),
            StatementsEndpoint(authenticator, wallet, back.ledger, reads, reports),
        ]
        if (tokens := _tokens(settings, outbound)) is not None:
            endpoints += [_admin(settings, back, tokens, public_url), _finance(settings, back, tokens)]
        if opened_store.folder is not None:
            endpoints.append(FilesEndpoint(opened_store.folder))
        app = build_app(endpoints, origins, conditions.not_ready, lifespan, files.versions, tracer)
        yield Gateway(
            app,
            build_full_app(conditions.not_ready),
            Crowd(gate),
            max(files.longest_deadline_s, deadlines.stay_s),
            conditions.not_ready,
            files.versions,
            background,
        )


def _conditions(
    stopping: asyncio.Event,
    background: Background,
    journal: Journal,
    login: Login,
    pressure: Pressure,
    watch: StoreWatch,
    prices: PriceTable,
) -> Conditions:
    """Build the conditions that must hold before any order is accepted, from any client."""
    return Conditions(
        [
            Condition("stopping", when(stopping.is_set, STOPPING)),
            *running(background),
            Condition("journal failed", when(lambda: journal.failed, DISK_FAILS)),
            Condition(LOGIN_REFUSED, when(lambda: login.refused, wallet_away().message)),
            Condition("Redis full", when(lambda: pressure.reason is not None, MEMORY_FULL), for_ready=False),
            Condition("store", lambda: watch.reason),
            Condition("prices not read", when(lambda: prices.behind, BACKLOG)),
        ]
    )


def _tokens(settings: Settings, outbound: Outbound) -> Tokens | None:
    """Build the check of tokens; None if no setting says how to verify one, because then nobody may have one."""
    if settings.jwt_secret is not None:
        keys: Secret | Jwks = Secret(settings.jwt_secret.get_secret_value())
    elif settings.jwks_url is not None:
        keys = Jwks(outbound.client, settings.jwks_url)
    else:
        return None
    return Tokens(keys, Issuer(settings.jwt_audience, settings.jwt_issuer))


def _admin(settings: Settings, back: Backends, tokens: Tokens, public_url: str) -> AdminEndpoint:
    limits = RequestLimits(MAX_BODY_BYTES, BODY_TIMEOUT_S, settings.deadline_s)
    orders = Orders(back.ledger, back.redis)
    return AdminEndpoint(tokens, back.ledger, back.wallet(), orders, back.accounts_of, limits, public_url)


def _finance(settings: Settings, back: Backends, tokens: Tokens) -> FinanceEndpoint:
    """Build the finance API. Raises SettingsError if the key that seals months is none."""
    try:
        key = read_key(settings.month_signing_key.get_secret_value()) if settings.month_signing_key else None
    except ValueError as error:
        raise SettingsError(f"GHUB_MONTH_SIGNING_KEY: {error}") from None

    def deeds_of(actor: str, once: IdempotentWrite | None) -> Deeds:
        return Deeds(actor, back.accounts_of(actor, once, apart=True), back.ledger, back.redis, key)

    limits = RequestLimits(MAX_BODY_BYTES, BODY_TIMEOUT_S, settings.deadline_s)
    return FinanceEndpoint(tokens, back.ledger, back.redis, deeds_of, limits)


def _count_offered(catalogue: Catalogue) -> None:
    count_from_zero((model.provider, model_id) for model_id, model in catalogue.models.items())


def _providers(settings: Settings, outbound: Outbound) -> dict[str, Provider]:
    """Build the upstreams whose keys are set. Raises SettingsError."""
    made = {one.NAME: one.from_settings(settings, outbound) for one in PROVIDERS}
    return {name: provider for name, provider in made.items() if provider is not None}


def _announced(settings: Settings, outbound: Outbound, offer: Offer) -> list[Part]:
    """Follow the ends that OpenAI announces, if its key is set."""
    if settings.openai_key is None:
        return []
    ends = AnnouncedEnds(outbound.client, settings.openai_url, settings.openai_key.get_secret_value(), offer)
    return [Part("announced ends", ends.run, needed=False)]


def _top_up(settings: Settings) -> Text:
    """Return the text that says how a customer gets more balance."""
    if settings.topup_url is not None:
        return TOP_UP_AT.of(url=settings.topup_url)
    if settings.topup_command is not None:
        return TOP_UP_WITH.of(command=settings.topup_command)
    return TOP_UP


async def _seed_rates(ledger: Ledger, settings: Settings) -> None:
    """Fill an empty rate table."""
    await seed(ledger, [FxRate(row.month, row.mxn_per_usd, row.source) for row in read_seed_rates(settings.fx)])
