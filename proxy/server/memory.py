"""Freed memory goes back to the machine: otherwise the C library keeps what lies below memory in use."""

import ctypes
import gc

YOUNG, MIDDLE, OLD = 10_000, 20, 100
"""New objects until the collector searches those, then those of so many searches, then all.

An order leaves no garbage that only a search finds (`tests/e2e/test_counted_work.py`). With Python's own numbers (700,
10, 10) the searches take 6 % of the CPU, 12 % if a thousand orders wait, and stop the process for 200 ms if 5,000 are
open. What a fault leaves is found a little later.
"""

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's function; other C libraries give memory back by themselves, or cannot."""


def search_seldom() -> None:
    """Let the collector search seldom."""
    gc.set_threshold(YOUNG, MIDDLE, OLD)


def give_back() -> None:
    """Give memory back. It blocks the process for some 50 ms, most of it for the collection, so call it seldom."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
