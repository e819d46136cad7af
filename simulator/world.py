"""The shared state of all providers: one clock of latencies, one bill, one CDN, one list of next behaviours."""

import asyncio
import random
from collections.abc import Coroutine, Mapping
from typing import Any

from simulator.behaviour import Behaviour, Play
from simulator.files import Files
from simulator.jobs import Jobs
from simulator.latency import Latency
from simulator.pictures import Picture, Studio


class World:
    def __init__(self, scenarios: Mapping[str, Mapping[str, str]], latency: Latency, seed: int) -> None:
        """`scenarios` as `Behaviour` takes them; `seed` of what is drawn beside the latencies."""
        self.behaviour = Behaviour(scenarios)
        self.jobs = Jobs()
        self.latency = latency
        self.studio = Studio()
        self.files = Files(self.studio)
        self.random = random.Random(seed)
        self.seed = seed
        self._tasks: set[asyncio.Task[None]] = set()

    def work_s(self, model: str, play: Play, quality: str = "") -> float:
        """Choose the next generation's seconds for `model`: from `play` if it says so, else the published latency."""
        return self.latency.draw_s(model, quality) if play.seconds is None else play.seconds

    def picture(self, play: Play, **fields: Any) -> Picture:
        """Build the picture with these fields, or the one for all similar pictures if `play` says so."""
        if play.same:
            fields |= {"prompt": "The same picture every time.", "index": 0, "seed": 0}
        return Picture(**fields, bytes=play.bytes)

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` after the answer, until it or the simulator ends."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def end(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
