"""`ghub simulate`: the upstreams, one process, until SIGTERM."""

from typing import Annotated

import typer

from proxy.cli.output import LogsAreJson, fail
from proxy.cli.running import run
from proxy.server.serving import PortTaken, stop_on_signals


def simulate(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen, on 127.0.0.1.")],
    latency_scale: Annotated[float, typer.Option(min=0, help="Times the published latencies; 0 is at once.")] = 1.0,
    as_json: LogsAreJson = True,
) -> None:
    """The upstreams' wire formats, with real pictures, for the demo and tests."""

    try:
        from simulator.server import serve as serve_simulator  # noqa: PLC0415  # it is in the sources only
    except ModuleNotFoundError:
        fail("the simulator is part of the sources and of no package: run `make demo` in a clone")

    async def work() -> None:
        shutdown = stop_on_signals()
        try:
            await serve_simulator(host="127.0.0.1", port=port, latency_scale=latency_scale, shutdown=shutdown)
        except OSError as error:
            raise PortTaken(f"127.0.0.1:{port} cannot be used: {error.strerror}. Choose another port.") from None

    run(work())
