"""The clients: one for upstreams and their image hosts, one for the store. Each has its own connections."""

import contextlib
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import httpx2
import orjson

from config.settings import LONGEST_STAY_S, STORE_ANSWER_S, STORE_CONNECT_S, STORE_WRITE_S
from metering.tracing import propagated
from proxy.outbound.hosts import ImageHosts, PublicNames
from proxy.outbound.pool import Origin, Resolve, resolve
from proxy.outbound.transport import KEEP_ALIVE_S, Transport, default_trust, origin_of

CONNECT_TIMEOUT_S = 5.0  # DNS, TCP and TLS together; a healthy provider takes well under one second
READ_TIMEOUT_S = 60.0  # between two reads of what is there already: a job's state, a result, a picture
WRITE_TIMEOUT_S = 10.0  # for one chunk of a request body; a peer that reads takes milliseconds
MAKING = httpx2.Timeout(connect=CONNECT_TIMEOUT_S, read=LONGEST_STAY_S, write=WRITE_TIMEOUT_S, pool=None)
"""For a call whose answer is being made: the provider is silent until then, and the order's deadline ends the wait."""

MAX_REDIRECTS = 3  # image hosts redirect once, to their CDN, if at all
USER_AGENT = "geekhub-gateway/0.1"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_PLAIN = re.compile(
    r"(https?://[A-Za-z0-9.\-\[\]:]+)"
    r"((?:/(?!\.)[A-Za-z0-9\-._~%!$&'()*+,;=:@]*)+(?:\?[A-Za-z0-9\-._~%!$&'()*+,;=:@/?]*)?)"
)
"""A server, and a path and a query that are sent as they are: nothing to quote, no segment that begins with a dot."""


class ImageFetchFailed(Exception):
    """The image host did not answer with the plain image."""

    def __init__(self, status: int, detail: str = "") -> None:
        super().__init__(f"{self.__doc__} Status {status}. {detail}".rstrip())
        self.status = status


@dataclass(frozen=True)
class FetchedImage:
    """An image's bytes in chunks of at most `CHUNK_BYTES`, to be read once, and the size that the host announced."""

    chunks: AsyncIterator[bytes]
    size_bytes: int | None


@dataclass(frozen=True, slots=True)
class Request:
    """A request to send: what httpx2's own has, without the models that make it slow."""

    method: str
    origin: Origin
    target: bytes
    headers: Mapping[str, str]
    body: bytes | AsyncIterable[bytes]
    timeout_s: Mapping[str, float | None]


class Client(httpx2.AsyncClient):
    """httpx2's client without what our calls never need, which is most of its cost for each of them.

    It has no authentication, cookies, redirects, parameters, hooks or base URL. Its requests are `Request`s.
    """

    _transport: Transport

    def __init__(self, transport: Transport, timeout: httpx2.Timeout) -> None:
        super().__init__(transport=transport, timeout=timeout, trust_env=False)
        self._timeout_s = self.timeout.as_dict()

    def build_request(  # type: ignore[override]  # it has fewer options
        self,
        method: str,
        url: httpx2.URL | str,
        *,
        content: str | bytes | AsyncIterable[bytes] | None = None,
        json: Any | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Any = httpx2.USE_CLIENT_DEFAULT,
        **never: Any,
    ) -> Request:
        """Build a request. Raises TypeError for an option that this client does not have."""
        _check_unused(never)
        server, target = _split(url)
        all_headers = {"host": server.host, "user-agent": USER_AGENT} | {
            name.lower(): value for name, value in (headers or {}).items()
        }
        all_headers |= propagated()
        body: bytes | AsyncIterable[bytes]
        if json is not None:
            body = orjson.dumps(json)
            all_headers["content-type"] = "application/json"
        else:
            body = content.encode() if isinstance(content, str) else content or b""
        if not isinstance(body, bytes):
            if "content-length" not in all_headers:
                all_headers["transfer-encoding"] = "chunked"
        elif body or method in _WITH_BODY:
            all_headers["content-length"] = str(len(body))
        timeout_s = timeout.as_dict() if isinstance(timeout, httpx2.Timeout) else self._timeout_s
        return Request(method, server.origin, target, all_headers, body, timeout_s)

    async def send(  # type: ignore[override]  # it has fewer options, and its own requests
        self, request: Request, *, stream: bool = False, **never: Any
    ) -> httpx2.Response:
        """Send a request. Raises httpx2.TransportError, and TypeError as above."""
        _check_unused(never)
        lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), request.target)]
        lines += [f"{name}: {value}".encode("ascii") for name, value in request.headers.items()]
        response = await self._transport.call(request.method, request.origin, lines, request.body, request.timeout_s)
        if not stream:
            try:
                await response.aread()
            finally:
                await response.aclose()
        return response


class _Server(NamedTuple):
    """A server, and the `host` header of requests to it."""

    origin: Origin
    host: str


def _split(url: httpx2.URL | str) -> tuple[_Server, bytes]:
    """Split a URL into its server and the target that is sent to it. Raises UnsupportedProtocol, InvalidURL.

    One of our own, which is plain, is not parsed each time. Others were checked as httpx2 has parsed them, and must not
    be parsed again.
    """
    if isinstance(url, str):
        if plain := _PLAIN.fullmatch(url):
            return _server(plain[1]), plain[2].encode("ascii")
        url = httpx2.URL(url)
    return _Server(origin_of(url), url.netloc.decode("ascii")), url.raw_path


@lru_cache(maxsize=64)
def _server(base: str) -> _Server:
    url = httpx2.URL(base)
    return _Server(origin_of(url), url.netloc.decode("ascii"))


def _check_unused(options: Mapping[str, Any]) -> None:
    if used := [name for name, value in options.items() if value not in (None, httpx2.USE_CLIENT_DEFAULT)]:
        raise TypeError(f"this client has no {', '.join(used)}")


def store_client(
    *,
    connect_timeout_s: float = STORE_CONNECT_S,
    write_timeout_s: float = STORE_WRITE_S,
    answer_timeout_s: float = STORE_ANSWER_S,
    verify: ssl.SSLContext | None = None,
) -> Client:
    """Create a client for the image store, with its own connections. Call it inside the running event loop.

    `answer_timeout_s` is the timeout from a request's last byte to the answer, and between two reads of it.
    """
    timeout = httpx2.Timeout(connect=connect_timeout_s, read=answer_timeout_s, write=write_timeout_s, pool=None)
    return Client(Transport(verify=verify), timeout)


class Outbound:
    """Every call to an upstream and its image hosts. Create it inside the running event loop; close it with `aclose`.

    Timeouts and `keep_alive_s` are in seconds. `client` keeps no cookies, follows no redirects and reads nothing from
    the environment except the TLS trust.
    """

    def __init__(
        self,
        image_hosts: ImageHosts,
        *,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        read_timeout_s: float = READ_TIMEOUT_S,
        write_timeout_s: float = WRITE_TIMEOUT_S,
        keep_alive_s: float = KEEP_ALIVE_S,
        verify: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
    ) -> None:
        verify = verify or default_trust()
        timeout = httpx2.Timeout(connect=connect_timeout_s, read=read_timeout_s, write=write_timeout_s, pool=None)

        def client(resolve: Resolve) -> Client:
            return Client(Transport(verify=verify, resolve=resolve, keep_alive_s=keep_alive_s), timeout)

        self.client = client(resolve)
        self._image_hosts = image_hosts
        self._image_client = client(PublicNames(image_hosts, resolve))

    @contextlib.asynccontextmanager
    async def fetch_image(self, url: str) -> AsyncGenerator[FetchedImage]:
        """GET an image from an image host, without credentials, with at most `MAX_REDIRECTS` redirects.

        The bytes come as they are sent: the caller counts them, and stops if there are too many. Raises HostNotAllowed,
        for a redirect too; ImageFetchFailed for any status except 200 and for an encoded image; and
        httpx2.TransportError.
        """
        target = self._image_hosts.check(url)
        for redirects_left in range(MAX_REDIRECTS, -1, -1):
            async with self._image_client.stream("GET", target, headers={"accept-encoding": "identity"}) as response:
                location = response.headers.get("location")
                if response.status_code in _REDIRECTS and location and redirects_left:
                    target = self._image_hosts.check(location, base=target)
                    continue
                if response.status_code != httpx2.codes.OK:
                    raise ImageFetchFailed(response.status_code)
                encoding = response.headers.get("content-encoding", "identity")
                if encoding.lower() != "identity":
                    raise ImageFetchFailed(response.status_code, f"content-encoding: {encoding}")
                announced = response.headers.get("content-length")
                # The transport has checked that it is a number, and makes sure that the host keeps to it.
                yield FetchedImage(response.aiter_raw(), int(announced) if announced else None)
                return

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        await self._image_client.aclose()
        await self.client.aclose()
