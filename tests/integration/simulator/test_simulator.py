"""The simulator as its clients see it: over real HTTP; its pictures, its control, its latencies and its end."""

import asyncio
import random
import socket
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from simulator.app import make_world
from simulator.server import serve
from tests.kits.simulator import (
    EVERY_WAY,
    FLUX,
    GPT,
    GROK,
    IMAGEN,
    OPENAI_AUTH,
    OPENAI_PATH,
    Running,
    Simulator,
    ask,
    eventually,
    images,
    opened,
    read_to_end,
)

# --- pictures


@pytest.mark.parametrize("size", ["1024x1024", "1536x1024", "1024x1536"])
@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_gpt_image_pictures_are_of_the_size_and_format_asked_for(
    simulator: Simulator, size: str, output_format: str
) -> None:
    reply = simulator.openai(size=size, output_format=output_format)
    image = opened(images(reply)[0])
    assert (f"{image.width}x{image.height}", image.format) == (size, output_format.upper())


@pytest.mark.parametrize(
    ("image_size", "expected"),
    [
        ("square_hd", (1024, 1024)),
        ("square", (512, 512)),
        ("portrait_4_3", (768, 1024)),
        ("portrait_16_9", (576, 1024)),
        ("landscape_4_3", (1024, 768)),
        ("landscape_16_9", (1024, 576)),
        ({"width": 1440, "height": 256}, (1440, 256)),
        ({"width": 256, "height": 1440}, (256, 1440)),
    ],
)
@pytest.mark.parametrize("output_format", ["jpeg", "png"])
def test_flux_pictures_are_of_the_size_and_format_asked_for(
    simulator: Simulator, image_size: Any, expected: tuple[int, int], output_format: str
) -> None:
    (item,) = simulator.run(image_size=image_size, output_format=output_format).json()["images"]
    reply = simulator.http.get(item["url"])
    image = opened(reply.content)
    assert (image.size, image.format) == (expected, output_format.upper())
    assert (item["width"], item["height"]) == expected
    assert item["content_type"] == reply.headers["content-type"] == f"image/{output_format}"


def test_the_pictures_of_one_reply_differ_and_the_same_order_gives_the_same_pictures(
    simulator: Simulator,
) -> None:
    first, again, other = simulator.openai(n=3), simulator.openai(n=3), simulator.openai(prompt="otro", n=1)
    assert len(set(images(first))) == 3
    assert images(first) == images(again)
    assert images(other)[0] not in images(first)


def test_a_prompt_in_any_script_or_of_any_length_can_be_drawn(simulator: Simulator) -> None:
    for prompt in ("", "ñandú pingüino Ángel", "猫 🐈 \u0301", "palabra " * 3_000, "x" * 32_000):
        opened(images(simulator.openai(prompt=prompt))[0])


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("size_bytes", [500_000, 8_000_000])
def test_pictures_can_be_padded_to_a_number_of_bytes_and_stay_valid(
    simulator: Simulator, output_format: str, size_bytes: int
) -> None:
    simulator.behave(GPT, times=None, bytes=size_bytes, same=True)
    first, again = (
        simulator.openai(output_format=output_format, n=2),
        simulator.openai(output_format=output_format, prompt="otro"),
    )
    data = images(first)[0]
    assert abs(len(data) - size_bytes) < 1_000
    assert opened(data).size == (1024, 1024)
    assert {*images(first), *images(again)} == {data}


# --- control


def test_every_scenario_is_listed_with_a_sentence_and_tested_here(simulator: Simulator) -> None:
    listing = simulator.http.get(f"{simulator.url}/_sim/behaviour").json()["models"]
    assert set(listing) == {way[0] for way in EVERY_WAY}
    source = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for model in listing.values():
        assert model["pending"] == []
        for scenario, sentence in model["scenarios"].items():
            assert sentence.endswith(".")
            assert f'"{scenario}"' in source, f"{scenario} has no test"


def test_what_is_pending_happens_in_order_and_ok_clears_it(simulator: Simulator) -> None:
    simulator.behave(GPT, "http_503", times=2)
    simulator.behave(GPT, "ok", times=1)
    simulator.behave(GPT, "http_500", times=None)
    listing = simulator.http.get(f"{simulator.url}/_sim/behaviour").json()["models"]
    assert [(play["scenario"], play["times"]) for play in listing[GPT]["pending"]] == [
        ("http_503", 2),
        ("ok", 1),
        ("http_500", None),
    ]
    assert [simulator.openai().status_code for _ in range(5)] == [503, 503, 200, 500, 500]
    assert simulator.run().status_code == 200
    simulator.behave(GPT, "http_503", times=None)
    assert [simulator.openai().status_code for _ in range(2)] == [503, 503]
    simulator.behave(GPT, "ok", times=None)
    assert simulator.openai().status_code == 200


def test_all_models_can_be_cleared_at_once(simulator: Simulator) -> None:
    for model in (GPT, FLUX):
        simulator.behave(model, "http_503", times=None)
        simulator.behave(model, "ok", times=None, bytes=500_000)
        simulator.behave(model, "http_500", times=2)
    simulator.forget()
    listing = simulator.http.get(f"{simulator.url}/_sim/behaviour").json()["models"]
    assert all(model["pending"] == [] and model["then"]["bytes"] is None for model in listing.values())
    assert (simulator.openai().status_code, simulator.run().status_code) == (200, 200)


def test_a_sequence_is_one_request_each_and_then_all_is_well_again(simulator: Simulator) -> None:
    row = ["http_503", "ok", {"scenario": "rate_limited_429", "retry_after": 61}, "http_500"]
    body = {"model": GPT, "sequence": row, "retry_after": 7, "same": True}
    reply = simulator.http.put(f"{simulator.url}/_sim/behaviour", json=body)
    pending = reply.json()["models"][GPT]["pending"]
    assert [(play["scenario"], play["times"], play["retry_after"], play["same"]) for play in pending] == [
        ("http_503", 1, 7, True),
        ("ok", 1, 7, True),
        ("rate_limited_429", 1, 61, True),
        ("http_500", 1, 7, True),
    ]
    assert [simulator.openai().status_code for _ in range(6)] == [503, 200, 429, 500, 200, 200]
    refused = simulator.http.put(f"{simulator.url}/_sim/behaviour", json={**body, "sequence": ["http_503", "nsfw"]})
    assert refused.status_code == 400
    assert simulator.openai().status_code == 200


def test_a_random_mixture_counts_what_was_delivered(simulator: Simulator) -> None:
    chance = random.Random(11)
    outcomes = {"ok": (2, 2), "nsfw": (1, 2), "content_policy_422": (0, 0), "http_503": (0, 0), "http_500": (0, 0)}
    mixture = chance.choices(list(outcomes), k=60)
    simulator.http.put(f"{simulator.url}/_sim/behaviour", json={"model": FLUX, "sequence": mixture, "same": True})
    delivered = 0
    for _ in mixture:
        flags = simulator.run(num_images=2).json().get("has_nsfw_concepts", [])
        delivered += flags.count(False)
    assert delivered == simulator.delivered() == sum(outcomes[name][0] for name in mixture)
    assert simulator.billed() == sum(outcomes[name][1] for name in mixture)


@pytest.mark.parametrize(
    ("wish", "sentence"),
    [
        ({"model": GPT, "scenario": "explode"}, "known are ok, slow, http_500"),
        ({"model": GPT, "scenario": "nsfw"}, "Unknown scenario 'nsfw' for openai/gpt-image-1"),
        ({"model": "gpt-image-1"}, "known are openai/gpt-image-1, openai/dall-e-3, openai/gpt-image-2"),
        ({"model": GPT, "scenario": "slow"}, "slow needs seconds"),
        ({"model": GPT, "scenario": "slow", "seconds": -1}, "seconds must be"),
        ({"model": GPT, "times": 0}, "times must be"),
        ({"model": GPT, "times": True}, "times must be"),
        ({"model": GPT, "bytes": 2**40}, "bytes must be"),
        ({"model": GPT, "same": 1}, "same must be"),
        ({"model": GPT, "retry_after": "soon"}, "retry_after must be"),
        ({"model": GPT, "last": 11}, "last must be"),
        ({"model": GPT, "form": "curly"}, "form must be"),
        ({"model": GPT, "sequence": []}, "a list of 1 to"),
        ({"model": GPT, "sequence": ["ok", 7]}, "A sequence holds names"),
        ({"model": GPT, "sequence": ["ok", "nsfw"]}, "Unknown scenario 'nsfw'"),
        ({"model": GPT, "sequence": ["ok"], "times": 2}, "no scenario and no times"),
        ({"model": GPT, "sequence": [{"scenario": "ok", "when": 1}]}, "Unknown field 'when'"),
        ({"model": GPT, "sequence": [{"scenario": "ok", "times": 3}]}, "for one request: no times"),
        ({"model": GPT, "when": 1}, "Unknown field 'when'"),
        ([], "not a JSON object"),
    ],
)
def test_a_behaviour_that_makes_no_sense_is_refused_with_a_sentence(
    simulator: Simulator, wish: Any, sentence: str
) -> None:
    reply = simulator.http.put(f"{simulator.url}/_sim/behaviour", json=wish)
    assert reply.status_code == 400
    assert sentence in reply.json()["error"]


def test_jobs_can_be_filtered_by_model_and_forgotten(simulator: Simulator) -> None:
    simulator.openai()
    simulator.run()
    assert [job["model"] for job in simulator.jobs()] == [GPT, FLUX]
    assert [job["model"] for job in simulator.jobs(FLUX)] == [FLUX]
    assert simulator.http.delete(f"{simulator.url}/_sim/jobs").status_code == 204
    assert simulator.jobs() == []


# --- latency and serving


@pytest.mark.parametrize(
    ("model", "p50", "p95"),
    [
        (GPT, 15, 45),
        ("openai/dall-e-3", 8, 20),
        (IMAGEN, 6, 18),
        (GROK, 10, 30),
        ("xai/grok-imagine-image", 10, 30),
        ("openai/gpt-image-2/high", 126, 190),
        (FLUX, 7, 25),
        ("fal/flux-1.1-pro-ultra", 12, 40),
        ("fal/recraft-v3", 8, 28),
        ("fal/ideogram-v2", 12, 35),
        ("fal/sd-3.5-large", 10, 30),
    ],
)
def test_latencies_are_the_published_ones_scaled_and_repeatable(model: str, p50: float, p95: float) -> None:
    def draws(scale: float, seed: int) -> list[float]:
        latency = make_world(scale, seed).latency
        return [latency.draw_s(model) for _ in range(4_000)]

    times = sorted(draws(0.1, 3))
    assert times[2_000] == pytest.approx(p50 / 10, rel=0.05)
    assert times[3_800] == pytest.approx(p95 / 10, rel=0.1)
    assert draws(1, 3) == draws(1, 3) != draws(1, 4)
    assert set(draws(0, 3)) == {0}


def test_a_busy_port_is_an_os_error(simulator: Simulator) -> None:
    with pytest.raises(OSError, match="in use"):
        asyncio.run(serve(host="127.0.0.1", port=simulator.port, shutdown=asyncio.Event()))


def test_a_stop_cuts_off_what_is_unanswered_and_leaves_nothing_behind() -> None:
    server = Running(latency_scale=100)
    simulator = Simulator(server.port, 0, Path())
    with simulator.http:
        raw = ask(simulator, (GPT, OPENAI_PATH, OPENAI_AUTH, {"model": "gpt-image-1", "prompt": "x"}))
        simulator.submit()
        eventually(lambda: len(simulator.jobs()) == 2)
        started = time.monotonic()
        server.stop()
        assert time.monotonic() - started < 5
    with closing(raw):
        assert b" 200 " not in read_to_end(raw)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), timeout=5)
