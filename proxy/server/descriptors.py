"""How many files this process may open, and how many of them may be clients' connections."""

import resource
from dataclasses import dataclass

from config.settings import MAX_PICTURES, STREAMS, SettingsError

MAX_CONNECTIONS = 4096
"""Maximum client connections: twice the maximum pictures under way.

A silent one costs 11 KiB, so all of them 45 MiB.
"""

RESERVED_FILES = MAX_PICTURES + 2 * STREAMS + 400
"""Files that clients never get.

Each picture under way may have a connection to its upstream. Each picture that is read may have a file in the spool and
a connection to the store. The rest is for Redis, the ledger, the journal, probes, and refused clients.
"""

FILES_EACH = 2
"""Files of one client: its connection, and the stored image that it is sent."""

LEAST_FILES = 4096
"""Minimum to start a gateway: with fewer files there would be room for only some hundred clients."""

PROBE_CONNECTIONS = 64
"""Connections of the listener for probes and metrics, which nothing else uses."""


class TooFewFiles(SettingsError):
    """The process may not open as many files as a gateway needs."""


@dataclass(frozen=True, slots=True)
class Files:
    """Maximum open files of this process: at its start, and now."""

    before: int
    now: int

    @property
    def connections(self) -> int:
        """How many of them may be clients' connections."""
        return min(MAX_CONNECTIONS, (self.now - RESERVED_FILES) // FILES_EACH)


def raise_limit() -> Files:
    """Raise this process' limit of open files as far as allowed. Raises TooFewFiles with one sentence."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = RESERVED_FILES + FILES_EACH * MAX_CONNECTIONS
    now = max(soft, wanted) if hard == resource.RLIM_INFINITY else hard
    if now < LEAST_FILES:
        raise TooFewFiles(
            f"this process may open {now} files, and a gateway needs {LEAST_FILES}: raise the hard limit (ulimit -Hn,"
            f" LimitNOFILE of systemd) to {wanted} or more."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (now, hard))
    return Files(soft, now)
