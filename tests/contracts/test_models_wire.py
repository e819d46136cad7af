"""What each of the first nine models receives, and how its reply is read: sizes, formats, parameters, facts."""

import base64
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs

from config.catalogue import Model
from metering.answered import USAGE_BYTES
from metering.events import StoredImage
from proxy.errors import ApiError
from proxy.orders.calls import Progress
from proxy.ports import Order, Report
from tests.kits.orders import png
from tests.kits.providers import (
    CATALOGUE,
    DALL_E,
    FAL,
    FLUX,
    GPT,
    GROK,
    IDEOGRAM,
    IMAGEN,
    NINE,
    RECRAFT,
    SD,
    ULTRA,
    Bench,
    end_of,
    order,
    simulated,
    upstream,
)
from tests.kits.raw_server import Peer, raw_server

# --- fan-out ----------------------------------------------------------------------------------------------------------

AT_ONCE = {GPT: 8, DALL_E: 1, IMAGEN: 4, GROK: 8, FLUX: 4, ULTRA: 4, RECRAFT: 1, IDEOGRAM: 1, SD: 4}
SPLITS = {
    8: {n: [n] for n in range(1, 9)},
    4: {1: [1], 2: [2], 3: [3], 4: [4], 5: [1, 4], 6: [2, 4], 7: [3, 4], 8: [4, 4]},
    1: {n: [1] * n for n in range(1, 9)},
}
"""Images per call → for an order of n, how many each call asks for, sorted."""


def count_of(body: dict[str, Any]) -> int:
    """How many pictures a request asks for, wherever its provider wants to be told."""
    told = body.get("n", body.get("num_images", body.get("parameters", {}).get("sampleCount", 1)))
    assert isinstance(told, int)
    return told


@pytest.mark.parametrize("model", NINE)
async def test_an_order_is_made_in_the_calls_that_the_model_takes(tmp_path: Path, model: str) -> None:
    """For n from 1 to 8: the split of the table, and n pictures, numbered without a gap, all on the upstream's bill."""
    async with simulated(tmp_path) as bench:
        await bench.behave(model, "ok", same=True)
        for n in range(1, 9):
            await bench.forget()
            made = await bench.make(order(model, n))
            assert made.failures == [] and sorted(made.stored) == list(range(n))
            assert len({image.path for image in made.stored.values()}) == n
            assert sorted(count_of(one.body) for one in bench.orders()) == SPLITS[AT_ONCE[model]][n]
            assert sum(job["images_billed"] for job in await bench.jobs(model)) == n


@pytest.mark.parametrize("model", [IMAGEN, *FAL])
async def test_calls_of_one_order_do_not_repeat_each_others_pictures(tmp_path: Path, model: str) -> None:
    """No seed is ever sent, so that each call draws its own: eight different pictures."""
    async with simulated(tmp_path) as bench:
        made = await bench.make(order(model, 8))
        assert len({image.sha256 for image in made.stored.values()}) == 8
        assert all(b'"seed"' not in orjson.dumps(one.body) for one in bench.orders())


# --- sizes and formats ------------------------------------------------------------------------------------------------


def pixels(width: int, height: int) -> dict[str, int]:
    return {"width": width, "height": height}


Sizes = dict[str, tuple[Any, tuple[int, int]]]
"""The customer's size → what is sent for it, and the picture's true width and height."""

SIZES: dict[str, Sizes] = {
    GPT: {
        "1024x1024": ("1024x1024", (1024, 1024)),
        "1536x1024": ("1536x1024", (1536, 1024)),
        "1024x1536": ("1024x1536", (1024, 1536)),
    },
    DALL_E: {
        "1024x1024": ("1024x1024", (1024, 1024)),
        "1792x1024": ("1792x1024", (1792, 1024)),
        "1024x1792": ("1024x1792", (1024, 1792)),
    },
    IMAGEN: {
        "1024x1024": ("1:1", (1024, 1024)),
        "1792x1024": ("16:9", (1408, 768)),
        "1024x1792": ("9:16", (768, 1408)),
        "1024x768": ("4:3", (1280, 896)),
        "768x1024": ("3:4", (896, 1280)),
    },
    GROK: {"1024x1024": (None, (1024, 768))},
    FLUX: {
        "1024x1024": ("square_hd", (1024, 1024)),
        "1024x768": ("landscape_4_3", (1024, 768)),
        "768x1024": ("portrait_4_3", (768, 1024)),
        "512x512": ("square", (512, 512)),
        "1024x576": ("landscape_16_9", (1024, 576)),
        "576x1024": ("portrait_16_9", (576, 1024)),
        "1440x960": (pixels(1440, 960), (1440, 960)),
        "960x1440": (pixels(960, 1440), (960, 1440)),
    },
    ULTRA: {
        "1024x1024": ("1:1", (2048, 2048)),
        "1024x768": ("4:3", (2368, 1792)),
        "768x1024": ("3:4", (1792, 2368)),
        "1536x1024": ("3:2", (2496, 1664)),
        "1024x1536": ("2:3", (1664, 2496)),
        "1792x1024": ("16:9", (2752, 1536)),
        "1024x1792": ("9:16", (1536, 2752)),
    },
    RECRAFT: {
        "1024x1024": (pixels(1024, 1024), (1024, 1024)),
        "1024x768": (pixels(1365, 1024), (1365, 1024)),
        "768x1024": (pixels(1024, 1365), (1024, 1365)),
        "1536x1024": (pixels(1536, 1024), (1536, 1024)),
        "1024x1536": (pixels(1024, 1536), (1024, 1536)),
        "1792x1024": (pixels(1820, 1024), (1820, 1024)),
        "1024x1792": (pixels(1024, 1820), (1024, 1820)),
    },
    IDEOGRAM: {
        "1024x1024": ("1:1", (1024, 1024)),
        "1024x768": ("4:3", (1184, 896)),
        "768x1024": ("3:4", (896, 1184)),
        "1536x1024": ("3:2", (1248, 832)),
        "1024x1536": ("2:3", (832, 1248)),
        "1792x1024": ("16:9", (1376, 768)),
        "1024x1792": ("9:16", (768, 1376)),
    },
    SD: {
        "1024x1024": ("square_hd", (1024, 1024)),
        "1024x768": ("landscape_4_3", (1024, 768)),
        "768x1024": ("portrait_4_3", (768, 1024)),
        "512x512": ("square", (512, 512)),
        "1536x1024": (pixels(1536, 1024), (1536, 1024)),
        "1024x1536": (pixels(1024, 1536), (1024, 1536)),
        "1792x1024": (pixels(1792, 1024), (1792, 1024)),
        "1024x1792": (pixels(1024, 1792), (1024, 1792)),
    },
}
SIZE_FIELDS = ("size", "aspect_ratio", "image_size")


def size_in(body: dict[str, Any]) -> Any:
    """Find the size in a request, which has it in one place at most."""
    told = [body[name] for name in SIZE_FIELDS if name in body]
    told += [body["parameters"]["aspectRatio"]] if "parameters" in body else []
    assert len(told) <= 1
    return told[0] if told else None


@pytest.mark.parametrize("model", NINE)
async def test_every_size_is_sent_as_the_table_says_and_comes_out_as_a_picture(tmp_path: Path, model: str) -> None:
    """No size of the catalogue is missing here; `auto` and no size are 1024x1024."""
    assert set(SIZES[model]) == set(CATALOGUE.models[model].sizes)
    async with simulated(tmp_path) as bench:
        await bench.behave(model, "ok", same=True)
        for asked in (*SIZES[model], "auto", None):
            sent, true_pixels = SIZES[model]["1024x1024" if asked in ("auto", None) else asked]
            await bench.forget()
            made = await bench.make(order(model, size=asked))
            assert made.failures == [], asked
            assert size_in(bench.orders()[0].body) == sent
            with bench.picture(made, 0) as image:
                assert image.size == true_pixels, asked
            await bench.store.delete(made.stored[0].path)


FORMATS: dict[str, dict[str | None, str]] = {
    GPT: {None: "PNG", "png": "PNG", "jpeg": "JPEG", "webp": "WEBP"},
    DALL_E: {None: "PNG"},
    IMAGEN: {None: "PNG", "png": "PNG", "jpeg": "JPEG"},
    GROK: {None: "JPEG"},
    FLUX: {None: "JPEG", "jpeg": "JPEG", "png": "PNG"},
    ULTRA: {None: "JPEG", "jpeg": "JPEG", "png": "PNG"},
    RECRAFT: {None: "WEBP"},
    IDEOGRAM: {None: "PNG"},
    SD: {None: "JPEG", "jpeg": "JPEG", "png": "PNG"},
}
"""`output_format` → the format of the picture's bytes; a format that is not here is refused."""

STORED_AS = {"PNG": ("png", "image/png"), "JPEG": ("jpg", "image/jpeg"), "WEBP": ("webp", "image/webp")}


@pytest.mark.parametrize("model", NINE)
async def test_every_format_that_a_model_offers_is_what_comes_and_every_other_is_refused(
    tmp_path: Path, model: str
) -> None:
    """The picture's own bytes decide on its extension and content type."""
    async with simulated(tmp_path) as bench:
        await bench.behave(model, "ok", same=True)
        for asked in (None, "png", "jpeg", "webp", "gif"):
            if asked not in FORMATS[model]:
                with pytest.raises(ApiError) as refused:
                    order(model, output_format=asked)
                assert refused.value.param == "output_format" and "`output_format`" in refused.value.message
                continue
            made = await bench.make(order(model, output_format=asked))
            expected = FORMATS[model][asked]
            with bench.picture(made, 0) as image:
                assert image.format == expected
            stored = made.stored[0]
            assert (stored.path.rpartition(".")[2], stored.content_type) == STORED_AS[expected]


# --- parameters -------------------------------------------------------------------------------------------------------

PROMPT = {"prompt": "un faro"}
GPT_SENT = {"model": "gpt-image-1", "n": 1, "size": "1024x1024", **PROMPT}
DALL_E_SENT = {"model": "dall-e-3", "n": 1, "size": "1024x1024", "response_format": "b64_json", **PROMPT}
GROK_SENT = {"model": "grok-2-image", "n": 1, "response_format": "b64_json", **PROMPT}
IMAGEN_PARAMETERS = {"sampleCount": 1, "aspectRatio": "1:1", "includeRaiReason": True}


def imagen_sent(**more: Any) -> dict[str, Any]:
    return {"instances": [PROMPT], "parameters": {**IMAGEN_PARAMETERS, **more}}


FLUX_SENT = {"num_images": 1, "image_size": "square_hd", **PROMPT}

BODIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (GPT, {}, GPT_SENT),
    (GPT, {"response_format": "url"}, GPT_SENT),
    (GPT, {"response_format": "b64_json"}, GPT_SENT),
    *((GPT, {"quality": word}, {**GPT_SENT, "quality": word}) for word in ("low", "medium", "high", "auto")),
    (GPT, {"quality": "standard"}, {**GPT_SENT, "quality": "medium"}),
    (GPT, {"quality": "hd"}, {**GPT_SENT, "quality": "high"}),
    (
        GPT,
        {"output_format": "webp", "output_compression": 40, "background": "transparent", "moderation": "low"},
        {
            **GPT_SENT,
            "output_format": "webp",
            "output_compression": 40,
            "background": "transparent",
            "moderation": "low",
        },
    ),
    (GPT, {"user": "cliente-1"}, {**GPT_SENT, "user": "cliente-1"}),
    (GPT, {"background": None, "quality": None, "size": None, "user": None}, GPT_SENT),
    (DALL_E, {}, DALL_E_SENT),
    (DALL_E, {"response_format": "url"}, DALL_E_SENT),
    (DALL_E, {"response_format": "b64_json"}, DALL_E_SENT),
    *((DALL_E, {"quality": word}, {**DALL_E_SENT, "quality": "hd"}) for word in ("hd", "high")),
    *(
        (DALL_E, {"quality": word}, {**DALL_E_SENT, "quality": "standard"})
        for word in ("standard", "medium", "low", "auto")
    ),
    (DALL_E, {"style": "natural", "user": "u"}, {**DALL_E_SENT, "style": "natural", "user": "u"}),
    (GROK, {"quality": "hd", "size": "1024x1024", "response_format": "url"}, GROK_SENT),
    (GROK, {"user": "u"}, {**GROK_SENT, "user": "u"}),
    (IMAGEN, {"quality": "high", "response_format": "b64_json"}, imagen_sent()),
    (IMAGEN, {"output_format": "png"}, imagen_sent(outputOptions={"mimeType": "image/png"})),
    (
        IMAGEN,
        {"output_format": "jpeg", "output_compression": 0},
        imagen_sent(outputOptions={"mimeType": "image/jpeg", "compressionQuality": 0}),
    ),
    (FLUX, {"quality": "hd", "response_format": "b64_json"}, FLUX_SENT),
    (FLUX, {"output_format": "png"}, {**FLUX_SENT, "output_format": "png"}),
    (SD, {"output_format": "jpeg"}, {**FLUX_SENT, "output_format": "jpeg"}),
    (ULTRA, {}, {"num_images": 1, "aspect_ratio": "1:1", **PROMPT}),
    (RECRAFT, {}, {"image_size": pixels(1024, 1024), **PROMPT}),
    (IDEOGRAM, {}, {"aspect_ratio": "1:1", **PROMPT}),
]
"""Model, the customer's fields, the whole body that its upstream is sent: nothing more, and nothing less."""


async def test_an_upstream_is_sent_exactly_what_the_table_says(tmp_path: Path) -> None:
    """And the upstream takes it: a picture comes. `response_format` is our own affair, whatever the customer wants."""
    async with simulated(tmp_path) as bench:
        for model, fields, body in BODIES:
            await bench.behave(model, "ok", same=True)
            await bench.forget()
            made = await bench.make(order(model, **fields))
            assert [one.body for one in bench.orders()] == [body]
            assert end_of(made) == "delivered", (model, fields)


OPTIONAL: dict[str, Any] = {
    "output_format": "png",
    "output_compression": 50,
    "background": "opaque",
    "moderation": "low",
    "style": "natural",
}
TAKES = {
    GPT: {"output_format", "output_compression", "background", "moderation", "user"},
    DALL_E: {"style", "user"},
    IMAGEN: {"output_format", "output_compression"},
    GROK: {"user"},
    FLUX: {"output_format"},
    ULTRA: {"output_format"},
    SD: {"output_format"},
    RECRAFT: set(),
    IDEOGRAM: set(),
}


@pytest.mark.parametrize("model", NINE)
def test_a_field_that_a_model_does_not_know_is_refused_by_name(model: str) -> None:
    """Never dropped in silence."""
    for name, value in OPTIONAL.items():
        fields = {name: value} | ({"output_format": "jpeg"} if name == "output_compression" else {})
        if name in TAKES[model]:
            assert name in order(model, **fields).fields
            continue
        with pytest.raises(ApiError) as refused:
            order(model, **{name: value})
        assert refused.value.param == name and model in refused.value.message
    assert ("user" in order(model, user="u").fields) is ("user" in TAKES[model])  # it changes no picture


async def test_each_provider_is_shown_its_key_in_its_own_way(tmp_path: Path) -> None:
    """And fal is told not to try again by itself."""
    async with simulated(tmp_path) as bench:
        heads = {}
        for model in (GPT, GROK, IMAGEN, FLUX):
            await bench.forget()
            await bench.make(order(model))
            heads[model] = [one.headers for one in bench.sent]
    assert {head["authorization"] for head in heads[GPT] + heads[GROK]} == {"Bearer provider-secret"}
    assert [head["x-goog-api-key"] for head in heads[IMAGEN]] == ["provider-secret"]
    assert "authorization" not in heads[IMAGEN][0]
    assert len(heads[FLUX]) >= 3
    assert {(head["authorization"], head["x-fal-no-retry"]) for head in heads[FLUX]} == {("Key provider-secret", "1")}


async def test_a_successor_of_grok_is_told_the_ratio_that_its_row_names(tmp_path: Path) -> None:
    """A row with another upstream id and with ratios is all that it takes; the reply says which model served."""
    sizes = {"1024x1024": "1:1", "1536x1024": "3:2", "1024x1792": "9:16"}
    row: Model = CATALOGUE.models[GROK].model_copy(update={"upstream": "grok-imagine-image", "sizes": sizes})
    async with simulated(tmp_path) as bench:
        for size, ratio in sizes.items():
            await bench.forget()
            made = await bench.make(Order("xai/grok-imagine-image", row, "un faro", 2, size, None))
            assert bench.orders()[0].body["aspect_ratio"] == ratio and len(made.stored) == 2
            with bench.picture(made, 1) as image:
                across, down = map(int, ratio.split(":"))
                assert abs(image.width / image.height - across / down) < 0.03
            assert (made.reports[0].served, made.reports[0].usd) == ("grok-imagine-image", Decimal("0.04"))


async def test_a_row_may_name_an_address_of_its_own(tmp_path: Path) -> None:
    """`url` in the catalogue goes before the provider's, for every provider that is asked at one address."""
    asked: list[bytes] = []
    async with raw_server(replying(asked, {})) as other, upstream("http://127.0.0.1:9", tmp_path) as bench:
        for model in (GPT, GROK, IMAGEN):
            row = CATALOGUE.models[model].model_copy(update={"url": f"{other.url}/elsewhere"})
            await bench.make(Order(model, row, "un faro", 1, "1024x1024", None))
    assert [request.split(b" ")[1] for request in asked] == [
        b"/elsewhere/images/generations",
        b"/elsewhere/images/generations",
        b"/elsewhere/imagen-4.0-generate-001:predict",
    ]


# --- what a reply contains besides its pictures -----------------------------------------------------------------------


def merged(made: Progress) -> tuple[dict[int, str], list[Report]]:
    """Revised prompts by number, and the reports of calls that brought something."""
    prompts = {number: text for report in made.reports for number, text in report.revised_prompts.items()}
    return prompts, [report for report in made.reports if report.numbers]


async def test_gpt_image_says_what_it_used_and_how_it_drew(tmp_path: Path) -> None:
    """Usage whole, and the four things that it echoes."""
    async with simulated(tmp_path) as bench:
        asked = order(GPT, 3, quality="low", output_format="webp", background="opaque", size="1536x1024")
        made = await bench.make(asked)
    prompts, (report,) = merged(made)
    assert prompts == {}
    assert report.usage == {
        "input_tokens": 2,
        "input_tokens_details": {"image_tokens": 0, "text_tokens": 2},
        "output_tokens": 3 * 408,
        "output_tokens_details": {"image_tokens": 3 * 408, "text_tokens": 0},
        "total_tokens": 2 + 3 * 408,
    }
    assert report.echo == {"size": "1536x1024", "quality": "low", "background": "opaque", "output_format": "webp"}
    assert (report.usd, report.served) == (None, None)  # its price is flat


async def test_a_price_by_token_is_taken_from_the_usage(tmp_path: Path) -> None:
    """2 tokens in at 5 USD and 816 out at 40 USD, of a million each."""
    prices = {"text_input": "5", "image_output": "40", "most_input_tokens": 4000, "most_output_tokens": {"*/*": 6240}}
    row = Model.model_validate(
        CATALOGUE.models[GPT].model_dump() | {"usd_per_image": None, "usd_per_million_tokens": prices}
    )
    async with simulated(tmp_path) as bench:
        made = await bench.make(Order(GPT, row, "un faro", 2, "1536x1024", "low"))
    assert [report.usd for report in made.reports] == [Decimal("0.03265")]


async def test_every_picture_of_dall_e_has_its_own_revised_prompt(tmp_path: Path) -> None:
    """Three calls, three numbers, no usage."""
    async with simulated(tmp_path) as bench:
        made = await bench.make(order(DALL_E, 3, style="natural"))
    prompts, reports = merged(made)
    assert prompts == dict.fromkeys(range(3), "A natural picture, told in more detail: un faro")
    assert [report.usage for report in reports] == [None] * 3


async def test_grok_says_who_served_and_what_it_cost(tmp_path: Path) -> None:
    """To the tick, also if a model other than the requested one served at another price."""
    async with simulated(tmp_path) as bench:
        made = await bench.make(order(GROK, 3))
        prompts, (report,) = merged(made)
        assert prompts == dict.fromkeys(range(3), "A picture, told in more detail: un faro")
        assert (report.served, report.usd, report.usage) == ("grok-2-image-1212", Decimal("0.21"), None)
        await bench.behave(GROK, "served_by_another")
        _, (report,) = merged(await bench.make(order(GROK, 3)))
        assert (report.served, report.usd) == ("grok-imagine-image-2.0", Decimal("0.12"))


def replying(asked: list[bytes], *bodies: Any) -> Callable[[Peer], Any]:
    """A script that answers every request with the next of `bodies` as JSON, and the last one from then on."""

    async def script(peer: Peer) -> None:
        while True:
            asked.append(await peer.read_request())
            content = orjson.dumps(bodies[min(len(asked), len(bodies)) - 1])
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)

    return script


def base64_png(seed: int) -> str:
    return base64.b64encode(png(seed)).decode()


def stored_bytes(bench: Bench, image: StoredImage) -> bytes:
    return (bench.root / image.path).read_bytes()


async def test_prompts_stay_with_their_pictures_where_items_are_missing_in_between(tmp_path: Path) -> None:
    """Imagen: of four, the first and the third hold no picture. xAI: a flagged one is dropped although it has bytes."""
    one, two, three = (base64_png(seed) for seed in range(3))
    filtered = {"raiFilteredReason": "usage guidelines"}
    google = {
        "predictions": [
            filtered,
            {"bytesBase64Encoded": one, "prompt": "first"},
            filtered,
            {"prompt": "second", "mimeType": "image/png", "bytesBase64Encoded": two},
        ]
    }
    grok = {
        "data": [
            {"revised_prompt": "first", "b64_json": one, "respect_moderation": True},
            {"b64_json": None, "respect_moderation": False, "revised_prompt": "nothing"},
            {"b64_json": two, "respect_moderation": False, "revised_prompt": "flagged"},
            {"b64_json": three, "revised_prompt": "last"},
        ]
    }
    async with raw_server(replying([], google)) as server, upstream(server.url, tmp_path) as bench:
        made = await bench.make(order(IMAGEN, 4))
        assert end_of(made) == "content_policy" and merged(made)[0] == {0: "first", 1: "second"}
        assert [stored_bytes(bench, made.stored[number]) for number in (0, 1)] == [png(0), png(1)]
    async with raw_server(replying([], grok)) as server, upstream(server.url, tmp_path / "grok") as bench:
        made = await bench.make(order(GROK, 4))
        assert end_of(made) == "content_policy" and sorted(made.stored) == [0, 2]
        assert [stored_bytes(bench, made.stored[number]) for number in (0, 2)] == [png(0), png(2)]
        prompts = merged(made)[0]
        assert (prompts[0], prompts[2]) == ("first", "last")
        assert not list(bench.root.glob("org/*/1.png"))


async def test_numbers_go_on_from_call_to_call_where_one_came_short(tmp_path: Path) -> None:
    """Imagen, 4 + 4: the first reply lacks two; its numbers stay free, and the second's are 4 to 7."""
    async with simulated(tmp_path) as bench:
        await bench.in_turn(IMAGEN, "rai_filtered", "ok", last=2)
        made = await bench.make(order(IMAGEN, 8))
        assert sorted(made.stored) in ([0, 1, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5])
        assert end_of(made) == "content_policy"


async def test_pictures_beyond_those_ordered_are_not_taken(tmp_path: Path) -> None:
    """Nobody pays for what nobody ordered."""
    items = [{"b64_json": base64_png(seed)} for seed in range(3)]
    async with raw_server(replying([], {"data": items})) as server, upstream(server.url, tmp_path) as bench:
        made = await bench.make(order(GPT, 2))
        assert (sorted(made.stored), made.failures) == ([0, 1], [])


async def test_a_usage_out_of_all_bounds_is_left_out_and_logged(tmp_path: Path) -> None:
    """An upstream's facts are stored with its order: the picture is delivered, without a usage that cannot be kept."""
    usage = {"total_tokens": 7, "note": "x" * USAGE_BYTES}
    reply = {"data": [{"b64_json": base64_png(0)}], "usage": usage}
    async with raw_server(replying([], reply)) as server, upstream(server.url, tmp_path) as bench:
        with capture_logs() as lines:
            made = await bench.make(order(GPT))
    _, (report,) = merged(made)
    assert (end_of(made), report.usage) == ("delivered", None)
    (line,) = lines
    assert line["event"] == "usage_left_out" and line["size_bytes"] > USAGE_BYTES
