"""Scripts in Redis, called with named arguments. Each script declares its arguments and reply in its first lines.

A line `-- WITH NAME` in a script is replaced by `NAME.lua`: functions are made anew at each call of a script, so those
that few orders need are made only where they are needed.
"""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from typing import Any, NamedTuple

from prometheus_client import Histogram
from redis.asyncio import Redis
from redis.exceptions import NoScriptError

_HERE = Path(__file__).parent
_COMMON = (_HERE / "common.lua").read_text(encoding="utf-8")
_WITH = re.compile(r"^ *-- WITH (\w+)$", re.MULTILINE)
_WRITES = re.compile(r"^-- WRITES$.*?^-- WRITTEN$", re.MULTILINE | re.DOTALL)
_EMPTY = "''"

SCRIPT_S = Histogram(
    "ghub_wallet_script_seconds",
    "A script's call, or one round trip of many calls, from sending it until its answer was read here",
    ["script"],
    # The script itself takes 0.05 to 0.2 ms, the network 0.1 to 2 ms; after 100 ms the customer is told 503.
    buckets=(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5),
)


class Call(NamedTuple):
    """One call of a script: Redis' keys, all of one partition, and arguments, both in the declared order."""

    keys: list[str]
    args: list[Any]


class _Declared:
    """`-- KEYS a b`, `-- ARGV text number>=LOWEST ...` and `-- REPLY number name:text`, each on one line or more."""

    def __init__(self, text: str) -> None:
        self.keys = _words(text, "KEYS")
        args = _words(text, "ARGV")
        self.varies = args[-1:] == ["..."]
        self.args = {name: lowest for name, _, lowest in (one.partition(">=") for one in args if one != "...")}
        self.reply = {name: kind == "text" for name, _, kind in (one.partition(":") for one in _words(text, "REPLY"))}

    def prelude(self, codes: type[IntEnum] | None) -> str:
        """Write the declarations in Lua: a local for each name, and a check for each number."""
        first = len(self.args) + 1
        count = f"#ARGV < {first - 1}" if self.varies else f"#ARGV ~= {first - 1}"
        lines = [f"if #KEYS ~= {len(self.keys)} or {count} then error('another number of arguments') end"]
        lines += [f"local REST = {first}"] if self.varies else []
        lines += [f"local {name}_key = KEYS[{place}]" for place, name in enumerate(self.keys, 1)]
        for place, (name, lowest) in enumerate(self.args.items(), 1):
            lines.append(f"local {name} = " + (f"whole('{name}', {place}, {lowest})" if lowest else f"ARGV[{place}]"))
        lines += [f"local {code.name} = {code.value}" for code in codes or ()]
        if self.reply:
            # Redis ends an array at its first nil, so a name that the script leaves out is 0 or empty.
            fields = ", ".join(f"r.{name} or {_EMPTY if text else 0}" for name, text in self.reply.items())
            lines.append(f"local function answer(r) return {{ {fields} }} end")
        return "\n".join(lines) + "\n"


class Script:
    """One script.

    It is sent by its hash, and in full to a server that does not know the hash and so has done nothing. `name` is its
    name in metrics.
    """

    def __init__(self, redis: Redis, name: str, text: str, codes: type[IntEnum] | None = None) -> None:
        self._redis = redis
        self._seconds = SCRIPT_S.labels(name)
        self._declared = _Declared(text)
        self._text = _COMMON + self._declared.prelude(codes) + _WITH.sub(_part, text)
        self._hash = hashlib.sha1(self._text.encode(), usedforsecurity=False).hexdigest()

    def call(self, keys: Mapping[str, str], rest: Sequence[Any] = (), **args: Any) -> Call:
        """Prepare a call for `each`. Raises TypeError if the names are not the declared ones."""
        if keys.keys() != set(self._declared.keys) or args.keys() != self._declared.args.keys():
            wrong = sorted({*keys} ^ {*self._declared.keys} | args.keys() ^ self._declared.args.keys())
            raise TypeError(f"missing or unknown: {', '.join(wrong)}")
        return Call(
            [keys[name] for name in self._declared.keys], [args[name] for name in self._declared.args] + [*rest]
        )

    async def __call__(self, keys: Mapping[str, str], rest: Sequence[Any] = (), **args: Any) -> Any:
        """Call the script. A declared reply is returned by name, with texts as `str`; any other reply is unchanged."""
        call = self.call(keys, rest, **args)
        sent_s = time.monotonic()
        reply = await self._send(call)
        self._seconds.observe(time.monotonic() - sent_s)
        return self._read(reply)

    async def each(self, calls: Sequence[Call]) -> list[Any]:
        """Run many calls with one round trip to each server; returns a reply for each."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for names, args in calls:
                pipe.evalsha(self._hash, len(names), *names, *args)
            sent_s = time.monotonic()
            replies = await pipe.execute(raise_on_error=False) if calls else []
        if calls:
            self._seconds.observe(time.monotonic() - sent_s)
        for place, call in enumerate(calls):
            if isinstance(replies[place], NoScriptError):
                replies[place] = await self._send(call)
            elif isinstance(replies[place], Exception):
                raise replies[place]
        return [self._read(reply) for reply in replies]

    async def _send(self, call: Call) -> Any:
        try:
            return await self._redis.evalsha(self._hash, len(call.keys), *call.keys, *call.args)
        except NoScriptError:
            return await self._redis.eval(self._text, len(call.keys), *call.keys, *call.args)

    def _read(self, reply: Any) -> Any:
        if not self._declared.reply:
            return reply
        named = zip(self._declared.reply.items(), reply, strict=True)
        return {name: value.decode() if text else value for (name, text), value in named}


def load_script(redis: Redis, name: str, codes: type[IntEnum] | None = None) -> Script:
    """Load `NAME.lua` from this folder, with the common part before it, and `codes` as Lua locals."""
    unversioned = name.rpartition("_v")[0]
    return Script(redis, unversioned, (_HERE / f"{name}.lua").read_text(encoding="utf-8"), codes)


def load_rehearsal(redis: Redis, name: str, as_name: str, codes: type[IntEnum] | None = None) -> Script:
    """Load `NAME.lua` without its lines from `-- WRITES` to `-- WRITTEN`: it decides the same, and changes nothing."""
    text, parts = _WRITES.subn("", (_HERE / f"{name}.lua").read_text(encoding="utf-8"))
    assert parts, f"{name} does not say what it writes"
    return Script(redis, as_name, text, codes)


def _part(found: re.Match[str]) -> str:
    return (_HERE / f"{found[1]}.lua").read_text(encoding="utf-8")


def _words(text: str, tag: str) -> list[str]:
    return " ".join(re.findall(rf"^-- {tag} +(.+)$", text, re.MULTILINE)).split()
