"""The alerts: when each fires, and what a person does then. Two pages are printed from this table.

`.venv/bin/python -m docs.prometheusrule` prints the PrometheusRule, `.venv/bin/python -m docs.runbooks` its runbooks.
There is no alert that nobody acts on: what has no next step is a panel of the dashboard, or a line of the log.
"""

from dataclasses import dataclass
from string import Template
from typing import Literal

from config.settings import MEMORY_MARK
from metering.journal.file import SEGMENT_BYTES
from proxy.outcomes import Outcome

MINUTE, HOUR = 60, 3600

NOT_THE_PROVIDERS = (
    Outcome.CONTENT_POLICY,
    Outcome.CIRCUIT_OPEN,
    Outcome.STORE_FAILED,
    Outcome.FAULT,
    Outcome.LOST,
    Outcome.CANCELLED,
)
"""Ends of a call of which the provider has done what it should: it refused a prompt, was not called, or it was us."""

FAILED = "|".join(outcome.reason for outcome in Outcome if outcome not in NOT_THE_PROVIDERS)

ORDERS = "/v1/images/generations"

GATEWAYS, CONSUMERS = "(.+-)?gateway-metrics", "(.+-)?consumer-metrics"
"""The scraper's jobs: the names of our two Services, which a chart may put its release before."""


def absent(job: str) -> str:
    """PromQL: no target of a job answers, in some namespace that has any, or nowhere is there one."""
    return f'sum by (namespace) (up{{job=~"{job}"}}) == 0 or absent(up{{job=~"{job}"}})'


def logs(name: str) -> str:
    """All lines of an hour of all pods of a workload; `kubectl logs` of a StatefulSet has one pod's alone."""
    return f"kubectl logs --selector app.kubernetes.io/name={name} --prefix --tail=-1 --since=1h"


ENLARGE = (
    '`kubectl patch pvc journal-POD --patch \'{"spec":{"resources":{"requests":{"storage":"4Gi"}}}}\'` enlarges'
    " the claim, if its StorageClass has `allowVolumeExpansion`"
)
INSPECT = "`kubectl exec POD -- ghub journal inspect /journal` shows what is in it, and changes nothing"

WATCH_FOR_S = 5 * MINUTE
"""How long a thing that may pass by itself is watched: longer than a fail-over, a roll-out or a probe of the store."""

RECENT_S = 15 * MINUTE
"""How long one thing that should never happen is told: long enough to be seen, and over when it does not go on."""


@dataclass(frozen=True, slots=True)
class Alert:
    """One alert. `expr` is PromQL, in which `$window` stands for `window_s` and `$age` for `age_s`.

    `for_s`: how long it must be true. `why`: the reason of its numbers. `summary` is what the pager says. The rest is
    its runbook: what it `means`, what the `customer` sees, what to `do`, how to see that it is `over`.
    """

    name: str
    severity: Literal["critical", "warning"]
    summary: str
    expr: str
    why: str
    means: str
    customer: str
    do: tuple[str, ...]
    over: str
    for_s: int = 0
    window_s: int = RECENT_S
    age_s: int = 0

    def at(self, scale: float = 1.0) -> str:
        """PromQL with its windows and ages times `scale`, for tests that cannot wait."""
        return Template(self.expr).substitute(window=duration(self.window_s * scale), age=f"{self.age_s * scale:g}")

    @property
    def anchor(self) -> str:
        """Its place in docs/runbooks.md."""
        return self.name.lower()


def duration(seconds: float) -> str:
    """A duration as Prometheus writes it; whole milliseconds."""
    ms = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if ms and ms % size == 0:
            return f"{ms // size}{unit}"
    return f"{ms}ms"


ALERTS = (
    # --- customers are not served ---
    Alert(
        name="GhubGatewaysAbsent",
        severity="critical",
        summary="No gateway is running",
        expr=absent(GATEWAYS),
        for_s=MINUTE,
        why="A roll-out of one volume takes seconds; a minute without any gateway is an outage.",
        means="Prometheus reads the metrics of no gateway: none runs, or the network between them is cut.",
        customer="No answer, or the ingress' own 502 or 503. Nothing is charged.",
        do=(
            "`kubectl get pods -l app.kubernetes.io/name=gateway` and `kubectl describe pod gateway-0`: why does it not"
            " run?",
            "`kubectl logs gateway-0 --previous`: a start that failed ends with one sentence that names the setting.",
            "If the pods run: does the NetworkPolicy `metrics-callers` name the namespace of Prometheus?",
        ),
        over='`up{job="gateway-metrics"}` is 1 again.',
    ),
    Alert(
        name="GhubConsumersAbsent",
        severity="critical",
        summary="No billing consumer is running",
        expr=absent(CONSUMERS),
        for_s=5 * MINUTE,
        why="Events wait in Redis without harm; five minutes are longer than any roll-out of the consumer.",
        means="Nobody books events. They wait in Redis, and journals of gateways grow by 500 MB an hour at 100 orders a"
        " second; when their volumes are full, orders are refused.",
        customer="Nothing at first: orders, balances and limits go on. `GET /v1/usage` and statements lag behind.",
        do=(
            "`kubectl get pods -l app.kubernetes.io/name=consumer`, then `kubectl logs POD --previous`: its last line"
            " says why it ended.",
            "Is the ledger's database there? `ghub verify` says in one sentence if it is not.",
        ),
        over="`ghub_events_waiting` falls to 0 within minutes.",
    ),
    Alert(
        name="GhubTargetDown",
        severity="warning",
        summary="{{ $labels.pod }} does not answer on its metrics port",
        expr=f'up{{job=~"{GATEWAYS}|{CONSUMERS}"}} == 0',
        for_s=WATCH_FOR_S,
        why="A pod that restarts is back within a minute; one that is gone leaves the list of targets.",
        means="The process is frozen, its event loop is stuck, or the network to it is cut. Its metrics port has"
        " connections of its own, so a crowd is not the reason.",
        customer="Requests that reach this pod may hang until the ingress gives up; the other pods serve.",
        do=(
            "`kubectl logs POD --since=10m`, `kubectl top pod POD`: is it out of CPU or memory?",
            "`kubectl delete pod POD`: its journal stays on its claim, and the next start replays it.",
        ),
        over='`up{pod="POD"}` is 1.',
    ),
    Alert(
        name="GhubNotReady",
        severity="critical",
        summary="{{ $labels.pod }} does not take work",
        expr="min by (namespace, pod) (ghub_ready) == 0",
        for_s=2 * MINUTE,
        why="A graceful stop takes 90 s; the store's watch and a journal's fresh file heal within 20 s.",
        means="`/readyz` is 503. A gateway: background work fails, the journal cannot be written, or the store takes no"
        " images. A consumer: Redis or the ledger is away.",
        customer="503 `temporarily_unavailable` with `retry-after` from a gateway, before anything is held or bought.",
        do=(
            "`kubectl port-forward POD 9090`, and in another shell `curl localhost:9090/readyz`: `not ready: WHY`. The"
            " pod's events have the status 503 alone.",
            "`journal failed`: [GhubJournalNotWritable](#ghubjournalnotwritable). `store`:"
            " [when the store takes no images](operations.md#when-the-store-takes-no-images)."
            " `… fails`: [GhubBackgroundFault](#ghubbackgroundfault).",
        ),
        over="`ghub_ready` is 1, `/readyz` says `ready`.",
    ),
    Alert(
        name="GhubOrdersFailing",
        severity="critical",
        summary="{{ $value | humanizePercentage }} of the orders end with a 5xx",
        expr=f'sum by (namespace) (rate(ghub_requests_total{{route="{ORDERS}",status=~"5.."}}[$window]))'
        f' / sum by (namespace) (rate(ghub_requests_total{{route="{ORDERS}"}}[$window])) > 0.1',
        window_s=5 * MINUTE,
        for_s=2 * MINUTE,
        why="Single failures of an upstream are usual, one in ten is not. Refusals for which a customer is responsible"
        " are 4xx and do not count.",
        means="Customers do not get what they order, for a reason that is ours or a provider's.",
        customer="500, 502, 503 or 504; all but `charged_fetch_by_id` and `end_unknown` are not charged.",
        do=(
            "Dashboard, *Errors by reason*: one model only is [GhubUpstreamFailing](#ghubupstreamfailing);"
            " `store_failed` is [GhubStoreFailing](#ghubstorefailing).",
            "*Refused orders by reason*: `redis_away` is [GhubRedisAway](#ghubredisaway); a crowd is"
            " [GhubOrdersTurnedAway](#ghubordersturnedaway).",
            f"`{logs('gateway')} | grep '\"status\":50'`: the lines have model, reason and order.",
        ),
        over="The share is below 10 % for five minutes.",
    ),
    Alert(
        name="GhubUpstreamFailing",
        severity="warning",
        summary="{{ $labels.model }} fails at {{ $labels.provider }}: {{ $value | humanizePercentage }} of its calls",
        expr=f'sum by (namespace, provider, model) (rate(ghub_upstream_seconds_count{{outcome=~"{FAILED}"}}[$window]))'
        " / sum by (namespace, provider, model) (rate(ghub_upstream_seconds_count[$window])) > 0.25"
        " and sum by (namespace, provider, model)"
        f' (increase(ghub_upstream_seconds_count{{outcome=~"{FAILED}"}}[$window])) >= 5',
        window_s=10 * MINUTE,
        for_s=MINUTE,
        why="A quarter of the calls, and at least five, so that one failure of a model that is seldom ordered wakes"
        " nobody. Refused prompts are no failures.",
        means="The provider is down, throttles us, has changed its wire, or does not know our key any more.",
        customer="502 or 504 for this model, not charged; other models go on.",
        do=(
            "Dashboard, *Upstream calls by outcome*: `rate_limited` and `busy` are our quota there; `not_authorised` is"
            " the key; `bad_reply` a changed wire; `retired` a model that is gone ([models.md](models.md)).",
            "The provider's status page. The log's `upstream_failure` lines have the ids of the orders.",
            "If it lasts: take the model out of `models.toml`, so that customers get a 404 that names another one. The"
            " file is in the ConfigMap `gateway-files`: `components/config-files`, or the chart's `files`. An"
            " installation without it has the image's: add it with the repository's `config/models.toml` of that"
            " version, less the model, and with `config/plans.toml`.",
        ),
        over="The model's share of failures is below a quarter.",
    ),
    Alert(
        name="GhubCircuitOpen",
        severity="warning",
        summary="{{ $labels.upstream }} of {{ $labels.provider }} is left alone: it has failed again and again",
        expr='max by (namespace, provider, upstream) (ghub_circuit{state="closed"}) == 0',
        for_s=WATCH_FOR_S,
        why="An open circuit lasts a minute at most before an order tries it, so after five minutes at least five"
        " tries were in vain. One process whose circuit is closed is enough to say that it works.",
        means="Every gateway gives this route no orders but one try a minute: the provider is down, throttles us, or"
        " does not know our key any more.",
        customer="Models with a second route go on by that, at a price of at most their quote. The others are 502"
        " `provider_unavailable` before anything is held, with a time to come back.",
        do=(
            "As for [GhubUpstreamFailing](#ghubupstreamfailing).",
            "No restart is needed when it is back: the next try closes the circuit.",
            "A second route for the model: [models.md](models.md#a-second-route).",
        ),
        over='`ghub_circuit{state="closed"}` is 1 again for the route.',
    ),
    Alert(
        name="GhubStoreFailing",
        severity="critical",
        summary="The image store fails for {{ $labels.pod }}",
        expr='sum by (namespace, pod) (increase(ghub_store_seconds_count{outcome="failed"}[$window])) > 3',
        window_s=5 * MINUTE,
        why="A try that fails is made again, and one or two may always. More in five minutes are a store that is ill.",
        means="Uploads fail. After two in a row no order is accepted until a probe was written and read.",
        customer="502 or 504 for orders under way, not charged; then 503 with `retry-after`.",
        do=(
            "The log's `store_failed`, `store_away` or `store_misconfigured` says the cause, the host and the request.",
            "[When the store takes no images](operations.md#when-the-store-takes-no-images) has a row for each.",
        ),
        over="`ghub_ready` is 1, and no `store_failed` for five minutes.",
    ),
    Alert(
        name="GhubSpoolFull",
        severity="warning",
        summary="Pictures were lost because the spool of {{ $labels.pod }} was full",
        expr="sum by (namespace, pod) (increase(ghub_spool_full_total[$window])) > 0",
        why="Each one was bought and could not be kept.",
        means="Pictures that cannot be read twice wait in the spool while the store is slow; it was full for 5 s.",
        customer="502 for those orders, not charged.",
        do=(
            "Is the store slow or away? [GhubStoreFailing](#ghubstorefailing).",
            "Else give it more disk: `GHUB_SPOOL_MB`, and the `emptyDir` behind `GHUB_SPOOL_DIR`.",
        ),
        over="`ghub_spool_bytes` falls, and the counter stands still.",
    ),
    Alert(
        name="GhubOrdersTurnedAway",
        severity="warning",
        summary="{{ $labels.pod }} turns orders away: more come than it can serve",
        expr="sum by (namespace, pod) (increase(ghub_orders_turned_away_total[$window])) > 10",
        window_s=5 * MINUTE,
        why="A gateway refuses only after two seconds in which more came than it served; a handful is one crowd.",
        means="The load is above what this process can do.",
        customer="503 with a time to return that differs for each; nothing is charged.",
        do=(
            "`kubectl scale statefulset/gateway --replicas=N`, or raise the HPA's maximum.",
            f"Who sends them? `{logs('gateway')} | grep orders_turned_away`, then the requests' `org`;"
            " `ghub org limits ORG --requests-per-minute N` bounds one.",
        ),
        over="The counter stands still for five minutes.",
    ),
    Alert(
        name="GhubLoopLate",
        severity="warning",
        summary="{{ $labels.pod }} has more to do than one core can",
        expr="histogram_quantile(0.95, sum by (namespace, pod, le) (rate(ghub_loop_late_seconds_bucket[$window])))"
        " > 0.1",
        window_s=5 * MINUTE,
        for_s=WATCH_FOR_S,
        why="At 0.1 s the gate lets in four orders at a time instead of 32; five minutes are no single crowd.",
        means="The event loop is late: too many orders for a core, a CPU limit that throttles, or a noisy neighbour.",
        customer="Slower answers, first of all; then 503 by the gate.",
        do=(
            "`kubectl top pod POD`: at one core it is load: more replicas. Below it, is there a CPU limit? Remove it.",
            "If one pod of many is late alone: `kubectl delete pod POD`, and look at its node.",
        ),
        over="The 95th percentile is below 0.1 s.",
    ),
    Alert(
        name="GhubConnectionsFull",
        severity="warning",
        summary="{{ $labels.pod }} has as many connections as it may have",
        expr='sum by (namespace, pod) (increase(ghub_connections_cut_total{why="full"}[$window])) > 0',
        window_s=5 * MINUTE,
        why="A client that waits needs one of 4,096 connections; that all are open is never usual.",
        means="New connections get a 503 and are closed.",
        customer="503 `temporarily_unavailable`, or a closed connection.",
        do=(
            "Who holds them? Does the ingress keep connections to the pods without end?",
            "The log's `files` line at the start says how many files the process may open; raise the hard limit if the"
            " maximum is below 4,096. Else more replicas.",
        ),
        over="`ghub_connections` is below the maximum, and nothing is cut.",
    ),
    # --- Redis ---
    Alert(
        name="GhubRedisAway",
        severity="critical",
        summary="{{ $labels.pod }} does not reach Redis",
        expr="max by (namespace, pod) (ghub_redis_up) == 0",
        for_s=30,
        why="A fail-over takes some seconds; thirty are an outage.",
        means="No order can be admitted. Orders in flight are answered, and their charges wait in the journal.",
        customer="503 `temporarily_unavailable` within 100 ms; balances and lists of keys are 503, too.",
        do=(
            "Does Redis run, and does `GHUB_REDIS_URL` lead to its master? The log says `redis_is_no_master`,"
            " `redis_refuses_login` or `pressure_waits`.",
            "Do not restart gateways: they come back by themselves. A wiped Redis is refilled from the ledger in"
            " seconds ([losing Redis](operations.md#losing-redis)).",
        ),
        over="`ghub_redis_up` is 1; orders are 200 within a second. `ghub verify` if it had lost data.",
    ),
    Alert(
        name="GhubRedisFull",
        severity="critical",
        summary="Redis has used {{ $value | humanizePercentage }} of its memory",
        expr=f"max by (namespace) (ghub_redis_memory_ratio) > {MEMORY_MARK - 0.1:g}",
        for_s=MINUTE,
        why=f"At {MEMORY_MARK:.0%} admission stops, so that open orders can still be settled; this is ten points before"
        " it.",
        means="Wallets, results of the last day and kept events need more than `maxmemory` leaves.",
        customer=f"Nothing yet; from {MEMORY_MARK:.0%} on 503 `temporarily_unavailable` for new orders.",
        do=(
            "`redis-cli info memory`, then `config set maxmemory` higher, or a larger instance.",
            "Do consumers run? Events that nobody books stay: `ghub_events_waiting`.",
            "`GHUB_KEEP_H` lower keeps fewer committed events; gateways and consumers restart for it.",
        ),
        over="The ratio is below the line; `admission_stopped` is no longer logged.",
    ),
    # --- the journal ---
    Alert(
        name="GhubJournalNotWritable",
        severity="critical",
        summary="The journal's disk of {{ $labels.pod }} fails",
        expr="min by (namespace, pod) (ghub_journal_writable) == 0",
        for_s=10,
        why="A fresh file is tried every second; ten seconds are a disk that does not come back by itself.",
        means="A write or a sync failed. Nothing of it was acknowledged; no order is accepted until a fresh file is"
        " synced.",
        customer="503; orders that were being answered are 503 `charged_fetch_by_id`, and can be fetched by their id.",
        do=(
            "`journal_failed` in the log has the disk's own error: full, read-only, I/O.",
            f"A full volume: {ENLARGE}.",
            f"A broken one: {INSPECT}. Then a new volume, and the old one's journal is replayed:"
            " [a volume that breaks](operations.md#a-volume-that-breaks).",
        ),
        over="`journal_healed` in the log, `ghub_journal_writable` 1.",
    ),
    Alert(
        name="GhubJournalRoom",
        severity="critical",
        summary="The journal of {{ $labels.pod }} finds no space for its next file",
        expr=f"min by (namespace, pod) (ghub_journal_room_bytes) < {SEGMENT_BYTES * 3 // 4}",
        for_s=MINUTE,
        why="A spare file of 16 MB is always allocated ahead, so below three quarters of one there is none; a minute is"
        " 60 tries.",
        means="`journal_out_of_room`: the volume is full. Admission stops before the last file is.",
        customer="Nothing yet; then 503 for new orders.",
        do=(
            "Do consumers run? What the ledger does not have cannot be deleted: [GhubConsumerBehind]"
            "(#ghubconsumerbehind).",
            f"{INSPECT}.",
            f"{ENLARGE}. Or lower `GHUB_KEEP_H`.",
        ),
        over="`ghub_journal_room_bytes` is above 16 MB again.",
    ),
    Alert(
        name="GhubAnswersWait",
        severity="warning",
        summary="An order that {{ $labels.pod }} answered is not in the ledger since {{ $value | humanizeDuration }}",
        expr="max by (namespace, pod) (ghub_journal_oldest_seconds) > $age",
        age_s=10 * MINUTE,
        for_s=MINUTE,
        why="Usually a second. Ten minutes are longer than what a consumer that restarts needs for a backlog.",
        means="Redis, the ledger or the consumer are away, or an event of that organisation was set aside.",
        customer="Nothing: the order was answered and its images are there. Its organisation's usage lags behind.",
        do=(
            "[GhubRedisAway](#ghubredisaway), [GhubConsumerBehind](#ghubconsumerbehind) or"
            " [GhubEventsSetAside](#ghubeventssetaside) firing, too? Begin there.",
            "`charge_waits` in the log names the organisation; `ghub event list`, `ghub order show ID`.",
        ),
        over="`ghub_journal_open_orders` falls to what is in flight.",
    ),
    Alert(
        name="GhubJournalsOrphaned",
        severity="warning",
        summary="The journal of {{ $labels.exported_pod }} is open, and its gateway is gone",
        expr="max by (namespace, exported_pod) (ghub_journals_orphaned) > 0",
        for_s=15 * MINUTE,
        why="A pod that restarts or is rescheduled replays its own journal within minutes. Consumers tell of it, so the"
        " gateway's name is `exported_pod`: `pod` is the consumer.",
        means="A gateway ended without closing its journal and nobody has started on its volume since, for example"
        " because the StatefulSet was scaled down after a crash. Charges may be in it that nobody else has.",
        customer="Has the images; those orders are not charged yet.",
        do=(
            "`kubectl exec statefulset/gateway -- ghub journal orphans` names the journal and its pod; a crash shows"
            " there after some 20 s.",
            "`IMAGE=$(kubectl get statefulset gateway -o jsonpath='{.spec.template.spec.containers[0].image}')`, then"
            ' `kubectl exec statefulset/gateway -- ghub journal job POD --image "$IMAGE" | kubectl create -f -`: a Job'
            " on that pod's claim replays the journal and closes it. Running it twice is safe. With a chart whose"
            " `existingSecret` is another one: `--secret NAME`, too; `--pull-secret NAME` for a registry with a login.",
            "`kubectl logs --follow job/NAME`, by the name that was printed. What to do with the claim afterwards:"
            " [a pod that does not come back](operations.md#a-pod-that-does-not-come-back).",
            "If the volume is lost for good:"
            " `kubectl exec statefulset/gateway -- ghub journal close ID --lost --reason TEXT`"
            " ([the journal](operations.md#the-journal)).",
        ),
        over="`ghub_journals_orphaned` is 0; `ghub verify` no longer says *not provable*.",
    ),
    # --- events and the ledger ---
    Alert(
        name="GhubConsumerBehind",
        severity="warning",
        summary="Events are booked {{ $value | humanizeDuration }} late",
        expr="max by (namespace) (ghub_events_oldest_seconds) > $age",
        age_s=2 * MINUTE,
        for_s=MINUTE,
        why="An event is booked within a second; a consumer that takes over from a dead one begins after ten.",
        means="The consumer cannot keep up, or cannot reach Redis or the ledger.",
        customer="Nothing: wallets are charged in Redis. Usage, statements and sinks lag behind.",
        do=(
            f"`{logs('consumer')} | grep consumer_waits` says which of Redis and ledger is away.",
            "If neither is: `kubectl scale deployment/consumer --replicas=N`; the database's CPU and disk.",
        ),
        over="`ghub_events_waiting` and `ghub_events_oldest_seconds` fall to 0.",
    ),
    Alert(
        name="GhubEventsSetAside",
        severity="critical",
        summary="{{ $value }} events could not be booked",
        expr="sum by (namespace) (increase(ghub_events_set_aside_total[$window])) > 0",
        window_s=HOUR,
        why="One is money that is not in the record; `ghub verify` fails until it is repaired.",
        means="The consumer could not read an entry of the stream, or the database refused it. The others go on.",
        customer="Nothing: the order was answered and charged in the wallet.",
        do=(
            "`ghub event list`, `ghub event show ID`; repair the cause, then `ghub event retry ID`"
            " ([a poisoned event](operations.md#a-poisoned-event)).",
        ),
        over="`ghub event list` is empty and `ghub verify` says `ok`.",
    ),
    Alert(
        name="GhubLedgerRestored",
        severity="critical",
        summary="The ledger lacks what it had committed",
        expr="sum by (namespace) (increase(ghub_ledger_restored_total[$window])) > 0",
        window_s=HOUR,
        why="It happens when a backup is put back, and never else.",
        means="The ledger was restored. It is fed again from Redis and journals, and the wallets are rebuilt.",
        customer="503 for the seconds of the rebuild; then the balance that the ledger knows.",
        do=(
            "On purpose: [a ledger restored from a backup](operations.md#restoring-the-ledger-from-a-backup), from step"
            " 2 on. Not on purpose: who did it? Stop that first.",
        ),
        over="`ghub verify` says `ok`, after `ghub wallet accept` of what is lost.",
    ),
    # --- money ---
    Alert(
        name="GhubChargedAfterError",
        severity="warning",
        summary="{{ $value }} orders were charged although their customers were told an error",
        expr="sum by (namespace) (increase(ghub_charged_after_error_total[$window])) > 0",
        why="Each is a customer who may ask.",
        means="The charge stood before the disk or Redis failed; the answer was 503 `charged_fetch_by_id`, or"
        " `end_unknown` before it was known.",
        customer="The error says that the images can be fetched by the order's id; most SDKs do so by their retry.",
        do=(
            "`charged_after_error` in the log has the orders; `ghub order show ID`.",
            "If the images are of no use any more: `ghub order refund ID --reason …`.",
        ),
        over="The counter stands still; what was refunded is in `ghub audit`.",
    ),
    Alert(
        name="GhubBalanceBelowZero",
        severity="warning",
        summary="A balance fell below zero",
        expr="sum by (namespace) (increase(ghub_balance_below_zero_total[$window])) > 0",
        why="The hold makes it impossible in any usual way, so each is looked at.",
        means="A journal's charge, a settlement after an adjustment, or a rebuild found less money than was spent.",
        customer="402 `insufficient_balance` until topped up.",
        do=(
            "`balance_below_zero` in the log has organisation, cause, order and balance; `ghub balance ORG`.",
            "Cause `rebuild`: Redis had lost a charge, so why was it away? Cause `adjustment`: was its amount meant?",
        ),
        over="`ghub balance ORG` is not below zero, by a top-up or `ghub credit add`.",
    ),
    Alert(
        name="GhubCostAboveQuote",
        severity="warning",
        summary="{{ $labels.model }} costs more than we quote",
        expr="sum by (namespace, model) (increase(ghub_cost_above_quote_total[$window])) > 0",
        window_s=HOUR,
        why="Every such order is our loss, and the next ones will be, too.",
        means="The provider's reply says a higher price than our price book has.",
        customer="Nothing: the quote holds.",
        do=(
            "`cost_above_quote` in the log has both prices. Correct the model's price in `models.toml`"
            " ([models.md](models.md)); `ghub reconcile` says what it has cost.",
        ),
        over="The counter stands still for an hour.",
    ),
    Alert(
        name="GhubFxRateMissing",
        severity="critical",
        summary="A month has no approved exchange rate",
        expr="max by (namespace) (ghub_fx_months_missing) > 0",
        for_s=10 * MINUTE,
        why="It begins three days before the month, and last month's rate holds for 48 h more: ten minutes cost nothing"
        " and spare a false alarm at a start.",
        means="This month, or the next one in at most three days, has no rate, or one that nobody has approved.",
        customer="Nothing until the grace is over; then 503 `fx_rate_missing` for every order.",
        do=(
            "`ghub fx list`; then `ghub fx fetch YYYY-MM` or `ghub fx set`, and `ghub fx approve` by a second person"
            " ([the month's exchange rate](money.md#the-months-exchange-rate)).",
        ),
        over="`ghub_fx_months_missing` is 0 within half a minute of the approval.",
    ),
    # --- sinks ---
    Alert(
        name="GhubSinkBehind",
        severity="warning",
        summary="The sink {{ $labels.sink }} lacks events since {{ $value | humanizeDuration }}",
        expr="max by (namespace, sink) (ghub_sink_oldest_seconds) > $age",
        age_s=15 * MINUTE,
        for_s=MINUTE,
        why="A receiver's own deployment takes minutes; it is asked again at most a minute apart.",
        means="The receiver is away, slow, or refuses our token.",
        customer="Nothing, unless the sink is what bills them.",
        do=("`ghub sink list` says why. Nothing is lost: it is sent when it is back ([sinks.md](sinks.md)).",),
        over="`ghub_sink_pending` falls to 0.",
    ),
    Alert(
        name="GhubSinkRefused",
        severity="warning",
        summary="The sink {{ $labels.sink }} refused {{ $value }} events for good",
        expr="max by (namespace, sink) (ghub_sink_set_aside) > 0",
        for_s=MINUTE,
        why="It does not go away by itself, and the sink's sum lacks the events.",
        means="The receiver answered that it will never take these: a field, a size, a customer that it does not know.",
        customer="Nothing, unless the sink is what bills them.",
        do=("`ghub sink show NAME` has the receiver's words; correct the cause, then `ghub sink replay NAME`.",),
        over="`ghub_sink_set_aside` is 0.",
    ),
    # --- webhooks ---
    Alert(
        name="GhubWebhooksWait",
        severity="warning",
        summary="A webhook's delivery waits for {{ $value | humanizeDuration }} since its turn has come",
        expr="max by (namespace) (ghub_webhooks_oldest_seconds) > $age",
        age_s=30 * MINUTE,
        for_s=MINUTE,
        why="A turn comes within seconds; a server that answers nobody has one at a time, so its own may be late.",
        means="No consumer delivers: none has `GHUB_SECRETS_KEY`, or all are frozen. Or one server is too slow.",
        customer="They are told late, or not at all: they must ask for their orders themselves.",
        do=(
            "`webhooks_without_key` in a consumer's log: give consumers `GHUB_SECRETS_KEY`.",
            "`ghub webhook deliveries ORG --state waiting` has the last error of each delivery.",
        ),
        over="`ghub_webhooks_oldest_seconds` falls to 0.",
    ),
    Alert(
        name="GhubWebhooksSetAside",
        severity="warning",
        summary="{{ $value }} deliveries to webhooks were given up within a day",
        expr="max by (namespace) (ghub_webhooks_set_aside) > 0",
        for_s=MINUTE,
        why="It does not go away within a day: a receiver has failed for as long.",
        means="A customer's receiver was away, refused, or its address has changed.",
        customer="They were not told of what ended meanwhile.",
        do=(
            "`webhook_set_aside` in a consumer's log names the organisation: tell it.",
            "Once it is well: `ghub webhook replay --webhook WEBHOOK_ID`. If it will not be: `ghub webhook disable`.",
        ),
        over="`ghub_webhooks_set_aside` is 0.",
    ),
    # --- processes ---
    Alert(
        name="GhubBackgroundFault",
        severity="warning",
        summary="A bug in {{ $labels.part }} of {{ $labels.pod }}",
        expr="sum by (namespace, pod, part) (increase(ghub_background_faults_total[$window])) > 0",
        why="The part is restarted by itself; the bug stays until somebody is told of it.",
        means="Background work ended in an unforeseen way. After eight faults in a row the process ends.",
        customer="503 while a part that orders need does not run; else nothing.",
        do=("Report the trace of `background_fault` in the log. If it repeats after an upgrade, roll back.",),
        over="No further fault for 15 minutes.",
    ),
    Alert(
        name="GhubProcessRestarts",
        severity="warning",
        summary="{{ $labels.pod }} starts again and again",
        expr="max by (namespace, pod)"
        f' (changes(process_start_time_seconds{{job=~"{GATEWAYS}|{CONSUMERS}"}}[$window])) > 2'
        " or sum by (namespace, pod) (increase(ghub_process_restarts_total[$window])) > 2",
        window_s=30 * MINUTE,
        why="A roll-out is one start of a pod. Three in half an hour are a process that cannot live.",
        means="It is killed for memory, ends by itself, or fails its liveness probe.",
        customer="The connections of that process drop; what it had answered or admitted is settled by its journal.",
        do=(
            "`kubectl describe pod POD`: `OOMKilled`, `Error`, or a failed probe?",
            "`kubectl logs POD --previous`: its last line says why it ended.",
        ),
        over="No start for half an hour.",
    ),
    Alert(
        name="GhubConfigRefused",
        severity="warning",
        summary="{{ $labels.pod }} refuses the file of {{ $labels.file }} that is on disk",
        expr="max by (namespace, pod, file) (ghub_config_refused) == 1",
        for_s=5 * MINUTE,
        why="A file that is being written is refused for a second; a ConfigMap reaches all pods within two minutes.",
        means="Models, prices or plans were changed, and the new file is wrong. The earlier one stays in force.",
        customer="Nothing: the old prices and plans hold. A pod that starts meanwhile ends with a sentence if the file"
        " is not whole; if it is only a price, it starts and sells at the ledger's.",
        do=(
            f"`{logs('gateway')} | grep config_refused` names the file, the field and the fix. Correct it, or put the"
            " old one back; an earlier price needs another `price_book` and an `effective_from`"
            " ([a changed price](models.md#a-changed-price)).",
        ),
        over="`ghub_config_refused` is 0, and `ghub_config_info` has one version on all pods.",
    ),
)
