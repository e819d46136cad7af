"""Metrics of several processes as one page, in Prometheus' text format. Pure."""

from collections.abc import Iterable, Mapping

LABEL = "process"
"""Label of every sample of a process, next to its own labels: its number, from 0."""


def union(own: str, pages: Mapping[int, str]) -> str:
    """Unite the supervisor's own page with those of its processes, whose samples are labelled with their numbers.

    Each family's samples stand together under one head, as the format demands.
    """
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, page in [(None, own), *pages.items()]:
        family = ""
        for line in page.split("\n")[:-1]:  # and nowhere else: a label may have Unicode's other ends of a line
            if not line.startswith("#"):
                samples[family].append(line if number is None else _labelled(line, number))
                continue
            _, kind, name, *_ = line.split(" ", 3)
            if name not in samples:
                heads[name], samples[name] = [], []
            if kind == "HELP":
                family = name
            if not any(head.startswith(f"# {kind} ") for head in heads[name]):
                heads[name].append(line)
    return "".join(f"{line}\n" for line in _lines(heads, samples))


def _lines(heads: Mapping[str, list[str]], samples: Mapping[str, list[str]]) -> Iterable[str]:
    for name, head in heads.items():
        yield from head
        yield from samples[name]


def _labelled(sample: str, number: int) -> str:
    """Add the label to a line; a metric's name has neither a brace nor a space in it."""
    brace, space = sample.find("{"), sample.find(" ")
    label = f'{LABEL}="{number}"'
    if 0 < brace < space:
        return f"{sample[:brace]}{{{label},{sample[brace + 1 :]}"
    return f"{sample[:space]}{{{label}}}{sample[space:]}"
