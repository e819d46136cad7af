"""The first hour in a cluster, as k8s/README.md has it: its commands, letter by letter, as the image's user."""

import json
import os
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import httpx2

from tests.conftest import LOOPBACK
from tests.e2e.conftest import Prepared
from tests.kits.banxico import banxico
from tests.kits.manifests import K8S, ROOT, Manifest, configured, container, rendered, secrets, some, workloads
from tests.kits.processes import Forked, finished
from tests.kits.system import FLUX, System, bearer
from tests.kits.users import become_nobody, give_to_nobody

PATH = "/usr/bin:/bin"


def block() -> str:
    """The commands of the first hour."""
    text = (K8S / "README.md").read_text()
    (found,) = re.findall(r"<!-- a test runs this block as it stands -->\n```sh\n(.*?)```\n", text, re.DOTALL)
    assert isinstance(found, str)
    return found


def follow(system: System, place: Path) -> tuple[str, str, dict[str, str]]:
    """Run the block in a shell; returns the key, the token, and what the Secret `smoke-test` has."""
    give_to_nobody(system.folder)
    (place / "bin").mkdir()
    kubectl = place / "bin/kubectl"
    kubectl.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m tests.kits.pod "$@"\n')
    kubectl.chmod(0o755)
    (place / "pod.json").write_text(json.dumps({"PATH": PATH, **system.environment}))
    environment = {
        "PATH": f"{place / 'bin'}:{PATH}",
        "PYTHONPATH": str(ROOT),
        "POD": str(place / "pod.json"),
        "SECRETS": str(place),
        "HOME": os.environ.get("HOME", "/"),
    }
    script = f'set -euo pipefail\n{block()}printf "%s\\n" "$KEY" "$TOKEN"\n'
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    key, token = done.stdout.splitlines()[-2:]
    return key, token, json.loads((place / "smoke-test").read_text())


def test_it_ends_with_a_customer_an_administrator_and_a_smoke_test(prepared: Prepared, tmp_path: Path) -> None:
    """All of it by a user without a name and a home: root becomes that user, anybody else does in a user namespace."""
    system = prepared(GHUB_JWT_SECRET="of-this-cluster-alone-and-32-bytes-long")
    system.start_all()
    key, token, secret = follow(system, tmp_path)
    system.keys += [key, secret["OPENAI_API_KEY"]]

    reply = httpx2.post(
        f"{system.url}/images/generations",
        headers=bearer(key),
        json={"model": FLUX, "prompt": "a lighthouse"},
        timeout=60,
        **LOOPBACK,
    )
    assert reply.status_code == 200, reply.text
    host = system.url.removesuffix("/v1")
    orgs = httpx2.get(f"{host}/admin/v1/orgs", headers=bearer(token), **LOOPBACK).json()
    assert [org["name"] for org in orgs["data"]] == ["taller"]
    actions = {row.action: row.actor for row in system.back(lambda back: back.ledger.audits(None, 2**53, 100))}
    assert {actions[action] for action in ("org.create", "credit.add", "key.create")} == {"cli:ana"}

    (job,) = [one for one in some(rendered("local"), "Job") if one["metadata"]["name"].startswith("smoke-test")]
    variables = {entry["name"]: entry.get("value", "") for entry in container(job)["env"]}
    assert variables.pop("OPENAI_BASE_URL") == "http://gateway:8080/v1"
    assert {(variable, name) for variable, name, _ in secrets(job)} == {("OPENAI_API_KEY", "smoke-test")}
    environment = {"PATH": PATH, "OPENAI_BASE_URL": system.url, **secret}
    done = finished(partial(Forked, before=become_nobody), container(job)["args"], environment, within_s=60)
    assert done.returncode == 0, done.stderr
    assert re.search(r"image +image/png", done.stdout), done.stdout


ENDS = {"verify": 0, "fx-fetch": 0, "reconcile": 3, "migrate": 0}
"""Exit codes; 3 because no provider's books can be read here."""


def given(workload: Manifest, system: System) -> dict[str, str]:
    """A pod's environment: the variables that its manifest gives it and no other, with this system's values."""
    names = {*configured(rendered("everything"), workload), *(name for name, _, _ in secrets(workload))}
    return {"PATH": PATH, **{name: value for name, value in system.environment.items() if name in names}}


def test_each_job_has_all_that_it_needs(prepared: Prepared) -> None:
    """Run as its manifest says, by the image's user, with the variables that it is given and no other."""
    with banxico() as sie:
        system = prepared()
        system.environment |= {"GHUB_BANXICO_TOKEN": "t" * 64}
        system.start_all()
        system.customer("taller", "500.00")
        give_to_nobody(system.folder)
        jobs = {container(one)["name"]: one for one in workloads(rendered("everything")) if "Job" in one["kind"]}
        assert jobs.keys() == ENDS.keys() | {"smoke-test"}
        for name, code in ENDS.items():
            environment = given(jobs[name], system) | {"GHUB_BANXICO_URL": sie}
            environment["GHUB_STORAGE_URL"] = system.environment["GHUB_STORAGE_URL"]  # an overlay's, in the ConfigMap
            begin = partial(Forked, before=become_nobody)
            done = finished(begin, container(jobs[name])["args"], environment, within_s=60)
            assert done.returncode == code and "Traceback" not in done.stderr, (name, done.stdout, done.stderr)
