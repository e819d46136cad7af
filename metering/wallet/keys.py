"""Names in Redis. All keys of an organisation carry its partition's hash tag, so that one script may touch them."""

import re
from collections.abc import Iterable
from typing import Any
from uuid import UUID

PARTITIONS = 32
"""Fixed for ever: it decides where an organisation's wallet lies. 32 spread well over a dozen cluster masters."""


def partition_of(org_id: str) -> int:
    """The partition of an organisation's wallet and events, 0 to 31."""
    return UUID(org_id).int % PARTITIONS


_TAG = re.compile(r"\{p([0-9]+)\}:")


def partition_in(command: Iterable[Any]) -> int:
    """Where a command belongs: the partition of its first key. Raises ValueError where it names none."""
    for part in command:
        if isinstance(part, str) and (tag := _TAG.match(part)):
            return int(tag[1])
    raise ValueError("a command without a key of a partition")


def mark(partition: int) -> str:
    """There, and holding the last projected change, as long as the partition is projected."""
    return f"{{p{partition}}}:mark"


def fence(partition: int) -> str:
    """There while somebody rebuilds the partition, and holding who."""
    return f"{{p{partition}}}:fence"


def home(partition: int) -> str:
    """Which run of which server the partition was projected to."""
    return f"{{p{partition}}}:home"


def ledger(partition: int) -> str:
    """Which ledger the partition was projected from: a change number, and the fingerprint of that change there."""
    return f"{{p{partition}}}:ledger"


def events(partition: int) -> str:
    """The stream of metering events."""
    return f"{{p{partition}}}:events"


def kept(partition: int) -> str:
    """The stream of events that the ledger has committed, kept for a while."""
    return f"{{p{partition}}}:kept"


def committed(partition: int) -> str:
    """What the ledger committed last, the newest first."""
    return f"{{p{partition}}}:committed"


def last_commit(partition: int, consumer: str) -> str:
    """The last thing that a consumer said to be committed: an answer that was lost is recognised."""
    return f"{{p{partition}}}:commit:{consumer}"


def busy(partition: int) -> str:
    """Organisations with holds, by the moment at which somebody is to look for those that ran out."""
    return f"{{p{partition}}}:busy"


def hold(partition: int, request_id: str) -> str:
    """The hold of one order."""
    return f"{{p{partition}}}:hold:{request_id}"


def closed(partition: int, request_id: str) -> str:
    """How one order ended."""
    return f"{{p{partition}}}:closed:{request_id}"


def result(partition: int, request_id: str) -> str:
    """What the owner of a charged order may fetch again."""
    return f"{{p{partition}}}:result:{request_id}"


def jobs(partition: int) -> str:
    """Upstream jobs of open holds, by request."""
    return f"{{p{partition}}}:jobs"


def alive(owner: str) -> str:
    """There as long as a gateway lives; `owner` is its UUID in hex."""
    return f"{{p{partition_of(owner)}}}:alive:{owner}"


def journal(incarnation: str) -> str:
    """The last beat of a gateway, by its journal's incarnation, a UUID."""
    return f"{{p{partition_of(incarnation)}}}:journal:{incarnation}"


def key_record(key_hash: str) -> tuple[int, str]:
    """Partition and name of the immutable record key hash → organisation and key id."""
    partition = int(key_hash[:8], 16) % PARTITIONS
    return partition, f"{{p{partition}}}:key:{key_hash}"


class OrgKeys:
    """The names of one organisation."""

    def __init__(self, org_id: str) -> None:
        self.org_id = org_id
        self.partition = partition_of(org_id)
        self._tag = f"{{p{self.partition}}}"
        self.mark = mark(self.partition)
        self.fence = fence(self.partition)
        self.events = events(self.partition)
        self.busy = busy(self.partition)
        self.jobs = jobs(self.partition)
        self.wallet = f"{self._tag}:wallet:{org_id}"
        self.open = f"{self._tag}:open:{org_id}"

    def access(self, key_id: str) -> str:
        """What one of the organisation's keys may do, and what it has used of its limits."""
        return f"{self._tag}:access:{key_id}"

    def hold(self, request_id: str) -> str:
        """The hold of one order."""
        return hold(self.partition, request_id)

    def once(self, key_hash: str) -> str:
        """Which order an idempotency key stands for."""
        return f"{self._tag}:once:{self.org_id}:{key_hash}"

    def sandbox_once(self, key_hash: str) -> str:
        """Which order of the sandbox an idempotency key stands for; it never meets a live order's."""
        return f"{self._tag}:sandbox:{self.org_id}:{key_hash}"

    def recent(self, key_id: str, fingerprint: str) -> str:
        """Orders of one API key that are the same, by their admission: what may be given again."""
        return f"{self._tag}:recent:{key_id}:{fingerprint}"

    def retried(self, key_id: str, fingerprint: str) -> str:
        """The last order of that kind that an SDK repeated, and that found none to repeat."""
        return f"{self._tag}:retried:{key_id}:{fingerprint}"

    def gone(self, key_id: str, fingerprint: str) -> str:
        """Of those orders the ones whose clients have all left without their answer, by when the last one did."""
        return f"{self._tag}:gone:{key_id}:{fingerprint}"

    def claims(self, request_id: str) -> str:
        """Which retries of an SDK were given this order, and whether its clients have all left."""
        return f"{self._tag}:claims:{request_id}"

    def asking(self, request_id: str) -> str:
        """Which requests wait for this order, or have it, once it was given again."""
        return f"{self._tag}:asking:{request_id}"

    def result(self, request_id: str) -> str:
        """What the owner of a charged order may fetch again."""
        return result(self.partition, request_id)

    def claim(self, request_id: str) -> str:
        """Who ends the order of a dead owner."""
        return f"{self._tag}:claim:{request_id}"

    def closed(self, request_id: str) -> str:
        """How one order ended."""
        return closed(self.partition, request_id)
