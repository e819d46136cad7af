"""Models that end: what is remembered, for how long, and what the customer is told before and after."""

from dataclasses import dataclass
from datetime import date
from pathlib import Path

import pytest

from config.catalogue import Model, read_catalogue
from config.shelf import Shelf
from proxy.errors import ApiError, Kind
from proxy.orders.lifecycle import REMEMBERED_S, Lifecycle
from tests.kits.orders import ScriptedWallet, files, generations, job
from tests.kits.providers import DALL_E, FLUX, GPT, GROK, IMAGEN, order, simulated

MODELS = read_catalogue(None).models
SHELF = Shelf(MODELS, {name for name, model in MODELS.items() if model.priced})


def successors(name: str, model: Model) -> str | None:
    """Those of the catalogue that ships, at a day on which the four have ended."""
    return SHELF.successor(name, model, date(2026, 11, 26))


@dataclass
class Clock:
    """Seconds as the test wants them."""

    now_s: float = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_retired_model_is_remembered_for_ten_minutes_and_no_longer() -> None:
    """To the second; other models are not concerned."""
    clock = Clock()
    lifecycle = Lifecycle(clock)
    lifecycle.check(GPT, MODELS[GPT])
    lifecycle.retire(GPT, MODELS[GPT])
    assert REMEMBERED_S == 600
    for later_s in (0.0, 1.0, 599.0, 599.9):
        clock.now_s = 1000 + later_s
        with pytest.raises(ApiError) as told:
            lifecycle.check(GPT, MODELS[GPT])
        assert told.value.kind is Kind.MODEL_NOT_FOUND
        lifecycle.check(DALL_E, MODELS[DALL_E])
    clock.now_s = 1600.0
    lifecycle.check(GPT, MODELS[GPT])


def test_each_answer_of_the_upstream_begins_the_ten_minutes_anew() -> None:
    """Asked again after them, it says the same, and is believed for ten more."""
    clock = Clock()
    lifecycle = Lifecycle(clock)
    lifecycle.retire(GPT, MODELS[GPT])
    clock.now_s += 600
    lifecycle.check(GPT, MODELS[GPT])
    lifecycle.retire(GPT, MODELS[GPT])
    clock.now_s += 599
    with pytest.raises(ApiError):
        lifecycle.check(GPT, MODELS[GPT])


def test_404_names_the_successor_where_there_is_one() -> None:
    """Otherwise it says where to look. The field to change is `model`, and a retry is of no use."""
    lifecycle = Lifecycle(successors=successors)
    told = lifecycle.retire(IMAGEN, MODELS[IMAGEN])
    assert told.message == (
        "`google/imagen-4` is not offered by its provider any more. Use `google/gemini-nano-banana-2.1` instead."
    )
    assert (told.kind.value.status, told.kind.value.code, told.param) == (404, "model_not_found", "model")
    assert told.reply_headers()["x-should-retry"] == "false"
    assert lifecycle.retire(FLUX, MODELS[FLUX]).message == (
        "`fal/flux-1.1-pro` is not offered by its provider any more. See GET /v1/models."
    )


HEADERS = {
    GPT: ("@1792713600", "Fri, 23 Oct 2026 00:00:00 GMT", "openai/gpt-image-2"),
    DALL_E: ("@1778544000", "Tue, 12 May 2026 00:00:00 GMT", "openai/gpt-image-2"),
    IMAGEN: ("@1786924800", "Mon, 17 Aug 2026 00:00:00 GMT", "google/gemini-nano-banana-2.1"),
    GROK: ("@1772236800", "Sat, 28 Feb 2026 00:00:00 GMT", "xai/grok-imagine-image"),
}


@pytest.mark.parametrize("model", HEADERS)
def test_replies_of_a_model_with_a_last_day_say_so(model: str) -> None:
    """`Deprecation` as RFC 9745 writes a date, `Sunset` as RFC 8594 does, and `Link` to the successor."""
    deprecation, sunset, successor = HEADERS[model]
    assert Lifecycle(successors=successors).headers(model, MODELS[model]) == {
        "deprecation": deprecation,
        "sunset": sunset,
        "link": f'</v1/models/{successor}>; rel="successor-version"',
    }


def test_a_model_without_a_last_day_has_no_such_headers() -> None:
    """And one with a day and without a successor has no link."""
    lifecycle = Lifecycle(successors=successors)
    assert lifecycle.headers(FLUX, MODELS[FLUX]) == {}
    ending: Model = MODELS[FLUX].model_copy(update={"shutdown_date": date(2030, 1, 1)})
    assert lifecycle.headers(FLUX, ending) == {"deprecation": "@1893456000", "sunset": "Tue, 01 Jan 2030 00:00:00 GMT"}


def test_a_successor_whose_upstream_calls_it_gone_is_not_named_for_as_long() -> None:
    """Neither in the 404 nor in the link, also where it has no last day: who follows the hint must not be refused."""
    clock = Clock()
    lifecycle = Lifecycle(clock, lambda _id, _model: DALL_E)
    assert "link" in lifecycle.headers(GPT, MODELS[GPT])
    lifecycle.retire(DALL_E, MODELS[DALL_E])
    assert "link" not in lifecycle.headers(GPT, MODELS[GPT])
    assert lifecycle.retire(GPT, MODELS[GPT]).message.endswith("See GET /v1/models.")
    clock.now_s += REMEMBERED_S
    assert lifecycle.successor(GPT, MODELS[GPT]) == DALL_E


def test_four_of_the_nine_have_a_last_day_and_name_a_successor() -> None:
    """The dates are those that their providers announced."""
    ending = {name for name, model in MODELS.items() if model.shutdown_date is not None}
    assert set(HEADERS) <= ending
    assert all(MODELS[name].successor for name in HEADERS)


@pytest.mark.parametrize(
    ("model", "scenario", "form"),
    [
        (GPT, "retired", None),
        (DALL_E, "retired", None),
        (IMAGEN, "retired", None),
        *((GROK, scenario, form) for scenario in ("retired", "retired_400") for form in ("nested", "coded", "bare")),
        (FLUX, "retired", None),
        ("fal/recraft-v3", "retired", None),
    ],
)
async def test_every_retirement_answer_is_404_void_and_remembered(
    tmp_path: Path, model: str, scenario: str, form: str | None
) -> None:
    """xAI's is a 500 that is asked once. After ten minutes the model may be back, and then it is."""
    clock = Clock()
    lifecycle = Lifecycle(clock, successors)
    row = MODELS[model]
    async with simulated(tmp_path) as bench:
        wallet = ScriptedWallet()
        async with generations(wallet, bench.store, bench.providers, lifecycle=lifecycle) as making:
            await bench.behave(model, scenario, form=form)
            lifecycle.check(model, row)
            with pytest.raises(ApiError) as told:
                await making.start(job(order(model)))
            await making.drain()
            assert (told.value.kind, told.value.param) == (Kind.MODEL_NOT_FOUND, "model")
            assert (row.successor or "GET /v1/models") in told.value.message
            assert (wallet.voids, wallet.charges, files(tmp_path)) == (["retired"], [], set())
            assert (len(bench.orders()), await bench.jobs(model)) == (1, [])
            with pytest.raises(ApiError, match="not offered"):
                lifecycle.check(model, row)

            await bench.behave(model, "ok")
            clock.now_s += REMEMBERED_S
            lifecycle.check(model, row)
        async with generations(ScriptedWallet(), bench.store, bench.providers, lifecycle=lifecycle) as making:
            assert len((await making.start(job(order(model)))).result.images) == 1
