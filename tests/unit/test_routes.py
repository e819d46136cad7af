"""A model's second route: what the catalogue lets stand, what it costs, and the order in its words."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from config.catalogue import CatalogueError, Listed, Model, read_catalogue
from config.settings import LONGEST_STAY_S
from metering.events import Route
from proxy.orders.circuits import Circuits
from proxy.orders.deadlines import Deadlines
from proxy.orders.routes import Routes, as_route, second_of
from proxy.ports import Order

FIRST = """
price_book = "t"
markup = "1.05"
[models."a/m"]
name = "M"
provider = "openai"
upstream = "m-1"
created = 2026-01-01
images_per_call = 8
sizes = { "1024x1024" = "1024x1024", "1024x768" = "1024x768" }
qualities = { low = "low", high = "high", hd = "high" }
usd_per_image = "0.10"
[models."a/m".fields]
output_format = { values = { png = "image/png", jpeg = "image/jpeg" } }
output_compression = { most = 100 }
user = { characters = 256 }
"""
SECOND = """
[models."a/m".second]
provider = "fal"
upstream = "fal-ai/m"
images_per_call = 4
sizes = { "1024x1024" = "square_hd", "1024x768" = "landscape_4_3" }
qualities = { low = "draft", high = "best", hd = "best" }
"""
FIELDS = """
[models."a/m".second.fields]
output_format = { values = { png = "png" } }
output_compression = { most = 90 }
"""


def model(tmp_path: Path, second: str = SECOND + FIELDS, first: str = FIRST) -> Model:
    file = tmp_path / "models.toml"
    file.write_text(first + second)
    return read_catalogue(file).models["a/m"]


def an_order(of: Model, **changes: Any) -> Order:
    return replace(Order("a/m", of, prompt="x", n=2, size="1024x768", quality="high"), **changes)


def test_what_it_does_not_say_about_prices_is_as_in_the_first(tmp_path: Path) -> None:
    """And nothing else but the model's own name and age: another provider has other words."""
    second = model(tmp_path).second
    assert second is not None
    assert (second.usd_per_image, second.name, second.fields["output_format"].values) == (
        Decimal("0.10"),
        "M",
        {"png": "png"},
    )
    assert model(tmp_path, SECOND + 'usd_per_megapixel = "0.03"\n').second != second
    assert model(tmp_path, "").second is None


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (('upstream = "fal-ai/m"', 'upstream = "m-1"'), None),
        (('provider = "fal"\nupstream = "fal-ai/m"', 'provider = "openai"\nupstream = "m-1"'), "the same as the first"),
        ((', "1024x768" = "landscape_4_3"', ""), "sizes lack 1024x768"),
        (('low = "draft", ', ""), "qualities lack low"),
        (('hd = "best"', 'hd = "great"'), "is another word for high, and here it differs"),
        (("images_per_call = 4", 'images_per_call = 4\nsuccessor = "b/c"'), "successor is the model's"),
        (("images_per_call = 4\n", ""), "images_per_call"),
    ],
)
def test_a_second_route_covers_what_a_customer_may_ask(
    tmp_path: Path, changed: tuple[str, str], why: str | None
) -> None:
    """The error names the variable, the field and what is missing."""
    text = SECOND.replace(*changed)
    if why is None:
        model(tmp_path, text)
        return
    with pytest.raises(CatalogueError, match=r"GHUB_MODELS.*second") as refused:
        model(tmp_path, text)
    assert why in str(refused.value)


def test_the_quote_is_the_dearer_and_so_is_the_price_in_the_ledger(tmp_path: Path) -> None:
    """A price by size on either side gives the quote a variant; equal prices leave nothing to measure."""
    assert model(tmp_path).quoted("1024x768", "high") == Listed(Decimal("0.10"), "", measured=False)
    dearer = model(tmp_path, SECOND + 'usd_per_image = "0.12"\n')
    assert dearer.quoted("1024x768", "high") == Listed(Decimal("0.12"), "", measured=True)
    assert dearer.prices() == {"": Decimal("0.12")}
    by_size = model(tmp_path, SECOND + 'usd_per_megapixel = "0.06"\n')
    assert by_size.quoted("1024x768", "low") == Listed(Decimal("0.10"), "low/1024x768", measured=True)
    assert by_size.prices()["low/1024x1024"] == Decimal("0.12")
    assert model(tmp_path, "").quoted("1024x768", "high") == model(tmp_path, "").listed("1024x768", "high")


def test_an_order_in_the_second_routes_words(tmp_path: Path) -> None:
    """Size, quality and fields are its own; the customer's user may be left out, for no picture depends on it."""
    fields: dict[str, str | int] = {"output_format": "image/png", "output_compression": 80, "user": "u"}
    second = second_of(an_order(model(tmp_path), fields=fields))
    assert second is not None
    assert (second.model.provider, second.quality, second.size, second.n) == ("fal", "best", "1024x768", 2)
    assert second.fields == {"output_format": "png", "output_compression": 80}
    assert as_route(second) == Route("fal", "fal-ai/m", "0.10")
    unset = second_of(an_order(model(tmp_path), quality=None))
    assert unset is not None and unset.quality is None


@pytest.mark.parametrize(
    "changes",
    [
        {"fields": {"output_format": "image/jpeg"}},
        {"fields": {"output_compression": 95}},
        {"prompt": "x" * 4000},
    ],
)
def test_an_order_that_the_second_cannot_say_has_the_first_only(tmp_path: Path, changes: dict[str, Any]) -> None:
    """It is never made differently from what was ordered."""
    of = model(tmp_path, SECOND + "prompt_characters = 1000\n" + FIELDS)
    assert second_of(an_order(of, **changes)) is None
    assert len(Routes(Circuits(), {"openai", "fal"}).of(an_order(of, **changes))) == 1


def test_a_route_without_a_key_is_none(tmp_path: Path) -> None:
    """The price stays, as it is the same for all gateways."""
    asked = an_order(model(tmp_path))
    assert [one.model.provider for one in Routes(Circuits(), {"openai", "fal"}).of(asked)] == ["openai", "fal"]
    assert Routes(Circuits(), {"openai"}).of(asked) == [asked]


def test_a_stop_waits_for_a_second_route_that_nobody_can_go_on_with(tmp_path: Path) -> None:
    """So a long order that may go by it is over before the platform kills the process, whichever route is first."""
    first, second = 'provider = "openai"', 'provider = "fal"'
    deadlines = Deadlines(60.0, 900.0, kept_by={"fal"})
    kept = model(tmp_path, "", FIRST.replace(first, second))
    assert deadlines.of(an_order(kept), long=True) == 900.0
    for one in (
        model(tmp_path),
        model(tmp_path, SECOND.replace(second, first), FIRST.replace(first, second)),
    ):
        assert deadlines.of(an_order(one), long=True) == LONGEST_STAY_S
