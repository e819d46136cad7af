"""How many files this process may have open, and how many of them may be clients' connections."""

import resource

import structlog

from config.settings import MAX_PICTURES, STREAMS, SettingsError

MOST_CONNECTIONS = 4096
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

log = structlog.get_logger(__name__)


class TooFewFiles(SettingsError):
    """The process may not open as many files as a gateway needs."""


def raise_limit() -> int:
    """Let this process open as many files as it may, and return how many connections of clients that allows.

    Raises TooFewFiles with one sentence.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = RESERVED_FILES + FILES_EACH * MOST_CONNECTIONS
    files = max(soft, wanted) if hard == resource.RLIM_INFINITY else hard
    if files < LEAST_FILES:
        raise TooFewFiles(
            f"this process may open {files} files, and a gateway needs {LEAST_FILES}: raise the hard limit (ulimit -Hn,"
            f" LimitNOFILE of systemd) to {wanted} or more."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    connections = min(MOST_CONNECTIONS, (files - RESERVED_FILES) // FILES_EACH)
    log.info("files", before=soft, now=files, connections=connections)
    return connections
