"""The floor: what a good engineer would write in an afternoon, with nothing of ours in it.

A bare ASGI application over plain aiohttp and redis-py: two Redis scripts, POST to the provider, the image streamed
from its URL, or decoded out of the reply's base64, into the store, a URL back. No keys, no limits, no checks, no
deadlines, no logs, no events. TLS is trusted as `SSL_CERT_FILE` says.
`python -m bench.floor hypercorn|granian PORT REDIS_URL SIMULATOR_URL STORE_URL STORE_KEY`
"""

import base64
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from uuid import uuid4

import aiohttp
import uvloop
from redis.asyncio import Redis

ONE_SCRIPT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"
CHUNK_BYTES = 64 * 1024

Scope = dict[str, Any]
Message = dict[str, Any]


class Floor:
    """The application. Its clients are made with its first request: each server has a loop of its own."""

    def __init__(self, redis_url: str, simulator: str, store_url: str, store_key: str) -> None:
        self._redis_url = redis_url
        self._simulator = simulator
        self._store_url = store_url
        self._store_headers = {"apikey": store_key, "authorization": f"Bearer {store_key}"}
        self._http: aiohttp.ClientSession | None = None

    def _begin(self) -> aiohttp.ClientSession:
        self._http = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        redis = Redis.from_url(self._redis_url, max_connections=256, protocol=3)
        self._hold = redis.register_script(ONE_SCRIPT)
        return self._http

    async def __call__(
        self, scope: Scope, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message["body"]
            more = message.get("more_body", False)
        document = json.dumps({"data": [{"url": await self._job(json.loads(body))}]}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(document)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": document})

    async def _job(self, order: dict[str, Any]) -> str:
        http = self._http or self._begin()
        await self._hold(keys=["balance"], args=[-840_000])
        url = f"{self._store_url}/{uuid4()}"
        if order["model"].startswith("openai/"):
            asked = {"model": "gpt-image-1", "prompt": order["prompt"], "n": 1, "size": "1024x1024"}
            async with http.post(
                f"{self._simulator}/openai/v1/images/generations",
                json=asked,
                headers={"authorization": "Bearer simulated"},
            ) as made:
                image = base64.b64decode((await made.json())["data"][0]["b64_json"])
            await self._put(http, url, image, "image/png")
        else:
            async with http.post(
                f"{self._simulator}/fal/run/fal-ai/flux-pro/v1.1",
                json={"prompt": order["prompt"], "image_size": "square_hd"},
                headers={"authorization": "Key simulated"},
            ) as made:
                source = (await made.json())["images"][0]["url"]
            async with http.get(source) as image_reply:
                length = image_reply.headers["content-length"]
                await self._put(http, url, image_reply.content.iter_any(), "image/jpeg", length)
        await self._hold(keys=["charged"], args=[840_000])
        return url

    async def _put(
        self,
        http: aiohttp.ClientSession,
        url: str,
        image: bytes | AsyncIterator[bytes],
        content_type: str,
        length: str | None = None,
    ) -> None:
        headers = {**self._store_headers, "content-type": content_type}
        if length is not None:
            headers["content-length"] = length
        async with http.post(url, data=image, headers=headers) as stored:
            assert stored.status == 200, await stored.text()


def app() -> Floor:
    """From the command line."""
    return Floor(*sys.argv[3:7])


def main() -> None:
    """Serve until SIGTERM, with uvloop, as either server is run."""
    server, port = sys.argv[1], int(sys.argv[2])
    if server == "granian":
        from granian.constants import Interfaces  # noqa: PLC0415  # the one that is asked for
        from granian.server.embed import Server  # noqa: PLC0415

        served = Server(app(), address="127.0.0.1", port=port, interface=Interfaces.ASGINL, log_enabled=False)
        uvloop.run(served.serve())
    else:
        from hypercorn.asyncio import serve  # noqa: PLC0415
        from hypercorn.config import Config  # noqa: PLC0415

        config = Config()
        config.loglevel = "WARNING"
        config.bind = [f"127.0.0.1:{port}"]
        uvloop.run(serve(app(), config))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
