"""httpx2's transport over our own connections.

An image call is held open for many seconds, so thousands are in flight at once, and the cost of one must not grow with
the others. The error classes decide whether an image may be bought again: only `ConnectError` and `ConnectTimeout` mean
that the peer has seen nothing.
"""

import os
import socket
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Mapping

import httpx2

from proxy.outbound.connection import Connection
from proxy.outbound.pool import Origin, Pool, Resolve, resolve

KEEP_ALIVE_S = 4.0  # idle; below the 5 s after which some common servers close

_PORTS = {"http": 80, "https": 443}

_WORDS: dict[type[httpx2.HTTPError], str] = {
    httpx2.ConnectTimeout: "no connection in time",
    httpx2.ConnectError: "no connection",
    httpx2.ReadTimeout: "no answer in time",
    httpx2.WriteTimeout: "it stopped reading",
    httpx2.RemoteProtocolError: "the answer was cut short, or is no HTTP",
    httpx2.ReadError: "the connection was reset",
}


def cause_of(error: httpx2.HTTPError) -> str:
    """Describe what went wrong with a call, in words for a log, with the class of its error."""
    return f"{_words(error, error.__cause__)} ({type(error).__name__})"


def _words(error: httpx2.HTTPError, cause: BaseException | None) -> str:
    match cause:
        case socket.gaierror():
            return "its host's name is not known"
        case ssl.SSLCertVerificationError():
            return "its TLS certificate is not trusted"
        case ssl.SSLError():
            return "TLS failed"
        case OSError(errno=int(number)) if isinstance(error, httpx2.ConnectError):
            return os.strerror(number).lower()
    return next((words for kind, words in _WORDS.items() if isinstance(error, kind)), "the call failed")


class _Answer(httpx2.AsyncByteStream):
    """An answer's body, in pieces of at most `CHUNK_BYTES`. Closing it before its end closes the connection."""

    def __init__(self, pool: Pool, origin: Origin, connection: Connection, timeout_s: float | None) -> None:
        self._pool = pool
        self._origin = origin
        self._connection: Connection | None = connection
        self._timeout_s = timeout_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._connection is not None and (piece := await self._connection.read(self._timeout_s)):
            yield piece

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._pool.give_back(self._origin, connection)


class Transport(httpx2.AsyncBaseTransport):
    """httpx2's transport. Create it inside the running event loop.

    `verify` is the TLS trust: by default the system's store, or the file that `SSL_CERT_FILE` names. Timeouts, in
    seconds, are those of each request. Connections are not limited, so `pool` has no meaning.
    Raises httpx2's errors. `ConnectError` (refused, no such name, TLS not verified) and `ConnectTimeout`: nothing of
    the request was sent. `RemoteProtocolError` (closed without an answer, cut short, not HTTP), `ReadError` (reset),
    `ReadTimeout` and `WriteTimeout`: it is not known what the peer did. It never sends a request twice. An error from
    the caller's own body reaches the caller unchanged.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | None = None,
        resolve: Resolve = resolve,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._pool = Pool(verify or default_trust(), resolve, keep_alive_s)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        url = request.url
        stream = request.stream
        assert isinstance(stream, httpx2.AsyncByteStream)
        lines = [b"%s %s HTTP/1.1" % (request.method.encode("ascii"), url.raw_path)]
        lines += [b"%s: %s" % header for header in request.headers.raw]
        return await self.call(
            request.method,
            origin_of(url),
            lines,
            b"".join(stream) if isinstance(stream, httpx2.ByteStream) else stream,
            request.extensions.get("timeout", {}),
        )

    async def call(
        self,
        method: str,
        origin: Origin,
        lines: list[bytes],
        body: bytes | AsyncIterable[bytes],
        timeout_s: Mapping[str, float | None],
    ) -> httpx2.Response:
        """Make a call. `lines` are those of the request's head; a streamed body is sent as they say.

        `timeout_s` has `connect`, `read` and `write`; one that is missing is none.
        """
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) - 1 or head.count(b"\r") != len(lines) - 1 or b"\0" in head:
            raise httpx2.LocalProtocolError("a line break or a zero in a header")
        connection = await self._pool.take(origin, timeout_s.get("connect"))
        try:
            await connection.send(head + b"\r\n\r\n", body, method, timeout_s.get("write"))
            await connection.head(timeout_s.get("read"))
        except BaseException:
            connection.drop()
            self._pool.give_back(origin, connection)
            raise
        return httpx2.Response(
            connection.status,
            headers=connection.headers,
            stream=_Answer(self._pool, origin, connection, timeout_s.get("read")),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": connection.reason},
        )

    async def aclose(self) -> None:
        self._pool.close()


def default_trust() -> ssl.SSLContext:
    """Load the system's store, or the file that `SSL_CERT_FILE` names; HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def origin_of(url: httpx2.URL) -> Origin:
    """Find the server of a URL. Raises UnsupportedProtocol."""
    if url.scheme not in _PORTS:
        raise httpx2.UnsupportedProtocol(f"not http or https: {url.scheme!r}")
    return Origin(url.scheme, url.raw_host.decode("ascii"), url.port or _PORTS[url.scheme])
