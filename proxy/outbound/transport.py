"""httpx2's transport over aiohttp's connections.

An image call is held open for many seconds, so hundreds are in flight at once, and the cost of one must not
grow with the others: aiohttp's connector finds a connection in constant time. The error classes decide whether
an image may be bought again: only `ConnectError` and `ConnectTimeout` say that the peer has seen nothing.
"""

import asyncio
import os
import select
import ssl
import weakref
from collections.abc import AsyncIterator

import aiohttp
import aiohttp.abc
import aiohttp.connector
import aiohttp.http
import aiohttp.payload
import aiohttp.tracing
import httpx2
import yarl

KEEP_ALIVE_S = 4.0  # idle; below the 5 s after which the most impatient common servers close
CHUNK_BYTES = 64 * 1024  # what moves at once, both ways; aiohttp stops reading at twice this

_SCHEMES = ("http", "https")
_AUTOMATIC_HEADERS = ("accept", "accept-encoding", "content-type", "user-agent")

# {theirs: ours}; the first class that fits counts. What is not certain to have happened before the first byte
# was sent must never become a connect error.
_OURS: dict[type[Exception], type[httpx2.TransportError]] = {
    aiohttp.ConnectionTimeoutError: httpx2.ConnectTimeout,
    aiohttp.ServerTimeoutError: httpx2.ReadTimeout,
    aiohttp.ClientConnectorError: httpx2.ConnectError,  # DNS and TLS verification too
    aiohttp.ServerDisconnectedError: httpx2.RemoteProtocolError,
    aiohttp.ClientOSError: httpx2.ReadError,
    aiohttp.ClientPayloadError: httpx2.RemoteProtocolError,
    aiohttp.ClientResponseError: httpx2.RemoteProtocolError,
    ValueError: httpx2.LocalProtocolError,  # a URL or header that cannot be sent
    aiohttp.ClientError: httpx2.ReadError,
}


_WORDS: dict[type[httpx2.HTTPError], str] = {
    httpx2.ConnectTimeout: "no connection in time",
    httpx2.ReadTimeout: "no answer in time",
    httpx2.WriteTimeout: "it stopped reading",
    httpx2.RemoteProtocolError: "the answer was cut short, or is no HTTP",
    httpx2.ReadError: "the connection was reset",
}


def cause_of(error: httpx2.HTTPError) -> str:
    """What went wrong with a call, in words for a log, and the class of its error."""
    return f"{_words(error, error.__cause__)} ({type(error).__name__})"


def _words(error: httpx2.HTTPError, cause: BaseException | None) -> str:
    match cause:
        case aiohttp.ClientConnectorDNSError():
            return "its host's name is not known"
        case aiohttp.ClientConnectorCertificateError():
            return "its TLS certificate is not trusted"
        case aiohttp.ClientConnectorSSLError():
            return "TLS failed"
        case aiohttp.ClientConnectorError():
            number = cause.os_error.errno  # none where several addresses were tried
            return os.strerror(number).lower() if number else "no connection"
    return next((words for kind, words in _WORDS.items() if isinstance(error, kind)), "the call failed")


def _translated(error: Exception) -> httpx2.TransportError:
    return next(ours for theirs, ours in _OURS.items() if isinstance(error, theirs))(str(error))


async def _translate(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Raise our errors below aiohttp's own retry of idempotent methods, which thus never sees one to retry.

    It would not send a POST again, but a PUT or a GET.
    """
    try:
        return await handler(request)
    except tuple(_OURS) as error:
        raise _translated(error) from error


class _Connector(aiohttp.TCPConnector):
    """Keeps a request off a kept connection whose peer has already spoken or closed.

    aiohttp drops a connection whose close the loop has read. Here the socket itself is asked too, so that a busy loop
    is no reason to fail, and a late `408` is not taken for the answer to the next request. Nothing was sent on such a
    connection, so the next one is safe to use. What remains is a close that crosses the request on the wire: that
    surfaces as RemoteProtocolError or ReadError, and nothing is sent again.
    """

    def __init__(self, verify: ssl.SSLContext, resolver: aiohttp.abc.AbstractResolver, keep_alive_s: float) -> None:
        super().__init__(limit=0, ssl=verify, resolver=resolver, keepalive_timeout=keep_alive_s)
        # A new TLS connection may have session tickets to read: only one that has been used must be silent.
        self._used: weakref.WeakSet[asyncio.BaseProtocol] = weakref.WeakSet()

    async def connect(
        self, req: aiohttp.ClientRequest, traces: list[aiohttp.tracing.Trace], timeout: aiohttp.ClientTimeout
    ) -> aiohttp.connector.Connection:
        while True:
            connection = await super().connect(req, traces, timeout)
            protocol = connection.protocol
            assert protocol is not None
            if protocol not in self._used:
                self._used.add(protocol)
                return connection
            if not protocol.should_close and not _has_input(protocol.transport):
                return connection
            connection.close()


def _has_input(transport: asyncio.BaseTransport | None) -> bool:
    assert transport is not None
    poller = select.poll()
    poller.register(transport.get_extra_info("socket"), select.POLLIN)
    return bool(poller.poll(0))


class _Body(aiohttp.payload.Payload):
    """A request body whose every chunk must leave within the write time-out: aiohttp has none of its own."""

    def __init__(self, stream: httpx2.AsyncByteStream, write_timeout_s: float | None) -> None:
        super().__init__(stream)
        self._stream = stream
        self._write_timeout_s = write_timeout_s
        self._transport: asyncio.WriteTransport | None = None
        self.failure: Exception | None = None  # aiohttp wraps what is raised here; the caller gets it as it was

    def abort(self) -> None:
        """Drop the connection, and what is buffered with it: a peer that has stopped reading would keep both for good,
        as closing waits for it to take the rest."""
        if self._transport is not None:
            self._transport.abort()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        raise TypeError("a streamed body has no text")

    async def write(self, writer: aiohttp.abc.AbstractStreamWriter) -> None:
        await self.write_with_length(writer, None)

    async def write_with_length(self, writer: aiohttp.abc.AbstractStreamWriter, content_length: int | None) -> None:
        assert isinstance(writer, aiohttp.http.StreamWriter)
        self._transport = writer.transport
        try:
            async for piece in self._pieces(content_length):
                await self._write(writer, piece)
        except BaseException:
            self.abort()
            raise

    async def _write(self, writer: aiohttp.abc.AbstractStreamWriter, piece: memoryview) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await writer.write(piece)
                await writer.drain()
        except TimeoutError:
            self.failure = httpx2.WriteTimeout("the peer does not read the request body")
            raise self.failure from None

    async def _pieces(self, content_length: int | None) -> AsyncIterator[memoryview]:
        size = 0
        try:
            async for chunk in self._stream:
                size += len(chunk)
                if content_length is not None and size > content_length:
                    raise httpx2.LocalProtocolError("the body is longer than its content-length")
                for start in range(0, len(chunk), CHUNK_BYTES):
                    yield memoryview(chunk)[start : start + CHUNK_BYTES]
            if content_length is not None and size < content_length:
                raise httpx2.LocalProtocolError("the body is shorter than its content-length")
        except Exception as error:
            self.failure = error
            raise


class _ResponseStream(httpx2.AsyncByteStream):
    """A response body in chunks of at most `CHUNK_BYTES`.

    aiohttp puts the connection back by itself when the body's end arrives; before that, closing closes it.
    """

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self._protocol = response.connection.protocol if response.connection else None
        self._lost = self._protocol.closed if self._protocol is not None else None
        if self._lost is not None:
            self._lost.add_done_callback(self._cut_off)
        headers = response.headers
        self._ends_by_close = "content-length" not in headers and "transfer-encoding" not in headers

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            while chunk := await self._response.content.read(CHUNK_BYTES):
                yield chunk
            if self._ends_by_close and (reset := self._reset()):
                raise reset
        except aiohttp.ClientPayloadError as error:
            raise _translated(self._reset() or error) from error
        except tuple(_OURS) as error:
            raise _translated(error) from error
        except RuntimeError as error:
            if self._lost is None or not self._lost.done():
                raise
            raise httpx2.RemoteProtocolError(str(error)) from error  # `_cut_off` is about to say so too

    def _reset(self) -> aiohttp.ClientOSError | None:
        """How the connection was lost, which a payload error does not tell; None after an orderly close."""
        error = None if self._protocol is None else self._protocol.exception()
        return error if isinstance(error, aiohttp.ClientOSError) else None

    def _cut_off(self, lost: asyncio.Future[None]) -> None:
        """aiohttp closes a connection whose body is no HTTP any more, and leaves who reads that body waiting."""
        content = self._response.content
        if not content.is_eof() and content.exception() is None:
            content.set_exception(aiohttp.ClientPayloadError("the body is no HTTP any more"))
        if not lost.cancelled():
            lost.exception()  # seen: asyncio would log it

    async def aclose(self) -> None:
        if self._lost is not None:
            self._lost.remove_done_callback(self._cut_off)
        self._response.close()


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """httpx2's transport over aiohttp; to be made inside the running event loop.

    `verify` is the TLS trust: by default the system's store, or the file that `SSL_CERT_FILE` names. Time-outs,
    in seconds, are those of each request; connections are not limited, so `pool` has no meaning.

    Raises httpx2's errors: `ConnectError` (refused, no such name, TLS not verified) and `ConnectTimeout` when
    nothing of the request was sent; `RemoteProtocolError` (closed without an answer, cut short, not HTTP),
    `ReadError` (reset), `ReadTimeout` and `WriteTimeout` when it is not known what the peer did. Never sends
    a request twice. What the caller's own body raises reaches the caller unchanged.
    """

    def __init__(
        self,
        *,
        verify: ssl.SSLContext | None = None,
        resolver: aiohttp.abc.AbstractResolver | None = None,
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        self._session = aiohttp.ClientSession(
            connector=_Connector(verify or default_trust(), resolver or aiohttp.ThreadedResolver(), keep_alive_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            skip_auto_headers=_AUTOMATIC_HEADERS,
            auto_decompress=False,
            read_bufsize=CHUNK_BYTES,
            middlewares=(_translate,),
        )
        self._responses: weakref.WeakSet[aiohttp.ClientResponse] = weakref.WeakSet()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.scheme not in _SCHEMES:
            raise httpx2.UnsupportedProtocol(f"not http or https: {request.url.scheme!r}")
        timeout_s: dict[str, float | None] = request.extensions.get("timeout", {})
        body = _body_of(request, timeout_s.get("write"))
        try:
            response = await self._session.request(
                request.method,
                _target(request.url),
                headers=_headers(request),
                data=body,
                timeout=aiohttp.ClientTimeout(connect=timeout_s.get("connect"), sock_read=timeout_s.get("read")),
                allow_redirects=False,
            )
        except BaseException as error:
            if body:
                body.abort()
            if not isinstance(error, Exception):
                raise
            if body and body.failure:
                raise body.failure from error
            if isinstance(error, tuple(_OURS)):
                raise _translated(error) from error
            raise
        self._responses.add(response)
        reason = (response.reason or "").encode(errors="surrogateescape")
        return httpx2.Response(
            response.status,
            headers=list(response.raw_headers),
            stream=_ResponseStream(response),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": reason},
        )

    async def aclose(self) -> None:
        for response in list(self._responses):
            response.close()  # the connector would close the socket and leave who waits for the body waiting
        await self._session.close()


def default_trust() -> ssl.SSLContext:
    """The system's store, or the file that `SSL_CERT_FILE` names; HTTP/1.1 only."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


def _target(url: httpx2.URL) -> yarl.URL:
    """The same URL, from parts: what was checked as httpx2 read it is not to be read a second way."""
    path, _, query = url.raw_path.decode("ascii").partition("?")
    return yarl.URL.build(
        scheme=url.scheme, authority=url.netloc.decode("ascii"), path=path, query_string=query, encoded=True
    )


def _headers(request: httpx2.Request) -> list[tuple[str, str]]:
    return [
        (name.decode("ascii"), value.decode())
        for name, value in request.headers.raw
        if name.lower() != b"transfer-encoding"  # aiohttp writes its own, decided by the body
    ]


def _body_of(request: httpx2.Request, write_timeout_s: float | None) -> _Body | None:
    if "transfer-encoding" not in request.headers and request.headers.get("content-length", "0") == "0":
        return None
    assert isinstance(request.stream, httpx2.AsyncByteStream)
    return _Body(request.stream, write_timeout_s)
