"""A server that answers as Banxico's SIE does: one value for the last day that is asked for."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Sie(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        *_, series, _, _, last = self.path.split("/")
        row = {"fecha": f"{date.fromisoformat(last):%d/%m/%Y}", "dato": "18.4337"}
        body = json.dumps({"bmx": {"series": [{"idSerie": series, "titulo": "FIX", "datos": [row]}]}}).encode()
        self.send_response(200 if self.headers["bmx-token"] else 401)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # its base names it so
        """Say nothing."""


@contextmanager
def banxico() -> Iterator[str]:
    """Run the server; yields what GHUB_BANXICO_URL must be."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Sie)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/SieAPIRest/service/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
