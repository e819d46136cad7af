"""The examples of k8s/README.md: each patch changes what it says, and each policy is one."""

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from config.catalogue import read_seed_rates
from docs.alerts import ALERTS
from tests.kits.manifests import (
    ALONE,
    COMPONENTS,
    K8S,
    KUBERNETES,
    Manifest,
    container,
    kustomized,
    labels,
    only,
    ours,
    rendered,
    secrets,
    selects,
    some,
)

README = (K8S / "README.md").read_text()
BLOCKS: list[Any] = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)]
PATCHES: list[Manifest] = [patch for block in BLOCKS for patch in block.get("patches", [])]
POLICIES: list[Manifest] = [block for block in BLOCKS if block.get("kind") == "NetworkPolicy"]
EVERYTHING = [name for name in COMPONENTS if name not in ALONE]
CUSTOM = {"HTTPRoute", "ScaledObject", "ServiceMonitor", "PrometheusRule", "ExternalSecret"}


def over(folder: Path, **more: Any) -> tuple[Manifest, ...]:
    """Render everything with more of a kustomization, whose files are in `folder`."""
    k8s = os.path.relpath(K8S, folder.resolve())
    components = [f"{k8s}/components/{name}" for name in EVERYTHING]
    whole = {"resources": [f"{k8s}/base", *more.pop("resources", [])], "components": components, **more}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(whole))
    return kustomized(folder)


def changed(manifests: Sequence[Manifest]) -> Iterator[Manifest]:
    """Yield those that are not as they are without it."""
    for before, after in zip(rendered("everything"), manifests, strict=True):
        if before != after:
            yield after


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: " ".join(patch["target"].values()))
def test_a_patch_changes_all_that_it_names_and_stays_valid(patch: Manifest, tmp_path: Path) -> None:
    """Kustomize says nothing of a patch that meets nobody."""
    found = list(changed(over(tmp_path, patches=[patch])))
    target = patch["target"]
    assert {one["kind"] for one in found} == set(target["kind"].strip("()").split("|"))
    for one in found:
        assert re.fullmatch(target.get("name", ".*"), one["metadata"]["name"])
        if one["kind"] not in CUSTOM:
            assert kubernetes_validate.validate(one, KUBERNETES, strict=True) == KUBERNETES


def test_the_authorities_are_where_an_address_can_name_them(tmp_path: Path) -> None:
    """Every workload that has an address of Redis or PostgreSQL has the file, outside of a folder that is read-only."""
    manifests = over(tmp_path, patches=[patch for patch in PATCHES if "database-ca" in patch["patch"]])
    for workload in ours(manifests):
        mounts = [mount["mountPath"] for mount in container(workload)["volumeMounts"]]
        addresses = {variable for variable, _, _ in secrets(workload)} & {"GHUB_REDIS_URL", "GHUB_LEDGER_URL"}
        assert ("/etc/ghub-ca" in mounts) == bool(addresses), workload["metadata"]["name"]
        assert "/etc/ghub/ca" not in mounts


def test_the_replacement_moves_every_runbook(tmp_path: Path) -> None:
    """And the ConfigMap that it reads is applied nowhere."""
    (block,) = [block for block in BLOCKS if "replacements" in block]
    theirs = "https://wiki.acme.example/gateway/runbooks.md"
    source = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "runbooks", "annotations": {"config.kubernetes.io/local-config": "true"}},
        "data": {"url": theirs},
    }
    (tmp_path / "runbooks.yaml").write_text(yaml.safe_dump(source))
    manifests = over(tmp_path, **block)
    (rule,) = changed(manifests)
    links = [one["annotations"]["runbook_url"] for group in rule["spec"]["groups"] for one in group["rules"]]
    assert links == [f"{theirs}#{alert.anchor}" for alert in ALERTS]


def test_each_policy_is_valid_and_means_pods_of_ours() -> None:
    """Strictly."""
    assert len(POLICIES) >= 3
    for policy in POLICIES:
        assert kubernetes_validate.validate(policy, KUBERNETES, strict=True) == KUBERNETES
        meant = [one for one in ours(rendered("everything")) if selects(policy["spec"]["podSelector"], labels(one))]
        assert meant, policy["metadata"]["name"]


def test_files_of_ones_own_come_as_the_readme_says(tmp_path: Path) -> None:
    """The overlay's ConfigMap, under its own name, and the setting of a file beside it."""
    (block,) = [block for block in BLOCKS if "configMapGenerator" in block]
    shutil.copytree(K8S, tmp_path / "k8s", symlinks=True)
    overlay = tmp_path / "k8s/overlays/mine"
    overlay.mkdir()
    (fx,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    (overlay / "fx.toml").write_text(fx)
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump({"resources": ["../../base"], **block}))
    manifests = kustomized(overlay)
    assert only(manifests, "ConfigMap", "gateway-files")["data"] == {"fx.toml": fx}
    settings = only(manifests, "ConfigMap", "gateway-settings")["data"]
    assert {name: path for name, path in settings.items() if path.startswith("/etc/ghub/")} == {
        "GHUB_FX": "/etc/ghub/fx.toml"
    }


def test_the_example_of_a_first_rate_is_read(tmp_path: Path) -> None:
    """By the code that reads `GHUB_FX`."""
    file = tmp_path / "fx.toml"
    file.write_text(*re.findall(r"```toml\n(.*?)```", README, re.DOTALL))
    (rate,) = read_seed_rates(file)
    assert str(rate.mxn_per_usd) in README


def test_the_rule_of_the_adapter_names_the_metric_of_the_autoscaler() -> None:
    """And gives it to each pod."""
    (rule,) = [rule for block in BLOCKS if "rules" in block for rule in block["rules"]["custom"]]
    (scaler,) = some(rendered("everything"), "HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    assert rule["seriesQuery"].startswith(metric["pods"]["metric"]["name"] + "{")
    assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
