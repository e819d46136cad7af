"""`ghub smoke`: one order by a test key, as a customer places it."""

import asyncio
import base64
import binascii
import os
import time
from typing import Annotated, Any

import httpx2
import orjson
import typer

from config.settings import MAX_IMAGE_SIDE_PX
from metering.accounts import KEY, TEST_PREFIX
from proxy.cli.output import AsJson, fail, length_of_time, misuse, say
from proxy.cli.running import run
from proxy.media.formats import NotAnImage, sniff
from proxy.media.proof import Proof

PROMPT = "a lighthouse at dawn"

CALL_S = 120.0
"""The longest that one call may take: as long as the route before the gateways waits for them."""

PAUSE_S = 1.0
"""Between two looks at whether a gateway is ready: as often as a gateway projects a new key."""


AWAY = (httpx2.codes.BAD_GATEWAY, httpx2.codes.SERVICE_UNAVAILABLE, httpx2.codes.GATEWAY_TIMEOUT)
"""What a gateway says that is not ready, and what a route says that has none."""


class Refused(Exception):
    """A gateway did not do what it was asked; the message says what it did instead."""


class NotYet(Refused):
    """No gateway serves yet."""


def smoke(
    url: Annotated[
        str, typer.Option("--url", envvar="OPENAI_BASE_URL", help="The gateways' address, with /v1.")
    ] = "http://127.0.0.1:8080/v1",
    model: Annotated[str | None, typer.Option(help="The first that is offered without.")] = None,
    within: Annotated[str, typer.Option(help="How long to wait for a gateway that is ready: 30m, 1h.")] = "5m",
    as_json: AsJson = False,
) -> None:
    """Order one image by the test key in OPENAI_API_KEY, and check that it is whole. It costs nothing."""
    if not url.startswith(("http://", "https://")):
        misuse(f"--url: {url!r} must start with http:// or https://")
    wait_s = length_of_time("--within", within).total_seconds()
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key:
        fail("OPENAI_API_KEY is not set; `ghub key create ORG --name smoke --test` prints one")
    if not (KEY.fullmatch(key) and key.startswith(TEST_PREFIX)):
        fail("OPENAI_API_KEY: is no test key, and orders of any other are charged; create it with --test")

    async def work() -> dict[str, Any]:
        headers = {"authorization": f"Bearer {key}"}
        async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=CALL_S, trust_env=False) as client:
            offered = await _models(client, wait_s)
            if model is None and not offered:
                raise Refused("it offers no model: no upstream's key is set")
            began_s = time.monotonic()
            body = {"model": model or offered[0], "prompt": PROMPT, "response_format": "b64_json"}
            order = await _asked(client, "POST", "/images/generations", body)
            seconds = time.monotonic() - began_s
            return {
                "ok": True,
                "model": body["model"],
                "id": order["id"],
                **_picture(order["data"][0]["b64_json"]),
                "seconds": f"{seconds:.2f}",
            }

    try:
        done = run(work())
    except Refused as error:
        fail(f"{url}: {error}")
    except (NotAnImage, binascii.Error) as error:
        fail(f"{url}: its image is not whole: {error}")
    except (LookupError, TypeError):
        fail(f"{url}: that is no gateway's answer: does the address end with /v1?")
    say(done, as_json)


async def _models(client: httpx2.AsyncClient, wait_s: float) -> list[str]:
    """List the models that the key may order, as soon as a gateway is ready. Raises NotYet if none is in that time."""
    until_s = time.monotonic() + wait_s
    while True:
        try:
            listed = await _asked(client, "GET", "/models")
            return [one["id"] for one in listed["data"]]
        except NotYet:
            if time.monotonic() >= until_s:
                raise
        await asyncio.sleep(PAUSE_S)


async def _asked(client: httpx2.AsyncClient, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """Return a 200's JSON. Raises NotYet if nobody serves, and Refused for any other answer."""
    try:
        reply = await client.request(method, path, json=body)
    except httpx2.HTTPError as error:
        raise NotYet(f"no answer ({type(error).__name__})") from None
    try:
        told = orjson.loads(reply.content)
    except orjson.JSONDecodeError:
        told = None
    if reply.status_code == httpx2.codes.OK:
        return told
    wrong = told.get("error") if isinstance(told, dict) else None
    why = f"{wrong.get('code')}: {wrong.get('message')}" if isinstance(wrong, dict) else "not a gateway's answer"
    raise (NotYet if reply.status_code in AWAY else Refused)(f"{method} {path}: {reply.status_code} {why}")


def _picture(text: str) -> dict[str, Any]:
    """Describe an image in base64. Raises NotAnImage if it is not one whole image."""
    image = base64.b64decode(text, validate=True)
    kind = sniff(image)
    proof = Proof(kind, MAX_IMAGE_SIDE_PX)
    proof.feed(image)
    proof.finish()
    size = f"{proof.width_px}x{proof.height_px}"
    return {"image": kind.content_type, "size": size, "bytes": len(image)}
