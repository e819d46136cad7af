"""`GHUB_REDIS_URL` that is wrong: one sentence and exit 1; a wrong password is said at start and by `/readyz`."""

import httpx2
import pytest
from redis import Redis

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.ports import free_port
from tests.kits.system import wait_until


@pytest.mark.parametrize("command", [["serve"], ["consume"], ["org", "create", "acme"]])
@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://127.0.0.1/0?retries=3", "the parameter `retries` is not known; there is db"),
        ("redis://127.0.0.1/main", "`/main` is no number of a database: write redis://host:port/0"),
        ("redis+sentinel://127.0.0.1", "name the service that the sentinels watch"),
    ],
)
def test_an_address_that_is_none_ends_the_start_with_a_sentence(
    prepared: Prepared, command: list[str], url: str, says: str
) -> None:
    """It names the variable; no traceback, exit 1."""
    system = prepared()
    system.environment["GHUB_REDIS_URL"] = url
    ended = system.ghub(*command)
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"ghub: GHUB_REDIS_URL: {says}") and ended.stderr.count("\n") == 1


def test_a_wrong_password_is_said_and_once_it_is_right_all_goes_on(prepared: Prepared) -> None:
    """By gateway and consumer, in the log and at `/readyz`, and by a command; without a restart when it is mended."""
    gateway_metrics, consumer_metrics = free_port(), free_port()
    system = prepared()
    right = system.environment["GHUB_REDIS_URL"]
    system.environment["GHUB_REDIS_URL"] = right.replace("unix://", "unix://:s3cret@")
    system.valkey.start()
    with Redis.from_url(right) as redis:
        redis.config_set("requirepass", "another")
    system.start("gateway", "serve", GHUB_METRICS_PORT=str(gateway_metrics))
    system.start("consumer", "consume", GHUB_METRICS_PORT=str(consumer_metrics))
    refused = "not ready: Redis refuses the user name or password\n"

    def says(port: int, status: int, text: str) -> bool:
        try:
            reply = httpx2.get(f"http://127.0.0.1:{port}/readyz", **LOOPBACK)
        except httpx2.TransportError:
            return False
        return (reply.status_code, reply.text.splitlines(keepends=True)[0]) == (status, text)

    for port in (system.port, gateway_metrics, consumer_metrics):
        wait_until(lambda: says(port, 503, refused), "it is not ready, and says why")  # noqa: B023  # asked here and now
    for name in ("gateway", "consumer"):
        assert '"event":"redis_refuses_login"' in system.log(name) and "GHUB_REDIS_URL: invalid" in system.log(name)
        assert "s3cret" not in system.log(name) and "Traceback" not in system.log(name)
    told = system.ghub("wallet", "rebuild")
    assert (told.returncode, told.stderr) == (1, "ghub: GHUB_REDIS_URL: Redis refuses the user name or password.\n")
    with Redis.from_url(right.replace("unix://", "unix://:another@")) as redis:
        redis.config_set("requirepass", "s3cret")
    for port in (system.port, gateway_metrics, consumer_metrics):
        wait_until(lambda: says(port, 200, "ready\n"), "it is ready")  # noqa: B023  # as above
