"""Faults, when and for how long: a plan that is a function of the seed, and the code that carries it out."""

import asyncio
import random
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from tests.chaos.world import CONSUMERS, DISKS, GATEWAYS, World

KINDS = {
    "gateway": ("kill", "freeze", "restart", "cut", "port", "busy stop", "rounds", "volume", "replaced"),
    "disk": ("sync", "short"),
    "consumer": ("kill", "freeze", "restart"),
    "valkey": ("kill", "freeze", "restart", "cut", "stall", "flush", "lose"),
    "postgres": ("kill", "freeze", "restart", "cut", "stall", "restore"),
    "store": ("kill", "freeze", "restart", "cut", "stall", "unwritable"),
}
"""`flush` is FLUSHALL; `lose` is kill −9 and an empty folder; a `stall` passes on what is sent and no answer.

Of gateways: `port`, a start whose metrics port is taken; `busy stop`, a ledger that takes no write at a graceful stop;
`rounds`, several looks at the answered orders at once, at a stop; `volume`, kill −9 and the journal's folder is lost;
`replaced`, a freeze after which others have taken over its long orders.
Of their disks: syncs fail, or writes are cut short. `restore`: the ledger is what it was some seconds ago.
`unwritable`: the store can be read, and takes nothing."""

ROUND = sum(map(len, KINDS.values()))
"""Faults until every kind has had its turn."""

INSTANCES = {"gateway": GATEWAYS, "disk": DISKS, "consumer": CONSUMERS}

LONGEST_S = 20.0
"""Maximum length of a freeze: beyond an order's deadline and, if that is short, beyond its hold's life."""

REPLACED_S = 18.0
"""A gateway counts as dead after 10 s without a beat, at the second look of another, which come every 2 s."""

BUSY_STOP_S = 7.0
"""Above the 5 s after which a ledger counts as away."""

BUSY = 20
"""Generations in flight that a fault waits for …"""

WAITS_S = 8.0
"""… for so long: behind an outage there are fewer."""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong, `after_s` the one before; `lasts_s` until it is mended."""

    component: str
    instance: str
    kind: str
    after_s: float
    lasts_s: float


@dataclass(frozen=True)
class Struck:
    """A fault that happened, and how many generations were in flight."""

    fault: Fault
    in_flight: int


def plan(seed: int, pace_s: float, longest_s: float = LONGEST_S) -> Iterator[Fault]:
    """Every kind once in each round, in another order each time, `pace_s` apart on average."""
    random_ = random.Random(f"{seed} faults")
    kinds = [(component, kind) for component, names in KINDS.items() for kind in names]
    while True:
        random_.shuffle(kinds)
        for component, kind in kinds:
            instance = random_.choice(INSTANCES.get(component, (component,)))
            after_s, lasts_s = random_.uniform(0.2, 1.8) * pace_s, _lasts_s(component, kind, random_)
            yield Fault(component, instance, kind, after_s, min(longest_s, lasts_s))


def _lasts_s(component: str, kind: str, random_: random.Random) -> float:
    if kind == "busy stop":
        return BUSY_STOP_S
    if kind == "replaced":
        return REPLACED_S
    if kind in ("sync", "short", "restore", "unwritable"):
        return random_.uniform(0.5, 6.0)
    if kind in ("freeze", "stall"):
        # The record and Valkey stop everything, so they are seldom away for long.
        weights = (4, 4, 2, 1) if component in INSTANCES else (6, 4, 1, 0.4)
        low, high = random_.choices(((0.2, 1.0), (1.0, 4.0), (4.0, 10.0), (10.0, LONGEST_S)), weights)[0]
        return random_.uniform(low, high)
    return random_.uniform(0.0, 1.5)


@dataclass
class Faults:
    """Strikes, and mends. One thing at a time goes wrong with one part; different parts have their faults at once."""

    world: World
    waits_s: float = WAITS_S
    struck: list[Struck] = field(default_factory=list)
    _under_way: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    in_flight: int = 0

    async def run(self, faults: Iterator[Fault], stop: asyncio.Event) -> None:
        """Carry the plan out to its end, or until `stop`; returns when all is mended."""
        waiting: list[Fault] = []
        while not stop.is_set():
            fault = next((one for one in waiting if self._free(one)), None)
            if fault is not None:
                waiting.remove(fault)
            else:
                fault = next(faults, None)
                if fault is None and not waiting:
                    break
                if fault is None:
                    await asyncio.sleep(0.1)
                    continue
                if not self._free(fault):
                    waiting.append(fault)
                    continue
            await _sleep(fault.after_s, stop)
            await self._busy(stop)
            if not stop.is_set():
                self.struck.append(Struck(fault, self.in_flight))
                self._under_way[fault.instance] = asyncio.create_task(self.strike(fault))
        await asyncio.gather(*self._under_way.values())

    async def strike(self, fault: Fault) -> None:
        """Let it happen, wait, and mend it."""
        if fault.component == "disk":
            await self._disk(fault)
        elif fault.instance in (*GATEWAYS, *CONSUMERS):
            await self._process(fault)
        elif fault.kind == "cut":
            await self.world.tell("cut", fault.component)
        elif fault.kind == "stall":
            await self.world.tell("hold", fault.component, ["back"])
            await asyncio.sleep(fault.lasts_s)
            await self.world.tell("hold", fault.component, [])
        else:
            await getattr(self, f"_{fault.component}")(fault)

    def _free(self, fault: Fault) -> bool:
        task = self._under_way.get(fault.instance)
        if task is not None and task.done():
            task.result()  # what went wrong in here must not look like a fault of the system
        return task is None or task.done()

    async def _busy(self, stop: asyncio.Event) -> None:
        end_s = asyncio.get_running_loop().time() + self.waits_s
        while not stop.is_set():
            self.in_flight = await self.world.in_flight()
            if self.in_flight >= BUSY or asyncio.get_running_loop().time() > end_s:
                return
            await asyncio.sleep(0.2)

    async def _process(self, fault: Fault) -> None:
        world, name = self.world, fault.instance
        match fault.kind:
            case "cut":
                await world.tell("cut", "balancer", GATEWAYS.index(name))
            case "freeze" | "replaced":
                world.signal(name, signal.SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
                world.signal(name, signal.SIGCONT)
            case "port":
                await world.end(name, signal.SIGTERM)
                with world.taken(name):
                    world.start_process(name)  # it ends, and is started again until the port is free
                    await asyncio.sleep(max(1.0, fault.lasts_s))
            case "busy stop":
                async with world.busy_ledger(fault.lasts_s):
                    await world.end(name, signal.SIGTERM)
                world.start_process(name)
            case "rounds":
                world.signal(name, signal.SIGUSR1)
                await world.end(name, signal.SIGTERM)
                world.start_process(name)
            case "volume":
                await world.end(name, signal.SIGKILL)
                await world.lose_volume(name)
                world.start_process(name)
            case _:
                await world.end(name, signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)
                await asyncio.sleep(fault.lasts_s)
                world.start_process(name)

    async def _disk(self, fault: Fault) -> None:
        control = self.world.control(GATEWAYS[DISKS.index(fault.instance)])
        control.write_text(fault.kind)
        await asyncio.sleep(fault.lasts_s)
        control.unlink()

    async def _valkey(self, fault: Fault) -> None:
        valkey = self.world.valkey
        assert valkey.process is not None
        match fault.kind:
            case "flush":
                await self.world.wipe()
                return
            case "freeze":
                valkey.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
                valkey.process.send_signal(signal.SIGCONT)
                return
            case "lose":
                await self.world.empty_valkey()
            case "restart":
                valkey.process.terminate()
                await asyncio.to_thread(valkey.process.wait)
            case _:
                await asyncio.to_thread(valkey.stop)
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(valkey.start)

    async def _postgres(self, fault: Fault) -> None:
        postgres = self.world.postgres
        assert postgres.process is not None
        match fault.kind:
            case "freeze":
                postgres.freeze()
                await asyncio.sleep(fault.lasts_s)
                postgres.thaw()
                return
            case "restore":
                copy = await asyncio.to_thread(self.world.back_up)
                await asyncio.sleep(fault.lasts_s)
                await asyncio.to_thread(self.world.restore, copy)
                return
            case "restart":
                postgres.process.send_signal(signal.SIGINT)
                await asyncio.to_thread(postgres.process.wait)
            case _:
                await asyncio.to_thread(postgres.kill)
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(postgres.start)

    async def _store(self, fault: Fault) -> None:
        store = self.world.store
        assert store.process is not None
        match fault.kind:
            case "freeze":
                store.process.send_signal(signal.SIGSTOP)
                await asyncio.sleep(fault.lasts_s)
                store.process.send_signal(signal.SIGCONT)
                return
            case "unwritable":
                await asyncio.to_thread(partial(store.behave, read_only=True))
                await asyncio.sleep(fault.lasts_s)
                await asyncio.to_thread(store.behave)
                return
            case "restart":
                store.process.terminate()
                await asyncio.to_thread(store.process.wait)
            case _:
                pass
        await asyncio.to_thread(store.kill)
        await asyncio.sleep(fault.lasts_s)
        await asyncio.to_thread(store.start)


async def _sleep(seconds: float, stop: asyncio.Event) -> None:
    with suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)
