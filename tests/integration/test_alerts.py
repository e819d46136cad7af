"""The alert rules as Prometheus reads them: each fires on what it is for, and not on what is usual."""

import json
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from docs.alerts import ALERTS, Alert
from docs.dashboard import PANELS
from docs.prometheusrule import groups
from tests.kits.programs import program
from tests.unit.test_docs import metrics

ROOT = Path(__file__).parents[2]
ORDERS = 'route="/v1/images/generations"'
GATEWAY, CONSUMER = 'pod="gateway-0",job="gateway-metrics"', 'pod="consumer-a",job="consumer-metrics"'
HOUR = 360
"""Samples of an hour: one each 10 s."""


def failed(model: str, outcome: str) -> str:
    """Calls of a model with this outcome."""
    return f'ghub_upstream_seconds_count{{{GATEWAY},provider="fal",model="{model}",outcome="{outcome}"}}'


@dataclass(frozen=True)
class Case:
    """Samples in promtool's notation, every 10 s: of a series that makes the alert fire, and of usual ones."""

    fires: dict[str, str]
    quiet: dict[str, str] = field(default_factory=dict)


def gauge(metric: str, fires: str, quiet: str) -> Case:
    """A gauge of one gateway."""
    return Case({f"{metric}{{{GATEWAY}}}": fires}, {f"{metric}{{{GATEWAY}}}": quiet})


def counter(metric: str, labels: str = GATEWAY, step: str = "0x340 1x20", usual: str = f"5x{HOUR}") -> Case:
    """A counter that rose a moment ago, beside one that stands still."""
    return Case({f"{metric}{{{labels}}}": step}, {f"{metric}{{{labels}}}": usual})


def late(by_50_ms: int, by_250_ms: int) -> dict[str, str]:
    """Looks at the event loop in 10 s that were at most so late, of 20 or 200."""
    looks = {"0.05": by_50_ms, "0.25": by_250_ms, "+Inf": 20 if by_50_ms < 20 else 200}
    return {f'ghub_loop_late_seconds_bucket{{{GATEWAY},le="{le}"}}': f"0+{count}x{HOUR}" for le, count in looks.items()}


CASES = {
    "GhubGatewaysAbsent": Case(
        {f"up{{{GATEWAY}}}": f"0x{HOUR}", f"up{{{CONSUMER}}}": f"1x{HOUR}"}, {f"up{{{GATEWAY}}}": f"1x{HOUR}"}
    ),
    "GhubConsumersAbsent": Case(
        {f"up{{{GATEWAY}}}": f"1x{HOUR}"},
        {'up{job="green-consumer-metrics"}': f"1x{HOUR}"},
    ),
    "GhubTargetDown": Case({f"up{{{CONSUMER}}}": "1x320 0x40"}, {f"up{{{CONSUMER}}}": "1x320 0x20 1x20"}),
    "GhubNotReady": gauge("ghub_ready", "1x340 0x20", "1x340 0x8 1x12"),
    "GhubOrdersFailing": Case(
        {
            f'ghub_requests_total{{{GATEWAY},{ORDERS},status="200"}}': f"0+8x{HOUR}",
            f'ghub_requests_total{{{GATEWAY},{ORDERS},status="502"}}': f"0+1x{HOUR}",
        },
        {
            f'ghub_requests_total{{{GATEWAY},{ORDERS},status="200"}}': f"0+20x{HOUR}",
            f'ghub_requests_total{{{GATEWAY},{ORDERS},status="502"}}': f"0+1x{HOUR}",
            f'ghub_requests_total{{{GATEWAY},{ORDERS},status="429"}}': f"0+50x{HOUR}",
            f'ghub_requests_total{{{GATEWAY},route="/v1/usage",status="503"}}': f"0+50x{HOUR}",
        },
    ),
    "GhubUpstreamFailing": Case(
        {failed("a", "ok"): f"0+2x{HOUR}", failed("a", "no_answer"): f"0+1x{HOUR}"},
        {
            failed("a", "ok"): f"0+4x{HOUR}",
            failed("a", "overloaded"): f"0+1x{HOUR}",
            failed("seldom", "overloaded"): "0x350 4x10",
            failed("prudish", "content_policy"): f"0+1x{HOUR}",
        },
    ),
    "GhubCircuitOpen": Case(
        {f'ghub_circuit{{{GATEWAY},provider="p",upstream="u",state="closed"}}': f"0x{HOUR}"},
        {
            f'ghub_circuit{{{GATEWAY},provider="p",upstream="u",state="closed"}}': f"0x{HOUR}",
            f'ghub_circuit{{{GATEWAY},process="1",provider="p",upstream="u",state="closed"}}': f"1x{HOUR}",
        },
    ),
    "GhubStoreFailing": counter(
        "ghub_store_seconds_count",
        f'{GATEWAY},outcome="failed"',
        "0x350 5x10",
        "0x350 2x10",
    ),
    "GhubSpoolFull": counter("ghub_spool_full_total"),
    "GhubOrdersTurnedAway": counter("ghub_orders_turned_away_total", step="0x340 50x20", usual="0x340 5x20"),
    "GhubLoopLate": Case(late(18, 20), late(196, 196)),
    "GhubConnectionsFull": Case(
        {f'ghub_connections_cut_total{{{GATEWAY},why="full"}}': "0x350 1x10"},
        {f'ghub_connections_cut_total{{{GATEWAY},why="no_head"}}': f"0+1x{HOUR}"},
    ),
    "GhubRedisAway": gauge("ghub_redis_up", "1x350 0x10", "1x358 0x1 1x1"),
    "GhubRedisFull": gauge("ghub_redis_memory_ratio", "0.75x360", "0.65x360"),
    "GhubJournalNotWritable": gauge("ghub_journal_writable", "1x350 0x10", f"1x{HOUR}"),
    "GhubJournalRoom": gauge("ghub_journal_room_bytes", f"9e6x{HOUR}", f"17e6x{HOUR}"),
    "GhubAnswersWait": gauge("ghub_journal_oldest_seconds", f"0+10x{HOUR}", f"9x{HOUR}"),
    "GhubJournalsOrphaned": Case(
        {f'ghub_journals_orphaned{{{CONSUMER},exported_pod="gateway-7"}}': f"1x{HOUR}"},
        {f'ghub_journals_orphaned{{{CONSUMER},exported_pod="gateway-7"}}': "0x310 1x30 0x20"},
    ),
    "GhubConsumerBehind": Case(
        {f"ghub_events_oldest_seconds{{{CONSUMER}}}": "0x330 0+10x30"},
        {f"ghub_events_oldest_seconds{{{CONSUMER}}}": "0x348 0+10x12"},
    ),
    "GhubEventsSetAside": counter("ghub_events_set_aside_total", CONSUMER),
    "GhubLedgerRestored": counter("ghub_ledger_restored_total"),
    "GhubChargedAfterError": counter("ghub_charged_after_error_total"),
    "GhubBalanceBelowZero": counter("ghub_balance_below_zero_total"),
    "GhubCostAboveQuote": counter("ghub_cost_above_quote_total", f'{GATEWAY},model="xai/grok-imagine-image"'),
    "GhubFxRateMissing": gauge("ghub_fx_months_missing", f"1x{HOUR}", "0x320 1x30 0x10"),
    "GhubSinkBehind": Case(
        {f'ghub_sink_oldest_seconds{{{CONSUMER},sink="lago"}}': "0x240 0+10x120"},
        {f'ghub_sink_oldest_seconds{{{CONSUMER},sink="lago"}}': "0x300 0+10x60"},
    ),
    "GhubSinkRefused": Case(
        {f'ghub_sink_set_aside{{{CONSUMER},sink="lago"}}': "0x340 2x20"},
        {f'ghub_sink_set_aside{{{CONSUMER},sink="lago"}}': f"0x{HOUR}"},
    ),
    "GhubWebhooksWait": Case(
        {f"ghub_webhooks_oldest_seconds{{{CONSUMER}}}": "0x100 0+30x260"},
        {f"ghub_webhooks_oldest_seconds{{{CONSUMER}}}": "0x300 0+10x60"},
    ),
    "GhubWebhooksSetAside": Case(
        {f"ghub_webhooks_set_aside{{{CONSUMER}}}": "0x340 2x20"},
        {f"ghub_webhooks_set_aside{{{CONSUMER}}}": f"0x{HOUR}"},
    ),
    "GhubBackgroundFault": counter("ghub_background_faults_total", f'{GATEWAY},part="projection"'),
    "GhubProcessRestarts": Case(
        {f"process_start_time_seconds{{{GATEWAY}}}": "1x300 2x20 3x20 4x20"},
        {f"process_start_time_seconds{{{GATEWAY}}}": "1x320 2x40"},
    ),
    "GhubConfigRefused": Case(
        {f'ghub_config_refused{{{GATEWAY},file="models"}}': "0x320 1x40"},
        {f'ghub_config_refused{{{GATEWAY},file="models"}}': "0x340 1x10 0x10"},
    ),
}
"""For each alert. Series that fire do so at the end of an hour."""


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it."""
    return subprocess.run([program("promtool"), *arguments], capture_output=True, text=True, check=False)


def unit_test(alert: str, samples: dict[str, str], expected: list[dict[str, Any]]) -> dict[str, Any]:
    """A unit test of promtool: how many times this alert fires at the end of the hour, in each namespace."""
    firing = f'count by (namespace) (ALERTS{{alertname="{alert}",alertstate="firing"}})'
    return {
        "interval": "10s",
        "name": f"{alert} {'fires' if expected else 'is quiet'}",
        "input_series": [{"series": series, "values": values} for series, values in samples.items()],
        "promql_expr_test": [{"expr": firing, "eval_time": "1h", "exp_samples": expected}],
    }


def inside(namespace: str, samples: dict[str, str]) -> dict[str, str]:
    """The same series, of an installation in a namespace."""
    return {series.replace("{", f'{{namespace="{namespace}",', 1): values for series, values in samples.items()}


NOWHERE = "GhubConsumersAbsent"
"""Here it fires because no target is left in any namespace; beside another one it could not know of this one."""


def test_the_rules_are_valid_and_each_fires_on_what_it_is_for(tmp_path: Path) -> None:
    """By promtool, over samples of an hour: a case that fires, one that does not, and one of each in two namespaces."""
    assert list(CASES) == [alert.name for alert in ALERTS]
    whole, once = tmp_path / "rules.json", [{"labels": "{}", "value": 1}]
    whole.write_text(json.dumps(groups()))
    checked = promtool("check", "rules", whole)
    assert checked.returncode == 0, checked.stderr
    files = []
    for rule in groups()["groups"][0]["rules"]:  # each in a file of its own: all in one take a minute
        name = rule["alert"]
        (tmp_path / f"{name}.rules.json").write_text(json.dumps({"groups": [{"name": name, "rules": [rule]}]}))
        tests = [unit_test(name, CASES[name].fires, once), unit_test(name, CASES[name].quiet, [])]
        if name != NOWHERE:
            both = inside("here", CASES[name].fires) | inside("elsewhere", CASES[name].quiet)
            tests.append(unit_test(name, both, [{"labels": '{namespace="here"}', "value": 1}]))
        document = {"rule_files": [f"{name}.rules.json"], "evaluation_interval": "10s", "tests": tests}
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps(document))
    done = promtool("test", "rules", *files)
    assert done.returncode == 0, done.stdout + done.stderr


ELSEWHERE = {"ghub_config_refused"}
"""Metrics of a part that may be missing."""


def test_every_metric_of_a_query_is_one_that_the_code_has() -> None:
    """Of alerts and panels, with the labels by which they choose."""
    known = {name.partition("{")[0]: name for name in metrics()}
    queries = [alert.expr for alert in ALERTS] + [query.expr for panel in PANELS for query in panel.queries]
    assert len(queries) > 80
    for query in queries:
        for name, labels in re.findall(r"(ghub_\w+)(?:\{([^}]*)\})?", query):
            metric = re.sub(r"_(bucket|count|sum)$", "", name) if name not in known else name
            assert metric in known or metric in ELSEWHERE, name
            for label in re.findall(r"(\w+)[=!]~?\"", labels):
                known_everywhere = label in {"namespace", "pod", "job"}
                assert known_everywhere or re.search(rf"[{{,]{label}[,}}]", known[metric]), f"{name}: {label}"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_what_a_person_needs(alert: Alert) -> None:
    """A severity, a link to an entry of the runbooks that is there, and steps whose links lead somewhere."""
    page = (ROOT / "docs/runbooks.md").read_text()
    assert f"\n## {alert.name}\n" in page
    headings = {
        name: {slug(heading) for heading in re.findall(r"(?m)^#+ (.+)$", (ROOT / "docs" / name).read_text())}
        for name in ("runbooks.md", "operations.md", "models.md", "money.md", "sinks.md")
    }
    for text in (*alert.do, alert.means, alert.over):
        for target in re.findall(r"\]\(([^)]+)\)", text):
            name, _, anchor = target.partition("#")
            assert not anchor or anchor in headings[name or "runbooks.md"], target
    assert alert.expr.count("$window") == 0 or alert.window_s, alert
    assert ("$age" in alert.expr) == bool(alert.age_s)


def slug(heading: str) -> str:
    """A heading's anchor, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_the_scaled_rules_are_the_same_but_for_their_durations() -> None:
    """What the tests with real processes cause is what production's rules look for."""
    for one, scaled in zip(groups()["groups"][0]["rules"], groups(1 / 120)["groups"][0]["rules"], strict=True):
        assert re.sub(r"\[\w+\]|> [\d.]+", "", one["expr"]) == re.sub(r"\[\w+\]|> [\d.]+", "", scaled["expr"])
        assert one.keys() == scaled.keys()
