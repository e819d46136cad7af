"""What a wallet is asked with, and what it answers."""

from dataclasses import dataclass
from enum import IntEnum


class Verdict(IntEnum):
    """What the admit script says."""

    ADMITTED = 1
    AWAY = 2
    LATE = 3
    OTHER_PERIOD = 4
    REVOKED = 5
    BALANCE = 6
    BACKLOG = 7
    HOLDS = 8
    REQUESTS = 9
    IMAGES = 10
    DUPLICATE = 11
    REUSED = 12
    EXPIRED = 13
    MODEL = 14
    BUDGET = 15
    DAY = 16
    MONTH = 17
    IN_FLIGHT = 18
    SUSPENDED = 19


class Close(IntEnum):
    """What the settle and void scripts say; UNKNOWN, LATE and AWAY wrote nothing."""

    CHARGED = 1
    REFUSED = 2
    VOIDED = 3
    UNKNOWN = 4
    LATE = 5
    AWAY = 6


class Replay(IntEnum):
    """What became of a journal's order: charged before, charged now, or served by another in its place, at zero."""

    CHARGED = 1
    NOW = 2
    AWAY = 3
    SERVED = 5


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: an organisation by one of its keys, and what never changes about that key.

    `test`: it is of the sandbox, is answered without a provider, and costs nothing. `models` are those that it may use,
    empty for all. `line`, of one that reads its own orders only: itself, and the keys that it was rotated from, the
    first one last. `response_format` holds where an order does not say; `origins` are pages it may be used from.
    """

    org_id: str
    key_id: str
    test: bool = False
    models: tuple[str, ...] = ()
    line: tuple[str, ...] = ()
    response_format: str = "url"
    origins: tuple[str, ...] = ()

    @property
    def reads(self) -> tuple[str, ...] | None:
        """The keys whose orders it may read; None for all of its organisation. The sandbox's are in no books."""
        return () if self.test else self.line or None

    def may_read(self, key_id: str) -> bool:
        """An order that this key has placed."""
        return self.reads is None or key_id in self.reads

    @property
    def scope(self) -> str:
        """Within which its idempotency keys stand for an order: empty for its whole organisation."""
        return self.line[-1] if self.line else ""


@dataclass(frozen=True, slots=True)
class RateState:
    """One rate limit after this request: per minute, what is left, and when all of it is back."""

    limit: int
    remaining: int
    reset_us: int


@dataclass(frozen=True, slots=True)
class OrderIdentity:
    """How an order was placed: what makes it the same as another, and what says that it may be one again.

    `key_hash` is the SHA-256 of an idempotency key; `tries` is how often an SDK has tried before, by its own count, and
    None where no SDK counts.
    """

    fingerprint: str
    key_hash: str | None = None
    tries: int | None = None


@dataclass(frozen=True, slots=True)
class OrderStatus:
    """How an order stands: `open`, or its end with amount and reason. `owner` makes it while it is open.

    `key_id` is the key that placed it; empty where that is not known, or was not asked.
    """

    request_id: str
    end: str
    reason: str
    amount_micro_mxn: int
    owner: str
    key_id: str = ""


@dataclass(frozen=True, slots=True)
class Admission:
    """The admit script's verdict. `earlier` goes with EARLIER.

    `retry_us` is 0 where waiting does not help. Of quotas it is what the rates ask for: the period's end comes on top.

    Of two rates, the organisation's and the key's, the tighter one is told. Where a limit refuses, `whose` is `org` or
    `key`, and of quotas, budgets (in micro-MXN) and images in flight `used` counts open orders, too.
    """

    verdict: Verdict
    now_us: int
    available_micro_mxn: int
    requests: RateState
    images: RateState
    retry_us: int
    earlier: OrderStatus | None = None
    whose: str = ""
    limit: int = 0
    used: int = 0


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """The sandbox script's verdict; with ADMITTED and EARLIER, which order it is, and when that was admitted."""

    admission: Admission
    request_id: str
    admitted_s: int


@dataclass(frozen=True, slots=True)
class Closing:
    """How an order ended, as far as the wallet knows."""

    close: Close
    now_us: int
    available_micro_mxn: int


@dataclass(frozen=True, slots=True)
class WalletSnapshot:
    """One organisation's wallet at one moment: credits = available + held + charged; expired holds are available.

    `number` is its last event's; `lost_events` of those up to it went with a Redis that was wiped: voids and expiries,
    since charges come back from journals.
    """

    now_us: int
    available_micro_mxn: int
    held_micro_mxn: int
    charged_micro_mxn: int
    credits_micro_mxn: int
    credit_number: int
    number: int
    lost_events: int
    key_state: str

    @property
    def events(self) -> int:
        """How many the ledger has, or will have."""
        return self.number - self.lost_events


@dataclass(frozen=True, slots=True)
class WalletLimits:
    """What bounds one wallet's work and memory; the numbers and their reasons are in settings."""

    decision_s: float
    max_open_holds: int
    stream_backlog: int
    remember_s: int
