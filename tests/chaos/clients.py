"""Clients of all kinds, and the log of what each of them sent and saw: the judge's first witness."""

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

import httpx2
import openai
import orjson

from tests.chaos.receivers import RECEIVERS
from tests.chaos.world import GPT_2, LONG_MODELS, MODELS, Customer, World
from tests.kits.system import GPT, bearer

Kind = Literal["key", "sdk", "once", "forget", "long"]
SIZES = {model: ("1024x1024",) for model in (*MODELS, *LONG_MODELS)} | {GPT: ("1024x1024", "1536x1024", "1024x1536")}
SHARES: dict[Kind, float] = {"key": 0.3, "sdk": 0.25, "once": 0.1, "forget": 0.1, "long": 0.25}

SDK_TRIES = 4

ENDED = ("completed", "failed", "cancelled", "expired")
"""States of a long order that has ended."""

ASK_S = 10.0
"""The longest wait for the state of an order, or for its cancel, which takes 5 s."""


@dataclass
class Attempt:
    """One request and its outcome.

    `status` is None if no whole answer came, for whatever reason. `code` is an error's. `request` is the gateway's id
    of it, if a header had one; `result` is the id in the body of a 200, `accepted` that in the body of a 202.
    """

    sent_us: int
    status: int | None = None
    code: str = ""
    request: str = ""
    result: str = ""
    accepted: str = ""
    urls: tuple[str, ...] = ()
    cost_mxn: str = ""
    replayed: bool = False
    hung_up: bool = False


@dataclass
class Watch:
    """What the client of a long order was told of it: states, each when it was new, and answers to its cancels."""

    order: str
    states: list[tuple[int, str]] = field(default_factory=list)
    cancels: list[tuple[int, str]] = field(default_factory=list)

    @property
    def state(self) -> str:
        """The last one that it was told."""
        return self.states[-1][1] if self.states else ""


@dataclass
class Call:
    """One order that a customer wants once, however often it is asked for."""

    kind: Kind
    customer: Customer
    model: str
    size: str
    n: int
    inline: bool
    prompt: str
    key: str = ""
    webhook: str = ""
    attempts: list[Attempt] = field(default_factory=list)
    watched: list[Watch] = field(default_factory=list)

    @property
    def body(self) -> dict[str, object]:
        """The body as it is sent."""
        more = {"response_format": "b64_json"} if self.inline else {}
        more |= {"webhook": self.webhook} if self.webhook else {}
        return {"model": self.model, "prompt": self.prompt, "n": self.n, "size": self.size, **more}


_current: ContextVar[Call] = ContextVar("call")


class Witness(httpx2.AsyncBaseTransport):
    """Passes requests on, each over a connection of its own, and writes down what came of them."""

    def __init__(self) -> None:
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._honest = httpx2.AsyncHTTPTransport(limits=limits)
        self.open = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """One attempt of the current call."""
        attempt = Attempt(sent_us=time.time_ns() // 1000)
        _current.get().attempts.append(attempt)
        self.open += 1
        try:
            response = await self._honest.handle_async_request(request)
            attempt.request = response.headers.get("x-request-id", "")
            try:
                content = await response.aread()
            finally:
                await response.aclose()
            attempt.replayed = response.headers.get("idempotent-replayed") == "true"
            attempt.cost_mxn = response.headers.get("x-geekhub-cost-mxn", "")
            if response.status_code == 202:
                attempt.accepted = orjson.loads(content)["id"]
            elif response.status_code == 200:
                document = orjson.loads(content)
                attempt.result = document["id"]
                attempt.urls = tuple(row["url"] for row in document["data"] if "url" in row)
            else:
                attempt.code = _code(content)
            attempt.status = response.status_code
            headers = [pair for pair in response.headers.raw if pair[0].lower() != b"content-encoding"]
            return httpx2.Response(response.status_code, headers=headers, content=content, request=request)
        except (httpx2.TimeoutException, asyncio.CancelledError):
            attempt.hung_up = True
            raise
        finally:
            self.open -= 1

    async def aclose(self) -> None:
        """Close what is open."""
        await self._honest.aclose()


class Clients:
    """A crowd that orders until it is told to stop. What each of them does is a function of the seed."""

    def __init__(self, world: World, seed: int, url: str | None = None) -> None:
        self._url = url or world.url
        self._patient_s = 1.75 * world.deadline_s
        """Longer than any order lives with its gateway awake that is waited for."""
        self._insists_s = 1.25 * world.hold_life_s
        """For so long a client with a key asks again."""
        self._watches_s = 1.1 * world.long_hold_life_s
        """For so long a long order is watched."""
        self._seed = seed
        self._customers = world.customers
        self._witness = Witness()
        self._http = httpx2.AsyncClient(transport=self._witness, trust_env=False, timeout=self._patient_s)
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
        self._asking = httpx2.AsyncClient(limits=limits, trust_env=False, timeout=ASK_S)
        self._receivers = world.receivers
        self.calls: list[Call] = []

    @property
    def open(self) -> int:
        """Requests that wait for their answer."""
        return self._witness.open

    @property
    def answered(self) -> int:
        """200s so far."""
        return sum(attempt.status == 200 for call in self.calls for attempt in call.attempts)

    @property
    def hang_ups(self) -> int:
        """Requests that their client gave up."""
        return sum(attempt.hung_up for call in self.calls for attempt in call.attempts)

    async def aclose(self) -> None:
        """Close what is open."""
        await self._http.aclose()
        await self._asking.aclose()

    async def work(self, place: int, stop: asyncio.Event) -> None:
        """One client after the other at this place, until `stop`; the last one is served to its end."""
        random_ = random.Random(f"{self._seed} client {place}")
        for turn in range(1_000_000):
            if stop.is_set():
                return
            kind = random_.choices(list(SHARES), list(SHARES.values()))[0]
            call = self.call(kind, f"{place:x}f{turn:x}", random_)
            match kind:
                case "key":
                    await self.with_key(call, random_)
                case "sdk":
                    twins = [call, *(self.twin(call) for _ in range(random_.choice((0, 0, 1, 2))))]
                    rolls = [random.Random(random_.random()) for _ in twins]
                    await asyncio.gather(*(self.with_sdk(*pair) for pair in zip(twins, rolls, strict=True)))
                case "once":
                    await self.post(call, self._patient_s)
                case "forget":
                    await self.post(call, random_.uniform(0.02, 3.0))
                case "long":
                    await self.long(call, random_)
            if call.attempts[-1].status not in (200, 202):
                await asyncio.sleep(random_.uniform(0.1, 0.5))  # as a person would; or 503s would fill the log

    def call(self, kind: Kind, name: str, random_: random.Random) -> Call:
        """A new order of a customer who orders in this way."""
        ours = [customer for place, customer in enumerate(self._customers) if place % len(SHARES) == _place(kind)]
        model = random_.choice(LONG_MODELS if kind == "long" else MODELS)
        n = random_.choice((1, 1, 2)) if model in (GPT, GPT_2) else 1
        has_key = kind == "key" or (kind == "long" and random_.random() < 0.6)
        call = Call(
            kind=kind,
            customer=random_.choice(ours),
            model=model,
            size=random_.choice(SIZES[model]),
            n=n,
            inline=random_.random() < 0.1,
            prompt=f"chaos-{self._seed:x}e{name}-end",
            key=f"key {name}" if has_key else "",
        )
        if kind == "long" and random_.random() < 0.5:
            call.webhook = self._receivers.url(random_.randrange(RECEIVERS), call.customer.org_id, "order")
        self.calls.append(call)
        return call

    def twin(self, call: Call) -> Call:
        """The same order once more, which its customer wants besides."""
        twin = Call(call.kind, call.customer, call.model, call.size, call.n, call.inline, call.prompt, call.key)
        self.calls.append(twin)
        return twin

    async def post(self, call: Call, patience_s: float, *, long: bool = False) -> Attempt:
        """One request and no other; hangs up after `patience_s`. A `long` one does not wait for the order."""
        headers = bearer(call.customer.key) | ({"idempotency-key": call.key} if call.key else {})
        headers |= {"prefer": "respond-async"} if long else {}
        body = call.body if long else {name: value for name, value in call.body.items() if name != "webhook"}
        with _asking(call), suppress(httpx2.TransportError):
            url = f"{self._url}/images/generations"
            await self._http.post(url, json=body, headers=headers, timeout=patience_s)
        return call.attempts[-1]

    async def with_key(self, call: Call, random_: random.Random) -> None:
        """Ask until there is an answer that asking again would not change; and sometimes once more after a 200."""
        hasty, again = random_.random() < 0.25, random_.random() < 0.3
        end_s = time.monotonic() + self._insists_s
        while time.monotonic() < end_s:
            attempt = await self.post(call, random_.uniform(0.05, 3.0) if hasty else self._patient_s)
            if attempt.status == 200:
                if again:
                    await self.post(call, self._patient_s)
                return
            if attempt.status is not None and 400 <= attempt.status < 500 and attempt.status != 429:
                return
            hasty = False
            await asyncio.sleep(random_.uniform(0.2, 2.0))

    async def long(self, call: Call, random_: random.Random) -> None:
        """Place a long order, and watch it to its end; at times lose the 202, cancel it, or ask for it once more."""
        hasty, awaited = random_.random() < 0.25, call.key != "" and random_.random() < 0.1
        end_s = time.monotonic() + self._insists_s
        while time.monotonic() < end_s:
            patience_s = random_.uniform(0.005, 0.05) if hasty else random_.uniform(0.3, 2.0) if awaited else ASK_S
            attempt = await self.post(call, patience_s, long=not awaited)
            if attempt.accepted:
                break
            if attempt.status is not None and attempt.status < 500 and (attempt.status != 429 or not call.key):
                return
            hasty = awaited = False
            await asyncio.sleep(random_.uniform(0.2, 2.0))
        else:
            return
        watch = Watch(attempt.accepted)
        call.watched.append(watch)
        beside = []
        if random_.random() < 0.3:
            beside.append(self._cancel(call, watch, random_.choice((0.0, random_.uniform(0.0, 3.0), None))))
        if call.key and random_.random() < 0.25:
            beside.append(self._joins(call, random_.uniform(0.0, 12.0), long=random_.random() < 0.5))
        await asyncio.gather(self._watch(call, watch, random_.uniform(0.5, 2.0)), *beside)

    async def _watch(self, call: Call, watch: Watch, pause_s: float) -> None:
        """Ask for a long order until it has ended, or as long as it may live."""
        end_s = time.monotonic() + self._watches_s
        while watch.state not in ENDED and time.monotonic() < end_s:
            reply = await self._ask("GET", call, watch, "")
            if reply is not None and reply.status_code in (200, 404):
                state = orjson.loads(reply.content)["status"] if reply.status_code == 200 else "unknown"
                if state != watch.state:
                    watch.states.append((time.time_ns() // 1000, state))
            await asyncio.sleep(pause_s)

    async def _cancel(self, call: Call, watch: Watch, after_s: float | None) -> None:
        """Cancel a long order: after so long, or after its end."""
        end_s = time.monotonic() + (after_s if after_s is not None else self._watches_s)
        while time.monotonic() < end_s and (after_s is not None or watch.state not in ENDED):
            await asyncio.sleep(0.1)
        reply = await self._ask("POST", call, watch, "/cancel")
        state = ""
        if reply is not None:
            state = orjson.loads(reply.content)["status"] if reply.status_code == 200 else _code(reply.content)
        watch.cancels.append((0 if reply is None else reply.status_code, state))

    async def _joins(self, call: Call, after_s: float, *, long: bool) -> None:
        """Place the order again under its key, in either form. If it has ended without a charge, it is a new one."""
        await asyncio.sleep(after_s)
        await self.post(call, self._patient_s, long=long)

    async def _ask(self, method: str, call: Call, watch: Watch, action: str) -> httpx2.Response | None:
        """Ask about an order; None without an answer."""
        url = f"{self._url}/images/generations/{watch.order}{action}"
        with suppress(httpx2.TransportError):
            return await self._asking.request(method, url, headers=bearer(call.customer.key))
        return None

    async def with_sdk(self, call: Call, random_: random.Random) -> None:
        """The official client as it comes, with its own retries; a hasty one hangs up on its first tries."""
        patience_s = random_.uniform(1.0, 3.0) if random_.random() < 0.25 else self._patient_s
        client = openai.AsyncOpenAI(
            base_url=self._url,
            api_key=call.customer.key,
            http_client=self._http,
            timeout=patience_s,
            max_retries=SDK_TRIES,
        )
        with _asking(call), suppress(openai.APIError):
            await client.images.generate(**call.body)  # type: ignore[call-overload]  # as a customer would write it


def _code(content: bytes) -> str:
    """Read the code of an error in our form; a proxy's errors may have another form."""
    try:
        return str(orjson.loads(content)["error"]["code"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ""


def _place(kind: Kind) -> int:
    return list(SHARES).index(kind)


@contextmanager
def _asking(call: Call) -> Iterator[None]:
    """Whatever this task sends now belongs to this call."""
    token = _current.set(call)
    try:
        yield
    finally:
        _current.reset(token)
