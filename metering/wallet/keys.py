"""Names in Redis. All keys of an organisation carry its partition's hash tag, so that one script may touch them."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Any
from uuid import UUID

PARTITIONS = 32
"""Number of partitions.

It may never change, because it decides where an organisation's wallet is. 32 spread well over a dozen cluster masters.
"""


@lru_cache(maxsize=4096)
def partition_of(org_id: str) -> int:
    """Find the partition of an organisation's wallet and events, 0 to 31."""
    return UUID(org_id).int % PARTITIONS


_TAG = re.compile(r"\{p([0-9]+)\}:")


def partition_in(command: Iterable[Any]) -> int:
    """Find the partition of a command's first key. Raises ValueError if it has none."""
    for part in command:
        if isinstance(part, str) and (tag := _TAG.match(part)):
            return int(tag[1])
    raise ValueError("a command without a key of a partition")


PRICE_LIST = "{p0}:price_list"
"""Holds the name of the ledger's last list of prices; it is not there while nobody knows it."""


def mark(partition: int) -> str:
    """Exists while the partition is projected; holds the last projected change."""
    return f"{{p{partition}}}:mark"


def fence(partition: int) -> str:
    """Exists while the partition is rebuilt; holds who rebuilds it."""
    return f"{{p{partition}}}:fence"


def home(partition: int) -> str:
    """Run of the server to which the partition was projected."""
    return f"{{p{partition}}}:home"


def ledger(partition: int) -> str:
    """Ledger from which the partition was projected: a change number, and that change's fingerprint there."""
    return f"{{p{partition}}}:ledger"


def events(partition: int) -> str:
    """The stream of metering events."""
    return f"{{p{partition}}}:events"


def kept(partition: int) -> str:
    """The stream of events that the ledger has committed, kept for a while."""
    return f"{{p{partition}}}:kept"


def committed(partition: int) -> str:
    """Events that the ledger committed last, the newest first."""
    return f"{{p{partition}}}:committed"


def last_commit(partition: int, consumer: str) -> str:
    """Last commit that a consumer reported: if its answer was lost, the repetition is recognised."""
    return f"{{p{partition}}}:commit:{consumer}"


def busy(partition: int) -> str:
    """Organisations with holds, by the moment when expired ones must be searched."""
    return f"{{p{partition}}}:busy"


def hold(partition: int, order_id: str) -> str:
    """The hold of one order."""
    return f"{{p{partition}}}:hold:{order_id}"


def closed(partition: int, order_id: str) -> str:
    """End of one order."""
    return f"{{p{partition}}}:closed:{order_id}"


def result(partition: int, order_id: str) -> str:
    """Result that the owner of a charged order may fetch again."""
    return f"{{p{partition}}}:result:{order_id}"


def jobs(partition: int) -> str:
    """Upstream jobs of open holds, by request."""
    return f"{{p{partition}}}:jobs"


def long(partition: int) -> str:
    """Open long orders, each with its organisation and its owner."""
    return f"{{p{partition}}}:long"


def alive(owner: str) -> str:
    """Exists while a gateway lives; `owner` is its UUID in hex."""
    return f"{{p{partition_of(owner)}}}:alive:{owner}"


def journal(incarnation: str) -> str:
    """The last beat of a gateway, by its journal's incarnation, a UUID."""
    return f"{{p{partition_of(incarnation)}}}:journal:{incarnation}"


def key_record(key_hash: str) -> tuple[int, str]:
    """Partition and name of the immutable record key hash → organisation and key id."""
    partition = int(key_hash[:8], 16) % PARTITIONS
    return partition, f"{{p{partition}}}:key:{key_hash}"


class OrgKeys:
    """Names of one organisation's keys in Redis."""

    def __init__(self, org_id: str) -> None:
        self.org_id = org_id
        self.partition = partition_of(org_id)
        self._tag = f"{{p{self.partition}}}"
        self.mark = mark(self.partition)
        self.fence = fence(self.partition)
        self.events = events(self.partition)
        self.busy = busy(self.partition)
        self.jobs = jobs(self.partition)
        self.long = long(self.partition)
        self.wallet = f"{self._tag}:wallet:{org_id}"
        self.open = f"{self._tag}:open:{org_id}"

    def access(self, key_id: str) -> str:
        """Rights of one of the organisation's API keys, and its use of its limits."""
        return f"{self._tag}:access:{key_id}"

    def hold(self, order_id: str) -> str:
        """The hold of one order."""
        return hold(self.partition, order_id)

    def once(self, key_hash: str) -> str:
        """Order that belongs to an idempotency key."""
        return f"{self._tag}:once:{self.org_id}:{key_hash}"

    def sandbox_once(self, key_hash: str) -> str:
        """Sandbox order that belongs to an idempotency key; it never meets a live order's."""
        return f"{self._tag}:sandbox:{self.org_id}:{key_hash}"

    def recent(self, key_id: str, fingerprint: str) -> str:
        """Identical orders of one API key, by admission: those that may be given again."""
        return f"{self._tag}:recent:{key_id}:{fingerprint}"

    def retried(self, key_id: str, fingerprint: str) -> str:
        """Last order of that kind that an SDK retried, and that found no order to repeat."""
        return f"{self._tag}:retried:{key_id}:{fingerprint}"

    def gone(self, key_id: str, fingerprint: str) -> str:
        """Those of the identical orders whose clients have all left without an answer, by when the last one left."""
        return f"{self._tag}:gone:{key_id}:{fingerprint}"

    def claims(self, order_id: str) -> str:
        """SDK retries that were given this order, and whether its clients have all left."""
        return f"{self._tag}:claims:{order_id}"

    def asking(self, order_id: str) -> str:
        """Requests that wait for this order, or have it, once it was given again."""
        return f"{self._tag}:asking:{order_id}"

    def result(self, order_id: str) -> str:
        """Result that the owner of a charged order may fetch again."""
        return result(self.partition, order_id)

    def claim(self, order_id: str) -> str:
        """Gateway that ends the order of a dead owner."""
        return f"{self._tag}:claim:{order_id}"

    def closed(self, order_id: str) -> str:
        """End of one order."""
        return closed(self.partition, order_id)
