"""Each upstream's scenarios, and the outcome of an order of two images in each: the whole table, word for word."""

from pathlib import Path
from typing import Any

import pytest

from tests.kits.providers import (
    BANANA,
    DALL_E,
    FAL,
    FLUX,
    FLUX_2,
    GPT,
    GPT_2,
    GROK,
    IDEOGRAM,
    IMAGEN,
    IMAGINE_2,
    NINE,
    RECRAFT,
    SD,
    ULTRA,
    end_of,
    order,
    simulated,
)

Table = dict[str, tuple[str, int, int]]
"""Scenario → how the order ends, how many of its two images come, how often each of its calls is made."""

EVERYWHERE: Table = {
    "ok": ("delivered", 2, 1),
    "slow": ("delivered", 2, 1),
    "http_500": ("overloaded", 0, 1),
    "http_503": ("busy", 0, 3),
    "busy_503": ("busy", 0, 3),
    "busy_503_then_ok": ("delivered", 2, 2),
    "rate_limited_429": ("rate_limited", 0, 3),
    "one_of_eight_429": ("delivered", 2, 1),
    "unauthorized_401": ("not_authorised", 0, 1),
    "reset": ("no_answer", 0, 1),
    "close_without_answer": ("no_answer", 0, 1),
    "truncated_body": ("no_answer", 0, 1),
    "silent": ("deadline", 0, 1),
    "garbage": ("no_answer", 0, 1),
    "retired": ("retired", 0, 1),
    "secret_in_error": ("rejected", 0, 1),
    "secret_in_headers": ("delivered", 2, 1),
    "secret_in_redirect": ("rejected", 0, 1),
}
SPOILT_INLINE: Table = {
    "bad_base64": ("bad_reply", 0, 1),  # every image
    "empty_image": ("bad_image", 1, 1),
    "html_as_image": ("bad_image", 1, 1),
}
SPOILT_FILES: Table = {
    "image_404": ("fetch_failed", 1, 1),
    "image_redirect_metadata": ("fetch_failed", 1, 1),
    "image_redirect_secret": ("fetch_failed", 1, 1),
    "image_expired_403": ("fetch_failed", 1, 1),
    "image_truncated": ("fetch_failed", 1, 1),
    "image_html": ("bad_image", 1, 1),
    "image_other_host": ("fetch_failed", 1, 1),
}
# A model that makes one image at a time has the last image of every call spoilt, and so each of them.
SPOILT_INLINE_EACH: Table = {name: (end, 0, tries) for name, (end, _, tries) in SPOILT_INLINE.items()}
SPOILT_FILES_EACH: Table = {name: (end, 0, tries) for name, (end, _, tries) in SPOILT_FILES.items()}
# Where the pictures are asked for in base64, no result URL is there to go wrong.
NO_FILES: Table = {name: ("delivered", 2, 1) for name in SPOILT_FILES}

FAL_OWN: Table = {
    "wrong_json": ("bad_reply", 0, 1),
    "content_policy_422": ("content_policy", 0, 1),
    "no_media_422": ("rejected", 0, 1),
    "downstream_400": ("rejected", 0, 1),
    "downstream_500": ("overloaded", 0, 1),
    "generation_timeout_504": ("overloaded", 0, 1),
    "completed_with_error": ("overloaded", 0, 1),
    "fail_submit_500": ("overloaded", 0, 1),
    "status_500_once": ("delivered", 2, 1),
    "result_500": ("overloaded", 0, 1),
    "stuck_in_queue": ("deadline", 0, 1),
    "time_to_start": ("busy", 0, 3),
    "stops_when_cancelled": ("delivered", 2, 1),
    "locked_403": ("not_authorised", 0, 1),
}
FLUX_OWN: Table = {**FAL_OWN, **SPOILT_FILES, "nsfw": ("content_policy", 1, 1)}

TABLES: dict[str, Table] = {
    GPT: {
        **EVERYWHERE,
        **SPOILT_INLINE,
        "wrong_json": ("no_image", 0, 1),
        "moderation_blocked": ("content_policy", 0, 1),
        "moderation_blocked_output": ("content_policy", 0, 1),
        "unverified_403": ("not_authorised", 0, 1),
        "fewer_images": ("no_image", 1, 1),
        "insufficient_quota_429": ("not_authorised", 0, 1),
        "many_tokens": ("delivered", 2, 1),
        "cached_tokens": ("delivered", 2, 1),
    },
    DALL_E: {
        **EVERYWHERE,
        **SPOILT_INLINE_EACH,
        **NO_FILES,
        "wrong_json": ("no_image", 0, 1),
        "content_policy_violation": ("content_policy", 0, 1),
        "longer_prompt": ("delivered", 2, 1),
        "fewer_images": ("no_image", 0, 1),
        "insufficient_quota_429": ("not_authorised", 0, 1),
    },
    IMAGEN: {
        **EVERYWHERE,
        **SPOILT_INLINE,
        "wrong_json": ("bad_reply", 0, 1),
        "rai_filtered": ("content_policy", 1, 1),
        "rai_filtered_silently": ("content_policy", 1, 1),
        "prompt_blocked": ("content_policy", 0, 1),
        "api_key_invalid_400": ("not_authorised", 0, 1),
    },
    GROK: {
        **EVERYWHERE,
        **SPOILT_INLINE,
        **NO_FILES,
        "wrong_json": ("no_image", 0, 1),
        "moderated_items": ("content_policy", 1, 1),
        "longer_prompt": ("delivered", 2, 1),
        "empty_data": ("content_policy", 0, 1),
        "moderation_400": ("content_policy", 0, 1),
        "data_uri": ("delivered", 2, 1),
        "png_label": ("delivered", 2, 1),
        "retired_400": ("retired", 0, 1),
        "served_by_another": ("delivered", 2, 1),
    },
    BANANA: {
        **EVERYWHERE,
        **SPOILT_INLINE_EACH,
        "wrong_json": ("bad_reply", 0, 1),
        "drafts": ("delivered", 2, 1),
        "thought_last": ("delivered", 2, 1),
        "thoughts_only": ("no_image", 0, 1),
        "text_only": ("no_image", 0, 1),
        "image_safety": ("content_policy", 0, 1),
        "prompt_feedback": ("content_policy", 0, 1),
        "many_tokens": ("delivered", 2, 1),
        "long_signature": ("delivered", 2, 1),
        "api_key_invalid_400": ("not_authorised", 0, 1),
    },
    FLUX: {**EVERYWHERE, **FLUX_OWN},
    FLUX_2: {**EVERYWHERE, **FAL_OWN, **SPOILT_FILES_EACH, "nsfw": ("content_policy", 0, 1)},
    ULTRA: {**EVERYWHERE, **FLUX_OWN},
    SD: {**EVERYWHERE, **FLUX_OWN},
    RECRAFT: {**EVERYWHERE, **FAL_OWN, **SPOILT_FILES_EACH, "svg_with_script": ("bad_image", 0, 1)},
    IDEOGRAM: {**EVERYWHERE, **FAL_OWN, **SPOILT_FILES_EACH},
}

TABLES |= {GPT_2: TABLES[GPT], IMAGINE_2: TABLES[GROK]}

WISHES: dict[str, dict[str, Any]] = {
    "slow": {"seconds": 0.05},
    "busy_503": {"retry_after": 0},
    "busy_503_then_ok": {"retry_after": 0},
    "rate_limited_429": {"retry_after": 0},
    "bad_base64": {"all": True},
}
"""Fields of a scenario besides its name."""

HANGING = ("silent", "stuck_in_queue")


@pytest.mark.parametrize(
    ("model", "queue"),
    [*((model, True) for model in TABLES), *((model, False) for model in FAL)],
    ids=lambda value: value if isinstance(value, str) else ("" if value else "direct"),
)
async def test_every_scenario_of_the_simulator_ends_as_the_table_says(tmp_path: Path, model: str, queue: bool) -> None:
    """None is missing. Delivered images are stored and decodable. A call is repeated only if none was accepted."""
    found: Table = {}
    async with simulated(tmp_path, queue=queue) as bench:
        listing = (await bench.tell("GET", "behaviour"))["models"]
        assert set(listing[model]["scenarios"]) == set(TABLES[model])
        assert set(NINE) <= set(listing)
        calls = -(-2 // order(model).model.images_per_call)
        for scenario in TABLES[model]:
            await bench.behave(model, scenario, same=True, **WISHES.get(scenario, {}))
            await bench.forget()
            made = await bench.make(order(model, 2), 0.3 if scenario in HANGING else 30.0)
            for number in made.stored:
                bench.picture(made, number).close()
            asked = len(bench.orders())
            assert asked % calls == 0, scenario
            found[scenario] = (end_of(made), len(made.stored), asked // calls)
            if asked > calls:
                live = [job for job in await bench.jobs(model) if job["state"] != "failed"]
                assert len(live) <= calls, scenario
            for image in made.stored.values():
                await bench.store.delete(image.path)
    assert found == TABLES[model]
