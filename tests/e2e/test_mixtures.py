"""A thousand orders, each with its own mixture of upstream outcomes: what is charged, delivered and stored is one set.

And: what an upstream tells of secrets ends in the gateway.
"""

import asyncio
import json
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

from config.catalogue import read_catalogue
from simulator.answers import INTERNAL_URL
from simulator.app import make_world
from tests.conftest import LOOPBACK, run
from tests.kits.system import NINE, System, assert_no_key, prepare
from tests.long import LONG

MIXTURES = {model: 68 if model.startswith("fal/") else 165 for model in NINE}
"""Together a thousand; fal's queue is polled, so its orders take longest."""

DEADLINE_S = 3.0

CATALOGUE = read_catalogue(None).models
SCENARIOS = {model: rows["scenarios"] for model, rows in make_world().behaviour.listing()["models"].items()}
GONE = {"retired", "retired_400"}
"""A retirement is remembered for minutes, and every later mixture of its model would be that; test_models.py has it."""

WAITING = {"silent", "stuck_in_queue"}
"""These last until the deadline, so they come seldom."""

PLAIN = {"slow"}
"""Needs a number of seconds of its own."""

SMALL: dict[str, dict[str, str]] = {
    "openai/gpt-image-1": {"output_format": "jpeg"},
    "google/imagen-4": {"output_format": "jpeg"},
    "fal/flux-1.1-pro": {"size": "512x512"},
    "fal/sd-3.5-large": {"size": "512x512"},
}
"""So that a thousand orders are a matter of a minute."""


@dataclass(frozen=True)
class Mixture:
    """One order, and what its upstream does to each of its calls, in the order in which they come."""

    model: str
    n: int
    plays: tuple[dict[str, Any], ...]


@st.composite
def plays(draw: st.DrawFn, model: str) -> dict[str, Any]:
    """Draw the behaviour for one call."""
    bad = sorted(set(SCENARIOS[model]) - GONE - WAITING - PLAIN - {"ok"})
    waiting = sorted(set(SCENARIOS[model]) & WAITING)
    kind = draw(st.integers(0, 99))
    if kind < 45:
        return {"scenario": "ok", "same": True}
    if kind < 46:
        return {"scenario": draw(st.sampled_from(waiting))}
    if kind < 52:
        return {"scenario": "slow", "same": True, "seconds": draw(st.sampled_from([0.05, 0.3]))}
    return {
        "scenario": draw(st.sampled_from(bad)),
        "same": True,
        "all": draw(st.booleans()),
        "last": draw(st.integers(1, 4)),
        "retry_after": draw(st.sampled_from([0, 0, 1, 30])),
    }


@st.composite
def mixtures(draw: st.DrawFn, model: str) -> Mixture:
    """An order with its calls' outcomes."""
    n = draw(st.sampled_from([1, 1, 1, 2, 2, 3, 4, 5, 8]))
    calls = -(-n // CATALOGUE[model].images_per_call)
    return Mixture(model, n, tuple(draw(plays(model)) for _ in range(calls)))


def drawn(model: str) -> list[Mixture]:
    """A model's mixtures: the same at every run, no two of them alike."""
    found: dict[str, Mixture] = {}

    @settings(
        max_examples=MIXTURES[model] // (1 if LONG else 5),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(mixtures(model))
    def draw(mixture: Mixture) -> None:
        assume(repr(mixture) not in found)
        found[repr(mixture)] = mixture

    draw()
    return list(found.values())


def test_a_thousand_mixtures_charge_what_they_deliver_and_store_nothing_else(system_of_secrets: System) -> None:
    """Images charged = images delivered in 200 replies = objects stored, path by path; the books are right.

    The models run beside one another, and each model's orders one after the other, so that a mixture meets no other's
    upstream outcomes.
    """
    system = system_of_secrets
    orders = [order for model in sorted(NINE) for order in drawn(model)]
    assert len(orders) == sum(number // (1 if LONG else 5) for number in MIXTURES.values())
    org_id, key = system.customer("mixed", "100000.00", requests_per_minute=1_000_000, images_per_minute=1_000_000)
    before = system.images()
    replies = run(all_of(system, key, orders))
    events = {event.opened.request_id.replace("-", ""): event for event in system.events(org_id, len(orders))}

    delivered: list[str] = []
    cost = 0
    for mixture, status, headers, body in replies:
        event = events.pop(headers["x-request-id"].removeprefix("req_"))
        paths = [item["url"].split("/generated-images/")[1] for item in body["data"]] if status == 200 else []
        assert [image.path for image in event.images] == paths, mixture
        assert (event.end, event.quantity) == (("charge", len(paths)) if paths else ("void", 0)), mixture
        assert len(paths) <= mixture.n and (status == 200) == bool(paths), mixture
        unit = CATALOGUE[mixture.model].usd_per_image
        assert unit is not None and Decimal(event.amount_micro_mxn) == len(paths) * unit * 21 * 1_000_000
        assert paths == [] or Decimal(headers["x-geekhub-cost-mxn"]) * 1_000_000 == event.amount_micro_mxn
        if {play["scenario"] for play in mixture.plays} == {"ok"}:
            assert len(paths) == mixture.n, mixture
        delivered += paths
        cost += event.amount_micro_mxn
    assert not events
    assert system.images() - before == set(delivered) and len(set(delivered)) == len(delivered)
    assert not [path for path in system.images() if path.endswith(".part")]
    cut = system.cut(org_id)
    assert (cut.held_micro_mxn, cut.charged_micro_mxn) == (0, cost)
    assert cut.credits_micro_mxn == cut.available_micro_mxn + cut.charged_micro_mxn == 100_000_000_000
    assert json.loads(system.ghub("verify", "--json").stdout) == {"ok": True, "differences": []}
    statuses = Counter(status for _, status, _, _ in replies)
    assert {200, 400, 502, 504} <= set(statuses) and set(statuses) <= {200, 400, 500, 502, 504}, statuses
    assert '"fault_in_generation"' not in system.log() and '"end_unknown"' not in system.log()
    print(statuses, f"{len(delivered)} images")


Answer = tuple[Mixture, int, httpx2.Headers, Any]


async def all_of(system: System, key: str, orders: list[Mixture]) -> list[Answer]:
    """Every order's status, headers and body."""
    limits = httpx2.Limits(max_connections=None)
    async with (
        system.client(key) as client,
        httpx2.AsyncClient(base_url=system.simulator, **LOOPBACK, limits=limits) as control,
    ):

        async def of_model(model: str) -> list[Answer]:
            await control.put("/_sim/behaviour", json={"model": model, "scenario": "ok", "same": True})
            answers = []
            for mixture in orders:
                if mixture.model == model:
                    # Every call takes its play; one that the gateway makes again gets what stands above.
                    reply = await control.put("/_sim/behaviour", json={"model": model, "sequence": mixture.plays})
                    assert reply.status_code == 200, reply.text
                    body = {"model": model, "prompt": "x", "n": mixture.n, **SMALL.get(model, {})}
                    answer = await client.post("/images/generations", json=body)
                    answers.append((mixture, answer.status_code, answer.headers, answer.json()))
            return answers

        return [answer for of in await asyncio.gather(*map(of_model, sorted(NINE))) for answer in of]


# --- secrets ---------------------------------------------------------------------------------------------------------

SECRETS = {name: f"upstream-secret-of-{name}-7Qm2Zx9Lw4" for name in ("openai", "google", "xai", "fal")}


@pytest.fixture(scope="module")
def system_of_secrets() -> Iterator[System]:
    """A running system whose provider keys can be told from everything else."""
    keys = {f"GHUB_{name.upper()}_KEY": secret for name, secret in SECRETS.items()}
    with tempfile.TemporaryDirectory(prefix="ghub-") as folder:
        system = prepare(Path(folder), GHUB_DEADLINE_S=str(DEADLINE_S), **keys)
        system.start_all()
        yield system
        system.stop_all()
        assert_no_key([*system.keys, *SECRETS.values()], system.folder)


@pytest.mark.parametrize(
    ("scenario", "status"),
    [("secret_in_error", 502), ("secret_in_headers", 200), ("secret_in_redirect", 502), ("image_redirect_secret", 502)],
)
def test_a_secret_in_an_upstreams_words_reaches_nobody(system_of_secrets: System, scenario: str, status: int) -> None:
    """For every model that can: neither in a reply's body or headers, nor in a log line, nor in the ledger or store."""
    system = system_of_secrets
    org_id, key = system.customer(f"secrets {scenario}", "500.00")
    models = sorted(model for model in NINE if scenario in SCENARIOS[model])
    if scenario.startswith("image_"):
        models = [model for model in models if model.startswith("fal/")]  # all others send the pictures themselves
    assert len(models) == (5 if scenario.startswith("image_") else 9)

    async def orders() -> list[httpx2.Response]:
        async with system.client(key) as client:
            bodies = [{"model": model, "prompt": "x"} for model in models]
            return await asyncio.gather(*(client.post("/images/generations", json=body) for body in bodies))

    for model in models:
        system.behave(model, scenario)
    replies = run(orders())
    assert [reply.status_code for reply in replies] == [status] * len(models)
    system.events(org_id, len(models))
    internal = INTERNAL_URL.partition("//")[2].partition("/")[0]
    told = [reply.text + repr(reply.headers.multi_items()) for reply in replies]
    told += [path.read_text(errors="replace") for path in system.folder.rglob("*.log")]
    told += [path.read_bytes().decode("latin-1") for path in system.folder.glob("ledger.db*")]
    for text in told:
        assert not any(secret in text for secret in SECRETS.values())
        assert internal not in text
