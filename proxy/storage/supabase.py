"""Images in Supabase Storage, each one streamed as the body of a single request.

The server's behaviour was measured, not read: `tests/stores/supabase.py` does the same. It answers nearly every error
as HTTP 400, with the real status as a string in the body. A connection that breaks off leaves nothing new, and the old
object stays. An upload that ends properly with no bytes is an object of no bytes. A body of unknown length passes the
bucket's limit. Create-only is checked when an upload begins: of two at the same time both succeed.
"""

import re
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import quote

import httpx2
import jwt
import orjson

from config.settings import MAX_IMAGE_BYTES, STORE_JWT_LIFE_S
from proxy.ports import Chunks, StoredObject, StoreFailed, StoreMisconfigured
from proxy.storage.streams import (
    CACHE_CONTROL,
    ERROR_BYTES,
    LISTING_BYTES,
    away,
    body_limit,
    document,
    request_of,
    upload,
)

PAGE = 1_000
"""Entries in one page of a listing; the server gives at most 1,500."""

IMAGE_TYPES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"})
"""Types that a bucket must accept: the formats that upstreams make."""

_AGAIN_CODES = frozenset({"SlowDown", "too_many_connections", "LockTimeout", "ResourceLocked", "DatabaseTimeout"})
_AGAIN_STATUSES = frozenset({408, 423, 425, 429})
_KEY_CODES = frozenset({"AccessDenied", "InvalidJWT", "ExpiredToken", "InvalidSignature"})
_CODE = re.compile(r"[A-Za-z0-9_]{1,64}")


class Auth(Protocol):
    """Our credentials for the store. `variable` is the setting to correct if the store refuses them."""

    variable: str

    def headers(self) -> Mapping[str, str]: ...


class Key:
    """A key of the project: a legacy service_role JWT, or `sb_secret_…`, which its gateway requires in two headers."""

    variable = "GHUB_STORAGE_KEY"

    def __init__(self, key: str) -> None:
        self._headers = {"apikey": key, "authorization": f"Bearer {key}"}

    def headers(self) -> Mapping[str, str]:
        return self._headers


class MintedTokens:
    """Service tokens that we make with the project's JWT secret; each is used for half of its `life_s`."""

    variable = "GHUB_STORAGE_JWT_SECRET"

    def __init__(self, secret: str, *, life_s: int = STORE_JWT_LIFE_S, now_s: Callable[[], float] = time.time) -> None:
        self._secret = secret
        self._life_s = life_s
        self._now_s = now_s
        self._minted_s = -float(life_s)
        self._headers: Mapping[str, str] = {}

    def headers(self) -> Mapping[str, str]:
        now_s = self._now_s()
        if not 0 <= now_s - self._minted_s < self._life_s / 2:
            claims = {"role": "service_role", "iss": "supabase", "iat": int(now_s), "exp": int(now_s) + self._life_s}
            self._headers = {"authorization": f"Bearer {jwt.encode(claims, self._secret, 'HS256')}"}
            self._minted_s = now_s
        return self._headers


def public_url(url: str, bucket: str) -> str:
    """Build the public URL of a public bucket's images."""
    return f"{url}/object/public/{quote(bucket)}"


class _Refused(StoreFailed):
    """The store's refusal. `code` is the store's own code, if there is one; `status` is the real status."""

    def __init__(self, code: str | None, status: int, request: str) -> None:
        again = code in _AGAIN_CODES or status in _AGAIN_STATUSES or status >= 500
        super().__init__(f"the store refused: {code or f'status {status}'}, at {request}", again=again)
        self.code = code
        self.status = status


@dataclass(frozen=True, slots=True)
class _Entry:
    """A line of a folder's listing: a file, or a folder of which only the name is known."""

    name: str
    file: tuple[int, datetime] | None


@dataclass(frozen=True, slots=True)
class _Page:
    """A page of the flat list; `cursor` begins the next one, None after the last."""

    objects: list[StoredObject]
    cursor: str | None


class Supabase:
    """A bucket. `url` ends in `/storage/v1`; `client` is `outbound.store_client()`, whose timeouts apply to every call.

    Listed objects may be deleted during the listing. An older server lists by folder and offset: a whole folder's
    names, about 200 bytes each, are read before its subfolders.
    """

    needs_length = False

    def __init__(self, client: httpx2.AsyncClient, url: str, bucket: str, auth: Auth, *, page: int = PAGE) -> None:
        self._client = client
        self._url = url
        self._bucket = bucket
        self._auth = auth
        self._page = page

    async def check(self) -> None:
        """Check that a public bucket accepts our images. A limit of the whole project cannot be checked here."""
        try:
            async with self._ask("GET", f"/bucket/{quote(self._bucket)}") as response:
                bucket = _parsed(await document(response, ERROR_BYTES))
        except _Refused as refused:
            if refused.again:
                raise
            raise StoreMisconfigured(self._why(refused)) from refused
        if not isinstance(bucket, dict) or "public" not in bucket:
            raise StoreMisconfigured(_NOT_SUPABASE)
        self._check_bucket(bucket)

    def unwritable(self, refused: StoreFailed) -> str:
        """Say what to do if the bucket may be seen, but a probe in it was refused."""
        if not isinstance(refused, _Refused):
            return f"GHUB_STORAGE_URL: the store does not keep an image ({refused})"
        if refused.status == 413:
            return body_limit(refused)
        if refused.code in _KEY_CODES or refused.status in (401, 403):
            return (
                f"{self._auth.variable}: it may see the bucket {self._bucket!r}, but not write, read and remove "
                f"objects in it; take the project's own, of the service role ({refused})"
            )
        return f"GHUB_STORAGE_URL: the bucket {self._bucket!r} takes no images ({refused})"

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        """Publish all of `chunks`, in one request with or without a length."""
        headers = {"content-type": content_type, "cache-control": CACHE_CONTROL}
        if size_bytes is not None:
            headers["content-length"] = str(size_bytes)
        if again:
            headers["x-upsert"] = "true"

        async def send(body: Chunks) -> None:
            async with self._ask("POST", self._object(path), headers=headers, content=body) as response:
                await document(response, ERROR_BYTES)

        await upload(chunks, size_bytes, send)

    async def read(self, path: str) -> AsyncGenerator[bytes]:
        """Read a published image from its beginning."""
        async with self._ask("GET", self._object(path)) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def delete(self, path: str) -> None:
        """Remove a published image. A missing one is no error."""
        await self._is_there("DELETE", self._object(path))

    async def exists(self, path: str) -> bool:
        """True if it is published."""
        return await self._is_there("GET", f"/object/info/{quote(self._bucket)}/{quote(path)}")

    async def objects(self) -> AsyncGenerator[StoredObject]:
        """Yield everything in the bucket, by name; folder by folder if the server is too old for a flat list."""
        try:
            page = await self._page_after(None)
        except _Refused as refused:
            if refused.status != 404 and (refused.status, refused.code) != (400, None):  # no such route, or not for us
                raise
            async for item in self._by_folder():
                yield item
            return
        while True:
            for item in page.objects:
                yield item
            if page.cursor is None:
                return
            page = await self._page_after(page.cursor)

    async def _page_after(self, cursor: str | None) -> _Page:
        """Read a page of the flat list. A cursor costs the same anywhere, and deletions do not disturb it."""
        query = {"limit": self._page, "with_delimiter": False} | ({} if cursor is None else {"cursor": cursor})
        async with self._ask("POST", f"/object/list-v2/{quote(self._bucket)}", json=query) as response:
            page = _page_of(_parsed(await document(response, LISTING_BYTES)))
        if page.cursor is not None and page.cursor == cursor:
            raise _unreadable()  # otherwise it would never end
        return page

    async def _by_folder(self) -> AsyncGenerator[StoredObject]:
        folders = [""]
        while folders:
            folder = folders.pop()
            for entry in await self._entries(folder):
                if entry.file is None:
                    folders.append(f"{folder}{entry.name}/")
                else:
                    yield StoredObject(f"{folder}{entry.name}", *entry.file)

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Chunks | None = None,
        json: Any = None,
    ) -> AsyncGenerator[httpx2.Response]:
        """Send a request; yield an answer that is not a refusal. Raises StoreFailed."""
        sent = {"accept-encoding": "identity", **self._auth.headers(), **(headers or {})}
        url = f"{self._url}{path}"
        try:
            async with self._client.stream(method, url, headers=sent, content=content, json=json) as response:
                if response.status_code != 200:
                    body = await document(response, ERROR_BYTES)
                    raise _refusal(response.status_code, body, request_of(method, url))
                yield response
        except httpx2.HTTPError as error:
            raise away(error, request_of(method, url)) from error

    async def _is_there(self, method: str, path: str) -> bool:
        """Send a request about an object; returns whether the object was there."""
        try:
            async with self._ask(method, path) as response:
                await document(response, ERROR_BYTES)
        except _Refused as refused:
            if refused.code == "NoSuchKey" or (refused.code, refused.status) == ("not_found", 404):
                return False
            raise
        return True

    async def _entries(self, folder: str) -> list[_Entry]:
        """Read a folder. The result is by name, because an entry added between two pages may be seen twice."""
        found: dict[str, _Entry] = {}
        for offset in range(0, 2**31, self._page):
            query = {
                "prefix": folder,
                "limit": self._page,
                "offset": offset,
                "sortBy": {"column": "name", "order": "asc"},
            }
            async with self._ask("POST", f"/object/list/{quote(self._bucket)}", json=query) as response:
                page = _entries_of(_parsed(await document(response, LISTING_BYTES)))
            found.update((entry.name, entry) for entry in page)
            if len(page) < self._page:
                break
        return list(found.values())

    def _object(self, path: str) -> str:
        return f"/object/{quote(self._bucket)}/{quote(path)}"

    def _check_bucket(self, bucket: Mapping[str, Any]) -> None:
        if bucket["public"] is not True:
            raise StoreMisconfigured(
                f"GHUB_STORAGE_URL: the bucket {self._bucket!r} is private, so nobody sees its images; make it public"
            )
        limit = bucket.get("file_size_limit")
        if limit is not None and (not isinstance(limit, int) or limit < MAX_IMAGE_BYTES):
            raise StoreMisconfigured(
                f"GHUB_STORAGE_URL: the bucket {self._bucket!r} takes files of at most {limit} bytes; remove its "
                f"file_size_limit, or set it to at least {MAX_IMAGE_BYTES}"
            )
        types = bucket.get("allowed_mime_types")
        if types is not None and not _takes_images(types):
            raise StoreMisconfigured(
                f"GHUB_STORAGE_URL: the bucket {self._bucket!r} does not take every kind of image; allow "
                f"{', '.join(sorted(IMAGE_TYPES))}, or image/*"
            )

    def _why(self, refused: _Refused) -> str:
        """Say what to do about a lasting refusal."""
        if refused.code == "NoSuchBucket":
            return (
                f"GHUB_STORAGE_URL: there is no bucket {self._bucket!r}, or {self._auth.variable} is not one of a "
                "service role and may not see it; make the bucket, public"
            )
        if refused.code in _KEY_CODES or refused.status in (401, 403):
            return (
                f"{self._auth.variable}: the store does not accept it; take the project's own, of the service role. "
                "A key sb_secret_… works only through the project's API gateway"
            )
        return f"{_NOT_SUPABASE} ({refused})"


_NOT_SUPABASE = (
    "GHUB_STORAGE_URL: no Supabase Storage answers there; it is supabase+https://<project>.supabase.co/storage/v1"
    "?bucket=<bucket>"
)


def _parsed(body: bytes) -> Any:
    """Parse JSON; None if it is invalid."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return None


def _refusal(http_status: int, body: bytes, request: str) -> _Refused:
    """Build a refusal by the code in the body, then its status, then HTTP's status, which is nearly always 400."""
    error = _parsed(body)
    if not isinstance(error, dict):
        return _Refused(None, http_status, request)
    code, status = error.get("code", error.get("error")), str(error.get("statusCode"))
    known = isinstance(code, str) and _CODE.fullmatch(code)
    meant = int(status) if re.fullmatch(r"[1-5][0-9]{2}", status) else http_status
    return _Refused(code if known else None, meant, request)


def _entries_of(page: Any) -> list[_Entry]:
    """Parse a folder's listing. Raises StoreFailed if it is none."""
    try:
        return [_entry(line) for line in page]
    except (TypeError, KeyError, ValueError) as error:
        raise _unreadable() from error


def _page_of(page: Any) -> _Page:
    """Parse a page of the flat list. Raises StoreFailed if it is none."""
    try:
        found = [StoredObject(line.get("key") or line["name"], *_facts(line)) for line in page["objects"]]
        cursor = str(page["nextCursor"]) if page["hasNext"] else None
    except (AttributeError, TypeError, KeyError, ValueError) as error:
        raise _unreadable() from error
    return _Page(found, cursor)


def _unreadable() -> StoreFailed:
    return StoreFailed("the store's listing cannot be read", again=True)


def _entry(line: Mapping[str, Any]) -> _Entry:
    return _Entry(line["name"], None if line["id"] is None else _facts(line))


def _facts(line: Mapping[str, Any]) -> tuple[int, datetime]:
    """Read size and time of a listed object. A multipart upload has no size until it ends."""
    size = (line["metadata"] or {}).get("size", 0)
    return int(size), datetime.fromisoformat(line["updated_at"]).astimezone(UTC)


def _takes_images(types: Any) -> bool:
    taken = set(types) if isinstance(types, list) else set()
    return bool(taken & {"image/*", "*/*"}) or taken >= IMAGE_TYPES
