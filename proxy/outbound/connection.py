"""One HTTP/1.1 connection to a server: one request at a time, and its answer in pieces as they arrive."""

import asyncio
import select
import ssl
from collections import deque
from collections.abc import AsyncIterable, Sequence
from typing import cast

import httptools
import httpx2

CHUNK_BYTES = 64 * 1024
"""Maximum size of a piece, both ways. More of an answer is not read before somebody takes it."""

READ_BYTES = 128 * 1024
"""Maximum bytes of one read. They are read into one buffer of the process, and copied out of it at once, in pieces."""

HEAD_BYTES = 64 * 1024
"""Maximum size of an answer's head, and of the trailer after its body. Real heads have one or two KiB."""

Headers = list[tuple[bytes, bytes]]


class Connection(asyncio.BufferedProtocol):
    """A connection. Its owner calls `send`, then `head`, then `read` until it returns no bytes.

    Timeouts are in seconds; None means no timeout. Raises httpx2's errors: `RemoteProtocolError` (closed without an
    answer, cut short, not HTTP), `ReadError` (reset), `ReadTimeout`, `WriteTimeout`, `LocalProtocolError`.
    """

    __slots__ = (
        "_answered",
        "_body",
        "_body_bytes",
        "_buffer",
        "_done",
        "_ends_by_close",
        "_error",
        "_head_bytes",
        "_is_full",
        "_is_kept",
        "_left_bytes",
        "_loop",
        "_parser",
        "_paused",
        "_raw",
        "_sending",
        "_silent",
        "_waiter",
        "_without_body",
        "headers",
        "is_lost",
        "reason",
        "status",
        "transport",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, buffer: memoryview) -> None:
        """`buffer` is for reads, and may be shared with other connections of the loop: nothing stays in it."""
        self._loop = loop
        self._buffer = buffer
        self.transport: asyncio.Transport
        self._raw: asyncio.Transport  # the same, or under TLS what carries it
        self.is_lost = False
        self._is_full = False  # more is unsent than the transport's own limit
        self._is_kept = True  # by the peer, after this answer
        self._waiter: asyncio.Future[None] | None = None
        self._silent = True  # the peer has said nothing that belongs to no answer
        self._sending = self._paused = False
        self._error: httpx2.TransportError | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._without_body = False
        self._body: deque[bytes] = deque()
        self._left_bytes: int | None = None  # of a body whose length is known
        self._begin_answer()
        self._done = True

    # --- for its owner ---

    @property
    def is_reusable(self) -> bool:
        """True if the whole answer was read from the network, and the next request may be sent."""
        return (
            self._done
            and self._silent
            and not self._sending
            and not self._paused
            and not self.is_lost
            and not self.transport.is_closing()
            and self._is_kept
        )

    @property
    def has_input(self) -> bool:
        """True if the socket has something to read, which the loop may not have read yet."""
        poller = select.poll()
        poller.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poller.poll(0))

    async def send(self, head: bytes, body: bytes | AsyncIterable[bytes], method: str, timeout_s: float | None) -> None:
        """Send a request. An answer that comes before its end ends the sending.

        A streamed body is sent as the head announces: with `content-length`, or in HTTP's chunks. An error of the
        body's own is raised unchanged. `timeout_s` is for each piece.
        """
        if self.is_lost:
            raise httpx2.RemoteProtocolError("the connection was closed before the request")
        self._parser = httptools.HttpResponseParser(self)
        self._without_body = method == "HEAD"
        self._begin_answer()
        self._sending = True
        if isinstance(body, bytes):
            await self._write(head + body if len(body) <= CHUNK_BYTES else head, timeout_s)
            if len(body) > CHUNK_BYTES:
                for at in range(0, len(body), CHUNK_BYTES):
                    if self._answered:
                        return
                    await self._write(body[at : at + CHUNK_BYTES], timeout_s)
        else:
            self.transport.write(head)
            if not await self._send_pieces(body, _announced(head), timeout_s):
                return
        self._sending = False

    async def head(self, timeout_s: float | None) -> None:
        """Wait for `status`, `reason` and `headers` of the answer."""
        while not self._answered:
            await self._wait(timeout_s, httpx2.ReadTimeout)

    async def read(self, timeout_s: float | None) -> bytes:
        """Read the next piece of the answer's body; none after its end."""
        while not self._body:
            if self._done:
                return b""
            await self._wait(timeout_s, httpx2.ReadTimeout)
        piece = self._body.popleft()
        self._body_bytes -= len(piece)
        if self._paused and not self._body_bytes:
            self._paused = False
            if not self.transport.is_closing():
                self._raw.resume_reading()
        return piece

    def drop(self, error: httpx2.TransportError | None = None) -> None:
        """Close it at once; whoever waits for it gets the error."""
        self._fail(error or httpx2.ReadError("the connection was dropped"))
        self.transport.abort()

    # --- events ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._raw = cast(asyncio.Transport, transport)
        self._use(self._raw)

    async def begin_tls(self, context: ssl.SSLContext, name: str) -> None:
        """Go on over TLS. Raises OSError.

        Reading is paused below it: what TLS has deciphered and not given out yet would be lost if the peer closes.
        """
        try:
            secured = await self._loop.start_tls(self._raw, self, context, server_hostname=name)
        except BaseException as error:
            self._raw.abort()
            if isinstance(error, OSError) and not self._silent:
                raise ssl.SSLError("the peer spoke first, and not TLS") from error
            raise
        assert secured is not None, "only a transport that is closing has none"
        self._use(secured)

    def _use(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.transport.set_write_buffer_limits(high=CHUNK_BYTES)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where the next bytes are read into."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Handle a piece of the answer."""
        data = self._buffer[:nbytes]
        if self._done:
            self._silent = False
        elif self._left_bytes is not None:
            if len(data) > self._left_bytes:
                self._silent = False
                data = data[: self._left_bytes]
            self._take(data)
        else:
            self._parse(data)
        self._wake()

    def eof_received(self) -> bool:
        return False  # then the transport closes, and `connection_lost` follows

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        if exc is None and self._answered and self._ends_by_close and self._error is None:
            self._done = True
        elif isinstance(exc, OSError):
            self._fail(httpx2.ReadError(str(exc)))
        else:
            self._fail(httpx2.RemoteProtocolError("the connection was closed before the answer's end"))
        self._wake()

    def pause_writing(self) -> None:
        self._is_full = True

    def resume_writing(self) -> None:
        self._is_full = False
        self._wake()

    # --- the answer, by the parser ---

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._answered:  # a trailer is dropped
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self.status = self._parser.get_status_code()
        if self.status < 200:
            if self.status == 101:
                raise ValueError("another protocol, which nobody asked for")
            self._begin_answer()
            return
        self._answered = True
        self._is_kept = self._parser.should_keep_alive()  # the parser knows it only now
        self._head_bytes = 0
        names = {name.lower(): value for name, value in self.headers}
        if self._without_body:
            self._done = True
        elif b"transfer-encoding" not in names and b"content-length" in names:
            self._left_bytes = int(names[b"content-length"])
        else:
            self._ends_by_close = b"chunked" not in names.get(b"transfer-encoding", b"").lower()

    def on_body(self, data: bytes) -> None:
        if self._done:
            self._silent = False
            return
        self._head_bytes = 0
        self._take(data)

    def on_message_complete(self) -> None:
        if self._answered:
            self._done = True

    # --- its parts ---

    def _begin_answer(self) -> None:
        self._body.clear()  # what nobody wanted of the answer before
        self._body_bytes = 0
        self.status = 0
        self.reason = b""
        self.headers: Headers = []
        self._answered = self._done = self._ends_by_close = False
        self._head_bytes = 0
        self._left_bytes = None

    def _parse(self, data: memoryview) -> None:
        assert self._parser is not None
        self._head_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._done:  # what follows the answer
                self._silent = False
                return
            self._fail(httpx2.RemoteProtocolError(str(error.__context__ or error)))
            self.transport.abort()
            return
        if self._head_bytes > HEAD_BYTES and not self._done:
            self.drop(httpx2.RemoteProtocolError(f"a head of more than {HEAD_BYTES} bytes"))

    def _take(self, data: bytes | memoryview) -> None:
        if self._left_bytes is not None:
            self._left_bytes -= len(data)
            self._done = not self._left_bytes
        self._body.extend(bytes(data[at : at + CHUNK_BYTES]) for at in range(0, len(data), CHUNK_BYTES))
        self._body_bytes += len(data)
        if self._body_bytes > CHUNK_BYTES and not (self._paused or self._done or self.transport.is_closing()):
            self._paused = True
            self._raw.pause_reading()

    def _fail(self, error: httpx2.TransportError) -> None:
        if not self._done and self._error is None:
            self._error = error
        self._wake()

    async def _send_pieces(self, body: AsyncIterable[bytes], length: int | None, timeout_s: float | None) -> bool:
        """Send a streamed body; False if the answer came before its end."""
        sent = 0
        async for chunk in body:
            sent += len(chunk)
            if length is not None and sent > length:
                raise httpx2.LocalProtocolError("the body is longer than its content-length")
            for at in range(0, len(chunk), CHUNK_BYTES):
                if self._answered:
                    return False
                piece = chunk[at : at + CHUNK_BYTES]
                framed = [piece] if length is not None else [b"%x\r\n" % len(piece), piece, b"\r\n"]
                await self._write(framed, timeout_s)
        if length is not None and sent < length:
            raise httpx2.LocalProtocolError("the body is shorter than its content-length")
        if length is None:
            if self._answered:
                return False
            await self._write([b"0\r\n\r\n"], timeout_s)
        return True

    async def _write(self, data: bytes | Sequence[bytes], timeout_s: float | None) -> None:
        if self.is_lost:
            await self._wait(timeout_s, httpx2.WriteTimeout)  # it raises what the connection was lost by
        if isinstance(data, bytes):
            self.transport.write(data)
        else:
            self.transport.writelines(data)
        while self._is_full and not self._answered:
            await self._wait(timeout_s, httpx2.WriteTimeout)

    async def _wait(self, timeout_s: float | None, late: type[httpx2.TransportError]) -> None:
        """Wait until something has happened. Raises what ended the answer."""
        if self._error is not None:
            raise self._error
        waiter = self._waiter = self._loop.create_future()
        timer = None if timeout_s is None else self._loop.call_later(timeout_s, self._expire, waiter, late)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def _expire(self, waiter: asyncio.Future[None], late: type[httpx2.TransportError]) -> None:
        if not waiter.done():
            waiter.set_exception(late("the peer does not read" if late is httpx2.WriteTimeout else "no answer in time"))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _announced(head: bytes) -> int | None:
    """Read the length that the request's head announces; None if it is sent in chunks."""
    _, found, rest = head.lower().partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else None
