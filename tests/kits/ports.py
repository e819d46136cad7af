"""Ports for servers that need a fixed port, which must be free whenever they start."""

import socket
from pathlib import Path

_LOWEST = 20_000
_CLAIMS: list[socket.socket] = []


def free_port() -> int:
    """Reserve a TCP port on loopback for this process until it ends.

    The kernel gives none of these away: neither to an outgoing connection nor to a listener on port 0. Three test
    processes open thousands of those between the choice of a port and its use. Each process announces its ports to the
    others by a socket with the port's name.
    """
    first_given_away = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in range(min(_LOWEST, first_given_away // 2), first_given_away):
        if _claim(port) and _is_free(port):
            return port
    raise RuntimeError("no port is free below those that the kernel gives away")


def _claim(port: int) -> bool:
    claim = socket.socket(socket.AF_UNIX)
    try:
        claim.bind(f"\0ghub-test-port-{port}")  # in no folder: it goes with the process
    except OSError:
        claim.close()
        return False
    _CLAIMS.append(claim)
    return True


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
