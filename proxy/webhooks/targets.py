"""Where a webhook may lead: https on the public internet, and what GHUB_WEBHOOK_HOSTS names. Pure: no look-ups.

Addresses of names are checked when a delivery connects, because a name may have others by then.
"""

import re

from config.addresses import is_address, is_public
from proxy.messages import NO_TARGET, TARGET_LONG, TARGET_PLAIN, TARGET_PRIVATE, TARGET_USER, Text

MAX_CHARACTERS = 2_048
"""Of a webhook's URL: what servers and proxies take in common."""

_URL = re.compile(
    r"(?P<scheme>https?)://(?P<user>[^/?@\\]*@)?(?P<host>[a-z0-9.-]+|\[[0-9a-f:.]+\])(:(?P<port>[0-9]{1,5}))?"
    r"(/[!$%&'()*+,./0-9:;=@A-Z_a-z~-]*)?(\?[!$%&'()*+,./0-9:;=?@A-Z_a-z~-]*)?",
    re.ASCII,
)
"""So narrow that every reader of URLs finds the same host in it: small letters, no fragment, nothing to quote."""

_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*")
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")
_LOCAL = ("localhost", "local", "internal", "localdomain", "home.arpa")
_PORTS = {"http": 80, "https": 443}


class WebhookHosts:
    """Hosts that webhooks may reach although they are private, loopback or plain http: `host[:port]`, by commas.

    Without a port, every port of the host. Raises ValueError for anything else.
    """

    def __init__(self, text: str) -> None:
        self._named: set[tuple[str, int | None]] = set()
        for entry in filter(None, map(str.strip, text.split(","))):
            found = _URL.fullmatch(f"http://{entry.lower()}")
            if not found or found["user"] or not _is_host(found["host"]) or found[0].count("/") > 2 or "?" in entry:
                raise ValueError(f"not host or host:port: {entry!r}")
            self._named.add((_host(found), None if found["port"] is None else _port(found)))

    def name(self, host: str, port: int) -> bool:
        """True if this host is named, with this port or with none."""
        return bool(self._named & {(host, port), (host, None)})


def why_not(url: str, hosts: WebhookHosts, name: str = "webhook") -> Text | None:
    """Return why no webhook may have this URL, which is called `name` in the sentence; None if it may."""
    if len(url) > MAX_CHARACTERS:
        return TARGET_LONG.of(name=name, count=len(url), most=MAX_CHARACTERS)
    found = _parsed(url)
    if found is None:
        return NO_TARGET.of(name=name)
    if found["user"]:
        return TARGET_USER.of(name=name)
    host = _host(found)
    if hosts.name(host, _port(found)):
        return None
    if found["scheme"] != "https":
        return TARGET_PLAIN.of(name=name)
    return TARGET_PRIVATE.of(name=name, host=host) if _is_local(host) else None


def _parsed(url: str) -> re.Match[str] | None:
    """Split a URL, whose scheme and host may have capitals; None if it is none of a web server."""
    start, slashes, rest = url.partition("://")
    server, slash, path = rest.partition("/")
    found = _URL.fullmatch(f"{start.lower()}{slashes}{server.lower()}{slash}{path}")
    if found is None or not _is_host(found["host"]) or not 0 < _port(found) < 65536:
        return None
    return found


def _is_host(host: str) -> bool:
    if host.startswith("["):
        return is_address(host[1:-1])
    if _NUMBER.fullmatch(host.removesuffix(".").rpartition(".")[2]):
        return is_address(host)  # 127.1 and 0x7f.1 are addresses to the system, and names to everybody else
    return len(host) <= 253 and _NAME.fullmatch(host.removesuffix(".")) is not None


def _is_local(host: str) -> bool:
    if is_address(host):
        return not is_public(host)
    return "." not in host or host.endswith(tuple(f".{name}" for name in _LOCAL))


def _host(found: re.Match[str]) -> str:
    return found["host"].strip("[]").removesuffix(".")


def _port(found: re.Match[str]) -> int:
    return int(found["port"] or _PORTS[found["scheme"]])
