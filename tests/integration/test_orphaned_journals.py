"""Journals whose gateway is gone: counted by the pod that they were in, and replayed by a Job that is made for it."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml
from prometheus_client import REGISTRY

from metering.clock import utc_now
from metering.journal.orphaned import OrphanWatch, orphans
from metering.wallet.presence import Presence
from proxy.cli.replay_job import replay_job
from tests.kits.books import open_books
from tests.kits.programs import program

ROOT = Path(__file__).parents[2]


def counted() -> dict[str, float]:
    """The metric, by pod."""
    (metric,) = [one for one in REGISTRY.collect() if one.name == "ghub_journals_orphaned"]
    return {sample.labels["pod"]: sample.value for sample in metric.samples}


@pytest.mark.rule(15)
async def test_a_journal_without_a_gateway_is_named_by_its_pod_until_it_is_closed(
    redis_url: str, tmp_path: Path
) -> None:
    async with open_books(redis_url, tmp_path / "l.db") as books:
        presence = Presence(books.redis)
        watch = OrphanWatch(books.ledger, presence)
        alive, *gone = [uuid4() for _ in range(4)]
        for incarnation, host in zip((alive, *gone), ("gateway-0", "gateway-2", "gateway-2", "gateway-3"), strict=True):
            await books.ledger.open_incarnation(incarnation, utc_now(), host)
        await presence.beat(alive, 0)
        await watch.look()
        assert counted() == {"gateway-2": 2.0, "gateway-3": 1.0}
        assert [(one.incarnation, one.host) for one in await orphans(books.ledger, presence)] == [
            (one, host) for one, host in zip(gone, ("gateway-2", "gateway-2", "gateway-3"), strict=True)
        ]
        await books.ledger.close_incarnation(gone[2], 0, utc_now())
        await presence.beat(gone[0], 0)
        await watch.look()
        assert counted() == {"gateway-2": 1.0}
        await books.ledger.close_incarnation(gone[1], 0, utc_now())
        await watch.look()
        assert counted() == {}


def made(pod: str, *options: str) -> subprocess.CompletedProcess[str]:
    image = "registry.example/geekhub-gateway:0.1.0"
    command = [sys.executable, "-m", "proxy.cli", "journal", "job", pod, "--image", image, *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={})


def test_the_job_is_valid_and_agrees_with_the_manifests() -> None:
    """Strictly valid, the gateways' own pod where it matters, and known to the NetworkPolicies."""
    done = made("gateway-3")
    assert (done.returncode, done.stderr) == (0, "")
    job = json.loads(done.stdout)
    kubernetes_validate.validate(job, "1.34", strict=True)
    # `kubectl create` gives each one a name of its own: one that failed, or is a day old, is in nobody's way.
    assert job["metadata"]["generateName"] == "replay-gateway-3-" and "name" not in job["metadata"]
    rendered = subprocess.run([program("kubectl"), "kustomize", ROOT / "k8s/base"], capture_output=True, check=True)
    manifests = list(yaml.safe_load_all(rendered.stdout))
    (gateway,) = [one for one in manifests if one["kind"] == "StatefulSet" and one["metadata"]["name"] == "gateway"]
    (template,) = gateway["spec"]["volumeClaimTemplates"]
    ours, theirs = job["spec"]["template"]["spec"], gateway["spec"]["template"]["spec"]
    claim = ours["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim == f"{template['metadata']['name']}-{gateway['metadata']['name']}-3"
    for one in ("serviceAccountName", "automountServiceAccountToken", "enableServiceLinks", "securityContext"):
        assert ours[one] == theirs[one], one
    assert ours["containers"][0]["securityContext"] == theirs["containers"][0]["securityContext"]
    environment = {one["name"]: one for one in theirs["containers"][0]["env"]}
    assert all(one == environment[one["name"]] for one in ours["containers"][0]["env"])
    labels = job["spec"]["template"]["metadata"]["labels"]
    open_to = [one for one in manifests if one["kind"] == "NetworkPolicy" and _selects(one, labels)]
    rules = [rule for policy in open_to for rule in policy["spec"].get("egress", [])]
    ports = {port["port"] for rule in rules for port in rule.get("ports", [])}
    assert {53, 6379, 5432} <= ports, "it may reach names, Redis and PostgreSQL"


def _selects(policy: dict[str, Any], labels: dict[str, str]) -> bool:
    selector = policy["spec"]["podSelector"]
    expressions = [(one["key"], one["values"]) for one in selector.get("matchExpressions", [])]
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(key) in values for key, values in expressions
    )


def test_the_job_reads_the_secrets_of_a_chart() -> None:
    """That of the gateways, and that of the image's registry."""
    done = made("gateway-3", "--secret", "acme", "--pull-secret", "registry")
    job = json.loads(done.stdout)
    kubernetes_validate.validate(job, "1.34", strict=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert {one["valueFrom"]["secretKeyRef"]["name"] for one in container["env"]} == {"acme"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert "imagePullSecrets" not in replay_job("gateway-3", "x")["spec"]["template"]["spec"]


def test_the_longest_name_of_a_pod_leaves_room_for_the_jobs() -> None:
    """Kubernetes adds five characters to what it generates."""
    pod = "a" * 42
    assert made(pod).returncode == 0 and made(f"{pod}a").returncode == 2
    assert len(replay_job(pod, "x")["metadata"]["generateName"]) + 5 <= 63


def test_the_job_runs_what_a_person_would() -> None:
    arguments = replay_job("gateway-3", "x")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments == ["journal", "replay", "/journal", "--as", "job:gateway-3"]


@pytest.mark.parametrize("pod", ["Gateway_3", "a" * 60, "x-", "", 'x","y'])
def test_a_pod_that_is_none_is_refused(pod: str) -> None:
    done = made(pod)
    assert done.returncode == 2 and "POD: a pod's name has small letters" in done.stderr
