"""Addresses at which there is nothing: which one is meant; and targets that name their host."""

from typing import Any

import pytest

from proxy.api.addresses import nothing_at, origin_form

KNOWN = {
    "/v1/images/generations",
    "/v1/models",
    "/v1/models/fal/flux-1.1-pro",
    "/v1/credits",
    "/healthz",
    "/admin/v1/orgs",
}


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("/images/generations", "/v1/images/generations"),
        ("/v1/images/generations/", "/v1/images/generations"),
        ("//v1/images/generations", "/v1/images/generations"),
        ("/v1//images//generations", "/v1/images/generations"),
        ("/v1/v1/images/generations", "/v1/images/generations"),
        ("/v1/v1/v1/images/generations/", "/v1/images/generations"),
        ("/openai/v1/images/generations", "/v1/images/generations"),
        ("/models", "/v1/models"),
        ("/models/fal/flux-1.1-pro", "/v1/models/fal/flux-1.1-pro"),
        ("/credits//", "/v1/credits"),
        ("/healthz/", "/healthz"),
        ("/v1/healthz", None),
        ("/admin/v1/orgs/", "/admin/v1/orgs"),
        ("/nothing", None),
        ("/v1/nothing", None),
        ("/favicon.ico", None),
        ("*", None),
        ("/x" * 5000, None),
    ],
)
def test_the_address_that_is_meant_is_named(path: str, meant: str | None) -> None:
    """One slash too many, `/v1` twice or not at all; if nothing is similar, no guess."""
    said = nothing_at(path, KNOWN.__contains__)
    assert said.startswith("There is nothing at this address.")
    assert ("Did you mean" in said) == (meant is not None)
    assert meant is None or (f"`{meant}`" in said and f"`{meant}`" in said.es)


@pytest.mark.parametrize("path", ["/", "", "//", "/v1", "/v1/", "/v1/v1", "/v1/v1/", "/openai/v1"])
def test_the_root_is_told_where_the_api_is(path: str) -> None:
    """And where it is described."""
    said = nothing_at(path, KNOWN.__contains__)
    assert "`/v1`" in said and "GET /openapi.json" in said and "GET /openapi.json" in said.es


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/v1/images/edits", "Image edits are not offered"),
        ("/images/edits/", "Image edits are not offered"),
        ("/v1/v1/images/variations", "Image variations are not offered"),
        ("/v1/chat/completions", "makes images only"),
        ("/chat/completions", "makes images only"),
        ("/v1/responses", "makes images only"),
    ],
)
def test_what_openai_has_and_we_have_not_is_named(path: str, words: str) -> None:
    """With what there is instead."""
    said = nothing_at(path, KNOWN.__contains__)
    assert words in said and "`POST /v1/images/generations`" in said and "`POST /v1/images/generations`" in said.es


@pytest.mark.parametrize(
    ("raw", "path", "kept"),
    [
        (b"http://host/v1/models", "/v1/models", b"/v1/models"),
        (b"HTTPS://host:8443/v1/models/fal%2Fx", "/v1/models/fal/x", b"/v1/models/fal%2Fx"),
        (b"http://host", "/", b"/"),
        (b"http://host/", "/", b"/"),
        (b"/v1/models", "as it was", b"/v1/models"),
        (b"//host/v1/models", "as it was", b"//host/v1/models"),
        (b"/x?u=http://host/", "as it was", b"/x?u=http://host/"),
        (b"ftp://host/v1", "as it was", b"ftp://host/v1"),
        (b"*", "as it was", b"*"),
    ],
)
def test_a_target_with_a_host_is_the_path_behind_it(raw: bytes, path: str, kept: bytes) -> None:
    """Its encoding is kept; every other target is left alone."""
    scope: dict[str, Any] = {"raw_path": raw, "path": "as it was"}
    origin_form(scope)
    assert scope == {"raw_path": kept, "path": path}


def test_a_scope_without_a_raw_path_is_left_alone() -> None:
    """Some test clients make one like this."""
    scope: dict[str, Any] = {"path": "/v1/models"}
    origin_form(scope)
    assert scope == {"path": "/v1/models"}
