"""`ghub reconcile` as a finance person runs it: a table within 80 columns, whole JSON, a CSV, and its exit codes."""

import csv
import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from uuid import uuid4

import pytest

from metering.clock import period_at, previous_month, unix_us_at, utc_at, utc_now
from metering.ports import Org
from tests.conftest import run
from tests.integration.test_provider_books import FAL_PRICES
from tests.kits.books import ACT, NOON, open_books
from tests.kits.processes import Forked, finished
from tests.kits.provider_books import ADMIN_KEY, FAL_KEY, Orders, ProviderBooks, provider_books

MONTH = previous_month(period_at(unix_us_at(utc_now())).month)


@dataclass(frozen=True, slots=True)
class Desk:
    environment: dict[str, str]
    books: ProviderBooks
    folder: Path

    def ghub(self, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return finished(Forked, ["reconcile", *words], self.environment | environment, 60)


@contextmanager
def desk(redis_url: str, ledger_url: str, folder: Path) -> Iterator[Desk]:
    """A month with an order a day of OpenAI's, and one of fal's."""
    made = Orders(str(uuid4()))
    for day in range(1, 29):
        made.order(f"{MONTH}-{day:02d}T10:00:00", images=3)
    made.order(f"{MONTH}-09T12:00:00", provider="fal", upstream="fal-ai/flux-pro/v1.1", usd="0.04")

    async def fill() -> None:
        async with open_books(redis_url, ledger_url) as books:
            await books.ledger.create_org(Org(made.org_id, "acme", "default", NOON.isoformat()), ACT)
            await books.ledger.book(made.made, [], NOON)

    run(fill())
    with provider_books() as books:
        for one in made.made[:-1]:
            books.bill("gpt-image-1", utc_at(one.admitted_us).date(), 3, "0.57")
        books.prices = dict(FAL_PRICES)
        environment = {
            "PATH": "/usr/bin:/bin",
            "USER": "luz",
            "GHUB_REDIS_URL": redis_url,
            "GHUB_LEDGER_URL": ledger_url,
            "GHUB_OPENAI_URL": books.url,
            "GHUB_OPENAI_ADMIN_KEY": ADMIN_KEY,
            "GHUB_FAL_API_URL": books.url,
            "GHUB_FAL_KEY": FAL_KEY,
            "COLUMNS": "80",
        }
        yield Desk(environment, books, folder)


def test_a_month_of_one_provider(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    """0 where nothing is off; 1 above the threshold, 0 below it; every line within 80 columns."""
    with desk(redis_url, ledger_url, tmp_path) as there:
        done = there.ghub("--month", MONTH, "--provider", "openai")
        assert (done.returncode, done.stderr) == (0, "")
        assert f"Nothing is off in {MONTH}." in done.stdout and "15.96" in done.stdout
        there.books.bill("gpt-image-1", date.fromisoformat(f"{MONTH}-08"), 3, "0.57")
        for threshold, code in (("0", 1), ("0.56", 1), ("0.57", 0)):
            done = there.ghub("--month", MONTH, "--provider", "openai", "--threshold-usd", threshold)
            assert (done.returncode, done.stderr) == (code, ""), threshold
            assert max(map(len, done.stdout.splitlines())) <= 80
            assert f"{MONTH}-08  gpt-image-1  3       0.57" in done.stdout
            assert "Billed, no order (1): 3 images, 0.57 USD: the provider bills it" in done.stdout
        twentieth = ("gpt-image-1", date.fromisoformat(f"{MONTH}-20"))
        del there.books.images[twentieth], there.books.usd[twentieth]
        out = tmp_path / "off.csv"
        done = there.ghub("--month", MONTH, "--provider", "openai", "--json", "--csv", str(out))
        report = json.loads(done.stdout)
        assert report["ok"] is False and report["off_usd"] == "1.14" and report["id"] == 5
        with out.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["usd"] for row in rows] == ["0.57", "-0.57"] and rows == [
            {name: str(value) for name, value in one.items()} for one in report["findings"]
        ]


def test_what_could_not_be_read_is_exit_3(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    """Named on standard error; what is off goes before it."""
    with desk(redis_url, ledger_url, tmp_path) as there:
        done = there.ghub("--month", MONTH)
        assert done.returncode == 3
        assert done.stderr == (
            "ghub: fal: its bill was not compared: nobody gave its invoice (--provider fal --invoice CSV)\n"
            "ghub: the store was not compared: GHUB_STORAGE_URL is not set; for a local folder it is"
            " file:///path/to/images\n"
        )
        there.books.prices["ideogram/v4"] = ("0.02", "megapixels")
        done = there.ghub("--month", MONTH, "--no-images")
        assert done.returncode == 1 and done.stderr.startswith("ghub: fal: its bill was not compared")
        done = there.ghub("--month", MONTH, "--provider", "openai", GHUB_OPENAI_ADMIN_KEY="sk-secret-of-somebody")
        assert done.returncode == 3 and "OpenAI: GHUB_OPENAI_ADMIN_KEY: the key is refused" in done.stderr
        assert "sk-secret" not in done.stdout + done.stderr


def test_an_invoice_by_command(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    invoice = tmp_path / "fal.csv"
    with desk(redis_url, ledger_url, tmp_path) as there:
        arguments = ("--month", MONTH, "--provider", "fal", "--invoice", str(invoice))
        invoice.write_text(f"date,endpoint,quantity,cost\n{MONTH}-09,fal-ai/flux-pro/v1.1,1,$0.04\n,Total,1,0.04\n")
        done = there.ghub(*arguments)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
        invoice.write_text(f"date,endpoint,quantity,cost\n{MONTH}-09,fal-ai/flux-pro/v1.1,x,0.04\n")
        done = there.ghub(*arguments)
        assert done.returncode == 3
        assert f"{invoice}: line 2, column 'quantity': 'x' is no number" in done.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--month", "2026-13"), "--month: '2026-13' is not a month"),
        (("--invoice", __file__), "--invoice: say whose it is with --provider"),
        (("--zone", "UTC"), "--zone: say whose it is with --provider"),
        (("--provider", "fal", "--zone", "Nowhere/x"), "--zone: 'Nowhere/x' is no zone, such as UTC"),
        (("--threshold-usd", "-1"), "--threshold-usd: '-1' is no amount in USD"),
        (("--threshold-usd", "NaN"), "--threshold-usd: 'NaN' is no amount in USD"),
    ],
)
def test_wrong_use_is_exit_2(words: tuple[str, ...], says: str) -> None:
    done = finished(Forked, ["reconcile", *words], {"PATH": "/usr/bin:/bin"}, 60)
    assert done.returncode == 2 and says in done.stderr


def test_a_month_to_come_and_a_provider_of_nobody(redis_url: str, ledger_url: str, tmp_path: Path) -> None:
    with desk(redis_url, ledger_url, tmp_path) as there:
        done = there.ghub("--month", "2099-01")
        assert done.returncode == 1 and done.stderr == "ghub: --month: no day of 2099-01 is over yet in UTC\n"
        done = there.ghub("--month", MONTH, "--provider", "nobody")
        assert done.returncode == 1 and done.stderr.startswith("ghub: --provider: 'nobody' is none of fal, google")
