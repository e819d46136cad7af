"""`k8s/` renders, is valid, and agrees with the settings and the image: base, overlays, and every component."""

import base64
import re
import shutil
import tomllib
from collections.abc import Sequence
from pathlib import Path
from zoneinfo import ZoneInfo

import kubernetes_validate
import pytest
import typer

from config.catalogue import read_catalogue
from config.settings import (
    EXIT_MARGIN_S,
    LONGEST_LONG_DEADLINE_S,
    LONGEST_STAY_S,
    MAX_BODY_BYTES,
    PLATFORM_GRACE_S,
    PRE_STOP_S,
    SINK_SEND_S,
    Settings,
    graceful_stop_s,
    hold_life_s,
)
from proxy.api.files import STORAGE_PATH
from proxy.api.openapi import OPENAPI_PATH
from proxy.cli.root import commands
from proxy.orders.deadlines import Deadlines
from proxy.ports import Order
from tests.kits.manifests import (
    COMPONENTS,
    K8S,
    KUBERNETES,
    OURS,
    ROOT,
    SETS,
    Manifest,
    configured,
    container,
    fixed,
    kustomized,
    labels,
    only,
    ours,
    pod,
    rendered,
    secrets,
    some,
    table,
    template,
    workload_of,
    workloads,
)
from tests.kits.surface import operations

DOCKERFILE = (ROOT / "Dockerfile").read_text()
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
README = (K8S / "README.md").read_text()
DASHED = VERSION.replace(".", "-")
FIELDS = {f"GHUB_{name.upper()}" for name in Settings.model_fields}
SECRET = {f"GHUB_{name.upper()}" for name, field in Settings.model_fields.items() if "Secret" in str(field.annotation)}

OTEL = {"OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"}
"""OpenTelemetry's own names."""

CUSTOM = {"HTTPRoute", "ScaledObject", "ServiceMonitor", "PrometheusRule", "ExternalSecret"}
"""Kinds whose schemas no validator has: tests/integration/test_k8s_custom.py asserts what they must say."""


@pytest.fixture(params=SETS)
def manifests(request: pytest.FixtureRequest) -> Sequence[Manifest]:
    """Each of what is rendered, in turn."""
    return rendered(request.param)


@pytest.fixture
def base() -> Sequence[Manifest]:
    """The base alone."""
    return rendered("base")


def longest_deadline_s(manifests: Sequence[Manifest]) -> float:
    """The longest that an answer may be waited for: by the settings of the gateway, or by a model's own."""
    gateway = only(manifests, "StatefulSet", "gateway")
    own = [model.deadline_s or 0.0 for model in read_catalogue(None).models.values()]
    return max(float(configured(manifests, gateway)["GHUB_DEADLINE_S"]), *own)


def longest_stay_s(manifests: Sequence[Manifest]) -> float:
    """The longest that a stop may wait: for an awaited order, or for a long one that nobody could go on with."""
    deadlines = Deadlines(longest_deadline_s(manifests), LONGEST_LONG_DEADLINE_S, kept_by=("fal",))
    stays = [
        deadlines.of(Order(name, model, "p", 1, size="", quality=None), long=True)
        for name, model in read_catalogue(None).models.items()
        if model.provider != "fal"
    ]
    assert max(stays) == LONGEST_STAY_S
    return max(longest_deadline_s(manifests), *stays)


def test_every_component_is_rendered_somewhere() -> None:
    """By an overlay, or with the others; and every folder of overlays is here."""
    named = {name for given in SETS.values() if isinstance(given, list) for name in given}
    text = "".join(path.read_text() for path in K8S.glob("overlays/*/kustomization.yaml"))
    assert set(COMPONENTS) <= named | set(re.findall(r"\.\./\.\./components/([\w-]+)", text))
    assert {path.name for path in (K8S / "overlays").iterdir()} <= SETS.keys()
    assert set(COMPONENTS) <= {
        name for row in re.findall(r"(?m)^\| (`.*?) \|", README) for name in re.findall("`(.*?)`", row)
    }


def test_every_manifest_is_strictly_valid(manifests: Sequence[Manifest]) -> None:
    """But those of other projects' kinds."""
    for manifest in manifests:
        if manifest["kind"] in CUSTOM:
            with pytest.raises(kubernetes_validate.SchemaNotFoundError):
                kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
        else:
            assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES


def test_strict_validation_catches_a_misspelt_field(base: Sequence[Manifest]) -> None:
    wrong = {**only(base, "PodDisruptionBudget", "gateway"), "spec": {"maxUnavailabl": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, KUBERNETES, strict=True)


def test_no_manifest_holds_a_secret_but_those_of_a_cluster_alone() -> None:
    """And the base names no namespace: an overlay does."""
    assert not [one for one in rendered("base") if "namespace" in one["metadata"]]
    for name in SETS.keys() - {"local"}:
        assert some(rendered(name), "Secret") == []
    for secret in some(rendered("local"), "Secret"):
        assert "stringData" not in secret
        for value in kept(secret).values():
            assert "of-this-cluster-alone" in value


def kept(secret: Manifest) -> dict[str, str]:
    """A Secret's values."""
    return {key: base64.b64decode(value).decode() for key, value in secret["data"].items()}


@pytest.mark.parametrize("name", ["local", "production", "edge"])
def test_an_overlay_has_its_namespace_which_admits_restricted_pods_alone(name: str) -> None:
    """Everything that has a namespace has that one."""
    (space,) = some(rendered(name), "Namespace")
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert {one["metadata"].get("namespace") for one in rendered(name) if one is not space} == {
        space["metadata"]["name"]
    }


def test_what_was_begun_can_end_before_the_platform_kills(manifests: Sequence[Manifest]) -> None:
    """deadline < hold's life < graceful stop, with what comes before and after it, ≤ grace < an autoscaler's steps."""
    gateway = only(manifests, "StatefulSet", "gateway")
    deadline_s = longest_stay_s(manifests)
    grace_s = pod(gateway)["terminationGracePeriodSeconds"]
    pre_stop_s = container(gateway)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert deadline_s < hold_life_s(deadline_s) < graceful_stop_s(deadline_s)
    assert pre_stop_s + graceful_stop_s(deadline_s) + EXIT_MARGIN_S <= grace_s
    assert (pre_stop_s, grace_s) == (PRE_STOP_S, PLATFORM_GRACE_S)
    for consumer in some(manifests, "Deployment"):
        assert SINK_SEND_S + EXIT_MARGIN_S < pod(consumer)["terminationGracePeriodSeconds"] < PLATFORM_GRACE_S
    for scaler in some(manifests, "HorizontalPodAutoscaler"):
        down = scaler["spec"]["behavior"]["scaleDown"]
        (policy,) = down["policies"]
        assert (policy["type"], policy["value"]) == ("Pods", 1) and policy["periodSeconds"] > PLATFORM_GRACE_S
        assert down["stabilizationWindowSeconds"] > PLATFORM_GRACE_S and "selectPolicy" not in down


def test_an_autoscaler_alone_says_how_many(manifests: Sequence[Manifest]) -> None:
    """What `kubectl apply` sends next does not undo what it did; and the gateways' never goes below three."""
    scaled = {
        (one["spec"]["scaleTargetRef"]["kind"], one["spec"]["scaleTargetRef"]["name"])
        for kind in ("HorizontalPodAutoscaler", "ScaledObject")
        for one in some(manifests, kind)
    }
    for workload in some(manifests, "Deployment") + some(manifests, "StatefulSet"):
        target = (workload["kind"], workload["metadata"]["name"])
        assert ("replicas" in workload["spec"]) == (target not in scaled), target
    for scaler in some(manifests, "HorizontalPodAutoscaler"):
        usual = only(rendered("base"), "StatefulSet", "gateway")["spec"]["replicas"]
        assert scaler["spec"]["minReplicas"] == usual == 3
        (metric,) = scaler["spec"]["metrics"]
        assert metric["pods"]["metric"]["name"] == "ghub_generations_in_flight"


@pytest.mark.parametrize("name", ["everything", "one-volume"])
def test_the_ingress_waits_longer_than_the_deadline_and_takes_every_body_that_the_gateway_takes(name: str) -> None:
    ingress = only(rendered(name), "Ingress", "gateway")
    notes = {note.split("/")[1]: value for note, value in ingress["metadata"]["annotations"].items()}
    assert float(notes["proxy-read-timeout"]) >= 2 * longest_deadline_s(rendered(name))
    assert float(notes["proxy-send-timeout"]) >= 2 * longest_deadline_s(rendered(name))
    assert notes["proxy-body-size"] == "1m"
    assert MAX_BODY_BYTES <= 1024 * 1024


def test_image_urls_lead_back_through_the_ingress_and_the_route() -> None:
    """If the gateway serves the images itself."""
    manifests = rendered("one-volume")
    ingress = only(manifests, "Ingress", "gateway")["spec"]
    (rule,) = ingress["rules"]
    assert ingress["tls"] == [{"hosts": [rule["host"]], "secretName": "gateway-tls"}]
    assert only(manifests, "HTTPRoute", "gateway")["spec"]["hostnames"] == [rule["host"]]
    data = only(manifests, "ConfigMap", "gateway-settings")["data"]
    assert data["GHUB_PUBLIC_URL"] == f"https://{rule['host']}{STORAGE_PATH}"
    local = only(rendered("local"), "ConfigMap", "gateway-settings")["data"]
    assert local["GHUB_PUBLIC_URL"] == f"http://localhost:8080{STORAGE_PATH}"


def test_liveness_needs_the_process_alone_and_readiness_asks_elsewhere(manifests: Sequence[Manifest]) -> None:
    """Both on the port that customers have no connections of."""
    for workload in ours(manifests):
        if workload["kind"] in ("StatefulSet", "Deployment"):
            asked = {
                probe: container(workload)[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")
            }
            assert asked["startup"] == asked["liveness"] == {"path": "/healthz", "port": "metrics"}
            assert asked["readiness"] == {"path": "/readyz", "port": "metrics"}


def test_ports_are_those_of_the_settings_and_of_the_image(manifests: Sequence[Manifest]) -> None:
    for workload in ours(manifests):
        if workload["kind"] in ("StatefulSet", "Deployment"):
            variables = configured(manifests, workload)
            wanted = {"http": variables["GHUB_PORT"], "metrics": variables["GHUB_METRICS_PORT"]}
            ports = {port["name"]: str(port["containerPort"]) for port in container(workload)["ports"]}
            assert ports == {key: wanted[key] for key in ports}
            assert set(wanted.values()) == set(re.findall(r"(?m)^EXPOSE (.*)$", DOCKERFILE)[0].split())
            assert variables["GHUB_HOST"] == "0.0.0.0"


def test_services_reach_pods_by_a_port_that_they_have(manifests: Sequence[Manifest]) -> None:
    for service in some(manifests, "Service"):
        selector = service["spec"]["selector"]
        (target,) = [one for one in workloads(manifests) if selector.items() <= labels(one).items()]
        ports = {port["name"]: port["containerPort"] for port in container(target)["ports"]}
        for port in service["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_every_argument_is_a_command_line_of_ghub(manifests: Sequence[Manifest]) -> None:
    """As the application's own parser reads it; and the image is ours, of this version, by its own entry point."""
    for workload in ours(manifests):
        one = container(workload)
        assert one["image"].rpartition("/")[2] == f"geekhub-gateway:{VERSION}"
        assert "command" not in one, "the image's own entry point"
        parse(one["args"])
    with pytest.raises(typer.Exit):
        parse(["fx", "fetch", "--help"])
    with pytest.raises(Exception, match="No such option"):
        parse(["verify", "--fast"])


def parse(arguments: list[str]) -> None:
    """Raise what `ghub` would say of wrong arguments, and do nothing."""
    known = dict(commands())
    words = next(tuple(arguments[:n]) for n in (1, 2) if tuple(arguments[:n]) in known)
    known[words].make_context(" ".join(words), arguments[len(words) :])


def test_every_variable_is_a_setting(manifests: Sequence[Manifest]) -> None:
    """But those of the smoke test, which is a customer and has no setting."""
    for workload in ours(manifests):
        names = {*configured(manifests, workload), *fixed(workload), *(name for name, _, _ in secrets(workload))}
        if labels(workload)["app.kubernetes.io/name"] == "smoke-test":
            assert names == {"OPENAI_BASE_URL", "OPENAI_API_KEY"}
        else:
            assert names <= FIELDS | OTEL


def test_the_settings_of_the_configmap_are_accepted(
    manifests: Sequence[Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = only(manifests, "ConfigMap", "gateway-settings")["data"]
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert Settings().region == given["GHUB_REGION"]


def test_no_setting_has_two_sources_and_none_has_nowhere_to_be_set(manifests: Sequence[Manifest]) -> None:
    """ConfigMap, Secret or manifest, the same one for every workload; the README has all that are in none of them."""
    sources: dict[str, set[str]] = {}
    for workload in ours(manifests):
        found = [(name, "ConfigMap") for name in configured(manifests, workload)]
        found += [(name, "manifest") for name in fixed(workload)]
        found += [(name, "Secret") for name, _, _ in secrets(workload)]
        assert len(found) == len(dict(found)), f"{workload['metadata']['name']} is given a variable twice"
        for name, source in found:
            sources.setdefault(name, set()).add(source)
    assert all(len(given) == 1 for given in sources.values()), sources
    optional = set(table("## Settings")) - OTEL
    everywhere = {*only(rendered("base"), "ConfigMap", "gateway-settings")["data"], "GHUB_STORAGE_URL"}
    everywhere |= {"GHUB_PUBLIC_URL", "GHUB_JOURNAL_DIR", "GHUB_SPOOL_DIR"}
    assert optional | SECRET | everywhere == FIELDS
    assert not optional & (SECRET | everywhere) and not SECRET & everywhere
    text = README.split("\n## Settings\n")[1].split("\n| setting")[0]
    assert set(re.findall(r"`(GHUB_\w+)`", text)) == everywhere


OF_COMMANDS = {"GHUB_BANXICO_TOKEN", "GHUB_OPENAI_ADMIN_KEY"}
"""Secrets that only a command reads: the gateway does not get them."""

NEEDED = {
    "consumer": {"GHUB_REDIS_URL", "GHUB_LEDGER_URL", "GHUB_SECRETS_KEY"},
    "migrate": {"GHUB_LEDGER_URL"},
    "verify": {"GHUB_REDIS_URL", "GHUB_LEDGER_URL", "GHUB_STORAGE_KEY", "GHUB_STORAGE_JWT_SECRET"},
    "fx-fetch": {"GHUB_LEDGER_URL", "GHUB_BANXICO_TOKEN"},
    "reconcile": {
        "GHUB_REDIS_URL", "GHUB_LEDGER_URL", "GHUB_STORAGE_KEY", "GHUB_STORAGE_JWT_SECRET", "GHUB_OPENAI_ADMIN_KEY",
        "GHUB_FAL_KEY",
    },
}  # fmt: skip
"""The secrets that each container reads, and no other; a gateway reads all that are not of commands."""


def test_every_secret_is_documented_and_nobody_reads_more_than_it_needs(manifests: Sequence[Manifest]) -> None:
    documented = table("## What must exist before")
    assert set(documented) == SECRET
    for workload in ours(manifests):
        name, kind = container(workload)["name"], labels(workload)["app.kubernetes.io/name"]
        if kind == "smoke-test":
            assert [*secrets(workload)] == [("OPENAI_API_KEY", "smoke-test", "OPENAI_API_KEY")]
            continue
        for variable, secret, key in secrets(workload):
            assert (secret, key) == ("gateway-secrets", variable)
            assert kind in documented[variable][0].split(", ")
        assert {key for _, _, key in secrets(workload)} == NEEDED.get(name, SECRET - OF_COMMANDS), name
        assert ("envFrom" in container(workload)) == (kind in {"gateway", "consumer", "finance"})
    if {"consumer", "finance"} <= {labels(one)["app.kubernetes.io/name"] for one in ours(manifests)}:
        for variable, (who, *_) in documented.items():
            readers = {
                labels(one)["app.kubernetes.io/name"]
                for one in ours(manifests)
                if variable in {key for _, _, key in secrets(one)}
            }
            assert readers == set(who.split(", ")), variable


def test_what_is_secret_in_the_settings_comes_from_a_secret(manifests: Sequence[Manifest]) -> None:
    assert not SECRET & set(only(manifests, "ConfigMap", "gateway-settings")["data"])
    gateway = only(manifests, "StatefulSet", "gateway")
    assert {variable for variable, _, _ in secrets(gateway)} == SECRET - OF_COMMANDS


def test_every_container_can_do_nothing_but_its_work(manifests: Sequence[Manifest]) -> None:
    """What the standard `restricted` asks for, and a root file system that nobody writes to."""
    for workload in workloads(manifests):
        spec, one = pod(workload), container(workload)
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True and context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
        volumes = {kind for volume in spec.get("volumes", []) for kind in volume if kind != "name"}
        assert volumes <= {"emptyDir", "configMap", "persistentVolumeClaim"}
        assert one["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert spec["automountServiceAccountToken"] is False
        assert one["resources"]["requests"]["memory"] == one["resources"]["limits"]["memory"]
        assert "cpu" not in one["resources"]["limits"], "a throttled gateway answers late"


def test_our_pods_are_the_images_user_with_an_account_without_rights(manifests: Sequence[Manifest]) -> None:
    user, group = re.findall(r"(?m)^USER (\d+):(\d+)$", DOCKERFILE)[-1]
    for workload in ours(manifests):
        spec = pod(workload)
        assert (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"]) == (int(user), int(group))
        account = only(manifests, "ServiceAccount", spec["serviceAccountName"])
        assert account["automountServiceAccountToken"] is False
        assert {"name": "tmp", "mountPath": "/tmp"} in container(workload)["volumeMounts"]
        (tmp,) = [volume for volume in spec["volumes"] if volume["name"] == "tmp"]
        assert "emptyDir" in tmp
    assert not {one["kind"] for one in manifests} & {"Role", "ClusterRole", "RoleBinding", "ClusterRoleBinding"}


def test_a_roll_out_and_a_drained_node_take_one_pod_at_a_time(manifests: Sequence[Manifest]) -> None:
    """Spread over nodes, and gateways over zones; also while a roll-out goes on."""
    for workload in ours(manifests):
        if workload["kind"] not in ("StatefulSet", "Deployment"):
            continue
        name = workload["metadata"]["name"]
        if workload["kind"] == "Deployment":
            assert workload["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
        else:
            assert workload["spec"]["updateStrategy"] == {"type": "RollingUpdate"}
        budget = only(manifests, "PodDisruptionBudget", name)["spec"]
        assert budget["maxUnavailable"] == 1 and budget["unhealthyPodEvictionPolicy"] == "AlwaysAllow"
        assert budget["selector"] == workload["spec"]["selector"]
        spread = pod(workload)["topologySpreadConstraints"]
        assert {term["topologyKey"] for term in spread} >= {"kubernetes.io/hostname"}
        assert name != "gateway" or {term["topologyKey"] for term in spread} >= {"topology.kubernetes.io/zone"}
        for term in spread:
            assert term["whenUnsatisfiable"] == "ScheduleAnyway" and len(term["matchLabelKeys"]) == 1
            assert term["labelSelector"] == workload["spec"]["selector"]


def test_a_job_is_named_for_the_version_so_that_apply_can_be_repeated(manifests: Sequence[Manifest]) -> None:
    for job in some(manifests, "Job"):
        assert job["metadata"]["name"] in {f"migrate-{DASHED}", f"smoke-test-{DASHED}"}
        assert job["spec"]["ttlSecondsAfterFinished"] > 0
    names = {f"`smoke-test-{DASHED}`", f"job/smoke-test-{DASHED}`"}
    assert any(name in README for name in names)


@pytest.mark.parametrize("name", ["one-volume", "local"])
def test_stores_of_one_machine_are_shared_on_one_volume_by_pods_of_one_node(name: str) -> None:
    """All of ours but the smoke test, which has nothing to do with it."""
    manifests = rendered(name)
    assert only(manifests, "PersistentVolumeClaim", "gateway-data")["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert only(manifests, "StatefulSet", "gateway")["spec"]["replicas"] == 1
    for workload in ours(manifests):
        mounts = {"name": "data", "mountPath": "/data"} in container(workload)["volumeMounts"]
        assert mounts == (labels(workload)["app.kubernetes.io/name"] != "smoke-test")
        if mounts:
            assert {"name": "data", "persistentVolumeClaim": {"claimName": "gateway-data"}} in pod(workload)["volumes"]
            (term,) = pod(workload)["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            assert term["topologyKey"] == "kubernetes.io/hostname"
            assert term["labelSelector"]["matchLabels"].items() <= labels(workload).items()


@pytest.mark.parametrize("name", ["base", "production", "edge"])
def test_without_the_volume_gateways_are_replicated_and_share_nothing(name: str) -> None:
    manifests = rendered(name)
    assert some(manifests, "PersistentVolumeClaim") == []
    for workload in workloads(manifests):
        assert {volume["name"] for volume in pod(workload)["volumes"]} <= {"tmp", "spool"}
        assert "affinity" not in pod(workload)


def test_each_gateway_has_a_journal_that_outlives_its_pod(manifests: Sequence[Manifest]) -> None:
    """A claim for each pod, kept when the pod or the set goes; and a spool with room for what the settings allow."""
    gateway = only(manifests, "StatefulSet", "gateway")
    (claim,) = gateway["spec"]["volumeClaimTemplates"]
    assert gateway["spec"]["persistentVolumeClaimRetentionPolicy"] == {"whenDeleted": "Retain", "whenScaled": "Retain"}
    mounts = {mount["name"]: mount["mountPath"] for mount in container(gateway)["volumeMounts"]}
    assert mounts[claim["metadata"]["name"]] == fixed(gateway)["GHUB_JOURNAL_DIR"]
    assert mounts["spool"] == fixed(gateway)["GHUB_SPOOL_DIR"]
    (spool,) = [volume for volume in pod(gateway)["volumes"] if volume["name"] == "spool"]
    assert int(spool["emptyDir"]["sizeLimit"].removesuffix("Mi")) > Settings().spool_mb
    headless = only(manifests, "Service", gateway["spec"]["serviceName"])["spec"]
    assert headless["clusterIP"] == "None"


def test_the_customers_host_shows_what_customers_call_and_nothing_else(manifests: Sequence[Manifest]) -> None:
    """The paths of Ingress and route against the gateway's own: no admin or finance API, no probe, no metrics."""
    for paths in [public_paths(one) for kind in ("Ingress", "HTTPRoute") for one in some(manifests, kind)]:
        rows = operations()
        public = {row.documented_path for row in rows if row.security == "key"} | {OPENAPI_PATH}
        stored = {row.documented_path for row in rows if row.id == "get_image"}
        if some(manifests, "PersistentVolumeClaim"):
            public |= stored
        assert [path for path in public if not shown(path, paths)] == []
        hidden = {row.documented_path for row in rows if row.security in ("admin", "finance")}
        hidden |= {"/", "/admin/v1", "/finance/v1", "/readyz", "/healthz", "/metrics", "/v1x", "/openapi.json/x"}
        assert [path for path in hidden if shown(path, paths)] == []


def public_paths(route: Manifest) -> list[tuple[str, bool]]:
    """The paths that an Ingress or a route leads to the gateway, and whether with all below them."""
    (rule,) = route["spec"]["rules"]
    if route["kind"] == "Ingress":
        for one in rule["http"]["paths"]:
            assert one["backend"] == {"service": {"name": "gateway", "port": {"name": "http"}}}
        return [(one["path"], one["pathType"] == "Prefix") for one in rule["http"]["paths"]]
    return [(one["path"]["value"], one["path"]["type"] == "PathPrefix") for one in rule["matches"]]


def shown(path: str, paths: list[tuple[str, bool]]) -> bool:
    """Whether one of them is this path or, by whole parts, above it."""
    return any(path == one or (below and path.startswith(f"{one}/")) for one, below in paths)


FINANCE = {
    "verify": ["verify"],
    "fx-fetch": ["fx", "fetch", "--as", "cronjob/fx-fetch"],
    "reconcile": ["reconcile", "--as", "cronjob/reconcile"],
}
"""What the clock starts: nothing that binds anybody, such as approving a rate, closing a month or a refund."""


@pytest.mark.parametrize("name", ["production", "everything", "one-volume"])
def test_finance_goes_by_the_clock_of_mexico_city(name: str) -> None:
    """One at a time, and one that was missed is not made up for hours later; a failed one is kept, to be seen."""
    jobs = some(rendered(name), "CronJob")
    assert {job["metadata"]["name"]: container(job)["args"] for job in jobs} == FINANCE
    assert {job["metadata"]["name"]: job["spec"]["schedule"] for job in jobs} == {
        "verify": "30 3 * * *",
        "fx-fetch": "0 20 25-31 * *",
        "reconcile": "0 6 6 * *",
    }
    for job in jobs:
        assert str(ZoneInfo(job["spec"]["timeZone"])) == "America/Mexico_City"
        assert job["spec"]["concurrencyPolicy"] == "Forbid"
        assert job["spec"]["startingDeadlineSeconds"] <= 3600
        assert job["spec"]["failedJobsHistoryLimit"] >= 1
        assert job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"] > 0
        assert pod(job)["restartPolicy"] == "Never"


def test_another_region_is_gateways_on_the_homes_stores() -> None:
    """One store and one CDN; no consumer, no migration and no finance; and a copy of it differs by its name alone."""
    home, edge = rendered("production"), rendered("edge")
    assert [one["metadata"]["name"] for one in workloads(edge)] == ["gateway"]
    assert {one["metadata"]["name"] for one in some(edge, "ServiceAccount")} == {"gateway"}
    assert {one["metadata"]["name"] for one in some(edge, "Service")} == {"gateway", "gateway-metrics"}
    here, there = (only(each, "ConfigMap", "gateway-settings")["data"] for each in (home, edge))
    assert {name for name in here if here[name] != there[name]} == {"GHUB_REGION"}
    for kind, name in (("HTTPRoute", "gateway"), ("StatefulSet", "gateway"), ("ExternalSecret", "gateway-secrets")):
        assert only(home, kind, name) == only(edge, kind, name)


def test_a_second_region_is_a_copy_of_its_folder(tmp_path: Path) -> None:
    """With another name of the region, and nothing else."""
    shutil.copytree(K8S, tmp_path / "k8s", symlinks=True)
    copy = tmp_path / "k8s/overlays/us-east"
    shutil.copytree(K8S / "overlays/edge", copy)
    text = (copy / "kustomization.yaml").read_text()
    (copy / "kustomization.yaml").write_text(text.replace("GHUB_REGION: us-south", "GHUB_REGION: us-east"))
    differ = [(a, b) for a, b in zip(rendered("edge"), kustomized(copy), strict=True) if a != b]
    ((first, second),) = differ
    assert first["kind"] == "ConfigMap"
    assert first["data"] | {"GHUB_REGION": "us-east"} == second["data"]


def test_files_are_mounted_as_a_folder_where_they_are_read() -> None:
    """The kubelet never replaces a file that is mounted by itself."""
    named = {"everything": {"GHUB_MODELS": "/etc/ghub/models.toml", "GHUB_PLANS": "/etc/ghub/plans.toml"}, "files": {}}
    for name, files in named.items():
        manifests = rendered(name)
        for workload in ours(manifests):
            variables = configured(manifests, workload)
            mounts = {mount["name"]: mount for mount in container(workload)["volumeMounts"]}
            assert ("files" in mounts) == bool(variables)
            if variables:
                assert mounts["files"] == {"name": "files", "mountPath": "/etc/ghub", "readOnly": True}
                assert {"name": "files", "configMap": {"name": "gateway-files"}} in pod(workload)["volumes"]
                assert {key: path for key, path in variables.items() if path.startswith("/etc/ghub/")} == files


def test_the_clusters_own_stores_can_be_seen_to_work() -> None:
    """Valkey and PostgreSQL of the overlay `local`: three probes each, data on a claim, no eviction, our addresses."""
    manifests = rendered("local")
    theirs = {one["metadata"]["name"]: one for one in workloads(manifests) if one not in ours(manifests)}
    assert theirs.keys() == {"valkey", "postgres"}
    for workload in theirs.values():
        one = container(workload)
        assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(one)
        (claim,) = workload["spec"]["volumeClaimTemplates"]
        assert claim["metadata"]["name"] in {mount["name"] for mount in one["volumeMounts"]}
        for _, secret, key in secrets(workload):
            assert key in only(manifests, "Secret", secret)["data"]
    arguments = container(theirs["valkey"])["args"]
    assert arguments[arguments.index("--maxmemory-policy") + 1] == "noeviction"
    password = kept(only(manifests, "Secret", "local-stores"))
    addresses = kept(only(manifests, "Secret", "gateway-secrets"))
    assert addresses["GHUB_REDIS_URL"] == f"redis://:{password['VALKEY_PASSWORD']}@valkey:6379/0"
    database = fixed(theirs["postgres"])
    assert addresses["GHUB_LEDGER_URL"] == (
        f"postgresql://{database['POSTGRES_USER']}:{password['POSTGRES_PASSWORD']}@postgres:5432/{database['POSTGRES_DB']}"
    )
    assert len(addresses["GHUB_JWT_SECRET"]) >= 32
    assert template(theirs["valkey"])["metadata"]["labels"]["app.kubernetes.io/part-of"] == "geekhub-gateway"


def test_only_these_run_our_image() -> None:
    """A new workload is one of them, or of somebody else's image."""
    for name in SETS:
        assert {labels(one)["app.kubernetes.io/name"] for one in workloads(rendered(name))} <= OURS | {
            "valkey",
            "postgres",
        }
        assert workload_of(rendered(name), "gateway") in ours(rendered(name))
