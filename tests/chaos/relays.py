"""The wires between the parts, as a process of its own: it cuts and stalls them, and counts the orders that pass.

    python -m tests.chaos.relays '{"valkey": {"port": 7000, "targets": ["/tmp/valkey.sock"]}}'

prints `true` when it listens. A command is a line of JSON, and so is its answer: ["cut", NAME], ["cut", NAME, TARGET],
["hold", NAME, DIRECTIONS], ["point", NAME, TARGET], ["seen", NAME]. A relay with several targets takes them in turn,
and the next where one refuses the connection: a load balancer that knows nothing of health.
"""

import asyncio
import json
import re
import sys
from collections import Counter
from contextlib import suppress
from itertools import count

import uvloop

PIECE_BYTES = 64 * 1024
ORDER = re.compile(rb"chaos-[0-9a-f]+-end")
"""Text in a prompt by which an order is recognised on its way upstream."""

TAIL_BYTES = 64
"""An order's name may be cut in two by the pieces in which it comes."""


class Relay:
    """One listener. `held` are the directions in which nothing passes: "out" to the target, "back" from it."""

    def __init__(self, targets: list[str]) -> None:
        self._targets = targets
        self._turns = count()
        self._lines: dict[asyncio.WriteTransport, int] = {}
        self._passes = {"out": asyncio.Event(), "back": asyncio.Event()}
        self.seen: Counter[str] = Counter()
        self.hold([])

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Relay a connection from its beginning to its end: if one side closes it, so does the other."""
        found = await self._connect()
        if found is None:
            writer.transport.abort()
            return
        there, out, target = found
        self._lines |= {writer.transport: target, out.transport: target}
        pumps = [asyncio.create_task(self._pump(*way)) for way in ((reader, out, "out"), (there, writer, "back"))]
        try:
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for end in (writer, out):
                self._lines.pop(end.transport, None)
                end.close()

    def cut(self, target: int | None = None) -> int:
        """Reset every connection (to one target); returns how many."""
        lines = [line for line, at in self._lines.items() if target in (None, at)]
        for line in lines:
            line.abort()
        return len(lines) // 2

    def point(self, target: str) -> None:
        """Send new connections there; existing ones stay where they are."""
        self._targets = [target]

    def hold(self, directions: list[str]) -> None:
        """Let nothing pass in these directions, and everything in the others."""
        for direction, passes in self._passes.items():
            passes.clear() if direction in directions else passes.set()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, int] | None:
        first = next(self._turns)
        for at in range(len(self._targets)):
            target = (first + at) % len(self._targets)
            place = self._targets[target]
            with suppress(OSError):
                if place.startswith("/"):
                    return *await asyncio.open_unix_connection(place), target
                return *await asyncio.open_connection("127.0.0.1", int(place)), target
        return None

    async def _pump(self, source: asyncio.StreamReader, to: asyncio.StreamWriter, direction: str) -> None:
        tail = b""
        with suppress(OSError):
            while data := await source.read(PIECE_BYTES):
                if direction == "out":
                    tail = self._look(tail + data)
                await self._passes[direction].wait()
                to.write(data)
                await to.drain()

    def _look(self, data: bytes) -> bytes:
        end = 0
        for found in ORDER.finditer(data):
            self.seen[found.group().decode()] += 1
            end = found.end()
        return data[max(end, len(data) - TAIL_BYTES) :]


async def main(plan: dict[str, dict[str, object]]) -> None:
    """Until standard input ends."""
    relays = {name: Relay(row["targets"]) for name, row in plan.items()}  # type: ignore[arg-type]  # from our own parent
    servers = [
        await asyncio.start_server(relay.take, "127.0.0.1", plan[name]["port"])  # type: ignore[arg-type]  # as above
        for name, relay in relays.items()
    ]
    commands = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print("true", flush=True)
    while line := await commands.readline():
        word, name, *rest = json.loads(line)
        answer: object = True
        match word:
            case "cut":
                answer = relays[name].cut(*rest)
            case "hold":
                relays[name].hold(rest[0])
            case "point":
                relays[name].point(rest[0])
            case "seen":
                answer = relays[name].seen
        print(json.dumps(answer), flush=True)
    for server in servers:
        server.close()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(json.loads(sys.argv[1])))
