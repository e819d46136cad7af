"""Support of other kinds of clients: how they compress a body, what they request, where, and in which language."""

import asyncio
import json
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx2
import pytest

from proxy.api.schemas import Delivered, Generation, Generations
from tests.conftest import LOOPBACK, run
from tests.e2e.conftest import Prepared
from tests.kits.node import install, tell
from tests.kits.packing import PACK
from tests.kits.system import FLUX, FLUX_MXN, System, bearer, wait_until

ORDER = {"model": FLUX, "prompt": "un faro"}
PACKED = PACK | {"identity": bytes}
SPANISH = {"accept-language": "es-MX,es;q=0.9,en;q=0.5"}


@pytest.fixture(scope="module")
def customer(system: System) -> tuple[str, str]:
    """An organisation with plenty of credit."""
    return system.customer("manners", "1000.00", requests_per_minute=10_000, images_per_minute=10_000)


def post(system: System, key: str, **options: Any) -> httpx2.Response:
    headers = bearer(key) | options.pop("headers", {})
    return httpx2.post(f"{system.url}/images/generations", headers=headers, timeout=60, **options, **LOOPBACK)


def get(system: System, key: str, path: str, **headers: str) -> httpx2.Response:
    return httpx2.get(system.url + path, headers=bearer(key) | headers, **LOOPBACK)


def message(reply: httpx2.Response, status: int) -> str:
    """Message of an error with this status."""
    assert reply.status_code == status, reply.text
    said: str = reply.json()["error"]["message"]
    return said


# --- bodies ---


@pytest.mark.parametrize("encoding", PACKED)
def test_a_compressed_order_is_an_order(system: System, customer: tuple[str, str], encoding: str) -> None:
    """In every encoding that is told; a bomb of as few bytes is a 413, and what is none of it a 400."""
    key, headers = customer[1], {"content-encoding": encoding, "content-type": "application/json"}
    pack = PACKED[encoding]
    reply = post(system, key, content=pack(json.dumps(ORDER).encode()), headers=headers)
    assert reply.status_code == 200, reply.text
    if encoding != "identity":
        bomb = pack(json.dumps(ORDER | {"prompt": "x" * 10_000_000}).encode())
        assert len(bomb) < 64 * 1024
        assert "65536 bytes" in message(post(system, key, content=bomb, headers=headers), 413)
        assert f"`Content-Encoding: {encoding}`" in message(post(system, key, content=b"{}", headers=headers), 400)


@pytest.mark.parametrize("encoding", ["compress", "gzip, br", "lz4", "x" * 1000])
def test_another_encoding_is_415_that_names_the_header(
    system: System, customer: tuple[str, str], encoding: str
) -> None:
    """And says which there are, in words and in `Accept-Encoding`."""
    reply = post(system, customer[1], content=b"{}", headers={"content-encoding": encoding})
    assert "`Content-Encoding: " in message(reply, 415) and reply.json()["error"]["code"] == "unsupported_encoding"
    assert reply.headers["accept-encoding"] == "gzip, deflate, br, zstd"


def test_values_that_ask_for_nothing_are_passed_over_and_user_is_not(system: System, customer: tuple[str, str]) -> None:
    """Defaults that clients send with every order are no error; another user under the same key is another order."""
    nothing: dict[str, Any] = {
        "metadata": {"a": "b"},
        "quality": "standard",
        "style": "vivid",
    }
    nothing |= {"background": "auto", "moderation": "auto", "partial_images": 0, "stream": False, "size": "auto"}
    body = ORDER | nothing | {"user": "u1"}
    once = {"idempotency-key": "nothing"}
    assert post(system, customer[1], json=body, headers=once).status_code == 200
    assert post(system, customer[1], json=ORDER | {"user": "u1"}, headers=once).headers["idempotent-replayed"] == "true"
    for other in ({"user": "u2"}, {"safety_identifier": "s"}):
        assert post(system, customer[1], json=body | other, headers=once).status_code == 422


# --- a body that nobody reads ---


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Callable[[dict[str, Any]], Any]:
    """Run tests/kits/node_programs/unread.mjs next to `openai` for Node, as its lock file says."""
    folder = install(tmp_path_factory.mktemp("node") / "client")
    return partial(tell, folder, "unread.mjs")


def test_node_reads_an_answer_that_comes_before_its_body_is_sent(
    system: System, customer: tuple[str, str], node: Callable[[dict[str, Any]], Any]
) -> None:
    """Ten times each: 413 for 5 MB of JSON by `fetch`, 401 with a wrong key, 404 for a file of 77 KB sent for editing.

    Before, OpenAI's client reported EPIPE, or a connection error.
    """
    ends = node({"url": system.url, "key": customer[1], "times": 10})
    assert ends["fetch"] == [[413, "request_too_large"]] * 10
    assert ends["unknown"] == [[401, "invalid_api_key"]] * 10
    assert ends["edit"] == [[404, "not_found"]] * 10
    assert all("Image edits are not offered" in said for said in ends["said"])


def test_the_rest_of_a_body_is_read_within_bounds(system: System) -> None:
    """The answer comes at once; a client that goes on for ever, or never goes on, loses its connection; one that ends
    in time keeps it for its next request."""

    async def work() -> None:
        head = b"POST /v1/nothing HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        writer.write(head % 1_000_000)
        first = await answer(reader)
        assert first.startswith(b"HTTP/1.1 404")  # not a byte of the body is sent yet
        writer.write(b"x" * 1_000_000 + head % 0)
        assert (await answer(reader)).startswith(b"HTTP/1.1 404")
        writer.close()

        began = asyncio.get_running_loop().time()
        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        writer.write(head % 1_000_000)
        await answer(reader)
        assert await reader.read() == b""  # nothing more comes, and the gateway closes
        assert 1.5 < asyncio.get_running_loop().time() - began < 10
        writer.close()

        reader, writer = await asyncio.open_connection("127.0.0.1", system.port)
        writer.write(head % 10**12)
        await answer(reader)
        with pytest.raises(ConnectionError):
            await send_zeros(writer, 200 * 1024 * 1024)
        writer.close()

    run(work())


async def send_zeros(writer: asyncio.StreamWriter, size: int) -> None:
    """Send zeros as fast as they are taken."""
    for _ in range(size // 65536):
        writer.write(bytes(65536))
        await writer.drain()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Head and body of the next reply."""
    async with asyncio.timeout(10):
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length: ")]
        return head + await reader.readexactly(int(length.partition(b": ")[2]))


# --- addresses, models, ids ---


@pytest.mark.parametrize(
    ("method", "path", "words"),
    [
        ("POST", "/images/generations", "`/v1/images/generations`"),
        ("POST", "/v1/v1/images/generations", "`/v1/images/generations`"),
        ("POST", "/v1/images/generations/", "`/v1/images/generations`"),
        ("POST", "//v1//images/generations", "`/v1/images/generations`"),
        ("GET", "/v1/models/", "`/v1/models`"),
        ("GET", "/", "ends in `/v1`"),
        ("GET", "/v1/", "ends in `/v1`"),
        ("POST", "/chat/completions", "`POST /v1/images/generations`"),
        ("POST", "/v1/images/edits", "Image edits are not offered"),
        ("POST", "/v1/images/variations", "Image variations are not offered"),
        ("GET", "/v1/nothing", "nothing at this address."),
    ],
)
def test_an_address_that_is_nearly_right_is_answered_with_the_right_one(
    system: System, method: str, path: str, words: str
) -> None:
    """404, without a key too."""
    root = system.url.removesuffix("/v1")
    assert words in message(httpx2.request(method, root + path, **LOOPBACK), 404)


@pytest.mark.parametrize("target", ["http://127.0.0.1:1/v1/models", "http://example.com/v1/models?x=1"])
def test_a_target_that_names_its_host_is_answered_as_its_path(
    system: System, customer: tuple[str, str], target: str
) -> None:
    """Clients that take us for a proxy send such a target."""
    with socket.create_connection(("127.0.0.1", system.port), timeout=10) as connection:
        lines = [f"GET {target} HTTP/1.1", "host: x", f"authorization: Bearer {customer[1]}", "connection: close"]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        reply = b"".join(iter(lambda: connection.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 200") and FLUX.encode() in reply


def test_a_bare_model_name_is_answered_with_the_whole_one(system: System, customer: tuple[str, str]) -> None:
    """In an order and in the list of models; LangChain's default is one of them."""
    for name, whole in (("dall-e-2", "openai/dall-e-3"), ("gpt-image-1", "openai/gpt-image-1"), ("flux-1.1-pro", FLUX)):
        for reply in (
            post(system, customer[1], json=ORDER | {"model": name}),
            get(system, customer[1], f"/models/{name}"),
        ):
            assert f"Did you mean `{whole}`?" in message(reply, 404)


def test_a_clients_own_request_id_is_logged_and_given_back(system: System, customer: tuple[str, str]) -> None:
    """Beside ours, which stays; one that is too long or not plain is passed over."""
    reply = get(system, customer[1], "/credits", **{"x-request-id": "theirs 1"})
    ours = reply.headers["x-request-id"]
    assert ours.startswith("req_") and reply.headers["x-client-request-id"] == "theirs 1"
    wait_until(lambda: ours in system.log(), "the request is in the log")
    (line,) = [line for line in system.log().splitlines() if ours in line]
    assert json.loads(line)["client_request_id"] == "theirs 1"
    for bad in ("x" * 129, "a\tb", "ñ", ""):
        reply = httpx2.get(f"{system.url}/credits", headers=[(b"x-request-id", bad.encode())], **LOOPBACK)
        assert "x-client-request-id" not in reply.headers and reply.headers["x-request-id"].startswith("req_")


# --- what an order cost, and the list of all ---


def test_an_order_says_what_it_cost_wherever_it_is_told(system: System, customer: tuple[str, str]) -> None:
    """In its body, by its id, in the list; on a replay the header says what that request cost."""
    body = ORDER | {"n": 2}
    first = post(system, customer[1], json=body, headers={"idempotency-key": "cost"})
    again = post(system, customer[1], json=body, headers={"idempotency-key": "cost"})
    assert (first.json()["cost_mxn"], first.headers["x-geekhub-cost-mxn"]) == ("1.68", "1.68")
    assert (again.json()["cost_mxn"], again.headers["x-geekhub-cost-mxn"]) == ("1.68", "0.00")
    assert get(system, customer[1], f"/images/generations/{first.json()['id']}").json()["cost_mxn"] == "1.68"
    Delivered.model_validate_json(first.content)
    packed = post(system, customer[1], json=ORDER | {"response_format": "b64_json"})
    assert packed.json()["cost_mxn"] == FLUX_MXN


def test_the_list_goes_through_all_orders_page_by_page(system: System) -> None:
    """Each once, the latest first, while new ones come; at its end there is no further page."""
    org_id, key = system.customer("many pages", "50.00")
    made = [post(system, key, json=ORDER | {"prompt": f"faro {number}"}).json()["id"] for number in range(7)]
    system.events(org_id, 7)
    seen, after, pages = [], "", 0
    while True:
        page = get(system, key, f"/images/generations?limit=3{after}")
        Generations.model_validate_json(page.content)
        seen += [one["id"] for one in page.json()["data"]]
        pages += 1
        if pages == 1:
            assert post(system, key, json=ORDER).status_code == 200
            system.events(org_id, 8)
        if not page.json()["has_more"]:
            assert page.json()["next_cursor"] is None
            break
        after = f"&after={page.json()['next_cursor']}"
    assert (seen, pages) == (made[::-1], 3)
    assert len(get(system, key, "/images/generations?limit=8").json()["data"]) == 8
    assert get(system, key, "/images/generations?limit=8").json()["next_cursor"] is None


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limt=5", "limt"),
        ("limit=5&page=2", "page"),
        ("limit=5&limit=6", "limit"),
        ("limit=101", "limit"),
        ("after=", "after"),
        ("after=x", "after"),
        ("after=" + "x" * 200, "after"),
        ("after=MSB4", "after"),
        ("after=ñ", "after"),
    ],
)
def test_a_query_that_is_not_known_is_named(system: System, customer: tuple[str, str], query: str, param: str) -> None:
    """400, as for an order's fields."""
    reply = get(system, customer[1], f"/images/generations?{query}")
    assert f"`{param}`" in message(reply, 400) and reply.json()["error"]["param"] == param


# --- languages ---


@pytest.mark.parametrize(
    ("asked", "language"),
    [
        ("es", "es"),
        ("es-MX,es;q=0.9", "es"),
        ("ES-mx", "es"),
        ("fr, es;q=0.3", "es"),
        ("en;q=0.5, es;q=0.8", "es"),
        ("en, es", "en"),
        ("es;q=0.5, *", "en"),
        ("es;q=0", "en"),
        ("de", "en"),
        ("", "en"),
        ("est", "en"),
        (";;q=x,,", "en"),
    ],
)
def test_errors_are_told_in_the_language_that_is_asked_for(
    system: System, customer: tuple[str, str], asked: str, language: str
) -> None:
    """By its weights; English otherwise; and the headers say so."""
    reply = post(system, customer[1], json=ORDER | {"n": 9}, headers={"accept-language": asked})
    said = {"en": "`n` is 9; it must be from 1 to 8.", "es": "`n` es 9; debe estar entre 1 y 8."}
    assert message(reply, 400) == said[language]
    assert reply.headers["content-language"] == language and "accept-language" in reply.headers["vary"].lower()


def test_a_refusal_for_money_is_a_whole_spanish_sentence_with_its_numbers(system: System) -> None:
    """402 with the sums and where to top up; 429 with the limit; 404, 401 and 405; and a failed order by its id."""
    _, poor = system.customer("pobre", "0.83")
    told = message(post(system, poor, json=ORDER, headers=SPANISH), 402)
    assert told == (
        "Este pedido puede costar 0.84 MXN y hay 0.83 MXN disponibles. Recargue en https://geekhub.mx/topup."
    )
    _, slow = system.customer("lento", "50.00", images_per_minute=4)
    told = message(post(system, slow, json=ORDER | {"n": 5}, headers=SPANISH), 429)
    assert told == ("Este pedido cuenta como 5 imágenes. El límite de su organización es de 4 imágenes por minuto.")
    _, quota = system.customer("cuota", "50.00", images_per_day=2)
    told = message(post(system, quota, json=ORDER | {"n": 3}, headers=SPANISH), 429)
    assert told.startswith("El límite de su organización es de 2 imágenes por día; 0 están hechas o en camino")
    assert "¿Quiso decir" in message(get(system, poor, "/models/dall-e-3", **SPANISH), 404)
    assert message(get(system, "ghub_sk_x", "/credits", **SPANISH), 401) == "Esta clave de API no existe."
    assert "solo acepta GET" in message(httpx2.delete(f"{system.url}/credits", headers=SPANISH, **LOOPBACK), 405)

    system.behave(FLUX, "content_policy_422")
    failed = post(system, slow, json=ORDER, headers=SPANISH)
    assert "política de contenido" in message(failed, 400)
    found = get(system, slow, f"/images/generations/{failed.json()['error']['request_id']}", **SPANISH)
    Generation.model_validate_json(found.content)
    assert found.json()["error"]["message"] == failed.json()["error"]["message"]
    assert (found.headers["content-language"], found.headers["vary"]) == ("es", "accept-language")


def test_402_names_a_command_where_there_is_no_page(prepared: Prepared) -> None:
    """As in the demo, in either language."""
    command = "ghub credit add demo --mxn 50.00 --type recharge --id x"
    system = prepared(GHUB_TOPUP_URL="", GHUB_TOPUP_COMMAND=command)
    system.start_all()
    _, key = system.customer("poor")
    assert message(post(system, key, json=ORDER), 402).endswith(f"Top up with `{command}`.")
    assert message(post(system, key, json=ORDER, headers=SPANISH), 402).endswith(f"Recargue con `{command}`.")
