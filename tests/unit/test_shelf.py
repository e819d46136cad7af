"""Models that end, at days that the tests set: what is named instead, what is said, and what one line changes."""

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from typer.testing import CliRunner

from config.catalogue import Catalogue, CatalogueError, read_catalogue
from config.shelf import Fault, Shelf, Status, status_of
from proxy.cli import models as command
from proxy.offer import Offer

ROOT = Path(__file__).parents[2]
TODAY = date(2026, 11, 26)
ENDED, ENDS = "shutdown_date = 2026-11-26", "shutdown_date = 2026-11-27"

HEAD = 'price_book = "test"\nmarkup = "1.05"\n'
ROW = """
[models."{name}"]
name = "{name}"
provider = "{provider}"
upstream = "{name} upstream"
images_per_call = 1
created = 2026-01-01
sizes = {{ "1024x1024" = "{name}" }}
{lines}
"""
PRICE = 'usd_per_image = "0.04"'


def row(name: str, *lines: str, price: str = PRICE) -> str:
    return ROW.format(name=name, provider=name.partition("/")[0], lines="\n".join([price, *lines]))


def successor(of: str) -> str:
    return f'successor = "{of}"'


def served_by(other: str) -> str:
    return f'served_by = "{other}"'


def catalogue(folder: Path, *rows: str) -> Catalogue:
    path = folder / "models.toml"
    path.write_text(HEAD + "".join(rows), encoding="utf-8")
    return read_catalogue(path)


def shelf(folder: Path, *rows: str) -> Shelf:
    models = catalogue(folder, *rows).models
    return Shelf(models, {name for name, model in models.items() if model.priced})


# --- stages and successors ---


@pytest.mark.parametrize(("line", "status"), [("", Status.LIVE), (ENDS, Status.DEPRECATED), (ENDED, Status.RETIRED)])
def test_a_model_has_ended_when_its_last_day_begins(tmp_path: Path, line: str, status: Status) -> None:
    """As its `Sunset` header says: midnight in UTC."""
    assert status_of(catalogue(tmp_path, row("a/one", line)).models["a/one"], TODAY) is status


@pytest.mark.parametrize(
    ("rows", "named", "why"),
    [
        ((row("a/two"),), "a/two", None),
        ((row("a/two", ENDS),), "a/two", None),
        ((), None, "no model of the catalogue"),
        ((row("a/two", price=""),), None, "not offered"),
        ((row("a/two", ENDED),), None, "ended on 2026-11-26"),
        ((row("a/two", ENDED, successor("a/three")), row("a/three")), "a/three", "ended on 2026-11-26"),
        ((row("a/two", successor("a/three"), price=""), row("a/three")), "a/three", "not offered"),
        ((row("a/two", ENDED, successor("a/three")), row("a/three", ENDED)), None, "ended on 2026-11-26"),
        ((row("a/two", ENDED, successor("a/one")),), None, "ended on 2026-11-26"),
        ((row("a/two", ENDED, successor("a/two")),), None, "ended on 2026-11-26"),
    ],
)
def test_only_what_can_be_ordered_and_lives_is_named(
    tmp_path: Path, rows: tuple[str, ...], named: str | None, why: str | None
) -> None:
    """A successor that cannot be ordered is passed over for its own one; a circle ends. What is left out is found."""
    one = shelf(tmp_path, row("a/one", successor("a/two")), *rows)
    assert one.successor("a/one", one.models["a/one"], TODAY) == named
    left_out = [found for found in one.findings(TODAY) if found.model == "a/one"]
    assert [found.fault for found in left_out] == ([] if why is None else [Fault.SUCCESSOR])
    assert all(why is not None and why in found.why and found.successor == "a/two" for found in left_out)


def test_a_model_that_no_file_has_any_more_still_names_its_successor(tmp_path: Path) -> None:
    """An order keeps the row that it was parsed with."""
    before = catalogue(tmp_path, row("a/one", successor("a/two"))).models["a/one"]
    assert shelf(tmp_path, row("a/two")).successor("a/one", before, TODAY) == "a/two"


def test_ends_are_found_when_they_have_come_and_some_days_before(tmp_path: Path) -> None:
    """What has no price is not sold, and nobody is told of its end."""
    one = shelf(tmp_path, row("a/ended", ENDED), row("a/ends", ENDS), row("a/lives"), row("a/free", ENDED, price=""))
    assert [(found.model, found.fault) for found in one.findings(TODAY)] == [("a/ended", Fault.ENDED)]
    soon = one.findings(TODAY, timedelta(days=1))
    assert [(found.model, found.fault) for found in soon] == [("a/ended", Fault.ENDED), ("a/ends", Fault.ENDING)]
    assert "served_by" in soon[0].why and "2026-11-26" in soon[0].why


# --- a line that maps one on to another ---


def test_a_row_that_another_serves_is_that_one_under_its_own_name(tmp_path: Path) -> None:
    """Also over several; price, upstream and sizes are the last one's, dates and name the first one's."""
    rows = row("a/one", ENDED, successor("a/two"), served_by("a/two")), row("a/two", served_by("b/three"))
    models = catalogue(tmp_path, *rows, row("b/three", price='usd_per_megapixel = "0.03"')).models
    for name in ("a/one", "a/two"):
        own: dict[str, object] = {"name": name, "served_by": "b/three"}
        own |= {"shutdown_date": TODAY, "successor": "a/two"} if name == "a/one" else {}
        assert models[name] == models["b/three"].model_copy(update=own)
        assert [*models[name].prices()] == ["b/three */1024x1024"]
        assert [models[name].shown(variant) for variant in models[name].prices()] == ["*/1024x1024"]


@pytest.mark.parametrize(
    ("rows", "why"),
    [
        ((row("a/one", served_by("a/two")),), "a/one: served_by names a/two, which is no model of this file"),
        ((row("a/one", served_by("a/one")),), "a/one: served_by comes back to a/one"),
        ((row("a/one", served_by("a/two")), row("a/two", served_by("a/one"))), "served_by comes back to"),
        (
            (row("a/one", served_by("a/two")), row("a/two", served_by("a/x")), row("a/x", served_by("a/two"))),
            "served_by comes back to",
        ),
    ],
)
def test_a_line_that_leads_nowhere_is_refused(tmp_path: Path, rows: tuple[str, ...], why: str) -> None:
    """When the file is read: no order finds out."""
    with pytest.raises(CatalogueError, match=why):
        catalogue(tmp_path, *rows)


def test_the_price_of_before_and_that_of_the_serving_model_are_two(tmp_path: Path) -> None:
    """So that the line needs no notice: the list of prices has a new one, and no changed one."""
    rows = row("a/one"), row("a/two", price='most_usd_per_image = "0.02"')
    before = catalogue(tmp_path, *rows)
    after = catalogue(tmp_path, row("a/one", served_by("a/two")), rows[1])
    known = {(name, variant) for name, variant, _ in before.prices()}
    assert {(name, variant) for name, variant, _ in after.prices()} - known == {("a/one", "a/two")}


def test_a_model_that_a_living_one_serves_is_no_fault(tmp_path: Path) -> None:
    """One that has ended itself is: then nothing makes the images."""
    dead = row("a/one", ENDED, successor("a/two"), served_by("a/two"))
    assert shelf(tmp_path, dead, row("a/two")).findings(TODAY) == []
    later = shelf(tmp_path, dead, row("a/two", ENDED)).findings(TODAY)
    assert [(found.model, found.fault) for found in later] == [
        ("a/one", Fault.ENDED),
        ("a/one", Fault.SUCCESSOR),
        ("a/two", Fault.ENDED),
    ]
    assert "a/two, which serves it, ended on 2026-11-26" in later[0].why


# --- what a gateway says ---


class Prices:
    """A ledger's list that has a price of everything."""

    def has(self, model: str, variants: object) -> bool:
        return True


@dataclass
class Day:
    today: date = date(2026, 11, 25)

    def __call__(self) -> date:
        return self.today


def metrics() -> tuple[float | None, float | None]:
    """Of `a/one` and of its successor."""
    left_out = {"model": "a/one", "successor": "b/two"}
    return (
        REGISTRY.get_sample_value("ghub_models_past_end", {"model": "a/one"}),
        REGISTRY.get_sample_value("ghub_successors_left_out", left_out),
    )


def test_a_date_that_passes_stops_nothing_and_is_said(tmp_path: Path) -> None:
    """At the start, when a day begins, and when the file changes; a successor without a key is not named, either."""
    one = row("a/one", ENDED, successor("b/two"))
    file, day = catalogue(tmp_path, one, row("b/two", ENDED)), Day()
    offer = Offer(file, {"a", "b"}, Prices(), today=day)  # type: ignore[arg-type]  # of the list, only `has` is asked
    model = file.models["a/one"]
    assert (offer.status(model), offer.successor("a/one", model), metrics()) == ("deprecated", "b/two", (None, None))
    day.today = TODAY
    with capture_logs() as said:
        offer.look()
        offer.look()
    assert [(line["event"], line["log_level"], line["model"]) for line in said] == [
        ("model_past_its_end", "error", "a/one"),
        ("successor_left_out", "error", "a/one"),
        ("model_past_its_end", "error", "b/two"),
    ]
    assert said[1]["successor"] == "b/two" and "ended on 2026-11-26" in said[1]["why"]
    assert (offer.status(model), offer.successor("a/one", model), metrics()) == ("retired", None, (1, 1))
    assert [*offer.catalogue.models] == ["a/one", "b/two"]

    offer.replace(catalogue(tmp_path, row("a/one", ENDED, served_by("b/two")), row("b/two")))
    assert metrics() == (None, None)
    keyless = Offer(file, {"a"}, Prices(), today=Day())  # type: ignore[arg-type]  # as above
    assert (keyless.successor("a/one", model), metrics()) == (None, (None, 1))
    keyless.replace(catalogue(tmp_path, row("a/one")))
    assert metrics() == (None, None)


# --- the command ---


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> "Check":
    monkeypatch.setattr(command, "utc_now", lambda: datetime(2026, 11, 26, 12, tzinfo=UTC))
    monkeypatch.setenv("GHUB_MODELS", str(tmp_path / "models.toml"))
    return Check(tmp_path)


@dataclass(frozen=True)
class Check:
    """`ghub models check` over a file, at a day."""

    folder: Path

    def __call__(self, *arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(command.app, ["check", *arguments])
        return done.exit_code, done.output


def test_the_command_fails_for_what_has_ended_or_soon_will(check: Check) -> None:
    """And prints why; with --json as one value."""
    catalogue(check.folder, row("a/one"), row("a/soon", "shutdown_date = 2026-12-26", successor("a/one")))
    assert check("--days", "29")[0] == 0
    code, said = check()
    assert code == 1 and "a/soon ends on 2026-12-26" in said
    told = json.loads(check("--json")[1])
    assert told["ok"] is False and [len(model["wrong"]) for model in told["models"]] == [0, 1]
    assert told["models"][1] | {"wrong": []} == {
        "model": "a/soon",
        "status": "deprecated",
        "shutdown_date": "2026-12-26",
        "served_by": None,
        "successor": "a/one",
        "wrong": [],
    }
    catalogue(check.folder, row("a/one"), row("a/dead", ENDED, successor("a/one"), served_by("a/one")))
    assert check()[0] == 0
    assert json.loads(check("--json")[1])["ok"] is True
    catalogue(check.folder, row("a/one", successor("a/none")))
    code, said = check()
    assert code == 1 and "a/none is no model of the catalogue" in said


def test_the_command_says_what_is_wrong_with_a_file(check: Check) -> None:
    """One sentence, exit 1."""
    catalogue(check.folder, row("a/one"))
    (check.folder / "models.toml").write_text("models = 1")
    code, said = check()
    assert code == 1 and "GHUB_MODELS" in said and "Traceback" not in said


# --- the catalogue that ships ---


def findings(today: date, text: str) -> list[tuple[str, Fault, str]]:
    models = Catalogue.model_validate(tomllib.loads(text)).models
    found = Shelf(models, {name for name, model in models.items() if model.priced}).findings(today)
    return [(one.model, one.fault, one.why) for one in found]


SHIPPED = (ROOT / "config" / "models.toml").read_text(encoding="utf-8")
GPT = "openai/gpt-image-2"


def test_no_successor_of_the_shipped_catalogue_is_missing_or_has_ended() -> None:
    """Today, by this machine's clock: when a successor ends, the catalogue needs another one."""
    assert [one for one in findings(datetime.now(UTC).date(), SHIPPED) if one[1] is Fault.SUCCESSOR] == []


def test_the_check_of_the_shipped_catalogue_would_notice() -> None:
    """With a clock that is set: a successor that has ended, or has no row, is found for each that names it."""
    table = f'[models."{GPT}"]\n'
    ended = SHIPPED.replace(table, f"{table}shutdown_date = 2027-06-01\n")
    by_name = [name for name, fault, _ in findings(date(2027, 6, 1), ended) if fault is Fault.SUCCESSOR]
    assert by_name == ["openai/dall-e-3", "openai/gpt-image-1"]
    assert [one for one in findings(date(2027, 5, 31), ended) if one[1] is Fault.SUCCESSOR] == []
    renamed = SHIPPED.replace(f'"{GPT}"]', '"openai/other"]').replace(f'"{GPT}".', '"openai/other".')
    why = [why for _, fault, why in findings(TODAY, renamed) if fault is Fault.SUCCESSOR]
    assert [f"{GPT} is no model of the catalogue" in one for one in why] == [True, True]


def documented() -> Mapping[str, str]:
    """The lines of docs/models.md that map a model on to its successor, by the model."""
    text = (ROOT / "docs" / "models.md").read_text(encoding="utf-8")
    section = text[text.index("### Mapped on to its successor") :]
    block = section[section.index("```toml\n") + len("```toml\n") : section.index("\n```\n")]
    return dict(re.findall(r'(?m)^\[models\."(.+)"\]\n(served_by = .+)$', block))


def test_each_documented_line_mends_the_shipped_catalogue() -> None:
    """One for each model that has ended, and with all of them nothing is wrong."""
    lines = documented()
    ended = {name for name, fault, _ in findings(TODAY, SHIPPED) if fault is Fault.ENDED}
    assert lines.keys() == ended == {"openai/gpt-image-1", "openai/dall-e-3", "google/imagen-4", "xai/grok-2-image"}
    text = SHIPPED
    for name, line in lines.items():
        text = text.replace(f'[models."{name}"]\n', f'[models."{name}"]\n{line}\n')
    assert findings(TODAY, text) == []
