"""Compressed bodies: every way of a client to write them, and none that takes more than the bound."""

import tracemalloc
import zlib
from contextlib import suppress

import brotli
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxy.api.encodings import ACCEPTED, DECODERS, MAX_FRAMES, ZSTD_WINDOW_LOG, Damaged, TooLarge
from tests.kits.packing import PACK, zstd
from tests.long import examples

MOST = 64 * 1024


def streamed(body: bytes, level: int = 19) -> bytes:
    """zstd as a client writes it that does not know the length beforehand: the frame asks for a whole window."""
    packer = zstd.ZstdCompressor(level=level)
    return packer.compress(body) + packer.flush()


def test_what_is_told_is_what_is_taken() -> None:
    """But for the older name of gzip."""
    assert {*ACCEPTED.split(", "), "x-gzip"} == DECODERS.keys() == PACK.keys()


@pytest.mark.parametrize("encoding", DECODERS)
@pytest.mark.parametrize("body", [b"", b"{}", b'{"prompt": "x"}' * 100, b"x" * MOST, bytes(range(256)) * 256])
def test_a_body_comes_out_as_it_went_in(encoding: str, body: bytes) -> None:
    """Up to the very bound."""
    assert DECODERS[encoding](PACK[encoding](body), MOST) == body


@pytest.mark.parametrize("encoding", DECODERS)
@pytest.mark.parametrize("size", [MOST + 1, 300 * 1024 * 1024])
def test_a_bomb_is_not_unpacked_beyond_the_bound(encoding: str, size: int) -> None:
    """One byte too many, and three hundred megabytes in some kilobytes: not much more memory than the bound."""
    bomb = packed_zeros(encoding, size)
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            DECODERS[encoding](bomb, MOST)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 * MOST


def packed_zeros(encoding: str, size: int) -> bytes:
    """So many zeros, packed piece by piece."""
    piece = bytes(1024 * 1024)
    pieces = [piece] * (size // len(piece)) + [bytes(size % len(piece))]
    if encoding == "zstd":
        packer = zstd.ZstdCompressor()
        return b"".join(packer.compress(one) for one in pieces) + packer.flush()
    if encoding == "br":
        writer = brotli.Compressor(quality=1)
        return b"".join(writer.process(one) for one in pieces) + bytes(writer.finish())
    deflater = zlib.compressobj(9, wbits=15 if encoding == "deflate" else 31)
    return b"".join(deflater.compress(one) for one in pieces) + deflater.flush()


@pytest.mark.parametrize("encoding", DECODERS)
def test_what_breaks_off_or_goes_on_is_damaged(encoding: str) -> None:
    """Cut at any byte, followed by something else, or another encoding altogether."""
    whole = PACK[encoding](b'{"model": "fal/flux-1.1-pro", "prompt": "un faro"}')
    for end in range(len(whole)):
        with pytest.raises(Damaged):
            DECODERS[encoding](whole[:end], MOST)
    for wrong in (whole + b"x", b'{"prompt": "x"}', b"\x00" * 40):
        with pytest.raises((Damaged, TooLarge)):
            DECODERS[encoding](wrong, MOST)


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_several_members_are_one_body_and_a_thousand_are_none(encoding: str) -> None:
    """The limit holds for all of them together, and there is not a new decoder for every twenty bytes."""
    pack, unpack = PACK[encoding], DECODERS[encoding]
    assert unpack(pack(b"un ") + pack(b"faro"), MOST) == b"un faro"
    with pytest.raises(TooLarge):
        unpack(pack(b"x" * MOST) + pack(b"x"), MOST)
    with pytest.raises(Damaged):
        unpack(pack(b"x") * (MAX_FRAMES + 1), MOST)


def test_a_window_of_eight_megabytes_is_taken_and_a_larger_one_is_not() -> None:
    """Every recipient must accept it (RFC 9659); a frame of sixteen bytes may not ask for a gigabyte."""
    wide = {int(zstd.CompressionParameter.window_log): 27}
    assert ZSTD_WINDOW_LOG == 23
    assert DECODERS["zstd"](streamed(b"un faro"), MOST) == b"un faro"
    packer = zstd.ZstdCompressor(options=wide)
    with pytest.raises(Damaged):
        DECODERS["zstd"](packer.compress(b"un faro") + packer.flush(), MOST)


@settings(max_examples=examples(300), deadline=None, derandomize=True)
@given(st.sampled_from(sorted(DECODERS)), st.binary(max_size=200))
def test_noise_is_damaged_or_something_small(encoding: str, noise: bytes) -> None:
    """Nothing else comes out of it."""
    with suppress(Damaged, TooLarge):
        assert len(DECODERS[encoding](noise, 100)) <= 100
