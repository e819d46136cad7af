"""Ends of models that OpenAI has announced: its own list of models says until when it serves each of them."""

import asyncio
import random
from collections.abc import Mapping
from datetime import date
from typing import NoReturn

import httpx2
import orjson
import structlog
from prometheus_client import Gauge

from config.settings import ANNOUNCED_BYTES, ANNOUNCED_FIRST_S, ANNOUNCED_POLL_S, ANNOUNCED_TIMEOUT_S
from proxy.offer import Offer

log = structlog.get_logger(__name__)

ANNOUNCED = Gauge(
    "ghub_model_end_announced", "1 for a model whose provider announces another last day than the catalogue", ["model"]
)


class NoList(Exception):
    """What was answered is no list of models."""


class AnnouncedEnds:
    """Compares what OpenAI announces with the models on offer. It only tells: a person changes the catalogue."""

    def __init__(self, client: httpx2.AsyncClient, url: str, key: str, offer: Offer) -> None:
        self._client = client
        self._url = f"{url}/models"
        self._headers = {"authorization": f"Bearer {key}", "accept-encoding": "identity"}
        self._offer = offer

    async def run(self) -> NoReturn:
        """Look once a day until cancelled. The first look comes later, at another moment in each process."""
        await asyncio.sleep(random.uniform(0, ANNOUNCED_FIRST_S))  # noqa: S311  # jitter, no secret
        while True:
            try:
                await self.look()
            except (httpx2.HTTPError, TimeoutError, NoList) as error:
                log.warning("announced_ends_not_read", error=type(error).__name__, why=str(error))
            await asyncio.sleep(ANNOUNCED_POLL_S)

    async def look(self) -> None:
        """Ask once, and tell what differs. Raises NoList, TimeoutError, httpx2.HTTPError; then what was told holds."""
        async with asyncio.timeout(ANNOUNCED_TIMEOUT_S):
            announced = ends_of(await self._read())
        ANNOUNCED.clear()
        for name, model in self._offer.catalogue.models.items():
            # Another address is not OpenAI's, and what another model serves ends with that one.
            own = model.provider == "openai" and model.url is None and model.served_by is None
            ends = announced.get(model.upstream) if own else None
            if ends is not None and ends != model.shutdown_date:
                log.warning("model_end_announced", model=name, announced=str(ends), known=str(model.shutdown_date))
                ANNOUNCED.labels(name).set(1)

    async def _read(self) -> bytes:
        read = b""
        async with self._client.stream("GET", self._url, headers=self._headers) as reply:
            if reply.status_code != 200:
                raise NoList(f"status {reply.status_code}")
            async for piece in reply.aiter_raw():
                read += piece
                if len(read) > ANNOUNCED_BYTES:
                    raise NoList("it is too large")
        return read


def ends_of(document: bytes) -> Mapping[str, date]:
    """Read the last days of a list of models, by the provider's names; most have none. Raises NoList."""
    try:
        rows = orjson.loads(document)["data"]
        return {row["id"]: date.fromisoformat(row["shutdown_date"]) for row in rows if row.get("shutdown_date")}
    except (AttributeError, KeyError, TypeError, ValueError):
        raise NoList("it is not what its documentation says") from None
