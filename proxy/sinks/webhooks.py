"""Sends to webhooks: one POST over a connection of its own, to an address that was checked when it was connected."""

import asyncio
import socket
import ssl
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2

from config.addresses import is_public
from config.settings import WEBHOOK_SEND_S, WEBHOOKS_AT_ONCE
from proxy.outbound.clients import Client
from proxy.outbound.pool import Address, Resolve
from proxy.outbound.transport import Transport, cause_of, default_trust
from proxy.webhooks.targets import WebhookHosts, why_not


class PrivateAddress(Exception):
    """Its name leads to an address that is not on the public internet."""


class WebhookPosts:
    """Posts to any receiver. No redirect is followed, and nothing of an answer is read but its status.

    Create it inside the running event loop. `send_s` is the timeout of a whole delivery. A connection is not kept: a
    customer may name any number of hosts, and a name is looked up and checked for each delivery.
    """

    def __init__(
        self,
        hosts: WebhookHosts,
        *,
        send_s: float = WEBHOOK_SEND_S,
        verify: ssl.SSLContext | None = None,
        resolve: Resolve | None = None,
    ) -> None:
        self._hosts = hosts
        self._send_s = send_s
        self._verify = verify or default_trust()
        # Threads of its own: a name server that does not answer holds up no look-up of another part of the process.
        self._threads = ThreadPoolExecutor(WEBHOOKS_AT_ONCE, thread_name_prefix="webhook-names")
        self._resolve = resolve or self._look_up

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> str | None:
        """Send it; returns why it was not delivered, for a person, or None."""
        if (why := why_not(url, self._hosts, "url")) is not None:
            return why
        client = Client(Transport(verify=self._verify, resolve=self._checked), httpx2.Timeout(self._send_s))
        try:
            async with (
                asyncio.timeout(self._send_s),
                client.stream("POST", url, content=body, headers=headers) as reply,
            ):
                return None if reply.is_success else f"it answers {reply.status_code}"
        except TimeoutError:
            return f"no answer in {self._send_s:g} s"
        except PrivateAddress:
            return PrivateAddress.__doc__
        except httpx2.HTTPError as error:
            return cause_of(error)
        finally:
            await client.aclose()

    async def aclose(self) -> None:
        """Wait for no look-up that is under way."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _checked(self, host: str, port: int) -> Sequence[Address]:
        """Look up a name: one address among several that is not public refuses it. Raises PrivateAddress, OSError."""
        found = await self._resolve(host, port)
        if not self._hosts.name(host.removesuffix("."), port) and not all(is_public(one[4][0]) for one in found):
            raise PrivateAddress
        return found

    async def _look_up(self, host: str, port: int) -> Sequence[Address]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, _addresses, host, port)


def _addresses(host: str, port: int) -> Sequence[Address]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
