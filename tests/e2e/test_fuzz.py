"""Malformed requests in crowds: each gets a row of the public table, and none of them costs anything."""

import asyncio
import json
from collections import Counter
from typing import Any

import httpx2
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from proxy.errors import Kind
from tests.conftest import LOOPBACK
from tests.kits.system import FLUX, GPT, System, bearer
from tests.long import LONG

BATCH = 10
REQUESTS = 20_000 if LONG else 1_500

READS = {"/v1/credits", "/v1/images/generations"}

ROWS = {(kind.value.status, kind.value.type, kind.value.code) for kind in Kind}

FIELDS = ["model", "prompt", "n", "size", "quality", "response_format", "stream", "user", "background", "x"]
SCALARS: st.SearchStrategy[Any] = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from([FLUX, GPT, "hd"])
)
JSON: st.SearchStrategy[Any] = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=3,
)
ORDERS = st.fixed_dictionaries(
    {"model": st.sampled_from([FLUX, GPT, "fal/none"]) | SCALARS, "prompt": st.text(max_size=30) | SCALARS},
    optional={name: SCALARS for name in FIELDS[2:]},
)


@st.composite
def bodies(draw: st.DrawFn) -> bytes:
    """JSON of a wrong form, an order with wrong fields, JSON cut or with a byte changed, or plain bytes."""
    kind = draw(st.integers(0, 4))
    if kind == 0:
        return draw(st.binary(max_size=200))
    text = json.dumps(draw(JSON if kind == 1 else ORDERS)).encode()
    if kind == 3 and text:
        return text[: draw(st.integers(0, len(text) - 1))]
    if kind == 4 and text:
        place = draw(st.integers(0, len(text) - 1))
        return text[:place] + bytes([draw(st.integers(0, 255))]) + text[place + 1 :]
    return text


REQUEST = st.tuples(
    st.sampled_from(["POST"] * 12 + ["GET", "PUT", "DELETE", "PATCH"]),
    st.sampled_from(["/images/generations"] * 12 + ["/images/generations/", "/images", "/models/%2e%2e/x", "/credits"]),
    st.sampled_from(["key"] * 8 + ["none", "wrong"]),
    bodies(),
)


def test_malformed_requests_get_rows_of_the_table_and_cost_nothing(system: System) -> None:
    """The organisation has no credit, so that even an order that came out well is a row: 402."""
    org_id, key = system.customer("fuzzed", "0.00", requests_per_minute=1_000_000, images_per_minute=1_000_000)
    credentials = {"key": bearer(key), "none": {}, "wrong": bearer("ghub_sk_live_" + "x" * 32)}
    jobs = len(system.jobs())
    seen = Counter[tuple[int, str]]()

    @settings(
        max_examples=REQUESTS // BATCH,
        phases=[Phase.generate],  # a run of thousands of requests is not made smaller: it would take minutes
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(REQUEST, min_size=BATCH, max_size=BATCH))
    def fuzz(batch: list[tuple[str, str, str, bytes]]) -> None:
        async def send() -> list[httpx2.Response]:
            return await asyncio.gather(
                *(client.request(m, path, headers=credentials[who], content=body) for m, path, who, body in batch)
            )

        for reply in runner.run(send()):
            if reply.status_code == 200:
                assert reply.request.method == "GET" and reply.request.url.path in READS
                seen[200, ""] += 1
                continue
            error = reply.json()["error"]
            seen[reply.status_code, error["code"]] += 1
            assert (reply.status_code, error["type"], error["code"]) in ROWS
            assert error["code"] not in ("internal_error", "temporarily_unavailable"), reply.text
            assert reply.headers["x-request-id"] == error["request_id"] and error["message"]

    with asyncio.Runner() as runner:
        client = httpx2.AsyncClient(base_url=system.url, **LOOPBACK, timeout=30)
        fuzz()
        runner.run(client.aclose())
    assert sum(seen.values()) == REQUESTS // BATCH * BATCH
    assert seen[200, ""] < 0.2 * REQUESTS
    assert {code for _, code in seen} >= {"invalid_request_error", "model_not_found", "method_not_allowed", "not_found"}
    cut = system.cut(org_id)
    assert (cut.available_micro_mxn, cut.held_micro_mxn, cut.charged_micro_mxn, cut.number) == (0, 0, 0, 0)
    assert len(system.jobs()) == jobs
