"""The data files: read whole or refused with the name of the field."""

from decimal import Decimal
from pathlib import Path

import pytest

from config.catalogue import CatalogueError, read_catalogue, read_seed_rates
from metering.plans import read_plans

MODEL = """
price_book = "test"
markup = "1.05"
[models."a/b"]
name = "B"
provider = "a"
upstream = "b"
images_per_call = 4
usd_per_image = "0.04"
created = 2026-01-01
sizes = {"1x1" = "one"}
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "data.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_catalogue_that_ships_is_right() -> None:
    """Its prices are exact decimals, and the published one is 0.04 USD at 1.05."""
    catalogue = read_catalogue(None)
    assert catalogue.markup == Decimal("1.05")
    assert catalogue.models["fal/flux-1.1-pro"].usd_per_image == Decimal("0.04")
    assert (read_plans(None)["default"].requests_per_minute or 0) > 0
    assert {rate.month for rate in read_seed_rates(None)} >= {"2026-11"}


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('"0.04"', "0.04", "usd_per_image"),
        ('"0.04"', '"0"', "usd_per_image"),
        ('"0.04"', '"-1"', "usd_per_image"),
        ('"0.04"', '"NaN"', "usd_per_image"),
        ('"0.04"', '"Infinity"', "usd_per_image"),
        ('"0.04"', '"4 cents"', "usd_per_image"),
        ('"1.05"', "1.05", "markup"),
        ('"1.05"', '"0"', "markup"),
        ("images_per_call = 4", "images_per_call = 0", "images_per_call"),
        ('{"1x1" = "one"}', "{}", "sizes"),
        ('provider = "a"', "", "provider"),
        ('provider = "a"', 'provider = "a"\nprovidr = "a"', "providr"),
        ('price_book = "test"', 'price_book = ""', "price_book"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, old: str, new: str, field: str) -> None:
    """A price is a decimal in quotes above zero: a float, a zero or a typing error never reaches money."""
    assert old in MODEL
    with pytest.raises(CatalogueError, match=field):
        read_catalogue(written(tmp_path, MODEL.replace(old, new)))


def test_a_model_without_a_price_is_not_free(tmp_path: Path) -> None:
    """Absent means None, which is refused, and never zero."""
    catalogue = read_catalogue(written(tmp_path, MODEL.replace('usd_per_image = "0.04"\n', "")))
    assert catalogue.models["a/b"].usd_per_image is None


def test_two_different_books_never_share_a_version(tmp_path: Path) -> None:
    """Another price or another markup is another version; another name of a model's size is not."""
    version = read_catalogue(written(tmp_path, MODEL)).price_book_version
    assert version.startswith("test+")
    for old, new in (('"0.04"', '"0.05"'), ('"1.05"', '"1.06"'), ("a/b", "a/c")):
        assert read_catalogue(written(tmp_path, MODEL.replace(old, new))).price_book_version != version
    assert read_catalogue(written(tmp_path, MODEL.replace('"one"', '"two"'))).price_book_version == version


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    """Missing, no TOML, or no UTF-8."""
    with pytest.raises(CatalogueError, match="cannot be read"):
        read_catalogue(tmp_path / "absent.toml")
    with pytest.raises(CatalogueError, match="is not TOML"):
        read_plans(written(tmp_path, "plans ="))
    latin = tmp_path / "latin.toml"
    latin.write_bytes("# al año".encode("latin-1"))
    with pytest.raises(CatalogueError, match=r"^GHUB_PLANS: .*latin\.toml: is not TOML"):
        read_plans(latin)


def test_plans_have_a_default_and_limits_above_zero(tmp_path: Path) -> None:
    """Never unlimited, never zero."""
    with pytest.raises(CatalogueError, match=r"plans\.default"):
        read_plans(written(tmp_path, "[plans.other]\nrequests_per_minute = 1\nimages_per_minute = 1"))
    with pytest.raises(CatalogueError, match="requests_per_minute"):
        read_plans(written(tmp_path, "[plans.default]\nrequests_per_minute = 0\nimages_per_minute = 1"))


@pytest.mark.parametrize("mxn", ["0.0000001", "5.1234567", "9007199254.740992", "99999999999", "NaN", "-1.00"])
def test_a_plans_budget_is_an_amount_that_can_be_counted(tmp_path: Path, mxn: str) -> None:
    """Whole micro-MXN, and no more of them than a script keeps exact; otherwise the field is named."""
    text = "[plans.default]\nrequests_per_minute = 1\nimages_per_minute = 1\nmxn_per_month = "
    with pytest.raises(CatalogueError, match=r"plans\.default\.mxn_per_month"):
        read_plans(written(tmp_path, f'{text}"{mxn}"'))
    assert read_plans(written(tmp_path, f'{text}"5000.0000000"'))["default"].micro_mxn_per_month == 5_000_000_000


@pytest.mark.parametrize("month", ["2026-13", "2026-1", "26-11"])
def test_a_seed_rate_has_a_month(tmp_path: Path, month: str) -> None:
    """`YYYY-MM`."""
    text = f'[[rates]]\nmonth = "{month}"\nmxn_per_usd = "20"\nsource = "x"'
    with pytest.raises(CatalogueError, match="month"):
        read_seed_rates(written(tmp_path, text))


TIMED = MODEL.replace('sizes = {"1x1" = "one"}', 'sizes = {"1x1" = "one", "2x2" = "two"}') + (
    'qualities = {low = "l", high = "h", best = "h"}\ntakes_s = {"h/*" = 200, "h/2x2" = 260, "l/2x2" = 70}\n'
)


def test_seconds_to_allow_are_those_of_a_quality_and_size(tmp_path: Path) -> None:
    """The nearest row holds; without a quality the longest, since the upstream chooses; without a row the usual."""
    model = read_catalogue(written(tmp_path, TIMED)).models["a/b"]
    takes = {(size, quality): model.takes_s_of(size, quality) for size in model.sizes for quality in ("l", "h", None)}
    assert takes == {
        ("1x1", "l"): None,
        ("1x1", "h"): 200,
        ("1x1", None): 200,
        ("2x2", "l"): 70,
        ("2x2", "h"): 260,
        ("2x2", None): 260,
    }
    assert read_catalogue(written(tmp_path, MODEL)).models["a/b"].takes_s_of("1x1", None) is None


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('takes_s = {"high/*" = 200}', "takes_s for high/"),
        ('takes_s = {"*/3x3" = 200}', "takes_s for ./3x3"),
        ('takes_s = {"*/*" = 0}', "takes_s"),
        ('takes_s = {"*/*" = 901}', "takes_s"),
        ('takes_s = {"*/*" = 200}\nlong_deadline_s = 100', "above its long_deadline_s"),
        ("long_deadline_s = 901", "long_deadline_s"),
    ],
)
def test_seconds_that_no_order_can_have_are_refused(tmp_path: Path, line: str, why: str) -> None:
    with pytest.raises(CatalogueError, match=why):
        read_catalogue(written(tmp_path, MODEL + line))
