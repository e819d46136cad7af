"""Upstream jobs of open holds, durable outside the process that owns them (rule 21).

Every gateway says that it is alive. If a gateway is silent for a while, another one cancels its jobs.
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
"""Silence after which a gateway counts as dead: ten missed beats, more than a short delay of Redis or of its host."""

CLAIM_S = 30
"""Time that a gateway has to cancel a job; then another may try."""


@dataclass(frozen=True, slots=True)
class UpstreamJob:
    """One job that a provider runs for an order. `handle` is the provider's own data for cancelling it."""

    order_id: str
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
        await self._redis.set(keys.alive(self.owner), b"1", ex=ALIVE_S)

    async def note(self, org_id: str, order_id: str, provider: str, handle: str) -> None:
        """Store a job with its hold."""
        await self.beat()  # a Redis that has just lost its data has no beat, and the next one is a second away
        names = keys.OrgKeys(org_id)
        job = UpstreamJob(order_id, org_id, self.owner, provider, handle)
        await self._note(
            keys={"mark": names.mark, "hold": names.hold(order_id), "jobs": names.jobs},
            request=order_id,
            record=_record(job),
        )

    async def orphans(self) -> list[UpstreamJob]:
        """Find jobs whose owner is dead: without a sign of life now and at the last check.

        A Redis that was away for long has lost every sign. So the first check after that declares nobody dead.
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
        # If a server of the cluster is away, its jobs are not seen, and no gateway with its sign there counts as dead.
        missed = {owner for owner, is_alive in zip(owners, alive, strict=True) if is_alive == 0}
        dead, self._missed = missed & self._missed, missed
        return [job for job in jobs if job.owner in dead]

    async def claim(self, job: UpstreamJob) -> bool:
        """Take over a dead owner's order; False if another gateway has it."""
        name = keys.OrgKeys(job.org_id).claim(job.order_id)
        return bool(await self._redis.set(name, self.owner, nx=True, ex=CLAIM_S))

    async def forget(self, job: UpstreamJob) -> None:
        """Forget a job whose order has ended in another way."""
        await self._redis.hdel(keys.OrgKeys(job.org_id).jobs, job.order_id)


def _record(job: UpstreamJob) -> bytes:
    fields = asdict(job)
    return orjson.dumps({"request_id": fields.pop("order_id"), **fields})


def _read(line: bytes) -> UpstreamJob | None:
    """Decode a record. A damaged one is logged and gives None."""
    try:
        fields = orjson.loads(line)
        job = UpstreamJob(order_id=fields.pop("request_id"), **fields)
        UUID(job.org_id)
        if all(isinstance(value, str) for value in (job.order_id, *fields.values())):
            return job
    except (ValueError, TypeError, AttributeError, KeyError):
        pass
    log.error("job_unreadable", record_bytes=len(line))
    return None
