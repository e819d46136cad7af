"""The price list's worked example: 0.04 USD × 1.05 × 20.00 = 0.84 MXN, from the request to sealed export and statement.

Real processes; only the clock of Redis, which dates orders, is set: to the last seconds of a month, and on.
"""

import base64
import csv
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path

import pytest
from openai import OpenAI

from metering.clock import month_start_us, next_month, period_at, previous_month, unix_us_at, utc_at, utc_now
from metering.money import parse_mxn
from metering.ports import NewCredit
from metering.pricing import FxRate
from proxy.backends import Backends
from tests.conftest import ValkeyServer
from tests.kits.books import ACT
from tests.kits.system import FLUX, System, prepare

MONTH = previous_month(period_at(unix_us_at(utc_now())).month)


def _preload() -> str:
    """The library that sets a clock, from its package; the package itself is not needed."""
    spec = find_spec("libfaketime")
    assert spec is not None and spec.submodule_search_locations is not None, "libfaketime is not installed"
    (folder,) = spec.submodule_search_locations
    return f"{folder}/vendor/libfaketime/src/libfaketime.so.1"


class Clock:
    """The clock of one Valkey, in a file that it reads at each look at it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def set(self, moment: datetime) -> None:
        """Let it go on from this moment."""
        self.path.write_text(f"@{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S}\n")

    def real(self) -> None:
        """Let it have the machine's time again."""
        self.path.write_text("+0\n")


@pytest.fixture
def last_month(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[System, Clock]]:
    """A system in which it is half a minute before the end of last month."""
    clock = Clock(tmp_path / "clock")
    clock.set(utc_at(month_start_us(next_month(MONTH)) - 30_000_000))
    for name, value in (("TIMESTAMP_FILE", str(clock.path)), ("NO_CACHE", "1"), ("DONT_FAKE_MONOTONIC", "1")):
        monkeypatch.setenv(f"FAKETIME_{name}", value)
    monkeypatch.setenv("TZ", "UTC")
    system = prepare(tmp_path, GHUB_MONTH_SIGNING_KEY=base64.b64encode(b"w" * 32).decode())
    system.valkey = ValkeyServer(tmp_path, preload=_preload())

    async def rate(back: Backends) -> None:
        await back.ledger.add_rate(FxRate(MONTH, Decimal("20.00"), "DOF"), utc_now())

    system.back(rate)
    system.start_all()
    yield system, clock
    system.stop_all()


@pytest.mark.rule(23, 24, 37)
def test_the_worked_example_from_request_to_seal(last_month: tuple[System, Clock]) -> None:
    """One order before midnight and one after it, each in its own month; the first is closed, sealed and proved."""
    system, clock = last_month
    org_id, key = system.customer("Estudio Ñandú")

    async def recharge(back: Backends) -> None:
        at = utc_at(month_start_us(MONTH))
        await back.ledger.add_credit(NewCredit("spei-1", org_id, "recharge", parse_mxn("10.00")), at, ACT)
        await back.projection().round()

    system.back(recharge)
    client = OpenAI(base_url=system.url, api_key=key, max_retries=0)
    reply = client.images.generate(model=FLUX, prompt="Un axolotl en Xochimilco", user="ana")
    assert reply.model_extra is not None and reply.model_extra["cost_mxn"] == "0.84"
    refused = system.ghub("month", "close", MONTH)
    assert refused.returncode == 1 and "it is not over by Redis' clock" in refused.stderr
    clock.real()
    client.images.generate(model=FLUX, prompt="Un axolotl en Xochimilco, otro", user="ana")
    system.events(org_id, 2)

    closed = system.ghub("month", "close", MONTH, "--json")
    assert closed.returncode == 0, closed.stderr
    sums = json.loads(closed.stdout)
    assert (sums["orders"], sums["charges_mxn"], sums["recharges_mxn"], sums["closing_mxn"]) == (
        1,
        "0.84",
        "10.00",
        "9.16",
    )
    out = system.folder / "month.csv"
    exported = system.ghub("usage", "export", "--month", MONTH, "--out", str(out))
    assert exported.returncode == 0, exported.stderr
    with out.open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    proof = [row[name] for name in ("usd_per_image", "markup", "mxn_per_usd", "unit_mxn", "quantity", "amount_mxn")]
    assert proof == ["0.04", "1.05", "20.00", "0.84", "1", "0.84"]
    assert (row["org_name"], row["month"], row["posted_month"]) == ("Estudio Ñandú", MONTH, MONTH)

    page = system.folder / "statement.html"
    stated = system.ghub("statement", org_id, "--month", MONTH, "--lang", "en", "--out", str(page))
    assert stated.returncode == 0, stated.stderr
    text = page.read_text(encoding="utf-8")
    assert all(figure in text for figure in ("Estudio Ñandú", "0.84", "10.00", "9.16", "20.00")), text

    whole = system.ghub("month", "verify", str(out), "--json")
    assert whole.returncode == 0 and json.loads(whole.stdout)["ok"], whole.stderr
    out.write_text(out.read_text(encoding="utf-8").replace(",0.84,", ",0.48,"), encoding="utf-8")
    changed = system.ghub("month", "verify", str(out), "--json")
    assert changed.returncode == 1
    (first, *_) = json.loads(changed.stdout)["wrong"]
    assert first.startswith(f"row 2, order {row['event_id']}: it is not as it was sealed")
