"""A Supabase Storage server for tests: what was measured of the real one, trap by trap, over bare asyncio streams.

    python -m tests.stores.supabase --port 0 --folder D --secret S [--key sb_secret_…] [--file-size-limit N] [--mime T]…

prints `{"port": N}` when it listens, and ends on SIGTERM. Objects lie in `D/objects`, so a server that was killed has
them when it is started again. `PUT /_test/behaviour` sets what goes wrong next: the fields of `Behaviour`, those that
are not named go back to normal. `GET /_test/behaviour` tells them. Under `/storage/v1` stands the API, with a gateway
like Kong's in front of it where there is a key: it swaps the key for a token of the service role.
"""

import argparse
import asyncio
import base64
import bisect
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import jwt

BASE = "/storage/v1"
READ_BYTES = 64 * 1024
MAX_LISTED = 1_000  # of the flat list at a time
_RANGE = re.compile(r"bytes=([0-9]+)-([0-9]*)")
RECEIVE_BUFFER_BYTES = 256 * 1024
DISCARD_BYTES = 1_500_000  # of a body that was refused at its beginning; measured: 1.3 MB is fine, 13 MB is not read
UNREAD_S = 60.0  # how long a connection stays open whose body is not read any further


@dataclass
class Behaviour:
    """The next faults. The numbers of times count down; 0 is never."""

    fail_times: int = 0
    fail_status: int = 500
    html_times: int = 0
    html_status: int = 502
    lose_times: int = 0  # publish, and close the connection instead of answering
    hang_times: int = 0  # read and answer nothing
    read_bytes_per_s: float = 0  # 0 is as fast as it goes
    answer_delay_s: float = 0
    db_down: bool = False
    read_only: bool = False  # the database takes no writes, as Supabase makes it when its disk is full
    no_writing: bool = False  # the key may see everything, and write nothing
    old: bool = False  # a server that has no list-v2
    listed: int = 0  # so many objects more stand in the flat list, a year old, of a thousand organisations
    body_limit_bytes: int = 0  # of a proxy in front, like nginx's client_max_body_size; 0 is none

    def takes(self, name: str) -> bool:
        """Is it the turn of this fault? Then it is used up by one."""
        left = getattr(self, name)
        setattr(self, name, max(0, left - 1))
        return bool(left)


@dataclass(frozen=True)
class Bucket:
    """The one bucket, and the facts that a preflight looks at."""

    name: str = "generated-images"
    public: bool = True
    file_size_limit: int | None = None
    allowed_mime_types: list[str] | None = None


class Refused(Exception):
    """An answer in the store's own form: the real status is a string in the body."""

    def __init__(self, status: int, error: str, message: str, code: str) -> None:
        super().__init__(message)
        # 500 and overload stay what they are; everything else is HTTP 400.
        self.http_status = status if status >= 500 or status == 429 else 400
        self.body = {"statusCode": str(status), "error": error, "message": message, "code": code}


NO_SUCH_BUCKET = Refused(404, "Bucket not found", "Bucket not found", "NoSuchBucket")
NO_SUCH_KEY = Refused(404, "not_found", "Object not found", "NoSuchKey")
DUPLICATE = Refused(409, "Duplicate", "The resource already exists", "KeyAlreadyExists")
TOO_LARGE = Refused(413, "Payload too large", "The object exceeded the maximum allowed size", "EntityTooLarge")
NO_AUTHORIZATION = Refused(400, "Error", "headers must have required property 'authorization'", "InvalidRequest")
NO_RIGHT = Refused(403, "Unauthorized", "Access denied", "AccessDenied")
NOT_BY_POLICY = Refused(403, "Unauthorized", "new row violates row-level security policy", "AccessDenied")
READ_ONLY = Refused(500, "Internal", "cannot execute INSERT in a read-only transaction", "DatabaseError")
DB_DOWN = Refused(500, "Internal", "Internal server error", "InternalError")
FAILURES = {429: "SlowDown", 503: "DatabaseConnectionLimit", 544: "DatabaseTimeout"}


@dataclass
class Request:
    method: str
    target: str
    headers: dict[str, str]
    reader: asyncio.StreamReader
    unread: bool = field(init=False)

    def __post_init__(self) -> None:
        self.unread = self.chunked or bool(self.length)

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "")

    @property
    def length(self) -> int | None:
        text = self.headers.get("content-length")
        return int(text) if text is not None else None

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    async def body(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises IncompleteReadError if it breaks off."""
        while self.chunked and (size := int((await self.reader.readline()).strip() or b"-1", 16)):
            if size < 0:
                raise asyncio.IncompleteReadError(b"", None)
            async for piece in self._exactly(size):
                yield piece
            await self.reader.readexactly(2)
        if self.chunked:
            await self.reader.readexactly(2)
        else:
            async for piece in self._exactly(self.length or 0):
                yield piece
        self.unread = False

    async def _exactly(self, size: int) -> AsyncIterator[bytes]:
        while size:
            piece = await self.reader.read(min(size, READ_BYTES))
            if not piece:
                raise asyncio.IncompleteReadError(b"", size)
            size -= len(piece)
            yield piece

    async def whole(self) -> bytes:
        return b"".join([piece async for piece in self.body()])


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes | Path = b""

    @staticmethod
    def of(value: Any, status: int = 200) -> "Answer":
        return Answer(status, {"content-type": "application/json; charset=utf-8"}, json.dumps(value).encode())


NGINX_PAGE = b"<html><head><title>413 Request Entity Too Large</title></head><body>nginx</body></html>"
TOO_LARGE_FOR_NGINX = Answer(413, {"content-type": "text/html"}, NGINX_PAGE)


class Objects:
    """The objects of a bucket as files: bytes in `objects`, facts in `facts`, the unfinished in `parts`."""

    def __init__(self, folder: Path) -> None:
        self._bytes, self._facts, self._parts = (folder / name for name in ("objects", "facts", "parts"))
        shutil.rmtree(self._parts, ignore_errors=True)
        for made in (self._bytes, self._facts, self._parts):
            made.mkdir(parents=True, exist_ok=True)

    def file(self, path: str) -> Path:
        """Find the file of an object's bytes. Raises Refused."""
        if not path.isascii() or "#" in path or ".." in path or not path.strip("/"):
            raise Refused(400, "InvalidKey", f"Invalid key: {path}", "InvalidKey")
        return self._bytes / path

    def facts(self, path: str) -> dict[str, Any]:
        """Read the facts of an object. Raises Refused."""
        if not self.file(path).is_file():
            raise NO_SUCH_KEY
        return dict(json.loads((self._facts / path).read_text()))

    def part(self) -> Path:
        return self._parts / uuid.uuid4().hex

    def publish(self, path: str, part: Path, etag: str, content_type: str, cache_control: str) -> str:
        """Replaces whatever is there by now, and returns the object's id."""
        now, new_id = datetime.now(UTC).isoformat(), str(uuid.uuid4())
        facts = {"id": new_id, "at": now, "etag": f'"{etag}"', "mime": content_type, "cache": cache_control}
        for folder in (self._facts, self._bytes):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (self._facts / path).write_text(json.dumps(facts | {"size": part.stat().st_size}))
        part.rename(self._bytes / path)
        return new_id

    def delete(self, path: str) -> None:
        self.facts(path)
        self.file(path).unlink()
        for folder in self.file(path).parents:
            if folder == self._bytes or any(folder.iterdir()):
                break
            folder.rmdir()

    def names(self) -> list[str]:
        """Names of all objects."""
        return [path.relative_to(self._bytes).as_posix() for path in self._bytes.rglob("*") if path.is_file()]

    def has(self, name: str) -> bool:
        return (self._bytes / name).is_file()

    def flat(self, name: str) -> dict[str, Any]:
        """The line of an object in the flat list: as in a folder's, but with its whole name."""
        return self._entry(self._bytes / name) | {"name": name, "key": name}

    def entries(self, prefix: str, limit: int, offset: int, descending: bool) -> list[dict[str, Any]]:
        """A page of what lies directly in a folder; one that is not there is empty."""
        folder = self._bytes / prefix.strip("/")
        found = sorted(folder.iterdir(), reverse=descending) if folder.is_dir() else []
        return [self._entry(path) for path in found[offset : offset + limit]]

    def _entry(self, path: Path) -> dict[str, Any]:
        if path.is_dir():
            return dict.fromkeys(["id", "updated_at", "created_at", "last_accessed_at", "metadata"]) | {
                "name": path.name
            }
        facts = self.facts(path.relative_to(self._bytes).as_posix())
        times = dict.fromkeys(["updated_at", "created_at", "last_accessed_at"], facts["at"])
        metadata = {"eTag": facts["etag"], "size": facts["size"], "mimetype": facts["mime"]}
        return {"name": path.name, "id": facts["id"], "metadata": metadata | {"cacheControl": facts["cache"]}} | times


class Server:
    """One storage server. `secret` signs its tokens; `key` is what the gateway in front swaps for one, None without."""

    def __init__(self, folder: Path, secret: str, key: str | None = None, bucket: Bucket | None = None) -> None:
        self._objects = Objects(folder)
        self._secret = secret
        self._key = key
        self._bucket = bucket or Bucket()
        self._tasks: set[asyncio.Task[None]] = set()
        self.behaviour = Behaviour()
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{BASE}"

    @contextlib.asynccontextmanager
    async def serving(self, port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator["Server"]:
        """Serve on `port`, or on a free one, until the end of the block."""
        listener = socket.create_server(("127.0.0.1", port), backlog=1024)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.port = listener.getsockname()[1]
        server = await asyncio.start_server(self._connection, sock=listener, limit=READ_BYTES, ssl=tls)
        try:
            yield self
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while await self._request(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has gone, or the server is to end
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _request(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request; False when the connection is over."""
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.split(":", 1) for line in lines if line)
        request = Request(method, target, {name.lower(): value.strip() for name, value in pairs}, reader)
        try:
            answer = await self._answer(request)
        except Refused as refused:
            answer = Answer.of(refused.body, refused.http_status)
        if answer is None:
            return False
        await _send(writer, answer, head_only=method == "HEAD")
        if request.unread and not await _discarded(request):
            await asyncio.sleep(UNREAD_S)
            return False
        return request.headers.get("connection", "").lower() != "close"

    async def _answer(self, request: Request) -> Answer | None:
        """None if the connection is closed without an answer."""
        if request.target == "/_test/behaviour":
            if request.method == "PUT":
                self.behaviour = Behaviour(**json.loads(await request.whole()))
            return Answer.of(asdict(self.behaviour))
        if request.path in ("/status", f"{BASE}/status"):
            return Answer(200, {"content-type": "text/plain"}, b"")
        if self.behaviour.takes("hang_times"):
            await asyncio.sleep(3600)
        if self.behaviour.takes("html_times"):
            page = f"<html><head><title>{self.behaviour.html_status}</title></head>{'<p>gateway</p>' * 9}</html>"
            return Answer(self.behaviour.html_status, {"content-type": "text/html"}, page.encode())
        if self.behaviour.takes("fail_times"):
            status = self.behaviour.fail_status
            raise Refused(status, "Error", "as the test wants it", FAILURES.get(status, "InternalError"))
        if self.behaviour.db_down:
            raise DB_DOWN
        if self.behaviour.body_limit_bytes and (request.length or 0) > self.behaviour.body_limit_bytes:
            return TOO_LARGE_FOR_NGINX
        answer = await self._route(request)
        await asyncio.sleep(self.behaviour.answer_delay_s)
        return answer

    async def _route(self, request: Request) -> Answer | None:
        parts = request.path.removeprefix(BASE).strip("/").split("/")
        match (request.method, *parts):
            case ("GET" | "HEAD", "object", "public", bucket, *path):
                if bucket != self._bucket.name:
                    raise NO_SUCH_KEY
                if not self._bucket.public:
                    raise NO_SUCH_BUCKET
                return self._read(request, "/".join(path))
            case ("GET", "bucket", bucket):
                self._authorized(request, bucket, hidden=NO_SUCH_BUCKET)
                return Answer.of({"id": bucket, "owner": ""} | asdict(self._bucket))
            case ("GET", "object", "info", bucket, *path):
                self._may_read(request, bucket)
                return Answer.of(self._objects.facts("/".join(path)))
            case ("GET" | "HEAD", "object", bucket, *path):
                self._may_read(request, bucket)
                return self._read(request, "/".join(path))
            case ("DELETE", "object", bucket, *path):
                self._authorized(request, bucket, hidden=NO_RIGHT if self._bucket.public else NO_SUCH_KEY)
                self._writable()
                self._objects.delete("/".join(path))
                return Answer.of({"message": "Successfully deleted"})
            case ("POST", "object", "list", bucket):
                sees = self._is_service(request) and bucket == self._bucket.name
                query = json.loads(await request.whole())
                return self._list(query) if sees else Answer.of([])
            case ("POST", "object", "list-v2", bucket) if not self.behaviour.old:
                sees = self._is_service(request) and bucket == self._bucket.name
                query = json.loads(await request.whole())
                return self._list_flat(query) if sees else Answer.of({"hasNext": False, "folders": [], "objects": []})
            case ("POST" | "PUT", "object", bucket, *path):
                self._authorized(request, bucket, hidden=NOT_BY_POLICY)
                self._writable()
                return await self._upload(request, "/".join(path))
        return Answer.of({"message": f"Route {request.method}:{request.path} not found", "error": "Not Found"}, 404)

    def _authorized(self, request: Request, bucket: str, hidden: Refused) -> None:
        """`hidden` is what row-level security makes of a role that may not see a thing."""
        if not self._is_service(request):
            raise hidden
        if bucket != self._bucket.name:
            raise NO_SUCH_BUCKET

    def _may_read(self, request: Request, bucket: str) -> None:
        """Any token of the project may read from a public bucket."""
        if not self._is_service(request) and not self._bucket.public:
            raise NO_SUCH_KEY
        if bucket != self._bucket.name:
            raise NO_SUCH_BUCKET

    def _is_service(self, request: Request) -> bool:
        """Is it the service role? Row-level security hides nearly everything from any other. Raises Refused."""
        authorization = request.headers.get("authorization")
        if authorization is None:
            raise NO_AUTHORIZATION
        token = authorization.removeprefix("Bearer ")
        swapped = self._key is not None and token == self._key == request.headers.get("apikey")
        if swapped:
            return True
        try:
            claims = jwt.decode(token, self._secret, ["HS256"], options={"verify_aud": False})
        except jwt.InvalidTokenError as error:
            raise Refused(403, "Unauthorized", f"Invalid Compact JWS: {error}", "AccessDenied") from error
        return bool(claims.get("role") == "service_role")

    def _writable(self) -> None:
        if self.behaviour.no_writing:
            raise NOT_BY_POLICY
        if self.behaviour.read_only:
            raise READ_ONLY

    async def _upload(self, request: Request, path: str) -> Answer | None:
        content_type = request.headers.get("content-type", "application/octet-stream")
        limit, types = self._bucket.file_size_limit, self._bucket.allowed_mime_types
        file = self._objects.file(path)
        if types is not None and not {content_type, content_type.partition("/")[0] + "/*"} & set(types):
            raise Refused(415, "invalid_mime_type", f"mime type {content_type} is not supported", "InvalidMimeType")
        # A length that is not told passes every limit.
        if limit is not None and (request.length or 0) > limit:
            raise TOO_LARGE
        # Looked at here and never again: of several at the same time all go through, and the last one stays.
        if request.method == "POST" and request.headers.get("x-upsert") != "true" and file.exists():
            raise DUPLICATE
        part, digest = self._objects.part(), hashlib.md5(usedforsecurity=False)
        try:
            with part.open("wb") as out:
                size = 0
                async for piece in request.body():
                    size += len(piece)
                    if 0 < self.behaviour.body_limit_bytes < size:  # a proxy that sends it on unbuffered
                        return TOO_LARGE_FOR_NGINX
                    out.write(piece)
                    digest.update(piece)
                    if self.behaviour.read_bytes_per_s:
                        await asyncio.sleep(len(piece) / self.behaviour.read_bytes_per_s)
            cache_control = request.headers.get("cache-control", "no-cache")
            new_id = self._objects.publish(path, part, digest.hexdigest(), content_type, cache_control)
        finally:
            part.unlink(missing_ok=True)
        if self.behaviour.takes("lose_times"):
            return None
        return Answer.of({"Key": f"{self._bucket.name}/{path}", "Id": new_id})

    def _read(self, request: Request, path: str) -> Answer:
        facts = self._objects.facts(path)
        headers = {"content-type": facts["mime"], "cache-control": facts["cache"], "etag": facts["etag"]}
        headers |= {"last-modified": facts["at"], "accept-ranges": "bytes"}
        if request.headers.get("if-none-match") == facts["etag"]:
            return Answer(304, headers)
        file = self._objects.file(path)
        wanted, size = _RANGE.fullmatch(request.headers.get("range", "")), file.stat().st_size
        if wanted is None:
            return Answer(200, headers, file)
        first, last = int(wanted[1]), min(int(wanted[2] or size), size - 1)
        if first > last:
            return Answer(416, {"content-range": f"bytes */{size}"})
        with file.open("rb") as opened:
            opened.seek(first)
            part = opened.read(last - first + 1)
        return Answer(206, headers | {"content-range": f"bytes {first}-{last}/{size}"}, part)

    def _list(self, query: Mapping[str, Any]) -> Answer:
        descending = query.get("sortBy", {}).get("order") == "desc"
        page = self._objects.entries(query["prefix"], query.get("limit", 100), query.get("offset", 0), descending)
        return Answer.of(page)

    def _list_flat(self, query: Mapping[str, Any]) -> Answer:
        """By name, after the cursor, each with its whole name."""
        after = base64.b64decode(query["cursor"]).decode().removeprefix("l:") if "cursor" in query else ""
        names = sorted([*self._objects.names(), *_generated(self.behaviour.listed)])
        begin, most = bisect.bisect_right(names, after), min(query.get("limit", 100), MAX_LISTED)
        page, more = names[begin : begin + most], len(names) > begin + most
        found = [self._objects.flat(name) if self._objects.has(name) else _listed(name) for name in page]
        cursor = {"nextCursor": base64.b64encode(f"l:{page[-1]}".encode()).decode()} if more else {}
        return Answer.of({"hasNext": more, "folders": [], "objects": found} | cursor)


@functools.cache
def _generated(count: int) -> list[str]:
    """Paths as the gateway writes them, in order, the same ones each time."""
    chance = random.Random(count)
    orgs = [str(uuid.UUID(int=chance.getrandbits(128), version=4)) for _ in range(1_000)]
    return sorted(f"{orgs[i % 1_000]}/{uuid.UUID(int=chance.getrandbits(128), version=4)}/0.png" for i in range(count))


def _listed(name: str) -> dict[str, Any]:
    """The line of an object that only the list has."""
    at = "2025-11-26T12:00:00+00:00"
    return {"name": name, "key": name, "id": str(uuid.uuid5(uuid.NAMESPACE_URL, name)), "metadata": {"size": 1_000}} | {
        "updated_at": at,
        "created_at": at,
        "last_accessed_at": at,
    }


async def _send(writer: asyncio.StreamWriter, answer: Answer, *, head_only: bool) -> None:
    size = answer.body.stat().st_size if isinstance(answer.body, Path) else len(answer.body)
    lines = [f"HTTP/1.1 {answer.status} -", *(f"{name}: {value}" for name, value in answer.headers.items())]
    writer.write("\r\n".join([*lines, f"content-length: {size}", "", ""]).encode())
    if isinstance(answer.body, Path) and not head_only:
        with answer.body.open("rb") as file:
            while piece := file.read(READ_BYTES):
                writer.write(piece)
                await writer.drain()
    elif isinstance(answer.body, bytes) and not head_only:
        writer.write(answer.body)
    await writer.drain()


async def _discarded(request: Request) -> bool:
    """Read what is left of a refused body, as far as it is small."""
    size = 0
    async for piece in request.body():
        size += len(piece)
        if size > DISCARD_BYTES:
            return False
    return True


async def _main(options: argparse.Namespace) -> None:
    over = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, over.set)
    bucket = Bucket(options.bucket, not options.private, options.file_size_limit, options.mime)
    tls = None
    if options.tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(*options.tls)
    async with Server(options.folder, options.secret, options.key, bucket).serving(options.port, tls) as server:
        print(json.dumps({"port": server.port}), flush=True)
        await over.wait()
    os._exit(0)  # nothing is left to do, and the interpreter would take a while over it


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="A Supabase Storage server for tests.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--secret", required=True)
    parser.add_argument("--key")
    parser.add_argument("--bucket", default=Bucket.name)
    parser.add_argument("--private", action="store_true")
    parser.add_argument("--file-size-limit", type=int)
    parser.add_argument("--mime", action="append")
    parser.add_argument("--tls", nargs=2, metavar=("CERTIFICATE", "KEY"), help="serve https, and not http")
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
