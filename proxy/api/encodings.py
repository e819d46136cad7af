"""Compressed bodies, unpacked within the size limit of an uncompressed one. Pure."""

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
"""8 MiB, the maximum that a sender may require of everybody (RFC 9659). Only as much is used as the output needs."""

MAX_FRAMES = 16
"""Maximum consecutive frames in one body. Nobody writes an order in more, and each costs a new decoder."""


class TooLarge(Exception):
    """The output is larger than allowed; nothing beyond the limit was unpacked."""


class Damaged(Exception):
    """The body is not in the stated encoding, or is cut short."""


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
"""Decoders by the name in `Content-Encoding`: body and maximum output bytes. Each raises TooLarge or Damaged."""

ACCEPTED = "gzip, deflate, br, zstd"
"""List for clients, without `x-gzip`, the older name of gzip."""
