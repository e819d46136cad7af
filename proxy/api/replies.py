"""The 200 of a result: with our own URLs, or with the images themselves, directly from the store."""

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
"""Maximum base64 replays that one organisation is being sent at a time.

They are free, and one that its client does not read holds a file and some 100 KiB until it is cut off.
"""


class Replies:
    """Builds replies. `public_url` comes before an image's path."""

    def __init__(self, store: ImageStore, public_url: str) -> None:
        self._store = store
        self._public_url = public_url
        self._replays = Sending(MAX_REPLAYS, REPLAYS_AT_ONCE)

    def with_urls(self, result: Result, headers: Mapping[str, str]) -> Response:
        """Build a reply with each image's URL, which never changes."""
        return Response(result_reply(result, self.items(result)), media_type="application/json", headers=dict(headers))

    def items(self, result: Result) -> list[dict[str, str]]:
        """List `url`, and `revised_prompt` if there is one, of each image."""
        return [
            {"url": f"{self._public_url}/{image.path}"} | _prompt(prompt)
            for image, prompt in zip(result.images, result.prompts, strict=True)
        ]

    def replay_with_images(self, org_id: str, result: Result, headers: Mapping[str, str], until_s: float) -> Response:
        """Do as `with_images` for an order that was answered before. Raises ApiError 429 above MAX_REPLAYS."""
        return self._replays.bounded(org_id, self.with_images(result, headers, until_s))

    def with_images(self, result: Result, headers: Mapping[str, str], until_s: float) -> Response:
        """Build a reply with the images in base64: the JSON is cut at the place of each image.

        If the store breaks off, it is read again until `until_s` of `time.monotonic`.
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
