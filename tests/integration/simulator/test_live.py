"""The simulated models that are live, as their clients see them, their providers' own among these."""

import base64
import json
import subprocess
import sys
from typing import Any

import httpx2
import openai
import pytest
from google import genai
from google.genai import types

from simulator.app import make_world
from tests.kits.simulator import (
    BANANA,
    CONTENT,
    FAL_AUTH,
    FLUX,
    FLUX_2,
    GOOGLE_AUTH,
    GPT_2,
    SUCCESSOR_WAYS,
    XAI_AUTH,
    XAI_PATH,
    Simulator,
    Way,
    eventually,
    fal_environment,
    opened,
)

OPENAI_WAYS = [way for way in SUCCESSOR_WAYS if way[0].startswith("openai/")]
GOOGLE_WAYS = [way for way in SUCCESSOR_WAYS if way[0].startswith("google/")]
GPT_2_WAY, BANANA_WAY = OPENAI_WAYS[0], GOOGLE_WAYS[0]


def names(ways: list[Way]) -> list[Any]:
    return [pytest.param(way, id=way[0]) for way in ways]


# --- OpenAI


@pytest.mark.parametrize(
    ("size", "quality", "tokens"),
    [
        ("1024x1024", "low", 196),
        ("1024x1024", "medium", 1_756),
        ("1024x1024", "high", 7_024),
        ("1024x1024", "auto", 7_024),
        ("2048x2048", "high", 14_272),
        ("3840x2160", "low", 371),
    ],
)
def test_gpt_image_2_uses_the_tokens_of_its_formula(simulator: Simulator, size: str, quality: str, tokens: int) -> None:
    reply = simulator.post(GPT_2_WAY, size=size, quality=quality).json()
    assert reply["usage"]["output_tokens"] == tokens
    picture = opened(base64.b64decode(reply["data"][0]["b64_json"]))
    assert f"{picture.width}x{picture.height}" == size


@pytest.mark.parametrize("size", ["1000x1000", "512x512", "3856x2048", "3840x1264", "1024", "axb", "3840x3840"])
def test_a_size_beyond_its_bounds_is_refused(simulator: Simulator, size: str) -> None:
    reply = simulator.post(GPT_2_WAY, size=size)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, "size")


def test_many_tokens_and_cached_tokens(simulator: Simulator) -> None:
    simulator.behave(GPT_2, "many_tokens")
    assert simulator.post(GPT_2_WAY).json()["usage"]["output_tokens"] == 1_960
    simulator.behave(GPT_2, "cached_tokens")
    assert simulator.post(GPT_2_WAY).json()["usage"]["input_tokens_details"] == {
        "image_tokens": 0,
        "text_tokens": 2,
        "cached_tokens": 1,
        "cached_tokens_details": {"image_tokens": 0, "text_tokens": 1},
    }


def test_a_quality_may_have_a_latency_of_its_own() -> None:
    latency = make_world(1, 3).latency
    high = sorted(latency.draw_s(GPT_2, "high") for _ in range(1_000))
    low = sorted(latency.draw_s(GPT_2, "low") for _ in range(1_000))
    assert high[500] == pytest.approx(126, rel=0.1) and low[500] == pytest.approx(15, rel=0.2)


@pytest.mark.parametrize("way", names(OPENAI_WAYS))
def test_the_official_openai_client_accepts_each_successor(simulator: Simulator, way: Way) -> None:
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key="sk-x", max_retries=0) as client:
        made = client.images.generate(
            model=way[3]["model"], prompt="un faro", n=2, size="1536x1024", quality="low", output_format="webp"
        )
        assert made.data is not None and made.usage is not None
        assert [opened(base64.b64decode(item.b64_json or "")).size for item in made.data] == [(1536, 1024)] * 2
        assert made.usage.output_tokens == 2 * 158


# --- Google


def parts(reply: httpx2.Response) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = reply.json()["candidates"][0]["content"]["parts"]
    return found


def numbers(reply: httpx2.Response) -> list[tuple[bool, bool]]:
    """Tell of each part whether it is a thought, and whether it has a picture."""
    return [(part.get("thought", False), "inlineData" in part) for part in parts(reply)]


@pytest.mark.parametrize("way", names(GOOGLE_WAYS))
@pytest.mark.parametrize(
    ("scenario", "shape"),
    [
        ("ok", [(False, False), (False, True)]),
        ("drafts", [(True, True), (False, True), (False, False), (False, True), (False, True)]),
        ("thought_last", [(False, True), (True, True)]),
        ("thoughts_only", [(True, True)]),
        ("text_only", [(False, False)]),
        ("image_safety", [(False, True)]),
        ("long_signature", [(False, False), (False, True)]),
    ],
)
def test_what_a_reply_of_generate_content_consists_of(
    simulator: Simulator, way: Way, scenario: str, shape: list[tuple[bool, bool]]
) -> None:
    simulator.behave(way[0], scenario)
    reply = simulator.post(way)
    assert numbers(reply) == shape
    assert reply.json()["candidates"][0]["finishReason"] == ("IMAGE_SAFETY" if scenario == "image_safety" else "STOP")
    assert simulator.billed() == (scenario in ("ok", "drafts", "thought_last", "long_signature"))


def test_the_usage_counts_the_picture_its_drafts_and_the_thoughts(simulator: Simulator) -> None:
    usage = simulator.post(BANANA_WAY).json()["usageMetadata"]
    assert usage["candidatesTokensDetails"] == [{"modality": "IMAGE", "tokenCount": 1_120}]
    assert (usage["promptTokenCount"], usage["thoughtsTokenCount"], usage["totalTokenCount"]) == (2, 64, 1_186)
    simulator.behave(BANANA, "many_tokens")
    assert simulator.post(BANANA_WAY).json()["usageMetadata"]["thoughtsTokenCount"] == 100_000


def test_prompt_feedback_and_api_key_invalid_400(simulator: Simulator) -> None:
    simulator.behave(BANANA, "prompt_feedback")
    body = simulator.post(BANANA_WAY).json()
    assert body["promptFeedback"] == {"blockReason": "PROHIBITED_CONTENT"} and "candidates" not in body
    simulator.behave(BANANA, "api_key_invalid_400")
    assert simulator.post(BANANA_WAY).json()["error"]["details"][0]["reason"] == "API_KEY_INVALID"
    assert simulator.billed() == 0


@pytest.mark.parametrize(
    "change",
    [
        {"contents": []},
        {"contents": [{"parts": [{"text": ""}]}]},
        {"contents": [{"parts": [{"inlineData": {}}]}]},
        {"more": 1},
        *(
            {"generationConfig": config}
            for config in (
                {"responseModalities": ["TEXT"]},
                {"imageConfig": {"imageSize": "512"}},
                {"imageConfig": {"aspectRatio": "7:5"}},
                {"imageConfig": {"size": "1K"}},
                {"thinkingConfig": {"thinkingLevel": "none"}},
                {"candidateCount": 2},
                {"imageConfig": 1},
            )
        ),
    ],
)
def test_generate_content_refuses_what_it_does_not_know(simulator: Simulator, change: dict[str, Any]) -> None:
    reply = simulator.post(BANANA_WAY, **change)
    assert (reply.status_code, reply.json()["error"]["status"]) == (400, "INVALID_ARGUMENT")


def test_generate_content_wants_a_key_and_a_known_model(simulator: Simulator) -> None:
    assert simulator.http.post(f"{simulator.url}{BANANA_WAY[1]}", json=CONTENT).status_code == 403
    other = BANANA_WAY[1].replace("gemini-nano-banana-2.1", "gemini-3.1-flash-image")
    assert simulator.http.post(f"{simulator.url}{other}", json=CONTENT, headers=GOOGLE_AUTH).status_code == 404


@pytest.mark.parametrize("way", names(GOOGLE_WAYS))
@pytest.mark.parametrize("express", [False, True])
def test_the_official_google_client_accepts_each_successor(simulator: Simulator, way: Way, express: bool) -> None:
    address, version = (f"{simulator.url}/vertex", "v1") if express else (f"{simulator.url}/google", "v1beta")
    client = genai.Client(
        vertexai=express, api_key="AIza-x", http_options=types.HttpOptions(base_url=address, api_version=version)
    )
    simulator.behave(way[0], "drafts")
    made = client.models.generate_content(
        model=way[0].partition("/")[2],
        contents="un faro",
        config=types.GenerateContentConfig(
            response_modalities=["IMAGE"], image_config=types.ImageConfig(aspect_ratio="16:9", image_size="2K")
        ),
    )
    pictures = [(part.thought, part.inline_data.data or b"") for part in made.parts or [] if part.inline_data]
    assert [thought for thought, _ in pictures] == [True, None, None, None]
    last = opened(pictures[-1][1])
    assert abs(last.width / last.height - 16 / 9) < 0.02
    assert made.usage_metadata is not None and made.usage_metadata.thoughts_token_count == 64


# --- xAI


@pytest.mark.parametrize(
    ("order", "ticks"),
    [
        ({"quality": "low"}, 400_000_000),
        ({}, 600_000_000),
        ({"quality": "low", "resolution": "2k"}, 600_000_000),
        ({"resolution": "2k", "aspect_ratio": "5:2"}, 800_000_000),
    ],
)
def test_grok_imagine_2_costs_by_quality_and_resolution(
    simulator: Simulator, order: dict[str, Any], ticks: int
) -> None:
    with openai.OpenAI(base_url=f"{simulator.url}/xai/v1", api_key="xai-x", max_retries=0) as client:
        made: Any = client.images.generate(
            model="grok-imagine-image-2.0", prompt="un faro", n=2, response_format="b64_json", extra_body=order
        )
    assert made.usage.cost_in_usd_ticks == 2 * ticks and made.model == "grok-imagine-image-2.0"
    assert all(opened(base64.b64decode(item.b64_json)).format == "JPEG" for item in made.data)


def test_quality_is_only_for_grok_imagine_2_and_only_low_or_medium(simulator: Simulator) -> None:
    for model, quality in (("grok-imagine-image", "low"), ("grok-imagine-image-2.0", "max")):
        body = {"model": model, "prompt": "un faro", "quality": quality}
        assert simulator.http.post(simulator.url + XAI_PATH, headers=XAI_AUTH, json=body).status_code == 400


# --- fal


def cancel(simulator: Simulator, ticket: dict[str, Any]) -> tuple[int, str]:
    reply = simulator.http.put(ticket["cancel_url"], headers=FAL_AUTH)
    return reply.status_code, reply.json()["status"]


def test_a_job_that_runs_is_stopped_only_where_its_model_heeds_the_cancel(simulator: Simulator) -> None:
    """stops_when_cancelled: the status is COMPLETED with client_cancelled, the result 499, and nothing is billed."""
    simulator.behave(FLUX, "stops_when_cancelled", seconds=20)
    ticket = simulator.submit().json()
    eventually(lambda: simulator.get(ticket["status_url"]).json()["status"] == "IN_PROGRESS")
    assert cancel(simulator, ticket) == (202, "CANCELLATION_REQUESTED")
    status = simulator.completed(ticket)
    assert status["error_type"] == "client_cancelled" and simulator.get(ticket["response_url"]).status_code == 499
    assert cancel(simulator, ticket) == (400, "ALREADY_COMPLETED")
    job = simulator.job()
    assert (job["state"], job["billed"]) == ("cancelled", False)


FAL_CLIENT = """
import json, sys, fal_client
handle = fal_client.submit(sys.argv[1], {"prompt": "un faro", "image_size": "square_hd"})
done = {"submitted": fal_client.result(sys.argv[1], handle.request_id)}
done["run"] = fal_client.run(sys.argv[1], {"prompt": "un faro"})
print(json.dumps(done))
"""


def test_the_official_fal_client_accepts_flux_2_pro_over_tls(simulator: Simulator) -> None:
    output = subprocess.run(
        [sys.executable, "-c", FAL_CLIENT, "fal-ai/flux-2-pro"],
        env=fal_environment(simulator),
        stdout=subprocess.PIPE,
        timeout=40,
        check=True,
    )
    done = json.loads(output.stdout)
    assert [(item["width"], item["height"]) for item in done["submitted"]["images"]] == [(1024, 1024)]
    assert len(done["run"]["images"]) == 1
    assert [job["model"] for job in simulator.jobs()] == [FLUX_2] * 2
