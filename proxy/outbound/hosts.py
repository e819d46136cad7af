"""The allow-list of image hosts: which URLs of an upstream may be fetched, and at which addresses."""

from collections.abc import Sequence

import httpx2

from config.addresses import is_address, is_public
from proxy.outbound.pool import Address, Resolve

_DEFAULT_PORTS = {"http": 80, "https": 443}


class HostNotAllowed(Exception):
    """The URL does not lead to an image host that is allowed."""

    def __init__(self, host: str) -> None:
        super().__init__(f"{self.__doc__} Host: {host!r}")
        self.host = host


class ImageHosts:
    """Hosts from which a result may be fetched: a comma-separated list of `host` and `host:port`.

    A host alone is allowed by https on port 443, at public addresses. With a port it is allowed on that port, by http
    too, at any address, because the endpoint is explicit. Raises ValueError for anything else.
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
        """Check a URL; return it in canonical form, without fragment. `base` is the URL that redirected to it.

        Raises HostNotAllowed.
        """
        try:
            parsed = base.join(url) if base else httpx2.URL(url)
        except (httpx2.InvalidURL, ValueError) as error:  # the latter for a lone surrogate, which JSON may hold
            raise HostNotAllowed("") from error
        host = _host(parsed)
        if parsed.scheme not in _DEFAULT_PORTS or parsed.userinfo:
            raise HostNotAllowed(host)
        port = _DEFAULT_PORTS[parsed.scheme] if parsed.port is None else parsed.port
        public = not is_address(host) or is_public(host)
        named = public and (parsed.scheme, port) == ("https", 443) and host in self._names
        if not named and not self.is_endpoint(host, port):
            raise HostNotAllowed(host)
        if url == f"{parsed.scheme}://{host}{'' if parsed.port is None else f':{port}'}{parsed.raw_path.decode()}":
            return parsed  # nearly always
        return httpx2.URL(scheme=parsed.scheme, host=host, port=port, raw_path=parsed.raw_path)

    def is_endpoint(self, host: str, port: int) -> bool:
        """True if this host is listed with this port, and so allowed at any address."""
        return (host, port) in self._endpoints


def _host(url: httpx2.URL) -> str:
    return url.raw_host.decode("ascii").lower().removesuffix(".")


class PublicNames:
    """Refuses names with an address that is not public. The pool connects to what it returns: the checked addresses.

    One private address among several refuses the name.
    """

    def __init__(self, hosts: ImageHosts, resolve: Resolve) -> None:
        self._hosts = hosts
        self._resolve = resolve

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        """Look up a name. Raises HostNotAllowed, OSError."""
        found = await self._resolve(host, port)
        if not self._hosts.is_endpoint(host, port) and not all(is_public(address[4][0]) for address in found):
            raise HostNotAllowed(host)
        return found
