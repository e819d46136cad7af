"""A Redis address, split and checked before anything is opened. Pure."""

from dataclasses import dataclass
from typing import Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

Node = tuple[str, int]

SCHEMES = ("redis", "rediss", "unix")
FORMS = "redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://"

PORT, SENTINEL_PORT = 6379, 26379

_PARAMETERS = ("db",)
_TLS_PARAMETERS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname")


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis address.

    `nodes` are the server itself, some of a cluster, or sentinels that know the master of `service`.
    """

    scheme: str
    kind: Literal["", "cluster", "sentinel"]
    nodes: tuple[Node, ...]
    service: str
    _credentials: str
    _rest: str
    _given: str

    def url_of(self, node: Node) -> str:
        """Build one server's address for redis-py, with the user and password that all of them share."""
        host = f"[{node[0]}]" if ":" in node[0] else node[0]
        return f"{self.scheme}://{self._credentials}{host}:{node[1]}{self._rest}"

    @property
    def url(self) -> str:
        """Address of the only server, or the given address."""
        return self.url_of(self.nodes[0]) if self.kind else self._given


def parse_address(url: str) -> RedisAddress:
    """Parse an address. Raises ValueError, which says what is wrong and how to write it, without the password."""
    # The library's own splitting takes several hosts for one. If the second is an IPv6 address, it even calls it
    # broken.
    before, _, rest = url.partition("://")
    ends_at = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
    parts = urlsplit(f"{before}://{rest[ends_at:]}")
    credentials, at_sign, hosts = rest[:ends_at].rpartition("@")
    scheme, _, kind = parts.scheme.partition("+")
    if scheme not in SCHEMES or kind not in ("", "cluster", "sentinel") or (kind and scheme == "unix"):
        raise ValueError(f"must start with {FORMS}")
    _check_parameters(scheme, parts)
    source = (f"{credentials}{at_sign}", rest[ends_at:], url)
    if scheme == "unix":
        return RedisAddress(scheme, "", (), "", *source)
    if not kind:
        _database(parts.path, "redis://host:port/0")
        return RedisAddress(scheme, "", (_node(hosts or "localhost", PORT),), "", *source)
    if not hosts:
        raise ValueError(f"name at least one node: redis+{kind}://host:port,host:port")
    nodes = tuple(_node(host, SENTINEL_PORT if kind == "sentinel" else PORT) for host in hosts.split(","))
    if kind == "cluster":
        if parts.path not in ("", "/", "/0"):
            raise ValueError("a cluster has no other database than 0: end it after the last host:port")
        return RedisAddress(scheme, "cluster", nodes, "", *source)
    service, _, database = parts.path.removeprefix("/").partition("/")
    if not service:
        raise ValueError("name the service that the sentinels watch: redis+sentinel://host:port,host:port/SERVICE")
    _database(database, "redis+sentinel://host:port/SERVICE/0")
    query = f"?{parts.query}" if parts.query else ""
    return RedisAddress(scheme, "sentinel", nodes, unquote(service), source[0], f"/{database}{query}", url)


def _check_parameters(scheme: str, parts: SplitResult) -> None:
    known = _PARAMETERS + (_TLS_PARAMETERS if scheme == "rediss" else ())
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in known:
            raise ValueError(f"the parameter `{name[:64]}` is not known; there is {', '.join(known)}")
        if name == "db":
            _database(value, "?db=0")
    if parts.fragment:
        raise ValueError("has a `#` in it: write it as %23 in a password")


def _database(text: str, example: str) -> None:
    digits = text.removeprefix("/")
    if digits and not (digits.isascii() and digits.isdigit()):
        raise ValueError(f"`{text[:64]}` is no number of a database: write {example}")


def _node(text: str, usual_port: int) -> Node:
    host = urlsplit(f"//{text}")
    try:
        port = host.port
    except ValueError:
        port = 0
    if host.hostname is None or port == 0:
        raise ValueError(f"`{text[:64]}` is not host:port")
    return host.hostname, port or usual_port
