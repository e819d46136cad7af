"""The document at /openapi.json: valid, whole, and no more than there is."""

import asyncio
import re
from typing import Any, cast

import orjson
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Message

from proxy.api.cors import CorsMiddleware
from proxy.api.middleware import RequestMiddleware
from proxy.api.openapi import document
from proxy.api.operation import Operation, Tag
from proxy.api.operation import routes as routes_of
from proxy.app import build_app
from proxy.errors import Kind
from proxy.orders.order import OrderBody
from proxy.outcomes import Outcome
from proxy.server.unread import UnreadBody
from tests.kits.surface import given, operations

ALL = operations()
PUBLIC = [row for row in ALL if row.security not in ("admin", "finance") and row.id != "get_image"]
NOTHING = cast(Any, None)
"""Routes are looked at and never taken, so that no endpoint needs its parts."""


def routes(local: bool) -> list[BaseRoute]:
    """Those of the application that the gateway serves."""
    app = build_app(given(local), NOTHING, NOTHING, NOTHING)
    assert isinstance(app, UnreadBody) and isinstance(app._app, RequestMiddleware)
    assert isinstance(app._app._app, CorsMiddleware)
    return cast(Starlette, app._app._app._app).routes


def methods(route: BaseRoute) -> set[tuple[str, str]]:
    """(method, path) of a route, the path as OpenAPI writes it. A HEAD is told of in a sentence."""
    assert isinstance(route, Route) and route.methods
    assert ("HEAD" in route.methods) == ("GET" in route.methods)
    return {(method.lower(), re.sub(r":\w+}", "}", route.path)) for method in route.methods - {"HEAD"}}


async def nobody() -> Message:
    """A client that says nothing more."""
    return await asyncio.Future()


def described(told: dict[str, Any]) -> set[tuple[str, str]]:
    """(method, path) of a document's operations."""
    return {(method, path) for path, operations in told["paths"].items() for method in operations}


@pytest.mark.parametrize("local", [True, False])
def test_every_route_is_described_and_every_operation_has_a_route(local: bool) -> None:
    """With images in a local folder and without; by the document that this application serves itself."""
    served = routes(local)
    (route,) = [route for route in served if isinstance(route, Route) and route.path == "/openapi.json"]
    scope = {"type": "http", "method": "GET", "path": "/openapi.json", "headers": []}
    sent: list[Message] = []

    async def read() -> None:
        async def send(message: Message) -> None:
            sent.append(message)

        reply = await route.endpoint(Request(scope))
        await reply(scope, nobody, send)

    asyncio.run(read())
    told = orjson.loads(b"".join(message.get("body", b"") for message in sent))
    assert described(told) == set().union(*map(methods, served))
    assert any(path.startswith("/storage/v1/") for path in told["paths"]) is local
    assert [path for path in told["paths"] if "head" in told["paths"][path]] == []


def test_every_operation_has_a_name_of_its_own_and_a_tag() -> None:
    """Names are those of functions in clients that are generated: a change here breaks them."""
    told = document(ALL)
    rows = [row for path in told["paths"].values() for row in path.values()]
    ids = [row["operationId"] for row in rows]
    assert len(ids) == len(set(ids)) == len(ALL)
    assert [one for one in ids if not re.fullmatch("[a-z]+(_[a-z]+)*", one)] == []
    assert {tag for row in rows for tag in row["tags"]} == {tag["name"] for tag in told["tags"]}
    assert all(len(row["tags"]) == 1 for row in rows)
    assert {row.id for row in ALL} >= {
        "create_images",
        "get_credits",
        "get_generation",
        "get_healthz",
        "get_image",
        "get_model",
        "get_openapi",
        "get_readyz",
        "get_usage",
        "list_generations",
        "list_models",
    }


def test_the_names_of_writes_stay() -> None:
    """Each is a part of what an `Idempotency-Key` of the admin API stands for, and the ledger keeps that."""
    assert {row.id for row in ALL if row.security == "finance" and row.writes} >= {
        "enter_rate",
        "approve_rate",
        "propose_adjustment",
        "approve_adjustment",
        "close_month",
    }
    assert {row.id for row in ALL if row.security == "admin" and row.writes} >= {
        "create_org",
        "suspend_org",
        "resume_org",
        "rename_org",
        "org_plan",
        "org_limits",
        "create_key",
        "key_limits",
        "rotate_key",
        "revoke_key",
        "add_credit",
        "refund",
        "add_rate",
    }


def test_two_operations_at_one_place_are_refused() -> None:
    """The second would answer nothing, and the document would tell of it alone."""
    with pytest.raises(AssertionError, match="two operations are GET /healthz"):
        routes_of([*ALL, *(row for row in ALL if row.path == "/healthz")])


def test_the_document_is_openapi_3_1() -> None:
    """By the specification's own schema, and with no reference that leads nowhere."""
    told = document(ALL)
    assert list(OpenAPIV31SpecValidator(told).iter_errors()) == []
    targets = set(re.findall(r'"\$ref":"#/components/(\w+)/([\w-]+)"', orjson.dumps(told).decode()))
    assert targets == {(kind, name) for kind in ("schemas", "headers") for name in told["components"][kind]}


def test_every_error_of_the_table_is_described_where_orders_are_placed() -> None:
    """By its status and code; what only other addresses answer is described there."""
    told = document([row for row in ALL if row.id not in ("get_image", "get_export")])
    seen = {
        code
        for operations in told["paths"].values()
        for operation in operations.values()
        for answer in operation["responses"].values()
        for content in answer.get("content", {}).values()
        for code in content["schema"]
        .get("properties", {})
        .get("error", {})
        .get("properties", {})
        .get("code", {})
        .get("enum", ())
    }
    assert seen == {kind.value.code for kind in Kind}


def test_bounds_are_written_in_the_words_of_json_schema() -> None:
    """A generator passes over pydantic's, and its users send what is then refused."""
    told = document(ALL)
    assert re.findall(r'"(?:ge|gt|le|lt|multiple_of|min_length|max_length)":', orjson.dumps(told).decode()) == []
    (_, limit, _) = told["paths"]["/v1/images/generations"]["get"]["parameters"]
    assert limit["schema"] == {"default": 20, "minimum": 1, "maximum": 100, "type": "integer"}


def test_what_a_reply_leaves_out_is_not_null() -> None:
    """A group of GET /v1/usage has the fields by which it was asked for, and no others."""
    row = document(PUBLIC)["components"]["schemas"]["UsageItem"]
    assert row["required"] == ["orders", "images", "cost_mxn"]
    for name in ("day", "model", "key_id", "key_name"):
        assert row["properties"][name]["type"] == "string"


def test_headers_of_an_order_that_failed_are_described() -> None:
    """Its rates; and the wait that an upstream asks for, if the order may be retried."""
    answers = document(PUBLIC)["paths"]["/v1/images/generations"]["post"]["responses"]
    for rule in (outcome.value for outcome in Outcome):
        headers = answers[str(rule.error.value.status)]["headers"]
        assert "x-ratelimit-remaining-images" in headers
        assert rule.accepted or rule.error is not Kind.PROVIDER or "retry-after" in headers


def test_an_order_is_described_by_the_model_that_checks_it() -> None:
    """Every field with its bounds, and no other field."""
    schema = document(PUBLIC)["components"]["schemas"]["OrderBody"]
    assert set(schema["properties"]) == set(OrderBody.model_fields)
    assert (schema["required"], schema["additionalProperties"]) == (["model", "prompt"], False)
    assert {"type": "integer", "minimum": 1, "maximum": 8}.items() <= schema["properties"]["n"]["anyOf"][0].items()


def test_further_operations_are_described_with_their_own_models() -> None:
    """A path with a parameter, an administrator's token, JSON and CSV, 201: what other tables bring."""
    row = Operation(
        id="change_thing",
        tag=Tag.ADMIN,
        method="PUT",
        path="/admin/v1/things/{thing}",
        handler=NOTHING,
        summary="Change a thing",
        reply=OrderBody,
        status=201,
        body=OrderBody,
        errors=(Kind.KEY_REUSED,),
        security="admin",
        media=("application/json", "text/csv"),
    )
    told = document([row])
    operation = told["paths"][row.path]["put"]
    assert operation["security"] == [{"admin": []}]
    assert [one["name"] for one in operation["parameters"]] == ["thing"]
    assert operation["responses"]["201"]["content"]["text/csv"] == {"schema": {"type": "string"}}
    assert set(operation["responses"]) == {"201", "400", "404", "405", "413", "415", "422", "500"}
    assert list(OpenAPIV31SpecValidator(told).iter_errors()) == []
