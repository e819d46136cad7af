"""Last days that OpenAI announces, read from a list over real HTTP; what is no list changes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from config.catalogue import read_catalogue
from proxy import announced
from proxy.announced import AnnouncedEnds, NoList, ends_of
from proxy.offer import Offer
from proxy.outbound.clients import Outbound
from proxy.outbound.hosts import ImageHosts

GPT = "openai/gpt-image-2"


class Prices:
    """A ledger's list that has a price of everything."""

    def has(self, model: str, variants: object) -> bool:
        return True


@dataclass
class Api:
    """An HTTP server that answers each request with `status` and `body`, and then, if `hangs`, nothing more."""

    status: str = "200 OK"
    body: bytes = b"{}"
    hangs: bool = False
    heads: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        more = 1 if self.hangs else 0
        head = f"HTTP/1.1 {self.status}\r\ncontent-length: {len(self.body) + more}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + self.body)
        await writer.drain()
        if self.hangs:
            await reader.read()
        writer.close()

    def lists(self, **ends: str | None) -> None:
        """Answer with a list of models, each with its last day."""
        rows = [{"id": name.replace("_", "-"), "object": "model", "shutdown_date": day} for name, day in ends.items()]
        self.body = json.dumps({"object": "list", "data": [*rows, {"id": "gpt-6", "object": "model"}]}).encode()


@asynccontextmanager
async def following() -> AsyncIterator[tuple[Api, AnnouncedEnds]]:
    """The models that ship, and an API of OpenAI to be scripted."""
    api = Api()
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    outbound = Outbound(ImageHosts(""))
    offer = Offer(read_catalogue(None), {"openai", "fal"}, Prices())  # type: ignore[arg-type]  # only `has` is asked
    try:
        yield api, AnnouncedEnds(outbound.client, url, "sk-secret", offer)
    finally:
        await outbound.aclose()
        server.close()


def told(model: str) -> float | None:
    return REGISTRY.get_sample_value("ghub_model_end_announced", {"model": model})


async def test_a_day_that_the_catalogue_does_not_have_is_told() -> None:
    """Until the provider takes it back, or the catalogue has it; a day that both have is nothing new."""
    async with following() as (api, ends):
        api.lists(gpt_image_2="2027-04-21", gpt_image_1="2026-10-23", dall_e_3=None)
        with capture_logs() as said:
            await ends.look()
        assert [line for line in said if line["event"] == "model_end_announced"] == [
            {
                "event": "model_end_announced",
                "log_level": "warning",
                "model": GPT,
                "announced": "2027-04-21",
                "known": "None",
            }
        ]
        assert (told(GPT), told("openai/gpt-image-1")) == (1, None)
        assert (
            api.heads[0].startswith("GET /v1/models HTTP/1.1\r\n") and "authorization: Bearer sk-secret" in api.heads[0]
        )
        api.lists(gpt_image_2=None)
        await ends.look()
        assert told(GPT) is None


@pytest.mark.parametrize(
    "api",
    [
        Api(status="401 Unauthorized", body=b'{"error": {}}'),
        Api(status="302 Found"),
        Api(body=b"<html>"),
        Api(body=b"[1]"),
        Api(body=b'{"data": [1]}'),
        Api(body=b'{"data": [{"id": "x", "shutdown_date": "soon"}]}'),
        Api(body=b'{"data": [{"id": "x", "shutdown_date": 5}]}'),
        Api(body=b" " * 1_100_000),
        Api(hangs=True),
    ],
    ids=lambda api: f"{api.status} {api.body[:50]!r} {api.hangs}",
)
async def test_what_is_no_list_changes_nothing(monkeypatch: pytest.MonkeyPatch, api: Api) -> None:
    """Whether it is refused, wrong, too large or never ends: one line says so, and what was told before holds."""
    monkeypatch.setattr(announced, "ANNOUNCED_TIMEOUT_S", 0.3)
    async with following() as (good, ends):
        good.lists(gpt_image_2="2027-04-21")
        await ends.look()
        good.status, good.body, good.hangs = api.status, api.body, api.hangs
        with pytest.raises((NoList, TimeoutError)):
            await ends.look()
        assert told(GPT) == 1


async def test_it_goes_on_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """With one line, which has no key in it."""
    monkeypatch.setattr(announced, "ANNOUNCED_FIRST_S", 0.0)
    monkeypatch.setattr(announced, "ANNOUNCED_POLL_S", 0.01)
    async with following() as (api, ends):
        api.status = "500 Internal Server Error"
        with capture_logs() as said:
            following_them = asyncio.create_task(ends.run())
            async with asyncio.timeout(20):
                while len(api.heads) < 3:
                    await asyncio.sleep(0.01)
            following_them.cancel()
        failures = [line for line in said if line["event"] == "announced_ends_not_read"]
        assert failures and failures[0]["why"] == "status 500" and "sk-secret" not in repr(said)


def test_most_models_have_no_last_day() -> None:
    """Null, or no such field."""
    assert ends_of(b'{"data": [{"id": "a"}, {"id": "b", "shutdown_date": null}]}') == {}
