"""What holds of every `ghub` command: for a user without a name, at any width, and no traceback where a sentence does.

The commands come from the application itself: a new one is in the table of this file, or the first test fails.
"""

import base64
import fcntl
import getpass
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import tempfile
import termios
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx2
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from redis import Redis

from metering.clock import period_at, previous_month, unix_us_at, utc_now
from metering.months import close_month
from metering.ports import LATEST, Act, NewCredit, WebhookCall
from metering.wallet import keys
from proxy.backends import Backends
from proxy.cli.root import commands
from tests.conftest import LOOPBACK
from tests.kits.banxico import banxico
from tests.kits.ports import free_port
from tests.kits.processes import Forked, finished
from tests.kits.system import FLUX, System, bearer, prepare, wait_until
from tests.kits.users import become_nobody, give_to_nobody
from tests.long import LONG

SECRETS = {("key", "create"), ("key", "rotate"), ("token", "create")}
"""Commands that print a secret once, alone on standard output."""

SECRET = re.compile(r"ghub_sk_live_[A-Za-z0-9]{32}|[\w-]{20,}\.[\w-]{60,}\.[\w-]{40,}")

RUNNING = {("demo",), ("serve",), ("consume",), ("simulate",)}
"""They end at a signal: started and stopped by tests of their own."""

FAILS = {
    ("event", "retry"): 1,
    ("models", "check"): 1,
    ("verify",): 1,
    ("usage", "export"): 3,
    ("fx", "correct"): 3,
    ("reconcile",): 3,
    ("statement",): 3,
}
"""Commands that do not exit with 0: an event is damaged here, and a journal lost."""


@dataclass
class Desk:
    """A system in which every command has something to say, and what stands in for the words of its arguments."""

    system: System
    words: dict[str, str] = field(default_factory=dict)

    def arguments(self, *words: str) -> list[str]:
        return [word.format(**self.words) for word in words]


SIGNING = b"s" * 32
"""The key of closed months."""

COMMANDS: dict[tuple[str, ...], tuple[str, ...]] = {
    ("migrate",): (),
    ("org", "create"): ("other {turn}", "--as", "ana"),
    ("org", "show"): ("acme",),
    ("org", "list"): (),
    ("org", "limits"): ("acme", "--in-flight", "7"),
    ("org", "plan"): ("acme", "default"),
    ("org", "suspend"): ("acme", "--reason", "a chargeback"),
    ("org", "resume"): ("acme",),
    ("org", "rename"): ("acme", "acme"),
    ("key", "create"): ("acme", "--name", "a web with a long name for its key"),
    ("key", "rotate"): ("{key}", "--overlap", "24h"),
    ("key", "list"): ("acme",),
    ("key", "show"): ("{key}",),
    ("key", "limits"): ("{key}", "--images-per-day", "7"),
    ("key", "revoke"): ("{spare}",),
    ("credit", "add"): ("acme", "--mxn", "5.00", "--type", "recharge", "--id", "spei-{digits}"),
    ("credit", "list"): ("acme", "--type", "recharge"),
    ("credit", "complete"): ("spei-{digits}", "--rfc", "XAXX010101000", "--name", "PÚBLICO EN GENERAL"),
    ("credit", "liability"): (),
    ("balance",): ("acme",),
    ("enduser", "show"): ("acme", "ana@example.com"),
    ("enduser", "erase"): ("acme", "ana@example.com"),
    ("order", "show"): ("{order}",),
    ("order", "refund"): ("{order}", "--mxn", "0.000001", "--reason", "blurred"),
    ("event", "list"): (),
    ("event", "show"): ("{event}",),
    ("event", "retry"): ("{event}",),
    ("models", "check"): ("--days", "0"),
    ("fx", "set"): ("2041-01", "18.4512", "--source", "DOF"),
    ("fx", "fetch"): ("--force",),
    ("fx", "approve"): ("2041-01", "18.4512"),
    ("fx", "correct"): ("{month}", "19.00", "--reason", "a typo"),
    ("fx", "list"): (),
    ("sink", "list"): (),
    ("sink", "show"): ("warehouse-of-the-finance-department",),
    ("sink", "replay"): ("warehouse-of-the-finance-department", "--from", "2041-01-01", "--to", "2041-01-31"),
    ("sink", "remove"): ("spare-{turn}",),
    ("webhook", "add"): (
        "acme",
        "https://hooks.example.mx/{digits}",
        "--events",
        "balance.low,model.retiring",
    ),
    ("webhook", "list"): ("acme",),
    ("webhook", "rotate"): ("acme", "--overlap", "1h"),
    ("webhook", "disable"): ("{webhook}",),
    ("webhook", "deliveries"): ("acme", "--state", "waiting"),
    ("webhook", "replay"): ("{delivery}",),
    ("usage", "export"): ("--out", "{folder}/month.csv"),
    ("month", "close"): ("2026-09",),
    ("month", "show"): ("2026-09", "--manifest", "{folder}/2026-09.manifest.json"),
    ("month", "list"): (),
    ("month", "verify"): ("2026-09",),
    ("statement",): ("acme", "--out", "{folder}/statement.html"),
    ("audit",): ("--limit", "100"),
    ("notices",): (),
    ("reconcile",): ("--month", "{last_month}", "--csv", "{folder}/off.csv"),
    ("storage", "sweep"): (),
    ("journal", "inspect"): ("{folder}/journal",),
    ("journal", "orphans"): (),
    ("journal", "job"): ("gateway-3", "--image", "geekhub-gateway:0.1.0"),
    ("journal", "replay"): ("{folder}/replayed {turn}",),
    ("journal", "salvage"): ("{folder}/saved {turn}",),
    ("journal", "close"): ("{journal}", "--lost", "--reason", "a disk"),
    ("token", "create"): ("--role", "admin"),
    ("smoke",): (),
    ("wallet", "rebuild"): ("acme",),
    ("wallet", "accept"): ("acme", "--reason", "restored"),
    ("verify",): ("--no-images",),
}
"""By the words that call it: its arguments."""


def test_every_command_is_here() -> None:
    """The application's own list is the reference."""
    assert {words for words, _ in commands()} == COMMANDS.keys() | RUNNING


@pytest.fixture(scope="module")
def desk() -> Iterator[Desk]:
    """One for all tests of this file; what its commands write harms none of them."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as name, banxico() as sie:
        place = Path(name) / "system"
        place.mkdir()
        signing = base64.b64encode(SIGNING).decode()
        secrets = {"GHUB_JWT_SECRET": "a secret of the tests, " * 2, "GHUB_SECRETS_KEY": signing}
        system = prepare(place, GHUB_MONTH_SIGNING_KEY=signing, **secrets)
        system.environment |= {"GHUB_BANXICO_URL": sie, "GHUB_BANXICO_TOKEN": "t" * 64}
        system.start_all()
        made = Desk(system)
        org_id, key = system.customer("acme", "50.00")
        trial = system.back(lambda back: back.accounts.create_key(org_id, "smoke", test=True)).secret
        system.environment |= {"OPENAI_BASE_URL": system.url, "OPENAI_API_KEY": trial}
        system.back(partial(_close_september, org_id=org_id))
        body = {"model": FLUX, "prompt": "x", "user": "ana@example.com"}
        reply = httpx2.post(f"{system.url}/images/generations", headers=bearer(key), json=body, **LOOPBACK, timeout=60)
        with Redis.from_url(system.valkey.url) as redis:
            redis.xadd(keys.OrgKeys(org_id).events, {b"opened": b"\xff\x00"})
        system.events(org_id, 1)
        lost = uuid4()
        system.back(lambda back: back.ledger.open_incarnation(lost, utc_now()))
        system.start("gone", "serve", GHUB_JOURNAL_DIR=str(place / "gone"), GHUB_PORT=str(free_port()))
        log = place / "gone.log"
        wait_until(lambda: log.exists() and "serving" in log.read_text(), "a second gateway serves")
        system.stop("gone", signal.SIGKILL)
        made.words = {
            "last_month": previous_month(period_at(unix_us_at(utc_now())).month),
            "month": period_at(unix_us_at(utc_now())).month,
            "order": reply.json()["id"],
            "org": org_id,
            "folder": str(place),
            "journal": str(lost),
        }
        wait_until(lambda: bool(system.back(lambda back: back.ledger.set_asides())), "the event is set aside")
        (made.words["event"],) = [one.name for one in system.back(lambda back: back.ledger.set_asides())]
        yield made
        system.stop_all()


async def _close_september(back: Backends, org_id: str) -> None:
    """A month that is over, with one credit in it."""
    act, at = Act("cli:ana", "month.close", "2026-09"), datetime(2026, 9, 15, tzinfo=UTC)
    await back.ledger.add_credit(NewCredit("first", org_id, "bonus", 1), at, act)
    await close_month(back.ledger, back.redis, "2026-09", act, Ed25519PrivateKey.from_private_bytes(SIGNING))


def _prepare(desk: Desk, turn: int) -> None:
    """Make what a command uses up: a key to revoke, a loss to accept, journals of a gateway that died."""

    async def make(back: Backends) -> tuple[str, ...]:
        add = back.accounts.webhooks.add
        webhooks = [(await add("acme", f"https://{name}.example.mx/{turn}", ["balance.low"])) for name in "ab"]
        disabled, told = (one.webhook for one in webhooks)
        call = WebhookCall(told.org_id, "balance.low", f"turn {turn}", "{}")
        await back.ledger.call_webhooks([call], utc_now())
        waiting = await back.ledger.webhook_deliveries(told.org_id, "waiting", (LATEST, ""))
        delivery = next(one for one in waiting if one.webhook_id == told.webhook_id)
        issued = [(await back.accounts.create_key("acme", f"turn {turn}")).key_id for _ in range(2)]
        sinks = {"warehouse-of-the-finance-department": "openmeter", f"spare-{turn}": "lago"}
        await back.ledger.register_sinks(sinks, utc_now())
        return issued[0], issued[1], disabled.webhook_id, delivery.delivery_id

    key, spare, webhook, delivery = desk.system.back(make)
    desk.words |= {
        "webhook": webhook,
        "delivery": delivery,
        "key": key,
        "spare": spare,
        "turn": f"{turn}",
        "digits": f"{turn}" * 40,
    }
    for name in ("replayed", "saved"):
        shutil.copytree(desk.system.folder / "gone", desk.system.folder / f"{name} {turn}")
    with Redis.from_url(desk.system.valkey.url) as redis:
        redis.hset(keys.OrgKeys(desk.words["org"]).wallet, "gone_charged", 1)


def test_every_command_works_for_a_user_without_a_name(desk: Desk) -> None:
    """As in the shipped image: user 10001, and an environment with only the settings; the audit log names its number.

    Root becomes that user by setuid; others do in a user namespace.
    """
    _prepare(desk, 1)
    give_to_nobody(desk.system.folder)
    environment = {"PATH": "/usr/bin:/bin", **desk.system.environment}
    for words, arguments in COMMANDS.items():
        given = [*words, *desk.arguments(*arguments)]
        done = finished(partial(Forked, before=become_nobody), given, environment, within_s=60)
        expected = FAILS.get(words, 0)
        assert done.returncode == expected and "Traceback" not in done.stderr, (given, done.stderr[-2000:])
    rows = desk.system.back(lambda back: back.ledger.audits(None, 2**53, 100))
    actors = {row.action: row.actor for row in reversed(rows)}
    assert {actors.pop("org.create"), *actors.values()} <= {"cli:ana", "cli:uid:10001", f"cli:{getpass.getuser()}"}
    for action in ("org.suspend", "key.revoke", "order.refund", "journal.close", "wallet.accept", "wallet.rebuild"):
        assert actors[action] == "cli:uid:10001", action


@pytest.mark.parametrize(
    ("arguments", "environment", "actor"),
    [
        ((), {}, "cli:uid:10001"),
        ((), {"USER": "luz"}, "cli:luz"),
        ((), {"USER": "luz", "GHUB_ACTOR": "Ana Díaz"}, "cli:Ana Díaz"),
        (("--as", "eva"), {"USER": "luz", "GHUB_ACTOR": "Ana Díaz"}, "cli:eva"),
    ],
)
def test_who_acts(desk: Desk, arguments: tuple[str, ...], environment: dict[str, str], actor: str) -> None:
    """`--as`, then GHUB_ACTOR, then the user's name, then its number; and the token's subject by the same order."""
    give_to_nobody(desk.system.folder)
    begin = partial(Forked, before=become_nobody)
    given = {"PATH": "/usr/bin:/bin", **desk.system.environment, **environment}
    rate = f"18.{time.time_ns() % 10**7 + 1}"  # another one each time: one that is there already is no row
    done = finished(begin, ["fx", "set", "2042-01", rate, "--source", "x", *arguments], given, 60)
    assert done.returncode == 0, done.stderr
    (row,) = desk.system.back(lambda back: back.ledger.audits(None, 2**53, 1))
    assert (row.action, row.actor) == ("fx.set", actor)


@pytest.mark.parametrize(
    ("arguments", "environment", "code", "words"),
    [
        (("--as", " x"), {}, 2, "--as: must be 1 to 128 printable characters"),
        (("--as", ""), {}, 2, "--as: must be 1 to 128 printable characters"),
        ((), {"GHUB_ACTOR": "x\ny"}, 1, "GHUB_ACTOR: must be 1 to 128 printable characters"),
    ],
)
def test_a_name_that_is_none_is_refused(
    desk: Desk, arguments: tuple[str, ...], environment: dict[str, str], code: int, words: str
) -> None:
    """By a sentence, and nothing is written."""
    given = {**os.environ, **desk.system.environment, **environment}
    done = finished(Forked, ["org", "create", "never", *arguments], given, 60)
    assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr
    assert desk.system.ghub("org", "show", "never").returncode == 1


# --- whole values ---


def on_terminal(arguments: list[str], environment: dict[str, str], columns: int) -> str:
    """Show a person's view of a terminal with this many columns, both streams, once the command has ended."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    name = Path(os.ttyname(theirs))
    process = Forked(arguments, {**environment, "TERM": "xterm"}, name, name)
    seen = b""
    while process.poll() is None or select.select([ours], [], [], 0)[0]:
        if select.select([ours], [], [], 0.02)[0]:
            seen += os.read(ours, 65536)
    os.close(ours)
    os.close(theirs)
    return seen.decode().replace("\r\n", "\n")


def values_of(value: Any) -> Iterator[str]:
    """Every text and number in a command's JSON, as a person reads it."""
    if isinstance(value, dict):
        for one in value.values():
            yield from values_of(one)
    elif isinstance(value, list):
        for one in value:
            yield from values_of(one)
    elif value is not None and not isinstance(value, bool) and str(value).isprintable():
        yield str(value)


READS = [words for words in COMMANDS if words[-1] in {"show", "list", "balance", "audit", "notices", "inspect"}]


@pytest.mark.parametrize("columns", [50, 80, 120, None] if LONG else [50])
def test_no_value_is_ever_cut(desk: Desk, columns: int | None) -> None:
    """Whatever the width, and in a pipe, every value that `--json` has stands whole in what a person reads."""
    _prepare(desk, columns or 2)
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"} | desk.system.environment

    def seen(arguments: list[str]) -> str:
        if columns is not None:
            return on_terminal(arguments, environment, columns)
        done = finished(Forked, arguments, environment, 60)
        return done.stdout + done.stderr

    for words, raw in COMMANDS.items():
        arguments = [*words, *desk.arguments(*raw)]
        text = seen(arguments)
        assert "…" not in text and "Traceback" not in text, text
        if words in READS:
            told = json.loads(finished(Forked, [*arguments, "--json"], environment, 60).stdout)
            for value in values_of(told):
                for word in value.split():
                    assert word in text, (words, columns, value)
        if words in SECRETS:
            assert [line for line in text.splitlines() if SECRET.fullmatch(line)], text
            if columns is None:
                assert SECRET.fullmatch(finished(Forked, arguments, environment, 60).stdout.rstrip("\n"))
