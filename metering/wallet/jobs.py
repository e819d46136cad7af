"""Upstream jobs of open holds, durable outside the process that owns them (rule 21).

Every gateway says that it is alive; a job whose owner has not said so for a while is called off by another gateway.
"""

from dataclasses import asdict, dataclass
from uuid import UUID, uuid4

import orjson
import structlog
from redis.asyncio import Redis

from metering.wallet import keys
from metering.wallet.script import load_script

log = structlog.get_logger(__name__)

ALIVE_S = 10
"""A gateway that has not said so for this long counts as dead: ten missed beats, no hiccup of Redis or of its host."""

CLAIM_S = 30
"""Who calls a job off has this long for it; then another may try."""


@dataclass(frozen=True, slots=True)
class UpstreamJob:
    """One job that a provider runs for an order. `handle` is the provider's own: what it takes to call it off."""

    request_id: str
    org_id: str
    owner: str
    provider: str
    handle: str


class UpstreamJobs:
    """The jobs of all gateways. `redis` is the background connection; every method may raise RedisError."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._note = load_script(redis, "note_v1")
        self.owner = uuid4().hex
        self._missed: set[str] = set()

    async def beat(self) -> None:
        """Say that this process is alive."""
        await self._redis.set(keys.alive(self.owner), b"1", ex=ALIVE_S)

    async def note(self, org_id: str, request_id: str, provider: str, handle: str) -> None:
        """Keep a job with its hold."""
        await self.beat()  # a Redis that has just lost its data knows of no beat, and the next one is a second away
        names = keys.OrgKeys(org_id)
        job = UpstreamJob(request_id, org_id, self.owner, provider, handle)
        await self._note(
            keys={"mark": names.mark, "hold": names.hold(request_id), "jobs": names.jobs},
            request=request_id,
            record=orjson.dumps(asdict(job)),
        )

    async def orphans(self) -> list[UpstreamJob]:
        """Jobs whose owner is dead: without a sign of life at this look and at the last one.

        A Redis that was away for long has lost every sign; so the first look after it condemns nobody.
        """
        async with self._redis.pipeline(transaction=False) as pipe:
            for partition in range(keys.PARTITIONS):
                pipe.hvals(keys.jobs(partition))
            pages = await pipe.execute(raise_on_error=False)
        seen = [page for page in pages if isinstance(page, list)]
        read = [_read(line) for page in seen for lines in page for line in lines.splitlines()]
        jobs = [job for job in read if job is not None]
        owners = sorted({job.owner for job in jobs})
        async with self._redis.pipeline(transaction=False) as pipe:
            for owner in owners:
                pipe.exists(keys.alive(owner))
            alive = await pipe.execute(raise_on_error=False)
        # Where a server of the cluster is away, its jobs are not seen, and nobody whose sign it keeps is dead.
        missed = {owner for owner, is_alive in zip(owners, alive, strict=True) if is_alive == 0}
        dead, self._missed = missed & self._missed, missed
        return [job for job in jobs if job.owner in dead]

    async def claim(self, job: UpstreamJob) -> bool:
        """Take a dead owner's order on; False where another has it."""
        name = keys.OrgKeys(job.org_id).claim(job.request_id)
        return bool(await self._redis.set(name, self.owner, nx=True, ex=CLAIM_S))

    async def forget(self, job: UpstreamJob) -> None:
        """The order has ended otherwise."""
        await self._redis.hdel(keys.OrgKeys(job.org_id).jobs, job.request_id)


def _read(line: bytes) -> UpstreamJob | None:
    """A record; None, and a word in the log, for one that somebody damaged."""
    try:
        fields = orjson.loads(line)
        job = UpstreamJob(**fields)
        UUID(job.org_id)
        if all(isinstance(value, str) for value in fields.values()):
            return job
    except (ValueError, TypeError, AttributeError):
        pass
    log.error("job_unreadable", record_bytes=len(line))
    return None
