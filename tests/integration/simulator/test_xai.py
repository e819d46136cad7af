"""The simulated xAI, as its clients see it."""

import base64
from typing import Any

import openai
import pytest

from tests.kits.simulator import (
    GROK,
    IMAGINE_WAY,
    XAI_AUTH,
    XAI_PATH,
    XAI_WAY,
    Simulator,
    Way,
    opened,
)

IMAGINE = "xai/grok-imagine-image"
BOTH = [pytest.param(XAI_WAY, id="grok-2"), pytest.param(IMAGINE_WAY, id="grok-imagine")]


def test_a_grok_2_reply_has_all_its_keys_and_no_created(simulator: Simulator) -> None:
    reply = simulator.post(XAI_WAY, n=2, user="customer-7")
    body = reply.json()
    assert set(body) == {"data", "model", "usage"}
    assert (body["model"], body["usage"]) == ("grok-2-image-1212", {"cost_in_usd_ticks": 1_400_000_000})
    assert [set(item) for item in body["data"]] == [{"url", "mime_type", "revised_prompt"}] * 2
    assert reply.headers["x-request-id"] == simulator.job()["request_id"]
    for item in body["data"]:
        assert "un faro" in item["revised_prompt"]
        picture = simulator.http.get(item["url"])
        assert picture.headers["content-type"] == item["mime_type"] == "image/jpeg"
        assert (opened(picture.content).format, opened(picture.content).size) == ("JPEG", (1024, 768))


def test_a_longer_prompt_is_as_long_as_one_likes(simulator: Simulator) -> None:
    """4,000 characters of four bytes each by default."""
    for more, characters in (({}, 4_000), ({"bytes": 40_000}, 10_000)):
        simulator.behave(GROK, "longer_prompt", **more)
        assert [len(item["revised_prompt"]) for item in simulator.post(XAI_WAY, n=2).json()["data"]] == [characters] * 2


@pytest.mark.parametrize(
    ("order", "size"),
    [
        ({}, (1024, 1024)),
        ({"aspect_ratio": "auto"}, (1024, 1024)),
        ({"aspect_ratio": "3:2"}, (1248, 832)),
        ({"aspect_ratio": "9:19.5"}, (688, 1504)),
        ({"aspect_ratio": "16:9", "resolution": "2k"}, (2736, 1536)),
    ],
)
def test_a_grok_imagine_reply(simulator: Simulator, order: dict[str, Any], size: tuple[int, int]) -> None:
    body = simulator.post(IMAGINE_WAY, response_format="b64_json", **order).json()
    assert set(body) == {"data", "model", "usage"}
    assert (body["model"], body["usage"]["cost_in_usd_ticks"]) == ("grok-imagine-image", 200_000_000)
    (item,) = body["data"]
    assert set(item) == {"b64_json", "mime_type", "respect_moderation"}
    assert (item["mime_type"], item["respect_moderation"]) == ("image/jpeg", True)
    assert opened(base64.b64decode(item["b64_json"], validate=True)).size == size


@pytest.mark.parametrize(
    ("order", "text"),
    [
        ({"size": "1024x1024"}, "Argument not supported: size"),
        ({"quality": "hd"}, "Argument not supported: quality"),
        ({"style": "vivid"}, "Argument not supported: style"),
        ({"n": 0}, "n must be"),
        ({"n": 11}, "n must be"),
        ({"n": "2"}, "n must be"),
        ({"response_format": "file"}, "response_format must be"),
        ({"prompt": None}, "prompt must be"),
        ({"prompt": ""}, "prompt must be"),
        ({"user": 7}, "user must be"),
        ({"model": "grok-9"}, "Model not found: grok-9"),
        ({"model": None}, "Model not found"),
    ],
)
@pytest.mark.parametrize("way", BOTH)
def test_xai_refuses_what_the_real_one_refuses(
    simulator: Simulator, way: Way, order: dict[str, Any], text: str
) -> None:
    reply = simulator.post(way, **order)
    body = reply.json()
    assert (reply.status_code, set(body)) == (400, {"code", "error"})
    assert body["error"].startswith(text)
    assert simulator.jobs() == []


def test_a_ratio_is_only_for_grok_imagine(simulator: Simulator) -> None:
    for name, value in {"aspect_ratio": "1:1", "resolution": "1k"}.items():
        reply = simulator.post(XAI_WAY, **{name: value})
        assert (reply.status_code, reply.json()["error"]) == (400, f"Argument not supported: {name}")
    assert simulator.post(IMAGINE_WAY, aspect_ratio="5:2").status_code == 400
    assert simulator.post(IMAGINE_WAY, resolution="4k").status_code == 400


def test_grok_2_has_three_names(simulator: Simulator) -> None:
    for name in ("grok-2-image", "grok-2-image-1212", "grok-2-image-latest"):
        assert simulator.post(XAI_WAY, model=name).json()["model"] == "grok-2-image-1212"
    assert {job["model"] for job in simulator.jobs()} == {GROK}


def test_xai_wants_a_bearer_key_json_and_a_known_path(simulator: Simulator) -> None:
    url = simulator.url + XAI_PATH
    for headers in ({}, {"authorization": "Key id:secret"}):
        assert simulator.http.post(url, headers=headers, json={}).status_code == 401
    for content in (b"", b"{", b"[]"):
        assert simulator.http.post(url, headers=XAI_AUTH, content=content).status_code == 400
    assert simulator.http.post(f"{simulator.url}/xai/v1/images/edits", headers=XAI_AUTH).status_code == 404


@pytest.mark.parametrize("scenario", ["http_500", "moderation_400", "unauthorized_401", "http_503", "retired"])
def test_an_error_comes_in_any_of_three_forms(simulator: Simulator, scenario: str) -> None:
    shapes = {"nested": {"error"}, "coded": {"code", "error"}, "bare": {"error"}}
    for form, keys in shapes.items():
        simulator.behave(GROK, scenario, form=form)
        body = simulator.post(XAI_WAY).json()
        assert set(body) == keys
        assert isinstance(body["error"], dict if form == "nested" else str)
        if form == "nested":
            assert set(body["error"]) == {"message", "type", "param", "code"}


# --- scenarios


@pytest.mark.parametrize("way", BOTH)
@pytest.mark.parametrize("response_format", ["url", "b64_json"])
def test_moderated_items(simulator: Simulator, way: Way, response_format: str) -> None:
    simulator.behave(way[0], "moderated_items", last=2)
    body = simulator.post(way, n=3, response_format=response_format).json()
    assert [item.get("respect_moderation", True) for item in body["data"]] == [True, False, False]
    assert body["data"][0][response_format]
    assert [(item["url"], item["b64_json"]) for item in body["data"][1:]] == [(None, None)] * 2
    assert body["usage"]["cost_in_usd_ticks"] == (700_000_000 if way[0] == GROK else 200_000_000)
    assert (simulator.job()["n"], simulator.delivered(), simulator.billed()) == (3, 1, 1)
    simulator.behave(way[0], "moderated_items", all=True)
    body = simulator.post(way, n=2).json()
    assert [item["respect_moderation"] for item in body["data"]] == [False, False]
    assert body["usage"]["cost_in_usd_ticks"] == 0
    assert simulator.billed() == 1


@pytest.mark.parametrize("way", BOTH)
def test_empty_data(simulator: Simulator, way: Way) -> None:
    simulator.behave(way[0], "empty_data")
    reply = simulator.post(way, n=4)
    body = reply.json()
    assert (reply.status_code, body["data"]) == (200, [])
    assert isinstance(body["block_reason"], str)
    assert (simulator.job()["state"], simulator.billed()) == ("done", 0)


def test_moderation_400(simulator: Simulator) -> None:
    simulator.behave(GROK, "moderation_400")
    reply = simulator.post(XAI_WAY)
    assert reply.status_code == 400
    assert "content moderation" in reply.json()["error"]
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


@pytest.mark.parametrize("way", BOTH)
@pytest.mark.parametrize(
    ("scenario", "prefix", "label"),
    [
        ("ok", "", "image/jpeg"),
        ("data_uri", "data:image/jpeg;base64,", "image/jpeg"),
        ("png_label", "data:image/png;base64,", "image/png"),
    ],
)
def test_the_b64_json_may_be_a_data_uri_and_its_label_wrong(
    simulator: Simulator, way: Way, scenario: str, prefix: str, label: str
) -> None:
    simulator.behave(way[0], scenario)
    (item,) = simulator.post(way, response_format="b64_json").json()["data"]
    assert item["b64_json"].startswith(prefix)
    assert item["mime_type"] == label
    data = base64.b64decode(item["b64_json"].removeprefix(prefix), validate=True)
    assert opened(data).format == "JPEG"


def test_png_label_of_a_url(simulator: Simulator) -> None:
    simulator.behave(GROK, "png_label")
    (item,) = simulator.post(XAI_WAY).json()["data"]
    assert item["mime_type"] == "image/png"
    assert opened(simulator.http.get(item["url"]).content).format == "JPEG"


def test_served_by_another(simulator: Simulator) -> None:
    simulator.behave(IMAGINE, "served_by_another")
    body = simulator.post(IMAGINE_WAY, n=2).json()
    assert (body["model"], body["usage"]["cost_in_usd_ticks"]) == ("grok-imagine-image-2.0", 800_000_000)
    assert simulator.billed() == 2


def test_retired_400(simulator: Simulator) -> None:
    simulator.behave(GROK, "retired_400")
    reply = simulator.post(XAI_WAY)
    assert (reply.status_code, reply.json()["error"]) == (400, "Model not found: grok-2-image")
    assert simulator.jobs() == []


@pytest.mark.parametrize("scenario", ["bad_base64", "empty_image", "html_as_image"])
def test_spoilt_pictures_in_base64(simulator: Simulator, scenario: str) -> None:
    simulator.behave(GROK, scenario)
    good, bad = simulator.post(XAI_WAY, n=2, response_format="b64_json").json()["data"]
    opened(base64.b64decode(good["b64_json"], validate=True))
    assert bad["b64_json"] == "" or bad["b64_json"].startswith(("@", "PCFET0NUWVBF"))


@pytest.mark.parametrize(("scenario", "status"), [("image_404", 404), ("image_redirect_metadata", 302)])
def test_spoilt_result_urls_of_xai(simulator: Simulator, scenario: str, status: int) -> None:
    simulator.behave(GROK, scenario)
    good, bad = simulator.post(XAI_WAY, n=2).json()["data"]
    assert simulator.http.get(good["url"]).status_code == 200
    assert simulator.http.get(bad["url"]).status_code == status


# --- the official OpenAI client, as xAI's customers use it


@pytest.mark.parametrize("model", ["grok-2-image", "grok-imagine-image"])
def test_the_official_openai_client_accepts_xai(simulator: Simulator, model: str) -> None:
    with openai.OpenAI(base_url=f"{simulator.url}/xai/v1", api_key="xai-x", max_retries=0) as client:

        def generate(**order: Any) -> Any:
            return client.images.generate(**{"model": model, "prompt": "un faro"} | order)

        by_url, inline = generate(n=2), generate(response_format="b64_json")
        assert [opened(simulator.http.get(item.url).content).format for item in by_url.data] == ["JPEG", "JPEG"]
        assert opened(base64.b64decode(inline.data[0].b64_json)).format == "JPEG"
        assert by_url.created is None  # what the client makes of a reply that does not say
        assert by_url.usage.cost_in_usd_ticks > 0
        assert by_url.model.startswith(model)

        with pytest.raises(openai.BadRequestError) as unsupported:
            generate(size="1024x1024")
        # A text in place of an error object: the client keeps it as the body, and its own message is without it.
        assert (str(unsupported.value), unsupported.value.body) == ("Error code: 400", "Argument not supported: size")
        for scenario, error in [
            ("retired", openai.InternalServerError),
            ("retired_400", openai.BadRequestError),
            ("rate_limited_429", openai.RateLimitError),
            ("unauthorized_401", openai.AuthenticationError),
            ("moderation_400", openai.BadRequestError),
            ("http_503", openai.InternalServerError),
        ]:
            for form in ("nested", "coded", "bare"):
                simulator.behave(f"xai/{model}", scenario, form=form)
                with pytest.raises(error):
                    generate()
        simulator.behave(f"xai/{model}", "empty_data")
        assert generate().data == []


def test_the_official_client_s_own_retries_make_three_of_a_deprecation(simulator: Simulator) -> None:
    simulator.behave(GROK, "retired", times=3)
    with openai.OpenAI(base_url=f"{simulator.url}/xai/v1", api_key="xai-x") as client:
        with pytest.raises(openai.InternalServerError) as gone:
            client.images.generate(model="grok-2-image", prompt="un faro")
        assert gone.value.request.headers["x-stainless-retry-count"] == "2"
        assert simulator.post(XAI_WAY).status_code == 200
