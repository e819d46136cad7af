"""Limits for free replies being sent: an unread one uses memory until it is cut off."""

from collections import Counter

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from proxy.errors import ApiError, Kind
from proxy.messages import Text

AGAIN_S = 1.0
"""A hint: a client that reads takes megabytes in less."""


class Sending:
    """Sends at most `most` replies to one recipient at a time; above that the error has `message`."""

    def __init__(self, most: int, message: Text) -> None:
        self._most = most
        self._message = message
        self._sent: Counter[str] = Counter()

    def bounded(self, recipient: str, reply: Response) -> Response:
        """Count the reply while it is being sent. Raises ApiError 429 if it is one too many."""
        if self._sent[recipient] >= self._most:
            raise ApiError(Kind.RATE_LIMIT, self._message.of(most=self._most), retry_after_s=AGAIN_S)
        return _Counted(self._sent, recipient, reply)


class _Counted(Response):
    def __init__(self, sent: Counter[str], recipient: str, reply: Response) -> None:
        super().__init__()
        self._sent = sent
        self._recipient = recipient
        self._reply = reply

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._sent[self._recipient] += 1
        try:
            await self._reply(scope, receive, send)
        finally:
            self._sent[self._recipient] -= 1
            if not self._sent[self._recipient]:
                del self._sent[self._recipient]
