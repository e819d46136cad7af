"""Files of models and plans that change while the gateway runs: what is whole holds, and nothing else does."""

import os
import sqlite3
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from config.catalogue import MAX_FILE_BYTES, CatalogueError, version_of
from config.settings import Settings
from metering.clock import FOREVER_US, utc_at
from metering.price_table import PriceTable
from metering.schedules import NOTICE_S
from metering.wallet.price_lists import PriceLists
from proxy.backends import Backends, open_back
from proxy.offer import Offer
from proxy.reload import ConfigFiles
from tests.kits.books import NOW_US
from tests.long import LONG

THEN_US = NOW_US + int(NOTICE_S * 1_000_000)

HEAD = 'price_book = "test"\nmarkup = "1.05"\n'
ONE = """
[models."fal/one"]
name = "One"
provider = "fal"
upstream = "fal-ai/one"
images_per_call = 1
usd_per_image = "0.04"
created = 2026-11-01
sizes = { "1024x1024" = "square_hd" }
"""
TWO = ONE.replace("one", "two").replace("One", "Two")
MODELS = HEAD + ONE
PLANS = "[plans.default]\nrequests_per_minute = 600\nimages_per_minute = 1200\n"


@dataclass
class Running:
    """A gateway's files, what it offers, and the places where they lie."""

    files: ConfigFiles
    offer: Offer
    prices: PriceTable
    back: Backends
    models: Path
    plans: Path

    async def follow(self) -> None:
        """Look twice: what both looks find the same is judged."""
        await self.files.look()
        await self.files.look()

    def offered(self) -> list[str]:
        """List the models on offer."""
        return sorted(self.offer.catalogue.models)


def metric(name: str, **labels: str) -> float | None:
    """Read a metric of this process."""
    return REGISTRY.get_sample_value(f"ghub_config_{name}", labels)


class Clock(PriceLists):
    """Redis' time, scripted; nobody else is there to be told."""

    def __init__(self, now_us: Callable[[], int]) -> None:
        self._now_us = now_us

    async def now_us(self) -> int:
        return self._now_us()

    async def forget(self) -> None:
        return None


@asynccontextmanager
async def running(folder: Path, now_us: Callable[[], int] = lambda: NOW_US) -> AsyncIterator[Running]:
    """Begin with the files of a folder, which are written if they are not there."""
    models, plans = folder / "models.toml", folder / "plans.toml"
    for path, text in ((models, MODELS), (plans, PLANS)):
        if not path.exists():
            path.write_text(text)
    settings = Settings.model_validate({"ledger_url": f"sqlite:///{folder / 'l.db'}", "models": models, "plans": plans})
    async with open_back(settings) as back:
        await back.ledger.migrate()
        prices = PriceTable(back.ledger)
        files = ConfigFiles(settings, back, prices, Clock(now_us))
        yield Running(files, await files.begin({"fal"}), prices, back, models, plans)


def effective(text: str, at_us: int) -> str:
    """Add the beginning of what is changed."""
    return f"effective_from = {utc_at(at_us).isoformat()}\n{text}"


async def test_a_new_content_holds_after_two_looks(tmp_path: Path) -> None:
    """For orders, for the commands of operators, and in the metric; prices of new models at once."""
    async with running(tmp_path) as one:
        before = one.files.versions()["models"]
        assert before == version_of(MODELS.encode()) and metric("info", file="models", version=before) == 1
        one.models.write_text(MODELS + TWO)
        await one.files.look()
        assert one.offered() == ["fal/one"]
        await one.files.look()
        assert one.offered() == ["fal/one", "fal/two"] == sorted(one.back.catalogue.models)
        assert one.prices.price("fal/two", "", NOW_US).usd_per_image == Decimal("0.04")
        after = version_of((MODELS + TWO).encode())
        assert one.files.versions()["models"] == after
        assert (
            metric("info", file="models", version=after) == 1 and metric("info", file="models", version=before) is None
        )
        one.models.write_text(MODELS)
        await one.follow()
        assert one.offered() == ["fal/one"]


def vanish(path: Path) -> None:
    path.unlink()


def become_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def become_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def written(text: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(text)


BAD: dict[str, tuple[Callable[[Path], object], str]] = {
    "vanished": (vanish, "cannot be read: No such file"),
    "a folder": (become_folder, "is no file"),
    "a pipe": (become_pipe, "is no file"),
    "a loop": (loop, "cannot be read"),
    "empty": (written(""), "price_book: Field required"),
    "cut off": (written((MODELS + TWO)[:-20]), "is not TOML"),
    "10 MB": (written(MODELS + "#" * 10 * MAX_FILE_BYTES), "is larger than 1000000 bytes"),
    "no text": (lambda path: path.write_bytes(b"\xff\xfe"), "is not TOML"),
    "a field too many": (written(MODELS + "colour = 1\n"), r"models\.fal/one\.colour: Extra inputs"),
    "free": (written(MODELS.replace('"0.04"', '"0"')), r"models\.fal/one\.usd_per_image: .* above zero"),
    "a float": (written(MODELS.replace('"0.04"', "0.04")), r"models\.fal/one\.usd_per_image: .* in quotes"),
    "no zone": (written(f"effective_from = 2036-12-01T00:00:00\n{MODELS}"), "effective_from: .* timezone"),
    "dearer": (written(MODELS.replace('"0.04"', '"0.05"')), r"models\.fal/one: the price 0\.04 .* `effective_from`"),
    "dearer by markup": (written(MODELS.replace("1.05", "1.06")), r"models\.fal/one: the price .* would become"),
    "too soon": (
        written(effective(MODELS.replace('"0.04"', '"0.05"'), THEN_US - 1)),
        r"models\.fal/one: the price .* at least 120 s ahead",
    ),
    "before there were dates": (written(f"effective_from = 1960-01-01T00:00:00Z\n{MODELS}"), "the ledger refuses: "),
    "longer": (written(MODELS + "deadline_s = 75\n"), "models: deadline_s: 75 is longer than 60.* needs a restart"),
}


@pytest.mark.parametrize("bad", BAD)
async def test_a_bad_file_is_refused_once_and_the_old_one_stays(tmp_path: Path, bad: str) -> None:
    """One log line names variable, file and field; it is counted once; the gauge says so until the file is right."""
    spoil, why = BAD[bad]
    async with running(tmp_path) as one:
        refusals = metric("refused_total", file="models") or 0
        version = one.files.versions()["models"]
        spoil(one.models)
        with capture_logs() as logs:
            for _ in range(5):
                await one.files.look()
        (line,) = [log for log in logs if log["event"] == "config_refused"]
        assert line["log_level"] == "error" and line["why"].startswith(f"GHUB_MODELS: {one.models}: ")
        with pytest.raises(CatalogueError, match=why):
            raise CatalogueError(line["why"])
        assert metric("refused_total", file="models") == refusals + 1 and metric("refused", file="models") == 1
        assert one.files.versions()["models"] == version and one.offered() == ["fal/one"]
        assert one.prices.price("fal/one", "", THEN_US).usd_per_image == Decimal("0.04")

        if one.models.is_dir():
            one.models.rmdir()
        else:
            one.models.unlink(missing_ok=True)
        one.models.write_text(MODELS)
        await one.follow()
        assert metric("refused", file="models") == 0 and one.files.versions()["models"] == version


async def test_another_bad_content_is_told_again(tmp_path: Path) -> None:
    """Also if the same field of it is wrong: somebody has tried to mend it."""
    async with running(tmp_path) as one:
        with capture_logs() as logs:
            for price in ("0.05", "0.06"):
                one.models.write_text(MODELS.replace("0.04", price))
                await one.follow()
        assert [log["event"] for log in logs].count("config_refused") == 2


async def test_a_half_written_file_is_never_taken(tmp_path: Path) -> None:
    """Although its first half is a whole catalogue with fewer models."""
    async with running(tmp_path) as one:
        one.models.write_text(MODELS + TWO)
        await one.follow()
        one.models.write_text(MODELS)
        await one.files.look()
        one.models.write_text(MODELS + TWO + "# the end\n")
        for _ in range(3):
            assert one.offered() == ["fal/one", "fal/two"]
            await one.files.look()
        assert one.files.versions()["models"] == version_of((MODELS + TWO + "# the end\n").encode())


async def test_a_mounted_config_map_is_followed(tmp_path: Path) -> None:
    """As a kubelet changes it: a new folder, and a symbolic link that is renamed over the old one."""
    mount = tmp_path / "mount"
    for number, text in ((1, MODELS), (2, MODELS + TWO)):
        folder = mount / f"..{number}"
        folder.mkdir(parents=True)
        (folder / "models.toml").write_text(text)
    (mount / "..data").symlink_to("..1")
    (tmp_path / "models.toml").symlink_to(mount / "models.toml")
    (mount / "models.toml").symlink_to("..data/models.toml")
    async with running(tmp_path) as one:
        assert one.offered() == ["fal/one"]
        (mount / "..data_tmp").symlink_to("..2")
        (mount / "..data_tmp").rename(mount / "..data")
        (mount / "..1" / "models.toml").unlink()
        await one.follow()
        assert one.offered() == ["fal/one", "fal/two"]


async def test_a_changed_price_is_announced_and_begins_by_itself(tmp_path: Path) -> None:
    """The file needs no second change, and a gateway that never saw it sells at the same price."""
    async with running(tmp_path) as one:
        stale = PriceTable(one.back.ledger)
        one.models.write_text(effective(MODELS.replace("0.04", "0.05"), THEN_US))
        await one.follow()
        await stale.refresh(FOREVER_US)
        for table in (one.prices, stale):
            assert table.price("fal/one", "", THEN_US - 1).usd_per_image == Decimal("0.04")
            assert table.price("fal/one", "", THEN_US).usd_per_image == Decimal("0.05")


async def test_a_model_is_mapped_on_to_another_and_back_while_the_gateway_runs(tmp_path: Path) -> None:
    """By a line, without notice: it has a price by the model that serves it, and keeps its own for later."""
    measured = TWO.replace('usd_per_image = "0.04"', 'most_usd_per_image = "0.02"')
    (tmp_path / "models.toml").write_text(MODELS + measured)
    async with running(tmp_path) as one:
        one.models.write_text(MODELS + 'served_by = "fal/two"\n' + measured)
        with capture_logs() as logs:
            await one.follow()
        assert "config_refused" not in [log["event"] for log in logs]
        model = one.offer.catalogue.models["fal/one"]
        assert (model.upstream, model.name) == ("fal-ai/two", "One")
        assert one.prices.price("fal/one", "fal/two", THEN_US).usd_per_image == Decimal("0.02")

        one.models.write_text(MODELS + measured + "# as before\n")
        await one.follow()
        assert metric("refused", file="models") == 0
        assert one.offer.catalogue.models["fal/one"].upstream == "fal-ai/one"
        assert one.prices.price("fal/one", "", THEN_US).usd_per_image == Decimal("0.04")


TOKENS = 'usd_per_million_tokens = { text_input = "5", image_output = "40", most_input_tokens = 1,'
BY_TOKEN = MODELS.replace('usd_per_image = "0.04"', TOKENS + ' most_output_tokens = { "*/*" = 999 } }')
REPORTED = MODELS.replace("usd_per_image", "most_usd_per_image")


@pytest.mark.parametrize(
    ("before", "after", "variant"),
    [
        (MODELS, REPORTED, ""),
        (REPORTED, MODELS, ""),
        (BY_TOKEN, BY_TOKEN.replace('"5"', '"6"'), "*/1024x1024"),
        (BY_TOKEN, BY_TOKEN.replace('text_input = "5"', 'text_input = "5", cached_text_input = "1"'), "*/1024x1024"),
    ],
)
async def test_how_a_price_is_measured_is_announced_like_any_other(
    tmp_path: Path, before: str, after: str, variant: str
) -> None:
    """An image costs as much at most, or nearly, but is charged in another way: on all gateways, from its moment on."""
    (tmp_path / "models.toml").write_text(before)
    async with running(tmp_path) as one:
        was = one.offer.catalogue.models["fal/one"].measured_by
        one.models.write_text(after)
        with capture_logs() as logs:
            await one.follow()
        (line,) = [one for one in logs if one["event"] == "config_refused"]
        assert "a changed price needs `effective_from`" in line["why"]
        stale = PriceTable(one.back.ledger)
        one.models.write_text(effective(after, THEN_US))
        await one.follow()
        await stale.refresh(FOREVER_US)
        becomes = one.offer.catalogue.models["fal/one"].measured_by
        assert was != becomes
        for table in (one.prices, stale):
            assert table.price("fal/one", variant, THEN_US - 1).measured_by == was
            assert table.price("fal/one", variant, THEN_US).measured_by == becomes


async def test_a_price_of_another_kind_does_not_come_while_gateways_run(tmp_path: Path) -> None:
    """Its sizes and qualities would be sold at once, as new ones are."""
    async with running(tmp_path) as one:
        one.models.write_text(effective(BY_TOKEN, THEN_US))
        with capture_logs() as logs:
            await one.follow()
        (line,) = [one for one in logs if one["event"] == "config_refused"]
        assert "models.fal/one: its price is measured in another way" in line["why"]
        assert one.offer.catalogue.models["fal/one"].measured_by == ""


async def test_what_was_listed_before_lists_said_how_is_written_down_at_the_next_start(tmp_path: Path) -> None:
    """Until then the file says it, and a change of it is refused."""
    (tmp_path / "models.toml").write_text(REPORTED)
    async with running(tmp_path):
        pass
    with sqlite3.connect(tmp_path / "l.db") as ledger:
        found = ledger.execute("SELECT name FROM sqlite_master WHERE tbl_name = 'prices' AND type = 'trigger'")
        for (name,) in found.fetchall():
            ledger.execute(f"DROP TRIGGER {name}")
        ledger.execute("UPDATE prices SET measured_by = NULL")
    (tmp_path / "models.toml").write_text(REPORTED.replace('"test"', '"next"'))
    async with running(tmp_path) as one:
        assert one.prices.price("fal/one", "", NOW_US).measured_by == "reported"


async def test_a_start_with_a_price_that_nobody_announced_sells_at_the_ledgers(tmp_path: Path) -> None:
    """It starts, because gateways that died must come back; its file is refused, and it sells no new model."""
    async with running(tmp_path):
        pass
    (tmp_path / "models.toml").write_text(MODELS.replace("0.04", "0.05") + TWO)
    with capture_logs() as logs:
        async with running(tmp_path) as one:
            assert metric("refused", file="models") == 1 and one.offered() == ["fal/one"]
            assert one.prices.price("fal/one", "", THEN_US).usd_per_image == Decimal("0.04")
            await one.follow()
            one.models.write_text(MODELS + TWO)
            await one.follow()
            assert metric("refused", file="models") == 0 and one.offered() == ["fal/one", "fal/two"]
    assert [log["event"] for log in logs].count("config_refused") == 1


async def test_while_the_ledger_is_away_nothing_is_taken_and_then_it_is(tmp_path: Path) -> None:
    """Refused, once, and asked again at each look: a price that no ledger knows is never sold."""
    async with running(tmp_path) as one:
        one.models.write_text(MODELS + TWO)
        with sqlite3.connect(tmp_path / "l.db", isolation_level=None) as other, capture_logs() as logs:
            other.execute("BEGIN EXCLUSIVE")
            await one.follow()
            await one.files.look()
            assert one.offered() == ["fal/one"] and metric("refused", file="models") == 1
            other.execute("ROLLBACK")
            await one.files.look()
        other.close()
        assert one.offered() == ["fal/one", "fal/two"] and metric("refused", file="models") == 0
        (line,) = [log for log in logs if log["event"] == "config_refused"]
        assert "the ledger or Redis is away" in line["why"]


async def test_plans_follow_once_whichever_gateway_is_first(tmp_path: Path) -> None:
    """The second gateway finds what it wanted, and no organisation is projected again."""
    async with running(tmp_path) as one, running(tmp_path) as two:
        await one.back.accounts.create_org("acme", "default")
        before = await one.back.ledger.last_change()
        one.plans.write_text(PLANS.replace("600", "700") + PLANS.replace("default", "big"))
        for gateway in (one, two, one):
            await gateway.follow()
            plans = await gateway.back.ledger.plans()
            assert plans["default"].requests_per_minute == 700 and plans == gateway.back.plans
            assert await gateway.back.ledger.last_change() == before + 1
        await two.back.accounts.set_plan("acme", "big")
        one.plans.write_text(PLANS.replace("default", "other"))
        await one.follow()
        assert "big" in await one.back.ledger.plans() and metric("refused", file="plans") == 1


async def test_a_restored_ledger_is_told_again(tmp_path: Path) -> None:
    """What a gateway offers is in the ledger, also after a backup from before it was restored."""
    async with running(tmp_path) as one:
        backup = tmp_path / "backup.db"
        with sqlite3.connect(tmp_path / "l.db") as source, sqlite3.connect(backup) as target:
            source.backup(target)
        one.models.write_text(MODELS + TWO)
        await one.follow()
        with sqlite3.connect(backup) as source, sqlite3.connect(tmp_path / "l.db") as target:
            source.backup(target)
        await one.prices.refresh(FOREVER_US)
        await one.files.look()
        assert ("fal/two", "") in await one.back.ledger.price_schedules()


RELOADS = 1_000 if LONG else 200


async def test_a_thousand_reloads_take_no_memory(tmp_path: Path) -> None:
    """Nor rows of the ledger: what is changed to and fro is known."""
    async with running(tmp_path) as one:

        async def reload(times: int) -> int:
            for number in range(times):
                one.models.write_text(f"{MODELS}{TWO if number % 2 else ''}# {number}\n")
                one.plans.write_text(f"{PLANS}# {number}\n")
                await one.follow()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            before = await reload(50)
            after = await reload(RELOADS)
        finally:
            tracemalloc.stop()
        assert one.files.versions()["models"] == version_of(f"{MODELS}{TWO}# {RELOADS - 1}\n".encode())
        assert after - before < 1_000 * RELOADS, "a catalogue that was kept for each would be ten times that"
        assert (await one.back.ledger.last_price_list()).number == 2
