"""The official clients with their default retries, against upstreams that take the job and then fail: one generation.

Both clients try up to three times by themselves, at 408, 409, 429, 5xx and lost connections, unless they are told not
to. An upstream that may have taken the job is not to be asked again, by nobody.
"""

import asyncio
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.conftest import run
from tests.kits.node import install, tell
from tests.kits.system import FLUX, GPT, System, assert_no_key, prepare, wait_until

DEADLINE_S = 3.0
MODELS = [GPT, "openai/dall-e-3", "google/imagen-4", "xai/grok-2-image", FLUX]
"""Every wire once, and OpenAI's twice."""

Clients = Callable[[System, str, list[str]], list[dict[str, Any]]]
"""Orders one image of each model, all at once; tells how each order ended in the eyes of the client's user."""


@pytest.fixture(scope="module")
def hasty() -> Iterator[System]:
    """A running system with a short deadline."""
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder), GHUB_DEADLINE_S=str(DEADLINE_S))
        system.start_all()
        yield system
        system.stop_all()
        assert_no_key(system.keys, system.folder)


def python(system: System, key: str, models: list[str]) -> list[dict[str, Any]]:
    """`openai` for Python as a customer makes it."""

    async def order(client: openai.AsyncOpenAI, model: str) -> dict[str, Any]:
        try:
            reply = await client.images.generate(model=model, prompt="x")
        except openai.APIStatusError as error:
            name = type(error).__name__
            return {"model": model, "status": error.status_code, "error": name, "code": error.code, "images": 0}
        return {"model": model, "status": 200, "error": None, "code": None, "images": len(reply.data or [])}

    async def orders() -> list[dict[str, Any]]:
        async with openai.AsyncOpenAI(base_url=system.url, api_key=key) as client:
            return list(await asyncio.gather(*(order(client, model) for model in models)))

    return run(orders())


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Clients:
    """`openai` for Node."""
    folder = install(tmp_path_factory.mktemp("node") / "client")

    def orders(system: System, key: str, models: list[str]) -> list[dict[str, Any]]:
        return tell(folder, "orders.mjs", {"url": system.url, "key": key, "models": models})

    return orders


@pytest.fixture(params=["python", "node"])
def client(request: pytest.FixtureRequest) -> tuple[str, Clients]:
    """Both official clients, with their name."""
    made: Clients = python if request.param == "python" else request.getfixturevalue("node")
    return request.param, made


@pytest.mark.rule(21)
def test_an_upstream_that_is_still_silent_at_the_deadline_is_asked_once(
    hasty: System, client: tuple[str, Clients]
) -> None:
    """It took the job: one request to the gateway, one generation upstream, one void, and a 504."""
    for model in MODELS:
        # fal's queue takes the job, and a reset strikes the submit's answer at once: what is slow there is the queue.
        hasty.behave(model, "slow" if model == FLUX else "reset", seconds=DEADLINE_S + 1)
    failed_once(hasty, client, "silent", 504, "deadline_exceeded")


@pytest.mark.parametrize("scenario", ["reset", "http_500", "close_without_answer"])
def test_an_upstream_that_took_the_job_and_failed_is_asked_once(
    system: System, client: tuple[str, Clients], scenario: str
) -> None:
    """One request to the gateway, one generation upstream, one void, and the client's own error with our code."""
    for model in MODELS:
        system.behave(model, scenario)
    failed_once(system, client, scenario, 502, "provider_unavailable")


def failed_once(system: System, client: tuple[str, Clients], what: str, status: int, code: str) -> None:
    """An order of each model ends so, and none was tried twice."""
    name, order = client
    org_id, key = system.customer(f"{name} {what}", "50.00")
    before = {model: len(system.jobs(model)) for model in MODELS}
    ends = order(system, key, MODELS)
    assert ends == [
        {"model": model, "status": status, "error": "InternalServerError", "code": code, "images": 0}
        for model in MODELS
    ]
    assert requests(system, org_id) == {model: [status] for model in MODELS}
    assert {model: len(system.jobs(model)) - before[model] for model in MODELS} == dict.fromkeys(MODELS, 1)
    events = system.events(org_id, len(MODELS))
    assert {(event.end, event.quantity, event.amount_micro_mxn) for event in events} == {("void", 0, 0)}


@pytest.mark.parametrize(("scenario", "wait_s"), [("rate_limited_429", 1), ("busy_503", 1), ("busy_503", 0)])
def test_an_upstream_that_did_not_take_the_job_is_asked_again_by_the_gateway(
    system: System, client: tuple[str, Clients], scenario: str, wait_s: int
) -> None:
    """429 or 503, with retry-after of a second or of nothing: the user sees one 200, one generation and its price."""
    name, order = client
    org_id, key = system.customer(f"{name} {scenario} {wait_s} again", "50.00")
    before = {model: len(system.jobs(model)) for model in MODELS}
    for model in MODELS:
        system.behave(model, scenario, retry_after=wait_s)
    ends = order(system, key, MODELS)
    assert [(end["status"], end["images"]) for end in ends] == [(200, 1)] * len(MODELS)
    assert requests(system, org_id) == {model: [200] for model in MODELS}
    assert {model: len(system.jobs(model)) - before[model] for model in MODELS} == dict.fromkeys(MODELS, 1)
    assert {(event.end, event.quantity) for event in system.events(org_id, len(MODELS))} == {("charge", 1)}


def fill(system: System, key: str, images: int, *, meanwhile: Callable[[], Any] | None = None) -> Any:
    """Orders of up to eight images, of another prompt, all at once; `meanwhile` runs once all are made upstream."""

    async def orders() -> Any:
        async with system.client(key) as client:
            before = len(system.jobs(FLUX))
            bodies = [{"model": FLUX, "prompt": "other", "n": min(8, images - i)} for i in range(0, images, 8)]
            asked = [asyncio.create_task(client.post("/images/generations", json=body)) for body in bodies]
            while meanwhile is not None and len(system.jobs(FLUX)) == before:
                await asyncio.sleep(0.01)
            result = await asyncio.to_thread(meanwhile) if meanwhile is not None else None
            assert {reply.status_code for reply in await asyncio.gather(*asked)} == {200}
            return result

    return run(orders())


def test_told_429_by_a_rate_a_client_gets_through_by_itself(system: System, client: tuple[str, Clients]) -> None:
    """Eight images a minute are used up; the next is allowed within 7.5 s, and the client's user sees a 200."""
    name, order = client
    org_id, key = system.customer(f"{name} too fast", "50.00", images_per_minute=8)
    fill(system, key, 8)
    ends = order(system, key, [FLUX])
    assert [(end["status"], end["images"]) for end in ends] == [(200, 1)]
    assert requests(system, org_id, 3)[FLUX][1:] == [429, 200]
    assert sum(event.quantity for event in system.events(org_id, 2)) == 9


def test_told_429_by_images_in_flight_a_client_gets_through_by_itself(
    system: System, client: tuple[str, Clients]
) -> None:
    """One image at once: while it is made the client is told to wait, and then it has its own."""
    name, order = client
    org_id, key = system.customer(f"{name} too many", "50.00", in_flight=1)
    system.behave(FLUX, "slow", seconds=3)  # longer than Node takes to start; two waits of 2 s are longer yet
    ends = fill(system, key, 1, meanwhile=lambda: order(system, key, [FLUX]))
    assert [(end["status"], end["images"]) for end in ends] == [(200, 1)]
    found = requests(system, org_id, 3)[FLUX]
    assert (found[0], found.count(200), set(found)) == (429, 2, {200, 429})
    assert sum(event.quantity for event in system.events(org_id, 2)) == 2


def test_the_same_order_several_times_above_a_limit_is_made_as_often(
    system: System, client: tuple[str, Clients]
) -> None:
    """Four of the same, two at once: those that are refused and asked for again are not answered with the others'."""
    name, order = client
    org_id, key = system.customer(f"{name} the same", "50.00", in_flight=2)
    system.behave(FLUX, "slow", seconds=1)
    before = len(system.jobs(FLUX))
    ends = order(system, key, [FLUX] * 4)
    assert [(end["status"], end["images"]) for end in ends] == [(200, 1)] * 4
    found = requests(system, org_id, 5)[FLUX]
    assert found.count(200) == 4 and 429 in found
    assert [event.quantity for event in system.events(org_id, 4)] == [1] * 4
    assert len(system.jobs(FLUX)) - before == 4


@pytest.mark.parametrize(
    ("limit", "status", "error", "code"),
    [
        ({"images_per_day": 1}, 429, "RateLimitError", "quota_exceeded"),
        ({"images_per_month": 1}, 429, "RateLimitError", "quota_exceeded"),
        ({"micro_mxn_per_month": 840_000}, 402, "APIStatusError", "budget_exceeded"),
    ],
)
def test_told_that_a_quota_is_used_up_a_client_does_not_try_again(
    system: System, client: tuple[str, Clients], limit: dict[str, int], status: int, error: str, code: str
) -> None:
    """One request, and the client's own error with our code: tomorrow, or next month, is too far away."""
    name, order = client
    org_id, key = system.customer(f"{name} {' '.join(limit)}", "50.00", **limit)
    fill(system, key, 1)
    (end,) = order(system, key, [FLUX])
    assert (end["status"], end["code"]) == (status, code)
    assert end["error"] in (error, "APIError")
    assert requests(system, org_id, 2)[FLUX] == [200, status]
    assert len(system.events(org_id, 1)) == 1


def requests(system: System, org_id: str, count: int = len(MODELS)) -> dict[str, list[int]]:
    """Statuses of an organisation's orders by model, from the gateway's log, which is written after the reply."""

    def lines() -> list[str]:
        return [line for line in system.log().splitlines() if '"event":"request"' in line and org_id in line]

    wait_until(lambda: len(lines()) >= count, "every order is in the log")
    found: dict[str, list[int]] = {model: [] for model in MODELS}
    for line in lines():
        entry = json.loads(line)
        found[entry["model"]].append(entry["status"])
    return found
