"""The recipe "a public endpoint" of docs/development.md, followed in a copy of the tree."""

import json
import sys
from pathlib import Path

from tests.kits.tree import Tree
from tests.long import long

PING = '''\
"""GET /v1/ping: whose key this is."""

from collections.abc import Sequence
from typing import Literal

import orjson
from starlette.requests import Request
from starlette.responses import Response

from metering.wallet.connection import WalletAway
from proxy.api.auth import Authenticator
from proxy.api.operation import Operation, Tag
from proxy.api.schemas import Document
from proxy.errors import wallet_away


class Ping(Document):
    """The organisation that the key belongs to."""

    object: Literal["ping"]
    org: str


class PingEndpoint:
    """Asks nothing but whether the key is known."""

    def __init__(self, authenticator: Authenticator) -> None:
        self._authenticator = authenticator

    def operations(self) -> Sequence[Operation]:
        """The only one."""
        return [
            Operation(
                id="get_ping",
                tag=Tag.ACCOUNT,
                method="GET",
                path="/v1/ping",
                handler=self.read,
                summary="Whose key this is",
                reply=Ping,
            )
        ]

    async def read(self, request: Request) -> Response:
        """GET /v1/ping. Raises ApiError 401, 403 or 503."""
        try:
            caller = await self._authenticator.caller(request.headers)
        except WalletAway:
            raise wallet_away() from None
        return Response(orjson.dumps({"object": "ping", "org": caller.org_id}), media_type="application/json")
'''

PING_TEST = '''\
"""GET /v1/ping on a running gateway."""

import httpx2

from proxy.api.ping import Ping
from tests.conftest import LOOPBACK
from tests.kits.system import System, bearer


def test_a_key_is_told_whose_it_is(system: System) -> None:
    """By GET and HEAD; nobody is told without one, and another method is refused with those that there are."""
    org_id, key = system.customer("pinged")
    with httpx2.Client(base_url=system.url, headers=bearer(key), **LOOPBACK) as client:
        reply = client.get("/ping")
        assert (reply.status_code, reply.json()) == (200, {"object": "ping", "org": org_id})
        Ping.model_validate_json(reply.content)
        head = client.head("/ping")
        assert (head.status_code, head.content) == (200, b"")
        assert client.post("/ping").headers["allow"] == "GET, HEAD"
        told = client.get(system.url.removesuffix("v1") + "openapi.json").json()["paths"]["/v1/ping"]
    assert httpx2.get(f"{system.url}/ping", **LOOPBACK).status_code == 401
    assert list(told) == ["get"]
    assert (told["get"]["operationId"], told["get"]["tags"]) == ("get_ping", ["account"])
'''


@long
def test_a_public_endpoint_is_two_files_of_code_and_three_beside_them(tmp_path: Path) -> None:
    """`GET /v1/ping`: its file with its row, its place in the wiring; its room, its line on the map, its test."""
    tree = Tree(tmp_path / "tree")
    tree.add("proxy/api/ping.py", PING)
    tree.edit(
        "proxy/wiring.py",
        ("from proxy.api.reads import", "from proxy.api.ping import PingEndpoint\nfrom proxy.api.reads import"),
        (
            "            CreditsEndpoint(authenticator, wallet, reads),\n",
            "            CreditsEndpoint(authenticator, wallet, reads),\n            PingEndpoint(authenticator),\n",
        ),
    )
    tree.edit("pyproject.toml", ('"images | deliveries |', '"images | ping | deliveries |'))
    tree.add("tests/e2e/test_ping.py", PING_TEST)
    tree.run(sys.executable, "-m", "docs.map")
    assert tree.changed() == [
        "docs/map.md",
        "proxy/api/ping.py",
        "proxy/wiring.py",
        "pyproject.toml",
        "tests/e2e/test_ping.py",
    ]
    tree.lint()
    tree.tests("tests/e2e/test_ping.py", "tests/unit/test_openapi.py", "tests/unit/test_docs.py")
    described = tree.python(
        "import json",
        "from proxy.api.openapi import document",
        "from tests.kits.surface import operations",
        "print(json.dumps(document(operations())['paths']['/v1/ping']))",
    )
    (told,) = json.loads(described).values()
    assert (told["operationId"], told["tags"], told["security"]) == ("get_ping", ["account"], [{"ghub_sk": []}])
    assert {"200", "401", "405", "503"} <= told["responses"].keys()
