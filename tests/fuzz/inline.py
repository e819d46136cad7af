"""`python -m tests.fuzz.inline`: pictures out of a reply while it streams by, judged by `json.loads` and `base64`.

Case number i of seed S is the one case of seed S + i, so that a failure is made again by its own seed alone.
"""

import argparse
import base64
import json
import math
import random
import re
import sys
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, NoReturn, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn, TimeRemainingColumn

from proxy.media.inline import BadDocument, JsonPictures, inline_pictures
from tests.fuzz.replies import GOOGLE, OPENAI, XAI, Shape, Writer, cut

T = TypeVar("T")
Found = tuple[dict[int, bytes], Any]
"""The pictures by their index, and the rest of the document with None instead of them."""

MAX_DOCUMENT_BYTES = 64 * 1024
BATCH = 2_000
SHOWN = 20

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


def streamed(chunks: Iterable[bytes], shape: Shape) -> Found | None:
    """The gateway's result; None if it refuses."""

    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def read() -> Found:
        document = JsonPictures(shape.list_key, shape.field_key, MAX_DOCUMENT_BYTES)
        pictures = {}
        async for place, pieces in inline_pictures(source(), document):
            assert place not in pictures
            pictures[place] = b"".join([piece async for piece in pieces])
        return pictures, document.finish()

    try:
        return at_once(read())
    except BadDocument:
        return None


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of what never waits; an event loop for each case would take longer than the case."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it waits")


class _Fields(dict[str, Any]):
    """A JSON object that remembers which of its keys came twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        _sound(pairs)
        self.twice = {key for key, times in Counter(key for key, _ in pairs).items() if times > 1}


def plain(text: bytes, shape: Shape) -> Found | None:
    """Decode the same with everything in memory; None if it is refused.

    `json.loads` accepts three things that we refuse: NaN and infinity; half of a surrogate pair; and a duplicate key on
    the way to a picture, where the last one would replace bytes that have been passed on.
    """
    try:
        document = json.loads(text.decode(), object_pairs_hook=_Fields, parse_constant=_refuse, parse_float=_finite)
        _sound(document)
        return _pictures(document, shape), document
    except ValueError:
        return None


def _pictures(document: Any, shape: Shape) -> dict[int, bytes]:
    """Takes the pictures out of the document."""
    pictures: dict[int, bytes] = {}
    if not isinstance(document, _Fields):
        return pictures
    items = document.get(shape.list_key)
    if shape.list_key in document.twice:
        raise ValueError("a list twice")
    for place, item in enumerate(items if isinstance(items, list) else []):
        if isinstance(item, _Fields) and shape.field_key in item.twice:
            raise ValueError("a picture twice")
        if isinstance(item, _Fields) and isinstance(item.get(shape.field_key), str):
            pictures[place] = _picture(item[shape.field_key])
            item[shape.field_key] = None
    return pictures


def _picture(text: str) -> bytes:
    for space in " \t\r\n":
        text = text.replace(space, "")
    if text.startswith("data:"):
        label, comma, text = text.partition(",")
        printable = label.isascii() and label.isprintable()
        if not comma or not printable or not label.endswith(";base64") or len(label) > 128:
            raise ValueError("a label")
    if not _BASE64.fullmatch(text):
        raise ValueError("no base64")
    return base64.b64decode(text)


def _sound(value: Any) -> None:
    """Half of a surrogate pair is no text: UTF-8 cannot write it. Raises ValueError."""
    json.dumps(value, ensure_ascii=False).encode()


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise ValueError("too large a number")
    return value


def disagreement(seed: int) -> str | None:
    """Compare one case of this seed: None if both agree, otherwise both results."""
    chance = random.Random(seed)
    shape = chance.choice((OPENAI, XAI, GOOGLE))
    text = Writer(shape, chance).reply()
    expected = plain(text, shape)
    try:
        found = streamed(cut(text, chance), shape)
    except Exception as error:  # noqa: BLE001  # a fault is a finding, and its seed must be told
        return f"seed {seed}: {text!r}\n  streamed raises {error!r}"
    if found == expected:
        return None
    return f"seed {seed}: {text!r}\n  streamed {found!r}\n  plain    {expected!r}"


def disagreements(first_seed: int, cases: int) -> list[str]:
    """The cases of that many seeds on which the two do not agree."""
    return [said for seed in range(first_seed, first_seed + cases) if (said := disagreement(seed)) is not None]


def main() -> int:
    """Exit with 0 if all cases agree; otherwise with 1, and print each failing case with its seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.inline", description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    options = parser.parse_args()
    console = Console(soft_wrap=True, markup=False, highlight=False)
    end = options.seed + options.cases
    failed = 0
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress, ProcessPoolExecutor(options.jobs) as pool:
        task = progress.add_task("", total=options.cases)
        batches = {}
        for first in range(options.seed, end, BATCH):
            size = min(BATCH, end - first)
            batches[pool.submit(disagreements, first, size)] = size
        for batch in as_completed(batches):
            said = batch.result()
            for line in said[: max(0, SHOWN - failed)]:
                console.print(line)
            failed += len(said)
            progress.advance(task, batches[batch])
    console.print(f"{options.cases:,} cases from seed {options.seed}: {failed:,} disagree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
