"""How many files this process may have open, and how many of them may be clients' connections."""

import resource
from dataclasses import dataclass

from config.settings import MAX_PICTURES, STREAMS, SettingsError

MAX_CONNECTIONS = 4096
"""Of clients: twice as many as there may be pictures under way. A silent one costs 11 KiB, so all of them 45 MiB."""

RESERVED_FILES = MAX_PICTURES + 2 * STREAMS + 400
"""Never a client's. Each picture under way may have a connection to its upstream, each that is read a file in the spool
and a connection to the store. The rest is for Redis, the ledger, the journal, probes, and clients that are refused."""

FILES_EACH = 2
"""A client's connection, and the stored image that it is sent."""

LEAST_FILES = 4096
"""Under this a gateway does not start: some hundred clients would be all."""

PROBE_CONNECTIONS = 64
"""Of the listener for probes and metrics, which has them for itself."""


class TooFewFiles(SettingsError):
    """The process may not open as many files as a gateway needs."""


@dataclass(frozen=True, slots=True)
class Files:
    """How many files this process might have open at its start, and how many it may now."""

    before: int
    now: int

    @property
    def connections(self) -> int:
        """So many of them may be clients'."""
        return min(MAX_CONNECTIONS, (self.now - RESERVED_FILES) // FILES_EACH)


def raise_limit() -> Files:
    """Let this process open as many files as it may. Raises TooFewFiles with one sentence."""
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
