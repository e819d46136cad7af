"""The simulator's answers in the forms of OpenAI and of fal, checked by their official clients."""

import base64
import json
import ssl
import subprocess
import sys
import time
from contextlib import closing
from typing import Any

import httpx2
import openai
import pytest

from simulator import fal as fal_module
from simulator import files as files_module
from tests.kits.simulator import (
    DIRECT_PATH,
    FAL_AUTH,
    FLUX,
    GPT,
    OPENAI_AUTH,
    OPENAI_PATH,
    QUEUE_PATH,
    Simulator,
    ask,
    eventually,
    fal_environment,
    opened,
)

# --- OpenAI


def test_an_openai_reply_has_all_its_keys(simulator: Simulator) -> None:
    reply = simulator.openai(n=2, quality="low", size="1536x1024", prompt="doce letras!")
    body = reply.json()
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-request-id"].startswith("req_")
    assert "server" not in reply.headers
    assert abs(body["created"] - time.time()) < 60
    assert [list(item) for item in body["data"]] == [["b64_json"]] * 2
    del body["created"], body["data"]
    assert body == {
        "background": "opaque",
        "output_format": "png",
        "quality": "low",
        "size": "1536x1024",
        "usage": {
            "input_tokens": 3,
            "input_tokens_details": {"image_tokens": 0, "text_tokens": 3},
            "output_tokens": 816,
            "output_tokens_details": {"image_tokens": 816, "text_tokens": 0},
            "total_tokens": 819,
        },
    }
    job = simulator.job()
    accepted_at, finished_at = job.pop("accepted_at"), job.pop("finished_at")
    assert time.time() - 60 < accepted_at <= finished_at <= time.time()
    assert job == {
        "provider": "openai",
        "model": GPT,
        "upstream_path": OPENAI_PATH,
        "request_id": reply.headers["x-request-id"],
        "n": 2,
        "images_delivered": 2,
        "images_billed": 2,
        "state": "done",
        "client_gone": False,
        "billed": True,
        "prompt": "doce letras!",
    }


def test_an_openai_body_comes_in_several_pieces(simulator: Simulator) -> None:
    with closing(ask(simulator, (GPT, OPENAI_PATH, OPENAI_AUTH, {"model": "gpt-image-1", "prompt": "x"}))) as raw:
        head = b""
        while b"\r\n\r\n" not in head:
            head += raw.recv(1)
        assert b"transfer-encoding: chunked" in head.lower()


def test_null_is_unset(simulator: Simulator) -> None:
    nulls = dict.fromkeys(["n", "size", "quality", "output_format", "background", "user", "response_format"])
    assert simulator.openai(**nulls).json()["quality"] == "high"


@pytest.mark.parametrize(
    ("order", "status", "code", "param"),
    [
        ({"response_format": "url"}, 400, "unknown_parameter", "response_format"),
        ({"style": "vivid"}, 400, "unknown_parameter", "style"),
        ({"n": 0}, 400, "integer_below_min_value", "n"),
        ({"n": 11}, 400, "integer_above_max_value", "n"),
        ({"n": "2"}, 400, "invalid_type", "n"),
        ({"size": "1792x1024"}, 400, "invalid_value", "size"),
        ({"quality": "hd"}, 400, "invalid_value", "quality"),
        ({"output_format": "gif"}, 400, "invalid_value", "output_format"),
        ({"output_compression": 50}, 400, "invalid_png_output_compression", "output_compression"),
        ({"background": "transparent", "output_format": "jpeg"}, 400, "invalid_value", "background"),
        ({"moderation": "none"}, 400, "invalid_value", "moderation"),
        ({"stream": True}, 400, "unsupported_value", "stream"),
        ({"prompt": None}, 400, "missing_required_parameter", "prompt"),
        ({"prompt": 7}, 400, "invalid_type", "prompt"),
        ({"prompt": "x" * 32_001}, 400, "string_above_max_length", "prompt"),
        ({"model": "gpt-image-9"}, 404, "model_not_found", "model"),
        ({"model": None}, 404, "model_not_found", "model"),
    ],
)
def test_openai_refuses_what_the_real_one_refuses(
    simulator: Simulator, order: dict[str, Any], status: int, code: str, param: str
) -> None:
    reply = simulator.openai(**order)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"]) == (status, "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)
    assert set(error) == {"message", "type", "param", "code"}
    assert simulator.jobs() == []


def test_openai_wants_a_bearer_key_json_and_a_known_path(simulator: Simulator) -> None:
    url = simulator.url + OPENAI_PATH
    for headers in ({}, {"authorization": "Bearer"}, FAL_AUTH):
        assert simulator.http.post(url, headers=headers, json={}).status_code == 401
    for content in (b"", b"{", b"[]"):
        assert simulator.http.post(url, headers=OPENAI_AUTH, content=content).status_code == 400
    reply = simulator.http.post(simulator.url + "/openai/v1/images/edits", headers=OPENAI_AUTH)
    assert (reply.status_code, reply.json()["error"]["type"]) == (404, "invalid_request_error")


def test_the_official_openai_client_accepts_it(simulator: Simulator) -> None:
    api_key = "sk-simulated-0123456789"
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key=api_key, max_retries=0) as client:

        def generate(**order: Any) -> Any:
            return client.images.generate(**{"model": "gpt-image-1", "prompt": "un faro"} | order)

        reply = generate(n=2, size="1024x1536")
        assert reply._request_id.startswith("req_")
        assert reply.usage.total_tokens > 0
        assert [opened(base64.b64decode(item.b64_json)).size for item in reply.data] == [(1024, 1536)] * 2

        with pytest.raises(openai.BadRequestError) as unknown:
            generate(response_format="url")
        assert (unknown.value.code, unknown.value.param) == ("unknown_parameter", "response_format")
        with pytest.raises(openai.NotFoundError) as missing:
            generate(model="dall-e-2")
        assert missing.value.code == "model_not_found"
        for scenario, error in [
            ("unauthorized_401", openai.AuthenticationError),
            ("rate_limited_429", openai.RateLimitError),
            ("moderation_blocked", openai.BadRequestError),
            ("http_500", openai.InternalServerError),
            ("http_503", openai.InternalServerError),
            ("reset", openai.APIConnectionError),
            ("garbage", openai.APIConnectionError),
        ]:
            simulator.behave(GPT, scenario)
            with pytest.raises(error):
                generate()


def test_the_official_client_s_own_retries_are_on_the_bill(simulator: Simulator) -> None:
    simulator.behave(GPT, "reset", times=2)
    with openai.OpenAI(base_url=f"{simulator.url}/openai/v1", api_key="sk-x") as client:
        client.images.generate(model="gpt-image-1", prompt="un faro")
    assert simulator.billed() == 3


# --- fal


def test_a_fal_reply_has_all_its_keys(simulator: Simulator) -> None:
    reply = simulator.run(num_images=2, seed=7)
    body = reply.json()
    assert set(body) == {"images", "timings", "seed", "has_nsfw_concepts", "prompt"}
    assert (body["seed"], body["has_nsfw_concepts"], body["prompt"]) == (7, [False, False], "un faro")
    assert [set(item) for item in body["images"]] == [{"url", "width", "height", "content_type"}] * 2
    assert all(item["url"].startswith(f"{simulator.url}/files/") for item in body["images"])
    assert reply.headers["x-fal-billable-units"] == "2"
    job = simulator.job()
    assert reply.headers["x-fal-request-id"] == job["request_id"]
    assert (job["provider"], job["n"], job["images_delivered"], job["billed"]) == ("fal", 2, 2, True)


def test_sync_mode_gives_the_picture_in_the_reply(simulator: Simulator) -> None:
    (item,) = simulator.run(sync_mode=True).json()["images"]
    kind, _, data = item["url"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert opened(base64.b64decode(data)).size == (1024, 768)


def test_the_queue_gives_a_ticket_whose_urls_leave_out_the_sub_path(simulator: Simulator) -> None:
    reply = simulator.submit()
    ticket = reply.json()
    url = f"{simulator.url}/fal/queue/fal-ai/flux-pro/requests/{ticket['request_id']}"
    assert reply.status_code == 200
    assert ticket == {
        "status": "IN_QUEUE",
        "queue_position": 0,
        "request_id": ticket["request_id"],
        "gateway_request_id": ticket["request_id"],
        "response_url": url,
        "status_url": f"{url}/status",
        "cancel_url": f"{url}/cancel",
    }
    status = simulator.completed(ticket)
    assert set(status) == set(ticket) - {"queue_position", "gateway_request_id"} | {"metrics", "logs"}
    result = simulator.get(url)
    assert result.headers["x-fal-billable-units"] == "1"
    assert opened(simulator.http.get(result.json()["images"][0]["url"]).content).format == "JPEG"
    wrong = simulator.get(f"{simulator.url}{QUEUE_PATH}/requests/{ticket['request_id']}/status")
    assert wrong.status_code == 405
    other = simulator.get(url.replace("flux-pro", "recraft"))
    assert other.status_code == 404


def test_a_job_goes_from_the_queue_into_progress_and_then_is_complete(simulator: Simulator) -> None:
    simulator.behave(FLUX, "slow", seconds=2)
    ticket = simulator.submit().json()
    seen = []

    def step() -> bool:
        reply = simulator.get(ticket["status_url"] + "?logs=1")
        state = (reply.json()["status"], reply.status_code)
        if state not in seen:
            seen.append(state)
            if state[0] != "COMPLETED":
                assert simulator.get(ticket["response_url"]).status_code == 400
        return state == ("COMPLETED", 200)

    eventually(step)
    assert seen == [("IN_QUEUE", 202), ("IN_PROGRESS", 202), ("COMPLETED", 200)]
    assert simulator.billed() == 1


def test_a_cancelled_job_in_the_queue_never_runs_and_is_not_billed(simulator: Simulator) -> None:
    simulator.behave(FLUX, "stuck_in_queue")
    ticket = simulator.submit().json()
    assert simulator.get(ticket["status_url"]).json()["queue_position"] == 0
    assert simulator.job()["state"] == "queued"
    reply = simulator.http.put(ticket["cancel_url"], headers=FAL_AUTH)
    assert (reply.status_code, reply.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    reply = simulator.http.put(ticket["cancel_url"], headers=FAL_AUTH)
    assert (reply.status_code, reply.json()) == (400, {"status": "ALREADY_COMPLETED"})
    assert simulator.completed(ticket)["error_type"] == "client_cancelled"
    assert simulator.get(ticket["response_url"]).status_code == 499
    assert (simulator.job()["state"], simulator.billed()) == ("cancelled", 0)


def test_a_job_in_progress_is_not_stopped_by_a_cancel(simulator: Simulator) -> None:
    simulator.behave(FLUX, "slow", seconds=1.5)
    ticket = simulator.submit().json()
    eventually(lambda: simulator.job()["state"] == "running")
    assert simulator.http.put(ticket["cancel_url"], headers=FAL_AUTH).status_code == 202
    simulator.completed(ticket)
    assert (simulator.job()["state"], simulator.billed()) == ("done", 1)


def test_fal_knows_no_other_request_and_no_other_path(simulator: Simulator) -> None:
    unknown = f"{simulator.url}/fal/queue/fal-ai/flux-pro/requests/none"
    assert simulator.get(unknown).status_code == simulator.get(f"{unknown}/status").status_code == 404
    assert simulator.http.put(f"{unknown}/cancel", headers=FAL_AUTH).json() == {"status": "NOT_FOUND"}
    for way in ("run", "queue"):
        reply = simulator.http.post(f"{simulator.url}/fal/{way}/fal-ai/no-model", headers=FAL_AUTH, json={})
        assert (reply.status_code, reply.json()) == (404, {"detail": "Path /fal-ai/no-model not found"})
        assert reply.headers["x-fal-billable-units"] == "0"
    ticket = simulator.http.post(f"{simulator.url}/fal/queue/fal-ai/flux-pro/v9", headers=FAL_AUTH, json={}).json()
    simulator.completed(ticket)
    assert simulator.get(ticket["response_url"]).json() == {"detail": "Path /fal-ai/flux-pro/v9 not found"}
    assert simulator.billed() == 0


def test_fal_wants_its_own_kind_of_key(simulator: Simulator) -> None:
    ticket = simulator.submit().json()
    urls = [simulator.url + DIRECT_PATH, simulator.url + QUEUE_PATH]
    for headers in ({}, OPENAI_AUTH):
        replies = [simulator.http.post(url, headers=headers, json={"prompt": "x"}) for url in urls]
        replies += [simulator.http.get(ticket[url], headers=headers) for url in ("status_url", "response_url")]
        replies += [simulator.http.put(ticket["cancel_url"], headers=headers)]
        assert [reply.status_code for reply in replies] == [401] * 5
        assert all(set(reply.json()) == {"detail"} for reply in replies)


@pytest.mark.parametrize(
    ("order", "loc", "kind"),
    [
        ({"prompt": 7}, ["prompt"], "string_type"),
        ({"num_images": 5}, ["num_images"], "less_than_equal"),
        ({"num_images": 0}, ["num_images"], "greater_than_equal"),
        ({"num_images": "1"}, ["num_images"], "int_type"),
        ({"image_size": "1024x1024"}, ["image_size"], "literal_error"),
        ({"image_size": {"width": 1536, "height": 1024}}, ["image_size", "width"], "less_than_equal"),
        ({"image_size": {"width": 1024, "height": 224}}, ["image_size", "height"], "greater_than_equal"),
        ({"image_size": {"width": 1000, "height": 1024}}, ["image_size", "width"], "multiple_of"),
        ({"output_format": "webp"}, ["output_format"], "literal_error"),
        ({"safety_tolerance": 2}, ["safety_tolerance"], "literal_error"),
        ({"enable_safety_checker": "no"}, ["enable_safety_checker"], "bool_type"),
    ],
)
def test_flux_refuses_wrong_input_at_once_or_in_the_queue_s_result(
    simulator: Simulator, order: dict[str, Any], loc: list[str], kind: str
) -> None:
    direct = simulator.run(**order)
    assert simulator.jobs() == []
    ticket = simulator.submit(**order).json()
    simulator.completed(ticket)
    queued = simulator.get(ticket["response_url"])
    for reply in (direct, queued):
        (detail,) = reply.json()["detail"]
        assert (reply.status_code, detail["loc"], detail["type"]) == (422, ["body", *loc], kind)
        assert reply.headers["x-fal-billable-units"] == "0"
    assert (simulator.job()["state"], simulator.billed()) == ("failed", 0)


def test_fal_wants_a_json_object_with_a_prompt(simulator: Simulator) -> None:
    url = simulator.url + DIRECT_PATH
    for content in (b"{", b"[]", b"{}"):
        assert simulator.http.post(url, headers=FAL_AUTH, content=content).status_code == 422


def test_old_results_and_old_files_are_forgotten(simulator: Simulator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fal_module, "TICKETS_MAX", 2)
    tickets = [simulator.submit().json() for _ in range(3)]
    assert [simulator.get(ticket["status_url"]).status_code == 404 for ticket in tickets] == [True, False, False]
    monkeypatch.setattr(files_module, "FILES_MAX", 2)
    simulator.run()
    urls = [item["url"] for item in simulator.run(num_images=3).json()["images"]]
    assert [simulator.http.get(url).status_code for url in urls] == [404, 200, 200]


FAL_CLIENT = """
import asyncio, json, fal_client
done = {}
order = {"prompt": "un faro", "num_images": 2}
done["run"] = fal_client.run("fal-ai/flux-pro/v1.1", order)
updates = []
done["subscribe"] = fal_client.subscribe(
    "fal-ai/flux-pro/v1.1", order, with_logs=True, on_queue_update=lambda u: updates.append(type(u).__name__)
)
done["updates"] = updates

async def queue():
    client = fal_client.AsyncClient()
    handle = await client.submit("fal-ai/flux-pro/v1.1", order)
    done["get"] = await handle.get(interval=0.01)
    done["result"] = await client.result("fal-ai/flux-pro/v1.1", handle.request_id)
    try:
        await client.subscribe("fal-ai/flux-pro/v1.1", {"prompt": "un faro", "num_images": 9})
    except fal_client.client.FalClientHTTPError as error:
        done["refused"] = [error.status_code, error.message[0]["type"]]
    try:
        await client.cancel("fal-ai/flux-pro/v1.1", handle.request_id)
    except fal_client.client.FalClientHTTPError as error:
        done["cancel"] = error.status_code

asyncio.run(queue())
print(json.dumps(done))
"""


def test_the_official_fal_client_accepts_it_over_tls(simulator: Simulator) -> None:
    output = subprocess.run(
        [sys.executable, "-c", FAL_CLIENT],
        env=fal_environment(simulator),
        stdout=subprocess.PIPE,
        timeout=40,
        check=True,
    )
    done = json.loads(output.stdout)
    assert done["updates"][-1] == "Completed"
    assert done["result"] == done["get"]
    assert (done["refused"], done["cancel"]) == ([422, "less_than_equal"], 400)
    secure = ssl.create_default_context(cafile=simulator.ca)
    for way in ("run", "subscribe", "get"):
        for item in done[way]["images"]:
            assert item["url"].startswith(f"https://localhost:{simulator.tls_port}/files/")
            assert opened(httpx2.get(item["url"], verify=secure).content).size == (1024, 768)
    assert simulator.billed() == 6
