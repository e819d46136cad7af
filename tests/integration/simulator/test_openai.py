"""The simulated OpenAI, as its clients see it: dall-e-3, and all that gpt-image-1 can be told."""

import base64
from typing import Any

import httpx2
import openai
import pytest

from tests.kits.simulator import (
    DALL_E_WAY,
    GPT,
    OPENAI_WAY,
    Simulator,
    images,
    opened,
)

DALL_E = "openai/dall-e-3"


def dall_e(simulator: Simulator, **order: Any) -> httpx2.Response:
    return simulator.post(DALL_E_WAY, **order)


# --- gpt-image-1


def test_gpt_image_takes_all_its_parameters_and_echoes_those_that_the_real_one_echoes(simulator: Simulator) -> None:
    order = {
        "output_format": "webp",
        "output_compression": 40,
        "background": "transparent",
        "moderation": "low",
        "user": "customer-7",
        "quality": "medium",
        "size": "1024x1536",
        "n": 2,
    }
    reply = simulator.openai(**order)
    body = reply.json()
    echoes = {name: body[name] for name in ("output_format", "background", "quality", "size")}
    assert echoes == {name: order[name] for name in echoes}
    assert set(body) == {"created", "data", "usage", *echoes}
    assert body["usage"]["output_tokens"] == 2 * 1568


@pytest.mark.parametrize("output_format", ["png", "webp"])
def test_a_transparent_background_is_transparent(simulator: Simulator, output_format: str) -> None:
    (data,) = images(simulator.openai(output_format=output_format, background="transparent"))
    picture = opened(data)
    assert picture.mode == "RGBA"
    assert picture.getchannel("A").getextrema() == (0, 255)
    (plain,) = images(simulator.openai(output_format=output_format))
    assert opened(plain).mode == "RGB"


@pytest.mark.parametrize("output_format", ["jpeg", "webp"])
def test_output_compression_makes_the_picture_smaller(simulator: Simulator, output_format: str) -> None:
    sizes = [
        len(images(simulator.openai(output_format=output_format, output_compression=level))[0])
        for level in (100, 30, 0)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[2]


def test_moderation_blocked_output_names_stage_and_categories(simulator: Simulator) -> None:
    simulator.behave(GPT, "moderation_blocked_output")
    reply = simulator.openai()
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (
        400,
        "image_generation_user_error",
        "moderation_blocked",
    )
    assert (error["moderation_stage"], error["categories"]) == ("output", ["violence"])
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


def test_unverified_403(simulator: Simulator) -> None:
    simulator.behave(GPT, "unverified_403")
    reply = simulator.openai()
    assert (reply.status_code, reply.json()["error"]["type"]) == (403, "invalid_request_error")
    assert simulator.jobs() == []


@pytest.mark.parametrize("way", [OPENAI_WAY, DALL_E_WAY])
def test_insufficient_quota_429(simulator: Simulator, way: Any) -> None:
    simulator.behave(way[0], "insufficient_quota_429")
    reply = simulator.post(way)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["code"]) == (429, "insufficient_quota", "insufficient_quota")
    assert "retry-after" not in reply.headers
    assert simulator.jobs() == []


def test_fewer_images_by_as_many_as_one_likes(simulator: Simulator) -> None:
    simulator.behave(GPT, "fewer_images", last=3)
    assert len(images(simulator.openai(n=8, output_format="jpeg"))) == 5
    assert (simulator.job()["n"], simulator.billed()) == (8, 5)


# --- dall-e-3


@pytest.mark.parametrize("size", ["1024x1024", "1792x1024", "1024x1792"])
@pytest.mark.parametrize("response_format", [None, "url", "b64_json"])
def test_a_dall_e_reply_has_one_png_of_the_size_asked_for(
    simulator: Simulator, size: str, response_format: str | None
) -> None:
    body = dall_e(simulator, size=size, response_format=response_format, quality="hd", style="natural", n=1).json()
    assert set(body) == {"created", "data"}
    (item,) = body["data"]
    assert "un faro" in item.pop("revised_prompt")
    ((name, value),) = item.items()
    assert name == (response_format or "url")
    data = simulator.http.get(value).content if name == "url" else base64.b64decode(value, validate=True)
    picture = opened(data)
    assert (f"{picture.width}x{picture.height}", picture.format) == (size, "PNG")


def test_a_dall_e_url_is_signed_and_is_worth_nothing_without_its_query(simulator: Simulator) -> None:
    url = httpx2.URL(dall_e(simulator).json()["data"][0]["url"])
    assert {"st", "se", "sp", "sr", "sig"} <= set(url.params)
    assert str(url).startswith(f"{simulator.url}/files/")
    assert simulator.http.get(url).headers["content-type"] == "image/png"
    for damaged in (url.copy_with(query=None), url.copy_set_param("sig", "forged")):
        assert simulator.http.get(damaged).status_code == 403
    assert simulator.http.get(url).status_code == 200


@pytest.mark.parametrize(
    ("order", "code", "param"),
    [
        *[
            ({name: value}, "unknown_parameter", name)
            for name, value in {
                "output_format": "png",
                "output_compression": 50,
                "background": "auto",
                "moderation": "auto",
                "stream": False,
                "partial_images": 1,
                "seed": 7,
            }.items()
        ],
        ({"n": 2}, "integer_above_max_value", "n"),
        ({"n": 0}, "integer_below_min_value", "n"),
        ({"size": "1536x1024"}, "invalid_value", "size"),
        ({"size": "auto"}, "invalid_value", "size"),
        ({"quality": "high"}, "invalid_value", "quality"),
        ({"quality": "low"}, "invalid_value", "quality"),
        ({"style": "vector"}, "invalid_value", "style"),
        ({"response_format": "file"}, "invalid_value", "response_format"),
        ({"prompt": "x" * 4_001}, "string_above_max_length", "prompt"),
        ({"prompt": None}, "missing_required_parameter", "prompt"),
    ],
)
def test_dall_e_refuses_what_the_real_one_refuses(
    simulator: Simulator, order: dict[str, Any], code: str, param: str
) -> None:
    reply = dall_e(simulator, **order)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (400, code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert simulator.jobs() == []


def test_null_is_unset_for_dall_e_too(simulator: Simulator) -> None:
    nulls = dict.fromkeys(["n", "size", "quality", "style", "output_format", "background", "user", "stream"])
    assert dall_e(simulator, **nulls).status_code == 200


def test_content_policy_violation(simulator: Simulator) -> None:
    simulator.behave(DALL_E, "content_policy_violation")
    reply = dall_e(simulator)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"]) == (400, "content_policy_violation")
    assert error["type"] == "invalid_request_error"
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


@pytest.mark.parametrize(
    ("scenario", "status"), [("image_404", 404), ("image_expired_403", 403), ("image_redirect_secret", 307)]
)
def test_a_spoilt_dall_e_url(simulator: Simulator, scenario: str, status: int) -> None:
    simulator.behave(DALL_E, scenario)
    reply = simulator.http.get(dall_e(simulator).json()["data"][0]["url"])
    assert reply.status_code == status
    if status == 307:
        assert httpx2.URL(reply.headers["location"]).params["key"] == "sk-simulated-0123456789"
    simulator.behave(DALL_E, "image_other_host")
    assert "elsewhere.example" in dall_e(simulator).json()["data"][0]["url"]


@pytest.mark.parametrize("scenario", ["bad_base64", "empty_image", "html_as_image"])
def test_a_spoilt_dall_e_picture_in_base64(simulator: Simulator, scenario: str) -> None:
    simulator.behave(DALL_E, scenario)
    text = dall_e(simulator, response_format="b64_json").json()["data"][0]["b64_json"]
    assert text == "" or text.startswith(("@", "PCFET0NUWVBF"))


def test_the_official_openai_client_accepts_dall_e(simulator: Simulator) -> None:
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key="sk-x", max_retries=0) as client:
        order: dict[str, Any] = {"model": "dall-e-3", "prompt": "un faro"}
        by_url = client.images.generate(**order, size="1792x1024", quality="hd", style="vivid")
        inline = client.images.generate(**order, response_format="b64_json", user="customer-7")
        assert by_url.data is not None and inline.data is not None
        assert by_url.data[0].url is not None and inline.data[0].b64_json is not None
        assert opened(simulator.http.get(by_url.data[0].url).content).size == (1792, 1024)
        assert opened(base64.b64decode(inline.data[0].b64_json)).size == (1024, 1024)
        assert "un faro" in (by_url.data[0].revised_prompt or "")
        assert by_url.usage is None
        with pytest.raises(openai.BadRequestError) as unknown:
            client.images.generate(**order, output_format="png")
        assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "output_format")
        simulator.behave(DALL_E, "retired")
        with pytest.raises(openai.NotFoundError) as gone:
            client.images.generate(**order)
        assert gone.value.code == "model_not_found"


def test_the_official_client_waits_as_long_as_it_is_told_but_not_over_two_minutes(simulator: Simulator) -> None:
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key="sk-x") as client:
        simulator.behave(DALL_E, "rate_limited_429", retry_after=121, times=None)
        with pytest.raises(openai.RateLimitError) as limited:
            client.images.generate(model="dall-e-3", prompt="un faro")
        assert limited.value.response.headers["retry-after"] == "121"
        assert limited.value.request.headers["x-stainless-retry-count"] == "0"
