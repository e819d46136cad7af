"""The document at /openapi.json against the gateway that serves it, with schemathesis as the judge."""

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from typing import Any

import httpx2
from pydantic import BaseModel

from config.settings import REDIS_DECISION_S
from metering.clock import period_at, unix_us_at, utc_now
from proxy.api.admin.minting import Issuer, mint
from proxy.api.openapi import document
from proxy.api.schemas import Credits, Delivered, Error, Found, Generation, Model, Models, OpenApi
from proxy.api.statements import StatementReply
from tests.e2e.conftest import Prepared
from tests.kits.surface import operations
from tests.kits.system import FLUX, GPT, NINE, System, bearer
from tests.long import long

PLENTY = 1_000_000
"""Requests and images per minute: the document is tried, not the limits."""

MONTH = period_at(unix_us_at(utc_now())).month
SECRET = "thirty-two bytes of a secret, at the least"

ORDERS = [
    {"model": FLUX, "prompt": "x"},
    {"model": FLUX, "prompt": "x", "n": 2, "response_format": "b64_json"},
    {"model": GPT, "prompt": "x", "quality": "hd", "size": "1536x1024", "background": "opaque"},
    {"model": "openai/dall-e-3", "prompt": "x"},
    {"model": "google/imagen-4", "prompt": "x"},
    {"model": "xai/grok-2-image", "prompt": "x"},
    {"model": "fal/recraft-v3", "prompt": "x", "n": 8},
]


def spending(system: System, name: str) -> tuple[str, str]:
    """An organisation that no limit or balance stops."""
    return system.customer(name, "900000.00", requests_per_minute=PLENTY, images_per_minute=PLENTY)


def held(model: type[BaseModel], reply: httpx2.Response, status: int = 200) -> Any:
    """The reply's JSON, which has this form to the last field."""
    assert reply.status_code == status, reply.text
    model.model_validate_json(reply.content)
    return reply.json()


def test_every_real_reply_has_its_models_form(system: System) -> None:
    """Strictly: no field is missing, of another type, or one that the document does not tell of."""
    _, key = spending(system, "documented")
    with httpx2.Client(base_url=system.url, headers=bearer(key), trust_env=False, timeout=30) as client:
        made = [held(Delivered, client.post("/images/generations", json=order)) for order in ORDERS]
        for one in made:
            assert held(Generation, client.get(f"/images/generations/{one['id']}"))["status"] == "completed"
        listed = held(Found, client.get("/images/generations"))["data"]
        assert {one["id"] for one in listed} <= {one["id"] for one in made}
        keyed = held(Delivered, client.post("/images/generations", json=ORDERS[0], headers={"idempotency-key": "k"}))
        assert held(Found, client.get("/images/generations?idempotency_key=k"))["id"] == keyed["id"]
        system.behave(FLUX, "content_policy_422")
        failed = held(Error, client.post("/images/generations", json=ORDERS[0]), 400)["error"]
        assert held(Generation, client.get(f"/images/generations/{failed['request_id']}"))["status"] == "failed"
        models = held(Models, client.get("/models"))["data"]
        assert {one["id"] for one in models} >= NINE
        for one in models:
            held(Model, client.get(f"/models/{one['id']}"))
        held(Credits, client.get("/credits"))
        held(StatementReply, client.get(f"/statements/{MONTH}", headers={"accept": "application/json"}))
        held(Error, client.get("/nothing"), 404)
        assert client.get(system.url.removesuffix("v1") + "healthz").text == "ok\n"
        assert client.get(system.url.removesuffix("v1") + "readyz").text.startswith("ready\nmodels ")


def test_the_document_is_kept_until_it_changes(system: System) -> None:
    """No key is needed; its ETag is answered with 304 and nothing else."""
    url = system.url.removesuffix("v1") + "openapi.json"
    first = httpx2.get(url, trust_env=False)
    held(OpenApi, first)
    for known in (first.headers["etag"], f'"x", W/{first.headers["etag"]}', "*"):
        again = httpx2.get(url, headers={"if-none-match": known}, trust_env=False)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert httpx2.get(url, headers={"if-none-match": '"x"'}, trust_env=False).status_code == 200


def test_the_gateway_serves_every_endpoint_that_there_is(system: System) -> None:
    """Each has its place in the wiring; this gateway has a local folder, and no administrators."""
    served = httpx2.get(system.url.removesuffix("v1") + "openapi.json", trust_env=False).json()
    assert served == document(row for row in operations() if row.security not in ("admin", "finance"))


def test_every_get_is_also_a_head(system: System) -> None:
    """It has the status and the headers of the GET, and no body; also if the GET is refused."""
    _, key = spending(system, "heads")
    with httpx2.Client(base_url=system.url.removesuffix("v1"), headers=bearer(key), trust_env=False) as client:
        made = held(Delivered, client.post("/v1/images/generations", json=ORDERS[0]))
        at = {"id": made["id"], "model_id": FLUX, "month": MONTH}
        at |= zip(("org", "request", "file"), made["data"][0]["url"].split("/")[-3:], strict=True)
        rows = [row for row in operations() if row.method == "GET" and row.security not in ("admin", "finance")]
        assert len(rows) >= 10
        for path in (row.documented_path.format(**at) for row in rows):
            for more in ({}, {"authorization": "Bearer none"}):
                get, head = client.get(path, headers=more), client.head(path, headers=more)
                assert (head.status_code, head.content) == (get.status_code, b""), path
                assert set(head.headers) == set(get.headers), path


def test_a_refused_method_is_told_every_method_of_the_address(system: System) -> None:
    """Also if two routes share it, and if a folder is served."""
    root = system.url.removesuffix("/v1")
    for path, allowed in (
        ("/v1/images/generations", "GET, HEAD, POST"),
        ("/v1/credits", "GET, HEAD"),
        ("/storage/v1/object/public/generated-images/a/b/0.png", "GET, HEAD"),
    ):
        reply = httpx2.delete(root + path, trust_env=False)
        held(Error, reply, 405)
        assert reply.headers["allow"] == allowed


def configuration(made: list[dict[str, Any]], seed: int, examples: int) -> str:
    """For schemathesis: the key, how much to call, and words that make some of the orders and ids good ones."""
    org, request, file = made[0]["data"][0]["url"].split("/")[-3:]
    words: dict[str, tuple[list[Any], float]] = {
        "body.model": ([*sorted(NINE), "fal/none"], 0.7),
        "body.n": ([1], 0.7),
        "body.size": (["auto", "1024x1024", "1536x1024", "1x1"], 0.7),
        "body.quality": (["auto", "hd", "standard", "best"], 0.5),
        "body.output_format": (["png", "jpeg", "webp"], 0.5),
        "body.background": (["opaque", "transparent"], 0.5),
        "query.idempotency_key": (["explored"], 0.5),
        "path.id": ([one["id"] for one in made], 0.5),
        "path.model_id": (sorted(NINE), 0.5),
        "path.month": ([MONTH, "2020-01"], 0.9),
        "path.org": ([org], 0.9),
        "path.request": ([request], 0.9),
        "path.file": ([file], 0.9),
    }
    names = {place: place.replace(".", "_") for place in words}
    lines = [
        f"seed = {seed}",
        # Each operation with parameters; those without are called once, and with each method that they do not take.
        f"generation = {{max-examples = {examples // 4}}}",
        f"phases.stateful.generation.max-examples = {max(1, examples // 100)}",
        'auth.openapi.ghub_sk.bearer = "${GHUB_KEY}"',  # in no file, and in no list of processes
        'auth.openapi.admin.bearer = "${GHUB_TOKEN}"',
        'auth.openapi.finance.bearer = "${GHUB_FINANCE_TOKEN}"',
        # A valid body may well be refused: sizes, qualities and more are each model's own.
        "checks.positive_data_acceptance.enabled = false",
        'checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]',  # `explore` looks at each 503
        *(f"dictionaries.{names[place]}.values = {json.dumps(values)}" for place, (values, _) in words.items()),
        *(
            f'parameters."{place}" = {{dictionary = "{names[place]}", probability = {share}}}'
            for place, (_, share) in words.items()
        ),
        "[[operations]]",
        'include-path = "/v1/images/generations"',
        'include-method = "POST"',
        f"generation = {{max-examples = {examples}}}",
    ]
    return "\n".join(lines)


def explore(system: System, seeds: int, examples: int) -> Counter[tuple[str, int]]:
    """As many schemathesis as seeds call every operation at once, with `examples` orders each; returns what the gateway
    answered by its own log. Whatever the document does not describe fails, and so does a 5xx. One exception: what a
    gateway promises on a machine that is too busy, here with the callers themselves, is a 503 after Redis' 100 ms."""
    _, key = spending(system, "explored")
    token = mint(SECRET, Issuer("authenticated", None), "explorer", "admin", utc_now(), timedelta(hours=1))
    issuer, life = Issuer("authenticated", None), timedelta(hours=1)
    finance = mint(SECRET, issuer, "explorer", "finance", utc_now(), life, ("enter",))
    with httpx2.Client(base_url=system.url, headers=bearer(key), trust_env=False, timeout=30) as client:
        made = [client.post("/images/generations", json=order).json() for order in ORDERS]
        client.post("/images/generations", json=ORDERS[0], headers={"idempotency-key": "explored"})
    before = len(system.log().splitlines())
    runs = []
    for seed in range(seeds):
        folder = system.folder / f"schemathesis-{seed}"
        folder.mkdir()
        config = folder / "schemathesis.toml"
        config.write_text(configuration(made, seed, examples))
        command = [sys.executable, "-m", "schemathesis.cli", "--no-color", f"--config-file={config}", "run"]
        command += [system.url.removesuffix("v1") + "openapi.json", "--continue-on-failure", "--no-shrink"]
        command += ["--generation-database=none", "--workers=1"]
        environment = {**os.environ, "GHUB_KEY": key, "GHUB_TOKEN": token, "GHUB_FINANCE_TOKEN": finance}
        with (folder / "said.txt").open("w") as output:
            runs.append(subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output))
    try:
        codes = [run.wait() for run in runs]
    finally:
        for run in runs:
            run.kill()
    for seed, code in enumerate(codes):
        said = (system.folder / f"schemathesis-{seed}/said.txt").read_text()
        print(said)
        assert code == 0, said
    lines = [json.loads(line) for line in system.log().splitlines()[before:]]
    calls = [line for line in lines if line["event"] == "request"]
    seen = Counter((line["route"], line["status"]) for line in calls)
    print(f"{len(calls)} calls", *sorted(seen.items()), sep="\n")
    failed = [line for line in calls if line["status"] >= 500]
    late = [line for line in failed if line["status"] == 503 and line["elapsed_ms"] >= REDIS_DECISION_S * 1000]
    assert late == failed and len(late) <= len(calls) / 1000, failed
    return seen


def test_schemathesis_finds_nothing_that_the_document_does_not_describe(prepared: Prepared) -> None:
    """Hundreds of calls: no 5xx; no status, header, content type or form of a reply but the described; no operation
    without its key; no method that is not told."""
    system = prepared(GHUB_JWT_SECRET=SECRET)
    system.start_all()
    seen = explore(system, 1, 10)
    assert sum(seen.values()) >= 200
    for route in (
        "/v1/images/generations",
        "/v1/images/generations/{id}",
        "/v1/models/{model_id:path}",
        "/admin/v1/orgs",
    ):
        assert seen[route, 200] and seen[route, 401] and seen[route, 405], seen


@long
def test_schemathesis_finds_nothing_in_fifty_thousand_calls(prepared: Prepared) -> None:
    """The same, a hundred times as long."""
    system = prepared(GHUB_JWT_SECRET=SECRET)
    system.start_all()
    assert sum(explore(system, 2, 1_700).values()) >= 50_000
