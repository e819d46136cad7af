"""The set-up of the Makefile: which Python it takes, and locks that tomorrow's releases cannot break."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

import pytest

from tests.long import LONG, long

ROOT = Path(__file__).parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))

PYPROJECT = """[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""

BACKEND = """import zipfile


def build_editable(folder, settings=None, metadata=None):
    with zipfile.ZipFile(f"{folder}/tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: tiny\\nVersion: 1.0\\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    return "tiny-1.0-py3-none-any.whl"
"""
"""Build backend of an empty project: the rest of its environment comes from the locks."""


def wheel(index: Path, name: str, version: str, *more: str) -> str:
    """Put an empty package into a folder of wheels; returns its line in a lock."""
    path = index / f"{name}-{version}-py3-none-any.whl"
    facts = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        metadata = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *more]
        archive.writestr(f"{name}.py", f"version = {version!r}\n")
        archive.writestr(f"{facts}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{facts}/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """A folder that stands for the registry."""
    folder = tmp_path / "index"
    folder.mkdir()
    return folder


@pytest.fixture
def project(tmp_path: Path, index: Path) -> Path:
    """Our Makefile and installer around a tiny project, whose locks are of packages that need one another's extras."""
    folder = tmp_path / "a folder"
    (folder / "requirements").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copy(ROOT / "requirements" / "install.py", folder / "requirements")
    (folder / "requirements" / "binaries.py").write_text("")  # what it fetches is in no index of Python's
    (folder / "pyproject.toml").write_text(PYPROJECT)
    (folder / "backend.py").write_text(BACKEND)
    lock = wheel(index, "alpha", "1.0", "Requires-Dist: beta[more]>=1")
    lock += wheel(index, "beta", "1.0", "Provides-Extra: more", 'Requires-Dist: gamma; extra == "more"')
    lock += wheel(index, "gamma", "1.0")
    (folder / "requirements" / "demo.txt").write_text(lock)
    (folder / "requirements" / "test.txt").write_text(lock + wheel(index, "delta", "1.0"))
    return folder


def tried(folder: Path, command: Sequence[str], index: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run it there; pip knows no registry but the index."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "MFLAGS"))}
    if index is not None:
        environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def made(folder: Path, index: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`make`, with the Python that runs this unless another is named."""
    named = () if any(one.startswith("PYTHON=") for one in arguments) else (f"PYTHON={sys.executable}",)
    return tried(folder, ["make", *arguments, *named], index)


def inside(folder: Path, program: str) -> str:
    """Run a program in the environment; returns its output."""
    done = tried(folder, [".venv/bin/python", "-c", program])
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pip_of_today(environment: Path) -> None:
    """In place of the one that Python brings: the one of our lock."""
    pip = distribution("pip")
    (site,) = environment.glob("lib/python*/site-packages")
    for old in site.glob("pip*"):
        shutil.rmtree(old)
    for file in pip.files or ():
        if file.parts[0].startswith("pip"):
            (site / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(str(file.locate()), site / file)


@pytest.mark.parametrize("pip", ["the one that Python brings", "today's"] if LONG else ["today's"])
def test_a_lock_installs_although_a_newer_release_was_published(project: Path, index: Path, pip: str) -> None:
    """One package asks for another's extra, which the lock does not name: with resolution pip takes the newer one, for
    which there is no hash, and refuses all of it."""
    assert tried(project, [sys.executable, "-m", "venv", ".venv"]).returncode == 0
    if pip == "today's":
        pip_of_today(project / ".venv")
        assert inside(project, "import pip; print(pip.__version__)") == distribution("pip").version
    wheel(index, "beta", "2.0", "Provides-Extra: more", 'Requires-Dist: gamma; extra == "more"')
    if inside(project, "import pip; print(pip.__version__)").startswith("23."):  # later ones have learned it
        resolved = [".venv/bin/python", "-m", "pip", "install", "--dry-run", "--require-hashes", "-r"]
        refused = tried(project, [*resolved, "requirements/demo.txt"], index)
        assert refused.returncode and "--require-hashes" in refused.stderr
    for target in ("setup", ".venv/.test"):
        done = made(project, index, target)
        assert done.returncode == 0, done.stderr
    assert inside(project, "import alpha, beta, delta; print(beta.version)") == "1.0"
    assert "4 of 4 packages" in done.stdout


def test_a_lock_that_is_not_complete_or_not_what_was_hashed_fails(project: Path, index: Path) -> None:
    """And nothing says that the set-up was done."""
    lock = project / "requirements" / "demo.txt"
    whole = lock.read_text()
    for wrong, words in (
        (whole.replace("gamma==1.0", "gamma==1.1"), "gamma==1.1"),
        (whole.replace("sha256:", "sha256:0000"), "sha256"),
        (whole.splitlines()[0], "requires beta"),
    ):
        lock.write_text(wrong)
        done = made(project, index, "setup")
        assert done.returncode and words in done.stdout + done.stderr, done
        assert not (project / ".venv" / ".demo").exists()


def test_an_older_python_is_one_sentence(project: Path, index: Path) -> None:
    """It names what is needed and what to type; an absent one, too."""
    old = project / "old"
    old.write_text("#!/bin/sh\necho 3.10\n")
    old.chmod(0o755)
    for name, is_ in (("./old", "3.10"), ("python-of-nobody", "not there")):
        done = made(project, index, "setup", f"PYTHON={name}")
        sentence, end = done.stderr.splitlines()
        assert done.returncode and sentence == (
            f"GeekHub needs Python 3.11 or later, and {name} is {is_}: name one, such as make demo PYTHON=python3.12"
        )
        assert end.startswith("make: ***")
        assert not (project / ".venv").exists()


@pytest.mark.parametrize("stale", ["older", "gone"])
def test_an_environment_of_another_python_is_made_anew(project: Path, index: Path, stale: str) -> None:
    """One of an older Python, or of one that was taken away, that says that all was installed; one that fits stays."""
    python = project / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    if stale == "older":
        python.write_text("#!/bin/sh\necho 3.10\n")
        python.chmod(0o755)
    else:
        python.symlink_to("/nowhere/python3")
    (project / ".venv" / ".demo").touch()
    done = made(project, index, "setup")
    assert done.returncode == 0, done.stderr
    assert inside(project, "import alpha, sys; print(sys.version_info >= (3, 11))") == "True"
    before = (project / ".venv" / "pyvenv.cfg").stat()
    again = made(project, index, "setup")
    assert again.returncode == 0 and "packages" not in again.stdout
    assert (project / ".venv" / "pyvenv.cfg").stat() == before


def test_the_demo_takes_a_folder_with_a_space(project: Path, index: Path) -> None:
    """`make demo DATA="mi carpeta"` is one argument."""
    assert made(project, index, "setup").returncode == 0
    ghub = project / ".venv" / "bin" / "ghub"
    ghub.write_text('#!/bin/sh\nprintf "%s|" "$@"\n')
    ghub.chmod(0o755)
    done = made(project, index, "demo", "DATA=mi carpeta", "PORT=8091")
    assert done.stdout == "demo|--port|8091|--data|mi carpeta|"


@long
@pytest.mark.parametrize("lock", LOCKS, ids=[lock.stem for lock in LOCKS])
def test_every_lock_installs_although_all_of_it_was_released_anew(tmp_path: Path, index: Path, lock: Path) -> None:
    """From the registry, which also has a newer release of every package in them."""
    for line in lock.read_text().splitlines():
        if "==" in line and not line.startswith(" "):
            wheel(index, line.partition("==")[0].partition("[")[0].replace("-", "_"), "9999")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = str(tmp_path / "venv" / "bin" / "python")
    environment = os.environ | {"PIP_FIND_LINKS": f"{index} {os.environ.get('PIP_FIND_LINKS', '')}"}
    for command in ([python, str(ROOT / "requirements" / "install.py"), str(lock)], [python, "-m", "pip", "check"]):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
