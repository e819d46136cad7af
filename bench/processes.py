"""What benchmarks read of processes, and where they run."""

import os
import socket
from pathlib import Path


def cpu_s(pid: int) -> float:
    """Read the CPU time that a process has used, all its threads together; the kernel counts it in nanoseconds."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def resident_bytes(pid: int | str, name: str) -> int:
    """Read VmRSS (now) or VmHWM (the peak) of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise AssertionError(name)


def forget_peak(pid: int | str) -> None:
    """Reset VmHWM."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def apart() -> set[int]:
    """Leave the first core to who is measured: everything that is started from now on runs on the others.

    Returns the core's number as a set, for `pin`; on a machine with one core all share it.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, set(cores[1:]) or set(cores))
    return {cores[0]}


def pin(pid: int, cores: set[int]) -> None:
    """Pin a process with all its threads."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), cores)


def listens(port: int) -> bool:
    """True if somebody accepts connections there."""
    with socket.socket() as knocking:
        return knocking.connect_ex(("127.0.0.1", port)) == 0
