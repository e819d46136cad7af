"""The seven shapes in which upstreams refuse a prompt or a picture: never a 500, never charged, what is good comes."""

from pathlib import Path
from typing import Any

import orjson
import pytest

from proxy.errors import ApiError, Kind
from tests.contracts.test_models_wire import base64_png, replying
from tests.kits.orders import ScriptedWallet, files, generations, job, png
from tests.kits.providers import (
    DALL_E,
    FAL,
    FLUX,
    GPT,
    GROK,
    IDEOGRAM,
    IMAGEN,
    RECRAFT,
    SD,
    ULTRA,
    order,
    simulated,
    upstream,
)
from tests.kits.raw_server import Peer, raw_server

ALL = {"all": True}

REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    (GPT, "moderation_blocked", {}),
    (GPT, "moderation_blocked_output", {}),
    (DALL_E, "content_policy_violation", {}),
    (IMAGEN, "prompt_blocked", {}),
    (IMAGEN, "rai_filtered", ALL),
    (IMAGEN, "rai_filtered_silently", ALL),  # `{}`
    (GROK, "moderated_items", ALL),
    (GROK, "empty_data", {}),
    (GROK, "moderation_400", {"form": "nested"}),
    (GROK, "moderation_400", {"form": "coded"}),
    (GROK, "moderation_400", {"form": "bare"}),
    (FLUX, "nsfw", ALL),
    (ULTRA, "nsfw", ALL),
    (SD, "nsfw", ALL),
    (RECRAFT, "content_policy_422", {}),
    (IDEOGRAM, "content_policy_422", {}),
]


@pytest.mark.parametrize(("model", "scenario", "more"), REFUSED)
async def test_a_refusal_of_everything_is_400_and_void(
    tmp_path: Path, model: str, scenario: str, more: dict[str, Any]
) -> None:
    """`content_policy_violation`, not to be retried; nothing charged, nothing stored, nothing asked for twice."""
    async with simulated(tmp_path) as bench:
        wallet = ScriptedWallet()
        async with generations(wallet, bench.store, bench.providers) as making:
            await bench.behave(model, scenario, same=True, **more)
            with pytest.raises(ApiError) as told:
                await making.start(job(order(model, 3)))
            await making.drain()
            assert told.value.kind is Kind.CONTENT_POLICY and told.value.kind.value.status == 400
            assert told.value.reply_headers()["x-should-retry"] == "false"
            assert (wallet.charges, wallet.voids, files(tmp_path)) == ([], ["content_policy"], set())
            calls = -(-3 // order(model).model.images_per_call)
            assert len(bench.orders()) == len(await bench.jobs(model)) == calls


PARTLY: list[tuple[str, str, int, dict[str, Any], list[int]]] = [
    (IMAGEN, "rai_filtered", 4, {"last": 2}, [0, 1]),
    (IMAGEN, "rai_filtered_silently", 4, {"last": 1}, [0, 1, 2]),
    (IMAGEN, "rai_filtered", 8, {"last": 3}, [0, 4]),
    (GROK, "moderated_items", 5, {"last": 2}, [0, 1, 2]),
    (GROK, "moderated_items", 8, {"last": 7}, [0]),
    (FLUX, "nsfw", 4, {"last": 1}, [0, 1, 2]),
    (FLUX, "nsfw", 8, {"last": 3}, [0, 4]),
    (ULTRA, "nsfw", 2, {"last": 1}, [0]),
    (SD, "nsfw", 3, {"last": 2}, [0]),
]


@pytest.mark.parametrize(
    ("model", "scenario", "n", "more", "good", "queue"),
    [*((*row, True) for row in PARTLY), *((*row, False) for row in PARTLY if row[0] in FAL)],
)
async def test_of_an_order_that_is_refused_in_part_the_good_pictures_come_and_are_charged(
    tmp_path: Path, model: str, scenario: str, n: int, more: dict[str, Any], good: list[int], queue: bool
) -> None:
    """Exactly those: by number, in the store and on the customer's bill."""
    async with simulated(tmp_path, queue=queue) as bench:
        wallet = ScriptedWallet()
        async with generations(wallet, bench.store, bench.providers) as making:
            await bench.behave(model, scenario, same=True, **more)
            asked = job(order(model, n))
            delivery = await making.start(asked)
            await making.drain()
            names = [path.rpartition("/")[2].partition(".")[0] for path in (one.path for one in delivery.result.images)]
            assert names == [str(number) for number in good]
            assert wallet.charges == [(asked.quote.unit_micro_mxn * len(good), delivery.result.images)]
            assert wallet.voids == [] and files(tmp_path) == {image.path for image in delivery.result.images}


async def test_of_several_calls_the_refused_ones_are_missing_and_the_others_come(tmp_path: Path) -> None:
    """dall-e-3, ideogram and recraft make one image per call: of three calls, one is refused."""
    async with simulated(tmp_path) as bench:
        for model, refusal in (
            (DALL_E, "content_policy_violation"),
            (IDEOGRAM, "content_policy_422"),
            (RECRAFT, "content_policy_422"),
        ):
            wallet = ScriptedWallet()
            async with generations(wallet, bench.store, bench.providers) as making:
                await bench.in_turn(model, "ok", refusal, "ok")
                delivery = await making.start(job(order(model, 3)))
                await making.drain()
                assert len(delivery.result.images) == 2
                assert [images for _, images in wallet.charges] == [delivery.result.images]


async def test_a_flagged_picture_that_came_with_its_bytes_is_taken_back(tmp_path: Path) -> None:
    """xAI: stored while the reply arrived, and removed as soon as its flag was read; the customer never sees it."""
    items = [
        {"b64_json": base64_png(0), "respect_moderation": False},
        {"b64_json": base64_png(1), "respect_moderation": True},
    ]
    async with raw_server(replying([], {"data": items})) as server, upstream(server.url, tmp_path) as bench:
        wallet = ScriptedWallet()
        async with generations(wallet, bench.store, bench.providers) as making:
            delivery = await making.start(job(order(GROK, 2)))
            await making.drain()
            assert [(tmp_path / image.path).read_bytes() for image in delivery.result.images] == [png(1)]
            assert files(tmp_path) == {delivery.result.images[0].path} and len(wallet.charges) == 1


@pytest.mark.parametrize("flags", [[True], [True, True, True], None, []])
async def test_flags_of_fal_that_do_not_fit_its_pictures_are_read_as_far_as_they_do(
    tmp_path: Path, flags: list[bool] | None
) -> None:
    """A flag counts for the picture at its place; a picture without a flag is good."""

    async def script(peer: Peer) -> None:
        while True:
            request = await peer.read_request()
            host = next(line[6:] for line in request.split(b"\r\n") if line.lower().startswith(b"host: ")).decode()
            body = {"images": [{"url": f"http://{host}/{place}.png"} for place in range(2)], "has_nsfw_concepts": flags}
            content = orjson.dumps(body) if request.startswith(b"POST") else png()
            await peer.send(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(content) + content)

    async with raw_server(script) as server, upstream(server.url, tmp_path, queue=False) as bench:
        made = await bench.make(order(FLUX, 2))
    struck = len(flags or [])
    assert len(made.stored) == 2 - min(struck, 2)
    assert [failure.outcome.reason for failure in made.failures] == (["content_policy"] if struck else [])
