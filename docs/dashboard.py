"""Prints the operators' dashboard for Grafana: `.venv/bin/python -m docs.dashboard`. A test compares the two.

What an operator looks at first stands on top; each row below is one part of the way of an order.
"""

import json
import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Literal

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    LegendDisplayMode,
    LegendPlacement,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)

PAGE = Path(__file__).parents[1] / "k8s/components/dashboard/geekhub-gateway.json"
UID = "geekhub-gateway"

HERE = 'namespace=~"$namespace"'
"""What every query is of: two installations that one Prometheus reads are two."""

POD = f'{HERE},pod=~"$pod"'
MODEL = f'{POD},model=~"$model"'
OF = f'{POD},provider=~"$provider",model=~"$model"'
DELIVERED, LOST = f'{MODEL},reason="delivered"', f'{MODEL},reason!="delivered"'
RATE = "$__rate_interval"
CALLS = "ghub_upstream_seconds_count"

FULL, HALF, THIRD, SIXTH = 24, 12, 8, 4
"""Widths of panels: a row has 24."""

MICRO = 1_000_000


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL with Grafana's variables in it, and the legend of its series."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is Grafana's name. `idle`: a run in which all is well may give no series, or only zeros."""

    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int = THIRD
    kind: Literal["lines", "number"] = "lines"
    idle: bool = False
    bad_from: float | None = None
    """The value from which a number is red."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of panels under a title."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, labels: str, by: str = "") -> str:
    """Per second, summed."""
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{{{labels}}}[{RATE}]))"


def seen(metric: str, labels: str, by: str) -> str:
    """Per second, only what there is: many counters begin at zero, and their names would fill the legend."""
    return f"{rate(metric, labels, by)} > 0"


def quantile(share: float, metric: str, labels: str, by: str = "") -> str:
    """A quantile of a histogram."""
    return f"histogram_quantile({share:g}, {rate(metric + '_bucket', labels, f'{by}, le' if by else 'le')})"


def p50_p95(metric: str, labels: str, by: str = "") -> tuple[Query, ...]:
    """The median and the 95th percentile, of each that has any."""
    name, there = (f"{{{{{by}}}}} ", " > 0") if by else ("", "")
    return (
        Query(quantile(0.5, metric, labels, by) + there, f"{name}p50"),
        Query(quantile(0.95, metric, labels, by) + there, f"{name}p95"),
    )


ROWS = (
    Row(
        "At a glance",
        (
            Panel(
                "Orders",
                "Orders that ended, delivered or not, per second.",
                "reqps",
                (Query(rate("ghub_orders_total", MODEL)),),
                SIXTH,
                "number",
            ),
            Panel(
                "Delivered",
                "Share of the admitted orders that were delivered and charged. Refusals before admission do not count.",
                "percentunit",
                (Query(f"{rate('ghub_orders_total', DELIVERED)} / {rate('ghub_orders_total', MODEL)}"),),
                SIXTH,
                "number",
            ),
            Panel(
                "Order, p95",
                "From the first byte of an order to its reply; 60 s is the deadline.",
                "s",
                (Query(quantile(0.95, "ghub_order_seconds", OF)),),
                SIXTH,
                "number",
                bad_from=45,
            ),
            Panel(
                "In flight",
                "Generations under way, their ends included.",
                "short",
                (Query(f"sum(ghub_generations_in_flight{{{POD}}})"),),
                SIXTH,
                "number",
            ),
            Panel(
                "Charged per hour",
                "MXN that are charged in an hour, at the present rate.",
                "currency:MXN ",
                (Query(f"{rate('ghub_charged_micro_mxn_total', MODEL)} * 3600 / {MICRO}"),),
                SIXTH,
                "number",
            ),
            Panel(
                "Ready processes",
                "Gateways and consumers that take work.",
                "short",
                (Query(f"sum(ghub_ready{{{POD}}})"),),
                SIXTH,
                "number",
            ),
            Panel(
                "Orders by model",
                "Orders that ended per second, by model.",
                "reqps",
                (Query(seen("ghub_orders_total", MODEL, "model"), "{{model}}"),),
            ),
            Panel(
                "Errors by reason",
                "Admitted orders that were not delivered, by the reason in their event. None of them is charged.",
                "reqps",
                (Query(seen("ghub_orders_total", LOST, "reason"), "{{reason}}"),),
                idle=True,
            ),
            Panel(
                "Refused orders by reason",
                "Orders that were refused before anything was held: balances, limits, keys, or no room.",
                "reqps",
                (Query(seen("ghub_denials_total", POD, "reason"), "{{reason}}"),),
                idle=True,
            ),
            Panel(
                "Order time by model",
                "From an order's first byte to its reply: the median, and what 95 of 100 stay under.",
                "s",
                p50_p95("ghub_order_seconds", OF, "model"),
                HALF,
            ),
            Panel(
                "Charged per hour by model",
                "MXN charged in an hour, at the present rate.",
                "currency:MXN ",
                (Query(f"{rate('ghub_charged_micro_mxn_total', MODEL, 'model')} * 3600 / {MICRO} > 0", "{{model}}"),),
                HALF,
            ),
        ),
    ),
    Row(
        "HTTP",
        (
            Panel(
                "Requests by status",
                "All requests, probes included, by the status of their reply.",
                "reqps",
                (Query(rate("ghub_requests_total", POD, "status"), "{{status}}"),),
            ),
            Panel(
                "Waiting for admission",
                "Orders that wait at the gate, and how long: above two seconds new ones are turned away.",
                "short",
                (
                    Query(f"sum(ghub_orders_waiting{{{POD}}})", "waiting"),
                    Query(rate("ghub_orders_turned_away_total", POD), "turned away per second"),
                ),
            ),
            Panel(
                "Time at the gate",
                "How long orders waited for their turn to be admitted.",
                "s",
                p50_p95("ghub_admission_wait_seconds", POD),
                idle=True,
            ),
        ),
    ),
    Row(
        "Upstreams",
        (
            Panel(
                "Upstream calls by outcome",
                "Calls per second by provider and outcome; `ok` brought all of its pictures.",
                "reqps",
                (Query(seen("ghub_upstream_seconds_count", OF, "provider, outcome"), "{{provider}} {{outcome}}"),),
            ),
            Panel(
                "Upstream time by model",
                "One upstream call, whatever its outcome.",
                "s",
                p50_p95("ghub_upstream_seconds", OF, "model"),
            ),
            Panel(
                "Calls made again",
                "Repeated because the upstream had not accepted them: its rate limit, or that it was busy.",
                "reqps",
                (Query(seen("ghub_upstream_tries_again_total", MODEL, "model"), "{{model}}"),),
                idle=True,
            ),
            Panel(
                "Circuits that are not closed",
                "Processes that leave a route alone, or try it with one order, because it failed again and again.",
                "short",
                (
                    Query(
                        f'sum by (provider, upstream) (ghub_circuit{{{POD},state!="closed"}}) > 0',
                        "{{provider}} {{upstream}}",
                    ),
                ),
                idle=True,
            ),
            Panel(
                "Circuits that opened",
                "How often a route that worked was left alone from then on.",
                "ops",
                (
                    Query(
                        f"sum by (provider, upstream) (rate(ghub_circuit_opened_total{{{POD}}}[{RATE}])) > 0",
                        "{{provider}} {{upstream}}",
                    ),
                ),
                idle=True,
            ),
            Panel(
                "Orders by the second route",
                "Those that the first one certainly did not take, or whose circuit is open.",
                "ops",
                (Query(seen("ghub_second_route_total", OF, "model, provider"), "{{model}} by {{provider}}"),),
                idle=True,
            ),
        ),
    ),
    Row(
        "Image store",
        (
            Panel(
                "Time to store a picture",
                "One try, without the time in which the store waited for the picture's bytes.",
                "s",
                p50_p95("ghub_store_seconds", POD),
            ),
            Panel(
                "Tries by outcome",
                "`failed` is the store's fault, `broken` the picture's or its source's, `cut_off` had no time left.",
                "ops",
                (Query(seen("ghub_store_seconds_count", POD, "outcome"), "{{outcome}}"),),
            ),
            Panel(
                "Bytes stored, and in the spool",
                "Bytes of images that are stored per second, and those that wait in the spool now.",
                "bytes",
                (
                    Query(rate("ghub_stored_bytes_total", MODEL), "stored per second"),
                    Query(f"sum(ghub_spool_bytes{{{POD}}})", "in the spool"),
                ),
            ),
        ),
    ),
    Row(
        "Redis",
        (
            Panel(
                "Scripts",
                "Time of a script from asking for it to its verdict, as a gateway sees it.",
                "s",
                (Query(quantile(0.95, "ghub_wallet_script_seconds", POD, "script") + " > 0", "{{script}} p95"),),
            ),
            Panel(
                "Calls to Redis",
                "*turn*: waiting here for a connection. *answer*: from sending to reading.",
                "s",
                (
                    Query(quantile(0.95, "ghub_redis_turn_seconds", POD), "turn p95"),
                    Query(quantile(0.95, "ghub_redis_answer_seconds", POD), "answer p95"),
                ),
            ),
            Panel(
                "Holds and memory",
                "Open holds, and the share of `maxmemory` that the fullest server uses (0 without one).",
                "short",
                (
                    Query(f"sum(ghub_holds_open{{{POD}}})", "holds open"),
                    Query(f"max(ghub_redis_memory_ratio{{{POD}}})", "memory used"),
                ),
            ),
        ),
    ),
    Row(
        "Journal and consumer",
        (
            Panel(
                "Answered and not yet booked",
                "Orders in the gateways' journals that the ledger does not have, and events in Redis' 32 streams.",
                "short",
                (
                    Query(f"sum(ghub_journal_open_orders{{{POD}}})", "in journals"),
                    Query(f"max(ghub_events_waiting{{{HERE}}})", "in streams"),
                ),
            ),
            Panel(
                "Age of the oldest",
                "How long the oldest of each waits.",
                "s",
                (
                    Query(f"max(ghub_journal_oldest_seconds{{{POD}}})", "in journals"),
                    Query(f"max(ghub_events_oldest_seconds{{{HERE}}})", "in streams"),
                ),
            ),
            Panel(
                "Events booked",
                "Events that consumers have brought into the ledger, and those that could not be booked.",
                "ops",
                (
                    Query(rate("ghub_events_booked_total", HERE), "booked"),
                    Query(rate("ghub_events_set_aside_total", HERE), "set aside"),
                ),
            ),
            Panel(
                "Journal's commits",
                "One write and one sync for all who wait: the median and the 95th percentile.",
                "s",
                p50_p95("ghub_journal_commit_seconds", POD),
            ),
            Panel(
                "Journal's room",
                "Bytes that are allocated and not yet written; below 16 MB there is no spare file.",
                "bytes",
                (Query(f"min by (pod) (ghub_journal_room_bytes{{{POD}}})", "{{pod}}"),),
            ),
            Panel(
                "Never usual",
                "Per hour: charged after an error, balances below zero, costs above the quote, replayed charges.",
                "short",
                tuple(
                    Query(f"sum(increase({metric}{{{HERE}}}[1h]))", legend)
                    for metric, legend in (
                        ("ghub_charged_after_error_total", "charged after error"),
                        ("ghub_balance_below_zero_total", "balance below zero"),
                        ("ghub_cost_above_quote_total", "cost above quote"),
                        ("ghub_journal_replayed_total", "replayed"),
                    )
                ),
                idle=True,
            ),
        ),
    ),
    Row(
        "Sinks",
        (
            Panel(
                "Pending",
                "Events that a sink has not taken, without those that are set aside.",
                "short",
                (Query(f"max by (sink) (ghub_sink_pending{{{HERE}}})", "{{sink}}"),),
                idle=True,
            ),
            Panel(
                "Age of the oldest pending event",
                "Since it was booked.",
                "s",
                (Query(f"max by (sink) (ghub_sink_oldest_seconds{{{HERE}}})", "{{sink}}"),),
                idle=True,
            ),
            Panel(
                "Set aside",
                "Events that a sink refused for good, until they are sent again.",
                "short",
                (Query(f"max by (sink) (ghub_sink_set_aside{{{HERE}}})", "{{sink}}"),),
                idle=True,
            ),
        ),
    ),
    Row(
        "Webhooks",
        (
            Panel(
                "Deliveries",
                "Attempts, by how they ended.",
                "ops",
                (
                    Query(
                        f"sum by (outcome) (rate(ghub_webhook_deliveries_total{{{HERE}}}[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                ),
                idle=True,
            ),
            Panel(
                "Waiting and set aside",
                "Deliveries that wait for their turn or their next attempt, and those that were given up within a day.",
                "short",
                (
                    Query(f"max(ghub_webhooks_waiting{{{HERE}}})", "waiting"),
                    Query(f"max(ghub_webhooks_set_aside{{{HERE}}})", "set aside"),
                ),
                idle=True,
            ),
            Panel(
                "The oldest turn",
                "Since the turn of the oldest delivery has come.",
                "s",
                (Query(f"max(ghub_webhooks_oldest_seconds{{{HERE}}})", "oldest"),),
                idle=True,
            ),
        ),
    ),
    Row(
        "Processes",
        (
            Panel(
                "Event loop late, p95",
                "Above 0.1 s a process has more to do than one core can.",
                "s",
                (Query(quantile(0.95, "ghub_loop_late_seconds", POD, "pod"), "{{pod}}"),),
            ),
            Panel(
                "CPU",
                "Cores that each process uses; one is all that a process can.",
                "short",
                (Query(f"sum by (pod) (rate(process_cpu_seconds_total{{{POD}}}[{RATE}]))", "{{pod}}"),),
            ),
            Panel(
                "Resident memory",
                "Of each process.",
                "bytes",
                (Query(f"sum by (pod) (process_resident_memory_bytes{{{POD}}})", "{{pod}}"),),
            ),
            Panel(
                "Open files",
                "Descriptors of each process; connections are two each.",
                "short",
                (Query(f"sum by (pod) (process_open_fds{{{POD}}})", "{{pod}}"),),
            ),
            Panel(
                "Connections of clients, and tasks",
                "Open connections of clients, and asyncio tasks of each process.",
                "short",
                (
                    Query(f"sum by (pod) (ghub_connections{{{POD}}})", "{{pod}} connections"),
                    Query(f"sum by (pod) (ghub_tasks{{{POD}}})", "{{pod}} tasks"),
                ),
            ),
            Panel(
                "Versions",
                "Processes by the version that they run: two of them only during a roll-out.",
                "short",
                (Query(f"count by (version) (ghub_build_info{{{HERE}}})", "{{version}}"),),
            ),
        ),
    ),
)
"""Rows from top to bottom."""

PANELS = tuple(panel for row in ROWS for panel in row.panels)


def build() -> dashboard.Dashboard:
    """Build the dashboard."""
    made = (
        dashboard.Dashboard("GeekHub image gateway")
        .uid(UID)
        .description("Orders, upstreams, store, Redis, journal, consumer, sinks, processes. Alerts: docs/runbooks.md")
        .tags(["geekhub"])
        .timezone("browser")
        .time("now-1h", "now")
        .refresh("30s")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_choice("namespace", "Namespace", "label_values(ghub_build_info, namespace)"))
        .with_variable(_choice("provider", "Provider", f"label_values({CALLS}{{{HERE}}}, provider)"))
        .with_variable(_choice("model", "Model", f'label_values({CALLS}{{{HERE},provider=~"$provider"}}, model)'))
        .with_variable(_choice("pod", "Pod", f"label_values(ghub_build_info{{{HERE}}}, pod)"))
    )
    ids = count(1)
    for row in ROWS:
        made = made.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            drawn = _number(panel) if panel.kind == "number" else _lines(panel)
            made = made.with_panel(drawn.id(next(ids)))
    return made


def page() -> str:
    """Print it as Grafana reads it."""
    return (
        json.dumps(json.loads(JSONEncoder().encode(build().build())), indent=1, sort_keys=True, ensure_ascii=False)
        + "\n"
    )


SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")


def _choice(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


def _lines(panel: Panel) -> timeseries.Panel:
    made = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .min(0)
        .span(panel.width)
        .height(8)
        .fill_opacity(8)
        .show_points(VisibilityMode.AUTO)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
    )
    for name, query in zip("ABCD", panel.queries, strict=False):
        made = made.with_target(_target(name, query))
    return made


def _number(panel: Panel) -> stat.Panel:
    steps = [Threshold(value=None, color="green")]
    if panel.bad_from is not None:
        steps.append(Threshold(value=panel.bad_from, color="red"))
    made = (
        stat.Panel()
        .title(panel.title)
        .description(panel.description)
        .datasource(SOURCE)
        .unit(panel.unit)
        .span(panel.width)
        .height(4)
        .graph_mode(BigValueGraphMode.AREA)
        .color_mode(BigValueColorMode.VALUE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps))
    )
    for name, query in zip("ABCD", panel.queries, strict=False):
        made = made.with_target(_target(name, query))
    return made


def _target(name: str, query: Query) -> prometheus.Dataquery:
    return prometheus.Dataquery().ref_id(name).expr(query.expr).legend_format(query.legend or "__auto")


def main() -> None:
    """Write it."""
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"written: {PAGE.name}\n")


if __name__ == "__main__":
    main()
