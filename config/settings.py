"""Every number and address that the parts are built from: those of the environment, and ours with their reasons."""

import os
from collections.abc import Iterable
from difflib import get_close_matches
from getpass import getuser
from pathlib import Path
from tempfile import gettempdir
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from config.origins import checked_origins

# --- Time: request deadline < hold's life < graceful stop of the server < grace of the platform -----------------------

REPLY_MARGIN_S = 2.0
"""Kept free at the deadline's end for settling and sending the reply; a tenth of deadlines under 20 s."""

HOLD_MARGIN_S = 10.0
"""A hold lives this much longer than its request's deadline: a settlement in time never finds an expired hold."""

STOP_MARGIN_S = 5.0
"""After SIGTERM the server waits a hold's life and this before it cuts what is still running."""

EXIT_MARGIN_S = 5.0
"""Time to close pools and end the process, between the server's stop and the platform's kill."""

PRE_STOP_S = 10.0
"""The platform takes the pod off its load balancer before SIGTERM; `k8s/base` sleeps this long."""

LONGEST_DEADLINE_S = 75.0
"""The longest deadline of an answer that is waited for: clients, load balancers and proxies give up after 90 s."""

LONGEST_STAY_S = 360.0
"""The longest deadline of a long order that no other process can go on with, so that a stop waits for it: six minutes
are what OpenAI's clients are told to wait for its largest images. Jobs of a queue go on elsewhere, and may take longer.
"""

PLATFORM_GRACE_S = PRE_STOP_S + LONGEST_STAY_S + HOLD_MARGIN_S + STOP_MARGIN_S + EXIT_MARGIN_S
"""`terminationGracePeriodSeconds` in `k8s/base`: a shorter one would kill a generation that is still wanted."""

LONGEST_LONG_DEADLINE_S = 900.0
"""Of a long order (`Prefer: respond-async`), in seconds: its money is held until then, and its customer waits."""

# --- Redis -----------------------------------------------------------------------------------------------------------

REDIS_DECISION_S = 0.1
"""A request waits this long for a verdict, then answers 503: the promise is a decision within 100 ms."""

REDIS_BACKGROUND_S = 2.0
"""The longest call for work that no customer waits for: projection, consumer, a void that is repeated."""

REDIS_CONNECTIONS = 16
"""Per process. A script takes under 0.1 ms, so 16 answer more calls than one core can ask."""

MAX_OPEN_HOLDS = 2_000
"""For each organisation: 130 images a second at 15 s each. It limits how many holds one admission may have to expire
(rule 7)."""

MAX_UNPAID_MICRO_MXN = 500_000_000
"""500.00 MXN in an hour, and a tenth of what the organisation has spent in the month: what its orders that met their
deadline, or were cancelled while they were made, may have cost us before it places no more until the next hour. Each
was held at its most, 11 MXN for the dearest image: so it is 45 of those. Ends that no customer can bring about (a
provider's outage, a fault of ours) are counted, and bound nobody."""

STREAM_BACKLOG = 50_000
"""Max events of one partition that are not in the ledger yet, about 50 MB: then admission stops, and settlement goes on
(rule 28)."""

MEMORY_MARK = 0.8
"""Admission stops when Redis has used this share of its `maxmemory`; the rest is for settling (rule 28)."""

KEPT_BYTES = 16 * 1024 * 1024
"""Committed events of one partition that are kept to be fed again: about 8,000 orders of one image. All 32 partitions
take 512 MiB at most, a third of what full backlogs would take."""

KEPT_MARK = 0.6
"""Above this share of Redis' `maxmemory`, no committed event is kept: well before admission stops at MEMORY_MARK."""

KEEP_H = 24.0
"""How long committed events can be fed again: with a backup each night, the last backup is younger than this."""

MAX_KEEP_H = 31 * 24
"""The most that GHUB_KEEP_H may be, a month: an older backup has other problems, and KEPT_BYTES comes long before."""

CLOSED_S = 24 * 3600
"""How long Redis remembers how an order ended: far beyond every retry of a settlement."""

LOW_BALANCE_MICRO_MXN = 20_000_000
"""20.00 MXN: below it the organisation gets a notice, as its customers were promised."""

PROJECTION_POLL_S = 1.0
"""How often the projection looks for a change in SQL. "Within seconds" (rule 2)."""

HEARTBEAT_S = 1.0
"""How often a gateway says that it is alive; after ten missed beats another gateway cancels its upstream jobs."""

FX_POLL_S = 20.0
"""How often a gateway reads the rate table. Every pod sees a new rate within 60 s (rule 25)."""

PRICES_POLL_S = 5.0
"""How often a gateway asks the ledger for a new list of prices: many times before an announced change can begin."""

CONFIG_POLL_S = 5.0
"""How often a gateway reads its files of models and plans. Two equal looks make a new content: it holds in 10 s."""

END_USERS_S = 1.0
"""How often a gateway records whom new pseudonyms stand for: at most one transaction of the ledger a second."""

# --- Storage ---------------------------------------------------------------------------------------------------------

STORE_CONNECT_S = 5.0
"""The longest connection to the store: DNS, TCP and TLS."""

STORE_WRITE_S = 10.0
"""The longest write of one chunk of an upload: a store that reads nothing for this long is frozen; it is retried."""

STORE_ANSWER_S = 10.0
"""The longest wait from an upload's last byte to the store's answer. Measured stores take well under 1 s for 40 MB."""

STORE_STUCK_S = 3.0
"""If the deadline stops an upload, the store failed if it accepted nothing for this long. A store that works accepts a
piece within milliseconds: if it was still accepting, the picture was endless."""

STORE_JWT_LIFE_S = 600
"""The life of a service token that we mint; a new one is made after half of it, so clocks may differ by minutes."""

STORE_WATCH_S = 10.0
"""The time between checks of the store. After two failures no order is accepted: its image would be paid, then lost."""

STORE_PROBE_S = 10.0
"""The longest probe: 4 MB written, read and removed. Measured stores take well under a second, and a store that takes
longer than this delivers no order's images in time."""

STORE_FIRST_PAUSE_S = 0.25
"""The pause before an upload's second try; doubled each time up to the next number, and cut at random by up to half."""

STORE_LONGEST_PAUSE_S = 2.0
"""The longest pause between two tries of an upload: the return of a store is noticed this fast."""

LEAST_SPOOL_MB = 64
"""The least disk of a process' spool: one picture of MAX_IMAGE_BYTES."""

SPOOL_MEMORY_BYTES = 96 * 1024
"""A picture of at most this size waits in memory; a larger one goes to the spool's disk, in pieces of this size."""

SPOOL_WINDOW_BYTES = 64 * 1024
"""How far an upload may be behind its picture in the spool before the upstream is read no further."""

SPOOL_WAIT_S = 5.0
"""How long a picture waits for room in a full spool before it is given up."""

SPOOL_MARK = 0.8
"""Above this share of the spool, organisations whose pictures fill it place no order; the rest is for open orders."""

SPOOL_END = 0.9
"""Above this share of the spool, nobody places an order."""

STREAMS = 400
"""Pictures that one process reads at a time, each within 512 KiB: 200 MiB. Others wait, and so do their upstreams."""

SPARE_STREAMS = 40
"""More streams, for organisations that have less than their share while others read all of `STREAMS`: 20 MiB more."""

MAX_PICTURES = 2_000
"""Pictures that one process has under way before it refuses orders; a waiting one holds at most 128 KiB of a reply.
One organisation may have all of them."""

SPARE_PICTURES = 400
"""More pictures, for organisations that have less than their share while others have all of `MAX_PICTURES`. None takes
more of them than it leaves: 25 orders of eight for the first organisation, 12 for the second, and so on; 50 MiB more.
"""

MAX_IMAGE_SIDE_PX = 16_384
"""Max length of a side: the largest model makes 3,840, and a header may claim four thousand million."""

VERIFY_LOOKS = 256
"""Images that `ghub verify` checks at a time. A store that answers in 20 ms could answer 12,800 a second, so our own
0.5 ms of CPU for each image is the limit: a million take about eight minutes."""

SWEEP_AGE_S = 24 * 3600
"""Younger objects are not swept: a hundred times as long as any order lives, and a day to notice a mistake."""

SWEEP_SHORTEST_AGE_S = 60 * 60
"""No sweep may look at younger objects: four times the longest life of a hold, with room for clocks that disagree."""

# --- Journal ---------------------------------------------------------------------------------------------------------

JOURNAL_POLL_S = 1.0
"""How often a gateway reports what its journal still has, and asks the ledger which answered orders it has booked."""

JOURNAL_KEPT_BYTES = 512 * 1024 * 1024
"""The booked part of a gateway's journal that is kept, for GHUB_KEEP_H at most: a restored ledger is fed from it (rule
30). It is a quarter of the claim in `k8s/base`; about 130,000 orders that were written one by one."""

JOURNAL_STOP_S = 3.0
"""How long a gateway that stops waits for the consumer to book its last orders; if it does not, the journal is left to
the next gateway."""

# --- Sinks -----------------------------------------------------------------------------------------------------------

SINK_POLL_S = 1.0
"""How often a sink's task looks for what was booked."""

SINK_SEND_S = 10.0
"""The longest delivery, from the connection to the answer's last byte. Receivers of metering events take under 1 s."""

SINK_LEASE_S = 60.0
"""How long nobody else sends what a consumer has claimed: six deliveries. If it dies, another comes this much later."""

SINK_FIRST_PAUSE_S = 0.5
"""The pause after a failed delivery; doubled after each further one, and cut at random by up to half."""

SINK_LONGEST_PAUSE_S = 60.0
"""The longest pause: a receiver that comes back after hours is noticed this fast."""

ORPHANS_S = 15.0
"""How often consumers look for journals whose gateway is gone. Such a state lasts until somebody acts."""

SINK_LAG_S = 15.0
"""How often the metrics of what sinks have not taken are read: as often as scrapers ask. A million rows take 0.5 s."""

# --- Webhooks --------------------------------------------------------------------------------------------------------

WEBHOOK_POLL_S = 1.0
"""How often a consumer looks for deliveries whose turn has come."""

WEBHOOK_SEND_S = 15.0
"""The longest delivery, from the look-up of the name to the answer's status. Other senders wait for 5 to 30 s."""

WEBHOOK_LEASE_S = 60.0
"""How long nobody else sends what a consumer has claimed: four deliveries. If it dies, another one sends it then."""

WEBHOOK_PAUSES_S = (5.0, 30.0, 120.0, 600.0, 3_600.0, 3 * 3_600.0, 6 * 3_600.0, 14 * 3_600.0)
"""The pauses after failed attempts, a day together, each with a fifth more or less at random; then it is set aside."""

WEBHOOK_PATIENCE_S = 30 * 3_600.0
"""How long a delivery may wait for its turn: longer than all its pauses, so only a server too slow for its events."""

WEBHOOKS_AT_ONCE = 100
"""Deliveries that a process sends at a time: about 0.2 MB each, and as many threads that look names up."""

WEBHOOKS_PER_SERVER = 4
"""Deliveries to one server that are claimed while fewer are under way; one that fails has a single one at a time."""

WEBHOOK_KEPT_D = 30
"""Days for which ended deliveries are listed and can be replayed. What a key or a model was told of is remembered by
its row, and lies at most 23 days apart."""

WEBHOOK_LOOK_S = 600.0
"""How often a consumer looks for keys and models that end, which is a matter of days, and deletes old deliveries."""

WEBHOOK_LAG_S = 15.0
"""How often the metrics of waiting deliveries are read: as often as scrapers ask."""

# --- Tracing ---------------------------------------------------------------------------------------------------------

TRACES_STOP_S = 1.0
"""How long a process that stops waits for the collector to take the last spans: a fifth of EXIT_MARGIN_S, which the
journal's three seconds also belong to. A collector near it takes milliseconds."""

# --- Reading ---------------------------------------------------------------------------------------------------------

USAGE_PER_MINUTE = 60
"""Reports of an organisation in each process. A dashboard asks every few seconds; the largest report takes a second."""

STATEMENTS_PER_MINUTE = 60
"""Statements of an organisation in each process, as reports of usage: one reads every charge of its month."""

CANCELS_PER_MINUTE = 60
"""Cancels of an organisation in each process. Each may ask a provider, and waits for it for some seconds."""

HISTORY_PER_MINUTE = 1_200
"""Reads of generations by id or as a list: twice the default plan's orders, because each is read two times. A page of
100 takes the ledger a few milliseconds."""

DRY_RUNS_PER_MINUTE = 600
"""As many as balances: one before each order of the default plan. It costs one call to Redis, like an admission."""

CREDITS_PER_MINUTE = 600
"""One balance for each order of the default plan. It costs one call to Redis, like an order's admission."""

MODELS_PER_MINUTE = 600
"""As many as balances: SDKs and tools list the models when they start."""

REPORTS_MADE = 2
"""Reports whose rows a process has in memory at a time: for two organisations, 50 MB together."""

REPORTS_OPEN = 16
"""Reports that are being made or sent, one for each organisation: 8 MB each at most, if the client does not read."""

REPORTS_WAITING = 4
"""Reports of one organisation that wait behind the one being made: a page with several charts sends several."""

REPORT_WAIT_S = 10.0
"""How long a report waits for its turn: ten of the longest can be made in that time. After it the reply is 429."""

REPORT_ROWS = 50_000
"""Max rows of one report: a year by day, with nine models and ten keys, is 33,000. More is a 400: request less."""

# --- HTTP, in and out ------------------------------------------------------------------------------------------------

MAX_BODY_BYTES = 64 * 1024
"""4,000 characters of prompt take at most 48,000 bytes of escaped JSON."""

BODY_TIMEOUT_S = 10.0
"""A body of 64 KiB that takes longer than this is an attack or a dead line."""

MAX_IMAGE_BYTES = 64 * 1024 * 1024
"""The largest single picture of any known model is under 40 MB."""

RESULT_DOCUMENT_BYTES = 512 * 1024
"""Max bytes of an upstream's JSON without its pictures: a few kilobytes, except with eight rewritten prompts of 4,000
characters, each character twelve bytes of escaped JSON."""

JWT_LEEWAY_S = 5.0
"""How far the clock of the token issuer may differ from ours."""

JWT_MAX_BYTES = 8 * 1024
"""Max bytes of an administrator's token; Supabase's take about one kilobyte."""

JWT_SECRET_BYTES = 32
"""HS256 is as strong as its secret, which must be at least as long as the hash (RFC 7518, 3.2)."""

JWKS_FRESH_S = 300.0
"""Public keys are read again after this time: a withdrawn key is valid for no longer."""

JWKS_STALE_S = 3600.0
"""If public keys cannot be read, the last ones stay valid for this time; then administrators get a 503."""

JWKS_PAUSE_S = 5.0
"""The shortest pause between two readings, whatever key ids tokens have: invented ids cannot cause more requests."""

JWKS_TIMEOUT_S = 3.0
"""The longest that a whole reading may take; a real one takes a tenth of a second."""

JWKS_BYTES = 64 * 1024
"""Max bytes of a key set; ten keys take about 5 KB."""

GATEWAY_METRICS_PORT, CONSUMER_METRICS_PORT = 9090, 9091
"""The ports of `/metrics` unless GHUB_METRICS_PORT gives another: two, so that both processes start on one machine."""

KEY_CACHE_SIZE = 100_000
"""Keys that one process remembers, about 300 bytes each."""

ORIGINS_POLL_S = 5.0
"""How often a gateway reads which web pages may use keys: a new page is answered within this time."""

ANNOUNCED_POLL_S = 86_400.0
"""How often a gateway asks OpenAI which of its models have a last day: it gives notice of months."""

ANNOUNCED_FIRST_S = 3600.0
"""Within how many seconds it asks first: not at its start, which takes as little as it can, and not all at once."""

ANNOUNCED_TIMEOUT_S = 20.0
"""How long that may take in all, in seconds. Nobody waits for it."""

ANNOUNCED_BYTES = 1024 * 1024
"""Maximum size of that list: of some hundred models, it has 20 kB."""


MAX_ACTOR_CHARACTERS = 128
"""Max characters of an actor's name in the audit log; as many as a token's subject."""

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")

REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+cluster://", "rediss+cluster://") + (
    "redis+sentinel://",
    "rediss+sentinel://",
)


class SettingsError(Exception):
    """A variable is missing or wrong; the message is one sentence that names it."""


def _http_address(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


HttpAddress = Annotated[str, AfterValidator(_http_address)]


class Settings(BaseSettings):
    """The environment. Each field is the variable `GHUB_` + its name in capitals."""

    model_config = SettingsConfigDict(env_prefix="GHUB_", env_ignore_empty=True, frozen=True)

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8080
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    region: str = "local"
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    actor: str | None = None

    redis_url: SecretStr | None = None
    ledger_url: SecretStr = SecretStr("sqlite:///ghub.db")

    keep_h: Annotated[float, Field(ge=0, le=MAX_KEEP_H)] = KEEP_H

    storage_url: str | None = None
    storage_key: SecretStr | None = None
    storage_jwt_secret: SecretStr | None = None
    journal_dir: Path = Path("journal")
    spool_dir: Path = Path(gettempdir())
    spool_mb: Annotated[int, Field(ge=LEAST_SPOOL_MB)] = 1024
    public_url: HttpAddress | None = None

    openai_url: HttpAddress = "https://api.openai.com/v1"
    openai_key: SecretStr | None = None
    openai_admin_key: SecretStr | None = None
    openai_project: Annotated[str, Field(pattern=r"^[\w-]+$")] | None = None
    fal_mode: Literal["queue", "direct"] = "queue"
    fal_url: HttpAddress = "https://fal.run"
    fal_queue_url: HttpAddress = "https://queue.fal.run"
    fal_key: SecretStr | None = None
    fal_api_url: HttpAddress = "https://api.fal.ai/v1"
    xai_url: HttpAddress = "https://api.x.ai/v1"
    xai_key: SecretStr | None = None
    google_url: HttpAddress | None = None
    google_key: SecretStr | None = None
    google_service_account: Literal["default"] | Path | None = None
    google_project: Annotated[str, Field(pattern=r"^[a-z0-9.:-]+$")] | None = None
    google_location: Annotated[str, Field(pattern=r"^[a-z0-9-]+$")] = "us-central1"
    image_hosts: str = "v3.fal.media,v3b.fal.media,fal.media"

    jwt_secret: SecretStr | None = None
    jwks_url: HttpAddress | None = None
    jwt_audience: str = "authenticated"
    jwt_issuer: str | None = None

    cors_origins: str = ""
    trace_context: Literal["link", "continue"] = "link"

    deadline_s: Annotated[float, Field(ge=1.0, le=LONGEST_DEADLINE_S)] = 60.0
    long_deadline_s: Annotated[float, Field(ge=1.0, le=LONGEST_LONG_DEADLINE_S)] = LONGEST_LONG_DEADLINE_S
    models: Path | None = None
    plans: Path | None = None
    fx: Path | None = None
    tax: Path | None = None
    sinks: Path | None = None
    fx_grace_h: Annotated[float, Field(ge=0)] = 48.0
    fx_approval: Literal["required", "none"] = "required"
    banxico_url: HttpAddress = "https://www.banxico.org.mx/SieAPIRest/service/v1"
    banxico_token: SecretStr | None = None
    month_signing_key: SecretStr | None = None
    topup_url: HttpAddress | None = None
    topup_command: str | None = None
    webhook_hosts: str = ""
    secrets_key: SecretStr | None = None

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, value: str) -> str:
        checked_origins(_listed(value))
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_scheme(cls, value: SecretStr | None) -> SecretStr | None:
        if value and not value.get_secret_value().startswith(REDIS_SCHEMES):
            raise ValueError("must start with redis://, rediss://, unix://, redis+cluster:// or redis+sentinel://")
        return value

    @field_validator("ledger_url")
    @classmethod
    def _ledger_scheme(cls, value: SecretStr) -> SecretStr:
        if not value.get_secret_value().startswith(("sqlite:///", "postgresql://", "postgres://")):
            raise ValueError("must start with sqlite:/// or postgresql://")
        return value

    @field_validator("storage_url")
    @classmethod
    def _storage_scheme(cls, value: str | None) -> str | None:
        if value and not value.startswith(("file:///", "supabase+https://", "supabase+http://", "s3://")):
            raise ValueError("must start with file:///, supabase+https:// or s3://")
        return value

    @field_validator("actor")
    @classmethod
    def _who(cls, value: str | None) -> str | None:
        if value and (why := why_no_actor(value)):
            raise ValueError(why)
        return value

    @field_validator("jwt_secret")
    @classmethod
    def _long_secret(cls, value: SecretStr | None) -> SecretStr | None:
        if value and len(value.get_secret_value().encode()) < JWT_SECRET_BYTES:
            raise ValueError(f"must have at least {JWT_SECRET_BYTES} bytes")
        return value

    @field_validator("jwks_url")
    @classmethod
    def _keys_that_one_can_trust(cls, value: str | None, info: ValidationInfo) -> str | None:
        """Refuse two kinds of key, because the sender of a token would then choose the algorithm; and an address
        that is not secure, because anybody who can change the keys on their way would be an administrator."""
        if value and info.data.get("jwt_secret"):
            raise ValueError("set this or GHUB_JWT_SECRET, not both")
        parts = urlsplit(value or "")
        if parts.scheme == "http" and parts.hostname not in LOOPBACK_HOSTS:
            raise ValueError("must start with https://, but for this machine's own addresses")
        return value

    @model_validator(mode="before")
    @classmethod
    def _no_spaces(cls, values: Any) -> Any:
        """Strip spaces, as a secret's file ends with a newline. An empty value counts as unset."""
        given = {key: value.strip() if isinstance(value, str) else value for key, value in values.items()}
        return {key: value for key, value in given.items() if value != ""}

    @property
    def has_upstream(self) -> bool:
        """Return whether the key of any provider is set."""
        keys = (self.openai_key, self.fal_key, self.xai_key, self.google_key, self.google_service_account)
        return any(key is not None for key in keys)

    @property
    def any_key_from(self) -> tuple[str, ...]:
        """Return the origins of the web pages that may use every key."""
        return tuple(_listed(self.cors_origins))


def _listed(text: str) -> list[str]:
    return [part for one in text.split(",") if (part := one.strip())]


def reply_margin_s(deadline_s: float) -> float:
    """Return how many seconds before the deadline settlements stop starting."""
    return min(REPLY_MARGIN_S, deadline_s / 10)


def settle_s(deadline_s: float) -> float:
    """Return how many seconds after its generation an order may be settled; the rest of the margin is its reply's."""
    return reply_margin_s(deadline_s) * 3 / 4


def hold_life_s(deadline_s: float) -> float:
    """Return the seconds that a hold lives, from its admission."""
    return deadline_s + HOLD_MARGIN_S


def graceful_stop_s(deadline_s: float) -> float:
    """Return the seconds that requests and generations have to finish after SIGTERM."""
    return hold_life_s(deadline_s) + STOP_MARGIN_S


def read_settings() -> Settings:
    """Read the environment's settings. Raises SettingsError with one sentence that names the variable."""
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        name = "GHUB_" + "_".join(str(part) for part in first["loc"]).upper()
        raise SettingsError(f"{name}: {first['msg'].removeprefix('Value error, ')}") from None


def why_no_actor(name: str) -> str | None:
    """Return why the audit log cannot have an actor with this name; None if it can."""
    if name and name.isprintable() and name.strip() == name and len(name) <= MAX_ACTOR_CHARACTERS:
        return None
    return f"must be 1 to {MAX_ACTOR_CHARACTERS} printable characters, with no space around them"


def operator(settings: Settings) -> str:
    """Name who runs this process: GHUB_ACTOR, the user's name, or its number if it has no name, as in a container."""
    try:
        return settings.actor or getuser()
    except (KeyError, OSError):  # neither the environment nor the table of users has a name; OSError from Python 3.13
        return f"uid:{os.getuid()}"


def unknown_names(environment: Iterable[str]) -> list[tuple[str, str | None]]:
    """Find variables that begin with GHUB_ and are no setting, each with the setting of the nearest name, if any.

    Without this, a misspelt name is ignored silently, and its default holds.
    """
    known = [field.upper() for field in Settings.model_fields]
    given = {name: name.upper().removeprefix("GHUB_") for name in environment if name.upper().startswith("GHUB_")}
    nearest = {name: get_close_matches(rest, known, n=1) for name, rest in given.items() if rest not in known}
    return [(name, f"GHUB_{found[0]}" if found else None) for name, found in sorted(nearest.items())]


CIRCUIT_FAILURES = 10
"""Calls in a row that a route of a model did not take, or did not answer, before its circuit opens: more than the tries
of three orders, so that neither one order nor one full minute of a small account closes a route for all.
"""

CIRCUIT_WINDOW_S = 60.0
"""How old the first of those failures may be. Calls that hang fail once in a deadline, which is about this long."""

CIRCUIT_OPEN_S = 5.0
"""How long an open circuit keeps calls back before one order tries it: about what a client waits between two tries."""

CIRCUIT_MAX_OPEN_S = 60.0
"""The most that it grows to, doubled by each try in vain, and the most of a provider's own `retry-after`: a minute
after a provider is back, every process has found that out.
"""
