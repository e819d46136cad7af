"""The simulated fal's other models, as their clients see them."""

import base64
import json
import subprocess
import sys
from typing import Any

import httpx2
import pytest

from tests.kits.simulator import (
    FAL_AUTH,
    FLUX,
    IDEOGRAM_WAY,
    RECRAFT_WAY,
    SD_WAY,
    ULTRA_WAY,
    Simulator,
    Way,
    fal_environment,
    opened,
)

ULTRA, RECRAFT, IDEOGRAM, SD = (way[0] for way in (ULTRA_WAY, RECRAFT_WAY, IDEOGRAM_WAY, SD_WAY))
FOUR = [pytest.param(way, id=way[0]) for way in (ULTRA_WAY, RECRAFT_WAY, IDEOGRAM_WAY, SD_WAY)]
FLAGGED = [pytest.param(way, id=way[0]) for way in (ULTRA_WAY, SD_WAY)]


def queued(simulator: Simulator, way: Way, **order: Any) -> httpx2.Response:
    """The result, by way of the queue."""
    _, path, auth, body = way
    url = simulator.url + path.replace("/fal/run/", "/fal/queue/")
    ticket = simulator.http.post(url, headers=auth, json=body | order).json()
    simulator.completed(ticket)
    return simulator.get(ticket["response_url"])


def picture(simulator: Simulator, reply: httpx2.Response) -> Any:
    (item,) = reply.json()["images"]
    fetched = simulator.http.get(item["url"])
    assert fetched.headers["content-type"] == item["content_type"]
    return opened(fetched.content)


# --- what each replies


@pytest.mark.parametrize("way", FLAGGED)
@pytest.mark.parametrize("by_queue", [False, True])
def test_ultra_and_stable_diffusion_tell_all(simulator: Simulator, way: Way, by_queue: bool) -> None:
    order = {"num_images": 2, "seed": 7}
    body = (queued(simulator, way, **order) if by_queue else simulator.post(way, **order)).json()
    assert set(body) == {"images", "timings", "seed", "has_nsfw_concepts", "prompt"}
    assert (body["seed"], body["has_nsfw_concepts"], body["prompt"]) == (7, [False, False], "un faro")
    assert [set(item) for item in body["images"]] == [{"url", "width", "height", "content_type"}] * 2
    for item in body["images"]:
        shown = opened(simulator.http.get(item["url"]).content)
        assert (shown.size, shown.format) == ((item["width"], item["height"]), "JPEG")
    job = simulator.job()
    assert (job["model"], job["n"], job["images_delivered"]) == (way[0], 2, 2)


@pytest.mark.parametrize("by_queue", [False, True])
def test_recraft_and_ideogram_tell_neither_sizes_nor_flags(simulator: Simulator, by_queue: bool) -> None:
    for way, kind, keys in ((RECRAFT_WAY, "webp", {"images"}), (IDEOGRAM_WAY, "png", {"images", "seed"})):
        reply = queued(simulator, way) if by_queue else simulator.post(way)
        assert set(reply.json()) == keys
        (item,) = reply.json()["images"]
        assert set(item) == {"url", "content_type", "file_name", "file_size", "file_data"}
        assert (item["content_type"], item["file_name"]) == (f"image/{kind}", f"image.{kind}")
        assert item["file_size"] == len(simulator.http.get(item["url"]).content)
        assert picture(simulator, reply).format == kind.upper()


@pytest.mark.parametrize(
    ("ratio", "size"),
    [
        (None, (2752, 1536)),
        ("1:1", (2048, 2048)),
        ("16:9", (2752, 1536)),
        ("9:16", (1536, 2752)),
        ("4:3", (2368, 1792)),
        ("3:2", (2496, 1664)),
        ("2:3", (1664, 2496)),
        ("21:9", (3136, 1344)),
        ("9:21", (1344, 3136)),
        ("5:4", (2304, 1824)),
    ],
)
def test_ultra_pictures_are_of_the_ratio_asked_for(
    simulator: Simulator, ratio: str | None, size: tuple[int, int]
) -> None:
    order = {} if ratio is None else {"aspect_ratio": ratio}
    (item,) = simulator.post(ULTRA_WAY, **order).json()["images"]
    assert (item["width"], item["height"]) == size
    if ratio == "21:9":
        assert opened(simulator.http.get(item["url"]).content).size == size


@pytest.mark.parametrize(
    ("image_size", "size"),
    [
        (None, (1024, 1024)),
        ("square_hd", (1024, 1024)),
        ("landscape_4_3", (1365, 1024)),
        ("portrait_16_9", (1024, 1820)),
        ({"width": 1536, "height": 1024}, (1536, 1024)),
        ({"width": 1024, "height": 1820}, (1024, 1820)),
    ],
)
def test_recraft_pictures_are_of_the_size_asked_for(
    simulator: Simulator, image_size: Any, size: tuple[int, int]
) -> None:
    order = {} if image_size is None else {"image_size": image_size}
    assert picture(simulator, simulator.post(RECRAFT_WAY, **order)).size == size


@pytest.mark.parametrize(
    ("ratio", "size"),
    [(None, (1024, 1024)), ("1:1", (1024, 1024)), ("16:9", (1376, 768)), ("2:3", (832, 1248)), ("1:3", (576, 1760))],
)
def test_ideogram_pictures_are_of_the_ratio_asked_for(
    simulator: Simulator, ratio: str | None, size: tuple[int, int]
) -> None:
    order = {} if ratio is None else {"aspect_ratio": ratio}
    assert picture(simulator, simulator.post(IDEOGRAM_WAY, **order)).size == size


@pytest.mark.parametrize(
    ("image_size", "size"),
    [
        (None, (1024, 768)),
        ("portrait_16_9", (576, 1024)),
        ({"width": 1536, "height": 1024}, (1536, 1024)),
        ({"width": 1792, "height": 1024}, (1792, 1024)),
    ],
)
def test_stable_diffusion_pictures_are_of_the_size_asked_for(
    simulator: Simulator, image_size: Any, size: tuple[int, int]
) -> None:
    order: dict[str, Any] = {} if image_size is None else {"image_size": image_size}
    shown = picture(simulator, simulator.post(SD_WAY, output_format="png", **order))
    assert (shown.size, shown.format) == (size, "PNG")


def test_recraft_and_ideogram_make_one_whatever_is_asked(simulator: Simulator) -> None:
    for way in (RECRAFT_WAY, IDEOGRAM_WAY):
        assert len(simulator.post(way, num_images=4).json()["images"]) == 1
    assert [job["n"] for job in simulator.jobs()] == [1, 1]


@pytest.mark.parametrize("way", [ULTRA_WAY, IDEOGRAM_WAY, SD_WAY])
def test_sync_mode_gives_the_picture_in_the_reply(simulator: Simulator, way: Way) -> None:
    (item,) = simulator.post(way, sync_mode=True).json()["images"]
    kind, _, data = item["url"].partition(",")
    assert kind == f"data:{item['content_type']};base64"
    opened(base64.b64decode(data, validate=True))


def test_recraft_has_no_sync_mode(simulator: Simulator) -> None:
    (item,) = simulator.post(RECRAFT_WAY, sync_mode=True).json()["images"]
    assert item["url"].startswith(f"{simulator.url}/files/")


def test_the_models_take_all_their_parameters(simulator: Simulator) -> None:
    assert simulator.post(
        ULTRA_WAY, raw=True, image_url=None, image_prompt_strength=0.5, enhance_prompt=True, safety_tolerance="6"
    ).is_success
    assert simulator.post(
        RECRAFT_WAY, style="digital_illustration/pixel_art", style_id=None, colors=[{"r": 1, "g": 2, "b": 3}]
    ).is_success
    assert simulator.post(
        IDEOGRAM_WAY, style="render_3D", negative_prompt="rain", expand_prompt=False, seed=1
    ).is_success
    assert simulator.post(
        SD_WAY, negative_prompt="rain", num_inference_steps=20, guidance_scale=4.5, loras=[], enable_safety_checker=True
    ).is_success


@pytest.mark.parametrize(
    ("way", "order", "loc", "kind"),
    [
        (ULTRA_WAY, {"num_images": 5}, ["num_images"], "less_than_equal"),
        (ULTRA_WAY, {"aspect_ratio": "wide"}, ["aspect_ratio"], "value_error"),
        (ULTRA_WAY, {"aspect_ratio": "0:1"}, ["aspect_ratio"], "value_error"),
        (ULTRA_WAY, {"output_format": "webp"}, ["output_format"], "literal_error"),
        (ULTRA_WAY, {"safety_tolerance": 2}, ["safety_tolerance"], "literal_error"),
        (ULTRA_WAY, {"raw": "yes"}, ["raw"], "bool_type"),
        (ULTRA_WAY, {"image_prompt_strength": 2}, ["image_prompt_strength"], "value_error"),
        (RECRAFT_WAY, {"prompt": "x" * 1_001}, ["prompt"], "string_too_long"),
        (RECRAFT_WAY, {"style": "vivid"}, ["style"], "literal_error"),
        (RECRAFT_WAY, {"style": "natural"}, ["style"], "literal_error"),
        (RECRAFT_WAY, {"image_size": {"width": 1792, "height": 1024}}, ["image_size"], "value_error"),
        (RECRAFT_WAY, {"image_size": "1024x1024"}, ["image_size"], "literal_error"),
        (RECRAFT_WAY, {"colors": "red"}, ["colors"], "list_type"),
        (IDEOGRAM_WAY, {"aspect_ratio": "21:9"}, ["aspect_ratio"], "literal_error"),
        (IDEOGRAM_WAY, {"style": "vivid"}, ["style"], "literal_error"),
        (IDEOGRAM_WAY, {"expand_prompt": 1}, ["expand_prompt"], "bool_type"),
        (IDEOGRAM_WAY, {"prompt": 7}, ["prompt"], "string_type"),
        (SD_WAY, {"num_images": 5}, ["num_images"], "less_than_equal"),
        (SD_WAY, {"num_inference_steps": 0}, ["num_inference_steps"], "greater_than_equal"),
        (SD_WAY, {"guidance_scale": 21}, ["guidance_scale"], "value_error"),
        (SD_WAY, {"image_size": {"width": 9_000, "height": 64}}, ["image_size", "width"], "less_than_equal"),
        (SD_WAY, {"negative_prompt": 1}, ["negative_prompt"], "string_type"),
    ],
)
def test_wrong_input_is_422_at_once_or_in_the_queue_s_result(
    simulator: Simulator, way: Way, order: dict[str, Any], loc: list[str], kind: str
) -> None:
    for reply in (simulator.post(way, **order), queued(simulator, way, **order)):
        (detail,) = reply.json()["detail"]
        assert (reply.status_code, detail["loc"], detail["type"]) == (422, ["body", *loc], kind)
        assert reply.headers["x-fal-billable-units"] == "0"
    assert simulator.billed() == 0


@pytest.mark.parametrize("way", FOUR)
def test_a_prompt_is_needed(simulator: Simulator, way: Way) -> None:
    reply = simulator.http.post(simulator.url + way[1], headers=FAL_AUTH, json={})
    assert (reply.status_code, reply.json()["detail"][0]["type"]) == (422, "missing")


def test_the_queue_keeps_the_models_of_one_owner_apart(simulator: Simulator) -> None:
    url = f"{simulator.url}/fal/queue/fal-ai/recraft/v3/text-to-image"
    ticket = simulator.http.post(url, headers=FAL_AUTH, json={"prompt": "un faro"}).json()
    assert f"/fal/queue/fal-ai/recraft/requests/{ticket['request_id']}" in ticket["response_url"]
    simulator.completed(ticket)
    for old in ("fal-ai/recraft-v3", "fal-ai/stable-diffusion-3.5-large"):
        for way in ("run", "queue"):
            reply = simulator.http.post(f"{simulator.url}/fal/{way}/{old}", headers=FAL_AUTH, json={"prompt": "x"})
            assert (reply.status_code, reply.json()) == (404, {"detail": f"Path /{old} not found"})


# --- scenarios


@pytest.mark.parametrize("way", FLAGGED)
@pytest.mark.parametrize("by_queue", [False, True])
def test_nsfw_blackens_and_is_billed_but_not_delivered(simulator: Simulator, way: Way, by_queue: bool) -> None:
    simulator.behave(way[0], "nsfw")
    body = (queued(simulator, way, num_images=2) if by_queue else simulator.post(way, num_images=2)).json()
    assert body["has_nsfw_concepts"] == [False, True]
    shown = [opened(simulator.http.get(item["url"]).content) for item in body["images"]]
    assert [image.getbbox() is None for image in shown] == [False, True]
    assert [image.mode for image in shown] == ["RGB", "RGB"]
    assert (simulator.delivered(), simulator.billed()) == (1, 2)


def test_nsfw_is_not_looked_for_with_the_checker_off(simulator: Simulator) -> None:
    simulator.behave(SD, "nsfw")
    body = simulator.post(SD_WAY, num_images=2, enable_safety_checker=False).json()
    assert body["has_nsfw_concepts"] == [False, False]
    assert simulator.delivered() == 2


@pytest.mark.parametrize("model", [RECRAFT, IDEOGRAM])
def test_recraft_and_ideogram_have_no_nsfw_flag_to_play(simulator: Simulator, model: str) -> None:
    reply = simulator.http.put(f"{simulator.url}/_sim/behaviour", json={"model": model, "scenario": "nsfw"})
    assert reply.status_code == 400


@pytest.mark.parametrize("way", FOUR)
@pytest.mark.parametrize("by_queue", [False, True])
def test_content_policy_422(simulator: Simulator, way: Way, by_queue: bool) -> None:
    simulator.behave(way[0], "content_policy_422")
    reply = queued(simulator, way) if by_queue else simulator.post(way)
    assert (reply.status_code, reply.json()["detail"][0]["type"]) == (422, "content_policy_violation")
    assert "x-fal-billable-units" not in reply.headers
    assert simulator.billed() == 0


@pytest.mark.parametrize("by_queue", [False, True])
@pytest.mark.parametrize(
    ("scenario", "status", "kind"),
    [
        ("no_media_422", 422, "no_media_generated"),
        ("downstream_400", 400, "downstream_service_error"),
        ("downstream_500", 500, "downstream_service_unavailable"),
        ("generation_timeout_504", 504, "generation_timeout"),
    ],
)
def test_an_error_of_the_model_is_an_array_whatever_its_status(
    simulator: Simulator, scenario: str, status: int, kind: str, by_queue: bool
) -> None:
    simulator.behave(IDEOGRAM, scenario)
    reply = queued(simulator, IDEOGRAM_WAY) if by_queue else simulator.post(IDEOGRAM_WAY)
    (detail,) = reply.json()["detail"]
    assert (reply.status_code, detail["type"]) == (status, kind)
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


def test_locked_403(simulator: Simulator) -> None:
    simulator.behave(FLUX, "locked_403")
    reply = simulator.run()
    assert (reply.status_code, isinstance(reply.json()["detail"], str)) == (403, True)
    assert simulator.jobs() == []


@pytest.mark.parametrize("by_queue", [False, True])
def test_a_vector_style_gives_an_svg(simulator: Simulator, by_queue: bool) -> None:
    order = {"style": "vector_illustration", "image_size": "landscape_4_3", "prompt": "<b>1 & 2</b>\x00"}
    reply = queued(simulator, RECRAFT_WAY, **order) if by_queue else simulator.post(RECRAFT_WAY, **order)
    (item,) = reply.json()["images"]
    assert (item["content_type"], item["file_name"]) == ("image/svg+xml", "image.svg")
    text = simulator.http.get(item["url"]).text
    assert text.startswith("<svg ") and text.endswith("</svg>") and 'width="1365"' in text
    assert "<b>" not in text and "<script" not in text
    simulator.behave(RECRAFT, bytes=200_000)
    (item,) = simulator.post(RECRAFT_WAY, **order).json()["images"]
    assert len(simulator.http.get(item["url"]).content) == 200_000


def test_svg_with_script(simulator: Simulator) -> None:
    simulator.behave(RECRAFT, "svg_with_script")
    (item,) = simulator.post(RECRAFT_WAY).json()["images"]
    assert item["content_type"] == "image/svg+xml"
    assert "<script>" in simulator.http.get(item["url"]).text


@pytest.mark.parametrize("way", FOUR)
def test_the_other_scenarios_of_fal_are_for_every_model(simulator: Simulator, way: Way) -> None:
    wanted = {"completed_with_error": 500, "result_500": 500, "time_to_start": 504}
    for scenario, status in wanted.items():
        simulator.behave(way[0], scenario)
        assert queued(simulator, way).status_code == status
    simulator.behave(way[0], "image_404")
    (item,) = simulator.post(way).json()["images"]
    assert simulator.http.get(item["url"]).status_code == 404


# --- fal's own client

FAL_CLIENT = """
import json, sys, fal_client
done = {}
for name, order in json.loads(sys.argv[1]).items():
    updates = []
    done[name] = {
        "run": fal_client.run(name, order),
        "subscribe": fal_client.subscribe(name, order, on_queue_update=lambda u: updates.append(type(u).__name__)),
        "last": None,
    }
    done[name]["last"] = updates[-1]
    try:
        fal_client.run(name, {**order, "prompt": 7})
    except fal_client.client.FalClientHTTPError as error:
        done[name]["refused"] = [error.status_code, error.message[0]["type"]]
print(json.dumps(done))
"""


def test_the_official_fal_client_accepts_the_four_models_over_tls(simulator: Simulator) -> None:
    orders: dict[str, dict[str, Any]] = {
        "fal-ai/flux-pro/v1.1-ultra": {"prompt": "un faro", "aspect_ratio": "1:1", "num_images": 2},
        "fal-ai/recraft/v3/text-to-image": {"prompt": "un faro", "style": "realistic_image"},
        "fal-ai/ideogram/v2": {"prompt": "un faro", "aspect_ratio": "3:2"},
        "fal-ai/stable-diffusion-v35-large": {"prompt": "un faro", "image_size": "square", "num_images": 2},
    }
    output = subprocess.run(
        [sys.executable, "-c", FAL_CLIENT, json.dumps(orders)],
        env=fal_environment(simulator),
        stdout=subprocess.PIPE,
        timeout=40,
        check=True,
    )
    done = json.loads(output.stdout)
    for name, order in orders.items():
        assert (done[name]["last"], done[name]["refused"]) == ("Completed", [422, "string_type"])
        for way in ("run", "subscribe"):
            images = done[name][way]["images"]
            assert len(images) == order.get("num_images", 1)
            assert images[0]["url"].startswith(f"https://localhost:{simulator.tls_port}/files/")
    assert simulator.billed() == 12
