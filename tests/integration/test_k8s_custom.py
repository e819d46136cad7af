"""What `k8s/` says in other projects' kinds, of which no validator here has a schema; and who reaches whom."""

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import yaml

from config.catalogue import read_catalogue
from config.settings import Settings
from tests.kits.manifests import (
    K8S,
    SETS,
    Manifest,
    configured,
    labels,
    only,
    ours,
    pod,
    rendered,
    secrets,
    selects,
    some,
    workloads,
)
from tests.kits.programs import program


@pytest.fixture(params=SETS)
def manifests(request: pytest.FixtureRequest) -> Sequence[Manifest]:
    """Each of what is rendered, in turn."""
    return rendered(request.param)


@pytest.mark.parametrize("name", ["production", "edge", "everything", "one-volume"])
def test_the_route_waits_longer_than_any_order_takes(name: str) -> None:
    """Twice as long, in both of its time-outs: Envoy's own 15 s would cut a reply that has been charged. No retries."""
    route = only(rendered(name), "HTTPRoute", "gateway")
    assert route["apiVersion"] == "gateway.networking.k8s.io/v1"
    spec = route["spec"]
    assert set(spec) == {"parentRefs", "hostnames", "rules"}
    (rule,) = spec["rules"]
    assert set(rule) == {"matches", "timeouts", "backendRefs"}
    longest_s = max(Settings().deadline_s, *(model.deadline_s or 0.0 for model in read_catalogue(None).models.values()))
    request, backend = (seconds(rule["timeouts"][which]) for which in ("request", "backendRequest"))
    assert request >= backend >= 2 * longest_s
    service = only(rendered(name), "Service", "gateway")
    assert rule["backendRefs"] == [{"name": "gateway", "port": service["spec"]["ports"][0]["port"]}]
    (parent,) = spec["parentRefs"]
    callers = only(rendered(name), "NetworkPolicy", "httproute-callers")["spec"]
    (source,) = callers["ingress"][0]["from"]
    assert source["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": parent["namespace"]}


def seconds(duration: str) -> int:
    """A duration as the Gateway API writes it, GEP-2257: here in seconds alone."""
    found = re.fullmatch(r"([0-9]{1,5})s", duration)
    assert found is not None
    return int(found[1])


def test_consumers_are_scaled_by_one_number_and_never_to_none() -> None:
    """And not slower than the scraper looks; down by one at a time, slower than a consumer ends."""
    production = rendered("production")
    scaled = only(production, "ScaledObject", "consumer")
    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    spec = scaled["spec"]
    assert only(production, spec["scaleTargetRef"]["kind"], spec["scaleTargetRef"]["name"])
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"] and "idleReplicaCount" not in spec
    assert spec["fallback"]["replicas"] >= 1
    down = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
    assert down["policies"] == [{"type": "Pods", "value": 1, "periodSeconds": 180}]
    grace_s = pod(only(production, "Deployment", "consumer"))["terminationGracePeriodSeconds"]
    assert min(down["stabilizationWindowSeconds"], down["policies"][0]["periodSeconds"]) > grace_s
    (trigger,) = spec["triggers"]
    assert trigger["type"] == "prometheus"
    assert {type(value) for value in trigger["metadata"].values()} == {str}, "KEDA takes texts alone"
    (space,) = some(production, "Namespace")
    assert set(re.findall(r'namespace="([^"]*)"', trigger["metadata"]["query"])) == {space["metadata"]["name"]}


def test_the_number_is_what_waits_once_however_many_consumers_report_it(tmp_path: Path) -> None:
    """By Prometheus' own evaluation: two consumers that see the same, with two sinks and with none."""
    (trigger,) = only(rendered("production"), "ScaledObject", "consumer")["spec"]["triggers"]
    query, threshold = trigger["metadata"]["query"], int(trigger["metadata"]["threshold"])
    waiting = [series("ghub_events_waiting", pod, "", 6000) for pod in ("a", "b")]
    left = {"x": 7, "y": 20}
    sinks = [series("ghub_sink_pending", pod, f',sink="{sink}"', left[sink]) for pod in ("a", "b") for sink in left]
    other = [series("ghub_events_waiting", "z", "", 99_999).replace("geekhub", "elsewhere")]
    assert threshold < 6000
    assert_gives(tmp_path, query, [*waiting, *other], 6000)
    assert_gives(tmp_path, query, [*waiting, *sinks, *other], 6027)
    assert_gives(tmp_path, query, [*sinks, *other], None)  # no number, and so KEDA's fallback, and no zero


def series(name: str, pod: str, more: str, value: int) -> str:
    """One series that a consumer reports."""
    return f'{name}{{namespace="geekhub",pod="{pod}"{more}}} {value}'


def assert_gives(folder: Path, query: str, given: list[str], expected: float | None) -> None:
    """Check what Prometheus makes of a query over these series; None is nothing at all."""
    inputs = [{"series": one.rpartition(" ")[0], "values": f"{one.rpartition(' ')[2]}x4"} for one in given]
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    asked = {"expr": query, "eval_time": "30s", "exp_samples": samples}
    test = {"interval": "15s", "input_series": inputs, "promql_expr_test": [asked]}
    file = folder / "query.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "15s", "tests": [test]}))
    done = subprocess.run([program("promtool"), "test", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_scraper_finds_every_pod_by_its_service(manifests: Sequence[Manifest]) -> None:
    """One monitor for both: by the Services' labels and the port's name, of which each workload has one."""
    for monitor in some(manifests, "ServiceMonitor"):
        assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
        (endpoint,) = monitor["spec"]["endpoints"]
        assert (endpoint["port"], endpoint["path"]) == ("metrics", "/metrics")
        assert seconds(endpoint["scrapeTimeout"]) < seconds(endpoint["interval"]) <= 15
        found = {
            service["metadata"]["name"]
            for service in some(manifests, "Service")
            if selects(monitor["spec"]["selector"], service["metadata"]["labels"])
            and endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
        }
        long = {one["metadata"]["name"] for one in ours(manifests) if one["kind"] in ("Deployment", "StatefulSet")}
        assert found == {f"{name}-metrics" for name in long}


def test_the_rules_are_prometheus_own(tmp_path: Path) -> None:
    """Accepted by promtool, each alert with a severity and a sentence."""
    rule = only(rendered("everything"), "PrometheusRule", "geekhub-gateway")
    assert rule["apiVersion"] == "monitoring.coreos.com/v1" and set(rule["spec"]) == {"groups"}
    file = tmp_path / "rules.yaml"
    file.write_text(yaml.safe_dump(rule["spec"]))
    done = subprocess.run([program("promtool"), "check", "rules", file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    alerts = [one for group in rule["spec"]["groups"] for one in group["rules"] if "alert" in one]
    assert alerts
    for alert in alerts:
        assert alert["labels"]["severity"] and alert["annotations"]["summary"], alert["alert"]


def test_the_secret_that_is_fetched_is_the_one_that_pods_read() -> None:
    """All of its keys under their own names."""
    for name in ("production", "edge", "everything"):
        fetched = only(rendered(name), "ExternalSecret", "gateway-secrets")
        assert fetched["apiVersion"] == "external-secrets.io/v1"
        spec = fetched["spec"]
        assert set(spec) == {"refreshInterval", "secretStoreRef", "target", "dataFrom"}
        assert spec["secretStoreRef"]["kind"] == "ClusterSecretStore"
        read = {secret for one in ours(rendered(name)) for _, secret, _ in secrets(one)} - {"smoke-test"}
        assert {spec["target"]["name"]} == read
        assert [set(source) for source in spec["dataFrom"]] == [{"extract"}]


# --- who reaches whom -------------------------------------------------------------------------------------------------


def policies(manifests: Sequence[Manifest], workload: Manifest) -> list[Manifest]:
    """The policies that mean a workload's pods."""
    found = [one["spec"] for one in some(manifests, "NetworkPolicy")]
    return [one for one in found if selects(one["podSelector"], labels(workload))]


def source_of(rule: Manifest) -> str:
    """The one namespace that a rule lets in, by the label that every namespace has; or the pods of ours, by theirs."""
    (source,) = rule["from"]
    ((which, selector),) = source.items()
    wanted = dict(selector["matchLabels"])
    if which == "namespaceSelector":
        assert set(wanted) == {"kubernetes.io/metadata.name"}
        return str(wanted["kubernetes.io/metadata.name"])
    assert which == "podSelector" and wanted.pop("app.kubernetes.io/part-of") == "geekhub-gateway"
    ((_, name),) = wanted.items()
    return str(name if name != "true" else next(iter(wanted)))


def test_nothing_goes_in_but_from_the_callers_and_the_scraper(manifests: Sequence[Manifest]) -> None:
    """Whatever is not named is denied; and a gateway that nobody may call is one whose overlay has no route yet."""
    kinds = {(one["kind"], one["metadata"]["name"]) for one in manifests}
    callers = {
        *([("http", "envoy-gateway-system")] if ("HTTPRoute", "gateway") in kinds else []),
        *([("http", "ingress-nginx")] if ("Ingress", "gateway") in kinds else []),
        *([("http", "smoke-test")] if ("ServiceAccount", "smoke-test") in kinds else []),
    }
    wanted = {
        "gateway": {("metrics", "monitoring"), *callers},
        "consumer": {("metrics", "monitoring")},
        "valkey": {("redis", "geekhub.mx/reaches-redis")},
        "postgres": {("postgres", "geekhub.mx/reaches-ledger")},
    }
    for workload in workloads(manifests):
        meant = policies(manifests, workload)
        assert {"podSelector", "policyTypes"} in [set(one) for one in meant], "the default is to deny"
        assert {side for one in meant for side in one["policyTypes"]} == {"Ingress", "Egress"}
        inward = [rule for one in meant for rule in one.get("ingress", [])]
        found = {(port["port"], source_of(rule)) for rule in inward for port in rule["ports"]}
        assert found == wanted.get(labels(workload)["app.kubernetes.io/name"], set()), workload["metadata"]["name"]


def test_each_pod_reaches_what_its_secrets_lead_to_and_nothing_else(manifests: Sequence[Manifest]) -> None:
    """Names; Redis and the ledger by their addresses; public addresses if it calls others than ours."""
    for workload in workloads(manifests):
        name = labels(workload)["app.kubernetes.io/name"]
        addresses = {variable for variable, _, _ in secrets(workload)}
        wanted: set[int | str] = {53}
        wanted |= {6379} if "GHUB_REDIS_URL" in addresses else set()
        wanted |= {5432} if "GHUB_LEDGER_URL" in addresses else set()
        wanted |= {443} if name in {"gateway", "consumer", "finance"} else set()
        wanted |= {"http"} if name == "smoke-test" else set()
        collector = urlsplit(configured(manifests, workload).get("OTEL_EXPORTER_OTLP_ENDPOINT", ""))
        wanted |= {collector.port} if collector.port and name in {"gateway", "consumer"} else set()
        outward = [rule for one in policies(manifests, workload) for rule in one.get("egress", [])]
        assert {port["port"] for rule in outward for port in rule["ports"]} == wanted, workload["metadata"]["name"]
        for rule in outward:
            if {port["port"] for port in rule["ports"]} == {443}:
                (four, six) = [to["ipBlock"] for to in rule["to"]]
                assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"} <= set(four["except"])
                assert {"fc00::/7", "fe80::/10"} <= set(six["except"])


def test_the_readme_says_what_each_label_opens(manifests: Sequence[Manifest]) -> None:
    """Each of them has its row."""
    text = (K8S / "README.md").read_text()
    opened = {key for one in workloads(manifests) for key in labels(one) if key.startswith("geekhub.mx/")}
    assert all(f"| `{key}` |" in text for key in opened)
