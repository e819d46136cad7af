"""The whole HTTP surface as rows, without anything behind it."""

import importlib
import inspect
import pkgutil
from typing import cast

import proxy.api
from proxy.api.files import FilesEndpoint
from proxy.api.health import ProbesEndpoint
from proxy.api.openapi import OpenApiEndpoint
from proxy.api.operation import Endpoint, Operation


def endpoints() -> list[Endpoint]:
    """One of every class `…Endpoint` in `proxy/api/`, made of nothing: its rows may be read, and none be answered."""
    found: list[Endpoint] = []
    for module in pkgutil.walk_packages(proxy.api.__path__, "proxy.api."):
        for name, one in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if name.endswith("Endpoint") and name != "Endpoint" and one.__module__ == module.name:
                found.append(cast(Endpoint, one.__new__(one)))
    assert len(found) > 8
    return found


def given(local: bool) -> list[Endpoint]:
    """Those that the application is made of; it adds the probes and the document. `local`: images lie in a folder."""
    added = (ProbesEndpoint, OpenApiEndpoint, *(() if local else (FilesEndpoint,)))
    return [one for one in endpoints() if not isinstance(one, added)]


def operations() -> list[Operation]:
    """All rows that there are."""
    return [row for one in endpoints() for row in one.operations()]
