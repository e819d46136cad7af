"""The Job that replays the journal of a pod which does not come back, for `kubectl create`.

It is the gateway's container with the pod's claim: same image, user and rights. What it must agree on with `k8s/` is
held by a test: names of Secret, ServiceAccount and claim, and labels that NetworkPolicies know. Each has a name of its
own, by `generateName`: a pod may leave a journal twice within a day, and a Job that failed is still there then.
"""

import re
from typing import Any

DEADLINE_S = 3600
"""For an hour of orders without a consumer: some hundred a second are brought."""

KEPT_S = 86_400
"""How long an ended Job and its log are kept."""

RETRIES = 6

POD = re.compile(r"[a-z0-9]([a-z0-9-]{0,40}[a-z0-9])?")
"""A pod's name that leaves room for `replay-` and `journal-` before it, and what `generateName` adds: a Job's name
has 63 characters."""

CLAIM = "journal-{pod}"
"""`volumeClaimTemplates` of the gateways are called `journal`."""

REACHES = {f"geekhub.mx/reaches-{what}": "true" for what in ("redis", "ledger")}
"""Labels of pods that NetworkPolicies let out: to both whose addresses it has."""

SECRET = "gateway-secrets"  # noqa: S105  # the name of a Secret
SECRETS = ("GHUB_REDIS_URL", "GHUB_LEDGER_URL")


def replay_job(pod: str, image: str, secret: str = SECRET, pull_secret: str | None = None) -> dict[str, Any]:
    """Build the manifest. `pod` is one that is gone, such as `gateway-3`; both Secrets are the gateways' own."""
    labels = {"app.kubernetes.io/name": "journal-replay", "app.kubernetes.io/part-of": "geekhub-gateway"}
    container = {
        "name": "journal-replay",
        "image": image,
        "args": ["journal", "replay", "/journal", "--as", f"job:{pod}"],
        "env": [{"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": name}}} for name in SECRETS],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}, "limits": {"memory": "256Mi"}},
        "volumeMounts": [{"name": "journal", "mountPath": "/journal"}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108  # the container's
    }
    spec = {
        "serviceAccountName": "gateway",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "restartPolicy": "OnFailure",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({} if pull_secret is None else {"imagePullSecrets": [{"name": pull_secret}]}),
        "containers": [container],
        "volumes": [
            {"name": "journal", "persistentVolumeClaim": {"claimName": CLAIM.format(pod=pod)}},
            {"name": "tmp", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": f"replay-{pod}-", "labels": labels},
        "spec": {
            "backoffLimit": RETRIES,
            "activeDeadlineSeconds": DEADLINE_S,
            "ttlSecondsAfterFinished": KEPT_S,
            "template": {"metadata": {"labels": labels | REACHES}, "spec": spec},
        },
    }
