"""What `kubectl apply --kustomize` and `helm install` would send, by the programs themselves; once a process."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.kits.programs import program

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
CHART = K8S / "chart"
KUBERNETES = "1.34"

Manifest = dict[str, Any]

LAST = ("files", "config-files", "one-volume")
"""Components that change what others brought."""

COMPONENTS = sorted(
    (path.parent.name for path in K8S.glob("components/*/kustomization.yaml")), key=lambda name: (name in LAST, name)
)

ALONE = {"files", "gateways-only", "one-volume"}
"""`config-files` has the first; the others take away what others need: a cluster that has autoscalers, or consumers."""

SETS: dict[str, Path | list[str]] = {
    "base": K8S / "base",
    "local": K8S / "overlays/local",
    "production": K8S / "overlays/production",
    "edge": K8S / "overlays/edge",
    "everything": [name for name in COMPONENTS if name not in ALONE],
    "files": ["finance", "files"],
    "one-volume": ["finance", "httproute", "ingress", "one-volume"],
}
"""All that is rendered: folders, and the base with components."""

OURS = {"gateway", "consumer", "migrate", "finance", "smoke-test"}
"""Workloads that run our image, by the label `app.kubernetes.io/name`."""


@cache
def rendered(name: str) -> tuple[Manifest, ...]:
    """Render one of SETS."""
    given = SETS[name]
    return kustomized(given) if isinstance(given, Path) else assembled(given)


def kustomized(folder: Path) -> tuple[Manifest, ...]:
    """Render what `kubectl apply --kustomize` would send."""
    done = subprocess.run([program("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return tuple(yaml.safe_load_all(done.stdout))


def assembled(components: Sequence[str]) -> tuple[Manifest, ...]:
    """Render the base with these components, in this order."""
    with tempfile.TemporaryDirectory() as name:
        k8s = os.path.relpath(K8S, Path(name).resolve())
        whole = {
            "resources": [f"{k8s}/base"],
            "components": [f"{k8s}/components/{component}" for component in components],
        }
        (Path(name) / "kustomization.yaml").write_text(yaml.safe_dump(whole))
        return kustomized(Path(name))


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run helm, which finds no settings of this machine's user."""
    with tempfile.TemporaryDirectory() as name:
        homes = {f"HELM_{what}_HOME": name for what in ("CACHE", "CONFIG", "DATA")}
        environment = {"PATH": os.environ["PATH"], "HOME": name, **homes}
        command = [program("helm"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


@cache
def charted(*arguments: str | Path) -> tuple[Manifest, ...]:
    """Render what `helm install` would send, with these options."""
    done = helm("template", "ghub", CHART, "--namespace", "geekhub", *arguments)
    assert done.returncode == 0, done.stderr
    return tuple(one for one in yaml.safe_load_all(done.stdout) if one)


def only(manifests: Sequence[Manifest], kind: str, name: str) -> Manifest:
    """The one of a kind and a name."""
    (found,) = [one for one in manifests if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def some(manifests: Sequence[Manifest], kind: str) -> list[Manifest]:
    """All of a kind."""
    return [one for one in manifests if one["kind"] == kind]


def workloads(manifests: Sequence[Manifest]) -> list[Manifest]:
    """What makes pods."""
    return [one for one in manifests if one["kind"] in {"Deployment", "StatefulSet", "Job", "CronJob"}]


def ours(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Workloads of our own image."""
    return [one for one in workloads(manifests) if one["metadata"]["labels"]["app.kubernetes.io/name"] in OURS]


def template(workload: Manifest) -> Manifest:
    """A workload's pods."""
    spec = workload["spec"]["jobTemplate"]["spec"] if workload["kind"] == "CronJob" else workload["spec"]
    found: Manifest = spec["template"]
    return found


def pod(workload: Manifest) -> Manifest:
    """Its pods' `spec`."""
    spec: Manifest = template(workload)["spec"]
    return spec


def labels(workload: Manifest) -> dict[str, str]:
    """Its pods' labels."""
    found: dict[str, str] = template(workload)["metadata"]["labels"]
    return found


def container(workload: Manifest) -> Manifest:
    """The only container of its pods."""
    (one,) = pod(workload)["containers"]
    assert isinstance(one, dict)
    assert "initContainers" not in pod(workload)
    return one


def configured(manifests: Sequence[Manifest], workload: Manifest) -> dict[str, str]:
    """A container's variables out of ConfigMaps."""
    found: dict[str, str] = {}
    for source in container(workload).get("envFrom", []):
        found |= only(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    return found


def fixed(workload: Manifest) -> dict[str, str]:
    """A container's variables that stand in its manifest."""
    return {entry["name"]: entry["value"] for entry in container(workload).get("env", []) if "value" in entry}


def secrets(workload: Manifest) -> Iterator[tuple[str, str, str]]:
    """Yield a container's variables out of Secrets: variable, Secret, key."""
    for entry in container(workload).get("env", []):
        if "valueFrom" in entry:
            reference = entry["valueFrom"]["secretKeyRef"]
            yield entry["name"], reference["name"], reference["key"]


def workload_of(manifests: Sequence[Manifest], name: str) -> Manifest:
    """The workload of a name."""
    (found,) = [one for one in workloads(manifests) if one["metadata"]["name"] == name]
    return found


def selects(selector: Manifest, pod_labels: dict[str, str]) -> bool:
    """Does a selector mean pods with these labels?"""
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    terms = selector.get("matchExpressions", [])
    assert all(term["operator"] == "In" for term in terms)
    return selector.get("matchLabels", {}).items() <= pod_labels.items() and all(
        pod_labels.get(term["key"]) in term["values"] for term in terms
    )


def table(heading: str) -> dict[str, list[str]]:
    """The first table below a heading of k8s/README.md: each row's cells by the names in backticks of its first one."""
    text = (K8S / "README.md").read_text()
    assert text.count(f"\n{heading}\n") == 1, heading
    below = text.split(f"\n{heading}\n", 1)[1]
    found: dict[str, list[str]] = {}
    for line in re.split(r"\n(?!\|)", below[below.index("\n|") + 1 :])[0].splitlines()[2:]:
        first, *rest = [cell.strip() for cell in line.strip("|").split(" | ")]
        found |= dict.fromkeys(re.findall(r"`([\w.-]+)`", first), rest)
    return found
