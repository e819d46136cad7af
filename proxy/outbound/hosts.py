"""The allow-list of image hosts: which URL of an upstream may be fetched, and at which addresses."""

import ipaddress
import socket

import aiohttp
import aiohttp.abc
import httpx2

_DEFAULT_PORTS = {"http": 80, "https": 443}
_GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")  # all else embeds IPv4 (mapped, NAT64) or is local
_6TO4 = ipaddress.IPv6Network("2002::/16")  # inside 2000::/3, but embeds an IPv4 address
_AZURE_METADATA = ipaddress.IPv4Address("168.63.129.16")  # the one metadata service at a public address


class HostNotAllowed(Exception):
    """The URL does not lead to an image host that is allowed."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{self.__doc__} Host: {host!r}")
        self.host = host


class ImageHosts:
    """The hosts from which a result may be fetched: a comma separated list of `host` and `host:port`.

    A host alone is allowed by https on port 443, at public addresses. With a port it is allowed on that port,
    by http too, at any address: the endpoint is named. Raises ValueError for anything else.
    """

    def __init__(self, text: str) -> None:
        self._names: set[str] = set()
        self._endpoints: set[tuple[str, int]] = set()
        for entry in filter(None, map(str.strip, text.split(","))):
            try:
                url = httpx2.URL(f"host://{entry}")
            except httpx2.InvalidURL as error:
                raise ValueError(f"not host or host:port: {entry!r}") from error
            host, port = _host(url), url.port
            more_than_a_host = url.userinfo or url.raw_path != b"/" or url.fragment
            if not host or "%" in host or more_than_a_host or port not in (None, *range(1, 65536)):
                raise ValueError(f"not host or host:port: {entry!r}")
            if port is None:
                self._names.add(host)
            else:
                self._endpoints.add((host, port))

    def check(self, url: str, base: httpx2.URL | None = None) -> httpx2.URL:
        """The URL to fetch, spelled in one way, without fragment; `base` is what a redirect is relative to.

        Raises HostNotAllowed.
        """
        try:
            asked = base.join(url) if base else httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:  # the latter for a lone surrogate, which JSON may hold
            raise HostNotAllowed("") from error
        host = _host(asked)
        if asked.scheme not in _DEFAULT_PORTS or asked.userinfo:
            raise HostNotAllowed(host)
        port = _DEFAULT_PORTS[asked.scheme] if asked.port is None else asked.port
        named = (asked.scheme, port) == ("https", 443) and host in self._names and not _is_private_literal(host)
        if not named and not self.is_endpoint(host, port):
            raise HostNotAllowed(host)
        return httpx2.URL(scheme=asked.scheme, host=host, port=port, raw_path=asked.raw_path)

    def is_endpoint(self, host: str, port: int) -> bool:
        """Whether this host is listed with this port, and thus allowed at any address."""
        return (host, port) in self._endpoints


def _host(url: httpx2.URL) -> str:
    return url.raw_host.decode("ascii").lower().removesuffix(".")


def _is_private_literal(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return not is_public(host)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet, and neither a group's nor a metadata service's."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        return ip.is_global and ip in _GLOBAL_UNICAST_V6 and ip not in _6TO4
    return ip.is_global and not ip.is_multicast and ip != _AZURE_METADATA


class PublicResolver(aiohttp.abc.AbstractResolver):
    """Refuses names with an address that is not public; in the connector, so what was checked is dialled.

    One private address among several refuses the name. Raises HostNotAllowed.
    """

    def __init__(self, hosts: ImageHosts, resolver: aiohttp.abc.AbstractResolver) -> None:
        self._hosts = hosts
        self._resolver = resolver

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[aiohttp.abc.ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if not self._hosts.is_endpoint(host, port) and not all(is_public(result["host"]) for result in found):
            raise HostNotAllowed(host)
        return found

    async def close(self) -> None:
        await self._resolver.close()
