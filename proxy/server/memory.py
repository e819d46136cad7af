"""Freed memory goes back to the machine: otherwise the C library keeps what lies below memory in use."""

import ctypes
import gc

_TRIM = getattr(ctypes.CDLL(None), "malloc_trim", None)
"""glibc's function; other C libraries give memory back by themselves, or cannot."""


def give_back() -> None:
    """Give memory back. It blocks the process for some 50 ms, most of it for the collection, so call it seldom."""
    gc.collect()
    if _TRIM is not None:
        _TRIM(0)
