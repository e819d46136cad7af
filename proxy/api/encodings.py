"""Compressed bodies, unpacked within the bound of one that is not. Pure."""

import sys
import zlib
from collections.abc import Callable
from functools import partial
from typing import Protocol

import brotli

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZSTD_WINDOW_LOG = 23
"""8 MiB, the most that a sender may ask of everybody (RFC 9659); it is touched no further than what comes out."""

MAX_FRAMES = 16
"""Of one body, one after another. Nobody writes an order in more, and each costs a fresh decoder."""


class TooLarge(Exception):
    """More comes out than is allowed; no more of it was unpacked than that."""


class Damaged(Exception):
    """It is not what it is said to be, or breaks off."""


class _Frame(Protocol):
    """What zlib and zstd have in common: one member or frame of a body."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _by_frames(begin: Callable[[], _Frame], body: bytes, max_bytes: int) -> bytes:
    unpacked, rest = b"", body
    for _ in range(MAX_FRAMES):
        frame = begin()
        try:
            unpacked += frame.decompress(rest, max_bytes - len(unpacked) + 1)
        except (zlib.error, zstd.ZstdError) as error:
            raise Damaged from error
        if len(unpacked) > max_bytes:
            raise TooLarge
        if not frame.eof:
            raise Damaged
        rest = frame.unused_data
        if not rest:
            return unpacked
    raise Damaged


def _brotli(body: bytes, max_bytes: int) -> bytes:
    decoder = brotli.Decompressor()
    try:
        unpacked: bytes = decoder.process(body, output_buffer_limit=max_bytes + 1)
    except brotli.error as error:
        raise Damaged from error
    if len(unpacked) > max_bytes:
        raise TooLarge
    if not decoder.is_finished():
        raise Damaged
    return unpacked


def _zstd() -> _Frame:
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: ZSTD_WINDOW_LOG})


_gzip = partial(_by_frames, partial(zlib.decompressobj, wbits=16 + zlib.MAX_WBITS))

DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "br": _brotli,
    "deflate": partial(_by_frames, zlib.decompressobj),
    "gzip": _gzip,
    "x-gzip": _gzip,
    "zstd": partial(_by_frames, _zstd),
}
"""By the name in `Content-Encoding`: the body and the most bytes that may come out. Each raises TooLarge or Damaged."""

TOLD = "gzip, deflate, br, zstd"
"""As clients are told of them; `x-gzip` is the older name of gzip."""
