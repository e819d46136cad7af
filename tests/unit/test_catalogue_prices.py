"""The five kinds of price: what a quote takes from each, what is refused, and what makes another price book."""

import itertools
import math
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from config.catalogue import Catalogue, CatalogueError, Listed, Model, demo_models, models_file, read_catalogue
from config.tokens import TokenUsage
from metering.clock import period_at
from metering.pricing import FxRate, Price, Quote, quote
from proxy.orders.quotes import as_quoted
from proxy.ports import Order
from tests.long import examples

BOOK = """
price_book = "test"
markup = "1.05"
[models."a/b"]
name = "B"
provider = "a"
upstream = "b"
images_per_call = 4
created = 2026-01-01
sizes = {{ "1024x1024" = "1:1", "1536x1024" = "3:2", "512x512" = "1:1" }}
qualities = {{ low = "low", hd = "high", high = "high", auto = "auto" }}
{price}
"""

FLAT = 'usd_per_image = "0.04"'
BY_VARIANT = """[models."a/b".usd_per_image_by]
"low/1024x1024" = "0.011"
"high/1024x1024" = "0.167"
"high/*" = "0.25"
"*/512x512" = "0.005"
"low/*" = "0.016"
"""
PER_MEGAPIXEL = 'usd_per_megapixel = "0.03"'
BY_TOKEN = """[models."a/b".usd_per_million_tokens]
text_input = "5"
image_output = "40"
most_input_tokens = 4000
most_output_tokens = { "low/1024x1024" = 272, "high/1024x1024" = 4160, "low/*" = 408, "high/*" = 6240 }
"""
REPORTED = 'most_usd_per_image = "0.06"'
KINDS = [FLAT, BY_VARIANT, PER_MEGAPIXEL, BY_TOKEN, REPORTED]

SIZES = ("1024x1024", "1536x1024", "512x512")
QUALITIES = ("low", "high", "auto", None)


def catalogue(folder: Path, price: str, *changes: tuple[str, str]) -> Catalogue:
    text = BOOK.format(price=price)
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return read_catalogue(path)


def model(folder: Path, price: str) -> Model:
    return catalogue(folder, price).models["a/b"]


def listed(row: Model, size: str, quality: str | None) -> Listed:
    found = row.listed(size, quality)
    assert found is not None
    return found


def test_a_flat_price_is_the_same_for_every_size_and_quality(tmp_path: Path) -> None:
    """Without a variant; the provider's figures do not matter."""
    row = model(tmp_path, FLAT)
    for size, quality in itertools.product(SIZES, QUALITIES):
        assert row.listed(size, quality) == Listed(Decimal("0.04"), "", measured=False)
    assert row.prices() == {"": Decimal("0.04")}


VARIANTS = {
    ("1024x1024", "low"): "0.011",
    ("1024x1024", "high"): "0.167",
    ("1024x1024", "auto"): "0.167",  # the dearest that it may become at this size
    ("1024x1024", None): "0.167",
    ("1536x1024", "low"): "0.016",
    ("1536x1024", "high"): "0.25",
    ("1536x1024", "auto"): "0.25",
    ("1536x1024", None): "0.25",
    ("512x512", "low"): "0.016",  # the quality's own row goes before the size's
    ("512x512", "high"): "0.25",
    ("512x512", None): "0.25",
}


def test_a_price_by_variant_is_that_of_the_nearest_row(tmp_path: Path) -> None:
    """The row itself, else the quality's, else the size's; a quality that the upstream chooses costs the dearest."""
    row = model(tmp_path, BY_VARIANT)
    for (size, quality), usd in VARIANTS.items():
        assert row.listed(size, quality) == Listed(Decimal(usd), f"{quality or '*'}/{size}", measured=False)


def test_a_quality_that_the_upstream_chooses_costs_at_least_what_any_quality_does(tmp_path: Path) -> None:
    """Unset or `auto`, of every kind of price and for every size: the quote covers whatever is chosen."""
    for price in KINDS:
        row = model(tmp_path, price)
        for size, chosen in itertools.product(SIZES, ("low", "high")):
            for open_ in ("auto", None):
                assert listed(row, size, open_).usd_per_image >= listed(row, size, chosen).usd_per_image, (price, size)


@pytest.mark.parametrize(
    ("size", "begun"),
    [
        ("1024x1024", 2),
        ("1000x1000", 1),
        ("512x512", 1),
        ("1536x1024", 2),
        ("2048x1024", 3),
        ("1x1", 1),
        ("1000x1001", 2),
    ],
)
def test_a_price_per_megapixel_counts_every_begun_one(tmp_path: Path, size: str, begun: int) -> None:
    """Never less than a provider that rounds up."""
    row = Model.model_validate(
        model(tmp_path, PER_MEGAPIXEL).model_dump(exclude={"usd_per_megapixel"})
        | {"sizes": {size: "1:1"}, "usd_per_megapixel": "0.03"}
    )
    assert row.listed(size, None) == Listed(Decimal("0.03") * begun, f"*/{size}", measured=False)


def test_a_price_by_token_is_the_most_that_an_image_can_take(tmp_path: Path) -> None:
    """All input tokens and the row's output tokens; what was used is counted at the same prices."""
    row = model(tmp_path, BY_TOKEN)
    assert listed(row, "1024x1024", "low") == Listed(Decimal("0.03088"), "low/1024x1024", measured=True)
    assert listed(row, "1024x1024", "high").usd_per_image == Decimal("0.1864")
    assert listed(row, "1536x1024", "high").usd_per_image == Decimal("0.2696")
    assert listed(row, "1024x1024", None).usd_per_image == Decimal("0.1864")
    assert listed(row, "1536x1024", "auto").usd_per_image == Decimal("0.2696")
    most = TokenUsage(text_input=4000, image_output=272)
    assert row.usd_of(most) == listed(row, "1024x1024", "low").usd_per_image
    assert row.usd_of(TokenUsage()) == 0
    assert row.usd_of(TokenUsage(text_input=2, image_output=816)) == Decimal("0.03265")
    assert model(tmp_path, FLAT).usd_of(most) is None


KINDS_OF_TOKENS = [
    (TokenUsage(text_input=1), "5"),
    (TokenUsage(cached_text_input=1), "1.25"),
    (TokenUsage(image_input=1), "8"),
    (TokenUsage(cached_image_input=1), "2"),
    (TokenUsage(image_output=1), "40"),
    (TokenUsage(text_output=1), "10"),
]


@pytest.mark.parametrize(("used", "usd"), KINDS_OF_TOKENS)
def test_each_kind_of_token_has_its_own_price(tmp_path: Path, used: TokenUsage, usd: str) -> None:
    """Text, pictures and cached input; the most that thoughts can take is in the quote."""
    own = 'cached_text_input = "1.25"\nimage_input = "8"\ncached_image_input = "2"\ntext_output = "10"\n'
    row = model(tmp_path, f"{BY_TOKEN}{own}most_text_output_tokens = 1000\n")
    assert row.usd_of(used) == Decimal(usd) / 1_000_000
    assert listed(row, "1024x1024", "low").usd_per_image == Decimal("0.03088") + Decimal("0.01")


def test_a_kind_of_token_without_a_price_costs_as_the_nearest_that_is_not_cheaper(tmp_path: Path) -> None:
    """Cached input as input, a picture that goes in as text, a text that comes out as a picture."""
    row = model(tmp_path, BY_TOKEN)
    prices = [row.usd_of(used) for used, _ in KINDS_OF_TOKENS]
    assert prices == [Decimal(usd) / 1_000_000 for usd in ("5", "5", "5", "5", "40", "40")]


def test_the_quote_of_gpt_image_2_covers_the_tokens_of_its_formula() -> None:
    """For every size and quality that is sold; 1024x1024 and 2048x2048 are as two bills were."""
    row = read_catalogue(None).models["openai/gpt-image-2"]
    prices = row.usd_per_million_tokens
    assert prices is not None
    most = prices.most_output_tokens
    for size, (quality, q) in itertools.product(row.sizes, (("low", 16), ("medium", 48), ("high", 96))):
        width, height = map(int, size.split("x"))
        cells = q * round(q * min(width, height) / max(width, height))
        tokens = math.ceil(cells * (2_000_000 + width * height) / 4_000_000)
        assert most[f"{quality}/{size}"] == tokens, size
        used = TokenUsage(text_input=16_000, image_output=tokens)
        assert listed(row, size, quality).usd_per_image == prices.usd_of(used)
    billed = [most[name] for name in ("low/1024x1024", "medium/1024x1024", "high/1024x1024", "high/2048x2048")]
    assert billed == [196, 1756, 7024, 14272]


MEASURED = [
    (FLAT, ""),
    (BY_VARIANT, ""),
    (PER_MEGAPIXEL, ""),
    (REPORTED, "reported"),
    (BY_TOKEN, '{"image_output": "40", "text_input": "5"}'),
    (
        BY_TOKEN.replace('"40"', '"40.50"') + 'text_output = "0.10"',
        '{"image_output": "40.5", "text_input": "5", "text_output": "0.1"}',
    ),
]


@pytest.mark.parametrize(("price", "measured_by"), MEASURED)
def test_a_list_says_how_a_report_is_priced(tmp_path: Path, price: str, measured_by: str) -> None:
    """And from any other file the model can be had as the list has it: what was used costs the same."""
    row, used = model(tmp_path, price), TokenUsage(1, 2, 3, 4, 5, 6)
    assert row.measured_by == measured_by and row.as_listed(measured_by, Decimal(1)) is row
    assert row.as_listed(None, Decimal(1)) is row
    quote = replace(quoted(row, "1024x1024", "low", 1).price, measured_by=measured_by)
    for other in KINDS:
        asked = Order("a/b", model(tmp_path, other), "un faro", 1, "1024x1024", "low")
        found = as_quoted(asked, replace(quoted(row, "1024x1024", "low", 1), price=quote)).model
        assert (found.measured_by, found.usd_of(used)) == (measured_by, row.usd_of(used))
        assert listed(found, "1024x1024", "low").measured is bool(measured_by)


def test_a_list_says_how_the_report_of_a_second_route_is_priced(tmp_path: Path) -> None:
    """Behind that of the first one; a second route that is not measured adds nothing, so it needs no notice."""
    flat, tokens = model(tmp_path, FLAT), model(tmp_path, BY_TOKEN)
    with_flat, with_tokens = (
        flat.model_copy(update={"second": second}) for second in (flat.model_copy(update={"provider": "c"}), tokens)
    )
    assert (flat.measured_by, with_flat.measured_by) == ("", "")
    assert with_tokens.measured_by == f"|{tokens.measured_by}"
    dearer = tokens.model_copy(update={"second": None}).as_listed(
        '{"image_output": "50", "text_input": "5"}', Decimal(1)
    )
    now = flat.model_copy(update={"second": dearer}).as_listed(with_tokens.measured_by, Decimal("0.04"))
    used = TokenUsage(1, 2, 3, 4, 5, 6)
    assert now.second is not None and now.usd_per_image == Decimal("0.04")
    assert now.second.usd_of(used) == tokens.usd_of(used) != dearer.usd_of(used)


def test_the_demo_has_a_price_for_every_model() -> None:
    """Of what ships without one it enters its own; the others keep theirs."""
    shipped, demo = read_catalogue(None), models_file(None).parse(Catalogue, demo_models())
    assert all(row.priced for row in demo.models.values()) and list(demo.models) == list(shipped.models)
    assert [name for name, row in shipped.models.items() if row != demo.models[name]] == [
        name for name, row in shipped.models.items() if not row.priced
    ]


@pytest.mark.parametrize("name", [name for name, row in read_catalogue(None).models.items() if row.default_quality])
def test_an_order_without_a_quality_is_quoted_at_the_one_that_is_sent(name: str) -> None:
    """A model with a quality of its own choice never leaves that to the upstream."""
    row = read_catalogue(None).models[name]
    assert row.usual_quality is not None and "auto" not in row.qualities.values()
    for size in row.sizes:
        assert row.listed(size, None) == row.listed(size, row.usual_quality)


def test_a_reported_price_is_bounded_by_the_most(tmp_path: Path) -> None:
    """The provider's own figure, up to this one."""
    row = model(tmp_path, REPORTED)
    assert listed(row, "1024x1024", None) == Listed(Decimal("0.06"), "", measured=True)


def quoted(row: Model, size: str, quality: str | None, n: int) -> Quote:
    found = listed(row, size, quality)
    price = Price("a/b", found.usd_per_image, Decimal("1.05"), "book", found.variant)
    return quote(price, FxRate("2026-11", Decimal("18.4321"), "test"), period_at(0), n)


AMOUNTS = st.decimals(min_value=0, max_value=50, places=8, allow_nan=False, allow_infinity=False)


@pytest.mark.parametrize("price", KINDS, ids=["flat", "by variant", "per megapixel", "by token", "reported"])
def test_no_charge_is_above_its_quote(tmp_path: Path, price: str) -> None:
    """Whatever the provider reports, for every size, quality, order and number of pictures that came."""
    row = model(tmp_path, price)

    @settings(max_examples=examples(200), deadline=None, derandomize=True)
    @given(
        st.sampled_from(SIZES), st.sampled_from(QUALITIES), st.integers(1, 8), st.integers(1, 8), st.none() | AMOUNTS
    )
    def holds(size: str, quality: str | None, n: int, came: int, usd: Decimal | None) -> None:
        order = quoted(row, size, quality, n)
        delivered = min(came, n)
        measured = usd if listed(row, size, quality).measured else None
        charge = order.charge_micro_mxn(delivered, measured)
        assert 0 < charge <= order.unit_micro_mxn * delivered <= order.total_micro_mxn
        if measured is None:
            assert charge == order.unit_micro_mxn * delivered

    holds()


WRONG: list[tuple[str, str]] = [
    (f"{FLAT}\n{PER_MEGAPIXEL}", "more than one kind of price"),
    (f"{FLAT}\n{BY_VARIANT}", "more than one kind of price"),
    (f"{REPORTED}\n{BY_TOKEN}", "more than one kind of price"),
    ("usd_per_megapixel = 0.03", "usd_per_megapixel: .*decimal in quotes"),
    ('usd_per_megapixel = "0"', "usd_per_megapixel: .*above zero"),
    ('most_usd_per_image = "-0.06"', "most_usd_per_image: .*above zero"),
    ("usd_per_image_by = {}", "no price for size"),
    ('usd_per_image_by = { "low/*" = 0.01 }', "usd_per_image_by.*decimal in quotes"),
    ('usd_per_image_by = { "low/*" = "0.01" }', "no price for size .*, quality high"),
    ('usd_per_image_by = { "*/1024x1024" = "0.01", "*/512x512" = "0.01" }', "no price for size 1536x1024"),
    ('usd_per_image_by = { "*/*" = "NaN" }', "usd_per_image_by.*above zero"),
    (BY_TOKEN.replace("4000", "0"), "most_input_tokens"),
    (BY_TOKEN.replace('"40"', "40"), "image_output: .*decimal in quotes"),
    (BY_TOKEN.replace('text_input = "5"', ""), "text_input"),
    (BY_TOKEN.replace(', "high/*" = 6240', ""), "no price for size 1536x1024, quality high"),
    (BY_TOKEN.replace("6240", "0"), "most_output_tokens"),
    (BY_TOKEN.replace("6240", "-1"), "most_output_tokens"),
    (BY_TOKEN.partition("most_output")[0] + "most_output_tokens = {}", "most_output_tokens"),
    (BY_TOKEN + "cached = 1", "cached"),
    (BY_TOKEN + "cached_text_input = 1", "cached_text_input: .*decimal in quotes"),
    (FLAT + '\ndefault_quality = "best"', "default_quality: best is none"),
    ('usd_per_image_by = { "lwo/*" = "0.01", "*/*" = "0.02" }', "lwo/"),
    ('usd_per_image_by = { "low/1024x1025" = "0.01", "*/*" = "0.02" }', "1024x1025"),
    ('usd_per_image_by = { "low" = "0.01", "*/*" = "0.02" }', "low"),
]


@pytest.mark.parametrize(("price", "words"), WRONG)
def test_a_wrong_price_table_is_refused_with_a_sentence(tmp_path: Path, price: str, words: str) -> None:
    """That names the variable, the file and the field or what is missing; a row that no order can meet is a mistake."""
    with pytest.raises(CatalogueError, match=words) as told:
        catalogue(tmp_path, price)
    assert str(told.value).startswith("GHUB_MODELS: ") and "models.toml" in str(told.value)
    assert "\n" not in str(told.value)


def test_a_price_per_megapixel_needs_sizes_in_pixels(tmp_path: Path) -> None:
    """A size that is no width and height cannot be priced: refused when the file is read, not when it is ordered."""
    with pytest.raises(CatalogueError, match="WIDTHxHEIGHT"):
        catalogue(tmp_path, PER_MEGAPIXEL, ('"512x512"', '"wide"'))


CHANGES: list[tuple[str, tuple[str, str]]] = [
    (FLAT, ('"0.04"', '"0.041"')),
    (BY_VARIANT, ('"0.011"', '"0.012"')),
    (BY_VARIANT, ('"0.25"', '"0.26"')),
    (PER_MEGAPIXEL, ('"0.03"', '"0.031"')),
    (BY_TOKEN, ('"5"', '"6"')),
    (BY_TOKEN, ('"40"', '"41"')),
    (BY_TOKEN, ("4000", "4001")),
    (BY_TOKEN, ("6240", "6241")),
    (BY_TOKEN, ("most_input_tokens", 'cached_text_input = "1"\nmost_input_tokens')),
    (FLAT, ("usd_per_image", "most_usd_per_image")),
    (REPORTED, ('"0.06"', '"0.061"')),
    *((price, ('"1.05"', '"1.06"')) for price in KINDS),
    *((price, ('"a/b"', '"a/c"')) for price in KINDS),
]


@pytest.mark.parametrize(("price", "change"), CHANGES)
def test_any_other_price_is_another_version_of_the_book(tmp_path: Path, price: str, change: tuple[str, str]) -> None:
    """Any kind of price, and the markup; a change without effect on prices leaves the version unchanged."""
    version = catalogue(tmp_path, price).price_book_version
    assert (
        version
        == catalogue(
            tmp_path, price, ('name = "B"', 'name = "C"'), ('upstream = "b"', 'upstream = "c"')
        ).price_book_version
    )
    assert catalogue(tmp_path, price, change).price_book_version != version


def test_every_variant_that_a_quote_names_is_in_the_book(tmp_path: Path) -> None:
    """The ledger knows each (model, variant) of an order, with the price that the quote took."""
    shipped: dict[str, Any] = dict(read_catalogue(None).models)
    rows = [*(model(tmp_path, price) for price in KINDS), *(row for row in shipped.values() if row.priced)]
    for row in rows:
        for size, quality in itertools.product(row.sizes, (*row.qualities.values(), None)):
            found = listed(row, size, quality)
            assert row.prices()[found.variant] == found.usd_per_image


def test_the_nine_cost_what_was_published() -> None:
    """Flat per image, in USD."""
    models = read_catalogue(None).models
    assert {name: str(models[name].usd_per_image) for name in PUBLISHED} == PUBLISHED


PUBLISHED = {
    "openai/gpt-image-1": "0.19",
    "openai/dall-e-3": "0.04",
    "google/imagen-4": "0.04",
    "xai/grok-2-image": "0.07",
    "fal/flux-1.1-pro": "0.04",
    "fal/flux-1.1-pro-ultra": "0.06",
    "fal/recraft-v3": "0.04",
    "fal/ideogram-v2": "0.08",
    "fal/sd-3.5-large": "0.065",
}
