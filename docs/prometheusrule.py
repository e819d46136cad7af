"""Prints the PrometheusRule of the alerts: `.venv/bin/python -m docs.prometheusrule`. A test compares the two."""

import sys
from pathlib import Path
from typing import Any

import yaml

from docs.alerts import ALERTS, Alert, duration

PAGE = Path(__file__).parents[1] / "k8s/components/prometheusrule/prometheusrule.yaml"

RUNBOOKS = "https://geekhub.mx/gateway/runbooks.md"
"""Where docs/runbooks.md is published; a pager shows the link."""

HEAD = """\
# Printed from the code by `.venv/bin/python -m docs.prometheusrule`; changes belong into docs/alerts.py.
"""


def rule(alert: Alert, scale: float) -> dict[str, Any]:
    """One rule; its durations are multiplied by `scale`."""
    lasts = {"for": duration(alert.for_s * scale)} if alert.for_s else {}
    return {
        "alert": alert.name,
        "expr": alert.at(scale),
        **lasts,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "description": f"{alert.means} What the customer sees: {alert.customer[0].lower()}{alert.customer[1:]}",
            "runbook_url": f"{RUNBOOKS}#{alert.anchor}",
        },
    }


def groups(scale: float = 1.0) -> dict[str, Any]:
    """A rules file of Prometheus. A test that cannot wait has a `scale` below 1: the same expressions, sooner."""
    return {"groups": [{"name": "geekhub-gateway", "rules": [rule(alert, scale) for alert in ALERTS]}]}


def page() -> str:
    """Print the custom resource of Prometheus' operator."""
    resource = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "geekhub-gateway"},
        "spec": groups(),
    }
    return HEAD + yaml.safe_dump(resource, sort_keys=False, width=120, allow_unicode=True)


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")


if __name__ == "__main__":
    main()
