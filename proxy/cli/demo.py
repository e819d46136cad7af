"""`ghub demo`: the whole system on this machine, each part a real process, none left behind."""

import asyncio
import base64
import os
import secrets
import shlex
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated

import httpx2
import orjson
import typer
from rich.console import Console
from rich.syntax import Syntax

from config.catalogue import demo_models, read_seed_rates
from config.logs import set_up_logs
from config.settings import SettingsError, read_settings
from metering.clock import period_at, unix_us_at, utc_now
from metering.fx import seed
from metering.pauses import Pauses
from metering.ports import LedgerError
from metering.pricing import FxRate
from proxy.api.admin.minting import Issuer, mint
from proxy.backends import open_back
from proxy.cli.demo_folder import (
    SOURCES_ONLY,
    DemoFailed,
    alone_in,
    make_private,
    socket_folder,
    try_out,
    write_private,
)
from proxy.cli.demo_processes import Part, check, ghub_command, start, stop_all, valkey_command, watch
from proxy.cli.output import fail, say
from proxy.cli.running import run
from proxy.server.serving import bind, stop_on_signals

HOST = "127.0.0.1"
ORG = "demo"
BONUS_MICRO_MXN = 50_000_000
DEMO_RATE = Decimal("20.00")
LATENCY_SCALE = "0.1"

TOP_UP = f'ghub credit add {ORG} --mxn 50.00 --type recharge --id "$(date +%s)"'
"""For a second shell; the id is the time, because a payment's id counts once."""

ADMIN_TOKEN_LIFE = timedelta(hours=24)
"""The life of the token in demo.json; every start writes a new one."""

READY_S = 30.0
"""The longest start, which usually takes a second or two; after this something is wrong, and the logs say what."""

READY_POLL_S = 0.05


def demo(
    port: Annotated[int, typer.Option(min=1, max=65535, help="The gateway's port on 127.0.0.1.")] = 8080,
    data: Annotated[Path, typer.Option(help="Where everything is kept between runs.")] = Path(".ghub"),
    real: Annotated[
        bool, typer.Option("--real", help="Use the real upstreams whose keys are set: this costs.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="When ready, print what DIR/demo.json holds.")] = False,
) -> None:
    """Gateway, Valkey, upstream simulator, local storage, consumer and SQLite ledger, until Ctrl-C."""
    os.umask(0o077)  # the folder has keys, money and pictures: also the parts' files are for its owner only
    try:
        try_out(data)
        run(_demo(port, data.resolve(), real, as_json))
    except DemoFailed as error:
        fail(str(error))


async def _demo(port: int, data: Path, real: bool, as_json: bool) -> None:
    stop = stop_on_signals()
    set_up_logs("error", sys.stderr)
    bind("--port", HOST, port).close()
    parts: list[Part] = []
    with alone_in(data), socket_folder(data) as sockets:
        make_private(data)
        (data / "demo.json").unlink(missing_ok=True)
        environment = _environment(port, data, sockets / "valkey.sock", real)
        os.environ.update(environment)
        try:
            valkey = valkey_command(sockets / "valkey.sock", data)
            _doing("starting Valkey")
            parts.append(await start("valkey", valkey, data))
            if not real:
                _doing("starting the simulated upstreams")
                simulator_port = environment["GHUB_IMAGE_HOSTS"].rpartition(":")[2]
                simulate = ["simulate", "--port", simulator_port, "--latency-scale", LATENCY_SCALE]
                parts.append(await start("simulator", ghub_command(*simulate), data))
            _doing("opening the ledger, with an organisation and its key")
            org_id, api_key = await _accounts(data)
            _doing("starting the consumer and the gateway")
            metrics = {name: str(_free_port()) for name in ("consumer", "gateway")}
            parts.append(await start("consumer", ghub_command("consume"), data, GHUB_METRICS_PORT=metrics["consumer"]))
            parts.append(await start("gateway", ghub_command("serve"), data, GHUB_METRICS_PORT=metrics["gateway"]))
            await _until_ready(port, api_key, parts, stop)
            if not stop.is_set():
                facts = _write_down(data, environment, port, org_id, api_key, metrics)
                if as_json:
                    say(facts, as_json)
                else:
                    _banner(port, data, api_key, real)
            await watch(parts, stop)
        finally:
            (data / "demo.json").unlink(missing_ok=True)  # it says "ready", which is no longer true
            await stop_all(parts)


def _doing(what: str) -> None:
    """Write the next step to standard error, so that it is visible at once, even if the step takes long."""
    sys.stderr.write(f"{what} …\n")
    sys.stderr.flush()


def _environment(port: int, data: Path, valkey_socket: Path, real: bool) -> dict[str, str]:
    """Return the variables that all parts read, and that `DIR/env` gives to other commands."""
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
        "GHUB_MONTH_SIGNING_KEY": _key(data / "month_signing_key"),
        "GHUB_SECRETS_KEY": _key(data / "secrets_key"),
        "GHUB_WEBHOOK_HOSTS": f"{HOST},localhost",
        "GHUB_JWKS_URL": "",  # it would conflict with the secret
        "GHUB_TOPUP_COMMAND": TOP_UP,
        "GHUB_FX_APPROVAL": "none",
    }
    if real:
        settings = read_settings()
        if not settings.has_upstream:
            raise SettingsError("--real needs the key of an upstream, such as GHUB_OPENAI_KEY or GHUB_FAL_KEY")
        return environment
    return environment | _every_model(data) | simulated_upstreams(f"{HOST}:{_free_port()}")


def _every_model(data: Path) -> dict[str, str]:
    """Write the catalogue in which every model has a price, unless another one is chosen: commands read the same."""
    if chosen := os.environ.get("GHUB_MODELS"):
        return {"GHUB_MODELS": str(Path(chosen).absolute())}
    models = data / "models.toml"
    write_private(models, demo_models().decode())
    return {"GHUB_MODELS": str(models)}


def _free_port() -> int:
    with bind("a free port", HOST, 0) as free:
        port: int = free.getsockname()[1]
    return port


def _jwt_secret(path: Path) -> str:
    """Read the demo's own secret, made once: anybody who can read it may be an administrator of this demo."""
    if not path.exists():
        write_private(path, secrets.token_urlsafe(48))
    return path.read_text()


def _key(path: Path) -> str:
    """Read one of the demo's own keys, 32 bytes in base64, made once."""
    if not path.exists():
        write_private(path, base64.b64encode(secrets.token_bytes(32)).decode())
    return path.read_text()


def simulated_upstreams(simulator: str) -> dict[str, str]:
    """Return the settings under which every provider is the simulator at `host:port`. Raises DemoFailed."""
    try:
        from simulator.app import PROVIDERS  # noqa: PLC0415  # it is in the sources only
    except ModuleNotFoundError:
        raise DemoFailed(SOURCES_ONLY) from None
    variables = {"GHUB_IMAGE_HOSTS": simulator}
    for provider in PROVIDERS:
        prefix = f"GHUB_{provider.NAME.upper()}"
        variables[f"{prefix}_KEY"] = "simulated"
        variables |= {
            f"{prefix}_{name.upper()}": f"http://{simulator}{path}" for name, path in provider.ADDRESSES.items()
        }
    return variables


async def _accounts(data: Path) -> tuple[str, str]:
    """Make the schema, a rate for this month, the organisation with its bonus, and its key, once; later find them."""
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
            write_private(key_file, key.secret)
    return org.org_id, key_file.read_text()


async def _until_ready(port: int, api_key: str, parts: list[Part], stop: asyncio.Event) -> None:
    """Wait until a customer's request is answered, which means that Redis is projected and the key is known."""
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {api_key}"}, trust_env=False) as client:
        async for _ in Pauses(READY_POLL_S, until_s=time.monotonic() + READY_S):
            if stop.is_set():
                return
            check(parts)
            try:
                reply = await client.get(f"http://{HOST}:{port}/v1/credits")
                if reply.status_code == 200:
                    return
            except httpx2.TransportError:
                continue
    raise DemoFailed(f"the gateway is not ready after {READY_S:.0f} s; see {parts[-1].log}")


def _write_down(
    data: Path, environment: Mapping[str, str], port: int, org_id: str, api_key: str, metrics: Mapping[str, str]
) -> dict[str, str | None]:
    exports = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in environment.items())
    write_private(data / "env", exports)
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
    write_private(data / "demo.json", orjson.dumps(facts, option=orjson.OPT_INDENT_2).decode() + "\n")
    return facts


def _admin_token() -> str:
    settings = read_settings()
    assert settings.jwt_secret is not None
    issuer = Issuer(settings.jwt_audience, settings.jwt_issuer)
    return mint(settings.jwt_secret.get_secret_value(), issuer, ORG, "admin", utc_now(), ADMIN_TOKEN_LIFE)


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
