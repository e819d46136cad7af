"""The journals' folders of the processes of one gateway.

Process 0 has the gateway's folder itself, which is all that a gateway of one process has; each further one has a folder
in it. If there are fewer processes than before, process 0 also takes the folders that are nobody's now.
"""

import re
from pathlib import Path

_FURTHER = re.compile(r"process-([1-9][0-9]*)")


def folder_of(gateway: Path, process: int) -> Path:
    """Name the folder of a process of a gateway; processes are numbered from 0."""
    return gateway if process == 0 else gateway / f"process-{process}"


def left_behind(gateway: Path, process: int, processes: int) -> list[Path]:
    """List the folders that an earlier start with more processes has left, if it is this process that takes them."""
    return [] if process else [folder for number, folder in _further(gateway) if number >= processes]


def all_folders(gateway: Path) -> list[Path]:
    """List every folder of a gateway's journals that exists, its own first."""
    return [gateway, *(folder for _, folder in _further(gateway))]


def _further(gateway: Path) -> list[tuple[int, Path]]:
    """Find the folders of further processes, by their numbers."""
    found = [(_FURTHER.fullmatch(one.name), one) for one in gateway.glob("process-*") if one.is_dir()]
    return sorted((int(match[1]), one) for match, one in found if match is not None)
