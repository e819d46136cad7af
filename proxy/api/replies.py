"""A result as its 200: with our own URLs, or with the images themselves, straight from the store."""

from collections.abc import AsyncIterator, Mapping
from uuid import uuid4

from starlette.responses import Response, StreamingResponse

from proxy.api.sending import Sending
from proxy.media.inline import base64_length, base64_of
from proxy.messages import REPLAYS_AT_ONCE
from proxy.orders.order import result_reply
from proxy.orders.result import Result
from proxy.orders.upload import read_until
from proxy.ports import ImageStore

MAX_REPLAYS = 64
"""Replays in base64 that one organisation is being sent at a time. Nothing is paid for them, and each that its client
does not read holds a file and some 100 KiB until it is cut off."""


class Replies:
    """`public_url` is what stands before an image's path for everybody."""

    def __init__(self, store: ImageStore, public_url: str) -> None:
        self._store = store
        self._public_url = public_url
        self._replays = Sending(MAX_REPLAYS, REPLAYS_AT_ONCE)

    def with_urls(self, result: Result, headers: Mapping[str, str]) -> Response:
        """Each image by its address, which never changes."""
        return Response(result_reply(result, self.items(result)), media_type="application/json", headers=dict(headers))

    def items(self, result: Result) -> list[dict[str, str]]:
        """`url`, and `revised_prompt` where there is one, of each image."""
        return [
            {"url": f"{self._public_url}/{image.path}"} | _prompt(prompt)
            for image, prompt in zip(result.images, result.prompts, strict=True)
        ]

    def replay_with_images(self, org_id: str, result: Result, headers: Mapping[str, str], until_s: float) -> Response:
        """The same as `with_images` for an order that was answered before. Raises ApiError 429 above MAX_REPLAYS."""
        return self._replays.bounded(org_id, self.with_images(result, headers, until_s))

    def with_images(self, result: Result, headers: Mapping[str, str], until_s: float) -> Response:
        """The images in base64: the JSON around them is cut where each of them goes.

        A store that breaks off is asked again until `until_s` of `time.monotonic`.
        """
        marks = [uuid4().hex for _ in result.images]
        items = [{"b64_json": mark} | _prompt(prompt) for mark, prompt in zip(marks, result.prompts, strict=True)]
        rest = result_reply(result, items)
        parts = []
        for mark in marks:
            part, _, rest = rest.partition(mark.encode())
            parts.append(part)
        length = sum(map(len, parts)) + len(rest) + sum(base64_length(image.size_bytes) for image in result.images)

        async def body() -> AsyncIterator[bytes]:
            for part, image in zip(parts, result.images, strict=True):
                yield part
                async for text in base64_of(read_until(self._store, image.path, until_s)):
                    yield text
            yield rest

        return StreamingResponse(
            body(), media_type="application/json", headers={**headers, "content-length": str(length)}
        )


def _prompt(text: str | None) -> dict[str, str]:
    return {} if text is None else {"revised_prompt": text}
