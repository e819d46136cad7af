"""Parts of the edge for tests below the whole system: pictures, orders, a scripted wallet, scripted providers."""

import asyncio
import io
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from uuid import uuid4

from PIL import Image
from redis.asyncio import Redis

from config.catalogue import read_catalogue
from metering.answered import AnsweredOrder
from metering.clock import boottime_s, period_at
from metering.events import UNTOLD, StoredImage, Upstream
from metering.journal.file import Journal
from metering.journal.frames import Folder
from metering.journal.open_orders import OpenOrders
from metering.ledger.sqlite import open_sqlite
from metering.pricing import FxRate, Price, quote
from metering.shares import Bound, Shares
from metering.wallet.connection import WalletAway, open_redis
from metering.wallet.presence import Presence
from metering.wallet.values import Caller, Close, Closing, OrderIdentity, Replay, WalletLimits
from metering.wallet.wallet import Wallet
from proxy.orders.admitted import AdmittedOrder
from proxy.orders.calls import UpstreamCalls
from proxy.orders.capacity import Capacity
from proxy.orders.circuits import Circuits
from proxy.orders.generations import Generations
from proxy.orders.lifecycle import Lifecycle
from proxy.orders.places import Place
from proxy.orders.result import Delivery
from proxy.orders.routes import Routes
from proxy.orders.settlement import Settlement
from proxy.orders.tasks import Tasks
from proxy.orders.upload import ImageLimits, Uploader
from proxy.outcomes import Failure
from proxy.ports import Call, ImageStore, Order, Picture, Provider, Source
from proxy.storage.spool import Spool
from proxy.storage.watch import StoreWatch

CATALOGUE = read_catalogue(None)
FLUX, GPT = "fal/flux-1.1-pro", "openai/gpt-image-1"
CALLER = Caller("11111111-1111-4111-8111-111111111111", "key")


def png(seed: int = 0) -> bytes:
    """Make a small picture, different for each seed."""
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (seed % 256, 10, 10)).save(out, "png")
    return out.getvalue()


@dataclass(frozen=True)
class Running:
    """Generations, and their parts."""

    generations: Generations
    settlement: Settlement
    tasks: Tasks
    open_orders: OpenOrders
    journal: Journal

    def start(self, admitted: AdmittedOrder) -> asyncio.Task[Delivery]:
        """Start one of them."""
        return self.generations.start(admitted)

    async def drain(self) -> None:
        """Wait for all of them."""
        await self.tasks.drain()


@asynccontextmanager
async def generations(
    wallet: Wallet,
    store: ImageStore,
    providers: Mapping[str, Provider],
    max_bytes: int = 10**8,
    lifecycle: Lifecycle | None = None,
) -> AsyncIterator[Running]:
    """Run generations with their own journal; all are over at the end."""
    with TemporaryDirectory(prefix="ghub-") as name:
        folder = Folder(Path(name))
        journal = Journal(folder, 64 * 1024)
        ledger = open_sqlite(f"sqlite:///{name}/ledger.db")
        await ledger.migrate()
        open_orders = OpenOrders(journal, wallet, ledger, Presence(Redis()))
        tasks, calls = Tasks(), UpstreamCalls(uploader(store, max_bytes), providers, Routes(Circuits(), providers))
        settlement = Settlement(wallet, open_orders, calls, lifecycle or Lifecycle(), tasks)
        running = Running(Generations(wallet, calls, settlement, tasks), settlement, tasks, open_orders, journal)
        try:
            yield running
        finally:
            await running.drain()
            await journal.close()
            folder.close()
            await ledger.aclose()


def noise_png(side_px: int) -> bytes:
    """Make an incompressible picture: about three bytes a pixel."""
    out = io.BytesIO()
    Image.frombytes("RGB", (side_px, side_px), random.Random(side_px).randbytes(side_px * side_px * 3)).save(out, "png")
    return out.getvalue()


def uploader(store: ImageStore, max_bytes: int = 10**8) -> Uploader:
    """Make an uploader to this store; its spool is the system's folder for temporary files."""
    return Uploader(
        store, Spool(Path(gettempdir()), 10**9), ImageLimits(max_bytes, 16_384, Bound(100)), StoreWatch(store)
    )


def room_for(pictures: int, spare: int = 0, broken: Callable[[], str | None] = lambda: None) -> Capacity:
    """Make a capacity for this many pictures at once, and a spool that is never full."""
    return Capacity(broken, Bound(pictures, spare), Shares(Bound(1)), spool_mark=1, spool_end=1)


def order(model: str = FLUX, n: int = 1, **fields: str) -> Order:
    """Make an order like `parse_order`."""
    size = fields.get("size", "1024x1024")
    return Order(model, CATALOGUE.models[model], "un faro", n, size, fields.get("quality"))


def job(asked: Order, *, generate_s: float = 30.0, reply_s: float = 31.0, hold_s: float = 40.0) -> AdmittedOrder:
    """Make an admitted order that may be generated and answered for this many seconds from now."""
    now_us, now_s = time.time_ns() // 1000, time.monotonic()
    usd = asked.model.usd_per_image
    assert usd is not None
    period = period_at(now_us)
    price = Price(asked.model_id, usd, CATALOGUE.markup, CATALOGUE.price_book_version)
    pinned = quote(price, FxRate(period.month, Decimal(20), "test"), period, asked.n)
    ends_us = now_us + int(hold_s * 1_000_000)
    return AdmittedOrder(
        order_id=str(uuid4()),
        caller=CALLER,
        order=asked,
        identity=OrderIdentity("fingerprint"),
        quote=pinned,
        generate_until_s=now_s + generate_s,
        reply_until_s=now_s + reply_s,
        hold_ends_us=ends_us,
        hold_ends_boot_s=boottime_s() + hold_s,
        admitted_us=now_us,
        opened=b"{}",
        place=Anywhere(),
    )


class Anywhere(Place):
    """A place that is not counted."""

    def __init__(self) -> None:
        pass

    def give_back(self) -> None:
        pass


class ScriptedWallet(Wallet):
    """Ends of one order without a Redis: the first close is final, as in the scripts.

    `script` says what happens to the next settlements: `yes`, `refused`, `away` (nothing was done), `unheard` (it was
    charged, and the answer lost); after them all are `yes`. While `gate` is not set, settlements wait for it.
    """

    def __init__(self, *script: str) -> None:
        super().__init__(
            open_redis("redis://nowhere", connections=1, call_timeout_s=1.0), WalletLimits(0.1, 1, 1, 1, 1)
        )
        self.script = list(script)
        self.gate = asyncio.Event()
        self.gate.set()
        self.settling = asyncio.Event()
        self.settlements = 0
        self.voids_away = False
        self.charges: list[tuple[int, tuple[StoredImage, ...]]] = []
        self.voids: list[str] = []
        self.gone: list[str] = []
        self.awaited: list[bool] = []

    async def settle(
        self,
        org_id: str,
        order_id: str,
        amount_micro_mxn: int,
        images: tuple[StoredImage, ...],
        *,
        latest_us: int,
        owner: str = "",
        usd_measured: str | None = None,
        result: bytes = b"",
        upstream: Upstream = UNTOLD,
    ) -> Closing:
        self.settlements += 1
        self.settling.set()
        await self.gate.wait()
        step = self.script.pop(0) if self.script else "yes"
        if step == "away":
            raise WalletAway
        if step == "refused" or self.voids:
            return Closing(Close.REFUSED, self.now_us(), 0)
        if not self.charges:
            self.charges.append((amount_micro_mxn, images))
        if step == "unheard":
            raise WalletAway
        return Closing(Close.CHARGED, self.now_us(), 7)

    async def replay(self, answered: AnsweredOrder, *, lost_up_to: int = -1) -> Replay:
        if not self.charges:
            self.charges.append((answered.amount_micro_mxn, answered.images))
            return Replay.NOW
        return Replay.CHARGED

    async def client_gone(
        self, caller: Caller, order_id: str, identity: OrderIdentity, *, asked_by: str | None = None
    ) -> None:
        self.gone.append(order_id)

    async def void(
        self,
        org_id: str,
        order_id: str,
        reason: str,
        *,
        owner: str = "",
        comes_again: bool = False,
        upstream: Upstream = UNTOLD,
    ) -> Closing:
        if self.voids_away:
            raise WalletAway
        if self.charges:
            return Closing(Close.CHARGED, self.now_us(), 7)
        if not self.voids:
            self.voids.append(reason)
            self.awaited.append(comes_again)
        return Closing(Close.VOIDED, self.now_us(), 7)


Opener = Callable[[], AsyncIterator[bytes]]


def picture(index: int, chunks: Opener, *, inline: bool = False) -> Picture:
    """Make a picture whose bytes are `chunks()`."""

    @asynccontextmanager
    async def open_() -> AsyncIterator[Source]:
        yield Source(chunks())

    return Picture(index, open_, inline)


def whole(data: bytes) -> Opener:
    """Give all of the bytes at once."""

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    return chunks


def hanging(head: bytes) -> Opener:
    """Give the first bytes, and then nothing."""

    async def chunks() -> AsyncIterator[bytes]:
        yield head
        await asyncio.Event().wait()

    return chunks


class ScriptedProvider:
    """Yields these pictures, then raises the failure if there is one."""

    def __init__(self, *pictures: Picture, then: Exception | None = None) -> None:
        self._pictures = pictures
        self._then = then

    async def generate(self, call: Call) -> AsyncGenerator[Picture]:
        for one in self._pictures:
            if call.first <= one.index < call.first + call.images:
                yield one
        if self._then is not None:
            raise self._then


def files(root: Path) -> set[str]:
    """List every file below, unpublished ones too."""
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


async def failures_of(provider_call: AsyncGenerator[Picture]) -> Failure | None:
    """Run a call to its end without reading its pictures; returns its failure, if any."""
    try:
        async for _ in provider_call:
            pass
    except Failure as failure:
        return failure
    return None
