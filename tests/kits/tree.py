"""A copy of this tree, in which a recipe of docs/development.md is followed."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTEST = (sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider")
LINT = Path(sysconfig.get_path("scripts")) / "lint-imports"

LEFT_OUT = shutil.ignore_patterns(".git", ".venv", ".ghub", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
WITHIN_S = 240.0
"""Of one command: a test of a whole system starts it first, on a machine that runs other tests."""


class Tree:
    """A copy of the tree, in which a recipe is followed. `changed` are the files that were added or edited since."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copytree(ROOT, root, ignore=LEFT_OUT)
        self._before = self._files()

    def add(self, name: str, text: str) -> None:
        """A new file."""
        path = self.root / name
        assert not path.exists(), f"{name} is there already"
        path.write_text(text, encoding="utf-8")

    def edit(self, name: str, *changes: tuple[str, str]) -> None:
        """Put text in place of other text that stands there once."""
        path = self.root / name
        text = path.read_text(encoding="utf-8")
        for old, new in changes:
            assert text.count(old) == 1, f"{name} has {text.count(old)} of {old!r}"
            text = text.replace(old, new)
        path.write_text(text, encoding="utf-8")

    def run(self, *command: str) -> str:
        """What a command says, which ends well; it is run in the copy, and imports the copy."""
        result = self._finished(*command)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout

    def _finished(self, *command: str) -> subprocess.CompletedProcess[str]:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
        # Plugins that no recipe needs take longer to load than most of these tests to run.
        theirs = {"PYTHONPATH": str(self.root), "COLUMNS": "300", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        return subprocess.run(
            command, cwd=self.root, env=ours | theirs, capture_output=True, text=True, timeout=WITHIN_S
        )

    def python(self, *lines: str) -> str:
        """What these lines print."""
        return self.run(sys.executable, "-c", "\n".join(lines))

    def tests(self, *names: str) -> None:
        """These test files pass."""
        self.run(*PYTEST, *names)

    def failing(self, *names: str) -> str:
        """What these test files say, of which one does not pass."""
        result = self._finished(*PYTEST, *names)
        assert result.returncode == 1, result.stdout + result.stderr
        return result.stdout

    def lint(self) -> None:
        """What `make lint` runs, but for the types of the whole tree, which take a minute."""
        ruff = (sys.executable, "-m", "ruff")
        self.run(*ruff, "check", "--no-cache", *self.changed(".py"))
        self.run(*ruff, "format", "--check", "--no-cache", *self.changed(".py"))
        self.run(str(LINT), "--no-cache")

    def changed(self, ending: str = "") -> list[str]:
        """Names of files that were added or edited."""
        now = self._files()
        assert self._before.keys() <= now.keys(), "a recipe takes nothing away"
        return sorted(name for name in now if now[name] != self._before.get(name) and name.endswith(ending))

    def _files(self) -> dict[str, str]:
        left_out = {"__pycache__", ".hypothesis"}
        paths = [path for path in self.root.rglob("*") if path.is_file() and not left_out & set(path.parts)]
        return {str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
