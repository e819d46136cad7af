"""Whether work is taken, and what a probe says of it."""

import asyncio

import pytest
from starlette.requests import Request

from proxy.api.health import Condition, Conditions, probe_routes, when


def readyz(conditions: Conditions) -> tuple[int, str]:
    """Answer of the probe."""
    (route,) = (route for route in probe_routes(conditions.not_ready) if route.path == "/readyz")
    reply = asyncio.run(route.endpoint(Request({"type": "http"})))
    return reply.status_code, bytes(reply.body).decode()


@pytest.mark.parametrize(
    ("broken", "refusal", "told"),
    [
        (set(), None, (200, "ready\n")),
        ({"a"}, "a is broken", (503, "not ready: a\n")),
        ({"b"}, "b is broken", (200, "ready\n")),
        ({"b", "c"}, "b is broken", (503, "not ready: c\n")),
        ({"a", "c"}, "a is broken", (503, "not ready: a\n")),
    ],
)
def test_the_first_condition_that_is_broken_is_told(
    broken: set[str], refusal: str | None, told: tuple[int, str]
) -> None:
    """A customer by its sentence, a probe by its name; one that is not for readiness refuses orders and no more."""
    conditions = Conditions(
        [
            Condition(name, when(lambda name=name: name in broken, f"{name} is broken"), for_ready=name != "b")  # type: ignore[misc]
            for name in "abc"
        ]
    )
    assert conditions.refusal() == refusal
    assert readyz(conditions) == told
