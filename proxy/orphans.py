"""Jobs that outlived their gateway: called off upstream, and their orders ended as voids, by any gateway that lives."""

import asyncio
from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter

import structlog
from redis.exceptions import RedisError

from metering.wallet.connection import WalletAway
from metering.wallet.jobs import Jobs, UpstreamJob
from metering.wallet.wallet import Close, Wallet
from proxy.ports import CallsOff

log = structlog.get_logger(__name__)

LOOK_EVERY = 5
"""Beats between two looks for orphans."""


class Orphans:
    """Says that this gateway is alive, and looks after those that are not."""

    def __init__(self, jobs: Jobs, wallet: Wallet, providers: Mapping[str, CallsOff]) -> None:
        self._jobs = jobs
        self._wallet = wallet
        self._providers = providers

    async def run(self, every_s: float) -> None:
        """Until cancelled."""
        beats = 0
        while True:
            try:
                await self._jobs.beat()
                if beats % LOOK_EVERY == 0:
                    await self.look()
            except (RedisError, WalletAway, OSError, TimeoutError) as error:
                log.warning("orphans_wait", error=type(error).__name__)
            beats += 1
            await asyncio.sleep(every_s)

    async def look(self) -> None:
        """Call off what dead owners left behind."""
        by_order = attrgetter("org_id", "request_id")
        for _, jobs in groupby(sorted(await self._jobs.orphans(), key=by_order), key=by_order):
            await self._end(list(jobs))

    async def _end(self, jobs: list[UpstreamJob]) -> None:
        first = jobs[0]
        if not await self._jobs.claim(first):
            return
        for job in jobs:
            if provider := self._providers.get(job.provider):
                await provider.call_off(job.handle)
        closing = await self._wallet.void(first.org_id, first.request_id, "owner_died")
        if closing.close is Close.UNKNOWN:
            await self._jobs.forget(first)
        log.warning("orphan_ended", request_id=first.request_id, org=first.org_id, jobs=len(jobs))
