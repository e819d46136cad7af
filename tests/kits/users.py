"""A user without a name in the system, like that of the shipped image."""

import ctypes
import os
import pwd
import shutil
from pathlib import Path

NOBODY = 10001
"""`USER` in the Dockerfile, which has no entry in the table of users here either."""

_CLONE_NEWUSER = 0x10000000


def give_to_nobody(folder: Path) -> None:
    """Give it the files that it may use. Only root must do this: for others a namespace maps their own files to it."""
    if os.getuid() == 0:
        folder.parent.chmod(0o755)
        for path in (folder, *folder.rglob("*")):
            shutil.chown(path, NOBODY, NOBODY)


def become_nobody() -> None:
    """Change this process for good: root by setuid, like `setpriv --reuid`; anybody else in a user namespace."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
    else:
        _into_namespace()
    assert os.getuid() == NOBODY
    try:
        pwd.getpwuid(NOBODY)
    except KeyError:
        return
    raise AssertionError(f"user {NOBODY} has a name here")


def _into_namespace() -> None:
    inside = {"uid_map": f"{NOBODY} {os.getuid()} 1", "setgroups": "deny", "gid_map": f"{NOBODY} {os.getgid()} 1"}
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWUSER) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no user namespace here: {os.strerror(number)}; run the tests as root, or allow them")
    for name, line in inside.items():
        Path("/proc/self", name).write_text(line)
