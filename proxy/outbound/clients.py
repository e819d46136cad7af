"""The clients: one for upstreams and their image hosts, one for the store. Each has connections of its own."""

import contextlib
import http.cookiejar
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

import aiohttp
import aiohttp.abc
import httpx2

from config.settings import STORE_ANSWER_S, STORE_CONNECT_S, STORE_WRITE_S
from proxy.outbound.hosts import ImageHosts, PublicResolver
from proxy.outbound.transport import KEEP_ALIVE_S, AiohttpTransport, default_trust

CONNECT_TIMEOUT_S = 5.0  # name, TCP and TLS together; a healthy provider takes well under one second
READ_TIMEOUT_S = 60.0  # between two reads; the deadline of a generation ends a silent call before this does
WRITE_TIMEOUT_S = 10.0  # for one chunk of a request body; a peer that reads takes milliseconds
MAX_REDIRECTS = 3  # image hosts redirect once, to their CDN, if at all
USER_AGENT = "geekhub-gateway/0.1"

_REDIRECTS = frozenset({301, 302, 303, 307, 308})


class ImageFetchFailed(Exception):
    """The image host did not answer with the plain image."""

    def __init__(self, status: int, detail: str = "") -> None:
        super().__init__(f"{self.__doc__} Status {status}. {detail}".rstrip())
        self.status = status


@dataclass(frozen=True)
class FetchedImage:
    """An image's bytes in chunks of at most `CHUNK_BYTES`, to be read once, and how many the host announced."""

    chunks: AsyncIterator[bytes]
    size_bytes: int | None


def _client(transport: AiohttpTransport, timeout: httpx2.Timeout) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(
        transport=transport,
        timeout=timeout,
        headers={"user-agent": USER_AGENT},
        cookies=http.cookiejar.CookieJar(http.cookiejar.DefaultCookiePolicy(allowed_domains=())),
        trust_env=False,
    )


def store_client(
    *,
    connect_timeout_s: float = STORE_CONNECT_S,
    write_timeout_s: float = STORE_WRITE_S,
    answer_timeout_s: float = STORE_ANSWER_S,
    verify: ssl.SSLContext | None = None,
) -> httpx2.AsyncClient:
    """A client for the image store, with connections of its own; to be made inside the running event loop.

    `answer_timeout_s` runs from a request's last byte to the answer, and between two reads of it.
    """
    timeout = httpx2.Timeout(connect=connect_timeout_s, read=answer_timeout_s, write=write_timeout_s, pool=None)
    return _client(AiohttpTransport(verify=verify), timeout)


class Outbound:
    """Every call to an upstream and its image hosts; to be made inside the running event loop, closed with `aclose`.

    Time-outs and `keep_alive_s` are in seconds. `client` keeps no cookies, follows no redirects and reads
    nothing from the environment but the TLS trust.
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
        resolver: aiohttp.abc.AbstractResolver | None = None,
    ) -> None:
        verify = verify or default_trust()
        resolver = resolver or aiohttp.ThreadedResolver()
        timeout = httpx2.Timeout(connect=connect_timeout_s, read=read_timeout_s, write=write_timeout_s, pool=None)

        def client(resolver: aiohttp.abc.AbstractResolver) -> httpx2.AsyncClient:
            return _client(AiohttpTransport(verify=verify, resolver=resolver, keep_alive_s=keep_alive_s), timeout)

        self.client = client(resolver)
        self._image_hosts = image_hosts
        self._image_client = client(PublicResolver(image_hosts, resolver))

    @contextlib.asynccontextmanager
    async def fetch_image(self, url: str) -> AsyncGenerator[FetchedImage]:
        """GET a result from an image host, without credentials, over at most `MAX_REDIRECTS` redirects.

        The bytes come as they are sent: the caller counts them, and stops when there are too many. Raises
        HostNotAllowed, for a redirect too; ImageFetchFailed for any status but 200 and for an encoded image;
        and httpx2.TransportError.
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
                # The transport has seen to it that it is a number, and holds the host to it.
                yield FetchedImage(response.aiter_raw(), int(announced) if announced else None)
                return

    async def aclose(self) -> None:
        """Close every connection, also those in use."""
        await self._image_client.aclose()
        await self.client.aclose()
