"""The Helm chart, by a real helm: linted, and held equal to what Kustomize makes of the same choice."""

import json
import re
import tarfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from config.catalogue import read_catalogue
from config.settings import PLATFORM_GRACE_S, PRE_STOP_S
from docs.alerts import ALERTS
from docs.prometheusrule import RUNBOOKS
from tests.kits.manifests import (
    CHART,
    COMPONENTS,
    KUBERNETES,
    OURS,
    ROOT,
    Manifest,
    charted,
    configured,
    container,
    helm,
    labels,
    only,
    pod,
    rendered,
    some,
    workload_of,
    workloads,
)

EQUAL = {
    "minimal": "base",
    "production": "production",
    "edge": "edge",
    "everything": "everything",
    "one-volume": "one-volume",
}
"""Files of values, and what they are the same as."""

HELMS_LABELS = {"app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "helm.sh/chart"}
CUSTOM = {"HTTPRoute", "ScaledObject", "ServiceMonitor", "PrometheusRule", "ExternalSecret"}

VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text())


def values(name: str) -> tuple[str, Path]:
    """The option that names a file of `ci/`."""
    return "--values", CHART / f"ci/{name}-values.yaml"


def plain(manifests: Sequence[Manifest]) -> dict[tuple[str, str], Manifest]:
    """Manifests by kind and name, without what either side must add: the namespace, and helm's own marks.

    The content of files is each installation's own: here it is left out of both.
    """
    found: dict[tuple[str, str], Manifest] = {}
    for one in manifests:
        kind, name = one["kind"], one["metadata"]["name"]
        if kind == "Namespace" or (kind, name) == ("ConfigMap", "gateway-files"):
            continue
        marks = {
            "labels": {key: text for key, text in one["metadata"]["labels"].items() if key not in HELMS_LABELS},
            "annotations": {
                key: text
                for key, text in one["metadata"].get("annotations", {}).items()
                if not key.startswith("helm.sh/")
            },
        }
        assert set(one["metadata"]) <= {"name", "namespace", *marks}
        found[kind, name] = {**one, "metadata": marks}
    return found


def test_every_file_of_values_is_compared_with_something() -> None:
    """A new one is a new line above."""
    assert {path.name.removesuffix("-values.yaml") for path in (CHART / "ci").iterdir()} == EQUAL.keys()


@pytest.mark.parametrize("name", EQUAL)
def test_the_chart_makes_what_kustomize_makes(name: str) -> None:
    """Object by object, whole."""
    chart, kustomize = plain(charted(*values(name))), plain(rendered(EQUAL[name]))
    assert chart.keys() == kustomize.keys()
    for key, one in kustomize.items():
        assert chart[key] == one, key


@pytest.mark.parametrize("name", EQUAL)
def test_helm_and_kubernetes_accept_it(name: str) -> None:
    """`helm lint --strict` has no warning; each object is strictly valid, helm's marks included."""
    done = helm("lint", "--strict", CHART, *values(name))
    assert done.returncode == 0 and "0 chart(s) failed" in done.stdout, done.stdout + done.stderr
    assert re.findall(r"\[(?:WARNING|ERROR)\].*", done.stdout) == []
    for manifest in charted(*values(name)):
        if manifest["kind"] not in CUSTOM:
            assert kubernetes_validate.validate(manifest, KUBERNETES, strict=True) == KUBERNETES
        marks = manifest["metadata"]["labels"]
        assert marks["app.kubernetes.io/managed-by"] == "Helm" and marks["app.kubernetes.io/instance"] == "ghub"


def test_the_drain_is_that_of_the_settings() -> None:
    """In every file of values; the rest of the arithmetic is that of Kustomize, which these are equal to."""
    assert all((model.deadline_s or 0) < PLATFORM_GRACE_S for model in read_catalogue(None).models.values())
    for name in EQUAL:
        gateway = only(charted(*values(name)), "StatefulSet", "gateway")
        assert pod(gateway)["terminationGracePeriodSeconds"] == PLATFORM_GRACE_S
        assert container(gateway)["lifecycle"]["preStop"]["sleep"]["seconds"] == PRE_STOP_S
    assert not [
        path for path, _ in leaves(VALUES) if re.search("grace|preStop|timeout|deadline(?!_)", path, re.IGNORECASE)
    ]


def leaves(values_: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield each value that an installation may set, with its path."""
    whole = path in {"settings", "gateway.resources", "consumer.resources", "migrate.resources", "ingress.annotations"}
    if isinstance(values_, dict) and values_ and not whole:
        for key, value in values_.items():
            yield from leaves(value, f"{path}.{key}".strip("."))
    else:
        yield path, values_


def test_the_readme_has_every_value_with_its_default() -> None:
    """In the order of values.yaml; a default of several lines in words."""
    rows = re.findall(r"(?m)^\| `([\w.]+)` \| (.*?) \| .*\|$", (CHART / "README.md").read_text())
    expected = list(leaves(VALUES))
    assert [path for path, _ in rows] == [path for path, _ in expected]
    for (path, said), (_, value) in zip(rows, expected, strict=True):
        if isinstance(value, str) and value:
            assert said == f"`{value}`", path
        elif not isinstance(value, (dict, list)) or not value:
            assert said == f"`{json.dumps(value)}`", path


def test_the_schema_knows_every_value_and_no_other() -> None:
    """A misspelt one is refused, and so is what cannot work."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    for path, _ in leaves(VALUES):
        node = schema
        for key in path.split("."):
            node = node["properties"][key]
    for wrong, why in (
        ("gateway.replica=3", "additional properties 'replica' not allowed"),
        ("gateway.replicas=0", "/gateway/replicas"),
        ("settings.GHUB_STORAGE_KEY=secret", "/settings/GHUB_STORAGE_KEY"),
        ("settings.GHUB_REDIS_URL=redis://x", "/settings/GHUB_REDIS_URL"),
        ("settings.REGION=x", "additional properties 'REGION' not allowed"),
        ("files.prices\\.toml=x", "additional properties 'prices.toml' not allowed"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("finance.verify.schedule=nightly", "/finance/verify/schedule"),
        ("oneVolume.enabled=true,hpa.enabled=true", "/hpa/enabled"),
        ("networkPolicy.redisPort=70000", "/networkPolicy/redisPort"),
        ("traces.endpoint=http://collector", "/traces/endpoint"),
        ("prometheusRule.runbookUrl=wiki", "/prometheusRule/runbookUrl"),
        ("ingress.host=https://api.example", "/ingress/host"),
        ("httpRoute.hostnames={api.example/v1}", "/httpRoute/hostnames/0"),
        ("commonLabels.app\\.kubernetes\\.io/name=x", "/commonLabels"),
        ("commonLabels.app\\.kubernetes\\.io/part-of=x", "/commonLabels"),
        ("commonLabels.geekhub\\.mx/reaches-public=true", "/commonLabels"),
        ("serviceMonitor.labels.app\\.kubernetes\\.io/part-of=x", "/serviceMonitor/labels"),
        ("extraEnv[0].name=GHUB_REGION,extraEnv[0].value=x", "/extraEnv/0/name"),
        ("gateway.extraEnv[0].name=GHUB_JOURNAL_DIR,gateway.extraEnv[0].value=x", "/gateway/extraEnv/0/name"),
    ):
        done = helm("template", "ghub", CHART, "--set", wrong)
        assert done.returncode == 1 and why in done.stderr, (wrong, done.stderr)
        assert done.stdout == ""


def test_a_variable_has_one_source() -> None:
    """What the chart sets or takes out of the Secret is refused among further variables; a key of your own is not."""
    manifests = charted(*values("everything"))
    names = {entry["name"] for one in workloads(manifests) for entry in container(one)["env"]}
    names |= set(only(manifests, "ConfigMap", "gateway-settings")["data"])
    ours_ = {name for name in names if name.startswith("GHUB_")}
    assert {"GHUB_REDIS_URL", "GHUB_BANXICO_TOKEN", "GHUB_JWT_SECRET", "GHUB_SPOOL_DIR", "GHUB_PORT"} <= ours_
    schema = json.loads((CHART / "values.schema.json").read_text())
    refused = schema["definitions"]["variables"]["items"]["properties"]["name"]["not"]["anyOf"]
    assert set(refused[0]["enum"]) == {name for name in ours_ if re.search("(_KEY|_SECRET|_TOKEN)$", name)}
    for name in sorted(ours_):
        done = helm("template", "ghub", CHART, "--set", f"consumer.extraEnv[0].name={name}")
        assert done.returncode == 1 and "/consumer/extraEnv/0/name" in done.stderr, name
    mine = charted("--set", "gateway.extraEnv[0].name=GHUB_ACME_KEY,gateway.extraEnv[0].value=x")
    assert "GHUB_ACME_KEY" in [entry["name"] for entry in container(workload_of(mine, "gateway"))["env"]]


def test_a_text_that_looks_like_a_number_stays_a_text(tmp_path: Path) -> None:
    """Or like a truth. Names of Kubernetes may: `123`, `1e3`, `true`, `null`."""
    mine = {
        "commonLabels": {"team": "123"},
        "existingSecret": "1e3",
        "image": {"repository": "true", "tag": "1.0"},
        "imagePullSecrets": [{"name": "123"}],
        "gateway": {"journal": {"storageClassName": "1e3"}, "nodeSelector": {"zone": "1"}},
        "networkPolicy": {"scraperNamespace": "true"},
        "traces": {"enabled": True, "collectorNamespace": "0"},
        "ingress": {"enabled": True, "className": "no", "host": "1.5", "tlsSecret": "10", "callersNamespace": "null"},
        "httpRoute": {"enabled": True, "hostnames": ["2.5"], "callersNamespace": "123"},
        "externalSecret": {"enabled": True, "store": "1", "key": "2"},
        "oneVolume": {"enabled": True, "storageClassName": "off"},
        "smokeTest": {"enabled": True, "existingSecret": "0x1f"},
        "finance": {"enabled": True},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(mine))  # which quotes every text
    done = helm("template", "1e3", CHART, "--namespace", "123", "--values", file)
    assert done.returncode == 0, done.stderr
    manifests = [one for one in yaml.safe_load_all(done.stdout) if one]
    for one in manifests:
        if one["kind"] not in CUSTOM:
            assert kubernetes_validate.validate(one, KUBERNETES, strict=True) == KUBERNETES
        assert all(isinstance(text, str) for text in one["metadata"]["labels"].values())
    policies = {one["metadata"]["name"]: one["spec"] for one in some(manifests, "NetworkPolicy")}
    found = {
        rule["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
        for name in ("metrics-callers", "ingress-callers", "httproute-callers")
        for rule in policies[name]["ingress"]
    }
    assert found == {"true", "null", "123"}
    (secret,) = some(manifests, "ExternalSecret")
    assert (secret["metadata"]["name"], secret["spec"]["target"]["name"]) == ("1e3", "1e3")
    assert secret["spec"]["secretStoreRef"]["name"] == "1"
    assert secret["spec"]["dataFrom"] == [{"extract": {"key": "2"}}]
    assert some(manifests, "HTTPRoute")[0]["spec"]["hostnames"] == ["2.5"]


def test_it_brings_no_database_and_no_secret() -> None:
    """Nor an image but ours; and depends on no chart."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert "dependencies" not in chart and not (CHART / "charts").exists()
    for name in EQUAL:
        manifests = charted(*values(name))
        assert some(manifests, "Secret") == []
        assert {labels(one)["app.kubernetes.io/name"] for one in workloads(manifests)} <= OURS


def test_its_versions_are_the_projects() -> None:
    """And its changes can be read by Artifact Hub."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["name"], chart["version"], chart["appVersion"]) == ("geekhub-gateway", version, version)
    kinds = {"added", "changed", "deprecated", "removed", "fixed", "security"}
    changes = yaml.safe_load(chart["annotations"]["artifacthub.io/changes"])
    assert changes and all(one["kind"] in kinds and one["description"] for one in changes)


def test_what_an_installation_adds_is_in_every_pod_that_it_is_for(tmp_path: Path) -> None:
    """Labels, registry, pull secrets, another Secret, more variables, files; and selectors stay as they are."""
    mine = {
        "image": {"repository": "registry.example/ghub", "tag": "9.9.9-rc.1", "pullPolicy": "Always"},
        "imagePullSecrets": [{"name": "registry"}],
        "commonLabels": {"team": "images"},
        "existingSecret": "other-secrets",
        "extraEnv": [{"name": "AWS_REGION", "value": "us-east-1"}],
        "settings": {"GHUB_REGION": "us-south", "GHUB_HOST": "::"},
        "consumer": {"reachesPublic": True, "extraEnv": [{"name": "OPENMETER_TOKEN", "value": "x"}]},
        "files": {"sinks.toml": "[[sinks]]\n"},
        "gateway": {"processes": 4},
        "finance": {"enabled": True},
        "smokeTest": {"enabled": True},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(mine))
    manifests = charted("--values", file)
    assert all(one["metadata"]["labels"]["team"] == "images" for one in manifests)
    for workload in workloads(manifests):
        name, one = labels(workload)["app.kubernetes.io/name"], container(workload)
        assert labels(workload)["team"] == "images"
        assert "team" not in workload["spec"].get("selector", {}).get("matchLabels", {})
        assert (one["image"], one["imagePullPolicy"]) == ("registry.example/ghub:9.9.9-rc.1", "Always")
        assert pod(workload)["imagePullSecrets"] == [{"name": "registry"}]
        names = [entry["name"] for entry in one["env"]]
        assert ("AWS_REGION" in names) == (name not in {"migrate", "smoke-test"})
        assert ("OPENMETER_TOKEN" in names) == (name == "consumer")
        secrets = {entry["valueFrom"]["secretKeyRef"]["name"] for entry in one["env"] if "valueFrom" in entry}
        assert secrets == {"smoke-test" if name == "smoke-test" else "other-secrets"}
        assert kubernetes_validate.validate(workload, KUBERNETES, strict=True) == KUBERNETES
    assert container(workload_of(manifests, "gateway"))["args"] == ["serve", "--processes", "4"]
    assert labels(workload_of(manifests, "consumer"))["geekhub.mx/reaches-public"] == "true"
    assert only(manifests, "Job", "migrate-9-9-9-rc-1") and only(manifests, "Job", "smoke-test-9-9-9-rc-1")
    assert only(manifests, "ConfigMap", "gateway-files")["data"] == {"sinks.toml": "[[sinks]]\n"}
    given = configured(manifests, workload_of(manifests, "consumer"))
    assert (given["GHUB_SINKS"], given["GHUB_REGION"], given["GHUB_HOST"]) == ("/etc/ghub/sinks.toml", "us-south", "::")


def test_the_runbooks_of_every_alert_are_where_an_installation_publishes_them() -> None:
    """The default is what Kustomize has; another address takes its place in each link, and nowhere else."""
    assert VALUES["prometheusRule"]["runbookUrl"] == RUNBOOKS
    theirs = "https://wiki.acme.example/gateway"
    options = *values("production"), "--set", f"prometheusRule.runbookUrl={theirs}"
    usual, changed = (
        only(charted(*one), "PrometheusRule", "geekhub-gateway") for one in (values("production"), options)
    )
    links = re.findall(r"https?://[^#\s\"]+#\w+", json.dumps(changed))
    assert len(links) == len(ALERTS) and all(link.startswith(f"{theirs}#") for link in links)
    assert json.loads(json.dumps(changed).replace(f"{theirs}#", f"{RUNBOOKS}#")) == usual


def test_the_packed_chart_is_whole(tmp_path: Path) -> None:
    """Rules and dashboard, which Kustomize has too, are in it as files; and it renders as the folder does."""
    done = helm("package", CHART, "--destination", tmp_path)
    assert done.returncode == 0, done.stderr
    (packed,) = tmp_path.glob("*.tgz")
    unpacked = helm("template", "ghub", packed, "--namespace", "geekhub", *values("production"))
    assert unpacked.returncode == 0, unpacked.stderr
    there = plain([one for one in yaml.safe_load_all(unpacked.stdout) if one])
    assert there == plain(charted(*values("production")))
    with tarfile.open(packed) as files:
        folders = {one.name.split("/")[2] for one in files if one.name.startswith("geekhub-gateway/files/")}
    assert folders == {"prometheusrule", "dashboard"} & set(COMPONENTS)
