"""The ports that the tests' own servers listen on."""

import json
import subprocess
import sys
from pathlib import Path

from tests.kits.ports import free_port

EACH = 50
OTHERS = f"from tests.kits.ports import free_port\nprint([free_port() for _ in range({EACH})], flush=True)\ninput()"


def test_no_two_test_processes_are_given_the_same_port_nor_one_that_the_kernel_gives_away() -> None:
    """Three that ask at the same time, none of which listens yet."""
    command = [sys.executable, "-c", OTHERS]
    others = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    given = [free_port() for _ in range(EACH)]
    for other in others:
        assert other.stdout is not None
        given += json.loads(other.stdout.readline())
    for other in others:
        other.communicate(b"\n")

    assert len(set(given)) == 3 * EACH
    lowest, _ = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert max(given) < int(lowest)
