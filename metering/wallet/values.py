"""Arguments and replies of a wallet."""

from dataclasses import dataclass
from enum import IntEnum


class Verdict(IntEnum):
    """Answer of the admit script."""

    ADMITTED = 1
    AWAY = 2
    LATE = 3
    QUOTE_OVER = 4
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
    SLOW = 20
    UNPAID = 21


class Close(IntEnum):
    """Answer of the settle and void scripts; UNKNOWN, LATE, AWAY and NOT_OWNER wrote nothing.

    NOT_OWNER: another gateway has taken the order over, or will; whatever becomes of it, and of its images, is the
    other's.
    """

    CHARGED = 1
    REFUSED = 2
    VOIDED = 3
    UNKNOWN = 4
    LATE = 5
    AWAY = 6
    NOT_OWNER = 7


class Replay(IntEnum):
    """Outcome of a journal's order: charged before, charged now, or another was served instead of it, at zero."""

    CHARGED = 1
    NOW = 2
    AWAY = 3
    SERVED = 5


@dataclass(frozen=True, slots=True)
class Caller:
    """A caller: an organisation by one of its keys, and the properties of that key that never change.

    `test`: a sandbox key, served without a provider and free. `models` are those that it may use, empty for all. `line`
    is set for a key that reads its own orders only: itself, and the keys that it was rotated from, the first one last.
    `response_format` holds if an order does not say. `origins` are the origins of web pages that may use it.
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
        """Keys whose orders it may read; None for all of its organisation. Sandbox orders are in no books."""
        return () if self.test else self.line or None

    def may_read(self, key_id: str) -> bool:
        """True if this key may read an order that `key_id` has placed."""
        return self.reads is None or key_id in self.reads

    @property
    def scope(self) -> str:
        """Scope in which its idempotency keys are unique: empty for its whole organisation."""
        return self.line[-1] if self.line else ""


@dataclass(frozen=True, slots=True)
class RateState:
    """One rate limit after this request: per minute, what is left, and when all of it is available again."""

    limit: int
    remaining: int
    reset_us: int


@dataclass(frozen=True, slots=True)
class OrderIdentity:
    """Identity of an order: what makes it a duplicate of another, and what says that it may be a retry.

    `key_hash` is the SHA-256 of an idempotency key. `tries` is how often an SDK has tried before, by its own count;
    None if no SDK counts.
    """

    fingerprint: str
    key_hash: str | None = None
    tries: int | None = None


@dataclass(frozen=True, slots=True)
class OrderStatus:
    """Status of an order: `open`, or its end with amount and reason. `owner` makes it while it is open.

    `key_id` is the key that placed it; empty if that is not known, or was not asked. The rest is known of open orders:
    whether it is a long one, and has begun at a provider, what is held for it, when it was admitted, in Unix µs, and
    its model.
    """

    order_id: str
    end: str
    reason: str
    amount_micro_mxn: int
    owner: str
    key_id: str = ""
    long: bool = False
    begun: bool = False
    held_micro_mxn: int = 0
    admitted_us: int = 0
    model: str = ""


@dataclass(frozen=True, slots=True)
class LongTerms:
    """What makes an order a long one: the order itself as JSON, for another gateway, and how long it is made."""

    document: bytes
    deadline_s: float


@dataclass(frozen=True, slots=True)
class Admission:
    """The admit script's verdict. `earlier` is set with EARLIER.

    `retry_us` is 0 if waiting does not help. For quotas it is what the rates require; the wait until the period's end
    is added to it.
    Of two rates, the organisation's and the key's, the tighter one is reported. If a limit refuses, `whose` is `org` or
    `key`. For quotas, budgets (in micro-MXN) and images in flight, `used` also counts open orders.
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
    """The sandbox script's verdict; with ADMITTED and EARLIER, the order's id and when it was admitted."""

    admission: Admission
    order_id: str
    admitted_s: int


@dataclass(frozen=True, slots=True)
class Closing:
    """End of an order, as far as the wallet knows."""

    close: Close
    now_us: int
    available_micro_mxn: int


@dataclass(frozen=True, slots=True)
class WalletSnapshot:
    """One organisation's wallet at one moment: credits = available + held + charged; expired holds are available.

    `number` is its last event's. `lost_events` counts those up to it that were lost with a wiped Redis: voids and
    expiries, since charges come back from journals. `unpaid_micro_mxn` is what orders may have cost us that were not
    charged, as their end is unknown or they were cancelled while they were made, since Redis was last wiped.
    """

    now_us: int
    available_micro_mxn: int
    held_micro_mxn: int
    charged_micro_mxn: int
    credits_micro_mxn: int
    credit_number: int
    number: int
    lost_events: int
    unpaid_micro_mxn: int
    key_state: str

    @property
    def events(self) -> int:
        """Number of events that the ledger has, or will have."""
        return self.number - self.lost_events


@dataclass(frozen=True, slots=True)
class WalletLimits:
    """Limits of one wallet's work and memory; the numbers and their reasons are in settings."""

    decision_s: float
    max_open_holds: int
    stream_backlog: int
    remember_s: int
    max_unpaid_micro_mxn: int
