"""The seal of a closed month: a hash chain over each organisation's rows, as they are exported.

A row's seal is over the seal before it and over its cells. So whoever changes, adds, removes or moves a row breaks the
chain there, and the file itself says where: no database is needed.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

SEAL_BYTES = 16
"""Length of a seal in a row: its first half, which nobody can find another row for (2^128 tries)."""

CHECKED = 1_000
"""Rows of an organisation from one checkpoint of the manifest to the next.

Whoever seals the following rows anew too is found by the next checkpoint, which is signed.
"""


@dataclass(slots=True)
class _Chain:
    rows: int
    last: bytes
    checkpoints: list[str]


@dataclass(frozen=True, slots=True)
class Head:
    """The end of an organisation's chain: how many rows, the last seal, and the seal of every thousandth row."""

    rows: int
    seal: str
    checkpoints: tuple[str, ...]


class Chains:
    """The chains of one month, one for each organisation, as its rows come."""

    def __init__(self, month: str) -> None:
        self._month = month
        self._chains: dict[str, _Chain] = {}

    def add(self, org_id: str, cells: Sequence[str]) -> str:
        """Add an organisation's next row; returns its seal, in hex."""
        chain = self._chains.get(org_id)
        if chain is None:
            chain = self._chains[org_id] = _Chain(0, first_seal(self._month, org_id), [])
        chain.last = next_seal(chain.last, cells)
        chain.rows += 1
        seal = chain.last.hex()
        if chain.rows % CHECKED == 0:
            chain.checkpoints.append(seal)
        return seal

    def heads(self) -> Mapping[str, Head]:
        """Return the end of each chain, by organisation."""
        return {
            org_id: Head(chain.rows, chain.last.hex(), tuple(chain.checkpoints))
            for org_id, chain in sorted(self._chains.items())
        }


def first_seal(month: str, org_id: str) -> bytes:
    """Compute what an organisation's chain of a month begins with."""
    return _digest(orjson.dumps(["ghub month", month, org_id]))


def next_seal(before: bytes, cells: Sequence[str]) -> bytes:
    """Compute the seal of a row from the one before it, and its cells."""
    return _digest(before + orjson.dumps(cells))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()[:SEAL_BYTES]
