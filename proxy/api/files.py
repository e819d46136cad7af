"""Published images of a local folder, if the gateway itself serves them. The path is Supabase's."""

import mimetypes
from collections.abc import Sequence
from pathlib import Path

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Message, Receive, Scope, Send

from proxy.api.cors import ANY_PAGE
from proxy.api.operation import TEXT, Operation, Tag
from proxy.media.formats import FORMATS

for kind in FORMATS:  # Python 3.11 does not know all of them by itself
    mimetypes.add_type(kind.content_type, f".{kind.extension}")

STORAGE_PATH = "/storage/v1/object/public/generated-images"

KEPT_FOR_EVER = "public, max-age=31536000, immutable"


class FilesEndpoint:
    """Images for any page. They never change, so clients may cache them. A missing folder is created."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = StaticFiles(directory=folder)

    def operations(self) -> Sequence[Operation]:
        return [
            Operation(
                id="get_image",
                tag=Tag.IMAGES,
                method="GET",
                path=STORAGE_PATH + "/{org}/{request}/{file}",
                handler=self.read,
                summary="An image",
                reply=None,
                security="none",
                media=tuple(kind.content_type for kind in FORMATS),
                answers={
                    206: {
                        "description": "the part that `Range` asks for",
                        "content": {kind.content_type: {} for kind in FORMATS} | {"multipart/byteranges": {}},
                    },
                    304: {"description": "unchanged: `If-None-Match` names its ETag"},
                    400: {"description": "a `Range` that is none", "content": TEXT},
                    416: {"description": "a `Range` that the image does not have", "content": TEXT},
                },
            )
        ]

    async def read(self, request: Request) -> Response:
        """Send one file. Raises HTTPException 404."""
        at = request.path_params
        path = f"{at['org']}/{at['request']}/{at['file']}"
        return _Kept(await self._files.get_response(path, request.scope))


class _Kept(Response):
    """A file's reply with a cache header, which is added while sending: only then is the answer to a `Range` known."""

    def __init__(self, reply: Response) -> None:
        super().__init__()
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_cacheable(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(ANY_PAGE)
                if message["status"] == 200:
                    headers.update({"cache-control": KEPT_FOR_EVER, "x-content-type-options": "nosniff"})
            await send(message)

        await self._reply(scope, receive, send_cacheable)
