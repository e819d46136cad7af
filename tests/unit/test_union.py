"""One page of metrics of several processes, read by Prometheus' own parser."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from proxy.server.union import union


def page(number: int) -> str:
    """Metrics of a process, each a multiple of its number; some processes have one that others lack."""
    registry = CollectorRegistry()
    Counter("orders", "Orders", ["model", "why"], registry=registry).labels("a b{c}", 'said "no"\n').inc(number)
    Gauge("open", "Open", registry=registry).set(10 * number)
    Histogram("seconds", "Seconds", ["route"], buckets=(1.0,), registry=registry).labels("/v1").observe(number)
    if number == 2:
        Gauge("rare", "Rare", registry=registry).set(1)
    return generate_latest(registry).decode()


def test_every_sample_is_there_once_under_its_process() -> None:
    """Labels with braces, spaces, quotes and line ends stay what they are; a family has one head."""
    own = CollectorRegistry()
    Gauge("alive", "Alive", registry=own).set(2)
    Gauge("open", "Open", registry=own).set(7)
    united = union(generate_latest(own).decode(), {1: page(1), 2: page(2)})
    families = {family.name: family for family in text_string_to_metric_families(united)}
    assert len(families) == united.count("# TYPE") == united.count("# HELP")
    samples = {
        (one.name, *sorted(one.labels.items())): one.value for family in families.values() for one in family.samples
    }
    assert len(samples) == sum(len(family.samples) for family in families.values())
    assert (samples["alive",], samples["open",]) == (2, 7)
    for number in (1, 2):
        process = ("process", str(number))
        alone = [one for family in text_string_to_metric_families(page(number)) for one in family.samples]
        for one in alone:
            if not one.name.endswith("_created"):
                assert samples[one.name, *sorted([*one.labels.items(), process])] == one.value
    assert families["seconds"].type == "histogram" and families["orders"].type == "counter"
    assert [one.labels for one in families["rare"].samples] == [{"process": "2"}]


def test_a_label_may_have_what_unicode_calls_the_end_of_a_line() -> None:
    """In the format, only a line feed ends one."""
    registry = CollectorRegistry()
    label = "a\u2028b\u0085c\x0bd\x0ce\x1cf\rg"
    Gauge("info", "Of\u2028a file", ["version"], registry=registry).labels(label).set(1)
    united = union("", {0: generate_latest(registry).decode()})
    (family,) = text_string_to_metric_families(united)
    assert [one.labels for one in family.samples] == [{"process": "0", "version": label}]
