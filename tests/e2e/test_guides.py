"""Every snippet of the guides runs unchanged: the official clients, and others that our customers use."""

import asyncio
import base64
import json
import os
import re
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from pathlib import Path

import httpx2
import pytest
from standardwebhooks.webhooks import Webhook as Judge

from metering.clock import utc_now
from metering.events import LONG as LONG_ORDER
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.node import PROGRAM_S, install
from tests.kits.ports import free_port
from tests.kits.programs import program
from tests.kits.raw_server import Peer, raw_server
from tests.kits.system import System, bearer, wait_until
from tests.long import LONG, long

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = ("guide.md", "guia.md")
"""The Spanish one runs with `make long`: its snippets are those of the other, but for words."""

FENCE = re.compile(r"```(\w+)\n(.*?)```", re.DOTALL)
EXPORT = re.compile(r"(?m)^export (\w+)=")
VARIABLES = {"OPENAI_BASE_URL", "OPENAI_API_KEY", "WEBHOOK_URL", "WEBHOOK_SECRET"}

SLOW = "openai/gpt-image-2"
SLOW_HIGH_MICRO_MXN = 4_426_275
"""What one of its images in high is charged: 11 tokens of text at 5 USD and 7,024 of an image at 30 USD a million."""


def snippets(guide: str) -> list[tuple[str, str]]:
    """Language and text of each, but for those that set variables."""
    return [one for one in FENCE.findall((DOCS / guide).read_text()) if not EXPORT.search(one[1])]


def is_about_webhooks(text: str) -> bool:
    """True for a snippet that needs a receiver, or is one."""
    return "WEBHOOK_" in text or "ghub webhook" in text


def is_long_order(text: str) -> bool:
    """True for a snippet that orders what takes too long for an answer, and then orders it otherwise."""
    return SLOW in text and "respond-async" in text


def calls(text: str) -> list[str]:
    """List a snippet's imports, calls and model names: everything that is the same in both languages."""
    return re.findall(r"^(?:import|from) .*|\w+(?=\()|[\"'][\w./-]+/[\w./-]+[\"']", text, re.MULTILINE)


PLACES = [
    (language, text, f"{guide}-{number}-{language}")
    for guide in (GUIDES if LONG else GUIDES[:1])
    for number, (language, text) in enumerate(snippets(guide))
]
LONG_ORDERS = [pytest.param(language, text, id=name) for language, text, name in PLACES if is_long_order(text)]
OTHERS = [
    pytest.param(language, text, id=name)
    for language, text, name in PLACES
    if not is_long_order(text) and not is_about_webhooks(text)
]
PATIENT_FETCH = [pytest.param(text, id=name) for _, text, name in PLACES if "async function longOrder" in text]


@pytest.fixture(scope="module")
def customer(system: System) -> tuple[str, str]:
    """An organisation that orders what the guides order."""
    return system.customer("guides", "1000.00", requests_per_minute=10_000, images_per_minute=10_000)


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the snippets for Node find their packages."""
    return install(tmp_path_factory.mktemp("node") / "client")


@dataclass(frozen=True)
class Customers:
    """A customer's machine: the variables that the guide sets, and nothing else of this machine's."""

    node: Path
    folder: Path
    variables: dict[str, str]

    def line(self, language: str, text: str) -> list[str | Path]:
        """Write a snippet down, unchanged; returns what runs it."""
        name = f"{sha256(text.encode()).hexdigest()}"
        suffix, folder = {"js": (".mjs", self.node), "python": (".py", self.folder), "sh": (".sh", self.folder)}[
            language
        ]
        file = folder / f"{name}{suffix}"
        file.write_text(text)
        return [{"js": program("node"), "python": sys.executable, "sh": "sh"}[language], file]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": f"{Path(program('node')).parent}:{os.environ['PATH']}",
            "HOME": str(self.folder),
            "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # it would ask for today's at a host that is not ours
            **self.variables,
        }

    def run(self, language: str, text: str, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a snippet to its end."""
        return subprocess.run(
            self.line(language, text),
            env=self.environment | more,
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=PROGRAM_S,
            check=False,
        )

    @contextmanager
    def serving(self, language: str, text: str, port: int, **more: str) -> Iterator[Path]:
        """Run a snippet that serves this port until the end; yields the file into which it writes."""
        written = self.folder / f"{language}.out"
        with (
            written.open("w") as out,
            subprocess.Popen(
                self.line(language, text), env=self.environment | {"PORT": str(port)} | more, stdout=out, stderr=out
            ) as server,
        ):
            try:
                wait_until(lambda: _listens(port), f"it listens: {written.read_text()}")
                yield written
            finally:
                server.kill()


def _listens(port: int) -> bool:
    with socket.socket() as peer:
        return peer.connect_ex(("127.0.0.1", port)) == 0


def customers_of(system: System, key: str, node: Path, folder: Path) -> Customers:
    return Customers(node, folder, {"OPENAI_BASE_URL": system.url, "OPENAI_API_KEY": key})


@pytest.mark.parametrize(("language", "text"), OTHERS)
def test_a_snippet_does_what_it_says(
    system: System, customer: tuple[str, str], node: Path, tmp_path: Path, language: str, text: str
) -> None:
    """With the two variables that the guide sets, and nothing else of this machine's; it ends well."""
    done = customers_of(system, customer[1], node, tmp_path).run(language, text)
    assert done.returncode == 0, done.stderr[-2000:]
    quiet = "assert " in text or "throw new Error" in text or "write_bytes" in text
    assert done.stdout.strip() or quiet, "it says nothing"


@pytest.mark.parametrize(("language", "text"), LONG_ORDERS)
def test_what_is_too_slow_for_an_answer_is_refused_and_delivered_as_a_long_order(
    system: System, node: Path, tmp_path: Path, language: str, text: str
) -> None:
    """The first call is the 400 that names the header; the second is delivered: one job upstream, one charge."""
    org_id, key = system.customer(f"long {language} {tmp_path.name}", "50.00")
    before = len(system.jobs(SLOW))
    done = customers_of(system, key, node, tmp_path).run(language, text)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "`Prefer: respond-async`" in done.stdout, "the answer to the first call"
    assert re.search(r"/generated-images/\S+\.png|image/png", done.stdout), "the image"
    (event,) = system.events(org_id, 1)
    assert (event.opened.model, event.opened.quality, event.opened.mode) == (SLOW, "high", LONG_ORDER)
    assert (event.end, event.quantity, event.amount_micro_mxn) == ("charge", 1, SLOW_HIGH_MICRO_MXN)
    assert len(system.jobs(SLOW)) - before == 1


@pytest.mark.parametrize("text", PATIENT_FETCH)
def test_a_long_order_that_fails_is_the_error_of_the_ai_sdk_and_is_ordered_once(
    system: System, node: Path, tmp_path: Path, text: str
) -> None:
    """Its user sees what went wrong, and nothing was charged."""
    org_id, key = system.customer(f"failed {tmp_path.name}", "50.00")
    system.behave(SLOW, "http_500")
    done = customers_of(system, key, node, tmp_path).run("js", text)
    assert done.returncode == 1 and "APICallError" in done.stderr, done.stderr[-2000:]
    (event,) = system.events(org_id, 1)
    assert (event.end, event.amount_micro_mxn) == ("void", 0)
    taken = [line for line in system.log().splitlines() if org_id in line and '"status":202' in line]
    assert len(taken) == 1, "each of its orders is answered 202"


@long
@pytest.mark.parametrize(("language", "text"), [one for one in LONG_ORDERS if one.values[0] != "sh"])
def test_the_code_for_long_orders_works_with_a_test_key(
    system: System, node: Path, tmp_path: Path, language: str, text: str
) -> None:
    """It is answered at once, with a 200 that has no status."""
    org_id, _ = system.customer(f"rehearsed {language} {tmp_path.name}")
    issued = system.back(lambda back: back.accounts.create_key(org_id, "ci", test=True))
    done = customers_of(system, issued.secret, node, tmp_path).run(language, text)
    assert done.returncode == 0 and done.stdout, done.stderr[-2000:]


@long
@pytest.mark.parametrize("text", PATIENT_FETCH)
def test_the_fetch_for_the_ai_sdk_asks_again_after_a_fault_and_orders_once(
    node: Path, tmp_path: Path, text: str
) -> None:
    """A connection that breaks and a 503 while it waits are no reason to order again; a lost image is none either."""
    posts, polls, pictures = Counter[str](), 0, 0
    where = "/v1/images/generations/req_0"

    async def answer(peer: Peer) -> None:
        nonlocal polls, pictures
        while request := await peer.read_request():
            status, location, body = "200 OK", "", b"{}"
            if request.startswith(b"POST") and b"respond-async" in request:
                posts["long"] += 1
                status, location = "202 Accepted", f"location: {where}\r\n"
            elif request.startswith(b"POST"):
                posts["awaited"] += 1
                status = "400 Bad Request"
            elif request.startswith(b"GET /picture"):
                pictures += 1
                status, body = ("200 OK", b"\x89PNG\r\n\x1a\n") if pictures == 1 else ("500 Internal Server Error", b"")
            else:
                polls += 1
                if polls == 1:
                    return  # which breaks the connection
                status = "503 Service Unavailable" if polls == 2 else status
                url = f"http://{request.lower().split(b'host: ')[1].split()[0].decode()}/picture"
                body = json.dumps({"status": "completed", "data": [{"url": url}]}).encode()
            head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\n{location}content-length: {len(body)}\r\n"
            await peer.send(f"{head}\r\n".encode() + body)

    async def twice() -> list[subprocess.CompletedProcess[str]]:
        async with raw_server(answer) as server:
            variables = {"OPENAI_BASE_URL": f"{server.url}/v1", "OPENAI_API_KEY": "key"}
            customers = Customers(node, tmp_path, variables)
            return [await asyncio.to_thread(customers.run, "js", text) for _ in range(2)]

    delivered, lost = run(twice())
    assert delivered.returncode == 0 and "image/png" in delivered.stdout, delivered.stderr
    assert lost.returncode == 1 and where in lost.stderr, "it says where the order is"
    assert posts == {"awaited": 2, "long": 2} and (polls, pictures) >= (4, 2)


KEY = base64.b64encode(b"k" * 32).decode()
RECEIVERS = ("python", "js")


@pytest.mark.parametrize("guide", GUIDES if LONG else GUIDES[:1])
def test_webhooks_are_registered_rotated_ordered_and_verified_by_the_guide_alone(
    prepared: Prepared, node: Path, tmp_path: Path, guide: str
) -> None:
    """Each receiver takes what we sign, once, by either secret of a rotation, and refuses a forgery and an old call."""
    about = [one for one in snippets(guide) if is_about_webhooks(one[1])]
    servers = {language: text for language, text in about if "WEBHOOK_SECRET" in text}
    orders = {language: text for language, text in about if "WEBHOOK_URL" in text and language != "sh"}
    (add,) = [text for _, text in about if "ghub webhook add" in text]
    (rotate,) = [text for _, text in about if "ghub webhook rotate" in text]
    assert set(servers) == set(orders) == set(RECEIVERS) and len(about) == 6

    ports = {language: free_port() for language in RECEIVERS}
    urls = {language: f"http://127.0.0.1:{port}/" for language, port in ports.items()}
    hosts = ",".join(f"127.0.0.1:{port}" for port in ports.values())
    system = prepared(GHUB_SECRETS_KEY=KEY, GHUB_WEBHOOK_HOSTS=hosts)
    system.start_all()
    _, key = system.customer("acme", "50.00")
    customers = customers_of(system, key, node, tmp_path)
    operator = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(DOCS.parent),  # this tree's command, wherever it is installed from
        **system.environment,
    }

    secrets = {}
    for language, text in (
        ("js", add),
        ("python", rotate),
    ):  # one that still has the secret before, one that has its new one
        told = customers.run("sh", text, WEBHOOK_URL=urls["python"], **operator)
        assert told.returncode == 0, told.stderr
        (secrets[language],) = re.findall(r"whsec_\S+", told.stdout)
    with ExitStack() as running:
        written = {
            one: running.enter_context(customers.serving(one, servers[one], ports[one], WEBHOOK_SECRET=secrets[one]))
            for one in RECEIVERS
        }
        placed = [customers.run(one, orders[one], WEBHOOK_URL=urls[one]) for one in RECEIVERS]
        assert [one.returncode for one in placed] == [0, 0], placed
        ids = [one.stdout.strip() for one in placed]

        def completed(language: str) -> list[str]:
            return re.findall(r"image\.generation\.completed.*(req_[0-9a-f]+)", written[language].read_text())

        wait_until(lambda: set(completed("python")) == set(ids), "the registered one has both")
        wait_until(lambda: completed("js") == ids[1:], "the one that an order names has that order")
        for language in RECEIVERS:
            assert_receives(urls[language], secrets[language], written[language])


def assert_receives(url: str, secret: str, written: Path) -> None:
    """Send what the standard's library signs: twice under one id; changed, by another secret, old; and one unsigned."""
    body, now = b'{"type": "balance.low", "data": {"used": "19.66"}}', utc_now()

    def status(number: str, *, at: datetime = now, signed: bytes = body, by: str = secret) -> int:
        signature = Judge(by).sign(number, at, signed.decode())
        headers = {"webhook-id": number, "webhook-timestamp": str(int(at.timestamp())), "webhook-signature": signature}
        return httpx2.post(url, content=body, headers=headers, **LOOPBACK).status_code

    assert [status("one"), status("one")] == [204, 204]
    other = "whsec_" + base64.b64encode(b"o" * 32).decode()
    assert [
        status("two", signed=body + b" "),
        status("three", by=other),
        status("four", at=now - timedelta(minutes=6)),
        httpx2.post(url, content=body, **LOOPBACK).status_code,
    ] == [400] * 4
    assert len(re.findall("balance.low", written.read_text())) == 1


def test_both_guides_have_the_same_snippets_and_set_the_same_variables() -> None:
    """In the same order, for the same clients; only words differ."""
    english, spanish = ([(language, calls(text)) for language, text in snippets(guide)] for guide in GUIDES)
    assert english == spanish and len(english) > 10
    for guide in GUIDES:
        assert set(EXPORT.findall((DOCS / guide).read_text())) == VARIABLES


def test_the_tool_of_librechat_gets_its_image(system: System, customer: tuple[str, str]) -> None:
    """The parameters that LibreChat's image tools send for DALL·E 3 and gpt-image-1, with its own defaults."""
    orders = [
        {"model": "openai/dall-e-3", "quality": "standard", "style": "vivid", "size": "1024x1024", "n": 1},
        {
            "model": "openai/gpt-image-1",
            "n": 1,
            "quality": "auto",
            "size": "auto",
            "background": "auto",
            "output_format": "webp",
            "output_compression": 100,
            "user": "64f0c0ffee",
        },
    ]
    for order in orders:
        sent = {"prompt": "Un axolotl", **order}
        reply = httpx2.post(
            f"{system.url}/images/generations", json=sent, headers=bearer(customer[1]), timeout=60, **LOOPBACK
        )
        assert reply.status_code == 200, reply.text
        assert reply.json()["data"][0]["url"]
