"""`kubectl`'s stand-in for the commands of k8s/README.md: `exec` runs `ghub` as a container of the image would.

That is user 10001, who has no name, with no home, and an environment that has the pod's settings alone. POD names a
JSON file with these, SECRETS a folder in which `create secret` leaves what it was given.
"""

import json
import os
import stat
import sys
from importlib import import_module
from pathlib import Path

from tests.kits.users import become_nobody

ROOT = Path(__file__).parents[2]


def main(arguments: list[str]) -> None:
    """Do what is asked, or end with what is not known."""
    match arguments:
        case ["exec", "statefulset/gateway", "--", "ghub", *rest]:
            in_container(rest, json.loads(Path(os.environ["POD"]).read_text()))
        case ["create", "secret", "generic", name, "--from-file", source]:
            key, _, path = source.partition("=")
            (Path(os.environ["SECRETS"]) / name).write_text(json.dumps({key: Path(path).read_text()}))
        case _:
            sys.exit(f"this kubectl does not know: {arguments}")


def in_container(arguments: list[str], environment: dict[str, str]) -> None:
    """Become `ghub`: in a new interpreter, if the nameless user can start one.

    It cannot if root has the interpreter or the checkout in a home of its own. Then all commands are loaded, in that
    environment, before this process becomes that user; what it does, it does as that user.
    """
    os.environ.clear()
    os.environ.update(environment)
    os.chdir("/")
    if os.getuid() != 0 or all(map(is_open, (ROOT, Path(sys.executable).resolve(), Path(sys.prefix)))):
        become_nobody()
        code = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
        os.execve(sys.executable, [sys.executable, "-m", "proxy.cli", *arguments], {**environment, **code})
    root = import_module("proxy.cli.root")
    for entry in root.ENTRIES.values():
        entry.load()
    become_nobody()
    sys.argv = ["ghub", *arguments]
    root.main()


def is_open(path: Path) -> bool:
    """Whether everybody may read it, and come to it."""
    return all(one.stat().st_mode & stat.S_IXOTH for one in (path, *path.parents))


if __name__ == "__main__":
    main(sys.argv[1:])
