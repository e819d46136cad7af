"""A receiver of metering events as a process of its own: it speaks each profile's wire, and misbehaves as it is told.

`python -S receiver.py PROFILE PORT FOLDER`. What it takes is appended to FOLDER/taken before it answers, so that it
survives a kill; FOLDER/mode says what it does next. It knows nothing of ours.
"""

import json
import os
import socket
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

TOKEN = "s3cret-of-the-receiver"
ORG_TO_CUSTOMER = "cus_"


class Receiver:
    """Threads and blocking sockets: it starts in a few hundredths of a second."""

    def __init__(self, profile: str, port: int, folder: Path) -> None:
        self._profile = profile
        self._folder = folder
        self._lock = threading.Lock()
        taken = folder / "taken"
        kept = taken.read_bytes() if taken.exists() else b""
        kept = kept[: kept.rfind(b"\n") + 1]  # a kill may have cut the last line off: it was not answered
        taken.write_bytes(kept)
        self._ids = {json.loads(line)["id"] for line in kept.splitlines()}
        self._file = taken.open("a")
        self._server = socket.create_server(("127.0.0.1", port), backlog=512)

    def run(self) -> None:
        while True:
            peer, _ = self._server.accept()
            threading.Thread(target=self._serve, args=(peer,), daemon=True).start()

    def _serve(self, peer: socket.socket) -> None:
        with peer, peer.makefile("rb") as stream:
            while (line := stream.readline()) not in (b"", b"\r\n"):
                method, path, _ = line.decode().split(" ", 2)
                headers = {}
                while (line := stream.readline().strip()) != b"":
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                body = stream.read(int(headers.get("content-length", "0")))
                if not self._answer(peer, method, path, headers, body):
                    return

    def _answer(self, peer: socket.socket, method: str, path: str, headers: dict[str, str], body: bytes) -> bool:
        """Answer one request; False if the connection is over."""
        mode, _, detail = (self._folder / "mode").read_text().partition(" ")
        if mode == "busy":
            return _reply(peer, 503, b"{}", "retry-after: 0\r\n")
        if mode == "busy-for" and detail.encode() in body:
            return _reply(peer, 500, b"{}")
        if mode == "redirect":
            return _reply(peer, 307, b"", f"location: {detail}\r\n")
        if headers.get("authorization") != f"Bearer {TOKEN}":
            return _reply(peer, 401, f"no such token: {headers.get('authorization')}".encode())
        if mode == "refuse":
            return _reply(peer, 422, b'{"error": "no"} ' + headers["authorization"].encode())
        with self._lock:
            status, answer, new = self._take(method, path, headers, body, detail if mode == "poison" else None)
            for one in new:
                self._ids.add(one["id"])
                self._file.write(json.dumps(one) + "\n")
            self._file.flush()
        if mode == "hang":
            threading.Event().wait()
        if mode == "die":
            os._exit(1)
        status = 200 if status == 204 and mode in ("half", "endless") else status  # a 204 has no body
        if mode == "half":
            peer.sendall(f"HTTP/1.1 {status} x\r\ncontent-length: {len(answer) + 10}\r\n\r\n".encode() + answer)
            return False
        if mode == "endless":
            peer.sendall(f"HTTP/1.1 {status} x\r\ncontent-length: 10000000000\r\n\r\n".encode())
            try:
                while True:
                    peer.sendall(b" " * 65536)
            except OSError:
                return False
        return _reply(peer, status, answer)

    def _take(
        self, method: str, path: str, headers: dict[str, str], body: bytes, poison: str | None
    ) -> tuple[int, bytes, list[dict[str, Any]]]:
        """Judge a request as this profile's receiver does: status, answer, and what is taken."""
        if method != "POST":
            return 405, b"", []
        events: list[dict[str, Any]]
        if self._profile in ("structured", "binary", "batched", "openmeter"):
            content = headers["content-type"]
            if self._profile == "binary":
                names = [name for name in headers if name.startswith("ce-")]
                assert content == "application/json"
                events = [{**{name[3:]: headers[name] for name in names}, "data": json.loads(body)}]
            elif self._profile == "structured":
                assert content == "application/cloudevents+json"
                events = [json.loads(body)]
            else:
                assert content == "application/cloudevents-batch+json"
                events = json.loads(body)
            if self._profile == "openmeter" and path != "/api/v1/events":
                return 404, b"", []
            for one in events:
                assert one["specversion"] == "1.0" and one["source"] and one["subject"] == one["data"]["org_id"], one
            if poison in {one["id"] for one in events}:
                return 400, b'{"detail": "an event is wrong"}', []
            return 204, b"", [_row(one["id"], one["time"], one["data"]["amount_mxn"], one) for one in events]
        if self._profile == "lago":
            assert path == "/api/v1/events/batch", path
            events = json.loads(body)["events"]
            wrong = {
                str(place): {"transaction_id": ["value_already_exist"]}
                for place, one in enumerate(events)
                if one["transaction_id"] in self._ids
            } | {
                str(place): {"code": ["metric_not_found"]}
                for place, one in enumerate(events)
                if one["transaction_id"] == poison
            }
            if not 1 <= len(events) <= 100:
                return 422, b'{"error_details": {"events": ["too_many_events"]}}', []
            if wrong:
                details = {"status": 422, "code": "validation_errors", "error_details": wrong}
                return 422, json.dumps(details).encode(), []
            new = [
                _row(one["transaction_id"], one["timestamp"], one["properties"]["amount_mxn"], one) for one in events
            ]
            return 200, json.dumps({"events": events}).encode(), new
        assert path == "/v1/billing/meter_events", path
        fields = {name: values[0] for name, values in parse_qs(body.decode(), strict_parsing=True).items()}
        assert fields["payload[stripe_customer_id]"].startswith(ORG_TO_CUSTOMER) and fields["event_name"]
        identifier = fields["identifier"]
        if identifier in self._ids:
            told = {"error": {"message": f"An event already exists with identifier {identifier}."}}
            return 400, json.dumps(told).encode(), []
        if identifier == poison:
            return 400, b'{"error": {"message": "No such customer"}}', []
        return 200, b"{}", [_row(identifier, fields["timestamp"], fields["payload[value]"], fields)]


def _row(event_id: str, moment: str, amount_mxn: str, whole: dict[str, Any]) -> dict[str, Any]:
    return {"id": event_id, "time": moment, "amount_mxn": amount_mxn, "whole": whole}


def _reply(peer: socket.socket, status: int, body: bytes, more: str = "") -> bool:
    peer.sendall(f"HTTP/1.1 {status} x\r\n{more}content-length: {len(body)}\r\n\r\n".encode() + body)
    return True


if __name__ == "__main__":
    Receiver(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])).run()
