"""Prints `docs/runbooks.md`, an entry for each alert: `.venv/bin/python -m docs.runbooks`. A test compares the two."""

import sys
from collections.abc import Iterator
from pathlib import Path

from docs.alerts import ALERTS, Alert, duration

PAGE = Path(__file__).with_suffix(".md")

HEAD = """\
<!-- Printed from the code by `.venv/bin/python -m docs.runbooks`; changes belong into docs/alerts.py. -->

# Runbooks

An entry for each alert of `k8s/components/prometheusrule`: what it means, what the customer sees, what to do, and how
to see that it is over. *critical* wakes somebody: customers are not served, or money is not in the record. *warning*
waits for the morning. Commands run where the gateway's settings are: `kubectl exec statefulset/gateway -- ghub …`.
"""


def entry(alert: Alert) -> Iterator[str]:
    """Give the lines of one runbook."""
    lasts = f", for {duration(alert.for_s)}" if alert.for_s else ""
    yield from (f"## {alert.name}", "", f"*{alert.severity}*{lasts}:", "", "```promql", alert.at(), "```", "")
    yield from (f"**Why these numbers.** {alert.why}", "", f"**It means.** {alert.means}", "")
    yield from (f"**The customer.** {alert.customer}", "", "**Do.**", "")
    yield from (f"{place}. {step}" for place, step in enumerate(alert.do, 1))
    yield from ("", f"**It is over when** {alert.over[0].lower() + alert.over[1:]}", "")


def page() -> str:
    """Print the whole page."""
    table = ["| alert | |", "|---|---|"]
    table += [f"| [{one.name}](#{one.anchor}) | {one.severity} |" for one in ALERTS]
    return "\n".join([HEAD, *table, "", *(line for alert in ALERTS for line in entry(alert))])


def main() -> None:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")


if __name__ == "__main__":
    main()
