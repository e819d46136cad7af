"""Orders that the gate refuses, answered from their first bytes: a refusal must cost little, so nothing is parsed."""

import re
from uuid import uuid4

from proxy.api.images import PATH
from proxy.api.middleware import REQUESTS, is_request_id
from proxy.orders.denials import DENIALS
from proxy.orders.gate import Gate, crowded
from proxy.orders.result import public_id

_BEGIN = f"POST {PATH} HTTP/1.1\r\n".encode()
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]{1,6}) *\r\n", re.IGNORECASE)
_THEIR_ID = re.compile(rb"\r\nx-request-id: *([^\r]*?) *\r\n", re.IGNORECASE)
_UNUSUAL = re.compile(
    rb"\r\n(?:origin:|accept-language:|transfer-encoding:|expect:|upgrade:|connection:(?! *keep-alive *\r))",
    re.IGNORECASE,
)
"""Headers that change the answer, or its end: such an order takes the usual way, and is refused there."""


class Crowd:
    """The first look at a request, for `Connections`."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __call__(self, request: bytes, here_since_s: float | None) -> bytes | None:
        """Write the whole reply to an order that is refused; None if it takes the usual way.

        `here_since_s`: when its client connected, if this is its first request.
        """
        if not self._gate.is_refusing or not request.startswith(_BEGIN):
            return None
        head, end, body = request.partition(b"\r\n\r\n")
        head += b"\r\n"
        length = _LENGTH.search(head)
        if not end or length is None or int(length[1]) != len(body) or _UNUSUAL.search(head):
            return None
        return self._reply(_THEIR_ID.search(head)) if self._gate.refuses(here_since_s) else None

    def _reply(self, their_id: re.Match[bytes] | None) -> bytes:
        error, request_id = crowded(), public_id(str(uuid4()))
        body = error.body(request_id)
        headers = {
            **error.reply_headers(),
            "content-type": "application/json",
            "content-length": str(len(body)),
            "x-request-id": request_id,
        }
        if their_id is not None and is_request_id(sent := their_id[1].decode("latin-1")):
            headers["x-client-request-id"] = sent
        status = error.kind.value.status
        REQUESTS.labels(PATH, str(status)).inc()
        DENIALS.labels(error.reason).inc()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        return f"HTTP/1.1 {status} \r\n{lines}\r\n".encode() + body
