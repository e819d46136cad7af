"""An image on its way from the upstream into the store: counted, hashed and proven while it streams by. No I/O."""

import hashlib
from collections.abc import AsyncIterator

from proxy.media.formats import HEAD_BYTES, Format, NotAnImage, sniff


class Artefact:
    """Passes one image's chunks on, and proves on the way that they are one whole image.

    `begin` first, then iterate once. The last piece is given out only after the proof, so that what takes the pieces
    has never all of a bad image. Raises NotAnImage, and whatever `chunks` raises. Afterwards the facts are known.
    """

    def __init__(self, chunks: AsyncIterator[bytes], most_bytes: int) -> None:
        self._chunks = chunks
        self._most_bytes = most_bytes
        self._hash = hashlib.sha256()
        self._head = b""
        self.size_bytes = 0
        self.width_px = 0
        self.height_px = 0

    @property
    def sha256(self) -> str:
        """Hex digest of all bytes so far."""
        return self._hash.hexdigest()

    async def begin(self) -> Format:
        """Read as much as it takes to know the format."""
        async for chunk in self._chunks:
            self._head += chunk
            if len(self._head) >= HEAD_BYTES:
                break
        return sniff(self._head)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        held = self._take(self._head)
        self._head = b""
        async for chunk in self._chunks:
            yield held
            held = self._take(chunk)
        yield held

    def _take(self, chunk: bytes) -> bytes:
        self.size_bytes += len(chunk)
        if self.size_bytes > self._most_bytes:
            raise NotAnImage(f"more than {self._most_bytes} bytes")
        self._hash.update(chunk)
        return chunk
