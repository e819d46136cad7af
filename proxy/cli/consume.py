"""`ghub consume`: the billing consumer, one process, until SIGTERM."""

import asyncio
import os
import socket
from contextlib import suppress

import structlog
from redis.exceptions import RedisError

from config.settings import CLOSED_S, CONSUMER_METRICS_PORT, PROJECTION_POLL_S
from metering.background import Background, Part
from metering.consumer import Consumer
from proxy.api.health import Condition, Conditions, running, when
from proxy.backends import LOGIN_REFUSED, open_back
from proxy.cli.output import LogsAreJson
from proxy.cli.process import begin, bind_metrics, serve_probes
from proxy.cli.running import run
from proxy.server.serving import stop_on_signals

log = structlog.get_logger(__name__)


def consume(as_json: LogsAreJson = True) -> None:
    """The billing consumer: metering events into the ledger. SIGTERM lets the batch under way finish."""

    async def work() -> None:
        settings = begin()
        stop = stop_on_signals()
        probe = bind_metrics(settings, CONSUMER_METRICS_PORT)
        async with open_back(settings) as back, asyncio.TaskGroup() as tasks:
            await back.ledger.check_schema()
            name = f"{socket.gethostname()}-{os.getpid()}"
            consumer = Consumer(back.with_redis(), back.ledger, name, CLOSED_S, settings.keep_h * 3600)
            projector = back.projection()
            login = back.login()
            with suppress(RedisError, OSError, TimeoutError):  # away is no reason not to start
                await login.look()
            background = Background(
                [
                    Part("consumer", lambda: consumer.run(stop), ends=True),
                    Part("projection", lambda: projector.run(PROJECTION_POLL_S)),
                    Part("login", lambda: login.run(PROJECTION_POLL_S), needed=False),
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
