"""`ghub consume`: the billing consumer, one process, until SIGTERM."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import structlog
from redis.exceptions import RedisError

from config.settings import (
    CLOSED_S,
    CONSUMER_METRICS_PORT,
    PROJECTION_POLL_S,
    SINK_LAG_S,
    WEBHOOK_LAG_S,
    WEBHOOK_LOOK_S,
    Settings,
)
from metering.background import Background, Part, every
from metering.clock import utc_now
from metering.consumer import Consumer
from metering.journal.orphaned import OrphanWatch
from metering.ports import Ledger, LedgerAway
from metering.sinks.delivery import Delivery
from metering.sinks.file import read_sinks
from metering.sinks.lag import Lag
from metering.sinks.sink import Sender, Sink
from metering.wallet.waiting import EventsWaiting
from metering.webhooks.delivery import WebhookDelivering
from metering.webhooks.lag import WebhookLagWatch
from metering.webhooks.lookout import Lookout
from proxy.api.health import Condition, Conditions, running, when
from proxy.backends import LOGIN_REFUSED, Backends, open_back
from proxy.cli.loading import loading
from proxy.cli.output import LogsAreJson
from proxy.cli.process import begin, bind_metrics, serve_probes
from proxy.cli.running import run
from proxy.cli.tracing import open_tracer
from proxy.server.serving import stop_on_signals
from proxy.webhooks.explaining import explain
from proxy.webhooks.settings import read_secrets_key, read_webhook_hosts

if TYPE_CHECKING:
    from proxy.sinks.webhooks import WebhookPosts

log = structlog.get_logger(__name__)


def consume(as_json: LogsAreJson = True) -> None:
    """The billing consumer: metering events into the ledger. SIGTERM lets the batch under way finish."""

    async def work() -> None:
        settings = begin()
        stop = stop_on_signals()
        probe = bind_metrics(settings, CONSUMER_METRICS_PORT)
        sinks = read_sinks(settings.sinks)
        async with (
            open_tracer(settings, os.environ, "ghub-consumer") as tracer,
            open_back(settings) as back,
            _open_senders(sinks) as senders,
            _open_posts(settings) as posts,
            asyncio.TaskGroup() as tasks,
        ):
            await back.ledger.check_schema()
            await back.ledger.register_sinks({sink.name: sink.profile for sink in sinks}, utc_now())
            name = f"{socket.gethostname()}-{os.getpid()}"
            keep_s = settings.keep_h * 3600
            consumer = Consumer(back.with_redis(), back.ledger, name, CLOSED_S, keep_s, tracer, explain)
            projector = back.projection()
            login = back.login()
            waiting = EventsWaiting(back.with_redis())
            with suppress(RedisError, OSError, TimeoutError):  # away is no reason not to start
                await login.look()
            background = Background(
                [
                    Part("consumer", lambda: consumer.run(stop), ends=True),
                    Part("projection", lambda: projector.run(PROJECTION_POLL_S)),
                    Part("login", lambda: login.run(PROJECTION_POLL_S), needed=False),
                    Part("orphaned journals", OrphanWatch(back.ledger, back.presence()).run, needed=False),
                    Part("events waiting", waiting.run, needed=False),
                    *_deliveries(senders, back.ledger),
                    *_webhooks(back, posts),
                ],
                give_up=stop.set,
            )
            conditions = Conditions(
                [
                    Condition("stopping", when(stop.is_set, "stopping")),
                    *running(background),
                    Condition(LOGIN_REFUSED, when(lambda: login.refused, "refused")),
                    Condition("Redis or the ledger is away", when(lambda: not consumer.alive, "away")),
                ]
            )
            if probe is not None:
                tasks.create_task(serve_probes(conditions.not_ready, probe, stop))
            log.info("consuming")
            background.begin()
            await background.until_done("consumer")
            await background.end()
        log.info("stopped")
        background.check()

    run(work())


@asynccontextmanager
async def _open_senders(sinks: Sequence[Sink]) -> AsyncIterator[list[tuple[Sink, Sender]]]:
    """Open the senders of all sinks. Raises CatalogueError."""
    if not sinks:
        yield []
        return
    with loading():
        from proxy.sinks.opening import open_senders  # noqa: PLC0415  # the loader of HTTP, which only sinks need

    async with open_senders(sinks, os.environ) as senders:
        yield senders


@asynccontextmanager
async def _open_posts(settings: Settings) -> AsyncIterator["WebhookPosts | None"]:
    """Open what webhooks are sent with; None without GHUB_SECRETS_KEY, for then there is none. Raises SettingsError."""
    if settings.secrets_key is None:
        yield None
        return
    with loading():
        from proxy.sinks.webhooks import WebhookPosts  # noqa: PLC0415  # the loader of HTTP, as above

    posts = WebhookPosts(read_webhook_hosts(settings))
    try:
        yield posts
    finally:
        await posts.aclose()


def _webhooks(back: Backends, posts: "WebhookPosts | None") -> list[Part]:
    """Build the tasks of webhooks. None of them is needed, as with sinks."""
    away, key = (LedgerAway,), read_secrets_key(back.settings)
    lag = WebhookLagWatch(back.ledger, delivers=posts is not None)
    soon = Lookout(back.ledger, back.shutdowns)
    parts = [
        Part("webhook lag", lambda: every(WEBHOOK_LAG_S, lag.look, away=away, name="webhook_lag_waits"), needed=False),
        Part("lookout", lambda: every(WEBHOOK_LOOK_S, soon.look, away=away, name="lookout_waits"), needed=False),
    ]
    if posts is not None and key is not None:
        parts.append(Part("webhooks", WebhookDelivering(back.ledger, posts, key).run, needed=False))
    return parts


def _deliveries(senders: Sequence[tuple[Sink, Sender]], ledger: Ledger) -> list[Part]:
    """Build the tasks of all sinks. None of them is needed: a sink touches neither the consumer nor another sink."""
    turn = asyncio.Semaphore()
    lag = Lag(ledger, frozenset(sink.name for sink, _ in senders))
    return [
        *(
            Part(f"sink {sink.name}", Delivery(sink, sender, ledger, turn).run, needed=False)
            for sink, sender in senders
        ),
        Part("sink lag", lambda: every(SINK_LAG_S, lag.look, away=(LedgerAway,), name="sink_lag_waits"), needed=False),
    ]
