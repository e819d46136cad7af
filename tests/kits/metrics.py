"""A process' `/metrics`, read as a scraper reads it."""

from collections.abc import Mapping

import httpx2
from prometheus_client.parser import text_string_to_metric_families

from tests.conftest import LOOPBACK

Samples = Mapping[str, float]
"""Values by name and labels, the latter sorted: `ghub_orders_total{model=fal/x,reason=delivered}`."""


def scrape(port: int) -> Samples:
    """Read what the process at this port says now."""
    text = httpx2.get(f"http://127.0.0.1:{port}/metrics", **LOOPBACK).text
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def counted(before: Samples, after: Samples) -> dict[str, float]:
    """By how much each of our counters has grown; of a histogram, the number of its observations."""
    counts = (name for name in after if name.partition("{")[0].endswith(("_total", "_count")))
    grown = {name: after[name] - before.get(name, 0.0) for name in counts if name.startswith("ghub_")}
    return {name: value for name, value in grown.items() if value}
