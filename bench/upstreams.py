"""The simulated upstreams, as a process: `python -m bench.upstreams PORT TLS_PORT CERTIFICATE KEY`."""

import sys

import uvloop

from proxy.server.serving import stop_on_signals
from simulator.server import serve


async def main(port: int, tls_port: int, certificate: str, key: str) -> None:
    """Serve until SIGTERM; every answer comes at once."""
    shutdown = stop_on_signals()
    await serve(host="127.0.0.1", port=port, tls=(tls_port, certificate, key), latency_scale=0, shutdown=shutdown)


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]))
