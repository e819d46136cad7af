"""The models that are live: each is made as it is listed, sent what it takes, and charged by what it used."""

import base64
from decimal import Decimal
from pathlib import Path
from typing import Any

import orjson
import pytest

from config.catalogue import Model
from config.tokens import TokenUsage
from proxy.ports import Order
from proxy.storage.spool import Spool
from tests.contracts.test_models_wire import replying
from tests.kits.orders import png
from tests.kits.providers import (
    BANANA,
    CATALOGUE,
    FLARE,
    FLUX_2,
    GPT_2,
    IMAGINE,
    IMAGINE_2,
    NINE,
    PRO,
    end_of,
    order,
    simulated,
    upstream,
)
from tests.kits.raw_server import raw_server

LIVE = [name for name in CATALOGUE.models if name not in NINE]


@pytest.mark.parametrize("model", LIVE)
async def test_every_listed_model_is_made_in_every_size_and_quality(tmp_path: Path, model: str) -> None:
    """To the pixel where the upstream takes pixels, of the ratio elsewhere; no report is above its quote."""
    row = CATALOGUE.models[model]
    asked = [order(model, 2), *(order(model, quality=quality) for quality in row.qualities)]
    async with simulated(tmp_path) as bench:
        await bench.behave(model, "ok", same=True)
        for one in (*asked, *(order(model, size=size) for size in row.sizes)):
            made = await bench.make(one)
            assert made.failures == [] and len(made.stored) == one.n
            listed = row.listed(one.size, one.quality)
            assert listed is not None
            for report in made.reports:
                assert (report.usd is not None) is listed.measured, "what is measured has a figure in every reply"
                assert (report.usd or 0) <= listed.usd_per_image * len(report.numbers), (one.size, one.quality)
            width, height = map(int, one.size.split("x"))
            image = made.stored[0]
            if row.provider == "openai":
                assert (image.width_px, image.height_px) == (width, height)
            assert abs(image.width_px / image.height_px * height / width - 1) < 0.04, one.size
            for stored in made.stored.values():
                await bench.store.delete(stored.path)


PROMPT = {"prompt": "un faro"}


def content(ratio: str, resolution: str, **more: Any) -> dict[str, Any]:
    return {
        "contents": [{"role": "user", "parts": [{"text": "un faro"}]}],
        "generationConfig": {
            "responseModalities": ["IMAGE"],
            "imageConfig": {"aspectRatio": ratio, "imageSize": resolution},
            **more,
        },
    }


MINIMAL = {"thinkingConfig": {"thinkingLevel": "minimal"}}
GPT_SENT = {"model": "gpt-image-2", "n": 1, "size": "1024x1024", "quality": "medium", **PROMPT}
IMAGINE_SENT = {"n": 1, "response_format": "b64_json", "aspect_ratio": "1:1", "resolution": "1k", **PROMPT}
BODIES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    (GPT_2, {}, GPT_SENT),
    *((GPT_2, {"quality": word}, GPT_SENT) for word in ("auto", "standard", "medium")),
    (GPT_2, {"quality": "hd", "size": "3840x2160"}, {**GPT_SENT, "quality": "high", "size": "3840x2160"}),
    (FLARE, {"quality": "low"}, {**GPT_SENT, "model": "gpt-image-2.6-flare", "quality": "low"}),
    (IMAGINE, {"quality": "high"}, {**IMAGINE_SENT, "model": "grok-imagine-image"}),
    (IMAGINE_2, {}, {**IMAGINE_SENT, "model": "grok-imagine-image-2.0", "quality": "medium"}),
    (
        IMAGINE_2,
        {"quality": "low", "size": "2048x2048"},
        {**IMAGINE_SENT, "model": "grok-imagine-image-2.0", "quality": "low", "resolution": "2k"},
    ),
    (BANANA, {"quality": "high"}, content("1:1", "1K", **MINIMAL)),
    (BANANA, {"size": "3840x2160"}, content("16:9", "4K", **MINIMAL)),
    (PRO, {"size": "1024x1536"}, content("2:3", "1K")),
    (FLUX_2, {}, {"image_size": "square_hd", **PROMPT}),
]
"""Model, the customer's fields, the whole body that its upstream is sent, with a quality where the model has any."""


async def test_an_upstream_is_sent_exactly_what_the_table_says(tmp_path: Path) -> None:
    """And the upstream takes it."""
    async with simulated(tmp_path) as bench:
        for model, fields, body in BODIES:
            await bench.behave(model, "ok", same=True)
            await bench.forget()
            made = await bench.make(order(model, **fields))
            assert [one.body for one in bench.orders()] == [body]
            assert end_of(made) == "delivered", (model, fields)


# --- what it cost -----------------------------------------------------------------------------------------------------


async def figure(tmp_path: Path, model: str, scenario: str = "ok", n: int = 1, **fields: Any) -> list[Decimal | None]:
    async with simulated(tmp_path) as bench:
        await bench.behave(model, scenario, same=True)
        return [report.usd for report in (await bench.make(order(model, n, **fields))).reports]


@pytest.mark.parametrize(
    ("model", "scenario", "fields", "usd"),
    [
        (GPT_2, "ok", {"quality": "low"}, "0.00589"),  # 2 tokens of text at 5, 196 of the picture at 30
        (GPT_2, "ok", {"quality": "high"}, "0.21073"),
        (GPT_2, "ok", {"quality": "high", "size": "2048x2048"}, "0.42817"),
        (GPT_2, "cached_tokens", {"quality": "low"}, "0.00588625"),  # one of the two at 1.25
        (GPT_2, "many_tokens", {"quality": "low"}, "0.05881"),
        (IMAGINE, "ok", {}, "0.02"),
        (IMAGINE_2, "ok", {"quality": "low"}, "0.04"),
        (IMAGINE_2, "ok", {}, "0.06"),
        (IMAGINE_2, "ok", {"size": "2048x2048"}, "0.08"),
        (BANANA, "ok", {}, "0.034083"),  # 2 at 1.50, 1,120 at 30, 64 of thoughts at 7.50
        (BANANA, "drafts", {}, "0.101283"),
        (BANANA, "many_tokens", {}, "0.783603"),
        (PRO, "ok", {"size": "3840x2160"}, "0.240772"),
        (FLUX_2, "ok", {}, None),
    ],
)
async def test_an_order_costs_what_its_reply_says(
    tmp_path: Path, model: str, scenario: str, fields: dict[str, Any], usd: str | None
) -> None:
    """By the tokens of each kind, or by the provider's own figure."""
    assert await figure(tmp_path, model, scenario, **fields) == [Decimal(usd) if usd else None]


USAGES: list[tuple[dict[str, Any] | None, TokenUsage | None]] = [
    (None, None),
    ({"input_tokens": 5}, None),
    ({"input_tokens": -1, "output_tokens": 5}, None),
    ({"input_tokens": True, "output_tokens": 5}, None),
    ({"input_tokens": 5, "output_tokens": 7}, TokenUsage(text_input=5, image_output=7)),
    (
        {"input_tokens": 9, "output_tokens": 7, "input_tokens_details": {"image_tokens": 4, "cached_tokens": 2}},
        TokenUsage(text_input=3, cached_text_input=2, image_input=4, image_output=7),
    ),
    (
        {
            "input_tokens": 9,
            "output_tokens": 7,
            "input_tokens_details": {
                "image_tokens": 4,
                "cached_tokens": 4,
                "cached_tokens_details": {"image_tokens": 3, "text_tokens": 1},
            },
            "output_tokens_details": {"image_tokens": 5, "text_tokens": 2},
        },
        TokenUsage(4, 1, 1, 3, image_output=5, text_output=2),
    ),
    (  # details above their sums are no more than these
        {
            "input_tokens": 2,
            "output_tokens": 3,
            "input_tokens_details": {
                "image_tokens": 9,
                "cached_tokens_details": {"image_tokens": 99, "text_tokens": 9},
            },
            "output_tokens_details": {"text_tokens": 99},
        },
        TokenUsage(cached_image_input=2, text_output=3),
    ),
    (
        {"input_tokens": 2, "output_tokens": 3, "input_tokens_details": [], "output_tokens_details": "x"},
        TokenUsage(text_input=2, image_output=3),
    ),
]


@pytest.mark.parametrize(("usage", "used"), USAGES)
async def test_a_usage_of_openai_is_read_by_its_kinds(
    tmp_path: Path, usage: dict[str, Any] | None, used: TokenUsage | None
) -> None:
    """Whatever is missing or wrong in it; without sums there is no figure, and the quote is charged."""
    row = CATALOGUE.models[GPT_2]
    reply = {"created": 1, "data": [{"b64_json": base64.b64encode(png()).decode()}], "usage": usage}
    async with raw_server(replying([], reply)) as server, upstream(server.url, tmp_path) as bench:
        made = await bench.make(order(GPT_2))
    assert len(made.stored) == 1
    assert made.reports[0].usd == (row.usd_of(used) if used is not None else None)


async def test_a_usage_of_google_is_read_by_its_kinds(tmp_path: Path) -> None:
    """And passed on in OpenAI's form."""
    usage = {
        "promptTokenCount": 10,
        "cachedContentTokenCount": 3,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 6}, {"modality": "IMAGE", "tokenCount": 4}],
        "cacheTokensDetails": [{"modality": "IMAGE", "tokenCount": 1}],
        "candidatesTokenCount": 20,
        "candidatesTokensDetails": [{"modality": "IMAGE", "tokenCount": 15}],
        "thoughtsTokenCount": 7,
    }
    reply = {**answer(part(png())), "usageMetadata": usage}
    async with raw_server(replying([], reply)) as server, upstream(server.url, tmp_path) as bench:
        (report,) = (await bench.make(order(BANANA))).reports
    assert report.usd == CATALOGUE.models[BANANA].usd_of(TokenUsage(4, 2, 3, 1, image_output=15, text_output=12))
    assert report.usage == {
        "input_tokens": 10,
        "input_tokens_details": {"text_tokens": 6, "image_tokens": 4},
        "output_tokens": 27,
        "output_tokens_details": {"image_tokens": 15, "text_tokens": 12},
        "total_tokens": 37,
    }


# --- the last picture that is no thought ------------------------------------------------------------------------------


def part(data: bytes, **more: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(data).decode()}, **more}


def answer(*parts: dict[str, Any], reason: str | None = "STOP") -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, "finishReason": reason}]}


TEXT = {"text": "Here it is."}
THOUGHT = {"thought": True}
PARTS: list[tuple[dict[str, Any], int | str]] = [
    (answer(part(png(1))), 1),
    (answer(part(png(1)), part(png(2)), TEXT, part(png(3))), 3),
    (answer(part(png(1), **THOUGHT), part(png(2)), part(png(3), **THOUGHT)), 2),
    (answer(TEXT, part(png(1)), TEXT, part(png(2), thought=False, thoughtSignature="x" * 1_000_000)), 2),
    (answer({"thought": True, **part(png(1))}, part(png(2))), 2),
    (answer(part(png(1)), part(b"<html>", **THOUGHT)), 1),
    (answer(part(b"<html>"), part(png(2))), 2),
    (answer(part(png(1)), reason=None), 1),
    (answer(part(png(1), **THOUGHT)), "no_image"),
    (answer(TEXT), "no_image"),
    (answer(reason="NO_IMAGE"), "no_image"),
    (answer(part(png(1)), reason="MAX_TOKENS"), "no_image"),
    (answer(part(png(1)), reason="IMAGE_SAFETY"), "content_policy"),
    (answer(reason="PROHIBITED_CONTENT"), "content_policy"),
    ({"promptFeedback": {"blockReason": "OTHER"}}, "content_policy"),
    ({"candidates": []}, "bad_reply"),
    ({}, "bad_reply"),
    (answer(part(b"<html>")), "bad_image"),
    (answer(part(png(1)), part(b"<html>")), "bad_image"),
]


@pytest.mark.parametrize(("reply", "expected"), PARTS)
async def test_the_last_picture_that_is_no_thought_is_published_and_no_other(
    tmp_path: Path, reply: dict[str, Any], expected: int | str
) -> None:
    """A draft never gets into the store, not even for a moment; nothing of what was blocked at its end is ours."""
    written: list[str] = []
    async with raw_server(replying([], reply)) as server, upstream(server.url, tmp_path) as bench:
        made = await bench.make(order(BANANA))
        written += [str(path) for path in bench.root.rglob("*") if path.is_file()]
    if isinstance(expected, str):
        assert end_of(made) == expected and made.stored == {} and written == []
        return
    assert made.failures == [] and len(written) == 1
    assert (bench.root / made.stored[0].path).read_bytes() == png(expected)


async def test_at_most_two_pictures_of_a_reply_are_kept_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last one so far and the one that arrives, in the spool: however many drafts there are."""
    size_bytes, most = 3_000_000, [0]
    take = Spool.take

    async def counted(spool: Spool, org_id: str, more_bytes: int) -> None:
        await take(spool, org_id, more_bytes)
        most[0] = max(most[0], spool.shares.taken)

    monkeypatch.setattr(Spool, "take", counted)
    async with simulated(tmp_path) as bench:
        await bench.behave(BANANA, "drafts", bytes=size_bytes)
        made = await bench.make(order(BANANA))
    assert end_of(made) == "delivered" and made.stored[0].size_bytes >= size_bytes
    assert size_bytes < most[0] < 2.1 * size_bytes, "of four"


async def test_a_second_candidate_is_not_looked_at(tmp_path: Path) -> None:
    """One was asked for."""
    reply = answer(part(png(1)))
    reply["candidates"] += answer(part(png(2)))["candidates"]
    async with raw_server(replying([], reply)) as server, upstream(server.url, tmp_path) as bench:
        made = await bench.make(order(BANANA))
    assert (bench.root / made.stored[0].path).read_bytes() == png(1)


async def test_a_reply_that_breaks_off_after_a_draft_brings_nothing(tmp_path: Path) -> None:
    """It may have been one."""
    whole = orjson.dumps(answer(part(png(1)), part(png(2))))

    async def script(peer: Any) -> None:
        await peer.read_request()
        await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(whole) + whole[: len(whole) * 2 // 3])

    async with raw_server(script) as server, upstream(server.url, tmp_path) as bench:
        made = await bench.make(order(BANANA))
    assert end_of(made) == "no_answer" and made.stored == {}


async def test_on_vertex_the_same_row_is_asked_at_its_address(tmp_path: Path) -> None:
    """The method stands after the model, as for Imagen."""
    asked: list[bytes] = []
    async with (
        raw_server(replying(asked, answer(part(png())))) as server,
        upstream("http://127.0.0.1:9", tmp_path) as bench,
    ):
        row: Model = CATALOGUE.models[PRO].model_copy(update={"url": f"{server.url}/publishers/google/models"})
        made = await bench.make(Order(PRO, row, "un faro", 1, "1024x1024", None))
    assert asked[0].split(b" ")[1] == b"/publishers/google/models/gemini-3-pro-image:generateContent" and made.stored
