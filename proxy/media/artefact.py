"""An image on its way from the upstream into the store: counted, hashed and checked while it is streamed. No I/O."""

import hashlib
from collections.abc import AsyncIterator

from proxy.media.formats import HEAD_BYTES, Format, NotAnImage, sniff
from proxy.media.proof import Proof

PIECE_BYTES = 64 * 1024
"""Maximum size of a piece. The first piece may be up to HEAD_BYTES longer."""


class Artefact:
    """Passes one image's chunks on, and checks that they are one whole image.

    Call `begin` first, then iterate once. A piece is given out only after the next one has passed the check, and the
    last one after all have passed. So the receiver never has all of a bad image. No piece is empty. Raises NotAnImage,
    and whatever `chunks` raises. Afterwards hash, size and sides are known.
    """

    def __init__(self, chunks: AsyncIterator[bytes], max_bytes: int, max_side_px: int) -> None:
        self._chunks = _pieces(chunks)
        self._max_bytes = max_bytes
        self._max_side_px = max_side_px
        self._hash = hashlib.sha256()
        self._proof: Proof | None = None
        self._held = b""
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes so far."""
        return self._hash.hexdigest()

    @property
    def width_px(self) -> int:
        """Width from the image's header; 0 until the header has been read."""
        return self._proof.width_px if self._proof else 0

    @property
    def height_px(self) -> int:
        """Height from the image's header; 0 until the header has been read."""
        return self._proof.height_px if self._proof else 0

    async def begin(self) -> Format:
        """Read and check as much as is needed to know the format."""
        head = bytearray()
        async for piece in self._chunks:
            head += piece
            if len(head) >= HEAD_BYTES:
                break
        kind = sniff(bytes(head[:HEAD_BYTES]))
        self._proof = Proof(kind, self._max_side_px)
        self._held = self._take(bytes(head))
        return kind

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self._proof is not None, "begin first"
        async for piece in self._chunks:
            held, self._held = self._held, self._take(piece)
            yield held
        self._proof.finish()
        yield self._held

    def _take(self, piece: bytes) -> bytes:
        self.size_bytes += len(piece)
        if self.size_bytes > self._max_bytes:
            raise NotAnImage(f"more than {self._max_bytes} bytes")
        self._hash.update(piece)
        assert self._proof is not None
        self._proof.feed(piece)
        return piece


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Split the same bytes into pieces: none is empty or longer than PIECE_BYTES."""
    async for chunk in chunks:
        for at in range(0, len(chunk), PIECE_BYTES):
            yield chunk[at : at + PIECE_BYTES]
