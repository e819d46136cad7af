"""Stored objects that belong to nobody. One is deleted only if that is proven (rule 32); all others stay."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from uuid import UUID

from metering.ports import Ended, Ledger
from metering.verify import journals
from metering.wallet.connection import WalletAway
from metering.wallet.presence import Presence
from metering.wallet.wallet import Wallet
from proxy.ports import ImageStore, StoredObject
from proxy.storage.probe import is_probe


class Finding(Enum):
    """Kinds of objects. The values are text for a person."""

    CHARGED = "a charged image"
    YOUNG = "younger than the sweep age"
    FOREIGN = "not a path of ours"
    UNPROVEN = "its order may still reach the ledger"
    VOID = "its order ended without a charge"
    NOT_DELIVERED = "its order was charged without it"
    NO_ORDER = "no order of the books knows it"
    PROBE = "a leftover of the gateway's probe"

    @property
    def orphan(self) -> bool:
        """True if it is proven that nobody has got it, and nobody will."""
        return self in (Finding.VOID, Finding.NOT_DELIVERED, Finding.NO_ORDER, Finding.PROBE)


@dataclass(frozen=True, slots=True)
class Found:
    """One object; `why` adds to the finding what prevents a proof."""

    object: StoredObject
    finding: Finding
    why: str = ""


BATCH = 500
"""Objects in one query."""


class Sweep:
    """One pass over a store. `age`: younger objects are never touched."""

    def __init__(
        self, store: ImageStore, ledger: Ledger, wallet: Wallet, presence: Presence, *, now: datetime, age: timedelta
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._wallet = wallet
        self._presence = presence
        self._before = now - age
        self._journals: str | None = None
        self._wallets: dict[str, str] = {}

    async def run(self, *, delete: bool) -> AsyncIterator[Found]:
        """Yield every object; with `delete`, orphans are deleted when found.

        Raises StoreFailed, StoreMisconfigured and LedgerAway.
        """
        await self._store.check()  # without the right to list it, a store may return an empty list
        async for batch in _batches(self._store.objects()):
            # The proof comes first: whatever is booked between it and the query of the orders is seen by both.
            for org_id in {item.path.partition("/")[0] for item in batch if self._may_go(item)}:
                await self._unbooked(org_id)
            ended = await self._ledger.ended([request for item in batch if (request := _request_of(item.path))])
            for item in batch:
                found = await self._judge(item, ended)
                if delete and found.finding.orphan:
                    await self._store.delete(item.path)
                yield found

    async def _judge(self, item: StoredObject, ended: dict[str, Ended]) -> Found:
        request = _request_of(item.path)
        if request is None and not is_probe(item.path):
            return Found(item, Finding.FOREIGN)
        order = ended.get(request) if request else None
        if order is not None and item.path in order.paths:
            return Found(item, Finding.CHARGED)
        if item.modified_at > self._before:
            return Found(item, Finding.YOUNG)
        if request is None:
            return Found(item, Finding.PROBE)
        if obstacle := await self._unreplayed():
            return Found(item, Finding.UNPROVEN, obstacle)
        if order is not None and order.charged:
            return Found(item, Finding.NOT_DELIVERED)
        # Also for an order that ended without a charge: a journal may have brought one since, which is still in the
        # stream.
        if obstacle := await self._unbooked(item.path.partition("/")[0]):
            return Found(item, Finding.UNPROVEN, obstacle)
        return Found(item, Finding.NO_ORDER if order is None else Finding.VOID)

    def _may_go(self, item: StoredObject) -> bool:
        """True if its path and its age allow a deletion, so it needs a proof."""
        return item.modified_at <= self._before and _request_of(item.path) is not None

    async def _unreplayed(self) -> str:
        """Find why a journal may still charge an order whose hold expired; empty if none can."""
        if self._journals is None:
            open_ = await journals(self._ledger, self._presence)
            self._journals = f"{len(open_)} journals of gateways are not replayed" if open_ else ""
        return self._journals

    async def _unbooked(self, org_id: str) -> str:
        """Find why an order of this organisation may still reach the ledger; empty if all have.

        Orders here are older than the sweep age, and no hold lives nearly as long. So an order that the wallet has not
        numbered by now ends without a charge.
        """
        if org_id not in self._wallets:
            self._wallets[org_id] = await self._unreplayed() or await self._look_at(org_id)
        return self._wallets[org_id]

    async def _look_at(self, org_id: str) -> str:
        if await self._ledger.count_set_aside():
            return "events are set aside"
        try:
            cut = await self._wallet.read(org_id)
        except WalletAway:
            return "its wallet cannot be read"
        booked = await self._ledger.charged_up_to(org_id, cut.number)
        if booked.events < cut.events:
            return f"{cut.events - booked.events} of its events are not booked yet"
        if booked.events > cut.events:  # then a count proves nothing
            return f"{booked.events - cut.events} of its events are not known to its wallet"
        return ""


async def _batches(objects: AsyncIterator[StoredObject]) -> AsyncIterator[list[StoredObject]]:
    batch: list[StoredObject] = []
    async for item in objects:
        batch.append(item)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _request_of(path: str) -> str | None:
    """Find the request's id in `<org>/<request>/<i>.<ext>`, in exactly our form; None for any other path."""
    org_id, _, rest = path.partition("/")
    order_id, _, name = rest.partition("/")
    index, _, extension = name.partition(".")
    ours = _is_uuid([org_id, order_id]) and index.isascii() and index.isdigit() and extension.isalnum()
    return order_id if ours else None


def _is_uuid(texts: Iterable[str]) -> bool:
    for text in texts:
        try:
            if str(UUID(text)) != text:
                return False
        except ValueError:
            return False
    return True
