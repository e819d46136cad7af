"""Addresses of Redis: what each names, and what is said of one that is none."""

import pytest

from metering.wallet.address import parse_address
from metering.wallet.connection import open_redis


@pytest.mark.parametrize(
    ("url", "kind", "nodes", "service", "server"),
    [
        ("redis://localhost", "", (("localhost", 6379),), "", "redis://localhost"),
        ("redis://:p%40ss@db:7000/3", "", (("db", 7000),), "", "redis://:p%40ss@db:7000/3"),
        ("rediss://[::1]:7000?db=2", "", (("::1", 7000),), "", "rediss://[::1]:7000?db=2"),
        ("unix:///run/valkey.sock?db=1", "", (), "", "unix:///run/valkey.sock?db=1"),
        ("redis+cluster://u:p@a:1,[::1]:2,c", "cluster", (("a", 1), ("::1", 2), ("c", 6379)), "", "redis://u:p@a:1"),
        ("rediss+cluster://a:1/0", "cluster", (("a", 1),), "", "rediss://a:1/0"),
        ("redis+sentinel://a,b:2/ghub", "sentinel", (("a", 26379), ("b", 2)), "ghub", "redis://a:26379/"),
        ("rediss+sentinel://:p@a:1/my%20one/4", "sentinel", (("a", 1),), "my one", "rediss://:p@a:1/4"),
    ],
)
def test_what_an_address_names(
    url: str, kind: str, nodes: tuple[tuple[str, int], ...], service: str, server: str
) -> None:
    """Its form, its nodes with their usual ports, and what redis-py is told of the first."""
    address = parse_address(url)
    assert (address.kind, address.nodes, address.service, address.url) == (kind, nodes, service, server)


BAD = {
    "http://db": "must start with redis://",
    "redis+magic://db": "must start with redis://",
    "unix+cluster:///x": "must start with redis://",
    "redis://db/abc": "`/abc` is no number of a database",
    "redis://db/0/1": "`/0/1` is no number of a database",
    "redis://db?db=x": "`x` is no number of a database",
    "redis://db?socket_timeout=5": "`socket_timeout` is not known; there is db",
    "redis://db?retry=": "`retry` is not known",
    "redis://db?ssl_ca_certs=/ca.pem": "`ssl_ca_certs` is not known",
    "rediss://db?ssl_cert_reqs=never": "Invalid SSL Certificate",
    "unix:///run/x.sock?nodes=3": "`nodes` is not known",
    "redis://:s3cret#word@db": "has a `#` in it",
    "redis://db:port/0": "`db:port` is not host:port",
    "redis://db:99999/0": "`db:99999` is not host:port",
    "redis+cluster://": "name at least one node",
    "redis+cluster://a:1,:2": "`:2` is not host:port",
    "redis+cluster://a:1/3": "no other database than 0",
    "redis+cluster://a:1?timeout=3": "`timeout` is not known",
    "redis+sentinel:///ghub": "name at least one node",
    "redis+sentinel://a:1": "name the service",
    "redis+sentinel://a:1/": "name the service",
    "redis+sentinel://a:1/ghub/x": "`x` is no number of a database",
}


@pytest.mark.parametrize("url", BAD)
def test_an_address_that_is_none_is_a_sentence(url: str) -> None:
    """It says what is wrong, before anything is opened, and without the password."""
    with pytest.raises(ValueError, match=BAD[url].replace("?", r"\?")) as caught:
        open_redis(url, connections=2, call_timeout_s=1.0)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)
