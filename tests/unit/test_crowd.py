"""Refusals that are written before anything is parsed: the same answer as any other refusal, or none at all."""

import json

import pytest
from prometheus_client import REGISTRY

from proxy.api.crowd import Crowd
from proxy.orders.gate import LATEST_S, SOONEST_S, Gate

BODY = b'{"model":"fal/flux-1.1-pro","prompt":"x"}'


class Shut(Gate):
    """A gate that lets in only who was there before."""

    @property
    def is_refusing(self) -> bool:
        return True

    def refuses(self, here_since_s: float | None = None) -> bool:
        return here_since_s is None


def order(*headers: str, length: int = len(BODY), body: bytes = BODY) -> bytes:
    """The bytes of an order with more headers."""
    lines = ["POST /v1/images/generations HTTP/1.1", "Host: api.geekhub.mx", *headers, f"Content-Length: {length}"]
    return "\r\n".join([*lines, "Content-Type: application/json", "", ""]).encode() + body


def denied() -> float:
    """How many denials were counted."""
    return REGISTRY.get_sample_value("ghub_denials_total", {"reason": "crowded"}) or 0.0


def test_the_reply_is_whole_and_says_what_every_503_says() -> None:
    """Status, envelope, headers for the SDKs, an id; and the times differ, so that not all return at once."""
    waits, counted = set(), denied()
    for _ in range(50):
        reply = Crowd(Shut())(order(), None)
        assert reply is not None
        head, _, body = reply.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        error = json.loads(body)["error"]
        assert status.startswith("HTTP/1.1 503 ")
        assert int(headers["content-length"]) == len(body)
        assert headers["content-type"] == "application/json"
        assert headers["x-should-retry"] == "true"
        assert headers["content-language"] == "en" and headers["vary"] == "accept-language"
        assert (error["code"], error["type"]) == ("gateway_busy", "temporarily_unavailable")
        assert error["request_id"] == headers["x-request-id"]
        assert SOONEST_S * 1000 <= int(headers["retry-after-ms"]) <= LATEST_S * 1000
        assert "x-client-request-id" not in headers
        waits.add(headers["retry-after-ms"])
    assert len(waits) > 25
    assert denied() == counted + 50


@pytest.mark.parametrize(("sent", "returned"), [("trace-1", True), ("a" * 129, False), ("\xf1", False), ("", False)])
def test_a_clients_id_comes_back_if_it_is_one(sent: str, returned: bool) -> None:
    """By the rule of every other reply."""
    reply = Crowd(Shut())(order(f"X-Request-ID: {sent}"), None)
    assert reply is not None
    assert (f"x-client-request-id: {sent}\r\n".encode() in reply) is returned


@pytest.mark.parametrize(
    "request_",
    [
        order("Origin: https://shop.example"),
        order("accept-language: es"),
        order("Transfer-Encoding: chunked"),
        order("Expect: 100-continue"),
        order("Connection: close"),
        order(length=len(BODY) + 1),
        order() + order(),
        order()[:60],
        order().replace(b"POST", b"PUT"),
        order().replace(b"generations", b"edits"),
        order().replace(b"HTTP/1.1", b"HTTP/1.0"),
        b"GET /v1/credits HTTP/1.1\r\nhost: x\r\n\r\n",
        b"",
        b"\x00" * 100,
    ],
)
def test_what_is_unusual_takes_the_usual_way(request_: bytes) -> None:
    """Also what is incomplete, or more than one request."""
    assert Crowd(Shut())(request_, None) is None


def test_who_was_there_before_and_who_comes_to_an_open_gate_is_let_in() -> None:
    """Nothing is written for them."""
    assert Crowd(Shut())(order(), 1.0) is None
    assert Crowd(Gate())(order(), None) is None
    assert Crowd(Shut())(order("Connection: keep-alive"), None) is not None
