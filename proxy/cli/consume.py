"""`ghub consume`: the billing consumer, one process, until SIGTERM."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import structlog
from redis.exceptions import RedisError

from config.settings import CLOSED_S, CONSUMER_METRICS_PORT, PROJECTION_POLL_S, SINK_LAG_S
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
from proxy.api.health import Condition, Conditions, running, when
from proxy.backends import LOGIN_REFUSED, open_back
from proxy.cli.loading import loading
from proxy.cli.output import LogsAreJson
from proxy.cli.process import begin, bind_metrics, serve_probes
from proxy.cli.running import run
from proxy.cli.tracing import open_tracer
from proxy.server.serving import stop_on_signals

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
            asyncio.TaskGroup() as tasks,
        ):
            await back.ledger.check_schema()
            await back.ledger.register_sinks({sink.name: sink.profile for sink in sinks}, utc_now())
            name = f"{socket.gethostname()}-{os.getpid()}"
            consumer = Consumer(back.with_redis(), back.ledger, name, CLOSED_S, settings.keep_h * 3600, tracer)
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
