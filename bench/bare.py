"""The floor: a bare script that moves the same bytes with the same client and store. No checks, no errors, no logs.

Two trivial Redis scripts, POST to the provider, GET of the image, into the folder, a URL back.
"""

import asyncio
import sys
from pathlib import Path
from uuid import uuid4

import orjson
import uvloop
from redis.asyncio import Redis
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from proxy.outbound.clients import Outbound
from proxy.outbound.hosts import ImageHosts
from proxy.server.serving import bind, serve_http, stop_on_signals
from proxy.storage.local import LocalStore

ONE_SCRIPT = "return redis.call('INCRBY', KEYS[1], ARGV[1])"


async def main(port: int, redis_url: str, simulator: str, folder: Path) -> None:
    """Serve until SIGTERM."""
    stop = stop_on_signals()
    redis = Redis.from_url(redis_url, max_connections=256, protocol=3)
    outbound = Outbound(ImageHosts(simulator))
    store = LocalStore(folder)
    hold = redis.register_script(ONE_SCRIPT)

    async def create(request: Request) -> Response:
        order = orjson.loads(await request.body())
        await hold(keys=["balance"], args=[-840_000])
        made = await outbound.client.post(
            f"http://{simulator}/fal/run/fal-ai/flux-pro/v1.1",
            headers={"authorization": "Key simulated"},
            json={"prompt": order["prompt"], "image_size": "square_hd"},
        )
        path = f"{uuid4()}.jpg"
        async with outbound.fetch_image(made.json()["images"][0]["url"]) as image:
            await store.put(path, image.chunks, "image/jpeg")
        await hold(keys=["charged"], args=[840_000])
        return Response(orjson.dumps({"data": [{"url": path}]}), media_type="application/json")

    app = Starlette(routes=[Route("/v1/images/generations", create, methods=["POST"])])
    await serve_http(app, bind("PORT", "127.0.0.1", port), stop, 5.0, most=1024)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4])))
