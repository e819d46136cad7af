"""Images in S3 and in stores with its protocol: signed by botocore, sent by our own client, one PUT each.

| store | address | what is different |
|---|---|---|
| AWS | `s3://bucket?region=eu-west-1` | it needs the length; create-only works, also for two at once |
| R2 | `…?endpoint=https://<account>.r2.cloudflarestorage.com&region=auto` | |
| MinIO | `…?endpoint=https://minio.example:9000` | create-only since 2024 |
| GCS | `…?endpoint=https://storage.googleapis.com&region=auto` | HMAC keys; create-only is not documented |
| Supabase | `…?endpoint=https://<project>.supabase.co/storage/v1/s3` | create-only is ignored: it overwrites |

If create-only is ignored, the paths' random request ids prevent one image from replacing another.
"""

import asyncio
import re
import threading
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, unquote, urlencode
from xml.etree import ElementTree

import httpx2

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
"""Entries in one page of a listing: S3's maximum."""

_AGAIN_CODES = frozenset({"RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "SlowDown"})
_CODE = re.compile(rb"<Code>([A-Za-z0-9.]{1,64})</Code>")
_REGION = re.compile(r"[a-z0-9-]{1,32}")


class Signer:
    """AWS signatures, version 4. `sign` may look for credentials on the network, so call it in a thread.

    Credentials come from botocore's chain (variables, profiles, web identity, instance roles), which renews them.
    Raises StoreMisconfigured if botocore is not installed.
    """

    def __init__(self, region: str) -> None:
        try:
            import botocore.auth  # noqa: PLC0415  # the loader of the extra `s3`
            import botocore.awsrequest  # noqa: PLC0415
            import botocore.config  # noqa: PLC0415
            import botocore.exceptions  # noqa: PLC0415
            import botocore.session  # noqa: PLC0415
        except ImportError:
            raise StoreMisconfigured(
                "GHUB_STORAGE_URL: s3:// needs botocore, which is not installed; "
                "install it with: pip install 'geekhub-gateway[s3]'"
            ) from None
        self._botocore = botocore
        self._region = region
        self._session = botocore.session.Session()
        # A body that is sent while it arrives has no hash beforehand; TLS protects it.
        self._unsigned_payload = botocore.config.Config(s3={"payload_signing_enabled": False})
        self._loading = threading.Lock()

    def sign(self, method: str, url: str, headers: Mapping[str, str]) -> dict[str, str]:
        """Return `headers` with the signature's. Raises StoreFailed if there are no credentials."""
        request = self._botocore.awsrequest.AWSRequest(method, url, dict(headers))
        request.context["client_config"] = self._unsigned_payload
        self._botocore.auth.S3SigV4Auth(self._credentials(), "s3", self._region).add_auth(request)
        return dict(request.headers.items())

    def _credentials(self) -> Any:
        try:
            with self._loading:
                credentials = self._session.get_credentials()
            if credentials is not None:
                return credentials.get_frozen_credentials()
        except self._botocore.exceptions.BotoCoreError as error:
            raise StoreFailed(f"no AWS credentials: {type(error).__name__}", again=True) from error
        raise StoreFailed("no AWS credentials: none are set", again=False)


class _Refused(StoreFailed):
    """The store's refusal: its own code, if there is one, and its status."""

    def __init__(self, code: str | None, response: httpx2.Response, request: str) -> None:
        status = response.status_code
        again = code in _AGAIN_CODES or status in (408, 429) or status >= 500
        super().__init__(f"the store refused: {code or f'status {status}'}, at {request}", again=again)
        self.code = code
        self.status = status
        self.region = response.headers.get("x-amz-bucket-region", "")


class S3:
    """A bucket. `endpoint` is None for AWS itself; otherwise the bucket is the first part of the path.

    `client` is `outbound.store_client()`, whose timeouts apply to every call. Raises StoreMisconfigured if botocore is
    not installed.
    """

    needs_length = True

    def __init__(
        self, client: httpx2.AsyncClient, bucket: str, *, region: str, endpoint: str | None = None, page: int = PAGE
    ) -> None:
        self._client = client
        self._bucket = bucket
        self.region = region
        self._url = bucket_url(bucket, region, endpoint)
        self._signer = Signer(region)
        self._page = page

    async def check(self) -> None:
        """Check that there is a bucket that our credentials may use. Public reading cannot be checked here."""
        try:
            async with self._ask("HEAD", ""):
                pass
        except _Refused as refused:
            if refused.again:
                raise
            raise StoreMisconfigured(self._why(refused)) from refused
        except StoreFailed as failed:
            if failed.again:
                raise
            raise StoreMisconfigured(
                "GHUB_STORAGE_URL: there are no AWS credentials for it; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give this machine a role"
            ) from failed

    def unwritable(self, refused: StoreFailed) -> str:
        """Say what to do if the bucket may be used, but a probe in it was refused."""
        if not isinstance(refused, _Refused):
            return f"GHUB_STORAGE_URL: the store does not keep an image ({refused})"
        if refused.status == 413:
            return body_limit(refused)
        if refused.status in (401, 403):
            return (
                f"GHUB_STORAGE_URL: the AWS credentials may not write, read and remove objects in the bucket "
                f"{self._bucket!r}; allow them s3:PutObject, s3:GetObject and s3:DeleteObject ({refused})"
            )
        return f"GHUB_STORAGE_URL: the bucket {self._bucket!r} takes no images ({refused})"

    async def put(
        self, path: str, chunks: Chunks, content_type: str, *, size_bytes: int | None = None, again: bool = False
    ) -> None:
        """Publish all of `chunks`, which are `size_bytes`, in one request."""
        assert size_bytes is not None, "S3 must be told the length"
        headers = {
            "content-type": content_type,
            "cache-control": CACHE_CONTROL,
            "content-length": str(size_bytes),
        }
        if not again:
            headers["if-none-match"] = "*"

        async def send(body: Chunks) -> None:
            async with self._ask("PUT", path, headers=headers, content=body) as response:
                await document(response, ERROR_BYTES)

        await upload(chunks, size_bytes, send)

    async def read(self, path: str) -> AsyncGenerator[bytes]:
        """Read a published image from its beginning."""
        async with self._ask("GET", path) as response:
            async for chunk in response.aiter_raw():
                yield chunk

    async def delete(self, path: str) -> None:
        """Remove a published image. A missing one is no error."""
        try:
            async with self._ask("DELETE", path):
                pass
        except _Refused as refused:
            if refused.code != "NoSuchKey":
                raise

    async def exists(self, path: str) -> bool:
        """True if it is published. AWS answers this only to those who may list the bucket."""
        try:
            async with self._ask("HEAD", path):
                return True
        except _Refused as refused:
            if refused.status == 404:
                return False
            raise

    async def objects(self) -> AsyncGenerator[StoredObject]:
        """Yield everything in the bucket, by name."""
        token: str | None = ""
        while token is not None:
            query = {"list-type": "2", "max-keys": str(self._page), "encoding-type": "url"}
            if token:
                query["continuation-token"] = token
            async with self._ask("GET", "", query) as response:
                found, token = _listing(await document(response, LISTING_BYTES))
            for item in found:
                yield item

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        content: Chunks | None = None,
    ) -> AsyncGenerator[httpx2.Response]:
        """Send a request; yield an answer that is not a refusal. Raises StoreFailed."""
        url = f"{self._url}/{quote(path, safe='/~')}"
        if query:
            url += f"?{urlencode(query, quote_via=quote, safe='~')}"
        signed = await asyncio.to_thread(self._signer.sign, method, url, headers or {})
        sent = {"accept-encoding": "identity", **signed}
        try:
            async with self._client.stream(method, url, headers=sent, content=content) as response:
                if response.status_code not in (200, 204):
                    raise _refusal(response, await document(response, ERROR_BYTES), request_of(method, url))
                yield response
        except httpx2.HTTPError as error:
            raise away(error, request_of(method, url)) from error

    def _why(self, refused: _Refused) -> str:
        """Say what to do about a lasting refusal."""
        match refused.status:
            case 404:
                return f"GHUB_STORAGE_URL: there is no bucket {self._bucket!r}; make it"
            case 301 | 307 | 400 if _REGION.fullmatch(refused.region) and refused.region != self.region:
                return f"GHUB_STORAGE_URL: the bucket {self._bucket!r} is elsewhere; set region={refused.region}"
            case 301 | 307:
                return f"GHUB_STORAGE_URL: the bucket {self._bucket!r} is not in region {self.region!r}; set its own"
            case 401 | 403:
                return (
                    f"GHUB_STORAGE_URL: the AWS credentials may not use the bucket {self._bucket!r}; check them and "
                    "this machine's clock, and allow them to list the bucket, and to get, put and delete objects in it"
                )
        return f"GHUB_STORAGE_URL: no S3 answers there; check its endpoint and region ({refused})"


def bucket_url(bucket: str, region: str, endpoint: str | None) -> str:
    """Build the URL of a bucket's objects. AWS' certificate covers no name with dots before `.s3`."""
    if endpoint is not None:
        return f"{endpoint.rstrip('/')}/{bucket}"
    if "." in bucket:
        return f"https://s3.{region}.amazonaws.com/{bucket}"
    return f"https://{bucket}.s3.{region}.amazonaws.com"


def _refusal(response: httpx2.Response, body: bytes, request: str) -> _Refused:
    code = _CODE.search(body)
    return _Refused(code[1].decode() if code else None, response, request)


def _listing(body: bytes) -> tuple[list[StoredObject], str | None]:
    """Parse a page of a listing and the next page's token, None after the last. Raises StoreFailed."""
    try:
        page = ElementTree.fromstring(body)  # noqa: S314  # bounded in size, and expat bounds what entities become
        decoded = unquote if page.findtext("{*}EncodingType") == "url" else str
        found = [
            StoredObject(
                decoded(_text(item, "Key")),
                int(_text(item, "Size")),
                datetime.fromisoformat(_text(item, "LastModified")).astimezone(UTC),
            )
            for item in page.iterfind("{*}Contents")
        ]
        more = page.findtext("{*}IsTruncated") == "true"
        return found, _text(page, "NextContinuationToken") if more else None
    except (ElementTree.ParseError, ValueError) as error:
        raise StoreFailed("the store's listing cannot be read", again=True) from error


def _text(element: ElementTree.Element, name: str) -> str:
    text = element.findtext(f"{{*}}{name}")
    if not text:
        raise ValueError(f"no {name}")
    return text
