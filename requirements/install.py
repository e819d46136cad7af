"""`pip install` of one hash lock, with a bar: `python install.py LOCK`, by the Python that it installs into.

Without resolution: a lock is complete, and a release of tomorrow must not take part, for it has no hash and pip would
refuse everything. It runs before anything is installed, so it uses only what every Python brings.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
OPTIONS = ("install", "--no-deps", "--require-hashes", "--progress-bar", "off", "--requirement")
PINNED = re.compile(r"^[A-Za-z0-9][^\s=]*==", re.MULTILINE)
EACH = ("Collecting ", "Processing ", "Requirement already satisfied", "Ignoring ")
"""How pip's one line for each package begins: fetched, found in a folder, there, or not for this machine."""

BAR = 30
"""Characters."""

STEPS = 4
"""Lines where nobody watches, and a bar cannot be drawn."""

LAST_WORDS = 20
"""Lines of pip's that are told where it failed."""


def main() -> int:
    """Returns pip's exit code; where that is not 0, its last words are on standard error."""
    lock = Path(sys.argv[1])
    bar, said = Bar(len(PINNED.findall(lock.read_text()))), list[str]()
    command = (*PIP, *OPTIONS, str(lock))
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as pip:
        for line in pip.stdout or ():
            said.append(line)
            if line.startswith(EACH):
                bar.one_more()
            elif line.startswith("Installing "):
                bar.say("installing what was fetched …")
    bar.end()
    if pip.returncode:
        sys.stderr.write("".join(said[-LAST_WORDS:]))
    return pip.returncode


class Bar:
    """So many of all packages are fetched. On a terminal one line that is written over, elsewhere some lines."""

    def __init__(self, packages: int) -> None:
        self._packages = packages
        self._done = 0
        self._began_s = time.monotonic()
        self._draws = sys.stdout.isatty()

    def one_more(self) -> None:
        """Another package is here."""
        self._done += 1
        full = BAR * self._done // max(1, self._packages)
        if self._draws:
            self.say(f"{'█' * full}{'░' * (BAR - full)} {self._done} of {self._packages} packages")
        elif self._done * STEPS // self._packages > (self._done - 1) * STEPS // self._packages:
            self.say(f"{self._done} of {self._packages} packages")

    def say(self, text: str) -> None:
        """With the seconds since the beginning."""
        line = f"  {text}  {time.monotonic() - self._began_s:.0f} s"
        sys.stdout.write(f"\r\x1b[K{line}" if self._draws else f"{line}\n")
        sys.stdout.flush()

    def end(self) -> None:
        """What follows begins on a line of its own."""
        if self._draws:
            sys.stdout.write("\r\x1b[K")
            sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
