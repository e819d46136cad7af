"""Which stored objects are nobody's? One is deleted only where that is proven (rule 32); all others stay."""

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
    """What an object is. The values are for a person."""

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
        """Is it proven that nobody was given it, and nobody will be?"""
        return self in (Finding.VOID, Finding.NOT_DELIVERED, Finding.NO_ORDER, Finding.PROBE)


@dataclass(frozen=True, slots=True)
class Found:
    """One object; `why` adds to the finding what stands in the way of a proof."""

    object: StoredObject
    finding: Finding
    why: str = ""


BATCH = 500
"""Objects that are asked about in one query."""


class Sweep:
    """One look at a store. `age`: younger objects are never touched."""

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
        """Every object; with `delete`, orphans are deleted as they are found.

        Raises StoreFailed, StoreMisconfigured and LedgerAway.
        """
        await self._store.check()  # a store may show an empty list to whoever may not see what is in it
        async for batch in _batches(self._store.objects()):
            # The proof is looked for first: what is booked between it and the look at the orders is seen by both.
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
        # An order that ended without a charge, too: a journal may have brought one since, and the stream has it.
        if obstacle := await self._unbooked(item.path.partition("/")[0]):
            return Found(item, Finding.UNPROVEN, obstacle)
        return Found(item, Finding.NO_ORDER if order is None else Finding.VOID)

    def _may_go(self, item: StoredObject) -> bool:
        """Does it need a proof, as far as its path and its age tell?"""
        return item.modified_at <= self._before and _request_of(item.path) is not None

    async def _unreplayed(self) -> str:
        """Why a journal may still charge an order whose hold ran out; empty where none can."""
        if self._journals is None:
            open_ = await journals(self._ledger, self._presence)
            self._journals = f"{len(open_)} journals of gateways are not replayed" if open_ else ""
        return self._journals

    async def _unbooked(self, org_id: str) -> str:
        """Why an order of this organisation may still come into the ledger; empty where all of them have.

        An order is older than the sweep age here, and no hold lives nearly as long: what the wallet has not numbered by
        now ends without a charge.
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
    """The request's id of `<org>/<request>/<i>.<ext>`, in the very form in which we write it; None for any other."""
    org_id, _, rest = path.partition("/")
    request_id, _, name = rest.partition("/")
    index, _, extension = name.partition(".")
    ours = _is_uuid([org_id, request_id]) and index.isascii() and index.isdigit() and extension.isalnum()
    return request_id if ours else None


def _is_uuid(texts: Iterable[str]) -> bool:
    for text in texts:
        try:
            if str(UUID(text)) != text:
                return False
        except ValueError:
            return False
    return True
