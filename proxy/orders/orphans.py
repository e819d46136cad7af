"""Jobs that outlived their gateway: any living gateway cancels them upstream and voids their orders."""

from collections.abc import Mapping
from itertools import groupby
from operator import attrgetter

import orjson
import structlog
from redis.exceptions import RedisError

from metering.background import every
from metering.events import UNTOLD, Upstream
from metering.wallet.connection import WalletAway
from metering.wallet.jobs import UpstreamJob, UpstreamJobs
from metering.wallet.values import Close
from metering.wallet.wallet import Wallet
from proxy.ports import Cancels

log = structlog.get_logger(__name__)

LOOK_EVERY = 5
"""Beats between two searches for orphans."""


class Orphans:
    """Reports that this gateway lives, and cancels jobs of dead gateways."""

    def __init__(self, jobs: UpstreamJobs, wallet: Wallet, providers: Mapping[str, Cancels]) -> None:
        self._jobs = jobs
        self._wallet = wallet
        self._providers = providers
        self._beats = 0

    async def run(self, every_s: float) -> None:
        """Beat and search until cancelled."""
        away = (RedisError, WalletAway, OSError, TimeoutError)
        await every(every_s, self._beat, away=away, name="orphans_wait")

    async def _beat(self) -> None:
        self._beats += 1
        await self._jobs.beat()
        if self._beats % LOOK_EVERY == 1:
            await self.look()

    async def look(self) -> None:
        """Cancel jobs of dead owners."""
        by_order = attrgetter("org_id", "order_id")
        for _, jobs in groupby(sorted(await self._jobs.orphans(), key=by_order), key=by_order):
            await self._end(list(jobs))

    async def _end(self, jobs: list[UpstreamJob]) -> None:
        first = jobs[0]
        if not await self._jobs.claim(first):
            return
        ids = []
        for job in jobs:
            if provider := self._providers.get(job.provider):
                await provider.cancel_job(job.handle)
                ids += [name] if (name := provider.job_id(job.handle)) is not None else []
        upstream = Upstream(orjson.dumps(ids).decode()) if ids else UNTOLD
        closing = await self._wallet.void(first.org_id, first.order_id, "owner_died", upstream=upstream)
        if closing.close is Close.UNKNOWN:
            await self._jobs.forget(first)
        log.warning("orphan_ended", request_id=first.order_id, org=first.org_id, jobs=len(jobs))
