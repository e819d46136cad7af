"""`k8s/base` renders, is valid, and agrees with the settings and the image."""

import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from config.catalogue import read_catalogue
from config.settings import (
    EXIT_MARGIN_S,
    MAX_BODY_BYTES,
    PLATFORM_GRACE_S,
    PRE_STOP_S,
    Settings,
    graceful_stop_s,
    hold_life_s,
)
from proxy.api.files import STORAGE_PATH
from proxy.api.openapi import OPENAPI_PATH
from tests.kits.programs import program
from tests.kits.surface import operations

ROOT = Path(__file__).parents[2]
BASE = ROOT / "k8s/base"
DOCKERFILE = (ROOT / "Dockerfile").read_text()
KUBERNETES = "1.34"

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """Render what `kubectl apply --kustomize` would send."""
    done = subprocess.run([program("kubectl"), "kustomize", folder], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return list(yaml.safe_load_all(done.stdout))


@pytest.fixture(scope="module")
def manifests() -> list[Manifest]:
    return render(BASE)


def only(manifests: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [one for one in manifests if one["kind"] == kind and one["metadata"]["name"] == name]
    return found


def workloads(manifests: list[Manifest]) -> list[Manifest]:
    found = [one for one in manifests if one["kind"] in {"Deployment", "StatefulSet", "Job"}]
    assert len(found) == 3
    return found


def pod(workload: Manifest) -> Manifest:
    spec: Manifest = workload["spec"]["template"]["spec"]
    return spec


def container(workload: Manifest) -> Manifest:
    (one,) = pod(workload)["containers"]
    assert isinstance(one, dict)
    assert "initContainers" not in pod(workload)
    return one


def environment(manifests: list[Manifest], workload: Manifest) -> dict[str, str | None]:
    """List a container's variables; None if a Secret has the value."""
    one = container(workload)
    found: dict[str, str | None] = {}
    for source in one.get("envFrom", []):
        found |= only(manifests, "ConfigMap", source["configMapRef"]["name"])["data"]
    for entry in one["env"]:
        found[entry["name"]] = entry.get("value")
    return found


def secret_keys(workload: Manifest) -> Iterator[tuple[str, str, str]]:
    for entry in container(workload)["env"]:
        if "valueFrom" in entry:
            reference = entry["valueFrom"]["secretKeyRef"]
            yield entry["name"], reference["name"], reference["key"]


def workload_of(manifests: list[Manifest], name: str) -> Manifest:
    (found,) = [one for one in workloads(manifests) if one["metadata"]["name"] == name]
    return found


def test_every_manifest_is_strictly_valid(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES
    assert {one["kind"] for one in manifests} == {
        "ConfigMap", "Deployment", "Ingress", "Job", "NetworkPolicy", "PersistentVolumeClaim", "PodDisruptionBudget",
        "Service", "ServiceAccount", "StatefulSet",
    }  # fmt: skip


def test_strict_validation_catches_a_misspelt_field(manifests: list[Manifest]) -> None:
    wrong = {**only(manifests, "PodDisruptionBudget", "gateway"), "spec": {"maxUnavailabl": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_no_manifest_names_a_namespace_or_holds_a_secret(manifests: list[Manifest]) -> None:
    assert not [one for one in manifests if "namespace" in one["metadata"] or one["kind"] in {"Secret", "Namespace"}]


def test_what_was_begun_can_end_before_the_platform_kills(manifests: list[Manifest]) -> None:
    gateway = only(manifests, "StatefulSet", "gateway")
    settings = Settings(deadline_s=float(environment(manifests, gateway)["GHUB_DEADLINE_S"] or 0))
    own = [model.deadline_s or 0.0 for model in read_catalogue(None).models.values()]
    deadline_s = max(settings.deadline_s, *own)
    grace_s = pod(gateway)["terminationGracePeriodSeconds"]
    pre_stop_s = container(gateway)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert deadline_s < hold_life_s(deadline_s) < graceful_stop_s(deadline_s)
    assert pre_stop_s + graceful_stop_s(deadline_s) + EXIT_MARGIN_S <= grace_s
    assert (pre_stop_s, grace_s) == (PRE_STOP_S, PLATFORM_GRACE_S)
    assert pod(only(manifests, "Deployment", "consumer"))["terminationGracePeriodSeconds"] == PLATFORM_GRACE_S


def test_the_ingress_waits_longer_than_the_deadline_and_takes_every_body_that_the_gateway_takes(
    manifests: list[Manifest],
) -> None:
    ingress = only(manifests, "Ingress", "gateway")
    notes = {name.split("/")[1]: value for name, value in ingress["metadata"]["annotations"].items()}
    longest_s = max(Settings().deadline_s, *(model.deadline_s or 0.0 for model in read_catalogue(None).models.values()))
    assert float(notes["proxy-read-timeout"]) >= 2 * longest_s
    assert float(notes["proxy-send-timeout"]) >= 2 * longest_s
    assert notes["proxy-body-size"] == "1m"
    assert MAX_BODY_BYTES <= 1024 * 1024


def test_image_urls_lead_back_through_the_ingress(manifests: list[Manifest]) -> None:
    ingress = only(manifests, "Ingress", "gateway")["spec"]
    (rule,) = ingress["rules"]
    assert ingress["tls"] == [{"hosts": [rule["host"]], "secretName": "gateway-tls"}]
    data = only(manifests, "ConfigMap", "gateway-settings")["data"]
    assert data["GHUB_PUBLIC_URL"] == f"https://{rule['host']}{STORAGE_PATH}"


@pytest.mark.parametrize("name", ["gateway", "consumer"])
def test_liveness_needs_the_process_alone_and_readiness_asks_elsewhere(manifests: list[Manifest], name: str) -> None:
    """Both on the port that customers have no connections of."""
    one = container(workload_of(manifests, name))
    asked = {probe: one[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    assert asked["startup"] == asked["liveness"] == {"path": "/healthz", "port": "metrics"}
    assert asked["readiness"] == {"path": "/readyz", "port": "metrics"}


@pytest.mark.parametrize("name", ["gateway", "consumer"])
def test_ports_are_those_of_the_settings_and_of_the_image(manifests: list[Manifest], name: str) -> None:
    workload = workload_of(manifests, name)
    variables = environment(manifests, workload)
    wanted = {"http": variables["GHUB_PORT"], "metrics": variables["GHUB_METRICS_PORT"]}
    ports = {port["name"]: str(port["containerPort"]) for port in container(workload)["ports"]}
    assert ports == {key: wanted[key] for key in ports}
    assert set(wanted.values()) == set(re.findall(r"(?m)^EXPOSE (.*)$", DOCKERFILE)[0].split())
    assert variables["GHUB_HOST"] == "0.0.0.0"


def test_services_reach_pods_by_a_port_that_they_have(manifests: list[Manifest]) -> None:
    services = [one for one in manifests if one["kind"] == "Service"]
    assert {one["metadata"]["name"] for one in services} == {"gateway", "gateway-metrics", "consumer-metrics"}
    for service in services:
        selector = service["spec"]["selector"]
        (target,) = [
            one
            for one in workloads(manifests)
            if selector.items() <= one["spec"]["template"]["metadata"]["labels"].items()
        ]
        ports = {port["name"]: port["containerPort"] for port in container(target)["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_every_variable_is_a_setting(manifests: list[Manifest]) -> None:
    fields = {f"GHUB_{name.upper()}" for name in Settings.model_fields}
    for workload in workloads(manifests):
        assert set(environment(manifests, workload)) <= fields


def test_the_settings_of_the_configmap_are_accepted(manifests: list[Manifest], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in only(manifests, "ConfigMap", "gateway-settings")["data"].items():
        monkeypatch.setenv(name, value)
    assert Settings().storage_url == "file:///data/images"


def test_every_secret_is_documented_and_nobody_reads_more_than_it_needs(manifests: list[Manifest]) -> None:
    documented = set(re.findall(r"(?m)^\| `(GHUB_\w+)` \|", (ROOT / "k8s/README.md").read_text()))
    needed: dict[str, set[str]] = {}
    for workload in workloads(manifests):
        for variable, secret, key in secret_keys(workload):
            assert (secret, key) == ("gateway-secrets", variable)
            needed.setdefault(container(workload)["name"], set()).add(key)
    assert set().union(*needed.values()) == documented
    assert needed["gateway"] == documented
    assert needed["consumer"] == {"GHUB_REDIS_URL", "GHUB_LEDGER_URL"}
    assert needed["migrate"] == {"GHUB_LEDGER_URL"}


OF_COMMANDS = {"GHUB_BANXICO_TOKEN", "GHUB_OPENAI_ADMIN_KEY"}
"""Secrets that only a command reads: the gateway does not get them."""


def test_what_is_secret_in_the_settings_comes_from_a_secret(manifests: list[Manifest]) -> None:
    secret = {
        f"GHUB_{name.upper()}" for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)
    }
    assert not secret & set(only(manifests, "ConfigMap", "gateway-settings")["data"])
    gateway = only(manifests, "StatefulSet", "gateway")
    assert {variable for variable, _, _ in secret_keys(gateway)} == secret - OF_COMMANDS


def test_every_container_can_do_nothing_but_its_work(manifests: list[Manifest]) -> None:
    for workload in workloads(manifests):
        spec, one = pod(workload), container(workload)
        user, group = re.findall(r"(?m)^USER (\d+):(\d+)$", DOCKERFILE)[-1]
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        account = only(manifests, "ServiceAccount", spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
        assert one["resources"]["requests"]["memory"] == one["resources"]["limits"]["memory"]
        assert {"name": "tmp", "mountPath": "/tmp"} in one["volumeMounts"]
        (tmp,) = [volume for volume in spec["volumes"] if volume["name"] == "tmp"]
        assert "emptyDir" in tmp


def test_a_roll_out_and_a_drained_node_take_one_pod_at_a_time(manifests: list[Manifest]) -> None:
    for name in ("gateway", "consumer"):
        workload = workload_of(manifests, name)
        if workload["kind"] == "Deployment":
            assert workload["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        else:
            assert workload["spec"]["updateStrategy"] == {"type": "RollingUpdate"}
        budget = only(manifests, "PodDisruptionBudget", name)["spec"]
        assert budget["maxUnavailable"] == 1
        assert budget["selector"] == workload["spec"]["selector"]


def test_the_job_is_named_for_the_version_so_that_apply_can_be_repeated(manifests: list[Manifest]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    job = only(manifests, "Job", f"migrate-{version.replace('.', '-')}")
    assert job["spec"]["ttlSecondsAfterFinished"] > 0
    for workload in workloads(manifests):
        assert container(workload)["image"] == f"geekhub-gateway:{version}"
        assert "command" not in container(workload), "the image's own entry point"
    assert [container(one)["args"] for one in workloads(manifests)] == [["consume"], ["serve"], ["migrate"]]


def test_stores_of_one_machine_are_shared_on_one_volume_by_pods_of_one_node(manifests: list[Manifest]) -> None:
    assert only(manifests, "PersistentVolumeClaim", "gateway-data")["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert only(manifests, "StatefulSet", "gateway")["spec"]["replicas"] == 1
    for workload in workloads(manifests):
        assert {"name": "data", "mountPath": "/data"} in container(workload)["volumeMounts"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "gateway-data"}} in pod(workload)["volumes"]
        (term,) = pod(workload)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        assert term["topologyKey"] == "kubernetes.io/hostname"
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert term["labelSelector"]["matchLabels"].items() <= labels.items()


def test_without_the_volume_the_base_is_replicated_and_stateless(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "base")
    kustomization = tmp_path / "base/kustomization.yaml"
    kustomization.write_text(kustomization.read_text().replace("  - one-volume\n", "").replace("components:\n", ""))
    manifests = render(tmp_path / "base")
    assert "PersistentVolumeClaim" not in {one["kind"] for one in manifests}
    assert only(manifests, "StatefulSet", "gateway")["spec"]["replicas"] == 3
    for workload in workloads(manifests):
        assert {volume["name"] for volume in pod(workload)["volumes"]} <= {"tmp", "spool"}
        assert "affinity" not in pod(workload)
        assert kubernetes_validate.validate(workload, KUBERNETES, strict=True) == KUBERNETES


def test_each_gateway_has_a_journal_that_outlives_its_pod(manifests: list[Manifest]) -> None:
    """A claim for each pod, kept when the pod or the set goes; and a spool with room for what the settings allow."""
    gateway = only(manifests, "StatefulSet", "gateway")
    (claim,) = gateway["spec"]["volumeClaimTemplates"]
    assert gateway["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    variables = environment(manifests, gateway)
    mounts = {mount["name"]: mount["mountPath"] for mount in container(gateway)["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == variables["GHUB_JOURNAL_DIR"]
    assert mounts["spool"] == variables["GHUB_SPOOL_DIR"]
    (spool,) = [volume for volume in pod(gateway)["volumes"] if volume["name"] == "spool"]
    assert int(spool["emptyDir"]["sizeLimit"].removesuffix("Mi")) > Settings().spool_mb
    headless = only(manifests, "Service", gateway["spec"]["serviceName"])["spec"]
    assert headless["clusterIP"] == "None"


def namespace_of(rule: Manifest) -> str:
    """The one namespace that a rule lets in, by the label that every namespace has."""
    (source,) = rule["from"]
    assert set(source) == {"namespaceSelector"} and set(source["namespaceSelector"]) == {"matchLabels"}
    ((label, name),) = source["namespaceSelector"]["matchLabels"].items()
    assert label == "kubernetes.io/metadata.name"
    return str(name)


def selects(selector: Manifest, labels: dict[str, str]) -> bool:
    """Does a policy mean pods with these labels?"""
    terms = selector.get("matchExpressions", [])
    assert all(term["operator"] == "In" for term in terms)
    return selector["matchLabels"].items() <= labels.items() and all(
        labels.get(term["key"]) in term["values"] for term in terms
    )


def test_the_customers_host_shows_what_customers_call_and_nothing_else(manifests: list[Manifest]) -> None:
    """The paths of the Ingress against the gateway's own routes: no admin or finance API, no probe, no metrics."""
    (rule,) = only(manifests, "Ingress", "gateway")["spec"]["rules"]
    paths = rule["http"]["paths"]
    for one in paths:
        assert one["backend"] == {"service": {"name": "gateway", "port": {"name": "http"}}}

    def shown(path: str) -> bool:
        whole = path.split("/")
        return any(
            path == one["path"]
            or (one["pathType"] == "Prefix" and whole[: len(one["path"].split("/"))] == one["path"].split("/"))
            for one in paths
        )

    rows = operations()
    public = {row.documented_path for row in rows if row.security == "key" or row.id == "get_image"} | {OPENAPI_PATH}
    assert [path for path in public if not shown(path)] == []
    hidden = {row.documented_path for row in rows if row.security in ("admin", "finance")}
    hidden |= {"/", "/admin/v1", "/finance/v1", "/readyz", "/healthz", "/metrics", "/v1x"}
    assert [path for path in hidden if shown(path)] == []


def test_nothing_goes_in_or_out_but_what_is_named(manifests: list[Manifest]) -> None:
    deny = only(manifests, "NetworkPolicy", "gateway-default-deny")["spec"]
    assert deny["policyTypes"] == ["Ingress", "Egress"] and not {"ingress", "egress"} & set(deny)
    for workload in workloads(manifests):
        labels = workload["spec"]["template"]["metadata"]["labels"]
        assert deny["podSelector"]["matchLabels"].items() <= labels.items()
    policies = [one["spec"] for one in manifests if one["kind"] == "NetworkPolicy"]
    inward = [rule for spec in policies for rule in spec.get("ingress", [])]
    assert {(port["port"], namespace_of(rule)) for rule in inward for port in rule["ports"]} == {
        ("http", "ingress-nginx"),
        ("metrics", "monitoring"),
    }
    for name, ports in (("gateway", {"http", "metrics"}), ("consumer", {"metrics"})):
        labels = workload_of(manifests, name)["spec"]["template"]["metadata"]["labels"]
        meant = [rule for spec in policies if selects(spec["podSelector"], labels) for rule in spec.get("ingress", [])]
        assert {port["port"] for rule in meant for port in rule["ports"]} == ports
    upstreams = only(manifests, "NetworkPolicy", "gateway-upstreams")["spec"]["egress"]
    assert [port["port"] for rule in upstreams for port in rule["ports"]] == [443]
    stores = only(manifests, "NetworkPolicy", "gateway-stores")["spec"]["egress"]
    assert {port["port"] for rule in stores for port in rule["ports"]} == {53, 5432, 6379}
